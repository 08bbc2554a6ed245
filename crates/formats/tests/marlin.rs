//! The Marlin layout: published words, two derivations against each other, inverses, and every value of the FP8 nibbles.

use billfish_formats::GroupSize;
use billfish_formats::marlin::*;
use billfish_tensor::{Codes, Packing, ScaleValues};
use half::{bf16, f16};
use proptest::prelude::*;

const ALL: [(u32, Activations); 4] = [(4, Activations::Bits16), (8, Activations::Bits16), (4, Activations::Bits8), (8, Activations::Bits8)];

fn tiling(bits: u32, activations: Activations) -> Tiling {
    Tiling::new(bits, activations).unwrap()
}

fn words(bytes: &[u8], n: usize, bits: u32) -> Vec<u32> {
    match Codes::pack(bytes, n, bits, Packing::Continuous) {
        Codes::Words { words, .. } => words,
        Codes::Bytes(_) => unreachable!("pack gives words"),
    }
}

#[test]
fn published_words() {
    let four: Vec<u8> = (0..16 * 64).map(|i| ((i / 64 + i % 64) % 16) as u8).collect();
    let packed = pack(tiling(4, Activations::Bits16), &four, 16, 64).unwrap();
    assert_eq!(packed.len(), 128);
    assert_eq!(packed[..8], [[0x1991_0880; 4], [0x3bb3_2aa2; 4]].concat());
    assert_eq!(packed[124..], [0xe66e_d55d; 4]);
    let eight: Vec<u8> = (0..16 * 64).map(|i| (16 * (i / 64) + i % 64) as u8).collect();
    let packed = pack(tiling(8, Activations::Bits16), &eight, 16, 64).unwrap();
    assert_eq!(packed[..4], [0x9010_8000, 0x9818_8808, 0xa020_9010, 0xa828_9818]);
}

#[test]
fn published_permutations() {
    let first = |bits, activations, n: usize| weight_perm(tiling(bits, activations))[..n].to_vec();
    assert_eq!(first(4, Activations::Bits16, 12), [0, 128, 8, 136, 16, 144, 24, 152, 256, 384, 264, 392]);
    assert_eq!(first(8, Activations::Bits16, 8), [0, 128, 16, 144, 8, 136, 24, 152]);
    assert_eq!(first(4, Activations::Bits8, 10), [0, 256, 16, 272, 32, 288, 48, 304, 8, 264]);
    assert_eq!(first(8, Activations::Bits8, 6), [0, 16, 32, 48, 256, 272]);
    assert_eq!(SCALE_PERM[..10], [0, 8, 16, 24, 32, 40, 48, 56, 1, 9]);
    let single = [0, 1, 8, 9, 16, 17, 24, 25, 2, 3, 10, 11, 18, 19, 26, 27, 4, 5, 12, 13, 20, 21, 28, 29, 6, 7, 14, 15, 22, 23, 30, 31];
    assert_eq!(SCALE_PERM_SINGLE, single);
}

#[test]
fn permutations_are_permutations() {
    let bijective = |perm: &[usize]| {
        let mut sorted = perm.to_vec();
        sorted.sort_unstable();
        sorted.iter().enumerate().all(|(i, &p)| i == p)
    };
    assert!(bijective(&SCALE_PERM) && bijective(&SCALE_PERM_SINGLE));
    for (bits, activations) in ALL {
        assert!(bijective(&weight_perm(tiling(bits, activations))));
    }
}

/// Every place of the closed form is taken exactly once.
#[test]
fn places_are_a_bijection() {
    for (bits, activations) in ALL {
        let t = tiling(bits, activations);
        let (k, n) = (64, 192);
        let mut seen = vec![0u32; t.words(k, n).unwrap()];
        for i in 0..k * n {
            let Place { word, shift } = t.place(n, i / n, i % n);
            let field = ((1u64 << bits) - 1) as u32;
            assert!(shift.is_multiple_of(bits) && seen[word] & field << shift == 0);
            seen[word] |= field << shift;
        }
        assert!(seen.iter().all(|&w| w == u32::MAX));
    }
}

