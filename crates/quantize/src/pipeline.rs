//! From a dense folder to a quantized one: layer after layer, each seeing what the quantized layers before it give.

use crate::awq::{self, Folding};
use crate::gptq::{Hessian, Prepared, Settings, Solution};
use crate::report::{ModuleQuality, Scaling, Times, errors};
use crate::workspace::{Tensors, Workspace, sha256};
use crate::{QuantizeError, Recipe};
use billfish_formats::{BiasRule, Checkpoint, Converted, LinearWeight, convert};
use billfish_kernels::{Backend, PackedMatrix, Weight};
use billfish_models::{DecoderConfig, Linear, LoadOptions, LoneLayer, LookSteps};
use billfish_tensor::{Codes, Groups, QuantMatrix, ScaleValues, Zeros};
use half::f16;
use serde_json::{Map, Value, json};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Tokens that run at a time: whole sequences, as many as fit.
const BATCH: usize = 4096;
/// Outputs of a module that are quantized at a time, so that memory does not grow with a vocabulary.
const OUTPUTS: usize = 8192;
/// The output head among the parts.
const HEAD: &str = "lm_head";

/// What is to be done.
pub struct Job<'a> {
    /// The dense folder.
    pub source: &'a Checkpoint,
    /// The folder to write.
    pub out: &'a Path,
    /// What to make of it.
    pub recipe: &'a Recipe,
    /// Token ids of calibration sequences; none only if nothing needs to be seen.
    pub samples: &'a [Vec<u32>],
    /// What it runs on.
    pub backend: Arc<Backend>,
    /// Go on with work that was broken off.
    pub resume: bool,
    /// Set by another thread to end after the current layer.
    pub stop: &'a AtomicBool,
}

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
    let all = config.linears(job.source);
    check(job, &all)?;
    let planar = all.iter().any(|l| matches!(job.recipe.settings(&l.name), Ok(Some(s)) if matches!(s.grid.bits, 5..=7)));
    let workspace = Workspace::open(job.out, &settings(job)?, planar, job.resume)?;
    let mut work = Work {
        job,
        config: &config,
        workspace: &workspace,
        rules: Map::new(),
        modules: vec![],
        folding: Folding::default(),
        times: Times::default(),
    };
    let lengths: Vec<usize> = job.samples.iter().map(Vec::len).collect();
    let mut hidden: Option<Vec<f32>> = None;
    let mut parts: Vec<String> = vec![];
    for index in 0..config.layers {
        let part = format!("layer-{index:05}");
        let found = workspace.finished(&part);
        event(Event::Layer { index, layers: config.layers, found: found.is_some() });
        match found {
            Some(report) => {
                for quality in serde_json::from_value::<Vec<ModuleQuality>>(report).unwrap_or_default() {
                    work.account(quality);
                }
            }
            None => {
                let mut rows = rows_after(hidden.take(), &parts, &work)?;
                work.layer(index, &part, &mut rows, &lengths, event)?;
                if let Some(before) = parts.last() {
                    workspace.forget_rows(before)?;
                }
                hidden = Some(rows);
            }
        }
        parts.push(part);
        if job.stop.load(Ordering::Relaxed) {
            return Ok(Outcome { modules: work.modules, written: None, times: work.times });
        }
    }
    if job.recipe.lm_head {
        let rows = rows_after(hidden.take(), &parts, &work)?;
        if work.head(&rows, event)? {
            parts.push(HEAD.into());
        }
    }
    event(Event::Writing);
    let begin = Instant::now();
    let whole = workspace.assemble(job.source, &parts, &work.rules)?;
    let written = convert(&whole, job.out, job.recipe.target, false, &mut |_, _| ())?;
    // what was written is what was meant, to the last weight
    let certificate = billfish_formats::verify(&whole, &Checkpoint::open(job.out)?, &workers(job), &mut |_, _| ())?;
    if !certificate.equal() {
        return Err(QuantizeError::Output {
            path: job.out.display().to_string(),
            expected: "the weights that were chosen".into(),
            found: "others".into(),
            remedy: "the disk may be failing; write to another one".into(),
        });
    }
    work.times.files += begin.elapsed();
    let Work { modules, times, .. } = work;
    workspace.remove()?;
    Ok(Outcome { modules, written: Some(written), times })
}

