//! What vLLM 0.14.1 makes of the modules of AWQ and AutoRound checkpoints, and which kernel runs a layer.

use billfish_formats::method::*;
use serde_json::{Map, Value, json};

const AMPERE: Platform = Platform::Cuda { capability: 80 };
const HOPPER: Platform = Platform::Cuda { capability: 90 };
const QKV: &str = "model.layers.3.self_attn.qkv_proj";
const DOWN: &str = "model.layers.3.mlp.down_proj";
const EXPERTS: &str = "model.layers.3.mlp.experts";
const SHAPE: MoeShape = MoeShape { hidden_size: 2048, intermediate_per_rank: 768, silu: true, router_weight_on_input: false };

/// A config with some keys changed; null removes one.
fn changed(base: Value, changes: Value) -> Map<String, Value> {
    let (Value::Object(mut config), Value::Object(changes)) = (base, changes) else { panic!("no objects") };
    for (key, value) in changes {
        if value.is_null() {
            config.remove(&key)
        } else {
            config.insert(key, value)
        };
    }
    config
}

fn awq(changes: Value) -> Map<String, Value> {
    changed(json!({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true}), changes)
}

fn auto_round(changes: Value) -> AutoRoundConfig {
    AutoRoundConfig::read(&changed(json!({"bits": 4, "group_size": 128, "sym": true}), changes)).unwrap()
}

/// Method, bits, group size and symmetry; `none` for a module that is not quantized.
fn found(resolution: Resolution) -> (&'static str, i64, i64, bool) {
    match resolution {
        Resolution::Quantized { scheme, .. } => (scheme.method, scheme.bits, scheme.group_size, scheme.sym),
        Resolution::Unquantized(_) => ("none", 0, 0, false),
    }
}

#[test]
fn awq_configs() {
    let error = |method: &str, changes| AwqConfig::read(method, &awq(changes)).unwrap_err().to_string();
    assert_eq!(error("awq", json!({"bits": 8})), "Currently, only 4-bit weight quantization is supported for AWQ, but got 8 bits.");
    assert_eq!(error("awq", json!({"bits": null})), "Cannot find any of ['w_bit', 'bits'] in the model's quantization config.");
    let group = "Cannot find any of ['q_group_size', 'group_size'] in the model's quantization config.";
    assert_eq!(error("awq", json!({"group_size": null})), group);
    for method in ["awq", "awq_marlin", "cpu_awq"] {
        let text = "Cannot find any of ['zero_point'] in the model's quantization config.";
        assert_eq!(error(method, json!({"zero_point": null})), text);
    }
    // the keys of old are those of the plain method only
    let old = json!({"bits": null, "group_size": null, "w_bit": 4, "q_group_size": 64});
    assert!(AwqConfig::read("awq", &awq(old.clone())).is_ok());
    for method in ["awq_marlin", "cpu_awq"] {
        assert_eq!(error(method, old.clone()), "Cannot find any of ['bits'] in the model's quantization config.");
    }
    assert!(error("cpu_awq", json!({"bits": 8})).contains("key `bits`: expected 4, found 8"));
    assert!(error("cpu_awq", json!({"zero_point": false})).contains("key `zero_point`: expected True, found False"));
    assert!(AwqConfig::read("awq", &awq(json!({"zero_point": false}))).is_ok());
    assert!(error("awq", json!({"modules_to_not_convert": "lm_head"})).contains("key `modules_to_not_convert`: expected a list"));
    assert!(error("gptq", json!({})).contains("those of AWQ"));
}

