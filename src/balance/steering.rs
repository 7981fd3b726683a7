//! The steering of one address: a group of listening sockets, the program that chooses among them
//! for each connection, and the table it chooses by.
//!
//! The program and its maps go on without a supervisor. The next one is given the maps and goes on
//! with them; where they are of another version it makes new ones, which take the place of the old
//! in the moment the program is attached.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::Timespec;

use super::program::{self, Method};
use super::table::{self, Indices};
use crate::sys::{Result, bpf, listen};

/// The two maps, by the names that a keeper of them uses.
pub const MAPS: [&str; 2] = ["table", "sockets"];

/// How often a socket is put that is still in another array, and how long is waited in between:
/// half a second, where the kernel needs one grace period of RCU.
const PUTS_MAX: u32 = 250;
const PUT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

/// What came to one socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections.
    pub taken: u64,
    /// Those among them that had waited in another socket.
    pub migrated: u64,
}

/// One address that is steered.
#[derive(Debug)]
pub struct Steering {
    control: OwnedFd,
    sockets: OwnedFd,
    table: bpf::Shared,
    indices: Indices,
}

impl Steering {
    /// Steers the group of `parking`, a listening socket of [`listen::found_group`]: it gets all
    /// connections until something is published. Takes the place of what steered the group before;
    /// `old` is the array of that, which may be held by somebody still.
    ///
    /// `EPERM` without `CAP_BPF`.
    pub fn create(
        method: Method,
        parking: BorrowedFd<'_>,
        old: Option<BorrowedFd<'_>>,
    ) -> Result<Self> {
        let control = bpf::shared_array(table::BYTES)?;
        let sockets = bpf::socket_array(table::SOCKETS)?;
        let table = bpf::Shared::map(control.as_fd(), table::BYTES)?;
        let steering = Self { control, sockets, table, indices: Indices::default() };
        steering.attach(method, parking)?;
        // A socket is in one array at a time.
        if let Some(old) = old {
            bpf::take_out_sockets(old, 0..=table::PARKING);
        }
        steering.put_when_free(table::PARKING, parking)?;
        Ok(steering)
    }

    /// Puts a socket that may be in the array of a program which was just replaced. Where nobody
    /// holds that array any more, as after the death of a keeper, the kernel frees it some
    /// milliseconds later by itself; it can be waited for by trying again only.
    fn put_when_free(&self, index: u16, socket: BorrowedFd<'_>) -> Result<()> {
        for _ in 0..PUTS_MAX {
            match bpf::put_socket(self.sockets.as_fd(), index, socket) {
                Err(error) if error.errno() == nix::libc::EBUSY => {}
                result => return result,
            }
            // A signal makes the pause shorter, no more.
            rustix::event::poll(&mut [], Some(&PUT_PAUSE)).unwrap_or_default();
        }
        bpf::put_socket(self.sockets.as_fd(), index, socket)
    }

    /// Goes on with the maps of an earlier supervisor, which are of [`table::VERSION`].
    pub fn adopt(control: OwnedFd, sockets: OwnedFd) -> Result<Self> {
        let table = bpf::Shared::map(control.as_fd(), table::BYTES)?;
        table.publish_word(table::PROBE, 0);
        Ok(Self { control, sockets, table, indices: Indices::default() })
    }

    /// Takes out what an earlier supervisor has put in and nobody has kept: it died before it could
    /// tell the keeper of it. The order never names such a socket, but to be put in again it must
    /// be out.
    pub fn forget_others(&self) {
        bpf::take_out_sockets(self.sockets.as_fd(), self.indices.free());
    }

    /// Chooses by another method from now on.
    pub fn attach(&self, method: Method, parking: BorrowedFd<'_>) -> Result<()> {
        use std::os::fd::AsRawFd as _;
        let (control, sockets) = (self.control.as_raw_fd(), self.sockets.as_raw_fd());
        let program = bpf::load_steering(&program::steering(method, control, sockets))?;
        bpf::attach_steering(parking, program.as_fd())
    }

    /// The maps, in the order of [`MAPS`]: whoever holds them can adopt.
    pub fn maps(&self) -> [BorrowedFd<'_>; 2] {
        [self.control.as_fd(), self.sockets.as_fd()]
    }

    /// Takes a listening socket of the group in, and says where. It gets no connection until it is
    /// published. `ENOSPC` where 512 are in.
    pub fn add(&mut self, socket: BorrowedFd<'_>) -> Result<u16> {
        let full = std::io::Error::from_raw_os_error(nix::libc::ENOSPC);
        let index = self.indices.take();
        let index = index.ok_or_else(|| crate::sys::Error::new("steer to a socket", full))?;
        self.count_from_zero(index);
        if let Err(error) = bpf::put_socket(self.sockets.as_fd(), index, socket) {
            self.indices.give_back(index);
            return Err(error);
        }
        Ok(index)
    }

    /// Marks an index as that of a socket that an earlier supervisor has added; says whether it
    /// was free.
    pub fn keep(&mut self, index: u16) -> bool {
        self.indices.keep(index)
    }

    /// Makes sure that a socket of an earlier supervisor listens, and stands at its index: that one
    /// may have died in the middle of [`Self::move_queue`].
    pub fn settle(&self, index: u16, socket: BorrowedFd<'_>) -> Result<()> {
        listen::start(socket)?;
        match bpf::put_socket(self.sockets.as_fd(), index, socket) {
            // It is there: a socket is in one array, at one place.
            Err(error) if error.errno() == nix::libc::EBUSY => Ok(()),
            result => result,
        }
    }

    /// Forgets a socket that is about to be closed, which takes it out of the array.
    pub fn remove(&mut self, index: u16) {
        self.indices.give_back(index);
    }

    /// Has connections go to these in turn, and to the parking socket where there are none: from
    /// the next segment on.
    pub fn publish(&self, order: &[u16]) {
        let flip = table::flip(self.table.load_word(table::CONTROL), order);
        for (at, index) in flip.entries {
            self.table.store_half(at, index);
        }
        self.table.publish_word(table::CONTROL, flip.control);
    }

    /// Has the next connection from `port` go to the socket at `index`, published or not; from
    /// another one no connection does any more.
    pub fn expect_probe(&self, port: u16, index: u16) {
        self.table.publish_word(table::PROBE, table::probe(port, index));
    }

    /// No connection is a probe any more.
    pub fn expect_no_probe(&self) {
        self.table.publish_word(table::PROBE, 0);
    }

    /// Counts anew what comes to a socket.
    pub fn count_from_zero(&self, index: u16) {
        for kind in [table::TAKEN, table::MIGRATED] {
            self.table.store(table::counter(kind, index), 0);
        }
    }

    /// Moves all who wait in a socket that is in the array to those that are published, and puts
    /// it back: the parking socket, or one whose instance does not accept, and stands still
    /// ([`listen::move_queue`]).
    pub fn move_queue(&self, index: u16, socket: BorrowedFd<'_>) -> Result<()> {
        listen::move_queue(socket)?;
        bpf::put_socket(self.sockets.as_fd(), index, socket)
    }

    /// What came to a socket since it was added.
    pub fn counters(&self, index: u16) -> Counters {
        Counters {
            taken: self.table.load(table::counter(table::TAKEN, index)),
            migrated: self.table.load(table::counter(table::MIGRATED, index)),
        }
    }
}

#[cfg(test)]
mod tests;
