//! Scales that a model brings for its keys and values, against f64.

mod common;

use billfish_kernels::{Asking, AttentionRule, AttentionScratch, BLOCK, Backend, Isa, KvPool, KvScales, KvShape, KvTable, KvType};
use common::Rng;
use std::sync::Arc;

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const D: usize = 24;
const TOKENS: usize = 83;
const RULE: AttentionRule = AttentionRule { heads: HEADS, scale: 0.25, window: None };

/// The values of 8-bit floats with `bits` of mantissa, by their definition, from 0 up; their places are their codes.
fn values(bits: i32, bias: i32, largest: f64) -> Vec<f64> {
    let value = |code: i32| {
        let (exponent, mantissa) = (code >> bits, f64::from(code & ((1 << bits) - 1)) / 2f64.powi(bits));
        if exponent == 0 { mantissa * 2f64.powi(1 - bias) } else { (1.0 + mantissa) * 2f64.powi(exponent - bias) }
    };
    (0..128).map(value).filter(|v| *v <= largest).collect()
}

/// The nearest of these values to a half over a scale, ties to the even code, times the scale.
fn stored(x: f32, scale: f32, values: &[f64]) -> f64 {
    let x = f64::from(half::f16::from_f32(x).to_f32()) / f64::from(scale);
    let far = |code: usize| (values[code] - x.abs()).abs();
    let best = (1..values.len()).fold(0, |best, code| {
        let nearer = far(code) < far(best) || far(code) == far(best) && code % 2 == 0;
        if nearer { code } else { best }
    });
    (values[best] * f64::from(scale)).copysign(x)
}

/// Softmax attention: the block of the query is read in half precision, all before as codes.
fn oracle([q, k, v]: [&[f32]; 3], scales: &KvScales, values: &[f64]) -> Vec<f64> {
    let coded = |x: &[f32], scales: &[f32]| -> Vec<f64> {
        x.iter().enumerate().map(|(i, &x)| stored(x, scales[i / D % KV_HEADS], values)).collect()
    };
    let half = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| f64::from(half::f16::from_f32(x).to_f32())).collect() };
    let (keys, vals) = ([coded(k, &scales.keys), half(k)], [coded(v, &scales.values), half(v)]);
    let mut out = vec![];
    for t in 0..TOKENS {
        for h in 0..HEADS {
            let at = |x: &[Vec<f64>; 2], j: usize, i: usize| {
                x[usize::from(j / BLOCK == t / BLOCK)][(j * KV_HEADS + h / (HEADS / KV_HEADS)) * D + i]
            };
            let score =
                |j: usize| (0..D).map(|i| f64::from(q[(t * HEADS + h) * D + i]) * at(&keys, j, i)).sum::<f64>() * f64::from(RULE.scale);
            let scores: Vec<f64> = (0..=t).map(score).collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            out.extend((0..D).map(|i| weights.iter().enumerate().map(|(j, w)| w / sum * at(&vals, j, i)).sum::<f64>()));
        }
    }
    out
}

