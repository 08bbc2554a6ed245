//! Predicted sizes are those of the folder that is written, to the byte.

mod common;

use billfish_formats::{Checkpoint, Dynamic, GroupSize, ModuleShape, Target, TensorSpec, folder_sizes, module_tensors, safetensors_header};
use billfish_kernels::{Backend, Isa};
use billfish_quantize::gptq::{Order, Search};
use billfish_quantize::{Job, Method, Outcome, Recipe, Statistics, predicted_bytes, quantize, synth};
use billfish_tensor::DType;
use common::{fixture, fresh};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Bytes of the files that hold weights, and their number.
fn weights(dir: &Path) -> (u64, usize) {
    let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    let sizes = files.filter(|e| e.file_name().to_str().unwrap().contains(".safetensors")).map(|e| e.metadata().unwrap().len());
    let sizes: Vec<u64> = sizes.collect();
    (sizes.iter().sum(), sizes.len())
}

fn write(source: &Checkpoint, recipe: &Recipe, out: &Path) -> u64 {
    quantized(source, recipe, &[], out).written.unwrap().bytes
}

fn quantized(source: &Checkpoint, recipe: &Recipe, samples: &[Vec<u32>], out: &Path) -> Outcome {
    let (stop, backend) = (AtomicBool::new(false), Arc::new(Backend::new(Isa::choose(None).unwrap(), 2).unwrap()));
    let job = Job { source, out, recipe, samples, backend, memory: None, resume: false, statistics: Statistics::Forget, stop: &stop };
    quantize(&job, &mut |_| ()).unwrap()
}

#[test]
fn predicted_bytes_are_those_of_the_file() {
    let rules = serde_json::json!({"-:.*k_proj": {}, "+:.*down_proj": {"bits": 8, "group_size": 64}, "+:.*up_proj": {"sym": false}});
    let rules = Dynamic::parse("rules", &rules).unwrap();
    let none = Dynamic::default();
    let cases = [
        ("tiny", "gptq", 4, true, Some(32), Order::Gar, false, &none),
        ("tiny", "gptq", 3, false, Some(64), Order::Desc, true, &rules),
        ("tiny", "gptq_v2", 2, false, None, Order::Static, false, &rules),
        ("tiny", "gptq_p", 5, false, Some(48), Order::None, true, &rules),
        ("tiny", "awq", 4, false, Some(32), Order::Gar, true, &none),
        ("tiny", "compressed-tensors", 8, true, Some(32), Order::Gar, false, &none),
        ("tiny", "compressed-tensors", 3, false, Some(32), Order::Gar, true, &rules),
        ("tiny-moe", "gptq_v2", 4, true, Some(32), Order::Gar, true, &rules),
    ];
    for (at, (spec, format, bits, sym, group_size, order, lm_head, dynamic)) in cases.into_iter().enumerate() {
        let (dir, out) = (fresh(&format!("size-{at}-source")), fresh(&format!("size-{at}")));
        synth(&spec.parse().unwrap(), &dir, 1, true, 7, &[], &mut |_, _| ()).unwrap();
        let source = Checkpoint::open(&dir).unwrap();
        let target: Target = format.parse().unwrap();
        let recipe = Recipe {
            bits,
            sym,
            target,
            order,
            lm_head,
            group_size,
            method: Method::Rtn,
            search: Search::MinMax,
            dynamic: dynamic.clone(),
            ..Recipe::default()
        };
        let predicted = predicted_bytes(&source, &recipe).unwrap();
        let written = write(&source, &recipe, &out);
        let name = format!("{spec} {format} {bits}");
        assert_eq!(predicted.total.tensors, written, "{name}");
        assert_eq!((predicted.total.files, predicted.total.shards), weights(&out), "{name}");
        // each module by itself, from what the loader says of it
        let opened = Checkpoint::open(&out).unwrap();
        assert_eq!(predicted.modules.len(), opened.quantized_modules().len(), "{name}");
        for (linear, settings, bytes) in &predicted.modules {
            let found = opened.describe(&linear.name).unwrap();
            assert_eq!((found.bytes, found.bits), (*bytes, settings.grid.bits), "{name} {}", linear.name);
        }
    }
}

#[test]
fn experts_in_one_tensor_and_quantized_sources() {
    for (name, requantize, lm_head) in [
        ("qwen2moe-stacked-dense", false, false),
        ("qwen2moe-stacked-dense", false, true),
        ("llama-w4-sym-g32-act", true, false),
        ("llama-awq-asym-g32", true, false),
        ("llama-w4-lmhead", true, true),
    ] {
        let (source, out) = (Checkpoint::open(&fixture(name)).unwrap(), fresh(&format!("size-{name}-{lm_head}")));
        for (target, bits, sym) in [(Target::GptqV2, 3, false), (Target::CompressedTensors, 8, true)] {
            let recipe = Recipe { bits, sym, target, lm_head, requantize, group_size: Some(16), method: Method::Rtn, ..Recipe::default() };
            let predicted = predicted_bytes(&source, &recipe).unwrap();
            assert_eq!(predicted.total.tensors, write(&source, &recipe, &out), "{name} {target}");
            assert_eq!((predicted.total.files, predicted.total.shards), weights(&out), "{name} {target}");
            out.clear();
        }
    }
}

