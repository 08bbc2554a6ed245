//! What chat and text completions have in common: how to generate.

use crate::app::App;
use crate::error::ApiError;
use crate::fields::{Field, Fields, Rule, expected, number, strings, tokens};
use crate::grammar::Form;
use crate::ids;
use billfish_engine::{SamplingParams, Submission};
use serde_json::Value;

/// Most stop strings, and the bytes of the longest.
const MOST_STOPS: usize = 64;
const LONGEST_STOP: usize = 1024;
/// Most entries of `logit_bias`, `stop_token_ids`, `bad_words`.
const MOST_ENTRIES: usize = 1024;
/// Most choices of one prompt.
const MOST_N: usize = 128;

/// Fields of both kinds of request.
pub(crate) const SHARED: &[Field] = &[
    ("model", Rule::Used),
    ("stream", Rule::Used),
    ("stream_options", Rule::Used),
    ("temperature", Rule::Used),
    ("top_p", Rule::Used),
    ("top_k", Rule::Used),
    ("min_p", Rule::Used),
    ("n", Rule::Used),
    ("seed", Rule::Used),
    ("stop", Rule::Used),
    ("presence_penalty", Rule::Used),
    ("frequency_penalty", Rule::Used),
    ("repetition_penalty", Rule::Used),
    ("logit_bias", Rule::Used),
    ("max_tokens", Rule::Used),
    ("min_tokens", Rule::Used),
    ("ignore_eos", Rule::Used),
    ("stop_token_ids", Rule::Used),
    ("include_stop_str_in_output", Rule::Used),
    ("skip_special_tokens", Rule::Used),
    ("bad_words", Rule::Used),
    ("allowed_token_ids", Rule::Used),
    ("prompt_logprobs", Rule::Used),
    ("logprobs", Rule::Used),
    ("truncate_prompt_tokens", Rule::Used),
    ("priority", Rule::Used),
    ("request_id", Rule::Used),
    ("cache_salt", Rule::Used),
    ("return_token_ids", Rule::Used),
    ("add_special_tokens", Rule::Used),
    ("response_format", Rule::Used),
    ("structured_outputs", Rule::Used),
    // labels, hints about speed and billing: answers are the same with and without
    ("user", Rule::Harmless),
    ("metadata", Rule::Harmless),
    ("store", Rule::Harmless),
    ("service_tier", Rule::Harmless),
    ("safety_identifier", Rule::Harmless),
    ("prompt_cache_key", Rule::Harmless),
    ("prompt_cache_retention", Rule::Harmless),
    ("prediction", Rule::Harmless),
    ("cache_prompt", Rule::Harmless),
    ("reasoning_effort", Rule::Harmless),
    ("verbosity", Rule::Harmless),
    // what happens anyway may be said
    ("use_beam_search", Rule::Only(&["false"])),
    ("length_penalty", Rule::Only(&["1.0"])),
    ("early_stopping", Rule::Only(&["false"])),
    ("spaces_between_special_tokens", Rule::Only(&["true"])),
    ("typical_p", Rule::Only(&["1.0"])),
    ("dry_multiplier", Rule::Only(&["0"])),
    ("xtc_probability", Rule::Only(&["0"])),
    ("mirostat", Rule::Only(&["0"])),
    ("id_slot", Rule::Only(&["-1"])),
    ("timings_per_token", Rule::Only(&["false"])),
    ("samplers", Rule::Refused("the order is fixed: bias, penalties, mask, temperature, top_k, top_p, min_p")),
    ("n_predict", Rule::Refused("use `max_tokens`")),
    ("logits_processors", Rule::Refused("the server runs no code of clients")),
];

/// How to generate, as a request says.
pub(crate) struct Params {
    pub sampling: SamplingParams,
    pub n: usize,
    pub min_tokens: usize,
    pub stop: Vec<String>,
    pub include_stop: bool,
    pub stop_token_ids: Vec<u32>,
    pub ignore_eos: bool,
    pub skip_special_tokens: bool,
    pub prompt_logprobs: Option<usize>,
    pub truncate: Option<usize>,
    pub priority: i64,
    pub cache_salt: Option<String>,
    pub return_token_ids: bool,
    pub stream: Option<StreamOptions>,
    /// The request's name, if it has one.
    pub request_id: Option<String>,
    /// The form of the answer, if it has one.
    pub form: Option<Form>,
}

/// How a stream is to look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamOptions {
    pub usage: bool,
    /// Usage in every chunk.
    pub continuous: bool,
}

