//! `billfish bench [MODEL]`: prompt and generation speed of a model, with the options, columns and keys of llama-bench.

use super::super::options::{ActivationsArg, CacheArgs, HeadArg, KvArg, count_bar, isa_from_env};
use super::super::stats::layouts;
use super::output::{BestLimits, Format, Row, gigabytes, machine_json, machine_lines, print};
use super::subject::{GatedArgs, Subject, Verdict};
use anyhow::Result;
use billfish::bench::{Measured, Test, measure, statistics};
use billfish::{Activations, Isa, KvType, Machine, OpenOptions, PREFILL_CHUNK};
use billfish_kernels::Backend;
use billfish_models::LoadOptions;
use billfish_text::rfc3339;
use serde_json::{Value, json};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// A prompt and a generation as one test.
#[derive(Clone, Copy, Debug)]
pub struct Pair(usize, usize);

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(',').and_then(|(p, n)| Some(Pair(p.trim().parse().ok()?, n.trim().parse().ok()?)));
        parts
            .filter(|p| (1..=LONGEST).contains(&p.0) && (1..=LONGEST).contains(&p.1))
            .ok_or_else(|| "expected two numbers of tokens of at least 1, such as 512,128".into())
    }
}

/// Most tokens of a test.
const LONGEST: usize = 1 << 24;

fn tokens(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n <= LONGEST).ok_or_else(|| format!("expected a number of tokens from 0 to {LONGEST}"))
}

fn positive(text: &str) -> Result<usize, String> {
    tokens(text).ok().filter(|n| *n > 0).ok_or_else(|| format!("expected a number from 1 to {LONGEST}"))
}

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: GatedArgs,
    /// Tokens of a prompt; 0 for no such test
    #[arg(long, short = 'p', value_delimiter = ',', default_value = "512", value_parser = tokens)]
    n_prompt: Vec<usize>,
    /// Tokens to generate; 0 for no such test
    #[arg(long, short = 'n', value_delimiter = ',', default_value = "128", value_parser = tokens)]
    n_gen: Vec<usize>,
    /// Tokens that are in the context before
    #[arg(long, short = 'd', value_delimiter = ',', default_value = "0", value_parser = tokens)]
    n_depth: Vec<usize>,
    /// A prompt and a generation as one test, such as 512,128 (repeatable)
    #[arg(long, value_name = "P,N")]
    pg: Vec<Pair>,
    /// Samples of each test, after one that is not counted
    #[arg(long, short = 'r', default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repetitions: u32,
    /// Threads to work with [default: as many as the machine offers]
    #[arg(long, short = 't', value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// Tokens of a prompt that run at once
    #[arg(long, short = 'b', value_delimiter = ',', default_values_t = [PREFILL_CHUNK], value_parser = positive)]
    batch_size: Vec<usize>,
    /// Precision of activations
    #[arg(long, value_enum, value_delimiter = ',', default_value = "exact")]
    activations: Vec<ActivationsArg>,
    /// Storage of the KV cache; auto is f16, and f32 with strict activations
    #[arg(long, value_enum, value_delimiter = ',', default_value = "auto")]
    kv_cache_dtype: Vec<KvArg>,
    /// Round a float output head to 8 bits while it is loaded
    #[arg(long, value_enum)]
    quantize_head: Option<HeadArg>,
    #[command(flatten)]
    cache: CacheArgs,
    /// How to print the results
    #[arg(long, short, value_enum, default_value = "md")]
    output: Format,
}

impl Args {
    /// The tests, prompts first, in the order of llama-bench.
    fn tests(&self) -> Vec<Test> {
        let mut tests = vec![];
        for &depth in &self.n_depth {
            tests.extend(self.n_prompt.iter().map(|&prompt| Test { prompt, generate: 0, depth }));
            tests.extend(self.n_gen.iter().map(|&generate| Test { prompt: 0, generate, depth }));
            tests.extend(self.pg.iter().map(|&Pair(prompt, generate)| Test { prompt, generate, depth }));
        }
        tests.retain(|t| t.prompt + t.generate > 0);
        tests
    }
}

