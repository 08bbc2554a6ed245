//! `billfish eval choice`: questions with several answers.

use super::super::options::{ModelArgs, count_bar};
use super::super::stats::kernels;
use super::text::read_text;
use anyhow::{Result, bail, ensure};
use billfish::LoadedModel;
use billfish_quantize::{Question, choose};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Choice {
    #[command(flatten)]
    model: ModelArgs,
    /// Questions, one JSON object a line: `context`, `choices` (texts that follow the context just as they are) and `answer` (the number of the right one, from 0, or its text)
    #[arg(long)]
    questions: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A question as its line has it.
struct Line {
    context: String,
    choices: Vec<String>,
    answer: usize,
}

impl Line {
    fn parse(file: &Path, number: usize, text: &str) -> Result<Self> {
        let wrong = |expected: &str, found: String| {
            anyhow::anyhow!("{}: line {number}: expected {expected}, found {found}; mend the line or take it out", file.display())
        };
        let value: Value = serde_json::from_str(text).map_err(|e| wrong("a JSON object", e.to_string()))?;
        let Some(context) = value["context"].as_str().filter(|c| !c.is_empty()) else {
            return Err(wrong("a text `context`", value["context"].to_string()));
        };
        let texts = |list: &Vec<Value>| list.iter().map(|v| v.as_str().filter(|t| !t.is_empty()).map(String::from)).collect();
        let choices: Option<Vec<String>> = value["choices"].as_array().and_then(texts);
        let Some(choices) = choices.filter(|c| c.len() > 1) else {
            return Err(wrong("two or more texts as `choices`", value["choices"].to_string()));
        };
        let answer = match &value["answer"] {
            Value::String(text) => choices.iter().position(|c| c == text),
            number => number.as_u64().map(|n| n as usize).filter(|&n| n < choices.len()),
        };
        let Some(answer) = answer else { return Err(wrong("the number or the text of a choice as `answer`", value["answer"].to_string())) };
        Ok(Self { context: context.into(), choices, answer })
    }

    fn question(&self, loaded: &LoadedModel) -> Result<Question> {
        let encode = |text: &str| loaded.tokenizer.encode(text, true);
        let choices = self.choices.iter().map(|c| encode(&format!("{}{c}", self.context))).collect::<Result<_, _>>()?;
        let bytes = self.choices.iter().map(String::len).collect();
        Ok(Question { context: encode(&self.context)?, choices, bytes, answer: self.answer })
    }
}

pub fn run(args: &Choice) -> Result<()> {
    let text = read_text(&args.questions)?;
    let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    let lines: Vec<Line> = lines.map(|(i, l)| Line::parse(&args.questions, i + 1, l)).collect::<Result<_>>()?;
    if lines.is_empty() {
        bail!("{}: expected questions, found none; give one JSON object a line", args.questions.display());
    }
    let loaded = args.model.load()?;
    let bar = count_bar("questions", lines.len());
    let (mut right, mut right_per_byte) = (0, 0);
    for line in &lines {
        let question = line.question(&loaded)?;
        ensure!(question.choices.iter().all(|c| c.len() > 1), "a question needs two tokens or more; lengthen its context");
        let answer = choose(&loaded.model, &question)?;
        right += usize::from(answer.best == line.answer);
        right_per_byte += usize::from(answer.best_per_byte == line.answer);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let n = lines.len() as f64;
    let rate = |right: usize| (right as f64 / n, (right as f64 / n * (1.0 - right as f64 / n) / (n - 1.0)).sqrt());
    let ((acc, se), (norm, norm_se)) = (rate(right), rate(right_per_byte));
    let mut out = std::io::stdout().lock();
    if args.json {
        let object = json!({
            "model": loaded.name,
            "questions": lines.len(),
            "acc": acc,
            "acc_stderr": if se.is_finite() { json!(se) } else { Value::Null },
            "acc_norm": norm,
            "acc_norm_stderr": if norm_se.is_finite() { json!(norm_se) } else { Value::Null },
            "activations": loaded.model.activations().name(),
            "kernel": kernels(&loaded),
        });
        writeln!(out, "{object}")?;
    } else {
        writeln!(
            out,
            "{}: {} questions, right {acc:.4} ± {se:.4}, by log-likelihood a byte {norm:.4} ± {norm_se:.4}",
            loaded.name,
            lines.len()
        )?;
    }
    Ok(())
}
