//! `billfish eval errors`: whether a quantized folder still has the errors that its report tells.

use super::super::GateFailed;
use super::super::options::{count_bar, isa_from_env};
use super::read_text;
use anyhow::{Context, Result};
use billfish::{CalibrationOptions, OpenOptions, read_calibration};
use billfish_formats::Checkpoint;
use billfish_quantize::{Deviation, ModuleQuality, Recheck, Sequential, recheck};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(clap::Args)]
pub struct Args {
    /// A folder that `billfish quantize` wrote, with its quant_report.json
    model: PathBuf,
    /// The folder that it was quantized from
    #[arg(long)]
    base: PathBuf,
    /// The text that it was calibrated with; without it only the errors of weights are compared, group by group
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Calibration sequences, as they were
    #[arg(long, default_value_t = 128)]
    samples: usize,
    /// Tokens of a calibration sequence, as they were
    #[arg(long, default_value_t = 512)]
    seqlen: usize,
    /// The seed that the sequences were chosen by, as it was
    #[arg(long)]
    seed: Option<u64>,
    /// The Hessian of every expert saw all tokens
    #[arg(long)]
    all_experts: bool,
    /// Threads to work with [default: as many as the machine offers]
    #[arg(long, short = 't', value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let path = args.model.join("quant_report.json");
    let report: Value = serde_json::from_str(&read_text(&path)?).with_context(|| path.display().to_string())?;
    let reported: Vec<ModuleQuality> = serde_json::from_value(report["modules"].clone())
        .with_context(|| format!("{}: expected the modules of this version's reports; quantize the folder again", path.display()))?;
    let (stored, base) = (Checkpoint::open(&args.model)?, Checkpoint::open(&args.base)?);
    let samples = match &args.calibration {
        Some(path) => {
            let options = CalibrationOptions { samples: args.samples, seqlen: args.seqlen, seed: args.seed };
            read_calibration(&base, path, &options)?.sequences
        }
        None => vec![],
    };
    let options = OpenOptions { isa: isa_from_env()?, threads: args.threads.map(usize::from), ..OpenOptions::default() };
    let backend = Arc::new(options.backend()?);
    let sequential = if report["sequential"] == Sequential::Dense.name() { Sequential::Dense } else { Sequential::Quantized };
    let all_experts = args.all_experts;
    let job = Recheck { stored: &stored, base: &base, reported: &reported, samples: &samples, all_experts, sequential, backend };
    let bar = count_bar("modules", reported.len());
    let found = recheck(&job, &mut |_| bar.inc(1));
    bar.finish_and_clear();
    let found = found?;
    let what = if samples.is_empty() { "weights" } else { "weights and outputs" };
    let mut out = std::io::stdout().lock();
    if args.json {
        let list = found.iter().map(|d| json!({"module": d.module, "group": d.group, "reported": d.reported, "found": d.found}));
        writeln!(out, "{}", json!({"modules": reported.len(), "compared": what, "deviations": list.collect::<Vec<_>>()}))?;
    } else {
        for Deviation { module, group, reported, found } in &found {
            let place = group.map_or("outputs".into(), |g| format!("group {g}"));
            writeln!(out, "{module}: {place}: an error of {found:.9e}, reported {reported:.9e}")?;
        }
        writeln!(out, "{} modules, errors of {what}: {} not as reported", reported.len(), found.len())?;
    }
    if found.is_empty() {
        return Ok(());
    }
    Err(GateFailed(format!("{} has errors that its report does not tell", args.model.display())).into())
}
