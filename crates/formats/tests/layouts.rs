//! Layouts beside GPTQ's own: what their writers vary, and hostile tensors with the message that each must give.

mod common;

use billfish_formats::{BiasRule, Checkpoint, CheckpointFormat, Evidence, GroupSize, LinearWeight, ZeroDialect};
use billfish_tensor::{DType, Groups, QuantMatrix, Zeros, oracle};
use common::{Folder, Temp, Tensor, fixture, holds};
use serde_json::{Value, json};

const Q: &str = "model.layers.0.self_attn.q_proj";
const AWQ: &str = "llama-awq-asym-g32";
const W4: &str = "llama-ct-w4a16-g32";
const W3: &str = "llama-ct-w3a16-g32";
const W8A8: &str = "llama-ct-w8a8";

fn read(dir: &Temp, module: &str, k: usize, n: usize) -> (QuantMatrix, String) {
    let folder = Checkpoint::open(&dir.0).unwrap();
    let LinearWeight::Quantized(m) = folder.linear(module, k, n, BiasRule::Optional).unwrap() else { panic!("{module} is dense") };
    (m, folder.warnings().iter().map(|w| format!("{w}\n")).collect())
}

fn q(folder: &Folder) -> (Vec<f64>, String) {
    let (m, w) = read(&folder.write(), Q, 128, 128);
    (oracle::dequantize(&m), w)
}

/// The error of reading the first module of a changed fixture.
fn error(name: &str, change: impl FnOnce(&mut Folder) -> &mut Folder) -> String {
    let mut folder = Folder::of(name);
    change(&mut folder);
    let dir = folder.write();
    let open = Checkpoint::open(&dir.0).unwrap();
    open.linear(Q, 128, 128, BiasRule::Optional).expect_err("the module must not be read").to_string()
}

fn open_error(folder: &Folder) -> String {
    Checkpoint::open(&folder.write().0).expect_err("the folder must not open").to_string()
}

fn flat(t: &mut Tensor) {
    t.shape = vec![t.shape.iter().product()];
}

fn as_f32(t: &mut Tensor) {
    let count = t.shape.iter().product();
    *t = Tensor::f32(&t.shape, &vec![1.0; count]);
}

/// A bf16 or f32 NaN in the last place.
fn nan(t: &mut Tensor) {
    let at = t.bytes.len() - 2;
    t.bytes[at..].copy_from_slice(&[0xc0, 0x7f]);
}

fn signed(shape: &[usize], values: &[i8]) -> Tensor {
    Tensor { dtype: DType::I8, shape: shape.into(), bytes: values.iter().map(|v| *v as u8).collect() }
}

/// Codes along each of `rows` rows as one bit stream a row.
fn stream(codes: &[u8], rows: usize, bits: usize) -> Vec<u32> {
    let count = codes.len() / rows;
    let mut out = vec![];
    for row in codes.chunks(count) {
        let mut words = vec![0u32; (count * bits).div_ceil(32)];
        for (at, code) in row.iter().enumerate() {
            for b in (0..bits).filter(|b| code >> b & 1 == 1) {
                words[(at * bits + b) / 32] |= 1 << ((at * bits + b) % 32);
            }
        }
        out.extend(words);
    }
    out
}

/// The same with as many whole codes in a word as fit.
fn padded(codes: &[u8], rows: usize, bits: usize) -> Vec<u32> {
    let row = |row: &[u8]| row.chunks(32 / bits).flat_map(|c| stream(c, 1, bits)).collect::<Vec<_>>();
    codes.chunks(codes.len() / rows).flat_map(row).collect()
}

/// A folder of one compressed-tensors module `m` of `[k, n]`.
fn compressed(weights: Value, version: &str, tensors: &[(&str, Tensor)]) -> Folder {
    let mut folder = Folder { tensors: Default::default(), files: Default::default() };
    let config = json!({"quantization_config": {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "version": version,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": [],
    }});
    folder.json("config.json", &config.to_string());
    for (part, t) in tensors {
        folder.put(&format!("m.{part}"), t.clone());
    }
    folder
}

