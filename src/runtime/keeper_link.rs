//! The supervisor's end of the link to its keeper. Nothing said is lost: what does not fit now is
//! sent when there is room.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::keeper::protocol::{LINK_FD, ToKeeper, ToSupervisor, decode, encode};
use crate::sys::link::{self, Link, Received};
use crate::sys::{Error, Result, parent};

/// What came from the keeper.
#[derive(Debug)]
pub(super) enum Heard {
    /// One message and the fds beside it.
    Message(ToSupervisor, Vec<OwnedFd>),
    /// Nothing yet.
    Nothing,
    /// The keeper is gone.
    Gone,
}

/// The link.
#[derive(Debug)]
pub(super) struct KeeperLink {
    link: Link,
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

impl KeeperLink {
    /// The end that the keeper passed at the start.
    pub(super) fn inherited() -> Result<Self> {
        Ok(Self { link: Link::from_fd(parent::take(LINK_FD)?), queue: VecDeque::new() })
    }

    /// Says something, now or as soon as there is room, in the order of the calls.
    pub(super) fn say(&mut self, message: &ToKeeper, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = encode(message);
        if self.queue.is_empty() {
            match self.link.send(&bytes, fds) {
                Err(error) if is_later(&error) => {}
                other => return other,
            }
        }
        let fds: std::io::Result<Vec<OwnedFd>> =
            fds.iter().map(BorrowedFd::try_clone_to_owned).collect();
        let fds = fds.map_err(|error| Error::new("keep a descriptor for the keeper", error))?;
        self.queue.push_back((bytes, fds));
        Ok(())
    }

    /// Sends what waits, as far as there is room.
    pub(super) fn flush(&mut self) -> Result<()> {
        while let Some((bytes, fds)) = self.queue.front() {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match self.link.send(bytes, &borrowed) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(error) if is_later(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether something waits for room.
    pub(super) fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The next message; one of a type that this version does not know is passed over.
    pub(super) fn hear(&mut self) -> Result<Heard> {
        loop {
            match self.link.receive()? {
                Received::Packet { bytes, fds } => {
                    if let Ok(message) = decode(&bytes) {
                        return Ok(Heard::Message(message, fds));
                    }
                }
                Received::Empty => return Ok(Heard::Nothing),
                Received::Closed => return Ok(Heard::Gone),
            }
        }
    }
}

/// Whether the keeper has to hear something first. It does so at once, so there is no harm in being
/// woken for a link that can be written to all the while.
fn is_later(error: &Error) -> bool {
    link::is_full(error) || link::is_choked(error)
}

impl AsFd for KeeperLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}
