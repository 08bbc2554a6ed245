//! The quality gate: a speed means nothing if what comes out does.

use crate::{Error, LoadedModel, SamplingParams, Session};
use billfish_models::ModelError;
use billfish_quantize::{Protocol, QuantizeError, perplexity};

/// Plain English that no model has reason to know by heart and every one should find ordinary.
const TEXT: &str = "The old man went down to the river in the morning to see whether the boat was still there. It had rained all \
night, and the water was high and brown. His daughter came after him with a piece of bread and a warm coat. \"You will be cold,\" \
she said, \"and you have not eaten anything yet.\" He thanked her, put on the coat and sat down on a stone. Then they looked at the \
water together for a long time and did not speak. When the sun came out at last, they went back up to the house, and the dog ran \
on before them.";

/// What is continued to see whether the model says one thing for ever.
const PROMPT: &str = "The old man went down to the river in the morning. ";

/// Tokens of the continuation.
const TOKENS: usize = 48;

/// Tokens that repeat before it is called a loop.
const REPEATS: usize = 16;

/// Most tokens of a pattern that is called a loop: small models that are sound do repeat whole phrases.
const PERIOD: usize = 2;

/// What the gate measured.
#[derive(Clone, Debug)]
pub struct Quality {
    /// Perplexity of a short plain English text, infinite if the logits were no numbers.
    pub perplexity: f64,
    /// What it must stay below: a tenth of the vocabulary, at most 1000. Guessing blindly has the perplexity of the
    /// vocabulary's size.
    pub limit: f64,
    /// Tokens of the pattern that a greedy continuation repeats for ever, if it does.
    pub repeats: Option<usize>,
}

impl Quality {
    /// Why the model does not pass, if it does not.
    pub fn failure(&self) -> Option<String> {
        if self.perplexity.is_nan() || self.perplexity >= self.limit {
            return Some(format!(
                "the perplexity of plain English is {:.1}, expected less than {:.0}: these weights say next to nothing",
                self.perplexity, self.limit
            ));
        }
        let period = self.repeats?;
        Some(format!("a greedy continuation repeats {period} token{} for ever", if period == 1 { "" } else { "s" }))
    }
}

/// Measures whether a model makes sense at all.
///
/// # Errors
/// [`Error`] if the model cannot be run.
pub fn quality(loaded: &LoadedModel) -> Result<Quality, Error> {
    let tokenizer = &loaded.tokenizer;
    let limit = (loaded.model.config().vocab_size as f64 / 10.0).min(1000.0);
    let ids = tokenizer.encode_prompt(TEXT)?;
    let measured = perplexity(&loaded.model, &ids, None, Protocol::Window(ids.len()), &mut |_, _| ());
    let perplexity = match measured {
        Ok(p) => p.ppl,
        Err(QuantizeError::Model(e)) if matches!(*e, ModelError::NotANumber { .. }) => {
            return Ok(Quality { perplexity: f64::INFINITY, limit, repeats: None });
        }
        Err(e) => return Err(e.into()),
    };
    let prompt = tokenizer.encode_prompt(PROMPT)?;
    let options = crate::GenerateOptions { sampling: SamplingParams::greedy(), max_tokens: TOKENS, ..Default::default() };
    let done = Session::new(&loaded.model, tokenizer).generate(&options.request(&prompt), &mut |_| ())?;
    Ok(Quality { perplexity, limit, repeats: repeats(&done.tokens) })
}

/// The shortest pattern that tokens repeat again and again.
fn repeats(tokens: &[u32]) -> Option<usize> {
    (1..=PERIOD).find(|&period| {
        let mut run = 0;
        (period..tokens.len()).any(|i| {
            run = if tokens[i] == tokens[i - period] { run + 1 } else { 0 };
            run >= REPEATS
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_found_and_phrases_are_none() {
        let exclamations = [vec![3, 9, 4], vec![7; 20]].concat();
        assert_eq!(repeats(&exclamations), Some(1));
        assert_eq!(repeats(&[1, 2].repeat(20)), Some(2));
        assert_eq!(repeats(&[1, 2, 3].repeat(20)), None);
        assert_eq!(repeats(&[7; 16]), None, "one short of a loop");
        assert_eq!(repeats(&(0..48).collect::<Vec<_>>()), None);
        assert_eq!(repeats(&[]), None);
    }

    #[test]
    fn failures_are_named() {
        let sound = Quality { perplexity: 30.0, limit: 400.0, repeats: None };
        assert_eq!(sound.failure(), None);
        for perplexity in [400.0, f64::INFINITY, f64::NAN] {
            let failure = Quality { perplexity, ..sound.clone() }.failure().unwrap();
            assert!(failure.contains("perplexity") && failure.contains("400"), "{failure}");
        }
        assert!(Quality { repeats: Some(1), ..sound }.failure().unwrap().contains("1 token for ever"));
    }

    #[test]
    fn the_model_inside_passes() {
        let q = quality(&LoadedModel::builtin(&crate::OpenOptions::default()).unwrap()).unwrap();
        assert_eq!(q.failure(), None, "{q:?}");
        assert!(q.limit == 409.6 && q.perplexity > 1.0);
    }
}
