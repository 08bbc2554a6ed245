//! Text to ids and back.

use crate::files::{DEFAULT_TEMPLATE, Settings, TokenizerFiles, json_error};
use crate::pieces::Pieces;
use crate::{ChatTemplate, Detokenizer, TextError};
use serde_json::{Map, Value};
use std::sync::Arc;
use tokenizers::Model as _;

/// A model's tokenizer with its begin/end-of-text rules and chat templates. Cheap to clone, shareable over threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    library: tokenizers::Tokenizer,
    /// The decoder as a stream, where it has one.
    pieces: Option<Pieces>,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Vec<u32>,
    /// What `add_bos_token` decides: must the prompt begin with this id (`true`) or must it not have been added?
    bos_rule: Option<(bool, u32)>,
    /// The same for `add_eos_token` and the end of the prompt.
    eos_rule: Option<(bool, u32)>,
    settings: Settings,
}

impl Tokenizer {
    /// Builds a tokenizer from the contents of a model folder.
    ///
    /// - End-of-text ids: `eos_token_id` of `generation_config.json`, else of `config.json`, else the id of `eos_token` of
    ///   `tokenizer_config.json`.
    /// - Begin-of-text id: `bos_token` of `tokenizer_config.json` (null means there is none), else `bos_token_id` of
    ///   `config.json` or `generation_config.json`.
    /// - Truncation and padding settings stored in `tokenizer.json` are switched off: they belong to the run that wrote it.
    ///
    /// # Errors
    /// A file that cannot be parsed, a key with a value of the wrong kind, a token that is needed but has no id.
    pub fn from_parts(files: TokenizerFiles<'_>) -> Result<Tokenizer, TextError> {
        let file = format!("{}/tokenizer.json", files.name);
        let mut library = parse(&file, files.tokenizer_json)?;
        library.with_truncation(None).map_err(|e| load_error(&file, &*e))?;
        library.with_padding(None);

        let settings = Settings::read(&files)?;
        let config_file = format!("{}/tokenizer_config.json", files.name);
        let named = |key: &str| -> Result<Option<u32>, TextError> {
            let Some(token) = settings.special.get(key).and_then(Value::as_str) else { return Ok(None) };
            let unknown = || TextError::UnknownToken { file: config_file.clone(), key: key.into(), token: token.into() };
            library.token_to_id(token).map(Some).ok_or_else(unknown)
        };

        // A token without an id is an error only where the id is needed.
        let bos = match settings.add_bos {
            Some(true) => named("bos_token")?,
            _ => named("bos_token").ok().flatten(),
        };
        let bos = if settings.bos_mentioned { bos } else { bos.or(settings.bos_id) };
        let eos = match &settings.eos_ids {
            Some(ids) => ids.clone(),
            None => named("eos_token")?.into_iter().collect(),
        };
        let end = match settings.add_eos {
            Some(true) => named("eos_token")?,
            _ => named("eos_token").ok().flatten(),
        };

        let decoder = library.get_decoder().and_then(|d| serde_json::to_value(d).ok());
        let highest = library.get_vocab(true).into_values().max();
        let inner = Inner {
            name: files.name.into(),
            pieces: decoder.as_ref().and_then(Pieces::new),
            vocab_size: highest.map_or(0, |id| id as usize + 1),
            bos,
            eos,
            bos_rule: settings.add_bos.zip(bos),
            eos_rule: settings.add_eos.zip(end),
            library,
            settings,
        };
        Ok(Tokenizer { inner: Arc::new(inner) })
    }

