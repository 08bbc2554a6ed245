//! The folder in which a quantization grows: a file for each finished layer, what came out of the last one, and the
//! settings that all of it was made with. What is found there after a break is used again if the settings are the same.

use crate::QuantizeError;
use crate::pipeline::HEAD;
use crate::report::ModuleQuality;
use crate::size::remaining_tensors;
use billfish_formats::{
    BiasRule, Checkpoint, Header, LinearWeight, QUANTIZATION_FILES, SafetensorsWriter, Source, TensorSpec, gptq_tensors, safetensors_header,
};
use billfish_tensor::QuantMatrix;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Says with which settings the files were made.
const STATE: &str = "state.json";
/// How the name of a finished part's report ends.
const REPORT: &str = "report";
/// The target as it grows.
const MADE: &str = "made";
/// The key of a config that says that the output head is the embedding.
const TIED: &str = "tie_word_embeddings";
/// What a file that is looked at again should hold.
const HASHED: &str = "the bytes that were written before the break";

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
    /// if they differ, and taken away otherwise; then work begins once `check` has passed.
    pub fn open(
        out: &Path,
        settings: &Value,
        planar: bool,
        resume: bool,
        check: &dyn Fn() -> Result<(), QuantizeError>,
    ) -> Result<Self, QuantizeError> {
        let name = out.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_else(|| "out".into());
        let path = out.with_file_name(format!(".{name}.quantizing"));
        let this = Self { path, planar };
        let found = match std::fs::read(this.path.join(STATE)) {
            Ok(bytes) if resume => match serde_json::from_slice::<Value>(&bytes) {
                Ok(found) => Some(found),
                Err(e) => return Err(damaged(&this.path.join(STATE), "the settings of the work that was begun", e.to_string())),
            },
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(QuantizeError::io(&this.path.join(STATE), e)),
            // a layer is kept only after the settings were
            Err(_) if resume && this.has_parts() => {
                return Err(damaged(&this.path.join(STATE), "the settings of the work that was begun", "no such file".into()));
            }
            _ => None,
        };
        match found {
            Some(found) if found["settings"] == *settings => return Ok(this),
            Some(found) => {
                let differing = settings.as_object().into_iter().flatten().filter(|(k, v)| found["settings"][k.as_str()] != **v);
                let keys: Vec<&str> = differing.map(|(k, _)| k.as_str()).collect();
                return Err(QuantizeError::Output {
                    path: this.path.display().to_string(),
                    expected: "work begun with the same model, text and settings".into(),
                    found: format!("other {}", keys.join(", ")),
                    remedy: "give the same options, or leave --resume out to begin anew".into(),
                });
            }
            None => check()?,
        }
        match std::fs::remove_dir_all(&this.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(QuantizeError::io(&this.path, e)),
            _ => {}
        }
        std::fs::create_dir_all(&this.path).map_err(|e| QuantizeError::io(&this.path, e))?;
        this.write(STATE, format!("{:#}\n", json!({"settings": settings})).as_bytes())?;
        Ok(this)
    }

    /// Whether there is a report of a finished part.
    fn has_parts(&self) -> bool {
        let report = |entry: std::io::Result<std::fs::DirEntry>| entry.is_ok_and(|e| e.path().extension().is_some_and(|x| x == REPORT));
        std::fs::read_dir(&self.path).is_ok_and(|mut entries| entries.any(report))
    }

    /// Writes a file as a whole: under another name first.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), QuantizeError> {
        let (partial, path) = (self.path.join(format!("{name}.partial")), self.path.join(name));
        std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, &path)).map_err(|e| QuantizeError::io(&path, e))
    }

    /// What a finished part reported; none if it is not finished.
    ///
    /// # Errors
    /// [`QuantizeError::Output`] naming a file that is not what was written, because other parts were made from it.
    pub fn finished(&self, part: &str) -> Result<Option<Value>, QuantizeError> {
        let path = self.path.join(Self::report(part));
        let text = match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| QuantizeError::io(&path, e))?,
        };
        let (hash, report) = text.split_once('\n').unwrap_or_default();
        if hash != sha256(report.as_bytes()) {
            return Err(damaged(&path, HASHED, "others".into()));
        }
        let report: Value = serde_json::from_str(report).map_err(|e| damaged(&path, "a report", e.to_string()))?;
        for (name, hash) in report["sha256"].as_object().into_iter().flatten() {
            let path = self.path.join(name);
            if *hash != json!(file_sha256(&path)?) {
                return Err(damaged(&path, HASHED, "others".into()));
            }
        }
        Ok(Some(report["report"].clone()))
    }

    /// The file of a part's report is not what it should be.
    pub fn damaged(&self, part: &str, expected: &str, found: String) -> QuantizeError {
        damaged(&self.path.join(Self::report(part)), expected, found)
    }

    /// Keeps the tensors of a part's modules and its report; `rows` is the hash of the rows that came out of it, which are
    /// kept already. The report comes last: a part without one is not finished.
    pub fn keep(&self, part: &str, contents: &Tensors, rows: Option<String>, report: &Value) -> Result<(), QuantizeError> {
        let tensors = Self::file(part);
        let specs: Vec<TensorSpec> = contents.iter().map(|(spec, _)| spec.clone()).collect();
        let partial = self.path.join(format!("{tensors}.partial"));
        let mut writer = SafetensorsWriter::create(&partial, &specs)?;
        contents.iter().try_for_each(|(spec, bytes)| writer.write(&spec.0, bytes))?;
        writer.finish()?;
        let path = self.path.join(&tensors);
        std::fs::rename(&partial, &path).map_err(|e| QuantizeError::io(&path, e))?;
        let mut hashes = Map::from_iter([(tensors, json!(file_sha256(&path)?))]);
        if let Some(hash) = rows {
            hashes.insert(Self::rows(part), json!(hash));
        }
        self.write_report(part, &json!({"sha256": hashes, "report": report}))
    }

    /// Writes a report behind its own hash.
    fn write_report(&self, part: &str, report: &Value) -> Result<(), QuantizeError> {
        let report = report.to_string();
        self.write(&Self::report(part), format!("{}\n{report}", sha256(report.as_bytes())).as_bytes())
    }

    /// Where the rows that come out of a part are kept.
    pub fn rows_path(&self, part: &str) -> PathBuf {
        self.path.join(Self::rows(part))
    }

    /// Writes the rows that come out of a part.
    pub fn rows_writer(&self, part: &str) -> Result<RowsWriter, QuantizeError> {
        let path = self.rows_path(part);
        let partial = self.path.join(format!("{}.partial", Self::rows(part)));
        let file = std::fs::File::create(&partial).map_err(|e| QuantizeError::io(&partial, e))?;
        Ok(RowsWriter { file, partial, path, hash: Sha256::new() })
    }

    /// Takes the rows of a part away, if there are any: a later part has its own.
    pub fn forget_rows(&self, part: &str) -> Result<(), QuantizeError> {
        // the report named them, so it is written again without
        let report_path = self.path.join(Self::report(part));
        match std::fs::read_to_string(&report_path) {
            Ok(text) => {
                let (_, report) = text.split_once('\n').unwrap_or_default();
                let mut report: Value = serde_json::from_str(report).map_err(|e| damaged(&report_path, "a report", e.to_string()))?;
                if let Some(files) = report["sha256"].as_object_mut() {
                    files.remove(&Self::rows(part));
                }
                self.write_report(part, &report)?;
            }
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(QuantizeError::io(&report_path, e)),
            Err(_) => {}
        }
        let path = self.rows_path(part);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(QuantizeError::io(&path, e)),
            _ => Ok(()),
        }
    }

    fn rows(part: &str) -> String {
        format!("{part}.rows")
    }

    fn report(part: &str) -> String {
        format!("{part}.{REPORT}")
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
        let mut specs = remaining_tensors(source, &taken);
        // AWQ changes norms and biases too
        specs.retain(|(name, _, _)| !map.contains_key(name));
        let mut writer = SafetensorsWriter::create(&whole.join("rest.safetensors"), &specs)?;
        for (name, _, _) in specs {
            source.copy_bytes(&name, &mut |piece| writer.write(&name, piece))?;
            map.insert(name, json!("rest.safetensors"));
        }
        writer.finish()?;
        let mut config = source.config().clone();
        config.remove("compression_config");
        config.insert("quantization_config".into(), self.config(rules));
        if taken.contains(HEAD) && config.contains_key(TIED) {
            // the head is no longer the embedding
            config.insert(TIED.into(), json!(false));
        }
        let files = [
            ("model.safetensors.index.json", json!({"metadata": {}, "weight_map": map}).to_string()),
            ("config.json", Value::Object(config).to_string()),
        ];
        for (name, text) in files {
            std::fs::write(whole.join(name), text).map_err(io(&whole.join(name)))?;
        }
        // a source that is quantized has configs of its own
        let stays = |n: &str| !n.contains(".safetensors") && n != "config.json" && !QUANTIZATION_FILES.contains(&n);
        for name in source.file_names()?.iter().filter(|n| stays(n)) {
            if let Some(bytes) = source.file(name)? {
                std::fs::write(whole.join(name), bytes).map_err(io(&whole.join(name)))?;
            }
        }
        Ok(Checkpoint::open(&whole)?)
    }

    /// Where the target grows. What an earlier attempt left there is taken away.
    pub fn made(&self) -> Result<PathBuf, QuantizeError> {
        let io = |e| QuantizeError::io(&self.path, e);
        for entry in std::fs::read_dir(&self.path).map_err(io)? {
            let entry = entry.map_err(io)?;
            if entry.file_name().to_string_lossy().trim_start_matches('.').starts_with(MADE) {
                std::fs::remove_dir_all(entry.path()).map_err(io)?;
            }
        }
        Ok(self.path.join(MADE))
    }

    /// Gives the finished target its name.
    pub fn publish(&self, out: &Path) -> Result<(), QuantizeError> {
        billfish_formats::check_free(out)?;
        // an empty folder of that name gives way
        match std::fs::remove_dir(out) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(QuantizeError::io(out, e)),
            _ => {}
        }
        std::fs::rename(self.path.join(MADE), out).map_err(|e| QuantizeError::io(out, e))
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
    hex(Sha256::new_with_prefix(bytes))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// The hash of a file, read some bytes at a time.
