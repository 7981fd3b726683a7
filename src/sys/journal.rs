//! journald: the streams that an app writes its lines to, the socket of pmr's own entries, and
//! pmr's own standard error, which is such a stream too where systemd started it.
//!
//! Nothing here waits for journald: it may be stopped, or hang on a slow disk.
#![expect(unsafe_code, reason = "the descriptor that a library keeps to itself")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::sys::socket::{setsockopt, sockopt as nix_sockopt};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::{Error, Result, poll};

/// Where journald listens for streams.
pub const STREAM_SOCKET: &str = "/run/systemd/journal/stdout";

/// Where journald listens for entries with fields.
pub const NATIVE_SOCKET: &str = "/run/systemd/journal/socket";

/// What waits for a journald that does not read, as systemd gives it to a service (`SNDBUF_SIZE` of
/// exec-invoke.c). With the default of 208 KiB an app is stopped by 278 lines (measured).
const SEND_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// The priorities of syslog(3) that pmr gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// 3: something is wrong.
    Err,
    /// 4: something may go wrong.
    Warning,
    /// 6: it is as it should be.
    Info,
}

impl Priority {
    /// Its digit.
    pub fn digit(self) -> char {
        match self {
            Self::Err => '3',
            Self::Warning => '4',
            Self::Info => '6',
        }
    }
}

/// What journald is told of a stream before its first line.
#[derive(Debug, Clone, Copy)]
pub struct Stream<'a> {
    /// `SYSLOG_IDENTIFIER` of each line.
    pub identifier: &'a str,
    /// The unit, heard from root only, and only where journald cannot find it by the writer's
    /// group. Empty where there is none.
    pub unit: &'a str,
    /// The priority of a line that has none of its own.
    pub priority: Priority,
}

/// Opens a stream. A line of it that begins with `<N>` has that priority, as it is for a service
/// (`SyslogLevelPrefix=yes`). An app that gets the fd waits in its writes only when
/// 8 MiB are full.
pub fn open_stream(path: &Path, stream: &Stream<'_>) -> Result<OwnedFd> {
    let failed = |errno| Error::at("open a stream to", path, errno);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(failed)?;
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    // Made at once, or EAGAIN where a journald that hangs has a full queue.
    rustix::net::connect(&socket, &address).map_err(failed)?;
    enlarge(&socket);
    let Stream { identifier, unit, priority } = stream;
    // Identifier, unit, priority, level prefix, and whether it is forwarded to syslog, kmsg,
    // console: journald-stream.c.
    let head = format!("{identifier}\n{unit}\n{}\n1\n0\n0\n0\n", priority.digit());
    let sent = rustix::net::send(&socket, head.as_bytes(), rustix::net::SendFlags::NOSIGNAL);
    if sent.map_err(failed)? != head.len() {
        return Err(failed(rustix::io::Errno::AGAIN));
    }
    rustix::net::shutdown(&socket, Shutdown::Read).map_err(failed)?;
    // Programs expect a standard output that takes everything.
    rustix::fs::fcntl_setfl(&socket, OFlags::empty()).map_err(failed)?;
    Ok(socket)
}

/// As much room as can be had: beyond the machine's maximum for root only.
fn enlarge(socket: &OwnedFd) {
    if setsockopt(socket, nix_sockopt::SndBufForce, &SEND_BUFFER_BYTES).is_err() {
        // A smaller buffer is a buffer.
        setsockopt(socket, nix_sockopt::SndBuf, &SEND_BUFFER_BYTES).unwrap_or_default();
    }
}

/// `JOURNAL_STREAM` for a process whose standard error is `fd`: by this a program knows that it
/// writes to the journal, and may say its priorities.
pub fn stream_name(fd: impl AsFd) -> Option<String> {
    let facts = rustix::fs::fstat(fd).ok()?;
    Some(format!("{}:{}", facts.st_dev, facts.st_ino))
}

/// A socket that [`find`] found.
#[derive(Debug)]
pub struct Native(OwnedFd);

/// Why an entry with fields cannot be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// journald does not read.
    Full,
    /// Nobody listens there.
    Gone,
}

/// Calls `make`, which opens one datagram socket and keeps it to itself, and takes hold of that: it
/// never blocks from then on, and has as much room as can be had. `None` where it was not found.
///
/// Only where no other thread opens descriptors: a new one has the lowest number that is free.
pub fn find<T>(make: impl FnOnce() -> io::Result<T>) -> io::Result<(T, Option<Native>)> {
    let lowest = UnixDatagram::unbound()?.as_raw_fd();
    let library = make()?;
    // SAFETY: fcntl(2) F_DUPFD_CLOEXEC takes an int; a number that is not open is an error.
    let copy = unsafe { libc::fcntl(lowest, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Ok((library, None));
    }
    // SAFETY: the kernel has just made it, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(copy) };
    let is_it = sockopt::socket_type(&socket) == Ok(SocketType::DGRAM)
        && sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX);
    // The flag belongs to the open file, which the two descriptors share.
    if !is_it || rustix::fs::fcntl_setfl(&socket, OFlags::NONBLOCK).is_err() {
        return Ok((library, None));
    }
    enlarge(&socket);
    Ok((library, Some(Native(socket))))
}

