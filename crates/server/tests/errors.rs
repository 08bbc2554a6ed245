//! Every wrong request has an answer that says what is wrong with it.

mod common;

use common::{Setup, chat, completion, shared};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// A chat with a field that must be refused, by name.
fn param(path: &str, body: Value, param: &str) {
    let (status, error) = shared().refused(path, &body);
    assert_eq!((status, &error["param"], &error["type"]), (400, &json!(param), &json!("invalid_request_error")), "{body}: {error}");
    assert!(error["message"].as_str().unwrap().contains(param), "{error}");
}

#[test]
fn fields_out_of_range_are_named() {
    let cases = [
        ("temperature", json!([-0.1, 2.1, "hot", [], true])),
        ("top_p", json!([0, -1, 1.1, "a"])),
        ("top_k", json!([-2, 1.5, "a"])),
        ("min_p", json!([-0.1, 1.1])),
        ("n", json!([0, 129, 1.5, "1", -1])),
        ("presence_penalty", json!([-2.1, 2.1])),
        ("frequency_penalty", json!([-2.1, 2.1])),
        ("repetition_penalty", json!([0, -1, "a"])),
        ("seed", json!([1.5, "a", 1e300])),
        ("max_tokens", json!([-1, 0.5, "a"])),
        ("min_tokens", json!([-1])),
        ("stop", json!([1, {"a": 1}, "", ["a", ""]])),
        ("stop_token_ids", json!([5])),
        ("logit_bias", json!([[], 5])),
        ("ignore_eos", json!([1, "yes"])),
        ("cache_salt", json!(["", 5])),
        ("request_id", json!(["", "a b"])),
        ("truncate_prompt_tokens", json!([0, 5000])),
        ("prompt_logprobs", json!([-1, 21])),
        ("allowed_token_ids", json!([[], 1])),
        ("stream", json!(["yes", 1])),
        ("priority", json!(["high"])),
    ];
    for (name, values) in cases {
        for value in values.as_array().unwrap() {
            param(CHAT, chat(json!({name: value})), name);
            param(TEXT, completion(json!({name: value})), name);
        }
    }
    param(CHAT, chat(json!({"stop_token_ids": [1, 99999]})), "stop_token_ids[1]");
    param(CHAT, chat(json!({"logit_bias": {"5000": 1}})), "logit_bias.5000");
    param(CHAT, chat(json!({"logit_bias": {"5": 101}})), "logit_bias.5");
    param(CHAT, chat(json!({"logit_bias": {"five": 1}})), "logit_bias.five");
    param(CHAT, chat(json!({"top_logprobs": 5})), "top_logprobs");
    param(CHAT, chat(json!({"logprobs": true, "top_logprobs": 21})), "top_logprobs");
    param(CHAT, chat(json!({"logprobs": 1})), "logprobs");
    param(TEXT, completion(json!({"logprobs": 21})), "logprobs");
    param(TEXT, completion(json!({"logprobs": true})), "logprobs");
    param(CHAT, chat(json!({"stream_options": {"include_usage": true}})), "stream_options");
    param(CHAT, chat(json!({"stream": true, "stream_options": {"no": true}})), "stream_options.no");
    param(CHAT, chat(json!({"max_tokens": 5, "max_completion_tokens": 6})), "max_tokens");
    param(CHAT, chat(json!({"max_tokens": 0})), "max_tokens");
    param(CHAT, chat(json!({"bad_words": ["two words that are no token"]})), "bad_words");
    param(CHAT, chat(json!({"chat_template_kwargs": {"messages": []}})), "chat_template_kwargs.messages");
    param(CHAT, chat(json!({"continue_final_message": true, "add_generation_prompt": true})), "continue_final_message");
    param(CHAT, json!({"model": common::MODEL}), "messages");
    param(CHAT, chat(json!({"messages": []})), "messages");
    param(CHAT, chat(json!({"messages": [{"role": "user"}]})), "messages[0].content");
    param(TEXT, json!({"model": common::MODEL}), "prompt");
    for prompt in [json!([]), json!(5), json!(["a", 5]), json!([5000]), json!([[1], []]), json!("")] {
        let (status, error) = shared().refused(TEXT, &completion(json!({"prompt": prompt, "add_special_tokens": false})));
        assert!(status == 400 && error["param"].as_str().unwrap().starts_with("prompt"), "{prompt}: {error}");
    }
}

