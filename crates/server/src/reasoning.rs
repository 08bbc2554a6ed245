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
#[derive(Clone, Debug)]
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

    /// Of an answer that is all content.
    pub fn none() -> Self {
        Self { place: Place::Content, buffer: String::new(), fresh: false, opened: false, tokens: 0 }
    }

    /// Whether all that comes from now on is content.
    pub fn is_over(&self) -> bool {
        self.place == Place::Content
    }

    /// Tokens up to the end of the closing mark, if there are thoughts.
    pub fn tokens(&self) -> usize {
        if self.opened { self.tokens } else { 0 }
    }

    /// Feeds the text of a token.
    pub fn token(&mut self, text: &str) -> Said {
        self.tokens += usize::from(!self.is_over());
        self.push(text)
    }

    /// Feeds the text behind the last token, with which the answer ends.
    pub fn end(&mut self, text: &str) -> Said {
        let mut said = self.push(text);
        let rest = std::mem::take(&mut self.buffer);
        match self.place {
            Place::Inside => said.reasoning.push_str(rest.trim_end()),
            Place::Start | Place::Content => said.content.push_str(&rest),
        }
        said
    }

    fn push(&mut self, text: &str) -> Said {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divided(opened: bool, parts: &[&str]) -> (String, String) {
        let mut thinking = Thinking::new(opened);
        let mut all = Said::default();
        let (last, before) = parts.split_last().unwrap();
        let mut said: Vec<Said> = before.iter().map(|p| thinking.token(p)).collect();
        said.push(thinking.end(last));
        for said in said {
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
            assert_eq!(divided(opened, &[text, ""]), want, "{text:?} and nothing");
            let letters: Vec<String> = text.chars().map(String::from).chain([String::new()]).collect();
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
            parts.iter().for_each(|p| drop(thinking.token(p)));
            thinking.tokens()
        };
        assert_eq!(count(false, &["<think>", "\n", "a", "</", "think>", "\n\n", "yes"]), 5);
        assert_eq!(count(true, &["a", "</think>", "yes"]), 2);
        assert_eq!(count(true, &["a", "b"]), 2);
        assert_eq!(count(false, &[" ", "<", "yes", "no"]), 0);
        assert_eq!(count(false, &["<thi"]), 0);
        let mut none = Thinking::none();
        let content = |content: &str| Said { content: content.into(), ..Said::default() };
        assert_eq!((none.token(" <think>a"), none.end("</think> "), none.tokens()), (content(" <think>a"), content("</think> "), 0));
    }
}
