//! What is asked of `/v1/responses`: a chat in other words.

use crate::app::App;
use crate::chat::ChatRequest;
use crate::error::ApiError;
use crate::fields::{Field, Fields, Rule, expected};
use serde_json::{Map, Value, json};

/// Its fields.
pub(crate) const FIELDS: &[Field] = &[
    ("model", Rule::Used),
    ("input", Rule::Used),
    ("instructions", Rule::Used),
    ("max_output_tokens", Rule::Used),
    ("temperature", Rule::Used),
    ("top_p", Rule::Used),
    ("top_k", Rule::Used),
    ("min_p", Rule::Used),
    ("seed", Rule::Used),
    ("stop", Rule::Used),
    ("stream", Rule::Used),
    ("text", Rule::Used),
    ("request_id", Rule::Used),
    ("cache_salt", Rule::Used),
    ("chat_template_kwargs", Rule::Used),
    ("metadata", Rule::Used),
    ("user", Rule::Harmless),
    ("safety_identifier", Rule::Harmless),
    ("service_tier", Rule::Harmless),
    ("prompt_cache_key", Rule::Harmless),
    ("prompt_cache_retention", Rule::Harmless),
    ("reasoning", Rule::Harmless),
    // nothing is kept either way, and no `previous_response_id` finds anything
    ("store", Rule::Harmless),
    ("parallel_tool_calls", Rule::Harmless),
    ("background", Rule::Only(&["false"])),
    ("truncation", Rule::Only(&["\"disabled\""])),
    ("include", Rule::Only(&["[]"])),
    ("tools", Rule::Only(&["[]"])),
    ("tool_choice", Rule::Only(&["\"auto\"", "\"none\""])),
    ("top_logprobs", Rule::Only(&["0"])),
    ("stream_options", Rule::Refused("a response's stream always ends with its usage")),
    ("previous_response_id", Rule::Refused("nothing is kept here; send the whole conversation as `input`")),
    ("conversation", Rule::Refused("nothing is kept here; send the whole conversation as `input`")),
    ("prompt", Rule::Refused("no prompts are kept here")),
    ("max_tool_calls", Rule::Refused("this server runs no tools")),
];

/// Fields that a chat has under the same name.
const SAME: [&str; 11] =
    ["model", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "request_id", "cache_salt", "chat_template_kwargs", "user"];

pub(super) struct ResponseRequest {
    pub chat: ChatRequest,
    pub stream: bool,
    /// What of the request is part of the response.
    pub echoed: Map<String, Value>,
    pub unknown: Vec<String>,
}

impl ResponseRequest {
    pub fn read(app: &App, value: &Value) -> Result<ResponseRequest, ApiError> {
        let f = Fields::new(value, "")?;
        let unknown = f.check(&[FIELDS], app.config.strict_params)?;
        format(&f)?;
        let mut chat = Map::new();
        for name in SAME {
            chat.extend(f.get(name).map(|v| (name.to_owned(), v.clone())));
        }
        chat.insert("messages".into(), messages(&f)?.into());
        // under its own name, so that an error names the field that the client wrote
        let most = f.count("max_output_tokens", 1..=usize::MAX)?;
        let mut chat = ChatRequest::read(app, &Value::Object(chat))?;
        chat.max_tokens = most.map(|n| (n, "max_output_tokens"));
        let sampling = &chat.params.sampling;
        let echoed = json!({
            "instructions": f.string("instructions")?,
            "max_output_tokens": most,
            "metadata": f.object("metadata")?.cloned().unwrap_or_default(),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "parallel_tool_calls": true,
            "tool_choice": "auto",
            "tools": [],
            "text": {"format": {"type": "text"}},
            "previous_response_id": null,
            "store": false,
            "truncation": "disabled",
            "background": false,
        });
        let Value::Object(echoed) = echoed else { return Err(ApiError::internal("a response is no object")) };
        Ok(ResponseRequest { chat, stream: f.flag("stream")?, echoed, unknown })
    }
}

/// Only free text is written.
fn format(f: &Fields<'_>) -> Result<(), ApiError> {
    let Some(value) = f.get("text") else { return Ok(()) };
    let text = Fields::new(value, "text.")?;
    text.check(&[&[("format", Rule::Used), ("verbosity", Rule::Harmless)]], true)?;
    let Some(format) = text.get("format") else { return Ok(()) };
    match Fields::new(format, "text.format.")?.string("type")? {
        Some("text") => Ok(()),
        _ => Err(ApiError::unsupported("text.format.type", "`text.format.type`: only text is supported here; use /v1/chat/completions")),
    }
}

/// The conversation as messages.
fn messages(f: &Fields<'_>) -> Result<Vec<Value>, ApiError> {
    let mut out = vec![];
    out.extend(f.string("instructions")?.map(|text| json!({"role": "system", "content": text})));
    match f.required("input")? {
        Value::String(text) => out.push(json!({"role": "user", "content": text})),
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                let path = format!("input[{i}].");
                let f = Fields::new(item, &path)?;
                match f.string("type")? {
                    None | Some("message") => {}
                    // thoughts of an earlier response; templates leave them out of the conversation
                    Some("reasoning") => continue,
                    Some(other) => {
                        let other: String = other.chars().take(80).collect();
                        let path = f.path("type");
                        return Err(ApiError::unsupported(
                            &path,
                            format!("`{path}`: items of type `{other}` are not supported, only messages"),
                        ));
                    }
                }
                out.push(json!({"role": f.required("role")?, "content": f.required("content")?}));
            }
        }
        v => return Err(expected("input", "a string or an array of messages", v)),
    }
    Ok(out)
}
