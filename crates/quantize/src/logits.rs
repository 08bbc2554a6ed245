//! Logits of given tokens as a file, to be compared with those of any other program.

use crate::QuantizeError;
use billfish_formats::{FormatError, Header, SafetensorsWriter, Source, TensorInfo};
use billfish_models::{Logits, Model, Scratch};
use billfish_tensor::DType;
use std::path::Path;

const INPUT: &str = "input_ids";
const OUTPUT: &str = "logits";

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogitsFile {
    /// Rows of the tensor.
    pub tokens: usize,
    /// Columns of the tensor.
    pub vocab_size: usize,
}

/// Runs the ids in a safetensors file through a model as one sequence and writes their logits to another.
///
/// Reads `input_ids`, I64 or I32, `[T]` or `[1, T]` (any other tensor of the file is left alone), and writes `logits`, F32
/// `[T, vocab]`: row i is what the model says after ids 0 to i. The ids are used as they are, no special token is added.
/// The model sees `chunk` ids at a time and no more than their logits are in memory; the result does not depend on it.
/// `progress` hears the tokens done and the tokens in all.
///
/// # Errors
/// [`QuantizeError::Format`] naming the file and tensor that cannot be read or written, [`QuantizeError::Setting`] for a
/// chunk of 0, [`QuantizeError::Model`] for an id outside the vocabulary or logits that are not numbers. No output file is
/// left behind then.
pub fn eval_logits(
    model: &Model,
    input: &Path,
    output: &Path,
    chunk: usize,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<LogitsFile, QuantizeError> {
    if chunk == 0 {
        return Err(QuantizeError::setting("chunk of tokens", "at least 1", "0", "choose a larger one"));
    }
    let ids = read_ids(&Source::open(input)?, model.config().vocab_size)?;
    let vocab_size = model.config().vocab_size;
    let mut writer = SafetensorsWriter::create(output, &[(OUTPUT.into(), DType::F32, vec![ids.len(), vocab_size])])?;
    let mut cache = model.new_cache(ids.len());
    let mut scratch = Scratch::default();
    let mut row = vec![0u8; vocab_size * size_of::<f32>()];
    let mut done = 0;
    for part in ids.chunks(chunk) {
        for logits in model.forward(&mut cache, part, Logits::All, &mut scratch)?.chunks_exact(vocab_size) {
            for (bytes, logit) in row.as_chunks_mut().0.iter_mut().zip(logits) {
                *bytes = logit.to_le_bytes();
            }
            writer.write(OUTPUT, &row)?;
        }
        done += part.len() as u64;
        progress(done, ids.len() as u64);
    }
    writer.finish()?;
    Ok(LogitsFile { tokens: ids.len(), vocab_size })
}

/// The ids of a file, all below `vocab_size`.
fn read_ids(source: &Source, vocab_size: usize) -> Result<Vec<u32>, QuantizeError> {
    let wrong = |expected: String, found: String| {
        QuantizeError::from(FormatError::Tensor {
            file: source.name().into(),
            tensor: INPUT.into(),
            expected,
            found,
            remedy: "write the ids of one sequence, made with the tokenizer of this model".into(),
        })
    };
    let header = Header::read(source)?;
    let Some(TensorInfo { dtype, shape, offset, bytes }) = header.tensors.get(INPUT) else {
        return Err(wrong("the tensor".into(), "none of that name".into()));
    };
    if !matches!(dtype, DType::I64 | DType::I32) {
        return Err(wrong("dtype I64 or I32".into(), format!("dtype {dtype}")));
    }
    if !matches!(shape[..], [t] | [1, t] if t > 0) {
        return Err(wrong("shape [T] or [1, T] with at least one token".into(), format!("shape {shape:?}")));
    }
    let mut raw = vec![0; *bytes];
    source.read_at(*offset, &mut raw)?;
    let values: Vec<i64> = match dtype {
        DType::I64 => raw.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        _ => raw.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
    };
    let id = |(at, &value): (usize, &i64)| {
        let inside = usize::try_from(value).is_ok_and(|v| v < vocab_size);
        u32::try_from(value)
            .ok()
            .filter(|_| inside)
            .ok_or_else(|| wrong(format!("ids from 0 to {}", vocab_size.saturating_sub(1)), format!("{value} at [{at}]")))
    };
    values.iter().enumerate().map(id).collect()
}
