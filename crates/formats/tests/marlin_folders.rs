//! Folders in the Marlin layout: read, explained, verified and written, against packers that share nothing with the crate.

mod common;

use billfish_formats::{
    BiasRule, Checkpoint, CheckpointFormat, Explanation, GroupSize, LinearWeight, Target, ZeroDialect, convert, explain, serially, verify,
};
use billfish_tensor::{DType, Groups, QuantMatrix, Zeros, oracle};
use common::{Folder, Temp, Tensor, fixture, holds};
use serde_json::{Value, json};
use std::path::Path;

/// Codes of `[k, n]` in tiles, by the loop that the programs had: 16 × 16 blocks, one permutation of 1024 places, eight codes
/// a word.
fn tiles(codes: &[u8], k: usize, n: usize) -> Vec<u32> {
    let mut places = vec![];
    for lane in 0..32 {
        let base: Vec<usize> =
            [0, 8].iter().flat_map(|block| [0, 1, 8, 9].map(|row| 16 * (2 * (lane % 4) + row) + lane / 4 + block)).collect();
        for tile in 0..4 {
            places.extend([0, 2, 4, 6, 1, 3, 5, 7].map(|i| base[i] + 256 * tile));
        }
    }
    let mut blocks = vec![];
    for row in (0..k).step_by(16) {
        for col in (0..n).step_by(16) {
            blocks.extend((0..256).map(|i| codes[(row + i / 16) * n + col + i % 16]));
        }
    }
    let ordered: Vec<u8> = blocks.chunks(1024).flat_map(|b| places.iter().map(|&p| b[p])).collect();
    ordered.chunks(8).map(|c| c.iter().rev().fold(0, |w, &q| w << 4 | u32::from(q))).collect()
}

/// Scales of `[groups, n]` in the order of the lanes.
fn lanes(scales: &[f32], single: bool) -> Vec<f32> {
    let order: Vec<usize> = if single {
        (0..4).flat_map(|i| [0, 1, 8, 9, 16, 17, 24, 25].map(|j| 2 * i + j)).collect()
    } else {
        (0..8).flat_map(|i| (0..8).map(move |j| i + 8 * j)).collect()
    };
    scales.chunks(order.len()).flat_map(|c| order.iter().map(|&i| c[i]).collect::<Vec<_>>()).collect()
}

struct Case {
    folder: Folder,
    weights: Vec<f64>,
}

fn config(group: i64) -> Value {
    json!({"quant_method": "gptq", "bits": 4, "group_size": group, "sym": true, "desc_act": false, "checkpoint_format": "marlin"})
}

fn case(k: usize, n: usize, group: i64, config: &Value, names: [&str; 2]) -> Case {
    let rows = if group < 0 { k } else { group as usize };
    let codes: Vec<u8> = (0..k * n).map(|i| ((i as u32).wrapping_mul(0x9e37_79b9) >> 28) as u8).collect();
    let scales: Vec<f32> = (0..k / rows * n).map(|i| (i as f32 - 17.0) / 64.0).collect();
    let weight = |i: usize| (f64::from(codes[i]) - 8.0) * f64::from(scales[i / n / rows * n + i % n]);
    let parts = [
        (names[0], Tensor::words(&[k / 16, 2 * n], &tiles(&codes, k, n))),
        (names[1], Tensor::f16(&[k / rows, n], &lanes(&scales, k == rows))),
    ];
    Case { folder: Folder::of_parts(config, &parts), weights: (0..k * n).map(weight).collect() }
}

fn module(c: &Checkpoint, name: &str) -> QuantMatrix {
    let r = c.describe(name).unwrap();
    match c.linear(name, r.in_features, r.out_features, BiasRule::Optional).unwrap() {
        LinearWeight::Quantized(m) => m,
        LinearWeight::Dense { .. } => panic!("{name} is dense"),
    }
}

