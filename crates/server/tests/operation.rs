//! Keys, limits, hostile clients, shutdown, and numbers that must add up.

mod common;

use billfish_engine::EngineOptions;
use billfish_server::Config;
use common::{PROMPT, Reply, Running, Setup, chat, chunk, completion};
use serde_json::{Value, json};
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";
const JSON: (&str, &str) = ("content-type", "application/json");

fn with(change: impl FnOnce(&mut Config)) -> Running {
    let mut setup = Setup::default();
    change(&mut setup.config);
    setup.start()
}

#[test]
fn nothing_but_liveness_answers_without_a_key() {
    let s = with(|c| c.api_keys = vec!["first-key".into(), "second-key".into()]);
    let paths = [
        "/",
        "/version",
        "/metrics",
        "/openapi.json",
        "/v1/models",
        "/v1/models/",
        "/v1/models/tales",
        "/v1/inspect",
        "/tokenize",
        "/detokenize",
        CHAT,
        "/v1/chat/completions/",
        "/v1/completions",
        "/v1/responses",
        "/nothing",
        "//v1/models",
        "/v1/../v1/models",
        "/health/",
        "/HEALTH",
        "/live/x",
        "/%6cive",
    ];
    for path in paths {
        for method in ["GET", "POST", "OPTIONS", "DELETE"] {
            for headers in
                [&[][..], &[("authorization", "Bearer wrong")], &[("authorization", "Basic first-key")], &[("x-api-key", "first-key")]]
            {
                let reply = s.request(method, path, headers, &[]);
                assert_eq!((reply.status, reply.header("www-authenticate")), (401, Some("Bearer")), "{method} {path} {headers:?}");
                assert_eq!(reply.json()["error"]["code"], "invalid_api_key");
            }
        }
    }
    for path in ["/health", "/live", "/ready"] {
        assert_eq!(s.get(path).status, 200);
    }
    // a browser gets the page to ask for the key, and still a 401
    let page = s.request("GET", "/", &[("accept", "text/html,*/*")], &[]);
    assert!(page.status == 401 && page.text().contains("<html") && page.header("content-security-policy").is_some());
    for key in ["first-key", "second-key"] {
        let headers = [("authorization", &*format!("Bearer {key}")), JSON];
        assert_eq!(s.request("GET", "/v1/models", &headers, &[]).status, 200);
        assert_eq!(s.request("POST", CHAT, &headers, chat(json!({"max_tokens": 1})).to_string().as_bytes()).status, 200);
    }
}

#[test]
fn origins_are_allowed_by_name() {
    let preflight =
        |s: &Running, origin: &str| s.request("OPTIONS", CHAT, &[("origin", origin), ("access-control-request-method", "POST")], &[]);
    let s = with(|c| {
        c.allowed_origins = vec!["https://good.example".into()];
        c.api_keys = vec!["k".into()];
    });
    let good = preflight(&s, "https://good.example");
    assert_eq!((good.status, good.header("access-control-allow-origin")), (204, Some("https://good.example")));
    assert!(good.header("access-control-allow-headers").unwrap().contains("authorization"));
    for bad in ["https://evil.example", "null", "https://good.example.evil"] {
        let reply = preflight(&s, bad);
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), (403, None), "{bad}");
    }
    let reply = s.request("GET", "/v1/models", &[("origin", "https://good.example"), ("authorization", "Bearer k")], &[]);
    assert_eq!((reply.header("access-control-allow-origin"), reply.header("vary")), (Some("https://good.example"), Some("origin")));
    let any = with(|c| c.allowed_origins = vec!["*".into()]);
    assert_eq!(preflight(&any, "https://x.example").header("access-control-allow-origin"), Some("*"));
    let none = Setup::default().start();
    let reply = none.request("GET", "/v1/models", &[("origin", "https://x.example")], &[]);
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, None));
}

