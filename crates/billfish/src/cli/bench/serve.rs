//! `billfish bench serve`: the options, the text and the JSON keys of vLLM's command of this name.

use super::super::options::count_bar;
use anyhow::{Context, Result, bail};
use billfish::bench::serving::{Figures, Load, body, send};
use billfish::bench::wire::Target;
use billfish::bench::{random_tokens, statistics};
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Which interface is measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// /v1/completions
    Openai,
    /// /v1/chat/completions
    OpenaiChat,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Metric {
    Ttft,
    Tpot,
    Itl,
    E2el,
}

#[derive(clap::Args)]
pub struct Args {
    /// The server [default: http://127.0.0.1:8000]
    #[arg(conflicts_with = "base_url")]
    url: Option<String>,
    /// The same under vLLM's name
    #[arg(long)]
    base_url: Option<String>,
    /// Which interface is measured
    #[arg(long, value_enum, default_value = "openai")]
    backend: Backend,
    /// Path of the requests [default: that of the backend]
    #[arg(long)]
    endpoint: Option<String>,
    /// Name of the model [default: the first that the server has]
    #[arg(long)]
    model: Option<String>,
    /// Requests
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    num_prompts: u32,
    /// Tokens of each prompt
    #[arg(long, visible_alias = "input-len", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    random_input_len: u32,
    /// Tokens to generate for each
    #[arg(long, visible_alias = "output-len", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    random_output_len: u32,
    /// Requests a second, at random times; inf sends all at once
    #[arg(long, default_value_t = f64::INFINITY)]
    request_rate: f64,
    /// Requests at once at most
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_concurrency: Option<u32>,
    /// Seed of prompts and times
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Go on after an end-of-sequence token
    #[arg(long)]
    ignore_eos: bool,
    /// Temperature of the requests [default: 0]
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Which times are shown
    #[arg(long, value_enum, value_delimiter = ',', default_value = "ttft,tpot,itl")]
    percentile_metrics: Vec<Metric>,
    /// Which percentiles of them
    #[arg(long, value_delimiter = ',', default_value = "99")]
    metric_percentiles: Vec<f64>,
    /// Further fields of every request, as a JSON object
    #[arg(long)]
    extra_body: Option<String>,
    /// Seconds in which something must come
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Write the results to --result-filename as one JSON object
    #[arg(long)]
    save_result: bool,
    /// File of the results [default: billfish-serve.json]
    #[arg(long)]
    result_filename: Option<PathBuf>,
}

impl Metric {
    /// Heading, name in the text, name in JSON.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Metric::Ttft => ("Time to First Token", "TTFT", "ttft"),
            Metric::Tpot => ("Time per Output Token (excl. 1st token)", "TPOT", "tpot"),
            Metric::Itl => ("Inter-token Latency", "ITL", "itl"),
            Metric::E2el => ("End-to-end Latency", "E2EL", "e2el"),
        }
    }

    fn values(self, figures: &Figures) -> &[f64] {
        match self {
            Metric::Ttft => &figures.first_ms,
            Metric::Tpot => &figures.per_token_ms,
            Metric::Itl => &figures.between_ms,
            Metric::E2el => &figures.latency_ms,
        }
    }
}

/// Words of one token in most vocabularies.
const WORDS: [&str; 16] =
    ["the", "house", "water", "man", "day", "old", "king", "tree", "said", "little", "went", "good", "and", "there", "white", "night"];

/// An answer to a short question.
const SOON: Duration = Duration::from_secs(30);

