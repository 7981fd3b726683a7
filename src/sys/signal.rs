//! Signals as events: blocked, and read from a signalfd. And their names.
#![expect(unsafe_code, reason = "the kernel's interface: dispositions of signals")]

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::{Error, Result};

/// One signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalInfo {
    /// Its number.
    pub signo: i32,
    /// Who sent it, 0 where the kernel did.
    pub pid: u32,
    /// Why, as `si_code`: `SI_USER` (0) from kill(2), `SI_KERNEL` (128) from a terminal.
    pub code: i32,
}

/// A set of blocked signals, to be read one by one.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Blocks these signals in this thread and reads them from now on. The children of this
    /// process inherit the block: they must be given an empty mask.
    pub fn block(signals: &[i32]) -> Result<Self> {
        let doing = "block signals";
        let mut set = SigSet::empty();
        for &signo in signals {
            set.add(Signal::try_from(signo).map_err(|e| Error::new(doing, e))?);
        }
        set.thread_block().map_err(|e| Error::new(doing, e))?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let fd = SignalFd::with_flags(&set, flags).map_err(|e| Error::new("make a signalfd", e))?;
        Ok(Self { fd })
    }

    /// The next signal that waits, if one does. A signal of one number waits at most once, so a
    /// SIGCHLD says only that some child has something to say.
    pub fn next(&self) -> Option<SignalInfo> {
        let info = self.fd.read_signal().ok().flatten()?;
        Some(SignalInfo {
            signo: i32::try_from(info.ssi_signo).unwrap_or_default(),
            pid: info.ssi_pid,
            code: info.ssi_code,
        })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Ignores SIGPIPE: a write to a reader that is gone is an error of that write.
pub fn ignore_pipe() -> Result<()> {
    // SAFETY: `SigIgn` runs no code in the signal's context.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigIgn) }
        .map(|_| ())
        .map_err(|e| Error::new("ignore SIGPIPE", e))
}

/// Puts SIGCHLD back to its default. A parent may have left it ignored, that outlives execve, and
/// the kernel then throws the status of every child away.
pub fn keep_statuses() -> Result<()> {
    // SAFETY: `SigDfl` runs no code in the signal's context.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) }
        .map(|_| ())
        .map_err(|e| Error::new("reset SIGCHLD", e))
}

/// The number of a signal as a person writes it: `SIGTERM`, `term`, `15`, `RTMIN+3`.
pub fn by_name(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=libc::SIGRTMAX()).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = short.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse().ok()? };
        let number = libc::SIGRTMIN().checked_add(offset)?;
        return (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number).then_some(number);
    }
    let full = format!("SIG{short}");
    (1..libc::SIGRTMIN())
        .find(|&signo| Signal::try_from(signo).is_ok_and(|signal| signal.as_str() == full))
}

/// The name of a signal: `SIGTERM`, `SIGRTMIN+3`; for a number without one, the number.
pub fn name_of(signo: i32) -> String {
    if let Ok(signal) = Signal::try_from(signo) {
        return signal.as_str().to_owned();
    }
    match signo.checked_sub(libc::SIGRTMIN()) {
        Some(0) => "SIGRTMIN".to_owned(),
        Some(offset) if offset > 0 && signo <= libc::SIGRTMAX() => format!("SIGRTMIN+{offset}"),
        _ => signo.to_string(),
    }
}

/// Whether a signal of this number can be sent.
pub fn is_signal(signo: i32) -> bool {
    (1..=libc::SIGRTMAX()).contains(&signo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (name, number) in [
            ("SIGTERM", libc::SIGTERM),
            ("term", libc::SIGTERM),
            ("15", 15),
            ("SigUsr2", libc::SIGUSR2),
            ("kill", libc::SIGKILL),
            ("RTMIN", libc::SIGRTMIN()),
            ("SIGRTMIN+3", libc::SIGRTMIN() + 3),
        ] {
            assert_eq!(by_name(name), Some(number), "{name}");
        }
        let refused =
            ["", "0", "-1", "65", "TER", "SIGSIGTERM", "RTMIN-1", "RTMIN+99", "99999999999", "é"];
        for name in refused {
            assert_eq!(by_name(name), None, "{name}");
        }
        assert_eq!(name_of(15), "SIGTERM");
        assert_eq!(name_of(libc::SIGRTMIN()), "SIGRTMIN");
        assert_eq!(name_of(0), "0");
        assert_eq!(name_of(i32::MIN), i32::MIN.to_string());
        for signo in 1..=libc::SIGRTMAX() {
            // 32 and 33 belong to the C library and have no name.
            assert_eq!(by_name(&name_of(signo)), Some(signo));
            assert!(is_signal(signo));
        }
    }

    #[test]
    fn a_blocked_signal_is_read_with_its_sender() {
        let signals = Signals::block(&[libc::SIGUSR1]).unwrap();
        assert_eq!(signals.next(), None);
        nix::sys::signal::raise(Signal::SIGUSR1).unwrap();
        let info = signals.next().unwrap();
        assert_eq!((info.signo, info.pid), (libc::SIGUSR1, std::process::id()));
        assert_eq!(signals.next(), None);
        assert!(Signals::block(&[0]).is_err());
    }
}
