//! What a completion request asks for.

use crate::app::App;
use crate::error::ApiError;
use crate::fields::{Field, Fields, Rule, expected, tokens};
use crate::params::{Params, SHARED};
use billfish_engine::Submission;
use serde_json::Value;

/// Fields of completions alone.
pub(crate) const FIELDS: &[Field] = &[
    ("prompt", Rule::Used),
    ("echo", Rule::Used),
    ("best_of", Rule::Used),
    ("suffix", Rule::Refused("no model here fills in the middle")),
    ("prompt_embeds", Rule::Refused("send text or tokens")),
];

/// Tokens where a request says nothing, as OpenAI has it.
const DEFAULT_TOKENS: usize = 16;

/// A prompt.
pub(crate) struct Prompt {
    pub text: String,
    pub tokens: Vec<u32>,
}

/// Texts to be continued.
pub(crate) struct CompletionRequest {
    pub params: Params,
    pub prompts: Vec<Prompt>,
    pub echo: bool,
    /// Tokens beside the chosen one, if logprobs are wanted.
    pub logprobs: Option<usize>,
    pub max_tokens: Option<usize>,
    pub unknown: Vec<String>,
}

impl CompletionRequest {
    pub fn read(app: &App, value: &Value) -> Result<CompletionRequest, ApiError> {
        let f = Fields::new(value, "")?;
        let unknown = f.check(&[SHARED, FIELDS], app.config.strict_params)?;
        app.named(f.string("model")?)?;
        let mut params = Params::read(app, &f)?;
        if let Some(best_of) = f.count("best_of", 1..=128)?.filter(|b| *b != params.n) {
            let message = format!("`best_of` is {best_of} and `n` is {}: this server gives all that it generates", params.n);
            return Err(ApiError::unsupported("best_of", message));
        }
        let prompts = prompts(app, &f, &params)?;
        let choices = prompts.len() * params.n;
        if choices > app.config.max_choices {
            let message = format!("`prompt` and `n` ask for {choices} choices; this server takes {} at once", app.config.max_choices);
            return Err(ApiError::field("prompt", message));
        }
        let echo = f.flag("echo")?;
        let logprobs = f.count("logprobs", 0..=app.config.max_logprobs)?;
        let max_tokens = f.count("max_tokens", 0..=usize::MAX)?;
        if max_tokens == Some(0) && !echo && params.prompt_logprobs.is_none() {
            return Err(ApiError::field("max_tokens", "`max_tokens`: 0 is of use with `echo` or `prompt_logprobs` only"));
        }
        if echo && params.prompt_logprobs.is_none() && logprobs.is_some() {
            params.prompt_logprobs = logprobs;
        }
        Ok(CompletionRequest { params, prompts, echo, logprobs, max_tokens, unknown })
    }

    /// What the engine is asked for: a request for each prompt.
    pub fn submissions(&self, app: &App) -> Result<Vec<Submission>, ApiError> {
        let one = |(i, prompt): (usize, &Prompt)| {
            let room = app.model.max_model_len.saturating_sub(prompt.tokens.len());
            let asked = self.max_tokens.unwrap_or(DEFAULT_TOKENS.min(room));
            let room = Params::room(app, prompt.tokens.len(), Some((asked, "max_tokens")), "prompt")?;
            self.params.submission(app, prompt.tokens.clone(), room, self.logprobs, i)
        };
        self.prompts.iter().enumerate().map(one).collect()
    }
}

/// A text, several, tokens, or several lists of tokens.
fn prompts(app: &App, f: &Fields<'_>, params: &Params) -> Result<Vec<Prompt>, ApiError> {
    const WHAT: &str = "a string, an array of strings, an array of token ids, or an array of such arrays";
    let tokenizer = &app.model.tokenizer;
    let special = f.bool("add_special_tokens")?.unwrap_or(true);
    let of_text = |text: &str| {
        let tokens = app.encode(text, special, "prompt")?;
        let whole = tokens.len();
        let tokens = params.cut(tokens);
        // what was cut off is not repeated
        let text = if tokens.len() == whole { text.to_owned() } else { tokenizer.decode(&tokens, false)? };
        Ok::<_, ApiError>(Prompt { text, tokens })
    };
    let of_tokens = |path: &str, list: &[Value]| {
        let tokens = params.cut(tokens(path, list, app.model.vocab_size)?);
        Ok::<_, ApiError>(Prompt { text: tokenizer.decode(&tokens, false)?, tokens })
    };
    let prompts = match f.required("prompt")? {
        Value::String(text) => vec![of_text(text)?],
        Value::Array(list) => match list.first() {
            None => return Err(ApiError::field("prompt", "`prompt`: expected something to continue, found an empty array")),
            Some(Value::Number(_)) => vec![of_tokens("prompt", list)?],
            Some(_) if list.len() > app.config.max_choices => {
                let message = format!("`prompt`: expected at most {} prompts, found {}", app.config.max_choices, list.len());
                return Err(ApiError::field("prompt", message));
            }
            Some(_) => {
                let each = |(i, v): (usize, &Value)| match v {
                    Value::String(text) => of_text(text),
                    Value::Array(list) => of_tokens(&format!("prompt[{i}]"), list),
                    v => Err(expected(&format!("prompt[{i}]"), "a string or an array of token ids", v)),
                };
                list.iter().enumerate().map(each).collect::<Result<Vec<_>, _>>()?
            }
        },
        v => return Err(expected("prompt", WHAT, v)),
    };
    match prompts.iter().any(|p| p.tokens.is_empty()) {
        true => Err(ApiError::field("prompt", "`prompt`: expected at least one token, found none")),
        false => Ok(prompts),
    }
}
