//! Attention, norms and activations of every instruction set against f64, and against each other bit by bit.

mod common;

use billfish_kernels::{AttentionRule, AttentionScratch, Backend, Isa, KvLayer, KvType};
use common::Rng;

/// Softmax attention in f64 over the stored (f16-rounded or f32) keys and values.
#[allow(clippy::too_many_arguments)] // the operands of attention
fn oracle(q: &[f32], keys: &[f32], values: &[f32], heads: usize, kv_heads: usize, d: usize, scale: f64, window: Option<usize>) -> Vec<f64> {
    let tokens = q.len() / (heads * d);
    let total = keys.len() / (kv_heads * d);
    let mut out = vec![];
    for t in 0..tokens {
        let end = total - tokens + t + 1;
        let start = window.map_or(0, |w| end.saturating_sub(w));
        for h in 0..heads {
            let kv = h / (heads / kv_heads);
            let at = |x: &[f32], j: usize, i: usize| f64::from(x[(j * kv_heads + kv) * d + i]);
            let scores: Vec<f64> =
                (start..end).map(|j| (0..d).map(|i| f64::from(q[(t * heads + h) * d + i]) * at(keys, j, i)).sum::<f64>() * scale).collect();
            let max = scores.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
            let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = p.iter().sum();
            out.extend((0..d).map(|i| p.iter().enumerate().map(|(j, p)| p / sum * at(values, start + j, i)).sum::<f64>()));
        }
    }
    out
}

fn round(kind: KvType, x: &[f32]) -> Vec<f32> {
    match kind {
        KvType::F16 => x.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect(),
        KvType::BF16 => x.iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect(),
        KvType::F32 => x.to_vec(),
    }
}

#[test]
fn attention_matches_f64_in_any_chunking() {
    let mut rng = Rng(1);
    for (heads, kv_heads, d) in [(4, 2, 32), (3, 3, 8), (8, 1, 64), (2, 1, 80), (7, 7, 17), (6, 2, 128)] {
        for (tokens, window) in [(1, None), (63, None), (64, Some(16)), (150, None), (150, Some(70)), (70, Some(1))] {
            let scale = 1.0 / (d as f32).sqrt();
            let q = rng.floats(tokens * heads * d);
            let k: Vec<f32> = rng.floats(tokens * kv_heads * d).iter().map(|v| v * 3.0).collect();
            let v = rng.floats(tokens * kv_heads * d);
            for kind in KvType::ALL {
                let want = oracle(&q, &round(kind, &k), &round(kind, &v), heads, kv_heads, d, f64::from(scale), window);
                let mut first: Option<Vec<f32>> = None;
                for isa in Isa::available() {
                    for (threads, step) in [(1, tokens), (2, 7), (3, 1), (2, tokens)] {
                        let backend = Backend::new(isa, threads).unwrap();
                        let mut layer = KvLayer::new(kv_heads, d, kind);
                        let mut scratch = AttentionScratch::default();
                        let mut out = vec![0.0; q.len()];
                        for t0 in (0..tokens).step_by(step) {
                            let t1 = (t0 + step).min(tokens);
                            layer.append(
                                &backend,
                                &mut scratch,
                                &k[t0 * kv_heads * d..t1 * kv_heads * d],
                                &v[t0 * kv_heads * d..t1 * kv_heads * d],
                            );
                            let rows = t0 * heads * d..t1 * heads * d;
                            layer.attend(&backend, &mut scratch, AttentionRule { heads, scale, window }, &q[rows.clone()], &mut out[rows]);
                        }
                        assert_eq!(layer.len(), tokens);
                        for (got, want) in out.iter().zip(&want) {
                            // values lie in [-1, 1]; a score is off by some d roundings of at most 3 sqrt(d), the exponential
                            // by 1e-7 relative, a sum by its terms' roundings
                            assert!(
                                (f64::from(*got) - want).abs() < 2e-5,
                                "{heads}/{kv_heads}x{d} {tokens} {window:?} {kind:?} {isa:?}: {got} {want}"
                            );
                        }
                        let first = first.get_or_insert_with(|| out.clone());
                        let same = out.iter().zip(&*first).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{heads}/{kv_heads}x{d} {tokens} {window:?} {kind:?} {isa:?} threads {threads} step {step}");
                    }
                }
            }
        }
    }
}

