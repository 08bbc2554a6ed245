//! A model folder: its configs, its tensors, and the account of what was read.

use crate::cache_scales::is_cache_scale;
use crate::dialect::{self, Ballot};
use crate::rows::LinearRows;
use crate::source::Maker;
use crate::spare::Spare;
use crate::store::{Content, Store};
use crate::warning::{Warning, Warnings};
use crate::{
    CheckpointFormat, FormatError, ModuleReport, QuantConfig, RawQuantization, Source, TensorInfo, ZeroLabel, agreement, config_files,
    report, shards,
};
use billfish_tensor::{DType, DenseTensor, QuantMatrix};
use bytemuck::{AnyBitPattern, NoUninit};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Size cap of a file that is handed out whole.
const FILE_CAP: u64 = 256 << 20;

/// Whether a linear module of an architecture has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BiasRule {
    /// It must be there.
    Required,
    /// It is used when it is there.
    Optional,
    /// The architecture has none: one full of zeros is ignored, any other is an error.
    Absent,
}

/// A linear module as stored.
#[derive(Clone, Debug)]
pub enum LinearWeight {
    /// A quantized one; its bias is inside.
    Quantized(QuantMatrix),
    /// A dense one.
    Dense {
        /// `[N, K]`.
        weight: DenseTensor,
        /// `[N]`.
        bias: Option<Vec<f32>>,
    },
}

/// An open model folder. Tensors are read when asked for, from any thread.
#[derive(Debug)]
pub struct Checkpoint {
    name: String,
    store: Store,
    sources: Vec<Source>,
    tensors: BTreeMap<String, Entry>,
    config: Map<String, Value>,
    generation_config: Option<Map<String, Value>>,
    quantization: Option<QuantConfig>,
    quantization_files: Vec<RawQuantization>,
    agreement: agreement::Agreement,
    /// What the modules of each width show of their zero points, once asked.
    ballots: [OnceLock<Ballot>; 9],
    pub(crate) warnings: Warnings,
    /// Room for codes.
    pub(crate) spare: Spare,
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    info: TensorInfo,
    read: AtomicBool,
}

impl Checkpoint {
    /// Opens a folder: reads and checks its configs, the shard index and every safetensors header, but no tensor.
    ///
    /// # Errors
    /// [`FormatError`] naming the file that is missing or wrong.
    pub fn open(dir: &Path) -> Result<Self, FormatError> {
        let store = Store::folder(dir)?;
        // `.` and `..` have no name of their own.
        let full = std::fs::canonicalize(dir).map_err(|e| FormatError::io(&store.display(), e))?;
        let name = full.file_name().map_or_else(|| store.display(), |n| n.to_string_lossy().into_owned());
        Self::from_store(name, store)
    }

