//! compressed-tensors: `weight_packed` (or `weight` as signed bytes), `weight_scale`, perhaps `weight_zero_point`,
//! `weight_shape` and `weight_g_idx`. Rows of all of them are outputs, so everything is turned while it is read.
//!
//! Codes of 3, 5, 6 and 7 bits were first written with unused bits in each word and from version 0.18 on as one stream; the
//! shape tells which, and the version where both have the same.

use crate::checkpoint::{Checkpoint, Tensor};
use crate::module::{Layout, Module, SCALES, SIZES, check_size, fields, two_dimensions, words, wrong_shape};
use crate::{CheckpointFormat, FormatError, GroupSize, QuantConfig, Scheme, strips};
use billfish_tensor::{Codes, DType, Groups, Packing};

/// Scales of activations and of a cache, which belong to a module but not to its weight.
const ACTIVATIONS: [&str; 5] = ["input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point"];

/// Finds a module's tensors and checks every shape and type. The tensors say which of the formats it is.
pub(crate) fn find<'a>(
    checkpoint: &'a Checkpoint,
    config: &'a QuantConfig,
    name: &'a str,
    mut scheme: Scheme,
    size: Option<(usize, usize)>,
) -> Result<Module<'a>, FormatError> {
    let at = |part: &str| format!("{name}.{part}");
    let codes = checkpoint.codes_of(name)?;
    let scales = checkpoint.need(&at("weight_scale"))?;
    let shape = checkpoint.find(&at("weight_shape"));
    let global = checkpoint.find(&at("weight_global_scale"));
    let is_packed = codes.name.ends_with(".weight_packed");
    let format = match (is_packed, codes.info.dtype) {
        (true, DType::U8) if global.is_some() => CheckpointFormat::Nvfp4,
        (true, DType::U8) => CheckpointFormat::Mxfp4,
        (true, _) => CheckpointFormat::PackQuantized,
        (false, DType::F8E4M3 | DType::F8E5M2) => CheckpointFormat::FloatQuantized,
        (false, _) => CheckpointFormat::IntQuantized,
    };
    let said = scheme.format;
    scheme.format = format;
    let [rows, columns] = two_dimensions(&codes)?;
    let (k, n) = match size {
        Some(size) => size,
        None => match format {
            CheckpointFormat::PackQuantized => read_shape(&need_shape(checkpoint, &codes, shape.as_ref(), name)?)?,
            CheckpointFormat::Nvfp4 | CheckpointFormat::Mxfp4 => (columns.saturating_mul(2), rows),
            _ => (columns, rows),
        },
    };
    check_size(&codes, k, n)?;
    let bits = scheme.bits;
    let layout = match format {
        CheckpointFormat::PackQuantized => {
            codes.check_dtype(&[DType::I32])?;
            if let Some(shape) = &shape {
                let (has_k, has_n) = read_shape(shape)?;
                if (has_k, has_n) != (k, n) {
                    return Err(shape.wrong(format!("[{n}, {k}]"), format!("[{has_n}, {has_k}]"), SIZES));
                }
            }
            stream(config, &codes, [rows, columns], bits, k, n)?
        }
        CheckpointFormat::IntQuantized if codes.info.shape != [n, k] => return Err(wrong_shape(&codes, &[n, k], "a byte a code")),
        CheckpointFormat::IntQuantized => Layout::Bytes,
        _ => Layout::Floats,
    };
    let (zeros, g_idx) = (checkpoint.find(&at("weight_zero_point")), checkpoint.find(&at("weight_g_idx")));
    let others = ACTIVATIONS.iter().filter_map(|part| checkpoint.find(&at(part))).chain(shape).chain(global).collect();
    let groups = Groups::Contiguous { size: k };
    let mut module = Module { checkpoint, config, name, scheme, layout, k, n, codes, zeros, scales, g_idx, others, count: 1, groups };
    if said != format {
        module.warn(&format!("the config says {}, but the tensors are {}: they are followed", said.name(), format.name()));
    }
    if layout == Layout::Floats {
        module.others.extend(module.zeros.take());
        module.count = module.scales.info.shape.get(1).copied().unwrap_or(1);
        return Ok(module);
    }
    module.scales.check_dtype(&SCALES)?;
    module.count = match module.scales.info.shape[..] {
        [] | [1] | [1, 1] if scheme.group_size == GroupSize::Channel => 1,
        [rows] if rows == n && scheme.group_size == GroupSize::Channel => 1,
        [rows, count] if rows == n && count > 0 => count,
        _ => {
            let (groups, g) = (k.div_ceil(scheme.group_size.rows(k)), scheme.group_size);
            return Err(wrong_shape(&module.scales, &[n, groups], &format!("group_size {g}")));
        }
    };
    check_zeros(&module)?;
    let streams = (module.layout == Layout::Stream)
        .then_some(k)
        .into_iter()
        .chain(module.zeros.as_ref().filter(|t| t.info.dtype == DType::I32).map(|_| n));
    if config.padded_words.is_none() && streams.into_iter().any(|count| ambiguous(bits, count)) {
        module.warn("the config has no `version` and the shape fits two packings: read as version 0.18 and later pack");
    }
    module.find_groups()?;
    Ok(module)
}

