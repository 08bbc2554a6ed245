//! The dialects of zero points as their writers make them, from recipes of bytes that share no code with the reader, on
//! modules that were rounded from weights, with zero points at both ends of the range and with no word about the writer.

mod common;

use billfish_formats::{BiasRule, Checkpoint, Evidence, ModuleReport, Target, ZeroDialect, ZeroLabel, convert};
use billfish_tensor::oracle;
use common::recipes::{Module, Stored, random};
use common::{Folder, Temp, holds};
use proptest::prelude::*;
use serde_json::json;

const BITS: [u32; 4] = [2, 3, 4, 8];

/// A folder of modules `m0`, `m1` and so on.
fn folder(bits: u32, format: &str, writer: &str, modules: &[(&Module, Stored)]) -> Folder {
    let mut folder = Folder::empty();
    folder.json("config.json", "{}");
    let meta = if writer.is_empty() { json!({}) } else { json!({ "quantizer": [writer] }) };
    let config = json!({"quant_method": "gptq", "bits": bits, "group_size": 64, "sym": false, "desc_act": false, "checkpoint_format": format, "meta": meta});
    folder.json("quantize_config.json", &config.to_string());
    for (i, (module, stored)) in modules.iter().enumerate() {
        module.put(&mut folder, &format!("m{i}"), *stored);
    }
    folder
}

fn open(folder: &Folder) -> (Temp, Checkpoint) {
    let dir = folder.write();
    let checkpoint = Checkpoint::open(&dir.0).unwrap();
    (dir, checkpoint)
}

fn report(folder: &Folder) -> (ModuleReport, String) {
    let (_dir, c) = open(folder);
    let report = c.describe("m0").unwrap();
    (report, c.warnings().iter().map(|w| format!("{w}\n")).collect())
}

fn zeros(c: &Checkpoint, name: &str) -> Vec<u16> {
    let r = c.describe(name).unwrap();
    let billfish_formats::LinearWeight::Quantized(m) = c.linear(name, r.in_features, r.out_features, BiasRule::Absent).unwrap() else {
        panic!("{name} is dense")
    };
    (0..r.groups * r.out_features).map(|i| m.zero(i / r.out_features, i % r.out_features)).collect()
}

/// Reads `m0` and compares every zero point; returns the report and the warnings.
fn check(folder: &Folder, module: &Module, what: &str) -> (ModuleReport, String) {
    let (_dir, c) = open(folder);
    assert_eq!(zeros(&c, "m0"), module.zeros, "{what}");
    report(folder)
}

fn has(module: &Module, zero: u16) -> bool {
    module.zeros.contains(&zero)
}

#[test]
fn v1_with_the_largest_zero() {
    for bits in BITS {
        let full = 1 << bits;
        let m = Module::rounded(bits, 1, 1..=full, 7);
        assert!(has(&m, 1) && has(&m, full));
        for writer in ["", "auto_gptq:0.7.1"] {
            let (r, w) = check(&folder(bits, "gptq", writer, &[(&m, Stored::V1)]), &m, &format!("{bits} bit {writer}"));
            assert_eq!((r.zeros, r.evidence, w.as_str()), (ZeroDialect::V1, Evidence::Data, ""), "{bits} bit: {}", r.reason);
            assert_eq!(r.wrapped_zeros, m.zeros.iter().filter(|z| **z == full).count());
        }
    }
}

#[test]
fn v2_with_zeros_at_both_ends_whatever_it_is_called() {
    for bits in BITS {
        let m = Module::rounded(bits, 0, 0..=(1 << bits) - 1, 8);
        assert!(has(&m, 0) && has(&m, (1 << bits) - 1));
        let (r, w) = check(&folder(bits, "gptq_v2", "", &[(&m, Stored::V2)]), &m, &format!("{bits} bit"));
        assert_eq!((r.zeros, w.as_str()), (ZeroDialect::V2, ""), "{bits} bit: {}", r.reason);
        if bits <= 4 {
            for writer in ["", "gptqmodel:5.0.0", "gptqmodel:7.7.0"] {
                let (r, w) = check(&folder(bits, "gptq", writer, &[(&m, Stored::V2)]), &m, &format!("{bits} bit {writer} as v1"));
                assert_eq!((r.zeros, r.evidence), (ZeroDialect::V2, Evidence::Data));
                holds(&w, &["labelled v1", "read as v2", "m0"]);
            }
        }
    }
}

