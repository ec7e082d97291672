//! A forward proxy on loopback, which can also cut connections.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
};

use super::lock;

/// A running proxy; it stops listening with this value.
///
/// Whatever name it is asked for, it connects to the one server it was made
/// for: so a registry on loopback can be had under any name.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: String,
    stop: AtomicBool,
    heads: Mutex<Vec<String>>,
    /// Connections that are still to be cut, and after how many bytes of
    /// replies.
    cuts: AtomicU32,
    cut_after: u64,
}

impl Proxy {
    /// Starts a proxy in front of `target` (`host:port`).
    pub fn start(target: &str) -> Self {
        Self::start_cutting(target, 0, 0)
    }

    /// The same, but the first `cuts` connections end after `cut_after` bytes
    /// of replies.
    ///
    /// # Panics
    /// If no loopback port can be had.
    pub fn start_cutting(target: &str, cuts: u32, cut_after: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind a loopback port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            target: target.to_owned(),
            stop: AtomicBool::new(false),
            heads: Mutex::default(),
            cuts: AtomicU32::new(cuts),
            cut_after,
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if accepting.stop.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                // A broken connection is for its two ends to complain about.
                thread::spawn(move || drop(shared.serve(stream)));
            }
        });
        Self { address, shared }
    }

    /// URL to be named as the proxy.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `127.0.0.1:PORT`; a plain client may take the proxy for the server.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Heads of the requests that connections began with.
    pub fn heads(&self) -> Vec<String> {
        lock(&self.shared.heads).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread; if nobody accepts, it is gone already.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        // A TLS greeting has no head to wait for.
        if reader.fill_buf()?.first() == Some(&0x16) {
            return stream.shutdown(Shutdown::Both);
        }
        let mut head = String::new();
        while reader.read_line(&mut head)? > 2 {}
        lock(&self.heads).push(head.clone());
        let mut client = stream;
        let mut server = TcpStream::connect(&self.target)?;
        if head.starts_with("CONNECT ") {
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        } else {
            server.write_all(head.as_bytes())?;
        }
        let (mut up, client_end, server_end) = (server.try_clone()?, client.try_clone()?, server.try_clone()?);
        let cut = self.cuts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        let upwards = thread::spawn(move || io::copy(&mut reader, &mut up));
        let limit = if cut { self.cut_after } else { u64::MAX };
        let copied = io::copy(&mut server.take(limit), &mut client);
        // Both ways end together.
        drop((client_end.shutdown(Shutdown::Both), server_end.shutdown(Shutdown::Both)));
        drop(upwards.join());
        copied.map(|_| ())
    }
}
