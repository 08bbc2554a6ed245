//! Opening a folder that does not open: what stands in the way is set aside where something else can take its place.

use crate::checkpoint::Checkpoint;
use crate::store::Store;
use crate::survey::by_name;
use crate::warning::Warnings;
use crate::{FormatError, config_files, shards};
use std::path::Path;

/// A folder opened with parts of it set aside.
#[derive(Debug)]
pub struct Salvaged {
    /// The folder.
    pub checkpoint: Checkpoint,
    /// What was set aside, in words.
    pub aside: Vec<String>,
}

impl Checkpoint {
    /// Opens a folder by its tensors: the shard index is not looked at, and a quantization config that cannot be read is
    /// passed over if there is another. Meant for writing a repaired copy; [`Checkpoint::open`] is for use.
    ///
    /// # Errors
    /// [`FormatError`] when a shard or `config.json` is missing or damaged, or no quantization config can be read.
    pub fn salvage(dir: &Path) -> Result<Salvaged, FormatError> {
        let store = Store::folder(dir)?;
        let name = dir.file_name().map_or_else(|| store.display(), |n| n.to_string_lossy().into_owned());
        let mut aside = vec![];
        let Some(config) = config_files::object(&store, "config.json")? else {
            return Checkpoint::open(dir).map(|checkpoint| Salvaged { checkpoint, aside });
        };
        let generation_config = config_files::object(&store, "generation_config.json")?;
        let mut files = config_files::raw(&store, &config, Some(&mut |e| aside.push(e.to_string())))?;
        let quantization = loop {
            match config_files::quantization(&store, &files, &Warnings::default()) {
                Err(e) if files.len() > 1 => {
                    aside.push(e.to_string());
                    files.remove(0);
                }
                other => break other?,
            }
        };
        let names = store.names()?;
        let chosen = by_name(&names);
        if chosen.is_empty() {
            return Checkpoint::open(dir).map(|checkpoint| Salvaged { checkpoint, aside });
        }
        let shards = shards::read(&store, &chosen, &store.display())?;
        // an index may be wrong about the place of a tensor, but one that is nowhere is lost
        if let Ok((_, Some(index))) = shards::choose(&store, &names)
            && let Some(tensor) = index.map.keys().find(|t| !shards.tensors.contains_key(*t))
        {
            return Err(FormatError::index(&index.label, tensor, "the tensor in a shard", "it in no shard"));
        }
        if names.iter().any(|n| n.ends_with(".safetensors.index.json")) {
            aside.push("the shard index".into());
        }
        let parts = (quantization, files);
        let checkpoint = Checkpoint::assemble(name, store, config, generation_config, parts, shards, Warnings::default())?;
        Ok(Salvaged { checkpoint, aside })
    }
}
