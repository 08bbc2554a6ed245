//! Synthetic folders, read back by the reader and run by the decoder that real ones go through.

mod common;

use billfish_formats::serially;
use billfish_formats::{BiasRule, Checkpoint, GroupSize, LinearWeight, ZeroDialect};
use billfish_kernels::Activations;
use billfish_quantize::{SynthReport, SynthSpec, synth, synthetic};
use billfish_tensor::{Groups, Packing, QuantMatrix, Zeros, oracle};
use common::{all_logits, fresh, load};
use std::path::Path;

const TOKENIZER: [(&str, &[u8]); 2] = [
    ("tokenizer.json", br#"{"added_tokens":[{"id":5,"content":"<end>"}]}"#),
    ("tokenizer_config.json", br#"{"bos_token":null,"eos_token":"<end>"}"#),
];

fn write(spec: &str, out: &Path, shards: usize, dense: bool, seed: u64) -> SynthReport {
    let spec: SynthSpec = spec.parse().unwrap();
    let mut last = (0, 0);
    let report = synth(&spec, out, shards, dense, seed, &TOKENIZER, &mut |done, total| {
        assert!(done >= last.0 && done <= total);
        last = (done, total);
    })
    .unwrap_or_else(|e| panic!("{spec}: {e}"));
    assert_eq!(last, (report.bytes, report.bytes), "{spec}");
    report
}

/// Opens and runs a folder; nothing about it may be worth a warning.
fn check(dir: &Path, vocab: usize) -> Checkpoint {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let model = load(dir, Activations::Exact);
    let ids: Vec<u32> = (0..24).map(|i| i * 7 % vocab as u32).collect();
    let logits = all_logits(&model, &ids);
    let rms = (logits.iter().map(|x| f64::from(x * x)).sum::<f64>() / logits.len() as f64).sqrt();
    assert!(logits.iter().all(|x| x.is_finite()) && (0.3..3.0).contains(&rms), "{}: logits of {rms}", dir.display());
    checkpoint
}

fn quantized(checkpoint: &Checkpoint, module: &str, k: usize, n: usize) -> QuantMatrix {
    match checkpoint.linear(module, k, n, BiasRule::Absent).unwrap() {
        LinearWeight::Quantized(m) => m,
        LinearWeight::Dense { .. } => panic!("{module} is dense"),
    }
}

const MODULES: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", 64, 64),
    ("self_attn.k_proj", 64, 32),
    ("self_attn.v_proj", 64, 32),
    ("self_attn.o_proj", 64, 64),
    ("mlp.gate_proj", 64, 128),
    ("mlp.up_proj", 64, 128),
    ("mlp.down_proj", 128, 64),
];

#[test]
fn every_dialect_reads_as_described() {
    let out = fresh("dialects");
    for bits in 2u32..=8 {
        let planar = matches!(bits, 5..=7);
        for (group, options) in [
            ("-1", ""),
            ("-1", ":act"),
            ("32", ""),
            ("32", ":asym"),
            ("32", ":act:v2"),
            ("48", ":asym:act"),
            ("48", ":asym:v2"),
            ("200", ":asym"),
        ] {
            if planar && options.contains("v2") {
                continue;
            }
            let spec = format!("tiny:w{bits}g{group}{options}:v300");
            out.clear();
            let report = write(&spec, &out, 1, false, 1);
            assert_eq!(report.files, ["model.safetensors"]);
            let checkpoint = check(&out, 300);
            assert_eq!(report.bytes, checkpoint.total_bytes());
            assert_eq!(report.tensors, checkpoint.tensor_names().count());
            let (sym, act) = (!options.contains("asym"), options.contains("act"));
            let size = if group == "-1" { GroupSize::Channel } else { GroupSize::Rows(group.parse().unwrap()) };
            for (name, k, n) in MODULES {
                let module = format!("model.layers.1.{name}");
                let described = checkpoint.describe(&module).unwrap();
                assert_eq!((described.in_features, described.out_features, described.bits), (k, n, bits), "{spec} {name}");
                assert_eq!((described.group_size, described.groups), (size, k.div_ceil(size.rows(k))), "{spec} {name}");
                assert_eq!((described.sym, described.midpoint), (sym, sym), "{spec} {name}");
                assert_eq!(described.packing, if planar { Packing::Planar } else { Packing::Continuous });
                let v1 = !planar && !options.contains("v2");
                assert_eq!(described.zeros, if v1 { ZeroDialect::V1 } else { ZeroDialect::V2 }, "{spec} {name}");
                assert_eq!(described.act_order, act && size.rows(k) < k, "{spec} {name}");

                let matrix = quantized(&checkpoint, &module, k, n);
                if let Zeros::PerGroup(zeros) = matrix.zeros() {
                    let (low, high) = (*zeros.iter().min().unwrap(), *zeros.iter().max().unwrap());
                    assert!(low >= u16::from(v1) && high < 1 << bits && low < high, "{spec} {name}: {low} to {high}");
                }
                let weights = oracle::dequantize(&matrix);
                let square = weights.iter().map(|w| w * w).sum::<f64>() / weights.len() as f64 * k as f64;
                assert!((0.6..1.6).contains(&square), "{spec} {name}: K times the mean square is {square}");
            }
            // after everything has been read
            assert!(checkpoint.warnings().is_empty(), "{spec}: {:?}", checkpoint.warnings());
        }
    }
}

#[test]
fn act_order_is_a_permutation_that_layers_with_one_input_share() {
    let out = fresh("act");
    write("tiny:w4g16:act", &out, 1, false, 1);
    let checkpoint = Checkpoint::open(&out).unwrap();
    let groups = |layer: usize, name: &str, k, n| match quantized(&checkpoint, &format!("model.layers.{layer}.{name}"), k, n).groups() {
        Groups::Index { g_idx, .. } => g_idx.clone(),
        other => panic!("{name}: {other:?}"),
    };
    let first: Vec<Vec<u32>> = MODULES.map(|(name, k, n)| groups(0, name, k, n)).into();
    for (index, (name, k, _)) in first.iter().zip(MODULES) {
        let mut sorted = index.clone();
        sorted.sort();
        assert_eq!(sorted, (0..k as u32).map(|row| row / 16).collect::<Vec<_>>(), "{name}");
    }
    let [q, k, v, o, gate, up, _] = &first[..] else { panic!() };
    assert!(q == k && k == v && gate == up);
    assert!(q != o && q != gate && o != gate && *q != groups(1, "self_attn.q_proj", 64, 64));
}

fn bytes(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap()).collect();
    files.sort_by_key(|e| e.file_name());
    files.iter().map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).unwrap())).collect()
}

