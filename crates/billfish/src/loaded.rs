//! A model with its tokenizer, ready to run.

use crate::{BUILTIN_NAME, Error, builtin_files, generation};
use billfish_engine::{Completion, Request, SamplingParams, Session};
use billfish_formats::Checkpoint;
use billfish_kernels::{Activations, Backend, Isa, KernelError, KvType};
use billfish_models::{LoadOptions, Model, Progress};
use billfish_text::{Tokenizer, TokenizerFiles};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How to open a model.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Instruction set by name; the best of the machine if none is named.
    pub isa: Option<String>,
    /// Threads; as many as the machine offers this process if none are named.
    pub threads: Option<usize>,
    /// Precision of activations.
    pub activations: Activations,
    /// Storage of keys and values; by default f16, and f32 with strict activations.
    pub kv_type: Option<KvType>,
    /// Round a float output head to 8 bits while it is loaded.
    pub quantize_head: bool,
    /// Folder of packed caches: the packed weights are mapped from there, or kept there for the next time.
    pub cache: Option<PathBuf>,
}

/// How to continue a prompt.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Texts that end the completion.
    pub stop: Vec<String>,
    /// Go on after an end-of-sequence token.
    pub ignore_eos: bool,
}

/// A model with its tokenizer.
pub struct LoadedModel {
    /// The network.
    pub model: Model,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Name of the folder.
    pub name: String,
    /// What a reader of the folder should know.
    pub warnings: Vec<String>,
    /// How long loading took.
    pub load_time: Duration,
    /// Sampling as the model's `generation_config.json` says.
    pub sampling: SamplingParams,
}

impl OpenOptions {
    /// The backend that these options ask for.
    ///
    /// # Errors
    /// [`KernelError`] for an instruction set that is unknown or that the machine lacks, or threads that cannot be had.
    pub fn backend(&self) -> Result<Backend, KernelError> {
        let isa = Isa::choose(self.isa.as_deref())?;
        Backend::new(isa, self.thread_count())
    }

    /// How the network is to be loaded.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions { activations: self.activations, kv_type: self.kv_type, quantize_head: self.quantize_head }
    }

    /// The threads that these options ask for.
    pub fn thread_count(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
    }
}

impl LoadedModel {
    /// Opens a folder.
    ///
    /// # Errors
    /// [`Error`] naming the file, tensor or key that is wrong.
    pub fn open(dir: &Path, options: &OpenOptions) -> Result<Self, Error> {
        Self::from_checkpoint(&Checkpoint::open(dir)?, options, &mut |_| ())
    }

    /// Opens the model inside the binary.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the machine cannot do what `options` ask.
    pub fn builtin(options: &OpenOptions) -> Result<Self, Error> {
        Self::from_checkpoint(&Checkpoint::from_memory(BUILTIN_NAME, builtin_files())?, options, &mut |_| ())
    }

    /// Loads an open checkpoint; `progress` hears of every module.
    ///
    /// # Errors
    /// [`Error`] naming the file, tensor or key that is wrong.
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        options: &OpenOptions,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Self, Error> {
        let begin = Instant::now();
        let backend = Arc::new(options.backend()?);
        // the tokenizer first: it is small, and a folder without one fails before the weights are read
        let tokenizer = read_tokenizer(checkpoint)?;
        let load = options.load_options();
        let model = match &options.cache {
            Some(dir) => Model::load_cached(checkpoint, backend, load, dir, progress)?,
            None => Model::load(checkpoint, backend, load, progress)?,
        };
        let (tokens, rows) = (tokenizer.vocab_size(), model.config().vocab_size);
        if tokens > rows {
            return Err(Error::File {
                file: format!("{}/tokenizer.json", checkpoint.name()),
                expected: format!("token ids below {rows}, the rows of the embedding"),
                found: format!("ids up to {}", tokens - 1),
                remedy: "use the tokenizer that belongs to this model".into(),
            });
        }
        let mut warnings: Vec<String> = checkpoint.warnings().iter().map(ToString::to_string).collect();
        warnings.extend(unused_warning(&checkpoint.unread()));
        warnings.extend(model.config().cache_note(checkpoint, Some(model.kv_type())));
        warnings.extend(model.cache().into_iter().flat_map(|c| c.notes.iter().cloned()));
        let (sampling, ignored) = generation::sampling(checkpoint)?;
        warnings.extend(ignored);
        Ok(Self { model, tokenizer, name: checkpoint.name().into(), warnings, load_time: begin.elapsed(), sampling })
    }

