//! One quantized module, whatever its layout: its tensors, found and checked, and the matrix that they make.

use crate::checkpoint::{Checkpoint, Tensor};
use crate::dialect::{Decoded, ZeroDialect};
use crate::marlin::checkpoint as marlin;
use crate::warning::WarningKind;
use crate::{CheckpointFormat, FormatError, QuantConfig, Scheme, awq, compressed, gptq};
use billfish_tensor::{Codes, DType, Groups, Packing, QuantMatrix, ScaleValues, TensorError, Zeros};
use half::{bf16, f16};

/// Remedy when sizes do not fit together.
pub(crate) const SIZES: &str =
    "check bits, group_size and the rules of the quantization config against the tensors, or download the shard again";

/// How the codes of a module are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Words of this many bits down the rows.
    Gptq(u32),
    /// 32-bit words along the columns, eight columns interleaved in each.
    Awq,
    /// Each output's codes in words of their own, and its zero points too; scales in rows that end in padding.
    AwqGemv,
    /// 16-bit words of four rows that are interleaved, zero points as floats.
    AwqFast,
    /// Tiles for tensor cores.
    Marlin,
    /// Each output's codes in words of their own: one bit stream.
    Stream,
    /// The same, with as many whole codes in a word as fit and the rest of it unused.
    Padded,
    /// Signed bytes, `[N, K]`.
    Bytes,
    /// Codes that are not integers.
    Floats,
}

impl Layout {
    /// Whether rows of tensors are outputs, so that scales stand `[N, groups]`.
    pub(crate) fn outputs_first(self) -> bool {
        !matches!(self, Layout::Gptq(_) | Layout::Awq | Layout::AwqFast | Layout::Marlin)
    }
}

/// A module whose tensors have been found and whose shapes fit together.
pub(crate) struct Module<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) config: &'a QuantConfig,
    pub(crate) name: &'a str,
    pub(crate) scheme: Scheme,
    pub(crate) layout: Layout,
    pub(crate) k: usize,
    pub(crate) n: usize,
    pub(crate) codes: Tensor<'a>,
    pub(crate) zeros: Option<Tensor<'a>>,
    pub(crate) scales: Tensor<'a>,
    pub(crate) g_idx: Option<Tensor<'a>>,
    /// Tensors that hold no number of the weight: its shape, scales of activations.
    pub(crate) others: Vec<Tensor<'a>>,
    pub(crate) count: usize,
    pub(crate) groups: Groups,
}

impl<'a> Module<'a> {
    /// Finds module `name`, of `[k, n]` (read off the tensors when `None`), and checks every shape and type.
    pub(crate) fn find(checkpoint: &'a Checkpoint, name: &'a str, size: Option<(usize, usize)>) -> Result<Self, FormatError> {
        let Some(config) = checkpoint.quantization() else {
            let codes = checkpoint.codes_of(name)?;
            let remedy = "add quantize_config.json, or `quantization_config` in config.json, with bits and group_size";
            return Err(codes.wrong("a quantization config beside a quantized tensor", "none", remedy));
        };
        let mut scheme = config.scheme(name)?;
        match scheme.format {
            said if marlin::holds(checkpoint, said, name) => marlin::find(checkpoint, config, name, scheme, size),
            CheckpointFormat::Gptq | CheckpointFormat::GptqV2 | CheckpointFormat::GptqP => {
                gptq::find(checkpoint, config, name, scheme, size)
            }
            CheckpointFormat::Marlin => {
                scheme.format = CheckpointFormat::Gptq;
                let module = gptq::find(checkpoint, config, name, scheme, size)?;
                module.warn("the config says marlin, but the tensors are gptq: they are followed");
                Ok(module)
            }
            CheckpointFormat::AwqGemm | CheckpointFormat::AwqGemv | CheckpointFormat::AwqFast => {
                awq::find(checkpoint, config, name, scheme, size)
            }
            _ => compressed::find(checkpoint, config, name, scheme, size),
        }
    }

    /// Reads `g_idx` and keeps it only when it says more than `k / group_size`.
    pub(crate) fn find_groups(&mut self) -> Result<(), FormatError> {
        let (groups, remark) = self.grouping()?;
        remark.iter().for_each(|remark| self.warn(remark));
        self.groups = groups;
        Ok(())
    }

    /// The group of every row, and what is odd about it.
    pub(crate) fn grouping(&self) -> Result<(Groups, Option<String>), FormatError> {
        let Scheme { group_size, desc_act, .. } = self.scheme;
        let (size, count) = (group_size.rows(self.k), self.count);
        let expected = self.k.div_ceil(size);
        let index = match &self.g_idx {
            Some(tensor) => Some(read_index(tensor, self.k, count)?),
            None => None,
        };
        let key = if self.layout.outputs_first() { "actorder" } else { "desc_act" };
        let contiguous = Groups::Contiguous { size };
        match index {
            Some(index) if count != expected || index.iter().enumerate().any(|(k, &g)| g as usize != k / size) => {
                let odd = format!("`{key}` is not set, but `g_idx` reorders the rows or groups them otherwise: `g_idx` is followed");
                Ok((Groups::Index { g_idx: index, count }, (!desc_act).then_some(odd)))
            }
            _ if count != expected => Err(self.wrong_scales(expected)),
            None if desc_act => {
                Ok((contiguous, Some(format!("`{key}` is set, but there is no `g_idx`: rows are grouped in the order they stand"))))
            }
            _ => Ok((contiguous, None)),
        }
    }

