//! Stop strings against a naive search of the whole text.

use billfish_text::{StopMatcher, TextError};
use proptest::prelude::*;

/// Grows the text character by character until it ends in a stop string; of several the longest counts.
fn naive(text: &str, stops: &[String]) -> (String, Option<usize>) {
    for end in text.char_indices().map(|(at, c)| at + c.len_utf8()) {
        let ending = stops.iter().enumerate().filter(|(_, stop)| text[..end].ends_with(stop.as_str()));
        if let Some((index, stop)) = ending.min_by_key(|(index, stop)| (std::cmp::Reverse(stop.len()), *index)) {
            return (text[..end - stop.len()].to_owned(), Some(index));
        }
    }
    (text.to_owned(), None)
}

fn run(pieces: &[&str], stops: &[&str]) -> (Vec<String>, Option<String>) {
    let mut matcher = StopMatcher::new(stops.iter().copied()).unwrap();
    let mut out: Vec<String> = pieces.iter().map(|p| matcher.push(p).text.to_owned()).collect();
    out.push(matcher.finish().to_owned());
    (out, matcher.hit().map(str::to_owned))
}

#[test]
fn examples() {
    let stop = |s: &str| Some(s.to_owned());
    assert_eq!(run(&["ab", "cd"], &[]), (vec!["ab".into(), "cd".into(), "".into()], None));
    assert_eq!(run(&["Hi\nUs", "er: x"], &["\nUser:"]), (vec!["Hi".into(), "".into(), "".into()], stop("\nUser:")));
    assert_eq!(run(&["Hi\nUs", "e"], &["\nUser:"]), (vec!["Hi".into(), "".into(), "\nUse".into()], None));
    assert_eq!(run(&["aab"], &["ab"]), (vec!["a".into(), "".into()], stop("ab")));
    assert_eq!(run(&["a", "a", "b"], &["ab"]), (vec!["".into(), "a".into(), "".into(), "".into()], stop("ab")));
    assert_eq!(run(&["xabcd"], &["abcd", "bc"]), (vec!["xa".into(), "".into()], stop("bc")), "the first to end");
    assert_eq!(run(&["xab"], &["b", "ab"]), (vec!["x".into(), "".into()], stop("ab")), "the longest of those");
    assert_eq!(run(&["é", "🙂x"], &["🙂"]), (vec!["é".into(), "".into(), "".into()], stop("🙂")));
}

#[test]
fn nothing_comes_out_after_a_hit() {
    let mut matcher = StopMatcher::new(["."]).unwrap();
    assert_eq!(matcher.push("a.b").text, "a");
    assert_eq!(matcher.push("c").text, "");
    assert_eq!(matcher.finish(), "");
}

#[test]
fn an_empty_stop_string_is_an_error() {
    assert_eq!(StopMatcher::new(["a", ""]).unwrap_err(), TextError::EmptyStop { index: 1 });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equals_naive_search(pieces in prop::collection::vec("[abé🙂]{0,4}", 0..12), stops in prop::collection::vec("[abé🙂]{1,4}", 0..4)) {
        let text = pieces.concat();
        let (expected, hit) = naive(&text, &stops);
        let mut matcher = StopMatcher::new(stops.clone()).unwrap();
        let (mut out, mut fed) = (String::new(), String::new());
        for piece in &pieces {
            fed.push_str(piece);
            let step = matcher.push(piece);
            out.push_str(step.text);
            // What is held back is always the beginning of a stop string: nothing waits without need.
            if step.hit.is_none() {
                prop_assert!(fed.starts_with(&out));
                let held = &fed[out.len()..];
                prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)), "{:?} is held", held);
            }
        }
        out.push_str(matcher.finish());
        prop_assert_eq!(out, expected);
        prop_assert_eq!(matcher.hit(), hit.map(|index| stops[index].as_str()));
    }
}
