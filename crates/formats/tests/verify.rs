//! Two folders compared: a change of any kind is found where it was made, and another format of the same weights is
//! equal to the last bit.

mod common;

use billfish_formats::{BiasRule, Certificate, Checkpoint, Diff, LinearWeight, ModuleDiff, Verdict, ZeroLabel, diff, serially, verify};
use billfish_tensor::{DType, QuantMatrix, oracle};
use common::{Folder, Temp, Tensor, fixture};
use half::{bf16, f16};
use serde_json::json;

const UP: &str = "model.layers.1.mlp.up_proj";

fn compare(a: &Folder, b: &Folder) -> (Certificate, Diff) {
    let [a, b]: [Temp; 2] = [a.write(), b.write()];
    let [a, b] = [a, b].map(|t| (Checkpoint::open(&t.0).unwrap(), t));
    let c = verified(&a.0, &b.0);
    let d = diff(&a.0, &b.0, &serially, &mut |_, _| ()).unwrap();
    // as text, because a NaN is not equal to itself
    assert_eq!(format!("{c:?}"), format!("{:?}", d.certificate));
    assert_eq!(c.equal(), d.verdict != Verdict::Different);
    assert_eq!(c.equal(), c.hashes[0] == c.hashes[1]);
    (c, d)
}

fn verified(a: &Checkpoint, b: &Checkpoint) -> Certificate {
    let mut last = (0, 0);
    let c = verify(a, b, &serially, &mut |done, total| {
        assert!(last.0 <= done && done <= total);
        last = (done, total);
    });
    let c = c.unwrap();
    assert_eq!(last, (a.total_bytes() + b.total_bytes(), a.total_bytes() + b.total_bytes()));
    c
}

fn quantized(folder: &Checkpoint, module: &str) -> QuantMatrix {
    let report = folder.describe(module).unwrap();
    match folder.linear(module, report.in_features, report.out_features, BiasRule::Optional).unwrap() {
        LinearWeight::Quantized(m) => m,
        LinearWeight::Dense { .. } => panic!("{module} is dense"),
    }
}

fn only<T>(mut list: Vec<T>) -> T {
    assert_eq!(list.len(), 1);
    list.remove(0)
}

/// The one part of the one module that differs.
fn only_part(d: Diff) -> (String, &'static str, Option<u64>, Vec<usize>, [String; 2]) {
    let ModuleDiff { module, parts, .. } = only(d.modules);
    let p = only(parts);
    (module, p.part, p.differing, p.first.unwrap(), p.values.unwrap())
}

#[test]
fn a_folder_equals_itself() {
    for entry in std::fs::read_dir(fixture("")).unwrap() {
        let path = entry.unwrap().path();
        if !path.join("config.json").exists() {
            continue;
        }
        let [a, b] = [0, 1].map(|_| Checkpoint::open(&path).unwrap());
        // codes that are floats have no matrix yet: nothing is compared rather than bytes
        if ["fp8", "nvfp4", "mxfp4"].iter().any(|f| a.name().contains(f)) {
            assert!(verify(&a, &b, &serially, &mut |_, _| ()).unwrap_err().to_string().contains("weights as integer codes"));
            continue;
        }
        let c = verified(&a, &b);
        assert!(c.equal() && c.hashes[0] == c.hashes[1] && c.hashes[0].len() == 64, "{path:?}");
        assert!(c.encodings.is_empty() && c.largest.is_none() && c.differences.is_empty() && c.weights > 1000);
        assert_eq!(c.modules, a.quantized_modules().len());
        assert_eq!(a.unread(), Vec::<String>::new(), "every tensor was looked at");
        let d = diff(&a, &b, &serially, &mut |_, _| ()).unwrap();
        assert!(d.verdict == Verdict::Same && d.keys.is_empty() && d.modules.is_empty() && d.tensors.is_empty());
    }
}

