//! Slices of the experts of a layer: some columns of each (tensor parallelism), or some of them whole (expert parallelism).

use super::{Cuts, GptqTensors, Rank, ShardError, check_fused_order};
use crate::GroupSize;
use billfish_tensor::{Packing, ScaleValues};
use std::ops::Range;

/// The three modules of one expert: gate (`w1`), up (`w3`) and down (`w2`).
#[derive(Clone, Debug)]
pub struct ExpertTensors {
    /// `[hidden, width]`.
    pub gate: GptqTensors,
    /// `[hidden, width]`.
    pub up: GptqTensors,
    /// `[width, hidden]`.
    pub down: GptqTensors,
}

/// One rank's part of an expert, as kernels for experts want it.
#[derive(Clone, Debug)]
pub struct ExpertShard {
    /// The rank's columns of gate, then as many of up: `[hidden, 2 * width / ranks]`.
    pub w13: GptqTensors,
    /// The rank's rows of down: `[width / ranks, hidden]`. The results of all ranks are to be added.
    pub w2: GptqTensors,
}

impl ExpertTensors {
    /// Whether every rank gets all scales and zero points of down: with act-order its rows belong to any groups.
    pub fn load_full_w2(&self) -> bool {
        self.down.act_order && self.down.group_size != GroupSize::Channel
    }

    /// The part of `rank` when the width is split. `g_idx` of gate and up is whole, that of down is the rank's with the ids
    /// of the whole.
    ///
    /// # Errors
    /// As [`GptqTensors::column_parallel`] and [`GptqTensors::row_parallel`]; [`ShardError::FusedOrder`] when gate and up put
    /// a row into different groups, [`ShardError::Tensors`] when they, or gate and down, do not fit together.
    pub fn tensor_parallel(&self, rank: Rank, cuts: Cuts) -> Result<ExpertShard, ShardError> {
        let Self { gate, up, down } = self;
        check_fused_order(&[("gate", gate), ("up", up)])?;
        let (width, hidden) = (gate.out_features, gate.in_features);
        if (down.in_features, down.out_features) != (width, hidden) {
            let found = format!("[{}, {}]", down.in_features, down.out_features);
            return Err(ShardError::Tensors { part: "down", expected: format!("[{width}, {hidden}]"), found });
        }
        let w13 = beside(&gate.column_parallel(rank, cuts)?, &up.column_parallel(rank, cuts)?)?;
        Ok(ExpertShard { w13, w2: down.row_parallel(rank, cuts)? })
    }
}

/// The columns of `a`, then those of `b`, whose rows are the same.
fn beside(a: &GptqTensors, b: &GptqTensors) -> Result<GptqTensors, ShardError> {
    let kind = |t: &GptqTensors| {
        let bias = if t.bias.is_some() { "a bias" } else { "no bias" };
        format!("{} bit, group {}, {} groups of {} rows, {bias}", t.bits, t.group_size, t.groups(), t.in_features)
    };
    let wrong = |expected: String, found: String| ShardError::Tensors { part: "up", expected, found };
    if kind(a) != kind(b) || a.out_features != b.out_features {
        let all = |t: &GptqTensors| format!("{}, {} columns", kind(t), t.out_features);
        return Err(wrong(format!("{}, as gate has", all(a)), all(b)));
    }
    let n = a.out_features;
    let types = || wrong("scales and bias of gate's type".into(), "another".into());
    let bias = match (&a.bias, &b.bias) {
        (Some(a), Some(b)) => Some(join(a, b, n).ok_or_else(types)?),
        _ => None,
    };
    let rows = a.qweight.chunks_exact(n).zip(b.qweight.chunks_exact(n));
    let zeros = a.qzeros.chunks_exact(a.zero_words()).zip(b.qzeros.chunks_exact(b.zero_words()));
    Ok(GptqTensors {
        out_features: 2 * n,
        qweight: rows.flat_map(|(a, b)| [a, b].concat()).collect(),
        qzeros: zeros.flat_map(|(left, right)| join_streams(left, right, n * a.bits as usize)).collect(),
        scales: join(&a.scales, &b.scales, n).ok_or_else(types)?,
        bias,
        g_idx: a.g_idx.clone(),
        ..*a
    })
}

/// Rows of `n` values, those of `a` and `b` by turns; `None` if their types differ.
fn join(a: &ScaleValues, b: &ScaleValues, n: usize) -> Option<ScaleValues> {
    fn rows<T: Copy>(a: &[T], b: &[T], n: usize) -> Vec<T> {
        a.chunks_exact(n).zip(b.chunks_exact(n)).flat_map(|(a, b)| [a, b].concat()).collect()
    }
    Some(match (a, b) {
        (ScaleValues::F16(a), ScaleValues::F16(b)) => ScaleValues::F16(rows(a, b, n)),
        (ScaleValues::BF16(a), ScaleValues::BF16(b)) => ScaleValues::BF16(rows(a, b, n)),
        (ScaleValues::F32(a), ScaleValues::F32(b)) => ScaleValues::F32(rows(a, b, n)),
        _ => return None,
    })
}

/// Two streams of `bits` bits each as one; what stands behind the end of the first is 0.
fn join_streams(a: &[u32], b: &[u32], bits: usize) -> Vec<u32> {
    let mut out = a.to_vec();
    out.resize(Packing::Continuous.words(1, 2 * bits), 0);
    let (first, shift) = (bits / 32, bits % 32);
    for (i, &word) in b.iter().enumerate() {
        let moved = u64::from(word) << shift;
        out[first + i] |= moved as u32;
        if let Some(next) = out.get_mut(first + i + 1) {
            *next |= (moved >> 32) as u32;
        }
    }
    out
}

/// Which experts of a layer a rank has when whole experts are distributed: contiguous blocks, of which the first ranks have
/// one more where the ranks do not divide them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertMap {
    experts: usize,
    block: Range<usize>,
}

impl ExpertMap {
    /// The block of `rank` of `experts` experts.
    pub fn new(experts: usize, rank: Rank) -> Self {
        let Rank { rank, ranks } = rank;
        let (each, more) = (experts / ranks, experts % ranks);
        let start = rank * each + rank.min(more);
        Self { experts, block: start..start + each + usize::from(rank < more) }
    }

    /// The experts of the layer that this rank has.
    pub fn block(&self) -> Range<usize> {
        self.block.clone()
    }

    /// The place on this rank of expert `e` of the layer, `None` if another rank has it.
    pub fn local(&self, e: usize) -> Option<usize> {
        self.block.contains(&e).then(|| e - self.block.start)
    }

    /// The place of every expert of the layer.
    pub fn places(&self) -> Vec<Option<u32>> {
        (0..self.experts).map(|e| self.local(e).map(|place| place as u32)).collect()
    }
}
