//! Every committed folder against the logits that another program computed for it (f32, from an independent reader).

use billfish_formats::Checkpoint;
use billfish_kernels::{Activations, Backend, Isa};
use billfish_models::{LoadOptions, Logits, Model, Scratch};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn folders() -> Vec<String> {
    let entries = std::fs::read_dir(fixtures().join("expected")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect();
    names.sort();
    assert!(names.len() > 50, "{names:?}");
    names
}

fn load(name: &str, activations: Activations, isa: Isa, threads: usize) -> Model {
    let checkpoint = Checkpoint::open(&fixtures().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let backend = Arc::new(Backend::new(isa, threads).unwrap());
    let options = LoadOptions { activations, ..LoadOptions::default() };
    let model = Model::load(&checkpoint, backend, options, &mut |_| ()).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(checkpoint.unread(), Vec::<String>::new(), "{name}: tensors that nobody read");
    model
}

struct Expected {
    ids: Vec<u32>,
    logits: Vec<f32>,
    greedy: Vec<u32>,
}

fn expected(name: &str) -> Expected {
    let bytes = std::fs::read(fixtures().join("expected").join(format!("{name}.safetensors"))).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ids = |n: &str| file.tensor(n).unwrap().data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
    let logits = file.tensor("logits").unwrap().data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Expected { ids: ids("input_ids"), logits, greedy: ids("greedy_ids") }
}

fn all_logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let mut cache = model.new_cache(ids.len());
    model.forward(&mut cache, ids, Logits::All, &mut Scratch::default()).unwrap().to_vec()
}

fn largest(v: &[f32]) -> f32 {
    v.iter().fold(0.0, |m, x| m.max(x.abs()))
}

fn best(logits: &[f32]) -> (usize, f32) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    (order[0], logits[order[0]] - logits[order[1]])
}

fn conforms(activations: Activations, tolerance: f32) {
    let mut worst = 0.0f32;
    for name in folders() {
        let want = expected(&name);
        let model = load(&name, activations, Isa::choose(None).unwrap(), 2);
        let logits = all_logits(&model, &want.ids);
        let scale = largest(&want.logits);
        let difference = logits.iter().zip(&want.logits).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / scale;
        println!("{name:32} {activations:?} {difference:.2e}");
        assert!(difference <= tolerance, "{name}: logits differ by {difference:e} of the largest, allowed {tolerance:e}");
        worst = worst.max(difference);

        // the reference recomputes every step from the first token, so the length planned for is the step's own
        let mut ids = want.ids[..8].to_vec();
        for (step, &next) in want.greedy.iter().enumerate() {
            let logits = all_logits(&model, &ids);
            let (found, margin) = best(&logits[logits.len() - model.config().vocab_size..]);
            if found as u32 != next {
                assert!(
                    margin <= 2.0 * tolerance * scale,
                    "{name}: greedy step {step} is {found}, expected {next}, with a margin of {margin}"
                );
                break;
            }
            ids.push(next);
        }
    }
    println!("worst {worst:.2e}");
}

#[test]
fn strict_logits_and_greedy_ids() {
    conforms(Activations::Strict, 2e-5);
}

#[test]
fn exact_logits_and_greedy_ids() {
    conforms(Activations::Exact, 1e-3);
}

/// The same bytes for every thread count, chunking and instruction set.
#[test]
fn the_same_bytes_however_it_is_run() {
    for name in [
        "llama-w4-sym-g32-act",
        "llama-w3-asym-g32",
        "llama-dynamic",
        "qwen3-w4-sym-g32-act",
        "mistral-w4-asym-g32",
        "glm4-w4-sym-g32",
        "llama-rope-dynamic-dense",
        "llama-awq-asym-g32",
        "llama-ct-w3a16-g32",
        "mixtral-w4-sym-g32",
        "qwen2moe-w4-sym-g32",
        "qwen2moe-stacked-dense",
        "qwen3moe-w8-sym-g32",
        "glm4moe-w4-sym-g32",
    ] {
        let ids = expected(name).ids;
        for activations in Activations::ALL {
            let mut first: Option<Vec<f32>> = None;
            for isa in Isa::available() {
                for threads in [1, 2] {
                    let model = load(name, activations, isa, threads);
                    for step in [ids.len(), 7, 1] {
                        let mut cache = model.new_cache(ids.len());
                        let mut scratch = Scratch::default();
                        let mut logits = vec![];
                        for chunk in ids.chunks(step) {
                            logits.extend_from_slice(model.forward(&mut cache, chunk, Logits::All, &mut scratch).unwrap());
                        }
                        let first = first.get_or_insert_with(|| logits.clone());
                        let same = logits.iter().zip(first.iter()).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same && logits.len() == first.len(), "{name} {activations:?} {isa:?} {threads} threads, chunks of {step}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_an_error_and_runs_nothing() {
    let model = load("llama-w4-sym-g128", Activations::Exact, Isa::Scalar, 1);
    let mut cache = model.new_cache(8);
    let error = model.forward(&mut cache, &[1, 320], Logits::Last, &mut Scratch::default()).unwrap_err().to_string();
    assert!(error.contains("320") && error.contains("position 1"), "{error}");
    assert!(cache.is_empty());
}
