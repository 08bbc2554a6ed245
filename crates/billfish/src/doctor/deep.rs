//! A forward pass over a short text, under both readings of the zero points where there are two.

use super::findings::{Finding, Findings};
use crate::{Error, OpenOptions};
use billfish_engine::{Request, SamplingParams, Session};
use billfish_formats::{Checkpoint, CheckpointFormat, ModuleReport, ZeroDialect, ZeroLabel};
use billfish_models::Model;
use billfish_quantize::surprises;
use billfish_text::Tokenizer;
use std::sync::Arc;

/// Plain English that leans on no topic.
const TEXT: &str = "The sun was shining, and there was a little house near the big tree. She opened the door and went out to play \
                    with her friends. When it was time to go home, they were all very happy. He said that he would come back the \
                    next day, and she gave him a big smile.";
/// Tokens that run at most.
const MOST: usize = 256;
/// Tokens of the continuation.
const CONTINUED: usize = 32;
/// Nats for each token by which one reading must be better, beside three standard errors of the difference.
const MARGIN: f64 = 0.1;
/// Nats for each token by which a model must beat guessing before its text is believed: random weights favour either
/// reading by chance.
const LANGUAGE: f64 = 0.5;

const SUBJECT: &str = "forward pass";

/// What a model made of the text.
struct Outcome {
    label: String,
    /// The surprise of each token, in nats.
    surprises: Vec<f64>,
    /// Different tokens of a greedy continuation; `None` without a tokenizer.
    distinct: Option<usize>,
    /// Bytes of packed weights.
    bytes: usize,
    vocabulary: usize,
}

impl Outcome {
    fn mean(&self) -> f64 {
        self.surprises.iter().sum::<f64>() / self.surprises.len().max(1) as f64
    }

    fn words(&self) -> String {
        let tokens = self.surprises.len();
        let mut text = format!("{:.3} nats a token over {tokens} tokens {}", self.mean(), self.label);
        if let Some(distinct) = self.distinct {
            text += &format!(" ({distinct} different tokens in a greedy continuation of {CONTINUED})");
        }
        text
    }
}

/// Runs the folder. A folder that does not load is a finding, too.
pub(super) fn examine(
    checkpoint: &Checkpoint,
    modules: &[ModuleReport],
    tokenizer: Option<&Tokenizer>,
    options: &OpenOptions,
    found: &mut Findings,
) {
    let read = match run(checkpoint, "as read", tokenizer, options) {
        Ok(outcome) => outcome,
        Err(e) => {
            return found.error(SUBJECT, e.to_string(), "the folder cannot be run, or gives no numbers", "do what the message says");
        }
    };
    let chance = (read.vocabulary as f64).ln();
    if tokenizer.is_some() && read.mean() >= chance {
        let evidence = format!("{}; guessing costs {chance:.3}", read.words());
        let consequence = "what it writes has nothing to do with language";
        let remedy = "if the weights are not random, quantize the model again or use another checkpoint of it";
        found.warning(SUBJECT, evidence, consequence, remedy);
    }
    let memory = format!("{:.1} MB of packed weights", read.bytes as f64 / 1e6);
    let stored = modules.iter().filter(|m| m.zeros != ZeroDialect::Absent);
    let gptq: Vec<&ModuleReport> = stored.filter(|m| matches!(m.format, CheckpointFormat::Gptq | CheckpointFormat::GptqV2)).collect();
    if gptq.is_empty() {
        let evidence = format!("{}, {memory}; its zero points have one reading only", read.words());
        return found.note(SUBJECT, evidence, "the numbers are those of the only reading", "nothing to do");
    }
    let others: Vec<ZeroLabel> = [ZeroLabel::V1, ZeroLabel::V2]
        .into_iter()
        .filter(|label| gptq.iter().any(|m| (m.zeros == ZeroDialect::V2) != (*label == ZeroLabel::V2)))
        .collect();
    for label in others {
        let other = reopened(checkpoint, label).and_then(|c| run(&c, &format!("as {label}"), tokenizer, options));
        found.0.push(match other {
            Ok(other) => compared(&read, &other, label, tokenizer.is_some(), &memory),
            Err(e) => note(format!("{}, {memory}; as {label} it does not run: {e}", read.words())),
        });
    }
}

