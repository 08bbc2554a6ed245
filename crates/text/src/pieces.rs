//! From vocabulary entries to text, as a stream.
//!
//! The `decoder` of a `tokenizer.json` is defined on the whole list of tokens. This is the same function as a chain of
//! stages, each of which passes on what no later token can change:
//!
//! | decoder        | unit it works on            | what it has to hold back                                        |
//! |----------------|-----------------------------|-----------------------------------------------------------------|
//! | `ByteLevel`    | all bytes, lossy UTF-8      | an unfinished character (at most 3 bytes)                       |
//! | `ByteFallback` | a run of `<0xNN>` tokens    | the run: one bad byte turns *every* byte of its run into U+FFFD |
//! | `Replace`      | a token                     | nothing                                                         |
//! | `Metaspace`    | a token, the first differs  | nothing                                                         |
//! | `Fuse`         | –                           | nothing: it only makes a later `Strip` see one text             |
//! | `Strip`        | a token, or the fused text  | trailing characters that may turn out to be the end             |
//!
//! Other decoders have no streaming form here; see [`crate::Detokenizer`] for what happens to them.

use serde_json::Value;

/// One step of the chain, with its state.
#[derive(Clone, Debug)]
enum Stage {
    Replace { from: String, to: String },
    Metaspace { replacement: char, strip_first: bool, at_start: bool },
    StripToken { content: char, start: usize, stop: usize },
    ByteFallback { run: Vec<u8> },
    ByteLevel { pending: Vec<u8> },
    StripText { content: char, start: usize, stop: usize, held: usize },
}

/// A decoder as a stream. Cloning a fresh one is how a new stream begins.
#[derive(Clone, Debug)]
pub(crate) struct Pieces {
    stages: Vec<Stage>,
}

impl Pieces {
    /// From the `decoder` of a `tokenizer.json`; `None` when it has no streaming form.
    pub fn new(decoder: &Value) -> Option<Pieces> {
        let mut stages = Vec::new();
        let mut fused = false;
        build(decoder, &mut stages, &mut fused)?;
        Some(Pieces { stages })
    }

    /// Feeds a token; appends the text that has become final.
    pub fn push(&mut self, token: &str, out: &mut String) {
        feed(&mut self.stages, token, out);
    }

    /// Appends what was held back. The stream is over.
    pub fn finish(&mut self, out: &mut String) {
        for at in 0..self.stages.len() {
            let (head, rest) = self.stages[at..].split_at_mut(1);
            match &mut head[0] {
                Stage::ByteFallback { run } => end_run(run, rest, out),
                Stage::ByteLevel { pending } if !pending.is_empty() => {
                    pending.clear();
                    feed(rest, "\u{FFFD}", out);
                }
                _ => {}
            }
        }
    }

    /// The bytes that a token stands for, wherever it occurs.
    pub fn token_bytes(&self, token: &str) -> Vec<u8> {
        let mut text = token.to_owned();
        for stage in &self.stages {
            match stage {
                Stage::Replace { from, to } => text = text.replace(from.as_str(), to),
                Stage::Metaspace { replacement, .. } => text = text.replace(*replacement, " "),
                Stage::ByteFallback { .. } => {
                    if let Some(byte) = byte_token(&text) {
                        return vec![byte];
                    }
                }
                Stage::ByteLevel { .. } => return level_bytes(&text),
                Stage::StripToken { .. } | Stage::StripText { .. } => {}
            }
        }
        text.into_bytes()
    }
}

/// Appends the stages of one decoder. `fused`: all text is one piece from here on.
fn build(decoder: &Value, stages: &mut Vec<Stage>, fused: &mut bool) -> Option<()> {
    let kind = decoder.get("type")?.as_str()?;
    if *fused && !matches!(kind, "Sequence" | "Fuse" | "Strip") {
        return None;
    }
    let count = |key| decoder.get(key)?.as_u64()?.try_into().ok();
    match kind {
        "Sequence" => decoder.get("decoders")?.as_array()?.iter().try_for_each(|d| build(d, stages, fused))?,
        "Fuse" => *fused = true,
        "ByteFallback" => stages.push(Stage::ByteFallback { run: Vec::new() }),
        "ByteLevel" => {
            stages.push(Stage::ByteLevel { pending: Vec::new() });
            *fused = true;
        }
        "Replace" => {
            let from = decoder.get("pattern")?.get("String")?.as_str()?;
            let to = decoder.get("content")?.as_str()?;
            if from.is_empty() {
                return None;
            }
            stages.push(Stage::Replace { from: from.into(), to: to.into() });
        }
        "Metaspace" => {
            let replacement = decoder.get("replacement")?.as_str()?.chars().next()?;
            let strip_first = decoder.get("prepend_scheme")?.as_str()? != "never";
            stages.push(Stage::Metaspace { replacement, strip_first, at_start: true });
        }
        "Strip" => {
            let content = decoder.get("content")?.as_str()?.chars().next()?;
            let (start, stop) = (count("start")?, count("stop")?);
            stages.push(match *fused {
                true => Stage::StripText { content, start, stop, held: 0 },
                false => Stage::StripToken { content, start, stop },
            });
        }
        _ => return None,
    }
    Some(())
}

