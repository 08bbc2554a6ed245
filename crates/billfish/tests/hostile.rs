//! Folders with something wrong: exit code 1 and one message that says what, where, what was expected, what was found
//! and what to do.

mod common;

use common::{Folder, error, fixture};
use serde_json::json;

const MODEL: &str = "llama-w4-sym-g32-act";
const MODULE: &str = "model.layers.0.self_attn.q_proj";

fn contains(message: &str, words: &[&str]) {
    assert!(words.iter().all(|w| message.contains(w)), "{message}\nlacks one of {words:?}");
    assert!(message.lines().count() == 1, "one message: {message}");
}

fn tensor(part: &str) -> String {
    format!("{MODULE}.{part}")
}

#[test]
fn a_folder_that_does_not_exist() {
    contains(&error(&["run", "no/such/folder", "--prompt", "x"]), &["no/such/folder", "folder", "config.json"]);
    contains(&error(&["inspect", "TheBloke/TinyLlama-GPTQ"]), &["TheBloke/TinyLlama-GPTQ", "download"]);
}

#[test]
fn a_truncated_shard() {
    let f = Folder::of(MODEL);
    let bytes = f.bytes("model.safetensors");
    f.write("model.safetensors", &bytes[..bytes.len() - 1000]);
    contains(&f.run_error(), &["model.safetensors", "expected", "found", "download"]);
}

#[test]
fn a_header_longer_than_the_file() {
    let f = Folder::of(MODEL);
    let mut bytes = f.bytes("model.safetensors");
    bytes[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    f.write("model.safetensors", bytes);
    contains(&f.run_error(), &["model.safetensors", "header", "1099511627776"]);
}

#[test]
fn offsets_that_overflow() {
    for end in [json!(u64::MAX), json!(u64::MAX - 7), json!(1u64 << 62)] {
        let f = Folder::of(MODEL);
        f.header(|h| h[&tensor("qweight")]["data_offsets"][1] = end.clone());
        contains(&f.run_error(), &["model.safetensors", &tensor("qweight"), "expected", "found"]);
    }
}

#[test]
fn a_wrong_shape_of_each_tensor() {
    for part in ["qweight", "qzeros", "scales"] {
        let f = Folder::of(MODEL);
        // the same bytes in another shape
        f.header(|h| h[&tensor(part)]["shape"].as_array_mut().unwrap().reverse());
        contains(&f.run_error(), &["model.safetensors", &tensor(part), "expected shape [", "found shape ["]);
    }
    let f = Folder::of(MODEL);
    f.header(|h| h[&tensor("g_idx")]["shape"] = json!([2, 64]));
    contains(&f.run_error(), &["model.safetensors", &tensor("g_idx"), "[128]", "[2, 64]"]);
}

#[test]
fn a_group_index_out_of_range() {
    let f = Folder::of(MODEL);
    f.tensor(&tensor("g_idx"), |b| b[..4].copy_from_slice(&99i32.to_le_bytes()));
    contains(&f.run_error(), &["model.safetensors", &tensor("g_idx"), "99", "expected"]);
}

#[test]
fn a_scale_that_is_not_a_number() {
    let f = Folder::of(MODEL);
    f.tensor(&tensor("scales"), |b| b[10..12].copy_from_slice(&0x7e00u16.to_le_bytes()));
    contains(&f.run_error(), &["model.safetensors", &tensor("scales"), "NaN", "finite"]);
}

#[test]
fn a_missing_tensor() {
    let f = Folder::of(MODEL);
    f.header(|h| {
        let info = h.remove(&tensor("scales")).unwrap();
        h.insert("model.layers.0.self_attn.q_proj.scale".into(), info);
    });
    contains(&f.run_error(), &[&tensor("scales"), "expected", "found"]);
}

#[test]
fn an_unknown_dtype() {
    let f = Folder::of(MODEL);
    f.header(|h| h[&tensor("scales")]["dtype"] = json!("F13"));
    contains(&f.run_error(), &["model.safetensors", &tensor("scales"), "F13", "expected"]);
}

#[test]
fn nine_bits() {
    let f = Folder::of(MODEL);
    f.quantization("bits", json!(9));
    contains(&f.run_error(), &["quantize_config.json", "bits", "9", "expected"]);
}

#[test]
fn a_broken_shard_index() {
    let index = "model.safetensors.index.json";
    let sharded = |change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let f = Folder::of("llama-sharded-dense");
        f.json(index, |m| change(m["weight_map"].as_object_mut().unwrap()));
        f.run_error()
    };
    contains(&sharded(&|m| m["model.norm.weight"] = json!(index)), &[index, "model.norm.weight", "expected", "found"]);
    contains(&sharded(&|m| m["model.norm.weight"] = json!("gone.safetensors")), &["gone.safetensors", "expected", "found"]);
    contains(&sharded(&|m| m["model.norm.weight"] = json!("../../x.safetensors")), &[index, "../../x.safetensors"]);
    contains(&sharded(&|m| drop(m.insert("no.such.tensor".into(), m["lm_head.weight"].clone()))), &[index, "no.such.tensor"]);
    let f = Folder::of("llama-sharded-dense");
    f.json(index, |m| drop(m["weight_map"].as_object_mut().unwrap().remove("model.norm.weight")));
    contains(&f.run_error(), &["model.norm.weight", "expected", "found"]);
}

