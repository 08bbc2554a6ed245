//! Grammars by the `llguidance` library, over the bytes of our own vocabulary.

use super::{Form, Kind, prepared};
use crate::error::ApiError;
use billfish_engine::Constraint;
use billfish_text::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

/// The library's words are long where grammars are.
const LONGEST_MESSAGE: usize = 400;

/// Makes grammars into constraints.
pub(crate) struct Grammars {
    tokenizer: Tokenizer,
    vocab: usize,
    /// Made at the first use: few servers need it.
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl Grammars {
    pub fn new(tokenizer: &Tokenizer, vocab: usize) -> Grammars {
        Grammars { tokenizer: tokenizer.clone(), vocab, factory: OnceLock::new() }
    }

    /// What holds an answer to a form.
    pub fn compile(&self, form: &Form) -> Result<Box<dyn Constraint>, ApiError> {
        let field = form.field;
        let refused = |why: String| {
            let why: String = why.chars().take(LONGEST_MESSAGE).collect();
            ApiError::field(field, format!("`{field}` cannot be used: {why}"))
        };
        form.check_size()?;
        let grammar = match &form.kind {
            Kind::Schema(schema) => TopLevelGrammar::from_json_schema(prepared(schema.clone())),
            Kind::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Kind::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
        };
        let factory = self.factory.get_or_init(|| factory(&self.tokenizer, self.vocab).map_err(|e| e.to_string()));
        let factory = factory.as_ref().map_err(|e| ApiError::internal(format!("grammars are not available: {e}")))?;
        // a library that reads what anybody sends must not take the server down
        let made = catch_unwind(AssertUnwindSafe(|| Matcher::new(factory.create_parser(grammar))));
        let matcher = made.map_err(|_| refused("the grammar library gave up on it".into()))?;
        match matcher.get_error() {
            Some(why) => Err(refused(why)),
            None => Ok(Box::new(Grammar(matcher))),
        }
    }
}

fn factory(tokenizer: &Tokenizer, vocab: usize) -> Result<ParserFactory, Box<dyn std::error::Error>> {
    let ends = tokenizer.eos_ids();
    let Some(&end) = ends.first() else { return Err("the model has no token that ends a text".into()) };
    let words: Vec<Vec<u8>> = (0..vocab as u32).map(|id| word(tokenizer, id)).collect();
    let trie = TokTrie::from(&TokRxInfo::new(u32::try_from(vocab)?, end), &words).with_eos_tokens(ends);
    // tokens of forced text are chosen by the model, not by the library, so their division does not matter
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&environment)?;
    factory.quiet();
    factory.limits_mut().verbose_errors = false;
    Ok(factory)
}

/// The bytes of a token; a special one begins with the library's mark, so that no text of a grammar is it.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    match tokenizer.token(id) {
        None => vec![],
        Some(name) if tokenizer.is_special(id) => [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat(),
        Some(_) => tokenizer.token_bytes(id).unwrap_or_default(),
    }
}

/// Where an answer is in its grammar.
struct Grammar(Matcher);

impl Constraint for Grammar {
    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Grammar(self.0.deep_clone()))
    }

    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let allowed = self.0.compute_mask_or_eos().map_err(|e| e.to_string())?;
        let rows = logits.len();
        allowed.iter_unset_entries(|token| {
            if token < rows {
                logits[token] = f32::NEG_INFINITY;
            }
        });
        // rows without a token are no text
        logits.iter_mut().skip(allowed.len()).for_each(|l| *l = f32::NEG_INFINITY);
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<bool, String> {
        self.0.consume_token(token).map_err(|e| e.to_string())?;
        Ok(self.0.is_stopped())
    }
}