    /// Opens files in memory, such as a model inside the binary.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_memory(name: &str, files: &[(&'static str, &'static [u8])]) -> Result<Self, FormatError> {
        let files = files.iter().map(|(n, bytes)| (Cow::Borrowed(*n), Cow::Borrowed(*bytes))).collect();
        Self::from_files(name, files)
    }

    pub(crate) fn from_files(name: &str, files: Vec<(Cow<'static, str>, Cow<'static, [u8]>)>) -> Result<Self, FormatError> {
        let files = files.into_iter().map(|(name, bytes)| (name, Content::Bytes(bytes))).collect();
        Self::from_store(name.into(), Store::Memory { name: name.into(), files })
    }

    /// Opens small files in memory and one of the given length whose bytes are made when they are read, such as weights
    /// that have never been written.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_maker(name: &str, files: Vec<(String, Vec<u8>)>, made: (String, u64, Maker)) -> Result<Self, FormatError> {
        let (file, len, maker) = made;
        let files = files.into_iter().map(|(name, bytes)| (Cow::Owned(name), Content::Bytes(Cow::Owned(bytes))));
        let files = files.chain([(Cow::Owned(file), Content::Made(len, maker))]).collect();
        Self::from_store(name.into(), Store::Memory { name: name.into(), files })
    }

    fn from_store(name: String, store: Store) -> Result<Self, FormatError> {
        let warnings = Warnings::default();
        let Some(config) = config_files::object(&store, "config.json")? else {
            return Err(FormatError::NotFound {
                path: store.display(),
                expected: "a config.json".into(),
                found: "none".into(),
                remedy: "pass a folder that holds config.json and *.safetensors".into(),
            });
        };
        let generation_config = config_files::object(&store, "generation_config.json")?;
        let quantization_files = config_files::raw(&store, &config, None)?;
        let quantization = config_files::quantization(&store, &quantization_files, &warnings)?;
        let shards = shards::open(&store, &warnings)?;
        Self::assemble(name, store, config, generation_config, (quantization, quantization_files), shards, warnings)
    }

    /// A checkpoint of parts that have been read.
    pub(crate) fn assemble(
        name: String,
        store: Store,
        config: Map<String, Value>,
        generation_config: Option<Map<String, Value>>,
        (quantization, quantization_files): (Option<QuantConfig>, Vec<RawQuantization>),
        shards: shards::Shards,
        warnings: Warnings,
    ) -> Result<Self, FormatError> {
        let entry = |(name, (shard, info))| (name, Entry { shard, info, read: AtomicBool::new(false) });
        let tensors: BTreeMap<String, Entry> = shards.tensors.into_iter().map(entry).collect();
        let quantized = tensors.iter().filter_map(|(n, e)| quantized_module(n, &e.info)).map(String::from);
        let agreement = agreement::Agreement::new(&quantized.collect::<Vec<_>>());
        if let Some(config) = &quantization {
            let linear: Vec<&str> = tensors.iter().filter_map(|(n, e)| linear_module(n, &e.info)).collect();
            config.dynamic.warn_unmatched(&linear, &warnings)?;
            config.selection.warn_unmatched(&config.file, &linear, &warnings)?;
        }
        Ok(Self {
            name,
            store,
            sources: shards.sources,
            tensors,
            config,
            generation_config,
            quantization,
            quantization_files,
            agreement,
            ballots: Default::default(),
            warnings,
            spare: Spare::default(),
        })
    }

    /// The same folder with other tensors in its files.
    pub(crate) fn with_tensors(&self, tensors: BTreeMap<String, (usize, TensorInfo)>) -> Result<Self, FormatError> {
        let shards = shards::Shards { sources: self.sources.clone(), tensors };
        let quantization = (self.quantization.clone(), self.quantization_files.clone());
        let (store, generation) = (self.store.clone(), self.generation_config.clone());
        Self::assemble(self.name.clone(), store, self.config.clone(), generation, quantization, shards, Warnings::default())
    }

    /// The same folder with GPTQ zero points read as the caller says, or by their own evidence if `None`. Reading them
    /// against their evidence is a warning.
    ///
    /// # Errors
    /// [`FormatError::Config`] when the format of the folder leaves no choice.
    pub fn with_zeros(mut self, label: Option<ZeroLabel>) -> Result<Self, FormatError> {
        let Some(label) = label else { return Ok(self) };
        let config = self.quantization.as_mut().filter(|q| matches!(q.format, CheckpointFormat::Gptq | CheckpointFormat::GptqV2));
        let Some(config) = config else {
            let (expected, remedy) = ("a folder of format gptq or gptq_v2", "leave the reading of zero points to the folder");
            return Err(FormatError::config(&self.name, "zeros", expected, "a format that has one reading only", remedy));
        };
        config.forced_zeros = Some(label);
        Ok(self)
    }

    /// What the modules of a width (2 to 8) show of their zero points. It does not depend on who asks first.
    pub(crate) fn ballot(&self, bits: u32) -> &Ballot {
        self.ballots[bits as usize].get_or_init(|| dialect::ballot(self, bits))
    }

    /// How the caller wants zero points read.
    pub(crate) fn forced_zeros(&self) -> Option<ZeroLabel> {
        self.quantization.as_ref().and_then(|q| q.forced_zeros)
    }

    /// Every tensor with the number of its file.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&str, usize, &TensorInfo)> {
        self.tensors.iter().map(|(name, e)| (name.as_str(), e.shard, &e.info))
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The safetensors files.
    pub(crate) fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Where the bytes of a tensor are.
    pub(crate) fn place(&self, name: &str) -> Option<(&Source, &TensorInfo)> {
        self.tensors.get(name).map(|e| (&self.sources[e.shard], &e.info))
    }

    /// The folder's own name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder, when it is one on disk.
    pub fn path(&self) -> Option<&Path> {
        match &self.store {
            Store::Folder(path) => Some(path),
            Store::Memory { .. } => None,
        }
    }

    /// All bytes of a file of the folder, such as `tokenizer.json`; `None` when there is no such file.
    ///
    /// # Errors
    /// [`FormatError`] when `name` is not a plain name, the file is larger than 256 MiB or cannot be read.
    pub fn file(&self, name: &str) -> Result<Option<Vec<u8>>, FormatError> {
        self.store.open(name)?.map(|s| s.read_all(FILE_CAP)).transpose()
    }

    /// `config.json`.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// `generation_config.json`.
    pub fn generation_config(&self) -> Option<&Map<String, Value>> {
        self.generation_config.as_ref()
    }

    /// The quantization config.
    pub fn quantization(&self) -> Option<&QuantConfig> {
        self.quantization.as_ref()
    }

    pub(crate) fn quantization_mut(&mut self) -> Option<&mut QuantConfig> {
        self.quantization.as_mut()
    }

    /// Every quantization config of the folder as it stands in its file; the first is the one in use, and the others are only
    /// compared with it.
    pub fn quantization_files(&self) -> &[RawQuantization] {
        &self.quantization_files
    }

    /// The same folder with a key of `config.json` set, for the copies that are written of it.
    pub fn with_config_key(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.into(), value);
        self
    }

    /// Names of all tensors, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Type, shape and place of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|e| &e.info)
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|e| e.info.bytes as u64).sum()
    }

    /// Modules whose tensors are those of a quantized one, sorted.
    pub fn quantized_modules(&self) -> Vec<String> {
        let mut names: Vec<&str> = self.tensors.iter().filter_map(|(n, e)| quantized_module(n, &e.info)).collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter().map(String::from).collect()
    }

    /// Modules that are linear by their tensors, quantized or dense, sorted: a codes tensor or a `weight` of two
    /// dimensions. The embedding is among them.
    pub fn linear_modules(&self) -> Vec<String> {
        let mut names: Vec<&str> = self.tensors.iter().filter_map(|(n, e)| linear_module(n, &e.info)).collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter().map(String::from).collect()
    }

    /// Whether a module has tensors of a quantized one.
    pub fn has_codes(&self, module: &str) -> bool {
        self.codes_of(module).is_ok()
    }

    /// Whether a tensor is one of those that make a quantized module's weight: its bias is not, nor scales of the cache.
    pub fn is_part(&self, tensor: &str) -> bool {
        let weight = |(module, part): (&str, &str)| part != "bias" && !is_cache_scale(tensor) && self.has_codes(module);
        tensor.rsplit_once('.').is_some_and(weight)
    }

    /// The tensor that holds the codes of a quantized module.
    pub(crate) fn codes_of(&self, module: &str) -> Result<Tensor<'_>, FormatError> {
        let quantized = |part: &&str| {
            self.info(&format!("{module}.{part}")).is_some_and(|i| quantized_module(&format!("{module}.{part}"), i).is_some())
        };
        let part = FORMS.into_iter().find(quantized).unwrap_or(FORMS[0]);
        self.need(&format!("{module}.{part}"))
    }

    /// What a reader should know, found while opening and while reading. The order does not depend on threads.
    pub fn warnings(&self) -> Vec<Warning> {
        self.warnings.list()
    }

    /// Tensors that nobody has read or marked.
    pub fn unread(&self) -> Vec<String> {
        self.tensors.iter().filter(|(_, e)| !e.read.load(Ordering::Relaxed)).map(|(n, _)| n.clone()).collect()
    }

    /// Says that a tensor is deliberately not read. Returns whether there is such a tensor.
    pub fn mark_read(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|e| {
            e.read.store(true, Ordering::Relaxed);
            true
        })
    }

    /// Takes over what an earlier read of the same folder found: what was odd, and which tensors nobody read.
    pub fn read_before(&self, warnings: Vec<Warning>, unread: &[String]) {
        warnings.into_iter().for_each(|w| self.warnings.again(w));
        let unread: BTreeSet<&str> = unread.iter().map(String::as_str).collect();
        let read = self.tensors.iter().filter(|(name, _)| !unread.contains(name.as_str()));
        read.for_each(|(_, entry)| entry.read.store(true, Ordering::Relaxed));
    }

    /// Whether two tensors have the same type, shape and bytes, compared some MiB at a time; `None` if one is missing.
    ///
    /// # Errors
    /// [`FormatError::Io`].
    pub fn same_tensor(&self, a: &str, b: &str) -> Result<Option<bool>, FormatError> {
        const STRIP: usize = 4 << 20;
        let (Some(a), Some(b)) = (self.find(a), self.find(b)) else { return Ok(None) };
        if a.info.dtype != b.info.dtype || a.info.shape != b.info.shape {
            return Ok(Some(false));
        }
        let mut strips = [vec![0; STRIP.min(a.info.bytes)], vec![0; STRIP.min(a.info.bytes)]];
        for start in (0..a.info.bytes).step_by(STRIP) {
            let len = STRIP.min(a.info.bytes - start);
            let [left, right] = &mut strips;
            a.read_range(start, &mut left[..len])?;
            b.read_range(start, &mut right[..len])?;
            if left[..len] != right[..len] {
                return Ok(Some(false));
            }
        }
        Ok(Some(true))
    }

    /// Whether there is a tensor whose name begins so.
    pub fn has_tensors(&self, prefix: &str) -> bool {
        self.tensors.range::<str, _>((Bound::Included(prefix), Bound::Unbounded)).next().is_some_and(|(name, _)| name.starts_with(prefix))
    }

    /// Whether a linear module is quantized: its tensors decide, and a quantization config that says otherwise is a warning.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] if the module has two forms or none.
    pub fn is_quantized(&self, module: &str) -> Result<bool, FormatError> {
        let forms = FORMS.map(|part| format!("{module}.{part}"));
        // a tensor of such a short name may also be something else
        let other = |t: &Tensor<'_>| t.name.ends_with(".B") && quantized_module(t.name, t.info).is_none();
        let found: Vec<Tensor<'_>> = forms.iter().filter_map(|name| self.find(name)).filter(|t| !other(t)).collect();
        let quantized = match found.as_slice() {
            [one] => quantized_module(one.name, one.info).is_some(),
            [] => {
                let remedy = "the folder is incomplete, or its architecture names this module otherwise";
                let [qweight, packed, tiles, weight] = forms;
                let expected = format!("`{qweight}`, `{packed}`, `{tiles}` or `{weight}`");
                return Err(FormatError::tensor(&self.store.display(), module, expected, "none of them", remedy));
            }
            [first, .., last] => {
                let remedy = "remove one of the two, or write the folder again";
                return Err(last.wrong(format!("either `{}` or `{}`", first.name, last.name), "both", remedy));
            }
        };
        if let Some(config) = &self.quantization {
            self.agreement.check(config, module, quantized, &self.warnings)?;
        }
        Ok(quantized)
    }

    /// Reads linear module `module` of `k` inputs and `n` outputs, quantized or dense as its tensors are.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] naming the tensor that is missing, has another type or shape, or holds illegal values;
    /// [`FormatError::Io`].
    pub fn linear(&self, module: &str, k: usize, n: usize, bias: BiasRule) -> Result<LinearWeight, FormatError> {
        Ok(match self.linear_rows(module, k, n, bias)? {
            LinearRows::Quantized(m) => LinearWeight::Quantized(m),
            LinearRows::Dense { weight, bias } => LinearWeight::Dense { weight: weight.all()?, bias },
        })
    }

    /// What a quantized module is, without reading its codes.
    ///
    /// # Errors
    /// As [`Checkpoint::linear`].
    pub fn describe(&self, module: &str) -> Result<ModuleReport, FormatError> {
        self.is_quantized(module)?;
        report::describe(self, module)
    }

    pub(crate) fn bias(&self, module: &str, n: usize, rule: BiasRule) -> Result<Option<Vec<f32>>, FormatError> {
        let name = format!("{module}.bias");
        let Some(tensor) = self.find(&name) else {
            return match rule {
                BiasRule::Required => Err(self.missing(&name)),
                _ => Ok(None),
            };
        };
        let values = self.dense(&name, &[n])?.to_f32();
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(tensor.wrong("finite numbers", format!("{} at [{i}]", values[i]), crate::error::DAMAGED));
        }
        if rule != BiasRule::Absent {
            return Ok(Some(values));
        }
        match values.iter().position(|&v| v != 0.0) {
            None => Ok(None),
            Some(i) => {
                let remedy = "this architecture is known without that bias; the folder may be of another one";
                Err(tensor.wrong("no bias, or one full of zeros", format!("{} at [{i}]", values[i]), remedy))
            }
        }
    }

    pub(crate) fn find(&self, name: &str) -> Option<Tensor<'_>> {
        let (name, entry) = self.tensors.get_key_value(name)?;
        Some(Tensor { name, info: &entry.info, source: &self.sources[entry.shard], read: &entry.read })
    }

    pub(crate) fn need(&self, name: &str) -> Result<Tensor<'_>, FormatError> {
        self.find(name).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> FormatError {
        FormatError::tensor(
            &self.store.display(),
            name,
            "the tensor",
            "none of that name",
            "the folder is incomplete, download or write it again",
        )
    }
}

