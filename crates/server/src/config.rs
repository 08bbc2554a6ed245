//! What the server is told when it starts.

use crate::error::ServerError;
use crate::tools::Dialect;
use billfish_engine::SamplingParams;
use billfish_text::Tokenizer;
use std::path::PathBuf;
use std::time::Duration;

/// How to serve.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address to listen on.
    pub host: String,
    /// Port to listen on; 0 lets the system choose.
    pub port: u16,
    /// Keys of which a client must have one; none: everybody may ask.
    pub api_keys: Vec<String>,
    /// Origins whose pages may ask; `*` is all of them.
    pub allowed_origins: Vec<String>,
    /// Largest body of a request, in bytes.
    pub max_body: usize,
    /// Largest head of a request, in bytes.
    pub max_head: usize,
    /// Most header fields of a request.
    pub max_headers: usize,
    /// Most connections at once.
    pub max_connections: usize,
    /// How long the head of a request may take, and a connection may be idle.
    pub head_timeout: Duration,
    /// How long the body of a request may take.
    pub body_timeout: Duration,
    /// How long a client may take no bytes of its answer.
    pub write_timeout: Duration,
    /// How long a request may take in all.
    pub request_timeout: Option<Duration>,
    /// How long running requests have after the first signal to stop.
    pub shutdown_timeout: Duration,
    /// How often a silent stream sends a comment.
    pub keep_alive: Duration,
    /// Most tokens beside the chosen one in logprobs.
    pub max_logprobs: usize,
    /// Most choices of one request, over all its prompts.
    pub max_choices: usize,
    /// Unknown parameters are an error, not a header.
    pub strict_params: bool,
    /// What a model thinks before it answers is told apart from what it says, if its template knows of thoughts.
    pub reasoning: bool,
    /// Name of the system in answers and metrics.
    pub version: String,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            host: "127.0.0.1".into(),
            port: 8000,
            api_keys: vec![],
            allowed_origins: vec![],
            max_body: 16 << 20,
            max_head: 64 << 10,
            max_headers: 100,
            max_connections: 1024,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            request_timeout: None,
            shutdown_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(15),
            max_logprobs: 20,
            max_choices: 1024,
            strict_params: false,
            reasoning: true,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

impl Config {
    /// Checks what can be checked without starting.
    pub(crate) fn check(&self) -> Result<(), ServerError> {
        let wrong = |name, expected, found: String, remedy| Err(ServerError::Setting { name, expected, found, remedy });
        if let Some(i) = self.api_keys.iter().position(|k| k.is_empty() || !k.bytes().all(|b| b.is_ascii_graphic())) {
            let found = format!("something else as key {i}");
            return wrong("api-key", "visible ASCII characters", found, "choose another key");
        }
        if self.max_head < 8192 {
            return wrong("max-header-bytes", "at least 8192", self.max_head.to_string(), "give a larger one");
        }
        Ok(())
    }
}

/// The model that is served.
pub struct ServedModel {
    /// Names that clients may use; the first is the one in answers.
    pub names: Vec<String>,
    /// The folder it came from, for `/v1/models`.
    pub root: String,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// A chat template that takes the place of the model's own: where it came from, and its text.
    pub chat_template: Option<(PathBuf, String)>,
    /// Sampling where a request leaves it open.
    pub sampling: SamplingParams,
    /// Tokens of prompt and answer together.
    pub max_model_len: usize,
    /// Rows of its output.
    pub vocab_size: usize,
    /// What answers depend on besides the request, shortened to a word.
    pub fingerprint: String,
    /// How tool calls are written; found out from the template if not said.
    pub tool_dialect: Option<Dialect>,
    /// Looks at the model's files for `/v1/inspect`: an object with `inspect` and `doctor`.
    pub inspection: Option<Inspection>,
}

/// Looks at a model's files.
pub type Inspection = Box<dyn Fn() -> Result<serde_json::Value, String> + Send + Sync>;
