//! An exponential that gives the same bits on every machine.
//!
//! `f64::exp` is whatever the platform's mathematical library says, and libraries differ in the last bit; a token drawn
//! near a boundary would then differ between machines. This one uses only correctly rounded operations.

/// 1/k! from k = 13 down to 0: on |r| ≤ ln 2 / 2 the first term left out is below 2⁻⁵⁷.
const TERMS: [f64; 14] = [
    1.0 / 6_227_020_800.0,
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];
/// ln 2 = HIGH + LOW; HIGH has 21 trailing zero bits, so its product with a small integer is exact.
const LN2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// Below this the result would leave the normal numbers.
const SMALLEST: f64 = -708.0;

/// 1.5 · 2⁵²: a small number that is added to it is rounded to an integer, which is then what the last bits say. Vectors of
/// numbers can do that on every machine; not all can convert 64-bit integers.
const ROUND: f64 = 6_755_399_441_055_744.0;

/// eˣ for x ≤ 0, within 2 units in the last place; 0 below −708 (no probability there matters).
pub(crate) fn exp(x: f64) -> f64 {
    let [e] = exps([x]);
    e
}

/// [`exp`] of several numbers at once, with the same bits: a series is a chain of operations that wait for each other, and
/// several chains fill the gaps.
#[inline(always)]
pub(crate) fn exps<const N: usize>(x: [f64; N]) -> [f64; N] {
    // x = n·ln 2 + r with |r| ≤ ln 2 / 2, then eˣ = 2ⁿ·eʳ.
    let shifted = x.map(|x| x * std::f64::consts::LOG2_E + ROUND);
    let n = shifted.map(|shifted| shifted - ROUND);
    let mut r = [0.0; N];
    for i in 0..N {
        r[i] = (x[i] - n[i] * LN2_HIGH) - n[i] * LN2_LOW;
    }
    let mut series = [0.0; N];
    for term in TERMS {
        for i in 0..N {
            series[i] = series[i] * r[i] + term;
        }
    }
    let mut result = [0.0; N];
    for i in 0..N {
        let power = f64::from_bits((shifted[i].to_bits() << 52).wrapping_add(1023 << 52));
        result[i] = if x[i] < SMALLEST { 0.0 } else { series[i] * power };
    }
    result
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn agrees_with_the_library() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        for i in 0..200_000 {
            let x = -f64::from(i) * 0.003_539;
            let (ours, library) = (exp(x), x.exp());
            assert!((ours - library).abs() <= 4.5e-16 * library, "exp({x}) = {ours:e}, not {library:e}");
        }
    }

    #[test]
    fn never_falls_when_the_argument_grows() {
        let values: Vec<f64> = (0..100_000).map(|i| exp(-7.0 + f64::from(i) * 7e-5)).collect();
        assert!(values.is_sorted());
    }

    #[test]
    fn bits_are_fixed() {
        let bits = [-0.5, -1.0, -3.25, -20.0, -500.5].map(|x| exp(x).to_bits());
        let expected = [0x3fe3_68b2_fc6f_960a, 0x3fd7_8b56_362c_ef38, 0x3fa3_da36_8521_902d, 0x3e21_b486_55f3_7267, 0x12ce_8222_ed34_2a1e];
        assert_eq!(bits, expected);
    }
}
