//! The GPTQ layout: `qweight`, `qzeros`, `scales`, perhaps `g_idx`. Codes run down the rows in words of 32 bits, as in the
//! vocabulary; a few writers use words of 8, 16 or 64 bits, filled in the same order.

use crate::checkpoint::{Checkpoint, Tensor};
use crate::dialect::{self, Clues, Decoded, Shown, Stored};
use crate::module::{Layout, Module, SCALES, SIZES, check_size, fields, two_dimensions, words, wrong_shape};
use crate::statistic::Sample;
use crate::strips;
use crate::{CheckpointFormat, FormatError, GroupSize, QuantConfig, Scheme};
use billfish_tensor::{Codes, DType, Groups, Packing};

/// Finds a module's tensors and checks every shape and type.
pub(crate) fn find<'a>(
    checkpoint: &'a Checkpoint,
    config: &'a QuantConfig,
    name: &'a str,
    scheme: Scheme,
    size: Option<(usize, usize)>,
) -> Result<Module<'a>, FormatError> {
    let (mut module, width) = locate(checkpoint, config, name, scheme, size)?;
    if let Some(said) = config.pack_dtype.filter(|said| *said != width) {
        module.warn(&format!("`pack_dtype` is int{said}, but the words have {width} bits: the tensors are followed"));
    }
    module.find_groups()?;
    Ok(module)
}

/// The same without a word about what is odd, and without the groups. Also bits of a word.
fn locate<'a>(
    checkpoint: &'a Checkpoint,
    config: &'a QuantConfig,
    name: &'a str,
    scheme: Scheme,
    size: Option<(usize, usize)>,
) -> Result<(Module<'a>, u32), FormatError> {
    let qweight = checkpoint.need(&format!("{name}.qweight"))?;
    let qzeros = checkpoint.need(&format!("{name}.qzeros"))?;
    let scales = checkpoint.need(&format!("{name}.scales"))?;
    let g_idx = checkpoint.find(&format!("{name}.g_idx"));
    let Scheme { bits, group_size, .. } = scheme;
    let width = width_of(&qweight, bits)?;
    if width_of(&qzeros, bits)? != width {
        let expected = format!("words of {width} bits, as in `{}`", qweight.name);
        return Err(qzeros.wrong(expected, format!("dtype {}", qzeros.info.dtype), crate::error::DAMAGED));
    }
    scales.check_dtype(&SCALES)?;
    let (k, n) = match size {
        Some(size) => size,
        None => infer(&qweight, &scales, g_idx.as_ref(), &scheme, width)?,
    };
    check_size(&qweight, k, n)?;
    check_codes(&qweight, &scheme, width, k, n)?;
    let count = scales.rows_of(n).ok_or_else(|| {
        let groups = k.div_ceil(group_size.rows(k));
        wrong_shape(&scales, &[groups, n], &format!("group_size {group_size}"))
    })?;
    let zero_words = count_of(scheme.packing(), bits, width, n);
    if qzeros.info.shape != [count, zero_words] {
        return Err(wrong_shape(&qzeros, &[count, zero_words], &format!("{bits} bit, {count} groups")));
    }
    let (layout, groups) = (Layout::Gptq(width), Groups::Contiguous { size: k });
    let (codes, zeros) = (qweight, Some(qzeros));
    Ok((Module { checkpoint, config, name, scheme, layout, k, n, codes, zeros, scales, g_idx, others: vec![], count, groups }, width))
}

/// Bits of a word of packed codes. Codes that cross words exist in words of 32 bits only.
fn width_of(tensor: &Tensor<'_>, bits: u32) -> Result<u32, FormatError> {
    match tensor.info.dtype {
        DType::I8 | DType::U8 if bits.is_power_of_two() => Ok(8),
        DType::I16 | DType::U16 if bits.is_power_of_two() => Ok(16),
        DType::I64 | DType::U64 if bits.is_power_of_two() => Ok(64),
        _ => tensor.check_dtype(&[DType::I32, DType::U32]).map(|()| 32),
    }
}

/// Words of `width` bits that hold `count` codes.
fn count_of(packing: Packing, bits: u32, width: u32, count: usize) -> usize {
    if width == 32 { packing.words(bits, count) } else { count.div_ceil((width / bits) as usize) }
}

/// The size of a module nobody told us the size of. Without a `g_idx` the last word may end in padding: K is what the groups
/// come to, if that is so many words.
fn infer(
    qweight: &Tensor<'_>,
    scales: &Tensor<'_>,
    g_idx: Option<&Tensor<'_>>,
    scheme: &Scheme,
    width: u32,
) -> Result<(usize, usize), FormatError> {
    let [rows, n] = two_dimensions(qweight)?;
    if let Some([k]) = g_idx.map(|t| t.info.shape.as_slice()) {
        return Ok((*k, n));
    }
    let full = (rows as u128 * u128::from(width) / u128::from(scheme.bits)) as usize;
    let of_groups = match (scheme.group_size, scales.rows_of(n)) {
        (GroupSize::Rows(size), Some(count)) => count.checked_mul(size).filter(|&k| k > 0 && k < full),
        _ => None,
    };
    let k = of_groups.filter(|&k| count_of(scheme.packing(), scheme.bits, width, k) == rows);
    Ok((k.unwrap_or(full), n))
}

