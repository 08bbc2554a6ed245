//! What may go wrong while a folder is quantized: little memory, odd folders, damaged numbers and damaged files.

mod common;

use billfish_formats::{Checkpoint, Target};
use billfish_kernels::{Activations, Backend, Isa};
use billfish_quantize::{
    Event, Job, Method, Outcome, QuantizeError, Recheck, Recipe, Sequential, Statistics, least_memory, quantize, recheck, synth,
};
use common::{Fresh, all_logits, fixture, fresh, load};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn backend() -> Arc<Backend> {
    Arc::new(Backend::new(Isa::choose(None).unwrap(), 2).unwrap())
}

/// A folder of random 16-bit weights.
fn dense(spec: &str, name: &str) -> Fresh {
    let dir = fresh(name);
    synth(&spec.parse().unwrap(), &dir, 1, true, 7, &[], &mut |_, _| ()).unwrap();
    dir
}

fn samples(vocabulary: u32) -> Vec<Vec<u32>> {
    (0..12u32).map(|s| (0..20 + 3 * s).map(|i| (i * i * 31 + s * 77 + i * 5) % vocabulary).collect()).collect()
}

fn recipe() -> Recipe {
    Recipe { group_size: Some(32), fallback_rows: 1, ..Recipe::default() }
}

fn to(source: &Path, out: &Path, recipe: &Recipe, samples: &[Vec<u32>], memory: Option<u64>) -> Result<Outcome, QuantizeError> {
    let (source, stop) = (Checkpoint::open(source).unwrap(), AtomicBool::new(false));
    let job = Job {
        source: &source,
        out,
        recipe,
        samples,
        backend: backend(),
        memory,
        resume: false,
        statistics: Statistics::Forget,
        stop: &stop,
    };
    quantize(&job, &mut |_| ())
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

/// Where the work on `out` is kept.
fn workspace(out: &Path) -> PathBuf {
    out.with_file_name(format!(".{}.quantizing", out.file_name().unwrap().to_str().unwrap()))
}

/// A copy of a folder whose tensors another function makes of the old ones.
fn changed(from: &Path, name: &str, change: impl Fn(&str, &TensorView<'_>) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)>) -> Fresh {
    let dir = fresh(name);
    std::fs::create_dir_all(&dir).unwrap();
    for (name, bytes) in files(from) {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let old = SafeTensors::deserialize(&bytes).unwrap();
    let new: Vec<_> = old.tensors().iter().flat_map(|(name, view)| change(name, view)).collect();
    let views = new.iter().map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    dir
}

fn same(name: &str, view: &TensorView<'_>) -> (String, Dtype, Vec<usize>, Vec<u8>) {
    (name.into(), view.dtype(), view.shape().to_vec(), view.data().to_vec())
}

#[test]
fn memory_changes_no_byte() {
    for spec in ["tiny", "tiny-moe"] {
        let dir = dense(spec, &format!("robust-memory-{spec}"));
        let (recipe, samples) = (Recipe { lm_head: true, ..recipe() }, samples(256));
        let outs = ["all", "least"].map(|n| fresh(&format!("robust-memory-{spec}-{n}")));
        let whole = to(&dir, &outs[0], &recipe, &samples, None).unwrap();
        let (source, stop) = (Checkpoint::open(&dir).unwrap(), AtomicBool::new(false));
        let job = Job {
            source: &source,
            out: &outs[1],
            recipe: &recipe,
            samples: &samples,
            backend: backend(),
            memory: None,
            resume: false,
            statistics: Statistics::Forget,
            stop: &stop,
        };
        let least = least_memory(&job).unwrap();
        let job = Job { memory: Some(least), backend: backend(), ..job };
        let mut on_disk = false;
        let little = quantize(&job, &mut |_| on_disk |= workspace(&outs[1]).join("embedded.rows").exists()).unwrap();
        assert!(on_disk, "{spec}: rows that do not fit are on disk");
        assert_eq!(little.modules, whole.modules, "{spec}");
        assert!(files(&outs[0]) == files(&outs[1]), "{spec}");
        let error = to(&dir, &fresh("robust-memory-none"), &recipe, &samples, Some(least - 1)).unwrap_err().to_string();
        assert!(error.contains("memory") && error.contains("GB or more"), "{error}");
    }
}

#[test]
fn experts_in_one_tensor_are_quantized_as_if_they_were_apart() {
    let stacked = fixture("qwen2moe-stacked-dense");
    // taken apart without our reader
    let apart = changed(&stacked, "robust-apart", |name, view| {
        let Some(block) = name.strip_suffix(".gate_up_proj").or(name.strip_suffix(".down_proj")).filter(|b| b.ends_with(".experts")) else {
            return vec![same(name, view)];
        };
        let &[count, n, k] = view.shape() else { panic!("{name}") };
        let parts: &[(&str, usize)] =
            if name.ends_with("gate_up_proj") { &[("gate_proj", 0), ("up_proj", 1)] } else { &[("down_proj", 0)] };
        let rows = n / parts.len();
        let of = |e: usize, (part, at): (&str, usize)| {
            let first = (e * n + at * rows) * k * 2;
            let data = view.data()[first..first + rows * k * 2].to_vec();
            (format!("{block}.{e}.{part}.weight"), view.dtype(), vec![rows, k], data)
        };
        (0..count).flat_map(|e| parts.iter().map(move |p| (e, *p))).map(|(e, p)| of(e, p)).collect()
    });
    let (recipe, samples) = (recipe(), samples(320));
    let outs = ["stacked", "each"].map(|n| fresh(&format!("robust-experts-{n}")));
    let a = to(&stacked, &outs[0], &recipe, &samples, None).unwrap();
    let b = to(&apart, &outs[1], &recipe, &samples, None).unwrap();
    assert_eq!(a.modules, b.modules);
    assert!(a.modules.iter().any(|m| m.module == "model.layers.0.mlp.experts.5.down_proj"));
    assert!(files(&outs[0]) == files(&outs[1]));
    // factors go into each of them too
    let scaled = Recipe { method: Method::Awq, fallback_rows: 1, ..recipe.clone() };
    let [a2, b2] = [(stacked.as_path(), "stacked-awq"), (&*apart, "each-awq")].map(|(from, name)| {
        let out = fresh(&format!("robust-experts-{name}"));
        (to(from, &out, &scaled, &samples, None).unwrap().modules, files(&out))
    });
    assert!(a2 == b2);
    let factors = a2.0.iter().filter(|m| m.module.ends_with("down_proj") && m.scaling.as_ref().unwrap().alpha > 0.0);
    assert!(factors.count() > 0, "factors of some experts");
    let logits = all_logits(&load(&outs[0], Activations::Strict), &[1, 2, 3]);
    assert!(logits.iter().all(|v| v.is_finite()));
    // 48 and 80 inputs in groups of 32: GPTQ has a short last group, compressed-tensors has none and says so at once
    let short = a.modules.iter().find(|m| m.in_features == 80).unwrap();
    assert_eq!(short.group_errors.len(), 3);
    let out = fresh("robust-experts-short");
    let recipe = Recipe { target: Target::CompressedTensors, ..recipe };
    let error = to(&stacked, &out, &recipe, &samples, None).unwrap_err().to_string();
    assert!(error.contains("experts.0.down_proj") && error.contains("no short group"), "{error}");
    assert!(!workspace(&out).exists() && !out.exists());
}

#[test]
fn a_quantized_head_is_no_longer_the_embedding() {
    let dir = dense("tiny", "robust-tied");
    let edit = |dir: &Path, key: &str, value: serde_json::Value| {
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    };
    // the embedding is the head; a copy under the head's own name counts for nothing
    let tied = changed(&dir, "robust-tied-source", |name, view| {
        let copy = (name == "lm_head.weight").then(|| vec![0; view.data().len()]);
        vec![copy.map_or_else(|| same(name, view), |data| (name.into(), view.dtype(), view.shape().to_vec(), data))]
    });
    edit(&tied, "tie_word_embeddings", true.into());
    let (recipe, samples) = (Recipe { lm_head: true, bits: 8, ..recipe() }, samples(256));
    let out = fresh("robust-tied-out");
    let outcome = to(&tied, &out, &recipe, &samples, None).unwrap();
    assert_eq!(outcome.modules.last().unwrap().module, "lm_head");
    let written = Checkpoint::open(&out).unwrap();
    assert_eq!(written.config()["tie_word_embeddings"], false);
    assert!(written.has_codes("lm_head") && written.warnings().is_empty(), "{:?}", written.warnings());
    let table = |dir: &Path| {
        let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
        SafeTensors::deserialize(&bytes).unwrap().tensor("model.embed_tokens.weight").unwrap().data().to_vec()
    };
    assert!(table(&out) == table(&tied));
    // the same head as that of a folder which has the embedding twice and says so
    let twice = changed(&tied, "robust-tied-twice", |name, view| {
        let mut all = vec![];
        if name != "lm_head.weight" {
            all.push(same(name, view));
        }
        if name == "model.embed_tokens.weight" {
            all.push(same("lm_head.weight", view));
        }
        all
    });
    edit(&twice, "tie_word_embeddings", false.into());
    let other = fresh("robust-tied-other");
    to(&twice, &other, &recipe, &samples, None).unwrap();
    assert!(files(&out)["model.safetensors"] == files(&other)["model.safetensors"]);
    let ids: Vec<u32> = (0..30).map(|i| i * 7 % 256).collect();
    let [a, b] = [&out, &tied].map(|dir| all_logits(&load(dir, Activations::Strict), &ids));
    let (error, all) = a.iter().zip(&b).fold((0.0, 0.0), |(e, s), (x, y)| (e + (x - y) * (x - y), s + y * y));
    // 8 bits in every module: far closer than another table would be
    assert!(error < 0.01 * all, "{error} of {all}");
}

#[test]
fn weights_that_are_not_numbers_are_refused_before_anything_is_computed() {
    let dir = dense("tiny", "robust-nan-source");
    let samples = samples(256);
    for (tensor, at, name) in [("model.layers.1.mlp.down_proj.weight", 5, "nan"), ("model.norm.weight", 3, "infinity")] {
        let broken = changed(&dir, &format!("robust-{name}"), |n, view| {
            let mut data = view.data().to_vec();
            if n == tensor {
                let (inf, nan) = if view.dtype() == Dtype::BF16 { (0x7f80u16, 0xffc0) } else { (0x7c00, 0xfe00) };
                data[2 * at..2 * at + 2].copy_from_slice(&(if name == "nan" { nan } else { inf }).to_le_bytes());
            }
            vec![(n.into(), view.dtype(), view.shape().to_vec(), data)]
        });
        let out = fresh(&format!("robust-{name}-out"));
        let mut layers = 0;
        let (source, stop) = (Checkpoint::open(&broken).unwrap(), AtomicBool::new(false));
        let recipe = recipe();
        let job = Job {
            source: &source,
            out: &out,
            recipe: &recipe,
            samples: &samples,
            backend: backend(),
            memory: None,
            resume: false,
            statistics: Statistics::Forget,
            stop: &stop,
        };
        let error = quantize(&job, &mut |_| layers += 1).unwrap_err().to_string();
        assert!(error.contains(tensor) && error.contains(&format!(", {at}]")) && layers == 0, "{error}");
        // nor does a second try pass it by
        let job = Job { resume: true, backend: backend(), ..job };
        assert!(quantize(&job, &mut |_| ()).unwrap_err().to_string().contains(tensor));
        drop(std::fs::remove_dir_all(workspace(&out)));
    }
}

/// Rows that overflow are left out of the Hessian, counted, and the report says so.
#[test]
fn activations_that_are_not_numbers_are_left_out_and_counted() {
    let dir = dense("tiny", "robust-overflow-source");
    const TOKEN: usize = 9;
    const DIMENSION: usize = 3;
    // one token alone has a number in one dimension, which gate and up of the first layer blow up
    let source = changed(&dir, "robust-overflow", |name, view| {
        let float = |bits: [u8; 2]| {
            if view.dtype() == Dtype::BF16 { half::bf16::from_le_bytes(bits).to_f32() } else { half::f16::from_le_bytes(bits).to_f32() }
        };
        let mut values: Vec<f32> = view.data().as_chunks::<2>().0.iter().map(|b| float(*b)).collect();
        let columns = *view.shape().last().unwrap();
        let first = name.starts_with("model.layers.0.");
        for (i, v) in values.iter_mut().enumerate() {
            let (row, column) = (i / columns, i % columns);
            match name {
                "model.embed_tokens.weight" if column == DIMENSION => *v = if row == TOKEN { 1.0 } else { 0.0 },
                _ if first && name.ends_with("o_proj.weight") && row == DIMENSION => *v = 0.0,
                _ if first && (name.ends_with("gate_proj.weight") || name.ends_with("up_proj.weight")) && column == DIMENSION => *v = 1e25,
                _ => {}
            }
        }
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        vec![(name.into(), Dtype::F32, view.shape().to_vec(), data)]
    });
    let rules = serde_json::json!({"-:.*(gate|up)_proj": {}});
    let recipe = Recipe { dynamic: billfish_formats::Dynamic::parse("rules", &rules).unwrap(), ..recipe() };
    let samples = samples(256);
    let outcome = to(&source, &fresh("robust-overflow-out"), &recipe, &samples, None).unwrap();
    let hit = samples.iter().flatten().filter(|&&t| t as usize == TOKEN).count() as u64;
    let all = samples.iter().map(Vec::len).sum::<usize>() as u64;
    let of = |name: &str| outcome.modules.iter().find(|m| m.module == name).unwrap();
    let down = of("model.layers.0.mlp.down_proj");
    assert!(hit > 0 && down.dropped_rows == hit && down.rows == all - hit, "{hit}: {down:?}");
    assert!(down.notes.iter().any(|n| n.contains("not finite")), "{:?}", down.notes);
    let query = of("model.layers.0.self_attn.q_proj");
    assert_eq!((query.rows, query.dropped_rows), (all, 0));
    assert!(of("model.layers.1.self_attn.q_proj").dropped_rows >= hit);
}

#[test]
fn short_texts_are_made_up_for_by_damping() {
    let dir = dense("tiny", "robust-short");
    let samples = vec![vec![1, 2, 3, 4, 5, 6, 7, 8]];
    let outcome = to(&dir, &fresh("robust-short-out"), &recipe(), &samples, None).unwrap();
    let first = &outcome.modules[0];
    assert!(first.rows == 8 && first.fallback.is_none() && first.damp == 0.01, "{first:?}");
    assert!(first.notes.iter().any(|n| n.starts_with("8 rows were seen for")), "{:?}", first.notes);
    // without any the Hessian is singular, so it is raised by itself
    let none = Recipe { damp: 0.0, ..recipe() };
    let outcome = to(&dir, &fresh("robust-short-raised"), &none, &samples, None).unwrap();
    let raised = outcome.modules.iter().find(|m| m.damp > 0.0).expect("a singular Hessian");
    assert!(raised.notes.iter().any(|n| n.contains("was needed instead of 0")), "{:?}", raised.notes);
    assert!(outcome.modules.iter().all(|m| m.output_error.is_finite() && m.output_error < 1.0));
    // fewer rows than a recipe trusts: weighted rounding, and the report says so
    let careful = Recipe { fallback_rows: 9, ..recipe() };
    let outcome = to(&dir, &fresh("robust-short-fallback"), &careful, &samples, None).unwrap();
    assert!(outcome.modules.iter().all(|m| m.fallback.as_ref().is_some_and(|f| f.contains("8 rows"))));
}

#[test]
fn damaged_work_is_not_taken_up_again() {
    let dir = dense("tiny", "robust-damaged-source");
    let (source, samples, recipe) = (Checkpoint::open(&dir).unwrap(), samples(256), recipe());
    let out = fresh("robust-damaged");
    let whole = fresh("robust-damaged-whole");
    to(&dir, &whole, &recipe, &samples, None).unwrap();
    let stop = AtomicBool::new(false);
    let job = |resume| Job {
        source: &source,
        out: &out,
        recipe: &recipe,
        samples: &samples,
        backend: backend(),
        memory: None,
        resume,
        statistics: Statistics::Forget,
        stop: &stop,
    };
    let stopped = quantize(&job(false), &mut |e| {
        if let Event::Layer { index: 0, .. } = e {
            stop.store(true, Ordering::Relaxed);
        }
    });
    assert!(stopped.unwrap().written.is_none());
    stop.store(false, Ordering::Relaxed);
    let kept = files(&workspace(&out));
    assert_eq!(kept.keys().collect::<Vec<_>>(), ["layer-00000.report", "layer-00000.rows", "layer-00000.safetensors", "state.json"]);
    for (name, bytes) in &kept {
        let path = workspace(&out).join(name);
        let mut broken = bytes.clone();
        // a brace of the settings, or any bit of the others
        let at = if name == "state.json" { 0 } else { bytes.len() * 2 / 3 };
        broken[at] ^= 0x10;
        std::fs::write(&path, &broken).unwrap();
        let error = quantize(&job(true), &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains(name.as_str()) && error.contains("--resume"), "{name}: {error}");
        std::fs::write(&path, bytes).unwrap();
    }
    // nor is it made anew without a word where the settings are gone
    std::fs::remove_file(workspace(&out).join("state.json")).unwrap();
    let error = quantize(&job(true), &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("state.json") && error.contains("--resume"), "{error}");
    std::fs::write(workspace(&out).join("state.json"), &kept["state.json"]).unwrap();
    // what a break leaves unfinished is made anew
    for name in ["layer-00001.safetensors", "layer-00001.rows.partial", "state.json.partial"] {
        std::fs::write(workspace(&out).join(name), "half").unwrap();
    }
    std::fs::create_dir_all(workspace(&out).join("made")).unwrap();
    quantize(&job(true), &mut |_| ()).unwrap();
    assert!(files(&out) == files(&whole) && !workspace(&out).exists());
}

#[test]
fn a_damaged_group_is_found_and_named() {
    for (format, part) in [("gptq", "qweight"), ("awq", "scales")] {
        let dir = dense("tiny", &format!("robust-group-source-{format}"));
        let out = fresh(&format!("robust-group-{format}"));
        let samples = samples(256);
        let recipe = Recipe { target: format.parse().unwrap(), sym: format == "gptq", lm_head: true, ..recipe() };
        let outcome = to(&dir, &out, &recipe, &samples, None).unwrap();
        let base = Checkpoint::open(&dir).unwrap();
        let check = |samples: &[Vec<u32>]| {
            let stored = Checkpoint::open(&out).unwrap();
            let reported = &outcome.modules;
            let job = Recheck {
                stored: &stored,
                base: &base,
                reported,
                samples,
                all_experts: false,
                sequential: Sequential::Quantized,
                backend: backend(),
            };
            let mut modules = 0;
            let found = recheck(&job, &mut |_| modules += 1);
            assert!(found.is_err() || modules == reported.len());
            found
        };
        assert_eq!(check(&[]).unwrap(), []);
        assert_eq!(check(&samples).unwrap(), [], "errors are those of the file to 1e-6");
        let error = check(&samples[1..]).unwrap_err().to_string();
        assert!(error.contains("rows, as reported") && error.contains("--samples"), "{error}");

        // one code, or the last digit of one scale, in the second group of a module
        let module = "model.layers.1.self_attn.o_proj";
        let path = out.join("model.safetensors");
        let whole = std::fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        let at = {
            let file = SafeTensors::deserialize(&whole).unwrap();
            let view = file.tensor(&format!("{module}.{part}")).unwrap();
            // rows of a word hold eight codes of a GPTQ file
            let row = if part == "qweight" { 32 / 8 } else { 1 };
            let start = view.data().as_ptr() as usize - whole.as_ptr() as usize;
            start + row * view.data().len() / view.shape()[0]
        };
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let found = check(&[]).unwrap();
        assert_eq!(found.iter().map(|d| (d.module.as_str(), d.group)).collect::<Vec<_>>(), [(module, Some(1))], "{format}");
        let found = check(&samples).unwrap();
        assert!(found.iter().any(|d| (d.module.as_str(), d.group) == (module, Some(1))), "{found:?}");
        assert!(found.iter().any(|d| (d.module.as_str(), d.group) == (module, None)), "{found:?}");
        assert!(found.iter().all(|d| d.group.is_none() || d.module == module), "only outputs behind it differ too");
    }
}