#[test]
fn hostile_requests_cost_little() {
    let s = with(|c| {
        c.max_body = 2 << 20;
        c.head_timeout = Duration::from_secs(1);
        c.body_timeout = Duration::from_secs(1);
    });
    let post = |body: &[u8]| s.request("POST", CHAT, &[JSON], body);
    let long = json!({"messages": [{"role": "user", "content": "a".repeat(3 << 20)}]}).to_string();
    assert_eq!((post(long.as_bytes()).status, post(long.as_bytes()).json()["error"]["code"].clone()), (413, json!("body_too_large")));
    // the same without saying so first
    let mut chunked =
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..40 {
        chunked.extend(format!("{:x}\r\n{}\r\n", 1 << 16, " ".repeat(1 << 16)).into_bytes());
    }
    assert_eq!(Reply::read(s.send(&chunked)).map(|r| r.status), Some(413));
    // a megabyte of stops, as one and as many
    let stops: Vec<String> = (0..100_000).map(|i| format!("stop {i:05}")).collect();
    for stop in [json!(stops), json!("s".repeat(1 << 20)), json!(vec!["s".repeat(1 << 14); 64])] {
        let reply = post(chat(json!({"stop": stop})).to_string().as_bytes());
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("stop")));
    }
    for depth in [200, 100_000] {
        let deep = format!("{{\"messages\": {}1{}}}", "{\"a\":".repeat(depth), "}".repeat(depth));
        assert_eq!(post(deep.as_bytes()).status, 400);
    }
    assert_eq!(post(b"{\"messages\": \"\xf0\x28\x8c\x28\"}").status, 400);
    assert_eq!(
        post(json!({"messages": [], "chat_template": "{% for i in range(9999999) %}{% endfor %}"}).to_string().as_bytes()).status,
        400
    );
    // more header fields than anyone needs, and longer ones
    let mut many = "GET /health HTTP/1.1\r\n".to_owned();
    (0..10_000).for_each(|i| many += &format!("x-{i}: 1\r\n"));
    let status = |bytes: &[u8]| Reply::read(s.send(bytes)).map(|r| r.status);
    assert_eq!(status((many + "\r\n").as_bytes()), Some(431));
    let long = format!("GET /health HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    assert_eq!(status(long.as_bytes()), Some(431));
    assert_eq!(status(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), Some(400));
    assert_eq!(status(b"GET /health HTTP/1.1\r\nbad header\r\n\r\n"), Some(400));
    // those who dawdle are not waited for
    let head = s.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\n");
    let body =
        s.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"a\"");
    assert_eq!(Reply::read(body).map(|r| r.status), Some(408));
    let mut rest = vec![];
    // closed, whether or not anything was said
    let _ = BufReader::new(head).read_to_end(&mut rest);
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&rest));
    // and the service goes on
    assert_eq!(s.post(CHAT, &chat(json!({"max_tokens": 2}))).status, 200);
}

#[test]
fn the_queue_has_an_end() {
    let mut setup = Setup::default();
    setup.engine = EngineOptions { max_num_seqs: 1, max_waiting: 60, ..setup.engine };
    let s = setup.start();
    // one runs, 59 wait, for a while
    let first = streaming(&s, json!({"n": 60}));
    let reply = s.post("/v1/completions", &completion(json!({"n": 10})));
    assert_eq!((reply.status, reply.header("retry-after"), &reply.json()["error"]["code"]), (429, Some("1"), &json!("queue_full")));
    // whoever leaves makes room at once
    drop(first);
    for gauge in ["running", "waiting"] {
        s.wait(&format!("vllm:num_requests_{gauge}"), 0.0);
    }
    assert_eq!(s.post("/v1/completions", &completion(json!({"max_tokens": 2}))).status, 200);
    let text = s.get("/metrics").text();
    let aborted = |l: &&str| l.starts_with("billfish_request_success_total") && l.contains("\"abort\"");
    let count: u32 = text.lines().find(aborted).unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(count > 40, "{text}");
}

/// Opens a stream and reads until its first token.
fn streaming(s: &Running, fields: Value) -> BufReader<TcpStream> {
    let mut body = completion(json!({"max_tokens": 1000, "ignore_eos": true, "stream": true}));
    fields.as_object().unwrap().iter().for_each(|(k, v)| body[k] = v.clone());
    let text = body.to_string();
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", text.len());
    let mut reader = BufReader::new(s.send((head + &text).as_bytes()));
    assert_eq!(Reply::head(&mut reader).unwrap().status, 200);
    assert!(chunk(&mut reader).unwrap().starts_with(b"data: {"));
    reader
}

