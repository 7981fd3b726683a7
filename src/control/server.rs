//! One peer of the control socket, without the socket.
//!
//! The runtime feeds a [`Connection`] the bytes it read and the moment ([`Connection::receive`]),
//! asks for the next request ([`Connection::next_call`]) until there is none, answers it
//! ([`Connection::reply`]), and writes what is in [`Connection::outgoing`]. One request of a
//! connection is worked on at a time; others wait in its input.
//!
//! ```text
//! after receive, reply, handle_eof:  while let Some(call) = connection.next_call(now) { … }
//! after anything:                    write outgoing(), then sent(); drop it once is_closed(), or
//!                                    where the socket fails or hangs up both ways
//! poll for input:                    only while wants_input()
//! at deadline():                     handle_time(now); early or spurious calls change nothing
//! ```
//!
//! A peer is bounded in bytes, in messages and in time. What it sends is either a request, or
//! answered with an error, or the end of the connection.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::protocol::{AppEvent, AppState, Fault, FaultKind, INTERFACE, LogLine, VERSION};
use super::varlink::{
    Answer, Frames, Object, Overflow, Parameters, Request, SERVICE, answer_service, encode,
    invalid_parameter, method_not_found, service_error, success,
};
use crate::policy::Outcome;
pub use crate::sys::unix::Peer;

/// Most connections of an app at a time.
pub const CONNECTIONS_MAX: usize = 64;

/// Most connections of one user, so that one reader cannot lock out root and the others.
pub const CONNECTIONS_OF_USER_MAX: usize = 16;

/// Most bytes of a message, and of all that a peer may have waiting.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// Most bytes that wait for a peer that does not read.
pub const OUTPUT_BYTES_MAX: usize = 1024 * 1024;

/// Most requests that wait behind the one worked on.
const REQUESTS_WAITING_MAX: usize = 16;

/// A message that has begun must be complete after this; a whole one is written at once.
const MESSAGE_TIME_MS: u64 = 10_000;

/// A peer that reads nothing of its answer for this long is gone.
const OUTPUT_TIME_MS: u64 = 10_000;

/// A connection that asks nothing is closed after this: as long as a person at `varlinkctl` needs.
const IDLE_TIME_MS: u64 = 60_000;

/// Lines of output that are sent where the caller does not say how many, as PM2 does.
const LINES_DEFAULT: u32 = 15;

const CHANGERS: &str = "only root, the app's user and group `pmr-admin` may do this";

const READERS: &str = "only root, the app's user and the groups `pmr` and `pmr-admin` may look";

/// The groups that have rights. One that does not exist on this machine is nobody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupIds {
    /// `pmr`: may read.
    pub pmr: Option<u32>,
    /// `pmr-admin`: may change.
    pub pmr_admin: Option<u32>,
}

/// Whether `peer` may read an app, or `change` it: root and the app's user may, and the groups.
pub fn permitted(peer: &Peer, groups: &GroupIds, app_uid: u32, change: bool) -> bool {
    let is_in =
        |group: Option<u32>| group.is_some_and(|gid| peer.gid == gid || peer.groups.contains(&gid));
    peer.uid == 0
        || peer.uid == app_uid
        || is_in(groups.pmr_admin)
        || (!change && is_in(groups.pmr))
}

/// Whether another connection of `uid` may be accepted beside those of `present`. Root is admitted
/// to the last place.
pub fn admits(present: impl IntoIterator<Item = u32>, uid: u32) -> bool {
    let (mut all, mut own): (usize, usize) = (0, 0);
    for other in present {
        all = all.saturating_add(1);
        own = own.saturating_add(usize::from(other == uid));
    }
    all < CONNECTIONS_MAX && (uid == 0 || own < CONNECTIONS_OF_USER_MAX)
}

