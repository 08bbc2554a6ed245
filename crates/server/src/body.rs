//! Reading a request's body: its size, its time, its type, its JSON.

use crate::app::App;
use crate::error::ApiError;
use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::Request;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE};
use serde_json::Value;

/// The JSON in a body.
pub(crate) async fn json(app: &App, request: Request<Body>) -> Result<Value, ApiError> {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let media = kind.and_then(|k| k.split(';').next()).map(|k| k.trim().to_ascii_lowercase());
    if !media.as_deref().is_some_and(|m| m == "application/json" || (m.starts_with("application/") && m.ends_with("+json"))) {
        return Err(ApiError::media_type(kind));
    }
    let bytes = read(app, request).await?;
    serde_json::from_slice(&bytes).map_err(|e| ApiError::bad_request(format!("the body is no valid JSON: {e}")))
}

/// The whole body.
async fn read(app: &App, request: Request<Body>) -> Result<Bytes, ApiError> {
    let limit = app.config.max_body;
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|n| n > limit as u64) {
        return Err(ApiError::too_large(limit));
    }
    let whole = Limited::new(request.into_body(), limit).collect();
    match tokio::time::timeout(app.config.body_timeout, whole).await {
        Err(_) => Err(ApiError::slow_body()),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(e)) if e.downcast_ref::<LengthLimitError>().is_some() => Err(ApiError::too_large(limit)),
        Ok(Err(e)) => Err(ApiError::bad_request(format!("the body ended early: {e}"))),
    }
}
