//! The committed corpus of hostile files, each also cut at every length and with single bytes changed, through the fuzz
//! bodies: nothing may panic.

use billfish_formats::fuzz;
use std::path::Path;

/// Places in a file that are changed, so that a large file does not take minutes.
const MOST_FLIPS: usize = 1500;

fn replay(target: &str, body: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz-corpus").join(target);
    let mut files = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let data = std::fs::read(entry.unwrap().path()).unwrap();
        body(&data);
        (0..data.len()).for_each(|end| body(&data[..end]));
        let step = data.len().div_ceil(MOST_FLIPS).max(1);
        for at in (0..data.len()).step_by(step) {
            for change in [0x01, 0x80, 0xff] {
                let mut data = data.clone();
                data[at] ^= change;
                body(&data);
            }
        }
        files += 1;
    }
    assert!(files >= 10, "{} holds {files} files", dir.display());
}

#[test]
fn safetensors_header() {
    replay("safetensors_header", fuzz::safetensors_header);
}

#[test]
fn quant_config() {
    replay("quant_config", fuzz::quant_config);
}

#[test]
fn dynamic() {
    replay("dynamic", fuzz::dynamic);
}

#[test]
fn checkpoint() {
    replay("checkpoint", fuzz::checkpoint);
}
