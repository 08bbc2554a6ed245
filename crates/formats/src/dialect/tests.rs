//! Words as they stand in files, from the references, read without any code to go by.

use super::stored::LEGACY;
use super::*;
use CheckpointFormat::{Gptq, GptqP, GptqV2};
use billfish_tensor::Packing;

/// Nobody asked, nothing sampled.
fn decoded(stored: &Stored<'_>, sym: bool, format: CheckpointFormat, writer: &str) -> Decoded {
    let writer = (!writer.is_empty()).then(|| Writer::parse(writer));
    let groups = stored.words.len() / stored.packing.words(stored.bits, stored.n);
    let sample = || Ok(Sample::new(stored.bits, groups, stored.n));
    let ballot = Ballot::default();
    let folder = || &ballot;
    let clues = Clues { sym, format, writer: writer.as_ref(), sample: &sample, folder: &folder, forced: None };
    decode(stored, &clues).unwrap()
}

fn read(words: &[u32], bits: u32, sym: bool, format: CheckpointFormat, writer: &str) -> Decoded {
    let packing = if format == GptqP { Packing::Planar } else { Packing::Continuous };
    let n = words.len() * 32 / bits as usize;
    decoded(&Stored { words, n, bits, packing, width: 32 }, sym, format, writer)
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
        zeros(&decoded(&stored, false, Gptq, "gptqmodel:7.7.0"))
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

/// Formats reference 2.5: z = 0 in the second of eight fields, packed without a mask.
#[test]
fn overflow_is_told_from_a_single_wrap() {
    let overflow = read(&[0xffff_fff7], 4, false, Gptq, "");
    assert_eq!((overflow.dialect, overflow.lost, overflow.wrapped), (ZeroDialect::V1Overflow, 6, 7));
    assert!(overflow.refusal.unwrap().contains("overwrote 6 of all 8"));
    // GPTQModel subtracts from words: zeros of 0 and then of 1
    let borrowed = read(&[0xffff_fff7], 4, false, Gptq, "gptqmodel:7.0.0");
    assert_eq!((borrowed.lost, &borrowed.refusal), (0, &None));
    assert_eq!(zeros(&borrowed), [8, 0, 1, 1, 1, 1, 1, 1]);
    let wrap = read(&[0x7777_76f7], 4, false, Gptq, "");
    assert!(wrap.warnings[0].contains("all ones: read as 2^bits") && wrap.lost == 0 && wrap.wrapped == 1);
    // a field of all ones at the top of its word overwrites nothing
    assert_eq!(read(&[0xf777_7777], 4, false, Gptq, "").lost, 0);
    // nor does a word overflow whose fields of all ones have others above them, so neither do the rest
    assert_eq!(read(&[0xffff_fff7, 0x7777_7f77], 4, false, Gptq, "").lost, 0);
    assert!(read(&[0x7777_7767], 4, false, Gptq, "").warnings.is_empty());
}

/// AutoGPTQ's 3-bit packing: a field that crosses words floods the first of them only.
#[test]
fn three_bit_overflow_stops_at_the_end_of_its_word() {
    // every zero 4 but field 8, which is 0: bits 24 to 31 of word 0 are ones, of which field 10 has two
    let v1 = [0xdb6d_b6db_u32, 0xb6db_6db6, 0x6db6_db6d];
    let flooded = read(&[v1[0] | 0xff00_0000, v1[1], v1[2]], 3, false, Gptq, "");
    assert_eq!((flooded.dialect, flooded.lost), (ZeroDialect::V1Overflow, 2), "fields 9 and 10");
    // field 10 is 0: its own three bits, and no other's
    let own = read(&[v1[0] | 0xc000_0000, v1[1] | 1, v1[2]], 3, false, Gptq, "");
    assert_eq!((own.lost, own.wrapped), (0, 1));
    // field 0 is 0: the rest of word 0
    assert_eq!(read(&[u32::MAX, v1[1], v1[2]], 3, false, Gptq, "").lost, 10);
}

/// Formats reference 2.5: the right constants word by word are still wrong in fields 10 and 21.
#[test]
fn three_bit_words_less_right_constants_are_no_dialect() {
    let d = read(&[0xdb6d_b6db, 0xb6db_6db7, 0x6db6_db6e], 3, true, Gptq, "");
    let odd: Vec<usize> = zeros(&d).iter().enumerate().filter(|(_, z)| **z != 4).map(|(i, _)| i).collect();
    assert_eq!(odd, [10, 21]);
    assert!(d.warnings.iter().any(|w| w.contains("not the midpoint")));
}

/// Formats reference 2.5: the constants of words of 8 and 16 bits.
#[test]
fn narrow_words_of_every_width() {
    for (bits, v1, v2) in [(2, 0x5555_5555, 0xaaaa_aaaa), (4, 0x7777_7777, 0x8888_8888), (8, 0x7f7f_7f7f, 0x8080_8080_u32)] {
        for width in [8, 16, 32, 64] {
            let n = 64 / bits as usize;
            let midpoint = vec![1u8 << (bits - 1); n];
            let stored = Stored { words: &[v1, v1], n, bits, packing: Packing::Continuous, width };
            assert_eq!(stored.borrowed(), midpoint, "{bits} bit in {width}");
            assert_eq!(Stored { words: &[v2, v2], ..stored }.raw(), midpoint, "{bits} bit in {width}");
        }
    }
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
    let d = decoded(&stored, true, Gptq, "");
    assert!(d.warnings.is_empty() && d.zeros == Zeros::Midpoint);
    let stored = Stored { words: &[0xffff_f777], n: 4, bits: 4, packing: Packing::Continuous, width: 32 };
    assert!(decoded(&stored, false, Gptq, "").warnings[0].contains("all ones"));
}
