//! Models to run.

use billfish_formats::Checkpoint;
use billfish_kernels::{Backend, Isa};
use billfish_models::{LoadOptions, Model};
use billfish_text::{Tokenizer, TokenizerFiles};
use std::path::Path;
use std::sync::Arc;

pub fn open() -> (Model, Tokenizer) {
    open_folder("crates/billfish/assets/tales-6m-w4-sym-g128")
}

/// A folder of the repository.
pub fn open_folder(path: &str) -> (Model, Tokenizer) {
    load(&Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap())
}

/// A model with its tokenizer.
pub fn load(checkpoint: &Checkpoint) -> (Model, Tokenizer) {
    let backend = Arc::new(Backend::new(Isa::choose(None).unwrap(), 2).unwrap());
    let model = Model::load(checkpoint, backend, LoadOptions::default(), &mut |_| ()).unwrap();
    let json = checkpoint.file("tokenizer.json").unwrap().unwrap();
    let config = checkpoint.file("tokenizer_config.json").unwrap();
    let files = TokenizerFiles {
        name: checkpoint.name(),
        tokenizer_json: &json,
        tokenizer_config: config.as_deref(),
        generation_config: checkpoint.generation_config(),
        config: Some(checkpoint.config()),
        chat_template: None,
    };
    (model, Tokenizer::from_parts(files).unwrap())
}
