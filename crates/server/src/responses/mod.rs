//! `/v1/responses`: OpenAI's newer interface, for text and without a memory of earlier responses.

mod request;
mod stream;

#[cfg(test)]
pub(crate) use request::FIELDS;

use crate::answer::{Answer, Usage};
use crate::app::{App, blocking};
use crate::chat::with_unknown;
use crate::error::ApiError;
use crate::record::Record;
use crate::{body, ids};
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use billfish_engine::Submission;
use hyper::Request;
use request::ResponseRequest;
use serde_json::{Map, Value, json};
use std::sync::Arc;

pub(crate) async fn responses(State(app): State<Arc<App>>, Extension(record): Extension<Record>, request: Request<Body>) -> Response {
    record.answered(answer(app, request, &record)).await
}

async fn answer(app: Arc<App>, request: Request<Body>, record: &Record) -> Result<Response, ApiError> {
    let value = body::json(&app, request).await?;
    let (request, submission) = blocking(&app, move |app| {
        let request = ResponseRequest::read(app, &value)?;
        let submission = request.chat.submission(app)?;
        Ok((request, submission))
    })
    .await?;
    record.prompt(submission.prompt.len());
    let unknown = request.unknown.clone();
    let head = Head::new(&app, &request);
    let response = match request.stream {
        true => stream::start(app, submission, head, record.clone()).await?,
        false => Json(whole(&app, submission, &head, record).await?).into_response(),
    };
    Ok(with_unknown(response, &unknown))
}

async fn whole(app: &Arc<App>, submission: Submission, head: &Head, record: &Record) -> Result<Value, ApiError> {
    let prompt = submission.prompt.len();
    let job = app.worker.submit(vec![submission]).await?;
    let answer = Answer::collect(app, job, &[prompt], 1).await?;
    record.completion(answer.usage.completion);
    let choice = &answer.choices[0];
    let cut = choice.finish.as_ref().is_some_and(|f| f.reason == "length");
    Ok(head.response(Progress::Ended { cut, text: &choice.text, usage: answer.usage }))
}

/// What a response says about itself.
struct Head {
    id: String,
    message: String,
    created: u64,
    /// What of the request is repeated.
    echoed: Map<String, Value>,
}

/// How far a response is.
enum Progress<'a> {
    Running,
    Ended { cut: bool, text: &'a str, usage: Usage },
    Failed { error: &'a ApiError },
}

impl Head {
    fn new(app: &App, request: &ResponseRequest) -> Head {
        let mut echoed = request.echoed.clone();
        echoed.insert("model".into(), app.name().into());
        let id = request.chat.params.request_id.clone().unwrap_or_else(ids::unique);
        Head { id: format!("resp_{id}"), message: format!("msg_{}", ids::unique()), created: ids::now(), echoed }
    }

    /// The response object.
    fn response(&self, state: Progress<'_>) -> Value {
        let status = match &state {
            Progress::Running => "in_progress",
            Progress::Ended { cut: true, .. } => "incomplete",
            Progress::Ended { cut: false, .. } => "completed",
            Progress::Failed { .. } => "failed",
        };
        let mut out = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": null,
            "incomplete_details": null,
            "output": [],
            "usage": null,
        });
        match state {
            Progress::Running => {}
            Progress::Failed { error } => {
                out["error"] = json!({"code": "server_error", "message": error.message});
            }
            Progress::Ended { cut, text, usage } => {
                if cut {
                    out["incomplete_details"] = json!({"reason": "max_output_tokens"});
                }
                out["output"] = json!([self.item(status, Some(text))]);
                out["usage"] = json!({
                    "input_tokens": usage.prompt,
                    "input_tokens_details": {"cached_tokens": usage.cached},
                    "output_tokens": usage.completion,
                    "output_tokens_details": {"reasoning_tokens": 0},
                    "total_tokens": usage.prompt + usage.completion,
                });
            }
        }
        if let Value::Object(map) = &mut out {
            map.extend(self.echoed.clone());
        }
        out
    }

    /// The message that is written.
    fn item(&self, status: &str, text: Option<&str>) -> Value {
        let content: Vec<Value> = text.iter().map(|t| part(t)).collect();
        json!({"type": "message", "id": self.message, "status": status, "role": "assistant", "content": content})
    }
}

/// Text as a part of a message.
fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}