    fn wrong_scales(&self, expected: usize) -> FormatError {
        let shape = if self.layout.outputs_first() { [self.n, expected] } else { [expected, self.n] };
        let expected = format!("shape {shape:?} (group_size {})", self.scheme.group_size);
        self.scales.wrong(expected, format!("shape {:?}", self.scales.info.shape), SIZES)
    }

    /// True zero points and how they were stored.
    pub(crate) fn zero_points(&self) -> Result<Decoded, FormatError> {
        let decoded = match (&self.zeros, self.layout) {
            (Some(tensor), Layout::Gptq(width)) => gptq::zeros(self, tensor, width)?,
            (Some(tensor), Layout::Awq | Layout::AwqGemv) => self.plain(awq::zeros(self, tensor)?, ZeroDialect::V2),
            (Some(tensor), Layout::AwqFast) => self.plain(awq::zeros(self, tensor)?, ZeroDialect::Scaled),
            (Some(tensor), _) => self.plain(compressed::zeros(self, tensor)?, ZeroDialect::V2),
            (None, _) => Decoded::plain(Zeros::Midpoint, ZeroDialect::Absent, "symmetric, none stored", vec![]),
        };
        decoded.warnings.iter().for_each(|w| self.warn(w));
        Ok(decoded)
    }

    /// Zero points of a format that stores them in one way only.
    fn plain(&self, zeros: Vec<u16>, dialect: ZeroDialect) -> Decoded {
        let midpoint = 1 << (self.scheme.bits - 1);
        let all = zeros.iter().all(|&z| z == midpoint);
        let odd = "the config calls the module symmetric, but its zero points are not the midpoint: the stored ones are used";
        let warnings = if self.scheme.sym && !all { vec![odd.into()] } else { vec![] };
        let zeros = if all { Zeros::Midpoint } else { Zeros::PerGroup(zeros) };
        Decoded::plain(zeros, dialect, "the format has no other", warnings)
    }

    /// An error if the module is of a format that is not read.
    pub(crate) fn check_readable(&self) -> Result<(), FormatError> {
        let Some(why) = self.refusal() else { return Ok(()) };
        let expected = "weights as integer codes (GPTQ, AWQ, marlin, compressed-tensors pack-quantized or int-quantized)";
        Err(self.codes.wrong(expected, why, "use a checkpoint of the model in one of these formats, or the dense original"))
    }

    /// Reads everything.
    pub(crate) fn read(self, bias: Option<Vec<f32>>) -> Result<QuantMatrix, FormatError> {
        self.check_readable()?;
        let decoded = self.zero_points()?;
        self.read_with(decoded, bias)
    }

    /// Reads everything but the zero points, which are these.
    pub(crate) fn read_with(self, decoded: Decoded, bias: Option<Vec<f32>>) -> Result<QuantMatrix, FormatError> {
        let Decoded { zeros, refusal, .. } = decoded;
        if let Some(why) = refusal {
            let remedy = "quantize the model again or use another checkpoint of it; `--zeros v1` reads the lost ones as 2^bits";
            return Err(self.zeros.as_ref().unwrap_or(&self.codes).wrong("v1 zero points, each in its own bits", why, remedy));
        }
        let scales = self.read_scales()?;
        let codes = match self.layout {
            Layout::Gptq(width) => gptq::codes(&self, width)?,
            Layout::Awq | Layout::AwqGemv | Layout::AwqFast => awq::codes(&self)?,
            Layout::Marlin => marlin::codes(&self)?,
            _ => compressed::codes(&self)?,
        };
        for tensor in [&self.codes, &self.scales].into_iter().chain(&self.zeros).chain(&self.g_idx).chain(&self.others) {
            tensor.mark_read();
        }
        let groups = self.groups.clone();
        let matrix = QuantMatrix::new(self.k, self.n, self.scheme.bits, codes, scales, zeros, groups, bias).map_err(|e| self.explain(e))?;
        Ok(matrix.with_activation_scale(self.scheme.activation_scale))
    }

    /// Why the module is not read, if it is not.
    pub(crate) fn refusal(&self) -> Option<String> {
        (self.layout == Layout::Floats).then(|| format!("{} weights", self.scheme.format.name()))
    }

    /// How the codes are packed once read.
    pub(crate) fn packing(&self) -> Packing {
        self.scheme.packing()
    }

