//! The weights of a folder as exact numbers, whatever they are stored as. Every weight has the name and the order that a
//! dense folder gives it: module `m` is `m.weight`, `[N, K]`, one output after the other. So two folders can be walked
//! side by side, some outputs at a time, and no dequantized matrix exists.

use crate::checkpoint::{BiasRule, Checkpoint, LinearWeight, Tensor};
use crate::report::describe_and_read;
use crate::{FormatError, ModuleReport};
use billfish_tensor::{DType, Packing, QuantMatrix, ScaleValues};
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// One element: of module `name`, `[row, col]` with the input as row and the output as column; of any other tensor, the
/// index as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// A module, or a tensor.
    pub name: String,
    /// Where in it.
    pub index: Vec<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.name, self.index)
    }
}

impl FromStr for Place {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let wrong = |found: String| {
            let remedy = "write it in quotes, such as 'model.layers.0.mlp.down_proj[17, 4]'";
            FormatError::place(text, "a name and an index, `module[row, col]`", found, remedy)
        };
        let parts = text.trim().strip_suffix(']').and_then(|t| t.rsplit_once('['));
        let (name, index) = parts.ok_or_else(|| wrong("no index in brackets at the end".into()))?;
        if name.trim().is_empty() {
            return Err(wrong("no name before the bracket".into()));
        }
        let number = |n: &str| n.trim().parse().map_err(|_| wrong(format!("`{}` in the index", n.trim())));
        let index = if index.trim().is_empty() { vec![] } else { index.split(',').map(number).collect::<Result<_, _>>()? };
        Ok(Self { name: name.trim().into(), index })
    }
}

/// Where element `flat` of tensor `name` is.
pub(crate) fn place(name: &str, shape: &[usize], mut flat: usize) -> Place {
    if let (Some(module), [_, k]) = (name.strip_suffix(".weight"), shape) {
        return Place { name: module.into(), index: vec![flat % k, flat / k] };
    }
    let mut index = vec![0; shape.len()];
    for (i, &extent) in index.iter_mut().zip(shape).rev() {
        *i = flat % extent;
        flat /= extent;
    }
    Place { name: name.into(), index }
}

/// What stands behind a name.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    /// A quantized module.
    Quantized(String),
    /// A tensor as it is.
    Stored,
}

/// Everything that a folder holds, under the names of a dense folder.
pub(crate) fn entries(checkpoint: &Checkpoint) -> BTreeMap<String, Entry> {
    let stored = checkpoint.tensor_names().filter(|n| !checkpoint.is_part(n)).map(|n| (n.to_string(), Entry::Stored));
    let quantized = checkpoint.quantized_modules().into_iter().map(|m| (format!("{m}.weight"), Entry::Quantized(m)));
    stored.chain(quantized).collect()
}

/// A quantized module in words.
pub(crate) fn words(report: &ModuleReport) -> String {
    let packing = match report.packing {
        Packing::Continuous => "",
        Packing::Planar => " planar",
    };
    format!("{}-bit{packing}, group_size {}, {} scales, zeros {}", report.bits, report.group_size, report.scales, report.zeros)
}

enum Store<'a> {
    Quantized(Box<QuantMatrix>),
    Tensor(Tensor<'a>),
}

/// One entry, ready to be read.
pub(crate) struct Values<'a> {
    /// As a dense folder stores it.
    pub(crate) shape: Vec<usize>,
    /// What it is stored as.
    pub(crate) encoding: String,
    /// Bytes on disk, about.
    pub(crate) bytes: u64,
    store: Store<'a>,
    /// Whether every weight of a quantized module is an `f32`.
    single: bool,
}

