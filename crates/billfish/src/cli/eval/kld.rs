//! `billfish eval kld` and `billfish eval compare`: a model against another over the same predictions.

use super::super::options::{FolderArgs, RunningArgs, follow, load, token_bar};
use super::super::stats::kernels;
use super::text::{Ids, TextArgs, gate};
use anyhow::{Result, ensure};
use billfish::{LoadedModel, OpenOptions};
use billfish_quantize::{Divergence, divergence};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// How two models are compared.
#[derive(clap::Args)]
struct How {
    #[command(flatten)]
    folder: FolderArgs,
    #[command(flatten)]
    running: RunningArgs,
    #[command(flatten)]
    text: TextArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct Kld {
    /// A model folder
    model: PathBuf,
    /// The folder to compare it with, as a rule the one that it was quantized from
    #[arg(long)]
    base: PathBuf,
    #[command(flatten)]
    how: How,
    /// Fail, with exit code 2, if the perplexity of the model is above this
    #[arg(long)]
    max_ppl: Option<f64>,
    /// Fail, with exit code 2, if the mean divergence is above this
    #[arg(long)]
    max_kld: Option<f64>,
}

#[derive(clap::Args)]
pub struct Compare {
    /// A model folder
    a: PathBuf,
    /// Another
    b: PathBuf,
    #[command(flatten)]
    how: How,
}

/// Two models and what was measured of them.
struct Measured {
    model: LoadedModel,
    bytes: [u64; 2],
    found: Divergence,
}

/// Loads both and measures the divergence of `model` from `base`.
fn measure(model: &Path, base: &Path, how: &How) -> Result<Measured> {
    let How { folder, running, text, .. } = how;
    let words = text.read()?;
    let options = running.open_options()?;
    let (model, base) = (folder.open(Some(model))?, folder.open(Some(base))?);
    let bytes = [model.total_bytes(), base.total_bytes()];
    let model = load(&model, &options)?;
    // the base is what it is: an approximation asked for is one of the model
    let base = load(&base, &OpenOptions { quantize_head: false, ..options })?;
    let Ids { ids, bos } = text.ids(&words, &model)?;
    let others = text.ids(&words, &base)?;
    ensure!(
        ids == others.ids && bos == others.bos,
        "{}: expected the tokens of {} for {} tokens of text, found others; compare models of one tokenizer",
        model.name,
        base.name,
        ids.len()
    );
    let bar = token_bar("divergence", ids.len() as u64);
    let found = divergence(&model.model, &base.model, &ids, bos, text.protocol, &mut follow(&bar));
    bar.finish_and_clear();
    Ok(Measured { model, bytes, found: found? })
}

/// Percentiles that are shown, with their keys.
const PERCENTILES: [(f64, &str); 7] = [
    (99.9, "kld_p99_9"),
    (99.0, "kld_p99"),
    (95.0, "kld_p95"),
    (90.0, "kld_p90"),
    (50.0, "kld_median"),
    (10.0, "kld_p10"),
    (1.0, "kld_p1"),
];

fn object(m: &Measured) -> Value {
    let d = &m.found;
    let mut object = json!({
        "protocol": d.protocol.to_string(),
        "tokens": d.tokens,
        "ppl": d.ppl,
        "ppl_se": d.ppl_se,
        "ppl_base": d.ppl_base,
        "ppl_base_se": d.ppl_base_se,
        "kld_mean": d.kld_mean,
        "kld_se": d.kld_se,
        "kld_max": d.percentile(100.0),
        "kld_min": d.percentile(0.0),
        "top1": d.top1,
        "delta_p_mean": d.delta_p_mean,
        "delta_p_rms": d.delta_p_rms,
        "activations": m.model.model.activations().name(),
        "kv_cache_dtype": m.model.model.kv_type().name(),
        "kernel": kernels(&m.model),
    });
    PERCENTILES.iter().for_each(|(percent, key)| object[*key] = json!(d.percentile(*percent)));
    object
}

/// The lines of `llama-perplexity --kl-divergence`.
fn write_divergence(out: &mut dyn Write, d: &Divergence) -> std::io::Result<()> {
    writeln!(out, "Mean    KLD: {:10.6} ± {:.6}", d.kld_mean, d.kld_se)?;
    writeln!(out, "Maximum KLD: {:10.6}", d.percentile(100.0))?;
    for (percent, _) in PERCENTILES {
        let name = if percent == 50.0 { "Median ".into() } else { format!("{percent:5.1}% ") };
        writeln!(out, "{name} KLD: {:10.6}", d.percentile(percent))?;
    }
    writeln!(out, "Minimum KLD: {:10.6}", d.percentile(0.0))?;
    writeln!(out, "Mean    Δp: {:8.3} %", 100.0 * d.delta_p_mean)?;
    writeln!(out, "RMS Δp    : {:8.3} %", 100.0 * d.delta_p_rms)?;
    writeln!(out, "Same top p: {:8.3} %", 100.0 * d.top1)
}

pub fn kld(args: &Kld) -> Result<()> {
    let m = measure(&args.model, &args.base, &args.how)?;
    let d = &m.found;
    let mut out = std::io::stdout().lock();
    if args.how.json {
        let mut object = object(&m);
        (object["model"], object["base"]) = (json!(m.model.name), json!(args.base.display().to_string()));
        writeln!(out, "{object}")?;
    } else {
        writeln!(
            out,
            "{} against {} ({}, {} predictions, {})",
            m.model.name,
            args.base.display(),
            d.protocol,
            d.tokens,
            m.model.precision()
        )?;
        writeln!(out, "Mean PPL(Q)   : {:10.5} ± {:.5}", d.ppl, d.ppl_se)?;
        writeln!(out, "Mean PPL(base): {:10.5} ± {:.5}", d.ppl_base, d.ppl_base_se)?;
        write_divergence(&mut out, d)?;
        eprintln!("{}", kernels(&m.model));
    }
    gate("perplexity", d.ppl, args.max_ppl)?;
    gate("mean KLD", d.kld_mean, args.max_kld)
}

pub fn compare(args: &Compare) -> Result<()> {
    let m = measure(&args.b, &args.a, &args.how)?;
    let d = &m.found;
    let mut out = std::io::stdout().lock();
    if args.how.json {
        let mut object = object(&m);
        (object["a"], object["b"]) = (json!(args.a.display().to_string()), json!(args.b.display().to_string()));
        (object["bytes_a"], object["bytes_b"]) = (json!(m.bytes[1]), json!(m.bytes[0]));
        writeln!(out, "{object}")?;
        return Ok(());
    }
    writeln!(out, "{}, {} predictions, {}", d.protocol, d.tokens, m.model.precision())?;
    writeln!(out, "A {:>10.3} MB, perplexity {:.5} ± {:.5}: {}", m.bytes[1] as f64 / 1e6, d.ppl_base, d.ppl_base_se, args.a.display())?;
    writeln!(out, "B {:>10.3} MB, perplexity {:.5} ± {:.5}: {}", m.bytes[0] as f64 / 1e6, d.ppl, d.ppl_se, args.b.display())?;
    writeln!(out, "B from A:")?;
    write_divergence(&mut out, d)?;
    Ok(())
}
