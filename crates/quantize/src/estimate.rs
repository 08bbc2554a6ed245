//! What a quantization will take, before it is begun: exact bytes, and memory and time as estimates.
//!
//! Memory is added up from the sizes of what exists side by side. Time is that of one layer on some of the text, and of
//! factorizations and columns of two small sizes, extended to all of the text and to the sizes of the model: other layers,
//! other programs on the machine and its caches are not in it.

use crate::awq::{Magnitudes, ScaleSearch, most_outputs};
use crate::gptq::{Hessian, Prepared, Settings};
use crate::job::{Job, check};
use crate::room::{Room, hessian, least_memory};
use crate::size::{PredictedBytes, predicted_bytes};
use crate::synth::SplitMix64;
use crate::{Method, QuantizeError};
use billfish_kernels::{Backend, Matrix, Part};
use billfish_models::{DecoderConfig, Linear, LoadOptions, LoneLayer, embed, replaceable};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Tokens that the measured layer sees at most.
const TOKENS: usize = 512;
/// Inputs of the two measured modules.
const SIZES: [usize; 2] = [256, 768];
/// Columns of the measured modules.
const COLUMNS: usize = 64;

/// What a quantization will take.
#[derive(Clone, Debug)]
pub struct Estimate {
    /// The folder that will be written, exactly.
    pub bytes: PredictedBytes,
    /// Bytes of statistics, if they are saved, exactly but for their index.
    pub statistics: Option<u64>,
    /// Parts of the peak of memory, in bytes: what each is, and how much. An estimate.
    pub memory: Vec<(&'static str, u64)>,
    /// Parts of the time, in seconds. An estimate.
    pub seconds: Vec<(&'static str, f64)>,
}

impl Estimate {
    /// The peak of memory, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.memory.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The whole time, in seconds.
    pub fn total_seconds(&self) -> f64 {
        self.seconds.iter().map(|(_, s)| s).sum()
    }
}

/// Modules of one input that are to be quantized.
type Group = (usize, Vec<(Linear, Settings)>);

/// Says what a job will take. Nothing is written.
///
/// # Errors
/// [`QuantizeError`] for what [`quantize()`](crate::quantize()) would refuse before it begins.
pub fn estimate(job: &Job<'_>) -> Result<Estimate, QuantizeError> {
    billfish_formats::check_free(job.out)?;
    let config = DecoderConfig::from_json(&format!("{}/config.json", job.source.name()), job.source.config())?;
    let unstacked = config.unstacked(job.source)?;
    let job = &Job { source: unstacked.as_ref().unwrap_or(job.source), backend: Arc::clone(&job.backend), ..*job };
    check(job, &config.linears(job.source))?;
    let bytes = predicted_bytes(job.source, job.recipe)?;
    let chosen: BTreeMap<&str, (&Linear, &Settings)> = bytes.modules.iter().map(|(l, s, _)| (l.name.as_str(), (l, s))).collect();
    let layers: Vec<Vec<Vec<Group>>> = (0..config.layers)
        .map(|i| {
            let steps = replaceable(job.source, &config, i).into_iter();
            steps.map(|groups| groups.iter().filter_map(|modules| group(modules, &chosen)).collect()).collect()
        })
        .collect();
    let head = chosen.get("lm_head").map(|(l, s)| (l.in_features, vec![((*l).clone(), **s)]));
    let all = || layers.iter().flatten().flatten().chain(&head);
    let half = |k: usize| k as u64 * (k as u64 + 1) / 2 * 8;
    let saved = matches!(job.statistics, crate::Statistics::Save(_));
    Ok(Estimate {
        statistics: saved.then(|| all().map(|(k, _)| half(*k)).sum()),
        memory: memory(job, &config, &layers)?,
        seconds: seconds(job, &config, &all().collect::<Vec<_>>(), &bytes)?,
        bytes,
    })
}

fn group(modules: &[Linear], chosen: &BTreeMap<&str, (&Linear, &Settings)>) -> Option<Group> {
    let members: Vec<_> = modules.iter().filter_map(|l| chosen.get(l.name.as_str()).map(|(l, s)| ((*l).clone(), **s))).collect();
    members.first().map(|(l, _)| l.in_features).map(|k| (k, members))
}

/// What exists side by side at the worst moment.
fn memory(job: &Job<'_>, config: &DecoderConfig, layers: &[Vec<Vec<Group>>]) -> Result<Vec<(&'static str, u64)>, QuantizeError> {
    let room = Room::of(job, config)?;
    let tokens: u64 = job.samples.iter().map(|s| s.len() as u64).sum();
    let rows = if room.held { 4 * tokens * config.hidden_size as u64 } else { 0 };
    // that of the module at work is counted with it
    let others = |groups: &[Group]| groups.iter().skip(1).map(|(k, _)| hessian(*k)).sum::<u64>().min(room.hessians);
    // factors are found for all steps of a layer at once
    let at_once = |layer: &Vec<Vec<Group>>| match job.recipe.method.scales() {
        true => others(&layer.concat()),
        false => layer.iter().map(|groups| others(groups)).max().unwrap_or(0),
    };
    Ok(vec![
        ("a layer, a pass over some sequences, and the module at work", least_memory(job)?),
        ("activations of the text", rows),
        ("further Hessians of a step", layers.iter().map(at_once).max().unwrap_or(0)),
    ])
}

/// Times of one thing at the two sizes as a function `a · k^low + b · k^(low + 1)`.
struct Growth {
    low: i32,
    a: f64,
    b: f64,
}

impl Growth {
    fn through(low: i32, times: [f64; 2]) -> Self {
        let [k0, k1] = SIZES.map(|k| k as f64);
        let [t0, t1] = [times[0] / k0.powi(low), times[1] / k1.powi(low)];
        // noise must not make anything shrink
        let b = ((t1 - t0) / (k1 - k0)).max(0.0);
        Self { low, a: (t1 - b * k1).max(0.0), b }
    }

    fn at(&self, k: usize) -> f64 {
        let k = k as f64;
        self.a * k.powi(self.low) + self.b * k.powi(self.low + 1)
    }
}

/// Where the time will go.
fn seconds(
    job: &Job<'_>,
    config: &DecoderConfig,
    groups: &[&Group],
    bytes: &PredictedBytes,
) -> Result<Vec<(&'static str, f64)>, QuantizeError> {
    let backend = &*job.backend;
    let begin = Instant::now();
    let mut layer = LoneLayer::load(job.source, config, 0, Arc::clone(&job.backend), LoadOptions::default())?;
    let load = begin.elapsed().as_secs_f64();
    let (mut forward, mut summing) = (0.0, 0.0);
    if !job.samples.is_empty() {
        (forward, summing) = pass(job, config, &mut layer)?;
    }
    drop(layer);
    let Some((_, modules)) = groups.first() else { return Ok(vec![]) };
    let settings = modules[0].1;
    let solved: Vec<[f64; 3]> = SIZES.map(|k| solver(backend, k, &settings)).to_vec();
    let growth = |low, part: usize| Growth::through(low, [solved[0][part], solved[1][part]]);
    let (factor, column, check) = (growth(2, 0), growth(1, 1), growth(1, 2));
    let (mut factors, mut codes, mut checks, mut searching) = (0.0, 0.0, 0.0, 0.0);
    let scales = job.recipe.method.scales();
    let search = Growth::through(1, if scales { SIZES.map(|k| factor_search(backend, k, &settings)) } else { [0.0; 2] });
    for (k, modules) in groups {
        if job.recipe.method != Method::Rtn {
            factors += factor.at(*k);
        }
        if scales {
            // what the search weighs errors with is made once more
            factors += factor.at(*k);
            let all: usize = modules.len();
            searching += modules.iter().map(|(l, _)| search.at(*k) * l.out_features.min(most_outputs(all)) as f64).sum::<f64>();
        }
        let columns: usize = modules.iter().map(|(l, _)| l.out_features).sum();
        codes += column.at(*k) * columns as f64;
        checks += check.at(*k) * columns as f64;
    }
    // the source is hashed, read for the layers and read for the solver; what is chosen is written, put together, converted
    // and compared, each of which reads or writes it
    let source = job.source.total_bytes() as f64;
    let moved = 3.0 * source + 6.0 * bytes.total.tensors as f64;
    let rate = source / config.layers.max(1) as f64 / load.max(1e-9);
    let mut all = vec![
        ("running the network", forward),
        ("Hessians", summing),
        ("factorizations", factors),
        ("codes", codes),
        ("measuring errors", checks),
        ("reading, writing and checking files", moved / rate),
    ];
    if scales {
        all.push(("finding factors", searching));
    }
    Ok(all)
}

/// Seconds that all layers will take over all of the text, and those of their Hessians.
fn pass(job: &Job<'_>, config: &DecoderConfig, layer: &mut LoneLayer) -> Result<(f64, f64), QuantizeError> {
    let longest = job.samples.iter().max_by_key(|s| s.len()).map_or(&[][..], |s| &s[..s.len().min(TOKENS)]);
    let mut rows = embed(job.source, config, longest)?;
    let lengths = [longest.len()];
    let (mut forward, mut summed) = (0.0, 0.0);
    for step in 0..layer.steps() {
        let sizes: Vec<usize> = layer.groups(step).iter().map(|g| g.first().map_or(1, |l| l.in_features)).collect();
        let mut sums: Vec<Hessian> = sizes.into_iter().map(Hessian::new).collect();
        let (begin, mut summing) = (Instant::now(), 0.0);
        layer.observe(&rows, &lengths, step..step + 1, job.recipe.all_experts, &|_, _| true, &mut |_, group, inputs| {
            let begin = Instant::now();
            sums[group].add(&job.backend, inputs);
            summing += begin.elapsed().as_secs_f64();
        });
        summed += summing;
        forward += begin.elapsed().as_secs_f64() - summing;
    }
    if job.recipe.method.scales() {
        // summed up once more for the factors
        (forward, summed) = (2.0 * forward, 2.0 * summed);
    }
    let begin = Instant::now();
    layer.run(&mut rows, &lengths);
    forward += begin.elapsed().as_secs_f64();
    let tokens: usize = job.samples.iter().map(Vec::len).sum();
    let all = config.layers as f64 * tokens as f64 / longest.len().max(1) as f64;
    Ok((forward * all, summed * all))
}

/// Seconds that the search for factors takes for one column of this size.
fn factor_search(backend: &Backend, k: usize, settings: &Settings) -> f64 {
    let (hessian, weight) = made(backend, k);
    let mut seen = Magnitudes::new(k);
    seen.add(&vec![1.0; k]);
    let modules = [(weight, *settings)];
    let begin = Instant::now();
    let mut search = ScaleSearch::new(&[&seen], modules.len(), k, &|i| i, &<[f64]>::to_vec);
    search.add(backend, &hessian, &modules, &|i| i);
    begin.elapsed().as_secs_f64() / COLUMNS as f64
}

/// The Hessian of some rows of `k` numbers, and the weight of some columns.
fn made(backend: &Backend, k: usize) -> (Hessian, Vec<f32>) {
    let mut random = SplitMix64::named(k as u64, "estimate");
    let mut number = || (random.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    let rows: Vec<f32> = (0..2 * k * k).map(|_| number()).collect();
    let weight: Vec<f32> = (0..COLUMNS * k).map(|_| number()).collect();
    let mut hessian = Hessian::new(k);
    hessian.add(backend, &rows);
    (hessian, weight)
}

/// Seconds of one factorization at this size; of one column's codes; and of looking at one column's errors.
fn solver(backend: &Backend, k: usize, settings: &Settings) -> [f64; 3] {
    let (hessian, weight) = made(backend, k);
    let begin = Instant::now();
    let ready = Prepared::new(backend, &hessian, settings);
    let factor = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    let solution = ready.solve(backend, &weight, settings);
    let column = begin.elapsed().as_secs_f64() / COLUMNS as f64;
    let (h, begin) = (hessian.ordered(&(0..k).collect::<Vec<_>>()), Instant::now());
    let stored: Vec<f64> = solution.weights(k, settings.group_size).into_iter().map(f64::from).collect();
    for _ in 0..2 {
        let mut out = vec![0.0; COLUMNS * k];
        backend.gemm(1.0, Matrix::new(&stored, COLUMNS, k, k), Matrix::new(&h, k, k, k), &mut out, k, Part::All);
    }
    [factor, column, begin.elapsed().as_secs_f64() / COLUMNS as f64]
}
