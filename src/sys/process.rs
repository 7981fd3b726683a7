//! A process that was spawned: its pidfd, its signals, and what became of its exec.
//!
//! Between clone and exec a child tells what went wrong through a pipe that the exec closes. The
//! end of file without a word therefore means that the program runs, or that the child was killed
//! before it came to that: its exit tells which.

#![expect(unsafe_code, reason = "the kernel's interface: pidfd_send_signal(2) with any number")]

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::process::{Pid, PidfdFlags};

use super::{Error, Result, procfs};

/// Where a program is looked for when the app's environment has no `PATH`.
pub const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Most bytes of a `#!` line that the kernel reads (`BINPRM_BUF_SIZE`).
const SHEBANG_BYTES_MAX: usize = 256;

/// Size of what a child writes when it cannot go on: step, 0, candidate (2), errno (4).
pub(super) const FAILURE_BYTES: usize = 8;

/// A child that waits for the byte that lets it go on.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id.
    pub pid: u32,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// One byte written here lets it go on; closed without one, it ends and never ran.
    pub go: OwnedFd,
    /// For [`read_exec_status`]; does not block.
    pub exec_status: OwnedFd,
    /// How it was made.
    pub via: Via,
}

/// How a child was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// clone3(2): in its group from the first instruction on.
    Clone3,
    /// clone(2), and the child went into its group before it waited: where clone3 is not to be had.
    Clone,
}

/// What became of a child's exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecStatus {
    /// It is on its way, or still waits to go on.
    Pending,
    /// The program runs, or the child was ended before it could.
    Done,
    /// It could not be run; the child has exited with 127.
    Failed(ExecFailure),
}

/// Why a child could not run its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecFailure {
    /// What the child was at.
    pub step: Step,
    /// What the kernel said.
    pub errno: i32,
    /// At [`Step::Exec`]: which of [`Program::candidates`].
    pub candidate: u16,
}

/// What a child does between clone and exec, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Puts its fds in place and closes all others.
    Fds,
    /// Goes into its group (only [`Via::Clone`]).
    Group,
    /// Sets the signals' dispositions.
    Signals,
    /// Becomes the leader of a session.
    Session,
    /// Writes its OOM score.
    OomScore,
    /// Sets its limit on open files.
    FileLimit,
    /// Sets its supplementary groups.
    Groups,
    /// Sets its group id.
    Gid,
    /// Sets its user id.
    Uid,
    /// Changes to its directory.
    Directory,
    /// Executes the program.
    Exec,
}

impl Step {
    const ALL: [Self; 11] = [
        Self::Fds,
        Self::Group,
        Self::Signals,
        Self::Session,
        Self::OomScore,
        Self::FileLimit,
        Self::Groups,
        Self::Gid,
        Self::Uid,
        Self::Directory,
        Self::Exec,
    ];

    /// The number on the pipe. Never 0.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Fds => 1,
            Self::Group => 2,
            Self::Signals => 3,
            Self::Session => 4,
            Self::OomScore => 5,
            Self::FileLimit => 6,
            Self::Groups => 7,
            Self::Gid => 8,
            Self::Uid => 9,
            Self::Directory => 10,
            Self::Exec => 11,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.number() == number)
    }
}

/// A program by its name, and the files it may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// As it was asked for.
    pub name: OsString,
    /// Tried in this order, from the app's directory.
    pub candidates: Vec<CString>,
}

impl Program {
    /// The files that `name` may be: itself where it contains a `/`, otherwise one in each
    /// directory of `path`, the app's own `PATH` ([`PATH_DEFAULT`] where it has none).
    ///
    /// Fails for an empty name and for one with a zero byte.
    pub fn find(name: &OsStr, path: Option<&OsStr>) -> Result<Self> {
        let invalid = || Error::at("execute", name, io::ErrorKind::InvalidInput);
        if name.is_empty() {
            return Err(invalid());
        }
        let files = if name.as_bytes().contains(&b'/') {
            vec![name.to_owned()]
        } else {
            let path = path.unwrap_or(OsStr::new(PATH_DEFAULT));
            path.as_bytes().split(|byte| *byte == b':').map(|dir| join(dir, name)).collect()
        };
        let candidates = files
            .into_iter()
            .map(|file| CString::new(file.into_vec()).map_err(|_| invalid()))
            .collect::<Result<_>>()?;
        Ok(Self { name: name.to_owned(), candidates })
    }

