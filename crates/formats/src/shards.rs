//! Which files of a folder hold the tensors: the shard index, `model.safetensors`, or the one other safetensors file.

use crate::store::{Store, is_plain};
use crate::warning::{WarningKind, Warnings};
use crate::{FormatError, Header, Source, TensorInfo, json};
use std::collections::BTreeMap;

/// Size cap of any JSON file.
pub(crate) const JSON_CAP: u64 = 64 << 20;

pub(crate) const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Every tensor of the folder with the shard that holds it.
pub(crate) struct Shards {
    pub(crate) sources: Vec<Source>,
    pub(crate) tensors: BTreeMap<String, (usize, TensorInfo)>,
}

/// Finds the files, reads their headers and checks them against the index.
pub(crate) fn open(store: &Store, warnings: &Warnings) -> Result<Shards, FormatError> {
    let names = store.names()?;
    let (files, index) = choose(store, &names)?;
    let label = index.as_ref().map_or_else(|| store.display(), |i| i.label.clone());
    let mut shards = read(store, &files, &label)?;
    if let Some(index) = index {
        index.check(&files, &mut shards, warnings)?;
    }
    for name in names.iter().filter(|n| n.ends_with(".safetensors") && !files.contains(n)) {
        warnings.about(WarningKind::Files, "a safetensors file that is not part of the model is not read", name);
    }
    Ok(shards)
}

/// Reads the headers of these files, which `label` named.
pub(crate) fn read(store: &Store, files: &[String], label: &str) -> Result<Shards, FormatError> {
    let mut shards = Shards { sources: vec![], tensors: BTreeMap::new() };
    for file in files {
        let Some(source) = store.open(file)? else { return Err(missing(label, file)) };
        let number = shards.sources.len();
        for (name, info) in Header::read(&source)?.tensors {
            if let Some((other, _)) = shards.tensors.get(&name) {
                let found = format!("it also in {}", shards.sources[*other].name());
                let remedy = "keep one of the two shards, or write the folder again";
                return Err(FormatError::tensor(source.name(), &name, "a tensor in one shard only", found, remedy));
            }
            shards.tensors.insert(name, (number, info));
        }
        shards.sources.push(source);
    }
    Ok(shards)
}

/// A shard that an index names and the folder lacks.
pub(crate) fn missing(label: &str, file: &str) -> FormatError {
    FormatError::index(label, file, "a shard that is in the folder", "no such file")
}

/// The files to read, and the index that named them.
pub(crate) fn choose(store: &Store, names: &[String]) -> Result<(Vec<String>, Option<Index>), FormatError> {
    let has = |n: &str| names.iter().any(|m| m == n);
    let with = |end: &str| -> Vec<&String> { names.iter().filter(|n| n.ends_with(end)).collect() };
    let indexes = with(".safetensors.index.json");
    // Writers of old also named the index after the model; it counts when nothing has the standard name.
    let index = match indexes.as_slice() {
        _ if has(INDEX) => Some(INDEX),
        [one] if !has(SINGLE) => Some(one.as_str()),
        _ => None,
    };
    if let Some(index) = index.map(|i| Index::read(store, i)).transpose()? {
        let mut files: Vec<String> = index.map.values().cloned().collect();
        files.sort();
        files.dedup();
        return Ok((files, Some(index)));
    }
    let wrong = |found: String, remedy: &str| FormatError::NotFound {
        path: store.display(),
        expected: format!("{INDEX}, {SINGLE} or one other *.safetensors file"),
        found: crate::error::clip(found),
        remedy: remedy.into(),
    };
    let tensors = with(".safetensors");
    match tensors.as_slice() {
        _ if has(SINGLE) => Ok((vec![SINGLE.into()], None)),
        [one] => Ok((vec![one.to_string()], None)),
        [] => {
            let pickles: Vec<&String> = names.iter().filter(|n| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|e| n.ends_with(e))).collect();
            if pickles.is_empty() {
                return Err(wrong("no safetensors file".into(), "pass a folder that holds config.json and *.safetensors"));
            }
            let found = format!("only {}", list(&pickles));
            Err(wrong(found, "pickle files can run code and are refused, convert them to safetensors with the program that wrote them"))
        }
        many => Err(wrong(format!("{} without an index", list(many)), "add the index that belongs to them, or keep one file only")),
    }
}

fn list(names: &[&String]) -> String {
    names.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ")
}

/// The shard index: which file holds which tensor.
pub(crate) struct Index {
    pub(crate) label: String,
    pub(crate) map: BTreeMap<String, String>,
}

impl Index {
    fn read(store: &Store, name: &str) -> Result<Index, FormatError> {
        let label = store.label(name);
        let bytes = match store.open(name)? {
            Some(source) => source.read_all(JSON_CAP)?,
            None => return Err(FormatError::index(&label, name, "a readable file", "a broken link")),
        };
        let mut object = json::object(&label, &bytes)?;
        let Some(serde_json::Value::Object(raw)) = object.remove("weight_map") else {
            return Err(FormatError::index(&label, "weight_map", "an object of tensor and file names", "none"));
        };
        let mut map = BTreeMap::new();
        for (tensor, file) in raw {
            let wrong = |expected: &str| Err(FormatError::index(&label, &tensor, expected, json::show(&file)));
            let Some(file_name) = file.as_str() else { return wrong("a file name") };
            if !is_plain(file_name) {
                return wrong("a plain file name inside the folder (no `/`, no `..`)");
            }
            if file_name.ends_with(".json") {
                return wrong("a safetensors file, not an index");
            }
            if !file_name.ends_with(".safetensors") {
                return wrong("a *.safetensors file");
            }
            map.insert(tensor, file_name.to_string());
        }
        if map.is_empty() {
            return Err(FormatError::index(&label, "weight_map", "at least one tensor", "none"));
        }
        Ok(Index { label, map })
    }

    /// Every listed tensor must be where the index says. A tensor that it does not list is not part of the model: it may be
    /// left over from another one, so it is named and not read.
    fn check(&self, files: &[String], shards: &mut Shards, warnings: &Warnings) -> Result<(), FormatError> {
        for (tensor, file) in &self.map {
            let found = match shards.tensors.get(tensor) {
                Some((shard, _)) if files[*shard] == *file => continue,
                Some((shard, _)) => format!("it in {}", files[*shard]),
                None => "it in no shard".into(),
            };
            return Err(FormatError::index(&self.label, tensor, format!("the tensor in {file}"), found));
        }
        shards.tensors.retain(|tensor, _| {
            let listed = self.map.contains_key(tensor);
            if !listed {
                warnings.about(WarningKind::Files, "a tensor in a shard that the index does not list is not read", tensor);
            }
            listed
        });
        Ok(())
    }
}