fn shape(n: usize, k: usize) -> Tensor {
    let bytes = [n as i64, k as i64].iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor { dtype: DType::I64, shape: vec![2], bytes }
}

/// Every width, both generations, packed and plain zero points, ragged everything: against a loop over the codes.
#[test]
fn compressed_codes_of_every_width_and_generation() {
    let mut seed = 7u32;
    let mut next = |below: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((seed >> 16) % below) as u8
    };
    for bits in 2..=8usize {
        for (k, n, group) in [(70usize, 9, 32), (64, 40, 16), (33, 3, 33)] {
            let groups = k.div_ceil(group);
            let codes: Vec<u8> = (0..n * k).map(|_| next(1 << bits)).collect();
            let zeros: Vec<u8> = (0..groups * n).map(|_| next(1 << bits)).collect(); // [groups, n]
            let scales: Vec<f32> = (0..n * groups).map(|i| 0.5 + i as f32).collect();
            let want: Vec<f64> = (0..k * n)
                .map(|i| {
                    let (row, col) = (i / n, i % n);
                    let g = row / group;
                    (f64::from(codes[col * k + row]) - f64::from(zeros[g * n + col])) * f64::from(scales[col * groups + g])
                })
                .collect();
            for (version, pack) in [("0.19.0", stream as fn(&[u8], usize, usize) -> Vec<u32>), ("0.17.1.a20260101", padded)] {
                for packed_zeros in [true, false] {
                    let words = pack(&codes, n, bits);
                    let zero = if packed_zeros {
                        let rows = pack(&zeros, groups, bits);
                        let per = rows.len() / groups;
                        let turned: Vec<u32> = (0..rows.len()).map(|i| rows[i % groups * per + i / groups]).collect();
                        Tensor::words(&[per, groups], &turned)
                    } else {
                        let less = |i: usize| (i16::from(zeros[i % groups * n + i / groups]) - (1 << (bits - 1))) as i8;
                        signed(&[n, groups], &(0..n * groups).map(less).collect::<Vec<_>>())
                    };
                    let weights = json!({"num_bits": bits, "type": "int", "symmetric": false, "strategy": "group", "group_size": group});
                    let parts = [
                        ("weight_packed", Tensor::words(&[n, words.len() / n], &words)),
                        ("weight_scale", Tensor::f32(&[n, groups], &scales)),
                        ("weight_zero_point", zero),
                        ("weight_shape", shape(n, k)),
                    ];
                    let dir = compressed(weights, version, &parts).write();
                    let (m, w) = read(&dir, "m", k, n);
                    assert_eq!((oracle::dequantize(&m), w.as_str()), (want.clone(), ""), "{bits} bit [{k}, {n}] {version}");
                    let report = Checkpoint::open(&dir.0).unwrap().describe("m").unwrap();
                    assert_eq!((report.in_features, report.out_features, report.bits as usize), (k, n, bits));
                }
            }
        }
    }
}

#[test]
fn two_packings_of_one_shape_without_a_version() {
    let weights = json!({"num_bits": 3, "type": "int", "symmetric": true, "strategy": "channel"});
    for (k, words, warns) in [(33, 4, true), (10, 1, false), (70, 7, true), (120, 12, true), (330, 31, false)] {
        let parts = [
            ("weight_packed", Tensor::words(&[2, words], &vec![0; 2 * words])),
            ("weight_scale", Tensor::f32(&[2, 1], &[1.0; 2])),
            ("weight_shape", shape(2, k)),
        ];
        let mut folder = compressed(weights.clone(), "0.18.0", &parts);
        assert_eq!(read(&folder.write(), "m", k, 2).1, "");
        folder.set("version", Value::Null);
        let w = read(&folder.write(), "m", k, 2).1;
        assert_eq!(w.contains("the shape fits two packings: read as version 0.18 and later pack (m)"), warns, "{k}: {w}");
    }
}

