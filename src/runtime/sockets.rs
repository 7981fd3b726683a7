//! The listening sockets of an app, and what else of it stands in the file system.
//!
//! For each address there is a *parking* socket: clients wait in it while nobody serves, and a copy
//! of it outlives the keeper. Where connections are steered, each instance has a socket of its own
//! beside it, of which pmr holds a copy; else all instances share the parking socket.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::balance::choice::{Adapter, Permit, Spread};
use crate::balance::node::{Address, Family, Wanted};
use crate::balance::program::Method;
use crate::balance::steering::{MAPS, Steering};
use crate::balance::table;
use crate::control::is_given;
use crate::control::protocol::{BalanceState, INTERFACE, Traffic};
use crate::keeper::protocol::{PARKED, ToKeeper};
use crate::policy::{Generation, SlotId};
use crate::spec::ExecMode;
use crate::sys::{Error, bpf, listen, notify};

use super::keeper_link::KeeperLink;
use super::level::Level;
use super::place::{Look, Place};
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

/// How the names of copies begin in the service manager's store.
const STORED: &str = "listen-";

/// The listening sockets of an app.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    places: BTreeMap<Address, Place>,
    /// Why nothing can be steered here.
    unsteerable: Option<String>,
}

impl Sockets {
    /// Takes back what the keeper held: the parking sockets, the maps by which they are steered,
    /// and the instances' own sockets. `configured` are the addresses that configs name.
    pub(super) fn adopt(
        configured: &BTreeSet<Address>,
        fds: &mut BTreeMap<String, OwnedFd>,
    ) -> Self {
        let mut places = BTreeMap::new();
        for (name, fd) in fds.extract_if(.., |name, _| name.starts_with(PARKING)) {
            let address = name.strip_prefix(PARKING).and_then(|it| it.parse::<Address>().ok());
            if let Some(address) = address {
                let learned = !configured.contains(&address);
                places.insert(address, Place::new(fd, learned));
            }
        }
        let mut sockets = Self { places, unsteerable: why_unsteerable() };
        for (address, place) in &mut sockets.places {
            let [control, array] = MAPS.map(|map| fds.remove(&map_name(map, address)));
            let steering = control.zip(array).and_then(|(a, b)| Steering::adopt(a, b).ok());
            // Where that fails, the address is steered anew.
            let settles = |it: &Steering| it.settle(table::PARKING, place.parking.as_fd()).is_ok();
            place.steering = steering.filter(settles);
        }
        for (name, socket) in fds.extract_if(.., |name, _| name.starts_with(SOCKET)) {
            if let Some((generation, index, address)) = parse_socket_name(&name)
                && let Some(place) = sockets.places.get_mut(&address)
            {
                place.take_over(generation, index, socket);
            }
        }
        sockets.places.values().for_each(Place::forget_others);
        sockets
    }

    /// Takes what the service manager has kept of a keeper that was killed, where the releases
    /// still listen there: with the clients that wait. The others are closed, here and there.
    pub(super) fn take_parked(
        &mut self,
        releases: &[&Release],
        fds: &mut BTreeMap<String, OwnedFd>,
        keeper: &mut KeeperLink,
    ) -> Result<(), Error> {
        for (name, fd) in fds.extract_if(.., |name, _| name.starts_with(PARKED)) {
            let stored = name.strip_prefix(PARKED).unwrap_or_default();
            let address = notify::fd_address(STORED, stored).and_then(|it| it.parse().ok());
            let wanted = address.filter(|address: &Address| {
                let may = |release: &&&Release| may_listen(release, address);
                !self.places.contains_key(address)
                    && listens_at(&fd, address)
                    && releases.iter().any(|release| may(&release))
            });
            match wanted {
                Some(address) => {
                    let learned = !releases.iter().any(|it| bound_by(it).contains(&address));
                    keep(keeper, &address, fd.as_fd())?;
                    self.places.insert(address, Place::new(fd, learned));
                }
                // Now, not when the service manager closes its copy: the port may be wanted at
                // once.
                None => listen::silence(&fd),
            }
            // The copy goes with the last fd of its name only.
            keeper.say(&ToKeeper::Drop { name }, &[])?;
        }
        Ok(())
    }

