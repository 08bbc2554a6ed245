//! The safetensors header: 8 bytes of length, a JSON object, then the tensors back to back.
//!
//! Everything is checked before anything is believed: the header lies inside the file, names are unique, offsets grow
//! without overlap or hole, sizes agree with shapes. A [`TensorInfo`] is therefore always inside its file.

use crate::error::clip;
use crate::{FormatError, Source};
use billfish_tensor::DType;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

/// Longest header that is read, as in the reference implementation.
const HEADER_CAP: u64 = 100_000_000;

/// Where a tensor lies in its file and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: DType,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: usize,
}

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// The free text pairs under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

impl Header {
    /// Reads and checks the header of a safetensors file.
    ///
    /// # Errors
    /// [`FormatError::Header`] or [`FormatError::Tensor`] naming what is wrong, [`FormatError::Io`] when reading fails.
    pub fn read(source: &Source) -> Result<Header, FormatError> {
        let file = source.name();
        let mut length = [0; 8];
        if source.len() < 8 {
            return Err(FormatError::header(file, "8 bytes of header length", format!("a file of {} bytes", source.len())));
        }
        source.read_at(0, &mut length)?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_CAP {
            return Err(FormatError::header(file, format!("a length of at most {HEADER_CAP} bytes"), length));
        }
        if length > source.len() - 8 {
            let found = format!("a header length of {length} in a file of {} bytes", source.len());
            return Err(FormatError::header(file, "a header inside the file", found));
        }
        let mut json = vec![0; length as usize];
        source.read_at(8, &mut json)?;
        if json.first() != Some(&b'{') {
            return Err(FormatError::header(
                file,
                "a JSON object that starts with `{`",
                format!("{:?}", json.first().map(|&b| char::from(b))),
            ));
        }
        let raw: RawHeader =
            serde_json::from_slice(&json).map_err(|e| FormatError::header(file, "a JSON object of distinct tensors", e))?;
        check(file, raw, 8 + length, source.len() - 8 - length)
    }
}

/// Turns raw entries into checked ones; `start` is where the data begins, `size` how many bytes of it there are.
fn check(file: &str, raw: RawHeader, start: u64, size: u64) -> Result<Header, FormatError> {
    let wrong = |tensor: &str, expected: String, found: String| FormatError::tensor(file, tensor, expected, found, crate::error::DAMAGED);
    let mut tensors = BTreeMap::new();
    for (name, t) in raw.tensors {
        let [begin, end] = t.data_offsets;
        if begin > end {
            return Err(wrong(&name, "data_offsets [begin, end] with begin <= end".into(), format!("[{begin}, {end}]")));
        }
        if end > size {
            return Err(wrong(&name, format!("data_offsets inside the {size} bytes of data"), format!("[{begin}, {end}]")));
        }
        let Some(dtype) = DType::from_name(&t.dtype) else {
            return Err(FormatError::tensor(
                file,
                &name,
                "a dtype that is known (F32, F16, BF16, I32, …)",
                format!("`{}`", clip(t.dtype)),
                "convert the tensor to a known dtype",
            ));
        };
        let bytes = t.shape.iter().try_fold(dtype.size() as u64, |a, &b| a.checked_mul(b));
        if bytes != Some(end - begin) {
            let expected = bytes.map_or("a size that fits in 64 bits".into(), |b| format!("{b} bytes"));
            return Err(wrong(&name, format!("{expected} for {dtype} {:?}", t.shape), format!("{} bytes", end - begin)));
        }
        let shape: Option<Vec<usize>> = t.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
        let (Some(shape), Ok(bytes)) = (shape, usize::try_from(end - begin)) else {
            return Err(wrong(&name, "a size that fits this machine".into(), format!("{:?}", t.shape)));
        };
        tensors.insert(name, TensorInfo { dtype, shape, offset: start + begin, bytes });
    }
    let mut order: Vec<(&String, &TensorInfo)> = tensors.iter().collect();
    order.sort_by_key(|(_, t)| (t.offset, t.bytes));
    let mut end = start;
    for (name, t) in order {
        if t.offset != end {
            let what = if t.offset < end { "an overlap with the tensor before it" } else { "a hole before it" };
            return Err(wrong(name, format!("data that begins at byte {end}"), format!("{what}: it begins at {}", t.offset)));
        }
        end += t.bytes as u64;
    }
    if end != start + size {
        let found = format!("a file of {} bytes", start + size);
        return Err(FormatError::header(file, format!("a file that ends with its last tensor, at byte {end}"), found));
    }
    Ok(Header { tensors, metadata: raw.metadata })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

#[derive(Default)]
struct RawHeader {
    tensors: BTreeMap<String, RawTensor>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_map(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut out = RawHeader::default();
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(A::Error::custom("`__metadata__` twice"));
                }
                out.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                continue;
            }
            match out.tensors.entry(name) {
                Entry::Occupied(e) => return Err(A::Error::custom(format!("tensor `{}` twice", clip(e.key())))),
                Entry::Vacant(e) => {
                    let tensor = map.next_value().map_err(|error| A::Error::custom(format!("tensor `{}`: {error}", clip(e.key()))))?;
                    e.insert(tensor);
                }
            }
        }
        Ok(out)
    }
}
