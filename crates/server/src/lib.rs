//! The OpenAI wire: everything of Billfish that knows HTTP.
//!
//! [`Server`] binds an address and answers on it with an [`Engine`](billfish_engine::Engine), which runs in a thread of its
//! own; both sides talk through channels. [`Control`] ends it, at once or after the running requests.
//!
//! The crate deliberately knows no tensor and no file of a model, reads no environment and prints nothing: what is logged
//! goes to a function that the caller gives.
#![forbid(unsafe_code)]

mod answer;
mod app;
mod auth;
mod body;
mod chat;
mod chunks;
mod completions;
mod config;
mod control;
mod cors;
mod error;
mod fields;
mod gate;
mod grammar;
mod ids;
mod listen;
mod logprobs;
mod metrics;
mod models;
mod ops;
mod page;
mod params;
mod reasoning;
mod record;
mod responses;
mod router;
mod server;
mod sse;
mod tokens;
mod tools;
mod worker;

pub use app::Log;
pub use config::{Config, Inspection, ServedModel};
pub use control::{Control, Phase};
pub use error::ServerError;
pub use page::{Page, page};
pub use record::LogLine;
pub use server::Server;
pub use tools::Dialect as ToolDialect;