#[test]
fn awq_modules() {
    let fused = FusedModules::llama();
    let read = |method: &str, changes| AwqConfig::read(method, &awq(changes)).unwrap();
    let resolve = |config: &AwqConfig, layer, prefix| config.resolve(layer, prefix, &fused, AMPERE);
    let plain = read("awq", json!({"lm_head": true}));
    assert_eq!(found(resolve(&plain, Layer::Linear, QKV).unwrap()), ("awq", 4, 128, false));
    // the plain method does not know of a quantized head
    assert_eq!(resolve(&plain, Layer::Head, "lm_head").unwrap(), Resolution::Unquantized(Unquantized::Head));
    let marlin = read("awq_marlin", json!({"lm_head": true, "modules_to_not_convert": ["layers.3.self_attn.q_proj", "down_proj"]}));
    assert_eq!(found(resolve(&marlin, Layer::Head, "lm_head").unwrap()).0, "awq_marlin");
    assert_eq!(resolve(&marlin, Layer::Linear, DOWN).unwrap(), Resolution::Unquantized(Unquantized::NotConverted));
    let mixed = resolve(&marlin, Layer::Linear, QKV).unwrap_err().to_string();
    let text = "are quantized. All shards of fused layers to have the same precision.";
    assert_eq!(mixed, format!("Detected some but not all shards of {QKV} {text}"));
    // a fused name in the list names no part of it
    let fused_name = read("awq", json!({"modules_to_not_convert": ["qkv_proj"]}));
    assert_eq!(found(resolve(&fused_name, Layer::Linear, QKV).unwrap()).0, "awq");
    let mut inferred = read("cpu_awq", json!({}));
    inferred.infer_dense(vec![DOWN.into()]);
    inferred.rename_modules(&NameMap { prefixes: vec![("model.".into(), Some("m.".into()))], ..NameMap::default() });
    assert_eq!(found(resolve(&inferred, Layer::Linear, DOWN).unwrap()).0, "cpu_awq");
    assert_eq!(found(resolve(&inferred, Layer::Linear, "m.layers.3.mlp.down_proj").unwrap()).0, "none");

    assert_eq!(found(resolve(&plain, Layer::Experts(SHAPE), EXPERTS).unwrap()).0, "moe_wna16");
    assert_eq!(found(resolve(&marlin, Layer::Experts(SHAPE), EXPERTS).unwrap()).0, "awq_marlin");
    let odd = MoeShape { hidden_size: 2000, ..SHAPE };
    let Resolution::Quantized { scheme, notes } = resolve(&marlin, Layer::Experts(odd), EXPERTS).unwrap() else { panic!("dense") };
    let warning = format!("Layer '{EXPERTS}' is not supported by AWQMoeMarlin. Falling back to Moe WNA16 kernels.");
    assert_eq!((scheme.method, notes), ("moe_wna16", vec![Note::Warning(warning)]));
}

#[test]
fn auto_round_configs() {
    let error = |changes| {
        let config = changed(json!({"bits": 4, "group_size": 128, "sym": true}), changes);
        AutoRoundConfig::read(&config).unwrap_err().to_string()
    };
    assert!(error(json!({"sym": null})).contains("['sym']"));
    assert!(error(json!({"bits": 5})).starts_with("Unsupported weight_bits: 5"));
    assert!(error(json!({"packing_format": "auto_round"})).starts_with("Unsupported packing_format: auto_round, "));
    assert!(error(json!({"data_type": "fp8"})).starts_with("Unsupported data_type: fp8"));
    assert!(error(json!({"vllm_backend": "exllama"})).starts_with("Unsupported backend: exllama"));
    assert!(error(json!({"extra_config": []})).contains("key `extra_config`"));
    assert!(error(json!({"extra_config": {"a": 4}})).contains("key `extra_config.a`"));
}