pub fn run(args: &Args) -> Result<()> {
    let url = args.url.as_deref().or(args.base_url.as_deref()).unwrap_or("http://127.0.0.1:8000");
    let key = std::env::var("OPENAI_API_KEY").ok().filter(|k| !k.is_empty());
    let target = Target::new(url, key).map_err(anyhow::Error::msg)?;
    if args.request_rate.is_nan() || args.request_rate <= 0.0 {
        bail!("--request-rate: expected a number above 0 or inf, found {}", args.request_rate);
    }
    let model = match &args.model {
        Some(model) => model.clone(),
        None => first_model(&target, url)?,
    };
    let chat = args.backend == Backend::OpenaiChat;
    let endpoint = args.endpoint.clone().unwrap_or_else(|| if chat { "/v1/chat/completions" } else { "/v1/completions" }.into());
    let mut extra = json!({"temperature": args.temperature});
    if args.ignore_eos {
        extra["ignore_eos"] = true.into();
    }
    if let Some(text) = &args.extra_body {
        let given: Map<String, Value> = serde_json::from_str(text).context("--extra-body: expected a JSON object")?;
        given.into_iter().for_each(|(k, v)| extra[k] = v);
    }
    let vocabulary = if chat { None } else { vocabulary(&target, &model) };
    let (input, output) = (args.random_input_len as usize, args.random_output_len as usize);
    let count = args.num_prompts as usize;
    let bodies = (0..count).map(|i| {
        let prompt = prompt(vocabulary.as_deref(), input, args.seed.wrapping_add(i as u64));
        body(&model, &prompt, chat, output, &extra)
    });
    let load = Load {
        target,
        endpoint,
        bodies: bodies.collect(),
        arrivals: arrivals(count, args.request_rate, args.seed),
        at_once: args.max_concurrency.map_or(count, |n| n as usize),
        patience: Duration::from_secs(args.timeout),
    };
    let bar = count_bar("requests", count);
    let (outcomes, seconds) = send(&load, &|| bar.inc(1)).context("the system gives no further threads; lower --max-concurrency")?;
    bar.finish_and_clear();
    if let Some(error) = outcomes.iter().find_map(|o| o.error.as_ref()) {
        eprintln!("warning: a request failed: {error}");
    }
    let figures = Figures::of(&outcomes);
    let mut out = std::io::stdout().lock();
    write!(out, "{}", text(args, &figures, count, seconds))?;
    if args.save_result || args.result_filename.is_some() {
        let path = args.result_filename.clone().unwrap_or_else(|| "billfish-serve.json".into());
        let object = object(args, &figures, &model, count, seconds);
        std::fs::write(&path, format!("{object:#}\n")).with_context(|| format!("{}: the results cannot be written", path.display()))?;
    }
    match figures.completed {
        0 => bail!("no request succeeded"),
        _ => Ok(()),
    }
}

fn first_model(target: &Target, url: &str) -> Result<String> {
    let answer = target.send("/v1/models", None, SOON).with_context(|| format!("{url}: no server answers"))?;
    let (status, text) = (answer.status, answer.text()?);
    let models: Value = serde_json::from_str(&text).unwrap_or_default();
    let name = models["data"][0]["id"]
        .as_str()
        .with_context(|| format!("{url}/v1/models: expected a model, found status {status}; give --model"))?;
    Ok(name.to_owned())
}

/// Tokens to make prompts of, where the server says what a text has: prompts then have exactly as many as asked for.
fn vocabulary(target: &Target, model: &str) -> Option<Vec<u64>> {
    let text = WORDS.join(" ");
    let body = json!({"model": model, "prompt": text, "add_special_tokens": false}).to_string();
    let answer = target.send("/tokenize", Some(&body), SOON).ok().filter(|a| a.status == 200)?;
    let value: Value = serde_json::from_str(&answer.text().ok()?).ok()?;
    value["tokens"].as_array()?.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>().filter(|t| !t.is_empty())
}

/// A prompt that no other seed has.
fn prompt(vocabulary: Option<&[u64]>, length: usize, seed: u64) -> Value {
    match vocabulary {
        Some(tokens) => random_tokens(length, tokens.len(), seed).iter().map(|i| tokens[*i as usize]).collect(),
        None => {
            let words: Vec<&str> = random_tokens(length, WORDS.len(), seed).iter().map(|i| WORDS[*i as usize]).collect();
            words.join(" ").into()
        }
    }
}

