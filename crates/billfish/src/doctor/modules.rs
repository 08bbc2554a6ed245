//! Quantized modules, each read in full: scales, groups, `g_idx`; and whether the config agrees with the dense ones.

use super::findings::{FIX, Findings};
use super::zeros;
use crate::vllm::linear_modules;
use billfish_formats::{BiasRule, Checkpoint, Contradiction, FormatError, LinearWeight, ModuleReport};
use billfish_models::{DecoderConfig, Linear};
use billfish_tensor::{QuantMatrix, RowOrder, ScaleValues};
use std::collections::BTreeMap;

/// Smallest normal half: a scale below it has lost bits.
const F16_NORMAL: f32 = 6.103_515_6e-5;
/// Largest half.
const F16_MOST: f32 = 65504.0;

/// A quantized module that could be read.
pub(super) struct Module {
    pub report: ModuleReport,
    pub order: RowOrder,
}

/// Reads every quantized module.
pub(super) fn examine(
    checkpoint: &Checkpoint,
    decoder: Option<&DecoderConfig>,
    progress: &mut dyn FnMut(u64, u64),
    found: &mut Findings,
) -> Vec<Module> {
    let planned: BTreeMap<String, Linear> = decoder.into_iter().flat_map(|d| d.linears(checkpoint)).map(|l| (l.name.clone(), l)).collect();
    let contradictions = checkpoint.contradictions();
    let mut modules = vec![];
    let mut refused: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut done = 0;
    for name in checkpoint.quantized_modules() {
        if let Some(c) = contradictions.iter().find(|c| c.module == name) {
            contradiction(c, found);
        }
        match read(checkpoint, &name, planned.get(&name)) {
            Ok(Read::Refused(report)) if report.lost_zeros > 0 => zeros::lost(&report, found),
            Ok(Read::Refused(report)) => refused.entry(report.refusal.unwrap_or_default()).or_default().push(name.clone()),
            Ok(Read::Quantized(read)) => {
                let (report, m) = *read;
                done += report.bytes;
                scales(&name, m.scales(), found);
                let order = m.row_order();
                if report.act_order {
                    partition(&name, &order, m.in_features(), found);
                }
                zeros::examine(&report, &m, found);
                modules.push(Module { report, order });
            }
            Ok(Read::Dense) => {}
            Err(e) => found.stops(&name, &e),
        }
        progress(done, checkpoint.total_bytes());
    }
    for (what, names) in refused {
        let evidence = format!("{} modules from `{}` on hold {what}", names.len(), names[0]);
        let remedy = "use a checkpoint of the model with integer codes (GPTQ, AWQ, compressed-tensors), or the dense original";
        found.error(checkpoint.name(), evidence, "they are not read, so that the folder does not run", remedy);
    }
    // dense modules, too: reading finds whether the config agrees with their tensors
    for name in linear_modules(checkpoint) {
        if let Err(e) = checkpoint.is_quantized(&name) {
            found.stops(&name, &e);
        }
    }
    modules
}

/// What became of a module.
enum Read {
    Quantized(Box<(ModuleReport, QuantMatrix)>),
    /// Of a format that is not read, or damaged: its refusal says which.
    Refused(Box<ModuleReport>),
    Dense,
}

fn read(checkpoint: &Checkpoint, name: &str, planned: Option<&Linear>) -> Result<Read, FormatError> {
    let report = checkpoint.describe(name)?;
    if report.refusal.is_some() {
        return Ok(Read::Refused(Box::new(report)));
    }
    let (k, n, bias) = match planned {
        Some(l) => (l.in_features, l.out_features, if l.bias { BiasRule::Required } else { BiasRule::Absent }),
        None => (report.in_features, report.out_features, BiasRule::Optional),
    };
    Ok(match checkpoint.linear(name, k, n, bias)? {
        LinearWeight::Quantized(m) => Read::Quantized(Box::new((report, m))),
        LinearWeight::Dense { .. } => Read::Dense,
    })
}

fn contradiction(c: &Contradiction, found: &mut Findings) {
    if c.group_size.is_none() {
        let consequence = "Billfish follows `g_idx` if there is one; every other program computes the group of a row and refuses or fails";
        return found.warning(&c.module, c.to_string(), consequence, "quantize the module again, or use another checkpoint of the model");
    }
    let consequence = if c.bits == c.said.0 {
        "without `g_idx` the module cannot be read, and programs that compute the group of a row take other scales"
    } else {
        "the module cannot be read as the config says"
    };
    found.error(&c.module, c.to_string(), consequence, &format!("correct the config, or {FIX}"));
}

fn scales(name: &str, scales: &ScaleValues, found: &mut Findings) {
    let (mut zero, mut tiny, mut beyond) = (0, 0, 0);
    let half = matches!(scales, ScaleValues::F16(_));
    let normal = if half { F16_NORMAL } else { f32::MIN_POSITIVE };
    for i in 0..scales.len() {
        let s = scales.get(i).abs();
        if s == 0.0 {
            zero += 1;
        } else if s < normal {
            tiny += 1;
        } else if !half && !(F16_NORMAL..=F16_MOST).contains(&s) {
            beyond += 1;
        }
    }
    let all = scales.len();
    if zero > 0 {
        let evidence = format!("{zero} of {all} scales are 0");
        let remedy = "check that the layer was quantized with enough calibration text";
        found.warning(name, evidence, "their groups are all 0", remedy);
    }
    if tiny > 0 {
        let evidence = format!("{tiny} of {all} scales are denormal {}", if half { "halves" } else { "numbers" });
        let consequence = "they have few bits, and programs that flush denormals read 0";
        found.warning(name, evidence, consequence, "quantize again with larger groups or bf16 scales");
    }
    if beyond > 0 {
        let evidence = format!("{beyond} of {all} scales are no normal halves");
        found.note(name, evidence, "programs that turn scales into halves lose them", "run those programs with bf16, if they can");
    }
}

/// Groups of rows that are not alike. (A group number out of range is an error of reading.)
fn partition(name: &str, order: &RowOrder, rows: usize, found: &mut Findings) {
    let groups = order.group_rows.len();
    let empty = order.group_rows.iter().filter(|&&rows| rows == 0).count();
    let full = order.group_rows.iter().max().copied().unwrap_or(0);
    let odd = order.group_rows.iter().filter(|&&rows| rows != full).count();
    if empty > 0 {
        let evidence = format!("`g_idx` gives no row to {empty} of {groups} groups");
        let consequence = "the scales of those groups are never used, as if the rows had been put into the wrong groups";
        found.warning(name, evidence, consequence, "compare `g_idx` with the original file, and quantize again if it is so there");
    }
    if odd > 1 || (odd == 1 && rows.is_multiple_of(full.max(1) as usize)) {
        let evidence = format!("`g_idx` gives {odd} of {groups} groups another number of rows than {full}");
        let consequence = "programs that sort rows into equal groups compute something else";
        found.warning(name, evidence, consequence, "Billfish reads it as written; for other programs quantize again");
    }
}
