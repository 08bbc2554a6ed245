//! Tools and forms over a socket: a model of fairy tales calls tools when it must, and writes the JSON that it is held to.

mod common;

use billfish_server::ToolDialect;
use common::{Running, Setup, chat, completion, shared};
use serde_json::{Value, json};
use std::sync::OnceLock;

const PATH: &str = "/v1/chat/completions";

/// Shows tools as Hermes' template does.
const HERMES: &str = "{% if tools %}<|im_start|>system\nTools: {% for t in tools %}{{ t | tojson }}\n{% endfor %}\
    Call one with <tool_call>{\"name\": …, \"arguments\": …}</tool_call><|im_end|>\n{% endif %}\
    {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
    {% for c in m.tool_calls %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// As Llama 3 has it.
const LLAMA: &str = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n\
    {% if m.tool_calls %}{\"name\": \"{{ m.tool_calls[0].function.name }}\", \"parameters\": {{ m.tool_calls[0].function.arguments | tojson }}}\
    {% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n";

/// As Mistral has it.
const MISTRAL: &str = "{% for t in tools or [] %}[AVAILABLE_TOOLS]{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m.role }} {{ m.content }}\
    {% if m.tool_calls %}[TOOL_CALLS] [{{ m.tool_calls[0].function | tojson }}]{% endif %}{% endfor %}<|im_start|>assistant\n";

fn hermes() -> &'static Running {
    static ONE: OnceLock<Running> = OnceLock::new();
    ONE.get_or_init(|| Setup { template: Some(HERMES), ..Setup::default() }.start())
}

fn tools() -> Value {
    let weather = json!({"type": "object", "properties": {"city": {"enum": ["Kiel", "Ulm"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}}, "required": ["city", "days"], "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": weather}},
        {"type": "function", "function": {"name": "lucky", "parameters": {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"], "additionalProperties": false}}},
    ])
}

/// Checks a call against its tool by hand.
fn right(call: &Value) {
    assert_eq!(call["type"], "function");
    assert!(!call["id"].as_str().unwrap().is_empty());
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    let object = arguments.as_object().unwrap();
    match call["function"]["name"].as_str().unwrap() {
        "weather" => {
            assert!(object.len() == 2 && ["Kiel", "Ulm"].contains(&arguments["city"].as_str().unwrap()));
            assert!((1..=7).contains(&arguments["days"].as_i64().unwrap()));
        }
        "lucky" => assert!(object.len() == 1 && arguments["yes"].is_boolean()),
        other => panic!("{other}"),
    }
}

/// The calls of a stream, put together from their deltas, and its finish reasons.
fn streamed(events: &[Value]) -> (String, Vec<Value>, Vec<String>) {
    let (mut content, mut calls, mut finish): (String, Vec<Value>, Vec<String>) = Default::default();
    for c in events.iter().flat_map(|e| e["choices"].as_array().unwrap()) {
        content.push_str(c["delta"]["content"].as_str().unwrap_or_default());
        finish.extend(c["finish_reason"].as_str().map(str::to_owned));
        for d in c["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = d["index"].as_u64().unwrap() as usize;
            if index == calls.len() {
                assert!(d["id"].is_string() && d["function"]["name"].is_string(), "{d}");
                calls.push(json!({"id": d["id"], "type": d["type"], "function": {"name": d["function"]["name"], "arguments": ""}}));
            } else {
                assert!(d.get("id").is_none() && d["function"].get("name").is_none(), "told once: {d}");
            }
            let arguments = &mut calls[index]["function"]["arguments"];
            *arguments = format!("{}{}", arguments.as_str().unwrap(), d["function"]["arguments"].as_str().unwrap()).into();
        }
    }
    (content, calls, finish)
}

#[test]
fn a_call_that_is_required_is_made_and_right() {
    for seed in 0..6 {
        let body =
            chat(json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 200, "seed": seed}));
        let v = hermes().ok(PATH, &body);
        let choice = &v["choices"][0];
        assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &Value::Null), "{choice}");
        let calls = choice["message"]["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1);
        right(&calls[0]);

        let events = hermes().stream(PATH, &body);
        let deltas = events.iter().filter(|e| e["choices"][0]["delta"].get("tool_calls").is_some()).count();
        assert!(deltas > 3, "arguments come as they are written: {deltas} deltas");
        let (content, again, finish) = streamed(&events);
        assert_eq!((content.as_str(), finish), ("", vec!["tool_calls".to_owned()]));
        assert_eq!(again[0]["function"], calls[0]["function"], "the same call, in pieces");
    }
    for name in ["weather", "lucky"] {
        let named = json!({"type": "function", "function": {"name": name}});
        let v = hermes().ok(PATH, &chat(json!({"tools": tools(), "tool_choice": named, "max_tokens": 200})));
        let calls = v["choices"][0]["message"]["tool_calls"].as_array().unwrap();
        assert_eq!((calls.len(), &calls[0]["function"]["name"]), (1, &json!(name)));
        right(&calls[0]);
    }
}

