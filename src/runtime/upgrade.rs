//! Going on with another binary: the new one is checked before the keeper is asked to become it.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{MemfdFlags, Mode, OFlags};

use crate::control::protocol::{Fault, FaultKind};
use crate::control::server::Reply;
use crate::keeper::protocol::ToKeeper;
use crate::policy::Outcome;
use crate::sys::poll::Interest;
use crate::sys::{Error, clock, process};

use super::Runtime;
use super::record::Record;
use super::release::{Release, ReleaseError};
use super::sources::Source;

/// How long a new binary may take for its check.
const CHECK_TIMEOUT_MS: u64 = 10_000;

/// Most bytes of what a failed check said that are passed on.
const REPORT_BYTES_MAX: u64 = 4096;

/// What a binary says that has passed its check: any other program may end with status 0 too.
const PASSED: &str = "pmr can go on from the running state";

/// How the kernel shows the memfd of a release.
const RELEASE_LINK: &str = "/memfd:pmr-release";

/// A check that runs.
#[derive(Debug)]
pub(super) struct Check {
    client: u64,
    path: PathBuf,
    binary: OwnedFd,
    child: Child,
    pidfd: OwnedFd,
    report: File,
    deadline_ms: u64,
}

impl Check {
    /// When the check has taken too long.
    pub(super) fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }
}

/// What `pmr preflight KEEPER-PID` does: whether this binary can go on from the state on its stdin
/// and from the releases that the keeper holds. Says so on stderr, or why not and ends with
/// status 1.
pub fn preflight(keeper_pid: u32) -> u8 {
    let state = std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| error.to_string());
    match state.and_then(|state| check(state, keeper_pid)) {
        Ok(()) => {
            super::say_to_stderr(PASSED);
            0
        }
        Err(why) => {
            super::say_to_stderr(&format!("cannot go on from the running state: {why}"));
            1
        }
    }
}

/// Why this binary cannot go on from that state and those releases, where it cannot.
fn check(state: OwnedFd, keeper_pid: u32) -> Result<(), String> {
    let (_, remembered) = Record::open(state);
    remembered?;
    read_releases(keeper_pid).map_err(|error| error.to_string())
}

/// Reads every release in the keeper's hands.
fn read_releases(keeper_pid: u32) -> Result<(), ReleaseError> {
    let directory = Path::new("/proc").join(keeper_pid.to_string()).join("fd");
    let failed = |error| Error::at("read", &directory, error);
    for entry in std::fs::read_dir(&directory).map_err(failed)?.flatten() {
        let name = std::fs::read_link(entry.path()).unwrap_or_default();
        if name.to_string_lossy().starts_with(RELEASE_LINK) {
            let file = File::open(entry.path()).map_err(failed)?;
            Release::unseal(&OwnedFd::from(file))?;
        }
    }
    Ok(())
}

impl Runtime {
    /// Checks the binary that is now where the keeper's own was.
    pub(super) fn begin_upgrade(&mut self, client: u64) {
        if self.control.check.is_some() {
            let fault = Fault::new(FaultKind::Busy, "an upgrade is running");
            return self.reply(client, Reply::Fault(fault));
        }
        match self.start_check(client) {
            Ok(check) => {
                self.watch(check.pidfd.as_fd(), Source::Check, Interest::READABLE);
                self.control.check = Some(check);
            }
            Err(error) => {
                let fault = Fault::new(FaultKind::Failed, format!("nothing was changed: {error}"));
                self.reply(client, Reply::Fault(fault));
            }
        }
    }

