//! The least HTTP/1.1 server that can also lie.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{Part, content::Blob, fault::Misdeed};

/// A request as a server saw it, with the status it got.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Which server.
    pub part: Part,
    /// `GET`, `HEAD`, `POST`.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// The query, not decoded; may be empty.
    pub query: String,
    /// Header names in lower case, with their values.
    pub headers: Vec<(String, String)>,
    /// The request's body.
    pub body: String,
    /// Status of the reply; 0 if there was none.
    pub status: u16,
}

impl Seen {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Whether it carried an `Authorization` header.
    pub fn is_authorised(&self) -> bool {
        self.header("authorization").is_some()
    }
}

/// A request on its way to a handler.
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn seen(&self, part: Part, status: u16) -> Seen {
        Seen {
            part,
            method: self.method.clone(),
            path: self.path.clone(),
            query: self.query.clone(),
            headers: self.headers.clone(),
            body: self.body.clone(),
            status,
        }
    }

    /// Decoded pairs of the query, or of a form.
    pub(crate) fn pairs(&self) -> Vec<(String, String)> {
        let text = if self.method == "POST" { &self.body } else { &self.query };
        text.split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (percent_decode(key), percent_decode(value)))
            .collect()
    }

    /// First byte of `Range: bytes=N-`.
    pub(crate) fn range_start(&self) -> Option<u64> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// A reply, honest unless a misdeed is added when it is sent.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Body,
}

pub(crate) enum Body {
    Text(String),
    Bytes(Arc<[u8]>),
    /// A blob from one byte on.
    Blob(Blob, u64),
}

impl Reply {
    pub(crate) fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, headers: Vec::new(), body: Body::Text(body.into()) }
    }

    pub(crate) fn json(status: u16, body: impl Into<String>) -> Self {
        Self::text(status, body).with("Content-Type", "application/json")
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn with_all(mut self, headers: impl IntoIterator<Item = (String, String)>) -> Self {
        self.headers.extend(headers);
        self
    }

    /// A registry's error document.
    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        Self::json(status, format!(r#"{{"errors":[{{"code":"{code}","message":"{message}","detail":null}}]}}"#))
    }
}

/// The writing side of a connection.
pub(crate) struct Connection {
    stream: TcpStream,
    stop: Arc<AtomicBool>,
    is_head: bool,
}

/// Whether the connection may carry another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    KeepAlive,
    Close,
}