/// The tensors of which a linear module has one.
const FORMS: [&str; 4] = ["qweight", "weight_packed", "B", "weight"];

/// The module whose codes a tensor holds: packed, or a `weight` of a type that no dense one has.
fn quantized_module<'a>(name: &'a str, info: &TensorInfo) -> Option<&'a str> {
    let codes = matches!(info.dtype, DType::I8 | DType::F8E4M3 | DType::F8E5M2) && info.shape.len() == 2;
    let tiles = matches!(info.dtype, DType::I32 | DType::U32) && info.shape.len() == 2;
    let packed = name.strip_suffix(".qweight").or_else(|| name.strip_suffix(".weight_packed"));
    let packed = packed.or_else(|| name.strip_suffix(".B").filter(|_| tiles));
    packed.or_else(|| name.strip_suffix(".weight").filter(|_| codes))
}

/// The module that a tensor makes linear: its codes, or a `weight` of two dimensions.
fn linear_module<'a>(name: &'a str, info: &TensorInfo) -> Option<&'a str> {
    quantized_module(name, info).or_else(|| name.strip_suffix(".weight").filter(|_| info.shape.len() == 2))
}

/// A tensor of the checkpoint.
pub(crate) struct Tensor<'a> {
    pub(crate) name: &'a str,
    pub(crate) info: &'a TensorInfo,
    source: &'a Source,
    read: &'a AtomicBool,
}

