//! What a folder says of a cache of keys and values: the scheme of its config, and the tensors with scales.

use crate::keys;
use crate::{Checkpoint, FormatError};
use serde_json::{Map, Value};

/// What a quantization config says of a cache of keys and values.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheScheme {
    /// Whether the cache has 8-bit floats by scales that are in the folder. Nothing here follows any other.
    pub floats: bool,
    /// Its keys as they stand there.
    pub keys: Map<String, Value>,
}

impl CacheScheme {
    /// Reads `kv_cache_scheme`; `None` if it says nothing.
    pub(crate) fn read(scheme: &Map<String, Value>) -> Option<Self> {
        let is = |key: &str, expected: Value, unsaid: bool| scheme.get(key).map_or(unsaid, |v| *v == expected);
        let floats = is("num_bits", 8.into(), true)
            && is("type", "float".into(), false)
            && is("symmetric", true.into(), true)
            && is("dynamic", false.into(), true);
        (!scheme.is_empty()).then(|| CacheScheme { floats, keys: scheme.clone() })
    }
}

/// The tensors that a layer's scale of keys may be, behind the name of its attention, and those that its scale of values may
/// be in the same places: as compressed-tensors and vLLM write them, ModelOpt, Quark and the first compressed-tensors, and
/// the first folders for vLLM, where one is for both.
const NAMES: [[&str; 2]; 4] = [
    ["k_scale", "v_scale"],
    ["k_proj.k_scale", "v_proj.v_scale"],
    ["k_proj.output_scale", "v_proj.output_scale"],
    ["kv_scale", "kv_scale"],
];

/// Whether a tensor is a scale of keys or values.
pub(crate) fn is_cache_scale(tensor: &str) -> bool {
    let is = |name: &str| tensor.strip_suffix(name).is_some_and(|before| before.ends_with("self_attn."));
    NAMES.as_flattened().iter().any(|name| is(name))
}

impl Checkpoint {
    /// The tensors with the scales of the keys and of the values of an attention, such as `model.layers.0.self_attn`. If there
    /// is one of them only, the other is what it would be called; `None` if there is neither.
    pub fn cache_scales(&self, attention: &str) -> Option<[String; 2]> {
        let names = |names: &[&str; 2]| names.map(|name| format!("{attention}.{name}"));
        NAMES.iter().map(names).find(|names| names.iter().any(|name| self.info(name).is_some()))
    }

    /// Reads the scales of keys or values, of which there are one or one for each of `heads` KV heads: one for each.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] if there is no such tensor, or another number of scales, or one is not above zero.
    pub fn cache_scale(&self, name: &str, heads: usize) -> Result<Vec<f32>, FormatError> {
        const REMEDY: &str = "calibrate the cache again, or write the folder without its scales, which are then found while it runs";
        let Some(tensor) = self.find(name) else {
            let expected = "the scales of keys and values in every layer, as in others of this folder";
            return Err(FormatError::tensor(self.name(), name, expected, "none of that name", REMEDY));
        };
        let shape = tensor.info.shape.clone();
        let long: Vec<usize> = shape.iter().copied().filter(|&n| n != 1).collect();
        if !(long.is_empty() || long == [heads]) {
            let expected = format!("one scale, or one for each of {heads} KV heads");
            return Err(tensor.wrong(expected, format!("shape {shape:?}"), REMEDY));
        }
        let scales = self.dense(name, &shape)?.to_f32();
        if let Some(odd) = scales.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
            return Err(tensor.wrong("finite scales above 0", odd, REMEDY));
        }
        Ok(if scales.len() == heads { scales } else { vec![scales[0]; heads] })
    }
}

/// Reads the key of a config.
pub(crate) fn scheme(keys: &mut keys::Keys<'_>) -> Result<Option<CacheScheme>, FormatError> {
    Ok(keys.optional(&["kv_cache_scheme"], keys::map)?.as_ref().and_then(CacheScheme::read))
}
