//! Methods that templates written for Python call on strings, beyond those of `minijinja-contrib`.

use minijinja::value::{Tuple, Value, ValueKind, from_args};
use minijinja::{Error, State};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Calls `method` as Python would.
pub(crate) fn call_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let (ValueKind::String, Some(text)) = (value.kind(), value.as_str())
        && let Some(result) = string_method(text, method, args)
    {
        return result;
    }
    unknown_method_callback(state, value, method, args)
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let affix = |cut: fn(&'_ str, &str) -> Option<String>| {
        from_args(args).map(|(affix,): (&str,)| Value::from(cut(text, affix).unwrap_or_else(|| text.to_owned())))
    };
    let pad = |left: bool| {
        from_args(args).map(|(width, fill): (usize, Option<&str>)| {
            let missing = width.min(4096).saturating_sub(text.chars().count());
            let padding = fill.unwrap_or(" ").repeat(missing);
            Value::from(if left { padding + text } else { text.to_owned() + &padding })
        })
    };
    let parts = |at: fn(&str, &str) -> Option<usize>, whole_first: bool| {
        from_args(args).map(|(separator,): (&str,)| {
            let (before, middle, after) = match at(text, separator) {
                Some(i) => (&text[..i], separator, &text[i + separator.len()..]),
                None if whole_first => (text, "", ""),
                None => ("", "", text),
            };
            Value::from(Tuple::from(vec![Value::from(before), Value::from(middle), Value::from(after)]))
        })
    };
    Some(match method {
        "title" => from_args(args).map(|()| Value::from(title(text))),
        "isspace" => from_args(args).map(|()| Value::from(!text.is_empty() && text.chars().all(char::is_whitespace))),
        "removeprefix" => affix(|text, prefix| text.strip_prefix(prefix).map(str::to_owned)),
        "removesuffix" => affix(|text, suffix| text.strip_suffix(suffix).map(str::to_owned)),
        "rjust" => pad(true),
        "ljust" => pad(false),
        "partition" => parts(|text, separator| text.find(separator), true),
        "rpartition" => parts(|text, separator| text.rfind(separator), false),
        _ => return None,
    })
}

/// Upper case after anything that is no letter, lower case after a letter.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut after_letter = false;
    for c in text.chars() {
        match after_letter {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        after_letter = c.is_lowercase() || c.is_uppercase();
    }
    out
}
