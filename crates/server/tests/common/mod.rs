//! The built-in model behind a server of its own, and a client that knows nothing of the server's code: a socket.
#![allow(dead_code)] // every test binary uses its own part of this

use billfish_engine::{Engine, EngineOptions, SamplingParams};
use billfish_formats::Checkpoint;
use billfish_kernels::{Backend, Isa};
use billfish_models::{LoadOptions, Model};
use billfish_server::{Config, Control, LogLine, ServedModel, Server, ServerError, ToolDialect};
use billfish_text::{Tokenizer, TokenizerFiles};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

pub const MODEL: &str = "tales";

/// A prompt that the model knows how to go on with.
pub const PROMPT: &str = "Once upon a time there was a king who had";

fn folder() -> (Checkpoint, Vec<u8>, Vec<u8>, String) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../billfish/assets/tales-6m-w4-sym-g128");
    let c = Checkpoint::open(&dir).unwrap();
    let file = |name: &str| c.file(name).unwrap().unwrap();
    let (tokenizer, config) = (file("tokenizer.json"), file("tokenizer_config.json"));
    let template = String::from_utf8(file("chat_template.jinja")).unwrap();
    (c, tokenizer, config, template)
}

/// The tokenizer of the built-in model.
pub fn tokenizer() -> &'static Tokenizer {
    static ONE: OnceLock<Tokenizer> = OnceLock::new();
    ONE.get_or_init(|| {
        let (checkpoint, tokenizer_json, config, template) = folder();
        Tokenizer::from_parts(TokenizerFiles {
            name: "tales",
            tokenizer_json: &tokenizer_json,
            tokenizer_config: Some(&config),
            generation_config: checkpoint.generation_config(),
            config: Some(checkpoint.config()),
            chat_template: Some(&template),
        })
        .unwrap()
    })
}

/// Loaded once for all servers of a test binary.
fn model() -> Arc<Model> {
    static ONE: OnceLock<Arc<Model>> = OnceLock::new();
    Arc::clone(ONE.get_or_init(|| {
        let backend = Arc::new(Backend::new(Isa::choose(None).unwrap(), 1).unwrap());
        Arc::new(Model::load(&folder().0, backend, LoadOptions::default(), &mut |_| ()).unwrap())
    }))
}

/// What a test's server is like.
pub struct Setup {
    pub config: Config,
    pub engine: EngineOptions,
    pub template: Option<&'static str>,
    pub dialect: Option<ToolDialect>,
}

impl Default for Setup {
    fn default() -> Self {
        let config = Config { port: 0, ..Config::default() };
        let engine = EngineOptions { kv_cache_memory: 256 << 20, ..EngineOptions::default() };
        Setup { config, engine, template: None, dialect: None }
    }
}

/// A running server. Dropping it ends it.
pub struct Running {
    pub address: SocketAddr,
    pub control: Control,
    pub log: Arc<Mutex<Vec<LogLine>>>,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

impl Setup {
    pub fn start(self) -> Running {
        let model = model();
        let tokenizer = tokenizer().clone();
        let engine = Engine::new(Arc::clone(&model), Arc::new(tokenizer.clone()), self.engine).unwrap();
        let served = ServedModel {
            names: vec![MODEL.into(), "alias".into()],
            root: "tales-6m".into(),
            tokenizer,
            chat_template: self.template.map(|t| ("test.jinja".into(), t.into())),
            sampling: SamplingParams::default(),
            max_model_len: engine.max_model_len(),
            vocab_size: model.config().vocab_size,
            fingerprint: "fp_test".into(),
            tool_dialect: self.dialect,
            inspection: Some(Box::new(|| Ok(json!({"inspect": {"a": 1}, "doctor": null})))),
        };
        let log = Arc::new(Mutex::new(vec![]));
        let lines = Arc::clone(&log);
        let write = Box::new(move |line: &LogLine| lines.lock().unwrap().push(line.clone()));
        let server = Server::bind(self.config, served, engine, write).unwrap();
        let (address, control) = (server.address(), server.control());
        let thread = Some(std::thread::spawn(move || server.run(false)));
        Running { address, control, log, thread }
    }
}

/// The server that most tests of a binary share.
pub fn shared() -> &'static Running {
    static ONE: OnceLock<Running> = OnceLock::new();
    ONE.get_or_init(|| Setup::default().start())
}

