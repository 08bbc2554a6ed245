//! How to choose, and why that may fail.

/// How to choose among tokens. The default chooses from the whole distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Keeps this many of the most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most probable tokens that together reach this mass; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens of at least this fraction of the highest probability; 0 keeps all.
    pub min_p: f32,
    /// Makes tokens that occurred less likely (above 1) or more (below 1): divides a positive logit, multiplies a negative
    /// one, once however often the token occurred. 1 changes nothing.
    pub repetition_penalty: f32,
    /// Taken off the logit of each generated token, once however often it occurred; −2 to 2.
    pub presence_penalty: f32,
    /// Taken off the logit of each generated token as often as it occurred; −2 to 2.
    pub frequency_penalty: f32,
    /// Numbers from −100 to 100 that are added to the logits of some tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// The only tokens that may be chosen, if there are any such.
    pub allowed_tokens: Option<Vec<u32>>,
    /// The seed of the random numbers.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            allowed_tokens: None,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Always the most probable token.
    pub fn greedy() -> SamplingParams {
        SamplingParams { temperature: 0.0, ..SamplingParams::default() }
    }

    /// Checks every parameter.
    ///
    /// # Errors
    /// The first parameter outside its range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let check = |name, ok: bool, expected, found: f32| match ok {
            true => Ok(()),
            false => Err(SamplingError::Parameter { name, expected, found: found.to_string() }),
        };
        let &SamplingParams { temperature, top_k: _, top_p, min_p, repetition_penalty, .. } = self;
        check("temperature", temperature.is_finite() && temperature >= 0.0, "a finite number of at least 0", temperature)?;
        check("top_p", top_p > 0.0 && top_p <= 1.0, "a number above 0 and up to 1", top_p)?;
        check("min_p", (0.0..=1.0).contains(&min_p), "a number from 0 to 1", min_p)?;
        let positive = repetition_penalty.is_finite() && repetition_penalty > 0.0;
        check("repetition_penalty", positive, "a finite number above 0", repetition_penalty)?;
        for (name, value) in [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)] {
            check(name, (-2.0..=2.0).contains(&value), "a number from -2 to 2", value)?;
        }
        for &(_, bias) in &self.logit_bias {
            check("logit_bias", (-100.0..=100.0).contains(&bias), "numbers from -100 to 100", bias)?;
        }
        match &self.allowed_tokens {
            Some(allowed) if allowed.is_empty() => {
                let (name, expected) = ("allowed_tokens", "at least one token");
                Err(SamplingError::Parameter { name, expected, found: "none".into() })
            }
            _ => Ok(()),
        }
    }

    /// Whether a token is chosen by the logits as they are.
    pub(crate) fn leaves_logits(&self) -> bool {
        let penalises = self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0;
        !penalises && self.logit_bias.is_empty() && self.allowed_tokens.is_none()
    }

    /// Checks that all tokens that the parameters name have a logit among `vocab`.
    ///
    /// # Errors
    /// The first that has none.
    pub fn check_tokens(&self, vocab: usize) -> Result<(), SamplingError> {
        let biased = self.logit_bias.iter().map(|(token, _)| ("logit_bias", *token));
        let allowed = self.allowed_tokens.iter().flatten().map(|token| ("allowed_tokens", *token));
        match biased.chain(allowed).find(|(_, token)| *token as usize >= vocab) {
            Some((name, token)) => Err(SamplingError::Token { name, token, vocab }),
            None => Ok(()),
        }
    }
}

/// Why no token can be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SamplingError {
    /// A parameter is outside its range.
    #[error("{name}: expected {expected}, found {found}; correct the parameter")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// The legal values in words.
        expected: &'static str,
        /// The value found.
        found: String,
    },
    /// The model gave no number.
    #[error("logit {token}: expected a finite number or -inf, found {found}; the weights or the activations are broken")]
    Logit {
        /// The first token with such a logit.
        token: usize,
        /// The value found.
        found: String,
    },
    /// Every token is forbidden.
    #[error("logits: expected at least one that is not -inf, found none among {vocab}; the model or a mask forbids every token")]
    NoCandidate {
        /// How many logits there are.
        vocab: usize,
    },
    /// A parameter names a token that the model does not have.
    #[error("{name}: expected tokens below {vocab}, found {token}; correct the parameter")]
    Token {
        /// The parameter.
        name: &'static str,
        /// The token.
        token: u32,
        /// How many logits there are.
        vocab: usize,
    },
    /// The history holds a token that the model does not know.
    #[error("history: expected tokens below {vocab}, found {token}; the tokenizer belongs to another model")]
    History {
        /// The token.
        token: u32,
        /// How many logits there are.
        vocab: usize,
    },
}
