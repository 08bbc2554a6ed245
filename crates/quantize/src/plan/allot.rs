//! One choice for each unit, so that the sum of the losses is least under a limit of bytes.
//!
//! Sizes of modules have a large common divisor, so a table over all sums is small and gives the least loss there is: a
//! Lagrange multiplier would find the same up to the last unit, and need a repair for it. Where the table would be too
//! large, sizes are rounded up to a coarser unit that depends on the offers alone, so that more bytes never cost more.

/// A choice that one unit could have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offer {
    /// Bytes.
    pub bytes: u64,
    /// What it costs otherwise.
    pub loss: f64,
}

/// Most sums that are told apart.
const MOST: u64 = 1 << 18;

/// For each unit the number of an offer: the least sum of losses among those of at most `limit` bytes, none if there are
/// none. Of equal losses the first offer wins.
///
/// # Panics
/// If a unit has no offers, or more than 255.
pub fn allot(units: &[Vec<Offer>], limit: u64) -> Option<Vec<usize>> {
    assert!(units.iter().all(|u| !u.is_empty() && u.len() < 256), "some offers for every unit");
    let least = |u: &Vec<Offer>| u.iter().map(|o| o.bytes).min().unwrap_or(0);
    let bottom: u64 = units.iter().map(least).sum();
    let spare = limit.checked_sub(bottom)?;
    let above = |u: &Vec<Offer>| u.iter().map(|o| o.bytes).max().unwrap_or(0) - least(u);
    let most: u64 = units.iter().map(above).sum();
    let divisor = units.iter().flat_map(|u| u.iter().map(move |o| o.bytes - least(u))).fold(0, gcd).max(1);
    let step = divisor.max(most.div_ceil(MOST));
    let sums = (spare.min(most.next_multiple_of(step).saturating_add(units.len() as u64 * step)) / step) as usize + 1;
    // the least loss of the units so far for at most each sum
    let mut best = vec![0.0; sums];
    let mut chosen: Vec<Vec<u8>> = Vec::with_capacity(units.len());
    let steps = |u: &Vec<Offer>, o: &Offer| (o.bytes - least(u)).div_ceil(step) as usize;
    for u in units {
        let offers: Vec<(usize, f64)> = u.iter().map(|o| (steps(u, o), o.loss)).collect();
        let mut with = vec![f64::INFINITY; sums];
        let mut which = vec![0u8; sums];
        for (number, &(size, loss)) in offers.iter().enumerate() {
            for (s, before) in best.iter().enumerate().take(sums.saturating_sub(size)) {
                if before + loss < with[s + size] {
                    (with[s + size], which[s + size]) = (before + loss, number as u8);
                }
            }
        }
        best = with;
        chosen.push(which);
    }
    let mut left = sums - 1;
    let mut out = vec![0; units.len()];
    for ((u, which), out) in units.iter().zip(&chosen).zip(&mut out).rev() {
        *out = usize::from(which[left]);
        left -= steps(u, &u[*out]);
    }
    Some(out)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Units with offers of all kinds, dominated ones among them.
    fn units(count: usize, offers: usize, seed: u64, scale: u64) -> Vec<Vec<Offer>> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        let mut offer = || Offer { bytes: scale * (1 + next() % 40), loss: (next() % 1000) as f64 };
        (0..count).map(|_| (0..offers).map(|_| offer()).collect()).collect()
    }

    fn sum(units: &[Vec<Offer>], chosen: &[usize]) -> (u64, f64) {
        let picked = || units.iter().zip(chosen).map(|(u, &i)| u[i]);
        (picked().map(|o| o.bytes).sum(), picked().map(|o| o.loss).sum())
    }

    /// Every combination, one after another.
    fn by_trial(units: &[Vec<Offer>], limit: u64) -> Option<f64> {
        let count = units.iter().map(Vec::len).product();
        let combination = |mut n: usize| -> Vec<usize> {
            units
                .iter()
                .map(|u| {
                    let i = n % u.len();
                    n /= u.len();
                    i
                })
                .collect()
        };
        (0..count).map(|n| sum(units, &combination(n))).filter(|s| s.0 <= limit).map(|s| s.1).min_by(f64::total_cmp)
    }

    #[test]
    fn the_least_loss_of_all_combinations() {
        for seed in 0..6 {
            let units = units(5, 4, seed, 7);
            for limit in (0..1500).step_by(9) {
                let found = allot(&units, limit).map(|c| sum(&units, &c));
                assert!(found.is_none_or(|f| f.0 <= limit));
                assert_eq!(found.map(|f| f.1), by_trial(&units, limit), "{seed} {limit}");
            }
        }
    }

    /// What no choice can be below, by a multiplier on the bytes.
    fn bound(units: &[Vec<Offer>], limit: u64) -> f64 {
        let at = |price: f64| {
            let least = |u: &Vec<Offer>| u.iter().map(|o| o.loss + price * o.bytes as f64).fold(f64::INFINITY, f64::min);
            units.iter().map(least).sum::<f64>() - price * limit as f64
        };
        (0..4000).map(|i| at(1e-9 * 1.01f64.powi(i))).fold(0.0, f64::max)
    }

    #[test]
    fn large_sizes_stay_under_the_limit_near_the_bound_and_never_cost_more() {
        // a divisor of 1, and far more sums than are told apart
        let mut units = units(120, 12, 5, 1_000_003);
        units.iter_mut().flatten().enumerate().for_each(|(i, o)| o.bytes += i as u64 % 977);
        let most: u64 = units.iter().map(|u| u.iter().map(|o| o.bytes).max().unwrap()).sum();
        let mut before = f64::INFINITY;
        for part in 5..=20 {
            let limit = most / 20 * part + 3;
            let Some(found) = allot(&units, limit) else { continue };
            let (bytes, loss) = sum(&units, &found);
            assert!(bytes <= limit && loss <= before, "{part}");
            let bound = bound(&units, limit);
            // one unit's step, and what rounding sizes up takes
            assert!(loss >= bound * (1.0 - 1e-9) && loss <= bound + 100.0 + 0.02 * bound, "{part}: {loss} {bound}");
            before = loss;
        }
        assert!(before < f64::INFINITY);
    }
}
