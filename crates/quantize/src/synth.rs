//! Model folders with random weights: real shapes, real dialects, no meaning.
//!
//! Speed and memory of a model do not depend on what its weights say, so a folder of random ones stands in for the real
//! one wherever these are measured. Weights have the mean square 1/K, so that activations keep their size from layer to
//! layer and logits are of the order of 1.

mod configs;
mod content;
mod made;
mod plan;
mod random;
mod shape;
mod spec;

pub use made::synthetic;
pub(crate) use random::SplitMix64;
pub use spec::SynthSpec;

use crate::QuantizeError;
use billfish_formats::SafetensorsWriter;
use content::{CHUNK, Contents};
use plan::Planned;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SynthReport {
    /// Names of the safetensors files.
    pub files: Vec<String>,
    /// Number of tensors.
    pub tensors: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
}

/// Writes a model folder with random weights.
///
/// `out` is created if need be and must be empty. The folder holds `config.json`, `generation_config.json`, unless `dense`
/// a `quantize_config.json`, the weights in `shards` files (with an index if there is more than one), and
/// `tokenizer_files` as they are (name and contents). What is not quantized is bf16, scales are f16. `config.json` is
/// written last, so that a folder whose writing was broken off is not mistaken for a model.
///
/// Contents depend on the spec, `dense` and `seed` only: every tensor has a random stream of its own, whatever shard it is
/// in. Memory is some MB for any size of model. `progress` hears the bytes of tensors done and in all.
///
/// # Errors
/// [`QuantizeError::Output`] when `out` is not an empty folder, [`QuantizeError::Setting`] for a number of shards that the
/// tensors do not fill, quantization options with `dense`, or a tokenizer file with the name of a file of the model;
/// [`QuantizeError::Format`] and [`QuantizeError::Io`] when something cannot be written.
pub fn synth(
    spec: &SynthSpec,
    out: &Path,
    shards: usize,
    dense: bool,
    seed: u64,
    tokenizer_files: &[(&str, &[u8])],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<SynthReport, QuantizeError> {
    let quantization = spec.quantization(dense)?;
    let tensors = plan::plan(&spec.shape, quantization.as_ref());
    if shards == 0 || shards > tensors.len() {
        let expected = format!("1 to {}, the number of tensors", tensors.len());
        return Err(QuantizeError::setting("shards", expected, shards.to_string(), "choose another number"));
    }
    check_names(tokenizer_files)?;
    prepare(out)?;

    let total: u64 = tensors.iter().map(Planned::bytes).sum();
    let contents = Contents { quantization, seed };
    let mut synthesizer = Synthesizer { contents, buffer: Vec::with_capacity(CHUNK), done: 0, total, progress };
    let mut files = vec![];
    let mut map = Map::new();
    for (i, shard) in split(&tensors, shards, total).into_iter().enumerate() {
        let name = match shards {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{:05}-of-{shards:05}.safetensors", i + 1),
        };
        let specs: Vec<_> = shard.iter().map(Planned::spec).collect();
        let mut writer = SafetensorsWriter::create(&out.join(&name), &specs)?;
        for tensor in shard {
            synthesizer.write(tensor, &mut writer)?;
            map.insert(tensor.name.clone(), name.clone().into());
        }
        writer.finish()?;
        files.push(name);
    }
    if shards > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        write_json(out, "model.safetensors.index.json", &index)?;
    }
    for (name, bytes) in tokenizer_files {
        write_file(out, name, bytes)?;
    }
    let special = configs::Special::find(tokenizer_files, spec.shape.vocab);
    if let Some(q) = &quantization {
        write_json(out, "quantize_config.json", &configs::quantize(q))?;
    }
    write_json(out, "generation_config.json", &configs::generation(&special))?;
    write_json(out, "config.json", &configs::model(&spec.shape, quantization.as_ref(), &special))?;
    Ok(SynthReport { files, tensors: tensors.len(), bytes: total })
}

