//! `billfish bench latency` and `billfish bench throughput`: the options and JSON keys of vLLM's commands of these names.

use super::super::options::{RunningArgs, count_bar};
use super::super::run::check_length;
use super::output::{machine_json, machine_lines};
use super::subject::{GatedArgs, Subject, Verdict};
use anyhow::{Context, Result};
use billfish::Machine;
use billfish::bench::{PASS_TOKENS, Prober, Task, random_tokens, seed_of, serve, statistics, uncached_bytes};
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::PathBuf;

/// What every output of several requests says.
pub const BATCHING: &str = "side by side";

#[derive(clap::Args)]
pub struct Latency {
    #[command(flatten)]
    subject: GatedArgs,
    #[command(flatten)]
    running: RunningArgs,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    input_len: u32,
    /// Tokens to generate for each
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    output_len: u32,
    /// Requests that arrive at once and run side by side
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Batches that are run before and not counted
    #[arg(long, default_value_t = 10)]
    num_iters_warmup: u32,
    /// Batches that are measured
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    num_iters: u32,
    /// Write the results to this file as one JSON object
    #[arg(long)]
    output_json: Option<PathBuf>,
}

/// Where prompts come from.
#[derive(Clone, Copy, ValueEnum)]
enum Dataset {
    /// Random tokens
    Random,
}

#[derive(clap::Args)]
pub struct Throughput {
    #[command(flatten)]
    subject: GatedArgs,
    #[command(flatten)]
    running: RunningArgs,
    /// Where prompts come from
    #[arg(long, value_enum, default_value = "random")]
    dataset_name: Dataset,
    /// Requests; they arrive at once
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    num_prompts: u32,
    /// Requests that run side by side; the others wait for one to end
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_num_seqs: u32,
    /// Tokens of each prompt
    #[arg(long, visible_alias = "input-len", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    random_input_len: u32,
    /// Tokens to generate for each
    #[arg(long, visible_alias = "output-len", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    random_output_len: u32,
    /// Spread the lengths evenly over LEN · (1 - RATIO) to LEN · (1 + RATIO); at least 0 and below 1
    #[arg(long, default_value_t = 0.0, value_name = "RATIO", value_parser = ratio)]
    random_range_ratio: f64,
    /// Seed of prompts and lengths
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the results to this file as one JSON object
    #[arg(long)]
    output_json: Option<PathBuf>,
}

fn ratio(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|r| (0.0..1.0).contains(r)).ok_or_else(|| "expected a number of at least 0 and below 1".into())
}

/// `count` lengths spread evenly over `length · (1 ± ratio)`.
fn lengths(length: u32, ratio: f64, count: usize, seed: u64) -> Vec<usize> {
    let (low, high) = ((f64::from(length) * (1.0 - ratio)).floor() as usize, (f64::from(length) * (1.0 + ratio)).floor() as usize);
    random_tokens(count, high - low + 1, seed).into_iter().map(|offset| (low + offset as usize).max(1)).collect()
}

/// A request with random tokens.
pub fn task(subject: &Subject, input: usize, output: usize, seed: u64) -> Task {
    Task { prompt: random_tokens(input, subject.loaded.tokenizer.vocab_size(), seed), output }
}

