//! The choices for a size.

use super::allot::{Offer, allot};
use super::rules::{Ruled, rules};
use super::{Choice, Sensitivity};
use crate::{PredictedBytes, QuantizeError, Recipe, predicted_bytes};
use billfish_formats::{Checkpoint, Dynamic};
use serde_json::Value;

/// What a plan must keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bytes of the files of the weights, the dense ones included.
    Files(u64),
    /// Bits for each weight of the quantized modules, scales and zero points included.
    BitsPerWeight(f64),
}

/// A plan that keeps its budget.
#[derive(Clone, Debug)]
pub struct Fit {
    /// For each unit the number of an option.
    pub chosen: Vec<usize>,
    /// The sum of the expected divergences.
    pub loss: f64,
    /// Bits for each weight of the quantized modules, scales and zero points included.
    pub bits_per_weight: f64,
    /// What the folder will weigh.
    pub predicted: PredictedBytes,
    /// A quantization config with rules for all modules.
    pub rules: Value,
}

impl Sensitivity {
    /// The choices of least expected divergence within a budget. More budget never costs more divergence, but for what the
    /// headers of files take.
    ///
    /// # Errors
    /// [`QuantizeError::Setting`] naming the least that is possible if that is more than the budget.
    pub fn fit(&self, source: &Checkpoint, recipe: &Recipe, budget: Budget) -> Result<Fit, QuantizeError> {
        let of = |u: &super::Unit| u.options.iter().map(|o| Offer { bytes: o.bytes, loss: o.loss }).collect();
        let offers: Vec<Vec<Offer>> = self.units.iter().map(of).collect();
        // as few bytes as there can be, whatever they cost
        let smallest = |u: &Vec<Offer>| (0..u.len()).min_by_key(|&i| u[i].bytes).unwrap_or(0);
        let least = self.with(source, recipe, offers.iter().map(smallest).collect())?;
        let body = |fit: &Fit| offers.iter().zip(&fit.chosen).map(|(u, &i)| u[i].bytes).sum::<u64>();
        let (limit, room) = match budget {
            Budget::Files(bytes) => (Some(bytes), bytes.saturating_sub(least.predicted.total.files - body(&least))),
            Budget::BitsPerWeight(bits) => (None, (bits * self.weights() as f64 / 8.0).max(0.0) as u64),
        };
        if limit.is_some_and(|l| l < least.predicted.total.files) || room < body(&least) {
            let least_size = format!(
                "at least {} bytes of files, {:.4} bits per weight",
                least.predicted.total.files,
                // rounded up, so that the number works
                (least.bits_per_weight * 1e4).ceil() / 1e4
            );
            let (setting, found) = match budget {
                Budget::Files(bytes) => ("max-size", format!("{bytes} bytes")),
                Budget::BitsPerWeight(bits) => ("bits-per-weight", bits.to_string()),
            };
            return Err(QuantizeError::setting(setting, least_size, found, "allow more, or narrower widths and larger groups"));
        }
        let mut room = room;
        while let Some(chosen) = allot(&offers, room) {
            let fit = self.with(source, recipe, chosen)?;
            match limit {
                Some(limit) if fit.predicted.total.files > limit => room = room.saturating_sub(fit.predicted.total.files - limit),
                _ => return Ok(fit),
            }
        }
        Ok(least)
    }

    /// The same settings for all units, if all allow them.
    ///
    /// # Errors
    /// As for what predicts sizes.
    pub fn uniform(&self, source: &Checkpoint, recipe: &Recipe, choice: Choice) -> Result<Option<Fit>, QuantizeError> {
        let place = |u: &super::Unit| u.options.iter().position(|o| o.choice == choice);
        self.units.iter().map(place).collect::<Option<Vec<usize>>>().map(|chosen| self.with(source, recipe, chosen)).transpose()
    }

    fn weights(&self) -> u64 {
        self.units.iter().map(super::Unit::weights).sum()
    }

    fn with(&self, source: &Checkpoint, recipe: &Recipe, chosen: Vec<usize>) -> Result<Fit, QuantizeError> {
        let picked = || self.units.iter().zip(&chosen).map(|(u, &i)| (u, &u.options[i]));
        let ruled: Vec<Ruled<'_>> = picked().flat_map(|(u, o)| u.modules.iter().map(|l| (l, Some(o.choice)))).collect();
        let rules = rules(&ruled, recipe);
        let recipe = Recipe { dynamic: Dynamic::parse("plan", &rules)?, ..recipe.clone() };
        let predicted = predicted_bytes(source, &recipe)?;
        let bytes: u64 = picked().map(|(_, o)| o.bytes).sum();
        let loss = picked().map(|(_, o)| o.loss).sum();
        Ok(Fit { loss, bits_per_weight: bytes as f64 * 8.0 / self.weights().max(1) as f64, predicted, rules, chosen })
    }
}
