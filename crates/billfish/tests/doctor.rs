//! `doctor` finds what is wrong, says what follows and what to do, and leaves with exit code 2.

mod common;

use common::{Folder, billfish, fixture, mentions, output};
use serde_json::{Value, json};

/// Exit code and findings.
fn examine(dir: &str) -> (i32, Vec<Value>) {
    let (code, v) = common::doctor(dir, &[]);
    assert_eq!(v["sound"].as_bool(), Some(code == 0), "{v}");
    (code, v["findings"].as_array().unwrap().clone())
}

/// A finding mentions all of `words`; the folder is unsound unless it is a note.
fn finds(f: &Folder, severity: &str, words: &[&str]) {
    let (code, findings) = examine(f.dir());
    assert!(code == 2 || severity == "note");
    assert!(mentions(&findings.clone().into(), severity, words), "{severity} {words:?} in {findings:#?}");
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
    let f = Folder::of("llama-w4-sym-g32-act");
    f.tensor(&format!("{MODULE}.scales"), |b| b[..2].copy_from_slice(&0x7e00u16.to_le_bytes()));
    finds(&f, "error", &[MODULE, "NaN"]);
    // a group without rows: no partition into the groups that have scales
    let f = Folder::of("llama-w4-sym-g32-act");
    let merge = |b: &mut [u8]| b.as_chunks_mut::<4>().0.iter_mut().filter(|g| g[0] == 3).for_each(|g| g[0] = 2);
    f.tensor(&format!("{MODULE}.g_idx"), merge);
    finds(&f, "warning", &[MODULE, "gives no row to 1 of 4 groups"]);
    // a legal but unequal partition, and another order than gate_proj has
    let f = Folder::of("llama-w4-sym-g32-act");
    f.tensor(&format!("{MODULE}.g_idx"), |b| b[..12].fill(0));
    finds(&f, "warning", &[MODULE, "another number of rows"]);
    finds(&f, "warning", &["model.layers.1.mlp.{gate_proj,up_proj}", "`g_idx` differ"]);
}

/// A scale that a half cannot hold, in a layout that stores its scales as bf16.
#[test]
fn scales_that_are_no_halves() {
    let f = Folder::of("llama-ct-w4a16-g32");
    let bf16 = |v: f32| ((v.to_bits() >> 16) as u16).to_le_bytes();
    f.tensors(|t| {
        for (name, (dtype, _, bytes)) in t.iter_mut().filter(|(name, _)| name.ends_with("up_proj.weight_scale")) {
            assert!(dtype == "BF16" || dtype == "F32", "{name}: {dtype}");
            if dtype == "F32" {
                bytes[..4].copy_from_slice(&1e9f32.to_le_bytes());
                bytes[4..8].copy_from_slice(&1e-40f32.to_le_bytes());
            } else {
                bytes[..2].copy_from_slice(&bf16(1e9));
                bytes[2..4].copy_from_slice(&1u16.to_le_bytes());
            }
        }
    });
    finds(&f, "note", &[MODULE, "1 of 1024 scales are no normal halves"]);
    finds(&f, "warning", &[MODULE, "1 of 1024 scales are denormal numbers"]);
}

/// Shapes that contradict the config: the tensors are believed, and what they show is said.
#[test]
fn shapes_that_the_config_does_not_give() {
    let f = Folder::of("llama-w4-sym-g32-act");
    f.quantization("group_size", json!(64));
    finds(&f, "error", &[MODULE, "group_size 64", "4 groups over 128 rows, which is group_size 32"]);
    let f = Folder::of("llama-w4-sym-g128");
    f.quantization("bits", json!(8));
    finds(&f, "error", &[MODULE, "the config says 8 bit", "the tensors hold 4 bit"]);
    // 128 rows have 64 or 128 groups, or none between: ceil(128 / 2) = 64
    let f = Folder::of("llama-w4-sym-g32-act");
    f.tensors(|t| {
        for part in ["scales", "qzeros"] {
            let (_, shape, bytes) = t.get_mut(&format!("{MODULE}.{part}")).unwrap();
            *bytes = bytes.iter().cycle().take(bytes.len() * 25).copied().collect();
            shape[0] *= 25;
        }
    });
    finds(&f, "warning", &[MODULE, "100 groups over 128 rows, which no group size gives"]);
}

