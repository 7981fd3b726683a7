//! Going on as another binary: same process, same children, same fds.
//!
//! All that the keeper knows goes into a sealed memfd, whose number the new binary is given. The
//! supervisor goes over too, and is ended there; so an execve that fails leaves everything as it
//! was. The binary before is kept until a supervisor of the new one has completed an adopt.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::process::{Keeper, Supervisor, say};
use super::protocol::{Child, Exited, UpgradeOutcome};
use super::stop::{Removal, Stop};
use super::table::{Entry, Stored};
use super::{Options, Program};
use crate::sys::link::Link;
use crate::sys::statefile::{read_sealed, sealed};
use crate::sys::{self, Error, clock, parent};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Most bytes of the saved keeper: a thousand instances with the longest paths.
const SAVED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A keeper, with fds as their numbers. Read by other versions: fields are only added, with
/// defaults.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    version: String,
    arguments: Vec<String>,
    foreground: bool,
    started_at_ms: u64,
    #[serde(default)]
    file_limit: Option<(u64, u64)>,
    deaths_total: u32,
    #[serde(default)]
    ready: bool,
    children: Vec<SavedChild>,
    fds: Vec<SavedFd>,
    files: Vec<String>,
    directories: Vec<String>,
    stop: Option<Stop>,
    supervisor: Option<SavedSupervisor>,
    /// The binary to go back to.
    previous: Option<i32>,
    /// This is the way back.
    rolled_back: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedChild {
    child: Child,
    exited: Option<Exited>,
    pidfd: i32,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedFd {
    name: String,
    generation: Option<u64>,
    fd: i32,
    #[serde(default)]
    parked: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedSupervisor {
    pid: u32,
    pidfd: i32,
    link: Option<i32>,
}

impl Keeper {
    /// Goes on as `binary`. Comes back only where that failed, with nothing changed but the
    /// outcome, which the next supervisor is told.
    pub(super) fn perform_upgrade(&mut self, path: &str, binary: &OwnedFd) {
        say(&format!("upgrade: going on as {path}"));
        let previous = Some(self.program.binary.as_fd());
        let error = self.exec(binary.as_fd(), previous);
        say(&format!("upgrade: {error}; going on as before"));
        self.upgrade = Some(rolled_back());
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.dismissed = true;
            supervisor.kill();
        }
    }

    /// Goes back to the binary before an upgrade, if there is one.
    pub(super) fn roll_back(&mut self) {
        let Some(previous) = self.previous.take() else { return };
        say("upgrade: no supervisor completed its adopt; going back");
        let error = self.exec(previous.as_fd(), None);
        say(&format!("upgrade: {error}; staying"));
    }

    fn exec(&self, binary: BorrowedFd<'_>, previous: Option<BorrowedFd<'_>>) -> Error {
        let saved = match serde_json::to_vec(&self.saved(previous)) {
            Ok(saved) => saved,
            Err(error) => return Error::new("save the keeper", error),
        };
        let mut kept: Vec<BorrowedFd<'_>> = previous.into_iter().collect();
        kept.extend(self.table.children.values().map(|entry| entry.pidfd.as_fd()));
        kept.extend(self.table.fds.values().map(|stored| stored.fd.as_fd()));
        if let Some(supervisor) = &self.supervisor {
            kept.push(supervisor.pidfd.as_fd());
            kept.extend(supervisor.link.as_ref().map(AsFd::as_fd));
        }
        exec(binary, &self.program.resume, &saved, &kept)
    }

    fn saved(&self, previous: Option<BorrowedFd<'_>>) -> Saved {
        Saved {
            version: VERSION.to_owned(),
            arguments: self.options.arguments.clone(),
            foreground: self.options.foreground,
            started_at_ms: self.started_at,
            file_limit: self.file_limit,
            deaths_total: self.deaths.total,
            ready: self.ready,
            children: self.table.children.values().map(SavedChild::of).collect(),
            fds: self.table.fds.iter().map(|(name, stored)| SavedFd::of(name, stored)).collect(),
            files: self.removal.files.clone(),
            directories: self.removal.directories.clone(),
            stop: self.stop,
            supervisor: self.supervisor.as_ref().map(|one| SavedSupervisor {
                pid: one.pid,
                pidfd: one.pidfd.as_raw_fd(),
                link: one.link.as_ref().map(|link| link.as_fd().as_raw_fd()),
            }),
            previous: previous.map(|fd| fd.as_raw_fd()),
            rolled_back: previous.is_none(),
        }
    }
}

impl Saved {
    fn options(&self) -> Options {
        Options { arguments: self.arguments.clone(), foreground: self.foreground }
    }
}

impl SavedChild {
    fn of(entry: &Entry) -> Self {
        let Entry { child, pidfd, exited } = entry;
        Self { child: child.clone(), exited: *exited, pidfd: pidfd.as_raw_fd() }
    }
}

impl SavedFd {
    fn of(name: &str, stored: &Stored) -> Self {
        let Stored { generation, fd, parked } = stored;
        let (generation, fd, parked) = (*generation, fd.as_raw_fd(), parked.clone());
        Self { name: name.to_owned(), generation, fd, parked }
    }
}

fn rolled_back() -> UpgradeOutcome {
    UpgradeOutcome { from: VERSION.to_owned(), to: VERSION.to_owned(), rolled_back: true }
}

/// Executes a keeper with what was saved and the fds that it names.
fn exec(binary: BorrowedFd<'_>, resume: &[String], saved: &[u8], kept: &[BorrowedFd<'_>]) -> Error {
    let memfd = match sealed("pmr-keeper", saved) {
        Ok(memfd) => memfd,
        Err(error) => return error,
    };
    let inherit = |inherited| {
        kept.iter().chain([&memfd.as_fd()]).try_for_each(|fd| parent::set_inherited(fd, inherited))
    };
    let mut arguments = resume.to_vec();
    arguments.push(memfd.as_raw_fd().to_string());
    let error = match inherit(true) {
        Ok(()) => parent::replace(binary, &arguments),
        Err(error) => error,
    };
    // Still here: none of these may leak into a child.
    match inherit(false) {
        Ok(()) => error,
        Err(other) => other,
    }
}

