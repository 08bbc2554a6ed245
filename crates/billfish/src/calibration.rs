//! Calibration texts: files of several kinds to sequences of token ids.
//!
//! * A text (`.txt`, or any other file that is none of these) is tokenized as a whole and cut into pieces of equal length;
//!   what is left at its end is not used. No piece spans two files.
//! * Each line of a `.jsonl` file is an object and one sequence, of which the first tokens are taken: `text`, as a prompt;
//!   `messages` (with `tools`, if there are any), rendered by the folder's chat template; or `tokens` (or `input_ids`), with
//!   an `attention_mask` if some of them are padding. Other keys are of no concern.
//! * A folder: every `.txt` and `.jsonl` file in it, in order of name, and nothing else.
//!
//! Masked tokens are taken out of their sequence. So they enter no sum and no other token attends to them, and the tokens
//! that stay have the positions that they have without padding, wherever the padding stands.

use crate::{Error, read_tokenizer};
use billfish_formats::Checkpoint;
use billfish_models::DecoderConfig;
use billfish_quantize::sample_indices;
use billfish_text::{ChatTemplate, TextError, Tokenizer};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// What templates take for now: 26 July 2024, the date that those of Llama 3 give without a clock. With the clock of the
/// machine a calibration would give other bytes on another day.
const NOW: i64 = 1_721_952_000;

/// Which sequences to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CalibrationOptions {
    /// Sequences.
    pub samples: usize,
    /// Tokens of a sequence: exactly of a piece of text, at most of a row.
    pub seqlen: usize,
    /// Chooses the sequences by random numbers; without, they are evenly spread over all.
    pub seed: Option<u64>,
}

/// Sequences to calibrate with.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Token ids, each sequence two or more.
    pub sequences: Vec<Vec<u32>>,
    /// Sequences that there were to choose from.
    pub found: usize,
    /// Rows that were left out, because they had fewer than two tokens.
    pub dropped: usize,
    /// What a user should know.
    pub warnings: Vec<String>,
}

/// Reads calibration sequences for the model in `source` from a file or a folder.
///
/// # Errors
/// [`Error::File`] naming the file and line that is wrong, or what is missing; [`Error::Text`] for messages that the chat
/// template cannot render or for a folder without one.
pub fn read_calibration(source: &Checkpoint, path: &Path, options: &CalibrationOptions) -> Result<Calibration, Error> {
    let config = DecoderConfig::from_json(&format!("{}/config.json", source.name()), source.config())?;
    let mut reader = Reader {
        source,
        options,
        vocabulary: config.vocab_size,
        tokenizer: None,
        template: None,
        sequences: vec![],
        rows: 0,
        dropped: 0,
        short: vec![],
    };
    for file in files(path)? {
        reader.file(&file)?;
    }
    let mut warnings = vec![];
    if let Some((file, tokens)) = reader.short.first() {
        let (count, seqlen) = (reader.short.len(), options.seqlen);
        warnings
            .push(format!("{count} texts have no whole sequence of {seqlen} tokens, the first is {file} with {tokens}: they are not used"));
    }
    if reader.dropped > 0 {
        warnings.push(format!(
            "{}: {} of {} rows have fewer than two tokens: they are not used",
            path.display(),
            reader.dropped,
            reader.rows
        ));
    }
    let found = reader.sequences.len();
    if found == 0 {
        let tokens: usize = reader.short.iter().map(|(_, tokens)| tokens).sum();
        let what = match (reader.rows, reader.short.len()) {
            (0, _) => format!("{tokens} tokens of text"),
            (rows, 0) => format!("{rows} rows, none of two tokens or more"),
            (rows, _) => format!("{tokens} tokens of text, and {rows} rows, none of two tokens or more"),
        };
        let expected = format!("a text of {} tokens or more, or rows of two or more", options.seqlen);
        return Err(wrong(&path.display().to_string(), expected, what, "use a longer text or a smaller --seqlen"));
    }
    if found < options.samples {
        warnings.push(format!("{}: {} sequences were asked for, {found} are there: all are used", path.display(), options.samples));
    }
    if let Some(most) = config.max_position_embeddings.filter(|most| *most < options.seqlen) {
        warnings.push(format!("sequences of {} tokens are longer than the {most} positions that the model was made for", options.seqlen));
    }
    let mut all: Vec<Option<Vec<u32>>> = reader.sequences.into_iter().map(Some).collect();
    let chosen = sample_indices(found, options.samples, options.seed);
    let sequences = chosen.into_iter().filter_map(|i| all[i].take()).collect();
    Ok(Calibration { sequences, found, dropped: reader.dropped, warnings })
}