#[test]
fn every_dialect_is_found_and_kept() {
    for (template, dialect) in [(LLAMA, None), (MISTRAL, None), (HERMES, None), (HERMES, Some(ToolDialect::Mistral))] {
        let s = Setup { template: Some(template), dialect, ..Setup::default() }.start();
        let body = chat(json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 200}));
        let v = s.ok(PATH, &body);
        let calls = v["choices"][0]["message"]["tool_calls"].as_array().unwrap_or_else(|| panic!("{v}"));
        calls.iter().for_each(right);
        let is_mistral = calls[0]["id"].as_str().unwrap().len() == 9;
        assert_eq!(is_mistral, template == MISTRAL || dialect.is_some());
        // the model's own answer and the tool's can be sent back
        let mut messages = body["messages"].as_array().unwrap().clone();
        messages.push(v["choices"][0]["message"].clone());
        messages.push(json!({"role": "tool", "tool_call_id": calls[0]["id"], "content": "sun"}));
        s.ok(PATH, &chat(json!({"messages": messages, "tools": tools(), "max_tokens": 4})));
    }
}

#[test]
fn tools_that_need_not_be_called_leave_text_alone() {
    let s = hermes();
    let with = s.ok(PATH, &chat(json!({"tools": tools(), "temperature": 0, "max_tokens": 60})));
    let choice = &with["choices"][0];
    assert!(!choice["message"]["content"].as_str().unwrap().is_empty() && choice["message"].get("tool_calls").is_none());
    let (content, calls, _) = streamed(&s.stream(PATH, &chat(json!({"tools": tools(), "temperature": 0, "max_tokens": 60}))));
    assert_eq!((content.as_str(), calls.len()), (choice["message"]["content"].as_str().unwrap(), 0));
    // the tools are part of the prompt
    let plain = s.ok(PATH, &chat(json!({"max_tokens": 1})));
    assert!(with["usage"]["prompt_tokens"].as_u64() > plain["usage"]["prompt_tokens"].as_u64());
}

