//! The asking side: blocking, with a deadline on everything.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::Deserialize;
use serde_json::{Value, json};

use super::protocol::{AppEvent, AppState, Fault, FaultKind, INTERFACE, LogLine};
use super::varlink::{Answer, Frames, encode};

/// Most bytes of an answer: 256 slots with all their last lines are well below it.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How long a connection may take to be made. The kernel does it at once, unless the queue of a
/// supervisor that hangs is full.
const CONNECT_TIME: Duration = Duration::from_secs(2);

/// A point in time after which nobody waits any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(u64);

impl Deadline {
    /// So long from now.
    pub fn after(duration: Duration) -> Self {
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(now_ms().saturating_add(ms))
    }

    /// Never.
    pub fn never() -> Self {
        Self(u64::MAX)
    }

    /// The time that is left; `None` where there is none.
    pub fn left(self) -> Option<Duration> {
        match self.0.saturating_sub(now_ms()) {
            0 => None,
            ms => Some(Duration::from_millis(ms)),
        }
    }
}

/// The clock of the asking side: what a supervisor does with time has nothing to do with it.
fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let duration = Duration::try_from(now).unwrap_or_default();
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The monotonic clock, by which systemd too says when something was.
pub fn since_boot_ms() -> u64 {
    now_ms()
}

/// Waits between two looks at something that gives no sign of its own, such as a socket that is
/// to come back.
pub fn pause(duration: Duration) {
    let timeout = rustix::time::Timespec::try_from(duration).ok();
    match rustix::event::poll(&mut [], timeout.as_ref()) {
        // Interrupted or not: the caller looks again.
        Ok(_) | Err(_) => {}
    }
}

/// Waits until something can be read of one of these, or one has ended; says of which. Of none at
/// the deadline.
pub fn wait_readable(fds: &[BorrowedFd<'_>], deadline: Deadline) -> io::Result<Vec<bool>> {
    let mut all: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    loop {
        let timeout = rustix::time::Timespec::try_from(deadline.left().unwrap_or_default()).ok();
        match rustix::event::poll(&mut all, timeout.as_ref()) {
            Ok(_) => return Ok(all.iter().map(|one| !one.revents().is_empty()).collect()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The time of day, in milliseconds since the Unix epoch, to be compared with that of lines.
pub fn time_of_day_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let duration = Duration::try_from(now).unwrap_or_default();
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// No socket, or nobody listens.
    NotRunning,
    /// The kernel does not let us.
    Denied,
    /// The supervisor does not accept.
    NoAnswer,
    /// Something else.
    Io(io::Error),
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NotADirectory => Self::NotRunning,
            io::ErrorKind::PermissionDenied => Self::Denied,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::NoAnswer,
            _ => Self::Io(error),
        }
    }
}

/// Why a call came to nothing.
#[derive(Debug)]
pub enum CallError {
    /// The app said no.
    Fault(Fault),
    /// Another error, by name: of `org.varlink.service`, or of a newer version.
    Other(String),
    /// The time is up.
    TimedOut,
    /// The connection ended.
    Lost,
    /// What came is no answer.
    Garbled,
    /// The kernel's word.
    Io(io::Error),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => write!(f, "{fault}"),
            Self::Other(name) => write!(f, "the supervisor answered `{name}`"),
            Self::TimedOut => write!(f, "no answer in time"),
            Self::Lost => write!(f, "the connection ended before there was an answer"),
            Self::Garbled => write!(f, "what was answered is not understood"),
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for CallError {}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Lost,
            _ => Self::Io(error),
        }
    }
}

/// A connection to an app.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    input: Frames,
}

/// A part of an answer that may go on.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// What was answered.
    pub parameters: Value,
    /// More is to come.
    pub continues: bool,
}