/// A list with no entry means one default.
fn or_default<T: Copy, U: From<T>>(list: &[T]) -> Vec<Option<U>> {
    if list.is_empty() { vec![None] } else { list.iter().map(|&v| Some(v.into())).collect() }
}

/// What rows have in common.
struct Context<'a> {
    subject: &'a Subject,
    machine: &'a Machine,
    isa: Isa,
    /// Whether these are worth a column.
    batches: bool,
    caches: bool,
}

/// One measured test with what it was measured under.
struct Outcome {
    measured: Measured,
    threads: usize,
    batch: usize,
    activations: Activations,
    kv: KvType,
    token_scaled: usize,
    verdict: Verdict,
    time: String,
}

pub fn run(args: &Args) -> Result<()> {
    let tests = args.tests();
    anyhow::ensure!(!tests.is_empty(), "no test; give --n-prompt, --n-gen or --pg with more than 0 tokens");
    let threads: Vec<Option<usize>> = or_default(&args.threads);
    let caches: Vec<Option<KvType>> = args.kv_cache_dtype.iter().map(|k| k.kind()).collect();
    let isa = Isa::choose(isa_from_env()?.as_deref())?;
    let quantize_head = args.quantize_head.is_some();
    let activations = args.activations[0].into();
    let (isa_name, cache) = (Some(isa.name().into()), args.cache.dir());
    let first = OpenOptions { isa: isa_name, threads: threads[0], activations, kv_type: caches[0], quantize_head, cache };
    let backends = threads
        .iter()
        .map(|&threads| Ok(Arc::new(OpenOptions { threads, ..first.clone() }.backend()?)))
        .collect::<Result<Vec<Arc<Backend>>>>()?;
    let mut subject = args.subject.load(&first)?;
    warn_of_length(&subject, &tests);

    let configs = args.activations.len() * caches.len() * backends.len() * args.batch_size.len();
    let bar = count_bar("measuring", configs * tests.len() * (1 + args.repetitions as usize));
    let mut results = vec![];
    for &activations in &args.activations {
        for &kv_type in &caches {
            let options = LoadOptions { activations: activations.into(), kv_type, quantize_head };
            subject.loaded.model.reconfigure(Arc::clone(&backends[0]), options);
            // another precision is another output
            let verdict = subject.verdict()?;
            for backend in &backends {
                subject.loaded.model.reconfigure(Arc::clone(backend), options);
                for &batch in &args.batch_size {
                    for &test in &tests {
                        let time = now();
                        let measured = measure(&subject.loaded, test, batch, args.repetitions as usize, &mut || bar.inc(1))?;
                        results.push(Outcome {
                            measured,
                            threads: backend.threads(),
                            batch,
                            activations: options.activations,
                            kv: subject.loaded.model.kv_type(),
                            token_scaled: subject.loaded.model.token_scaled_modules(),
                            verdict: verdict.clone(),
                            time,
                        });
                    }
                }
            }
        }
    }
    bar.finish_and_clear();

    let machine = Machine::detect();
    let mut best = BestLimits::default();
    results.iter().for_each(|r| best.add(r.threads, r.measured.best_limits()));
    let context =
        Context { subject: &subject, machine: &machine, isa, batches: args.batch_size.len() > 1, caches: args.kv_cache_dtype.len() > 1 };
    let mut head = machine_lines(&machine, isa, &best.0);
    head.push(subject.line());
    if quantize_head {
        head.push(subject.loaded.precision());
    }
    let mut verdicts: Vec<String> = results.iter().map(|r| r.verdict.line()).collect();
    verdicts.dedup();
    head.extend(verdicts);
    let rows: Vec<Row> = results.iter().map(|r| row(&context, r)).collect();
    print(args.output, &head, &rows)
}

fn now() -> String {
    rfc3339(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64))
}

/// Warns of tests that are longer than what the model was made for.
fn warn_of_length(subject: &Subject, tests: &[Test]) {
    let longest = tests.iter().map(|t| t.depth + t.prompt + t.generate).max().unwrap_or(0);
    super::super::run::check_length(&subject.loaded, longest, 0);
}

