//! What the files beside `tokenizer.json` say about it: special tokens, begin and end of text, chat templates.

use crate::TextError;
use serde_json::{Map, Value};

/// The contents of a model folder that concern text. The caller reads the files; this crate opens none.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenizerFiles<'a> {
    /// The folder's name, for messages.
    pub name: &'a str,
    /// `tokenizer.json`.
    pub tokenizer_json: &'a [u8],
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<&'a [u8]>,
    /// `generation_config.json`, parsed.
    pub generation_config: Option<&'a Map<String, Value>>,
    /// `config.json`, parsed.
    pub config: Option<&'a Map<String, Value>>,
    /// `chat_template.jinja`; wins over the template inside `tokenizer_config.json`.
    pub chat_template: Option<&'a str>,
}

/// The name of the template that is used when none is asked for.
pub(crate) const DEFAULT_TEMPLATE: &str = "default";

/// The keys of `tokenizer_config.json` that name one special token each; templates see them as variables.
const TOKEN_KEYS: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What `tokenizer_config.json` and its neighbours say, before any token is looked up.
pub(crate) struct Settings {
    /// Special tokens by key (`bos_token` …), as text; also the variables of chat templates.
    pub special: Map<String, Value>,
    /// Whether the configuration says anything about `bos_token` (also that there is none).
    pub bos_mentioned: bool,
    /// `add_bos_token`, if given.
    pub add_bos: Option<bool>,
    /// `add_eos_token`, if given.
    pub add_eos: Option<bool>,
    /// The begin-of-text id by number.
    pub bos_id: Option<u32>,
    /// The end-of-text ids by number.
    pub eos_ids: Option<Vec<u32>>,
    /// Chat templates: name, source and the file it came from.
    pub templates: Vec<Template>,
}

/// A chat template as found.
pub(crate) struct Template {
    pub name: String,
    pub source: String,
    pub file: String,
}

impl Settings {
    pub fn read(files: &TokenizerFiles<'_>) -> Result<Settings, TextError> {
        let file = format!("{}/tokenizer_config.json", files.name);
        let tokenizer_config = match files.tokenizer_config {
            Some(bytes) => object(&file, bytes)?,
            None => Map::new(),
        };
        let mut templates = inline_templates(&file, tokenizer_config.get("chat_template"))?;
        if let Some(source) = files.chat_template {
            templates.retain(|t| t.name != DEFAULT_TEMPLATE);
            let file = format!("{}/chat_template.jinja", files.name);
            templates.push(Template { name: DEFAULT_TEMPLATE.into(), source: source.into(), file });
        }
        let generation = Ids { file: format!("{}/generation_config.json", files.name), map: files.generation_config };
        let model = Ids { file: format!("{}/config.json", files.name), map: files.config };
        let eos_ids = match generation.get("eos_token_id")? {
            Some(ids) => Some(ids),
            None => model.get("eos_token_id")?,
        };
        let bos_ids = match model.get("bos_token_id")? {
            Some(ids) => Some(ids),
            None => generation.get("bos_token_id")?,
        };
        Ok(Settings {
            special: special_tokens(&file, &tokenizer_config)?,
            bos_mentioned: tokenizer_config.contains_key("bos_token"),
            add_bos: flag(&file, &tokenizer_config, "add_bos_token")?,
            add_eos: flag(&file, &tokenizer_config, "add_eos_token")?,
            bos_id: bos_ids.and_then(|ids| ids.first().copied()),
            eos_ids,
            templates,
        })
    }
}

fn object(file: &str, bytes: &[u8]) -> Result<Map<String, Value>, TextError> {
    serde_json::from_slice(bytes).map_err(|e| json_error(file, "a JSON object", &e))
}

/// A parser's error with its position.
pub(crate) fn json_error(file: &str, expected: &'static str, e: &serde_json::Error) -> TextError {
    TextError::Json { file: file.into(), line: e.line(), column: e.column(), expected, found: e.to_string() }
}

fn key_error(file: &str, key: &str, expected: &'static str, found: &Value) -> TextError {
    let mut found = found.to_string();
    if found.chars().count() > 80 {
        found = found.chars().take(79).chain(['…']).collect();
    }
    TextError::Key { file: file.into(), key: key.into(), expected, found }
}

/// A token is written as a string or as an object with `content`.
fn token_text<'v>(file: &str, key: &str, value: &'v Value) -> Result<Option<&'v str>, TextError> {
    match value {
        Value::Null => Ok(None),
        Value::String(s) => Ok(Some(s)),
        Value::Object(o) => match o.get("content") {
            Some(Value::String(s)) => Ok(Some(s)),
            _ => Err(key_error(file, key, "a token object with the string `content`", value)),
        },
        _ => Err(key_error(file, key, "a string, an object with `content`, or null", value)),
    }
}

fn special_tokens(file: &str, config: &Map<String, Value>) -> Result<Map<String, Value>, TextError> {
    let mut out = Map::new();
    for key in TOKEN_KEYS {
        let Some(value) = config.get(key) else { continue };
        if let Some(text) = token_text(file, key, value)? {
            out.insert(key.into(), text.into());
        }
    }
    if let Some(Value::Array(list)) = config.get("additional_special_tokens") {
        let key = "additional_special_tokens";
        let texts = list.iter().map(|v| token_text(file, key, v)).collect::<Result<Vec<_>, _>>()?;
        out.insert(key.into(), texts.into_iter().flatten().map(Value::from).collect::<Vec<_>>().into());
    }
    Ok(out)
}

fn flag(file: &str, config: &Map<String, Value>, key: &str) -> Result<Option<bool>, TextError> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(b)) => Ok(Some(*b)),
        Some(other) => Err(key_error(file, key, "true, false or null", other)),
    }
}

/// `chat_template` is one template, or a list of `{name, template}`.
fn inline_templates(file: &str, value: Option<&Value>) -> Result<Vec<Template>, TextError> {
    const EXPECTED: &str = "a string or a list of objects with `name` and `template`";
    let key = "chat_template";
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(s)) => Ok(vec![Template { name: DEFAULT_TEMPLATE.into(), source: s.clone(), file: file.into() }]),
        Some(list @ Value::Array(items)) => items
            .iter()
            .map(|item| match (item.get("name"), item.get("template")) {
                (Some(Value::String(name)), Some(Value::String(source))) => {
                    Ok(Template { name: name.clone(), source: source.clone(), file: file.into() })
                }
                _ => Err(key_error(file, key, EXPECTED, list)),
            })
            .collect(),
        Some(other) => Err(key_error(file, key, EXPECTED, other)),
    }
}

/// Token ids in a parsed configuration file.
struct Ids<'a> {
    file: String,
    map: Option<&'a Map<String, Value>>,
}

impl Ids<'_> {
    /// One id or a list of ids, at the top or in `text_config`; `None` when absent, null or an empty list.
    fn get(&self, key: &str) -> Result<Option<Vec<u32>>, TextError> {
        let Some(map) = self.map else { return Ok(None) };
        let nested = || map.get("text_config").and_then(|t| t.get(key));
        let Some(value) = map.get(key).filter(|v| !v.is_null()).or_else(nested) else { return Ok(None) };
        let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Null => return Ok(None),
            Value::Array(list) => list.iter().map(one).collect::<Option<Vec<u32>>>(),
            v => one(v).map(|id| vec![id]),
        };
        let ids = ids.ok_or_else(|| key_error(&self.file, key, "a token id, a list of token ids, or null", value))?;
        Ok(Some(ids).filter(|ids| !ids.is_empty()))
    }
}
