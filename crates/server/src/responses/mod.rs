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
        let mut request = ResponseRequest::read(app, &value)?;
        let submission = request.chat.submission(app)?;
        Ok((request, submission))
    })
    .await?;
    record.prompt(submission.prompt.len());
    let unknown = request.unknown.clone();
    let head = Head::new(&app, &request);
    let response = match request.stream {
        true => stream::start(app, submission, request.chat.thinking, head, record.clone()).await?,
        false => Json(whole(&app, &request, submission, &head, record).await?).into_response(),
    };
    Ok(with_unknown(response, &unknown))
}

async fn whole(app: &Arc<App>, request: &ResponseRequest, submission: Submission, head: &Head, record: &Record) -> Result<Value, ApiError> {
    let prompt = submission.prompt.len();
    let job = app.worker.submit(vec![submission]).await?;
    let answer = Answer::collect(app, job, &[prompt], 1, &request.chat.thinking).await?;
    record.completion(answer.usage.completion);
    let choice = &answer.choices[0];
    let cut = choice.finish.as_ref().is_some_and(|f| f.reason == "length");
    Ok(head.response(Progress::Ended { cut, reasoning: &choice.reasoning, text: &choice.text, usage: answer.usage }))
}

/// What a response says about itself.
struct Head {
    id: String,
    /// The ids of the items that it may have.
    reasoning: String,
    message: String,
    created: u64,
    /// What of the request is repeated.
    echoed: Map<String, Value>,
}

/// How far a response is.
enum Progress<'a> {
    Running,
    Ended { cut: bool, reasoning: &'a str, text: &'a str, usage: Usage },
    Failed { error: &'a ApiError },
}

impl Head {
    fn new(app: &App, request: &ResponseRequest) -> Head {
        let mut echoed = request.echoed.clone();
        echoed.insert("model".into(), app.name().into());
        let id = request.chat.params.request_id.clone().unwrap_or_else(ids::unique);
        let [reasoning, message] = ["rs", "msg"].map(|kind| format!("{kind}_{}", ids::unique()));
        Head { id: format!("resp_{id}"), reasoning, message, created: ids::now(), echoed }
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
            Progress::Ended { cut, reasoning, text, usage } => {
                if cut {
                    out["incomplete_details"] = json!({"reason": "max_output_tokens"});
                }
                // thoughts behind which nothing was said were cut
                let of_thoughts = if cut && text.is_empty() { status } else { "completed" };
                let thought = (!reasoning.is_empty()).then(|| self.item(Kind::Reasoning, of_thoughts, Some(reasoning)));
                out["output"] = thought.into_iter().chain([self.item(Kind::Message, status, Some(text))]).collect();
                out["usage"] = json!({
                    "input_tokens": usage.prompt,
                    "input_tokens_details": {"cached_tokens": usage.cached},
                    "output_tokens": usage.completion,
                    "output_tokens_details": {"reasoning_tokens": usage.reasoning},
                    "total_tokens": usage.prompt + usage.completion,
                });
            }
        }
        if let Value::Object(map) = &mut out {
            map.extend(self.echoed.clone());
        }
        out
    }

    /// The id of an item.
    fn id_of(&self, kind: Kind) -> &str {
        match kind {
            Kind::Reasoning => &self.reasoning,
            Kind::Message => &self.message,
        }
    }

    /// What is written.
    fn item(&self, kind: Kind, status: &str, text: Option<&str>) -> Value {
        let content: Vec<Value> = text.iter().map(|t| kind.part(t)).collect();
        let id = self.id_of(kind);
        match kind {
            Kind::Reasoning => json!({"type": "reasoning", "id": id, "status": status, "summary": [], "content": content}),
            Kind::Message => json!({"type": "message", "id": id, "status": status, "role": "assistant", "content": content}),
        }
    }
}

/// What a response consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Thoughts before the answer.
    Reasoning,
    Message,
}

impl Kind {
    /// The kind of its text, by which the events of a stream are named too.
    fn text(self) -> &'static str {
        match self {
            Kind::Reasoning => "reasoning_text",
            Kind::Message => "output_text",
        }
    }

    /// Text as a part of it.
    fn part(self, text: &str) -> Value {
        match self {
            Kind::Reasoning => json!({"type": self.text(), "text": text}),
            Kind::Message => json!({"type": self.text(), "text": text, "annotations": [], "logprobs": []}),
        }
    }
}
