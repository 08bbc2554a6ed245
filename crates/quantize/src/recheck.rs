//! Errors that a report tells, measured again from the folder as it is stored: what was damaged since is found and named.

use crate::gptq::Hessian;
use crate::hidden::batches;
use crate::module::dense_weight;
use crate::pipeline::HEAD;
use crate::report::{ModuleQuality, errors, group_errors};
use crate::{QuantizeError, Sequential};
use billfish_formats::{BiasRule, Checkpoint, LinearWeight};
use billfish_kernels::Backend;
use billfish_models::{DecoderConfig, Linear, LoadOptions, LoneLayer};
use billfish_tensor::QuantMatrix;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What is compared with what.
pub struct Recheck<'a> {
    /// The quantized folder.
    pub stored: &'a Checkpoint,
    /// The folder that it was made from.
    pub base: &'a Checkpoint,
    /// What was reported.
    pub reported: &'a [ModuleQuality],
    /// The sequences that it was calibrated with; without them only the errors of weights are compared.
    pub samples: &'a [Vec<u32>],
    /// Whether every expert saw all tokens.
    pub all_experts: bool,
    /// Which network's rows the modules saw.
    pub sequential: Sequential,
    /// What it runs on.
    pub backend: Arc<Backend>,
}

/// A reported error that the stored folder does not have.
#[derive(Clone, Debug, PartialEq)]
pub struct Deviation {
    /// The module.
    pub module: String,
    /// The group of inputs, if the error is that of a group's weights; that of the outputs otherwise.
    pub group: Option<usize>,
    /// As reported.
    pub reported: f64,
    /// As measured now.
    pub found: f64,
}

/// How far two measurements of an error may be apart, relative to the larger one.
const TOLERANCE: f64 = 1e-6;

/// Bytes of Hessians that are summed up at the same time.
const AT_ONCE: usize = 1 << 30;

/// Measures the errors again and lists those that are not as reported, module by module. `progress` hears of every module.
///
/// The outputs of a module behind a damaged one differ too, so the damage is where groups are named, or else in the first.
///
/// # Errors
/// [`QuantizeError`] if the folders and the report are not of each other.
pub fn recheck(job: &Recheck<'_>, progress: &mut dyn FnMut(&str)) -> Result<Vec<Deviation>, QuantizeError> {
    let config = DecoderConfig::from_json(&format!("{}/config.json", job.stored.name()), job.stored.config())?;
    let base_config = DecoderConfig::from_json(&format!("{}/config.json", job.base.name()), job.base.config())?;
    let unstacked = base_config.unstacked(job.base)?;
    let base = unstacked.as_ref().unwrap_or(job.base);
    if let Some((scaled, factors)) = job.reported.iter().find_map(|q| Some((q, q.scaling.as_ref()?))) {
        let found = format!("the factors of AWQ, found for `{}`", factors.maker);
        let remedy = "compare the folders with `eval kld`; factors that moved to other tensors are not taken back";
        return Err(QuantizeError::setting(&scaled.module, "the method rtn or gptq", found, remedy));
    }
    let reported: BTreeMap<&str, &ModuleQuality> = job.reported.iter().map(|q| (q.module.as_str(), q)).collect();
    let stored: BTreeSet<String> = job.stored.quantized_modules().into_iter().collect();
    let one_sided = stored.iter().map(String::as_str).find(|m| !reported.contains_key(m));
    if let Some(module) = one_sided.or_else(|| reported.keys().copied().find(|m| !stored.contains(*m))) {
        let found = if stored.contains(module) { "it in the folder only" } else { "it in the report only" };
        return Err(QuantizeError::setting(
            module,
            "a module of folder and report",
            found,
            "give the report that was written with the folder",
        ));
    }
    let head = Linear { name: HEAD.into(), in_features: config.hidden_size, out_features: config.vocab_size, bias: false };
    let mut check = Check { job, base, config: &base_config, reported, deviations: vec![] };
    let lengths: Vec<usize> = job.samples.iter().map(Vec::len).collect();
    let (running, config) = match job.sequential {
        Sequential::Quantized => (job.stored, &config),
        Sequential::Dense => (base, &base_config),
    };
    let mut rows = billfish_models::embed(running, config, &job.samples.concat())?;
    let hidden = config.hidden_size;
    for index in 0..config.layers {
        let steps = billfish_models::replaceable(running, config, index);
        if job.samples.is_empty() {
            steps.iter().flatten().flatten().try_for_each(|l| check.module(l, None, progress))?;
            continue;
        }
        let mut layer = LoneLayer::load(running, config, index, Arc::clone(&job.backend), LoadOptions::default())?;
        for (step, groups) in steps.iter().enumerate() {
            let size = |g: &Vec<Linear>| g.first().map_or(0, |l| l.in_features);
            let at_once = (AT_ONCE / groups.iter().map(|g| 8 * size(g) * size(g)).max().unwrap_or(0).max(1)).max(1);
            for first in (0..groups.len()).step_by(at_once) {
                let mut hessians: Vec<Hessian> = groups.iter().skip(first).take(at_once).map(|g| Hessian::new(size(g))).collect();
                let of = first..first + hessians.len();
                for (sequences, tokens) in batches(&lengths) {
                    let rows = &rows[tokens.start * hidden..tokens.end * hidden];
                    let wanted = |_, group: usize| of.contains(&group);
                    layer.observe(rows, &lengths[sequences], step..step + 1, job.all_experts, &wanted, &mut |_, group, inputs| {
                        if let Some(hessian) = group.checked_sub(first).and_then(|at| hessians.get_mut(at)) {
                            hessian.add(&job.backend, inputs);
                        }
                    });
                }
                for (group, hessian) in groups[of.clone()].iter().zip(&mut hessians) {
                    group.iter().try_for_each(|l| check.module(l, Some(hessian), progress))?;
                }
            }
        }
        for (sequences, tokens) in batches(&lengths) {
            layer.run(&mut rows[tokens.start * hidden..tokens.end * hidden], &lengths[sequences]);
        }
    }
    let mut hessian = Hessian::new(hidden);
    if check.reported.contains_key(HEAD) {
        for (_, tokens) in batches(&lengths) {
            let rows = &rows[tokens.start * hidden..tokens.end * hidden];
            hessian.add(&job.backend, &billfish_models::final_norm(running, config, &job.backend, rows)?);
        }
        check.module(&head, Some(&mut hessian).filter(|_| !job.samples.is_empty()), progress)?;
    }
    Ok(check.deviations)
}

