//! Zero points as files store them. The same words mean different zeros in different dialects; this module finds out
//! which dialect a module speaks (from the data, then from who wrote it, then from the config) and returns true values.
//! The data are the zero points themselves and, because weights are centred, the mean of `code - zero point`.
//!
//! | dialect | stored | read |
//! |---|---|---|
//! | v1 | z - 1, field by field | + 1 per field, *unmasked*: a stored 15 is 16 |
//! | v1, borrowed | z - 1 on whole words (GPTQModel; 2, 4, 8 bit) | wrapping + 1 per field on whole words: a stored 15 is 0 |
//! | v1, modulo 8 | (z - 1) & 7 (GPTQModel from 7; 3 bit) | (stored + 1) & 7 |
//! | v1, legacy 3 bit | words less constants in the wrong order (GPTQModel up to 6) | the same constants added back |
//! | v2, planar | z | as stored |

use crate::statistic::Sample;
use crate::{CheckpointFormat, Writer};
use billfish_tensor::{Packing, Zeros};
use std::fmt;

/// How the zero points of a module are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZeroDialect {
    /// Less one, field by field.
    V1,
    /// Less one on whole words, so that a zero of 0 borrows from its neighbour.
    V1Borrowed,
    /// 3 bit: less one modulo 8.
    V1Modulo,
    /// 3 bit: less one on whole words with constants in the wrong order.
    V1Legacy,
    /// As they are.
    V2,
    /// Times the negative scale, as floats.
    Scaled,
    /// Not at all: every zero point is the midpoint.
    Absent,
}

impl fmt::Display for ZeroDialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ZeroDialect::V1 => "v1: stored less one, field by field",
            ZeroDialect::V1Borrowed => "v1: less one on whole words, borrows undone",
            ZeroDialect::V1Modulo => "v1: less one modulo 8",
            ZeroDialect::V1Legacy => "v1: legacy 3-bit constants, undone",
            ZeroDialect::V2 => "v2: stored as they are",
            ZeroDialect::Scaled => "stored times the negative scale",
            ZeroDialect::Absent => "not stored",
        })
    }
}

/// What decided the dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Evidence {
    /// The stored zero points themselves.
    Data,
    /// The program that wrote the file.
    Writer,
    /// What the config says.
    Config,
    /// The format, which has one way only.
    Format,
}

/// One of the two ways to store a zero point, for a caller who knows better than the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZeroLabel {
    /// Less one.
    V1,
    /// As it is.
    V2,
}

impl fmt::Display for ZeroLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == ZeroLabel::V1 { "v1" } else { "v2" })
    }
}

/// What is known about a module's zero points beside themselves.
#[derive(Clone, Copy)]
pub(crate) struct Clues<'a> {
    pub(crate) sym: bool,
    pub(crate) format: CheckpointFormat,
    pub(crate) writer: Option<&'a Writer>,
    /// Some of the module's codes.
    pub(crate) sample: Option<&'a Sample>,
    /// What the caller says, whatever the rest shows.
    pub(crate) forced: Option<ZeroLabel>,
}

/// Zero points as stored.
pub(crate) struct Stored<'a> {
    /// `[groups, packing.words(bits, n)]`.
    pub(crate) words: &'a [u32],
    pub(crate) n: usize,
    pub(crate) bits: u32,
    pub(crate) packing: Packing,
    /// Bits of the words that the file has (`words` are always filled from them in order).
    pub(crate) width: u32,
}

/// Zero points as they are, and how that was found out.
pub(crate) struct Decoded {
    pub(crate) zeros: Zeros,
    pub(crate) dialect: ZeroDialect,
    pub(crate) evidence: Evidence,
    pub(crate) reason: String,
    pub(crate) warnings: Vec<&'static str>,
}

