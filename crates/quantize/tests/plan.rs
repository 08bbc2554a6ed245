//! Plans: what is measured, that sizes are kept to the byte, and that the rules mean what was chosen.

mod common;

use billfish_formats::{Checkpoint, Dynamic, GroupSize};
use billfish_kernels::{Backend, Isa};
use billfish_quantize::plan::{Budget, Choice, Preset, Sensitivity, Study, preset, study};
use billfish_quantize::{Job, Method, Recipe, Statistics, predicted_bytes, quantize, synth};
use common::{Fresh, fixture, fresh};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

fn backend() -> Arc<Backend> {
    Arc::new(Backend::new(Isa::choose(None).unwrap(), 2).unwrap())
}

fn dense(spec: &str, name: &str) -> Fresh {
    let dir = fresh(name);
    synth(&spec.parse().unwrap(), &dir, 1, true, 7, &[], &mut |_, _| ()).unwrap();
    dir
}

fn samples() -> Vec<Vec<u32>> {
    (0..6u32).map(|s| (0..40).map(|i| (i * i * 31 + s * 77 + i * 5) % 256).collect()).collect()
}

fn recipe() -> Recipe {
    Recipe { method: Method::Rtn, fallback_rows: 1, ..Recipe::default() }
}

fn candidates() -> Vec<Choice> {
    let of = |g| [2, 3, 4, 8].map(|bits| Choice { bits, group_size: Some(g) });
    [32, 64].into_iter().flat_map(of).collect()
}

fn studied(source: &Checkpoint, recipe: &Recipe, samples: &[Vec<u32>]) -> Sensitivity {
    let candidates = candidates();
    study(&Study { source, recipe, candidates: &candidates, samples, probes: 3, backend: backend() }, &mut |_, _| ()).unwrap()
}

/// Bytes of the files that hold weights.
fn written(source: &Checkpoint, recipe: &Recipe, out: &Path) -> u64 {
    let stop = AtomicBool::new(false);
    let samples = samples();
    let statistics = Statistics::Forget;
    let job = Job { source, out, recipe, samples: &samples, backend: backend(), memory: None, resume: false, stop: &stop, statistics };
    quantize(&job, &mut |_| ()).unwrap();
    let files = std::fs::read_dir(out).unwrap().map(|e| e.unwrap());
    files.filter(|e| e.file_name().to_str().unwrap().contains(".safetensors")).map(|e| e.metadata().unwrap().len()).sum()
}

