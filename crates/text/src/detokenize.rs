//! Text from ids while they are generated.

use crate::pieces::Pieces;
use crate::{TextError, Tokenizer};

/// Turns ids into text one at a time and gives out only text that no later id can change.
///
/// All that [`push`](Self::push) and [`finish`](Self::finish) return, concatenated, equals
/// [`Tokenizer::decode`] of all ids, with special tokens skipped or not as it was made. A character whose bytes are spread over several
/// tokens comes out whole; U+FFFD comes out only for bytes that are no text whatever follows.
///
/// Byte-level and sentencepiece-like decoders run as a stream with constant work a token. For any other decoder the
/// end of the sequence is decoded twice, without and with the new id, and the difference is the new text.
#[derive(Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    state: State,
    out: String,
}

#[derive(Clone)]
enum State {
    Stream(Pieces),
    Window(Window),
}

/// The ids whose text is out but still needed as context, then those whose text is not out.
#[derive(Clone, Default)]
struct Window {
    ids: Vec<u32>,
    /// How many ids are context.
    read: usize,
    /// The text of the context alone.
    context: String,
}

/// A character has at most 4 bytes, so more ids than this cannot belong to one unfinished character.
const LONGEST_WAIT: usize = 8;

impl Detokenizer {
    pub(crate) fn new(tokenizer: Tokenizer, skip_special: bool) -> Detokenizer {
        let state = match tokenizer.pieces() {
            Some(pieces) => State::Stream(pieces.clone()),
            None => State::Window(Window::default()),
        };
        Detokenizer { tokenizer, skip_special, state, out: String::new() }
    }

    /// Feeds an id and returns the text that has become final, often none.
    ///
    /// An id without a token (models pad their vocabulary) stands for no text, nor does a special token that is skipped.
    pub fn push(&mut self, id: u32) -> Result<&str, TextError> {
        self.out.clear();
        let token = if self.skip_special { self.tokenizer.visible_token(id) } else { self.tokenizer.token(id) };
        let Some(token) = token else { return Ok("") };
        match &mut self.state {
            State::Stream(pieces) => pieces.push(&token, &mut self.out),
            State::Window(window) => window.push(&self.tokenizer, self.skip_special, id, &mut self.out)?,
        }
        Ok(&self.out)
    }

    /// Returns what was held back. Bytes that never became a character come out as U+FFFD.
    pub fn finish(&mut self) -> Result<&str, TextError> {
        self.out.clear();
        match &mut self.state {
            State::Stream(pieces) => pieces.finish(&mut self.out),
            State::Window(window) => window.finish(&self.tokenizer, self.skip_special, &mut self.out)?,
        }
        Ok(&self.out)
    }
}

impl Window {
    fn push(&mut self, tokenizer: &Tokenizer, skip_special: bool, id: u32, out: &mut String) -> Result<(), TextError> {
        self.ids.push(id);
        let text = tokenizer.decode_by_library(&self.ids, skip_special)?;
        let unfinished = text.ends_with('\u{FFFD}') && self.ids.len() - self.read < LONGEST_WAIT;
        match text.strip_prefix(self.context.as_str()) {
            Some(new) if !new.is_empty() && !unfinished => {
                out.push_str(new);
                self.ids.drain(..self.read);
                self.read = self.ids.len();
                self.context = tokenizer.decode_by_library(&self.ids, skip_special)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self, tokenizer: &Tokenizer, skip_special: bool, out: &mut String) -> Result<(), TextError> {
        let text = tokenizer.decode_by_library(&self.ids, skip_special)?;
        out.push_str(text.strip_prefix(self.context.as_str()).unwrap_or_default());
        *self = Window::default();
        Ok(())
    }
}
