//! What to synthesize, as a user writes it: `SHAPE[:option…]`.

use super::shape::{SHAPES, Shape};
use crate::QuantizeError;
use billfish_formats::{CheckpointFormat, GroupSize};
use billfish_tensor::Packing;
use std::fmt;
use std::str::FromStr;

/// How weights are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quantization {
    pub bits: u32,
    pub group_size: GroupSize,
    pub sym: bool,
    pub desc_act: bool,
    pub v2: bool,
}

const DEFAULT: Quantization = Quantization { bits: 4, group_size: GroupSize::Rows(128), sym: true, desc_act: false, v2: false };

impl Quantization {
    /// `checkpoint_format`: 5, 6 and 7 bit exist in the planar layout only.
    pub fn format(&self) -> CheckpointFormat {
        match (self.bits, self.v2) {
            (5..=7, _) => CheckpointFormat::GptqP,
            (_, true) => CheckpointFormat::GptqV2,
            _ => CheckpointFormat::Gptq,
        }
    }

    pub fn packing(&self) -> Packing {
        if self.format() == CheckpointFormat::GptqP { Packing::Planar } else { Packing::Continuous }
    }
}

/// What to synthesize: a shape, its vocabulary and how it is quantized.
///
/// As text: a shape (`llama-1b`, `llama-3b`, `llama-8b`, `qwen2-0.5b`, `qwen3-0.6b`, `qwen3-30b-a3b`,
/// `moe-small`, `tiny`, `tiny-moe`), then in any order
///
/// | option | meaning | default |
/// |---|---|---|
/// | `:wBgG` | B bits, 2 to 8, in groups of G rows; `g-1`: one group a column | `w4g128` |
/// | `:asym` | a zero point for each group and column | all at the midpoint |
/// | `:act` | rows stand in a random order, the same for layers with the same input (act-order) | in order |
/// | `:v2` | `gptq_v2`: zero points stored as they are (not with 5 to 7 bit, which are always planar `gptq_p`) | `gptq` |
/// | `:vN` | a vocabulary of N tokens, N at least 8 | the shape's own |
///
/// ```
/// let spec: billfish_quantize::SynthSpec = "llama-1b:w3g64:asym:act:v32000".parse()?;
/// assert_eq!(spec.vocab_size(), 32_000);
/// # Ok::<(), billfish_quantize::QuantizeError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SynthSpec {
    pub(crate) shape: Shape,
    /// What the text says; `None` when it says nothing.
    quantization: Option<Quantization>,
}

const OPTIONS: &str =
    "wBgG with B from 2 to 8 and G of -1 or at least 1 (such as w4g128), asym, act, v2, or vN with a vocabulary N of 8 to 16777216";

const SETTING: &str = "synthetic model";

impl SynthSpec {
    /// Tokens of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.shape.vocab
    }

    /// How to quantize, or `None` for a dense model.
    pub(crate) fn quantization(&self, dense: bool) -> Result<Option<Quantization>, QuantizeError> {
        match (dense, self.quantization) {
            (true, Some(_)) => Err(QuantizeError::setting(
                SETTING,
                "a dense model without wBgG, asym, act or v2",
                format!("`{self}`"),
                "drop these options or write a quantized model",
            )),
            (true, None) => Ok(None),
            (false, given) => Ok(Some(given.unwrap_or(DEFAULT))),
        }
    }
}

impl FromStr for SynthSpec {
    type Err = QuantizeError;

    fn from_str(text: &str) -> Result<Self, QuantizeError> {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let Some(mut shape) = SHAPES.into_iter().find(|s| s.name == name) else {
            let names = SHAPES.map(|s| s.name).join(", ");
            return Err(QuantizeError::setting(SETTING, format!("a shape of {names}"), format!("`{name}`"), "name one of these"));
        };
        let mut quantization = None;
        let mut seen = vec![];
        for option in parts {
            let parsed = Part::parse(option)
                .ok_or_else(|| QuantizeError::setting(SETTING, OPTIONS, format!("`:{option}` in `{text}`"), "correct the option"))?;
            let kind = std::mem::discriminant(&parsed);
            if seen.contains(&kind) {
                return Err(QuantizeError::setting(SETTING, "each option once", format!("`{text}`"), "remove one of the two"));
            }
            seen.push(kind);
            if let Part::Vocabulary(n) = parsed {
                shape.vocab = n;
                continue;
            }
            let q = quantization.get_or_insert(DEFAULT);
            match parsed {
                Part::Codes(bits, group_size) => (q.bits, q.group_size) = (bits, group_size),
                Part::Asymmetric => q.sym = false,
                Part::ActOrder => q.desc_act = true,
                Part::V2 => q.v2 = true,
                Part::Vocabulary(_) => {}
            }
        }
        if let Some(q) = quantization.filter(|q| q.v2 && q.format() != CheckpointFormat::GptqV2) {
            let expected = "v2 with 2, 3, 4 or 8 bit";
            let remedy = "drop v2: 5, 6 and 7 bit are always planar gptq_p, whose zero points are stored as they are";
            return Err(QuantizeError::setting(SETTING, expected, format!("{} bit in `{text}`", q.bits), remedy));
        }
        Ok(Self { shape, quantization })
    }
}

