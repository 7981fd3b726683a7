//! The listening sockets of an app, and what else of it stands in the file system.
//!
//! For each address there is a *parking* socket: clients wait in it while nobody serves, and a copy
//! of it outlives the keeper. Where connections are steered, each instance has a socket of its own
//! beside it, of which pmr holds a copy; else all instances share the parking socket.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::balance::hang::{Sample, Verdicts, Watch};
use crate::balance::program::Method;
use crate::balance::steering::{MAPS, Steering};
use crate::balance::table;
use crate::control::is_given;
use crate::control::protocol::{BalanceState, INTERFACE, Traffic};
use crate::keeper::protocol::{PARKED, ToKeeper};
use crate::policy::{Generation, SlotId};
use crate::spec::{Balance, ExecMode, ListenAddress, Spec};
use crate::sys::{Error, bpf, listen, notify};

use super::keeper_link::KeeperLink;
use super::level::Level;
use super::release::Release;

/// The lock by which an app has one keeper: its name in the app's runtime directory, and among the
/// keeper's fds.
pub(super) const LOCK: &str = "lock";

/// How the names of parking sockets begin at the keeper.
const PARKING: &str = "listen.";

/// How the names of an instance's own sockets begin at the keeper: its generation, its index in the
/// table and the address follow.
const SOCKET: &str = "socket.";

/// How the names of the maps begin by which an address is steered: which one, the version of their
/// layout and the address follow.
const MAP: &str = "steer.";

/// The listening sockets of an app.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    places: BTreeMap<ListenAddress, Place>,
    /// Why nothing can be steered here.
    unsteerable: Option<String>,
}

/// One address.
#[derive(Debug)]
struct Place {
    parking: OwnedFd,
    /// Where its connections can be steered.
    steering: Option<Steering>,
    members: BTreeMap<Generation, Member>,
    /// Whom the table names.
    published: Vec<Generation>,
    /// Who of them does not accept.
    watch: Watch<Generation>,
}

/// An instance's own socket.
#[derive(Debug)]
struct Member {
    index: u16,
    socket: OwnedFd,
}
impl Sockets {
    /// The name under which the keeper holds the parking socket of an address.
    pub(super) fn fd_name(address: &ListenAddress) -> String {
        format!("{PARKING}{address}")
    }

    /// The name under which the service manager keeps a copy; it has no room for some long paths.
    fn parked_name(address: &ListenAddress) -> Option<String> {
        notify::fd_name("listen-", &address.to_string())
    }

    /// Has the keeper keep a parking socket, and the service manager a copy.
    fn keep(
        keeper: &mut KeeperLink,
        address: &ListenAddress,
        fd: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let name = Self::fd_name(address);
        let message = match Self::parked_name(address) {
            Some(fd_name) => ToKeeper::Park { name, fd_name },
            None => ToKeeper::Store { name, generation: None },
        };
        keeper.say(&message, &[fd])
    }

