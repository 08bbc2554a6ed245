//! How many bytes a quantized folder will have, before anything is computed.

use crate::gptq::{Order, Settings};
use crate::{QuantizeError, Recipe};
use billfish_formats::{Checkpoint, GroupSize, ModuleShape, Sizes, Target, TensorSpec, folder_sizes, module_tensors};
use billfish_models::{DecoderConfig, Linear, replaceable};
use billfish_tensor::DType;
use std::collections::BTreeSet;

/// What a recipe makes of a folder, in bytes.
#[derive(Clone, Debug)]
pub struct PredictedBytes {
    /// Every module that is quantized, how, and the bytes of its codes, scales and zero points in the folder to be written.
    pub modules: Vec<(Linear, Settings, u64)>,
    /// Of all weights, those that stay as they are included.
    pub total: Sizes,
}

/// The bytes of the folder that [`quantize()`](crate::quantize()) writes: exact, because no size depends on a weight, but for
/// one tensor. compressed-tensors has a `g_idx` for a module of order [`Order::Desc`] unless its inputs happen to stand in
/// that order already; it is counted.
///
/// # Errors
/// [`QuantizeError`] if the recipe or the folder cannot be, or the format has no place for a module.
pub fn predicted_bytes(source: &Checkpoint, recipe: &Recipe) -> Result<PredictedBytes, QuantizeError> {
    let config = DecoderConfig::from_json(&format!("{}/config.json", source.name()), source.config())?;
    let unstacked = config.unstacked(source)?;
    let source = unstacked.as_ref().unwrap_or(source);
    let chosen = chosen_modules(source, recipe)?;
    let shapes: Vec<ModuleShape> = chosen.iter().map(|(l, s)| module_shape(l, s)).collect();
    let taken = chosen.iter().map(|(l, _)| l.name.clone()).collect();
    let total = folder_sizes(source.name(), &shapes, remaining_tensors(source, &taken), recipe.target)?;
    let sized = |(l, s): (Linear, Settings)| module_bytes(&l, &s, recipe.target).map(|bytes| (l, s, bytes));
    Ok(PredictedBytes { modules: chosen.into_iter().map(sized).collect::<Result<_, _>>()?, total })
}

/// The bytes of one module's codes, scales and zero points in a folder of this format.
///
/// # Errors
/// [`QuantizeError::Format`] if the format has no place for such a module.
pub fn module_bytes(linear: &Linear, settings: &Settings, target: Target) -> Result<u64, QuantizeError> {
    let tensors = module_tensors(&module_shape(linear, settings), target)?;
    let bytes = |(_, dtype, shape): &TensorSpec| shape.iter().fold(dtype.size() as u64, |b, &d| b.saturating_mul(d as u64));
    Ok(tensors.iter().map(bytes).sum())
}

/// The modules that a recipe quantizes and how, in the order in which they are.
pub(crate) fn chosen_modules(source: &Checkpoint, recipe: &Recipe) -> Result<Vec<(Linear, Settings)>, QuantizeError> {
    let config = DecoderConfig::from_json(&format!("{}/config.json", source.name()), source.config())?;
    let layers = (0..config.layers).flat_map(|i| replaceable(source, &config, i)).flatten().flatten();
    let head = Linear { name: "lm_head".into(), in_features: config.hidden_size, out_features: config.vocab_size, bias: false };
    let settings = |l: Linear| Ok(recipe.settings(&l.name)?.map(|s| (l, s)));
    layers.chain(recipe.lm_head.then_some(head)).filter_map(|l| settings(l).transpose()).collect()
}

/// The tensors of a folder that stay when these modules are quantized.
pub(crate) fn remaining_tensors(source: &Checkpoint, taken: &BTreeSet<String>) -> Vec<TensorSpec> {
    let gone = |tensor: &str| {
        let (module, part) = tensor.rsplit_once('.').unwrap_or((tensor, ""));
        taken.contains(module) && (part == "weight" || source.is_part(tensor))
    };
    let specs = source.tensor_names().filter(|t| !gone(t));
    specs.filter_map(|t| source.info(t).map(|i| (t.to_string(), i.dtype, i.shape.clone()))).collect()
}

fn module_shape(l: &Linear, s: &Settings) -> ModuleShape {
    let groups = s.group_size.map_or(1, |rows| l.in_features.div_ceil(rows.max(1)));
    ModuleShape {
        module: l.name.clone(),
        in_features: l.in_features,
        out_features: l.out_features,
        bits: s.grid.bits,
        group_size: s.group_size.map_or(GroupSize::Channel, GroupSize::Rows),
        groups,
        act_order: s.order == Order::Desc && groups > 1,
        sym: s.grid.sym,
        scales: DType::F16,
    }
}
