//! `billfish plan`: which width and group size each module should have.

use super::options::{count_bar, isa_from_env, warn};
use super::size;
use anyhow::{Context, Result, bail};
use billfish::{CalibrationOptions, Forecast, OpenOptions, forecast, read_calibration};
use billfish_formats::{Checkpoint, Dynamic, Target};
use billfish_quantize::plan::{Budget, Choice, Preset, Sensitivity, Study, preset, study};
use billfish_quantize::{Method, PredictedBytes, Recipe, predicted_bytes};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Clone, Copy, ValueEnum)]
enum PresetArg {
    /// 4 bits; groups of 64 for attention and shared experts, of 128 for the rest
    Dense,
    /// As dense, with groups of 128 for the outputs of attention
    Moe,
    /// 4 bits; groups of 32 for attention and shared experts, of 64 for the rest
    Quality,
    /// 4 bits; groups of 128 for attention and shared experts, of 256 for the rest
    Speed,
    /// 3 bits for experts and MLPs in groups of 128; 4 bits for attention in groups of 128 and 256
    Size,
}

#[derive(Clone, Copy, ValueEnum)]
enum MethodArg {
    Rtn,
    Gptq,
}

/// A width that is a number.
fn width(text: &str) -> Result<f64, String> {
    let wrong = || format!("expected a number above 0, found `{text}`");
    text.parse::<f64>().ok().filter(|bits| bits.is_finite() && *bits > 0.0).ok_or_else(wrong)
}

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("aim").required(true).args(["max_size", "bits_per_weight", "preset"])))]
pub struct Args {
    /// The folder to quantize later: config.json, *.safetensors of 16- or 32-bit floats, tokenizer.json
    model: PathBuf,
    /// The most that the files of the weights may have, such as 4.2GB or 512MiB, what stays dense included
    #[arg(long, value_parser = size::bytes)]
    max_size: Option<u64>,
    /// The most bits for each weight of the quantized modules, scales and zero points included
    #[arg(long, value_parser = width)]
    bits_per_weight: Option<f64>,
    /// Choose by what modules are, without measuring
    #[arg(long, value_enum)]
    preset: Option<PresetArg>,
    /// Text to measure with, as for quantize: a text, a .jsonl file or a folder of such
    #[arg(long, conflicts_with = "preset")]
    calibration: Option<PathBuf>,
    /// Calibration sequences
    #[arg(long, default_value_t = 32, conflicts_with = "preset")]
    samples: usize,
    /// Tokens of a calibration sequence
    #[arg(long, default_value_t = 512, conflicts_with = "preset")]
    seqlen: usize,
    /// On how many of the sequences predictions are compared, at most on all
    #[arg(long, default_value_t = 4, conflicts_with = "preset", value_parser = clap::value_parser!(u16).range(1..))]
    probes: u16,
    /// Choose calibration sequences by random numbers of this seed [default: evenly spread]
    #[arg(long, conflicts_with = "preset")]
    seed: Option<u64>,
    /// Widths to choose from
    #[arg(long, value_delimiter = ',', default_value = "2,3,4,8", conflicts_with = "preset", value_parser = clap::value_parser!(u32).range(2..=8))]
    bits: Vec<u32>,
    /// Group sizes to choose from; -1 for one group a column
    #[arg(long, value_delimiter = ',', default_value = "32,64,128", conflicts_with = "preset", allow_negative_numbers = true)]
    group_sizes: Vec<i64>,
    /// Zero points at the midpoint [default]
    #[arg(long, overrides_with = "asym")]
    sym: bool,
    /// A zero point for each group and column
    #[arg(long)]
    asym: bool,
    /// gptq, gptq_v2, gptq_p or compressed-tensors [default: gptq; gptq_v2 with --asym; gptq_p with 5, 6 or 7 bits]
    #[arg(long)]
    format: Option<Target>,
    /// How codes will be chosen
    #[arg(long, value_enum, default_value = "gptq", conflicts_with = "preset")]
    method: MethodArg,
    /// Let the Hessian of every expert see all tokens
    #[arg(long, conflicts_with = "preset")]
    all_experts: bool,
    /// Write the rules to this file: a quantization config with `dynamic`, for `quantize --dynamic`
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Threads to work with [default: as many as the machine offers]
    #[arg(long, short = 't', value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print every module with its class or the prices of its choices
    #[arg(long)]
    explain: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    fn recipe(&self) -> Result<Recipe> {
        let target = match self.format {
            Some(target @ (Target::Gptq | Target::GptqV2 | Target::GptqP | Target::CompressedTensors)) => target,
            Some(target) => bail!(
                "--format: expected gptq, gptq_v2, gptq_p or compressed-tensors, found {target}, which has one width and one group size for all modules"
            ),
            None if self.preset.is_none() && self.bits.iter().any(|b| matches!(b, 5..=7)) => Target::GptqP,
            None if self.asym => Target::GptqV2,
            None => Target::Gptq,
        };
        let method = match self.method {
            MethodArg::Rtn => Method::Rtn,
            MethodArg::Gptq => Method::Gptq,
        };
        Ok(Recipe { target, method, sym: !self.asym, all_experts: self.all_experts, ..Recipe::default() })
    }

