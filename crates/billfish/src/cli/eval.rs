//! `billfish eval`: measure a model.

use super::options::{ModelArgs, follow, token_bar};
use super::stats::kernels;
use anyhow::Result;
use billfish_quantize::{Protocol, eval_logits, perplexity};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Write the logits of given token ids, for comparison with any other program
    Logits(Logits),
    /// Measure the perplexity of a text
    Ppl(Ppl),
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
    /// A UTF-8 text file
    #[arg(long)]
    text: PathBuf,
    /// How the text is cut and what is predicted: gptq2048, llamacpp512 or window:N
    #[arg(long)]
    protocol: Protocol,
    /// Keep the first N tokens of the text
    #[arg(long)]
    limit_tokens: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Logits(args) => logits(args),
        Command::Ppl(args) => ppl(args),
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

/// Reads a text.
pub fn read_text(path: &Path) -> Result<String> {
    let file = path.display();
    let text = std::fs::read(path).map_err(|e| anyhow::anyhow!("{file}: {e}; name a text file that can be read"))?;
    String::from_utf8(text).map_err(|e| anyhow::anyhow!("{file}: expected UTF-8 text, found {e}; convert the file to UTF-8"))
}

fn ppl(args: &Ppl) -> Result<()> {
    // the text before the model: it is quicker to fail
    let text = read_text(&args.text)?;
    let loaded = args.model.load()?;
    let tokenizer = &loaded.tokenizer;
    let mut ids = tokenizer.encode(&text, args.protocol.adds_special())?;
    ids.truncate(args.limit_tokens.unwrap_or(usize::MAX));
    // the begin token only if this tokenizer puts it before a prompt
    let bos = tokenizer.bos_id().filter(|b| tokenizer.encode("", true).is_ok_and(|ids| ids.first() == Some(b)));
    let bar = token_bar("perplexity", ids.len() as u64);
    let result = perplexity(&loaded.model, &ids, bos, args.protocol, &mut follow(&bar));
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
    Ok(())
}
