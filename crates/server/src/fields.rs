//! Reading request fields by hand, so that every error names the field's path.

use crate::error::ApiError;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// What becomes of a field.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule {
    /// It is read.
    Used,
    /// It is accepted and changes nothing.
    Harmless,
    /// Only these values, written as JSON, are accepted: they ask for what happens anyway.
    Only(&'static [&'static str]),
    /// It is refused; the text says what to do instead.
    Refused(&'static str),
}

/// A field by name.
pub(crate) type Field = (&'static str, Rule);

/// A JSON object of a request, with its path.
pub(crate) struct Fields<'v> {
    map: &'v Map<String, Value>,
    /// Path of the object, ending in a dot; empty at the top.
    path: String,
}

/// What a value is, for messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A wrong type.
pub(crate) fn expected(path: &str, what: &str, found: &Value) -> ApiError {
    ApiError::field(path, format!("`{path}`: expected {what}, found {}", kind(found)))
}

/// A whole number; `5.0` is one.
fn whole(value: &Value) -> Option<i64> {
    let float = || value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15).map(|f| f as i64);
    value.as_i64().or_else(float)
}

/// A whole number in a range.
pub(crate) fn integer(path: &str, value: &Value, range: &RangeInclusive<i64>) -> Result<i64, ApiError> {
    let (low, high) = (range.start(), range.end());
    let what = match *high {
        i64::MAX => format!("an integer of at least {low}"),
        _ => format!("an integer from {low} to {high}"),
    };
    if !value.is_number() {
        return Err(expected(path, &what, value));
    }
    let wrong = || ApiError::field(path, format!("`{path}`: expected {what}, found {value}"));
    whole(value).filter(|n| range.contains(n)).ok_or_else(wrong)
}

/// A number in a range.
pub(crate) fn number(path: &str, value: &Value, range: &RangeInclusive<f64>) -> Result<f64, ApiError> {
    let what = format!("a number from {} to {}", range.start(), range.end());
    let Some(n) = value.as_f64() else { return Err(expected(path, &what, value)) };
    match range.contains(&n) {
        true => Ok(n),
        false => Err(ApiError::field(path, format!("`{path}`: expected {what}, found {value}"))),
    }
}

impl<'v> Fields<'v> {
    /// The fields of an object at `path` (ending in a dot, or empty).
    pub fn new(value: &'v Value, path: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Fields { map, path: path.into() }),
            _ if path.is_empty() => Err(ApiError::bad_request(format!("the body: expected a JSON object, found {}", kind(value)))),
            _ => Err(expected(path.trim_end_matches('.'), "an object", value)),
        }
    }

    /// Looks at every field that is there. Gives the names of those that `table` does not know; with `strict` that is an error.
    pub fn check(&self, table: &[&[Field]], strict: bool) -> Result<Vec<String>, ApiError> {
        let mut unknown = vec![];
        for (name, value) in self.map.iter().filter(|(_, v)| !v.is_null()) {
            let path = self.path(name);
            match table.iter().flat_map(|t| t.iter()).find(|(n, _)| n == name) {
                Some((_, Rule::Used | Rule::Harmless)) => {}
                Some((_, Rule::Only(values))) => {
                    let same = |text: &&str| serde_json::from_str::<Value>(text).is_ok_and(|v| equal(&v, value));
                    if !values.iter().any(same) {
                        let message = format!("`{path}`: this server supports only {}", values.join(" or "));
                        return Err(ApiError::unsupported(path, message));
                    }
                }
                Some((_, Rule::Refused(why))) => {
                    return Err(ApiError::unsupported(&path, format!("`{path}` is not supported: {why}")));
                }
                None if strict => {
                    let message = format!("`{path}` is no parameter of this request");
                    return Err(ApiError::field(path, message));
                }
                None => unknown.push(name.clone()),
            }
        }
        Ok(unknown)
    }

    /// The path of a field.
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// A field that is there and not null.
    pub fn get(&self, name: &str) -> Option<&'v Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// A field that must be there.
    pub fn required(&self, name: &str) -> Result<&'v Value, ApiError> {
        let path = self.path(name);
        self.get(name).ok_or_else(|| ApiError::field(&path, format!("`{path}` is missing")))
    }

    pub fn bool(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(v) => Err(expected(&self.path(name), "true or false", v)),
        }
    }

    /// A flag, false unless said.
    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        Ok(self.bool(name)?.unwrap_or(false))
    }

    pub fn string(&self, name: &str) -> Result<Option<&'v str>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(v) => Err(expected(&self.path(name), "a string", v)),
        }
    }

    pub fn array(&self, name: &str) -> Result<Option<&'v [Value]>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(a)) => Ok(Some(a)),
            Some(v) => Err(expected(&self.path(name), "an array", v)),
        }
    }

    pub fn object(&self, name: &str) -> Result<Option<&'v Map<String, Value>>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(o)) => Ok(Some(o)),
            Some(v) => Err(expected(&self.path(name), "an object", v)),
        }
    }

    pub fn integer(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        self.get(name).map(|v| integer(&self.path(name), v, &range)).transpose()
    }

    /// A count: an integer that is not negative.
    pub fn count(&self, name: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, ApiError> {
        let edge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        Ok(self.integer(name, edge(*range.start())..=edge(*range.end()))?.map(|n| n as usize))
    }

    pub fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        self.get(name).map(|v| number(&self.path(name), v, &range)).transpose()
    }
}

