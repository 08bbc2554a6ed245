//! The whole answer is `{"name": …, "parameters": …}`, or several of them with `;` between.

use super::{Json, Known, Piece, Reader, json_at_start};

const TAG: &str = "<|python_tag|>";

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
    fn read(&mut self, buffer: &mut String, tools: &Known, out: &mut Vec<Piece>) {
        if let Kind::Unknown = self.kind {
            let start = buffer.trim_start();
            if let Some(rest) = start.strip_prefix(TAG) {
                *buffer = rest.to_owned();
                (self.kind, self.tagged) = (Kind::Calls, true);
            } else if start.starts_with('{') {
                self.kind = Kind::Calls;
            } else if TAG.starts_with(start) {
                return;
            } else {
                self.kind = Kind::Text;
            }
        }
        if let Kind::Calls = self.kind {
            self.calls(buffer, tools, out);
        }
        if let Kind::Text = self.kind {
            out.push(Piece::Text(std::mem::take(buffer)));
        }
    }

    fn finish(&mut self, buffer: &mut String, _: &Known, out: &mut Vec<Piece>) {
        let rest = std::mem::take(buffer);
        out.push(Piece::Text(self.with_tag(&rest)));
    }
}

impl Llama {
    /// Takes calls from the front. What is none makes all that follows text.
    fn calls(&mut self, buffer: &mut String, tools: &Known, out: &mut Vec<Piece>) {
        loop {
            let between = |c: char| c.is_whitespace() || c == ';';
            let start = if self.called { buffer.trim_start_matches(between) } else { buffer.trim_start() };
            let skipped = buffer.len() - start.len();
            if start.is_empty() {
                // space before the first call may turn out to be text
                if self.called {
                    buffer.clear();
                }
                return;
            }
            let call = match json_at_start(start) {
                _ if !start.starts_with('{') => None,
                Json::Part => return,
                Json::Whole(value, end) => tools.call(&value, &["parameters", "arguments"]).map(|c| (c, skipped + end)),
                Json::Wrong => None,
            };
            let Some((call, end)) = call else {
                if self.called {
                    buffer.drain(..skipped);
                }
                *buffer = self.with_tag(buffer);
                self.kind = Kind::Text;
                return;
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
