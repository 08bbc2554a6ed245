//! Float weights in the Marlin layout: the published examples, and loops over places for the rest.

use billfish_formats::marlin::{
    Activations, SCALE_PERM, SCALE_PERM_SINGLE, Tiling, expand_block_scales, expand_scales, fp8_weight_scales, mxfp4_scales,
    nvfp4_global_scale, nvfp4_scales, pack_by_table, repack_fp4, repack_fp8,
};
use billfish_tensor::{DType, ScaleValues};
use half::{bf16, f16};

#[test]
fn weights_are_repacked_as_integers() {
    let (k, n) = (32, 128);
    let mix = |i: usize| ((i as u32 + 5).wrapping_mul(0x9e37_79b9) >> 24) as u8;
    let bytes: Vec<u8> = (0..n * k).map(mix).collect();
    let codes: Vec<u8> = (0..k * n).map(|i| bytes[i % n * k + i / n]).collect();
    let eight = Tiling::new(8, Activations::Bits16).unwrap();
    assert_eq!(repack_fp8(&bytes, k, n).unwrap(), pack_by_table(eight, &codes, k, n).unwrap());
    let half = &bytes[..n * k / 2];
    // the words that a checkpoint's bytes are, eight inputs of one output in each
    let words: Vec<u32> = half.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    let codes: Vec<u8> = (0..k * n).map(|i| (words[i % n * k / 8 + i / n / 8] >> (4 * (i / n % 8)) & 15) as u8).collect();
    assert_eq!(repack_fp4(half, k, n).unwrap(), pack_by_table(Tiling::CHECKPOINT, &codes, k, n).unwrap());
    assert!(repack_fp4(&bytes, k, n).unwrap_err().to_string().contains("weight: expected 2048 elements, found 4096"));
    assert!(repack_fp8(half, k, n).unwrap_err().to_string().contains("weight: expected 4096 elements"));
    assert!(repack_fp8(&bytes, 24, n).unwrap_err().to_string().contains("a multiple of 16, found 24"));
    assert!(repack_fp4(&[], usize::MAX - 15, 64).is_err());
}