/// Tokenizer files must be plain names that no file of the model has.
fn check_names(files: &[(&str, &[u8])]) -> Result<(), QuantizeError> {
    for (i, (name, _)) in files.iter().enumerate() {
        let plain = !name.is_empty() && *name != "." && *name != ".." && !name.contains(['/', '\\', ':', '\0']);
        let ours = name.contains(".safetensors") || ["config.json", "quantize_config.json", "generation_config.json"].contains(name);
        if !plain || ours || files[..i].iter().any(|(other, _)| other == name) {
            let expected = "plain file names, each once, that are not those of the model's own files";
            return Err(QuantizeError::setting("tokenizer files", expected, format!("`{name}`"), "pass tokenizer files only"));
        }
    }
    Ok(())
}

/// Makes sure that `out` is an empty folder.
fn prepare(out: &Path) -> Result<(), QuantizeError> {
    let refuse = |found: String| QuantizeError::Output {
        path: out.display().to_string(),
        expected: "an empty folder, or nothing".into(),
        found,
        remedy: "choose another folder, or empty this one: nothing is overwritten".into(),
    };
    if out.is_file() {
        return Err(refuse("a file".into()));
    }
    std::fs::create_dir_all(out).map_err(|e| QuantizeError::io(out, e))?;
    match std::fs::read_dir(out).map_err(|e| QuantizeError::io(out, e))?.next() {
        None => Ok(()),
        Some(Ok(entry)) => Err(refuse(format!("`{}` in it", entry.file_name().display()))),
        Some(Err(e)) => Err(QuantizeError::io(out, e)),
    }
}

/// Cuts the tensors into parts of about the same size, none of them empty.
fn split(tensors: &[Planned], shards: usize, total: u64) -> Vec<&[Planned]> {
    let mut parts = vec![];
    let (mut start, mut end, mut bytes) = (0, 0, 0u64);
    for shard in 1..=shards {
        let target = (u128::from(total) * shard as u128 / shards as u128) as u64;
        let last = tensors.len() - (shards - shard);
        // a tensor goes where most of it lies
        while end < last && (end == start || shard == shards || bytes + tensors[end].bytes() / 2 <= target) {
            bytes += tensors[end].bytes();
            end += 1;
        }
        parts.push(&tensors[start..end]);
        start = end;
    }
    parts
}

fn write_json(out: &Path, name: &str, value: &Value) -> Result<(), QuantizeError> {
    write_file(out, name, format!("{value:#}\n").as_bytes())
}

fn write_file(out: &Path, name: &str, bytes: &[u8]) -> Result<(), QuantizeError> {
    let path = out.join(name);
    std::fs::write(&path, bytes).map_err(|e| QuantizeError::io(&path, e))
}

/// Writes contents, a buffer at a time.
struct Synthesizer<'a> {
    contents: Contents,
    buffer: Vec<u8>,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Synthesizer<'_> {
    fn write(&mut self, tensor: &Planned, writer: &mut SafetensorsWriter) -> Result<(), QuantizeError> {
        let mut put = |piece: &[u8]| {
            writer.write(&tensor.name, piece)?;
            self.done += piece.len() as u64;
            (self.progress)(self.done, self.total);
            Ok(())
        };
        if !tensor.is_addressable() {
            return self.contents.sequence(tensor, &mut put);
        }
        for from in (0..tensor.bytes()).step_by(CHUNK) {
            self.buffer.resize((tensor.bytes() - from).min(CHUNK as u64) as usize, 0);
            self.contents.fill(tensor, from, &mut self.buffer);
            put(&self.buffer)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_even_and_never_empty() {
        let spec: SynthSpec = "tiny".parse().unwrap();
        let tensors = plan::plan(&spec.shape, spec.quantization(false).unwrap().as_ref());
        let total: u64 = tensors.iter().map(Planned::bytes).sum();
        for shards in [1, 2, 3, 7, tensors.len()] {
            let parts = split(&tensors, shards, total);
            assert_eq!(parts.len(), shards);
            assert!(parts.iter().all(|p| !p.is_empty()));
            assert_eq!(parts.concat().len(), tensors.len());
        }
    }

    #[test]
    fn tokenizer_files_stay_in_their_place() {
        let files = |names: &[&'static str]| names.iter().map(|n| (*n, &b"x"[..])).collect::<Vec<_>>();
        check_names(&files(&["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])).unwrap();
        for names in [&["config.json"][..], &["../x"], &[""], &["a/b"], &["model.safetensors.index.json"], &["x.safetensors"], &["a", "a"]]
        {
            assert!(check_names(&files(names)).is_err(), "{names:?}");
        }
    }
}
