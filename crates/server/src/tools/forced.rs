//! Calls that must be made: the grammar of an answer that is nothing but calls.

use super::{Dialect, Tools, request::Choice};
use crate::grammar::{Form, Kind, prepared, quoted};
use billfish_text::Tokenizer;
use serde_json::{Value, json};

impl Tools {
    /// The form of an answer that must call a tool; nothing if it need not.
    pub fn form(&self, dialect: Dialect, tokenizer: &Tokenizer) -> Option<Form> {
        let wanted = |name: &str| match &self.choice {
            Choice::Named(only) => only == name,
            _ => true,
        };
        let several = match self.choice {
            Choice::None | Choice::Auto => return None,
            Choice::Required => self.parallel,
            Choice::Named(_) => false,
        };
        let arguments = if dialect == Dialect::Llama { "parameters" } else { "arguments" };
        let calls: Vec<Value> = self.list.iter().zip(&self.names).filter(|(_, n)| wanted(n)).map(|(t, n)| call(t, n, arguments)).collect();
        let one = json!({"anyOf": calls});
        let body = prepared(one.clone());
        let lark = match dialect {
            Dialect::Hermes => {
                let (open, close) = (quoted("<tool_call>\n"), quoted("\n</tool_call>"));
                let more = if several { "(\"\\n\" call)*" } else { "" };
                format!("start: call {more}\ncall: {open} body {close}\nbody: %json {body}\n")
            }
            Dialect::Llama => format!("start: body\nbody: %json {body}\n"),
            Dialect::Mistral => {
                let mut list = json!({"type": "array", "items": one, "minItems": 1});
                if !several {
                    list["maxItems"] = 1.into();
                }
                format!("start: {} body\nbody: %json {}\n", mark(tokenizer, "[TOOL_CALLS]"), prepared(list))
            }
        };
        Some(Form { kind: Kind::Lark(lark), field: "tools" })
    }
}

/// A mark as text, or by number where it is a special token.
fn mark(tokenizer: &Tokenizer, text: &str) -> String {
    match tokenizer.id_of(text).filter(|id| tokenizer.is_special(*id)) {
        Some(id) => format!("<[{id}]>"),
        None => quoted(text),
    }
}

/// The schema of a call.
fn call(tool: &Value, name: &str, arguments: &str) -> Value {
    let parameters = tool["function"].get("parameters").filter(|p| !p.is_null());
    let parameters = parameters.cloned().unwrap_or_else(|| json!({"type": "object"}));
    json!({
        "type": "object",
        "properties": {"name": {"const": name}, arguments: parameters},
        "required": ["name", arguments],
        "additionalProperties": false,
    })
}
