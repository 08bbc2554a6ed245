//! `dynamic`: per-module rules of a quantization config, an ordered map from pattern to overrides.
//!
//! A pattern is a regular expression that must match at the *start* of the module's name. `-:PATTERN` leaves the module
//! dense; `+:PATTERN` or a bare pattern overrides keys. Only one rule ever applies, and there are two readings of which:
//! the first that matches in the order of the file, or (what the usual writer does) negative rules before positive ones.
//! They differ only for a module that a positive rule matches before a negative one; whether its tensors are quantized
//! then tells which reading the writer had. Patterns match the names in the file, before any fusion of modules.

use crate::FormatError;
use crate::json::show;
use crate::quant_config::{GroupSize, check_bits, check_group_size, check_pack_dtype};
use crate::warning::{WarningKind, Warnings};
use fancy_regex::Regex;
use serde_json::{Map, Value};

/// Keys of an override that say how codes were chosen, not what the file holds.
const HARMLESS: &[&str] = &[
    "mse",
    "damp_percent",
    "damp_auto_increment",
    "static_groups",
    "act_group_aware",
    "hyb_act",
    "true_sequential",
    "fallback",
    "failsafe",
    "hessian",
    "gptaq",
    "foem",
    "v2",
    "v2_alpha",
    "mock_quantization",
    "smooth",
];

/// Longest pattern and most rules; real configs stay far below both.
const MOST_PATTERN: usize = 16 << 10;
const MOST_RULES: usize = 4096;

/// What a positive rule changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Width of a code.
    pub bits: Option<u32>,
    /// Rows of a group.
    pub group_size: Option<GroupSize>,
    /// Whether zero points are the midpoint.
    pub sym: Option<bool>,
    /// Whether rows were quantized in another order than they stand.
    pub desc_act: Option<bool>,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    text: String,
    skip: bool,
    overrides: Overrides,
    regex: Regex,
    file: String,
}

impl Rule {
    /// The rule as written, prefix included.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the rule leaves modules dense.
    pub fn skips(&self) -> bool {
        self.skip
    }

    /// What the rule changes (nothing when it skips).
    pub fn overrides(&self) -> &Overrides {
        &self.overrides
    }

    /// Whether the rule matches `module`, at the start of its name.
    ///
    /// # Errors
    /// [`FormatError::Config`] when the pattern needs too many steps on this name.
    pub fn matches(&self, module: &str) -> Result<bool, FormatError> {
        // The leftmost match starts at 0 exactly if some match does. Anchoring by text (`\A(?:…)`) would break patterns
        // in verbose mode, whose trailing comment would swallow the parenthesis.
        match self.regex.find(module) {
            Ok(found) => Ok(found.is_some_and(|m| m.start() == 0)),
            Err(e) => Err(FormatError::config(
                &self.file,
                format!("dynamic.{}", self.text),
                format!("a pattern that can be decided for `{module}`"),
                e,
                "simplify the pattern",
            )),
        }
    }
}

/// The rules of a config, in order.
#[derive(Clone, Debug, Default)]
pub struct Dynamic {
    rules: Vec<Rule>,
}

/// What the two readings make of one module.
#[derive(Clone, Copy, Debug)]
pub struct Match<'a> {
    first: Option<&'a Rule>,
    first_negative: Option<&'a Rule>,
    first_positive: Option<&'a Rule>,
}

impl<'a> Match<'a> {
    /// The first rule that matches, in the order of the file (vLLM's reading).
    pub fn in_order(&self) -> Option<&'a Rule> {
        self.first
    }

    /// The first negative rule that matches, else the first positive one (GPTQModel's reading).
    pub fn negatives_first(&self) -> Option<&'a Rule> {
        self.first_negative.or(self.first_positive)
    }

    /// Whether the two readings apply different rules.
    pub fn differ(&self) -> bool {
        self.in_order().map(Rule::text) != self.negatives_first().map(Rule::text)
    }

    /// The rule that made the module what its tensors show: quantized, so the first positive one, or dense.
    pub fn for_tensors(&self, quantized: bool) -> Option<&'a Rule> {
        if quantized { self.first_positive } else { self.first_negative }
    }
}