/// The rows that came out of the last of the finished parts: those at hand, those that were kept, or what the embedding
/// makes of the samples, one after another.
fn rows_after(at_hand: Option<Vec<f32>>, parts: &[String], work: &Work<'_>) -> Result<Vec<f32>, QuantizeError> {
    let job = work.job;
    match (at_hand, parts.last()) {
        (Some(rows), _) => Ok(rows),
        (None, Some(part)) => work.workspace.rows(part),
        (None, None) if job.samples.is_empty() => Ok(vec![]),
        (None, None) => Ok(billfish_models::embed(job.source, work.config, &job.samples.concat())?),
    }
}

/// Hashing and comparing on the threads of the job.
fn workers<'a>(job: &'a Job<'_>) -> impl Fn(usize, &(dyn Fn(usize) + Sync)) + 'a {
    |count, body| job.backend.pool().run(count, body)
}

/// Refuses what cannot come to anything.
fn check(job: &Job<'_>, linears: &[Linear]) -> Result<(), QuantizeError> {
    let recipe = job.recipe;
    let quantized = job.source.quantized_modules();
    if let Some(first) = quantized.first() {
        let (expected, remedy) = ("a folder of 16- or 32-bit floats", "quantize the folder that this one was made from");
        return Err(QuantizeError::setting("model", expected, format!("`{first}`, quantized already"), remedy));
    }
    let settings = |l: &Linear| recipe.settings(&l.name);
    // the embedding stays dense, and the head is asked for by itself
    let mut linears = linears.iter().filter(|l| l.name.contains(".layers."));
    let wanted = linears.try_fold(false, |any, l| Ok::<_, QuantizeError>(any | settings(l)?.is_some()))?;
    if !wanted {
        return Err(QuantizeError::setting("dynamic", "rules that leave something to quantize", "none", "take a rule out"));
    }
    if job.samples.is_empty() && recipe.method != crate::Method::Rtn {
        let found = "no calibration text";
        return Err(QuantizeError::setting("calibration", "a text of some sequences", found, "name one, or choose the method rtn"));
    }
    if let Some(short) = job.samples.iter().find(|s| s.len() < 2) {
        let found = format!("a sequence of {}", short.len());
        return Err(QuantizeError::setting("calibration", "sequences of two tokens or more", found, "leave it out"));
    }
    Ok(())
}

/// All that the result depends on.
fn settings(job: &Job<'_>) -> Result<Value, QuantizeError> {
    let r = job.recipe;
    let rules: Vec<String> = r.dynamic.rules().iter().map(|rule| format!("{} {:?}", rule.text(), rule.overrides())).collect();
    let tokens: Vec<u8> = job.samples.iter().flat_map(|s| s.iter().chain([&u32::MAX]).flat_map(|t| t.to_le_bytes())).collect();
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": job.source.files_sha256(&workers(job))?,
        "config": sha256(Value::Object(job.source.config().clone()).to_string().as_bytes()),
        "calibration": sha256(&tokens),
        "bits": r.bits,
        "group_size": r.group_size,
        "sym": r.sym,
        "format": r.target.to_string(),
        "portable": r.portable,
        "method": r.method.name(),
        "order": r.order.name(),
        "search": format!("{:?}", r.search),
        "damp": r.damp,
        "sweeps": r.sweeps,
        "lm_head": r.lm_head,
        "dynamic": rules,
        "fallback_rows": r.fallback_rows,
        "all_experts": r.all_experts,
    }))
}

/// A quantization in progress.
struct Work<'a> {
    job: &'a Job<'a>,
    config: &'a DecoderConfig,
    workspace: &'a Workspace,
    /// What the config says of each module.
    rules: Map<String, Value>,
    modules: Vec<ModuleQuality>,
    /// What AWQ did to the layer.
    folding: Folding,
    times: Times,
}

/// Modules of one input that are to be quantized, and that input's Hessian.
struct Shared {
    /// Number of the group in its step.
    group: usize,
    members: Vec<(Linear, Settings)>,
    hessian: Hessian,
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

