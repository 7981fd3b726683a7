//! Asks node for the value of an ecosystem file.
//!
//! The file is a program of the person who runs `pmr import`, and is run as one: as that user, with
//! that environment, in its own directory. It may print, hang, throw or never end; none of this may
//! get into the value or keep pmr from ending.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde::Deserialize;
use serde_json::Value;

/// What node runs: it finds the file in its first argument.
const EVALUATE: &str = include_str!("evaluate.cjs");

/// Most bytes of the value. An ecosystem file of a thousand apps is a tenth of it.
const VALUE_BYTES_MAX: usize = 8 << 20;
/// Most bytes kept of what the file prints; the rest is read and forgotten.
const PRINTED_BYTES_MAX: usize = 64 << 10;
/// Capacity of a pipe, pipe(7): one read of so much empties it.
const PIPE_BYTES: usize = 64 << 10;

/// What a file means, and what it printed meanwhile.
#[derive(Debug)]
pub(super) struct Evaluated {
    /// The value of its export, or of its text.
    pub(super) value: Value,
    /// Its own output, stdout and then stderr.
    pub(super) printed: String,
}

/// Why there is no value.
#[derive(Debug)]
pub enum Error {
    /// The file is not there, or cannot be read.
    File(PathBuf, io::Error),
    /// There is no node to ask.
    NodeMissing,
    /// Something of the system did not work.
    System(&'static str, io::Error),
    /// The file itself threw, or is no JavaScript: node's words.
    Thrown(PathBuf, String),
    /// No library for YAML is installed where node finds it.
    Yaml(PathBuf),
    /// It was not done in this time.
    Timeout(PathBuf, Duration),
    /// Its value is over 8 MiB.
    TooLarge(PathBuf),
    /// Node ended before there was a value; what it said on stderr.
    NoValue(PathBuf, ExitStatus, String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, error) => write!(f, "cannot read {}: {error}", path.display()),
            Self::NodeMissing => {
                write!(f, "an ecosystem file is evaluated by node, and there is no `node` in PATH")
            }
            Self::System(doing, error) => write!(f, "cannot {doing}: {error}"),
            Self::Thrown(path, words) => {
                write!(f, "node cannot evaluate {}:\n{}", path.display(), words.trim_end())
            }
            Self::Yaml(path) => write!(
                f,
                "node has no YAML of its own, and neither `yaml` nor `js-yaml` is installed beside \
                 {0} or with pm2; install one there (`npm install yaml`), or convert {0} to JSON",
                path.display()
            ),
            Self::Timeout(path, limit) => write!(
                f,
                "{} was not evaluated in {limit:?}: does it wait for something, or never end?",
                path.display()
            ),
            Self::TooLarge(path) => {
                write!(f, "the value of {} is over {VALUE_BYTES_MAX} bytes", path.display())
            }
            Self::NoValue(path, status, said) => {
                write!(f, "{} ended node before it had a value ({status})", path.display())?;
                let said = said.trim_end();
                if said.is_empty() { Ok(()) } else { write!(f, ":\n{said}") }
            }
        }
    }
}

impl std::error::Error for Error {}

/// What the script answers.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Value(Value),
    Error { kind: String, message: String },
}

/// Evaluates `file`, an absolute path, within `limit`.
pub(super) fn evaluate(file: &Path, limit: Duration) -> Result<Evaluated, Error> {
    let failed = |error| Error::File(file.to_owned(), error);
    // Looked at before it is opened: the open of a FIFO would wait for somebody to write.
    if !std::fs::metadata(file).map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is no regular file")));
    }
    File::open(file).map_err(failed)?;
    let (result, end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| Error::System("make a pipe", error.into()))?;
    let child = spawn(file, end)?;
    Evaluation::new(file, result, child, limit)?.run()
}

/// Starts node. Its stdin is the pipe for the value: the one way to give it a further fd that no
/// other child of this process can get hold of.
fn spawn(file: &Path, end: OwnedFd) -> Result<Child, Error> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    let mut command = Command::new("node");
    command.arg("--eval").arg(EVALUATE).arg(file);
    command.current_dir(directory).env("PWD", directory);
    command.stdin(end).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::NodeMissing,
        _ => Error::System("start node", error),
    })
}

/// A node at work.
#[derive(Debug)]
struct Evaluation {
    file: PathBuf,
    child: Running,
    limit: Duration,
    timer: OwnedFd,
    exit: OwnedFd,
    result: Pipe,
    stdout: Pipe,
    stderr: Pipe,
}

