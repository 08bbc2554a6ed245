//! Every matmul kernel of every instruction set against the f64 oracle, and all of them against each other, bit by bit.

mod common;

use billfish_kernels::{Activations, Backend, Input, Isa, MatmulScratch, PackedDense, PackedMatrix, Product, Weight};
use billfish_tensor::{ActivationScale, DType, DenseTensor, QuantMatrix, oracle};
use common::{Order, Rng, Spec, activations, matrix};
use proptest::prelude::*;
use std::sync::Arc;

fn run(isa: Isa, threads: usize, weight: &Weight, x: &[f32], m: usize, a: Activations) -> Vec<f32> {
    run_on(&Backend::new(isa, threads).unwrap(), weight, x, m, a)
}

fn run_on(backend: &Backend, weight: &Weight, x: &[f32], m: usize, a: Activations) -> Vec<f32> {
    let mut y = vec![f32::NAN; m * weight.out_features()];
    backend.matmul(&mut MatmulScratch::default(), Input::Rows(x), m, a, &mut [Product::new(weight, &mut y)]);
    y
}

/// Largest integer of each precision (one signed byte of top digit).
fn limit(a: Activations) -> f64 {
    match a {
        Activations::Int8 => 127.0,
        Activations::Exact => 127.0 * 256.0,
        Activations::Strict => 127.0 * 65536.0,
    }
}

/// How far a result may lie from the oracle. Each activation is off by at most half a step of `amax / limit` of its
/// block, taken here as the largest of its row, plus two roundings of the quotient; each of the blocks' partial sums
/// adds a few f32 roundings of magnitudes that `sum |w x|` bounds.
fn bounds(m: &QuantMatrix, x: &[f32], a: Activations) -> Vec<f64> {
    let (k, n) = (m.in_features(), m.out_features());
    let w = oracle::dequantize(m);
    let eps = f64::from(f32::EPSILON);
    let blocks = (k.div_ceil(128) + m.group_count()) as f64;
    x.chunks(k)
        .flat_map(|row| {
            let amax = row.iter().fold(0.0, |a, v| f64::max(a, f64::from(v.abs())));
            let w = &w;
            (0..n).map(move |col| {
                let (mut step, mut size) = (0.0, m.bias().map_or(0.0, |b| f64::from(b[col].abs())));
                for (i, v) in row.iter().enumerate() {
                    let w = w[i * n + col].abs();
                    step += w * amax * (0.5 / limit(a) + eps);
                    size += w * (f64::from(v.abs()) + amax / limit(a));
                }
                step + size * eps * (blocks + 8.0) + 1e-30
            })
        })
        .collect()
}

fn check(spec: &Spec, ms: &[usize]) {
    let q = matrix(spec);
    let weight = Weight::Quantized(PackedMatrix::new(&q).unwrap());
    let mut rng = Rng(spec.seed ^ 0xabc);
    for a in Activations::ALL {
        for &m in ms {
            let x = activations(&mut rng, m, spec.k);
            let expected = oracle::matmul(&x, &q);
            let bounds = bounds(&q, &x, a);
            // the twin of all: scalar, one row at a time
            let twin: Vec<f32> = x.chunks(spec.k).flat_map(|row| run(Isa::Scalar, 1, &weight, row, 1, a)).collect();
            for (i, (got, want)) in twin.iter().zip(&expected).enumerate() {
                let error = (f64::from(*got) - want).abs();
                assert!(
                    error <= bounds[i],
                    "{spec:?} {a:?} m={m} element {i}: {got} against {want}, off by {error:e}, allowed {:e}",
                    bounds[i]
                );
            }
            for isa in Isa::available() {
                // one row has kernels for panels one by one and, there, for pairs
                let both = m == 1 && matches!(isa, Isa::Avx512 | Isa::Amx);
                for pairs in [false, true].into_iter().take(if both { 2 } else { 1 }) {
                    let y = run_on(&Backend::new(isa, 1 + m % 3).unwrap().in_pairs(pairs), &weight, &x, m, a);
                    let same = y.iter().zip(&twin).position(|(a, b)| a.to_bits() != b.to_bits());
                    assert_eq!(same, None, "{spec:?} {a:?} m={m} {isa:?} pairs={pairs}: differs from the scalar twin");
                }
            }
        }
    }
}

