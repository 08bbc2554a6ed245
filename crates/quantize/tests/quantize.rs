//! Whole folders quantized: what is written, what is reported, and that nothing but the settings decides about it.

mod common;

use billfish_formats::{BiasRule, Checkpoint, Dynamic, LinearWeight, Target, serially, verify};
use billfish_kernels::{Activations, Backend, Isa};
use billfish_models::{DecoderConfig, LoadOptions, LoneLayer, embed};
use billfish_quantize::gptq::{Hessian, Order, Search};
use billfish_quantize::{Event, Job, Method, ModuleQuality, Outcome, QuantizeError, Recipe, Statistics, divergence, quantize, synth};
use common::{Fresh, all_logits, files, fresh, load};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn backend(threads: usize) -> Arc<Backend> {
    Arc::new(Backend::new(Isa::choose(None).unwrap(), threads).unwrap())
}

/// A folder of random 16-bit weights.
fn dense(spec: &str, name: &str) -> Fresh {
    let dir = fresh(name);
    synth(&spec.parse().unwrap(), &dir, 1, true, 7, &[], &mut |_, _| ()).unwrap();
    dir
}

/// Calibration sequences of different lengths.
fn samples(vocabulary: u32) -> Vec<Vec<u32>> {
    (0..12u32).map(|s| (0..20 + 3 * s).map(|i| (i * i * 31 + s * 77 + i * 5) % vocabulary).collect()).collect()
}

fn recipe() -> Recipe {
    Recipe { group_size: Some(32), fallback_rows: 1, ..Recipe::default() }
}

struct Run<'a> {
    source: &'a Checkpoint,
    recipe: &'a Recipe,
    samples: &'a [Vec<u32>],
    threads: usize,
    memory: Option<u64>,
    resume: bool,
    /// Layers after which it is stopped.
    stop_after: Option<usize>,
}

impl Run<'_> {
    fn to(&self, out: &Path) -> Result<Outcome, QuantizeError> {
        let stop = AtomicBool::new(false);
        let job = Job {
            source: self.source,
            out,
            recipe: self.recipe,
            samples: self.samples,
            backend: backend(self.threads),
            memory: self.memory,
            resume: self.resume,
            statistics: Statistics::Forget,
            stop: &stop,
        };
        quantize(&job, &mut |event| {
            if let Event::Layer { index, .. } = event
                && self.stop_after == Some(index)
            {
                stop.store(true, Ordering::Relaxed);
            }
        })
    }
}

fn run<'a>(source: &'a Checkpoint, recipe: &'a Recipe, samples: &'a [Vec<u32>]) -> Run<'a> {
    Run { source, recipe, samples, threads: 2, memory: None, resume: false, stop_after: None }
}

#[test]
fn threads_and_breaks_change_no_byte() {
    let dir = dense("tiny", "breaks-source");
    let source = Checkpoint::open(&dir).unwrap();
    let (recipe, samples) = (recipe(), samples(256));
    let outs = ["two", "one", "broken"].map(|n| fresh(&format!("breaks-{n}")));
    let run = run(&source, &recipe, &samples);
    let whole = run.to(&outs[0]).unwrap();
    assert!(whole.written.is_some());
    Run { threads: 1, ..run }.to(&outs[1]).unwrap();
    assert!(files(&outs[0]) == files(&outs[1]), "threads");

    let stopped = Run { stop_after: Some(0), ..run }.to(&outs[2]).unwrap();
    assert!(stopped.written.is_none() && !outs[2].exists(), "nothing stands there before all of it is written");
    assert!(stopped.modules.len() < whole.modules.len());
    let mut found = vec![];
    let stop = AtomicBool::new(false);
    let job = Job {
        source: &source,
        out: &outs[2],
        recipe: &recipe,
        samples: &samples,
        backend: backend(2),
        memory: None,
        resume: true,
        statistics: Statistics::Forget,
        stop: &stop,
    };
    let resumed = quantize(&job, &mut |e| {
        if let Event::Layer { found: f, .. } = e {
            found.push(f);
        }
    })
    .unwrap();
    assert!(found[0] && !found[1..].contains(&true), "{found:?}");
    assert_eq!(resumed.modules, whole.modules);
    assert!(files(&outs[0]) == files(&outs[2]), "breaks");
}

#[test]
fn other_settings_do_not_resume() {
    let dir = dense("tiny", "settings-source");
    let source = Checkpoint::open(&dir).unwrap();
    let (first, samples) = (recipe(), samples(256));
    let out = fresh("settings");
    Run { stop_after: Some(0), ..run(&source, &first, &samples) }.to(&out).unwrap();
    let other = Recipe { damp: 0.02, ..first };
    let error = Run { resume: true, ..run(&source, &other, &samples) }.to(&out).unwrap_err().to_string();
    assert!(error.contains("damp"), "{error}");
    // begun anew it does not look at what is there
    run(&source, &other, &samples).to(&out).unwrap();
}

