//! Attention, norms and activations of every instruction set against f64, and against each other bit by bit.

mod common;

use billfish_kernels::{Asking, AttentionRule, AttentionScratch, BLOCK, Backend, Isa, KvPool, KvShape, KvTable, KvType};
use common::Rng;

/// What rows of `d` numbers are once they are stored.
fn stored(kind: KvType, x: &[f32], d: usize) -> Vec<f32> {
    let half = |x: &f32| half::f16::from_f32(*x).to_f32();
    match kind {
        KvType::F16 => x.iter().map(half).collect(),
        KvType::BF16 => x.iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect(),
        KvType::F32 => x.to_vec(),
        _ => x.chunks(d).flat_map(|row| kind.rounded(&row.iter().map(half).collect::<Vec<_>>())).collect(),
    }
}

/// Softmax attention in f64 over the stored keys and values; of a quantized cache, over halves in the block of the query.
#[allow(clippy::too_many_arguments)] // the operands of attention
fn oracle(
    q: &[f32],
    [keys, values]: [&[f32]; 2],
    kind: KvType,
    heads: usize,
    kv_heads: usize,
    d: usize,
    scale: f64,
    window: Option<usize>,
) -> Vec<f64> {
    let tokens = q.len() / (heads * d);
    let total = keys.len() / (kv_heads * d);
    let near = if kind.is_quantized() { KvType::F16 } else { kind };
    let [keys, values] = [keys, values].map(|x| [stored(kind, x, d), stored(near, x, d)]);
    let mut out = vec![];
    for t in 0..tokens {
        let end = total - tokens + t + 1;
        let start = window.map_or(0, |w| end.saturating_sub(w));
        for h in 0..heads {
            let kv = h / (heads / kv_heads);
            let at = |x: &[Vec<f32>; 2], j: usize, i: usize| {
                let own = usize::from(j / BLOCK == (end - 1) / BLOCK);
                f64::from(x[own][(j * kv_heads + kv) * d + i])
            };
            let scores: Vec<f64> = (start..end)
                .map(|j| (0..d).map(|i| f64::from(q[(t * heads + h) * d + i]) * at(&keys, j, i)).sum::<f64>() * scale)
                .collect();
            let max = scores.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
            let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = p.iter().sum();
            out.extend((0..d).map(|i| p.iter().enumerate().map(|(j, p)| p / sum * at(&values, start + j, i)).sum::<f64>()));
        }
    }
    out
}

/// Some sequences in a pool of two layers, of which the second is used; their blocks are anywhere.
struct Sequences {
    pool: KvPool,
    tables: Vec<KvTable>,
}

impl Sequences {
    fn new(kv_heads: usize, head_dim: usize, kind: KvType, lengths: &[usize], rng: &mut Rng) -> Self {
        let shape = KvShape { layers: 2, kv_heads, head_dim, kind };
        let count: usize = lengths.iter().map(|n| n.div_ceil(BLOCK)).sum();
        let pool = KvPool::with_blocks(shape, count + 3, lengths.len()).unwrap();
        let mut free: Vec<u32> = (0..count as u32 + 3).collect();
        let mut table = |slot: usize, len: usize| {
            let mut table = KvTable::new(slot as u32);
            (0..len.div_ceil(BLOCK)).for_each(|_| table.push(free.swap_remove(rng.next() as usize % free.len())));
            table
        };
        let tables = lengths.iter().enumerate().map(|(slot, &len)| table(slot, len)).collect();
        Self { pool, tables }
    }

    fn append(&mut self, backend: &Backend, scratch: &mut AttentionScratch, tokens: &[usize], keys: &[f32], values: &[f32]) {
        let Self { pool, tables } = self;
        backend.append(scratch, pool, 1, tables.iter().zip(tokens.iter().copied()), keys, values);
    }

    fn attend(&self, backend: &Backend, scratch: &mut AttentionScratch, tokens: &[usize], rule: AttentionRule, q: &[f32], out: &mut [f32]) {
        let sequences = self.tables.iter().zip(tokens).map(|(table, &tokens)| Asking { table, tokens, queries: tokens });
        backend.attend(scratch, &self.pool, 1, rule, sequences, q, out);
    }

