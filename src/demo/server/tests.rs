//! Serves over a real loopback socket, in this process.

use std::net::SocketAddr;

use super::*;

/// Longer than any answer takes under load, and still an end.
const DEADLINE: Duration = Duration::from_secs(30);

/// Runs a server beside `client`, ends it gracefully if `client` has not, and returns its status.
fn with_server(client: impl FnOnce(SocketAddr, &Shared)) -> u8 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::new(listener).unwrap();
    thread::scope(|scope| {
        let running = scope.spawn(|| server.run().unwrap());
        let end = EndOnDrop(&server.shared);
        client(address, &server.shared);
        drop(end);
        running.join().unwrap()
    })
}

/// Ends the server where an assertion of the client fails, too: nobody would else.
struct EndOnDrop<'a>(&'a Shared);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Waits for `fact`.
fn until(fact: impl Fn() -> bool) {
    let started_at = now();
    while !fact() {
        assert!(now().saturating_duration_since(started_at) < DEADLINE, "it never came");
        thread::yield_now();
    }
}

/// One request on a connection of its own; everything that came back.
fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = connect(address);
    write!(stream, "GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn pages_answer() {
    let status = with_server(|address, shared| {
        let who = get(address, "/");
        assert!(who.starts_with("HTTP/1.1 200 OK\r\n"), "{who}");
        assert!(who.contains(&format!("pid {}", std::process::id())), "{who}");
        assert!(who.ends_with("1 requests\n"), "{who}");
        assert!(get(address, "/health").ends_with("\r\n\r\nok\n"));
        assert!(get(address, "/leak?mb=3").contains("leaked 3 MB, 3 MB in all"));
        assert!(get(address, "/leak?mb=2").contains("leaked 2 MB, 5 MB in all"));
        assert!(get(address, "/slow?ms=1").contains("took 1 ms"));
        assert!(get(address, "/log?lines=1").contains("wrote 1 lines"));
        assert!(get(address, "/leak?mb=much").starts_with("HTTP/1.1 400 "));
        let missing = get(address, "/nowhere");
        assert!(missing.starts_with("HTTP/1.1 404 "), "{missing}");
        assert!(missing.contains("/leak?mb=50"), "{missing}");
        assert!(get(address, "/stubborn").contains("ignores SIGTERM"));
        assert!(shared.stubborn.load(Ordering::Relaxed));
        assert_eq!(shared.requests(), 9);
    });
    assert_eq!(status, 0);
}

#[test]
fn a_connection_is_kept_and_closed_as_asked() {
    with_server(|address, _| {
        let mut stream = connect(address);
        write!(stream, "GET /health HTTP/1.1\r\n\r\nHEAD /health HTTP/1.1\r\n").unwrap();
        write!(stream, "Connection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.matches("200 OK").count(), 2, "{answer}");
        assert_eq!(answer.matches("\r\n\r\nok\n").count(), 1, "{answer}");
        assert!(answer.ends_with("Connection: close\r\n\r\n"), "{answer}");
    });
}

#[test]
fn garbage_gets_400_and_the_server_lives() {
    with_server(|address, _| {
        let mut stream = connect(address);
        stream.write_all(b"\x16\x03\x01\x02\x00\n\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        let mut post = connect(address);
        post.write_all(b"POST / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        post.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        assert!(get(address, "/health").contains("200 OK"));
    });
}

#[test]
fn an_end_finishes_what_is_in_flight() {
    let mut answer = String::new();
    let status = with_server(|address, shared| {
        let mut idle = connect(address);
        let mut stream = connect(address);
        write!(stream, "GET /slow?ms=300 HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        // The request has begun once it is counted.
        until(|| shared.requests() > 0);
        shared.end();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0, "an idle connection is closed");
    });
    assert!(answer.ends_with("took 300 ms\n"), "{answer}");
    assert_eq!(status, 0);
}

#[test]
fn exit_answers_first_and_crash_never() {
    let status = with_server(|address, _| {
        assert!(get(address, "/exit?code=7").contains("exits with 7"));
    });
    assert_eq!(status, 7);
    let status = with_server(|address, shared| {
        let mut stream = connect(address);
        write!(stream, "GET /crash HTTP/1.1\r\n\r\n").unwrap();
        until(|| shared.exit.get().is_some());
    });
    assert_eq!(status, 1);
}

#[test]
fn a_connection_too_many_waits_for_a_place() {
    with_server(|address, shared| {
        *lock(&shared.connections) = CONNECTIONS_MAX;
        let mut stream = connect(address);
        write!(stream, "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        *lock(&shared.connections) = 0;
        shared.connection_closed.notify_all();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("\nok\n"), "{answer}");
    });
    let status = with_server(|address, shared| {
        *lock(&shared.connections) = CONNECTIONS_MAX;
        let _waits = connect(address);
        shared.exit(3);
    });
    assert_eq!(status, 3, "a full server can be ended");
}

#[test]
fn a_hanging_server_shuts_its_gate_for_good() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::new(listener).unwrap();
    let shared = Arc::clone(&server.shared);
    start("hang", move || shared.hang()).unwrap();
    until(|| server.shared.gate.try_lock().is_err());
}
