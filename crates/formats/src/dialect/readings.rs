//! The ways in which v1 zero points may be meant, as true values.

use super::{Stored, ZeroDialect};
use crate::Writer;

/// Every reading of one module's zero points.
pub(super) struct Readings {
    /// The fields as they stand.
    pub(super) raw: Vec<u8>,
    pub(super) largest: u8,
    pub(super) bits: u32,
    /// Less one on whole words, where that differs from field by field.
    borrowed: Option<Vec<u8>>,
    /// The legacy 3-bit constants added back.
    legacy: Option<Vec<u8>>,
    /// Fields whose zero point is gone if the writer let zeros of 0 overflow.
    pub(super) lost: Vec<usize>,
    is_lost: Vec<bool>,
}

impl Readings {
    pub(super) fn of(stored: &Stored<'_>, writer: Option<&Writer>) -> Self {
        let (raw, bits, largest) = (stored.raw(), stored.bits, stored.largest());
        let wraps = raw.contains(&largest);
        // GPTQModel subtracts from words, so that nothing overflows
        let overflows = wraps && !writer.is_some_and(Writer::is_gptqmodel);
        let lost = if overflows { stored.flooded(&raw) } else { vec![] };
        let mut is_lost = vec![false; if lost.is_empty() { 0 } else { raw.len() }];
        lost.iter().for_each(|&i| is_lost[i] = true);
        let borrowed = (wraps && bits != 3).then(|| stored.borrowed());
        // this program never wrote them so, whatever a module of few codes looks like
        let ours = writer.is_some_and(|w| w.name == "billfish");
        let legacy = (bits == 3 && !ours).then(|| stored.legacy());
        Self { raw, largest, bits, borrowed, legacy, lost, is_lost }
    }

    /// Whether some field is all ones, so that readings of v1 differ.
    pub(super) fn wraps(&self) -> bool {
        self.raw.contains(&self.largest)
    }

    pub(super) fn is_lost(&self, i: usize) -> bool {
        self.is_lost.get(i).is_some_and(|lost| *lost)
    }

    /// Whether field `i` is all ones and its zero point is not lost.
    pub(super) fn is_wrapped(&self, i: usize) -> bool {
        self.raw[i] == self.largest && !self.is_lost(i)
    }

    /// Whether field `i` means the same whichever way v1 was written.
    pub(super) fn is_plain(&self, i: usize) -> bool {
        self.raw[i] != self.largest && !self.is_lost(i) && self.borrowed.as_ref().is_none_or(|b| b[i] == self.raw[i] + 1)
    }

    /// Zero point `i` in a dialect.
    pub(super) fn zero(&self, dialect: ZeroDialect, i: usize) -> u16 {
        let raw = u16::from(self.raw[i]);
        let of = |fields: &Option<Vec<u8>>| fields.as_ref().map_or(raw + 1, |f| u16::from(f[i]));
        match dialect {
            ZeroDialect::V2 | ZeroDialect::Scaled | ZeroDialect::Absent => raw,
            ZeroDialect::V1 => raw + 1,
            ZeroDialect::V1Modulo => (raw + 1) & ((1 << self.bits) - 1),
            ZeroDialect::V1Overflow => (raw + 1) & if self.is_lost(i) { u16::MAX } else { (1 << self.bits) - 1 },
            ZeroDialect::V1Borrowed => of(&self.borrowed),
            ZeroDialect::V1Legacy => of(&self.legacy),
        }
    }

    /// Whether the legacy 3-bit constants may have been written.
    pub(super) fn may_be_legacy(&self) -> bool {
        self.legacy.is_some()
    }

    /// All zero points in a dialect.
    pub(super) fn zeros(&self, dialect: ZeroDialect) -> Vec<u16> {
        match dialect {
            // the usual ones, without a question for each field
            ZeroDialect::V1 => self.raw.iter().map(|&raw| u16::from(raw) + 1).collect(),
            ZeroDialect::V2 => self.raw.iter().map(|&raw| u16::from(raw)).collect(),
            _ => (0..self.raw.len()).map(|i| self.zero(dialect, i)).collect(),
        }
    }
}
