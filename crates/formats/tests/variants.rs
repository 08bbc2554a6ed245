//! Folders that differ from the fixtures in what other writers do: each is read as its writer meant it, with a warning
//! where the folder contradicts itself.

mod common;

use billfish_formats::{BiasRule, Checkpoint, Evidence, GroupSize, LinearWeight, ZeroDialect, ZeroLabel};
use billfish_tensor::{DType, Groups, QuantMatrix, Zeros, oracle};
use common::{Folder, Temp, Tensor, holds, write_shard};
use half::{bf16, f16};
use serde_json::json;

const Q: &str = "model.layers.0.self_attn.q_proj";

fn quantized(folder: &Checkpoint, module: &str, k: usize, n: usize) -> QuantMatrix {
    match folder.linear(module, k, n, BiasRule::Optional).unwrap() {
        LinearWeight::Quantized(m) => m,
        LinearWeight::Dense { .. } => panic!("{module} is dense"),
    }
}

fn q(dir: &Temp) -> (QuantMatrix, String) {
    let folder = Checkpoint::open(&dir.0).unwrap();
    (quantized(&folder, Q, 128, 128), warnings(&folder))
}

fn warnings(folder: &Checkpoint) -> String {
    folder.warnings().iter().map(|w| format!("{w}\n")).collect()
}

fn scales(folder: &Folder) -> Vec<f32> {
    folder.tensors[&format!("{Q}.scales")].bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
}

fn per_group(m: &QuantMatrix) -> Vec<u16> {
    match m.zeros() {
        Zeros::PerGroup(z) => z.clone(),
        Zeros::Midpoint => panic!("midpoint"),
    }
}

#[test]
fn scales_of_every_type() {
    let mut folder = Folder::of("llama-w4-sym-g128");
    let values = scales(&folder);
    let plain = oracle::dequantize(&q(&folder.write()).0);
    folder.put(&format!("{Q}.scales"), Tensor::f32(&[1, 128], &values));
    let (m, w) = q(&folder.write());
    assert_eq!((m.scales().dtype(), w.as_str()), (DType::F32, ""));
    assert_eq!(oracle::dequantize(&m), plain);
    let bytes = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    folder.put(&format!("{Q}.scales"), Tensor { dtype: DType::BF16, shape: vec![1, 128], bytes });
    let (m, w) = q(&folder.write());
    assert_eq!((m.scales().dtype(), w.as_str()), (DType::BF16, ""));
    assert_eq!(m.scales().get(5), bf16::from_f32(values[5]).to_f32());
}

#[test]
fn negative_scales_are_legal() {
    let mut folder = Folder::of("llama-w4-sym-g128");
    folder.edit(&format!("{Q}.scales"), |t| t.bytes[1] |= 0x80);
    assert!(q(&folder.write()).0.scales().get(0) < 0.0);
}

#[test]
fn g_idx_absent_negative_or_wide() {
    let mut folder = Folder::of("llama-w4-sym-g32-act");
    let plain = q(&folder.write()).0;
    let name = format!("{Q}.g_idx");
    let index: Vec<i32> = folder.tensors[&name].to_words().iter().map(|w| *w as i32).collect();
    let negative: Vec<u32> = index.iter().map(|&g| if g == 3 { -1i32 as u32 } else { g as u32 }).collect();
    folder.put(&name, Tensor::words(&[128], &negative));
    assert_eq!(q(&folder.write()).0.groups(), plain.groups());
    let bytes = index.iter().flat_map(|&g| i64::from(g).to_le_bytes()).collect();
    folder.put(&name, Tensor { dtype: DType::I64, shape: vec![128], bytes });
    assert_eq!(q(&folder.write()).0.groups(), plain.groups());
    folder.remove(&name);
    let (m, w) = q(&folder.write());
    assert_eq!(*m.groups(), Groups::Contiguous { size: 32 });
    holds(&w, &["`desc_act` is set, but there is no `g_idx`", Q]);
    folder.set("desc_act", json!(false));
    assert_eq!(q(&folder.write()).1, "");
}

