//! Zero points that wrapped around when they were stored less one.

use super::findings::{FIX, Findings};
use billfish_formats::{ModuleReport, ZeroDialect};
use billfish_tensor::QuantMatrix;

/// Zero points that no file holds any more.
pub(super) fn lost(report: &ModuleReport, found: &mut Findings) {
    let what = report.refusal.as_deref().unwrap_or("zero points that were overwritten");
    let consequence = "the module is not read, because every weight of those groups would be wrong";
    let remedy = "quantize the model again, or use another checkpoint of it; `--zeros v1` reads the lost ones as 2^bits";
    found.error(&report.module, format!("it holds {what}"), consequence, remedy);
}

pub(super) fn examine(report: &ModuleReport, m: &QuantMatrix, found: &mut Findings) {
    if report.midpoint {
        return;
    }
    let n = m.out_features();
    let count = |value: u16| (0..m.group_count() * n).filter(|i| m.zero(i / n, i % n) == value).count();
    let all = m.group_count() * n;
    let (wrapped, how) = match report.zeros {
        ZeroDialect::V1Borrowed => (count(0), "the subtraction of whole words borrowed from their neighbours, which is undone here"),
        ZeroDialect::V1Modulo => (count(0), "they wrapped to 7, which is undone here"),
        ZeroDialect::V1Overflow => (count(0), "they overflowed at the end of a word, where nothing was overwritten, which is undone here"),
        ZeroDialect::V1Legacy => (all, "they hold the legacy 3-bit constants, which are undone here"),
        _ => return,
    };
    if wrapped > 0 {
        let what = if wrapped == all { "all" } else { "zero points of 0" };
        let evidence = format!("{wrapped} of {all} zero points cannot be stored less one ({what}): {how} ({})", report.reason);
        let consequence = "programs that add one field by field read other zero points, and other weights in those groups";
        found.warning(&report.module, evidence, consequence, &format!("{FIX}: it stores them as they are (gptq_v2)"));
    }
}
