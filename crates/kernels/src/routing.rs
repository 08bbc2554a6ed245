//! Which experts a token goes to, and how much each of them counts.

use crate::Backend;
use crate::activations::Out;

/// What makes scores of a router's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Over all experts.
    Softmax,
    /// Of each expert by itself.
    Sigmoid,
}

/// The score of a group of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScore {
    /// The largest score in it.
    Largest,
    /// The sum of the two largest.
    BestTwo,
}

/// Experts in groups of equal size, of which a token sees a few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    /// Groups in all, at most [`MAX_GROUPS`].
    pub count: usize,
    /// Groups that a token sees.
    pub chosen: usize,
    /// How groups are compared.
    pub score: GroupScore,
}

/// Most groups of experts.
pub const MAX_GROUPS: usize = 128;

/// The rules of a router.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// Experts in all.
    pub experts: usize,
    /// Experts of a token.
    pub top_k: usize,
    /// How logits become scores.
    pub scoring: Scoring,
    /// Groups that are chosen first, if there are any.
    pub groups: Option<ExpertGroups>,
    /// Whether the weights of a token's experts are divided by their sum.
    pub renormalize: bool,
    /// What every weight is multiplied by in the end.
    pub scaling: f32,
}

/// One expert of a token and what its output is multiplied by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Choice {
    /// The expert.
    pub expert: u32,
    /// Its weight.
    pub weight: f32,
}

/// Rows that one chunk of a region routes.
const RUN: usize = 32;

impl Routing {
    /// Whether the numbers fit together: `Err` says what does not.
    ///
    /// # Errors
    /// What is expected, in words.
    pub fn check(&self) -> Result<(), String> {
        let Routing { experts, top_k, .. } = *self;
        if experts == 0 || top_k == 0 || top_k > experts {
            return Err(format!("1 to {experts} experts of a token"));
        }
        let Some(ExpertGroups { count, chosen, score }) = self.groups else { return Ok(()) };
        let least = if score == GroupScore::BestTwo { 2 } else { 1 };
        if count == 0 || count > MAX_GROUPS || !experts.is_multiple_of(count) || experts / count < least {
            return Err(format!("1 to {MAX_GROUPS} groups that divide {experts} experts into groups of at least {least}"));
        }
        if chosen == 0 || chosen > count || chosen * (experts / count) < top_k {
            return Err(format!("1 to {count} chosen groups that hold {top_k} experts or more"));
        }
        Ok(())
    }

    /// Chooses the experts of one token whose scores are `scores`; best first, ties to the lower index.
    fn choose(&self, scores: &[f32], correction: Option<&[f32]>, choices: &mut [Choice]) {
        if scores.iter().any(|s| s.is_nan()) {
            // what is not a number must not look like one later
            choices.iter_mut().zip(0..).for_each(|(c, expert)| *c = Choice { expert, weight: f32::NAN });
            return;
        }
        let corrected = |e: usize| scores[e] + correction.map_or(0.0, |c| c[e]);
        let mut seen = u128::MAX;
        let size = self.groups.map_or(scores.len(), |g| scores.len() / g.count);
        if let Some(ExpertGroups { count, chosen, score }) = self.groups {
            let mut groups = [Choice::default(); MAX_GROUPS];
            let of_group = |g: usize| {
                let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
                for s in (g * size..(g + 1) * size).map(corrected) {
                    if s > first {
                        (first, second) = (s, first);
                    } else if s > second {
                        second = s;
                    }
                }
                if score == GroupScore::BestTwo { first + second } else { first }
            };
            best((0..count).map(|g| (g, of_group(g))), &mut groups[..chosen]);
            seen = groups[..chosen].iter().fold(0, |seen, g| seen | 1 << g.expert);
        }
        best((0..scores.len()).filter(|e| seen >> (e / size) & 1 == 1).map(|e| (e, corrected(e))), choices);
        let mut sum = 0.0;
        for c in choices.iter_mut() {
            c.weight = scores[c.expert as usize];
            sum += c.weight;
        }
        // all of them may be 0, after a sigmoid of very small logits
        let sum = if self.renormalize { f32::max(sum, f32::MIN_POSITIVE) } else { 1.0 };
        choices.iter_mut().for_each(|c| c.weight = c.weight / sum * self.scaling);
    }
}

/// The candidates with the largest scores, best first; of equal ones the first. There must be enough of them.
fn best(candidates: impl Iterator<Item = (usize, f32)>, out: &mut [Choice]) {
    let mut filled = 0;
    for (expert, weight) in candidates {
        if filled == out.len() && weight <= out[filled - 1].weight {
            continue;
        }
        let place = out[..filled].iter().position(|c| weight > c.weight).unwrap_or(filled);
        filled = out.len().min(filled + 1);
        out[place..filled].rotate_right(1);
        out[place] = Choice { expert: expert as u32, weight };
    }
    assert_eq!(filled, out.len(), "more to choose than to choose from");
}

impl Backend {
    /// Chooses the experts of each token from the router's `logits`, `[m, experts]`, which become scores on the way.
    /// `correction` is added to scores for the choice only. A token gets `top_k` choices, best first; where scores are
    /// equal, the lower index is better. All of it is `f32` in one order, so that the result depends on the logits alone.
    ///
    /// # Panics
    /// If the sizes do not fit, or the rules do not pass [`Routing::check`].
    pub fn route(&self, routing: &Routing, logits: &mut [f32], correction: Option<&[f32]>, choices: &mut [Choice]) {
        let Routing { experts, top_k, .. } = *routing;
        assert_eq!(routing.check(), Ok(()), "a router that fits");
        assert!(logits.len().is_multiple_of(experts) && correction.is_none_or(|c| c.len() == experts), "a logit for each expert");
        let m = logits.len() / experts;
        assert_eq!(choices.len(), m * top_k, "choices for each token");
        let (rows, places) = (Out(logits.as_mut_ptr()), Out(choices.as_mut_ptr()));
        self.pool.run(m.div_ceil(RUN), &|chunk| {
            for i in chunk * RUN..m.min((chunk + 1) * RUN) {
                // SAFETY: row i and its choices lie inside, by the lengths checked above, and this chunk alone has them.
                let (row, choices) = unsafe {
                    let row = std::slice::from_raw_parts_mut(rows.at(i * experts), experts);
                    (row, std::slice::from_raw_parts_mut(places.at(i * top_k), top_k))
                };
                self.score(routing.scoring, row);
                routing.choose(row, correction, choices);
            }
        });
    }

    fn score(&self, scoring: Scoring, row: &mut [f32]) {
        match scoring {
            Scoring::Softmax => {
                let largest = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
                row.iter_mut().for_each(|v| *v -= largest);
                // SAFETY: the table's instruction set is available.
                unsafe { (self.kernels.exp)(row) };
                let sum: f32 = row.iter().sum();
                row.iter_mut().for_each(|v| *v /= sum);
            }
            Scoring::Sigmoid => self.sigmoid(row),
        }
    }

    /// `x[i] = 1 / (1 + e^-x[i])`.
    pub fn sigmoid(&self, x: &mut [f32]) {
        x.iter_mut().for_each(|v| *v = -*v);
        // SAFETY: the table's instruction set is available.
        unsafe { (self.kernels.exp)(x) };
        x.iter_mut().for_each(|v| *v = 1.0 / (1.0 + *v));
    }
}
