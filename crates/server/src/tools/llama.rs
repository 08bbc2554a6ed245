//! The whole answer is `{"name": …, "parameters": …}`, or several of them with `;` between.

use super::{Arguments, Json, Known, Missing, Piece, Reader, json_at_start};

const TAG: &str = "<|python_tag|>";
const KEYS: [&str; 2] = ["parameters", "arguments"];

/// What the answer turned out to be.
#[derive(Default)]
enum Kind {
    #[default]
    Unknown,
    Text,
    Calls,
}

#[derive(Default)]
pub(super) struct Llama {
    kind: Kind,
    /// Whether a mark stood before the calls, and is to be shown if they are none.
    tagged: bool,
    called: bool,
}

impl Reader for Llama {
    fn read(&mut self, buffer: &mut String, tools: &Known, out: &mut Vec<Piece>) -> Option<Arguments> {
        if let Kind::Unknown = self.kind {
            let start = buffer.trim_start();
            if let Some(rest) = start.strip_prefix(TAG) {
                *buffer = rest.to_owned();
                (self.kind, self.tagged) = (Kind::Calls, true);
            } else if start.starts_with('{') {
                self.kind = Kind::Calls;
            } else if TAG.starts_with(start) {
                return None;
            } else {
                self.kind = Kind::Text;
            }
        }
        let mut begun = None;
        if let Kind::Calls = self.kind {
            begun = self.calls(buffer, tools, out);
        }
        if let Kind::Text = self.kind {
            out.push(Piece::Text(std::mem::take(buffer)));
        }
        begun
    }

    fn finish(&mut self, buffer: &mut String, _: &Known, out: &mut Vec<Piece>) {
        let rest = std::mem::take(buffer);
        out.push(Piece::Text(self.with_tag(&rest)));
    }
}

impl Llama {
    /// Takes calls from the front. What is none makes all that follows text.
    fn calls(&mut self, buffer: &mut String, tools: &Known, out: &mut Vec<Piece>) -> Option<Arguments> {
        loop {
            let between = |c: char| c.is_whitespace() || c == ';';
            let start = if self.called { buffer.trim_start_matches(between) } else { buffer.trim_start() };
            let skipped = buffer.len() - start.len();
            if start.is_empty() {
                // space before the first call may turn out to be text
                if self.called {
                    buffer.clear();
                }
                return None;
            }
            match tools.begun(start, &KEYS) {
                Err(Missing::More) => return None,
                Err(Missing::Other) => {}
                Ok((call, at)) => {
                    buffer.drain(..skipped + at);
                    self.called = true;
                    out.push(call);
                    return Some(Arguments::new(1));
                }
            }
            let call = match json_at_start(start) {
                _ if !start.starts_with('{') => None,
                Json::Part => return None,
                Json::Whole(value, end) => tools.call(&value, &KEYS).map(|c| (c, skipped + end)),
                Json::Wrong => None,
            };
            let Some((call, end)) = call else {
                if self.called {
                    buffer.drain(..skipped);
                }
                *buffer = self.with_tag(buffer);
                self.kind = Kind::Text;
                return None;
            };
            buffer.drain(..end);
            self.called = true;
            out.push(Piece::Call(call));
        }
    }

    /// Text that followed the mark, with the mark if it was not one of calls.
    fn with_tag(&mut self, text: &str) -> String {
        match std::mem::take(&mut self.tagged) && !self.called {
            true => format!("{TAG}{text}"),
            false => text.to_owned(),
        }
    }
}
