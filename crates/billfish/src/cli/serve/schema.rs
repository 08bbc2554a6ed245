//! Every setting of the server, once: the flag, the variable of the environment and the key of the file all come from here.

use super::super::options::{ActivationsArg, HeadArg, KvArg, ZerosArg};
use super::super::size;
use billfish_server::ToolDialect;
use clap::ValueEnum;

/// What kind of value a setting has.
#[derive(Clone, Copy)]
pub enum Kind {
    Text,
    /// Several texts; commas part them in the environment.
    List,
    /// True or false; the opposite flag has this name.
    Flag(&'static str),
    Count {
        least: u64,
        most: u64,
    },
    /// Bytes.
    Size,
    /// Seconds, 0 for never.
    Seconds,
    /// One of these.
    Choice(fn() -> Vec<String>),
}

/// A setting.
pub struct Setting {
    pub name: &'static str,
    pub kind: Kind,
    /// What stands for the value in help.
    pub value: &'static str,
    pub default: Option<&'static str>,
    pub help: &'static str,
    /// Not to be printed.
    pub secret: bool,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    List(Vec<String>),
    Flag(bool),
    Number(u64),
    Seconds(f64),
}

impl Setting {
    const fn new(name: &'static str, kind: Kind, value: &'static str, default: Option<&'static str>, help: &'static str) -> Setting {
        Setting { name, kind, value, default, help, secret: false }
    }

    /// The variable of the environment that sets it.
    pub fn variable(&self) -> String {
        format!("BILLFISH_{}", self.name.replace('-', "_").to_ascii_uppercase())
    }

    /// Reads a text.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        match self.kind {
            Kind::Text if text.is_empty() => Err("expected a text, found an empty one".into()),
            Kind::Text => Ok(Value::Text(text.into())),
            Kind::List => Ok(Value::List(text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect())),
            Kind::Flag(_) => match text {
                "true" | "1" => Ok(Value::Flag(true)),
                "false" | "0" => Ok(Value::Flag(false)),
                _ => Err(format!("expected true or false, found `{text}`")),
            },
            Kind::Count { least, most } => match text.parse::<u64>() {
                Ok(n) if (least..=most).contains(&n) => Ok(Value::Number(n)),
                _ if most == u64::MAX => Err(format!("expected a number of at least {least}, found `{text}`")),
                _ => Err(format!("expected a number from {least} to {most}, found `{text}`")),
            },
            Kind::Size => size::bytes(text).map(Value::Number),
            Kind::Seconds => match text.parse::<f64>() {
                Ok(s) if (0.0..=1e6).contains(&s) => Ok(Value::Seconds(s)),
                _ => Err(format!("expected seconds from 0 to 1000000, found `{text}`")),
            },
            Kind::Choice(names) => {
                let names = names();
                match names.iter().any(|n| n == text) {
                    true => Ok(Value::Text(text.into())),
                    false => Err(format!("expected one of {}, found `{text}`", names.join(", "))),
                }
            }
        }
    }

    /// Reads a value of a file.
    pub fn read(&self, value: &toml::Value) -> Result<Value, String> {
        let wrong = || Err(format!("expected {}, found {value:?}", self.words()));
        match (self.kind, value) {
            (Kind::List, toml::Value::Array(list)) => {
                let texts = list.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
                texts.map_or_else(wrong, |t| Ok(Value::List(t)))
            }
            (Kind::List, toml::Value::String(text)) => Ok(Value::List(vec![text.clone()])),
            (Kind::Flag(_), toml::Value::Boolean(b)) => Ok(Value::Flag(*b)),
            (Kind::Count { .. } | Kind::Size | Kind::Seconds, toml::Value::Integer(n)) => self.parse(&n.to_string()),
            (Kind::Seconds, toml::Value::Float(s)) => self.parse(&s.to_string()),
            (Kind::Text | Kind::Choice(_) | Kind::Size, toml::Value::String(text)) => self.parse(text),
            _ => wrong(),
        }
    }

    fn words(&self) -> &'static str {
        match self.kind {
            Kind::Text | Kind::Choice(_) => "a text",
            Kind::List => "an array of texts",
            Kind::Flag(_) => "true or false",
            Kind::Count { .. } => "a number",
            Kind::Size => "a size",
            Kind::Seconds => "a number of seconds",
        }
    }
}

const ANY: Kind = Kind::Count { least: 1, most: u64::MAX };
const ANY_OR_NONE: Kind = Kind::Count { least: 0, most: u64::MAX };

/// The names of an option that has a few values.
fn names<T: ValueEnum>() -> Vec<String> {
    T::value_variants().iter().filter_map(|v| Some(v.to_possible_value()?.get_name().to_owned())).collect()
}

fn parsers() -> Vec<String> {
    ["auto"].into_iter().chain(ToolDialect::NAMES.iter().map(|(n, _)| *n)).map(str::to_owned).collect()
}

fn logs() -> Vec<String> {
    ["logfmt", "json", "none"].map(str::to_owned).into()
}

fn auto_or_none() -> Vec<String> {
    ["auto", "none"].map(str::to_owned).into()
}

