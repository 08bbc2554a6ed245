//! From what is shown, written and said to one dialect, and its true zero points.

use super::readings::Readings;
use super::shown::{self, Shown, Verdict};
use super::vote::Against;
use super::{Clues, Decoded, Evidence, Stored, ZeroDialect, ZeroLabel};
use crate::{CheckpointFormat, FormatError, Writer};
use billfish_tensor::Zeros;
use std::borrow::Cow;

const FORCED_WRONG: &str =
    "zero points are read as the caller says, but the stored numbers show the other reading: every weight is off by one step";
const FORCED_LOST: &str = "zero points are read as the caller says, but those that an overflow overwrote are not the true ones";
const SHOWN_V1: &str = "zero points are labelled v2, but the weights are centred only as v1 (stored less one): read as v1";
const SHOWN_V2: &str = "zero points are labelled v1, but the weights are centred only as v2 (stored as they are): read as v2";
const FOLDER_V1: &str = "zero points are labelled v2, but those of the folder's other modules are v1 (stored less one): read as v1";
const FOLDER_V2: &str = "zero points are labelled v1, but those of the folder's other modules are v2 (stored as they are): read as v2";
const MIDPOINT_V1: &str = "zero points are stored less one (v1), but the config says otherwise: read as the midpoint";
const MIDPOINT_V2: &str = "zero points are stored as they are (v2), but the config says gptq (v1): read as the midpoint";
const LEGACY: &str = "zero points hold the legacy 3-bit constants, which other readers misread: undone";
const NOT_AS_WRITTEN: &str = "v1 zero points are not stored as the program that wrote the file stores them: the codes are followed";
const ALL_ONES: &str = "some stored v1 zero points are all ones: read as 2^bits, the writer may have meant 0";
const UNKNOWN_VERSION: &str = "3-bit zero points of a GPTQModel of unknown version: read as version 7 or later writes them";
const MAYBE_LENT: &str = "v1 zero points of 0 are stored as all ones, and whether their neighbours lent them a one does not show: \
                          read as if they had, as GPTQModel writes them";
const NOT_MIDPOINT: &str = "`sym` is true, but the stored zero points are not the midpoint in any dialect: the stored ones are used";
const MIDPOINT_READ_AS_V1: &str =
    "every stored zero point is the midpoint, as in gptq_v2, but the config says asymmetric gptq (v1): read as v1";

/// What a module shows by itself.
pub(crate) fn shown(stored: &Stored<'_>, clues: &Clues<'_>) -> Result<Shown, FormatError> {
    by_itself(stored, &Readings::of(stored, clues.writer), clues)
}

fn by_itself(stored: &Stored<'_>, readings: &Readings, clues: &Clues<'_>) -> Result<Shown, FormatError> {
    let Clues { sym, format, .. } = *clues;
    if sym && let Some(class) = shown::constant(stored, &readings.raw, format) {
        return Ok(Shown { class: Some(class), wrap: None });
    }
    if format == CheckpointFormat::GptqP || (stored.bits > shown::TELLING && !readings.wraps()) {
        return Ok(Shown::default());
    }
    let sample = (clues.sample)()?;
    let class = shown::class(readings, stored.bits, &sample);
    let wrap = if readings.wraps() { shown::wrap(readings, stored.bits, &sample) } else { None };
    Ok(Shown { class, wrap })
}

/// Finds the dialect and returns true zero points.
pub(crate) fn decode(stored: &Stored<'_>, clues: &Clues<'_>) -> Result<Decoded, FormatError> {
    let readings = Readings::of(stored, clues.writer);
    let shown = by_itself(stored, &readings, clues)?;
    let mut finding = class(stored, &readings, &shown, clues);
    if finding.dialect == ZeroDialect::V1 {
        finding.wrap(&readings, &shown, clues);
    }
    let Finding { dialect, evidence, reason, mut warnings } = finding;

    let wraps = dialect.label() == ZeroLabel::V1 && dialect != ZeroDialect::V1Legacy;
    let wrapped = if wraps { readings.raw.iter().filter(|&&f| f == readings.largest).count() } else { 0 };
    let lost = if dialect == ZeroDialect::V1Overflow { readings.lost.len() } else { 0 };
    let mut refusal = None;
    if lost > 0 && clues.forced.is_some() {
        warnings.push(FORCED_LOST.into());
    } else if lost > 0 {
        let all = readings.raw.len();
        refusal = Some(format!("zero points of 0 that overflowed and overwrote {lost} of all {all}, which cannot be recovered"));
    }
    let mixed = (clues.folder)().against(&shown);
    if let Some(Against { own, others, count, of }) = &mixed {
        let mixed = format!(
            "the folder mixes zero points of two kinds: here the numbers show {own}; {count} of the {of} modules asked that tell show \
             {others}: each is read by its own numbers"
        );
        warnings.push(mixed.into());
    }
    let mixed = mixed.map(|against| against.others);
    let zeros = readings.zeros(dialect);
    let midpoint = stored.midpoint();
    let zeros = if zeros.iter().all(|&z| z == u16::from(midpoint)) { Zeros::Midpoint } else { Zeros::PerGroup(zeros) };
    if zeros != Zeros::Midpoint && clues.sym {
        warnings.push(NOT_MIDPOINT.into());
    } else if zeros != Zeros::Midpoint && clues.format == CheckpointFormat::Gptq && readings.raw.iter().all(|&z| z == midpoint) {
        warnings.push(MIDPOINT_READ_AS_V1.into());
    }
    Ok(Decoded { zeros, dialect, evidence, reason, warnings, wrapped, lost, mixed, refusal })
}