    /// Quantizes a layer, keeps it, and replaces `rows` by what comes out of it.
    fn layer(&mut self, index: usize, part: &str, rows: &mut [f32], lengths: &[usize], event: Events<'_>) -> Result<(), QuantizeError> {
        let begin = Instant::now();
        let backend = Arc::clone(&self.job.backend);
        let mut layer = LoneLayer::load(self.job.source, self.config, index, Arc::clone(&backend), LoadOptions::default())?;
        self.times.files += begin.elapsed();
        if layer.has_stacked_experts() {
            let (expected, found) = ("experts one by one", format!("experts of layer {index} in one tensor"));
            return Err(QuantizeError::setting("model", expected, found, "save the model with a tensor for each expert"));
        }
        let first = self.modules.len();
        self.fold(&mut layer, rows, lengths)?;
        let mut kept = self.folding.tensors();
        for step in 0..layer.steps() {
            let mut shared = vec![];
            for (group, modules) in layer.groups(step).into_iter().enumerate() {
                let size = modules.first().map_or(0, |l| l.in_features);
                let members = modules.into_iter().map(|l| Ok((self.job.recipe.settings(&l.name)?, l)));
                let members: Vec<_> = members.collect::<Result<Vec<_>, QuantizeError>>()?;
                let members: Vec<_> = members.into_iter().filter_map(|(s, l)| s.map(|s| (l, s))).collect();
                if !members.is_empty() {
                    shared.push(Shared { group, members, hessian: Hessian::new(size) });
                }
            }
            if shared.is_empty() {
                continue;
            }
            if !rows.is_empty() {
                self.observe(&mut layer, step..step + 1, rows, lengths, &mut |_, group, inputs| {
                    if let Some(s) = shared.iter_mut().find(|s| s.group == group) {
                        s.hessian.add(&backend, inputs);
                    }
                });
            }
            for s in shared {
                for Done { module, matrix, tensors } in self.modules_of(&s, event)? {
                    let packed = PackedMatrix::new(&matrix).map_err(|e| QuantizeError::setting(&module, "sizes", e.to_string(), ""))?;
                    layer.replace(&module, Weight::Quantized(packed));
                    kept.extend(tensors);
                }
            }
        }
        let begin = Instant::now();
        let hidden = self.config.hidden_size;
        for (sequences, tokens) in batches(lengths) {
            layer.run(&mut rows[tokens.start * hidden..tokens.end * hidden], &lengths[sequences]);
        }
        self.times.forward += begin.elapsed();
        self.keep(part, &kept, rows, first)
    }

    /// Shows what the groups of some steps see.
    fn observe(&mut self, layer: &mut LoneLayer, steps: Range<usize>, rows: &[f32], lengths: &[usize], look: LookSteps<'_>) {
        let begin = Instant::now();
        let mut summing = std::time::Duration::ZERO;
        let hidden = self.config.hidden_size;
        for (sequences, tokens) in batches(lengths) {
            let rows = &rows[tokens.start * hidden..tokens.end * hidden];
            layer.observe_steps(rows, &lengths[sequences], steps.clone(), self.job.recipe.all_experts, &mut |step, group, inputs| {
                let begin = Instant::now();
                look(step, group, inputs);
                summing += begin.elapsed();
            });
        }
        self.times.hessian += summing;
        self.times.forward += begin.elapsed().saturating_sub(summing);
    }

    /// Finds the factors of AWQ for a layer, if they are asked for, and changes what stays dense of it.
    fn fold(&mut self, layer: &mut LoneLayer, rows: &[f32], lengths: &[usize]) -> Result<(), QuantizeError> {
        self.folding = Folding::default();
        if !self.job.recipe.method.scales() {
            return Ok(());
        }
        let job = self.job;
        let (begin, before) = (Instant::now(), self.times);
        let given = awq::Given { source: job.source, recipe: job.recipe, backend: &job.backend, weight: &|l| Ok(weight(job, l)?.0) };
        let sites = layer.fold_sites();
        let steps = 0..layer.steps();
        let folding = awq::fold(&given, &sites, &mut |look| self.observe(layer, steps.clone(), rows, lengths, look))?;
        folding.apply(job.source, layer)?;
        self.folding = folding;
        let observing = self.times.hessian + self.times.forward - before.hessian - before.forward;
        self.times.solve += begin.elapsed().saturating_sub(observing);
        Ok(())
    }

