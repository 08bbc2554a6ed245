//! Stop strings in a stream of text.

use crate::TextError;

/// Watches a stream of text for stop strings and never gives out a part of one.
///
/// Of all matches in the text, the one that *ends* first counts, and of those that end together the longest; so the
/// result depends on the text alone, not on how it was cut into pieces.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text not given out because a stop string may begin in it.
    held: String,
    out: String,
    hit: Option<usize>,
}

/// What a piece of text led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopStep<'a> {
    /// Text that is safe to give out.
    pub text: &'a str,
    /// The stop string that was found (its place in the list). It and all that follows are dropped.
    pub hit: Option<usize>,
}

impl StopMatcher {
    /// A matcher for these stop strings; with none, all text passes.
    ///
    /// # Errors
    /// An empty stop string.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> Result<StopMatcher, TextError> {
        let stops: Vec<String> = stops.into_iter().map(Into::into).collect();
        match stops.iter().position(String::is_empty) {
            Some(index) => Err(TextError::EmptyStop { index }),
            None => Ok(StopMatcher { stops, held: String::new(), out: String::new(), hit: None }),
        }
    }

    /// Feeds text. After a hit nothing more comes out.
    pub fn push(&mut self, text: &str) -> StopStep<'_> {
        self.out.clear();
        if self.hit.is_none() {
            self.held.push_str(text);
            let safe = match self.first_match() {
                Some((start, index)) => {
                    self.hit = Some(index);
                    start
                }
                None => self.first_possible_start(),
            };
            self.out.push_str(&self.held[..safe]);
            match self.hit {
                Some(_) => self.held.clear(),
                None => drop(self.held.drain(..safe)),
            }
        }
        StopStep { text: &self.out, hit: self.hit }
    }

    /// The text is over: returns what was held back.
    pub fn finish(&mut self) -> &str {
        self.out.clear();
        std::mem::swap(&mut self.out, &mut self.held);
        &self.out
    }

    /// The stop string that was found, if any.
    pub fn hit(&self) -> Option<&str> {
        self.hit.map(|index| self.stops[index].as_str())
    }

    /// Start and index of the match that ends first, then the longest, then the first in the list.
    fn first_match(&self) -> Option<(usize, usize)> {
        let found = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, index))
        });
        found.min().map(|(_, start, index)| (start, index))
    }

    /// Where the longest end of the text begins that is a beginning of a stop string.
    fn first_possible_start(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = (self.held.len() + 1).saturating_sub(longest);
        let from = self.held.ceil_char_boundary(from);
        let ends = self.held[from..].char_indices().map(|(at, _)| from + at);
        let possible = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        ends.into_iter().find(possible).unwrap_or(self.held.len())
    }
}
