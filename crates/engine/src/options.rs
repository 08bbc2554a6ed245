//! Sizes and limits of an engine.

use crate::{EngineError, Ngram};

/// Sizes and limits of an [`Engine`](crate::Engine).
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// Bytes that keys and values may take; all of it is set aside at the start.
    pub kv_cache_memory: u64,
    /// Choices that run at once.
    pub max_num_seqs: usize,
    /// Tokens of a pass.
    pub max_num_batched_tokens: usize,
    /// Tokens of the longest sequence; by default what the model was made for, or what the cache holds if that is less.
    pub max_model_len: Option<usize>,
    /// Whether a prompt may begin with what the cache still holds of others.
    pub prefix_caching: bool,
    /// Choices that may wait beyond those that can begin at once; more are refused.
    pub max_waiting: usize,
    /// Drafts of what comes next, if any are to be made. They change how fast tokens come, and no token.
    pub speculation: Option<Ngram>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            kv_cache_memory: 1 << 30,
            max_num_seqs: 32,
            max_num_batched_tokens: 512,
            max_model_len: None,
            prefix_caching: true,
            max_waiting: 1024,
            speculation: None,
        }
    }
}

impl EngineOptions {
    /// Checks what can be checked without a model.
    pub(crate) fn validate(&self) -> Result<(), EngineError> {
        for (name, found) in [("max-num-seqs", self.max_num_seqs), ("max-num-batched-tokens", self.max_num_batched_tokens)] {
            if !(1..=1 << 20).contains(&found) {
                return Err(EngineError::Option { name, expected: format!("1 to {}", 1 << 20), found: found.to_string() });
            }
        }
        self.speculation.map_or(Ok(()), |ngram| ngram.validate())
    }
}
