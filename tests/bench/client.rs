//! The clients of the balancing benchmarks: a bounded number of requests, and what became of each.
//! Built by `run` with plain rustc; no part of the crate.
//!
//! `client PORTS CLIENTS REQUESTS PER_CONNECTION SECONDS TIMEOUT_MS` ends after so many requests,
//! after so many seconds, or when its standard input is closed. Of several ports, separated by
//! commas, each connection takes the next. It prints one JSON object. A server says in its
//! answer's body who it is.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// After a failure: nobody asks in a tight loop who was just refused.
const PAUSE: Duration = Duration::from_millis(5);

struct Plan {
    ports: Vec<u16>,
    clients: u64,
    requests: u64,
    per_connection: u64,
    end: Instant,
    timeout: Duration,
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    sent: AtomicU64,
    connected: AtomicUsize,
}

#[derive(Default)]
struct Seen {
    answered: u64,
    by: BTreeMap<String, u64>,
    failed: BTreeMap<&'static str, u64>,
    took_us: Vec<u128>,
}

fn main() -> io::Result<()> {
    let mut words = std::env::args().skip(1);
    let ports: Option<Vec<u16>> =
        words.next().unwrap_or_default().split(',').map(|port| port.parse().ok()).collect();
    let numbers: Option<Vec<u64>> = words.map(|word| word.parse().ok()).collect();
    let (Some(ports), Some(numbers)) = (ports, numbers) else {
        return Err(io::Error::other("ports and numbers are wanted"));
    };
    let Ok([clients, requests, per_connection, seconds, timeout]) = <[u64; 5]>::try_from(numbers)
    else {
        return Err(io::Error::other("five numbers are wanted after the ports"));
    };
    let start = Instant::now();
    let plan = Arc::new(Plan {
        ports,
        clients,
        requests,
        per_connection,
        end: start + Duration::from_secs(seconds),
        timeout: Duration::from_millis(timeout),
    });
    let shared = Arc::new(Shared::default());
    let reader = Arc::clone(&shared);
    thread::spawn(move || {
        let closed = io::stdin().read_to_end(&mut Vec::new());
        reader.over.store(closed.is_ok(), Ordering::SeqCst);
    });
    let clients: Vec<_> = (0..plan.clients)
        .map(|_| {
            let (plan, shared) = (Arc::clone(&plan), Arc::clone(&shared));
            thread::spawn(move || client(&plan, &shared))
        })
        .collect();
    let mut all = Seen::default();
    for client in clients {
        let seen = client.join().map_err(|_| io::Error::other("a client panicked"))?;
        all.answered += seen.answered;
        all.took_us.extend(seen.took_us);
        for (who, count) in seen.by {
            *all.by.entry(who).or_default() += count;
        }
        for (what, count) in seen.failed {
            *all.failed.entry(what).or_default() += count;
        }
    }
    print(&mut all, start.elapsed());
    Ok(())
}

fn client(plan: &Plan, shared: &Shared) -> Seen {
    let mut seen = Seen::default();
    while may_send(plan, shared) {
        let mut connection = None;
        for index in 0..plan.per_connection {
            if index > 0 && !may_send(plan, shared) {
                break;
            }
            let last = plan.per_connection == 1;
            let start = Instant::now();
            match request(&mut connection, plan, shared, last) {
                Ok(who) => {
                    seen.answered += 1;
                    seen.took_us.push(start.elapsed().as_micros());
                    *seen.by.entry(who).or_default() += 1;
                }
                Err(error) => {
                    *seen.failed.entry(kind(&error)).or_default() += 1;
                    thread::park_timeout(PAUSE);
                    break;
                }
            }
        }
    }
    seen
}

fn may_send(plan: &Plan, shared: &Shared) -> bool {
    !shared.over.load(Ordering::SeqCst)
        && Instant::now() < plan.end
        && shared.sent.fetch_add(1, Ordering::SeqCst) < plan.requests
}

/// Who answered.
fn request(
    connection: &mut Option<TcpStream>,
    plan: &Plan,
    shared: &Shared,
    close: bool,
) -> io::Result<String> {
    let stream = match connection {
        Some(stream) => stream,
        None => connection.insert(connect(plan, shared)?),
    };
    let ending = if close { "Connection: close\r\n" } else { "" };
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: bench\r\n{ending}\r\n").as_bytes())?;
    let mut text = Vec::with_capacity(512);
    let mut part = [0; 4096];
    loop {
        let count = stream.read(&mut part)?;
        text.extend_from_slice(part.get(..count).unwrap_or_default());
        match whole(&text) {
            // Who closes reads to the end: it is the server that closes first.
            Some(body) if !close || count == 0 => return Ok(body),
            Some(_) => {}
            None if count == 0 => return Err(ErrorKind::UnexpectedEof.into()),
            None => {}
        }
    }
}

fn connect(plan: &Plan, shared: &Shared) -> io::Result<TcpStream> {
    let index = shared.connected.fetch_add(1, Ordering::SeqCst) % plan.ports.len();
    let port = plan.ports.get(index).copied().unwrap_or_default();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let stream = TcpStream::connect_timeout(&address, plan.timeout)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(plan.timeout))?;
    stream.set_write_timeout(Some(plan.timeout))?;
    Ok(stream)
}

/// The body of an answer that is there as a whole.
fn whole(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    })?;
    let fine = head.starts_with("HTTP/1.1 200") && body.len() >= length;
    fine.then(|| body.trim().to_owned())
}

fn kind(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused",
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "reset",
        ErrorKind::UnexpectedEof => "closed",
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "timeouts",
        _ => "other",
    }
}

fn print(seen: &mut Seen, elapsed: Duration) {
    seen.took_us.sort_unstable();
    let at = |percent: usize| {
        let index = seen.took_us.len().saturating_sub(1) * percent / 100;
        seen.took_us.get(index).copied().unwrap_or_default()
    };
    let by: Vec<String> = seen.by.iter().map(|(who, count)| format!("{who:?}: {count}")).collect();
    let failed: Vec<String> =
        seen.failed.iter().map(|(what, count)| format!("{what:?}: {count}")).collect();
    println!(
        "{{\"answered\": {}, \"seconds\": {}, \"by\": {{{}}}, \"failed\": {{{}}}, \
         \"p50_us\": {}, \"p99_us\": {}}}",
        seen.answered,
        elapsed.as_secs_f64(),
        by.join(", "),
        failed.join(", "),
        at(50),
        at(99),
    );
}