    /// How precisely is computed, such as `int8 activations, one scale a token in 14 modules`.
    pub fn precision(&self) -> String {
        let mut text = format!("{} activations", self.model.activations().name());
        match self.model.token_scaled_modules() {
            0 => {}
            modules => text += &format!(", one scale a token in {modules} modules as their config asks"),
        }
        if self.model.applies_cache_scales() {
            text += &format!(", keys and values in {} by the folder's scales", self.model.kv_type().name());
        }
        if let Some(r) = self.model.head_rounding() {
            let (before, after) = (r.bytes_before as f64 / 1e6, r.bytes_after as f64 / 1e6);
            let error = 100.0 * r.relative_error;
            text += &format!(", head rounded to {} bits ({before:.1} MB became {after:.1}, {error:.2} % off)", r.bits);
        }
        text
    }

    /// Which packed cache was used, such as `packed cache: PATH (hit)`, if one was asked for.
    pub fn cache_line(&self) -> Option<String> {
        self.model.cache().map(|c| format!("packed cache: {} ({})", c.path.display(), if c.made { "made" } else { "hit" }))
    }

    /// Options as the model's `generation_config.json` says, 256 tokens at most.
    pub fn generate_options(&self) -> GenerateOptions {
        GenerateOptions { sampling: self.sampling.clone(), max_tokens: 256, ..GenerateOptions::default() }
    }

    /// Continues `prompt`; each piece of text goes to `emit` as soon as it is final.
    ///
    /// # Errors
    /// [`Error`] for a prompt that has no tokens or sampling parameters out of range.
    pub fn generate(&self, prompt: &str, options: &GenerateOptions, mut emit: impl FnMut(&str)) -> Result<Completion, Error> {
        let prompt = self.tokenizer.encode_prompt(prompt)?;
        let mut session = Session::new(&self.model, &self.tokenizer);
        Ok(session.generate(&options.request(&prompt), &mut emit)?)
    }
}

impl GenerateOptions {
    /// The request to continue `prompt` with these options.
    pub fn request<'a>(&'a self, prompt: &'a [u32]) -> Request<'a> {
        Request {
            prompt,
            sampling: self.sampling.clone(),
            max_tokens: self.max_tokens,
            stop: &self.stop,
            ignore_eos: self.ignore_eos,
            cancel: None,
        }
    }
}

/// The tokenizer of a folder.
///
/// # Errors
/// [`Error::File`] if there is none, [`Error::Text`] if it is wrong.
pub fn read_tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer, Error> {
    let Some(json) = checkpoint.file("tokenizer.json")? else {
        return Err(Error::File {
            file: format!("{}/tokenizer.json", checkpoint.name()),
            expected: "the tokenizer".into(),
            found: "no such file".into(),
            remedy: "copy it from the original model's folder (a tokenizer.model alone is not read)".into(),
        });
    };
    let config = checkpoint.file("tokenizer_config.json")?;
    let template = checkpoint.file("chat_template.jinja")?;
    let template = template.map(String::from_utf8).transpose().map_err(|e| Error::File {
        file: format!("{}/chat_template.jinja", checkpoint.name()),
        expected: "UTF-8 text".into(),
        found: e.to_string(),
        remedy: "write the file again".into(),
    })?;
    Ok(Tokenizer::from_parts(TokenizerFiles {
        name: checkpoint.name(),
        tokenizer_json: &json,
        tokenizer_config: config.as_deref(),
        generation_config: checkpoint.generation_config(),
        config: Some(checkpoint.config()),
        chat_template: template.as_deref(),
    })?)
}

/// A warning that names tensors which no module of the architecture asked for, if there are any.
pub fn unused_warning(tensors: &[String]) -> Option<String> {
    let first = tensors.first()?;
    Some(format!("{} tensors are not used by this architecture, the first is `{first}`", tensors.len()))
}
