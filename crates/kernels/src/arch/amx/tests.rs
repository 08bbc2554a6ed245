//! The band kernel on emulated tiles against the oracle, and bit by bit against the tile kernels of portable code.

use super::kernel::{PROBE_WORK, probe};
use super::unit::{TILE_BYTES, TileUnit};
use super::{FROM, emulated::Emulated, portable};
use crate::activations::{Activations, Input};
use crate::arch::generic::TileArgs;
use crate::arch::{BandFn, Kernels, scalar};
use crate::backend::{Backend, MatmulScratch, Product, Weight};
use crate::pack::PackedMatrix;
use billfish_tensor::oracle;
use common::{Order, Rng, Spec, activations, matrix};
use proptest::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

#[path = "../../../tests/common/mod.rs"]
mod common;

/// The tables with emulated tiles and the one with real tiles, as far as this machine has what they need.
fn tables() -> Vec<&'static Kernels> {
    #[cfg(target_arch = "x86_64")]
    let others = [(crate::Isa::Avx512, &super::wide::KERNELS), (crate::Isa::Amx, &super::KERNELS)];
    #[cfg(not(target_arch = "x86_64"))]
    let others: [(crate::Isa, &Kernels); 0] = [];
    let others = others.into_iter().filter(|(isa, _)| isa.is_available()).map(|(_, kernels)| kernels);
    [&portable::KERNELS].into_iter().chain(others).collect()
}

fn run(kernels: &'static Kernels, threads: usize, weight: &Weight, x: &[f32], m: usize, a: Activations) -> Vec<f32> {
    let backend = Backend::with(kernels, threads).unwrap();
    let mut y = vec![f32::NAN; m * weight.out_features()];
    backend.matmul(&mut MatmulScratch::default(), Input::Rows(x), m, a, &mut [Product::new(weight, &mut y)]);
    y
}

fn check(spec: &Spec, ms: &[usize]) {
    let weight = Weight::Quantized(PackedMatrix::new(&matrix(spec)).unwrap());
    let mut rng = Rng(spec.seed ^ 0xabc);
    for a in Activations::ALL {
        for &m in ms {
            let x = activations(&mut rng, m, spec.k);
            let twin = run(&scalar::KERNELS, 1, &weight, &x, m, a);
            for kernels in tables() {
                let y = run(kernels, 1 + m % 3, &weight, &x, m, a);
                let differs = y.iter().zip(&twin).position(|(a, b)| a.to_bits() != b.to_bits());
                assert_eq!(differs, None, "{spec:?} {a:?} m={m} {:?}: differs from the scalar twin", kernels.isa);
            }
        }
    }
}

const PLAIN: Spec = Spec { k: 0, n: 0, bits: 4, group: 128, zeros: true, order: Order::Plain, scales: 0, bias: true, seed: 1 };

/// One to five tiles of rows, full and ragged, for every width.
#[test]
fn every_number_of_tiles() {
    for bits in 2..=8 {
        check(&Spec { k: 300, n: 70, bits, seed: u64::from(bits), ..PLAIN }, &[7, 8, 13, 16, 17, 33, 64, 65, 129, 150]);
    }
}

