//! The processes and fds behind the core's generations.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use crate::keeper::protocol::Child;
use crate::policy::{Generation, ReleaseId, SlotId};
use crate::sys::cgroup::{self, Group, Untaken};
use crate::sys::procfs::{self, Usage};
use crate::sys::{Result, process};

use super::output::Stream;

/// What a supervisor holds of one instance.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) slot: SlotId,
    pub(super) release: ReleaseId,
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
    pub(super) group: Option<Group>,
    /// `cgroup.events` of that, which tells when nobody is in it any more.
    pub(super) events: Option<OwnedFd>,
    /// Where its main process is, if it has left its group.
    pub(super) moved_to: Option<PathBuf>,
    /// Until the exec is over.
    pub(super) exec_status: Option<OwnedFd>,
    /// What it can say `READY=1` to.
    pub(super) notify: Option<OwnedFd>,
    /// Read ends of its output, in the foreground.
    pub(super) out: Option<OwnedFd>,
    pub(super) err: Option<OwnedFd>,
    /// Its main process has ended.
    pub(super) ended: bool,
    /// What it used when it was last looked at, and when that was.
    pub(super) sampled: Option<(Duration, u64)>,
    /// When it was spawned, for its average use.
    pub(super) spawned_at_ms: u64,
    /// Limits that did not take.
    pub(super) untaken: Vec<Untaken>,
}

impl Instance {
    /// The stream's read end.
    pub(super) fn pipe(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        match stream {
            Stream::Out => self.out.as_ref(),
            Stream::Err => self.err.as_ref(),
        }
        .map(AsFd::as_fd)
    }

    /// Closes the stream's read end.
    pub(super) fn close_pipe(&mut self, stream: Stream) {
        match stream {
            Stream::Out => self.out = None,
            Stream::Err => self.err = None,
        }
    }

    /// All its processes: its group, or the session that it leads.
    pub(super) fn pids(&self) -> Vec<u32> {
        let pids = match &self.group {
            Some(group) => group.pids(),
            None => procfs::session_pids(self.pid),
        };
        pids.unwrap_or_else(|_| vec![self.pid])
    }

    /// Whether `pid` is one of its processes.
    pub(super) fn has(&self, pid: u32) -> bool {
        pid == self.pid || self.pids().contains(&pid)
    }

    /// What it uses with all it started, added up over its processes.
    pub(super) fn sample(&self) -> Usage {
        procfs::sample(&self.pids())
    }

    /// What it uses as the kernel counts it for its group, where it does.
    pub(super) fn counted(&self) -> Option<cgroup::Usage> {
        self.group.as_ref().map(Group::usage).filter(|usage| usage.memory_bytes.is_some())
    }

    /// Sends its main process a signal. One that is gone does not mind.
    pub(super) fn signal(&self, signal: i32) -> Result<()> {
        match process::signal(self.pidfd.as_fd(), signal) {
            Err(error) if error.errno() == nix::libc::ESRCH => Ok(()),
            other => other,
        }
    }

    /// Kills it with all it started.
    pub(super) fn kill(&self) -> Result<()> {
        self.signal(nix::libc::SIGKILL)?;
        match &self.group {
            Some(group) => group.kill(),
            None => kill_session(self.pid, false).map(|_| ()),
        }
    }
}

/// Kills every process of the session; says how many there were. Where its leader has ended, a
/// process of the leader's number is a stranger that got the number since, and so is its session:
/// the kernel gives no number out that a session still has.
pub(super) fn kill_session(session: u32, leader_ended: bool) -> Result<usize> {
    let pids = procfs::session_pids(session)?;
    let alive = |pid| procfs::stat(pid).is_ok_and(|stat| stat.state != 'Z');
    if leader_ended && pids.contains(&session) && alive(session) {
        return Ok(0);
    }
    let mut count: usize = 0;
    for pid in pids {
        // Between the look and the kill the number may have become another process's: the pidfd
        // is of whoever has it now, and is asked again.
        let Ok(pidfd) = process::pidfd_open(pid) else { continue };
        let Ok(stat) = procfs::stat(pid) else { continue };
        if stat.session == session && stat.state != 'Z' {
            match process::signal(pidfd.as_fd(), nix::libc::SIGKILL) {
                Ok(()) => count = count.saturating_add(1),
                Err(error) if error.errno() == nix::libc::ESRCH => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(count)
}

/// The name of an instance's group.
pub(super) fn group_name(slot: SlotId, generation: Generation) -> String {
    format!("i-{slot}.{generation}")
}

/// `cgroup.events` of a group. Where it cannot be opened, nobody is told to have left.
pub(super) fn events(group: Option<&Group>) -> Option<OwnedFd> {
    group.and_then(|group| group.events_fd().ok())
}

/// The names under which the keeper holds an instance's fds.
pub(super) fn fd_name(kind: &str, generation: Generation) -> String {
    format!("{kind}.{generation}")
}

/// An instance that lives on from before, with the fds that the keeper held for it.
pub(super) fn adopt(
    child: &Child,
    pidfd: OwnedFd,
    ended: bool,
    fds: &mut BTreeMap<String, OwnedFd>,
) -> (Generation, Instance) {
    let generation = Generation(child.generation);
    let mut take = |kind| fds.remove(&fd_name(kind, generation));
    let group = child.will.cgroup.as_ref().and_then(|path| Group::open(path).ok());
    // An earlier supervisor may have died while it held it.
    group.as_ref().map(Group::thaw).transpose().unwrap_or_default();
    let instance = Instance {
        slot: SlotId(child.slot),
        release: ReleaseId(child.release),
        pid: child.pid,
        pidfd,
        events: events(group.as_ref()),
        group,
        moved_to: None,
        exec_status: take("exec"),
        notify: take("notify"),
        out: take("out"),
        err: take("err"),
        ended,
        sampled: None,
        spawned_at_ms: started_at_ms(child.pid),
        untaken: Vec::new(),
    };
    (generation, instance)
}

/// When a process was started, on the monotonic clock. The kernel counts from the boot with the
/// time in suspend, which makes an average over a suspend a little too small.
fn started_at_ms(pid: u32) -> u64 {
    let since_boot = procfs::start_time(pid).map(procfs::from_ticks).unwrap_or_default();
    u64::try_from(since_boot.as_millis()).unwrap_or_default()
}