/// Words less ones, which borrow across fields: GPTQModel at 2, 4 and 8 bit.
#[test]
fn v1_borrowed_by_whom_it_may() {
    for bits in [2, 4, 8] {
        let m = Module::rounded(bits, 0, 0..=(1 << bits) - 1, 9);
        let (r, w) = check(&folder(bits, "gptq", "gptqmodel:7.7.0", &[(&m, Stored::Borrowed)]), &m, &format!("{bits} bit"));
        assert_eq!((r.zeros, w.as_str()), (ZeroDialect::V1Borrowed, ""), "{}", r.reason);
        let (r, w) = check(&folder(bits, "gptq", "", &[(&m, Stored::Borrowed)]), &m, &format!("{bits} bit, unknown"));
        assert_eq!((r.zeros, r.evidence, w.as_str()), (ZeroDialect::V1Borrowed, Evidence::Data, ""), "{}", r.reason);
    }
    // at 8 bit one step does not show, so that zeros of 0 far from each other tell only that they are 0
    let mut m = Module::rounded(8, 1, 1..=254, 9);
    m.zero_at(|i| i % 16 == 1);
    let (r, w) = check(&folder(8, "gptq", "", &[(&m, Stored::Borrowed)]), &m, "8 bit, apart");
    assert_eq!((r.zeros, r.evidence), (ZeroDialect::V1Borrowed, Evidence::Data), "{}", r.reason);
    holds(&w, &["lent them a one does not show"]);
}

/// Field by field with a mask: GPTQModel from 7 at 3 bit.
#[test]
fn v1_modulo_by_whom_it_may() {
    for bits in [2, 3, 4] {
        let m = Module::rounded(bits, 0, 0..=(1 << bits) - 1, 10);
        let (r, w) = check(&folder(bits, "gptq", "", &[(&m, Stored::Modulo)]), &m, &format!("{bits} bit"));
        assert_eq!((r.zeros, r.evidence, w.as_str()), (ZeroDialect::V1Modulo, Evidence::Data, ""), "{}", r.reason);
    }
    let m = Module::rounded(3, 0, 0..=7, 10);
    let (r, w) = check(&folder(3, "gptq", "gptqmodel:7.7.0", &[(&m, Stored::Modulo)]), &m, "by its writer");
    assert_eq!((r.zeros, w.as_str()), (ZeroDialect::V1Modulo, ""));
    // where a GPTQModel did not write what it writes, the codes are followed
    let m = Module::rounded(3, 1, 1..=8, 10);
    let (_, w) = check(&folder(3, "gptq", "gptqmodel:7.7.0", &[(&m, Stored::V1)]), &m, "another's file");
    holds(&w, &["not stored as the program that wrote the file stores them"]);
}

/// Words less constants in the wrong order: GPTQModel up to 6 at 3 bit.
#[test]
fn v1_legacy_by_whom_it_may() {
    let m = Module::rounded(3, 0, 0..=7, 11);
    for (format, writer) in [("gptq", "gptqmodel:6.0.3"), ("gptq", ""), ("gptq", "gptqmodel:7.7.0"), ("gptq_v2", "")] {
        let (r, w) = check(&folder(3, format, writer, &[(&m, Stored::Legacy)]), &m, &format!("{format} {writer}"));
        assert_eq!((r.zeros, r.evidence), (ZeroDialect::V1Legacy, Evidence::Data), "{}", r.reason);
        holds(&w, &["legacy 3-bit constants"]);
        assert_eq!(w.contains("labelled v2"), format == "gptq_v2");
    }
    // and a file of the same writer without them is not misread
    let m = Module::rounded(3, 1, 1..=8, 11);
    let (r, w) = check(&folder(3, "gptq", "gptqmodel:6.0.3", &[(&m, Stored::V1)]), &m, "none");
    assert_eq!(r.zeros, ZeroDialect::V1);
    holds(&w, &["not stored as the program that wrote"]);
}

#[test]
fn planar() {
    for bits in 2..=8 {
        let m = Module::rounded(bits, 0, 0..=(1 << bits) - 1, 12);
        let (r, w) = check(&folder(bits, "gptq_p", "", &[(&m, Stored::Planar)]), &m, &format!("{bits} bit"));
        assert_eq!((r.zeros, w.as_str()), (ZeroDialect::V2, ""));
    }
}

