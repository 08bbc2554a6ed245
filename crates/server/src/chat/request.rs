//! What a chat request asks for.

use super::normalised;
use crate::app::App;
use crate::error::ApiError;
use crate::fields::{Field, Fields, Rule};
use crate::params::{Params, SHARED};
use crate::reasoning::{CLOSE, OPEN, Thinking};
use crate::tools::{Parser, Tools};
use billfish_engine::Submission;
use serde_json::{Map, Value};

/// Fields of chats alone.
pub(crate) const FIELDS: &[Field] = &[
    ("messages", Rule::Used),
    ("max_completion_tokens", Rule::Used),
    ("top_logprobs", Rule::Used),
    ("tools", Rule::Used),
    ("tool_choice", Rule::Used),
    ("parallel_tool_calls", Rule::Used),
    ("add_generation_prompt", Rule::Used),
    ("continue_final_message", Rule::Used),
    ("chat_template_kwargs", Rule::Used),
    ("echo", Rule::Only(&["false"])),
    ("modalities", Rule::Only(&["[\"text\"]"])),
    ("audio", Rule::Refused("this server writes text only")),
    ("functions", Rule::Refused("use `tools`")),
    ("function_call", Rule::Refused("use `tool_choice`")),
    ("web_search_options", Rule::Refused("this server searches nothing")),
    ("chat_template", Rule::Refused("templates of clients are not run; start the server with --chat-template")),
    ("documents", Rule::Refused("put them into messages")),
];

/// A chat to be continued.
pub(crate) struct ChatRequest {
    pub params: Params,
    pub messages: Vec<Value>,
    pub tools: Tools,
    /// Tokens beside the chosen one, if logprobs are wanted.
    pub logprobs: Option<usize>,
    pub max_tokens: Option<(usize, &'static str)>,
    pub generation_prompt: bool,
    /// The last message is the beginning of the answer.
    pub continued: bool,
    /// What divides the answer into thoughts and content, once the prompt is known.
    pub thinking: Thinking,
    pub special_tokens: bool,
    pub kwargs: Map<String, Value>,
    /// Fields that nobody knows.
    pub unknown: Vec<String>,
}

impl ChatRequest {
    pub fn read(app: &App, value: &Value) -> Result<ChatRequest, ApiError> {
        let f = Fields::new(value, "")?;
        let unknown = f.check(&[SHARED, FIELDS], app.config.strict_params)?;
        app.named(f.string("model")?)?;
        f.required("messages")?;
        let messages = normalised(f.array("messages")?.unwrap_or_default())?;
        let tools = Tools::read(&f)?;
        supported(app, &tools)?;
        let continued = f.flag("continue_final_message")?;
        let generation_prompt = f.bool("add_generation_prompt")?.unwrap_or(!continued);
        if continued && generation_prompt {
            let message = "`continue_final_message` needs `add_generation_prompt`: false";
            return Err(ApiError::field("continue_final_message", message));
        }
        let mut params = Params::read(app, &f)?;
        if let Some(form) = app.templates.shown.dialect.and_then(|d| tools.form(d, &app.model.tokenizer)) {
            if let Some(other) = &params.form {
                let field = other.field;
                return Err(ApiError::field(field, format!("`{field}` gives the answer another form than `tool_choice`; use one")));
            }
            params.form = Some(form);
        }
        Ok(ChatRequest {
            params,
            messages,
            tools,
            logprobs: logprobs(app, &f)?,
            max_tokens: max_tokens(&f)?,
            generation_prompt,
            continued,
            thinking: Thinking::none(),
            special_tokens: f.flag("add_special_tokens")?,
            kwargs: f.object("chat_template_kwargs")?.cloned().unwrap_or_default(),
            unknown,
        })
    }

