//! What a model thinks before it answers, told apart from what it says.

use crate::tools::take_text;

pub(crate) const OPEN: &str = "<think>";
pub(crate) const CLOSE: &str = "</think>";

/// A part of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub reasoning: String,
    pub content: String,
}

/// Where in an answer the text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing has come but what may be the opening mark.
    Start,
    Inside,
    Content,
}

/// Divides an answer into thoughts and content while it comes. What comes out in all is the same however it was cut.
#[derive(Debug)]
pub(crate) struct Thinking {
    place: Place,
    buffer: String,
    /// Whether nothing but space has come since the last mark.
    fresh: bool,
    /// Whether there is an opening mark.
    opened: bool,
    tokens: usize,
}

impl Thinking {
    /// Of an answer to a prompt that ends with the opening mark, or not.
    pub fn new(opened: bool) -> Self {
        Self { place: if opened { Place::Inside } else { Place::Start }, buffer: String::new(), fresh: true, opened, tokens: 0 }
    }

    /// Counts a token, before its text is fed.
    pub fn count(&mut self) {
        self.tokens += usize::from(self.place != Place::Content);
    }

    /// Tokens up to the end of the closing mark, if there are thoughts.
    pub fn tokens(&self) -> usize {
        if self.opened { self.tokens } else { 0 }
    }

    /// Feeds text.
    pub fn push(&mut self, text: &str) -> Said {
        self.buffer.push_str(text);
        let mut said = Said::default();
        if self.place == Place::Start {
            let start = self.buffer.trim_start();
            if let Some(rest) = start.strip_prefix(OPEN) {
                (self.opened, self.place, self.buffer) = (true, Place::Inside, rest.to_owned());
            } else if OPEN.starts_with(start) {
                return said;
            } else {
                // without thoughts, every character is content
                (self.place, self.fresh) = (Place::Content, false);
            }
        }
        if self.place == Place::Inside {
            self.skip_space();
            let (thought, closed) = take_text(&mut self.buffer, CLOSE);
            said.reasoning = thought;
            if closed {
                (self.place, self.fresh) = (Place::Content, true);
            }
        }
        if self.place == Place::Content {
            self.skip_space();
            said.content = std::mem::take(&mut self.buffer);
        }
        said
    }

    /// Drops space behind a mark.
    fn skip_space(&mut self) {
        if self.fresh {
            self.buffer.drain(..self.buffer.len() - self.buffer.trim_start().len());
            self.fresh = self.buffer.is_empty();
        }
    }

    /// The rest of an answer that is over.
    pub fn finish(&mut self) -> Said {
        let rest = std::mem::take(&mut self.buffer);
        match self.place {
            Place::Inside => Said { reasoning: rest.trim_end().to_owned(), ..Said::default() },
            Place::Start | Place::Content => Said { content: rest, ..Said::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divided(opened: bool, parts: &[&str]) -> (String, String) {
        let mut thinking = Thinking::new(opened);
        let mut all = Said::default();
        for said in parts.iter().map(|p| thinking.push(p)).collect::<Vec<_>>().into_iter().chain([thinking.finish()]) {
            all.reasoning.push_str(&said.reasoning);
            all.content.push_str(&said.content);
        }
        (all.reasoning, all.content)
    }

    #[test]
    fn thoughts_and_content_in_any_pieces() {
        for (opened, text, reasoning, content) in [
            (false, "<think>\nLet me see.\n\n1 < 2 \n</think>\n\nYes. </think>\n", "Let me see.\n\n1 < 2", "Yes. </think>\n"),
            (false, "\n <think></think>yes", "", "yes"),
            (true, "\nHm.</think> yes ", "Hm.", "yes "),
            (true, "<think>twice</think>yes", "<think>twice", "yes"),
            // without an end, without a beginning, nearly one
            (false, "<think>on and on </thi ", "on and on </thi", ""),
            (true, "on and on ", "on and on", ""),
            (false, " yes <think>no</think>", "", " yes <think>no</think>"),
            (false, "<thinking>", "", "<thinking>"),
            (false, "<thi", "", "<thi"),
            (false, "", "", ""),
        ] {
            let want = (reasoning.to_owned(), content.to_owned());
            assert_eq!(divided(opened, &[text]), want, "{text:?}");
            let letters: Vec<String> = text.chars().map(String::from).collect();
            assert_eq!(divided(opened, &letters.iter().map(String::as_str).collect::<Vec<_>>()), want, "{text:?} by letters");
            for at in 0..text.len() {
                assert_eq!(divided(opened, &[&text[..at], &text[at..]]), want, "{text:?} cut at {at}");
            }
        }
    }

    #[test]
    fn tokens_of_thoughts_are_counted_to_the_closing_mark() {
        let count = |opened, parts: &[&str]| {
            let mut thinking = Thinking::new(opened);
            for part in parts {
                thinking.count();
                thinking.push(part);
            }
            thinking.tokens()
        };
        assert_eq!(count(false, &["<think>", "\n", "a", "</", "think>", "\n\n", "yes"]), 5);
        assert_eq!(count(true, &["a", "</think>", "yes"]), 2);
        assert_eq!(count(true, &["a", "b"]), 2);
        assert_eq!(count(false, &[" ", "<", "yes", "no"]), 0);
        assert_eq!(count(false, &["<thi"]), 0);
    }
}
