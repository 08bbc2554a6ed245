//! What vLLM 0.14.1 would do with a checkpoint: the tables and texts of its behaviour, case by case.

use billfish_formats::method::*;
use billfish_tensor::DType;
use serde_json::{Map, Value, json};

const AMPERE: Platform = Platform::Cuda { capability: 80 };
const PLATFORMS: [Platform; 3] = [AMPERE, Platform::Cpu, Platform::Rocm];

fn map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("{other} is no object"),
    }
}

/// A symmetric 4-bit GPTQ config with some keys changed; null removes one.
fn gptq(changes: Value) -> Map<String, Value> {
    changed(json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true, "sym": true}), changes)
}

fn awq(changes: Value) -> Map<String, Value> {
    changed(json!({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true}), changes)
}

fn changed(base: Value, changes: Value) -> Map<String, Value> {
    let mut config = map(base);
    for (key, value) in map(changes) {
        if value.is_null() {
            config.remove(&key)
        } else {
            config.insert(key, value)
        };
    }
    config
}

fn chosen(config: &Map<String, Value>, user: Option<&str>, platform: Platform) -> String {
    match select(Some(config), user, platform, true) {
        Ok(Selection { method, .. }) => method.unwrap_or_else(|| "none".into()),
        Err(e) => {
            assert!(matches!(e, MethodError::Mismatch { .. }), "{e}");
            "ERROR".into()
        }
    }
}

#[test]
fn table_of_expected_methods() {
    let config = gptq(json!({}));
    for (user, on_cuda, on_cpu, elsewhere) in [
        (None, "gptq_marlin", "gptq_marlin", "gptq"),
        (Some("marlin"), "gptq_marlin", "gptq_marlin", "ERROR"),
        (Some("gptq_marlin"), "gptq_marlin", "gptq_marlin", "ERROR"),
        (Some("gptq"), "gptq", "gptq", "gptq"),
        (Some("GPTQ"), "gptq", "gptq", "gptq"),
        (Some("awq"), "ERROR", "ERROR", "ERROR"),
        (Some("gptq_bitblas"), "gptq_bitblas", "ERROR", "ERROR"),
        (Some("bitblas"), "gptq_bitblas", "ERROR", "ERROR"),
    ] {
        let found = PLATFORMS.map(|p| chosen(&config, user, p));
        assert_eq!(found, [on_cuda, on_cpu, elsewhere], "{user:?}");
    }
    for (user, on_cuda, on_cpu, elsewhere) in [
        (None, "awq_marlin", "cpu_awq", "awq"),
        (Some("marlin"), "awq_marlin", "cpu_awq", "ERROR"),
        (Some("awq"), "awq", "cpu_awq", "awq"),
        (Some("gptq"), "ERROR", "cpu_awq", "ERROR"),
        (Some("moe_wna16"), "moe_wna16", "cpu_awq", "ERROR"),
    ] {
        let found = PLATFORMS.map(|p| chosen(&awq(json!({})), user, p));
        assert_eq!(found, [on_cuda, on_cpu, elsewhere], "{user:?}");
    }
}

#[test]
fn what_keeps_a_checkpoint_from_marlin() {
    let none = |config: Map<String, Value>, platform| chosen(&config, None, platform);
    assert_eq!(none(gptq(json!({"bits": 8})), AMPERE), "gptq_marlin");
    for changes in [
        json!({"bits": 3}),
        json!({"sym": false}),
        json!({"sym": null}),
        json!({"desc_act": null}),
        json!({"group_size": 16}),
        json!({"group_size": 256}),
    ] {
        assert_eq!(PLATFORMS.map(|p| none(gptq(changes.clone()), p)), ["gptq"; 3], "{changes}");
    }
    assert_eq!(none(gptq(json!({"bits": 8})), Platform::Cpu), "gptq");
    // 1 is True in Python, and no other number is
    assert_eq!(none(gptq(json!({"sym": 1})), AMPERE), "gptq_marlin");
    assert_eq!(none(gptq(json!({"sym": 2})), AMPERE), "gptq");
    assert_eq!(none(gptq(json!({})), Platform::Cuda { capability: 75 }), "gptq_marlin");
    assert_eq!(none(gptq(json!({})), Platform::Cuda { capability: 60 }), "gptq");
    assert_eq!(none(awq(json!({"zero_point": false})), AMPERE), "awq");
    assert_eq!(none(awq(json!({"bits": 8})), AMPERE), "awq");
    assert_eq!(none(awq(json!({"group_size": 16})), AMPERE), "awq");
}

