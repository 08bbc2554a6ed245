//! What a user sees of a mixture of experts: what `inspect` lists, what `doctor` finds, what a run says.

mod common;

use billfish::{Activations, LoadedModel, OpenOptions};
use billfish_models::{Logits, Scratch};
use common::{Folder, Tensors, doctor, error, fixture, json, mentions, ok};
use serde_json::json;

/// Two experts of one layer in 8 bit, by a rule that names each module, as a quantizer writes it.
fn mixed() -> Folder {
    let f = Folder::of("qwen3moe-w4-sym-g32");
    let mut wide = Tensors::new();
    Folder::of("qwen3moe-w8-sym-g32").tensors(|t| wide = t.clone());
    f.tensors(|t| {
        let odd = |name: &str| ["layers.1.mlp.experts.2.", "layers.1.mlp.experts.5."].iter().any(|e| name.contains(e));
        t.extend(wide.into_iter().filter(|(name, _)| odd(name)));
    });
    f.quantization("dynamic", json!({r"+:model\.layers\.1\.mlp\.experts\.[25]\..*": {"bits": 8}}));
    f
}

#[test]
fn experts_of_other_widths_run_and_are_listed() {
    let f = mixed();
    let (out, _) = ok(&["inspect", f.dir()]);
    for words in [
        "experts       8 of 64 in 2 layers, 2 a token",
        "model.layers.0.mlp.experts  8 of down_proj [64, 128], gate_proj [128, 64], up_proj [128, 64]  4-bit gptq, group 32, sym, plain",
        "but 2, 5: 8-bit gptq, group 32, sym, plain",
    ] {
        assert!(out.contains(words), "{words} in {out}");
    }
    let v = json(&["inspect", f.dir(), "--json"]);
    assert_eq!(v["experts"][0]["differing"], json!([]));
    assert_eq!(v["experts"][1]["differing"], json!([{"scheme": "8-bit gptq, group 32, sym, plain", "experts": [2, 5]}]));
    assert_eq!((&v["config"]["moe"]["experts"], &v["config"]["moe"]["layers"]), (&json!(8), &json!([true, true])));

    let (code, v) = doctor(f.dir(), &[]);
    assert_eq!(code, 2);
    let words = ["model.layers.1.mlp.experts", "2 of 8 experts differ", "2, 5: 8-bit", "vLLM", "GPTQModel"];
    assert!(mentions(&v["findings"], "warning", &words), "{v:#}");
    ok(&["run", f.dir(), "--prompt", "Once", "--max-tokens", "4"]);
}

#[test]
fn layers_that_are_alike_are_one_line() {
    let line = |name: &str, words: &str| {
        let (out, _) = ok(&["inspect", fixture(name).to_str().unwrap()]);
        assert!(out.contains(words), "{words} in {out}");
    };
    line(
        "mixtral-w4-sym-g32-classic",
        "model.layers.*.block_sparse_moe.experts x2  4 of w1 [128, 128], w2 [128, 128], w3 [128, 128]  4-bit",
    );
    line("qwen2moe-stacked-dense", "experts x2  6 of gate_up_proj [64, 96], down_proj [48, 64]  F16 dense, in one tensor");
    for name in ["mixtral-w4-sym-g32", "qwen2moe-stacked-dense", "glm4moe-w4-sym-g32", "qwen3moe-w8-sym-g32"] {
        let (code, v) = doctor(fixture(name).to_str().unwrap(), &[]);
        assert_eq!(code, 0, "{name}: {v:#}");
    }
}

#[test]
fn other_programs_see_one_module_a_layer() {
    let v = json(&["inspect", fixture("qwen3moe-w4-sym-g32").to_str().unwrap(), "--json"]);
    let modules = v["vllm"]["modules"].as_array().unwrap();
    let experts: Vec<_> = modules.iter().filter(|m| m["module"].as_str().unwrap().contains("experts")).collect();
    assert_eq!(experts.iter().map(|m| &m["module"]).collect::<Vec<_>>(), ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]);
    assert_eq!((experts[0]["parts"].as_array().unwrap().len(), &experts[0]["verdict"]), (24, &json!("4 bit, group 32, gptq_marlin")));
    let v = json(&["inspect", mixed().dir(), "--json"]);
    assert_eq!(v["vllm"]["outcome"], "refuses", "{v:#}");
    let (_, v) = doctor(fixture("qwen3moe-w4-sym-g32").to_str().unwrap(), &[]);
    let cpu = v["engines"].as_array().unwrap().iter().find(|e| e["engine"] == "vLLM 0.32, CPU").unwrap();
    assert_eq!(cpu["outcome"], "refuses", "{cpu}");
}

