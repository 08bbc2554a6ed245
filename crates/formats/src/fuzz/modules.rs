//! Targets that read tensors: the input decides on a layout and its numbers, and gives the tensors' bytes.

use super::Run;
use super::folder::{read, same};
use super::input::Input;
use super::layouts::{Folder, Shape};
use crate::{Checkpoint, FormatError, Target, ZeroLabel, convert as convert_folder};
use billfish_tensor::{DType, Packing};
use serde_json::{Value, json};

const NAMES: [&str; 2] = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"];

/// Builds, damages and opens a folder, and reads all of it.
fn run_on(mut build: impl FnMut(&mut Input<'_>) -> Folder, data: &[u8], run: &mut Run) {
    let mut input = Input::new(data);
    let mut folder = build(&mut input);
    folder.damage(&mut input);
    if let Some(folder) = run.value(folder.open(&mut input)) {
        read(folder, run);
    }
}

/// GPTQ in every packing and width of words.
pub(super) fn gptq(data: &[u8], run: &mut Run) {
    run_on(gptq_folder, data, run);
}

/// AWQ gemm.
pub(super) fn awq(data: &[u8], run: &mut Run) {
    run_on(awq_folder, data, run);
}

/// compressed-tensors, both generations of packing.
pub(super) fn pack_quantized(data: &[u8], run: &mut Run) {
    run_on(|input| compressed_folder(input, true), data, run);
}

/// compressed-tensors, a byte a code.
pub(super) fn int_quantized(data: &[u8], run: &mut Run) {
    run_on(|input| compressed_folder(input, false), data, run);
}

/// AutoRound in either layout.
pub(super) fn auto_round(data: &[u8], run: &mut Run) {
    run_on(auto_round_folder, data, run);
}

/// Dense tensors, under a config or none.
pub(super) fn dense(data: &[u8], run: &mut Run) {
    run_on(dense_folder, data, run);
}

/// Any of these folders, written as any target; what comes out is read and holds the same weights unless losses are told.
pub(super) fn convert(data: &[u8], run: &mut Run) {
    let mut input = Input::new(data);
    let target = input.pick(&[
        Target::Gptq,
        Target::GptqV2,
        Target::GptqP,
        Target::Awq,
        Target::CompressedTensors,
        Target::Dense(DType::F32),
        Target::Dense(DType::F16),
        Target::Dense(DType::BF16),
    ]);
    let allow_lossy = input.flag();
    let mut folder = match input.below(6) {
        0 => gptq_folder(&mut input),
        1 => awq_folder(&mut input),
        2 => compressed_folder(&mut input, true),
        3 => compressed_folder(&mut input, false),
        4 => auto_round_folder(&mut input),
        _ => dense_folder(&mut input),
    };
    folder.damage(&mut input);
    let Some(source) = run.value(folder.open(&mut input)) else { return };
    let out = run.scratch.join("out");
    let converted = run.value(convert_folder(&source, &out, target, allow_lossy, &mut |_, _| ()));
    if let Some(converted) = converted {
        run.note(format!("{target} {}", converted.losses.len()));
        converted.losses.iter().for_each(|loss| run.note(&loss.what));
        let check = || -> Result<(), FormatError> {
            // as labelled: codes of noise may be centred anywhere, and then they speak for the other reading
            let label = match target {
                Target::Gptq => Some(ZeroLabel::V1),
                Target::GptqV2 => Some(ZeroLabel::V2),
                _ => None,
            };
            let mut written = Checkpoint::open(&out)?;
            if written.quantization().is_some() {
                written = written.with_zeros(label)?;
            }
            for module in written.quantized_modules() {
                written.describe(&module)?;
            }
            // a folder whose dense tensors are of a type that nobody reads is copied, and compared no further
            let equal = same(&source, &written)?;
            assert!(equal || !converted.losses.is_empty(), "what is written without a loss is the same");
            Ok(())
        };
        let checked = check();
        std::fs::remove_dir_all(&out).expect("the folder was written");
        checked.expect("what was written can be read");
    }
    assert!(!out.exists(), "a conversion that failed leaves nothing");
}

fn names(input: &mut Input<'_>) -> &'static [&'static str] {
    if input.byte() % 4 == 3 { &NAMES } else { &NAMES[..1] }
}

fn gptq_folder(input: &mut Input<'_>) -> Folder {
    let shape = Shape::read(input, &[4, 2, 3, 8, 5, 6, 7]);
    let format = input.pick(&["gptq", "gptq_v2", "gptq_p"]);
    let word = input.pick(&[32, 32, 32, 32, 8, 16, 64]);
    let planar = format == "gptq_p" || matches!(shape.bits, 5..=7);
    let mut folder = Folder::new(json!({"bits": shape.bits, "group_size": shape.group_size, "quant_method": "gptq"}));
    folder.maybe(input, "checkpoint_format", &[json!(format), json!(format), json!(format)]);
    folder.maybe(input, "sym", &[json!(true), json!(false)]);
    folder.maybe(input, "desc_act", &[json!(true), json!(false)]);
    folder.maybe(input, "pack_dtype", &[json!(format!("int{word}")), json!("int32")]);
    let writers = ["gptqmodel:7.7.0", "gptqmodel:5.8.0", "gptqmodel:0.9.0", "autogptq:0.7.1", "auto_gptq", "other:1"];
    let meta: Vec<Value> = writers.map(|w| json!({"quantizer": [w]})).to_vec();
    folder.maybe(input, "meta", &meta);
    let rules = [json!({"+:.*q_proj": {"bits": shape.bits}}), json!({"-:.*k_proj": {}}), json!({".*": {"group_size": 8, "sym": true}})];
    folder.maybe(input, "dynamic", &rules);
    for name in names(input) {
        folder.gptq(input, name, shape, if planar { Packing::Planar } else { Packing::Continuous }, word);
    }
    folder
}

fn awq_folder(input: &mut Input<'_>) -> Folder {
    let shape = Shape::read(input, &[4]);
    let keys = json!({"quant_method": "awq", "bits": 4, "group_size": shape.group_size, "version": "gemm"});
    let mut folder = Folder::new(keys);
    folder.maybe(input, "zero_point", &[json!(true), json!(true), json!(false)]);
    folder.maybe(input, "modules_to_not_convert", &[json!(["k_proj"]), json!(["lm_head"]), json!([""])]);
    for name in names(input) {
        folder.awq(input, name, shape);
    }
    folder
}

fn compressed_folder(input: &mut Input<'_>, packed: bool) -> Folder {
    let shape = Shape::read(input, &[4, 8, 2, 3, 5, 6, 7]);
    let padded = input.flag();
    let strategy = if shape.group_size == -1 { input.pick(&["channel", "tensor"]) } else { "group" };
    let weights = json!({
        "num_bits": shape.bits,
        "type": "int",
        "symmetric": input.flag(),
        "strategy": strategy,
        "group_size": if strategy == "group" { json!(shape.group_size) } else { Value::Null },
        "actorder": input.pick(&[None, Some("group"), Some("weight")]),
    });
    let targets = input.pick(&["Linear", "re:.*_proj", "LlamaAttention"]);
    let mut folder = Folder::new(json!({
        "quant_method": "compressed-tensors",
        "format": if packed { "pack-quantized" } else { "int-quantized" },
        "config_groups": {"group_0": {"targets": [targets], "weights": weights}},
    }));
    folder.maybe(input, "version", &[json!("0.17.1"), json!("0.18.0")]);
    folder.maybe(input, "ignore", &[json!(["re:.*k_proj"]), json!(["lm_head"])]);
    for name in names(input) {
        folder.compressed(input, name, shape, packed, padded);
    }
    folder
}

fn auto_round_folder(input: &mut Input<'_>) -> Folder {
    let format = input.pick(&["auto_round:auto_gptq", "auto_round", "auto_round:gptqmodel", "auto_round:auto_awq"]);
    let awq = format.ends_with("awq");
    let shape = Shape::read(input, if awq { &[4] } else { &[4, 2, 3, 8] });
    let keys = json!({"quant_method": "auto-round", "bits": shape.bits, "group_size": shape.group_size, "packing_format": format});
    let mut folder = Folder::new(keys);
    folder.maybe(input, "sym", &[json!(true), json!(false)]);
    folder.maybe(input, "block_name_to_quantize", &[json!("model.layers"), json!(["model.layers", "x"])]);
    let extra = [json!({NAMES[1]: {"bits": 16}}), json!({".*k_proj": {"bits": shape.bits, "group_size": 8}})];
    folder.maybe(input, "extra_config", &extra);
    for name in names(input) {
        match awq {
            true => folder.awq(input, name, shape),
            false => folder.gptq(input, name, shape, Packing::Continuous, 32),
        }
    }
    folder
}

fn dense_folder(input: &mut Input<'_>) -> Folder {
    let shape = Shape::read(input, &[4]);
    let config = if input.byte() % 4 == 3 { json!({"bits": 4, "group_size": shape.group_size}) } else { Value::Null };
    let mut folder = Folder::new(config);
    for name in names(input) {
        match input.byte() % 8 {
            7 => {
                let dtype = input.pick(&[DType::F64, DType::I32, DType::Bool, DType::U8, DType::I8, DType::F8E4M3, DType::I64]);
                folder.fill(input, format!("{name}.weight"), dtype, &[shape.n, shape.k]);
            }
            _ => folder.floats(input, format!("{name}.weight"), &[shape.n, shape.k]),
        }
        folder.bias(input, format!("{name}.bias"), shape.n);
    }
    folder.floats(input, "model.norm.weight".into(), &[shape.k]);
    folder
}
