//! Errors of the vocabulary. They know no file; whoever read the file adds its name and the tensor's.

/// Why a matrix cannot be what its parts say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// A part of the matrix has the wrong number of elements.
    #[error("{part}: expected {expected} elements, found {found}")]
    Length {
        /// Which part (`codes`, `scales`, `zeros`, `g_idx`, `bias`).
        part: &'static str,
        /// Elements that the shape asks for.
        expected: usize,
        /// Elements given.
        found: usize,
    },
    /// A value lies outside its range.
    #[error("{part}: element {index} is {found}, expected {expected}")]
    Value {
        /// Which part.
        part: &'static str,
        /// Flat index of the first offender.
        index: usize,
        /// The legal range in words.
        expected: String,
        /// The value found.
        found: String,
    },
    /// A size is zero, unsupported or overflows.
    #[error("{what}: expected {expected}, found {found}")]
    Size {
        /// Which size.
        what: &'static str,
        /// The legal range in words.
        expected: String,
        /// The value found.
        found: String,
    },
}
