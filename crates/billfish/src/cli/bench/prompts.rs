//! Prompts to send a server: random ones, or those of a file in the forms that vLLM's benchmarks read.

use anyhow::{Context, Result, bail, ensure};
use billfish::bench::wire::Target;
use billfish::bench::{random_tokens, seed_of};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where prompts come from.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dataset {
    /// Tokens without a pattern
    Random,
    /// First turns of conversations in a JSON file: [{"conversations": [{"value": "…"}, {"value": "…"}]}]
    Sharegpt,
    /// Lines of JSON: {"prompt": "…"}, with "output_tokens" if a line wants its own
    Custom,
}

impl Dataset {
    fn name(self) -> &'static str {
        match self {
            Dataset::Random => "random",
            Dataset::Sharegpt => "sharegpt",
            Dataset::Custom => "custom",
        }
    }
}

#[derive(clap::Args)]
pub struct PromptArgs {
    /// Where prompts come from
    #[arg(long, value_enum, default_value = "random")]
    dataset_name: Dataset,
    /// File of the prompts, for all but random ones
    #[arg(long)]
    dataset_path: Option<PathBuf>,
    /// Take the prompts of a file from the beginning instead of in an order by the seed
    #[arg(long)]
    disable_shuffle: bool,
    /// Tokens of each random prompt [default: 1024]
    #[arg(long, visible_alias = "input-len", value_parser = clap::value_parser!(u32).range(1..))]
    random_input_len: Option<u32>,
    /// Tokens to generate for each random prompt [default: 128]
    #[arg(long, visible_alias = "output-len", value_parser = clap::value_parser!(u32).range(1..))]
    random_output_len: Option<u32>,
    /// Spread both lengths evenly from (1 - R) to (1 + R) times what they are [default: 0]
    #[arg(long, value_name = "R")]
    random_range_ratio: Option<f64>,
    /// Tokens before each random prompt that are the same in all [default: 0]
    #[arg(long)]
    random_prefix_len: Option<u32>,
    /// Tokens to generate for each conversation [default: as many as its answer has]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    sharegpt_output_len: Option<u32>,
    /// Tokens to generate for a line that does not say [default: 256]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    custom_output_len: Option<u32>,
}

/// A prompt, and how many tokens to generate.
#[derive(Clone)]
pub struct Prompt {
    /// Text or tokens.
    pub prompt: Value,
    /// Tokens to generate.
    pub output: usize,
}

/// Words of one token in most vocabularies.
const WORDS: [&str; 16] =
    ["the", "house", "water", "man", "day", "old", "king", "tree", "said", "little", "went", "good", "and", "there", "white", "night"];

/// How long a server may take for a short question.
pub const SOON: Duration = Duration::from_secs(30);

impl PromptArgs {
    /// `count` prompts for a model of a server; in `chat` they are texts.
    ///
    /// # Errors
    /// A file that cannot be read or has other contents, options that do not go together.
    pub fn prompts(&self, target: &Target, model: &str, chat: bool, count: usize, seed: u64) -> Result<Vec<Prompt>> {
        self.check()?;
        if self.dataset_name == Dataset::Random {
            return self.random(target, model, chat, count, seed);
        }
        let name = self.dataset_name.name();
        let Some(path) = &self.dataset_path else { bail!("--dataset-name {name}: give its file with --dataset-path") };
        let text = std::fs::read_to_string(path).with_context(|| format!("{}: the prompts cannot be read", path.display()))?;
        let mut all = match self.dataset_name {
            Dataset::Sharegpt => self.conversations(&text, path)?,
            _ => self.lines(&text, path)?,
        };
        ensure!(!all.is_empty(), "{}: expected prompts, found none", path.display());
        if !self.disable_shuffle {
            for (i, unit) in random_tokens(all.len(), 1 << 30, seed ^ 0xf11e).into_iter().enumerate().skip(1) {
                all.swap(i, (unit as usize * (i + 1)) >> 30);
            }
        }
        all.truncate(count);
        let counted = |(prompt, output): (String, Output)| {
            let output = match output {
                Output::Tokens(n) => n,
                Output::AsLongAs(answer) => tokens(target, model, &answer)
                    .context("the server does not tell how many tokens an answer has (/tokenize); give --sharegpt-output-len")?
                    .len()
                    .max(1),
            };
            Ok(Prompt { prompt: prompt.into(), output })
        };
        let chosen = all.into_iter().map(counted).collect::<Result<Vec<Prompt>>>()?;
        // a file of fewer prompts is gone through again
        Ok(chosen.iter().cycle().take(count).cloned().collect())
    }

