//! Folders that cannot be read: each error names the file, the tensor or key, what was expected and what was found.

mod common;

use billfish_formats::{BiasRule, Checkpoint, FormatError};
use billfish_tensor::DType;
use common::{Folder, Temp, Tensor, fixture, holds, write_shard};
use serde_json::json;
use std::path::Path;

const Q: &str = "model.layers.0.self_attn.q_proj";

fn open_error(dir: &Path) -> String {
    Checkpoint::open(dir).expect_err("the folder must not open").to_string()
}

/// The error of reading the first module of a changed folder.
fn read_error(change: impl FnOnce(&mut Folder) -> &mut Folder) -> String {
    let mut folder = Folder::of("llama-w4-sym-g32-act");
    change(&mut folder);
    let dir = folder.write();
    let open = Checkpoint::open(&dir.0).unwrap();
    open.linear(Q, 128, 128, BiasRule::Absent).expect_err("the module must not read").to_string()
}

/// The error of opening a folder whose quantization config is changed.
fn config_error(key: &str, value: serde_json::Value) -> String {
    let mut folder = Folder::of("llama-w4-sym-g128");
    folder.set(key, value);
    open_error(&folder.write().0)
}

fn tensor(name: &str) -> String {
    format!("tensor `{Q}.{name}`")
}

#[test]
fn folders_that_are_none() {
    holds(&open_error(Path::new("TheBloke/Llama-2-7B-GPTQ")), &["TheBloke/Llama-2-7B-GPTQ", "found nothing", "hub are not downloaded"]);
    holds(&open_error(&fixture("llama-w4-sym-g128/config.json")), &["a model folder, found a file"]);
    let empty = Temp::new();
    holds(&open_error(&empty.0), &["a config.json, found none"]);
    std::fs::write(empty.0.join("config.json"), "{}").unwrap();
    holds(&open_error(&empty.0), &["found no safetensors file"]);
    std::fs::write(empty.0.join("pytorch_model.bin"), "").unwrap();
    holds(&open_error(&empty.0), &["found only pytorch_model.bin", "pickle files can run code and are refused"]);
    for name in ["x.safetensors", "y.safetensors"] {
        std::fs::write(empty.0.join(name), "").unwrap();
    }
    holds(&open_error(&empty.0), &["x.safetensors, y.safetensors without an index", "keep one file only"]);
}

#[test]
fn a_config_that_is_no_json() {
    for (text, found) in
        [("{\"a\": ", "EOF while parsing"), ("[1]", "a list of 1"), ("\u{feff}{}", "line 1"), ("{\"a\":1,\"a\":2}", "key `a` twice")]
    {
        let mut folder = Folder::of("llama-w4-sym-g128");
        folder.json("config.json", text);
        holds(&open_error(&folder.write().0), &["config.json: expected a JSON object", found]);
    }
}

#[test]
fn a_truncated_shard() {
    let dir = Folder::of("llama-w4-sym-g128").write();
    let path = dir.0.join("model.safetensors");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let whole = file.metadata().unwrap().len();
    file.set_len(whole - 1).unwrap();
    holds(&open_error(&dir.0), &["model.safetensors", "tensor `model.norm.weight`", "data_offsets inside", "download or write it again"]);
    file.set_len(100).unwrap();
    holds(&open_error(&dir.0), &["a header inside the file", "in a file of 100 bytes"]);
    file.set_len(7).unwrap();
    holds(&open_error(&dir.0), &["8 bytes of header length, found a file of 7 bytes"]);
}

/// A file that shrinks while it is open is an error of the read that misses its bytes, not the end of the process.
#[test]
fn a_shard_that_shrinks_while_open() {
    let dir = Folder::of("llama-w4-sym-g128").write();
    let open = Checkpoint::open(&dir.0).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(dir.0.join("model.safetensors")).unwrap();
    file.set_len(20_000).unwrap();
    let e = open.linear(Q, 128, 128, BiasRule::Absent).unwrap_err();
    assert!(matches!(e, FormatError::Io { .. }), "{e}");
    holds(&e.to_string(), &["model.safetensors", "its permissions and the disk"]);
}