const PLAIN: Spec = Spec { k: 0, n: 0, bits: 4, group: 128, zeros: true, order: Order::Plain, scales: 0, bias: true, seed: 1 };

/// Every tile size of every instruction set, width and precision: M from 1 to 17 and 128.
#[test]
fn every_row_count() {
    let ms: Vec<usize> = (1..=17).chain([128]).collect();
    for bits in 2..=8 {
        check(&Spec { k: 100, n: 33, bits, group: 48, seed: u64::from(bits), ..PLAIN }, &ms);
    }
    // whole panels without a bias are written in place, what is left of 100 columns is not
    check(&Spec { k: 100, n: 100, group: 48, bias: false, ..PLAIN }, &ms);
}

#[test]
fn every_group_size_and_ragged_shape() {
    let mut seed = 100;
    for bits in 2..=8 {
        for group in [16, 32, 48, 128, 0] {
            for (k, n) in [(1, 1), (31, 100), (33, 31), (100, 1), (300, 65), (130, 64)] {
                for zeros in [false, true] {
                    seed += 1;
                    let spec = Spec { k, n, bits, group, zeros, seed, scales: seed as usize % 3, bias: seed % 2 == 0, ..PLAIN };
                    check(&spec, &[1, 7]);
                }
            }
        }
    }
}

/// Rows so long that they are quantized in several pieces, which groups cut as they like: alone, where one piece follows the
/// other, and in tiles, where a piece of every row comes first.
#[test]
fn rows_in_several_pieces() {
    for (k, group) in [(4500, 128), (2100, 48), (2049, 32), (2200, 200), (2300, 0)] {
        for order in [Order::Plain, Order::Shuffled] {
            check(&Spec { k, n: 5, group, order, seed: 31, ..PLAIN }, &[1, 3, 14]);
        }
    }
}

#[test]
fn permuted_rows() {
    for bits in 2..=8 {
        for order in [Order::Shuffled, Order::Wild] {
            for group in [1, 16, 32, 48, 128] {
                check(&Spec { k: 259, n: 40, bits, group, order, seed: 7 + u64::from(bits), ..PLAIN }, &[1, 5]);
            }
        }
    }
}

/// A model-sized matrix, where a strict result must be as good as f32.
#[test]
fn strict_is_as_good_as_f32() {
    let q = matrix(&Spec { k: 4096, n: 64, group: 128, seed: 3, ..PLAIN });
    let weight = Weight::Quantized(PackedMatrix::new(&q).unwrap());
    let mut rng = Rng(5);
    let x = rng.floats(4096);
    let want = oracle::matmul(&x, &q);
    let norm = want.iter().map(|v| v * v).sum::<f64>().sqrt();
    let relative = |a| {
        let y = run(Isa::choose(None).unwrap(), 2, &weight, &x, 1, a);
        y.iter().zip(&want).map(|(y, w)| (f64::from(*y) - w).powi(2)).sum::<f64>().sqrt() / norm
    };
    // cpu_kernels §0: 2-4e-7, 2.5e-5 to 1e-4, 0.7-2 %; gaussian-like inputs sit at the low end of each
    let (strict, exact, int8) = (relative(Activations::Strict), relative(Activations::Exact), relative(Activations::Int8));
    assert!(strict < 5e-7, "strict {strict:e}");
    assert!(exact < 1e-4 && exact > strict, "exact {exact:e}");
    assert!(int8 < 2e-2 && int8 > exact, "int8 {int8:e}");
}