/// The same numbers through int-quantized, also with a width below that of a byte.
#[test]
fn signed_bytes_of_every_width() {
    for bits in [2, 4, 7, 8] {
        let (k, n) = (37, 3);
        let middle = 1i16 << (bits - 1);
        let codes: Vec<i8> = (0..n * k).map(|i| ((i as i16 * 11) % (2 * middle) - middle) as i8).collect();
        let weights = json!({"num_bits": bits, "type": "int", "symmetric": true, "strategy": "tensor"});
        let parts = [("weight", signed(&[n, k], &codes)), ("weight_scale", Tensor::f32(&[1], &[0.25]))];
        let mut folder = compressed(weights, "0.19.0", &parts);
        folder.set("format", json!("int-quantized"));
        let (m, w) = read(&folder.write(), "m", k, n);
        let want: Vec<f64> = (0..k * n).map(|i| f64::from(codes[i % n * k + i / n]) * 0.25).collect();
        assert_eq!((oracle::dequantize(&m), w.as_str()), (want, ""));
        if bits < 8 {
            folder.edit("m.weight", |t| t.bytes[k + 2] = middle as u8);
            let open = Checkpoint::open(&folder.write().0).unwrap().linear("m", k, n, BiasRule::Absent).unwrap_err().to_string();
            holds(
                &open,
                &["tensor `m.weight`", &format!("{bits} bit codes, {} to {}", -middle, middle - 1), &format!("{middle} at [1, 2]")],
            );
        }
    }
}

#[test]
fn compressed_act_order() {
    let codes: Vec<u8> = (0..16).collect();
    let g_idx = [1u32, 0, 1, 0, 0, 1, 1, 0];
    let weights = json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 4, "actorder": "group"});
    let parts = [
        ("weight_packed", Tensor::words(&[2, 1], &stream(&codes, 2, 4))),
        ("weight_scale", Tensor::f32(&[2, 2], &[1.0, 10.0, 100.0, 1000.0])),
        ("weight_shape", shape(2, 8)),
        ("weight_g_idx", Tensor::words(&[8], &g_idx)),
    ];
    let mut folder = compressed(weights, "0.11.0", &parts);
    let (m, w) = read(&folder.write(), "m", 8, 2);
    assert_eq!((m.groups(), w.as_str()), (&Groups::Index { g_idx: g_idx.to_vec(), count: 2 }, ""));
    assert_eq!(oracle::dequantize(&m)[..4], [-80.0, 0.0, -7.0, 100.0]);
    folder.remove("m.weight_g_idx");
    holds(&read(&folder.write(), "m", 8, 2).1, &["there is no `g_idx`"]);
}

/// Groups by name, by pattern and by class: the closest one counts.
#[test]
fn compressed_groups_of_modules() {
    let mut folder = Folder::of(W4);
    let eight = Folder::of("llama-ct-w8a16-channel");
    for part in ["weight_packed", "weight_scale", "weight_shape"] {
        let name = format!("{Q}.{part}");
        folder.put(&name, eight.tensors[&name].clone());
    }
    let mut config: Value = serde_json::from_slice(&folder.files["config.json"]).unwrap();
    let groups = &mut config["quantization_config"]["config_groups"];
    let mut channel = groups["group_0"].clone();
    channel["weights"]["num_bits"] = json!(8);
    channel["weights"]["strategy"] = json!("channel");
    channel["weights"]["group_size"] = Value::Null;
    for target in [Q, r"re:.*layers\.0\.self_attn\.q_proj$"] {
        channel["targets"] = json!([target]);
        groups["group_1"] = channel.clone();
        folder.set("config_groups", groups.clone());
        let dir = folder.write();
        let open = Checkpoint::open(&dir.0).unwrap();
        let report = open.describe(Q).unwrap();
        assert_eq!((report.bits, report.group_size, report.groups), (8, GroupSize::Channel, 1));
        assert_eq!(open.describe("model.layers.1.self_attn.q_proj").unwrap().bits, 4);
        assert_eq!(open.warnings(), []);
    }
    channel["targets"] = json!(["re:never"]);
    groups["group_1"] = channel;
    folder.set("config_groups", groups.clone());
    let open = folder.write();
    let open = Checkpoint::open(&open.0).unwrap();
    holds(&open.warnings()[0].to_string(), &["an entry of `config_groups` names no module", "re:never"]);
}

