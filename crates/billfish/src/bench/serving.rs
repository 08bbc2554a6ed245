//! Requests to a server, and how long each of their tokens took.

use super::wire::Target;
use serde_json::{Value, json};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Which requests a server is sent.
pub struct Load {
    /// The server.
    pub target: Target,
    /// Its path.
    pub endpoint: String,
    /// The bodies of the requests.
    pub bodies: Vec<Value>,
    /// When each is sent, in seconds after the first.
    pub arrivals: Vec<f64>,
    /// Requests at once at most.
    pub at_once: usize,
    /// How long nothing may come.
    pub patience: Duration,
}

/// What became of a request.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Seconds from the beginning of the measurement to its being sent.
    pub begin: f64,
    /// Seconds to its first token.
    pub first: f64,
    /// Seconds between tokens.
    pub between: Vec<f64>,
    /// Seconds to its last token.
    pub latency: f64,
    /// Tokens of the prompt, as the server counted them.
    pub input: usize,
    /// Tokens of the answer.
    pub output: usize,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// A thread needs little of a stack to wait for a socket.
const STACK: usize = 256 << 10;

/// Sends everything and waits for it. `done` hears of each that has ended. Returns the outcomes and the seconds in all.
///
/// # Errors
/// The system gives no further thread.
pub fn send(load: &Load, done: &(dyn Fn() + Sync)) -> std::io::Result<(Vec<Outcome>, f64)> {
    let outcomes = Mutex::new(vec![Outcome::default(); load.bodies.len()]);
    let running = (Mutex::new(0usize), Condvar::new());
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for (i, (body, arrival)) in load.bodies.iter().zip(&load.arrivals).enumerate() {
            let wait = Duration::from_secs_f64(*arrival).saturating_sub(begin.elapsed());
            std::thread::sleep(wait);
            let (count, freed) = &running;
            let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
            while *count >= load.at_once {
                count = freed.wait(count).unwrap_or_else(PoisonError::into_inner);
            }
            *count += 1;
            drop(count);
            let (outcomes, running) = (&outcomes, &running);
            std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, move || {
                let outcome = one(load, body, begin);
                outcomes.lock().unwrap_or_else(PoisonError::into_inner)[i] = outcome;
                *running.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
                running.1.notify_one();
                done();
            })?;
        }
        Ok::<(), std::io::Error>(())
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    Ok((outcomes.into_inner().unwrap_or_else(PoisonError::into_inner), seconds))
}

fn one(load: &Load, body: &Value, begin: Instant) -> Outcome {
    let sent = Instant::now();
    let mut out = Outcome { begin: (sent - begin).as_secs_f64(), ..Outcome::default() };
    let answer = match load.target.send(&load.endpoint, Some(&body.to_string()), load.patience) {
        Ok(answer) if answer.status == 200 => answer,
        Ok(answer) => {
            let status = answer.status;
            let text: String = answer.text().unwrap_or_default().chars().take(300).collect();
            return Outcome { error: Some(format!("status {status}: {text}")), ..out };
        }
        Err(e) => return Outcome { error: Some(e.to_string()), ..out },
    };
    let (mut last, mut events, mut whole) = (None::<Instant>, 0, false);
    let read = answer.events(|data| {
        if data == "[DONE]" {
            whole = true;
            return false;
        }
        let Ok(value) = serde_json::from_str::<Value>(data) else { return true };
        if let Some(error) = value.get("error").filter(|e| !e.is_null()) {
            out.error = Some(error.to_string().chars().take(300).collect());
            return false;
        }
        if let Some(usage) = value.get("usage").filter(|u| !u.is_null()) {
            let count = |key: &str| usage[key].as_u64().unwrap_or(0) as usize;
            (out.input, out.output) = (count("prompt_tokens"), count("completion_tokens"));
        }
        let choice = &value["choices"][0];
        let text = choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str()).unwrap_or_default();
        // tokens may have no text; they are seen where the server names them
        if !text.is_empty() || choice["token_ids"].as_array().is_some_and(|ids| !ids.is_empty()) {
            let now = Instant::now();
            match last {
                None => out.first = (now - sent).as_secs_f64(),
                Some(before) => out.between.push((now - before).as_secs_f64()),
            }
            last = Some(now);
            events += 1;
        }
        true
    });
    if let Err(e) = read {
        out.error.get_or_insert_with(|| e.to_string());
    } else if !whole {
        out.error.get_or_insert_with(|| "the stream ended without [DONE]".into());
    } else if last.is_none() {
        let remedy = r#"tokens without text are counted with --extra-body '{"return_token_ids": true}'"#;
        out.error.get_or_insert_with(|| format!("no text came; {remedy}"));
    }
    out.latency = last.map_or(0.0, |l| (l - sent).as_secs_f64());
    if out.output == 0 {
        // a server that tells no usage: an event is a token
        out.output = events;
    }
    out
}

