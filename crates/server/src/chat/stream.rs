//! A chat's answer as a stream.

use super::{ChatRequest, Head, call_json, content_logprobs};
use crate::answer::{Finish, Heard, Usage, heard};
use crate::app::App;
use crate::error::ApiError;
use crate::params::StreamOptions;
use crate::record::Record;
use crate::sse::{self, Events, Gone};
use crate::tools::{Parser, Piece};
use crate::worker::Job;
use axum::response::Response;
use billfish_engine::{Happened, Submission};
use serde_json::{Value, json};
use std::sync::Arc;

/// Hands the request in and starts the stream. What is refused at once is an error with a status of its own.
pub(super) async fn start(
    app: Arc<App>,
    chat: ChatRequest,
    submission: Submission,
    options: StreamOptions,
    head: Head,
    record: Option<Record>,
) -> Result<Response, ApiError> {
    let prompt = submission.prompt.clone();
    let job = app.worker.submit(vec![submission]).await?;
    let (events, response) = sse::stream();
    let choices = (0..chat.params.n).map(|_| State { parser: chat.parser(&app), calls: 0 }).collect();
    let usage = Usage { prompt: prompt.len(), ..Usage::default() };
    let writer = Writer { app, chat, events, options, head, usage, choices, record };
    tokio::spawn(writer.run(job, prompt));
    Ok(response)
}

/// One choice.
struct State {
    parser: Option<Parser>,
    /// Calls so far.
    calls: usize,
}

struct Writer {
    app: Arc<App>,
    chat: ChatRequest,
    events: Events,
    options: StreamOptions,
    head: Head,
    usage: Usage,
    choices: Vec<State>,
    record: Option<Record>,
}

impl Writer {
    async fn run(mut self, job: Job, prompt: Vec<u32>) {
        // a client that left is no error
        let _ = self.write(job, prompt).await;
        let tokens = self.usage.completion;
        self.record.iter().for_each(|r| r.note(|line| line.completion_tokens = Some(tokens)));
    }

    async fn write(&mut self, mut job: Job, prompt: Vec<u32>) -> Result<(), Gone> {
        for choice in 0..self.choices.len() {
            let delta = json!({"role": "assistant", "content": ""});
            let mut chunk = self.chunk(choice, delta, Value::Null);
            if self.chat.params.return_token_ids && choice == 0 {
                chunk["prompt_token_ids"] = prompt.clone().into();
            }
            self.events.data(&chunk).await?;
        }
        loop {
            match heard(&self.app, &mut job, &self.events).await {
                Heard::Gone => return Err(Gone),
                Heard::End => break,
                Heard::Failed(e) => {
                    self.record.iter().for_each(|r| r.note(|line| line.note = Some(e.message.clone())));
                    self.events.data(&e.json()).await?;
                    return self.events.done().await;
                }
                Heard::Event((_, happened)) => self.event(happened).await?,
            }
        }
        if self.options.usage {
            let mut chunk = self.head.object("chat.completion.chunk");
            chunk["choices"] = json!([]);
            chunk["usage"] = self.usage.json();
            self.events.data(&chunk).await?;
        }
        self.events.done().await
    }

    async fn event(&mut self, happened: Happened) -> Result<(), Gone> {
        match happened {
            Happened::Prompt { cached_tokens, .. } => self.usage.cached += cached_tokens,
            Happened::Token { choice, token, text, logprob } => {
                self.usage.completion += 1;
                let mut deltas = self.deltas(choice, &text, false);
                let ids = self.chat.params.return_token_ids;
                if deltas.is_empty() && (ids || logprob.is_some()) {
                    deltas.push(json!({"content": ""}));
                }
                let mut logprobs = logprob.map_or(Value::Null, |l| content_logprobs(&self.app, &[l]));
                let mut ids = ids.then_some(token);
                for delta in deltas {
                    let mut chunk = self.chunk(choice, delta, logprobs.take());
                    if let Some(token) = ids.take() {
                        chunk["choices"][0]["token_ids"] = json!([token]);
                    }
                    self.events.data(&chunk).await?;
                }
            }
            Happened::End { choice, text, reason, stop } => {
                for delta in self.deltas(choice, &text, true) {
                    let chunk = self.chunk(choice, delta, Value::Null);
                    self.events.data(&chunk).await?;
                }
                let Finish { mut reason, stop } = Finish::new(&self.app, reason, stop);
                if reason == "stop" && self.choices[choice].calls > 0 {
                    reason = "tool_calls";
                }
                let mut chunk = self.chunk(choice, json!({}), Value::Null);
                chunk["choices"][0]["finish_reason"] = reason.into();
                chunk["choices"][0]["stop_reason"] = stop;
                self.events.data(&chunk).await?;
            }
            Happened::Failed(_) => {}
        }
        Ok(())
    }

    /// What new text adds to a choice.
    fn deltas(&mut self, choice: usize, text: &str, last: bool) -> Vec<Value> {
        let state = &mut self.choices[choice];
        let pieces = match &mut state.parser {
            None if text.is_empty() => vec![],
            None => vec![Piece::Text(text.to_owned())],
            Some(parser) => {
                let mut pieces = parser.push(text);
                if last {
                    pieces.extend(parser.finish());
                }
                pieces
            }
        };
        let delta = |piece| match piece {
            Piece::Text(text) => json!({"content": text}),
            Piece::Call(call) => {
                let mut json = call_json(&call);
                json["index"] = state.calls.into();
                state.calls += 1;
                json!({"tool_calls": [json]})
            }
        };
        pieces.into_iter().map(delta).collect()
    }

    fn chunk(&self, choice: usize, delta: Value, logprobs: Value) -> Value {
        let mut out = self.head.object("chat.completion.chunk");
        out["choices"] = json!([{"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": null}]);
        if self.options.continuous {
            out["usage"] = self.usage.json();
        } else if self.options.usage {
            out["usage"] = Value::Null;
        }
        out
    }
}
