//! The weights of a folder as exact numbers, whatever they are stored as. Every weight has the name and the order that a
//! dense folder gives it: module `m` is `m.weight`, `[N, K]`, one output after the other. So two folders can be walked
//! side by side, some outputs at a time, and no dequantized matrix exists.

use crate::checkpoint::{BiasRule, Checkpoint, LinearWeight, Tensor};
use crate::{FormatError, ModuleReport};
use billfish_tensor::{DType, Packing, QuantMatrix};
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Weights that are looked at together, about.
const CHUNK: usize = 1 << 18;

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
    codes: Vec<u8>,
    floats: Vec<f64>,
    raw: Vec<u8>,
}

impl<'a> Values<'a> {
    /// Opens entry `name`. A quantized module whose last codes may be padding takes the size of `like`, the other
    /// folder's shape, if it can.
    pub(crate) fn open(checkpoint: &'a Checkpoint, name: &str, entry: &Entry, like: Option<&[usize]>) -> Result<Self, FormatError> {
        let (shape, encoding, bytes, store) = match entry {
            Entry::Quantized(module) => {
                let report = checkpoint.describe(module)?;
                let [k, n] = [report.in_features, report.out_features];
                let other = like.filter(|l| l.len() == 2 && l[0] == n && l[1] != k);
                let read = |k| checkpoint.linear(module, k, n, BiasRule::Optional);
                let weight = match other.and_then(|l| read(l[1]).ok()) {
                    Some(weight) => weight,
                    None => read(k)?,
                };
                let LinearWeight::Quantized(m) = weight else {
                    let remedy = "open the folder again: it changed while it was read";
                    return Err(FormatError::tensor(checkpoint.name(), name, "a quantized module", "a dense one", remedy));
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
        Ok(Self { shape, encoding, bytes, store, codes: vec![], floats: vec![], raw: vec![] })
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

    /// How many elements to read at a time: whole outputs of a matrix.
    pub(crate) fn chunk(&self) -> usize {
        match self.shape[..] {
            [_, k] if k > 0 => k.saturating_mul((CHUNK / k).max(16)),
            _ => CHUNK,
        }
    }

    /// Reads elements `start..start + count` as bits: of the number as `f64` for floats, where both zeros are the
    /// positive one and every NaN is the same; of the element for other types. `start` and `count` are whole outputs.
    pub(crate) fn read(&mut self, start: usize, count: usize, out: &mut Vec<u64>) -> Result<(), FormatError> {
        let raw = self.raw_type();
        out.clear();
        match &self.store {
            Store::Quantized(m) => {
                let k = m.in_features();
                self.floats.resize(count, 0.0);
                m.dequantize_columns(start / k..(start + count) / k, &mut self.codes, &mut self.floats);
                out.extend(self.floats.iter().map(|&v| canonical(v)));
            }
            Store::Tensor(tensor) => {
                let size = tensor.info.dtype.size();
                self.raw.resize(count * size, 0);
                tensor.read_range(start * size, &mut self.raw)?;
                if raw.is_some() {
                    out.extend(self.raw.chunks_exact(size).map(element_bits));
                    return Ok(());
                }
                match tensor.info.dtype {
                    DType::F16 => out.extend(self.raw.as_chunks::<2>().0.iter().map(|b| canonical(f16::from_le_bytes(*b).to_f64()))),
                    DType::BF16 => out.extend(self.raw.as_chunks::<2>().0.iter().map(|b| canonical(bf16::from_le_bytes(*b).to_f64()))),
                    DType::F32 => out.extend(self.raw.as_chunks::<4>().0.iter().map(|b| canonical(f64::from(f32::from_le_bytes(*b))))),
                    _ => out.extend(self.raw.as_chunks::<8>().0.iter().map(|b| canonical(f64::from_le_bytes(*b)))),
                }
            }
        }
        Ok(())
    }
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
