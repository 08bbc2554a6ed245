//! The committed corpus of hostile files, each also cut at every length and with single bytes changed, through the fuzz
//! bodies: nothing may panic.

use billfish_formats::fuzz::{Run, TARGETS};
use std::path::Path;

mod common;

/// Places in a file that are cut or changed, so that a large file does not take minutes.
const MOST_PLACES: usize = 200;

/// Replays some targets; each has a folder of its own to write to.
fn replay(targets: &[&str]) {
    replay_at(targets, MOST_PLACES);
}

fn replay_at(targets: &[&str], places: usize) {
    for (target, body) in TARGETS.iter().filter(|(name, _)| targets.contains(name)) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz-corpus").join(target);
        let scratch = common::Temp::new();
        let mut run = Run::new(&scratch.0);
        let mut files = 0;
        for entry in std::fs::read_dir(&dir).unwrap() {
            let data = std::fs::read(entry.unwrap().path()).unwrap();
            body(&data, &mut run);
            let step = data.len().div_ceil(places).max(1);
            for at in (0..data.len()).step_by(step) {
                body(&data[..at], &mut run);
                for change in [0x01, 0x80, 0xff] {
                    let mut data = data.clone();
                    data[at] ^= change;
                    body(&data, &mut run);
                }
            }
            files += 1;
        }
        assert!(files >= 10, "{} holds {files} files", dir.display());
        assert!(run.outcomes().len() >= 5, "{target} always says the same");
    }
}

#[test]
fn texts() {
    replay(&["safetensors_header", "quant_config", "dynamic", "names", "shard_index", "method", "place"]);
}

#[test]
fn folders() {
    replay(&["checkpoint"]);
}

#[test]
fn tensors_of_gptq_and_auto_round() {
    replay(&["gptq", "auto_round"]);
}

#[test]
fn tensors_of_other_layouts() {
    replay(&["awq", "pack_quantized", "int_quantized", "dense"]);
}

#[test]
fn conversions() {
    // each writes a folder to the disk
    replay_at(&["convert"], 16);
}
