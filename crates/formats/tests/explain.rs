//! One weight explained: its value is the oracle's, its bits are those of the file.

mod common;

use billfish_formats::{BiasRule, Checkpoint, Explanation, LinearWeight, StoredBits, Weight, explain};
use billfish_tensor::oracle;
use common::{Folder, fixture, holds};

fn weight(checkpoint: &Checkpoint, place: &str) -> Weight {
    match explain(checkpoint, place).unwrap() {
        Explanation::Quantized(w) => *w,
        Explanation::Dense(e) => panic!("{e:?}"),
    }
}

/// What the bits come to, from the words of the file alone.
fn put_together(folder: &Folder, bits: &[StoredBits]) -> u32 {
    let part = |b: &StoredBits| {
        let tensor = &folder.tensors[&b.tensor];
        assert_eq!(tensor.to_words()[b.index[0] * tensor.shape[1] + b.index[1]], b.word);
        (b.word >> b.offset & ((1 << b.width) - 1)) << b.shift
    };
    bits.iter().map(part).sum()
}

#[test]
fn every_width_packing_and_order() {
    let mut random = 1u64;
    let mut below = |n: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) as usize % n
    };
    let names = [
        "llama-w2-asym-g64",
        "llama-w3-asym-g32",
        "llama-w3-asym-g64-v2",
        "llama-w4-asym-g64",
        "llama-w4-sym-g32-act",
        "llama-w4-sym-channel-act",
        "llama-w5-sym-g32-planar",
        "llama-w7-sym-g64-planar",
        "llama-w8-asym-g128",
        "llama-dynamic",
    ];
    for name in names {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let folder = Folder::of(name);
        let mut crossing = 0;
        for module in checkpoint.quantized_modules() {
            let report = checkpoint.describe(&module).unwrap();
            let (k, n) = (report.in_features, report.out_features);
            let LinearWeight::Quantized(m) = checkpoint.linear(&module, k, n, BiasRule::Optional).unwrap() else { panic!() };
            let values = oracle::dequantize(&m);
            for _ in 0..12 {
                let (row, col) = (below(k), below(n));
                let w = weight(&checkpoint, &format!("{module}[{row}, {col}]"));
                assert_eq!(w.value.to_bits(), values[row * n + col].to_bits(), "{name} {}", w.place);
                assert_eq!(put_together(&folder, &w.code_bits), u32::from(w.code));
                assert_eq!(put_together(&folder, &w.zero_bits), w.stored_zero.unwrap());
                assert_eq!(w.code_bits.iter().map(|b| b.width).sum::<u32>(), report.bits);
                crossing += usize::from(w.code_bits.len() > 1);
                let scales = &folder.tensors[&format!("{module}.scales")].bytes;
                let at = 2 * (w.group * n + col);
                assert_eq!(u32::from(u16::from_le_bytes([scales[at], scales[at + 1]])), w.scale_bits);
                let index = folder.tensors.get(&format!("{module}.g_idx")).map(|t| i64::from(t.to_words()[row] as i32));
                assert_eq!(w.g_idx, index);
                assert_eq!(w.group, m.group_of(row));
            }
        }
        let several = name.contains("-w3") || name.contains("planar");
        assert_eq!(crossing > 0, several, "{name}");
    }
}

#[test]
fn a_weight_in_full() {
    let config = r#"{"bits": 4, "group_size": -1, "sym": false, "meta": {"quantizer": ["gptqmodel:7.7.0"]}, "dynamic": {"m": {}}}"#;
    let mut folder = Folder::module(8, 8, config, 1, &[0x6207_df3f]);
    folder.edit("m.qweight", |t| t.bytes[4 * 2 + 1] = 0xb0);
    let dir = folder.write();
    let w = weight(&Checkpoint::open(&dir.0).unwrap(), "m[3, 2]");
    let [code] = &w.code_bits[..] else { panic!("{:?}", w.code_bits) };
    assert_eq!((code.tensor.as_str(), code.index, code.word, code.offset, code.width), ("m.qweight", [0, 2], 0xb000, 12, 4));
    // zero 0 of column 2, written less one from a word that lent to its neighbours
    assert_eq!((w.code, w.zero, w.stored_zero, w.zero_bits[0].offset), (11, 0, Some(15), 8));
    holds(&w.module.zeros.to_string(), &["borrows undone"]);
    holds(&w.module.reason, &["gptqmodel 7.7.0"]);
    assert_eq!((w.scale, w.scale_bits, w.group, w.g_idx, w.value), (1.0, 0x3f80_0000, 0, None, 11.0));
    assert_eq!(w.module.rule.applied.as_deref(), Some("m"));
}

#[test]
fn dense_elements() {
    let checkpoint = Checkpoint::open(&fixture("llama-dynamic")).unwrap();
    let folder = Folder::of("llama-dynamic");
    let o = "model.layers.0.self_attn.o_proj";
    let element = |place: &str| match explain(&checkpoint, place).unwrap() {
        Explanation::Dense(e) => e,
        Explanation::Quantized(w) => panic!("{w:?}"),
    };
    let e = element(&format!("{o}[5, 7]"));
    assert_eq!((e.tensor.as_str(), e.index.as_slice()), (format!("{o}.weight").as_str(), &[7, 5][..]));
    assert_eq!(e, element(&format!("{o}[5,7]")));
    let stored = element(&format!("{o}.weight[7, 5]"));
    assert_eq!((stored.bits, stored.value), (e.bits, e.value));
    let size = e.dtype.size();
    let bytes = &folder.tensors[&e.tensor].bytes[(7 * 128 + 5) * size..][..size];
    assert_eq!(bytes, &e.bits.to_le_bytes()[..size]);
    let tensor = checkpoint.dense(&e.tensor, &[128, 128]).unwrap().to_f32();
    assert_eq!(e.value, Some(f64::from(tensor[7 * 128 + 5])));
    assert_eq!(element("model.norm[3]").value, element("model.norm.weight[3]").value);
    assert_eq!(element("model.layers.0.mlp.down_proj.g_idx[33]").value, Some(1.0));
}

#[test]
fn places_that_do_not_exist() {
    let checkpoint = Checkpoint::open(&fixture("llama-dynamic")).unwrap();
    let error = |place: &str| explain(&checkpoint, place).unwrap_err().to_string();
    holds(&error("model.layers.0.mlp.down_proj"), &["`model.layers.0.mlp.down_proj`", "module[row, col]", "no index"]);
    holds(&error("model.layers.0.mlp.down_proj[256, 0]"), &["below [256, 128]", "found [256, 0]", "input first"]);
    holds(&error("model.layers.0.mlp.down_proj[0]"), &["below [256, 128]", "found [0]"]);
    holds(&error("model.layers.0.self_attn.o_proj[0, 128]"), &["below [128, 128]", "found [0, 128]"]);
    holds(&error("model.layers.9.mlp.down_proj[0, 0]"), &["a module or a tensor of llama-dynamic", "`model.layers.0.mlp.down_proj."]);
    holds(&error("nothing[0]"), &["none of that name", "inspect"]);
}
