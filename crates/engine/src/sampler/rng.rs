//! Random numbers that depend on nothing but the seed.

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): a counter with an odd step,
/// mixed. Equally distributed over 2⁶⁴ steps; neighbouring seeds give unrelated streams. Not for secrets.
#[derive(Clone, Debug)]
pub(crate) struct Rng {
    state: u64,
}

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng { state: seed }
    }

    /// One of many streams of a seed; the first is that of [`new`](Self::new).
    pub fn stream(seed: u64, number: u64) -> Rng {
        if number == 0 {
            return Rng::new(seed);
        }
        // mixed twice: neither streams of one seed nor those of neighbouring seeds run into each other
        let mixed = Rng::new(seed).next_u64() ^ Rng::new(number).next_u64().rotate_left(32);
        Rng::new(Rng::new(mixed).next_u64())
    }

    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`, a multiple of 2⁻⁵³.
    pub fn next_unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::Rng;

    #[test]
    fn gives_the_published_sequence() {
        let mut rng = Rng::new(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423, 4_593_380_528_125_082_431];
        assert_eq!(expected.map(|_| rng.next_u64()), expected);
    }

    #[test]
    fn streams_of_a_seed_differ() {
        let first = |seed, number| Rng::stream(seed, number).next_u64();
        assert_eq!(first(5, 0), Rng::new(5).next_u64());
        let mut all: Vec<u64> = (0..50).flat_map(|seed| (0..50).map(move |number| first(seed, number))).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 2500);
    }

    #[test]
    fn units_are_spread_evenly() {
        let mut rng = Rng::new(0);
        let mut bins = [0; 10];
        for _ in 0..100_000 {
            bins[(rng.next_unit() * 10.0) as usize] += 1;
        }
        assert!(bins.iter().all(|n| (9_600..10_400).contains(n)), "{bins:?}");
    }
}
