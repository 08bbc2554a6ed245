//! `billfish run`: continue a prompt.

use super::options::{ModelArgs, SamplingArgs};
use super::stats;
use anyhow::{Context, bail};
use billfish::{LoadedModel, Session};
use serde_json::json;
use std::io::{Read, Write};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text to continue; `-` reads it from standard input
    #[arg(long, short = 'p', conflicts_with = "prompt_file")]
    prompt: Option<String>,
    /// A file with the text to continue; `-` is standard input
    #[arg(long, short = 'f')]
    prompt_file: Option<PathBuf>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Print one JSON object at the end instead of the text as it comes
    #[arg(long)]
    json: bool,
    /// Print at the end how often the experts of each layer were used
    #[arg(long)]
    stats: bool,
}

/// Reads a prompt file; `-` is standard input.
fn read(path: &str) -> anyhow::Result<String> {
    let mut bytes = vec![];
    if path == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes)?;
    } else {
        bytes = std::fs::read(path).with_context(|| format!("{path}: the prompt file cannot be read"))?;
    }
    String::from_utf8(bytes).map_err(|e| anyhow::anyhow!("{path}: expected UTF-8 text, found {e}; convert the file to UTF-8"))
}

impl Args {
    fn prompt(&self) -> anyhow::Result<String> {
        match (&self.prompt, &self.prompt_file) {
            (Some(p), _) if p == "-" => read("-"),
            (Some(p), _) => Ok(p.clone()),
            (None, Some(f)) => read(&f.to_string_lossy()),
            (None, None) => bail!("no prompt; give --prompt TEXT, --prompt-file FILE or --prompt - for standard input"),
        }
    }
}

/// Warns when a sequence outgrows what the model was made for.
pub fn check_length(model: &LoadedModel, prompt: usize, max_tokens: usize) {
    if let Some(limit) = model.model.config().max_position_embeddings.filter(|&l| prompt.saturating_add(max_tokens) > l) {
        eprintln!(
            "warning: {prompt} prompt tokens and up to {max_tokens} more exceed the {limit} positions this model was made for; text beyond them may degrade"
        );
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let prompt = args.prompt()?;
    let loaded = args.model.load()?;
    let options = args.sampling.options(&loaded);
    let ids = loaded.tokenizer.encode_prompt(&prompt)?;
    check_length(&loaded, ids.len(), options.max_tokens);
    let mut session = Session::new(&loaded.model, &loaded.tokenizer);
    let mut out = std::io::stdout().lock();
    let mut failed = None;
    let cancel = std::sync::atomic::AtomicBool::new(false);
    let mut request = options.request(&ids);
    request.cancel = Some(&cancel);
    if !args.json {
        out.write_all(prompt.as_bytes())?;
        out.flush()?;
    }
    let done = session.generate(&request, &mut |piece| {
        if !args.json
            && failed.is_none()
            && let Err(e) = out.write_all(piece.as_bytes()).and_then(|()| out.flush())
        {
            // nobody reads any more
            failed = Some(e);
            cancel.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    })?;
    if let Some(e) = failed {
        return Err(e.into());
    }
    let seed = options.sampling.seed;
    if args.json {
        let t = &done.timings;
        let object = json!({
            "model": loaded.name,
            "prompt": prompt,
            "text": done.text,
            "prompt_token_ids": ids,
            "token_ids": done.tokens,
            "finish_reason": done.finish.name(),
            "seed": seed,
            "timings": {
                "load_s": loaded.load_time.as_secs_f64(),
                "prompt_s": t.prompt.as_secs_f64(),
                "prompt_tokens": t.prompt_tokens,
                "prompt_tokens_per_s": t.prompt_rate(),
                "generation_s": t.generation.as_secs_f64(),
                "generation_tokens": done.tokens.len(),
                "generation_tokens_per_s": t.generation_rate(),
            },
            "peak_memory_bytes": billfish::machine::peak_memory(),
            "kernel": stats::kernels(&loaded),
            "isa": loaded.model.backend().isa().name(),
            "cpu_features": billfish::machine::cpu_features(),
            "threads": loaded.model.backend().threads(),
            "activations": loaded.model.activations().name(),
            "token_scaled_modules": loaded.model.token_scaled_modules(),
            "kv_cache_dtype": loaded.model.kv_type().name(),
            "packed_cache": stats::cache(&loaded),
            "expert_usage": stats::usage(&loaded, session.expert_usage()),
        });
        writeln!(out, "{object}")?;
    } else {
        writeln!(out)?;
    }
    stats::print(&loaded, &done, seed);
    if args.stats {
        stats::experts(&loaded, session.expert_usage());
    }
    Ok(())
}
