//! What is written down about each request: one line when its answer has ended.

use crate::app::App;
use crate::control::Busy;
use crate::error::ApiError;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use serde_json::{Value, json};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

/// What is known about a request when its answer has ended.
#[derive(Clone, Debug, Default)]
pub struct LogLine {
    /// The request's name.
    pub request_id: String,
    /// Method and path, without the query.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The address that asked.
    pub client: String,
    /// The status of the answer.
    pub status: u16,
    /// Seconds from the head of the request to the last byte of the answer.
    pub seconds: f64,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// Whether the client took all of the answer.
    pub complete: bool,
    /// Tokens of the prompt, if there was one.
    pub prompt_tokens: Option<usize>,
    /// Tokens generated.
    pub completion_tokens: Option<usize>,
    /// Why it ended, or what went wrong.
    pub note: Option<String>,
}

impl LogLine {
    /// As `key=value` pairs on a line.
    pub fn logfmt(&self) -> String {
        let mut out = format!(
            "request_id={} client={} method={} path={} status={} seconds={:.6} bytes={} complete={}",
            self.request_id,
            self.client,
            quoted(&self.method),
            quoted(&self.path),
            self.status,
            self.seconds,
            self.bytes,
            self.complete
        );
        out.extend(self.prompt_tokens.map(|n| format!(" prompt_tokens={n}")));
        out.extend(self.completion_tokens.map(|n| format!(" completion_tokens={n}")));
        out.extend(self.note.as_ref().map(|n| format!(" note={}", quoted(n))));
        out
    }
}

impl LogLine {
    /// As a JSON object on a line.
    pub fn json(&self) -> Value {
        json!({
            "request_id": self.request_id,
            "client": self.client,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "seconds": self.seconds,
            "bytes": self.bytes,
            "complete": self.complete,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "note": self.note,
        })
    }
}

/// A value as one word: in quotes if it must be. Control characters are escaped, so that a client cannot write lines.
fn quoted(text: &str) -> String {
    match text.bytes().all(|b| b.is_ascii_graphic() && !b"\"=\\".contains(&b)) && !text.is_empty() {
        true => text.to_owned(),
        false => format!("{text:?}"),
    }
}

/// A request's line while it is being written. Handlers add what they learn.
#[derive(Clone)]
pub(crate) struct Record(Arc<Inner>);

struct Inner {
    line: Mutex<LogLine>,
    begin: Instant,
    app: Arc<App>,
    _busy: Option<Busy>,
}

impl Record {
    pub fn new(app: &Arc<App>, line: LogLine, busy: Option<Busy>) -> Record {
        Record(Arc::new(Inner { line: Mutex::new(line), begin: Instant::now(), app: Arc::clone(app), _busy: busy }))
    }

    pub fn note(&self, change: impl FnOnce(&mut LogLine)) {
        change(&mut self.0.line.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn prompt(&self, tokens: usize) {
        self.note(|line| line.prompt_tokens = Some(tokens));
    }

    pub fn completion(&self, tokens: usize) {
        self.note(|line| line.completion_tokens = Some(tokens));
    }

    pub fn failed(&self, error: &ApiError) {
        self.note(|line| line.note = Some(error.message.clone()));
    }

    /// An answer, or the error that stands in its place.
    pub async fn answered(&self, answer: impl Future<Output = Result<Response, ApiError>>) -> Response {
        answer.await.unwrap_or_else(|e| {
            self.failed(&e);
            e.into_response()
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.seconds = self.begin.elapsed().as_secs_f64();
        self.app.log(&line);
    }
}

/// The body of an answer, which keeps the request's record alive until its end.
pub(crate) struct Recorded {
    pub body: axum::body::Body,
    pub record: Record,
}

impl Body for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(f))) => {
                let bytes = f.data_ref().map_or(0, |d| d.len() as u64);
                let end = self.body.is_end_stream();
                self.record.note(|line| {
                    line.bytes += bytes;
                    line.complete |= end;
                });
            }
            Poll::Ready(None) => self.record.note(|line| line.complete = true),
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_cannot_write_lines() {
        let line = LogLine { path: "/a\n b=\"c\"".into(), ..LogLine::default() };
        assert!(!line.logfmt().contains('\n') && line.logfmt().contains(r#"path="/a\n b=\"c\"""#), "{}", line.logfmt());
    }
}
