//! Chats over a socket: what comes as a stream is what comes at once, and both are what was asked for.

mod common;

use common::{chat, shared};
use serde_json::{Value, json};

const PATH: &str = "/v1/chat/completions";

/// Content, finish reasons and logprobs of each choice of a stream.
fn joined(events: &[Value], choices: usize) -> Vec<(String, Vec<String>, Vec<Value>)> {
    let mut out = vec![(String::new(), vec![], vec![]); choices];
    for c in events.iter().flat_map(|e| e["choices"].as_array().unwrap()) {
        let of = &mut out[c["index"].as_u64().unwrap() as usize];
        of.0.push_str(c["delta"]["content"].as_str().unwrap_or_default());
        of.1.extend(c["finish_reason"].as_str().map(str::to_owned));
        of.2.extend(c["logprobs"]["content"].as_array().cloned().unwrap_or_default());
    }
    out
}

#[test]
fn a_stream_is_the_answer_in_pieces() {
    let s = shared();
    for fields in [
        json!({}),
        json!({"temperature": 0}),
        json!({"n": 3, "temperature": 1.2}),
        json!({"logprobs": true, "top_logprobs": 3}),
        json!({"stop": ["the", "a ", ","], "max_tokens": 60}),
        json!({"stop": [" the king"], "include_stop_str_in_output": true, "max_tokens": 60}),
    ] {
        let whole = s.ok(PATH, &chat(fields.clone()));
        let events = s.stream(PATH, &chat(fields.clone()));
        let choices = whole["choices"].as_array().unwrap();
        for (choice, (text, finish, logprobs)) in choices.iter().zip(joined(&events, choices.len())) {
            assert_eq!(choice["message"]["content"], text, "{fields}");
            assert_eq!(finish, [choice["finish_reason"].as_str().unwrap()], "{fields}");
            assert_eq!(choice["logprobs"]["content"].as_array().cloned().unwrap_or_default(), logprobs, "{fields}");
        }
        let first = &events[0]["choices"][0]["delta"];
        assert_eq!(*first, json!({"role": "assistant", "content": ""}));
        for e in &events {
            assert_eq!((&e["id"], &e["created"], &e["object"]), (&events[0]["id"], &events[0]["created"], &json!("chat.completion.chunk")));
        }
        assert!(events[0]["id"].as_str().unwrap().starts_with("chatcmpl-"));
    }
}

#[test]
fn usage_adds_up_and_comes_last() {
    let s = shared();
    let whole = s.ok(PATH, &chat(json!({"n": 2, "max_tokens": 5, "ignore_eos": true})));
    let u = &whole["usage"];
    assert_eq!(u["completion_tokens"], 10);
    assert_eq!(u["total_tokens"].as_u64(), Some(u["prompt_tokens"].as_u64().unwrap() + 10));
    let prompt = s.ok("/tokenize", &json!({"messages": chat(json!({}))["messages"]}));
    assert_eq!(prompt["count"], u["prompt_tokens"]);

    let events = s.stream(PATH, &chat(json!({"stream_options": {"include_usage": true}, "max_tokens": 5})));
    let (last, before) = events.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 5);
    assert!(before.iter().all(|e| e.get("usage") == Some(&Value::Null)));
    let events = s.stream(PATH, &chat(json!({"max_tokens": 5})));
    assert!(events.iter().all(|e| e.get("usage").is_none() && e["choices"] != json!([])));
    let continuous = s.stream(PATH, &chat(json!({"stream_options": {"continuous_usage_stats": true}, "max_tokens": 5})));
    let counts: Vec<u64> = continuous.iter().map(|e| e["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert!(counts.is_sorted() && counts.last() == Some(&5), "{counts:?}");
}

#[test]
fn seeds_and_choices() {
    let s = shared();
    let texts = |v: Value| -> Vec<String> {
        v["choices"].as_array().unwrap().iter().map(|c| c["message"]["content"].as_str().unwrap().into()).collect()
    };
    let ask = |fields| texts(s.ok(PATH, &chat(fields)));
    let hot = ask(json!({"n": 2, "temperature": 1.5}));
    assert_eq!(hot, ask(json!({"n": 2, "temperature": 1.5})));
    assert_ne!(hot[0], hot[1]);
    assert_eq!(hot[..1], ask(json!({"temperature": 1.5})), "the first choice is that of n = 1");
    assert_ne!(hot, ask(json!({"n": 2, "temperature": 1.5, "seed": 8})));
    let greedy = ask(json!({"n": 2, "temperature": 0}));
    assert_eq!(greedy[0], greedy[1]);
    // without a seed the answer names one that repeats it
    let whole = s.ok(PATH, &chat(json!({"seed": null, "temperature": 1.5})));
    assert_eq!(texts(whole.clone()), ask(json!({"seed": whole["seed"], "temperature": 1.5})));
    assert_ne!(whole["seed"], s.ok(PATH, &chat(json!({"seed": null})))["seed"]);
}

#[test]
fn stops_are_found_wherever_they_lie() {
    let s = shared();
    let base = chat(json!({"temperature": 0, "max_tokens": 40, "ignore_eos": true}));
    let whole = s.ok(PATH, &base);
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    let starts: Vec<usize> = text.char_indices().map(|(i, _)| i).filter(|i| i + 8 < text.len()).collect();
    // every stop of some length occurs first at its own first place; tokens begin and end anywhere in it
    for &at in starts.iter().step_by(5) {
        let stop: String = text[at..].chars().take(7).collect();
        let first = text.find(&stop).unwrap();
        let ask = |include: bool| {
            let mut body = base.clone();
            (body["stop"], body["include_stop_str_in_output"]) = (json!([stop]), include.into());
            body
        };
        let cut = s.ok(PATH, &ask(false));
        let choice = &cut["choices"][0];
        assert_eq!(choice["message"]["content"], text[..first], "{stop:?}");
        assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(stop)));
        // nothing of it leaks into a stream
        let (streamed, _, _) = joined(&s.stream(PATH, &ask(false)), 1).remove(0);
        assert_eq!(streamed, text[..first], "{stop:?}");
        let with = s.ok(PATH, &ask(true));
        assert_eq!(with["choices"][0]["message"]["content"], text[..first + stop.len()]);
    }
    // not before so many tokens
    let mut late = base.clone();
    (late["stop"], late["min_tokens"]) = (json!(text.chars().next().unwrap().to_string()), json!(10));
    let usage = s.ok(PATH, &late)["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(usage >= 10, "{usage}");
}

