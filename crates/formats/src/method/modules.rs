//! Which modules count as quantized: a list of names, and how it is compared with modules that are fused.

use super::MethodError;
use super::python::{text, truthy};
use crate::json::show;
use billfish_tensor::DType;
use serde_json::Value;

/// Modules that a model fuses, and the modules of the checkpoint that they are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FusedModules(Vec<(String, Vec<String>)>);

impl FusedModules {
    /// Fused names with the names of their parts. Names are last components: `qkv_proj`, not a path.
    pub fn new<'a>(modules: impl IntoIterator<Item = (&'a str, &'a [&'a str])>) -> Self {
        Self(modules.into_iter().map(|(fused, parts)| (fused.into(), parts.iter().map(|p| (*p).into()).collect())).collect())
    }

    /// Those of Llama, Qwen2, Mistral and their like: `qkv_proj` and `gate_up_proj`.
    pub fn llama() -> Self {
        Self::new([("qkv_proj", &["q_proj", "k_proj", "v_proj"][..]), ("gate_up_proj", &["gate_proj", "up_proj"][..])])
    }

    /// Fused names with the names of their parts.
    pub fn groups(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.0.iter().map(|(fused, parts)| (fused.as_str(), parts.as_slice()))
    }

    /// The names in the checkpoint of the parts of module `prefix`; `None` when it is not fused. Every occurrence of the
    /// fused name in the path is replaced, not only the last component.
    pub fn parts(&self, prefix: &str) -> Option<Vec<String>> {
        let last = prefix.rsplit('.').next().unwrap_or(prefix);
        let (fused, parts) = self.0.iter().find(|(fused, _)| fused == last)?;
        Some(parts.iter().map(|part| prefix.replace(fused.as_str(), part)).collect())
    }

    /// The parts of the first fused name that stands in `prefix` exactly once, wherever it stands.
    pub(super) fn parts_once(&self, prefix: &str) -> Option<Vec<String>> {
        let (fused, parts) = self.0.iter().find(|(fused, _)| prefix.matches(fused.as_str()).count() == 1)?;
        Some(parts.iter().map(|part| prefix.replace(fused.as_str(), part)).collect())
    }

    /// Whether `modules` makes module `prefix` quantized. An entry counts for every module whose name *contains* it: so
    /// `model.layers.1.mlp.gate` also counts for `model.layers.1.mlp.gate_proj`. An empty list counts for none.
    ///
    /// # Errors
    /// [`MethodError::MixedShards`] when it makes some parts of a fused module quantized and others not.
    pub fn quantized(&self, modules: &[String], prefix: &str) -> Result<bool, MethodError> {
        let listed = |name: &str| modules.iter().any(|entry| name.contains(entry.as_str()));
        let Some(parts) = self.parts(prefix) else { return Ok(listed(prefix)) };
        let count = parts.iter().filter(|part| listed(part)).count();
        if count != 0 && count != parts.len() {
            return Err(MethodError::MixedShards { prefix: prefix.into() });
        }
        Ok(count != 0)
    }
}

/// How a model renames the modules of a checkpoint: lists of texts and what each becomes, `None` to drop the name.
/// The list of quantized modules is renamed so, the patterns of `dynamic` are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameMap {
    /// Replaced anywhere, the first occurrence only.
    pub substrings: Vec<(String, Option<String>)>,
    /// Replaced at the start.
    pub prefixes: Vec<(String, Option<String>)>,
    /// Replaced at the end.
    pub suffixes: Vec<(String, Option<String>)>,
}

impl NameMap {
    /// The new name, `None` when it is dropped. All rules are applied, one after another.
    pub fn apply(&self, name: &str) -> Option<String> {
        let mut name = name.to_string();
        for (from, to) in &self.substrings {
            if name.contains(from.as_str()) {
                name = name.replacen(from.as_str(), to.as_deref()?, 1);
            }
        }
        for (from, to) in &self.prefixes {
            if let Some(rest) = name.strip_prefix(from.as_str()) {
                name = format!("{}{rest}", to.as_deref()?);
            }
        }
        for (from, to) in &self.suffixes {
            if let Some(rest) = name.strip_suffix(from.as_str()) {
                name = format!("{rest}{}", to.as_deref()?);
            }
        }
        Some(name)
    }
}

/// The list of quantized modules that headers of safetensors files show: whatever has a tensor that is no float of 16 or
/// 32 bits, sorted. Taken where a config gives no list.
pub fn infer_modules<'a>(tensors: impl IntoIterator<Item = (&'a str, DType)>) -> Vec<String> {
    let floats = [DType::F16, DType::BF16, DType::F32];
    let quantized = tensors.into_iter().filter(|(_, dtype)| !floats.contains(dtype));
    let mut modules: Vec<String> = quantized.map(|(name, _)| name.rsplit_once('.').map_or("", |(module, _)| module).into()).collect();
    modules.sort_unstable();
    modules.dedup();
    modules
}

/// The value of `modules_in_block_to_quantize`: a list, or a list of lists that is flattened by one level if all its
/// elements are lists. Empty when there is none.
pub(super) fn read(value: Option<&Value>) -> Result<Vec<String>, MethodError> {
    const KEY: &str = "modules_in_block_to_quantize";
    if !truthy(value) {
        return Ok(vec![]);
    }
    let wrong = |expected, found| MethodError::Value { key: KEY.into(), expected, found };
    let Some(Value::Array(entries)) = value else {
        return Err(wrong("a list of names, or of lists of names", value.map_or_else(String::new, show)));
    };
    let nested = entries.iter().all(Value::is_array);
    let flat = entries.iter().flat_map(|entry| entry.as_array().filter(|_| nested).map_or(std::slice::from_ref(entry), Vec::as_slice));
    flat.map(|entry| entry.as_str().map(Into::into).ok_or_else(|| wrong("names, at most one list deep", text(entry)))).collect()
}
