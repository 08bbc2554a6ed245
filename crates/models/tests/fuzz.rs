//! The committed corpus of hostile configs, each also cut at every length and with single bytes changed, through the fuzz
//! bodies: nothing may panic.

use billfish_formats::fuzz::Run;
use billfish_models::fuzz::TARGETS;
use std::path::Path;

#[test]
fn configs() {
    for (target, body) in TARGETS {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz-corpus").join(target);
        let mut run = Run::new(Path::new(""));
        let mut files = 0;
        for entry in std::fs::read_dir(&dir).unwrap() {
            let data = std::fs::read(entry.unwrap().path()).unwrap();
            body(&data, &mut run);
            for at in 0..data.len() {
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
        assert!(run.outcomes().len() >= 10, "{target} always says the same");
    }
}
