//! Everything that is wrong with the files of tensors of a folder, where opening it would stop at the first.

use crate::shards::{SINGLE, choose, missing};
use crate::store::Store;
use crate::{FormatError, Header};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What is wrong with the shards of a folder and their index: files that are missing, cut short or damaged, and tensors that
/// are elsewhere than the index says.
///
/// # Errors
/// [`FormatError`] when the folder itself cannot be read.
pub fn survey(dir: &Path) -> Result<Vec<FormatError>, FormatError> {
    let store = Store::folder(dir)?;
    let names = store.names()?;
    let mut found = vec![];
    let (files, index) = match choose(&store, &names) {
        Ok(chosen) => chosen,
        Err(e) => {
            found.push(e);
            (names.iter().filter(|n| n.ends_with(".safetensors")).cloned().collect(), None)
        }
    };
    let label = index.as_ref().map_or_else(|| store.display(), |i| i.label.clone());
    // where each tensor is, and the files whose headers could not be read: of those nothing more can be said
    let (mut places, mut unread): (BTreeMap<String, String>, BTreeSet<&str>) = Default::default();
    for file in &files {
        match store.open(file).and_then(|source| source.map(|s| Header::read(&s)).transpose()) {
            Ok(Some(header)) => {
                for tensor in header.tensors.into_keys() {
                    if let Some(other) = places.insert(tensor.clone(), file.clone()) {
                        let remedy = "keep one of the two shards, or write the folder again";
                        let label = store.label(file);
                        found.push(FormatError::tensor(
                            &label,
                            tensor,
                            "a tensor in one shard only",
                            format!("it also in {other}"),
                            remedy,
                        ));
                    }
                }
            }
            Ok(None) => {
                unread.insert(file);
                found.push(missing(&label, file));
            }
            Err(e) => {
                unread.insert(file);
                found.push(e);
            }
        }
    }
    if let Some(index) = index {
        // one finding for each pair of files, however many tensors it is about
        let mut astray: BTreeMap<(&str, Option<&str>), Vec<&str>> = BTreeMap::new();
        for (tensor, file) in index.map.iter().filter(|(_, file)| !unread.contains(file.as_str())) {
            let place = places.get(tensor).map(String::as_str);
            if place != Some(file) {
                astray.entry((file, place)).or_default().push(tensor);
            }
        }
        for ((file, place), tensors) in astray {
            let found_in = place.map_or_else(|| "it in no shard that can be read".to_string(), |p| format!("it in {p}"));
            let more = if tensors.len() > 1 { format!(" (and {} more tensors)", tensors.len() - 1) } else { String::new() };
            found.push(FormatError::index(&label, tensors[0], format!("the tensor in {file}"), found_in + &more));
        }
    }
    Ok(found)
}

/// The files that hold a model's tensors, by their names alone: the one whole set of numbered shards, or the file with the
/// standard name, or all there are. None if some are numbered and others of their set are missing.
pub(crate) fn by_name(names: &[String]) -> Vec<String> {
    let mut sets: BTreeMap<(&str, usize), BTreeSet<usize>> = BTreeMap::new();
    for name in names {
        if let Some((prefix, number, count)) = numbered(name) {
            sets.entry((prefix, count)).or_default().insert(number);
        }
    }
    let whole: Vec<(&str, usize)> = sets.iter().filter(|((_, count), n)| n.len() == *count).map(|(set, _)| *set).collect();
    let tensors = names.iter().filter(|n| n.ends_with(".safetensors"));
    match whole.as_slice() {
        [one] => tensors.filter(|n| numbered(n).is_some_and(|(prefix, _, count)| (prefix, count) == *one)).cloned().collect(),
        _ if names.iter().any(|n| n == SINGLE) => vec![SINGLE.into()],
        _ if sets.is_empty() => tensors.cloned().collect(),
        _ => vec![],
    }
}

/// `PREFIX-00002-of-00003.safetensors` in its parts.
fn numbered(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let (number, count) = (number.parse().ok()?, count.parse().ok()?);
    (1..=count).contains(&number).then_some((prefix, number, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_by_their_names() {
        let pick = |names: &[&str]| by_name(&names.iter().map(|n| n.to_string()).collect::<Vec<_>>());
        let two = ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"];
        assert_eq!(pick(&two), two);
        assert_eq!(pick(&[two[0], two[1], "m-00001-of-00003.safetensors", "other.safetensors", "x.json"]), two);
        assert_eq!(pick(&["model.safetensors", two[0]]), ["model.safetensors"], "half a set is none");
        assert!(pick(&[two[1], "a.safetensors"]).is_empty());
        assert_eq!(pick(&["a.safetensors", "b.safetensors"]), ["a.safetensors", "b.safetensors"]);
        assert_eq!(numbered("m-3-of-2.safetensors"), None);
    }
}
