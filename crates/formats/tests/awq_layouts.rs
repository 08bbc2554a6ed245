//! The AWQ layouts beside gemm: packed here by loops over the codes that follow the writers step by step, and read back.

mod common;

use billfish_formats::{BiasRule, Checkpoint, CheckpointFormat, LinearWeight, Target, ZeroDialect, convert, explain, serially, verify};
use billfish_tensor::{DType, QuantMatrix, oracle};
use common::{Folder, Temp, Tensor, holds};
use half::f16;
use serde_json::{Value, json};

struct Module {
    k: usize,
    n: usize,
    group: usize,
    /// `[n, k]`.
    codes: Vec<u8>,
    /// `[n, groups]`.
    zeros: Vec<u8>,
    scales: Vec<f32>,
}

impl Module {
    fn new(k: usize, n: usize, group: usize) -> Module {
        let groups = k / group;
        let mix = |i: usize| (i as u32 + 1).wrapping_mul(0x9e37_79b9) >> 28;
        let codes = (0..n * k).map(|i| mix(i) as u8).collect();
        let zeros = (0..n * groups).map(|i| mix(7 * i + 3) as u8).collect();
        // not round numbers, one of them negative, one 0 and one below the smallest normal F16
        let scale = |i: usize| match i {
            3 => -0.0123,
            5 => 0.0,
            8 => 3.1e-5,
            _ => 0.001 + i as f32 / 997.0,
        };
        let scales = (0..n * groups).map(|i| f16::from_f32(scale(i)).to_f32()).collect();
        Module { k, n, group, codes, zeros, scales }
    }

    fn groups(&self) -> usize {
        self.k / self.group
    }

    /// Row-major `[k, n]`.
    fn weights(&self) -> Vec<f64> {
        let weight = |i: usize| {
            let (row, col) = (i / self.n, i % self.n);
            let at = col * self.groups() + row / self.group;
            (f64::from(self.codes[col * self.k + row]) - f64::from(self.zeros[at])) * f64::from(self.scales[at])
        };
        (0..self.k * self.n).map(weight).collect()
    }

    /// Words of zero points that a row of groups takes, with padding.
    fn words(&self) -> usize {
        let multiple = if self.group >= 128 { 1 } else { 128 / self.group };
        self.groups().div_ceil(8).div_ceil(multiple) * multiple
    }

    /// `[n, groups]` with each row filled up.
    fn filled(&self, values: &[f32]) -> Vec<f32> {
        values
            .chunks(self.groups())
            .flat_map(|row| (0..8 * self.words()).map(|g| row.get(g).copied().unwrap_or(0.0)).collect::<Vec<_>>())
            .collect()
    }

    /// qweight, qzeros and scales of the gemv layout.
    fn gemv(&self) -> [Tensor; 3] {
        let word = |codes: &[u8]| codes.iter().rev().fold(0u32, |w, &q| w << 4 | u32::from(q));
        let qweight: Vec<u32> = self.codes.chunks(8).map(word).collect();
        let mut qzeros = vec![];
        for row in self.zeros.chunks(self.groups()) {
            let mut words: Vec<u32> = row.chunks(8).map(word).collect();
            words.resize(self.words(), 0);
            qzeros.extend(words);
        }
        [
            Tensor::words(&[self.n, self.k / 8], &qweight),
            Tensor::words(&[self.n, self.words()], &qzeros),
            Tensor::f16(&[self.n, 8 * self.words()], &self.filled(&self.scales)),
        ]
    }

    /// qweight, scaled zeros and scales of the layout in 16-bit words.
    fn fast(&self) -> [Tensor; 3] {
        let mut reordered = vec![];
        for run in self.codes.chunks(32) {
            // pairs of one in four together, then even before odd in each eight
            let pairs: Vec<u8> =
                (0..4).flat_map(|b| (0..4).flat_map(move |a| [8 * a + 2 * b, 8 * a + 2 * b + 1])).map(|i| run[i]).collect();
            reordered.extend(pairs.chunks(8).flat_map(|e| [0, 2, 4, 6, 1, 3, 5, 7].map(|i| e[i])));
        }
        let mut words: Vec<u16> = vec![];
        for band in reordered.chunks(4 * self.k) {
            for block in (0..self.k).step_by(64) {
                let tile: Vec<u8> = band.chunks(self.k).flat_map(|row| row[block..block + 64].to_vec()).collect();
                words.extend(tile.chunks(4).map(|q| q.iter().rev().fold(0, |w, &q| w << 4 | u16::from(q))));
            }
        }
        let rows = 8 * self.words();
        let turned = |v: Vec<f32>| -> Vec<f32> { (0..v.len()).map(|i| v[i % self.n * rows + i / self.n]).collect() };
        let products: Vec<f32> = self.scales.iter().zip(&self.zeros).map(|(s, &z)| -(s * f32::from(z))).collect();
        let bytes = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        [
            Tensor { dtype: DType::I16, shape: vec![self.n / 4, self.k], bytes },
            Tensor::f16(&[rows, self.n], &turned(self.filled(&products))),
            Tensor::f16(&[rows, self.n], &turned(self.filled(&self.scales))),
        ]
    }
}

