//! `doctor` finds what is wrong, says what follows and what to do, and leaves with exit code 2.

mod common;

use common::{Folder, billfish, fixture, output};
use serde_json::{Value, json};

/// Exit code and findings.
fn examine(dir: &str) -> (i32, Vec<Value>) {
    let (code, out, err) = output(billfish(&["doctor", dir, "--json"]));
    let v: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out} {err}"));
    assert_eq!(v["sound"].as_bool(), Some(code == 0), "{v}");
    (code, v["findings"].as_array().unwrap().clone())
}

/// The one finding that mentions all of `words`; the folder is unsound.
fn finds(f: &Folder, severity: &str, words: &[&str]) {
    let (code, findings) = examine(f.dir());
    assert_eq!(code, 2);
    let found = findings.iter().any(|v| {
        let text = v.to_string();
        v["severity"] == severity
            && words.iter().all(|w| text.contains(w))
            && ["consequence", "remedy"].iter().all(|k| !v[k].as_str().unwrap().is_empty())
    });
    assert!(found, "{severity} {words:?} in {findings:#?}");
}

#[test]
fn sound_folders_are_sound() {
    for name in [
        "llama-w4-sym-g128",
        "llama-w4-sym-g32-act",
        "llama-w2-asym-g32-v2",
        "qwen2-w4-sym-g32",
        "glm4-w4-sym-g32",
        "llama-w5-sym-g32-planar",
    ] {
        let (code, findings) = examine(fixture(name).to_str().unwrap());
        assert_eq!(code, 0, "{name}: {findings:#?}");
    }
    let (code, out, _) = output(billfish(&["doctor", fixture("llama-w4-sym-g128").to_str().unwrap()]));
    assert!(code == 0 && out.contains("nothing is wrong"), "{out}");
}

const MODULE: &str = "model.layers.1.mlp.up_proj";

#[test]
fn damage_in_tensors() {
    let f = Folder::of("llama-w4-sym-g32-act");
    f.tensor(&format!("{MODULE}.scales"), |b| b[..4].fill(0));
    finds(&f, "warning", &[MODULE, "2 of 1024 scales are 0"]);
    let f = Folder::of("llama-w4-sym-g32-act");
    f.tensor(&format!("{MODULE}.scales"), |b| b[..2].copy_from_slice(&3u16.to_le_bytes()));
    finds(&f, "warning", &[MODULE, "1 of 1024 scales are denormal"]);
    let f = Folder::of("llama-w4-sym-g32-act");
    f.tensor(&format!("{MODULE}.scales"), |b| b[..2].copy_from_slice(&0x7c00u16.to_le_bytes()));
    finds(&f, "error", &[MODULE, "inf"]);
    let f = Folder::of("llama-w4-sym-g32-act");
    f.tensor(&format!("{MODULE}.g_idx"), |b| b[..4].copy_from_slice(&77i32.to_le_bytes()));
    finds(&f, "error", &[MODULE, "77"]);
    // a legal but unequal partition, and another order than gate_proj has
    let f = Folder::of("llama-w4-sym-g32-act");
    f.tensor(&format!("{MODULE}.g_idx"), |b| b[..12].fill(0));
    finds(&f, "warning", &[MODULE, "another number of rows"]);
    finds(&f, "warning", &["model.layers.1.mlp.{gate_proj,up_proj}", "`g_idx` differ"]);
}

#[test]
fn zero_points_that_are_labelled_wrong() {
    let f = Folder::of("llama-w4-sym-g32-v2");
    f.quantization("checkpoint_format", json!("gptq"));
    f.quantization("format", json!("gptq"));
    finds(&f, "warning", &["stored as they are (v2)", "gptq (v1)"]);
    for (name, label) in [("llama-w2-asym-g32-v2", "gptq"), ("llama-w3-asym-g32", "gptq_v2"), ("llama-w4-asym-g32-v2", "gptq")] {
        let f = Folder::of(name);
        let run = |zeros: &str| {
            common::json(&["run", f.dir(), "--prompt", "Once", "--max-tokens", "6", "--temperature", "0", "--json", "--zeros", zeros])["token_ids"].clone()
        };
        let (right, wrong) = if label == "gptq" { ("v2", "v1") } else { ("v1", "v2") };
        let want = run("auto");
        f.quantization("checkpoint_format", json!(label));
        f.quantization("format", json!(label));
        finds(&f, "warning", &["the weights are centred only as"]);
        assert!(run("auto") == want && run(right) == want && run(wrong) != want, "{name}");
        let (code, out, _) = output(billfish(&["doctor", f.dir(), "--zeros", wrong]));
        assert!(code == 2 && out.contains("as the caller says, but the stored numbers show the other reading"), "{out}");
    }
}