    /// Takes what the service manager has kept of a keeper that was killed, where the releases
    /// still listen there: with the clients that wait. The others are closed, here and there.
    pub(super) fn take_parked<'a>(
        &mut self,
        releases: impl Iterator<Item = &'a Release>,
        fds: &mut BTreeMap<String, OwnedFd>,
        keeper: &mut KeeperLink,
    ) -> Result<(), Error> {
        let mut parked: BTreeMap<String, OwnedFd> =
            fds.extract_if(.., |name, _| name.starts_with(PARKED)).collect();
        let names: Vec<String> = parked.keys().cloned().collect();
        for address in releases.flat_map(bound_by) {
            let name = Self::parked_name(address).map(|name| format!("{PARKED}{name}"));
            let Some((name, fd)) = name.and_then(|name| parked.remove_entry(&name)) else {
                continue;
            };
            if !self.is_bound(address) && listens_at(&fd, address) {
                Self::keep(keeper, address, fd.as_fd())?;
                self.places.insert(address.clone(), Place::new(fd));
            } else {
                parked.insert(name, fd);
            }
        }
        for fd in parked.values() {
            // Now, not when the service manager closes its copy: the port may be wanted at once.
            listen::silence(fd);
        }
        // The copy goes with the last fd of its name only.
        names.into_iter().try_for_each(|name| keeper.say(&ToKeeper::Drop { name }, &[]))
    }

    /// Takes back what the keeper held: the parking sockets, the maps by which they are steered,
    /// and the instances' own sockets.
    pub(super) fn adopt(fds: &mut BTreeMap<String, OwnedFd>) -> Self {
        let parking = fds.extract_if(.., |name, _| name.starts_with(PARKING));
        let places = parking.filter_map(|(name, fd)| {
            let address = name.strip_prefix(PARKING)?.parse().ok()?;
            Some((address, Place::new(fd)))
        });
        let mut sockets = Self { places: places.collect(), unsteerable: why_unsteerable() };
        for (address, place) in &mut sockets.places {
            let [control, sockets] = MAPS.map(|map| fds.remove(&map_name(map, address)));
            let steering = control.zip(sockets).and_then(|(a, b)| Steering::adopt(a, b).ok());
            // Where that fails, the address is steered anew.
            let settles = |it: &Steering| it.settle(table::PARKING, place.parking.as_fd()).is_ok();
            place.steering = steering.filter(settles);
        }
        for (name, socket) in fds.extract_if(.., |name, _| name.starts_with(SOCKET)) {
            let Some((generation, index, address)) = parse_socket_name(&name) else { continue };
            if let Some(place) = sockets.places.get_mut(&address)
                && let Some(steering) = &mut place.steering
                && steering.keep(index)
                && steering.settle(index, socket.as_fd()).is_ok()
            {
                place.members.insert(generation, Member { index, socket });
            }
        }
        for steering in sockets.places.values().filter_map(|place| place.steering.as_ref()) {
            steering.forget_others();
        }
        sockets
    }

    /// The socket files that are made for apps.
    fn files(&self) -> impl Iterator<Item = String> + '_ {
        self.places.keys().filter_map(|address| match address {
            ListenAddress::Unix(path) => Some(path.display().to_string()),
            ListenAddress::Tcp(_) => None,
        })
    }

    pub(super) fn is_bound(&self, address: &ListenAddress) -> bool {
        self.places.contains_key(address)
    }

    /// Steers what can be steered and is not, by the method that `release` asks for. Returns why it
    /// cannot be, where it is asked for.
    pub(super) fn begin_steering(
        &mut self,
        release: &Release,
        keeper: &mut KeeperLink,
    ) -> Result<(), Error> {
        let method = method(release.spec.balance);
        for (address, place) in &mut self.places {
            if place.steering.is_some() || !listen::is_in_group(&place.parking) {
                continue;
            }
            let steering = Steering::create(method, place.parking.as_fd(), None)?;
            for (map, fd) in MAPS.iter().zip(steering.maps()) {
                let name = map_name(map, address);
                keeper.say(&ToKeeper::Store { name, generation: None }, &[fd])?;
            }
            place.steering = Some(steering);
        }
        Ok(())
    }

    /// Binds an address, so that instances can have sockets of their own beside it where they can
    /// be steered.
    pub(super) fn bind(&self, address: &ListenAddress) -> Result<OwnedFd, Error> {
        match address {
            ListenAddress::Tcp(tcp) if self.unsteerable.is_none() => listen::found_group(*tcp),
            ListenAddress::Tcp(tcp) => listen::bind_tcp(*tcp),
            ListenAddress::Unix(path) => listen::bind_unix(path),
        }
    }

    /// Takes a new parking socket into use.
    pub(super) fn insert(
        &mut self,
        address: ListenAddress,
        fd: OwnedFd,
        keeper: &mut KeeperLink,
    ) -> Result<(), Error> {
        Self::keep(keeper, &address, fd.as_fd())?;
        self.places.insert(address, Place::new(fd));
        Ok(())
    }

    /// Closes the sockets whose address is not wanted any more, and names them.
    pub(super) fn retain(&mut self, wanted: &BTreeSet<ListenAddress>) -> Vec<String> {
        let gone: Vec<_> =
            self.places.keys().filter(|address| !wanted.contains(*address)).cloned().collect();
        let mut names = Vec::new();
        for address in gone {
            self.places.remove(&address);
            names.push(Self::fd_name(&address));
            names.extend(MAPS.iter().map(|map| map_name(map, &address)));
        }
        names
    }

    /// How many sockets an instance of `release` inherits.
    pub(super) fn count(&self, release: &Release) -> usize {
        bound_by(release).iter().filter(|address| self.is_bound(address)).count()
    }

    /// The sockets that an instance inherits, in the order of its config.
    pub(super) fn of(&self, generation: Generation, release: &Release) -> Vec<BorrowedFd<'_>> {
        let places = bound_by(release).iter().filter_map(|address| self.places.get(address));
        places.map(|place| place.socket_of(generation)).collect()
    }
}

