//! Typed access to the keys of `config.json`.

use crate::ModelError;
use crate::architecture::Switch;
use serde_json::{Map, Value};

/// A JSON object with the name of the file it came from.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub file: &'a str,
    pub map: &'a Map<String, Value>,
}

/// Largest size that a config may name: a product of two still fits 64 bits.
const LARGEST: u64 = 1 << 31;

impl<'a> Keys<'a> {
    pub fn error(&self, key: &str, expected: impl Into<String>, remedy: impl Into<String>) -> ModelError {
        let found = self.map.get(key).map_or_else(|| "nothing".to_string(), Value::to_string);
        let found = if found.len() > 200 { format!("{}…", &found[..found.floor_char_boundary(200)]) } else { found };
        ModelError::Config { file: self.file.into(), key: key.into(), expected: expected.into(), found, remedy: remedy.into() }
    }

    /// The value of `key`, unless it is absent or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub fn size_opt(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // some writers store sizes as 1e4 or 4096.0
        let number = value.as_u64().or_else(|| value.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0 && *f < 1e15).map(|f| f as u64));
        match number {
            Some(n) if (1..=LARGEST).contains(&n) => Ok(Some(n as usize)),
            _ => Err(self.error(key, "a whole number of at least 1", "take config.json from the model's original folder")),
        }
    }

    pub fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.size_opt(key)?
            .ok_or_else(|| self.error(key, "a whole number of at least 1", "take config.json from the model's original folder"))
    }

    /// A number that may be 0.
    pub fn count(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(v) if v.as_f64() == Some(0.0) => Ok(0),
            Some(_) => self.size(key),
        }
    }

    pub fn float_opt(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(f) if f.is_finite() => Ok(Some(f)),
            _ => Err(self.error(key, "a number", "take config.json from the model's original folder")),
        }
    }

    /// A number above zero.
    pub fn positive(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        match self.float_opt(key)? {
            None => Ok(default),
            Some(f) if f > 0.0 => Ok(f),
            Some(_) => Err(self.error(key, "a number above 0", "take config.json from the model's original folder")),
        }
    }

    pub fn bool(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(_) => Err(self.error(key, "true or false", "take config.json from the model's original folder")),
        }
    }

    pub fn switch(&self, switch: Switch) -> Result<bool, ModelError> {
        match switch {
            Switch::Never => Ok(false),
            Switch::Always => Ok(true),
            Switch::Key(key, default) => self.bool(key, default),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(self.error(key, "a string", "take config.json from the model's original folder")),
        }
    }
}
