//! What is to be done, whether it can be, and what its result depends on.

use crate::statistics::{Statistics, Store};
use crate::workspace::sha256;
use crate::{QuantizeError, Recipe, Sequential};
use billfish_formats::Checkpoint;
use billfish_kernels::Backend;
use billfish_models::Linear;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

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
    /// Bytes of memory that it may take; what does not fit is kept on disk or done one after another, with the same result.
    pub memory: Option<u64>,
    /// What becomes of the sums over the samples.
    pub statistics: Statistics<'a>,
    /// Set by another thread to end after the current layer.
    pub stop: &'a AtomicBool,
}

impl Job<'_> {
    /// Whether modules see anything.
    pub(crate) fn observes(&self) -> bool {
        !self.samples.is_empty() || self.statistics.are_used()
    }
}

/// Hashing and comparing on the threads of the job.
pub(crate) fn workers<'a>(job: &'a Job<'_>) -> impl Fn(usize, &(dyn Fn(usize) + Sync)) + 'a {
    |count, body| job.backend.pool().run(count, body)
}

/// Refuses what cannot come to anything.
pub(crate) fn check(job: &Job<'_>, linears: &[Linear]) -> Result<(), QuantizeError> {
    let recipe = job.recipe;
    check_source(job)?;
    let settings = |l: &Linear| recipe.settings(&l.name);
    // the embedding stays dense, and the head is asked for by itself
    let mut linears = linears.iter().filter(|l| l.name.contains(".layers."));
    let wanted = linears.try_fold(false, |any, l| Ok::<_, QuantizeError>(any | settings(l)?.is_some()))?;
    if !wanted {
        return Err(QuantizeError::setting("dynamic", "rules that leave something to quantize", "none", "take a rule out"));
    }
    if let (true, Statistics::Save(path) | Statistics::Use(path)) = (recipe.method.scales(), job.statistics) {
        let found = format!("{} and `{}`", recipe.method.name(), path.display());
        let remedy = "give a text without statistics, or choose the method gptq";
        return Err(QuantizeError::setting("statistics", "the method rtn or gptq: factors take more than Hessians", found, remedy));
    }
    if job.statistics.are_used() && !job.samples.is_empty() {
        let (expected, remedy) = ("statistics or a text", "leave one of them out");
        return Err(QuantizeError::setting("calibration", expected, "both", remedy));
    }
    if job.samples.is_empty() && matches!(job.statistics, Statistics::Save(_)) {
        return Err(QuantizeError::setting("calibration", "a text to take statistics of", "none", "name one"));
    }
    if !job.observes() && recipe.sequential == Sequential::Dense {
        let found = "no calibration text";
        return Err(QuantizeError::setting("sequential", "a text that modules see", found, "name one, or leave the option out"));
    }
    if !job.observes() && recipe.method != crate::Method::Rtn {
        let found = "no calibration text";
        return Err(QuantizeError::setting("calibration", "a text of some sequences", found, "name one, or choose the method rtn"));
    }
    if let Some(short) = job.samples.iter().find(|s| s.len() < 2) {
        let found = format!("a sequence of {}", short.len());
        return Err(QuantizeError::setting("calibration", "sequences of two tokens or more", found, "leave it out"));
    }
    Ok(())
}

/// Refuses a folder that is quantized already, unless all of it is to be quantized again.
fn check_source(job: &Job<'_>) -> Result<(), QuantizeError> {
    let quantized = job.source.quantized_modules();
    let Some(first) = quantized.first() else {
        if !job.recipe.requantize {
            return Ok(());
        }
        let found = "nothing that is quantized";
        return Err(QuantizeError::setting("requantize", "a quantized folder", found, "leave the option out"));
    };
    if !job.recipe.requantize {
        let expected = "a folder of 16- or 32-bit floats";
        let remedy = "quantize the folder that this one was made from, or allow losses on top of losses with --requantize";
        return Err(QuantizeError::setting("model", expected, format!("`{first}`, quantized already"), remedy));
    }
    let chosen = crate::size::chosen_modules(job.source, job.recipe)?;
    match quantized.iter().find(|m| !chosen.iter().any(|(l, _)| l.name == **m)) {
        None => Ok(()),
        Some(left) => {
            let remedy = "let it be quantized too (--lm-head for the head), or convert the folder to dense first";
            let found = format!("`{left}`, which is to stay as it is");
            Err(QuantizeError::setting("requantize", "settings for every module that is quantized", found, remedy))
        }
    }
}

/// All that the result depends on.
pub(crate) fn settings(job: &Job<'_>) -> Result<Value, QuantizeError> {
    let r = job.recipe;
    let rules: Vec<String> = r.dynamic.rules().iter().map(|rule| format!("{} {:?}", rule.text(), rule.overrides())).collect();
    let tokens: Vec<u8> = job.samples.iter().flat_map(|s| s.iter().chain([&u32::MAX]).flat_map(|t| t.to_le_bytes())).collect();
    let calibration = match job.statistics {
        Statistics::Use(path) => Store::calibration(path)?,
        _ => sha256(&tokens).into(),
    };
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": job.source.files_sha256(&workers(job))?,
        "config": job.source.outline_sha256(),
        "calibration": calibration,
        // rows of a run without statistics are no rows of one with them
        "statistics": job.statistics.are_used(),
        "sequential": r.sequential.name(),
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
