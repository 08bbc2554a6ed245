//! Every operation of every instruction set against the scalar code bit by bit, and half floats against their definition.

use super::generic::AttendArgs;
use super::generic::attention::LOWEST;
use super::kernels;
use super::vector::Vector;
use crate::isa::Isa;
use crate::kv::KvType;
use proptest::prelude::*;

/// Operands: any bits.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    lanes: [[u32; 16]; 3],
    single: u32,
}

/// What an operation made of a sample.
pub(crate) struct Outcome {
    name: &'static str,
    lanes: [u32; 16],
    /// The lanes are results of float arithmetic, which leaves open the bits of a NaN.
    any_nan: bool,
}

impl Outcome {
    fn agrees(&self, other: &Outcome) -> bool {
        let nan = |x: u32| f32::from_bits(x).is_nan();
        self.lanes.iter().zip(&other.lanes).all(|(&a, &b)| a == b || self.any_nan && nan(a) && nan(b))
    }
}

/// Applies every operation to `sample`.
///
/// # Safety
/// The instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn operations<V: Vector>(sample: &Sample) -> Vec<Outcome> {
    let mut outcomes = vec![];
    // bytes at an odd address: no operation may ask for alignment
    let mut bytes = [[0u8; 65]; 3];
    for (bytes, lanes) in bytes.iter_mut().zip(&sample.lanes) {
        for (bytes, lane) in bytes[1..].chunks_exact_mut(4).zip(lanes) {
            bytes.copy_from_slice(&lane.to_le_bytes());
        }
    }
    let [pa, pb, pc] = [0, 1, 2].map(|i| bytes[i][1..].as_ptr());
    let mut push = |name, any_nan, v: V::F| {
        // SAFETY: the caller's instruction set.
        let lanes = unsafe { V::lanes(v) }.map(f32::to_bits);
        outcomes.push(Outcome { name, lanes, any_nan });
    };
    // SAFETY: each pointer is valid for 64 bytes, outputs hold 16 lanes; the caller's instruction set.
    unsafe {
        let (a, b, c) = (V::load_i(pa), V::load_i(pb), V::load_i(pc));
        let single = sample.single as i32;
        macro_rules! ints {
            ($($name:literal: $value:expr),* $(,)?) => { $(push($name, false, V::bits_f($value));)* };
        }
        ints! {
            "load_i": a,
            "load_u8": V::load_u8(pa),
            "load_u16": V::load_u16(pa),
            "splat_i": V::splat_i(single),
            "add_i": V::add_i(a, b),
            "mul_i": V::mul_i(a, b),
            "sub_bytes": V::sub_bytes(a, b),
            "and_i": V::and_i(a, b),
            "or_i": V::or_i(a, b),
            "max_i": V::max_i(a, b),
            "largest_lane": V::splat_i(V::largest_lane(a)),
            "shr_i 1": V::shr_i::<1>(a),
            "shr_i 6": V::shr_i::<6>(a),
            "shr_i 31": V::shr_i::<31>(a),
            "sar_i 1": V::sar_i::<1>(a),
            "sar_i 8": V::sar_i::<8>(a),
            "sar_i 31": V::sar_i::<31>(a),
            "shl_i 1": V::shl_i::<1>(a),
            "shl_i 8": V::shl_i::<8>(a),
            "shl_i 23": V::shl_i::<23>(a),
            "shl_i 31": V::shl_i::<31>(a),
            "dot": V::dot::<false>(a, V::and_i(b, V::splat_i(0x7f7f_7f7f)), single),
            "dot, wide": V::dot::<true>(a, b, single),
            "pick_bytes": V::pick_bytes(a, V::and_i(b, V::splat_i(0x0f0f_0f0f))),
            "zip_bytes, first": V::zip_bytes(a, b)[0],
            "zip_bytes, last": V::zip_bytes(a, b)[1],
            "mark_bytes": V::mark_bytes(a, u64::from(sample.single) << 32 | u64::from(sample.lanes[1][0])),
            "low_bytes": V::load_u8(V::low_bytes(a).as_ptr()),
        }
        let integers = sample.lanes[2].map(f32::from_bits).map(|x| if x.abs() < 2_147_483_648.0 { x } else { 0.0 });
        ints! { "to_i": V::to_i(V::load_f(integers.as_ptr())) }

        macro_rules! floats {
            ($($name:literal: $value:expr),* $(,)?) => { $(push($name, true, $value);)* };
        }
        let (a, b, c, s) = (V::load_f(pa.cast()), V::load_f(pb.cast()), V::bits_f(c), V::splat_f(f32::from_bits(sample.single)));
        floats! {
            "to_f": V::to_f(V::load_i(pa)),
            "load_f16": V::load_f16(pa),
            "add_f": V::add_f(a, b),
            "sub_f": V::sub_f(a, b),
            "mul_f": V::mul_f(a, b),
            "div_f": V::div_f(a, b),
            "fma": V::fma(a, b, c),
            "sum": V::splat_f(V::sum(a)),
        }
        // these move bits, those of a NaN too
        for (name, value) in [
            ("load_f", a),
            ("bits_f", c),
            ("splat_f", s),
            ("load_bf16", V::load_bf16(pa)),
            ("pick", V::pick(a, V::load_i(pb))),
            ("max_f", V::max_f(a, b)),
            ("max_f, one against many", V::max_f(a, s)),
            ("min_f", V::min_f(a, b)),
            ("min_f, one against many", V::min_f(s, a)),
            ("max_lane", V::splat_f(V::max_lane(a))),
        ] {
            push(name, false, value);
        }
        let mut stored = [0u8; 65];
        V::store_f(stored[1..].as_mut_ptr().cast(), a);
        push("store_f", false, V::load_f(stored[1..].as_ptr().cast()));
        V::store_f16(stored[1..].as_mut_ptr().cast(), a);
        // read back as numbers: the bits of a NaN are open here too
        push("store_f16", true, V::load_f16(stored[1..].as_ptr()));
        V::prefetch(std::ptr::null());
    }
    outcomes
}