fn wrong(file: &str, expected: impl Into<String>, found: impl Into<String>, remedy: &str) -> Error {
    Error::File { file: file.into(), expected: expected.into(), found: found.into(), remedy: remedy.into() }
}

/// The start of a value, short enough for a message.
fn shown(value: &Value) -> String {
    const MOST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("`{}…`", &text[..at]),
        None => format!("`{text}`"),
    }
}

/// The files that a path stands for.
fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    const KINDS: &str = "take it out, or name the files one by one";
    let io = |path: &Path, e: std::io::Error| {
        wrong(&path.display().to_string(), "a file that can be read", e.to_string(), "check its permissions")
    };
    let meta = std::fs::metadata(path).map_err(|e| io(path, e))?;
    if !meta.is_dir() {
        if path.extension().is_some_and(|e| e == "json") {
            let remedy = "write one object a line and name the file .jsonl";
            return Err(wrong(&path.display().to_string(), "a text or a .jsonl file", "a .json file", remedy));
        }
        return Ok(vec![path.into()]);
    }
    let mut files = vec![];
    for entry in std::fs::read_dir(path).map_err(|e| io(path, e))? {
        let file = entry.map_err(|e| io(path, e))?.path();
        let known = file.extension().is_some_and(|e| e == "txt" || e == "jsonl");
        if !known || !std::fs::metadata(&file).map_err(|e| io(&file, e))?.is_file() {
            let found = if file.is_dir() { "a folder" } else { "a file of another kind" };
            return Err(wrong(&file.display().to_string(), "a .txt or a .jsonl file", found, KINDS));
        }
        files.push(file);
    }
    if files.is_empty() {
        return Err(wrong(&path.display().to_string(), "a .txt or a .jsonl file", "none", "name a folder that has some"));
    }
    files.sort();
    Ok(files)
}

/// Sequences in the making.
struct Reader<'a> {
    source: &'a Checkpoint,
    options: &'a CalibrationOptions,
    vocabulary: usize,
    tokenizer: Option<Tokenizer>,
    template: Option<ChatTemplate>,
    sequences: Vec<Vec<u32>>,
    /// Rows that were read.
    rows: usize,
    /// Those that were too short.
    dropped: usize,
    /// Texts without a whole sequence and their tokens.
    short: Vec<(String, usize)>,
}

