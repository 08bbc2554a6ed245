//! Names of modules in a config, in the ways that programs write them.

use crate::FormatError;
use fancy_regex::Regex;

/// Longest pattern; real ones stay far below.
const MOST: usize = 16 << 10;

/// One entry of a list that says which modules something is true of.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// A module's name, or the end of it from a dot on.
    Name(String),
    /// `re:`: a regular expression that matches at the start of the name.
    Start(Regex, String),
    /// A regular expression that matches anywhere.
    Anywhere(Regex, String),
    /// A part of the name.
    Part(String),
    /// `Linear`: every linear module.
    Linear,
    /// Another class: none of the modules that this crate knows.
    Class(String),
}

impl Target {
    /// An entry of `targets` or `ignore`: a class, a name, or `re:` and a pattern.
    pub(crate) fn read(file: &str, key: &str, text: &str) -> Result<Self, FormatError> {
        if let Some(pattern) = text.strip_prefix("re:") {
            return Ok(Target::Start(regex(file, key, pattern)?, text.into()));
        }
        let class = !text.contains('.') && text.starts_with(|c: char| c.is_ascii_uppercase());
        Ok(match text {
            "Linear" => Target::Linear,
            _ if class => Target::Class(text.into()),
            _ => Target::Name(text.into()),
        })
    }

    /// A key that is a name, or a pattern if it holds any character that names do not.
    pub(crate) fn name_or_pattern(file: &str, key: &str, text: &str) -> Result<Self, FormatError> {
        match text.contains(|c| r"*+?^$()[]{}|\".contains(c)) {
            true => Ok(Target::Anywhere(regex(file, key, text)?, text.into())),
            false => Ok(Target::Name(text.into())),
        }
    }

    /// The entry as written.
    pub(crate) fn text(&self) -> &str {
        match self {
            Target::Name(text) | Target::Part(text) | Target::Class(text) | Target::Start(_, text) | Target::Anywhere(_, text) => text,
            Target::Linear => "Linear",
        }
    }

    /// How well the entry names `module`: 3 exactly, 2 by a pattern or a part, 1 by its end, 0 as a class; `None` not at all.
    pub(crate) fn rank(&self, module: &str) -> Option<u8> {
        let found = |regex: &Regex| regex.find(module).ok().flatten();
        match self {
            Target::Name(name) if module == name => Some(3),
            Target::Name(name) => module.strip_suffix(name.as_str())?.ends_with('.').then_some(1),
            Target::Start(regex, _) => found(regex).filter(|m| m.start() == 0).map(|_| 2),
            Target::Anywhere(regex, _) => found(regex).map(|_| 2),
            Target::Part(part) => module.contains(part.as_str()).then_some(2),
            Target::Linear => Some(0),
            Target::Class(_) => None,
        }
    }

    /// Whether it can be decided if the entry names `module`: a pattern may need too many steps, and then it never ranks.
    pub(crate) fn decide(&self, file: &str, key: &str, module: &str) -> Result<(), FormatError> {
        match self {
            Target::Start(regex, text) | Target::Anywhere(regex, text) => regex.find(module).map(|_| ()).map_err(|e| {
                let expected = format!("patterns that can be decided for `{module}`");
                FormatError::config(file, key, expected, format!("`{text}`: {e}"), "simplify the pattern")
            }),
            _ => Ok(()),
        }
    }

    /// Whether an entry that matches none of the modules is worth a warning: classes are not known here, and a head may
    /// be the embedding.
    pub(crate) fn names_modules(&self) -> bool {
        !matches!(self, Target::Linear | Target::Class(_)) && !self.text().ends_with("lm_head")
    }
}

fn regex(file: &str, key: &str, pattern: &str) -> Result<Regex, FormatError> {
    if pattern.len() > MOST {
        return Err(FormatError::config(file, key, "a pattern of at most 16 KiB", format!("{} bytes", pattern.len()), "split it"));
    }
    Regex::new(pattern).map_err(|e| FormatError::config(file, key, "a regular expression", e, "correct the pattern"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks() {
        let rank = |text: &str, module: &str| Target::read("f", "ignore", text).unwrap().rank(module);
        assert_eq!(rank("lm_head", "lm_head"), Some(3));
        assert_eq!(rank("lm_head", "model.lm_head"), Some(1));
        assert_eq!(rank("lm_head", "model.my_lm_head"), None);
        assert_eq!(rank("re:.*gate$", "model.layers.0.mlp.gate"), Some(2));
        assert_eq!(rank("re:gate", "model.layers.0.mlp.gate"), None, "patterns match at the start");
        assert_eq!(rank("Linear", "anything"), Some(0));
        assert_eq!(rank("LlamaAttention", "anything"), None);
        let rank = |text: &str, module: &str| Target::name_or_pattern("f", "extra_config", text).unwrap().rank(module);
        assert_eq!(rank("model.layers.0.q", "model.layers.0.q"), Some(3));
        assert_eq!(rank(r"layers\.\d+\.mlp", "model.layers.10.mlp.up_proj"), Some(2));
        assert!(Target::read("f", "ignore", "re:(").unwrap_err().to_string().contains("key `ignore`: expected a regular expression"));
    }
}
