//! Messages: what clients may send, and what templates are shown.

use crate::error::ApiError;
use crate::fields::{Fields, expected};
use serde_json::{Map, Value, json};

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];
const MOST_MESSAGES: usize = 10_000;

/// Keys of a message that templates are shown as they are.
const KEPT: [&str; 4] = ["name", "tool_call_id", "reasoning_content", "reasoning"];

/// Messages as templates expect them: content as text, arguments of calls as objects. `developer` is `system` there.
pub(crate) fn normalised(list: &[Value]) -> Result<Vec<Value>, ApiError> {
    if list.is_empty() || list.len() > MOST_MESSAGES {
        let message = format!("`messages`: expected 1 to {MOST_MESSAGES} messages, found {}", list.len());
        return Err(ApiError::field("messages", message));
    }
    list.iter().enumerate().map(|(i, m)| message(i, m)).collect()
}

fn message(index: usize, value: &Value) -> Result<Value, ApiError> {
    let path = format!("messages[{index}].");
    let f = Fields::new(value, &path)?;
    f.required("role")?;
    let role = f.string("role")?.unwrap_or_default();
    if role == "function" {
        return Err(ApiError::unsupported(f.path("role"), "the role `function` is not supported; use `tool`"));
    }
    if !ROLES.contains(&role) {
        let path = f.path("role");
        let found: String = role.chars().take(80).collect();
        return Err(ApiError::field(&path, format!("`{path}`: expected one of {}, found `{found}`", ROLES.join(", "))));
    }
    if f.get("function_call").is_some() {
        return Err(ApiError::unsupported(f.path("function_call"), "`function_call` is not supported; use `tool_calls`"));
    }
    if f.get("audio").is_some() {
        return Err(ApiError::unsupported(f.path("audio"), "audio is not supported"));
    }
    let calls = f.array("tool_calls")?.filter(|c| !c.is_empty());
    if calls.is_some() && role != "assistant" {
        return Err(ApiError::field(f.path("tool_calls"), "only the assistant calls tools"));
    }
    let content = match f.get("content") {
        Some(value) => Some(content(&f.path("content"), value)?),
        None if role == "assistant" => None,
        None => return Err(ApiError::field(f.path("content"), format!("`{path}content` is missing"))),
    };
    let mut out = Map::new();
    out.insert("role".into(), if role == "developer" { "system" } else { role }.into());
    // templates join it to other text; a call alone has none
    out.insert("content".into(), content.unwrap_or_default().into());
    for key in KEPT {
        if let Some(text) = f.string(key)? {
            out.insert(key.into(), text.into());
        }
    }
    if let Some(calls) = calls {
        let path = f.path("tool_calls");
        let calls = calls.iter().enumerate().map(|(i, c)| call(&format!("{path}[{i}]."), c)).collect::<Result<Vec<_>, _>>()?;
        out.insert("tool_calls".into(), calls.into());
    }
    Ok(out.into())
}

/// The text of a content: a string, or parts.
fn content(path: &str, value: &Value) -> Result<String, ApiError> {
    let parts = match value {
        Value::String(s) => return Ok(s.clone()),
        Value::Array(parts) => parts,
        v => return Err(expected(path, "a string or an array of parts", v)),
    };
    let mut texts = vec![];
    for (i, part) in parts.iter().enumerate() {
        let path = format!("{path}[{i}].");
        let f = Fields::new(part, &path)?;
        f.required("type")?;
        let text = match f.string("type")?.unwrap_or_default() {
            "text" | "input_text" | "output_text" => {
                f.required("text")?;
                f.string("text")?
            }
            "refusal" => {
                f.required("refusal")?;
                f.string("refusal")?
            }
            other => {
                let other: String = other.chars().take(80).collect();
                let path = f.path("type");
                return Err(ApiError::unsupported(&path, format!("`{path}`: parts of type `{other}` are not supported, only text")));
            }
        };
        texts.extend(text);
    }
    Ok(texts.join("\n"))
}

/// An earlier call. Its arguments are text on the wire and an object in templates.
fn call(path: &str, value: &Value) -> Result<Value, ApiError> {
    let f = Fields::new(value, path)?;
    let inner = format!("{path}function.");
    let function = Fields::new(f.required("function")?, &inner)?;
    function.required("name")?;
    let name = function.string("name")?;
    let arguments = match function.get("arguments") {
        None => json!({}),
        Some(Value::String(text)) if text.trim().is_empty() => json!({}),
        Some(Value::String(text)) => {
            let object: Result<Map<String, Value>, _> = serde_json::from_str(text);
            let path = function.path("arguments");
            object.map_err(|e| ApiError::field(&path, format!("`{path}`: expected a JSON object as text, found: {e}")))?.into()
        }
        Some(object @ Value::Object(_)) => object.clone(),
        Some(v) => return Err(expected(&function.path("arguments"), "a JSON object as text", v)),
    };
    Ok(json!({"id": f.string("id")?, "type": "function", "function": {"name": name, "arguments": arguments}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_becomes_text_and_arguments_an_object() {
        let list = json!([
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "x", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
            {"role": "tool", "content": "1", "tool_call_id": "x"},
        ]);
        let out = normalised(list.as_array().unwrap()).unwrap();
        assert_eq!(out[0], json!({"role": "system", "content": "a\nb"}));
        assert_eq!(out[1]["tool_calls"][0]["function"], json!({"name": "f", "arguments": {"a": 1}}));
        assert_eq!(out[2]["tool_call_id"], "x");
    }

    #[test]
    fn what_is_wrong_has_a_path() {
        let cases = [
            (json!([]), "messages"),
            (json!([1]), "messages[0]"),
            (json!([{"content": "a"}]), "messages[0].role"),
            (json!([{"role": "boss", "content": "a"}]), "messages[0].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": 5}]), "messages[0].content"),
            (json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]), "messages[0].content[0].type"),
            (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
            (json!([{"role": "user", "content": "a", "tool_calls": [{}]}]), "messages[0].tool_calls"),
            (
                json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}]),
                "messages[0].tool_calls[0].function.arguments",
            ),
        ];
        for (list, path) in cases {
            let error = normalised(list.as_array().unwrap()).unwrap_err();
            assert_eq!(error.json()["error"]["param"], path, "{list}");
        }
    }
}
