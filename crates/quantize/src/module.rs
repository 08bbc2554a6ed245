//! One module on its way: what it is read as, what it is written from, and what was out of the ordinary.

use crate::QuantizeError;
use crate::gptq::{Hessian, Settings, Solution};
use crate::pipeline::HEAD;
use billfish_formats::{BiasRule, Checkpoint, LinearWeight};
use billfish_models::{DecoderConfig, EMBEDDING, Linear};
use billfish_tensor::{Codes, Groups, QuantMatrix, ScaleValues, Zeros};
use half::f16;

/// The weight of a dense module, `[N, K]`, and its bias.
pub(crate) fn dense_weight(source: &Checkpoint, config: &DecoderConfig, l: &Linear) -> Result<(Vec<f32>, Option<Vec<f32>>), QuantizeError> {
    // a tied head is the embedding, whatever stands under its own name
    if l.name == HEAD && config.tie_word_embeddings && !source.has_codes(HEAD) {
        let table = source.dense(&format!("{EMBEDDING}.weight"), &[l.out_features, l.in_features])?;
        return Ok((table.to_f32(), None));
    }
    let rule = if l.bias { BiasRule::Required } else { BiasRule::Absent };
    match source.linear(&l.name, l.in_features, l.out_features, rule)? {
        LinearWeight::Dense { weight, bias } => Ok((weight.to_f32(), bias)),
        LinearWeight::Quantized(m) => {
            let (mut codes, mut weight) = (vec![], vec![0.0; l.in_features * l.out_features]);
            m.dequantize_columns(0..l.out_features, &mut codes, &mut weight);
            Ok((weight, m.bias().map(<[f32]>::to_vec)))
        }
    }
}

/// What was out of the ordinary about a module's Hessian.
pub(crate) fn notes(hessian: &Hessian, settings: &Settings, solution: &Solution) -> Vec<String> {
    let (rows, inputs) = (hessian.rows(), hessian.size());
    let mut notes = vec![];
    if hessian.dropped() > 0 {
        notes.push(format!("{} input rows were left out, because they held numbers that are not finite", hessian.dropped()));
    }
    if settings.propagate && rows > 0 && rows < inputs as u64 && !solution.fallback {
        notes.push(format!("{rows} rows were seen for {inputs} inputs, so only the damping makes its Hessian regular"));
    }
    if solution.damp > settings.damp {
        notes.push(format!("a damping of {:.2} was needed instead of {}", solution.damp, settings.damp));
    }
    notes
}

/// A solution as the type that every other part of the program knows, with the bias that later modules are to see.
pub(crate) fn matrix(l: &Linear, settings: &Settings, s: &Solution, bias: Option<Vec<f32>>) -> Result<QuantMatrix, QuantizeError> {
    let zeros = if settings.grid.sym { Zeros::Midpoint } else { Zeros::PerGroup(s.zeros.clone()) };
    let groups = match &s.g_idx {
        Some(g_idx) => Groups::Index { g_idx: g_idx.clone(), count: s.groups },
        None => Groups::Contiguous { size: settings.group_size.unwrap_or(l.in_features) },
    };
    let scales = ScaleValues::F16(s.scales.iter().map(|v| f16::from_f32(*v)).collect());
    let codes = Codes::Bytes(s.codes.clone());
    QuantMatrix::new(l.in_features, l.out_features, settings.grid.bits, codes, scales, zeros, groups, bias)
        .map_err(|e| QuantizeError::setting(&l.name, "a matrix", e.to_string(), "this is a defect of the program; report it"))
}
