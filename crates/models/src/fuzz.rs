//! Bodies of fuzz targets: any bytes, no panic.

use crate::{DecoderConfig, ModelError};
use billfish_formats::fuzz::{Body, Run};
use serde_json::{Map, Value};

/// Every target of this crate.
pub const TARGETS: [(&str, Body); 1] = [("decoder_config", decoder_config)];

/// A model's `config.json`.
fn decoder_config(data: &[u8], run: &mut Run) {
    let Ok(map) = serde_json::from_slice::<Map<String, Value>>(data) else { return };
    let read = DecoderConfig::from_json("fuzz", &map);
    if let Err(ModelError::Architecture { .. }) = read {
        // its text holds what was found
        return run.note("another architecture");
    }
    if let Some(config) = run.value(read) {
        assert!(config.heads.is_multiple_of(config.kv_heads), "heads share keys and values evenly");
        assert_eq!(config.windows.len(), config.layers, "each layer has a window or none");
        run.note(format!("{} {:?} {:?}", config.tie_word_embeddings, config.max_position_embeddings.is_some(), config.windows.first()));
    }
}