#[test]
fn headers() {
    let with = |length: u64, json: &str, data: usize| {
        let dir = Temp::new();
        std::fs::write(dir.0.join("config.json"), "{}").unwrap();
        let bytes = [&length.to_le_bytes()[..], json.as_bytes(), &vec![0; data]].concat();
        std::fs::write(dir.0.join("model.safetensors"), bytes).unwrap();
        open_error(&dir.0)
    };
    let header = |json: &str, data: usize| with(json.len() as u64, json, data);
    holds(&with(1000, "{}", 0), &["a header length of 1000 in a file of 10 bytes"]);
    holds(&with(u64::MAX, "{}", 0), &["at most 100000000 bytes", "found 18446744073709551615"]);
    holds(&header("[]", 0), &["starts with `{`"]);
    holds(&header("", 0), &["starts with `{`"]);
    let one = |entry: &str, data: usize| header(&format!("{{\"t\":{entry}}}"), data);
    let e = one(r#"{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551612,18446744073709551615]}"#, 4);
    holds(&e, &["tensor `t`", "data_offsets inside the 4 bytes of data, found [18446744073709551612, 18446744073709551615]"]);
    holds(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#, 4), &["begin <= end, found [4, 0]"]);
    holds(&one(r#"{"dtype":"F4","shape":[1],"data_offsets":[0,4]}"#, 4), &["tensor `t`", "a dtype that is known", "found `F4`"]);
    holds(&one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#, 4), &["tensor `t`", "integer `-1`"]);
    holds(&one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#, 4), &["8 bytes for F32 [2], found 4 bytes"]);
    let e = one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}"#, 4);
    holds(&e, &["a size that fits in 64 bits"]);
    holds(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#, 8), &["ends with its last tensor", "a file of"]);
    holds(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#, 8), &["a hole before it"]);
    holds(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}"#, 4), &["unknown field `x`"]);
    let t = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    holds(&header(&format!("{{\"t\":{t},\"t\":{t}}}"), 4), &["tensor `t` twice"]);
    holds(&header(&format!("{{\"t\":{t},\"u\":{t}}}"), 4), &["tensor `u`", "an overlap with the tensor before it"]);
    holds(&header(&format!("{{\"t\":{}", "[".repeat(1000)), 0), &["model.safetensors: safetensors header"]);
}

#[test]
fn shapes_of_each_tensor() {
    let flat = |t: &mut Tensor| t.shape = vec![t.shape.iter().product()];
    let e = read_error(|f| f.edit(&format!("{Q}.qweight"), flat));
    holds(&e, &[&tensor("qweight"), "shape [16, 128] (4 bit codes of a [128, 128] weight)", "shape [2048]", "model.safetensors"]);
    let e = read_error(|f| f.edit(&format!("{Q}.qzeros"), flat));
    holds(&e, &[&tensor("qzeros"), "shape [4, 16] (4 bit, 4 groups), found shape [64]"]);
    let e = read_error(|f| f.edit(&format!("{Q}.scales"), flat));
    holds(&e, &[&tensor("scales"), "shape [4, 128] (group_size 32), found shape [512]"]);
    let e = read_error(|f| f.edit(&format!("{Q}.g_idx"), |t| t.shape = vec![1, 128]));
    holds(&e, &[&tensor("g_idx"), "shape [128], found shape [1, 128]"]);
    let e = read_error(|f| f.set("bits", json!(8)));
    holds(&e, &[&tensor("qweight"), "shape [32, 128] (8 bit", "found shape [16, 128], which would be 4 bit", "check bits"]);
}

#[test]
fn another_group_size_without_an_index() {
    let mut folder = Folder::of("llama-w4-sym-g128");
    folder.set("group_size", json!(64)).remove(&format!("{Q}.g_idx"));
    let dir = folder.write();
    let e = Checkpoint::open(&dir.0).unwrap().linear(Q, 128, 128, BiasRule::Absent).unwrap_err().to_string();
    holds(&e, &[&tensor("scales"), "shape [2, 128] (group_size 64), found shape [1, 128]"]);
}

#[test]
fn types_of_each_tensor() {
    let as_f32 = |t: &mut Tensor| t.dtype = DType::F32;
    for name in ["qweight", "qzeros"] {
        holds(&read_error(|f| f.edit(&format!("{Q}.{name}"), as_f32)), &[&tensor(name), "dtype I32 or U32, found dtype F32"]);
    }
    let e = read_error(|f| f.edit(&format!("{Q}.scales"), |t| t.dtype = DType::I16));
    holds(&e, &[&tensor("scales"), "dtype F16 or BF16 or F32, found dtype I16"]);
    holds(&read_error(|f| f.edit(&format!("{Q}.g_idx"), as_f32)), &[&tensor("g_idx"), "dtype I32 or I64"]);
}

#[test]
fn values() {
    for (value, found) in [(4u32, "4 at [7]"), (-5i32 as u32, "-5 at [7]")] {
        let e = read_error(|f| f.edit(&format!("{Q}.g_idx"), |t| t.bytes[28..32].copy_from_slice(&value.to_le_bytes())));
        holds(&e, &[&tensor("g_idx"), "groups below 4, the number of scales a column has", found]);
    }
    for (bits, found) in [(0x7e00u16, "NaN"), (0x7c00, "inf")] {
        let place = 2 * (2 * 128 + 5);
        let e = read_error(|f| f.edit(&format!("{Q}.scales"), |t| t.bytes[place..place + 2].copy_from_slice(&bits.to_le_bytes())));
        holds(&e, &[&tensor("scales"), "a finite number", &format!("{found} at [2, 5]")]);
    }
}

#[test]
fn missing_and_doubled_tensors() {
    for name in ["qzeros", "scales"] {
        holds(&read_error(|f| f.remove(&format!("{Q}.{name}"))), &[&tensor(name), "found none of that name", "incomplete"]);
    }
    let e = read_error(|f| f.remove(&format!("{Q}.qweight")));
    holds(&e, &[&format!("`{Q}.qweight`, `{Q}.weight_packed`, `{Q}.B` or `{Q}.weight`, found none of them")]);
    let e = read_error(|f| f.put(&format!("{Q}.weight"), Tensor::f32(&[1], &[0.0])));
    holds(&e, &[&tensor("weight"), &format!("either `{Q}.qweight` or `{Q}.weight`, found both")]);
    let e = read_error(|f| {
        f.files.remove("quantize_config.json");
        f.json("config.json", "{}")
    });
    holds(&e, &[&tensor("qweight"), "a quantization config beside a quantized tensor, found none", "add quantize_config.json"]);
}

#[test]
fn biases() {
    let with = |values: &[f32], rule: BiasRule| {
        let mut folder = Folder::of("llama-w4-sym-g128");
        if !values.is_empty() {
            folder.put(&format!("{Q}.bias"), Tensor::f32(&[values.len()], values));
        }
        let dir = folder.write();
        Checkpoint::open(&dir.0).unwrap().linear(Q, 128, 128, rule).unwrap_err().to_string()
    };
    let mut values = [0.0; 128];
    values[3] = 0.5;
    holds(&with(&values, BiasRule::Absent), &[&tensor("bias"), "no bias, or one full of zeros, found 0.5 at [3]"]);
    values[3] = f32::NAN;
    holds(&with(&values, BiasRule::Optional), &[&tensor("bias"), "finite numbers, found NaN at [3]"]);
    holds(&with(&values[..64], BiasRule::Optional), &[&tensor("bias"), "shape [128], found shape [64]"]);
    holds(&with(&[], BiasRule::Required), &[&tensor("bias"), "found none of that name"]);
}

#[test]
fn dense_tensors() {
    let open = Checkpoint::open(&fixture("llama-w4-sym-g128")).unwrap();
    let error = |name: &str, shape: &[usize]| open.dense(name, shape).unwrap_err().to_string();
    holds(&error("model.norm.weight", &[64]), &["tensor `model.norm.weight`", "shape [64], found shape [128]", "config.json"]);
    holds(&error("model.nothing", &[1]), &["tensor `model.nothing`", "found none of that name"]);
    holds(&error(&format!("{Q}.qweight"), &[16, 128]), &["dtype F32 or F16 or BF16, found dtype I32"]);
}

#[test]
fn quantization_configs() {
    for (key, value, parts) in [
        ("bits", json!(9), &["key `bits`", "an integer from 2 to 8, found 9"][..]),
        ("bits", json!("4"), &["found \"4\""]),
        ("bits", json!(true), &["found true"]),
        ("bits", json!(null), &["expected a value, found no such key"]),
        ("w_bit", json!(3), &["key `w_bit`", "expected 4 as under its other name `bits`, found 3"]),
        ("group_size", json!(0), &["key `group_size`", "-1 (one group a column) or at least 1, found 0"]),
        ("group_size", json!(-2), &["found -2"]),
        ("sym", json!("yes"), &["key `sym`", "true or false"]),
        ("zero_point", json!(true), &["key `zero_point`", "false beside sym true"]),
        ("desc_act", json!(1), &["key `desc_act`"]),
        ("quant_method", json!("fp8"), &["found \"fp8\"", "`gptq`", "`awq`", "`compressed-tensors`", "`auto-round`", "not read yet"]),
        ("quant_method", json!("awq"), &["key `method`", "the same as `quant_method`"]),
        (
            "checkpoint_format",
            json!("bitblas"),
            &["gptq, gptq_v2, gptq_p or marlin", "found \"bitblas\"", "2, 3, 4, 8 bit in the continuous layout"],
        ),
        ("format", json!("gptq_v2"), &["key `format`", "expected \"gptq\" as under its other name `checkpoint_format`"]),
        ("pack_dtype", json!("int4"), &["`int32` or `int64`, found \"int4\""]),
        ("is_marlin_format", json!("yes"), &["true or false"]),
        ("dynamic", json!([]), &["key `dynamic`", "an object, found a list of 0"]),
        ("dynamic", json!({"+:(": {}}), &["dynamic.+:(", "a regular expression"]),
        ("meta", json!({"quantizer": 7}), &["meta.quantizer", "`name:version`"]),
        ("modules_in_block_to_quantize", json!([[["x"]]]), &["a list (or a list of lists) of module names"]),
    ] {
        let e = config_error(key, value);
        holds(&e, parts);
        holds(&e, &["quantize_config.json"]);
    }
    let mut folder = Folder::of("llama-w4-sym-g128");
    folder.json("config.json", r#"{"quantization_config": 4}"#);
    holds(&open_error(&folder.write().0), &["config.json: key `quantization_config`: expected an object, found 4"]);
}

#[test]
fn methods_that_are_not_read_say_so() {
    let mut folder = Folder::of("llama-w4-sym-g128");
    folder.files.remove("quantize_config.json");
    folder.json("config.json", r#"{"quantization_config": {"quant_method": "bitsandbytes", "bits": 4}}"#);
    let e = open_error(&folder.write().0);
    holds(&e, &["config.json: key `quantization_config.quant_method`", "found \"bitsandbytes\"", "not read yet"]);
}

#[test]
fn shard_indexes() {
    let folder = Folder::of("llama-w4-sym-g128");
    let dir = folder.write();
    let index = dir.0.join("model.safetensors.index.json");
    let error = |map: serde_json::Value| {
        std::fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
        open_error(&dir.0)
    };
    holds(&error(json!({"a": "gone.safetensors"})), &["index.json: entry `gone.safetensors`", "found no such file"]);
    holds(&error(json!({"a": "model.safetensors"})), &["entry `a`", "the tensor in model.safetensors, found it in no shard"]);
    holds(&error(json!({"a": "model.safetensors.index.json"})), &["entry `a`", "a safetensors file, not an index"]);
    holds(&error(json!({"a": "../model.safetensors"})), &["entry `a`", "a plain file name inside the folder"]);
    holds(&error(json!({"a": "/etc/passwd"})), &["a plain file name"]);
    holds(&error(json!({"a": "model.bin"})), &["a *.safetensors file"]);
    holds(&error(json!({"a": 1})), &["entry `a`", "a file name, found 1"]);
    holds(&error(json!({})), &["at least one tensor"]);
    holds(&error(json!([])), &["entry `weight_map`"]);
    write_shard(&dir.0.join("b.safetensors"), folder.tensors.iter().take(1));
    let (name, _) = folder.tensors.iter().next().unwrap();
    holds(&error(json!({name: "b.safetensors", "model.norm.weight": "model.safetensors"})), &[name, "in one shard only", "b.safetensors"]);
    std::fs::remove_file(dir.0.join("model.safetensors")).unwrap();
    write_shard(&dir.0.join("c.safetensors"), folder.tensors.iter().skip(1));
    let (second, _) = folder.tensors.iter().nth(1).unwrap();
    holds(
        &error(json!({name: "b.safetensors", second: "b.safetensors", "model.norm.weight": "c.safetensors"})),
        &[second, "found it in c.safetensors"],
    );
}
