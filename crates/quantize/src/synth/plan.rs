//! Which tensors a synthetic model has and what each holds.

use super::shape::{Linear, Shape};
use super::spec::Quantization;
use billfish_formats::{CheckpointFormat, TensorSpec};
use billfish_tensor::DType;

/// What a tensor holds.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// Random bits: every word is a legal word of codes.
    Words,
    /// 16-bit floats, evenly spread.
    Floats { low: f32, high: f32 },
    /// Packed fields, each row of `n` of them; evenly spread over `low..=high`.
    Fields { n: usize, low: u8, high: u8 },
    /// The group of each of `k` rows.
    Groups {
        k: usize,
        size: usize,
        /// Whether rows stand anywhere, and the name of the input whose order they follow.
        order: Option<String>,
    },
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub content: Content,
}

impl Planned {
    pub fn bytes(&self) -> u64 {
        self.shape.iter().fold(self.dtype.size() as u64, |a, &b| a * b as u64)
    }

    pub fn spec(&self) -> TensorSpec {
        (self.name.clone(), self.dtype, self.shape.clone())
    }
}

/// All tensors, in the order in which they are written.
pub(crate) fn plan(shape: &Shape, quantization: Option<&Quantization>) -> Vec<Planned> {
    let mut out = vec![];
    // as if it were the head of unit logits, which it is when it is tied
    out.push(weight("model.embed_tokens.weight".into(), shape.hidden, shape.vocab));
    for i in 0..shape.layers {
        let at = |name: &str| format!("model.layers.{i}.{name}");
        out.push(norm(at("input_layernorm.weight"), shape.hidden));
        for linear in shape.linears() {
            let name = at(&linear.name);
            match quantization {
                Some(q) => quantized(&mut out, &name, &linear, q, at(&linear.input)),
                None => out.push(weight(format!("{name}.weight"), linear.k, linear.n)),
            }
            if linear.bias {
                out.push(floats(format!("{name}.bias"), vec![linear.n], -0.1, 0.1));
            }
        }
        if let Some(experts) = shape.experts {
            out.push(weight(at("mlp.gate.weight"), shape.hidden, experts.count));
        }
        if shape.qk_norm {
            out.push(norm(at("self_attn.q_norm.weight"), shape.head_dim));
            out.push(norm(at("self_attn.k_norm.weight"), shape.head_dim));
        }
        out.push(norm(at("post_attention_layernorm.weight"), shape.hidden));
    }
    out.push(norm("model.norm.weight".into(), shape.hidden));
    if !shape.tied {
        out.push(weight("lm_head.weight".into(), shape.hidden, shape.vocab));
    }
    out
}

fn floats(name: String, shape: Vec<usize>, low: f32, high: f32) -> Planned {
    Planned { name, dtype: DType::BF16, shape, content: Content::Floats { low, high } }
}

/// A dense weight `[n, k]` with the spread that keeps the size of what it multiplies.
fn weight(name: String, k: usize, n: usize) -> Planned {
    // an even spread over [-a, a] has the standard deviation a / √3
    let most = (3.0 / k as f32).sqrt();
    floats(name, vec![n, k], -most, most)
}

fn norm(name: String, size: usize) -> Planned {
    floats(name, vec![size], 0.75, 1.25)
}

/// The four tensors of a quantized module.
fn quantized(out: &mut Vec<Planned>, name: &str, linear: &Linear, q: &Quantization, input: String) {
    let Linear { k, n, .. } = *linear;
    let size = q.group_size.rows(k);
    let groups = k.div_ceil(size);
    let packing = q.packing();
    let (low, high) = true_zeros(q);
    // v1 stores true zeros less one
    let less = u32::from(q.format() == CheckpointFormat::Gptq);
    let fields = Content::Fields { n, low: (low - less) as u8, high: (high - less) as u8 };
    let scale = scale(q.bits, low, high, k);
    let mut put = |part: &str, dtype, shape, content| out.push(Planned { name: format!("{name}.{part}"), dtype, shape, content });
    put("qweight", DType::I32, vec![packing.words(q.bits, k), n], Content::Words);
    put("qzeros", DType::I32, vec![groups, packing.words(q.bits, n)], fields);
    put("scales", DType::F16, vec![groups, n], Content::Floats { low: 0.75 * scale, high: 1.25 * scale });
    put("g_idx", DType::I32, vec![k], Content::Groups { k, size, order: q.desc_act.then_some(input) });
}

/// The true zero points, first and last. v1 has no zero of 0: stored less one it would be all ones, which programs read
/// differently. Asymmetric ones are even about the mean code, as real weights make them: readers tell v1 from v2 by it.
fn true_zeros(q: &Quantization) -> (u32, u32) {
    match (q.sym, q.format()) {
        (true, _) => (1 << (q.bits - 1), 1 << (q.bits - 1)),
        (false, CheckpointFormat::Gptq) => (1, (1 << q.bits) - 2),
        (false, _) => (0, (1 << q.bits) - 1),
    }
}

/// The scale at which weights have the mean square 1/k: a product keeps the size of what it multiplies.
fn scale(bits: u32, low: u32, high: u32, k: usize) -> f32 {
    let codes = || (0..1u32 << bits).map(f64::from);
    let zeros = f64::from(high - low + 1);
    let squares: f64 = (low..=high).map(|z| codes().map(|q| (q - f64::from(z)).powi(2)).sum::<f64>()).sum();
    let mean = squares / zeros / f64::from(1u32 << bits);
    (1.0 / (mean * k as f64).sqrt()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::shape::SHAPES;

    fn named(name: &str) -> Shape {
        SHAPES.into_iter().find(|s| s.name == name).unwrap()
    }

    fn parameters(name: &str) -> u64 {
        plan(&named(name), None).iter().map(|t| t.bytes() / 2).sum()
    }

    /// The numbers of parameters that the models are published with.
    #[test]
    fn shapes_have_the_published_sizes() {
        assert_eq!(parameters("llama-1b"), 1_235_814_400);
        assert_eq!(parameters("llama-3b"), 3_212_749_824);
        assert_eq!(parameters("llama-8b"), 8_030_261_248);
        assert_eq!(parameters("qwen2-0.5b"), 494_032_768);
        assert_eq!(parameters("qwen3-0.6b"), 596_049_920);
        assert_eq!(parameters("qwen3-30b-a3b"), 30_532_122_624);
        // an eighth of all but the last norm
        assert_eq!(8 * (parameters("moe-small") - 2048) + 2048, 30_532_122_624);
    }

    #[test]
    fn scales_by_hand() {
        // 2 bit around 2: squares 4, 1, 0, 1, mean 1.5
        assert!((scale(2, 2, 2, 6) - 1.0 / 3.0).abs() < 1e-6);
        // 2 bit, zeros 1 and 2: 1, 0, 1, 4 and 4, 1, 0, 1
        assert!((scale(2, 1, 2, 6) - 1.0 / 3.0).abs() < 1e-6);
    }
}
