//! The GPTQ solver against the algorithm of its paper, written out plainly, and what its searches gain.

use billfish_kernels::{Backend, Isa};
use billfish_quantize::gptq::{Grid, Hessian, Order, Search, Settings, Solution, solve};
use billfish_tensor::DType;

fn backend(threads: usize) -> Backend {
    Backend::new(Isa::choose(None).unwrap(), threads).unwrap()
}

/// Numbers like a normal distribution's.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

/// Weights `[n, k]` and correlated input rows `[rows, k]`, some inputs much larger than others.
fn layer(n: usize, k: usize, rows: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let mut random = Random(seed);
    let hidden = k / 4;
    let mix: Vec<f64> = (0..hidden * k).map(|_| random.normal()).collect();
    let size: Vec<f64> = (0..k).map(|_| (0.8 * random.normal()).exp()).collect();
    let mut x = vec![0.0; rows * k];
    for row in x.chunks_exact_mut(k) {
        let h: Vec<f64> = (0..hidden).map(|_| random.normal()).collect();
        for (i, v) in row.iter_mut().enumerate() {
            let shared: f64 = h.iter().enumerate().map(|(j, h)| h * mix[j * k + i]).sum::<f64>() / (hidden as f64).sqrt();
            *v = ((shared + 0.3 * random.normal()) * size[i]) as f32;
        }
    }
    let w = (0..n * k).map(|_| (random.normal() * 0.02) as f32).collect();
    (w, x)
}

fn hessian(x: &[f32], k: usize) -> Hessian {
    let mut h = Hessian::new(k);
    h.add(&backend(2), x);
    h
}

