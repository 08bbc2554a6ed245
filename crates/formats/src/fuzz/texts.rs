//! Targets whose input is a text or a file of its own: parsers and matchers.

use super::Run;
use super::folder::{module, open};
use super::input::Input;
use crate::method::{
    Activation, AutoRoundConfig, AwqConfig, FusedModules, KernelLayer, Layer, ModuleConfig, MoeShape, NameMap, Note, Platform, WeightType,
    check_engine, check_marlin, check_marlin_shape, choose_kernel, infer_modules, later_refusals, select,
};
use crate::targets::Target;
use crate::warning::Warnings;
use crate::{Header, Place, QuantConfig, Source, dynamic, explain, json};

/// Names of modules that patterns meet.
const MODULES: [&str; 4] =
    ["lm_head", "model.layers.0.self_attn.q_proj", "model.layers.12.mlp.gate_up_proj", "model.layers.10.mlp.experts.63.down_proj"];

fn hear(warnings: &Warnings, run: &mut Run) {
    for warning in warnings.list() {
        // in brackets and after a colon stands what the config says
        run.note(warning.message.split(['(', ':']).next().unwrap_or_default());
    }
}

/// A safetensors file; the header is what matters.
pub(super) fn safetensors_header(data: &[u8], run: &mut Run) {
    run.value(Header::read(&Source::from_bytes("fuzz", data.to_vec())));
}

/// A quantization config.
pub(super) fn quant_config(data: &[u8], run: &mut Run) {
    let warnings = Warnings::default();
    let Some(map) = run.value(json::object("fuzz", data)) else { return };
    if let Some(config) = run.value(QuantConfig::read("fuzz", "", &map, &warnings)) {
        for module in MODULES {
            if let Some(scheme) = run.value(config.scheme(module)) {
                run.note(format!("{}, {}, {}", scheme.format.name(), scheme.sym, scheme.desc_act));
            }
            run.note(format!("{:?}", config.selection.says(module)));
        }
        run.value(config.selection.warn_unmatched("fuzz", &["lm_head", "model.layers.0.mlp.down_proj"], &warnings));
        assert!(config.differing_keys(&config).is_empty(), "a config is like itself");
    }
    hear(&warnings, run);
}

/// The rules of a quantization config, tried on names of modules.
pub(super) fn dynamic(data: &[u8], run: &mut Run) {
    let warnings = Warnings::default();
    let Some(map) = run.value(json::object("fuzz", data)) else { return };
    if let Some(rules) = run.value(dynamic::Dynamic::read("fuzz", &map, &warnings)) {
        for module in MODULES {
            if let Some(found) = run.value(rules.find(module)) {
                run.note(format!("{:?} {}", found.for_tensors(true).map(dynamic::Rule::skips), found.differ()));
            }
        }
        run.value(rules.warn_unmatched(&["lm_head"], &warnings));
    }
    hear(&warnings, run);
}

/// Entries of `targets`, `ignore` and `extra_config`, one on each line.
pub(super) fn names(data: &[u8], run: &mut Run) {
    for line in String::from_utf8_lossy(data).lines() {
        for target in [Target::read("fuzz", "ignore", line), Target::name_or_pattern("fuzz", "extra_config", line)] {
            let Some(target) = run.value(target) else { continue };
            for module in MODULES {
                let decided = run.value(target.decide("fuzz", "ignore", module)).is_some();
                let rank = target.rank(module);
                assert!(decided || rank.is_none(), "a pattern that cannot be decided names nothing");
                run.note(["none", "class", "end", "pattern", "exact"][rank.map_or(0, |r| usize::from(r) + 1)]);
            }
            run.note(target.names_modules());
        }
    }
}

/// A shard index over two files.
pub(super) fn shard_index(data: &[u8], run: &mut Run) {
    let shards = [("a.safetensors", module("a")), ("b.safetensors", module("b"))];
    let mut files = vec![("config.json", b"{}".to_vec()), ("model.safetensors.index.json", data.to_vec())];
    files.extend(shards.iter().map(|(name, tensors)| (*name, tensors.clone())));
    if let Some(folder) = run.value(open(files)) {
        run.note(folder.tensor_names().map(|name| format!("{name} ").replace(['0', '1'], "")).collect::<String>());
        for warning in folder.warnings() {
            run.note(warning.message);
        }
    }
}

