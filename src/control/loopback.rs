//! For tests: an app's socket with a scripted supervisor behind it.

use std::cell::Cell;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::protocol::{AppState, Facts, INTERFACE, Level, LimitState, Mode, Usage};
use super::server::{Call, Connection, GroupIds, Peer, Reply};
use crate::policy::{
    Exit, Failure, Generation, InstanceStatus, LastExit, Moment, RecentRestarts, ReleaseId, SlotId,
    SlotStatus, Status, UnitState, Word,
};

/// A directory of a test, removed with all that is in it.
#[derive(Debug)]
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pmr-test-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Runs `client` against an app of this name in `directory`, whose supervisor answers with
/// `answer`.
pub(crate) fn with_app<T>(
    directory: &Path,
    name: &str,
    uid: u32,
    answer: impl FnMut(Call) -> Vec<Reply> + Send,
    client: impl FnOnce() -> T,
) -> T {
    let directory = directory.join(name);
    std::fs::create_dir_all(&directory).unwrap();
    let opened = std::fs::File::open(&directory).unwrap();
    let short = format!("/proc/self/fd/{}/{INTERFACE}", std::os::fd::AsRawFd::as_raw_fd(&opened));
    let listener = UnixListener::bind(short).unwrap();
    let (stop, stopped) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || serve(&listener, &stopped, uid, answer));
        // Dropped also where the client panics, so that the scope ends.
        let _stop = stop;
        client()
    })
}

fn serve(
    listener: &UnixListener,
    stopped: &UnixStream,
    uid: u32,
    mut answer: impl FnMut(Call) -> Vec<Reply>,
) {
    let mut peers: Vec<(UnixStream, Connection)> = Vec::new();
    let now = Cell::new(0_u64);
    loop {
        now.set(now.get().saturating_add(1));
        let mut fds = vec![
            PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
        ];
        for (stream, connection) in &peers {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, connection.wants_input());
            flags.set(PollFlags::OUT, !connection.outgoing().is_empty());
            fds.push(PollFd::from_borrowed_fd(stream.as_fd(), flags));
        }
        poll(&mut fds, None).unwrap();
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if ready[0] {
            return;
        }
        for ((stream, connection), _) in
            peers.iter_mut().zip(&ready[2..]).filter(|(_, is_ready)| **is_ready)
        {
            turn(stream, connection, now.get(), &mut answer);
        }
        peers.retain(|(_, connection)| !connection.is_closed());
        if ready[1] {
            let (stream, _) = listener.accept().unwrap();
            stream.set_nonblocking(true).unwrap();
            let peer = Peer { pid: 1, uid, gid: uid, groups: Vec::new() };
            peers.push((stream, Connection::new(peer, &GroupIds::default(), 1000, now.get())));
        }
    }
}

/// What the runtime does with one connection in one turn of its loop.
pub(crate) fn turn(
    stream: &mut UnixStream,
    connection: &mut Connection,
    now: u64,
    answer: &mut impl FnMut(Call) -> Vec<Reply>,
) {
    let mut chunk = [0; 4096];
    while connection.wants_input() {
        match stream.read(&mut chunk) {
            Ok(0) => connection.handle_eof(),
            Ok(count) => connection.receive(now, &chunk[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => connection.handle_eof(),
            Err(error) => panic!("{error}"),
        }
        while let Some(call) = connection.next_call(now) {
            for reply in answer(call) {
                connection.reply(now, reply);
            }
            if connection.in_flight().is_some() {
                break;
            }
        }
    }
    while !connection.outgoing().is_empty() {
        match stream.write(connection.outgoing()) {
            Ok(count) => connection.sent(now, count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(_) => return connection.handle_time(u64::MAX),
        }
    }
}

/// The story's app: slot 0 online, slot 1 waiting after a crash.
pub(crate) fn track_backend() -> (Status, Facts) {
    let crash = LastExit {
        generation: Generation(17),
        failure: Failure::Exit(Exit::Signal { signal: 11, core: true, oom: None }),
        asked: false,
        at: Moment::from_ms(13_500_000),
        lived_ms: 13_500_000,
    };
    let slot = |number, word, instance, next_start, last_exit| SlotStatus {
        slot: SlotId(number),
        word,
        instance,
        other: None,
        restarts: u32::from(number),
        unstable: (0, 10),
        next_start,
        last_exit,
    };
    let instance = InstanceStatus {
        generation: Generation(16),
        release: ReleaseId(3),
        pid: Some(4242),
        word: Word::Online,
        uptime: Duration::from_mins(312),
    };
    let status = Status {
        slots: vec![
            slot(0, Word::Online, Some(instance), None, None),
            slot(
                1,
                Word::Waiting,
                None,
                Some(Duration::from_millis(1800)),
                Some((crash, Duration::from_millis(200))),
            ),
        ],
        release: ReleaseId(3),
        roll: None,
        shutting_down: false,
        generation: Generation(17),
        unit: UnitState::Ready,
        awaited: false,
        lately: RecentRestarts::default().lately(Moment::from_ms(0)),
    };
    (status, facts())
}

fn facts() -> Facts {
    let usage = Usage { memory_bytes: Some(85 << 20), cpu_percent: Some(1.25), ..Usage::default() };
    let stderr = vec![
        "TypeError: Cannot read properties of null (reading 'id')".to_owned(),
        "    at track (server.js:41:\u{1b}[7m17)".to_owned(),
    ];
    Facts {
        name: "track-backend".to_owned(),
        mode: Mode::Cluster,
        level: Level::Bare,
        config: "/etc/pmr/track-backend.toml".to_owned(),
        cwd: "/srv/track-backend".to_owned(),
        command: vec!["node".to_owned(), "server.js".to_owned()],
        balance: None,
        traffic: std::collections::BTreeMap::new(),
        listen: vec!["0.0.0.0:10000".to_owned()],
        memory_limit_bytes: Some(1 << 30),
        memory_cap_enforced: false,
        limits: vec![LimitState {
            key: "memory_max".to_owned(),
            value: 5 << 28,
            enforced: false,
            reason: Some("no groups in level bare".to_owned()),
        }],
        started_at_ms: 1_780_000_000_000,
        uptime_ms: 18_720_000,
        supervisor_pid: 101,
        keeper_pid: 100,
        supervisor_deaths: 1,
        upgrade: None,
        journal: None,
        usage: [(Generation(16), usage)].into(),
        stderr: [(SlotId(1), stderr)].into(),
    }
}

/// The same, as the wire has it.
pub(crate) fn track_backend_state() -> AppState {
    let (status, facts) = track_backend();
    AppState::from_status(&status, &facts)
}
