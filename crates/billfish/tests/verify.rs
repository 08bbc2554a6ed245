//! The commands that look at weights: verify, diff, explain.

mod common;

use common::{Folder, billfish, error, fixture, json, ok, output};
use serde_json::{Value, json};

const UP: &str = "model.layers.0.mlp.up_proj";

fn path(name: &str) -> String {
    fixture(name).to_str().unwrap().to_string()
}

/// A command whose gate fails: exit code 2, a report all the same, and one line that says so.
fn failed(args: &[&str]) -> (String, String) {
    let (code, out, err) = output(billfish(args));
    assert_eq!(code, 2, "{args:?}: {err}");
    assert!(err.contains("failed: ") && err.contains("do not hold the same weights"), "{err}");
    (out, err)
}

/// The folder with its zero points stored as they are.
fn v2() -> Folder {
    let folder = Folder::of("llama-w4-asym-g64");
    let names = json(&["inspect", folder.dir(), "--json", "--tensors"]);
    for tensor in names["tensors"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).filter(|n| n.ends_with(".qzeros")) {
        folder.tensor(tensor, |bytes| bytes.iter_mut().for_each(|b| *b += 0x11));
    }
    folder.quantization("checkpoint_format", json!("gptq_v2")).quantization("format", json!("gptq_v2"));
    folder
}

#[test]
fn equal_weights_in_two_formats() {
    let (a, b) = (path("llama-w4-asym-g64"), v2());
    let (out, err) = ok(&["verify", &a, b.dir()]);
    assert!(out.contains("stored otherwise") && out.contains("\nequal") && out.contains("; 0 weights differ"), "{out}");
    assert_eq!(err, "");
    let v = json(&["verify", &a, b.dir(), "--json"]);
    assert_eq!((&v["equal"], &v["differing"], &v["largest"]), (&json!(true), &json!(0), &Value::Null));
    assert_eq!(v["sha256"][0], v["sha256"][1]);
    assert!(out.contains(v["sha256"][0].as_str().unwrap()));

    let (out, _) = ok(&["diff", &a, b.dir()]);
    assert!(out.ends_with("verdict: the same weights in another format\n"), "{out}");
    assert!(out.contains("`checkpoint_format`: \"gptq\" and \"gptq_v2\"") && out.contains(&format!("{UP}.qzeros")), "{out}");
    let v = json(&["diff", &a, b.dir(), "--json"]);
    assert_eq!((&v["verdict"], &v["weights"]["equal"]), (&json!("same_weights"), &json!(true)));
    assert_eq!(json(&["diff", &a, &a, "--json"])["verdict"], "same");
}

#[test]
fn one_weight_that_differs() {
    let b = Folder::of("llama-w4-sym-g128");
    let a = path("llama-w4-sym-g128");
    b.tensor(&format!("{UP}.qweight"), |bytes| bytes[4 * 7] ^= 1);
    let (out, _) = failed(&["verify", &a, b.dir()]);
    assert!(out.contains("largest difference") && out.contains(&format!("at {UP}[0, 7]: ")) && out.ends_with("not equal\n"), "{out}");
    let (out, _) = failed(&["verify", &a, b.dir(), "--json"]);
    let v: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&v["equal"], &v["differing"]), (&json!(false), &json!(1)));
    assert_eq!((&v["largest"]["name"], &v["largest"]["index"]), (&json!(UP), &json!([0, 7])));
    assert_ne!(v["sha256"][0], v["sha256"][1]);

    let (out, _) = ok(&["diff", &a, b.dir()]);
    assert!(out.contains("codes differ, the first at [0, 7]") && out.ends_with("verdict: different weights\n"), "{out}");
    let v = json(&["diff", &a, b.dir(), "--json"]);
    assert_eq!((&v["modules"][0]["module"], &v["modules"][0]["parts"][0]["part"]), (&json!(UP), &json!("codes")));
    assert_eq!(v["tensors"][0]["differing_bytes"], 1);

    // the values that the certificate names are those that explain gives
    let values = [&a, b.dir()].map(|dir| json(&["explain", dir, &format!("{UP}[0, 7]"), "--json"])["value"].as_f64().unwrap().to_string());
    assert_eq!(json!(values), serde_json::from_str::<Value>(&failed(&["verify", &a, b.dir(), "--json"]).0).unwrap()["largest"]["values"]);
}

#[test]
fn explain_shows_words_and_numbers() {
    let act = path("llama-w4-sym-g32-act");
    let (out, _) = ok(&["explain", &act, &format!("{UP}[17, 4]")]);
    for part in
        ["code", "qweight[2, 4] = 0x", "bits 4..8", "g_idx holds", "zero     8, stored as 7", "v1", "data decides", "F16", "value    ("]
    {
        assert!(out.contains(part), "no `{part}` in {out}");
    }
    let v = json(&["explain", &act, &format!("{UP}[17, 4]"), "--json"]);
    let (code, zero, scale) = (v["code"].as_f64().unwrap(), v["zero"].as_f64().unwrap(), v["scale"].as_f64().unwrap());
    assert_eq!(v["value"].as_f64(), Some((code - zero) * scale));
    assert_eq!((&v["code_bits"][0]["bit_offset"], &v["scale_dtype"]), (&json!(4), &json!("F16")));
    let (out, _) = ok(&["explain", &act, "model.norm.weight[3]"]);
    assert!(out.contains("model.norm.weight[3] of [128]") && out.contains("bits     0x") && out.contains("value"), "{out}");
    assert_eq!(json(&["explain", &act, "model.embed_tokens[1, 2]", "--json"])["index"], json!([2, 1]));
}

#[test]
fn errors_are_not_failed_gates() {
    let a = path("llama-w4-sym-g128");
    for (args, parts) in [
        (vec!["verify", &a], ["required", "<B>"]),
        (vec!["verify", &a, "nowhere"], ["nowhere", "expected"]),
        (vec!["explain", &a, UP], ["module[row, col]", "quotes"]),
        (vec!["explain", &a, "model.layers.0.mlp.up_proj[9999, 0]"], ["found [9999, 0]", "below"]),
        (vec!["explain", &a, "gate[0, 0]"], ["none of that name", "inspect --tensors"]),
    ] {
        let message = error(&args);
        assert!(parts.iter().all(|p| message.contains(p)), "{message}");
    }
}
