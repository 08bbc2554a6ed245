//! `billfish quantize`: a 16-bit folder to a quantized one.

mod dry_run;

use super::Interrupted;
use super::eval::read_text;
use super::options::{count_bar, isa_from_env};
use anyhow::{Context, Result, bail};
use billfish::machine::free_memory;
use billfish::{Calibration, CalibrationOptions, OpenOptions, quant_page, read_calibration};
use billfish_formats::{Checkpoint, Dynamic, Target};
use billfish_quantize::gptq::{Order, Search};
use billfish_quantize::{Event, Job, Method, Outcome, Recipe, Sequential, Statistics, quantize};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::collections::BTreeMap;
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

#[derive(Clone, Copy, ValueEnum)]
enum SequentialArg {
    Quantized,
    Dense,
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
    /// The order in which inputs are rounded; desc is act-order, which costs time when the model runs [default: gar]
    #[arg(long, value_enum)]
    order: Option<OrderArg>,
    /// How scales are found
    #[arg(long, value_enum, default_value = "hessian")]
    search: SearchArg,
    /// The part of the mean diagonal of a Hessian that is added to its diagonal [default: 0.01]
    #[arg(long)]
    damp: Option<f64>,
    /// Sweeps over codes and scales after the first choice; 0 for GPTQ as published [default: 2]
    #[arg(long)]
    sweeps: Option<usize>,
    /// Text to calibrate with: a UTF-8 file; a .jsonl file with `text`, `messages`, `tokens` or `input_ids` (and
    /// `attention_mask`) in each line; or a folder of .txt and .jsonl files
    #[arg(long, value_name = "FILE|DIR")]
    calibration: Option<PathBuf>,
    /// Calibration sequences
    #[arg(long, default_value_t = 128, requires = "calibration", value_parser = at_least_one)]
    samples: usize,
    /// Tokens of a calibration sequence: of a piece of a text exactly, of a line of a .jsonl file at most
    #[arg(long, default_value_t = 512, requires = "calibration", value_parser = at_least_two)]
    seqlen: usize,
    /// Choose the sequences at random with this seed, instead of evenly spread
    #[arg(long, requires = "calibration")]
    seed: Option<u64>,
    /// What modules see while they are calibrated: what the quantized modules before them give, or the dense ones
    #[arg(long, value_enum, default_value = "quantized")]
    sequential: SequentialArg,
    /// Keep what the modules see (Hessians and numbers of tokens) in this new folder
    #[arg(long, value_name = "DIR", requires = "calibration")]
    save_stats: Option<PathBuf>,
    /// Take it from there: the same bytes without text and without running the network. The model and all options that it
    /// depends on must be the same; with --sequential dense these are no bits, order or search
    #[arg(long, value_name = "DIR", conflicts_with_all = ["calibration", "samples", "seqlen", "seed", "save_stats"])]
    stats: Option<PathBuf>,
    /// Rules for modules as a quantization config has them under `dynamic`: a JSON object
    #[arg(long)]
    dynamic: Option<PathBuf>,
    /// Quantize the output head too
    #[arg(long)]
    lm_head: bool,
    /// Let the Hessian of every expert see all tokens
    #[arg(long)]
    all_experts: bool,
    /// Memory to take, such as 4GB; what does not fit waits on disk [default: half of what is free]
    #[arg(long, value_parser = super::size::bytes)]
    memory: Option<u64>,
    /// Go on with work that was broken off
    #[arg(long)]
    resume: bool,
    /// Take a folder that is quantized already; what it lost stays lost
    #[arg(long)]
    requantize: bool,
    /// Say what it would take: bytes exactly, memory and time as estimates. Writes nothing
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
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
        self.check_options()?;
        let usual = Recipe::default();
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
                None => usual.order,
                Some(OrderArg::None) => Order::None,
                Some(OrderArg::Gar) => Order::Gar,
                Some(OrderArg::Static) => Order::Static,
                Some(OrderArg::Desc) => Order::Desc,
            },
            search: match self.search {
                SearchArg::Minmax => Search::MinMax,
                SearchArg::Mse => Search::Mse,
                SearchArg::Hessian => Search::Hessian,
            },
            damp: self.damp.unwrap_or(usual.damp),
            sweeps: self.sweeps.unwrap_or(usual.sweeps),
            lm_head: self.lm_head,
            all_experts: self.all_experts,
            sequential: match self.sequential {
                SequentialArg::Quantized => Sequential::Quantized,
                SequentialArg::Dense => Sequential::Dense,
            },
            requantize: self.requantize,
            dynamic,
            ..usual
        })
    }

    /// Refuses options that say nothing to methods that pass no errors on.
    fn check_options(&self) -> Result<()> {
        let method = match self.method {
            MethodArg::Rtn => Method::Rtn,
            MethodArg::Awq => Method::Awq,
            MethodArg::Gptq | MethodArg::AwqGptq => return Ok(()),
        };
        // act-order forms other groups, whatever the method
        let order = matches!(self.order, Some(OrderArg::None | OrderArg::Gar | OrderArg::Static));
        for (option, given) in [("--damp", self.damp.is_some()), ("--sweeps", self.sweeps.is_some()), ("--order", order)] {
            if given {
                bail!("{option}: expected the method gptq or awq+gptq, found {}, where it does nothing; leave it out", method.name());
            }
        }
        Ok(())
    }

    /// Calibration sequences, if there is a text.
    fn calibration(&self, source: &Checkpoint) -> Result<Option<Calibration>> {
        let Some(path) = &self.calibration else { return Ok(None) };
        let options = CalibrationOptions { samples: self.samples, seqlen: self.seqlen, seed: self.seed };
        let read = read_calibration(source, path, &options)?;
        read.warnings.iter().for_each(|w| eprintln!("warning: {w}"));
        Ok(Some(read))
    }

    fn statistics(&self) -> Statistics<'_> {
        match (&self.save_stats, &self.stats) {
            (Some(dir), _) => Statistics::Save(dir),
            (None, Some(dir)) => Statistics::Use(dir),
            (None, None) => Statistics::Forget,
        }
    }
}

