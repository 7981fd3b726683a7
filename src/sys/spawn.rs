//! Makes a child that waits: the plan, and the clone.
//!
//! The child is a sibling: `CLONE_PARENT` makes it a child of the keeper, which reaps it whatever
//! becomes of the supervisor. It is in its cgroup from the first instruction on, so no memory of it
//! is charged elsewhere and nothing it forks escapes. It does nothing until a byte comes through
//! the go pipe: see `sys/child.rs` for what it does then.

#![expect(unsafe_code, reason = "the kernel's interface: clone3(2) and clone(2)")]

use std::ffi::{CString, c_char, c_int, c_long};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

use super::child::{self, Prepared, Private};
use super::identity::Identity;
use super::process::{Program, SpawnError, Spawned, Via};
use super::{Error, Result};

// Bits of clone3(2) beyond 32; the libc crate has them as an int, where they are lost.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_PARENT: u32 = 0x8000;
const CLONE_PIDFD: u32 = 0x1000;

/// `CLONE_ARGS_SIZE_VER0`: without the cgroup, which kernels before 5.7 do not know.
const CLONE_ARGS_BYTES_WITHOUT_GROUP: usize = 64;

/// What to run, and as what. Nothing of it is changed by a spawn, so it can be tried again.
///
/// The fds are borrowed, not copied: another holder of a listening socket, however short, keeps the
/// queue from moving to another socket when it is closed.
#[derive(Debug, Clone)]
pub struct Plan<'fd> {
    /// The files to try.
    pub program: Program,
    /// All arguments, the name first.
    pub argv: Vec<CString>,
    /// The whole environment, `NAME=value` each, without `LISTEN_PID`.
    pub envp: Vec<CString>,
    /// Whether to add `LISTEN_PID`, with the child's own number.
    pub listen_pid: bool,
    /// The app's directory.
    pub cwd: PathBuf,
    /// Whom to become; nobody else where it is `None`.
    pub identity: Option<Identity>,
    /// File mode creation mask; pmr's own where it is `None`.
    pub umask: Option<u32>,
    /// Standard output.
    pub stdout: BorrowedFd<'fd>,
    /// Standard error.
    pub stderr: BorrowedFd<'fd>,
    /// Become fd 3, 4, …
    pub inherited: Vec<BorrowedFd<'fd>>,
    /// Directory of the cgroup to be born in.
    pub group: Option<BorrowedFd<'fd>>,
    /// Soft and hard limit on open files; pmr's own where it is `None`.
    pub nofile: Option<(u64, u64)>,
    /// OOM score, -1000 to 1000; pmr's own where it is `None`.
    pub oom_score_adj: Option<i16>,
    /// Whether a write to a closed pipe is an error instead of the end (systemd's `IgnoreSIGPIPE`).
    pub ignore_sigpipe: bool,
    /// A child of this process's parent instead of this process.
    pub sibling: bool,
}

/// Makes children, and remembers which way works on this machine.
#[derive(Debug)]
pub struct Spawner {
    null: OwnedFd,
    clone3: bool,
}

impl Spawner {
    /// Tries clone3 first.
    pub fn new() -> Result<Self> {
        Self::with(true)
    }

    /// Does not try clone3: where it is known to be denied or to be of no use.
    pub fn without_clone3() -> Result<Self> {
        Self::with(false)
    }

    fn with(clone3: bool) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let null = rustix::fs::open(c"/dev/null", flags, Mode::empty());
        Ok(Self { null: null.map_err(|errno| Error::at("open", "/dev/null", errno))?, clone3 })
    }

    /// Whether clone3 has not failed on this machine.
    pub fn uses_clone3(&self) -> bool {
        self.clone3
    }

    /// Makes a child that waits for its byte. On an error nothing is left.
    pub fn spawn(&mut self, plan: &Plan<'_>) -> std::result::Result<Spawned, SpawnError> {
        let cwd = CString::new(plan.cwd.as_os_str().as_bytes()).map_err(|_| {
            Error::at("change directory to", &plan.cwd, io::ErrorKind::InvalidInput)
        })?;
        let (go_read, go) = pipe()?;
        let (exec_status, status_write) = pipe()?;
        rustix::fs::fcntl_setfl(&exec_status, OFlags::NONBLOCK)
            .map_err(|errno| Error::new("make a pipe", errno))?;
        let pipes = [status_write.as_raw_fd(), go_read.as_raw_fd()];
        let mut prepared = self.prepare(plan, &cwd, pipes);

        if self.clone3 {
            match start(&mut prepared, || clone3(plan.group, plan.sibling)) {
                Ok((pid, pidfd)) => {
                    return Ok(Spawned { pid, pidfd, go, exec_status, via: Via::Clone3 });
                }
                // What a group in a bad state says as well is no reason to give clone3 up.
                Err(Errno::EOPNOTSUPP) => {}
                Err(errno) if is_denied(errno) => self.clone3 = false,
                Err(errno) => return Err(Error::new("make a process", errno).into()),
            }
        }
        let procs = plan.group.map(open_procs).transpose()?;
        if let Some(procs) = &procs {
            prepared.private.procs = Some(prepared.fds.len());
            prepared.fds.push(procs.as_raw_fd());
        }
        let (pid, pidfd) = start(&mut prepared, || clone(plan.sibling))
            .map_err(|errno| Error::new("make a process", errno))?;
        Ok(Spawned { pid, pidfd, go, exec_status, via: Via::Clone })
    }

    fn prepare<'p>(
        &self,
        plan: &'p Plan<'_>,
        cwd: &'p CString,
        [status, go]: [RawFd; 2],
    ) -> Prepared<'p> {
        let mut fds = vec![self.null.as_raw_fd(), plan.stdout.as_raw_fd(), plan.stderr.as_raw_fd()];
        fds.extend(plan.inherited.iter().map(AsRawFd::as_raw_fd));
        let first = fds.len();
        fds.extend([status, go]);
        let place = plan.listen_pid.then(ptr::null::<c_char>);
        let strings = |list: &[CString]| list.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
        Prepared {
            candidates: strings(&plan.program.candidates),
            argv: plan.argv.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect(),
            envp: place.into_iter().chain(strings(&plan.envp)).chain([ptr::null()]).collect(),
            wants_listen_pid: plan.listen_pid,
            listen_pid: child::listen_pid_place(),
            cwd: cwd.as_c_str(),
            identity: plan.identity.as_ref().filter(|identity| !identity.is_current()),
            umask: plan.umask,
            oom_score: plan.oom_score_adj.map(|score| score.to_string().into_bytes()),
            nofile: plan.nofile.map(|(soft, hard)| libc::rlimit { rlim_cur: soft, rlim_max: hard }),
            ignore_sigpipe: plan.ignore_sigpipe,
            fds,
            private: Private { first, status: first, go: first.saturating_add(1), procs: None },
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| Error::new("make a pipe", errno))
}

