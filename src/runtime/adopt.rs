//! The only start path: read the state, look at what is there, take over what lives, start what is
//! missing. A fresh start is adopting nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use crate::balance::node::Address;
use crate::keeper::protocol::{Hello, ToKeeper};
use crate::policy::{
    Action, Event, Exit, Fact, Fleet, Generation, Moment, Policy, ReleaseId, Rules, SlotId,
    Survivor, Wish,
};
use crate::spec::ListenAddress;
use crate::sys::cgroup::Home;
use crate::sys::spawn::Spawner;
use crate::sys::unix::{self, LockError};
use crate::sys::{Error, clock, procfs};

use super::bind;
use super::handover::{self, HandOver, Known};
use super::instances::{self, Instance};
use super::keeper_link::KeeperLink;
use super::level::Level;
use super::node::{CHANNEL, Node};
use super::output::Output;
use super::record::{self, Record, Remembered};
use super::release::{self, Release, ReleaseError};
use super::sockets::{LOCK, Sockets, bound_by, declare_remains};
use super::spawn::notify_fits;
use super::{Arguments, Runtime};
use crate::control::protocol::INTERFACE;
use crate::control::{app_directory, own_directory};

/// Exit status where the config cannot be used: `EX_CONFIG` of sysexits.h, which
/// `RestartPreventExitStatus=` names.
pub(super) const STATUS_CONFIG: u8 = 78;

/// Exit status where the machine does not let an app start.
const STATUS_FAILED: u8 = 1;

/// The name under which the keeper holds the control socket.
const CONTROL: &str = "control";

/// Why an app cannot be started.
#[derive(Debug)]
pub(super) enum StartError {
    Release(ReleaseError),
    System(Error),
    /// Somebody else runs it.
    Running {
        app: String,
        pid: Option<u32>,
    },
    /// Somebody else listens there.
    Taken {
        address: String,
        holder: Option<procfs::Holder>,
    },
    Arguments,
}

impl StartError {
    /// The exit status that says so.
    pub(super) fn status(&self) -> u8 {
        match self {
            Self::Release(
                ReleaseError::Load(_)
                | ReleaseError::EnvFile(..)
                | ReleaseError::Identity(_)
                | ReleaseError::Unbalanced(_),
            ) => STATUS_CONFIG,
            Self::Release(_)
            | Self::System(_)
            | Self::Running { .. }
            | Self::Taken { .. }
            | Self::Arguments => STATUS_FAILED,
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Release(error) => error.fmt(f),
            Self::System(error) => error.fmt(f),
            Self::Running { app, pid: Some(pid) } => {
                write!(f, "{app} is running already, under the keeper with pid {pid}")
            }
            Self::Running { app, pid: None } => write!(f, "{app} is running already"),
            Self::Taken { address, holder: Some(holder) } => write!(
                f,
                "{address} is in use: pid {} listens there ({})",
                holder.pid, holder.command
            ),
            Self::Taken { address, holder: None } => {
                write!(f, "{address} is in use, by a process that cannot be seen from here")
            }
            Self::Arguments => write!(f, "the keeper was started without a config file"),
        }
    }
}

impl From<Error> for StartError {
    fn from(error: Error) -> Self {
        Self::System(error)
    }
}

impl From<ReleaseError> for StartError {
    fn from(error: ReleaseError) -> Self {
        Self::Release(error)
    }
}

/// Everything a runtime is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) hello: Hello,
    pub(super) directory: PathBuf,
    pub(super) level: Level,
    pub(super) releases: BTreeMap<ReleaseId, Release>,
    pub(super) last_release: u64,
    pub(super) sockets: Sockets,
    pub(super) control: OwnedFd,
    pub(super) record: Record,
    pub(super) spawner: Spawner,
    pub(super) output: Output,
    pub(super) policy: Policy,
    pub(super) node: Node,
    pub(super) instances: BTreeMap<Generation, Instance>,
    /// What the core said at the adopt.
    pub(super) actions: Vec<Action>,
    /// What the keeper's table says of the generations that the core holds.
    pub(super) events: VecDeque<Event>,
    /// Generations that only the keeper knows.
    pub(super) strangers: Vec<(SlotId, Generation)>,
    /// Something the journal should know.
    pub(super) remarks: Vec<String>,
}

/// What the keeper handed over, as far as it was not used up.
struct Takeover<'a> {
    keeper: &'a mut KeeperLink,
    hello: Hello,
    children: Vec<Known>,
    fds: BTreeMap<String, OwnedFd>,
    remarks: Vec<String>,
}

