//! Routes for those who run the server: health, version, metrics, and the page.

use crate::app::App;
use crate::control::Phase;
use crate::error::ApiError;
use crate::page::page;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hyper::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Request, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;

/// Paths that need no key.
const LIVENESS: [&str; 3] = ["/health", "/live", "/ready"];

/// Every route, with the methods that it takes.
pub(crate) const ROUTES: [(&str, &str); 15] = [
    ("/", "GET"),
    ("/health", "GET"),
    ("/live", "GET"),
    ("/ready", "GET"),
    ("/version", "GET"),
    ("/metrics", "GET"),
    ("/openapi.json", "GET"),
    ("/tokenize", "POST"),
    ("/detokenize", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{id}", "GET"),
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/responses", "POST"),
    ("/v1/inspect", "GET"),
];

pub(crate) fn is_liveness(path: &str) -> bool {
    LIVENESS.contains(&path)
}

/// A path as the label of a number: that of the route, so that clients cannot make up labels.
pub(crate) fn label(path: &str) -> &'static str {
    let known = ROUTES.iter().map(|(p, _)| *p).find(|p| *p == path);
    known.unwrap_or(if path.starts_with("/v1/models/") { "/v1/models/{id}" } else { "other" })
}

/// The process is there.
pub(crate) async fn live() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// It would answer a request.
pub(crate) async fn health(State(app): State<Arc<App>>) -> Response {
    if let Some(why) = app.worker.failed() {
        return ApiError::unavailable(format!("the engine has stopped: {why}")).into_response();
    }
    match app.control.phase() {
        Phase::Serving => live().await.into_response(),
        _ => ApiError::unavailable("the server is shutting down").into_response(),
    }
}

pub(crate) async fn version(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"version": app.config.version}))
}

pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let text = app.metrics.text(&app.worker.stats());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// The description of the API.
pub(crate) const OPENAPI: &str = include_str!("../openapi.json");

pub(crate) async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

pub(crate) async fn index() -> Response {
    let page = page();
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, &page.csp),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, page.html.as_str()).into_response()
}

/// The answer without a key. A browser that opens `/` gets the page with it: it holds no data and asks for the key.
pub(crate) fn unauthorized(request: &Request<Body>) -> Response {
    let accepts = request.headers().get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if request.uri().path() != "/" || request.method() != hyper::Method::GET || !accepts.contains("text/html") {
        return ApiError::unauthorized().into_response();
    }
    let page = page();
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, page.csp.as_str()),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
        (WWW_AUTHENTICATE, "Bearer"),
    ];
    (StatusCode::UNAUTHORIZED, headers, page.html.as_str()).into_response()
}

/// What the program that runs the server can say about the model: looked at once, at the first question.
pub(crate) async fn inspect(State(app): State<Arc<App>>) -> Response {
    let look = || async {
        let app = Arc::clone(&app);
        let looked = tokio::task::spawn_blocking(move || app.model.inspection.as_ref().map_or(Ok(json!({})), |look| look())).await;
        looked.unwrap_or_else(|_| Err("looking at the model failed".into()))
    };
    match app.inspection.get_or_init(look).await {
        Err(why) => ApiError::internal(why.clone()).into_response(),
        Ok(found) => {
            let s = &app.model.sampling;
            Json(json!({
                "object": "inspect",
                "inspect": found.get("inspect"),
                "doctor": found.get("doctor"),
                "defaults": {
                    "temperature": s.temperature,
                    "top_p": s.top_p,
                    "top_k": s.top_k,
                    "min_p": s.min_p,
                    "repetition_penalty": s.repetition_penalty,
                    "max_tokens": null,
                    "max_model_len": app.model.max_model_len,
                },
            }))
            .into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::{Field, Rule};
    use crate::{chat, completions, params, responses, tokens};
    use std::collections::BTreeSet;

    fn document() -> Value {
        serde_json::from_str(OPENAPI).unwrap()
    }

    #[test]
    fn every_route_is_described_and_no_other() {
        let document = document();
        let described: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(p, methods)| methods.as_object().unwrap().keys().map(|m| (p.clone(), m.to_ascii_uppercase())))
            .collect();
        let routes: BTreeSet<(String, String)> = ROUTES.iter().map(|(p, m)| ((*p).into(), (*m).into())).collect();
        assert_eq!(described, routes);
    }

    #[test]
    fn every_field_is_described_and_no_other() {
        let document = document();
        let check = |schema: &Value, tables: &[&[Field]]| {
            let described: BTreeSet<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
            let fields = tables.iter().flat_map(|t| t.iter()).filter(|(_, rule)| !matches!(rule, Rule::Refused(_)));
            assert_eq!(described, fields.map(|(name, _)| *name).collect());
        };
        let schemas = &document["components"]["schemas"];
        check(&schemas["ChatRequest"], &[params::SHARED, chat::FIELDS]);
        check(&schemas["CompletionRequest"], &[params::SHARED, completions::FIELDS]);
        check(&schemas["ResponseRequest"], &[responses::FIELDS]);
        check(&schemas["TokenizeRequest"]["anyOf"][0], &[tokens::TEXT]);
        check(&schemas["TokenizeRequest"]["anyOf"][1], &[tokens::STRINGS]);
        check(&schemas["DetokenizeRequest"], &[tokens::TOKENS]);
    }

    #[test]
    fn references_lead_somewhere() {
        let document = document();
        fn walk(v: &Value, document: &Value) {
            match v {
                Value::Object(map) => {
                    if let Some(to) = map.get("$ref").and_then(Value::as_str) {
                        assert!(document.pointer(to.trim_start_matches('#')).is_some(), "{to}");
                    }
                    map.values().for_each(|v| walk(v, document));
                }
                Value::Array(list) => list.iter().for_each(|v| walk(v, document)),
                _ => {}
            }
        }
        walk(&document, &document);
    }
}