#[test]
fn other_formats_of_gptq_checkpoints() {
    let bitblas = gptq(json!({"checkpoint_format": "bitblas"}));
    assert_eq!(chosen(&bitblas, None, AMPERE), "bitblas");
    assert_eq!(chosen(&gptq(json!({"is_bitblas_format": true})), Some("gptq"), AMPERE), "bitblas");
    assert_eq!(chosen(&bitblas, Some("marlin"), AMPERE), "gptq_marlin");
    let notes = select(Some(&bitblas), None, AMPERE, true).unwrap().notes;
    let deprecated = "The quantization method bitblas is deprecated and will be removed in future versions of vLLM.";
    let info = "The model is serialized in bitblas format. Using bitblas kernel.";
    assert_eq!(notes, [Note::Info(info.into()), Note::Warning(deprecated.into())]);
    assert_eq!(chosen(&gptq(json!({"checkpoint_format": "marlin_24"})), None, AMPERE), "gptq_marlin_24");
    // neither v2 nor anything else that `gptq_marlin` ignores keeps it away
    assert_eq!(chosen(&gptq(json!({"checkpoint_format": "gptq_v2"})), None, AMPERE), "gptq_marlin");
    assert_eq!(chosen(&gptq(json!({"desc_act": false})), Some("moe_wna16"), AMPERE), "moe_wna16");
    assert_eq!(chosen(&gptq(json!({})), Some("moe_wna16"), AMPERE), "ERROR");
}

#[test]
fn notes_are_what_users_see() {
    let notes = |user| select(Some(&gptq(json!({}))), user, AMPERE, false).unwrap().notes;
    let info = |text: &str| Note::Info(text.into());
    assert_eq!(notes(None), [info("The model is convertible to gptq_marlin during runtime. Using gptq_marlin kernel.")]);
    assert_eq!(
        notes(Some("gptq"))[0],
        info(
            "Detected that the model can run with gptq_marlin, however you specified quantization=gptq explicitly, so forcing gptq. \
             Use quantization=gptq_marlin for faster inference"
        )
    );
    let on_cpu = select(Some(&gptq(json!({"bits": 8}))), None, Platform::Cpu, false).unwrap();
    assert_eq!(on_cpu.method.as_deref(), Some("gptq"));
    assert!(matches!(&on_cpu.notes[..], [Note::Silent(text)] if text.contains("no operation on CPUs")));
}

#[test]
fn refusals_of_the_selection() {
    let error = |config: Option<Value>, user| select(config.map(map).as_ref(), user, AMPERE, false).unwrap_err().to_string();
    assert_eq!(
        error(Some(json!({"quant_method": "awq"})), Some("gptq")),
        "Quantization method specified in the model config (awq) does not match the quantization method specified in the \
         `quantization` argument (gptq)."
    );
    assert!(error(Some(json!({"bits": 4})), Some("gptq")).contains("(None)"));
    let unknown = error(Some(json!({"quant_method": "colour"})), None);
    assert!(unknown.starts_with("Unknown quantization method: colour. Must be one of ['awq', "), "{unknown}");
    assert!(error(None, Some("marlin")).starts_with("Unknown quantization method: marlin."));
    let deprecated = "is deprecated and will be removed in future versions of vLLM. To bypass, set `--allow-deprecated-quantization`.";
    let bitblas = error(Some(Value::Object(gptq(json!({})))), Some("gptq_bitblas"));
    assert_eq!(bitblas, format!("The quantization method gptq_bitblas {deprecated}"));
    assert!(error(Some(json!({"quant_method": "auto-round"})), None).contains(deprecated));

    let none = |config: Option<Value>| select(config.map(map).as_ref(), None, AMPERE, false).unwrap().method;
    assert_eq!(none(None), None);
    assert_eq!(none(Some(json!({"bits": 4}))), None);
    assert_eq!(none(Some(json!({"quant_method": "compressed_tensors"}))).as_deref(), Some("compressed-tensors"));
}

