//! The Marlin layout, bit for bit: the order in which a tensor-core kernel wants the words of a GPTQ weight.
//!
//! A GPTQ weight is repacked once, when it is loaded, so that each lane of a warp finds the fragments of its matrix
//! multiplication in consecutive words. Nothing is computed: codes, scales, zero points and biases change places.
//!
//! Two routes give the words, and tests hold them against each other: [`pack`] by closed forms ([`Tiling::place`]), and
//! [`pack_by_table`] by gathering through a permutation table. [`unpack`] is the inverse of both. [`repack`] starts from
//! the words of a `qweight`, with or without act-order.
//!
//! Old programs wrote folders in the layout for 16-bit activations; [`crate::Checkpoint`] reads them, and
//! [`crate::convert`] writes them.
//!
//! Kernels with 8-bit activations ([`Activations::Bits8`]) have tiles of another shape and want their scales prepared:
//! [`int8_scales`] for integers, [`fp8_scales`] and [`fp8_words`] for E4M3. Weights that are floats themselves
//! ([`repack_fp8`], [`repack_fp4`]) lie in the same tiles and want their scales prepared, too.

mod awq;
pub(crate) mod checkpoint;
mod error;
mod floats;
mod fp8;
mod int8;
mod order;
mod scales;
mod table;
mod tile;
mod zeros;

pub use awq::{awq_codes, repack_awq};
pub use error::MarlinError;
pub use floats::{
    expand_block_scales, expand_scales, fp8_weight_scales, mxfp4_scales, nvfp4_global_scale, nvfp4_scales, repack_fp4, repack_fp8,
};
pub use fp8::{
    FP8_SCALE_FACTOR, fp8_byte, fp8_byte_with_zero, fp8_nibble, fp8_nibble_with_zero, fp8_scales, fp8_words, fp8_words_with_zeros,
};
pub use int8::{Int8Scales, int8_scales};
pub use order::{KernelGroups, SortedGroups, is_k_full, kernel_groups, repeat_scales_on_all_ranks, sort_g_idx};
pub use scales::{SCALE_PERM, SCALE_PERM_SINGLE, ScaleOrder, permute_bias, permute_scales, scale_order, unpermute_bias, unpermute_scales};
pub use table::{pack_by_table, weight_perm};
pub use tile::{Activations, Place, Tiling, pack, repack, unpack, unpack_to_gptq};
pub(crate) use tile::{tiled, untiled};
pub use zeros::{pack_zeros, unpack_zeros};
