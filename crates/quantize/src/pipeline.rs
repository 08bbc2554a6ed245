//! From a dense folder to a quantized one: layer after layer, each seeing what the quantized layers before it give.

use crate::awq::{self, Folding};
use crate::finite::check_finite;
use crate::gptq::{Hessian, Prepared, Settings, Solution};
use crate::hidden::{Hidden, batches};
use crate::job::{Job, check, settings, workers};
use crate::module::{dense_weight, matrix, notes};
use crate::report::{Errors, ModuleQuality, Scaling, Times, errors};
use crate::room::Room;
use crate::size::predicted_bytes;
use crate::statistics::{Statistics, Store};
use crate::workspace::{Tensors, Workspace};
use crate::{QuantizeError, Sequential};
use billfish_formats::{Checkpoint, Converted, convert};
use billfish_kernels::{PackedMatrix, Weight};
use billfish_models::{DecoderConfig, Linear, LoadOptions, LoneLayer, Look, Wanted, replaceable};
use billfish_tensor::QuantMatrix;
use serde_json::{Map, Value};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Outputs of a module that are quantized at a time, so that memory does not grow with a vocabulary.
pub(crate) const OUTPUTS: usize = 8192;
/// The output head among the parts.
pub(crate) const HEAD: &str = "lm_head";
/// The rows that go into the first layer among the parts.
const EMBEDDED: &str = "embedded";

/// What happens.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A layer begins, or was found finished.
    Layer {
        /// Its number.
        index: usize,
        /// Layers in all.
        layers: usize,
        /// Whether it was done before a break.
        found: bool,
        /// Modules that are done.
        done: usize,
        /// Modules that are to be quantized in all.
        modules: usize,
    },
    /// A module was quantized and read back.
    Module(&'a ModuleQuality),
    /// All modules are done, the folder is written.
    Writing,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The modules in the order in which they were made.
    pub modules: Vec<ModuleQuality>,
    /// What was written; none if it was stopped before.
    pub written: Option<Converted>,
    /// Modules that were quantized in the source too.
    pub requantized: usize,
    /// Where the time went.
    pub times: Times,
}

/// Quantizes a folder. Nothing stands under the name of `out` before all of it is written and compared with what was
/// meant.
///
/// # Errors
/// [`QuantizeError`]; what is finished stays beside `out` for [`Job::resume`].
pub fn quantize(job: &Job<'_>, event: &mut dyn FnMut(Event<'_>)) -> Result<Outcome, QuantizeError> {
    billfish_formats::check_free(job.out)?;
    let config = DecoderConfig::from_json(&format!("{}/config.json", job.source.name()), job.source.config())?;
    let unstacked = config.unstacked(job.source)?;
    let job = &Job { source: unstacked.as_ref().unwrap_or(job.source), backend: Arc::clone(&job.backend), ..*job };
    let all = config.linears(job.source);
    check(job, &all)?;
    // refuses what the format has no place for, before anything is computed
    let count = predicted_bytes(job.source, job.recipe)?.modules.len();
    let room = Room::of(job, &config)?;
    let planar = all.iter().any(|l| matches!(job.recipe.settings(&l.name), Ok(Some(s)) if matches!(s.grid.bits, 5..=7)));
    let settings = settings(job)?;
    // what stands in the way is found before anything is made or taken away
    let used = match job.statistics {
        Statistics::Use(path) => Some(Store::open(path, job.recipe, &settings)?),
        Statistics::Save(path) if !job.resume => billfish_formats::check_free(path).map(|()| None)?,
        _ => None,
    };
    let finite = || check_finite(job.source, &workers(job));
    let workspace = Workspace::open(job.out, &settings, planar, job.resume, &finite)?;
    let store = match job.statistics {
        Statistics::Save(path) => Some(Store::create(path, job.recipe, &settings, job.resume)?),
        _ => used,
    };
    let requantized = job.source.quantized_modules().len();
    let (modules, times) = (vec![], Times::default());
    let (rules, folding) = (Map::new(), Folding::default());
    let mut work = Work { job, config: &config, workspace: &workspace, room, store, rules, modules, folding, times };
    let mut hidden: Option<Hidden> = None;
    let mut parts: Vec<String> = vec![];
    for index in 0..config.layers {
        let part = format!("layer-{index:05}");
        let found = workspace.finished(&part)?;
        event(Event::Layer { index, layers: config.layers, found: found.is_some(), done: work.modules.len(), modules: count });
        match found {
            Some(report) => {
                replaceable(job.source, &config, index).iter().flatten().try_for_each(|modules| work.check_kept(modules))?;
                work.found(&part, report)?;
            }
            None => {
                let mut rows = rows_after(hidden.take(), &parts, &work)?;
                work.layer(index, &part, rows.as_mut(), event)?;
                workspace.forget_rows(parts.last().map_or(EMBEDDED, String::as_str))?;
                hidden = rows;
            }
        }
        parts.push(part);
        if job.stop.load(Ordering::Relaxed) {
            return Ok(Outcome { modules: work.modules, written: None, requantized, times: work.times });
        }
    }
    if job.recipe.lm_head {
        let rows = rows_after(hidden.take(), &parts, &work)?;
        if work.head(rows.as_ref(), event)? {
            parts.push(HEAD.into());
        }
    }
    if let (Statistics::Save(_), Some(store)) = (job.statistics, &mut work.store) {
        store.complete()?;
    }
    event(Event::Writing);
    let begin = Instant::now();
    let whole = workspace.assemble(job.source, &parts, &work.rules)?;
    let made = workspace.made()?;
    let written = convert(&whole, &made, job.recipe.target, false, &mut |_, _| ())?;
    // what was written is what was meant, to the last weight
    let certificate = billfish_formats::verify(&whole, &Checkpoint::open(&made)?, &workers(job), &mut |_, _| ())?;
    if !certificate.equal() {
        let differing = certificate.differences.first().map_or("others".into(), |d| format!("others in {}", d.tensor));
        return Err(QuantizeError::Output {
            path: made.display().to_string(),
            expected: "the weights that were chosen".into(),
            found: differing,
            remedy: "the disk may be failing; write to another one".into(),
        });
    }
    workspace.publish(job.out)?;
    work.times.files += begin.elapsed();
    let Work { modules, times, .. } = work;
    workspace.remove()?;
    Ok(Outcome { modules, written: Some(written), requantized, times })
}