#[test]
fn every_spelling_of_not_quantized_is_compared_with_the_tensors() {
    let warnings = |name: &str, key: &str, value: Value, module: &str| {
        let mut folder = Folder::of(name);
        folder.set(key, value);
        let dir = folder.write();
        let open = Checkpoint::open(&dir.0).unwrap();
        open.is_quantized(module).unwrap();
        open.warnings().iter().map(|w| format!("{w}\n")).collect::<String>()
    };
    let against = |key: &str| format!("`{key}` leaves a module dense, but it is quantized: its tensors are followed ({Q})");
    holds(&warnings(AWQ, "modules_to_not_convert", json!(["q_proj"]), Q), &[&against("modules_to_not_convert")]);
    assert_eq!(warnings(AWQ, "modules_to_not_convert", json!(["lm_head", "k_proj"]), Q), "");
    holds(&warnings(AWQ, "modules_to_not_convert", json!(["visual"]), Q), &["names no module of the checkpoint (visual)"]);
    holds(&warnings(W4, "ignore", json!(["lm_head", "re:.*q_proj"]), Q), &[&against("ignore")]);
    let o = "model.layers.1.self_attn.o_proj";
    assert_eq!(warnings(W3, "ignore", json!(["lm_head", o]), o), "");
    holds(&warnings(W3, "ignore", json!(["lm_head"]), o), &["a module is dense though the quantization config does not leave it out", o]);
}

