//! Numbers in, numbers out: matmul from packed weights, attention and norms, for every instruction set, chosen at run
//! time.
//!
//! The weights of a quantized matrix are small integers, so the activations are made integers too (8, 16 or 24 bits,
//! [`Activations`]), and every sum inside a block is exact. One epilogue formula everywhere makes the bits of a result
//! independent of batch, threads and instruction set.
//!
//! The crate reads no file and knows no file format: it packs from [`billfish_tensor::QuantMatrix`].
//!
//! ```
//! use billfish_kernels::{Activations, Backend, Input, Isa, MatmulScratch, PackedMatrix, Product, Weight};
//! use billfish_tensor::{Codes, Groups, QuantMatrix, ScaleValues, Zeros};
//!
//! let codes = Codes::Bytes(vec![9, 7]); // two rows, one column
//! let m = QuantMatrix::new(2, 1, 4, codes, ScaleValues::F32(vec![0.5]), Zeros::Midpoint, Groups::Contiguous { size: 2 }, None)?;
//! let weight = Weight::Quantized(PackedMatrix::new(&m)?);
//! let backend = Backend::new(Isa::choose(None)?, 1)?;
//! let mut y = [0.0];
//! let products = &mut [Product::new(&weight, &mut y)];
//! backend.matmul(&mut MatmulScratch::default(), Input::Rows(&[2.0, 4.0]), 1, Activations::Strict, products);
//! assert!((y[0] - (0.5 * 2.0 - 0.5 * 4.0)).abs() < 1e-6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod activations;
mod aligned;
mod arch;
mod attention;
mod backend;
mod dense;
mod error;
mod experts;
mod floats;
mod gemm;
mod isa;
mod kv;
mod narrow;
mod pack;
mod probe;
mod routing;
mod stored;
mod table;
mod threads;

pub use activations::{Activations, Input};
pub use attention::{Asking, AttentionRule, AttentionScratch};
pub use backend::{Backend, MatmulScratch, Product, Weight};
pub use dense::{DenseLayout, PackedDense};
pub use error::KernelError;
pub use experts::{Expert, ExpertScratch, Experts, Shared, share_orders};
pub use floats::Floats;
pub use gemm::{Matrix, Part};
pub use isa::{ISA_NAMES, Isa};
pub use kv::{BLOCK, KvPool, KvScales, KvShape, KvTable, KvType, shareable};
pub use pack::{Description, LAYOUT, PackedMatrix, kernel_name};
pub use probe::ProbeMemory;
pub use routing::{Choice, ExpertGroups, GroupScore, MAX_GROUPS, Routing, Scoring};
pub use stored::{Mapping, Stored};
pub use table::Table;
pub use threads::{Fill, Pool};