#[test]
fn g_idx_wins_over_desc_act() {
    let mut folder = Folder::of("llama-w4-sym-g32-act");
    folder.set("desc_act", json!(false));
    let (m, w) = q(&folder.write());
    assert!(matches!(m.groups(), Groups::Index { count: 4, .. }));
    holds(&w, &["`desc_act` is not set, but `g_idx`"]);
}

/// K = 40 with groups of 16: the last has 8 rows. Also N = 4, half a word of zero points.
#[test]
fn short_last_group_and_odd_columns() {
    let config = r#"{"bits": 4, "group_size": 16, "sym": true, "quant_method": "gptq"}"#;
    let folder = Folder::module(40, 4, config, 3, &[0x7777; 3]).write();
    let folder = Checkpoint::open(&folder.0).unwrap();
    let m = quantized(&folder, "m", 40, 4);
    assert_eq!(m.row_order().group_rows, [16, 16, 8]);
    assert_eq!(*m.zeros(), Zeros::Midpoint);
    assert_eq!(warnings(&folder), "");
    assert_eq!(folder.describe("m").unwrap().in_features, 40);
}

#[test]
fn v2_zeros_in_a_file_that_says_v1() {
    let mut folder = Folder::of("llama-w4-sym-g32-v2");
    folder.set("checkpoint_format", json!("gptq")).set("format", json!("gptq"));
    let (m, w) = q(&folder.write());
    assert_eq!(*m.zeros(), Zeros::Midpoint);
    holds(&w, &["stored as they are (v2), but the config says gptq (v1)", Q]);
    let folder = Checkpoint::open(&folder.write().0);
    assert!(folder.is_ok());
}

#[test]
fn legacy_three_bit_constants() {
    let mut folder = Folder::of("llama-w3-sym-g128");
    let legacy: Vec<u32> = (0..12).map(|j| [0, 0xb6db_6db7, 0x4924_9249][j % 3]).collect();
    folder.put(&format!("{Q}.qzeros"), Tensor::words(&[1, 12], &legacy));
    let dir = folder.write();
    let (m, w) = q(&dir);
    assert_eq!(*m.zeros(), Zeros::Midpoint);
    holds(&w, &["legacy 3-bit constants"]);
    assert_eq!(Checkpoint::open(&dir.0).unwrap().describe(Q).unwrap().zeros, ZeroDialect::V1Legacy);
}

