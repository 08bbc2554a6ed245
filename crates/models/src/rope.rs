//! Rotary position embedding: frequencies by scaling rule, angles by position.
//!
//! Formulas are those of transformers 5.23 (`modeling_rope_utils`); frequencies and angles are rounded to f32 where it
//! rounds them, because an angle of some thousand radians keeps only three digits of its sine otherwise.

use crate::ModelError;
use crate::architecture::{Architecture, Pairing};
use crate::keys::Keys;
use serde_json::Value;
use std::f64::consts::{PI, TAU};

/// How frequencies are scaled.
#[derive(Clone, Debug, PartialEq)]
enum Scaling {
    Default,
    /// Frequencies divided by the factor.
    Linear {
        factor: f64,
    },
    /// The base grows with the length of the sequence once it exceeds `original`.
    Dynamic {
        factor: f64,
        original: f64,
    },
    /// Long wavelengths divided by the factor, short ones kept, smooth in between.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
    /// Interpolation for dimensions that rotate rarely, extrapolation for the others, and a temperature.
    Yarn {
        factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        original: f64,
        truncate: bool,
        attention: f64,
    },
}

/// The rotary embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    theta: f64,
    rotary_dim: usize,
    adjacent: bool,
    scaling: Scaling,
}

/// Cosines and sines of some positions, `[positions, rotary_dim / 2]` each.
#[derive(Default)]
pub(crate) struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    pairs: usize,
}

impl Angles {
    /// Forgets all positions.
    pub fn clear(&mut self) {
        self.cos.clear();
        self.sin.clear();
    }

    /// Both lists, and how many of each belong to a position.
    pub fn parts(&mut self) -> ([&mut [f32]; 2], usize) {
        ([&mut self.cos, &mut self.sin], self.pairs)
    }
}

const REMEDY: &str = "take config.json from the model's original folder";

impl Rope {
    /// Reads the rope keys of a config, in the new style (`rope_parameters`) or the old one (`rope_theta` and
    /// `rope_scaling` at the top).
    pub(crate) fn from_config(keys: Keys, arch: &Architecture, head_dim: usize, max_positions: Option<usize>) -> Result<Rope, ModelError> {
        let empty = serde_json::Map::new();
        let name = ["rope_scaling", "rope_parameters"].into_iter().find(|k| keys.get(k).is_some());
        let map = match name.map(|n| (n, keys.get(n))) {
            Some((_, Some(Value::Object(map)))) => map,
            Some((name, _)) => return Err(keys.error(name, "an object", REMEDY)),
            None => &empty,
        };
        if let Some((key, _)) = map.iter().find(|(_, v)| v.is_object()) {
            let name = name.unwrap_or_default();
            return Err(keys.error(
                name,
                format!("one set of parameters for all layers (not one for `{key}`)"),
                "this model is not supported",
            ));
        }
        let file = format!("{}: {}", keys.file, name.unwrap_or("rope_parameters"));
        let rope = Keys { file: &file, map };
        let theta = match rope.float_opt("rope_theta")? {
            Some(_) => rope.positive("rope_theta", 1e4)?,
            None => keys.positive("rope_theta", 1e4)?,
        };
        let partial = match (rope.float_opt("partial_rotary_factor")?, keys.float_opt("partial_rotary_factor")?) {
            (Some(f), _) => Some((rope, f)),
            (None, Some(f)) => Some((keys, f)),
            (None, None) => None,
        };
        let factor = match (arch.partial_rotary, partial) {
            (default, None) => default.unwrap_or(1.0),
            (Some(_), Some((_, f))) if f > 0.0 && f <= 1.0 => f,
            (None, Some((_, 1.0))) => 1.0,
            (None, Some((k, _))) => {
                return Err(k.error(
                    "partial_rotary_factor",
                    format!("nothing: `{}` rotates whole heads", arch.model_type),
                    "this model is not supported",
                ));
            }
            (_, Some((k, _))) => return Err(k.error("partial_rotary_factor", "a number above 0 and up to 1", REMEDY)),
        };
        let rotary_dim = (head_dim as f64 * factor) as usize;
        if rotary_dim < 2 || !rotary_dim.is_multiple_of(2) {
            return Err(keys.error("head_dim", "an even number of rotated dimensions, at least 2", REMEDY));
        }
        let kind = rope.text("rope_type")?.or(rope.text("type")?).unwrap_or("default");
        let length = |key: &str| -> Result<f64, ModelError> {
            let n = keys.size_opt(key)?.or(rope.size_opt(key)?).or(max_positions);
            n.map(|n| n as f64).ok_or_else(|| rope.error(key, "a number of positions", REMEDY))
        };
        let factor = |original: Option<f64>| -> Result<f64, ModelError> {
            match (rope.float_opt("factor")?, original, max_positions) {
                (Some(f), ..) if f >= 1.0 => Ok(f),
                (None, Some(original), Some(max)) => Ok(max as f64 / original),
                _ => Err(rope.error("factor", "a number of at least 1", REMEDY)),
            }
        };
        let scaling = match kind {
            "default" => Scaling::Default,
            "linear" => Scaling::Linear { factor: factor(None)? },
            "dynamic" => Scaling::Dynamic { factor: factor(None)?, original: length("max_position_embeddings")? },
            "llama3" => {
                let (low, high) = (rope.positive("low_freq_factor", f64::NAN)?, rope.positive("high_freq_factor", f64::NAN)?);
                if low.is_nan() || high.is_nan() || low >= high {
                    let key = if low.is_nan() { "low_freq_factor" } else { "high_freq_factor" };
                    return Err(rope.error(key, "low_freq_factor and, above it, high_freq_factor", REMEDY));
                }
                Scaling::Llama3 { factor: factor(None)?, low, high, original: length("original_max_position_embeddings")? }
            }
            "yarn" => {
                let original = length("original_max_position_embeddings")?;
                let factor = factor(Some(original))?;
                let temperature = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
                let nonzero = |key: &str| rope.float_opt(key).map(|v| v.filter(|&v| v != 0.0));
                let attention = match (rope.float_opt("attention_factor")?, nonzero("mscale")?, nonzero("mscale_all_dim")?) {
                    (Some(a), ..) => a,
                    (None, Some(m), Some(all)) => temperature(m) / temperature(all),
                    _ => temperature(1.0),
                };
                Scaling::Yarn {
                    factor,
                    beta_fast: nonzero("beta_fast")?.unwrap_or(32.0),
                    beta_slow: nonzero("beta_slow")?.unwrap_or(1.0),
                    original,
                    truncate: rope.bool("truncate", true)?,
                    attention,
                }
            }
            _ => {
                let key = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
                return Err(rope.error(key, "default, linear, dynamic, llama3 or yarn", "this model is not supported"));
            }
        };
        Ok(Rope { theta, rotary_dim, adjacent: arch.pairing == Pairing::Adjacent, scaling })
    }