fn reopened(checkpoint: &Checkpoint, label: ZeroLabel) -> Result<Checkpoint, Error> {
    let Some(path) = checkpoint.path() else {
        return Err(Error::File {
            file: checkpoint.name().into(),
            expected: "a folder on disk".into(),
            found: "files in memory".into(),
            remedy: "examine the folder that they came from".into(),
        });
    };
    Ok(Checkpoint::open(path)?.with_zeros(Some(label))?)
}

/// Loads and runs a folder.
fn run(checkpoint: &Checkpoint, label: &str, tokenizer: Option<&Tokenizer>, options: &OpenOptions) -> Result<Outcome, Error> {
    let model = Model::load(checkpoint, Arc::new(options.backend()?), options.load_options(), &mut |_| ())?;
    let vocabulary = model.config().vocab_size;
    let context = model.config().max_position_embeddings.unwrap_or(MOST + CONTINUED);
    let tokenizer = tokenizer.filter(|t| t.vocab_size() <= vocabulary);
    let mut ids = match tokenizer {
        Some(tokenizer) => tokenizer.encode_prompt(TEXT)?,
        // steps by a prime, so that the ids repeat in vocabularies of a few tokens only
        None => (0..64).map(|i| (i * 7919 + 11) % vocabulary.max(1) as u32).collect(),
    };
    ids.truncate(MOST.min(context.saturating_sub(CONTINUED).max(2)));
    let surprises = surprises(&model, &ids)?;
    let distinct = tokenizer.map(|t| continued(&model, t, &ids)).transpose()?;
    let bytes = model.modules().iter().map(|m| m.bytes).sum();
    Ok(Outcome { label: label.into(), surprises, distinct, bytes, vocabulary })
}

/// Different tokens in a greedy continuation: a broken model repeats one.
fn continued(model: &Model, tokenizer: &Tokenizer, prompt: &[u32]) -> Result<usize, Error> {
    let request = Request { prompt, sampling: SamplingParams::greedy(), max_tokens: CONTINUED, stop: &[], ignore_eos: true, cancel: None };
    let mut tokens = Session::new(model, tokenizer).generate(&request, &mut |_| ())?.tokens;
    tokens.sort_unstable();
    tokens.dedup();
    Ok(tokens.len())
}

/// Which of two readings is the better one, token by token.
fn compared(read: &Outcome, other: &Outcome, label: ZeroLabel, language: bool, memory: &str) -> Finding {
    let n = read.surprises.len().max(2) as f64;
    let gains: Vec<f64> = read.surprises.iter().zip(&other.surprises).map(|(a, b)| a - b).collect();
    let mean = gains.iter().sum::<f64>() / n;
    let error = (gains.iter().map(|g| (g - mean) * (g - mean)).sum::<f64>() / (n - 1.0) / n).sqrt();
    let numbers = format!("{}, {}; difference {mean:+.3} ± {error:.3}, {memory}", read.words(), other.words());
    if !language {
        return note(format!("{numbers}; without a tokenizer no text can be judged"));
    }
    let chance = (read.vocabulary as f64).ln();
    if read.mean().min(other.mean()) > chance - LANGUAGE {
        return note(format!("{numbers}; neither beats guessing ({chance:.3}) clearly, so they tell nothing"));
    }
    if mean > MARGIN && mean > 3.0 * error {
        let mut found = Findings::default();
        let consequence = "the model is run with every zero point one step off";
        found.error(SUBJECT, numbers, consequence, &format!("read it with `--zeros {label}`, and write a copy so with `--fix OUT`"));
        return found.0.remove(0);
    }
    let better =
        if -mean > MARGIN && -mean > 3.0 * error { "the reading in use is the better one" } else { "the two are too near to tell" };
    note(format!("{numbers}: {better}"))
}

fn note(evidence: String) -> Finding {
    let mut found = Findings::default();
    found.note(SUBJECT, evidence, "nothing is wrong as far as a short text shows", "nothing to do");
    found.0.remove(0)
}