/// The rest of a stream, by events.
fn rest(mut reader: BufReader<TcpStream>) -> Vec<String> {
    let mut text = vec![];
    while let Some(part) = chunk(&mut reader) {
        text.extend(part);
    }
    String::from_utf8(text).unwrap().split("\n\n").filter_map(|e| e.strip_prefix("data: ")).map(str::to_owned).collect()
}

#[test]
fn whoever_leaves_is_not_worked_for() {
    let s = Setup::default().start();
    for n in [1, 3] {
        let reader = streaming(&s, json!({"n": n}));
        s.wait("billfish_num_requests_running", f64::from(n));
        drop(reader);
        s.wait("billfish_num_requests_running", 0.0);
    }
    // also without a stream
    let text = completion(json!({"max_tokens": 1000, "ignore_eos": true})).to_string();
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", text.len());
    let socket = s.send((head + &text).as_bytes());
    s.wait("billfish_num_requests_running", 1.0);
    drop(socket);
    s.wait("billfish_num_requests_running", 0.0);
    s.wait("billfish_kv_cache_usage_perc", 0.0);
    let lines = s.log.lock().unwrap().clone();
    assert_eq!(lines.iter().filter(|l| l.path == "/v1/completions" && !l.complete).count(), 3);
}

#[test]
fn counters_are_the_sums_of_usage() {
    let s = Setup::default().start();
    let bodies: Vec<Value> = (0..24)
        .map(|i| completion(json!({"prompt": format!("{PROMPT} {i}"), "n": 1 + i % 3, "max_tokens": 5 + i, "seed": i, "stop": [" the"], "stream": i % 2 == 0, "stream_options": if i % 2 == 0 { json!({"include_usage": true}) } else { Value::Null }})))
        .collect();
    let (mut prompt, mut generated, mut choices) = (0, 0, 0);
    std::thread::scope(|scope| {
        let all: Vec<_> = bodies.iter().map(|b| scope.spawn(|| s.post("/v1/completions", b))).collect();
        for (handle, body) in all.into_iter().zip(&bodies) {
            let reply = handle.join().unwrap();
            assert_eq!(reply.status, 200);
            let usage =
                if body["stream"] == true { reply.events().last().unwrap()["usage"].clone() } else { reply.json()["usage"].clone() };
            prompt += usage["prompt_tokens"].as_u64().unwrap();
            generated += usage["completion_tokens"].as_u64().unwrap();
            choices += body["n"].as_u64().unwrap();
        }
    });
    for prefix in ["billfish_", "vllm:"] {
        assert_eq!(s.metric(&format!("{prefix}prompt_tokens_total")), prompt as f64);
        assert_eq!(s.metric(&format!("{prefix}generation_tokens_total")), generated as f64);
    }
    let text = s.get("/metrics").text();
    let ends: f64 = text
        .lines()
        .filter(|l| l.starts_with("vllm:request_success_total{"))
        .map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert_eq!(ends, choices as f64);
    assert_eq!(s.metric("vllm:e2e_request_latency_seconds_count"), 24.0);
    // gauges are those of the end of a step, which may come after its last event
    for gauge in ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"] {
        s.wait(&format!("vllm:{gauge}"), 0.0);
    }
    // every name has a type, and no label comes from a client
    s.get("/made/up/by/a/client");
    let text = s.get("/metrics").text();
    assert!(!text.contains("made/up"));
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let name = line.split('{').next().unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name);
        assert!(text.contains(&format!("# TYPE {family} ")) || text.contains(&format!("# TYPE {name} ")), "{line}");
    }
}

#[test]
fn draining_lets_streams_end_and_refuses_new_ones() {
    let s = Setup::default().start();
    let reader = streaming(&s, json!({"n": 8}));
    s.control.drain();
    for path in ["/health", "/ready", "/v1/models"] {
        let reply = s.get(path);
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")), "{path}");
    }
    assert_eq!(s.get("/live").status, 200);
    assert_eq!(s.post(CHAT, &chat(json!({}))).status, 503);
    let events = rest(reader);
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let last: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    s.join().unwrap();
}