    fn start_check(&self, client: u64) -> Result<Check, Error> {
        let path = binary_path(self.hello.keeper_pid)?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let binary = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|errno| Error::at("open", &path, errno))?;
        let state = self.record.duplicate().map_err(|error| {
            Error::new("pass the state on", std::io::Error::other(error.to_string()))
        })?;
        let report = rustix::fs::memfd_create("pmr-check", MemfdFlags::CLOEXEC)
            .map_err(|errno| Error::new("make a file for the report", errno))?;
        let report = File::from(report);
        let said = report.try_clone().map_err(|error| Error::new("open the report", error))?;
        // By its fd: what is checked is what will be run, whatever happens to the path meanwhile.
        let child = Command::new(format!("/proc/self/fd/{}", binary.as_raw_fd()))
            .args(["preflight", &self.hello.keeper_pid.to_string()])
            .stdin(Stdio::from(state))
            .stdout(Stdio::null())
            .stderr(Stdio::from(said))
            .spawn()
            .map_err(|error| Error::at("execute", &path, error))?;
        let pidfd = process::pidfd_open(child.id())?;
        let deadline_ms = clock::now().saturating_add(CHECK_TIMEOUT_MS);
        Ok(Check { client, path, binary, child, pidfd, report, deadline_ms })
    }

    /// The check has ended.
    pub(super) fn hear_check(&mut self) {
        let Some(mut check) = self.control.check.take() else { return };
        let status = match check.child.try_wait() {
            Ok(None) => {
                self.control.check = Some(check);
                return;
            }
            Ok(Some(status)) => status,
            Err(error) => return self.refuse_upgrade(&check, &error.to_string()),
        };
        let said = report(&mut check.report);
        if !status.success() {
            let why = if said.is_empty() { status.to_string() } else { said };
            return self.refuse_upgrade(&check, &why);
        }
        if !said.contains(PASSED) {
            return self.refuse_upgrade(&check, "it does not answer as pmr does");
        }
        self.forget_fd(&check.pidfd);
        self.reply(check.client, Reply::Outcome(Outcome::Done));
        // The answer is on its way before the keeper replaces this supervisor.
        self.flush_clients();
        let path = check.path.display().to_string();
        tracing::info!(PMR_APP = self.app_name(), "{} goes on as {path}", self.app_name());
        self.print_log();
        self.output.flush();
        let upgrade = ToKeeper::Upgrade { path };
        if let Err(error) = self.keeper.say(&upgrade, &[check.binary.as_fd()]) {
            self.broken.get_or_insert(error);
        }
    }

    fn refuse_upgrade(&mut self, check: &Check, why: &str) {
        self.forget_fd(&check.pidfd);
        let path = check.path.display();
        let message = format!("{path} failed its check, nothing was changed: {why}");
        self.warn(&message);
        self.reply(check.client, Reply::Fault(Fault::new(FaultKind::Failed, message)));
    }

    /// Ends a check that takes too long.
    pub(super) fn check_time(&mut self, now: u64) {
        let late = self.control.check.as_ref().is_some_and(|check| check.deadline_ms <= now);
        if late && let Some(mut check) = self.control.check.take() {
            let ended = check.child.kill().and_then(|()| check.child.wait());
            let why = ended.map_or_else(|error| error.to_string(), |_| "it hangs".to_owned());
            self.refuse_upgrade(&check, &why);
        }
    }
}

/// Where the keeper's binary was started from; the kernel marks a path whose file was replaced.
fn binary_path(keeper_pid: u32) -> Result<PathBuf, Error> {
    let link = Path::new("/proc").join(keeper_pid.to_string()).join("exe");
    let path = std::fs::read_link(&link).map_err(|error| Error::at("read", &link, error))?;
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or_else(|| path.clone(), PathBuf::from))
}

fn report(file: &mut File) -> String {
    let mut text = Vec::new();
    let read = file.rewind().and_then(|()| file.take(REPORT_BYTES_MAX).read_to_end(&mut text));
    match read {
        Ok(_) => String::from_utf8_lossy(&text).trim().replace('\n', "; "),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::VERSION;
    use crate::sys::statefile::StateFile;

    #[test]
    fn the_state_of_a_newer_pmr_is_refused_before_anything_changes() {
        // What a downgrade meets.
        let mut file = StateFile::create("pmr-test-newer").unwrap();
        let newer = VERSION.checked_add(1).unwrap();
        file.write(newer, b"{}").unwrap();
        let why = check(file.duplicate().unwrap(), 0).unwrap_err();
        assert_eq!(why, format!("the state has version {newer}, not {VERSION}"));
        file.write(VERSION, b"{}").unwrap();
        let why = check(file.duplicate().unwrap(), 0).unwrap_err();
        assert!(why.contains("cannot be read"), "{why}");
    }
}