/// Ones in every field of a word (2, 4 and 8 bit).
const ONES: [(u32, u32); 3] = [(2, 0x5555_5555), (4, 0x1111_1111), (8, 0x0101_0101)];
/// What GPTQModel up to 6 subtracted from each word of a 3-bit run.
const LEGACY: [u32; 3] = [0x2492_4924, 0x9249_2492, 0x4924_9249];

impl Stored<'_> {
    fn midpoint(&self) -> u8 {
        1 << (self.bits - 1)
    }

    fn largest(&self) -> u8 {
        ((1u32 << self.bits) - 1) as u8
    }

    fn row_words(&self) -> usize {
        self.packing.words(self.bits, self.n)
    }

    /// The fields of all words after adding `constant(j)` to word `j` of each row.
    fn fields(&self, constant: impl Fn(usize) -> u32) -> Vec<u8> {
        let per_row = self.row_words();
        let mut out = vec![0; self.words.len() / per_row * self.n];
        for (row, words) in out.chunks_exact_mut(self.n).zip(self.words.chunks_exact(per_row)) {
            for (i, run) in row.chunks_mut(32).enumerate() {
                let base = i * self.bits as usize;
                self.packing.unpack_run(self.bits, run, |j| self.plus(words, base + j, &constant));
            }
        }
        out
    }

    /// Word `j` plus its constant, added in words of the width that the file has.
    fn plus(&self, words: &[u32], j: usize, constant: &impl Fn(usize) -> u32) -> u32 {
        let (word, ones) = (words[j], constant(j));
        match self.width {
            8 => (0..4).fold(0, |w, i| w | (((word >> (8 * i)) as u8).wrapping_add((ones >> (8 * i)) as u8) as u32) << (8 * i)),
            16 => (word.wrapping_add(ones) & 0xffff) | (word >> 16).wrapping_add(ones >> 16) << 16,
            64 if j % 2 == 1 => {
                let (_, carry) = words[j - 1].overflowing_add(constant(j - 1));
                word.wrapping_add(ones).wrapping_add(u32::from(carry))
            }
            _ => word.wrapping_add(ones),
        }
    }

    fn legacy_fields(&self) -> Vec<u8> {
        self.fields(|j| LEGACY[j % 3])
    }

    /// Whether some word ends in two or more fields of all ones: what an unmasked z - 1 of a zero leaves behind.
    fn overflowed(&self) -> bool {
        let whole = self.n / (32 / self.bits as usize);
        self.words.chunks_exact(self.row_words()).any(|row| row[..whole].iter().any(|w| w.leading_ones() >= 2 * self.bits))
    }
}

/// Finds the dialect and returns true zero points.
pub(crate) fn decode(stored: &Stored<'_>, clues: &Clues<'_>) -> Decoded {
    let Clues { sym, format, .. } = *clues;
    let raw = stored.fields(|_| 0);
    let constant = if sym { symmetric(stored, &raw, format) } else { None };
    let mut found = match (constant, clues.forced) {
        (Some(found), None) => return found,
        (Some(shown), Some(forced)) => {
            let mut found = asymmetric(stored, &raw, clues);
            if (shown.dialect == ZeroDialect::V2) != (forced == ZeroLabel::V2) {
                found.warnings.push(FORCED_WRONG);
            }
            found
        }
        (None, _) => asymmetric(stored, &raw, clues),
    };
    let midpoint = u16::from(stored.midpoint());
    if let Zeros::PerGroup(z) = &found.zeros
        && z.iter().all(|&z| z == midpoint)
    {
        found.zeros = Zeros::Midpoint;
    } else if sym {
        found.warnings.push("`sym` is true, but the stored zero points are not the midpoint in any dialect: the stored ones are used");
    } else if format == CheckpointFormat::Gptq && raw.iter().all(|&z| z == stored.midpoint()) {
        found.warnings.push("every stored zero point is the midpoint, as in gptq_v2, but the config says asymmetric gptq (v1): read as v1");
    }
    found
}

