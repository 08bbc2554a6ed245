//! Options that several commands share.

use billfish::{Activations, BUILTIN_NAME, Checkpoint, GenerateOptions, KvType, LoadedModel, OpenOptions, Progress, builtin_files};
use billfish_formats::ZeroLabel;
use billfish_kernels::Pool;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// Folders larger than this show a progress bar while they load.
const LARGE: u64 = 300 << 20;

/// Precision of activations.
#[derive(Clone, Copy, ValueEnum)]
pub enum ActivationsArg {
    Exact,
    Strict,
    Int8,
}

impl From<ActivationsArg> for Activations {
    fn from(a: ActivationsArg) -> Self {
        match a {
            ActivationsArg::Exact => Activations::Exact,
            ActivationsArg::Strict => Activations::Strict,
            ActivationsArg::Int8 => Activations::Int8,
        }
    }
}

/// How GPTQ zero points are read.
#[derive(Clone, Copy, ValueEnum)]
pub enum ZerosArg {
    Auto,
    V1,
    V2,
}

/// How to open a folder.
#[derive(clap::Args)]
pub struct FolderArgs {
    /// Read GPTQ zero points as v1 (stored less one) or v2 (stored as they are), against the folder's own evidence if need be
    #[arg(long, value_enum, default_value = "auto")]
    zeros: ZerosArg,
}

impl FolderArgs {
    /// A folder is opened so.
    pub fn new(zeros: ZerosArg) -> FolderArgs {
        FolderArgs { zeros }
    }

    /// Opens a folder, or the built-in model if none is named.
    pub fn open(&self, model: Option<&Path>) -> anyhow::Result<Checkpoint> {
        let checkpoint = match model {
            Some(dir) => Checkpoint::open(dir)?,
            None => Checkpoint::from_memory(BUILTIN_NAME, builtin_files())?,
        };
        self.apply(checkpoint)
    }

    /// The same folder, read as these options say.
    pub fn apply(&self, checkpoint: Checkpoint) -> anyhow::Result<Checkpoint> {
        Ok(checkpoint.with_zeros(self.zeros())?)
    }

    /// How the caller wants zero points read.
    pub fn zeros(&self) -> Option<ZeroLabel> {
        match self.zeros {
            ZerosArg::Auto => None,
            ZerosArg::V1 => Some(ZeroLabel::V1),
            ZerosArg::V2 => Some(ZeroLabel::V2),
        }
    }
}

/// Storage of keys and values.
#[derive(Clone, Copy, ValueEnum)]
pub enum KvArg {
    Auto,
    F32,
    F16,
    Bf16,
    Int8,
    #[value(name = "fp8_e4m3")]
    Fp8E4M3,
    #[value(name = "fp8_e5m2")]
    Fp8E5M2,
    #[value(name = "fp4_e2m1")]
    Fp4E2M1,
    Int4,
}

