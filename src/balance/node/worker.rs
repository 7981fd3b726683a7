//! One worker, as its primary sees it.

use std::collections::{BTreeMap, BTreeSet};

use super::address::Address;
use super::hub::Hub;
use super::lines::Lines;
use super::message::{self, Answer, Heard, Oddity, Query, RequestId, Wanted};
use super::outbox::{Chunk, Loss, Outbox};

/// Most servers of one worker, asked for or open: each costs an fd here and one in the keeper. An
/// app with one server for each of its passive transfers has some dozens.
pub const SERVERS_MAX: usize = 256;

/// Most bytes that are read at once: what one read makes of a worker's words is bounded by it.
pub const READ_MAX: usize = 16 * 1024;

/// With so many bytes waiting for a worker, it is not read from until it has taken some.
const WAITING_MAX: usize = 64 * 1024;

/// So many oddities of a worker are reported. The rest would say the same.
const REPORTS_MAX: u8 = 8;

/// What a channel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// `NODE_UNIQUE_ID` is set: the process is a worker of a cluster.
    Cluster,
    /// It is not: only messages of the app pass.
    Messages,
}

/// How far a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was heard. A launcher that does not hand on the channel stays so.
    Silent,
    /// It runs.
    Online,
    /// One of its servers accepts.
    Listening,
    /// It was asked to leave, or does so by itself.
    Leaving,
}

/// What is to be done, or known, about a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Do {
    /// It wants a socket: [`Worker::give`] it, or [`Worker::refuse`] it. Until then its `listen`
    /// hangs, without any error.
    Ask {
        /// What the answer names.
        id: RequestId,
        /// The socket, with the port that other workers have where 0 was asked for.
        wanted: Wanted,
    },
    /// It runs Node, and the channel works. None of the app's code has run.
    Online,
    /// A server of it accepts, whether or not its socket came from here.
    Listening {
        /// Where: as it was given, else in the worker's words.
        address: Address,
        /// Whether its socket came from here. If not, it is not balanced.
        given: bool,
    },
    /// It has no server left at this address. What waits in the socket's queue will not be
    /// accepted there any more.
    Closed {
        /// As it was given.
        address: Address,
    },
    /// `process.send('ready')`.
    Ready,
    /// Any other message of the app: JSON text.
    Message(String),
    /// The app itself has its worker leave. The channel will be closed.
    Leaving,
    /// To be reported: the first few oddities of a worker.
    Report(Oddity),
}

/// A request that waits for its answer.
#[derive(Debug)]
struct Asked {
    wanted: Wanted,
    data: Option<String>,
}

/// A socket that a worker was given.
#[derive(Debug)]
struct Given {
    asked: Address,
    index: u32,
    at: Address,
    data: Option<String>,
}

/// One worker, as its primary sees it: bytes go in, and what is to be done comes out. The module's
/// doc has the rules for whoever drives it.
#[derive(Debug)]
pub struct Worker {
    channel: Channel,
    phase: Phase,
    lines: Lines,
    outbox: Outbox,
    asked: BTreeMap<RequestId, Asked>,
    given: BTreeMap<RequestId, Given>,
    /// Given before a resume, under ids that are not known any more.
    earlier: BTreeSet<Address>,
    /// The input may begin in the middle of a line.
    may_be_rest: bool,
    /// A socket may be acknowledged that another supervisor has sent.
    may_arrive: bool,
    seq: u64,
    reports: u8,
}

impl Worker {
    /// A worker that is about to be spawned.
    pub fn new(channel: Channel) -> Self {
        Self {
            channel,
            phase: Phase::Silent,
            lines: Lines::default(),
            outbox: Outbox::default(),
            asked: BTreeMap::new(),
            given: BTreeMap::new(),
            earlier: BTreeSet::new(),
            may_be_rest: false,
            may_arrive: false,
            seq: 0,
            reports: 0,
        }
    }

