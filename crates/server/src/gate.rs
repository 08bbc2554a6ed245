//! What every request passes before its route: name, log, origin, shutdown, key.

use crate::app::App;
use crate::control::Phase;
use crate::cors::{is_preflight, preflight};
use crate::error::ApiError;
use crate::ids;
use crate::ops;
use crate::record::{LogLine, Record, Recorded};
use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Request, StatusCode};
use std::net::SocketAddr;
use std::sync::Arc;
use tower_service::Service;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Answers a request.
pub(crate) async fn answer(app: Arc<App>, routes: Router, client: SocketAddr, mut request: Request<Body>) -> Response {
    let id = ids::from_client(request.headers()).unwrap_or_else(ids::unique);
    let path = request.uri().path().to_owned();
    let line = LogLine {
        request_id: id.clone(),
        method: request.method().to_string(),
        path: path.chars().take(256).collect(),
        client: client.to_string(),
        ..LogLine::default()
    };
    let alive = ops::is_liveness(&path);
    // a question about health does not keep the server from ending
    let record = Record::new(&app, line, (!alive).then(|| app.control.busy()));
    request.extensions_mut().insert(record.clone());
    let allowed = app.origins.allowed(request.headers());
    let mut response = match admitted(&app, &request, alive) {
        Some(early) => early,
        None => match run(routes, request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
    };
    let status = response.status().as_u16();
    record.note(|line| line.status = status);
    app.metrics.answered(ops::label(&path), status);
    app.origins.mark(allowed, response.headers_mut());
    if app.control.phase() != Phase::Serving {
        response.headers_mut().insert(hyper::header::CONNECTION, HeaderValue::from_static("close"));
    }
    // an id is plain ASCII, whoever made it
    response.headers_mut().extend(HeaderValue::from_str(&id).ok().map(|v| (REQUEST_ID, v)));
    response.map(|body| Body::new(Recorded { body, record }))
}

async fn run(mut routes: Router, request: Request<Body>) -> Result<Response, std::convert::Infallible> {
    routes.call(request).await
}

/// The answer to a request that does not get to its route.
fn admitted(app: &App, request: &Request<Body>, alive: bool) -> Option<Response> {
    if is_preflight(request.method(), request.headers()) {
        if app.origins.allowed(request.headers()).is_none() {
            return Some(ApiError::origin().into_response());
        }
        let mut response = StatusCode::NO_CONTENT.into_response();
        preflight(response.headers_mut());
        return Some(response);
    }
    if alive {
        return None;
    }
    if !app.keys.admit(request.headers()) {
        return Some(ops::unauthorized(request));
    }
    if app.control.phase() != Phase::Serving {
        return Some(ApiError::unavailable("the server is shutting down").into_response());
    }
    None
}
