//! JSON objects read strictly: a key that appears twice is an error, because one of the two would be silently lost.

use crate::FormatError;
use crate::error::clip;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// Parses a file that must hold one JSON object. Nesting is bounded by the parser (128 levels).
pub(crate) fn object(file: &str, bytes: &[u8]) -> Result<Map<String, Value>, FormatError> {
    let wrong = |found: String| FormatError::Json {
        file: file.into(),
        expected: "a JSON object".into(),
        found: clip(found),
        remedy: "correct the file or download it again".into(),
    };
    match serde_json::from_slice::<Strict>(bytes) {
        Ok(Strict(Value::Object(map))) => Ok(map),
        Ok(Strict(other)) => Err(wrong(show(&other))),
        Err(e) => Err(wrong(e.to_string())),
    }
}

/// A value as messages show it.
pub(crate) fn show(value: &Value) -> String {
    match value {
        Value::Array(a) => format!("a list of {}", a.len()),
        Value::Object(o) => format!("an object of {} keys", o.len()),
        other => clip(other),
    }
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = vec![];
        while let Some(Strict(v)) = seq.next_element()? {
            out.push(v);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some((key, Strict(value))) = map.next_entry::<String, Strict>()? {
            if out.contains_key(&key) {
                return Err(A::Error::custom(format!("key `{}` twice", clip(key))));
            }
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_refuses_duplicates() {
        let m = object("f", br#"{"b": [1, -2, 1.5, null, true, "x"], "a": {}}"#).unwrap();
        assert_eq!(Value::Object(m).to_string(), r#"{"b":[1,-2,1.5,null,true,"x"],"a":{}}"#);
        let e = object("f", br#"{"a": {"x": 1, "x": 2}}"#).unwrap_err().to_string();
        assert!(e.contains("f: expected a JSON object, found key `x` twice at line 1"), "{e}");
        assert!(object("f", b"[]").unwrap_err().to_string().contains("a list of 0"));
        assert!(object("f", b"{").is_err());
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(object("f", deep.as_bytes()).unwrap_err().to_string().contains("recursion limit"));
    }
}
