//! What a supervisor records before it acts: the fleet, in the state file that the keeper holds.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::balance::node::Hub;
pub(super) use crate::keeper::protocol::STATE as FD_NAME;
use crate::policy::{Fleet, VERSION};
use crate::sys::statefile::{StateError, StateFile};

/// Everything in the state file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// What the core remembers.
    pub(super) fleet: Fleet,
    /// clone3 was denied on this machine.
    #[serde(default)]
    pub(super) without_clone3: bool,
    /// The last release that was numbered.
    pub(super) last_release: u64,
    /// What all workers of Node are told.
    #[serde(default)]
    pub(super) hub: Hub,
}

#[derive(Serialize)]
struct Remember<'a> {
    fleet: &'a Fleet,
    without_clone3: bool,
    last_release: u64,
    hub: &'a Hub,
}

/// The state file, and what it holds.
#[derive(Debug)]
pub(super) struct Record {
    file: StateFile,
    written: Vec<u8>,
}

impl Record {
    /// A new one, for the keeper to hold.
    pub(super) fn create() -> Result<(Self, OwnedFd), StateError> {
        let file = StateFile::create("pmr-state")?;
        let fd = file.duplicate()?;
        Ok((Self { file, written: Vec::new() }, fd))
    }

    /// One that the keeper held, and what it holds. The record is `None` where the file is not of
    /// our kind; what is remembered where it is torn or from another version.
    pub(super) fn open(fd: OwnedFd) -> (Option<Self>, Result<Remembered, String>) {
        let file = match StateFile::from_fd(fd) {
            Ok(file) => file,
            Err(error) => return (None, Err(error.to_string())),
        };
        let remembered = match file.read() {
            Err(error) => Err(error.to_string()),
            Ok(stored) if stored.version != VERSION => {
                Err(format!("the state has version {}, not {VERSION}", stored.version))
            }
            Ok(stored) => serde_json::from_slice(&stored.payload)
                .map_err(|error| format!("the state cannot be read: {error}")),
        };
        (Some(Self { file, written: Vec::new() }), remembered)
    }

    /// Another fd of the state file.
    pub(super) fn duplicate(&self) -> Result<OwnedFd, StateError> {
        Ok(self.file.duplicate()?)
    }

    /// Writes what has changed.
    pub(super) fn write(
        &mut self,
        fleet: &Fleet,
        without_clone3: bool,
        last_release: u64,
        hub: &Hub,
    ) -> Result<(), StateError> {
        let remember = Remember { fleet, without_clone3, last_release, hub };
        let bytes = serde_json::to_vec(&remember)
            .map_err(|error| crate::sys::Error::new("word the state", error))?;
        if bytes != self.written {
            self.file.write(VERSION, &bytes)?;
            self.written = bytes;
        }
        Ok(())
    }
}