/// Times of a Poisson process; all at once for an infinite rate.
fn arrivals(count: usize, rate: f64, seed: u64) -> Vec<f64> {
    const STEPS: usize = 1 << 20;
    let mut at = 0.0;
    random_tokens(count, STEPS, seed ^ 0x5eed)
        .into_iter()
        .map(|unit| {
            let now = at;
            // minus the logarithm of an even number above 0 and up to 1
            at += if rate.is_finite() { -((f64::from(unit) + 1.0) / STEPS as f64).ln() / rate } else { 0.0 };
            now
        })
        .collect()
}

fn text(args: &Args, f: &Figures, count: usize, seconds: f64) -> String {
    let mut out = format!("{:=^50}\n", " Serving Benchmark Result ");
    let mut whole = |name: &str, n: usize| out += &format!("{name:<40} {n:<10}\n");
    whole("Successful requests:", f.completed);
    whole("Failed requests:", count - f.completed);
    if let Some(n) = args.max_concurrency {
        whole("Maximum request concurrency:", n as usize);
    }
    let float = |out: &mut String, name: &str, x: f64| *out += &format!("{name:<40} {x:<10.2}\n");
    if args.request_rate.is_finite() {
        float(&mut out, "Request rate configured (RPS):", args.request_rate);
    }
    float(&mut out, "Benchmark duration (s):", seconds);
    out += &format!("{:<40} {:<10}\n{:<40} {:<10}\n", "Total input tokens:", f.input, "Total generated tokens:", f.output);
    float(&mut out, "Request throughput (req/s):", f.completed as f64 / seconds);
    float(&mut out, "Output token throughput (tok/s):", f.output as f64 / seconds);
    float(&mut out, "Peak output token throughput (tok/s):", f.peak_tokens as f64);
    float(&mut out, "Peak concurrent requests:", f.peak_requests as f64);
    float(&mut out, "Total Token throughput (tok/s):", (f.input + f.output) as f64 / seconds);
    for metric in &args.percentile_metrics {
        let (heading, name, _) = metric.names();
        let values = metric.values(f);
        out += &format!("{heading:-^50}\n");
        float(&mut out, &format!("Mean {name} (ms):"), statistics::mean(values));
        float(&mut out, &format!("Median {name} (ms):"), statistics::median(values));
        for p in &args.metric_percentiles {
            float(&mut out, &format!("P{p} {name} (ms):"), statistics::percentile(values, *p));
        }
    }
    out + &"=".repeat(50) + "\n"
}

fn object(args: &Args, f: &Figures, model: &str, count: usize, seconds: f64) -> Value {
    let rate = if args.request_rate.is_finite() { json!(args.request_rate) } else { json!("inf") };
    let mut out = json!({
        "backend": if args.backend == Backend::Openai { "openai" } else { "openai-chat" },
        "model_id": model,
        "num_prompts": count,
        "request_rate": rate,
        "burstiness": 1.0,
        "max_concurrency": args.max_concurrency,
        "duration": seconds,
        "completed": f.completed,
        "failed": count - f.completed,
        "total_input_tokens": f.input,
        "total_output_tokens": f.output,
        "request_throughput": f.completed as f64 / seconds,
        "output_throughput": f.output as f64 / seconds,
        "total_token_throughput": (f.input + f.output) as f64 / seconds,
        "max_output_tokens_per_s": f.peak_tokens,
        "max_concurrent_requests": f.peak_requests,
    });
    for metric in &args.percentile_metrics {
        let (_, _, name) = metric.names();
        let values = metric.values(f);
        out[format!("mean_{name}_ms")] = json!(statistics::mean(values));
        out[format!("median_{name}_ms")] = json!(statistics::median(values));
        out[format!("std_{name}_ms")] = json!(statistics::deviation(values));
        for p in &args.metric_percentiles {
            out[format!("p{p}_{name}_ms")] = json!(statistics::percentile(values, *p));
        }
    }
    out
}