#[test]
fn plans_keep_their_budget_and_cost_no_more_with_more_of_it() {
    let dir = dense("tiny", "plan-budget");
    let source = Checkpoint::open(&dir).unwrap();
    let recipe = recipe();
    let found = studied(&source, &recipe, &samples());
    assert_eq!(found.predictions, 3 * 40);
    assert!(found.units.iter().flat_map(|u| &u.options).all(|o| o.loss > 0.0 && o.loss.is_finite() && o.error > 0.0 && o.error < 1.0));
    // wider codes err less, in smaller groups too
    for u in &found.units {
        let error = |bits, g| u.options.iter().find(|o| o.choice == Choice { bits, group_size: Some(g) }).unwrap();
        assert!(error(2, 32).error > error(3, 32).error && error(3, 32).error > error(8, 32).error, "{}", u.modules[0].name);
        assert!(error(4, 32).loss < error(3, 32).loss && error(3, 32).loss < error(2, 32).loss);
        assert!(error(4, 32).bytes > error(4, 64).bytes);
    }
    let least = Choice { bits: 2, group_size: Some(64) };
    let (least, all) = (found.uniform(&source, &recipe, least).unwrap().unwrap(), 8 * 40_000_000);
    let most = found.fit(&source, &recipe, Budget::Files(all)).unwrap().predicted.total.files;
    let mut before = f64::INFINITY;
    let low = least.predicted.total.files;
    let mut shares = std::collections::BTreeSet::new();
    for step in 0..=40 {
        let budget = low + (most - low) * step / 40;
        let fit = found.fit(&source, &recipe, Budget::Files(budget)).unwrap();
        assert!(fit.predicted.total.files <= budget, "{budget}");
        assert!(fit.loss <= before, "{budget}: {} after {before}", fit.loss);
        before = fit.loss;
        shares.insert(fit.chosen.clone());
    }
    assert!(shares.len() > 30, "a plan follows its budget: {}", shares.len());
    // never worse than all alike in the same size
    for choice in candidates() {
        let alike = found.uniform(&source, &recipe, choice).unwrap().unwrap();
        let fit = found.fit(&source, &recipe, Budget::Files(alike.predicted.total.files)).unwrap();
        assert!(fit.loss <= alike.loss, "{choice:?}");
        let fit = found.fit(&source, &recipe, Budget::BitsPerWeight(alike.bits_per_weight)).unwrap();
        assert!(fit.loss <= alike.loss && fit.bits_per_weight <= alike.bits_per_weight, "{choice:?}");
    }
    // less than the least is refused, and the number that the message names works
    let error = found.fit(&source, &recipe, Budget::Files(low - 1)).unwrap_err().to_string();
    assert!(error.contains("max-size") && error.contains(&low.to_string()), "{error}");
    let error = found.fit(&source, &recipe, Budget::BitsPerWeight(1.5)).unwrap_err().to_string();
    let named = error.split(" bits per weight").next().unwrap().rsplit(' ').next().unwrap();
    assert!(found.fit(&source, &recipe, Budget::BitsPerWeight(named.parse().unwrap())).is_ok(), "{error}");
}

#[test]
fn what_is_predicted_is_what_is_written() {
    for spec in ["tiny", "tiny-moe"] {
        let (dir, out) = (dense(spec, &format!("plan-{spec}")), fresh(&format!("plan-{spec}-out")));
        let source = Checkpoint::open(&dir).unwrap();
        let recipe = recipe();
        let found = studied(&source, &recipe, &samples());
        let fit = found.fit(&source, &recipe, Budget::BitsPerWeight(4.3)).unwrap();
        let settings: std::collections::BTreeSet<Choice> = found.units.iter().zip(&fit.chosen).map(|(u, &i)| u.options[i].choice).collect();
        assert!(settings.len() > 1, "{spec}: {settings:?}");
        let planned = Recipe { dynamic: Dynamic::parse("plan", &fit.rules).unwrap(), ..recipe };
        assert_eq!(written(&source, &planned, &out), fit.predicted.total.files, "{spec}");
        // the folder has what was chosen, and what programs fuse is alike
        let made = Checkpoint::open(&out).unwrap();
        for (u, &i) in found.units.iter().zip(&fit.chosen) {
            let choice = u.options[i].choice;
            for l in &u.modules {
                let r = made.describe(&l.name).unwrap();
                assert_eq!((r.bits, r.group_size), (choice.bits, GroupSize::Rows(choice.group_size.unwrap())), "{}", l.name);
            }
        }
        let fused = |parts: &[&str]| {
            let of = |p: &str| found.units.iter().position(|u| u.modules.iter().any(|l| l.name == format!("model.layers.1.{p}"))).unwrap();
            parts.iter().all(|p| of(p) == of(parts[0]))
        };
        assert!(fused(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]), "{spec}");
        let mlp = if spec == "tiny" { ["mlp.gate_proj", "mlp.up_proj"] } else { ["mlp.experts.0.gate_proj", "mlp.experts.3.down_proj"] };
        assert!(fused(&mlp), "{spec}");
        // under the names of what is fused too, in the rules and in the folder
        let rules = [&planned.dynamic, &made.quantization().unwrap().dynamic];
        for rules in rules {
            let bits = |m: &str| rules.find(m).unwrap().in_order().and_then(|r| r.overrides().bits);
            assert_eq!(bits("model.layers.1.self_attn.qkv_proj"), bits("model.layers.1.self_attn.k_proj"));
            if spec == "tiny-moe" {
                assert_eq!(bits("model.layers.1.mlp.experts"), bits("model.layers.1.mlp.experts.2.up_proj"));
            }
        }
    }
}

