//! What a model's template does with tools, found out by trying.

use super::Dialect;
use billfish_text::ChatTemplate;
use serde_json::{Map, Value, json};

/// What a template does with tools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    /// It shows them to the model.
    pub tools: bool,
    /// How it writes calls, if that is known.
    pub dialect: Option<Dialect>,
}

const PROBE: &str = "billfish_probe";

/// Renders a tool and a call of it, and looks for them.
pub(crate) fn probe(template: &ChatTemplate) -> Shown {
    let tool = json!({"type": "function", "function": {
        "name": PROBE, "description": "a probe", "parameters": {"type": "object", "properties": {}},
    }});
    let mut extra = Map::new();
    extra.insert("tools".into(), json!([tool]));
    let render = |messages: &[Value]| template.render_values(messages, true, &extra).unwrap_or_default();
    let question = json!({"role": "user", "content": "a question"});
    let shown = render(std::slice::from_ref(&question));
    let call = |arguments: Value| {
        let call = json!({"id": "abcdefghi", "type": "function", "function": {"name": PROBE, "arguments": arguments}});
        let answer = json!({"role": "assistant", "content": "", "tool_calls": [call]});
        render(&[question.clone(), answer])
    };
    // what an earlier call looks like, then what the instructions say
    let texts = [call(json!({"a": 1})), call(json!("{\"a\": 1}")), shown.clone()];
    let dialect = texts.iter().find_map(|text| {
        let has = |s: &str| text.contains(s);
        match () {
            () if has("<tool_call>") => Some(Dialect::Hermes),
            () if has("[TOOL_CALLS]") => Some(Dialect::Mistral),
            () if has(&format!("\"name\": \"{PROBE}\", \"parameters\": {{\"a\"")) => Some(Dialect::Llama),
            () => None,
        }
    });
    Shown { tools: shown.contains(PROBE), dialect }
}
