//! The tensors of one GPTQ module, as a file holds them.

use super::ShardError;
use crate::GroupSize;
use billfish_tensor::{Packing, ScaleValues};

/// The tensors of one GPTQ module `[K, N]`, or of one rank's part of it. All are row-major.
#[derive(Clone, Debug)]
pub struct GptqTensors {
    /// Width of a code: 2, 3, 4 or 8.
    pub bits: u32,
    /// Rows of a group.
    pub group_size: GroupSize,
    /// Whether `g_idx` says which group a row belongs to; otherwise its position does.
    pub act_order: bool,
    /// K: rows.
    pub in_features: usize,
    /// N: columns.
    pub out_features: usize,
    /// Codes, packed down the rows: `[⌈K · bits / 32⌉, N]`.
    pub qweight: Vec<u32>,
    /// Zero points as stored, packed along the columns: `[groups, ⌈N · bits / 32⌉]`.
    pub qzeros: Vec<u32>,
    /// Scales, `[groups, N]`.
    pub scales: ScaleValues,
    /// Group of each row, `[K]`.
    pub g_idx: Option<Vec<u32>>,
    /// Bias, `[N]`.
    pub bias: Option<ScaleValues>,
    /// Id of the group in row 0 of `scales`. 0 in a whole module; more only in a part whose groups are in order, because
    /// `g_idx` keeps the ids of the whole.
    pub first_group: u32,
}

impl GptqTensors {
    /// Rows of `scales` and `qzeros`.
    pub fn groups(&self) -> usize {
        self.scales.len() / self.out_features.max(1)
    }

    /// Row of `scales` and `qzeros` that input row `k` uses.
    ///
    /// # Panics
    /// If there is no row `k`, or the tensors do not pass [`GptqTensors::check`].
    pub fn group_of(&self, k: usize) -> usize {
        match (&self.g_idx, self.group_size) {
            (Some(g_idx), _) if self.act_order => (g_idx[k] - self.first_group) as usize,
            (_, GroupSize::Rows(rows)) => k / rows,
            (_, GroupSize::Channel) => 0,
        }
    }

    /// Words in a row of `qzeros`.
    pub(super) fn zero_words(&self) -> usize {
        Packing::Continuous.words(self.bits, self.out_features)
    }

    /// Checks that everything fits together, so that slicing cannot go outside.
    ///
    /// # Errors
    /// [`ShardError::Tensors`], or [`ShardError::Order`] when `act_order` is false and `g_idx` reorders rows.
    pub fn check(&self) -> Result<(), ShardError> {
        let (k, n) = (self.in_features, self.out_features);
        let is = |part, good: bool, expected: String, found: String| {
            if good { Ok(()) } else { Err(ShardError::Tensors { part, expected, found }) }
        };
        let length = |part, expected: usize, found: usize| is(part, expected == found, format!("{expected} elements"), found.to_string());
        is("bits", matches!(self.bits, 2 | 3 | 4 | 8), "2, 3, 4 or 8".into(), self.bits.to_string())?;
        let most = u32::MAX as usize;
        let sizes = "K and N from 1 to 2^32 - 1".into();
        is("shape", (1..=most).contains(&k) && (1..=most).contains(&n), sizes, format!("[{k}, {n}]"))?;
        is("group_size", self.group_size != GroupSize::Rows(0), "-1 or at least 1".into(), self.group_size.to_string())?;
        let words = Packing::Continuous.words(self.bits, k);
        length("qweight", words.saturating_mul(n), self.qweight.len())?;
        let groups = self.groups();
        let by_position = k.div_ceil(self.group_size.rows(k));
        let enough = groups > 0 && groups.checked_mul(n) == Some(self.scales.len()) && (self.act_order || groups == by_position);
        let count = if self.act_order { "at least 1".into() } else { by_position.to_string() };
        is("scales", enough, format!("{count} rows of {n}"), format!("{} elements", self.scales.len()))?;
        length("qzeros", groups.saturating_mul(self.zero_words()), self.qzeros.len())?;
        if let Some(bias) = &self.bias {
            length("bias", n, bias.len())?;
        }
        self.check_order(groups)
    }

    fn check_order(&self, groups: usize) -> Result<(), ShardError> {
        let Some(g_idx) = &self.g_idx else {
            let (expected, found) = ("a group for each row (act-order)".into(), "none".into());
            return if self.act_order { Err(ShardError::Tensors { part: "g_idx", expected, found }) } else { Ok(()) };
        };
        if g_idx.len() != self.in_features {
            let expected = format!("{} elements", self.in_features);
            return Err(ShardError::Tensors { part: "g_idx", expected, found: g_idx.len().to_string() });
        }
        for (row, &found) in g_idx.iter().enumerate() {
            let place = found.checked_sub(self.first_group).map(|g| g as usize);
            if place.is_none_or(|g| g >= groups) {
                let expected = format!("groups from {} on, {groups} of them", self.first_group);
                return Err(ShardError::Tensors { part: "g_idx", expected, found: format!("{found} for row {row}") });
            }
            let by_position = self.group_size;
            if !self.act_order && place != Some(row / by_position.rows(self.in_features)) {
                let expected = self.first_group.saturating_add((row / by_position.rows(self.in_features)) as u32);
                return Err(ShardError::Order { row, expected, found });
            }
        }
        Ok(())
    }
}
