//! Probabilities of tokens, in the shapes of the three places where they stand.

use billfish_engine::TokenLogprob;
use billfish_text::Tokenizer;
use serde_json::{Map, Value, json};

/// JSON has no infinity; OpenAI writes this.
const LEAST: f32 = -9999.0;

fn number(logprob: f32) -> Value {
    json!(f64::from(logprob.max(LEAST)))
}

/// A token as text. Bytes that are no text come out as U+FFFD.
pub(crate) fn text(tokenizer: &Tokenizer, token: u32) -> String {
    tokenizer.token_bytes(token).map_or_else(String::new, |b| String::from_utf8_lossy(&b).into_owned())
}

fn chat_one(tokenizer: &Tokenizer, token: u32, logprob: f32) -> Value {
    let bytes = tokenizer.token_bytes(token).unwrap_or_default();
    json!({"token": String::from_utf8_lossy(&bytes), "logprob": number(logprob), "bytes": bytes})
}

/// A token of a chat's answer.
pub(crate) fn chat(tokenizer: &Tokenizer, l: &TokenLogprob) -> Value {
    let mut one = chat_one(tokenizer, l.token, l.logprob);
    one["top_logprobs"] = l.top.iter().map(|(t, p)| chat_one(tokenizer, *t, *p)).collect();
    one
}

/// The logprobs of text completions, which grow token by token.
#[derive(Default)]
pub(crate) struct TextLogprobs {
    tokens: Vec<Value>,
    logprobs: Vec<Value>,
    top: Vec<Value>,
    offsets: Vec<usize>,
    /// Characters so far.
    at: usize,
}

impl TextLogprobs {
    /// Adds a token without a probability: the first of a prompt.
    pub fn first(&mut self, tokenizer: &Tokenizer, token: u32) {
        self.add(tokenizer, token, Value::Null, Value::Null);
    }

    pub fn push(&mut self, tokenizer: &Tokenizer, l: &TokenLogprob) {
        let mut top = Map::new();
        for (token, logprob) in &l.top {
            // tokens that read the same: the likeliest stands for all
            top.entry(text(tokenizer, *token)).or_insert_with(|| number(*logprob));
        }
        top.entry(text(tokenizer, l.token)).or_insert_with(|| number(l.logprob));
        self.add(tokenizer, l.token, number(l.logprob), Value::Object(top));
    }

    fn add(&mut self, tokenizer: &Tokenizer, token: u32, logprob: Value, top: Value) {
        let text = text(tokenizer, token);
        self.offsets.push(self.at);
        self.at += text.chars().count();
        self.tokens.push(text.into());
        self.logprobs.push(logprob);
        self.top.push(top);
    }

    /// What has been added since the last call.
    pub fn take(&mut self) -> Value {
        json!({
            "tokens": std::mem::take(&mut self.tokens),
            "token_logprobs": std::mem::take(&mut self.logprobs),
            "top_logprobs": std::mem::take(&mut self.top),
            "text_offset": std::mem::take(&mut self.offsets),
        })
    }
}

/// `prompt_logprobs`, as vLLM has them: an object of tokens by id for each token of the prompt, null for the first.
pub(crate) fn prompt(tokenizer: &Tokenizer, list: &[Option<TokenLogprob>]) -> Value {
    let one =
        |token: u32, logprob: f32, rank: usize| json!({"logprob": number(logprob), "rank": rank, "decoded_token": text(tokenizer, token)});
    let each = |l: &Option<TokenLogprob>| match l {
        None => Value::Null,
        Some(l) => {
            let mut map = Map::new();
            map.insert(l.token.to_string(), one(l.token, l.logprob, l.rank));
            for (i, (token, logprob)) in l.top.iter().enumerate() {
                map.entry(token.to_string()).or_insert_with(|| one(*token, *logprob, i + 1));
            }
            Value::Object(map)
        }
    };
    list.iter().map(each).collect()
}
