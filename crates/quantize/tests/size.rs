//! Predicted sizes are those of the folder that is written, to the byte.

mod common;

use billfish_formats::{Checkpoint, Dynamic, GroupSize, ModuleShape, Target, TensorSpec, folder_sizes, module_tensors, safetensors_header};
use billfish_kernels::{Backend, Isa};
use billfish_quantize::gptq::{Order, Search};
use billfish_quantize::{Job, Method, Recipe, predicted_bytes, quantize, synth};
use billfish_tensor::DType;
use common::fresh;
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
    let (stop, backend) = (AtomicBool::new(false), Arc::new(Backend::new(Isa::choose(None).unwrap(), 2).unwrap()));
    let job = Job { source, out, recipe, samples: &[], backend, memory: None, resume: false, stop: &stop };
    quantize(&job, &mut |_| ()).unwrap().written.unwrap().bytes
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
