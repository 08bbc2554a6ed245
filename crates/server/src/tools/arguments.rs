//! The arguments of a call, handed on while they come.

/// Why a text does not begin like a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// It may, once there is more of it.
    More,
    /// It is something else.
    Other,
}

/// The name of the call at the beginning of a text and where its arguments begin, as soon as both are there:
/// `{"name": "…", "arguments": {`, by one of these `keys`. From there on it is a call, whatever follows.
pub(super) fn begun<'t>(text: &'t str, names: &[String], keys: &[&str]) -> Result<(&'t str, usize), Missing> {
    let (key, rest) = word(sign(text, '{')?)?;
    let (name, rest) = word(sign(rest, ':')?)?;
    if key != "name" || !names.iter().any(|n| n == name) {
        return Err(Missing::Other);
    }
    let (key, rest) = word(sign(rest, ',')?)?;
    let after = sign(sign(rest, ':')?, '{')?;
    if keys.contains(&key) { Ok((name, text.len() - after.len() - 1)) } else { Err(Missing::Other) }
}

/// What follows this sign.
fn sign(text: &str, wanted: char) -> Result<&str, Missing> {
    let text = text.trim_start();
    match text.strip_prefix(wanted) {
        Some(rest) => Ok(rest),
        None if text.is_empty() => Err(Missing::More),
        None => Err(Missing::Other),
    }
}

/// A plain string, and what follows it.
fn word(text: &str) -> Result<(&str, &str), Missing> {
    let text = sign(text, '"')?;
    let end = text.find(['"', '\\']).ok_or(Missing::More)?;
    text[end..].strip_prefix('"').map(|rest| (&text[..end], rest)).ok_or(Missing::Other)
}

/// How far the arguments of a call have come, and the objects around them.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    /// Objects around the arguments.
    around: usize,
    /// Objects and lists that are open.
    depth: usize,
    string: bool,
    escaped: bool,
    /// Whether only what is around them is still open.
    over: bool,
}

impl Arguments {
    /// Of an object that comes next, with so many open `around` it.
    pub fn new(around: usize) -> Self {
        Self { around, depth: around, ..Self::default() }
    }

    /// Objects around them.
    pub fn around(&self) -> usize {
        self.around
    }

    /// Takes what belongs to the call from the front: the arguments in it, and whether the call has ended.
    pub fn take(&mut self, buffer: &mut String) -> (String, bool) {
        let (mut arguments, mut end) = (if self.over { 0 } else { buffer.len() }, buffer.len());
        let mut ended = false;
        for (at, c) in buffer.char_indices() {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' if self.string => self.escaped = true,
                '"' => self.string = !self.string,
                '{' | '[' if !self.string => self.depth += 1,
                '}' | ']' if !self.string => self.depth -= 1,
                _ => {}
            }
            if self.depth == self.around && !self.over {
                (self.over, arguments) = (true, at + c.len_utf8());
            }
            if self.depth == 0 {
                (ended, end) = (true, at + c.len_utf8());
                break;
            }
        }
        let mut taken: String = buffer.drain(..end).collect();
        taken.truncate(arguments);
        (taken, ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_begun_with_its_arguments() {
        let names = ["time".to_owned()];
        fn of<'t>(text: &'t str, names: &[String]) -> Result<(&'t str, usize), Missing> {
            begun(text, names, &["arguments", "parameters"])
        }
        let whole = " { \"name\" : \"time\" ,\n\"parameters\": {";
        for end in whole.char_indices().map(|(at, _)| at) {
            assert_eq!(of(&whole[..end], &names), Err(Missing::More), "{}", &whole[..end]);
        }
        assert_eq!(of(whole, &names), Ok(("time", whole.len() - 1)));
        for other in ["[", "{\"arguments\"", "{\"name\": \"times\"", "{\"name\": \"ti\\u006de\"", "{\"name\": \"time\"}", "{\"name\": 1"] {
            let text = format!("{other}, \"arguments\": {{");
            assert_eq!(of(&text, &names), Err(Missing::Other), "{other}");
        }
        assert_eq!(of("{\"name\": \"time\", \"arguments\": \"{}\"", &names), Err(Missing::Other));
        assert_eq!(of("{\"name\": \"time\", \"id\": {", &names), Err(Missing::Other));
    }

    #[test]
    fn arguments_end_where_their_object_does() {
        let arguments = "{\"a\": \"}\\\"{\", \"ä\": [{}, {\"b\": 1}]}";
        for (around, rest) in [(0, ""), (1, " , \"id\": {\"c\": []} }")] {
            let text = format!("{arguments}{rest}");
            for cut in text.char_indices().map(|(at, _)| at) {
                let mut state = Arguments::new(around);
                let (first, ended) = state.take(&mut text[..cut].to_owned());
                assert!(!ended);
                let mut buffer = format!("{} and more", &text[cut..]);
                let (second, ended) = state.take(&mut buffer);
                assert_eq!((format!("{first}{second}"), ended, buffer.as_str()), (arguments.to_owned(), true, " and more"), "{cut}");
            }
        }
    }
}
