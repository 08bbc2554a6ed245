//! The folder in which a quantization grows: a file for each finished layer, what came out of the last one, and the
//! settings that all of it was made with. What is found there after a break is used again if the settings are the same.

use crate::QuantizeError;
use crate::report::ModuleQuality;
use billfish_formats::{
    BiasRule, Checkpoint, Header, LinearWeight, SafetensorsWriter, Source, TensorSpec, gptq_tensors, safetensors_header,
};
use billfish_tensor::QuantMatrix;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Says with which settings the files were made.
const STATE: &str = "state.json";

/// Tensors of quantized modules.
pub(crate) type Tensors = Vec<(TensorSpec, Vec<u8>)>;

/// The folder.
pub(crate) struct Workspace {
    path: PathBuf,
    /// Planar words, which hold every width.
    planar: bool,
}

impl Workspace {
    /// Opens the folder beside `out`. What is there is kept if `resume` and it was made with the same `settings`, an error
    /// if they differ, and taken away otherwise.
    pub fn open(out: &Path, settings: &Value, planar: bool, resume: bool) -> Result<Self, QuantizeError> {
        let name = out.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_else(|| "out".into());
        let path = out.with_file_name(format!(".{name}.quantizing"));
        let this = Self { path, planar };
        let found = std::fs::read(this.path.join(STATE)).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        match found {
            Some(found) if resume && found["settings"] == *settings => return Ok(this),
            Some(found) if resume => {
                let differing = settings.as_object().into_iter().flatten().filter(|(k, v)| found["settings"][k.as_str()] != **v);
                let keys: Vec<&str> = differing.map(|(k, _)| k.as_str()).collect();
                return Err(QuantizeError::Output {
                    path: this.path.display().to_string(),
                    expected: "work begun with the same model, text and settings".into(),
                    found: format!("other {}", keys.join(", ")),
                    remedy: "give the same options, or leave --resume out to begin anew".into(),
                });
            }
            _ => {}
        }
        match std::fs::remove_dir_all(&this.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(QuantizeError::io(&this.path, e)),
            _ => {}
        }
        std::fs::create_dir_all(&this.path).map_err(|e| QuantizeError::io(&this.path, e))?;
        this.write(STATE, format!("{:#}\n", json!({"settings": settings})).as_bytes())?;
        Ok(this)
    }

