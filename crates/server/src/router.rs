//! Which function answers which path.

use crate::app::App;
use crate::error::ApiError;
use crate::{chat, completions, models, ops, responses, tokens};
use axum::Router;
use axum::routing::{get, post};
use hyper::Uri;
use std::sync::Arc;

/// The routes of [`ops::ROUTES`].
pub(crate) fn router(app: Arc<App>) -> Router {
    let get_only = || async { ApiError::method("GET, HEAD") };
    let post_only = || async { ApiError::method("POST") };
    Router::new()
        .route("/", get(ops::index).fallback(get_only))
        .route("/health", get(ops::health).fallback(get_only))
        .route("/live", get(ops::live).fallback(get_only))
        .route("/ready", get(ops::health).fallback(get_only))
        .route("/version", get(ops::version).fallback(get_only))
        .route("/metrics", get(ops::metrics).fallback(get_only))
        .route("/openapi.json", get(ops::openapi).fallback(get_only))
        .route("/tokenize", post(tokens::tokenize).fallback(post_only))
        .route("/detokenize", post(tokens::detokenize).fallback(post_only))
        .route("/v1/models", get(models::list).fallback(get_only))
        .route("/v1/models/{id}", get(models::one).fallback(get_only))
        .route("/v1/chat/completions", post(chat::chat).fallback(post_only))
        .route("/v1/completions", post(completions::completions).fallback(post_only))
        .route("/v1/responses", post(responses::responses).fallback(post_only))
        .route("/v1/inspect", get(ops::inspect).fallback(get_only))
        .fallback(|uri: Uri| async move { ApiError::no_route(uri.path()) })
        .with_state(app)
}