#[test]
fn what_is_not_a_number_stays_so() {
    let q = matrix(&Spec { k: 64, n: 3, group: 32, zeros: false, bias: false, ..PLAIN });
    let weight = Weight::Quantized(PackedMatrix::new(&q).unwrap());
    for isa in Isa::available() {
        for a in Activations::ALL {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = vec![1.0; 128];
                x[40] = bad;
                let y = run(isa, 1, &weight, &x, 2, a);
                assert!(y[..3].iter().all(|v| v.is_nan()), "{isa:?} {a:?} {bad}");
                assert!(y[3..].iter().all(|v| v.is_finite()), "the other row is untouched");
            }
            let zero = run(isa, 1, &weight, &[0.0; 64], 1, a);
            assert_eq!(zero, [0.0; 3]);
            let tiny = run(isa, 1, &weight, &[1e-36; 64], 1, a);
            assert!(tiny.iter().all(|v| v.abs() < 1e-30));
        }
    }
}

#[test]
fn several_weights_share_one_input() {
    let specs = [(4, Order::Plain, 40), (8, Order::Plain, 64), (2, Order::Shuffled, 10)];
    let ms: Vec<QuantMatrix> =
        specs.iter().map(|&(bits, order, n)| matrix(&Spec { k: 96, n, bits, order, group: 32, seed: 9, ..PLAIN })).collect();
    let mut packed: Vec<PackedMatrix> = ms.iter().map(|m| PackedMatrix::new(m).unwrap()).collect();
    let (first, rest) = packed.split_first_mut().unwrap();
    rest.iter_mut().for_each(|p| p.share_order(first));
    let weights: Vec<Weight> = packed.into_iter().map(Weight::Quantized).collect();
    let x = activations(&mut Rng(4), 3, 96);
    let backend = Backend::new(Isa::choose(None).unwrap(), 2).unwrap();
    let mut outs: Vec<Vec<f32>> = weights.iter().map(|w| vec![0.0; 3 * w.out_features()]).collect();
    let mut products: Vec<Product> = weights.iter().zip(outs.iter_mut()).map(|(w, o)| Product::new(w, o)).collect();
    backend.matmul(&mut MatmulScratch::default(), Input::Rows(&x), 3, Activations::Exact, &mut products);
    for (w, out) in weights.iter().zip(&outs) {
        assert_eq!(*out, run(Isa::Scalar, 1, w, &x, 3, Activations::Exact));
    }
}

#[test]
fn no_rows_are_no_work() {
    let (k, n) = (64, 70);
    let mut rng = Rng(11);
    let dense = DenseTensor::new(DType::F32, vec![n, k], rng.floats(n * k).iter().flat_map(|v| v.to_le_bytes()).collect()).unwrap();
    let quantized = PackedMatrix::new(&matrix(&Spec { k, n, ..PLAIN })).unwrap();
    let weights = [Weight::Dense(Arc::new(PackedDense::new(&dense, None).unwrap())), Weight::Quantized(quantized)];
    for weight in &weights {
        for isa in Isa::available() {
            for a in Activations::ALL {
                assert!(run(isa, 2, weight, &[], 0, a).is_empty());
            }
        }
    }
}