    pub(crate) fn warn(&self, message: &str) {
        self.checkpoint.warnings.about(WarningKind::Tensors, message, self.name);
    }

    /// Scales as `[groups, N]`.
    pub(crate) fn read_scales(&self) -> Result<ScaleValues, FormatError> {
        let len = self.n * self.count;
        Ok(match read_scales(&self.scales)? {
            scales if matches!(self.layout, Layout::Gptq(_) | Layout::Awq) => scales,
            ScaleValues::F16(v) => ScaleValues::F16((0..len).map(|i| v[self.scale_place(i)]).collect()),
            ScaleValues::BF16(v) => ScaleValues::BF16((0..len).map(|i| v[self.scale_place(i)]).collect()),
            ScaleValues::F32(v) => ScaleValues::F32((0..len).map(|i| v[self.scale_place(i)]).collect()),
        })
    }

    /// Where scale `i` of `[groups, N]` is stored.
    fn scale_place(&self, i: usize) -> usize {
        match (self.layout, &self.scales.info.shape[..]) {
            (Layout::Marlin, _) => marlin::scale_place(self, i),
            (layout, _) if !layout.outputs_first() => i,
            // One scale of the whole matrix is spread over its columns.
            (_, shape) if shape.iter().product::<usize>() == 1 => 0,
            (_, [_, columns]) => i % self.n * columns + i / self.n,
            _ => i,
        }
    }

    /// Names the file and the tensor behind a matrix that does not fit together.
    fn explain(&self, error: TensorError) -> FormatError {
        let (n, turn) = (self.n, self.layout.outputs_first());
        let (part, expected, found) = match error {
            TensorError::Length { part, expected, found } => (part, format!("{expected} elements"), format!("{found}")),
            TensorError::Value { part, index, expected, found } => {
                let stored = self.scale_place(if part == "scales" { index } else { 0 });
                let place = match (part, &self.scales.info.shape[..], turn) {
                    ("scales", [_, columns], _) if self.scales.info.bytes > self.scales.info.dtype.size() => {
                        format!("[{}, {}]", stored / columns, stored % columns)
                    }
                    ("scales", ..) => format!("[{stored}]"),
                    ("zeros", _, true) => format!("[{}, {}]", index % n, index / n),
                    ("zeros", _, false) => format!("[{}, {}]", index / n, index % n),
                    _ => format!("[{index}]"),
                };
                (part, expected, format!("{found} at {place}"))
            }
            TensorError::Size { what, expected, found } => (what, expected, found),
        };
        let bias = self.checkpoint.find(&format!("{}.bias", self.name));
        let tensor = match part {
            "scales" => Some(&self.scales),
            "zeros" => self.zeros.as_ref(),
            "g_idx" => self.g_idx.as_ref(),
            "bias" => bias.as_ref(),
            _ => None,
        };
        tensor.unwrap_or(&self.codes).wrong(expected, found, crate::error::DAMAGED)
    }
}

/// Checks the size that codes are to be read for.
pub(crate) fn check_size(codes: &Tensor<'_>, k: usize, n: usize) -> Result<(), FormatError> {
    if k == 0 || n == 0 {
        return Err(codes.wrong("at least one row and one column", format!("[{k}, {n}]"), SIZES));
    }
    Ok(())
}

/// The two dimensions of a tensor.
pub(crate) fn two_dimensions(tensor: &Tensor<'_>) -> Result<[usize; 2], FormatError> {
    match tensor.info.shape[..] {
        [a, b] => Ok([a, b]),
        _ => Err(tensor.wrong("two dimensions", format!("shape {:?}", tensor.info.shape), SIZES)),
    }
}

/// An error about the shape of a tensor.
pub(crate) fn wrong_shape(tensor: &Tensor<'_>, expected: &[usize], why: &str) -> FormatError {
    tensor.wrong(format!("shape {expected:?} ({why})"), format!("shape {:?}", tensor.info.shape), SIZES)
}

/// The types that scales may have.
pub(crate) const SCALES: [DType; 3] = [DType::F16, DType::BF16, DType::F32];

/// The reading of words of `[rows, words]` as fields along each row: `[rows, n]`.
pub(crate) fn fields(words: &[u32], n: usize, bits: u32, packing: Packing) -> Vec<u8> {
    let per_row = packing.words(bits, n);
    let mut out = vec![0; words.len() / per_row * n];
    for (row, words) in out.chunks_exact_mut(n).zip(words.chunks_exact(per_row)) {
        for (i, run) in row.chunks_mut(32).enumerate() {
            packing.unpack_run(bits, run, |j| words[i * bits as usize + j]);
        }
    }
    out
}

/// Codes whose words are already as the vocabulary has them.
pub(crate) fn words(words: Vec<u32>, packing: Packing) -> Codes {
    Codes::Words { words, packing }
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
            tensor.wrong(format!("groups below {count}, the number of scales a column has"), format!("{value} at [{row}]"), remedy)
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
