//! A completion as a stream.

use super::{CompletionRequest, echo_logprobs};
use crate::answer::Finish;
use crate::app::App;
use crate::chunks::Chunks;
use crate::logprobs::TextLogprobs;
use billfish_engine::{Happened, TokenLogprob};
use serde_json::{Value, json};

/// One choice.
struct State {
    /// Whether anything of it was sent.
    begun: bool,
    logprobs: TextLogprobs,
}

/// What the chunks of completions are made of.
pub(super) struct Texts {
    request: CompletionRequest,
    states: Vec<State>,
    /// Logprobs of each prompt, once they are known.
    known: Vec<Option<Vec<Option<TokenLogprob>>>>,
}

impl Texts {
    pub fn new(request: CompletionRequest) -> Texts {
        let choices = request.prompts.len() * request.params.n;
        let states = (0..choices).map(|_| State { begun: false, logprobs: TextLogprobs::default() }).collect();
        Texts { states, known: request.prompts.iter().map(|_| None).collect(), request }
    }

    /// The text to send: before the first of a choice stands the prompt, if it is to be repeated.
    fn begin(&mut self, app: &App, index: usize, text: String) -> String {
        let state = &mut self.states[index];
        if std::mem::replace(&mut state.begun, true) || !self.request.echo {
            return text;
        }
        let at = index / self.request.params.n;
        let prompt = &self.request.prompts[at];
        if self.request.logprobs.is_some() {
            echo_logprobs(app, &mut state.logprobs, prompt, self.known[at].as_deref().unwrap_or_default());
        }
        format!("{}{text}", prompt.text)
    }

    fn chunk(&mut self, index: usize, text: &str) -> Value {
        let logprobs = self.request.logprobs.map(|_| self.states[index].logprobs.take());
        json!({"choices": [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": null}]})
    }
}

impl Chunks for Texts {
    const OBJECT: &'static str = "text_completion";

    fn begin(&mut self) -> Vec<Value> {
        vec![]
    }

    fn event(&mut self, app: &App, prompt: usize, happened: Happened) -> Vec<Value> {
        let n = self.request.params.n;
        match happened {
            Happened::Prompt { logprobs, .. } => {
                self.known[prompt] = logprobs;
                vec![]
            }
            Happened::Token { choice, token, text, logprob } => {
                let index = prompt * n + choice;
                let text = self.begin(app, index, text);
                if let Some(l) = &logprob {
                    self.states[index].logprobs.push(&app.model.tokenizer, l);
                }
                let ids = self.request.params.return_token_ids;
                if text.is_empty() && logprob.is_none() && !ids {
                    return vec![];
                }
                let mut chunk = self.chunk(index, &text);
                if ids {
                    chunk["choices"][0]["token_ids"] = json!([token]);
                }
                vec![chunk]
            }
            Happened::End { choice, text, reason, stop } => {
                let index = prompt * n + choice;
                let text = self.begin(app, index, text);
                let Finish { reason, stop } = Finish::new(app, reason, stop);
                let mut chunk = self.chunk(index, &text);
                chunk["choices"][0]["finish_reason"] = reason.into();
                chunk["choices"][0]["stop_reason"] = stop;
                vec![chunk]
            }
            Happened::Failed(_) => vec![],
        }
    }
}
