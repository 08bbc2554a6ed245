//! `<tool_call>{"name": …, "arguments": …}</tool_call>`.

use super::{Arguments, Json, Known, Missing, Piece, Reader, json_at_start, take_text};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const KEYS: [&str; 2] = ["arguments", "parameters"];

#[derive(Default)]
pub(super) struct Hermes {
    /// Inside of the marks.
    inside: bool,
    /// Before the end mark of a call.
    closing: bool,
    /// After a call, where space is of no meaning.
    after: bool,
}

/// What stands behind the first mark.
enum Inside {
    /// A call whose arguments come next.
    Begun,
    /// A call, or text that is none, both with the end mark.
    Whole,
    Part,
}

impl Reader for Hermes {
    fn read(&mut self, buffer: &mut String, tools: &Known, out: &mut Vec<Piece>) -> Option<Arguments> {
        loop {
            if self.closing {
                let rest = buffer.trim_start();
                if rest.len() < CLOSE.len() && CLOSE.starts_with(rest) {
                    return None;
                }
                let after = rest.strip_prefix(CLOSE).unwrap_or(rest).len();
                buffer.drain(..buffer.len() - after);
                (self.closing, self.after) = (false, true);
            }
            if !self.inside {
                if self.after {
                    buffer.drain(..buffer.len() - buffer.trim_start().len());
                    self.after = buffer.is_empty();
                }
                let (text, found) = take_text(buffer, OPEN);
                out.push(Piece::Text(text));
                self.inside = found;
            }
            if !self.inside {
                return None;
            }
            match self.call(buffer, tools, out) {
                Inside::Part => return None,
                Inside::Whole => {}
                Inside::Begun => {
                    (self.inside, self.closing) = (false, true);
                    return Some(Arguments::new(1));
                }
            }
        }
    }

    fn finish(&mut self, buffer: &mut String, tools: &Known, out: &mut Vec<Piece>) {
        let rest = std::mem::take(buffer);
        if self.closing {
            // what is left is the beginning of the end mark
            return;
        }
        if !self.inside {
            return out.push(Piece::Text(rest));
        }
        match json_at_start(&rest) {
            Json::Whole(value, end) if rest[end..].trim().is_empty() => match tools.call(&value, &KEYS) {
                Some(call) => out.push(Piece::Call(call)),
                None => out.push(Piece::Text(format!("{OPEN}{rest}"))),
            },
            _ => out.push(Piece::Text(format!("{OPEN}{rest}"))),
        }
    }
}

impl Hermes {
    /// Takes the beginning of a call, or a whole one with its end mark, from the front.
    fn call(&mut self, buffer: &mut String, tools: &Known, out: &mut Vec<Piece>) -> Inside {
        match tools.begun(buffer, &KEYS) {
            Err(Missing::More) => return Inside::Part,
            Err(Missing::Other) => {}
            Ok((call, at)) => {
                buffer.drain(..at);
                out.push(call);
                return Inside::Begun;
            }
        }
        let to_close = |buffer: &str| buffer.find(CLOSE).map(|at| (None, at + CLOSE.len()));
        // the end of the JSON decides, not the first end mark, which may stand in an argument
        let found = match json_at_start(buffer) {
            Json::Part => None,
            Json::Whole(value, end) => {
                let rest = buffer[end..].trim_start();
                match rest.strip_prefix(CLOSE) {
                    Some(after) => Some((tools.call(&value, &KEYS), buffer.len() - after.len())),
                    None if CLOSE.starts_with(rest) => None,
                    None => to_close(buffer),
                }
            }
            Json::Wrong => to_close(buffer),
        };
        let Some((call, end)) = found else { return Inside::Part };
        let whole: String = buffer.drain(..end).collect();
        self.after = call.is_some();
        self.inside = false;
        out.push(call.map_or_else(|| Piece::Text(format!("{OPEN}{whole}")), Piece::Call));
        Inside::Whole
    }
}
