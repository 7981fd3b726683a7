//! Requests, one a connection, as clients without keep-alive make them.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::procs::{PATIENCE_MS, eventually, pause};

/// Between two requests of a client.
const SPACING_MS: u64 = 8;

/// The body of a page; an error if there is no whole answer, or another status than 200.
pub(crate) fn get(port: u16, path: &str) -> io::Result<String> {
    let patience = Some(Duration::from_millis(PATIENCE_MS));
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    // In one piece: a server of a test may read once only.
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, format!("{answer:?}")))?;
    if head.starts_with("HTTP/1.1 200") {
        Ok(body.to_owned())
    } else {
        Err(io::Error::other(answer))
    }
}

/// A request whose answer is read later.
#[derive(Debug)]
pub(crate) struct Request(TcpStream);

impl Request {
    /// Asks.
    pub(crate) fn send(port: u16, path: &str) -> Self {
        let patience = Some(Duration::from_millis(PATIENCE_MS));
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        stream.set_read_timeout(patience).unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: it\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        Self(stream)
    }

    /// What came until the connection was closed, where it begins as an answer does. Some servers
    /// speak HTTP/1.0.
    pub(crate) fn answer(mut self) -> Result<String, String> {
        let mut bytes = Vec::new();
        let read = self.0.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let first = text.lines().next().unwrap_or_default();
        match read {
            Ok(_) if first.starts_with("HTTP/1.") && first.contains(" 200 ") => Ok(text),
            outcome => Err(format!("{outcome:?}: {text:?}")),
        }
    }
}

/// Clients that ask all the time.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    over: AtomicBool,
    served: AtomicU64,
    failed: Mutex<Vec<String>>,
}

impl Load {
    /// So many clients on a port.
    pub(crate) fn start(port: u16, path: &'static str, clients: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let clients = (0..clients).map(|_| client(port, path, Arc::clone(&shared))).collect();
        Self { shared, clients }
    }

    /// Requests that were answered.
    pub(crate) fn served(&self) -> u64 {
        self.shared.served.load(Ordering::SeqCst)
    }

    /// Waits until so many more have been answered.
    pub(crate) fn more(&self, count: u64) {
        let until = self.served() + count;
        eventually("requests are answered", || (self.served() >= until).then_some(()));
    }

    /// Ends the clients. Returns how many requests were answered, and how the others failed.
    pub(crate) fn stop(mut self) -> (u64, Vec<String>) {
        self.shared.over.store(true, Ordering::SeqCst);
        for client in self.clients.drain(..) {
            client.join().unwrap();
        }
        let failed = self.shared.failed.lock().unwrap().clone();
        (self.served(), failed)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
    }
}

#[expect(clippy::disallowed_methods, reason = "clients are no part of pmr, and ask side by side")]
fn client(port: u16, path: &'static str, shared: Arc<Shared>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        while !shared.over.load(Ordering::SeqCst) {
            match get(port, path) {
                Ok(_) => drop(shared.served.fetch_add(1, Ordering::SeqCst)),
                Err(error) => shared.failed.lock().unwrap().push(error.to_string()),
            }
            pause(SPACING_MS);
        }
    })
}
