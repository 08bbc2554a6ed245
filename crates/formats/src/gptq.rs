//! One module in the GPTQ layout: `qweight`, `qzeros`, `scales`, perhaps `g_idx` and `bias`.

use crate::checkpoint::{Checkpoint, Tensor};
use crate::dialect::{self, Decoded, Stored};
use crate::warning::WarningKind;
use crate::{FormatError, QuantConfig, Scheme};
use billfish_tensor::{Codes, DType, Groups, QuantMatrix, ScaleValues, TensorError};
use half::{bf16, f16};

/// Remedy when sizes do not fit together.
const SIZES: &str = "check bits, group_size and the rules of the quantization config against the tensors, or download the shard again";

/// A module whose four tensors have been found and whose shapes fit together.
pub(crate) struct Module<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a QuantConfig,
    pub(crate) name: &'a str,
    pub(crate) scheme: Scheme,
    pub(crate) k: usize,
    pub(crate) n: usize,
    pub(crate) qweight: Tensor<'a>,
    pub(crate) qzeros: Tensor<'a>,
    pub(crate) scales: Tensor<'a>,
    pub(crate) g_idx: Option<Tensor<'a>>,
    pub(crate) groups: Groups,
}

impl<'a> Module<'a> {
    /// Finds module `name`, of `[k, n]` (read off the tensors when `None`), and checks every shape and type.
    pub(crate) fn find(checkpoint: &'a Checkpoint, name: &'a str, size: Option<(usize, usize)>) -> Result<Self, FormatError> {
        let qweight = checkpoint.need(&format!("{name}.qweight"))?;
        let Some(config) = checkpoint.quantization() else {
            let remedy = "add quantize_config.json, or `quantization_config` in config.json, with bits and group_size";
            return Err(qweight.wrong("a quantization config beside a quantized tensor", "none", remedy));
        };
        let scheme = config.scheme(name)?;
        let qzeros = checkpoint.need(&format!("{name}.qzeros"))?;
        let scales = checkpoint.need(&format!("{name}.scales"))?;
        let g_idx = checkpoint.find(&format!("{name}.g_idx"));
        let words = [DType::I32, DType::U32];
        qweight.check_dtype(&words)?;
        qzeros.check_dtype(&words)?;
        scales.check_dtype(&[DType::F16, DType::BF16, DType::F32])?;
        let (k, n) = match size {
            Some(size) => size,
            None => infer(&qweight, g_idx.as_ref(), &scheme)?,
        };
        let Scheme { bits, group_size, .. } = scheme;
        if k == 0 || n == 0 {
            return Err(qweight.wrong("at least one row and one column", format!("[{k}, {n}]"), SIZES));
        }
        let packing = scheme.packing();
        check_codes(&qweight, &scheme, k, n)?;
        let count = scales.rows_of(n).ok_or_else(|| {
            let groups = k.div_ceil(group_size.rows(k));
            scales.wrong(format!("shape [{groups}, {n}] (group_size {group_size})"), format!("shape {:?}", scales.info.shape), SIZES)
        })?;
        let zero_words = packing.words(bits, n);
        if qzeros.info.shape != [count, zero_words] {
            let expected = format!("shape [{count}, {zero_words}] ({bits} bit, {count} groups)");
            return Err(qzeros.wrong(expected, format!("shape {:?}", qzeros.info.shape), SIZES));
        }
        let mut module = Self {
            checkpoint,
            config,
            name,
            scheme,
            k,
            n,
            qweight,
            qzeros,
            scales,
            g_idx,
            groups: Groups::Contiguous { size: group_size.rows(k) },
        };
        module.find_groups(count)?;
        Ok(module)
    }

    /// Reads `g_idx` and keeps it only when it says more than `k / group_size`.
    fn find_groups(&mut self, count: usize) -> Result<(), FormatError> {
        let Scheme { group_size, desc_act, .. } = self.scheme;
        let size = group_size.rows(self.k);
        let expected = self.k.div_ceil(size);
        let index = match &self.g_idx {
            Some(tensor) => Some(read_index(tensor, self.k, count)?),
            None => None,
        };
        match index {
            Some(index) if count != expected || index.iter().enumerate().any(|(k, &g)| g as usize != k / size) => {
                if !desc_act {
                    self.warn("`desc_act` is false, but `g_idx` reorders the rows or groups them otherwise: `g_idx` is followed");
                }
                self.groups = Groups::Index { g_idx: index, count };
            }
            _ if count != expected => {
                let shape = format!("shape [{expected}, {}] (group_size {group_size})", self.n);
                return Err(self.scales.wrong(shape, format!("shape {:?}", self.scales.info.shape), SIZES));
            }
            None if desc_act => self.warn("`desc_act` is true, but there is no `g_idx`: rows are grouped in the order they stand"),
            _ => {}
        }
        Ok(())
    }

    /// True zero points and the dialect they were stored in.
    pub(crate) fn zeros(&self) -> Result<Decoded, FormatError> {
        let words = self.qzeros.read_u32()?;
        let stored = Stored { words: &words, n: self.n, bits: self.scheme.bits, packing: self.scheme.packing() };
        let decoded = dialect::decode(&stored, self.scheme.sym, self.scheme.format, self.config.writer.as_ref());
        decoded.warnings.iter().for_each(|w| self.warn(w));
        Ok(decoded)
    }

