//! Tests of a whole model: a prompt, a generation, or both, after some depth of context.

use super::limits::{Bound, Limits, Prober, Work};
use super::requests::random_tokens;
use super::statistics::{deviation, mean, median};
use crate::{Error, LoadedModel, machine};
use billfish_models::{Cache, Logits, Model, Scratch};
use std::fmt;
use std::time::Instant;

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// Tokens of a prompt.
    pub prompt: usize,
    /// Tokens that are then run one by one.
    pub generate: usize,
    /// Tokens that are in the context before.
    pub depth: usize,
}

impl fmt::Display for Test {
    /// The name that llama-bench gives it: `pp512`, `tg128`, `pp512+tg128`, `tg128 @ d4096`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.prompt, self.generate) {
            (p, 0) => write!(f, "pp{p}")?,
            (0, n) => write!(f, "tg{n}")?,
            (p, n) => write!(f, "pp{p}+tg{n}")?,
        }
        if self.depth > 0 { write!(f, " @ d{}", self.depth) } else { Ok(()) }
    }
}

/// What a test showed.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was run.
    pub test: Test,
    /// Seconds of each sample.
    pub seconds: Vec<f64>,
    /// The limits around each sample: the better of those measured just before and just after it.
    pub limits: Vec<Limits>,
    /// What must be done in each pass of a sample.
    work: Vec<Work>,
    /// Operations on weights, two for each weight and row, whatever planes the activations have.
    operations: f64,
    /// Largest resident size while the test ran, before any memory of the measurement itself; where the system tells.
    pub peak_memory: Option<u64>,
}

impl Measured {
    /// Tokens of a sample.
    pub fn tokens(&self) -> usize {
        self.test.prompt + self.test.generate
    }

    /// Tokens per second of each sample.
    pub fn rates(&self) -> Vec<f64> {
        self.seconds.iter().map(|s| self.tokens() as f64 / s).collect()
    }

    /// Mean and deviation of the tokens per second.
    pub fn rate(&self) -> (f64, f64) {
        let rates = self.rates();
        (mean(&rates), deviation(&rates))
    }

    /// The best of all limits that were measured.
    pub fn best_limits(&self) -> Limits {
        self.limits.iter().copied().fold(Limits::default(), Limits::max)
    }

    /// The least seconds that a sample can take under these limits.
    fn least_seconds(&self, limits: &Limits) -> f64 {
        self.work.iter().map(|w| w.seconds(limits)).sum()
    }

    /// Which part of the machine's limit was reached: for each sample the least time under the limits around it over its
    /// own, and of these the median.
    pub fn limit_fraction(&self) -> f64 {
        let fractions: Vec<f64> = self.seconds.iter().zip(&self.limits).map(|(s, l)| self.least_seconds(l) / s).collect();
        median(&fractions)
    }

    /// What most of the least time is for.
    pub fn bound(&self) -> Bound {
        let limits = self.best_limits();
        let of = |bound| self.work.iter().filter(|w| w.bound(&limits) == bound).map(|w| w.seconds(&limits)).sum::<f64>();
        if of(Bound::Read) >= of(Bound::Arithmetic) { Bound::Read } else { Bound::Arithmetic }
    }

    /// Bytes of weights, keys and values that a sample reads at least, each once a pass, per second.
    pub fn bytes_per_second(&self) -> f64 {
        self.work.iter().map(|w| w.bytes).sum::<f64>() / mean(&self.seconds)
    }

    /// Operations on weights per second, two for each weight and row.
    pub fn operations_per_second(&self) -> f64 {
        self.operations / mean(&self.seconds)
    }
}

/// Bytes and operations of a pass for some modules.
#[derive(Default)]
struct Part {
    work: Work,
    /// Weights that a token is multiplied with.
    weights: f64,
    /// Bytes of experts, which are no part of the others.
    experts: f64,
}

impl Part {
    /// Adds what `rows` tokens cost to `work`, and gives the operations on weights. Of the experts, of which a token has this
    /// `share`, several tokens read as many as chance alone would hit: each may have the same ones.
    fn add(&self, rows: usize, share: f64, work: &mut Work) -> f64 {
        let m = rows as f64;
        if rows > 0 {
            work.bytes += self.work.bytes + self.experts * (1.0 - (1.0 - share).powf(m));
        }
        work.dots += m * self.work.dots;
        work.fmas += m * self.work.fmas;
        2.0 * m * self.weights
    }
}

/// Bytes and operations of a pass: of what runs for every token, and of what runs for those whose logits are asked for.
struct Cost {
    all: Part,
    asked: Part,
    /// The part of all tokens that an expert sees.
    share: f64,
}