/// The dialect in which every zero point is the midpoint, if there is one.
fn symmetric(stored: &Stored<'_>, raw: &[u8], format: CheckpointFormat) -> Option<Decoded> {
    let midpoint = stored.midpoint();
    let constant = |value: u8| raw.iter().all(|&f| f == value);
    let v1 = format == CheckpointFormat::Gptq;
    let (dialect, value, warning) = if constant(midpoint - 1) {
        let odd = "zero points are stored less one (v1), but the config says otherwise: read as the midpoint";
        (ZeroDialect::V1, midpoint - 1, (!v1).then_some(odd))
    } else if constant(midpoint) {
        let odd = "zero points are stored as they are (v2), but the config says gptq (v1): read as the midpoint";
        (ZeroDialect::V2, midpoint, v1.then_some(odd))
    } else if v1 && stored.bits == 3 && stored.legacy_fields().iter().all(|&f| f == midpoint) {
        let odd = "zero points hold the legacy 3-bit constants, which other readers misread: read as the midpoint";
        (ZeroDialect::V1Legacy, midpoint, Some(odd))
    } else {
        return None;
    };
    let undone = if dialect == ZeroDialect::V1Legacy { " after the legacy constants are added back" } else { "" };
    Some(Decoded {
        zeros: Zeros::Midpoint,
        dialect,
        evidence: Evidence::Data,
        reason: format!("every stored zero point is {value}{undone}"),
        warnings: warning.into_iter().collect(),
    })
}

const FORCED_WRONG: &str =
    "zero points are read as the caller says, but the stored numbers show the other reading: every weight is off by one step";
const SHOWN_V1: &str = "zero points are labelled v2, but the weights are centred only as v1 (stored less one): read as v1";
const SHOWN_V2: &str = "zero points are labelled v1, but the weights are centred only as v2 (stored as they are): read as v2";

/// The reading that the caller, the codes or the config choose, in this order.
fn asymmetric(stored: &Stored<'_>, raw: &[u8], clues: &Clues<'_>) -> Decoded {
    let declared = if clues.format == CheckpointFormat::Gptq { ZeroLabel::V1 } else { ZeroLabel::V2 };
    let raw_wide: Vec<u16> = raw.iter().map(|&f| u16::from(f)).collect();
    // only where it may be chosen: planar widths have no such reading
    let less_one = || less_one(stored, raw, clues.writer);
    let v1 = clues.sample.map(|_| less_one());
    let mut shown = None;
    if let Some(sample) = clues.sample
        && let Some(Decoded { zeros: Zeros::PerGroup(v1), .. }) = &v1
    {
        let means = [sample.mean(v1), sample.mean(&raw_wide)];
        shown = sample.shows(&means).map(|i| ([ZeroLabel::V1, ZeroLabel::V2][i], means[i], means[1 - i]));
    }
    let label = clues.forced.or(shown.map(|(label, ..)| label)).unwrap_or(declared);
    let mut found = match label {
        ZeroLabel::V1 => v1.unwrap_or_else(less_one),
        ZeroLabel::V2 => Decoded {
            zeros: Zeros::PerGroup(raw_wide),
            dialect: ZeroDialect::V2,
            evidence: Evidence::Config,
            reason: format!("the format is {}", clues.format.name()),
            warnings: vec![],
        },
    };
    if clues.forced.is_some() {
        found.reason = format!("{label} because the caller says so");
    }
    if let Some((label, near, far)) = shown {
        match (clues.forced, label) {
            (Some(forced), label) if forced != label => found.warnings.push(FORCED_WRONG),
            (None, ZeroLabel::V1) if declared != label => found.warnings.push(SHOWN_V1),
            (None, ZeroLabel::V2) if declared != label => found.warnings.push(SHOWN_V2),
            _ => {}
        }
        let centred = format!("mean of code less zero point {near:.2} as {label}, {far:.2} otherwise");
        if clues.forced.is_none() && found.evidence == Evidence::Config {
            (found.evidence, found.reason) = (Evidence::Data, centred);
        } else {
            found.reason += &format!("; {centred}");
        }
    }
    found
}

