//! Folders written again in another format hold the same weights, or say what they cannot hold.

mod common;

use billfish_formats::{BiasRule, Checkpoint, FormatError, LinearWeight, Target, convert};
use billfish_tensor::{DType, QuantMatrix, oracle};
use common::{Folder, Temp, fixture};
use std::path::Path;

const FOLDERS: [&str; 12] = [
    "llama-w2-asym-g64",
    "llama-w2-asym-g32-v2",
    "llama-w3-sym-g128",
    "llama-w3-asym-g64-v2",
    "llama-w4-asym-g64",
    "llama-w4-sym-channel-act",
    "llama-w4-sym-g32-act",
    "llama-w5-sym-g32-planar",
    "llama-w8-asym-g128",
    "llama-dynamic",
    "llama-w4-lmhead",
    "qwen2-w3-asym-g32-v2",
];

fn module(c: &Checkpoint, name: &str) -> QuantMatrix {
    let r = c.describe(name).unwrap();
    match c.linear(name, r.in_features, r.out_features, BiasRule::Optional).unwrap() {
        LinearWeight::Quantized(m) => m,
        LinearWeight::Dense { .. } => panic!("{name} is dense"),
    }
}

fn run(from: &Path, to: Target, lossy: bool) -> Result<(Temp, Checkpoint), FormatError> {
    let out = Temp::new();
    let mut last = (0, 1);
    convert(&Checkpoint::open(from)?, &out.0, to, lossy, &mut |done, total| last = (done, total))?;
    assert_eq!(last.0, last.1, "progress ends at the end");
    let open = Checkpoint::open(&out.0)?;
    Ok((out, open))
}

/// Every quantized module of `a` is in `b` with the same weights, and every other tensor with the same bytes.
fn same(a: &Checkpoint, b: &Checkpoint, what: &str) {
    assert_eq!(a.quantized_modules(), b.quantized_modules(), "{what}");
    for name in a.quantized_modules() {
        let (x, y) = (module(a, &name), module(b, &name));
        assert!(oracle::dequantize(&x) == oracle::dequantize(&y), "{what}: {name}");
        assert_eq!(x.bias(), y.bias(), "{what}: {name}");
    }
    for name in a.tensor_names().filter(|t| a.info(t).unwrap().dtype.is_float() && !t.ends_with(".scales") && !t.ends_with(".weight_scale"))
    {
        let shape = &a.info(name).unwrap().shape;
        assert_eq!(a.dense(name, shape).unwrap().bytes(), b.dense(name, shape).unwrap().bytes(), "{what}: {name}");
    }
}

#[test]
fn quantized_formats_hold_the_same_weights() {
    for name in FOLDERS {
        let source = Checkpoint::open(&fixture(name)).unwrap();
        for to in [Target::Gptq, Target::GptqV2, Target::GptqP, Target::Awq, Target::CompressedTensors] {
            let what = format!("{name} to {to}");
            match run(&fixture(name), to, false) {
                Ok((dir, there)) => {
                    same(&source, &there, &what);
                    assert!(there.warnings().iter().all(|w| w.to_string().contains("zero point")), "{what}: {:?}", there.warnings());
                    // and back through the planar form
                    let (_, back) = run(&dir.0, Target::GptqP, false).unwrap_or_else(|e| panic!("{what} and on: {e}"));
                    same(&source, &back, &what);
                }
                Err(e) => {
                    // what is refused has a reason in the folder: 5 bits, or a zero point of 0 that v1 cannot hold
                    let reason = e.to_string();
                    let zero = source.quantized_modules().iter().any(|m| {
                        let m = module(&source, m);
                        (0..m.group_count()).any(|g| (0..m.out_features()).any(|n| m.zero(g, n) == 0))
                    });
                    let expected = if name.contains("w5") { "5 bits" } else { "zero points of 0" };
                    let awq = to == Target::Awq && ["and AWQ gemm has 4", "no `g_idx`"].iter().any(|r| reason.contains(r));
                    assert!(awq || reason.contains(expected) && (zero || name.contains("w5")), "{what}: {reason}");
                }
            }
        }
    }
}

