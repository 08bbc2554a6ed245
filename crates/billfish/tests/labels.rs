//! Asymmetric folders of the trained model under the wrong label: found out, named, and as good as under the right one.

mod common;

use billfish_formats::{BiasRule, Checkpoint, Header, LinearWeight, SafetensorsWriter, Source, TensorSpec};
use billfish_tensor::{DType, QuantMatrix, oracle};
use common::{billfish, fixture, ok, output};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

const GROUP: usize = 64;

fn trained() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tales-6m-w4-sym-g128")).into()
}

/// Fields in one stream of bits, lowest first.
fn stream(bits: usize, fields: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut words = vec![];
    for (i, field) in fields.enumerate() {
        for bit in (0..bits).map(|bit| (i * bits + bit, field >> bit & 1)) {
            words.resize(bit.0 / 32 + 1, 0);
            words[bit.0 / 32] |= bit.1 << (bit.0 % 32);
        }
    }
    words
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// A matrix rounded to nearest with asymmetric groups, as tensors of format gptq_v2. Zero points are at least 1, so that v1
/// holds them too.
fn rounded(name: &str, m: &QuantMatrix, bits: usize) -> Vec<(TensorSpec, Vec<u8>)> {
    let (k, n, groups, top) = (m.in_features(), m.out_features(), m.in_features() / GROUP, (1u32 << bits) - 1);
    let weights = oracle::dequantize(m);
    let (mut codes, mut zeros, mut scales) = (vec![0; k * n], vec![0; groups * n], vec![]);
    for i in 0..groups * n {
        let at = |row: usize| (i / n * GROUP + row) * n + i % n;
        let (min, max) = (0..GROUP).map(|row| weights[at(row)]).fold((0.0f64, 0.0f64), |(a, b), w| (a.min(w), b.max(w)));
        let scale = ((max - min).max(1e-6) / f64::from(top)) as f32;
        let zero = ((-min / f64::from(scale)).round() as u32).clamp(1, top);
        (0..GROUP).for_each(|row| {
            let code = (weights[at(row)] / f64::from(scale)).round() + f64::from(zero);
            codes[at(row)] = code.clamp(0.0, f64::from(top)) as u32;
        });
        zeros[i] = zero;
        scales.push(scale);
    }
    let columns: Vec<Vec<u32>> = (0..n).map(|col| stream(bits, (0..k).map(|row| codes[row * n + col]))).collect();
    let rows = columns[0].len();
    let qweight: Vec<u32> = (0..rows * n).map(|i| columns[i % n][i / n]).collect();
    let qzeros: Vec<u32> = zeros.chunks_exact(n).flat_map(|row| stream(bits, row.iter().copied())).collect();
    let g_idx: Vec<u32> = (0..k).map(|row| (row / GROUP) as u32).collect();
    let spec = |part: &str, dtype, shape: &[usize]| (format!("{name}.{part}"), dtype, shape.to_vec());
    vec![
        (spec("g_idx", DType::I32, &[k]), bytes(&g_idx)),
        (spec("qweight", DType::I32, &[rows, n]), bytes(&qweight)),
        (spec("qzeros", DType::I32, &[groups, qzeros.len() / groups]), bytes(&qzeros)),
        (spec("scales", DType::F32, &[groups, n]), scales.iter().flat_map(|s| s.to_le_bytes()).collect()),
    ]
}

/// The trained model at another width, in format gptq_v2.
fn write(bits: usize, out: &Path) {
    let source = Checkpoint::open(&trained()).unwrap();
    let file = Source::open(&trained().join("model.safetensors")).unwrap();
    let mut tensors = vec![];
    for module in source.quantized_modules() {
        let r = source.describe(&module).unwrap();
        let LinearWeight::Quantized(m) = source.linear(&module, r.in_features, r.out_features, BiasRule::Absent).unwrap() else { panic!() };
        tensors.extend(rounded(&module, &m, bits));
    }
    for (name, info) in Header::read(&file).unwrap().tensors {
        if !source.is_part(&name) {
            let mut bytes = vec![0; info.bytes];
            file.read_at(info.offset, &mut bytes).unwrap();
            tensors.push(((name, info.dtype, info.shape), bytes));
        }
    }
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = SafetensorsWriter::create(&out.join("model.safetensors"), &specs).unwrap();
    tensors.iter().for_each(|((name, ..), bytes)| writer.write(name, bytes).unwrap());
    writer.finish().unwrap();
    for file in ["config.json", "quantize_config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(trained().join(file), out.join(file)).unwrap();
    }
    configure(out, &[("bits", json!(bits)), ("group_size", json!(GROUP)), ("sym", json!(false))]);
    label(out, "gptq_v2");
}

/// Changes keys of the quantization config in both places.
fn configure(dir: &Path, keys: &[(&str, Value)]) {
    for file in ["quantize_config.json", "config.json"] {
        let mut value: Map<String, Value> = serde_json::from_slice(&std::fs::read(dir.join(file)).unwrap()).unwrap();
        let map = if file == "config.json" { value["quantization_config"].as_object_mut().unwrap() } else { &mut value };
        keys.iter().for_each(|(key, value)| drop(map.insert((*key).into(), value.clone())));
        std::fs::write(dir.join(file), Value::Object(value).to_string()).unwrap();
    }
}

fn label(dir: &Path, format: &str) {
    configure(dir, &[("format", json!(format)), ("checkpoint_format", json!(format))]);
}

/// Perplexity of a short text, and what was said about it.
fn perplexity(dir: &Path, zeros: &str) -> (f64, String) {
    let text = fixture("text/valid-20k.txt");
    let args = ["eval", "ppl", dir.to_str().unwrap(), "--text", text.to_str().unwrap(), "--protocol", "window:128", "--json"];
    let (out, err) = ok(&[&args[..], &["--limit-tokens", "256", "--zeros", zeros]].concat());
    let value: Value = serde_json::from_str(&out).unwrap();
    (value["ppl"].as_f64().unwrap(), err)
}

#[test]
fn a_wrong_label_changes_nothing_but_what_is_said() {
    for bits in [2, 3, 4] {
        let root = tempfile::tempdir().unwrap();
        let (v2, v1) = (root.path().join("v2"), root.path().join("v1"));
        std::fs::create_dir(&v2).unwrap();
        write(bits, &v2);
        ok(&["convert", v2.to_str().unwrap(), v1.to_str().unwrap(), "--to", "gptq"]);
        let (want, quiet) = perplexity(&v2, "auto");
        assert!(!quiet.contains("warning") && want.is_finite(), "{bits} bit: {want} {quiet}");
        for (dir, wrong, right, other) in [(&v2, "gptq", "v2", "v1"), (&v1, "gptq_v2", "v1", "v2")] {
            assert_eq!(perplexity(dir, "auto").0, want, "{bits} bit {right}, labelled right");
            label(dir, wrong);
            let (found, said) = perplexity(dir, "auto");
            assert_eq!(found, want, "{bits} bit {right}, labelled {wrong}");
            let warning = format!("labelled {other}, but the weights are centred only as {right}");
            assert!(said.contains(&warning), "{bits} bit {right}: {said}");
            assert_eq!(perplexity(dir, right).0, want, "{bits} bit {right}, said by the caller");
            let (worse, said) = perplexity(dir, other);
            println!("{bits} bit: perplexity {want:.2}, off by one step {worse:.2}");
            assert!(worse > want * 1.2, "{bits} bit {right} read as {other}: {worse} against {want}");
            assert!(said.contains("the stored numbers show the other reading"), "{said}");
            for (zeros, says) in [("auto", warning.as_str()), (other, "the stored numbers show the other reading: every weight is off")] {
                let (code, out, err) = output(billfish(&["doctor", dir.to_str().unwrap(), "--zeros", zeros]));
                assert!(code == 2 && out.contains(says), "{bits} bit {right} --zeros {zeros}: {code} {out} {err}");
            }
        }
    }
}

/// One module of another dialect among the rest, and one whose zero points an overflow overwrote.
#[test]
fn mixed_and_overflowed_modules_are_named_by_doctor() {
    let root = tempfile::tempdir().unwrap();
    write(4, root.path());
    let file = root.path().join("model.safetensors");
    let change = |module: &str, change: &dyn Fn(&mut [u8])| {
        let info = Header::read(&Source::open(&file).unwrap()).unwrap().tensors[&format!("{module}.qzeros")].clone();
        let mut bytes = std::fs::read(&file).unwrap();
        change(&mut bytes[info.offset as usize..][..info.bytes]);
        std::fs::write(&file, bytes).unwrap();
    };
    let odd = "model.layers.3.self_attn.o_proj";
    // no zero point is 0, so that nothing borrows
    change(odd, &|zeros| zeros.iter_mut().for_each(|b| *b = b.wrapping_sub(0x11)));
    let doctor = || output(billfish(&["doctor", root.path().to_str().unwrap()]));
    let (code, out, _) = doctor();
    assert!(code == 2 && out.contains("mixes zero points of two kinds") && out.contains(odd), "{out}");
    label(root.path(), "gptq");
    configure(root.path(), &[("meta", json!({"quantizer": ["auto_gptq:0.7.1"]}))]);
    let less: &dyn Fn(&mut [u8]) = &|zeros| zeros.iter_mut().for_each(|b| *b = b.wrapping_sub(0x11));
    let all = Checkpoint::open(root.path()).unwrap().quantized_modules();
    all.iter().filter(|m| *m != odd).for_each(|m| change(m, less));
    assert_eq!(doctor().0, 0, "all are v1 now");
    // the first field of two words was a zero of 0
    change(odd, &|zeros| zeros[..8].fill(0xff));
    let (code, out, _) = doctor();
    assert!(code == 2 && out.contains("overwrote 14 of all 1024") && out.contains(&format!("error: {odd}")), "{out}");
}
