//! AWQ: folding factors changes nothing, the search finds what a plain one finds, and what is written is what was measured.

mod common;

use billfish_formats::{BiasRule, Checkpoint, Dynamic, LinearWeight, Target, convert};
use billfish_kernels::{Activations, Backend, Isa, PackedDense, Weight};
use billfish_models::{DecoderConfig, FoldSite, Linear, LoadOptions, LoneLayer, Maker, embed};
use billfish_quantize::awq::{Folding, Magnitudes, ScaleSearch};
use billfish_quantize::gptq::{Grid, Hessian, Order, Search, Settings};
use billfish_quantize::{
    Event, Job, Method, Outcome, Protocol, QuantizeError, Recipe, Sequential, Statistics, divergence, least_memory, quantize, synth,
};
use billfish_tensor::{DType, DenseTensor};
use common::{Fresh, files, fixture, fresh, load};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn backend(threads: usize) -> Arc<Backend> {
    Arc::new(Backend::new(Isa::choose(None).unwrap(), threads).unwrap())
}

/// Numbers of 0 to 1 that look random.
fn unit(i: usize) -> f64 {
    let z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((z ^ (z >> 32)) >> 11) as f64 / (1u64 << 53) as f64
}

fn dense(spec: &str, name: &str) -> Fresh {
    let dir = fresh(name);
    synth(&spec.parse().unwrap(), &dir, 1, true, 7, &[], &mut |_, _| ()).unwrap();
    dir
}

/// The dense folder that a quantized fixture stands for.
fn dequantized(name: &str) -> Fresh {
    let dir = fresh(&format!("awq-{name}"));
    convert(&Checkpoint::open(&fixture(name)).unwrap(), &dir, Target::Dense(DType::F32), false, &mut |_, _| ()).unwrap();
    dir
}

fn dense_weight(source: &Checkpoint, l: &Linear) -> (Vec<f32>, Option<Vec<f32>>) {
    match source.linear(&l.name, l.in_features, l.out_features, BiasRule::Optional).unwrap() {
        LinearWeight::Dense { weight, bias } => (weight.to_f32(), bias),
        LinearWeight::Quantized(_) => panic!("{}", l.name),
    }
}

/// Runs every layer of a folder as it is and with factors folded at every site, nothing quantized, and compares. `kept` says
/// which modules are treated as such that stay dense. Returns how many sites there were.
fn folded_equals_plain(dir: &Path, kept: &dyn Fn(&Linear) -> bool) -> usize {
    let source = Checkpoint::open(dir).unwrap();
    let config = DecoderConfig::from_json("config.json", source.config()).unwrap();
    let options = LoadOptions { activations: Activations::Strict, ..LoadOptions::default() };
    let lengths = [17, 5];
    let ids: Vec<u32> = (0..22).map(|i| i * 29 % config.vocab_size as u32).collect();
    let mut rows = embed(&source, &config, &ids).unwrap();
    let mut count = 0;
    for index in 0..config.layers {
        let one = || LoneLayer::load(&source, &config, index, backend(2), options).unwrap();
        let (mut plain, mut folded) = (one(), one());
        let mut folding = Folding::default();
        let sites = plain.fold_sites();
        for (at, site) in sites.iter().enumerate() {
            let place = folding.place(&source, site, kept).unwrap();
            let wanted: Vec<f64> = (0..site.maker.channels()).map(|c| 0.4 * 6f64.powf(unit(c + 1000 * at))).collect();
            let scales = place.storable(&wanted);
            let other = scales.iter().filter(|s| **s != 1.0).count();
            // of a fused gate and up only the second half is read
            assert!(4 * other > scales.len(), "{}: {other} of {}", site.maker.name(), scales.len());
            folding.take(place, &scales);
            count += 1;
        }
        // what would be quantized takes its factors in full precision
        for linear in (0..4).flat_map(|step| plain.groups(step)).flatten().filter(|l| !kept(l)) {
            let (weight, bias) = dense_weight(&source, &linear);
            let weight = folding.weight(&linear, &weight);
            let weight = DenseTensor::from_f32(vec![linear.out_features, linear.in_features], &weight).unwrap();
            let packed = PackedDense::new(&weight, folding.bias(&linear).or(bias)).unwrap();
            folded.replace(&linear.name, Weight::Dense(Arc::new(packed)));
        }
        folding.apply(&source, &mut folded).unwrap();
        let mut other = rows.clone();
        plain.run(&mut rows, &lengths);
        folded.run(&mut other, &lengths);
        let largest = rows.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let worst = rows.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // single precision over a few sums of some hundred products
        assert!(worst < 1e-5 * largest, "{} layer {index}: {worst} of {largest}", dir.display());
    }
    count
}

