//! `dynamic` as vLLM reads it: the first rule that matches, in the order of the file, on the name of the *fused* module.

use super::MethodError;
use crate::error::clip;
use crate::json::show;
use fancy_regex::Regex;
use serde_json::{Map, Value};

/// What the rules say of a module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict<'a> {
    /// No rule matches.
    NoMatch,
    /// The first that matches leaves the module dense.
    Skip {
        /// The rule as written.
        rule: &'a str,
    },
    /// The first that matches overrides keys, or none of them: `{}` does not skip.
    Override {
        /// The rule as written.
        rule: &'a str,
        /// The keys; one that is missing keeps the config's value, whatever later rules say.
        keys: &'a Map<String, Value>,
    },
}

impl<'a> Verdict<'a> {
    /// The rule that decided.
    pub fn rule(&self) -> Option<&'a str> {
        match *self {
            Verdict::NoMatch => None,
            Verdict::Skip { rule } | Verdict::Override { rule, .. } => Some(rule),
        }
    }
}

/// A part of a fused module for which the writer of the checkpoint followed another rule than vLLM does for the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FusedTrap {
    /// The part, as the checkpoint names it.
    pub part: String,
    /// The rule that matches the part, which the writer followed.
    pub written: Option<String>,
    /// The rule that matches the fused name.
    pub read: Option<String>,
}

/// The rules of a config.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules(Vec<Rule>);

#[derive(Clone, Debug)]
struct Rule {
    text: String,
    skip: bool,
    regex: Regex,
    keys: Map<String, Value>,
}

impl Rules {
    pub(super) fn read(value: Option<&Value>) -> Result<Self, MethodError> {
        let map = match value {
            None | Some(Value::Null) => return Ok(Self::default()),
            Some(Value::Object(map)) => map,
            Some(other) => return Err(MethodError::Value { key: "dynamic".into(), expected: "an object of rules", found: show(other) }),
        };
        map.iter().map(|(text, value)| Rule::read(text, value)).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn find(&self, module: &str) -> Result<Verdict<'_>, MethodError> {
        for rule in &self.0 {
            // the leftmost match starts at 0 exactly if some match does
            let found = rule.regex.find(module).map_err(|e| pattern(&rule.text, &e))?;
            if found.is_some_and(|m| m.start() == 0) {
                return Ok(match rule.skip {
                    true => Verdict::Skip { rule: &rule.text },
                    false => Verdict::Override { rule: &rule.text, keys: &rule.keys },
                });
            }
        }
        Ok(Verdict::NoMatch)
    }
}

impl Rule {
    fn read(text: &str, value: &Value) -> Result<Self, MethodError> {
        let (skip, source) = match text.split_at_checked(2) {
            Some(("-:", source)) => (true, source),
            Some(("+:", source)) => (false, source),
            _ => (false, text),
        };
        let regex = Regex::new(source).map_err(|e| pattern(text, &e))?;
        let keys = match value {
            Value::Object(keys) => keys.clone(),
            _ if skip => Map::new(),
            other => {
                let key = clip(format!("dynamic.{text}"));
                return Err(MethodError::Value { key, expected: "an object of overrides", found: show(other) });
            }
        };
        Ok(Self { text: text.into(), skip, regex, keys })
    }
}

fn pattern(rule: &str, error: &fancy_regex::Error) -> MethodError {
    MethodError::Pattern { rule: clip(rule), found: clip(error) }
}