/// The worked example of borrowing: zeros (0 5 0 15 8 1 3 7) written less one word by word.
#[test]
fn borrowed_zeros_by_writer() {
    let config = |writer: &str| format!(r#"{{"bits": 4, "group_size": -1, "sym": false, "meta": {{"quantizer": ["{writer}"]}}}}"#);
    let read = |writer: &str| {
        let dir = Folder::module(8, 8, &config(writer), 1, &[0x6207_df3f]).write();
        let folder = Checkpoint::open(&dir.0).unwrap();
        let report = folder.describe("m").unwrap();
        (per_group(&quantized(&folder, "m", 8, 8)), report.zeros, report.evidence, warnings(&folder))
    };
    let (z, dialect, evidence, w) = read("gptqmodel:7.7.0");
    assert_eq!((z.as_slice(), dialect, evidence), (&[0, 5, 0, 15, 8, 1, 3, 7][..], ZeroDialect::V1Borrowed, Evidence::Writer));
    assert_eq!(w, "");
    let (z, dialect, evidence, w) = read("auto_gptq:0.7.1");
    assert_eq!((z.as_slice(), dialect, evidence), (&[16, 4, 16, 14, 8, 1, 3, 7][..], ZeroDialect::V1, Evidence::Config));
    holds(&w, &["all ones: read as 2^bits"]);
}

/// A word whose zero of 0 flooded every field above it.
#[test]
fn overflowed_zeros() {
    let config = r#"{"bits": 4, "group_size": -1, "sym": false}"#;
    let dir = Folder::module(8, 8, config, 1, &[0xffff_fff7]).write();
    let folder = Checkpoint::open(&dir.0).unwrap();
    let report = folder.describe("m").unwrap();
    assert_eq!((report.zeros, report.lost_zeros, report.wrapped_zeros), (ZeroDialect::V1Overflow, 6, 7));
    let error = folder.linear("m", 8, 8, BiasRule::Optional).unwrap_err().to_string();
    holds(&error, &["m.qzeros", "overwrote 6 of all 8", "quantize the model again"]);
    let folder = folder.with_zeros(Some(ZeroLabel::V1)).unwrap();
    assert_eq!(per_group(&quantized(&folder, "m", 8, 8)), [8, 0, 16, 16, 16, 16, 16, 16]);
    holds(&warnings(&folder), &["are not the true ones", "(m)"]);
}

#[test]
fn symmetric_in_name_only() {
    let mut folder = Folder::of("llama-w4-asym-g64");
    let expected = per_group(&q(&folder.write()).0);
    folder.set("sym", json!(true));
    let (m, w) = q(&folder.write());
    assert_eq!(per_group(&m), expected);
    holds(&w, &["`sym` is true, but the stored zero points are not the midpoint"]);
}

#[test]
fn wide_codes_are_planar_whatever_the_config_says() {
    let mut folder = Folder::of("llama-w5-sym-g32-planar");
    let plain = oracle::dequantize(&q(&folder.write()).0);
    folder.set("checkpoint_format", json!("gptq")).set("format", json!("gptq"));
    let (m, w) = q(&folder.write());
    assert_eq!(oracle::dequantize(&m), plain);
    holds(&w, &["5 bit exists in the planar layout only", "the config says gptq"]);
}

#[test]
fn two_config_files_that_differ() {
    let mut folder = Folder::of("llama-w4-sym-g32-act");
    let config = String::from_utf8(folder.files["config.json"].clone()).unwrap();
    folder.json("config.json", &config.replace("\"group_size\": 32", "\"group_size\": 64").replace("\"sym\": true", "\"sym\": false"));
    let (m, w) = q(&folder.write());
    assert_eq!(m.group_count(), 4);
    holds(&w, &["quantize_config.json and ", "config.json differ in group_size, sym: the first is used"]);
}

#[test]
fn a_second_config_that_is_wrong() {
    let mut folder = Folder::of("llama-w4-sym-g128");
    folder.json("config.json", r#"{"quantization_config": {"quant_method": "gptq", "bits": 4}}"#);
    holds(
        &q(&folder.write()).1,
        &["a second quantization config is wrong", "quantize_config.json is used", "`quantization_config.group_size`"],
    );
}

#[test]
fn config_in_every_place_and_under_every_name() {
    let old = r#"{"wbits": 4, "q_group_size": 16, "zero_point": false, "is_marlin_format": false, "damp_percent": 0.01, "dynamic": null}"#;
    let zeros = [0x7777; 3];
    for (file, text) in [
        ("quant_config.json", old.to_string()),
        ("config.json", format!(r#"{{"quantization_config": {old}}}"#)),
        ("config.json", format!(r#"{{"compression_config": {old}}}"#)),
        ("config.json", format!(r#"{{"text_config": {{"quantization_config": {old}}}}}"#)),
    ] {
        let mut folder = Folder::module(40, 4, r#"{"bits": 4}"#, 3, &zeros);
        folder.files.remove("quantize_config.json");
        folder.json(file, &text);
        let dir = folder.write();
        let folder = Checkpoint::open(&dir.0).unwrap();
        let config = folder.quantization().unwrap();
        assert_eq!((config.bits, config.group_size, config.sym, config.desc_act), (4, GroupSize::Rows(16), true, false));
        quantized(&folder, "m", 40, 4);
        assert_eq!(warnings(&folder), "", "{file} {text}");
    }
}

#[test]
fn unknown_keys_missing_sym_and_idle_rules_are_listed() {
    let mut folder = Folder::of("llama-dynamic");
    folder.quantization(|map| {
        map.shift_remove("sym");
        map.insert("colour".into(), json!("blue"));
        map.insert("rotation".into(), json!("hadamard"));
        map["dynamic"].as_object_mut().unwrap().insert(r"-:.*\.qkv_proj".into(), json!({}));
    });
    let dir = folder.write();
    let w = warnings(&Checkpoint::open(&dir.0).unwrap());
    holds(&w, &["an unknown key", "colour", "is not applied", "rotation", "does not say `sym`", "matches no module", r"-:.*\.qkv_proj"]);
    assert_eq!(w.lines().count(), 4, "{w}");
}

/// A positive rule before a negative one that also matches: vLLM and the quantizer disagree, the tensors decide.
#[test]
fn the_two_readings_of_rule_order() {
    let rules = json!({ r"+:.*\.o_proj": {"bits": 4}, r"-:.*\.0\.self_attn\.o_proj": {} });
    let o = "model.layers.0.self_attn.o_proj";
    let mut dense = Folder::of("llama-dynamic");
    dense.quantization(|map| {
        for (rule, value) in rules.as_object().unwrap() {
            map["dynamic"].as_object_mut().unwrap().shift_remove(rule);
            map["dynamic"].as_object_mut().unwrap().insert(rule.clone(), value.clone());
        }
    });
    let dir = dense.write();
    let folder = Checkpoint::open(&dir.0).unwrap();
    assert!(matches!(folder.linear(o, 128, 128, BiasRule::Absent).unwrap(), LinearWeight::Dense { .. }));
    holds(&warnings(&folder), &["vLLM and GPTQModel apply different rules", "its tensors show it dense", o]);

    let mut quant = Folder::of("llama-w4-sym-g128");
    quant.set("dynamic", rules);
    let dir = quant.write();
    let folder = Checkpoint::open(&dir.0).unwrap();
    let report = folder.describe(o).unwrap();
    assert!(report.rule.differ());
    assert_eq!(report.rule.applied.as_deref(), Some(r"+:.*\.o_proj"));
    assert_eq!(report.rule.negatives_first.as_deref(), Some(r"-:.*\.0\.self_attn\.o_proj"));
    quantized(&folder, o, 128, 128);
    holds(&warnings(&folder), &["its tensors show it quantized"]);
}

#[test]
fn tensors_overrule_the_config() {
    let o = "model.layers.0.self_attn.o_proj";
    let mut folder = Folder::of("llama-dynamic");
    folder.quantization(|map| drop(map["dynamic"].as_object_mut().unwrap().shift_remove(r"-:.*\.0\.self_attn\.o_proj")));
    let dir = folder.write();
    let open = Checkpoint::open(&dir.0).unwrap();
    open.linear(o, 128, 128, BiasRule::Absent).unwrap();
    holds(&warnings(&open), &["dense though the quantization config does not leave it out", o]);

    let mut folder = Folder::of("llama-w4-sym-g128");
    folder.set("dynamic", json!({r"-:.*\.q_proj": {}}));
    holds(&q(&folder.write()).1, &["leaves a module dense, but it is quantized"]);

    let mut folder = Folder::of("llama-w4-lmhead");
    folder.set("lm_head", json!(false)).quantization(|map| {
        map.shift_remove("dynamic");
        map.insert("bits".into(), json!(8));
    });
    let dir = folder.write();
    let open = Checkpoint::open(&dir.0).unwrap();
    quantized(&open, "lm_head", 128, 320);
    holds(&warnings(&open), &["`lm_head` is false", "(lm_head)"]);

    let mut folder = Folder::of("llama-w4-sym-g128");
    folder.set("modules_in_block_to_quantize", json!([["self_attn.k_proj"], ["mlp.down_proj"]]));
    holds(&q(&folder.write()).1, &["not in `modules_in_block_to_quantize`"]);
}

#[test]
fn a_rule_may_bring_act_order_and_one_group_together() {
    let mut folder = Folder::of("llama-w4-sym-channel");
    folder.set("desc_act", json!(true)).set("dynamic", json!({"+:model": {"group_size": -1}})).set("group_size", json!(32));
    let (m, w) = q(&folder.write());
    assert_eq!((m.group_count(), w.as_str()), (1, ""));
}

#[test]
fn zero_filled_bias_of_a_model_without() {
    let mut folder = Folder::of("llama-w4-sym-g128");
    folder.put(&format!("{Q}.bias"), Tensor::f32(&[128], &[0.0; 128]));
    let dir = folder.write();
    let open = Checkpoint::open(&dir.0).unwrap();
    let LinearWeight::Quantized(m) = open.linear(Q, 128, 128, BiasRule::Absent).unwrap() else { panic!() };
    assert!(m.bias().is_none());
    assert!(!open.unread().iter().any(|t| t.starts_with(Q)));
}

#[test]
fn shards() {
    let folder = Folder::of("llama-w4-sym-g32-act");
    let dir = folder.write_files();
    let (first, second): (Vec<_>, Vec<_>) = folder.tensors.iter().partition(|(n, _)| n.contains("layers.0"));
    write_shard(&dir.0.join("a.safetensors"), first.iter().copied());
    write_shard(&dir.0.join("b.safetensors"), second.iter().copied());
    write_shard(&dir.0.join("stray.safetensors"), second.iter().copied().take(1));
    let map: serde_json::Map<_, _> = (first.iter().map(|(n, _)| (n, "a.safetensors")))
        .chain(second.iter().map(|(n, _)| (n, "b.safetensors")))
        .filter(|(n, _)| n.as_str() != "model.norm.weight")
        .map(|(n, f)| (n.to_string(), json!(f)))
        .collect();
    std::fs::write(dir.0.join("model.safetensors.index.json"), json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    let open = Checkpoint::open(&dir.0).unwrap();
    assert_eq!(open.tensor_names().count(), folder.tensors.len() - 1);
    quantized(&open, Q, 128, 128);
    holds(&warnings(&open), &["the index does not list is not read (model.norm.weight)", "is not read (stray.safetensors)"]);
}

#[test]
fn one_file_of_any_name() {
    let folder = Folder::of("llama-w4-sym-g128");
    let dir = folder.write_files();
    write_shard(&dir.0.join("gptq_model-4bit-128g.safetensors"), folder.tensors.iter());
    assert_eq!(q(&dir).1, "");
}

#[test]
fn a_model_in_memory() {
    let dir = common::fixture("llama-w4-sym-g128");
    let leak = |name: &str| -> &'static [u8] { std::fs::read(dir.join(name)).unwrap().leak() };
    let files = [("config.json", leak("config.json")), ("model.safetensors", leak("model.safetensors"))];
    let open = Checkpoint::from_memory("built-in", &files).unwrap();
    assert_eq!((open.name(), open.path()), ("built-in", None));
    let on_disk = Checkpoint::open(&dir).unwrap();
    let [a, b] = [&open, &on_disk].map(|c| oracle::dequantize(&quantized(c, Q, 128, 128)));
    assert_eq!(a, b);
    assert_eq!(open.file("config.json").unwrap().as_deref(), Some(files[0].1));
    assert_eq!(open.file("tokenizer.json").unwrap(), None);
}

/// Any number of threads may read; what they find wrong is listed in one order.
#[test]
fn reading_from_many_threads() {
    let mut folder = Folder::of("llama-w4-sym-g32-v2");
    folder.set("checkpoint_format", json!("gptq")).set("format", json!("gptq"));
    let dir = folder.write();
    let list = |threads: usize| {
        let open = Checkpoint::open(&dir.0).unwrap();
        let modules = open.quantized_modules();
        std::thread::scope(|s| {
            for part in modules.chunks(modules.len().div_ceil(threads)) {
                let open = &open;
                s.spawn(move || {
                    for module in part {
                        let report = open.describe(module).unwrap();
                        quantized(open, module, report.in_features, report.out_features);
                    }
                });
            }
        });
        assert!(open.unread().iter().all(|t| t.ends_with(".weight")), "{:?}", open.unread());
        open.warnings()
    };
    assert_eq!(list(1), list(5));
    assert_eq!(list(5)[0].subjects.len(), 14);
}

/// Folders of 2, 3 and 4 bits under the wrong label: the codes show the right reading, and a warning says so.
#[test]
fn mislabelled_zero_points_are_read_right() {
    for (name, right, wrong) in [
        ("llama-w2-asym-g64", "gptq", "gptq_v2"),
        ("llama-w2-asym-g32-v2", "gptq_v2", "gptq"),
        ("llama-w3-asym-g32", "gptq", "gptq_v2"),
        ("llama-w3-asym-g64-v2", "gptq_v2", "gptq"),
        ("llama-w4-asym-g64", "gptq", "gptq_v2"),
        ("llama-w4-asym-g32-v2", "gptq_v2", "gptq"),
    ] {
        let mut folder = Folder::of(name);
        let read = |folder: &Folder, forced: Option<ZeroLabel>| {
            let dir = folder.write();
            let open = Checkpoint::open(&dir.0).unwrap().with_zeros(forced).unwrap();
            let zeros: Vec<Zeros> = open
                .quantized_modules()
                .iter()
                .map(|m| {
                    let r = open.describe(m).unwrap();
                    quantized(&open, m, r.in_features, r.out_features).zeros().clone()
                })
                .collect();
            (zeros, warnings(&open), open.describe(Q).unwrap())
        };
        let (want, quiet, report) = read(&folder, None);
        assert!(quiet.is_empty(), "{name}: {quiet}");
        assert!(report.reason.contains("mean of code less zero point"), "{name}: {}", report.reason);
        folder.set("checkpoint_format", json!(wrong)).set("format", json!(wrong));
        let (found, warning, _) = read(&folder, None);
        assert!(found == want, "{name}: read as {right}");
        assert!(warning.contains("the weights are centred only as"), "{name}: {warning}");
        // the caller's word stands, and is contradicted
        let label = if wrong == "gptq" { ZeroLabel::V1 } else { ZeroLabel::V2 };
        let (forced, warning, _) = read(&folder, Some(label));
        assert!(forced != want && warning.contains("as the caller says, but"), "{name}: {warning}");
    }
}

#[test]
fn symmetric_zero_points_can_be_forced_and_others_cannot() {
    let dir = Folder::of("llama-w4-sym-g128").write();
    let open = Checkpoint::open(&dir.0).unwrap().with_zeros(Some(ZeroLabel::V2)).unwrap();
    let m = quantized(&open, Q, 128, 128);
    assert_eq!(m.zero(0, 0), 7, "one step off, as asked");
    assert!(warnings(&open).contains("as the caller says, but"));
    let planar = Folder::of("llama-w5-sym-g32-planar").write();
    let error = Checkpoint::open(&planar.0).unwrap().with_zeros(Some(ZeroLabel::V1)).unwrap_err().to_string();
    assert!(error.contains("one reading only"), "{error}");
}

/// Widths that exist in the planar layout only, in a folder that calls itself gptq: their zero points have one reading,
/// whatever the caller says of the folder.
#[test]
fn forced_zero_points_leave_planar_widths_alone() {
    for bits in [5, 6, 7] {
        let (k, n) = (32, 160);
        let config = json!({"bits": bits, "group_size": -1, "sym": false, "checkpoint_format": "gptq"}).to_string();
        // all fields of all ones, which a reader of v1 would have to look into
        let dir = Folder::module(k, n, &config, 1, &vec![u32::MAX; n * bits / 32]).write();
        let open = || Checkpoint::open(&dir.0).unwrap();
        let free = quantized(&open(), "m", k, n);
        assert_eq!(per_group(&free), vec![(1 << bits) - 1; n]);
        for label in [ZeroLabel::V1, ZeroLabel::V2] {
            let folder = open().with_zeros(Some(label)).unwrap();
            assert_eq!(per_group(&quantized(&folder, "m", k, n)), per_group(&free), "{bits} bit, {label}");
            holds(&warnings(&folder), &["planar zero points have one reading"]);
        }
    }
}
