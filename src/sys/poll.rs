//! epoll, level-triggered: what is not dealt with is reported again.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::{Error, Result};

/// Most events that one [`Poll::wait`] reports; the others come with the next.
const EVENTS_MAX: usize = 128;

/// What to wait for. Errors and hang-ups are always reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interest {
    /// There is something to read.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// A cgroup file has changed, or a pressure threshold was crossed.
    pub priority: bool,
}

impl Interest {
    /// Something to read, nothing else.
    pub const READABLE: Self = Self { readable: true, writable: false, priority: false };
    /// A change of a cgroup file, nothing else.
    pub const PRIORITY: Self = Self { readable: false, writable: false, priority: true };

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.readable);
        flags.set(EventFlags::OUT, self.writable);
        flags.set(EventFlags::PRI, self.priority);
        flags
    }
}

/// One fd that has something to say.
#[expect(clippy::struct_excessive_bools, reason = "as the kernel says it: any of them at once")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// The token it was added with.
    pub token: u64,
    /// There is something to read, or its end.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// A cgroup file has changed.
    pub priority: bool,
    /// The other end is gone, or the fd is in error.
    pub hangup: bool,
}

/// A set of fds to wait for.
pub struct Poll {
    fd: OwnedFd,
    events: Vec<epoll::Event>,
}

impl fmt::Debug for Poll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poll").field("fd", &self.fd).finish_non_exhaustive()
    }
}

impl Poll {
    /// An empty set.
    pub fn new() -> Result<Self> {
        let fd = epoll::create(CreateFlags::CLOEXEC).map_err(|e| Error::new("make an epoll", e))?;
        Ok(Self { fd, events: Vec::with_capacity(EVENTS_MAX) })
    }

    /// Waits for `fd` too. A regular file is refused with `EPERM`: it is always ready.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> Result<()> {
        epoll::add(&self.fd, fd, EventData::new_u64(token), interest.flags())
            .map_err(|e| Error::new("add to the epoll", e))
    }

    /// Waits for something else of an `fd` that was added.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> Result<()> {
        epoll::modify(&self.fd, fd, EventData::new_u64(token), interest.flags())
            .map_err(|e| Error::new("modify the epoll", e))
    }

    /// Waits for `fd` no more. To be called before it is closed where a dup of it lives on:
    /// the kernel's entry belongs to the open file, not to the fd.
    pub fn remove(&self, fd: impl AsFd) -> Result<()> {
        epoll::delete(&self.fd, fd).map_err(|e| Error::new("remove from the epoll", e))
    }

    /// Waits until something is ready, `timeout` has passed (never earlier: it is rounded up to
    /// milliseconds), or a signal came. `ready` is replaced, and is empty in the latter cases.
    pub fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> Result<()> {
        ready.clear();
        self.events.clear();
        let timeout = timeout.map(rounded_up);
        match epoll::wait(&self.fd, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(Error::new("wait for events", e)),
        }
        ready.extend(self.events.iter().map(|event| {
            // The struct is packed on x86-64, so the fields are copied out.
            let (flags, data) = (event.flags, event.data);
            Ready {
                token: data.u64(),
                readable: flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::RDHUP),
                writable: flags.contains(EventFlags::OUT),
                priority: flags.contains(EventFlags::PRI),
                hangup: flags.intersects(EventFlags::HUP | EventFlags::ERR),
            }
        }));
        Ok(())
    }
}

/// The kernel's clock of epoll has milliseconds; rounding down would make a busy turn before each
/// deadline. Longest: what epoll can count, about 24 days.
fn rounded_up(timeout: Duration) -> Timespec {
    let milliseconds = timeout.as_nanos().div_ceil(1_000_000).min(0x7fff_ffff);
    let milliseconds = i64::try_from(milliseconds).unwrap_or(i64::MAX);
    Timespec {
        tv_sec: milliseconds / 1000,
        tv_nsec: (milliseconds % 1000).saturating_mul(1_000_000),
    }
}