#[test]
fn the_seed_decides_every_byte_and_shards_change_no_tensor() {
    let dirs: Vec<_> = ["a", "b", "c", "shards"].iter().map(|n| fresh(&format!("seed-{n}"))).collect();
    let spec = "tiny:w3g32:asym:act";
    for (dir, (shards, seed)) in dirs.iter().zip([(1, 7), (1, 7), (1, 8), (3, 7)]) {
        let report = write(spec, dir, shards, false, seed);
        assert_eq!(report.files.len(), shards);
    }
    assert_eq!(bytes(&dirs[0]), bytes(&dirs[1]));
    assert_ne!(bytes(&dirs[0]), bytes(&dirs[2]));
    let names: Vec<String> = bytes(&dirs[3]).into_iter().map(|(n, _)| n).collect();
    assert_eq!(
        names,
        [
            "config.json",
            "generation_config.json",
            "model-00001-of-00003.safetensors",
            "model-00002-of-00003.safetensors",
            "model-00003-of-00003.safetensors",
            "model.safetensors.index.json",
            "quantize_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    );
    let sharded = check(&dirs[3], 4096);
    assert!(sharded.warnings().is_empty(), "{:?}", sharded.warnings());
    assert_eq!(sharded.generation_config().unwrap()["eos_token_id"], 5);
    assert_eq!(sharded.config()["eos_token_id"], 5);
    assert!(!sharded.config().contains_key("bos_token_id"));

    let tensors = |dir: &Path| -> std::collections::BTreeMap<String, Vec<u8>> {
        let mut all = std::collections::BTreeMap::new();
        for (name, content) in bytes(dir).into_iter().filter(|(n, _)| n.ends_with(".safetensors")) {
            let file = safetensors::SafeTensors::deserialize(&content).unwrap_or_else(|e| panic!("{name}: {e}"));
            all.extend(file.iter().map(|(n, t)| (n.to_string(), t.data().to_vec())));
        }
        all
    };
    let (one, many, other) = (tensors(&dirs[0]), tensors(&dirs[3]), tensors(&dirs[2]));
    assert_eq!(one, many);
    // but for zero points at the midpoint, which there are none of here, everything hangs on the seed
    assert!(one.iter().all(|(name, content)| other[name] != *content));
}

#[test]
fn dense_models() {
    let out = fresh("dense");
    for (spec, shards, dense) in [("tiny:v77", 1, true), ("tiny", 3, true)] {
        out.clear();
        let spec_vocab = spec.parse::<SynthSpec>().unwrap().vocab_size();
        write(spec, &out, shards, dense, 3);
        let checkpoint = check(&out, spec_vocab);
        assert!(checkpoint.quantization().is_none() && !out.join("quantize_config.json").exists());
        assert!(checkpoint.warnings().is_empty());
        assert!(checkpoint.tensor_names().all(|n| checkpoint.info(n).unwrap().dtype == billfish_tensor::DType::BF16));
    }
}

/// Attention biases; norms of queries and keys; a tied head.
#[test]
fn other_families() {
    let out = fresh("families");
    for spec in ["qwen2-0.5b:w4g128:act:v64", "qwen3-0.6b:w2g-1:asym:v64"] {
        out.clear();
        write(spec, &out, 2, false, 3);
        let checkpoint = check(&out, 64);
        assert!(checkpoint.warnings().is_empty() && checkpoint.info("lm_head.weight").is_none());
    }
}

#[test]
fn what_cannot_be_written_is_refused() {
    let out = fresh("refused");
    let spec: SynthSpec = "tiny:v64".parse().unwrap();
    let refuse = |out: &Path, shards, dense, files: &[(&str, &[u8])], spec: &SynthSpec| {
        synth(spec, out, shards, dense, 1, files, &mut |_, _| ()).unwrap_err().to_string()
    };
    for (shards, words) in [(0, "1 to"), (100_000, "100000")] {
        let message = refuse(&out, shards, false, &[], &spec);
        assert!(message.contains(words) && message.contains("shards"), "{message}");
    }
    assert!(refuse(&out, 1, true, &[], &"tiny:asym".parse().unwrap()).contains("dense"));
    assert!(refuse(&out, 1, true, &[("../x", b"")], &spec).contains("../x"));
    assert!(!out.exists(), "nothing is made before everything is checked");

    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("mine.txt"), "precious").unwrap();
    let message = refuse(&out, 1, false, &[], &spec);
    assert!(message.contains("mine.txt") && message.contains("empty"), "{message}");
    assert!(refuse(&out.join("mine.txt"), 1, false, &[], &spec).contains("a file"));
    assert_eq!(bytes(&out).len(), 1);
    std::fs::remove_file(out.join("mine.txt")).unwrap();
    write("tiny:v64", &out, 1, false, 1);
}

/// A model that is made when it is read is the one that would have been written, read as a whole or in parts.
#[test]
fn what_is_never_written_has_the_same_bytes() {
    let out = fresh("never-written");
    // a vocabulary of more than one buffer of bytes in one tensor
    for spec in ["tiny:w4g32:v9001", "tiny:w3g48:asym:act:v300", "tiny:w5g-1:act:v300", "qwen3-0.6b:w2g64:v300"] {
        out.clear();
        write(spec, &out, 1, false, 5);
        let (written, made) = (Checkpoint::open(&out).unwrap(), synthetic(&spec.parse().unwrap(), 5, &TOKENIZER).unwrap());
        assert_eq!(written.files_sha256(&serially).unwrap(), made.files_sha256(&serially).unwrap(), "{spec}");
        assert_eq!((written.config(), written.generation_config()), (made.config(), made.generation_config()));
        assert_eq!(written.file("tokenizer.json").unwrap(), made.file("tokenizer.json").unwrap());
        let names: Vec<String> = written.tensor_names().map(String::from).collect();
        assert_eq!(names, made.tensor_names().collect::<Vec<_>>());
        // tensor by tensor, through offsets that no file's pieces have
        for name in names.iter().filter(|n| n.ends_with("layernorm.weight") || n.ends_with("embed_tokens.weight")) {
            let shape = written.info(name).unwrap().shape.clone();
            assert_eq!(written.dense(name, &shape).unwrap().bytes(), made.dense(name, &shape).unwrap().bytes(), "{spec} {name}");
        }
        let modules = written.quantized_modules();
        for module in modules.iter().step_by(5) {
            let r = written.describe(module).unwrap();
            let read = |c: &Checkpoint| oracle::dequantize(&quantized(c, module, r.in_features, r.out_features));
            assert_eq!(read(&written), read(&made), "{spec} {module}");
        }
    }
    assert!(synthetic(&"tiny".parse().unwrap(), 0, &[("config.json", b"{}")]).is_err());
}