fn check_codes(qweight: &Tensor<'_>, scheme: &Scheme, width: u32, k: usize, n: usize) -> Result<(), FormatError> {
    let (packing, bits) = (scheme.packing(), scheme.bits);
    let rows = count_of(packing, bits, width, k);
    let shape = qweight.info.shape.as_slice();
    if shape == [rows, n] {
        return Ok(());
    }
    let other = match shape {
        [found, cols] if *cols == n && width == 32 => (2..=8).find(|&bits| packing.words(bits, k) == *found),
        _ => None,
    };
    let hint = other.map(|bits| format!(", which would be {bits} bit")).unwrap_or_default();
    let expected = format!("shape [{rows}, {n}] ({bits} bit codes of a [{k}, {n}] weight)");
    Err(qweight.wrong(expected, format!("shape {shape:?}{hint}"), SIZES))
}

/// Runs of 32 rows that are looked at to tell the dialect of a module.
const RUNS: usize = 8;
/// The same where some stored zero points are all ones: those of just their groups tell what they mean.
const RUNS_OF_WRAPPED: usize = 32;

/// True zero points and the dialect they were stored in.
pub(crate) fn zeros(module: &Module<'_>, tensor: &Tensor<'_>, width: u32) -> Result<Decoded, FormatError> {
    if module.scheme.format == CheckpointFormat::GptqP && module.config.forced_zeros.is_some() {
        module.warn("planar zero points have one reading: the one that the caller asks for does not apply");
    }
    with_clues(module, tensor, width, dialect::decode)
}

/// What a module shows of its dialect by itself, without a word about what is odd.
pub(crate) fn shown(checkpoint: &Checkpoint, config: &QuantConfig, name: &str, scheme: Scheme) -> Result<Shown, FormatError> {
    let (mut module, width) = locate(checkpoint, config, name, scheme, None)?;
    module.groups = module.grouping()?.0;
    match &module.zeros {
        Some(tensor) => with_clues(&module, tensor, width, dialect::shown),
        None => Ok(Shown::default()),
    }
}

fn with_clues<T>(
    module: &Module<'_>,
    tensor: &Tensor<'_>,
    width: u32,
    find: impl Fn(&Stored<'_>, &Clues<'_>) -> Result<T, FormatError>,
) -> Result<T, FormatError> {
    let Scheme { bits, sym, format, .. } = module.scheme;
    let (n, packing) = (module.n, module.packing());
    let words = if width == 32 {
        tensor.read_u32()?
    } else {
        let mut bytes = vec![0; tensor.info.bytes];
        tensor.read_bytes(&mut bytes)?;
        strips::widened(&bytes, module.count, packing.words(bits, n))
    };
    let QuantConfig { writer, forced_zeros, .. } = module.config;
    // widths that exist in the planar layout only have one reading, in a folder of any format
    let forced = forced_zeros.filter(|_| format != CheckpointFormat::GptqP);
    let wrapped = fields(&words, n, bits, packing).contains(&(u8::MAX >> (8 - bits)));
    let sample = || sample(module, width, if wrapped { RUNS_OF_WRAPPED } else { RUNS });
    let folder = || module.checkpoint.ballot(bits);
    let clues = Clues { sym, format, writer: writer.as_ref(), sample: &sample, folder: &folder, forced };
    find(&Stored { words: &words, n, bits, packing, width }, &clues)
}

/// Some runs of 32 rows of a module's codes, spread evenly over it.
fn sample(module: &Module<'_>, width: u32, runs: usize) -> Result<Sample, FormatError> {
    let (k, n, bits) = (module.k, module.n, module.scheme.bits);
    let mut sample = Sample::new(bits, module.count, n);
    // a run is as many bytes in words of every width
    let mut bytes = vec![0; bits as usize * n * 4];
    let mut codes = vec![0; 32 * n];
    for run in (0..k / 32).step_by((k / 32).div_ceil(runs).max(1)) {
        module.codes.read_range(run * bytes.len(), &mut bytes)?;
        let mut run_words = vec![0; bits as usize * n];
        if width == 32 {
            run_words.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(w, b)| *w = u32::from_le_bytes(*b));
        } else {
            strips::joined(&bytes, 0, n, width as usize / 8, &mut run_words);
        }
        words(run_words, module.packing()).unpack_rows(bits, n, 0, 0..n, &mut codes);
        for (i, row) in codes.chunks_exact(n).enumerate() {
            let group = match &module.groups {
                Groups::Contiguous { size } => (run * 32 + i) / size,
                Groups::Index { g_idx, .. } => g_idx[run * 32 + i] as usize,
            };
            sample.add(group, row);
        }
    }
    Ok(sample)
}

/// The codes, whose words are the file's own unless they are not 32 bits wide.
pub(crate) fn codes(module: &Module<'_>, width: u32) -> Result<Codes, FormatError> {
    let packing = module.packing();
    if width == 32 {
        return Ok(words(module.codes.read_codes(&module.checkpoint.spare)?, packing));
    }
    let n = module.n;
    let mut out = vec![0; packing.words(module.scheme.bits, module.k) * n];
    let size = width as usize / 8;
    module.codes.read_strips(n * size, 1, |row, bytes| strips::joined(bytes, row, n, size, &mut out))?;
    Ok(words(out, packing))
}
