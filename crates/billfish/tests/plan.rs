//! `plan` as users run it, and that what it foretells comes true.

mod common;

use billfish::{LoadedModel, OpenOptions};
use common::{Folder, error, fixture, json, ok};
use serde_json::{Value, json};

/// The built-in model as 32-bit floats.
fn dense(dir: &tempfile::TempDir) -> String {
    let (from, to) = (Folder::builtin(), dir.path().join("dense"));
    let to = to.to_str().unwrap();
    ok(&["convert", from.dir(), to, "--to", "dense"]);
    to.into()
}

fn path(dir: &tempfile::TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().into()
}

/// Bytes of the files that hold weights.
fn file_bytes(dir: &str) -> u64 {
    let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    files.filter(|e| e.file_name().to_str().unwrap().contains(".safetensors")).map(|e| e.metadata().unwrap().len()).sum()
}

#[test]
fn a_plan_comes_true() {
    let dir = tempfile::tempdir().unwrap();
    let base = dense(&dir);
    let text = fixture("text/valid-20k.txt");
    let text = text.to_str().unwrap();
    let (rules, out) = (path(&dir, "rules.json"), path(&dir, "out"));
    let measure = ["plan", &base, "--calibration", text, "--samples", "1", "--seqlen", "64", "--bits", "2,4", "--group-sizes", "128"];
    let found = json(&[&measure[..], &["--bits-per-weight", "3.2", "--method", "rtn", "-o", &rules, "--json"]].concat());
    assert!(found["bits_per_weight"].as_f64().unwrap() <= 3.2 && found["bits_per_weight"].as_f64().unwrap() > 3.1, "{found}");
    assert!(found["kld"].as_f64().unwrap() > 0.0 && found["tokens_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(found["modules"].as_array().unwrap().len(), 4 * 6);
    let stored: Value = serde_json::from_slice(&std::fs::read(&rules).unwrap()).unwrap();
    assert_eq!(stored, found["rules"]);

    ok(&["quantize", &base, &out, "--method", "rtn", "--search", "minmax", "--dynamic", &rules]);
    assert_eq!(json!(file_bytes(&out)), found["bytes"]);
    let model = LoadedModel::open(out.as_ref(), &OpenOptions::default()).unwrap();
    let packed: usize = model.model.modules().iter().map(|m| m.bytes).sum();
    assert_eq!(json!(packed), found["memory"]["weights"]);
    assert_eq!(json!(model.model.kv_bytes_per_token()), found["memory"]["kv_per_token"]);
    assert_eq!(found["memory"]["weights"], found["bytes_per_token"], "the head is the embedding, and nothing is routed");
    // the page beside the report
    let page = std::fs::read_to_string(format!("{out}/quant_report.html")).unwrap();
    assert!(page.contains("model.layers.5.mlp.down_proj") && page.contains("Outlier channels"));

    // a size that is too small
    let message = error(&[&measure[..], &["--max-size", "1MB", "--method", "rtn"]].concat());
    assert!(message.contains("max-size") && message.contains("at least"), "{message}");

    // options that cannot be
    assert!(error(&["plan", &base]).contains("--max-size"));
    assert!(error(&["plan", &base, "--max-size", "1GB"]).contains("--calibration"));
    assert!(error(&["plan", &base, "--preset", "dense", "--bits", "4"]).contains("cannot be used with"));
    assert!(error(&["plan", &base, "--preset", "dense", "--format", "awq"]).contains("one group size"));
    assert!(error(&["plan", &base, "--bits-per-weight", "3", "--group-sizes", "0", "--calibration", text]).contains("--group-sizes"));
    assert!(error(&[&measure[..], &["--bits-per-weight", "NaN"]].concat()).contains("bits-per-weight"));
}

#[test]
fn a_preset_goes_by_classes_and_says_what_it_does_not_know() {
    let dir = tempfile::tempdir().unwrap();
    let base = dense(&dir);
    let found = json(&["plan", &base, "--preset", "size", "--json"]);
    let of = |name: &str| {
        let m = found["modules"].as_array().unwrap().iter().find(|m| m["module"] == name).unwrap_or_else(|| panic!("{name}: {found}"));
        (m["class"].clone(), m["bits"].clone(), m["group_size"].clone())
    };
    assert_eq!(of("model.layers.3.self_attn.v_proj"), (json!("attention in"), json!(4), json!(128)));
    assert_eq!(of("model.layers.0.mlp.down_proj"), (json!("mlp down"), json!(3), json!(128)));
    let (_, warnings) = ok(&["plan", &base, "--preset", "quality"]);
    assert!(!warnings.contains("class"), "{warnings}");
    // a weight that no class is known of
    let odd = Folder::builtin();
    odd.tensors(|t| drop(t.insert("model.layers.0.normal_mystery.weight".into(), ("F32".into(), vec![4, 4], vec![0; 64]))));
    let (_, warnings) = ok(&["plan", odd.dir(), "--preset", "dense"]);
    assert!(warnings.contains("model.layers.0.normal_mystery") && warnings.contains("no known class"), "{warnings}");
}