/// All settings.
pub const SETTINGS: &[Setting] = &[
    Setting::new("model", Kind::Text, "DIR", None, "A model folder; the built-in model if none is named"),
    Setting::new("host", Kind::Text, "HOST", Some("127.0.0.1"), "Address to listen on"),
    Setting::new("port", Kind::Count { least: 0, most: 65535 }, "PORT", Some("8000"), "Port to listen on; 0 takes a free one"),
    Setting {
        secret: true,
        ..Setting::new(
            "api-key",
            Kind::List,
            "KEY",
            None,
            "Key of which clients must send one (repeatable); without any, everybody may ask",
        )
    },
    Setting::new("api-key-file", Kind::Text, "FILE", None, "File with further keys, one a line"),
    Setting::new("served-model-name", Kind::List, "NAME", None, "Names of the model for clients (repeatable) [default: the folder's name]"),
    Setting::new(
        "allowed-origins",
        Kind::List,
        "ORIGIN",
        None,
        "Origins whose pages may ask from inside a browser (repeatable); * for all",
    ),
    Setting::new(
        "max-model-len",
        Kind::Count { least: 2, most: u64::MAX },
        "N",
        None,
        "Tokens of the longest sequence [default: what the model was made for, or what the cache holds]",
    ),
    Setting::new("max-num-seqs", ANY, "N", Some("32"), "Sequences that run at once"),
    Setting::new("max-num-batched-tokens", ANY, "N", Some("512"), "Tokens of one pass through the model"),
    Setting::new("kv-cache-memory", Kind::Size, "SIZE", None, "Memory of the KV cache, such as 4GiB [default: a quarter of the machine's]"),
    Setting::new(
        "kv-cache-dtype",
        Kind::Choice(names::<KvArg>),
        "TYPE",
        Some("auto"),
        "Storage of the KV cache; auto is f16, and f32 with strict activations",
    ),
    Setting::new(
        "enable-prefix-caching",
        Kind::Flag("no-enable-prefix-caching"),
        "",
        Some("true"),
        "Keep what prompts left in the cache for later prompts that begin alike (--no-enable-prefix-caching: do not)",
    ),
    Setting::new(
        "num-speculative-tokens",
        Kind::Count { least: 0, most: 32 },
        "N",
        Some("0"),
        "Guess so many tokens ahead from what stands in the prompt; answers stay the same; 0 guesses none",
    ),
    Setting::new("prompt-lookup-min", Kind::Count { least: 1, most: 32 }, "N", Some("2"), "Fewest tokens that must agree for a guess"),
    Setting::new("prompt-lookup-max", Kind::Count { least: 1, most: 32 }, "N", Some("4"), "Most tokens that are compared for a guess"),
    Setting::new("max-waiting", ANY_OR_NONE, "N", Some("1024"), "Sequences that may wait; more are answered 429"),
    Setting::new("max-logprobs", Kind::Count { least: 0, most: 1000 }, "N", Some("20"), "Most tokens beside the chosen one in logprobs"),
    Setting::new("chat-template", Kind::Text, "FILE", None, "Chat template that takes the place of the model's own"),
    Setting::new(
        "tool-call-parser",
        Kind::Choice(parsers),
        "NAME",
        Some("auto"),
        "How the model writes calls of tools; auto finds out from its template",
    ),
    Setting::new(
        "reasoning-format",
        Kind::Choice(auto_or_none),
        "NAME",
        Some("auto"),
        "Thoughts before an answer (<think>) as reasoning_content, if the template knows of them, or left in the content",
    ),
    Setting::new(
        "generation-config",
        Kind::Choice(auto_or_none),
        "WHICH",
        Some("auto"),
        "Sampling where a request leaves it open: the model's generation_config.json, or none (temperature 1, top-p 1)",
    ),
    Setting::new(
        "strict-params",
        Kind::Flag("no-strict-params"),
        "",
        Some("false"),
        "Refuse parameters that nobody knows, instead of naming them in a header",
    ),
    Setting::new("max-body-bytes", Kind::Size, "SIZE", Some("16MiB"), "Largest body of a request"),
    Setting::new("max-header-bytes", Kind::Size, "SIZE", Some("64KiB"), "Largest head of a request"),
    Setting::new("max-header-count", Kind::Count { least: 16, most: 10_000 }, "N", Some("100"), "Most header fields of a request"),
    Setting::new("max-connections", ANY, "N", Some("1024"), "Connections at once; more wait to be accepted"),
    Setting::new("header-timeout", Kind::Seconds, "S", Some("10"), "Seconds for the head of a request"),
    Setting::new("body-timeout", Kind::Seconds, "S", Some("30"), "Seconds for the body of a request"),
    Setting::new("write-timeout", Kind::Seconds, "S", Some("60"), "Seconds in which a client must take something of its answer"),
    Setting::new("request-timeout", Kind::Seconds, "S", Some("0"), "Seconds for a whole request; 0 for no limit"),
    Setting::new(
        "shutdown-timeout",
        Kind::Seconds,
        "S",
        Some("30"),
        "Seconds that running requests have after the first SIGTERM or SIGINT; the second one ends them",
    ),
    Setting::new("keep-alive", Kind::Seconds, "S", Some("15"), "Seconds after which a silent stream sends a comment"),
    Setting::new("log", Kind::Choice(logs), "FORM", Some("logfmt"), "A line on standard error for each request"),
    Setting::new(
        "threads",
        Kind::Count { least: 1, most: 1024 },
        "N",
        None,
        "Threads to work with [default: as many as the machine offers]",
    ),
    Setting::new(
        "activations",
        Kind::Choice(names::<ActivationsArg>),
        "WHICH",
        Some("exact"),
        "Precision of activations: exact (16 bit), strict (24 bit), int8 (fast, about 1 % off)",
    ),
    Setting::new("quantize-head", Kind::Choice(names::<HeadArg>), "WHICH", None, "Round a float output head to 8 bits while it is loaded"),
    Setting::new(
        "zeros",
        Kind::Choice(names::<ZerosArg>),
        "WHICH",
        Some("auto"),
        "Read GPTQ zero points as v1 or v2, against the folder's own evidence if need be",
    ),
    Setting::new("cache", Kind::Text, "DIR", None, "Keep the packed weights in this folder, and map them from there at the next start"),
];

/// A setting by name.
pub fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.name == name)
}
