//! What becomes of requests.

use billfish_engine::{Engine, EngineError, FinishReason, Happened, RequestId, StopCause, TokenLogprob};
use billfish_models::Model;
use std::collections::BTreeMap;

/// What an engine told of one choice.
#[derive(Debug, Default, PartialEq)]
pub struct Told {
    pub tokens: Vec<u32>,
    pub text: String,
    pub logprobs: Vec<TokenLogprob>,
    pub end: Option<(FinishReason, Option<StopCause>)>,
}

/// What an engine told of one request.
#[derive(Debug, Default)]
pub struct Heard {
    pub prompt: Option<(usize, Option<Vec<Option<TokenLogprob>>>)>,
    pub choices: BTreeMap<usize, Told>,
    pub failed: Option<EngineError>,
    /// Events after which there should have been none.
    pub late: usize,
}

impl Heard {
    fn of(&mut self, choice: usize) -> &mut Told {
        let told = self.choices.entry(choice).or_default();
        self.late += usize::from(told.end.is_some());
        told
    }

    fn hear(&mut self, happened: Happened) {
        self.late += usize::from(self.failed.is_some());
        match happened {
            Happened::Prompt { cached_tokens, logprobs } => {
                self.late += usize::from(self.prompt.is_some());
                self.prompt = Some((cached_tokens, logprobs));
            }
            Happened::Token { choice, token, text, logprob } => {
                let told = self.of(choice);
                told.tokens.push(token);
                told.text.push_str(&text);
                told.logprobs.extend(logprob);
            }
            Happened::End { choice, text, reason, stop } => {
                let told = self.of(choice);
                told.text.push_str(&text);
                told.end = Some((reason, stop));
            }
            Happened::Failed(error) => self.failed = Some(error),
        }
    }
}

/// What was heard of all requests.
pub type All = BTreeMap<RequestId, Heard>;

/// One step.
pub fn step(engine: &mut Engine<&Model>, all: &mut All) -> bool {
    engine.step(&mut |id, happened| all.entry(id).or_default().hear(happened)).unwrap()
}

/// Steps until nothing is left to do.
pub fn run(engine: &mut Engine<&Model>, all: &mut All) {
    while step(engine, all) {}
    assert!(all.values().all(|h| h.late == 0), "nothing comes after an end");
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.blocks_used), (0, 0, 0));
}
