//! A response as a stream of events.

use super::{Head, Kind, Progress};
use crate::answer::{Heard, Usage, heard};
use crate::app::App;
use crate::error::ApiError;
use crate::reasoning::Thinking;
use crate::record::Record;
use crate::sse::{self, Events, Gone};
use crate::worker::Job;
use axum::response::Response;
use billfish_engine::{FinishReason, Happened, Submission};
use serde_json::{Value, json};
use std::sync::Arc;

/// Hands the request in and starts the stream.
pub(super) async fn start(
    app: Arc<App>,
    submission: Submission,
    thinking: Thinking,
    head: Head,
    record: Record,
) -> Result<Response, ApiError> {
    let usage = Usage { prompt: submission.prompt.len(), ..Usage::default() };
    let job = app.worker.submit(vec![submission]).await?;
    let (events, response) = sse::stream();
    let writer = Writer { app, events, head, usage, thinking, items: vec![], cut: false, number: 0 };
    tokio::spawn(writer.run(job, record));
    Ok(response)
}

struct Writer {
    app: Arc<App>,
    events: Events,
    head: Head,
    usage: Usage,
    thinking: Thinking,
    /// What was written so far. The last one is being written.
    items: Vec<(Kind, String)>,
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

    /// The place of the text that is being written in the response.
    fn place(&self, kind: Kind) -> Value {
        json!({"item_id": self.head.id_of(kind), "output_index": self.items.len() - 1, "content_index": 0})
    }

    async fn write(&mut self, mut job: Job) -> Result<(), Gone> {
        for name in ["response.created", "response.in_progress"] {
            let response = self.head.response(Progress::Running);
            self.send(name, json!({"response": response})).await?;
        }
        if self.thinking.is_over() {
            self.begin(Kind::Message).await?;
        }
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
        // there is a message, if only an empty one
        self.text(Kind::Message, "").await?;
        self.end(self.cut).await?;
        let name = if self.cut { "response.incomplete" } else { "response.completed" };
        let of = |kind| self.items.iter().find(|i| i.0 == kind).map_or("", |i| i.1.as_str());
        let (reasoning, text) = (of(Kind::Reasoning), of(Kind::Message));
        let response = self.head.response(Progress::Ended { cut: self.cut, reasoning, text, usage: self.usage });
        self.send(name, json!({"response": response})).await
    }

    /// Begins an item.
    async fn begin(&mut self, kind: Kind) -> Result<(), Gone> {
        self.items.push((kind, String::new()));
        let item = self.head.item(kind, "in_progress", None);
        self.send("response.output_item.added", json!({"output_index": self.items.len() - 1, "item": item})).await?;
        let mut added = self.place(kind);
        added["part"] = kind.part("");
        self.send("response.content_part.added", added).await
    }

    /// Ends the item that is being written, if there is one, before its time or not.
    async fn end(&mut self, cut: bool) -> Result<(), Gone> {
        let Some((kind, text)) = self.items.last().cloned() else { return Ok(()) };
        let mut done = self.place(kind);
        done["text"] = text.clone().into();
        if kind == Kind::Message {
            done["logprobs"] = json!([]);
        }
        self.send(&format!("response.{}.done", kind.text()), done).await?;
        let mut done = self.place(kind);
        done["part"] = kind.part(&text);
        self.send("response.content_part.done", done).await?;
        let status = if cut { "incomplete" } else { "completed" };
        let item = self.head.item(kind, status, Some(&text));
        self.send("response.output_item.done", json!({"output_index": self.items.len() - 1, "item": item})).await
    }

    async fn event(&mut self, happened: Happened) -> Result<(), Gone> {
        let said = match happened {
            Happened::Prompt { cached_tokens, .. } => {
                self.usage.cached = cached_tokens;
                return Ok(());
            }
            Happened::Token { text, .. } => {
                self.usage.completion += 1;
                self.thinking.token(&text)
            }
            Happened::End { text, reason, .. } => {
                self.cut = reason == FinishReason::Length;
                self.thinking.end(&text)
            }
            Happened::Failed(_) => return Ok(()),
        };
        self.usage.reasoning = self.thinking.tokens();
        for (kind, text) in [(Kind::Reasoning, said.reasoning), (Kind::Message, said.content)] {
            if !text.is_empty() {
                self.text(kind, &text).await?;
            }
        }
        Ok(())
    }

    /// Adds text to an item of this kind, which begins where there is none.
    async fn text(&mut self, kind: Kind, text: &str) -> Result<(), Gone> {
        if self.items.last().is_none_or(|i| i.0 != kind) {
            // thoughts behind which nothing was said were cut
            self.end(self.cut && text.is_empty()).await?;
            self.begin(kind).await?;
        }
        if text.is_empty() {
            return Ok(());
        }
        self.items.iter_mut().for_each(|i| {
            if i.0 == kind {
                i.1.push_str(text)
            }
        });
        let mut delta = self.place(kind);
        delta["delta"] = text.into();
        if kind == Kind::Message {
            delta["logprobs"] = json!([]);
        }
        self.send(&format!("response.{}.delta", kind.text()), delta).await
    }
}
