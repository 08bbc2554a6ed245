//! `billfish serve`: a model behind the API that OpenAI's clients speak.

mod inspection;
mod schema;
mod settings;

pub use settings::Args;
use settings::Settings;

use super::options::{ActivationsArg, FolderArgs, HeadArg, KvArg, ZerosArg, isa_from_env, load};
use anyhow::Context;
use billfish::{Activations, Checkpoint, LoadedModel, Machine, OpenOptions, SamplingParams};
use billfish_engine::{Engine, EngineOptions, Ngram};
use billfish_server::{Config, LogLine, ServedModel, Server, ToolDialect};
use clap::ValueEnum;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// The settings, from the command line, the environment and a file.
pub fn settings(args: &Args) -> anyhow::Result<Settings> {
    args.resolve(|variable| std::env::var(variable).ok())
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let settings = settings(args)?;
    let config = config(&settings)?;
    let open = open_options(&settings)?;
    let checkpoint = folder(&settings).open(settings.text("model").map(Path::new))?;
    let loaded = load(&checkpoint, &open)?;
    let engine_options = engine_options(&settings);
    let log = log(settings.text("log").unwrap_or_default());
    let (model, engine) = serve(loaded, &checkpoint, &settings, engine_options)?;
    let name = model.names.join(", ");
    let length = model.max_model_len;
    let guarded = if config.api_keys.is_empty() { "no key needed" } else { "with a key" };
    let server = Server::bind(config, model, engine, log)?;
    eprintln!("serving {name} ({length} tokens, {guarded}) at http://{}", server.address());
    Ok(server.run(true)?)
}

/// A named value of an option. The schema knows its names.
fn choice<T: ValueEnum>(settings: &Settings, name: &str) -> Option<T> {
    settings.text(name).and_then(|text| T::from_str(text, false).ok())
}

fn folder(settings: &Settings) -> FolderArgs {
    FolderArgs::new(choice::<ZerosArg>(settings, "zeros").unwrap_or(ZerosArg::Auto))
}

fn open_options(settings: &Settings) -> anyhow::Result<OpenOptions> {
    Ok(OpenOptions {
        isa: isa_from_env()?,
        threads: settings.number("threads").map(|n| n as usize),
        activations: choice::<ActivationsArg>(settings, "activations").map_or(Activations::Exact, Activations::from),
        kv_type: choice::<KvArg>(settings, "kv-cache-dtype").and_then(KvArg::kind),
        quantize_head: choice::<HeadArg>(settings, "quantize-head").is_some(),
        cache: settings.text("cache").map(Into::into),
    })
}

fn engine_options(settings: &Settings) -> EngineOptions {
    let quarter = || Machine::detect().memory.unwrap_or(4 << 30) / 4;
    let guess = Ngram {
        most: settings.count("num-speculative-tokens"),
        min: settings.count("prompt-lookup-min"),
        max: settings.count("prompt-lookup-max"),
    };
    EngineOptions {
        kv_cache_memory: settings.number("kv-cache-memory").unwrap_or_else(quarter),
        max_num_seqs: settings.count("max-num-seqs"),
        max_num_batched_tokens: settings.count("max-num-batched-tokens"),
        max_model_len: settings.number("max-model-len").map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        prefix_caching: settings.flag("enable-prefix-caching"),
        max_waiting: settings.count("max-waiting"),
        speculation: Some(guess).filter(|g| g.most > 0),
    }
}

fn config(settings: &Settings) -> anyhow::Result<Config> {
    let mut api_keys = settings.list("api-key");
    if let Some(file) = settings.text("api-key-file") {
        let text = std::fs::read_to_string(file).with_context(|| format!("{file}: the keys cannot be read"))?;
        let keys = text.lines().map(str::trim).filter(|l| !l.is_empty());
        let before = api_keys.len();
        api_keys.extend(keys.map(str::to_owned));
        anyhow::ensure!(api_keys.len() > before, "{file}: expected a key a line, found none; without a key everybody may ask");
    }
    let default = Config::default();
    let seconds = |name| settings.seconds(name);
    // 0 is no limit, which is as good as a very long one
    let never = std::time::Duration::from_secs(10 * 365 * 24 * 3600);
    Ok(Config {
        host: settings.text("host").map_or(default.host, str::to_owned),
        port: settings.count("port") as u16,
        api_keys,
        allowed_origins: settings.list("allowed-origins"),
        max_body: settings.count("max-body-bytes"),
        max_head: settings.count("max-header-bytes"),
        max_headers: settings.count("max-header-count"),
        max_connections: settings.count("max-connections").min(1 << 20),
        head_timeout: seconds("header-timeout").unwrap_or(never),
        body_timeout: seconds("body-timeout").unwrap_or(never),
        write_timeout: seconds("write-timeout").unwrap_or(never),
        request_timeout: seconds("request-timeout"),
        shutdown_timeout: seconds("shutdown-timeout").unwrap_or_default(),
        keep_alive: seconds("keep-alive").unwrap_or(never),
        max_logprobs: settings.count("max-logprobs"),
        strict_params: settings.flag("strict-params"),
        reasoning: settings.text("reasoning-format") != Some("none"),
        version: format!("{}+{}", billfish::machine::VERSION, billfish::machine::COMMIT),
        ..default
    })
}