    /// The prompt as text.
    pub fn rendered(&self, app: &App) -> Result<String, ApiError> {
        let with_tools = self.tools.shown();
        let template = app.templates.of(with_tools)?;
        let mut extra = self.kwargs.clone();
        for key in ["messages", "add_generation_prompt", "tools"] {
            if extra.remove(key).is_some() {
                let path = format!("chat_template_kwargs.{key}");
                return Err(ApiError::field(&path, format!("`{path}` is a field of the request itself")));
            }
        }
        if with_tools {
            extra.insert("tools".into(), self.tools.list.clone().into());
        }
        let refused = |e: billfish_text::TextError| ApiError::field("messages", e.to_string());
        let text = template.render_values(&self.messages, self.generation_prompt, &extra).map_err(refused)?;
        if !self.continued {
            return Ok(text);
        }
        // everything that the template writes after the last message belongs to its end
        let last = self.messages.last().and_then(|m| m["content"].as_str()).unwrap_or_default().trim();
        match text.rfind(last).filter(|_| !last.is_empty()) {
            Some(at) => Ok(text[..at + last.len()].to_owned()),
            None => {
                let message = "the last message cannot be continued: the template does not show its content as it is";
                Err(ApiError::field("continue_final_message", message))
            }
        }
    }

    /// What the engine is asked for.
    pub fn submission(&mut self, app: &App) -> Result<Submission, ApiError> {
        let text = self.rendered(app)?;
        self.thinking = self.thinking(app, &text);
        let prompt = self.params.cut(app.encode(&text, self.special_tokens, "messages")?);
        let room = Params::room(app, prompt.len(), self.max_tokens, "messages")?;
        let mut submission = self.params.submission(app, prompt, room, self.logprobs, 0)?;
        if self.parser(app).is_some() && app.templates.shown.dialect.is_some_and(|d| d.marks_are_special()) {
            // otherwise the marks of calls would be no text
            submission.skip_special_tokens = false;
        }
        Ok(submission)
    }

    /// What divides the answer to this prompt.
    fn thinking(&self, app: &App, prompt: &str) -> Thinking {
        let begun = self.messages.last().and_then(|m| m["content"].as_str()).unwrap_or_default();
        // an answer that is held to a form is all content, and so is one whose thoughts are over
        let off = !app.config.reasoning || !app.templates.thinks || self.params.form.is_some();
        if off || (self.continued && begun.rfind(OPEN) <= begun.rfind(CLOSE)) {
            return Thinking::none();
        }
        Thinking::new(self.continued || prompt.trim_end().ends_with(OPEN))
    }

    /// What reads calls from the answer.
    pub fn parser(&self, app: &App) -> Option<Parser> {
        let dialect = app.templates.shown.dialect.filter(|_| self.tools.shown())?;
        Some(Parser::new(dialect, self.tools.names.clone(), self.tools.parallel))
    }
}

/// Whether this model can do what is asked of its tools.
fn supported(app: &App, tools: &Tools) -> Result<(), ApiError> {
    if !tools.shown() {
        return Ok(());
    }
    // a model without a template has an error of its own
    if app.templates.chat.is_ok() && !app.templates.shown.tools {
        let message = "this model's chat template does not show tools; start the server with a --chat-template that does";
        return Err(ApiError::unsupported("tools", message));
    }
    if app.templates.shown.dialect.is_none() {
        let message = "it is not known how this model writes calls; start the server with --tool-call-parser";
        return Err(ApiError::unsupported("tools", message));
    }
    Ok(())
}

fn logprobs(app: &App, f: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    let wanted = f.flag("logprobs")?;
    let top = f.count("top_logprobs", 0..=app.config.max_logprobs)?;
    match (wanted, top) {
        (false, Some(n)) if n > 0 => Err(ApiError::field("top_logprobs", "`top_logprobs` needs `logprobs`: true")),
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, _) => Ok(None),
    }
}

/// How many tokens, and under which name: `max_tokens` is the older one.
fn max_tokens(f: &Fields<'_>) -> Result<Option<(usize, &'static str)>, ApiError> {
    const NAMES: [&str; 2] = ["max_completion_tokens", "max_tokens"];
    let [new, old] = NAMES;
    let counts = (f.count(new, 1..=usize::MAX)?, f.count(old, 1..=usize::MAX)?);
    match counts {
        (Some(a), Some(b)) if a != b => {
            Err(ApiError::field(old, format!("`{old}` is {b} and `{new}` is {a}: they are two names of the same; give one")))
        }
        (Some(n), _) => Ok(Some((n, new))),
        (None, n) => Ok(n.map(|n| (n, old))),
    }
}
