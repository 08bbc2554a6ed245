//! What a step draws from: the tokens that its filters leave, with their weights. And how probable tokens are by logits as
//! they are.
//!
//! A vocabulary may have a quarter of a million tokens, most of which no filter leaves. What looks at all of them does so part
//! by part in loops that the compiler makes vectors of; what makes a list does it for the tokens above a bound that surely
//! holds those that stay.

use super::exp::{exp, exps};
use super::{SamplingError, SamplingParams};
use crate::TokenLogprob;
use std::cmp::Ordering;

/// Tokens that are looked at together.
const PART: usize = 256;

/// Tokens whose weights are computed at once.
const LANES: usize = 8;

#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub token: u32,
    pub logit: f32,
    /// The probability up to a common factor; 1 for the most probable token.
    pub weight: f64,
}

impl Candidate {
    /// Most probable first, then the lowest id. No logit is NaN here, and 0 and -0 are equal.
    fn order(&self, other: &Candidate) -> Ordering {
        let by_logit = other.logit.partial_cmp(&self.logit).unwrap_or(Ordering::Equal);
        by_logit.then(self.token.cmp(&other.token))
    }
}

/// In which order weights are added up.
enum Order {
    /// Most probable first, of equal ones the lower id.
    Probability,
    /// In that of ids.
    Id,
}

/// A token and its logit.
#[derive(Clone, Copy)]
pub(super) struct Best {
    pub token: u32,
    pub logit: f32,
}

/// What makes weights of logits: `exp((logit - max) * rate)`.
#[derive(Clone, Copy)]
struct Scale {
    max: f64,
    rate: f64,
}

impl Scale {
    fn exponent(self, logit: f32) -> f64 {
        (f64::from(logit) - self.max) * self.rate
    }

    fn weight(self, logit: f32) -> f64 {
        exp(self.exponent(logit))
    }

    /// The weights of a part, and 0 behind them.
    fn weights(self, part: &[f32]) -> [f64; PART] {
        let mut weights = [0.0; PART];
        let (whole, rest) = part.as_chunks::<LANES>();
        let (eights, _) = weights.as_chunks_mut::<LANES>();
        for (weights, logits) in eights.iter_mut().zip(whole) {
            *weights = exps(logits.map(|logit| self.exponent(logit)));
        }
        weights[part.len() - rest.len()..].iter_mut().zip(rest).for_each(|(weight, logit)| *weight = self.weight(*logit));
        weights
    }
}

/// The sum of the weights of a part: of the lanes each, then of these.
fn sum(weights: &[f64; PART]) -> f64 {
    let lanes = weights.as_chunks::<LANES>().0.iter().fold([0.0; LANES], |mut sums, lanes| {
        sums.iter_mut().zip(lanes).for_each(|(sum, weight)| *sum += weight);
        sums
    });
    lanes.iter().sum()
}

/// The sum of the weights of a list, in its order.
fn mass(list: &[Candidate]) -> f64 {
    list.iter().map(|c| c.weight).sum()
}

/// The room of a step.
#[derive(Clone, Debug, Default)]
pub(super) struct Candidates {
    list: Vec<Candidate>,
    /// The highest logit of each part.
    highest: Vec<f32>,
    /// The same in another order.
    bounds: Vec<f32>,
    /// The sum of the weights of each part.
    sums: Vec<f64>,
}

impl Candidates {
    /// The token with the highest logit, the lowest of several; checks all logits. Comes first in every step.
    pub fn survey(&mut self, logits: &[f32]) -> Result<Best, SamplingError> {
        if !logits.iter().fold(true, |fine, &v| fine & (v < f32::INFINITY)) {
            let token = logits.iter().position(|&v| v.is_nan() || v == f32::INFINITY).unwrap_or(0);
            return Err(SamplingError::Logit { token, found: logits[token].to_string() });
        }
        let logit = self.maxima(logits);
        let part = self.highest.iter().position(|&highest| highest == logit && highest > f32::NEG_INFINITY);
        let token = part.and_then(|part| logits[part * PART..].iter().position(|&v| v == logit).map(|at| (part * PART + at) as u32));
        token.map(|token| Best { token, logit }).ok_or(SamplingError::NoCandidate { vocab: logits.len() })
    }