impl Sockets {
    /// Makes the sockets of an instance that is about to be spawned, and has the keeper hold them
    /// for as long as it holds the instance.
    pub(super) fn open(
        &mut self,
        generation: Generation,
        release: &Release,
        keeper: &mut KeeperLink,
    ) -> Result<(), Error> {
        if release.spec.balance == Balance::Shared {
            return Ok(());
        }
        for address in bound_by(release) {
            let ListenAddress::Tcp(tcp) = address else { continue };
            let Some(place) = self.places.get_mut(address) else { continue };
            let Some(steering) = &mut place.steering else { continue };
            let socket = listen::join_group(*tcp)?;
            let index = steering.add(socket.as_fd())?;
            let name = socket_name(generation, index, address);
            let store = ToKeeper::Store { name, generation: Some(generation.0) };
            keeper.say(&store, &[socket.as_fd()])?;
            place.members.insert(generation, Member { index, socket });
        }
        Ok(())
    }

    /// Ends the sockets of an instance of which nothing is left: whoever waits in them moves on to
    /// the others, though the keeper still holds copies.
    pub(super) fn close(&mut self, generation: Generation) {
        for place in self.places.values_mut() {
            if let Some(member) = place.members.remove(&generation) {
                listen::silence(&member.socket);
                if let Some(steering) = &mut place.steering {
                    steering.remove(member.index);
                }
            }
        }
    }

    /// Has new connections go to these instances, in this order and in turn.
    pub(super) fn publish(&mut self, serving: &[(SlotId, Generation)]) -> Result<(), Error> {
        self.places.values_mut().try_for_each(|place| place.publish(serving))
    }

    /// When to look at the queues.
    pub(super) fn next_look_ms(&self) -> Option<u64> {
        let watched = self.places.values().filter(|place| place.is_watched());
        watched.map(|place| place.watch.next_look_ms()).min()
    }

    /// Looks at the queues that are due, and says what has changed.
    pub(super) fn look(
        &mut self,
        now: u64,
        serving: &[(SlotId, Generation)],
    ) -> Vec<Result<Verdicts<Generation>, Error>> {
        let watched = self.places.values_mut().filter(|place| place.is_watched());
        let due = watched.filter(|place| place.watch.next_look_ms() <= now);
        due.map(|place| place.look(now, serving)).collect()
    }

    /// How many connections wait for an instance.
    pub(super) fn queued(&self, generation: Generation) -> u64 {
        let members = self.places.values().filter_map(|place| place.members.get(&generation));
        members.map(Member::queued).sum()
    }

    /// Whether connections go to anybody.
    pub(super) fn any_serves(&self) -> bool {
        self.places.values().any(|place| !place.published.is_empty())
    }