#[test]
fn after_the_timeout_streams_end_with_an_error() {
    let s = with(|c| c.shutdown_timeout = Duration::from_millis(100));
    let readers = [streaming(&s, json!({})), streaming(&s, json!({"n": 4}))];
    let begin = Instant::now();
    s.control.drain();
    for reader in readers {
        let events = rest(reader);
        let error: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
        assert_eq!((&error["error"]["code"], events.last().unwrap().as_str()), (&json!("unavailable"), "[DONE]"));
    }
    s.join().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_second_signal_ends_at_once() {
    let s = Setup::default().start();
    let reader = streaming(&s, json!({}));
    s.control.drain();
    s.control.stop();
    let events = rest(reader);
    assert!(events[events.len() - 2].contains("unavailable"), "{events:?}");
    s.join().unwrap();
}

#[test]
fn requests_have_a_deadline() {
    let s = with(|c| c.request_timeout = Some(Duration::from_millis(1)));
    let (status, error) = s.refused("/v1/completions", &completion(json!({"max_tokens": 1000, "ignore_eos": true})));
    assert_eq!((status, &error["code"]), (504, &json!("timeout")));
    let events = s.stream("/v1/completions", &completion(json!({"max_tokens": 1000, "ignore_eos": true})));
    assert_eq!(events.last().unwrap()["error"]["code"], "timeout");
    s.wait("billfish_num_requests_running", 0.0);
}

#[test]
fn silent_streams_are_kept_alive() {
    let mut setup = Setup::default();
    setup.config.keep_alive = Duration::from_millis(5);
    setup.engine = EngineOptions { max_num_seqs: 1, ..setup.engine };
    let s = setup.start();
    let _first = streaming(&s, json!({}));
    // this one waits for its turn
    let text = chat(json!({"stream": true})).to_string();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", text.len());
    let mut reader = BufReader::new(s.send((head + &text).as_bytes()));
    assert_eq!(Reply::head(&mut reader).unwrap().status, 200);
    let chunks: Vec<Vec<u8>> = (0..3).map_while(|_| chunk(&mut reader)).collect();
    assert!(chunks[0].starts_with(b"data: "), "the role comes first");
    assert!(chunks[1..].iter().all(|c| c.starts_with(b": ")), "{chunks:?}");
}

#[test]
fn a_client_that_does_not_read_is_left() {
    let s = with(|c| c.write_timeout = Duration::from_millis(300));
    let text = completion(json!({"n": 16, "max_tokens": 1000, "ignore_eos": true, "stream": true, "logprobs": 20})).to_string();
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", text.len());
    let socket = s.send((head + &text).as_bytes());
    s.wait("billfish_num_requests_running", 16.0);
    s.wait("billfish_num_requests_running", 0.0);
    let text = s.get("/metrics").text();
    assert!(text.lines().any(|l| l.starts_with("billfish_request_success_total") && l.contains("\"abort\"} 16")), "{text}");
    drop(socket);
}

#[test]
fn connections_are_kept_and_requests_follow_each_other() {
    let s = Setup::default().start();
    let request = b"GET /live HTTP/1.1\r\nhost: t\r\n\r\n";
    let mut reader = BufReader::new(s.send(&[&request[..], request].concat()));
    for _ in 0..2 {
        let reply = Reply::head(&mut reader).unwrap();
        assert_eq!(reply.status, 200);
        let mut body = vec![0; reply.header("content-length").unwrap().parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
    }
    reader.get_mut().write_all(request).unwrap();
    assert_eq!(Reply::head(&mut reader).unwrap().status, 200);
}

#[test]
fn the_page_and_what_is_known_of_the_model() {
    let s = Setup::default().start();
    let page = s.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    let v = s.get("/v1/inspect").json();
    assert_eq!((&v["object"], &v["inspect"]["a"], &v["doctor"]), (&json!("inspect"), &json!(1), &Value::Null));
    assert_eq!(v["defaults"]["max_model_len"], 1024);
}