    /// Finds the highest logit of each part and returns that of all.
    fn maxima(&mut self, logits: &[f32]) -> f32 {
        let higher = |high: f32, v: f32| if v > high { v } else { high };
        self.highest.clear();
        self.highest.extend(logits.chunks(PART).map(|part| {
            let (lanes, rest) = part.as_chunks::<16>();
            let highest = lanes.iter().fold([f32::NEG_INFINITY; 16], |mut highest, lanes| {
                highest.iter_mut().zip(lanes).for_each(|(high, &v)| *high = higher(*high, v));
                highest
            });
            highest.iter().chain(rest).fold(f32::NEG_INFINITY, |high, &v| higher(high, v))
        }));
        self.highest.iter().fold(f32::NEG_INFINITY, |high, &v| higher(high, v))
    }

    /// What [`Buffers::logprob`](super::Buffers::logprob) tells.
    pub fn logprob(&mut self, logits: &[f32], token: u32, top: usize) -> TokenLogprob {
        let scale = Scale { max: f64::from(self.maxima(logits)), rate: 1.0 };
        let shift = scale.max + self.total(logits, scale).ln();
        let of = |logit: f32| (f64::from(logit) - shift) as f32;
        let own = logits[token as usize];
        let (before, behind) = logits.split_at(token as usize);
        let count = |logits: &[f32], is: fn(f32, f32) -> bool| logits.iter().filter(|&&logit| is(logit, own)).count();
        let rank = 1 + count(before, |a, b| a >= b) + count(behind, |a, b| a > b);
        self.list.clear();
        if top > 0 {
            let bound = self.bound(top);
            self.gather(logits, scale, bound);
            self.list.sort_unstable_by(Candidate::order);
        }
        let top = self.list.iter().take(top).map(|c| (c.token, of(c.logit))).collect();
        TokenLogprob { token, logprob: of(own), rank, top }
    }

    /// The token that a random number from 0 up to 1 stands for. The temperature is not 0.
    pub fn draw(&mut self, logits: &[f32], max: f32, params: &SamplingParams, unit: f64) -> u32 {
        let scale = scale(max, params);
        let Some(order) = self.filter(logits, scale, params) else { return self.draw_from_all(logits, scale, unit) };
        // what weighs nothing is not drawn, though rounding may leave the sum a little below the target
        self.list.retain(|c| c.weight > 0.0);
        let target = unit * mass(&self.list);
        let enough = |reached: f64| reached > target;
        let at = match order {
            Order::Probability => lead(&mut self.list, enough),
            Order::Id => reach(self.list.iter().map(|c| c.weight), &mut 0.0, enough),
        };
        self.list[at].token
    }

    /// Draws where there is no filter, in the order of ids, without a list.
    fn draw_from_all(&mut self, logits: &[f32], scale: Scale, unit: f64) -> u32 {
        let target = unit * self.total(logits, scale);
        let enough = |reached: f64| reached > target;
        let mut reached = 0.0;
        let part = reach(self.sums.iter().copied(), &mut reached, enough);
        let weights = scale.weights(&logits[part * PART..logits.len().min((part + 1) * PART)]);
        (part * PART + reach(weights, &mut reached, enough)) as u32
    }

    /// What a draw chooses from, in the order in which it adds the weights up, and their sum.
    pub fn kept(&mut self, logits: &[f32], max: f32, params: &SamplingParams) -> (&[Candidate], f64) {
        let scale = scale(max, params);
        match self.filter(logits, scale, params) {
            Some(Order::Probability) => self.list.sort_unstable_by(Candidate::order),
            Some(Order::Id) => (),
            None => self.gather(logits, scale, f32::MIN),
        }
        (&self.list, mass(&self.list))
    }

    /// Makes the list of what the filters leave, if there are any. Returns in which order it is to be drawn from; only that of
    /// ids is the list's own already.
    fn filter(&mut self, logits: &[f32], scale: Scale, params: &SamplingParams) -> Option<Order> {
        let &SamplingParams { temperature, top_k, top_p, min_p, .. } = params;
        let allowed = || logits.iter().filter(|logit| **logit > f32::NEG_INFINITY).count();
        let top_k = (top_k > 0 && top_k < allowed()).then_some(top_k);
        if top_k.is_none() && top_p == 1.0 && min_p == 0.0 {
            return None;
        }
        // what the filters leave lies above it, of a nucleus most often; each is made a little lower than need be
        let below = |steps: f64| (scale.max - steps * f64::from(temperature) * 1.001) as f32;
        let bound = match top_k {
            Some(k) => self.bound(k),
            None if min_p > 0.0 => below(-f64::from(min_p).ln()),
            None => below(8.0),
        };
        self.gather(logits, scale, bound.max(f32::MIN));
        if let Some(k) = top_k {
            self.list.select_nth_unstable_by(k - 1, Candidate::order);
            self.list.truncate(k);
        }
        // min-p and top-p keep the most probable tokens, so they can change places
        let total = match top_k {
            _ if top_p == 1.0 => 0.0,
            Some(_) => mass(&self.list),
            None => self.total(logits, scale),
        };
        if min_p > 0.0 {
            self.list.retain(|c| c.weight >= f64::from(min_p));
        }
        if top_p < 1.0 {
            let enough = |reached: f64| reached >= f64::from(top_p) * total;
            if top_k.is_none() && min_p == 0.0 && !enough(mass(&self.list)) {
                self.gather(logits, scale, f32::MIN);
            }
            let n = lead(&mut self.list, enough) + 1;
            self.list.truncate(n);
        }
        Some(if top_k.is_some() || top_p < 1.0 { Order::Probability } else { Order::Id })
    }