    fn file(&self, candidate: u16) -> PathBuf {
        let name = self.candidates.get(usize::from(candidate)).map(std::ffi::CString::as_bytes);
        PathBuf::from(OsStr::from_bytes(name.unwrap_or(self.name.as_bytes())))
    }
}

/// An empty directory in `PATH` is the current one, as everywhere.
fn join(directory: &[u8], name: &OsStr) -> OsString {
    let directory = if directory.is_empty() { b".".as_slice() } else { directory };
    let mut file = OsStr::from_bytes(directory).to_owned();
    file.push("/");
    file.push(name);
    file
}

impl ExecFailure {
    /// The bytes on the pipe.
    pub(super) fn to_bytes(self) -> [u8; FAILURE_BYTES] {
        let [c0, c1] = self.candidate.to_le_bytes();
        let [e0, e1, e2, e3] = self.errno.to_le_bytes();
        [self.step.number(), 0, c0, c1, e0, e1, e2, e3]
    }

    fn from_bytes(bytes: [u8; FAILURE_BYTES]) -> Option<Self> {
        let [step, _, c0, c1, e0, e1, e2, e3] = bytes;
        Some(Self {
            step: Step::from_number(step)?,
            errno: i32::from_le_bytes([e0, e1, e2, e3]),
            candidate: u16::from_le_bytes([c0, c1]),
        })
    }

    /// The failure in words, for the journal and for `status`. `user` is the name of the app's
    /// user where it has one of its own.
    pub fn describe(self, program: &Program, cwd: &Path, user: Option<&str>) -> String {
        let doing = match self.step {
            Step::Fds => "pass the file descriptors".to_owned(),
            Step::Group => "enter the cgroup".to_owned(),
            Step::Signals => "set the signals".to_owned(),
            Step::Session => "make a session".to_owned(),
            Step::OomScore => "set the OOM score".to_owned(),
            Step::FileLimit => "set the limit on open files".to_owned(),
            Step::Groups | Step::Gid | Step::Uid => {
                format!("become the user {}", user.unwrap_or("asked for"))
            }
            Step::Directory => format!("change directory to {}", cwd.display()),
            Step::Exec => return self.describe_exec(program, cwd),
        };
        format!("cannot {doing}: {}{}", describe_errno(self.errno), by(self.errno, user))
    }

    fn describe_exec(self, program: &Program, cwd: &Path) -> String {
        let errno = describe_errno(self.errno);
        let name = program.name.display();
        if self.errno == libc::ENOENT && program.candidates.len() > 1 {
            return format!("cannot find {name} in PATH: {errno}");
        }
        let file = program.file(self.candidate);
        let reason = match self.errno {
            libc::ENOENT => missing_interpreter(&cwd.join(&file)),
            libc::ENOEXEC => Some("neither a binary of this machine nor a script with #!".into()),
            libc::E2BIG => Some("the arguments and the environment are too long".into()),
            _ => None,
        };
        match reason {
            Some(reason) => format!("cannot execute {}: {reason}: {errno}", file.display()),
            None => format!("cannot execute {}: {errno}", file.display()),
        }
    }
}

/// A denial is a denial to somebody.
fn by(errno: i32, user: Option<&str>) -> String {
    match user {
        Some(user) if errno == libc::EACCES => format!(", as user {user}"),
        _ => String::new(),
    }
}

/// A file that is there and yet "not found": its interpreter is what is missing.
fn missing_interpreter(file: &Path) -> Option<String> {
    use std::io::Read;
    if !file.metadata().is_ok_and(|facts| facts.is_file()) {
        return None;
    }
    let mut start = Vec::with_capacity(SHEBANG_BYTES_MAX);
    let limit = u64::try_from(SHEBANG_BYTES_MAX).unwrap_or(u64::MAX);
    std::fs::File::open(file).ok()?.take(limit).read_to_end(&mut start).ok()?;
    let line = start.split(|byte| *byte == b'\n').next()?;
    let Some(line) = line.strip_prefix(b"#!") else {
        return Some("its dynamic loader is missing".to_owned());
    };
    let line = String::from_utf8_lossy(line);
    let interpreter = line.split_ascii_whitespace().next()?;
    Some(format!("its interpreter {interpreter} is missing"))
}

/// An errno as a person and a search engine know it: `Permission denied (EACCES)`.
pub fn describe_errno(errno: i32) -> String {
    match Errno::from_raw(errno) {
        Errno::UnknownErrno => format!("error {errno}"),
        known => format!("{} ({known:?})", known.desc()),
    }
}