#[test]
fn configs_that_disagree() {
    let f = Folder::of("llama-dynamic");
    f.quantization("dynamic", json!({r"+:.*\.down_proj": {"bits": 8, "group_size": 32}, r"+:.*\.1\.mlp\.(gate|up)_proj": {"bits": 2, "group_size": 32}, "+:nothing": {}}));
    finds(&f, "warning", &["+:nothing"]);
    finds(&f, "warning", &["is dense though", "model.layers.0.self_attn.o_proj"]);
    let f = Folder::of("llama-w4-sym-g128");
    f.json("quantize_config.json", |q| drop(q.insert("desc_act".into(), json!(true))));
    finds(&f, "warning", &["desc_act"]);
    let f = Folder::of("llama-w4-sym-g128");
    f.json("config.json", |c| drop(c.insert("model_type".into(), json!("mamba9"))));
    finds(&f, "error", &["mamba9"]);
    let f = Folder::of("llama-w4-sym-g128");
    f.json("config.json", |c| drop(c.insert("tie_word_embeddings".into(), json!(true))));
    finds(&f, "error", &["lm_head", "differs from the embedding"]);
}

#[test]
fn fused_modules_that_are_not_alike() {
    // give k_proj of layer 0 the width of another folder's: a rule covers part of q, k and v
    let f = Folder::of("llama-dynamic");
    let (code, findings) = examine(f.dir());
    assert_eq!(code, 0, "rules that cover whole groups are fine: {findings:#?}");
    f.header(|h| {
        for part in ["qweight", "qzeros", "scales", "g_idx"] {
            let info = h.remove(&format!("model.layers.0.mlp.up_proj.{part}")).unwrap();
            h.insert(format!("model.layers.0.mlp.other_proj.{part}"), info);
        }
    });
    finds(&f, "warning", &["model.layers.0.mlp.{gate_proj,up_proj}", "some are not"]);
    finds(&f, "error", &["model.layers.0.mlp.up_proj", "none of its tensors"]);
}

#[test]
fn texts_that_do_not_fit() {
    let f = Folder::of("llama-w4-sym-g128");
    std::fs::remove_file(f.path("tokenizer.json")).unwrap();
    finds(&f, "error", &["tokenizer.json", "no such file"]);
    let f = Folder::of("llama-w4-sym-g128");
    f.json("generation_config.json", |g| drop(g.insert("eos_token_id".into(), json!([0, 5000]))));
    finds(&f, "error", &["5000"]);
    let f = Folder::of("llama-w4-sym-g128");
    std::fs::remove_file(f.path("chat_template.jinja")).unwrap();
    let (code, findings) = examine(f.dir());
    assert!(code == 0 && findings.iter().any(|v| v["severity"] == "note" && v["subject"] == "chat template"), "{findings:#?}");
}

#[test]
fn a_folder_that_cannot_be_opened_is_a_finding_and_no_folder_an_error() {
    let f = Folder::of("llama-w4-sym-g128");
    let bytes = f.bytes("model.safetensors");
    f.write("model.safetensors", &bytes[..bytes.len() / 2]);
    finds(&f, "error", &["model.safetensors"]);
    assert!(common::error(&["doctor", "no/such/folder"]).contains("no/such/folder"));
}

/// Against the measured table of the README.
#[test]
fn what_other_programs_would_do() {
    let outcomes = |name: &str| {
        let (_, out, _) = output(billfish(&["doctor", fixture(name).to_str().unwrap(), "--json"]));
        let v: Value = serde_json::from_str(&out).unwrap();
        let list = v["engines"].as_array().unwrap().clone();
        move |engine: &str| {
            list.iter().find(|e| e["engine"].as_str().unwrap().starts_with(engine)).map(|e| e["outcome"].as_str().unwrap().to_string())
        }
    };
    let (runs, refuses, wrong) = (Some("runs".to_string()), Some("refuses".to_string()), Some("wrong".to_string()));
    for (name, vllm_cpu) in [
        ("llama-w4-sym-g128", &runs),
        ("llama-w4-asym-g64", &refuses),
        ("llama-w4-sym-g32-act", &refuses),
        ("llama-w8-sym-g32", &refuses),
        ("llama-w3-sym-g128", &refuses),
        ("llama-w5-sym-g32-planar", &refuses),
        ("llama-dynamic", &refuses),
        ("llama-awq-asym-g32", &runs),
        ("llama-ct-w4a16-g32", &runs),
        ("llama-ct-w8a16-channel", &refuses),
    ] {
        let found = outcomes(name);
        assert_eq!(found("vLLM 0.32"), *vllm_cpu, "{name}");
        assert_eq!(found("llama.cpp"), refuses, "{name}");
        assert_eq!(found("mistral.rs"), refuses, "{name}");
    }
    assert_eq!(outcomes("llama-w4-sym-g128")("vLLM 0.14.1"), runs);
    assert_eq!(outcomes("llama-w2-asym-g32-v2")("ONNX"), wrong);
    assert_eq!(outcomes("llama-w3-sym-g128")("GPTQModel"), runs);
}
