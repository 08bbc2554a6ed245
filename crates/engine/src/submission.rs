//! What a client wants of the engine, and what it hears of it.

use crate::{EngineError, SamplingParams};
use std::time::Instant;

/// What a client wants: one or several continuations of a prompt.
pub struct Submission {
    /// The tokens to continue.
    pub prompt: Vec<u32>,
    /// How to choose tokens. Each choice has random numbers of its own; those of the first are the seed's.
    pub sampling: SamplingParams,
    /// How many choices; they share what the prompt left in the cache.
    pub n: usize,
    /// Tokens to generate at most, for each choice.
    pub max_tokens: usize,
    /// Before so many tokens no end token is chosen and no stop text looked for.
    pub min_tokens: usize,
    /// Texts that end a choice.
    pub stop: Vec<String>,
    /// Whether the stop text, or the text of the token that ended it, is part of the answer.
    pub include_stop: bool,
    /// Further tokens that end a choice.
    pub stop_token_ids: Vec<u32>,
    /// Go on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Whether special tokens stand for no text.
    pub skip_special_tokens: bool,
    /// Tell the logarithm of each chosen token's probability, and of so many of the most probable ones.
    pub logprobs: Option<usize>,
    /// The same for the tokens of the prompt; such a request reads nothing from the prefix cache.
    pub prompt_logprobs: Option<usize>,
    /// Lower ones go first, then those that came first.
    pub priority: i64,
    /// When to end whatever is there then.
    pub deadline: Option<Instant>,
    /// Requests share what is in the prefix cache only with those of the same salt.
    pub cache_salt: Option<String>,
    /// What restricts the tokens; each choice gets a fork of it.
    pub constraint: Option<Box<dyn Constraint>>,
}

impl Submission {
    /// A request to continue `prompt` with up to `max_tokens` tokens, and nothing special about it.
    pub fn new(prompt: Vec<u32>, sampling: SamplingParams, max_tokens: usize) -> Submission {
        Submission {
            prompt,
            sampling,
            n: 1,
            max_tokens,
            min_tokens: 0,
            stop: vec![],
            include_stop: false,
            stop_token_ids: vec![],
            ignore_eos: false,
            skip_special_tokens: true,
            logprobs: None,
            prompt_logprobs: None,
            priority: 0,
            deadline: None,
            cache_salt: None,
            constraint: None,
        }
    }
}

/// Restricts the tokens of one choice, such as a grammar.
pub trait Constraint: Send {
    /// The same for another choice, which goes its own way from here.
    fn fork(&self) -> Box<dyn Constraint>;

    /// Sets the logits of the tokens that may not follow to minus infinity.
    ///
    /// # Errors
    /// Why nothing can be said; it ends the request.
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String>;

    /// Hears of a token that was chosen. Returns whether the text is complete and nothing may follow.
    ///
    /// # Errors
    /// Why the token cannot be; it ends the request.
    fn accept(&mut self, token: u32) -> Result<bool, String>;
}

/// Names a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// How probable a token was, of the raw logits.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// The logarithm of its probability.
    pub logprob: f32,
    /// 1 for the most probable token; of equal ones the lower id comes first.
    pub rank: usize,
    /// The most probable tokens, as many as asked for.
    pub top: Vec<(u32, f32)>,
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop text came.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The caller cancelled.
    Cancelled,
    /// Its time was over.
    Deadline,
}

impl FinishReason {
    /// Its name on the wire: `stop`, `length`, `cancelled` or `deadline`.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
            FinishReason::Deadline => "deadline",
        }
    }
}

/// What of the request's own stops ended a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// A stop text.
    Text(String),
    /// One of `stop_token_ids`, or an end-of-sequence token.
    Token(u32),
}

/// What happened to a request.
#[derive(Debug)]
pub enum Happened {
    /// All of the prompt ran.
    Prompt {
        /// How many of its tokens came from the prefix cache.
        cached_tokens: usize,
        /// Of each token, if asked for; nothing says how probable the first one was.
        logprobs: Option<Vec<Option<TokenLogprob>>>,
    },
    /// A choice has one more token.
    Token {
        /// Its number.
        choice: usize,
        /// The token.
        token: u32,
        /// The text that became final with it, often none.
        text: String,
        /// How probable it was, if asked for.
        logprob: Option<TokenLogprob>,
    },
    /// A choice ended.
    End {
        /// Its number.
        choice: usize,
        /// The text that was held back until now.
        text: String,
        /// Why.
        reason: FinishReason,
        /// What stopped it; none where a constraint was complete.
        stop: Option<StopCause>,
    },
    /// All choices of the request failed; nothing follows.
    Failed(EngineError),
}
