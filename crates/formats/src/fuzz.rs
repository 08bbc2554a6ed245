//! Bodies of fuzz targets: any bytes, no panic, no memory beyond a small multiple of the input.
//!
//! [`TARGETS`] lists them. The committed corpus is replayed in the tests; `examples/fuzz.rs` of the binary's crate runs
//! any of them for as long as one likes.

mod folder;
mod input;
mod layouts;
mod modules;
mod texts;

use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::path::{Path, PathBuf};

/// What one run may use, and what it found.
#[derive(Debug)]
pub struct Run {
    scratch: PathBuf,
    outcomes: BTreeSet<u64>,
}

/// A fuzz target.
pub type Body = fn(&[u8], &mut Run);

/// Every target of this crate.
pub const TARGETS: [(&str, Body); 15] = [
    ("safetensors_header", texts::safetensors_header),
    ("quant_config", texts::quant_config),
    ("dynamic", texts::dynamic),
    ("names", texts::names),
    ("shard_index", texts::shard_index),
    ("method", texts::method),
    ("place", texts::place),
    ("checkpoint", folder::checkpoint),
    ("gptq", modules::gptq),
    ("awq", modules::awq),
    ("pack_quantized", modules::pack_quantized),
    ("int_quantized", modules::int_quantized),
    ("auto_round", modules::auto_round),
    ("dense", modules::dense),
    ("convert", modules::convert),
];

impl Run {
    /// A run that may write to `scratch`, a folder of its own, and leaves it as it was.
    pub fn new(scratch: &Path) -> Self {
        Self { scratch: scratch.into(), outcomes: BTreeSet::new() }
    }

    /// Forgets the outcomes and gives them out. Two runs that took the same ways through the code have the same ones, as
    /// far as messages tell.
    pub fn outcomes(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.outcomes)
    }

    /// Notes an outcome: its text without what an input can choose freely (numbers, quotes, what was found).
    pub fn note(&mut self, text: impl Display) {
        let text = text.to_string();
        let hash = |hash: u64, c: u8| (hash ^ u64::from(c)).wrapping_mul(0x100_0000_01b3);
        self.outcomes.insert(fixed(&text).bytes().fold(0xcbf2_9ce4_8422_2325, hash));
    }

    /// A result's value; the kind of an error is an outcome.
    pub fn kind<T, E: Debug>(&mut self, result: Result<T, E>) -> Option<T> {
        result.inspect_err(|e| self.note(format!("{e:?}").split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default())).ok()
    }

    /// A result's value; the text of an error is an outcome.
    pub fn value<T, E: Display>(&mut self, result: Result<T, E>) -> Option<T> {
        result.inspect_err(|e| self.note(e)).ok()
    }
}

/// The part of a message that the program wrote.
fn fixed(text: &str) -> String {
    // names of files, tensors and keys come before what is expected of them
    let text = text.rfind(": expected ").map_or(text, |at| &text[at..]);
    let (before, after) = text.split_once(", found ").unwrap_or((text, ""));
    let remedy = after.rfind("; ").map_or("", |at| &after[at..]);
    let mut out = String::new();
    for part in [before, remedy] {
        for (i, piece) in part.split(['`', '"']).enumerate() {
            if i % 2 == 0 {
                out.extend(piece.chars().filter(|c| c.is_ascii() && !c.is_ascii_digit()));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_leave_out_what_inputs_choose() {
        assert_eq!(fixed("key `bits`: expected 4, found 17; correct it"), ": expected ; correct it");
        assert_eq!(fixed("key `a`: expected b`: expected 4, found 1; c; correct it"), ": expected ; correct it");
        assert_eq!(fixed("method `awq`: \"x\" is no number"), "method :  is no number");
        assert_eq!(fixed("`open"), "");
        let mut run = Run::new(Path::new(""));
        run.note("a, found b; c");
        run.note("a, found 2; c");
        assert_eq!(run.value::<(), _>(Err("a, found b; d")), None);
        assert_eq!(run.outcomes().len(), 2);
        assert!(run.outcomes().is_empty());
    }
}
