//! Which model is measured, and whether its output was looked at.

use super::super::GateFailed;
use super::super::options::{FolderArgs, load};
use super::super::synth::tokenizer_files;
use anyhow::{Result, bail};
use billfish::bench::{Quality, quality};
use billfish::machine::{peak_memory, reset_peak_memory};
use billfish::{BUILTIN_NAME, Checkpoint, LoadedModel, OpenOptions, Summary};
use billfish_quantize::{SynthSpec, synthetic};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Which model.
#[derive(clap::Args)]
pub struct SubjectArgs {
    /// A model folder; the built-in model if none is named
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub folder: FolderArgs,
    /// Measure random weights in a known shape, as `billfish synth` takes them; the results are marked SYNTHETIC
    #[arg(long, value_name = "SPEC", conflicts_with = "model")]
    pub synthetic: Option<SynthSpec>,
}

/// Which model, and whether it must make sense.
#[derive(clap::Args)]
pub struct GatedArgs {
    #[command(flatten)]
    pub subject: SubjectArgs,
    /// Measure although nobody looked whether the output makes sense; the results are marked UNVERIFIED
    #[arg(long, conflicts_with = "synthetic")]
    no_quality_gate: bool,
}

/// An open folder.
pub struct Opened {
    pub checkpoint: Checkpoint,
    /// What outputs call the model.
    pub name: String,
}

impl SubjectArgs {
    /// Opens the folder, or a synthetic model, whose weights are made when they are read.
    pub fn open(&self) -> Result<Opened> {
        if let Some(spec) = &self.synthetic {
            let checkpoint = self.folder.apply(synthetic(spec, 0, &tokenizer_files())?)?;
            return Ok(Opened { checkpoint, name: format!("synthetic {spec}") });
        }
        let checkpoint = self.folder.open(self.model.as_deref())?;
        let name = self.model.as_deref().map_or(BUILTIN_NAME.to_string(), |m: &Path| m.display().to_string());
        Ok(Opened { checkpoint, name })
    }
}

/// What is known about the output of a model.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It passed the gate.
    Passed(Quality),
    /// Nobody looked.
    Unverified,
    /// Its weights are random.
    Synthetic,
}

impl Verdict {
    /// A cell of a table.
    pub fn cell(&self) -> String {
        match self {
            Verdict::Passed(q) => format!("ppl {:.1}", q.perplexity),
            Verdict::Unverified => "UNVERIFIED".into(),
            Verdict::Synthetic => "SYNTHETIC".into(),
        }
    }

    /// A line above a table.
    pub fn line(&self) -> String {
        match self {
            Verdict::Passed(q) => {
                format!("quality: perplexity {:.1} of plain English (must be below {:.0}), no repeated tokens", q.perplexity, q.limit)
            }
            Verdict::Unverified => "quality: UNVERIFIED, the gate was switched off".into(),
            Verdict::Synthetic => "quality: SYNTHETIC, random weights".into(),
        }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        match self {
            Verdict::Passed(q) => json!({"status": "PASSED", "perplexity": q.perplexity, "perplexity_limit": q.limit}),
            Verdict::Unverified => json!({"status": "UNVERIFIED", "perplexity": null, "perplexity_limit": null}),
            Verdict::Synthetic => json!({"status": "SYNTHETIC", "perplexity": null, "perplexity_limit": null}),
        }
    }
}

/// A loaded model and what reports say about it.
pub struct Subject {
    pub loaded: LoadedModel,
    pub name: String,
    pub summary: Summary,
    /// Hash of the safetensors files; a synthetic model is its spec.
    pub sha256: Option<String>,
    /// Largest resident size while it was loaded.
    pub load_peak: Option<u64>,
    gate: Gate,
}

/// Whether to look.
#[derive(Clone, Copy)]
enum Gate {
    On,
    Off,
    Synthetic,
}

impl GatedArgs {
    /// Loads the model.
    pub fn load(&self, options: &OpenOptions) -> Result<Subject> {
        if self.subject.synthetic.is_some() && options.cache.is_some() {
            bail!(
                "--synthetic builds its weights in memory and has no packed cache; leave --cache out, or write the model with `billfish synth`"
            );
        }
        let opened = self.subject.open()?;
        let summary = Summary::of(&opened.checkpoint)?;
        let loaded = load(&opened.checkpoint, options)?;
        let load_peak = peak_memory();
        let gate = match (&self.subject.synthetic, self.no_quality_gate) {
            (Some(_), _) => Gate::Synthetic,
            (None, true) => Gate::Off,
            (None, false) => Gate::On,
        };
        let pool = loaded.model.backend().pool();
        let sha256 = match gate {
            Gate::Synthetic => None,
            // the cache is named by it
            _ if loaded.model.cache().is_some() => loaded.model.cache().map(|c| c.files_sha256.clone()),
            _ => Some(opened.checkpoint.files_sha256(&|count, body| pool.run(count, body))?),
        };
        // the hash's buffers are no part of running the model
        reset_peak_memory();
        Ok(Subject { loaded, name: opened.name.clone(), summary, sha256, load_peak, gate })
    }
}

impl Subject {
    /// Looks at the model's output, if that is asked for.
    ///
    /// # Errors
    /// [`GateFailed`] if it makes no sense.
    pub fn verdict(&self) -> Result<Verdict> {
        match self.gate {
            Gate::Off => return Ok(Verdict::Unverified),
            Gate::Synthetic => return Ok(Verdict::Synthetic),
            Gate::On => {}
        }
        let quality = quality(&self.loaded)?;
        match quality.failure() {
            None => Ok(Verdict::Passed(quality)),
            Some(why) => {
                let way = "nothing was measured; `billfish doctor` may know more, --no-quality-gate measures all the same";
                Err(GateFailed(format!("{}: {why}; {way}", self.name)).into())
            }
        }
    }

    /// The larger of what loading and what running took.
    pub fn peak(&self, running: Option<u64>) -> Option<u64> {
        running.and_then(|r| self.load_peak.map(|l| l.max(r)))
    }

    /// What it is, in a line.
    pub fn line(&self) -> String {
        let hash = self.sha256.as_ref().map_or_else(String::new, |h| format!(", files sha256 {h}"));
        let cache = self.loaded.cache_line().map_or_else(String::new, |c| format!(", {c}"));
        format!("model: {}, {}, {:.1} MB{hash}{cache}", self.name, self.summary.line(), self.summary.bytes as f64 / 1e6)
    }
}