#[test]
fn experts_in_one_tensor_are_planned_one_by_one() {
    let (source, out) = (Checkpoint::open(&fixture("qwen2moe-stacked-dense")).unwrap(), fresh("plan-stacked-out"));
    let vocabulary = source.config()["vocab_size"].as_u64().unwrap() as u32;
    let samples: Vec<Vec<u32>> = samples().iter().map(|s| s.iter().map(|t| t % vocabulary).collect()).collect();
    let candidates = [3, 4].map(|bits| Choice { bits, group_size: Some(16) });
    let recipe = recipe();
    let job = Study { source: &source, recipe: &recipe, candidates: &candidates, samples: &samples, probes: 2, backend: backend() };
    let found = study(&job, &mut |_, _| ()).unwrap();
    assert!(found.units.iter().any(|u| u.modules.iter().any(|l| l.name.ends_with("mlp.experts.1.up_proj"))));
    let fit = found.fit(&source, &recipe, Budget::BitsPerWeight(5.0)).unwrap();
    let planned = Recipe { dynamic: Dynamic::parse("plan", &fit.rules).unwrap(), ..recipe };
    assert_eq!(written(&source, &planned, &out), fit.predicted.total.files);
}

#[test]
fn presets_follow_the_classes() {
    let dir = dense("tiny-moe", "plan-preset");
    let source = Checkpoint::open(&dir).unwrap();
    let recipe = recipe();
    let mut sizes = vec![];
    for which in [Preset::Size, Preset::Speed, Preset::Moe, Preset::Dense, Preset::Quality] {
        let found = preset(&source, &recipe, which).unwrap();
        assert_eq!(found.unknown, Vec::<String>::new());
        assert!(found.modules.iter().all(|(_, class, choice)| class.is_some() && choice.is_some()));
        let with = Recipe { dynamic: Dynamic::parse("preset", &found.rules).unwrap(), ..recipe.clone() };
        let predicted = predicted_bytes(&source, &with).unwrap();
        for ((l, s, _), (name, _, choice)) in predicted.modules.iter().zip(&found.modules) {
            assert_eq!((&l.name, Some((s.grid.bits, s.group_size))), (name, choice.map(|c| (c.bits, c.group_size))));
        }
        sizes.push(predicted.total.files);
    }
    assert!(sizes.is_sorted() && sizes[0] < sizes[4], "{sizes:?}");
}

#[test]
fn what_cannot_be_planned_is_refused() {
    let dir = dense("tiny", "plan-refused");
    let source = Checkpoint::open(&dir).unwrap();
    let (recipe, samples) = (recipe(), samples());
    let refused = |recipe: &Recipe, candidates: &[Choice], samples: &[Vec<u32>]| {
        let job = Study { source: &source, recipe, candidates, samples, probes: 1, backend: backend() };
        study(&job, &mut |_, _| ()).unwrap_err().to_string()
    };
    assert!(refused(&recipe, &candidates(), &[]).contains("calibration"));
    assert!(refused(&recipe, &[], &samples).contains("candidates"));
    let many: Vec<Choice> = (1..70).map(|g| Choice { bits: 4, group_size: Some(g) }).collect();
    assert!(refused(&recipe, &many, &samples).contains("at most 64"));
    let message = refused(&recipe, &[Choice { bits: 4, group_size: Some(48) }], &samples);
    assert!(message.contains("do not divide"), "{message}");
    let message = refused(&recipe, &[Choice { bits: 5, group_size: Some(32) }], &samples);
    assert!(message.contains("gptq_p"), "{message}");
}