impl Client {
    /// Connects to the app of this directory, however long its path is.
    pub fn connect(directory: &Path) -> Result<Self, ConnectError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(directory, flags, Mode::empty()).map_err(io::Error::from)?;
        // `sun_path` has 108 bytes (unix(7)): the way through the open directory is short.
        let path = format!("/proc/self/fd/{}/{INTERFACE}", directory.as_raw_fd());
        let address = SocketAddrUnix::new(path).map_err(io::Error::from)?;
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(io::Error::from)?;
        set_socket_timeout(&socket, Timeout::Send, Some(CONNECT_TIME)).map_err(io::Error::from)?;
        connect(&socket, &address).map_err(io::Error::from)?;
        Ok(Self::over(UnixStream::from(socket)))
    }

    /// Speaks over a stream that is connected already.
    pub fn over(stream: UnixStream) -> Self {
        Self { stream, input: Frames::new(ANSWER_BYTES_MAX, usize::MAX) }
    }

    /// Calls a method of [`INTERFACE`] and waits for its one answer.
    pub fn call(
        &mut self,
        method: &str,
        parameters: &Value,
        deadline: Deadline,
    ) -> Result<Value, CallError> {
        self.send(method, parameters, false, deadline)?;
        Ok(self.receive(deadline)?.parameters)
    }

    /// Asks for the app as `List` shows it, without waiting: several apps can be asked before the
    /// first answer is read by [`Client::listed`].
    pub fn ask_to_list(&mut self, deadline: Deadline) -> Result<(), CallError> {
        self.send("List", &json!({}), false, deadline)
    }

    /// The answer to [`Client::ask_to_list`].
    pub fn listed(&mut self, deadline: Deadline) -> Result<AppState, CallError> {
        #[derive(Deserialize)]
        struct Answer {
            apps: Vec<AppState>,
        }
        let answer: Answer = self.receive_one(deadline)?;
        answer.apps.into_iter().next().ok_or(CallError::Garbled)
    }

    /// The app as `List` shows it.
    pub fn list(&mut self, deadline: Deadline) -> Result<AppState, CallError> {
        self.ask_to_list(deadline)?;
        self.listed(deadline)
    }

    /// The app as `Describe` shows it.
    pub fn describe(&mut self, deadline: Deadline) -> Result<AppState, CallError> {
        #[derive(Deserialize)]
        struct Answer {
            app: AppState,
        }
        let answer: Answer = read(self.call("Describe", &json!({}), deadline)?)?;
        Ok(answer.app)
    }

    /// The environment of the instance in a slot.
    pub fn environment(
        &mut self,
        slot: u16,
        deadline: Deadline,
    ) -> Result<BTreeMap<String, String>, CallError> {
        #[derive(Deserialize)]
        struct Answer {
            variables: BTreeMap<String, String>,
        }
        let answer: Answer = read(self.call("Env", &json!({ "slot": slot }), deadline)?)?;
        Ok(answer.variables)
    }

    /// Asks for every event from now on.
    pub fn watch(mut self, deadline: Deadline) -> Result<Stream<AppEvent>, CallError> {
        self.send("Watch", &json!({}), true, deadline)?;
        Ok(Stream { client: self, part: read_event, over: false })
    }

    /// Asks for the last lines of output, and for those that come where it is to `follow`.
    pub fn logs(
        mut self,
        slot: Option<u16>,
        lines: u32,
        follow: bool,
        deadline: Deadline,
    ) -> Result<Stream<Vec<LogLine>>, CallError> {
        let parameters = json!({ "slot": slot, "lines": lines, "follow": follow });
        self.send("Logs", &parameters, follow, deadline)?;
        Ok(Stream { client: self, part: read_lines, over: false })
    }

    /// Sends a request without waiting for its answer.
    pub fn send(
        &mut self,
        method: &str,
        parameters: &Value,
        more: bool,
        deadline: Deadline,
    ) -> Result<(), CallError> {
        let left = deadline.left().ok_or(CallError::TimedOut)?;
        self.stream.set_write_timeout(Some(left))?;
        let method = format!("{INTERFACE}.{method}");
        let request = json!({ "method": method, "parameters": parameters, "more": more });
        Ok(self.stream.write_all(&encode(&request))?)
    }

    /// Waits for an answer, or for the next part of one. May be called again after
    /// [`CallError::TimedOut`].
    pub fn receive(&mut self, deadline: Deadline) -> Result<Part, CallError> {
        read_part(&self.receive_message(deadline)?)
    }

    /// Waits for an answer that has one part, and reads it straight into its type: `status` of many
    /// apps spends most of its time here.
    fn receive_one<T: for<'a> Deserialize<'a>>(
        &mut self,
        deadline: Deadline,
    ) -> Result<T, CallError> {
        #[derive(Deserialize)]
        struct Good<T> {
            parameters: T,
        }
        let message = self.receive_message(deadline)?;
        match serde_json::from_slice(&message) {
            Ok(Good { parameters }) => Ok(parameters),
            // An error, which has other parameters, or nothing that is understood.
            Err(_) => read(read_part(&message)?.parameters),
        }
    }

    fn receive_message(&mut self, deadline: Deadline) -> Result<Vec<u8>, CallError> {
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Some(message) = self.input.pop() {
                return Ok(message);
            }
            let left = deadline.left().ok_or(CallError::TimedOut)?;
            self.stream.set_read_timeout(Some(left))?;
            let count = match self.stream.read(&mut chunk) {
                Ok(0) => return Err(CallError::Lost),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let bytes = chunk.get(..count).unwrap_or_default();
            self.input.push(bytes).map_err(|_| CallError::Garbled)?;
        }
    }
}