/// One option of a spec.
enum Part {
    Codes(u32, GroupSize),
    Asymmetric,
    ActOrder,
    V2,
    Vocabulary(usize),
}

impl Part {
    fn parse(text: &str) -> Option<Part> {
        match text {
            "asym" => return Some(Part::Asymmetric),
            "act" => return Some(Part::ActOrder),
            "v2" => return Some(Part::V2),
            _ => {}
        }
        if let Some(n) = text.strip_prefix('v') {
            return number(n).filter(|n| (8..=1 << 24).contains(n)).map(Part::Vocabulary);
        }
        let (bits, group) = text.strip_prefix('w')?.split_once('g')?;
        let bits = number(bits).filter(|b| (2..=8).contains(b))?;
        let group = match group {
            "-1" => GroupSize::Channel,
            g => GroupSize::Rows(number(g).filter(|g| (1..=1 << 24).contains(g))?),
        };
        Some(Part::Codes(bits as u32, group))
    }
}

/// Digits only: no sign.
fn number(text: &str) -> Option<usize> {
    text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

impl fmt::Display for SynthSpec {
    /// The spec as text, with only what differs from the shape's own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shape.name)?;
        if let Some(q) = &self.quantization {
            write!(f, ":w{}g{}", q.bits, q.group_size)?;
            for (name, said) in [("asym", !q.sym), ("act", q.desc_act), ("v2", q.v2)] {
                if said {
                    write!(f, ":{name}")?;
                }
            }
        }
        match SHAPES.iter().find(|s| s.name == self.shape.name) {
            Some(own) if own.vocab == self.shape.vocab => Ok(()),
            _ => write!(f, ":v{}", self.shape.vocab),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> SynthSpec {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn options_in_any_order() {
        let spec = parse("llama-1b:v32000:act:w3g64:v2:asym");
        assert_eq!(spec.vocab_size(), 32_000);
        let expected = Quantization { bits: 3, group_size: GroupSize::Rows(64), sym: false, desc_act: true, v2: true };
        assert_eq!(spec.quantization(false).unwrap(), Some(expected));
        assert_eq!(spec.to_string(), "llama-1b:w3g64:asym:act:v2:v32000");
        assert_eq!(parse("tiny").quantization(false).unwrap(), Some(DEFAULT));
        assert_eq!(parse("tiny:v99").quantization(true).unwrap(), None);
        assert_eq!(parse("tiny:w2g-1").quantization(false).unwrap().unwrap().group_size, GroupSize::Channel);
        assert_eq!(parse("tiny:w6g32:asym").quantization(false).unwrap().unwrap().format(), CheckpointFormat::GptqP);
        for text in ["llama-8b", "qwen3-0.6b:w8g-1:act", "tiny:w4g128:v2:v300"] {
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn refuses_with_the_legal_choices() {
        for (text, words) in [
            ("", vec!["llama-1b", "tiny"]),
            ("llama-7b", vec!["`llama-7b`", "llama-8b", "qwen2-0.5b"]),
            ("tiny:", vec!["wBgG", "asym"]),
            ("tiny:w9g128", vec!["`:w9g128`", "2 to 8"]),
            ("tiny:w4g0", vec!["wBgG"]),
            ("tiny:w4g-2", vec!["wBgG"]),
            ("tiny:w4", vec!["wBgG"]),
            ("tiny:w+4g32", vec!["wBgG"]),
            ("tiny:v3", vec!["vocabulary"]),
            ("tiny:v1", vec!["v2"]),
            ("tiny:sym", vec!["asym"]),
            ("tiny:act:act", vec!["once"]),
            ("tiny:w4g32:w3g32", vec!["once"]),
            ("tiny:w5g32:v2", vec!["5 bit", "gptq_p"]),
        ] {
            let message = text.parse::<SynthSpec>().unwrap_err().to_string();
            assert!(words.iter().all(|w| message.contains(w)), "{text}: {message}");
        }
        let dense = parse("tiny:act").quantization(true).unwrap_err().to_string();
        assert!(dense.contains("dense") && dense.contains("tiny:w4g128:act"), "{dense}");
    }
}
