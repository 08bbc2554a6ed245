//! A chat's answer as a stream.

use super::{ChatRequest, call_json, content_logprobs};
use crate::answer::Finish;
use crate::app::App;
use crate::chunks::Chunks;
use crate::reasoning::Thinking;
use crate::tools::{Parser, Piece};
use billfish_engine::Happened;
use serde_json::{Value, json};

/// One choice.
struct State {
    thinking: Thinking,
    parser: Option<Parser>,
    /// Calls so far.
    calls: usize,
}

/// What the chunks of a chat are made of.
pub(super) struct Deltas {
    /// The prompt's tokens, and those of every chunk, if they are to be told.
    ids: Option<Vec<u32>>,
    choices: Vec<State>,
}

impl Deltas {
    pub fn new(app: &App, chat: &ChatRequest, prompt: &[u32]) -> Deltas {
        let choices = (0..chat.params.n).map(|_| State { thinking: chat.thinking.clone(), parser: chat.parser(app), calls: 0 }).collect();
        Deltas { ids: chat.params.return_token_ids.then(|| prompt.to_vec()), choices }
    }

    /// What new text adds to a choice.
    fn deltas(&mut self, choice: usize, text: &str, last: bool) -> Vec<Value> {
        let state = &mut self.choices[choice];
        let said = if last { state.thinking.end(text) } else { state.thinking.token(text) };
        let thought = (!said.reasoning.is_empty()).then(|| json!({"reasoning_content": said.reasoning, "reasoning": said.reasoning}));
        let pieces = match &mut state.parser {
            None if said.content.is_empty() => vec![],
            None => vec![Piece::Text(said.content)],
            Some(parser) => {
                let mut pieces = parser.push(&said.content);
                if last {
                    pieces.extend(parser.finish());
                }
                pieces
            }
        };
        let delta = |piece| match piece {
            Piece::Text(text) => json!({"content": text}),
            Piece::Call(call) => {
                let mut json = call_json(&call);
                json["index"] = state.calls.into();
                state.calls += 1;
                json!({"tool_calls": [json]})
            }
            // the name and the id were told when the call began
            Piece::Arguments(more) => json!({"tool_calls": [{"index": state.calls - 1, "function": {"arguments": more}}]}),
        };
        thought.into_iter().chain(pieces.into_iter().map(delta)).collect()
    }
}

impl Chunks for Deltas {
    const OBJECT: &'static str = "chat.completion.chunk";

    fn begin(&mut self) -> Vec<Value> {
        let first = |choice| chunk(choice, json!({"role": "assistant", "content": ""}), Value::Null);
        let mut chunks: Vec<Value> = (0..self.choices.len()).map(first).collect();
        if let Some(prompt) = &self.ids {
            chunks[0]["prompt_token_ids"] = prompt.clone().into();
        }
        chunks
    }

    fn event(&mut self, app: &App, _: usize, happened: Happened) -> Vec<Value> {
        match happened {
            Happened::Token { choice, token, text, logprob } => {
                let mut deltas = self.deltas(choice, &text, false);
                if deltas.is_empty() && (self.ids.is_some() || logprob.is_some()) {
                    deltas.push(json!({"content": ""}));
                }
                let mut logprobs = logprob.map_or(Value::Null, |l| content_logprobs(app, &[l]));
                let mut chunks: Vec<Value> = deltas.into_iter().map(|delta| chunk(choice, delta, logprobs.take())).collect();
                if let (Some(first), Some(_)) = (chunks.first_mut(), &self.ids) {
                    first["choices"][0]["token_ids"] = json!([token]);
                }
                chunks
            }
            Happened::End { choice, text, reason, stop } => {
                let deltas = self.deltas(choice, &text, true);
                let mut chunks: Vec<Value> = deltas.into_iter().map(|delta| chunk(choice, delta, Value::Null)).collect();
                let Finish { mut reason, stop } = Finish::new(app, reason, stop);
                if reason == "stop" && self.choices[choice].calls > 0 {
                    reason = "tool_calls";
                }
                let mut last = chunk(choice, json!({}), Value::Null);
                last["choices"][0]["finish_reason"] = reason.into();
                last["choices"][0]["stop_reason"] = stop;
                chunks.push(last);
                chunks
            }
            Happened::Prompt { .. } | Happened::Failed(_) => vec![],
        }
    }

    fn reasoning(&self) -> usize {
        self.choices.iter().map(|c| c.thinking.tokens()).sum()
    }
}

fn chunk(choice: usize, delta: Value, logprobs: Value) -> Value {
    json!({"choices": [{"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": null}]})
}