fn feed(stages: &mut [Stage], piece: &str, out: &mut String) {
    let Some((stage, rest)) = stages.split_first_mut() else {
        out.push_str(piece);
        return;
    };
    match stage {
        Stage::Replace { from, to } => match piece.contains(from.as_str()) {
            true => feed(rest, &piece.replace(from.as_str(), to), out),
            false => feed(rest, piece, out),
        },
        Stage::Metaspace { replacement, strip_first, at_start } => {
            let space = if *at_start && *strip_first { "" } else { " " };
            *at_start = false;
            feed(rest, &piece.replace(*replacement, space), out);
        }
        Stage::StripToken { content, start, stop } => {
            let left = count_leading(piece.chars(), *content, *start);
            let right = count_leading(piece.chars().rev(), *content, *stop);
            let width = content.len_utf8();
            feed(rest, piece.get(left * width..piece.len() - right * width).unwrap_or(""), out);
        }
        Stage::ByteFallback { run } => match byte_token(piece) {
            Some(byte) => run.push(byte),
            None => {
                end_run(run, rest, out);
                feed(rest, piece, out);
            }
        },
        Stage::ByteLevel { pending } => {
            pending.extend(level_bytes(piece));
            let text = take_text(pending);
            if !text.is_empty() {
                feed(rest, &text, out);
            }
        }
        Stage::StripText { content, start, stop, held } => {
            let left = count_leading(piece.chars(), *content, *start);
            *start = if left * content.len_utf8() < piece.len() { 0 } else { *start - left };
            let piece = &piece[left * content.len_utf8()..];
            let body = piece.trim_end_matches(*content);
            let trailing = (piece.len() - body.len()) / content.len_utf8() + if body.is_empty() { *held } else { 0 };
            let before = if body.is_empty() { 0 } else { *held };
            *held = trailing.min(*stop);
            let mut text: String = std::iter::repeat_n(*content, before).collect();
            text.push_str(body);
            text.extend(std::iter::repeat_n(*content, trailing - *held));
            feed(rest, &text, out);
        }
    }
}

/// How many of the first characters are `content`, at most `limit`.
fn count_leading(chars: impl Iterator<Item = char>, content: char, limit: usize) -> usize {
    chars.take(limit).take_while(|c| *c == content).count()
}

/// Ends a run of byte tokens: its text if it is UTF-8, else one U+FFFD for every byte.
fn end_run(run: &mut Vec<u8>, rest: &mut [Stage], out: &mut String) {
    if run.is_empty() {
        return;
    }
    match std::str::from_utf8(run) {
        Ok(text) => feed(rest, text, out),
        Err(_) => run.iter().for_each(|_| feed(rest, "\u{FFFD}", out)),
    }
    run.clear();
}

/// `<0xNN>`.
fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// Takes all text that later bytes cannot change; invalid sequences become U+FFFD as in lossy decoding.
fn take_text(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let (mut read, mut keep) = (0, 0);
    for chunk in pending.utf8_chunks() {
        text.push_str(chunk.valid());
        read += chunk.valid().len() + chunk.invalid().len();
        if chunk.invalid().is_empty() {
            continue;
        }
        // The last chunk may only be unfinished.
        let unfinished = std::str::from_utf8(chunk.invalid()).is_err_and(|e| e.error_len().is_none());
        match unfinished && read == pending.len() {
            true => keep = chunk.invalid().len(),
            false => text.push('\u{FFFD}'),
        }
    }
    pending.drain(..pending.len() - keep);
    text
}

/// The bytes of a byte-level token. A token with a character outside the alphabet stands for its own UTF-8.
fn level_bytes(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(|c| BYTE_OF.get(c as usize).copied().flatten()).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte-level alphabet of GPT-2, from character to byte: printable Latin-1 stands for itself, every other byte, in
/// order, for a character from U+0100 on.
const BYTE_OF: [Option<u8>; 324] = {
    let mut table = [None; 324];
    let mut byte = 0;
    let mut next = 256;
    while byte < 256 {
        let printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        if printable {
            table[byte] = Some(byte as u8);
        } else {
            table[next] = Some(byte as u8);
            next += 1;
        }
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::Pieces;
    use serde_json::json;

    /// Everything that comes out, cut where it came out; the last is what `finish` gave.
    fn run(decoder: serde_json::Value, tokens: &[&str]) -> Vec<String> {
        let mut pieces = Pieces::new(&decoder).unwrap();
        let mut out = vec![String::new(); tokens.len() + 1];
        tokens.iter().zip(&mut out).for_each(|(token, out)| pieces.push(token, out));
        pieces.finish(&mut out[tokens.len()]);
        out
    }

    #[test]
    fn both_ends_of_the_fused_text_are_stripped() {
        let strip = |start, stop| json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": "_", "start": start, "stop": stop}]});
        assert_eq!(run(strip(1, 1), &["_a_", "_b_"]), ["a", "__b", ""]);
        assert_eq!(run(strip(2, 2), &["_", "__a", "_", "_", "_", ""]), ["", "_a", "", "", "_", "", ""]);
        assert_eq!(run(strip(3, 1), &["_", "_"]), ["", "", ""]);
        assert_eq!(run(strip(0, 1), &["_", "_"]), ["", "_", ""]);
    }

    #[test]
    fn each_token_is_stripped_when_not_fused() {
        let decoder = json!({"type": "Strip", "content": "é", "start": 1, "stop": 1});
        assert_eq!(run(decoder, &["éaé", "é", "éé", "b", ""]), ["a", "", "", "b", "", ""]);
    }

    #[test]
    fn decoders_without_a_stream_are_left_to_the_library() {
        let replace = json!({"type": "Replace", "pattern": {"Regex": " +"}, "content": " "});
        let late =
            json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}]});
        for decoder in [replace, late, json!({"type": "CTC"}), json!(null), json!({})] {
            assert!(Pieces::new(&decoder).is_none(), "{decoder}");
        }
    }
}
