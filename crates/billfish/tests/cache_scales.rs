//! What a user sees of a folder that has scales for its cache of keys and values.

mod common;

use common::{Folder, doctor, error, mentions, ok};
use serde_json::json;

const FLAG: &str = "--kv-cache-dtype fp8_e4m3 (or fp8_e5m2) applies them";

/// A folder with a scale for the keys and one for the values of each layer.
fn scaled(scale: f32) -> Folder {
    let f = Folder::of("llama-ct-w4a16-g32");
    f.tensors(|t| {
        for layer in 0..2 {
            for name in ["k_scale", "v_scale"] {
                let tensor = ("F32".into(), vec![1], scale.to_le_bytes().to_vec());
                t.insert(format!("model.layers.{layer}.self_attn.{name}"), tensor);
            }
        }
    });
    f.json("config.json", |c| {
        c["quantization_config"]["kv_cache_scheme"] = json!({"num_bits": 8, "type": "float", "symmetric": true, "dynamic": false});
    });
    f
}

#[test]
fn scales_are_used_or_the_flag_that_uses_them_is_named() {
    let f = scaled(0.03);
    let run = |kind: &str| {
        let prompt = "the king of the forest went to the sea and came back to the old house by the long road";
        ok(&["run", f.dir(), "--prompt", prompt, "--max-tokens", "4", "--temperature", "0", "--kv-cache-dtype", kind]).1
    };
    for kind in ["auto", "f32", "int8"] {
        let said = run(kind);
        assert!(said.contains(FLAG) && said.contains("not applied with") && !said.contains("folder's scales"), "{kind}: {said}");
    }
    for kind in ["fp8_e4m3", "fp8_e5m2"] {
        let said = run(kind);
        assert!(said.contains(&format!("keys and values in {kind} by the folder's scales")), "{said}");
        assert!(!said.contains("not applied") && !said.contains("not used"), "{said}");
    }
    let (out, err) = ok(&["inspect", f.dir()]);
    assert!((out.clone() + &err).contains(FLAG), "{out} {err}");
    let (_, found) = doctor(f.dir(), &[]);
    assert!(mentions(&found["findings"], "note", &["cache", FLAG]), "{found}");
}

/// Scales of another cache than one of 8-bit floats go where the config can say so, and nowhere else.
#[test]
fn converted_scales_keep_their_meaning() {
    let out = tempfile::tempdir().unwrap();
    for kind in ["float", "int"] {
        let f = scaled(0.03);
        let scheme = json!({"num_bits": 8, "type": kind, "symmetric": true, "dynamic": false});
        f.json("config.json", |c| c["quantization_config"]["kv_cache_scheme"] = scheme.clone());
        for target in ["compressed-tensors", "gptq", "dense"] {
            let dir = out.path().join(format!("{kind}-{target}"));
            let dir = dir.to_str().unwrap();
            let (_, said) = ok(&["convert", f.dir(), dir, "--to", target, "--allow-lossy"]);
            let goes = kind == "float" || target == "compressed-tensors";
            assert_eq!(said.contains("left out: `model.layers.0.self_attn.k_scale`"), !goes, "{kind} {target}: {said}");
            let (listed, noted) = ok(&["inspect", dir, "--json"]);
            assert_eq!((listed + &noted).contains(FLAG), kind == "float", "{kind} {target}");
            let config: serde_json::Value = serde_json::from_slice(&std::fs::read(format!("{dir}/config.json")).unwrap()).unwrap();
            let kept = (target == "compressed-tensors").then_some(&scheme);
            assert_eq!(config["quantization_config"].get("kv_cache_scheme"), kept, "{kind} {target}");
        }
    }
}

#[test]
fn a_wrong_scale_ends_a_run() {
    let message = error(&["run", scaled(-1.0).dir(), "--prompt", "a", "--max-tokens", "1"]);
    for words in ["model.safetensors", "`model.layers.0.self_attn.k_scale`", "expected finite scales above 0", "found -1", "calibrate"] {
        assert!(message.contains(words), "{words} in {message}");
    }
}
