//! Hands the commit that is built to the crate, so that reports can name it.

use std::process::Command;

/// What `git` answers in this folder, if there is a repository.
fn git(args: &[&str]) -> Option<String> {
    let out = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8(out.stdout).ok()?.trim().to_string())
}

fn main() {
    let commit = git(&["rev-parse", "--short=9", "HEAD"]).unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=BILLFISH_COMMIT={commit}");
    println!("cargo::rerun-if-changed=build.rs");
    // the log of HEAD grows with every commit and every change of branch
    for path in ["HEAD", "logs/HEAD"].iter().filter_map(|p| git(&["rev-parse", "--git-path", p])) {
        if std::path::Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}