impl Connection {
    /// Sends `reply`, spoiled by `misdeed`.
    pub(crate) fn send(&mut self, reply: &Reply, misdeed: Option<&Misdeed>) -> io::Result<After> {
        if let Some(Misdeed::Held(gate)) = misdeed {
            while !gate.is_open() && !self.stop.load(Ordering::Relaxed) {
                self.pause(Duration::from_millis(5));
            }
        }
        let len = match &reply.body {
            Body::Text(text) => text.len() as u64,
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::Blob(blob, from) => blob.len() - from,
        };
        let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let told = match misdeed {
            Some(Misdeed::LengthOffBy(delta)) => len.saturating_add_signed(*delta),
            _ => len,
        };
        match misdeed {
            Some(Misdeed::Endless) => head += "Transfer-Encoding: chunked\r\n\r\n",
            _ => head += &format!("Content-Length: {told}\r\n\r\n"),
        }
        self.stream.write_all(head.as_bytes())?;
        if self.is_head {
            return Ok(After::KeepAlive);
        }
        let mut body: Box<dyn Read + '_> = match &reply.body {
            Body::Text(text) => Box::new(text.as_bytes()),
            Body::Bytes(bytes) => Box::new(&bytes[..]),
            Body::Blob(blob, from) => blob.reader(*from),
        };
        match misdeed {
            Some(Misdeed::BreakAfter(count) | Misdeed::TokensDie(count)) => {
                self.copy(&mut body.take(*count))?;
                Ok(After::Close)
            }
            Some(Misdeed::Silence(count)) => {
                self.copy(&mut body.take(*count))?;
                self.pause(Duration::from_secs(600));
                Ok(After::Close)
            }
            Some(Misdeed::LengthOffBy(delta)) => {
                self.copy(&mut body.take(told))?;
                Ok(if *delta > 0 { After::Close } else { After::KeepAlive })
            }
            Some(Misdeed::Slow { piece, pause }) => loop {
                if self.copy(&mut body.as_mut().take(*piece as u64))? == 0 {
                    return Ok(After::KeepAlive);
                }
                self.pause(*pause);
            },
            Some(Misdeed::WrongByte) => {
                let mut first = [0];
                if body.read(&mut first)? == 1 {
                    self.stream.write_all(&[first[0] ^ 0x55])?;
                }
                self.copy(&mut body)?;
                Ok(After::KeepAlive)
            }
            Some(Misdeed::Endless) => self.send_endless(&mut body),
            _ => {
                self.copy(&mut body)?;
                Ok(After::KeepAlive)
            }
        }
    }

    fn copy(&mut self, body: &mut dyn Read) -> io::Result<u64> {
        let mut buffer = vec![0; 256 << 10];
        let mut total = 0;
        loop {
            let count = body.read(&mut buffer)?;
            if count == 0 || self.stop.load(Ordering::Relaxed) {
                return Ok(total);
            }
            self.stream.write_all(&buffer[..count])?;
            total += count as u64;
        }
    }

    fn send_endless(&mut self, body: &mut dyn Read) -> io::Result<After> {
        let mut buffer = vec![0; 64 << 10];
        while !self.stop.load(Ordering::Relaxed) {
            let mut count = body.read(&mut buffer)?;
            if count == 0 {
                buffer.fill(0);
                count = buffer.len();
            }
            write!(self.stream, "{count:x}\r\n")?;
            self.stream.write_all(&buffer[..count])?;
            self.stream.write_all(b"\r\n")?;
        }
        Ok(After::Close)
    }

    /// Sleeps, but not past the server's end.
    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.stop.load(Ordering::Relaxed) {
            thread::sleep(until.saturating_duration_since(Instant::now()).min(Duration::from_millis(20)));
        }
    }
}

/// A listening server; it stops listening with this value.
pub(crate) struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(
        handler: impl Fn(&Request, &mut Connection) -> io::Result<After> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind a loopback port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let stop = Arc::new(AtomicBool::new(false));
        let handler = Arc::new(handler);
        let flag = Arc::clone(&stop);
        let accepting = thread::spawn(move || {
            for stream in listener.incoming() {
                if flag.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(stream), handler, stop) = (stream, Arc::clone(&handler), Arc::clone(&flag)) else { continue };
                // A broken connection is what the other side wanted or caused.
                thread::spawn(move || drop(serve(stream, stop, &*handler)));
            }
        });
        Self { address, stop, accepting: Some(accepting) }
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for connections; if that fails, there is
        // no such thread any more.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
    }
}

fn serve(
    stream: TcpStream,
    stop: Arc<AtomicBool>,
    handler: &dyn Fn(&Request, &mut Connection) -> io::Result<After>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut connection = Connection { stream, stop, is_head: false };
    // What plain servers answer to a TLS greeting.
    if reader.fill_buf()?.first() == Some(&0x16) {
        return connection.stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    }
    while let Some(request) = read_request(&mut reader)? {
        connection.is_head = request.method == "HEAD";
        if handler(&request, &mut connection)? == After::Close || connection.stop.load(Ordering::Relaxed) {
            return connection.stream.shutdown(std::net::Shutdown::Both);
        }
    }
    Ok(())
}

fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_ascii_whitespace();
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "no request line");
    let (method, target) = (words.next().ok_or_else(bad)?.to_owned(), words.next().ok_or_else(bad)?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim_end().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let len = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
    let mut body = vec![0; len.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    // A proxy's client sends the whole URL.
    let target = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |slash| &rest[slash..]).to_owned(),
        None => target,
    };
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Ok(Some(Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    }))
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex: String = rest.by_ref().take(2).map(char::from).collect();
                bytes.extend(u8::from_str_radix(&hex, 16).ok());
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