fn need_shape<'a>(
    checkpoint: &'a Checkpoint,
    codes: &Tensor<'_>,
    shape: Option<&Tensor<'a>>,
    name: &str,
) -> Result<Tensor<'a>, FormatError> {
    match shape {
        Some(_) => checkpoint.need(&format!("{name}.weight_shape")),
        None => Err(codes.wrong("`weight_shape` beside it", "none", "the folder is incomplete, download or write it again")),
    }
}

/// `weight_shape`, `[N, K]`, as (K, N).
fn read_shape(tensor: &Tensor<'_>) -> Result<(usize, usize), FormatError> {
    tensor.check_dtype(&[DType::I64, DType::I32])?;
    if tensor.info.shape != [2] {
        return Err(wrong_shape(tensor, &[2], "outputs and inputs"));
    }
    let values: Vec<i64> = match tensor.info.dtype {
        DType::I64 => tensor.read_elements(i64::from_le)?,
        _ => tensor.read_elements(i32::from_le)?.into_iter().map(i64::from).collect(),
    };
    match (u32::try_from(values[0]), u32::try_from(values[1])) {
        (Ok(n), Ok(k)) => Ok((k as usize, n as usize)),
        _ => Err(tensor.wrong("two sizes below 2^32", format!("{values:?}"), crate::error::DAMAGED)),
    }
}

/// Words of `count` codes where each word holds whole codes only.
fn padded_words(bits: u32, count: usize) -> usize {
    count.div_ceil((32 / bits) as usize)
}

/// Whether both packings of `count` codes have as many words and yet differ.
fn ambiguous(bits: u32, count: usize) -> bool {
    let words = padded_words(bits, count);
    !bits.is_power_of_two() && words > 1 && words == Packing::Continuous.words(bits, count)
}

/// Which of the two packings a run of `count` codes in `found` words is.
fn generation(config: &QuantConfig, bits: u32, count: usize, found: usize) -> Option<Layout> {
    let (dense, padded) = (Packing::Continuous.words(bits, count), padded_words(bits, count));
    match (found == dense, found == padded) {
        // Equal for widths that fill a word; elsewhere only where a few codes end in their last word either way.
        (true, true) if !bits.is_power_of_two() && config.padded_words == Some(true) => Some(Layout::Padded),
        (true, _) => Some(Layout::Stream),
        (false, true) => Some(Layout::Padded),
        (false, false) => None,
    }
}

fn stream(config: &QuantConfig, codes: &Tensor<'_>, shape: [usize; 2], bits: u32, k: usize, n: usize) -> Result<Layout, FormatError> {
    if shape[0] == n
        && let Some(layout) = generation(config, bits, k, shape[1])
    {
        return Ok(layout);
    }
    let hint = (2..=8).find(|&b| shape[0] == n && generation(config, b, k, shape[1]).is_some());
    let hint = hint.map(|bits| format!(", which would be {bits} bit")).unwrap_or_default();
    let expected = format!("shape [{n}, {}] ({bits} bit codes of a [{n}, {k}] weight)", Packing::Continuous.words(bits, k));
    Err(codes.wrong(expected, format!("shape {shape:?}{hint}"), SIZES))
}