pub fn latency(args: &Latency) -> Result<()> {
    let subject = args.subject.load(&args.running.open_options()?)?;
    check_length(&subject.loaded, args.input_len as usize, args.output_len as usize);
    let verdict = subject.verdict()?;
    let tasks: Vec<Task> =
        (0..args.batch_size).map(|i| task(&subject, args.input_len as usize, args.output_len as usize, u64::from(i))).collect();
    let bar = count_bar("batches", (args.num_iters_warmup + args.num_iters) as usize);
    let mut latencies = vec![];
    for i in 0..args.num_iters_warmup + args.num_iters {
        let served = serve(&subject.loaded, &tasks, tasks.len(), &mut || ())?;
        if i >= args.num_iters_warmup {
            latencies.push(served.seconds);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let average = statistics::mean(&latencies);
    let percentiles = [10, 25, 50, 75, 90, 99].map(|p| (p, statistics::percentile(&latencies, f64::from(p))));
    let mut lines = vec![format!("Avg latency: {average} seconds")];
    lines.extend(percentiles.iter().map(|(p, seconds)| format!("{p}% percentile latency: {seconds} seconds")));
    let mut object = Map::new();
    object.insert("avg_latency".into(), json!(average));
    object.insert("latencies".into(), json!(latencies));
    object.insert("percentiles".into(), percentiles.iter().map(|(p, s)| (p.to_string(), json!(s))).collect::<Map<_, _>>().into());
    object.insert("input_len".into(), json!(args.input_len));
    object.insert("output_len".into(), json!(args.output_len));
    object.insert("batch_size".into(), json!(args.batch_size));
    report(&subject, &verdict, args.batch_size, &lines, object, args.output_json.as_ref())
}

pub fn throughput(args: &Throughput) -> Result<()> {
    let Dataset::Random = args.dataset_name;
    let subject = args.subject.load(&args.running.open_options()?)?;
    let (count, ratio) = (args.num_prompts as usize, args.random_range_ratio);
    let inputs = lengths(args.random_input_len, ratio, count, args.seed);
    let outputs = lengths(args.random_output_len, ratio, count, args.seed ^ 1);
    if let Some((input, output)) = inputs.iter().zip(&outputs).max_by_key(|(i, o)| *i + *o) {
        check_length(&subject.loaded, *input, *output);
    }
    let verdict = subject.verdict()?;
    let seeds = (0..).map(|i| seed_of(args.seed, i));
    let tasks: Vec<Task> = inputs.iter().zip(&outputs).zip(seeds).map(|((&i, &o), seed)| task(&subject, i, o, seed)).collect();
    let bar = count_bar("requests", count);
    let served = serve(&subject.loaded, &tasks, args.max_num_seqs as usize, &mut || bar.inc(1))?;
    bar.finish_and_clear();
    let total = served.prompt_tokens + served.output_tokens;
    let rate = |n: usize| n as f64 / served.seconds;
    let lines = vec![
        format!(
            "Throughput: {:.2} requests/s, {:.2} total tokens/s, {:.2} output tokens/s",
            rate(count),
            rate(total),
            rate(served.output_tokens)
        ),
        format!("Total num prompt tokens:  {}", served.prompt_tokens),
        format!("Total num output tokens:  {}", served.output_tokens),
    ];
    let mut object = Map::new();
    object.insert("elapsed_time".into(), json!(served.seconds));
    object.insert("num_requests".into(), json!(count));
    object.insert("total_num_tokens".into(), json!(total));
    object.insert("requests_per_second".into(), json!(rate(count)));
    object.insert("tokens_per_second".into(), json!(rate(total)));
    object.insert("max_num_seqs".into(), json!(args.max_num_seqs));
    report(&subject, &verdict, args.max_num_seqs, &lines, object, args.output_json.as_ref())
}

/// Prints the lines under the machine, and writes the object with the machine in it.
fn report(
    subject: &Subject,
    verdict: &Verdict,
    at_once: u32,
    lines: &[String],
    mut object: Map<String, Value>,
    file: Option<&PathBuf>,
) -> Result<()> {
    let peak = subject.peak(billfish::machine::peak_memory());
    let backend = subject.loaded.model.backend();
    let (isa, threads) = (backend.isa(), backend.threads());
    let limits = Prober::new(uncached_bytes()).measure(backend);
    let machine = Machine::detect();
    let mut out = std::io::stdout().lock();
    for line in machine_lines(&machine, isa, &[(threads, limits)]) {
        writeln!(out, "- {line}")?;
    }
    writeln!(out, "- {}", subject.line())?;
    writeln!(out, "- {}", verdict.line())?;
    let precision = subject.loaded.precision();
    writeln!(out, "- up to {at_once} requests run {BATCHING}, up to {PASS_TOKENS} tokens a pass, with {precision}")?;
    writeln!(out)?;
    for line in lines {
        writeln!(out, "{line}")?;
    }
    let Some(path) = file else { return Ok(()) };
    object.insert("batching".into(), json!(BATCHING));
    object.insert("model".into(), json!(subject.name));
    object.insert("model_type".into(), json!(subject.summary.line()));
    object.insert("files_sha256".into(), json!(subject.sha256));
    object.insert("packed_cache".into(), super::super::stats::cache(&subject.loaded));
    object.insert("activations".into(), json!(subject.loaded.model.activations().name()));
    object.insert("kv_cache_dtype".into(), json!(subject.loaded.model.kv_type().name()));
    object.insert("kernel".into(), json!(super::super::stats::layouts(&subject.loaded)));
    object.insert("peak_memory_bytes".into(), json!(peak));
    object.insert("quality".into(), verdict.json());
    object.insert("machine".into(), machine_json(&machine, isa, threads, &limits));
    std::fs::write(path, format!("{:#}\n", Value::Object(object)))
        .with_context(|| format!("{}: the results cannot be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_stay_in_their_range() {
        assert_eq!(lengths(100, 0.0, 3, 1), [100; 3]);
        let spread = lengths(100, 0.25, 500, 1);
        assert!(spread.iter().all(|l| (75..=125).contains(l)) && spread.iter().any(|l| *l < 85) && spread.iter().any(|l| *l > 115));
        assert!(lengths(1, 0.9, 50, 2).iter().all(|l| *l == 1));
        assert!(ratio("1").is_err() && ratio("-0.1").is_err() && ratio("nan").is_err() && ratio("0.5") == Ok(0.5));
    }
}
