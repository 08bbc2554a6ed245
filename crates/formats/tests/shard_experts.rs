//! Shards of experts against whole experts: what the ranks give, added, is what the layer gives.

mod common;

use billfish_formats::GroupSize;
use billfish_formats::marlin::{Activations, ScaleOrder, permute_scales, scale_order, unpermute_scales};
use billfish_formats::shard::{Cuts, ExpertMap, ExpertTensors, GptqTensors, Rank};
use billfish_tensor::ScaleValues;
use common::shards::{inputs, module, output, ranks};
use half::f16;

const HIDDEN: usize = 128;
const WIDTH: usize = 256;

fn expert(bits: u32, group: GroupSize, act_order: bool, seed: u64) -> ExpertTensors {
    let part = |k, n, seed| GptqTensors { bias: None, ..module(bits, k, n, group, act_order, seed) };
    let gate = part(HIDDEN, WIDTH, seed);
    let up = GptqTensors { g_idx: gate.g_idx.clone(), ..part(HIDDEN, WIDTH, seed + 1) };
    ExpertTensors { gate, up, down: part(WIDTH, HIDDEN, seed + 2) }
}

fn gated(gate: &[f64], up: &[f64]) -> Vec<f32> {
    gate.iter().zip(up).map(|(g, u)| (g / (1.0 + (-g).exp()) * u) as f32).collect()
}

/// What an expert makes of two rows.
fn whole(e: &ExpertTensors, x: &[f32]) -> Vec<f64> {
    output(&e.down, &gated(&output(&e.gate, x), &output(&e.up, x)))
}

fn assert_close(found: &[f64], expected: &[f64], what: &str) {
    let size = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let off = found.iter().zip(expected).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
    // only the order of additions in f64 differs
    assert!(size > 0.0 && off <= 1e-12 * size, "{what}: off by {off:e} of {size:e}");
}

fn halves(w13: &[f64], width: usize) -> (Vec<f64>, Vec<f64>) {
    let rows = |from: usize| w13.chunks_exact(2 * width).flat_map(|row| row[from..from + width].to_vec()).collect();
    (rows(0), rows(width))
}

#[test]
fn partial_results_of_ranks_sum_to_the_whole() {
    let x = inputs(HIDDEN);
    for bits in [2, 3, 4, 8] {
        for group in [GroupSize::Rows(32), GroupSize::Rows(64), GroupSize::Channel] {
            for act_order in [false, true] {
                let e = expert(bits, group, act_order, 3);
                for (count, cuts) in [(1, Cuts::Aligned), (2, Cuts::Aligned), (4, Cuts::Aligned), (4, Cuts::InsideWords)] {
                    let what = format!("{bits} bit, group {group}, act-order {act_order}, {count} ranks, {cuts:?}");
                    let mut sum = vec![0.0; 2 * HIDDEN];
                    for rank in ranks(count) {
                        let part = e.tensor_parallel(rank, cuts).unwrap_or_else(|e| panic!("{what}: {e}"));
                        let width = WIDTH / count;
                        assert_eq!((part.w13.in_features, part.w13.out_features), (HIDDEN, 2 * width), "{what}");
                        assert_eq!((part.w2.in_features, part.w2.out_features), (width, HIDDEN), "{what}");
                        assert_eq!(part.w13.g_idx, e.gate.g_idx, "{what}: g_idx of w13 is whole");
                        let full = e.load_full_w2() || group == GroupSize::Channel;
                        let groups = if full { e.down.groups() } else { e.down.groups() / count };
                        assert_eq!(part.w2.groups(), groups, "{what}");
                        let (gate, up) = halves(&output(&part.w13, &x), width);
                        let y = output(&part.w2, &gated(&gate, &up));
                        sum.iter_mut().zip(y).for_each(|(s, y)| *s += y);
                    }
                    assert_close(&sum, &whole(&e, &x), &what);
                }
            }
        }
    }
}

#[test]
fn all_scales_of_down_under_act_order_only() {
    let full = |group, act_order| expert(4, group, act_order, 1).load_full_w2();
    assert!(full(GroupSize::Rows(32), true));
    assert!(!full(GroupSize::Rows(32), false) && !full(GroupSize::Channel, true));
}

/// Widths that do not fill words: gate ends inside one, and up begins there.
#[test]
fn gate_and_up_meet_inside_a_word() {
    for bits in [2, 3, 4] {
        let part = |k, n, group, seed| GptqTensors { bias: None, ..module(bits, k, n, group, false, seed) };
        let rows = GroupSize::Rows(32);
        let e = ExpertTensors { gate: part(64, 33, rows, 1), up: part(64, 33, rows, 2), down: part(33, 64, GroupSize::Channel, 3) };
        let w13 = e.tensor_parallel(Rank::new(0, 1).unwrap(), Cuts::InsideWords).unwrap().w13;
        let x = inputs(64);
        assert_eq!(halves(&output(&w13, &x), 33), (output(&e.gate, &x), output(&e.up, &x)), "{bits} bit");
    }
}

