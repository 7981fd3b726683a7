//! What tests need of the system.
#![expect(unsafe_code, reason = "the kernel's interface: clone, and what a child does before exec")]

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that goes away with its test.
#[derive(Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pmr-test-{}-{count}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

/// A pipe that no child of another test inherits: read end, write end.
pub(crate) fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// Asks again and again until there is an answer, for at most a minute.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = super::clock::now().saturating_add(60_000);
    let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(super::clock::now() < deadline, "never: {what}");
        rustix::event::poll(&mut [], Some(&pause)).unwrap();
    }
}

/// Runs an ignored test alone in a process, as it changes what is of a whole process, or may have
/// no other thread beside it. Returns what it printed, standard output first.
pub(crate) fn run_alone(path: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", path])
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    said
}

/// Starts a process in a session of its own with all signals blocked, as a keeper would have them:
/// the threads of its test harness inherit that, so none of them dies of a signal.
pub(crate) fn spawn_blocked(command: &mut Command) -> Child {
    let prepare = || {
        rustix::process::setsid()?;
        nix::sys::signal::SigSet::all().thread_set_mask()?;
        Ok(())
    };
    // SAFETY: between fork and exec it makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(prepare) };
    command.spawn().unwrap()
}

/// A child of this process' parent that waits for a byte before it executes `arguments`, as an
/// instance does: its pid, its pidfd, and the write end of its pipe.
pub(crate) fn clone_sibling(arguments: &[String]) -> (u32, OwnedFd, OwnedFd) {
    let arguments: Vec<CString> =
        arguments.iter().map(|one| CString::new(one.as_bytes()).unwrap()).collect();
    let mut pointers: Vec<*const libc::c_char> = arguments.iter().map(|one| one.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let (reader, writer) = pipe().unwrap();
    let mut pidfd: libc::c_int = -1;
    let flags = i64::from(libc::CLONE_PARENT | libc::CLONE_PIDFD | libc::SIGCHLD);
    let (null, place) = (std::ptr::null::<libc::c_void>(), &raw mut pidfd);
    // SAFETY: like fork(2), with a pidfd written to a live variable. The child goes on below with
    // system calls only.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, null, place, null, null) };
    assert!(pid >= 0, "{}", std::io::Error::last_os_error());
    if pid == 0 {
        let mut byte = 0_u8;
        // SAFETY: the child's copy of an fd that nobody here uses any more.
        unsafe { libc::close(writer.as_raw_fd()) };
        // SAFETY: one byte into one byte.
        let count = unsafe { libc::read(reader.as_raw_fd(), (&raw mut byte).cast(), 1) };
        if count == 1 {
            // SAFETY: strings and their array live, and the array ends with a null.
            unsafe { libc::execvp(pointers[0], pointers.as_ptr()) };
        }
        // SAFETY: ends the child without touching what it shares with its parent.
        unsafe { libc::_exit(121) };
    }
    // SAFETY: the kernel has just made it, for this process.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    (u32::try_from(pid).unwrap(), pidfd, writer)
}

/// Sends one datagram to a notify socket.
pub(crate) fn notify(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    socket.send_to(text.as_bytes(), path).map(drop)
}

/// Has a listening socket take a handshake as done when the client has said something only
/// (`TCP_DEFER_ACCEPT`): until then it is under way, as over a slow network.
pub(crate) fn delay_handshakes(socket: std::os::fd::BorrowedFd<'_>) {
    let seconds: libc::c_int = 60;
    let size = libc::socklen_t::try_from(size_of_val(&seconds)).unwrap();
    let (value, option) = ((&raw const seconds).cast(), libc::TCP_DEFER_ACCEPT);
    // SAFETY: setsockopt(2) reads an int of this size.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, option, value, size) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
