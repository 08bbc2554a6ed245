//! Folders for tests: the committed fixtures, and copies of them with something changed.
#![allow(dead_code)] // every test binary uses its own part of this

pub mod recipes;
pub mod shards;

use billfish_formats::{Header, SafetensorsWriter, Source, TensorSpec};
use billfish_tensor::DType;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The folder of fixture `name`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures")).join(name)
}

/// A tensor in memory.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn words(shape: &[usize], words: &[u32]) -> Tensor {
        Tensor { dtype: DType::I32, shape: shape.into(), bytes: words.iter().flat_map(|w| w.to_le_bytes()).collect() }
    }

    pub fn f32(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor { dtype: DType::F32, shape: shape.into(), bytes: values.iter().flat_map(|w| w.to_le_bytes()).collect() }
    }

    pub fn f16(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor {
            dtype: DType::F16,
            shape: shape.into(),
            bytes: values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        }
    }

    pub fn to_words(&self) -> Vec<u32> {
        self.bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }
}

/// A model folder held in memory, to be changed and then written to a temporary place.
#[derive(Clone)]
pub struct Folder {
    pub tensors: BTreeMap<String, Tensor>,
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Folder {
    /// Nothing.
    pub fn empty() -> Folder {
        Folder { tensors: BTreeMap::new(), files: BTreeMap::new() }
    }

    /// All tensors and JSON files of a fixture.
    pub fn of(name: &str) -> Folder {
        let dir = fixture(name);
        let mut folder = Folder::empty();
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_string_lossy().into_owned();
            if file.ends_with(".safetensors") {
                let source = Source::open(&path).unwrap();
                for (name, t) in Header::read(&source).unwrap().tensors {
                    let mut bytes = vec![0; t.bytes];
                    source.read_at(t.offset, &mut bytes).unwrap();
                    folder.tensors.insert(name, Tensor { dtype: t.dtype, shape: t.shape, bytes });
                }
            } else if matches!(file.as_str(), "config.json" | "quantize_config.json") {
                folder.files.insert(file, std::fs::read(&path).unwrap());
            }
        }
        folder
    }

    /// Module `m` of these tensors, with this quantization config.
    pub fn of_parts(config: &Value, parts: &[(&str, Tensor)]) -> Folder {
        let mut folder = Folder::empty();
        folder.json("config.json", &serde_json::json!({ "quantization_config": config }).to_string());
        for (part, tensor) in parts {
            folder.put(&format!("m.{part}"), tensor.clone());
        }
        folder
    }

    /// One quantized module `m` of `[k, n]` with all codes 0, all scales 1 and these stored zeros.
    pub fn module(k: usize, n: usize, config: &str, zero_rows: usize, zeros: &[u32]) -> Folder {
        let bits = serde_json::from_str::<Value>(config).unwrap()["bits"].as_u64().unwrap() as usize;
        let mut folder = Folder::empty();
        folder.json("config.json", "{}");
        folder.json("quantize_config.json", config);
        let rows = (k * bits).div_ceil(32);
        folder.put("m.qweight", Tensor::words(&[rows, n], &vec![0; rows * n]));
        folder.put("m.qzeros", Tensor::words(&[zero_rows, zeros.len() / zero_rows], zeros));
        folder.put("m.scales", Tensor::f32(&[zero_rows, n], &vec![1.0; zero_rows * n]));
        folder
    }

    pub fn put(&mut self, name: &str, tensor: Tensor) -> &mut Self {
        self.tensors.insert(name.into(), tensor);
        self
    }

    pub fn edit(&mut self, name: &str, change: impl FnOnce(&mut Tensor)) -> &mut Self {
        change(self.tensors.get_mut(name).unwrap());
        self
    }

    pub fn remove(&mut self, name: &str) -> &mut Self {
        self.tensors.remove(name).unwrap();
        self
    }

    pub fn json(&mut self, file: &str, text: &str) -> &mut Self {
        self.files.insert(file.into(), text.into());
        self
    }

    /// Changes the quantization config wherever it stands.
    pub fn quantization(&mut self, change: impl Fn(&mut serde_json::Map<String, Value>)) -> &mut Self {
        for (name, bytes) in &mut self.files {
            let mut value: Value = serde_json::from_slice(bytes).unwrap();
            let map = if name == "config.json" { value.get_mut("quantization_config") } else { Some(&mut value) };
            if let Some(Value::Object(map)) = map {
                change(map);
            }
            *bytes = value.to_string().into_bytes();
        }
        self
    }

    pub fn set(&mut self, key: &str, value: Value) -> &mut Self {
        self.quantization(|map| drop(map.insert(key.into(), value.clone())))
    }

    /// Writes the folder with all tensors in `model.safetensors`.
    pub fn write(&self) -> Temp {
        let dir = self.write_files();
        write_shard(&dir.0.join("model.safetensors"), self.tensors.iter());
        dir
    }

    pub fn write_files(&self) -> Temp {
        let dir = Temp::new();
        for (name, bytes) in &self.files {
            std::fs::write(dir.0.join(name), bytes).unwrap();
        }
        dir
    }
}

/// Writes tensors to one safetensors file.
pub fn write_shard<'a>(path: &Path, tensors: impl Iterator<Item = (&'a String, &'a Tensor)>) {
    let tensors: Vec<_> = tensors.collect();
    let specs: Vec<TensorSpec> = tensors.iter().map(|(n, t)| (n.to_string(), t.dtype, t.shape.clone())).collect();
    let mut writer = SafetensorsWriter::create(path, &specs).unwrap();
    for (name, tensor) in tensors {
        writer.write(name, &tensor.bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// A folder of its own that is removed in the end.
#[derive(Debug)]
pub struct Temp(pub PathBuf);

impl Temp {
    pub fn new() -> Temp {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("billfish-formats-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Temp(path)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Asserts that `text` holds every part.
#[track_caller]
pub fn holds(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}
