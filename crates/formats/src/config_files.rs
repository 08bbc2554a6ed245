//! Which of the files of a folder speaks for its quantization.

use crate::shards::JSON_CAP;
use crate::store::Store;
use crate::warning::{WarningKind, Warnings};
use crate::{FormatError, QuantConfig, json};
use serde_json::{Map, Value};

/// Reads a JSON object from file `name`, if the file exists.
pub(crate) fn object(store: &Store, name: &str) -> Result<Option<Map<String, Value>>, FormatError> {
    match store.open(name)? {
        Some(source) => json::object(source.name(), &source.read_all(JSON_CAP)?).map(Some),
        None => Ok(None),
    }
}

/// Reads the quantization config. A file of its own is what the quantizer wrote and comes before `config.json`, which
/// other programs rewrite; where the two differ a warning says in what.
pub(crate) fn quantization(store: &Store, config: &Map<String, Value>, warnings: &Warnings) -> Result<Option<QuantConfig>, FormatError> {
    let mut found: Vec<(String, &str, Map<String, Value>)> = vec![];
    for name in ["quantize_config.json", "quant_config.json"] {
        if let Some(map) = object(store, name)? {
            found.push((store.label(name), "", map));
        }
    }
    let label = store.label("config.json");
    for (prefix, value) in [
        ("quantization_config.", config.get("quantization_config")),
        ("compression_config.", config.get("compression_config")),
        ("text_config.quantization_config.", config.get("text_config").and_then(|t| t.get("quantization_config"))),
    ] {
        match value {
            None | Some(Value::Null) => {}
            Some(Value::Object(map)) => found.push((label.clone(), prefix, map.clone())),
            Some(other) => {
                let key = prefix.trim_end_matches('.');
                return Err(FormatError::config(&label, key, "an object", json::show(other), "correct or remove the key"));
            }
        }
    }
    let Some(((file, prefix, map), others)) = found.split_first() else { return Ok(None) };
    let mut config = QuantConfig::read(file, prefix, map, warnings)?;
    for (other_file, other_prefix, other) in others {
        // Neither its warnings nor its errors stop anyone: this config is only compared with the one in use.
        let other = match QuantConfig::read(other_file, other_prefix, other, &Warnings::default()) {
            Ok(other) => other,
            Err(e) => {
                warnings.add(WarningKind::Config, format!("a second quantization config is wrong, {file} is used: {e}"));
                continue;
            }
        };
        let keys = config.differing_keys(&other);
        if !keys.is_empty() {
            warnings.add(WarningKind::Config, format!("{file} and {other_file} differ in {}: the first is used", keys.join(", ")));
        }
        config.writer = config.writer.or(other.writer);
    }
    Ok(Some(config))
}
