//! A model in sections: what the table of a packed cache says, and the weights that it makes of them.

use super::file::{Reader, Section, Writer, are_whole};
use crate::ModelError;
use crate::decoder::Vocabulary;
use crate::head::HeadRounding;
use crate::plan::{EMBEDDING, HEAD};
use billfish_formats::{Checkpoint, Warning, WarningKind};
use billfish_kernels::{Description, PackedDense, PackedMatrix, Pool, Table, Weight};
use billfish_tensor::{ActivationScale, DType, RowOrder};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What a packed cache was made of, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    /// Version of the program: another may read a folder otherwise.
    pub version: String,
    pub outline_sha256: String,
    pub files_sha256: String,
    pub quantize_head: bool,
}

/// The table. Numbers of sections are places in `sections`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    identity: Identity,
    sections: Vec<Section>,
    weights: BTreeMap<String, StoredWeight>,
    /// Weights of norms.
    vectors: BTreeMap<String, usize>,
    /// The rows that tokens become, where they are not the head.
    rows: Option<StoredRows>,
    head: Option<StoredRounding>,
    warnings: Vec<StoredWarning>,
    unread: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredWeight {
    in_features: usize,
    out_features: usize,
    /// Type of the elements, or of the scales of a quantized weight.
    dtype: String,
    data: usize,
    bias: Option<usize>,
    quantized: Option<StoredCodes>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredCodes {
    bits: u32,
    zero_bytes: usize,
    one_scale_a_token: bool,
    group_rows: usize,
    permutation: Option<usize>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredRows {
    dtype: String,
    shape: [usize; 2],
    data: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredRounding {
    bits: u32,
    group_size: usize,
    bytes_before: usize,
    bytes_after: usize,
    /// The bits of an `f64`: text would round it.
    relative_error: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredWarning {
    kind: String,
    message: String,
    subjects: Vec<String>,
}

/// Writes a model into a packed cache while it is loaded.
pub(crate) struct Recorder {
    file: Writer,
    contents: Contents,
}

impl Recorder {
    pub(super) fn new(path: &Path, identity: Identity) -> io::Result<Self> {
        let contents = Contents {
            identity,
            sections: vec![],
            weights: BTreeMap::new(),
            vectors: BTreeMap::new(),
            rows: None,
            head: None,
            warnings: vec![],
            unread: vec![],
        };
        Ok(Self { file: Writer::new(path)?, contents })
    }

    fn section(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.contents.sections.push(self.file.section(bytes)?);
        Ok(self.contents.sections.len() - 1)
    }

    fn numbers<T: Copy>(&mut self, values: &[T], to_le: impl Fn(T) -> [u8; 4]) -> io::Result<usize> {
        self.section(&values.iter().flat_map(|&v| to_le(v)).collect::<Vec<_>>())
    }

    /// Keeps a weight.
    pub fn weight(&mut self, module: &str, weight: &Weight) -> io::Result<()> {
        let (data, bias) = match weight {
            Weight::Quantized(w) => (w.data(), w.description().bias),
            Weight::Dense(w) => (w.data(), w.bias().map(<[f32]>::to_vec)),
        };
        let data = self.section(data)?;
        let bias = bias.map(|b| self.numbers(&b, f32::to_le_bytes)).transpose()?;
        let (dtype, quantized) = match weight {
            Weight::Dense(w) => (w.dtype(), None),
            Weight::Quantized(w) => {
                let d = w.description();
                let codes = StoredCodes {
                    bits: d.bits,
                    zero_bytes: d.zero_bytes,
                    one_scale_a_token: d.activation_scale == ActivationScale::Token,
                    group_rows: self.numbers(&d.order.group_rows, u32::to_le_bytes)?,
                    permutation: d.order.permutation.map(|p| self.numbers(&p, u32::to_le_bytes)).transpose()?,
                };
                (d.scales, Some(codes))
            }
        };
        let (in_features, out_features) = (weight.in_features(), weight.out_features());
        let stored = StoredWeight { in_features, out_features, dtype: dtype.name().into(), data, bias, quantized };
        self.contents.weights.insert(module.into(), stored);
        Ok(())
    }

    /// Keeps the weights of a norm.
    pub fn vector(&mut self, name: &str, values: &[f32]) -> io::Result<()> {
        let section = self.numbers(values, f32::to_le_bytes)?;
        self.contents.vectors.insert(name.into(), section);
        Ok(())
    }

    /// Keeps the rows that tokens become.
    pub fn rows(&mut self, table: &Table) -> io::Result<()> {
        let data = self.section(table.data())?;
        self.contents.rows = Some(StoredRows { dtype: table.dtype().name().into(), shape: table.shape(), data });
        Ok(())
    }

    /// Completes the file with what was found while the model was loaded, and puts it in its place.
    pub(super) fn finish(mut self, head: Option<HeadRounding>, checkpoint: &Checkpoint, pool: &Pool) -> io::Result<()> {
        self.contents.head = head.map(|h| StoredRounding {
            bits: h.bits,
            group_size: h.group_size,
            bytes_before: h.bytes_before,
            bytes_after: h.bytes_after,
            relative_error: h.relative_error.to_bits(),
        });
        // what is odd about the files of a folder is found anew whenever it is opened
        let warnings = checkpoint.warnings().into_iter().filter(|w| w.kind != WarningKind::Files);
        let stored = |w: Warning| StoredWarning { kind: w.kind.name().into(), message: w.message, subjects: w.subjects };
        self.contents.warnings = warnings.map(stored).collect();
        self.contents.unread = checkpoint.unread();
        let table = serde_json::to_vec(&self.contents)?;
        self.file.finish(&table, &self.contents.sections, pool)
    }
}

/// A model as it came out of a packed cache.
pub(crate) struct Parts {
    /// The linear modules.
    pub weights: HashMap<String, Weight>,
    /// The norms.
    pub vectors: HashMap<String, Vec<f32>>,
    rows: Option<Table>,
    /// What rounding the head did.
    pub head: Option<HeadRounding>,
    warnings: Vec<Warning>,
    unread: Vec<String>,
}

impl Parts {
    /// Reads a packed cache that must be of `identity`; `None` if there is none. With `doubts` every byte of it is hashed.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(super) fn read(path: &Path, identity: &Identity, doubts: Option<&Pool>) -> Result<Option<Self>, String> {
        let Some(file) = Reader::open(path)? else { return Ok(None) };
        let contents: Contents = serde_json::from_slice(file.table()).map_err(|e| format!("its table cannot be read: {e}"))?;
        if contents.identity != *identity {
            return Err("it is of another model, or was made in another way".into());
        }
        let sections = Sections { file: &file, list: &contents.sections };
        let mut weights = HashMap::new();
        for (module, w) in &contents.weights {
            weights.insert(module.clone(), sections.weight(w).map_err(|e| format!("module `{module}`: {e}"))?);
        }
        let mut vectors = HashMap::new();
        for (name, &section) in &contents.vectors {
            vectors.insert(name.clone(), sections.floats(section).map_err(|e| format!("`{name}`: {e}"))?);
        }
        let rows = |r: &StoredRows| Table::restore(dtype(&r.dtype)?, r.shape, sections.stored(r.data)?).map_err(|e| e.to_string());
        let rows = contents.rows.as_ref().map(rows).transpose()?;
        let head = contents.head.map(|h| HeadRounding {
            bits: h.bits,
            group_size: h.group_size,
            bytes_before: h.bytes_before,
            bytes_after: h.bytes_after,
            relative_error: f64::from_bits(h.relative_error),
        });
        let warning = |w: StoredWarning| {
            let kind = WarningKind::from_name(&w.kind).ok_or_else(|| format!("a warning of kind `{}`", w.kind))?;
            Ok(Warning { kind, message: w.message, subjects: w.subjects })
        };
        let warnings = contents.warnings.into_iter().map(warning).collect::<Result<_, String>>()?;
        if doubts.is_some_and(|pool| !are_whole(path, &contents.sections, pool)) {
            return Err("its bytes are others than were packed".into());
        }
        Ok(Some(Self { weights, vectors, rows, head, warnings, unread: contents.unread }))
    }

    /// The vocabulary, `[tokens, hidden]`, with its head out of `weights`, and the module that the head is.
    pub fn vocabulary(
        &mut self,
        weights: &mut HashMap<String, Weight>,
        hidden: usize,
        tokens: usize,
    ) -> Result<(Vocabulary, &'static str), ModelError> {
        let module = if weights.contains_key(HEAD) { HEAD } else { EMBEDDING };
        let head = weights.remove(module).filter(|w| (w.in_features(), w.out_features()) == (hidden, tokens));
        match (head, self.rows.take()) {
            (Some(head), Some(table)) if table.shape() == [tokens, hidden] => Ok((Vocabulary::Separate { table, head }, module)),
            (Some(Weight::Dense(rows)), None) => {
                let head = Weight::Dense(Arc::clone(&rows));
                Ok((Vocabulary::Tied { rows, head }, module))
            }
            _ => Err(super::lacks(module)),
        }
    }

    /// Tells the checkpoint what reading it showed.
    pub fn account(&mut self, checkpoint: &Checkpoint) {
        checkpoint.read_before(std::mem::take(&mut self.warnings), &self.unread);
    }
}

fn dtype(name: &str) -> Result<DType, String> {
    DType::from_name(name).ok_or_else(|| format!("a type `{name}`"))
}

/// The sections of a file by their numbers.
struct Sections<'a> {
    file: &'a Reader,
    list: &'a [Section],
}

impl Sections<'_> {
    fn of<T>(&self, number: usize, get: impl Fn(&Section) -> Option<T>) -> Result<T, String> {
        self.list.get(number).and_then(get).ok_or_else(|| format!("section {number} is not inside the file"))
    }

    fn stored(&self, number: usize) -> Result<billfish_kernels::Stored, String> {
        self.of(number, |s| self.file.stored(s))
    }

    fn numbers<T>(&self, number: usize, from_le: impl Fn([u8; 4]) -> T) -> Result<Vec<T>, String> {
        let bytes = self.of(number, |s| self.file.bytes(s))?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|b| from_le(*b)).collect())
    }

    fn floats(&self, number: usize) -> Result<Vec<f32>, String> {
        self.numbers(number, f32::from_le_bytes)
    }

    fn weight(&self, w: &StoredWeight) -> Result<Weight, String> {
        let (data, dtype) = (self.stored(w.data)?, dtype(&w.dtype)?);
        let bias = w.bias.map(|b| self.floats(b)).transpose()?;
        let Some(codes) = &w.quantized else {
            let packed = PackedDense::restore(dtype, (w.in_features, w.out_features), bias, data);
            return packed.map(|w| Weight::Dense(Arc::new(w))).map_err(|e| e.to_string());
        };
        let words = |number: usize| self.numbers(number, u32::from_le_bytes);
        let permutation = codes.permutation.map(words).transpose()?;
        let description = Description {
            in_features: w.in_features,
            out_features: w.out_features,
            bits: codes.bits,
            scales: dtype,
            zero_bytes: codes.zero_bytes,
            order: RowOrder { permutation, group_rows: words(codes.group_rows)? },
            activation_scale: if codes.one_scale_a_token { ActivationScale::Token } else { ActivationScale::Block },
            bias,
        };
        PackedMatrix::restore(description, data).map(Weight::Quantized).map_err(|e| e.to_string())
    }
}
