//! `--cache DIR`: one text with and without, said in every report, whoever else makes the same file.

mod common;

use common::{billfish, error, fixture, json, ok};
use std::path::Path;

const RUN: [&str; 8] = ["--prompt", "Once upon a time", "--max-tokens", "12", "--seed", "7", "--threads", "2"];

fn packed(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|e| e == "packed")).count()
}

#[test]
fn one_text_with_and_without() {
    let dir = tempfile::tempdir().unwrap();
    let (model, cache) = (fixture("llama-w4-sym-g32-act"), dir.path().join("deep/caches"));
    let (model, at) = (model.to_str().unwrap(), cache.to_str().unwrap());
    let plain = ok(&[&["run", model][..], &RUN].concat()).0;
    for said in ["(made)", "(hit)"] {
        let (out, err) = ok(&[&["run", model, "--cache", at][..], &RUN].concat());
        assert_eq!(out, plain);
        let line = err.lines().find(|l| l.starts_with("packed cache: ")).unwrap_or_else(|| panic!("{err}"));
        assert!(line.contains(at) && line.ends_with(said), "{line}");
    }
    let object = json(&[&["run", model, "--cache", at, "--json"][..], &RUN].concat());
    assert_eq!(object["packed_cache"]["made"], false);
    assert!(object["packed_cache"]["path"].as_str().unwrap().starts_with(at));
    assert!(json(&[&["run", model, "--json"][..], &RUN].concat())["packed_cache"].is_null());
}

#[test]
fn bench_says_where_the_weights_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let (model, at) = (fixture("llama-w8-sym-g32"), dir.path().to_str().unwrap());
    let model = model.to_str().unwrap();
    let short = ["-p", "4", "-n", "2", "-r", "1", "--no-quality-gate", "--cache", at];
    let rows = json(&[&["bench", model, "-o", "json"][..], &short].concat());
    assert_eq!(rows[0]["packed_cache"]["made"], true);
    let hash = rows[0]["files_sha256"].clone();
    let rows = json(&[&["bench", model, "-o", "json"][..], &short].concat());
    assert!(rows[0]["packed_cache"]["made"] == false && rows[0]["files_sha256"] == hash);
    let (out, _) = ok(&[&["bench", model][..], &short].concat());
    assert!(out.contains("packed cache: ") && out.contains("(hit)") && out.contains(hash.as_str().unwrap()), "{out}");
}

#[test]
fn two_processes_make_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("llama-w4-asym-g64");
    let args = [&["run", model.to_str().unwrap(), "--cache", dir.path().to_str().unwrap()][..], &RUN].concat();
    let plain = ok(&[&["run", model.to_str().unwrap()][..], &RUN].concat()).0;
    let children: Vec<_> = (0..4).map(|_| billfish(&args).stdout(std::process::Stdio::piped()).spawn().unwrap()).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stdout == plain.as_bytes());
    }
    assert!(packed(dir.path()) == 1 && std::fs::read_dir(dir.path()).unwrap().count() == 2, "one file and its record");
    assert!(ok(&args).1.contains("(hit)"));
}

#[test]
fn what_has_no_cache_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    let message = error(&["bench", "--synthetic", "tiny", "--cache", at]);
    assert!(message.contains("--synthetic") && message.contains("--cache") && message.contains("billfish synth"), "{message}");
    let message = error(&["run", "--prompt", "x", "--cache", at]);
    assert!(message.contains("no folder on disk"), "{message}");
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let model = fixture("llama-w8-sym-g32");
    let message = error(&["run", model.to_str().unwrap(), "--prompt", "x", "--cache", file.to_str().unwrap()]);
    assert!(message.contains(file.to_str().unwrap()) && message.contains("packed cache"), "{message}");
}
