//! `billfish bench serve`: the options, the text and the JSON keys of vLLM's command of this name.

use super::super::options::count_bar;
use super::prompts::{PromptArgs, SOON};
use anyhow::{Context, Result, bail};
use billfish::bench::serving::{Figures, Load, body, send};
use billfish::bench::wire::Target;
use billfish::bench::{arrivals, statistics};
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
    #[command(flatten)]
    prompts: PromptArgs,
    /// Requests a second, at random times; inf sends all at once
    #[arg(long, default_value_t = f64::INFINITY)]
    request_rate: f64,
    /// How evenly they come at a --request-rate: 1 at random, less in bursts, more at even times (shape of a gamma distribution) [default: 1]
    #[arg(long)]
    burstiness: Option<f64>,
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
    /// Count requests that keep to all of these limits in milliseconds, such as ttft:500 tpot:50 e2el:9000
    #[arg(long, num_args = 1.., value_name = "METRIC:MS", value_parser = service_level)]
    goodput: Vec<(Metric, f64)>,
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

/// A limit of `--goodput`; of single gaps between tokens there is none, as with vLLM.
fn service_level(text: &str) -> std::result::Result<(Metric, f64), String> {
    let wrong = || format!("expected ttft, tpot or e2el and milliseconds, such as ttft:500, found `{text}`");
    let (name, limit) = text.split_once(':').ok_or_else(wrong)?;
    let metric = match name {
        "ttft" => Metric::Ttft,
        "tpot" => Metric::Tpot,
        "e2el" => Metric::E2el,
        _ => return Err(wrong()),
    };
    limit.parse().ok().filter(|ms: &f64| ms.is_finite() && *ms >= 0.0).map(|ms| (metric, ms)).ok_or_else(wrong)
}

pub fn run(args: &Args) -> Result<()> {
    let url = args.url.as_deref().or(args.base_url.as_deref()).unwrap_or("http://127.0.0.1:8000");
    let key = std::env::var("OPENAI_API_KEY").ok().filter(|k| !k.is_empty());
    let target = Target::new(url, key).map_err(anyhow::Error::msg)?;
    if args.request_rate.is_nan() || args.request_rate <= 0.0 {
        bail!("--request-rate: expected a number above 0 or inf, found {}", args.request_rate);
    }
    let burstiness = args.burstiness.unwrap_or(1.0);
    if args.burstiness.is_some() && args.request_rate.is_infinite() {
        bail!("--burstiness: all requests come at once without a --request-rate; give one, or leave it out");
    }
    if !burstiness.is_finite() || burstiness <= 0.0 {
        bail!("--burstiness: expected a number above 0, found {burstiness}");
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
    let count = args.num_prompts as usize;
    let prompts = args.prompts.prompts(&target, &model, chat, count, args.seed)?;
    let bodies = prompts.iter().map(|p| body(&model, &p.prompt, chat, p.output, &extra));
    let load = Load {
        target,
        endpoint,
        bodies: bodies.collect(),
        arrivals: arrivals(count, args.request_rate, burstiness, args.seed),
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

/// How many requests keep to all limits of `--goodput`, if there are any.
fn goodput(args: &Args, f: &Figures) -> Option<usize> {
    let limits = |metric: Metric| args.goodput.iter().filter(move |(m, _)| *m == metric).map(|(_, ms)| *ms);
    let limit = |metric: Metric| limits(metric).fold(f64::INFINITY, f64::min);
    (!args.goodput.is_empty()).then(|| f.within(limit(Metric::Ttft), limit(Metric::Tpot), limit(Metric::E2el)))
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
        float(&mut out, "Burstiness factor:", args.burstiness.unwrap_or(1.0));
    }
    float(&mut out, "Benchmark duration (s):", seconds);
    out += &format!("{:<40} {:<10}\n{:<40} {:<10}\n", "Total input tokens:", f.input, "Total generated tokens:", f.output);
    float(&mut out, "Request throughput (req/s):", f.completed as f64 / seconds);
    if let Some(good) = goodput(args, f) {
        float(&mut out, "Request goodput (req/s):", good as f64 / seconds);
    }
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
        "burstiness": args.burstiness.unwrap_or(1.0),
        "max_concurrency": args.max_concurrency,
        "duration": seconds,
        "completed": f.completed,
        "failed": count - f.completed,
        "total_input_tokens": f.input,
        "total_output_tokens": f.output,
        "request_throughput": f.completed as f64 / seconds,
        "request_goodput": goodput(args, f).map(|good| good as f64 / seconds),
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