/// Takes over from the keeper. `None` where the app cannot be started: the reason was printed, and
/// the keeper told to end. One that was started before is never ended for such a reason: this
/// supervisor fails, and the keeper tries another.
pub(super) fn adopt() -> Result<Option<Runtime>, Error> {
    let mut keeper = KeeperLink::inherited()?;
    let HandOver { hello, children, fds } = handover::receive(&mut keeper)?;
    let was_started = fds.keys().any(|name| name.starts_with(release::FD_NAME));
    let takeover = Takeover { keeper: &mut keeper, hello, children, fds, remarks: Vec::new() };
    match takeover.parts() {
        Ok(parts) => Runtime::new(keeper, parts).map(Some),
        Err(StartError::System(error)) if was_started => Err(error),
        Err(error) if was_started => Err(Error::new("adopt", io::Error::other(error.to_string()))),
        Err(error) => {
            super::say_to_stderr(&error.to_string());
            keeper.say(&ToKeeper::Exit { code: error.status() }, &[])?;
            keeper.flush()?;
            Ok(None)
        }
    }
}

impl Takeover<'_> {
    fn parts(mut self) -> Result<Parts, StartError> {
        let is_fresh = !self.fds.keys().any(|name| name.starts_with(release::FD_NAME));
        let mut releases = self.sealed_releases();
        // A running app is never started again from files that may have changed since.
        if !is_fresh && releases.is_empty() {
            return Err(StartError::Release(ReleaseError::Foreign));
        }
        if is_fresh {
            let release = self.first_release()?;
            releases.insert(release.id, release);
        }
        let mut newest = releases.values().next_back().cloned().ok_or(StartError::Arguments)?;
        let name = newest.spec.name.to_string();
        let name = name.as_str();
        let directory = self
            .directory(name)
            .map_err(|error| Error::new("make the directory of sockets", error))?;
        std::fs::create_dir_all(&directory)
            .map_err(|error| Error::at("make the directory", &directory, error))?;
        self.lock(&directory.join(LOCK), name)?;
        if !notify_fits(&directory) {
            let path = directory.display();
            self.remarks.push(format!("{path} is too long for a socket: no NOTIFY_SOCKET is set"));
        }
        let level = Level::find(name, self.hello.keeper_pid, self.hello.foreground);
        // Before anything else is made, and again with what was.
        let config = newest.config.clone();
        let config = Some(config.as_path());
        declare_remains(self.keeper, &directory, &level, config, &Sockets::default())?;
        let configured = newest.spec.listen.iter().map(Address::from).collect();
        let mut sockets = Sockets::adopt(&configured, &mut self.fds);
        if is_fresh {
            newest = newest.chosen(&bind::machine(&level, &sockets))?;
            releases.insert(newest.id, newest.clone());
        }
        self.sockets(&mut sockets, &releases, &newest)?;
        declare_remains(self.keeper, &directory, &level, config, &sockets)?;
        let control = self.control(&directory)?;
        if is_fresh {
            let fd = newest.seal()?;
            let name = Release::fd_name(newest.id);
            self.store(name, fd.as_fd())?;
        }
        let (record, mut remembered) = self.record()?;
        let hub = remembered.as_mut().map(|it| std::mem::take(&mut it.hub)).unwrap_or_default();
        let (fleet, memory) = self.fleet(remembered, &releases, &newest, level.home(), is_fresh);
        let output = Output::new(name, self.hello.foreground)
            .map_err(|error| Error::new("open the terminal", error))?;
        let last_release = memory.1.max(newest.id.0);
        let spawner = if memory.0 { Spawner::without_clone3()? } else { Spawner::new()? };
        let mut actions = Vec::new();
        let mut parts = Parts {
            hello: self.hello.clone(),
            directory,
            level,
            last_release,
            sockets,
            control,
            record,
            spawner,
            output,
            policy: policy(fleet, &releases, &mut actions),
            releases,
            node: Node::of(hub),
            instances: BTreeMap::new(),
            actions,
            events: VecDeque::new(),
            strangers: Vec::new(),
            remarks: Vec::new(),
        };
        self.take_children(&mut parts);
        parts.remarks = self.remarks;
        Ok(parts)
    }

    /// Where the sockets of the app are to be.
    fn directory(&self, name: &str) -> io::Result<PathBuf> {
        let variable = |name: &str| std::env::var_os(name);
        if self.hello.foreground {
            // `RUNTIME_DIRECTORY` would be of the service that `pmr run` was called by.
            Ok(own_directory(variable)?.join(name))
        } else {
            app_directory(name, variable)
        }
    }

    /// The releases that the keeper holds; one that cannot be read is a remark.
    fn sealed_releases(&mut self) -> BTreeMap<ReleaseId, Release> {
        let names: Vec<String> =
            self.fds.keys().filter(|name| name.starts_with(release::FD_NAME)).cloned().collect();
        let mut releases = BTreeMap::new();
        for name in names {
            let Some(fd) = self.fds.remove(&name) else { continue };
            match Release::unseal(&fd) {
                Ok(release) => drop(releases.insert(release.id, release)),
                Err(error) => self.remarks.push(format!("{name}: {error}")),
            }
        }
        releases
    }

    /// Before it is known what the machine permits of balancing.
    fn first_release(&self) -> Result<Release, StartError> {
        let arguments = Arguments::read(&self.hello.arguments).ok_or(StartError::Arguments)?;
        let overlay = arguments.overlay.as_deref();
        Ok(Release::read(ReleaseId(1), &arguments.config, overlay)?)
    }

    fn store(&mut self, name: String, fd: std::os::fd::BorrowedFd<'_>) -> Result<(), Error> {
        self.keeper.say(&ToKeeper::Store { name, generation: None }, &[fd])
    }

    /// One keeper for each app: the lock is the keeper's as long as it lives.
    fn lock(&mut self, path: &std::path::Path, app: &str) -> Result<(), StartError> {
        if self.fds.remove(LOCK).is_some() {
            return Ok(());
        }
        match unix::lock_file(path, self.hello.keeper_pid) {
            Ok(fd) => Ok(self.store(LOCK.to_owned(), fd.as_fd())?),
            Err(LockError::System(error)) => {
                // Nothing is declared to the keeper yet. One that is not empty is another's.
                super::never_mind(path.parent().map(std::fs::remove_dir).transpose());
                Err(error.into())
            }
            Err(LockError::Held { pid }) => Err(StartError::Running { app: app.to_owned(), pid }),
        }
    }

    fn sockets(
        &mut self,
        sockets: &mut Sockets,
        releases: &BTreeMap<ReleaseId, Release>,
        newest: &Release,
    ) -> Result<(), StartError> {
        let releases: Vec<&Release> = releases.values().collect();
        sockets.take_parked(&releases, &mut self.fds, self.keeper)?;
        for (address, fd) in bind_missing(sockets, newest)? {
            sockets.insert(address, fd, self.keeper)?;
        }
        if let Err(error) = sockets.begin_steering(newest, self.keeper) {
            self.remarks.push(format!("{error}: all instances share one accept queue"));
        }
        Ok(())
    }

    fn control(&mut self, directory: &std::path::Path) -> Result<OwnedFd, Error> {
        if let Some(fd) = self.fds.remove(CONTROL) {
            return Ok(fd);
        }
        // Whoever finds it may ask; who may do what is decided for each call.
        let fd = unix::listen(&directory.join(INTERFACE), 0o666)?;
        self.store(CONTROL.to_owned(), fd.as_fd())?;
        Ok(fd)
    }

    /// The state file, and what could be read of it.
    fn record(&mut self) -> Result<(Record, Option<Remembered>), StartError> {
        if let Some(fd) = self.fds.remove(record::FD_NAME) {
            let (record, remembered) = Record::open(fd);
            let remembered = remembered.map_err(|why| self.remarks.push(why)).ok();
            if let Some(record) = record {
                return Ok((record, remembered));
            }
        }
        let (record, fd) = Record::create().map_err(ReleaseError::Sealed)?;
        self.store(record::FD_NAME.to_owned(), fd.as_fd())?;
        Ok((record, None))
    }

    /// The fleet to go on with, and whether clone3 is denied and which release was the last.
    fn fleet(
        &mut self,
        remembered: Option<Remembered>,
        releases: &BTreeMap<ReleaseId, Release>,
        newest: &Release,
        home: Option<&Home>,
        is_fresh: bool,
    ) -> (Fleet, (bool, u64)) {
        if let Some(remembered) = remembered {
            let known = remembered.fleet.releases().iter().all(|id| releases.contains_key(id));
            if known {
                let memory = (remembered.without_clone3, remembered.last_release);
                return (remembered.fleet, memory);
            }
            self.remarks.push("the state names a release that is gone".to_owned());
        }
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cpus = u16::try_from(cpus).unwrap_or(u16::MAX);
        let count = newest.spec.instances.resolve(cpus);
        // One whose limits were changed is of a release that is not there any more.
        let of_known = |mut survivor: Survivor| {
            if !releases.contains_key(&survivor.release) {
                survivor.release = newest.id;
            }
            survivor
        };
        let survivors: Vec<Survivor> =
            self.children.iter().filter_map(survivor).map(of_known).collect();
        let none = BTreeSet::new();
        let children = self.children.iter().map(|known| Generation(known.child.generation));
        let left = home
            .map(|home| left_groups(home, &none, &none))
            .unwrap_or_default()
            .into_iter()
            .map(|(_, generation)| generation);
        let last = children.chain(left).max();
        // What is left of a keeper that is gone lies in the group that was delegated to both.
        let Some(last) = last.filter(|_| !is_fresh) else {
            let fleet = Fleet::new(count, newest.id);
            return (fleet.numbered_after(last.unwrap_or(Generation(0))), (false, 0));
        };
        self.remarks.push("going on from the keeper's table alone: histories are lost".to_owned());
        let now = Moment::from_ms(clock::now());
        let ready = self.hello.ready;
        (Fleet::reduced(count, newest.id, &survivors, last, ready, now), (false, 0))
    }

    /// Puts the keeper's table beside what the core holds.
    fn take_children(&mut self, parts: &mut Parts) {
        let held: BTreeSet<Generation> =
            parts.policy.generations().into_iter().map(|(_, generation)| generation).collect();
        let mut known = BTreeSet::new();
        for Known { child, pidfd, exited } in std::mem::take(&mut self.children) {
            let ended = exited.is_some();
            let (generation, mut instance) = instances::adopt(&child, pidfd, ended, &mut self.fds);
            known.insert(generation);
            // The keeper knows the release that it was spawned of: its limits may be others now.
            let release = parts.policy.release_of(generation);
            instance.release = release.unwrap_or(instance.release);
            let channel = self.fds.remove(&instances::fd_name(CHANNEL, generation));
            let kind = parts.releases.get(&instance.release).and_then(|it| it.choice.channel);
            if let (Some(channel), Some(kind)) = (channel, kind) {
                parts.node.adopt(generation, channel, kind, parts.sockets.addresses_of(generation));
            }
            if held.contains(&generation) {
                let pid = child.pid;
                parts.events.push_back(Event::Fact(Fact::Spawned { generation, pid }));
            } else {
                parts.strangers.push((instance.slot, generation));
            }
            if let Some(exited) = exited {
                let exit = instance.explain(exit_of(&exited));
                parts.events.push_back(Event::Fact(Fact::Exited { generation, exit }));
            }
            parts.instances.insert(generation, instance);
        }
        for &generation in held.difference(&known) {
            parts.events.push_back(Event::Fact(Fact::Lost { generation }));
        }
        if let Some(home) = parts.level.home() {
            parts.strangers.extend(left_groups(home, &held, &known));
        }
        if parts.hello.stopping {
            parts.events.push_back(Event::Wish(None, Wish::ShutDown { now: false }));
        }
    }
}

