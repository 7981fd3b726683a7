//! Being a parent: the children of this process, how they end, and what outlives an execve.
#![expect(unsafe_code, reason = "the kernel's interface: pidfds, fork and inherited fds")]

use std::ffi::CString;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::process::{PidfdFlags, WaitOptions, WaitStatus};

use super::{Error, Result};

/// How a process ended. Neither code nor signal: it was waited for by somebody else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ending {
    /// Its exit code, where it exited.
    pub code: Option<i32>,
    /// The signal's number, where one ended it.
    pub signal: Option<i32>,
    /// Whether a core was dumped.
    pub core: bool,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exited with code {code}"),
            (None, Some(signal)) => write!(f, "was killed by signal {signal}"),
            (None, None) => f.write_str("ended"),
        }
    }
}

/// The answer of [`reap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaped {
    /// A child that has ended; its pid is free from now on.
    One {
        /// Its process id.
        pid: u32,
        /// How it ended.
        ending: Ending,
    },
    /// All children live.
    NoneEnded,
    /// There are no children.
    NoChildren,
}

/// A process that was just started.
#[derive(Debug)]
pub struct Started {
    /// Its process id.
    pub pid: u32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
}

/// From now on the orphans among the descendants become children of this process.
pub fn become_subreaper() -> Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| Error::new("become the subreaper", e))
}

/// Raises the limit on open files as far as it goes: several are held for each instance. Returns
/// the soft and the hard limit there were, which are an instance's: select(2) breaks above 1024, so
/// a program raises its own only when it knows better.
pub fn raise_file_limit() -> Result<(u64, u64)> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let failed = |e: nix::errno::Errno| Error::new("raise the limit on open files", e);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(failed)?;
    Ok((soft, hard))
}

/// The binary that this process runs, even where its file was replaced or removed since.
pub fn own_binary() -> Result<OwnedFd> {
    let path = "/proc/self/exe";
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::at("open", path, e))
}

/// Sets the name that `ps` shows; a binary run by its fd has the fd's number for a name.
pub fn set_name(name: &std::ffi::CStr) -> Result<()> {
    rustix::thread::set_name(name).map_err(|e| Error::new("set the name", e))
}

/// Takes the status of one child that has ended, if there is one.
pub fn reap() -> Result<Reaped> {
    match rustix::process::wait(WaitOptions::NOHANG) {
        Ok(Some((pid, status))) => Ok(Reaped::One {
            pid: pid.as_raw_nonzero().get().cast_unsigned(),
            ending: ending(status),
        }),
        Ok(None) | Err(Errno::INTR) => Ok(Reaped::NoneEnded),
        Err(Errno::CHILD) => Ok(Reaped::NoChildren),
        Err(e) => Err(Error::new("wait for children", e)),
    }
}

fn ending(status: WaitStatus) -> Ending {
    Ending {
        code: status.exit_status(),
        signal: status.terminating_signal(),
        // WCOREFLAG of wait(2); real-time signals too come through here as plain numbers.
        core: status.signaled() && status.as_raw() & 0x80 != 0,
    }
}

/// Sends a signal to exactly the process that the pidfd is of.
pub fn signal(pidfd: impl AsFd, signo: i32) -> Result<()> {
    // SAFETY: pidfd_send_signal(2) takes a live fd, a number, no siginfo, and no flags.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signo,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 { Ok(()) } else { Err(Error::new("signal", io::Error::last_os_error())) }
}

/// Whether the process of a pidfd was waited for already. A zombie was not.
pub fn is_reaped(pidfd: impl AsFd) -> Result<bool> {
    match signal(pidfd, 0) {
        Ok(()) => Ok(false),
        Err(e) if e.errno() == libc::ESRCH => Ok(true),
        // Not permitted: there is somebody.
        Err(e) if e.errno() == libc::EPERM => Ok(false),
        Err(e) => Err(e),
    }
}

/// Kills a child that was not waited for yet, so that its pid is certainly its own.
pub fn kill(pid: u32) -> Result<()> {
    nix::sys::signal::kill(process_id(pid)?, Signal::SIGKILL).map_err(|e| Error::new("kill", e))
}

/// Kills the process group that a child, not waited for yet, is the leader of.
pub fn kill_group(pid: u32) -> Result<()> {
    nix::sys::signal::killpg(process_id(pid)?, Signal::SIGKILL)
        .map_err(|e| Error::new("kill the process group", e))
}

/// 0 and 1 mean a whole group and everybody to kill(2).
fn process_id(pid: u32) -> Result<Pid> {
    match i32::try_from(pid) {
        Ok(pid) if pid > 1 => Ok(Pid::from_raw(pid)),
        _ => Err(Error::new("kill", Errno::INVAL)),
    }
}

/// The children of this process, zombies included, as /proc has them.
pub fn children() -> Result<Vec<u32>> {
    let failed = |e| Error::at("read", "/proc", e);
    let own = std::process::id();
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // One that is gone since is no child.
        if let Ok(stat) = fs::read(format!("/proc/{pid}/stat"))
            && parent_of(&stat) == Some(own)
        {
            children.push(pid);
        }
    }
    Ok(children)
}

