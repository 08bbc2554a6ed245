//! Which program wrote a checkpoint: some dialects can be told only by that.

use std::fmt;

/// A program and its version, from `meta.quantizer`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The program, in lower case.
    pub name: String,
    /// Its version as written; empty when not given.
    pub version: String,
}

impl Writer {
    /// Parses `name:version`.
    pub(crate) fn parse(text: &str) -> Self {
        let (name, version) = text.split_once(':').unwrap_or((text, ""));
        let clip = |s: &str| s.chars().take(100).collect::<String>();
        Self { name: clip(name.trim()).to_lowercase(), version: clip(version.trim()) }
    }

    /// Whether it is GPTQModel, which subtracts 1 from whole words of zero points.
    pub fn is_gptqmodel(&self) -> bool {
        self.name == "gptqmodel"
    }

    /// The major version, if it is a number.
    pub fn major(&self) -> Option<u32> {
        let digits = self.version.trim_start_matches('v');
        digits[..digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len())].parse().ok()
    }
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, if self.version.is_empty() { "(no version)" } else { &self.version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_names_and_versions() {
        let w = Writer::parse("GPTQModel:7.7.0");
        assert_eq!((w.name.as_str(), w.version.as_str(), w.major()), ("gptqmodel", "7.7.0", Some(7)));
        assert_eq!(Writer::parse("optimum:v1.17").major(), Some(1));
        assert_eq!(Writer::parse("x").major(), None);
        assert_eq!(Writer::parse("gptqmodel:dev").major(), None);
    }
}
