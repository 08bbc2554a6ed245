//! Measuring: how fast a model or a kernel is, beside what the machine could do in the same minute.
//!
//! Nothing here prints. A figure without its limit, or of a model whose output nobody looked at, says little: tests carry
//! the limits that were measured between their samples, and [`quality`] is the gate that a model must pass first.

mod arrivals;
mod check;
mod gate;
mod kernels;
mod limits;
mod requests;
pub mod serving;
pub mod statistics;
mod test;
pub mod wire;

pub use arrivals::arrivals;
pub use check::Mismatch;
pub use gate::{Quality, quality};
pub use kernels::{
    KernelBench, KernelError, KernelTimes, Neighbours, REGION_SHAPE, RegionTimes, Scheme, fork_join, product_regions, random_matrix,
};
pub use limits::{Bound, Limits, Prober, Work, uncached_bytes};
pub use requests::{PASS_TOKENS, Served, Task, random_tokens, seed_of, serve};
pub use test::{Measured, Test, measure};