/// Longer than the stretches whose states are joined: the whole prompt at once, in parts, and the last tokens one by one
/// with threads that share the stretches give the same bits, and those are the oracle's to a tolerance.
#[test]
fn long_contexts_are_joined_alike_in_prefill_and_decode() {
    let mut rng = Rng(4);
    let (heads, kv_heads, d, tokens) = (5, 1, 24, 1301);
    let (q, k) = (rng.floats(tokens * heads * d), rng.floats(tokens * kv_heads * d));
    let v = rng.floats(tokens * kv_heads * d);
    let scale = 0.9;
    for window in [None, Some(700), Some(512), Some(40)] {
        let want = oracle(&q, &round(KvType::BF16, &k), &round(KvType::BF16, &v), heads, kv_heads, d, f64::from(scale), window);
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            for (threads, step, single) in [(1, tokens, tokens), (2, 500, 1290), (7, 1024, 1024)] {
                let backend = Backend::new(isa, threads).unwrap();
                let mut layer = KvLayer::new(kv_heads, d, KvType::BF16);
                let mut scratch = AttentionScratch::default();
                let mut out = vec![0.0; q.len()];
                let mut t0 = 0;
                while t0 < tokens {
                    let t1 = if t0 >= single { t0 + 1 } else { (t0 + step).min(single) }.min(tokens);
                    layer.append(&backend, &mut scratch, &k[t0 * d..t1 * d], &v[t0 * d..t1 * d]);
                    let rows = t0 * heads * d..t1 * heads * d;
                    layer.attend(&backend, &mut scratch, AttentionRule { heads, scale, window }, &q[rows.clone()], &mut out[rows]);
                    t0 = t1;
                }
                // as in the short test; values lie in [-1, 1] and are averaged
                let far = out.iter().zip(&want).position(|(got, want)| (f64::from(*got) - want).abs() > 2e-5);
                assert_eq!(far, None, "{window:?} {isa:?} {threads} threads: {:?}", far.map(|i| (out[i], want[i])));
                let first = first.get_or_insert_with(|| out.clone());
                let other = out.iter().zip(&*first).position(|(a, b)| a.to_bits() != b.to_bits());
                assert_eq!(other, None, "{window:?} {isa:?} {threads} threads, steps of {step}");
            }
        }
    }
}

/// Several sequences in one call, each with its own length, number of query tokens and storage: every row is what it is
/// when its sequence is alone.
#[test]
fn sequences_side_by_side_are_as_if_alone() {
    let mut rng = Rng(6);
    let (heads, kv_heads, d) = (6, 2, 24);
    // tokens that are there before, and new ones: decode steps, chunks of prompts, one that is not part of this pass
    let mixtures: [&[(usize, usize)]; 4] =
        [&[(0, 5), (63, 1), (64, 1), (700, 1), (10, 70)], &[(1300, 1)], &[(1100, 1), (0, 1), (3, 1), (2, 0), (520, 3)], &[(5, 1); 40]];
    for (mixture, window) in mixtures.iter().flat_map(|m| [(m, None), (m, Some(600)), (m, Some(3))]) {
        let rule = AttentionRule { heads, scale: 0.4, window };
        let lengths: Vec<usize> = mixture.iter().map(|(before, new)| before + new).collect();
        let (kvs, new): (Vec<_>, usize) = (
            lengths.iter().map(|n| (rng.floats(n * kv_heads * d), rng.floats(n * kv_heads * d))).collect(),
            mixture.iter().map(|(_, new)| new).sum(),
        );
        let q = rng.floats(new * heads * d);
        for isa in Isa::available() {
            let alone = Backend::new(isa, 1).unwrap();
            let mut scratch = AttentionScratch::default();
            let mut want = vec![];
            for (i, (k, v)) in kvs.iter().enumerate() {
                let mut layer = KvLayer::new(kv_heads, d, KvType::ALL[i % 3]);
                layer.append(&alone, &mut scratch, k, v);
                let rows = want.len()..want.len() + mixture[i].1 * heads * d;
                want.resize(rows.end, 0.0);
                layer.attend(&alone, &mut scratch, rule, &q[rows.clone()], &mut want[rows]);
            }
            for threads in [1, 2, 13] {
                let backend = Backend::new(isa, threads).unwrap();
                let mut layers: Vec<KvLayer> = (0..kvs.len()).map(|i| KvLayer::new(kv_heads, d, KvType::ALL[i % 3])).collect();
                let (mut keys, mut values) = (vec![], vec![]);
                for ((layer, (k, v)), (before, _)) in layers.iter_mut().zip(&kvs).zip(*mixture) {
                    let at = before * kv_heads * d;
                    layer.append(&backend, &mut scratch, &k[..at], &v[..at]);
                    keys.extend_from_slice(&k[at..]);
                    values.extend_from_slice(&v[at..]);
                }
                let tokens = || mixture.iter().map(|(_, new)| *new);
                backend.append(&mut scratch, layers.iter_mut().zip(tokens()), &keys, &values);
                let mut out = vec![0.0; q.len()];
                backend.attend(&mut scratch, rule, layers.iter().zip(tokens()), &q, &mut out);
                let other = out.iter().zip(&want).position(|(a, b)| a.to_bits() != b.to_bits());
                assert_eq!(other, None, "{mixture:?} {window:?} {isa:?} {threads} threads");
            }
        }
    }
}

