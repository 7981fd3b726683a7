//! Accepts connections and gives each a thread.
//!
//! ```text
//! main thread      accepts, until told to end; then waits for the requests in flight
//! signal thread    SIGTERM and SIGINT → tells it to end
//! up to 256        one per connection: read, answer, again
//! ```
//!
//! Everybody waits in poll(2) with the `ending` eventfd beside what he waits for. It is written
//! once and never read, so it wakes all of them.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::SigSet;

use super::pages::{self, Answer};
use super::request::{Bad, HEAD_BYTES_MAX, Request, parse};
use super::{complain, say};

/// Most connections at once; further ones wait in the socket's queue.
const CONNECTIONS_MAX: usize = 256;
/// A connection without a request for so long is closed.
const IDLE_TIMEOUT_MS: u16 = 15_000;
/// How long, and for how much, a refused client is listened to until it has read its answer.
const LINGER_TIMEOUT_MS: u16 = 1000;
const LINGER_BYTES_MAX: usize = 1 << 20;
/// How long a client that has connected may take to send its request when the server is to end.
const LAST_REQUEST_TIMEOUT_MS: u16 = 1000;
/// A client that takes its answer slower than this is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long requests in flight may take at the end: below the demo's `kill_timeout` of 3 s.
const FINISH_TIMEOUT: Duration = Duration::from_millis(2500);

/// The server: a listening socket, and what its threads share.
#[derive(Debug)]
pub(super) struct Server {
    listener: TcpListener,
    shared: Arc<Shared>,
}

/// What all threads share.
#[derive(Debug)]
pub(super) struct Shared {
    app: String,
    instance: String,
    started_at: Instant,
    requests: AtomicU64,
    leaked: Mutex<Vec<Vec<u8>>>,
    stubborn: AtomicBool,
    /// Held for ever by `/hang`; everybody else passes it before he goes on.
    gate: Mutex<()>,
    /// Written when the server is to end, after the flag; never read.
    ending: EventFd,
    is_ending: AtomicBool,
    /// Exit without a grace, with this status.
    exit: OnceLock<u8>,
    connections: Mutex<usize>,
    connection_closed: Condvar,
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// There is something to read, or to accept.
    Ready,
    /// The server is to end.
    Ending,
    /// Nothing happened in time.
    Idle,
}

impl Server {
    /// A server on `listener`. Its name is in `PMR_APP` and `PMR_INSTANCE`.
    pub(super) fn new(listener: TcpListener) -> io::Result<Self> {
        // Other instances wait on the same socket, and one of them may be faster.
        listener.set_nonblocking(true)?;
        let name = |key: &str, default: &str| std::env::var(key).unwrap_or(default.to_owned());
        let shared = Shared {
            app: name("PMR_APP", "demo"),
            instance: name("PMR_INSTANCE", "?"),
            started_at: now(),
            requests: AtomicU64::new(0),
            leaked: Mutex::new(Vec::new()),
            stubborn: AtomicBool::new(false),
            gate: Mutex::new(()),
            ending: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            is_ending: AtomicBool::new(false),
            exit: OnceLock::new(),
            connections: Mutex::new(0),
            connection_closed: Condvar::new(),
        };
        Ok(Self { listener, shared: Arc::new(shared) })
    }

    /// Ends the server gracefully when one of `signals` arrives, which every thread has blocked.
    pub(super) fn stop_on(&self, signals: SigSet) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        start("signals", move || {
            while let Ok(signal) = signals.wait() {
                shared.pass_gate();
                if shared.stubborn.load(Ordering::Relaxed) {
                    complain(&format!("{shared} ignores {signal}"));
                } else {
                    say(&format!("{shared} ends on {signal}"));
                    shared.end();
                }
            }
        })
    }

    /// Serves until it is told to end, and returns the exit status.
    pub(super) fn run(&self) -> io::Result<u8> {
        let address = self.listener.local_addr()?;
        say(&format!("{} serves on {address}", self.shared));
        while self.shared.wait(self.listener.as_fd(), PollTimeout::NONE)? != Woken::Ending {
            self.shared.pass_gate();
            let Some(place) = Connection::open(&self.shared) else { break };
            match self.listener.accept() {
                Ok((stream, _)) => self.serve(place, stream),
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.shared.finish())
    }

    fn serve(&self, place: Connection, stream: TcpStream) {
        let prepared = stream.set_write_timeout(Some(WRITE_TIMEOUT));
        let started = prepared.and_then(|()| start("connection", move || place.serve(stream)));
        if let Err(error) = started {
            complain(&format!("{}: a connection was lost: {error}", self.shared));
        }
    }
}