#[test]
fn what_is_not_done_is_refused_and_never_passed_over() {
    let cases = [
        (CHAT, json!({"audio": {}})),
        (CHAT, json!({"functions": []})),
        (CHAT, json!({"function_call": "auto"})),
        (CHAT, json!({"chat_template": "x"})),
        (CHAT, json!({"web_search_options": {}})),
        (CHAT, json!({"modalities": ["text", "audio"]})),
        (CHAT, json!({"echo": true})),
        (CHAT, json!({"use_beam_search": true})),
        (CHAT, json!({"length_penalty": 2})),
        (CHAT, json!({"samplers": ["top_k"]})),
        (CHAT, json!({"n_predict": 5})),
        (CHAT, json!({"mirostat": 1})),
        (CHAT, json!({"spaces_between_special_tokens": false})),
        (TEXT, json!({"suffix": "end"})),
        (TEXT, json!({"best_of": 2})),
        ("/v1/responses", json!({"input": "a", "previous_response_id": "x"})),
        ("/v1/responses", json!({"input": "a", "background": true})),
        ("/v1/responses", json!({"input": "a", "truncation": "auto"})),
    ];
    for (path, fields) in cases {
        let name = fields.as_object().unwrap().keys().next_back().unwrap().clone();
        let body = match path {
            CHAT => chat(fields),
            TEXT => completion(fields),
            _ => fields,
        };
        let (status, error) = shared().refused(path, &body);
        assert_eq!((status, &error["param"]), (400, &json!(name)), "{body}: {error}");
    }
    // what happens anyway may be said
    let body =
        chat(json!({"use_beam_search": false, "length_penalty": 1, "modalities": ["text"], "user": "me", "store": true, "max_tokens": 1}));
    let reply = shared().post(CHAT, &body);
    assert_eq!((reply.status, reply.header("x-billfish-unknown-parameters")), (200, None));
    let strict = Setup::default();
    let strict = Setup { config: billfish_server::Config { strict_params: true, ..strict.config }, ..strict }.start();
    let (status, error) = strict.refused(CHAT, &chat(json!({"of_tomorrow": 1})));
    assert_eq!((status, &error["param"]), (400, &json!("of_tomorrow")));
}

#[test]
fn the_context_is_a_limit_with_numbers() {
    let long = "word ".repeat(3000);
    for (path, body) in [
        (CHAT, chat(json!({"messages": [{"role": "user", "content": long}]}))),
        (TEXT, completion(json!({"prompt": long}))),
        (CHAT, chat(json!({"max_tokens": 1020}))),
        (TEXT, completion(json!({"max_tokens": 1020}))),
    ] {
        let (status, error) = shared().refused(path, &body);
        let message = error["message"].as_str().unwrap();
        assert_eq!((status, &error["code"]), (400, &json!("context_length_exceeded")), "{error}");
        assert!(message.contains("1024"), "{message}");
    }
}

#[test]
fn statuses_of_the_wire() {
    let s = shared();
    let json_type = ("content-type", "application/json");
    let check = |reply: common::Reply, status: u16, code: Value| {
        let error = reply.json()["error"].clone();
        assert_eq!((reply.status, &error["code"]), (status, &code), "{error}");
        for key in ["message", "type", "param"] {
            assert!(error.get(key).is_some(), "{error}");
        }
        reply
    };
    let (status, error) = s.refused(CHAT, &chat(json!({"model": "gpt-5"})));
    assert_eq!((status, &error["code"], &error["param"]), (404, &json!("model_not_found"), &json!("model")));
    check(s.get("/nothing"), 404, json!("not_found"));
    check(s.get("/v1/models/"), 404, json!("not_found"));
    let wrong = check(s.request("PUT", CHAT, &[json_type], b"{}"), 405, json!("method_not_allowed"));
    assert_eq!(wrong.header("allow"), Some("POST"));
    let wrong = check(s.request("POST", "/health", &[json_type], b"{}"), 405, json!("method_not_allowed"));
    assert_eq!(wrong.header("allow"), Some("GET, HEAD"));
    assert_eq!(s.request("GET", CHAT, &[], &[]).status, 405);
    check(s.request("POST", CHAT, &[("content-type", "text/plain")], b"{}"), 415, json!("unsupported_media_type"));
    check(s.request("POST", CHAT, &[], b"{}"), 415, json!("unsupported_media_type"));
    for body in [&b"{"[..], b"", b"[]", b"5", b"{\"a\": \xff}", b"{\"messages\": \"\xc3\x28\"}", b"nul", b"{}{}"] {
        check(s.request("POST", CHAT, &[json_type], body), 400, Value::Null);
    }
    assert_eq!(s.request("POST", CHAT, &[("content-type", "application/json; charset=utf-8")], b"{}").status, 400);
    let deep = format!("{{\"messages\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    check(s.request("POST", CHAT, &[json_type], deep.as_bytes()), 400, Value::Null);
    let head = s.request("HEAD", "/version", &[], &[]);
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[test]
fn tools_need_a_template_that_shows_them() {
    let tool = json!({"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}});
    param(CHAT, chat(json!({"tools": [tool]})), "tools");
    param(CHAT, chat(json!({"tools": [tool, tool]})), "tools[1].function.name");
    param(CHAT, chat(json!({"tools": [{"type": "code"}]})), "tools[0].type");
    param(CHAT, chat(json!({"tools": [{"type": "function", "function": {"name": "a b"}}]})), "tools[0].function.name");
    param(CHAT, chat(json!({"tool_choice": "auto"})), "tool_choice");
    param(CHAT, chat(json!({"tools": [tool], "tool_choice": "maybe"})), "tool_choice");
    let named = json!({"type": "function", "function": {"name": "other"}});
    let (status, error) = shared().refused(CHAT, &chat(json!({"tools": [tool], "tool_choice": named})));
    assert_eq!((status, &error["param"]), (400, &json!("tool_choice.function.name")));
    // the model is not told of tools that it must not call
    let none = shared().ok(CHAT, &chat(json!({"tools": [tool], "tool_choice": "none"})));
    assert_eq!(none["choices"], shared().ok(CHAT, &chat(json!({})))["choices"]);
}
