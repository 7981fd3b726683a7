//! Node's channels: what a worker asks for is bound and given, what it says becomes facts, and what
//! it is to be told is sent as far as there is room.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use crate::balance::node::{
    Address, Channel as Kind, Chunk, Do, Hub, Phase, READ_MAX, RequestId, Wanted, Worker,
    may_have_port,
};
use crate::keeper::protocol::ToKeeper;
use crate::policy::{Event, Fact, Generation};
use crate::spec::Readiness;
use crate::sys::channel::{Channel, Received};
use crate::sys::poll::Interest;
use crate::sys::{Error, process, procfs};

use super::Runtime;
use super::instances::fd_name;
use super::release::Release;
use super::sources::Source;

/// How the names of the channels begin at the keeper.
pub(super) const CHANNEL: &str = "node";

/// Reads of one channel in a turn: a worker that talks without end does not keep the loop.
const READS_MAX: usize = 4;

/// The workers of an app.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// What all workers are told of each server. Recorded.
    pub(super) hub: Hub,
    peers: BTreeMap<Generation, Peer>,
}

/// One process with a channel.
#[derive(Debug)]
struct Peer {
    channel: Channel,
    worker: Worker,
    /// The sockets that were given, as they may have to be sent again.
    given: BTreeMap<RequestId, OwnedFd>,
    kind: Kind,
    /// It has not taken all that it was told.
    waits: bool,
}

impl Node {
    /// With what the workers were told so far.
    pub(super) fn of(hub: Hub) -> Self {
        Self { hub, peers: BTreeMap::new() }
    }

    /// The channels of instances that lived on from before.
    pub(super) fn adopt(
        &mut self,
        generation: Generation,
        fd: OwnedFd,
        kind: Kind,
        given: Vec<Address>,
    ) {
        // How far it is, is known by what the core remembers; here it only orders what may come.
        let worker = Worker::resumed(kind, Phase::Online, given);
        let channel = Channel::from_fd(fd);
        let given = BTreeMap::new();
        self.peers.insert(generation, Peer { channel, worker, given, kind, waits: false });
    }

    /// Whether an instance is a worker of a cluster that can be told to leave.
    pub(super) fn is_worker(&self, generation: Generation) -> bool {
        self.peers.get(&generation).is_some_and(|peer| match peer.kind {
            Kind::Cluster => true,
            Kind::Messages => false,
        })
    }
}

impl Runtime {
    /// Makes the channel of an instance that is about to be spawned. Returns the instance's end.
    pub(super) fn open_channel(
        &mut self,
        generation: Generation,
        release: &Release,
    ) -> Result<Option<OwnedFd>, Error> {
        let Some(kind) = release.choice.channel else { return Ok(None) };
        let (channel, end) = Channel::pair()?;
        let name = fd_name(CHANNEL, generation);
        let store = ToKeeper::Store { name, generation: Some(generation.0) };
        self.keeper.say(&store, &[channel.as_fd()])?;
        let worker = Worker::new(kind);
        let peer = Peer { channel, worker, given: BTreeMap::new(), kind, waits: false };
        self.node.peers.insert(generation, peer);
        self.watch_channel(generation);
        Ok(Some(end))
    }

    /// Watches the channel of an instance, where it has one.
    pub(super) fn watch_channel(&mut self, generation: Generation) {
        let Some(peer) = self.node.peers.get(&generation) else { return };
        let (token, interest) = (Source::Channel(generation).token(), Interest::READABLE);
        if let Err(error) = self.poll.add(peer.channel.as_fd(), token, interest) {
            self.warn(&error.to_string());
        }
    }

    /// The channel of an instance is not needed any more, or broken.
    pub(super) fn close_channel(&mut self, generation: Generation) {
        if let Some(peer) = self.node.peers.remove(&generation) {
            self.forget_fd(peer.channel.as_fd());
        }
    }

    /// Takes what a worker says, and answers.
    pub(super) fn hear_channel(&mut self, generation: Generation) {
        for _ in 0..READS_MAX {
            let Some(peer) = self.node.peers.get_mut(&generation) else { return };
            if !peer.worker.takes_input() {
                break;
            }
            let mut bytes = vec![0; READ_MAX];
            let mut out = Vec::new();
            match peer.channel.read(&mut bytes) {
                Ok(Received::Bytes(count)) => {
                    let said = bytes.get(..count).unwrap_or_default();
                    peer.worker.read(said, &mut self.node.hub, &mut out);
                }
                Ok(Received::Empty) => break,
                Ok(Received::Closed) => {
                    self.close_channel(generation);
                    return self.leave_at_once(generation);
                }
                Err(error) => {
                    self.warn(&error.to_string());
                    return self.close_channel(generation);
                }
            }
            for what in out {
                self.do_for_worker(generation, what);
            }
        }
        self.flush_channel(generation);
    }

