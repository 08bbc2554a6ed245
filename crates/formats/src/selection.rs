//! Which modules a config says are quantized, and how, in the spellings other than `dynamic`.

use crate::dynamic::Overrides;
use crate::json::show;
use crate::keys::{self, Keys};
use crate::quant_config::{check_bits, check_group_size};
use crate::targets::Target;
use crate::warning::{WarningKind, Warnings};
use crate::{FormatError, ListEntry, Scheme};
use serde_json::{Map, Value};

/// Keys of an entry of `extra_config` that say nothing about what the file holds.
const HARMLESS: &[&str] = &["data_type", "scale_dtype", "super_bits", "super_group_size", "fixed_by_user", "in_blocks"];

/// What a config says about one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// Quantized.
    Quantized,
    /// Quantized if it is a linear module.
    Linear,
    /// Left dense, by this key.
    Dense(&'static str),
    /// Nothing.
    Nothing,
}

/// One entry of `extra_config`.
#[derive(Clone, Debug)]
pub(crate) struct Extra {
    target: Target,
    /// `None` when the entry leaves modules dense.
    overrides: Option<Overrides>,
}

/// Every list of a config that names modules, `dynamic` and `modules_in_block_to_quantize` apart.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// Modules left dense, and the key that lists them.
    pub(crate) skipped: Vec<(Target, &'static str)>,
    /// Targets of each entry of `config_groups`, and how they are quantized.
    pub(crate) groups: Vec<(Vec<Target>, Scheme)>,
    /// `extra_config`, in order.
    pub(crate) extra: Vec<Extra>,
    /// `block_name_to_quantize`.
    pub(crate) blocks: Vec<String>,
}

impl Selection {
    /// `modules_to_not_convert`: parts of names.
    pub(crate) fn not_converted(&mut self, keys: &mut Keys<'_>) -> Result<(), FormatError> {
        let parts = keys.optional(&["modules_to_not_convert"], keys::names)?.unwrap_or_default();
        // An empty part would be in every name.
        let targets = parts.into_iter().filter(|p| !p.is_empty()).map(|p| (Target::Part(p), "modules_to_not_convert"));
        self.skipped.extend(targets);
        Ok(())
    }

    /// `extra_config` and `block_name_to_quantize`.
    pub(crate) fn extra(&mut self, file: &str, prefix: &str, keys: &mut Keys<'_>, warnings: &Warnings) -> Result<(), FormatError> {
        let map = keys.optional(&["extra_config"], keys::map)?.unwrap_or_default();
        for (name, value) in &map {
            self.extra.push(extra(file, &format!("{prefix}extra_config.{name}"), name, value, warnings)?);
        }
        self.blocks = keys.optional(&["block_name_to_quantize", "to_quant_block_names"], blocks)?.unwrap_or_default();
        Ok(())
    }

    fn extra_of(&self, module: &str) -> Option<&Extra> {
        let ranked = self.extra.iter().filter_map(|e| Some((e.target.rank(module)?, e)));
        // Of equal ranks the first: `max_by_key` would give the last.
        ranked.rev().max_by_key(|(rank, _)| *rank).map(|(_, e)| e)
    }

    fn group_of(&self, module: &str) -> Option<(u8, Scheme)> {
        let rank = |targets: &[Target]| targets.iter().filter_map(|t| t.rank(module)).max();
        let ranked = self.groups.iter().filter_map(|(targets, scheme)| Some((rank(targets)?, *scheme)));
        ranked.rev().max_by_key(|(rank, _)| *rank)
    }

    /// What changes for a module.
    pub(crate) fn overrides(&self, module: &str) -> Option<&Overrides> {
        self.extra_of(module)?.overrides.as_ref()
    }

    /// The scheme of the group that names a module.
    pub(crate) fn scheme(&self, module: &str) -> Option<Scheme> {
        self.group_of(module).map(|(_, scheme)| scheme)
    }

    /// What the lists say of a module.
    pub(crate) fn says(&self, module: &str) -> Says {
        if let Some(extra) = self.extra_of(module) {
            return if extra.overrides.is_some() { Says::Quantized } else { Says::Dense("extra_config") };
        }
        if let Some((_, key)) = self.skipping(module) {
            return Says::Dense(key);
        }
        if !self.blocks.is_empty() {
            return if self.blocks.iter().any(|b| inside(module, b)) { Says::Nothing } else { Says::Dense("block_name_to_quantize") };
        }
        if self.groups.is_empty() {
            return Says::Nothing;
        }
        let unknown = self.groups.iter().flat_map(|(targets, _)| targets).any(|t| matches!(t, Target::Class(_)));
        match self.group_of(module) {
            Some((0, _)) => Says::Linear,
            Some(_) => Says::Quantized,
            None if unknown => Says::Nothing,
            None => Says::Dense("config_groups"),
        }
    }

