//! What the numbers of one module show about its zero points, whatever anybody says about them.

use super::readings::Readings;
use super::{Stored, ZeroDialect, ZeroLabel};
use crate::CheckpointFormat;
use crate::statistic::{Position, Sample};
use ZeroDialect::{V1, V1Borrowed, V1Legacy, V1Modulo, V1Overflow, V2};

/// How far from a reading, in parts of the way to another, codes may lie and still show it. Whole modules are centred.
const NEAR: f64 = 0.25;
/// The same for groups whose zero point is at an end of the range: their weights have one sign, so that the mean code lies
/// some way from the zero point.
const ONE_SIDED: f64 = 0.4;
/// Widest codes that show a difference of one step.
pub(super) const TELLING: u32 = 4;

/// A reading that the numbers show.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) dialect: ZeroDialect,
    /// The numbers in words.
    pub(crate) reason: String,
    /// Whether they show all of it: that stored values of all ones are zeros of 0 may be plain, and not whether they borrowed.
    pub(crate) whole: bool,
}

/// What one module shows by itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    /// V1, V2 or the legacy constants.
    pub(crate) class: Option<Verdict>,
    /// How v1 wraps, where some field is all ones.
    pub(crate) wrap: Option<Verdict>,
}

impl Shown {
    /// Whether v1 or v2.
    pub(crate) fn label(&self) -> Option<ZeroLabel> {
        self.class.as_ref().map(|v| v.dialect.label())
    }
}

/// The dialect in which every zero point is the midpoint, if there is one: symmetric zero points speak for themselves.
pub(super) fn constant(stored: &Stored<'_>, raw: &[u8], format: CheckpointFormat) -> Option<Verdict> {
    let midpoint = stored.midpoint();
    let all = |value: u8| raw.iter().all(|&f| f == value);
    let legacy = || format == CheckpointFormat::Gptq && stored.bits == 3 && stored.legacy().iter().all(|&f| f == midpoint);
    let (dialect, value, undone) = if all(midpoint - 1) {
        (V1, midpoint - 1, "")
    } else if all(midpoint) {
        (V2, midpoint, "")
    } else if legacy() {
        (V1Legacy, midpoint, " after the legacy constants are added back")
    } else {
        return None;
    };
    Some(Verdict { dialect, reason: format!("every stored zero point is {value}{undone}"), whole: true })
}

/// Which class of dialects the codes show: the one that they are near, if every other is far.
pub(super) fn class(readings: &Readings, bits: u32, sample: &Sample) -> Option<Verdict> {
    if bits > TELLING {
        return None;
    }
    let candidates = if readings.may_be_legacy() { &[V1, V2, V1Legacy][..] } else { &[V1, V2][..] };
    // where v1 means one thing
    let plain = |i: usize| readings.is_plain(i);
    let position = |from, to| sample.halfway(|i| readings.zero(from, i), |i| readings.zero(to, i), plain);
    let near = |p: Position| p.at.abs() <= NEAR && p.clear(NEAR);
    let shows = |&from: &ZeroDialect| candidates.iter().all(|&to| to == from || position(from, to).is_some_and(near));
    let dialect = candidates.iter().copied().find(shows)?;
    let median = |dialect| sample.median(|i| readings.zero(dialect, i), plain).unwrap_or_default();
    let name = if dialect == V1Legacy { "v1 with the legacy constants".to_string() } else { dialect.label().to_string() };
    let other = if dialect == V1 { V2 } else { V1 };
    let otherwise = if dialect == V1Legacy { "without them" } else { "otherwise" };
    let (near, far) = (median(dialect), median(other));
    let reason = format!("mean of code less zero point {near:.2} as {name}, {far:.2} {otherwise} (median of the groups)");
    Some(Verdict { dialect, reason, whole: true })
}

/// Which way of wrapping the codes show, given that the zero points are v1 and some are all ones.
pub(super) fn wrap(readings: &Readings, bits: u32, sample: &Sample) -> Option<Verdict> {
    let between = |from, to, on: &dyn Fn(usize) -> bool| sample.position(|i| readings.zero(from, i), |i| readings.zero(to, i), on);
    let wrapped = |i: usize| readings.is_wrapped(i);
    let ends = between(V1Modulo, V1, &wrapped)?;
    let mean = |on: &dyn Fn(usize) -> bool| sample.mean(on);
    let full = 1 << bits;
    let codes = format!("mean code {:.2} where the stored zero point is {}", mean(&wrapped)?, readings.largest);
    if ends.reversed().clear(ONE_SIDED) {
        return Some(Verdict { dialect: V1, reason: format!("{codes}, so that it means {full}"), whole: true });
    }
    if !ends.clear(ONE_SIDED) {
        return None;
    }
    let zero = format!("{codes}, so that it means 0");
    if let (Some(lost), Some(zeros), Some(plain)) = (mean(&|i| readings.is_lost(i)), mean(&wrapped), mean(&|i| readings.is_plain(i)))
        && (lost - plain).abs() <= 2.0 * (lost - zeros).abs()
    {
        let reason = format!("{zero}; mean code {lost:.2} in the fields above it, as where nothing wrapped ({plain:.2})");
        return Some(Verdict { dialect: V1Overflow, reason, whole: true });
    }
    if bits == 3 {
        return Some(Verdict { dialect: V1Modulo, reason: zero, whole: true });
    }
    let (dialect, lent, whole) = lent(readings, bits, sample);
    Some(Verdict { dialect, reason: format!("{zero}; {lent}"), whole })
}

/// Given that stored values of all ones are zeros of 0: whether their neighbours lent them a one, in words, and whether that
/// shows. Where they did, a neighbour is one more, or 0 itself where it seems to be the largest.
fn lent(readings: &Readings, bits: u32, sample: &Sample) -> (ZeroDialect, String, bool) {
    let (from, to) = (|i| readings.zero(V1Borrowed, i), |i| readings.zero(V1Modulo, i));
    let far = |i: usize| from(i).abs_diff(to(i)) >= 1 << (bits - 1);
    let ends = sample.position(from, to, far);
    let steps = sample.halfway(from, to, |i| !far(i));
    if ends.is_none() && steps.is_none() {
        return (V1Borrowed, "no neighbour could have lent it a one".into(), true);
    }
    let step_is_near = |p: &Position| p.at.abs() <= ONE_SIDED;
    let shows = |turn: fn(Position) -> Position| {
        let ends = ends.map(turn).is_some_and(|p| p.clear(ONE_SIDED));
        ends || steps.map(turn).filter(step_is_near).is_some_and(|p| p.clear(ONE_SIDED))
    };
    match (shows(|p| p), shows(Position::reversed)) {
        (true, false) => (V1Borrowed, "its neighbours lent it a one".into(), true),
        (false, true) => (V1Modulo, "its neighbours did not lend it a one".into(), true),
        _ => (V1Borrowed, "whether its neighbours lent it a one does not show".into(), false),
    }
}
