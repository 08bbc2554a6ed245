//! Ids, begin and end of text, templates and errors of the tokenizer.

mod common;
use billfish_text::{TextError, Tokenizer, TokenizerFiles};
use common::{alone, fallback_decoder, pieces_json, tales, tales_file};
use serde_json::{Map, Value, json};

#[test]
fn ids_and_texts_are_those_of_the_reference() {
    let tokenizer = tales();
    let data: Value = serde_json::from_str(include_str!("data/tokens.json")).unwrap();
    let ids_of = |v: &Value| -> Vec<u32> { serde_json::from_value(v.clone()).unwrap() };
    let cases = data["encoded"].as_array().unwrap();
    assert!(cases.len() >= 40);
    for case in cases {
        let (text, ids) = (case["text"].as_str().unwrap(), ids_of(&case["ids"]));
        assert_eq!(tokenizer.encode_prompt(text).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), case["decoded"], "{text:?}");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), case["decoded_skip"], "{text:?}");
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id).unwrap()).collect();
        assert_eq!(bytes, text.as_bytes(), "{text:?}");
    }
    for case in data["decoded"].as_array().unwrap() {
        assert_eq!(tokenizer.decode(&ids_of(&case["ids"]), true).unwrap(), case["decoded_skip"], "{:?}", case["ids"]);
    }
    assert_eq!(tokenizer.vocab_size(), data["vocab_size"].as_u64().unwrap() as usize);
}

