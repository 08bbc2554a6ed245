//! What a user sees: every command, on the built-in model and on fixtures.

mod common;

use common::{Folder, billfish, error, fixture, json, ok};
use serde_json::{Value, json};
use std::io::Write;
use std::process::Stdio;

fn ids(v: &Value) -> Vec<u64> {
    v.as_array().unwrap().iter().map(|i| i.as_u64().unwrap()).collect()
}

#[test]
fn run_streams_a_story_and_its_cost() {
    let (out, err) = ok(&["run", "--prompt", "Once upon a time", "--max-tokens", "30", "--seed", "7"]);
    assert!(out.starts_with("Once upon a time") && out.trim_end().len() > 60, "{out}");
    for word in ["load", "prompt 4 tokens", "generation 30 tokens", "tokens/s", "peak memory", "k4n16-w4", "seed 7"] {
        assert!(err.contains(word), "{word} in {err}");
    }
    let again = ok(&["run", "--prompt", "Once upon a time", "--max-tokens", "30", "--seed", "7", "--threads", "1"]).0;
    assert_eq!(out, again, "one seed, one story");
    assert_ne!(out, ok(&["run", "--prompt", "Once upon a time", "--max-tokens", "30", "--seed", "8"]).0);
}

#[test]
fn every_instruction_set_tells_the_same_story() {
    let run = |isa: &str| {
        let mut command = billfish(&["run", "--prompt", "The king said", "--max-tokens", "24", "--seed", "2"]);
        command.env("BILLFISH_ISA", isa);
        let (code, out, err) = common::output(command);
        assert_eq!(code, 0, "{err}");
        assert!(err.contains(&format!("on {isa}")), "{err}");
        out
    };
    let scalar = run("scalar");
    for isa in billfish::Isa::available() {
        assert_eq!(run(isa.name()), scalar, "{isa:?}");
    }
}

#[test]
fn run_json_is_one_object() {
    let v = json(&["run", "--prompt", "Once upon a time", "--max-tokens", "12", "--seed", "7", "--json"]);
    assert_eq!((v["finish_reason"].as_str(), v["seed"].as_u64()), (Some("length"), Some(7)));
    assert_eq!(ids(&v["token_ids"]).len(), 12);
    assert_eq!(v["timings"]["generation_tokens"], 12);
    assert!(v["timings"]["load_s"].as_f64().unwrap() > 0.0 && v["peak_memory_bytes"].as_u64().unwrap() > 1_000_000);
    let text = v["text"].as_str().unwrap();
    let streamed = ok(&["run", "--prompt", "Once upon a time", "--max-tokens", "12", "--seed", "7"]).0;
    assert_eq!(streamed, format!("Once upon a time{text}\n"));
}

#[test]
fn prompts_come_from_files_and_standard_input() {
    let want = ok(&["run", "--prompt", "In the forest", "--max-tokens", "8", "--seed", "1"]).0;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.txt");
    std::fs::write(&file, "In the forest").unwrap();
    assert_eq!(ok(&["run", "--prompt-file", file.to_str().unwrap(), "--max-tokens", "8", "--seed", "1"]).0, want);
    for args in [["--prompt", "-"], ["--prompt-file", "-"]] {
        let mut command = billfish(&["run", args[0], args[1], "--max-tokens", "8", "--seed", "1"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"In the forest").unwrap();
        assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(), want);
    }
}

#[test]
fn sampling_flags_do_something() {
    let base = ["run", "--prompt", "Once upon a time there", "--max-tokens", "20", "--seed", "5", "--json"];
    let with = |extra: &[&str]| ids(&json(&[&base[..], extra].concat())["token_ids"]);
    let plain = with(&[]);
    let greedy = with(&["--temperature", "0"]);
    assert_eq!(greedy, with(&["--top-k", "1"]), "the most probable token is argmax");
    assert_eq!(greedy, with(&["--min-p", "1"]));
    assert_ne!(plain, greedy);
    assert_ne!(plain, with(&["--temperature", "2.5", "--top-p", "1"]));
    assert_ne!(greedy, with(&["--temperature", "0", "--repetition-penalty", "3"]));
    let v = json(&[&base[..], &["--stop", "a", "--stop", "e"]].concat());
    assert_eq!(v["finish_reason"], "stop");
    assert!(!v["text"].as_str().unwrap().contains(['a', 'e']));
}