/// Experts of other formats are experts: nothing else knows how they were stored.
#[test]
fn experts_of_every_format_tell_the_same() {
    let dir = fixture("mixtral-w4-sym-g32");
    let run = |dir: &str| ok(&["run", dir, "--prompt", "Once upon", "--max-tokens", "16", "--seed", "3"]).0;
    let want = run(dir.to_str().unwrap());
    let out = tempfile::tempdir().unwrap();
    for format in ["awq", "compressed-tensors", "gptq_v2"] {
        let to = out.path().join(format);
        ok(&["convert", dir.to_str().unwrap(), to.to_str().unwrap(), "--to", format]);
        assert_eq!(run(to.to_str().unwrap()), want, "{format}");
    }
}

/// Each expert with an order of its rows of its own, end to end, against the same weights as floats in the order of their rows.
#[test]
fn experts_in_act_order_are_those_of_the_dense_folder() {
    let out = tempfile::tempdir().unwrap();
    let (quantized, dense) = (out.path().join("quantized"), out.path().join("dense"));
    let paths = [quantized.to_str().unwrap(), dense.to_str().unwrap()];
    for spec in ["tiny-moe:w4g16:act", "tiny-moe:w3g32:asym:act"] {
        ok(&["synth", spec, paths[0]]);
        ok(&["convert", paths[0], paths[1], "--to", "dense"]);
        let [found, want] = [&quantized, &dense].map(|dir| {
            let options = OpenOptions { activations: Activations::Strict, ..OpenOptions::default() };
            let loaded = LoadedModel::open(dir, &options).unwrap();
            let ids: Vec<u32> = (0..60).map(|i| i * 7 % 500).collect();
            let mut scratch = Scratch::default();
            loaded.model.forward(&mut loaded.model.new_cache(60), &ids, Logits::All, &mut scratch).unwrap().to_vec()
        });
        let size = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let off = found.iter().zip(&want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(off <= 2e-5 * size, "{spec}: off by {off:e} of {size}");
        paths.iter().for_each(|p| std::fs::remove_dir_all(p).unwrap());
    }
}

#[test]
fn usage_of_experts() {
    let dir = fixture("glm4moe-w4-sym-g32");
    let run = |args: &[&str]| ok(&[&["run", dir.to_str().unwrap(), "--prompt", "Once", "--max-tokens", "5", "--seed", "1"], args].concat());
    let (out, err) = run(&["--stats"]);
    for words in ["[layer 1: ", "[layer 2: ", "of 8 experts used, busiest"] {
        assert!(err.contains(words), "{words} in {err}");
    }
    assert!(!err.contains("[layer 0"), "the first layer has one MLP: {err}");
    let (plain, err) = run(&[]);
    assert!(plain == out && !err.contains("experts used"), "{err}");
    let v: serde_json::Value = serde_json::from_str(&run(&["--json"]).0).unwrap();
    let prompt = v["prompt_token_ids"].as_array().unwrap().len() as u64;
    let sum = |layer: usize| v["expert_usage"][layer].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>();
    // three experts for every token that ran, in the last layer for those whose logits were asked for; the last one that was
    // chosen did not run
    assert_eq!([sum(0), sum(1), sum(2)], [0, 3 * (prompt + 4), 3 * (1 + 4)]);
    let (_, err) = ok(&["run", "--prompt", "Once", "--max-tokens", "2", "--stats"]);
    assert!(err.contains("[experts: this model has none]"), "{err}");
}

#[test]
fn a_folder_without_an_expert_is_named() {
    let f = Folder::of("mixtral-w4-sym-g32");
    f.tensors(|t| t.retain(|name, _| !name.contains("layers.1.mlp.experts.3.")));
    let message = error(&["run", f.dir(), "--prompt", "Once", "--max-tokens", "2"]);
    assert!(message.contains("model.layers.1.mlp.experts.3.gate_proj"), "{message}");
    let (code, v) = doctor(f.dir(), &[]);
    assert!(code == 2 && mentions(&v["findings"], "error", &["model.layers.1.mlp.experts.3.up_proj"]), "{v:#}");
}
