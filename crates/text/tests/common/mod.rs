//! The tokenizers under test.
#![allow(dead_code)] // each test file uses a part

use billfish_text::{Tokenizer, TokenizerFiles};
use serde_json::{Value, json};
use std::path::PathBuf;

/// A file of the byte-level model that ships with the repository.
pub fn tales_file(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../billfish/assets/tales-6m-w4-sym-g128").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Its tokenizer, with all files.
pub fn tales() -> Tokenizer {
    let parse = |name: &str| serde_json::from_slice::<serde_json::Map<String, Value>>(&tales_file(name)).unwrap();
    let (generation, config) = (parse("generation_config.json"), parse("config.json"));
    Tokenizer::from_parts(TokenizerFiles {
        name: "tales",
        tokenizer_json: &tales_file("tokenizer.json"),
        tokenizer_config: Some(&tales_file("tokenizer_config.json")),
        generation_config: Some(&generation),
        config: Some(&config),
        chat_template: Some(std::str::from_utf8(&tales_file("chat_template.jinja")).unwrap()),
    })
    .unwrap()
}

/// A sentencepiece-like `tokenizer.json`: 3 special tokens, 256 byte tokens, a few words; adds `<s>` in front.
pub fn pieces_json(decoder: Value) -> Value {
    let mut vocab = vec![json!(["<unk>", 0.0]), json!(["<s>", 0.0]), json!(["</s>", 0.0])];
    vocab.extend((0..256).map(|b| json!([format!("<0x{b:02X}>"), -20.0])));
    let words = ["▁", "▁▁", "▁the", "▁cat", "s", "a", "b", "c", "é", "▁漢", "字", "\u{301}", "🙂", "\n", "▁sat▁on", "\u{FFFD}", "the"];
    vocab.extend(words.iter().map(|w| json!([w, -(2.0 + 8.0 / w.len() as f64)])));
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": decoder,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": true},
    })
}

/// The decoder of sentencepiece models with byte fallback.
pub fn fallback_decoder() -> Value {
    json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]})
}

/// Decoders in which the sentencepiece-like vocabulary means something, the last two without a streaming form.
pub fn decoders() -> Vec<Value> {
    vec![
        fallback_decoder(),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": true}),
        json!({"type": "Sequence", "decoders": [
            {"type": "ByteFallback"},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true},
            {"type": "Strip", "content": "s", "start": 1, "stop": 0},
        ]}),
        json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 3, "stop": 0},
        ]}),
        json!({"type": "WordPiece", "prefix": "▁", "cleanup": false}),
        Value::Null,
    ]
}

/// A tokenizer of our own around a `tokenizer.json` alone.
pub fn alone(json: &Value) -> Tokenizer {
    let bytes = serde_json::to_vec(json).unwrap();
    Tokenizer::from_parts(TokenizerFiles { name: "pieces", tokenizer_json: &bytes, ..Default::default() }).unwrap()
}

/// The library's tokenizer around the same file: the oracle for decoding.
pub fn library(json: &Value) -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_bytes(serde_json::to_vec(json).unwrap()).unwrap()
}
