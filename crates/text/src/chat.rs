//! Chat templates: messages to a prompt.
//!
//! Models carry a Jinja template written for Python. It is rendered with the settings the template authors test with
//! (`trim_blocks`, `lstrip_blocks`, loop controls, no escaping, Python's string and dict methods) and with the functions
//! they expect: `raise_exception`, `strftime_now`, `tojson` as Python's `json.dumps`, `length` of an undefined value.
//! `{% generation %}` marks, which only concern training, are passed over.

use crate::TextError;
use crate::strftime::strftime;
use crate::tojson::tojson;
use minijinja::value::{Serde, Value as Jinja};
use minijinja::{Environment, Error, ErrorKind, syntax::SyntaxConfig};
use serde_json::{Map, Value};
use std::time::{SystemTime, UNIX_EPOCH};

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool` …
    pub role: String,
    /// What is said.
    pub content: String,
    /// Anything else the template may look at (`tool_calls`, `name` …).
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A plain message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into(), extra: Map::new() }
    }
}

/// A compiled chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    file: String,
    source: String,
    defaults: Map<String, Value>,
    now: Option<i64>,
}

const NAME: &str = "chat";

/// Marks an error as the template's own refusal.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// A syntax error, with its line.
    pub fn new(source: &str) -> Result<ChatTemplate, TextError> {
        ChatTemplate::named("chat template", source)
    }

    /// Compiles a template that came from `file`, which messages will name.
    ///
    /// # Errors
    /// A syntax error, with its line.
    pub fn named(file: &str, source: &str) -> Result<ChatTemplate, TextError> {
        let syntax_error = |e: Error| TextError::TemplateSyntax { file: file.into(), line: e.line().unwrap_or(0), found: describe(&e) };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(syntax_error)?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(crate::python::call_method);
        environment.add_filter("tojson", tojson);
        environment.add_filter("length", length);
        environment.add_filter("count", length);
        environment.add_function("raise_exception", raise_exception);
        environment.add_template_owned(NAME, prepare(source)).map_err(syntax_error)?;
        Ok(ChatTemplate { environment, file: file.into(), source: source.into(), defaults: Map::new(), now: None })
    }

    /// Its text, as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Sets variables that every rendering sees unless it brings its own of the same name.
    pub fn with_defaults(mut self, variables: Map<String, Value>) -> ChatTemplate {
        self.defaults = variables;
        self
    }

    /// Fixes what `strftime_now` takes for now, in seconds since 1970 (UTC). Otherwise it asks the system clock.
    pub fn with_time(mut self, unix_seconds: i64) -> ChatTemplate {
        self.now = Some(unix_seconds);
        self
    }

    /// Renders a chat. `extra` holds further variables: `bos_token`, `tools`, `enable_thinking` …
    ///
    /// # Errors
    /// [`TextError::TemplateRefused`] with the template's own words if it calls `raise_exception`,
    /// [`TextError::TemplateRender`] if it fails in any other way.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool, extra: &Map<String, Value>) -> Result<String, TextError> {
        let messages = messages.iter().map(|m| Jinja::from(Serde(m))).collect::<Vec<_>>();
        self.render_with(Jinja::from(messages), add_generation_prompt, extra)
    }

    /// As [`render`](Self::render), for messages of any shape (content in parts, null content, tool calls).
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_values(&self, messages: &[Value], add_generation_prompt: bool, extra: &Map<String, Value>) -> Result<String, TextError> {
        self.render_with(Jinja::from(Serde(messages)), add_generation_prompt, extra)
    }

    fn render_with(&self, messages: Jinja, add_generation_prompt: bool, extra: &Map<String, Value>) -> Result<String, TextError> {
        let now = self.now.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64));
        // Templates expect these to be defined even when there are none.
        let absent = ["tools", "documents"].map(|key| (key.to_owned(), Jinja::from(())));
        let own = [
            ("messages".to_owned(), messages),
            ("add_generation_prompt".to_owned(), Jinja::from(add_generation_prompt)),
            ("strftime_now".to_owned(), Jinja::from_function(move |format: &str| strftime(format, now))),
        ];
        let given = self.defaults.iter().chain(extra).map(|(key, value)| (key.clone(), Jinja::from(Serde(value))));
        // Later pairs win.
        let context = Jinja::from_pairs(absent.into_iter().chain(given).chain(own));
        let template = self.environment.get_template(NAME).map_err(|e| self.render_error(&e))?;
        template.render(context).map_err(|e| self.render_error(&e))
    }

    fn render_error(&self, e: &Error) -> TextError {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(e);
        while let Some(inner) = cause {
            if let Some(Refusal(message)) = inner.downcast_ref() {
                return TextError::TemplateRefused { file: self.file.clone(), message: message.clone() };
            }
            cause = inner.source();
        }
        TextError::TemplateRender { file: self.file.clone(), line: e.line().unwrap_or(0), found: describe(e) }
    }
}

/// What an error says, without its position.
fn describe(e: &Error) -> String {
    match e.detail() {
        Some(detail) => format!("{}: {detail}", e.kind()),
        None => e.kind().to_string(),
    }
}

fn raise_exception(message: String) -> Result<Jinja, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Refusal(message)))
}

/// In Python an undefined value has length 0.
fn length(value: &Jinja) -> Result<usize, Error> {
    match value.len() {
        Some(n) => Ok(n),
        None if value.is_undefined() => Ok(0),
        None => Err(Error::new(ErrorKind::InvalidOperation, format!("a value of type {} has no length", value.kind()))),
    }
}

/// Makes line ends `\n`, as Python's Jinja does, and turns the training marks into blocks without effect.
fn prepare(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let length = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(length);
        let is_mark = |c: char| matches!(c, '-' | '+');
        let word = tag.trim_start_matches("{%").trim_end_matches("%}");
        match word.trim_start_matches(is_mark).trim_end_matches(is_mark).trim() {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => {
                // Not ours: only step over the opening, so that a `%}` inside a string cannot hide a tag.
                out.push_str("{%");
                rest = &rest[at + 2..];
                continue;
            }
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
