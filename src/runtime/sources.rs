//! Where facts come from: every fd of the loop by a token of its own.

use std::os::fd::BorrowedFd;

use crate::policy::Generation;
use crate::sys::poll::Interest;

use super::Runtime;
use super::instances::Instance;
use super::output::Stream;

/// What an fd of the loop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The link to the keeper.
    Keeper,
    /// The control socket.
    Control,
    /// A client of the control socket.
    Client(u64),
    /// The pipe that tells of an exec.
    Exec(Generation),
    /// A notify socket.
    Notify(Generation),
    /// What an instance writes.
    Output(Generation, Stream),
    /// `cgroup.events` of an instance's group.
    Group(Generation),
    /// A terminal that was full.
    Sink(usize),
    /// The check of a new binary.
    Check,
    /// `memory.events` of an instance's group.
    Wire(Generation),
    /// A process that reclaims memory.
    Reclaim(u64),
    /// The channel of a Node process.
    Channel(Generation),
}

/// The kinds, in the upper byte of a token.
const KIND_SHIFT: u32 = 56;
const VALUE: u64 = (1 << KIND_SHIFT) - 1;

impl Source {
    /// The token of the fd. Generations and clients are counted from 1 and never reach 2^56.
    pub(super) fn token(self) -> u64 {
        let (kind, value) = match self {
            Self::Keeper => (0, 0),
            Self::Control => (1, 0),
            Self::Client(client) => (2, client),
            Self::Exec(generation) => (3, generation.0),
            Self::Notify(generation) => (4, generation.0),
            Self::Output(generation, Stream::Out) => (5, generation.0),
            Self::Output(generation, Stream::Err) => (6, generation.0),
            Self::Group(generation) => (7, generation.0),
            Self::Sink(index) => (8, u64::try_from(index).unwrap_or_default()),
            Self::Check => (9, 0),
            Self::Wire(generation) => (10, generation.0),
            Self::Reclaim(number) => (11, number),
            Self::Channel(generation) => (12, generation.0),
        };
        (kind << KIND_SHIFT) | (value & VALUE)
    }

    /// The fd of a token.
    pub(super) fn of(token: u64) -> Option<Self> {
        let value = token & VALUE;
        let generation = Generation(value);
        Some(match token >> KIND_SHIFT {
            0 => Self::Keeper,
            1 => Self::Control,
            2 => Self::Client(value),
            3 => Self::Exec(generation),
            4 => Self::Notify(generation),
            5 => Self::Output(generation, Stream::Out),
            6 => Self::Output(generation, Stream::Err),
            7 => Self::Group(generation),
            8 => Self::Sink(usize::try_from(value).ok()?),
            9 => Self::Check,
            10 => Self::Wire(generation),
            11 => Self::Reclaim(value),
            12 => Self::Channel(generation),
            _ => return None,
        })
    }
}

impl Runtime {
    /// Adds an fd to the loop. One that cannot be watched is looked at by no event, so it is said.
    pub(super) fn watch(&mut self, fd: BorrowedFd<'_>, source: Source, interest: Interest) {
        if let Err(error) = self.poll.add(fd, source.token(), interest) {
            self.warn(&error.to_string());
        }
    }

    /// Takes an fd out of the loop before it is closed: the keeper may hold the same open file.
    pub(super) fn forget_fd(&self, fd: impl std::os::fd::AsFd) {
        // One that was never added or that the kernel dropped is out of it all the same.
        super::never_mind(self.poll.remove(fd));
    }

    /// Watches everything an instance can say.
    pub(super) fn watch_instance(&mut self, generation: Generation, instance: &Instance) {
        let fds = [
            (&instance.exec_status, Source::Exec(generation)),
            (&instance.notify, Source::Notify(generation)),
            (&instance.out, Source::Output(generation, Stream::Out)),
            (&instance.err, Source::Output(generation, Stream::Err)),
        ];
        for (fd, source) in fds {
            if let Some(fd) = fd {
                self.watch(std::os::fd::AsFd::as_fd(fd), source, Interest::READABLE);
            }
        }
        if let Some(events) = &instance.events {
            let source = Source::Group(generation);
            self.watch(std::os::fd::AsFd::as_fd(events), source, Interest::PRIORITY);
        }
    }

    /// Watches nothing of an instance any more.
    pub(super) fn unwatch_instance(&self, _: Generation, instance: &Instance) {
        let Instance { exec_status, notify, out, err, events, .. } = instance;
        for fd in [exec_status, notify, out, err, events].into_iter().flatten() {
            self.forget_fd(fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_back() {
        let generation = Generation(77);
        for source in [
            Source::Keeper,
            Source::Control,
            Source::Client(5),
            Source::Exec(generation),
            Source::Notify(generation),
            Source::Output(generation, Stream::Out),
            Source::Output(generation, Stream::Err),
            Source::Group(generation),
            Source::Sink(1),
            Source::Check,
            Source::Wire(generation),
            Source::Reclaim(3),
            Source::Channel(generation),
        ] {
            assert_eq!(Source::of(source.token()), Some(source));
        }
        assert_eq!(Source::of(u64::MAX), None);
    }
}