#[test]
fn dense_weights() {
    let mut rng = Rng(77);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for (k, n) in [(1, 1), (31, 33), (100, 64), (129, 130), (64, 7)] {
            let values = rng.floats(k * n);
            let bytes: Vec<u8> = match dtype {
                DType::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
                DType::BF16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            };
            let tensor = DenseTensor::new(dtype, vec![n, k], bytes).unwrap();
            let stored = tensor.to_f32();
            let bias = rng.floats(n);
            let packed = PackedDense::new(&tensor, Some(bias.clone())).unwrap();
            let mut column = vec![0.0; k];
            packed.column(n - 1, &mut column);
            assert_eq!(column, stored[(n - 1) * k..]);
            let weight = Weight::Dense(Arc::new(packed));
            for m in [1, 2, 3, 5, 7, 16, 17] {
                let x = rng.floats(m * k);
                let twin: Vec<f32> = x.chunks(k).flat_map(|row| run(Isa::Scalar, 1, &weight, row, 1, Activations::Exact)).collect();
                for isa in Isa::available() {
                    let y = run(isa, 2, &weight, &x, m, Activations::Exact);
                    for r in 0..m {
                        for col in 0..n {
                            let (mut want, mut size) = (f64::from(bias[col]), f64::from(bias[col].abs()));
                            for i in 0..k {
                                let p = f64::from(x[r * k + i]) * f64::from(stored[col * k + i]);
                                want += p;
                                size += p.abs();
                            }
                            let got = y[r * n + col];
                            // one f32 rounding for each of the k + 2 sums
                            assert!((f64::from(got) - want).abs() <= size * 6e-8 * (k as f64 + 2.0), "{dtype} [{k}, {n}] m={m} {isa:?}");
                            assert_eq!(got.to_bits(), twin[r * n + col].to_bits(), "{dtype} [{k}, {n}] m={m} {isa:?}");
                        }
                    }
                }
            }
        }
    }
}

/// One weight times one activation of a chain, by the definition: denormal weights count as 0, activations are rounded to
/// `bf16` after they were made 2^64 times as large, and are 0 below 2^20.
fn rounded_step(w: half::bf16, x: f32, sum: f32) -> f32 {
    let w = if w.to_f32().is_subnormal() { 0.0 } else { w.to_f32() };
    let x = x * 2f32.powi(64);
    let x = if x.abs() < 2f32.powi(20) { 0.0 } else { half::bf16::from_f32(x).to_f32() };
    w.mul_add(x, sum)
}