    /// Quantizes the modules of one input.
    fn modules_of(&mut self, shared: &Shared, event: Events<'_>) -> Result<Vec<Done>, QuantizeError> {
        let backend = &*self.job.backend;
        let order: Vec<usize> = (0..shared.hessian.size()).collect();
        let mut h = shared.hessian.ordered(&order);
        if let Some([Some(scales), _]) = shared.members.first().map(|(l, _)| self.folding.scales(&l.name)) {
            // as the inputs would be without factors
            h.chunks_exact_mut(scales.len()).zip(scales).for_each(|(row, a)| row.iter_mut().zip(scales).for_each(|(v, b)| *v *= a * b));
        }
        let mut prepared: Option<(Settings, Prepared)> = None;
        let mut out = vec![];
        for (linear, settings) in &shared.members {
            let few = shared.hessian.rows() < self.job.recipe.fallback_rows && !self.job.samples.is_empty();
            let settings = if few { Settings { propagate: false, sweeps: 0, clip: false, ..*settings } } else { *settings };
            let begin = Instant::now();
            let (weight, bias) = weight(self.job, linear)?;
            let bias = self.folding.bias(linear).or(bias);
            self.times.files += begin.elapsed();
            let begin = Instant::now();
            let alike =
                |a: &Settings| a.order == settings.order && a.group_size == settings.group_size && a.propagate == settings.propagate;
            let (_, ready) = match prepared.take().filter(|(a, _)| alike(a)) {
                Some(ready) => prepared.insert(ready),
                None => prepared.insert((settings, Prepared::new(backend, &shared.hessian, &settings))),
            };
            let scaled = self.folding.weight(linear, &weight);
            let parts = scaled.chunks(OUTPUTS * linear.in_features).map(|w| ready.solve(backend, w, &settings));
            let solution = Solution::joined(parts.collect(), linear.in_features);
            let matrix = matrix(linear, &settings, &solution, bias)?;
            self.times.solve += begin.elapsed();
            let (quality, tensors) = self.quality(linear, &settings, &solution, shared, (&weight, &h), &matrix, few)?;
            event(Event::Module(&quality));
            self.account(quality);
            out.push(Done { module: linear.name.clone(), matrix, tensors });
        }
        Ok(out)
    }

    /// Makes the tensors of a module, reads it back from them as the loader reads it from a file, and measures that. `seen`
    /// are its weight, `[N, K]`, and the mean outer product of its input rows, `[K, K]`.
    #[allow(clippy::too_many_arguments)] // all that is known of one module
    fn quality(
        &self,
        linear: &Linear,
        settings: &Settings,
        solution: &Solution,
        shared: &Shared,
        seen: (&[f32], &[f64]),
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
            worst: vec![],
            rows: shared.hessian.rows(),
            dropped_rows: shared.hessian.dropped(),
            damp: solution.damp,
            fallback: None,
            scaling: None,
        };
        if self.job.recipe.method.scales() {
            let none =
                || Scaling { maker: String::new(), alpha: 0.0, error: 1.0, left_out: Some("nothing before it takes factors".into()) };
            quality.scaling = Some(self.folding.note(&linear.name).cloned().unwrap_or_else(none));
        }
        quality.fallback = match (few, solution.fallback) {
            (true, _) => Some(format!("{} rows were seen, fewer than {}", shared.hessian.rows(), self.job.recipe.fallback_rows)),
            (false, true) => Some("the Hessian is not positive definite with any damping".into()),
            _ => None,
        };
        let tensors = self.workspace.tensors(&linear.name, matrix)?;
        quality.bytes = tensors.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let stored = self.workspace.read_back(&tensors, &quality)?;
        (quality.weight_error, quality.output_error, quality.worst) =
            errors(&self.job.backend, &stored, seen.0, seen.1, self.folding.scales(&linear.name));
        Ok((quality, tensors))
    }

    /// The output head, which sees what the last norm gives. Returns whether it was quantized: a rule may leave it dense.
    fn head(&mut self, rows: &[f32], event: Events<'_>) -> Result<bool, QuantizeError> {
        let first = self.modules.len();
        self.folding = Folding::default();
        if let Some(report) = self.workspace.finished(HEAD) {
            serde_json::from_value::<Vec<ModuleQuality>>(report).unwrap_or_default().into_iter().for_each(|q| self.account(q));
            return Ok(true);
        }
        let linear = Linear { name: HEAD.into(), in_features: self.config.hidden_size, out_features: self.config.vocab_size, bias: false };
        let Some(settings) = self.job.recipe.settings(HEAD)? else { return Ok(false) };
        let mut shared = Shared { group: 0, members: vec![(linear, settings)], hessian: Hessian::new(self.config.hidden_size) };
        let begin = Instant::now();
        for rows in rows.chunks(BATCH * self.config.hidden_size) {
            let normed = billfish_models::final_norm(self.job.source, self.config, &self.job.backend, rows)?;
            shared.hessian.add(&self.job.backend, &normed);
        }
        self.times.hessian += begin.elapsed();
        let kept: Tensors = self.modules_of(&shared, event)?.into_iter().flat_map(|done| done.tensors).collect();
        self.keep(HEAD, &kept, &[], first)?;
        Ok(true)
    }

    fn keep(&mut self, part: &str, kept: &Tensors, rows: &[f32], first: usize) -> Result<(), QuantizeError> {
        let begin = Instant::now();
        let report = serde_json::to_value(&self.modules[first..]).unwrap_or_default();
        self.workspace.keep(part, kept, rows, &report)?;
        self.times.files += begin.elapsed();
        Ok(())
    }
}