/// Zeros, denormals, the ends of every range, ties of every rounding, infinities, quiet and signalling NaN, bytes of
/// 127, 128 and 255.
const EXTREMES: [u32; 40] = [
    0,
    1,
    0x007f_ffff,
    0x0080_0000,
    0x3380_0000, // half of f16's smallest denormal, and a bit more
    0x3380_0001,
    0x33c0_0000,
    0x387f_c000, // f16's largest denormal, and the tie above it
    0x387f_e000,
    0x3880_0000,
    0x3f00_0000,
    0x3f80_0000,
    0x3f80_1000, // ties of f16
    0x3f80_3000,
    0x3fc0_0000,
    0x4020_0000,
    0x477f_e000, // f16's largest, the tie with its infinity, and just below
    0x477f_f000,
    0x477f_efff,
    0x4aff_ffff, // the largest with a fraction
    0x4b00_0001,
    0x4eff_ffff, // the largest that is an i32
    0x7f7f_ffff,
    0x7f80_0000,
    0x7f80_0001,
    0x7fc0_0000,
    0x7fff_ffff,
    0x8000_0000,
    0x8000_0001,
    0xbf00_0000,
    0xbf80_0000,
    0xcf00_0000,
    0xff7f_ffff,
    0xff80_0000,
    0xffc0_0001,
    0xffff_ffff,
    0x7f7f_7f7f,
    0x8080_8080,
    0x7c00_7e00, // f16's infinity and a NaN
    0x8001_03ff,
];

fn bits() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        prop::sample::select(&EXTREMES[..]),
        any::<f32>().prop_map(f32::to_bits),
        (-4e5f32..4e5).prop_map(f32::to_bits)
    ]
}