/// All tokens, `step` at a time.
fn run(isa: Isa, threads: usize, step: usize, kind: KvType, scales: Option<&Arc<KvScales>>, [q, k, v]: [&[f32]; 3]) -> Vec<f32> {
    let backend = Backend::new(isa, threads).unwrap();
    let mut pool = KvPool::new(KvShape { layers: 2, kv_heads: KV_HEADS, head_dim: D, kind }, 1);
    let (mut table, mut scratch) = (KvTable::new(0), AttentionScratch::default());
    pool.grow(TOKENS.div_ceil(BLOCK));
    (0..pool.blocks()).rev().for_each(|block| table.push(block as u32));
    pool.set_scales(1, scales);
    let mut out = vec![0.0; q.len()];
    for from in (0..TOKENS).step_by(step) {
        let to = (from + step).min(TOKENS);
        let (new, rows) = (from * KV_HEADS * D..to * KV_HEADS * D, from * HEADS * D..to * HEADS * D);
        let tokens = to - from;
        backend.append(&mut scratch, &mut pool, 1, std::iter::once((&table, tokens)), &k[new.clone()], &v[new]);
        let all = std::iter::once(Asking { table: &table, tokens, queries: tokens });
        backend.attend(&mut scratch, &pool, 1, RULE, all, &q[rows.clone()], &mut out[rows]);
        pool.count(&mut table, to - from);
    }
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn attention_over_given_scales_matches_f64_in_any_chunking() {
    let mut rng = Rng(31);
    let (q, k) = (rng.floats(TOKENS * HEADS * D), rng.floats(TOKENS * KV_HEADS * D));
    let v = rng.floats(TOKENS * KV_HEADS * D);
    // none is a brain float; over the last of each, the largest numbers are out of range
    let scales = [
        (KvType::Fp8E4M3, values(3, 7, 448.0), KvScales { keys: vec![0.013_37, 0.001_999], values: vec![0.071_7, 0.001_234] }),
        (KvType::Fp8E5M2, values(2, 15, 57344.0), KvScales { keys: vec![0.013_37, 0.000_012_3], values: vec![0.071_7, 0.000_011_1] }),
    ];
    for (kind, values, scales) in scales {
        assert_eq!(values.len(), if kind == KvType::Fp8E4M3 { 127 } else { 124 });
        let want = oracle([&q, &k, &v], &scales, &values);
        let scales = Arc::new(scales);
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            for (threads, step) in [(1, TOKENS), (2, 7), (3, 1), (2, TOKENS)] {
                let out = run(isa, threads, step, kind, Some(&scales), [&q, &k, &v]);
                // as without scales: values lie in [-1, 1], and a score is off by the roundings of its chain
                let far = out.iter().zip(&want).position(|(got, want)| (f64::from(*got) - want).abs() > 2e-5);
                assert_eq!(far, None, "{kind:?} {isa:?}: {:?}", far.map(|i| (out[i], want[i])));
                let first = first.get_or_insert_with(|| out.clone());
                assert_eq!(bits(&out), bits(first), "{kind:?} {isa:?} threads {threads} step {step}");
            }
        }
        let own = run(Isa::choose(None).unwrap(), 1, TOKENS, kind, None, [&q, &k, &v]);
        let apart = own.iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(apart > 1e-2, "{kind:?}: rows with scales of their own are something else, by {apart}");
    }
}

#[test]
fn other_formats_keep_their_own_scales() {
    let mut rng = Rng(32);
    let (q, k) = (rng.floats(TOKENS * HEADS * D), rng.floats(TOKENS * KV_HEADS * D));
    let v = rng.floats(TOKENS * KV_HEADS * D);
    let scales = Arc::new(KvScales { keys: vec![3.0; KV_HEADS], values: vec![3.0; KV_HEADS] });
    for kind in KvType::ALL {
        let [with, without] = [Some(&scales), None].map(|s| bits(&run(Isa::choose(None).unwrap(), 1, 40, kind, s, [&q, &k, &v])));
        assert_eq!(with != without, kind.takes_scales(), "{kind:?}");
    }
}

/// What is no number stays none, and a row of nothing stays nothing.
#[test]
fn odd_rows_under_given_scales() {
    let scales = Arc::new(KvScales { keys: vec![0.5; KV_HEADS], values: vec![f32::MIN_POSITIVE, f32::MAX] });
    let zeros = vec![0.0; TOKENS * KV_HEADS * D];
    let q = vec![1.0; TOKENS * HEADS * D];
    for odd in [f32::NAN, f32::INFINITY] {
        let mut v = zeros.clone();
        v[0] = odd;
        let out = run(Isa::choose(None).unwrap(), 1, TOKENS, KvType::Fp8E4M3, Some(&scales), [&q, &zeros, &v]);
        let (last, group) = (&out[(TOKENS - 1) * HEADS * D..], HEADS / KV_HEADS * D);
        assert!(last[0].is_nan() && last[group..].iter().all(|x| *x == 0.0), "{odd}");
    }
}
