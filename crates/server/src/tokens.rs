//! `/tokenize` and `/detokenize`.

use crate::app::{App, blocking};
use crate::body;
use crate::chat::{ChatRequest, FIELDS as CHAT};
use crate::error::ApiError;
use crate::fields::{Field, Fields, Rule, tokens};
use crate::params::SHARED;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hyper::Request;
use serde_json::{Value, json};
use std::sync::Arc;

/// Fields of `/tokenize` for a plain text.
pub(crate) const TEXT: &[Field] =
    &[("model", Rule::Used), ("prompt", Rule::Used), ("add_special_tokens", Rule::Used), ("return_token_strs", Rule::Used)];

/// Fields of `/tokenize` for a chat, besides those of chats.
pub(crate) const STRINGS: &[Field] = &[("return_token_strs", Rule::Used)];

/// Fields of `/detokenize`.
pub(crate) const TOKENS: &[Field] = &[("model", Rule::Used), ("tokens", Rule::Used)];

pub(crate) async fn tokenize(State(app): State<Arc<App>>, request: Request<Body>) -> Response {
    let read = |app: &App, value: &Value| {
        let f = Fields::new(value, "")?;
        let (ids, strings) = if f.get("messages").is_some() {
            f.check(&[SHARED, CHAT, STRINGS], true)?;
            let strings = f.flag("return_token_strs")?;
            let mut chat = value.clone();
            // it is no field of chats
            chat.as_object_mut().and_then(|o| o.remove("return_token_strs"));
            let chat = ChatRequest::read(app, &chat)?;
            (app.model.tokenizer.encode(&chat.rendered(app)?, chat.special_tokens)?, strings)
        } else {
            f.check(&[TEXT], true)?;
            app.named(f.string("model")?)?;
            f.required("prompt")?;
            let text = f.string("prompt")?.unwrap_or_default();
            let special = f.bool("add_special_tokens")?.unwrap_or(true);
            (app.model.tokenizer.encode(text, special)?, f.flag("return_token_strs")?)
        };
        let names = strings.then(|| ids.iter().map(|t| app.model.tokenizer.token(*t)).collect::<Vec<_>>());
        Ok(json!({"count": ids.len(), "max_model_len": app.model.max_model_len, "tokens": ids, "token_strs": names}))
    };
    answer(app, request, read).await
}

pub(crate) async fn detokenize(State(app): State<Arc<App>>, request: Request<Body>) -> Response {
    let read = |app: &App, value: &Value| {
        let f = Fields::new(value, "")?;
        f.check(&[TOKENS], true)?;
        app.named(f.string("model")?)?;
        f.required("tokens")?;
        let ids = tokens("tokens", f.array("tokens")?.unwrap_or_default(), app.model.vocab_size)?;
        Ok(json!({"prompt": app.model.tokenizer.decode(&ids, false)?}))
    };
    answer(app, request, read).await
}

/// Reads a body and answers it, away from the threads that wait for the network.
async fn answer(
    app: Arc<App>,
    request: Request<Body>,
    read: impl FnOnce(&App, &Value) -> Result<Value, ApiError> + Send + 'static,
) -> Response {
    let value = match body::json(&app, request).await {
        Ok(value) => value,
        Err(e) => return e.into_response(),
    };
    match blocking(&app, move |app| read(app, &value)).await {
        Ok(value) => Json(value).into_response(),
        Err(e) => e.into_response(),
    }
}
