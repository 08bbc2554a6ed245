//! What the tests of this crate share.
#![allow(dead_code)] // every test file uses another part

use billfish_formats::Checkpoint;
use billfish_kernels::{Activations, Backend, Isa};
use billfish_models::{LoadOptions, Logits, Model, Scratch};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub fn fixture(name: &str) -> PathBuf {
    root().join("fixtures").join(name)
}

/// A path for a test to write to. What is there goes away at the end.
pub struct Fresh(PathBuf);

pub fn fresh(name: &str) -> Fresh {
    let path = Fresh(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("quantize-{}-{name}", std::process::id())));
    path.clear();
    path
}

impl Fresh {
    /// Removes what is there.
    pub fn clear(&self) {
        if self.0.is_dir() {
            std::fs::remove_dir_all(&self.0).unwrap();
        } else if self.0.exists() {
            std::fs::remove_file(&self.0).unwrap();
        }
    }
}

impl std::ops::Deref for Fresh {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for Fresh {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        // a failing test has said what matters
        drop(std::fs::remove_dir_all(&self.0));
        drop(std::fs::remove_file(&self.0));
    }
}

pub fn load(dir: &Path, activations: Activations) -> Model {
    load_with(dir, LoadOptions { activations, ..LoadOptions::default() })
}

pub fn load_with(dir: &Path, options: LoadOptions) -> Model {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let backend = Arc::new(Backend::new(Isa::choose(None).unwrap(), 2).unwrap());
    let model = Model::load(&checkpoint, backend, options, &mut |_| ()).unwrap();
    assert_eq!(checkpoint.unread(), Vec::<String>::new(), "tensors that nobody read");
    model
}

pub fn all_logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let mut cache = model.new_cache(ids.len());
    model.forward(&mut cache, ids, Logits::All, &mut Scratch::default()).unwrap().to_vec()
}

/// Ids and logits that another program computed.
pub fn expected(name: &str) -> (Vec<u32>, Vec<f32>) {
    let bytes = std::fs::read(fixture("expected").join(format!("{name}.safetensors"))).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ids = file.tensor("input_ids").unwrap().data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
    (ids, floats(&file, "logits"))
}

pub fn floats(file: &safetensors::SafeTensors<'_>, name: &str) -> Vec<f32> {
    file.tensor(name).unwrap().data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// `-ln p` of a token, the long way: every probability, then the logarithm of one.
pub fn surprise(row: &[f32], token: u32) -> f64 {
    let weights: Vec<f64> = row.iter().map(|&x| f64::from(x).exp()).collect();
    -(weights[token as usize] / weights.iter().sum::<f64>()).ln()
}
