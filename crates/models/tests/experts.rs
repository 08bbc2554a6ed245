//! Folders of mixtures of experts that are wrong or written otherwise.

use billfish_formats::Checkpoint;
use billfish_kernels::{Activations, Backend, Isa};
use billfish_models::{DecoderConfig, LoadOptions, Logits, Model, ModelError, Scratch};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Loads a copy of a fixture after `change`.
fn changed(name: &str, change: impl FnOnce(&mut Tensors, &mut Value)) -> Result<Model, ModelError> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name);
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, t): (String, TensorView<'_>)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec()));
    let mut tensors: Tensors = file.tensors().into_iter().map(tensor).collect();
    let mut config: Value = serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
    change(&mut tensors, &mut config);
    let dir = tempfile::tempdir().unwrap();
    let views = tensors.iter().map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let backend = Arc::new(Backend::new(Isa::choose(None).unwrap(), 1).unwrap());
    let options = LoadOptions { activations: Activations::Strict, ..LoadOptions::default() };
    Model::load(&Checkpoint::open(dir.path())?, backend, options, &mut |_| ())
}

fn logits(model: &Model) -> Vec<f32> {
    let ids: Vec<u32> = (3..30).collect();
    model.forward(&mut model.new_cache(ids.len()), &ids, Logits::All, &mut Scratch::default()).unwrap().to_vec()
}