#[test]
fn awq_reports_and_variants() {
    let open = Checkpoint::open(&fixture(AWQ)).unwrap();
    let r = open.describe(Q).unwrap();
    assert_eq!((r.format, r.bits, r.groups, r.zeros, r.evidence), (CheckpointFormat::AwqGemm, 4, 4, ZeroDialect::V2, Evidence::Format));
    assert_eq!(r.bytes, 128 * 64 + 4 * 64 + 4 * 128 * 2);
    let mut folder = Folder::of(AWQ);
    let plain = q(&folder);
    assert_eq!(plain.1, "");
    folder.files.remove("quantize_config.json");
    let auto = json!({"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "zero_point": true, "version": "GEMM", "backend": "autoawq"});
    folder.json("config.json", &json!({ "quantization_config": auto }).to_string());
    assert_eq!(q(&folder), plain);
    // A symmetric one: every zero point the midpoint.
    folder.set("zero_point", json!(false));
    holds(&q(&folder).1, &["symmetric, but its zero points are not the midpoint: the stored ones are used"]);
    folder.edit(&format!("{Q}.qzeros"), |t| t.bytes.fill(0x88));
    let (m, w) = read(&folder.write(), Q, 128, 128);
    assert_eq!((m.zeros(), w.as_str()), (&Zeros::Midpoint, ""));
}

#[test]
fn awq_tensors() {
    let tensor = |part: &str| format!("model.safetensors: tensor `{Q}.{part}`");
    let at = |part: &str| format!("{Q}.{part}");
    let e = error(AWQ, |f| f.edit(&at("qweight"), flat));
    holds(&e, &[&tensor("qweight"), "shape [128, 16] (eight 4-bit codes in a word of a [128, 128] weight), found shape [2048]"]);
    holds(&error(AWQ, |f| f.edit(&at("qzeros"), flat)), &[&tensor("qzeros"), "shape [4, 16] (4 groups), found shape [64]"]);
    holds(&error(AWQ, |f| f.edit(&at("scales"), flat)), &[&tensor("scales"), "shape [4, 128] (group_size 32), found shape [512]"]);
    holds(&error(AWQ, |f| f.set("group_size", json!(64))), &[&tensor("scales"), "shape [2, 128] (group_size 64), found shape [4, 128]"]);
    for part in ["qweight", "qzeros"] {
        holds(&error(AWQ, |f| f.edit(&at(part), as_f32)), &[&tensor(part), "dtype I32 or U32, found dtype F32"]);
    }
    holds(&error(AWQ, |f| f.edit(&at("scales"), |t| t.dtype = DType::I16)), &[&tensor("scales"), "dtype F16 or BF16 or F32"]);
    holds(&error(AWQ, |f| f.edit(&at("scales"), nan)), &[&tensor("scales"), "a finite number, found NaN at [3, 127]"]);
    for part in ["qzeros", "scales"] {
        holds(&error(AWQ, |f| f.remove(&at(part))), &[&format!("tensor `{Q}.{part}`"), "none of that name"]);
    }
}

#[test]
fn awq_configs() {
    let with = |key: &str, value: Value| {
        let mut folder = Folder::of(AWQ);
        open_error(folder.set(key, value))
    };
    for version in ["exllama", "bitblas"] {
        let expected = "key `version`: expected `gemm`, `gemv`, `gemv_fast`, `llm-awq` or `marlin`";
        holds(&with("version", json!(version)), &[expected, &format!("found \"{version}\""), "gemm layout"]);
    }
    holds(&with("backend", json!(3)), &["key `backend`", "found 3"]);
    holds(&with("version", json!("gemv")), &["key `checkpoint_format`: expected awq gemv as another key says, found awq gemm"]);
    holds(&with("is_marlin_format", json!(true)), &["key `is_marlin_format`: expected what `quant_method` says, found true"]);
    holds(&with("bits", json!(8)), &["key `bits`: expected 4 in the awq gemm layout, found 8"]);
    let e = error(AWQ, |f| f.set("dynamic", json!({r"+:.*q_proj": {"bits": 8}})));
    holds(&e, &[&format!("tensor `{Q}.qweight`"), "4 bit in the awq gemm layout, found 8 bit in the quantization config"]);
    holds(&with("checkpoint_format", json!("exllama")), &["key `checkpoint_format`", "found \"exllama\""]);
}

#[test]
fn compressed_tensors() {
    let tensor = |part: &str| format!("model.safetensors: tensor `{Q}.{part}`");
    let at = |part: &str| format!("{Q}.{part}");
    let e = error(W4, |f| f.edit(&at("weight_packed"), |t| t.shape = vec![256, 8]));
    holds(&e, &[&tensor("weight_packed"), "shape [128, 16] (4 bit codes of a [128, 128] weight), found shape [256, 8]"]);
    holds(&error(W4, |f| f.edit(&at("weight_packed"), flat)), &[&tensor("weight_packed"), "two dimensions, found shape [2048]"]);
    holds(&error(W4, |f| f.edit(&at("weight_packed"), as_f32)), &[&tensor("weight_packed"), "dtype I32, found dtype F32"]);
    holds(
        &error(W4, |f| f.edit(&at("weight_scale"), flat)),
        &[&tensor("weight_scale"), "shape [128, 4] (group_size 32), found shape [512]"],
    );
    holds(&error(W4, |f| f.edit(&at("weight_scale"), |t| t.dtype = DType::I32)), &[&tensor("weight_scale"), "dtype F16 or BF16 or F32"]);
    holds(&error(W4, |f| f.edit(&at("weight_scale"), nan)), &[&tensor("weight_scale"), "a finite number, found NaN at [127, 3]"]);
    holds(&error(W4, |f| f.remove(&at("weight_scale"))), &[&format!("tensor `{Q}.weight_scale`"), "none of that name"]);
    holds(&error(W4, |f| f.edit(&at("weight_shape"), |t| t.bytes[0] = 64)), &[&tensor("weight_shape"), "[128, 128], found [64, 128]"]);
    holds(&error(W4, |f| f.edit(&at("weight_shape"), |t| t.bytes[7] = 0xff)), &[&tensor("weight_shape"), "two sizes below 2^32"]);
    holds(&error(W4, |f| f.put(&at("weight_shape"), Tensor::words(&[1, 2], &[128, 128]))), &[&tensor("weight_shape"), "shape [2]"]);
    holds(&error(W4, |f| f.put(&at("weight_shape"), Tensor::f32(&[2], &[1.0; 2]))), &[&tensor("weight_shape"), "dtype I64 or I32"]);
    let zero = |t: Tensor| error(W4, |f| f.put(&at("weight_zero_point"), t));
    holds(&zero(Tensor::words(&[4, 16], &[0; 64])), &[&tensor("weight_zero_point"), "shape [16, 4] (4 bit, 128 outputs, 4 groups)"]);
    holds(&zero(signed(&[128, 3], &[0; 384])), &[&tensor("weight_zero_point"), "shape [128, 4]"]);
    holds(&zero(signed(&[128, 4], &[9; 512])), &[&tensor("weight_zero_point"), "-8 to 7, found 9 at [0]"]);
    holds(&zero(Tensor::f32(&[16, 4], &[0.0; 64])), &[&tensor("weight_zero_point"), "dtype I32 or I8"]);
    let index = |t: Tensor| error(W4, |f| f.put(&at("weight_g_idx"), t));
    holds(&index(Tensor::words(&[64], &[0; 64])), &[&tensor("weight_g_idx"), "shape [128], found shape [64]"]);
    holds(&index(Tensor::words(&[128], &[4; 128])), &[&tensor("weight_g_idx"), "groups below 4", "found 4 at [0]"]);
    holds(&error(W8A8, |f| f.edit(&at("weight"), |t| t.shape = vec![64, 256])), &[&tensor("weight"), "shape [128, 128] (a byte a code)"]);
    holds(&error(W8A8, |f| f.edit(&at("weight_scale"), nan)), &[&tensor("weight_scale"), "finite", "[127, 0]"]);
    // Asymmetric in the config, but without zero points.
    let asym = |f: &mut Folder| {
        let mut config: Value = serde_json::from_slice(&f.files["config.json"]).unwrap();
        let groups = &mut config["quantization_config"]["config_groups"];
        groups["group_0"]["weights"]["symmetric"] = json!(false);
        let groups = groups.clone();
        f.set("config_groups", groups);
    };
    let e = error(W4, |f| {
        asym(f);
        f
    });
    holds(&e, &["`weight_zero_point` beside it, as the config says asymmetric, found none"]);
    let mut folder = Folder::of(W4);
    folder.remove(&at("weight_shape"));
    let dir = folder.write();
    let open = Checkpoint::open(&dir.0).unwrap();
    holds(&open.describe(Q).unwrap_err().to_string(), &[&tensor("weight_packed"), "`weight_shape` beside it"]);
    assert!(open.linear(Q, 128, 128, BiasRule::Absent).is_ok(), "the architecture knows the size");
}

#[test]
fn compressed_configs() {
    let with = |key: &str, value: Value| open_error(Folder::of(W4).set(key, value));
    holds(
        &with("format", json!("marlin-24")),
        &["key `quantization_config.format`", "pack-quantized or int-quantized, found \"marlin-24\""],
    );
    holds(&with("config_groups", json!({})), &["key `quantization_config.config_groups`", "a group with `weights`"]);
    holds(&with("config_groups", Value::Null), &["key `quantization_config.config_groups`", "no such key"]);
    holds(&with("transform_config", json!({"config_groups": {}})), &["transform_config`: expected no transforms"]);
    holds(&with("sparsity_config", json!({"format": "sparse-bitmask"})), &["sparsity_config`: expected no sparsity"]);
    holds(&with("ignore", json!(["re:("])), &["key `quantization_config.ignore`", "a regular expression"]);
    holds(&with("ignore", json!([r"re:(?=(.*.*)*x)(\w|\.)*\1y"])), &["key `ignore`", "can be decided for `model.", "simplify"]);
    let group = |key: &str, value: Value| {
        let mut weights = json!({"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32});
        weights[key] = value;
        with("config_groups", json!({"g": {"targets": ["Linear"], "weights": weights}}))
    };
    let key = "key `quantization_config.config_groups.g.weights.";
    holds(&group("num_bits", json!(16)), &[&format!("{key}num_bits`"), "2 to 8, found 16"]);
    holds(&group("type", json!("float")), &[&format!("{key}type`"), "`int` in compressed-tensors pack-quantized, found \"float\""]);
    holds(&group("strategy", json!("block")), &[&format!("{key}strategy`"), "group, channel or tensor, found \"block\""]);
    holds(&group("group_size", Value::Null), &[&format!("{key}group_size`"), "no such key"]);
    holds(&group("dynamic", json!(true)), &[&format!("{key}dynamic`"), "expected false"]);
}

/// Floats are listed and described, and refused by name when they are to be read.
#[test]
fn float_formats_open_and_are_refused_by_name() {
    for (name, format, bits, tensor) in [
        ("llama-ct-fp8-dynamic", CheckpointFormat::FloatQuantized, 8, "weight"),
        ("llama-ct-nvfp4a16", CheckpointFormat::Nvfp4, 4, "weight_packed"),
        ("llama-ct-mxfp4a16", CheckpointFormat::Mxfp4, 4, "weight_packed"),
    ] {
        let open = Checkpoint::open(&fixture(name)).unwrap();
        assert_eq!(open.quantized_modules().len(), 14, "{name}");
        let r = open.describe("model.layers.0.mlp.down_proj").unwrap();
        assert_eq!((r.format, r.bits, r.in_features, r.out_features), (format, bits, 256, 128));
        assert!(r.refusal.is_some());
        let e = open.linear(Q, 128, 128, BiasRule::Absent).unwrap_err().to_string();
        holds(&e, &[&format!("model.safetensors: tensor `{Q}.{tensor}`"), &format!("found {} weights", format.name())]);
        holds(&e, &["GPTQ, AWQ, marlin, compressed-tensors pack-quantized or int-quantized"]);
    }
}

/// A fixture's words cut into words of other widths: the same matrix.
#[test]
fn gptq_words_of_other_widths() {
    for name in ["llama-w4-asym-g64", "llama-w2-asym-g64", "llama-w8-asym-g128"] {
        let plain = q(&Folder::of(name));
        for (dtype, size, width) in [(DType::I8, 1, 8), (DType::I16, 2, 16), (DType::I64, 8, 64)] {
            let mut folder = Folder::of(name);
            folder.set("pack_dtype", json!(format!("int{width}")));
            for part in ["qweight", "qzeros"] {
                folder.edit(&format!("{Q}.{part}"), |t| {
                    let [rows, cols] = t.shape[..] else { panic!() };
                    if part == "qweight" {
                        // Bytes of each column in order, then elements of `size` of them.
                        let byte = |at: usize, col: usize| t.bytes[(at / 4 * cols + col) * 4 + at % 4];
                        let all = (0..rows * 4 / size).flat_map(|r| (0..cols).flat_map(move |c| (0..size).map(move |b| (r * size + b, c))));
                        t.bytes = all.map(|(at, c)| byte(at, c)).collect();
                        t.shape = vec![rows * 4 / size, cols];
                    } else {
                        t.shape = vec![rows, cols * 4 / size];
                    }
                    t.dtype = dtype;
                });
            }
            assert_eq!(q(&folder), plain, "{name} {dtype}");
            folder.set("pack_dtype", json!("int32"));
            holds(&q(&folder).1, &[&format!("`pack_dtype` is int32, but the words have {width} bits")]);
            folder.edit(&format!("{Q}.qzeros"), |t| t.dtype = if size == 1 { DType::I16 } else { DType::I8 });
            folder.edit(&format!("{Q}.qzeros"), |t| {
                let length = t.bytes.len() / t.dtype.size();
                t.shape = vec![length / t.shape[0], t.shape[0]];
            });
            let e = Checkpoint::open(&folder.write().0).unwrap().linear(Q, 128, 128, BiasRule::Absent).unwrap_err().to_string();
            holds(&e, &[&format!("words of {width} bits, as in `{Q}.qweight`")]);
        }
    }
    let e = error("llama-w3-asym-g32", |f| f.edit(&format!("{Q}.qweight"), |t| (t.dtype, t.shape) = (DType::I8, vec![48, 128])));
    holds(&e, &["dtype I32 or U32, found dtype I8"]);
}

#[test]
fn auto_round() {
    let mut folder = Folder::of("llama-w4-asym-g64");
    let v1 = q(&folder);
    let config = |packing: &str| {
        json!({"quant_method": "auto-round", "bits": 4, "group_size": 64, "sym": false, "data_type": "int", "iters": 200,
               "packing_format": packing, "block_name_to_quantize": "model.layers"})
    };
    let plain = |folder: &mut Folder, config: Value| {
        folder.files.remove("quantize_config.json");
        folder.json("config.json", &json!({ "quantization_config": config }).to_string());
    };
    plain(&mut folder, config("auto_round:auto_gptq"));
    let dir = folder.write();
    let (m, w) = read(&dir, Q, 128, 128);
    assert_eq!((oracle::dequantize(&m), w), v1);
    assert!(Checkpoint::open(&dir.0).unwrap().is_quantized(Q).unwrap());
    let mut v2 = Folder::of("llama-w4-asym-g32-v2");
    let want = q(&v2);
    plain(&mut v2, config("auto_round"));
    v2.set("group_size", json!(32));
    assert_eq!(q(&v2), want);
    let mut awq = Folder::of(AWQ);
    let want = q(&awq);
    plain(&mut awq, config("auto_round:auto_awq"));
    awq.set("group_size", json!(32)).set("quant_method", json!("intel/auto-round"));
    assert_eq!(q(&awq), want);
    plain(&mut folder, config("auto_round:fp8"));
    holds(&open_error(&folder), &["key `quantization_config.packing_format`", "found \"auto_round:fp8\""]);
    folder.set("packing_format", Value::Null);
    holds(&q(&folder).1, &["does not say `packing_format`: read as auto_round:auto_gptq"]);
}

#[test]
fn auto_round_modules_of_their_own() {
    let mut folder = Folder::of("llama-w4-asym-g64");
    let eight = Folder::of("llama-w8-asym-g128");
    for part in ["qweight", "qzeros", "scales", "g_idx"] {
        let name = format!("{Q}.{part}");
        folder.put(&name, eight.tensors[&name].clone());
    }
    folder.files.remove("quantize_config.json");
    let config = |extra: Value, blocks: Value| {
        json!({"quantization_config": {"quant_method": "auto-round", "bits": 4, "group_size": 64, "sym": false,
               "packing_format": "auto_round:auto_gptq", "extra_config": extra, "block_name_to_quantize": blocks}})
    };
    let mut with = |extra: Value, blocks: Value| {
        folder.json("config.json", &config(extra, blocks).to_string());
        let dir = folder.write();
        let open = Checkpoint::open(&dir.0).map_err(|e| e.to_string())?;
        let report = open.describe(Q).map_err(|e| e.to_string())?;
        open.is_quantized("model.layers.1.self_attn.q_proj").unwrap();
        Ok::<_, String>((report.bits, report.group_size, open.warnings().iter().map(|w| format!("{w}\n")).collect::<String>()))
    };
    let own = json!({"bits": 8, "group_size": 128, "act_bits": 16});
    for key in [Q, r".*layers\.0\.self_attn\.q_proj"] {
        let expected = (8, GroupSize::Rows(128), String::new());
        assert_eq!(with(json!({ key: own }), json!(["model.layers"])).unwrap(), expected);
    }
    holds(&with(json!({}), Value::Null).unwrap_err(), &["which would be 8 bit"]);
    let (.., w) = with(json!({Q: own, "model.layers.9.x": {"bits": 16}}), json!(["model.layers.0"])).unwrap();
    holds(&w, &["an entry of `extra_config` names no module of the checkpoint (model.layers.9.x)"]);
    holds(&w, &["`block_name_to_quantize` leaves a module dense, but it is quantized"]);
    holds(&with(json!({Q: {"bits": 9}}), Value::Null).unwrap_err(), &["extra_config", "bits`", "found 9"]);
    let (.., w) = with(json!({Q: own, "model.layers.1.self_attn.q_proj": {"bits": 16}}), Value::Null).unwrap();
    holds(&w, &["`extra_config` leaves a module dense, but it is quantized"]);
}