    /// What can be steered is, by the method that `release` asks for.
    pub(super) fn begin_steering(
        &mut self,
        release: &Release,
        keeper: &mut KeeperLink,
    ) -> Result<(), Error> {
        let Some(method) = method(release.choice.spread) else { return Ok(()) };
        if self.unsteerable.is_some() {
            return Ok(());
        }
        self.places
            .iter_mut()
            .try_for_each(|(address, place)| begin_steering(address, place, method, keeper))
    }

    /// Binds an address of a config, so that instances can have sockets of their own beside it
    /// where they can be steered.
    pub(super) fn bind(&self, address: &Address) -> Result<OwnedFd, Error> {
        match address {
            Address::Tcp(tcp) if self.unsteerable.is_none() => listen::found_group(*tcp, false),
            Address::Tcp(tcp) => listen::bind_tcp(*tcp),
            Address::Unix(path) => listen::bind_unix(path),
            Address::Udp(udp) => listen::bind_udp(*udp, false, false),
            Address::Descriptor(_) => {
                let none = std::io::Error::from_raw_os_error(nix::libc::EBADF);
                Err(Error::new("bind an inherited socket", none))
            }
        }
    }

    /// The address that a worker of Node asks for, bound if it was not. It is another where the
    /// kernel chooses the port, or has no IPv6.
    pub(super) fn bind_wanted(
        &mut self,
        wanted: &Wanted,
        release: &Release,
        keeper: &mut KeeperLink,
    ) -> Result<Address, Error> {
        if self.places.contains_key(&wanted.address) {
            return Ok(wanted.address.clone());
        }
        let only_v6 = wanted.family == Family::OnlyV6;
        let fd = match &wanted.address {
            Address::Tcp(tcp) if self.unsteerable.is_none() => listen::found_group(*tcp, only_v6)?,
            Address::Udp(udp) => listen::bind_udp(*udp, only_v6, wanted.reuse_address)?,
            Address::Unix(path) => {
                crate::sys::identity::with_rights_of(release.identity.as_ref(), path, || {
                    listen::bind_unix_for(path, wanted.mode)
                })?
            }
            Address::Tcp(_) | Address::Descriptor(_) => self.bind(&wanted.address)?,
        };
        let address = match &wanted.address {
            Address::Tcp(_) => Address::Tcp(listen::address_of(fd.as_fd())?),
            Address::Udp(_) => Address::Udp(listen::address_of(fd.as_fd())?),
            Address::Unix(_) | Address::Descriptor(_) => wanted.address.clone(),
        };
        self.learn(address.clone(), fd, release, keeper)?;
        Ok(address)
    }

    /// Takes a parking socket into use that is in no config.
    fn learn(
        &mut self,
        address: Address,
        fd: OwnedFd,
        release: &Release,
        keeper: &mut KeeperLink,
    ) -> Result<(), Error> {
        let mut place = Place::new(fd, true);
        keep(keeper, &address, place.parking.as_fd())?;
        if let Some(method) = method(release.choice.spread).filter(|_| self.unsteerable.is_none()) {
            begin_steering(&address, &mut place, method, keeper)?;
        }
        self.places.insert(address, place);
        Ok(())
    }

    /// Takes a new parking socket of a config into use.
    pub(super) fn insert(
        &mut self,
        address: Address,
        fd: OwnedFd,
        keeper: &mut KeeperLink,
    ) -> Result<(), Error> {
        keep(keeper, &address, fd.as_fd())?;
        self.places.insert(address, Place::new(fd, false));
        Ok(())
    }

    pub(super) fn is_bound(&self, address: &Address) -> bool {
        self.places.contains_key(address)
    }

    /// Closes the sockets whose address is not wanted any more, and names them for the keeper.
    /// `is_served` says whether any instance is there: where none is, what instances had bound
    /// waits for the next.
    pub(super) fn retain(&mut self, releases: &[&Release], is_served: bool) -> Vec<String> {
        let is_wanted = |address: &Address, place: &Place| {
            let may = || releases.iter().any(|release| may_listen(release, address));
            let keeps = place.is_used() || !place.is_steered() || !is_served;
            releases.iter().any(|release| bound_by(release).contains(address)) || keeps && may()
        };
        let gone = self.places.extract_if(.., |address, place| !is_wanted(address, place));
        gone.flat_map(|(address, _)| names_of(&address)).collect()
    }

