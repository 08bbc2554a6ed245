//! Element types of tensors in files.

use half::{bf16, f16};
use std::fmt;

/// The element type of a stored tensor, named as safetensors names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// The high half of an `F32`.
    BF16,
    /// 64-bit IEEE float.
    F64,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed byte.
    I8,
    /// Unsigned 64-bit integer.
    U64,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned byte.
    U8,
    /// One byte, 0 or 1.
    Bool,
    /// 8-bit float, 4 exponent bits, no infinities.
    F8E4M3,
    /// 8-bit float, 5 exponent bits.
    F8E5M2,
    /// 8-bit power of two.
    F8E8M0,
}

const NAMES: [(DType, &str, usize); 16] = [
    (DType::F32, "F32", 4),
    (DType::F16, "F16", 2),
    (DType::BF16, "BF16", 2),
    (DType::F64, "F64", 8),
    (DType::I64, "I64", 8),
    (DType::I32, "I32", 4),
    (DType::I16, "I16", 2),
    (DType::I8, "I8", 1),
    (DType::U64, "U64", 8),
    (DType::U32, "U32", 4),
    (DType::U16, "U16", 2),
    (DType::U8, "U8", 1),
    (DType::Bool, "BOOL", 1),
    (DType::F8E4M3, "F8_E4M3", 1),
    (DType::F8E5M2, "F8_E5M2", 1),
    (DType::F8E8M0, "F8_E8M0", 1),
];

impl DType {
    /// Writes stored elements of a float type, little-endian, as `f32` (exact for each of them).
    pub fn read_f32(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            DType::F16 => out.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(o, b)| *o = f16::from_le_bytes(*b).to_f32()),
            DType::BF16 => out.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(o, b)| *o = bf16::from_le_bytes(*b).to_f32()),
            _ => out.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(o, b)| *o = f32::from_le_bytes(*b)),
        }
    }

    /// The type that a safetensors header calls `name`, if it is known.
    pub fn from_name(name: &str) -> Option<DType> {
        NAMES.iter().find(|(_, n, _)| *n == name).map(|(d, _, _)| *d)
    }

    /// Its name in a safetensors header.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(d, _, _)| *d == self).expect("every dtype is in the table").1
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        NAMES.iter().find(|(d, _, _)| *d == self).expect("every dtype is in the table").2
    }

    /// Whether a dense weight may have this type.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for (d, name, size) in NAMES {
            assert_eq!(DType::from_name(name), Some(d));
            assert_eq!((d.name(), d.size()), (name, size));
        }
        assert_eq!(DType::from_name("F7"), None);
    }
}