/// GPTQ as its paper has it: the inverse Hessian, its upper Cholesky factor, column after column, the smallest and the
/// largest weight of a group as the ends of its range. Codes `[n, k]` and the weights they stand for.
fn textbook(w: &[f32], x: &[f32], k: usize, bits: u32, group: usize, damp: f64) -> (Vec<u8>, Vec<f64>) {
    let n = w.len() / k;
    let mut h = vec![vec![0.0; k]; k];
    for row in x.chunks_exact(k) {
        for i in 0..k {
            for j in 0..k {
                h[i][j] += f64::from(row[i]) * f64::from(row[j]);
            }
        }
    }
    let mean = (0..k).map(|i| h[i][i]).sum::<f64>() / k as f64;
    (0..k).for_each(|i| h[i][i] += damp * mean);
    // the inverse by Gauss and Jordan
    let mut inverse: Vec<Vec<f64>> = (0..k).map(|i| (0..k).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for p in 0..k {
        let pivot = h[p][p];
        (0..k).for_each(|j| (h[p][j], inverse[p][j]) = (h[p][j] / pivot, inverse[p][j] / pivot));
        let (hp, ip) = (h[p].clone(), inverse[p].clone());
        for i in (0..k).filter(|&i| i != p) {
            let f = h[i][p];
            (0..k).for_each(|j| (h[i][j], inverse[i][j]) = (h[i][j] - f * hp[j], inverse[i][j] - f * ip[j]));
        }
    }
    // its factor U: inverse = Uᵀ · U, row after row
    let mut u = vec![vec![0.0; k]; k];
    for i in 0..k {
        for j in i..k {
            let sum: f64 = (0..i).map(|p| u[p][i] * u[p][j]).sum();
            u[i][j] = if i == j { (inverse[i][i] - sum).sqrt() } else { (inverse[i][j] - sum) / u[i][i] };
        }
    }
    let (mut codes, mut levels) = (vec![0; n * k], vec![0.0; n * k]);
    let (largest, zero) = (f64::from((1 << bits) - 1), f64::from(1 << (bits - 1)));
    for c in 0..n {
        let mut row: Vec<f64> = w[c * k..(c + 1) * k].iter().map(|v| f64::from(*v)).collect();
        let mut scale = 0.0;
        for i in 0..k {
            if i % group == 0 {
                let end = row[i..(i + group).min(k)].iter().fold(0.0f64, |m, v| m.max(v.abs()));
                scale = half::f16::from_f64(2.0 * end / largest).to_f64();
            }
            let code = ((row[i] / scale).round_ties_even() + zero).clamp(0.0, largest);
            let level = (code - zero) * scale;
            let error = (row[i] - level) / u[i][i];
            (i + 1..k).for_each(|j| row[j] -= error * u[i][j]);
            (codes[c * k + i], levels[c * k + i]) = (code as u8, level);
        }
    }
    (codes, levels)
}

/// The squared error of the outputs over the squares of the outputs.
fn output_error(w: &[f32], levels: impl Fn(usize) -> f64, x: &[f32], k: usize) -> f64 {
    let (mut error, mut all) = (0.0, 0.0);
    for row in x.chunks_exact(k) {
        for c in 0..w.len() / k {
            let (mut d, mut y) = (0.0, 0.0);
            for i in 0..k {
                let (x, w) = (f64::from(row[i]), f64::from(w[c * k + i]));
                d += x * (levels(c * k + i) - w);
                y += x * w;
            }
            error += d * d;
            all += y * y;
        }
    }
    error / all
}

fn plain(bits: u32) -> Settings {
    Settings {
        grid: Grid { bits, sym: true, signed: false, lowest_zero: 0, stored: DType::F16 },
        group_size: Some(128),
        order: Order::None,
        search: Search::MinMax,
        damp: 0.01,
        propagate: true,
        sweeps: 0,
        clip: false,
    }
}

fn solved(w: &[f32], h: &Hessian, settings: &Settings) -> Solution {
    solve(&backend(2), w, h, settings)
}

#[test]
fn the_same_codes_as_the_textbook() {
    let (n, k) = (24, 512);
    let (w, x) = layer(n, k, 1024, 1);
    let h = hessian(&x, k);
    for bits in [2, 3, 4, 8] {
        let (codes, _) = textbook(&w, &x, k, bits, 128, 0.01);
        let found = solved(&w, &h, &plain(bits));
        let same = (0..n * k).filter(|&at| codes[at] == found.codes[at % k * n + at / k]).count();
        assert!(same as f64 >= 0.999 * (n * k) as f64, "{bits} bit: {same} of {} alike", n * k);
        assert!(!found.fallback && found.damp == 0.01);
    }
}

#[test]
fn errors_in_the_output() {
    for (k, rows) in [(512, 1024), (1024, 2048)] {
        let n = 16;
        let (w, x) = layer(n, k, rows, 2);
        let h = hessian(&x, k);
        let (_, levels) = textbook(&w, &x, k, 4, 128, 0.01);
        let reference = output_error(&w, |at| levels[at], &x, k);
        let of = |settings: &Settings| {
            let levels = solved(&w, &h, settings).weights(k, settings.group_size);
            output_error(&w, |at| f64::from(levels[at]), &x, k)
        };
        let rtn = of(&Settings { propagate: false, ..plain(4) });
        let gptq = of(&plain(4));
        assert!(gptq <= 1.03 * reference, "K = {k}: {gptq} against {reference} of the textbook");
        assert!(gptq < 0.65 * rtn, "K = {k}: {gptq} against {rtn} of rounding to nearest");
        let best = of(&Settings {
            grid: Grid { signed: true, ..plain(4).grid },
            order: Order::Gar,
            search: Search::Hessian,
            sweeps: 2,
            clip: false,
            ..plain(4)
        });
        assert!(best < 0.75 * reference, "K = {k}: {best} against {reference}");
    }
}

#[test]
fn sweeps_never_make_it_worse() {
    let (n, k) = (16, 300);
    let (w, x) = layer(n, k, 700, 3);
    let h = hessian(&x, k);
    for bits in [2, 3, 4] {
        for order in [Order::None, Order::Gar, Order::Static, Order::Desc] {
            for group_size in [Some(32), Some(128), None] {
                let of = |sweeps| {
                    let settings = Settings { group_size, order, search: Search::Hessian, damp: 0.0, sweeps, ..plain(bits) };
                    let levels = solved(&w, &h, &settings).weights(k, group_size);
                    output_error(&w, |at| f64::from(levels[at]), &x, k)
                };
                let errors = [of(0), of(1), of(2)];
                // the same but for rounding
                assert!(
                    errors[1] <= errors[0] * (1.0 + 1e-6) && errors[2] <= errors[1] * (1.0 + 1e-6),
                    "{bits} {order:?} {group_size:?} {errors:?}"
                );
            }
        }
    }
}

#[test]
fn threads_and_cuts_change_nothing() {
    let (n, k) = (20, 260);
    let (w, x) = layer(n, k, 900, 4);
    let h = hessian(&x, k);
    let mut cut = Hessian::new(k);
    x.chunks(37 * k).for_each(|part| cut.add(&backend(1), part));
    let order: Vec<usize> = (0..k).rev().collect();
    assert!(h.ordered(&order) == cut.ordered(&order) && h.rows() == cut.rows(), "cuts");
    let settings = Settings { search: Search::Hessian, sweeps: 1, order: Order::Gar, ..plain(3) };
    assert!(solve(&backend(1), &w, &h, &settings) == solve(&backend(2), &w, &cut, &settings), "threads");
}

#[test]
fn what_is_not_a_number_is_dropped_and_counted() {
    let mut h = Hessian::new(2);
    h.add(&backend(1), &[1.0, 2.0, f32::NAN, 1.0, f32::INFINITY, 0.0, 3.0, 0.0]);
    assert_eq!((h.rows(), h.dropped(), h.diagonal()), (2, 2, vec![5.0, 2.0]));
}

#[test]
fn inputs_that_are_always_zero_and_singular_hessians() {
    let (n, k) = (8, 128);
    let (w, x) = layer(n, k, 40, 5);
    // fewer rows than inputs, one input dead, no damping at all: more is taken until it works
    let x: Vec<f32> = x.iter().enumerate().map(|(at, v)| if at % k == 7 { 0.0 } else { *v }).collect();
    let h = hessian(&x, k);
    let s = solved(&w, &h, &Settings { damp: 0.0, ..plain(4) });
    assert!(s.damp > 0.0 && !s.fallback);
    let levels = s.weights(k, Some(128));
    assert!((0..n).all(|c| levels[c * k + 7] == 0.0), "the weights of a dead input are zero");
}

#[test]
fn act_order_has_an_index_and_the_other_orders_none() {
    let (w, x) = layer(4, 256, 300, 6);
    let h = hessian(&x, 256);
    for order in [Order::None, Order::Gar, Order::Static, Order::Desc] {
        let s = solved(&w, &h, &Settings { order, ..plain(4) });
        assert_eq!(s.g_idx.is_some(), order == Order::Desc);
        if let Some(g) = &s.g_idx {
            assert!((0..2).all(|group| g.iter().filter(|&&x| x == group).count() == 128));
        }
        assert_eq!((s.groups, s.scales.len()), (2, 8));
    }
}
