//! Modules rounded from weights, and the words that each kind of writer makes of their zero points, bit by bit and without
//! the reader's packing.

use super::{Folder, Tensor};
use std::ops::RangeInclusive;

/// How zero points are stored.
#[derive(Clone, Copy, PartialEq)]
pub enum Stored {
    /// z - 1, field by field; z is at least 1.
    V1,
    /// z.
    V2,
    /// z, in planes.
    Planar,
    /// z - 1, the field's bits of it.
    Modulo,
    /// Words of z less ones in every field.
    Borrowed,
    /// 3-bit words of z less the constants in the wrong order.
    Legacy,
    /// z - 1 in 32 bits, shifted into the word without a mask.
    Overflow,
}

/// Numbers that look random.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    /// About normal: twelve evenly spread numbers.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.below(1 << 20) as f64 / f64::from(1 << 20)).sum::<f64>() - 6.0
    }
}

/// One quantized module with groups of 64 rows.
#[derive(Clone)]
pub struct Module {
    pub bits: u32,
    pub k: usize,
    pub n: usize,
    /// `[k, n]`.
    pub codes: Vec<u8>,
    /// `[groups, n]`.
    pub zeros: Vec<u16>,
    pub scales: Vec<f32>,
    /// `[k, n]`, what was rounded.
    pub weights: Vec<f64>,
}

const GROUP: usize = 64;

impl Module {
    /// Weights of a normal distribution rounded to nearest; in every twelfth group all are positive, in another all negative,
    /// so that their zero points lie at the ends of `legal`. Zero points below `low` become `low`.
    pub fn rounded(bits: u32, low: u16, legal: RangeInclusive<u16>, seed: u64) -> Module {
        let (k, n, top) = (512, 96, (1 << bits) - 1);
        let mut random = Random::new(seed);
        let groups = k / GROUP;
        let (mut codes, mut weights) = (vec![0; k * n], vec![0.0; k * n]);
        let (mut zeros, mut scales) = (vec![0; groups * n], vec![0.0; groups * n]);
        for i in 0..groups * n {
            let sign = random.below(12);
            let w: Vec<f64> = (0..GROUP)
                .map(|_| match (sign, random.normal()) {
                    (0, w) => w.abs(),
                    (1, w) => -w.abs(),
                    (_, w) => w,
                })
                .collect();
            let (min, max) = w.iter().fold((0.0f64, 0.0f64), |(min, max), &w| (min.min(w), max.max(w)));
            let scale = ((max - min) / f64::from(top)) as f32;
            let mut zero = ((-min / f64::from(scale)).round() as u16).clamp(low, *legal.end());
            if sign == 1 {
                zero = *legal.end();
            }
            (zeros[i], scales[i]) = (zero, scale);
            for (row, w) in w.into_iter().enumerate() {
                let at = (i / n * GROUP + row) * n + i % n;
                weights[at] = w;
                codes[at] = ((w / f64::from(scale)).round() + f64::from(zero)).clamp(0.0, f64::from(top)) as u8;
            }
        }
        Module { bits, k, n, codes, zeros, scales, weights }
    }

    /// One whose codes lie half a step from every zero point, so that neither v1 nor v2 shows.
    pub fn undecided(bits: u32, seed: u64) -> Module {
        let mut m = Module::rounded(bits, 1, 1..=(1 << bits) - 1, seed);
        let middle = 1 << (bits - 1);
        m.zeros.iter_mut().enumerate().for_each(|(i, z)| *z = middle - 1 + (i % 3) as u16);
        for (at, code) in m.codes.iter_mut().enumerate() {
            let (row, col) = (at / m.n, at % m.n);
            *code = (m.zeros[row / GROUP * m.n + col] as usize - row % 2) as u8;
        }
        // as v1 the mean is half a step below, as v2, whose zeros are read one lower, half a step above
        m
    }

    /// One row of groups with these zero points and nothing else of interest.
    pub fn of_zeros(bits: u32, zeros: &[u16]) -> Module {
        let n = zeros.len();
        Module { bits, k: GROUP, n, codes: vec![0; GROUP * n], zeros: zeros.into(), scales: vec![1.0; n], weights: vec![] }
    }

    /// Makes zero points 0, with the codes of small positive weights.
    pub fn zero_at(&mut self, take: impl Fn(usize) -> bool) {
        for i in (0..self.zeros.len()).filter(|&i| take(i)) {
            self.zeros[i] = 0;
            (0..GROUP).for_each(|row| self.codes[(i / self.n * GROUP + row) * self.n + i % self.n] = (row % 4) as u8);
        }
    }

    /// Gives every row of a group the same code.
    pub fn level(&mut self, i: usize, code: u8) {
        (0..GROUP).for_each(|row| self.codes[(i / self.n * GROUP + row) * self.n + i % self.n] = code);
    }

    pub fn largest_scale(&self) -> f64 {
        self.scales.iter().fold(0.0, |a, &s| a.max(f64::from(s)))
    }

    /// Bits of a zero point that its word in an overflowing file still holds: how many zero points have lost some.
    pub fn lost_to_overflow(&self) -> usize {
        let fields = |row: &[u16]| {
            // where in the stream a zero of 0 stands, its word is ones from there on
            let bits = self.bits as usize;
            let covered = |f: usize| {
                let mine = f * bits..(f + 1) * bits;
                (0..f).any(|g| row[g] == 0 && g * bits / 32 == mine.start / 32)
            };
            (0..row.len()).filter(|&f| covered(f)).count()
        };
        self.zeros.chunks_exact(self.n).map(fields).sum()
    }

