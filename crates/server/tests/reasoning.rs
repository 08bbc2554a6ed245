//! Thoughts before an answer over a socket: a model of fairy tales behind a template that makes it think.

mod common;

use billfish_server::Config;
use common::{Running, Setup, chat};
use serde_json::{Value, json};
use std::sync::OnceLock;

const PATH: &str = "/v1/chat/completions";

/// Opens the thoughts in the prompt, if they are not switched off, and leaves those of earlier answers out.
const TEMPLATE: &str = "{% for m in messages %}{{ m.content if loop.last else m.content.split('</think>')[-1] }}\n{% endfor %}\
    {% if add_generation_prompt and (enable_thinking is not defined or enable_thinking) %}<think>\n{% endif %}";

fn thinking() -> &'static Running {
    static ONE: OnceLock<Running> = OnceLock::new();
    ONE.get_or_init(|| Setup { template: Some(TEMPLATE), ..Setup::default() }.start())
}

/// The same server, which leaves answers as they are.
fn plain() -> &'static Running {
    static ONE: OnceLock<Running> = OnceLock::new();
    let config = Config { port: 0, reasoning: false, ..Config::default() };
    ONE.get_or_init(|| Setup { template: Some(TEMPLATE), config, ..Setup::default() }.start())
}

fn text<'v>(message: &'v Value, key: &str) -> &'v str {
    message[key].as_str().unwrap_or_default()
}

/// The tokens of the closing mark, of which some answers make one.
fn letters() -> Value {
    let tokens = thinking().ok("/tokenize", &json!({"prompt": "</think>", "add_special_tokens": false}))["tokens"].clone();
    assert!(tokens.as_array().is_some_and(|t| t.len() > 2), "{tokens}");
    tokens
}

#[test]
fn an_answer_is_divided_at_the_closing_mark() {
    let letters = letters();
    let mut both = 0;
    for seed in 0..12 {
        let body = chat(
            json!({"allowed_token_ids": letters, "max_tokens": 400, "temperature": 2.0, "frequency_penalty": 2.0, "seed": seed, "ignore_eos": true}),
        );
        let raw = plain().ok(PATH, &body)["choices"][0]["message"].clone();
        assert!(raw.get("reasoning_content").is_none(), "{raw}");
        let raw = text(&raw, "content").to_owned();
        let (reasoning, content) = raw.split_once("</think>").unwrap_or((&raw, ""));
        let found = thinking().ok(PATH, &body);
        let message = &found["choices"][0]["message"];
        assert_eq!((text(message, "reasoning_content"), text(message, "content")), (reasoning.trim(), content.trim_start()), "{raw}");
        assert_eq!(message["reasoning"], message["reasoning_content"]);
        let usage = &found["usage"];
        let thought = usage["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
        assert_eq!((usage["completion_tokens"].as_u64(), thought < 400), (Some(400), raw.contains("</think>")), "{usage}");

        let mut streamed = body.clone();
        streamed["stream_options"] = json!({"include_usage": true});
        let events = thinking().stream(PATH, &streamed);
        let of = |key: &str| events.iter().map(|e| text(&e["choices"][0]["delta"], key)).collect::<String>();
        assert_eq!((of("reasoning_content"), of("content")), (text(message, "reasoning_content").into(), text(message, "content").into()));
        assert_eq!(events.last().unwrap()["usage"], *usage);
        both += usize::from(!content.is_empty() && !reasoning.is_empty());
    }

    assert!(both > 1, "{both} answers have both");
}

#[test]
fn responses_have_an_item_of_thoughts() {
    let body = json!({"input": "Once upon a time", "max_output_tokens": 9, "seed": 1});
    let whole = thinking().ok("/v1/responses", &body);
    let [reasoning, message] = &whole["output"].as_array().unwrap()[..] else { panic!("{whole}") };
    assert_eq!(
        (&reasoning["type"], &message["type"], &message["content"][0]["text"]),
        (&json!("reasoning"), &json!("message"), &json!(""))
    );
    let thought = text(&reasoning["content"][0], "text");
    assert!(!thought.is_empty() && whole["usage"]["output_tokens_details"]["reasoning_tokens"] == 9, "{whole}");
    // what is sent back is no part of the conversation
    let back = json!({"input": [{"role": "user", "content": "Once upon a time"}, reasoning], "max_output_tokens": 9, "seed": 1});
    assert_eq!(thinking().ok("/v1/responses", &back)["output"][0]["content"], reasoning["content"]);

    let mut streamed = body;
    streamed["stream"] = true.into();
    let raw = thinking().post("/v1/responses", &streamed).text();
    let events: Vec<Value> = raw.lines().filter_map(|l| l.strip_prefix("data: ")).map(|d| serde_json::from_str(d).unwrap()).collect();
    let deltas = |kind: &str| events.iter().filter(|e| e["type"] == kind).map(|e| text(e, "delta")).collect::<String>();
    assert_eq!((deltas("response.reasoning_text.delta").as_str(), deltas("response.output_text.delta").as_str()), (thought, ""));
    let items = |kind: &str| events.iter().filter(|e| e["type"] == kind).map(|e| e["output_index"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!((items("response.output_item.added"), items("response.output_item.done")), (vec![0, 1], vec![0, 1]));
    let last = &events.last().unwrap()["response"];
    let outline =
        |v: &Value| (v["status"].clone(), v["output"][0]["content"].clone(), v["output"][1]["content"].clone(), v["usage"].clone());
    assert_eq!(outline(last).0, outline(&whole).0);
    assert_eq!((outline(last).1, outline(last).2), (outline(&whole).1, outline(&whole).2));
}

/// Without thoughts in the prompt, behind finished ones, or held to a form, all of an answer is content.
#[test]
fn answers_without_thoughts_are_content() {
    let begun = json!([{"role": "user", "content": "Go on"}, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nOnce upon"}]);
    for fields in [
        json!({"chat_template_kwargs": {"enable_thinking": false}}),
        json!({"messages": begun, "continue_final_message": true, "add_generation_prompt": false}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "boolean"}}}}),
    ] {
        let message = thinking().ok(PATH, &chat(fields.clone()))["choices"][0]["message"].clone();
        assert!(!text(&message, "content").is_empty() && message.get("reasoning").is_none(), "{fields}: {message}");
    }
    let open = json!([{"role": "user", "content": "Go on"}, {"role": "assistant", "content": "<think>\nOnce upon"}]);
    let fields = json!({"messages": open, "continue_final_message": true, "add_generation_prompt": false});
    let message = thinking().ok(PATH, &chat(fields))["choices"][0]["message"].clone();
    assert!(message["content"].is_null() && !text(&message, "reasoning_content").is_empty(), "{message}");
}