    /// The ids of a text. With `add_special`, also the begin and end tokens that a prompt of this model carries; see
    /// [`encode_prompt`](Self::encode_prompt).
    ///
    /// Special tokens that the text spells out become their ids either way.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let error = |e: tokenizers::Error| TextError::Encode { file: format!("{}/tokenizer.json", self.inner.name), found: e.to_string() };
        let encoding = self.inner.library.encode_fast(text, add_special).map_err(error)?;
        let mut ids = encoding.get_ids().to_vec();
        if add_special {
            // 1 where the post-processor, not the text, put a token.
            let added = encoding.get_special_tokens_mask();
            let added_at = |at: Option<usize>, id: u32, ids: &[u32]| at.is_some_and(|i| ids[i] == id && added[i] == 1);
            let last = ids.len().checked_sub(1);
            let (put_bos, drop_bos) = rule(self.inner.bos_rule, |id| added_at((!ids.is_empty()).then_some(0), id, &ids));
            let (put_eos, drop_eos) = rule(self.inner.eos_rule, |id| added_at(last, id, &ids));
            if drop_eos {
                ids.pop();
            }
            if drop_bos && !ids.is_empty() {
                ids.remove(0);
            }
            ids.extend(put_eos);
            if let Some(id) = put_bos {
                ids.insert(0, id);
            }
        }
        Ok(ids)
    }

    /// The ids of a plain prompt, as the reference tokenizer gives them for a bare text.
    ///
    /// The post-processor of `tokenizer.json` decides which begin and end tokens are added, unless `add_bos_token` or
    /// `add_eos_token` of `tokenizer_config.json` is given, which then decides.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode(text, true)
    }

    /// The ids of a rendered chat template. The template writes all special tokens, begin of text included, so none is
    /// added: a prompt never begins with two begin tokens.
    pub fn encode_chat(&self, rendered: &str) -> Result<Vec<u32>, TextError> {
        self.encode(rendered, false)
    }

    /// The text of a sequence of ids. Ids without a token stand for no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        let Some(pieces) = self.pieces() else { return self.decode_by_library(ids, skip_special) };
        let mut pieces = pieces.clone();
        let mut out = String::new();
        for id in ids {
            let token = if skip_special { self.visible_token(*id) } else { self.token(*id) };
            if let Some(token) = token {
                pieces.push(&token, &mut out);
            }
        }
        pieces.finish(&mut out);
        Ok(out)
    }

    /// A stream from ids to text, with or without the special tokens.
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer {
        Detokenizer::new(self.clone(), skip_special)
    }

    /// A stream from ids to text that continues a prompt: the first token keeps the leading space it has after this prompt.
    /// The prompt's own text is not given out.
    pub fn detokenizer_after(&self, prompt: &[u32], skip_special: bool) -> Result<Detokenizer, TextError> {
        let mut stream = self.detokenizer(skip_special);
        for id in prompt {
            stream.push(*id)?;
        }
        Ok(stream)
    }

    /// The highest id plus one, added tokens included. A model's output may be longer: its rows are often padded.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// The vocabulary entry of an id, as `tokenizer.json` spells it (`Ġthe`, `▁the`, `<0x0A>`).
    pub fn token(&self, id: u32) -> Option<String> {
        let library = &self.inner.library;
        library.get_added_vocabulary().simple_id_to_token(id).or_else(|| library.get_model().id_to_token(id))
    }

    /// The bytes an id stands for, wherever it occurs; they need not be whole characters.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.token(id)?;
        Some(match self.pieces() {
            Some(pieces) => pieces.token_bytes(&token),
            None => token.into_bytes(),
        })
    }

    /// The id of a vocabulary entry.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.library.token_to_id(token)
    }

    /// Whether an id is a special token, which stands for no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.token(id).is_some_and(|token| self.inner.library.get_added_vocabulary().is_special_token(&token))
    }

    /// The id that begins a text, if the model has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.inner.bos
    }

    /// The ids that end a text; a model may have several.
    pub fn eos_ids(&self) -> &[u32] {
        &self.inner.eos
    }

    /// The special tokens of `tokenizer_config.json` by key (`bos_token`, `eos_token` …), as text. Chat templates see them as
    /// variables.
    pub fn special_tokens(&self) -> &Map<String, Value> {
        &self.inner.settings.special
    }

    /// The names of the chat templates that came with the model.
    pub fn chat_template_names(&self) -> impl Iterator<Item = &str> {
        self.inner.settings.templates.iter().map(|t| t.name.as_str())
    }

    /// A chat template of the model (`None`: the one named `default`), with the special tokens as its variables.
    ///
    /// # Errors
    /// No template of this name, or one that is no valid template.
    pub fn chat_template(&self, name: Option<&str>) -> Result<ChatTemplate, TextError> {
        let wanted = name.unwrap_or(DEFAULT_TEMPLATE);
        let Some(template) = self.inner.settings.templates.iter().find(|t| t.name == wanted) else {
            let names: Vec<&str> = self.chat_template_names().collect();
            let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(TextError::NoTemplate { file: self.inner.name.clone(), wanted: wanted.into(), found });
        };
        Ok(ChatTemplate::named(&template.file, &template.source)?.with_defaults(self.special_tokens().clone()))
    }

    /// The decoder as a fresh stream, where it has one.
    pub(crate) fn pieces(&self) -> Option<&Pieces> {
        self.inner.pieces.as_ref()
    }

    /// The vocabulary entry of an id unless it is special.
    pub(crate) fn visible_token(&self, id: u32) -> Option<String> {
        self.token(id).filter(|token| !self.inner.library.get_added_vocabulary().is_special_token(token))
    }

    /// All ids at once, by the library.
    pub(crate) fn decode_by_library(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        let file = || format!("{}/tokenizer.json", self.inner.name);
        self.inner.library.decode(ids, skip_special).map_err(|e| TextError::Decode { file: file(), found: e.to_string() })
    }
}

/// What to do about a token at an end of the prompt: which id to put there, or whether to drop the one there.
fn rule(rule: Option<(bool, u32)>, added: impl Fn(u32) -> bool) -> (Option<u32>, bool) {
    match rule {
        Some((true, id)) if !added(id) => (Some(id), false),
        Some((false, id)) if added(id) => (None, true),
        _ => (None, false),
    }
}

/// The part of `tokenizer.json` that the library believes to be JSON without looking.
#[derive(serde::Deserialize)]
struct Checked {
    decoder: Option<Value>,
}

/// Builds the library's tokenizer. It panics on some files that are wrong: on a decoder that is no JSON, such as a file cut
/// there, which is therefore looked at first, and on a few values deep inside, which end here as an error.
fn parse(file: &str, bytes: &[u8]) -> Result<tokenizers::Tokenizer, TextError> {
    const EXPECTED: &str = "a tokenizer in JSON";
    let Checked { decoder } = serde_json::from_slice(bytes).map_err(|e| json_error(file, EXPECTED, &e))?;
    drop(decoder);
    match std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes)) {
        Ok(parsed) => parsed.map_err(|e| load_error(file, &*e)),
        Err(_) => {
            let found = "values that the tokenizer library gives up on".into();
            Err(TextError::Json { file: file.into(), line: 0, column: 0, expected: EXPECTED, found })
        }
    }
}

fn load_error(file: &str, e: &(dyn std::error::Error + Send + Sync + 'static)) -> TextError {
    const EXPECTED: &str = "a tokenizer in JSON";
    match e.downcast_ref::<serde_json::Error>() {
        Some(e) => json_error(file, EXPECTED, e),
        None => TextError::Json { file: file.into(), line: 0, column: 0, expected: EXPECTED, found: e.to_string() },
    }
}
