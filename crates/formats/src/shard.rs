//! Slices of GPTQ tensors for one rank of several: tensor parallelism, exactly.
//!
//! A *column-parallel* module splits its outputs (queries, keys, values, gate, up): every rank has all rows. A
//! *row-parallel* module splits its inputs (attention output, down): every rank has all columns, and the results of all
//! ranks are added. The rules are those that vLLM 0.14.1 has for the method `gptq`:
//!
//! | | `qweight` | `scales`, `qzeros` | `g_idx` | `bias` |
//! |---|---|---|---|---|
//! | column-parallel | its columns | its columns | whole | its columns |
//! | row-parallel, groups in order | its rows | its rows | its rows | rank 0 |
//! | row-parallel, one group (`-1`) | its rows | whole | its rows | rank 0 |
//! | row-parallel, act-order | its rows | whole | its rows, with the groups' ids in the whole | rank 0 |
//!
//! With act-order the rows of a rank belong to any groups, and a group's rows to any ranks. Whoever slices the scales by
//! position there, or numbers the groups anew, computes something else without an error: the tests show what.
//!
//! Of an expert, gate and up are column-parallel and stand side by side (`w13`), down is row-parallel (`w2`, with all of its
//! scales under act-order); or whole experts are distributed in blocks.
//!
//! Zero points stay as they are stored: nothing here needs to know which value they stand for.

mod cut;
mod error;
mod experts;
mod fused;
mod tensors;

pub use cut::{Cuts, Rank};
pub use error::ShardError;
pub use experts::{ExpertMap, ExpertShard, ExpertTensors};
pub use fused::check_fused_order;
pub use tensors::GptqTensors;