    /// An instance does not listen at an address any more, while it goes on. Names what is dropped
    /// with its last user.
    pub(super) fn close_at(&mut self, generation: Generation, address: &Address) -> Vec<String> {
        let Some(place) = self.places.get_mut(address) else { return Vec::new() };
        place.close(generation);
        if place.is_steered() && place.learned && !place.is_used() {
            self.places.remove(address);
            return names_of(address);
        }
        Vec::new()
    }

    /// The socket files that are made for apps.
    fn files(&self) -> impl Iterator<Item = String> + '_ {
        self.places.keys().filter_map(|address| match address {
            Address::Unix(path) => Some(path.display().to_string()),
            Address::Tcp(_) | Address::Udp(_) | Address::Descriptor(_) => None,
        })
    }

    /// How many sockets an instance of `release` inherits.
    pub(super) fn count(&self, release: &Release) -> usize {
        bound_by(release).iter().filter(|address| self.is_bound(address)).count()
    }

    /// The sockets that an instance inherits, in the order of its config.
    pub(super) fn of(&self, generation: Generation, release: &Release) -> Vec<BorrowedFd<'_>> {
        let bound = bound_by(release);
        let places = bound.iter().filter_map(|address| self.places.get(address));
        places.map(|place| place.socket_of(generation)).collect()
    }

    /// Makes the sockets of an instance that is about to be spawned.
    pub(super) fn open(
        &mut self,
        generation: Generation,
        release: &Release,
        keeper: &mut KeeperLink,
    ) -> Result<(), Error> {
        for address in bound_by(release) {
            self.open_at(generation, release, &address, keeper)?;
        }
        Ok(())
    }

    /// The socket of an instance at an address that is bound: made, where it is to be one of its
    /// own, and held by the keeper as long as it holds the instance.
    pub(super) fn open_at(
        &mut self,
        generation: Generation,
        release: &Release,
        address: &Address,
        keeper: &mut KeeperLink,
    ) -> Result<Option<BorrowedFd<'_>>, Error> {
        let Some(place) = self.places.get_mut(address) else { return Ok(None) };
        let own = method(release.choice.spread).is_some();
        if own && place.is_steered() && !place.has(generation) {
            let socket = listen::join_group(place.parking.as_fd())?;
            let copy = socket.try_clone().map_err(|error| Error::new("copy a socket", error))?;
            if let Some(index) = place.add(generation, socket)? {
                let name = socket_name(generation, index, address);
                let store = ToKeeper::Store { name, generation: Some(generation.0) };
                keeper.say(&store, &[copy.as_fd()])?;
            }
        }
        Ok(Some(place.socket_of(generation)))
    }

    /// Before an instance is spawned that binds by itself: all sockets of a group are of one user,
    /// so those that were made for another release's, or by pmr, are given to this one's. An app
    /// that changes its user by itself has sockets of none of them.
    pub(super) fn give_to_user<'a>(
        &self,
        release: &Release,
        others: impl Iterator<Item = &'a Release>,
    ) -> Result<(), Error> {
        let own = rustix::process::geteuid().as_raw();
        let (user, users) = (release.uid(), others.map(Release::uid).chain([own]).collect());
        let places = self.places.iter().filter(|(address, _)| may_listen(release, address));
        places.map(|(_, place)| place).try_for_each(|place| place.give(&users, user))
    }

    /// Takes a socket that an instance has bound by itself.
    pub(super) fn take_bound(
        &mut self,
        generation: Generation,
        release: &Release,
        socket: OwnedFd,
        keeper: &mut KeeperLink,
    ) -> Result<(), Error> {
        let address = Address::Tcp(listen::address_of(socket.as_fd())?);
        // Not its own backlog, which may be as small as 5.
        listen::start(socket.as_fd())?;
        if !self.places.contains_key(&address) {
            let parking = listen::join_group(socket.as_fd())?;
            self.learn(address.clone(), parking, release, keeper)?;
        }
        let Some(place) = self.places.get_mut(&address) else { return Ok(()) };
        let copy = socket.try_clone().map_err(|error| Error::new("copy a socket", error))?;
        if let Some(index) = place.add(generation, socket)? {
            let name = socket_name(generation, index, &address);
            let store = ToKeeper::Store { name, generation: Some(generation.0) };
            keeper.say(&store, &[copy.as_fd()])?;
        }
        Ok(())
    }

    /// Closes the sockets of an instance that are not among these, by the numbers of their inodes:
    /// it has closed them, and nobody accepts from them any more.
    pub(super) fn drop_closed(&mut self, generation: Generation, held: &BTreeSet<u64>) {
        for place in self.places.values_mut() {
            place.drop_closed(generation, held);
        }
    }

    /// Whether an instance has a socket of its own anywhere.
    pub(super) fn has_any(&self, generation: Generation) -> bool {
        self.places.values().any(|place| place.has(generation))
    }

    /// Where an instance has sockets of its own.
    pub(super) fn addresses_of(&self, generation: Generation) -> Vec<Address> {
        let places = self.places.iter().filter(|(_, place)| place.has(generation));
        places.map(|(address, _)| address.clone()).collect()
    }

    /// The sockets that are pmr's, by the numbers of their inodes.
    pub(super) fn inodes(&self) -> BTreeSet<u64> {
        let sockets = self.places.values().flat_map(Place::sockets);
        sockets.filter_map(|fd| rustix::fs::fstat(fd).ok()).map(|stat| stat.st_ino).collect()
    }

    /// Ends the sockets of an instance of which nothing is left.
    pub(super) fn close(&mut self, generation: Generation) {
        for place in self.places.values_mut() {
            place.close(generation);
        }
    }

    /// Whether an instance accepts from all sockets that are its own.
    pub(super) fn accepts(&mut self, now: u64, generation: Generation) -> Result<bool, Error> {
        let mut places = self.places.values_mut();
        places.try_fold(true, |all, place| Ok(all & place.accepts(now, generation)?))
    }

    /// Has new connections go to these instances, in this order and in turn.
    pub(super) fn publish(
        &mut self,
        now: u64,
        serving: &[(SlotId, Generation)],
    ) -> Result<(), Error> {
        self.places.values_mut().try_for_each(|place| place.publish(now, serving))
    }

    /// When to look at the queues.
    pub(super) fn next_look_ms(&self) -> Option<u64> {
        self.places.values().filter_map(Place::next_look_ms).min()
    }

    /// Looks at the queues that are due, and says what has changed.
    pub(super) fn look(
        &mut self,
        now: u64,
        serving: &[(SlotId, Generation)],
        starved_ms: impl Fn(Generation) -> u64,
    ) -> Vec<Result<Look, Error>> {
        let places = self.places.values_mut();
        let due = places.filter(|place| place.next_look_ms().is_some_and(|at| at <= now));
        due.map(|place| place.look(now, serving, &starved_ms)).collect()
    }

    /// Moves those on who wait for an instance. It must stand still.
    pub(super) fn move_queues(&self, generation: Generation) -> Result<(), Error> {
        self.places.values().try_for_each(|place| place.move_queues(generation))
    }

    /// How many connections wait for an instance.
    pub(super) fn queued(&self, generation: Generation) -> u64 {
        self.places.values().map(|place| place.queued(generation)).sum()
    }

    /// Whether connections go to anybody.
    pub(super) fn any_serves(&self) -> bool {
        self.places.values().any(Place::is_served)
    }

    /// What the machine permits of steering.
    pub(super) fn permit(&self) -> Permit {
        self.unsteerable.clone().map_or(Permit::Yes, Permit::No)
    }

    /// Where instances listen, as far as pmr has a hand in it.
    pub(super) fn addresses(&self) -> Vec<String> {
        self.places.keys().map(ToString::to_string).collect()
    }

    /// How connections reach the instances of an app.
    pub(super) fn state(&self, release: &Release) -> Option<BalanceState> {
        if release.spec.exec_mode == ExecMode::Fork {
            return None;
        }
        let choice = &release.choice;
        let is_tcp = |address: &Address| match address {
            Address::Tcp(_) => true,
            Address::Unix(_) | Address::Udp(_) | Address::Descriptor(_) => false,
        };
        let older = self.places.iter().any(|(it, place)| !place.is_steered() && is_tcp(it));
        let steered = method(choice.spread).is_some();
        let note = (steered && older && self.unsteerable.is_none()).then(|| {
            "a socket of an older pmr is in use until the app is stopped and started".to_owned()
        });
        Some(BalanceState {
            adapter: choice.adapter.to_string(),
            reason: choice.why.clone(),
            method: choice.spread.to_string(),
            steered: steered && !older,
            note: choice.note.clone().or(note),
        })
    }

    /// The connections of each instance that has a socket of its own.
    pub(super) fn traffic(&self) -> BTreeMap<Generation, Traffic> {
        let mut traffic: BTreeMap<Generation, Traffic> = BTreeMap::new();
        for (generation, counted, queued) in self.places.values().flat_map(Place::counters) {
            let sum = traffic.entry(generation).or_default();
            sum.connections = sum.connections.saturating_add(counted.taken);
            sum.migrated = sum.migrated.saturating_add(counted.migrated);
            sum.queued = sum.queued.saturating_add(queued);
        }
        traffic
    }
}

