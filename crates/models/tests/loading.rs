//! Modules are packed side by side: the error is still that of the first wrong one.

use billfish_formats::Checkpoint;
use billfish_kernels::{Backend, Isa};
use billfish_models::{LoadOptions, Model};
use billfish_quantize::synth;
use std::sync::{Arc, Mutex};

#[test]
fn the_first_wrong_module_is_named_whoever_finds_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    synth(&"tiny:w4g32:asym".parse().unwrap(), &model, 1, false, 1, &[], &mut |_, _| ()).unwrap();
    let file = model.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let wrong = ["model.layers.0.mlp.down_proj.scales", "model.layers.1.self_attn.q_proj.scales", "model.layers.1.mlp.up_proj.scales"];
    let checkpoint = Checkpoint::open(&model).unwrap();
    for name in wrong {
        let info = checkpoint.info(name).unwrap();
        bytes[info.offset as usize..][..info.bytes].fill(0xff);
    }
    std::fs::write(&file, &bytes).unwrap();
    for threads in [1, 2, 4] {
        for _ in 0..20 {
            let backend = Arc::new(Backend::new(Isa::choose(None).unwrap(), threads).unwrap());
            let checkpoint = Checkpoint::open(&model).unwrap();
            let found = Model::load(&checkpoint, backend, LoadOptions::default(), &mut |_| ()).err().unwrap().to_string();
            assert!(found.contains(wrong[0]), "{threads} threads: {found}");
        }
    }
}

#[test]
fn progress_grows_to_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    synth(&"tiny:w4g32".parse().unwrap(), dir.path(), 1, false, 1, &[], &mut |_, _| ()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    for _ in 0..2 {
        let heard = Mutex::new(vec![]);
        let backend = Arc::new(Backend::new(Isa::choose(None).unwrap(), 3).unwrap());
        let cache = dir.path().join("caches");
        let mut listen = |p: billfish_models::Progress| heard.lock().unwrap().push((p.done, p.total));
        Model::load_cached(&checkpoint, backend, LoadOptions::default(), &cache, &mut listen).unwrap();
        let heard = heard.into_inner().unwrap();
        assert!(heard.is_sorted() && heard.last() == Some(&(checkpoint.total_bytes(), checkpoint.total_bytes())), "{heard:?}");
    }
}