/// `z - 1` of 32 bits without a mask: AutoGPTQ.
#[test]
fn overflow_is_refused_with_a_count_or_read_where_nothing_is_lost() {
    for bits in BITS {
        let m = Module::rounded(bits, 0, 0..=(1 << bits) - 1, 13);
        let lost = m.lost_to_overflow();
        assert!(lost > 0);
        let f = folder(bits, "gptq", "", &[(&m, Stored::Overflow)]);
        let (r, _) = report(&f);
        assert_eq!((r.zeros, r.evidence, r.lost_zeros), (ZeroDialect::V1Overflow, Evidence::Data, lost), "{bits} bit: {}", r.reason);
        assert!(r.refusal.as_ref().unwrap().contains(&format!("overwrote {lost} of all {}", m.zeros.len())));
        let (_dir, c) = open(&f);
        let error = c.linear("m0", r.in_features, r.out_features, BiasRule::Absent).unwrap_err().to_string();
        holds(&error, &["m0.qzeros", "cannot be recovered", "quantize the model again"]);
        // whoever wants it anyway is told
        let c = c.with_zeros(Some(ZeroLabel::V1)).unwrap();
        let read = zeros(&c, "m0");
        let wrong = read.iter().zip(&m.zeros).filter(|(a, b)| a != b).count();
        assert!(wrong > 0 && wrong <= lost, "{bits} bit: {wrong}");
        assert!(c.warnings().iter().any(|w| w.message.contains("are not the true ones")));
    }
    // zeros of 0 in the highest field of a word flood nothing
    let mut m = Module::rounded(4, 1, 1..=15, 13);
    m.zero_at(|i| i % 8 == 7 && i % 5 == 0);
    assert_eq!(m.lost_to_overflow(), 0);
    let (r, _) = check(&folder(4, "gptq", "", &[(&m, Stored::Overflow)]), &m, "top fields");
    assert_eq!((r.lost_zeros, r.refusal), (0, None));
}

/// Every dialect at every width under both labels, on more weights: read right, or said not to be certain.
#[test]
fn no_dialect_is_taken_for_another() {
    for (seed, bits) in (100..106).flat_map(|seed| BITS.map(|bits| (seed, bits))) {
        let top = (1 << bits) - 1;
        let all = [
            (Stored::V1, 1, top + 1),
            (Stored::V1, 1, top),
            (Stored::V2, 0, top),
            (Stored::Modulo, 0, top),
            (Stored::Borrowed, 0, top),
            (Stored::Legacy, 0, top),
            (Stored::Overflow, 0, top),
        ];
        for (stored, low, high) in all {
            if (bits == 3 && stored == Stored::Borrowed) || (bits != 3 && stored == Stored::Legacy) {
                continue;
            }
            let m = Module::rounded(bits, low, low..=high, seed);
            for label in ["gptq", "gptq_v2"] {
                // one step does not show at 8 bit, so that the label must be right there
                if bits == 8 && (label == "gptq_v2") != (stored == Stored::V2) {
                    continue;
                }
                let (_dir, c) = open(&folder(bits, label, "", &[(&m, stored)]));
                let r = c.describe("m0").unwrap();
                let what = format!("{bits} bit {low}..={high} seed {seed} as {label}: {} {}", r.zeros, r.reason);
                if stored == Stored::Overflow {
                    assert!(r.lost_zeros == m.lost_to_overflow() && r.refusal.is_some(), "{what}");
                    continue;
                }
                let unsure = c.warnings().iter().any(|w| w.message.contains("lent them a one does not show"));
                assert!(zeros(&c, "m0") == m.zeros || (stored == Stored::Modulo && unsure), "{what}");
            }
        }
    }
}

/// Codes that sit in the middle of a range say nothing, so the folder's other modules do.
#[test]
fn a_module_that_does_not_tell_follows_the_folder() {
    let modules: Vec<Module> = (0..5).map(|seed| Module::rounded(4, 1, 1..=15, 20 + seed)).collect();
    let mute = Module::undecided(4, 30);
    let all = |stored| -> Vec<(&Module, Stored)> { std::iter::once((&mute, stored)).chain(modules.iter().map(|m| (m, stored))).collect() };
    let f = folder(4, "gptq", "", &all(Stored::V2));
    let (r, w) = check(&f, &mute, "among v2");
    assert_eq!((r.zeros, r.evidence, r.mixed_zeros), (ZeroDialect::V2, Evidence::Folder, None), "{}", r.reason);
    holds(&r.reason, &["5 of the 5 modules"]);
    holds(&w, &["the folder's other modules are v2"]);
    let (r, w) = check(&folder(4, "gptq", "", &all(Stored::V1)), &mute, "among v1");
    assert_eq!((r.zeros, r.evidence, w.as_str()), (ZeroDialect::V1, Evidence::Folder, ""));
    // alone it is what the config says
    let (r, _) = check(&folder(4, "gptq", "", &[(&mute, Stored::V1)]), &mute, "alone");
    assert_eq!((r.zeros, r.evidence), (ZeroDialect::V1, Evidence::Config));
}