fn matrix() -> impl Strategy<Value = (Tiling, usize, usize, Vec<u8>)> {
    (0..ALL.len(), 1..4usize, 1..4usize).prop_flat_map(|(which, rows, columns)| {
        let t = tiling(ALL[which].0, ALL[which].1);
        let (k, n) = (rows * t.tile_rows(), columns * 64);
        let codes = prop::collection::vec(0..=((1u16 << t.bits()) - 1) as u8, k * n);
        (Just(t), Just(k), Just(n), codes)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn both_routes_give_the_same_words_and_unpack((t, k, n, codes) in matrix()) {
        let packed = pack(t, &codes, k, n).unwrap();
        prop_assert_eq!(&packed, &pack_by_table(t, &codes, k, n).unwrap());
        prop_assert_eq!(&unpack(t, &packed, k, n).unwrap(), &codes);
        let qweight = words(&codes, n, t.bits());
        prop_assert_eq!(&repack(t, &qweight, k, n, None).unwrap(), &packed);
        prop_assert_eq!(unpack_to_gptq(t, &packed, k, n, None).unwrap(), qweight);
    }

    #[test]
    fn act_order_moves_rows_first(eight: bool, (tiles, columns) in (1..4usize, 1..3usize), seed in any::<u64>()) {
        let t = tiling(if eight { 8 } else { 4 }, Activations::Bits16);
        let (k, n) = (16 * tiles, 64 * columns);
        let mix = |i: usize| (seed ^ i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let codes: Vec<u8> = (0..k * n).map(|i| (mix(i) % (1 << t.bits())) as u8).collect();
        let g_idx: Vec<u32> = (0..k).map(|i| (mix(i + 7_000_000) % 5) as u32).collect();
        let sorted = sort_g_idx(&g_idx).unwrap();
        prop_assert!(sorted.g_idx.is_sorted());
        let rows: Vec<u8> = sorted.perm.iter().flat_map(|&p| codes[p as usize * n..][..n].to_vec()).collect();
        let qweight = words(&codes, n, t.bits());
        let packed = repack(t, &qweight, k, n, Some(&sorted.perm)).unwrap();
        prop_assert_eq!(&packed, &pack_by_table(t, &rows, k, n).unwrap());
        prop_assert_eq!(unpack_to_gptq(t, &packed, k, n, Some(&sorted.perm)).unwrap(), qweight);
    }

    #[test]
    fn scales_zeros_and_biases_come_back((t, _, n, codes) in matrix()) {
        for order in [ScaleOrder::Grouped, ScaleOrder::Single] {
            let there = permute_scales(&codes, n, order).unwrap();
            prop_assert_eq!(&unpermute_scales(&there, n, order).unwrap(), &codes);
        }
        prop_assert_eq!(&unpack_zeros(t, &pack_zeros(t, &codes, n).unwrap(), n).unwrap(), &codes);
        prop_assert_eq!(&unpermute_bias(&permute_bias(&codes).unwrap()).unwrap(), &codes);
    }
}

#[test]
fn which_scales_have_which_order() {
    use {Activations::*, ScaleOrder::*};
    for (k, group, activations, order) in [
        (256, GroupSize::Rows(128), Bits16, Grouped),
        (128, GroupSize::Rows(128), Bits16, Single),
        (64, GroupSize::Rows(128), Bits16, Single),
        (256, GroupSize::Channel, Bits16, Single),
        (256, GroupSize::Rows(128), Bits8, Single),
    ] {
        assert_eq!(scale_order(k, group, activations), order, "{k} {group} {activations:?}");
    }
    for (order, table) in [(Grouped, &SCALE_PERM[..]), (Single, &SCALE_PERM_SINGLE[..])] {
        for place in 0..256 {
            let column = place / table.len() * table.len() + table[place % table.len()];
            assert_eq!(order.place(column), place, "{order:?}");
        }
    }
    let columns: Vec<usize> = (0..128).collect();
    let grouped = permute_scales(&columns, 64, Grouped).unwrap();
    assert_eq!(grouped[..3], [0, 8, 16]);
    assert_eq!(grouped[64..67], [64, 72, 80]);
    assert_eq!(permute_bias(&columns).unwrap()[..4], [0, 1, 8, 9]);
}

#[test]
fn published_zero_points() {
    let t = tiling(4, Activations::Bits16);
    let low: Vec<u8> = (0..64).map(|n| n % 16).collect();
    let packed = pack_zeros(t, &low, 64).unwrap();
    assert_eq!(packed[..3], [0x8888_0000, 0x9999_1111, 0xaaaa_2222]);
    assert_eq!(packed[7], 0xffff_7777);
    // the column of each field, from its two halves
    let high: Vec<u8> = (0..64).map(|n| n / 16).collect();
    let fields = |words: Vec<u32>| words.into_iter().flat_map(|w| (0..8).map(move |p| (w >> (4 * p) & 15) as usize)).collect::<Vec<_>>();
    let columns: Vec<usize> = fields(packed).iter().zip(fields(pack_zeros(t, &high, 64).unwrap())).map(|(l, h)| l + 16 * h).collect();
    assert_eq!(columns[..16], [0, 16, 32, 48, 8, 24, 40, 56, 1, 17, 33, 49, 9, 25, 41, 57]);
    // 8-bit activations: the order of scales alone
    let plain = pack_zeros(tiling(8, Activations::Bits8), &(0..64).collect::<Vec<u8>>(), 64).unwrap();
    assert_eq!(plain[..2], [0x1810_0800, 0x3830_2820]);
}

#[test]
fn awq_words_give_the_same_layout() {
    let order = [0, 4, 1, 5, 2, 6, 3, 7];
    let word = |columns: &[u8]| columns.iter().zip(order).fold(0u32, |w, (&c, field)| w | u32::from(c) << (4 * field));
    assert_eq!(word(&[0, 1, 2, 3, 4, 5, 6, 7]), 0x7531_6420);
    assert_eq!(awq_codes(4, &[0x7531_6420], 1, 8).unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(awq_codes(8, &[0x0301_0200], 1, 4).unwrap(), [0, 1, 2, 3]);
    // the first two rows of the worked example of the GPTQ layout
    let row = |k: u8| (0..8).map(|n| (3 * k + 5 * n) % 16).collect::<Vec<u8>>();
    assert_eq!(awq_codes(4, &[0x39f5_e4a0, 0x6c28_17d3], 2, 8).unwrap(), [row(0), row(1)].concat());
    let codes: Vec<u8> = (0..16 * 64).map(|i| (7 * i % 16) as u8).collect();
    let awq: Vec<u32> = codes.chunks_exact(8).map(word).collect();
    let t = tiling(4, Activations::Bits16);
    assert_eq!(repack_awq(t, &awq, 16, 64).unwrap(), pack(t, &codes, 16, 64).unwrap());
}

#[test]
fn rows_sort_stably_and_rules_of_ranks() {
    let sorted = sort_g_idx(&[0, 1, 0, 1, 1, 0, 0, 1]).unwrap();
    assert_eq!(sorted.perm, [0, 2, 5, 6, 1, 3, 4, 7]);
    assert_eq!(sorted.g_idx, [0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!([(false, false), (false, true), (true, false), (true, true)].map(|(a, r)| is_k_full(a, r)), [true, true, true, false]);
    let (channel, grouped) = (GroupSize::Channel, GroupSize::Rows(128));
    for (act_order, group, row_parallel, repeat) in [
        (true, grouped, false, true),
        (true, grouped, true, true),
        (true, channel, false, true),
        (false, channel, true, true),
        (false, channel, false, false),
        (false, grouped, true, false),
    ] {
        assert_eq!(repeat_scales_on_all_ranks(act_order, group, row_parallel), repeat);
    }
    assert_eq!(kernel_groups(256, 2, false, true), Ok(KernelGroups::Contiguous { size: 128 }));
    assert_eq!(kernel_groups(256, 2, true, true), Ok(KernelGroups::Contiguous { size: 128 }));
    assert_eq!(kernel_groups(256, 1, false, true), Ok(KernelGroups::Channel));
    assert_eq!(kernel_groups(128, 2, true, false), Ok(KernelGroups::Lookup));
    assert!(kernel_groups(256, 1, true, true).unwrap_err().to_string().contains("more than 1 with act-order, found 1"));
    assert!(kernel_groups(256, 3, false, true).unwrap_err().to_string().contains("3 groups for 256 rows"));
}

#[test]
fn integer_scales() {
    let scales = ScaleValues::F16([0.01, 0.02, 0.005, 0.04].map(f16::from_f32).to_vec());
    let Int8Scales { values, factor } = int8_scales(&scales).unwrap();
    assert_eq!(values, [1024, 2048, 512, 4096]);
    assert_eq!(format!("{factor:.6e}"), "9.767711e-6");
    // the quotient is rounded to the stored type: 4096 / 3 is 1365.33, of which bf16 keeps eight bits
    let third = |s: ScaleValues| int8_scales(&s).unwrap().values[0];
    assert_eq!(third(ScaleValues::F32(vec![1.0, 3.0])), 1365);
    assert_eq!(third(ScaleValues::F16(vec![f16::from_f32(1.0), f16::from_f32(3.0)])), 1365);
    assert_eq!(third(ScaleValues::BF16(vec![bf16::from_f32(1.0), bf16::from_f32(3.0)])), 1368);
    assert_eq!(third(ScaleValues::F32(vec![-1.0, 1.0])), -4096);
    for (bad, part) in
        [(vec![], "scales[0]"), (vec![0.0, -1.0], "above 0, found 0"), (vec![1.0, f32::NAN], "scales[1]"), (vec![-9.0, 1.0], "8 times")]
    {
        assert!(int8_scales(&ScaleValues::F32(bad)).unwrap_err().to_string().contains(part), "{part}");
    }
}

/// An E4M3 number from its bits.
fn e4m3(byte: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
    let magnitude = if exponent == 0 { mantissa / 8.0 * 2f64.powi(-6) } else { (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7) };
    if byte & 0x80 != 0 { -magnitude } else { magnitude }
}

#[test]
fn fp8_nibbles_decode_to_the_exact_difference() {
    let factor = f64::from(FP8_SCALE_FACTOR);
    for q in 0..16u8 {
        let nibble = fp8_nibble(q);
        assert!(nibble < 16);
        assert_eq!(e4m3(fp8_byte(nibble)) * factor, f64::from(q) - 8.0, "q = {q}");
        for z in 0..16u8 {
            let nibble = fp8_nibble_with_zero(q, z);
            assert!(nibble < 16);
            assert_eq!(e4m3(fp8_byte_with_zero(nibble, z)) * factor, f64::from(q) - f64::from(z), "q = {q}, z = {z}");
        }
    }
    assert_eq!(fp8_byte(fp8_nibble(0)), 0x88);
}

#[test]
fn fp8_words_are_nibbles_in_place() {
    assert_eq!(fp8_words(&[0x7654_3210, 0xfedc_ba98]), [0x89ab_cdef, 0x7654_3210]);
    let (k, n, group) = (64, 16, 32);
    let codes: Vec<u32> = (0..k * n / 8).map(|i| (i as u32).wrapping_mul(0x9e37_79b9)).collect();
    let zeros: Vec<u32> = (0..k / group * n / 8).map(|i| (i as u32 + 3).wrapping_mul(0x85eb_ca6b)).collect();
    let made = fp8_words_with_zeros(&codes, &zeros, k, n, group).unwrap();
    for row in 0..k {
        for col in 0..n {
            let field = |words: &[u32], row: usize| (words[row * n / 8 + col / 8] >> (4 * (col % 8)) & 15) as u8;
            let (q, z) = (field(&codes, row), field(&zeros, row / group));
            assert_eq!(field(&made, row), fp8_nibble_with_zero(q, z));
        }
    }
    assert!(fp8_words_with_zeros(&codes, &zeros, k, n, 12).unwrap_err().to_string().contains("a multiple of 8, found 12"));
    assert!(fp8_words_with_zeros(&codes, &zeros, k, n, 48).unwrap_err().to_string().contains("a multiple of 48, found 64"));
    assert!(fp8_words_with_zeros(&codes, &zeros[1..], k, n, group).unwrap_err().to_string().contains("zeros: expected 4 elements"));
}

#[test]
fn fp8_scales_stay_in_their_type() {
    let ScaleValues::F16(scales) = fp8_scales(&ScaleValues::F16(vec![f16::from_f32(0.25), f16::MIN_POSITIVE_SUBNORMAL])).unwrap() else {
        panic!("another type")
    };
    assert_eq!(scales.iter().map(|s| s.to_f32()).collect::<Vec<_>>(), [128.0, f16::MIN_POSITIVE_SUBNORMAL.to_f32() * 512.0]);
    assert!(fp8_scales(&ScaleValues::F16(vec![f16::from_f32(128.0)])).unwrap_err().to_string().contains("scales[0]"));
    assert!(matches!(fp8_scales(&ScaleValues::BF16(vec![bf16::from_f32(128.0)])), Ok(ScaleValues::BF16(v)) if v[0].to_f32() == 65536.0));
}

#[test]
fn errors_say_what_was_expected_and_found() {
    let t = tiling(4, Activations::Bits16);
    let a8 = tiling(4, Activations::Bits8);
    let text = |e: Result<Vec<u32>, MarlinError>| e.unwrap_err().to_string();
    assert!(Tiling::new(3, Activations::Bits16).unwrap_err().to_string().contains("bits: expected 4 or 8, found 3"));
    assert!(text(pack(t, &[0; 8 * 64], 8, 64)).contains("K (rows): expected a multiple of 16, found 8"));
    assert!(text(pack(a8, &[0; 16 * 64], 16, 64)).contains("K (rows): expected a multiple of 32, found 16"));
    assert!(text(pack(t, &[0; 16 * 32], 16, 32)).contains("N (columns): expected a multiple of 64, found 32"));
    assert!(text(pack(t, &[], 0, 64)).contains("found 0"));
    assert!(text(pack(t, &[0; 3], 16, 64)).contains("codes: expected 1024 elements, found 3"));
    assert!(text(pack(t, &[16; 1024], 16, 64)).contains("codes[0]: expected a value below 16, found 16"));
    assert!(text(pack(t, &[], 1 << 62, 64)).contains("fits in memory"));
    assert!(text(repack(t, &[0; 127], 16, 64, None)).contains("qweight: expected 128 elements, found 127"));
    assert!(text(repack(t, &[0; 128], 16, 64, Some(&[0; 15]))).contains("perm: expected 16 elements"));
    assert!(text(repack(t, &[0; 128], 16, 64, Some(&[0; 16]))).contains("perm[1]: expected each row below 16 once, found 0"));
    assert!(text(repack(t, &[0; 128], 16, 64, Some(&[16; 16]))).contains("perm[0]"));
    assert!(text(repack(a8, &[0; 256], 32, 64, Some(&[0; 32]))).contains("no act-order with 8-bit activations"));
    assert!(text(pack_zeros(t, &[16; 64], 64)).contains("zeros[0]: expected a value below 16, found 16"));
    assert!(permute_scales(&[0; 96], 96, ScaleOrder::Grouped).unwrap_err().to_string().contains("a multiple of 64, found 96"));
    assert!(
        permute_scales(&[0; 100], 64, ScaleOrder::Grouped).unwrap_err().to_string().contains("scales: expected 128 elements, found 100")
    );
    assert!(permute_bias(&[0; 33]).is_err());
}