/// Has a place steer, and the keeper hold its maps where that begins.
fn begin_steering(
    address: &Address,
    place: &mut Place,
    method: Method,
    keeper: &mut KeeperLink,
) -> Result<(), Error> {
    if !place.steer_by(method)? {
        return Ok(());
    }
    let maps = place.steering.iter().flat_map(|steering| MAPS.into_iter().zip(steering.maps()));
    for (map, fd) in maps {
        let name = map_name(map, address);
        keeper.say(&ToKeeper::Store { name, generation: None }, &[fd])?;
    }
    Ok(())
}

/// Has the keeper keep a parking socket, and the service manager a copy where it has room for the
/// name: some paths are too long.
fn keep(keeper: &mut KeeperLink, address: &Address, fd: BorrowedFd<'_>) -> Result<(), Error> {
    let name = format!("{PARKING}{address}");
    let message = match notify::fd_name(STORED, &address.to_string()) {
        Some(fd_name) => ToKeeper::Park { name, fd_name },
        None => ToKeeper::Store { name, generation: None },
    };
    keeper.say(&message, &[fd])
}

/// What the keeper holds of an address, besides what belongs to instances.
fn names_of(address: &Address) -> Vec<String> {
    let maps = MAPS.into_iter().map(|map| map_name(map, address));
    maps.chain([format!("{PARKING}{address}")]).collect()
}