/// What vLLM would do: three bytes choose the user's method, the platform and the shape of experts; a config follows.
pub(super) fn method(data: &[u8], run: &mut Run) {
    let mut input = Input::new(data);
    let user = input.pick(&[None, Some("gptq"), Some("marlin"), Some("AWQ"), Some("moe_wna16"), Some("bitblas"), Some("\u{130}")]);
    let platform = input.pick(&[Platform::Cuda { capability: 80 }, Platform::Cpu, Platform::Rocm, Platform::Cuda { capability: 60 }]);
    let size = usize::from(input.byte()) * 32;
    let Some(map) = run.value(json::object("fuzz", input.rest())) else { return };
    if let Some(found) = run.kind(select(Some(&map), user, platform, false)) {
        run.note(format!("{:?}", found.method));
        for note in found.notes {
            let (Note::Info(text) | Note::Warning(text) | Note::Silent(text)) = note;
            run.note(text);
        }
        for activation in [Activation::F16, Activation::BF16, Activation::F32] {
            run.kind(check_engine(found.method.as_deref().unwrap_or(""), platform, activation));
        }
    }
    let fused = FusedModules::llama();
    let shape = MoeShape { hidden_size: size, intermediate_per_rank: size, silu: size % 64 == 0, router_weight_on_input: size == 0 };
    for method in ["gptq", "gptq_marlin", "moe_wna16"] {
        let Some(mut config) = run.kind(ModuleConfig::read(method, &map)) else { continue };
        config.infer_modules(infer_modules([("model.layers.0.self_attn.q_proj.qweight", billfish_tensor::DType::I32)]));
        for (layer, name) in
            [Layer::Linear, Layer::Head, Layer::Experts(shape), Layer::Other].into_iter().flat_map(|l| MODULES.map(|m| (l, m)))
        {
            if let Some(found) = run.kind(config.resolve(layer, name, &fused, platform)) {
                // the rule that skips is the input's own
                run.note(format!("{found:?}").split("rule").next().unwrap_or_default());
            }
        }
        let parts = fused.parts(MODULES[2]).unwrap_or_default();
        if let Some(traps) = run.kind(config.fused_traps(MODULES[2], &parts)) {
            run.note(format!("{} traps", "+".repeat(traps.len())));
        }
        config.rename_modules(&NameMap { prefixes: vec![("model.".into(), Some("m.".into()))], ..NameMap::default() });
    }
    for method in ["awq", "awq_marlin", "cpu_awq"] {
        let Some(config) = run.kind(AwqConfig::read(method, &map)) else { continue };
        for name in MODULES {
            run.kind(config.resolve(Layer::Linear, name, &fused, platform));
            run.kind(config.resolve(Layer::Experts(shape), name, &fused, platform));
        }
    }
    if let Some(config) = run.kind(AutoRoundConfig::read(&map)) {
        for (layer, name) in [Layer::Linear, Layer::Head, Layer::Experts(shape)].into_iter().flat_map(|l| MODULES.map(|m| (l, m))) {
            if let Some(found) = run.kind(config.resolve(layer, name, &fused, platform)) {
                run.note(format!("{found:?}"));
            }
        }
    }
    for refusal in later_refusals(&map) {
        run.note(format!("{} {}", refusal.since, refusal.rule.is_some()));
    }
    let group = map.get("group_size").and_then(serde_json::Value::as_i64).unwrap_or(-1);
    run.kind(check_marlin(platform, WeightType::Uint4b8, group, false));
    run.kind(check_marlin_shape(size, size, size * 2, group));
    for weight in [WeightType::Uint4b8, WeightType::Uint8b128, WeightType::Uint4, WeightType::Uint8] {
        let layer = KernelLayer {
            weight,
            activation: Activation::F16,
            group_size: group,
            zero_points: size % 64 == 0,
            act_order: size % 128 == 0,
            input_size: size * 2,
            rows: size,
            columns: size,
        };
        if let Some(kernel) = run.kind(choose_kernel(platform, &layer)) {
            run.note(kernel);
        }
    }
}

/// A place, asked of a folder with a quantized module `m` and a dense one `d`.
pub(super) fn place(data: &[u8], run: &mut Run) {
    let text = String::from_utf8_lossy(data);
    if let Some(place) = run.value(text.parse::<Place>()) {
        let again: Result<Place, _> = place.to_string().parse();
        assert_eq!(again.ok().as_ref(), Some(&place), "a place reads as it is written");
    }
    let config = br#"{"quantization_config":{"bits":4,"group_size":-1,"sym":true}}"#;
    let files = vec![("config.json", config.to_vec()), ("model.safetensors", module("m"))];
    if let Some(folder) = run.value(open(files))
        && run.value(explain(&folder, &text)).is_some()
    {
        run.note("explained");
    }
}