/// `|x·(W - Wq)|² / |x·W|²` from the rows themselves, in plain loops.
fn output_error(rows: &[f32], weight: &[f32], stored: &[f32], k: usize) -> f64 {
    let (mut error, mut all) = (0.0, 0.0);
    for x in rows.chunks_exact(k) {
        for (w, q) in weight.chunks_exact(k).zip(stored.chunks_exact(k)) {
            let dot = |v: &mut dyn Iterator<Item = f64>| v.zip(x).map(|(w, x)| w * f64::from(*x)).sum::<f64>();
            let y = dot(&mut w.iter().map(|v| f64::from(*v)));
            let d = dot(&mut w.iter().zip(q).map(|(w, q)| f64::from(*q) - f64::from(*w)));
            error += d * d;
            all += y * y;
        }
    }
    error / all
}

#[test]
fn reported_errors_are_those_of_the_file() {
    let dir = dense("tiny", "report-source");
    let source = Checkpoint::open(&dir).unwrap();
    let (recipe, samples) = (recipe(), samples(256));
    let out = fresh("report");
    let outcome = run(&source, &recipe, &samples).to(&out).unwrap();
    let written = Checkpoint::open(&out).unwrap();
    let config = DecoderConfig::from_json("config.json", source.config()).unwrap();
    // the first layer's query sees the same in both models
    let mut layer = LoneLayer::load(&source, &config, 0, backend(1), LoadOptions::default()).unwrap();
    let hidden = embed(&source, &config, &samples.concat()).unwrap();
    let lengths: Vec<usize> = samples.iter().map(Vec::len).collect();
    let mut rows = vec![];
    layer.observe(&hidden, &lengths, 0..1, false, &|_, _| true, &mut |_, _, seen| rows.extend_from_slice(seen));
    for part in ["q_proj", "k_proj", "v_proj"] {
        let name = format!("model.layers.0.self_attn.{part}");
        let quality: &ModuleQuality = outcome.modules.iter().find(|m| m.module == name).unwrap();
        let (k, n) = (quality.in_features, quality.out_features);
        let dense = match source.linear(&name, k, n, BiasRule::Absent).unwrap() {
            LinearWeight::Dense { weight, .. } => weight.to_f32(),
            LinearWeight::Quantized(_) => panic!("{name}"),
        };
        let LinearWeight::Quantized(m) = written.linear(&name, k, n, BiasRule::Absent).unwrap() else { panic!("{name}") };
        let (mut codes, mut stored) = (vec![], vec![0.0f32; k * n]);
        m.dequantize_columns(0..n, &mut codes, &mut stored);
        let squares = |f: &dyn Fn(usize) -> f64| (0..k * n).map(|i| f(i) * f(i)).sum::<f64>();
        let weight_error = squares(&|i| f64::from(stored[i]) - f64::from(dense[i])) / squares(&|i| f64::from(dense[i]));
        assert!((quality.weight_error / weight_error - 1.0).abs() < 1e-6, "{name}");
        let expected = output_error(&rows, &dense, &stored, k);
        assert!((quality.output_error / expected - 1.0).abs() < 1e-6, "{name}: {} {expected}", quality.output_error);
        assert!((1e-4..0.1).contains(&quality.output_error), "{name}: {}", quality.output_error);
        assert_eq!((quality.rows, quality.dropped_rows), (lengths.iter().sum::<usize>() as u64, 0));
    }
    // a group that is damaged is found and named
    let path = out.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 1;
    bytes[at] ^= 0x11;
    let damaged = fresh("report-damaged");
    std::fs::create_dir_all(&damaged).unwrap();
    for (name, content) in files(&out) {
        std::fs::write(damaged.join(&name), if name == "model.safetensors" { &bytes } else { &content }).unwrap();
    }
    let certificate = verify(&written, &Checkpoint::open(&damaged).unwrap(), &serially, &mut |_, _| ()).unwrap();
    assert!(!certificate.equal() && certificate.differences.len() == 1, "{certificate:?}");
}