/// Writes `bytes`, a part of them, to `fd` if that can be done at once, or else nothing: a
/// reader that hangs (a stopped terminal, a stalled journal) must not stop the writer. Says how
/// many were written. A pipe that is writable has room for 4096 bytes (`PIPE_BUF`), not for more.
pub fn write_now(fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let fd = fd.as_fd();
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    // A socket can be told not to wait; of other files the kernel says whether one would.
    match rustix::net::send(fd, bytes, flags) {
        Ok(count) => return Ok(count),
        Err(Errno::AGAIN) => return Ok(0),
        Err(Errno::NOTSOCK) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut one = [PollFd::new(&fd, PollFlags::OUT)];
    rustix::event::poll(&mut one, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    if !one.iter().any(|one| one.revents().contains(PollFlags::OUT)) {
        return Ok(0);
    }
    Ok(rustix::io::write(fd, bytes.get(..4096).unwrap_or(bytes))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing;

    #[test]
    fn a_pipe_is_reported_until_it_is_read_and_then_when_it_hangs_up() {
        let (reader, writer) = testing::pipe().unwrap();
        let mut poll = Poll::new().unwrap();
        let mut ready = Vec::new();
        poll.add(&reader, 7, Interest::READABLE).unwrap();
        poll.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert_eq!(ready, []);

        rustix::io::write(&writer, b"x").unwrap();
        for _ in 0..2 {
            poll.wait(None, &mut ready).unwrap();
            assert_eq!((ready[0].token, ready[0].readable, ready[0].hangup), (7, true, false));
        }
        rustix::io::read(&reader, &mut [0_u8; 8][..]).unwrap();
        drop(writer);
        poll.wait(None, &mut ready).unwrap();
        assert!(ready[0].hangup && ready[0].readable);

        poll.remove(&reader).unwrap();
        poll.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert_eq!(ready, []);
    }

    #[test]
    fn a_changed_interest_holds() {
        let (left, _right) = super::super::link::Link::pair().unwrap();
        let mut poll = Poll::new().unwrap();
        let mut ready = Vec::new();
        poll.add(&left, 1, Interest::READABLE).unwrap();
        poll.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert_eq!(ready, []);
        poll.modify(&left, 1, Interest { writable: true, ..Interest::READABLE }).unwrap();
        poll.wait(None, &mut ready).unwrap();
        assert!(ready[0].writable && !ready[0].readable);
    }

    #[test]
    fn a_regular_file_is_refused_with_eperm() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let error = Poll::new().unwrap().add(&file, 1, Interest::READABLE).unwrap_err();
        assert_eq!(error.errno(), libc::EPERM);
    }

    #[test]
    fn timeouts_are_rounded_up_and_capped() {
        let milliseconds = |nanoseconds| {
            let spec = rounded_up(Duration::from_nanos(nanoseconds));
            (spec.tv_sec, spec.tv_nsec)
        };
        assert_eq!(milliseconds(0), (0, 0));
        assert_eq!(milliseconds(1), (0, 1_000_000));
        assert_eq!(milliseconds(1_000_000), (0, 1_000_000));
        assert_eq!(milliseconds(1_999_000_001), (2, 0));
        assert_eq!(rounded_up(Duration::MAX).tv_sec, 0x7fff_ffff / 1000);
    }

    #[test]
    fn a_wait_is_never_over_before_its_deadline() {
        let mut poll = Poll::new().unwrap();
        let mut ready = Vec::new();
        for microseconds in [1, 300, 999, 1001, 2500] {
            let before = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            let wait = Duration::from_micros(microseconds);
            poll.wait(Some(wait), &mut ready).unwrap();
            let after = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            assert!(Duration::try_from(after - before).unwrap() >= wait);
        }
    }

    #[test]
    fn a_full_pipe_does_not_stop_the_writer() {
        let (_reader, writer) = testing::pipe().unwrap();
        let mut written = 0;
        while write_now(&writer, &[0; 10_000]).unwrap() > 0 {
            written += 1;
            assert!(written < 1000, "the pipe is never full");
        }
        assert!(written > 0);
    }

    #[test]
    fn a_full_socket_does_not_stop_the_writer() {
        let (writer, _reader) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut written = 0;
        while write_now(&writer, &[0; 10_000]).unwrap() > 0 {
            written += 1;
            assert!(written < 10_000, "the socket is never full");
        }
        assert!(written > 0);
    }
}