#[test]
fn engine_checks() {
    let error = |method, platform, activation| check_engine(method, platform, activation).unwrap_err().to_string();
    assert_eq!(
        error("gptq", Platform::Cpu, Activation::BF16),
        "torch.bfloat16 is not supported for quantization method gptq. Supported dtypes: [torch.float16]"
    );
    assert!(error("gptq_marlin", AMPERE, Activation::F32).ends_with("Supported dtypes: [torch.float16, torch.bfloat16]"));
    let old = error("awq_marlin", Platform::Cuda { capability: 70 }, Activation::F16);
    assert!(old.contains("Minimum capability: 75. Current capability: 70."), "{old}");
    assert_eq!(check_engine("gptq", Platform::Cuda { capability: 60 }, Activation::F16), Ok(()));
    assert_eq!(check_engine("fp8", AMPERE, Activation::F32), Ok(()));
}

#[test]
fn marlin_limits() {
    let error = |platform, weight, group, zp| check_marlin(platform, weight, group, zp).unwrap_err().to_string();
    assert_eq!(
        error(Platform::Cpu, WeightType::Uint8b128, 128, false),
        "Marlin does not support weight_bits = uint8b128. Only types = [ScalarType.uint4b8] are supported (for group_size = 128, \
         device_capability = -1, zp = False)."
    );
    assert!(
        error(Platform::Cuda { capability: 70 }, WeightType::Uint4, 32, true)
            .contains("types = [] are supported (for group_size = 32, device_capability = 70, zp = True)")
    );
    assert!(error(AMPERE, WeightType::Uint8, 32, true).contains("weight_bits = uint8. Only types = [ScalarType.uint4]"));
    assert_eq!(
        error(AMPERE, WeightType::Uint4b8, 16, false),
        "Marlin does not support group_size = 16. Only group_sizes = [-1, 32, 64, 128] are supported."
    );
    let shape = |n, k, whole, group| check_marlin_shape(n, k, whole, group).unwrap_err().to_string();
    let hint = "Consider reducing tensor_parallel_size or running with --quantization gptq.";
    assert_eq!(shape(32, 128, 128, 128), format!("Weight output_size_per_partition = 32 is not divisible by  min_thread_n = 64. {hint}"));
    assert_eq!(shape(64, 64, 128, 128), format!("Weight input_size_per_partition = 64 is not divisible by min_thread_k = 128. {hint}"));
    assert_eq!(shape(64, 128, 512, 256), format!("Weight input_size_per_partition = 128 is not divisible by group_size = 256. {hint}"));
    assert_eq!(check_marlin_shape(64, 128, 128, 256), Ok(()));
    assert_eq!(check_marlin_shape(64, 128, 512, -1), Ok(()));
}

#[test]
fn refusals_of_the_config() {
    let error = |method: &str, config: Map<String, Value>| ModuleConfig::read(method, &config).unwrap_err().to_string();
    for key in ["bits", "group_size", "desc_act"] {
        for method in ["gptq", "gptq_marlin"] {
            let text = format!("Cannot find any of ['{key}'] in the model's quantization config.");
            assert_eq!(error(method, gptq(json!({key: null}))), text);
        }
    }
    assert!(error("gptq_marlin", gptq(json!({"sym": null}))).contains("['sym']"));
    assert!(ModuleConfig::read("gptq", &gptq(json!({"sym": null}))).is_ok());
    let bits = "Currently, only 2/3/4/8-bit weight quantization is supported for GPTQ, but got 5 bits.";
    assert_eq!(error("gptq", gptq(json!({"bits": 5}))), bits);
    assert_eq!(error("gptq_marlin", gptq(json!({"bits": 3}))), "Unsupported quantization config: bits=3, sym=True");
    assert_eq!(error("gptq_marlin", gptq(json!({"sym": false}))), "Unsupported quantization config: bits=4, sym=False");
    assert!(error("gptq", gptq(json!({"group_size": "128"}))).contains("key `group_size`: expected a number, found 128"));
    assert!(error("gptq", gptq(json!({"dynamic": {"(": {}}}))).contains("rule `(` of `dynamic`"));
    assert!(error("gptq", gptq(json!({"dynamic": []}))).contains("key `dynamic`"));
    assert!(error("gptq", gptq(json!({"dynamic": {"a": 4}}))).contains("key `dynamic.a`"));
    assert!(error("gptq", gptq(json!({"modules_in_block_to_quantize": [["a"], "b", ["c"]]}))).contains("at most one list deep"));
    assert!(error("gptq", gptq(json!({"modules_in_block_to_quantize": "a"}))).contains("a list of names"));
    assert!(error("awq", awq(json!({}))).contains("method `awq`"));
    assert_eq!(error("moe_wna16", map(json!({"quant_method": "moe_wna16"}))), "moe_wna16 only support gptq and awq.");

    let warning = "Currently, the 4-bit gptq_gemm kernel for GPTQ is buggy. Please switch to gptq_marlin or gptq_bitblas.";
    assert_eq!(ModuleConfig::read("gptq", &gptq(json!({}))).unwrap().notes(), [Note::Warning(warning.into())]);
    assert_eq!(ModuleConfig::read("gptq", &gptq(json!({"bits": 8}))).unwrap().notes(), []);
}

