//! The least of an HTTP client: a request over a socket, and its answer whole or event by event.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `host:port`.
    address: String,
    /// What stands before every path, without a slash at its end.
    prefix: String,
    key: Option<String>,
}

fn other(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, what.into())
}

impl Target {
    /// A server by its URL, such as `http://127.0.0.1:8000`, and the key that it wants.
    ///
    /// # Errors
    /// What was expected, in words.
    pub fn new(url: &str, key: Option<String>) -> std::result::Result<Target, String> {
        let wrong = || format!("expected a URL such as http://127.0.0.1:8000 (plain HTTP), found `{url}`");
        let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() || host.contains(['@', ' ']) {
            return Err(wrong());
        }
        // an address of version 6 stands in brackets
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let address = if has_port { host.to_owned() } else { format!("{host}:80") };
        let path = path.trim_end_matches('/');
        let prefix = if path.is_empty() { String::new() } else { format!("/{path}") };
        Ok(Target { address, prefix, key })
    }

    /// Sends a request; a body makes it a POST of JSON.
    ///
    /// # Errors
    /// The server cannot be reached, or what it says is no HTTP.
    pub fn send(&self, path: &str, body: Option<&str>, patience: Duration) -> Result<Answer> {
        let address = self.address.to_socket_addrs()?.next().ok_or_else(|| other("the host has no address"))?;
        let mut socket = TcpStream::connect_timeout(&address, patience)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(patience))?;
        let method = if body.is_some() { "POST" } else { "GET" };
        let mut text = format!("{method} {}{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.prefix, self.address);
        text.extend(self.key.iter().map(|k| format!("Authorization: Bearer {k}\r\n")));
        if let Some(body) = body {
            text += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        } else {
            text += "\r\n";
        }
        socket.write_all(text.as_bytes())?;
        Answer::new(BufReader::new(socket))
    }
}

/// An answer, whose body is read as it comes.
pub struct Answer {
    /// The status.
    pub status: u16,
    reader: BufReader<TcpStream>,
    chunked: bool,
    /// Bytes left of the chunk, or of the body.
    left: Option<u64>,
}

impl Answer {
    fn new(mut reader: BufReader<TcpStream>) -> Result<Answer> {
        let line = line(&mut reader)?.ok_or_else(|| other("the server closed the connection"))?;
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| other("the answer is no HTTP"))?;
        let (mut chunked, mut left) = (false, None);
        while let Some(head) = self::line(&mut reader)?.filter(|l| !l.is_empty()) {
            let Some((name, value)) = head.split_once(':') else { continue };
            match name.to_ascii_lowercase().as_str() {
                "transfer-encoding" => chunked = value.trim().eq_ignore_ascii_case("chunked"),
                "content-length" => left = value.trim().parse().ok(),
                _ => {}
            }
        }
        Ok(Answer { status, reader, chunked, left: if chunked { Some(0) } else { left } })
    }

    /// The whole body.
    ///
    /// # Errors
    /// The connection broke, or the body is no text.
    pub fn text(mut self) -> Result<String> {
        let mut out = String::new();
        self.read_to_string(&mut out)?;
        Ok(out)
    }

    /// Gives the data of each server-sent event to `hear`, until it returns false or the stream ends.
    ///
    /// # Errors
    /// The connection broke.
    pub fn events(self, mut hear: impl FnMut(&str) -> bool) -> Result<()> {
        let mut reader = BufReader::new(self);
        while let Some(line) = line(&mut reader)? {
            if let Some(data) = line.strip_prefix("data:")
                && !hear(data.trim_start())
            {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Read for Answer {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        if self.chunked && self.left == Some(0) {
            let head = loop {
                match line(&mut self.reader)? {
                    None => return Err(ErrorKind::UnexpectedEof.into()),
                    // the end of the chunk before
                    Some(l) if l.is_empty() => {}
                    Some(l) => break l,
                }
            };
            let size = head.split(';').next().and_then(|s| u64::from_str_radix(s.trim(), 16).ok());
            match size.ok_or_else(|| other("a chunk has no size"))? {
                0 => (self.chunked, self.left) = (false, Some(0)),
                size => self.left = Some(size),
            }
        }
        let most = self.left.map_or(buf.len(), |l| buf.len().min(usize::try_from(l).unwrap_or(usize::MAX)));
        let n = if most == 0 { 0 } else { self.reader.read(&mut buf[..most])? };
        if let Some(left) = self.left.as_mut().filter(|_| most > 0) {
            if n == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            *left -= n as u64;
        }
        Ok(n)
    }
}

/// A line without its end; none at the end of the text.
fn line(reader: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(Some(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let address = |url| Target::new(url, None).map(|t| (t.address, t.prefix));
        assert_eq!(address("http://localhost:8000"), Ok(("localhost:8000".into(), String::new())));
        assert_eq!(address("http://h/a/b/"), Ok(("h:80".into(), "/a/b".into())));
        assert_eq!(address("http://[::1]:5"), Ok(("[::1]:5".into(), String::new())));
        for wrong in ["https://h", "h:1", "http://", "http://u@h"] {
            assert!(address(wrong).unwrap_err().contains(wrong));
        }
    }

    /// A server of fixed words: the client must read what came, however it was cut.
    #[test]
    fn bodies_whole_and_in_chunks() {
        let words = [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nhello",
        ];
        for text in words {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let target = Target::new(&format!("http://{}", listener.local_addr().unwrap()), Some("k".into())).unwrap();
            let server = std::thread::spawn(move || {
                let (mut socket, _) = listener.accept().unwrap();
                let mut heard = vec![0; 4096];
                let n = socket.read(&mut heard).unwrap();
                socket.write_all(text.as_bytes()).unwrap();
                String::from_utf8_lossy(&heard[..n]).into_owned()
            });
            let answer = target.send("/x", None, Duration::from_secs(20)).unwrap();
            assert_eq!((answer.status, answer.text().unwrap().as_str()), (200, "hello"));
            let heard = server.join().unwrap();
            assert!(heard.starts_with("GET /x HTTP/1.1\r\n") && heard.contains("Bearer k"), "{heard}");
        }
        // a stream that breaks off is an error, not an end
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target::new(&format!("http://{}", listener.local_addr().unwrap()), None).unwrap();
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut heard = [0; 4096];
            assert!(socket.read(&mut heard).unwrap() > 0);
            socket.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\ndata: a\n\n").unwrap();
        });
        let mut events = vec![];
        let end = target.send("/", Some("{}"), Duration::from_secs(20)).unwrap().events(|e| {
            events.push(e.to_owned());
            true
        });
        server.join().unwrap();
        assert!(end.is_err() && events == ["a"]);
    }
}
