//! One scale and one zero point for the weights of one group of one column.

use billfish_tensor::DType;
use half::{bf16, f16};

/// What scales and zero points there may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Width of a code.
    pub bits: u32,
    /// Whether the zero point is the midpoint `2^(bits - 1)` everywhere.
    pub sym: bool,
    /// Whether a symmetric scale may be negative, so that the weight of largest magnitude can have the code 0, which
    /// reaches half a step further than the largest code.
    pub signed: bool,
    /// The lowest zero point: 1 where a file must be read right by programs that store `zero - 1` and cannot hold a -1.
    pub lowest_zero: u16,
    /// What a scale is stored as: f16, bf16 or f32. Scales are rounded to it before codes are chosen.
    pub stored: DType,
}

/// How a scale and a zero point are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// The smallest and the largest weight are the ends of the range.
    MinMax,
    /// Ranges are narrowed in 80 steps of a hundredth for the least sum of `|error|^2.4`, each weight alike.
    Mse,
    /// The least sum of the squared errors, each weighted by what it costs in the output.
    Hessian,
}

/// A scale and a zero point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// As stored.
    pub scale: f64,
    /// A whole number.
    pub zero: f64,
}

/// Half to even, for numbers far below 2^51: the sum has no bits left for a fraction. It becomes vector instructions on
/// every machine, which a call of a rounding function does not.
#[inline(always)]
fn round(x: f64) -> f64 {
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    (x + SHIFT) - SHIFT
}

/// The number nearest to `value` that a float type holds.
pub(crate) fn rounded(dtype: DType, value: f64) -> f64 {
    match dtype {
        DType::F16 => f16::from_f64(value).to_f64(),
        DType::BF16 => bf16::from_f64(value).to_f64(),
        _ => f64::from(value as f32),
    }
}

/// The smallest and the largest of some weights and of 0.
fn ends(w: &[f64]) -> (f64, f64) {
    w.iter().fold((0.0, 0.0), |(l, h), &v| (l.min(v), h.max(v)))
}

impl Grid {
    /// The largest code.
    pub fn largest(&self) -> f64 {
        f64::from((1u32 << self.bits) - 1)
    }

    fn midpoint(&self) -> f64 {
        f64::from(1u32 << (self.bits - 1))
    }

    /// The code of `w` under `step`.
    #[inline(always)]
    pub fn code(&self, w: f64, step: &Step) -> f64 {
        (round((w / step.scale).clamp(-1e6, 1e6)) + step.zero).clamp(0.0, self.largest())
    }