/// The body of a request for exactly `output` tokens.
pub fn body(model: &str, prompt: &Value, chat: bool, output: usize, extra: &Value) -> Value {
    let mut body = json!({
        "model": model,
        "max_tokens": output,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    match (chat, prompt) {
        (true, prompt) => body["messages"] = json!([{"role": "user", "content": prompt}]),
        (false, prompt) => body["prompt"] = prompt.clone(),
    }
    if let (Value::Object(body), Value::Object(extra)) = (&mut body, extra) {
        body.extend(extra.clone());
    }
    body
}

/// Figures over all requests that succeeded.
pub struct Figures {
    /// Requests that succeeded.
    pub completed: usize,
    /// Tokens of their prompts.
    pub input: usize,
    /// Tokens of their answers.
    pub output: usize,
    /// Milliseconds to the first token of each.
    pub first_ms: Vec<f64>,
    /// Milliseconds for each further token, a mean for each request.
    pub per_token_ms: Vec<f64>,
    /// Milliseconds between two tokens.
    pub between_ms: Vec<f64>,
    /// Milliseconds to the last token of each.
    pub latency_ms: Vec<f64>,
    /// Milliseconds for each further token of each, also of those that had none: 0.
    further_ms: Vec<f64>,
    /// Most tokens that came within a second of the measurement.
    pub peak_tokens: usize,
    /// Most requests that were under way within a second.
    pub peak_requests: usize,
}

/// Seconds for each token of an answer after its first; 0 if it has no further ones.
fn per_token(o: &Outcome) -> f64 {
    if o.output > 1 { (o.latency - o.first) / (o.output - 1) as f64 } else { 0.0 }
}

impl Figures {
    /// How many requests had their first token, each further one, and their last within so many milliseconds.
    pub fn within(&self, first: f64, per_token: f64, latency: f64) -> usize {
        let requests = self.first_ms.iter().zip(&self.further_ms).zip(&self.latency_ms);
        requests.filter(|((f, t), l)| **f <= first && **t <= per_token && **l <= latency).count()
    }

    /// Of these outcomes.
    pub fn of(outcomes: &[Outcome]) -> Figures {
        let good: Vec<&Outcome> = outcomes.iter().filter(|o| o.error.is_none()).collect();
        let ms = |s: f64| s * 1e3;
        let end = good.iter().map(|o| o.begin + o.latency).fold(0.0, f64::max);
        let (mut tokens, mut requests) = (vec![0usize; end as usize + 2], vec![0usize; end as usize + 2]);
        for o in &good {
            let mut at = o.begin + o.first;
            tokens[at as usize] += 1;
            for gap in &o.between {
                at += gap;
                tokens[(at as usize).min(end as usize + 1)] += 1;
            }
            for second in o.begin as usize..=(o.begin + o.latency) as usize {
                requests[second] += 1;
            }
        }
        Figures {
            completed: good.len(),
            input: good.iter().map(|o| o.input).sum(),
            output: good.iter().map(|o| o.output).sum(),
            first_ms: good.iter().map(|o| ms(o.first)).collect(),
            per_token_ms: good.iter().filter(|o| o.output > 1).map(|o| ms(per_token(o))).collect(),
            between_ms: good.iter().flat_map(|o| &o.between).map(|s| ms(*s)).collect(),
            latency_ms: good.iter().map(|o| ms(o.latency)).collect(),
            further_ms: good.iter().map(|o| ms(per_token(o))).collect(),
            peak_tokens: tokens.into_iter().max().unwrap_or(0),
            peak_requests: requests.into_iter().max().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_by_hand() {
        let o = |begin, first, between: &[f64], output| Outcome {
            begin,
            first,
            between: between.to_vec(),
            latency: first + between.iter().sum::<f64>(),
            input: 10,
            output,
            error: None,
        };
        let failed = Outcome { error: Some("x".into()), input: 99, ..Outcome::default() };
        let f = Figures::of(&[o(0.0, 0.5, &[0.25, 0.5], 3), o(1.0, 0.25, &[], 1), failed]);
        assert_eq!((f.completed, f.input, f.output), (2, 20, 4));
        let all = f64::INFINITY;
        // the first request has 500, 375 and 1250 ms, the second 250, none further, 250
        assert_eq!([f.within(all, all, all), f.within(500.0, all, all), f.within(499.0, all, all)], [2, 2, 1]);
        assert_eq!([f.within(all, 374.0, all), f.within(all, all, 1249.0), f.within(250.0, 0.0, 249.0)], [1, 1, 0]);
        assert_eq!((f.first_ms, f.per_token_ms), (vec![500.0, 250.0], vec![375.0]));
        assert_eq!((f.between_ms, f.latency_ms), (vec![250.0, 500.0], vec![1250.0, 250.0]));
        // 0.5 and 0.75 s fall into the first second, 1.25 and 1.25 s into the next; there both requests run
        assert_eq!((f.peak_tokens, f.peak_requests), (2, 2));
    }
}
