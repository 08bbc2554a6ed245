//! Errors of the kernels: what the machine or the caller asks for that cannot be had.

/// Why a backend or a packed weight cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// An instruction set that the machine lacks was asked for.
    #[error("instruction set `{isa}` was asked for, but {reason} (available: {found}); unset BILLFISH_ISA or choose one of these")]
    IsaMissing {
        /// The one asked for.
        isa: &'static str,
        /// Why the machine cannot run it.
        reason: &'static str,
        /// Those the machine has.
        found: String,
    },
    /// A name that is no instruction set.
    #[error("unknown instruction set `{found}`; expected one of {expected}")]
    IsaUnknown {
        /// The name given.
        found: String,
        /// The legal names.
        expected: &'static str,
    },
    /// No worker thread could be started.
    #[error("cannot start {threads} worker threads: {reason}; ask for fewer with --threads")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the system said.
        reason: String,
    },
    /// A matrix that no layout can hold.
    #[error("matrix [{in_features}, {out_features}]: {reason}")]
    Shape {
        /// K.
        in_features: usize,
        /// N.
        out_features: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// More memory for keys and values than there is.
    #[error("no room for {blocks} blocks of {block_bytes} bytes of keys and values; ask for a smaller cache")]
    Memory {
        /// Blocks asked for.
        blocks: usize,
        /// Bytes of one.
        block_bytes: usize,
    },
}
