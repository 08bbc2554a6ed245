//! The fused block of experts against a naive loop over the oracle, and against itself under other threads, instruction
//! sets and batches.

mod common;

use billfish_kernels::{
    Activations, Backend, Choice, Expert, ExpertGroups, ExpertScratch, Experts, GroupScore, Isa, PackedDense, PackedMatrix, Routing,
    Scoring, Shared, Weight,
};
use billfish_tensor::{DenseTensor, QuantMatrix, oracle};
use common::{Order, Rng, Spec, activations, matrix};
use std::sync::Arc;

/// A weight as the oracle sees it and as the kernels do.
enum Matrix {
    Quantized(QuantMatrix),
    /// `[N, K]`.
    Dense(Vec<f32>, usize, usize),
}

impl Matrix {
    fn pack(&self) -> Weight {
        match self {
            Matrix::Quantized(m) => Weight::Quantized(PackedMatrix::new(m).unwrap()),
            Matrix::Dense(w, k, n) => {
                let tensor = DenseTensor::from_f32(vec![*n, *k], w).unwrap();
                Weight::Dense(Arc::new(PackedDense::new(&tensor, None).unwrap()))
            }
        }
    }

    fn times(&self, x: &[f32]) -> Vec<f64> {
        match self {
            Matrix::Quantized(m) => oracle::matmul(x, m),
            Matrix::Dense(w, k, n) => {
                let column = |i: usize| (0..*k).map(|j| f64::from(x[j]) * f64::from(w[i * k + j])).sum();
                (0..*n).map(column).collect()
            }
        }
    }
}

/// Gate, up and down.
type Mlp = [Matrix; 3];

fn mlp(mlp: &Mlp, x: &[f32]) -> Vec<f64> {
    let (gate, up) = (mlp[0].times(x), mlp[1].times(x));
    let h: Vec<f32> = gate.iter().zip(&up).map(|(g, u)| (g / (1.0 + (-g).exp()) * u) as f32).collect();
    mlp[2].times(&h)
}

fn pack(mlp: &Mlp) -> Expert {
    Expert { gate: mlp[0].pack(), up: mlp[1].pack(), down: mlp[2].pack() }
}

const HIDDEN: usize = 96;
const WIDTH: usize = 70;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// All in the same order.
    Plain,
    /// Each expert's rows in an order of its own, gate and up alike.
    ActOrder,
    /// Widths, groups, symmetry and orders differ; some experts are dense.
    Mixed,
    Dense,
}

fn expert(kind: Kind, i: usize, width: usize, rng: &mut Rng) -> Mlp {
    let seed = rng.next();
    let spec = |k, n, part: u64| {
        let order = if kind == Kind::ActOrder { Order::Shuffled } else { Order::Plain };
        // gate and up share the order of their rows: the seed gives codes and order alike, so up differs in symmetry
        let plain = Spec { k, n, bits: 4, group: 32, zeros: part == 1, order, scales: 0, bias: false, seed: seed ^ (part / 2) };
        if kind != Kind::Mixed {
            return plain;
        }
        let order = [Order::Plain, Order::Shuffled, Order::Wild][(i + part as usize) % 3];
        Spec { bits: [2, 3, 4, 8][i % 4], group: [16, 32, 0][i % 3], zeros: i.is_multiple_of(2), order, seed: seed ^ part, ..plain }
    };
    let dense = kind == Kind::Dense || kind == Kind::Mixed && i % 5 == 4;
    let mut one = |k: usize, n: usize, part: u64| match dense && (kind == Kind::Dense || part != 1) {
        true => Matrix::Dense(rng.floats(k * n).iter().map(|v| v * 0.2).collect(), k, n),
        false => Matrix::Quantized(matrix(&spec(k, n, part))),
    };
    [one(HIDDEN, width, 0), one(HIDDEN, width, 1), one(width, HIDDEN, 2)]
}

struct Case {
    mlps: Vec<Mlp>,
    experts: Experts,
    shared: Option<(Mlp, Expert)>,
}

fn case(kind: Kind, count: usize, shared: Option<usize>, rng: &mut Rng) -> Case {
    let mlps: Vec<Mlp> = (0..count).map(|i| expert(kind, i, WIDTH, rng)).collect();
    let shared = shared.map(|width| {
        let mlp = expert(kind, 0, width, rng);
        let packed = pack(&mlp);
        (mlp, packed)
    });
    Case { experts: Experts::new(mlps.iter().map(pack).collect()).unwrap(), mlps, shared }
}

fn run(c: &Case, weights: Option<&[f32]>, isa: Isa, threads: usize, x: &[f32], a: Activations, choices: &[Choice]) -> Vec<f32> {
    let backend = Backend::new(isa, threads).unwrap();
    let mut out: Vec<f32> = x.iter().map(|v| v * 0.5).collect();
    let shared = c.shared.as_ref().map(|(_, expert)| Shared { expert, weights });
    let mut scratch = ExpertScratch::default();
    // buffers that hold another batch's leftovers give the same
    let two = (2 * HIDDEN).min(x.len());
    let k = choices.len() / (x.len() / HIDDEN);
    let some = weights.map(|w| &w[..two / HIDDEN]);
    let few = c.shared.as_ref().map(|(_, expert)| Shared { expert, weights: some });
    let m = two / HIDDEN;
    backend.experts(&mut scratch, &c.experts, few, &x[..two], m, a, &choices[..k * m], &mut vec![0.0; two]);
    backend.experts(&mut scratch, &c.experts, shared, x, x.len() / HIDDEN, a, choices, &mut out);
    out
}