impl Dynamic {
    /// Reads the value of the key `dynamic` of `file`.
    pub(crate) fn read(file: &str, map: &Map<String, Value>, warnings: &Warnings) -> Result<Self, FormatError> {
        if map.len() > MOST_RULES {
            return Err(FormatError::config(file, "dynamic", format!("at most {MOST_RULES} rules"), map.len(), "write fewer, wider rules"));
        }
        let rules = map.iter().map(|(text, value)| rule(file, text, value, warnings)).collect::<Result<_, _>>()?;
        Ok(Self { rules })
    }

    /// Reads rules that are no part of a folder yet: the value of the key `dynamic`, or a config with that key.
    ///
    /// # Errors
    /// [`FormatError::Config`] for a pattern or an override that cannot be, or a key that would be ignored.
    pub fn parse(file: &str, value: &Value) -> Result<Self, FormatError> {
        let wrong =
            |found: String| FormatError::config(file, "dynamic", "an object of rules", found, "write patterns and what they change");
        let map = value.get("dynamic").unwrap_or(value).as_object().ok_or_else(|| wrong(show(value)))?;
        let warnings = Warnings::default();
        let rules = Self::read(file, map, &warnings)?;
        match warnings.list().first() {
            Some(warning) => Err(wrong(warning.to_string())),
            None => Ok(rules),
        }
    }

    /// The rules, in the order of the file.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Which rules match `module`.
    ///
    /// # Errors
    /// As [`Rule::matches`].
    pub fn find(&self, module: &str) -> Result<Match<'_>, FormatError> {
        let mut found = Match { first: None, first_negative: None, first_positive: None };
        for rule in &self.rules {
            let slot = if rule.skip { &mut found.first_negative } else { &mut found.first_positive };
            if slot.is_none() && rule.matches(module)? {
                *slot = Some(rule);
                found.first.get_or_insert(rule);
            }
        }
        Ok(found)
    }

    /// Warns of every rule that matches none of `modules`.
    pub(crate) fn warn_unmatched(&self, modules: &[&str], warnings: &Warnings) -> Result<(), FormatError> {
        for rule in &self.rules {
            let mut any = false;
            for module in modules {
                any = any || rule.matches(module)?;
            }
            if !any {
                let message = "a rule of `dynamic` matches no module of the checkpoint (rules match at the start of un-fused names)";
                warnings.about(WarningKind::Rules, message, &rule.text);
            }
        }
        Ok(())
    }
}