/// Why connections cannot be steered here, by the simplest of what it takes.
fn why_unsteerable() -> Option<String> {
    let probe = bpf::socket_array(1).and_then(|_| bpf::shared_array(8));
    probe.err().map(|error| bpf::describe(&error))
}

fn map_name(map: &str, address: &Address) -> String {
    format!("{MAP}{map}.{}.{address}", table::VERSION)
}

/// What the steering program chooses by, where each instance has a queue of its own.
fn method(spread: Spread) -> Option<Method> {
    match spread {
        Spread::InTurn => Some(Method::RoundRobin),
        Spread::ByClient => Some(Method::Source),
        Spread::Alone | Spread::OneQueue => None,
    }
}

fn socket_name(generation: Generation, index: u16, address: &Address) -> String {
    format!("{SOCKET}{generation}.{index}.{address}")
}

fn parse_socket_name(name: &str) -> Option<(Generation, u16, Address)> {
    let mut parts = name.strip_prefix(SOCKET)?.splitn(3, '.');
    let generation = Generation(parts.next()?.parse().ok()?);
    let index = parts.next()?.parse().ok()?;
    Some((generation, index, parts.next()?.parse().ok()?))
}

/// The addresses at which pmr listens for the instances of a release.
pub(super) fn bound_by(release: &Release) -> Vec<Address> {
    if release.choice.inherits {
        release.spec.listen.iter().map(Address::from).collect()
    } else {
        Vec::new()
    }
}

/// Whether instances of a release may come to listen at an address.
fn may_listen(release: &Release, address: &Address) -> bool {
    let own = bound_by(release).contains(address);
    let port = |it: &crate::spec::ListenAddress| Address::from(it).port();
    match release.choice.adapter {
        Adapter::Node => true,
        Adapter::Bind => own || release.spec.listen.iter().any(|it| port(it) == address.port()),
        Adapter::Inherit | Adapter::None => own,
    }
}

fn listens_at(fd: &OwnedFd, address: &Address) -> bool {
    match address {
        Address::Tcp(address) => listen::listens_at_tcp(fd, *address),
        Address::Unix(path) => listen::listens_at_unix(fd, path),
        Address::Udp(_) | Address::Descriptor(_) => false,
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