#[test]
fn folding_changes_nothing() {
    let per_layer = 4;
    for name in ["llama-biases-dense", "glm4-dense", "mistral-nowindow-dense", "qwen2-window-dense", "qwen3-headdim-dense"] {
        let layers = Checkpoint::open(&fixture(name)).unwrap().config()["num_hidden_layers"].as_u64().unwrap() as usize;
        assert_eq!(folded_equals_plain(&fixture(name), &|_| false), per_layer * layers, "{name}");
        // modules that rules leave dense, in front of others and behind them
        folded_equals_plain(&fixture(name), &|l| l.name.contains(".v_proj") || l.name.contains(".up_proj"));
        folded_equals_plain(&fixture(name), &|l| l.name.contains("q_proj") || l.name.contains(".o_proj") || l.name.contains("down"));
    }
    // experts: beside the attention's two and the shared norm one for each expert
    assert!(folded_equals_plain(&fixture("glm4moe-dense"), &|_| false) > 8);
    folded_equals_plain(&dequantized("qwen2moe-w4-sym-g32"), &|_| false);
    folded_equals_plain(&dequantized("mixtral-w4-sym-g32-classic"), &|l| l.name.ends_with("experts.1.w3"));
}

#[test]
fn experts_in_one_tensor_take_no_factors() {
    let source = Checkpoint::open(&fixture("qwen2moe-stacked-dense")).unwrap();
    let config = DecoderConfig::from_json("config.json", source.config()).unwrap();
    let layer = LoneLayer::load(&source, &config, 0, backend(1), LoadOptions::default()).unwrap();
    let steps: Vec<usize> = layer.fold_sites().iter().map(|s: &FoldSite| s.step).collect();
    assert_eq!(steps, [0, 1]);
}

/// AWQ's scale search as its paper has it: each weight's nearest level between the smallest and the largest of its group,
/// the error from the rows themselves.
fn textbook(w: &[f32], x: &[f32], k: usize, bits: u32, group: usize) -> (f64, Vec<f64>, f64) {
    let rows = x.len() / k;
    let mean: Vec<f64> = (0..k).map(|i| x.iter().skip(i).step_by(k).map(|v| f64::from(v.abs())).sum::<f64>() / rows as f64).collect();
    let largest = f64::from((1 << bits) - 1);
    let error_of = |s: &[f64]| -> f64 {
        let mut total = 0.0;
        for row in w.chunks_exact(k) {
            let mut change = vec![0.0; k];
            for from in (0..k).step_by(group) {
                let at = from..(from + group).min(k);
                let scaled: Vec<f64> = at.clone().map(|i| f64::from(row[i]) * s[i]).collect();
                let (low, high) = scaled.iter().fold((0.0f64, 0.0f64), |(l, h), v| (l.min(*v), h.max(*v)));
                let step = half::f16::from_f64((high - low) / largest).to_f64();
                let zero = (-low / step).round_ties_even().clamp(0.0, largest);
                for (i, v) in at.zip(&scaled) {
                    let code = ((v / step).round_ties_even() + zero).clamp(0.0, largest);
                    change[i] = (code - zero) * step / s[i] - f64::from(row[i]);
                }
            }
            for x in x.chunks_exact(k) {
                total += x.iter().zip(&change).map(|(x, c)| f64::from(*x) * c).sum::<f64>().powi(2);
            }
        }
        total
    };
    let plain = error_of(&vec![1.0; k]);
    let mut best = (0.0, vec![1.0; k], plain);
    for n in 1..20 {
        let alpha = f64::from(n) / 20.0;
        let powers: Vec<f64> = mean.iter().map(|m| m.powf(alpha)).collect();
        let (most, least) = powers.iter().fold((0.0f64, f64::INFINITY), |(h, l), p| (h.max(*p), l.min(*p)));
        let s: Vec<f64> = powers.iter().map(|p| p / (most * least).sqrt()).collect();
        let error = error_of(&s);
        if error < best.2 {
            best = (alpha, s, error);
        }
    }
    (best.0, best.1, best.2 / plain)
}