    /// Name of the scaling rule.
    pub fn kind(&self) -> &'static str {
        match self.scaling {
            Scaling::Default => "default",
            Scaling::Linear { .. } => "linear",
            Scaling::Dynamic { .. } => "dynamic",
            Scaling::Llama3 { .. } => "llama3",
            Scaling::Yarn { .. } => "yarn",
        }
    }

    /// Dimensions of a head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        self.rotary_dim
    }

    /// The frequencies, `[rotary_dim / 2]`, of a sequence planned to reach `length` tokens (only the dynamic rule asks).
    pub(crate) fn frequencies(&self, length: usize) -> Vec<f32> {
        let d = self.rotary_dim as f64;
        let plain = |theta: f64| -> Vec<f32> {
            (0..self.rotary_dim / 2).map(|i| 1.0 / theta.powf(f64::from(2.0 * i as f32 / d as f32)) as f32).collect()
        };
        let base = plain(self.theta);
        match self.scaling {
            Scaling::Default => base,
            Scaling::Linear { factor } => base.iter().map(|f| f / factor as f32).collect(),
            Scaling::Dynamic { factor, original } => {
                if length as f64 <= original {
                    return base;
                }
                // one rotated pair has no exponent to stretch
                let exponent = if d > 2.0 { d / (d - 2.0) } else { 1.0 };
                plain(self.theta * (factor * length as f64 / original - (factor - 1.0)).powf(exponent))
            }
            Scaling::Llama3 { factor, low, high, original } => base
                .iter()
                .map(|&f| {
                    let f = f64::from(f);
                    let wavelength = TAU / f;
                    let scaled = if wavelength > original / low {
                        f / factor
                    } else if wavelength < original / high {
                        f
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * f / factor + smooth * f
                    };
                    scaled as f32
                })
                .collect(),
            Scaling::Yarn { factor, beta_fast, beta_slow, original, truncate, .. } => {
                // the dimension that turns `n` times over the original length
                let dimension = |n: f64| d * (original / (n * TAU)).ln() / (2.0 * self.theta.ln());
                let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(d - 1.0));
                if low == high {
                    high += 0.001;
                }
                let ramp = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                base.iter().enumerate().map(|(i, &f)| ((1.0 - ramp(i)) * f64::from(f) + ramp(i) * f64::from(f) / factor) as f32).collect()
            }
        }
    }

    /// Adds the angles of `count` positions from `start` on.
    pub(crate) fn angles(&self, frequencies: &[f32], start: usize, count: usize, out: &mut Angles) {
        let scale = match self.scaling {
            Scaling::Yarn { attention, .. } => attention,
            _ => 1.0,
        };
        out.pairs = frequencies.len();
        for position in start..start + count {
            for &f in frequencies {
                // an f32 product, as in the reference; its sine then needs more than f32
                let angle = f64::from(position as f32 * f) % (2.0 * PI);
                out.cos.push((angle.cos() * scale) as f32);
                out.sin.push((angle.sin() * scale) as f32);
            }
        }
    }

    /// Rotates one token's heads, `[heads, head_dim]`, by angle set `index`.
    pub(crate) fn rotate(&self, angles: &Angles, index: usize, heads: &mut [f32], head_dim: usize) {
        let half = angles.pairs;
        let (cos, sin) = (&angles.cos[index * half..][..half], &angles.sin[index * half..][..half]);
        for head in heads.chunks_exact_mut(head_dim) {
            for i in 0..half {
                let (a, b) = if self.adjacent { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let (x, y) = (head[a], head[b]);
                head[a] = x * cos[i] - y * sin[i];
                head[b] = y * cos[i] + x * sin[i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::ARCHITECTURES;

    fn rope(json: &str, head_dim: usize) -> Rope {
        let value: Value = serde_json::from_str(json).unwrap();
        let map = value.as_object().unwrap();
        let max = map.get("max_position_embeddings").and_then(Value::as_u64).map(|v| v as usize);
        Rope::from_config(Keys { file: "config.json", map }, &ARCHITECTURES[0], head_dim, max).unwrap()
    }

    fn close(found: &[f32], expected: &[f32]) {
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= e * 2e-6, "{found:?} against {expected:?}");
        }
    }

    /// First frequencies as transformers 5.23 computes them.
    #[test]
    fn yarn_frequencies() {
        let r = rope(
            r#"{"max_position_embeddings": 64, "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}}"#,
            32,
        );
        close(&r.frequencies(0), &[1.0, 0.609289, 0.351463, 0.184492, 0.0790569, 0.0592843]);
        assert!(matches!(r.scaling, Scaling::Yarn { attention, .. } if (attention - 1.138629).abs() < 1e-6));
        let r = rope(
            r#"{"max_position_embeddings": 128, "rope_parameters": {"rope_type": "yarn", "rope_theta": 50.0, "factor": 8.0, "original_max_position_embeddings": 16,
                "beta_fast": 1.5, "beta_slow": 0.2, "mscale": 2.0, "mscale_all_dim": 0.5, "truncate": false}}"#,
            32,
        );
        let want = [1.0, 0.783095, 0.613238, 0.437627, 0.302774, 0.205832, 0.1367, 0.0878739, 0.0537977, 0.0303699, 0.0145742, 0.00848923];
        close(&r.frequencies(0), &want);
        assert!(matches!(r.scaling, Scaling::Yarn { attention, .. } if (attention - 1.282540).abs() < 1e-6));
    }

    #[test]
    fn dynamic_is_plain_up_to_the_original_length() {
        let dynamic = rope(r#"{"max_position_embeddings": 16, "rope_scaling": {"type": "dynamic", "factor": 4.0}}"#, 16);
        let plain = rope(r#"{"max_position_embeddings": 16}"#, 16);
        assert_eq!(dynamic.frequencies(16), plain.frequencies(16));
        assert_ne!(dynamic.frequencies(17), plain.frequencies(17));
        assert_eq!(dynamic.frequencies(40)[0], 1.0);
    }

    #[test]
    fn old_and_new_style_agree() {
        let old = rope(r#"{"rope_theta": 300.0, "rope_scaling": {"type": "linear", "factor": 2.0}}"#, 16);
        let new = rope(r#"{"rope_parameters": {"rope_theta": 300.0, "rope_type": "linear", "factor": 2.0}}"#, 16);
        assert_eq!(old, new);
    }

    #[test]
    fn refuses_what_it_cannot_follow() {
        for (json, word) in [
            (r#"{"rope_scaling": {"type": "su", "factor": 2.0}}"#, "llama3"),
            (r#"{"rope_scaling": {"type": "linear", "factor": 0.5}}"#, "factor"),
            (r#"{"rope_scaling": {"type": "linear"}}"#, "factor"),
            (r#"{"rope_parameters": {"full_attention": {}}}"#, "full_attention"),
            (r#"{"partial_rotary_factor": 0.5}"#, "partial_rotary_factor"),
            (r#"{"rope_scaling": 3}"#, "object"),
        ] {
            let value: Value = serde_json::from_str(json).unwrap();
            let error = Rope::from_config(Keys { file: "config.json", map: value.as_object().unwrap() }, &ARCHITECTURES[0], 16, Some(64));
            let message = error.unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