    fn count(&mut self, tokens: &[usize]) {
        self.tables.iter_mut().zip(tokens).for_each(|(table, n)| self.pool.count(table, *n));
    }

    /// One pass of the layer over all sequences.
    #[allow(clippy::too_many_arguments)] // the operands of attention
    fn pass(
        &mut self,
        backend: &Backend,
        scratch: &mut AttentionScratch,
        tokens: &[usize],
        rule: AttentionRule,
        [q, k, v]: [&[f32]; 3],
        out: &mut [f32],
    ) {
        self.append(backend, scratch, tokens, k, v);
        self.attend(backend, scratch, tokens, rule, q, out);
        self.count(tokens);
    }
}

#[test]
fn attention_matches_f64_in_any_chunking() {
    let mut rng = Rng(1);
    // every format meets several shapes, but not all of them; fewer where the processor may be an emulated one
    let share = if cfg!(target_arch = "aarch64") { 6 } else { 2 };
    for (i, (heads, kv_heads, d)) in [(4, 2, 32), (3, 3, 8), (8, 1, 64), (2, 1, 80), (7, 7, 17), (6, 2, 128)].into_iter().enumerate() {
        for (tokens, window) in [(1, None), (63, None), (64, Some(16)), (150, None), (150, Some(70)), (70, Some(1))] {
            let scale = 1.0 / (d as f32).sqrt();
            let q = rng.floats(tokens * heads * d);
            let k: Vec<f32> = rng.floats(tokens * kv_heads * d).iter().map(|v| v * 3.0).collect();
            let v = rng.floats(tokens * kv_heads * d);
            for kind in KvType::ALL.into_iter().skip(i % share).step_by(share) {
                let want = oracle(&q, [&k, &v], kind, heads, kv_heads, d, f64::from(scale), window);
                let mut first: Option<Vec<f32>> = None;
                for isa in Isa::available() {
                    for (threads, step) in [(1, tokens), (2, 7), (3, 1)] {
                        let backend = Backend::new(isa, threads).unwrap();
                        let mut layer = Sequences::new(kv_heads, d, kind, &[tokens], &mut rng);
                        let mut scratch = AttentionScratch::default();
                        let mut out = vec![0.0; q.len()];
                        for t0 in (0..tokens).step_by(step) {
                            let t1 = (t0 + step).min(tokens);
                            let (new, rows) = (t0 * kv_heads * d..t1 * kv_heads * d, t0 * heads * d..t1 * heads * d);
                            let operands = [&q[rows.clone()], &k[new.clone()], &v[new]];
                            let rule = AttentionRule { heads, scale, window };
                            layer.pass(&backend, &mut scratch, &[t1 - t0], rule, operands, &mut out[rows]);
                        }
                        assert_eq!(layer.tables[0].len(), tokens);
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
    let kinds = [KvType::BF16, KvType::Int8, KvType::BF16, KvType::Int4];
    // fewer where the processor may be an emulated one
    let share = if cfg!(target_arch = "aarch64") { 3 } else { 1 };
    for (window, kind) in [None, Some(700), Some(512), Some(40)].into_iter().zip(kinds).step_by(share) {
        let want = oracle(&q, [&k, &v], kind, heads, kv_heads, d, f64::from(scale), window);
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            for (threads, step, single) in [(1, tokens, tokens), (2, 500, 1290), (7, 1024, 1024)] {
                let backend = Backend::new(isa, threads).unwrap();
                let mut layer = Sequences::new(kv_heads, d, kind, &[tokens], &mut rng);
                let mut scratch = AttentionScratch::default();
                let mut out = vec![0.0; q.len()];
                let mut t0 = 0;
                while t0 < tokens {
                    let t1 = if t0 >= single { t0 + 1 } else { (t0 + step).min(single) }.min(tokens);
                    let rows = t0 * heads * d..t1 * heads * d;
                    let operands = [&q[rows.clone()], &k[t0 * d..t1 * d], &v[t0 * d..t1 * d]];
                    layer.pass(&backend, &mut scratch, &[t1 - t0], AttentionRule { heads, scale, window }, operands, &mut out[rows]);
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

/// Several sequences in one call, each with its own length and number of query tokens: every row is what it is when its
/// sequence is alone.
#[test]
fn sequences_side_by_side_are_as_if_alone() {
    let mut rng = Rng(6);
    let (heads, kv_heads, d) = (6, 2, 24);
    // tokens that are there before, and new ones: decode steps, chunks of prompts, one that is not part of this pass
    let mixtures: [&[(usize, usize)]; 4] =
        [&[(0, 5), (63, 1), (64, 1), (700, 1), (10, 70)], &[(1300, 1)], &[(1100, 1), (0, 1), (3, 1), (2, 0), (520, 3)], &[(5, 1); 40]];
    for (i, (mixture, window)) in mixtures.iter().flat_map(|m| [(m, None), (m, Some(600)), (m, Some(3))]).enumerate() {
        let kind = KvType::ALL[i % KvType::ALL.len()];
        let rule = AttentionRule { heads, scale: 0.4, window };
        let lengths: Vec<usize> = mixture.iter().map(|(before, new)| before + new).collect();
        let (before, new): (Vec<usize>, Vec<usize>) = mixture.iter().copied().unzip();
        let kvs: Vec<_> = lengths.iter().map(|n| (rng.floats(n * kv_heads * d), rng.floats(n * kv_heads * d))).collect();
        let q = rng.floats(new.iter().sum::<usize>() * heads * d);
        let (mut old, mut fresh) = ([vec![], vec![]], [vec![], vec![]]);
        for ((k, v), before) in kvs.iter().zip(&before) {
            for (i, x) in [k, v].into_iter().enumerate() {
                let (first, rest) = x.split_at(before * kv_heads * d);
                old[i].extend_from_slice(first);
                fresh[i].extend_from_slice(rest);
            }
        }
        for isa in Isa::available() {
            let alone = Backend::new(isa, 1).unwrap();
            let mut scratch = AttentionScratch::default();
            let mut want = vec![];
            for (i, (k, v)) in kvs.iter().enumerate() {
                let mut one = Sequences::new(kv_heads, d, kind, &lengths[i..i + 1], &mut rng);
                let at = before[i] * kv_heads * d;
                one.append(&alone, &mut scratch, &before[i..i + 1], &k[..at], &v[..at]);
                one.count(&before[i..i + 1]);
                let rows = want.len()..want.len() + new[i] * heads * d;
                want.resize(rows.end, 0.0);
                one.pass(&alone, &mut scratch, &new[i..i + 1], rule, [&q[rows.clone()], &k[at..], &v[at..]], &mut want[rows]);
            }
            for threads in [1, 2, 13] {
                let backend = Backend::new(isa, threads).unwrap();
                let mut all = Sequences::new(kv_heads, d, kind, &lengths, &mut rng);
                all.append(&backend, &mut scratch, &before, &old[0], &old[1]);
                all.count(&before);
                let mut out = vec![0.0; q.len()];
                all.append(&backend, &mut scratch, &new, &fresh[0], &fresh[1]);
                all.attend(&backend, &mut scratch, &new, rule, &q, &mut out);
                let other = out.iter().zip(&want).position(|(a, b)| a.to_bits() != b.to_bits());
                assert_eq!(other, None, "{mixture:?} {window:?} {kind:?} {isa:?} {threads} threads");
                // the last tokens of each alone: none, some or all
                let asking: Vec<usize> =
                    new.iter().map(|n| [0, n / 3, n.saturating_sub(1), *n, 1.min(*n)][rng.next() as usize % 5]).collect();
                let sequences = all.tables.iter().zip(new.iter().zip(&asking));
                let sequences = sequences.map(|(table, (&tokens, &queries))| Asking { table, tokens, queries });
                let (mut end, mut rows) = (0, vec![]);
                for (n, asking) in new.iter().zip(&asking) {
                    end += n;
                    rows.push((end - asking) * heads * d..end * heads * d);
                }
                let of = |x: &[f32]| rows.iter().flat_map(|r| &x[r.clone()]).copied().collect::<Vec<f32>>();
                let mut out = of(&vec![0.0; q.len()]);
                backend.attend(&mut scratch, &all.pool, 1, rule, sequences, &of(&q), &mut out);
                let other = out.iter().zip(of(&want)).position(|(a, b)| a.to_bits() != b.to_bits());
                assert_eq!(other, None, "{asking:?} of {mixture:?} {window:?} {kind:?} {isa:?} {threads} threads");
            }
        }
    }
}

#[test]
fn room_is_made_ahead_and_given_back() {
    let backend = Backend::new(Isa::choose(None).unwrap(), 1).unwrap();
    let mut scratch = AttentionScratch::default();
    let shape = KvShape { layers: 1, kv_heads: 2, head_dim: 16, kind: KvType::F32 };
    assert_eq!((shape.token_bytes(), shape.block_bytes()), (2 * 2 * 16 * 4, BLOCK * 2 * 2 * 16 * 4));
    let mut pool = KvPool::new(shape, 1);
    let mut table = KvTable::new(0);
    pool.grow(625);
    (0..625).for_each(|block| table.push(block));
    assert_eq!((table.capacity(), pool.blocks(), pool.bytes()), (10_000, 625, 0), "nothing was written yet");
    let rows = vec![1.0; 5000 * 32];
    let mut append = |pool: &mut KvPool, table: &mut KvTable, tokens: usize| {
        backend.append(&mut scratch, pool, 0, std::iter::once((&*table, tokens)), &rows[..32 * tokens], &rows[..32 * tokens]);
        pool.count(table, tokens);
    };
    append(&mut pool, &mut table, 5000);
    assert_eq!((pool.bytes(), table.len()), (313 * shape.block_bytes(), 5000));
    assert_eq!(table.truncate(70), 70);
    assert_eq!((pool.bytes(), table.len()), (313 * shape.block_bytes(), 70), "what was written to stays memory");
    while table.blocks().len() > 10 {
        table.pop_unused().unwrap();
    }
    pool.shrink(10);
    assert!(pool.blocks() >= 10 && pool.blocks() < 313 && pool.bytes() == pool.blocks() * shape.block_bytes());
    while table.pop_unused().is_some() {}
    assert_eq!(table.capacity(), 80, "tokens keep their blocks");
    assert!(KvPool::with_blocks(shape, usize::MAX, 1).is_err() && KvPool::with_blocks(shape, 1 << 33, 1).is_err());
}

#[test]
fn a_truncated_sequence_continues_as_if_new() {
    let mut rng = Rng(2);
    let backend = Backend::new(Isa::choose(None).unwrap(), 1).unwrap();
    let (k, v) = (rng.floats(100 * 16), rng.floats(100 * 16));
    let q = rng.floats(100 * 32);
    let mut scratch = AttentionScratch::default();
    let rule = AttentionRule { heads: 2, scale: 0.25, window: None };
    for kind in KvType::ALL {
        let mut run = |sequence: &mut Sequences, from: usize, to: usize| {
            let mut out = vec![0.0; (to - from) * 32];
            let operands = [&q[from * 32..to * 32], &k[from * 16..to * 16], &v[from * 16..to * 16]];
            sequence.pass(&backend, &mut scratch, &[to - from], rule, operands, &mut out);
            out
        };
        let mut whole = Sequences::new(1, 16, kind, &[100], &mut rng);
        let want = run(&mut whole, 0, 100);
        // as far back as every format can go, and farther
        for (first, len, to) in
            [(70, 70, 65), (70, 82, 66), (49, 64, 49), (80, 96, 80), (63, 79, 63), (70, 100, 65), (0, 100, 3), (90, 90, 0)]
        {
            let mut cut = Sequences::new(1, 16, kind, &[100], &mut rng);
            run(&mut cut, 0, first);
            run(&mut cut, first, len);
            let kept = cut.tables[0].truncate(to);
            let exact = !kind.is_quantized() || to % BLOCK == 0 || len - to <= BLOCK;
            assert_eq!(kept, if exact { to } else { to / BLOCK * BLOCK }, "{kind:?} {len} {to}");
            let middle = (kept + 2).min(100);
            let rest = [run(&mut cut, kept, middle), run(&mut cut, middle, 100)].concat();
            assert!(rest.iter().zip(&want[kept * 32..]).all(|(a, b)| a.to_bits() == b.to_bits()), "{kind:?} {len} {to}");
        }
    }
}

/// A fork shares full blocks and has a copy of the last; neither sees what the other adds.
#[test]
fn forks_go_on_apart() {
    let mut rng = Rng(8);
    let backend = Backend::new(Isa::choose(None).unwrap(), 2).unwrap();
    let mut scratch = AttentionScratch::default();
    let rule = AttentionRule { heads: 2, scale: 0.25, window: None };
    let (k, v, q) = (rng.floats(80 * 16), rng.floats(80 * 16), rng.floats(80 * 32));
    for kind in KvType::ALL {
        for before in [1, 16, 37, 64] {
            let alone = |rng: &mut Rng, scratch: &mut AttentionScratch, from: usize| {
                let mut one = Sequences::new(1, 16, kind, &[before + 5], rng);
                one.append(&backend, scratch, &[before], &k[..before * 16], &v[..before * 16]);
                one.count(&[before]);
                let (new, mut out) = (from * 16..(from + 5) * 16, vec![0.0; 5 * 32]);
                one.pass(&backend, scratch, &[5], rule, [&q[..5 * 32], &k[new.clone()], &v[new]], &mut out);
                out
            };
            let want = [alone(&mut rng, &mut scratch, 65), alone(&mut rng, &mut scratch, 70)].concat();
            let mut both = Sequences::new(1, 16, kind, &[before + 5, 2 * BLOCK], &mut rng);
            let spare = both.tables.pop().unwrap();
            both.append(&backend, &mut scratch, &[before], &k[..before * 16], &v[..before * 16]);
            both.count(&[before]);
            let mut fork = both.tables[0].fork(1);
            spare.blocks().iter().for_each(|&block| fork.push(block));
            both.pool.copy_tail(&both.tables[0], &fork);
            both.tables.push(fork);
            let mut out = vec![0.0; want.len()];
            let queries = [&q[..5 * 32], &q[..5 * 32]].concat();
            both.pass(&backend, &mut scratch, &[5, 5], rule, [&queries, &k[65 * 16..75 * 16], &v[65 * 16..75 * 16]], &mut out);
            assert!(out.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()), "{kind:?} {before}");
        }
    }
}

#[test]
#[should_panic(expected = "two sequences")]
fn a_block_is_not_written_for_two_sequences() {
    let backend = Backend::new(Isa::Scalar, 1).unwrap();
    let mut pool = KvPool::with_blocks(KvShape { layers: 1, kv_heads: 1, head_dim: 16, kind: KvType::F16 }, 2, 2).unwrap();
    let mut tables = [KvTable::new(0), KvTable::new(1)];
    tables.iter_mut().for_each(|table| table.push(1));
    let sequences = tables.iter().map(|table| (table, 1));
    backend.append(&mut AttentionScratch::default(), &mut pool, 0, sequences, &[0.0; 32], &[0.0; 32]);
}

#[test]
fn a_nan_is_not_hidden_by_the_softmax() {
    for isa in Isa::available() {
        let backend = Backend::new(isa, 1).unwrap();
        let mut layer = Sequences::new(1, 16, KvType::F32, &[3], &mut Rng(1));
        let mut scratch = AttentionScratch::default();
        let mut k = vec![0.5; 3 * 16];
        k[20] = f32::NAN;
        let mut out = [0.0; 48];
        let rule = AttentionRule { heads: 1, scale: 1.0, window: None };
        layer.pass(&backend, &mut scratch, &[3], rule, [&[1.0; 48], &k, &[1.0; 48]], &mut out);
        assert!(out[16..].iter().all(|v| v.is_nan()) && out[0].is_finite(), "{isa:?}");
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