/// `out += Σ weight · expert(x)`, one token and one expert after another.
fn naive(c: &Case, weights: Option<&[f32]>, x: &[f32], choices: &[Choice]) -> Vec<f64> {
    let k = choices.len() / (x.len() / HIDDEN);
    let token = |(i, (x, choices)): (usize, (&[f32], &[Choice]))| {
        let mut out: Vec<f64> = x.iter().map(|v| f64::from(v * 0.5)).collect();
        let mut add = |y: Vec<f64>, w: f32| out.iter_mut().zip(y).for_each(|(o, y)| *o += f64::from(w) * y);
        choices.iter().for_each(|c_| add(mlp(&c.mlps[c_.expert as usize], x), c_.weight));
        if let Some((shared, _)) = &c.shared {
            add(mlp(shared, x), weights.map_or(1.0, |w| w[i]));
        }
        out
    };
    x.chunks(HIDDEN).zip(choices.chunks(k)).enumerate().flat_map(token).collect()
}

fn check(c: &Case, weights: Option<&[f32]>, x: &[f32], choices: &[Choice], what: &str) {
    let want = naive(c, weights, x, choices);
    let k = choices.len() / (x.len() / HIDDEN);
    for (a, tolerance) in [(Activations::Strict, 1e-5), (Activations::Exact, 1e-3), (Activations::Int8, 0.2)] {
        let got = run(c, weights, Isa::Scalar, 1, x, a, choices);
        for (got, want) in got.chunks(HIDDEN).zip(want.chunks(HIDDEN)) {
            let size = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let off = got.iter().zip(want).fold(0.0f64, |m, (g, w)| m.max((f64::from(*g) - w).abs()));
            assert!(off <= tolerance * size, "{what} {a:?}: off by {:e} of the largest", off / size);
        }
        for isa in Isa::available() {
            for threads in [1, 3] {
                assert_eq!(run(c, weights, isa, threads, x, a, choices), got, "{what} {a:?} {isa:?} {threads} threads");
            }
        }
        for (i, row) in x.chunks(HIDDEN).enumerate().step_by(5) {
            let alone = run(c, weights.map(|w| &w[i..i + 1]), Isa::Scalar, 1, row, a, &choices[i * k..(i + 1) * k]);
            assert_eq!(alone, got[i * HIDDEN..(i + 1) * HIDDEN], "{what} {a:?}: row {i} alone");
        }
    }
}

fn inputs(rng: &mut Rng, m: usize) -> Vec<f32> {
    activations(rng, m, HIDDEN).iter().map(|v| v.clamp(-3.0, 3.0)).collect()
}

#[test]
fn every_routing_variant_on_every_kind_of_expert() {
    let mut rng = Rng(11);
    let backend = Backend::new(Isa::Scalar, 1).unwrap();
    for (kind, experts, top_k, shared) in [
        (Kind::Plain, 4, 1, None),
        (Kind::Plain, 8, 2, Some(WIDTH)),
        (Kind::Plain, 64, 8, Some(130)),
        (Kind::ActOrder, 4, 4, None),
        (Kind::ActOrder, 16, 3, Some(WIDTH)),
        (Kind::Mixed, 4, 2, Some(33)),
        (Kind::Mixed, 20, 5, Some(WIDTH)),
        (Kind::Mixed, 32, 6, None),
        (Kind::Dense, 8, 7, Some(WIDTH)),
    ] {
        let c = case(kind, experts, shared, &mut rng);
        let group = |count, chosen, score| Some(ExpertGroups { count, chosen, score });
        let variants = [
            (Scoring::Softmax, None, true, 1.0, false),
            (Scoring::Softmax, None, false, 1.0, true),
            (Scoring::Softmax, group(2, 2, GroupScore::Largest), true, 2.5, false),
            (Scoring::Sigmoid, group(2, 1, GroupScore::BestTwo), true, 2.5, true),
            (Scoring::Sigmoid, None, false, 1.0, true),
        ];
        for (scoring, groups, renormalize, scaling, corrected) in variants {
            let r = Routing { experts, top_k, scoring, groups, renormalize, scaling };
            if r.check().is_err() {
                continue;
            }
            for m in [1, 2, 19] {
                let x = inputs(&mut rng, m);
                let mut logits = rng.floats(m * experts);
                let correction = rng.floats(experts);
                let mut choices = vec![Choice::default(); m * top_k];
                backend.route(&r, &mut logits, corrected.then_some(&correction), &mut choices);
                let gates = rng.floats(m);
                let weights = (m != 2).then_some(&gates[..]);
                check(&c, weights, &x, &choices, &format!("{kind:?} {r:?} m={m}"));
            }
        }
    }
}

