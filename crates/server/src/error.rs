//! Errors: the one of the library, and those that clients see.

use axum::response::{IntoResponse, Response};
use billfish_engine::EngineError;
use http_body_util::Full;
use hyper::StatusCode;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde_json::{Value, json};

/// Why the server cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A setting has a value that cannot work.
    #[error("{name}: expected {expected}, found {found}; {remedy}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The address cannot be listened on.
    #[error("{address}: expected an address to listen on, found: {source}; choose another --host or --port")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system refuses something that the server needs.
    #[error("{what}: {source}; check the limits of this process")]
    System {
        /// What is needed.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text side refuses the chat template.
    #[error(transparent)]
    Text(#[from] billfish_text::TextError),
    /// The engine stopped.
    #[error("the engine stopped: {found}; start the server again, and report what it said")]
    Engine {
        /// What it said last.
        found: String,
    },
}

/// An answer that is an error, in OpenAI's shape.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    pub message: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// Clients are asked to come back after so many seconds.
const RETRY_SECONDS: u32 = 1;

/// Characters of a path and of a message at most.
const LONGEST_PARAM: usize = 200;
const LONGEST_MESSAGE: usize = 1000;

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> ApiError {
        ApiError { status, kind, code, param: None, message: message.into(), headers: vec![] }
    }

    fn with(mut self, name: HeaderName, value: impl TryInto<HeaderValue>) -> ApiError {
        // values are ASCII made here
        self.headers.extend(value.try_into().ok().map(|v| (name, v)));
        self
    }

    /// A request that cannot be understood as a whole.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", None, message)
    }

    /// A field with a value that cannot be used; `param` is its path.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        // a client's own words are repeated only so far
        let (param, message): (String, String) = (param.into(), message.into());
        let (param, message) = (param.chars().take(LONGEST_PARAM).collect(), message.chars().take(LONGEST_MESSAGE).collect::<String>());
        ApiError { param: Some(param), ..ApiError::bad_request(message) }
    }

    /// A field that this server knows and does not do.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError { code: Some("unsupported_parameter"), ..ApiError::field(param, message) }
    }

    /// More tokens than the model takes.
    pub fn context(param: &str, message: impl Into<String>) -> ApiError {
        ApiError { code: Some("context_length_exceeded"), ..ApiError::field(param, message) }
    }

    pub fn model_not_found(name: &str, served: &[String]) -> ApiError {
        let name: String = name.chars().take(200).collect();
        let message = format!("the model `{name}` does not exist here; this server has {}", served.join(", "));
        let error = ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("model_not_found"), message);
        ApiError { param: Some("model".into()), ..error }
    }

    pub fn no_route(path: &str) -> ApiError {
        let path: String = path.chars().take(200).collect();
        let message = format!("there is nothing at {path}; /openapi.json lists what there is");
        ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("not_found"), message)
    }

    pub fn method(allowed: &'static str) -> ApiError {
        let message = format!("this path takes {allowed} only");
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", Some("method_not_allowed"), message).with(ALLOW, allowed)
    }

    pub fn too_large(limit: usize) -> ApiError {
        let message = format!("the body is larger than {limit} bytes; send less, or raise --max-body-bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", Some("body_too_large"), message)
    }

    pub fn media_type(found: Option<&str>) -> ApiError {
        let found = found.map_or("none".into(), |f| f.chars().take(100).collect::<String>());
        let message = format!("expected Content-Type application/json, found {found}");
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", Some("unsupported_media_type"), message)
    }

    /// No key, or a wrong one.
    pub fn unauthorized() -> ApiError {
        let message = "a valid API key is needed: send it as `Authorization: Bearer KEY`";
        ApiError::new(StatusCode::UNAUTHORIZED, "invalid_request_error", Some("invalid_api_key"), message).with(WWW_AUTHENTICATE, "Bearer")
    }

    pub fn origin() -> ApiError {
        let message = "this origin is not allowed; start the server with --allowed-origins";
        ApiError::new(StatusCode::FORBIDDEN, "invalid_request_error", Some("origin_not_allowed"), message)
    }

    pub fn busy(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("queue_full"), message).with(RETRY_AFTER, RETRY_SECONDS)
    }

    pub fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", Some("unavailable"), message).with(RETRY_AFTER, RETRY_SECONDS)
    }

    /// The body did not arrive in time.
    pub fn slow_body() -> ApiError {
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout_error", Some("timeout"), "the body did not arrive in time")
    }

    /// The answer was not ready in time.
    pub fn deadline() -> ApiError {
        let message = "the request's time was over before its answer was ready (--request-timeout)";
        ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", Some("timeout"), message)
    }

    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", Some("internal_error"), message)
    }

    /// The object that clients read.
    pub fn json(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl From<billfish_text::TextError> for ApiError {
    fn from(e: billfish_text::TextError) -> ApiError {
        ApiError::bad_request(e.to_string())
    }
}

impl From<EngineError> for ApiError {
    fn from(e: EngineError) -> ApiError {
        match e {
            EngineError::EmptyPrompt => ApiError::bad_request(e.to_string()),
            EngineError::Sampling(e) => ApiError::bad_request(e.to_string()),
            EngineError::Text(e) => ApiError::bad_request(e.to_string()),
            EngineError::Parameter { name, .. } => ApiError::field(name, e.to_string()),
            EngineError::TooLong { .. } => ApiError::context("prompt", e.to_string()),
            EngineError::Constraint(_) => ApiError::bad_request(e.to_string()),
            EngineError::QueueFull { .. } => ApiError::busy(e.to_string()),
            e => ApiError::internal(e.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Full::from(self.json().to_string());
        let mut response = Response::new(axum::body::Body::new(body));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().extend(self.headers);
        response
    }
}
