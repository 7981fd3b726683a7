//! Whether instances accept from the sockets that are theirs.
//!
//! An instance that was given a socket which listens already says nothing when it begins to accept.
//! So a connection of pmr's own is sent to that socket, past the order: once it has left the queue,
//! the instance accepts. Nobody else is given the socket before.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::balance::steering::Steering;
use crate::sys::probe::Connection;
use crate::sys::{Error, listen};

/// How long a connection to the own machine may take. What takes longer is kept away on purpose.
const CONNECT_MS_MAX: u64 = 1000;

/// What is known of each socket that was asked, by its index.
#[derive(Debug, Default)]
pub(super) struct Proofs(BTreeMap<u16, Proof>);

#[derive(Debug)]
enum Proof {
    /// The connection is being made: the program in the kernel expects it. One at a time.
    Connecting { connection: Connection, until_ms: u64 },
    /// It is made, and closed: it waits to be accepted.
    Waiting,
    /// It was accepted.
    Given,
}

impl Proofs {
    /// Looks at the socket at `index`; says whether it is accepted from. An error is why that
    /// cannot be found out.
    pub(super) fn look(
        &mut self,
        now: u64,
        (index, socket): (u16, &OwnedFd),
        parking: BorrowedFd<'_>,
        steering: &Steering,
    ) -> Result<bool, Error> {
        match self.0.get(&index) {
            Some(Proof::Given) => return Ok(true),
            Some(Proof::Waiting) => return self.look_at_queue(index, socket, steering),
            None if self.is_connecting() => return Ok(false),
            None => {
                let connection = Connection::to(parking)?;
                steering.count_from_zero(index);
                steering.expect_probe(connection.port, index);
                let begun = connection.begin();
                let until_ms = now.saturating_add(CONNECT_MS_MAX);
                self.0.insert(index, Proof::Connecting { connection, until_ms });
                self.fails_with(index, steering, begun)?;
            }
            Some(Proof::Connecting { .. }) => {}
        }
        let Some(Proof::Connecting { connection, until_ms }) = self.0.get(&index) else {
            return Ok(false);
        };
        let made = connection.is_made().and_then(|made| {
            let late = std::io::Error::from_raw_os_error(nix::libc::ETIMEDOUT);
            if made || now < *until_ms { Ok(made) } else { Err(Error::new("connect", late)) }
        });
        if self.fails_with(index, steering, made)? {
            steering.expect_no_probe();
            self.0.insert(index, Proof::Waiting);
        }
        Ok(false)
    }

    fn look_at_queue(
        &mut self,
        index: u16,
        socket: &OwnedFd,
        steering: &Steering,
    ) -> Result<bool, Error> {
        if steering.counters(index).taken == 0 {
            // It went elsewhere: the socket was not in the array at that moment.
            self.0.remove(&index);
            return Ok(false);
        }
        if listen::queue(socket)?.length > 0 {
            return Ok(false);
        }
        // It was no client.
        steering.count_from_zero(index);
        self.0.insert(index, Proof::Given);
        Ok(true)
    }

    fn is_connecting(&self) -> bool {
        self.0.values().any(|proof| matches!(proof, Proof::Connecting { .. }))
    }

    /// The same result; with an error the socket is as if it had not been asked.
    fn fails_with<T>(
        &mut self,
        index: u16,
        steering: &Steering,
        result: Result<T, Error>,
    ) -> Result<T, Error> {
        if result.is_err() {
            self.forget(index, steering);
        }
        result
    }

    /// The socket is gone.
    pub(super) fn forget(&mut self, index: u16, steering: &Steering) {
        if let Some(Proof::Connecting { .. }) = self.0.remove(&index) {
            steering.expect_no_probe();
        }
    }
}