/// The rows that came out of the last of the finished parts: those at hand, those that were kept, or what the embedding
/// makes of the samples. None if there are no samples.
fn rows_after(at_hand: Option<Hidden>, parts: &[String], work: &Work<'_>) -> Result<Option<Hidden>, QuantizeError> {
    let (job, held) = (work.job, work.room.held);
    if at_hand.is_some() || job.samples.is_empty() {
        return Ok(at_hand);
    }
    let rows = match parts.last() {
        Some(part) => Hidden::kept(work.workspace, part, work.config.hidden_size, held),
        None => Hidden::embedded(job.source, work.config, job.samples, (work.workspace, EMBEDDED), held),
    };
    rows.map(Some)
}

/// A quantization in progress.
struct Work<'a> {
    job: &'a Job<'a>,
    config: &'a DecoderConfig,
    workspace: &'a Workspace,
    room: Room,
    /// Statistics that are kept or used.
    store: Option<Store>,
    /// What the config says of each module.
    rules: Map<String, Value>,
    modules: Vec<ModuleQuality>,
    /// The factors of the layer at work.
    folding: Folding,
    times: Times,
}

/// Modules of one input that are to be quantized, and that input's Hessian.
struct Shared {
    /// Number of the group in its step.
    group: usize,
    /// Its first module, quantized or not.
    name: String,
    members: Vec<(Linear, Settings)>,
    hessian: Hessian,
}

impl Shared {
    /// Numbers of an input row.
    fn inputs(&self) -> usize {
        self.members.first().map_or(0, |(l, _)| l.in_features)
    }
}

/// A module that was quantized.
struct Done {
    module: String,
    matrix: QuantMatrix,
    /// What its part of the workspace will hold.
    tensors: Tensors,
}