impl Native {
    /// Whether an entry would be taken now. Whoever fills the queue between this and the sending
    /// makes it fail, and not wait.
    pub fn room(&self, path: &Path) -> std::result::Result<(), NoRoom> {
        room(&self.0, path)
    }
}

/// Whether a journald that reads listens at `path`: before anything is sent that would wait.
pub fn is_listening(path: &Path) -> bool {
    UnixDatagram::unbound().is_ok_and(|socket| room(&socket.into(), path).is_ok())
}

fn room(socket: &OwnedFd, path: &Path) -> std::result::Result<(), NoRoom> {
    let address = SocketAddrUnix::new(path).map_err(|_| NoRoom::Gone)?;
    // A datagram socket is connected by a look at the path, and waits for nobody. Only of one that
    // is connected does the kernel say whether the receiver's queue has room.
    rustix::net::connect(socket, &address).map_err(|_| NoRoom::Gone)?;
    let mut one = [PollFd::new(socket, PollFlags::OUT)];
    match rustix::event::poll(&mut one, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(_) if one.iter().any(|one| one.revents().contains(PollFlags::OUT)) => Ok(()),
        Ok(_) | Err(_) => Err(NoRoom::Full),
    }
}

/// Whether pmr's standard error is a stream of the journal: systemd says of which file it was when
/// it started pmr.
fn stderr_is_journal() -> bool {
    let name = std::env::var("JOURNAL_STREAM").ok();
    name.is_some_and(|name| stream_name(io::stderr()) == Some(name))
}

/// Lines for whoever reads pmr's own standard error; says whether they were taken. They are lost
/// where they cannot be written at once: who waits for a journal or a terminal supervises nothing.
pub fn say(priority: Priority, text: &str) -> bool {
    say_in(stderr_is_journal(), priority, text)
}

fn say_in(journal: bool, priority: Priority, text: &str) -> bool {
    let mut lines = String::with_capacity(text.len().saturating_add(8));
    for (index, line) in text.lines().enumerate() {
        match (journal, index) {
            (true, _) => lines.extend(['<', priority.digit(), '>']),
            (false, 0) => lines.push_str("pmr: "),
            (false, _) => {}
        }
        lines.push_str(line);
        lines.push('\n');
    }
    match write_all_now(io::stderr(), lines.as_bytes()) {
        Ok(all) => all,
        Err(_) => journal && say_anew(lines.as_bytes()),
    }
}

/// A journald that was stopped has closed its streams, pmr's own too (systemd 252): the lines get
/// one of their own once it is back.
fn say_anew(lines: &[u8]) -> bool {
    let unit = own_unit().map(|unit| unit.name).unwrap_or_default();
    let stream = Stream { identifier: "pmr", unit: &unit, priority: Priority::Info };
    let stream = open_stream(Path::new(STREAM_SOCKET), &stream);
    stream.is_ok_and(|stream| write_all_now(stream, lines).unwrap_or(false))
}