/// A request that its sender may make, with parameters that make sense. `slot: None` is every slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Answer: [`Reply::App`].
    List,
    /// Answer: [`Reply::App`], with the last lines of standard error.
    Describe,
    /// Answer: [`Reply::Outcome`].
    Start {
        /// Which.
        slot: Option<u16>,
    },
    /// Answer: [`Reply::Outcome`].
    Stop {
        /// Which.
        slot: Option<u16>,
    },
    /// Answer: [`Reply::Outcome`].
    Restart {
        /// Which.
        slot: Option<u16>,
    },
    /// Answer: [`Reply::Outcome`], [`Reply::Adjusted`] where limits alone were changed, or
    /// [`FaultKind::Invalid`] with what is wrong in the config.
    Reload {},
    /// Answer: [`Reply::Adjusted`], or [`FaultKind::Invalid`] with what is wrong in them.
    Set {
        /// Limits by the keys of the config.
        values: BTreeMap<String, String>,
    },
    /// Answer: [`Reply::Outcome`].
    Scale {
        /// How many slots; the core checks it.
        count: u16,
    },
    /// Answer: [`Reply::Outcome`].
    Signal {
        /// Which.
        slot: Option<u16>,
        /// The signal's number, 1 to 64.
        signal: i32,
    },
    /// Answer: [`Reply::Outcome`].
    Reset {
        /// Which.
        slot: Option<u16>,
    },
    /// Answer: [`Reply::Event`], again and again.
    Watch,
    /// Answer: [`Reply::Environment`].
    Env {
        /// Which.
        slot: u16,
    },
    /// Answer: [`Reply::Lines`]; again and again where it follows.
    Logs {
        /// Which.
        slot: Option<u16>,
        /// How many of the last lines.
        lines: u32,
        /// Also those that come.
        follow: bool,
    },
    /// Answer: [`Reply::Outcome`], once the new binary has passed its check.
    Upgrade,
}

impl Call {
    /// Whether it needs the right to change the app. An environment has secrets in it.
    pub fn changes(&self) -> bool {
        match self {
            Self::List | Self::Describe | Self::Watch | Self::Logs { .. } => false,
            Self::Start { .. }
            | Self::Stop { .. }
            | Self::Restart { .. }
            | Self::Reload {}
            | Self::Set { .. }
            | Self::Scale { .. }
            | Self::Signal { .. }
            | Self::Reset { .. }
            | Self::Env { .. }
            | Self::Upgrade => true,
        }
    }

    /// Whether it is answered again and again.
    pub fn streams(&self) -> bool {
        matches!(self, Self::Watch | Self::Logs { follow: true, .. })
    }

    fn read(method: &str, parameters: &Parameters) -> Result<Self, Answer> {
        let slot = parameters.slot;
        Ok(match method {
            "List" => Self::List,
            "Describe" => Self::Describe,
            "Start" => Self::Start { slot },
            "Stop" => Self::Stop { slot },
            "Restart" => Self::Restart { slot },
            "Reload" => Self::Reload {},
            "Set" => match &parameters.values {
                Some(values) if !values.is_empty() => Self::Set { values: values.clone() },
                Some(_) | None => return Err(invalid_parameter("values")),
            },
            "Scale" => {
                Self::Scale { count: parameters.count.ok_or_else(|| invalid_parameter("count"))? }
            }
            "Signal" => match parameters.signal {
                Some(signal @ 1..=64) => Self::Signal { slot, signal },
                Some(_) | None => return Err(invalid_parameter("signal")),
            },
            "Reset" => Self::Reset { slot },
            "Watch" => Self::Watch,
            "Env" => Self::Env { slot: slot.ok_or_else(|| invalid_parameter("slot"))? },
            "Logs" => Self::Logs {
                slot,
                lines: parameters.lines.unwrap_or(LINES_DEFAULT),
                follow: parameters.follow.unwrap_or(false),
            },
            "Upgrade" => Self::Upgrade,
            _ => return Err(method_not_found(&format!("{INTERFACE}.{method}"))),
        })
    }
}

