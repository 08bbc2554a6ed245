//! The cuts: which rows and columns of each tensor a rank gets.

use super::{GptqTensors, ShardError};
use crate::GroupSize;
use billfish_tensor::{Packing, ScaleValues};
use std::ops::Range;

/// One rank of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rank {
    pub(super) rank: usize,
    pub(super) ranks: usize,
}

impl Rank {
    /// Rank `rank` of `ranks`.
    ///
    /// # Errors
    /// [`ShardError::Rank`] unless `rank < ranks`.
    pub fn new(rank: usize, ranks: usize) -> Result<Self, ShardError> {
        if rank < ranks { Ok(Self { rank, ranks }) } else { Err(ShardError::Rank { rank, ranks }) }
    }

    /// The part of a module of keys or values with `heads` heads that this rank has: with more ranks than heads,
    /// neighbouring ranks have the same head.
    ///
    /// # Errors
    /// [`ShardError::Uneven`] when neither number divides the other.
    pub fn of_kv_heads(self, heads: usize) -> Result<Self, ShardError> {
        if heads > 0 && heads.is_multiple_of(self.ranks) {
            return Ok(self);
        }
        if heads == 0 || !self.ranks.is_multiple_of(heads) {
            return Err(ShardError::Uneven { side: "heads of keys and values", size: heads, ranks: self.ranks });
        }
        Ok(Self { rank: self.rank / (self.ranks / heads), ranks: heads })
    }

    fn part(self, side: &'static str, size: usize) -> Result<Range<usize>, ShardError> {
        if !size.is_multiple_of(self.ranks) {
            return Err(ShardError::Uneven { side, size, ranks: self.ranks });
        }
        let part = size / self.ranks;
        Ok(self.rank * part..(self.rank + 1) * part)
    }
}

/// Where cuts may fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cuts {
    /// Between words and between groups only, on both sides, as vLLM demands of the method `gptq`.
    Aligned,
    /// Anywhere that has a meaning: codes are packed anew where a cut falls inside a word. Groups in order must still be
    /// whole on every rank.
    InsideWords,
}

impl GptqTensors {
    /// The part of `rank` when outputs are split.
    ///
    /// # Errors
    /// [`ShardError`] when the tensors do not fit together or the cut falls where `cuts` does not let it.
    pub fn column_parallel(&self, rank: Rank, cuts: Cuts) -> Result<GptqTensors, ShardError> {
        self.check()?;
        let cols = rank.part("columns", self.out_features)?;
        if cuts == Cuts::Aligned {
            self.whole_groups(self.in_features, "write the checkpoint with groups that divide the rows, or cut inside words")?;
            self.whole_words(self.in_features, cols.len())?;
        }
        let n = self.out_features;
        let take = |row: &[u32]| row[cols.clone()].to_vec();
        Ok(GptqTensors {
            out_features: cols.len(),
            qweight: self.qweight.chunks_exact(n).flat_map(take).collect(),
            qzeros: self.qzeros.chunks_exact(self.zero_words()).flat_map(|row| slice_stream(row, self.bits, cols.clone())).collect(),
            scales: pick(&self.scales, (0..self.groups()).flat_map(|g| cols.clone().map(move |c| g * n + c))),
            bias: self.bias.as_ref().map(|bias| pick(bias, cols.clone())),
            g_idx: self.g_idx.clone(),
            ..*self
        })
    }

