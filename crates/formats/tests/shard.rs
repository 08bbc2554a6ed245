//! Shards against the whole: the results of all ranks, concatenated or added, are those of the module, exactly.

mod common;

use billfish_formats::GroupSize;
use billfish_formats::shard::{Cuts, GptqTensors, Rank, ShardError, check_fused_order};
use billfish_tensor::ScaleValues;
use common::shards::{columns, inputs, module, output, pack_columns, ranks};
use half::{bf16, f16};
use proptest::prelude::*;

fn sum_of_rows(t: &GptqTensors, count: usize, cuts: Cuts) -> Result<Vec<f64>, ShardError> {
    let (k, part) = (t.in_features, t.in_features / count);
    let x = inputs(k);
    let mut sum = vec![0.0; 2 * t.out_features];
    for (r, rank) in ranks(count).into_iter().enumerate() {
        let shard = t.row_parallel(rank, cuts)?;
        assert_eq!((shard.in_features, shard.out_features, shard.bias.is_some()), (part, t.out_features, r == 0));
        let y = output(&shard, &columns(&x, k, r * part..(r + 1) * part));
        sum.iter_mut().zip(y).for_each(|(s, y)| *s += y);
    }
    Ok(sum)
}

fn joined_columns(t: &GptqTensors, count: usize, cuts: Cuts) -> Result<Vec<f64>, ShardError> {
    let (n, part) = (t.out_features, t.out_features / count);
    let mut joined = vec![0.0; 2 * n];
    for (r, rank) in ranks(count).into_iter().enumerate() {
        let shard = t.column_parallel(rank, cuts)?;
        assert_eq!((shard.in_features, shard.out_features, &shard.g_idx), (t.in_features, part, &t.g_idx));
        for (row, y) in output(&shard, &inputs(t.in_features)).chunks_exact(part).enumerate() {
            joined[row * n + r * part..][..part].copy_from_slice(y);
        }
    }
    Ok(joined)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn aligned_shards_make_the_whole(
        bits in prop::sample::select(vec![2u32, 3, 4, 8]),
        count in 1..5usize,
        (groups_each, wide) in (1..3usize, 1..3usize),
        group in prop::sample::select(vec![GroupSize::Rows(32), GroupSize::Rows(64), GroupSize::Channel]),
        act_order: bool,
        seed: u64,
    ) {
        let t = module(bits, count * groups_each * 64, count * wide * 32, group, act_order, seed);
        let whole = output(&t, &inputs(t.in_features));
        prop_assert_eq!(&sum_of_rows(&t, count, Cuts::Aligned).unwrap(), &whole);
        prop_assert_eq!(&joined_columns(&t, count, Cuts::Aligned).unwrap(), &whole);
        prop_assert_eq!(&sum_of_rows(&t, count, Cuts::InsideWords).unwrap(), &whole);
        prop_assert_eq!(&joined_columns(&t, count, Cuts::InsideWords).unwrap(), &whole);
    }

    #[test]
    fn cuts_inside_words_make_the_whole(
        bits in prop::sample::select(vec![2u32, 3, 4, 8]),
        count in 1..5usize,
        (rows, wide) in (1..40usize, 1..40usize),
        channel: bool,
        act_order: bool,
        seed: u64,
    ) {
        // with groups in order they must be whole on each rank; act-order lets them be anything
        let size = if act_order { 5 } else { rows };
        let group = if channel { GroupSize::Channel } else { GroupSize::Rows(size) };
        let t = module(bits, count * rows, count * wide, group, act_order, seed);
        let whole = output(&t, &inputs(t.in_features));
        prop_assert_eq!(&sum_of_rows(&t, count, Cuts::InsideWords).unwrap(), &whole);
        prop_assert_eq!(&joined_columns(&t, count, Cuts::InsideWords).unwrap(), &whole);
    }

    #[test]
    fn aligned_cuts_are_refused_or_the_same(
        bits in prop::sample::select(vec![2u32, 3, 4, 8]),
        count in 1..4usize,
        (k, n) in (1..200usize, 1..100usize),
        act_order: bool,
    ) {
        let t = module(bits, k, n, GroupSize::Rows(16), act_order, 1);
        let whole = output(&t, &inputs(k));
        for result in [sum_of_rows(&t, count, Cuts::Aligned), joined_columns(&t, count, Cuts::Aligned)].into_iter().flatten() {
            prop_assert_eq!(&result, &whole);
        }
    }
}