#[test]
fn blocks_of_experts_cover_all_of_them() {
    for (experts, count) in [(8, 1), (8, 2), (10, 4), (3, 4), (128, 8)] {
        let maps: Vec<ExpertMap> = ranks(count).into_iter().map(|rank| ExpertMap::new(experts, rank)).collect();
        let all: Vec<usize> = maps.iter().flat_map(ExpertMap::block).collect();
        assert!(all.into_iter().eq(0..experts), "{experts} over {count}");
        for map in &maps {
            assert!(map.block().len().abs_diff(experts / count) <= 1);
            for (e, place) in map.places().into_iter().enumerate() {
                assert_eq!(place, map.block().contains(&e).then(|| (e - map.block().start) as u32));
                assert_eq!(map.local(e), place.map(|p| p as usize));
            }
        }
    }
    assert_eq!(ExpertMap::new(10, Rank::new(1, 4).unwrap()).block(), 3..6);
    assert_eq!(ExpertMap::new(10, Rank::new(3, 4).unwrap()).local(1), None);

    // a token's experts, wherever they are
    let experts: Vec<ExpertTensors> = (0..6).map(|i| expert(4, GroupSize::Rows(64), i % 2 == 1, 10 * i)).collect();
    let x = inputs(HIDDEN);
    let chosen = [(4, 0.5), (0, 0.25), (5, 0.125)];
    let weighted = |list: &[(usize, f64)]| {
        let mut sum = vec![0.0; 2 * HIDDEN];
        for (e, w) in list {
            sum.iter_mut().zip(whole(&experts[*e], &x)).for_each(|(s, y)| *s += w * y);
        }
        sum
    };
    let mut sum = vec![0.0; 2 * HIDDEN];
    for rank in ranks(4) {
        let map = ExpertMap::new(6, rank);
        let here: Vec<(usize, f64)> = chosen.into_iter().filter(|(e, _)| map.local(*e).is_some()).collect();
        sum.iter_mut().zip(weighted(&here)).for_each(|(s, y)| *s += y);
    }
    assert_close(&sum, &weighted(&chosen), "blocks");
}

#[test]
fn experts_that_do_not_fit_are_refused() {
    let rank = Rank::new(0, 2).unwrap();
    let message = |e: &ExpertTensors| e.tensor_parallel(rank, Cuts::Aligned).unwrap_err().to_string();
    let e = expert(4, GroupSize::Rows(32), true, 1);
    let other_order = ExpertTensors { up: module(4, HIDDEN, WIDTH, GroupSize::Rows(32), true, 9), ..e.clone() };
    assert!(message(&other_order).contains("g_idx of gate and up"), "{}", message(&other_order));
    let other_width = ExpertTensors { down: module(4, WIDTH / 2, HIDDEN, GroupSize::Rows(32), true, 9), ..e.clone() };
    assert!(message(&other_width).contains("down: expected [256, 128], found [128, 128]"), "{}", message(&other_width));
    let wide = GptqTensors { g_idx: e.gate.g_idx.clone(), bias: None, ..module(8, HIDDEN, WIDTH, GroupSize::Rows(32), true, 9) };
    let other_bits = ExpertTensors { up: wide, ..e };
    assert!(message(&other_bits).contains("4 bit") && message(&other_bits).contains("8 bit"), "{}", message(&other_bits));
}

/// A rank whose part of the width is one group. The scales of w13 are put into a kernel's order by the rows of w13, the hidden
/// size; by the width, as other programs do, they come out in the order for one group a column.
#[test]
fn scales_of_w13_are_ordered_by_the_hidden_size() {
    let group = GroupSize::Rows(64);
    let e = expert(4, group, false, 5);
    let part = e.tensor_parallel(Rank::new(1, 4).unwrap(), Cuts::Aligned).unwrap();
    let width = part.w2.in_features;
    assert_eq!(width, 64);
    let w13 = &part.w13;
    let ScaleValues::F16(scales) = &w13.scales else { panic!("f16 scales") };
    let order = scale_order(w13.in_features, group, Activations::Bits16);
    let by_width = scale_order(width, group, Activations::Bits16);
    assert_eq!((order, by_width), (ScaleOrder::Grouped, ScaleOrder::Single));
    // what a kernel that reads grouped scales sees
    let seen = |put: ScaleOrder| {
        let stored: Vec<f16> = permute_scales(scales, w13.out_features, put).unwrap();
        let scales = ScaleValues::F16(unpermute_scales(&stored, w13.out_features, ScaleOrder::Grouped).unwrap());
        output(&GptqTensors { scales, ..w13.clone() }, &inputs(HIDDEN))
    };
    let right = output(w13, &inputs(HIDDEN));
    assert_eq!(seen(order), right);
    assert_ne!(seen(by_width), right);
}
