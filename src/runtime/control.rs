//! The control socket's fds: accepting, reading and writing. What is said is for
//! [`crate::control::server`], what is answered for `answers`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};

use nix::unistd::{Group, geteuid};

use crate::control::server::{Connection, GroupIds, admits};
use crate::policy::{Outcome, Ticket};
use crate::sys::clock;
use crate::sys::poll::{Interest, Ready};
use crate::sys::unix;

use super::Runtime;
use super::sources::Source;
use super::upgrade::Check;

/// Bytes that are read from a client at a time; it may have more to say in the next turn. Requests
/// are of some hundred bytes, and pages once used stay with a process that otherwise sleeps.
const READ_BYTES: usize = 8 * 1024;

/// How long nobody is accepted when no descriptor is free, in milliseconds.
const ACCEPT_PAUSE_MS: u64 = 1000;

/// Most connections that are accepted in one turn.
const ACCEPTS_MAX: usize = 32;

/// A connected client.
#[derive(Debug)]
pub(super) struct Client {
    socket: OwnedFd,
    pub(super) connection: Connection,
    watched: Interest,
}

/// Everything about the control socket.
#[derive(Debug)]
pub(super) struct Control {
    listener: OwnedFd,
    /// Since no descriptor was free.
    paused_until_ms: Option<u64>,
    pub(super) clients: BTreeMap<u64, Client>,
    last_client: u64,
    last_ticket: u64,
    /// Who waits for the outcome of which wish.
    pub(super) tickets: BTreeMap<Ticket, u64>,
    /// Those of them that change limits only.
    pub(super) adjusting: BTreeSet<Ticket>,
    /// The check of a new binary that runs.
    pub(super) check: Option<Check>,
}

impl Control {
    pub(super) fn new(listener: OwnedFd) -> Self {
        Self {
            listener,
            paused_until_ms: None,
            clients: BTreeMap::new(),
            last_client: 0,
            last_ticket: 0,
            tickets: BTreeMap::new(),
            adjusting: BTreeSet::new(),
            check: None,
        }
    }

    /// When something of it is due.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        let clients = self.clients.values().filter_map(|client| client.connection.deadline());
        let check = self.check.as_ref().map(Check::deadline_ms);
        clients.chain(self.paused_until_ms).chain(check).min()
    }

    /// A ticket for a wish of this client.
    pub(super) fn ticket(&mut self, client: u64) -> Ticket {
        self.last_ticket = self.last_ticket.saturating_add(1);
        let ticket = Ticket(self.last_ticket);
        self.tickets.insert(ticket, client);
        ticket
    }
}

impl Runtime {
    pub(super) fn watch_control(&mut self) {
        let listener = self.control.listener.as_fd();
        if let Err(error) = self.poll.add(listener, Source::Control.token(), Interest::READABLE) {
            self.warn(&error.to_string());
        }
    }

    /// Accepts who waits. Where no descriptor is free nobody is accepted for a second, so that the
    /// loop goes on.
    pub(super) fn accept_clients(&mut self) {
        for _ in 0..ACCEPTS_MAX {
            match unix::accept(&self.control.listener) {
                Ok(Some(socket)) => self.accept_client(socket),
                Ok(None) => return,
                Err(error) => {
                    self.warn(&error.to_string());
                    self.forget_fd(&self.control.listener);
                    let until = clock::now().saturating_add(ACCEPT_PAUSE_MS);
                    self.control.paused_until_ms = Some(until);
                    return;
                }
            }
        }
    }

    fn accept_client(&mut self, socket: OwnedFd) {
        let Ok(peer) = unix::peer(&socket) else { return };
        let present = self.control.clients.values().map(|client| client.connection.peer().uid);
        if !admits(present, peer.uid) {
            return;
        }
        self.control.last_client = self.control.last_client.saturating_add(1);
        let id = self.control.last_client;
        if let Err(error) = self.poll.add(&socket, Source::Client(id).token(), Interest::READABLE) {
            return self.warn(&error.to_string());
        }
        let app_uid = self.app_uid();
        // The lookup may ask a server, and is hundreds of calls where systemd's module is: not for
        // those who have every right without it.
        let has_all = peer.uid == 0 || peer.uid == app_uid;
        let groups = if has_all { GroupIds::default() } else { group_ids() };
        let connection = Connection::new(peer, &groups, app_uid, clock::now());
        let client = Client { socket, connection, watched: Interest::READABLE };
        self.control.clients.insert(id, client);
        // Most have said already what they want.
        let ready =
            Ready { token: 0, readable: true, writable: false, priority: false, hangup: false };
        self.hear_client(id, ready);
    }

