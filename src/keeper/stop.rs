//! The stop without a supervisor, and the end.
//!
//! ```text
//! Serving ──Exit───────────────────────────────► Ending ──no child left──► over
//!    │                                              ▲
//!    └─stop, and no supervisor to do it─► Wills ────┘ nobody lives
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::Duration;

use super::process::{Keeper, say};
use super::table::{Entry, Outgoing};
use crate::sys::poll::{Interest, Poll};
use crate::sys::{clock, parent};

/// How long beyond the longest last will a supervisor has for a stop, and the kernel for a kill.
pub(super) const GRACE_MS: u64 = 10_000;

/// How long a supervisor that said `Exit` has for its own last words.
const LAST_WORDS_MS: u64 = 1_000;

/// How long a group may take to become empty after its last process was reaped.
const REMOVAL_MS: u64 = 1_000;

/// A stop that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Stop {
    /// When.
    pub(super) asked_at: u64,
    /// Without waiting for a drain.
    pub(super) at_once: bool,
    /// A supervisor has until then.
    #[serde(default)]
    pub(super) until: u64,
}

impl Stop {
    /// Gives the time that the living instances have been promised. It gets no shorter when they
    /// end: then the supervisor is about to say so.
    fn promise(&mut self, longest_timeout_ms: u64) {
        let time = longest_timeout_ms.saturating_add(GRACE_MS);
        self.until = self.until.max(self.asked_at.saturating_add(time));
    }
}

/// What the keeper is doing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is a supervisor, or one is to be started.
    Serving {
        /// When, if there is none.
        start_at: u64,
    },
    /// The instances are stopped by their last wills.
    Wills {
        /// Since when.
        since: u64,
        /// Generations that had their time and were killed.
        killed: BTreeSet<u64>,
    },
    /// What is left is killed.
    Ending {
        /// Exit status of the service.
        code: u8,
        /// Since when.
        since: u64,
    },
}

impl Keeper {
    pub(super) fn ask_to_stop(&mut self, at_once: bool, now: u64) {
        let known = self.stop;
        let stop = self.stop.get_or_insert(Stop { asked_at: now, at_once, until: now });
        stop.at_once |= at_once;
        if known != Some(*stop) {
            self.push(Outgoing::Stop);
        }
        if let Phase::Wills { since, .. } = &mut self.phase
            && at_once
        {
            *since = 0;
        }
    }

    /// When a stop is taken out of the hands of a supervisor that does not get it done.
    fn takeover_at(&self) -> Option<u64> {
        let stop = self.stop.filter(|_| matches!(self.phase, Phase::Serving { .. }))?;
        Some(stop.until)
    }

    pub(super) fn turn_stop(&mut self, now: u64) {
        let longest = self.table.longest_timeout_ms();
        if let Some(stop) = &mut self.stop {
            stop.promise(longest);
        }
        if self.takeover_at().is_some_and(|at| self.deaths.too_many() || now >= at) {
            self.enter_wills(now);
        }
        if matches!(self.phase, Phase::Wills { .. }) {
            self.carry_out_wills(now);
        }
        if let Phase::Ending { since, .. } = self.phase {
            self.sweep(since, now);
        }
    }

    pub(super) fn stop_deadline(&self) -> Option<u64> {
        match &self.phase {
            Phase::Serving { .. } => self.takeover_at(),
            Phase::Wills { since, killed } => {
                let spared = self.table.living().filter(|one| !killed.contains(&generation(one)));
                let next = spared.map(|one| one.child.will.timeout_ms).min();
                let last = self.table.longest_timeout_ms().saturating_add(GRACE_MS);
                Some(since.saturating_add(next.unwrap_or(last)))
            }
            Phase::Ending { since, .. } => {
                let waits = self.supervisor.as_ref().is_some_and(|one| !one.killed);
                Some(since.saturating_add(if waits { LAST_WORDS_MS } else { GRACE_MS }))
            }
        }
    }

    fn enter_wills(&mut self, now: u64) {
        say("no supervisor gets the stop done; carrying out the last wills");
        if let Some(supervisor) = &mut self.supervisor {
            // An instance that is being born now was never let go.
            supervisor.link = None;
            supervisor.kill();
        }
        self.announce_wills();
        let since = if self.stop.is_some_and(|stop| stop.at_once) { 0 } else { now };
        self.phase = Phase::Wills { since, killed: BTreeSet::new() };
        for entry in self.table.living() {
            for signo in [entry.child.will.signal, libc::SIGCONT] {
                ignore_gone(parent::signal(&entry.pidfd, signo));
            }
        }
    }

    fn carry_out_wills(&mut self, now: u64) {
        let Phase::Wills { since, killed } = &mut self.phase else { return };
        let waited = now.saturating_sub(*since);
        for entry in self.table.living() {
            if waited >= entry.child.will.timeout_ms && killed.insert(generation(entry)) {
                kill(entry);
            }
        }
        let longest = self.table.longest_timeout_ms().saturating_add(GRACE_MS);
        if self.table.living().next().is_none() || waited >= longest {
            self.enter_ending(0, now);
        }
    }