#[test]
fn end_of_sequence_ends_unless_ignored() {
    // make the token that greedy decoding says first the end of the sequence
    let f = Folder::of("llama-w4-sym-g128");
    let base = ["run", f.dir(), "--prompt", "Once", "--max-tokens", "6", "--temperature", "0", "--json"];
    let free = ids(&json(&base)["token_ids"]);
    f.json("generation_config.json", |g| drop(g.insert("eos_token_id".into(), json!([free[1], 2]))));
    let ended = json(&base);
    assert_eq!((ids(&ended["token_ids"]), ended["finish_reason"].as_str()), (free[..2].to_vec(), Some("stop")));
    assert_eq!(ids(&json(&[&base[..], &["--ignore-eos"]].concat())["token_ids"]), free);
}

#[test]
fn chat_keeps_a_history_and_obeys_its_commands() {
    let mut command = billfish(&["chat", "--max-tokens", "12", "--seed", "3", "--verbose"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"Tell me a tale\nGo on\n/reset\nTell me a tale\n/system Be brief\nTell me a tale\n/nonsense\n/quit\nnever\n").unwrap();
    drop(input);
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success());
    let (out, err) = (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap());
    let costs: Vec<&str> = err.lines().filter(|l| l.contains("generation")).collect();
    assert_eq!(costs.len(), 4, "{err}");
    let prompts: Vec<u32> = costs.iter().map(|l| l.split("prompt ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()).collect();
    // the second turn runs only what is new, and after a reset the first answer comes again
    let answers: Vec<&str> = out.split_inclusive('\n').collect();
    assert!(out.contains(answers[0]) && prompts[1] < prompts[0] + 30, "{prompts:?}");
    assert!(err.contains("forgotten") && err.contains("system message is set") && err.contains("unknown command /nonsense"), "{err}");
}

/// Ctrl-C ends the reply; the conversation goes on.
#[cfg(unix)]
#[test]
fn an_interrupt_stops_the_reply_and_not_the_program() {
    use std::io::{BufRead, BufReader, Read};
    let mut command = billfish(&["chat", "--max-tokens", "200000", "--ignore-eos", "--seed", "3", "--verbose"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut out = child.stdout.take().unwrap();
    input.write_all(b"Tell me a tale\n").unwrap();
    out.read_exact(&mut [0; 40]).unwrap();
    let interrupted = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let drain = std::thread::spawn(move || out.read_to_end(&mut vec![]).unwrap());
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|l| l.unwrap());
    assert!(lines.any(|l| l.contains("[stopped]")));
    assert!(lines.next().unwrap().contains("generation"), "the reply is accounted for");
    input.write_all(b"/reset\n/quit\n").unwrap();
    assert!(lines.any(|l| l.contains("forgotten")), "the program goes on");
    assert!(child.wait().unwrap().success());
    drain.join().unwrap();
}

#[test]
fn chat_without_a_template_says_so() {
    let f = Folder::of("llama-w4-sym-g128");
    std::fs::remove_file(f.path("chat_template.jinja")).unwrap();
    let message = common::error(&["chat", f.dir()]);
    assert!(message.contains("template"), "{message}");
}

#[test]
fn inspect_says_what_each_module_is() {
    let path = fixture("llama-dynamic");
    let v = json(&["inspect", path.to_str().unwrap(), "--json", "--tensors"]);
    assert_eq!((v["model_type"].as_str(), v["supported"].as_bool()), (Some("llama"), Some(true)));
    let module =
        |name: &str| v["modules"].as_array().unwrap().iter().find(|m| m["module"] == name).unwrap_or_else(|| panic!("{name}")).clone();
    let down = module("model.layers.1.mlp.down_proj");
    assert_eq!((down["bits"].as_u64(), down["group_size"].as_i64()), (Some(8), Some(32)));
    assert_eq!(down["dynamic_rule"], r"+:.*\.down_proj");
    let skipped = module("model.layers.0.self_attn.o_proj");
    assert_eq!((skipped["quantized"].as_bool(), skipped["dynamic_rule"].as_str()), (Some(false), Some(r"-:.*\.0\.self_attn\.o_proj")));
    let gate = module("model.layers.1.mlp.gate_proj");
    assert_eq!((gate["bits"].as_u64(), gate["act_order"].as_bool(), gate["kernel"].as_str()), (Some(2), Some(true), Some("k4n16-w2")));
    assert!(v["tensors"].as_array().unwrap().len() > 50 && v["parameters"].as_u64().unwrap() > 300_000);
    let (text, _) = ok(&["inspect", path.to_str().unwrap()]);
    for word in ["8-bit, group 32, sym", "act-order", "v1", "k4n16-w2", "no warnings"] {
        assert!(text.contains(word), "{word} in {text}");
    }
}

#[test]
fn inspect_warns_of_what_a_reader_should_know() {
    let f = Folder::of("llama-dynamic");
    f.quantization("colour", json!("blue"));
    f.quantization("dynamic", json!({r"+:.*\.down_proj": {"bits": 8, "group_size": 32}, r"-:.*\.0\.self_attn\.o_proj": {}, r"+:.*\.1\.mlp\.(gate|up)_proj": {"bits": 2, "group_size": 32, "desc_act": true}, r"-:.*\.1\.mlp\.down_proj": {}, "+:nothing": {"bits": 3}}));
    let (text, _) = ok(&["inspect", f.dir()]);
    for word in ["colour", "nothing", "vLLM reads", "warning:"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    // what inspect warns of, run warns of too
    let (_, err) = ok(&["run", f.dir(), "--prompt", "x", "--max-tokens", "1"]);
    assert!(err.contains("warning: ") && err.contains("colour"), "{err}");
}

#[test]
fn inspect_names_what_is_missing_and_what_is_unused() {
    let f = Folder::of("llama-w4-sym-g128");
    f.header(|h| {
        let norm = h.remove("model.norm.weight").unwrap();
        h.insert("model.extra.weight".into(), norm);
    });
    let (text, _) = ok(&["inspect", f.dir()]);
    assert!(text.contains("module `model.norm` is missing") && text.contains("`model.extra.weight`"), "{text}");
    // a module that the config calls quantized and the tensors do not
    let f = Folder::of("llama-dynamic");
    f.quantization(
        "dynamic",
        json!({r"+:.*\.down_proj": {"bits": 8, "group_size": 32}, r"+:.*\.1\.mlp\.(gate|up)_proj": {"bits": 2, "group_size": 32}}),
    );
    let (text, _) = ok(&["inspect", f.dir()]);
    let (_, err) = ok(&["run", f.dir(), "--prompt", "x", "--max-tokens", "1"]);
    for place in [&text, &err] {
        assert!(place.contains("is dense though the quantization config"), "{place}");
    }
}

#[test]
fn inspect_describes_even_what_will_not_run() {
    let f = Folder::of("llama-w3-asym-g32");
    f.json("config.json", |c| drop(c.insert("model_type".into(), json!("mamba9"))));
    let v = json(&["inspect", f.dir(), "--json"]);
    assert_eq!(v["supported"], false);
    assert!(v["warnings"].to_string().contains("mamba9"));
    assert_eq!(v["modules"].as_array().unwrap().iter().filter(|m| m["bits"] == 3).count(), 14);
}

#[test]
fn eval_logits_matches_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("logits.safetensors");
    let (model, input) = (fixture("llama-w4-sym-g32-act"), fixture("expected/llama-w4-sym-g32-act.safetensors"));
    for (mode, tolerance) in [("strict", 2e-5), ("exact", 1e-3), ("int8", 0.2)] {
        ok(&[
            "eval",
            "logits",
            model.to_str().unwrap(),
            "--input-ids",
            input.to_str().unwrap(),
            "--output",
            output.to_str().unwrap(),
            "--activations",
            mode,
        ]);
        let read = |path: &std::path::Path| {
            let bytes = std::fs::read(path).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let t = file.tensor("logits").unwrap();
            (t.shape().to_vec(), t.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<f32>>())
        };
        let ((shape, got), (want_shape, want)) = (read(&output), read(&input));
        assert_eq!(shape, want_shape);
        let scale = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let worst = got.iter().zip(&want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / scale;
        assert!(worst <= tolerance && (mode != "int8" || worst > 1e-3), "{mode}: {worst}");
    }
}

#[test]
fn eval_ppl_names_its_protocol() {
    let text = fixture("text/valid-20k.txt");
    let v = json(&["eval", "ppl", "--text", text.to_str().unwrap(), "--protocol", "window:64", "--limit-tokens", "200", "--json"]);
    assert_eq!((v["protocol"].as_str(), v["tokens"].as_u64()), (Some("window:64"), Some(3 * 63)));
    assert!(v["ppl"].as_f64().unwrap() > 5.0 && v["ppl_se"].as_f64().unwrap() > 0.0);
    let (out, _) = ok(&["eval", "ppl", "--text", text.to_str().unwrap(), "--protocol", "llamacpp512", "--limit-tokens", "1100"]);
    assert!(out.contains("llamacpp512") && out.contains('±'), "{out}");
}

#[test]
fn synth_writes_a_folder_that_runs() {
    let dir = tempfile::tempdir().unwrap();
    for (spec, extra, kernel) in
        [("tiny:w4g32", &[][..], "k4n16-w4"), ("tiny:w3g32", &["--shards", "2"], "k4n16-w3"), ("tiny", &["--dense"], "dense-")]
    {
        let out = dir.path().join(format!("{}-{}", spec.replace(':', "-"), extra.len()));
        let out = out.to_str().unwrap();
        ok(&[&["synth", spec, out][..], extra].concat());
        let v = json(&["run", out, "--prompt", "Once upon a time", "--max-tokens", "4", "--json", "--ignore-eos"]);
        assert_eq!(ids(&v["token_ids"]).len(), 4);
        assert!(v["kernel"].as_str().unwrap().contains(kernel), "{v}");
        assert!(common::error(&["synth", spec, out]).contains("empty"), "a folder with files is left alone");
    }
}

#[test]
fn convert_writes_a_folder_that_runs_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("llama-w3-asym-g64-v2");
    let model = model.to_str().unwrap();
    let run = |folder: &str| {
        ids(
            &json(&["run", folder, "--prompt", "Once", "--max-tokens", "8", "--seed", "1", "--json", "--activations", "strict"])["token_ids"],
        )
    };
    let want = run(model);
    for to in ["gptq_p", "gptq_v2", "dense"] {
        let out = dir.path().join(to);
        let out = out.to_str().unwrap();
        let (_, err) = ok(&["convert", model, out, "--to", to]);
        assert!(err.contains("14 quantized modules"), "{err}");
        assert_eq!(run(out), want, "{to}");
        assert!(common::error(&["convert", model, out, "--to", to]).contains("files in it"));
    }
    let out = dir.path().join("half");
    let lossy = ["convert", model, out.to_str().unwrap(), "--to", "dense", "--dtype", "bf16"];
    assert!(common::error(&lossy).contains("without loss"));
    assert!(ok(&[&lossy[..], &["--allow-lossy"]].concat()).1.contains("lost: "));
    assert!(common::error(&["convert", model, "x", "--to", "gptq_v2", "--dtype", "f16"]).contains("--dtype goes with --to dense"));
    assert!(common::error(&["convert", model, "x", "--to", "gguf"]).contains("gptq_v2"));
}

#[test]
fn a_marlin_folder_runs_the_same_and_is_called_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("llama-w4-sym-g128");
    let (model, out) = (model.to_str().unwrap(), dir.path().join("marlin"));
    let out = out.to_str().unwrap();
    ok(&["convert", model, out, "--to", "marlin"]);
    let run =
        |folder: &str| ids(&json(&["run", folder, "--prompt", "Once", "--max-tokens", "8", "--temperature", "0", "--json"])["token_ids"]);
    assert_eq!(run(out), run(model));
    assert!(ok(&["inspect", out]).0.contains("quantization  marlin by "));
    let inspected = json(&["inspect", out, "--json"]);
    assert!(inspected["modules"].as_array().unwrap().iter().any(|m| m["format"] == "marlin"), "{inspected}");
    let doctor = ok(&["doctor", out]).0;
    assert!(doctor.contains("the marlin layout is not known there") && doctor.contains("nothing is wrong"), "{doctor}");
    let refused = fixture("llama-w4-sym-g32-act");
    let e = common::error(&["convert", refused.to_str().unwrap(), "x", "--to", "marlin"]);
    assert!(e.contains("is act-order, and marlin has no `g_idx`") && e.contains("more modules"), "{e}");
}

#[test]
fn help_and_version_are_no_errors() {
    for args in [&["--help"][..], &["--version"], &["run", "--help"], &["eval", "ppl", "--help"]] {
        assert!(!ok(args).0.is_empty());
    }
}

#[test]
fn formats_that_are_read_run_and_say_what_they_are() {
    for (name, format, words) in [
        ("llama-awq-asym-g32", "awq gemm", "4-bit, group 32, asym, zeros v2: stored as they are"),
        ("llama-ct-w3a16-g32", "compressed-tensors pack-quantized", "3-bit, group 32, sym, zeros not stored"),
        ("llama-ct-w8a8", "compressed-tensors int-quantized", "8-bit, one group a column, sym, zeros not stored"),
    ] {
        let path = fixture(name);
        let (text, _) = ok(&["inspect", path.to_str().unwrap()]);
        assert!(text.contains(&format!("quantization  {format} by ")) && text.contains(words), "{text}");
        let (_, err) = ok(&["run", path.to_str().unwrap(), "--prompt", "the king", "--max-tokens", "4", "--seed", "1"]);
        let asks = name == "llama-ct-w8a8";
        assert_eq!(err.contains("the weights run alone"), asks, "{err}");
        assert!(err.contains(", exact activations, "), "{err}");
        let (_, err) = ok(&["run", path.to_str().unwrap(), "--prompt", "the king", "--max-tokens", "4", "--activations", "int8"]);
        assert_eq!(err.contains("int8 activations, one scale a token in 14 modules as their config asks"), asks, "{err}");
    }
}

#[test]
fn float_formats_are_listed_and_refused_by_name() {
    for (name, format) in [
        ("llama-ct-fp8-dynamic", "compressed-tensors float-quantized"),
        ("llama-ct-nvfp4a16", "compressed-tensors nvfp4-pack-quantized"),
        ("llama-ct-mxfp4a16", "compressed-tensors mxfp4-pack-quantized"),
    ] {
        let path = fixture(name);
        let dir = path.to_str().unwrap();
        let (text, _) = ok(&["inspect", dir]);
        assert!(text.contains(&format!("it will not run: its {format} weights are not read")), "{text}");
        assert!(text.contains("layers.*.mlp.down_proj x2  [256, 128]") && text.contains("not read"), "{text}");
        let v = json(&["inspect", dir, "--json"]);
        let down = v["modules"].as_array().unwrap().iter().find(|m| m["module"] == "model.layers.0.mlp.down_proj").unwrap();
        assert_eq!((down["format"].as_str(), down["kernel"].as_str()), (Some(format), Some("none")));
        let e = error(&["run", dir, "--prompt", "the king", "--max-tokens", "1"]);
        assert!(e.contains(&format!("found {format} weights")) && e.contains("pack-quantized or int-quantized"), "{e}");
    }
}

/// Which entry of which list of the config decides about a module.
#[test]
fn inspect_names_the_entries_of_lists() {
    let entry = |dir: &str, module: &str| {
        let report = common::json(&["inspect", dir, "--json"]);
        let modules = report["modules"].as_array().unwrap();
        modules.iter().find(|m| m["module"] == module).unwrap_or_else(|| panic!("{module}"))["config_entry"].clone()
    };
    let compressed = fixture("llama-ct-w4a16-g32");
    let compressed = compressed.to_str().unwrap();
    assert_eq!(entry(compressed, "lm_head"), json!({"key": "ignore", "entry": "lm_head", "dense": true}));
    assert_eq!(entry(compressed, "model.layers.0.mlp.up_proj"), Value::Null, "all linear modules are not worth naming");
    let (out, _) = common::ok(&["inspect", compressed]);
    assert!(out.contains("lm_head  [128, 320]  F32 dense, entry `lm_head` of `ignore`"), "{out}");
    let f = common::Folder::of("llama-awq-asym-g32");
    f.quantization("modules_to_not_convert", json!(["head"]));
    assert_eq!(entry(f.dir(), "lm_head"), json!({"key": "modules_to_not_convert", "entry": "head", "dense": true}));
    let f = common::Folder::of("llama-w4-sym-g128");
    f.quantization("quant_method", json!("auto-round")).quantization("method", json!("auto-round"));
    f.quantization("packing_format", json!("auto_round:auto_gptq"));
    f.quantization("extra_config", json!({"lm_head": {"bits": 16}, ".*up_proj": {"bits": 4}}));
    assert_eq!(entry(f.dir(), "lm_head"), json!({"key": "extra_config", "entry": "lm_head", "dense": true}));
    assert_eq!(entry(f.dir(), "model.layers.1.mlp.up_proj"), json!({"key": "extra_config", "entry": ".*up_proj", "dense": false}));
    assert_eq!(entry(f.dir(), "model.layers.1.mlp.down_proj"), Value::Null);
    f.quantization("block_name_to_quantize", json!("model.layers"));
    let block = json!({"key": "block_name_to_quantize", "entry": "model.layers", "dense": false});
    assert_eq!(entry(f.dir(), "model.layers.1.mlp.down_proj"), block);
    let f = common::Folder::of("llama-ct-w4a16-g32");
    f.json("config.json", |c| c["quantization_config"]["config_groups"]["group_0"]["targets"] = json!(["Linear", "re:.*down_proj$"]));
    let group = json!({"key": "config_groups", "entry": "re:.*down_proj$", "dense": false});
    assert_eq!(entry(f.dir(), "model.layers.1.mlp.down_proj"), group);
}

#[test]
fn a_head_is_rounded_where_it_is_asked_for_and_the_report_says_so() {
    let say = |args: &[&str]| ok(&[&["run", "--prompt", "Once upon a time", "--max-tokens", "8", "--temperature", "0"], args].concat());
    let (text, err) = say(&["--quantize-head", "int8"]);
    assert!(err.contains("head rounded to 8 bits (") && err.contains("k4n16-w8") && !text.is_empty(), "{err}");
    assert!(!say(&[]).1.contains("head rounded"));
    let quantized = fixture("llama-w4-lmhead");
    let e = error(&["run", quantized.to_str().unwrap(), "--prompt", "a", "--max-tokens", "1", "--quantize-head", "int8"]);
    assert!(e.contains("lm_head") && e.contains("quantized to") && e.contains("leave the option out"), "{e}");
}