impl Cost {
    fn of(model: &Model) -> Cost {
        let mut cost = Cost { all: Part::default(), asked: Part::default(), share: 1.0 };
        let planes = model.activations().planes() as f64;
        for m in model.modules() {
            let part = if m.asked { &mut cost.asked } else { &mut cost.all };
            let weights = m.in_features as f64 * m.out_features as f64 * m.share;
            if m.share < 1.0 {
                part.experts += m.bytes as f64;
                cost.share = m.share;
            } else {
                part.work.bytes += m.bytes as f64;
            }
            match m.dense {
                None => part.work.dots += 2.0 * weights * planes,
                Some(dtype) => part.work.fmas += 2.0 * weights / model.backend().dense_rate(dtype, model.activations()),
            }
            part.weights += weights;
        }
        cost
    }

    /// A pass of `rows` tokens that ends at `length` tokens, with the logits of the last one or none: its work, and operations
    /// on weights.
    fn pass(&self, model: &Model, rows: usize, length: usize, logits: bool) -> (Work, f64) {
        let mut work = Work { bytes: model.kv_bytes_read(length, logits) as f64, ..Work::default() };
        let operations = self.all.add(rows, self.share, &mut work) + self.asked.add(usize::from(logits), self.share, &mut work);
        (work, operations)
    }
}

/// One sequence and what a test runs on it.
struct Runner<'m> {
    model: &'m Model,
    cache: Cache,
    scratch: Scratch,
    tokens: Vec<u32>,
    test: Test,
    chunk: usize,
}

impl Runner<'_> {
    /// The passes of a sample: tokens, and whether the logits of the last are asked for.
    fn passes(&self) -> Vec<(std::ops::Range<usize>, Logits)> {
        let Test { prompt, generate, depth } = self.test;
        let end = depth + prompt;
        let mut passes: Vec<_> = (depth..end).step_by(self.chunk).map(|from| (from..end.min(from + self.chunk), Logits::None)).collect();
        if let Some(last) = passes.last_mut() {
            last.1 = Logits::Last;
        }
        passes.extend((end..end + generate).map(|at| (at..at + 1, Logits::Last)));
        passes
    }

    /// Seconds of one sample, the context being as deep as the test says.
    fn sample(&mut self, passes: &[(std::ops::Range<usize>, Logits)]) -> Result<f64, Error> {
        let kept = self.cache.truncate(self.test.depth);
        for from in (kept..self.test.depth).step_by(self.chunk) {
            let to = self.test.depth.min(from + self.chunk);
            self.model.forward(&mut self.cache, &self.tokens[from..to], Logits::None, &mut self.scratch)?;
        }
        let begin = Instant::now();
        for (tokens, logits) in passes {
            self.model.forward(&mut self.cache, &self.tokens[tokens.clone()], *logits, &mut self.scratch)?;
        }
        Ok(begin.elapsed().as_secs_f64())
    }
}