/// What a later module sees is what the quantized modules before it give, biases included.
#[test]
fn later_modules_see_biases() {
    let source = Checkpoint::open(&common::fixture("llama-biases-dense")).unwrap();
    let config = DecoderConfig::from_json("config.json", source.config()).unwrap();
    let samples = samples(config.vocab_size as u32);
    let out = fresh("biases");
    let outcome = run(&source, &recipe(), &samples).to(&out).unwrap();
    let written = Checkpoint::open(&out).unwrap();
    let lengths: Vec<usize> = samples.iter().map(Vec::len).collect();
    let mut hidden = embed(&written, &config, &samples.concat()).unwrap();
    LoneLayer::load(&written, &config, 0, backend(2), LoadOptions::default()).unwrap().run(&mut hidden, &lengths);
    let mut layer = LoneLayer::load(&written, &config, 1, backend(2), LoadOptions::default()).unwrap();
    for (step, part) in [(0, "self_attn.q_proj"), (1, "self_attn.o_proj"), (2, "mlp.up_proj"), (3, "mlp.down_proj")] {
        let name = format!("model.layers.1.{part}");
        let quality = outcome.modules.iter().find(|m| m.module == name).unwrap();
        let (k, n) = (quality.in_features, quality.out_features);
        let mut rows = vec![];
        layer.observe(&hidden, &lengths, step..step + 1, false, &|_, _| true, &mut |_, _, seen| rows.extend_from_slice(seen));
        let LinearWeight::Dense { weight, .. } = source.linear(&name, k, n, BiasRule::Optional).unwrap() else { panic!("{name}") };
        let LinearWeight::Quantized(m) = written.linear(&name, k, n, BiasRule::Optional).unwrap() else { panic!("{name}") };
        let (mut codes, mut stored) = (vec![], vec![0.0f32; k * n]);
        m.dequantize_columns(0..n, &mut codes, &mut stored);
        let expected = output_error(&rows, &weight.to_f32(), &stored, k);
        assert!((quality.output_error / expected - 1.0).abs() < 1e-6, "{name}: {} {expected}", quality.output_error);
    }
}

#[test]
fn every_format_is_read_and_runs() {
    let dir = dense("tiny", "formats-source");
    let source = Checkpoint::open(&dir).unwrap();
    let samples = samples(256);
    let ids: Vec<u32> = (0..40).map(|i| i * 13 % 256).collect();
    let base = load(&dir, Activations::Strict);
    let cases = [
        ("gptq", 4, true, Order::Gar),
        ("gptq", 3, false, Order::Desc),
        ("gptq_v2", 2, false, Order::Static),
        ("gptq_p", 5, false, Order::None),
        ("awq", 4, false, Order::Gar),
        ("compressed-tensors", 8, true, Order::Gar),
    ];
    for (format, bits, sym, order) in cases {
        let target: Target = format.parse().unwrap();
        let recipe = Recipe { bits, sym, target, order, ..recipe() };
        let out = fresh(&format!("formats-{format}-{bits}"));
        let outcome = run(&source, &recipe, &samples).to(&out).unwrap_or_else(|e| panic!("{format} {bits}: {e}"));
        let written = Checkpoint::open(&out).unwrap();
        assert!(written.warnings().is_empty(), "{format}: {:?}", written.warnings());
        assert_eq!(written.quantized_modules().len(), outcome.modules.len());
        assert!(all_logits(&load(&out, Activations::Strict), &ids).iter().all(|v| v.is_finite()));
        let model = load(&out, Activations::Strict);
        let d = divergence(&model, &base, &ids, None, billfish_quantize::Protocol::Window(20), &mut |_, _| ()).unwrap();
        // wide codes hardly change a model
        assert!(bits < 8 || d.kld_mean < 1e-3, "{format}: {}", d.kld_mean);
        assert!(d.kld_mean < 1.0, "{format} {bits}: {}", d.kld_mean);
    }
}

#[test]
fn rules_and_methods() {
    let dir = dense("tiny", "rules-source");
    let source = Checkpoint::open(&dir).unwrap();
    let samples = samples(256);
    let rules = serde_json::json!({
        "-:.*k_proj": {},
        "+:.*down_proj": {"bits": 8, "group_size": 64},
    });
    let recipe_with = Recipe { dynamic: Dynamic::parse("rules", &rules).unwrap(), ..recipe() };
    let out = fresh("rules");
    let outcome = run(&source, &recipe_with, &samples).to(&out).unwrap();
    assert!(outcome.modules.iter().all(|m| !m.module.ends_with("k_proj")));
    for m in &outcome.modules {
        assert_eq!((m.bits, m.group_size), if m.module.ends_with("down_proj") { (8, 64) } else { (4, 32) }, "{}", m.module);
    }
    assert!(load(&out, Activations::Exact).modules().iter().any(|m| m.module.ends_with("k_proj") && m.bits.is_none()));

    let mean = |recipe: &Recipe, name: &str| {
        let outcome = run(&source, recipe, &samples).to(&fresh(name)).unwrap();
        outcome.modules.iter().map(|m| m.output_error).sum::<f64>() / outcome.modules.len() as f64
    };
    let rtn = mean(&Recipe { method: Method::Rtn, search: Search::MinMax, ..recipe() }, "rules-rtn");
    let plain = mean(&Recipe { search: Search::MinMax, sweeps: 0, ..recipe() }, "rules-gptq");
    let best = mean(&recipe(), "rules-best");
    assert!(best < plain && plain < rtn, "{best} {plain} {rtn}");
    let nothing = Recipe { dynamic: Dynamic::parse("rules", &serde_json::json!({"-:model.layers": {}})).unwrap(), ..recipe() };
    let error = run(&source, &nothing, &samples).to(&fresh("rules-nothing")).unwrap_err().to_string();
    assert!(error.contains("leave something to quantize"), "{error}");
    // without a text only what needs none
    assert!(run(&source, &recipe(), &[]).to(&fresh("rules-none")).is_err());
    let rtn = Recipe { method: Method::Rtn, ..recipe() };
    run(&source, &rtn, &[]).to(&fresh("rules-rtn-none")).unwrap();
}