#[test]
fn the_search_finds_what_a_plain_one_finds() {
    let (n, k, rows) = (24, 96, 150);
    let mut alphas = vec![];
    for (seed, spread) in [(1, 0.0), (2, 0.6), (3, 1.2), (4, 2.0)] {
        let number = |i: usize| (0..4).map(|j| unit(seed * 1_000_003 + 4 * i + j)).sum::<f64>() - 2.0;
        let size: Vec<f64> = (0..k).map(|i| (spread * number(i)).exp()).collect();
        let x: Vec<f32> = (0..rows * k).map(|i| (number(10_000 + i) * size[i % k] + 0.2 * number(90_000 + i / k)) as f32).collect();
        let w: Vec<f32> = (0..n * k).map(|i| (number(300_000 + i) * 0.05) as f32).collect();
        for (bits, group) in [(4, 32), (3, 40)] {
            let grid = Grid { bits, sym: false, signed: false, lowest_zero: 0, stored: DType::F16 };
            let settings = Settings {
                grid,
                group_size: Some(group),
                order: Order::None,
                search: Search::MinMax,
                damp: 0.01,
                propagate: false,
                sweeps: 0,
                clip: false,
            };
            let (mut seen, mut hessian) = (Magnitudes::new(k), Hessian::new(k));
            seen.add(&x);
            hessian.add(&backend(2), &x);
            let mut search = ScaleSearch::new(&[&seen], 1, k, &|i| i, &<[f64]>::to_vec);
            search.add(&backend(2), &hessian, &[(w.clone(), settings)], &|i| i);
            let found = search.found();
            let (alpha, expected, error) = textbook(&w, &x, k, bits, group);
            assert_eq!(found.alpha, alpha, "seed {seed}, {bits} bits");
            assert!(found.scales.iter().zip(&expected).all(|(a, b)| (a / b - 1.0).abs() < 1e-12));
            assert!((found.error / error - 1.0).abs() < 1e-9, "{} {error}", found.error);
            alphas.push(alpha);
        }
    }
    assert!(alphas.iter().any(|a| *a > 0.2), "{alphas:?}: the inputs of some differ in size");
}

fn samples(vocabulary: u32) -> Vec<Vec<u32>> {
    (0..12u32).map(|s| (0..20 + 3 * s).map(|i| (i * i * 31 + s * 77 + i * 5) % vocabulary).collect()).collect()
}

fn recipe(method: Method) -> Recipe {
    Recipe { method, group_size: Some(32), fallback_rows: 1, ..Recipe::default() }
}

struct Run<'a> {
    source: &'a Checkpoint,
    recipe: &'a Recipe,
    threads: usize,
    resume: bool,
    stop_after: Option<usize>,
    memory: Option<u64>,
    statistics: Statistics<'a>,
}

impl Run<'_> {
    fn to(&self, out: &Path) -> Outcome {
        self.try_to(out).unwrap()
    }

    fn try_to(&self, out: &Path) -> Result<Outcome, QuantizeError> {
        let stop = AtomicBool::new(false);
        let vocabulary = self.source.config()["vocab_size"].as_u64().unwrap() as u32;
        let job = Job {
            source: self.source,
            out,
            recipe: self.recipe,
            samples: &samples(vocabulary),
            backend: backend(self.threads),
            resume: self.resume,
            memory: self.memory,
            statistics: self.statistics,
            stop: &stop,
        };
        quantize(&job, &mut |event| {
            if matches!(event, Event::Layer { index, .. } if self.stop_after == Some(index)) {
                stop.store(true, Ordering::Relaxed);
            }
        })
    }
}

fn run<'a>(source: &'a Checkpoint, recipe: &'a Recipe) -> Run<'a> {
    Run { source, recipe, threads: 2, resume: false, stop_after: None, memory: None, statistics: Statistics::Forget }
}

#[test]
fn threads_and_breaks_change_no_byte() {
    let source = Checkpoint::open(&fixture("glm4moe-dense")).unwrap();
    let recipe = recipe(Method::Awq);
    let outs = ["two", "one", "broken"].map(|n| fresh(&format!("awq-breaks-{n}")));
    let run = run(&source, &recipe);
    run.to(&outs[0]);
    Run { threads: 1, ..run }.to(&outs[1]);
    assert!(files(&outs[0]) == files(&outs[1]), "threads");
    Run { stop_after: Some(0), ..run }.to(&outs[2]);
    Run { resume: true, ..run }.to(&outs[2]);
    assert!(files(&outs[0]) == files(&outs[2]), "breaks");
}