impl Tensor<'_> {
    pub(crate) fn mark_read(&self) {
        self.read.store(true, Ordering::Relaxed);
    }

    pub(crate) fn wrong(&self, expected: impl std::fmt::Display, found: impl std::fmt::Display, remedy: &str) -> FormatError {
        FormatError::tensor(self.source.name(), self.name, expected, found, remedy)
    }

    pub(crate) fn check_dtype(&self, allowed: &[DType]) -> Result<(), FormatError> {
        if allowed.contains(&self.info.dtype) {
            return Ok(());
        }
        let expected = allowed.iter().map(|d| d.name()).collect::<Vec<_>>().join(" or ");
        Err(self.wrong(format!("dtype {expected}"), format!("dtype {}", self.info.dtype), "write the checkpoint with one of these dtypes"))
    }

    /// Rows of a `[rows, n]` tensor; `None` for any other shape.
    pub(crate) fn rows_of(&self, n: usize) -> Option<usize> {
        match self.info.shape[..] {
            [rows, cols] if cols == n => Some(rows),
            _ => None,
        }
    }

    pub(crate) fn read_bytes(&self, out: &mut [u8]) -> Result<(), FormatError> {
        self.source.read_at(self.info.offset, out)
    }

    /// Reads the bytes of the tensor that begin at `start`; the caller keeps to its size.
    pub(crate) fn read_range(&self, start: usize, out: &mut [u8]) -> Result<(), FormatError> {
        debug_assert!(start + out.len() <= self.info.bytes);
        self.source.read_at(self.info.offset + start as u64, out)
    }

    /// Reads rows of `row` bytes in strips of about 1 MiB, each of a multiple of `step` rows but perhaps the last; `take`
    /// gets the index of the first row and the bytes.
    pub(crate) fn read_strips(&self, row: usize, step: usize, mut take: impl FnMut(usize, &[u8])) -> Result<(), FormatError> {
        let rows = ((1 << 20) / row / step).max(1) * step;
        let mut bytes = vec![0; self.info.bytes.min(rows * row)];
        for start in (0..self.info.bytes).step_by(rows * row) {
            let strip = bytes.len().min(self.info.bytes - start);
            self.source.read_at(self.info.offset + start as u64, &mut bytes[..strip])?;
            take(start / row, &bytes[..strip]);
        }
        Ok(())
    }

    /// Reads elements straight into their vector; `from_le` turns each into the machine's byte order.
    pub(crate) fn read_elements<T>(&self, from_le: impl Fn(T) -> T) -> Result<Vec<T>, FormatError>
    where
        T: AnyBitPattern + NoUninit + Default,
    {
        let mut out = vec![T::default(); self.info.bytes / size_of::<T>()];
        self.read_bytes(bytemuck::cast_slice_mut(&mut out))?;
        if cfg!(target_endian = "big") {
            out.iter_mut().for_each(|v| *v = from_le(*v));
        }
        Ok(out)
    }

    pub(crate) fn read_u32(&self) -> Result<Vec<u32>, FormatError> {
        self.read_elements(u32::from_le)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn can_be_read_from_any_thread() {
        fn sync<T: Sync + Send>() {}
        sync::<Checkpoint>();
        sync::<FormatError>();
    }
}