const QKV: &str = "model.layers.12.self_attn.qkv_proj";

/// A config that lists everything, with rules.
fn with_rules(method: &str, dynamic: Value) -> ModuleConfig {
    let config = gptq(json!({"dynamic": dynamic, "modules_in_block_to_quantize": ["proj", "lm_head"], "lm_head": true}));
    ModuleConfig::read(method, &config).unwrap()
}

fn linear(config: &ModuleConfig, prefix: &str) -> Resolution {
    config.resolve(Layer::Linear, prefix, &FusedModules::llama(), AMPERE).unwrap()
}

fn scheme(resolution: Resolution) -> ResolvedScheme {
    match resolution {
        Resolution::Quantized { scheme, .. } => scheme,
        Resolution::Unquantized(why) => panic!("not quantized: {why:?}"),
    }
}

#[test]
fn rules_of_dynamic() {
    let skipped = |rule: &str| Resolution::Unquantized(Unquantized::Skipped { rule: rule.into() });
    let resolve = |dynamic| linear(&with_rules("gptq_marlin", dynamic), QKV);
    let bits = |dynamic| scheme(resolve(dynamic)).bits;
    assert_eq!(bits(json!({"+:.*\\.(?:1[0-5])\\..*": {"bits": 8}})), 8);
    assert_eq!(resolve(json!({"-:.*\\.layers\\.12\\..*": {}, "+:.*": {"bits": 8}})), skipped("-:.*\\.layers\\.12\\..*"));
    // the first rule wins, whichever sign it has
    assert_eq!(bits(json!({".*": {"bits": 8}, "-:.*": {}})), 8);
    // anchored at the start, and only there
    assert_eq!(bits(json!({"+:layers.12": {"bits": 8}})), 4);
    assert_eq!(bits(json!({"model.layers.1": {"bits": 8}})), 8);
    // {} is a match that overrides nothing, and ends the search
    assert_eq!(bits(json!({"+:.*": {}, ".*qkv.*": {"bits": 8}})), 4);
    // a key that the first rule lacks comes from the config, not from a later rule
    let first = scheme(resolve(json!({".*qkv.*": {"group_size": 32}, ".*": {"bits": 8}})));
    assert_eq!((first.bits, first.group_size), (4, 32));
    // values of another type count as missing
    let odd = scheme(resolve(json!({".*": {"bits": "8", "group_size": "32", "desc_act": 0, "sym": 0, "mse": 2.4}})));
    assert_eq!((odd.bits, odd.group_size, odd.desc_act), (4, 128, true));
}

#[test]
fn overrides_are_checked_again() {
    let error = |method, dynamic| {
        let config = with_rules(method, dynamic);
        config.resolve(Layer::Linear, QKV, &FusedModules::llama(), AMPERE).unwrap_err().to_string()
    };
    assert_eq!(error("gptq_marlin", json!({".*": {"bits": 3}})), "Unsupported quantization config: bits=3, sym=True");
    assert_eq!(error("gptq_marlin", json!({".*": {"sym": false}})), "Unsupported quantization config: bits=4, sym=False");
    assert!(error("gptq_marlin", json!({".*": {"bits": true}})).contains("bits=True"));
    assert!(error("gptq", json!({".*": {"bits": 6}})).contains("but got 6 bits."));
    assert!(error("gptq_marlin", json!({".*": {"group_size": 16}})).contains("group_size = 16"));
    assert!(error("gptq", json!({"(?=((a+)+)+$)\\1b": {}, "(?=((.+)+)+$)\\1\\1b": {}})).contains("of `dynamic`"));
    // the plain method has no groups to refuse, and does not know `sym`
    let plain = scheme(linear(&with_rules("gptq", json!({".*": {"group_size": 16, "sym": false, "bits": 2}})), QKV));
    assert_eq!((plain.bits, plain.group_size, plain.sym, plain.method), (2, 16, false, "gptq"));
}

