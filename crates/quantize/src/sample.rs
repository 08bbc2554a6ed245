//! Which of many sequences a calibration takes.

use crate::synth::SplitMix64;

/// The places of `wanted` out of `count` sequences in ascending order, or of all if there are no more: evenly spread from the
/// first on, or those that the random numbers of `seed` choose.
pub fn sample_indices(count: usize, wanted: usize, seed: Option<u64>) -> Vec<usize> {
    let wanted = wanted.min(count);
    let Some(seed) = seed else {
        return (0..wanted).map(|i| (i as u128 * count as u128 / wanted as u128) as usize).collect();
    };
    let mut random = SplitMix64::named(seed, "calibration");
    let mut all: Vec<usize> = (0..count).collect();
    for at in 0..wanted {
        let other = at + random.below((count - at) as u64) as usize;
        all.swap(at, other);
    }
    all.truncate(wanted);
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::sample_indices;

    #[test]
    fn without_a_seed_evenly_spread() {
        assert_eq!(sample_indices(10, 4, None), [0, 2, 5, 7]);
        assert_eq!(sample_indices(3, 9, None), [0, 1, 2]);
        assert_eq!(sample_indices(0, 9, None), [0usize; 0]);
    }

    #[test]
    fn a_seed_takes_each_as_often() {
        let mut times = [0; 12];
        for seed in 0..3000 {
            let taken = sample_indices(12, 4, Some(seed));
            assert!(taken.len() == 4 && taken.is_sorted_by(|a, b| a < b) && taken[3] < 12, "{taken:?}");
            taken.into_iter().for_each(|i| times[i] += 1);
        }
        // 1000 expected of each, with a deviation of 26
        assert!(times.iter().all(|t| (850..1150).contains(t)), "{times:?}");
        assert_eq!(sample_indices(12, 12, Some(5)), (0..12).collect::<Vec<_>>());
    }
}
