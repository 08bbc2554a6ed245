//! What can be wrong with a weight that is to be repacked.

use std::fmt::Display;

/// Why something has no Marlin layout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MarlinError {
    /// A width, size or combination that the layout does not have.
    #[error("{what}: expected {expected}, found {found}; {remedy}")]
    Unsupported {
        /// What it is about.
        what: &'static str,
        /// What the layout takes.
        expected: String,
        /// What was given.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A part has the wrong number of elements.
    #[error("{part}: expected {expected} elements, found {found}; pass the whole tensor, row-major, with its true sizes")]
    Length {
        /// The part.
        part: &'static str,
        /// How many elements it must have.
        expected: usize,
        /// How many it has.
        found: usize,
    },
    /// An element is out of range.
    #[error("{part}[{index}]: expected {expected}, found {found}; {remedy}")]
    Value {
        /// The part.
        part: &'static str,
        /// Which element.
        index: usize,
        /// The legal values.
        expected: String,
        /// The value found.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
}

impl MarlinError {
    pub(super) fn unsupported(what: &'static str, expected: impl Display, found: impl Display, remedy: &'static str) -> Self {
        MarlinError::Unsupported { what, expected: expected.to_string(), found: found.to_string(), remedy }
    }

    pub(super) fn value(part: &'static str, index: usize, expected: impl Display, found: impl Display, remedy: &'static str) -> Self {
        MarlinError::Value { part, index, expected: expected.to_string(), found: found.to_string(), remedy }
    }
}

/// Checks the number of elements of a part.
pub(super) fn check_len(part: &'static str, expected: usize, found: usize) -> Result<(), MarlinError> {
    if expected == found { Ok(()) } else { Err(MarlinError::Length { part, expected, found }) }
}

/// Checks that a size is a positive multiple of `of`.
pub(super) fn check_multiple(what: &'static str, size: usize, of: usize) -> Result<(), MarlinError> {
    if size > 0 && size.is_multiple_of(of) {
        return Ok(());
    }
    Err(MarlinError::unsupported(what, format!("a multiple of {of}"), size, "pad the matrix with zeros before it is repacked"))
}

/// `a · b`, which a caller's sizes may make too large.
pub(super) fn product(what: &'static str, a: usize, b: usize) -> Result<usize, MarlinError> {
    a.checked_mul(b).ok_or_else(|| MarlinError::unsupported(what, "a size that fits in memory", format!("{a} × {b}"), "check the sizes"))
}

/// Checks that every code fits its width.
pub(super) fn check_codes(part: &'static str, codes: &[u8], bits: u32) -> Result<(), MarlinError> {
    match codes.iter().position(|&c| u32::from(c) >> bits != 0) {
        None => Ok(()),
        Some(i) => {
            Err(MarlinError::value(part, i, format!("a value below {}", 1u32 << bits), codes[i], "check the width against the codes"))
        }
    }
}
