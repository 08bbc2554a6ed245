//! The AWQ gemm layout: `qweight` `[K, N/8]` and `qzeros` `[groups, N/8]`, eight interleaved columns in a word, `scales`
//! `[groups, N]`. Zero points are stored as they are.

use crate::checkpoint::{Checkpoint, Tensor};
use crate::module::{Layout, Module, SCALES, check_size, two_dimensions, words, wrong_shape};
use crate::strips;
use crate::{FormatError, QuantConfig, Scheme};
use billfish_tensor::{Codes, DType, Groups, Packing};

/// Finds a module's tensors and checks every shape and type.
pub(crate) fn find<'a>(
    checkpoint: &'a Checkpoint,
    config: &'a QuantConfig,
    name: &'a str,
    scheme: Scheme,
    size: Option<(usize, usize)>,
) -> Result<Module<'a>, FormatError> {
    let qweight = checkpoint.need(&format!("{name}.qweight"))?;
    let qzeros = checkpoint.need(&format!("{name}.qzeros"))?;
    let scales = checkpoint.need(&format!("{name}.scales"))?;
    let g_idx = checkpoint.find(&format!("{name}.g_idx"));
    for tensor in [&qweight, &qzeros] {
        tensor.check_dtype(&[DType::I32, DType::U32])?;
    }
    scales.check_dtype(&SCALES)?;
    if scheme.bits != 4 {
        let remedy = "correct the rule of the quantization config that names the module";
        return Err(qweight.wrong("4 bit in the awq gemm layout", format!("{} bit in the quantization config", scheme.bits), remedy));
    }
    let (k, n) = match size {
        Some(size) => size,
        None => two_dimensions(&qweight).map(|[k, words]| (k, words.saturating_mul(8)))?,
    };
    check_size(&qweight, k, n)?;
    if !n.is_multiple_of(8) || qweight.info.shape != [k, n / 8] {
        let why = format!("eight 4-bit codes in a word of a [{k}, {n}] weight");
        return Err(wrong_shape(&qweight, &[k, n.div_ceil(8)], &why));
    }
    let group_size = scheme.group_size;
    let count = scales.rows_of(n).ok_or_else(|| {
        let groups = k.div_ceil(group_size.rows(k));
        wrong_shape(&scales, &[groups, n], &format!("group_size {group_size}"))
    })?;
    if qzeros.info.shape != [count, n / 8] {
        return Err(wrong_shape(&qzeros, &[count, n / 8], &format!("{count} groups")));
    }
    let (layout, groups) = (Layout::Awq, Groups::Contiguous { size: k });
    let (codes, zeros) = (qweight, Some(qzeros));
    let mut module = Module { checkpoint, config, name, scheme, layout, k, n, codes, zeros, scales, g_idx, others: vec![], count, groups };
    module.find_groups()?;
    Ok(module)
}

/// Zero points, `[groups, N]`.
pub(crate) fn zeros(module: &Module<'_>, tensor: &Tensor<'_>) -> Result<Vec<u16>, FormatError> {
    let words = tensor.read_u32()?;
    debug_assert_eq!(words.len() * 8, module.count * module.n);
    Ok(words.iter().flat_map(|w| strips::AWQ_NIBBLE.map(|nibble| (w >> (4 * nibble) & 15) as u16)).collect())
}

/// The codes, turned so that they run down the rows.
pub(crate) fn codes(module: &Module<'_>) -> Result<Codes, FormatError> {
    let n = module.n;
    let mut out = vec![0; Packing::Continuous.words(4, module.k) * n];
    module.codes.read_strips(n / 2, 8, |row, bytes| strips::deinterleaved(bytes, row, n, &mut out))?;
    Ok(words(out, Packing::Continuous))
}
