//! Statistics kept and used again, and folders quantized again.

mod common;

use billfish_formats::{Checkpoint, Dynamic, Target, convert};
use billfish_kernels::{Backend, Isa};
use billfish_quantize::gptq::{Order, Search};
use billfish_quantize::{Event, Job, Method, Outcome, QuantizeError, Recipe, Sequential, Statistics, least_memory, quantize, synth};
use common::{Fresh, files, fixture, fresh};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn dense(spec: &str, name: &str) -> Fresh {
    let dir = fresh(name);
    synth(&spec.parse().unwrap(), &dir, 1, true, 7, &[], &mut |_, _| ()).unwrap();
    dir
}

fn samples() -> Vec<Vec<u32>> {
    (0..10u32).map(|s| (0..24 + 3 * s).map(|i| (i * i * 31 + s * 77 + i * 5) % 256).collect()).collect()
}

fn recipe() -> Recipe {
    Recipe { group_size: Some(32), fallback_rows: 8, lm_head: true, ..Recipe::default() }
}

#[derive(Clone, Copy)]
struct Run<'a> {
    source: &'a Checkpoint,
    samples: &'a [Vec<u32>],
    statistics: Statistics<'a>,
    resume: bool,
    memory: Option<u64>,
    stop_after: Option<usize>,
}

impl Run<'_> {
    fn to(self, out: &Path, recipe: &Recipe) -> Result<Outcome, QuantizeError> {
        let stop = AtomicBool::new(false);
        let backend = Arc::new(Backend::new(Isa::choose(None).unwrap(), 2).unwrap());
        let Run { source, samples, statistics, resume, memory, .. } = self;
        quantize(&Job { source, out, recipe, samples, backend, memory, resume, statistics, stop: &stop }, &mut |event| {
            if let Event::Layer { index, .. } = event
                && self.stop_after == Some(index)
            {
                stop.store(true, Ordering::Relaxed);
            }
        })
    }
}

fn plain<'a>(source: &'a Checkpoint, samples: &'a [Vec<u32>]) -> Run<'a> {
    Run { source, samples, statistics: Statistics::Forget, resume: false, memory: None, stop_after: None }
}

/// The memory that quantizing takes at least.
fn least(source: &Checkpoint, samples: &[Vec<u32>]) -> u64 {
    let (stop, recipe, backend) = (AtomicBool::new(false), recipe(), Arc::new(Backend::new(Isa::choose(None).unwrap(), 1).unwrap()));
    let (out, statistics) = (Path::new("out"), Statistics::Forget);
    least_memory(&Job { source, out, recipe: &recipe, samples, backend, memory: None, resume: false, statistics, stop: &stop }).unwrap()
}

