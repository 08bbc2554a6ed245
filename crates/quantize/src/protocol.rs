//! The ways in which perplexity is measured.

use crate::QuantizeError;
use std::fmt;
use std::str::FromStr;

/// How perplexity is measured: which windows, which of their tokens count.
///
/// A perplexity means nothing without its protocol: the same model and text give a lower one the more context each
/// prediction has. Every protocol here tokenizes the text once, cuts the ids into consecutive windows that do not overlap,
/// starts each from an empty context and drops a tail that does not fill a window. They differ in (tokens of a window are
/// counted from 0)
///
/// | protocol | window | predicted | special tokens | where from |
/// |---|---|---|---|---|
/// | `gptq2048` | 2048 | tokens 1 to 2047 | as the tokenizer adds them to the whole text | the evaluation of the GPTQ paper (`llama_eval` in `llama.py` of IST-DASLab/gptq) |
/// | `llamacpp512` | 512 | tokens 257 to 511 | as the tokenizer adds them to the whole text, and the first token of every window becomes the begin token if the tokenizer adds one | `llama-perplexity` at its default context (`perplexity` in `tools/perplexity/perplexity.cpp` of ggml-org/llama.cpp) |
/// | `window:N` | N | tokens 1 to N - 1 | none | the simplest one, for models of short context |
///
/// * GPTQ takes the mean loss of each window times 2048, adds these up and divides by 2048 times the number of windows:
///   as every window has as many predictions as any other, that is the mean over all predictions. The paper's texts are
///   joined from samples (WikiText-2: the test set, joined with `"\n\n"`) before they are tokenized; here the text is the
///   caller's.
/// * `llama-perplexity` replaces the first token of every window, so the model never sees the one that stood there, and
///   scores the second half only: the logits at positions 256 to 510. It refuses texts of less than two windows, of which
///   this takes one. Its error estimate is that of [`Perplexity::ppl_se`](crate::Perplexity::ppl_se).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Windows of 2048, every token but the first predicted: the evaluation of the GPTQ paper.
    Gptq2048,
    /// Windows of 512 that begin with the begin token, tokens 257 to 511 predicted: `llama-perplexity`.
    LlamaCpp512,
    /// Windows of this many tokens (at least 2), every token but the first predicted, no special token added.
    Window(usize),
}

const LEGAL: &str = "gptq2048, llamacpp512 or window:N with N of at least 2";

impl Protocol {
    /// Tokens of a window.
    pub fn window(self) -> usize {
        match self {
            Protocol::Gptq2048 => 2048,
            Protocol::LlamaCpp512 => 512,
            Protocol::Window(n) => n,
        }
    }

    /// Whether the text is tokenized with the special tokens that the tokenizer puts around a prompt.
    pub fn adds_special(self) -> bool {
        !matches!(self, Protocol::Window(_))
    }

    /// Whether the first token of every window becomes the begin token.
    pub fn begins_windows(self) -> bool {
        self == Protocol::LlamaCpp512
    }

    /// The first token of a window that is predicted; all after it are, too.
    pub fn first_predicted(self) -> usize {
        match self {
            Protocol::LlamaCpp512 => 512 / 2 + 1,
            _ => 1,
        }
    }

    /// How many predictions a text of so many tokens gives.
    pub fn predictions(self, tokens: usize) -> usize {
        let window = self.window();
        tokens.checked_div(window).unwrap_or(0) * window.saturating_sub(self.first_predicted())
    }

    /// An error if this is a window without predictions.
    pub(crate) fn check(self) -> Result<(), QuantizeError> {
        match self {
            Protocol::Window(n @ ..2) => Err(wrong(&format!("window:{n}"))),
            _ => Ok(()),
        }
    }
}

fn wrong(text: &str) -> QuantizeError {
    QuantizeError::setting("perplexity protocol", LEGAL, format!("`{text}`"), "name one of these")
}

impl FromStr for Protocol {
    type Err = QuantizeError;

    fn from_str(text: &str) -> Result<Self, QuantizeError> {
        match text {
            "gptq2048" => Ok(Protocol::Gptq2048),
            "llamacpp512" => Ok(Protocol::LlamaCpp512),
            _ => {
                // digits alone: the number parser would also take a sign
                let size = text.strip_prefix("window:").filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
                let protocol = size.and_then(|n| n.parse().ok()).map(Protocol::Window);
                protocol.filter(|p| p.check().is_ok()).ok_or_else(|| wrong(text))
            }
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Protocol::Gptq2048 => f.write_str("gptq2048"),
            Protocol::LlamaCpp512 => f.write_str("llamacpp512"),
            Protocol::Window(n) => write!(f, "window:{n}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for p in [Protocol::Gptq2048, Protocol::LlamaCpp512, Protocol::Window(2), Protocol::Window(4096)] {
            assert_eq!(p.to_string().parse::<Protocol>().unwrap(), p);
        }
    }

    #[test]
    fn others_are_refused_with_the_legal_ones() {
        for text in
            ["", "gptq", "GPTQ2048", "window", "window:", "window:0", "window:1", "window:+5", "window:x", "window:99999999999999999999"]
        {
            let message = text.parse::<Protocol>().unwrap_err().to_string();
            for part in ["gptq2048", "llamacpp512", "window:N", &format!("`{text}`")] {
                assert!(message.contains(part), "{message}");
            }
        }
    }

    #[test]
    fn predictions_are_counted_by_hand() {
        assert_eq!(Protocol::Window(256).predictions(20_000), 78 * 255);
        assert_eq!(Protocol::Window(256).predictions(255), 0);
        assert_eq!(Protocol::LlamaCpp512.predictions(1100), 2 * 255);
        assert_eq!(Protocol::Gptq2048.predictions(4095), 2047);
        assert_eq!(Protocol::Window(0).predictions(10), 0);
    }
}
