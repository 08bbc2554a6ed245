//! Everything that is wrong or odd with a folder, with evidence, consequence and remedy.

mod deep;
mod experts;
mod files;
mod findings;
mod fix;
mod fused;
mod modules;
mod network;
mod text;
mod zeros;

pub use findings::{Finding, Severity};
pub use fix::{Fixed, fix};

use crate::engines::{EngineVerdict, engines};
use crate::vllm::{VllmReport, vllm};
use crate::{OpenOptions, read_tokenizer};
use billfish_formats::{Checkpoint, FormatError, ZeroLabel};
use billfish_models::DecoderConfig;
use findings::Findings;
use std::path::Path;

/// The result of an examination.
#[derive(Clone, Debug, Default)]
pub struct Examination {
    /// What was found, worst first.
    pub findings: Vec<Finding>,
    /// What other programs would do with the folder.
    pub engines: Vec<EngineVerdict>,
    /// What vLLM would make of each module, if it is quantized in a way that is described.
    pub vllm: Option<VllmReport>,
}

impl Examination {
    /// Whether nothing worse than a note was found.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|f| f.severity == Severity::Note)
    }
}

/// Examines a folder in full: every module is read. With `deep` it is also run over a short text, under both readings of
/// its zero points where there are two. `progress` hears the bytes done and in all.
pub fn examine(checkpoint: &Checkpoint, deep: Option<&OpenOptions>, progress: &mut dyn FnMut(u64, u64)) -> Examination {
    let mut found = Findings::default();
    let decoder = match DecoderConfig::from_json("config.json", checkpoint.config()) {
        Ok(decoder) => Some(decoder),
        Err(e) => {
            found.stops("config.json", &e);
            None
        }
    };
    if let Some(decoder) = &decoder {
        network::examine(checkpoint, decoder, &mut found);
    }
    let tokenizer = read_tokenizer(checkpoint);
    text::examine(checkpoint, &tokenizer, &mut found);
    let reports = modules::examine(checkpoint, decoder.as_ref(), progress, &mut found);
    let vllm = vllm(checkpoint, &reports.iter().map(|m| m.report.clone()).collect::<Vec<_>>());
    fused::examine(checkpoint, &reports, vllm.as_ref(), &mut found);
    let reports: Vec<_> = reports.into_iter().map(|m| m.report).collect();
    experts::examine(checkpoint, &reports, &mut found);
    files::configs(checkpoint, &reports, &mut found);
    if let Some(options) = deep {
        deep::examine(checkpoint, &reports, tokenizer.as_ref().ok(), options, &mut found);
    }
    // last: reading has listed what it met
    files::warnings(checkpoint, &mut found);
    Examination { findings: found.sorted(), engines: engines(&reports, vllm.as_ref()), vllm }
}

/// Examines a folder that does not open, as `error` says: all that is wrong with its files, and as much of the rest as can be
/// seen without them. It cannot be run.
pub fn examine_unopened(dir: &Path, error: &FormatError, zeros: Option<ZeroLabel>, progress: &mut dyn FnMut(u64, u64)) -> Examination {
    let mut found = Findings::default();
    // what is wrong with `zeros` for such a folder is told once it opens
    let salvaged = Checkpoint::salvage(dir).and_then(|s| s.checkpoint.with_zeros(zeros));
    files::unopened(dir, error, salvaged.is_ok(), &mut found);
    let mut rest = salvaged.map(|checkpoint| examine(&checkpoint, None, progress)).unwrap_or_default();
    found.0.append(&mut rest.findings);
    Examination { findings: found.sorted(), ..rest }
}
