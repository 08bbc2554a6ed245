//! Why a module cannot be split.

/// Why a module cannot be split over ranks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// The rank does not exist.
    #[error("rank: expected a rank below {ranks}, found {rank}; ranks count from 0, and there is at least one")]
    Rank {
        /// The rank asked for.
        rank: usize,
        /// How many ranks there are.
        ranks: usize,
    },
    /// The tensors do not fit together.
    #[error("{part}: expected {expected}, found {found}; check bits, group_size and the sizes against the tensors of the module")]
    Tensors {
        /// The tensor or size.
        part: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Rows or columns do not divide evenly.
    #[error("{side}: expected a multiple of the {ranks} ranks, found {size}; use a number of ranks that divides it")]
    Uneven {
        /// Which size.
        side: &'static str,
        /// The size.
        size: usize,
        /// How many ranks.
        ranks: usize,
    },
    /// The rows of a rank are not whole groups.
    #[error(
        "The input size is not aligned with the quantized weight shape. This can be caused by too large tensor parallel size. \
         (rows of a rank: expected a multiple of group_size {group_size}, found {rows}; {remedy})"
    )]
    InputGroups {
        /// Rows of a rank.
        rows: usize,
        /// Rows of a group.
        group_size: usize,
        /// What to do.
        remedy: &'static str,
    },
    /// The rows of a rank are not whole words.
    #[error(
        "rows of a rank: expected a multiple of {multiple} ({bits} bit codes in 32-bit words), found {rows}; use fewer ranks, or cuts \
         inside words"
    )]
    InputWords {
        /// Rows of a rank.
        rows: usize,
        /// Width of a code.
        bits: u32,
        /// Rows that fill whole words.
        multiple: usize,
    },
    /// The columns of a rank are not whole words of zero points.
    #[error(
        "The output size is not aligned with the quantized weight shape. This can be caused by too large tensor parallel size. \
         (columns of a rank: expected a multiple of {multiple} at {bits} bit, found {columns}; use fewer ranks, or cuts inside words)"
    )]
    OutputWords {
        /// Columns of a rank.
        columns: usize,
        /// Width of a code.
        bits: u32,
        /// Columns that fill whole words.
        multiple: usize,
    },
    /// Act-order is denied, but rows are in another order.
    #[error("g_idx[{row}]: expected group {expected} (without act-order), found {found}; split the module as one with act-order")]
    Order {
        /// The row.
        row: usize,
        /// The group by position.
        expected: u32,
        /// The group that `g_idx` says.
        found: u32,
    },
    /// Modules that share one `g_idx` once they are fused have different ones.
    #[error("g_idx of {first} and {second}: expected the same groups, found another for row {row}; keep these modules apart")]
    FusedOrder {
        /// A module.
        first: String,
        /// One that differs from it.
        second: String,
        /// The first row that differs.
        row: usize,
    },
}