#[test]
fn all_tokens_on_one_expert_and_experts_without_tokens() {
    let mut rng = Rng(12);
    for kind in [Kind::Plain, Kind::ActOrder, Kind::Mixed, Kind::Dense] {
        let c = case(kind, 6, None, &mut rng);
        for m in [1, 12, 40] {
            let x = inputs(&mut rng, m);
            for expert in [0, 3, 5] {
                let choices = vec![Choice { expert, weight: 0.75 }; m];
                check(&c, None, &x, &choices, &format!("{kind:?} m={m} expert {expert}"));
            }
            // every token to all of them
            let all: Vec<Choice> = (0..m).flat_map(|_| (0..6).rev().map(|expert| Choice { expert, weight: 0.2 })).collect();
            check(&c, None, &x, &all, &format!("{kind:?} m={m} all"));
        }
    }
}

#[test]
fn ranks_with_a_part_of_the_experts_sum_to_the_whole() {
    let mut rng = Rng(13);
    for kind in [Kind::Plain, Kind::Mixed] {
        let (count, k, m) = (10, 3, 17);
        let c = case(kind, count, None, &mut rng);
        let x = inputs(&mut rng, m);
        let choices: Vec<Choice> = (0..m)
            .flat_map(|_| {
                let first = rng.below(count);
                (0..k).map(move |j| Choice { expert: ((first + 4 * j) % count) as u32, weight: 0.3 + j as f32 })
            })
            .collect();
        let backend = Backend::new(Isa::choose(None).unwrap(), 2).unwrap();
        let mut sum = vec![0.0f64; x.len()];
        // the last rank has none that any token wants
        for rank in [0..4, 4..10, 10..10] {
            let list: Vec<Expert> = if rank.is_empty() { vec![pack(&c.mlps[0])] } else { c.mlps[rank.clone()].iter().map(pack).collect() };
            let map = (0..count).map(|e| rank.contains(&e).then(|| (e - rank.start) as u32)).collect();
            let local = Experts::new(list).unwrap().with_map(map).unwrap();
            let mut out = vec![0.0f32; x.len()];
            backend.experts(&mut ExpertScratch::default(), &local, None, &x, m, Activations::Strict, &choices, &mut out);
            sum.iter_mut().zip(&out).for_each(|(s, o)| *s += f64::from(*o));
        }
        let want = naive(&c, None, &x, &choices);
        let size = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        for ((sum, want), x) in sum.iter().zip(&want).zip(&x) {
            assert!((sum + f64::from(x * 0.5) - want).abs() <= 1e-5 * size, "{kind:?}: {sum} against {want}");
        }
    }
}

#[test]
fn weights_on_the_input() {
    let mut rng = Rng(14);
    for kind in [Kind::Plain, Kind::ActOrder, Kind::Dense] {
        let (m, k) = (9, 2);
        let mut c = case(kind, 5, Some(40), &mut rng);
        c.experts = c.experts.with_weights_on_input().unwrap();
        let x = inputs(&mut rng, m);
        let choices: Vec<Choice> =
            (0..m * k).map(|i| Choice { expert: ((i * 3 + i / k) % 5) as u32, weight: 0.25 + 0.5 * (i % 4) as f32 }).collect();
        let got = run(&c, None, Isa::choose(None).unwrap(), 2, &x, Activations::Strict, &choices);
        for (i, (row, got)) in x.chunks(HIDDEN).zip(got.chunks(HIDDEN)).enumerate() {
            let mut want: Vec<f64> = row.iter().map(|v| f64::from(v * 0.5)).collect();
            let mut add = |y: Vec<f64>| want.iter_mut().zip(y).for_each(|(o, y)| *o += y);
            for choice in &choices[i * k..(i + 1) * k] {
                let scaled: Vec<f32> = row.iter().map(|v| v * choice.weight).collect();
                add(mlp(&c.mlps[choice.expert as usize], &scaled));
            }
            add(mlp(&c.shared.as_ref().unwrap().0, row));
            let size = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let off = got.iter().zip(&want).fold(0.0f64, |m, (g, w)| m.max((f64::from(*g) - w).abs()));
            assert!(off <= 1e-5 * size, "{kind:?}: off by {:e} of the largest", off / size);
        }
    }
}

#[test]
fn experts_that_do_not_fit_are_refused() {
    let mut rng = Rng(15);
    let message = |list: Vec<Expert>| Experts::new(list).err().unwrap().to_string();
    assert!(message(vec![]).contains("one expert or more"));
    let (a, b) = (expert(Kind::Plain, 0, 32, &mut rng), expert(Kind::Plain, 1, 64, &mut rng));
    assert!(message(vec![pack(&a), pack(&b)]).contains("expert 1 must have the shape of expert 0, [96, 32]"));
    let crossed = Expert { down: b[2].pack(), ..pack(&a) };
    assert!(message(vec![crossed]).contains("down of an expert whose gate is [96, 32] must be [32, 96]"));
    let map = Experts::new(vec![pack(&a)]).unwrap().with_map(vec![None, Some(1)]).err().unwrap().to_string();
    assert!(map.contains("place 1 of 1"), "{map}");
}