#[test]
fn act_order_of_a_single_group() {
    let desc_act = |method, changes| {
        let config = changed(Value::Object(gptq(json!({"modules_in_block_to_quantize": ["proj"]}))), changes);
        scheme(linear(&ModuleConfig::read(method, &config).unwrap(), QKV)).desc_act
    };
    assert!(!desc_act("gptq_marlin", json!({"group_size": -1})));
    assert!(desc_act("gptq", json!({"group_size": -1})));
    // after an override nobody looks again
    assert!(desc_act("gptq_marlin", json!({"dynamic": {".*": {"group_size": -1}}})));
}

#[test]
fn zero_points_of_each_method() {
    let read = |method, format| {
        let config = gptq(json!({"checkpoint_format": format, "modules_in_block_to_quantize": ["proj"]}));
        let scheme = scheme(linear(&ModuleConfig::read(method, &config).unwrap(), QKV));
        (scheme.sym, scheme.v2)
    };
    assert_eq!(read("gptq", "gptq_v2"), (false, true));
    assert_eq!(read("gptq", "gptq"), (false, false));
    assert_eq!(read("gptq", "GPTQ_V2"), (false, false));
    assert_eq!(read("gptq_marlin", "gptq_v2"), (true, false));
}

#[test]
fn rules_on_parts_of_fused_modules_never_match() {
    let config = with_rules("gptq_marlin", json!({".*q_proj": {"bits": 8}, "-:.*up_proj": {}, "-:.*\\.experts\\.7\\..*": {}}));
    // `.*up_proj` is found in gate_up_proj too, by accident; `.*q_proj` is not found in qkv_proj
    assert_eq!(scheme(linear(&config, QKV)).bits, 4);
    let parts = FusedModules::llama().parts(QKV).unwrap();
    assert_eq!(parts[0], "model.layers.12.self_attn.q_proj");
    let traps = config.fused_traps(QKV, &parts).unwrap();
    assert_eq!(traps, [FusedTrap { part: parts[0].clone(), written: Some(".*q_proj".into()), read: None }]);
    let gate_up = "model.layers.12.mlp.gate_up_proj";
    assert!(matches!(linear(&config, gate_up), Resolution::Unquantized(Unquantized::Skipped { .. })));
    let traps = config.fused_traps(gate_up, &FusedModules::llama().parts(gate_up).unwrap()).unwrap();
    assert_eq!(traps.len(), 1);
    assert_eq!((traps[0].part.ends_with("gate_proj"), &traps[0].written), (true, &None));
    let experts = "model.layers.3.mlp.experts";
    assert_eq!(config.dynamic(experts).unwrap(), Verdict::NoMatch);
    let traps = config.fused_traps(experts, &[format!("{experts}.6.down_proj"), format!("{experts}.7.down_proj")]).unwrap();
    assert_eq!(traps.len(), 1);
    assert!(traps[0].part.contains("experts.7") && traps[0].read.is_none());
}

#[test]
fn which_modules_are_listed() {
    let fused = FusedModules::llama();
    let listed = |modules: &[&str], prefix| {
        let modules: Vec<String> = modules.iter().map(|m| (*m).into()).collect();
        fused.quantized(&modules, prefix)
    };
    let qkv = "model.layers.0.self_attn.qkv_proj";
    assert_eq!(listed(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], qkv), Ok(true));
    assert_eq!(listed(&["mlp.down_proj"], "model.layers.9.mlp.down_proj"), Ok(true));
    assert_eq!(listed(&["mlp.down_proj"], qkv), Ok(false));
    // an empty list is nothing, and a fused name in the list counts for no part
    assert_eq!(listed(&[], qkv), Ok(false));
    assert_eq!(listed(&["self_attn.qkv_proj"], qkv), Ok(false));
    // an entry counts wherever it is contained
    assert_eq!(
        listed(&["model.layers.1.mlp.gate"], "model.layers.1.mlp.gate_up_proj"),
        Err(MethodError::MixedShards { prefix: "model.layers.1.mlp.gate_up_proj".into() })
    );
    assert_eq!(listed(&["layers.1"], "model.layers.12.mlp.down_proj"), Ok(true));
    // a model without an entry compares the fused name itself
    assert_eq!(FusedModules::default().quantized(&["self_attn.q_proj".into()], qkv), Ok(false));
    assert_eq!(FusedModules::default().quantized(&["self_attn.qkv_proj".into()], qkv), Ok(true));
}