/// Made by another program from the description of the hash.
#[test]
fn the_hash_is_the_one_that_is_described() {
    let mut folder = Folder::module(8, 8, r#"{"bits": 4, "group_size": -1, "sym": true}"#, 1, &[0x7777_7777]);
    folder.put("t.weight", Tensor::f32(&[2], &[1.0, -0.0]));
    let ids = [5i64, -1].iter().flat_map(|v| v.to_le_bytes()).collect();
    folder.put("ids", Tensor { dtype: DType::I64, shape: vec![2], bytes: ids });
    let (c, _) = compare(&folder, &folder);
    assert_eq!(c.hashes[0], "73e419c4fae352770c6e8f187a22f2088a17b2a33e74deb4b4544e28f4395a94");
    let mut other = folder.clone();
    other.edit("ids", |t| t.bytes[8] = 0xfe);
    let (c, _) = compare(&folder, &other);
    let d = only(c.differences);
    assert_eq!((d.first.to_string().as_str(), d.values[1].as_str()), ("ids[1]", "0xfffffffffffffffe"));
    assert_eq!(c.largest, None, "ids are no weights");
}

#[test]
fn v1_equals_v2_made_by_hand() {
    let v1 = Folder::of("llama-w4-asym-g64");
    let mut v2 = v1.clone();
    v2.set("checkpoint_format", json!("gptq_v2")).set("format", json!("gptq_v2"));
    for (name, tensor) in v2.tensors.iter_mut().filter(|(n, _)| n.ends_with(".qzeros")) {
        let words: Vec<u32> = tensor.to_words().iter().map(|w| w.wrapping_add(0x1111_1111)).collect();
        assert!(tensor.to_words().iter().all(|w| (0..8).all(|i| w >> (4 * i) & 15 != 15)), "{name}: nothing to carry");
        *tensor = Tensor::words(&tensor.shape, &words);
    }
    let (c, d) = compare(&v1, &v2);
    assert!(c.equal() && c.modules > 10 && c.encodings.len() == c.modules);
    assert!(c.encodings[0].found[0].contains("v1") && c.encodings[0].found[1].contains("v2"), "{:?}", c.encodings[0]);
    assert_eq!(d.verdict, Verdict::SameWeights);
    assert_eq!((d.tensors.len(), d.modules.len()), (c.modules, c.modules));
    assert!(d.tensors.iter().all(|t| t.tensor.ends_with(".qzeros") && t.differing.unwrap().0 > 0));
    assert!(d.modules.iter().all(|m| m.parts.is_empty() && m.found[0] != m.found[1]));
    assert!(d.keys.iter().any(|k| k.key == "checkpoint_format" && k.found == [Some(json!("gptq")), Some(json!("gptq_v2"))]));

    let mut config = v1.clone();
    config.set("damp_percent", json!(0.5));
    assert_eq!(compare(&v1, &config).1.verdict, Verdict::SameTensors);
    // labelled otherwise, the codes show what they are
    config.set("checkpoint_format", json!("gptq_v2")).set("format", json!("gptq_v2"));
    assert_eq!(compare(&v1, &config).1.verdict, Verdict::SameTensors);
    // the same bytes, read otherwise
    let (a, b) = (v1.write(), v1.write());
    let (a, b) = (Checkpoint::open(&a.0).unwrap(), Checkpoint::open(&b.0).unwrap().with_zeros(Some(ZeroLabel::V2)).unwrap());
    let (c, d) = (verified(&a, &b), diff(&a, &b, &serially, &mut |_, _| ()).unwrap());
    assert!(d.verdict == Verdict::Different && d.tensors.is_empty());
    assert!(d.modules.iter().all(|m| m.parts.iter().any(|p| p.part == "zeros" && p.differing == Some(p.elements[0]))));
    assert!(c.differing > c.weights / 2);
}

#[test]
fn one_code() {
    for (name, module, bits) in [("llama-w4-sym-g32-act", "model.layers.0.mlp.down_proj", 4), ("llama-w8-asym-g128", UP, 8)] {
        let plain = Folder::of(name);
        let mut other = plain.clone();
        let n = plain.tensors[&format!("{module}.qweight")].shape[1];
        let per = 32 / bits;
        let (row, col) = (3 * per + 2, n - 3);
        // the lowest bit of field 2 of word 3
        other.edit(&format!("{module}.qweight"), |t| t.bytes[4 * (3 * n + col) + 2 * bits / 8] ^= 1);
        let (c, d) = compare(&plain, &other);
        assert_eq!(c.differing, 1);
        let difference = only(c.differences);
        assert_eq!(difference.first.to_string(), format!("{module}[{row}, {col}]"));
        assert_eq!(difference.tensor, format!("{module}.weight"));
        let largest = c.largest.unwrap();
        let m = quantized(&Checkpoint::open(&fixture(name)).unwrap(), module);
        assert_eq!((largest.place, largest.values[0]), (difference.first, oracle::dequantize(&m)[row * n + col]));
        assert_eq!(largest.difference, f64::from(m.scales().get(m.group_of(row) * n + col)).abs());
        let (found, part, count, first, _) = only_part(d);
        assert_eq!((found.as_str(), part, count, first), (module, "codes", Some(1), vec![row, col]));
    }
}

#[test]
fn one_zero_point_and_one_scale() {
    let plain = Folder::of("llama-w4-asym-g64");
    let shape = plain.tensors[&format!("{UP}.scales")].shape.clone();
    let (groups, n) = (shape[0], shape[1]);
    let (g, col) = (groups - 1, 9);
    let m = quantized(&Checkpoint::open(&fixture("llama-w4-asym-g64")).unwrap(), UP);

    let mut other = plain.clone();
    // v1 holds z - 1; column 9 is the second field of the second word
    let byte = 4 * (g * n / 8 + 1);
    let z = m.zero(g, col);
    let new = if z == 3 { 5 } else { 3 };
    other.edit(&format!("{UP}.qzeros"), |t| t.bytes[byte] = t.bytes[byte] & 0x0f | ((new - 1) << 4) as u8);
    let (c, d) = compare(&plain, &other);
    assert_eq!(c.differing, 64, "the whole group");
    assert_eq!(only(c.differences).first.to_string(), format!("{UP}[{}, {col}]", g * 64));
    let (_, part, count, first, values) = only_part(d);
    assert_eq!((part, count, first, values), ("zeros", Some(1), vec![g, col], [z.to_string(), new.to_string()]));

    let mut other = plain.clone();
    let scale = m.scales().get(g * n + col);
    other.edit(&format!("{UP}.scales"), |t| {
        t.bytes[2 * (g * n + col)..][..2].copy_from_slice(&f16::from_f32(2.0 * scale).to_le_bytes());
    });
    let (c, d) = compare(&plain, &other);
    let group: Vec<f64> = oracle::dequantize(&m).chunks(n).skip(g * 64).map(|row| row[col]).collect();
    assert_eq!(c.differing, group.iter().filter(|w| **w != 0.0).count() as u64);
    assert_eq!(c.largest.unwrap().difference, group.iter().fold(0.0, |m, w| f64::max(m, w.abs())));
    let (_, part, count, first, values) = only_part(d);
    assert_eq!((part, count, first, values), ("scales", Some(1), vec![g, col], [scale.to_string(), (2.0 * scale).to_string()]));
}

#[test]
fn one_row_in_another_group() {
    let plain = Folder::of("llama-w4-sym-g32-act");
    let mut other = plain.clone();
    let row = 77;
    other.edit(&format!("{UP}.g_idx"), |t| t.bytes[4 * row] = (t.bytes[4 * row] + 1) % 4);
    let (c, d) = compare(&plain, &other);
    let difference = only(c.differences);
    assert_eq!((difference.tensor, difference.first.index[0]), (format!("{UP}.weight"), row));
    let (_, part, count, first, _) = only_part(d);
    assert_eq!((part, count, first), ("groups", Some(1), vec![row]));
}

/// A folder whose quantized modules are dense, as the oracle has them; `f32` holds a few bits times an `f16`.
fn dense_copy(name: &str) -> Folder {
    let mut folder = Folder::of(name);
    let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
    for module in checkpoint.quantized_modules() {
        let m = quantized(&checkpoint, &module);
        let (k, n) = (m.in_features(), m.out_features());
        let w = oracle::dequantize(&m);
        let turned: Vec<f32> = (0..n * k).map(|i| w[i % k * n + i / k] as f32).collect();
        assert!((0..n * k).all(|i| f64::from(turned[i]) == w[i % k * n + i / k]), "exact");
        for part in ["qweight", "qzeros", "scales", "g_idx"] {
            folder.tensors.remove(&format!("{module}.{part}"));
        }
        folder.put(&format!("{module}.weight"), Tensor::f32(&[n, k], &turned));
    }
    folder.files.remove("quantize_config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&folder.files["config.json"]).unwrap();
    config.as_object_mut().unwrap().remove("quantization_config");
    folder.json("config.json", &config.to_string());
    folder
}

#[test]
fn quantized_equals_its_dense_copy() {
    for name in ["llama-w3-asym-g32", "qwen3-w4-sym-g32-act", "llama-w7-sym-g64-planar", "qwen2-w4-sym-g32"] {
        let dense = dense_copy(name);
        let (c, d) = compare(&Folder::of(name), &dense);
        assert!(c.equal() && c.modules > 0, "{name}");
        assert_eq!(c.encodings.len(), c.modules);
        assert!(c.encodings[0].found[0].contains("-bit") && c.encodings[0].found[1] == "F32");
        assert_eq!((d.verdict, d.modules.len()), (Verdict::SameWeights, 0));
        assert!(!d.missing[0].is_empty() && !d.missing[1].is_empty() && c.missing == [vec![], vec![]] as [Vec<String>; 2]);
        let mut other = dense.clone();
        let tensor = other.tensors.keys().find(|t| t.ends_with("v_proj.weight")).unwrap().clone();
        // output 1, input 2 of a [N, K] weight
        let k = other.tensors[&tensor].shape[1];
        other.edit(&tensor, |t| t.bytes[4 * (k + 2)..][..4].copy_from_slice(&9.5f32.to_le_bytes()));
        let c = compare(&other, &Folder::of(name)).0;
        assert_eq!(c.differing, 1);
        let largest = c.largest.unwrap();
        assert_eq!(largest.place.to_string(), format!("{}[2, 1]", tensor.strip_suffix(".weight").unwrap()));
        assert_eq!(largest.values[0], 9.5);
    }
}

/// 40 codes of 3 bit leave room for 42: the dense folder knows that there are 40.
#[test]
fn padding_is_no_weight() {
    let config = r#"{"bits": 3, "group_size": -1, "sym": false, "checkpoint_format": "gptq_v2"}"#;
    let packed = Folder::module(40, 32, config, 1, &[0; 3]);
    let mut dense = Folder { tensors: Default::default(), files: Default::default() };
    dense.json("config.json", "{}").put("m.weight", Tensor::f32(&[32, 40], &[0.0; 1280]));
    for (a, b) in [(&packed, &dense), (&dense, &packed)] {
        let (c, _) = compare(a, b);
        assert!(c.equal() && c.weights == 1280);
    }
}

#[test]
fn the_type_of_a_dense_tensor_is_not_its_value() {
    let a = Folder::of("llama-sharded-dense");
    let name = a.tensors.keys().find(|t| t.ends_with("norm.weight")).unwrap().clone();
    let mut b = a.clone();
    let values: Vec<f32> = match a.tensors[&name].dtype {
        DType::F32 => a.tensors[&name].to_words().iter().map(|w| f32::from_bits(*w)).collect(),
        DType::F16 => a.tensors[&name].bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        _ => a.tensors[&name].bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
    };
    let wide = values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
    b.put(&name, Tensor { dtype: DType::F64, shape: vec![values.len()], bytes: wide });
    let (c, d) = compare(&a, &b);
    assert!(c.equal() && d.verdict == Verdict::SameWeights);
    let e = only(c.encodings);
    assert_eq!((e.tensor.as_str(), e.found[1].as_str()), (name.as_str(), "F64"));
    assert_eq!(only(d.tensors).differing, None);

    b.edit(&name, |t| t.bytes[8..16].copy_from_slice(&f64::NAN.to_le_bytes()));
    let (c, _) = compare(&a, &b);
    let largest = c.largest.unwrap();
    assert_eq!((largest.place.to_string(), largest.difference), (format!("{name}[1]"), f64::INFINITY));
    assert!(compare(&b, &b).0.equal(), "a NaN is what it is");
}

#[test]
fn what_cannot_be_compared_is_named() {
    let a = Folder::of("llama-dynamic");
    let mut b = a.clone();
    b.put("model.norm.weight", Tensor::f32(&[3], &[1.0; 3]));
    b.remove("model.embed_tokens.weight").put("extra", Tensor::f32(&[], &[2.0]));
    let (c, d) = compare(&a, &b);
    assert!(!c.equal() && c.differing == 0);
    assert_eq!(c.missing, [vec!["extra".to_string()], vec!["model.embed_tokens.weight".to_string()]]);
    assert_eq!(d.missing, c.missing);
    assert_eq!(only(c.mismatched).found[1], "F32 [3]");
}

/// The order and the threads of the workers show nowhere, with rows longer and shorter than a piece.
#[test]
fn workers_in_any_order_find_the_same() {
    let backwards = |count: usize, body: &(dyn Fn(usize) + Sync)| {
        std::thread::scope(|s| (0..count).rev().for_each(|i| drop(s.spawn(move || body(i)))));
    };
    let mut a = Folder::of("llama-w4-asym-g64");
    let long: Vec<f32> = (0..300_001).map(|i| i as f32 * 0.1).collect();
    a.put("long", Tensor::f32(&[300_001], &long)).put("flat", Tensor::f32(&[300_001, 1], &long));
    let mut b = a.clone();
    b.edit("long", |t| t.bytes[4 * 299_999 + 3] ^= 0x40).edit("flat", |t| t.bytes[4 * 70_000] ^= 1);
    b.edit("model.layers.1.mlp.up_proj.qweight", |t| t.bytes[77] ^= 1);
    let [a, b] = [a.write(), b.write()];
    let [a, b] = [&a, &b].map(|t| Checkpoint::open(&t.0).unwrap());
    let one = verified(&a, &b);
    assert_eq!(one, verify(&a, &b, &backwards, &mut |_, _| ()).unwrap());
    assert_eq!(one.differing, 3);
    assert!(["flat[70000, 0]", "long[299999]"].iter().all(|p| one.differences.iter().any(|d| d.first.to_string() == *p)));
}
