//! `billfish bench matrix`: batch sizes by lengths.

use super::super::options::{RunningArgs, count_bar};
use super::super::run::check_length;
use super::output::{Format, Row, gigabytes, machine_json, machine_lines, print};
use super::requests::{BATCHING, task};
use super::subject::{GatedArgs, Subject};
use anyhow::Result;
use billfish::Machine;
use billfish::bench::{PASS_TOKENS, Prober, Served, Task, serve, statistics, uncached_bytes};
use billfish::machine::{peak_memory, reset_peak_memory};
use billfish_quantize::{Protocol, perplexity};
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: GatedArgs,
    #[command(flatten)]
    running: RunningArgs,
    /// Requests that arrive at once and run side by side
    #[arg(long, short, value_delimiter = ',', default_value = "1,4,16,64", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch_size: Vec<u32>,
    /// Tokens of each prompt
    #[arg(long, short, value_delimiter = ',', default_value = "128,512,2048,8192", value_parser = clap::value_parser!(u32).range(2..=1 << 24))]
    length: Vec<u32>,
    /// Tokens to generate for each
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    output_len: u32,
    /// A UTF-8 text whose perplexity is measured in windows of each length
    #[arg(long)]
    text: Option<PathBuf>,
    /// Keep the first N tokens of the text
    #[arg(long, requires = "text")]
    limit_tokens: Option<usize>,
    /// How to print the results
    #[arg(long, short, value_enum, default_value = "md")]
    output: Format,
}

/// One cell of the grid.
struct Cell {
    batch: u32,
    length: u32,
    served: Served,
    peak: Option<u64>,
}

pub fn run(args: &Args) -> Result<()> {
    let text = args.text.as_deref().map(super::super::eval::read_text).transpose()?;
    let subject = args.subject.load(&args.running.open_options()?)?;
    let longest = args.length.iter().max().copied().unwrap_or(0);
    check_length(&subject.loaded, longest as usize, args.output_len as usize);
    let verdict = subject.verdict()?;
    let requests: u32 = args.batch_size.iter().sum::<u32>() * args.length.len() as u32;
    let bar = count_bar("requests", requests as usize);
    let mut cells = vec![];
    for &length in &args.length {
        for &batch in &args.batch_size {
            let tasks: Vec<Task> = (0..batch).map(|i| task(&subject, length as usize, args.output_len as usize, u64::from(i))).collect();
            let reset = reset_peak_memory();
            let served = serve(&subject.loaded, &tasks, tasks.len(), &mut || bar.inc(1))?;
            cells.push(Cell { batch, length, served, peak: subject.peak(peak_memory().filter(|_| reset)) });
        }
    }
    bar.finish_and_clear();
    let perplexities = text.map(|text| perplexities(args, &subject, &text)).transpose()?;

    let backend = subject.loaded.model.backend();
    let limits = Prober::new(uncached_bytes()).measure(backend);
    let (machine, isa, threads) = (Machine::detect(), backend.isa(), backend.threads());
    let mut head = machine_lines(&machine, isa, &[(threads, limits)]);
    head.push(subject.line());
    head.push(verdict.line());
    let precision = subject.loaded.precision();
    head.push(format!("the requests of a batch arrive at once and run {BATCHING}, up to {PASS_TOKENS} tokens a pass, with {precision}"));
    let row = |c: &Cell| {
        let s = &c.served;
        let total = (s.prompt_tokens + s.output_tokens) as f64 / s.seconds;
        let output = s.output_tokens as f64 / s.seconds;
        let first = statistics::mean(&s.first_token);
        let per_billion = c.peak.map(|p| p as f64 / subject.summary.parameters.max(1) as f64);
        let ppl = perplexities.as_ref().and_then(|p| p.iter().find(|(l, _)| *l == c.length)).and_then(|(_, p)| *p);
        let dash = || "–".to_string();
        let cells = vec![
            ("model", subject.summary.line()),
            ("threads", threads.to_string()),
            ("batch", c.batch.to_string()),
            ("length", c.length.to_string()),
            ("output", args.output_len.to_string()),
            ("t/s", format!("{total:.2}")),
            ("output t/s", format!("{output:.2}")),
            ("first token, mean s", format!("{first:.4}")),
            ("peak GB", gigabytes(c.peak)),
            ("GB per B params", per_billion.map_or_else(dash, |g| format!("{g:.3}"))),
            ("perplexity", ppl.map_or_else(dash, |p| format!("{p:.4}"))),
            ("quality", verdict.cell()),
        ];
        let json = json!({
            "model": subject.name,
            "model_type": subject.summary.line(),
            "model_n_params": subject.summary.parameters,
            "files_sha256": subject.sha256,
            "packed_cache": super::super::stats::cache(&subject.loaded),
            "n_threads": threads,
            "batch_size": c.batch,
            "batching": BATCHING,
            "input_len": c.length,
            "output_len": args.output_len,
            "elapsed_time": s.seconds,
            "tokens_per_second": total,
            "output_tokens_per_second": output,
            "mean_ttft_s": first,
            "samples_ttft_s": s.first_token,
            "peak_memory_bytes": c.peak,
            "gb_per_billion_params": per_billion,
            "perplexity": ppl,
            "perplexity_protocol": perplexities.as_ref().map(|_| Protocol::Window(c.length as usize).to_string()),
            "activations": subject.loaded.model.activations().name(),
            "kv_cache_dtype": subject.loaded.model.kv_type().name(),
            "kernel": super::super::stats::layouts(&subject.loaded),
            "quality": verdict.json(),
            "machine": machine_json(&machine, isa, threads, &limits),
        });
        Row { cells, json }
    };
    print(args.output, &head, &cells.iter().map(row).collect::<Vec<_>>())
}

/// The perplexity in windows of each length; none where the text is shorter than one window.
fn perplexities(args: &Args, subject: &Subject, text: &str) -> Result<Vec<(u32, Option<f64>)>> {
    let mut ids = subject.loaded.tokenizer.encode(text, false)?;
    ids.truncate(args.limit_tokens.unwrap_or(usize::MAX));
    let of = |&length: &u32| {
        if ids.len() < length as usize {
            eprintln!("warning: the text has {} tokens, so there is no perplexity in windows of {length}", ids.len());
            return Ok((length, None));
        }
        let protocol = Protocol::Window(length as usize);
        Ok((length, Some(perplexity(&subject.loaded.model, &ids, None, protocol, &mut |_, _| ())?.ppl)))
    };
    args.length.iter().map(of).collect()
}
