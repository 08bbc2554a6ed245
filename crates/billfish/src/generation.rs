//! `generation_config.json`: how a model's authors want it sampled.

use crate::Error;
use billfish_engine::{EngineError, SamplingParams};
use billfish_formats::Checkpoint;
use serde_json::{Map, Value};

/// Keys that are read elsewhere or say nothing about how tokens are chosen here.
const HARMLESS: [&str; 15] = [
    "_from_model_config",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "transformers_version",
    "chat_format",
    "max_new_tokens",
    "max_length",
    "max_window_size",
    "min_length",
    "num_return_sequences",
    "output_attentions",
    "return_dict_in_generate",
    "use_cache",
];

/// Sampling as the file says, and a warning that names the keys that are not followed. What it leaves open is temperature
/// 0.8, top-p 0.95; an explicit `do_sample: false` is temperature 0.
pub(crate) fn sampling(checkpoint: &Checkpoint) -> Result<(SamplingParams, Option<String>), Error> {
    let empty = Map::new();
    let config = checkpoint.generation_config().unwrap_or(&empty);
    let mut left: Vec<&str> = config.iter().filter(|(_, v)| !v.is_null()).map(|(k, _)| k.as_str()).collect();
    left.retain(|k| !HARMLESS.contains(k));
    let wrong = |key: &str, expected: &str, found: &Value| Error::File {
        file: format!("{}/generation_config.json", checkpoint.name()),
        expected: format!("{expected} for `{key}`"),
        found: found.to_string().chars().take(200).collect(),
        remedy: "correct the key or remove it".into(),
    };
    let mut number = |key: &str, default: f32| {
        left.retain(|k| *k != key);
        match config.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(v) => v.as_f64().map(|v| v as f32).ok_or_else(|| wrong(key, "a number", v)),
        }
    };
    let mut params = SamplingParams {
        temperature: number("temperature", 0.8)?,
        top_k: number("top_k", 0.0)? as usize,
        top_p: number("top_p", 0.95)?,
        min_p: number("min_p", 0.0)?,
        repetition_penalty: number("repetition_penalty", 1.0)?,
        ..SamplingParams::default()
    };
    left.retain(|k| *k != "do_sample");
    match config.get("do_sample") {
        Some(Value::Bool(false)) => params.temperature = 0.0,
        None | Some(Value::Null | Value::Bool(true)) => {}
        Some(v) => return Err(wrong("do_sample", "true or false", v)),
    }
    params.validate().map_err(EngineError::from)?;
    let warning = (!left.is_empty()).then(|| format!("generation_config.json: these keys are not followed: {}", left.join(", ")));
    Ok((params, warning))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(generation: &'static str) -> Result<(SamplingParams, Option<String>), Error> {
        let header: &'static [u8] = b"\x02\0\0\0\0\0\0\0{}";
        let files = [("config.json", &b"{}"[..]), ("model.safetensors", header), ("generation_config.json", generation.as_bytes())];
        sampling(&Checkpoint::from_memory("m", &files).unwrap())
    }

    #[test]
    fn the_file_decides_and_what_it_leaves_open_has_a_default() {
        let (p, warning) = read(r#"{"temperature": 0.6, "top_k": 20, "eos_token_id": [1, 2]}"#).unwrap();
        assert_eq!((p.temperature, p.top_k, p.top_p, warning), (0.6, 20, 0.95, None));
        assert_eq!(read(r#"{"do_sample": false, "temperature": 0.6}"#).unwrap().0.temperature, 0.0);
    }

    #[test]
    fn what_is_not_followed_is_named() {
        let warning = read(r#"{"no_repeat_ngram_size": 3, "typical_p": 0.5, "top_p": null}"#).unwrap().1.unwrap();
        assert!(warning.contains("no_repeat_ngram_size, typical_p"), "{warning}");
        for bad in [r#"{"temperature": "hot"}"#, r#"{"temperature": -1}"#, r#"{"do_sample": 1}"#] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