fn config(version: &str, group: i64) -> Value {
    json!({"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": true, "version": version})
}

fn folder(config: &Value, [qweight, zeros, scales]: [Tensor; 3], zeros_name: &str) -> Folder {
    Folder::of_parts(config, &[("qweight", qweight), (zeros_name, zeros), ("scales", scales)])
}

fn read(open: &Checkpoint, k: usize, n: usize) -> QuantMatrix {
    match open.linear("m", k, n, BiasRule::Optional).unwrap() {
        LinearWeight::Quantized(m) => m,
        LinearWeight::Dense { .. } => panic!("dense"),
    }
}

const SIZES: [(usize, usize, usize); 5] = [(256, 24, 32), (512, 8, 64), (256, 16, 128), (1024, 8, 32), (128, 8, 128)];

fn check(dir: &Temp, m: &Module, format: CheckpointFormat) -> Checkpoint {
    let open = Checkpoint::open(&dir.0).unwrap();
    let r = open.describe("m").unwrap();
    assert_eq!((r.in_features, r.out_features, r.groups, r.format), (m.k, m.n, m.groups(), format));
    let matrix = read(&open, m.k, m.n);
    // a zero point of a scale of 0 says nothing and need not come back
    assert!(oracle::dequantize(&matrix) == m.weights(), "{format:?} [{}, {}] {}", m.k, m.n, m.group);
    assert_eq!(open.unread(), Vec::<String>::new());
    open
}

#[test]
fn both_layouts_are_read() {
    for (k, n, group) in SIZES {
        let m = Module::new(k, n, group);
        let size = if group == k { -1 } else { group as i64 };
        let open = check(&folder(&config("gemv", size), m.gemv(), "qzeros").write(), &m, CheckpointFormat::AwqGemv);
        assert!(open.warnings().is_empty(), "{:?}", open.warnings());
        for (version, zeros) in [("gemv_fast", "qzeros"), ("llm-awq", "scaled_zeros"), ("GEMV_FAST", "scaled_zeros")] {
            let open = check(&folder(&config(version, size), m.fast(), zeros).write(), &m, CheckpointFormat::AwqFast);
            assert!(open.warnings().is_empty(), "{:?}", open.warnings());
            assert_eq!(open.describe("m").unwrap().zeros, ZeroDialect::Scaled);
        }
    }
}

/// The shapes tell the layout where the config names another, or only a program.
#[test]
fn tensors_decide_which_layout_it_is() {
    let m = Module::new(256, 24, 32);
    let said = |open: &Checkpoint, message: &str| holds(&open.warnings()[0].to_string(), &[message, "they are followed"]);
    let open = check(&folder(&config("gemm", 32), m.gemv(), "qzeros").write(), &m, CheckpointFormat::AwqGemv);
    said(&open, "the config says awq gemm, but the tensors are awq gemv");
    let open = check(&folder(&config("gemm", 32), m.fast(), "qzeros").write(), &m, CheckpointFormat::AwqFast);
    said(&open, "the config says awq gemm, but the tensors are awq gemv_fast");
    let mut own = config("gemm", 32);
    own.as_object_mut().unwrap().remove("version");
    own["backend"] = json!("llm-awq");
    let open = check(&folder(&own, m.fast(), "scaled_zeros").write(), &m, CheckpointFormat::AwqFast);
    assert!(open.warnings().is_empty());
    let mut gemm = Folder::of("llama-awq-asym-g32");
    gemm.quantization(|map| drop((map.remove("checkpoint_format"), map.remove("format"))));
    let dir = gemm.set("version", json!("gemv")).write();
    let open = Checkpoint::open(&dir.0).unwrap();
    let r = open.describe("model.layers.0.mlp.up_proj").unwrap();
    assert_eq!((r.format, r.in_features, r.out_features), (CheckpointFormat::AwqGemm, 128, 256));
    said(&open, "the config says awq gemv, but the tensors are awq gemm");
}

