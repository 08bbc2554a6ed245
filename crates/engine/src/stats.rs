//! What an engine does now, and what it did since it was made.

use crate::FinishReason;

/// Gauges and counters of an [`Engine`](crate::Engine).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Choices that run now.
    pub running: usize,
    /// Choices that wait now.
    pub waiting: usize,
    /// Blocks of the cache.
    pub blocks: usize,
    /// Blocks that a running choice holds now.
    pub blocks_used: usize,
    /// Blocks that a later prompt may find, held by somebody or not.
    pub blocks_cached: usize,
    /// Tokens of all prompts that were done.
    pub prompt_tokens: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
    /// Tokens of prompts that were looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Those of them that were found.
    pub prefix_hits: u64,
    /// How often a choice had to give up its blocks for another.
    pub preemptions: u64,
    /// How choices ended.
    pub finished: Finished,
    /// Drafts that were verified.
    pub drafts: u64,
    /// Tokens of the drafts.
    pub draft_tokens: u64,
    /// Tokens of drafts that were what the model chose.
    pub accepted_tokens: u64,
    /// Passes.
    pub steps: u64,
    /// Tokens that passes ran, those of refused drafts and those run again included.
    pub tokens_run: u64,
}

/// How many choices ended in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    /// By the model or a stop.
    pub stop: u64,
    /// By `max_tokens`.
    pub length: u64,
    /// By their client.
    pub cancelled: u64,
    /// By their deadline.
    pub deadline: u64,
    /// By an error.
    pub failed: u64,
}

impl Finished {
    /// Counts one more.
    pub(crate) fn add(&mut self, reason: FinishReason) {
        *match reason {
            FinishReason::Stop => &mut self.stop,
            FinishReason::Length => &mut self.length,
            FinishReason::Cancelled => &mut self.cancelled,
            FinishReason::Deadline => &mut self.deadline,
        } += 1;
    }
}