    fn do_for_worker(&mut self, generation: Generation, what: Do) {
        let ready = Fact::Ready { generation };
        match what {
            Do::Ask { id, wanted } => self.answer_worker(generation, id, &wanted),
            Do::Listening { address, given } => {
                let release = self.release_of(generation);
                let is_at_home = |release: &Release| address.is_readiness(&release.spec.listen);
                let is_fetched =
                    release.is_some_and(|release| release.choice.hooked && is_at_home(release));
                let is_ready = release.is_some_and(|release| {
                    release.spec.ready == Readiness::Listen && is_at_home(release)
                });
                if given && is_fetched {
                    self.binding.forget(generation);
                } else if !given && !is_fetched {
                    let text = format!(
                        "generation {generation} listens at {address} with a socket of its own: \
                         it is not balanced"
                    );
                    self.warn(&text);
                }
                if is_ready {
                    self.events.push_back(Event::Fact(ready));
                }
            }
            Do::Closed { address } => {
                for name in self.sockets.close_at(generation, &address) {
                    self.say(&ToKeeper::Drop { name });
                }
            }
            Do::Ready => {
                let waits = |release: &Release| release.spec.ready == Readiness::Message;
                if self.release_of(generation).is_some_and(waits) {
                    self.events.push_back(Event::Fact(ready));
                }
            }
            Do::Report(oddity) => self.warn(&format!("generation {generation}: {oddity}")),
            // The channel works; messages of the app's own are for a primary that pmr is not; an
            // app that leaves by itself exits by itself.
            Do::Online | Do::Message(_) | Do::Leaving => {}
        }
    }

    fn release_of(&self, generation: Generation) -> Option<&Release> {
        self.releases.get(&self.instances.get(&generation)?.release)
    }

    /// Gives a worker the socket it wants, or says why not.
    fn answer_worker(&mut self, generation: Generation, id: RequestId, wanted: &Wanted) {
        let socket = self.socket_for(generation, wanted);
        let Some(peer) = self.node.peers.get_mut(&generation) else { return };
        match socket {
            Ok((address, socket)) => {
                peer.given.insert(id, socket);
                if !peer.worker.give(id, address, &mut self.node.hub) {
                    peer.given.remove(&id);
                }
            }
            Err(error) => {
                let errno = match error.errno() {
                    0 => nix::libc::EINVAL,
                    errno => errno,
                };
                // False for one that does not ask any more.
                if peer.worker.refuse(id, errno, &self.node.hub) {
                    self.warn(&format!("generation {generation} gets no socket: {error}"));
                }
            }
        }
    }

    fn socket_for(
        &mut self,
        generation: Generation,
        wanted: &Wanted,
    ) -> Result<(Address, OwnedFd), Error> {
        let refused = |errno| {
            let source = std::io::Error::from_raw_os_error(errno);
            Error::at("give a worker a socket at", wanted.address.to_string(), source)
        };
        let gone = || refused(nix::libc::EBADF);
        let instance = self.instances.get(&generation).ok_or_else(gone)?;
        if let Address::Descriptor(fd) = wanted.address {
            let socket = process::fetch_fd(instance.pidfd.as_fd(), fd)?;
            return Ok((wanted.address.clone(), socket));
        }
        let release = self.releases.get(&instance.release).cloned().ok_or_else(gone)?;
        if let Some(port) = wanted.address.port() {
            let own = || rustix::process::geteuid().as_raw();
            let uid = release.identity.as_ref().map_or_else(own, |identity| identity.uid);
            let start = procfs::unprivileged_port_start();
            if !may_have_port(port, start, uid, &release.spec.listen) {
                return Err(refused(nix::libc::EACCES));
            }
        }
        let address = self.sockets.bind_wanted(wanted, &release, &mut self.keeper)?;
        self.declare_remains()?;
        let socket = self.sockets.open_at(generation, &release, &address, &mut self.keeper)?;
        let socket = socket.ok_or_else(gone)?.try_clone_to_owned();
        Ok((address, socket.map_err(|error| Error::new("copy a socket", error))?))
    }

    /// Sends a worker what it is to be told, as far as it takes it.
    pub(super) fn flush_channel(&mut self, generation: Generation) {
        let Some(peer) = self.node.peers.get_mut(&generation) else { return };
        let mut failure = None;
        let mut waits = false;
        while let Some(Chunk { bytes, handle }) = peer.worker.next_chunk() {
            let socket = handle.and_then(|id| peer.given.get(&id)).map(AsFd::as_fd);
            match peer.channel.write(bytes, socket) {
                Ok(0) => {
                    waits = true;
                    break;
                }
                Ok(count) => peer.worker.wrote(count),
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        if waits != peer.waits {
            peer.waits = waits;
            let interest = Interest { writable: waits, ..Interest::READABLE };
            let token = Source::Channel(generation).token();
            super::never_mind(self.poll.modify(peer.channel.as_fd(), token, interest));
        }
        // Its exit is told by the kernel; a broken channel alone ends nobody.
        if failure.is_some() {
            self.close_channel(generation);
            self.leave_at_once(generation);
        }
    }

    /// Tells an instance something of PM2's; says whether it has a channel that takes it.
    pub(super) fn tell_instance(&mut self, generation: Generation, text: &str) -> bool {
        let peer = self.node.peers.get_mut(&generation);
        let told = peer.is_some_and(|peer| peer.worker.say(text));
        self.flush_channel(generation);
        told
    }

    /// Has a worker close its servers and finish what it has; says whether it can.
    pub(super) fn disconnect_worker(&mut self, generation: Generation) -> bool {
        let peer = self.node.peers.get_mut(&generation);
        let told = peer.is_some_and(|peer| peer.worker.disconnect());
        self.flush_channel(generation);
        told && self.node.peers.contains_key(&generation)
    }
}