/// The worked example: 4 bit, two groups of four rows in act-order.
fn example() -> GptqTensors {
    let q: Vec<u8> = (0..64).map(|i| ((3 * (i / 8) + 5 * (i % 8)) % 16) as u8).collect();
    GptqTensors {
        bits: 4,
        group_size: GroupSize::Rows(4),
        act_order: true,
        in_features: 8,
        out_features: 8,
        qweight: pack_columns(&q, 8, 4),
        qzeros: vec![0x0123_4567, 0xfdcb_a987],
        scales: ScaleValues::F16([[0.5; 8], [0.25; 8]].concat().into_iter().map(f16::from_f32).collect()),
        g_idx: Some(vec![0, 1, 0, 1, 1, 0, 0, 1]),
        bias: None,
        first_group: 0,
    }
}

#[test]
fn worked_example_of_two_ranks() {
    let t = example();
    assert_eq!(t.qweight, [0x52fc_9630, 0xa741_eb85, 0xfc96_30da, 0x41eb_852f, 0x9630_da74, 0xeb85_2fc9, 0x30da_741e, 0x852f_c963]);
    let [first, second] = [0, 1].map(|r| t.row_parallel(Rank::new(r, 2).unwrap(), Cuts::InsideWords).unwrap());
    assert_eq!(first.g_idx, Some(vec![0, 1, 0, 1]));
    assert_eq!(second.g_idx, Some(vec![1, 0, 0, 1]));
    assert_eq!([first.groups(), second.groups()], [2, 2]);
    assert_eq!(output(&first, &[1.0, 2.0, 3.0, 4.0]), [-8.5, 9.5, -12.5, -2.5, 7.5, 9.5, -4.5, 4.0]);
    assert_eq!(output(&second, &[5.0, 6.0, 7.0, 8.0]), [-1.0, -17.0, 35.0, -1.0, -17.0, 35.0, -1.0, -0.25]);
    let x: Vec<f32> = (1..=8).map(|v| v as f32).collect();
    assert_eq!(output(&t, &x), [-9.5, -7.5, 22.5, -3.5, -9.5, 44.5, -5.5, 3.75]);
    // aligned, four rows are no whole word
    assert_eq!(
        t.row_parallel(Rank::new(0, 2).unwrap(), Cuts::Aligned).unwrap_err(),
        ShardError::InputWords { rows: 4, bits: 4, multiple: 8 }
    );
}

/// The usual mistake: rank 1 takes "its" row of the scales and groups its rows by position.
#[test]
fn slicing_scales_by_position_is_wrong_with_act_order() {
    let right = example().row_parallel(Rank::new(1, 2).unwrap(), Cuts::InsideWords).unwrap();
    let ScaleValues::F16(scales) = &right.scales else { panic!("another type") };
    let wrong = GptqTensors {
        act_order: false,
        g_idx: None,
        qzeros: right.qzeros[1..].to_vec(),
        scales: ScaleValues::F16(scales[8..].to_vec()),
        ..right.clone()
    };
    let y = output(&wrong, &[5.0, 6.0, 7.0, 8.0]);
    assert_ne!(y, output(&right, &[5.0, 6.0, 7.0, 8.0]));
    assert_eq!(y, [-1.0, -19.0, 7.0, -27.0, -45.0, -19.0, -53.0, -57.5]);
    // a module with groups that look in order to whoever asks is not split in silence
    let denied = GptqTensors { act_order: false, ..example() };
    let error = denied.row_parallel(Rank::new(1, 2).unwrap(), Cuts::InsideWords).unwrap_err();
    assert_eq!(error, ShardError::Order { row: 1, expected: 0, found: 1 });
}

