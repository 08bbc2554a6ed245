//! `billfish quantize`: a 16-bit folder to a quantized one.

use super::eval::read_text;
use super::options::{count_bar, isa_from_env};
use anyhow::{Context, Result, bail};
use billfish::{OpenOptions, read_tokenizer};
use billfish_formats::{Checkpoint, Dynamic, Target};
use billfish_quantize::gptq::{Order, Search};
use billfish_quantize::{Event, Job, Method, Outcome, Recipe, quantize};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Clone, Copy, ValueEnum)]
enum MethodArg {
    Rtn,
    Gptq,
    Awq,
    #[value(name = "awq+gptq")]
    AwqGptq,
}

#[derive(Clone, Copy, ValueEnum)]
enum OrderArg {
    None,
    Gar,
    Static,
    Desc,
}

#[derive(Clone, Copy, ValueEnum)]
enum SearchArg {
    Minmax,
    Mse,
    Hessian,
}

#[derive(clap::Args)]
pub struct Args {
    /// The folder to quantize: config.json, *.safetensors of 16- or 32-bit floats, tokenizer.json
    model: PathBuf,
    /// The folder to write; it must be empty or not exist
    out: PathBuf,
    /// Width of a code
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=8))]
    bits: u32,
    /// Inputs of a group; -1 for one group a column
    #[arg(long, default_value_t = 128, allow_negative_numbers = true)]
    group_size: i64,
    /// Zero points at the midpoint [default, but not of AWQ files]
    #[arg(long, overrides_with = "asym")]
    sym: bool,
    /// A zero point for each group and column
    #[arg(long)]
    asym: bool,
    /// gptq, gptq_v2, gptq_p, awq or compressed-tensors [default: gptq; gptq_v2 with --asym; gptq_p for 5, 6 and 7 bits; awq
    /// for 4 bits with --method awq]
    #[arg(long)]
    format: Option<Target>,
    /// Keep zero points at 1 or more, so that programs that store them less one read them right
    #[arg(long)]
    portable_v1: bool,
    /// How codes are chosen; awq scales what matters and rounds to nearest, awq+gptq does GPTQ on the scaled weights
    #[arg(long, value_enum, default_value = "gptq")]
    method: MethodArg,
    /// The order in which inputs are rounded; desc is act-order, which costs time when the model runs
    #[arg(long, value_enum, default_value = "gar")]
    order: OrderArg,
    /// How scales are found
    #[arg(long, value_enum, default_value = "hessian")]
    search: SearchArg,
    /// The part of the mean diagonal of a Hessian that is added to its diagonal
    #[arg(long, default_value_t = 0.01)]
    damp: f64,
    /// Sweeps over codes and scales after the first choice; 0 for GPTQ as published
    #[arg(long, default_value_t = 2)]
    sweeps: usize,
    /// Text to calibrate with: a UTF-8 file, or a .jsonl file with a `text` in each line
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Calibration sequences
    #[arg(long, default_value_t = 128)]
    samples: usize,
    /// Tokens of a calibration sequence
    #[arg(long, default_value_t = 512)]
    seqlen: usize,
    /// Rules for modules as a quantization config has them under `dynamic`: a JSON object
    #[arg(long)]
    dynamic: Option<PathBuf>,
    /// Quantize the output head too
    #[arg(long)]
    lm_head: bool,
    /// Let the Hessian of every expert see all tokens
    #[arg(long)]
    all_experts: bool,
    /// Go on with work that was broken off
    #[arg(long)]
    resume: bool,
    /// Threads to work with [default: as many as the machine offers]
    #[arg(long, short = 't', value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print what became of every module as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    fn recipe(&self) -> Result<Recipe> {
        let awq = matches!(self.method, MethodArg::Awq);
        let target = match self.format {
            Some(target) => target,
            None if matches!(self.bits, 5..=7) => Target::GptqP,
            None if awq && self.bits == 4 => Target::Awq,
            None if self.asym && !self.portable_v1 => Target::GptqV2,
            None => Target::Gptq,
        };
        if let Target::Dense(_) | Target::Marlin = target {
            bail!("--format: expected gptq, gptq_v2, gptq_p, awq or compressed-tensors, found {target}; convert writes the others");
        }
        let group_size = match self.group_size {
            -1 => None,
            rows @ 1.. => Some(rows as usize),
            other => bail!("--group-size: expected -1 or 1 and more, found {other}; 128 is usual"),
        };
        let dynamic = match &self.dynamic {
            Some(path) => {
                let value: Value = serde_json::from_str(&read_text(path)?).with_context(|| path.display().to_string())?;
                Dynamic::parse(&path.display().to_string(), &value)?
            }
            None => Dynamic::default(),
        };
        Ok(Recipe {
            bits: self.bits,
            group_size,
            // AWQ files have zero points of their own
            sym: !self.asym && (self.sym || !(awq && target == Target::Awq)),
            target,
            portable: self.portable_v1,
            method: match self.method {
                MethodArg::Rtn => Method::Rtn,
                MethodArg::Gptq => Method::Gptq,
                MethodArg::Awq => Method::Awq,
                MethodArg::AwqGptq => Method::AwqGptq,
            },
            order: match self.order {
                OrderArg::None => Order::None,
                OrderArg::Gar => Order::Gar,
                OrderArg::Static => Order::Static,
                OrderArg::Desc => Order::Desc,
            },
            search: match self.search {
                SearchArg::Minmax => Search::MinMax,
                SearchArg::Mse => Search::Mse,
                SearchArg::Hessian => Search::Hessian,
            },
            damp: self.damp,
            sweeps: self.sweeps,
            lm_head: self.lm_head,
            all_experts: self.all_experts,
            dynamic,
            ..Recipe::default()
        })
    }

    /// Calibration sequences: the text cut into pieces, or the rows of a jsonl file.
    fn samples(&self, source: &Checkpoint) -> Result<Vec<Vec<u32>>> {
        let Some(path) = &self.calibration else { return Ok(vec![]) };
        let text = read_text(path)?;
        let tokenizer = read_tokenizer(source)?;
        if path.extension().is_none_or(|e| e != "jsonl") {
            let ids = tokenizer.encode(&text, false)?;
            let all: Vec<Vec<u32>> = ids.chunks_exact(self.seqlen.max(2)).map(<[u32]>::to_vec).collect();
            // spread over the whole text
            let wanted = self.samples.min(all.len());
            return Ok((0..wanted).map(|i| all[i * all.len() / wanted].clone()).collect());
        }
        let mut samples = vec![];
        for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let value: Value = serde_json::from_str(line).with_context(|| format!("{}: line {}", path.display(), i + 1))?;
            let Some(text) = value["text"].as_str() else {
                bail!("{}: line {}: expected a `text`, found none; give every line one", path.display(), i + 1);
            };
            let mut ids = tokenizer.encode(text, true)?;
            ids.truncate(self.seqlen);
            if ids.len() > 1 {
                samples.push(ids);
            }
            if samples.len() == self.samples {
                break;
            }
        }
        Ok(samples)
    }
}

