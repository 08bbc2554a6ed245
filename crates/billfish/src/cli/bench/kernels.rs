//! `billfish bench kernels`: single products beside the machine's limits.

use super::super::options::{ActivationsArg, count_bar, isa_from_env};
use super::output::{BestLimits, Format, Row, machine_json, machine_lines, print};
use super::subject::SubjectArgs;
use anyhow::{Result, bail};
use billfish::bench::{
    Bound, KernelBench, KernelError, KernelTimes, Neighbours, Prober, REGION_SHAPE, Scheme, fork_join, product_regions, random_matrix,
    uncached_bytes,
};
use billfish::{Activations, Checkpoint, Isa, Machine};
use billfish_formats::{BiasRule, LinearWeight};
use billfish_kernels::Backend;
use billfish_tensor::{Groups, QuantMatrix, Zeros};
use serde_json::json;
use std::str::FromStr;

use super::super::GateFailed;

/// K and N of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape(usize, usize);

/// Smaller weights are not worth a region of the pool, and millions of copies of them do not fit anywhere.
const SMALLEST: usize = 64;

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(['x', 'X']).and_then(|(k, n)| Some(Shape(k.parse().ok()?, n.parse().ok()?)));
        let fits = |s: &Shape| s.0 >= SMALLEST && s.1 >= SMALLEST && s.0.checked_mul(s.1).is_some_and(|w| w <= 1 << 32);
        parts.filter(fits).ok_or_else(|| format!("expected KxN such as 4096x14336, both at least {SMALLEST}, at most 2^32 weights"))
    }
}

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Measure random weights of this shape instead of a model's, inputs by outputs (repeatable)
    #[arg(long, value_name = "KxN", value_delimiter = ',', conflicts_with_all = ["model", "synthetic"])]
    shape: Vec<Shape>,
    /// Widths of the codes of a --shape [default: 4]
    #[arg(long, value_delimiter = ',', requires = "shape", value_parser = clap::value_parser!(u32).range(2..=8))]
    bits: Vec<u32>,
    /// Rows of a group of a --shape; -1 for one group a column [default: 128]
    #[arg(long, value_delimiter = ',', requires = "shape", allow_negative_numbers = true, value_parser = group_size)]
    group_size: Vec<i64>,
    /// Give a --shape zero points for each group and column
    #[arg(long, requires = "shape")]
    asym: bool,
    /// Let the rows of a group of a --shape stand apart
    #[arg(long, requires = "shape")]
    act_order: bool,
    /// Rows of the activations: 1 is a token's decode step
    #[arg(short, value_name = "M", value_delimiter = ',', default_value = "1,4,8,32,128,512", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    m: Vec<u32>,
    /// Precision of activations
    #[arg(long, value_enum, value_delimiter = ',', default_value = "exact")]
    activations: Vec<ActivationsArg>,
    /// Threads to work with [default: as many as the machine offers]
    #[arg(long, short, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// Instruction set [default: BILLFISH_ISA, else the best of the machine]
    #[arg(long, value_delimiter = ',')]
    isa: Vec<String>,
    /// Samples of each product; fewer, but at least 5, once they have taken two seconds
    #[arg(long, short, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    repetitions: u32,
    /// Measure regions of the thread pool instead: empty ones (what it costs to start and end one) and small products
    #[arg(long, conflicts_with_all = ["model", "synthetic", "shape", "m", "activations", "repetitions"])]
    fork_join: bool,
    /// Let so many threads spin beside the regions of --fork-join; under `taskset` they share its cores
    #[arg(long, value_name = "N", requires = "fork_join", conflicts_with_all = ["model", "synthetic", "shape"], default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=1024))]
    busy_neighbours: u16,
    /// How to print the results
    #[arg(long, short, value_enum, default_value = "md")]
    output: Format,
}

fn group_size(text: &str) -> Result<i64, String> {
    text.parse().ok().filter(|g| *g == -1 || (1..=1 << 24).contains(g)).ok_or_else(|| "expected -1 or a number of at least 1".into())
}

