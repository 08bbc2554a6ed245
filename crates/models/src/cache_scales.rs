//! Scales that a folder brings for a cache of keys and values: which tensors they are, and what a reader should know of them.

use crate::DecoderConfig;
use billfish_formats::{CacheScheme, Checkpoint};
use billfish_kernels::KvType;

/// The attention of a layer.
fn attention(layer: usize) -> String {
    format!("model.layers.{layer}.self_attn")
}

/// The names of the scales of a layer's keys and values: none if no layer has any, or the config means another cache.
pub(crate) fn names(c: &DecoderConfig, checkpoint: &Checkpoint, layer: usize) -> Option<[String; 2]> {
    if scheme(checkpoint).is_some_and(|s| !s.floats) {
        return None;
    }
    let own = checkpoint.cache_scales(&attention(layer));
    // one layer without them among others is an error, which names them as others do
    own.or_else(|| {
        let (other, names) = (0..c.layers).find_map(|i| Some((i, checkpoint.cache_scales(&attention(i))?)))?;
        Some(names.map(|name| name.replacen(&attention(other), &attention(layer), 1)))
    })
}

fn scheme(checkpoint: &Checkpoint) -> Option<&CacheScheme> {
    checkpoint.quantization().and_then(|q| q.cache_scheme.as_ref())
}

impl DecoderConfig {
    /// What a reader should know of the scales that a folder has for its cache of keys and values, or should have, if the
    /// cache is stored as `kind`, or before that is chosen: nothing if they are applied, or the folder says nothing of them.
    pub fn cache_note(&self, checkpoint: &Checkpoint, kind: Option<KvType>) -> Option<String> {
        let has = names(self, checkpoint, 0).is_some();
        match (has, kind) {
            (true, Some(kind)) if kind.takes_scales() => None,
            (true, _) => {
                let with = kind.map_or_else(String::new, |kind| format!(" with {}", kind.name()));
                Some(format!(
                    "the folder has scales for a cache of keys and values in 8-bit floats: they are not applied{with}, \
                     --kv-cache-dtype fp8_e4m3 (or fp8_e5m2) applies them"
                ))
            }
            (false, _) if scheme(checkpoint).is_some_and(|s| s.floats) => Some(
                "the config describes a cache of keys and values in 8-bit floats, but the folder has no scales for it: it is not applied"
                    .into(),
            ),
            (false, _) => None,
        }
    }
}