    /// A scale as the file will have it, never 0 and never infinite.
    pub fn store(&self, scale: f64) -> f64 {
        let (magnitude, sign) = (scale.abs(), if scale < 0.0 { -1.0 } else { 1.0 });
        let (least, most) = match self.stored {
            DType::F16 => (f16::MIN_POSITIVE.to_f64(), f16::MAX.to_f64()),
            DType::BF16 => (bf16::MIN_POSITIVE.to_f64(), bf16::MAX.to_f64()),
            _ => (f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)),
        };
        sign * rounded(self.stored, magnitude.clamp(least, most))
    }

    /// The step for the weights `w` of a group; `cost` says what a squared error of each costs in the output.
    pub fn fit(&self, w: &[f64], cost: &[f64], search: Search) -> Step {
        let (low, high) = ends(w);
        let plain = self.shrunk(w, 1.0);
        if low == 0.0 && high == 0.0 {
            return plain;
        }
        match search {
            Search::MinMax => plain,
            Search::Mse => self.narrowed(w, low, high, plain),
            Search::Hessian if self.sym => self.best_symmetric(w, cost, high.max(-low), plain),
            Search::Hessian => self.best_asymmetric(w, cost, low, high, plain),
        }
    }

    /// The step for a part of the range of `w`.
    pub(crate) fn shrunk(&self, w: &[f64], part: f64) -> Step {
        match ends(w) {
            // nothing but zeros: any scale gives them back
            (0.0, 0.0) => self.of_range(-1.0, 1.0),
            (low, high) if self.sym => self.of_range(-high.max(-low) * part, high.max(-low) * part),
            (low, high) => self.of_range(low * part, high * part),
        }
    }

    /// The step whose codes span `low..=high`, one of which may be 0.
    fn of_range(&self, low: f64, high: f64) -> Step {
        let scale = self.store((high - low) / self.largest());
        Step { scale, zero: if self.sym { self.midpoint() } else { self.zero(round(-low / scale)) } }
    }

    /// A zero point that the file can hold.
    pub(crate) fn zero(&self, zero: f64) -> f64 {
        zero.clamp(f64::from(self.lowest_zero), self.largest())
    }

    fn narrowed(&self, w: &[f64], low: f64, high: f64, plain: Step) -> Step {
        let (low, high) = if self.sym { (-high.max(-low), high.max(-low)) } else { (low, high) };
        let error = |s: &Step| w.iter().map(|&v| ((self.code(v, s) - s.zero) * s.scale - v).abs().powf(2.4)).sum::<f64>();
        let mut best = (error(&plain), plain);
        for k in 1..80 {
            let part = 1.0 - f64::from(k) / 100.0;
            let step = self.of_range(low * part, high * part);
            let found = error(&step);
            if found < best.0 {
                best = (found, step);
            }
        }
        best.1
    }

    /// The weighted sum of squared errors.
    fn error(&self, w: &[f64], cost: &[f64], step: &Step) -> f64 {
        let (inverse, largest) = (1.0 / step.scale, self.largest());
        w.iter()
            .zip(cost)
            .map(|(&v, &c)| {
                let code = (round((v * inverse).clamp(-1e6, 1e6)) + step.zero).clamp(0.0, largest);
                let error = (code - step.zero) * step.scale - v;
                c * error * error
            })
            .sum()
    }

    fn best_symmetric(&self, w: &[f64], cost: &[f64], magnitude: f64, plain: Step) -> Step {
        // the whole range at one, and what lies past it where the far end is the negative one
        let widest = magnitude / (self.midpoint() - 0.5);
        let zero = self.midpoint();
        let mut best = (self.error(w, cost, &plain), plain);
        let mut trial = |scale: f64| {
            let step = Step { scale: self.store(scale), zero };
            let found = self.error(w, cost, &step);
            if found < best.0 {
                best = (found, step);
            }
            best
        };
        let signs: &[f64] = if self.signed { &[1.0, -1.0] } else { &[1.0] };
        for sign in signs {
            for k in 0..28 {
                trial(sign * widest * (1.1 - 0.03 * f64::from(k)));
            }
        }
        let around = trial(plain.scale).1.scale;
        for k in 1..4 {
            trial(around + 0.0075 * f64::from(k) * widest);
            trial(around - 0.0075 * f64::from(k) * widest);
        }
        self.polished(w, cost, best)
    }

    fn best_asymmetric(&self, w: &[f64], cost: &[f64], low: f64, high: f64, plain: Step) -> Step {
        let mut best = (self.error(w, cost, &plain), plain, 1.0, 1.0);
        let mut trial = |a: f64, b: f64| {
            let step = self.of_range(low * a, high * b);
            let found = self.error(w, cost, &step);
            if found < best.0 {
                best = (found, step, a, b);
            }
            best
        };
        let parts = || (0..9).map(|k| 1.05 - 0.0875 * f64::from(k));
        for a in parts() {
            for b in parts() {
                trial(a, b);
            }
        }
        for finer in [0.03, 0.012] {
            let (_, _, a, b) = trial(1.0, 1.0);
            for i in -1..=1 {
                for j in -1..=1 {
                    trial(a + finer * f64::from(i), b + finer * f64::from(j));
                }
            }
        }
        let (found, step, ..) = best;
        let mut best = (found, step);
        for shift in [-1.0, 1.0] {
            let step = Step { zero: self.zero(step.zero + shift), ..step };
            let found = self.error(w, cost, &step);
            if found < best.0 {
                best = (found, step);
            }
        }
        self.polished(w, cost, best)
    }

    /// The scale of least squares for the codes at hand, and again for the codes that it gives, as long as it helps.
    fn polished(&self, w: &[f64], cost: &[f64], mut best: (f64, Step)) -> Step {
        for _ in 0..4 {
            let (mut above, mut below) = (0.0, 0.0);
            for (&v, &c) in w.iter().zip(cost) {
                let level = self.code(v, &best.1) - best.1.zero;
                above += c * v * level;
                below += c * level * level;
            }
            let scale = self.store(above / below);
            let step = Step { scale, ..best.1 };
            if below <= 0.0 || scale == best.1.scale {
                break;
            }
            let found = self.error(w, cost, &step);
            if found >= best.0 {
                break;
            }
            best = (found, step);
        }
        best.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(bits: u32, sym: bool, signed: bool) -> Grid {
        Grid { bits, sym, signed, lowest_zero: 0, stored: DType::F16 }
    }

    fn weights(count: usize) -> Vec<f64> {
        // sums of three: bell-shaped, not even
        let unit = |i: usize| ((i * 2_654_435_761 % 10_007) as f64 / 10_007.0) - 0.5;
        (0..count).map(|i| (unit(3 * i + 1) + unit(3 * i + 2) + unit(3 * i + 7)) * 0.02 + 0.001).collect()
    }

    #[test]
    fn rounding_is_half_to_even() {
        for (x, expected) in [(0.5, 0.0), (1.5, 2.0), (2.5, 2.0), (-0.5, 0.0), (-1.5, -2.0), (0.49999, 0.0), (7.2, 7.0)] {
            assert_eq!(round(x), expected);
        }
    }

    #[test]
    fn ranges_by_hand() {
        // 4 bit, -1.5 ..= 1.5: steps of 0.2, midpoint 8, the upper end half a step too far
        let g = grid(4, true, false);
        let s = g.fit(&[1.5, -0.2], &[1.0; 2], Search::MinMax);
        assert_eq!(s, Step { scale: f16::from_f64(0.2).to_f64(), zero: 8.0 });
        assert_eq!((g.code(1.5, &s), g.code(-1.5, &s), g.code(-0.2, &s)), (15.0, 0.0, 7.0));
        // 0 ..= 3 with 2 bits: steps of 1 from code 0
        let g = grid(2, false, false);
        let s = g.fit(&[0.5, 3.0], &[1.0; 2], Search::MinMax);
        assert_eq!(s, Step { scale: 1.0, zero: 0.0 });
        assert_eq!(Grid { lowest_zero: 1, ..g }.fit(&[0.5, 3.0], &[1.0; 2], Search::MinMax).zero, 1.0);
        // zeros come back as zeros
        let s = g.fit(&[0.0; 3], &[1.0; 3], Search::Hessian);
        assert_eq!(g.code(0.0, &s), s.zero);
    }

    #[test]
    fn a_scale_is_what_the_file_can_hold() {
        for stored in [DType::F16, DType::BF16, DType::F32] {
            let g = Grid { stored, ..grid(4, true, true) };
            for scale in [0.0, 1e-30, 0.1234, -0.1234, 1e9] {
                let s = g.store(scale);
                assert!(s != 0.0 && s.is_finite() && g.store(s) == s, "{stored:?} {scale} {s}");
                assert_eq!(s < 0.0, scale < 0.0);
            }
        }
    }

    #[test]
    fn searches_are_never_worse_than_the_range() {
        let w = weights(128);
        let cost: Vec<f64> = (0..128).map(|i| 1.0 + (i % 7) as f64).collect();
        for bits in 2..=8 {
            for (sym, signed) in [(true, false), (true, true), (false, false)] {
                let g = grid(bits, sym, signed);
                let of = |search| g.error(&w, &cost, &g.fit(&w, &cost, search));
                assert!(of(Search::Hessian) <= of(Search::MinMax), "{bits} {sym} {signed}");
                assert!(of(Search::Hessian) <= of(Search::Mse) * 1.02, "{bits} {sym} {signed}");
            }
            let error = |signed| {
                let g = grid(bits, true, signed);
                g.error(&w, &cost, &g.fit(&w, &cost, Search::Hessian))
            };
            assert!(error(true) <= error(false), "{bits}");
        }
    }
}