/// Mixed parts are an error even where a rule would skip the module.
#[test]
fn mixed_parts_come_before_rules() {
    let config = gptq(json!({"dynamic": {"-:.*": {}}, "modules_in_block_to_quantize": [["self_attn.q_proj"]]}));
    let config = ModuleConfig::read("gptq", &config).unwrap();
    let error = config.resolve(Layer::Linear, QKV, &FusedModules::llama(), AMPERE).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("Detected some but not all shards of {QKV} are quantized. All shards of fused layers to have the same precision.")
    );
    let other = "model.layers.0.mlp.down_proj";
    assert_eq!(linear(&config, other), Resolution::Unquantized(Unquantized::NotListed));
}

#[test]
fn lists_are_inferred_and_renamed() {
    let inferred = infer_modules([
        ("model.language_model.layers.0.mlp.up_proj.qweight", DType::I32),
        ("model.language_model.layers.0.mlp.up_proj.scales", DType::F16),
        ("model.language_model.layers.0.norm.weight", DType::BF16),
        ("model.language_model.layers.0.mlp.up_proj.qzeros", DType::I32),
        ("visual.x.weight", DType::F32),
        ("lm_head.qweight", DType::I32),
    ]);
    assert_eq!(inferred, ["lm_head", "model.language_model.layers.0.mlp.up_proj"]);
    let mut config = ModuleConfig::read("gptq", &gptq(json!({"modules_in_block_to_quantize": []}))).unwrap();
    config.infer_modules(inferred);
    let to = |name: &str| Some(name.to_string());
    let map = NameMap {
        prefixes: vec![("model.language_model.".into(), to("language_model.model.")), ("lm_head".into(), to("language_model.lm_head"))],
        ..NameMap::default()
    };
    config.rename_modules(&map);
    assert_eq!(config.modules(), ["language_model.lm_head", "language_model.model.layers.0.mlp.up_proj"]);
    let map = NameMap {
        substrings: vec![(".a.".into(), to(".b.")), (".gone.".into(), None)],
        suffixes: vec![(".g".into(), to(".gamma"))],
        ..NameMap::default()
    };
    assert_eq!(map.apply("x.a.a.g").as_deref(), Some("x.b.a.gamma"));
    assert_eq!(map.apply("x.gone.y"), None);
    let mut given = ModuleConfig::read("gptq", &gptq(json!({"modules_in_block_to_quantize": [["a", "b"], ["c"]]}))).unwrap();
    given.infer_modules(vec!["d".into()]);
    assert_eq!(given.modules(), ["a", "b", "c"]);
}

#[test]
fn heads_and_other_layers() {
    let resolve = |config: &ModuleConfig, layer, prefix| config.resolve(layer, prefix, &FusedModules::llama(), AMPERE).unwrap();
    let with_head = with_rules("gptq_marlin", json!({}));
    assert_eq!(scheme(resolve(&with_head, Layer::Head, "lm_head")).bits, 4);
    let skipped = with_rules("gptq_marlin", json!({"-:lm_head": {}}));
    assert!(matches!(resolve(&skipped, Layer::Head, "lm_head"), Resolution::Unquantized(Unquantized::Skipped { .. })));
    let plain = ModuleConfig::read("gptq", &gptq(json!({"modules_in_block_to_quantize": ["lm_head"]}))).unwrap();
    assert_eq!(resolve(&plain, Layer::Head, "lm_head"), Resolution::Unquantized(Unquantized::Head));
    assert_eq!(resolve(&with_head, Layer::Other, "model.embed_tokens"), Resolution::Unquantized(Unquantized::Layer));
    // a module without a name takes the config as it is
    let named = with_rules("gptq_marlin", json!({".*": {"bits": 8}}));
    let all = FusedModules::default();
    assert_eq!(named.resolve(Layer::Linear, "", &all, AMPERE).unwrap(), Resolution::Unquantized(Unquantized::NotListed));
}

