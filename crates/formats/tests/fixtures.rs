//! Every quantized module of every fixture, against an independent reader (`dequantized.py`).

mod common;

use billfish_formats::{BiasRule, Checkpoint, Evidence, LinearWeight, WarningKind, ZeroDialect};
use billfish_tensor::{DType, Groups, Packing, Zeros, oracle};
use common::fixture;
use serde_json::Value;

fn expected() -> serde_json::Map<String, Value> {
    serde_json::from_str(include_str!("dequantized.json")).unwrap()
}

/// CRC-32 as zlib computes it, bit by bit.
fn crc32(bytes: impl Iterator<Item = u8>) -> u32 {
    !bytes.fold(!0, |crc: u32, b| (0..8).fold(crc ^ u32::from(b), |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg())))
}

#[test]
fn every_module_dequantizes_as_the_independent_reader_says() {
    let mut modules = 0;
    for (name, expected) in expected() {
        let folder = Checkpoint::open(&fixture(&name)).unwrap();
        let expected = expected.as_object().unwrap();
        assert!(expected.keys().eq(folder.quantized_modules().iter()), "{name}: run dequantized.py again");
        for (module, row) in expected {
            // Text, because serde_json reads floats to within one unit in the last place only.
            let number = |v: &Value| v.as_f64().unwrap_or_else(|| v.as_str().unwrap().parse().unwrap());
            let row: Vec<f64> = row.as_array().unwrap().iter().map(number).collect();
            let (k, n) = (row[0] as usize, row[1] as usize);
            let LinearWeight::Quantized(m) = folder.linear(module, k, n, BiasRule::Optional).unwrap() else { panic!("{name} {module}") };
            let w = oracle::dequantize(&m);
            for (i, sample) in row[4..].iter().enumerate() {
                let at = (i * 2_654_435_761 + 12345) % w.len();
                assert_eq!(w[at], *sample, "{name} {module} at {at}");
            }
            let sum: f64 = w.iter().sum();
            assert!((sum - row[3]).abs() <= 1e-9 * row[3].abs().max(1.0), "{name} {module}: sum {sum}, not {}", row[3]);
            assert_eq!(crc32(w.iter().flat_map(|v| v.to_le_bytes())), row[2] as u32, "{name} {module}");
            modules += 1;
        }
    }
    assert!(modules > 300, "{modules}");
}

/// A fixture that nobody compares proves nothing.
#[test]
fn every_quantized_fixture_is_compared() {
    let expected = expected();
    for entry in std::fs::read_dir(fixture("")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let Ok(config) = std::fs::read_to_string(fixture(&name).join("config.json")) else { continue };
        let config: Value = serde_json::from_str(&config).unwrap();
        let quantization = &config["quantization_config"];
        let floats = ["float-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized"].iter().any(|f| quantization["format"] == *f);
        if quantization.is_object() && !floats {
            assert!(expected.contains_key(&name), "fixture {name} is not in dequantized.json: run dequantized.py");
        }
    }
}

#[test]
fn reading_the_fixtures_needs_no_warning_and_leaves_no_tensor() {
    for (name, modules) in expected() {
        let folder = Checkpoint::open(&fixture(&name)).unwrap();
        for (module, row) in modules.as_object().unwrap() {
            let (k, n) = (row[0].as_u64().unwrap() as usize, row[1].as_u64().unwrap() as usize);
            folder.linear(module, k, n, BiasRule::Optional).unwrap();
        }
        for tensor in folder.unread() {
            let shape = folder.info(&tensor).unwrap().shape.clone();
            match (tensor.strip_suffix(".weight"), shape.as_slice()) {
                (Some(module), [n, k]) => drop(folder.linear(module, *k, *n, BiasRule::Optional).unwrap()),
                _ => drop(folder.dense(&tensor, &shape).unwrap()),
            }
        }
        let warnings: Vec<String> = folder.warnings().iter().map(ToString::to_string).collect();
        if name == "llama-ct-w8a8" {
            let [w] = warnings.as_slice() else { panic!("{warnings:?}") };
            common::holds(
                w,
                &[
                    "quantized activations (`input_activations`: 8 bit int, one scale a token)",
                    "applied with int8 activations",
                    "the weights run alone",
                ],
            );
        } else {
            assert_eq!(warnings, [""; 0], "{name}");
        }
        assert_eq!(folder.unread(), [""; 0], "{name}");
    }
}