/// Whether accept(2) is worth another try: nobody there any more, or a client that gave up.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

/// Starts a thread. `thread::spawn` would panic where there is none to be had.
fn start(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

#[expect(clippy::disallowed_methods, reason = "the demo app is a program of its own")]
fn now() -> Instant {
    Instant::now()
}

/// The data behind a lock. No thread of this program leaves it half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// How long the server runs: `7 s`.
    pub(super) fn uptime(&self) -> String {
        format!("{} s", now().saturating_duration_since(self.started_at).as_secs())
    }

    /// How many requests there were so far.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Keeps so much memory for ever, and returns how much that makes in all.
    pub(super) fn leak(&self, mb: u64) -> Option<u64> {
        let bytes = usize::try_from(mb.checked_mul(1 << 20)?).ok()?;
        let mut memory = Vec::new();
        memory.try_reserve_exact(bytes).ok()?;
        // Pages count only once they are written to.
        memory.resize(bytes, 0xa5);
        let mut leaked = lock(&self.leaked);
        leaked.push(memory);
        let total: usize = leaked.iter().map(Vec::len).sum();
        u64::try_from(total >> 20).ok()
    }

    /// From now on SIGTERM does nothing.
    pub(super) fn make_stubborn(&self) {
        self.stubborn.store(true, Ordering::Relaxed);
    }

    /// Shuts the gate: this thread stays here, and every other one at the gate.
    pub(super) fn hang(&self) -> ! {
        let _shut = lock(&self.gate);
        loop {
            thread::park();
        }
    }

    fn pass_gate(&self) {
        drop(lock(&self.gate));
    }

    /// Tells everybody that it is over.
    fn end(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
        if let Err(error) = self.ending.write(1) {
            complain(&format!("{self}: cannot end: {error}"));
        }
        // Whoever looked at the flag before it was set has begun to wait once the lock is free.
        drop(lock(&self.connections));
        self.connection_closed.notify_all();
    }

    fn wait(&self, fd: BorrowedFd<'_>, timeout: PollTimeout) -> io::Result<Woken> {
        let events = PollFlags::POLLIN;
        let mut fds = [PollFd::new(self.ending.as_fd(), events), PollFd::new(fd, events)];
        loop {
            match poll(&mut fds, timeout) {
                Ok(0) => return Ok(Woken::Idle),
                Ok(_) => break,
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let [ending, _] = &fds;
        let is_ending = ending.any().unwrap_or_default();
        Ok(if is_ending { Woken::Ending } else { Woken::Ready })
    }

    /// Waits for the requests in flight, for a while, and returns the exit status.
    fn finish(&self) -> u8 {
        let connections = lock(&self.connections);
        let unfinished = |count: &mut usize| *count > 0 && self.exit.get().is_none();
        let waited =
            self.connection_closed.wait_timeout_while(connections, FINISH_TIMEOUT, unfinished);
        let (connections, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            complain(&format!("{self}: {connections} requests are cut off"));
        }
        self.exit.get().copied().unwrap_or_default()
    }

    /// Exits now, with whatever is in flight.
    fn exit(&self, status: u8) {
        // The first status counts.
        self.exit.get_or_init(|| status);
        self.end();
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} instance {} (pid {})", self.app, self.instance, std::process::id())
    }
}

/// One of the [`CONNECTIONS_MAX`] places; given back when dropped.
#[derive(Debug)]
struct Connection(Arc<Shared>);

impl Drop for Connection {
    fn drop(&mut self) {
        let mut count = lock(&self.0.connections);
        *count = count.saturating_sub(1);
        self.0.connection_closed.notify_all();
    }
}

impl Connection {
    /// Waits for a free place. `None` where the server is to end.
    fn open(shared: &Arc<Shared>) -> Option<Self> {
        let full = |count: &mut usize| {
            *count >= CONNECTIONS_MAX && !shared.is_ending.load(Ordering::Relaxed)
        };
        let waited = shared.connection_closed.wait_while(lock(&shared.connections), full);
        let mut count = waited.unwrap_or_else(PoisonError::into_inner);
        if shared.is_ending.load(Ordering::Relaxed) {
            return None;
        }
        *count = count.saturating_add(1);
        Some(Self(Arc::clone(shared)))
    }

    /// Answers requests until one of both has had enough. A client that goes away is no event.
    fn serve(self, mut stream: TcpStream) {
        let mut received = Vec::new();
        let mut is_first = true;
        loop {
            let next = self.next_request(&mut stream, &mut received, is_first);
            let Ok(Some(request)) = next else { return };
            is_first = false;
            let keep_alive = match request {
                Ok(request) => self.answer(&mut stream, &request),
                Err(Bad(why)) => self.refuse(&mut stream, why).map(|()| false),
            };
            if !matches!(keep_alive, Ok(true)) {
                return;
            }
        }
    }

    /// Says why, and listens on until the client has closed: a close with unread bytes would be a
    /// reset, which throws away what the client has not read yet.
    fn refuse(&self, stream: &mut TcpStream, why: String) -> io::Result<()> {
        send(stream, &Response { status: 400, text: why + "\n", keep_alive: false }, false)?;
        stream.shutdown(Shutdown::Write)?;
        let mut ignored: usize = 0;
        let mut piece = [0; HEAD_BYTES_MAX];
        while ignored < LINGER_BYTES_MAX
            && self.0.wait(stream.as_fd(), LINGER_TIMEOUT_MS.into())? == Woken::Ready
        {
            match stream.read(&mut piece)? {
                0 => break,
                length => ignored = ignored.saturating_add(length),
            }
        }
        Ok(())
    }

    /// The next request, of which a part may stand in `received` already. `None` at the end: a
    /// request that has been sent, or begun, or that its client has connected for, is still taken.
    fn next_request(
        &self,
        stream: &mut TcpStream,
        received: &mut Vec<u8>,
        is_first: bool,
    ) -> io::Result<Option<Result<Request, Bad>>> {
        loop {
            let is_awaited = is_first || !received.is_empty();
            match parse(received) {
                Ok(None) => {}
                Ok(Some((request, length))) => {
                    received.drain(..length);
                    return Ok(Some(Ok(request)));
                }
                Err(bad) => return Ok(Some(Err(bad))),
            }
            match self.0.wait(stream.as_fd(), IDLE_TIMEOUT_MS.into())? {
                Woken::Ready => {}
                Woken::Ending if is_readable(stream, is_awaited)? => {}
                Woken::Ending | Woken::Idle => return Ok(None),
            }
            let mut piece = [0; HEAD_BYTES_MAX];
            let length = stream.read(&mut piece)?;
            if length == 0 {
                return Ok(None);
            }
            received.extend_from_slice(piece.get(..length).unwrap_or_default());
        }
    }

    /// Answers one request; whether another may follow.
    fn answer(&self, stream: &mut TcpStream, request: &Request) -> io::Result<bool> {
        let shared = &self.0;
        shared.pass_gate();
        shared.requests.fetch_add(1, Ordering::Relaxed);
        let answer = pages::answer(request, shared);
        shared.pass_gate();
        let (status, text, exit) = match answer {
            Answer::Text(status, text) => (status, text, None),
            Answer::TextThenExit(text, code) => (200, text, Some(code)),
            Answer::Exit(code) => {
                shared.exit(code);
                // The process is about to end; until then the client hears nothing.
                loop {
                    thread::park();
                }
            }
        };
        let keep_alive = request.keep_alive && exit.is_none();
        let sent = send(stream, &Response { status, text, keep_alive }, request.method == "HEAD");
        if let Some(code) = exit {
            shared.exit(code);
        }
        sent.map(|()| keep_alive)
    }
}

/// Whether something can be read, now or within the time for a last request.
fn is_readable(stream: &TcpStream, is_awaited: bool) -> io::Result<bool> {
    let timeout = if is_awaited { LAST_REQUEST_TIMEOUT_MS } else { 0 };
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, timeout)? > 0)
}

/// A response with a text.
#[derive(Debug)]
struct Response {
    status: u16,
    text: String,
    keep_alive: bool,
}

fn send(stream: &mut TcpStream, response: &Response, head_only: bool) -> io::Result<()> {
    let Response { status, text, keep_alive } = response;
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        500 => "Internal Server Error",
        _ => "Service Unavailable",
    };
    let connection = if *keep_alive { "keep-alive" } else { "close" };
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: {connection}\r\n\r\n",
        text.len()
    );
    let body = if head_only { "" } else { text.as_str() };
    // One write: two would be two packets, and the second could wait for the first's ack.
    stream.write_all(format!("{head}{body}").as_bytes())
}

#[cfg(test)]
mod tests;