impl Work<'_> {
    /// Remembers a finished module.
    fn account(&mut self, quality: ModuleQuality) {
        let (pattern, rule) = quality.rule();
        self.rules.insert(pattern, rule);
        self.modules.push(quality);
    }

    /// Remembers what a part that was finished before reported.
    fn found(&mut self, part: &str, report: Value) -> Result<(), QuantizeError> {
        let modules = serde_json::from_value::<Vec<ModuleQuality>>(report);
        let modules = modules.map_err(|e| self.workspace.damaged(part, "a report of modules", e.to_string()))?;
        modules.into_iter().for_each(|quality| self.account(quality));
        Ok(())
    }

    /// Reads a layer without what takes its place only when it is quantized; none if statistics say all that it would show.
    fn load(&mut self, index: usize) -> Result<Option<LoneLayer>, QuantizeError> {
        let job = self.job;
        if job.statistics.are_used() {
            return Ok(None);
        }
        let begin = Instant::now();
        // factors are found in a layer that is whole
        let late = job.recipe.sequential == Sequential::Quantized && !job.recipe.method.scales();
        let absent = |module: &str| late && matches!(job.recipe.settings(module), Ok(Some(_)));
        let backend = Arc::clone(&job.backend);
        let layer = LoneLayer::load_without(job.source, self.config, index, backend, LoadOptions::default(), &absent)?;
        self.times.files += begin.elapsed();
        Ok(Some(layer))
    }

    /// Quantizes a layer, keeps it, and replaces `rows` by what comes out of it.
    fn layer(&mut self, index: usize, part: &str, mut rows: Option<&mut Hidden>, event: Events<'_>) -> Result<(), QuantizeError> {
        let (job, lengths) = (self.job, self.lengths());
        let mut layer = self.load(index)?;
        let first = self.modules.len();
        self.folding = match (&rows, &mut layer) {
            (Some(rows), Some(layer)) => self.fold(layer, rows, &lengths)?,
            _ => Folding::default(),
        };
        let mut kept = self.folding.tensors();
        for (step, groups) in replaceable(job.source, self.config, index).into_iter().enumerate() {
            let mut waiting: Vec<Shared> = vec![];
            for (group, modules) in groups.into_iter().enumerate() {
                let name = modules.first().map(|l| l.name.clone()).unwrap_or_default();
                let members = modules.into_iter().map(|l| Ok((job.recipe.settings(&l.name)?, l)));
                let members: Vec<_> = members.collect::<Result<Vec<_>, QuantizeError>>()?;
                let members: Vec<_> = members.into_iter().filter_map(|(s, l)| s.map(|s| (l, s))).collect();
                if !members.is_empty() {
                    waiting.push(Shared { group, name, members, hessian: Hessian::new(0) });
                }
            }
            // no module of a step sees what another one of it gives, so any number of them can be looked at together
            while !waiting.is_empty() {
                let now = self.room.groups(waiting.iter().map(Shared::inputs));
                let mut shared: Vec<Shared> = waiting.drain(..now).collect();
                shared.iter_mut().for_each(|s| s.hessian = Hessian::new(s.inputs()));
                if let (Some(rows), Some(layer)) = (&rows, &mut layer) {
                    let groups: Vec<usize> = shared.iter().map(|s| s.group).collect();
                    self.observe(layer, step..step + 1, rows, &lengths, &|_, group| groups.contains(&group), &mut |_, group, inputs| {
                        if let Some(s) = shared.iter_mut().find(|s| s.group == group) {
                            s.hessian.add(&job.backend, inputs);
                        }
                    })?;
                }
                self.keep_or_load(&mut shared)?;
                for s in shared {
                    for Done { module, matrix, tensors } in self.modules_of(s, event)? {
                        kept.extend(tensors);
                        let Some(layer) = layer.as_mut().filter(|_| job.recipe.sequential == Sequential::Quantized) else { continue };
                        let packed = PackedMatrix::new(&matrix).map_err(|e| QuantizeError::setting(&module, "sizes", e.to_string(), ""))?;
                        layer.replace(&module, Weight::Quantized(packed));
                    }
                }
            }
        }
        let begin = Instant::now();
        let mut hash = None;
        if let (Some(rows), Some(layer)) = (&mut rows, &mut layer) {
            hash = Some(rows.advance(&lengths, self.workspace, part, &mut |rows, lengths| layer.run(rows, lengths))?);
            self.times.forward += begin.elapsed();
        }
        self.keep(part, &kept, hash, first)
    }

    /// Tokens of each sequence.
    fn lengths(&self) -> Vec<usize> {
        self.job.samples.iter().map(Vec::len).collect()
    }

    /// Keeps what was summed up, or takes it from where it was kept.
    fn keep_or_load(&mut self, shared: &mut [Shared]) -> Result<(), QuantizeError> {
        let Some(store) = &mut self.store else { return Ok(()) };
        let begin = Instant::now();
        if self.job.statistics.are_used() {
            shared.iter_mut().try_for_each(|s| store.load(&s.name, s.inputs()).map(|h| s.hessian = h))?;
        } else {
            store.keep(&shared.iter().map(|s| (s.name.as_str(), &s.hessian)).collect::<Vec<_>>())?;
        }
        self.times.files += begin.elapsed();
        Ok(())
    }

    /// Refuses to go on where `modules` of one input were quantized while nobody kept statistics of it.
    fn check_kept(&self, modules: &[Linear]) -> Result<(), QuantizeError> {
        let (Statistics::Save(path), Some(store), Some(first)) = (self.job.statistics, &self.store, modules.first()) else { return Ok(()) };
        let wanted = |any: bool, l: &Linear| Ok::<_, QuantizeError>(any | self.job.recipe.settings(&l.name)?.is_some());
        if store.has(&first.name) || !modules.iter().try_fold(false, wanted)? {
            return Ok(());
        }
        Err(QuantizeError::Output {
            path: path.display().to_string(),
            expected: format!("statistics of `{}`, which is quantized already", first.name),
            found: "none".into(),
            remedy: "leave --resume out to begin anew, or --save-stats".into(),
        })
    }

    /// Shows what some groups of some steps see.
    fn observe(
        &mut self,
        layer: &mut LoneLayer,
        steps: Range<usize>,
        rows: &Hidden,
        lengths: &[usize],
        wanted: Wanted<'_>,
        look: Look<'_>,
    ) -> Result<(), QuantizeError> {
        let begin = Instant::now();
        let mut summing = std::time::Duration::ZERO;
        for (sequences, tokens) in batches(lengths) {
            let (rows, lengths) = (rows.read(&tokens)?, &lengths[sequences]);
            layer.observe(&rows, lengths, steps.clone(), self.job.recipe.all_experts, wanted, &mut |step, group, inputs| {
                let begin = Instant::now();
                look(step, group, inputs);
                summing += begin.elapsed();
            });
        }
        self.times.hessian += summing;
        self.times.forward += begin.elapsed().saturating_sub(summing);
        Ok(())
    }

    /// Finds the factors of AWQ for a layer, if they are asked for, and changes what stays dense of it.
    fn fold(&mut self, layer: &mut LoneLayer, rows: &Hidden, lengths: &[usize]) -> Result<Folding, QuantizeError> {
        let job = self.job;
        if !job.recipe.method.scales() {
            return Ok(Folding::default());
        }
        let (begin, before) = (Instant::now(), self.times);
        let (room, sites) = (self.room, layer.fold_sites());
        let weight = |l: &Linear| Ok(dense_weight(job.source, self.config, l)?.0);
        let weight = &weight;
        let given = awq::Given { source: job.source, recipe: job.recipe, backend: &job.backend, room, weight };
        let folding = awq::fold(&given, &sites, &mut |steps, wanted, look| self.observe(layer, steps, rows, lengths, wanted, look))?;
        // a network that runs as it was has nothing that its factors would be taken up by
        if job.recipe.sequential == Sequential::Quantized {
            folding.apply(job.source, layer)?;
        }
        let observing = self.times.hessian + self.times.forward - before.hessian - before.forward;
        self.times.solve += begin.elapsed().saturating_sub(observing);
        Ok(folding)
    }

    /// Quantizes the modules of one input.
    fn modules_of(&mut self, mut shared: Shared, event: Events<'_>) -> Result<Vec<Done>, QuantizeError> {
        let backend = &*self.job.backend;
        let first = shared.members.first().map(|(l, _)| l.name.as_str()).unwrap_or_default();
        if let [Some(scales), _] = self.folding.scales(first)
            && self.job.recipe.sequential == Sequential::Dense
        {
            shared.hessian.divide(scales);
        }
        let mut prepared: Option<(Settings, Prepared)> = None;
        let mut out = vec![];
        for (linear, settings) in std::mem::take(&mut shared.members) {
            let few = shared.hessian.rows() < self.job.recipe.fallback_rows && self.job.observes();
            let settings = if few { Settings { propagate: false, sweeps: 0, clip: false, ..settings } } else { settings };
            let begin = Instant::now();
            let (weight, bias) = dense_weight(self.job.source, self.config, &linear)?;
            let bias = self.folding.bias(&linear).or(bias);
            self.times.files += begin.elapsed();
            let begin = Instant::now();
            let alike =
                |a: &Settings| a.order == settings.order && a.group_size == settings.group_size && a.propagate == settings.propagate;
            let (_, ready) = match prepared.take().filter(|(a, _)| alike(a)) {
                Some(ready) => prepared.insert(ready),
                None => prepared.insert((settings, Prepared::new(backend, &shared.hessian, &settings))),
            };
            self.times.factor += begin.elapsed();
            let begin = Instant::now();
            let scaled = self.folding.weight(&linear, &weight);
            let parts = scaled.chunks(OUTPUTS * linear.in_features).map(|w| ready.solve(backend, w, &settings));
            let solution = Solution::joined(parts.collect(), linear.in_features);
            drop(scaled);
            let matrix = matrix(&linear, &settings, &solution, bias)?;
            self.times.solve += begin.elapsed();
            let begin = Instant::now();
            let (quality, tensors) = self.quality(&linear, &settings, &solution, &mut shared.hessian, &weight, &matrix, few)?;
            self.times.files += begin.elapsed();
            event(Event::Module(&quality));
            self.account(quality);
            out.push(Done { module: linear.name.clone(), matrix, tensors });
        }
        Ok(out)
    }

    /// Makes the tensors of a module, reads it back from them as the loader reads it from a file, and measures that
    /// against `weight`, `[N, K]`.
    #[allow(clippy::too_many_arguments)] // all that is known of one module
    fn quality(
        &self,
        linear: &Linear,
        settings: &Settings,
        solution: &Solution,
        hessian: &mut Hessian,
        weight: &[f32],
        matrix: &QuantMatrix,
        few: bool,
    ) -> Result<(ModuleQuality, Tensors), QuantizeError> {
        let (k, n) = (linear.in_features, linear.out_features);
        let desc_act = solution.g_idx.is_some();
        let mut quality = ModuleQuality {
            module: linear.name.clone(),
            bits: settings.grid.bits,
            group_size: settings.group_size.map_or(-1, |g| g as i64),
            sym: settings.grid.sym,
            desc_act,
            in_features: k,
            out_features: n,
            bytes: 0,
            weight_error: 0.0,
            output_error: 0.0,
            group_errors: vec![],
            worst: vec![],
            rows: hessian.rows(),
            dropped_rows: hessian.dropped(),
            damp: solution.damp,
            fallback: None,
            notes: notes(hessian, settings, solution),
            scaling: None,
        };
        if self.job.recipe.method.scales() {
            let none =
                || Scaling { maker: String::new(), alpha: 0.0, error: 1.0, left_out: Some("nothing before it takes factors".into()) };
            quality.scaling = Some(self.folding.note(&linear.name).cloned().unwrap_or_else(none));
        }
        quality.fallback = match (few, solution.fallback) {
            (true, _) => Some(format!("{} rows were seen, fewer than {}", hessian.rows(), self.job.recipe.fallback_rows)),
            (false, true) => Some("the Hessian is not positive definite with any damping".into()),
            _ => None,
        };
        let tensors = self.workspace.tensors(&linear.name, matrix)?;
        quality.bytes = tensors.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let stored = self.workspace.read_back(&tensors, &quality)?;
        let factors = self.folding.scales(&linear.name);
        let Errors { weight, output, groups, worst } = errors(&self.job.backend, &stored, weight, hessian.whole(), factors);
        (quality.weight_error, quality.output_error, quality.group_errors, quality.worst) = (weight, output, groups, worst);
        Ok((quality, tensors))
    }

    /// The output head, which sees what the last norm gives. Returns whether it was quantized: a rule may leave it dense.
    fn head(&mut self, rows: Option<&Hidden>, event: Events<'_>) -> Result<bool, QuantizeError> {
        let first = self.modules.len();
        self.folding = Folding::default();
        let linear = Linear { name: HEAD.into(), in_features: self.config.hidden_size, out_features: self.config.vocab_size, bias: false };
        if let Some(report) = self.workspace.finished(HEAD)? {
            self.check_kept(std::slice::from_ref(&linear))?;
            self.found(HEAD, report)?;
            return Ok(true);
        }
        let Some(settings) = self.job.recipe.settings(HEAD)? else { return Ok(false) };
        let hessian = Hessian::new(self.config.hidden_size);
        let mut shared = Shared { group: 0, name: HEAD.into(), members: vec![(linear, settings)], hessian };
        let begin = Instant::now();
        for (_, tokens) in batches(&self.lengths()) {
            let Some(rows) = rows else { break };
            let normed = billfish_models::final_norm(self.job.source, self.config, &self.job.backend, &rows.read(&tokens)?)?;
            shared.hessian.add(&self.job.backend, &normed);
        }
        self.times.hessian += begin.elapsed();
        self.keep_or_load(std::slice::from_mut(&mut shared))?;
        let kept: Tensors = self.modules_of(shared, event)?.into_iter().flat_map(|done| done.tensors).collect();
        self.keep(HEAD, &kept, None, first)?;
        Ok(true)
    }

    /// Keeps a finished part; `rows` is the hash of the rows that came out of it.
    fn keep(&mut self, part: &str, kept: &Tensors, rows: Option<String>, first: usize) -> Result<(), QuantizeError> {
        let begin = Instant::now();
        let report = serde_json::to_value(&self.modules[first..]).unwrap_or_default();
        self.workspace.keep(part, kept, rows, &report)?;
        self.times.files += begin.elapsed();
        Ok(())
    }
}

type Events<'a> = &'a mut dyn FnMut(Event<'_>);