/// The keeper that was saved into the inherited fd of this number.
pub(super) fn resume(number: i32, program: Program) -> sys::Result<Keeper> {
    let doing = "resume the keeper";
    let memfd = parent::take(number)?;
    let bytes = read_sealed(&memfd, SAVED_BYTES_MAX)
        .map_err(|e| Error::new(doing, std::io::Error::other(e)))?;
    let arguments = program.resume.clone();
    let saved = serde_json::from_slice::<Saved>(&bytes).map_err(|e| Error::new(doing, e));
    match saved.and_then(|saved| Ok((Keeper::new(saved.options(), program)?, saved))) {
        Ok((keeper, saved)) => resumed(keeper, saved),
        Err(error) => {
            let Some((previous, bytes)) = way_back(&bytes) else { return Err(error) };
            say(&format!("upgrade: {error}; going back"));
            let binary = parent::take(previous)?;
            // All other fds are as the keeper before left them: open over an execve.
            Err(exec(binary.as_fd(), &arguments, &bytes, &[]))
        }
    }
}

/// From a keeper that this version cannot read: the binary to go back to, and what to tell it.
fn way_back(bytes: &[u8]) -> Option<(i32, Vec<u8>)> {
    let mut saved: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let fields = saved.as_object_mut()?;
    let previous = i32::try_from(fields.get("previous")?.as_i64()?).ok()?;
    fields.insert("previous".to_owned(), serde_json::Value::Null);
    fields.insert("rolled_back".to_owned(), true.into());
    Some((previous, serde_json::to_vec(&saved).ok()?))
}

fn resumed(mut keeper: Keeper, saved: Saved) -> sys::Result<Keeper> {
    keeper.started_at = saved.started_at_ms;
    keeper.file_limit = saved.file_limit.or(keeper.file_limit);
    keeper.deaths.total = saved.deaths_total;
    keeper.stop = saved.stop;
    keeper.removal = Removal { files: saved.files, directories: saved.directories };
    for SavedChild { child, exited, pidfd } in saved.children {
        let entry = Entry { pidfd: parent::take(pidfd)?, exited, child };
        keeper.table.children.insert(entry.child.generation, entry);
    }
    for SavedFd { name, generation, fd, parked } in saved.fds {
        keeper.table.fds.insert(name, Stored { generation, fd: parent::take(fd)?, parked });
    }
    keeper.ready = saved.ready;
    keeper.park_again();
    keeper.previous = saved.previous.map(parent::take).transpose()?;
    keeper.upgrade = Some(if saved.rolled_back {
        rolled_back()
    } else {
        UpgradeOutcome { from: saved.version, to: VERSION.to_owned(), rolled_back: false }
    });
    if let Some(SavedSupervisor { pid, pidfd, link }) = saved.supervisor {
        let link = link.map(parent::take).transpose()?.map(Link::from_fd);
        keeper.dismiss(Supervisor::new(pid, parent::take(pidfd)?, link, clock::now()));
    }
    Ok(keeper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_that_cannot_be_read_still_says_the_way_back() {
        let strange = br#"{"version":"9","children":{"new":"shape"},"previous":17,"more":[1]}"#;
        let (binary, bytes) = way_back(strange).unwrap();
        assert_eq!(binary, 17);
        let told: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(told["rolled_back"], true);
        assert_eq!(told["previous"], serde_json::Value::Null);
        assert_eq!(told["children"]["new"], "shape");
        for nothing in [&b""[..], b"[]", b"{}", br#"{"previous":null}"#, br#"{"previous":1e99}"#] {
            assert!(way_back(nothing).is_none());
        }
    }
}