    fn candidates(&self) -> Result<Vec<Choice>> {
        let mut out = vec![];
        for &group in &self.group_sizes {
            let group_size = match group {
                -1 => None,
                rows @ 1.. => Some(rows as usize),
                other => bail!("--group-sizes: expected -1 or 1 and more, found {other}; 32, 64 and 128 are usual"),
            };
            out.extend(self.bits.iter().map(|&bits| Choice { bits, group_size }));
        }
        // choices of one group size together: they share a factorization
        out.sort_by_key(|c| (c.group_size, c.bits));
        out.dedup();
        Ok(out)
    }
}

/// What came out, however it was chosen.
struct Planned {
    rules: Value,
    predicted: PredictedBytes,
    /// The sum of the expected divergences.
    loss: Option<f64>,
    /// A line for each module or unit.
    lines: Vec<String>,
    modules: Value,
}

pub fn run(args: &Args) -> Result<()> {
    let (recipe, candidates) = (args.recipe()?, args.candidates()?);
    let source = Checkpoint::open(&args.model)?;
    let options = OpenOptions { isa: isa_from_env()?, threads: args.threads.map(usize::from), ..OpenOptions::default() };
    let backend = Arc::new(options.backend()?);
    let planned = match (args.preset, args.max_size, args.bits_per_weight) {
        (Some(which), ..) => by_class(&source, &recipe, which)?,
        (None, Some(bytes), _) => measured(args, &source, &recipe, &candidates, &backend, Budget::Files(bytes))?,
        (None, None, Some(bits)) => measured(args, &source, &recipe, &candidates, &backend, Budget::BitsPerWeight(bits))?,
        (None, None, None) => bail!("expected --max-size, --bits-per-weight or --preset"),
    };
    warn(&[&source]);
    let forecast = forecast(&source, &planned.predicted, &backend)?;
    if let Some(path) = &args.output {
        std::fs::write(path, format!("{:#}\n", planned.rules)).with_context(|| path.display().to_string())?;
    }
    print(args, &recipe, &planned, &forecast)
}

fn by_class(source: &Checkpoint, recipe: &Recipe, which: PresetArg) -> Result<Planned> {
    let which = match which {
        PresetArg::Dense => Preset::Dense,
        PresetArg::Moe => Preset::Moe,
        PresetArg::Quality => Preset::Quality,
        PresetArg::Speed => Preset::Speed,
        PresetArg::Size => Preset::Size,
    };
    let found = preset(source, recipe, which)?;
    for module in &found.unknown {
        eprintln!("warning: {module}: of no known class; it keeps the default, 4 bits in groups of 128 if it is quantized at all");
    }
    let class = |c: &Option<billfish_quantize::plan::Class>| c.map_or("unknown", |c| c.name());
    let lines = found.modules.iter().map(|(name, c, choice)| format!("{name}: {}, {}", class(c), words(*choice))).collect();
    let object = |(name, c, choice): &(String, Option<billfish_quantize::plan::Class>, Option<Choice>)| json!({"module": name, "class": class(c), "bits": choice.map(|c| c.bits), "group_size": choice.map(group)});
    let modules = found.modules.iter().map(object).collect();
    let with = Recipe { dynamic: Dynamic::parse("the rules", &found.rules)?, ..recipe.clone() };
    Ok(Planned { predicted: predicted_bytes(source, &with)?, rules: found.rules, loss: None, lines, modules })
}