#[test]
fn a_config_that_is_not_json() {
    for text in ["{\"hidden_size\": ", "[1, 2]", "\u{0}\u{1}", ""] {
        let f = Folder::of(MODEL);
        f.write("config.json", text);
        contains(&f.run_error(), &["config.json", "expected", "found"]);
    }
    // nesting that would overflow a recursive parser's stack
    let f = Folder::of(MODEL);
    f.write("config.json", "[".repeat(100_000));
    contains(&f.run_error(), &["config.json"]);
}

#[test]
fn a_tokenizer_larger_than_the_embedding() {
    let f = Folder::of(MODEL);
    f.json("tokenizer.json", |t| {
        let entry = json!({"id": 4000, "content": "<more>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
        t["added_tokens"].as_array_mut().unwrap().push(entry);
    });
    contains(&f.run_error(), &["tokenizer.json", "320", "expected", "found"]);
}

#[test]
fn a_folder_without_a_tokenizer_or_with_a_broken_one() {
    let f = Folder::of(MODEL);
    std::fs::remove_file(f.path("tokenizer.json")).unwrap();
    contains(&f.run_error(), &["tokenizer.json", "no such file", "copy it"]);
    let f = Folder::of(MODEL);
    f.write("tokenizer.json", "{}");
    contains(&f.run_error(), &["tokenizer.json"]);
}

#[test]
fn an_architecture_that_is_not_supported() {
    let f = Folder::of(MODEL);
    f.json("config.json", |c| drop(c.insert("model_type".into(), json!("mamba9"))));
    contains(&f.run_error(), &["config.json", "mamba9", "llama, mistral, qwen2, qwen3, glm4"]);
}

#[test]
fn sizes_that_nobody_could_allocate() {
    for key in ["hidden_size", "vocab_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"] {
        for size in [json!(0), json!(-1), json!(1u64 << 31), json!(u64::MAX), json!(1e300)] {
            let f = Folder::of(MODEL);
            f.json("config.json", |c| drop(c.insert(key.into(), size.clone())));
            let message = f.run_error();
            assert!(message.contains("expected"), "{key} = {size}: {message}");
        }
    }
}

/// Whatever single byte of the headers and configs is wrong, the program ends by itself with code 0 or 1.
#[test]
fn flipped_bytes_never_crash() {
    for file in ["model.safetensors", "config.json", "quantize_config.json"] {
        for i in 0..24 {
            let f = Folder::of("llama-w2-sym-g32");
            let mut bytes = f.bytes(file);
            let at = (i * 37) % bytes.len().min(900);
            bytes[at] ^= 1 << (i % 8);
            f.write(file, bytes);
            let (code, _, err) = common::output(common::billfish(&["run", f.dir(), "--prompt", "Once", "--max-tokens", "1"]));
            assert!(code <= 1 && !err.contains("panicked"), "{file} byte {at}: {code} {err}");
        }
    }
}

#[test]
fn wrong_usage_is_an_error_too() {
    for args in [
        &["run", "--temperature", "hot", "--prompt", "x"][..],
        &["run", "--no-such-flag"],
        &["fly"],
        &["run"],
        &[],
        &["run", "--prompt", "x", "--prompt-file", "y"],
        &["run", "--prompt", "x", "--threads", "0"],
        &["run", "--prompt", "x", "--activations", "sloppy"],
        &["run", "--prompt-file", "no/such/file"],
        &["run", "--prompt", "x", "--temperature", "-1"],
        &["run", "--prompt", "x", "--top-p", "0"],
        &["run", "--prompt", "x", "--stop", ""],
        &["run", "--prompt", ""],
        &["eval", "ppl", "--text", "no/such/file", "--protocol", "window:256"],
        &["eval", "ppl", "--text", fixture("README.md").to_str().unwrap(), "--protocol", "window:1"],
        &["eval", "logits", "--input-ids", "no/such/file", "--output", "x"],
        &["synth", "llama-9z", "out"],
    ] {
        let (code, _, err) = common::output(common::billfish(args));
        assert_eq!(code, 1, "{args:?}: {err}");
        assert!(!err.is_empty() && !err.contains("panicked"), "{args:?}: {err}");
    }
}

#[test]
fn an_instruction_set_that_is_unknown_or_missing() {
    let run = |name: &str| {
        let mut command = common::billfish(&["run", "--prompt", "x", "--max-tokens", "1"]);
        command.env("BILLFISH_ISA", name);
        common::output(command)
    };
    let (code, _, err) = run("sse9");
    assert_eq!(code, 1);
    assert!(err.contains("sse9") && err.contains("scalar, avx2, avxvnni, avx512, amx, neon, dotprod"), "{err}");
    for isa in billfish::Isa::ALL {
        let (code, _, err) = run(isa.name());
        assert_eq!(code, i32::from(!isa.is_available()), "{err}");
        assert!(err.contains(isa.name()) && isa.missing().is_none_or(|reason| err.contains(reason)), "{err}");
    }
}