    /// The part of `rank` when inputs are split. The results of all ranks are to be added; only rank 0 has the bias.
    ///
    /// # Errors
    /// As [`GptqTensors::column_parallel`].
    pub fn row_parallel(&self, rank: Rank, cuts: Cuts) -> Result<GptqTensors, ShardError> {
        self.check()?;
        let rows = rank.part("rows", self.in_features)?;
        if cuts == Cuts::Aligned || !self.act_order {
            self.whole_groups(rows.len(), "use fewer ranks, or smaller groups")?;
        }
        if cuts == Cuts::Aligned {
            self.whole_words(rows.len(), self.out_features)?;
        }
        let n = self.out_features;
        let groups = match self.group_size {
            GroupSize::Rows(size) if !self.act_order => rows.start / size..rows.end / size,
            _ => 0..self.groups(),
        };
        Ok(GptqTensors {
            in_features: rows.len(),
            qweight: self.code_rows(rows.clone()),
            qzeros: self.qzeros[groups.start * self.zero_words()..groups.end * self.zero_words()].to_vec(),
            scales: pick(&self.scales, groups.start * n..groups.end * n),
            g_idx: self.g_idx.as_ref().map(|g_idx| g_idx[rows].to_vec()),
            bias: self.bias.as_ref().filter(|_| rank.rank == 0).cloned(),
            first_group: self.first_group.saturating_add(groups.start as u32),
            ..*self
        })
    }

    fn whole_groups(&self, rows: usize, remedy: &'static str) -> Result<(), ShardError> {
        match self.group_size {
            GroupSize::Rows(group_size) if !rows.is_multiple_of(group_size) => Err(ShardError::InputGroups { rows, group_size, remedy }),
            _ => Ok(()),
        }
    }

    fn whole_words(&self, rows: usize, columns: usize) -> Result<(), ShardError> {
        let bits = self.bits;
        // 3-bit codes fill words only by the 32; other widths divide a word
        let multiple = if 32 % bits == 0 { 32 / bits as usize } else { 32 };
        if !columns.is_multiple_of(multiple) {
            return Err(ShardError::OutputWords { columns, bits, multiple });
        }
        if rows.is_multiple_of(multiple) { Ok(()) } else { Err(ShardError::InputWords { rows, bits, multiple }) }
    }

    /// The words of some rows of codes: copied where the cuts fall between words, else packed anew.
    fn code_rows(&self, rows: Range<usize>) -> Vec<u32> {
        let (n, bits) = (self.out_features, self.bits as usize);
        if (rows.start * bits).is_multiple_of(32) && (rows.end * bits).is_multiple_of(32) {
            return self.qweight[rows.start * bits / 32 * n..rows.end * bits / 32 * n].to_vec();
        }
        let mut out = vec![0; Packing::Continuous.words(self.bits, rows.len()) * n];
        for col in 0..n {
            let stream: Vec<u32> = self.qweight[col..].iter().step_by(n).copied().collect();
            for (row, word) in slice_stream(&stream, self.bits, rows.clone()).into_iter().enumerate() {
                out[row * n + col] = word;
            }
        }
        out
    }
}

/// Values `range` of a stream of `bits`-bit values in 32-bit words, as a stream of its own.
fn slice_stream(words: &[u32], bits: u32, range: Range<usize>) -> Vec<u32> {
    let mut out = vec![0u32; Packing::Continuous.words(bits, range.len())];
    let start = range.start * bits as usize;
    let (first, shift) = (start / 32, (start % 32) as u32);
    for (i, o) in out.iter_mut().enumerate() {
        let low = words.get(first + i).map_or(0, |&w| u64::from(w));
        let high = words.get(first + i + 1).map_or(0, |&w| u64::from(w));
        *o = ((low | high << 32) >> shift) as u32;
    }
    // what follows the last value belongs to another rank
    let used = (range.len() * bits as usize % 32) as u32;
    if let Some(last) = out.last_mut().filter(|_| used > 0) {
        *last &= (1 << used) - 1;
    }
    out
}

/// The values at `places`, in their stored type.
fn pick(values: &ScaleValues, places: impl Iterator<Item = usize>) -> ScaleValues {
    match values {
        ScaleValues::F16(v) => ScaleValues::F16(places.map(|i| v[i]).collect()),
        ScaleValues::BF16(v) => ScaleValues::BF16(places.map(|i| v[i]).collect()),
        ScaleValues::F32(v) => ScaleValues::F32(places.map(|i| v[i]).collect()),
    }
}
