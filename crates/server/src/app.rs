//! What all requests share.

use crate::auth::Keys;
use crate::config::{Config, ServedModel};
use crate::control::Control;
use crate::cors::Origins;
use crate::error::{ApiError, ServerError};
use crate::grammar::Grammars;
use crate::ids;
use crate::metrics::Metrics;
use crate::reasoning::CLOSE;
use crate::record::LogLine;
use crate::tools::{Shown, probe};
use crate::worker::Worker;
use billfish_engine::Engine;
use billfish_text::{ChatTemplate, TextError};
use serde_json::Value;
use std::sync::Arc;
use tokio::sync::{OnceCell, Semaphore};

/// Hears of every request when its answer has ended.
pub type Log = Box<dyn Fn(&LogLine) + Send + Sync>;

/// Requests that are read at the same time: reading takes the processor from the model.
const READERS: usize = 4;

/// Normal forms of text may be shorter than the text, though not by more than this.
const SHRINKING: usize = 4;

/// Bytes of the longest text that may have as many tokens as the model takes.
fn longest_prompt(model: &ServedModel) -> usize {
    let bytes = |id| model.tokenizer.token_bytes(id).map_or(0, |b| b.len());
    let longest = (0..model.vocab_size as u32).map(bytes).max().unwrap_or(0);
    longest.saturating_mul(model.max_model_len).saturating_mul(SHRINKING)
}

/// The server's state.
pub(crate) struct App {
    pub config: Config,
    pub model: ServedModel,
    pub worker: Arc<Worker>,
    pub metrics: Arc<Metrics>,
    pub control: Control,
    pub keys: Keys,
    pub origins: Origins,
    pub templates: Templates,
    pub grammars: Grammars,
    /// Bytes of the longest text that could fit into the model.
    longest_prompt: usize,
    /// Requests whose text may be read at once.
    reading: Semaphore,
    /// When the server started, in seconds since 1970.
    pub created: u64,
    /// What an inspection of the model said, once somebody asked.
    pub inspection: OnceCell<Result<Value, String>>,
    log: Log,
}

/// The chat templates.
pub(crate) struct Templates {
    /// The one for chats; what it lacks if there is none.
    pub chat: Result<ChatTemplate, TextError>,
    /// The one for chats with tools, if the model has one of its own for them.
    pub tools: Option<ChatTemplate>,
    /// What the template in use with tools does.
    pub shown: Shown,
    /// Whether some template knows of thoughts before an answer.
    pub thinks: bool,
}

impl Templates {
    fn new(model: &ServedModel) -> Result<Templates, ServerError> {
        let own = |name| model.tokenizer.chat_template(name);
        let (chat, tools) = match &model.chat_template {
            Some((file, source)) => {
                let template = ChatTemplate::named(&file.display().to_string(), source)?;
                (Ok(template.with_defaults(model.tokenizer.special_tokens().clone())), None)
            }
            None => {
                let chat = match own(None) {
                    // a template that is there must be right; none at all only rules out chats
                    Err(e) if !matches!(e, TextError::NoTemplate { .. }) => return Err(e.into()),
                    chat => chat,
                };
                (chat, own(Some("tool_use")).ok())
            }
        };
        let mut shown = tools.as_ref().or(chat.as_ref().ok()).map(probe).unwrap_or_default();
        shown.dialect = model.tool_dialect.or(shown.dialect);
        let thinks = tools.iter().chain(chat.as_ref().ok()).any(|t| t.source().contains(CLOSE));
        Ok(Templates { chat, tools, shown, thinks })
    }

    /// The template for a chat.
    pub fn of(&self, with_tools: bool) -> Result<&ChatTemplate, ApiError> {
        match (&self.tools, &self.chat) {
            (Some(template), _) if with_tools => Ok(template),
            (_, Ok(template)) => Ok(template),
            (_, Err(e)) => Err(ApiError::bad_request(format!("this model cannot chat: {e}"))),
        }
    }
}

impl App {
    pub fn new(config: Config, model: ServedModel, engine: Engine, control: Control, log: Log) -> Result<App, ServerError> {
        config.check()?;
        let Some(name) = model.names.first() else {
            let (name, expected, found, remedy) = ("served-model-name", "at least one name", "none".into(), "give one");
            return Err(ServerError::Setting { name, expected, found, remedy });
        };
        let metrics = Arc::new(Metrics::new(name, model.max_model_len));
        let templates = Templates::new(&model)?;
        let worker = Worker::start(engine, Arc::clone(&metrics));
        let worker = worker.map_err(|source| ServerError::System { what: "a thread for the engine", source })?;
        Ok(App {
            keys: Keys::new(&config.api_keys),
            origins: Origins::new(&config.allowed_origins),
            worker: Arc::new(worker),
            metrics,
            control,
            templates,
            grammars: Grammars::new(&model.tokenizer, model.vocab_size),
            longest_prompt: longest_prompt(&model),
            reading: Semaphore::new(READERS),
            created: ids::now(),
            inspection: OnceCell::new(),
            log,
            config,
            model,
        })
    }

    /// The model's name in answers.
    pub fn name(&self) -> &str {
        &self.model.names[0]
    }

    /// The tokens of a prompt. A text that is far too long for the model is not even looked at.
    pub fn encode(&self, text: &str, special: bool, source: &str) -> Result<Vec<u32>, ApiError> {
        if text.len() > self.longest_prompt {
            let (found, most, length) = (text.len(), self.longest_prompt, self.model.max_model_len);
            let message = format!("the prompt has {found} bytes, and {length} tokens, which is what this model takes, have {most} at most");
            return Err(ApiError::context(source, message));
        }
        Ok(self.model.tokenizer.encode(text, special)?)
    }

    pub fn log(&self, line: &LogLine) {
        (self.log)(line);
    }

    /// Checks the name that a request gives. One that gives none means the model that is there.
    pub fn named(&self, name: Option<&str>) -> Result<(), ApiError> {
        match name {
            Some(name) if !self.model.names.iter().any(|n| n == name) => Err(ApiError::model_not_found(name, &self.model.names)),
            _ => Ok(()),
        }
    }
}

/// Runs work that takes the processor for a while, such as reading a long text into tokens, where it holds up nobody.
pub(crate) async fn blocking<T: Send + 'static>(
    app: &Arc<App>,
    work: impl FnOnce(&App) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    // the semaphore is never closed
    let _turn = app.reading.acquire().await;
    let app = Arc::clone(app);
    match tokio::task::spawn_blocking(move || work(&app)).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::internal("reading the request failed")),
    }
}
