//! Float weights in the same tiles: FP8 (E4M3), NVFP4 and MXFP4, for kernels that make 16-bit floats of them.
//!
//! Their codes are repacked as integers of the same width. A kernel moves exponent bits without correcting their bias,
//! so that every weight comes out too small by a power of two; scales are prepared to make up for it, which costs no bit.

use super::error::{check_len, check_multiple, product};
use super::scales::gather;
use super::{Activations, MarlinError, Tiling, permute_scales, scale_order, tiled};
use crate::GroupSize;
use billfish_tensor::{DType, ScaleValues};
use half::{bf16, f16};

/// Order of four columns of scales that a kernel with 16-bit activations reads as two pairs.
const PAIRS: [usize; 4] = [0, 2, 1, 3];

/// Rows of a group of NVFP4.
const NVFP4_GROUP: usize = 16;

/// Rows of a group of MXFP4.
const MXFP4_GROUP: usize = 32;

/// Repacks FP8 weights, bytes `[n, k]` as a checkpoint has them.
///
/// # Errors
/// [`MarlinError`] when the layout does not have the sizes, or their number is wrong.
pub fn repack_fp8(weight: &[u8], k: usize, n: usize) -> Result<Vec<u32>, MarlinError> {
    let tiling = Tiling::new(8, Activations::Bits16)?;
    tiling.words(k, n)?;
    check_len("weight", k * n, weight.len())?;
    Ok(tiled(tiling, &(0..k * n).map(|i| weight[i % n * k + i / n]).collect::<Vec<u8>>(), k, n))
}

/// Repacks 4-bit floats, `[n, k / 2]` bytes of two each, the first in the low bits.
///
/// # Errors
/// As [`repack_fp8`].
pub fn repack_fp4(weight: &[u8], k: usize, n: usize) -> Result<Vec<u32>, MarlinError> {
    let tiling = Tiling::CHECKPOINT;
    tiling.words(k, n)?;
    check_len("weight", k / 2 * n, weight.len())?;
    let code = |row: usize, col: usize| weight[col * (k / 2) + row / 2] >> (4 * (row % 2)) & 15;
    Ok(tiled(tiling, &(0..k * n).map(|i| code(i / n, i % n)).collect::<Vec<u8>>(), k, n))
}

/// Scales of FP8 weights times `2^8` (F16) or `2^120` (BF16): `2^(2^(e-1) - 2^3)` for a type with `e` bits of exponent. They
/// are put in order with [`permute_scales`] then.
///
/// # Errors
/// [`MarlinError`] for F32 scales, and when a product is not finite in their type.
pub fn fp8_weight_scales(scales: &ScaleValues) -> Result<ScaleValues, MarlinError> {
    let all = 0..scales.len();
    Ok(match scales {
        ScaleValues::F16(_) => ScaleValues::F16(all.map(|i| scaled(scales, i, 8).map(f16::from_f32)).collect::<Result<_, _>>()?),
        ScaleValues::BF16(_) => ScaleValues::BF16(all.map(|i| scaled(scales, i, 120).map(bf16::from_f32)).collect::<Result<_, _>>()?),
        ScaleValues::F32(_) => {
            return Err(MarlinError::unsupported("scales", "F16 or BF16, the type of the model", "F32", "round them to that type first"));
        }
    })
}

/// Scale `i` times `2^power`, which is exact, or an error when its type has no such number.
fn scaled(scales: &ScaleValues, i: usize, power: i32) -> Result<f32, MarlinError> {
    let value = f64::from(scales.get(i)) * 2f64.powi(power);
    let largest = if scales.dtype() == DType::F16 { f16::MAX.to_f64() } else { bf16::MAX.to_f64() };
    if value.abs() <= largest {
        return Ok(value as f32);
    }
    let expected = format!("a scale whose product with 2^{power} is finite in {}", scales.dtype());
    Err(MarlinError::value("scales", i, expected, scales.get(i), "use another kernel for this module"))
}

/// One scale for each part of a fused matrix as one for each column: part `i` has `columns[i]`.
///
/// # Errors
/// [`MarlinError::Length`] unless there are as many parts as scales.
pub fn expand_scales<T: Copy>(scales: &[T], columns: &[usize]) -> Result<Vec<T>, MarlinError> {
    check_len("scales", columns.len(), scales.len())?;
    Ok(scales.iter().zip(columns).flat_map(|(&scale, &count)| std::iter::repeat_n(scale, count)).collect())
}