impl Params {
    /// Reads the shared fields.
    pub fn read(app: &App, f: &Fields<'_>) -> Result<Params, ApiError> {
        let default = &app.model.sampling;
        let float = |v: Option<f64>, default: f32| v.map_or(default, |v| v as f32);
        let vocab = app.model.vocab_size;
        let top_k = f.integer("top_k", -1..=i64::MAX)?.map_or(default.top_k, |k| k.max(0) as usize);
        let above_zero = |name, most: f64, default: f32| match f.number(name, 0.0..=most)? {
            Some(0.0) => Err(ApiError::field(name, format!("`{name}`: expected a number above 0 and up to {most}, found 0"))),
            // the least there is in single precision
            value => Ok(float(value, default).max(f32::MIN_POSITIVE)),
        };
        let top_p = above_zero("top_p", 1.0, default.top_p)?;
        let repetition_penalty = above_zero("repetition_penalty", 100.0, default.repetition_penalty)?;
        let logit_bias = logit_bias(f, vocab)?;
        let mut allowed_tokens = f.array("allowed_token_ids")?.map(|list| tokens("allowed_token_ids", list, vocab)).transpose()?;
        let banned = bad_words(app, f)?;
        if !banned.is_empty() {
            let allowed = allowed_tokens.unwrap_or_else(|| (0..vocab as u32).collect());
            allowed_tokens = Some(allowed.into_iter().filter(|t| !banned.contains(t)).collect());
        }
        if allowed_tokens.as_ref().is_some_and(Vec::is_empty) {
            return Err(ApiError::field("allowed_token_ids", "`allowed_token_ids`: expected at least one token, found none"));
        }
        let sampling = SamplingParams {
            temperature: float(f.number("temperature", 0.0..=2.0)?, default.temperature),
            top_k,
            top_p,
            min_p: float(f.number("min_p", 0.0..=1.0)?, default.min_p),
            repetition_penalty,
            presence_penalty: float(f.number("presence_penalty", -2.0..=2.0)?, default.presence_penalty),
            frequency_penalty: float(f.number("frequency_penalty", -2.0..=2.0)?, default.frequency_penalty),
            logit_bias,
            allowed_tokens,
            seed: f.integer("seed", i64::MIN..=i64::MAX)?.map_or_else(ids::seed, |s| s as u64),
        };
        let stop_token_ids = match f.array("stop_token_ids")? {
            Some(list) => tokens("stop_token_ids", at_most("stop_token_ids", list, MOST_ENTRIES)?, vocab)?,
            None => vec![],
        };
        let prompt_logprobs = f.count("prompt_logprobs", 0..=app.config.max_logprobs)?;
        let stream = stream_options(f)?;
        // with `echo`, logprobs of the prompt are part of the stream
        if stream.is_some() && prompt_logprobs.is_some() {
            return Err(ApiError::unsupported("prompt_logprobs", "`prompt_logprobs` is not available with `stream`"));
        }
        Ok(Params {
            sampling,
            n: f.count("n", 1..=MOST_N)?.unwrap_or(1),
            min_tokens: f.count("min_tokens", 0..=usize::MAX)?.unwrap_or(0),
            stop: stops(f)?,
            include_stop: f.flag("include_stop_str_in_output")?,
            stop_token_ids,
            ignore_eos: f.flag("ignore_eos")?,
            skip_special_tokens: f.bool("skip_special_tokens")?.unwrap_or(true),
            prompt_logprobs,
            truncate: f.count("truncate_prompt_tokens", 1..=app.model.max_model_len)?,
            priority: f.integer("priority", i64::MIN..=i64::MAX)?.unwrap_or(0),
            cache_salt: salt(f)?,
            return_token_ids: f.flag("return_token_ids")?,
            stream,
            request_id: request_id(f)?,
            form: Form::read(f)?,
        })
    }

    /// The prompt that is left of one that may be cut.
    pub fn cut(&self, mut prompt: Vec<u32>) -> Vec<u32> {
        if let Some(n) = self.truncate.filter(|n| prompt.len() > *n) {
            // the end is what is to be continued
            prompt.drain(..prompt.len() - n);
        }
        prompt
    }

    /// The tokens that each choice may have, after the prompt's length is known. `asked` is what the request says, and where;
    /// `source` is the field that holds the prompt.
    pub fn room(app: &App, prompt: usize, asked: Option<(usize, &str)>, source: &str) -> Result<usize, ApiError> {
        let most = app.model.max_model_len;
        let rest = most.saturating_sub(prompt);
        if rest == 0 {
            let message = format!("this model takes {most} tokens; the prompt has {prompt}, which leaves none for an answer");
            return Err(ApiError::context(source, message));
        }
        match asked {
            Some((n, path)) if n > rest => {
                let message = format!(
                    "this model takes {most} tokens; the prompt has {prompt} and `{path}` asks for {n} more; shorten the prompt or ask for less"
                );
                Err(ApiError::context(path, message))
            }
            asked => Ok(asked.map_or(rest, |(n, _)| n)),
        }
    }