#[test]
fn the_head_and_what_cannot_be() {
    let dir = dense("tiny", "head-source");
    let source = Checkpoint::open(&dir).unwrap();
    let samples = samples(256);
    let recipe_head = Recipe { lm_head: true, bits: 8, ..recipe() };
    let out = fresh("head");
    run(&source, &recipe_head, &samples).to(&out).unwrap();
    let written = Checkpoint::open(&out).unwrap();
    assert!(written.has_codes("lm_head") && written.warnings().is_empty(), "{:?}", written.warnings());
    let left = Dynamic::parse("rules", &serde_json::json!({"-:lm_head": {}})).unwrap();
    let recipe_left = Recipe { dynamic: left, ..recipe_head.clone() };
    let out = fresh("head-left");
    run(&source, &recipe_left, &samples).to(&out).unwrap();
    assert!(!Checkpoint::open(&out).unwrap().has_codes("lm_head"), "a rule leaves it dense");
    // once is enough
    let error = run(&written, &recipe(), &samples).to(&fresh("head-again")).unwrap_err().to_string();
    assert!(error.contains("quantized already"), "{error}");
    let error = run(&source, &recipe(), &[vec![1]]).to(&fresh("head-short")).unwrap_err().to_string();
    assert!(error.contains("two tokens"), "{error}");
    let error = run(&source, &recipe(), &[vec![1, 1_000_000]]).to(&fresh("head-token")).unwrap_err().to_string();
    assert!(error.contains("1000000"), "{error}");
}

#[test]
fn a_layer_by_itself_is_the_layer_of_the_model() {
    for spec in ["tiny", "tiny-moe"] {
        let dir = dense(spec, &format!("lone-{spec}"));
        let source = Checkpoint::open(&dir).unwrap();
        let config = DecoderConfig::from_json("config.json", source.config()).unwrap();
        let lengths = [9, 1, 30];
        let ids: Vec<u32> = (0..40).map(|i| i * 29 % 256).collect();
        let mut rows = embed(&source, &config, &ids).unwrap();
        for index in 0..config.layers {
            let mut layer = LoneLayer::load(&source, &config, index, backend(2), LoadOptions::default()).unwrap();
            // looking changes nothing, and each group sees as many inputs as its modules have
            for step in 0..layer.steps() {
                let sizes: Vec<usize> = layer.groups(step).iter().map(|g| g.first().map_or(1, |l| l.in_features)).collect();
                let mut h: Vec<Hessian> = sizes.iter().map(|&k| Hessian::new(k)).collect();
                layer.observe(&rows, &lengths, step..step + 1, false, &|_, _| true, &mut |_, g, seen| h[g].add(&backend(1), seen));
                assert!(h.iter().map(Hessian::rows).sum::<u64>() >= 40);
            }
            layer.run(&mut rows, &lengths);
        }
        let normed = billfish_models::final_norm(&source, &config, &backend(1), &rows).unwrap();
        // the model's own logits of the last sequence, from the same normed rows
        let model = load(&dir, Activations::Exact);
        let logits = all_logits(&model, &ids[10..]);
        let hidden = config.hidden_size;
        let head = match source.info("lm_head.weight") {
            Some(_) => source.dense("lm_head.weight", &[config.vocab_size, hidden]).unwrap().to_f32(),
            None => source.dense("model.embed_tokens.weight", &[config.vocab_size, hidden]).unwrap().to_f32(),
        };
        let row = &normed[39 * hidden..];
        for (token, logit) in logits[29 * config.vocab_size..].iter().enumerate() {
            let expected: f64 = row.iter().zip(&head[token * hidden..]).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            assert!((f64::from(*logit) - expected).abs() < 1e-4, "{spec} {token}: {logit} {expected}");
        }
    }
}
