//! How keys and values are stored: each format's codes and what they mean, in one place for the writer and every reader.
//!
//! In the formats of less than 16 bits a row (one token's key or value of one head) has a scale of its own, the least brain
//! float with which its largest number is in range. Rows that hold what is not a number have a scale that is none, so that
//! everything computed of them is none either. Where a model brings scales for its 8-bit floats ([`KvScales`]), a row's own is
//! 1, and the model's goes before it.
//!
//! [`KvScales`]: super::KvScales

use half::bf16;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvType {
    /// Half precision.
    F16,
    /// Brain floats.
    BF16,
    /// Single precision.
    F32,
    /// 8-bit integers, -127 to 127.
    Int8,
    /// 8-bit floats with four bits of exponent and three of mantissa, to 448.
    Fp8E4M3,
    /// 8-bit floats with five bits of exponent and two of mantissa, to 57344.
    Fp8E5M2,
    /// 4-bit floats with two bits of exponent and one of mantissa, to 6.
    Fp4E2M1,
    /// 4-bit integers, -7 to 7.
    Int4,
}

/// The values of 4-bit floats.
pub(crate) const E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The values of 4-bit integers.
pub(crate) const INT4: [f32; 16] = [-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];

/// A float of a few bits: one of sign, then the exponent, then the mantissa.
struct Small {
    mantissa: u32,
    bias: i32,
    largest: f32,
}

const FP8_E4M3: Small = Small { mantissa: 3, bias: 7, largest: 448.0 };
const FP8_E5M2: Small = Small { mantissa: 2, bias: 15, largest: 57344.0 };
const FP4_E2M1: Small = Small { mantissa: 1, bias: 1, largest: 6.0 };

impl Small {
    /// The code of the nearest value, ties to the even one, the largest for what is above it.
    fn nearest(&self, x: f32, sign: u8) -> u8 {
        let magnitude = x.abs().min(self.largest);
        let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(1 - self.bias);
        // in units of the last place, where the leading one counts as a step of the exponent
        let units = magnitude * ((self.mantissa as i32 - exponent) as f32).exp2();
        let code = (((exponent + self.bias - 1) as u32) << self.mantissa) + units.round_ties_even() as u32;
        code as u8 | if x.is_sign_negative() { sign } else { 0 }
    }

    /// The value of a code without its sign. What is no number, an infinity included, is NaN.
    fn magnitude(&self, code: u8) -> f32 {
        let (field, mantissa) = (i32::from(code >> self.mantissa), f32::from(code & ((1 << self.mantissa) - 1)));
        let (field, leading) = if field == 0 { (1, 0.0) } else { (field, (self.mantissa as f32).exp2()) };
        let value = (leading + mantissa) * ((field - self.bias - self.mantissa as i32) as f32).exp2();
        if value > self.largest { f32::NAN } else { value }
    }
}

impl KvType {
    /// All of them.
    pub const ALL: [KvType; 8] =
        [KvType::F16, KvType::BF16, KvType::F32, KvType::Int8, KvType::Fp8E4M3, KvType::Fp8E5M2, KvType::Fp4E2M1, KvType::Int4];

    /// Bits of one element.
    pub fn bits(self) -> usize {
        match self {
            KvType::F32 => 32,
            KvType::F16 | KvType::BF16 => 16,
            KvType::Int8 | KvType::Fp8E4M3 | KvType::Fp8E5M2 => 8,
            KvType::Fp4E2M1 | KvType::Int4 => 4,
        }
    }

    /// Whether rows have scales. A token then reads keys and values of its own block in half precision, and those of all
    /// earlier blocks as they are stored.
    pub fn is_quantized(self) -> bool {
        self.bits() < 16
    }

    /// Whether scales that a model brings are used: in 8-bit floats, which they are made for.
    pub fn takes_scales(self) -> bool {
        matches!(self, KvType::Fp8E4M3 | KvType::Fp8E5M2)
    }

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::BF16 => "bf16",
            KvType::F32 => "f32",
            KvType::Int8 => "int8",
            KvType::Fp8E4M3 => "fp8_e4m3",
            KvType::Fp8E5M2 => "fp8_e5m2",
            KvType::Fp4E2M1 => "fp4_e2m1",
            KvType::Int4 => "int4",
        }
    }

    /// The largest value of a code that is written.
    fn largest(self) -> f32 {
        match self {
            KvType::Int8 => 127.0,
            KvType::Int4 => 7.0,
            KvType::Fp8E4M3 => FP8_E4M3.largest,
            KvType::Fp8E5M2 => FP8_E5M2.largest,
            KvType::Fp4E2M1 => FP4_E2M1.largest,
            KvType::F16 | KvType::BF16 | KvType::F32 => f32::MAX,
        }
    }

    /// What a code of a quantized format stands for, before its row's scale; NaN for those that stand for nothing.
    pub fn value(self, code: u8) -> f32 {
        let signed = |format: &Small| {
            let value = format.magnitude(code & 0x7f);
            if code >> 7 == 1 { -value } else { value }
        };
        match self {
            KvType::Int8 => f32::from(code) - 128.0,
            KvType::Int4 => INT4[usize::from(code & 15)],
            KvType::Fp8E4M3 => signed(&FP8_E4M3),
            KvType::Fp8E5M2 => signed(&FP8_E5M2),
            KvType::Fp4E2M1 => E2M1[usize::from(code & 15)],
            KvType::F16 | KvType::BF16 | KvType::F32 => f32::NAN,
        }
    }

    /// The code whose value is nearest.
    fn code(self, x: f32) -> u8 {
        match self {
            KvType::Int8 => (x.round_ties_even() as i32 + 128) as u8,
            KvType::Int4 => (x.round_ties_even() as i32 + 8) as u8,
            KvType::Fp8E4M3 => FP8_E4M3.nearest(x, 0x80),
            KvType::Fp8E5M2 => FP8_E5M2.nearest(x, 0x80),
            _ => FP4_E2M1.nearest(x, 8),
        }
    }

    /// Hands out the codes of a row of `len` halves, with the index of each, and returns its scale; 1 if it is `given` one.
    pub(crate) fn encode(self, len: usize, given: Option<f32>, row: impl Fn(usize) -> f32, mut take: impl FnMut(usize, u8)) -> bf16 {
        let (mut largest, mut finite) = (0.0f32, true);
        for i in 0..len {
            largest = largest.max(row(i).abs());
            finite &= row(i).is_finite();
        }
        if !finite {
            (0..len).for_each(|i| take(i, self.code(0.0)));
            return bf16::NAN;
        }
        if let Some(step) = given {
            (0..len).for_each(|i| take(i, self.code(row(i) / step)));
            return bf16::ONE;
        }
        // rounded up, so that nothing is out of range
        let scale = bf16::from_bits((((largest / self.largest()).to_bits() + 0xffff) >> 16) as u16);
        let step = if largest == 0.0 { 1.0 } else { scale.to_f32() };
        (0..len).for_each(|i| take(i, self.code(row(i) / step)));
        scale
    }

    /// What a row of halves reads as once its block is full.
    pub fn rounded(self, row: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; row.len()];
        let scale = self.encode(row.len(), None, |i| row[i], |i, code| out[i] = self.value(code)).to_f32();
        out.iter_mut().for_each(|x| *x *= scale);
        out
    }
}