/// A fixture, what is done to it, and words of the message.
type Case = (&'static str, fn(&mut Tensors, &mut Value), &'static [&'static str]);

#[test]
fn what_is_wrong_is_named_when_it_is_loaded() {
    let cases: [Case; 9] = [
        (
            "qwen3moe-w4-sym-g32",
            |t, _| t.retain(|name, _| !name.contains("layers.1.mlp.experts.5.up_proj")),
            &["model.layers.1.mlp.experts.5.up_proj", "none of them"],
        ),
        (
            "mixtral-w4-sym-g32-classic",
            |t, _| t.retain(|name, _| !name.contains("layers.0.block_sparse_moe.experts.3.")),
            &["model.layers.0.block_sparse_moe.experts.3.w1"],
        ),
        // another module's tensors, which are of another size
        (
            "qwen3moe-w4-sym-g32",
            |t, _| {
                for part in ["qweight", "qzeros", "scales", "g_idx"] {
                    let other = t[&format!("model.layers.0.mlp.experts.2.down_proj.{part}")].clone();
                    t.insert(format!("model.layers.0.mlp.experts.2.gate_proj.{part}"), other);
                }
            },
            &["model.layers.0.mlp.experts.2.gate_proj", "[8, 128]"],
        ),
        (
            "qwen2moe-w4-sym-g32",
            |t, _| {
                let (_, shape, data) = t.get_mut("model.layers.1.mlp.gate.weight").unwrap();
                data.truncate(data.len() / 8 * 7);
                shape[0] = 7;
            },
            &["model.layers.1.mlp.gate.weight", "[8, 128]", "[7, 128]"],
        ),
        ("qwen3moe-w4-sym-g32", |_, c| c["num_experts_per_tok"] = json!(9), &["num_experts_per_tok", "1 to 8 experts", "9"]),
        (
            "glm4moe-dense",
            |t, _| drop(t.remove("model.layers.2.mlp.gate.e_score_correction_bias")),
            &["model.layers.2.mlp.gate.e_score_correction_bias", "none of that name"],
        ),
        (
            "glm4moe-dense",
            |t, _| drop(t.remove("model.layers.1.mlp.shared_experts.up_proj.weight")),
            &["model.layers.1.mlp.shared_experts.up_proj"],
        ),
        // the other orientation of stacked experts
        (
            "qwen2moe-stacked-dense",
            |t, _| t.get_mut("model.layers.0.mlp.experts.gate_up_proj").unwrap().1 = vec![6, 64, 96],
            &["model.layers.0.mlp.experts.gate_up_proj", "[6, 96, 64]", "[6, 64, 96]"],
        ),
        (
            "qwen2moe-stacked-dense",
            |t, _| drop(t.remove("model.layers.2.mlp.experts.down_proj")),
            &["model.layers.2.mlp.experts.down_proj", "none of that name"],
        ),
    ];
    for (name, change, words) in cases {
        let message = changed(name, change).err().unwrap_or_else(|| panic!("{name} {words:?}: loads")).to_string();
        assert!(words.iter().all(|w| message.contains(w)), "{name}: {message}");
    }
}

/// One expert after another or all in two tensors: the same numbers, so the same bits.
#[test]
fn stacked_experts_are_the_experts() {
    let stacked = changed("qwen2moe-stacked-dense", |_, _| ()).unwrap();
    let apart = changed("qwen2moe-stacked-dense", |t, _| {
        for layer in [0, 2] {
            let at = format!("model.layers.{layer}.mlp.experts");
            let (dtype, _, both) = t.remove(&format!("{at}.gate_up_proj")).unwrap();
            let (_, _, down) = t.remove(&format!("{at}.down_proj")).unwrap();
            // [6, 2 * 48, 64] and [6, 64, 48]
            for (e, (both, down)) in both.chunks(both.len() / 6).zip(down.chunks(down.len() / 6)).enumerate() {
                let (gate, up) = both.split_at(both.len() / 2);
                t.insert(format!("{at}.{e}.gate_proj.weight"), (dtype, vec![48, 64], gate.to_vec()));
                t.insert(format!("{at}.{e}.up_proj.weight"), (dtype, vec![48, 64], up.to_vec()));
                t.insert(format!("{at}.{e}.down_proj.weight"), (dtype, vec![64, 48], down.to_vec()));
            }
        }
    })
    .unwrap();
    assert_eq!(logits(&stacked), logits(&apart));
}

/// Experts by other names of their blocks, and sizes by other names of their keys.
#[test]
fn other_names_for_the_same() {
    let fixture = |name: &str| logits(&changed(name, |_, _| ()).unwrap());
    assert_eq!(fixture("mixtral-w4-sym-g32"), fixture("mixtral-w4-sym-g32-classic"));
    let renamed = changed("qwen3moe-w4-sym-g32", |_, c| {
        let experts = c.as_object_mut().unwrap().remove("num_local_experts").unwrap();
        c["num_experts"] = experts;
    });
    assert_eq!(logits(&renamed.unwrap()), fixture("qwen3moe-w4-sym-g32"));
}

/// The rules of a config matter: without them the logits are others.
#[test]
fn every_rule_of_the_router_is_followed() {
    let of = |name: &str, key: &str, value: Value| logits(&changed(name, |_, c| c[key] = value).unwrap());
    let glm = logits(&changed("glm4moe-dense", |_, _| ()).unwrap());
    for (key, value) in [
        ("norm_topk_prob", json!(false)),
        ("routed_scaling_factor", json!(1.0)),
        ("topk_group", json!(4)),
        ("num_experts_per_tok", json!(2)),
    ] {
        assert_ne!(of("glm4moe-dense", key, value), glm, "{key}");
    }
    let qwen = logits(&changed("qwen2moe-w4-sym-g32", |_, _| ()).unwrap());
    assert_ne!(of("qwen2moe-w4-sym-g32", "norm_topk_prob", json!(true)), qwen);
}

#[test]
fn usage_counts_every_choice() {
    let model = changed("glm4moe-dense", |_, _| ()).unwrap();
    let mut scratch = Scratch::default();
    assert!(scratch.expert_usage().is_empty());
    let mut cache = model.new_cache(20);
    for tokens in [&[5u32; 7][..], &[9], &[11, 12]] {
        model.forward(&mut cache, tokens, Logits::Last, &mut scratch).unwrap();
    }
    let usage: Vec<&[u64]> = scratch.expert_usage().chunks(8).collect();
    // the first layer has one MLP, in the second each of ten tokens has three experts, in the last the token whose logits each
    // of three passes gave
    assert_eq!(usage.iter().map(|l| l.iter().sum::<u64>()).collect::<Vec<_>>(), [0, 30, 9]);
    assert!(usage[1].iter().all(|&n| n <= 10));
}

#[test]
fn tensors_of_experts_are_compared_with_the_config() {
    let open = |name: &str| Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)).unwrap();
    for name in ["mixtral-w4-sym-g32-classic", "qwen2moe-stacked-dense", "qwen2moe-w4-sym-g32", "glm4moe-dense"] {
        let c = open(name);
        let compared = DecoderConfig::from_json("config.json", c.config()).unwrap().compare(&c);
        assert_eq!((compared.missing, compared.unused), (vec![], vec![]), "{name}");
    }
    let c = open("qwen3moe-w4-sym-g32").with_config_key("num_local_experts", json!(7));
    let compared = DecoderConfig::from_json("config.json", c.config()).unwrap().compare(&c);
    assert_eq!((compared.missing.len(), compared.unused.len()), (0, 24), "all tensors of the last expert of each layer are left over");
    assert!(compared.unused.iter().all(|t| t.contains("experts.7.")), "{:?}", compared.unused);
}