/// Equality in which `1` and `1.0` are the same number.
fn equal(a: &Value, b: &Value) -> bool {
    a == b || (a.is_number() && a.as_f64() == b.as_f64())
}

/// The strings of an array.
pub(crate) fn strings(path: &str, list: &[Value]) -> Result<Vec<String>, ApiError> {
    let one = |(i, v): (usize, &Value)| match v {
        Value::String(s) => Ok(s.clone()),
        v => Err(expected(&format!("{path}[{i}]"), "a string", v)),
    };
    list.iter().enumerate().map(one).collect()
}

/// Token ids below `vocab`.
pub(crate) fn tokens(path: &str, list: &[Value], vocab: usize) -> Result<Vec<u32>, ApiError> {
    let range = 0..=(vocab as i64 - 1).min(i64::from(u32::MAX));
    list.iter().enumerate().map(|(i, v)| integer(&format!("{path}[{i}]"), v, &range).map(|n| n as u32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn errors_name_the_path() {
        let v = json!({"a": "x", "n": 3.0, "f": 0.5, "l": [1, "2"], "none": null});
        let f = Fields::new(&v, "outer.").unwrap();
        assert_eq!(f.integer("n", 0..=5).unwrap(), Some(3));
        assert_eq!(f.integer("none", 0..=5).unwrap(), None);
        for (e, param) in [
            (f.integer("a", 0..=5).unwrap_err(), "outer.a"),
            (f.integer("n", 4..=5).unwrap_err(), "outer.n"),
            (f.integer("f", 0..=5).unwrap_err(), "outer.f"),
            (f.number("f", 1.0..=2.0).unwrap_err(), "outer.f"),
            (f.required("none").unwrap_err(), "outer.none"),
            (tokens("outer.l", f.array("l").unwrap().unwrap(), 5).unwrap_err(), "outer.l[1]"),
        ] {
            assert_eq!(e.json()["error"]["param"], param);
            assert!(e.message.contains(param), "{}", e.message);
        }
    }

    #[test]
    fn a_table_says_what_is_refused() {
        const TABLE: &[Field] = &[("a", Rule::Used), ("one", Rule::Only(&["1"])), ("no", Rule::Refused("because"))];
        let check = |v: Value, strict| Fields::new(&v, "").unwrap().check(&[TABLE], strict);
        assert_eq!(check(json!({"a": 1, "one": 1.0, "no": null, "b": 2}), false).unwrap(), ["b"]);
        assert!(check(json!({"b": 2}), true).is_err() && check(json!({"one": 2}), false).is_err());
        assert!(check(json!({"no": false}), false).unwrap_err().message.contains("because"));
    }
}