    /// `qzeros`.
    pub fn zero_words(&self, stored: Stored) -> Vec<u32> {
        self.zeros.chunks_exact(self.n).flat_map(|row| zero_row(self.bits, row, stored)).collect()
    }

    /// Puts the module's tensors into a folder.
    pub fn put(&self, folder: &mut Folder, name: &str, stored: Stored) {
        let pack = if stored == Stored::Planar { planes } else { stream };
        let columns: Vec<Vec<u32>> = (0..self.n)
            .map(|col| {
                let codes: Vec<u32> = (0..self.k).map(|row| u32::from(self.codes[row * self.n + col])).collect();
                pack(self.bits, &codes)
            })
            .collect();
        let rows = columns[0].len();
        let words: Vec<u32> = (0..rows * self.n).map(|i| columns[i % self.n][i / self.n]).collect();
        let groups = self.k / GROUP;
        let zeros = self.zero_words(stored);
        let g_idx: Vec<u32> = (0..self.k).map(|row| (row / GROUP) as u32).collect();
        folder.put(&format!("{name}.qweight"), Tensor::words(&[rows, self.n], &words));
        folder.put(&format!("{name}.qzeros"), Tensor::words(&[groups, zeros.len() / groups], &zeros));
        folder.put(&format!("{name}.scales"), Tensor::f32(&[groups, self.n], &self.scales));
        folder.put(&format!("{name}.g_idx"), Tensor::words(&[self.k], &g_idx));
    }
}

/// Zero points of `legal`, evenly, and codes about them.
pub fn random(bits: u32, legal: RangeInclusive<u16>, seed: u64) -> Module {
    let mut random = Random::new(seed);
    let (k, n) = (128, 64);
    let count = u64::from(legal.end() - legal.start() + 1);
    let zeros: Vec<u16> = (0..k / GROUP * n).map(|_| legal.start() + random.below(count) as u16).collect();
    let code = |at: usize, random: &mut Random| {
        let zero = i64::from(zeros[at / n / GROUP * n + at % n]);
        (zero + random.below(5) as i64 - 2).clamp(0, (1 << bits) - 1) as u8
    };
    let codes = (0..k * n).map(|at| code(at, &mut random)).collect();
    let scales = (0..zeros.len()).map(|i| 0.01 + i as f32 / 512.0).collect();
    Module { bits, k, n, codes, zeros, scales, weights: vec![] }
}

/// One stream of bits, lowest first, cut into words.
fn stream(bits: u32, fields: &[u32]) -> Vec<u32> {
    let mut words = vec![0u32; (fields.len() * bits as usize).div_ceil(32)];
    for (i, field) in fields.iter().enumerate() {
        for bit in (0..bits).filter(|bit| field >> bit & 1 == 1) {
            let at = i * bits as usize + bit as usize;
            words[at / 32] |= 1 << (at % 32);
        }
    }
    words
}

/// Runs of 32 fields in planes of these widths, low bits first.
fn planes(bits: u32, fields: &[u32]) -> Vec<u32> {
    let widths: &[u32] = [&[][..], &[], &[2], &[2, 1], &[4], &[4, 1], &[4, 2], &[4, 2, 1], &[8]][bits as usize];
    let mut words = vec![];
    for run in fields.chunks_exact(32) {
        let mut shift = 0;
        for &width in widths {
            let plane: Vec<u32> = run.iter().map(|field| field >> shift & ((1 << width) - 1)).collect();
            words.extend(stream(width, &plane));
            shift += width;
        }
    }
    words
}

fn zero_row(bits: u32, row: &[u16], stored: Stored) -> Vec<u32> {
    let z: Vec<u32> = row.iter().map(|&z| u32::from(z)).collect();
    let less = |mask: u32| z.iter().map(|z| z.wrapping_sub(1) & mask).collect::<Vec<u32>>();
    let mask = (1 << bits) - 1;
    match stored {
        Stored::V1 => {
            assert!(z.iter().all(|z| (1..=mask + 1).contains(z)));
            stream(bits, &less(u32::MAX))
        }
        Stored::V2 => stream(bits, &z),
        Stored::Planar => planes(bits, &z),
        Stored::Modulo => stream(bits, &less(mask)),
        Stored::Borrowed => {
            let ones = match bits {
                2 => 0x5555_5555,
                4 => 0x1111_1111,
                _ => 0x0101_0101,
            };
            stream(bits, &z).into_iter().map(|word| word.wrapping_sub(ones)).collect()
        }
        Stored::Legacy => {
            let constants = [0x2492_4924u32, 0x9249_2492, 0x4924_9249];
            stream(3, &z).iter().zip(constants.iter().cycle()).map(|(word, constant)| word.wrapping_sub(*constant)).collect()
        }
        Stored::Overflow if bits == 3 => less(u32::MAX).chunks_exact(32).flat_map(overflowed_run).collect(),
        Stored::Overflow => {
            let per = 32 / bits as usize;
            let word = |fields: &[u32]| fields.iter().enumerate().fold(0, |word, (i, z)| word | z << (bits as usize * i));
            less(u32::MAX).chunks(per).map(word).collect()
        }
    }
}

/// AutoGPTQ's own loop over 32 zero points of 3 bit.
fn overflowed_run(z: &[u32]) -> [u32; 3] {
    let mut words = [0; 3];
    (0..10).for_each(|i| words[0] |= z[i] << (3 * i));
    words[0] |= z[10] << 30;
    words[1] |= z[10] >> 2 & 1;
    (0..10).for_each(|i| words[1] |= z[11 + i] << (3 * i + 1));
    words[1] |= z[21] << 31;
    words[2] |= z[21] >> 1 & 3;
    (0..10).for_each(|i| words[2] |= z[22 + i] << (3 * i + 2));
    words
}