/// Zero points are packed along the outputs, or signed bytes; symmetric modules have none.
fn check_zeros(module: &Module<'_>) -> Result<(), FormatError> {
    let (n, count, bits) = (module.n, module.count, module.scheme.bits);
    let Some(tensor) = &module.zeros else {
        if module.scheme.sym {
            return Ok(());
        }
        return Err(module.codes.wrong("`weight_zero_point` beside it, as the config says asymmetric", "none", SIZES));
    };
    tensor.check_dtype(&[DType::I32, DType::I8])?;
    let shape = tensor.info.shape.as_slice();
    let fits = match tensor.info.dtype {
        DType::I8 => shape == [n, count] || (count == 1 && matches!(shape, [] | [1] | [1, 1])),
        _ => matches!(shape, [rows, g] if *g == count && generation(module.config, bits, n, *rows).is_some()),
    };
    if !fits {
        let rows = if tensor.info.dtype == DType::I8 { n } else { Packing::Continuous.words(bits, n) };
        return Err(wrong_shape(tensor, &[rows, count], &format!("{bits} bit, {n} outputs, {count} groups")));
    }
    Ok(())
}

/// Zero points, `[groups, N]`. Stored as codes are: with `2^(bits-1)` added when packed, without when bytes.
pub(crate) fn zeros(module: &Module<'_>, tensor: &Tensor<'_>) -> Result<Vec<u16>, FormatError> {
    let (n, count, bits) = (module.n, module.count, module.scheme.bits);
    if tensor.info.dtype == DType::I8 {
        let values = tensor.read_elements(|v: i8| v)?;
        let middle = 1i16 << (bits - 1);
        if let Some(i) = values.iter().position(|&v| !(-middle..middle).contains(&i16::from(v))) {
            return Err(tensor.wrong(format!("{} to {}", -middle, middle - 1), format!("{} at [{i}]", values[i]), crate::error::DAMAGED));
        }
        let one = |i: usize| if values.len() == 1 { values[0] } else { values[i % n * count + i / n] };
        return Ok((0..n * count).map(|i| (i16::from(one(i)) + middle) as u16).collect());
    }
    let words = tensor.read_u32()?;
    let rows = tensor.info.shape[0];
    // `[words, groups]` as `[groups, words]`, so that the codes of a group are one run.
    let turned: Vec<u32> = (0..words.len()).map(|i| words[i % rows * count + i / rows]).collect();
    let values = match generation(module.config, bits, n, rows) {
        Some(Layout::Padded) => {
            let per = (32 / bits) as usize;
            let mask = (1 << bits) - 1;
            let code = |i: usize| (turned[i / n * rows + i % n / per] >> (bits * (i % n % per) as u32) & mask) as u8;
            (0..n * count).map(code).collect()
        }
        _ => fields(&turned, n, bits, Packing::Continuous),
    };
    Ok(values.into_iter().map(u16::from).collect())
}

/// The codes, turned so that they run down the rows.
pub(crate) fn codes(module: &Module<'_>) -> Result<Codes, FormatError> {
    let (k, n, bits) = (module.k, module.n, module.scheme.bits);
    let mut out = vec![0; Packing::Continuous.words(bits, k) * n];
    let tensor = &module.codes;
    match module.layout {
        Layout::Stream => {
            let words = tensor.info.shape[1];
            tensor.read_strips(4 * words, 1, |row, bytes| strips::turned(bytes, row, words, n, &mut out))?;
        }
        Layout::Padded => {
            tensor.read_strips(4 * tensor.info.shape[1], 1, |row, bytes| strips::closed_up(bytes, row, k, bits, n, &mut out))?;
        }
        _ => {
            tensor.check_dtype(&[DType::I8])?;
            let mut wrong = None;
            tensor.read_strips(k, 1, |row, bytes| {
                let place = strips::unsigned(bytes, row, k, bits, n, &mut out);
                wrong = wrong.or(place.map(|i| (row + i / k, i % k, bytes[i] as i8)));
            })?;
            if let Some((row, col, value)) = wrong {
                let middle = 1i16 << (bits - 1);
                let expected = format!("{bits} bit codes, {} to {}", -middle, middle - 1);
                return Err(tensor.wrong(expected, format!("{value} at [{row}, {col}]"), SIZES));
            }
        }
    }
    Ok(words(out, Packing::Continuous))
}
