//! Tools: how a request names them, how a model's template shows them, and how calls are read from what it writes.

mod arguments;
mod forced;
mod hermes;
mod llama;
mod mistral;
mod request;
mod template;

pub(crate) use request::Tools;
pub(crate) use template::{Shown, probe};

use crate::ids;
use arguments::{Arguments, Missing};
use serde_json::{Map, Value};

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen.
    Hermes,
    /// The whole answer is `{"name": …, "parameters": …}`: Llama 3.
    Llama,
    /// `[TOOL_CALLS][{"name": …, "arguments": …}]` or `[TOOL_CALLS]name[ARGS]{…}`: Mistral.
    Mistral,
}

impl Dialect {
    /// The names that `--tool-call-parser` takes, those of vLLM.
    pub const NAMES: [(&'static str, Dialect); 3] =
        [("hermes", Dialect::Hermes), ("llama3_json", Dialect::Llama), ("mistral", Dialect::Mistral)];

    /// Whether its marks are special tokens, which therefore have to be part of the text.
    pub(crate) fn marks_are_special(self) -> bool {
        self != Dialect::Hermes
    }
}

/// A call that a model made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub id: String,
    pub name: String,
    /// JSON text, or the beginning of one.
    pub arguments: String,
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Piece {
    Text(String),
    Call(Call),
    /// More of the arguments of the last call.
    Arguments(String),
}

/// What a dialect's reader makes of text.
trait Reader: Send {
    /// Takes what it can from the front of `buffer`; stops behind the beginning of a call whose arguments come next.
    fn read(&mut self, buffer: &mut String, tools: &Known, out: &mut Vec<Piece>) -> Option<Arguments>;
    /// The answer is over; what is left is taken as it is.
    fn finish(&mut self, buffer: &mut String, tools: &Known, out: &mut Vec<Piece>);
}

/// The tools that may be called.
struct Known {
    names: Vec<String>,
    dialect: Dialect,
}

impl Known {
    /// The call in a JSON object, if it is one of a known tool. `keys` are the names its arguments may have.
    fn call(&self, value: &Value, keys: &[&str]) -> Option<Call> {
        let object = value.as_object()?;
        let name = object.get("name")?.as_str().filter(|n| self.names.iter().any(|k| k == n))?;
        let arguments = match keys.iter().find_map(|k| object.get(*k)) {
            None => "{}".into(),
            // some models write the arguments as text already
            Some(Value::String(text)) => serde_json::from_str::<Map<String, Value>>(text).ok().map(|_| text.clone())?,
            Some(object @ Value::Object(_)) => object.to_string(),
            Some(_) => return None,
        };
        Some(self.named(name, arguments))
    }

    /// The call at the beginning of a text, without its arguments, as soon as it is certain, and where those begin.
    fn begun(&self, text: &str, keys: &[&str]) -> Result<(Piece, usize), Missing> {
        arguments::begun(text, &self.names, keys).map(|(name, at)| (Piece::Call(self.named(name, String::new())), at))
    }

    fn named(&self, name: &str, arguments: String) -> Call {
        let id = ids::unique();
        // templates of Mistral take ids of nine characters only
        let id = if self.dialect == Dialect::Mistral { id[..9].to_owned() } else { format!("call_{}", &id[..24]) };
        Call { id, name: name.to_owned(), arguments }
    }
}

/// Reads calls from an answer while it comes. Text and calls come out in the order and with the bounds that they have when
/// the answer comes in one piece.
pub(crate) struct Parser {
    reader: Box<dyn Reader>,
    known: Known,
    buffer: String,
    /// The call that has begun and not ended.
    open: Option<Arguments>,
    /// Whether more than one call is wanted.
    several: bool,
    calls: usize,
}

impl Parser {
    pub fn new(dialect: Dialect, names: Vec<String>, several: bool) -> Parser {
        let reader: Box<dyn Reader> = match dialect {
            Dialect::Hermes => Box::new(hermes::Hermes::default()),
            Dialect::Llama => Box::new(llama::Llama::default()),
            Dialect::Mistral => Box::new(mistral::Mistral::default()),
        };
        Parser { reader, known: Known { names, dialect }, buffer: String::new(), open: None, several, calls: 0 }
    }

    /// Feeds text; gives what is certain.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.buffer.push_str(text);
        let mut out = vec![];
        loop {
            if let Some(open) = &mut self.open {
                let (arguments, ended) = open.take(&mut self.buffer);
                out.push(Piece::Arguments(arguments));
                if !ended {
                    break;
                }
            }
            self.open = self.reader.read(&mut self.buffer, &self.known, &mut out);
            if self.open.is_none() {
                break;
            }
        }
        self.wanted(out)
    }

    /// Gives the rest. A call that has begun stays one, with the arguments that it has.
    pub fn finish(&mut self) -> Vec<Piece> {
        let mut out = vec![];
        if self.open.is_none() {
            self.reader.finish(&mut self.buffer, &self.known, &mut out);
        }
        self.wanted(out)
    }

    /// Without the calls that are one too many, and with neighbouring texts and arguments as one.
    fn wanted(&mut self, pieces: Vec<Piece>) -> Vec<Piece> {
        let mut out: Vec<Piece> = vec![];
        for piece in pieces {
            match (piece, out.last_mut()) {
                (Piece::Text(t) | Piece::Arguments(t), _) if t.is_empty() => {}
                (Piece::Text(t), Some(Piece::Text(before))) => before.push_str(&t),
                (Piece::Call(call), _) => {
                    self.calls += 1;
                    if self.several || self.calls == 1 {
                        out.push(Piece::Call(call));
                    }
                }
                (Piece::Arguments(_), _) if !self.several && self.calls > 1 => {}
                (Piece::Arguments(t), Some(Piece::Call(Call { arguments, .. }) | Piece::Arguments(arguments))) => arguments.push_str(&t),
                (piece, _) => out.push(piece),
            }
        }
        out
    }
}

/// The JSON value at the beginning of a text.
enum Json {
    /// It ends at this byte.
    Whole(Value, usize),
    /// It is not over.
    Part,
    /// It is none.
    Wrong,
}

fn json_at_start(text: &str) -> Json {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    match values.next() {
        // a number at the very end could have further digits; calls are objects and arrays, whose end shows
        Some(Ok(value)) => Json::Whole(value, values.byte_offset()),
        Some(Err(e)) if e.is_eof() => Json::Part,
        None => Json::Part,
        Some(Err(_)) => Json::Wrong,
    }
}

/// Takes text from the front of `buffer` up to `mark`, if the mark is there; otherwise all that cannot belong to a mark or to
/// the space before it.
pub(crate) fn take_text(buffer: &mut String, mark: &str) -> (String, bool) {
    if let Some(at) = buffer.find(mark) {
        let text = buffer[..at].trim_end().to_owned();
        buffer.drain(..at + mark.len());
        return (text, true);
    }
    let held = (1..mark.len()).rev().find(|n| buffer.ends_with(&mark[..*n])).unwrap_or(0);
    let end = buffer[..buffer.len() - held].trim_end().len();
    (buffer.drain(..end).collect(), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        vec!["weather".into(), "time".into()]
    }

    /// The pieces without ids, texts joined.
    fn pieces(dialect: Dialect, parts: &[&str], several: bool) -> Vec<(String, String)> {
        let mut parser = Parser::new(dialect, names(), several);
        let mut out: Vec<(String, String)> = vec![];
        let mut all: Vec<Piece> = parts.iter().flat_map(|p| parser.push(p)).collect();
        all.extend(parser.finish());
        for piece in all {
            match (piece, out.last_mut()) {
                (Piece::Text(t), Some((kind, before))) if kind.is_empty() => before.push_str(&t),
                (Piece::Text(t), _) => out.push((String::new(), t)),
                (Piece::Call(c), _) => out.push((c.name, c.arguments)),
                (Piece::Arguments(t), Some((name, before))) if !name.is_empty() => before.push_str(&t),
                (Piece::Arguments(t), _) => panic!("{t} belongs to no call"),
            }
        }
        out
    }

    /// The same whole, character by character, and cut in two at every place.
    fn every_way(dialect: Dialect, text: &str, expected: &[(&str, &str)]) {
        let expected: Vec<(String, String)> = expected.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
        assert_eq!(pieces(dialect, &[text], true), expected, "{text}");
        let chars: Vec<String> = text.chars().map(String::from).collect();
        let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
        assert_eq!(pieces(dialect, &chars, true), expected, "{text} by characters");
        for at in text.char_indices().map(|(i, _)| i) {
            assert_eq!(pieces(dialect, &[&text[..at], &text[at..]], true), expected, "{text} cut at {at}");
        }
    }

    /// What a client sees of a call before it is over: its name at once, its arguments as they come.
    #[test]
    fn arguments_come_as_they_are_written() {
        for (dialect, open, close) in [
            (Dialect::Hermes, "<tool_call>\n{\"name\": \"time\", \"arguments\": ", "}\n</tool_call>"),
            (Dialect::Llama, "{\"name\": \"time\", \"parameters\": ", "}"),
            (Dialect::Mistral, "[TOOL_CALLS][{\"name\": \"time\", \"arguments\": ", "}]"),
            (Dialect::Mistral, "[TOOL_CALLS]time[ARGS]", ""),
        ] {
            let mut parser = Parser::new(dialect, names(), true);
            assert_eq!(parser.push(open), [], "{dialect:?}");
            let begun = parser.push("{\"zone\": ");
            assert!(matches!(&begun[..], [Piece::Call(c)] if c.name == "time" && c.arguments == "{\"zone\": "), "{dialect:?}: {begun:?}");
            for more in ["[\"}", "\", 1]", "}"] {
                assert_eq!(parser.push(more), [Piece::Arguments(more.into())], "{dialect:?}");
            }
            assert_eq!((parser.push(close), parser.finish()), (vec![], vec![]), "{dialect:?}");
        }
    }

    #[test]
    fn hermes() {
        let check = |text, expected: &[_]| every_way(Dialect::Hermes, text, expected);
        check("plain text < 3", &[("", "plain text < 3")]);
        check("ends in space \n", &[("", "ends in space \n")]);
        check("<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>", &[("time", "{}")]);
        check(
            "Let me look.\n<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"</tool_call> {\"}}</tool_call>\n\
             <tool_call>{\"name\": \"time\"}</tool_call> Done.",
            &[("", "Let me look."), ("weather", "{\"city\": \"</tool_call> {\"}"), ("time", "{}"), ("", "Done.")],
        );
        // the end mark is missing
        check("<tool_call>{\"name\": \"time\", \"arguments\": {\"a\": 1}}", &[("time", "{\"a\": 1}")]);
        // cut off in the arguments, or with something between them and the end mark: what has begun is a call
        check("<tool_call>{\"name\": \"time\", \"arguments\": {\"a\": [\"b", &[("time", "{\"a\": [\"b")]);
        check("<tool_call>{\"name\": \"time\", \"arguments\": {}, \"id\": {}} or </tool_call>", &[("time", "{}"), ("", "or </tool_call>")]);
        check("<tool_call>{\"name\": \"time\", \"arguments\": {}}\n</tool_c", &[("time", "{}")]);
        // the arguments first, or as text: the call comes as a whole
        check("<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"time\"}</tool_call>", &[("time", "{\"a\":1}")]);
        check("<tool_call>{\"name\": \"time\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>", &[("time", "{\"a\": 1}")]);
        // no call of ours, no JSON, cut off before: the text stays what it was
        for kept in [
            "<tool_call>{\"name\": \"other\", \"arguments\": {}}</tool_call>",
            "<tool_call>nonsense</tool_call>",
            "<tool_call>{\"name\": \"time\", \"argum",
            "a <tool_cal",
        ] {
            check(kept, &[("", kept)]);
        }
        for second in ["{\"name\": \"weather\"}", "{\"name\": \"weather\", \"arguments\": {\"a\": 1}}"] {
            let two = format!("<tool_call>{{\"name\": \"time\", \"arguments\": {{}}}}</tool_call><tool_call>{second}</tool_call>");
            assert_eq!(pieces(Dialect::Hermes, &[&two], false), [("time".to_owned(), "{}".to_owned())]);
        }
    }

    #[test]
    fn llama() {
        let check = |text, expected: &[_]| every_way(Dialect::Llama, text, expected);
        check("{\"name\": \"weather\", \"parameters\": {\"city\": \"Kiel\"}}", &[("weather", "{\"city\": \"Kiel\"}")]);
        check(
            "<|python_tag|>{\"name\": \"time\", \"parameters\": {}}; {\"name\": \"time\", \"parameters\": {}}",
            &[("time", "{}"), ("time", "{}")],
        );
        for kept in
            ["Hello {\"name\": \"time\"}", "{\"name\": \"other\", \"parameters\": {}}", "{broken", "{\"name\": \"time\"", "<|python", "[1]"]
        {
            check(kept, &[("", kept)]);
        }
        check("{\"name\": \"time\"} and more", &[("time", "{}"), ("", "and more")]);
        check("{\"name\": \"time\", \"parameters\": {\"a\": 1}} and more", &[("time", "{\"a\": 1}"), ("", "and more")]);
        check("{\"name\": \"time\", \"parameters\": {\"a\": {}", &[("time", "{\"a\": {}")]);
    }

    #[test]
    fn mistral() {
        let check = |text, expected: &[_]| every_way(Dialect::Mistral, text, expected);
        check(
            "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"c\": \"]\"}}, {\"name\": \"time\", \"arguments\": {}}]",
            &[("weather", "{\"c\": \"]\"}"), ("time", "{}")],
        );
        check(
            "Sure. [TOOL_CALLS]weather[ARGS]{\"c\": 1}[TOOL_CALLS]time[ARGS]{}",
            &[("", "Sure."), ("weather", "{\"c\": 1}"), ("time", "{}")],
        );
        check("[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{\"c\": 1}", &[("weather", "{\"c\": 1}")]);
        for kept in [
            "no call",
            "[TOOL_CALLS]other[ARGS]{}",
            "[TOOL_CALLS][{\"name\": \"other\"}]",
            "[TOOL_CALLS] [1,",
            "[TOOL_CALLS]weather[ARGS]",
            "[TOOL_CALLS]weather[ARGS] [1]",
        ] {
            check(kept, &[("", kept)]);
        }
        check("[TOOL_CALLS]weather[ARGS]{\"c\"", &[("weather", "{\"c\"")]);
        check(
            "[TOOL_CALLS][{\"name\": \"time\", \"arguments\": {}}, {\"name\": \"weather\"}, {\"name\": \"time\", \"arguments\": {}} ] Done.",
            &[("time", "{}"), ("weather", "{}"), ("time", "{}"), ("", " Done.")],
        );
        check(
            "[TOOL_CALLS][{\"name\": \"time\", \"arguments\": {}}, {\"name\": \"other\"}]",
            &[("time", "{}"), ("", ", {\"name\": \"other\"}]")],
        );
    }
}