fn file_sha256(path: &Path) -> Result<String, QuantizeError> {
    const PIECE: usize = 1 << 20;
    let io = |e| QuantizeError::io(path, e);
    let (mut file, mut hash, mut bytes) = (std::fs::File::open(path).map_err(io)?, Sha256::new(), vec![0; PIECE]);
    loop {
        match file.read(&mut bytes).map_err(io)? {
            0 => return Ok(hex(hash)),
            read => hash.update(&bytes[..read]),
        }
    }
}

fn damaged(path: &Path, expected: &str, found: String) -> QuantizeError {
    let remedy = "something changed the file; leave --resume out to begin anew";
    QuantizeError::Output { path: path.display().to_string(), expected: expected.into(), found, remedy: remedy.into() }
}

/// Rows on their way to a file, which has its name only once it is whole.
pub(crate) struct RowsWriter {
    file: std::fs::File,
    partial: PathBuf,
    path: PathBuf,
    hash: Sha256,
}

impl RowsWriter {
    pub fn write(&mut self, rows: &[f32]) -> Result<(), QuantizeError> {
        const PIECE: usize = 1 << 18;
        for piece in rows.chunks(PIECE) {
            let bytes: Vec<u8> = piece.iter().flat_map(|v| v.to_le_bytes()).collect();
            self.hash.update(&bytes);
            self.file.write_all(&bytes).map_err(|e| QuantizeError::io(&self.partial, e))?;
        }
        Ok(())
    }

    /// Gives the file its name; returns its hash.
    pub fn finish(self) -> Result<String, QuantizeError> {
        std::fs::rename(&self.partial, &self.path).map_err(|e| QuantizeError::io(&self.path, e))?;
        Ok(hex(self.hash))
    }
}