    /// Reads everything.
    pub(crate) fn read(self, bias: Option<Vec<f32>>) -> Result<QuantMatrix, FormatError> {
        let zeros = self.zeros()?.zeros;
        let scales = read_scales(&self.scales)?;
        let codes = Codes::Words { words: self.qweight.read_u32()?, packing: self.scheme.packing() };
        for tensor in [&self.qweight, &self.qzeros, &self.scales].into_iter().chain(&self.g_idx) {
            tensor.mark_read();
        }
        let (checkpoint, name, n) = (self.checkpoint, self.name, self.n);
        QuantMatrix::new(self.k, n, self.scheme.bits, codes, scales, zeros, self.groups, bias)
            .map_err(|e| explain(checkpoint, name, n, &self.qweight, e))
    }

    fn warn(&self, message: &str) {
        self.checkpoint.warnings.about(WarningKind::Tensors, message, self.name);
    }
}

/// Names the file and the tensor behind a matrix that does not fit together.
fn explain(checkpoint: &Checkpoint, module: &str, n: usize, qweight: &Tensor<'_>, error: TensorError) -> FormatError {
    let (part, expected, found) = match error {
        TensorError::Length { part, expected, found } => (part, format!("{expected} elements"), format!("{found}")),
        TensorError::Value { part, index, expected, found } => {
            let place = if matches!(part, "scales" | "zeros") { format!("[{}, {}]", index / n, index % n) } else { format!("[{index}]") };
            (part, expected, format!("{found} at {place}"))
        }
        TensorError::Size { what, expected, found } => (what, expected, found),
    };
    let suffix = match part {
        "scales" | "bias" | "g_idx" => part,
        "zeros" => "qzeros",
        _ => "qweight",
    };
    match checkpoint.find(&format!("{module}.{suffix}")) {
        Some(tensor) => tensor.wrong(expected, found, crate::error::DAMAGED),
        None => qweight.wrong(expected, found, crate::error::DAMAGED),
    }
}

/// The size of a module nobody told us the size of.
fn infer(qweight: &Tensor<'_>, g_idx: Option<&Tensor<'_>>, scheme: &Scheme) -> Result<(usize, usize), FormatError> {
    let [rows, n] = qweight.info.shape[..] else {
        return Err(qweight.wrong("two dimensions", format!("shape {:?}", qweight.info.shape), SIZES));
    };
    let k = match g_idx.map(|t| t.info.shape.as_slice()) {
        Some([k]) => *k,
        _ => (rows as u128 * 32 / u128::from(scheme.bits)) as usize,
    };
    Ok((k, n))
}

fn check_codes(qweight: &Tensor<'_>, scheme: &Scheme, k: usize, n: usize) -> Result<(), FormatError> {
    let packing = scheme.packing();
    let rows = packing.words(scheme.bits, k);
    let shape = qweight.info.shape.as_slice();
    if shape == [rows, n] {
        return Ok(());
    }
    let other = match shape {
        [found, cols] if *cols == n => (2..=8).find(|&bits| packing.words(bits, k) == *found),
        _ => None,
    };
    let hint = other.map(|bits| format!(", which would be {bits} bit")).unwrap_or_default();
    let expected = format!("shape [{rows}, {n}] ({} bit codes of a [{k}, {n}] weight)", scheme.bits);
    Err(qweight.wrong(expected, format!("shape {shape:?}{hint}"), SIZES))
}

/// `g_idx` as groups below `count`. Negative entries count from the end, as some writers leave them.
fn read_index(tensor: &Tensor<'_>, k: usize, count: usize) -> Result<Vec<u32>, FormatError> {
    tensor.check_dtype(&[DType::I32, DType::I64])?;
    if tensor.info.shape != [k] {
        return Err(tensor.wrong(format!("shape [{k}]"), format!("shape {:?}", tensor.info.shape), SIZES));
    }
    let values: Vec<i64> = if tensor.info.dtype == DType::I64 {
        tensor.read_elements(i64::from_le)?
    } else {
        tensor.read_elements(i32::from_le)?.into_iter().map(i64::from).collect()
    };
    let group = |(row, value): (usize, i64)| {
        let g = if value < 0 { value.saturating_add_unsigned(count as u64) } else { value };
        let inside = usize::try_from(g).is_ok_and(|g| g < count);
        u32::try_from(g).ok().filter(|_| inside).ok_or_else(|| {
            let remedy = "the file is damaged, or its scales are those of another group size; download or write it again";
            tensor.wrong(format!("groups below {count}, the rows of scales"), format!("{value} at [{row}]"), remedy)
        })
    };
    values.into_iter().enumerate().map(group).collect()
}

fn read_scales(tensor: &Tensor<'_>) -> Result<ScaleValues, FormatError> {
    Ok(match tensor.info.dtype {
        DType::F16 => ScaleValues::F16(tensor.read_elements(|v: f16| f16::from_bits(u16::from_le(v.to_bits())))?),
        DType::BF16 => ScaleValues::BF16(tensor.read_elements(|v: bf16| bf16::from_bits(u16::from_le(v.to_bits())))?),
        _ => ScaleValues::F32(tensor.read_elements(|v: f32| f32::from_bits(u32::from_le(v.to_bits())))?),
    })
}
