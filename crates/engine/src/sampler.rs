//! The choice of the next token.
//!
//! The steps and their order are those of Hugging Face's text generation: bias, penalties (repetition, then frequency and
//! presence), mask, temperature, top-k, softmax, top-p, min-p. Here every step has one answer:
//!
//! - **Ties** go to the lowest id, in argmax, top-k and top-p alike; top-k keeps exactly k tokens.
//! - **Temperature 0** is argmax of the penalised logits.
//! - **top-p** keeps the most probable tokens until those *before* a token have a mass of `top_p` or more.
//! - **min-p** keeps tokens with at least `min_p` times the probability of the most probable one.
//! - **Arithmetic** after the logits is `f64` addition, multiplication, division and [`exp::exp`] in a fixed order, so that
//!   equal logits and an equal seed give equal tokens on every machine.
//! - A NaN or an infinite logit is an error, never a token. Minus infinity is legal: that token is forbidden.

pub(crate) mod exp;
mod rng;

use rng::Rng;
use std::cmp::Ordering;

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

/// A token and its probability after all filters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probability {
    /// The token.
    pub token: u32,
    /// Its probability; all that are kept sum to 1.
    pub probability: f64,
}

/// Chooses the tokens of one sequence. Its buffers grow at the first step and are kept.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: Rng,
    buffers: Buffers,
}

/// Room for one step. What is in it does not matter between steps, but that all counts are 0.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers {
    candidates: Vec<Candidate>,
    kept: Vec<Probability>,
    /// How often each token occurred.
    counts: Vec<u32>,
    /// The logits of the allowed tokens.
    allowed: Vec<f32>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    logit: f32,
    /// The probability up to a common factor; 1 for the most probable token.
    weight: f64,
}

impl Candidate {
    /// Most probable first, then the lowest id. No logit is NaN here, and 0 and -0 are equal as in argmax.
    fn order(&self, other: &Candidate) -> Ordering {
        let by_logit = other.logit.partial_cmp(&self.logit).unwrap_or(Ordering::Equal);
        by_logit.then(self.token.cmp(&other.token))
    }
}

impl Sampler {
    /// A sampler at the beginning of a sequence.
    ///
    /// # Errors
    /// A parameter outside its range.
    pub fn new(params: SamplingParams) -> Result<Sampler, SamplingError> {
        Sampler::of_choice(params, 0)
    }

    /// The sampler of one of several choices for the same prompt: each has random numbers of its own, the first those of
    /// [`new`](Self::new).
    ///
    /// # Errors
    /// A parameter outside its range.
    pub fn of_choice(params: SamplingParams, choice: u64) -> Result<Sampler, SamplingError> {
        params.validate()?;
        let rng = Rng::stream(params.seed, choice);
        Ok(Sampler { params, rng, buffers: Buffers::default() })
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Changes its buffers for others, so that many samplers need only one set: they are as long as the vocabulary.
    pub(crate) fn swap_buffers(&mut self, buffers: &mut Buffers) {
        std::mem::swap(&mut self.buffers, buffers);
    }

    /// Chooses the token that follows `prompt` and the tokens `generated` since. `logits` `[vocab]` are penalised in place.
    ///
    /// Draws one random number unless the temperature is 0.
    ///
    /// # Errors
    /// A logit that is NaN or infinite, no token that is allowed, a token of the history or of the parameters without a logit.
    pub fn sample(&mut self, logits: &mut [f32], prompt: &[u32], generated: &[u32]) -> Result<u32, SamplingError> {
        if self.params.temperature == 0.0 {
            self.penalise(logits, prompt, generated)?;
            return argmax(logits).map(|(token, _)| token);
        }
        self.filter(logits, prompt, generated)?;
        let target = self.rng.next_unit();
        let mut mass = 0.0;
        for kept in &self.buffers.kept {
            mass += kept.probability;
            if target < mass {
                return Ok(kept.token);
            }
        }
        // Rounding left the sum a little below 1.
        let last = self.buffers.kept.iter().rev().find(|kept| kept.probability > 0.0);
        last.map(|kept| kept.token).ok_or(SamplingError::NoCandidate { vocab: logits.len() })
    }

    /// The probabilities that [`sample`](Self::sample) draws from, in the order in which it adds them up. Draws nothing;
    /// penalises `logits` in place.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn probabilities(&mut self, logits: &mut [f32], prompt: &[u32], generated: &[u32]) -> Result<&[Probability], SamplingError> {
        self.filter(logits, prompt, generated)?;
        Ok(&self.buffers.kept)
    }

