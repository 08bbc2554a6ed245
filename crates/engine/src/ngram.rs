//! Drafts without a draft model: what followed the last few tokens when they came before.

use crate::EngineError;
use std::collections::VecDeque;

/// How drafts are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ngram {
    /// Tokens of a draft at most, 1 to 32.
    pub most: usize,
    /// Tokens that must have come before at least.
    pub min: usize,
    /// Tokens that are looked for at most, up to 32.
    pub max: usize,
}

impl Default for Ngram {
    fn default() -> Self {
        Ngram { most: 5, min: 2, max: 4 }
    }
}

impl Ngram {
    /// Checks the numbers.
    pub(crate) fn validate(&self) -> Result<(), EngineError> {
        let check = |name, range: std::ops::RangeInclusive<usize>, found: usize| {
            let expected = format!("{} to {}", range.start(), range.end());
            let found_text = found.to_string();
            if range.contains(&found) { Ok(()) } else { Err(EngineError::Option { name, expected, found: found_text }) }
        };
        check("ngram most", 1..=32, self.most)?;
        check("ngram max", 1..=32, self.max)?;
        check("ngram min", 1..=self.max, self.min)
    }

    /// What followed the longest end of `tokens` that came before, where it came first; none if fewer than `min` tokens did.
    pub(crate) fn propose<'t>(&self, tokens: &'t [u32]) -> &'t [u32] {
        let same_before = |end: usize| {
            let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
            pairs.take(self.max).take_while(|(a, b)| a == b).count()
        };
        let (mut longest, mut at) = (0, 0);
        for end in 1..tokens.len() {
            let same = same_before(end);
            if same > longest {
                (longest, at) = (same, end);
                if same == self.max {
                    break;
                }
            }
        }
        if longest < self.min { &[] } else { &tokens[at..tokens.len().min(at + self.most)] }
    }
}

/// Drafts of which acceptance is known.
const RECENT: usize = 64;

/// Whether drafts for one choice are worth their while.
#[derive(Clone, Debug, Default)]
pub(crate) struct Acceptance {
    /// Tokens of the last drafts, and how many of them were accepted.
    recent: VecDeque<(usize, usize)>,
    proposed: usize,
    accepted: usize,
}

impl Acceptance {
    /// Whether to go on: not when fewer than a fifth of the tokens of the last 64 drafts were accepted.
    pub fn is_enough(&self) -> bool {
        self.recent.len() < RECENT || 5 * self.accepted >= self.proposed
    }

    /// Takes note of a draft.
    pub fn add(&mut self, proposed: usize, accepted: usize) {
        if self.recent.len() == RECENT
            && let Some((p, a)) = self.recent.pop_front()
        {
            self.proposed -= p;
            self.accepted -= a;
        }
        self.recent.push_back((proposed, accepted));
        self.proposed += proposed;
        self.accepted += accepted;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn drafts_follow_the_longest_match_where_it_came_first() {
        let of = |most, min, max| Ngram { most, min, max };
        let tokens = [1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3];
        assert_eq!(of(3, 2, 4).propose(&tokens), [4, 9, 2], "three tokens are the same at the beginning");
        assert_eq!(of(3, 2, 2).propose(&tokens), [4, 9, 2], "the first of two places");
        assert_eq!(of(30, 3, 4).propose(&tokens).len(), 8, "no more than there is");
        assert_eq!(of(3, 4, 4).propose(&tokens), [0; 0]);
        assert_eq!(of(4, 1, 8).propose(&[7, 7, 7, 7]), [7], "an overlap is a match too");
        assert_eq!(of(4, 1, 8).propose(&[7]), [0; 0]);
        assert_eq!(of(4, 1, 8).propose(&[]), [0; 0]);
    }

    #[test]
    fn numbers_are_checked() {
        for (most, min, max) in [(0, 1, 1), (33, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 33)] {
            assert!(matches!(Ngram { most, min, max }.validate(), Err(EngineError::Option { .. })), "{most} {min} {max}");
        }
        assert!(Ngram::default().validate().is_ok());
    }

    #[test]
    fn drafts_end_when_few_are_accepted_and_not_before() {
        let mut a = Acceptance::default();
        (0..63).for_each(|_| a.add(5, 0));
        assert!(a.is_enough());
        a.add(5, 0);
        assert!(!a.is_enough());
        let mut b = Acceptance::default();
        (0..64).for_each(|_| b.add(5, 1));
        assert!(b.is_enough());
        // only the last 64 count
        (0..64).for_each(|_| b.add(5, 5));
        (0..51).for_each(|_| b.add(5, 0));
        assert!(b.is_enough(), "65 of 320");
        b.add(5, 0);
        assert!(!b.is_enough(), "60 of 320");
        assert_eq!((b.recent.len(), b.proposed), (64, 320));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn agrees_with_trying_everything(tokens in prop::collection::vec(0..3_u32, 0..40), most in 1..6_usize, min in 1..4_usize, more in 0..4_usize) {
            let ngram = Ngram { most, min, max: min + more };
            let mut expected: &[u32] = &[];
            'all: for n in (min..=min + more).rev() {
                for at in 0..tokens.len().saturating_sub(n) {
                    if tokens[at..at + n] == tokens[tokens.len() - n..] {
                        expected = &tokens[at + n..tokens.len().min(at + n + most)];
                        break 'all;
                    }
                }
            }
            prop_assert_eq!(ngram.propose(&tokens), expected);
        }
    }
}
