//! `/v1/completions`: plain text, continued.

mod request;
mod stream;

#[cfg(test)]
pub(crate) use request::FIELDS;

use crate::answer::{Answer, Choice};
use crate::app::{App, blocking};
use crate::chat::{Head, with_unknown};
use crate::error::ApiError;
use crate::logprobs::{self, TextLogprobs};
use crate::reasoning::Thinking;
use crate::record::Record;
use crate::{body, chunks};
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use billfish_engine::{Submission, TokenLogprob};
use hyper::Request;
use request::{CompletionRequest, Prompt};
use serde_json::{Value, json};
use std::sync::Arc;
use stream::Texts;

pub(crate) async fn completions(State(app): State<Arc<App>>, Extension(record): Extension<Record>, request: Request<Body>) -> Response {
    record.answered(answer(app, request, &record)).await
}

async fn answer(app: Arc<App>, request: Request<Body>, record: &Record) -> Result<Response, ApiError> {
    let value = body::json(&app, request).await?;
    let (request, submissions) = blocking(&app, move |app| {
        let request = CompletionRequest::read(app, &value)?;
        let submissions = request.submissions(app)?;
        Ok((request, submissions))
    })
    .await?;
    let tokens = request.prompts.iter().map(|p| p.tokens.len()).sum();
    record.prompt(tokens);
    let head = Head::new(&app, "cmpl-", request.params.request_id.as_deref(), request.params.sampling.seed);
    let unknown = request.unknown.clone();
    let response = match request.params.stream {
        Some(options) => chunks::start(app, submissions, options, head, record.clone(), Texts::new(request)).await?,
        None => Json(whole(&app, &request, submissions, &head, record).await?).into_response(),
    };
    Ok(with_unknown(response, &unknown))
}

async fn whole(
    app: &Arc<App>,
    request: &CompletionRequest,
    submissions: Vec<Submission>,
    head: &Head,
    record: &Record,
) -> Result<Value, ApiError> {
    let job = app.worker.submit(submissions).await?;
    let lengths: Vec<usize> = request.prompts.iter().map(|p| p.tokens.len()).collect();
    let n = request.params.n;
    let answer = Answer::collect(app, job, &lengths, n, &Thinking::none()).await?;
    record.completion(answer.usage.completion);
    let one = |(i, c): (usize, &Choice)| choice(app, request, i, c, answer.prompts[i / n].as_deref());
    let choices: Vec<Value> = answer.choices.iter().enumerate().map(one).collect();
    let mut out = head.object("text_completion");
    out["choices"] = choices.into();
    out["usage"] = answer.usage.json();
    Ok(out)
}

fn choice(app: &App, request: &CompletionRequest, index: usize, choice: &Choice, of_prompt: Option<&[Option<TokenLogprob>]>) -> Value {
    let tokenizer = &app.model.tokenizer;
    let prompt = &request.prompts[index / request.params.n];
    let logprobs = request.logprobs.map(|_| {
        let mut list = TextLogprobs::default();
        if request.echo {
            echo_logprobs(app, &mut list, prompt, of_prompt.unwrap_or_default());
        }
        choice.logprobs.iter().for_each(|l| list.push(tokenizer, l));
        list.take()
    });
    let text = if request.echo { format!("{}{}", prompt.text, choice.text) } else { choice.text.clone() };
    let finish = choice.finish.as_ref();
    let mut out = json!({
        "text": text,
        "index": index,
        "logprobs": logprobs,
        "finish_reason": finish.map_or("stop", |f| f.reason),
        "stop_reason": finish.map_or(Value::Null, |f| f.stop.clone()),
    });
    if let (Some(list), Some(_)) = (of_prompt, request.params.prompt_logprobs) {
        out["prompt_logprobs"] = logprobs::prompt(tokenizer, list);
    }
    if request.params.return_token_ids {
        out["prompt_token_ids"] = prompt.tokens.clone().into();
        out["token_ids"] = choice.tokens.clone().into();
    }
    out
}

/// Logprobs of the prompt, at the beginning of those of the answer. Nothing is known of its first token.
fn echo_logprobs(app: &App, list: &mut TextLogprobs, prompt: &Prompt, known: &[Option<TokenLogprob>]) {
    let tokenizer = &app.model.tokenizer;
    for (i, token) in prompt.tokens.iter().enumerate() {
        match known.get(i).and_then(Option::as_ref) {
            Some(l) => list.push(tokenizer, l),
            None => list.first(tokenizer, *token),
        }
    }
}