/// The answer to a [`Call`]; each names the answer it expects.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// The app of this supervisor.
    App(Box<AppState>),
    /// What came of a wish.
    Outcome(Outcome),
    /// Limits were changed, and nothing was started or stopped; what there is to say of it.
    Adjusted(String),
    /// An instance's environment.
    Environment(BTreeMap<String, String>),
    /// Lines of output.
    Lines(Vec<LogLine>),
    /// Something happened.
    Event(AppEvent),
    /// It was not done; also the end of a stream.
    Fault(Fault),
}

/// The request that is worked on.
#[derive(Debug, Clone)]
struct InFlight {
    call: Call,
    /// The peer does not want to know.
    oneway: bool,
}

/// One peer of the control socket.
#[derive(Debug)]
pub struct Connection {
    peer: Peer,
    rights: Rights,
    input: Frames,
    /// When the message began that is not complete.
    partial_since: Option<u64>,
    output: Vec<u8>,
    /// When the peer last took some of the output, or there began to be some.
    output_since: u64,
    in_flight: Option<InFlight>,
    /// Parts of a stream that were dropped since the last one that was not.
    lost: u64,
    last_active: u64,
    end: End,
}

/// What a peer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    Nothing,
    Read,
    Change,
}

/// How far the end of a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// Nothing more is read: what was asked is answered and sent.
    Closing,
    Closed,
}

/// The answer to `List` and `Describe`, worded without a tree of values in between: it is the one
/// that is asked for all the time.
fn encode_app(app: &AppState, described: bool) -> Vec<u8> {
    #[derive(Serialize)]
    struct Answer<T> {
        parameters: T,
    }
    #[derive(Serialize)]
    struct Listed<'a> {
        version: u32,
        apps: [&'a AppState; 1],
    }
    #[derive(Serialize)]
    struct Described<'a> {
        version: u32,
        app: &'a AppState,
    }
    if described {
        encode(&Answer { parameters: Described { version: VERSION, app } })
    } else {
        encode(&Answer { parameters: Listed { version: VERSION, apps: [app] } })
    }
}

impl Connection {
    /// A peer that was accepted at `now_ms`, with the rights it has on an app of `app_uid`.
    pub fn new(peer: Peer, groups: &GroupIds, app_uid: u32, now_ms: u64) -> Self {
        let rights = if permitted(&peer, groups, app_uid, true) {
            Rights::Change
        } else if permitted(&peer, groups, app_uid, false) {
            Rights::Read
        } else {
            Rights::Nothing
        };
        Self {
            peer,
            rights,
            input: Frames::new(MESSAGE_BYTES_MAX, REQUESTS_WAITING_MAX),
            partial_since: None,
            output: Vec::new(),
            output_since: now_ms,
            in_flight: None,
            lost: 0,
            last_active: now_ms,
            end: End::Open,
        }
    }

    /// Who it is.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The request that is worked on.
    pub fn in_flight(&self) -> Option<&Call> {
        self.in_flight.as_ref().map(|it| &it.call)
    }

    /// Takes bytes that the peer sent, however they were cut.
    pub fn receive(&mut self, now_ms: u64, bytes: &[u8]) {
        if !self.wants_input() || bytes.is_empty() {
            return;
        }
        self.last_active = now_ms;
        match self.input.push(bytes) {
            Ok(completed) => {
                let goes_on = self.partial_since.filter(|_| completed == 0);
                self.partial_since = self.input.has_partial().then(|| goes_on.unwrap_or(now_ms));
            }
            Err(overflow) => {
                let fault = match overflow {
                    Overflow::Bytes => Fault::new(
                        FaultKind::Invalid,
                        format!("more than {MESSAGE_BYTES_MAX} bytes are waiting"),
                    ),
                    Overflow::Messages => Fault::new(
                        FaultKind::TooMany,
                        format!("more than {REQUESTS_WAITING_MAX} requests are waiting"),
                    ),
                };
                self.send(now_ms, &fault_answer(&fault));
                self.begin_close();
            }
        }
    }

    /// The peer will send nothing more. What it asked for is still answered; a stream ends.
    pub fn handle_eof(&mut self) {
        self.partial_since = None;
        if self.in_flight.as_ref().is_some_and(|it| it.call.streams()) {
            self.end = End::Closed;
        }
        self.begin_end();
        self.close_when_done();
    }

