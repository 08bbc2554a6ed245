//! `doctor --fix` writes a copy in which what can be repaired is, examines it, and says what remains. What the copy holds is
//! compared with the undamaged original, weight by weight.

mod common;

use common::{Folder, billfish, doctor, fixture, mentions, output};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const MODULE: &str = "model.layers.1.mlp.up_proj";
const INDEX: &str = "model.safetensors.index.json";

/// A place to write to.
struct Out(tempfile::TempDir);

impl Out {
    fn new() -> Out {
        Out(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("fixed")
    }
}

/// Fixes a folder: the exit code, and what was said.
fn fix(f: &Folder, out: &Out, args: &[&str]) -> (i32, Value) {
    let path = out.path();
    doctor(f.dir(), &[&["--fix", path.to_str().unwrap()], args].concat())
}

fn config(dir: &Path, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join(file)).unwrap()).unwrap()
}

/// A folder is repaired in full, and the copy's weights are those of a fixture.
fn repairs(f: &Folder, original: &str, format: &str) -> PathBuf {
    let out = Out::new();
    let (code, v) = fix(f, &out, &[]);
    assert_eq!(code, 0, "{v:#}");
    assert!(v["sound"] == false && v["fix"]["after"]["sound"] == true, "{v:#}");
    assert!(!v["fix"]["repaired"].as_array().unwrap().is_empty(), "{v:#}");
    let said = v["fix"]["format"].as_str();
    assert_eq!(said.unwrap_or("dense"), format);
    let path = out.0.keep().join("fixed");
    common::ok(&["verify", fixture(original).to_str().unwrap(), path.to_str().unwrap()]);
    path
}

#[test]
fn labels_that_are_wrong() {
    for (name, label, right) in
        [("llama-w4-asym-g32-v2", "gptq", "gptq_v2"), ("llama-w2-asym-g32-v2", "gptq", "gptq_v2"), ("llama-w3-asym-g32", "gptq_v2", "gptq")]
    {
        let f = Folder::of(name);
        f.quantization("checkpoint_format", json!(label));
        f.quantization("format", json!(label));
        let path = repairs(&f, name, right);
        assert_eq!(config(&path, "quantize_config.json")["checkpoint_format"], right);
        assert_eq!(config(&path, "config.json")["quantization_config"], config(&path, "quantize_config.json"));
    }
}

/// Width and group size that the tensors contradict, configs that contradict each other, rules that match nothing.
#[test]
fn configs_that_are_wrong() {
    let f = Folder::of("llama-w4-sym-g32-act");
    f.quantization("group_size", json!(64));
    let path = repairs(&f, "llama-w4-sym-g32-act", "gptq");
    assert_eq!(config(&path, "quantize_config.json")["group_size"], 32);
    let f = Folder::of("llama-w4-asym-g64");
    f.quantization("bits", json!(8));
    f.quantization("group_size", json!(128));
    let path = repairs(&f, "llama-w4-asym-g64", "gptq");
    assert_eq!(config(&path, "quantize_config.json")["bits"], 4);
    let f = Folder::of("llama-w4-sym-g128");
    f.json("quantize_config.json", |q| drop(q.insert("desc_act".into(), json!(true))));
    f.quantization("dynamic", json!({"+:nothing": {"bits": 2}}));
    let path = repairs(&f, "llama-w4-sym-g128", "gptq");
    assert_eq!(config(&path, "quantize_config.json").get("dynamic"), None);
    // one module of another width, which no rule told
    let f = Folder::of("llama-dynamic");
    f.quantization("dynamic", json!({}));
    let out = Out::new();
    let (_, v) = fix(&f, &out, &[]);
    assert!(mentions(&v["fix"]["repaired"], "error", &["model.layers.0.mlp.down_proj", "the tensors hold 8 bit"]), "{v:#}");
    common::ok(&["verify", fixture("llama-dynamic").to_str().unwrap(), out.path().to_str().unwrap()]);
}

