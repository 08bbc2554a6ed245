//! Zero points as files store them. The same words mean different zeros in different dialects; this module finds out
//! which dialect a module speaks (from its data, then from those of the folder's other modules, then from who wrote it, then
//! from the config) and returns true values. The data are the zero points themselves and, because weights are centred, the
//! mean of `code - zero point`.
//!
//! | dialect | stored | read |
//! |---|---|---|
//! | v1 | z - 1, field by field | + 1 per field, *unmasked*: a stored 15 is 16 |
//! | v1, borrowed | z - 1 on whole words (GPTQModel; 2, 4, 8 bit) | wrapping + 1 per field on whole words: a stored 15 is 0 |
//! | v1, modulo | (z - 1) & 7 (GPTQModel from 7; 3 bit); the same at other widths by a few programs | (stored + 1) & 7 |
//! | v1, legacy 3 bit | words less constants in the wrong order (GPTQModel up to 6) | the same constants added back |
//! | v1, overflowed | z - 1 in 32 bits, so that a zero of 0 floods the fields above it (AutoGPTQ) | refused: those are lost |
//! | v2, planar | z | as stored |

mod decode;
mod readings;
mod shown;
mod stored;
#[cfg(test)]
mod tests;
mod vote;

use crate::statistic::Sample;
use crate::{CheckpointFormat, FormatError, Writer};
use billfish_tensor::Zeros;
pub(crate) use decode::{decode, shown};
pub(crate) use shown::Shown;
use std::borrow::Cow;
use std::fmt;
pub(crate) use stored::Stored;
pub(crate) use vote::{Ballot, ballot};

/// How the zero points of a module are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZeroDialect {
    /// Less one, field by field.
    V1,
    /// Less one on whole words, so that a zero of 0 borrows from its neighbour.
    V1Borrowed,
    /// Less one modulo `2^bits`.
    V1Modulo,
    /// 3 bit: less one on whole words with constants in the wrong order.
    V1Legacy,
    /// Less one without a mask, so that a zero of 0 floods the fields above it in its word: those are lost.
    V1Overflow,
    /// As they are.
    V2,
    /// Times the negative scale, as floats.
    Scaled,
    /// Not at all: every zero point is the midpoint.
    Absent,
}

impl fmt::Display for ZeroDialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ZeroDialect::V1 => "v1: stored less one, field by field",
            ZeroDialect::V1Borrowed => "v1: less one on whole words, borrows undone",
            ZeroDialect::V1Modulo => "v1: less one modulo 2^bits",
            ZeroDialect::V1Legacy => "v1: legacy 3-bit constants, undone",
            ZeroDialect::V1Overflow => "v1: less one without a mask, zeros of 0 overflowed",
            ZeroDialect::V2 => "v2: stored as they are",
            ZeroDialect::Scaled => "stored times the negative scale",
            ZeroDialect::Absent => "not stored",
        })
    }
}

impl ZeroDialect {
    /// Whether less one in some way, or as it is.
    pub(crate) fn label(self) -> ZeroLabel {
        match self {
            ZeroDialect::V2 | ZeroDialect::Scaled | ZeroDialect::Absent => ZeroLabel::V2,
            _ => ZeroLabel::V1,
        }
    }
}

/// What decided the dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Evidence {
    /// The stored zero points and the codes themselves.
    Data,
    /// The other modules of the folder.
    Folder,
    /// The program that wrote the file.
    Writer,
    /// What the config says.
    Config,
    /// The format, which has one way only.
    Format,
    /// The caller, whatever the rest says.
    Caller,
}

/// One of the two ways to store a zero point, for a caller who knows better than the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZeroLabel {
    /// Less one.
    V1,
    /// As it is.
    V2,
}

impl fmt::Display for ZeroLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == ZeroLabel::V1 { "v1" } else { "v2" })
    }
}

/// What is known about a module's zero points beside themselves.
#[derive(Clone, Copy)]
pub(crate) struct Clues<'a> {
    pub(crate) sym: bool,
    pub(crate) format: CheckpointFormat,
    pub(crate) writer: Option<&'a Writer>,
    /// Reads some of the module's codes.
    pub(crate) sample: &'a dyn Fn() -> Result<Sample, FormatError>,
    /// Asks the other modules of the folder.
    pub(crate) folder: &'a dyn Fn() -> &'a Ballot,
    /// What the caller says, whatever the rest shows.
    pub(crate) forced: Option<ZeroLabel>,
}

/// Zero points as they are, and how that was found out.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) zeros: Zeros,
    pub(crate) dialect: ZeroDialect,
    pub(crate) evidence: Evidence,
    pub(crate) reason: String,
    pub(crate) warnings: Vec<Cow<'static, str>>,
    /// Stored values of all ones under a reading as v1: each needed a decision.
    pub(crate) wrapped: usize,
    /// Zero points that the file does not hold any more.
    pub(crate) lost: usize,
    /// What most modules of the folder show, if this one shows otherwise.
    pub(crate) mixed: Option<ZeroDialect>,
    /// Why the zero points cannot be used, if they cannot.
    pub(crate) refusal: Option<String>,
}

impl Decoded {
    /// Zero points about which there is nothing to find out.
    pub(crate) fn plain(zeros: Zeros, dialect: ZeroDialect, reason: &str, warnings: Vec<Cow<'static, str>>) -> Self {
        let (evidence, reason) = (Evidence::Format, reason.into());
        Self { zeros, dialect, evidence, reason, warnings, wrapped: 0, lost: 0, mixed: None, refusal: None }
    }
}