#[test]
fn configs_and_files() {
    let folder = Checkpoint::open(&fixture("llama-dynamic")).unwrap();
    assert_eq!(folder.name(), "llama-dynamic");
    assert_eq!(folder.config()["model_type"], "llama");
    assert!(folder.generation_config().is_some());
    assert!(folder.file("tokenizer.json").unwrap().is_some());
    assert_eq!(folder.file("nothing.json").unwrap(), None);
    assert!(folder.file("../llama-dynamic/config.json").is_err());
    let config = folder.quantization().unwrap();
    assert_eq!((config.bits, config.sym, config.dynamic.rules().len()), (4, true, 3));
    assert_eq!(config.writer.as_ref().unwrap().to_string(), "gptqmodel 7.7.0");
    let tensors: u64 = folder.tensor_names().map(|t| folder.info(t).unwrap().bytes as u64).sum();
    assert_eq!(folder.total_bytes(), tensors);
}

#[test]
fn reports() {
    let folder = Checkpoint::open(&fixture("llama-dynamic")).unwrap();
    let down = folder.describe("model.layers.0.mlp.down_proj").unwrap();
    assert_eq!((down.in_features, down.out_features, down.bits, down.groups), (256, 128, 8, 8));
    assert_eq!(down.rule.applied.as_deref(), Some(r"+:.*\.down_proj"));
    assert!(!down.rule.differ() && !down.act_order && down.midpoint);
    // codes, scales, zero points and g_idx of one byte a weight
    assert_eq!(down.bytes, 256 * 128 + 8 * 128 * 2 + 8 * 128 + 256 * 4);
    assert!((down.bits_per_weight() - 9.0).abs() < 0.01 + 8.0 * 4.0 / 128.0);
    let up = folder.describe("model.layers.1.mlp.up_proj").unwrap();
    assert_eq!((up.bits, up.act_order), (2, true));
    let q = folder.describe("model.layers.0.self_attn.q_proj").unwrap();
    assert_eq!((q.bits, q.rule.applied, q.scales, q.packing), (4, None, DType::F16, Packing::Continuous));
    assert_eq!((q.zeros, q.evidence), (ZeroDialect::V1, Evidence::Data));
    assert_eq!(folder.unread().len(), folder.tensor_names().count(), "describing reads no weight");

    let planar = Checkpoint::open(&fixture("llama-w5-sym-g32-planar")).unwrap();
    let q = planar.describe("model.layers.0.self_attn.q_proj").unwrap();
    assert_eq!((q.packing, q.zeros, q.midpoint), (Packing::Planar, ZeroDialect::V2, true));
}

/// The dialects that the comparison above covers (no zero of the fixtures is 0, so none borrows; see variants.rs).
#[test]
fn the_fixtures_cover_the_dialects() {
    let dialects = |name: &str| -> Vec<ZeroDialect> {
        let folder = Checkpoint::open(&fixture(name)).unwrap();
        folder.quantized_modules().iter().map(|m| folder.describe(m).unwrap().zeros).collect()
    };
    assert!(dialects("llama-w4-asym-g64").iter().all(|d| *d == ZeroDialect::V1));
    // none is stored as 7, so that modulo 8 is no question, and the codes exclude the legacy constants
    assert!(dialects("llama-w3-asym-g32").iter().all(|d| *d == ZeroDialect::V1));
    assert!(dialects("llama-w4-asym-g32-v2").iter().all(|d| *d == ZeroDialect::V2));
    let folder = Checkpoint::open(&fixture("llama-w4-sym-g32-act")).unwrap();
    let LinearWeight::Quantized(m) = folder.linear("model.layers.0.self_attn.q_proj", 128, 128, BiasRule::Absent).unwrap() else {
        panic!()
    };
    assert!(matches!((m.groups(), m.zeros()), (Groups::Index { count: 4, .. }, Zeros::Midpoint)));
    let folder = Checkpoint::open(&fixture("llama-w4-sym-channel-act")).unwrap();
    let LinearWeight::Quantized(m) = folder.linear("model.layers.0.mlp.down_proj", 256, 128, BiasRule::Absent).unwrap() else { panic!() };
    assert_eq!(*m.groups(), Groups::Contiguous { size: 256 });
}

#[test]
fn dense_modules_and_biases() {
    let folder = Checkpoint::open(&fixture("llama-dynamic")).unwrap();
    let o = folder.linear("model.layers.0.self_attn.o_proj", 128, 128, BiasRule::Absent).unwrap();
    assert!(matches!(o, LinearWeight::Dense { bias: None, ref weight } if weight.shape() == [128, 128]));
    assert_eq!(folder.warnings(), [], "a rule leaves it dense");
    let folder = Checkpoint::open(&fixture("qwen2-w4-sym-g32")).unwrap();
    let q = folder.linear("model.layers.0.self_attn.q_proj", 128, 128, BiasRule::Required).unwrap();
    assert!(matches!(q, LinearWeight::Quantized(m) if m.bias().is_some_and(|b| b.len() == 128)));
    let sharded = Checkpoint::open(&fixture("llama-sharded-dense")).unwrap();
    assert!(sharded.quantization().is_none() && sharded.quantized_modules().is_empty());
    assert!(sharded.warnings().iter().all(|w| w.kind != WarningKind::Files));
}