#[test]
fn answers_keep_to_their_form() {
    let s = shared();
    let content = |fields: Value| {
        let v = s.ok(PATH, &chat(fields));
        assert_eq!(v["choices"][0]["finish_reason"], "stop", "{v}");
        v["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    for seed in 0..4 {
        let schema = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 120}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}, "next": {"$ref": "#/$defs/end"}}, "required": ["name", "age", "tags", "next"], "additionalProperties": false, "$defs": {"end": {"type": "null"}}});
        let format = json!({"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": true}});
        let v: Value = serde_json::from_str(&content(json!({"response_format": format, "max_tokens": 400, "seed": seed}))).unwrap();
        let object = v.as_object().unwrap();
        assert_eq!(object.keys().collect::<Vec<_>>(), ["name", "age", "tags", "next"]);
        assert!(
            v["name"].as_str().unwrap().chars().count() <= 12 && (0..=120).contains(&v["age"].as_i64().unwrap()) && v["next"].is_null()
        );
        assert!(v["tags"].as_array().unwrap().len() <= 2);
        let choice = content(json!({"structured_outputs": {"choice": ["yes", "no \"never\""]}, "seed": seed}));
        assert!(["yes", "no \"never\""].contains(&choice.as_str()), "{choice}");
        let number = content(json!({"structured_outputs": {"regex": "[1-9][0-9]{2}-x"}, "seed": seed}));
        assert!(number.len() == 5 && number.ends_with("-x") && number[..3].parse::<u32>().is_ok_and(|n| n >= 100), "{number}");
    }
    assert_eq!(content(json!({"structured_outputs": {"grammar": "start: \"a\" b\nb: \"b\" | \"c\"\n"}, "temperature": 0})).len(), 2);
    // any object, cut off where the tokens end or whole
    let v = s.ok(PATH, &chat(json!({"response_format": {"type": "json_object"}, "max_tokens": 200, "temperature": 0})));
    let text = v["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.starts_with('{'), "{text}");
    if v["choices"][0]["finish_reason"] == "stop" {
        assert!(serde_json::from_str::<Value>(text).unwrap().is_object());
    }
    // choices go their own ways, and plain completions have forms too
    let v = s.ok("/v1/completions", &completion(json!({"n": 4, "structured_outputs": {"regex": "[0-9]{6}"}, "temperature": 1.5})));
    let texts: Vec<&str> = v["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert!(texts.iter().all(|t| t.len() == 6 && t.parse::<u32>().is_ok()) && texts.iter().any(|t| *t != texts[0]), "{texts:?}");
}

#[test]
fn forms_that_cannot_be_held_are_refused_at_once() {
    let format = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}});
    let deep = (0..60).fold(json!({"type": "null"}), |inner, _| json!({"type": "array", "items": inner}));
    let field = "response_format.json_schema.schema";
    for (fields, param) in [
        (format(json!({"type": "nothing"})), field),
        (format(json!({"type": "string", "pattern": "(?<=a)b"})), field),
        (format(json!({"type": "object", "patternProperties": 5})), field),
        (format(json!({"$ref": "http://example.com/schema"})), field),
        (format(json!({"not": {}, "contains": 5})), field),
        (format(json!({"type": "string", "pattern": "x".repeat(300_000)})), field),
        (json!({"structured_outputs": {"regex": "("}}), "structured_outputs.regex"),
        (json!({"structured_outputs": {"grammar": "start: nothing"}}), "structured_outputs.grammar"),
        (json!({"structured_outputs": {"choice": []}}), "structured_outputs.choice"),
        (json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}), "structured_outputs"),
        (json!({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}), "structured_outputs"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
    ] {
        let (status, error) = shared().refused(PATH, &chat(fields.clone()));
        assert_eq!(
            (status, &error["param"]),
            (400, &json!(param)),
            "{}: {error}",
            &fields.to_string()[..fields.to_string().len().min(200)]
        );
        assert!(error["message"].as_str().unwrap().len() < 600);
    }
    // deep, but legal
    let v = shared().ok(PATH, &chat(json!({"response_format": format(deep)["response_format"], "max_tokens": 8})));
    assert!(v["choices"][0]["message"]["content"].as_str().unwrap().starts_with('['));
    // an expression of a billion letters costs no more than it shows
    let huge = format(json!({"type": "string", "pattern": "((a{1000}){1000}){1000}"}));
    let reply = shared().post(PATH, &chat(json!({"response_format": huge["response_format"], "max_tokens": 8})));
    assert!([200, 400].contains(&reply.status), "{}", reply.text());
    let both = json!({"tools": tools(), "tool_choice": "required", "response_format": {"type": "json_object"}});
    let (status, error) = hermes().refused(PATH, &chat(both));
    assert_eq!((status, &error["param"]), (400, &json!("response_format")));
}
