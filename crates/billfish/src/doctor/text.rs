//! Tokenizer, vocabulary, end of text, chat template: whether they belong together.

use super::findings::Findings;
use crate::Error;
use billfish_formats::Checkpoint;
use billfish_text::{ChatTemplate, Message, Tokenizer};
use serde_json::{Map, Value};

const END: &str = "end of sequence";
const TEMPLATE: &str = "chat template";
/// Words of a sample chat, which no template writes by itself.
const REPLY: &str = "zebra-crossing-reply";

pub(super) fn examine(checkpoint: &Checkpoint, tokenizer: &Result<Tokenizer, Error>, found: &mut Findings) {
    let tokenizer = match tokenizer {
        Ok(tokenizer) => tokenizer,
        Err(e) => return found.error("tokenizer.json", e.to_string(), "text cannot be run", "do what the message says"),
    };
    let rows = checkpoint.config().get("vocab_size").and_then(Value::as_u64).unwrap_or(0) as usize;
    vocabulary(tokenizer, rows, found);
    added_tokens(checkpoint, tokenizer, found);
    end(checkpoint, tokenizer, rows, found);
    template(checkpoint, tokenizer, found);
}

fn vocabulary(tokenizer: &Tokenizer, rows: usize, found: &mut Findings) {
    let tokens = tokenizer.vocab_size();
    if tokens > rows {
        let evidence = format!("{tokens} tokens, but the embedding has {rows} rows");
        found.error("tokenizer.json", evidence, "the folder does not run", "use the tokenizer that belongs to this model");
    } else if tokens < rows {
        let evidence = format!("{tokens} tokens, {rows} rows of the embedding");
        found.note("tokenizer.json", evidence, "the rows beyond are padding and decode to nothing", "nothing to do");
    }
}

/// `added_tokens_decoder` of `tokenizer_config.json` against `tokenizer.json`.
fn added_tokens(checkpoint: &Checkpoint, tokenizer: &Tokenizer, found: &mut Findings) {
    let Some(config) = tokenizer_config(checkpoint) else { return };
    let Some(Value::Object(added)) = config.get("added_tokens_decoder") else { return };
    let differs = |(id, token): (&String, &Value)| {
        let text = token.get("content")?.as_str()?;
        let here = id.parse().ok().and_then(|id| tokenizer.token(id));
        (here.as_deref() != Some(text)).then(|| format!("id {id} is `{text}` there and {} here", quoted(here.as_deref())))
    };
    let wrong: Vec<String> = added.iter().filter_map(differs).collect();
    if let Some(first) = wrong.first() {
        let evidence = format!("{} added tokens differ from tokenizer_config.json: {first}", wrong.len());
        let remedy = "copy both files from the original model";
        found.warning("tokenizer.json", evidence, "programs that add the tokens of the other file give them other ids", remedy);
    }
}

fn end(checkpoint: &Checkpoint, tokenizer: &Tokenizer, rows: usize, found: &mut Findings) {
    let eos = tokenizer.eos_ids();
    if eos.is_empty() {
        let evidence = "no end-of-sequence token in generation_config.json, config.json or tokenizer_config.json";
        found.warning(END, evidence, "replies end at the limit only", "add `eos_token_id` to generation_config.json");
    }
    for id in eos.iter().filter(|id| **id as usize >= rows.max(1)) {
        let evidence = format!("the end-of-sequence id {id} is not below {rows}, the rows of the embedding");
        found.error(END, evidence, "the model can never say it", "correct `eos_token_id`");
    }
    for id in eos.iter().filter(|id| tokenizer.token(**id).is_none() && (**id as usize) < rows) {
        let evidence = format!("the end-of-sequence id {id} is no token of tokenizer.json");
        found.warning(END, evidence, "replies that end in it run on, or it is the id of another tokenizer", "correct `eos_token_id`");
    }
    let config = ids(checkpoint.config().get("eos_token_id"));
    let generation = checkpoint.generation_config().map(|g| ids(g.get("eos_token_id"))).unwrap_or_default();
    if !config.is_empty() && !generation.is_empty() && !config.iter().any(|id| generation.contains(id)) {
        let evidence = format!("`eos_token_id` is {config:?} in config.json and {generation:?} in generation_config.json");
        let consequence = "Billfish ends at those of generation_config.json; programs that read config.json do not";
        found.warning(END, evidence, consequence, "write the same ids into both files");
    }
    if let Some(text) = tokenizer.special_tokens().get("eos_token").and_then(Value::as_str) {
        match tokenizer.id_of(text) {
            None => {
                let evidence = format!("`eos_token` of tokenizer_config.json is `{text}`, which is no token of tokenizer.json");
                found.warning(END, evidence, "programs that end at this token never do", "correct `eos_token`, or copy both files again");
            }
            Some(id) if !eos.is_empty() && !eos.contains(&id) => {
                let evidence = format!("`eos_token` of tokenizer_config.json is `{text}` (id {id}), but `eos_token_id` is {eos:?}");
                let consequence = "replies that end in this token run on";
                found.warning(END, evidence, consequence, "add the id to `eos_token_id` of generation_config.json");
            }
            Some(_) => {}
        }
    }
    let bos = ids(checkpoint.config().get("bos_token_id"));
    if let (Some(id), Some(other)) = (tokenizer.bos_id(), bos.first())
        && id != *other
    {
        let evidence = format!("`bos_token_id` of config.json is {other}, the tokenizer begins with {id}");
        found.note(
            "begin of sequence",
            evidence,
            "programs that take the id from config.json begin otherwise",
            "write the same id into both",
        );
    }
}