/// Bytes of a job, the least that it takes.
fn least(source: &Checkpoint, recipe: &Recipe) -> u64 {
    let stop = AtomicBool::new(false);
    let samples = samples(source.config()["vocab_size"].as_u64().unwrap() as u32);
    let (out, backend, statistics) = (Path::new("not-made"), backend(1), Statistics::Forget);
    let job = Job { source, out, recipe, samples: &samples, backend, memory: None, resume: false, statistics, stop: &stop };
    least_memory(&job).unwrap()
}

/// Factors come from the same sums whether all of them are there at once, or one after another and from rows on disk.
#[test]
fn memory_changes_no_byte() {
    for (name, method) in [("glm4moe-dense", Method::Awq), ("llama-biases-dense", Method::AwqGptq)] {
        let source = Checkpoint::open(&fixture(name)).unwrap();
        let recipe = recipe(method);
        let outs = ["all", "least"].map(|n| fresh(&format!("awq-memory-{name}-{n}")));
        let run = run(&source, &recipe);
        let whole = run.to(&outs[0]);
        let least = least(&source, &recipe);
        Run { memory: Some(least), ..run }.to(&outs[1]);
        assert!(files(&outs[0]) == files(&outs[1]), "{name}");
        assert!(whole.modules.iter().any(|m| m.scaling.as_ref().unwrap().alpha > 0.0), "{name}: factors of some");
        let message = Run { memory: Some(least - 1), ..run }.try_to(&fresh("awq-memory-none")).unwrap_err().to_string();
        assert!(message.contains("memory"), "{message}");
        // a layer is loaded whole before anything of it is quantized
        assert!(least > self::least(&source, &Recipe { method: Method::Gptq, ..recipe }));
    }
}

/// With the rows of the dense network, factors and errors are those of its weights, and what is written computes nearly the
/// same as what it was made from: inputs that were not divided would show.
#[test]
fn rows_of_the_dense_network() {
    let dir = with_large_inputs(&fixture("glm4moe-dense"), "awq-dense-rows-source");
    let source = Checkpoint::open(&dir).unwrap();
    let base = load(&dir, Activations::Strict);
    let ids: Vec<u32> = (0..120).map(|i| i * 13 % 256).collect();
    let kld =
        |out: &Path| divergence(&load(out, Activations::Strict), &base, &ids, None, Protocol::Window(40), &mut |_, _| ()).unwrap().kld_mean;
    for method in [Method::Awq, Method::AwqGptq] {
        let of = |sequential, bits| Recipe { sequential, bits, ..recipe(method) };
        let outs = ["dense", "quantized"].map(|n| fresh(&format!("awq-rows-{n}")));
        let dense = run(&source, &of(Sequential::Dense, 8)).to(&outs[0]);
        let quantized = run(&source, &of(Sequential::Quantized, 8)).to(&outs[1]);
        for (a, b) in dense.modules.iter().zip(&quantized.modules) {
            assert_eq!(a.module, b.module);
            let ratio = a.output_error / b.output_error;
            // with 8 bits both networks are nearly the same
            assert!((0.5..2.0).contains(&ratio), "{}: {} {}", a.module, a.output_error, b.output_error);
        }
        let [a, b] = [&outs[0], &outs[1]].map(|out| kld(out));
        assert!(a < 2.0 * b, "{method:?}: {a} {b}");
        assert!(dense.modules.iter().any(|m| m.scaling.as_ref().unwrap().alpha > 0.0), "factors of some");
    }
}

/// Statistics hold no magnitudes.
#[test]
fn statistics_are_refused() {
    let source = Checkpoint::open(&fixture("llama-biases-dense")).unwrap();
    let (out, stats) = (fresh("awq-stats-out"), fresh("awq-stats"));
    for method in [Method::Awq, Method::AwqGptq] {
        for statistics in [Statistics::Save(&stats), Statistics::Use(&stats)] {
            let recipe = recipe(method);
            let message = Run { statistics, ..run(&source, &recipe) }.try_to(&out).unwrap_err().to_string();
            assert!(message.contains("statistics") && message.contains(method.name()) && message.contains("gptq"), "{message}");
        }
    }
    assert!(!stats.exists() && !out.exists());
}

