//! What is collected of each choice while it is generated.

use crate::app::App;
use crate::control::Phase;
use crate::error::ApiError;
use crate::reasoning::{Said, Thinking};
use crate::sse::Events;
use crate::worker::{Event, Job};
use billfish_engine::{FinishReason, Happened, StopCause, TokenLogprob};
use serde_json::{Value, json};

/// Tokens counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub prompt: usize,
    pub cached: usize,
    pub completion: usize,
    /// Those of `completion` that were thoughts.
    pub reasoning: usize,
}

impl Usage {
    pub fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        })
    }
}

/// One choice.
#[derive(Default)]
pub(crate) struct Choice {
    /// What was thought before the text.
    pub reasoning: String,
    pub text: String,
    pub tokens: Vec<u32>,
    pub logprobs: Vec<TokenLogprob>,
    pub finish: Option<Finish>,
}

impl Choice {
    fn add(&mut self, said: Said) {
        self.reasoning.push_str(&said.reasoning);
        self.text.push_str(&said.content);
    }
}

/// How a choice ended.
#[derive(Clone, Debug)]
pub(crate) struct Finish {
    pub reason: &'static str,
    /// The text or token that it stopped at.
    pub stop: Value,
}

impl Finish {
    pub fn new(app: &App, reason: FinishReason, stop: Option<StopCause>) -> Finish {
        let stop = match stop {
            Some(StopCause::Text(text)) => text.into(),
            // a model's own end needs no mention
            Some(StopCause::Token(token)) if !app.model.tokenizer.eos_ids().contains(&token) => token.into(),
            _ => Value::Null,
        };
        Finish { reason: if reason == FinishReason::Length { "length" } else { "stop" }, stop }
    }
}

/// Everything of a request whose answer comes at once.
pub(crate) struct Answer {
    /// Choice `c` of prompt `p` is at `p * n + c`.
    pub choices: Vec<Choice>,
    /// Logprobs of each prompt.
    pub prompts: Vec<Option<Vec<Option<TokenLogprob>>>>,
    pub usage: Usage,
}

/// The next event, unless the server ends before.
pub(crate) async fn next(app: &App, job: &mut Job) -> Result<Option<Event>, ApiError> {
    tokio::select! {
        event = job.next() => event,
        () = app.control.reached(Phase::Stopping) => Err(ApiError::unavailable("the server is stopping")),
    }
}

/// What a stream hears of.
pub(crate) enum Heard {
    Event(Event),
    /// All choices have ended.
    End,
    /// The client is gone.
    Gone,
    Failed(ApiError),
}

/// The next event for a stream. While nothing happens, comments keep the connection alive.
pub(crate) async fn heard(app: &App, job: &mut Job, events: &Events) -> Heard {
    loop {
        tokio::select! {
            event = next(app, job) => return match event {
                Ok(Some(event)) => Heard::Event(event),
                Ok(None) => Heard::End,
                Err(e) => Heard::Failed(e),
            },
            () = events.gone() => return Heard::Gone,
            () = tokio::time::sleep(app.config.keep_alive) => {
                if events.comment().await.is_err() {
                    return Heard::Gone;
                }
            }
        }
    }
}

impl Answer {
    /// Waits for all of it. Each choice is divided as `thinking` says.
    pub async fn collect(app: &App, mut job: Job, prompt_tokens: &[usize], n: usize, thinking: &Thinking) -> Result<Answer, ApiError> {
        let prompts = prompt_tokens.len();
        let mut answer = Answer {
            choices: (0..prompts * n).map(|_| Choice::default()).collect(),
            prompts: (0..prompts).map(|_| None).collect(),
            usage: Usage { prompt: prompt_tokens.iter().sum(), ..Usage::default() },
        };
        let mut thinking = vec![thinking.clone(); prompts * n];
        while let Some((prompt, happened)) = next(app, &mut job).await? {
            match happened {
                Happened::Prompt { cached_tokens, logprobs } => {
                    answer.usage.cached += cached_tokens;
                    answer.prompts[prompt] = logprobs;
                }
                Happened::Token { choice, token, text, logprob } => {
                    let at = prompt * n + choice;
                    let choice = &mut answer.choices[at];
                    choice.add(thinking[at].token(&text));
                    choice.tokens.push(token);
                    choice.logprobs.extend(logprob);
                    answer.usage.completion += 1;
                }
                Happened::End { choice, text, reason, stop } => {
                    let at = prompt * n + choice;
                    let choice = &mut answer.choices[at];
                    choice.add(thinking[at].end(&text));
                    answer.usage.reasoning += thinking[at].tokens();
                    choice.finish = Some(Finish::new(app, reason, stop));
                }
                Happened::Failed(e) => return Err(e.into()),
            }
        }
        Ok(answer)
    }
}