#[test]
fn room_is_made_ahead_and_given_back() {
    let backend = Backend::new(Isa::choose(None).unwrap(), 1).unwrap();
    let mut scratch = AttentionScratch::default();
    let mut layer = KvLayer::new(2, 16, KvType::F32);
    let page = 64 * 2 * 2 * 16 * 4;
    layer.reserve(10_000);
    assert!(layer.capacity() >= 10_000 && layer.capacity() < 10_064);
    assert_eq!(layer.bytes(), 0, "nothing was written yet");
    let rows = vec![1.0; 5000 * 32];
    layer.append(&backend, &mut scratch, &rows, &rows);
    assert_eq!((layer.bytes(), layer.len()), (79 * page, 5000));
    layer.truncate(70);
    assert_eq!((layer.bytes(), layer.len()), (79 * page, 70), "what was written to stays memory");
    layer.shrink(100);
    assert!(layer.capacity() >= 100 && layer.capacity() < 5000 && layer.bytes() == layer.capacity() / 64 * page);
    layer.reserve(5000);
    layer.append(&backend, &mut scratch, &rows[..32 * 4000], &rows[..32 * 4000]);
    assert_eq!(layer.len(), 4070);
    // one that nobody planned for grows by itself, in ever larger steps
    let mut grown = KvLayer::new(2, 16, KvType::F32);
    for _ in 0..500 {
        grown.append(&backend, &mut scratch, &rows[..32], &rows[..32]);
    }
    assert_eq!((grown.len(), grown.bytes(), grown.capacity()), (500, 8 * page, 512));
}

#[test]
fn a_truncated_cache_continues_as_if_new() {
    let mut rng = Rng(2);
    let backend = Backend::new(Isa::choose(None).unwrap(), 1).unwrap();
    let (k, v) = (rng.floats(100 * 16), rng.floats(100 * 16));
    let q = rng.floats(32);
    let mut scratch = AttentionScratch::default();
    let mut whole = KvLayer::new(1, 16, KvType::F16);
    whole.append(&backend, &mut scratch, &k[..70 * 16], &v[..70 * 16]);
    let mut cut = KvLayer::new(1, 16, KvType::F16);
    cut.append(&backend, &mut scratch, &k, &v);
    cut.truncate(65);
    cut.append(&backend, &mut scratch, &k[65 * 16..70 * 16], &v[65 * 16..70 * 16]);
    let mut outs = [vec![0.0; 32], vec![0.0; 32]];
    for (layer, out) in [whole, cut].iter().zip(&mut outs) {
        layer.attend(&backend, &mut scratch, AttentionRule { heads: 2, scale: 0.25, window: None }, &q, out);
    }
    assert_eq!(outs[0], outs[1]);
}

#[test]
fn a_nan_is_not_hidden_by_the_softmax() {
    for isa in Isa::available() {
        let backend = Backend::new(isa, 1).unwrap();
        let mut layer = KvLayer::new(1, 16, KvType::F32);
        let mut scratch = AttentionScratch::default();
        let mut k = vec![0.5; 3 * 16];
        k[20] = f32::NAN;
        layer.append(&backend, &mut scratch, &k, &[1.0; 48]);
        let mut out = [0.0; 16];
        layer.attend(&backend, &mut scratch, AttentionRule { heads: 1, scale: 1.0, window: None }, &[1.0; 16], &mut out);
        assert!(out.iter().all(|v| v.is_nan()), "{isa:?}");
    }
}

#[test]
fn norms_and_activations() {
    let mut rng = Rng(3);
    for n in [1, 15, 16, 17, 64, 100, 333] {
        let x: Vec<f32> = rng.floats(2 * n).iter().map(|v| v * 9.0).collect();
        let w = rng.floats(n);
        let up = rng.floats(2 * n);
        let mut twin: Option<(Vec<f32>, Vec<f32>)> = None;
        for isa in Isa::available() {
            let backend = Backend::new(isa, 1).unwrap();
            let mut norm = vec![0.0; 2 * n];
            backend.rms_norm(&x, &w, 1e-5, &mut norm);
            let mut silu = x.clone();
            backend.silu_mul(&mut silu, &up);
            for (i, row) in x.chunks(n).enumerate() {
                let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n as f64;
                for (j, v) in row.iter().enumerate() {
                    let want = f64::from(*v) / (mean + 1e-5).sqrt() * f64::from(w[j]);
                    assert!((f64::from(norm[i * n + j]) - want).abs() <= want.abs() * 2e-6);
                    let want = f64::from(*v) / (1.0 + (-f64::from(*v)).exp()) * f64::from(up[i * n + j]);
                    assert!((f64::from(silu[i * n + j]) - want).abs() <= want.abs() * 1e-6, "{v}: {} {want}", silu[i * n + j]);
                }
            }
            let (n0, s0) = twin.get_or_insert_with(|| (norm.clone(), silu.clone()));
            assert!(*n0 == norm && *s0 == silu, "{isa:?} differs from its twin");
        }
    }
    let backend = Backend::new(Isa::Scalar, 1).unwrap();
    for (g, want) in [(200.0, 200.0), (-200.0, 0.0), (0.0, 0.0)] {
        let mut gate = [g];
        backend.silu_mul(&mut gate, &[1.0]);
        assert!((gate[0] - want).abs() < 1e-30, "{g}: {}", gate[0]);
    }
}
