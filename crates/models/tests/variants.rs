//! The same network written in other words gives the same logits: configs that say a thing differently or leave it out.

use billfish_formats::Checkpoint;
use billfish_kernels::{Activations, Backend, Isa};
use billfish_models::{LoadOptions, Logits, Model, ModelError, Scratch};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

fn logits(dir: &Path) -> Result<Vec<f32>, ModelError> {
    let backend = Arc::new(Backend::new(Isa::choose(None).unwrap(), 1).unwrap());
    let options = LoadOptions { activations: Activations::Strict, ..LoadOptions::default() };
    let model = Model::load(&Checkpoint::open(dir)?, backend, options, &mut |_| ())?;
    let ids: Vec<u32> = (3..40).collect();
    let mut cache = model.new_cache(ids.len());
    Ok(model.forward(&mut cache, &ids, Logits::All, &mut Scratch::default())?.to_vec())
}

/// The logits of a copy whose config was changed.
fn changed(name: &str, change: impl FnOnce(&mut Map<String, Value>)) -> Result<Vec<f32>, ModelError> {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let file = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    change(config.as_object_mut().unwrap());
    std::fs::write(&file, config.to_string()).unwrap();
    logits(dir.path())
}

fn original(name: &str) -> Vec<f32> {
    logits(&fixture(name)).unwrap()
}

#[test]
fn a_quantized_head_wins_over_a_tied_embedding() {
    let want = original("llama-w4-lmhead");
    assert_eq!(changed("llama-w4-lmhead", |c| drop(c.insert("tie_word_embeddings".into(), json!(true)))).unwrap(), want);
    // a dense head of a tied model is the embedding's copy, whatever it holds
    let tied = changed("llama-w4-sym-g128", |c| drop(c.insert("tie_word_embeddings".into(), json!(true)))).unwrap();
    assert_ne!(tied, original("llama-w4-sym-g128"));
}

#[test]
fn windows_by_layer_number_or_by_list() {
    let want = original("qwen2-window-dense");
    assert_eq!(changed("qwen2-window-dense", |c| drop(c.remove("layer_types"))).unwrap(), want);
    let experts = original("qwen2moe-stacked-dense");
    assert_eq!(changed("qwen2moe-stacked-dense", |c| drop(c.remove("layer_types"))).unwrap(), experts);
    let off = changed("qwen2-window-dense", |c| {
        c.remove("layer_types");
        c.insert("use_sliding_window".into(), json!(false));
    });
    assert_ne!(off.unwrap(), want);
}

#[test]
fn rotary_keys_in_either_place() {
    let want = original("glm4-dense");
    let top = changed("glm4-dense", |c| {
        let rope = c.remove("rope_parameters").unwrap();
        c.insert("rope_theta".into(), rope["rope_theta"].clone());
        c.insert("partial_rotary_factor".into(), json!(0.5));
    });
    assert_eq!(top.unwrap(), want);
    let unsaid = changed("glm4-dense", |c| drop(c["rope_parameters"].as_object_mut().unwrap().remove("partial_rotary_factor")));
    assert_eq!(unsaid.unwrap(), want, "half of a head is this architecture's default");
    let other = changed("glm4-dense", |c| c["rope_parameters"]["partial_rotary_factor"] = json!(1.0));
    assert_ne!(other.unwrap(), want);
    let yarn = original("llama-rope-yarn-dense");
    let old = changed("llama-rope-yarn-dense", |c| {
        let mut rope = c.remove("rope_parameters").unwrap();
        let map = rope.as_object_mut().unwrap();
        let kind = map.remove("rope_type").unwrap();
        c.insert("rope_theta".into(), map.remove("rope_theta").unwrap());
        map.insert("type".into(), kind);
        c.insert("rope_scaling".into(), rope);
    });
    assert_eq!(old.unwrap(), yarn);
}

#[test]
fn biases_must_be_as_the_architecture_says() {
    // a bias that the config asks for and the file lacks
    let error = changed("llama-w4-sym-g128", |c| drop(c.insert("attention_bias".into(), json!(true)))).unwrap_err().to_string();
    assert!(error.contains("q_proj.bias") && error.contains("expected"), "{error}");
    // one that the file has and the config does not speak of would be dropped in silence
    let error = changed("llama-biases-dense", |c| drop(c.insert("mlp_bias".into(), json!(false)))).unwrap_err().to_string();
    assert!(error.contains("_proj.bias"), "{error}");
}