#[test]
fn stop_tokens_bias_and_lists_of_tokens() {
    let s = shared();
    let ids = |fields: Value| -> Vec<u64> {
        let mut body = chat(json!({"temperature": 0, "return_token_ids": true, "max_tokens": 12, "ignore_eos": true}));
        fields.as_object().unwrap().iter().for_each(|(k, v)| body[k] = v.clone());
        s.ok(PATH, &body)["choices"][0]["token_ids"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap()).collect()
    };
    let plain = ids(json!({}));
    assert_eq!(plain.len(), 12);
    let until = plain.iter().position(|t| *t == plain[5]).unwrap();
    assert_eq!(ids(json!({"stop_token_ids": [plain[5]]})), plain[..=until]);
    let banned = ids(json!({"logit_bias": {plain[0].to_string(): -100}}));
    assert!(!banned.contains(&plain[0]));
    assert!(ids(json!({"logit_bias": {"77": 100}})).iter().all(|t| *t == 77));
    assert!(ids(json!({"allowed_token_ids": [70, 71, 72]})).iter().all(|t| (70..=72).contains(t)));
    let word = common::tokenizer().decode(&[plain[3] as u32], true).unwrap();
    assert!(!ids(json!({"bad_words": [word.trim()]})).contains(&plain[3]), "{word}");
    let streamed = s.stream(PATH, &chat(json!({"temperature": 0, "return_token_ids": true, "max_tokens": 12, "ignore_eos": true})));
    let told: Vec<u64> = streamed
        .iter()
        .flat_map(|e| e["choices"][0]["token_ids"].as_array().cloned().unwrap_or_default())
        .map(|t| t.as_u64().unwrap())
        .collect();
    assert_eq!(told, plain);
    assert!(streamed[0]["prompt_token_ids"].is_array());
}

#[test]
fn logprobs_are_those_of_the_tokens() {
    let s = shared();
    for top in [0, 1, 5, 20] {
        let v = s.ok(PATH, &chat(json!({"logprobs": true, "top_logprobs": top, "temperature": 0, "max_tokens": 6, "ignore_eos": true})));
        let list = v["choices"][0]["logprobs"]["content"].as_array().unwrap();
        assert_eq!(list.len(), 6);
        let text: Vec<u8> = list.iter().flat_map(|l| l["bytes"].as_array().unwrap()).map(|b| b.as_u64().unwrap() as u8).collect();
        assert_eq!(String::from_utf8_lossy(&text).trim_start(), v["choices"][0]["message"]["content"].as_str().unwrap().trim_start());
        for l in list {
            let tops = l["top_logprobs"].as_array().unwrap();
            assert_eq!(tops.len(), top);
            let own = l["logprob"].as_f64().unwrap();
            assert!(own <= 0.0);
            if let Some(best) = tops.first() {
                assert_eq!((&best["token"], &best["logprob"]), (&l["token"], &l["logprob"]), "greedy takes the best");
            }
            let values: Vec<f64> = tops.iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
            assert!(values.is_sorted_by(|a, b| a >= b) && values.iter().map(|v| v.exp()).sum::<f64>() <= 1.0 + 1e-5);
        }
    }
    let v = s.ok(PATH, &chat(json!({"prompt_logprobs": 2, "max_tokens": 1})));
    let list = v["prompt_logprobs"].as_array().unwrap();
    assert_eq!(list.len() as u64, v["usage"]["prompt_tokens"].as_u64().unwrap());
    assert!(list[0].is_null() && list[1..].iter().all(|l| l.as_object().unwrap().len() >= 2));
}