/// The fourth field of a stat file. The second, in parentheses, may hold anything.
fn parent_of(stat: &[u8]) -> Option<u32> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end.checked_add(1)?..)?).ok()?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Starts `binary` as a child in a session of its own, with an empty signal mask, no input, and
/// `link` as its fd number `at`. Everything else that this process has open must be close-on-exec.
pub fn start(
    binary: BorrowedFd<'_>,
    arg0: &str,
    arguments: &[String],
    link: BorrowedFd<'_>,
    at: i32,
) -> Result<Started> {
    let failed = |e| Error::new("start the supervisor", e);
    // The number `at` is about to be replaced in the child. So neither the binary may have it, nor
    // the fd, made by `spawn`, over which the child reports a failed exec.
    let binary = rustix::io::fcntl_dupfd_cloexec(binary, at.saturating_add(1))
        .map_err(|e| failed(e.into()))?;
    let held = rustix::io::fcntl_dupfd_cloexec(link, at).map_err(|e| failed(e.into()))?;
    let mut command = Command::new(format!("/proc/self/fd/{}", binary.as_raw_fd()));
    command.arg0(arg0).args(arguments).stdin(Stdio::null());
    let from = link.as_raw_fd();
    let prepare = move || {
        rustix::process::setsid()?;
        SigSet::empty().thread_set_mask()?;
        if from == at {
            // SAFETY: `link` is open in the parent until `spawn` is over.
            let link = unsafe { BorrowedFd::borrow_raw(from) };
            rustix::io::fcntl_setfd(link, FdFlags::empty())?;
            return Ok(());
        }
        // SAFETY: the number is nobody's in this child: it is `held`, or unknown to `spawn`.
        let result = unsafe { libc::dup2(from, at) };
        if result == at { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(prepare) };
    let mut child = command.spawn().map_err(failed)?;
    drop(held);
    let pid = child.id();
    let pidfd = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let pidfd = pidfd
        .ok_or(Errno::SRCH)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
    match pidfd {
        Ok(pidfd) => Ok(Started { pid, pidfd }),
        Err(e) => {
            // No fd is free to watch it with, so it must not be.
            child.kill().and_then(|()| child.wait()).map_err(failed)?;
            Err(failed(e.into()))
        }
    }
}

/// Goes on as `binary`: same process, same children, and the fds that [`set_inherited`] named.
/// Comes back only with the error.
pub fn replace(binary: BorrowedFd<'_>, arguments: &[String]) -> Error {
    let doing = "go on as the new binary";
    let path = CString::new(format!("/proc/self/fd/{}", binary.as_raw_fd()));
    let arguments: std::result::Result<Vec<CString>, _> =
        arguments.iter().map(|argument| CString::new(argument.as_bytes())).collect();
    match (path, arguments) {
        (Ok(path), Ok(arguments)) => match nix::unistd::execv(&path, &arguments) {
            Ok(never) => match never {},
            Err(e) => Error::new(doing, e),
        },
        _ => Error::new(doing, Errno::INVAL),
    }
}

/// Whether `fd` outlives an execve.
pub fn set_inherited(fd: impl AsFd, inherited: bool) -> Result<()> {
    let flags = if inherited { FdFlags::empty() } else { FdFlags::CLOEXEC };
    rustix::io::fcntl_setfd(fd, flags).map_err(|e| Error::new("keep an fd", e))
}

/// Takes an inherited fd by its number, and closes it on the next exec. The number must have been
/// said by whoever started this process, and be taken once.
pub fn take(number: i32) -> Result<OwnedFd> {
    let failed = |e| Error::new("take an inherited fd", e);
    if number < 0 {
        return Err(failed(Errno::BADF));
    }
    // SAFETY: borrowed for the one call that says whether it is open.
    let open = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(open, FdFlags::CLOEXEC).map_err(failed)?;
    // SAFETY: it is open, and by the contract above it is nobody else's in this process.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent_of(b"12 (sh) S 34 12 12 0"), Some(34));
        assert_eq!(parent_of(b"12 (a) R 1 (b)) S 34 12"), Some(34));
        assert_eq!(parent_of(b"12 (\xff\xfe) Z 7 1"), Some(7));
        for broken in [&b""[..], b"12 (sh", b"12 (sh)", b"12 (sh) S", b"12 (sh) S x"] {
            assert_eq!(parent_of(broken), None);
        }
    }

    #[test]
    fn a_child_is_found_and_its_end_is_seen_by_its_pidfd() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
        assert!(children().unwrap().contains(&child.id()));
        assert!(!is_reaped(&pidfd).unwrap());
        signal(&pidfd, libc::SIGKILL).unwrap();
        child.wait().unwrap();
        assert!(is_reaped(&pidfd).unwrap());
        assert!(!children().unwrap().contains(&child.id()));
        assert!(is_reaped(fs::File::open("/dev/null").unwrap()).is_err(), "not a pidfd");
    }

    #[test]
    fn nobody_is_killed_by_a_pid_that_means_many() {
        for pid in [0, 1, u32::MAX] {
            assert!(kill(pid).is_err());
            assert!(kill_group(pid).is_err());
        }
    }

    #[test]
    fn a_number_that_is_not_open_is_not_taken() {
        assert_eq!(take(-1).unwrap_err().errno(), libc::EBADF);
        assert_eq!(take(i32::MAX).unwrap_err().errno(), libc::EBADF);
    }

    #[test]
    fn an_ending_reads_as_a_sentence() {
        let mut ending = Ending { code: Some(3), ..Ending::default() };
        assert_eq!(ending.to_string(), "exited with code 3");
        ending = Ending { signal: Some(9), ..Ending::default() };
        assert_eq!(ending.to_string(), "was killed by signal 9");
        assert_eq!(Ending::default().to_string(), "ended");
    }
}