/// Norms, biases and routers that take factors keep their types.
#[test]
fn factors_change_no_size() {
    let rules = Dynamic::parse("rules", &serde_json::json!({"-:.*k_proj": {}})).unwrap();
    for (name, target, method) in [
        ("glm4moe-dense", Target::Awq, Method::Awq),
        ("llama-biases-dense", Target::CompressedTensors, Method::AwqGptq),
        ("qwen2moe-stacked-dense", Target::Gptq, Method::Awq),
    ] {
        let (source, out) = (Checkpoint::open(&fixture(name)).unwrap(), fresh(&format!("size-factors-{name}")));
        let (group_size, dynamic, search) = (Some(16), rules.clone(), Search::MinMax);
        let recipe = Recipe { target, method, group_size, dynamic, search, fallback_rows: 1, ..Recipe::default() };
        let samples: Vec<Vec<u32>> = (1..5).map(|s| (0..30).map(|i| (i * i + 7 * s) % 60).collect()).collect();
        let predicted = predicted_bytes(&source, &recipe).unwrap();
        let written = quantized(&source, &recipe, &samples, &out);
        assert!(written.modules.iter().any(|m| m.scaling.as_ref().unwrap().alpha > 0.0), "{name}: factors of some");
        assert_eq!(predicted.total.tensors, written.written.unwrap().bytes, "{name}");
        assert_eq!((predicted.total.files, predicted.total.shards), weights(&out), "{name}");
    }
}

#[test]
fn what_a_format_cannot_hold_has_no_size() {
    let dir = fresh("size-refused");
    synth(&"tiny".parse().unwrap(), &dir, 1, true, 7, &[], &mut |_, _| ()).unwrap();
    let source = Checkpoint::open(&dir).unwrap();
    let refused = |recipe: Recipe| predicted_bytes(&source, &recipe).unwrap_err().to_string();
    let message = refused(Recipe { bits: 3, target: Target::Awq, ..Recipe::default() });
    assert!(message.contains("3 bits") && message.contains("awq"), "{message}");
    let rules = Dynamic::parse("rules", &serde_json::json!({"+:.*down_proj": {"group_size": 32}})).unwrap();
    let message = refused(Recipe { target: Target::Awq, group_size: Some(64), dynamic: rules, ..Recipe::default() });
    assert!(message.contains("down_proj") && message.contains("one size"), "{message}");
}

/// A folder of several shards has an index, which counts.
#[test]
fn shards_and_their_index_are_counted() {
    let module = |i: usize| ModuleShape {
        module: format!("m.{i}"),
        in_features: 1 << 16,
        out_features: 1 << 16,
        bits: 4,
        group_size: GroupSize::Rows(128),
        groups: 512,
        act_order: false,
        sym: true,
        scales: DType::F16,
    };
    let modules = [module(0), module(1)];
    let sizes = folder_sizes("made", &modules, vec![], Target::GptqV2).unwrap();
    // 2 GiB of codes each: no two in one file of 4 GB
    assert_eq!(sizes.shards, 2);
    let specs: Vec<_> = modules.iter().map(|m| module_tensors(m, Target::GptqV2).unwrap()).collect();
    let mut expected = 0;
    let mut map = serde_json::Map::new();
    // every tensor of the first goes before those of the second, and only its last may begin the second file
    let all: Vec<_> = specs.concat();
    let bytes = |spec: &TensorSpec| spec.2.iter().product::<usize>() as u64 * spec.1.size() as u64;
    let mut files: Vec<Vec<TensorSpec>> = vec![vec![], vec![]];
    let mut size = 0;
    for spec in all {
        size += bytes(&spec);
        let at = usize::from(size > 4_000_000_000);
        map.insert(spec.0.clone(), format!("model-{:05}-of-00002.safetensors", at + 1).into());
        files[at].push(spec);
    }
    for file in &files {
        expected += file.iter().map(bytes).sum::<u64>() + safetensors_header("made", file).unwrap().len() as u64;
    }
    assert_eq!(sizes.tensors, files.concat().iter().map(bytes).sum::<u64>());
    let index = serde_json::json!({"metadata": {"total_size": sizes.tensors}, "weight_map": map});
    assert_eq!(sizes.files, expected + format!("{index:#}\n").len() as u64);
}