fn template(checkpoint: &Checkpoint, tokenizer: &Tokenizer, found: &mut Findings) {
    if tokenizer.chat_template_names().next().is_none() {
        let remedy = "copy chat_template.jinja from the original model, if it is a chat model";
        return found.note(TEMPLATE, "there is none", "`chat` does not work", remedy);
    }
    let template = match tokenizer.chat_template(None) {
        Ok(template) => template,
        Err(e) => {
            let consequence = "`chat` does not work without naming another template";
            return found.warning(TEMPLATE, e.to_string(), consequence, "copy the template from the original model");
        }
    };
    if let (Some(Value::String(inside)), Ok(Some(own))) =
        (tokenizer_config(checkpoint).and_then(|c| c.get("chat_template").cloned()), checkpoint.file("chat_template.jinja"))
        && own != inside.as_bytes()
    {
        let evidence = "chat_template.jinja and `chat_template` of tokenizer_config.json differ";
        found.note(TEMPLATE, evidence, "Billfish and new programs take the file, old ones the key", "remove the one that is out of date");
    }
    // some templates refuse some roles in their own words: that is no fault
    let chat = [Message::new("user", "Hello"), Message::new("assistant", REPLY), Message::new("user", "Bye")];
    match render(&template, &chat) {
        Ok(text) => rendered(&text, tokenizer, found),
        Err(billfish_text::TextError::TemplateRefused { .. }) => {}
        Err(e) => found.warning(TEMPLATE, e.to_string(), "`chat` does not work", "copy the template from the original model"),
    }
}

fn render(template: &ChatTemplate, chat: &[Message]) -> Result<String, billfish_text::TextError> {
    template.render(chat, false, &Map::new())
}

/// What a template writes must be tokens, and what it writes after a reply must end one.
fn rendered(text: &str, tokenizer: &Tokenizer, found: &mut Findings) {
    let marks = text.match_indices("<|").filter_map(|(at, _)| text[at..].find("|>").map(|end| &text[at..at + end + 2]));
    for mark in marks.filter(|m| !m[2..].contains("<|")) {
        if tokenizer.id_of(mark).is_none() {
            let evidence = format!("it writes `{mark}`, which is no token of tokenizer.json");
            found.warning(TEMPLATE, evidence, "the model reads its letters instead", "use the template and the tokenizer of one model");
        }
    }
    let Some((_, after)) = text.split_once(REPLY) else { return };
    let after = after.trim_start();
    let special = (0..tokenizer.vocab_size() as u32).filter(|id| tokenizer.is_special(*id));
    let ending = special.filter_map(|id| tokenizer.token(id).filter(|t| !t.is_empty() && after.starts_with(t.as_str())).map(|t| (id, t)));
    if let Some((id, token)) = ending.max_by_key(|(_, t)| t.len())
        && !tokenizer.eos_ids().is_empty()
        && !tokenizer.eos_ids().contains(&id)
    {
        let evidence = format!("it ends a reply with `{token}` (id {id}), but `eos_token_id` is {:?}", tokenizer.eos_ids());
        // base models often carry the template of their chat model
        let remedy = "if it is a chat model, add the id to `eos_token_id` of generation_config.json";
        found.note(TEMPLATE, evidence, "replies of a chat model do not end where the model ends them", remedy);
    }
}

fn tokenizer_config(checkpoint: &Checkpoint) -> Option<Map<String, Value>> {
    serde_json::from_slice(&checkpoint.file("tokenizer_config.json").ok()??).ok()
}

/// One id or a list of ids.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(v) => one(v).into_iter().collect(),
        None => vec![],
    }
}

fn quoted(text: Option<&str>) -> String {
    text.map_or_else(|| "nothing".into(), |t| format!("`{t}`"))
}
