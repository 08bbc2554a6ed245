//! Chat templates against the output of Python's Jinja (see `data/generate.py`).

use billfish_text::{ChatTemplate, Message, TextError};
use serde_json::{Map, Value, json};

#[test]
fn renders_as_python_does() {
    let data: Value = serde_json::from_str(include_str!("data/chat.json")).unwrap();
    let now = data["now"].as_i64().unwrap();
    let mut wrong = Vec::new();
    for case in data["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let template = ChatTemplate::new(data["templates"][name].as_str().unwrap()).unwrap().with_time(now);
        let messages = case["messages"].as_array().unwrap();
        let got = template.render_values(messages, case["add_generation_prompt"] == true, case["extra"].as_object().unwrap());
        let same = match (&got, case.get("expected"), case.get("refused")) {
            (Ok(text), Some(expected), _) => expected == text,
            (Err(TextError::TemplateRefused { message, .. }), _, Some(refused)) => refused == message,
            (Err(_), None, None) => true,
            _ => false,
        };
        if !same {
            wrong.push(format!("{name}, {}:\n  got      {got:?}\n  expected {:?}", case["messages"], case.get("expected")));
        }
    }
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn messages_and_values_are_the_same() {
    let template = ChatTemplate::new("{% for m in messages %}{{ m | tojson }}{{ m.name is defined }}{% endfor %}").unwrap();
    let mut message = Message::new("user", "hi");
    message.extra.insert("name".into(), "Ada".into());
    let values = [json!({"role": "user", "content": "hi", "name": "Ada"})];
    let rendered = template.render(&[message], false, &Map::new()).unwrap();
    assert_eq!(rendered, template.render_values(&values, false, &Map::new()).unwrap());
    assert_eq!(rendered, r#"{"role": "user", "content": "hi", "name": "Ada"}True"#);
}

#[test]
fn errors_reach_the_user() {
    let syntax = ChatTemplate::named("m/chat_template.jinja", "a\n{% for %}").unwrap_err();
    assert!(matches!(&syntax, TextError::TemplateSyntax { line: 2, file, .. } if file == "m/chat_template.jinja"), "{syntax}");

    let refusing =
        ChatTemplate::new("{% macro f() %}{{ raise_exception('No \"system\" role, please!') }}{% endmacro %}\n{{ f() }}").unwrap();
    let refused = refusing.render(&[], false, &Map::new()).unwrap_err();
    assert!(matches!(&refused, TextError::TemplateRefused { message, .. } if message == "No \"system\" role, please!"), "{refused}");

    let failing = ChatTemplate::new("\n{{ messages[0].content.nonsense() }}").unwrap();
    let failed = failing.render(&[Message::new("user", "x")], false, &Map::new()).unwrap_err();
    assert!(matches!(&failed, TextError::TemplateRender { line: 2, .. }), "{failed}");
}

#[test]
fn variables_of_the_request_win_over_those_of_the_model() {
    let defaults = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let template = ChatTemplate::new("{{ bos_token }}{{ eos_token }}").unwrap().with_defaults(defaults.as_object().unwrap().clone());
    assert_eq!(template.render(&[], false, &Map::new()).unwrap(), "<s></s>");
    assert_eq!(template.render(&[], false, json!({"eos_token": "."}).as_object().unwrap()).unwrap(), "<s>.");
    let template = ChatTemplate::new("{{ messages | length }}").unwrap();
    let extra = json!({"messages": [1, 2]});
    assert_eq!(template.render(&[], false, extra.as_object().unwrap()).unwrap(), "0", "but not over the messages");
}

#[test]
fn the_clock_is_read_at_rendering() {
    let template = ChatTemplate::new("{{ strftime_now('%Y') }}").unwrap();
    assert!(template.render(&[], false, &Map::new()).unwrap().parse::<u32>().unwrap() >= 2024);
}
