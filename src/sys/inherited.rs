//! Sockets that whoever started this process has left open for it (`sd_listen_fds(3)`).
#![expect(unsafe_code, reason = "the kernel's interface: an inherited fd is known by number only")]

use std::fs;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use rustix::io::{FdFlags, fcntl_setfd};

/// The first inherited fd: `SD_LISTEN_FDS_START`.
const FIRST_FD: RawFd = 3;

/// The numbers given out so far: each fd has one owner.
static TAKEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());

/// Takes the inherited socket of number `n`, counted from 0, and closes it on exec from now on.
///
/// `None` if `LISTEN_PID` names another process, if `LISTEN_FDS` is not above `n`, if that fd is
/// no open socket, and the second time it is asked for.
pub fn inherited(n: u16) -> Option<OwnedFd> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) || number("LISTEN_FDS") <= Some(n.into()) {
        return None;
    }
    let mut taken = TAKEN.lock().ok()?;
    let fd = FIRST_FD.checked_add(n.into())?;
    if taken.contains(&n) || !is_socket(fd) {
        return None;
    }
    taken.push(n);
    // SAFETY: the fd is open (just looked at), LISTEN_PID says that it was left open for this very
    // process, and TAKEN that nobody has become its owner before: OwnedFd's condition.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl_setfd(&socket, FdFlags::CLOEXEC).ok()?;
    Some(socket)
}

/// Whether `fd` is open in this process and a socket. Asked of /proc, since every call that takes
/// an fd wants it to be known as open already.
fn is_socket(fd: RawFd) -> bool {
    let link = fs::read_link(format!("/proc/self/fd/{fd}"));
    link.is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn only_open_sockets_count() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let file = File::open("/dev/null").unwrap();
        assert!(is_socket(socket.as_raw_fd()));
        assert!(!is_socket(file.as_raw_fd()));
        assert!(!is_socket(RawFd::MAX));
    }

    #[test]
    fn without_listen_pid_nothing_is_taken() {
        // The test runner was not started with sockets for this very process.
        assert!(inherited(0).is_none());
    }
}