/// Zero points stored less one, in the way of the writer.
fn less_one(stored: &Stored<'_>, raw: &[u8], writer: Option<&Writer>) -> Decoded {
    let done = |z: Vec<u16>, dialect, evidence, reason: String, warnings| Decoded {
        zeros: Zeros::PerGroup(z),
        dialect,
        evidence,
        reason,
        warnings,
    };
    let wide = |fields: Vec<u8>| fields.into_iter().map(u16::from).collect::<Vec<u16>>();
    let plus_one = || raw.iter().map(|&f| u16::from(f) + 1).collect::<Vec<u16>>();
    let largest = stored.largest();
    let wraps = raw.contains(&largest);
    let writer = writer.filter(|w| w.is_gptqmodel());
    match (stored.bits, writer) {
        (3, Some(w)) if w.major().is_some_and(|major| major < 7) => {
            let reason = format!("written by {w}, which subtracted the 3-bit constants in the wrong order");
            done(wide(stored.legacy_fields()), ZeroDialect::V1Legacy, Evidence::Writer, reason, vec![])
        }
        (3, Some(w)) => {
            let z = raw.iter().map(|&f| u16::from((f + 1) & 7)).collect();
            let unsure = "3-bit zero points of a GPTQModel of unknown version: read as version 7 or later writes them";
            let warnings = if w.major().is_none() { vec![unsure] } else { vec![] };
            done(z, ZeroDialect::V1Modulo, Evidence::Writer, format!("written by {w}, which subtracts modulo 8"), warnings)
        }
        _ if !wraps => {
            let reason = format!("no stored zero point is {largest}, so that every reading of v1 agrees");
            done(plus_one(), ZeroDialect::V1, Evidence::Data, reason, vec![])
        }
        (bits, Some(w)) => {
            let ones = ONES.iter().find(|(b, _)| *b == bits).map_or(0, |(_, ones)| *ones);
            let reason = format!("written by {w}, which subtracts whole words");
            done(wide(stored.fields(|_| ones)), ZeroDialect::V1Borrowed, Evidence::Writer, reason, vec![])
        }
        (bits, None) => {
            let warning = if bits != 3 && stored.overflowed() {
                "zero points end in runs of all ones: the writer let a zero of 0 overflow into its neighbours, which cannot be undone; \
                 quantize the model again or use another checkpoint of it"
            } else {
                "some stored v1 zero points are all ones: read as 2^bits, the writer may have meant 0"
            };
            done(
                plus_one(),
                ZeroDialect::V1,
                Evidence::Config,
                "the format is gptq (v1) and the writer is not known to differ".into(),
                vec![warning],
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CheckpointFormat::{Gptq, GptqP, GptqV2};

    fn read(words: &[u32], bits: u32, sym: bool, format: CheckpointFormat, writer: &str) -> Decoded {
        let packing = if format == GptqP { Packing::Planar } else { Packing::Continuous };
        let n = words.len() * 32 / bits as usize;
        let writer = (!writer.is_empty()).then(|| Writer::parse(writer));
        let clues = Clues { sym, format, writer: writer.as_ref(), sample: None, forced: None };
        decode(&Stored { words, n, bits, packing, width: 32 }, &clues)
    }

    fn zeros(d: &Decoded) -> Vec<u16> {
        match &d.zeros {
            Zeros::PerGroup(z) => z.clone(),
            Zeros::Midpoint => vec![],
        }
    }

    /// Every symmetric constant of the references.
    #[test]
    fn symmetric_constants_of_every_dialect() {
        let v1 = [0xdb6d_b6db, 0xb6db_6db6, 0x6db6_db6d];
        let v2 = [0x2492_4924, 0x4924_9249, 0x9249_2492];
        let legacy = [0, 0xb6db_6db7, 0x4924_9249];
        let cases: [(&[u32], u32, ZeroDialect); 12] = [
            (&[0x5555_5555], 2, ZeroDialect::V1),
            (&[0xaaaa_aaaa], 2, ZeroDialect::V2),
            (&[0x7777_7777], 4, ZeroDialect::V1),
            (&[0x8888_8888], 4, ZeroDialect::V2),
            (&[0x7f7f_7f7f], 8, ZeroDialect::V1),
            (&[0x8080_8080], 8, ZeroDialect::V2),
            (&v1, 3, ZeroDialect::V1),
            (&v2, 3, ZeroDialect::V2),
            (&legacy, 3, ZeroDialect::V1Legacy),
            (&[0x5555_5555, 0x5555_5555], 2, ZeroDialect::V1),
            (&[0x7777_7777, 0x7777_7777], 4, ZeroDialect::V1),
            (&[0x8888_8888, 0x8888_8888], 4, ZeroDialect::V2),
        ];
        for (words, bits, dialect) in cases {
            let d = read(words, bits, true, Gptq, "");
            assert_eq!((d.dialect, d.evidence), (dialect, Evidence::Data));
            assert_eq!(d.zeros, Zeros::Midpoint);
            assert_eq!(d.warnings.is_empty(), dialect == ZeroDialect::V1, "only v1 is what `gptq` promises");
        }
        assert!(read(&[0x8888_8888], 4, true, GptqV2, "").warnings.is_empty());
        assert_eq!(read(&[0x7777_7777], 4, true, GptqV2, "").warnings.len(), 1);
        assert!(read(&[0, 0, 0, 0, 0xffff_ffff], 5, true, GptqP, "").warnings.is_empty());
    }

    #[test]
    fn symmetric_that_is_not_uses_the_true_zeros_and_says_so() {
        let d = read(&[0x7777_7770], 4, true, Gptq, "");
        assert_eq!(zeros(&d), [1, 8, 8, 8, 8, 8, 8, 8]);
        assert!(d.warnings[0].contains("not the midpoint"));
    }

    /// Semantics reference 3.2 and formats reference 2.5: the same words under both readings.
    #[test]
    fn borrowed_words() {
        let d = read(&[0x6207_df3f], 4, false, Gptq, "");
        assert_eq!(zeros(&d), [16, 4, 16, 14, 8, 1, 3, 7]);
        let d = read(&[0x6207_df3f], 4, false, Gptq, "gptqmodel:7.7.0");
        assert_eq!(zeros(&d), [0, 5, 0, 15, 8, 1, 3, 7]);
        assert_eq!((d.dialect, d.evidence), (ZeroDialect::V1Borrowed, Evidence::Writer));
        let d = read(&[0x7777_76f7], 4, false, Gptq, "gptqmodel:1.2");
        assert_eq!(zeros(&d), [8, 0, 8, 8, 8, 8, 8, 8]);
        assert_eq!(zeros(&read(&[0x7777_76f7], 4, false, Gptq, "auto_gptq:0.7")), [8, 16, 7, 8, 8, 8, 8, 8]);
    }

    /// GPTQModel subtracts whole words of `pack_dtype`, so a borrow stops where that word stops.
    #[test]
    fn borrows_in_words_of_other_widths() {
        let zeros_at = |words: [u32; 2], width| {
            let stored = Stored { words: &words, n: 16, bits: 4, packing: Packing::Continuous, width };
            zeros(&decode(
                &stored,
                &Clues { sym: false, format: Gptq, writer: Some(&Writer::parse("gptqmodel:7.7.0")), sample: None, forced: None },
            ))
        };
        // Zeros 0, 1, 2 … 15; less one in 0x11 of each byte, 0x1111 of each half, and so on.
        let z: Vec<u16> = (0..16).map(|i| [0, 1, 2, 3, 0, 5, 6, 7, 8, 0, 10, 11, 12, 13, 14, 15][i]).collect();
        let raw = z.iter().rev().fold(0u64, |w, &z| w << 4 | u64::from(z));
        let ones = 0x1111_1111_1111_1111u64;
        let split = |w: u64| [w as u32, (w >> 32) as u32];
        assert_eq!(zeros_at(split(raw.wrapping_sub(ones)), 64), z);
        let pieces = |width: u32| {
            let mask = u64::MAX >> (64 - width);
            (0..64 / width).fold(0, |w, i| w | (((raw >> (i * width) & mask).wrapping_sub(ones & mask)) & mask) << (i * width))
        };
        for width in [8, 16, 32] {
            assert_eq!(zeros_at(split(pieces(width)), width), z, "{width}");
        }
    }

    #[test]
    fn overflow_is_told_from_a_single_wrap() {
        let overflow = read(&[0xffff_fff7], 4, false, Gptq, "");
        assert!(overflow.warnings[0].contains("overflow"));
        let wrap = read(&[0x7777_76f7], 4, false, Gptq, "");
        assert!(wrap.warnings[0].contains("all ones: read as 2^bits"));
        assert!(read(&[0x7777_7767], 4, false, Gptq, "").warnings.is_empty());
    }

    #[test]
    fn three_bit_asymmetric() {
        let z: Vec<u8> = (0..32).map(|i| i % 8).collect();
        let mut v2 = [0; 3];
        Packing::Continuous.pack_run(3, &z, |j, w| v2[j] = w);
        assert_eq!(zeros(&read(&v2, 3, false, GptqV2, "")), (0..32).map(|i| i % 8).collect::<Vec<u16>>());
        let less: Vec<u8> = z.iter().map(|z| z.wrapping_sub(1) & 7).collect();
        let mut v1 = [0; 3];
        Packing::Continuous.pack_run(3, &less, |j, w| v1[j] = w);
        assert_eq!(zeros(&read(&v1, 3, false, Gptq, "gptqmodel:7.0.0")), (0..32).map(|i| i % 8).collect::<Vec<u16>>());
        assert_eq!(zeros(&read(&v1, 3, false, Gptq, ""))[0], 8, "unmasked when the writer is unknown");
        let legacy: Vec<u32> = v2.iter().zip(LEGACY).map(|(w, c)| w.wrapping_sub(c)).collect();
        let d = read(&legacy, 3, false, Gptq, "gptqmodel:6.0.3");
        assert_eq!(zeros(&d), (0..32).map(|i| i % 8).collect::<Vec<u16>>());
        assert_eq!(d.dialect, ZeroDialect::V1Legacy);
        assert_eq!(read(&v1, 3, false, Gptq, "gptqmodel").warnings.len(), 1);
    }

    #[test]
    fn asymmetric_that_is_symmetric_after_all_is_the_midpoint() {
        assert_eq!(read(&[0x7777_7777], 4, false, Gptq, "").zeros, Zeros::Midpoint);
        assert_eq!(read(&[0x8080_8080], 8, false, GptqV2, "").zeros, Zeros::Midpoint);
        let odd = read(&[0x8888_8888], 4, false, Gptq, "");
        assert_eq!(zeros(&odd), [9; 8]);
        assert_eq!(odd.warnings.len(), 1);
    }

    #[test]
    fn fields_beyond_the_last_column_are_not_looked_at() {
        let stored = Stored { words: &[0xffff_7777], n: 4, bits: 4, packing: Packing::Continuous, width: 32 };
        let clues = |sym| Clues { sym, format: Gptq, writer: None, sample: None, forced: None };
        let d = decode(&stored, &clues(true));
        assert!(d.warnings.is_empty() && d.zeros == Zeros::Midpoint);
        let stored = Stored { words: &[0xffff_f777], n: 4, bits: 4, packing: Packing::Continuous, width: 32 };
        assert!(decode(&stored, &clues(false)).warnings[0].contains("all ones"));
    }
}