#[test]
fn scales_of_fp8_weights() {
    let halves = ScaleValues::F16([0.5, -1.5, 0.0, 255.0, 6e-8].map(f16::from_f32).to_vec());
    let ScaleValues::F16(made) = fp8_weight_scales(&halves).unwrap() else { panic!("another type") };
    assert_eq!(made.iter().map(|v| v.to_f32()).collect::<Vec<_>>(), [128.0, -384.0, 0.0, 65280.0, 2f32.powi(-16)]);
    let ScaleValues::BF16(made) = fp8_weight_scales(&ScaleValues::BF16(vec![bf16::from_f32(0.75)])).unwrap() else { panic!("type") };
    assert_eq!(f64::from(made[0].to_f32()), 0.75 * 2f64.powi(120));
    for (bad, part) in [
        (ScaleValues::F16(vec![f16::ONE, f16::from_f32(256.0)]), "scales[1]"),
        (ScaleValues::BF16(vec![bf16::from_f32(256.0)]), "2^120 is finite in BF16, found 256"),
        (ScaleValues::F16(vec![f16::NAN]), "scales[0]"),
        (ScaleValues::F32(vec![1.0]), "F16 or BF16, the type of the model, found F32"),
    ] {
        let error = fp8_weight_scales(&bad).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn scales_of_parts_and_blocks_become_scales_of_columns() {
    assert_eq!(expand_scales(&[7], &[3]).unwrap(), [7, 7, 7]);
    assert_eq!(expand_scales(&[1, 2, 3], &[2, 0, 1]).unwrap(), [1, 1, 3]);
    assert!(expand_scales(&[1, 2], &[2]).is_err());
    assert_eq!(expand_block_scales(&[1, 2, 3, 4], 5, 3).unwrap(), [1, 1, 1, 2, 2, 3, 3, 3, 4, 4]);
    assert!(expand_block_scales(&[1, 2, 3], 5, 3).unwrap_err().to_string().contains("scales: expected 4 elements, found 3"));
    assert!(expand_block_scales(&[1], 5, 0).is_err() && expand_block_scales(&[1], 0, 5).is_err());
}

/// An E4M3 number of at least 0 from its bits.
fn e4m3(bits: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(bits >> 3), f64::from(bits & 7) / 8.0);
    if exponent == 0 { mantissa * 2f64.powi(-6) } else { (1.0 + mantissa) * 2f64.powi(exponent - 7) }
}

#[test]
fn nvfp4() {
    let one = |bits: u8| nvfp4_scales(&[bits; 64], 16, 64).unwrap()[0];
    // 1, 448, 2^-9 and 0.5
    assert_eq!([0x38, 0x7e, 0x01, 0x30].map(one), [0xb0, 0xf6, 0x68, 0xa8]);
    for bits in 0..0x7f {
        // what a kernel makes of the byte: F16 bits without a sign, 2^7 too large
        let read = f16::from_bits(u16::from(one(bits)) << 7).to_f64();
        assert_eq!(read, e4m3(bits) * 128.0, "{bits:#x}");
    }
    assert_eq!(one(0x80), 0, "the other zero");
    for (k, order) in [(32, &SCALE_PERM[..]), (16, &SCALE_PERM_SINGLE[..])] {
        let (n, groups) = (128, k / 16);
        let scales: Vec<u8> = (0..n * groups).map(|i| (i * 11 % 127) as u8).collect();
        let made = nvfp4_scales(&scales, k, n).unwrap();
        for (i, &byte) in made.iter().enumerate() {
            let (group, p) = (i / n, [0, 2, 1, 3][i % 4] + i % n / 4 * 4);
            let column = p / order.len() * order.len() + order[p % order.len()];
            assert_eq!(byte, one(scales[column * groups + group]), "[{group}, {i}] of {k}");
        }
    }
    for (bits, k, part) in
        [(0x81, 16, "scales[0]: expected an E4M3 number of at least 0, found bits 0x81"), (0x7f, 16, "0x7f"), (0, 24, "found 24")]
    {
        let error = nvfp4_scales(&[bits; 64], k, 64).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert!(nvfp4_scales(&[0; 63], 16, 64).is_err());
    assert_eq!(nvfp4_global_scale(0.1, DType::F16).unwrap(), f16::from_f32(0.1).to_f32() * 128.0);
    assert_eq!(f64::from(nvfp4_global_scale(0.1, DType::BF16).unwrap()), bf16::from_f32(0.1).to_f64() * 2f64.powi(119));
    assert!(nvfp4_global_scale(1e3, DType::F16).unwrap_err().to_string().contains("2^7 is finite in F16"));
    assert!(nvfp4_global_scale(1.0, DType::F32).unwrap_err().to_string().contains("F16 or BF16, found F32"));
}

#[test]
fn mxfp4() {
    let (k, n, groups) = (64, 64, 2);
    let scales: Vec<u8> = (0..n * groups).map(|i| i as u8).collect();
    for (activations, order, pairs, more) in
        [(Activations::Bits16, &SCALE_PERM[..], [0, 2, 1, 3], 0), (Activations::Bits8, &SCALE_PERM_SINGLE[..], [0, 1, 2, 3], 6)]
    {
        let made = mxfp4_scales(&scales, k, n, activations).unwrap();
        for (i, &byte) in made.iter().enumerate() {
            let p = pairs[i % 4] + i % n / 4 * 4;
            let column = p / order.len() * order.len() + order[p % order.len()];
            assert_eq!(byte, scales[column * groups + i / n] + more, "{i}");
        }
    }
    assert_eq!(mxfp4_scales(&[248; 64], 32, 64, Activations::Bits8).unwrap(), [254; 64]);
    let error = mxfp4_scales(&[249; 64], 32, 64, Activations::Bits8).unwrap_err().to_string();
    assert!(error.contains("scales[0]: expected an exponent of at most 248, found 249"), "{error}");
    assert!(mxfp4_scales(&[254; 64], 32, 64, Activations::Bits16).is_ok());
    assert!(mxfp4_scales(&[255; 64], 32, 64, Activations::Bits16).is_err());
    assert!(mxfp4_scales(&[0; 64], 48, 64, Activations::Bits16).unwrap_err().to_string().contains("a multiple of 32, found 48"));
}
