//! What the keeper and the service manager say to each other: pings, what the supervisor has to
//! tell, and copies of listening sockets, which the manager passes on to the next keeper.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use super::process::{Keeper, say};
use super::protocol::{self, PARKED};
use super::stop::GRACE_MS;
use super::table::Violation;
use crate::sys;
use crate::sys::notify::Notice;

impl Keeper {
    /// Takes what the service manager has kept of the keeper before, to be called before anything
    /// else is opened. What of it is still of use, the supervisor knows.
    pub(super) fn take_back(&mut self, stored: Vec<(String, OwnedFd)>) {
        for (fd_name, fd) in stored {
            let name = format!("{PARKED}{fd_name}");
            if let Err(Violation(why)) = self.table.park(name, fd_name.clone(), fd) {
                say(&format!("an fd from the service manager is refused: {why}"));
                self.notify(Notice::Remove(fd_name));
            }
        }
    }

    /// Says that the keeper is alive, as often as the service manager wants to hear it.
    pub(super) fn ping(&mut self, now: u64) {
        if let Some((every, at)) = self.ping
            && now >= at
        {
            self.ping = Some((every, now.saturating_add(every)));
            self.notify(Notice::Watchdog);
        }
    }

    /// Tells the service manager what a supervisor wants it to know.
    pub(super) fn relay(&mut self, notice: protocol::Notice) {
        self.ready |= notice == protocol::Notice::Ready;
        self.notify(match notice {
            protocol::Notice::Ready => Notice::Ready,
            protocol::Notice::Reloading => Notice::Reloading,
            protocol::Notice::Stopping => Notice::Stopping,
            protocol::Notice::Status(status) => Notice::Status(status),
            protocol::Notice::ExtendTimeout(ms) => Notice::ExtendTimeout(Duration::from_millis(ms)),
        });
    }

    /// The stop is in the keeper's hands: no supervisor extends its time any more.
    pub(super) fn announce_wills(&mut self) {
        self.notify(Notice::Stopping);
        let text = "stopping: no supervisor gets it done, the last wills are carried out";
        self.notify(Notice::Status(text.to_owned()));
        // The wills, and the end of those that they do not end.
        let longest = self.table.longest_timeout_ms();
        let time = longest.saturating_add(GRACE_MS.saturating_mul(3));
        self.notify(Notice::ExtendTimeout(Duration::from_millis(time)));
    }

    pub(super) fn park(
        &mut self,
        name: String,
        fd_name: String,
        fd: OwnedFd,
    ) -> Result<(), Violation> {
        let copy = fd.try_clone();
        // Another socket of the same name: the copy is of the one before.
        let before = self.table.drop_fd(&name);
        self.table.park(name, fd_name.clone(), fd)?;
        if let Some(before) = before {
            self.notify(Notice::Remove(before));
        }
        match copy {
            Ok(copy) => self.notify(Notice::Store(fd_name, copy)),
            Err(error) => say(&format!("cannot give {fd_name} to the service manager: {error}")),
        }
        Ok(())
    }

    pub(super) fn drop_fd(&mut self, name: &str) {
        if let Some(fd_name) = self.table.drop_fd(name) {
            self.notify(Notice::Remove(fd_name));
        }
    }

    /// Another binary goes on: what was on its way to the service manager is not any more. Copies
    /// that it has already it does not take again.
    pub(super) fn park_again(&mut self) {
        let copies: Vec<(String, std::io::Result<OwnedFd>)> = self
            .table
            .parked()
            .map(|(name, fd)| (name.clone(), fd.as_fd().try_clone_to_owned()))
            .collect();
        for (fd_name, copy) in copies {
            match copy {
                Ok(copy) => self.notify(Notice::Store(fd_name, copy)),
                Err(error) => say(&format!("cannot give {fd_name} to the manager: {error}")),
            }
        }
    }

    pub(super) fn notify(&mut self, notice: Notice) {
        complain(self.notifier.say(notice));
    }

    /// What the service manager had no room for is tried again at each wake: heartbeats make them
    /// often.
    pub(super) fn flush_notices(&mut self) {
        complain(self.notifier.flush());
    }
}

fn complain(result: sys::Result<()>) {
    if let Err(error) = result {
        say(&error.to_string());
    }
}
