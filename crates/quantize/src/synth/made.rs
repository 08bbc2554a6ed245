//! Synthetic models that are never written: their weights are made when they are read.

use super::configs;
use super::content::Contents;
use super::plan::{self, Planned};
use super::{SynthSpec, check_names};
use crate::QuantizeError;
use billfish_formats::{Checkpoint, safetensors_header};
use std::sync::Arc;

const FILE: &str = "model.safetensors";

/// The model that [`synth`](super::synth) would write with one shard, quantized, without a file: the same bytes, made when
/// they are read, so that only a tensor that is being read takes memory.
///
/// # Errors
/// As [`synth`](super::synth).
pub fn synthetic(spec: &SynthSpec, seed: u64, tokenizer_files: &[(&str, &[u8])]) -> Result<Checkpoint, QuantizeError> {
    let quantization = spec.quantization(false)?;
    check_names(tokenizer_files)?;
    let tensors = plan::plan(&spec.shape, quantization.as_ref());
    let name = format!("synthetic {spec}");
    let header = safetensors_header(&format!("{name}/{FILE}"), &tensors.iter().map(Planned::spec).collect::<Vec<_>>())?;
    let mut ends = vec![];
    let mut end = header.len() as u64;
    for tensor in &tensors {
        end += tensor.bytes();
        ends.push(end);
    }
    let contents = Contents { quantization, seed };
    let maker = Arc::new(move |offset: u64, out: &mut [u8]| {
        let (mut at, mut out) = (offset, out);
        if at < header.len() as u64 {
            let part = &header[at as usize..];
            let (head, rest) = out.split_at_mut(out.len().min(part.len()));
            head.copy_from_slice(&part[..head.len()]);
            at += head.len() as u64;
            out = rest;
        }
        let mut i = ends.partition_point(|end| *end <= at);
        while !out.is_empty() && i < tensors.len() {
            let (part, rest) = out.split_at_mut((out.len() as u64).min(ends[i] - at) as usize);
            contents.fill(&tensors[i], tensors[i].bytes() - (ends[i] - at), part);
            at += part.len() as u64;
            out = rest;
            i += 1;
        }
    });
    let special = configs::Special::find(tokenizer_files, spec.shape.vocab);
    let mut files: Vec<(String, Vec<u8>)> = tokenizer_files.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect();
    let mut json = |name: &str, value: serde_json::Value| files.push((name.into(), value.to_string().into_bytes()));
    if let Some(q) = &quantization {
        json("quantize_config.json", configs::quantize(q));
    }
    json("generation_config.json", configs::generation(&special));
    json("config.json", configs::model(&spec.shape, quantization.as_ref(), &special));
    Ok(Checkpoint::from_maker(&name, files, (FILE.into(), end, maker))?)
}
