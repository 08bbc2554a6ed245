//! Answers in a given form: what a client may ask for, and what restricts the tokens accordingly.

#[cfg(feature = "grammar")]
mod compiled;
#[cfg(not(feature = "grammar"))]
mod without;

#[cfg(feature = "grammar")]
pub(crate) use compiled::Grammars;
#[cfg(not(feature = "grammar"))]
pub(crate) use without::Grammars;

use crate::error::ApiError;
use crate::fields::{Field, Fields, Rule, strings};
use serde_json::{Value, json};

/// The form of an answer, and the field that asks for it.
pub(crate) struct Form {
    pub kind: Kind,
    pub field: &'static str,
}

/// Forms.
pub(crate) enum Kind {
    /// JSON of this schema.
    Schema(Value),
    /// Text that this expression matches as a whole.
    Regex(String),
    /// Text of this grammar in Lark's notation.
    Lark(String),
}

/// Largest grammar or schema as text.
const LONGEST: usize = 256 << 10;

const FORMAT: &[Field] = &[("type", Rule::Used), ("json_schema", Rule::Used)];
const SCHEMA: &[Field] = &[("name", Rule::Harmless), ("description", Rule::Harmless), ("schema", Rule::Used), ("strict", Rule::Harmless)];
const STRUCTURED: &[Field] = &[
    ("json", Rule::Used),
    ("json_object", Rule::Used),
    ("regex", Rule::Used),
    ("choice", Rule::Used),
    ("grammar", Rule::Used),
    ("structural_tag", Rule::Refused("use `tools`")),
];

impl Form {
    /// Refuses what is too large to be looked at.
    fn check_size(&self) -> Result<(), ApiError> {
        let size = match &self.kind {
            Kind::Schema(schema) => schema.to_string().len(),
            Kind::Regex(text) | Kind::Lark(text) => text.len(),
        };
        if size > LONGEST {
            let field = self.field;
            return Err(ApiError::field(field, format!("`{field}` has {size} bytes; the limit is {LONGEST}")));
        }
        Ok(())
    }

    /// Reads `response_format` and `structured_outputs`.
    pub fn read(f: &Fields<'_>) -> Result<Option<Form>, ApiError> {
        match (format(f)?, structured(f)?) {
            (Some(_), Some(_)) => {
                let message = "`structured_outputs` and `response_format` both give the answer a form; use one";
                Err(ApiError::field("structured_outputs", message))
            }
            (format, structured) => Ok(format.or(structured)),
        }
    }
}

fn format(f: &Fields<'_>) -> Result<Option<Form>, ApiError> {
    let Some(value) = f.get("response_format") else { return Ok(None) };
    let format = Fields::new(value, "response_format.")?;
    format.check(&[FORMAT], true)?;
    format.required("type")?;
    match format.string("type")?.unwrap_or_default() {
        "text" => Ok(None),
        "json_object" => Ok(Some(Form { kind: Kind::Schema(json!({"type": "object"})), field: "response_format" })),
        "json_schema" => {
            let inner = Fields::new(format.required("json_schema")?, "response_format.json_schema.")?;
            inner.check(&[SCHEMA], true)?;
            let schema = inner.required("schema")?.clone();
            Ok(Some(Form { kind: Kind::Schema(schema), field: "response_format.json_schema.schema" }))
        }
        other => {
            let other: String = other.chars().take(80).collect();
            let message = format!("`response_format.type`: expected text, json_object or json_schema, found `{other}`");
            Err(ApiError::field("response_format.type", message))
        }
    }
}

/// vLLM's way to say the same, and more.
fn structured(f: &Fields<'_>) -> Result<Option<Form>, ApiError> {
    let Some(value) = f.get("structured_outputs") else { return Ok(None) };
    let s = Fields::new(value, "structured_outputs.")?;
    s.check(&[STRUCTURED], true)?;
    let mut forms = vec![];
    if let Some(schema) = s.get("json") {
        let field = "structured_outputs.json";
        // a schema may be written as text
        let schema = match schema {
            Value::String(text) => serde_json::from_str(text).map_err(|e| ApiError::field(field, format!("`{field}`: {e}")))?,
            schema => schema.clone(),
        };
        forms.push(Form { kind: Kind::Schema(schema), field });
    }
    if s.flag("json_object")? {
        forms.push(Form { kind: Kind::Schema(json!({"type": "object"})), field: "structured_outputs.json_object" });
    }
    if let Some(regex) = s.string("regex")? {
        forms.push(Form { kind: Kind::Regex(regex.into()), field: "structured_outputs.regex" });
    }
    if let Some(list) = s.array("choice")? {
        let field = "structured_outputs.choice";
        let texts = strings(field, list)?;
        if texts.is_empty() {
            return Err(ApiError::field(field, format!("`{field}`: expected at least one text, found none")));
        }
        let texts: Vec<String> = texts.iter().map(|t| quoted(t)).collect();
        forms.push(Form { kind: Kind::Lark(format!("start: {}", texts.join(" | "))), field });
    }
    if let Some(grammar) = s.string("grammar")? {
        forms.push(Form { kind: Kind::Lark(grammar.into()), field: "structured_outputs.grammar" });
    }
    match forms.len() {
        0 | 1 => Ok(forms.pop()),
        _ => Err(ApiError::field("structured_outputs", "`structured_outputs`: expected one form, found several")),
    }
}

/// Between the parts of JSON stands nothing, a space, or a line end with what indents the next line. Where any space is
/// legal, some models write nothing else any more.
const SPACE: &str = r" |\n[ \t]{0,20}";

/// A schema as the grammar's compiler is to read it.
pub(crate) fn prepared(mut schema: Value) -> Value {
    if let Value::Object(map) = &mut schema {
        // the compiler's own options are not the client's to set
        map.insert("x-guidance".into(), json!({"whitespace_pattern": SPACE}));
    }
    schema
}

/// A text as a grammar writes it: JSON's escapes are those of Lark.
pub(crate) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