/// Groups of instances that neither the core nor the keeper knows: their clearing was not finished.
fn left_groups(
    home: &Home,
    held: &BTreeSet<Generation>,
    known: &BTreeSet<Generation>,
) -> Vec<(SlotId, Generation)> {
    let paths = home.groups().unwrap_or_default();
    let parsed = paths.iter().filter_map(|path| {
        let name = path.file_name()?.to_str()?;
        let (slot, generation) = name.strip_prefix("i-")?.split_once('.')?;
        Some((SlotId(slot.parse().ok()?), Generation(generation.parse().ok()?)))
    });
    parsed.filter(|(_, it)| !held.contains(it) && !known.contains(it)).collect()
}

fn survivor(known: &Known) -> Option<Survivor> {
    known.exited.is_none().then_some(Survivor {
        slot: SlotId(known.child.slot),
        generation: Generation(known.child.generation),
        release: ReleaseId(known.child.release),
        pid: known.child.pid,
    })
}

/// The exit as the core names it.
pub(super) fn exit_of(exited: &crate::keeper::protocol::Exited) -> Exit {
    match (exited.signal, exited.code) {
        (Some(signal), _) => Exit::Signal { signal, core: exited.core, oom: None },
        (None, Some(code)) => Exit::Code(code),
        (None, None) => Exit::Unseen,
    }
}