/// The weight of a dense module, `[N, K]`, and its bias.
fn weight(job: &Job<'_>, l: &Linear) -> Result<(Vec<f32>, Option<Vec<f32>>), QuantizeError> {
    let rule = if l.bias { BiasRule::Required } else { BiasRule::Absent };
    let (weight, bias) = match job.source.linear(&l.name, l.in_features, l.out_features, rule)? {
        LinearWeight::Dense { weight, bias } => (weight.to_f32(), bias),
        LinearWeight::Quantized(_) => (vec![], None),
    };
    if let Some(at) = weight.iter().position(|v| !v.is_finite()) {
        let found = format!("{} at [{}, {}]", weight[at], at / l.in_features, at % l.in_features);
        return Err(QuantizeError::setting(&l.name, "finite weights", found, "the folder is damaged; get it again"));
    }
    Ok((weight, bias))
}

type Events<'a> = &'a mut dyn FnMut(Event<'_>);

/// Whole sequences of about [`BATCH`] tokens at a time: which sequences, and which of all tokens.
fn batches(lengths: &[usize]) -> Vec<(Range<usize>, Range<usize>)> {
    let mut out: Vec<(Range<usize>, Range<usize>)> = vec![];
    let mut token = 0;
    for (i, len) in lengths.iter().enumerate() {
        let end = token + len;
        match out.last_mut().filter(|(_, tokens)| end - tokens.start <= BATCH) {
            Some((sequences, tokens)) => (sequences.end, tokens.end) = (i + 1, end),
            None => out.push((i..i + 1, token..end)),
        }
        token = end;
    }
    out
}

/// A solution as the type that every other part of the program knows, with the bias that later modules are to see.
fn matrix(l: &Linear, settings: &Settings, s: &Solution, bias: Option<Vec<f32>>) -> Result<QuantMatrix, QuantizeError> {
    let zeros = if settings.grid.sym { Zeros::Midpoint } else { Zeros::PerGroup(s.zeros.clone()) };
    let groups = match &s.g_idx {
        Some(g_idx) => Groups::Index { g_idx: g_idx.clone(), count: s.groups },
        None => Groups::Contiguous { size: settings.group_size.unwrap_or(l.in_features) },
    };
    let scales = ScaleValues::F16(s.scales.iter().map(|v| f16::from_f32(*v)).collect());
    let codes = Codes::Bytes(s.codes.clone());
    QuantMatrix::new(l.in_features, l.out_features, settings.grid.bits, codes, scales, zeros, groups, bias)
        .map_err(|e| QuantizeError::setting(&l.name, "a matrix", e.to_string(), "this is a defect of the program; report it"))
}