impl Running {
    /// Waits until it has ended by itself.
    pub fn join(mut self) -> Result<(), ServerError> {
        self.thread.take().unwrap().join().unwrap()
    }

    /// Sends bytes and gives the connection.
    pub fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        // a server that has heard enough closes before it has read all
        let _ = socket.write_all(bytes);
        socket
    }

    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
        headers.iter().for_each(|(n, v)| head += &format!("{n}: {v}\r\n"));
        if !body.is_empty() || method == "POST" {
            head += &format!("content-length: {}\r\n", body.len());
        }
        head += "\r\n";
        let socket = self.send(&[head.as_bytes(), body].concat());
        if method == "HEAD" { Reply::head(&mut BufReader::new(socket)).unwrap() } else { Reply::read(socket).unwrap() }
    }

    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[], &[])
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.request("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// A request that must succeed.
    pub fn ok(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.text());
        reply.json()
    }

    /// A request that must fail: status and error object.
    pub fn refused(&self, path: &str, body: &Value) -> (u16, Value) {
        let reply = self.post(path, body);
        let error = reply.json()["error"].clone();
        assert!(reply.status >= 400, "{body}: {}", reply.text());
        for key in ["message", "type", "param", "code"] {
            assert!(error.get(key).is_some(), "{key} is missing: {error}");
        }
        (reply.status, error)
    }

    /// The events of a stream that must succeed, without the closing mark.
    pub fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let reply = self.post(path, &body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.text());
        assert!(reply.header("content-type").unwrap().starts_with("text/event-stream"));
        reply.events()
    }

    /// The number of a metric without labels of its own.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find(|l| l.starts_with(&format!("{name}{{"))).unwrap_or_else(|| panic!("{name}: {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until a metric has a value.
    pub fn wait(&self, name: &str, value: f64) {
        for _ in 0..600 {
            if self.metric(name) == value {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{name} is {}, not {value}", self.metric(name));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.control.drain();
        self.control.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap().unwrap();
            }
        }
    }
}

/// An answer as it came over the wire.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// Reads a whole answer; none if the connection ended without one.
    pub fn read(socket: TcpStream) -> Option<Reply> {
        let mut reader = BufReader::new(socket);
        let mut reply = Reply::head(&mut reader)?;
        let is = |name: &str, value: &str| reply.header(name).is_some_and(|v| v.eq_ignore_ascii_case(value));
        if is("transfer-encoding", "chunked") {
            while let Some(chunk) = chunk(&mut reader) {
                reply.body.extend(chunk);
            }
        } else if let Some(n) = reply.header("content-length") {
            let mut body = vec![0; n.parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            reply.body = body;
        }
        Some(reply)
    }

    /// Reads the head alone.
    pub fn head(reader: &mut impl BufRead) -> Option<Reply> {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let status = line.split(' ').nth(1)?.parse().unwrap();
        let mut headers = vec![];
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Some(Reply { status, headers, body: vec![] })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("answers are UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {} {}", self.status, self.text()))
    }

    /// The data of server-sent events, which must end with the mark.
    pub fn events(&self) -> Vec<Value> {
        let text = self.text();
        let mut data: Vec<&str> = text.split("\n\n").filter_map(|e| e.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{text}");
        data.iter().map(|d| serde_json::from_str(d).unwrap()).collect()
    }
}

/// A chunk of an answer; none at its end or if the connection is gone.
pub fn chunk(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let size = usize::from_str_radix(line.trim(), 16).ok()?;
    let mut data = vec![0; size + 2];
    reader.read_exact(&mut data).ok()?;
    data.truncate(size);
    (size > 0).then_some(data)
}

/// A chat with one message.
pub fn chat(fields: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Tell me of the fox."}], "max_tokens": 24, "seed": 7});
    merge(&mut body, fields);
    body
}

/// A text to be continued.
pub fn completion(fields: Value) -> Value {
    let mut body = json!({"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "seed": 7});
    merge(&mut body, fields);
    body
}

fn merge(body: &mut Value, fields: Value) {
    let Value::Object(fields) = fields else { panic!("expected an object") };
    for (name, value) in fields {
        body[name] = value;
    }
}
