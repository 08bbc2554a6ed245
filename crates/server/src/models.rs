//! `/v1/models`.

use crate::app::App;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;

fn model(app: &App, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": app.created,
        "owned_by": "billfish",
        "root": app.model.root,
        "parent": null,
        "max_model_len": app.model.max_model_len,
    })
}

pub(crate) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    let data: Vec<Value> = app.model.names.iter().map(|n| model(&app, n)).collect();
    Json(json!({"object": "list", "data": data}))
}

pub(crate) async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    match app.named(Some(&id)) {
        Ok(()) => Json(model(&app, &id)).into_response(),
        Err(e) => e.into_response(),
    }
}