    /// Fills `kept`.
    fn filter(&mut self, logits: &mut [f32], prompt: &[u32], generated: &[u32]) -> Result<(), SamplingError> {
        self.penalise(logits, prompt, generated)?;
        let (best, max) = argmax(logits)?;
        self.buffers.kept.clear();
        if self.params.temperature == 0.0 {
            self.buffers.kept.push(Probability { token: best, probability: 1.0 });
            return Ok(());
        }
        self.buffers.candidates.clear();
        let allowed = logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        self.buffers.candidates.extend(allowed.map(|(token, &logit)| Candidate { token: token as u32, logit, weight: 0.0 }));

        let &SamplingParams { temperature, top_k, top_p, min_p, .. } = &self.params;
        if top_k > 0 && top_k < self.buffers.candidates.len() {
            self.buffers.candidates.select_nth_unstable_by(top_k - 1, Candidate::order);
            self.buffers.candidates.truncate(top_k);
            self.buffers.candidates.sort_unstable_by(Candidate::order);
        }
        let mut total = 0.0;
        for c in &mut self.buffers.candidates {
            c.weight = exp::exp((f64::from(c.logit) - f64::from(max)) / f64::from(temperature));
            total += c.weight;
        }
        // The highest weight is 1. Both filters keep the most probable tokens, so they can change places.
        if min_p > 0.0 {
            self.buffers.candidates.retain(|c| c.weight >= f64::from(min_p));
        }
        if top_p < 1.0 {
            let n = sort_nucleus(&mut self.buffers.candidates, f64::from(top_p) * total);
            self.buffers.candidates.truncate(n);
        }
        let kept: f64 = self.buffers.candidates.iter().map(|c| c.weight).sum();
        self.buffers.kept.extend(self.buffers.candidates.iter().map(|c| Probability { token: c.token, probability: c.weight / kept }));
        Ok(())
    }

    /// Bias, penalties and mask, in place.
    fn penalise(&mut self, logits: &mut [f32], prompt: &[u32], generated: &[u32]) -> Result<(), SamplingError> {
        let Sampler { params, buffers: Buffers { counts, allowed, .. }, .. } = self;
        let vocab = logits.len();
        params.check_tokens(vocab)?;
        params.logit_bias.iter().for_each(|&(token, bias)| change(&mut logits[token as usize], |l| l + bias));

        let penalty = params.repetition_penalty;
        let (presence, frequency) = (params.presence_penalty, params.frequency_penalty);
        let history = || prompt.iter().chain(generated);
        if penalty != 1.0 || presence != 0.0 || frequency != 0.0 {
            if let Some(&token) = history().find(|token| **token as usize >= vocab) {
                return Err(SamplingError::History { token, vocab });
            }
            counts.resize(vocab.max(counts.len()), 0);
        }
        if penalty != 1.0 {
            for &token in history() {
                let token = token as usize;
                if counts[token] == 0 {
                    counts[token] = 1;
                    change(&mut logits[token], |l| if l < 0.0 { l * penalty } else { l / penalty });
                }
            }
            history().for_each(|token| counts[*token as usize] = 0);
        }
        if presence != 0.0 || frequency != 0.0 {
            generated.iter().for_each(|token| counts[*token as usize] += 1);
            for &token in generated {
                let count = std::mem::take(&mut counts[token as usize]);
                if count > 0 {
                    change(&mut logits[token as usize], |l| l - frequency * count as f32 - presence);
                }
            }
        }
        if let Some(tokens) = &params.allowed_tokens {
            allowed.clear();
            allowed.extend(tokens.iter().map(|token| logits[*token as usize]));
            logits.fill(f32::NEG_INFINITY);
            tokens.iter().zip(&*allowed).for_each(|(token, logit)| logits[*token as usize] = *logit);
        }
        Ok(())
    }
}

/// Changes a logit. Only the change may overflow: an infinity of the model must stay one.
fn change(logit: &mut f32, to: impl Fn(f32) -> f32) {
    if logit.is_finite() {
        *logit = to(*logit).clamp(f32::MIN, f32::MAX);
    }
}

/// The token with the highest logit, the lowest of several; checks all logits.
fn argmax(logits: &[f32]) -> Result<(u32, f32), SamplingError> {
    const PART: usize = 1024;
    let mut best = None;
    let mut max = f32::NEG_INFINITY;
    for (i, part) in logits.chunks(PART).enumerate() {
        // folds without an early end, which the compiler makes vectors of; the greatest of sixteen lanes each
        let (lanes, rest) = part.as_chunks::<16>();
        let highest = lanes.iter().fold([f32::NEG_INFINITY; 16], |mut highest, lanes| {
            highest.iter_mut().zip(lanes).for_each(|(high, &v)| *high = if v > *high { v } else { *high });
            highest
        });
        let highest = highest.iter().chain(rest).fold(f32::NEG_INFINITY, |high, &v| if v > high { v } else { high });
        if !part.iter().fold(true, |fine, &v| fine & (v < f32::INFINITY)) {
            let at = part.iter().position(|&v| v.is_nan() || v == f32::INFINITY).unwrap_or(0);
            return Err(SamplingError::Logit { token: i * PART + at, found: part[at].to_string() });
        }
        if highest > max {
            max = highest;
            best = part.iter().position(|&v| v == highest).map(|at| (i * PART + at) as u32);
        }
    }
    best.map(|token| (token, max)).ok_or(SamplingError::NoCandidate { vocab: logits.len() })
}

/// Sorts the most probable candidates to the front, only as many as needed, and returns how many make up the mass.
fn sort_nucleus(candidates: &mut [Candidate], mass: f64) -> usize {
    const FIRST_CHUNK: usize = 128;
    let mut before = 0.0;
    let mut sorted = 0;
    let mut chunk = FIRST_CHUNK;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let n = chunk.min(rest.len());
        if n < rest.len() {
            rest.select_nth_unstable_by(n - 1, Candidate::order);
        }
        rest[..n].sort_unstable_by(Candidate::order);
        for (i, c) in rest[..n].iter().enumerate() {
            // The first candidate always stays.
            if before >= mass && sorted + i > 0 {
                return sorted + i;
            }
            before += c.weight;
        }
        sorted += n;
        chunk *= 4;
    }
    candidates.len()
}
