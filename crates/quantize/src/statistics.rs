//! What modules see, kept on disk: the Hessian of every input and its rows, and what they depend on. With them a folder is
//! quantized again without running the network, to the same bytes.
//!
//! A folder of statistics has a file of tensors for each step of a layer, `f64` as they were summed, and `statistics.json`:
//! the settings that they depend on, which input is in which file, the hash of every file, and its own.

use crate::gptq::Hessian;
use crate::recipe::Sequential;
use crate::workspace::sha256;
use crate::{QuantizeError, Recipe};
use billfish_formats::{Header, SafetensorsWriter, Source, TensorSpec, check_free};
use billfish_tensor::DType;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Says what the files are.
const INDEX: &str = "statistics.json";
/// The sum of the outer products of an input's rows: the lower half, row after row.
const SUM: &str = "hessian";

/// What becomes of the sums over the calibration text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Statistics<'a> {
    /// They are forgotten once the modules are quantized.
    #[default]
    Forget,
    /// They are kept in this new folder.
    Save(&'a Path),
    /// They are taken from this folder instead of a text, and no layer runs.
    Use(&'a Path),
}

impl Statistics<'_> {
    /// Whether they are at hand.
    pub(crate) fn are_used(self) -> bool {
        matches!(self, Statistics::Use(_))
    }
}

