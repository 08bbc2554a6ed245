//! A completion as a stream.

use super::{CompletionRequest, echo_logprobs};
use crate::answer::{Finish, Heard, Usage, heard};
use crate::app::App;
use crate::chat::Head;
use crate::error::ApiError;
use crate::logprobs::TextLogprobs;
use crate::params::StreamOptions;
use crate::record::Record;
use crate::sse::{self, Events, Gone};
use crate::worker::Job;
use axum::response::Response;
use billfish_engine::{Happened, Submission, TokenLogprob};
use serde_json::{Value, json};
use std::sync::Arc;

/// Hands the requests in and starts the stream.
pub(super) async fn start(
    app: Arc<App>,
    request: CompletionRequest,
    submissions: Vec<Submission>,
    options: StreamOptions,
    head: Head,
    record: Option<Record>,
) -> Result<Response, ApiError> {
    let job = app.worker.submit(submissions).await?;
    let (events, response) = sse::stream();
    let usage = Usage { prompt: request.prompts.iter().map(|p| p.tokens.len()).sum(), ..Usage::default() };
    let choices = request.prompts.len() * request.params.n;
    let states = (0..choices).map(|_| State { begun: false, logprobs: TextLogprobs::default() }).collect();
    let known = request.prompts.iter().map(|_| None).collect();
    let writer = Writer { app, request, events, options, head, usage, states, known, record };
    tokio::spawn(writer.run(job));
    Ok(response)
}

/// One choice.
struct State {
    /// Whether anything of it was sent.
    begun: bool,
    logprobs: TextLogprobs,
}

struct Writer {
    app: Arc<App>,
    request: CompletionRequest,
    events: Events,
    options: StreamOptions,
    head: Head,
    usage: Usage,
    states: Vec<State>,
    /// Logprobs of each prompt, once they are known.
    known: Vec<Option<Vec<Option<TokenLogprob>>>>,
    record: Option<Record>,
}

impl Writer {
    async fn run(mut self, job: Job) {
        // a client that left is no error
        let _ = self.write(job).await;
        let tokens = self.usage.completion;
        self.record.iter().for_each(|r| r.note(|line| line.completion_tokens = Some(tokens)));
    }

    async fn write(&mut self, mut job: Job) -> Result<(), Gone> {
        loop {
            match heard(&self.app, &mut job, &self.events).await {
                Heard::Gone => return Err(Gone),
                Heard::End => break,
                Heard::Failed(e) => {
                    self.record.iter().for_each(|r| r.note(|line| line.note = Some(e.message.clone())));
                    self.events.data(&e.json()).await?;
                    return self.events.done().await;
                }
                Heard::Event((prompt, happened)) => self.event(prompt, happened).await?,
            }
        }
        if self.options.usage {
            let mut chunk = self.head.object("text_completion");
            chunk["choices"] = json!([]);
            chunk["usage"] = self.usage.json();
            self.events.data(&chunk).await?;
        }
        self.events.done().await
    }

    async fn event(&mut self, prompt: usize, happened: Happened) -> Result<(), Gone> {
        let n = self.request.params.n;
        match happened {
            Happened::Prompt { cached_tokens, logprobs } => {
                self.usage.cached += cached_tokens;
                self.known[prompt] = logprobs;
            }
            Happened::Token { choice, token, text, logprob } => {
                self.usage.completion += 1;
                let index = prompt * n + choice;
                let text = self.begin(index, text);
                if let Some(l) = &logprob {
                    self.states[index].logprobs.push(&self.app.model.tokenizer, l);
                }
                let ids = self.request.params.return_token_ids;
                if !text.is_empty() || logprob.is_some() || ids {
                    let mut chunk = self.chunk(index, &text);
                    if ids {
                        chunk["choices"][0]["token_ids"] = json!([token]);
                    }
                    self.events.data(&chunk).await?;
                }
            }
            Happened::End { choice, text, reason, stop } => {
                let index = prompt * n + choice;
                let text = self.begin(index, text);
                let Finish { reason, stop } = Finish::new(&self.app, reason, stop);
                let mut chunk = self.chunk(index, &text);
                chunk["choices"][0]["finish_reason"] = reason.into();
                chunk["choices"][0]["stop_reason"] = stop;
                self.events.data(&chunk).await?;
            }
            Happened::Failed(_) => {}
        }
        Ok(())
    }

    /// The text to send: before the first of a choice stands the prompt, if it is to be repeated.
    fn begin(&mut self, index: usize, text: String) -> String {
        let state = &mut self.states[index];
        if std::mem::replace(&mut state.begun, true) || !self.request.echo {
            return text;
        }
        let at = index / self.request.params.n;
        let prompt = &self.request.prompts[at];
        if self.request.logprobs.is_some() {
            echo_logprobs(&self.app, &mut state.logprobs, prompt, self.known[at].as_deref().unwrap_or_default());
        }
        format!("{}{text}", prompt.text)
    }

    fn chunk(&mut self, index: usize, text: &str) -> Value {
        let logprobs = self.request.logprobs.map(|_| self.states[index].logprobs.take());
        let mut out = self.head.object("text_completion");
        out["choices"] = json!([{"index": index, "text": text, "logprobs": logprobs, "finish_reason": null}]);
        if self.options.continuous {
            out["usage"] = self.usage.json();
        } else if self.options.usage {
            out["usage"] = Value::Null;
        }
        out
    }
}
