//! Folders with scales for their cache of keys and values.

use billfish_formats::{Checkpoint, Warning};
use billfish_kernels::{Activations, Backend, Isa, KvType};
use billfish_models::{BLOCK, DecoderConfig, LoadOptions, Logits, LoneLayer, Model, Scratch};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const LAYERS: usize = 2;

/// A tensor that is added to a folder: its name behind `model.layers.N.`, its shape and its numbers.
struct Added {
    name: &'static str,
    shape: Vec<usize>,
    values: Vec<f32>,
}

fn added(name: &'static str, shape: &[usize], values: &[f32]) -> Added {
    Added { name, shape: shape.to_vec(), values: values.to_vec() }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

/// A copy of a fixture with tensors in those of its layers for which `layer` gives any.
fn folder(name: &str, layer: impl Fn(usize) -> Vec<Added>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in fs::read_dir(fixture(name)).unwrap().map(|e| e.unwrap().path()) {
        fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    let shard = dir.path().join("model.safetensors");
    let bytes = fs::read(&shard).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let new: Vec<(String, Vec<usize>, Vec<u8>)> = (0..LAYERS)
        .flat_map(|i| layer(i).into_iter().map(move |a| (format!("model.layers.{i}.{}", a.name), a)))
        .map(|(name, a)| (name, a.shape, a.values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let mut views = file.tensors();
    views.extend(new.iter().map(|(name, shape, data)| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap())));
    safetensors::serialize_to_file(views, None, &shard).unwrap();
    dir
}

/// Writes what the quantization config says of the cache.
fn scheme(dir: &tempfile::TempDir, scheme: Value) {
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["quantization_config"]["kv_cache_scheme"] = scheme;
    fs::write(path, config.to_string()).unwrap();
}

fn floats() -> Value {
    json!({"num_bits": 8, "type": "float", "symmetric": true, "strategy": "tensor", "dynamic": false, "group_size": null})
}

fn open(dir: &tempfile::TempDir) -> Checkpoint {
    Checkpoint::open(dir.path()).unwrap()
}

fn decoder(checkpoint: &Checkpoint) -> DecoderConfig {
    DecoderConfig::from_json("config.json", checkpoint.config()).unwrap()
}

fn backend(threads: usize) -> Arc<Backend> {
    Arc::new(Backend::new(Isa::choose(None).unwrap(), threads).unwrap())
}

fn options(kind: KvType) -> LoadOptions {
    LoadOptions { activations: Activations::Strict, kv_type: Some(kind), ..LoadOptions::default() }
}

/// The bits of the logits of 60 tokens, `step` at a time.
fn bits(model: &Model, step: usize) -> Vec<u32> {
    let ids: Vec<u32> = (3..63).collect();
    let (mut cache, mut scratch) = (model.new_cache(ids.len()), Scratch::default());
    let pass = |ids: &[u32]| model.forward(&mut cache, ids, Logits::All, &mut scratch).unwrap().to_vec();
    ids.chunks(step).flat_map(pass).map(f32::to_bits).collect()
}

fn logits(dir: &tempfile::TempDir, kind: KvType) -> Vec<u32> {
    bits(&Model::load(&open(dir), backend(1), options(kind), &mut |_| ()).unwrap(), 60)
}

/// Scales that no brain float is, another for each layer. As `fp8_e4m3`, about half of all numbers of the first head are out
/// of range, none of the second.
fn tight(layer: usize) -> Vec<Added> {
    let i = layer as f32;
    vec![
        added("self_attn.k_scale", &[2], &[0.003_37 + i * 1e-4, 0.0113 + i * 1e-4]),
        added("self_attn.v_scale", &[2, 1, 1], &[0.003_19, 0.0137 + i * 1e-4]),
    ]
}

/// The output of the attention of one layer in f64, of the rows that its projections see: rotation, rounding and softmax as
/// the formats and the architecture say, and nothing of what is tested.
struct Oracle {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    theta: f64,
    codes: Vec<f64>,
}

impl Oracle {
    fn project(x: &[f64], weight: &[f32], width: usize) -> Vec<f64> {
        let dot = |row: &[f64], w: &[f32]| row.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum::<f64>();
        x.chunks(width).flat_map(|row| weight.chunks(width).map(|w| dot(row, w)).collect::<Vec<_>>()).collect()
    }

    fn rotate(&self, x: &mut [f64], heads: usize) {
        let half = self.dim / 2;
        for (i, head) in x.chunks_mut(self.dim).enumerate() {
            for d in 0..half {
                let angle = (i / heads) as f64 * self.theta.powf(-(d as f64) / half as f64);
                let (a, b) = (head[d], head[d + half]);
                (head[d], head[d + half]) = (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin());
            }
        }
    }

    fn code(&self, x: f64, scale: f32) -> f64 {
        let (x, scale) = (x / f64::from(scale), f64::from(scale));
        let nearest = self.codes.iter().copied().min_by(|a, b| (a - x.abs()).abs().total_cmp(&(b - x.abs()).abs())).unwrap();
        nearest.copysign(x) * scale
    }

    fn attend(&self, rows: &[f32], [q, k, v]: [&[f32]; 3], scales: [&[f32]; 2]) -> Vec<f64> {
        let width = q.len() / (self.heads * self.dim);
        let x: Vec<f64> = rows.iter().map(|&x| f64::from(x)).collect();
        let [mut q, mut k, v] = [q, k, v].map(|w| Self::project(&x, w, width));
        self.rotate(&mut q, self.heads);
        self.rotate(&mut k, self.kv_heads);
        let half = |x: &[f64]| -> Vec<f64> {
            let step = |x: f64| (x.abs().log2().floor().max(-14.0) - 10.0).exp2();
            x.iter().map(|&x| (x / step(x)).round_ties_even() * step(x)).collect()
        };
        let coded = |x: &[f64], scales: &[f32]| -> Vec<f64> {
            x.iter().enumerate().map(|(i, &x)| self.code(x, scales[i / self.dim % self.kv_heads])).collect()
        };
        let near = [half(&k), half(&v)];
        let far = [coded(&near[0], scales[0]), coded(&near[1], scales[1])];
        let tokens = rows.len() / width;
        let mut out = vec![];
        for t in 0..tokens {
            for h in 0..self.heads {
                let kv = h / (self.heads / self.kv_heads);
                let at = |what: usize, j: usize, d: usize| {
                    let from = if j / BLOCK == t / BLOCK { &near } else { &far };
                    from[what][(j * self.kv_heads + kv) * self.dim + d]
                };
                let query = &q[(t * self.heads + h) * self.dim..][..self.dim];
                let score = |j| query.iter().enumerate().map(|(d, q)| q * at(0, j, d)).sum::<f64>() / (self.dim as f64).sqrt();
                let scores: Vec<f64> = (0..=t).map(score).collect();
                let max = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                out.extend((0..self.dim).map(|d| weights.iter().enumerate().map(|(j, w)| w / sum * at(1, j, d)).sum::<f64>()));
            }
        }
        out
    }
}

#[test]
fn attention_of_a_folder_with_scales_matches_f64() {
    let (layer, tokens, hidden) = (1, 70, 32);
    let dir = folder("mistral-nowindow-dense", tight);
    let checkpoint = open(&dir);
    let config = decoder(&checkpoint);
    let weight = |name: &str, rows: usize| checkpoint.dense(&format!("model.layers.{layer}.self_attn.{name}.weight"), &[rows, hidden]);
    let [q, k, v] = [("q_proj", 64), ("k_proj", 32), ("v_proj", 32)].map(|(name, rows)| weight(name, rows).unwrap().to_f32());
    let values = |bits: i32, bias: i32, largest: f64| -> Vec<f64> {
        let value = |code: i32| {
            let (exponent, mantissa) = (code >> bits, f64::from(code & ((1 << bits) - 1)) / 2f64.powi(bits));
            if exponent == 0 { mantissa * 2f64.powi(1 - bias) } else { (1.0 + mantissa) * 2f64.powi(exponent - bias) }
        };
        (0..128).map(value).filter(|v| *v <= largest).collect()
    };
    let rows: Vec<f32> = (0..tokens * hidden).map(|i| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0).collect();
    let observe = |checkpoint: &Checkpoint, kind: KvType, step: usize| {
        let mut layer = LoneLayer::load(checkpoint, &config, layer, backend(2), options(kind)).unwrap();
        let mut seen = vec![];
        layer.observe(&rows, &[tokens], step..step + 1, false, &|_, _| true, &mut |_, _, rows| seen = rows.to_vec());
        seen
    };
    for (kind, codes) in [(KvType::Fp8E4M3, values(3, 7, 448.0)), (KvType::Fp8E5M2, values(2, 15, 57344.0))] {
        let oracle = Oracle { heads: 4, kv_heads: 2, dim: 16, theta: 2000.0, codes };
        let added = tight(layer);
        let scales = [&added[0].values[..], &added[1].values[..]];
        let want = oracle.attend(&observe(&checkpoint, kind, 0), [&q, &k, &v], scales);
        let off = |found: &[f32]| {
            let squares = found.iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>();
            (squares / want.iter().map(|b| b * b).sum::<f64>()).sqrt()
        };
        let found = off(&observe(&checkpoint, kind, 1));
        // f32 against f64; every instruction set gives the same bits, and none of these numbers lies so near a border between
        // two codes that they fall to different sides: a single one that did would be 1e-3
        assert!(found < 1e-5, "{kind:?}: {found}");
        let plain = off(&observe(&Checkpoint::open(&fixture("mistral-nowindow-dense")).unwrap(), kind, 1));
        assert!(plain > 1e-2, "{kind:?}: rows with scales of their own are something else, by {plain}");
    }
}

#[test]
fn the_same_bits_for_chunks_threads_and_packed_caches() {
    let dir = folder("llama-ct-w4a16-g32", tight);
    let checkpoint = open(&dir);
    let mut plain =
        Model::load(&Checkpoint::open(&fixture("llama-ct-w4a16-g32")).unwrap(), backend(1), options(KvType::Fp8E4M3), &mut |_| ()).unwrap();
    let mut model = Model::load(&checkpoint, backend(1), options(KvType::Fp8E4M3), &mut |_| ()).unwrap();
    assert!(model.applies_cache_scales() && !plain.applies_cache_scales());
    assert_eq!(checkpoint.unread(), Vec::<String>::new());
    let want = bits(&model, 60);
    assert_ne!(want, bits(&plain, 60));
    for (threads, step) in [(1, 1), (2, 7), (3, 60)] {
        model.reconfigure(backend(threads), options(KvType::Fp8E4M3));
        assert_eq!(bits(&model, step), want, "{threads} threads, {step} tokens at a time");
    }
    assert_eq!(model.kv_bytes_per_token(), plain.kv_bytes_per_token());
    let caches = tempfile::tempdir().unwrap();
    for made in [true, false] {
        // the kind is no part of what is packed
        let mut model = Model::load_cached(&open(&dir), backend(1), options(KvType::F16), caches.path(), &mut |_| ()).unwrap();
        assert!(model.cache().unwrap().made == made && !model.applies_cache_scales());
        model.reconfigure(backend(1), options(KvType::Fp8E4M3));
        assert_eq!(bits(&model, 60), want, "made {made}");
    }
    for kind in KvType::ALL.into_iter().filter(|k| !k.takes_scales()) {
        model.reconfigure(backend(1), options(kind));
        assert!(!model.applies_cache_scales(), "{kind:?}");
    }
    model.reconfigure(backend(1), options(KvType::F16));
    plain.reconfigure(backend(1), options(KvType::F16));
    assert_eq!(bits(&model, 60), bits(&plain, 60));
}

#[test]
fn scales_under_every_name_and_in_every_shape() {
    let of = |layer: usize| (0.000_41 + layer as f32 * 1e-4, 0.000_053);
    let named = |keys: &'static str, values: &'static str, shape: &'static [usize]| {
        let dir = folder("llama-ct-w4a16-g32", |i| {
            let count = shape.iter().product();
            let (k, v) = of(i);
            vec![added(keys, shape, &vec![k; count]), added(values, shape, &vec![v; count])]
        });
        let compared = decoder(&open(&dir)).compare(&open(&dir));
        assert_eq!((compared.missing, compared.unused), (vec![], vec![]), "{keys}");
        // what is no part of a module's weight is kept by whoever writes the weight anew
        assert!(
            !open(&dir).is_part(&format!("model.layers.0.{keys}")) && !open(&dir).is_part(&format!("model.layers.0.{values}")),
            "{keys}"
        );
        logits(&dir, KvType::Fp8E4M3)
    };
    let want = named("self_attn.k_scale", "self_attn.v_scale", &[]);
    for (keys, values, shape) in [
        ("self_attn.k_scale", "self_attn.v_scale", &[1][..]),
        ("self_attn.k_scale", "self_attn.v_scale", &[2, 1, 1]),
        ("self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale", &[1]),
        ("self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale", &[1, 1]),
    ] {
        assert_eq!(named(keys, values, shape), want, "{keys} {shape:?}");
    }
    let one = folder("llama-ct-w4a16-g32", |_| vec![added("self_attn.kv_scale", &[], &[0.000_5])]);
    let both =
        folder("llama-ct-w4a16-g32", |_| vec![added("self_attn.k_scale", &[], &[0.000_5]), added("self_attn.v_scale", &[], &[0.000_5])]);
    assert_eq!(logits(&one, KvType::Fp8E4M3), logits(&both, KvType::Fp8E4M3));
}

#[test]
fn wrong_scales_are_errors_with_their_names() {
    let good = || added("self_attn.v_scale", &[1], &[0.1]);
    let error = |layer: &dyn Fn(usize) -> Vec<Added>| {
        let dir = folder("llama-ct-w4a16-g32", layer);
        let errors = [KvType::Fp8E4M3, KvType::F16]
            .map(|kind| Model::load(&open(&dir), backend(1), options(kind), &mut |_| ()).err().unwrap().to_string());
        assert_eq!(errors[0], errors[1], "whether they are used now or not");
        errors[0].clone()
    };
    let last = |shape: &'static [usize], values: &'static [f32]| {
        error(&move |i| {
            vec![if i == 1 { added("self_attn.k_scale", shape, values) } else { added("self_attn.k_scale", &[], &[1.0]) }, good()]
        })
    };
    for (found, parts) in [
        (last(&[3], &[1.0; 3]), ["expected one scale, or one for each of 2 KV heads", "found shape [3]"]),
        (last(&[2, 2], &[1.0; 4]), ["expected one scale, or one for each of 2 KV heads", "found shape [2, 2]"]),
        (last(&[1], &[0.0]), ["expected finite scales above 0", "found 0"]),
        (last(&[2], &[1.0, -0.5]), ["expected finite scales above 0", "found -0.5"]),
        (last(&[1], &[f32::INFINITY]), ["expected finite scales above 0", "found inf"]),
        (last(&[2], &[f32::NAN, 1.0]), ["expected finite scales above 0", "found NaN"]),
        (
            error(&|i| if i == 0 { vec![added("self_attn.k_scale", &[], &[1.0]), good()] } else { vec![] }),
            ["in every layer", "none of that name"],
        ),
        (
            error(&|i| if i == 0 { vec![added("self_attn.k_scale", &[], &[1.0]), good()] } else { vec![good()] }),
            ["in every layer", "none of that name"],
        ),
    ] {
        for part in parts.into_iter().chain(["tensor `model.layers.1.self_attn.k_scale`", "calibrate the cache again"]) {
            assert!(found.contains(part), "{part} in {found}");
        }
    }
}

#[test]
fn a_scheme_that_is_not_applied_is_told_and_one_that_is_is_not() {
    let told = |dir: &tempfile::TempDir, kind: Option<KvType>| {
        let checkpoint = open(dir);
        let warnings = checkpoint.warnings().iter().map(Warning::to_string).collect::<Vec<_>>();
        let mut all: Vec<String> = warnings.into_iter().filter(|w| w.contains("cache")).collect();
        all.extend(decoder(&checkpoint).cache_note(&checkpoint, kind));
        all
    };
    let kinds = || KvType::ALL.into_iter().map(Some).chain([None]);
    let bare = folder("llama-ct-w4a16-g32", |_| vec![]);
    assert!(kinds().all(|kind| told(&bare, kind).is_empty()));
    let scaled = folder("llama-ct-w4a16-g32", tight);
    for with_scheme in [false, true] {
        if with_scheme {
            scheme(&scaled, floats());
        }
        for kind in kinds() {
            let told = told(&scaled, kind);
            assert_eq!(told.is_empty(), kind.is_some_and(KvType::takes_scales), "{kind:?} {told:?}");
            assert!(told.iter().all(|t| t.contains("not applied") && t.contains("--kv-cache-dtype fp8_e4m3")), "{told:?}");
        }
    }
    scheme(&bare, floats());
    assert!(kinds().all(|kind| told(&bare, kind).len() == 1 && told(&bare, kind)[0].contains("has no scales for it: it is not applied")));
    // integers, or scales that are found while it runs: nothing that is in the folder is taken for them
    let mut dynamic = floats();
    dynamic["dynamic"] = json!(true);
    for other in [json!({"num_bits": 8, "type": "int"}), dynamic] {
        scheme(&scaled, other);
        assert!(kinds().all(|kind| told(&scaled, kind).len() == 1 && told(&scaled, kind)[0].ends_with("it is not applied")));
        let checkpoint = open(&scaled);
        let model = Model::load(&checkpoint, backend(1), options(KvType::Fp8E4M3), &mut |_| ()).unwrap();
        assert!(!model.applies_cache_scales());
        assert_eq!(checkpoint.unread().len(), 2 * LAYERS);
    }
}