    /// The next request to work on, where there is one and none is worked on. Requests that can be
    /// answered without the app are answered here.
    pub fn next_call(&mut self, now_ms: u64) -> Option<Call> {
        while self.in_flight.is_none() && !self.is_closed() {
            let Some(message) = self.input.pop() else { break };
            match self.interpret(&message) {
                Interpreted::Call(in_flight) => {
                    let call = in_flight.call.clone();
                    self.in_flight = Some(in_flight);
                    return Some(call);
                }
                Interpreted::Answer(answer) => self.send(now_ms, &answer),
                Interpreted::Silence => {}
                Interpreted::Garbage => self.begin_close(),
            }
        }
        self.close_when_done();
        None
    }

    /// Answers the request that is worked on. An answer that nobody waits for is dropped.
    pub fn reply(&mut self, now_ms: u64, reply: Reply) {
        let Some(in_flight) = &self.in_flight else { return };
        self.last_active = now_ms;
        let (streams, oneway) = (in_flight.call.streams(), in_flight.oneway);
        let reload = matches!(in_flight.call, Call::Reload {});
        let described = matches!(in_flight.call, Call::Describe);
        let answer = match reply {
            Reply::Event(event) => return self.reply_part(now_ms, json!({ "event": event })),
            Reply::Lines(lines) if streams => {
                return self.reply_part(now_ms, json!({ "lines": lines }));
            }
            Reply::Lines(lines) => success(json!({ "lines": lines, "lost": 0 })),
            Reply::App(app) => {
                self.close_call();
                if !oneway {
                    self.send_bytes(now_ms, &encode_app(&app, described));
                }
                return self.close_when_done();
            }
            Reply::Environment(variables) => success(json!({ "variables": variables })),
            Reply::Outcome(outcome) => match Fault::from_outcome(outcome, reload) {
                Ok(changed) => success(json!({ "changed": changed })),
                Err(fault) => fault_answer(&fault),
            },
            Reply::Adjusted(note) => success(json!({ "changed": true, "note": note })),
            Reply::Fault(fault) => fault_answer(&fault),
        };
        self.close_call();
        if !oneway {
            self.send(now_ms, &answer);
        }
        self.close_when_done();
    }

    fn close_call(&mut self) {
        self.in_flight = None;
        self.lost = 0;
    }

    /// One part of a stream. Of a peer that does not keep up, parts are dropped and counted.
    fn reply_part(&mut self, now_ms: u64, mut parameters: Value) {
        if let Value::Object(fields) = &mut parameters {
            fields.insert("lost".to_owned(), self.lost.into());
        }
        let bytes = encode(&Answer { error: None, parameters, continues: true });
        if self.output.len().saturating_add(bytes.len()) > OUTPUT_BYTES_MAX {
            self.lost = self.lost.saturating_add(1);
            return;
        }
        self.lost = 0;
        self.queue(now_ms, &bytes);
    }

    fn send(&mut self, now_ms: u64, answer: &Answer) {
        self.send_bytes(now_ms, &encode(answer));
    }

    fn send_bytes(&mut self, now_ms: u64, bytes: &[u8]) {
        // One answer always fits; several only if the peer reads.
        let waiting = self.output.len();
        if waiting > 0 && waiting.saturating_add(bytes.len()) > OUTPUT_BYTES_MAX {
            self.end = End::Closed;
            return;
        }
        self.queue(now_ms, bytes);
    }

    fn queue(&mut self, now_ms: u64, bytes: &[u8]) {
        if self.output.is_empty() {
            self.output_since = now_ms;
        }
        self.output.extend_from_slice(bytes);
    }

    /// What is to be written to the peer.
    pub fn outgoing(&self) -> &[u8] {
        &self.output
    }

    /// So many bytes of [`Connection::outgoing`] were written.
    pub fn sent(&mut self, now_ms: u64, count: usize) {
        if count > 0 {
            self.output.drain(..count.min(self.output.len()));
            self.output_since = now_ms;
            self.last_active = now_ms;
        }
        self.close_when_done();
    }