#[test]
fn auto_round_modules() {
    let fused = FusedModules::llama();
    let on = |platform, changes, layer, prefix: &str| found(auto_round(changes).resolve(layer, prefix, &fused, platform).unwrap());
    let linear = |changes, prefix: &str| on(AMPERE, changes, Layer::Linear, prefix);
    assert_eq!(linear(json!({}), QKV), ("gptq_marlin", 4, 128, true));
    assert_eq!(linear(json!({"sym": false}), QKV), ("gptq", 4, 128, false));
    assert_eq!(linear(json!({"bits": 2}), QKV).0, "gptq");
    assert_eq!(linear(json!({"group_size": 16}), QKV).0, "gptq");
    assert_eq!(linear(json!({"backend": "gptq"}), QKV).0, "gptq");
    assert_eq!(linear(json!({"backend": "ipex"}), QKV).0, "ipex");
    assert_eq!(on(Platform::Cpu, json!({}), Layer::Linear, QKV).0, "ipex");
    let awq = "auto_round:auto_awq";
    assert_eq!(linear(json!({"packing_format": awq, "sym": false}), QKV).0, "awq_marlin");
    assert_eq!(linear(json!({"packing_format": awq}), QKV).0, "awq");
    let eight = auto_round(json!({"packing_format": awq, "bits": 8})).resolve(Layer::Linear, QKV, &fused, AMPERE);
    assert!(eight.unwrap_err().to_string().ends_with("supported for AWQ, but got 8 bits."));

    // the head and what is outside of the blocks are left dense, unless a key names them
    assert_eq!(on(AMPERE, json!({}), Layer::Head, "lm_head").0, "none");
    assert_eq!(on(AMPERE, json!({"extra_config": {"lm_head": {"bits": 8}}}), Layer::Head, "lm_head"), ("gptq_marlin", 8, 128, true));
    let blocks = json!({"to_quant_block_names": "model.layers.1,model.layers.2"});
    assert_eq!(linear(blocks.clone(), DOWN).0, "none");
    assert_eq!(linear(blocks, "model.layers.12.mlp.down_proj").0, "gptq_marlin");

    // exactly, then by pattern, the first that is found; one that does not compile is passed over
    let extra =
        json!({"extra_config": {"(": {"bits": 2}, ".*down.*": {"bits": 8}, "layers\\.3\\.": {"group_size": 32}, DOWN: {"bits": 3}}});
    assert_eq!(linear(extra.clone(), DOWN), ("gptq", 3, 128, true));
    assert_eq!(linear(extra.clone(), "model.layers.4.mlp.down_proj").1, 8);
    assert_eq!(linear(extra, QKV), ("gptq_marlin", 4, 32, true));
    assert_eq!(linear(json!({"extra_config": {DOWN: {"bits": 16}}}), DOWN).0, "none");
    assert_eq!(linear(json!({"extra_config": {format!("model.{DOWN}"): {"bits": 16}}}), DOWN).0, "none");

    // parts of fused modules must agree
    let parts = ["q_proj", "k_proj", "v_proj"].map(|p| QKV.replace("qkv_proj", p));
    let all: Map<String, Value> = parts.iter().map(|p| (p.clone(), json!({"bits": 8}))).collect();
    assert_eq!(linear(json!({"extra_config": all}), QKV), ("gptq_marlin", 8, 128, true));
    let one = auto_round(json!({"extra_config": {parts[0].clone(): {"bits": 8}}}));
    let text = one.resolve(Layer::Linear, QKV, &fused, AMPERE).unwrap_err().to_string();
    let [q, k, v] = &parts;
    assert_eq!(text, format!("Fused module '{QKV}' requires consistent quant config for ['{q}', '{k}', '{v}']"));

    let experts = |changes| auto_round(changes).resolve(Layer::Experts(SHAPE), EXPERTS, &fused, AMPERE);
    assert_eq!(found(experts(json!({})).unwrap()).0, "gptq_marlin");
    assert_eq!(found(experts(json!({"sym": false})).unwrap()), ("moe_wna16", 4, 128, false));
    let keys = [0, 1].map(|i| format!("{EXPERTS}.{i}.up_proj"));
    let [a, b] = &keys;
    assert_eq!(found(experts(json!({"extra_config": {a: {"bits": 8}, b: {"bits": 8}}})).unwrap()).1, 8);
    let text = experts(json!({"extra_config": {a: {"bits": 8}, b: {"bits": 4}}})).unwrap_err().to_string();
    assert_eq!(text, format!("Fused MoE layer '{EXPERTS}' requires consistent quant config for all sub-layers"));
}

