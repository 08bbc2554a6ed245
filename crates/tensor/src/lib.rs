//! The vocabulary of Billfish. Every file format reads into [`QuantMatrix`] or [`DenseTensor`], every kernel packs
//! from them, so formats and kernels never meet.
//!
//! The crate also owns the oracle ([`oracle`]): dequantization and matrix multiplication in plain `f64` loops.
//! Nothing fast is trusted except against it.
//!
//! It deliberately knows no file, no thread and no instruction set.
#![forbid(unsafe_code)]

mod codes;
mod columns;
mod dense;
mod dtype;
mod error;
mod fields;
pub mod oracle;
mod quant;

pub use codes::{Codes, Packing};
pub use dense::DenseTensor;
pub use dtype::DType;
pub use error::TensorError;
pub use fields::BitField;
pub use quant::{ActivationScale, Groups, QuantMatrix, RowOrder, ScaleValues, Zeros};