/// What statistics depend on. Those of a dense network are the same for whatever is made of them; in those of one that is
/// quantized layer by layer is every setting of the layers before.
fn key(recipe: &Recipe, settings: &Value) -> Map<String, Value> {
    const DENSE: [&str; 6] = ["version", "model", "config", "calibration", "all_experts", "sequential"];
    // what the head becomes, no layer sees
    const NEVER: [&str; 2] = ["lm_head", "statistics"];
    let counts = |k: &str| match recipe.sequential {
        Sequential::Dense => DENSE.contains(&k),
        Sequential::Quantized => !NEVER.contains(&k),
    };
    settings.as_object().into_iter().flatten().filter(|(k, _)| counts(k)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// A folder of statistics.
pub(crate) struct Store {
    path: PathBuf,
    index: Map<String, Value>,
    /// Files whose hash was found right.
    checked: BTreeSet<String>,
}

fn wrong(path: &Path, expected: impl Into<String>, found: impl Into<String>, remedy: &str) -> QuantizeError {
    QuantizeError::Output { path: path.display().to_string(), expected: expected.into(), found: found.into(), remedy: remedy.into() }
}

/// Remedy when bytes are not those that were written.
const DAMAGED: &str = "the folder is damaged; save the statistics again";

impl Store {
    /// Reads the index of a folder and its own hash.
    fn read(path: &Path) -> Result<Self, QuantizeError> {
        let file = path.join(INDEX);
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let remedy = "name a folder that --save-stats wrote";
                return Err(wrong(path, format!("a folder of statistics with {INDEX}"), "none", remedy));
            }
            Err(e) => return Err(QuantizeError::io(&file, e)),
        };
        let index = serde_json::from_slice::<Map<String, Value>>(&bytes).map_err(|e| wrong(&file, "a JSON object", e.to_string(), DAMAGED));
        let mut index = index?;
        let hash = index.remove("sha256").unwrap_or_default();
        let found = sha256(Value::Object(index.clone()).to_string().as_bytes());
        if hash != found.as_str() {
            return Err(wrong(&file, format!("contents of SHA-256 {hash}"), found, DAMAGED));
        }
        Ok(Self { path: path.into(), index, checked: BTreeSet::new() })
    }

    /// The hash of the tokens that these statistics were taken from.
    pub fn calibration(path: &Path) -> Result<Value, QuantizeError> {
        Ok(Self::read(path)?.index["key"]["calibration"].clone())
    }

    /// Opens a folder to take statistics from it: only one that was made with what they depend on, and to its end.
    pub fn open(path: &Path, recipe: &Recipe, settings: &Value) -> Result<Self, QuantizeError> {
        let this = Self::read(path)?;
        this.agrees(&key(recipe, settings))?;
        if this.index["complete"] != true {
            let (expected, remedy) =
                ("the statistics of all modules", "let --save-stats run to its end, with --resume if it was broken off");
            return Err(wrong(path, expected, "those of a run that did not end", remedy));
        }
        Ok(this)
    }

    /// Makes a folder to put statistics into. One that is there is gone on with if `resume` and it was made with the same
    /// settings.
    pub fn create(path: &Path, recipe: &Recipe, settings: &Value, resume: bool) -> Result<Self, QuantizeError> {
        let key = key(recipe, settings);
        if resume && path.join(INDEX).exists() {
            let mut this = Self::read(path)?;
            this.agrees(&key)?;
            this.index.insert("complete".into(), false.into());
            return Ok(this);
        }
        check_free(path)?;
        std::fs::create_dir_all(path).map_err(|e| QuantizeError::io(path, e))?;
        let empty = || json!({});
        let entries = [("key", Value::Object(key)), ("inputs", empty()), ("files", empty()), ("complete", false.into())];
        let this =
            Self { path: path.into(), index: entries.map(|(k, v)| (k.to_string(), v)).into_iter().collect(), checked: BTreeSet::new() };
        this.write_index()?;
        Ok(this)
    }

    fn agrees(&self, key: &Map<String, Value>) -> Result<(), QuantizeError> {
        let found = self.index["key"].as_object().cloned().unwrap_or_default();
        let names: BTreeSet<&String> = key.keys().chain(found.keys()).collect();
        let text = |map: &Map<String, Value>, name: &str| map.get(name).map_or_else(|| "none".into(), Value::to_string);
        let differing: Vec<&String> = names.into_iter().filter(|name| key.get(*name) != found.get(*name)).collect();
        if differing.is_empty() {
            return Ok(());
        }
        // another kind of statistics depends on other things
        let kind = differing.iter().position(|name| *name == "sequential");
        let differing = kind.map_or(differing.clone(), |at| vec![differing[at]]);
        let list = |map: &Map<String, Value>| differing.iter().map(|n| format!("`{n}` {}", text(map, n))).collect::<Vec<_>>().join(", ");
        let remedy =
            "give the same model and options, or save statistics anew; those of `--sequential dense` fit any width, order and search";
        Err(wrong(&self.path, format!("statistics made with {}", list(key)), list(&found), remedy))
    }

    fn write_index(&self) -> Result<(), QuantizeError> {
        let mut index = self.index.clone();
        let hash = sha256(Value::Object(index.clone()).to_string().as_bytes());
        index.insert("sha256".into(), hash.into());
        let (path, partial) = (self.path.join(INDEX), self.path.join(format!("{INDEX}.partial")));
        let text = format!("{:#}\n", Value::Object(index));
        std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, &path)).map_err(|e| QuantizeError::io(&path, e))
    }

    /// Whether the statistics of `input` are there.
    pub fn has(&self, input: &str) -> bool {
        self.index["inputs"].get(input).is_some()
    }

    /// Keeps the statistics of some inputs, each under the name of its first module.
    pub fn keep(&mut self, inputs: &[(&str, &Hessian)]) -> Result<(), QuantizeError> {
        let Some((first, _)) = inputs.first() else { return Ok(()) };
        let file = format!("{first}.safetensors");
        let path = self.path.join(&file);
        let half = |h: &Hessian| h.size() * (h.size() + 1) / 2;
        let specs: Vec<TensorSpec> = inputs.iter().map(|(name, h)| (format!("{name}.{SUM}"), DType::F64, vec![half(h)])).collect();
        let mut writer = SafetensorsWriter::create(&path, &specs)?;
        for ((_, h), (tensor, _, _)) in inputs.iter().zip(&specs) {
            for row in h.lower() {
                writer.write(tensor, &row.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
            }
        }
        writer.finish()?;
        let hash = file_sha256(&Source::open(&path)?)?;
        self.index["files"][file.as_str()] = hash.into();
        for (name, h) in inputs {
            self.index["inputs"][*name] = json!({"file": file, "size": h.size(), "rows": h.rows(), "dropped_rows": h.dropped()});
        }
        self.write_index()
    }

    /// Says that all statistics are there.
    pub fn complete(&mut self) -> Result<(), QuantizeError> {
        self.index.insert("complete".into(), true.into());
        self.write_index()
    }

    /// The statistics of an input of `size` numbers.
    pub fn load(&mut self, input: &str, size: usize) -> Result<Hessian, QuantizeError> {
        let entry = self.index["inputs"][input].clone();
        let Some(file) = entry["file"].as_str() else {
            let remedy = "save them again with rules and options that quantize it";
            return Err(wrong(&self.path, format!("statistics of `{input}`"), "none", remedy));
        };
        let path = self.path.join(file);
        let source = Source::open(&path)?;
        if self.checked.insert(file.into()) {
            let found = file_sha256(&source)?;
            if self.index["files"][file] != found.as_str() {
                let expected = format!("contents of SHA-256 {}", self.index["files"][file].as_str().unwrap_or("none"));
                return Err(wrong(&path, expected, found, DAMAGED));
            }
        }
        let tensor = format!("{input}.{SUM}");
        let header = Header::read(&source)?;
        let info = header.tensors.get(&tensor).filter(|i| i.dtype == DType::F64 && i.shape == [size * (size + 1) / 2]);
        let (Some(info), Some(rows), Some(dropped)) = (info, entry["rows"].as_u64(), entry["dropped_rows"].as_u64()) else {
            let found = header.tensors.get(&tensor).map_or_else(|| "none".into(), |i| format!("{} {:?}", i.dtype, i.shape));
            return Err(wrong(&path, format!("the tensor `{tensor}` for {size} inputs"), found, DAMAGED));
        };
        let (mut hessian, mut at) = (Hessian::new(size), info.offset);
        let mut bytes = vec![];
        for row in hessian.lower_mut() {
            bytes.resize(row.len() * 8, 0);
            source.read_at(at, &mut bytes)?;
            at += bytes.len() as u64;
            row.iter_mut().zip(bytes.as_chunks::<8>().0).for_each(|(v, b)| *v = f64::from_le_bytes(*b));
        }
        hessian.set_rows(rows, dropped);
        Ok(hessian)
    }
}

/// The hash of a file, some of it at a time.
fn file_sha256(source: &Source) -> Result<String, QuantizeError> {
    const PIECE: u64 = 1 << 22;
    let mut hash = Sha256::new();
    let mut buffer = vec![];
    for at in (0..source.len()).step_by(PIECE as usize) {
        buffer.resize(PIECE.min(source.len() - at) as usize, 0);
        source.read_at(at, &mut buffer)?;
        hash.update(&buffer);
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}
