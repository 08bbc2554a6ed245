//! What a folder that does not exist yet will need when it runs.

use crate::Error;
use crate::bench::Prober;
use billfish_formats::Checkpoint;
use billfish_kernels::{Backend, PackedDense, PackedMatrix};
use billfish_models::{DecoderConfig, Linear};
use billfish_quantize::gptq::Settings;
use billfish_quantize::{PredictedBytes, QuantizeError};
use billfish_tensor::{Codes, Groups, QuantMatrix, ScaleValues, Zeros};
use half::f16;
use std::collections::BTreeMap;

/// Memory and speed of a folder that does not exist yet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// Bytes of all weights as they are packed to run, the table of tokens included.
    pub weights: u64,
    /// Bytes of keys and values that each token of a context adds, stored in 16 bits.
    pub kv_per_token: u64,
    /// Bytes of weights that a token reads, experts as if all were chosen as often.
    pub read_per_token: u64,
    /// Bytes that this machine reads in a second.
    pub bytes_per_second: f64,
    /// Tokens per second at that rate with an empty context: what the machine allows, not what a kernel reaches.
    pub tokens_per_second: f64,
}

/// Columns of a panel: what is padded to them is memory too.
const PANEL: usize = 64;
/// The table that tokens become rows of.
const EMBEDDING: &str = "model.embed_tokens";

/// The forecast for the dense folder `source`, quantized as `predicted` says, on this machine.
///
/// # Errors
/// [`Error`] if the folder is none of a known model.
pub fn forecast(source: &Checkpoint, predicted: &PredictedBytes, backend: &Backend) -> Result<Forecast, Error> {
    let config = DecoderConfig::from_json(&format!("{}/config.json", source.name()), source.config())?;
    let quantized: BTreeMap<&str, &Settings> = predicted.modules.iter().map(|(l, s, _)| (l.name.as_str(), s)).collect();
    let (mut weights, mut read) = (0, 0.0);
    for l in config.linears(source) {
        let bytes = match quantized.get(l.name.as_str()) {
            Some(settings) => packed_bytes(&l, settings)?,
            None => {
                let Some(info) = source.info(&format!("{}.weight", l.name)) else { continue };
                if l.name == EMBEDDING && !config.tie_word_embeddings {
                    (l.in_features * info.dtype.size()) as u64 * l.out_features as u64
                } else {
                    PackedDense::expected_bytes(info.dtype, (l.in_features, l.out_features), backend.isa().dense_layout())? as u64
                }
            }
        };
        // the copy of an embedding that a tied model carries is not loaded
        if l.name == "lm_head" && config.tie_word_embeddings && !quantized.contains_key("lm_head") {
            continue;
        }
        weights += bytes;
        let share = match &config.moe {
            Some(moe) if l.name.contains(".experts.") => moe.routing.top_k as f64 / moe.routing.experts as f64,
            _ if l.name == EMBEDDING && !config.tie_word_embeddings => 0.0,
            _ => 1.0,
        };
        read += bytes as f64 * share;
    }
    let kv = config.layers * config.kv_heads * (config.head_dim + config.head_dim.next_multiple_of(16)) * 2;
    let bytes_per_second = Prober::for_working_set(read as usize).read(backend);
    Ok(Forecast {
        weights,
        kv_per_token: kv as u64,
        read_per_token: read as u64,
        bytes_per_second,
        tokens_per_second: bytes_per_second / read.max(1.0),
    })
}

/// Bytes of a quantized module in the layout of the kernels: as many panels as its columns need, one of which is packed to
/// see what it takes.
fn packed_bytes(l: &Linear, s: &Settings) -> Result<u64, Error> {
    let (k, n) = (l.in_features, PANEL);
    let group = s.group_size.unwrap_or(k).max(1);
    let groups = k.div_ceil(group);
    let zeros = if s.grid.sym { Zeros::Midpoint } else { Zeros::PerGroup(vec![1; groups * n]) };
    let scales = ScaleValues::F16(vec![f16::ONE; groups * n]);
    let codes = Codes::Bytes(vec![0; k * n]);
    let wrong = |found: String| {
        Error::Measure(QuantizeError::Setting {
            setting: l.name.clone(),
            expected: "a module that can be packed".into(),
            found,
            remedy: "choose another width or group size".into(),
        })
    };
    let matrix = QuantMatrix::new(k, n, s.grid.bits, codes, scales, zeros, Groups::Contiguous { size: group }, None);
    let packed = PackedMatrix::new(&matrix.map_err(|e| wrong(e.to_string()))?)?;
    Ok((packed.bytes() * l.out_features.div_ceil(n)) as u64)
}
