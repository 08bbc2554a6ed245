//! Keys of a quantization config: aliases, types, and the account of which were understood.

use crate::json::show;
use crate::warning::{WarningKind, Warnings};
use crate::{FormatError, Writer};
use serde_json::{Map, Value};

/// Keys that say how codes were chosen or where the model came from: nothing a reader needs.
const HARMLESS: &[&str] = &[
    "act_group_aware",
    "amp",
    "auto_forward_data_parallel",
    "autoround_version",
    "backend",
    "batch_size",
    "block_name_to_quantize",
    "cache_block_outputs",
    "damp_auto_increment",
    "damp_percent",
    "dataset",
    "disable_exllama",
    "do_fuse",
    "enable_minmax_tuning",
    "enable_norm_bias_tuning",
    "enable_quanted_input",
    "exllama_config",
    "failsafe",
    "fallback",
    "foem",
    "fuse_max_seq_len",
    "gc_mode",
    "gptaq",
    "gradient_accumulate_steps",
    "hessian",
    "hyb_act",
    "iters",
    "low_cpu_mem_usage",
    "low_gpu_mem_usage",
    "lr",
    "lr_scheduler",
    "max_input_length",
    "minmax_lr",
    "mock_quantization",
    "model_file_base_name",
    "model_name_or_path",
    "model_seqlen",
    "modules_to_fuse",
    "module_name_preceding_first_block",
    "mse",
    "not_use_best_mse",
    "nsamples",
    "offload_to_disk",
    "offload_to_disk_path",
    "pack_impl",
    "packing_format",
    "pad_token_id",
    "seqlen",
    "static_groups",
    "tokenizer",
    "true_sequential",
    "uri",
    "use_cuda_fp16",
    "use_exllama",
    "v2",
    "v2_alpha",
    "version",
    "wait_for_submodule_finalizers",
];

/// Keys that change the model when they are set, so that a value other than null, false or empty is worth a warning.
const NOT_APPLIED: &[&str] = &["adapter", "rotation", "preprocessors"];

/// One object of keys; remembers which were asked for.
pub(crate) struct Keys<'a> {
    file: &'a str,
    prefix: &'a str,
    map: &'a Map<String, Value>,
    known: Vec<&'static str>,
}

type Read<T> = fn(&str, &str, &Value) -> Result<T, FormatError>;

impl<'a> Keys<'a> {
    pub(crate) fn new(file: &'a str, prefix: &'a str, map: &'a Map<String, Value>) -> Self {
        Self { file, prefix, map, known: vec![] }
    }

    /// The value under the first of `names` that is there. Null counts as absent; two names with two values are an error.
    pub(crate) fn optional<T>(
        &mut self,
        names: &[&'static str],
        read: impl Fn(&str, &str, &Value) -> Result<T, FormatError>,
    ) -> Result<Option<T>, FormatError> {
        self.known.extend(names);
        let mut given = names.iter().filter_map(|n| Some((*n, self.map.get(*n).filter(|v| !v.is_null())?)));
        let Some((name, value)) = given.next() else { return Ok(None) };
        // An illegal value is the better message even when the other name has another value.
        let result = read(self.file, &format!("{}{name}", self.prefix), value)?;
        if let Some((other, second)) = given.find(|(_, v)| *v != value) {
            let expected = format!("{} as under its other name `{name}`", show(value));
            return Err(self.wrong(other, expected, show(second), "remove the wrong one of the two keys"));
        }
        Ok(Some(result))
    }

    pub(crate) fn required<T>(&mut self, names: &[&'static str], remedy: &str, read: Read<T>) -> Result<T, FormatError> {
        match self.optional(names, read)? {
            Some(value) => Ok(value),
            None => Err(self.wrong(names[0], "a value".into(), "no such key".into(), remedy)),
        }
    }

    /// A key that, when it is there, must satisfy `ok`.
    pub(crate) fn only(&mut self, names: &[&'static str], ok: fn(&Value) -> bool, expected: &str, remedy: &str) -> Result<(), FormatError> {
        self.optional(
            names,
            |file, key, value| {
                if ok(value) { Ok(()) } else { Err(FormatError::config(file, key, expected, show(value), remedy)) }
            },
        )?;
        Ok(())
    }

    /// The text under `version`, if it is text.
    pub(crate) fn version(&self) -> Option<&'a str> {
        self.map.get("version")?.as_str()
    }

    pub(crate) fn wrong(&self, name: &str, expected: String, found: String, remedy: &str) -> FormatError {
        FormatError::config(self.file, format!("{}{name}", self.prefix), expected, found, remedy)
    }

    /// Lists the keys that nobody asked for and that are not known to be harmless.
    pub(crate) fn warn_of_the_rest(&self, warnings: &Warnings) {
        for (name, value) in self.map {
            let name = name.as_str();
            let idle = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(a) => a.is_empty(),
                Value::Object(o) => o.is_empty(),
                _ => false,
            };
            if self.known.contains(&name) || HARMLESS.contains(&name) || (NOT_APPLIED.contains(&name) && idle) {
                continue;
            }
            let message = if NOT_APPLIED.contains(&name) {
                "a key of the quantization config is not applied: the tensors are read as they are"
            } else {
                "an unknown key of the quantization config has no effect"
            };
            warnings.about(WarningKind::Config, message, &format!("{}{}", self.prefix, crate::error::clip(name)));
        }
    }
}

pub(crate) fn boolean(file: &str, key: &str, value: &Value) -> Result<bool, FormatError> {
    value.as_bool().ok_or_else(|| FormatError::config(file, key, "true or false", show(value), "correct the key"))
}

pub(crate) fn map(file: &str, key: &str, value: &Value) -> Result<Map<String, Value>, FormatError> {
    value.as_object().cloned().ok_or_else(|| FormatError::config(file, key, "an object", show(value), "correct the key"))
}

/// A list of names, or a list of lists of names, flattened.
pub(crate) fn names(file: &str, key: &str, value: &Value) -> Result<Vec<String>, FormatError> {
    let wrong = |v: &Value| FormatError::config(file, key, "a list (or a list of lists) of module names", show(v), "correct the key");
    let mut out = vec![];
    for item in value.as_array().ok_or_else(|| wrong(value))? {
        match item {
            Value::String(s) => out.push(s.clone()),
            Value::Array(inner) => {
                for name in inner {
                    out.push(name.as_str().ok_or_else(|| wrong(name))?.into());
                }
            }
            other => return Err(wrong(other)),
        }
    }
    Ok(out)
}

/// The writer that `meta.quantizer` names, if it does.
pub(crate) fn writer(file: &str, key: &str, value: &Value) -> Result<Option<Writer>, FormatError> {
    let meta = map(file, key, value)?;
    let wrong = |v: &Value| {
        let key = format!("{key}.quantizer");
        FormatError::config(file, key, "`name:version` or a list of such", show(v), "correct the key")
    };
    let names: Vec<&str> = match meta.get("quantizer") {
        None | Some(Value::Null) => vec![],
        Some(Value::String(s)) => vec![s],
        Some(Value::Array(a)) => a.iter().map(|v| v.as_str().ok_or_else(|| wrong(v))).collect::<Result<_, _>>()?,
        Some(other) => return Err(wrong(other)),
    };
    let mut writers: Vec<Writer> = names.iter().map(|n| Writer::parse(n)).collect();
    // When several programs had a hand in it, the one whose packing differs from all others is the one to know about.
    writers.sort_by_key(|w| !w.is_gptqmodel());
    Ok(writers.into_iter().next())
}