/// Ends after the current layer once Ctrl-C was pressed.
fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if set.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("finishing the layer; once more ends at once");
    })?;
    Ok(stop)
}

pub fn run(args: &Args) -> Result<()> {
    let recipe = args.recipe()?;
    let source = Checkpoint::open(&args.model)?;
    let samples = args.samples(&source)?;
    let options = OpenOptions { isa: isa_from_env()?, threads: args.threads.map(usize::from), ..OpenOptions::default() };
    let backend = Arc::new(options.backend()?);
    let stop = stop_on_ctrl_c()?;
    let job = Job { source: &source, out: &args.out, recipe: &recipe, samples: &samples, backend, resume: args.resume, stop: &stop };
    let bar = count_bar("layers", 0);
    let outcome = quantize(&job, &mut |event| match event {
        Event::Layer { index, layers, found } => {
            bar.set_length(layers as u64);
            bar.set_position(index as u64);
            bar.set_message(if found { "layers found" } else { "layers" });
        }
        Event::Module(q) => {
            if let Some(reason) = &q.fallback {
                bar.suspend(|| eprintln!("warning: {}: rounded to nearest, because {reason}", q.module));
            }
        }
        Event::Writing => bar.set_message("writing"),
    });
    bar.finish_and_clear();
    let outcome = outcome?;
    if outcome.written.is_none() {
        bail!("stopped after {} modules; --resume goes on from there", outcome.modules.len());
    }
    let report = report(args, &recipe, &outcome);
    let path = args.out.join("quant_report.json");
    std::fs::write(&path, format!("{report:#}\n")).with_context(|| path.display().to_string())?;
    print(args, &outcome, &report)
}

fn report(args: &Args, recipe: &Recipe, outcome: &Outcome) -> Value {
    let t = &outcome.times;
    json!({
        "model": args.model.display().to_string(),
        "method": recipe.method.name(),
        "format": recipe.target.to_string(),
        "seconds": {
            "forward": t.forward.as_secs_f64(), "hessian": t.hessian.as_secs_f64(),
            "solve": t.solve.as_secs_f64(), "files": t.files.as_secs_f64(),
        },
        "bytes": outcome.written.as_ref().map(|w| w.bytes),
        "modules": outcome.modules,
    })
}

fn print(args: &Args, outcome: &Outcome, report: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{report}")?;
        return Ok(());
    }
    let mean = outcome.modules.iter().map(|m| m.output_error).sum::<f64>() / outcome.modules.len().max(1) as f64;
    let bytes = outcome.written.as_ref().map_or(0, |w| w.bytes);
    let t = &outcome.times;
    writeln!(out, "{}: {} modules, {:.3} MB, mean output error {mean:.3e}", args.out.display(), outcome.modules.len(), bytes as f64 / 1e6)?;
    writeln!(
        out,
        "forward {:.1} s, Hessians {:.1} s, codes {:.1} s, files and checks {:.1} s",
        t.forward.as_secs_f64(),
        t.hessian.as_secs_f64(),
        t.solve.as_secs_f64(),
        t.files.as_secs_f64()
    )?;
    Ok(())
}