#[test]
fn special_tokens_of_the_model_folder() {
    let tokenizer = tales();
    assert_eq!(tokenizer.bos_id(), Some(0));
    assert_eq!(tokenizer.eos_ids(), [0]);
    assert_eq!(tokenizer.id_of("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.token(1).as_deref(), Some("<|im_start|>"));
    assert_eq!(tokenizer.token(4096), None);
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(3));
    assert_eq!(tokenizer.special_tokens()["pad_token"], "<|endoftext|>");
    assert_eq!(tokenizer.chat_template_names().collect::<Vec<_>>(), ["default"]);
    let rendered = tokenizer.chat_template(None).unwrap().render(&[billfish_text::Message::new("user", "hi")], true, &Map::new());
    assert_eq!(rendered.unwrap(), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
}

fn with_config(config: Value) -> Result<Tokenizer, TextError> {
    let json = serde_json::to_vec(&pieces_json(fallback_decoder())).unwrap();
    let config = serde_json::to_vec(&config).unwrap();
    Tokenizer::from_parts(TokenizerFiles { name: "pieces", tokenizer_json: &json, tokenizer_config: Some(&config), ..Default::default() })
}

#[test]
fn begin_and_end_of_a_prompt() {
    let named = json!({"bos_token": {"content": "<s>", "special": true}, "eos_token": "</s>"});
    let ids = |keys: Value| {
        let mut config = named.clone();
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        with_config(config).unwrap().encode_prompt("the").unwrap()
    };
    let the = with_config(named.clone()).unwrap().encode("the", false).unwrap();
    let around = |bos: bool, eos: bool| [&[1][..usize::from(bos)], &the, &[2][..usize::from(eos)]].concat();
    assert_eq!(ids(json!({})), around(true, false), "the post-processor decides");
    assert_eq!(ids(json!({"add_bos_token": null})), around(true, false));
    assert_eq!(ids(json!({"add_bos_token": true})), around(true, false), "never twice");
    assert_eq!(ids(json!({"add_bos_token": false})), around(false, false));
    assert_eq!(ids(json!({"add_eos_token": true})), around(true, true));
    assert_eq!(ids(json!({"add_bos_token": false, "add_eos_token": true})), around(false, true));
    assert_eq!(ids(json!({"add_bos_token": true, "bos_token": "</s>"}))[..2], [2, 1], "not the token the post-processor put");

    // A template writes its own begin token; it is not doubled. A begin token that the text itself spells out stays.
    let tokenizer = with_config(json!({"bos_token": "<s>", "add_bos_token": false})).unwrap();
    assert_eq!(tokenizer.encode_chat("<s>").unwrap()[..1], [1]);
    assert_eq!(tokenizer.encode_prompt("<s>").unwrap().iter().filter(|id| **id == 1).count(), 1);
    assert_eq!(tokenizer.encode_prompt("").unwrap(), [0_u32; 0]);
}

#[test]
fn stored_truncation_is_switched_off() {
    let tokenizer = alone(&pieces_json(fallback_decoder()));
    assert!(tokenizer.encode_prompt("the cat the cat the cat").unwrap().len() > 5);
}

#[test]
fn end_of_text_ids_come_from_the_nearest_file() {
    let json = serde_json::to_vec(&pieces_json(fallback_decoder())).unwrap();
    let eos = |generation: Value, config: Value, named: Value| {
        let named = serde_json::to_vec(&named).unwrap();
        let files = TokenizerFiles {
            name: "pieces",
            tokenizer_json: &json,
            tokenizer_config: Some(&named),
            generation_config: generation.as_object(),
            config: config.as_object(),
            chat_template: None,
        };
        Tokenizer::from_parts(files).map(|t| t.eos_ids().to_vec())
    };
    let named = json!({"eos_token": "</s>"});
    assert_eq!(eos(json!({"eos_token_id": [5, 6]}), json!({"eos_token_id": 7}), named.clone()).unwrap(), [5, 6]);
    assert_eq!(eos(json!({"eos_token_id": null}), json!({"eos_token_id": 7}), named.clone()).unwrap(), [7]);
    assert_eq!(eos(json!({}), json!({"text_config": {"eos_token_id": 8}}), named.clone()).unwrap(), [8]);
    assert_eq!(eos(json!({}), json!({}), named).unwrap(), [2]);
    assert_eq!(eos(json!({}), json!({}), json!({})).unwrap(), [0_u32; 0]);

    let error = eos(json!({"eos_token_id": "x"}), json!({}), json!({})).unwrap_err().to_string();
    assert!(error.contains("pieces/generation_config.json") && error.contains("eos_token_id") && error.contains("\"x\""), "{error}");
    let error = eos(json!({}), json!({}), json!({"eos_token": "<end>"})).unwrap_err();
    assert!(matches!(&error, TextError::UnknownToken { token, .. } if token == "<end>"), "{error}");
    assert!(eos(json!({"eos_token_id": 5}), json!({}), json!({"eos_token": "<end>"})).is_ok(), "not needed");
}

#[test]
fn begin_of_text_id() {
    assert_eq!(with_config(json!({"bos_token": null})).unwrap().bos_id(), None);
    assert_eq!(with_config(json!({"bos_token": "<none>"})).unwrap().bos_id(), None);
    assert!(matches!(with_config(json!({"bos_token": "<none>", "add_bos_token": true})), Err(TextError::UnknownToken { .. })));
    let config = json!({"bos_token_id": 1});
    let json = serde_json::to_vec(&pieces_json(fallback_decoder())).unwrap();
    let files = TokenizerFiles { name: "p", tokenizer_json: &json, config: config.as_object(), ..Default::default() };
    assert_eq!(Tokenizer::from_parts(files).unwrap().bos_id(), Some(1));
}

#[test]
fn several_templates_are_kept_by_name() {
    let list = json!({"chat_template": [{"name": "default", "template": "d{{ eos_token }}"}, {"name": "tool_use", "template": "t"}], "eos_token": "</s>"});
    let tokenizer = with_config(list.clone()).unwrap();
    let text = |t: &Tokenizer, name: Option<&str>| t.chat_template(name).unwrap().render(&[], false, &Map::new()).unwrap();
    assert_eq!((text(&tokenizer, None).as_str(), text(&tokenizer, Some("tool_use")).as_str()), ("d</s>", "t"));
    let error = tokenizer.chat_template(Some("rag")).unwrap_err().to_string();
    assert!(error.contains("`rag`") && error.contains("default, tool_use"), "{error}");

    // The file of its own wins over the one inside the configuration, and leaves the others.
    let (json, list) = (serde_json::to_vec(&pieces_json(fallback_decoder())).unwrap(), serde_json::to_vec(&list).unwrap());
    let files = TokenizerFiles {
        name: "p",
        tokenizer_json: &json,
        tokenizer_config: Some(&list),
        chat_template: Some("file"),
        ..Default::default()
    };
    let tokenizer = Tokenizer::from_parts(files).unwrap();
    assert_eq!((text(&tokenizer, None).as_str(), text(&tokenizer, Some("tool_use")).as_str()), ("file", "t"));
}

#[test]
fn broken_files_are_named_with_their_position() {
    let mut cut = tales_file("tokenizer.json");
    cut.truncate(1000);
    let error = Tokenizer::from_parts(TokenizerFiles { name: "m", tokenizer_json: &cut, ..Default::default() }).err().unwrap();
    assert!(matches!(&error, TextError::Json { file, line, .. } if file == "m/tokenizer.json" && *line > 1), "{error}");
    let error = Tokenizer::from_parts(TokenizerFiles { name: "m", tokenizer_json: b"\xff", ..Default::default() }).err().unwrap();
    assert!(matches!(error, TextError::Json { .. }), "{error}");
    for config in [json!([]), json!({"bos_token": 3}), json!({"add_bos_token": "yes"}), json!({"chat_template": [1]})] {
        assert!(with_config(config.clone()).is_err(), "{config}");
    }
}

#[test]
fn byte_tokens_are_bytes() {
    let tokenizer = alone(&pieces_json(fallback_decoder()));
    assert_eq!(tokenizer.token_bytes(3 + 0xF0), Some(vec![0xF0]));
    assert_eq!(tokenizer.token_bytes(tokenizer.id_of("▁the").unwrap()), Some(b" the".to_vec()));
    assert_eq!(tokenizer.token_bytes(10_000), None);
}

/// The library panics on a decoder that is cut and on a normalizer's table that is none; a file must never do that.
#[test]
fn a_damaged_tokenizer_is_an_error_wherever_it_is_damaged() {
    let read = |bytes: &[u8]| Tokenizer::from_parts(TokenizerFiles { name: "pieces", tokenizer_json: bytes, ..Default::default() });
    let whole = pieces_json(fallback_decoder());
    let bytes = serde_json::to_vec(&whole).unwrap();
    assert!(read(&bytes).is_ok());
    for len in 0..bytes.len() {
        assert!(matches!(read(&bytes[..len]), Err(TextError::Json { .. })), "cut at {len}");
    }
    for decoder in [json!(5), json!({"type": "Nothing"}), json!({"type": "Sequence", "decoders": 1})] {
        assert!(read(&serde_json::to_vec(&pieces_json(decoder)).unwrap()).is_err());
    }
    let mut table = whole;
    table["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
    let error = read(&serde_json::to_vec(&table).unwrap()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("pieces/tokenizer.json"), "{error}");
}
