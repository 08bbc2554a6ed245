//! Folders in the Marlin layout: `B` `[K/16, 2 N]` and `s` `[groups, N]`, 4 bit, no zero points and no act-order; AutoAWQ
//! calls the two `qweight` and `scales`. A `workspace`, if there is one, holds nothing. Biases stand as they are.

use super::{Activations, Tiling, scale_order, untiled};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::module::{Layout, Module, SCALES, SIZES, check_size, two_dimensions, words, wrong_shape};
use crate::{CheckpointFormat, FormatError, QuantConfig, Scheme};
use billfish_tensor::{Codes, DType, Groups, Packing};

/// Rows of a tile.
const ROWS: usize = 16;

/// Whether the tensors of a module are those of this layout. A config that says so proves nothing: programs also wrote it
/// beside the tensors of an ordinary GPTQ checkpoint.
pub(crate) fn holds(checkpoint: &Checkpoint, said: CheckpointFormat, name: &str) -> bool {
    let codes = checkpoint.codes_of(name);
    let packed =
        |t: &Tensor<'_>| t.name.ends_with(".B") || said == CheckpointFormat::Marlin && checkpoint.info(&format!("{name}.qzeros")).is_none();
    codes.is_ok_and(|t| packed(&t))
}

/// Finds a module's tensors and checks every shape and type.
pub(crate) fn find<'a>(
    checkpoint: &'a Checkpoint,
    config: &'a QuantConfig,
    name: &'a str,
    mut scheme: Scheme,
    size: Option<(usize, usize)>,
) -> Result<Module<'a>, FormatError> {
    let codes = checkpoint.codes_of(name)?;
    let scales = checkpoint.need(&format!("{name}.{}", if codes.name.ends_with(".B") { "s" } else { "scales" }))?;
    let g_idx = checkpoint.find(&format!("{name}.g_idx"));
    codes.check_dtype(&[DType::I32, DType::U32])?;
    scales.check_dtype(&SCALES)?;
    if scheme.bits != 4 || !scheme.sym {
        let found = format!("{} bit{} in the quantization config", scheme.bits, if scheme.sym { "" } else { ", asymmetric" });
        let remedy = "correct the quantization config: a folder in this layout cannot be anything else";
        return Err(codes.wrong("4 bit, symmetric in the marlin layout", found, remedy));
    }
    let (k, n) = match size {
        Some(size) => size,
        None => two_dimensions(&codes).map(|[rows, columns]| (rows.saturating_mul(ROWS), columns / 2))?,
    };
    check_size(&codes, k, n)?;
    let shape = [k / ROWS, n.saturating_mul(2)];
    if let Err(e) = Tiling::CHECKPOINT.words(k, n) {
        return Err(codes.wrong(format!("tiles of 16 rows and 64 columns of a [{k}, {n}] weight"), e, SIZES));
    }
    if codes.info.shape != shape {
        return Err(wrong_shape(&codes, &shape, &format!("tiles of a [{k}, {n}] weight")));
    }
    let group_size = scheme.group_size;
    let count = scales.rows_of(n).ok_or_else(|| {
        let groups = k.div_ceil(group_size.rows(k));
        wrong_shape(&scales, &[groups, n], &format!("group_size {group_size}"))
    })?;
    let said = std::mem::replace(&mut scheme.format, CheckpointFormat::Marlin);
    let others = checkpoint.find(&format!("{name}.workspace")).into_iter().collect();
    let (layout, groups, zeros) = (Layout::Marlin, Groups::Contiguous { size: k }, None);
    let mut module = Module { checkpoint, config, name, scheme, layout, k, n, codes, zeros, scales, g_idx, others, count, groups };
    if said != CheckpointFormat::Marlin {
        module.warn(&format!("the config says {}, but the tensors are marlin: they are followed", said.name()));
    }
    module.find_groups()?;
    match (&module.groups, &module.g_idx) {
        (Groups::Index { .. }, Some(g_idx)) => {
            Err(g_idx.wrong("rows in the order of their groups, as the marlin layout has no act-order", "another order", SIZES))
        }
        _ => Ok(module),
    }
}

/// Where scale `i` of `[groups, N]` is stored.
pub(crate) fn scale_place(module: &Module<'_>, i: usize) -> usize {
    let order = scale_order(module.k, module.scheme.group_size, Activations::Bits16);
    i / module.n * module.n + order.place(i % module.n)
}

/// The codes, turned so that they run down the rows.
pub(crate) fn codes(module: &Module<'_>) -> Result<Codes, FormatError> {
    let n = module.n;
    let mut out = vec![0; Packing::Continuous.words(4, module.k) * n];
    module.codes.read_strips(8 * n, 1, |row, bytes| {
        let tiles: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        untiled(Tiling::CHECKPOINT, &tiles, tiles.len() / (2 * n) * ROWS, n, None, &mut out[row * 2 * n..][..tiles.len()]);
    })?;
    Ok(words(out, Packing::Continuous))
}
