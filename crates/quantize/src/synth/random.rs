//! Random numbers for synthetic weights: fast, and the same on every machine for ever.

/// SplitMix64 (Steele, Lea and Flood, 2014): a counter and a mixing function. Eight bytes a step, a few instructions each;
/// every seed is good, and no state has to be carried from one tensor to the next.
pub(crate) struct SplitMix64(u64);

/// What the counter grows by.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl SplitMix64 {
    /// The generator of `name` (a tensor, or something that tensors share) in the model of `seed`. Contents hang on names,
    /// not on the order of writing: cutting a model into shards changes no tensor.
    pub fn named(seed: u64, name: &str) -> Self {
        // FNV-1a, mixed with a seed that has been mixed itself, so that neighbouring seeds have nothing in common
        let name = name.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        Self(Self(Self(seed).next() ^ name).next())
    }

    /// The generator after so many steps.
    pub fn after(&self, steps: u64) -> Self {
        Self(self.0.wrapping_add(steps.wrapping_mul(STEP)))
    }

    /// The next 64 bits.
    #[inline]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, all as likely as makes no difference here.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// Random bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        let (whole, rest) = out.as_chunks_mut();
        whole.iter_mut().for_each(|bytes| *bytes = self.next().to_le_bytes());
        let last = self.next().to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }

    /// Random entries of a table of 256 16-bit numbers, little endian.
    pub fn fill_from(&mut self, table: &[[u8; 2]; 256], out: &mut [u8]) {
        let (elements, _) = out.as_chunks_mut::<2>();
        for eight in elements.chunks_mut(8) {
            for (element, index) in eight.iter_mut().zip(self.next().to_le_bytes()) {
                *element = table[usize::from(index)];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first outputs for seed 1234567, as published with other implementations of the generator.
    #[test]
    fn published_outputs() {
        let mut random = SplitMix64(1_234_567);
        let first: [u64; 3] = std::array::from_fn(|_| random.next());
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn steps_can_be_skipped() {
        let mut walked = SplitMix64(7);
        for _ in 0..1000 {
            walked.next();
        }
        assert_eq!(SplitMix64(7).after(1000).next(), walked.next());
    }

    #[test]
    fn names_and_seeds_give_streams_of_their_own() {
        let first = |seed, name| SplitMix64::named(seed, name).next();
        assert_eq!(first(1, "a"), first(1, "a"));
        assert_ne!(first(1, "a"), first(1, "b"));
        assert_ne!(first(1, "a"), first(2, "a"));
    }

    #[test]
    fn any_length_is_filled() {
        for len in 0..20 {
            let mut out = vec![0; len];
            SplitMix64::named(1, "x").fill(&mut out);
            assert!(len < 8 || out.iter().filter(|&&b| b == 0).count() < 4, "{out:?}");
        }
    }
}
