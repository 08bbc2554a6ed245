//! The tools of a request.

use crate::error::ApiError;
use crate::fields::{Field, Fields, Rule, expected};
use serde_json::Value;

const MOST_TOOLS: usize = 128;

/// Which tool is to be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    None,
    Auto,
    /// Any of them.
    Required,
    /// This one.
    Named(String),
}

/// The tools of a request and what to do with them.
pub(crate) struct Tools {
    /// As they were given, for the template.
    pub list: Vec<Value>,
    pub names: Vec<String>,
    pub choice: Choice,
    pub parallel: bool,
}

const TOOL: &[Field] = &[("type", Rule::Used), ("function", Rule::Used)];
const FUNCTION: &[Field] = &[("name", Rule::Used), ("description", Rule::Used), ("parameters", Rule::Used), ("strict", Rule::Used)];

impl Tools {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls`.
    pub fn read(f: &Fields<'_>) -> Result<Tools, ApiError> {
        let list = f.array("tools")?.unwrap_or_default();
        if list.len() > MOST_TOOLS {
            return Err(ApiError::field("tools", format!("`tools`: expected at most {MOST_TOOLS}, found {}", list.len())));
        }
        let names = list.iter().enumerate().map(|(i, t)| name(i, t)).collect::<Result<Vec<_>, _>>()?;
        if let Some(twice) = names.iter().enumerate().find(|(i, n)| names[..*i].contains(n)) {
            let path = format!("tools[{}].function.name", twice.0);
            return Err(ApiError::field(&path, format!("`{path}`: the tool `{}` is there twice", twice.1)));
        }
        let choice = choice(f, &names)?;
        let parallel = f.bool("parallel_tool_calls")?.unwrap_or(true);
        Ok(Tools { list: list.to_vec(), names, choice, parallel })
    }

    /// Whether the model is to see them.
    pub fn shown(&self) -> bool {
        !self.list.is_empty() && self.choice != Choice::None
    }
}

/// The name of a tool, which is looked at as a whole.
fn name(index: usize, tool: &Value) -> Result<String, ApiError> {
    let path = format!("tools[{index}].");
    let fields = Fields::new(tool, &path)?;
    fields.check(&[TOOL], true)?;
    match fields.string("type")? {
        None | Some("function") => {}
        Some(other) => {
            let other: String = other.chars().take(80).collect();
            let path = fields.path("type");
            return Err(ApiError::unsupported(&path, format!("`{path}`: tools of type `{other}` are not supported, only `function`")));
        }
    }
    let inner = format!("{path}function.");
    let function = Fields::new(fields.required("function")?, &inner)?;
    function.check(&[FUNCTION], true)?;
    function.required("name")?;
    let name = function.string("name")?.unwrap_or_default();
    if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b)) {
        let path = function.path("name");
        return Err(ApiError::field(&path, format!("`{path}`: expected 1 to 64 letters, digits, `_`, `-` and `.`")));
    }
    function.string("description")?;
    function.object("parameters")?;
    function.bool("strict")?;
    Ok(name.to_owned())
}

fn choice(f: &Fields<'_>, names: &[String]) -> Result<Choice, ApiError> {
    const WHAT: &str = "\"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": …}}";
    let choice = match f.get("tool_choice") {
        None if names.is_empty() => return Ok(Choice::None),
        None => return Ok(Choice::Auto),
        Some(Value::String(s)) if s == "none" => return Ok(Choice::None),
        Some(Value::String(s)) if s == "auto" => Choice::Auto,
        Some(Value::String(s)) if s == "required" => Choice::Required,
        Some(value @ Value::Object(_)) => {
            let named = value.get("function").and_then(|f| f.get("name")).and_then(Value::as_str);
            let is_function = value.get("type").is_none_or(|t| t == "function");
            let Some(name) = named.filter(|_| is_function) else {
                return Err(ApiError::field("tool_choice", format!("`tool_choice`: expected {WHAT}")));
            };
            if !names.iter().any(|n| n == name) {
                let message = "`tool_choice` names a tool that `tools` does not have";
                return Err(ApiError::field("tool_choice.function.name", message));
            }
            Choice::Named(name.to_owned())
        }
        Some(Value::String(_)) => return Err(ApiError::field("tool_choice", format!("`tool_choice`: expected {WHAT}"))),
        Some(v) => return Err(expected("tool_choice", WHAT, v)),
    };
    match names.is_empty() {
        true => Err(ApiError::field("tool_choice", "`tool_choice` needs `tools`")),
        false => Ok(choice),
    }
}