#[test]
fn messages_are_rendered_as_the_template_says() {
    let s = shared();
    let count = |body: Value| s.ok("/tokenize", &body)["tokens"].clone();
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": "a b"}]}]);
    let plain = json!([{"role": "user", "content": "a b"}]);
    assert_eq!(count(json!({"messages": parts})), count(json!({"messages": plain})));
    let text = "<|im_start|>user\na b<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(count(json!({"messages": plain})), count(json!({"prompt": text, "add_special_tokens": false})));
    let begun = json!([{"role": "user", "content": "a b"}, {"role": "assistant", "content": "It was"}]);
    let continued = json!({"messages": begun, "continue_final_message": true});
    assert_eq!(count(continued), count(json!({"prompt": format!("{text}It was"), "add_special_tokens": false})));
    let back = s.ok("/detokenize", &json!({"tokens": count(json!({"messages": plain}))}));
    assert_eq!(back["prompt"], text);
}

#[test]
fn names_in_and_out() {
    let s = shared();
    let list = s.get("/v1/models").json();
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [common::MODEL, "alias"]);
    assert_eq!(s.get("/v1/models/alias").json()["max_model_len"], 1024);
    assert_eq!(s.get("/v1/models/none").status, 404);
    assert_eq!(s.ok(PATH, &chat(json!({"model": "alias", "max_tokens": 1})))["model"], common::MODEL);
    assert_eq!(s.ok(PATH, &chat(json!({"request_id": "mine", "max_tokens": 1})))["id"], "chatcmpl-mine");
    let reply = s.request("GET", "/version", &[("x-request-id", "given-by-me")], &[]);
    assert_eq!(reply.header("x-request-id"), Some("given-by-me"));
    let reply = s.request("GET", "/version", &[("x-request-id", "not \"plain\"")], &[]);
    assert_eq!(reply.header("x-request-id").map(str::len), Some(32));
    let reply = s.post(PATH, &chat(json!({"max_tokens": 1, "of_tomorrow": 1})));
    assert_eq!(reply.header("x-billfish-unknown-parameters"), Some("of_tomorrow"));
}

#[test]
fn responses_are_the_same_chat() {
    let s = shared();
    let body = json!({"input": "Tell me of the fox.", "max_output_tokens": 24, "seed": 7, "metadata": {"a": "b"}});
    let whole = s.ok("/v1/responses", &body);
    let text = s.ok(PATH, &chat(json!({})))["choices"][0]["message"]["content"].clone();
    assert_eq!(whole["output"][0]["content"][0]["text"], text);
    assert_eq!((&whole["object"], &whole["metadata"]["a"]), (&json!("response"), &json!("b")));
    assert_eq!(whole["status"], if whole["usage"]["output_tokens"] == 24 { "incomplete" } else { "completed" });
    let as_list = json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "Tell me of the fox."}]}], "max_output_tokens": 24, "seed": 7});
    assert_eq!(s.ok("/v1/responses", &as_list)["output"][0]["content"][0]["text"], text);

    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let raw = s.post("/v1/responses", &streamed).text();
    let events: Vec<Value> = raw.lines().filter_map(|l| l.strip_prefix("data: ")).map(|d| serde_json::from_str(d).unwrap()).collect();
    let names: Vec<&str> = raw.lines().filter_map(|l| l.strip_prefix("event: ")).collect();
    assert!(names.iter().zip(&events).all(|(n, e)| e["type"] == *n));
    assert!(events.iter().enumerate().all(|(i, e)| e["sequence_number"] == i));
    let deltas: String =
        events.iter().filter(|e| e["type"] == "response.output_text.delta").map(|e| e["delta"].as_str().unwrap()).collect();
    assert_eq!(text, deltas);
    let last = &events.last().unwrap()["response"];
    assert_eq!((&last["output"][0]["content"], &last["usage"]), (&whole["output"][0]["content"], &whole["usage"]));
}