#[test]
fn statistics_give_the_same_bytes_without_running_the_network() {
    for spec in ["tiny", "tiny-moe"] {
        let dir = dense(spec, &format!("stats-{spec}-source"));
        let (source, samples) = (Checkpoint::open(&dir).unwrap(), samples());
        let [whole, saved, used] = ["whole", "saved", "used"].map(|n| fresh(&format!("stats-{spec}-{n}")));
        let stats = fresh(&format!("stats-{spec}"));
        let anew = plain(&source, &samples);
        let first = anew.to(&whole, &recipe()).unwrap();
        let save = Run { statistics: Statistics::Save(&stats), ..anew };
        save.to(&saved, &recipe()).unwrap();
        assert!(files(&whole) == files(&saved), "{spec}: keeping statistics changes nothing");
        let again = Run { statistics: Statistics::Use(&stats), ..plain(&source, &[]) };
        let second = again.to(&used, &recipe()).unwrap();
        assert!(files(&whole) == files(&used), "{spec}: the same bytes");
        assert_eq!(first.modules, second.modules, "{spec}: and the same report, rows and errors included");
        assert!(!first.times.forward.is_zero() && second.times.forward.is_zero(), "{spec}: {:?}", second.times);

        // with so little memory that rows are on disk and experts come one after another
        let (small, out) = (fresh(&format!("stats-{spec}-small")), fresh(&format!("stats-{spec}-small-out")));
        let least = least(&source, &samples);
        Run { statistics: Statistics::Save(&small), memory: Some(least), ..anew }.to(&out, &recipe()).unwrap();
        assert!(files(&whole) == files(&out), "{spec}: memory changes nothing");
        let out = fresh(&format!("stats-{spec}-small-used"));
        Run { statistics: Statistics::Use(&small), ..again }.to(&out, &recipe()).unwrap();
        assert!(files(&whole) == files(&out), "{spec}: nor in statistics");

        // a folder of statistics is not written over
        let error = save.to(&fresh("stats-over"), &recipe()).unwrap_err().to_string();
        assert!(error.contains("files in it"), "{error}");
        // and statistics of all but the head are not enough for the head
        let (other, out) = (fresh(&format!("stats-{spec}-headless")), fresh(&format!("stats-{spec}-headless-out")));
        let headless = Recipe { lm_head: false, ..recipe() };
        Run { statistics: Statistics::Save(&other), ..anew }.to(&out, &headless).unwrap();
        let out = fresh(&format!("stats-{spec}-head"));
        let error = Run { statistics: Statistics::Use(&other), ..again }.to(&out, &recipe()).unwrap_err().to_string();
        assert!(error.contains("`lm_head`") && error.contains("found none"), "{error}");
    }
}

#[test]
fn statistics_of_other_settings_are_refused_by_name() {
    let (dir, other) = (dense("tiny", "stats-key-source"), fresh("stats-key-other"));
    synth(&"tiny".parse().unwrap(), &other, 1, true, 8, &[], &mut |_, _| ()).unwrap();
    let (source, other, samples) = (Checkpoint::open(&dir).unwrap(), Checkpoint::open(&other).unwrap(), samples());
    let stats = fresh("stats-key");
    let save = Run { statistics: Statistics::Save(&stats), ..plain(&source, &samples) };
    save.to(&fresh("stats-key-first"), &recipe()).unwrap();
    let out = fresh("stats-key-out");
    let use_it = |source, recipe: Recipe| {
        let run = Run { statistics: Statistics::Use(&stats), ..plain(source, &[]) };
        run.to(&out, &recipe).unwrap_err().to_string()
    };
    let rules = Dynamic::parse("rules", &serde_json::json!({"-:.*k_proj": {}})).unwrap();
    for (name, other) in [
        ("bits", Recipe { bits: 3, ..recipe() }),
        ("group_size", Recipe { group_size: Some(64), ..recipe() }),
        ("sym", Recipe { sym: false, ..recipe() }),
        ("damp", Recipe { damp: 0.02, ..recipe() }),
        ("search", Recipe { search: Search::MinMax, ..recipe() }),
        ("order", Recipe { order: Order::None, ..recipe() }),
        ("sweeps", Recipe { sweeps: 0, ..recipe() }),
        ("method", Recipe { method: Method::Rtn, ..recipe() }),
        ("dynamic", Recipe { dynamic: rules, ..recipe() }),
        ("fallback_rows", Recipe { fallback_rows: 9, ..recipe() }),
        ("all_experts", Recipe { all_experts: true, ..recipe() }),
        ("sequential", Recipe { sequential: Sequential::Dense, ..recipe() }),
    ] {
        let error = use_it(&source, other);
        assert!(error.contains(&format!("expected statistics made with `{name}`")) && error.contains("--sequential dense"), "{error}");
    }
    assert!(use_it(&other, recipe()).contains("`model`"));
    let both = Run { statistics: Statistics::Use(&stats), ..plain(&source, &samples) };
    assert!(both.to(&out, &recipe()).unwrap_err().to_string().contains("both"));
    let error = Run { statistics: Statistics::Use(&dir), ..plain(&source, &[]) }.to(&out, &recipe()).unwrap_err().to_string();
    assert!(error.contains("statistics.json") && error.contains("--save-stats"), "{error}");
    assert!(!out.exists());
}

