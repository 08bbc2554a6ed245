//! Values as Python sees and shows them.

use super::MethodError;
use crate::error::clip;
use crate::json::show;
use serde_json::{Map, Value};

/// An integer, or a boolean, which passes every test for integers there.
pub(super) fn int(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_bool().map(i64::from))
}

/// A value in a message.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Bool(b) => boolean(*b),
        Value::Null => "None".into(),
        Value::String(s) => clip(s),
        other => show(other),
    }
}

pub(super) fn boolean(value: bool) -> String {
    if value { "True" } else { "False" }.into()
}

/// A list of strings in a message.
pub(super) fn list(items: &[&str]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| format!("'{item}'")).collect();
    format!("[{}]", quoted.join(", "))
}

/// The value of a key that must be there.
pub(super) fn required<'a>(config: &'a Map<String, Value>, key: &str) -> Result<&'a Value, MethodError> {
    config.get(key).ok_or_else(|| MethodError::MissingKey { keys: list(&[key]) })
}

/// `quant_method`, normalised; empty where there is none.
pub(super) fn quant_method(config: &Map<String, Value>) -> String {
    let name = config.get("quant_method").and_then(Value::as_str).unwrap_or("").to_lowercase();
    if name == "compressed_tensors" { "compressed-tensors".into() } else { clip(name) }
}

/// A key that is there and not null.
pub(super) fn given<'a>(config: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    config.get(key).filter(|value| !value.is_null())
}

/// Whether Python takes a value for true.
pub(super) fn truthy(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Bool(b)) => *b,
        Some(Value::Number(n)) => n.as_f64() != Some(0.0),
        Some(Value::String(s)) => !s.is_empty(),
        Some(Value::Array(a)) => !a.is_empty(),
        Some(Value::Object(o)) => !o.is_empty(),
    }
}