#[test]
fn tiles_are_read_in_every_shape() {
    for (k, n, group) in [(256, 128, 128), (128, 64, -1), (256, 192, -1), (128, 64, 128), (16, 64, -1), (1024, 256, 128)] {
        let case = case(k, n, group, &config(group), ["B", "s"]);
        let dir = case.folder.write();
        let open = Checkpoint::open(&dir.0).unwrap();
        let r = open.describe("m").unwrap();
        assert_eq!((r.in_features, r.out_features, r.bits, r.groups), (k, n, 4, if group < 0 { 1 } else { k / 128 }));
        assert_eq!((r.format, r.zeros, r.midpoint, r.act_order), (CheckpointFormat::Marlin, ZeroDialect::Absent, true, false));
        let m = module(&open, "m");
        assert!(oracle::dequantize(&m) == case.weights, "[{k}, {n}] {group}");
        assert_eq!(m.zeros(), &Zeros::Midpoint);
        assert!(matches!(m.groups(), Groups::Contiguous { .. }));
        assert_eq!((open.unread(), open.warnings().len()), (vec![], 0));
    }
}

#[test]
fn bias_workspace_and_one_weight() {
    let mut case = case(256, 128, 128, &config(128), ["B", "s"]);
    let bias: Vec<f32> = (0..128).map(|i| i as f32 / 4.0).collect();
    case.folder.put("m.bias", Tensor::f16(&[128], &bias));
    case.folder.put("m.workspace", Tensor::words(&[16], &[0; 16]));
    let dir = case.folder.write();
    let open = Checkpoint::open(&dir.0).unwrap();
    assert_eq!(module(&open, "m").bias(), Some(bias.as_slice()));
    assert!(open.unread().is_empty(), "the workspace belongs to the module");
    for (row, col) in [(0, 0), (17, 5), (255, 127), (128, 64)] {
        let Explanation::Quantized(w) = explain(&open, &format!("m[{row}, {col}]")).unwrap() else { panic!("dense") };
        assert_eq!((w.value, w.zero, w.group), (case.weights[row * 128 + col], 8, row / 128));
        assert!(w.code_bits.is_empty() && w.stored_zero.is_none(), "the file has other words than the matrix");
    }
}