#[test]
fn statistics_of_the_dense_network_serve_any_width() {
    let dir = dense("tiny", "stats-dense-source");
    let (source, samples) = (Checkpoint::open(&dir).unwrap(), samples());
    let stats = fresh("stats-dense");
    let dense = Recipe { sequential: Sequential::Dense, ..recipe() };
    let rtn = Recipe { method: Method::Rtn, ..dense.clone() };
    Run { statistics: Statistics::Save(&stats), ..plain(&source, &samples) }.to(&fresh("stats-dense-first"), &rtn).unwrap();
    for bits in [2, 3, 8] {
        let recipe = Recipe { bits, order: Order::Static, damp: 0.03, ..dense.clone() };
        let [anew, used] = ["anew", "used"].map(|n| fresh(&format!("stats-dense-{bits}-{n}")));
        plain(&source, &samples).to(&anew, &recipe).unwrap();
        Run { statistics: Statistics::Use(&stats), ..plain(&source, &[]) }.to(&used, &recipe).unwrap();
        assert!(files(&anew) == files(&used), "{bits}");
    }
    // what modules see is not what quantized ones give
    let sequential = fresh("stats-dense-sequential");
    let [a, b] = [(Sequential::Dense, &fresh("stats-dense-2")), (Sequential::Quantized, &sequential)].map(|(sequential, out)| {
        let recipe = Recipe { bits: 2, sequential, ..recipe() };
        plain(&source, &samples).to(out, &recipe).unwrap().modules
    });
    assert_eq!(a[0], b[0], "nothing stands before the first module");
    assert_ne!(a.last(), b.last());
    let error = Run { statistics: Statistics::Use(&stats), ..plain(&source, &[]) }.to(&fresh("stats-dense-no"), &recipe()).unwrap_err();
    assert!(error.to_string().contains("`sequential` \"quantized\", found `sequential` \"dense\""), "{error}");
}

#[test]
fn damaged_and_unfinished_statistics() {
    let dir = dense("tiny", "stats-damage-source");
    let (source, samples) = (Checkpoint::open(&dir).unwrap(), samples());
    let (stats, out) = (fresh("stats-damage"), fresh("stats-damage-out"));
    let save = Run { statistics: Statistics::Save(&stats), ..plain(&source, &samples) };
    let again = |statistics| Run { statistics, ..plain(&source, &[]) }.to(&fresh("stats-damage-used"), &recipe());
    let whole = fresh("stats-damage-whole");
    plain(&source, &samples).to(&whole, &recipe()).unwrap();

    // broken off: not used, but gone on with
    Run { stop_after: Some(0), ..save }.to(&out, &recipe()).unwrap();
    let error = again(Statistics::Use(&stats)).unwrap_err().to_string();
    assert!(error.contains("did not end"), "{error}");
    Run { resume: true, ..save }.to(&out, &recipe()).unwrap();
    assert!(files(&whole) == files(&out));
    again(Statistics::Use(&stats)).unwrap();

    // a layer that was done without them
    let (out, none) = (fresh("stats-damage-late"), fresh("stats-damage-none"));
    Run { stop_after: Some(0), ..plain(&source, &samples) }.to(&out, &recipe()).unwrap();
    let late = Run { statistics: Statistics::Save(&none), resume: true, ..plain(&source, &samples) };
    let error = late.to(&out, &recipe()).unwrap_err().to_string();
    assert!(error.contains("model.layers.0.self_attn.q_proj") && error.contains("found none"), "{error}");

    // every byte is covered by a hash
    let names: Vec<String> = files(&stats).into_keys().collect();
    assert!(names.len() > 8 && names.contains(&"statistics.json".to_string()), "{names:?}");
    for name in ["statistics.json", "model.layers.0.mlp.down_proj.safetensors", "lm_head.safetensors"] {
        let path = stats.join(name);
        let bytes = std::fs::read(&path).unwrap();
        let mut damaged = bytes.clone();
        let at = if name.ends_with(".json") { bytes.windows(6).position(|w| w == b"\"rows\"").unwrap() + 8 } else { bytes.len() - 3 };
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let error = again(Statistics::Use(&stats)).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("SHA-256"), "{error}");
        std::fs::write(&path, bytes).unwrap();
    }
    again(Statistics::Use(&stats)).unwrap();
}