#[test]
fn experts() {
    let shape = MoeShape { hidden_size: 2048, intermediate_per_rank: 768, silu: true, router_weight_on_input: false };
    let prefix = "model.layers.3.mlp.experts";
    let resolve = |config: &ModuleConfig, shape| config.resolve(Layer::Experts(shape), prefix, &FusedModules::llama(), AMPERE).unwrap();
    let config = with_rules("gptq_marlin", json!({".*experts": {"bits": 8}}));
    let found = scheme(resolve(&config, shape));
    assert_eq!((found.method, found.bits, found.desc_act), ("gptq_marlin", 8, true));
    let skipped = with_rules("gptq_marlin", json!({"-:.*experts": {}}));
    assert!(matches!(resolve(&skipped, shape), Resolution::Unquantized(Unquantized::Skipped { .. })));
    for odd in [
        MoeShape { hidden_size: 2000, ..shape },
        MoeShape { intermediate_per_rank: 192, ..shape },
        MoeShape { silu: false, ..shape },
        MoeShape { router_weight_on_input: true, ..shape },
    ] {
        let Resolution::Quantized { scheme, notes } = resolve(&config, odd) else { panic!("{odd:?}") };
        // the fall-back reads the config as it stands: neither rules nor act-order
        assert_eq!((scheme.method, scheme.bits, scheme.desc_act), ("moe_wna16", 4, false));
        let warning = format!("Layer '{prefix}' is not supported by GPTQMoeMarlin. Falling back to Moe WNA16 kernels.");
        assert_eq!(notes[0], Note::Warning(warning));
        assert!(matches!(&notes[1], Note::Silent(text) if text.contains("`g_idx` is ignored")));
    }
    let plain = ModuleConfig::read("gptq", &gptq(json!({"sym": false, "dynamic": {"-:.*": {}}}))).unwrap();
    let Resolution::Quantized { scheme, notes } = resolve(&plain, shape) else { panic!("skipped") };
    assert_eq!((scheme.method, scheme.sym, notes.len()), ("moe_wna16", true, 2));
}

#[test]
fn what_later_releases_refuse() {
    let found = |changes: Value| -> Vec<(&str, Option<String>, String)> {
        later_refusals(&gptq(changes)).into_iter().map(|r| (r.since, r.rule, r.error.to_string())).collect()
    };
    let act_order = "GPTQ group activation ordering (desc_act=True) is no longer supported. Use a checkpoint with static activation \
                     ordering or desc_act=False.";
    let kind = |bits, sym| ("0.27", None, format!("Unsupported quantization config: bits={bits}, sym={sym}"));
    assert_eq!(found(json!({"desc_act": false})), []);
    assert_eq!(found(json!({"group_size": -1})), []);
    assert_eq!(found(json!({})), [("0.33", None, act_order.to_string())]);
    assert_eq!(found(json!({"bits": 2, "desc_act": false})), [kind("2", "True")]);
    assert_eq!(found(json!({"sym": false})), [kind("4", "False"), ("0.33", None, act_order.into())]);
    assert_eq!(found(json!({"sym": null, "desc_act": false})), [kind("4", "None")]);
    // a rule may ask for it, one that skips does not, and what the config says is said once
    let rules = json!({"-:.*up.*": {"bits": 2}, "+:.*down.*": {"bits": 8, "desc_act": true}, ".*gate.*": {"sym": false}, ".*": {}});
    let gate = ("0.27", Some(".*gate.*".into()), "Unsupported quantization config: bits=4, sym=False".to_string());
    let down = ("0.33", Some("+:.*down.*".into()), act_order.to_string());
    assert_eq!(found(json!({"desc_act": false, "dynamic": rules.clone()})), [down, gate.clone()]);
    assert_eq!(found(json!({"dynamic": rules})), [("0.33", None, act_order.into()), gate]);
    assert_eq!(later_refusals(&awq(json!({"desc_act": true}))), []);
}
