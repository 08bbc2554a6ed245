//! What the modules of a folder show together: a module that does not show its dialect by itself follows the others.

use super::shown::{Shown, Verdict};
use super::{ZeroDialect, ZeroLabel};
use crate::checkpoint::Checkpoint;
use crate::{Scheme, gptq};

/// Modules that are asked.
const VOTERS: usize = 16;
/// The winner has at least this many times the votes of all the others.
const MARGIN: usize = 3;
/// And at least this many.
const ENOUGH: usize = 2;

/// Votes for one question.
#[derive(Clone, Debug, Default)]
struct Votes(Vec<(ZeroDialect, usize)>);

impl Votes {
    fn add(&mut self, verdict: Option<&Verdict>) {
        let Some(verdict) = verdict.filter(|v| v.whole) else { return };
        match self.0.iter_mut().find(|(dialect, _)| *dialect == verdict.dialect) {
            Some((_, count)) => *count += 1,
            None => self.0.push((verdict.dialect, 1)),
        }
    }

    fn total(&self) -> usize {
        self.0.iter().map(|(_, count)| count).sum()
    }

    fn of(&self, dialect: ZeroDialect) -> usize {
        self.0.iter().find(|(d, _)| *d == dialect).map_or(0, |(_, count)| *count)
    }

    fn winner(&self) -> Option<Verdict> {
        let (dialect, count) = self.0.iter().copied().max_by_key(|(_, count)| *count)?;
        let total = self.total();
        let reason = format!("{count} of the {total} modules of the folder that tell by themselves; this one alone does not");
        (count >= ENOUGH && count >= MARGIN * (total - count)).then_some(Verdict { dialect, reason, whole: true })
    }

    /// The dialect that more modules show than show `own`, or as many.
    fn against(&self, own: ZeroDialect) -> Option<(ZeroDialect, usize)> {
        let others = self.0.iter().copied().filter(|(dialect, _)| *dialect != own);
        others.max_by_key(|(_, count)| *count).filter(|(_, count)| *count >= self.of(own))
    }
}

/// A module against the others.
pub(super) struct Against {
    pub(super) own: ZeroDialect,
    pub(super) others: ZeroDialect,
    /// How many show that.
    pub(super) count: usize,
    /// Of how many that show anything.
    pub(super) of: usize,
}

/// What the modules of one width show.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ballot {
    class: Votes,
    wrap: Votes,
}

impl Ballot {
    fn add(&mut self, shown: &Shown) {
        self.class.add(shown.class.as_ref());
        self.wrap.add(shown.wrap.as_ref());
    }

    /// The class of dialects that the folder shows.
    pub(super) fn class(&self) -> Option<Verdict> {
        self.class.winner()
    }

    /// How its v1 zero points wrap.
    pub(super) fn wrap(&self) -> Option<Verdict> {
        self.wrap.winner()
    }

    /// What other modules show against one that shows something else.
    pub(super) fn against(&self, shown: &Shown) -> Option<Against> {
        let question = |votes: &Votes, own: &Option<Verdict>| {
            let own = own.as_ref().filter(|v| v.whole)?.dialect;
            votes.against(own).map(|(others, count)| Against { own, others, count, of: votes.total() })
        };
        let wrap = || if shown.label() == Some(ZeroLabel::V2) { None } else { question(&self.wrap, &shown.wrap) };
        question(&self.class, &shown.class).or_else(wrap)
    }
}

/// Asks modules of this width, spread evenly over the folder. One that cannot be read says nothing here and is an error when
/// it is read itself.
pub(crate) fn ballot(checkpoint: &Checkpoint, bits: u32) -> Ballot {
    let mut ballot = Ballot::default();
    let Some(config) = checkpoint.quantization() else { return ballot };
    let names = checkpoint.quantized_modules();
    let schemes = names.iter().filter_map(|name| Some((name, config.scheme(name).ok()?)));
    let modules: Vec<(&String, Scheme)> = schemes.filter(|(_, s)| s.bits == bits && s.format.is_gptq()).collect();
    let voters = modules.len().min(VOTERS);
    for i in 0..voters {
        // first and last included, and no step that meets one kind of module in every layer
        let (name, scheme) = modules[i * (modules.len() - 1) / (voters - 1).max(1)];
        if let Ok(shown) = gptq::shown(checkpoint, config, name, scheme) {
            ballot.add(&shown);
        }
    }
    ballot
}

#[cfg(test)]
mod tests {
    use super::*;
    use ZeroDialect::{V1, V2};

    fn votes(v1: usize, v2: usize) -> Votes {
        Votes(vec![(V1, v1), (V2, v2)])
    }

    #[test]
    fn a_winner_needs_a_margin() {
        let won = |v1, v2| votes(v1, v2).winner().map(|v| v.dialect);
        assert_eq!(won(0, 0), None);
        assert_eq!(won(1, 0), None, "one module is no folder");
        assert_eq!(won(2, 0), Some(V1));
        assert_eq!(won(3, 1), Some(V1));
        assert_eq!(won(2, 1), None);
        assert_eq!(won(4, 12), Some(V2));
        assert_eq!(won(8, 8), None);
    }

    #[test]
    fn the_minority_is_what_is_mixed_in() {
        assert_eq!(votes(14, 2).against(V2), Some((V1, 14)));
        assert_eq!(votes(14, 2).against(V1), None);
        assert_eq!(votes(8, 8).against(V1), Some((V2, 8)));
        assert_eq!(votes(8, 0).against(V2), Some((V1, 8)));
        assert_eq!(votes(8, 0).against(V1), None);
    }
}
