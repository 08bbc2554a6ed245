//! House rules that a compiler does not check, over every source file of the repository.
//!
//! The words that are looked for are put together from parts, so that this file does not contain them.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders of the repository that hold files of its own; top-level files are added.
const FOLDERS: [&str; 4] = [".ci", ".github", "crates", "fixtures"];

/// Which crates of the workspace a crate may use. What is not listed may use nothing.
const MAY_USE: [(&str, &[&str]); 7] = [
    ("formats", &["tensor"]),
    ("kernels", &["tensor"]),
    ("models", &["tensor", "formats", "kernels"]),
    ("engine", &["models", "text"]),
    ("quantize", &["tensor", "formats", "kernels", "models"]),
    ("server", &["engine", "text"]),
    ("billfish", &["tensor", "formats", "kernels", "models", "text", "engine", "quantize", "server"]),
];

struct File {
    /// Path from the root, with `/`.
    path: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The crate it belongs to, by folder.
    fn of(&self) -> &str {
        self.path.strip_prefix("crates/").and_then(|p| p.split('/').next()).unwrap_or("")
    }

    /// Whether it is code of a library: not of the binary, not a test.
    fn is_library(&self) -> bool {
        let binary = self.path.starts_with("crates/billfish/src/cli/") || self.path == "crates/billfish/src/main.rs";
        self.is_rust() && self.path.contains("/src/") && !binary
    }

    /// Whether it was written by the project's people, not by a program for a test.
    fn is_ours(&self) -> bool {
        let data = ["fixtures/", "/assets/", "/fuzz-corpus/", "/tests/data/"];
        self.path == "fixtures/README.md" || !data.iter().any(|d| format!("/{}", self.path).contains(d))
    }