fn row(c: &Context, r: &Outcome) -> Row {
    let (s, m) = (c.subject, &r.measured);
    let (rate, deviation) = m.rate();
    let planes = r.activations.planes();
    let bound = m.bound().name(planes);
    let bits = s.summary.bits.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let kernels = layouts(&s.loaded);
    let peak = s.peak(m.peak_memory);
    let mut cells = vec![
        ("model", s.summary.line()),
        ("size", format!("{:.2} MiB", s.summary.bytes as f64 / f64::from(1 << 20))),
        ("params", format!("{:.2} M", s.summary.parameters as f64 / 1e6)),
        ("backend", "CPU".to_string()),
        ("threads", r.threads.to_string()),
        ("test", m.test.to_string()),
        ("t/s", format!("{rate:.2} ± {deviation:.2}")),
        ("activations", r.activations.name().into()),
        ("bits", if bits.is_empty() { "–".into() } else { bits }),
        ("kernel", kernels.clone()),
        ("ISA", c.isa.name().into()),
        ("GB/s", format!("{:.2}", m.bytes_per_second() / 1e9)),
        ("Gop/s", format!("{:.1}", m.operations_per_second() / 1e9)),
        ("limit", bound.clone()),
        ("% of limit", format!("{:.1}", 100.0 * m.limit_fraction())),
        ("peak GB", gigabytes(peak)),
        ("quality", r.verdict.cell()),
    ];
    if c.batches {
        cells.insert(5, ("n_batch", r.batch.to_string()));
    }
    if c.caches {
        cells.insert(5, ("kv", r.kv.name().into()));
    }
    let ns: Vec<f64> = m.seconds.iter().map(|s| s * 1e9).collect();
    let best = m.best_limits();
    // the keys of llama-bench
    let mut json = json!({
        "build_commit": billfish::machine::COMMIT,
        "cpu_info": c.machine.cpu,
        "gpu_info": "",
        "backends": "CPU",
        "model_filename": s.name,
        "model_type": s.summary.line(),
        "model_size": s.summary.bytes,
        "model_n_params": s.summary.parameters,
        "n_batch": r.batch,
        "n_ubatch": r.batch,
        "n_threads": r.threads,
        "type_k": r.kv.name(),
        "type_v": r.kv.name(),
        "n_prompt": m.test.prompt,
        "n_gen": m.test.generate,
        "n_depth": m.test.depth,
        "test_time": r.time,
        "avg_ns": statistics::mean(&ns).round() as u64,
        "stddev_ns": statistics::deviation(&ns).round() as u64,
        "avg_ts": rate,
        "stddev_ts": deviation,
        "samples_ns": ns.iter().map(|n| n.round() as u64).collect::<Vec<_>>(),
        "samples_ts": m.rates(),
    });
    let own = json!({
        "test": m.test.to_string(),
        "bits": s.summary.bits,
        "bits_per_weight": s.summary.bytes as f64 * 8.0 / s.summary.parameters.max(1) as f64,
        "schemes": s.summary.schemes,
        "activations": r.activations.name(),
        "token_scaled_modules": r.token_scaled,
        "kernel": kernels,
        "isa": c.isa.name(),
        "gb_per_s": m.bytes_per_second() / 1e9,
        "gop_per_s": m.operations_per_second() / 1e9,
        "limit": bound,
        "limit_fraction": m.limit_fraction(),
        "samples_read_gb_per_s": m.limits.iter().map(|l| l.read / 1e9).collect::<Vec<_>>(),
        "samples_int8_gop_per_s": m.limits.iter().map(|l| l.dots / 1e9).collect::<Vec<_>>(),
        "peak_memory_bytes": peak,
        "load_s": s.loaded.load_time.as_secs_f64(),
        "files_sha256": s.sha256,
        "packed_cache": super::super::stats::cache(&s.loaded),
        "quality": r.verdict.json(),
        "machine": machine_json(c.machine, c.isa, r.threads, &best),
    });
    if let (Value::Object(all), Value::Object(own)) = (&mut json, own) {
        all.extend(own);
    }
    Row { cells, json }
}
