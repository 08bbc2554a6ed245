//! Text in, text out: everything of Billfish that deals with characters rather than numbers.
//!
//! - [`Tokenizer`]: text to token ids and back, with the begin/end-of-text rules of a model folder.
//! - [`Detokenizer`]: ids as they are generated to text as soon as it is final.
//! - [`StopMatcher`]: stop strings in a stream, without leaking the beginning of one.
//! - [`ChatTemplate`]: messages to a prompt, by the Jinja template the model came with.
//!
//! The crate deliberately opens no file (it is handed bytes), prints nothing, and knows no tensor and no model.
//!
//! ```
//! use billfish_text::StopMatcher;
//!
//! let mut stop = StopMatcher::new(["</s>"])?;
//! assert_eq!(stop.push("Hello <").text, "Hello ");
//! assert_eq!(stop.push("b>").text, "<b>");
//! # Ok::<(), billfish_text::TextError>(())
//! ```
#![forbid(unsafe_code)]

mod chat;
mod detokenize;
mod error;
mod files;
mod pieces;
mod python;
mod stop;
mod strftime;
mod tojson;
mod tokenizer;

pub use chat::{ChatTemplate, Message};
pub use detokenize::Detokenizer;
pub use error::TextError;
pub use files::TokenizerFiles;
pub use stop::{StopMatcher, StopStep};
pub use strftime::rfc3339;
pub use tokenizer::Tokenizer;
