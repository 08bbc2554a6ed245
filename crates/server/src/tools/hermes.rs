//! `<tool_call>{"name": …, "arguments": …}</tool_call>`.

use super::{Json, Known, Piece, Reader, json_at_start, take_text};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

#[derive(Default)]
pub(super) struct Hermes {
    /// Inside of the marks.
    inside: bool,
    /// After a call, where space is of no meaning.
    after: bool,
}

impl Reader for Hermes {
    fn read(&mut self, buffer: &mut String, tools: &Known, out: &mut Vec<Piece>) {
        loop {
            if !self.inside {
                if self.after {
                    buffer.drain(..buffer.len() - buffer.trim_start().len());
                    self.after = buffer.is_empty();
                }
                let (text, found) = take_text(buffer, OPEN);
                out.push(Piece::Text(text));
                self.inside = found;
            }
            if !self.inside || !self.call(buffer, tools, out) {
                return;
            }
        }
    }

    fn finish(&mut self, buffer: &mut String, tools: &Known, out: &mut Vec<Piece>) {
        let rest = std::mem::take(buffer);
        if !self.inside {
            return out.push(Piece::Text(rest));
        }
        match json_at_start(&rest) {
            Json::Whole(value, end) if rest[end..].trim().is_empty() => match tools.call(&value, &["arguments", "parameters"]) {
                Some(call) => out.push(Piece::Call(call)),
                None => out.push(Piece::Text(format!("{OPEN}{rest}"))),
            },
            _ => out.push(Piece::Text(format!("{OPEN}{rest}"))),
        }
    }
}

impl Hermes {
    /// Takes a call and its end mark from the front: whether they were there.
    fn call(&mut self, buffer: &mut String, tools: &Known, out: &mut Vec<Piece>) -> bool {
        // the end of the JSON decides, not the first end mark, which may stand in an argument
        let (call, end) = match json_at_start(buffer) {
            Json::Part => return false,
            Json::Whole(value, end) => {
                let rest = buffer[end..].trim_start();
                match rest.strip_prefix(CLOSE) {
                    Some(after) => (tools.call(&value, &["arguments", "parameters"]), buffer.len() - after.len()),
                    None if CLOSE.starts_with(rest) => return false,
                    None => match buffer.find(CLOSE) {
                        Some(at) => (None, at + CLOSE.len()),
                        None => return false,
                    },
                }
            }
            Json::Wrong => match buffer.find(CLOSE) {
                Some(at) => (None, at + CLOSE.len()),
                None => return false,
            },
        };
        let whole: String = buffer.drain(..end).collect();
        self.after = call.is_some();
        self.inside = false;
        out.push(call.map_or_else(|| Piece::Text(format!("{OPEN}{whole}")), Piece::Call));
        true
    }
}