/// Writes all of it, if that can be done at once; says whether it was.
fn write_all_now(fd: impl AsFd, mut bytes: &[u8]) -> io::Result<bool> {
    while !bytes.is_empty() {
        match poll::write_now(&fd, bytes) {
            Ok(0) => return Ok(false),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// A panic is said without waiting too: what std does would wait.
pub fn say_panics() {
    std::panic::set_hook(Box::new(|panic| {
        say(Priority::Err, &panic.to_string());
    }));
}

/// The unit that a process is in, as journald finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// `pmr@web.service`
    pub name: String,
    /// Of a user's service manager.
    pub user: bool,
}

/// The unit of this process.
pub fn own_unit() -> Option<Unit> {
    unit_of(&std::fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// By /proc/self/cgroup: the service in the path that systemd made. On a machine with v1
/// hierarchies that is the one named `systemd` where there is no v2.
fn unit_of(text: &str) -> Option<Unit> {
    let of = |key: &str| text.lines().find_map(|line| line.split_once(key)).map(|(_, path)| path);
    let path = of("0::").filter(|path| *path != "/").or_else(|| of(":name=systemd:"))?;
    let mut services = path.split('/').filter(|part| part.ends_with(".service"));
    let first = services.next()?;
    let Some(below) = services.next() else {
        // The user's manager itself is above all of its units, and is none of them.
        let is_manager = first.starts_with("user@") && path.contains("/user.slice/");
        return (!is_manager).then(|| Unit { name: first.to_owned(), user: false });
    };
    Some(Unit { name: below.to_owned(), user: first.starts_with("user@") })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::sys::testing::{self, Directory};

    const STREAM: Stream<'_> =
        Stream { identifier: "web:0", unit: "pmr@web.service", priority: Priority::Err };

    #[test]
    fn a_stream_begins_with_what_journald_must_know() {
        let directory = Directory::new("journal-stream");
        let path = directory.path().join("stdout");
        assert!(open_stream(&path, &STREAM).unwrap_err().is_not_found());
        let journald = UnixListener::bind(&path).unwrap();
        let stream = open_stream(&path, &STREAM).unwrap();
        let flags = rustix::fs::fcntl_getfl(&stream).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK), "an app expects one that waits");
        // The kernel says twice what was asked for; without the right to more it is less.
        let bytes = sockopt::socket_send_buffer_size(&stream).unwrap();
        if rustix::process::geteuid().is_root() {
            assert_eq!(bytes, 2 * SEND_BUFFER_BYTES);
        }
        let name = stream_name(&stream).unwrap();
        assert!(name.split_once(':').is_some_and(|(_, inode)| inode.parse::<u64>().is_ok()));
        rustix::io::write(&stream, b"a line\n").unwrap();
        drop(stream);
        let mut heard = String::new();
        journald.accept().unwrap().0.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "web:0\npmr@web.service\n3\n1\n0\n0\n0\na line\n");
    }

    #[test]
    fn a_journald_that_accepts_nobody_is_not_waited_for() {
        let directory = Directory::new("journal-hangs");
        let path = directory.path().join("stdout");
        let journald = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&journald, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&journald, 0).unwrap();
        let mut streams = Vec::new();
        let error = loop {
            match open_stream(&path, &STREAM) {
                Ok(stream) => streams.push(stream),
                Err(error) => break error,
            }
            assert!(streams.len() < 100, "the queue is never full");
        };
        assert_eq!(error.errno(), libc::EAGAIN);
        assert!(!streams.is_empty());
    }

    #[test]
    #[ignore = "run by a_socket_that_a_library_keeps_to_itself_never_blocks, as the only thread"]
    fn found_socket() {
        let directory = Directory::new("journal-native");
        let path = directory.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        // As tracing-journald: a socket that is not connected, and sends to a path each time.
        let (library, native) = find(UnixDatagram::unbound).unwrap();
        let native = native.unwrap();
        let mut sent = 0;
        while native.room(&path).is_ok() {
            library.send_to(b"an entry", &path).unwrap();
            sent += 1;
            assert!(sent < 100_000, "the queue is never full");
        }
        assert_eq!(native.room(&path), Err(NoRoom::Full));
        assert!(!is_listening(&path));
        let error = library.send_to(b"one more", &path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);

        // It reads again, and then another one listens there.
        for _ in 0..sent {
            journald.recv(&mut [0; 64]).unwrap();
        }
        assert_eq!(native.room(&path), Ok(()));
        drop(journald);
        assert_eq!(native.room(&path), Err(NoRoom::Gone));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(native.room(&path), Err(NoRoom::Gone));
        let journald = UnixDatagram::bind(&path).unwrap();
        assert_eq!(native.room(&path), Ok(()));
        library.send_to(b"again", &path).unwrap();
        assert_eq!(journald.recv(&mut [0; 64]).unwrap(), 5);

        let ((), none) = find(|| Ok(())).unwrap();
        assert!(none.is_none());
        let (_, none) = find(UnixStream::pair).unwrap();
        assert!(none.is_none(), "another kind of socket");
    }

    #[test]
    fn a_socket_that_a_library_keeps_to_itself_never_blocks() {
        testing::run_alone("sys::journal::tests::found_socket");
    }

    #[test]
    #[ignore = "run by what_pmr_says_has_its_priority_in_the_journal"]
    fn said() {
        assert!(say_in(true, Priority::Warning, "two\nlines"));
        assert!(say_in(false, Priority::Err, "two\nlines"));
    }

    #[test]
    fn what_pmr_says_has_its_priority_in_the_journal() {
        let said = testing::run_alone("sys::journal::tests::said");
        assert!(said.contains("<4>two\n<4>lines\npmr: two\nlines\n"), "{said}");
    }

    #[test]
    fn the_unit_is_found_in_the_path_of_the_group() {
        let unit = |name: &str, user| Some(Unit { name: name.to_owned(), user });
        for (path, found) in [
            (
                "/system.slice/system-pmr.slice/pmr@web.service/supervisor",
                unit("pmr@web.service", false),
            ),
            ("/system.slice/ssh.service", unit("ssh.service", false)),
            (
                "/user.slice/user-7.slice/user@7.service/app.slice/app-pmr.slice/pmr@web.service",
                unit("pmr@web.service", true),
            ),
            ("/user.slice/user-7.slice/user@7.service/app.slice/run-1.scope", None),
            ("/user.slice/user-7.slice/session-2.scope", None),
            ("/", None),
        ] {
            assert_eq!(unit_of(&format!("0::{path}\n")), found, "{path}");
            let hybrid = format!("12:pids:/x.service\n1:name=systemd:{path}\n0::/\n");
            assert_eq!(unit_of(&hybrid), found, "{path}");
        }
    }
}
