//! `[TOOL_CALLS][{"name": …, "arguments": …}, …]`, or `[TOOL_CALLS]name[ARGS]{…}` for each call.

use super::{Call, Json, Known, Piece, Reader, json_at_start, take_text};
use serde_json::Value;

const MARK: &str = "[TOOL_CALLS]";
const ARGS: &str = "[ARGS]";
const CALL_ID: &str = "[CALL_ID]";

#[derive(Default)]
pub(super) struct Mistral {
    inside: bool,
}

/// What stands behind the mark.
enum Found {
    Calls(Vec<Call>, usize),
    Part,
    None,
}

impl Reader for Mistral {
    fn read(&mut self, buffer: &mut String, tools: &Known, out: &mut Vec<Piece>) {
        loop {
            if !self.inside {
                let (text, found) = take_text(buffer, MARK);
                out.push(Piece::Text(text));
                self.inside = found;
            }
            if !self.inside {
                return;
            }
            match found(buffer, tools) {
                Found::Part => return,
                Found::Calls(calls, end) => {
                    buffer.drain(..end);
                    out.extend(calls.into_iter().map(Piece::Call));
                }
                Found::None => out.push(Piece::Text(MARK.into())),
            }
            self.inside = false;
        }
    }

    fn finish(&mut self, buffer: &mut String, _: &Known, out: &mut Vec<Piece>) {
        let rest = std::mem::take(buffer);
        out.push(Piece::Text(if self.inside { format!("{MARK}{rest}") } else { rest }));
    }
}

fn found(buffer: &str, tools: &Known) -> Found {
    let start = buffer.trim_start();
    let skipped = buffer.len() - start.len();
    if start.is_empty() {
        return Found::Part;
    }
    if start.starts_with('[') {
        return match json_at_start(start) {
            Json::Part => Found::Part,
            Json::Whole(Value::Array(list), end) => {
                let calls: Option<Vec<Call>> = list.iter().map(|v| tools.call(v, &["arguments", "parameters"])).collect();
                calls.filter(|c| !c.is_empty()).map_or(Found::None, |c| Found::Calls(c, skipped + end))
            }
            _ => Found::None,
        };
    }
    let Some(at) = start.find(ARGS) else {
        // a name has no line ends; text that is long enough to be no name is none
        let is_part = !start.contains(['\n', '{']) && start.len() < 512;
        return if is_part { Found::Part } else { Found::None };
    };
    let name = start[..at].split(CALL_ID).next().unwrap_or_default().trim();
    if !tools.names.iter().any(|n| n == name) {
        return Found::None;
    }
    let arguments = &start[at + ARGS.len()..];
    match json_at_start(arguments) {
        Json::Part => Found::Part,
        Json::Whole(object @ Value::Object(_), end) => {
            Found::Calls(vec![tools.named(name, object.to_string())], skipped + at + ARGS.len() + end)
        }
        _ => Found::None,
    }
}