    /// A logit that at least `k` tokens reach.
    fn bound(&mut self, k: usize) -> f32 {
        if k > self.highest.len() {
            return f32::NEG_INFINITY;
        }
        self.bounds.clone_from(&self.highest);
        *self.bounds.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
    }

    /// Lists the tokens whose logits reach a bound, with a finite one those that are not forbidden.
    fn gather(&mut self, logits: &[f32], scale: Scale, bound: f32) {
        self.list.clear();
        for (i, part) in logits.chunks(PART).enumerate().filter(|(i, _)| self.highest[*i] >= bound) {
            let reach = part.iter().enumerate().filter(|(_, logit)| **logit >= bound);
            self.list.extend(reach.map(|(at, &logit)| Candidate { token: (i * PART + at) as u32, logit, weight: scale.weight(logit) }));
        }
    }

    /// The sum of all weights.
    fn total(&mut self, logits: &[f32], scale: Scale) -> f64 {
        self.sums.clear();
        self.sums.extend(logits.chunks(PART).map(|part| sum(&scale.weights(part))));
        self.sums.iter().sum()
    }
}

fn scale(max: f32, params: &SamplingParams) -> Scale {
    Scale { max: f64::from(max), rate: 1.0 / f64::from(params.temperature) }
}

/// Brings the most probable candidates to the front, up to the first of which `enough` says that they are, by the sum of the
/// weights to it in this order; returns its index, or the last one. No more is sorted than that takes.
fn lead(list: &mut [Candidate], enough: impl Fn(f64) -> bool) -> usize {
    const FEW: usize = 64;
    let (mut from, mut to, mut reached) = (0, list.len(), 0.0);
    while to - from > FEW {
        let middle = from + (to - from) / 2;
        list[from..to].select_nth_unstable_by(middle - from, Candidate::order);
        let half = mass(&list[from..middle]);
        if enough(reached + half) {
            to = middle;
        } else {
            reached += half;
            from = middle;
        }
    }
    list[from..to].sort_unstable_by(Candidate::order);
    from + reach(list[from..to].iter().map(|c| c.weight), &mut reached, enough)
}

/// The index of the first weight with which the sum is enough, or of the last one that is not 0. What comes before it is added
/// to `reached`.
fn reach(weights: impl IntoIterator<Item = f64>, reached: &mut f64, enough: impl Fn(f64) -> bool) -> usize {
    let mut last = 0;
    for (i, weight) in weights.into_iter().enumerate() {
        if enough(*reached + weight) {
            return i;
        }
        *reached += weight;
        if weight > 0.0 {
            last = i;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_plain_softmax() {
        let mut room = Candidates::default();
        let logits: Vec<f32> = (0..500).map(|i| ((i * 7919) % 101) as f32 * 0.21 - 9.0).collect();
        let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let plain = |token: usize| (f64::from(logits[token]) - sum.ln()) as f32;
        for token in [0, 17, 100, 101, 499] {
            let got = room.logprob(&logits, token as u32, 7);
            assert!((got.logprob - plain(token)).abs() < 1e-5, "{} {}", got.logprob, plain(token));
            let mut sorted: Vec<usize> = (0..500).collect();
            sorted.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            assert_eq!(got.rank - 1, sorted.iter().position(|&t| t == token).unwrap());
            assert_eq!(got.top.iter().map(|t| t.0 as usize).collect::<Vec<_>>(), sorted[..7]);
            assert!(got.top.iter().all(|&(t, l)| (l - plain(t as usize)).abs() < 1e-5));
        }
        let few = room.logprob(&[0.0, f32::NEG_INFINITY], 1, 9);
        assert_eq!((few.logprob, few.rank, few.top), (f32::NEG_INFINITY, 2, vec![(0, 0.0), (1, f32::NEG_INFINITY)]));
        assert!(room.logprob(&[1.0, 2.0], 0, 0).top.is_empty());
    }
}