struct Check<'a> {
    job: &'a Recheck<'a>,
    base: &'a Checkpoint,
    config: &'a DecoderConfig,
    reported: BTreeMap<&'a str, &'a ModuleQuality>,
    deviations: Vec<Deviation>,
}

impl Check<'_> {
    /// Compares one module, if it is quantized; its outputs too with the Hessian of its inputs.
    fn module(&mut self, l: &Linear, hessian: Option<&mut Hessian>, progress: &mut dyn FnMut(&str)) -> Result<(), QuantizeError> {
        let Some(reported) = self.reported.get(l.name.as_str()) else { return Ok(()) };
        progress(&l.name);
        let rule = if l.bias { BiasRule::Required } else { BiasRule::Absent };
        let stored: QuantMatrix = match self.job.stored.linear(&l.name, l.in_features, l.out_features, rule)? {
            LinearWeight::Quantized(stored) => stored,
            LinearWeight::Dense { .. } => {
                return Err(QuantizeError::setting(&l.name, "a quantized module", "a dense one", "quantize the folder again"));
            }
        };
        let (weight, _) = dense_weight(self.base, self.config, l)?;
        let (output, groups) = match hessian {
            Some(hessian) => {
                if (hessian.rows(), hessian.dropped()) != (reported.rows, reported.dropped_rows) && self.deviations.is_empty() {
                    let (expected, found) = (format!("{} rows, as reported", reported.rows), format!("{} rows", hessian.rows()));
                    let remedy = "give the text, --samples and --seqlen that it was calibrated with";
                    return Err(QuantizeError::setting(&l.name, expected, found, remedy));
                }
                let found = errors(&self.job.backend, &stored, &weight, hessian.whole(), [None; 2]);
                (Some(found.output), found.groups)
            }
            None => (None, group_errors(&stored, &weight)),
        };
        if groups.len() != reported.group_errors.len() {
            let (expected, found) = (format!("{} groups, as reported", reported.group_errors.len()), groups.len().to_string());
            return Err(QuantizeError::setting(&l.name, expected, found, "give the report that was written with the folder"));
        }
        let differs = |a: f64, b: f64| (a - b).abs() > TOLERANCE * a.abs().max(b.abs());
        let mut add = |group, reported, found| {
            self.deviations.push(Deviation { module: l.name.clone(), group, reported, found });
        };
        for (group, (&reported, &found)) in reported.group_errors.iter().zip(&groups).enumerate() {
            // the same numbers in the same order give the same bits
            if reported != found {
                add(Some(group), reported, found);
            }
        }
        if let Some(found) = output.filter(|found| differs(reported.output_error, *found)) {
            add(None, reported.output_error, found);
        }
        Ok(())
    }
}
