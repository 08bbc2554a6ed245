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

/// Rows of token ids, and the same with padding before them.
fn rows(dir: &tempfile::TempDir) -> [String; 2] {
    let rows: Vec<Vec<u32>> = (0..6u32).map(|s| (0..20 + 5 * s).map(|i| (i * i * 31 + s * 77 + i * 5) % 256).collect()).collect();
    let padded = |row: &Vec<u32>| {
        let (ids, mask) = ([&[0, 0, 0][..], row].concat(), [vec![0; 3], vec![1; row.len()]].concat());
        json!({"input_ids": ids, "attention_mask": mask})
    };
    let texts = [rows.iter().map(|row| json!({"tokens": row})).collect::<Vec<_>>(), rows.iter().map(padded).collect()];
    ["plain.jsonl", "padded.jsonl"]
        .map(|n| dir.path().join(n).to_str().unwrap().to_string())
        .into_iter()
        .zip(texts)
        .map(|(path, rows)| {
            std::fs::write(&path, rows.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")).unwrap();
            path
        })
        .collect::<Vec<_>>()
        .try_into()
        .unwrap()
}

#[test]
fn statistics_padding_and_what_it_would_take() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (base, [plain, padded]) = (at("base"), rows(&dir));
    ok(&["synth", "tiny", &base, "--dense"]);
    let with = |out: &str, extra: &[&str]| {
        let (out, extra) = (at(out), extra.iter().map(|e| e.to_string()));
        let args = ["quantize", &base, &out, "--group-size", "32", "--json"].map(String::from);
        args.into_iter().chain(extra).collect::<Vec<String>>()
    };
    let run = |out: &str, extra: &[&str]| json(&with(out, extra).iter().map(String::as_str).collect::<Vec<_>>());
    let refused = |out: &str, extra: &[&str]| error(&with(out, extra).iter().map(String::as_str).collect::<Vec<_>>());
    let weights = |out: &str| std::fs::read(dir.path().join(out).join("model.safetensors")).unwrap();

    let stats = at("stats");
    let dry = run("first", &["--calibration", &plain, "--save-stats", &stats, "--dry-run"]);
    assert!(!dir.path().join("first").exists() && !dir.path().join("stats").exists());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "the model and two texts");
    let first = run("first", &["--calibration", &plain, "--save-stats", &stats]);
    assert_eq!((&dry["bytes"], &dry["file_bytes"]), (&first["bytes"], &json!(weights("first").len())));
    assert!(dry["estimated_memory"].as_u64().unwrap() > 100_000 && dry["estimated_seconds"].as_f64().unwrap() > 0.0, "{dry}");
    let kept: u64 = std::fs::read_dir(&stats)
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.path().extension().is_some_and(|e| e == "safetensors"))
        .map(|e| e.metadata().unwrap().len())
        .sum();
    let said = dry["statistics_bytes"].as_u64().unwrap();
    assert!(said <= kept && kept < said + said / 4, "{said} {kept}");
    let calibration = json!({"sequences": 6, "of": 6, "tokens": 195, "dropped_rows": 0, "seed": null});
    assert_eq!((&first["calibration"], &first["statistics"], &first["requantized_modules"]), (&calibration, &json!(null), &json!(0)));

    let again = run("again", &["--stats", &stats]);
    assert!(weights("again") == weights("first"), "the same bytes without a text");
    assert_eq!((&again["modules"], &again["calibration"], &again["seconds"]["forward"]), (&first["modules"], &json!(null), &json!(0.0)));
    let masked = run("masked", &["--calibration", &padded]);
    assert!(weights("masked") == weights("first") && masked["modules"] == first["modules"], "what is masked leaves no trace");
    let fewer = run("fewer", &["--calibration", &plain, "--samples", "3", "--seed", "1"]);
    assert_eq!((&fewer["calibration"]["sequences"], &fewer["calibration"]["seed"]), (&json!(3), &json!(1)));
    assert!(weights("fewer") != weights("first"));

    assert!(refused("no", &["--stats", &stats, "--bits", "3"]).contains("`bits` 3, found `bits` 4"));
    assert!(refused("no", &["--calibration", &plain, "--save-stats", &stats]).contains("files in it"));
    assert!(refused("no", &["--stats", &stats, "--samples", "3"]).contains("--samples"));
    assert!(refused("no", &["--method", "rtn", "--samples", "3"]).contains("--calibration"));
    assert!(refused("no", &["--method", "rtn", "--sequential", "dense"]).contains("sequential"));
    assert!(refused("no", &["--calibration", &plain, "--seqlen", "1"]).contains("expected 2 or more"));
    assert!(refused("no", &["--calibration", &plain, "--dry-run", "--format", "awq", "--bits", "3"]).contains("awq"));
    assert!(refused("no", &["--calibration", &plain, "--requantize"]).contains("nothing that is quantized"));

    let (narrow, requantized) = (at("first"), at("requantized"));
    let (out, _) = ok(&["quantize", &narrow, &requantized, "--requantize", "--bits", "3", "--group-size", "32", "--calibration", &plain]);
    let modules = first["modules"].as_array().unwrap().len();
    assert!(out.contains(&format!("{modules} modules were quantized before")), "{out}");
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("requantized/quantize_config.json")).unwrap()).unwrap();
    assert_eq!(config["bits"], 3);
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

/// Options that a method has no use for are no options of it.
#[test]
fn options_of_other_methods_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let base = dense(&dir);
    let (out, text) = (dir.path().join("out"), fixture("text/valid-20k.txt"));
    let common = ["quantize", &base, out.to_str().unwrap(), "--calibration", text.to_str().unwrap(), "--samples", "2", "--seqlen", "64"];
    for method in ["rtn", "awq"] {
        for given in [["--damp", "0.01"], ["--sweeps", "2"], ["--order", "gar"], ["--order", "static"], ["--order", "none"]] {
            let message = error(&[&common[..], &["--method", method], &given[..]].concat());
            assert!(message.contains(given[0]) && message.contains(method) && message.contains("awq+gptq"), "{message}");
        }
    }
    // these two ask for groups that an AWQ file has no place for, and for sums that factors are more than
    let message = error(&[&common[..], &["--method", "awq", "--format", "awq", "--order", "desc"]].concat());
    assert!(message.contains("awq") && message.contains("order"), "{message}");
    let stats = dir.path().join("stats");
    let message = error(&[&common[..], &["--method", "awq+gptq", "--save-stats", stats.to_str().unwrap()]].concat());
    assert!(message.contains("statistics") && message.contains("awq+gptq"), "{message}");
    assert!(!stats.exists() && !out.exists());
    // and a folder whose scales moved has no errors that could be measured again
    json(&[&common[..], &["--method", "awq", "--search", "minmax", "--json"]].concat());
    let message = error(&["eval", "errors", out.to_str().unwrap(), "--base", &base]);
    assert!(message.contains("AWQ") && message.contains("kld"), "{message}");
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
