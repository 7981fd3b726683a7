//! Instances that bind their port by themselves: a hook in their groups has them share it, and what
//! they listen with is found and fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::balance::choice::{Adapter, Machine, Permit};
use crate::balance::program;
use crate::keeper::protocol::ToKeeper;
use crate::policy::{Event, Fact, Generation};
use crate::spec::{ListenAddress, Readiness};
use crate::sys::{Error, bpf, clock, diag, listen, process, procfs};

use super::Runtime;
use super::instances::Instance;
use super::level::Level;
use super::looks::Looks;
use super::release::Release;
use super::sockets::Sockets;

/// The first wait for a socket after a spawn, in milliseconds.
const LOOK_MS_MIN: u64 = 5;

/// The longest: an instance may open another one at any time.
const LOOK_MS_MAX: u64 = 1000;

/// Under these names the keeper holds the hook.
const HOOKS: [&str; 2] = ["hook.v4", "hook.v6"];

/// The hook, and who is looked at.
#[derive(Debug)]
pub(super) struct Binding {
    hook: Option<Hook>,
    searches: Looks,
    /// Why the last look failed, which is said once.
    failures: BTreeMap<Generation, String>,
}

impl Default for Binding {
    fn default() -> Self {
        let searches = Looks::new(LOOK_MS_MIN, LOOK_MS_MAX);
        Self { hook: None, searches, failures: BTreeMap::new() }
    }
}

#[derive(Debug)]
struct Hook {
    ports: Vec<u16>,
    _links: [OwnedFd; 2],
}

impl Binding {
    /// When to look again.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        self.searches.deadline_ms()
    }

    pub(super) fn forget(&mut self, generation: Generation) {
        self.searches.end(generation);
        self.failures.remove(&generation);
    }
}

/// What the machine permits of what balancing needs.
pub(super) fn machine(level: &Level, sockets: &Sockets) -> Machine {
    let bind_hook = match level.home() {
        None => {
            Permit::No("no cgroup can be made here, in which a bind could be hooked".to_owned())
        }
        Some(_) => match bpf::load_bind_hooks(&program::bind_hook(&[1])) {
            Ok(_) => Permit::Yes,
            Err(error) => Permit::No(bpf::describe(&error)),
        },
    };
    Machine { steering: sockets.permit(), bind_hook }
}

/// The ports that instances of a release bind by themselves.
fn ports(release: &Release) -> Vec<u16> {
    let port = |address: &ListenAddress| match address {
        ListenAddress::Tcp(address) => Some(address.port()),
        ListenAddress::Unix(_) => None,
    };
    release.spec.listen.iter().filter_map(port).collect()
}