/// Runs a test once to warm up, then `repetitions` times with the machine's limits measured before and after each.
/// Prompts run in pieces of `chunk` tokens. Tokens are random, and neither tokenizing nor sampling is part of the time.
///
/// # Errors
/// [`Error`] if the model cannot be run.
pub fn measure(loaded: &LoadedModel, test: Test, chunk: usize, repetitions: usize, progress: &mut dyn FnMut()) -> Result<Measured, Error> {
    let model = &loaded.model;
    let reset = machine::reset_peak_memory();
    let length = test.depth + test.prompt + test.generate;
    let tokens = random_tokens(length, model.config().vocab_size, 0);
    let mut cache = model.new_cache(length);
    // every token will come, so no pass of a sample has to make room
    cache.reserve(length);
    let mut runner = Runner { model, cache, scratch: Scratch::default(), tokens, test, chunk: chunk.max(1) };
    let passes = runner.passes();
    runner.sample(&passes)?;
    let peak_memory = machine::peak_memory().filter(|_| reset);
    progress();

    let cost = Cost::of(model);
    let (mut work, mut operations) = (vec![], 0.0);
    for (tokens, logits) in &passes {
        let (pass, ops) = cost.pass(model, tokens.len(), tokens.end, *logits == Logits::Last);
        work.push(pass);
        operations += ops;
    }
    let bytes = work.iter().map(|w| w.bytes).fold(0.0, f64::max);
    let prober = Prober::for_working_set(bytes as usize);
    let (mut seconds, mut limits) = (vec![], vec![]);
    let mut before = prober.measure(model.backend());
    for _ in 0..repetitions.max(1) {
        seconds.push(runner.sample(&passes)?);
        let after = prober.measure(model.backend());
        limits.push(before.max(after));
        before = after;
        progress();
    }
    Ok(Measured { test, seconds, limits, work, operations, peak_memory })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpenOptions;

    #[test]
    fn names_are_those_of_llama_bench() {
        let name = |prompt, generate, depth| Test { prompt, generate, depth }.to_string();
        assert_eq!(name(512, 0, 0), "pp512");
        assert_eq!(name(0, 128, 4096), "tg128 @ d4096");
        assert_eq!(name(512, 128, 0), "pp512+tg128");
    }

    fn sample(seconds: &[f64], limits: &[Limits], work: Vec<Work>) -> Measured {
        let test = Test { prompt: 0, generate: 10, depth: 0 };
        Measured { test, seconds: seconds.to_vec(), limits: limits.to_vec(), work, operations: 40.0, peak_memory: None }
    }

    #[test]
    fn figures_by_hand() {
        let limit = |read| Limits { read, dots: 1e9, fmas: 1e9 };
        // ten bytes in each of two passes: 2 s at 10 bytes a second
        let work = vec![Work { bytes: 10.0, ..Work::default() }; 2];
        let m = sample(&[4.0, 2.0, 2.5], &[limit(10.0), limit(20.0), limit(10.0)], work);
        // 2/4, 1/2, 2/2.5
        assert_eq!(m.limit_fraction(), 0.5);
        assert_eq!(m.rates(), [2.5, 5.0, 4.0]);
        assert_eq!(m.best_limits().read, 20.0);
        assert!((m.bytes_per_second() - 20.0 / (8.5 / 3.0)).abs() < 1e-9);
        assert!((m.operations_per_second() - 40.0 / (8.5 / 3.0)).abs() < 1e-9);
        assert_eq!(m.bound(), Bound::Read);
    }

    /// A token reads the experts that it goes to, and two of them at most twice as many.
    #[test]
    fn experts_count_as_often_as_they_are_chosen() {
        let checkpoint = billfish_quantize::synthetic(&"tiny-moe:w4g32".parse().unwrap(), 1, &[]).unwrap();
        let backend = std::sync::Arc::new(billfish_kernels::Backend::new(crate::Isa::choose(None).unwrap(), 1).unwrap());
        let model = Model::load(&checkpoint, backend, billfish_models::LoadOptions::default(), &mut |_| ()).unwrap();
        let cost = Cost::of(&model);
        let sum = |experts: bool| {
            let of = model.modules().iter().filter(|m| !m.asked && m.module.contains(".experts.") == experts);
            of.map(|m| m.bytes as f64).sum::<f64>()
        };
        assert!(sum(true) > sum(false) / 2.0 && sum(false) > 0.0);
        let cache = |length| model.kv_bytes_read(length, false) as f64;
        // two of eight, then 1 - (3/4)^2 of them
        let (one, _) = cost.pass(&model, 1, 1, false);
        assert!((one.bytes - sum(false) - sum(true) / 4.0 - cache(1)).abs() < 1e-6);
        let (two, operations) = cost.pass(&model, 2, 2, false);
        assert!((two.bytes - sum(false) - sum(true) * 7.0 / 16.0 - cache(2)).abs() < 1e-6);
        let weights = |m: &billfish_models::ModuleUse| {
            (m.in_features * m.out_features) as f64 * if m.module.contains(".experts.") { 0.25 } else { 1.0 }
        };
        assert_eq!(operations, 4.0 * model.modules().iter().filter(|m| !m.asked).map(weights).sum::<f64>());
    }

    /// The passes are the test, and the work is what their modules and caches hold.
    #[test]
    fn passes_and_their_work() {
        let loaded = LoadedModel::builtin(&OpenOptions { threads: Some(1), ..OpenOptions::default() }).unwrap();
        let mut done = 0;
        let test = Test { prompt: 5, generate: 2, depth: 3 };
        let m = measure(&loaded, test, 2, 2, &mut || done += 1).unwrap();
        assert_eq!((m.seconds.len(), m.limits.len(), done), (2, 2, 3));
        let rows: Vec<usize> = vec![2, 2, 1, 1, 1];
        assert_eq!(m.work.len(), rows.len());
        let model = &loaded.model;
        // behind the keys and values of the last layer there are only rows whose logits are asked for
        let layers = model.config().layers;
        let last = format!("layers.{}.", layers - 1);
        let asked =
            |name: &str| !name.contains("layers.") || (name.contains(&last) && !name.contains("k_proj") && !name.contains("v_proj"));
        let of = |which: bool| model.modules().iter().filter(move |m| asked(&m.module) == which);
        assert_eq!((of(true).count(), of(false).count()), (6, 7 * (layers - 1) + 2));
        let sum = |which: bool| of(which).map(|m| m.bytes).sum::<usize>();
        // the first pass reads the layers and a cache of five tokens, the last also the head and a cache of ten
        let token = model.kv_bytes_per_token();
        assert_eq!(m.work[0].bytes, (sum(false) + 5 * token / layers * (layers - 1)) as f64);
        assert_eq!(m.work[4].bytes, (sum(false) + sum(true) + 10 * token) as f64);
        let weights = |which: bool| of(which).map(|m| (m.in_features * m.out_features) as f64).sum::<f64>();
        assert_eq!(m.operations, 2.0 * (7.0 * weights(false) + 3.0 * weights(true)));
        // exact activations have two planes, and all layers of this model are quantized
        assert_eq!(m.work[0].dots, 2.0 * 2.0 * 2.0 * weights(false));
        assert!(m.limit_fraction() > 0.0 && m.rate().0 > 0.0);
    }
}