/// What became of the exec. To be asked when the fd is readable, until it is no longer pending.
pub fn read_exec_status(fd: &OwnedFd) -> Result<ExecStatus> {
    let mut bytes = [0; FAILURE_BYTES];
    let doing = "read the status of the exec";
    match rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut bytes)) {
        Ok(0) => Ok(ExecStatus::Done),
        // Eight bytes into an empty pipe arrive together or not at all: pipe(7), PIPE_BUF.
        Ok(FAILURE_BYTES) => ExecFailure::from_bytes(bytes)
            .map(ExecStatus::Failed)
            .ok_or_else(|| Error::new(doing, io::ErrorKind::InvalidData)),
        Ok(_) => Err(Error::new(doing, io::ErrorKind::InvalidData)),
        Err(rustix::io::Errno::AGAIN) => Ok(ExecStatus::Pending),
        Err(errno) => Err(Error::new(doing, errno)),
    }
}

/// Sends signal `signo` (0 only asks) to the very process behind `pidfd`, which need not be alive:
/// that is `ESRCH`.
pub fn signal(pidfd: BorrowedFd<'_>, signo: i32) -> Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: pidfd_send_signal(2): a null siginfo stands for that of kill(2), flags are 0, and
    // the fd is open as long as it is borrowed.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signo, info, 0_u32)
    };
    Errno::result(result).map_err(|errno| Error::new("send a signal", errno))?;
    Ok(())
}

/// A copy of the socket that another process has under this number (`pidfd_getfd(2)`, since Linux
/// 5.6), for which its memory must be readable: root, or the same user where Yama allows it.
pub fn fetch_fd(pidfd: BorrowedFd<'_>, fd: u32) -> Result<OwnedFd> {
    let failed = |errno| Error::new("fetch a socket of an instance", errno);
    let fd = i32::try_from(fd).map_err(|_| failed(rustix::io::Errno::BADF))?;
    let flags = rustix::process::PidfdGetfdFlags::empty();
    rustix::process::pidfd_getfd(pidfd, fd, flags).map_err(failed)
}

/// A pidfd of `pid`, whoever that is now: compare [`super::procfs::start_time`] where it matters.
pub fn pidfd_open(pid: u32) -> Result<OwnedFd> {
    let doing = "open the process";
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Error::new(doing, Errno::ESRCH))?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| Error::new(doing, errno))
}