    /// Writes a file as a whole: under another name first.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), QuantizeError> {
        let (partial, path) = (self.path.join(format!("{name}.partial")), self.path.join(name));
        std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, &path)).map_err(|e| QuantizeError::io(&path, e))
    }

    /// What a finished part reported, if its files are there and whole.
    pub fn finished(&self, part: &str) -> Option<Value> {
        let report: Value = serde_json::from_slice(&std::fs::read(self.path.join(format!("{part}.json"))).ok()?).ok()?;
        let whole = |name: &str| std::fs::read(self.path.join(name)).is_ok_and(|b| report["sha256"][name] == json!(sha256(&b)));
        let files = report["sha256"].as_object()?;
        files.keys().all(|name| whole(name)).then(|| report["report"].clone())
    }

    /// Keeps the tensors of a part's modules, the rows that came out of it, and its report. The report comes last: a part
    /// without one is not finished.
    pub fn keep(&self, part: &str, contents: &Tensors, rows: &[f32], report: &Value) -> Result<(), QuantizeError> {
        let (tensors, hidden) = (Self::file(part), format!("{part}.rows"));
        let specs: Vec<TensorSpec> = contents.iter().map(|(spec, _)| spec.clone()).collect();
        let partial = self.path.join(format!("{tensors}.partial"));
        let mut writer = SafetensorsWriter::create(&partial, &specs)?;
        contents.iter().try_for_each(|(spec, bytes)| writer.write(&spec.0, bytes))?;
        writer.finish()?;
        let path = self.path.join(&tensors);
        std::fs::rename(&partial, &path).map_err(|e| QuantizeError::io(&path, e))?;
        let bytes: Vec<u8> = rows.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.write(&hidden, &bytes)?;
        let tensor_bytes = std::fs::read(&path).map_err(|e| QuantizeError::io(&path, e))?;
        let hashes = json!({tensors: sha256(&tensor_bytes), hidden: sha256(&bytes)});
        self.write(&format!("{part}.json"), format!("{}\n", json!({"sha256": hashes, "report": report})).as_bytes())
    }

    /// The rows that came out of a finished part.
    pub fn rows(&self, part: &str) -> Result<Vec<f32>, QuantizeError> {
        let path = self.path.join(format!("{part}.rows"));
        let bytes = std::fs::read(&path).map_err(|e| QuantizeError::io(&path, e))?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// Takes the rows of a part away: a later part has its own.
    pub fn forget_rows(&self, part: &str) -> Result<(), QuantizeError> {
        let path = self.path.join(format!("{part}.rows"));
        // the report named them, so it is written again without
        let report_path = self.path.join(format!("{part}.json"));
        let bytes = std::fs::read(&report_path).map_err(|e| QuantizeError::io(&report_path, e))?;
        let mut report: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if let Some(files) = report["sha256"].as_object_mut() {
            files.remove(&format!("{part}.rows"));
        }
        self.write(&format!("{part}.json"), format!("{report}\n").as_bytes())?;
        std::fs::remove_file(&path).map_err(|e| QuantizeError::io(&path, e))
    }

    fn file(part: &str) -> String {
        format!("{part}.safetensors")
    }

    /// The tensors of a module.
    pub fn tensors(&self, module: &str, m: &QuantMatrix) -> Result<Tensors, QuantizeError> {
        Ok(gptq_tensors(module, m, self.planar)?)
    }

    /// A module as the loader reads it from a file of these tensors.
    pub fn read_back(&self, tensors: &Tensors, quality: &ModuleQuality) -> Result<QuantMatrix, QuantizeError> {
        let module = quality.module.as_str();
        let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
        let mut bytes = safetensors_header(module, &specs)?;
        tensors.iter().for_each(|(_, content)| bytes.extend_from_slice(content));
        let len = bytes.len() as u64;
        let rules = Map::from_iter([quality.rule()]);
        let files = vec![("config.json".into(), json!({"quantization_config": self.config(&rules)}).to_string().into_bytes())];
        let maker = Arc::new(move |at: u64, out: &mut [u8]| out.copy_from_slice(&bytes[at as usize..][..out.len()]));
        let checkpoint = Checkpoint::from_maker(module, files, ("model.safetensors".into(), len, maker))?;
        match checkpoint.linear(module, quality.in_features, quality.out_features, BiasRule::Absent)? {
            LinearWeight::Quantized(stored) => Ok(stored),
            LinearWeight::Dense { .. } => Err(QuantizeError::setting(module, "a quantized module", "a dense one", "report this defect")),
        }
    }

    /// A quantization config with a rule for each module.
    fn config(&self, rules: &Map<String, Value>) -> Value {
        let format = if self.planar { "gptq_p" } else { "gptq_v2" };
        json!({
            "bits": 4, "group_size": 128, "sym": false, "desc_act": false, "quant_method": "gptq",
            "checkpoint_format": format, "dynamic": rules,
            "meta": {"quantizer": [concat!("billfish:", env!("CARGO_PKG_VERSION"))]},
        })
    }

    /// Makes a whole folder of the parts and of what `source` has besides their modules, and opens it.
    pub fn assemble(&self, source: &Checkpoint, parts: &[String], rules: &Map<String, Value>) -> Result<Checkpoint, QuantizeError> {
        let whole = self.path.join("whole");
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |e| QuantizeError::io(&path, e)
        };
        match std::fs::remove_dir_all(&whole) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(QuantizeError::io(&whole, e)),
            _ => {}
        }
        std::fs::create_dir_all(&whole).map_err(io(&whole))?;
        let (mut map, mut taken) = (Map::new(), BTreeSet::new());
        for part in parts {
            let (file, to) = (Self::file(part), whole.join(Self::file(part)));
            // the same bytes under a second name where the disk can do that
            std::fs::hard_link(self.path.join(&file), &to)
                .or_else(|_| std::fs::copy(self.path.join(&file), &to).map(|_| ()))
                .map_err(io(&to))?;
            for name in Header::read(&Source::open(&to)?)?.tensors.keys() {
                map.insert(name.clone(), json!(file));
                taken.insert(module_of(name).to_string());
            }
        }
        let replaced = |t: &str| map.contains_key(t) || t.ends_with(".weight") && taken.contains(module_of(t));
        let rest: Vec<&str> = source.tensor_names().filter(|t| !replaced(t)).collect();
        let specs: Vec<TensorSpec> = rest.iter().filter_map(|t| source.info(t).map(|i| ((*t).into(), i.dtype, i.shape.clone()))).collect();
        let mut writer = SafetensorsWriter::create(&whole.join("rest.safetensors"), &specs)?;
        for name in rest {
            source.copy_bytes(name, &mut |piece| writer.write(name, piece))?;
            map.insert(name.into(), json!("rest.safetensors"));
        }
        writer.finish()?;
        let mut config = source.config().clone();
        config.insert("quantization_config".into(), self.config(rules));
        let files = [
            ("model.safetensors.index.json", json!({"metadata": {}, "weight_map": map}).to_string()),
            ("config.json", Value::Object(config).to_string()),
        ];
        for (name, text) in files {
            std::fs::write(whole.join(name), text).map_err(io(&whole.join(name)))?;
        }
        for name in source.file_names()?.iter().filter(|n| !n.contains(".safetensors") && *n != "config.json") {
            if let Some(bytes) = source.file(name)? {
                std::fs::write(whole.join(name), bytes).map_err(io(&whole.join(name)))?;
            }
        }
        Ok(Checkpoint::open(&whole)?)
    }

    /// Takes the folder away.
    pub fn remove(self) -> Result<(), QuantizeError> {
        std::fs::remove_dir_all(&self.path).map_err(|e| QuantizeError::io(&self.path, e))
    }
}

/// The module that a tensor is part of.
fn module_of(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or(tensor, |(module, _)| module)
}

/// The hash of some bytes in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
