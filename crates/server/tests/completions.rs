//! Text completions over a socket.

mod common;

use common::{PROMPT, completion, shared, tokenizer};
use serde_json::{Value, json};

const PATH: &str = "/v1/completions";

fn text(v: &Value) -> &str {
    v["choices"][0]["text"].as_str().unwrap()
}

#[test]
fn a_stream_is_the_answer_in_pieces() {
    let s = shared();
    for fields in [
        json!({}),
        json!({"n": 2}),
        json!({"logprobs": 2}),
        json!({"echo": true}),
        json!({"echo": true, "logprobs": 1, "n": 2}),
        json!({"prompt": [PROMPT, "The fox said"], "n": 2}),
        json!({"stop": " the", "max_tokens": 60}),
    ] {
        let whole = s.ok(PATH, &completion(fields.clone()));
        let events = s.stream(PATH, &completion(fields.clone()));
        for choice in whole["choices"].as_array().unwrap() {
            let of: Vec<&Value> =
                events.iter().flat_map(|e| e["choices"].as_array().unwrap()).filter(|c| c["index"] == choice["index"]).collect();
            let joined: String = of.iter().map(|c| c["text"].as_str().unwrap()).collect();
            assert_eq!(choice["text"], joined, "{fields}");
            let finish: Vec<&Value> = of.iter().map(|c| &c["finish_reason"]).filter(|f| !f.is_null()).collect();
            assert_eq!(finish, [&choice["finish_reason"]], "{fields}");
            for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                let parts: Vec<Value> = of.iter().flat_map(|c| c["logprobs"][key].as_array().cloned().unwrap_or_default()).collect();
                assert_eq!(choice["logprobs"][key].as_array().cloned().unwrap_or_default(), parts, "{fields} {key}");
            }
        }
    }
}

#[test]
fn prompts_of_every_shape() {
    let s = shared();
    let other = "The fox said";
    let ids = |t: &str| tokenizer().encode_prompt(t).unwrap();
    let both = s.ok(PATH, &completion(json!({"prompt": [PROMPT, other], "temperature": 0})));
    let as_tokens = s.ok(PATH, &completion(json!({"prompt": [ids(PROMPT), ids(other)], "temperature": 0})));
    assert_eq!(both["choices"], as_tokens["choices"]);
    for (i, prompt) in [json!(PROMPT), json!(other)].into_iter().enumerate() {
        let alone = s.ok(PATH, &completion(json!({"prompt": prompt, "temperature": 0})));
        assert_eq!(alone["choices"][0]["text"], both["choices"][i]["text"]);
        assert_eq!(both["choices"][i]["index"], i);
    }
    let one = s.ok(PATH, &completion(json!({"prompt": ids(PROMPT)})));
    assert_eq!(text(&one), text(&s.ok(PATH, &completion(json!({})))));
    assert_eq!(one["usage"]["prompt_tokens"], ids(PROMPT).len());
    // prompt by prompt, choice by choice
    let n = s.ok(PATH, &completion(json!({"prompt": [PROMPT, other], "n": 2})));
    let alone = s.ok(PATH, &completion(json!({"n": 2})));
    assert_eq!((&n["choices"][0]["text"], &n["choices"][1]["text"]), (&alone["choices"][0]["text"], &alone["choices"][1]["text"]));
    assert_eq!(s.ok(PATH, &completion(json!({"max_tokens": null, "ignore_eos": true})))["usage"]["completion_tokens"], 16);
}

#[test]
fn the_prompt_can_be_repeated_with_its_logprobs() {
    let s = shared();
    let echoed = s.ok(PATH, &completion(json!({"echo": true, "logprobs": 1, "temperature": 0})));
    let plain = s.ok(PATH, &completion(json!({"logprobs": 1, "temperature": 0})));
    assert_eq!(text(&echoed), format!("{PROMPT}{}", text(&plain)));
    let l = &echoed["choices"][0]["logprobs"];
    let n = tokenizer().encode_prompt(PROMPT).unwrap().len();
    assert!(l["token_logprobs"][0].is_null() && l["top_logprobs"][0].is_null());
    let part = |v: &Value| v.as_array().unwrap()[n..].to_vec();
    assert_eq!(part(&l["token_logprobs"]), *plain["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap());
    let tokens: String = l["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert!(tokens.ends_with(text(&plain).trim_start()), "{tokens}");
    let offsets: Vec<u64> = l["text_offset"].as_array().unwrap().iter().map(|o| o.as_u64().unwrap()).collect();
    assert!(offsets[0] == 0 && offsets.is_sorted());

    // a score of a text, as evaluation programs ask for it: the same numbers token by token
    let score = s.ok(PATH, &completion(json!({"echo": true, "logprobs": 1, "max_tokens": 0})));
    assert_eq!((text(&score), &score["usage"]["completion_tokens"]), (PROMPT, &json!(0)));
    assert_eq!(score["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap()[1..], l["token_logprobs"].as_array().unwrap()[1..n]);
    // what follows one token less is the logprob of that token
    let ids = tokenizer().encode_prompt(PROMPT).unwrap();
    let (last, before) = ids.split_last().unwrap();
    let next = s.ok(
        PATH,
        &completion(json!({"prompt": before, "max_tokens": 1, "logprobs": 0, "logit_bias": {last.to_string(): 100}, "temperature": 0})),
    );
    assert_eq!(next["choices"][0]["logprobs"]["token_logprobs"][0], l["token_logprobs"][n - 1]);
    let prompt = s.ok(PATH, &completion(json!({"prompt_logprobs": 0, "max_tokens": 1})));
    assert_eq!(prompt["choices"][0]["prompt_logprobs"][n - 1][last.to_string()]["logprob"], l["token_logprobs"][n - 1]);
}

#[test]
fn long_prompts_can_be_cut() {
    let s = shared();
    let ids = tokenizer().encode_prompt(PROMPT).unwrap();
    let cut = s.ok(PATH, &completion(json!({"truncate_prompt_tokens": 4, "temperature": 0})));
    let end = s.ok(PATH, &completion(json!({"prompt": ids[ids.len() - 4..], "temperature": 0})));
    assert_eq!((text(&cut), &cut["usage"]), (text(&end), &end["usage"]));
    assert_eq!(cut["usage"]["prompt_tokens"], 4);
}

#[test]
fn penalties_change_what_repeats() {
    let s = shared();
    let distinct = |fields: Value| {
        let mut body = completion(json!({"temperature": 0, "max_tokens": 60, "ignore_eos": true, "return_token_ids": true}));
        fields.as_object().unwrap().iter().for_each(|(k, v)| body[k] = v.clone());
        let v = s.ok(PATH, &body);
        v["choices"][0]["token_ids"].as_array().unwrap().iter().map(Value::to_string).collect::<std::collections::BTreeSet<_>>().len()
    };
    let plain = distinct(json!({}));
    for fields in [json!({"frequency_penalty": 2}), json!({"presence_penalty": 2}), json!({"repetition_penalty": 1.5})] {
        let found = distinct(fields.clone());
        assert!(found > plain, "{fields}: {found} of {plain}");
    }
}