/// Every way in which a config says it, and the ways in which it says so of other tensors.
#[test]
fn configs_that_say_marlin() {
    let old = json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true, "desc_act": false, "is_marlin_format": true});
    let first = json!({"quant_method": "marlin", "group_size": 128, "sym": true});
    let awq = json!({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": false, "version": "marlin"});
    for (config, names) in [(&old, ["B", "s"]), (&first, ["B", "s"]), (&awq, ["qweight", "scales"])] {
        let case = case(256, 64, 128, config, names);
        let dir = case.folder.write();
        let open = Checkpoint::open(&dir.0).unwrap();
        assert_eq!(open.quantization().unwrap().format, CheckpointFormat::Marlin);
        assert!(oracle::dequantize(&module(&open, "m")) == case.weights, "{config}");
        assert_eq!((open.unread(), open.warnings().len()), (vec![], 0), "{config}");
    }
    // tensors in the layout under a config of another, and the reverse
    let mut other = old.clone();
    other["is_marlin_format"] = json!(false);
    let case = case(256, 64, 128, &other, ["B", "s"]);
    let dir = case.folder.write();
    let open = Checkpoint::open(&dir.0).unwrap();
    assert!(oracle::dequantize(&module(&open, "m")) == case.weights);
    holds(&open.warnings()[0].to_string(), &["the config says gptq, but the tensors are marlin: they are followed"]);
    let name = "llama-w4-sym-g128";
    let plain = Checkpoint::open(&fixture(name)).unwrap();
    for (key, value) in [("checkpoint_format", json!("marlin")), ("is_marlin_format", json!(true))] {
        let mut folder = Folder::of(name);
        folder.quantization(|map| drop(map.remove("format")));
        let dir = folder.set(key, value).write();
        let open = Checkpoint::open(&dir.0).unwrap();
        for m in plain.quantized_modules() {
            assert!(oracle::dequantize(&module(&open, &m)) == oracle::dequantize(&module(&plain, &m)), "{m}");
            assert_eq!(open.describe(&m).unwrap().format, CheckpointFormat::Gptq);
        }
        holds(&open.warnings()[0].to_string(), &["the config says marlin, but the tensors are gptq: they are followed"]);
    }
}

/// The error of reading a changed folder.
fn error(change: impl FnOnce(&mut Folder) -> &mut Folder) -> String {
    let mut folder = case(256, 128, 128, &config(128), ["B", "s"]).folder;
    let dir = change(&mut folder).write();
    match Checkpoint::open(&dir.0) {
        Ok(open) => open.linear("m", 256, 128, BiasRule::Optional).expect_err("the module must not be read").to_string(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn hostile_tensors_and_configs() {
    let tensor = |part: &str| format!("tensor `m.{part}`");
    holds(&error(|f| f.remove("m.s")), &["tensor `m.s`", "none of that name"]);
    holds(&error(|f| f.edit("m.B", |t| t.shape = vec![32, 128])), &[&tensor("B"), "shape [16, 256]", "found shape [32, 128]"]);
    holds(&error(|f| f.edit("m.s", |t| t.shape = vec![256])), &[&tensor("s"), "shape [2, 128] (group_size 128)"]);
    holds(&error(|f| f.edit("m.s", |t| t.dtype = DType::I16)), &[&tensor("s"), "dtype F16 or BF16 or F32"]);
    holds(&error(|f| f.set("group_size", json!(64))), &[&tensor("s"), "shape [4, 128] (group_size 64), found shape [2, 128]"]);
    for (key, value, found) in [("bits", json!(8), "8 bit"), ("sym", json!(false), "4 bit, asymmetric")] {
        holds(&error(|f| f.set(key, value.clone())), &[&tensor("B"), "4 bit, symmetric in the marlin layout", found]);
    }
    // a NaN at [1, 3] as stored
    let nan = |t: &mut Tensor| t.bytes[2 * 131..2 * 132].copy_from_slice(&[0, 0x7e]);
    holds(&error(|f| f.edit("m.s", nan)), &[&tensor("s"), "a finite number, found NaN at [1, 3]"]);
    let order: Vec<u32> = (0..256).rev().map(|k| k / 128).collect();
    holds(&error(|f| f.put("m.g_idx", Tensor::words(&[256], &order))), &[&tensor("g_idx"), "the marlin layout has no act-order"]);
    holds(&error(|f| f.put("m.qweight", Tensor::words(&[1, 1], &[0]))), &["either `m.qweight` or `m.B`, found both"]);
    holds(&error(|f| f.set("quant_method", json!("marlin")).set("checkpoint_format", json!("gptq"))), &["`marlin`, as `quant_method`"]);
    holds(&error(|f| f.set("is_marlin_format", json!("yes"))), &["key `quantization_config.is_marlin_format`", "true or false"]);
    let sizes = case(32, 64, -1, &config(-1), ["B", "s"]).folder.write();
    for (k, n) in [(24, 64), (32, 32), (usize::MAX, 64), (32, usize::MAX), (0, 64)] {
        assert!(Checkpoint::open(&sizes.0).unwrap().linear("m", k, n, BiasRule::Optional).is_err(), "[{k}, {n}]");
    }
    // another tensor of that name is none of ours
    let mut dense = Folder { tensors: Default::default(), files: Default::default() };
    dense.json("config.json", "{}").put("m.B", Tensor::f32(&[2], &[1.0; 2])).put("m.weight", Tensor::f32(&[2, 2], &[1.0; 4]));
    let dir = dense.write();
    let open = Checkpoint::open(&dir.0).unwrap();
    assert!(!open.is_quantized("m").unwrap() && open.quantized_modules().is_empty());
}

fn run(from: &Path, to: Target, lossy: bool) -> Result<(Temp, Checkpoint), String> {
    let out = Temp::new();
    convert(&Checkpoint::open(from).unwrap(), &out.0, to, lossy, &mut |_, _| ()).map_err(|e| e.to_string())?;
    let open = Checkpoint::open(&out.0).unwrap();
    Ok((out, open))
}

fn equal(a: &Path, b: &Path) -> bool {
    let open = |p| Checkpoint::open(p).unwrap();
    verify(&open(a), &open(b), &serially, &mut |_, _| ()).unwrap().equal()
}

/// From every format that holds such weights, there and back.
#[test]
fn folders_go_there_and_back() {
    for (name, group) in [("llama-w4-sym-g128", GroupSize::Rows(128)), ("llama-w4-sym-channel", GroupSize::Channel)] {
        let home = fixture(name);
        for via in [Target::Gptq, Target::GptqV2, Target::GptqP, Target::Awq, Target::CompressedTensors] {
            let (before, source) = run(&home, via, false).unwrap();
            let (there, open) = run(&before.0, Target::Marlin, false).unwrap_or_else(|e| panic!("{name} by {via}: {e}"));
            assert!(equal(&home, &there.0), "{name} by {via}");
            assert_eq!(open.quantization().unwrap().group_size, group);
            assert_eq!((open.warnings().len(), open.quantized_modules()), (0, source.quantized_modules()));
            let (back, _) = run(&there.0, Target::Gptq, false).unwrap();
            assert!(equal(&home, &back.0), "{name} by {via} and back");
            for module in source.quantized_modules() {
                let [old, new] = [&home, &back.0].map(|dir| raw(dir, &format!("{module}.qweight")));
                assert!(old == new, "{module}: the words that the other program wrote");
            }
            // and once more, which changes no byte
            let (again, _) = run(&there.0, Target::Marlin, false).unwrap();
            for file in ["model.safetensors", "config.json", "quantize_config.json"] {
                assert!(std::fs::read(again.0.join(file)).unwrap() == std::fs::read(there.0.join(file)).unwrap(), "{file}");
            }
        }
    }
}

fn raw(dir: &Path, tensor: &str) -> Vec<u8> {
    let source = billfish_formats::Source::open(&dir.join("model.safetensors")).unwrap();
    let info = billfish_formats::Header::read(&source).unwrap().tensors[tensor].clone();
    let mut bytes = vec![0; info.bytes];
    source.read_at(info.offset, &mut bytes).unwrap();
    bytes
}

/// What is written is, tensor by tensor, what the independent packer writes, and the config is what loaders look for.
#[test]
fn written_tensors_are_those_of_the_other_programs() {
    for (k, n, group) in [(256, 128, 128), (256, 64, -1), (128, 64, 128)] {
        let folder = case(k, n, group, &config(group), ["B", "s"]).folder;
        let dir = folder.write();
        let (gptq, _) = run(&dir.0, Target::Gptq, false).unwrap();
        let (written, open) = run(&gptq.0, Target::Marlin, false).unwrap();
        for part in ["m.B", "m.s"] {
            assert!(raw(&written.0, part) == folder.tensors[part].bytes, "{part} [{k}, {n}] {group}");
        }
        assert_eq!(open.tensor_names().collect::<Vec<_>>(), ["m.B", "m.s"]);
        let config: Value = serde_json::from_slice(&open.file("quantize_config.json").unwrap().unwrap()).unwrap();
        let has = |key: &str, value: Value| assert_eq!(config[key], value, "{key}");
        [("quant_method", json!("gptq")), ("checkpoint_format", json!("marlin")), ("is_marlin_format", json!(true))]
            .into_iter()
            .chain([("bits", json!(4)), ("group_size", json!(group)), ("sym", json!(true)), ("desc_act", json!(false))])
            .for_each(|(key, value)| has(key, value));
        assert_eq!(open.config()["quantization_config"], config);
    }
}

#[test]
fn what_it_cannot_hold_is_refused_and_listed() {
    for (name, parts) in [
        ("llama-w4-sym-g128", &[][..]),
        ("llama-w4-sym-g32-v2", &["`model.layers.0.mlp.down_proj` has groups of 32 rows", "128 or one a column", "more modules"]),
        ("llama-w8-sym-channel-act", &["has 8 bits, and marlin has 4"]),
        ("llama-w4-sym-g32-act", &["is act-order, and marlin has no `g_idx`", "layers.1"]),
    ] {
        match run(&fixture(name), Target::Marlin, true) {
            Ok(_) => assert!(parts.is_empty(), "{name}"),
            Err(e) => holds(&e, parts),
        }
    }
    // a dense module among quantized ones of its kind has no place in the config
    let mut mixed = Folder::of("llama-w4-sym-g128");
    let name = "model.layers.1.mlp.down_proj";
    for part in ["qweight", "qzeros", "scales", "g_idx"] {
        mixed.remove(&format!("{name}.{part}"));
    }
    mixed.put(&format!("{name}.weight"), Tensor::f32(&[128, 256], &vec![0.5; 128 * 256]));
    let error = run(&mixed.write().0, Target::Marlin, true).unwrap_err();
    holds(&error, &["modules are dense that others of their kind are not", name]);
    let shape = case(128, 64, -1, &config(-1), ["B", "s"]).folder;
    assert!(run(&shape.write().0, Target::Marlin, false).is_ok());
    let small = case(64, 64, -1, &config(-1), ["B", "s"]).folder;
    holds(&run(&small.write().0, Target::Marlin, true).unwrap_err(), &["`m` is [64, 64]", "multiples of 128 rows and 64 columns"]);
}

/// Asymmetric modules and scales of other types: lossless, or refused, or the nearest weights that there are.
#[test]
fn zero_points_and_scales_beyond_the_layout() {
    let (k, n) = (128usize, 64usize);
    let config = json!({"bits": 4, "group_size": 128, "sym": false, "desc_act": false, "checkpoint_format": "gptq_v2"});
    let qweight: Vec<u32> = (0..k / 8 * n).map(|i| (i as u32).wrapping_mul(0x85eb_ca6b)).collect();
    let folder = |zero: u32, scales: Tensor| {
        let mut words = vec![0x8888_8888; n / 8];
        words[1] = 0x8888_8088 | zero << 8;
        let parts = [("qweight", Tensor::words(&[k / 8, n], &qweight)), ("qzeros", Tensor::words(&[1, n / 8], &words)), ("scales", scales)];
        Folder::of_parts(&config, &parts).write()
    };
    let halves = |values: &[f32]| Tensor::f16(&[1, n], values);
    let asymmetric = folder(6, halves(&vec![0.25; n]));
    holds(&run(&asymmetric.0, Target::Marlin, false).unwrap_err(), &["`m`: 1 zero points other than 8, the first at [0, 10]"]);
    let (_lossy, open) = run(&asymmetric.0, Target::Marlin, true).unwrap();
    let (was, is) = (oracle::dequantize(&module(&Checkpoint::open(&asymmetric.0).unwrap(), "m")), oracle::dequantize(&module(&open, "m")));
    for (i, (was, is)) in was.iter().zip(&is).enumerate() {
        // differences of 8 and 9 steps become 7, the largest that there is; every other weight stays
        assert_eq!(*is, was.min(7.0 * 0.25), "{i}");
    }
    assert!(was != is);
    let wide: Vec<f32> = (0..n).map(|i| 0.5 + i as f32 / 64.0).collect();
    let exact = folder(8, Tensor::f32(&[1, n], &wide));
    let (written, _) = run(&exact.0, Target::Marlin, false).unwrap();
    assert!(equal(&exact.0, &written.0), "F32 scales that F16 holds");
    let mut odd = wide.clone();
    (odd[3], odd[40]) = (0.1, 1.0e6);
    let rounded = folder(8, Tensor::f32(&[1, n], &odd));
    holds(&run(&rounded.0, Target::Marlin, false).unwrap_err(), &["`m`: 2 scales that F16 rounds, the first at [0, 3]"]);
    let (_nearest, open) = run(&rounded.0, Target::Marlin, true).unwrap();
    let m = module(&open, "m");
    assert_eq!((m.scales().get(3), m.scales().get(40)), (half::f16::from_f32(0.1).to_f32(), 65504.0));
}
