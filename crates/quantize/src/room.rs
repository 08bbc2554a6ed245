//! What fits into the memory that a quantization may take, and what it takes at least.

use crate::hidden::BATCH;
use crate::job::Job;
use crate::pipeline::{HEAD, OUTPUTS};
use crate::{QuantizeError, Sequential};
use billfish_models::{DecoderConfig, Linear, replaceable};

/// Room for what grows with the calibration text and with the number of experts.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    /// Whether the rows between two layers stay in memory.
    pub held: bool,
    /// Bytes for the Hessians of a step beside the one that is always there.
    pub hessians: u64,
}

/// Bytes of a Hessian of this many inputs.
pub(crate) fn hessian(inputs: usize) -> u64 {
    (inputs as u64).saturating_mul(inputs as u64).saturating_mul(8)
}

impl Room {
    /// Shares out the memory of a job.
    ///
    /// # Errors
    /// [`QuantizeError::Setting`] if it is less than [`least_memory`].
    pub fn of(job: &Job<'_>, config: &DecoderConfig) -> Result<Self, QuantizeError> {
        let Some(memory) = job.memory else { return Ok(Self { held: true, hessians: u64::MAX }) };
        let least = least(job, config)?;
        let Some(left) = memory.checked_sub(least) else {
            let expected = format!("{:.3} GB or more", (least as f64 / 1e6).ceil() / 1e3);
            let remedy = "allow more, or calibrate with shorter sequences";
            return Err(QuantizeError::setting("memory", expected, format!("{:.3} GB", memory as f64 / 1e9), remedy));
        };
        let rows = 4 * config.hidden_size as u64 * job.samples.iter().map(|s| s.len() as u64).sum::<u64>();
        let held = rows <= left / 2;
        Ok(Self { held, hessians: left - if held { rows } else { 0 } })
    }

    /// How many of the next groups, of these numbers of inputs, have Hessians at the same time: one or more.
    pub fn groups(&self, inputs: impl Iterator<Item = usize>) -> usize {
        let mut sum = 0u64;
        let fits = |(i, k): &(usize, usize)| {
            sum = sum.saturating_add(if *i == 0 { 0 } else { hessian(*k) });
            sum <= self.hessians
        };
        inputs.enumerate().take_while(fits).count()
    }
}

/// Bytes of memory that a job takes at least, as an estimate: a layer, the buffers of a pass over some sequences, and what
/// its largest module needs while it is quantized. No tensor is read.
///
/// # Errors
/// [`QuantizeError`] if the folder or the recipe cannot be.
pub fn least_memory(job: &Job<'_>) -> Result<u64, QuantizeError> {
    let config = DecoderConfig::from_json(&format!("{}/config.json", job.source.name()), job.source.config())?;
    least(job, &config)
}

fn least(job: &Job<'_>, config: &DecoderConfig) -> Result<u64, QuantizeError> {
    let (mut layer, mut solving) = (0, 0);
    for index in 0..config.layers {
        let mut bytes = 0;
        for l in replaceable(job.source, config, index).into_iter().flatten().flatten() {
            let weights = l.in_features as u64 * l.out_features as u64;
            // packed, and as the file will have it; or dense
            match job.recipe.settings(&l.name)? {
                Some(s) => {
                    let stored = weights * u64::from(s.grid.bits) / 8 + weights / 8;
                    // where modules see the dense network, it runs as it is; and where factors are found before it is quantized
                    let whole = job.recipe.sequential == Sequential::Dense || job.recipe.method.scales();
                    let runs = if whole { 4 * weights } else { stored };
                    bytes += stored + runs;
                    solving = solving.max(solve(&l));
                }
                None => bytes += 4 * weights,
            }
        }
        layer = layer.max(bytes);
    }
    if job.recipe.lm_head {
        let head = Linear { name: HEAD.into(), in_features: config.hidden_size, out_features: config.vocab_size, bias: false };
        solving = solving.max(solve(&head));
    }
    let longest = job.samples.iter().map(Vec::len).max().unwrap_or(0);
    let all: usize = job.samples.iter().map(Vec::len).sum();
    let tokens = all.min(BATCH.max(longest)) as u64;
    Ok(layer + solving + tokens * token(config))
}

/// What a module takes while it is quantized: three matrices of the size of its Hessian (the sum, the factor, the damped one),
/// the weights as floats, the weights in doubles four times for the outputs that are at work, and the codes.
fn solve(l: &Linear) -> u64 {
    let (k, n) = (l.in_features as u64, l.out_features as u64);
    let at_work = n.min(OUTPUTS as u64);
    // rows are made doubles some at a time, and packed
    let summing = 2 * 8 * 2048 * k;
    3 * hessian(l.in_features) + (8 * k * n + 4 * 8 * k * at_work + 5 * k * n).max(summing)
}

/// Bytes of the buffers of a pass for one token.
fn token(c: &DecoderConfig) -> u64 {
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let routed = c.moe.as_ref().map_or(0, |m| (m.routing.top_k + m.shared_width.map_or(0, |_| 1)) * (3 * m.width + c.hidden_size));
    let shared = c.moe.as_ref().and_then(|m| m.shared_width).unwrap_or(0);
    let widest = c.intermediate_size.max(shared);
    // the rows themselves twice, norms and outputs, queries, keys and values twice, gate and up twice; and integers of them
    4 * (6 * c.hidden_size + 3 * q + 4 * kv + 5 * widest + 2 * routed) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_share_what_is_left() {
        let groups = |hessians, sizes: &[usize]| Room { held: false, hessians }.groups(sizes.iter().copied());
        // the first is always there
        assert_eq!(groups(0, &[1000, 10, 10]), 1);
        assert_eq!(groups(800, &[1000, 10, 10]), 2);
        assert_eq!(groups(1599, &[1000, 10, 10]), 2);
        assert_eq!(groups(1600, &[1000, 10, 10]), 3);
        assert_eq!(groups(u64::MAX, &[usize::MAX, usize::MAX, 1]), 3);
    }
}