#[test]
fn they_go_to_other_formats_and_are_explained() {
    // a shape that the words of a GPTQ checkpoint also have
    let m = Module::new(256, 32, 32);
    for (version, parts) in [("gemv", m.gemv()), ("gemv_fast", m.fast())] {
        let dir = folder(&config(version, 32), parts, "qzeros").write();
        let open = Checkpoint::open(&dir.0).unwrap();
        for to in [Target::GptqV2, Target::Awq, Target::CompressedTensors, Target::Dense(DType::F32)] {
            let out = Temp::new();
            convert(&open, &out.0, to, false, &mut |_, _| ()).unwrap();
            let there = Checkpoint::open(&out.0).unwrap();
            assert!(verify(&open, &there, &serially, &mut |_, _| ()).unwrap().equal(), "{version} to {to}");
        }
        let weights = m.weights();
        for (row, col) in (0..256).step_by(5).map(|row| (row, row % 32)) {
            let found = explain(&open, &format!("m[{row}, {col}]")).unwrap();
            let billfish_formats::Explanation::Quantized(w) = found else { panic!("dense") };
            assert_eq!((w.value, w.group), (weights[row * 32 + col], row / 32));
            assert!(w.code_bits.is_empty());
        }
    }
}

fn error(version: &str, group: i64, change: impl FnOnce(&mut Folder) -> &mut Folder) -> String {
    let m = Module::new(256, 24, 32);
    let mut folder = folder(&config(version, group), if version == "gemv" { m.gemv() } else { m.fast() }, "qzeros");
    let dir = change(&mut folder).write();
    let open = Checkpoint::open(&dir.0).unwrap();
    open.linear("m", 256, 24, BiasRule::Optional).expect_err("the module must not be read").to_string()
}

#[test]
fn hostile_tensors() {
    let tensor = |part: &str| format!("tensor `m.{part}`");
    for version in ["gemv", "gemv_fast"] {
        let sizes = |g: i64| error(version, g, |f| f);
        holds(&sizes(16), &[&tensor("scales"), "groups of 32, 64 or at least 128 rows", "group_size 16 for 256 rows"]);
        holds(&sizes(192), &["group_size 192 for 256 rows"]);
        holds(&sizes(128), &["(group_size 128, padded)"]);
        holds(&error(version, 32, |f| f.remove("m.qzeros")), &[&tensor("qzeros"), "none of that name"]);
        holds(
            &error(version, 32, |f| f.edit("m.qzeros", |t| t.shape = vec![t.bytes.len() / t.dtype.size()])),
            &[&tensor("qzeros"), "padded"],
        );
        holds(&error(version, 32, |f| f.edit("m.scales", |t| t.dtype = DType::I16)), &[&tensor("scales"), "dtype F16 or BF16"]);
        holds(&error(version, 32, |f| f.edit("m.qweight", |t| t.shape = vec![t.shape[1], t.shape[0]])), &[&tensor("qweight"), "[256, 24]"]);
    }
    holds(&error("gemv", 32, |f| f.edit("m.qzeros", |t| t.dtype = DType::F32)), &[&tensor("qzeros"), "dtype I32 or U32, found dtype F32"]);
    // the last scale of column 2, as stored
    let nan = |t: &mut Tensor| t.bytes[2 * (2 * 32 + 7)..][..2].copy_from_slice(&[0, 0x7e]);
    holds(&error("gemv", 32, |f| f.edit("m.scales", nan)), &[&tensor("scales"), "a finite number, found NaN at [2, 7]"]);
    holds(&error("gemv_fast", 32, |f| f.edit("m.qzeros", |t| t.dtype = DType::BF16)), &[&tensor("qzeros"), "dtype F16, as `m.scales`"]);
    // a zero point that is no integer, and one beyond the codes
    for value in [0.5f32, 1.0, -100.0] {
        let odd = |t: &mut Tensor| t.bytes[2 * 26..][..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        let e = error("gemv_fast", 32, |f| f.edit("m.qzeros", odd));
        holds(&e, &[&tensor("qzeros"), "an integer from 0 to 15 times the negative scale", "rounded to F16", "at [1, 2]"]);
    }
}