#[test]
fn configs_that_are_missing_or_broken() {
    let f = Folder::of("llama-w4-sym-g128");
    f.json("config.json", |c| drop(c.remove("quantization_config")));
    repairs(&f, "llama-w4-sym-g128", "gptq");
    let f = Folder::of("llama-w4-sym-g128");
    f.write("quantize_config.json", "{");
    repairs(&f, "llama-w4-sym-g128", "gptq");
    let f = Folder::of("llama-awq-asym-g32");
    f.json("quantize_config.json", |q| drop(q.insert("bits".into(), json!("four"))));
    repairs(&f, "llama-awq-asym-g32", "awq");
    let f = Folder::of("llama-ct-w4a16-g32");
    f.json("config.json", |c| c["quantization_config"]["ignore"].as_array_mut().unwrap().push(json!("model.nothing")));
    repairs(&f, "llama-ct-w4a16-g32", "compressed-tensors");
}

#[test]
fn zero_points_that_wrapped() {
    let f = Folder::of("llama-w4-asym-g64");
    f.tensor(&format!("{MODULE}.qzeros"), |b| {
        let word = &mut b.as_chunks_mut::<4>().0[0];
        let zeros = u32::from_le_bytes(*word).wrapping_add(0x1111_1111) & !0xf;
        *word = zeros.wrapping_sub(0x1111_1111).to_le_bytes();
    });
    let place = format!("{MODULE}[0, 0]");
    let zero = |dir: &str| common::json(&["explain", dir, &place, "--json"])["zero"].clone();
    let out = Out::new();
    let (code, v) = fix(&f, &out, &[]);
    assert!(code == 0 && v["fix"]["format"] == "gptq_v2", "gptq cannot hold a zero of 0: {v:#}");
    common::ok(&["verify", f.dir(), out.path().to_str().unwrap()]);
    assert_eq!((zero(f.dir()), zero(out.path().to_str().unwrap())), (json!(0), json!(0)));
    let stored = std::fs::read(out.path().join("model.safetensors")).unwrap();
    let len = 8 + u64::from_le_bytes(stored[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&stored[8..len]).unwrap();
    let at = len + header[format!("{MODULE}.qzeros")]["data_offsets"][0].as_u64().unwrap() as usize;
    assert_eq!(stored[at] & 15, 0, "the zero point of column 0, as it is");
}

#[test]
fn indexes_that_are_wrong_or_missing() {
    const FIRST: &str = "model-00001-of-00002.safetensors";
    let f = Folder::of("llama-sharded-dense");
    f.json(INDEX, |i| i["weight_map"].as_object_mut().unwrap().values_mut().for_each(|v| *v = json!(FIRST)));
    repairs(&f, "llama-sharded-dense", "dense");
    std::fs::remove_file(f.path(INDEX)).unwrap();
    repairs(&f, "llama-sharded-dense", "dense");
    // an index that leaves tensors out, and one that is no JSON
    let f = Folder::of("llama-sharded-dense");
    f.json(INDEX, |i| drop(i["weight_map"].as_object_mut().unwrap().remove("model.norm.weight")));
    repairs(&f, "llama-sharded-dense", "dense");
    f.write(INDEX, "[");
    repairs(&f, "llama-sharded-dense", "dense");
}

#[test]
fn heads_and_stale_files() {
    let f = Folder::of("llama-w4-sym-g128");
    f.json("config.json", |c| drop(c.insert("tie_word_embeddings".into(), json!(true))));
    f.write("left-over.safetensors", "").write("pytorch_model.bin", "old").write("LICENSE", "words");
    let path = repairs(&f, "llama-w4-sym-g128", "gptq");
    assert_eq!(config(&path, "config.json")["tie_word_embeddings"], false);
    let has = |name: &str| path.join(name).exists();
    assert!(has("LICENSE") && has("tokenizer.json") && !has("left-over.safetensors") && !has("pytorch_model.bin"));
    let f = Folder::of("llama-w4-lmhead");
    f.json("config.json", |c| drop(c.insert("tie_word_embeddings".into(), json!(true))));
    let path = repairs(&f, "llama-w4-lmhead", "gptq");
    assert_eq!(config(&path, "config.json")["tie_word_embeddings"], false);
    // no head at all: the embedding is the head
    let f = Folder::of("llama-w4-sym-g128");
    f.tensors(|t| drop(t.remove("lm_head.weight")));
    let out = Out::new();
    let (code, v) = fix(&f, &out, &[]);
    assert!(code == 0 && config(&out.path(), "config.json")["tie_word_embeddings"] == true, "{v:#}");
    common::ok(&["run", out.path().to_str().unwrap(), "--prompt", "Once", "--max-tokens", "2"]);
}

#[test]
fn what_cannot_be_repaired_is_said() {
    // the copy is written, and what it lacks is named
    let f = Folder::of("llama-w4-sym-g128");
    f.quantization("desc_act", json!(true));
    f.quantization("dynamic", json!({"+:nothing": {}}));
    std::fs::remove_file(f.path("tokenizer.json")).unwrap();
    let out = Out::new();
    let (code, v) = fix(&f, &out, &[]);
    assert_eq!(code, 2);
    assert!(mentions(&v["fix"]["repaired"], "warning", &["+:nothing"]), "{v:#}");
    assert!(mentions(&v["fix"]["after"]["findings"], "error", &["tokenizer.json", "no such file"]), "{v:#}");
    assert!(!mentions(&v["fix"]["repaired"], "error", &["tokenizer.json"]), "{v:#}");
    let text = Out::new();
    let (code, out, err) = output(billfish(&["doctor", f.dir(), "--fix", text.path().to_str().unwrap()]));
    assert!(code == 2 && out.contains("what remains in") && out.contains("repaired     ") && err.contains("still wrong"), "{out}{err}");
    // nothing is written where a module cannot be read
    for damage in [0x7c00u16, 0x7e00] {
        let f = Folder::of("llama-w4-sym-g128");
        f.tensor(&format!("{MODULE}.scales"), |b| b[..2].copy_from_slice(&damage.to_le_bytes()));
        let out = Out::new();
        let (code, v) = fix(&f, &out, &[]);
        assert!(code == 2 && v["fix"]["written"] == false && v["fix"]["error"].as_str().unwrap().contains(MODULE), "{v:#}");
        assert_eq!(std::fs::read_dir(out.0.path()).unwrap().count(), 0);
    }
    let f = Folder::of("llama-sharded-dense");
    std::fs::remove_file(f.path("model-00002-of-00002.safetensors")).unwrap();
    let out = Out::new();
    let (code, v) = fix(&f, &out, &[]);
    assert!(code == 2 && v["fix"]["error"].as_str().unwrap().contains("no such file") && !out.path().exists(), "{v:#}");
    // codes that are bytes and activations that are quantized are not what a copy could say
    let f = Folder::of("llama-ct-w8a8");
    let out = Out::new();
    let (code, v) = fix(&f, &out, &[]);
    assert!(code == 2 && v["fix"]["error"].as_str().unwrap().contains("int-quantized") && !out.path().exists(), "{v:#}");
}

#[test]
fn only_what_is_wrong_is_written_and_never_over_anything() {
    let out = Out::new();
    let f = Folder::of("llama-w4-sym-g128");
    let (code, v) = fix(&f, &out, &[]);
    assert!(code == 0 && v["fix"] == Value::Null && !out.path().exists(), "{v:#}");
    std::fs::create_dir(out.path()).unwrap();
    std::fs::write(out.path().join("mine"), "kept").unwrap();
    f.quantization("lm_head", json!(true));
    let e = common::error(&["doctor", f.dir(), "--fix", out.path().to_str().unwrap()]);
    assert!(e.contains("files in it") && e.contains("name another folder"), "{e}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
}

/// What a caller says of the zero points is written, too.
#[test]
fn zeros_of_the_caller() {
    let f = Folder::of("llama-w8-asym-g128");
    f.quantization("format", json!("gptq_v2"));
    f.quantization("checkpoint_format", json!("gptq_v2"));
    f.quantization("lm_head", json!(true));
    let out = Out::new();
    let (code, v) = fix(&f, &out, &["--zeros", "v1"]);
    assert_eq!(code, 0, "{v:#}");
    common::ok(&["verify", fixture("llama-w8-asym-g128").to_str().unwrap(), out.path().to_str().unwrap()]);
}