    /// A worker that has spoken with another supervisor, in this phase as far as is known, and was
    /// given these sockets.
    ///
    /// What the other one had read and not answered is lost: a worker that waits for it will
    /// never listen, and is ended by its listen timeout.
    pub fn resumed(
        channel: Channel,
        phase: Phase,
        given: impl IntoIterator<Item = Address>,
    ) -> Self {
        let earlier = given.into_iter().collect();
        Self { phase, earlier, may_be_rest: true, may_arrive: true, ..Self::new(channel) }
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the worker may be read from. False while it takes nothing of what is written to it,
    /// or has asked for all that it may ask for.
    pub fn takes_input(&self) -> bool {
        self.outbox.bytes() < WAITING_MAX && self.asked.len() < SERVERS_MAX
    }

    /// Takes what was read from the channel, at most [`READ_MAX`] bytes. Handles that came with it
    /// are to be closed: they are acknowledged here.
    pub fn read(&mut self, mut bytes: &[u8], hub: &mut Hub, out: &mut Vec<Do>) {
        while let Some(line) = self.lines.next(&mut bytes) {
            let heard = message::read(&line);
            let may_be_rest = std::mem::take(&mut self.may_be_rest);
            if !(may_be_rest && matches!(heard, Heard::Odd(Oddity::NotJson))) {
                self.handle(heard, hub, out);
            }
        }
    }

    fn handle(&mut self, heard: Heard, hub: &mut Hub, out: &mut Vec<Do>) {
        match heard {
            Heard::Handle(inner) => {
                self.outbox.acknowledge();
                self.report(Oddity::Handle, out);
                match inner.map(|inner| *inner) {
                    Some(Heard::Message(text)) => Self::handle_message(text, out),
                    Some(Heard::Odd(oddity)) => self.report(oddity, out),
                    // Node's own messages come without a handle.
                    Some(_) | None => {}
                }
            }
            Heard::Message(text) => Self::handle_message(text, out),
            Heard::Odd(oddity) => self.report(oddity, out),
            Heard::Arrived => {
                let has_arrived = self.outbox.arrived();
                self.check_handle(has_arrived, out);
            }
            Heard::Lost => self.handle_lost(hub, out),
            Heard::Online
            | Heard::Query(_)
            | Heard::Listening { .. }
            | Heard::Close { .. }
            | Heard::Leaving { .. }
                if self.channel == Channel::Messages =>
            {
                self.report(Oddity::NotClustered, out);
            }
            Heard::Online => {
                if self.phase == Phase::Silent {
                    self.phase = Phase::Online;
                    out.push(Do::Online);
                }
            }
            Heard::Query(query) => self.handle_query(*query, hub, out),
            Heard::Listening { address, index } => self.handle_listening(address, index, out),
            Heard::Close { key } => self.handle_close(&key, out),
            Heard::Leaving { seq } => {
                self.phase = Phase::Leaving;
                let own = self.next_seq();
                self.outbox.push(message::acknowledged(seq, own), None);
                out.push(Do::Leaving);
            }
        }
    }

    fn handle_message(text: String, out: &mut Vec<Do>) {
        out.push(if text == "\"ready\"" { Do::Ready } else { Do::Message(text) });
    }

    fn handle_query(&mut self, query: Query, hub: &mut Hub, out: &mut Vec<Do>) {
        let id = RequestId(query.seq);
        let data = query.data;
        let is_known = self.asked.contains_key(&id) || self.given.contains_key(&id);
        let is_full = self.asked.len().saturating_add(self.given.len()) >= SERVERS_MAX;
        let (errno, oddity) = match query.wanted {
            _ if is_known => (libc::EINVAL, Oddity::Twice),
            Err(refused) => (refused.errno, Oddity::Refused(refused.why)),
            Ok(_) if is_full => (libc::EMFILE, Oddity::Refused("it has too many servers")),
            Ok(wanted) => {
                hub.enter(&wanted.address, wanted.index, data.as_deref());
                let address = hub.resolved(&wanted.address, wanted.index);
                out.push(Do::Ask { id, wanted: Wanted { address, ..wanted.clone() } });
                self.asked.insert(id, Asked { wanted, data });
                return;
            }
        };
        self.answer(id, None, data.as_deref(), Err(errno));
        self.report(oddity, out);
    }

    /// Answers a request with a socket: with the [`Chunk`] that names the request it is to be sent.
    /// `at` is where it is bound, with its real port. False where there is no such request.
    #[must_use]
    pub fn give(&mut self, id: RequestId, at: Address, hub: &mut Hub) -> bool {
        let Some(Asked { wanted, data }) = self.asked.remove(&id) else { return false };
        let Wanted { address: asked, index, datagram, .. } = wanted;
        hub.resolve(&asked, index, at.port());
        let told = data.as_deref().map(|own| hub.data(&asked, index).unwrap_or(own));
        self.answer(id, Some(&at), told, Ok(datagram));
        self.given.insert(id, Given { asked, index, at, data });
        true
    }

    /// Answers a request with an error, a positive `errno`: the app gets it as an `error` event.
    /// False where there is no such request.
    #[must_use]
    pub fn refuse(&mut self, id: RequestId, errno: i32, hub: &Hub) -> bool {
        let Some(Asked { wanted, data }) = self.asked.remove(&id) else { return false };
        let told = hub.data(&wanted.address, wanted.index);
        let told = data.as_deref().map(|own| told.unwrap_or(own));
        self.answer(id, None, told, Err(errno));
        true
    }

    /// The key of a socket has all that is to be known when it is closed. Its number is the
    /// worker's own, so it is unique there, whatever supervisor has given it.
    fn answer(
        &mut self,
        id: RequestId,
        at: Option<&Address>,
        data: Option<&str>,
        outcome: Result<bool, i32>,
    ) {
        let key = at.map_or_else(|| id.0.to_string(), |at| format!("{}@{at}", id.0));
        let answer = Answer { to: id.0, key: &key, data, seq: self.next_seq() };
        match outcome {
            Ok(datagram) => self.outbox.push(answer.given(datagram), Some(id)),
            Err(errno) => self.outbox.push(answer.refused(errno), None),
        }
    }

    fn handle_lost(&mut self, hub: &Hub, out: &mut Vec<Do>) {
        match self.outbox.lost() {
            Loss::Again => {}
            Loss::NoHandle => self.check_handle(false, out),
            Loss::GivenUp(id) => {
                // The app is told what is the matter: it has no fd free.
                if let Some(Given { asked, index, at, data }) = self.given.remove(&id) {
                    let told = hub.data(&asked, index);
                    let told = data.as_deref().map(|own| told.unwrap_or(own));
                    self.answer(id, None, told, Err(libc::EMFILE));
                    self.push_closed(at, out);
                }
                self.report(Oddity::Lost, out);
            }
        }
    }

    fn check_handle(&mut self, was_sent: bool, out: &mut Vec<Do>) {
        if !was_sent && !std::mem::take(&mut self.may_arrive) {
            self.report(Oddity::NoHandle, out);
        }
    }

    /// The worker says where it asked for, with the port that it has.
    fn handle_listening(&mut self, heard: Address, index: u32, out: &mut Vec<Do>) {
        if self.phase != Phase::Leaving {
            self.phase = Phase::Listening;
        }
        let is_it = |given: &&Given| {
            let port = given.at.port().unwrap_or(0);
            given.index == index && given.asked.with_port(port) == heard
        };
        let given = self.given.values().find(is_it).map(|given| given.at.clone());
        let given = given.or_else(|| self.earlier.get(&heard).cloned());
        let is_given = given.is_some();
        out.push(Do::Listening { address: given.unwrap_or(heard), given: is_given });
    }

    fn handle_close(&mut self, key: &str, out: &mut Vec<Do>) {
        let (number, at) = key.split_once('@').unwrap_or((key, ""));
        // What has not arrived cannot be closed.
        let id = number.parse().ok().map(RequestId).filter(|id| !self.outbox.holds(*id));
        if let Some(given) = id.and_then(|id| self.given.remove(&id)) {
            return self.push_closed(given.at, out);
        }
        match at.parse().ok().and_then(|at: Address| self.earlier.take(&at)) {
            Some(at) => self.push_closed(at, out),
            None => self.report(Oddity::NoServer, out),
        }
    }

    /// One server at `at` is closed: says so if it was the last one there.
    fn push_closed(&mut self, at: Address, out: &mut Vec<Do>) {
        let is_open = self.given.values().any(|given| given.at == at) || self.earlier.contains(&at);
        if !is_open {
            out.push(Do::Closed { address: at });
        }
    }

    /// Sends a text to the app, as `process.on('message')` gets it. False where it cannot be sent,
    /// since too much waits already, or the worker leaves.
    #[must_use]
    pub fn say(&mut self, text: &str) -> bool {
        self.phase != Phase::Leaving && self.outbox.push_message(message::message(text))
    }

    /// Asks the worker to close its servers, to finish what it has, and to end. False where it
    /// leaves already, or is no cluster's worker and would not understand.
    #[must_use]
    pub fn disconnect(&mut self) -> bool {
        let can = self.phase != Phase::Leaving && self.channel == Channel::Cluster;
        if can {
            self.phase = Phase::Leaving;
            let seq = self.next_seq();
            self.outbox.push(message::disconnect(seq), None);
        }
        can
    }

    /// What is to be written now; nothing while an acknowledgement is awaited.
    pub fn next_chunk(&mut self) -> Option<Chunk<'_>> {
        self.outbox.next()
    }

    /// So many bytes of the last [`Worker::next_chunk`] were written, its socket with the first.
    pub fn wrote(&mut self, count: usize) {
        self.outbox.wrote(count);
    }

    /// Whether nothing waits to be written, and no acknowledgement is awaited.
    pub fn is_quiet(&self) -> bool {
        self.outbox.is_empty()
    }

    fn next_seq(&mut self) -> u64 {
        let seq = self.seq;
        self.seq = self.seq.wrapping_add(1);
        seq
    }

    fn report(&mut self, oddity: Oddity, out: &mut Vec<Do>) {
        if self.reports < REPORTS_MAX {
            self.reports = self.reports.saturating_add(1);
            out.push(Do::Report(oddity));
        }
    }
}