#[test]
fn parts_are_the_published_slices() {
    let t = module(4, 128, 64, GroupSize::Rows(32), false, 3);
    let row = t.row_parallel(Rank::new(1, 2).unwrap(), Cuts::Aligned).unwrap();
    assert_eq!(row.qweight, t.qweight[64 / 8 * 64..]);
    assert_eq!(row.qzeros, t.qzeros[2 * 8..]);
    assert_eq!((row.groups(), row.first_group), (2, 2));
    assert_eq!(row.g_idx.as_deref(), Some(&t.g_idx.as_ref().unwrap()[64..]));
    assert!(row.bias.is_none());
    // a part can be split again
    let quarter = row.row_parallel(Rank::new(1, 2).unwrap(), Cuts::Aligned).unwrap();
    assert_eq!((quarter.first_group, &quarter.qzeros[..]), (3, &t.qzeros[3 * 8..]));
    let column = t.column_parallel(Rank::new(1, 2).unwrap(), Cuts::Aligned).unwrap();
    assert_eq!(column.qzeros, columns(&t.qzeros, 8, 4..8));
    assert_eq!(column.qweight, columns(&t.qweight, 64, 32..64));
    let three = module(3, 96, 64, GroupSize::Channel, true, 3);
    let column = three.column_parallel(Rank::new(1, 2).unwrap(), Cuts::Aligned).unwrap();
    assert_eq!(column.qzeros, columns(&three.qzeros, 6, 3..6));
    let row = three.row_parallel(Rank::new(2, 3).unwrap(), Cuts::Aligned).unwrap();
    assert_eq!((row.qweight, row.qzeros), (three.qweight[6 * 64..].to_vec(), three.qzeros.clone()));
}

/// A file need not hold `g_idx` where groups are in order, and scales may have any of three types.
#[test]
fn modules_without_g_idx_and_with_other_scales() {
    for bits in [2, 3, 4, 8] {
        for group in [GroupSize::Rows(32), GroupSize::Channel] {
            let with = module(bits, 128, 64, group, false, 9);
            let single = |scales: &ScaleValues| (0..scales.len()).map(|i| scales.get(i)).collect::<Vec<f32>>();
            let halves = single(&with.scales).into_iter().map(bf16::from_f32).collect();
            for scales in [with.scales.clone(), ScaleValues::BF16(halves), ScaleValues::F32(single(&with.scales))] {
                let without = GptqTensors { g_idx: None, scales, ..with.clone() };
                let whole = output(&with, &inputs(128));
                assert_eq!(sum_of_rows(&without, 4, Cuts::Aligned).unwrap(), whole, "{bits} bit, {group}");
                assert_eq!(joined_columns(&without, 2, Cuts::Aligned).unwrap(), whole, "{bits} bit, {group}");
            }
        }
    }
}

/// 2, 3, 4 and 8 bit, groups of 32 and one group, in order and in act-order: what each rank is given, in rows.
#[test]
fn rows_of_each_tensor() {
    for bits in [2u32, 3, 4, 8] {
        for (group, act_order, groups) in
            [(GroupSize::Rows(32), false, 1), (GroupSize::Rows(32), true, 4), (GroupSize::Channel, false, 1), (GroupSize::Channel, true, 1)]
        {
            let t = module(bits, 128, 64, group, act_order, 9);
            for (r, rank) in ranks(4).into_iter().enumerate() {
                let part = t.row_parallel(rank, Cuts::Aligned).unwrap();
                let words = bits as usize * 64;
                assert_eq!(part.qweight, t.qweight[r * words..(r + 1) * words], "{bits} bit");
                // one group, or all of them in act-order, is whole on each rank
                let first = if groups == 1 && group == GroupSize::Rows(32) { r } else { 0 };
                assert_eq!((part.groups(), part.first_group), (groups, first as u32), "{bits} bit, {group}, {act_order}");
                let row = 64 * bits as usize / 32;
                assert_eq!(part.qzeros, t.qzeros[first * row..(first + groups) * row]);
                assert_eq!(part.g_idx.as_deref(), t.g_idx.as_ref().map(|g| &g[r * 32..(r + 1) * 32]), "ids of the whole");
            }
        }
    }
}

