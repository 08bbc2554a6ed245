//! `[TOOL_CALLS][{"name": …, "arguments": …}, …]`, or `[TOOL_CALLS]name[ARGS]{…}` for each call.

use super::{Arguments, Call, Json, Known, Missing, Piece, Reader, json_at_start, take_text};
use serde_json::Value;

const MARK: &str = "[TOOL_CALLS]";
const ARGS: &str = "[ARGS]";
const CALL_ID: &str = "[CALL_ID]";
const KEYS: [&str; 2] = ["arguments", "parameters"];

#[derive(Default)]
pub(super) struct Mistral {
    inside: bool,
    /// Behind a call of a list.
    listed: bool,
}

/// What stands behind the mark, or behind a call of a list, and where it ends.
enum Found {
    /// A call whose arguments come next, in an object or not.
    Begun(Piece, usize, Arguments),
    Calls(Vec<Call>, usize),
    /// The list ends.
    End(usize),
    Part,
    None,
}

impl Reader for Mistral {
    fn read(&mut self, buffer: &mut String, tools: &Known, out: &mut Vec<Piece>) -> Option<Arguments> {
        loop {
            if !self.inside {
                let (text, found) = take_text(buffer, MARK);
                out.push(Piece::Text(text));
                self.inside = found;
            }
            if !self.inside {
                return None;
            }
            let was_listed = std::mem::take(&mut self.listed);
            match if was_listed { listed(buffer, tools) } else { found(buffer, tools) } {
                Found::Part => {
                    self.listed = was_listed;
                    return None;
                }
                Found::Begun(call, at, arguments) => {
                    // in a list there is an object around the arguments
                    self.listed = arguments.around() > 0;
                    self.inside = self.listed;
                    buffer.drain(..at);
                    out.push(call);
                    return Some(arguments);
                }
                Found::Calls(calls, end) => {
                    buffer.drain(..end);
                    out.extend(calls.into_iter().map(Piece::Call));
                    self.listed = was_listed;
                }
                Found::End(end) => drop(buffer.drain(..end)),
                Found::None if was_listed => {}
                Found::None => out.push(Piece::Text(MARK.into())),
            }
            self.inside = self.listed;
        }
    }

    fn finish(&mut self, buffer: &mut String, _: &Known, out: &mut Vec<Piece>) {
        let rest = std::mem::take(buffer);
        out.push(Piece::Text(if self.inside && !self.listed { format!("{MARK}{rest}") } else { rest }));
    }
}

fn found(buffer: &str, tools: &Known) -> Found {
    let start = buffer.trim_start();
    let skipped = buffer.len() - start.len();
    if start.is_empty() {
        return Found::Part;
    }
    if let Some(first) = start.strip_prefix('[') {
        match tools.begun(first, &KEYS) {
            Err(Missing::More) => return Found::Part,
            Err(Missing::Other) => {}
            Ok((call, at)) => return Found::Begun(call, skipped + 1 + at, Arguments::new(1)),
        }
        return match json_at_start(start) {
            Json::Part => Found::Part,
            Json::Whole(Value::Array(list), end) => {
                let calls: Option<Vec<Call>> = list.iter().map(|v| tools.call(v, &KEYS)).collect();
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
    let arguments = start[at + ARGS.len()..].trim_start();
    match arguments.chars().next() {
        None => Found::Part,
        Some('{') => Found::Begun(Piece::Call(tools.named(name, String::new())), buffer.len() - arguments.len(), Arguments::new(0)),
        Some(_) => Found::None,
    }
}

/// What follows a call of a list.
fn listed(buffer: &str, tools: &Known) -> Found {
    let rest = buffer.trim_start();
    let Some(next) = rest.strip_prefix(',') else {
        return match rest.strip_prefix(']') {
            Some(after) => Found::End(buffer.len() - after.len()),
            None if rest.is_empty() => Found::Part,
            None => Found::None,
        };
    };
    let at = buffer.len() - next.len();
    match tools.begun(next, &KEYS) {
        Err(Missing::More) => Found::Part,
        Ok((call, begin)) => Found::Begun(call, at + begin, Arguments::new(1)),
        Err(Missing::Other) => match json_at_start(next) {
            Json::Part => Found::Part,
            Json::Whole(value, end) => tools.call(&value, &KEYS).map_or(Found::None, |call| Found::Calls(vec![call], at + end)),
            Json::Wrong => Found::None,
        },
    }
}