/// The stored fields of a word are those of `true zeros - 1` on the whole word.
fn minus_ones(word: &mut [u8; 4], change: impl FnOnce(u32) -> u32) {
    let ones = 0x1111_1111;
    *word = change(u32::from_le_bytes(*word).wrapping_add(ones)).wrapping_sub(ones).to_le_bytes();
}

#[test]
fn zero_points_that_wrapped() {
    let zeros = format!("{MODULE}.qzeros");
    let first = |b: &mut [u8], change: &dyn Fn(u32) -> u32| minus_ones(&mut b.as_chunks_mut::<4>().0[0], change);
    // a true zero of 0 in the lowest field borrows from its neighbour: known writer, so it is undone
    let f = Folder::of("llama-w4-asym-g64");
    f.tensor(&zeros, |b| first(b, &|w| w & !0xf));
    finds(&f, "warning", &[MODULE, "1 of 512 zero points cannot be stored less one", "borrowed from their neighbours", "gptq_v2"]);
    // an unknown writer whose overflow spread over the fields above: lost
    let f = Folder::of("llama-w4-asym-g64");
    f.quantization("meta", json!({}));
    f.tensor(&zeros, |b| b[..4].fill(0xff));
    finds(&f, "error", &[MODULE, "overwrote 7 of all 512", "cannot be recovered", "--zeros v1"]);
    // 3 bit wraps modulo 8
    let f = Folder::of("llama-w3-asym-g32");
    f.tensor(&zeros, |b| b[0] |= 7);
    finds(&f, "warning", &[MODULE, "zero points of 0", "wrapped to 7"]);
}

