//! Random matrices for the tests.
#![allow(dead_code)] // each test binary uses a part

use billfish_tensor::{Codes, Groups, Packing, QuantMatrix, ScaleValues, Zeros};
use half::{bf16, f16};

/// A small generator (SplitMix64), so that every failure can be repeated from its seed.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32 * 2.0 - 1.0
    }
    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Order {
    Plain,
    /// Rows of equal groups, shuffled.
    Shuffled,
    /// Any group for any row: unequal and empty groups.
    Wild,
}

#[derive(Clone, Debug)]
pub struct Spec {
    pub k: usize,
    pub n: usize,
    pub bits: u32,
    /// 0 means one group.
    pub group: usize,
    pub zeros: bool,
    pub order: Order,
    /// 0 f16, 1 bf16, 2 f32
    pub scales: usize,
    pub bias: bool,
    pub seed: u64,
}

pub fn matrix(s: &Spec) -> QuantMatrix {
    let mut rng = Rng(s.seed);
    let size = if s.group == 0 { s.k } else { s.group };
    let count = s.k.div_ceil(size);
    let groups = match s.order {
        Order::Plain => Groups::Contiguous { size },
        Order::Shuffled => {
            let mut g_idx: Vec<u32> = (0..s.k).map(|k| (k / size) as u32).collect();
            for i in (1..s.k).rev() {
                g_idx.swap(i, rng.below(i + 1));
            }
            Groups::Index { g_idx, count }
        }
        Order::Wild => Groups::Index { g_idx: (0..s.k).map(|_| rng.below(count) as u32).collect(), count },
    };
    let levels = 1usize << s.bits;
    let codes: Vec<u8> = (0..s.k * s.n).map(|_| rng.below(levels) as u8).collect();
    let packing = if matches!(s.bits, 5..=7) { Packing::Planar } else { Packing::Continuous };
    let values: Vec<f32> = (0..count * s.n).map(|_| rng.unit() * 0.1).collect(); // negative scales too
    let scales = match s.scales {
        0 => ScaleValues::F16(values.iter().map(|&v| f16::from_f32(v)).collect()),
        1 => ScaleValues::BF16(values.iter().map(|&v| bf16::from_f32(v)).collect()),
        _ => ScaleValues::F32(values),
    };
    let zeros = if s.zeros {
        // the ends of the range often: 0 and 2^bits
        Zeros::PerGroup((0..count * s.n).map(|_| [0, levels, rng.below(levels + 1)][rng.below(3)] as u16).collect())
    } else {
        Zeros::Midpoint
    };
    let bias = s.bias.then(|| rng.floats(s.n));
    QuantMatrix::new(s.k, s.n, s.bits, Codes::pack(&codes, s.n, s.bits, packing), scales, zeros, groups, bias).unwrap()
}

/// Activations with outliers, a zero row part and mixed magnitudes.
pub fn activations(rng: &mut Rng, m: usize, k: usize) -> Vec<f32> {
    (0..m * k)
        .map(|i| match rng.below(40) {
            0 => rng.unit() * 50.0,
            1 => 0.0,
            _ => rng.unit() * if (i / 64) % 3 == 0 { 1e-3 } else { 1.0 },
        })
        .collect()
}