impl Runtime {
    /// Before an instance is spawned that binds by itself: has it share its port.
    pub(super) fn hook_binds(&mut self, release: &Release) -> Result<(), Error> {
        if !release.choice.hooked {
            return Ok(());
        }
        self.sockets.give_to_user(release, self.releases.values())?;
        let bound = self.releases.values().filter(|it| it.choice.hooked);
        let wanted: BTreeSet<u16> = bound.flat_map(ports).collect();
        let wanted: Vec<u16> = wanted.into_iter().collect();
        if self.binding.hook.as_ref().is_some_and(|hook| hook.ports == wanted) {
            return Ok(());
        }
        let Some(home) = self.level.home() else { return Ok(()) };
        let programs = bpf::load_bind_hooks(&program::bind_hook(&wanted))?;
        let group = rustix::fs::open(
            home.path(),
            rustix::fs::OFlags::RDONLY
                | rustix::fs::OFlags::DIRECTORY
                | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(|errno| Error::at("open the group", home.path(), errno))?;
        let links = bpf::hook_binds(group.as_fd(), &programs)?;
        for (name, link) in HOOKS.into_iter().zip(&links) {
            let store = ToKeeper::Store { name: name.to_owned(), generation: None };
            self.keeper.say(&store, &[link.as_fd()])?;
        }
        self.binding.hook = Some(Hook { ports: wanted, _links: links });
        Ok(())
    }

    /// Begins to look for the sockets of an instance, where it is to have some of its own.
    pub(super) fn look_for_sockets(&mut self, generation: Generation, release: &Release) {
        let binds = match release.choice.adapter {
            Adapter::Bind => true,
            // Until it is given one.
            Adapter::Node => release.choice.hooked && !self.sockets.has_any(generation),
            Adapter::None => release.spec.ready == Readiness::Listen,
            Adapter::Inherit => false,
        };
        if binds {
            self.binding.searches.begin(generation, clock::now());
        }
    }

    /// The same for all that lived on from before.
    pub(super) fn look_for_all_sockets(&mut self) {
        let alive: Vec<(Generation, Release)> = self
            .instances
            .iter()
            .filter(|(_, instance)| !instance.ended)
            .filter_map(|(id, it)| Some((*id, self.releases.get(&it.release)?.clone())))
            .collect();
        for (generation, release) in alive {
            self.look_for_sockets(generation, &release);
        }
    }

    /// Looks for what instances have bound since.
    pub(super) fn search_time(&mut self, now: u64) {
        for generation in self.binding.searches.due(now) {
            let before = self.binding.failures.remove(&generation);
            if let Err(error) = self.search(generation) {
                let failure = error.to_string();
                if before.as_ref() != Some(&failure) {
                    self.warn(&failure);
                }
                self.binding.failures.insert(generation, failure);
            }
        }
    }

    /// That nobody but this app listens where an instance does. The hooks of two apps on one port
    /// would have them share it, without either of them knowing.
    fn check_alone(&self, socket: BorrowedFd<'_>) -> Result<(), Error> {
        let address = listen::address_of(socket)?;
        let listening = || -> Result<BTreeSet<u64>, Error> {
            let all = diag::listeners(address.port())?;
            Ok(all.iter().filter(|it| it.address == address).map(|it| it.inode).collect())
        };
        let own = self.sockets.inodes();
        let mut strangers = listening()?;
        strangers.retain(|inode| !own.contains(inode));
        for pid in self.instances.values().flat_map(Instance::pids) {
            for inode in procfs::sockets_of(pid).unwrap_or_default() {
                strangers.remove(&inode);
            }
        }
        // One of an instance's that it has closed in between is nobody's now.
        if strangers.is_empty() || strangers.is_disjoint(&listening()?) {
            return Ok(());
        }
        let source = std::io::Error::from_raw_os_error(nix::libc::EADDRINUSE);
        Err(Error::at("have this app alone listen at", address.to_string(), source))
    }

    fn search(&mut self, generation: Generation) -> Result<(), Error> {
        let instance = self.instances.get(&generation).filter(|instance| !instance.ended);
        let release = instance.and_then(|instance| self.releases.get(&instance.release));
        let (Some(instance), Some(release)) = (instance, release.cloned()) else {
            self.binding.forget(generation);
            return Ok(());
        };
        // Another instance that was looked at a moment ago has made some of these.
        let own = self.sockets.inodes();
        let mut new = Vec::new();
        for port in ports(&release) {
            let listeners = diag::listeners(port)?;
            new.extend(listeners.into_iter().map(|it| it.inode).filter(|it| !own.contains(it)));
        }
        if new.is_empty() {
            return Ok(());
        }
        let mut found = Vec::new();
        let mut held = BTreeSet::new();
        for pid in instance.pids() {
            for inode in procfs::sockets_of(pid).unwrap_or_default() {
                held.insert(inode);
                if !new.contains(&inode) {
                    continue;
                }
                if release.choice.adapter == Adapter::None {
                    found.push(None);
                } else if let Some(socket) = process::fetch_socket(pid, inode)? {
                    found.push(Some(socket));
                }
                new.retain(|other| *other != inode);
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        // One that has opened another may have closed the one before.
        self.sockets.drop_closed(generation, &held);
        for socket in found.iter().flatten() {
            self.check_alone(socket.as_fd())?;
        }
        for socket in found.into_iter().flatten() {
            self.sockets.take_bound(generation, &release, socket, &mut self.keeper)?;
        }
        if release.choice.adapter == Adapter::None {
            self.binding.forget(generation);
        }
        if release.spec.ready == Readiness::Listen {
            self.events.push_back(Event::Fact(Fact::Ready { generation }));
        }
        Ok(())
    }
}
