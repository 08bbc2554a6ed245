//! Act-order: which rows stand where, and what that means for ranks and groups.

use super::MarlinError;
use super::error::check_len;
use crate::GroupSize;

/// Rows in group order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SortedGroups {
    /// The group of each row of the repacked weight: `g_idx[perm[i]]`.
    pub g_idx: Vec<u32>,
    /// The row of the weight that stands at place `i`; activations are gathered by it, too.
    pub perm: Vec<u32>,
}

/// Sorts rows by their group. The sort is stable, so that the result does not depend on who sorts.
///
/// # Errors
/// [`MarlinError::Unsupported`] for more than `u32::MAX` rows.
pub fn sort_g_idx(g_idx: &[u32]) -> Result<SortedGroups, MarlinError> {
    let rows = u32::try_from(g_idx.len())
        .map_err(|_| MarlinError::unsupported("g_idx", "fewer than 2^32 rows", g_idx.len(), "check the sizes of the module"))?;
    let mut perm: Vec<u32> = (0..rows).collect();
    perm.sort_by_key(|&k| g_idx[k as usize]);
    Ok(SortedGroups { g_idx: perm.iter().map(|&k| g_idx[k as usize]).collect(), perm })
}

/// Whether a rank holds all rows of every group that it holds: not when rows in act-order are split over ranks.
pub fn is_k_full(act_order: bool, row_parallel: bool) -> bool {
    !(act_order && row_parallel)
}

/// Whether every rank needs all scales: with act-order any row may belong to any group, and a single group of a matrix
/// whose rows are split belongs to all ranks.
pub fn repeat_scales_on_all_ranks(act_order: bool, group_size: GroupSize, row_parallel: bool) -> bool {
    act_order || (group_size == GroupSize::Channel && row_parallel)
}

/// How a kernel finds the scale of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelGroups {
    /// One scale a column, applied to the result.
    Channel,
    /// Row `k` of the repacked weight belongs to group `k / size`.
    Contiguous {
        /// Rows of a group.
        size: usize,
    },
    /// Every row looks its group up in the sorted `g_idx`.
    Lookup,
}

/// What a kernel derives from the number of rows of the scales.
///
/// # Errors
/// [`MarlinError::Unsupported`] when the groups do not divide the rows, or act-order meets a single group on a rank that
/// holds all rows.
pub fn kernel_groups(k: usize, groups: usize, act_order: bool, is_k_full: bool) -> Result<KernelGroups, MarlinError> {
    if act_order && !is_k_full {
        return Ok(KernelGroups::Lookup);
    }
    if act_order && groups <= 1 {
        let remedy = "load the module without act-order: one group has no order";
        return Err(MarlinError::unsupported("groups", "more than 1 with act-order", groups, remedy));
    }
    if groups == 0 || !k.is_multiple_of(groups) {
        let found = format!("{groups} groups for {k} rows");
        return Err(MarlinError::unsupported("groups", "groups of equal size", found, "check group_size against the scales"));
    }
    Ok(if groups > 1 { KernelGroups::Contiguous { size: k / groups } } else { KernelGroups::Channel })
}

/// Checks that `perm` holds each of `0..rows` once.
pub(super) fn check_permutation(perm: &[u32], rows: usize) -> Result<(), MarlinError> {
    check_len("perm", rows, perm.len())?;
    let mut seen = vec![false; rows];
    for (i, &p) in perm.iter().enumerate() {
        let fresh = seen.get_mut(p as usize).is_some_and(|seen| !std::mem::replace(seen, true));
        if !fresh {
            return Err(MarlinError::value("perm", i, format!("each row below {rows} once"), p, "take it from sort_g_idx"));
        }
    }
    Ok(())
}