    /// Whether the peer is to be read from. While it is not, a readable socket says nothing.
    pub fn wants_input(&self) -> bool {
        self.end == End::Open
    }

    /// When to call [`Connection::handle_time`] at the latest. Any call may change it.
    pub fn deadline(&self) -> Option<u64> {
        let streams = self.in_flight.as_ref().is_some_and(|it| it.call.streams());
        let partial = self.partial_since.map(|at| at.saturating_add(MESSAGE_TIME_MS));
        // A person may look at a stream in a pager for as long as it takes.
        let output = (!self.output.is_empty() && !streams)
            .then(|| self.output_since.saturating_add(OUTPUT_TIME_MS));
        let idle = (self.in_flight.is_none() && self.output.is_empty())
            .then(|| self.last_active.saturating_add(IDLE_TIME_MS));
        [partial, output, idle].into_iter().flatten().min()
    }

    /// Closes the connection where its time is up.
    pub fn handle_time(&mut self, now_ms: u64) {
        if self.deadline().is_some_and(|at| at <= now_ms) {
            self.end = End::Closed;
        }
    }

    /// Whether the socket is to be closed and the connection forgotten.
    pub fn is_closed(&self) -> bool {
        self.end == End::Closed
    }

    /// What it sent makes no sense: only what was answered is still sent.
    fn begin_close(&mut self) {
        self.begin_end();
        self.in_flight = None;
        self.partial_since = None;
        self.input.clear();
        self.close_when_done();
    }

    fn begin_end(&mut self) {
        if self.end == End::Open {
            self.end = End::Closing;
        }
    }

    fn close_when_done(&mut self) {
        let waits = self.in_flight.is_some() || self.input.has_message();
        if self.end == End::Closing && !waits && self.output.is_empty() {
            self.end = End::Closed;
        }
    }

    fn interpret(&self, message: &[u8]) -> Interpreted {
        let request = match serde_json::from_slice::<Object<Request>>(message) {
            Ok(Object(request)) => request,
            // It is JSON, and a field has the wrong type: the peer can be told.
            Err(error) if error.is_data() => {
                let fault = Fault::new(FaultKind::Invalid, error.to_string());
                return Interpreted::Answer(fault_answer(&fault));
            }
            Err(_) => return Interpreted::Garbage,
        };
        match self.admit(&request) {
            Ok(call) => Interpreted::Call(InFlight { call, oneway: request.oneway }),
            Err(_) if request.oneway => Interpreted::Silence,
            Err(answer) => Interpreted::Answer(answer),
        }
    }

    fn admit(&self, request: &Request) -> Result<Call, Answer> {
        let none = Parameters::default();
        let parameters = request.parameters.as_ref().map_or(&none, |Object(it)| it);
        let Some((interface, method)) = request.method.rsplit_once('.') else {
            return Err(invalid_parameter("method"));
        };
        match interface {
            SERVICE => return Err(answer_service(method, parameters)),
            INTERFACE => {}
            other => {
                return Err(service_error("InterfaceNotFound", json!({ "interface": other })));
            }
        }
        let call = Call::read(method, parameters)?;
        if call.streams() && (!request.more || request.oneway) {
            return Err(service_error("ExpectedMore", json!({})));
        }
        let who = match (self.rights, call.changes()) {
            (Rights::Change, _) | (Rights::Read, false) => return Ok(call),
            (Rights::Read | Rights::Nothing, true) => CHANGERS,
            (Rights::Nothing, false) => READERS,
        };
        Err(fault_answer(&Fault::new(FaultKind::Denied, who)))
    }
}

/// What a message comes to.
enum Interpreted {
    Call(InFlight),
    Answer(Answer),
    Silence,
    Garbage,
}

fn fault_answer(fault: &Fault) -> Answer {
    Answer {
        error: Some(format!("{INTERFACE}.{}", fault.kind.name())),
        parameters: json!({ "message": fault.message }),
        continues: false,
    }
}

#[cfg(test)]
mod tests;
