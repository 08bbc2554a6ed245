//! Modules of random bits for the tests of shards.

use billfish_formats::GroupSize;
use billfish_formats::shard::{GptqTensors, Rank};
use billfish_tensor::{Codes, Groups, Packing, QuantMatrix, ScaleValues, Zeros, oracle};
use half::f16;

pub const PACKING: Packing = Packing::Continuous;

pub fn pack_columns(bytes: &[u8], n: usize, bits: u32) -> Vec<u32> {
    match Codes::pack(bytes, n, bits, PACKING) {
        Codes::Words { words, .. } => words,
        Codes::Bytes(_) => unreachable!("pack gives words"),
    }
}

/// Packs values along each row of `n`.
pub fn pack_rows(values: &[u8], n: usize, bits: u32) -> Vec<u32> {
    let one = |row: &[u8]| pack_columns(row, 1, bits);
    values.chunks_exact(n).flat_map(one).collect()
}

/// What the tensors mean, with v1 zero points (stored less one).
pub fn matrix(t: &GptqTensors) -> QuantMatrix {
    let n = t.out_features;
    let words = PACKING.words(t.bits, n);
    let mut zeros = vec![];
    for row in t.qzeros.chunks_exact(words) {
        for start in (0..n).step_by(32) {
            let mut run = vec![0u8; (n - start).min(32)];
            PACKING.unpack_run(t.bits, &mut run, |j| row[start / 32 * t.bits as usize + j]);
            zeros.extend(run.iter().map(|&z| u16::from(z) + 1));
        }
    }
    let g_idx = (0..t.in_features).map(|k| t.group_of(k) as u32).collect();
    let groups = Groups::Index { g_idx, count: t.groups() };
    let codes = Codes::Words { words: t.qweight.clone(), packing: PACKING };
    let bias = t.bias.as_ref().map(|b| (0..b.len()).map(|i| b.get(i)).collect());
    QuantMatrix::new(t.in_features, n, t.bits, codes, t.scales.clone(), Zeros::PerGroup(zeros), groups, bias).unwrap()
}

pub fn output(t: &GptqTensors, x: &[f32]) -> Vec<f64> {
    t.check().unwrap();
    oracle::matmul(x, &matrix(t))
}

/// A module of random bits whose scales are powers of two, so that every sum below is exact.
pub fn module(bits: u32, k: usize, n: usize, group_size: GroupSize, act_order: bool, seed: u64) -> GptqTensors {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let rows = group_size.rows(k);
    let groups = k.div_ceil(rows);
    let mut g_idx: Vec<u32> = (0..k).map(|i| (i / rows) as u32).collect();
    if act_order {
        (1..k).for_each(|i| g_idx.swap(i, next() % (i + 1)));
    }
    let mut codes = |count: usize| (0..count).map(|_| (next() % (1 << bits)) as u8).collect::<Vec<_>>();
    let (q, z, s, b) = (codes(k * n), codes(groups * n), codes(groups * n), codes(n));
    let scale = |&v: &u8| f16::from_f32(2f32.powi(i32::from(v % 4) - 3) * if v % 8 == 7 { -1.0 } else { 1.0 });
    GptqTensors {
        bits,
        group_size,
        act_order,
        in_features: k,
        out_features: n,
        qweight: pack_columns(&q, n, bits),
        qzeros: pack_rows(&z, n, bits),
        scales: ScaleValues::F16(s.iter().map(scale).collect()),
        g_idx: Some(g_idx),
        bias: Some(ScaleValues::F16(b.iter().map(|&v| f16::from_f32(f32::from(v))).collect())),
        first_group: 0,
    }
}

pub fn inputs(k: usize) -> Vec<f32> {
    (0..2 * k).map(|i| ((i * 7) % 15) as f32 - 7.0).collect()
}

pub fn ranks(count: usize) -> Vec<Rank> {
    (0..count).map(|r| Rank::new(r, count).unwrap()).collect()
}

/// Columns `range` of a `[m, k]` matrix.
pub fn columns<T: Copy>(x: &[T], k: usize, range: std::ops::Range<usize>) -> Vec<T> {
    x.chunks_exact(k).flat_map(|row| row[range.clone()].to_vec()).collect()
}