fn log(form: &str) -> Box<dyn Fn(&LogLine) + Send + Sync> {
    match form {
        "none" => Box::new(|_| ()),
        "json" => Box::new(|line| eprintln!("{}", line.json())),
        _ => Box::new(|line| eprintln!("{}", line.logfmt())),
    }
}

/// The model as the server sees it, and the engine that runs it.
fn serve(
    loaded: LoadedModel,
    checkpoint: &Checkpoint,
    settings: &Settings,
    options: EngineOptions,
) -> anyhow::Result<(ServedModel, Engine)> {
    let mut names = settings.list("served-model-name");
    if names.is_empty() {
        names.push(Path::new(&loaded.name).file_name().map_or_else(|| loaded.name.clone(), |n| n.to_string_lossy().into_owned()));
    }
    let chat_template = match settings.text("chat-template") {
        None => None,
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("{file}: the chat template cannot be read"))?;
            Some((file.into(), text))
        }
    };
    let dialect = settings.text("tool-call-parser").unwrap_or_default();
    let fingerprint = fingerprint(&loaded, checkpoint);
    let sampling = sampling(&loaded, checkpoint, settings.text("generation-config") == Some("none"));
    let (root, tokenizer) = (loaded.name, loaded.tokenizer);
    let engine = Engine::new(Arc::new(loaded.model), Arc::new(tokenizer.clone()), options)?;
    let model = ServedModel {
        names,
        root,
        tokenizer,
        chat_template,
        sampling,
        max_model_len: engine.max_model_len(),
        vocab_size: engine.model().config().vocab_size,
        fingerprint,
        tool_dialect: ToolDialect::NAMES.iter().find(|(n, _)| *n == dialect).map(|(_, d)| *d),
        inspection: Some(inspection::inspection(folder(settings), settings.text("model").map(Into::into))),
    };
    Ok((model, engine))
}

/// Sampling where a request leaves it open: as the model's authors say, and what they leave open as OpenAI has it.
fn sampling(loaded: &LoadedModel, checkpoint: &Checkpoint, ignore: bool) -> SamplingParams {
    if ignore {
        return SamplingParams::default();
    }
    let says = |key: &str| checkpoint.generation_config().is_some_and(|g| g.get(key).is_some_and(|v| !v.is_null()));
    let mut sampling = loaded.sampling.clone();
    if !says("temperature") && sampling.temperature != 0.0 {
        sampling.temperature = 1.0;
    }
    if !says("top_p") {
        sampling.top_p = 1.0;
    }
    sampling
}

/// What answers depend on besides the request, shortened. Of the weights it knows the outline (names, types, shapes and places),
/// not every byte, which would have to be read for it.
fn fingerprint(loaded: &LoadedModel, checkpoint: &Checkpoint) -> String {
    let model = &loaded.model;
    let parts = [
        billfish::machine::VERSION.to_owned(),
        billfish::machine::COMMIT.to_owned(),
        checkpoint.outline_sha256(),
        loaded.precision(),
        model.kv_type().name().to_owned(),
    ];
    let hash = Sha256::digest(parts.join("\n"));
    format!("fp_{}", hash[..6].iter().map(|b| format!("{b:02x}")).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args as _, FromArgMatches};

    #[test]
    fn every_setting_is_read() {
        let matches = Args::augment_args(clap::Command::new("serve")).try_get_matches_from(["serve"]).unwrap();
        let settings = Args::from_arg_matches(&matches).unwrap().resolve(|_| None).unwrap();
        let open = open_options(&settings).unwrap();
        config(&settings).unwrap();
        log(settings.text("log").unwrap())(&LogLine::default());
        let checkpoint = folder(&settings).open(settings.text("model").map(Path::new)).unwrap();
        let loaded = load(&checkpoint, &open).unwrap();
        serve(loaded, &checkpoint, &settings, EngineOptions { kv_cache_memory: 64 << 20, ..engine_options(&settings) }).unwrap();
        assert_eq!(settings.unread(), [] as [&str; 0]);
    }
}
