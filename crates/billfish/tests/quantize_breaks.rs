//! `quantize` broken off in every way that a machine has: kill, Ctrl-C, a full disk; and what it takes up again.
#![cfg(unix)]

mod common;

use common::{Folder, billfish, error, fixture, json, ok, output};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The built-in model as 32-bit floats, in a folder of its own.
fn dense(dir: &Path) -> String {
    let (from, to) = (Folder::builtin(), dir.join("dense"));
    ok(&["convert", from.dir(), to.to_str().unwrap(), "--to", "dense"]);
    to.to_str().unwrap().into()
}

/// What `quantize` is asked for; plain enough to be quick.
fn arguments(base: &str, out: &Path) -> Vec<String> {
    let text = fixture("text/valid-20k.txt");
    let (out, text) = (out.to_str().unwrap(), text.to_str().unwrap());
    let fixed = ["quantize", base, out, "--calibration", text, "--samples", "2", "--seqlen", "64", "--sweeps", "0", "--search", "minmax"];
    fixed.map(String::from).to_vec()
}

fn started(arguments: &[String], more: &[&str]) -> Child {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
    billfish(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn workspace(out: &Path) -> PathBuf {
    out.with_file_name(format!(".{}.quantizing", out.file_name().unwrap().to_str().unwrap()))
}

/// Waits until a file is there.
fn appears(child: &mut Child, path: &Path) {
    while !path.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before {} appeared", path.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Everything but the reports, which hold times.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let all = entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()));
    all.filter(|(name, _)| !name.starts_with("quant_report.")).collect()
}

fn resumed(arguments: &[String]) -> (i32, String) {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(["--resume"]).collect();
    let (code, _, err) = output(billfish(&arguments));
    (code, err)
}

#[test]
fn whatever_breaks_it_off_the_bytes_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let base = dense(dir.path());
    let whole = dir.path().join("whole");
    ok(&arguments(&base, &whole).iter().map(String::as_str).collect::<Vec<_>>());

    // killed between two layers, and again and again wherever it is
    let out = dir.path().join("killed");
    let args = arguments(&base, &out);
    let mut child = started(&args, &[]);
    appears(&mut child, &workspace(&out).join("layer-00001.report"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!out.exists(), "nothing stands there before all of it is written");
    for (layer, millis) in [(2, 0), (2, 7), (3, 31), (4, 90)] {
        let mut child = started(&args, &["--resume"]);
        appears(&mut child, &workspace(&out).join(format!("layer-{layer:05}.report")));
        std::thread::sleep(Duration::from_millis(millis));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    if !out.exists() {
        let (code, err) = resumed(&args);
        assert_eq!(code, 0, "{err}");
    }
    assert!(files(&out) == files(&whole), "kill");

    // Ctrl-C: the layer is finished, and it says how to go on
    let out = dir.path().join("interrupted");
    let args = arguments(&base, &out);
    let mut child = started(&args, &[]);
    appears(&mut child, &workspace(&out).join("layer-00000.report"));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    let err = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(130), "{err}");
    assert!(err.contains("finishing the layer") && err.contains("--resume"), "{err}");
    let left = std::fs::read_dir(workspace(&out)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(left.into_iter().all(|name| !name.ends_with(".partial")), "the layer was finished");
    // other settings are not mixed in
    let other: Vec<&str> = args.iter().map(String::as_str).chain(["--bits", "3", "--resume"]).collect();
    assert!(error(&other).contains("other bits"));
    let (code, err) = resumed(&args);
    assert_eq!(code, 0, "{err}");
    assert!(files(&out) == files(&whole), "Ctrl-C");
}

/// A disk that is full in the middle is played by a limit on the size of files.
#[test]
fn a_full_disk_leaves_nothing_half_written() {
    let dir = tempfile::tempdir().unwrap();
    let base = dense(dir.path());
    let whole = dir.path().join("whole");
    ok(&arguments(&base, &whole).iter().map(String::as_str).collect::<Vec<_>>());
    let size = |name: &str| std::fs::metadata(whole.join(name)).unwrap().len();
    let out = dir.path().join("full");
    let args = arguments(&base, &out);
    // too little for rows, for a layer, and for the folder itself
    for blocks in [32, 256, size("model.safetensors") / 512 - 1] {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_billfish")).args(&args).arg("--resume").stdin(Stdio::null());
        let (code, _, err) = output(command);
        assert_eq!(code, 1, "{blocks}: {err}");
        assert!(err.contains(".full.quantizing") && err.contains("the disk"), "{blocks}: {err}");
        assert!(!out.exists(), "{blocks}");
    }
    // what was good is still good
    assert!(workspace(&out).join("layer-00005.report").exists());
    let (code, err) = resumed(&args);
    assert_eq!(code, 0, "{err}");
    assert!(files(&out) == files(&whole) && !workspace(&out).exists());
}

#[test]
fn errors_are_measured_again() {
    let dir = tempfile::tempdir().unwrap();
    let base = dense(dir.path());
    let out = dir.path().join("out");
    let args = arguments(&base, &out);
    let args: Vec<&str> = args.iter().map(String::as_str).chain(["--memory", "1GB"]).collect();
    ok(&args);
    let out = out.to_str().unwrap();
    let text = fixture("text/valid-20k.txt");
    let again =
        ["eval", "errors", out, "--base", &base, "--calibration", text.to_str().unwrap(), "--samples", "2", "--seqlen", "64", "--json"];
    let found = json(&again);
    assert_eq!((&found["modules"], &found["deviations"]), (&42.into(), &serde_json::json!([])));
    // one bit of a scale of the first group of a module
    let path = dir.path().join("out/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let offset = tensors["model.layers.3.mlp.down_proj.scales"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[8 + header + offset] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (code, stdout, err) = output(billfish(&["eval", "errors", out, "--base", &base]));
    assert!(code == 2 && err.contains("does not tell"), "{code} {err}");
    assert!(stdout.contains("model.layers.3.mlp.down_proj: group 0: ") && stdout.contains("1 not as reported"), "{stdout}");
    assert!(error(&["eval", "errors", &base, "--base", &base]).contains("quant_report.json"));
    let memory = ["quantize", &base, &format!("{out}2"), "--calibration", text.to_str().unwrap(), "--memory"];
    assert!(error(&[&memory[..], &["1MB"]].concat()).contains("GB or more"));
    assert!(error(&[&memory[..], &["much"]].concat()).contains("expected a size such as 4GB"));
}
