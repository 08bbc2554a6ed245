//! `/v1/chat/completions`.

mod messages;
mod request;
mod stream;

pub(crate) use messages::normalised;
pub(crate) use request::{ChatRequest, FIELDS};

use crate::answer::{Answer, Choice};
use crate::app::{App, blocking};
use crate::error::ApiError;
use crate::record::Record;
use crate::tools::{Call, Parser, Piece};
use crate::{body, chunks, ids, logprobs};
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use billfish_engine::Submission;
use hyper::Request;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use std::sync::Arc;
use stream::Deltas;

/// Names the parameters of a request that were passed over.
const UNKNOWN: HeaderName = HeaderName::from_static("x-billfish-unknown-parameters");

/// Says in a header which parameters nobody knows.
pub(crate) fn with_unknown(mut response: Response, unknown: &[String]) -> Response {
    let plain = |s: &String| s.len() <= 64 && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    let names: Vec<&str> = unknown.iter().filter(|s| plain(s)).map(String::as_str).take(32).collect();
    let text = if names.is_empty() { "(not printable)".into() } else { names.join(", ") };
    if !unknown.is_empty() {
        response.headers_mut().extend(HeaderValue::from_str(&text).ok().map(|v| (UNKNOWN, v)));
    }
    response
}

/// What a request says about itself in every part of its answer.
#[derive(Clone)]
pub(crate) struct Head {
    pub id: String,
    pub created: u64,
    pub model: String,
    pub fingerprint: String,
    pub seed: u64,
}

impl Head {
    pub fn new(app: &App, prefix: &str, request_id: Option<&str>, seed: u64) -> Head {
        let id = format!("{prefix}{}", request_id.map_or_else(ids::unique, str::to_owned));
        Head { id, created: ids::now(), model: app.name().into(), fingerprint: app.model.fingerprint.clone(), seed }
    }

    /// An object with it.
    pub fn object(&self, kind: &str) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            // what repeats the answer, also where the client gave none
            "seed": self.seed as i64,
        })
    }
}

pub(crate) async fn chat(State(app): State<Arc<App>>, Extension(record): Extension<Record>, request: Request<Body>) -> Response {
    record.answered(answer(app, request, &record)).await
}

async fn answer(app: Arc<App>, request: Request<Body>, record: &Record) -> Result<Response, ApiError> {
    let value = body::json(&app, request).await?;
    let (chat, submission) = blocking(&app, move |app| {
        let mut chat = ChatRequest::read(app, &value)?;
        let submission = chat.submission(app)?;
        Ok((chat, submission))
    })
    .await?;
    record.prompt(submission.prompt.len());
    let head = Head::new(&app, "chatcmpl-", chat.params.request_id.as_deref(), chat.params.sampling.seed);
    let unknown = chat.unknown.clone();
    let response = match chat.params.stream {
        Some(options) => {
            let deltas = Deltas::new(&app, &chat, &submission.prompt);
            chunks::start(app, vec![submission], options, head, record.clone(), deltas).await?
        }
        None => Json(whole(&app, &chat, submission, &head, record).await?).into_response(),
    };
    Ok(with_unknown(response, &unknown))
}

/// The answer at once.
async fn whole(app: &Arc<App>, chat: &ChatRequest, submission: Submission, head: &Head, record: &Record) -> Result<Value, ApiError> {
    let prompt = submission.prompt.clone();
    let job = app.worker.submit(vec![submission]).await?;
    let answer = Answer::collect(app, job, &[prompt.len()], chat.params.n, &chat.thinking).await?;
    record.completion(answer.usage.completion);
    let choices: Vec<Value> = answer.choices.iter().enumerate().map(|(i, c)| choice(app, chat, i, c)).collect();
    let mut out = head.object("chat.completion");
    out["choices"] = choices.into();
    out["usage"] = answer.usage.json();
    if let Some(list) = &answer.prompts[0] {
        out["prompt_logprobs"] = logprobs::prompt(&app.model.tokenizer, list);
    }
    if chat.params.return_token_ids {
        out["prompt_token_ids"] = prompt.into();
    }
    Ok(out)
}

/// A call as part of a message.
pub(crate) fn call_json(call: &Call) -> Value {
    json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
}

/// The text and the calls of an answer.
pub(crate) fn split(parser: Option<Parser>, text: &str) -> (String, Vec<Call>) {
    let Some(mut parser) = parser else { return (text.to_owned(), vec![]) };
    let (mut content, mut calls) = (String::new(), Vec::<Call>::new());
    for piece in parser.push(text).into_iter().chain(parser.finish()) {
        match piece {
            Piece::Text(t) => content.push_str(&t),
            Piece::Call(c) => calls.push(c),
            Piece::Arguments(t) => calls.last_mut().into_iter().for_each(|c| c.arguments.push_str(&t)),
        }
    }
    (content, calls)
}

fn choice(app: &App, chat: &ChatRequest, index: usize, choice: &Choice) -> Value {
    let (content, calls) = split(chat.parser(app), &choice.text);
    let finish = choice.finish.as_ref();
    let reason = match finish.map(|f| f.reason) {
        Some("stop") if !calls.is_empty() => "tool_calls",
        reason => reason.unwrap_or("stop"),
    };
    let nothing = content.is_empty() && !(calls.is_empty() && choice.reasoning.is_empty());
    let content = if nothing { Value::Null } else { content.into() };
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if !choice.reasoning.is_empty() {
        // one name of DeepSeek and llama-server, one of newer servers
        ["reasoning_content", "reasoning"].into_iter().for_each(|key| message[key] = choice.reasoning.clone().into());
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.iter().map(call_json).collect();
    }
    let logprobs = match chat.logprobs {
        None => Value::Null,
        Some(_) => content_logprobs(app, &choice.logprobs),
    };
    let mut out = json!({
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": reason,
        "stop_reason": finish.map_or(Value::Null, |f| f.stop.clone()),
    });
    if chat.params.return_token_ids {
        out["token_ids"] = choice.tokens.clone().into();
    }
    out
}

/// Logprobs as chats have them.
fn content_logprobs(app: &App, list: &[billfish_engine::TokenLogprob]) -> Value {
    let content: Vec<Value> = list.iter().map(|l| logprobs::chat(&app.model.tokenizer, l)).collect();
    json!({"content": content, "refusal": null})
}