    /// What the engine is asked for. `index` is the prompt's place among those of the request.
    pub fn submission(
        &self,
        app: &App,
        prompt: Vec<u32>,
        max_tokens: usize,
        logprobs: Option<usize>,
        index: usize,
    ) -> Result<Submission, ApiError> {
        if self.min_tokens > max_tokens {
            let message = format!("`min_tokens` is {} and there is room for {max_tokens}", self.min_tokens);
            return Err(ApiError::field("min_tokens", message));
        }
        let constraint = self.form.as_ref().map(|form| app.grammars.compile(form)).transpose()?;
        let mut sampling = self.sampling.clone();
        // prompts of one request have streams of their own, as its choices have
        sampling.seed = sampling.seed.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Ok(Submission {
            prompt,
            sampling,
            n: self.n,
            max_tokens,
            min_tokens: self.min_tokens,
            stop: self.stop.clone(),
            include_stop: self.include_stop,
            stop_token_ids: self.stop_token_ids.clone(),
            ignore_eos: self.ignore_eos,
            skip_special_tokens: self.skip_special_tokens,
            logprobs,
            prompt_logprobs: self.prompt_logprobs,
            priority: self.priority,
            deadline: app.config.request_timeout.map(|t| std::time::Instant::now() + t),
            cache_salt: self.cache_salt.clone(),
            constraint,
        })
    }
}

/// A list that is not too long.
fn at_most<'v>(path: &str, list: &'v [Value], most: usize) -> Result<&'v [Value], ApiError> {
    match list.len() {
        n if n > most => Err(ApiError::field(path, format!("`{path}`: expected at most {most} entries, found {n}"))),
        _ => Ok(list),
    }
}

fn stops(f: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let list = match f.get("stop") {
        None => vec![],
        Some(Value::String(s)) => vec![s.clone()],
        Some(Value::Array(list)) => strings("stop", at_most("stop", list, MOST_STOPS)?)?,
        Some(v) => return Err(expected("stop", "a string or an array of strings", v)),
    };
    match list.iter().position(|s| s.is_empty() || s.len() > LONGEST_STOP) {
        Some(i) => {
            let found = list[i].len();
            Err(ApiError::field("stop", format!("`stop`: expected texts of 1 to {LONGEST_STOP} bytes, found one of {found} bytes")))
        }
        None => Ok(list),
    }
}

fn logit_bias(f: &Fields<'_>, vocab: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(map) = f.object("logit_bias")? else { return Ok(vec![]) };
    if map.len() > MOST_ENTRIES {
        return Err(ApiError::field("logit_bias", format!("`logit_bias`: expected at most {MOST_ENTRIES} entries, found {}", map.len())));
    }
    let entry = |(key, value): (&String, &Value)| {
        let path = format!("logit_bias.{key}");
        let token = key.parse::<u32>().ok().filter(|t| (*t as usize) < vocab);
        let token = token.ok_or_else(|| ApiError::field(&path, format!("`{path}`: expected a token id below {vocab}")))?;
        Ok((token, number(&path, value, &(-100.0..=100.0))? as f32))
    };
    map.iter().map(entry).collect()
}

/// Words that must not come: each must be one token, with or without a space before it.
fn bad_words(app: &App, f: &Fields<'_>) -> Result<Vec<u32>, ApiError> {
    let Some(list) = f.array("bad_words")? else { return Ok(vec![]) };
    let mut banned = vec![];
    for word in strings("bad_words", at_most("bad_words", list, MOST_ENTRIES)?)? {
        let word = word.trim_start().to_owned();
        let mut found = false;
        for text in [word.clone(), format!(" {word}")] {
            if let [token] = app.model.tokenizer.encode(&text, false)?[..] {
                banned.push(token);
                found = true;
            }
        }
        if !found {
            let word: String = word.chars().take(80).collect();
            let message = format!("`bad_words`: `{word}` is more than one token; only words of one token can be forbidden");
            return Err(ApiError::unsupported("bad_words", message));
        }
    }
    Ok(banned)
}

fn salt(f: &Fields<'_>) -> Result<Option<String>, ApiError> {
    match f.string("cache_salt")? {
        Some(s) if s.is_empty() || s.len() > 256 => Err(ApiError::field("cache_salt", "`cache_salt`: expected 1 to 256 bytes")),
        s => Ok(s.map(str::to_owned)),
    }
}

fn request_id(f: &Fields<'_>) -> Result<Option<String>, ApiError> {
    let plain = |s: &str| (1..=128).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    match f.string("request_id")? {
        Some(s) if !plain(s) => Err(ApiError::field("request_id", "`request_id`: expected 1 to 128 letters, digits, `-` and `_`")),
        s => Ok(s.map(str::to_owned)),
    }
}

const STREAM_OPTIONS: &[Field] =
    &[("include_usage", Rule::Used), ("continuous_usage_stats", Rule::Used), ("include_obfuscation", Rule::Only(&["false"]))];

/// How to stream; nothing if the answer is to come at once.
fn stream_options(f: &Fields<'_>) -> Result<Option<StreamOptions>, ApiError> {
    let stream = f.flag("stream")?;
    let Some(value) = f.get("stream_options") else {
        return Ok(stream.then_some(StreamOptions { usage: false, continuous: false }));
    };
    if !stream {
        return Err(ApiError::field("stream_options", "`stream_options` needs `stream`: true"));
    }
    let options = Fields::new(value, "stream_options.")?;
    options.check(&[STREAM_OPTIONS], true)?;
    let usage = options.flag("include_usage")?;
    Ok(Some(StreamOptions { usage, continuous: options.flag("continuous_usage_stats")? }))
}