/// A socket that another process holds: a dup of the first of its fds that is one. `None` where it
/// holds it no more, or is gone. It takes the right to trace that process.
pub fn fetch_socket(pid: u32, inode: u64) -> Result<Option<OwnedFd>> {
    let doing = "fetch a socket of the app";
    // First the process, so that what is found by its number is of it and no other.
    let found = pidfd_open(pid).and_then(|pidfd| Ok((pidfd, procfs::socket_fd(pid, inode)?)));
    let (pidfd, fd) = match found {
        Ok((pidfd, Some(fd))) => (pidfd, fd),
        Ok((_, None)) => return Ok(None),
        Err(error) if matches!(error.errno(), libc::ESRCH | libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let flags = rustix::process::PidfdGetfdFlags::empty();
    match rustix::process::pidfd_getfd(pidfd, fd, flags) {
        // By now it may be another file.
        Ok(socket) => {
            let facts = rustix::fs::fstat(&socket).map_err(|errno| Error::new(doing, errno))?;
            Ok((facts.st_ino == inode).then_some(socket))
        }
        Err(rustix::io::Errno::BADF | rustix::io::Errno::SRCH) => Ok(None),
        Err(errno) => Err(Error::new(doing, errno)),
    }
}

/// A child that could not be made. Nothing is left of it.
#[derive(Debug)]
pub struct SpawnError {
    /// The step, and what the kernel said.
    pub error: Error,
}

impl SpawnError {
    /// The number the kernel gave.
    pub fn errno(&self) -> i32 {
        self.error.errno()
    }
}

impl From<Error> for SpawnError {
    fn from(error: Error) -> Self {
        Self { error }
    }
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.error.doing, describe_errno(self.errno()))?;
        match self.errno() {
            libc::EAGAIN => f.write_str(
                ": a limit on processes is reached (TasksMax, pids.max or RLIMIT_NPROC)",
            ),
            libc::EMFILE => f.write_str(": pmr's own limit on open files is reached"),
            libc::ENFILE => f.write_str(": the machine's limit on open files is reached"),
            libc::EBUSY => f.write_str(": the cgroup hands controllers on, so it holds no process"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for SpawnError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn path_is_searched_as_execvp_does() {
        let find = |name: &str, path: Option<&str>| {
            let program = Program::find(name.as_ref(), path.map(OsStr::new)).unwrap();
            program.candidates.iter().map(|c| c.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(find("node", Some("/a:/b/c")), ["/a/node", "/b/c/node"]);
        assert_eq!(find("node", Some("/a::bin")), ["/a/node", "./node", "bin/node"]);
        assert_eq!(find("./node", Some("/a")), ["./node"]);
        assert_eq!(find("/x/node", None), ["/x/node"]);
        assert_eq!(find("node", None).len(), PATH_DEFAULT.split(':').count());
        assert!(Program::find("".as_ref(), None).is_err());
        assert!(Program::find(OsStr::from_bytes(b"a\0b"), None).is_err());
    }

    #[test]
    fn a_failure_survives_the_pipe() {
        for step in Step::ALL {
            let failure = ExecFailure { step, errno: libc::EACCES, candidate: 258 };
            assert_eq!(ExecFailure::from_bytes(failure.to_bytes()), Some(failure));
        }
        assert_eq!(ExecFailure::from_bytes([0; FAILURE_BYTES]), None);
    }

    #[test]
    fn failures_are_worded() {
        let program = Program::find("/srv/x/app.js".as_ref(), None).unwrap();
        let describe = |step, errno| {
            let failure = ExecFailure { step, errno, candidate: 0 };
            failure.describe(&program, Path::new("/srv/x"), Some("web"))
        };
        assert_eq!(
            describe(Step::Exec, libc::EACCES),
            "cannot execute /srv/x/app.js: Permission denied (EACCES)"
        );
        assert_eq!(
            describe(Step::Directory, libc::ENOENT),
            "cannot change directory to /srv/x: No such file or directory (ENOENT)"
        );
        assert_eq!(
            describe(Step::Directory, libc::EACCES),
            "cannot change directory to /srv/x: Permission denied (EACCES), as user web"
        );
        assert_eq!(
            describe(Step::Uid, libc::EPERM),
            "cannot become the user web: Operation not permitted (EPERM)"
        );
        let program = Program::find("nod".as_ref(), None).unwrap();
        let failure = ExecFailure { step: Step::Exec, errno: libc::ENOENT, candidate: 0 };
        assert_eq!(
            failure.describe(&program, Path::new("/"), None),
            "cannot find nod in PATH: No such file or directory (ENOENT)"
        );
        assert_eq!(describe_errno(9999), "error 9999");
    }

    #[test]
    fn a_process_limit_is_named() {
        let text = SpawnError::from(Error::new("make a process", Errno::EAGAIN)).to_string();
        assert!(text.contains("(EAGAIN)") && text.contains("pids.max"), "{text}");
    }

    #[test]
    fn a_socket_of_another_process_is_fetched() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a_socket_of_another_process_is_fetched: needs root");
            return;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inode = rustix::fs::fstat(&listener).unwrap().st_ino;
        // It reads from its standard input, which is the socket, when somebody writes to it.
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .stdin(OwnedFd::from(listener))
            .spawn()
            .unwrap();
        let fetched = fetch_socket(child.id(), inode).unwrap().unwrap();
        assert_eq!(fetch_socket(child.id(), inode.wrapping_add(1)).unwrap().map(drop), None);
        let flags = rustix::io::fcntl_getfd(&fetched).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(fetch_socket(child.id(), inode).unwrap().is_none());
        // It listens on though the process is gone.
        let client = std::net::TcpStream::connect(address).unwrap();
        let (_, from) = std::net::TcpListener::from(fetched).accept().unwrap();
        assert_eq!(from, client.local_addr().unwrap());
    }

    #[test]
    fn nobody_has_this_pid() {
        assert_eq!(pidfd_open(0).unwrap_err().errno(), libc::ESRCH);
        assert_eq!(pidfd_open(u32::MAX).unwrap_err().errno(), libc::ESRCH);
        let own = pidfd_open(std::process::id()).unwrap();
        signal(own.as_fd(), 0).unwrap();
        assert_eq!(signal(own.as_fd(), 999).unwrap_err().errno(), libc::EINVAL);
    }
}