fn at_least(least: usize, text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n >= least).ok_or_else(|| format!("expected {least} or more"))
}

fn at_least_one(text: &str) -> Result<usize, String> {
    at_least(1, text)
}

fn at_least_two(text: &str) -> Result<usize, String> {
    at_least(2, text)
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
    let calibration = args.calibration(&source)?;
    let samples = calibration.as_ref().map_or(&[][..], |c| &c.sequences);
    let options = OpenOptions { isa: isa_from_env()?, threads: args.threads.map(usize::from), ..OpenOptions::default() };
    let backend = Arc::new(options.backend()?);
    let stop = stop_on_ctrl_c()?;
    let memory = args.memory.or_else(|| free_memory().map(|free| free / 2));
    let (out, resume, statistics) = (&*args.out, args.resume, args.statistics());
    let job = Job { source: &source, out, recipe: &recipe, samples, backend, memory, resume, statistics, stop: &stop };
    if args.dry_run {
        return dry_run::run(&job, args.json);
    }
    let bar = count_bar("modules", 0);
    let outcome = quantize(&job, &mut |event| match event {
        Event::Layer { index, layers, found, done, modules } => {
            bar.set_length(modules as u64);
            bar.set_position(done as u64);
            if found {
                // what took no time says nothing about what is to come
                bar.reset_eta();
            }
            bar.set_message(format!("layer {} of {layers}, modules", index + 1));
        }
        Event::Module(_) => bar.inc(1),
        Event::Writing => bar.set_message("writing"),
    });
    bar.finish_and_clear();
    let outcome = outcome?;
    for (text, modules) in remarks(&outcome) {
        let more = if modules.len() == 1 { String::new() } else { format!(" and {} more", modules.len() - 1) };
        eprintln!("warning: {}{more}: {text}", modules[0]);
    }
    if outcome.written.is_none() {
        let done = outcome.modules.len();
        return Err(Interrupted(format!("stopped after {done} modules; the same command with --resume goes on from there")).into());
    }
    let report = report(args, &recipe, calibration.as_ref(), &outcome);
    let path = args.out.join("quant_report.json");
    std::fs::write(&path, format!("{report:#}\n")).with_context(|| path.display().to_string())?;
    let path = args.out.join("quant_report.html");
    std::fs::write(&path, quant_page(&report)).with_context(|| path.display().to_string())?;
    print(args, &outcome, &report)
}

/// What was out of the ordinary, each with the modules that it is said of.
fn remarks(outcome: &Outcome) -> BTreeMap<String, Vec<&str>> {
    let mut all: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for m in &outcome.modules {
        let fallback = m.fallback.iter().map(|reason| format!("rounded to nearest, because {reason}"));
        fallback.chain(m.notes.iter().cloned()).for_each(|text| all.entry(text).or_default().push(&m.module));
    }
    all
}

fn report(args: &Args, recipe: &Recipe, calibration: Option<&Calibration>, outcome: &Outcome) -> Value {
    let t = &outcome.times;
    let text = calibration.map(|c| {
        let tokens: usize = c.sequences.iter().map(Vec::len).sum();
        json!({"sequences": c.sequences.len(), "of": c.found, "tokens": tokens, "dropped_rows": c.dropped, "seed": args.seed})
    });
    json!({
        "model": args.model.display().to_string(),
        "method": recipe.method.name(),
        "format": recipe.target.to_string(),
        "calibration": text,
        "statistics": args.stats.as_ref().map(|dir| dir.display().to_string()),
        "sequential": recipe.sequential.name(),
        "requantized_modules": outcome.requantized,
        "seconds": {
            "forward": t.forward.as_secs_f64(), "hessian": t.hessian.as_secs_f64(),
            "factor": t.factor.as_secs_f64(), "solve": t.solve.as_secs_f64(), "files": t.files.as_secs_f64(),
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
    if outcome.requantized > 0 {
        writeln!(out, "{} modules were quantized before: errors are those against their weights as they were then", outcome.requantized)?;
    }
    writeln!(
        out,
        "forward {:.1} s, Hessians {:.1} s, factors {:.1} s, codes {:.1} s, files and checks {:.1} s",
        t.forward.as_secs_f64(),
        t.hessian.as_secs_f64(),
        t.factor.as_secs_f64(),
        t.solve.as_secs_f64(),
        t.files.as_secs_f64()
    )?;
    Ok(())
}
