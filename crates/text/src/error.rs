//! Errors of the text crate: each names the file, what was expected, what was found and what to do.

/// Why text could not become tokens, or tokens text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// A file is not the JSON it should be.
    #[error(
        "{file}, line {line}, column {column}: expected {expected}, found: {found}; get the file again from where the model was published"
    )]
    Json {
        /// The file.
        file: String,
        /// Line of the offence, from 1 (0: unknown).
        line: usize,
        /// Column of the offence, from 1 (0: unknown).
        column: usize,
        /// What the file should hold.
        expected: &'static str,
        /// What the parser said.
        found: String,
    },
    /// A key of a configuration file has a value of the wrong kind.
    #[error("{file}, key `{key}`: expected {expected}, found {found}; correct or remove the key")]
    Key {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// The legal values in words.
        expected: &'static str,
        /// The value found.
        found: String,
    },
    /// A token is needed by name but has no id.
    #[error("{file}, key `{key}`: expected a token of tokenizer.json, found `{token}`, which has no id; correct the key or tokenizer.json")]
    UnknownToken {
        /// The file that names the token.
        file: String,
        /// The key that names it.
        key: String,
        /// The token.
        token: String,
    },
    /// The tokenizer refused a text.
    #[error("{file}: expected text that the tokenizer can encode, found: {found}; check that tokenizer.json is complete")]
    Encode {
        /// The tokenizer's file.
        file: String,
        /// What the tokenizer said.
        found: String,
    },
    /// The tokenizer refused a sequence of ids.
    #[error("{file}: expected ids that the tokenizer can decode, found: {found}; check that tokenizer.json is complete")]
    Decode {
        /// The tokenizer's file.
        file: String,
        /// What the tokenizer said.
        found: String,
    },
    /// No chat template of this name.
    #[error("{file}: expected a chat template named `{wanted}`, found {found}; give a template, or send a plain prompt")]
    NoTemplate {
        /// The model folder.
        file: String,
        /// The template asked for.
        wanted: String,
        /// The templates there are.
        found: String,
    },
    /// A chat template is no valid template.
    #[error("{file}, line {line}: expected a Jinja chat template, found: {found}; correct the template or give another one")]
    TemplateSyntax {
        /// The template's file.
        file: String,
        /// Line of the offence, from 1 (0: unknown).
        line: usize,
        /// What is wrong.
        found: String,
    },
    /// A chat template failed on these messages.
    #[error("{file}, line {line}: expected messages that the chat template can render, found: {found}; check the messages and variables")]
    TemplateRender {
        /// The template's file.
        file: String,
        /// Line of the failure, from 1 (0: unknown).
        line: usize,
        /// What went wrong.
        found: String,
    },
    /// A chat template called `raise_exception`: the model's author refuses these messages.
    #[error("{file}: the model's chat template refuses these messages: {message}")]
    TemplateRefused {
        /// The template's file.
        file: String,
        /// The message of the template, unchanged.
        message: String,
    },
    /// A stop string that would match everywhere.
    #[error("stop string {index}: expected at least one character, found an empty string; remove it")]
    EmptyStop {
        /// Its place in the list.
        index: usize,
    },
}