/// An order that the format has no place for is known before anything is computed.
#[test]
fn what_the_format_cannot_hold_is_refused_first() {
    let source = Checkpoint::open(&fixture("llama-biases-dense")).unwrap();
    let out = fresh("awq-desc");
    let recipe = Recipe { order: Order::Desc, target: Target::Awq, sym: false, ..recipe(Method::Awq) };
    let mut begun = false;
    let stop = AtomicBool::new(false);
    let samples = samples(64);
    let (backend, statistics) = (backend(1), Statistics::Forget);
    let job = Job {
        source: &source,
        out: &out,
        recipe: &recipe,
        samples: &samples,
        backend,
        memory: None,
        resume: false,
        statistics,
        stop: &stop,
    };
    let message = quantize(&job, &mut |_| begun = true).unwrap_err().to_string();
    assert!(!begun && message.contains("awq") && message.contains("order"), "{message}");
    assert!(!out.with_file_name(format!(".{}.quantizing", out.file_name().unwrap().to_str().unwrap())).exists());
}

#[test]
fn every_format_is_better_than_rounding() {
    let dir = dense("tiny", "awq-formats-source");
    let source = Checkpoint::open(&dir).unwrap();
    let base = load(&dir, Activations::Strict);
    let ids: Vec<u32> = (0..120).map(|i| i * 13 % 256).collect();
    let kld = |recipe: &Recipe, name: &str| {
        let out = fresh(name);
        let outcome = run(&source, recipe).to(&out);
        let written = Checkpoint::open(&out).unwrap();
        assert!(written.warnings().is_empty(), "{name}: {:?}", written.warnings());
        assert_eq!(written.quantized_modules().len(), outcome.modules.len());
        divergence(&load(&out, Activations::Strict), &base, &ids, None, Protocol::Window(40), &mut |_, _| ()).unwrap().kld_mean
    };
    for (format, bits, sym) in [("awq", 4, false), ("awq", 4, true), ("gptq", 3, true), ("gptq_v2", 2, false)] {
        let target: Target = format.parse().unwrap();
        let with = |method, search| Recipe { bits, sym, target, search, ..recipe(method) };
        let rounded = kld(&with(Method::Rtn, Search::MinMax), &format!("awq-rtn-{format}-{bits}-{sym}"));
        let found = kld(&with(Method::Awq, Search::Hessian), &format!("awq-awq-{format}-{bits}-{sym}"));
        assert!(found < 0.9 * rounded, "{format} {bits}: {found} {rounded}");
        let both = kld(&with(Method::AwqGptq, Search::Hessian), &format!("awq-both-{format}-{bits}-{sym}"));
        assert!(both < 0.9 * rounded, "{format} {bits}: {both} {rounded}");
    }
}

/// The columns of a written module, `[N, K]`.
fn stored(written: &Checkpoint, l: &Linear) -> Vec<f32> {
    let LinearWeight::Quantized(m) = written.linear(&l.name, l.in_features, l.out_features, BiasRule::Optional).unwrap() else {
        panic!("{}", l.name)
    };
    let (mut codes, mut out) = (vec![], vec![0.0; l.in_features * l.out_features]);
    m.dequantize_columns(0..l.out_features, &mut codes, &mut out);
    out
}

/// Old over new of a tensor of one dimension.
fn ratio(source: &Checkpoint, written: &Checkpoint, tensor: &str, size: usize) -> Vec<f64> {
    let read = |c: &Checkpoint| c.dense(tensor, &[size]).unwrap().to_f32();
    read(source).iter().zip(read(written)).map(|(a, b)| f64::from(*a) / f64::from(b)).collect()
}