    pub(super) fn enter_ending(&mut self, code: u8, now: u64) {
        self.phase = Phase::Ending { code, since: now };
        self.table.living().for_each(kill);
    }

    /// Kills what descends from the keeper. What a killed process leaves behind becomes a child of
    /// the keeper in its turn, before its SIGCHLD: so this is done at each wake.
    fn sweep(&mut self, since: u64, now: u64) {
        let mut speaking = None;
        if let Some(supervisor) = &mut self.supervisor {
            if !supervisor.killed && now.saturating_sub(since) >= LAST_WORDS_MS {
                supervisor.kill();
            }
            speaking = (!supervisor.killed).then_some(supervisor.pid);
        }
        match parent::children() {
            Ok(pids) => pids
                .into_iter()
                .filter(|&pid| speaking != Some(pid))
                .for_each(|pid| ignore_gone(parent::kill(pid))),
            Err(error) => say(&error.to_string()),
        }
    }

    /// The exit status, once nobody is left.
    pub(super) fn over(&self, now: u64) -> Option<u8> {
        let Phase::Ending { code, since } = self.phase else { return None };
        if self.childless {
            return Some(code);
        }
        let late = now.saturating_sub(since) >= GRACE_MS;
        if late {
            say("some processes could not be killed; leaving them behind");
        }
        late.then_some(code)
    }
}

fn generation(entry: &Entry) -> u64 {
    entry.child.generation
}

/// Kills a living instance: its group where it has one, else itself and the process group of it.
fn kill(entry: &Entry) {
    if let Some(cgroup) = &entry.child.will.cgroup {
        match fs::write(Path::new(cgroup).join("cgroup.kill"), "1") {
            Ok(()) => return,
            Err(error) => say(&format!("cannot kill {cgroup}: {error}")),
        }
    }
    ignore_gone(parent::kill_group(entry.child.pid));
    ignore_gone(parent::signal(&entry.pidfd, libc::SIGKILL));
}

fn ignore_gone(result: crate::sys::Result<()>) {
    if let Err(error) = result
        && error.errno() != libc::ESRCH
    {
        say(&error.to_string());
    }
}

/// What to remove at the very end.
#[derive(Debug, Default)]
pub(super) struct Removal {
    pub(super) files: Vec<String>,
    pub(super) directories: Vec<String>,
}

impl Removal {
    pub(super) fn perform(&self) {
        for file in &self.files {
            complain(file, fs::remove_file(file));
        }
        let deadline = clock::now().saturating_add(REMOVAL_MS);
        for directory in &self.directories {
            empty(Path::new(directory));
            while let Err(error) = fs::remove_dir(directory) {
                let busy = error.kind() == io::ErrorKind::ResourceBusy;
                if !busy || clock::now() >= deadline || !has_changed(Path::new(directory)) {
                    complain(directory, Err(error));
                    break;
                }
            }
        }
    }
}

/// Removes what a supervisor that died left in a directory of its own: the groups of instances in
/// the app's, their notify sockets in the runtime's. Regular files are never touched, so a
/// directory that holds one stays.
fn empty(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            empty(&entry.path());
            // One that is still busy is complained of with the directory it is in.
            fs::remove_dir(entry.path()).unwrap_or_default();
        } else if kind.is_socket() {
            fs::remove_file(entry.path()).unwrap_or_default();
        }
    }
}

fn complain(path: &str, result: io::Result<()>) {
    if let Err(error) = result
        && error.kind() != io::ErrorKind::NotFound
    {
        say(&format!("cannot remove {path}: {error}"));
    }
}

/// Waits a moment for a busy group to become empty: the kernel takes a process out of its group
/// a little after it was reaped. False where that cannot be: another kind of directory, or the
/// keeper's own group.
fn has_changed(group: &Path) -> bool {
    let own = std::process::id().to_string();
    let Ok(members) = fs::read_to_string(group.join("cgroup.procs")) else { return false };
    let path = group.join("cgroup.events");
    let (Ok(mut poll), Ok(mut events)) = (Poll::new(), fs::File::open(path)) else { return false };
    // The kernel reports a change since the last read.
    let read = io::read_to_string(&mut events).is_ok();
    !members.lines().any(|pid| pid == own)
        && read
        && poll.add(&events, 0, Interest::PRIORITY).is_ok()
        && poll.wait(Some(Duration::from_millis(50)), &mut Vec::new()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_has_the_longest_time_that_was_promised_also_when_all_have_ended() {
        let mut stop = Stop { asked_at: 1000, at_once: false, until: 1000 };
        stop.promise(0);
        assert_eq!(stop.until, 1000 + GRACE_MS);
        stop.promise(120_000);
        stop.promise(5000);
        stop.promise(0);
        assert_eq!(stop.until, 121_000 + GRACE_MS);
    }
}
