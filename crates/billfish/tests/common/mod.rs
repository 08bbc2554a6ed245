//! Runs the binary, and makes folders with something wrong in them.
#![allow(dead_code)] // every test binary uses its own part of this

use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures")).join(name)
}

pub fn billfish(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_billfish"));
    command.args(args).stdin(Stdio::null());
    command
}

pub fn output(mut command: Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (status.code().expect("ended by itself, not by a signal"), text(stdout), text(stderr))
}

pub fn ok(args: &[&str]) -> (String, String) {
    let (code, out, err) = output(billfish(args));
    assert_eq!(code, 0, "{args:?}: {err}");
    (out, err)
}

pub fn json(args: &[&str]) -> Value {
    let (out, _) = ok(args);
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {out}"))
}

/// Runs a command that must fail and gives its one message.
pub fn error(args: &[&str]) -> String {
    let (code, _, err) = output(billfish(args));
    assert_eq!(code, 1, "{args:?}: {err}");
    assert!(!err.contains("panicked"), "{err}");
    let message = err.lines().filter(|l| !l.starts_with("warning: ")).collect::<Vec<_>>().join("\n");
    message.strip_prefix("error: ").unwrap_or_else(|| panic!("{args:?}: {err}")).to_string()
}

/// Exit code and findings of `doctor`, with further arguments.
pub fn doctor(dir: &str, args: &[&str]) -> (i32, Value) {
    let (code, out, err) = output(billfish(&[&["doctor", dir, "--json"], args].concat()));
    let v: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out} {err}"));
    (code, v)
}

/// Whether one of these findings has this severity and mentions all of `words`.
pub fn mentions(findings: &Value, severity: &str, words: &[&str]) -> bool {
    findings.as_array().unwrap().iter().any(|v| {
        let text: Vec<&str> = ["subject", "evidence", "consequence", "remedy"].iter().map(|k| v[*k].as_str().unwrap()).collect();
        let text_all = text.join(" | ");
        v["severity"] == severity && words.iter().all(|w| text_all.contains(w)) && text.iter().all(|t| !t.is_empty())
    })
}

/// The tensors of a safetensors file: type, shape and bytes by name.
pub type Tensors = std::collections::BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

/// A copy of a fixture in a temporary place.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn of(name: &str) -> Folder {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(fixture(name)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        Folder(dir)
    }

    /// A copy of the trained model inside the binary.
    pub fn builtin() -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        for (name, bytes) in billfish::builtin_files() {
            folder.write(name, bytes);
        }
        folder
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    pub fn dir(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    pub fn bytes(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.path(file)).unwrap()
    }

    pub fn write(&self, file: &str, bytes: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.path(file), bytes).unwrap();
        self
    }

    /// Changes a JSON file.
    pub fn json(&self, file: &str, change: impl FnOnce(&mut Map<String, Value>)) -> &Self {
        let mut value: Value = serde_json::from_slice(&self.bytes(file)).unwrap();
        change(value.as_object_mut().unwrap());
        self.write(file, value.to_string())
    }

    /// Changes a key of the quantization config in both places.
    pub fn quantization(&self, key: &str, value: Value) -> &Self {
        self.json("quantize_config.json", |m| drop(m.insert(key.into(), value.clone())));
        self.json("config.json", |m| drop(m["quantization_config"].as_object_mut().unwrap().insert(key.into(), value)))
    }

    /// Changes the header of `model.safetensors`; the data stays.
    pub fn header(&self, change: impl FnOnce(&mut Map<String, Value>)) -> &Self {
        let bytes = self.bytes("model.safetensors");
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut value: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        change(value.as_object_mut().unwrap());
        let header = value.to_string();
        let new = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[8 + len..]].concat();
        self.write("model.safetensors", new)
    }

    /// Changes tensors, their shapes included, and writes the file anew.
    pub fn tensors(&self, change: impl FnOnce(&mut Tensors)) -> &Self {
        let bytes = self.bytes("model.safetensors");
        let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Map<String, Value> = serde_json::from_slice(&bytes[8..data]).unwrap();
        let number = |v: &Value| v.as_u64().unwrap() as usize;
        let one = |(name, v): (&String, &Value)| {
            let [from, to] = [0, 1].map(|i| data + number(&v["data_offsets"][i]));
            let shape = v["shape"].as_array().unwrap().iter().map(number).collect();
            (name.clone(), (v["dtype"].as_str().unwrap().to_string(), shape, bytes[from..to].to_vec()))
        };
        let mut tensors: Tensors = header.iter().filter(|(name, _)| *name != "__metadata__").map(one).collect();
        change(&mut tensors);
        let (mut header, mut out) = (Map::new(), vec![]);
        for (name, (dtype, shape, bytes)) in tensors {
            let offsets = [out.len(), out.len() + bytes.len()];
            header.insert(name, serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
            out.extend(bytes);
        }
        let header = Value::Object(header).to_string();
        self.write("model.safetensors", [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &out].concat())
    }

    /// Changes the bytes of a tensor.
    pub fn tensor(&self, name: &str, change: impl FnOnce(&mut [u8])) -> &Self {
        let mut bytes = self.bytes("model.safetensors");
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        let at = |i: usize| 8 + len + header[name]["data_offsets"][i].as_u64().unwrap() as usize;
        change(&mut bytes[at(0)..at(1)]);
        self.write("model.safetensors", bytes)
    }

    /// The message of a `run` that must fail.
    pub fn run_error(&self) -> String {
        error(&["run", self.dir(), "--prompt", "Once", "--max-tokens", "2"])
    }
}