/// The reported errors are those of the source's weights under the inputs of the source: norms and biases of the written
/// folder say what the factors were.
#[test]
fn reported_errors_are_those_of_the_file() {
    let source = Checkpoint::open(&fixture("llama-biases-dense")).unwrap();
    let config = DecoderConfig::from_json("config.json", source.config()).unwrap();
    let out = fresh("awq-report");
    let outcome = run(&source, &Recipe { target: Target::GptqV2, sym: false, ..recipe(Method::Awq) }).to(&out);
    let written = Checkpoint::open(&out).unwrap();
    let samples = samples(config.vocab_size as u32);
    let lengths: Vec<usize> = samples.iter().map(Vec::len).collect();
    let mut layer = LoneLayer::load(&source, &config, 0, backend(1), LoadOptions::default()).unwrap();
    let hidden = embed(&source, &config, &samples.concat()).unwrap();
    let mut rows = vec![];
    layer.observe(&hidden, &lengths, 0..1, false, &|_, _| true, &mut |_, _, seen| rows.extend_from_slice(seen));
    let inputs = ratio(&source, &written, "model.layers.0.input_layernorm.weight", config.hidden_size);
    let mut factors = 0;
    for l in &layer.groups(0)[0] {
        let quality = outcome.modules.iter().find(|m| m.module == l.name).unwrap();
        let scaling = quality.scaling.as_ref().unwrap();
        assert_eq!((scaling.maker.as_str(), &scaling.left_out), ("model.layers.0.input_layernorm", &None));
        assert!(scaling.alpha == 0.0 && scaling.error == 1.0 || scaling.alpha > 0.0 && scaling.error < 1.0, "{scaling:?}");
        let outputs = match l.name.ends_with("v_proj") {
            true => ratio(&source, &written, &format!("{}.bias", l.name), l.out_features),
            false => vec![1.0; l.out_features],
        };
        factors += inputs.iter().chain(&outputs).filter(|s| **s != 1.0).count();
        let (weight, _) = dense_weight(&source, l);
        let k = l.in_features;
        let error: Vec<f64> = stored(&written, l)
            .iter()
            .enumerate()
            .map(|(at, q)| f64::from(*q) * outputs[at / k] / inputs[at % k] - f64::from(weight[at]))
            .collect();
        let weight: Vec<f64> = weight.iter().map(|v| f64::from(*v)).collect();
        let squares = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>();
        let through = |v: &[f64]| -> f64 {
            let dot = |x: &[f32], w: &[f64]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * w).sum::<f64>().powi(2);
            rows.chunks_exact(k).map(|x| v.chunks_exact(k).map(|w| dot(x, w)).sum::<f64>()).sum()
        };
        assert!((quality.weight_error * squares(&weight) / squares(&error) - 1.0).abs() < 1e-6, "{}", l.name);
        // rows with and without factors are computed in single precision
        assert!((quality.output_error * through(&weight) / through(&error) - 1.0).abs() < 1e-5, "{}", l.name);
    }
    assert!(factors > 0, "factors of some");
}

/// A copy of a folder of one file in which one of 32 weights of the layers' norms is 8, so that some inputs are large.
fn with_large_inputs(from: &Path, name: &str) -> Fresh {
    let dir = fresh(name);
    std::fs::create_dir_all(&dir).unwrap();
    for (file, mut bytes) in files(from) {
        if file == "model.safetensors" {
            let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
            for (_, tensor) in header.as_object().unwrap().iter().filter(|(name, _)| name.ends_with("layernorm.weight")) {
                assert_eq!(tensor["dtype"], "F16");
                let [from, to] = [0, 1].map(|i| tensor["data_offsets"][i].as_u64().unwrap() as usize + 8 + len);
                let eight = half::f16::from_f32(8.0).to_le_bytes();
                bytes[from..to].chunks_exact_mut(64).for_each(|c| c[..2].copy_from_slice(&eight));
            }
        }
        std::fs::write(dir.join(file), bytes).unwrap();
    }
    dir
}

/// What stays dense takes powers of two, to the last bit.
#[test]
fn what_stays_dense_loses_nothing() {
    let dir = with_large_inputs(&fixture("glm4moe-dense"), "awq-dense-source");
    let source = Checkpoint::open(&dir).unwrap();
    let rules = serde_json::json!({"-:.*k_proj": {}});
    let dynamic = Dynamic::parse("rules", &rules).unwrap();
    let out = fresh("awq-dense");
    run(&source, &Recipe { dynamic, bits: 3, search: Search::MinMax, ..recipe(Method::Awq) }).to(&out);
    let written = Checkpoint::open(&out).unwrap();
    let config = DecoderConfig::from_json("config.json", source.config()).unwrap();
    let hidden = config.hidden_size;
    let mut changed = 0;
    for index in 0..config.layers {
        let layer = LoneLayer::load(&source, &config, index, backend(1), LoadOptions::default()).unwrap();
        for site in layer.fold_sites() {
            let Maker::Norm(norm, _) = &site.maker else { continue };
            let kept: Vec<&Linear> =
                site.readers.iter().filter(|(group, l)| group.is_none() || l.name.ends_with("k_proj")).map(|(_, l)| l).collect();
            if kept.is_empty() {
                continue;
            }
            let factors = ratio(&source, &written, &format!("{norm}.weight"), hidden);
            assert!(factors.iter().all(|f| f.log2().fract() == 0.0), "{norm}");
            changed += factors.iter().filter(|f| **f != 1.0).count();
            for l in kept {
                let (before, after) = (dense_weight(&source, l).0, dense_weight(&written, l).0);
                let equal = before.iter().zip(&after).enumerate().all(|(at, (a, b))| f64::from(*a) * factors[at % hidden] == f64::from(*b));
                assert!(equal, "{}", l.name);
            }
        }
    }
    assert!(changed > 0, "factors of some");
}