/// A dialect in the course of being found.
struct Finding {
    dialect: ZeroDialect,
    evidence: Evidence,
    reason: String,
    warnings: Vec<Cow<'static, str>>,
}

/// Whether v1, v2 or the legacy constants: as the caller, the module, the folder, the writer or the config says, in this order.
fn class(stored: &Stored<'_>, readings: &Readings, shown: &Shown, clues: &Clues<'_>) -> Finding {
    let Clues { sym, format, writer, forced, .. } = *clues;
    let declared = if format == CheckpointFormat::Gptq { ZeroLabel::V1 } else { ZeroLabel::V2 };
    let old = |w: &&Writer| stored.bits == 3 && w.is_gptqmodel() && w.major().is_some_and(|major| major < 7);
    let legacy = writer.filter(old);
    let v1 = if legacy.is_some() { ZeroDialect::V1Legacy } else { ZeroDialect::V1 };
    let default = |label| if label == ZeroLabel::V1 { v1 } else { ZeroDialect::V2 };
    let own = shown.class.clone();
    let mut warnings: Vec<Cow<'static, str>> = vec![];
    let (dialect, evidence, reason) = if let Some(forced) = forced {
        if own.as_ref().is_some_and(|own| own.dialect.label() != forced) {
            warnings.push(FORCED_WRONG.into());
        }
        let dialect = own.as_ref().map(|own| own.dialect).filter(|d| d.label() == forced);
        let numbers = own.map(|own| format!("; {}", own.reason)).unwrap_or_default();
        (dialect.unwrap_or(default(forced)), Evidence::Caller, format!("{forced} because the caller says so{numbers}"))
    } else if let Some(own) = own {
        let midpoint = sym && shown::constant(stored, &readings.raw, format).is_some();
        match (own.dialect.label(), midpoint) {
            (label, _) if label == declared => {}
            (ZeroLabel::V1, true) => warnings.push(MIDPOINT_V1.into()),
            (ZeroLabel::V2, true) => warnings.push(MIDPOINT_V2.into()),
            (ZeroLabel::V1, false) => warnings.push(SHOWN_V1.into()),
            (ZeroLabel::V2, false) => warnings.push(SHOWN_V2.into()),
        }
        if !midpoint && own.dialect == ZeroDialect::V1 && legacy.is_some() {
            warnings.push(NOT_AS_WRITTEN.into());
        }
        (own.dialect, Evidence::Data, own.reason)
    } else if format != CheckpointFormat::GptqP
        && let Some(folder) = (clues.folder)().class()
    {
        match folder.dialect.label() {
            label if label == declared => {}
            ZeroLabel::V1 => warnings.push(FOLDER_V1.into()),
            ZeroLabel::V2 => warnings.push(FOLDER_V2.into()),
        }
        (folder.dialect, Evidence::Folder, folder.reason)
    } else if let (Some(w), ZeroLabel::V1) = (legacy, declared) {
        let reason = format!("written by {w}, which subtracted the 3-bit constants in the wrong order");
        (ZeroDialect::V1Legacy, Evidence::Writer, reason)
    } else {
        (default(declared), Evidence::Config, format!("the format is {}", format.name()))
    };
    if dialect == ZeroDialect::V1Legacy {
        warnings.push(LEGACY.into());
    }
    Finding { dialect, evidence, reason, warnings }
}

impl Finding {
    /// How v1 wraps.
    fn wrap(&mut self, readings: &Readings, shown: &Shown, clues: &Clues<'_>) {
        if !readings.wraps() {
            self.reason += &format!("; no stored zero point is {}, so that every reading of v1 agrees", readings.largest);
            return;
        }
        let writer = clues.writer.filter(|w| w.is_gptqmodel());
        let written = if readings.bits == 3 { ZeroDialect::V1Modulo } else { ZeroDialect::V1Borrowed };
        let mut warn = |message: &'static str| self.warnings.push(message.into());
        let data = |v: &Verdict, evidence| (v.dialect, evidence, v.reason.clone());
        let (dialect, evidence, reason) = if let Some(own) = &shown.wrap {
            match writer {
                Some(_) if own.dialect != written => warn(NOT_AS_WRITTEN),
                None if !own.whole => warn(MAYBE_LENT),
                _ => {}
            }
            data(own, Evidence::Data)
        } else if let Some(folder) = (clues.folder)().wrap() {
            data(&folder, Evidence::Folder)
        } else if let Some(w) = writer {
            if readings.bits == 3 && w.major().is_none() {
                warn(UNKNOWN_VERSION);
            }
            let what = if readings.bits == 3 { "modulo 8" } else { "whole words" };
            (written, Evidence::Writer, format!("written by {w}, which subtracts {what}"))
        } else if !readings.lost.is_empty() {
            let reason = "every word with a zero of 0 ends in fields of all ones above it".into();
            (ZeroDialect::V1Overflow, Evidence::Data, reason)
        } else {
            warn(ALL_ONES);
            (ZeroDialect::V1, Evidence::Config, "the writer is not known to mean 0 by all ones".into())
        };
        self.dialect = dialect;
        self.reason += &format!("; {reason}");
        if self.evidence != Evidence::Caller {
            self.evidence = evidence;
        }
    }
}
