//! What the beginning of a sequence is called, so that a later prompt finds its keys and values.
//!
//! A block of sixteen tokens is called by a hash over its tokens and over what the block before it is called; the first by
//! one over all else that the keys and values depend on. Equal names mean equal sequences as far as anybody can make
//! SHA-256 collide, and the tokens of a block are compared as well.

use crate::blocks::Name;
use billfish_models::BLOCK;
use sha2::{Digest as _, Sha256};

/// A hash.
pub(crate) type Digest = [u8; 32];

/// The names of the full blocks of one sequence.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    root: Digest,
    digests: Vec<Digest>,
}

impl Chain {
    /// The chain of a sequence whose keys are rotated by `frequencies`, seen by those who know the salt.
    pub fn new(salt: Option<&str>, frequencies: &[f32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"billfish prefix");
        hash.update((frequencies.len() as u64).to_le_bytes());
        frequencies.iter().for_each(|f| hash.update(f.to_bits().to_le_bytes()));
        // no salt is another one than an empty one
        if let Some(salt) = salt {
            hash.update(b"salt");
            hash.update(salt);
        }
        Chain { root: hash.finalize().into(), digests: vec![] }
    }

    /// The name of full block `index` of `tokens`, which must begin as they did before.
    pub fn name(&mut self, tokens: &[u32], index: usize) -> Name {
        let block = |i: usize| -> [u32; BLOCK] { std::array::from_fn(|k| tokens[i * BLOCK + k]) };
        while self.digests.len() <= index {
            let parent = self.digests.last().unwrap_or(&self.root);
            let mut hash = Sha256::new();
            hash.update(parent);
            block(self.digests.len()).iter().for_each(|token| hash.update(token.to_le_bytes()));
            self.digests.push(hash.finalize().into());
        }
        Name { digest: self.digests[index], tokens: block(index) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_all_that_a_block_depends_on() {
        let tokens: Vec<u32> = (0..64).collect();
        let name = |salt: Option<&str>, frequencies: &[f32], tokens: &[u32], i: usize| Chain::new(salt, frequencies).name(tokens, i);
        let base = name(None, &[1.0, 0.5], &tokens, 2);
        assert_eq!(base.tokens[..], tokens[32..48]);
        let mut chain = Chain::new(None, &[1.0, 0.5]);
        assert_eq!((chain.name(&tokens, 0).tokens[15], chain.name(&tokens, 2), chain.name(&tokens, 2)), (15, base, base));
        let mut earlier = tokens.clone();
        earlier[3] = 99;
        let others = [
            name(Some(""), &[1.0, 0.5], &tokens, 2),
            name(Some("a"), &[1.0, 0.5], &tokens, 2),
            name(None, &[1.0, 0.25], &tokens, 2),
            name(None, &[1.0], &tokens, 2),
            name(None, &[1.0, 0.5], &earlier, 2),
            name(None, &[1.0, 0.5], &tokens, 1),
        ];
        for (i, a) in others.iter().enumerate() {
            assert_ne!(a.digest, base.digest, "{i}");
            assert!(others[..i].iter().all(|b| b.digest != a.digest), "{i}");
        }
        assert_eq!(name(None, &[1.0, 0.5], &tokens[..48], 2), base, "what follows says nothing");
    }
}