fn rule(file: &str, text: &str, value: &Value, warnings: &Warnings) -> Result<Rule, FormatError> {
    let key = format!("dynamic.{text}");
    let wrong = |key: &str, expected: &str, found: String, remedy: &str| FormatError::config(file, key, expected, found, remedy);
    let (skip, pattern) = match text.split_at_checked(2) {
        Some(("-:", pattern)) => (true, pattern),
        Some(("+:", pattern)) => (false, pattern),
        _ => (false, text),
    };
    if pattern.len() > MOST_PATTERN {
        return Err(wrong(&key, "a pattern of at most 16 KiB", format!("{} bytes", pattern.len()), "split the rule"));
    }
    let regex = Regex::new(pattern).map_err(|e| wrong(&key, "a regular expression", e.to_string(), "correct the pattern of this rule"))?;
    let Value::Object(map) = value else {
        return Err(wrong(&key, "an object of overrides", show(value), "write {} for a rule that overrides nothing"));
    };
    let mut overrides = Overrides::default();
    for (name, value) in map {
        let key = format!("{key}.{name}");
        let boolean = || value.as_bool().ok_or_else(|| wrong(&key, "true or false", show(value), "correct the rule"));
        match name.as_str() {
            "bits" => overrides.bits = Some(check_bits(file, &key, value)?),
            "group_size" => overrides.group_size = Some(check_group_size(file, &key, value)?),
            "sym" => overrides.sym = Some(boolean()?),
            "desc_act" => overrides.desc_act = Some(boolean()?),
            // The tensors say how wide their words are.
            "pack_dtype" => drop(check_pack_dtype(file, &key, value)?),
            _ if value.is_null() || HARMLESS.contains(&name.as_str()) => {}
            _ => warnings.about(WarningKind::Rules, format!("the override `{name}` of a rule is not understood and has no effect"), text),
        }
    }
    if skip && map.values().any(|v| !v.is_null()) {
        warnings.about(WarningKind::Rules, "a rule that leaves modules dense also has overrides, which have no effect", text);
    }
    Ok(Rule { text: text.into(), skip, overrides, regex, file: file.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Dynamic, FormatError> {
        Dynamic::read("c.json", &crate::json::object("c.json", json.as_bytes()).unwrap(), &Warnings::default())
    }

    fn applied(json: &str, module: &str) -> (Option<String>, Option<String>) {
        let d = read(json).unwrap();
        let m = d.find(module).unwrap();
        (m.in_order().map(|r| r.text().into()), m.negatives_first().map(|r| r.text().into()))
    }

    /// The examples of the semantics reference, section 1.4.
    #[test]
    fn the_first_match_wins_and_is_anchored_at_the_start_only() {
        let p = "model.layers.12.self_attn.q_proj";
        let some = |s: &str| Some(s.to_string());
        assert_eq!(applied(r#"{"+:.*\\.(?:1[0-5])\\..*": {"bits": 8}}"#, p).0, some(r"+:.*\.(?:1[0-5])\..*"));
        assert_eq!(applied(r#"{"-:.*\\.layers\\.12\\..*": {}, "+:.*": {"bits": 8}}"#, p).0, some(r"-:.*\.layers\.12\..*"));
        assert_eq!(applied(r#"{".*": {"bits": 8}, "-:.*": {}}"#, p), (some(".*"), some("-:.*")));
        assert_eq!(applied(r#"{"+:layers.12": {}}"#, p), (None, None));
        assert_eq!(applied(r#"{"model.layers.1": {}}"#, p).0, some("model.layers.1"));
        assert_eq!(applied(r#"{"lm_head": {}}"#, "lm_head").0, some("lm_head"));
    }

    #[test]
    fn look_around_and_verbose_comments() {
        assert!(applied(r#"{"-:(?!.*mlp).*": {}}"#, "a.q_proj").0.is_some());
        assert!(applied(r#"{"-:(?!.*mlp).*": {}}"#, "a.mlp.up").0.is_none());
        assert!(applied(r#"{"(?x) a \\. b # the b": {}}"#, "a.bc").0.is_some());
    }

    #[test]
    fn each_wrong_rule_is_named() {
        for (json, parts) in [
            (r#"{"+:(": {}}"#, ["dynamic.+:(", "regular expression"]),
            (r#"{"a": 4}"#, ["dynamic.a", "an object of overrides, found 4"]),
            (r#"{"a": {"bits": true}}"#, ["dynamic.a.bits", "found true"]),
            (r#"{"a": {"bits": 9}}"#, ["dynamic.a.bits", "found 9"]),
            (r#"{"a": {"group_size": 0}}"#, ["dynamic.a.group_size", "found 0"]),
            (r#"{"a": {"sym": 1}}"#, ["dynamic.a.sym", "true or false, found 1"]),
            (r#"{"a": {"pack_dtype": "int4"}}"#, ["dynamic.a.pack_dtype", "`int32`"]),
        ] {
            let e = read(json).unwrap_err().to_string();
            assert!(parts.iter().all(|p| e.contains(p)) && e.contains("c.json"), "{e}");
        }
    }

    #[test]
    fn a_pattern_that_explodes_is_an_error() {
        let d = read(r#"{"(?=((a+)+)+$)\\1b": {}}"#).unwrap();
        let e = d.find(&"a".repeat(64)).map(|m| m.differ());
        assert!(e.is_err_and(|e| e.to_string().contains("simplify the pattern")));
    }

    #[test]
    fn unknown_overrides_and_idle_rules_are_listed() {
        let w = Warnings::default();
        let map = crate::json::object("c", br#"{"+:a": {"bits": 8, "mse": 2.4, "colour": 1}, "-:b": {"bits": 4}, "c": {}}"#).unwrap();
        Dynamic::read("c", &map, &w).unwrap().warn_unmatched(&["a", "b"], &w).unwrap();
        let text: Vec<String> = w.list().iter().map(ToString::to_string).collect();
        assert_eq!(text.len(), 3, "{text:?}");
        assert!(text.iter().any(|t| t.contains("`colour`") && t.contains("+:a")));
        assert!(text.iter().any(|t| t.contains("matches no module") && t.ends_with("(c)")));
        assert!(text.iter().any(|t| t.contains("also has overrides") && t.contains("-:b")));
    }
}
