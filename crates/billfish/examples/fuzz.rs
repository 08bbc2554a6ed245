//! Fuzzes any of the targets in `billfish_formats::fuzz` and `billfish_models::fuzz` with inputs changed at random.
//!
//! ```text
//! cargo run --release --config profile.release.overflow-checks=true -p billfish --example fuzz -- gptq awq --seconds 600
//! ```
//!
//! An input whose outcomes no other had before joins the corpus. Everything is decided by `--seed` and the committed
//! corpus, so a run can be made again; `--trace` writes each input before it runs, for the one that ends the process
//! (memory, see `ulimit -v`). `--keep DIR` writes the smallest inputs that have all the outcomes, and always the first
//! input of each panic. Exit code 1 when there was one.

use billfish_formats::fuzz::{Body, Run};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Longest input.
const MOST: usize = 8 << 10;

/// Most inputs of a corpus: beyond it new outcomes are counted only.
const MOST_KEPT: usize = 5000;

/// Where the last panic was.
static PLACE: Mutex<String> = Mutex::new(String::new());

struct Options {
    targets: Vec<String>,
    seconds: u64,
    seed: u64,
    keep: PathBuf,
    trace: bool,
}

fn options() -> Result<Options, String> {
    let mut options = Options { targets: vec![], seconds: 60, seed: 1, keep: std::env::temp_dir().join("billfish-fuzz"), trace: false };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg}: expected a value, found none"));
        let number = |text: String| text.parse::<u64>().map_err(|e| format!("expected a number, found {text}: {e}"));
        match arg.as_str() {
            "--seconds" => options.seconds = number(value()?)?,
            "--seed" => options.seed = number(value()?)?,
            "--keep" => options.keep = value()?.into(),
            "--trace" => options.trace = true,
            _ if arg.starts_with('-') => return Err(format!("{arg}: expected --seconds, --seed, --keep or --trace")),
            _ => options.targets.push(arg),
        }
    }
    Ok(options)
}

/// Every target, with the folder of its corpus.
fn targets() -> Vec<(&'static str, Body, PathBuf)> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let of = |targets: &[(&'static str, Body)], owner: &str| {
        let corpus = crates.join(owner).join("fuzz-corpus");
        targets.iter().map(|(name, body)| (*name, *body, corpus.join(name))).collect::<Vec<_>>()
    };
    [of(&billfish_formats::fuzz::TARGETS, "formats"), of(&billfish_models::fuzz::TARGETS, "models")].concat()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }
}

/// Pieces that parsers look for.
const WORDS: [&str; 40] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "true",
    "false",
    "-1",
    "0",
    "1e400",
    "18446744073709551616",
    "\"bits\":4",
    "\"bits\":3",
    "\"sym\":false",
    "\"group_size\":128",
    "\"group_size\":-1",
    "\"desc_act\":true",
    "\"dynamic\":{",
    "\"-:",
    "\"+:",
    ".*",
    "(?=",
    "(?:",
    "\\\\1",
    "re:",
    "Linear",
    "\"checkpoint_format\":\"gptq_v2\"",
    "\"quant_method\":\"gptq\"",
    "\"quant_method\":\"awq\"",
    "\"quant_method\":\"compressed-tensors\"",
    "\"quant_method\":\"auto-round\"",
    "\"lm_head\":true",
    "\"weight_map\":{",
    "\"rope_scaling\":{",
    "\"rope_type\":\"yarn\"",
    "\"factor\":",
    "[0, 0]",
];

/// An input changed in one to eight places.
fn changed(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut data = corpus[random.below(corpus.len())].clone();
    for _ in 0..1 << random.below(4) {
        let at = random.below(data.len() + 1);
        let room = data.len() - at;
        let most = 1 << random.below(7);
        let length = random.below(most).min(room);
        match random.below(11) {
            0 if room > 0 => data[at] ^= 1 << random.below(8),
            1 if room > 0 => data[at] = random.next() as u8,
            2 if room > 0 => data[at] = [0, 1, 0x7f, 0x80, 0xff, b'0', b'9', b'"'][random.below(8)],
            3 => drop(data.drain(at..at + length)),
            4 => drop(data.splice(at..at, (0..random.below(16)).map(|_| random.next() as u8).collect::<Vec<_>>())),
            5 => drop(data.splice(at..at, WORDS[random.below(WORDS.len())].bytes())),
            6 => drop(data.splice(at..at + length, WORDS[random.below(WORDS.len())].bytes())),
            7 => {
                let piece = data[at..at + length].to_vec();
                let to = random.below(data.len() + 1);
                drop(data.splice(to..to, piece));
            }
            8 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                let piece = other[from..].iter().take(1 + random.below(200)).copied().collect::<Vec<_>>();
                drop(data.splice(at..at + length, piece));
            }
            9 => {
                // the end of another input, so that decisions of one meet the bytes of the other
                let other = &corpus[random.below(corpus.len())];
                data.truncate(at);
                data.extend(other.iter().skip(at));
            }
            _ => {
                // a number in the text
                let digits = data[at..].iter().take_while(|b| b.is_ascii_digit()).count();
                let number = [random.next() >> random.below(64), 1 << random.below(64), u64::MAX][random.below(3)];
                drop(data.splice(at..at + digits, number.to_string().into_bytes()));
            }
        }
    }
    data.truncate(MOST);
    data
}