/// A child that does not outlive its evaluation.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that is gone already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Evaluation {
    fn new(file: &Path, result: OwnedFd, child: Child, limit: Duration) -> Result<Self, Error> {
        let mut child = Running(child);
        let system = |doing| move |error: io::Error| Error::System(doing, error);
        let (Some(stdout), Some(stderr)) = (child.0.stdout.take(), child.0.stderr.take()) else {
            return Err(Error::System("read from node", io::ErrorKind::BrokenPipe.into()));
        };
        let exit = pidfd_open(Pid::from_child(&child.0), PidfdFlags::empty())
            .map_err(|error| system("watch node")(error.into()))?;
        Ok(Self {
            file: file.to_owned(),
            child,
            limit,
            timer: timer(limit).map_err(system("set a timer"))?,
            exit,
            result: Pipe::new(result, VALUE_BYTES_MAX),
            stdout: Pipe::new(stdout.into(), PRINTED_BYTES_MAX),
            stderr: Pipe::new(stderr.into(), PRINTED_BYTES_MAX),
        })
    }

    /// Reads until node has ended, or the time is over.
    fn run(mut self) -> Result<Evaluated, Error> {
        let system = |error| Error::System("read from node", error);
        loop {
            let watched = [
                self.timer.as_fd(),
                self.exit.as_fd(),
                self.result.fd(&self.exit),
                self.stdout.fd(&self.exit),
                self.stderr.fd(&self.exit),
            ];
            let [late, ended, result, stdout, stderr] = readable(watched).map_err(system)?;
            if late {
                return Err(Error::Timeout(self.file, self.limit));
            }
            // The exit was looked at before the pipes: with it set, all that node wrote is in them,
            // and one read empties a pipe. What a child left behind still prints does not count.
            for (pipe, is_readable) in
                [(&mut self.result, result), (&mut self.stdout, stdout), (&mut self.stderr, stderr)]
            {
                if is_readable {
                    pipe.read().map_err(system)?;
                }
            }
            if self.result.is_over {
                return Err(Error::TooLarge(self.file));
            }
            if ended {
                return self.finish();
            }
        }
    }

    fn finish(mut self) -> Result<Evaluated, Error> {
        let status = self.child.0.wait().map_err(|error| Error::System("wait for node", error))?;
        match serde_json::from_slice(&self.result.bytes) {
            Ok(Answer::Value(value)) => {
                let printed = self.stdout.text() + &self.stderr.text();
                Ok(Evaluated { value, printed })
            }
            Ok(Answer::Error { kind, .. }) if kind == "yaml" => Err(Error::Yaml(self.file)),
            Ok(Answer::Error { message, .. }) => Err(Error::Thrown(self.file, message)),
            Err(_) => Err(Error::NoValue(self.file, status, self.stderr.text())),
        }
    }
}

/// Waits until one of `fds` is readable or closed, and says which are.
fn readable(fds: [BorrowedFd<'_>; 5]) -> io::Result<[bool; 5]> {
    let mut polled = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    loop {
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) => return Ok(polled.map(|fd| fd.any().unwrap_or_default())),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// An fd that becomes readable after `limit`.
fn timer(limit: Duration) -> io::Result<OwnedFd> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    // Zero would switch the timer off.
    let limit = limit.max(Duration::from_nanos(1));
    let it_value = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
    let value = Itimerspec { it_interval, it_value };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &value)?;
    Ok(timer)
}

/// The reading end of a pipe, and what came out of it so far.
#[derive(Debug)]
struct Pipe {
    /// `None` once the other end was closed.
    file: Option<File>,
    bytes: Vec<u8>,
    bytes_max: usize,
    /// More came than is kept.
    is_over: bool,
}

impl Pipe {
    fn new(fd: OwnedFd, bytes_max: usize) -> Self {
        Self { file: Some(fd.into()), bytes: Vec::new(), bytes_max, is_over: false }
    }

    /// The fd to wait for; `other` in place of a closed one, which would be readable for ever.
    fn fd<'a>(&'a self, other: &'a OwnedFd) -> BorrowedFd<'a> {
        self.file.as_ref().map_or(other.as_fd(), File::as_fd)
    }

    /// Reads what is there, once.
    fn read(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut piece = vec![0; PIPE_BYTES];
        let length = match file.read(&mut piece) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        };
        if length == 0 {
            self.file = None;
        }
        let room = self.bytes_max.saturating_sub(self.bytes.len());
        self.is_over |= length > room;
        self.bytes.extend(piece.into_iter().take(length.min(room)));
        Ok(())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

#[cfg(test)]
mod tests;
