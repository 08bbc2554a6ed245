//! Where one weight comes from: the words, bits and numbers of the file that make it.

use crate::checkpoint::{BiasRule, Checkpoint, LinearWeight, Tensor};
use crate::values::{Place, element_bits, float};
use crate::{Evidence, FormatError, ModuleReport};
use billfish_tensor::{Codes, DType, Packing, QuantMatrix, ScaleValues};

/// Bits of a packed tensor that hold a code or a zero point, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBits {
    /// The tensor.
    pub tensor: String,
    /// Row and column of the word.
    pub index: [usize; 2],
    /// The word.
    pub word: u32,
    /// Lowest bit in the word.
    pub offset: u32,
    /// Number of bits.
    pub width: u32,
    /// Lowest bit in the code.
    pub shift: u32,
}

/// A weight of a quantized module.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Module, input and output.
    pub place: Place,
    /// What the module is.
    pub module: ModuleReport,
    /// The code.
    pub code: u8,
    /// Where it lies; empty when the file does not keep codes as the matrix does.
    pub code_bits: Vec<StoredBits>,
    /// The true zero point.
    pub zero: u16,
    /// The zero point as stored, before the dialect is applied, if its place is known.
    pub stored_zero: Option<u32>,
    /// Where that lies.
    pub zero_bits: Vec<StoredBits>,
    /// The scale.
    pub scale: f32,
    /// Its bits, in the type that the module names.
    pub scale_bits: u32,
    /// The group.
    pub group: usize,
    /// The entry of `g_idx`, if there is such a tensor.
    pub g_idx: Option<i64>,
    /// `(code - zero) * scale`.
    pub value: f64,
}

/// An element of a dense tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Element {
    /// The place as asked for.
    pub place: Place,
    /// The tensor.
    pub tensor: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where the element is stored in it.
    pub index: Vec<usize>,
    /// Its type.
    pub dtype: DType,
    /// Its bits.
    pub bits: u64,
    /// The number; `None` for types that hold none, or one that `f64` does not hold exactly.
    pub value: Option<f64>,
}

/// Where a value comes from.
#[derive(Clone, Debug)]
pub enum Explanation {
    /// It is computed from a code, a zero point and a scale.
    Quantized(Box<Weight>),
    /// It is stored as it is.
    Dense(Element),
}

impl Evidence {
    /// Its name in a word.
    pub fn name(self) -> &'static str {
        match self {
            Evidence::Data => "data",
            Evidence::Folder => "folder",
            Evidence::Writer => "writer",
            Evidence::Config => "config",
            Evidence::Format => "format",
            Evidence::Caller => "caller",
        }
    }
}

/// Explains `module[row, col]`, where the row is the input and the column the output, or `tensor[index]` as stored.
///
/// # Errors
/// [`FormatError::Place`] when the place cannot be understood or does not exist; otherwise as [`Checkpoint::linear`].
pub fn explain(checkpoint: &Checkpoint, place: &str) -> Result<Explanation, FormatError> {
    let place: Place = place.parse()?;
    if checkpoint.quantized_modules().contains(&place.name) {
        return weight(checkpoint, place);
    }
    if let Some(tensor) = checkpoint.find(&format!("{}.weight", place.name)) {
        return element(place, tensor, true);
    }
    match checkpoint.find(&place.name) {
        Some(tensor) => element(place, tensor, false),
        None => {
            let expected = format!("the name of a module or a tensor of {}", checkpoint.name());
            let last = place.name.rsplit('.').next().unwrap_or_default();
            let alike = checkpoint.tensor_names().find(|t| !last.is_empty() && t.split('.').any(|part| part == last));
            let found = alike.map_or_else(|| "none of that name".to_string(), |t| format!("none of that name, but `{t}`"));
            Err(FormatError::place(&place, expected, found, "list the names with `inspect --tensors`"))
        }
    }
}

fn check(place: &Place, extents: &[usize], what: &str) -> Result<(), FormatError> {
    let inside = place.index.len() == extents.len() && place.index.iter().zip(extents).all(|(i, e)| i < e);
    if inside {
        return Ok(());
    }
    let expected = format!("{what} below {extents:?}");
    Err(FormatError::place(place, expected, format!("{:?}", place.index), "count from 0, the input first"))
}