#[test]
fn errors_say_what_was_expected_and_found() {
    let rank = |r, of| Rank::new(r, of).unwrap();
    let text = |e: Result<GptqTensors, ShardError>| e.unwrap_err().to_string();
    assert!(Rank::new(2, 2).unwrap_err().to_string().contains("below 2, found 2"));
    assert!(Rank::new(0, 0).is_err());
    let t = module(4, 128, 64, GroupSize::Rows(128), false, 3);
    let e = text(t.row_parallel(rank(0, 2), Cuts::Aligned));
    assert!(e.starts_with(
        "The input size is not aligned with the quantized weight shape. This can be caused by too large tensor parallel size."
    ));
    assert!(e.contains("group_size 128, found 64"), "{e}");
    assert!(text(t.row_parallel(rank(0, 2), Cuts::InsideWords)).contains("group_size 128, found 64"));
    assert!(text(t.row_parallel(rank(0, 3), Cuts::Aligned)).contains("rows: expected a multiple of the 3 ranks, found 128"));
    for (bits, multiple) in [(2, 16), (3, 32), (4, 8), (8, 4)] {
        let t = module(bits, 64, 6 * 2, GroupSize::Channel, false, 3);
        let e = text(t.column_parallel(rank(0, 2), Cuts::Aligned));
        let words = "The output size is not aligned with the quantized weight shape. This can be caused by too large tensor parallel size.";
        assert!(e.starts_with(words), "{e}");
        assert!(e.contains(&format!("a multiple of {multiple} at {bits} bit, found 6")), "{e}");
        let t = module(bits, 6 * 2, 64, GroupSize::Channel, false, 3);
        assert!(text(t.row_parallel(rank(0, 2), Cuts::Aligned)).contains(&format!("a multiple of {multiple} ({bits} bit")));
    }
    let short = module(4, 40, 64, GroupSize::Rows(32), false, 3);
    assert!(text(short.column_parallel(rank(0, 2), Cuts::Aligned)).contains("group_size 32, found 40"));

    let part = |change: &dyn Fn(&mut GptqTensors)| {
        let mut t = module(4, 64, 64, GroupSize::Rows(32), true, 3);
        change(&mut t);
        t.check().unwrap_err().to_string()
    };
    assert!(part(&|t| t.bits = 5).contains("bits: expected 2, 3, 4 or 8, found 5"));
    assert!(part(&|t| t.out_features = 0).contains("shape"));
    assert!(part(&|t| t.group_size = GroupSize::Rows(0)).contains("group_size"));
    assert!(part(&|t| t.qweight.truncate(9)).contains("qweight: expected 512 elements, found 9"));
    assert!(part(&|t| t.qzeros.truncate(9)).contains("qzeros: expected 16 elements, found 9"));
    assert!(part(&|t| t.scales = ScaleValues::F32(vec![1.0; 65])).contains("scales"));
    assert!(part(&|t| t.g_idx = None).contains("g_idx: expected a group for each row"));
    assert!(part(&|t| t.g_idx = Some(vec![0])).contains("g_idx: expected 64 elements, found 1"));
    assert!(part(&|t| t.g_idx = Some(vec![2; 64])).contains("2 for row 0"));
    assert!(part(&|t| t.bias = Some(ScaleValues::F32(vec![]))).contains("bias: expected 64 elements, found 0"));
}

#[test]
fn ranks_beyond_the_heads_share_them() {
    let of = |r, ranks, heads| Rank::new(r, ranks).unwrap().of_kv_heads(heads);
    for r in 0..8 {
        assert_eq!(of(r, 8, 2).unwrap(), Rank::new(r / 4, 2).unwrap());
        assert_eq!(of(r, 8, 16).unwrap(), Rank::new(r, 8).unwrap());
    }
    assert!(of(0, 8, 3).unwrap_err().to_string().contains("heads of keys and values: expected a multiple of the 8 ranks, found 3"));
    assert!(of(0, 8, 0).is_err());
}

#[test]
fn fused_modules_must_agree_on_groups() {
    let q = module(4, 64, 32, GroupSize::Rows(32), true, 3);
    let mut k = module(8, 64, 64, GroupSize::Rows(32), true, 4);
    let error = check_fused_order(&[("q_proj", &q), ("k_proj", &k)]).unwrap_err().to_string();
    assert!(error.contains("q_proj and k_proj"), "{error}");
    k.g_idx.clone_from(&q.g_idx);
    assert_eq!(check_fused_order(&[("q_proj", &q), ("k_proj", &k)]), Ok(()));
    let other = module(4, 32, 32, GroupSize::Rows(32), false, 3);
    assert!(check_fused_order(&[("q", &q), ("o", &other)]).unwrap_err().to_string().contains("expected 64 rows, as q has, found 32 in o"));
}