#[test]
fn dense_weights_take_rounded_activations_with_int8() {
    let mut rng = Rng(78);
    for (k, n) in [(1, 1), (31, 33), (100, 64), (129, 130), (64, 7), (300, 65)] {
        // every size there is: large, small, denormal, and sums that cancel
        let sizes = [1.0, 1.0, 1e-3, -1.0, 1e-20, 1e-37, 1e-39, 1e4];
        let mut stored: Vec<half::bf16> =
            rng.floats(k * n).iter().enumerate().map(|(i, v)| half::bf16::from_f32(v * sizes[i % 8])).collect();
        stored[0] = half::bf16::from_bits(1);
        let tensor = DenseTensor::new(DType::BF16, vec![n, k], stored.iter().flat_map(|v| v.to_le_bytes()).collect()).unwrap();
        let bias = rng.floats(n);
        let weight = Weight::Dense(Arc::new(PackedDense::new(&tensor, Some(bias.clone())).unwrap()));
        for m in [1, 2, 3, 5, 7, 16, 17] {
            let sizes = [1.0, -1.0, 1e-2, 1e3, 1e-14, 1e-30, 1e-40];
            let x: Vec<f32> = rng.floats(m * k).iter().enumerate().map(|(i, v)| v * sizes[i % 7]).collect();
            for isa in Isa::available() {
                let backends = [Backend::new(isa, 2).unwrap(), Backend::new(isa, 1).unwrap().without_bf16_dots()];
                for (which, backend) in backends.iter().enumerate() {
                    let mut y = vec![0.0; m * n];
                    let products = &mut [Product::new(&weight, &mut y)];
                    backend.matmul(&mut MatmulScratch::default(), Input::Rows(&x), m, Activations::Int8, products);
                    for (i, got) in y.iter().enumerate() {
                        let (row, column) = (&x[i / n * k..][..k], &stored[i % n * k..][..k]);
                        let mut sum = 0.0;
                        for (x, w) in row.chunks(2).zip(column.chunks(2)) {
                            // the odd one of a pair first
                            for (x, w) in x.iter().zip(w).rev() {
                                sum = rounded_step(*w, *x, sum);
                            }
                        }
                        let want = sum * 2f32.powi(-64) + bias[i % n];
                        assert_eq!(got.to_bits(), want.to_bits(), "[{k}, {n}] m={m} {isa:?} {which}: {got} for {want}");
                        let exact: f64 = row.iter().zip(column).map(|(x, w)| f64::from(*x) * w.to_f64()).sum();
                        let size: f64 = row.iter().zip(column).map(|(x, w)| (f64::from(*x) * w.to_f64()).abs()).sum();
                        // half a unit of the last of eight bits for each activation, one rounding of each sum and of the bias,
                        // and what of activations below 2^-44 is taken for 0
                        let roundings = 6e-8 * (k as f64 + 2.0);
                        let least: f64 = column.iter().map(|w| w.to_f64().abs()).sum::<f64>() * 2f64.powi(-44);
                        let allowed = size / 256.0 + (size + f64::from(bias[i % n].abs())) * roundings + least;
                        assert!((f64::from(*got) - exact - f64::from(bias[i % n])).abs() <= allowed, "[{k}, {n}] m={m} {got} {exact}");
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn any_matrix(
        k in 1usize..400, n in 1usize..140, bits in 2u32..=8, group in prop_oneof![Just(0usize), 1usize..200],
        zeros: bool, order in prop_oneof![Just(Order::Plain), Just(Order::Shuffled), Just(Order::Wild)],
        scales in 0usize..3, bias: bool, m in 1usize..20, seed: u64,
    ) {
        check(&Spec { k, n, bits, group, zeros, order, scales, bias, seed }, &[m]);
    }
}

/// Weights that ask for one scale a token get it in 8 bit, and only there: every quantity recomputed in f64 from the
/// definition `x_scale = amax(row) / 127`, `v = round(x / x_scale)`.
#[test]
fn one_scale_a_token_where_a_weight_asks() {
    for (k, n, group, order) in [(300, 70, 128, Order::Plain), (256, 64, 32, Order::Shuffled), (17, 3, 0, Order::Plain)] {
        let spec = Spec { k, n, bits: 8, group, order, ..PLAIN };
        let (block, token) = (matrix(&spec), matrix(&spec).with_activation_scale(ActivationScale::Token));
        let weights = [&block, &token].map(|m| Weight::Quantized(PackedMatrix::new(m).unwrap()));
        let (m, w) = (7, oracle::dequantize(&token));
        let bias: Vec<f64> = token.bias().unwrap().iter().map(|&b| f64::from(b)).collect();
        let x = activations(&mut Rng(5), m, k);
        for isa in Isa::available() {
            let [block, token] = [0, 1].map(|i| run(isa, 2, &weights[i], &x, m, Activations::Int8));
            assert!(k < 128 || block != token);
            for (r, row) in x.chunks(k).enumerate() {
                let step = row.iter().fold(0.0, |a, v| f64::max(a, f64::from(v.abs()))) / 127.0;
                for c in 0..n {
                    let (mut want, mut size) = (bias[c], 0.0);
                    for (i, v) in row.iter().enumerate() {
                        let term = (f64::from(*v) / step).round() * step * w[i * n + c];
                        want += term;
                        size += term.abs();
                    }
                    // a value within an f32 rounding of a half step may round to the other side
                    let half = |v: &&f32| ((f64::from(**v) / step).fract().abs() - 0.5).abs() < 1e-4;
                    let ties = row.iter().filter(half).count() as f64 * step * 30.0;
                    let error = (f64::from(token[r * n + c]) - want).abs();
                    assert!(error <= size * 1e-5 + ties + 1e-12, "{spec:?} {isa:?} [{r}, {c}]: off by {error:e}");
                }
            }
            for a in [Activations::Exact, Activations::Strict] {
                assert_eq!(run(isa, 1, &weights[0], &x, m, a), run(isa, 1, &weights[1], &x, m, a));
            }
        }
    }
}

/// A product with both kinds of weight gives each its own activations.
#[test]
fn weights_with_other_scales_do_not_share_activations() {
    let spec = Spec { k: 256, n: 64, group: 64, ..PLAIN };
    let plain = PackedMatrix::new(&matrix(&spec)).unwrap();
    let mut token = PackedMatrix::new(&matrix(&spec).with_activation_scale(ActivationScale::Token)).unwrap();
    token.share_order(&plain);
    let weights = [plain, token].map(Weight::Quantized);
    let x = activations(&mut Rng(9), 1, spec.k);
    let backend = Backend::new(Isa::Scalar, 1).unwrap();
    let [mut a, mut b] = [vec![0.0; spec.n], vec![0.0; spec.n]];
    backend.matmul(
        &mut MatmulScratch::default(),
        Input::Rows(&x),
        1,
        Activations::Int8,
        &mut [Product::new(&weights[0], &mut a), Product::new(&weights[1], &mut b)],
    );
    assert_eq!(a, run(Isa::Scalar, 1, &weights[0], &x, 1, Activations::Int8));
    assert_eq!(b, run(Isa::Scalar, 1, &weights[1], &x, 1, Activations::Int8));
    assert_ne!(a, b);
}

/// Inputs that are made on the way and products that are added give the bits of the separate steps, for quantized and
/// dense weights side by side, with rows that stand apart.
#[test]
fn fused_steps_change_no_bit() {
    for (k, order) in [(200, Order::Shuffled), (2500, Order::Plain), (2500, Order::Shuffled)] {
        for precision in [Activations::Exact, Activations::Int8] {
            fused_steps(k, order, precision);
        }
    }
}

fn fused_steps(k: usize, order: Order, precision: Activations) {
    let (m, n) = (9, 70);
    let mut rng = Rng(11);
    let q = matrix(&Spec { k, n, group: 64, order, ..PLAIN });
    let dense = DenseTensor::new(DType::F32, vec![n, k], rng.floats(n * k).iter().flat_map(|v| v.to_le_bytes()).collect()).unwrap();
    let bias = Some(rng.floats(n));
    let weights = [Weight::Quantized(PackedMatrix::new(&q).unwrap()), Weight::Dense(Arc::new(PackedDense::new(&dense, bias).unwrap()))];
    let x = activations(&mut rng, m, 2 * k);
    let (gate, up): (Vec<f32>, Vec<f32>) = x.chunks(2 * k).map(|row| row.split_at(k)).fold(Default::default(), |(mut g, mut u), (a, b)| {
        g.extend(a);
        u.extend(b);
        (g, u)
    });
    let (norm, start) = (rng.floats(k), rng.floats(m * n));
    for isa in Isa::available() {
        let backend = Backend::new(isa, 2).unwrap();
        let mut normed = vec![0.0; m * k];
        backend.rms_norm(&gate, &norm, 1e-5, &mut normed);
        let mut gated = gate.clone();
        backend.silu_mul(&mut gated, &up);
        let inputs = [
            (Input::Normed { rows: &gate, weight: &norm, eps: 1e-5 }, &normed),
            (Input::Gated { gate: &gate, up: &up, stride: k }, &gated),
            (Input::Gated { gate: &x, up: &x[k..], stride: 2 * k }, &gated),
            (Input::Rows(&gate), &gate),
        ];
        for (input, made) in inputs {
            let want: Vec<Vec<f32>> = weights.iter().map(|w| run(isa, 1, w, made, m, precision)).collect();
            let mut got = [start.clone(), start.clone()];
            let [a, b] = &mut got;
            let mut scratch = MatmulScratch::default();
            let products = &mut [Product::onto(&weights[0], a), Product::new(&weights[1], b)];
            backend.matmul(&mut scratch, input, m, precision, products);
            let sum: Vec<f32> = start.iter().zip(&want[0]).map(|(s, w)| s + w).collect();
            assert!(got[0] == sum && got[1] == want[1], "{isa:?}");
            backend.matmul(&mut scratch, input, m, precision, &mut [Product::onto(&weights[1], &mut got[0])]);
            let twice: Vec<f32> = sum.iter().zip(&want[1]).map(|(s, w)| s + w).collect();
            assert_eq!(got[0], twice, "{isa:?}");
        }
    }
}