    /// Lines with their numbers, without line comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(i, line)| (i + 1, line.split("//").next().unwrap_or("")))
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every text file of the repository.
fn files() -> Vec<File> {
    fn walk(dir: &Path, path: &str, deep: bool, out: &mut Vec<File>) {
        let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for entry in entries {
            let name = entry.file_name().unwrap().to_string_lossy();
            let path = format!("{path}{name}");
            // in a linked worktree `.git` is a file, and no part of the repository
            if name == ".git" {
                continue;
            }
            if entry.is_file() {
                // what is no UTF-8 is no text
                out.extend(fs::read_to_string(&entry).ok().map(|text| File { path, text }));
            } else if deep && name != "target" {
                walk(&entry, &format!("{path}/"), true, out);
            }
        }
    }
    let mut out = vec![];
    walk(&root(), "", false, &mut out);
    for folder in FOLDERS {
        walk(&root().join(folder), &format!("{folder}/"), true, &mut out);
    }
    assert!(out.iter().filter(|f| f.is_rust()).count() > 50, "the walk missed the sources");
    out
}

/// The words of a line: runs of letters, digits and underscores.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

fn report(rule: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

/// Places in the code of `files` where `bad` finds something.
fn search<'a>(files: impl Iterator<Item = &'a File>, bad: impl Fn(&str) -> bool) -> Vec<String> {
    files.flat_map(|f| f.code().filter(|(_, l)| bad(l)).map(|(n, l)| format!("{}:{n}: {}", f.path, l.trim())).collect::<Vec<_>>()).collect()
}

#[test]
fn files_are_short() {
    const MOST: usize = 800;
    let lengths: Vec<(usize, String)> =
        files().iter().filter(|f| f.is_rust()).map(|f| (f.text.lines().count(), f.path.clone())).filter(|(n, _)| *n > 600).collect();
    if lengths.iter().any(|(n, _)| *n > MOST) {
        report(&format!("a file has at most {MOST} lines (those over 600)"), lengths.iter().map(|(n, p)| format!("{p}: {n}")).collect());
    }
}

#[test]
fn nothing_is_left_for_later() {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
    let macros = [concat!("to", "do!("), concat!("unimpl", "emented!(")];
    let mut found = vec![];
    for f in files().iter().filter(|f| f.is_ours()) {
        for (i, line) in f.text.lines().enumerate() {
            if words(line).any(|w| marks.contains(&w)) || (f.is_rust() && macros.iter().any(|m| line.contains(m))) {
                found.push(format!("{}:{}: {}", f.path, i + 1, line.trim()));
            }
        }
    }
    report("do it or write an issue", found);
}

#[test]
fn only_kernels_are_unsafe() {
    let all = files();
    let keyword = concat!("un", "safe");
    // a test that counts allocations needs an allocator of its own
    let others = all.iter().filter(|f| f.is_rust() && f.of() != "kernels" && !f.path.ends_with("/tests/memory.rs"));
    report("only crates/kernels and tests/memory.rs may say it", search(others, |l| words(l).any(|w| w == keyword)));

    let forbid = concat!("#![forbid(un", "safe_code)]");
    let roots = all.iter().filter(|f| f.of() != "kernels" && (f.path.ends_with("/src/lib.rs") || f.path.ends_with("/src/main.rs")));
    report("every other crate forbids it", roots.filter(|f| !f.text.contains(forbid)).map(|f| f.path.clone()).collect());
}

#[test]
fn crates_know_only_those_below_them() {
    let mut found = vec![];
    for f in files().iter().filter(|f| f.path.starts_with("crates/") && f.path.ends_with("Cargo.toml")) {
        let may = MAY_USE.iter().find(|(name, _)| *name == f.of()).map_or(&[][..], |(_, may)| may);
        let after = f.text.split("\n[dependencies]\n").nth(1).unwrap_or("");
        let section = after.split("\n[").next().unwrap_or("");
        for dependency in section.lines().filter_map(|l| l.strip_prefix("billfish-")) {
            let name = words(dependency).next().unwrap_or("");
            if !may.contains(&name) {
                found.push(format!("{} uses {name}, may use {may:?}", f.path));
            }
        }
    }
    report("dependencies point one way", found);
}

#[test]
fn each_crate_stays_at_its_trade() {
    let all = files();
    let of = |names: &'static [&str]| all.iter().filter(move |f| f.is_library() && names.contains(&f.of()));
    let any = |needles: &'static [&str]| move |line: &str| needles.iter().any(|n| line.contains(n));
    report("tensor, kernels and text open no file", search(of(&["tensor", "kernels", "text"]), any(&["std::fs", "File::"])));
    report("tensor, formats and text start no thread", search(of(&["tensor", "formats", "text"]), any(&["std::thread", "rayon"])));
    report(
        "models and engine know no quantization method",
        search(of(&["models", "engine"]), |l| ["gptq", "awq", "marlin", "compressed"].iter().any(|m| l.to_lowercase().contains(m))),
    );
    let libraries = || all.iter().filter(|f| f.is_library());
    let output = any(&["print!(", "println!(", "dbg!(", "process::exit", "process::abort"]);
    report("a library prints nothing and ends no process", search(libraries(), output));
    report("a library reads no environment", search(libraries(), any(&["env::var", "env::args"])));
}

#[test]
fn no_path_of_a_machine() {
    let paths = [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/Us", "ers/"), concat!("C:\\Us", "ers")];
    let mut found = vec![];
    for f in &files() {
        for (i, line) in f.text.lines().enumerate() {
            if paths.iter().any(|p| line.contains(p)) {
                found.push(format!("{}:{}", f.path, i + 1));
            }
        }
    }
    report("a path that exists on one machine only", found);
}

/// `#[allow(…)] // why`, or the reason on the line before.
#[test]
fn exceptions_have_reasons() {
    let attributes = [concat!("al", "low("), concat!("ex", "pect("), concat!("ig", "nore")];
    let mut found = vec![];
    for f in files().iter().filter(|f| f.is_rust()) {
        let mut before = "";
        for (i, line) in f.text.lines().map(str::trim).enumerate() {
            let attribute = line.strip_prefix("#[").or_else(|| line.strip_prefix("#![")).unwrap_or("");
            let reason = line.contains("//") || attribute.contains("reason = ") || (before.starts_with("//") && !before.starts_with("///"));
            if attributes.iter().any(|a| attribute.starts_with(a)) && !reason {
                found.push(format!("{}:{}: {line}", f.path, i + 1));
            }
            before = line;
        }
    }
    report("an exception has a comment that says why", found);
}
