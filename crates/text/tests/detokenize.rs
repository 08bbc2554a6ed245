//! The stream of text equals the text of the whole, and nothing unfinished comes out.

mod common;
use billfish_text::Tokenizer;
use common::{alone, decoders, fallback_decoder, library, pieces_json, tales, tales_file};
use proptest::prelude::*;
use serde_json::Value;
use std::sync::LazyLock;

/// Streams ids; returns everything that came out, by push and at the end.
fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> (Vec<String>, String) {
    let mut stream = tokenizer.detokenizer(true);
    let pushed = ids.iter().map(|id| stream.push(*id).unwrap().to_owned()).collect();
    (pushed, stream.finish().unwrap().to_owned())
}

static TALES: LazyLock<(Tokenizer, tokenizers::Tokenizer)> =
    LazyLock::new(|| (tales(), tokenizers::Tokenizer::from_bytes(tales_file("tokenizer.json")).unwrap()));
static PIECES: LazyLock<Vec<(Value, Tokenizer, tokenizers::Tokenizer)>> = LazyLock::new(|| {
    let build = |decoder: Value| {
        let json = pieces_json(decoder.clone());
        (decoder, alone(&json), library(&json))
    };
    decoders().into_iter().map(build).collect()
});

const MIXED: &str = "Once 🙂😀👍🏽 upon 漢字かな交じり文。 Cafe\u{301} 👨‍👩‍👧‍👦\n\n  नमस्ते \u{FFFD} end 𝒳";

#[test]
fn characters_come_out_whole() {
    for tokenizer in [&TALES.0, &PIECES[0].1] {
        let ids = tokenizer.encode(MIXED, false).unwrap();
        assert!(ids.len() > MIXED.chars().count() / 2);
        let (pushed, rest) = stream(tokenizer, &ids);
        assert_eq!(pushed.concat() + &rest, MIXED);
        assert_eq!((pushed.concat() + &rest).matches('\u{FFFD}').count(), 1, "only the one of the text");
    }
}

#[test]
fn nothing_is_held_without_need() {
    let tokenizer = &TALES.0;
    let ids = tokenizer.encode("Once upon a time, there was a cat.", false).unwrap();
    let (pushed, rest) = stream(tokenizer, &ids);
    assert!(pushed.iter().all(|p| !p.is_empty()) && rest.is_empty(), "{pushed:?}");
}

#[test]
fn unfinished_characters_come_out_at_the_end_only() {
    let byte_level = |byte: u8| (0..4096).find(|id| TALES.0.token_bytes(*id).as_deref() == Some(&[byte])).unwrap();
    let ids: Vec<u32> = [0xF0, 0x9F, 0x99].map(byte_level).to_vec();
    assert_eq!(stream(&TALES.0, &ids), (vec![String::new(); 3], "\u{FFFD}".into()));
    let ids: Vec<u32> = [0xF0, 0x9F, 0x41].map(byte_level).to_vec();
    assert_eq!(stream(&TALES.0, &ids), (vec![String::new(), String::new(), "\u{FFFD}A".into()], String::new()));
    // A run of byte tokens is text or not as a whole.
    let byte = |b: u32| 3 + b;
    let ids = [0xF0, 0x9F, 0x99, 0x82, 0xFF].map(byte);
    assert_eq!(stream(&PIECES[0].1, &ids), (vec![String::new(); 5], "\u{FFFD}".repeat(5)));
    assert_eq!(stream(&PIECES[0].1, &ids[..4]), (vec![String::new(); 4], "🙂".into()));
}

#[test]
fn a_long_run_of_bad_bytes_is_no_burden() {
    let bad = (0..4096).find(|id| TALES.0.token_bytes(*id).as_deref() == Some(&[0xFF])).unwrap();
    let (pushed, rest) = stream(&TALES.0, &vec![bad; 20_000]);
    assert_eq!((pushed.concat() + &rest).chars().count(), 20_000);
    assert_eq!(stream(&PIECES[0].1, &vec![3 + 0xFF; 20_000]).1.chars().count(), 20_000);
}

#[test]
fn a_prompt_is_context() {
    let tokenizer = alone(&pieces_json(fallback_decoder()));
    let the = tokenizer.id_of("▁the").unwrap();
    assert_eq!(tokenizer.detokenizer(true).push(the).unwrap(), "the");
    assert_eq!(tokenizer.detokenizer_after(&[1, the], true).unwrap().push(the).unwrap(), " the");
    assert_eq!(tokenizer.detokenizer_after(&[1], true).unwrap().push(the).unwrap(), "the", "a special token is no text");
}

fn check(tokenizer: &Tokenizer, oracle: &tokenizers::Tokenizer, ids: &[u32]) -> Result<(), TestCaseError> {
    let whole = oracle.decode(ids, true).unwrap();
    let (pushed, rest) = stream(tokenizer, ids);
    prop_assert_eq!(&(pushed.concat() + &rest), &whole);
    prop_assert_eq!(&tokenizer.decode(ids, true).unwrap(), &whole);
    let shown = oracle.decode(ids, false).unwrap();
    prop_assert_eq!(&tokenizer.decode(ids, false).unwrap(), &shown);
    let mut with_special = tokenizer.detokenizer(false);
    let mut streamed: String = ids.iter().map(|id| with_special.push(*id).unwrap().to_owned()).collect();
    streamed.push_str(with_special.finish().unwrap());
    prop_assert_eq!(&streamed, &shown);
    // What is out never has to be taken back, whatever follows.
    let mut out = String::new();
    for (n, piece) in pushed.iter().enumerate() {
        out.push_str(piece);
        prop_assert!(whole.starts_with(&out), "after {} ids: {:?} is no beginning of {:?}", n + 1, out, whole);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn byte_level_stream_equals_whole(ids in prop::collection::vec(prop_oneof![0..4100_u32, 0..260_u32], 0..60)) {
        check(&TALES.0, &TALES.1, &ids)?;
    }

    #[test]
    fn byte_level_stream_gives_any_text_back(text in "\\PC{0,40}") {
        let ids = TALES.0.encode(&text, false).unwrap();
        check(&TALES.0, &TALES.1, &ids)?;
        prop_assert_eq!(TALES.0.decode(&ids, false).unwrap(), text);
    }

    #[test]
    fn sentencepiece_stream_equals_whole(
        ids in prop::collection::vec(prop_oneof![3 => 259..276_u32, 2 => 0..280_u32, 1 => 130..259_u32, 1 => 0..3_u32], 0..40),
        text in "[a-c 🙂漢字é]{0,12}",
    ) {
        for (decoder, tokenizer, oracle) in PIECES.iter() {
            let encoded = tokenizer.encode(&text, true).unwrap();
            for ids in [&ids, &encoded, &[&encoded[..], &ids].concat()] {
                check(tokenizer, oracle, ids).map_err(|e| TestCaseError::fail(format!("{decoder}: {e}")))?;
            }
        }
    }
}
