//! AWQ modules: quantized unless `modules_to_not_convert` names them.

use super::module::{Layer, Resolution, ResolvedScheme, Unquantized};
use super::python::{boolean, given, int, list, required, text, truthy};
use super::{FusedModules, MethodError, NameMap, Note, Platform, check_marlin_moe};
use crate::json::show;
use serde_json::{Map, Value};

/// The config as the method `awq`, `awq_marlin` or `cpu_awq` reads it.
#[derive(Clone, Debug)]
pub struct AwqConfig {
    scheme: ResolvedScheme,
    lm_head: bool,
    skipped: Vec<String>,
}

impl AwqConfig {
    /// Reads a config for `method`, one of `awq`, `awq_marlin` and `cpu_awq`. Only the first knows the keys of old, `w_bit`
    /// and `q_group_size`.
    ///
    /// # Errors
    /// [`MethodError`]: a required key is missing, the width is not 4, or a value is of another kind.
    pub fn read(method: &str, config: &Map<String, Value>) -> Result<Self, MethodError> {
        let method = ["awq", "awq_marlin", "cpu_awq"].into_iter().find(|m| *m == method);
        let Some(method) = method else {
            return Err(MethodError::NotDescribed { method: "another than those of AWQ".into() });
        };
        let either = |old: &str, key: &str| match (method, config.get(old).or_else(|| config.get(key))) {
            ("awq", Some(value)) => Ok(value),
            ("awq", None) => Err(MethodError::MissingKey { keys: list(&[old, key]) }),
            _ => required(config, key),
        };
        let (bits, group_size) = (either("w_bit", "bits")?, either("q_group_size", "group_size")?);
        let zero_point = truthy(Some(required(config, "zero_point")?));
        let wrong = |key: &str, expected, value: &Value| MethodError::Value { key: key.into(), expected, found: text(value) };
        match (method, int(bits)) {
            (_, Some(4)) => {}
            ("awq", _) => return Err(MethodError::AwqBits { bits: text(bits) }),
            // an assertion, or a kernel that does not exist: without a text of their own
            _ => return Err(wrong("bits", "4", bits)),
        }
        let group_size = int(group_size).ok_or_else(|| wrong("group_size", "a number", group_size))?;
        if method == "cpu_awq" && !zero_point {
            return Err(MethodError::Value { key: "zero_point".into(), expected: "True", found: boolean(false) });
        }
        let skipped = match given(config, "modules_to_not_convert") {
            None => vec![],
            Some(Value::Array(names)) => {
                let name = |v: &Value| v.as_str().map(String::from).ok_or_else(|| wrong("modules_to_not_convert", "names", v));
                names.iter().map(name).collect::<Result<_, _>>()?
            }
            Some(other) => {
                return Err(MethodError::Value { key: "modules_to_not_convert".into(), expected: "a list of names", found: show(other) });
            }
        };
        let scheme = ResolvedScheme { method, bits: 4, group_size, desc_act: false, sym: !zero_point, v2: true };
        // the plain method has no key for the head
        let lm_head = method != "awq" && truthy(config.get("lm_head"));
        Ok(Self { scheme, lm_head, skipped })
    }

    /// Puts `dense`, modules without a tensor of integers, in place of a list that the config does not give.
    pub fn infer_dense(&mut self, dense: Vec<String>) {
        if self.skipped.is_empty() {
            self.skipped = dense;
        }
    }

    /// Renames the list of modules that are left dense.
    pub fn rename_modules(&mut self, map: &NameMap) {
        self.skipped = self.skipped.iter().filter_map(|name| map.apply(name)).collect();
    }

    /// What becomes of the module `prefix`, a name of the *model*. Whether Marlin's tiles fit its shape is not asked here
    /// ([`super::check_marlin_shape`]): where they do not, `awq_marlin` runs the kernels of `awq`, with a warning.
    ///
    /// # Errors
    /// [`MethodError::MixedShards`] when the list names some parts of a fused module and others not.
    pub fn resolve(&self, layer: Layer, prefix: &str, fused: &FusedModules, platform: Platform) -> Result<Resolution, MethodError> {
        let mut scheme = self.scheme.clone();
        let mut notes = vec![];
        match layer {
            Layer::Head if !self.lm_head => return Ok(Resolution::Unquantized(Unquantized::Head)),
            Layer::Other => return Ok(Resolution::Unquantized(Unquantized::Layer)),
            // experts on a CPU have no kernel, and nobody says so
            Layer::Experts(_) if scheme.method == "cpu_awq" => return Ok(Resolution::Unquantized(Unquantized::Layer)),
            _ => {}
        }
        if fused.quantized(&self.skipped, prefix)? {
            return Ok(Resolution::Unquantized(Unquantized::NotConverted));
        }
        if let Layer::Experts(shape) = layer
            && (scheme.method == "awq" || !check_marlin_moe(platform, shape, scheme.group_size))
        {
            if scheme.method == "awq_marlin" {
                let warning = format!("Layer '{prefix}' is not supported by AWQMoeMarlin. Falling back to Moe WNA16 kernels.");
                notes.push(Note::Warning(warning));
            }
            scheme.method = "moe_wna16";
        }
        Ok(Resolution::Quantized { scheme, notes })
    }
}
