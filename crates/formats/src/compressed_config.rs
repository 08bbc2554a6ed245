//! The quantization config of compressed-tensors: groups of modules, each with a scheme, and modules left out.

use crate::cache_scales;
use crate::json::show;
use crate::keys::{self, Keys};
use crate::quant_config::{CheckpointFormat, GroupSize, Scheme, check_bits, check_group_size};
use crate::selection::Selection;
use crate::targets::Target;
use crate::warning::{WarningKind, Warnings};
use crate::{FormatError, QuantConfig};
use billfish_tensor::ActivationScale;
use serde_json::{Map, Value};

const FORMATS: [(&str, CheckpointFormat); 5] = [
    ("pack-quantized", CheckpointFormat::PackQuantized),
    ("int-quantized", CheckpointFormat::IntQuantized),
    ("float-quantized", CheckpointFormat::FloatQuantized),
    ("nvfp4-pack-quantized", CheckpointFormat::Nvfp4),
    ("mxfp4-pack-quantized", CheckpointFormat::Mxfp4),
];

fn format(file: &str, key: &str, value: &Value) -> Result<CheckpointFormat, FormatError> {
    FORMATS.iter().find(|(name, _)| value == name).map(|(_, f)| *f).ok_or_else(|| {
        let remedy = "save the checkpoint as pack-quantized or int-quantized, or use the dense original";
        FormatError::config(file, key, "pack-quantized or int-quantized", show(value), remedy)
    })
}

/// Reads the keys of a config whose method is compressed-tensors.
pub(crate) fn read(file: &str, prefix: &str, mut keys: Keys<'_>, warnings: &Warnings) -> Result<QuantConfig, FormatError> {
    let empty = |v: &Value| v.as_object().is_some_and(Map::is_empty);
    let dense_only = |v: &Value| v.as_object().is_some_and(|o| o.get("format").is_none_or(|f| f == "dense"));
    let remedy = "use a checkpoint without it: the weights alone would compute something else";
    keys.only(&["transform_config"], empty, "no transforms", remedy)?;
    keys.only(&["sparsity_config"], dense_only, "no sparsity", remedy)?;
    let cache_scheme = cache_scales::scheme(&mut keys)?;
    if cache_scheme.as_ref().is_some_and(|s| !s.floats) {
        warnings.add(WarningKind::Config, "the config describes a quantized cache of keys and values: it is not applied");
    }
    keys.optional(&["quantization_status", "global_compression_ratio"], |_, _, _| Ok(()))?;
    let overall = keys.optional(&["format"], |file, key, value| match value.as_str() {
        // Each group names its own then.
        Some("mixed-precision") => Ok(None),
        _ => format(file, key, value).map(Some),
    })?;
    let version = keys.optional(&["version"], |_, _, value| Ok(value.as_str().map(String::from)))?.flatten();
    let padded_words = version.as_deref().and_then(release).map(|v| v < (0, 18));
    let mut selection = Selection::default();
    for name in keys.optional(&["ignore"], keys::names)?.unwrap_or_default() {
        selection.skipped.push((Target::read(file, &format!("{prefix}ignore"), &name)?, "ignore"));
    }
    let groups = keys.required(&["config_groups"], "write which modules are quantized, and how", keys::map)?;
    for (name, value) in &groups {
        let prefix = format!("{prefix}config_groups.{name}");
        let map = keys::map(file, &prefix, value)?;
        selection.groups.extend(group(file, &format!("{prefix}."), &map, overall.flatten(), warnings)?);
    }
    keys.warn_of_the_rest(warnings);
    let Some(base) = selection.groups.first().map(|(_, scheme)| *scheme) else {
        return Err(keys.wrong("config_groups", "a group with `weights`".into(), "none".into(), "use the dense original"));
    };
    let mut config = QuantConfig::new(file, base, selection, padded_words);
    config.cache_scheme = cache_scheme;
    Ok(config)
}

