//! `serve` as a process: its settings, its signals, its log.
#![cfg(unix)]

mod common;

use common::{billfish, error, ok};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

/// A server process. Dropping it kills it.
struct Served {
    child: Child,
    address: String,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Served {
    fn start(args: &[&str]) -> Served {
        let args = [&["serve", "--port", "0", "--threads", "1", "--kv-cache-memory", "64MiB"], args].concat();
        let mut child = billfish(&args).env("BILLFISH_API_KEY", "secret").stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let address = line.trim().rsplit_once("http://").unwrap_or_else(|| panic!("{line}")).1.to_owned();
        assert!(line.contains("with a key") && line.contains("1024 tokens"), "{line}");
        Served { child, address, stderr }
    }

    fn post(&self, body: &str) -> BufReader<TcpStream> {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: t\r\nauthorization: Bearer secret\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        socket.write_all(head.as_bytes()).unwrap();
        BufReader::new(socket)
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Exit code and the rest of what was logged.
    fn end(mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        self.stderr.read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // it may have ended already
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn long(tokens: usize) -> String {
    format!("{{\"prompt\": \"Once upon a time\", \"max_tokens\": {tokens}, \"ignore_eos\": true, \"stream\": true}}")
}

/// Reads until the first event.
fn first(reader: &mut BufReader<TcpStream>) {
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0);
    }
}

#[test]
fn a_signal_lets_streams_end() {
    let served = Served::start(&["--log", "json"]);
    let mut reader = served.post(&long(200));
    first(&mut reader);
    served.signal("-TERM");
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"), "{rest}");
    let (code, log) = served.end();
    assert_eq!(code, Some(0), "{log}");
    let line: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!((&line["status"], &line["completion_tokens"], &line["complete"]), (&200.into(), &200.into(), &true.into()), "{log}");
    assert!(!log.contains("secret"));
}

#[test]
fn a_second_signal_ends_them() {
    let served = Served::start(&["--shutdown-timeout", "600"]);
    let mut readers = [served.post(&long(1000)), served.post(&long(1000))];
    readers.iter_mut().for_each(first);
    served.signal("-INT");
    served.signal("-TERM");
    for mut reader in readers {
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        // a fast machine may have finished before the second signal
        assert!(rest.contains("\"code\":\"unavailable\"") || rest.contains("\"finish_reason\":\"length\""), "{rest}");
        assert!(rest.contains("data: [DONE]"), "{rest}");
    }
    assert_eq!(served.end().0, Some(0));
}

#[test]
fn settings_are_shown_with_their_source() {
    let (out, _) = ok(&["config", "print", "--max-num-seqs", "7", "--api-key", "hidden", "--no-enable-prefix-caching"]);
    assert!(out.contains("max-num-seqs = 7  # command line") && out.contains("port = 8000  # default"), "{out}");
    assert!(out.contains("enable-prefix-caching = false  # command line") && !out.contains("hidden"), "{out}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("serve.toml");
    std::fs::write(&file, out.replace("[\"…\"]", "[\"k\"]")).unwrap();
    let (again, _) = ok(&["config", "print", "--config", file.to_str().unwrap()]);
    assert!(again.contains("max-num-seqs = 7") && again.contains("enable-prefix-caching = false"), "{again}");
}

#[test]
fn wrong_settings_end_at_once() {
    for (args, words) in [
        (&["--port", "70000"][..], &["port", "65535"][..]),
        (&["--kv-cache-dtype", "f99"], &["kv-cache-dtype", "f16"]),
        (&["--kv-cache-memory", "1"], &["kv-cache-memory"]),
        (&["--max-model-len", "1000000", "--kv-cache-memory", "64MiB"], &["max-model-len"]),
        (&["--config", "missing.toml"], &["missing.toml"]),
        (&["--chat-template", "missing.jinja"], &["missing.jinja"]),
        (&["--api-key-file", "missing.txt"], &["missing.txt"]),
        (&["--api-key", "not plain"], &["api-key"]),
        (&["--host", "203.0.113.1", "--port", "1"], &["203.0.113.1:1", "--host"]),
        (&["no-such-folder"], &["no-such-folder"]),
        (&["--no-such-flag"], &["--no-such-flag"]),
    ] {
        let message = error(&[&["serve", "--threads", "1", "--max-num-seqs", "4"], args].concat());
        assert!(words.iter().all(|w| message.contains(w)), "{args:?}: {message}");
    }
}

#[test]
fn bench_serve_counts_what_the_server_counts() {
    let served = Served::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("r.json");
    let url = format!("http://{}", served.address);
    let bench = |args: &[&str]| {
        let base = ["bench", "serve", &url, "--num-prompts", "6", "--ignore-eos", "--max-concurrency", "3"];
        // options of random prompts are refused with those of files
        let lengths: &[&str] =
            if args.contains(&"--dataset-name") { &[] } else { &["--random-input-len", "8", "--random-output-len", "5"] };
        let mut command = billfish(&[&base[..], &["--result-filename", file.to_str().unwrap()], lengths, args].concat());
        command.env("OPENAI_API_KEY", "secret");
        common::output(command)
    };
    for (args, input) in [(&[][..], Some(48)), (&["--backend", "openai-chat", "--request-rate", "100"], None)] {
        let (code, out, err) = bench(args);
        assert_eq!(code, 0, "{err}");
        let v: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!((&v["completed"], &v["failed"], &v["total_output_tokens"]), (&6.into(), &0.into(), &30.into()), "{v}");
        assert!(input.is_none_or(|n| v["total_input_tokens"] == n) && v["max_concurrent_requests"].as_u64().unwrap() <= 6, "{v}");
        for line in [
            "Successful requests:                     6",
            "Total generated tokens:                  30",
            "Median TTFT (ms):",
            "P99 ITL (ms):",
        ] {
            assert!(out.contains(line), "{out}");
        }
        assert!(v["p99_tpot_ms"].is_number() && v["mean_ttft_ms"].as_f64().unwrap() > 0.0, "{v}");
    }
    // what was asked for comes back: how many kept to limits, how requests came, and random lengths
    let (code, out, err) = bench(&["--goodput", "ttft:60000", "e2el:60000", "--request-rate", "50", "--burstiness", "4"]);
    assert!(code == 0 && out.contains("Request goodput (req/s):") && out.contains("Burstiness factor:"), "{out}{err}");
    let v: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((&v["request_goodput"], &v["burstiness"]), (&v["request_throughput"], &4.0.into()), "{v}");
    let (_, out, _) = bench(&["--goodput", "ttft:0"]);
    assert!(out.contains("Request goodput (req/s):                 0.00"), "{out}");
    let (_, out, err) = bench(&["--random-prefix-len", "20", "--random-range-ratio", "0.5"]);
    let total = out.lines().find_map(|l| l.strip_prefix("Total input tokens:")).unwrap().trim().parse::<usize>().unwrap();
    assert!((6 * (20 + 4)..=6 * (20 + 12)).contains(&total) && total != 6 * 28, "{out}{err}");
    // prompts of files
    let (lines, talks) = (dir.path().join("p.jsonl"), dir.path().join("talks.json"));
    std::fs::write(&lines, "{\"prompt\": \"Once upon\", \"output_tokens\": 2}\n\n{\"prompt\": \"The king\"}\n").unwrap();
    std::fs::write(&talks, r#"[{"conversations": [{"value": "Who is there?"}, {"value": "the king"}]}, {"conversations": []}]"#).unwrap();
    let from = |name, path: &std::path::Path, more: &[&str]| {
        bench(&[&["--dataset-name", name, "--dataset-path", path.to_str().unwrap()], more].concat())
    };
    let (code, out, err) = from("custom", &lines, &["--custom-output-len", "4"]);
    assert!(code == 0 && out.contains("Total generated tokens:                  18"), "{out}{err}");
    let (code, out, err) = from("sharegpt", &talks, &["--backend", "openai-chat", "--sharegpt-output-len", "3"]);
    assert!(code == 0 && out.contains("Total generated tokens:                  18"), "{out}{err}");
    let (code, out, err) = from("sharegpt", &talks, &[]);
    let total = out.lines().find_map(|l| l.strip_prefix("Total generated tokens:")).unwrap_or_default().trim().parse().unwrap_or(0);
    assert!(code == 0 && total % 6 == 0 && (6..=48).contains(&total), "{out}{err}");
    for (args, words) in [
        (&["--goodput", "itl:3"][..], &["itl:3", "ttft:500"][..]),
        (&["--burstiness", "0", "--request-rate", "5"], &["--burstiness", "above 0"]),
        (&["--burstiness", "2"], &["--burstiness", "--request-rate"]),
        (&["--disable-shuffle"], &["--disable-shuffle", "sharegpt or custom", "found random"]),
        (&["--custom-output-len", "3"], &["--custom-output-len", "custom"]),
        (&["--dataset-name", "custom", "--dataset-path", "x", "--random-prefix-len", "2"], &["--random-prefix-len", "found custom"]),
        (&["--dataset-name", "custom", "--dataset-path", "x", "--sharegpt-output-len", "2"], &["--sharegpt-output-len", "sharegpt"]),
        (&["--random-range-ratio", "1"], &["--random-range-ratio"]),
        (&["--dataset-name", "custom"], &["--dataset-path"]),
        (&["--dataset-path", "x"], &["--dataset-name"]),
        (&["--dataset-name", "custom", "--dataset-path", talks.to_str().unwrap()], &["talks.json", "line 1", "prompt"]),
        (&["--dataset-name", "sharegpt", "--dataset-path", lines.to_str().unwrap()], &["p.jsonl", "conversations"]),
    ] {
        let (code, _, err) = bench(args);
        assert!(code != 0 && words.iter().all(|w| err.contains(w)), "{args:?}: {err}");
    }
    // tokens that have no text, as those of random weights, are counted where the server names them
    let silent = r#"{"logit_bias": {"0": 100}"#;
    let (code, _, err) = bench(&["--extra-body", &format!("{silent}}}")]);
    assert!(code == 1 && err.contains("no text came") && err.contains("return_token_ids"), "{err}");
    let (code, out, err) = bench(&["--extra-body", &format!("{silent}, \"return_token_ids\": true}}")]);
    assert!(code == 0 && out.contains("Total generated tokens:                  30"), "{out}{err}");
    // a server that refuses is no success
    let (code, _, err) = bench(&["--extra-body", "{\"temperature\": 9}"]);
    assert!(code == 1 && err.contains("temperature") && err.contains("no request succeeded"), "{err}");
    let wrong = error(&["bench", "serve", "http://127.0.0.1:9", "--num-prompts", "1"]);
    assert!(wrong.contains("127.0.0.1:9"), "{wrong}");
}
