//! The AWQ layouts. The gemm one is here: `qweight` `[K, N/8]` and `qzeros` `[groups, N/8]`, eight interleaved columns in a
//! word, `scales` `[groups, N]`. Zero points are stored as they are.

mod fast;
mod gemv;

use crate::checkpoint::{Checkpoint, Tensor};
use crate::module::{Layout, Module, SCALES, check_size, two_dimensions, words, wrong_shape};
use crate::strips;
use crate::{CheckpointFormat, FormatError, GroupSize, QuantConfig, Scheme};
use billfish_tensor::{Codes, DType, Groups, Packing};

/// What the layouts have in common, for the function that knows one of them.
struct Parts<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a QuantConfig,
    name: &'a str,
    scheme: Scheme,
    qweight: Tensor<'a>,
    scales: Tensor<'a>,
}

impl<'a> Parts<'a> {
    /// The module of `[k, n]` in `count` groups.
    fn module(self, layout: Layout, [k, n]: [usize; 2], zeros: Tensor<'a>, count: usize) -> Result<Module<'a>, FormatError> {
        let Parts { checkpoint, config, name, scheme, qweight, scales } = self;
        let (codes, zeros, groups) = (qweight, Some(zeros), Groups::Contiguous { size: k });
        let g_idx = checkpoint.find(&format!("{name}.g_idx"));
        let mut module =
            Module { checkpoint, config, name, scheme, layout, k, n, codes, zeros, scales, g_idx, others: vec![], count, groups };
        module.find_groups()?;
        Ok(module)
    }
}

/// Finds a module's tensors and checks every shape and type. The tensors say which of the layouts it is.
pub(crate) fn find<'a>(
    checkpoint: &'a Checkpoint,
    config: &'a QuantConfig,
    name: &'a str,
    mut scheme: Scheme,
    size: Option<(usize, usize)>,
) -> Result<Module<'a>, FormatError> {
    let qweight = checkpoint.need(&format!("{name}.qweight"))?;
    let scales = checkpoint.need(&format!("{name}.scales"))?;
    let said = scheme.format;
    scheme.format = format_of(&qweight, &scales, &scheme);
    if scheme.bits != 4 {
        let expected = format!("4 bit in the {} layout", scheme.format.name());
        let remedy = "correct the rule of the quantization config that names the module";
        return Err(qweight.wrong(expected, format!("{} bit in the quantization config", scheme.bits), remedy));
    }
    let found = scheme.format;
    let parts = Parts { checkpoint, config, name, scheme, qweight, scales };
    let module = match found {
        CheckpointFormat::AwqGemv => gemv::find(parts, size)?,
        CheckpointFormat::AwqFast => fast::find(parts, size)?,
        _ => gemm(parts, size)?,
    };
    if said != found {
        module.warn(&format!("the config says {}, but the tensors are {}: they are followed", said.name(), found.name()));
    }
    Ok(module)
}

/// Which layout the tensors have. The shapes fit two only with groups of one row, or none: then the config decides.
fn format_of(qweight: &Tensor<'_>, scales: &Tensor<'_>, scheme: &Scheme) -> CheckpointFormat {
    match (&qweight.info.shape[..], &scales.info.shape[..]) {
        _ if matches!(qweight.info.dtype, DType::I16 | DType::U16) => CheckpointFormat::AwqFast,
        ([_, words], [_, n]) if *n == words.saturating_mul(8) && scheme.group_size != GroupSize::Rows(1) => CheckpointFormat::AwqGemm,
        ([n, _], [outputs, _]) if n == outputs && scheme.group_size != GroupSize::Rows(1) => CheckpointFormat::AwqGemv,
        _ if scheme.format == CheckpointFormat::AwqGemv => CheckpointFormat::AwqGemv,
        _ => CheckpointFormat::AwqGemm,
    }
}

fn gemm<'a>(parts: Parts<'a>, size: Option<(usize, usize)>) -> Result<Module<'a>, FormatError> {
    let Parts { qweight, scales, .. } = &parts;
    let qzeros = parts.checkpoint.need(&format!("{}.qzeros", parts.name))?;
    for tensor in [qweight, &qzeros] {
        tensor.check_dtype(&[DType::I32, DType::U32])?;
    }
    scales.check_dtype(&SCALES)?;
    let (k, n) = match size {
        Some(size) => size,
        None => two_dimensions(qweight).map(|[k, words]| (k, words.saturating_mul(8)))?,
    };
    check_size(qweight, k, n)?;
    if !n.is_multiple_of(8) || qweight.info.shape != [k, n / 8] {
        let why = format!("eight 4-bit codes in a word of a [{k}, {n}] weight");
        return Err(wrong_shape(qweight, &[k, n.div_ceil(8)], &why));
    }
    let group_size = parts.scheme.group_size;
    let count = scales.rows_of(n).ok_or_else(|| {
        let groups = k.div_ceil(group_size.rows(k));
        wrong_shape(scales, &[groups, n], &format!("group_size {group_size}"))
    })?;
    if qzeros.info.shape != [count, n / 8] {
        return Err(wrong_shape(&qzeros, &[count, n / 8], &format!("{count} groups")));
    }
    parts.module(Layout::Awq, [k, n], qzeros, count)
}

/// Zero points, `[groups, N]`.
pub(crate) fn zeros(module: &Module<'_>, tensor: &Tensor<'_>) -> Result<Vec<u16>, FormatError> {
    match module.layout {
        Layout::AwqGemv => gemv::zeros(module, tensor),
        Layout::AwqFast => fast::zeros(module, tensor),
        _ => {
            let words = tensor.read_u32()?;
            debug_assert_eq!(words.len() * 8, module.count * module.n);
            Ok(words.iter().flat_map(|w| strips::AWQ_NIBBLE.map(|nibble| (w >> (4 * nibble) & 15) as u16)).collect())
        }
    }
}

/// The codes, turned so that they run down the rows.
pub(crate) fn codes(module: &Module<'_>) -> Result<Codes, FormatError> {
    let (k, n) = (module.k, module.n);
    let mut out = vec![0; Packing::Continuous.words(4, k) * n];
    match module.layout {
        Layout::AwqGemv => module.codes.read_strips(k / 2, 1, |row, bytes| strips::turned(bytes, row, k / 8, n, &mut out))?,
        Layout::AwqFast => module.codes.read_strips(2 * k, 1, |row, bytes| strips::quads(bytes, row, k, n, &mut out))?,
        _ => module.codes.read_strips(n / 2, 8, |row, bytes| strips::deinterleaved(bytes, row, n, &mut out))?,
    }
    Ok(words(out, Packing::Continuous))
}

/// Words of zero points that a row of AutoAWQ's padded layouts has for `k / group` groups.
fn padded_words(scales: &Tensor<'_>, k: usize, group_size: GroupSize) -> Result<usize, FormatError> {
    let rows = group_size.rows(k);
    let multiple = match rows {
        128.. => 1,
        64 => 2,
        32 => 4,
        _ => 0,
    };
    if multiple == 0 || !k.is_multiple_of(rows) {
        let expected = "groups of 32, 64 or at least 128 rows that fill the columns, as the layout has no others";
        return Err(scales.wrong(expected, format!("group_size {group_size} for {k} rows"), crate::module::SIZES));
    }
    Ok((k / rows).div_ceil(8).next_multiple_of(multiple))
}