/// An answer that goes on. Ends where the app ends it; an error is its last item.
#[derive(Debug)]
pub struct Stream<T> {
    client: Client,
    part: fn(Value) -> Result<(T, u64), CallError>,
    over: bool,
}

impl<T> Stream<T> {
    /// The next part, and how many were lost before it; `None` at the end. May be called again
    /// after [`CallError::TimedOut`].
    pub fn next_part(&mut self, deadline: Deadline) -> Result<Option<(T, u64)>, CallError> {
        if self.over {
            return Ok(None);
        }
        let part = match self.client.receive(deadline) {
            Ok(part) => part,
            Err(CallError::TimedOut) => return Err(CallError::TimedOut),
            Err(error) => {
                self.over = true;
                return Err(error);
            }
        };
        self.over = !part.continues;
        (self.part)(part.parameters).map(Some)
    }
}

impl<T> AsFd for Stream<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.client.stream.as_fd()
    }
}

impl<T> Iterator for Stream<T> {
    type Item = Result<(T, u64), CallError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_part(Deadline::never()).transpose()
    }
}

fn read_event(parameters: Value) -> Result<(AppEvent, u64), CallError> {
    #[derive(Deserialize)]
    struct Answer {
        event: AppEvent,
        #[serde(default)]
        lost: u64,
    }
    let answer: Answer = read(parameters)?;
    Ok((answer.event, answer.lost))
}

fn read_lines(parameters: Value) -> Result<(Vec<LogLine>, u64), CallError> {
    #[derive(Deserialize)]
    struct Answer {
        lines: Vec<LogLine>,
        #[serde(default)]
        lost: u64,
    }
    let answer: Answer = read(parameters)?;
    Ok((answer.lines, answer.lost))
}

fn read<T: for<'a> Deserialize<'a>>(parameters: Value) -> Result<T, CallError> {
    serde_json::from_value(parameters).map_err(|_| CallError::Garbled)
}

fn read_part(message: &[u8]) -> Result<Part, CallError> {
    let answer: Answer = serde_json::from_slice(message).map_err(|_| CallError::Garbled)?;
    let Some(name) = answer.error else {
        return Ok(Part { parameters: answer.parameters, continues: answer.continues });
    };
    let Some(kind) = FaultKind::from_name(&name) else { return Err(CallError::Other(name)) };
    let message = answer.parameters.get("message").and_then(Value::as_str);
    Err(CallError::Fault(Fault::new(kind, message.unwrap_or(kind.name()))))
}
