//! Files: shards, their index, configs, and whatever reading has listed.

use super::findings::{FIX, Findings, Severity};
use billfish_formats::{Checkpoint, FormatError, ModuleReport, WarningKind, survey};
use std::path::Path;

/// What keeps a folder from opening. `salvaged`: its tensors can be read without what stands in the way.
pub(super) fn unopened(dir: &Path, error: &FormatError, salvaged: bool, found: &mut Findings) {
    let subject = |e: &FormatError| match e {
        FormatError::NotFound { path, .. } => path.clone(),
        FormatError::Json { file, .. }
        | FormatError::Config { file, .. }
        | FormatError::Index { file, .. }
        | FormatError::Header { file, .. }
        | FormatError::Tensor { file, .. }
        | FormatError::Io { file, .. } => file.clone(),
        _ => dir.display().to_string(),
    };
    let mut errors = survey(dir).unwrap_or_default();
    let told = error.to_string();
    if !errors.iter().any(|e| e.to_string() == told || matches!((e, error), (FormatError::Index { .. }, FormatError::Index { .. }))) {
        found.error(&subject(error), told, "the folder cannot be opened", remedy(error, salvaged));
    }
    for e in errors.drain(..) {
        found.error(&subject(&e), e.to_string(), "the folder cannot be opened", remedy(&e, salvaged));
    }
}

fn remedy(e: &FormatError, salvaged: bool) -> &'static str {
    match e {
        _ if salvaged => FIX,
        FormatError::Index { .. } | FormatError::Header { .. } => "download or write the file again: what is missing cannot be made up",
        _ => "do what the message says",
    }
}

/// Quantization configs that others will miss.
pub(super) fn configs(checkpoint: &Checkpoint, modules: &[ModuleReport], found: &mut Findings) {
    let files = checkpoint.quantization_files();
    if checkpoint.quantized_modules().is_empty() {
        if let Some(file) = files.first() {
            let consequence = "programs that follow the config look for codes that are not there";
            found.warning(file.file, "a quantization config, but no module is quantized", consequence, FIX);
        }
        return;
    }
    let inside = files.iter().any(|f| f.file == "config.json");
    let own = files.iter().find(|f| f.file != "config.json");
    if let (false, Some(own)) = (inside, own) {
        let evidence = format!("no `quantization_config`, but {} has one", own.file);
        found.warning("config.json", evidence, "transformers and vLLM take the model for a dense one and fail at its tensors", FIX);
    }
    let gptq = modules.iter().any(|m| m.format.name().starts_with("gptq"));
    if gptq && own.is_none() {
        let consequence = "programs that look for the file only (AutoGPTQ and its kin) do not see that the model is quantized";
        found.note("quantize_config.json", "no such file", consequence, "nothing to do, unless such a program is used");
    }
}

/// What reading has listed.
pub(super) fn warnings(checkpoint: &Checkpoint, found: &mut Findings) {
    for w in checkpoint.warnings() {
        let consequence = match w.kind {
            WarningKind::Files => "it is left aside",
            WarningKind::Config => "programs that read the configs in another order, or know the key, read something else",
            WarningKind::Rules => "programs that follow the config take these modules for something else than they are",
            WarningKind::Tensors => "programs that follow the label instead of the data read other weights",
        };
        let remedy = match w.kind {
            WarningKind::Tensors => format!("leave out `--zeros` if it was given, or {FIX}; what the message calls lost is lost"),
            _ => FIX.to_string(),
        };
        let subject = match w.subjects.as_slice() {
            [one] => one,
            _ => checkpoint.name(),
        };
        found.add(Severity::Warning, subject, w.to_string(), consequence, &remedy);
    }
}
