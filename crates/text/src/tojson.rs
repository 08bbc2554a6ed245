//! The `tojson` filter of chat templates: what Python's `json.dumps` writes, because models were trained on that.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// How to write: the parameters of `json.dumps`.
struct Style {
    ensure_ascii: bool,
    sort_keys: bool,
    /// The indentation of one level; `None`: all on one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, *, sort_keys=False)`; no HTML escaping.
pub(crate) fn tojson(
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    separators: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let argument = |positional: Option<Value>, name: &str| -> Result<Option<Value>, Error> {
        let value = match positional {
            Some(value) => Some(value),
            None => named.get::<Option<Value>>(name)?,
        };
        Ok(value.filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let ensure_ascii = argument(ensure_ascii, "ensure_ascii")?.is_some_and(|v| v.is_true());
    let sort_keys = argument(None, "sort_keys")?.is_some_and(|v| v.is_true());
    let indent = match argument(indent, "indent")? {
        None => None,
        Some(v) => Some(match v.as_str() {
            Some(s) => s.to_owned(),
            None if v.kind() == ValueKind::Bool => " ".repeat(usize::from(v.is_true())),
            None => " ".repeat(i64::try_from(v)?.clamp(0, 64) as usize),
        }),
    };
    let (item_separator, key_separator) = match argument(separators, "separators")? {
        Some(v) => (v.get_item_by_index(0)?.to_string(), v.get_item_by_index(1)?.to_string()),
        None => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
    };
    named.assert_all_used()?;
    let style = Style { ensure_ascii, sort_keys, indent, item_separator, key_separator };
    let mut out = String::new();
    style.value(value, 0, &mut out)?;
    Ok(Value::from(out))
}

impl Style {
    fn value(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)?),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let mut first = true;
                out.push('[');
                for item in value.try_iter()? {
                    self.separate(&mut first, depth + 1, out);
                    self.value(&item, depth + 1, out)?;
                }
                self.close(first, depth, ']', out);
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    entries.push((key_text(&key)?, value.get_item(&key)?));
                }
                if self.sort_keys {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                let mut first = true;
                out.push('{');
                for (key, item) in entries {
                    self.separate(&mut first, depth + 1, out);
                    self.string(&key, out);
                    out.push_str(&self.key_separator);
                    self.value(&item, depth + 1, out)?;
                }
                self.close(first, depth, '}', out);
            }
            kind => return Err(Error::new(ErrorKind::BadSerialization, format!("tojson: a value of type {kind} is not JSON"))),
        }
        Ok(())
    }

    fn separate(&self, first: &mut bool, depth: usize, out: &mut String) {
        if !std::mem::take(first) {
            out.push_str(&self.item_separator);
        }
        self.new_line(depth, out);
    }

    fn close(&self, empty: bool, depth: usize, bracket: char, out: &mut String) {
        if !empty {
            self.new_line(depth, out);
        }
        out.push(bracket);
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok((if key.is_true() { "true" } else { "false" }).into()),
        ValueKind::Number => number(key),
        kind => Err(Error::new(ErrorKind::BadSerialization, format!("tojson: a value of type {kind} cannot be a key"))),
    }
}

fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    Ok(float(f64::try_from(value.clone())?))
}

/// A float as Python writes it: the shortest digits that read back the same, an exponent outside 1e-4 ≤ x < 1e16.
fn float(x: f64) -> String {
    if !x.is_finite() {
        return (if x.is_nan() {
            "NaN"
        } else if x > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        })
        .into();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        -4..16 if x.fract() == 0.0 => format!("{x:.1}"),
        -4..16 => x.to_string(),
        e => format!("{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs()),
    }
}