impl KvArg {
    /// What is asked for, if anything is.
    pub fn kind(self) -> Option<KvType> {
        Some(match self {
            KvArg::Auto => return None,
            KvArg::F32 => KvType::F32,
            KvArg::F16 => KvType::F16,
            KvArg::Bf16 => KvType::BF16,
            KvArg::Int8 => KvType::Int8,
            KvArg::Fp8E4M3 => KvType::Fp8E4M3,
            KvArg::Fp8E5M2 => KvType::Fp8E5M2,
            KvArg::Fp4E2M1 => KvType::Fp4E2M1,
            KvArg::Int4 => KvType::Int4,
        })
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum HeadArg {
    Int8,
}

/// Which model, and how to run it.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// A model folder (config.json, *.safetensors, tokenizer.json); the built-in model if none is named
    model: Option<PathBuf>,
    #[command(flatten)]
    folder: FolderArgs,
    #[command(flatten)]
    running: RunningArgs,
}

/// Where packed weights are kept.
#[derive(clap::Args)]
pub struct CacheArgs {
    /// Keep the packed weights in this folder, and map them from there at the next start
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

impl CacheArgs {
    /// The folder.
    pub fn dir(&self) -> Option<PathBuf> {
        self.cache.clone()
    }
}

/// How to run a model.
#[derive(clap::Args)]
pub struct RunningArgs {
    /// Threads to work with [default: as many as the machine offers]
    #[arg(long, short = 't', value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Precision of activations: exact (16 bit), strict (24 bit, as good as f32), int8 (fast, about 1 % off)
    #[arg(long, value_enum, default_value = "exact")]
    activations: ActivationsArg,
    /// Storage of the KV cache; auto is f16, and f32 with strict activations; the fp8 ones use the scales of keys and values that a folder has
    #[arg(long, value_enum, default_value = "auto")]
    kv_cache_dtype: KvArg,
    /// Round a float output head to 8 bits while it is loaded: less to read for each token, an approximation
    #[arg(long, value_enum)]
    quantize_head: Option<HeadArg>,
    #[command(flatten)]
    cache: CacheArgs,
}

/// The instruction set that the environment asks for.
pub fn isa_from_env() -> anyhow::Result<Option<String>> {
    match std::env::var("BILLFISH_ISA") {
        Ok(name) if name.is_empty() => Ok(None),
        Ok(name) => Ok(Some(name)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(e) => anyhow::bail!("BILLFISH_ISA: {e}; expected one of {}", billfish_kernels::ISA_NAMES),
    }
}

/// Two folders to compare.
#[derive(clap::Args)]
pub struct PairArgs {
    /// A model folder
    pub a: PathBuf,
    /// The folder to compare it with, in any format
    pub b: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Threads to work with [default: as many as the machine offers]
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

impl PairArgs {
    /// The threads to compare with.
    pub fn pool(&self) -> anyhow::Result<Pool> {
        Ok(Pool::new(OpenOptions { threads: self.threads.map(usize::from), ..OpenOptions::default() }.thread_count())?)
    }

    /// Opens both.
    pub fn open(&self) -> anyhow::Result<[Checkpoint; 2]> {
        Ok([Checkpoint::open(&self.a)?, Checkpoint::open(&self.b)?])
    }
}

/// Lists what is odd about folders that were read, on standard error.
pub fn warn(folders: &[&Checkpoint]) {
    for folder in folders {
        folder.warnings().iter().for_each(|w| eprintln!("warning: {}: {w}", folder.name()));
    }
}

impl ModelArgs {
    /// The folder, if one is named.
    pub fn checkpoint(&self) -> anyhow::Result<Checkpoint> {
        self.folder.open(self.model.as_deref())
    }

    /// Loads the model, with a progress bar if it is large, and prints its warnings.
    pub fn load(&self) -> anyhow::Result<LoadedModel> {
        load(&self.checkpoint()?, &self.running.open_options()?)
    }
}

impl RunningArgs {
    /// What they ask for.
    pub fn open_options(&self) -> anyhow::Result<OpenOptions> {
        Ok(OpenOptions {
            isa: isa_from_env()?,
            threads: self.threads.map(usize::from),
            activations: self.activations.into(),
            kv_type: self.kv_cache_dtype.kind(),
            quantize_head: self.quantize_head.is_some(),
            cache: self.cache.dir(),
        })
    }
}

/// Loads a model, with a progress bar if it is large, and prints its warnings.
pub fn load(checkpoint: &Checkpoint, options: &OpenOptions) -> anyhow::Result<LoadedModel> {
    let bar = (checkpoint.total_bytes() > LARGE).then(|| byte_bar("loading", checkpoint.total_bytes()));
    let mut progress = |p: Progress| {
        if let Some(bar) = &bar {
            bar.set_position(p.done);
        }
    };
    let loaded = LoadedModel::from_checkpoint(checkpoint, options, &mut progress);
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let loaded = loaded?;
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    loaded.cache_line().iter().for_each(|line| eprintln!("{line}"));
    Ok(loaded)
}

/// A progress bar over bytes; invisible where standard error is no terminal.
pub fn byte_bar(what: &'static str, total: u64) -> ProgressBar {
    styled(what, total, "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}")
}

/// A progress bar over tokens.
pub fn token_bar(what: &'static str, total: u64) -> ProgressBar {
    styled(what, total, "{msg} {wide_bar} {pos}/{len} tokens {per_sec} {eta}")
}

/// A progress bar over pieces of work.
pub fn count_bar(what: &'static str, total: usize) -> ProgressBar {
    styled(what, total as u64, "{msg} {wide_bar} {pos}/{len} {eta}")
}

/// Moves a bar as work reports what is done and what there is in all.
pub fn follow(bar: &ProgressBar) -> impl FnMut(u64, u64) {
    |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    }
}

fn styled(what: &'static str, total: u64, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    // the templates are constants of this file
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style).with_message(what)
}

/// How to choose tokens.
#[derive(clap::Args)]
pub struct SamplingArgs {
    /// Tokens to generate at most
    #[arg(long, short = 'n', default_value_t = 256)]
    max_tokens: usize,
    /// 0 takes the most probable token [default: the model's generation_config.json, else 0.8]
    #[arg(long)]
    temperature: Option<f32>,
    /// Choose among this many most probable tokens; 0 for all [default: the model's, else 0]
    #[arg(long)]
    top_k: Option<usize>,
    /// Choose among the most probable tokens that together have this probability [default: the model's, else 0.95]
    #[arg(long)]
    top_p: Option<f32>,
    /// Choose among tokens of at least this fraction of the highest probability [default: the model's, else 0]
    #[arg(long)]
    min_p: Option<f32>,
    /// Above 1 makes tokens that occurred less likely [default: the model's, else 1]
    #[arg(long)]
    repetition_penalty: Option<f32>,
    /// Seed of the choices; the same seed gives the same text [default: from the clock, printed at the end]
    #[arg(long)]
    seed: Option<u64>,
    /// End at this text, which is not shown (repeatable)
    #[arg(long)]
    stop: Vec<String>,
    /// Go on after an end-of-sequence token
    #[arg(long)]
    ignore_eos: bool,
}

impl SamplingArgs {
    /// The model's own settings with the command line's on top.
    pub fn options(&self, model: &LoadedModel) -> GenerateOptions {
        let mut options = model.generate_options();
        let s = &mut options.sampling;
        s.temperature = self.temperature.unwrap_or(s.temperature);
        s.top_k = self.top_k.unwrap_or(s.top_k);
        s.top_p = self.top_p.unwrap_or(s.top_p);
        s.min_p = self.min_p.unwrap_or(s.min_p);
        s.repetition_penalty = self.repetition_penalty.unwrap_or(s.repetition_penalty);
        s.seed = self.seed.unwrap_or_else(clock_seed);
        options.max_tokens = self.max_tokens;
        options.stop = self.stop.clone();
        options.ignore_eos = self.ignore_eos;
        options
    }
}

/// A seed that differs from run to run, short enough to type.
fn clock_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| u64::from(d.subsec_nanos() ^ (d.as_secs() as u32).rotate_left(16)))
}