/// A wrap that no code decides is read as elsewhere in the folder.
#[test]
fn a_wrap_that_does_not_tell_follows_the_folder() {
    let modules: Vec<Module> = (0..3).map(|seed| Module::rounded(4, 0, 0..=15, 40 + seed)).collect();
    let mut mute = Module::rounded(4, 1, 1..=15, 50);
    mute.zero_at(|i| i == 5);
    mute.level(5, 8);
    let mut all = vec![(&mute, Stored::Borrowed)];
    all.extend(modules.iter().map(|m| (m, Stored::Borrowed)));
    let (r, _) = check(&folder(4, "gptq", "", &all), &mute, "among borrowed");
    assert_eq!((r.zeros, r.evidence), (ZeroDialect::V1Borrowed, Evidence::Folder), "{}", r.reason);
    let (r, w) = report(&folder(4, "gptq", "", &all[..1]));
    assert_eq!((r.zeros, r.evidence), (ZeroDialect::V1, Evidence::Config));
    holds(&w, &["all ones: read as 2^bits"]);
}

/// Each module is read by its own numbers, the odd one out is named, and the order of asking changes nothing.
#[test]
fn mixed_folders_are_named_and_read_right() {
    let modules: Vec<Module> = (0..20).map(|seed| Module::rounded(4, 1, 1..=15, 60 + seed)).collect();
    let stored = |i: usize| if i == 7 { Stored::V1 } else { Stored::V2 };
    let f = folder(4, "gptq", "", &modules.iter().enumerate().map(|(i, m)| (m, stored(i))).collect::<Vec<_>>());
    let ask = |order: &[usize]| {
        let (_dir, c) = open(&f);
        let mut found: Vec<_> = order.iter().map(|i| (*i, zeros(&c, &format!("m{i}")), c.describe(&format!("m{i}")).unwrap())).collect();
        found.sort_by_key(|(i, ..)| *i);
        for (i, zeros, r) in &found {
            assert!(*zeros == modules[*i].zeros, "m{i}");
            assert_eq!(r.mixed_zeros, (*i == 7).then_some(ZeroDialect::V2), "m{i}");
        }
        let warnings: Vec<String> = c.warnings().iter().map(ToString::to_string).collect();
        (format!("{:?}", found.iter().map(|(_, _, r)| r).collect::<Vec<_>>()), warnings)
    };
    let forwards: Vec<usize> = (0..20).collect();
    let (reports, warnings) = ask(&forwards);
    let odd: Vec<&String> = warnings.iter().filter(|w| w.contains("mixes zero points of two kinds")).collect();
    assert!(odd.len() == 1 && odd[0].contains("(m7)"), "{warnings:?}");
    holds(odd[0], &["show v1", "show v2"]);
    let backwards: Vec<usize> = (0..20).rev().collect();
    assert!(ask(&backwards) == (reports, warnings));
    // symmetric constants can be mixed as well
    let mut f = Folder::of("llama-w4-sym-g128");
    let odd = "model.layers.1.mlp.down_proj";
    f.edit(&format!("{odd}.qzeros"), |t| t.bytes.fill(0x88));
    let (_dir, c) = open(&f);
    assert_eq!(c.describe(odd).unwrap().mixed_zeros, Some(ZeroDialect::V1));
    assert_eq!(c.describe("model.layers.0.mlp.down_proj").unwrap().mixed_zeros, None);
}

/// The words of every quantized tensor.
fn bytes(dir: &Temp) -> Vec<(String, Vec<u8>)> {
    let source = billfish_formats::Source::open(&dir.0.join("model.safetensors")).unwrap();
    let header = billfish_formats::Header::read(&source).unwrap();
    let read = |(name, info): (&String, &billfish_formats::TensorInfo)| {
        let mut bytes = vec![0; info.bytes];
        source.read_at(info.offset, &mut bytes).unwrap();
        (name.clone(), bytes)
    };
    header.tensors.iter().map(read).collect()
}