fn measured(
    args: &Args,
    source: &Checkpoint,
    recipe: &Recipe,
    candidates: &[Choice],
    backend: &Arc<billfish_kernels::Backend>,
    budget: Budget,
) -> Result<Planned> {
    let Some(path) = &args.calibration else {
        bail!("--calibration: expected a text to measure with, found none; name one like what the model will read, or choose a --preset");
    };
    let options = CalibrationOptions { samples: args.samples, seqlen: args.seqlen, seed: args.seed };
    let text = read_calibration(source, path, &options)?;
    text.warnings.iter().for_each(|w| eprintln!("warning: {w}"));
    let job =
        Study { source, recipe, candidates, samples: &text.sequences, probes: usize::from(args.probes), backend: Arc::clone(backend) };
    let bar = count_bar("layers", 0);
    let found = study(&job, &mut |done, layers| {
        bar.set_length(layers as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let found: Sensitivity = found?;
    let fit = found.fit(source, recipe, budget)?;
    let mut lines = vec![];
    let mut modules = vec![];
    for (unit, &at) in found.units.iter().zip(&fit.chosen) {
        let names: Vec<&str> = unit.modules.iter().map(|l| l.name.as_str()).collect();
        let o = &unit.options[at];
        lines.push(format!("{}: {}, output error {:.3e}, divergence {:.3e}", brief(&names), words(Some(o.choice)), o.error, o.loss));
        let options = unit.options.iter().map(
            |o| json!({"bits": o.choice.bits, "group_size": group(o.choice), "bytes": o.bytes, "output_error": o.error, "kld": o.loss}),
        );
        modules.push(json!({
            "modules": names,
            "bits": o.choice.bits,
            "group_size": group(o.choice),
            "options": options.collect::<Value>(),
        }));
    }
    Ok(Planned { rules: fit.rules, predicted: fit.predicted, loss: Some(fit.loss), lines, modules: modules.into() })
}

fn group(choice: Choice) -> i64 {
    choice.group_size.map_or(-1, |g| g as i64)
}

fn words(choice: Option<Choice>) -> String {
    choice.map_or_else(|| "dense".into(), |c| format!("w{}g{}", c.bits, group(c)))
}

/// The names of a unit, or the first and the number of the others.
fn brief(names: &[&str]) -> String {
    match names {
        [first, rest @ ..] if rest.len() > 3 => format!("{first} and {} more", rest.len()),
        all => all.join(", "),
    }
}

fn print(args: &Args, recipe: &Recipe, planned: &Planned, forecast: &Forecast) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let p = &planned.predicted;
    let weights: u64 = p.modules.iter().map(|(l, ..)| l.in_features as u64 * l.out_features as u64).sum();
    let bytes: u64 = p.modules.iter().map(|(.., bytes)| bytes).sum();
    let bits_per_weight = bytes as f64 * 8.0 / weights.max(1) as f64;
    if args.json {
        let object = json!({
            "model": args.model.display().to_string(),
            "format": recipe.target.to_string(),
            "bytes": p.total.files,
            "tensor_bytes": p.total.tensors,
            "bits_per_weight": bits_per_weight,
            "kld": planned.loss,
            "memory": {"weights": forecast.weights, "kv_per_token": forecast.kv_per_token},
            "bytes_per_token": forecast.read_per_token,
            "bytes_per_second": forecast.bytes_per_second,
            "tokens_per_second": forecast.tokens_per_second,
            "modules": planned.modules,
            "rules": planned.rules,
        });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    if args.explain {
        planned.lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    let mut schemes: BTreeMap<(u32, i64), (usize, u64)> = BTreeMap::new();
    for (l, s, _) in &p.modules {
        let of = schemes.entry((s.grid.bits, s.group_size.map_or(-1, |g| g as i64))).or_default();
        *of = (of.0 + 1, of.1 + l.in_features as u64 * l.out_features as u64);
    }
    for ((bits, group), (modules, of)) in schemes {
        writeln!(out, "w{bits}g{group}: {modules} modules, {:.1} % of their weights", 100.0 * of as f64 / weights.max(1) as f64)?;
    }
    writeln!(out, "files: {} bytes, {bits_per_weight:.4} bits per weight of the quantized modules", p.total.files)?;
    if let Some(loss) = planned.loss {
        writeln!(out, "expected mean divergence from the dense model: {loss:.3e}")?;
    }
    writeln!(
        out,
        "running: {:.3} MB of weights in memory, {} bytes of keys and values a token; {:.1} tokens per second at most, {:.1} MB each at {:.1} GB/s",
        forecast.weights as f64 / 1e6,
        forecast.kv_per_token,
        forecast.tokens_per_second,
        forecast.read_per_token as f64 / 1e6,
        forecast.bytes_per_second / 1e9
    )?;
    match &args.output {
        Some(path) => {
            let asym = if recipe.sym { "" } else { " --asym" };
            let method = if recipe.method == Method::Rtn { " --method rtn" } else { "" };
            let experts = if recipe.all_experts { " --all-experts" } else { "" };
            let text = args.calibration.as_ref().map_or_else(|| "TEXT".into(), |p| p.display().to_string());
            writeln!(
                out,
                "billfish quantize {} OUT --format {}{asym}{method}{experts} --dynamic {} --calibration {text}",
                args.model.display(),
                recipe.target,
                path.display()
            )?;
        }
        None => writeln!(out, "{:#}", planned.rules)?,
    }
    Ok(())
}