impl Reader<'_> {
    /// Read when it is needed: rows of ids need none.
    fn tokenizer(&mut self) -> Result<&Tokenizer, Error> {
        Ok(match &mut self.tokenizer {
            Some(tokenizer) => tokenizer,
            none => none.insert(read_tokenizer(self.source)?),
        })
    }

    fn template(&mut self, place: &str) -> Result<&ChatTemplate, Error> {
        let tokenizer = self.tokenizer()?.clone();
        let missing = |e: TextError| {
            let remedy = "add a chat_template.jinja to the folder, or give rows of `text`";
            wrong(place, "a chat template of the folder, because the row has `messages`", e.to_string(), remedy)
        };
        Ok(match &mut self.template {
            Some(template) => template,
            none => none.insert(tokenizer.chat_template(None).map_err(missing)?.with_time(NOW)),
        })
    }

    fn file(&mut self, path: &Path) -> Result<(), Error> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path)
            .map_err(|e| wrong(&name, "a file that can be read", e.to_string(), "check the file and its permissions"))?;
        let text = String::from_utf8(bytes).map_err(|e| wrong(&name, "UTF-8 text", e.to_string(), "convert the file to UTF-8"))?;
        if path.extension().is_none_or(|e| e != "jsonl") {
            let ids = self.tokenizer()?.encode(&text, false)?;
            let pieces = ids.chunks_exact(self.options.seqlen).map(<[u32]>::to_vec);
            let before = self.sequences.len();
            self.sequences.extend(pieces);
            if self.sequences.len() == before {
                self.short.push((name, ids.len()));
            }
            return Ok(());
        }
        for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let place = format!("{name}, line {}", i + 1);
            let mut ids = self.row(&place, line)?;
            self.rows += 1;
            if ids.len() < 2 {
                self.dropped += 1;
                continue;
            }
            ids.truncate(self.options.seqlen);
            self.sequences.push(ids);
        }
        Ok(())
    }

    /// The tokens of a row.
    fn row(&mut self, place: &str, line: &str) -> Result<Vec<u32>, Error> {
        const KEYS: [&str; 4] = ["text", "messages", "tokens", "input_ids"];
        const MEND: &str = "mend the line or take it out";
        let row: Value = serde_json::from_str(line).map_err(|e| wrong(place, "a JSON object", e.to_string(), MEND))?;
        let Value::Object(row) = row else { return Err(wrong(place, "a JSON object", shown(&row), MEND)) };
        let has = |key: &&str| row.get(*key).is_some_and(|v| !v.is_null());
        let given: Vec<&str> = KEYS.into_iter().filter(has).collect();
        let key = match given[..] {
            [key] => key,
            [] => return Err(wrong(place, "one of `text`, `messages`, `tokens` and `input_ids`", "none of them", MEND)),
            _ => {
                return Err(wrong(
                    place,
                    "one of `text`, `messages`, `tokens` and `input_ids`",
                    format!("`{}`", given.join("` and `")),
                    "keep one of them",
                ));
            }
        };
        let value = &row[key];
        if matches!(key, "text" | "messages") && has(&"attention_mask") {
            return Err(wrong(place, "an `attention_mask` beside `tokens` or `input_ids`", format!("one beside `{key}`"), "take it out"));
        }
        match (key, value) {
            // begin and end tokens alone are no text
            ("text", Value::String(text)) if text.trim().is_empty() => Ok(vec![]),
            ("text", Value::String(text)) => Ok(self.tokenizer()?.encode(text, true)?),
            ("text", other) => Err(wrong(place, "a string as `text`", shown(other), MEND)),
            ("messages", Value::Array(messages)) => self.chat(place, messages, row.get("tools")),
            ("messages", other) => Err(wrong(place, "a list as `messages`", shown(other), MEND)),
            (_, Value::Array(ids)) => self.unmasked(place, ids, row.get("attention_mask").filter(|v| !v.is_null())),
            (_, other) => Err(wrong(place, format!("a list of token ids as `{key}`"), shown(other), MEND)),
        }
    }

    fn chat(&mut self, place: &str, messages: &[Value], tools: Option<&Value>) -> Result<Vec<u32>, Error> {
        if messages.is_empty() {
            return Ok(vec![]);
        }
        // a template may pass over what has no role
        if let Some(odd) = messages.iter().find(|m| !m["role"].is_string()) {
            return Err(wrong(place, "messages that are objects with a `role`", shown(odd), "mend the line or take it out"));
        }
        let mut extra = Map::new();
        extra.extend(tools.map(|tools| ("tools".to_string(), tools.clone())));
        let remedy = "see the template's own words, and mend the line or take it out";
        let rendered = self.template(place)?.render_values(messages, false, &extra);
        let rendered = rendered.map_err(|e| wrong(place, "messages that the chat template can render", e.to_string(), remedy))?;
        Ok(self.tokenizer()?.encode_chat(&rendered)?)
    }

    /// The ids of a row that its mask does not take out.
    fn unmasked(&self, place: &str, ids: &[Value], mask: Option<&Value>) -> Result<Vec<u32>, Error> {
        let kept = match mask {
            None => vec![true; ids.len()],
            Some(mask) => {
                let flag = |v: &Value| v.as_bool().or_else(|| v.as_u64().filter(|n| *n < 2).map(|n| n == 1));
                let flags: Option<Vec<bool>> = mask.as_array().and_then(|list| list.iter().map(flag).collect());
                let expected = || format!("{} numbers of 0 or 1 as `attention_mask`", ids.len());
                match flags {
                    Some(flags) if flags.len() == ids.len() => flags,
                    Some(flags) => return Err(wrong(place, expected(), flags.len().to_string(), "give each token one")),
                    None => return Err(wrong(place, expected(), shown(mask), "give each token one")),
                }
            }
        };
        let id = |v: &Value| {
            let id = v.as_u64().filter(|id| *id < self.vocabulary as u64).and_then(|id| u32::try_from(id).ok());
            let expected = || format!("token ids below {}, the rows of the embedding", self.vocabulary);
            id.ok_or_else(|| wrong(place, expected(), shown(v), "use the tokenizer that belongs to this model"))
        };
        ids.iter().zip(kept).filter(|(_, kept)| *kept).map(|(v, _)| id(v)).collect()
    }
}
