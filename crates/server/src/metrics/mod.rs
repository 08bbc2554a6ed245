//! What `/metrics` says: counters, gauges and histograms under our names, and under those of vLLM, so that dashboards made
//! for it work.

mod histogram;

use billfish_engine::Stats;
use histogram::Histogram;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Stop,
    Length,
    Abort,
    Deadline,
    Error,
}

const ENDS: [(Ended, &str); 5] =
    [(Ended::Stop, "stop"), (Ended::Length, "length"), (Ended::Abort, "abort"), (Ended::Deadline, "deadline"), (Ended::Error, "error")];

/// All that is counted outside of the engine.
#[derive(Debug)]
pub(crate) struct Metrics {
    counts: Mutex<Counts>,
    labels: String,
}

/// The numbers.
#[derive(Debug)]
pub(crate) struct Counts {
    pub prompt_tokens: u64,
    pub generation_tokens: u64,
    ended: [u64; ENDS.len()],
    /// Answers by path and status.
    answers: Vec<((&'static str, u16), u64)>,
    pub first_token: Histogram,
    pub between_tokens: Histogram,
    pub request: Histogram,
    pub decode: Histogram,
    pub request_prompt: Histogram,
    pub request_generation: Histogram,
    pub params_n: Histogram,
    pub params_max: Histogram,
}

impl Counts {
    pub fn ended(&mut self, end: Ended) {
        // each is in the list
        if let Some(at) = ENDS.iter().position(|(e, _)| *e == end) {
            self.ended[at] += 1;
        }
    }
}

impl Metrics {
    /// Nothing is counted yet. `model` is the label of every number.
    pub fn new(model: &str, max_model_len: usize) -> Metrics {
        let lengths = Histogram::new(&histogram::lengths(max_model_len));
        let counts = Counts {
            prompt_tokens: 0,
            generation_tokens: 0,
            ended: [0; ENDS.len()],
            answers: vec![],
            first_token: Histogram::new(histogram::FIRST_TOKEN),
            between_tokens: Histogram::new(histogram::BETWEEN_TOKENS),
            request: Histogram::new(histogram::REQUEST),
            decode: Histogram::new(histogram::REQUEST),
            request_prompt: lengths.clone(),
            request_generation: lengths.clone(),
            params_n: Histogram::new(histogram::CHOICES),
            params_max: lengths,
        };
        Metrics { counts: Mutex::new(counts), labels: format!("model_name=\"{}\",engine=\"0\"", escaped(model)) }
    }

    pub fn counts(&self) -> MutexGuard<'_, Counts> {
        // numbers are right after every single change
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an answer; `path` is that of a route.
    pub fn answered(&self, path: &'static str, status: u16) {
        let mut counts = self.counts();
        match counts.answers.iter_mut().find(|(k, _)| *k == (path, status)) {
            Some((_, n)) => *n += 1,
            None => counts.answers.push(((path, status), 1)),
        }
    }

    /// Everything in Prometheus' text form.
    pub fn text(&self, stats: &Stats) -> String {
        let counts = self.counts();
        let mut page = Page { out: String::new(), labels: &self.labels };
        page.gauge("num_requests_running", "Choices that are being generated.", stats.running as f64);
        page.gauge("num_requests_waiting", "Choices that wait for their turn.", stats.waiting as f64);
        let usage = if stats.blocks == 0 { 0.0 } else { stats.blocks_used as f64 / stats.blocks as f64 };
        page.gauge("kv_cache_usage_perc", "Part of the KV cache in use, 1 is all of it.", usage);
        page.gauge("kv_cache_blocks_total", "Blocks of the KV cache.", stats.blocks as f64);
        page.gauge("kv_cache_blocks_cached", "Blocks that hold a prefix for later requests.", stats.blocks_cached as f64);
        page.counter("prompt_tokens_total", "Tokens of prompts.", counts.prompt_tokens);
        page.counter("generation_tokens_total", "Tokens generated.", counts.generation_tokens);
        page.counter("num_preemptions_total", "Choices that gave up their blocks for others.", stats.preemptions);
        page.counter("prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.", stats.prefix_queries);
        page.counter("prefix_cache_hits_total", "Prompt tokens found there.", stats.prefix_hits);
        page.counter("spec_decode_num_drafts_total", "Drafts of the n-gram proposer.", stats.drafts);
        page.counter("spec_decode_num_draft_tokens_total", "Tokens in drafts.", stats.draft_tokens);
        page.counter("spec_decode_num_accepted_tokens_total", "Tokens of drafts that were right.", stats.accepted_tokens);
        page.counter("steps_total", "Passes through the model.", stats.steps);
        let ends: Vec<(String, u64)> =
            ENDS.iter().zip(counts.ended).map(|((_, name), n)| (format!("finished_reason=\"{name}\""), n)).collect();
        page.family("request_success_total", "Choices that ended, by reason.", "counter", &ends);
        let answers: Vec<(String, u64)> =
            counts.answers.iter().map(|((path, status), n)| (format!("path=\"{path}\",status=\"{status}\""), *n)).collect();
        page.family("http_answers_total", "Answers by path and status.", "counter", &answers);
        for (name, help, histogram) in [
            ("time_to_first_token_seconds", "From a request to its first token.", &counts.first_token),
            ("inter_token_latency_seconds", "Between two tokens of a choice.", &counts.between_tokens),
            ("e2e_request_latency_seconds", "From a request to its last token.", &counts.request),
            ("request_decode_time_seconds", "From a request's first token to its last.", &counts.decode),
            ("request_prompt_tokens", "Prompt tokens of a request.", &counts.request_prompt),
            ("request_generation_tokens", "Tokens generated for a request.", &counts.request_generation),
            ("request_params_n", "Choices that a request asks for.", &counts.params_n),
            ("request_params_max_tokens", "Tokens that a choice may have.", &counts.params_max),
        ] {
            page.histogram(name, help, histogram);
        }
        page.out
    }
}

/// The prefixes under which each number stands.
const PREFIXES: [&str; 2] = ["billfish_", "vllm:"];

struct Page<'m> {
    out: String,
    labels: &'m str,
}

impl Page<'_> {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        // writing to a string does not fail
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn one(&mut self, name: &str, help: &str, kind: &str, value: &str) {
        for prefix in PREFIXES {
            let name = format!("{prefix}{name}");
            self.head(&name, help, kind);
            let _ = writeln!(self.out, "{name}{{{}}} {value}", self.labels);
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.one(name, help, "gauge", &value.to_string());
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.one(name, help, "counter", &value.to_string());
    }

    fn family(&mut self, name: &str, help: &str, kind: &str, values: &[(String, u64)]) {
        for prefix in PREFIXES {
            let name = format!("{prefix}{name}");
            self.head(&name, help, kind);
            for (label, value) in values {
                let _ = writeln!(self.out, "{name}{{{},{label}}} {value}", self.labels);
            }
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        for prefix in PREFIXES {
            let name = format!("{prefix}{name}");
            self.head(&name, help, "histogram");
            histogram.write(&mut self.out, &name, self.labels);
        }
    }
}

/// A label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
