//! Server-sent events.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::Frame;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde_json::Value;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Events that may wait for the client to take them; then the writer waits too.
const WAITING: usize = 64;

/// Where events are written to.
#[derive(Clone)]
pub(crate) struct Events(Sender<Bytes>);

/// The client is gone.
pub(crate) struct Gone;

impl Events {
    async fn send(&self, text: String) -> Result<(), Gone> {
        self.0.send(Bytes::from(text)).await.map_err(|_| Gone)
    }

    pub async fn data(&self, value: &Value) -> Result<(), Gone> {
        self.send(format!("data: {value}\n\n")).await
    }

    /// An event that has a name.
    pub async fn named(&self, name: &str, value: &Value) -> Result<(), Gone> {
        self.send(format!("event: {name}\ndata: {value}\n\n")).await
    }

    pub async fn done(&self) -> Result<(), Gone> {
        self.send("data: [DONE]\n\n".into()).await
    }

    /// A comment, which clients pass over: the connection is alive.
    pub async fn comment(&self) -> Result<(), Gone> {
        self.send(": keep-alive\n\n".into()).await
    }

    /// Returns when the client is gone.
    pub async fn gone(&self) {
        self.0.closed().await;
    }
}

/// A stream, and the answer that carries it.
pub(crate) fn stream() -> (Events, Response) {
    let (sender, receiver) = channel(WAITING);
    let mut response = Response::new(Body::new(Stream(receiver)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // proxies that collect answers before they pass them on are asked not to
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    (Events(sender), response)
}

struct Stream(Receiver<Bytes>);

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|b| Ok(Frame::data(b))))
    }
}