fn weight(checkpoint: &Checkpoint, place: Place) -> Result<Explanation, FormatError> {
    let report = checkpoint.describe(&place.name)?;
    let (k, n) = (report.in_features, report.out_features);
    check(&place, &[k, n], "an input and an output")?;
    let LinearWeight::Quantized(m) = checkpoint.linear(&place.name, k, n, BiasRule::Optional)? else {
        let remedy = "open the folder again: it changed while it was read";
        return Err(FormatError::place(&place, "a quantized module", "a dense one", remedy));
    };
    let (row, col) = (place.index[0], place.index[1]);
    let group = m.group_of(row);
    let code = code(&m, row, col);
    let zero = m.zero(group, col);
    let scale_index = group * n + col;
    let scale = m.scales().get(scale_index);
    let scale_bits = match m.scales() {
        ScaleValues::F16(v) => u32::from(v[scale_index].to_bits()),
        ScaleValues::BF16(v) => u32::from(v[scale_index].to_bits()),
        ScaleValues::F32(v) => v[scale_index].to_bits(),
    };
    let file = Words { checkpoint, module: &place.name, bits: m.bits() };
    let (mut code_bits, mut zero_bits, mut stored_zero) = (vec![], vec![], None);
    // other formats have tensors of these names, and perhaps shapes, with other contents
    if let (Codes::Words { packing, .. }, true) = (m.codes(), report.format.is_gptq()) {
        let words = packing.words(m.bits(), k);
        if let Some((bits, _)) = file.find("qweight", [words, n], *packing, row, |word| [word, col])? {
            code_bits = bits;
            let words = packing.words(m.bits(), n);
            if let Some((bits, stored)) = file.find("qzeros", [m.group_count(), words], *packing, col, |word| [group, word])? {
                (zero_bits, stored_zero) = (bits, Some(stored));
            }
        }
    }
    let g_idx = match checkpoint.find(&format!("{}.g_idx", place.name)) {
        Some(t) if t.info.shape == [k] => number(t.info.dtype, read(&t, row)?).map(|v| v as i64),
        _ => None,
    };
    let value = f64::from(i32::from(code) - i32::from(zero)) * f64::from(scale);
    Ok(Explanation::Quantized(Box::new(Weight {
        place,
        module: report,
        code,
        code_bits,
        zero,
        stored_zero,
        zero_bits,
        scale,
        scale_bits,
        group,
        g_idx,
        value,
    })))
}

fn code(m: &QuantMatrix, row: usize, col: usize) -> u8 {
    let mut run = [0; 32];
    let i = row % 32;
    m.codes().unpack_rows(m.bits(), m.out_features(), row - i, col..col + 1, &mut run[..=i]);
    run[i]
}

/// The packed tensors of a module.
struct Words<'a> {
    checkpoint: &'a Checkpoint,
    module: &'a str,
    bits: u32,
}

impl Words<'_> {
    /// Field `index` along the packed direction of a tensor of words, and what its bits come to; `None` when there is no
    /// such tensor of this shape. `at` gives row and column of a word from its place along that direction.
    fn find(
        &self,
        part: &str,
        shape: [usize; 2],
        packing: Packing,
        index: usize,
        at: impl Fn(usize) -> [usize; 2],
    ) -> Result<Option<(Vec<StoredBits>, u32)>, FormatError> {
        let name = format!("{}.{part}", self.module);
        let words = |t: &Tensor<'_>| matches!(t.info.dtype, DType::I32 | DType::U32) && t.info.shape == shape;
        let Some(tensor) = self.checkpoint.find(&name).filter(words) else { return Ok(None) };
        let base = index / 32 * self.bits as usize;
        let (mut bits, mut stored) = (vec![], 0);
        for field in packing.fields(self.bits, index % 32) {
            let index = at(base + field.word);
            let word = read(&tensor, index[0] * shape[1] + index[1])? as u32;
            stored |= field.part(word);
            let (offset, width, shift) = (field.offset, field.width, field.shift);
            bits.push(StoredBits { tensor: name.clone(), index, word, offset, width, shift });
        }
        Ok(Some((bits, stored)))
    }
}

/// Bits of one element.
fn read(tensor: &Tensor<'_>, flat: usize) -> Result<u64, FormatError> {
    let size = tensor.info.dtype.size();
    let mut bytes = [0; 8];
    tensor.read_range(flat * size, &mut bytes[..size])?;
    Ok(element_bits(&bytes[..size]))
}

/// The number that an element is, where `f64` holds it.
fn number(dtype: DType, bits: u64) -> Option<f64> {
    let exact = |v: i128| (v.unsigned_abs() <= 1 << 53).then_some(v as f64);
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 | DType::F64 => Some(float(dtype, bits)),
        DType::I64 => exact(i128::from(bits as i64)),
        DType::I32 => exact(i128::from(bits as i32)),
        DType::I16 => exact(i128::from(bits as i16)),
        DType::I8 => exact(i128::from(bits as i8)),
        DType::U64 | DType::U32 | DType::U16 | DType::U8 => exact(i128::from(bits)),
        _ => None,
    }
}

/// `turned`: a matrix is asked for with its input first, and stored with its output first.
fn element(place: Place, tensor: Tensor<'_>, turned: bool) -> Result<Explanation, FormatError> {
    let shape = tensor.info.shape.clone();
    let turned = turned && shape.len() == 2;
    let turn = |v: &[usize]| if turned { v.iter().rev().copied().collect() } else { v.to_vec() };
    check(&place, &turn(&shape), if turned { "an input and an output" } else { "an index" })?;
    let index: Vec<usize> = turn(&place.index);
    let flat = index.iter().zip(&shape).fold(0, |flat, (i, extent)| flat * extent + i);
    let bits = read(&tensor, flat)?;
    let (dtype, tensor) = (tensor.info.dtype, tensor.name.to_string());
    Ok(Explanation::Dense(Element { place, tensor, shape, index, dtype, bits, value: number(dtype, bits) }))
}
