//! GPTQ: codes, scales and zero points of one linear module from its weights and the inputs that it sees.

mod grid;
mod hessian;
mod linalg;
mod order;
mod refine;
mod solve;

pub(crate) use grid::rounded;
pub use grid::{Grid, Search, Step};
pub use hessian::{Factor, Hessian};
pub use linalg::{NotPositive, inverse_factor};
pub use order::{Order, Visit};
pub(crate) use refine::WIDEST;
pub use solve::{Prepared, Settings, Solution, solve};
pub(crate) use solve::{Problem, State};
