//! Calibration texts of every kind, as sequences of token ids.

mod common;

use billfish::{Calibration, CalibrationOptions, Checkpoint, Error, read_calibration, read_tokenizer};
use billfish_text::Tokenizer;
use common::Folder;
use serde_json::{Value, json};
use std::path::Path;

const OPTIONS: CalibrationOptions = CalibrationOptions { samples: 100, seqlen: 8, seed: None };

/// A model with a tokenizer and a template, and a folder for texts.
struct Place {
    folder: Folder,
    texts: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: Folder::builtin(), texts: tempfile::tempdir().unwrap() }
    }

    fn source(&self) -> Checkpoint {
        Checkpoint::open(Path::new(self.folder.dir())).unwrap()
    }

    fn tokenizer(&self) -> Tokenizer {
        read_tokenizer(&self.source()).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.texts.path().join(name), text).unwrap();
    }

    fn read(&self, name: &str, options: CalibrationOptions) -> Result<Calibration, Error> {
        read_calibration(&self.source(), &self.texts.path().join(name), &options)
    }

    /// The sequences of some rows.
    fn rows(&self, rows: &[Value], options: CalibrationOptions) -> Result<Calibration, Error> {
        self.write("rows.jsonl", &rows.iter().map(Value::to_string).collect::<Vec<_>>().join("\n"));
        self.read("rows.jsonl", options)
    }

    fn refusal(&self, row: &str) -> String {
        self.write("rows.jsonl", &format!("{{\"text\": \"A line that is right\"}}\n\n{row}\n"));
        self.read("rows.jsonl", OPTIONS).unwrap_err().to_string()
    }
}

const STORY: &str = "Once upon a time there was a king who had a great forest near his palace, full of all kinds of wild animals.";

#[test]
fn texts_are_cut_into_pieces() {
    let place = Place::new();
    place.write("a.txt", STORY);
    let ids = place.tokenizer().encode(STORY, false).unwrap();
    assert!(ids.len() > 20 && !ids.len().is_multiple_of(8), "{}", ids.len());
    let read = place.read("a.txt", OPTIONS).unwrap();
    assert_eq!(read.sequences.concat(), ids[..ids.len() / 8 * 8]);
    assert!(read.sequences.iter().all(|s| s.len() == 8));
    assert!(
        read.warnings.iter().any(|w| w.contains("100 sequences were asked for") && w.contains(&format!("{} are there", ids.len() / 8))),
        "{read:?}"
    );
    // fewer than there are: spread evenly
    let two = place.read("a.txt", CalibrationOptions { samples: 2, ..OPTIONS }).unwrap();
    assert_eq!(two.sequences, [read.sequences[0].clone(), read.sequences[read.found / 2].clone()]);
    assert!(two.warnings.is_empty() && two.found == read.found, "{two:?}");
}

#[test]
fn a_seed_chooses_among_them() {
    let place = Place::new();
    let rows: Vec<Value> = (0..40).map(|i| json!({"tokens": [i, i + 1, i + 2]})).collect();
    let with = |seed| place.rows(&rows, CalibrationOptions { samples: 5, seed, ..OPTIONS }).unwrap().sequences;
    assert_eq!(with(None).iter().map(|s| s[0]).collect::<Vec<_>>(), [0, 8, 16, 24, 32]);
    assert_eq!(with(Some(3)), with(Some(3)));
    let chosen: Vec<Vec<Vec<u32>>> = (0..4).map(|seed| with(Some(seed))).collect();
    assert!(chosen.iter().all(|c| c.len() == 5 && c.is_sorted_by(|a, b| a[0] < b[0])), "{chosen:?}");
    assert!(chosen[1..].iter().all(|c| *c != chosen[0]));
}

