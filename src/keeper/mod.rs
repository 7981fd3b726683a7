//! The main process of the service: holds the fds, reaps, respawns the supervisor. No policy.
//!
//! It is the parent of every instance, and outlives every supervisor. All that it knows it was
//! told by a supervisor, or by the kernel. It says all of that to the next supervisor, and acts
//! for itself in two cases only: a supervisor that died or fell silent is replaced, and a stop
//! that no supervisor can carry out is carried out from the last wills.

mod process;
pub mod protocol;
mod service;
mod stop;
mod table;
#[cfg(test)]
mod tests;
mod upgrade;

use std::os::fd::OwnedFd;

use crate::sys::{self, cgroup, notify, parent};

/// How a keeper is started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Handed to each supervisor; the keeper does not read them.
    pub arguments: Vec<String>,
    /// `pmr run`: in the foreground, without a service manager.
    pub foreground: bool,
}

/// What is run as keeper and as supervisor: one binary, kept open since the start.
#[derive(Debug)]
struct Program {
    binary: OwnedFd,
    /// Arguments that make a supervisor of it.
    supervise: Vec<String>,
    /// Arguments that make a keeper of it, before the number of the fd to resume from.
    resume: Vec<String>,
}

impl Program {
    fn own() -> sys::Result<Self> {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Ok(Self {
            binary: parent::own_binary()?,
            supervise: words(&["supervise"]),
            resume: words(&["pmr", "keeper", "--resume"]),
        })
    }
}

/// Runs a keeper until the app is over, and returns the exit status of the service. The calling
/// process must have one thread, and becomes the keeper: it blocks signals, reaps any child, and
/// at the end kills whatever descends from it.
pub fn run(options: Options) -> u8 {
    let stored = if options.foreground { Ok(Vec::new()) } else { notify::take_stored() };
    if !options.foreground
        && let Err(error) = cgroup::enter_delegated()
    {
        // The supervisor finds what can be done without, and says so.
        process::say(&error.to_string());
    }
    let keeper = Program::own().and_then(|program| process::Keeper::new(options, program));
    ended(keeper.map(|mut keeper| {
        match stored {
            Ok(stored) => keeper.take_back(stored),
            Err(error) => process::say(&error.to_string()),
        }
        keeper
    }))
}

/// Goes on as the keeper whose state the inherited fd of this number holds: what
/// `pmr keeper --resume FD` does after an upgrade.
pub fn resume(fd: i32) -> u8 {
    ended(Program::own().and_then(|program| upgrade::resume(fd, program)))
}

fn ended(keeper: sys::Result<process::Keeper>) -> u8 {
    match keeper.and_then(process::Keeper::run) {
        Ok(code) => code,
        Err(error) => {
            process::say(&error.to_string());
            1
        }
    }
}