/// One module of a v2 folder stores its zero points less one.
#[test]
fn mixed_dialects() {
    let f = Folder::of("llama-w4-asym-g32-v2");
    f.tensor(&format!("{MODULE}.qzeros"), |b| {
        for word in b.as_chunks_mut::<4>().0 {
            let z = u32::from_le_bytes(*word);
            assert!((0..8).all(|i| z >> (4 * i) & 15 > 0), "a zero of 0 would need another recipe");
            *word = (z - 0x1111_1111).to_le_bytes();
        }
    });
    finds(&f, "warning", &[MODULE, "labelled v2, but the weights are centred only as v1"]);
    assert!(!mentions(&examine(f.dir()).1.into(), "warning", &["model.layers.0.mlp.up_proj", "centred"]));
    let (_, v) = common::doctor(f.dir(), &[]);
    let vllm = &v["engines"][0];
    let gptqmodel = v["engines"].as_array().unwrap().iter().find(|e| e["engine"].as_str().unwrap().starts_with("GPTQModel")).unwrap();
    assert!(gptqmodel["outcome"] == "wrong" && gptqmodel["why"].as_str().unwrap().contains(MODULE), "{gptqmodel}");
    assert!(vllm["outcome"] == "wrong" && vllm["why"].as_str().unwrap().contains("stored less one (v1) and read as v2"), "{vllm}");
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
    // a config that only one kind of reader finds
    let f = Folder::of("llama-w4-sym-g128");
    f.json("config.json", |c| drop(c.remove("quantization_config")));
    finds(&f, "warning", &["config.json", "no `quantization_config`, but quantize_config.json has one"]);
    let f = Folder::of("llama-w4-sym-g128");
    std::fs::remove_file(f.path("quantize_config.json")).unwrap();
    finds(&f, "note", &["quantize_config.json", "no such file"]);
    let f = Folder::of("glm4-dense");
    f.write("quantize_config.json", r#"{"bits": 4, "group_size": 128, "desc_act": false, "sym": true}"#);
    finds(&f, "warning", &["quantize_config.json", "no module is quantized"]);
}

#[test]
fn heads_that_are_confused() {
    let tie = |f: &Folder, tied: bool| {
        f.json("config.json", |c| drop(c.insert("tie_word_embeddings".into(), json!(tied))));
    };
    let f = Folder::of("llama-w4-sym-g128");
    f.tensors(|t| drop(t.remove("lm_head.weight")));
    finds(&f, "error", &["lm_head", "there is no head", "`tie_word_embeddings` is not true"]);
    let f = Folder::of("llama-w4-lmhead");
    tie(&f, true);
    finds(&f, "warning", &["lm_head", "there is a quantized head"]);
    let f = Folder::of("llama-w4-sym-g128");
    f.tensors(|t| {
        let embedding = t["model.embed_tokens.weight"].clone();
        t.insert("lm_head.weight".into(), embedding);
    });
    tie(&f, true);
    finds(&f, "note", &["lm_head", "a copy of the embedding"]);
    // a dense head that the config calls quantized
    let f = Folder::of("llama-w4-sym-g128");
    f.quantization("lm_head", json!(true));
    finds(&f, "warning", &["lm_head", "the head is dense"]);
}

#[test]
fn fused_modules_that_are_not_alike() {
    let f = Folder::of("llama-dynamic");
    f.header(|h| {
        for part in ["qweight", "qzeros", "scales", "g_idx"] {
            let info = h.remove(&format!("model.layers.0.mlp.up_proj.{part}")).unwrap();
            h.insert(format!("model.layers.0.mlp.other_proj.{part}"), info);
        }
    });
    finds(&f, "warning", &["model.layers.0.mlp.{gate_proj,up_proj}", "some are not"]);
    finds(&f, "error", &["model.layers.0.mlp.up_proj", "none of its tensors"]);
    // one of q, k, v with fewer groups
    let f = Folder::of("llama-w4-sym-g32-act");
    f.tensors(|t| {
        for part in ["scales", "qzeros"] {
            let (_, shape, bytes) = t.get_mut(&format!("model.layers.0.self_attn.k_proj.{part}")).unwrap();
            bytes.truncate(bytes.len() / 2);
            shape[0] /= 2;
        }
        let (_, _, g_idx) = t.get_mut("model.layers.0.self_attn.k_proj.g_idx").unwrap();
        g_idx.as_chunks_mut::<4>().0.iter_mut().for_each(|g| g[0] /= 2);
    });
    finds(&f, "warning", &["model.layers.0.self_attn.{q_proj,k_proj,v_proj}", "bits, groups or symmetry differ"]);
    // GLM's gate and up are one module in the file already
    let (code, findings) = examine(fixture("glm4-w4-sym-g32").to_str().unwrap());
    assert!(code == 0 && !findings.iter().any(|f| f["subject"].as_str().unwrap().contains("gate")), "{findings:#?}");
}

/// A pattern that matches `gate_proj` and `up_proj`, but not `gate_up_proj`: vLLM takes the base scheme for both.
#[test]
fn rules_for_a_part_of_a_fused_group() {
    let f = Folder::of("llama-dynamic");
    let subject = "model.layers.1.mlp.{gate_proj,up_proj}";
    finds(&f, "warning", &[subject, "`gate_up_proj` by no rule", "taken for 4 bit", "its tensors hold 2 bit"]);
    let (_, v) = common::doctor(f.dir(), &[]);
    assert_eq!(v["engines"][0]["outcome"], "refuses", "{v}");
    let inspected = common::json(&["inspect", f.dir(), "--json"]);
    let of = |name: &str| {
        let modules = inspected["vllm"]["modules"].as_array().unwrap();
        modules.iter().find(|m| m["module"] == name).unwrap_or_else(|| panic!("{name} in {inspected}")).clone()
    };
    assert_eq!(of("model.layers.1.mlp.gate_up_proj")["parts"], json!(["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"]));
    assert!(of("model.layers.1.mlp.gate_up_proj")["problem"].as_str().unwrap().contains("4 bit with groups of 64"));
    assert_eq!(of("model.layers.0.mlp.gate_up_proj")["problem"], Value::Null);
    assert_eq!(of("model.layers.0.mlp.down_proj")["verdict"], "8 bit, group 32, gptq_marlin");
    assert_eq!((&of("lm_head")["verdict"], &of("model.layers.0.self_attn.o_proj")["verdict"]), (&json!("dense"), &json!("dense")));
    // with a pattern that matches all three names nothing is odd
    let rules = json!({r"-:.*\.0\.self_attn\.o_proj": {}, r"+:.*\.down_proj": {"bits": 8, "group_size": 32},
        r"+:.*\.1\.mlp\.(gate|up|gate_up)_proj": {"bits": 2, "group_size": 32, "desc_act": true}});
    f.quantization("dynamic", rules);
    let (code, findings) = examine(f.dir());
    assert_eq!(code, 0, "{findings:#?}");
    // a rule for one of q, k, v only: `{}` overrides nothing, so that the readings agree on the numbers
    let f = Folder::of("llama-w4-sym-g128");
    f.quantization("dynamic", json!({r"+:.*\.0\.self_attn\.q_proj": {}}));
    finds(&f, "note", &["model.layers.0.self_attn.{q_proj,k_proj,v_proj}", "q_proj by `+:", "right for these tensors"]);
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
    let f = Folder::of("llama-w4-sym-g128");
    f.json("config.json", |c| drop(c.insert("vocab_size".into(), json!(300))));
    finds(&f, "error", &["tokenizer.json", "320 tokens, but the embedding has 300 rows"]);
    finds(&f, "error", &["model.embed_tokens.weight", "[320, 128]", "[300, 128]"]);
}

#[test]
fn ends_of_text_that_do_not_fit() {
    let changed = |file: &str, key: &str, value: Value| {
        let f = Folder::of("llama-w4-sym-g128");
        f.json(file, |c| drop(c.insert(key.into(), value)));
        f
    };
    let f = changed("config.json", "eos_token_id", json!(7));
    finds(&f, "warning", &["end of sequence", "[7] in config.json and [0] in generation_config.json"]);
    let f = changed("tokenizer_config.json", "eos_token", json!("<|im_end|>"));
    finds(&f, "warning", &["end of sequence", "`<|im_end|>` (id 2)", "run on"]);
    let f = changed("tokenizer_config.json", "eos_token", json!("</nothing>"));
    finds(&f, "warning", &["end of sequence", "`</nothing>`, which is no token"]);
    let f = changed("generation_config.json", "eos_token_id", json!([0, 325]));
    f.json("config.json", |c| drop(c.insert("vocab_size".into(), json!(330))));
    finds(&f, "warning", &["end of sequence", "325 is no token"]);
    let f = changed("config.json", "bos_token_id", json!(5));
    finds(&f, "note", &["begin of sequence", "config.json is 5", "begins with 0"]);
    for key in ["eos_token_id", "eos_token"] {
        let f = Folder::of("llama-w4-sym-g128");
        for file in ["config.json", "generation_config.json", "tokenizer_config.json"] {
            f.json(file, |c| ["eos_token_id", "eos_token"].iter().for_each(|k| drop(c.remove(*k))));
        }
        if key == "eos_token" {
            f.json("tokenizer_config.json", |c| drop(c.insert(key.into(), json!("<|endoftext|>"))));
            let (code, findings) = examine(f.dir());
            assert_eq!(code, 0, "{findings:#?}");
        } else {
            finds(&f, "warning", &["end of sequence", "no end-of-sequence token"]);
        }
    }
}

#[test]
fn templates_that_do_not_fit() {
    let with = |template: &str| {
        let f = Folder::of("llama-w4-sym-g128");
        f.write("chat_template.jinja", template);
        f
    };
    let f = with("{% for m in messages %}<|start|>{{ m['content'] }}<|im_end|>{% endfor %}");
    finds(&f, "warning", &["chat template", "`<|start|>`, which is no token"]);
    finds(&f, "note", &["chat template", "ends a reply with `<|im_end|>` (id 2)"]);
    finds(&with("{% for m in messages %}"), "warning", &["chat template", "`chat` does not work"]);
    finds(&with("{{ messages[99].content.nothing() }}"), "warning", &["chat template", "`chat` does not work"]);
    // the template's own refusal is no fault
    let (code, findings) = examine(with("{{ raise_exception('users only') }}").dir());
    assert_eq!(code, 0, "{findings:#?}");
    let f = with("{% for m in messages %}{{ m['content'] }}<|endoftext|>{% endfor %}");
    f.json("tokenizer_config.json", |c| drop(c.insert("chat_template".into(), json!("another"))));
    finds(&f, "note", &["chat template", "differ"]);
    assert!(!mentions(&examine(f.dir()).1.into(), "note", &["ends a reply"]));
    let f = Folder::of("llama-w4-sym-g128");
    let added = json!({"1": {"content": "<|other|>"}, "2": {"content": "<|im_end|>"}});
    f.json("tokenizer_config.json", |c| drop(c.insert("added_tokens_decoder".into(), added)));
    finds(&f, "warning", &["tokenizer.json", "1 added tokens differ", "`<|other|>`"]);
}

#[test]
fn a_folder_that_cannot_be_opened_is_a_finding_and_no_folder_an_error() {
    let f = Folder::of("llama-w4-sym-g128");
    let bytes = f.bytes("model.safetensors");
    f.write("model.safetensors", &bytes[..bytes.len() / 2]);
    finds(&f, "error", &["model.safetensors"]);
    let (_, v) = common::doctor(f.dir(), &["--deep"]);
    assert!(mentions(&v["findings"], "note", &["forward pass", "it was not run"]), "{v}");
    assert!(common::error(&["doctor", "no/such/folder"]).contains("no/such/folder"));
}

/// Opening stops at the first; the doctor lists all.
#[test]
fn shards_that_are_missing_cut_or_elsewhere() {
    const FIRST: &str = "model-00001-of-00002.safetensors";
    const SECOND: &str = "model-00002-of-00002.safetensors";
    const INDEX: &str = "model.safetensors.index.json";
    let f = Folder::of("llama-sharded-dense");
    let bytes = f.bytes(FIRST);
    f.write(FIRST, &bytes[..bytes.len() - 1]);
    std::fs::remove_file(f.path(SECOND)).unwrap();
    finds(&f, "error", &[FIRST, "the file is damaged or incomplete"]);
    finds(&f, "error", &[SECOND, "no such file", "what is missing cannot be made up"]);

    let f = Folder::of("llama-sharded-dense");
    f.json(INDEX, |i| i["weight_map"].as_object_mut().unwrap().values_mut().for_each(|v| *v = json!(FIRST)));
    let (code, findings) = examine(f.dir());
    let all = Value::from(findings);
    assert!(code == 2 && mentions(&all, "error", &[INDEX, "found it in no shard that can be read"]), "{all:#}");
    let f = Folder::of("llama-sharded-dense");
    let first = |m: &serde_json::Map<String, Value>, file: &str| m.iter().find(|(_, v)| *v == file).unwrap().0.clone();
    f.json(INDEX, |i| {
        let map = i["weight_map"].as_object_mut().unwrap();
        let (a, b) = (first(map, FIRST), first(map, SECOND));
        map.insert(a, json!(SECOND));
        map.insert(b, json!(FIRST));
    });
    finds(&f, "error", &[INDEX, &format!("expected the tensor in {FIRST}, found it in {SECOND}"), "--fix"]);
    finds(&f, "error", &[INDEX, &format!("expected the tensor in {SECOND}, found it in {FIRST}")]);
    std::fs::remove_file(f.path(INDEX)).unwrap();
    finds(&f, "error", &["without an index", "--fix"]);
    let f = Folder::of("llama-w4-sym-g128");
    f.write("left-over.safetensors", "");
    finds(&f, "warning", &["left-over.safetensors", "not part of the model"]);
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
    assert_eq!(outcomes("llama-w4-asym-g32-v2")("vLLM 0.14.1"), runs, "the plain method reads v2");
    assert_eq!(outcomes("llama-w5-sym-g32-planar")("vLLM 0.14.1"), refuses);
    assert_eq!(outcomes("llama-w2-asym-g32-v2")("ONNX"), wrong);
    assert_eq!(outcomes("llama-w3-sym-g128")("GPTQModel"), runs);
}

/// AWQ folders are resolved module by module too: what their list leaves out must be dense in the file.
#[test]
fn awq_modules_as_vllm_resolves_them() {
    let vllm = |f: &Folder| {
        let found = common::doctor(f.dir(), &[]).1;
        (found["engines"][0].clone(), found["vllm_modules"].clone())
    };
    let f = Folder::of("llama-awq-asym-g32");
    let (sound, modules) = vllm(&f);
    assert!(sound["outcome"] == "runs" && sound["why"].as_str().unwrap().starts_with("as awq"), "{sound}");
    let fused = |m: &serde_json::Value| {
        m["module"].as_str().unwrap().ends_with("qkv_proj") && m["verdict"].as_str().unwrap().starts_with("4 bit, group 32")
    };
    assert!(modules.as_array().unwrap().iter().any(fused), "{modules}");
    f.quantization("modules_to_not_convert", json!(["down_proj"]));
    let (refused, _) = vllm(&f);
    assert!(refused["outcome"] == "refuses" && refused["why"].as_str().unwrap().contains("down_proj"), "{refused}");
}