/// Scales of blocks, `[rows, n / block]` rounded up, as `[rows, n]`: groups of as many rows as a block has.
///
/// # Errors
/// [`MarlinError`] unless `n` and `block` are positive and there is a whole number of rows.
pub fn expand_block_scales<T: Copy>(scales: &[T], n: usize, block: usize) -> Result<Vec<T>, MarlinError> {
    check_multiple("block (columns)", block, 1)?;
    check_multiple("N (columns)", n, 1)?;
    let row = n.div_ceil(block);
    check_len("scales", scales.len().div_ceil(row) * row, scales.len())?;
    Ok(scales.chunks_exact(row).flat_map(|row| (0..n).map(|col| row[col / block])).collect())
}

/// Scales of NVFP4 weights, E4M3 `[n, k / 16]`, as `[k / 16, n]` in order: five bits of exponent and three of mantissa, with
/// `2^7` multiplied in and no sign.
///
/// # Errors
/// [`MarlinError`] when sizes do not fit, and for a scale below 0 or that is no number.
pub fn nvfp4_scales(scales: &[u8], k: usize, n: usize) -> Result<Vec<u8>, MarlinError> {
    let turned = turned(scales, k, n, NVFP4_GROUP)?;
    if let Some(i) = scales.iter().position(|&bits| bits > 0x80 || bits == 0x7f) {
        let remedy = "the layout has no sign: use another kernel for this module";
        return Err(MarlinError::value("scales", i, "an E4M3 number of at least 0", format!("bits {:#04x}", scales[i]), remedy));
    }
    let ordered = permute_scales(&turned, n, scale_order(k, GroupSize::Rows(NVFP4_GROUP), Activations::Bits16))?;
    let bits = |e4m3: u8| {
        let (exponent, mantissa) = (i32::from(e4m3 >> 3 & 15), f32::from(e4m3 & 7));
        let value = if exponent == 0 { mantissa * 2f32.powi(-9) } else { (8.0 + mantissa) * 2f32.powi(exponent - 10) };
        (f16::from_f32(value * 128.0).to_bits() << 1).to_be_bytes()[0]
    };
    Ok(gather(&ordered, &PAIRS).into_iter().map(bits).collect())
}

/// The scale of a whole NVFP4 matrix in the model's type, times `2^7` (F16) or `2^119` (BF16): the bias of the codes less
/// what [`nvfp4_scales`] has multiplied in.
///
/// # Errors
/// [`MarlinError`] for another type, and when the product is not finite in it.
pub fn nvfp4_global_scale(scale: f32, model: DType) -> Result<f32, MarlinError> {
    match model {
        DType::F16 => scaled(&ScaleValues::F16(vec![f16::from_f32(scale)]), 0, 7),
        DType::BF16 => scaled(&ScaleValues::BF16(vec![bf16::from_f32(scale)]), 0, 119),
        other => Err(MarlinError::unsupported("model", "F16 or BF16", other, "run the model in one of these types")),
    }
}

/// Scales of MXFP4 weights, powers of two `[n, k / 32]` (E8M0), as `[k / 32, n]` in order. With 8-bit activations, which are
/// FP8 here, they are multiplied by `2^6`.
///
/// # Errors
/// [`MarlinError`] when sizes do not fit, for a scale that is no number, and when a product has no such exponent.
pub fn mxfp4_scales(scales: &[u8], k: usize, n: usize, activations: Activations) -> Result<Vec<u8>, MarlinError> {
    let turned = turned(scales, k, n, MXFP4_GROUP)?;
    let (most, more) = match activations {
        Activations::Bits16 => (254, 0),
        // 255 is no number
        Activations::Bits8 => (248, 6),
    };
    if let Some(i) = scales.iter().position(|&exponent| exponent > most) {
        let expected = format!("an exponent of at most {most}");
        return Err(MarlinError::value("scales", i, expected, scales[i], "use another kernel for this module"));
    }
    let ordered = permute_scales(&turned, n, scale_order(k, GroupSize::Rows(MXFP4_GROUP), activations))?;
    let ordered = if activations == Activations::Bits16 { gather(&ordered, &PAIRS) } else { ordered };
    Ok(ordered.into_iter().map(|exponent| exponent + more).collect())
}

/// `[n, k / group]` as `[k / group, n]`.
fn turned(scales: &[u8], k: usize, n: usize, group: usize) -> Result<Vec<u8>, MarlinError> {
    check_multiple("K (rows)", k, group)?;
    check_multiple("N (columns)", n, 64)?;
    let groups = k / group;
    check_len("scales", product("groups × N", groups, n)?, scales.len())?;
    Ok((0..scales.len()).map(|i| scales[i % n * groups + i / n]).collect())
}