/// Runs one target for a while; returns the number of places that panicked.
fn fuzz(name: &str, body: Body, corpus_dir: &Path, options: &Options) -> std::io::Result<usize> {
    let keep = options.keep.join(name);
    std::fs::create_dir_all(&keep)?;
    // in memory where there is such a place: the target `convert` writes whole folders
    let memory = Path::new("/dev/shm");
    let scratch = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    let scratch = scratch.join(format!("billfish-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let mut seeds = vec![vec![]];
    if corpus_dir.is_dir() {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(corpus_dir)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
        paths.sort();
        for path in paths {
            seeds.push(std::fs::read(path)?);
        }
    }
    let given = seeds.len() - 1;
    let mut queue = seeds.into_iter();
    let mut corpus: Vec<Vec<u8>> = vec![];
    let mut smallest: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut panics = BTreeSet::new();
    let (mut runs, mut slowest) = (0u64, Duration::ZERO);
    let mut random = Random(options.seed);
    let mut run = Run::new(&scratch);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(options.seconds) {
        let seed = queue.next();
        let is_seed = seed.is_some();
        let data = seed.unwrap_or_else(|| changed(&corpus, &mut random));
        if options.trace {
            std::fs::write(keep.join("current"), &data)?;
        }
        let before = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| body(&data, &mut run)));
        if before.elapsed() > slowest {
            slowest = before.elapsed();
            std::fs::write(keep.join("slowest"), &data)?;
        }
        runs += 1;
        let outcomes = run.outcomes();
        if result.is_err() {
            let place = PLACE.lock().map(|p| p.clone()).unwrap_or_default();
            if panics.insert(place.clone()) {
                let path = keep.join(format!("panic-{}", panics.len()));
                std::fs::write(&path, &data)?;
                println!("{name}: PANIC {place}: input of {} bytes in {}", data.len(), path.display());
            }
            // what a body was in the middle of writing
            std::fs::remove_dir_all(&scratch)?;
            std::fs::create_dir_all(&scratch)?;
            continue;
        }
        let mut new = is_seed;
        for outcome in outcomes {
            let best = smallest.get(&outcome);
            new |= best.is_none();
            if best.map_or(smallest.len() < 2 * MOST_KEPT, |b| data.len() < b.len()) {
                smallest.insert(outcome, data.clone());
            }
        }
        if new && corpus.len() < MOST_KEPT {
            corpus.push(data);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    std::fs::remove_dir_all(&scratch)?;
    let kept: BTreeSet<&Vec<u8>> = smallest.values().collect();
    for (i, data) in kept.iter().enumerate() {
        std::fs::write(keep.join(format!("{i:04}")), data)?;
    }
    println!(
        "{name}: {runs} executions in {seconds:.0} s, {:.0} a second, corpus {given} given and {} in the end, {} outcomes, \
         the smallest inputs for all of them {} ({} bytes), slowest {:.1} ms, {} panics",
        runs as f64 / seconds,
        corpus.len(),
        smallest.len(),
        kept.len(),
        kept.iter().map(|d| d.len()).sum::<usize>(),
        slowest.as_secs_f64() * 1e3,
        panics.len(),
    );
    Ok(panics.len())
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::FAILURE;
        }
    };
    let all = targets();
    if let Some(wrong) = options.targets.iter().find(|t| all.iter().all(|(name, ..)| name != t)) {
        eprintln!("{wrong}: expected some of {}", all.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", "));
        return ExitCode::FAILURE;
    }
    std::panic::set_hook(Box::new(|info| {
        if let Ok(mut place) = PLACE.lock() {
            let at = info.location().map(ToString::to_string).unwrap_or_default();
            let message = info.payload_as_str().unwrap_or_default().lines().next().unwrap_or_default();
            *place = format!("{at}: {}", message.chars().filter(|c| !c.is_ascii_digit()).take(80).collect::<String>());
        }
    }));
    let mut panics = 0;
    for (name, body, corpus) in all.iter().filter(|(name, ..)| options.targets.is_empty() || options.targets.iter().any(|t| t == name)) {
        match fuzz(name, *body, corpus, &options) {
            Ok(found) => panics += found,
            Err(e) => {
                eprintln!("{name}: {e}");
                return ExitCode::FAILURE;
            }
        }
    }
    if panics == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