/// The first two numbers of a version.
fn release(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// One group; `None` when it leaves weights alone.
fn group(
    file: &str,
    prefix: &str,
    map: &Map<String, Value>,
    overall: Option<CheckpointFormat>,
    warnings: &Warnings,
) -> Result<Option<(Vec<Target>, Scheme)>, FormatError> {
    let mut keys = Keys::new(file, prefix, map);
    let names = keys.required(&["targets"], "name the modules of the group, such as `Linear`", keys::names)?;
    let targets = names.iter().map(|t| Target::read(file, &format!("{prefix}targets"), t)).collect::<Result<_, _>>()?;
    let mut activation_scale = ActivationScale::default();
    for key in ["input_activations", "output_activations"] {
        if let Some(a) = keys.optional(&[key], keys::map)? {
            let show = |k: &str| a.get(k).map_or_else(|| "?".into(), |v| v.as_str().map_or_else(|| v.to_string(), String::from));
            let what = format!("{} bit {}, one scale a {}", show("num_bits"), show("type"), show("strategy"));
            let applied = if key == "input_activations" && asks_for_tokens(&a) {
                activation_scale = ActivationScale::Token;
                "applied with int8 activations; with any other precision the weights run alone"
            } else {
                "they are not applied, the weights run alone"
            };
            warnings.add(WarningKind::Config, format!("the config describes quantized activations (`{key}`: {what}): {applied}"));
        }
    }
    let format = keys.optional(&["format"], format)?.or(overall);
    let weights = keys.optional(&["weights"], keys::map)?;
    keys.warn_of_the_rest(warnings);
    let Some(weights) = weights else { return Ok(None) };
    let Some(format) = format else {
        return Err(keys.wrong("format", "pack-quantized or int-quantized".into(), "no such key".into(), "write the format of the group"));
    };
    let scheme = scheme(file, &format!("{prefix}weights."), &weights, format, warnings)?;
    Ok(Some((targets, Scheme { activation_scale, ..scheme })))
}

/// Whether activations are to be 8-bit integers with one scale a token, found while the model runs.
fn asks_for_tokens(a: &Map<String, Value>) -> bool {
    let is = |key: &str, value: Value| a.get(key).is_some_and(|v| *v == value);
    let whole = |key: &str| a.get(key).is_none_or(Value::is_null);
    is("num_bits", 8.into())
        && a.get("type").is_none_or(|v| v == "int")
        && a.get("symmetric").is_none_or(|v| v == true)
        && is("strategy", "token".into())
        && is("dynamic", true.into())
        && whole("group_size")
}

fn scheme(
    file: &str,
    prefix: &str,
    map: &Map<String, Value>,
    format: CheckpointFormat,
    warnings: &Warnings,
) -> Result<Scheme, FormatError> {
    let mut keys = Keys::new(file, prefix, map);
    let integer = matches!(format, CheckpointFormat::PackQuantized | CheckpointFormat::IntQuantized);
    let bits = keys.required(&["num_bits"], "write the width of the codes, such as 4", check_bits)?;
    let kind = keys.optional(&["type"], |_, _, v| Ok(v.clone()))?.unwrap_or_else(|| "int".into());
    if (kind == "int") != integer {
        let expected = if integer { "`int`" } else { "`float`" };
        return Err(keys.wrong("type", format!("{expected} in {}", format.name()), show(&kind), "correct the key"));
    }
    let sym = keys.optional(&["symmetric"], keys::boolean)?.unwrap_or(true);
    let size = keys.optional(&["group_size"], check_group_size)?;
    let strategy = keys.optional(&["strategy"], |_, _, v| Ok(v.as_str().unwrap_or_default().to_string()))?;
    let strategy = strategy.unwrap_or_else(|| if matches!(size, Some(GroupSize::Rows(_))) { "group" } else { "channel" }.into());
    let group_size = match (strategy.as_str(), size) {
        ("group" | "tensor_group", Some(size)) => size,
        ("group" | "tensor_group", None) => {
            return Err(keys.wrong("group_size", "the rows of a group".into(), "no such key".into(), "write the group size"));
        }
        ("channel" | "tensor", _) => GroupSize::Channel,
        // Its scales are not read anyway.
        ("block", _) if !integer => GroupSize::Channel,
        (other, _) => {
            let expected = "group, channel or tensor".into();
            return Err(keys.wrong("strategy", expected, format!("\"{other}\""), "save the checkpoint with one of these strategies"));
        }
    };
    let desc_act = keys.optional(&["actorder"], |_, _, v| Ok(v == "group" || v == true))?.unwrap_or(false);
    keys.only(&["dynamic"], |v| v == false, "false", "weights must have been quantized before")?;
    for key in ["block_structure", "observer", "observer_kwargs", "scale_dtype", "zp_dtype"] {
        keys.optional(&[key], |_, _, _| Ok(()))?;
    }
    keys.warn_of_the_rest(warnings);
    Ok(Scheme {
        bits,
        group_size,
        sym,
        desc_act: desc_act && group_size != GroupSize::Channel,
        format,
        activation_scale: ActivationScale::default(),
    })
}