#[test]
fn rows_of_every_kind() {
    let place = Place::new();
    let tokenizer = place.tokenizer();
    let chat = [json!({"role": "user", "content": "Tell me a story."}), json!({"role": "assistant", "content": "Once upon a time."})];
    let rows = [
        json!({"text": STORY, "source": "somewhere"}),
        json!({"messages": chat}),
        json!({"tokens": [5, 6, 7]}),
        json!({"input_ids": [5, 6, 7, 8], "attention_mask": [1, 1, 1, 1], "text": null}),
    ];
    let read = place.rows(&rows, CalibrationOptions { seqlen: 1000, ..OPTIONS }).unwrap();
    // the folder's template, rendered by hand
    let rendered = "<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\nOnce upon a time.<|im_end|>\n";
    assert_eq!(read.sequences[0], tokenizer.encode_prompt(STORY).unwrap());
    assert_eq!(read.sequences[1], tokenizer.encode_chat(rendered).unwrap());
    assert_eq!(read.sequences[2..], [vec![5, 6, 7], vec![5, 6, 7, 8]]);
    // no more than asked for of each
    let short = place.rows(&rows, CalibrationOptions { seqlen: 3, ..OPTIONS }).unwrap();
    for (short, whole) in short.sequences.iter().zip(&read.sequences) {
        assert_eq!(short, &whole[..3]);
    }
}

#[test]
fn padding_leaves_no_trace() {
    let place = Place::new();
    let plain = place.rows(&[json!({"tokens": [9, 8, 7, 6, 5]}), json!({"tokens": [1, 2]})], OPTIONS).unwrap();
    let left = [
        json!({"input_ids": [0, 0, 9, 8, 7, 6, 5], "attention_mask": [0, 0, 1, 1, 1, 1, 1]}),
        // what pads need be no token of the model
        json!({"input_ids": [-100, 999_999, 1, 2], "attention_mask": [false, false, true, true]}),
    ];
    let right = [
        json!({"tokens": [9, 8, 7, 6, 5, 0, 0, 0], "attention_mask": [1, 1, 1, 1, 1, 0, 0, 0]}),
        json!({"tokens": [1, 2, 0], "attention_mask": [1, 1, 0]}),
    ];
    assert_eq!(plain.sequences, [vec![9, 8, 7, 6, 5], vec![1, 2]]);
    assert_eq!(place.rows(&left, OPTIONS).unwrap().sequences, plain.sequences);
    assert_eq!(place.rows(&right, OPTIONS).unwrap().sequences, plain.sequences);
}

#[test]
fn rows_of_less_than_two_tokens_are_counted() {
    let place = Place::new();
    let rows = [
        json!({"text": ""}),
        json!({"text": "  \n"}),
        json!({"tokens": [4]}),
        json!({"tokens": [4, 4], "attention_mask": [0, 1]}),
        json!({"messages": []}),
        json!({"tokens": [4, 5]}),
    ];
    let read = place.rows(&rows, OPTIONS).unwrap();
    assert_eq!((read.sequences.len(), read.found, read.dropped), (1, 1, 5));
    assert!(read.warnings.iter().any(|w| w.contains("5 of 6 rows")), "{:?}", read.warnings);
    let error = place.rows(&rows[..5], OPTIONS).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl") && error.contains("found 5 rows, none of two tokens or more"), "{error}");
}

