//! How probable tokens are, by the raw logits.

use crate::TokenLogprob;
use crate::sampler::exp;
use std::cmp::Ordering;

/// The most probable first, of equal ones the lower id.
fn order(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

/// What is told of `token` and the `top` most probable ones. The sum runs in `f64` over the ids in ascending order.
///
/// # Panics
/// If `token` has no logit.
pub(crate) fn logprob(logits: &[f32], token: u32, top: usize) -> TokenLogprob {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &l| max.max(l));
    let sum: f64 = logits.iter().map(|&l| exp::exp(f64::from(l) - f64::from(max))).sum();
    let of = |logit: f32| (f64::from(logit) - f64::from(max) - sum.ln()) as f32;
    let own = (token, logits[token as usize]);
    let before = (0..).zip(logits).filter(|&(id, &l)| order(&(id, l), &own) == Ordering::Less).count();
    let mut best = vec![];
    if top > 0 {
        best = (0..).zip(logits.iter().copied()).collect::<Vec<(u32, f32)>>();
        let top = top.min(best.len());
        best.select_nth_unstable_by(top - 1, order);
        best.truncate(top);
        best.sort_unstable_by(order);
        best.iter_mut().for_each(|(_, logit)| *logit = of(*logit));
    }
    TokenLogprob { token, logprob: of(own.1), rank: before + 1, top: best }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_plain_softmax() {
        let logits: Vec<f32> = (0..500).map(|i| ((i * 7919) % 101) as f32 * 0.21 - 9.0).collect();
        let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let plain = |token: usize| (f64::from(logits[token]) - sum.ln()) as f32;
        for token in [0, 17, 100, 101, 499] {
            let got = logprob(&logits, token as u32, 7);
            assert!((got.logprob - plain(token)).abs() < 1e-5, "{} {}", got.logprob, plain(token));
            let mut sorted: Vec<usize> = (0..500).collect();
            sorted.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            assert_eq!(got.rank - 1, sorted.iter().position(|&t| t == token).unwrap());
            assert_eq!(got.top.iter().map(|t| t.0 as usize).collect::<Vec<_>>(), sorted[..7]);
            assert!(got.top.iter().all(|&(t, l)| (l - plain(t as usize)).abs() < 1e-5));
        }
        let few = logprob(&[0.0, f32::NEG_INFINITY], 1, 9);
        assert_eq!((few.logprob, few.rank, few.top), (f32::NEG_INFINITY, 2, vec![(0, 0.0), (1, f32::NEG_INFINITY)]));
        assert!(logprob(&[1.0, 2.0], 0, 0).top.is_empty());
    }
}