fn policy(
    fleet: Fleet,
    releases: &BTreeMap<ReleaseId, Release>,
    actions: &mut Vec<Action>,
) -> Policy {
    let rules: BTreeMap<ReleaseId, Rules> =
        releases.iter().map(|(id, release)| (*id, release.rules())).collect();
    Policy::adopt(fleet, rules, Moment::from_ms(clock::now()), actions)
}

/// Binds what a release listens on and is not bound yet: all of it, or nothing.
pub(super) fn bind_missing(
    sockets: &Sockets,
    release: &Release,
) -> Result<Vec<(Address, OwnedFd)>, StartError> {
    let missing = bound_by(release).into_iter().filter(|address| !sockets.is_bound(address));
    missing
        .map(|address| match sockets.bind(&address) {
            Ok(fd) => Ok((address, fd)),
            Err(error) if error.errno() == nix::libc::EADDRINUSE => Err(taken(&address)),
            Err(error) => Err(error.into()),
        })
        .collect()
}

fn taken(address: &Address) -> StartError {
    let asked = address.as_listen().map(|address| match address {
        ListenAddress::Tcp(address) => procfs::Address::Tcp(address),
        ListenAddress::Unix(path) => procfs::Address::Unix(path),
    });
    let holder = asked.and_then(|asked| procfs::port_holder(&asked).ok().flatten());
    StartError::Taken { address: address.to_string(), holder }
}