impl<'a> Values<'a> {
    /// Opens entry `name`. A quantized module whose last codes may be padding takes the size of `like`, the other
    /// folder's shape, if it can.
    pub(crate) fn open(checkpoint: &'a Checkpoint, name: &str, entry: &Entry, like: Option<&[usize]>) -> Result<Self, FormatError> {
        let (shape, encoding, bytes, store) = match entry {
            Entry::Quantized(module) => {
                // whether the config agrees that it is quantized
                checkpoint.is_quantized(module)?;
                let (report, own) = describe_and_read(checkpoint, module)?;
                let [k, n] = [report.in_features, report.out_features];
                let other = like.filter(|l| l.len() == 2 && l[0] == n && l[1] != k);
                let m = match other.map(|l| checkpoint.linear(module, l[1], n, BiasRule::Optional)) {
                    Some(Ok(LinearWeight::Quantized(m))) => m,
                    _ => own,
                };
                (vec![n, m.in_features()], words(&report), report.bytes, Store::Quantized(Box::new(m)))
            }
            Entry::Stored => {
                let tensor = checkpoint.need(name)?;
                tensor.mark_read();
                let info = tensor.info;
                (info.shape.clone(), info.dtype.to_string(), info.bytes as u64, Store::Tensor(tensor))
            }
        };
        // nine bits of a code times eleven of a scale: exact, unless it overflows
        let single = match &store {
            Store::Quantized(m) => match m.scales() {
                ScaleValues::F16(_) => true,
                ScaleValues::BF16(v) => v.iter().all(|s| s.to_f32().abs() < 1e35),
                ScaleValues::F32(_) => false,
            },
            Store::Tensor(_) => false,
        };
        Ok(Self { shape, encoding, bytes, store, single })
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        match &self.store {
            Store::Quantized(m) => m.in_features() * m.out_features(),
            Store::Tensor(t) => t.info.bytes / t.info.dtype.size(),
        }
    }

    pub(crate) fn is_quantized(&self) -> bool {
        matches!(self.store, Store::Quantized(_))
    }

    /// The type whose bits are the elements, for a tensor that does not hold floats.
    pub(crate) fn raw_type(&self) -> Option<DType> {
        match &self.store {
            Store::Tensor(t) if !t.info.dtype.is_float() && t.info.dtype != DType::F64 => Some(t.info.dtype),
            _ => None,
        }
    }

    /// Elements of a row: of an output, for a matrix.
    pub(crate) fn row(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Reads elements `start..start + count`, of a quantized module whole rows. Both zeros are the positive one, and every
    /// NaN is the same.
    pub(crate) fn read(&self, start: usize, count: usize, scratch: &mut Vec<u8>) -> Result<Elements, FormatError> {
        let tensor = match &self.store {
            Store::Quantized(m) => {
                let k = m.in_features();
                let columns = start / k..(start + count) / k;
                return Ok(if self.single {
                    let mut out = vec![0.0f32; count];
                    m.dequantize_columns(columns, scratch, &mut out);
                    Elements::Singles(singles(out.into_iter()))
                } else {
                    let mut out = vec![0.0f64; count];
                    m.dequantize_columns(columns, scratch, &mut out);
                    Elements::Doubles(doubles(out.into_iter()))
                });
            }
            Store::Tensor(tensor) => tensor,
        };
        let size = tensor.info.dtype.size();
        scratch.resize(count * size, 0);
        tensor.read_range(start * size, scratch)?;
        let halves = || scratch.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
        Ok(match tensor.info.dtype {
            DType::F16 => Elements::Singles(singles(halves().map(|b| f16::from_bits(b).to_f32()))),
            DType::BF16 => Elements::Singles(singles(halves().map(|b| bf16::from_bits(b).to_f32()))),
            DType::F32 => Elements::Singles(singles(scratch.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)))),
            DType::F64 => Elements::Doubles(doubles(scratch.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)))),
            _ => Elements::Raw(scratch.chunks_exact(size).map(element_bits).collect()),
        })
    }
}

/// Elements as bits, equal for equal elements of tensors of the same kind.
pub(crate) enum Elements {
    /// Numbers as `f32`, exactly.
    Singles(Vec<u32>),
    /// Numbers as `f64`, exactly.
    Doubles(Vec<u64>),
    /// The bits of what are no floats, widened.
    Raw(Vec<u64>),
}

impl Elements {
    /// Element `i` as 64 bits: of an `f64` for numbers.
    pub(crate) fn wide(&self, i: usize) -> u64 {
        match self {
            Elements::Singles(v) => canonical(f64::from(f32::from_bits(v[i]))),
            Elements::Doubles(v) | Elements::Raw(v) => v[i],
        }
    }

