//! `billfish synth`: a model folder with random weights.

use super::options::{byte_bar, follow};
use anyhow::Result;
use billfish::builtin_files;
use billfish_quantize::{SynthSpec, synth};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// SHAPE[:wBgG][:asym][:act][:v2][:vN], such as llama-1b:w4g128, qwen3-0.6b or llama-8b:w3g64:asym
    spec: SynthSpec,
    /// The folder to write; it must be empty or not exist
    out: PathBuf,
    /// Files to spread the weights over
    #[arg(long, default_value_t = 1)]
    shards: usize,
    /// Write 16-bit weights instead of quantized ones
    #[arg(long)]
    dense: bool,
    /// Seed of the weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// The built-in model's tokenizer: random weights have no text of their own.
pub fn tokenizer_files() -> Vec<(&'static str, &'static [u8])> {
    let names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
    builtin_files().iter().filter(|(name, _)| names.contains(name)).copied().collect()
}

pub fn run(args: &Args) -> Result<()> {
    let bar = byte_bar("writing", 0);
    let written = synth(&args.spec, &args.out, args.shards, args.dense, args.seed, &tokenizer_files(), &mut follow(&bar));
    bar.finish_and_clear();
    let written = written?;
    eprintln!("{}: {} tensors, {:.1} MB in {} files", args.out.display(), written.tensors, written.bytes as f64 / 1e6, written.files.len());
    Ok(())
}