#[test]
fn a_folder_is_its_files_in_order() {
    let place = Place::new();
    place.write("b.txt", STORY);
    place.write("a.jsonl", "{\"tokens\": [1, 2, 3]}\n");
    place.write("c.txt", "Too short.");
    let read = place.read("", OPTIONS).unwrap();
    let ids = place.tokenizer().encode(STORY, false).unwrap();
    assert_eq!(read.sequences[0], [1, 2, 3]);
    assert_eq!(read.sequences[1..].concat(), ids[..ids.len() / 8 * 8]);
    assert!(read.warnings.iter().any(|w| w.contains("1 texts") && w.contains("c.txt")), "{:?}", read.warnings);
    place.write("d.parquet", "x");
    let error = place.read("", OPTIONS).unwrap_err().to_string();
    assert!(error.contains("d.parquet") && error.contains(".jsonl"), "{error}");
    std::fs::remove_file(place.texts.path().join("d.parquet")).unwrap();
    std::fs::create_dir(place.texts.path().join("more.txt")).unwrap();
    let error = place.read("", OPTIONS).unwrap_err().to_string();
    assert!(error.contains("more.txt") && error.contains("a folder"), "{error}");
    std::fs::remove_dir(place.texts.path().join("more.txt")).unwrap();
    std::fs::write(place.texts.path().join("e.txt"), [0xff, 0xfe]).unwrap();
    let error = place.read("", OPTIONS).unwrap_err().to_string();
    assert!(error.contains("e.txt") && error.contains("UTF-8"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = read_calibration(&place.source(), empty.path(), &OPTIONS).unwrap_err().to_string();
    assert!(error.contains("found none"), "{error}");
}

#[test]
fn what_is_wrong_is_named() {
    let place = Place::new();
    for (row, words) in [
        ("nonsense", "expected a JSON object"),
        ("[1, 2]", "expected a JSON object, found `[1,2]`"),
        (r#"{"id": 3}"#, "found none of them"),
        (r#"{"text": "a", "messages": []}"#, "found `text` and `messages`"),
        (r#"{"text": 5}"#, "a string as `text`, found `5`"),
        (r#"{"messages": "Hi"}"#, "a list as `messages`"),
        (r#"{"messages": [{"role": "user"}, 5]}"#, "objects with a `role`, found `5`"),
        (r#"{"messages": [{"content": "Hi"}]}"#, "objects with a `role`"),
        (r#"{"tokens": "1 2 3"}"#, "a list of token ids as `tokens`"),
        (r#"{"tokens": [1, 2.5]}"#, "token ids below 4096, the rows of the embedding, found `2.5`"),
        (r#"{"tokens": [1, 4096]}"#, "found `4096`"),
        (r#"{"input_ids": [[1, 2]]}"#, "found `[1,2]`"),
        (r#"{"tokens": [1, 2, 3], "attention_mask": [1, 1]}"#, "3 numbers of 0 or 1 as `attention_mask`, found 2"),
        (r#"{"tokens": [1, 2], "attention_mask": [1, 2]}"#, "2 numbers of 0 or 1"),
        (r#"{"text": "abc", "attention_mask": [1, 1]}"#, "one beside `text`"),
    ] {
        let message = place.refusal(row);
        assert!(message.contains("rows.jsonl, line 3") && message.contains(words), "{row}: {message}");
    }
    let error = place.read("nowhere.txt", OPTIONS).unwrap_err().to_string();
    assert!(error.contains("nowhere.txt"), "{error}");
    place.write("a.json", "[]");
    assert!(place.read("a.json", OPTIONS).unwrap_err().to_string().contains("one object a line"));
    place.write("short.txt", "A few words.");
    let error = place.read("short.txt", OPTIONS).unwrap_err().to_string();
    assert!(error.contains("a text of 8 tokens") && error.contains("tokens of text") && error.contains("--seqlen"), "{error}");
    // sequences longer than the model was made for
    let long = place.rows(&[json!({"tokens": [1, 2]})], CalibrationOptions { seqlen: 1 << 20, ..OPTIONS }).unwrap();
    assert!(long.warnings.iter().any(|w| w.contains("positions")), "{:?}", long.warnings);
}

#[test]
fn only_what_is_needed_is_asked_of_the_folder() {
    let place = Place::new();
    std::fs::remove_file(place.folder.path("chat_template.jinja")).ok();
    place.folder.json("tokenizer_config.json", |m| drop(m.remove("chat_template")));
    let message = place.refusal(r#"{"messages": [{"role": "user", "content": "Hi"}]}"#);
    assert!(
        message.contains("line 3") && message.contains("a chat template of the folder") && message.contains("chat_template.jinja"),
        "{message}"
    );
    // ids need no tokenizer
    std::fs::remove_file(place.folder.path("tokenizer.json")).unwrap();
    assert_eq!(place.rows(&[json!({"tokens": [1, 2]})], OPTIONS).unwrap().sequences, [[1, 2]]);
    assert!(place.refusal("{}").contains("tokenizer.json"));
}

/// A template that asks for the date gives the same text on every day.
#[test]
fn the_clock_does_not_matter() {
    let place = Place::new();
    place.folder.write("chat_template.jinja", "Today is {{ strftime_now('%d %B %Y') }}. {{ messages[0].content }}{{ tools[0].name }}");
    let read = place.rows(
        &[json!({"messages": [{"role": "user", "content": "Hi"}], "tools": [{"name": "f"}]})],
        CalibrationOptions { seqlen: 100, ..OPTIONS },
    );
    assert_eq!(read.unwrap().sequences, [place.tokenizer().encode_chat("Today is 26 July 2024. Hif").unwrap()]);
}
