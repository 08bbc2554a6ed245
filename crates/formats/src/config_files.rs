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

/// A quantization config as it stands in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct RawQuantization {
    /// The file's name.
    pub file: &'static str,
    /// Where in the file it stands, dotted and with a dot at the end; empty for a file of its own.
    pub prefix: &'static str,
    /// Its keys.
    pub map: Map<String, Value>,
}

/// Files that hold a quantization config and nothing else.
pub const QUANTIZATION_FILES: [&str; 2] = ["quantize_config.json", "quant_config.json"];

/// Every quantization config of a folder, in the order in which they count. A file of its own is what the quantizer wrote
/// and comes before `config.json`, which other programs rewrite. With `skip`, one that cannot be parsed is passed to it.
pub(crate) fn raw(
    store: &Store,
    config: &Map<String, Value>,
    mut skip: Option<&mut dyn FnMut(FormatError)>,
) -> Result<Vec<RawQuantization>, FormatError> {
    let mut found = vec![];
    for file in QUANTIZATION_FILES {
        match (object(store, file), &mut skip) {
            (Ok(map), _) => found.extend(map.map(|map| RawQuantization { file, prefix: "", map })),
            (Err(e), Some(skip)) => skip(e),
            (Err(e), None) => return Err(e),
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
            Some(Value::Object(map)) => found.push(RawQuantization { file: "config.json", prefix, map: map.clone() }),
            Some(other) => {
                let key = prefix.trim_end_matches('.');
                let error = FormatError::config(&label, key, "an object", json::show(other), "correct or remove the key");
                match &mut skip {
                    Some(skip) => skip(error),
                    None => return Err(error),
                }
            }
        }
    }
    Ok(found)
}

/// Reads the first of the configs; where another differs from it a warning says in what.
pub(crate) fn quantization(store: &Store, found: &[RawQuantization], warnings: &Warnings) -> Result<Option<QuantConfig>, FormatError> {
    let Some((first, others)) = found.split_first() else { return Ok(None) };
    let file = &store.label(first.file);
    let mut config = QuantConfig::read(file, first.prefix, &first.map, warnings)?;
    for other in others {
        let other_file = &store.label(other.file);
        // Neither its warnings nor its errors stop anyone: this config is only compared with the one in use.
        let other = match QuantConfig::read(other_file, other.prefix, &other.map, &Warnings::default()) {
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
