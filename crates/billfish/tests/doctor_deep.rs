//! `doctor --deep` runs the model under both readings of its zero points, on the trained model inside the binary.

mod common;

use common::{Folder, doctor, fixture, mentions};
use serde_json::json;

const PASS: &str = "forward pass";

#[test]
fn the_better_reading_is_known_by_its_text() {
    let f = Folder::builtin();
    let (code, v) = doctor(f.dir(), &["--deep"]);
    assert!(code == 0 && mentions(&v["findings"], "note", &[PASS, "as v2", "the reading in use is the better one"]), "{v:#}");
    let (code, v) = doctor(f.dir(), &["--deep", "--zeros", "v2"]);
    assert!(code == 2 && mentions(&v["findings"], "error", &[PASS, "as v1", "one step off", "--zeros v1"]), "{v:#}");
    assert!(mentions(&v["findings"], "warning", &[PASS, "guessing costs 8.318"]), "{v:#}");
    // without --deep nothing is run
    let (_, v) = doctor(f.dir(), &[]);
    assert!(!v.to_string().contains(PASS), "{v:#}");
}

/// Asymmetric copies of the model, labelled wrong: read by their codes, and the forward pass agrees.
#[test]
fn labels_that_are_wrong_do_not_mislead() {
    let f = Folder::builtin();
    let out = tempfile::tempdir().unwrap();
    let v2 = out.path().join("v2");
    common::ok(&["convert", f.dir(), v2.to_str().unwrap(), "--to", "gptq_v2"]);
    for file in ["config.json", "quantize_config.json"] {
        let text = std::fs::read_to_string(v2.join(file)).unwrap().replace("gptq_v2", "gptq").replace("\"sym\": true", "\"sym\": false");
        std::fs::write(v2.join(file), text).unwrap();
    }
    let (code, v) = doctor(v2.to_str().unwrap(), &["--deep"]);
    assert_eq!(code, 2);
    assert!(mentions(&v["findings"], "warning", &["labelled v1, but the weights are centred only as v2"]), "{v:#}");
    assert!(mentions(&v["findings"], "note", &[PASS, "as v1", "the reading in use is the better one"]), "{v:#}");
}

/// The models of the fixtures are random: whichever reading is better is so by chance.
#[test]
fn random_weights_prove_nothing() {
    let (code, v) = doctor(fixture("glm4-w4-sym-g32").to_str().unwrap(), &["--deep"]);
    assert!(code == 2 && mentions(&v["findings"], "warning", &[PASS, "nothing to do with language"]), "{v:#}");
    assert!(mentions(&v["findings"], "note", &[PASS, "neither beats guessing"]), "{v:#}");
}

#[test]
fn folders_with_one_reading() {
    for name in ["qwen2-window-dense", "llama-awq-asym-g32", "llama-w5-sym-g32-planar"] {
        let (_, v) = doctor(fixture(name).to_str().unwrap(), &["--deep"]);
        assert!(mentions(&v["findings"], "note", &[PASS, "one reading only"]), "{name} {v:#}");
    }
}

#[test]
fn what_gives_no_numbers_is_an_error() {
    let f = Folder::builtin();
    f.tensor("model.norm.weight", |b| b.as_chunks_mut::<2>().0.iter_mut().for_each(|v| *v = 0x7fc0u16.to_le_bytes()));
    assert_eq!(doctor(f.dir(), &[]).0, 0, "norms are not looked at without running");
    let (code, v) = doctor(f.dir(), &["--deep"]);
    assert!(code == 2 && mentions(&v["findings"], "error", &[PASS, "are not numbers"]), "{v:#}");
}

/// Without a tokenizer there is no text: ids run, numbers are told, and nothing is judged by them.
#[test]
fn without_a_tokenizer() {
    let f = Folder::builtin();
    std::fs::remove_file(f.path("tokenizer.json")).unwrap();
    let (code, v) = doctor(f.dir(), &["--deep", "--zeros", "v2"]);
    assert!(
        code == 2 && mentions(&v["findings"], "note", &[PASS, "63 tokens as v1", "without a tokenizer no text can be judged"]),
        "{v:#}"
    );
    assert!(!mentions(&v["findings"], "error", &[PASS]), "{v:#}");
    // ids that the embedding lacks are not run either
    let f = Folder::builtin();
    f.json("tokenizer.json", |t| {
        let added = t["added_tokens"].as_array_mut().unwrap();
        added.push(json!({"id": 4096, "content": "<|x|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}));
    });
    let (code, v) = doctor(f.dir(), &["--deep"]);
    assert!(code == 2 && mentions(&v["findings"], "error", &["4097 tokens, but the embedding has 4096 rows"]), "{v:#}");
    assert!(mentions(&v["findings"], "note", &[PASS, "63 tokens"]), "{v:#}");
}
