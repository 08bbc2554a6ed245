//! Bytes as a series of decisions.

/// The bytes of an input that are not used yet. When they are used up, every decision is the first choice.
pub(super) struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }

    pub fn flag(&mut self) -> bool {
        self.byte() % 2 == 1
    }

    /// A number below `count`.
    pub fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// `count` bytes: one byte over and over, noise, or the input's own, from the start again when they end.
    pub fn fill(&mut self, count: usize) -> Vec<u8> {
        match self.below(4) {
            0 => vec![self.byte(); count],
            1 | 2 => {
                let mut noise = Noise::new(u16::from_le_bytes([self.byte(), self.byte()]));
                (0..count).map(|_| noise.byte()).collect()
            }
            _ => {
                let own = &self.rest[..self.rest.len().min(count)];
                self.rest = &self.rest[own.len()..];
                if own.is_empty() { vec![0; count] } else { own.iter().copied().cycle().take(count).collect() }
            }
        }
    }
}

/// Bytes without a pattern (SplitMix64).
pub(super) struct Noise(u64);

impl Noise {
    pub fn new(seed: u16) -> Self {
        Self(seed.into())
    }

    pub fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 56) as u8
    }
}
