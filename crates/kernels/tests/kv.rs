//! The formats of keys and values: their codes, what rounding costs, and how many bytes they take.

mod common;

use billfish_kernels::{BLOCK, KvShape, KvType, shareable};
use common::Rng;

/// A normal number, by adding up twelve even ones.
fn gauss(rng: &mut Rng) -> f32 {
    (0..12).map(|_| rng.unit()).sum::<f32>() / 2.0
}

/// The root of the mean squared error over that of the numbers, of normal rows of 128.
fn error(kind: KvType, rng: &mut Rng, level: f32) -> f64 {
    let (mut wrong, mut all) = (0.0, 0.0);
    for _ in 0..2000 {
        let row: Vec<f32> = (0..128).map(|_| half::f16::from_f32(gauss(rng) * level).to_f32()).collect();
        for (x, r) in row.iter().zip(kind.rounded(&row)) {
            wrong += f64::from(x - r).powi(2);
            all += f64::from(*x).powi(2);
        }
    }
    (wrong / all).sqrt()
}

#[test]
fn rounding_costs_no_more_than_its_bits_must() {
    let bounds =
        [(KvType::Int8, 0.007), (KvType::Fp8E4M3, 0.027), (KvType::Fp8E5M2, 0.054), (KvType::Int4, 0.120), (KvType::Fp4E2M1, 0.110)];
    let mut rng = Rng(5);
    // whatever the size of the numbers: a row has its own scale
    for (kind, bound) in bounds {
        for level in [1.0, 3000.0, 1.0 / 64.0] {
            let found = error(kind, &mut rng, level);
            assert!(found <= bound && found > bound / 3.0, "{kind:?} at {level}: {found}");
        }
    }
}

/// Values by the definitions of the formats, written down another way.
#[test]
fn codes_stand_for_what_the_formats_say() {
    for code in 0..=255u8 {
        let sign = if code > 127 { -1.0 } else { 1.0 };
        let float = |exponent: u8, mantissa: u8, bits: i32, bias: i32| {
            let fraction = f32::from(mantissa) / 2f32.powi(bits);
            if exponent == 0 { fraction * 2f32.powi(1 - bias) } else { (1.0 + fraction) * 2f32.powi(i32::from(exponent) - bias) }
        };
        let same = |kind: KvType, want: f32| {
            let found = kind.value(code);
            assert!(found.to_bits() == want.to_bits() || found.is_nan() && want.is_nan(), "{kind:?} {code:#x}: {found}, not {want}");
        };
        same(KvType::Int8, f32::from(code) - 128.0);
        same(KvType::Fp8E4M3, sign * if code & 0x7f == 0x7f { f32::NAN } else { float(code >> 3 & 15, code & 7, 3, 7) });
        // an infinity is no number either
        same(KvType::Fp8E5M2, sign * if code & 0x7f >= 0x7c { f32::NAN } else { float(code >> 2 & 31, code & 3, 2, 15) });
        if code < 16 {
            let sign = if code > 7 { -1.0 } else { 1.0 };
            same(KvType::Fp4E2M1, sign * float(code >> 1 & 3, code & 1, 1, 1));
            same(KvType::Int4, f32::from(code) - 8.0);
        }
    }
}

/// Every number goes to the nearest value that there is, in a row whose scale is 1.
#[test]
fn numbers_go_to_the_nearest_value() {
    let mut rng = Rng(9);
    for kind in KvType::ALL.into_iter().filter(|k| k.is_quantized()) {
        let codes = if kind.bits() == 8 { 0..=255 } else { 0..=15 };
        let mut values: Vec<f32> = codes.map(|c| kind.value(c)).filter(|v| !v.is_nan()).collect();
        values.sort_by(f32::total_cmp);
        let largest = values[values.len() - 1];
        // the lowest integer has no counterpart, and is never written
        values.retain(|v| v.abs() <= largest);
        // what can be stored is stored as it is
        assert_eq!(kind.rounded(&values), values, "{kind:?}");
        for i in 0..20_000 {
            let x = if i % 2 == 0 { rng.unit() * largest } else { rng.unit() * largest * rng.unit().powi(6) };
            let found = kind.rounded(&[largest, x])[1];
            let nearest = values.iter().map(|v| (v - x).abs()).fold(f32::MAX, f32::min);
            assert_eq!((found - x).abs(), nearest, "{kind:?} {x}: {found}");
        }
        // between two values, the one with an even code
        for pair in values.windows(2) {
            let tie = (pair[0] + pair[1]) / 2.0;
            let found = kind.rounded(&[largest, tie])[1];
            let code = |v: f32| (0..=255).find(|&c| kind.value(c).to_bits() == v.to_bits());
            let even = pair.iter().copied().find(|&v| code(v).is_some_and(|c| c % 2 == 0)).unwrap();
            assert!(found == even || tie == 0.0 || pair.contains(&0.0) && found == 0.0, "{kind:?} {tie}: {found}, not {even}");
        }
    }
}

#[test]
fn rows_of_nothing_and_of_no_numbers() {
    for kind in KvType::ALL.into_iter().filter(|k| k.is_quantized()) {
        assert!(kind.rounded(&[0.0; 5]).iter().all(|v| *v == 0.0), "{kind:?}");
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(kind.rounded(&[1.0, odd, 2.0]).iter().all(|v| v.is_nan()), "{kind:?} {odd}");
        }
        // the smallest half that there is, and the largest
        let row = kind.rounded(&[5.960_464_5e-8, 0.0]);
        assert!((row[0] - 5.960_464_5e-8).abs() <= 5.960_464_5e-8 / 128.0 && row[1] == 0.0, "{kind:?} {row:?}");
        assert!((kind.rounded(&[65504.0])[0] / 65504.0 - 1.0).abs() < 1.0 / 128.0, "{kind:?}");
    }
}

#[test]
fn bytes_of_a_token() {
    for (kind, bits, scale) in [
        (KvType::F32, 32, 0),
        (KvType::F16, 16, 0),
        (KvType::BF16, 16, 0),
        (KvType::Int8, 8, 2),
        (KvType::Fp8E4M3, 8, 2),
        (KvType::Fp8E5M2, 8, 2),
        (KvType::Fp4E2M1, 4, 2),
        (KvType::Int4, 4, 2),
    ] {
        assert_eq!((kind.bits(), kind.is_quantized()), (bits, scale > 0));
        for (layers, kv_heads, head_dim) in [(1, 1, 64), (28, 8, 128), (16, 3, 192)] {
            let shape = KvShape { layers, kv_heads, head_dim, kind };
            let token = layers * kv_heads * 2 * (head_dim * bits / 8 + scale);
            assert_eq!((shape.token_bytes(), shape.block_bytes()), (token, BLOCK * token), "{kind:?}");
            let slot = if scale > 0 { 2 * BLOCK * layers * kv_heads * 2 * head_dim * 2 } else { 0 };
            assert_eq!(shape.slot_bytes(), slot, "{kind:?}");
        }
    }
}

#[test]
fn a_prefix_ends_before_the_block_of_the_first_token_that_runs() {
    for (prompt, shared) in [(0, 0), (1, 0), (16, 0), (17, 16), (32, 16), (33, 32)] {
        assert_eq!(shareable(prompt), shared);
    }
}