#[test]
fn a_quantized_folder_is_quantized_again_from_its_exact_weights() {
    for name in [
        "llama-w4-sym-g128",
        "llama-w2-asym-g64",
        "llama-w4-sym-g32-act",
        "llama-awq-asym-g32",
        "llama-ct-w8a16-channel",
        "qwen3moe-w4-sym-g32",
        "llama-w4-lmhead",
    ] {
        let source = Checkpoint::open(&fixture(name)).unwrap();
        let vocabulary = source.config()["vocab_size"].as_u64().unwrap() as u32;
        let samples: Vec<Vec<u32>> = samples().iter().map(|s| s.iter().map(|t| t % vocabulary).collect()).collect();
        // the folder's weights as floats, by another way; products with scales of 32 bits are rounded by both
        let rounds = name.contains("w8a16");
        let (floats, direct, by_floats) =
            (fresh(&format!("{name}-floats")), fresh(&format!("{name}-direct")), fresh(&format!("{name}-by")));
        convert(&source, &floats, Target::Dense(billfish_tensor::DType::F32), rounds, &mut |_, _| ()).unwrap();
        let lm_head = name.ends_with("lmhead");
        // without a text nothing runs, so only the weights count
        let rtn = Recipe { method: Method::Rtn, bits: 3, requantize: true, lm_head, ..recipe() };
        let outcome = plain(&source, &[]).to(&direct, &rtn).unwrap();
        let dense = Recipe { requantize: false, ..rtn.clone() };
        plain(&Checkpoint::open(&floats).unwrap(), &[]).to(&by_floats, &dense).unwrap();
        let certificate = billfish_formats::verify(
            &Checkpoint::open(&direct).unwrap(),
            &Checkpoint::open(&by_floats).unwrap(),
            &billfish_formats::serially,
            &mut |_, _| (),
        );
        assert!(certificate.unwrap().equal(), "{name}");
        let written = Checkpoint::open(&direct).unwrap();
        assert!(written.warnings().is_empty(), "{name}: {:?}", written.warnings());
        assert_eq!(outcome.requantized, outcome.modules.len(), "{name}: the report says so");
        // wide codes hold narrow ones, so a text changes little
        let out = fresh(&format!("{name}-8"));
        let wide = plain(&source, &samples).to(&out, &Recipe { bits: 8, requantize: true, lm_head, ..recipe() }).unwrap();
        assert!(wide.modules.iter().all(|m| m.output_error < 1e-3), "{name}");

        let error = plain(&source, &[]).to(&fresh("requantize-no"), &Recipe { requantize: false, ..rtn.clone() }).unwrap_err().to_string();
        assert!(error.contains("quantized already") && error.contains("--requantize"), "{error}");
        if lm_head {
            let error = plain(&source, &[]).to(&fresh("requantize-head"), &Recipe { lm_head: false, ..rtn }).unwrap_err().to_string();
            assert!(error.contains("`lm_head`") && error.contains("--lm-head"), "{error}");
        }
    }
    let stacked = Checkpoint::open(&fixture("qwen2moe-stacked-dense")).unwrap();
    let run = plain(&stacked, &[]).to(&fresh("requantize-dense"), &Recipe { method: Method::Rtn, requantize: true, ..recipe() });
    assert!(run.unwrap_err().to_string().contains("nothing"), "a dense folder is not quantized again");
}
