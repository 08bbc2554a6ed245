//! An answer as a stream of chunks, which chats and completions have alike.

use crate::answer::{Heard, Usage, heard};
use crate::app::App;
use crate::chat::Head;
use crate::error::ApiError;
use crate::params::StreamOptions;
use crate::record::Record;
use crate::sse::{self, Events, Gone};
use crate::worker::Job;
use axum::response::Response;
use billfish_engine::{Happened, Submission};
use serde_json::{Value, json};
use std::sync::Arc;

/// What stands in the chunks of one kind of answer, beside the head and the usage: objects whose fields are added to those.
pub(crate) trait Chunks: Send + 'static {
    /// The kind of object that a chunk is.
    const OBJECT: &'static str;

    /// Before anything has happened.
    fn begin(&mut self) -> Vec<Value>;

    /// When something has happened to a prompt.
    fn event(&mut self, app: &App, prompt: usize, happened: Happened) -> Vec<Value>;

    /// Tokens of thoughts so far.
    fn reasoning(&self) -> usize {
        0
    }
}

/// Hands the requests in and starts the stream. What is refused at once is an error with a status of its own.
pub(crate) async fn start<C: Chunks>(
    app: Arc<App>,
    submissions: Vec<Submission>,
    options: StreamOptions,
    head: Head,
    record: Record,
    chunks: C,
) -> Result<Response, ApiError> {
    let usage = Usage { prompt: submissions.iter().map(|s| s.prompt.len()).sum(), ..Usage::default() };
    let job = app.worker.submit(submissions).await?;
    let (events, response) = sse::stream();
    tokio::spawn(Writer { app, events, options, head, usage, record, chunks }.run(job));
    Ok(response)
}

struct Writer<C> {
    app: Arc<App>,
    events: Events,
    options: StreamOptions,
    head: Head,
    usage: Usage,
    record: Record,
    chunks: C,
}

impl<C: Chunks> Writer<C> {
    async fn run(mut self, job: Job) {
        // a client that left is no error
        let _ = self.write(job).await;
        self.record.completion(self.usage.completion);
    }

    async fn write(&mut self, mut job: Job) -> Result<(), Gone> {
        let first = self.chunks.begin();
        self.send(first).await?;
        loop {
            match heard(&self.app, &mut job, &self.events).await {
                Heard::Gone => return Err(Gone),
                Heard::End => break,
                Heard::Failed(e) => {
                    self.record.failed(&e);
                    self.events.data(&e.json()).await?;
                    return self.events.done().await;
                }
                Heard::Event((prompt, happened)) => {
                    match &happened {
                        Happened::Prompt { cached_tokens, .. } => self.usage.cached += cached_tokens,
                        Happened::Token { .. } => self.usage.completion += 1,
                        _ => {}
                    }
                    let chunks = self.chunks.event(&self.app, prompt, happened);
                    self.usage.reasoning = self.chunks.reasoning();
                    self.send(chunks).await?;
                }
            }
        }
        if self.options.usage {
            let mut chunk = self.head.object(C::OBJECT);
            chunk["choices"] = json!([]);
            chunk["usage"] = self.usage.json();
            self.events.data(&chunk).await?;
        }
        self.events.done().await
    }

    async fn send(&mut self, chunks: Vec<Value>) -> Result<(), Gone> {
        for chunk in chunks {
            let mut out = self.head.object(C::OBJECT);
            if let (Value::Object(out), Value::Object(chunk)) = (&mut out, chunk) {
                out.extend(chunk);
            }
            if self.options.continuous {
                out["usage"] = self.usage.json();
            } else if self.options.usage {
                out["usage"] = Value::Null;
            }
            self.events.data(&out).await?;
        }
        Ok(())
    }
}