    /// Whom the app runs as.
    fn app_uid(&self) -> u32 {
        let identity = self.current_release().and_then(|release| release.identity.as_ref());
        identity.map_or(geteuid().as_raw(), |identity| identity.uid)
    }

    /// A client has said something, or can hear something.
    pub(super) fn hear_client(&mut self, id: u64, ready: Ready) {
        let now = clock::now();
        let Some(client) = self.control.clients.get_mut(&id) else { return };
        if ready.readable && client.connection.wants_input() {
            let mut bytes = [0; READ_BYTES];
            match rustix::io::read(&client.socket, &mut bytes) {
                Ok(0) => client.connection.handle_eof(),
                Ok(count) => {
                    client.connection.receive(now, bytes.get(..count).unwrap_or_default());
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(_) => return self.drop_client(id),
            }
        } else if ready.hangup {
            return self.drop_client(id);
        }
        self.work_on_calls(id);
    }

    /// Works on what a client asks, as long as it is answered at once.
    pub(super) fn work_on_calls(&mut self, id: u64) {
        let now = clock::now();
        while let Some(client) = self.control.clients.get_mut(&id)
            && let Some(call) = client.connection.next_call(now)
        {
            self.handle_call(id, &call);
        }
    }

    /// Writes to every client what it can take, and lets go of those that are done.
    pub(super) fn flush_clients(&mut self) {
        let ids: Vec<u64> = self.control.clients.keys().copied().collect();
        for id in ids {
            self.flush_client(id);
        }
    }

    /// Works on what all clients ask.
    pub(super) fn work_on_all_calls(&mut self) {
        let ids: Vec<u64> = self.control.clients.keys().copied().collect();
        for id in ids {
            self.work_on_calls(id);
        }
    }

    fn flush_client(&mut self, id: u64) {
        let now = clock::now();
        let Some(client) = self.control.clients.get_mut(&id) else { return };
        while !client.connection.outgoing().is_empty() {
            let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
            match rustix::net::send(&client.socket, client.connection.outgoing(), flags) {
                Ok(count) => client.connection.sent(now, count),
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return self.drop_client(id),
            }
        }
        if client.connection.is_closed() {
            return self.drop_client(id);
        }
        let wanted = Interest {
            readable: client.connection.wants_input(),
            writable: !client.connection.outgoing().is_empty(),
            priority: false,
        };
        if wanted != client.watched {
            client.watched = wanted;
            let token = Source::Client(id).token();
            if self.poll.modify(&client.socket, token, wanted).is_err() {
                self.drop_client(id);
            }
        }
    }

    /// A client that is gone cancels nothing: its wishes go on, unanswered.
    fn drop_client(&mut self, id: u64) {
        if let Some(client) = self.control.clients.remove(&id) {
            self.forget_fd(&client.socket);
        }
        self.control.tickets.retain(|_, client| *client != id);
        let tickets = &self.control.tickets;
        self.control.adjusting.retain(|ticket| tickets.contains_key(ticket));
    }

    /// The core's answer to a wish.
    pub(super) fn answer(&mut self, ticket: Ticket, outcome: Outcome) {
        let adjusting = self.control.adjusting.remove(&ticket);
        if let Some(client) = self.control.tickets.remove(&ticket) {
            let reply = match outcome {
                Outcome::Done if adjusting => self.adjusted(),
                outcome => crate::control::server::Reply::Outcome(outcome),
            };
            self.reply(client, reply);
        }
    }

    /// Answers what a client asked; then the next of its questions can be worked on.
    pub(super) fn reply(&mut self, id: u64, reply: crate::control::server::Reply) {
        let now = clock::now();
        if let Some(client) = self.control.clients.get_mut(&id) {
            client.connection.reply(now, reply);
        }
    }

    /// What is due by now.
    pub(super) fn control_time(&mut self, now: u64) {
        if self.control.paused_until_ms.is_some_and(|at| at <= now) {
            self.control.paused_until_ms = None;
            self.watch_control();
        }
        let ids: Vec<u64> = self.control.clients.keys().copied().collect();
        for id in ids {
            if let Some(client) = self.control.clients.get_mut(&id) {
                client.connection.handle_time(now);
            }
        }
        self.check_time(now);
    }
}

/// The groups with rights. Looked up for each connection: they may be made while pmr runs.
fn group_ids() -> GroupIds {
    let id = |name| Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
    GroupIds { pmr: id("pmr"), pmr_admin: id("pmr-admin") }
}