fn open_procs(group: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(group, c"cgroup.procs", flags, Mode::empty())
        .map_err(|errno| Error::at("open", "cgroup.procs", errno))
}

/// What a kernel without clone3 or without these flags says, and what a seccomp filter says that
/// denies it (the filter cannot look into its arguments, so container runtimes deny it whole).
fn is_denied(errno: Errno) -> bool {
    matches!(errno, Errno::ENOSYS | Errno::EPERM | Errno::EINVAL | Errno::E2BIG)
}

/// Clones with all signals blocked: none is handled by the copy, and one that is sent to the child
/// before its exec waits until then.
fn start(
    prepared: &mut Prepared<'_>,
    clone: impl FnOnce() -> nix::Result<Option<(u32, OwnedFd)>>,
) -> nix::Result<(u32, OwnedFd)> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let cloned = clone();
    if matches!(cloned, Ok(None)) {
        child::run(prepared);
    }
    before.thread_set_mask()?;
    cloned?.ok_or(Errno::EINVAL)
}

/// `struct clone_args` of linux/sched.h.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// `None` in the child.
fn clone3(group: Option<BorrowedFd<'_>>, sibling: bool) -> nix::Result<Option<(u32, OwnedFd)>> {
    let mut pidfd: c_int = -1;
    let place = ptr::from_mut(&mut pidfd).expose_provenance();
    let mut args = CloneArgs {
        flags: u64::from(clone_flags(sibling)) | CLONE_CLEAR_SIGHAND,
        pidfd: u64::try_from(place).unwrap_or_default(),
        // With CLONE_PARENT the child sends what this process sends at its end, and the field
        // must be 0.
        exit_signal: if sibling { 0 } else { u64::from(libc::SIGCHLD.unsigned_abs()) },
        ..CloneArgs::default()
    };
    let mut size = CLONE_ARGS_BYTES_WITHOUT_GROUP;
    if let Some(group) = group {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(group.as_raw_fd().unsigned_abs());
        size = size_of::<CloneArgs>();
    }
    // SAFETY: clone3(2): the struct is as large as said and the pidfd has a place. There is no
    // CLONE_VM and no stack, so the child goes on here in a copy of all memory, as after fork(2);
    // the caller sees to it that it makes async-signal-safe calls only.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size) };
    cloned(result, pidfd)
}

/// `None` in the child.
fn clone(sibling: bool) -> nix::Result<Option<(u32, OwnedFd)>> {
    let mut pidfd: c_int = -1;
    let signal = if sibling { 0 } else { libc::SIGCHLD.unsigned_abs() };
    let flags = c_long::from(clone_flags(sibling) | signal);
    let place = ptr::from_mut(&mut pidfd);
    let none = ptr::null::<c_int>();
    // SAFETY: clone(2), raw: flags, stack, parent_tid (here the place of the pidfd), then child_tid
    // and tls in an order that depends on the machine: both are null. The child is as after fork.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, none, place, none, none) };
    cloned(result, pidfd)
}

fn clone_flags(sibling: bool) -> u32 {
    if sibling { CLONE_PIDFD | CLONE_PARENT } else { CLONE_PIDFD }
}

fn cloned(result: c_long, pidfd: c_int) -> nix::Result<Option<(u32, OwnedFd)>> {
    let pid = u32::try_from(Errno::result(result)?).map_err(|_| Errno::EINVAL)?;
    if pid == 0 {
        return Ok(None);
    }
    if pidfd < 0 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the kernel has just made this fd for us, and nobody else knows it.
    Ok(Some((pid, unsafe { OwnedFd::from_raw_fd(pidfd) })))
}

impl fmt::Debug for Prepared<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("fds", &self.fds).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