fn compare(sample: &Sample) {
    // SAFETY: portable code.
    let expected = unsafe { (kernels(Isa::Scalar).operations)(sample) };
    for isa in Isa::available() {
        // SAFETY: available.
        let found = unsafe { (kernels(isa).operations)(sample) };
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert!(found.agrees(expected), "{isa:?} {}: {:x?}, expected {:x?} of {sample:x?}", found.name, found.lanes, expected.lanes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn every_operation_equals_its_scalar_twin(lanes: [[u32; 16]; 3], single: u32, kinds in prop::collection::vec(bits(), 49)) {
        // half of the lanes as they come, half of a kind
        let mut sample = Sample { lanes, single };
        for (lane, kind) in sample.lanes.as_flattened_mut().iter_mut().chain([&mut sample.single]).zip(kinds) {
            if kind % 2 == *lane % 2 {
                *lane = kind;
            }
        }
        compare(&sample);
    }
}

/// Every pair of extremes in every operation of two operands, every such pair with a third.
#[test]
fn extremes_equal_their_scalar_twin() {
    for (i, &x) in EXTREMES.iter().enumerate() {
        for shift in 0..EXTREMES.len() {
            let lanes = [0, shift, i].map(|from| std::array::from_fn(|lane| EXTREMES[(i + lane + from) % EXTREMES.len()]));
            compare(&Sample { lanes, single: x });
        }
    }
}

/// The scalar dot product, to which all others are compared, against its definition.
#[test]
fn dot_products_are_those_of_unsigned_and_signed_bytes() {
    for w in 0..=255u8 {
        for x in i8::MIN..=i8::MAX {
            let sample =
                Sample { lanes: [[7; 16], [u32::from(w) << 16 | 255; 16], [0; 16]], single: u32::from_le_bytes([3, 0, x as u8, 0]) };
            // SAFETY: portable code.
            let outcomes = unsafe { (kernels(Isa::Scalar).operations)(&sample) };
            let wide = outcomes.iter().find(|o| o.name == "dot, wide").unwrap();
            assert_eq!(wide.lanes, [(7 + 255 * 3 + i32::from(w) * i32::from(x)) as u32; 16], "{w} times {x}");
        }
    }
}

/// The value of a half float that is a number, from the definition of the format.
fn value(half: u16) -> f64 {
    let (exponent, mantissa) = (i32::from(half >> 10 & 31), f64::from(half & 1023));
    let magnitude = if exponent == 0 { mantissa * 2f64.powi(-24) } else { (1024.0 + mantissa) * 2f64.powi(exponent - 25) };
    if half >> 15 == 1 { -magnitude } else { magnitude }
}

#[test]
fn every_half_float_is_read_as_defined() {
    for first in (0..=u16::MAX).step_by(16) {
        let lanes =
            [std::array::from_fn(|i| if i < 8 { u32::from(first + 2 * i as u16) * 0x1_0001 + 0x1_0000 } else { 0 }), [0; 16], [0; 16]];
        let sample = Sample { lanes, single: 0 };
        for isa in Isa::available() {
            // SAFETY: available.
            let outcomes = unsafe { (kernels(isa).operations)(&sample) };
            let found = outcomes.iter().find(|o| o.name == "load_f16").unwrap();
            for (half, found) in (first..).zip(found.lanes) {
                let found = f32::from_bits(found);
                match half & 0x7fff {
                    0x7c01.. => assert!(found.is_nan(), "{isa:?} {half:x}: {found}"),
                    0x7c00 => assert_eq!(found, if half >> 15 == 1 { f32::NEG_INFINITY } else { f32::INFINITY }, "{isa:?} {half:x}"),
                    _ => assert_eq!(found.to_bits(), (value(half) as f32).to_bits(), "{isa:?} {half:x}"),
                }
            }
        }
    }
}

/// Between every half float and the next lies a tie, which goes to the even one; what is just below or above it does not.
#[test]
fn every_rounding_to_half_goes_to_the_nearest() {
    for half in 0..0x7c00u16 {
        // past the largest number stands the infinity, in the place of 2^16
        let next = if half == 0x7bff { 65536.0 } else { value(half + 1) };
        let tie = ((value(half) + next) / 2.0) as f32;
        let x = [tie.next_down(), tie, tie.next_up(), -tie.next_down(), -tie, -tie.next_up()];
        let even = half + half % 2;
        let expected = [half, even, half + 1, half | 0x8000, even | 0x8000, (half + 1) | 0x8000];
        for isa in Isa::available() {
            let mut found = [0; 6];
            // SAFETY: available.
            unsafe { (kernels(isa).to_f16)(&x, &mut found) };
            assert_eq!(found, expected, "{isa:?}: {x:?}");
        }
    }
}

/// Every code of every quantized format, as a key and as a value, read by the attention kernels of every instruction set.
#[test]
fn every_code_is_read_as_defined() {
    for kind in KvType::ALL.into_iter().filter(|k| k.is_quantized()) {
        let count: usize = if kind.bits() == 8 { 256 } else { 16 };
        let bytes = kind.bits() / 4;
        for isa in Isa::available() {
            for &rows in kernels(isa).attend_coded_rows {
                let kernel = (kernels(isa).attend)(kind, rows).unwrap();
                let run = |head_dim: usize, part: &[u8], queries: &[f32]| {
                    let padded = head_dim.next_multiple_of(16);
                    let (mut stats, mut out) = (vec![[LOWEST, 0.0]; rows], vec![0.0f32; rows * padded]);
                    let dims = if bytes == 1 { head_dim.next_multiple_of(2) } else { head_dim };
                    let values_at = 8 * bytes * dims;
                    let scales_at = values_at + 8 * bytes * padded;
                    let mut part = part.to_vec();
                    part.resize(scales_at, 0);
                    part.extend([0x80, 0x3f].repeat(32));
                    // SAFETY: available; one token of one block is seen, and every buffer has the rows' size.
                    unsafe {
                        kernel(&AttendArgs {
                            queries: queries.as_ptr(),
                            spans: &vec![(0, 1); rows],
                            pages: 0..1,
                            blocks: &[part.as_ptr()],
                            keys_at: 0,
                            next_keys_at: 0,
                            values_at,
                            scales_at,
                            factors: [1.0; 2],
                            own: (9, std::ptr::null()),
                            head_dim,
                            padded,
                            stats: stats.as_mut_ptr(),
                            out: out.as_mut_ptr(),
                        });
                    }
                    (stats, out)
                };
                let same = |found: f32, want: f32| found == want || found.is_nan() && want.is_nan();
                for code in 0..count {
                    let want = kind.value(code as u8);
                    // the only key is the score; one that is no number is no maximum, and makes the sum none
                    let first = if bytes == 1 { vec![code as u8 | 0xf0] } else { vec![code as u8] };
                    let (stats, _) = run(1, &first, &vec![1.0; rows]);
                    assert!(stats.iter().all(|s| s[0] == want || s[1].is_nan() && want.is_nan()), "{isa:?} {kind:?} {code}: {stats:?}");
                }
                if bytes == 1 {
                    // the second of two dimensions stands in the high half
                    for code in 0..16 {
                        let queries: Vec<f32> = [0.0, 1.0].into_iter().flat_map(|q| vec![q; rows]).collect();
                        let (stats, _) = run(2, &[code << 4 | 3], &queries);
                        assert!(stats.iter().all(|s| s[0] == kind.value(code)), "{isa:?} {kind:?} {code}");
                    }
                }
                let dims = 8 * bytes * count;
                let mut part = vec![0; dims];
                part.extend((0..count).map(|code| code as u8));
                let (_, out) = run(count, &part, &vec![0.0; count * rows]);
                let wrong = (0..rows * count).find(|i| !same(out[*i], kind.value((i % count) as u8)));
                assert_eq!(wrong, None, "{isa:?} {kind:?} {rows} rows");
            }
        }
    }
}