/// A weight to measure, made when its turn comes.
struct Case {
    /// Module of a model that has it, with how many are alike.
    name: String,
    make: Make,
}

enum Make {
    Random(Shape, Scheme),
    Module(String, usize, usize),
}

impl Args {
    fn backends(&self) -> Result<Vec<Backend>> {
        let names = if self.isa.is_empty() { vec![isa_from_env()?] } else { self.isa.iter().map(|i| Some(i.clone())).collect() };
        let threads: Vec<usize> = if self.threads.is_empty() {
            vec![std::thread::available_parallelism().map_or(1, |n| n.get())]
        } else {
            self.threads.iter().map(|&t| usize::from(t)).collect()
        };
        let mut backends = vec![];
        for name in names {
            let isa = Isa::choose(name.as_deref())?;
            for &threads in &threads {
                backends.push(Backend::new(isa, threads)?);
            }
        }
        Ok(backends)
    }

    fn given(&self) -> Vec<Case> {
        let bits = if self.bits.is_empty() { &[4][..] } else { &self.bits };
        let groups = if self.group_size.is_empty() { &[128][..] } else { &self.group_size };
        let mut cases = vec![];
        for &shape in &self.shape {
            for &bits in bits {
                for &group in groups {
                    let scheme = Scheme { bits, group_size: usize::try_from(group).ok(), asym: self.asym, act_order: self.act_order };
                    cases.push(Case { name: "random".into(), make: Make::Random(shape, scheme) });
                }
            }
        }
        cases
    }
}