/// Folders that other programs wrote in other formats, to GPTQ and back.
#[test]
fn other_formats_go_both_ways() {
    for (name, home) in [
        ("llama-awq-asym-g32", Target::Awq),
        ("llama-ct-w3a16-g32", Target::CompressedTensors),
        ("llama-ct-w4a16-g32", Target::CompressedTensors),
        ("llama-ct-w8a16-channel", Target::CompressedTensors),
    ] {
        let source = Checkpoint::open(&fixture(name)).unwrap();
        let (dir, there) = run(&fixture(name), Target::GptqV2, false).unwrap_or_else(|e| panic!("{name}: {e}"));
        same(&source, &there, name);
        let (home_dir, back) = run(&dir.0, home, false).unwrap_or_else(|e| panic!("{name} back: {e}"));
        same(&source, &back, name);
        for module in source.quantized_modules() {
            // the codes are the very words that the other program wrote
            let part = if home == Target::Awq { "qweight" } else { "weight_packed" };
            let tensor = format!("{module}.{part}");
            assert_eq!(raw(&fixture(name), &tensor), raw(&home_dir.0, &tensor), "{tensor}");
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

#[test]
fn a_second_conversion_to_the_same_format_changes_no_byte() {
    for name in ["llama-w3-asym-g64-v2", "llama-w4-sym-g32-act", "llama-w5-sym-g32-planar"] {
        let to = if name.contains("w5") { Target::GptqP } else { Target::GptqV2 };
        let (a, _) = run(&fixture(name), to, false).unwrap();
        let (b, _) = run(&a.0, to, false).unwrap();
        for file in ["model.safetensors", "config.json", "quantize_config.json", "tokenizer.json"] {
            assert!(std::fs::read(a.0.join(file)).unwrap() == std::fs::read(b.0.join(file)).unwrap(), "{name}: {file}");
        }
    }
}

#[test]
fn dense_folders_hold_the_weights_exactly_or_say_what_they_round() {
    for name in ["llama-w2-asym-g64", "llama-w4-sym-g32-act", "llama-w5-sym-g32-planar"] {
        let source = Checkpoint::open(&fixture(name)).unwrap();
        let (_dir, there) = run(&fixture(name), Target::Dense(DType::F32), false).unwrap();
        assert!(there.quantization().is_none() && there.quantized_modules().is_empty());
        for module_name in source.quantized_modules() {
            let m = module(&source, &module_name);
            let (k, n) = (m.in_features(), m.out_features());
            let dense = there.dense(&format!("{module_name}.weight"), &[n, k]).unwrap().to_f32();
            let want = oracle::dequantize(&m);
            for row in 0..k {
                for col in 0..n {
                    assert!(f64::from(dense[col * k + row]) == want[row * n + col], "{name} {module_name} [{row}, {col}]");
                }
            }
        }
        let error = run(&fixture(name), Target::Dense(DType::BF16), false).unwrap_err().to_string();
        assert!(error.contains("weights that BF16 rounds") && error.contains("without loss"), "{error}");
        assert!(run(&fixture(name), Target::Dense(DType::BF16), true).is_ok());
    }
}

/// K ends in the middle of a word: without `g_idx` the groups tell it.
#[test]
fn rows_that_do_not_fill_the_last_word() {
    let config = |bits: usize, group: usize| format!(r#"{{"bits":{bits},"group_size":{group},"sym":true,"desc_act":false}}"#);
    for (bits, k, group, shown) in
        [(4, 100, 20, 100), (4, 100, 25, 100), (3, 70, 35, 70), (2, 20, 4, 20), (4, 100, 32, 104), (4, 96, 32, 96)]
    {
        let groups = k / group + usize::from(k % group > 0);
        let dir = Folder::module(k, 32, &config(bits, group), groups, &vec![0x7777_7777; groups * bits]).write();
        let source = Checkpoint::open(&dir.0).unwrap();
        assert_eq!(source.describe("m").unwrap().in_features, shown, "{bits} bit, {k} in groups of {group}");
        if shown == k {
            let there = run(&dir.0, Target::Dense(DType::F32), true).unwrap().1;
            assert_eq!(there.info("m.weight").unwrap().shape, [32, k]);
        }
    }
}

/// Zero points at both ends: v1 holds 1 to 2^b, the others 0 to 2^b - 1.
#[test]
fn zero_points_at_the_ends() {
    // fields 15 and 0 of a v1 file by an unknown writer: true zero points 16 and 1
    // (and codes of 15, which go with 16 and not with 0)
    let v1 = |words: &[u32]| {
        let mut folder = Folder::module(32, 8, r#"{"bits":4,"group_size":32,"sym":false,"desc_act":false}"#, 1, words);
        folder.edit("m.qweight", |t| t.bytes.fill(0xff)).write()
    };
    let v2 = |words: &[u32]| {
        Folder::module(32, 8, r#"{"bits":4,"group_size":32,"sym":false,"desc_act":false,"checkpoint_format":"gptq_v2"}"#, 1, words).write()
    };
    let zeros = |c: &Checkpoint| (0..8).map(|n| module(c, "m").zero(0, n)).collect::<Vec<_>>();
    let high = v1(&[0x0f12_3456]);
    assert_eq!(zeros(&run(&high.0, Target::Gptq, false).unwrap().1), [7, 6, 5, 4, 3, 2, 16, 1]);
    let error = run(&high.0, Target::GptqV2, false).unwrap_err().to_string();
    assert!(error.contains("`m`: 1 zero points of 16, the first at [0, 6]"), "{error}");
    assert_eq!(zeros(&run(&high.0, Target::GptqV2, true).unwrap().1)[6], 15, "the nearest that v2 holds");
    let low = v2(&[0x8880_0881]);
    let error = run(&low.0, Target::Gptq, false).unwrap_err().to_string();
    assert!(error.contains("`m`: 2 zero points of 0, the first at [0, 3]"), "{error}");
    assert_eq!(zeros(&run(&low.0, Target::Gptq, true).unwrap().1), [1, 8, 8, 1, 1, 8, 8, 8]);
    let error = run(&low.0, Target::GptqP, true).unwrap_err().to_string();
    assert!(error.contains("[32, 8]") && error.contains("multiples of 32"), "{error}");
    let wide = Folder::module(
        32,
        32,
        r#"{"bits":4,"group_size":32,"sym":false,"desc_act":false,"checkpoint_format":"gptq_v2"}"#,
        1,
        &[0x8880_0881; 4],
    )
    .write();
    let planar = run(&wide.0, Target::GptqP, false).unwrap().1;
    assert_eq!(zeros(&planar), [1, 8, 8, 0, 0, 8, 8, 8]);
}

#[test]
fn an_output_that_is_taken_is_left_alone() {
    let out = Temp::new();
    std::fs::create_dir_all(&out.0).unwrap();
    std::fs::write(out.0.join("mine.txt"), "x").unwrap();
    let source = Checkpoint::open(&fixture("llama-w4-sym-g128")).unwrap();
    let error = convert(&source, &out.0, Target::GptqV2, false, &mut |_, _| ()).unwrap_err().to_string();
    assert!(error.contains("files in it") && error.contains("another folder"), "{error}");
    assert_eq!(std::fs::read_dir(&out.0).unwrap().count(), 1);
    // a failure half way leaves nothing behind either
    let mut high = Folder::module(32, 8, r#"{"bits":4,"group_size":32,"sym":false,"desc_act":false}"#, 1, &[0xf000_0000]);
    let high = high.edit("m.qweight", |t| t.bytes.fill(0xff)).write();
    let place = out.0.join("new");
    assert!(convert(&Checkpoint::open(&high.0).unwrap(), &place, Target::GptqV2, false, &mut |_, _| ()).is_err());
    assert_eq!(std::fs::read_dir(&out.0).unwrap().count(), 1);
}

/// GPTQModel loads asymmetric v1 folders only beside its own name: it stays where both programs store zero points alike.
#[test]
fn the_name_of_the_quantizer_stays_where_its_zero_points_are_stored_alike() {
    let quantizers = |name: &str, to, version: Option<&str>| {
        let mut folder = Folder::of(name);
        if let Some(version) = version {
            folder.set("meta", serde_json::json!({"quantizer": [version]}));
        }
        let (dir, _) = run(&folder.write().0, to, false).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.0.join("quantize_config.json")).unwrap()).unwrap();
        config["meta"]["quantizer"].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    let ours = concat!("billfish:", env!("CARGO_PKG_VERSION"));
    assert_eq!(quantizers("llama-w4-asym-g64", Target::Gptq, None), ["gptqmodel:7.7.0", ours]);
    assert_eq!(quantizers("llama-w4-asym-g64", Target::Gptq, Some("gptqmodel:5.0.0")), ["gptqmodel:5.0.0", ours]);
    assert_eq!(quantizers("llama-w3-sym-g128", Target::Gptq, Some("gptqmodel:6.0.3")), [ours]);
    assert_eq!(quantizers("llama-w4-asym-g64", Target::GptqV2, Some("auto_gptq:0.7")), [ours]);
}

/// vLLM matches rules with the name of a fused module, GPTQModel with those of its parts: one pattern serves both.
#[test]
fn rules_name_fused_modules_too() {
    let (dir, _) = run(&fixture("llama-dynamic"), Target::Gptq, false).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.0.join("quantize_config.json")).unwrap()).unwrap();
    let rules: Vec<(&str, i64)> =
        config["dynamic"].as_object().unwrap().iter().map(|(p, r)| (p.as_str(), r["bits"].as_i64().unwrap_or(0))).collect();
    let expected = [
        (r"-:^model\.layers\.0\.self_attn\.o_proj$", 0),
        (r"+:^model\.layers\.1\.mlp\.(?:gate_proj|up_proj|gate_up_proj)$", 2),
        (r"+:^model\.layers\.0\.mlp\.down_proj$", 8),
        (r"+:^model\.layers\.1\.mlp\.down_proj$", 8),
    ];
    assert_eq!(rules, expected);
}

/// A module called asymmetric whose zero points are all the midpoint: a config that says so needs the tensor.
#[test]
fn asymmetric_modules_with_midpoints_keep_their_zero_points() {
    let config = r#"{"bits": 4, "group_size": -1, "sym": false, "checkpoint_format": "gptq_v2"}"#;
    let source = Folder::module(32, 8, config, 1, &[0x8888_8888]).write();
    let (_out, written) = run(&source.0, Target::CompressedTensors, false).unwrap();
    same(&Checkpoint::open(&source.0).unwrap(), &written, "midpoints");
    assert!(written.info("m.weight_zero_point").is_some());
}