    /// That each option given is one of the dataset.
    fn check(&self) -> Result<()> {
        use Dataset::{Custom, Random, Sharegpt};
        let options: [(bool, &str, &[Dataset]); 8] = [
            (self.dataset_path.is_some(), "--dataset-path", &[Sharegpt, Custom]),
            (self.disable_shuffle, "--disable-shuffle", &[Sharegpt, Custom]),
            (self.random_input_len.is_some(), "--random-input-len", &[Random]),
            (self.random_output_len.is_some(), "--random-output-len", &[Random]),
            (self.random_range_ratio.is_some(), "--random-range-ratio", &[Random]),
            (self.random_prefix_len.is_some(), "--random-prefix-len", &[Random]),
            (self.sharegpt_output_len.is_some(), "--sharegpt-output-len", &[Sharegpt]),
            (self.custom_output_len.is_some(), "--custom-output-len", &[Custom]),
        ];
        for (given, option, of) in options {
            let names = || of.iter().map(|d| d.name()).collect::<Vec<_>>().join(" or ");
            let found = self.dataset_name.name();
            ensure!(
                !given || of.contains(&self.dataset_name),
                "{option}: it is for --dataset-name {}, found {found}; leave one out",
                names()
            );
        }
        Ok(())
    }

    fn random(&self, target: &Target, model: &str, chat: bool, count: usize, seed: u64) -> Result<Vec<Prompt>> {
        let ratio = self.random_range_ratio.unwrap_or(0.0);
        let (input_len, output_len) = (self.random_input_len.unwrap_or(1024), self.random_output_len.unwrap_or(128));
        ensure!((0.0..1.0).contains(&ratio), "--random-range-ratio: expected a number from 0 to below 1, found {ratio}");
        // prompts of tokens have exactly as many as asked for
        let vocabulary = if chat { None } else { tokens(target, model, &WORDS.join(" ")).filter(|t| !t.is_empty()) };
        let lengths = random_tokens(2 * count, 1 << 20, seed ^ 0x1e46);
        let length = |middle: u32, unit: u32| {
            let (low, high) = (f64::from(middle) * (1.0 - ratio), f64::from(middle) * (1.0 + ratio));
            ((low.floor() + (high.ceil() - low.floor() + 1.0) * f64::from(unit) / f64::from(1 << 20)) as usize).max(1)
        };
        let prefix = random_tokens(self.random_prefix_len.unwrap_or(0) as usize, 1 << 30, seed ^ 0x9ef1);
        let one = |i: usize| {
            let (input, output) = if ratio > 0.0 {
                (length(input_len, lengths[2 * i]), length(output_len, lengths[2 * i + 1]))
            } else {
                (input_len as usize, output_len as usize)
            };
            let own = random_tokens(input, 1 << 30, seed_of(seed, i));
            let all = prefix.iter().chain(&own).map(|t| *t as usize);
            let prompt = match &vocabulary {
                Some(tokens) => all.map(|t| tokens[t % tokens.len()]).collect(),
                None => all.map(|t| WORDS[t % WORDS.len()]).collect::<Vec<_>>().join(" ").into(),
            };
            Prompt { prompt, output }
        };
        Ok((0..count).map(one).collect())
    }

    fn conversations(&self, text: &str, path: &Path) -> Result<Vec<(String, Output)>> {
        let wrong = || format!(r#"{}: expected [{{"conversations": [{{"value": "…"}}, …]}}, …]"#, path.display());
        let all: Vec<Value> = serde_json::from_str(text).with_context(wrong)?;
        let mut out = vec![];
        for entry in &all {
            let turns = entry["conversations"].as_array().with_context(wrong)?;
            // without an answer there is no telling how long one is
            let (Some(prompt), Some(answer)) = (turns.first(), turns.get(1)) else { continue };
            let [prompt, answer] = [prompt, answer].map(|turn| turn["value"].as_str());
            let output = match self.sharegpt_output_len {
                Some(n) => Output::Tokens(n as usize),
                None => Output::AsLongAs(answer.with_context(wrong)?.to_owned()),
            };
            out.push((prompt.with_context(wrong)?.to_owned(), output));
        }
        Ok(out)
    }

    fn lines(&self, text: &str, path: &Path) -> Result<Vec<(String, Output)>> {
        let one = |(i, line): (usize, &str)| {
            let wrong = || format!(r#"{}: line {}: expected {{"prompt": "…"}}"#, path.display(), i + 1);
            let value: Value = serde_json::from_str(line).with_context(wrong)?;
            let output = match &value["output_tokens"] {
                Value::Null => self.custom_output_len.unwrap_or(256) as usize,
                n => n.as_u64().filter(|n| *n > 0).with_context(|| format!("{}: output_tokens above 0, found {n}", wrong()))? as usize,
            };
            Ok((value["prompt"].as_str().with_context(wrong)?.to_owned(), Output::Tokens(output)))
        };
        text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(one).collect()
    }
}

/// How much to generate.
enum Output {
    Tokens(usize),
    AsLongAs(String),
}

/// The tokens of a text, if the server tells them.
fn tokens(target: &Target, model: &str, text: &str) -> Option<Vec<u64>> {
    let body = json!({"model": model, "prompt": text, "add_special_tokens": false}).to_string();
    let answer = target.send("/tokenize", Some(&body), SOON).ok().filter(|a| a.status == 200)?;
    let value: Value = serde_json::from_str(&answer.text().ok()?).ok()?;
    value["tokens"].as_array()?.iter().map(Value::as_u64).collect()
}
