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

mod candidates;
mod exp;
mod params;
mod rng;

use crate::TokenLogprob;
use candidates::Candidates;
pub use params::{SamplingError, SamplingParams};
use rng::Rng;

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
    candidates: Candidates,
    kept: Vec<Probability>,
    /// How often each token occurred.
    counts: Vec<u32>,
    /// The logits of the allowed tokens.
    allowed: Vec<f32>,
}

impl Buffers {
    /// How probable `token` is by finite logits, and the `top` most probable tokens.
    ///
    /// # Panics
    /// If `token` has no logit.
    pub fn logprob(&mut self, logits: &[f32], token: u32, top: usize) -> TokenLogprob {
        self.candidates.logprob(logits, token, top)
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
        self.penalise(logits, prompt, generated)?;
        self.draw(logits)
    }

    /// [`sample`](Self::sample) where nothing is to be penalised.
    pub(crate) fn draw(&mut self, logits: &[f32]) -> Result<u32, SamplingError> {
        let Sampler { params, rng, buffers: Buffers { candidates, .. } } = self;
        let best = candidates.survey(logits)?;
        if params.temperature == 0.0 { Ok(best.token) } else { Ok(candidates.draw(logits, best.logit, params, rng.next_unit())) }
    }

    /// The probabilities that [`sample`](Self::sample) draws from, in the order in which it adds them up. Draws nothing;
    /// penalises `logits` in place.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn probabilities(&mut self, logits: &mut [f32], prompt: &[u32], generated: &[u32]) -> Result<&[Probability], SamplingError> {
        self.penalise(logits, prompt, generated)?;
        let Sampler { params, buffers: Buffers { candidates, kept, .. }, .. } = self;
        let best = candidates.survey(logits)?;
        kept.clear();
        if params.temperature == 0.0 {
            kept.push(Probability { token: best.token, probability: 1.0 });
        } else {
            let (list, sum) = candidates.kept(logits, best.logit, params);
            kept.extend(list.iter().map(|c| Probability { token: c.token, probability: c.weight / sum }));
        }
        Ok(kept)
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
