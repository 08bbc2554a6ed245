//! A repaired copy of a folder: what the tensors show is written again, with configs and an index that say so.

use super::network::HEAD;
use super::{Examination, Finding, Severity, examine};
use crate::Error;
use billfish_formats::{Checkpoint, CheckpointFormat, FormatError, Target, ZeroDialect, ZeroLabel, check_free, convert};
use billfish_models::DecoderConfig;
use std::path::Path;

/// A repaired copy.
#[derive(Clone, Debug)]
pub struct Fixed {
    /// The format it was written in; `None` when nothing in it is quantized.
    pub target: Option<Target>,
    /// Parts of the source that were set aside.
    pub aside: Vec<String>,
    /// What is no longer wrong.
    pub repaired: Vec<Finding>,
    /// The copy, examined.
    pub after: Examination,
}

/// Writes a repaired copy of the folder `dir`, which `before` examined, to the new folder `out`. The tensors are believed
/// before the configs; `zeros` overrules how zero points are read, as it does elsewhere. Nothing is rounded.
///
/// # Errors
/// [`Error`] when something is wrong that no copy can put right, or `out` is taken: nothing is written then.
pub fn fix(
    dir: &Path,
    before: &Examination,
    zeros: Option<ZeroLabel>,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Fixed, Error> {
    check_free(out)?;
    let (source, aside) = open(dir)?;
    let name = source.name().to_string();
    let source = with_head(source.with_zeros(zeros)?.following_tensors());
    let targets = targets(&source)?;
    let mut target = None;
    for (i, candidate) in targets.iter().enumerate() {
        match convert(&source, out, *candidate, false, progress) {
            Ok(_) => {
                target = Some(*candidate);
                break;
            }
            // the other way to store zero points may hold them
            Err(FormatError::Lossy { .. }) if i + 1 < targets.len() => {}
            Err(e) => return Err(e.into()),
        }
    }
    let after = examine(&Checkpoint::open(out)?, None, progress);
    let plain = |f: &Finding, path: &Path, name: &str| {
        let short = |text: &str| text.replace(&format!("{}/", path.display()), "").replace(&format!("{name}/"), "");
        let subject = if f.subject == name { String::new() } else { short(&f.subject) };
        (subject, short(&f.evidence))
    };
    let out_name = out.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let left: Vec<_> = after.findings.iter().map(|f| plain(f, out, &out_name)).collect();
    let gone = |f: &&Finding| f.severity != Severity::Note && !left.contains(&plain(f, dir, &name));
    let repaired = before.findings.iter().filter(gone).cloned().collect();
    let target = target.filter(|_| !source.quantized_modules().is_empty());
    Ok(Fixed { target, aside, repaired, after })
}

/// The folder by its configs and index, or by its tensors where these stand in the way.
fn open(dir: &Path) -> Result<(Checkpoint, Vec<String>), Error> {
    let missing = |c: &Checkpoint| {
        DecoderConfig::from_json("config.json", c.config()).map_or(0, |d| d.compare(c).missing.iter().filter(|m| *m != HEAD).count())
    };
    let opened = Checkpoint::open(dir);
    let salvaged = || Checkpoint::salvage(dir).map(|s| (s.checkpoint, s.aside));
    match opened {
        Ok(opened) => Ok(match missing(&opened) {
            0 => (opened, vec![]),
            // an index that leaves tensors out
            count => salvaged().ok().filter(|(s, _)| missing(s) < count).unwrap_or((opened, vec![])),
        }),
        Err(e) => salvaged().map_err(|_| e.into()),
    }
}

/// `tie_word_embeddings` as the tensors show it.
fn with_head(source: Checkpoint) -> Checkpoint {
    let Ok(decoder) = DecoderConfig::from_json("config.json", source.config()) else { return source };
    let embedding = "model.embed_tokens.weight";
    let own = source.has_codes(HEAD) || source.info("lm_head.weight").is_some();
    let differs = source.has_codes(HEAD) || matches!(source.same_tensor("lm_head.weight", embedding), Ok(Some(false)));
    match decoder.tie_word_embeddings {
        true if own && differs => source.with_config_key("tie_word_embeddings", false.into()),
        false if !own && source.info(embedding).is_some() => source.with_config_key("tie_word_embeddings", true.into()),
        _ => source,
    }
}

/// The formats that can hold the folder as it is, the best first.
fn targets(source: &Checkpoint) -> Result<Vec<Target>, Error> {
    let names = source.quantized_modules();
    let modules = names.iter().map(|n| source.describe(n)).collect::<Result<Vec<_>, _>>()?;
    let Some(first) = modules.first() else { return Ok(vec![Target::GptqV2]) };
    let gptq = |f| matches!(f, CheckpointFormat::Gptq | CheckpointFormat::GptqV2 | CheckpointFormat::GptqP);
    if let Some(other) = modules.iter().find(|m| m.format != first.format && !(gptq(m.format) && gptq(first.format))) {
        return Err(unwritable(&other.module, other.format));
    }
    if modules.iter().any(|m| m.format == CheckpointFormat::GptqP) {
        return Ok(vec![Target::GptqP]);
    }
    match first.format {
        CheckpointFormat::AwqGemm => Ok(vec![Target::Awq]),
        CheckpointFormat::PackQuantized => Ok(vec![Target::CompressedTensors]),
        format if gptq(format) => {
            let v2 = modules.iter().filter(|m| m.zeros == ZeroDialect::V2).count();
            let [most, other] = if 2 * v2 > modules.len() { [Target::GptqV2, Target::Gptq] } else { [Target::Gptq, Target::GptqV2] };
            Ok(vec![most, other])
        }
        format => Err(unwritable(&first.module, format)),
    }
}

fn unwritable(module: &str, format: CheckpointFormat) -> Error {
    Error::File {
        file: format!("module `{module}`"),
        expected: "one format for all modules, of GPTQ, AWQ gemm or compressed-tensors pack-quantized".into(),
        found: format.name().into(),
        remedy: "a repaired copy of this one can only be written by the program that wrote it".into(),
    }
}
