//! What a folder is, in a line.

use crate::Error;
use billfish_formats::{Checkpoint, GroupSize};
use std::collections::BTreeMap;

/// Size and quantization of a folder, from its headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// `model_type` of its config.
    pub model_type: String,
    /// Parameters, the codes of a quantized module counted as weights.
    pub parameters: u64,
    /// Bytes of all tensors in the files.
    pub bytes: u64,
    /// Widths of the codes, ascending; none in a dense folder.
    pub bits: Vec<u32>,
    /// How the modules are quantized, most weights first, such as `w4g128` or `w4g32:asym:act`.
    pub schemes: Vec<String>,
}

impl Summary {
    /// Reads the headers of a folder.
    ///
    /// # Errors
    /// [`Error::Format`] if a module cannot be described.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let mut schemes: BTreeMap<String, u64> = BTreeMap::new();
        let mut bits = vec![];
        let mut parameters = 0;
        for name in checkpoint.quantized_modules() {
            let r = checkpoint.describe(&name)?;
            let weights = (r.in_features as u64).saturating_mul(r.out_features as u64);
            parameters += weights;
            let group = match r.group_size {
                GroupSize::Channel => "-1".to_string(),
                GroupSize::Rows(rows) => rows.to_string(),
            };
            let (asym, act) = (if r.midpoint { "" } else { ":asym" }, if r.act_order { ":act" } else { "" });
            *schemes.entry(format!("w{}g{group}{asym}{act}", r.bits)).or_default() += weights;
            bits.push(r.bits);
        }
        bits.sort_unstable();
        bits.dedup();
        for tensor in checkpoint.tensor_names().filter(|t| !checkpoint.is_part(t)) {
            parameters += checkpoint.info(tensor).map_or(0, |i| i.shape.iter().map(|&d| d as u64).product::<u64>());
        }
        let mut schemes: Vec<(String, u64)> = schemes.into_iter().collect();
        schemes.sort_by_key(|(_, weights)| std::cmp::Reverse(*weights));
        let model_type = checkpoint.config().get("model_type").and_then(|v| v.as_str()).unwrap_or("unknown").to_string();
        let schemes = schemes.into_iter().map(|(name, _)| name).collect();
        Ok(Self { model_type, parameters, bytes: checkpoint.total_bytes(), bits, schemes })
    }

    /// The line, such as `llama 1.24B w4g128`.
    pub fn line(&self) -> String {
        let scheme = match self.schemes.as_slice() {
            [] => "dense".to_string(),
            [one] => one.clone(),
            [most, rest @ ..] => format!("{most} and {} more", rest.len()),
        };
        format!("{} {} {scheme}", self.model_type, count(self.parameters))
    }
}

/// A number of parameters in millions or billions.
fn count(n: u64) -> String {
    let n = n as f64;
    if n >= 1e9 { format!("{:.2}B", n / 1e9) } else { format!("{:.1}M", n / 1e6) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BUILTIN_NAME, builtin_files};

    #[test]
    fn the_model_inside() {
        let s = Summary::of(&Checkpoint::from_memory(BUILTIN_NAME, builtin_files()).unwrap()).unwrap();
        assert_eq!((s.bits.as_slice(), s.schemes.as_slice()), (&[4][..], &["w4g128".to_string()][..]));
        assert!(s.line().starts_with("llama ") && s.line().ends_with("M w4g128"), "{}", s.line());
        assert!(s.parameters > 5_000_000 && s.bytes > s.parameters / 2);
    }

    #[test]
    fn large_numbers_are_short() {
        assert_eq!([count(1_235_814_400), count(5_900_000)], ["1.24B", "5.9M"]);
    }
}
