//! `quantize` and the measurements that judge it, as users run them.

mod common;

use common::{Folder, billfish, error, fixture, json, ok, output};
use serde_json::json;

/// The built-in model as 32-bit floats.
fn dense(dir: &tempfile::TempDir) -> String {
    let (from, to) = (Folder::builtin(), dir.path().join("dense"));
    let to = to.to_str().unwrap();
    ok(&["convert", from.dir(), to, "--to", "dense"]);
    to.into()
}

#[test]
fn a_quantized_folder_is_close_to_what_it_was_made_from() {
    let dir = tempfile::tempdir().unwrap();
    let base = dense(&dir);
    let text = fixture("text/valid-20k.txt");
    let text = text.to_str().unwrap();
    let out = dir.path().join("out");
    let out = out.to_str().unwrap();
    let quantize = ["quantize", &base, out, "--bits", "3", "--calibration", text, "--samples", "4", "--seqlen", "64", "--json"];
    let report = json(&quantize);
    let modules = report["modules"].as_array().unwrap();
    assert_eq!(modules.len(), 42);
    assert!(modules.iter().all(|m| m["rows"] == 4 * 64 && m["bits"] == 3 && m["fallback"].is_null()), "{report}");
    let stored: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.path().join("out/quant_report.json")).unwrap()).unwrap();
    assert_eq!(stored["modules"], report["modules"]);
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.path().join("out/quantize_config.json")).unwrap()).unwrap();
    assert_eq!(
        (&config["bits"], &config["group_size"], &config["sym"], &config["checkpoint_format"]),
        (&json!(3), &json!(128), &json!(true), &json!("gptq"))
    );

    let kld = |extra: &[&str]| {
        let args = ["eval", "kld", out, "--base", &base, "--text", text, "--protocol", "window:64", "--limit-tokens", "192", "--json"];
        output(billfish(&[&args[..], extra].concat()))
    };
    let (code, found, _) = kld(&[]);
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    assert_eq!((code, &found["tokens"]), (0, &json!(3 * 63)));
    let number = |key: &str| found[key].as_f64().unwrap_or_else(|| panic!("{key}: {found}"));
    assert!(number("kld_mean") > 1e-3 && number("kld_mean") < 0.5 && number("kld_p99") <= number("kld_max"), "{found}");
    assert!(number("top1") > 0.6 && number("ppl") > 5.0 && number("ppl_base") > 5.0);
    // gates
    let (code, _, err) = kld(&["--max-kld", "0.0001"]);
    assert!(code == 2 && err.contains("mean KLD"), "{code} {err}");
    let (code, _, err) = kld(&["--max-ppl", "2"]);
    assert!(code == 2 && err.contains("perplexity"), "{code} {err}");
    assert_eq!(kld(&["--max-ppl", "1e6", "--max-kld", "10"]).0, 0);

    // a model and itself do not differ
    let same = json(&["eval", "compare", &base, &base, "--text", text, "--protocol", "window:64", "--limit-tokens", "128", "--json"]);
    assert_eq!((&same["kld_mean"], &same["top1"], &same["ppl"]), (&json!(0.0), &json!(1.0), &same["ppl_base"]));

    // nothing is written over, nothing is quantized twice
    assert!(error(&quantize).contains("files in it"));
    assert!(error(&["quantize", out, &format!("{out}2"), "--calibration", text]).contains("quantized already"));
    assert!(error(&["quantize", &base, &format!("{out}3")]).contains("no calibration text"));
    assert!(error(&["quantize", &base, &format!("{out}3"), "--group-size", "0", "--calibration", text]).contains("--group-size"));
}

#[test]
fn awq_writes_awq() {
    let dir = tempfile::tempdir().unwrap();
    let base = dense(&dir);
    let text = fixture("text/valid-20k.txt");
    let out = dir.path().join("out");
    let common = ["--calibration", text.to_str().unwrap(), "--samples", "2", "--seqlen", "64", "--search", "minmax", "--json"];
    let report = json(&[&["quantize", &base, out.to_str().unwrap(), "--method", "awq"], &common[..]].concat());
    assert_eq!((&report["method"], &report["format"]), (&json!("awq"), &json!("awq")));
    let modules = report["modules"].as_array().unwrap();
    assert!(modules.iter().all(|m| m["sym"] == false && m["scaling"]["left_out"].is_null()), "{report}");
    let value = |m: &serde_json::Value| m["module"].as_str().unwrap().ends_with("o_proj");
    let makers: Vec<&str> = modules.iter().filter(|m| value(m)).map(|m| m["scaling"]["maker"].as_str().unwrap()).collect();
    assert!(makers.len() == 6 && makers.iter().all(|m| m.ends_with("v_proj")), "{makers:?}");
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    let config = &config["quantization_config"];
    assert_eq!((&config["quant_method"], &config["zero_point"], &config["version"]), (&json!("awq"), &json!(true), &json!("gemm")));
}

#[test]
fn questions_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("questions.jsonl");
    let lines = [
        json!({"context": "Once upon a", "choices": [" time", " xylophone"], "answer": 0}),
        json!({"context": "Once upon a", "choices": [" xylophone", " time"], "answer": " xylophone"}),
    ];
    std::fs::write(&path, lines.map(|l| l.to_string()).join("\n")).unwrap();
    let path = path.to_str().unwrap();
    let found = json(&["eval", "choice", "--questions", path, "--json"]);
    assert_eq!((&found["questions"], &found["acc"]), (&json!(2), &json!(0.5)));
    for (line, word) in [
        ("{}", "context"),
        (r#"{"context": "a", "choices": ["b"], "answer": 0}"#, "choices"),
        (r#"{"context": "a", "choices": ["b", "c"], "answer": 2}"#, "answer"),
        ("nonsense", "line 1"),
        ("", "found none"),
    ] {
        std::fs::write(path, line).unwrap();
        let message = error(&["eval", "choice", "--questions", path]);
        assert!(message.contains(word), "{message}");
    }
}