    /// How connections reach the instances of an app.
    pub(super) fn state(&self, spec: &Spec) -> Option<BalanceState> {
        if spec.exec_mode == ExecMode::Fork {
            return None;
        }
        let asked = spec.balance != Balance::Shared;
        let tcp = |address: &&ListenAddress| match address {
            ListenAddress::Tcp(_) => true,
            ListenAddress::Unix(_) => false,
        };
        let tcp: Vec<_> = spec.listen.iter().filter(tcp).collect();
        let is_steered = |address: &&&ListenAddress| {
            self.places.get(**address).is_some_and(|place| place.steering.is_some())
        };
        let all = tcp.iter().all(|address| is_steered(&address));
        let note = match (&self.unsteerable, asked, all) {
            (_, false, _) | (_, true, true) => None,
            (Some(why), ..) => Some(why.clone()),
            (None, ..) => {
                Some("a socket of an older pmr is in use until the app is stopped".to_owned())
            }
        };
        Some(BalanceState {
            adapter: "inherit".to_owned(),
            reason: "the app takes the sockets of `LISTEN_FDS`".to_owned(),
            method: match spec.balance {
                Balance::RoundRobin => "round-robin",
                Balance::Source => "source",
                Balance::Shared => "shared",
            }
            .to_owned(),
            steered: asked && all && !tcp.is_empty(),
            note,
        })
    }

    /// The connections of each instance that has a socket of its own.
    pub(super) fn traffic(&self) -> BTreeMap<Generation, Traffic> {
        let mut traffic: BTreeMap<Generation, Traffic> = BTreeMap::new();
        for place in self.places.values() {
            let Some(steering) = &place.steering else { continue };
            for (generation, member) in &place.members {
                let counted = steering.counters(member.index);
                let sum = traffic.entry(*generation).or_default();
                sum.connections = sum.connections.saturating_add(counted.taken);
                sum.migrated = sum.migrated.saturating_add(counted.migrated);
                sum.queued = sum.queued.saturating_add(member.queued());
            }
        }
        traffic
    }
}

impl Place {
    fn new(parking: OwnedFd) -> Self {
        Self {
            parking,
            steering: None,
            members: BTreeMap::new(),
            published: Vec::new(),
            watch: Watch::default(),
        }
    }

    fn socket_of(&self, generation: Generation) -> BorrowedFd<'_> {
        let own = self.members.get(&generation);
        own.map_or(self.parking.as_fd(), |member| member.socket.as_fd())
    }

    fn publish(&mut self, serving: &[(SlotId, Generation)]) -> Result<(), Error> {
        let Some(steering) = &mut self.steering else { return Ok(()) };
        let mut serving = serving.to_vec();
        serving.retain(|(_, generation)| {
            self.members.contains_key(generation) && !self.watch.is_out(*generation)
        });
        let generations: Vec<Generation> = serving.iter().map(|(_, it)| *it).collect();
        if generations == self.published {
            return Ok(());
        }
        let members = generations.iter().filter_map(|generation| self.members.get(generation));
        let order: Vec<u16> = members.map(|member| member.index).collect();
        steering.publish(&order);
        let nobody_served = self.published.is_empty();
        self.published = generations;
        let waits = listen::queue(&self.parking).unwrap_or_default().length > 0;
        if nobody_served && !order.is_empty() && waits {
            return steering.move_queue(table::PARKING, self.parking.as_fd());
        }
        Ok(())
    }
}

impl Place {
    /// Whether there is anybody to look at: the last one is never taken out.
    fn is_watched(&self) -> bool {
        self.steering.is_some() && self.members.len() > 1
    }