    /// The first place at which two stretches of the same length differ.
    pub(crate) fn difference(&self, other: &Elements, from: usize) -> Option<usize> {
        let position = |i: Option<usize>| i.map(|i| from + i);
        match (self, other) {
            (Elements::Singles(a), Elements::Singles(b)) => {
                if a[from..] == b[from..] {
                    None
                } else {
                    position(a[from..].iter().zip(&b[from..]).position(|(a, b)| a != b))
                }
            }
            _ => position((from..self.len()).position(|i| self.wide(i) != other.wide(i))),
        }
    }

    /// Appends the elements of a range and before them how they are written: see [`verify()`](crate::verify()).
    pub(crate) fn put(&self, range: Range<usize>, out: &mut Vec<u8>) {
        match self {
            Elements::Singles(v) => {
                out.push(4);
                out.extend(v[range].iter().flat_map(|b| b.to_le_bytes()));
            }
            Elements::Doubles(v) => {
                let single = |b: &u64| f64::from(f64::from_bits(*b) as f32).to_bits() == *b || f64::from_bits(*b).is_nan();
                if v[range.clone()].iter().all(single) {
                    out.push(4);
                    out.extend(singles(v[range].iter().map(|b| f64::from_bits(*b) as f32)).iter().flat_map(|b| b.to_le_bytes()));
                } else {
                    out.push(8);
                    out.extend(v[range].iter().flat_map(|b| b.to_le_bytes()));
                }
            }
            Elements::Raw(v) => {
                out.push(0);
                out.extend(v[range].iter().flat_map(|b| b.to_le_bytes()));
            }
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Elements::Singles(v) => v.len(),
            Elements::Doubles(v) | Elements::Raw(v) => v.len(),
        }
    }
}

fn singles(values: impl Iterator<Item = f32>) -> Vec<u32> {
    values.map(|v| if v.is_nan() { f32::NAN.to_bits() } else { (v + 0.0).to_bits() }).collect()
}

fn doubles(values: impl Iterator<Item = f64>) -> Vec<u64> {
    values.map(canonical).collect()
}

/// Bits of a number: equal for equal numbers.
fn canonical(v: f64) -> u64 {
    if v.is_nan() { f64::NAN.to_bits() } else { (v + 0.0).to_bits() }
}

/// Up to eight little-endian bytes.
pub(crate) fn element_bits(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |bits, &b| bits << 8 | u64::from(b))
}

/// The number that the bits of a float are.
pub(crate) fn float(dtype: DType, bits: u64) -> f64 {
    match dtype {
        DType::F16 => f16::from_bits(bits as u16).to_f64(),
        DType::BF16 => bf16::from_bits(bits as u16).to_f64(),
        DType::F32 => f64::from(f32::from_bits(bits as u32)),
        _ => f64::from_bits(bits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_written() {
        let place: Place = " model.layers.3.mlp.down_proj[17,  4 ]".parse().unwrap();
        assert_eq!((place.name.as_str(), place.index.as_slice()), ("model.layers.3.mlp.down_proj", &[17, 4][..]));
        assert_eq!(place.to_string().parse::<Place>().unwrap(), place);
        for (text, found) in [
            ("a", "no index in brackets"),
            ("a[1", "no index in brackets"),
            ("[1, 2]", "no name"),
            ("a[1, x]", "`x` in the index"),
            ("a[1, -2]", "`-2` in the index"),
            ("a[1,]", "`` in the index"),
        ] {
            let e = text.parse::<Place>().unwrap_err().to_string();
            assert!(e.contains(found) && e.contains("module[row, col]") && e.contains(text), "{e}");
        }
        assert!("scalar[]".parse::<Place>().unwrap().index.is_empty());
    }

    #[test]
    fn a_linear_weight_has_its_input_first() {
        assert_eq!(place("m.weight", &[3, 5], 7).to_string(), "m[2, 1]");
        assert_eq!(place("m.bias", &[3, 5], 7).to_string(), "m.bias[1, 2]");
        assert_eq!(place("m.weight", &[4], 3).to_string(), "m.weight[3]");
    }
}