#[test]
fn every_group_size_and_ragged_shape() {
    let mut seed = 100;
    for bits in [2, 3, 4, 8] {
        for group in [64, 100, 192, 0] {
            for (k, n) in [(64, 1), (65, 100), (300, 65), (520, 33)] {
                for zeros in [false, true] {
                    seed += 1;
                    let spec = Spec { k, n, bits, group, zeros, seed, scales: seed as usize % 3, bias: seed % 2 == 0, ..PLAIN };
                    check(&spec, &[40]);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn any_matrix(
        k in 64usize..600, n in 1usize..140, bits in 2u32..=8, group in prop_oneof![Just(0usize), 64usize..300],
        zeros: bool, order in prop_oneof![Just(Order::Plain), Just(Order::Shuffled), Just(Order::Wild)],
        scales in 0usize..3, bias: bool, m in 8usize..150, seed: u64,
    ) {
        check(&Spec { k, n, bits, group, zeros, order, scales, bias, seed }, &[m]);
    }
}

/// As for the tile kernels: 2-4e-7, 2.5e-5 to 1e-4, 0.7-2 % of the f64 result.
#[test]
fn as_near_to_the_oracle_as_the_planes_allow() {
    let m = 40;
    for bits in [2, 3, 4, 8] {
        let q = matrix(&Spec { k: 1024, n: 48, bits, seed: 3, ..PLAIN });
        let weight = Weight::Quantized(PackedMatrix::new(&q).unwrap());
        let x = Rng(5).floats(m * 1024);
        let want = oracle::matmul(&x, &q);
        let norm = want.iter().map(|v| v * v).sum::<f64>().sqrt();
        for kernels in tables() {
            for (a, most) in [(Activations::Strict, 5e-7), (Activations::Exact, 1e-4), (Activations::Int8, 2e-2)] {
                let y = run(kernels, 2, &weight, &x, m, a);
                let error = y.iter().zip(&want).map(|(y, w)| (f64::from(*y) - w).powi(2)).sum::<f64>().sqrt() / norm;
                assert!(error < most, "{bits} bit {a:?}: {error:e}");
            }
        }
    }
}

#[test]
fn what_is_not_a_number_stays_so() {
    let q = matrix(&Spec { k: 256, n: 3, group: 64, zeros: false, bias: false, ..PLAIN });
    let weight = Weight::Quantized(PackedMatrix::new(&q).unwrap());
    for kernels in tables() {
        for a in Activations::ALL {
            let mut x = vec![1.0; 20 * 256];
            x[5 * 256 + 140] = f32::NAN;
            x[19 * 256] = f32::INFINITY;
            let y = run(kernels, 1, &weight, &x, 20, a);
            for (r, row) in y.chunks(3).enumerate() {
                assert!(row.iter().all(|v| v.is_nan() == (r == 5 || r == 19)), "{a:?} row {r}: {row:?}");
            }
        }
    }
}

static CALLS: AtomicUsize = AtomicUsize::new(0);

/// The portable table with a band kernel that counts its calls.
fn counting() -> Kernels {
    unsafe fn counted(a: &TileArgs, tiles: usize) {
        CALLS.fetch_add(1, Ordering::Relaxed);
        let band = (portable::KERNELS.band)(4, 2).unwrap();
        // SAFETY: handed on as it came; only 4 bits and two planes come here.
        unsafe { band(a, tiles) }
    }
    Kernels { band: |bits, planes| (bits == 4 && planes == 2).then_some(counted as BandFn), ..portable::KERNELS }
}

/// Bands run from the row count on that they are for, where groups fill steps, and nowhere else; otherwise the tests
/// above would compare the tile kernels with themselves.
#[test]
fn bands_are_used_where_they_pay() {
    static COUNTING: std::sync::OnceLock<Kernels> = std::sync::OnceLock::new();
    let kernels = COUNTING.get_or_init(counting);
    let calls = |group: usize, m: usize| {
        let weight = Weight::Quantized(PackedMatrix::new(&matrix(&Spec { k: 512, n: 130, group, ..PLAIN })).unwrap());
        let before = CALLS.load(Ordering::Relaxed);
        run(kernels, 1, &weight, &vec![1.0; m * 512], m, Activations::Exact);
        CALLS.load(Ordering::Relaxed) - before
    };
    assert_eq!(calls(128, FROM[1] - 1), 0);
    // three panels, one band of up to four tiles of 16 rows
    assert_eq!(calls(128, FROM[1]), 3);
    assert_eq!(calls(64, 64), 3);
    assert_eq!(calls(0, 65), 6);
    assert_eq!((calls(32, 64), calls(63, 64)), (0, 0));
}

/// Every operation of emulated tiles against the sum that defines a product, for bytes of every sign.
#[test]
fn emulated_tiles_multiply_signed_bytes() {
    let mut rng = Rng(7);
    let bytes: Vec<u8> = (0..2 * TILE_BYTES).map(|_| rng.below(256) as u8).collect();
    let (a, b) = bytes.split_at(TILE_BYTES);
    let mut c = vec![0u8; TILE_BYTES];
    // SAFETY: each pointer is valid for a tile.
    unsafe {
        let mut unit = Emulated::begin();
        unit.load::<1>(a.as_ptr());
        unit.load::<2>(b.as_ptr());
        unit.dot::<0, 1, 2>();
        unit.dot::<0, 1, 2>();
        unit.store::<0>(c.as_mut_ptr());
        unit.end();
    }
    for m in 0..16 {
        for n in 0..16 {
            // row m of A over 64 k; column n of B has k in byte k % 4 of its dword in row k / 4
            let sum: i64 = (0..64).map(|k| i64::from(a[64 * m + k] as i8) * i64::from(b[64 * (k / 4) + 4 * n + k % 4] as i8)).sum();
            let at = 64 * m + 4 * n;
            assert_eq!(i64::from(i32::from_le_bytes(c[at..at + 4].try_into().unwrap())), 2 * sum, "row {m}, column {n}");
        }
    }
}

/// A round of the probe is as much work as it says, on bytes that are not 0.
#[test]
fn the_probe_multiplies() {
    assert_eq!(PROBE_WORK, 4 * 16 * 16 * 64);
    // SAFETY: emulated tiles need nothing.
    let [none, one, three] = unsafe { [probe::<Emulated>(0), probe::<Emulated>(1), probe::<Emulated>(3)] };
    assert!(none == 0 && one != 0 && three != one);
}