/// The distinct quantized modules of a folder: one of each shape and scheme.
fn modules(checkpoint: &Checkpoint) -> Result<Vec<Case>> {
    let mut found: Vec<(String, Vec<String>, usize, usize)> = vec![];
    for name in checkpoint.quantized_modules() {
        let r = checkpoint.describe(&name)?;
        let key = format!("{:?}", (r.in_features, r.out_features, r.bits, r.group_size, r.midpoint, r.act_order, r.scales, r.bias));
        match found.iter_mut().find(|f| f.0 == key) {
            Some(f) => f.1.push(name),
            None => found.push((key, vec![name], r.in_features, r.out_features)),
        }
    }
    if found.is_empty() {
        bail!("{}: expected quantized modules, found none; name a quantized folder or give --shape", checkpoint.name());
    }
    let case = |(_, names, k, n): (String, Vec<String>, usize, usize)| {
        let mut kinds: Vec<&str> = names.iter().map(|m| m.rsplit('.').next().unwrap_or(m)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        Case { name: format!("{} x{}", kinds.join(","), names.len()), make: Make::Module(names[0].clone(), k, n) }
    };
    Ok(found.into_iter().map(case).collect())
}

impl Case {
    fn matrix(&self, checkpoint: Option<&Checkpoint>) -> Result<QuantMatrix> {
        match (&self.make, checkpoint) {
            (Make::Random(Shape(k, n), scheme), _) => Ok(random_matrix(*k, *n, scheme, 1)?),
            (Make::Module(name, k, n), Some(checkpoint)) => match checkpoint.linear(name, *k, *n, BiasRule::Optional)? {
                LinearWeight::Quantized(m) => Ok(m),
                LinearWeight::Dense { .. } => bail!("{name}: expected a quantized module, found a dense one"),
            },
            (Make::Module(name, ..), None) => bail!("{name}: expected an open folder"),
        }
    }
}

/// `w4g128`, `w4g32:asym:act`.
fn scheme(m: &QuantMatrix) -> String {
    let group = match m.groups() {
        Groups::Contiguous { size } if *size >= m.in_features() => "-1".to_string(),
        Groups::Contiguous { size } => size.to_string(),
        Groups::Index { count: 1, .. } => "-1".to_string(),
        Groups::Index { count, .. } => m.in_features().div_ceil(*count).to_string(),
    };
    let asym = if matches!(m.zeros(), Zeros::PerGroup(_)) { ":asym" } else { "" };
    let act = if m.row_order().permutation.is_some() { ":act" } else { "" };
    format!("w{}g{group}{asym}{act}", m.bits())
}

/// What was measured, where and how.
struct Outcome {
    name: String,
    shape: Shape,
    scheme: String,
    bits: u32,
    kernel: &'static str,
    copies: usize,
    isa: Isa,
    threads: usize,
    activations: Activations,
    m: usize,
    times: KernelTimes,
}

pub fn run(args: &Args) -> Result<()> {
    let backends = args.backends()?;
    if args.fork_join {
        return regions(args, &backends);
    }
    let opened = if args.shape.is_empty() { Some(args.subject.open()?) } else { None };
    let checkpoint = opened.as_ref().map(|o| &o.checkpoint);
    let cases = match checkpoint {
        Some(checkpoint) => modules(checkpoint)?,
        None => args.given(),
    };
    let bar = count_bar("measuring", cases.len() * backends.len() * args.activations.len() * args.m.len());
    let mut outcomes: Vec<Outcome> = vec![];
    for case in &cases {
        let matrix = case.matrix(checkpoint)?;
        let (shape, scheme, bits) = (Shape(matrix.in_features(), matrix.out_features()), scheme(&matrix), matrix.bits());
        let mut bench = KernelBench::new(matrix)?;
        for backend in &backends {
            for &activations in &args.activations {
                let activations = Activations::from(activations);
                for &m in &args.m {
                    let what = || format!("{scheme} {}x{}, M={m}, {}, {}", shape.0, shape.1, activations.name(), backend.isa().name());
                    let times = match bench.measure(backend, m as usize, activations, args.repetitions as usize) {
                        Ok(times) => times,
                        Err(KernelError::Wrong(e)) => return Err(GateFailed(format!("{}: {e}", what())).into()),
                        Err(e) => return Err(e.into()),
                    };
                    outcomes.push(Outcome {
                        name: case.name.clone(),
                        shape,
                        scheme: scheme.clone(),
                        bits,
                        kernel: bench.weight().kernel(),
                        copies: bench.copies(),
                        isa: backend.isa(),
                        threads: backend.threads(),
                        activations,
                        m: m as usize,
                        times,
                    });
                    bar.inc(1);
                }
            }
        }
    }
    bar.finish_and_clear();
    let machine = Machine::detect();
    let mut head = vec![];
    for isa in isas(&backends) {
        let mut best = BestLimits::default();
        outcomes.iter().filter(|o| o.isa == isa).for_each(|o| best.add(o.threads, o.times.best_limits()));
        head.extend(machine_lines(&machine, isa, &best.0));
    }
    if let Some(opened) = &opened {
        head.push(format!("model: {}; dense modules are not measured", opened.name));
    }
    head.push("every kernel was checked against the oracle; times are the fastest sample, in brackets the one in the middle".into());
    let model = opened.as_ref().map(|o| o.name.as_str());
    print(args.output, &head, &outcomes.iter().map(|o| row(&machine, model, o)).collect::<Vec<_>>())
}

/// The instruction sets of some backends, each once.
fn isas(backends: &[Backend]) -> Vec<Isa> {
    let mut isas: Vec<Isa> = backends.iter().map(Backend::isa).collect();
    isas.dedup();
    isas
}

fn row(machine: &Machine, model: Option<&str>, o: &Outcome) -> Row {
    let (t, limits) = (&o.times, o.times.best_limits());
    let (best, median) = (t.best(), t.median());
    let bound: Bound = t.work.bound(&limits);
    let limit = bound.name(o.activations.planes());
    let cells = vec![
        ("modules", o.name.clone()),
        ("K x N", format!("{} x {}", o.shape.0, o.shape.1)),
        ("scheme", o.scheme.clone()),
        ("kernel", o.kernel.to_string()),
        ("ISA", o.isa.name().into()),
        ("threads", o.threads.to_string()),
        ("activations", o.activations.name().into()),
        ("M", o.m.to_string()),
        ("µs", format!("{:.1} ({:.1})", best * 1e6, median * 1e6)),
        ("GB/s", format!("{:.2} ({:.2})", t.work.bytes / best / 1e9, t.work.bytes / median / 1e9)),
        ("Gop/s", format!("{:.1} ({:.1})", t.operations / best / 1e9, t.operations / median / 1e9)),
        ("limit", limit.clone()),
        ("% of limit", format!("{:.1} ({:.1})", 100.0 * t.limit_fraction(), 100.0 * t.limit_fraction_median())),
    ];
    let json = json!({
        "model": model,
        "modules": o.name,
        "in_features": o.shape.0,
        "out_features": o.shape.1,
        "scheme": o.scheme,
        "bits": o.bits,
        "kernel": o.kernel,
        "isa": o.isa.name(),
        "n_threads": o.threads,
        "activations": o.activations.name(),
        "m": o.m,
        "weight_bytes": t.work.bytes,
        "copies": o.copies,
        "checked": "oracle",
        "n_samples": t.seconds.len(),
        "min_ns": best * 1e9,
        "median_ns": median * 1e9,
        "samples_ns": t.seconds.iter().map(|s| (s * 1e9).round() as u64).collect::<Vec<_>>(),
        "gb_per_s": t.work.bytes / best / 1e9,
        "gop_per_s": t.operations / best / 1e9,
        "limit": limit,
        "limit_fraction": t.limit_fraction(),
        "limit_fraction_median": t.limit_fraction_median(),
        "machine": machine_json(machine, o.isa, o.threads, &limits),
    });
    Row { cells, json }
}

/// Regions of the pool, empty ones and small products, after the machine's limits were measured.
fn regions(args: &Args, backends: &[Backend]) -> Result<()> {
    const EMPTY: usize = 20_000;
    const PRODUCTS: usize = 5_000;
    let machine = Machine::detect();
    let prober = Prober::new(uncached_bytes());
    let mut rows = vec![];
    let mut head = vec![];
    for backend in backends {
        let (isa, threads) = (backend.isa(), backend.threads());
        let limits = prober.measure(backend);
        let busy = Neighbours::start(usize::from(args.busy_neighbours));
        let product = format!("product {} x {}, w4g128", REGION_SHAPE.0, REGION_SHAPE.1);
        let measured =
            [("fork_join", "empty".into(), fork_join(backend, EMPTY)), ("product", product, product_regions(backend, PRODUCTS)?)];
        drop(busy);
        for (test, work, t) in measured {
            let us = |seconds: f64| format!("{:.2}", seconds * 1e6);
            let cells = vec![
                ("regions", work),
                ("ISA", isa.name().to_string()),
                ("threads", threads.to_string()),
                ("busy neighbours", args.busy_neighbours.to_string()),
                ("count", t.regions.to_string()),
                ("µs, fastest", us(t.best)),
                ("median", us(t.median)),
                ("99 % below", us(t.p99)),
                ("slowest", us(t.slowest)),
                ("99 % / median", format!("{:.2}", t.p99 / t.median)),
            ];
            let json = json!({
                "test": test,
                "isa": isa.name(),
                "n_threads": threads,
                "busy_neighbours": args.busy_neighbours,
                "regions": t.regions,
                "min_ns": t.best * 1e9,
                "median_ns": t.median * 1e9,
                "p99_ns": t.p99 * 1e9,
                "max_ns": t.slowest * 1e9,
                "p99_over_median": t.p99 / t.median,
                "machine": machine_json(&machine, isa, threads, &limits),
            });
            rows.push(Row { cells, json });
        }
        head.extend(machine_lines(&machine, isa, &[(threads, limits)]));
    }
    head.dedup();
    print(args.output, &head, &rows)
}