/// 4 bit, symmetric, 128 rows a group, 4096 by 4096.
fn layer() -> KernelLayer {
    KernelLayer {
        weight: WeightType::Uint4b8,
        activation: Activation::F16,
        group_size: 128,
        zero_points: false,
        act_order: false,
        input_size: 4096,
        rows: 4096,
        columns: 4096,
    }
}

#[test]
fn kernels() {
    let taken = |platform, layer: KernelLayer| choose_kernel(platform, &layer).unwrap();
    let (l, cpu) = (layer(), Platform::Cpu);
    assert_eq!(taken(HOPPER, l), "MacheteLinearKernel");
    assert_eq!(taken(HOPPER, KernelLayer { group_size: 32, ..l }), "MarlinLinearKernel");
    assert_eq!(taken(HOPPER, KernelLayer { act_order: true, rows: 2048, ..l }), "MarlinLinearKernel");
    assert_eq!(taken(AMPERE, l), "MarlinLinearKernel");
    assert_eq!(taken(AMPERE, KernelLayer { weight: WeightType::Uint8b128, group_size: -1, ..l }), "AllSparkLinearKernel");
    assert_eq!(taken(AMPERE, KernelLayer { activation: Activation::BF16, ..l }), "MarlinLinearKernel");
    // tiles do not fit: the kernel of old, which has 16-bit IEEE activations only
    let odd = KernelLayer { columns: 40, ..l };
    assert_eq!(taken(AMPERE, odd), "ExllamaLinearKernel");
    assert_eq!(taken(Platform::Rocm, l), "ExllamaLinearKernel");
    assert_eq!(taken(cpu, l), "CPUWNA16LinearKernel");
    assert_eq!(taken(cpu, KernelLayer { act_order: true, rows: 32, activation: Activation::BF16, ..l }), "CPUWNA16LinearKernel");

    let refused = |platform, layer: KernelLayer| choose_kernel(platform, &layer).unwrap_err().to_string();
    let text = refused(AMPERE, KernelLayer { activation: Activation::BF16, ..odd });
    assert!(text.starts_with("Failed to find a kernel that can implement the WNA16 linear layer. Reasons: \n"), "{text}");
    assert!(text.contains("MarlinLinearKernel cannot implement due to: Weight output_size_per_partition = 40 is not divisible"), "{text}");
    assert!(text.contains("ExllamaLinearKernel cannot implement due to: Exllama only supports float16 activations"), "{text}");
    for (layer, why) in [
        (KernelLayer { weight: WeightType::Uint8b128, ..l }, "type uint8b128 is not supported"),
        (KernelLayer { group_size: 33, ..l }, "group size 33 is not even"),
        (KernelLayer { rows: 48, ..l }, "rows of a rank must be a multiple of 32, not 48"),
        (KernelLayer { columns: 48, ..l }, "columns of a rank must be a multiple of 32, not 48"),
        (KernelLayer { weight: WeightType::Uint4, zero_points: true, ..l }, "AWQ is not supported in CPUWNA16LinearKernel"),
    ] {
        let text = refused(cpu, layer);
        assert!(text.contains(&format!("CPUWNA16LinearKernel cannot implement due to: {why}")), "{text}");
    }
    // act-order over ranks: of these only Marlin
    let split = KernelLayer { act_order: true, rows: 2048, columns: 40, ..l };
    assert!(refused(AMPERE, split).contains("act-order is not supported when rows are split over ranks"));
    assert_eq!(taken(AMPERE, KernelLayer { columns: 64, ..split }), "MarlinLinearKernel");
}