    /// Looks who accepts; takes those out that do not, with the connections that wait for them.
    fn look(
        &mut self,
        now: u64,
        serving: &[(SlotId, Generation)],
    ) -> Result<Verdicts<Generation>, Error> {
        let mut samples = Vec::new();
        for (_, generation) in serving {
            if let (Some(member), Some(steering)) = (self.members.get(generation), &self.steering) {
                let taken = steering.counters(member.index).taken;
                // One that does not listen at the moment has no queue.
                let queue = listen::queue(&member.socket).unwrap_or_default();
                let (queued, backlog) = (queue.length.into(), queue.backlog.into());
                samples.push(Sample { key: *generation, taken, queued, backlog });
            }
        }
        let verdicts = self.watch.look(now, &samples);
        self.publish(serving)?;
        let Some(steering) = &self.steering else { return Ok(verdicts) };
        let moved = verdicts.out.iter().chain(&verdicts.late);
        for member in moved.filter_map(|generation| self.members.get(generation)) {
            steering.move_queue(member.index, member.socket.as_fd())?;
        }
        // Whoever met a table with somebody in it who was gone already.
        if !self.published.is_empty() && listen::queue(&self.parking).unwrap_or_default().length > 0
        {
            steering.move_queue(table::PARKING, self.parking.as_fd())?;
        }
        Ok(verdicts)
    }
}

impl Member {
    /// How many connections wait to be accepted.
    fn queued(&self) -> u64 {
        listen::queue(&self.socket).unwrap_or_default().length.into()
    }
}

/// Why connections cannot be steered here, by the simplest of what it takes.
fn why_unsteerable() -> Option<String> {
    let probe = bpf::socket_array(1).and_then(|_| bpf::shared_array(8));
    probe.err().map(|error| match error.errno() {
        nix::libc::EPERM => "bpf(2) is not permitted here: that takes CAP_BPF".to_owned(),
        nix::libc::ENOSYS => "this kernel has no bpf(2)".to_owned(),
        _ => error.to_string(),
    })
}

fn map_name(map: &str, address: &ListenAddress) -> String {
    format!("{MAP}{map}.{}.{address}", table::VERSION)
}

/// What the steering program chooses by; a shared queue is that of the parking socket.
fn method(balance: Balance) -> Method {
    match balance {
        Balance::RoundRobin | Balance::Shared => Method::RoundRobin,
        Balance::Source => Method::Source,
    }
}

fn socket_name(generation: Generation, index: u16, address: &ListenAddress) -> String {
    format!("{SOCKET}{generation}.{index}.{address}")
}

fn parse_socket_name(name: &str) -> Option<(Generation, u16, ListenAddress)> {
    let mut parts = name.strip_prefix(SOCKET)?.splitn(3, '.');
    let generation = Generation(parts.next()?.parse().ok()?);
    let index = parts.next()?.parse().ok()?;
    Some((generation, index, parts.next()?.parse().ok()?))
}

/// The addresses at which pmr listens for the instances of a release.
pub(super) fn bound_by(release: &Release) -> &[ListenAddress] {
    match release.spec.exec_mode {
        ExecMode::Fork => &[],
        ExecMode::Cluster => &release.spec.listen,
    }
}

fn listens_at(fd: &OwnedFd, address: &ListenAddress) -> bool {
    match address {
        ListenAddress::Tcp(address) => listen::listens_at_tcp(fd, *address),
        ListenAddress::Unix(path) => listen::listens_at_unix(fd, path),
    }
}

/// Tells the keeper what to remove at the very end, whoever ends the app. A config in the app's own
/// runtime directory was made by pmr (the demo's), and goes with it. A directory that the service
/// manager has made it removes itself, and pmr may have no right to.
pub(super) fn declare_remains(
    keeper: &mut KeeperLink,
    directory: &Path,
    level: &Level,
    config: Option<&Path>,
    sockets: &Sockets,
) -> Result<(), Error> {
    let text = |path: &Path| path.display().to_string();
    let own = [INTERFACE, LOCK];
    let own = own.map(|name| text(&directory.join(name)));
    let config = config.filter(|config| config.starts_with(directory)).map(text);
    let files = own.into_iter().chain(config).chain(sockets.files());
    let home = level.home().and_then(|home| home.made()).map(text);
    let made = !is_given(directory, |name| std::env::var_os(name));
    let directories = home.into_iter().chain(made.then(|| text(directory))).collect();
    keeper.say(&ToKeeper::Remove { files: files.collect(), directories }, &[])
}