    /// The entry that decides what the lists say of a module. A group of all linear modules is not worth naming.
    pub(crate) fn entry(&self, module: &str) -> Option<ListEntry> {
        let entry = |key, text: &str, dense| Some(ListEntry { key, entry: crate::error::clip(text), dense });
        if let Some(extra) = self.extra_of(module) {
            return entry("extra_config", extra.target.text(), extra.overrides.is_none());
        }
        if let Some((target, key)) = self.skipping(module) {
            return entry(key, target.text(), true);
        }
        if let Some(block) = self.blocks.iter().find(|b| inside(module, b)) {
            return entry("block_name_to_quantize", block, false);
        }
        let targets = self.groups.iter().flat_map(|(targets, _)| targets);
        let named = targets.filter_map(|t| Some((t.rank(module).filter(|rank| *rank > 0)?, t)));
        named.rev().max_by_key(|(rank, _)| *rank).and_then(|(_, target)| entry("config_groups", target.text(), false))
    }

    fn skipping(&self, module: &str) -> Option<&(Target, &'static str)> {
        self.skipped.iter().find(|(t, _)| t.rank(module).is_some_and(|rank| rank > 0))
    }

    /// Warns of every entry that names none of `modules`.
    ///
    /// # Errors
    /// An entry that cannot be decided for one of them.
    pub(crate) fn warn_unmatched(&self, file: &str, modules: &[&str], warnings: &Warnings) -> Result<(), FormatError> {
        let skipped = self.skipped.iter().map(|(t, key)| (t, *key));
        let extra = self.extra.iter().map(|e| (&e.target, "extra_config"));
        let groups = self.groups.iter().flat_map(|(targets, _)| targets).map(|t| (t, "config_groups"));
        for (target, key) in skipped.chain(extra).chain(groups) {
            modules.iter().try_for_each(|m| target.decide(file, key, m))?;
            if target.names_modules() && !modules.iter().any(|m| target.rank(m).is_some()) {
                let message = format!("an entry of `{key}` names no module of the checkpoint");
                warnings.about(WarningKind::Rules, message, &crate::error::clip(target.text()));
            }
        }
        Ok(())
    }
}

/// Whether a module is a block or a part of it.
fn inside(module: &str, block: &str) -> bool {
    module.strip_prefix(block).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn extra(file: &str, key: &str, name: &str, value: &Value, warnings: &Warnings) -> Result<Extra, FormatError> {
    let target = Target::name_or_pattern(file, key, name)?;
    let map: Map<String, Value> = keys::map(file, key, value)?;
    let mut overrides = Overrides::default();
    let mut dense = false;
    for (name, value) in &map {
        let key = format!("{key}.{name}");
        match name.as_str() {
            _ if value.is_null() => {}
            // Sixteen and more bits are those of a float.
            "bits" if value.as_u64().is_some_and(|b| b >= 16) => dense = true,
            "bits" => overrides.bits = Some(check_bits(file, &key, value)?),
            "group_size" if !dense => overrides.group_size = Some(check_group_size(file, &key, value)?),
            "sym" => overrides.sym = Some(keys::boolean(file, &key, value)?),
            _ if HARMLESS.contains(&name.as_str()) || name.starts_with("act_") || dense => {}
            _ => warnings.about(WarningKind::Rules, format!("the key `{name}` of an entry of `extra_config` has no effect"), key.as_str()),
        }
    }
    Ok(Extra { target, overrides: (!dense).then_some(overrides) })
}

/// A list of names, or names with commas between them.
fn blocks(file: &str, key: &str, value: &Value) -> Result<Vec<String>, FormatError> {
    match value {
        Value::String(text) => Ok(text.split(',').map(|s| s.trim().to_string()).filter(|s| !s.is_empty()).collect()),
        Value::Array(_) => keys::names(file, key, value),
        _ => Err(FormatError::config(file, key, "a list of names", show(value), "correct the key")),
    }
}
