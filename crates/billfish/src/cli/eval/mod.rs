//! `billfish eval`: measure a model.

mod choice;
mod errors;
mod kld;
mod text;

pub use text::read_text;

use super::options::{ModelArgs, follow, token_bar};
use super::stats::kernels;
use anyhow::Result;
use billfish_quantize::{eval_logits, perplexity};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use text::{Ids, TextArgs, gate};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Write the logits of given token ids, for comparison with any other program
    Logits(Logits),
    /// Measure the perplexity of a text
    Ppl(Ppl),
    /// Measure how far the predictions of a model are from those of another: Kullback-Leibler divergence
    Kld(Box<kld::Kld>),
    /// Answer questions that have several answers to choose from
    Choice(choice::Choice),
    /// Compare two models over a text: size, perplexity, divergence
    Compare(Box<kld::Compare>),
    /// Measure the errors of a quantized folder again and compare them with its quant_report.json; exit code 2 if any differs
    Errors(errors::Args),
}

#[derive(clap::Args)]
pub struct Logits {
    #[command(flatten)]
    model: ModelArgs,
    /// A safetensors file with `input_ids` [T] (I64 or I32)
    #[arg(long)]
    input_ids: PathBuf,
    /// The safetensors file to write: `logits` [T, vocabulary] F32
    #[arg(long)]
    output: PathBuf,
    /// Tokens that run at once; the result does not depend on it
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
}

#[derive(clap::Args)]
pub struct Ppl {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    text: TextArgs,
    /// Fail, with exit code 2, if the perplexity is above this
    #[arg(long)]
    max_ppl: Option<f64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Logits(args) => logits(args),
        Command::Ppl(args) => ppl(args),
        Command::Kld(args) => kld::kld(args),
        Command::Choice(args) => choice::run(args),
        Command::Compare(args) => kld::compare(args),
        Command::Errors(args) => errors::run(args),
    }
}

fn logits(args: &Logits) -> Result<()> {
    let loaded = args.model.load()?;
    let bar = token_bar("logits", 0);
    let written = eval_logits(&loaded.model, &args.input_ids, &args.output, args.chunk as usize, &mut follow(&bar));
    bar.finish_and_clear();
    let written = written?;
    let (mode, kernels) = (loaded.precision(), kernels(&loaded));
    eprintln!("{}: logits [{}, {}] with {mode}, {kernels}", args.output.display(), written.tokens, written.vocab_size);
    Ok(())
}

fn ppl(args: &Ppl) -> Result<()> {
    // the text before the model: it is quicker to fail
    let text = args.text.read()?;
    let loaded = args.model.load()?;
    let Ids { ids, bos } = args.text.ids(&text, &loaded)?;
    let bar = token_bar("perplexity", ids.len() as u64);
    let result = perplexity(&loaded.model, &ids, bos, args.text.protocol, &mut follow(&bar));
    bar.finish_and_clear();
    let r = result?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let object = json!({
            "model": loaded.name,
            "protocol": r.protocol.to_string(),
            "tokens": r.tokens,
            "ppl": r.ppl,
            "ppl_se": r.ppl_se,
            "activations": loaded.model.activations().name(),
            "token_scaled_modules": loaded.model.token_scaled_modules(),
            "kv_cache_dtype": loaded.model.kv_type().name(),
            "kernel": kernels(&loaded),
        });
        writeln!(out, "{object}")?;
    } else {
        let mode = loaded.precision();
        writeln!(out, "{}: perplexity {:.5} ± {:.5} ({}, {} predictions, {mode})", loaded.name, r.ppl, r.ppl_se, r.protocol, r.tokens)?;
        eprintln!("{}", kernels(&loaded));
    }
    gate("perplexity", r.ppl, args.max_ppl)
}
