//! A response as a stream of events.

use super::{Head, Progress, part};
use crate::answer::{Heard, Usage, heard};
use crate::app::App;
use crate::error::ApiError;
use crate::record::Record;
use crate::sse::{self, Events, Gone};
use crate::worker::Job;
use axum::response::Response;
use billfish_engine::{FinishReason, Happened, Submission};
use serde_json::{Value, json};
use std::sync::Arc;

/// Hands the request in and starts the stream.
pub(super) async fn start(app: Arc<App>, submission: Submission, head: Head, record: Record) -> Result<Response, ApiError> {
    let usage = Usage { prompt: submission.prompt.len(), ..Usage::default() };
    let job = app.worker.submit(vec![submission]).await?;
    let (events, response) = sse::stream();
    let writer = Writer { app, events, head, usage, text: String::new(), cut: false, number: 0 };
    tokio::spawn(writer.run(job, record));
    Ok(response)
}

struct Writer {
    app: Arc<App>,
    events: Events,
    head: Head,
    usage: Usage,
    text: String,
    cut: bool,
    /// The next event's number.
    number: u64,
}

impl Writer {
    async fn run(mut self, job: Job, record: Record) {
        // a client that left is no error
        let _ = self.write(job).await;
        record.completion(self.usage.completion);
    }

    async fn send(&mut self, name: &str, mut value: Value) -> Result<(), Gone> {
        value["type"] = name.into();
        value["sequence_number"] = self.number.into();
        self.number += 1;
        self.events.named(name, &value).await
    }

    /// The place of the text in the response.
    fn place(&self) -> Value {
        json!({"item_id": self.head.message, "output_index": 0, "content_index": 0})
    }

    async fn write(&mut self, mut job: Job) -> Result<(), Gone> {
        for name in ["response.created", "response.in_progress"] {
            let response = self.head.response(Progress::Running);
            self.send(name, json!({"response": response})).await?;
        }
        let item = self.head.item("in_progress", None);
        self.send("response.output_item.added", json!({"output_index": 0, "item": item})).await?;
        let mut added = self.place();
        added["part"] = part("");
        self.send("response.content_part.added", added).await?;
        loop {
            match heard(&self.app, &mut job, &self.events).await {
                Heard::Gone => return Err(Gone),
                Heard::End => break,
                Heard::Failed(error) => {
                    let response = self.head.response(Progress::Failed { error: &error });
                    return self.send("response.failed", json!({"response": response})).await;
                }
                Heard::Event((_, happened)) => self.event(happened).await?,
            }
        }
        let mut done = self.place();
        done["text"] = self.text.clone().into();
        done["logprobs"] = json!([]);
        self.send("response.output_text.done", done).await?;
        let mut done = self.place();
        done["part"] = part(&self.text);
        self.send("response.content_part.done", done).await?;
        let (status, name) = if self.cut { ("incomplete", "response.incomplete") } else { ("completed", "response.completed") };
        let item = self.head.item(status, Some(&self.text));
        self.send("response.output_item.done", json!({"output_index": 0, "item": item})).await?;
        let response = self.head.response(Progress::Ended { cut: self.cut, text: &self.text, usage: self.usage });
        self.send(name, json!({"response": response})).await
    }

    async fn event(&mut self, happened: Happened) -> Result<(), Gone> {
        let text = match happened {
            Happened::Prompt { cached_tokens, .. } => {
                self.usage.cached = cached_tokens;
                return Ok(());
            }
            Happened::Token { text, .. } => {
                self.usage.completion += 1;
                text
            }
            Happened::End { text, reason, .. } => {
                self.cut = reason == FinishReason::Length;
                text
            }
            Happened::Failed(_) => return Ok(()),
        };
        if text.is_empty() {
            return Ok(());
        }
        self.text.push_str(&text);
        let mut delta = self.place();
        delta["delta"] = text.into();
        delta["logprobs"] = json!([]);
        self.send("response.output_text.delta", delta).await
    }
}