fn converted(from: &Temp, to: Target) -> Temp {
    let out = Temp::new();
    convert(&Checkpoint::open(&from.0).unwrap(), &out.0, to, false, &mut |_, _| ()).unwrap_or_else(|e| panic!("{e}"));
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// What v1 and v2 or planar can both hold comes back byte for byte, and in between is what the recipe makes.
    #[test]
    fn conversions_there_and_back_change_no_byte(at in 0..BITS.len(), seed: u64) {
        let bits = BITS[at];
        let m = random(bits, 1..=(1 << bits) - 1, seed);
        let v1 = folder(bits, "gptq", "", &[(&m, Stored::V1)]).write();
        for (to, format, stored) in [(Target::GptqV2, "gptq_v2", Stored::V2), (Target::GptqP, "gptq_p", Stored::Planar)] {
            let there = converted(&v1, to);
            prop_assert!(bytes(&there) == bytes(&folder(bits, format, "", &[(&m, stored)]).write()), "{bits} bit {format}");
            prop_assert!(bytes(&converted(&there, Target::Gptq)) == bytes(&v1), "{bits} bit {format} and back");
        }
    }

    /// The same between v2 and planar with zeros from 0 on.
    #[test]
    fn v2_and_planar_hold_the_same(at in 0..BITS.len(), seed: u64) {
        let bits = BITS[at];
        let m = random(bits, 0..=(1 << bits) - 1, seed);
        let v2 = folder(bits, "gptq_v2", "", &[(&m, Stored::V2)]).write();
        prop_assert!(bytes(&converted(&converted(&v2, Target::GptqP), Target::GptqV2)) == bytes(&v2), "{bits} bit");
    }
}

/// The recipes themselves: the bytes of the references.
#[test]
fn recipes_make_the_published_words() {
    let words = |bits, stored, zeros: &[u16]| Module::of_zeros(bits, zeros).zero_words(stored);
    let z = [8, 0, 8, 8, 8, 8, 8, 8];
    assert_eq!(words(4, Stored::V2, &z), [0x8888_8808]);
    assert_eq!(words(4, Stored::Borrowed, &z), [0x7777_76f7]);
    assert_eq!(words(4, Stored::Overflow, &z), [0xffff_fff7]);
    assert_eq!(words(4, Stored::Modulo, &z), [0x7777_77f7]);
    assert_eq!(words(4, Stored::Borrowed, &[0, 5, 0, 15, 8, 1, 3, 7]), [0x6207_df3f]);
    assert_eq!(words(4, Stored::V1, &[8; 8]), [0x7777_7777]);
    assert_eq!(words(2, Stored::V1, &[2; 16]), [0x5555_5555]);
    assert_eq!(words(8, Stored::V1, &[128; 4]), [0x7f7f_7f7f]);
    assert_eq!(words(3, Stored::V1, &[4; 32]), [0xdb6d_b6db, 0xb6db_6db6, 0x6db6_db6d]);
    assert_eq!(words(3, Stored::V2, &[4; 32]), [0x2492_4924, 0x4924_9249, 0x9249_2492]);
    assert_eq!(words(3, Stored::Legacy, &[4; 32]), [0, 0xb6db_6db7, 0x4924_9249]);
    let count: Vec<u16> = (0..32).map(|i| i % 8).collect();
    assert_eq!(words(3, Stored::V2, &count), [0x88fa_c688, 0xc688_fac6, 0xfac6_88fa]);
    assert_eq!(words(3, Stored::Planar, &count), [0xe4e4_e4e4, 0xe4e4_e4e4, 0xf0f0_f0f0]);
    let low = [0x7654_3210, 0xfedc_ba98, 0x7654_3210, 0xfedc_ba98];
    let count = |bits: u32| (0..32).map(|i| i % (1 << bits)).collect::<Vec<u16>>();
    assert_eq!(words(5, Stored::Planar, &count(5)), [&low[..], &[0xffff_0000]].concat());
    assert_eq!(words(6, Stored::Planar, &count(6)), [&low[..], &[0, 0x5555_5555]].concat());
    assert_eq!(words(7, Stored::Planar, &count(7)), [&low[..], &[0, 0x5555_5555, 0]].concat());
    // and the weights of a module are those it was rounded from, but for half a step
    let m = Module::rounded(4, 0, 0..=15, 3);
    let (_dir, c) = open(&folder(4, "gptq_v2", "", &[(&m, Stored::V2)]));
    let billfish_formats::LinearWeight::Quantized(read) = c.linear("m0", m.k, m.n, BiasRule::Absent).unwrap() else { panic!() };
    let off = oracle::dequantize(&read).iter().zip(&m.weights).map(|(a, b)| (a - b).abs() / m.largest_scale()).fold(0.0, f64::max);
    assert!(off <= 1.0, "{off}");
}
