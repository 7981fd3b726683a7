//! cgroup v2 groups: the one pmr is in, a home below it, and one group per instance in the home.
//!
//! Nothing above pmr's own group is ever written to, but for the group that the service manager
//! has delegated. A group is made once and its name is never used again, so a path found later is
//! that very group.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use rustix::event::Timespec;
use rustix::fs::{Access, Mode, OFlags};

use super::{Error, Result, process};

mod delegated;
mod limits;
mod memory;
mod place;
mod usage;

pub use delegated::{CONTROLLERS, enter_delegated};
pub use limits::{LimitKind, Limits, Untaken};
pub use memory::{MemoryEvents, MemoryStat};
pub use place::{machine_controllers, own_group};
pub use usage::{OomCounts, Usage};

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Names of instances' groups begin so.
const INSTANCE_PREFIX: &str = "i-";

/// Most bytes of a file that is read whole: `memory.stat` has about 60 lines of 30.
const FILE_BYTES_MAX: usize = 8192;

/// Deepest tree of sub-groups that is looked at; the kernel allows more, no app needs it.
const DEPTH_MAX: usize = 64;

/// Where cgroup.kill is missing: this often the group is read and its processes are killed. The
/// group is frozen meanwhile, so a second look should find nobody.
const KILL_ROUNDS_MAX: usize = 32;

/// So many looks, so far apart, whether all processes of a group stand still: 20 ms, where one look
/// does on a machine that is not overloaded.
const FREEZE_LOOKS: usize = 20;
const FREEZE_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// So many pidfds are open at a time while that is done.
const KILL_CHUNK: usize = 64;

/// What a removal came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is gone, or was not there.
    Gone,
    /// Processes are still in it, dying ones included (zombies do not count): try again later.
    Busy,
}

/// pmr's part of the tree. Groups are made here and nowhere else.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    controllers: Vec<String>,
    enabled: Vec<String>,
    refused: Vec<Refused>,
    delegated: bool,
}

/// A controller that the groups of a delegated home do without.
#[derive(Debug)]
pub struct Refused {
    /// Which.
    pub controller: &'static str,
    /// What the kernel said; `None` where the service manager has not delegated it.
    pub error: Option<Error>,
}

impl Home {
    /// Makes, or finds again, the group `name` in the group this process is in.
    pub fn make(name: &str) -> Result<Self> {
        let path = own_group()?.join(component(name)?);
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(|error| Error::at("make the group", &path, error))?,
        }
        Self::open(path)
    }

    /// A home that a predecessor has made, or the group that the service manager has delegated.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        if !place::is_cgroup2(&path)? {
            return Err(Error::at("use as a group", &path, Errno::EINVAL));
        }
        let text = std::fs::read_to_string(path.join("cgroup.controllers"))
            .map_err(|error| Error::at("read the controllers of", &path, error))?;
        let controllers = text.split_ascii_whitespace().map(str::to_owned).collect();
        let enabled = delegated::enabled(&path)?;
        Ok(Self { path, controllers, enabled, refused: Vec::new(), delegated: false })
    }

    /// The group that the service manager has delegated and the keeper has entered, with the
    /// controllers enabled for its groups. `None` where there is no such group.
    pub fn delegated() -> Result<Option<Self>> {
        delegated::entered()?.map(Self::open_delegated).transpose()
    }

    fn open_delegated(unit: impl Into<PathBuf>) -> Result<Self> {
        let mut home = Self::open(unit)?;
        home.delegated = true;
        // Delegated, and shown read-only (ProtectControlGroups=): root is told, too.
        rustix::fs::access(&home.path, Access::WRITE_OK)
            .map_err(|errno| Error::at("make groups in", &home.path, errno))?;
        for controller in CONTROLLERS {
            // A predecessor has enabled it.
            if home.has(controller) {
                continue;
            }
            let error = if home.controllers.iter().any(|it| it == controller) {
                delegated::enable(&home.path, controller).err().map(Some)
            } else {
                Some(None)
            };
            home.refused.extend(error.map(|error| Refused { controller, error }));
        }
        home.enabled = delegated::enabled(&home.path)?;
        Ok(home)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The controllers that its groups can be given: `cgroup.controllers`.
    pub fn controllers(&self) -> &[String] {
        &self.controllers
    }

    /// Whether its groups have this controller.
    pub fn has(&self, controller: &str) -> bool {
        self.enabled.iter().any(|it| it == controller)
    }

    /// The controllers that its groups should have and do not.
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// The directory that is to be removed at the end: none where the home was delegated.
    pub fn made(&self) -> Option<&Path> {
        (!self.delegated).then_some(&*self.path)
    }

    /// Makes the group of an instance. That it exists already is an error (`EEXIST`).
    pub fn make_group(&self, name: &str) -> Result<Group> {
        let path = self.path.join(component(name)?);
        std::fs::create_dir(&path).map_err(|error| Error::at("make the group", &path, error))?;
        Group::open(path)
    }

    /// The groups of instances that are here, a predecessor's included, in the order of names.
    pub fn groups(&self) -> Result<Vec<PathBuf>> {
        let mut groups: Vec<_> = directories(&self.path)?
            .into_iter()
            .filter(|path| {
                let name = path.file_name().and_then(|name| name.to_str());
                name.is_some_and(|name| name.starts_with(INSTANCE_PREFIX))
            })
            .collect();
        groups.sort();
        Ok(groups)
    }

    /// Removes the home itself. Its groups must have been removed. One that was delegated is left
    /// to the service manager.
    pub fn remove(&self) -> Result<Removal> {
        self.made().map_or(Ok(Removal::Gone), remove_directory)
    }
}

/// The group of one instance.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    dir: OwnedFd,
}

impl Group {
    /// A group that exists.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        if !place::is_cgroup2(&path)? {
            return Err(Error::at("use as a group", &path, Errno::EINVAL));
        }
        Self::open_any(path)
    }

    /// A directory that plays a group.
    #[cfg(test)]
    pub(crate) fn played(path: impl Into<PathBuf>) -> Result<Self> {
        Self::open_any(path)
    }

    fn open_any(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|errno| Error::at("open the group", &path, errno))?;
        Ok(Self { path, dir })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The fd of its directory: where clone3 puts a child, and where the interface files are.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Whether a process lives in it or in a sub-group. A group that is gone holds nobody.
    pub fn populated(&self) -> Result<bool> {
        match self.events_fd() {
            Ok(events) => read_populated(events.as_fd()),
            Err(error) if is_gone(error.errno()) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// `cgroup.events`: `EPOLLPRI` comes when [`read_populated`] of this fd would answer otherwise
    /// than last time, and at once when it was never asked. Events are at least 10 ms apart.
    pub fn events_fd(&self) -> Result<OwnedFd> {
        self.open_file("cgroup.events", OFlags::RDONLY)
    }

    /// Where the process `pid`, which was started in it, is now, if it has moved to another group.
    /// One that has ended is where it was.
    pub fn left_by(&self, pid: u32) -> Option<PathBuf> {
        let place = place::group_of(pid).ok().flatten()?;
        (!place.starts_with(&self.path)).then_some(place)
    }

    /// Ends all processes in it and in its sub-groups, those that fork meanwhile and those that
    /// are frozen or stopped included. They are dying when this returns, not gone: see
    /// [`Self::populated`].
    pub fn kill(&self) -> Result<()> {
        match self.write_file("cgroup.kill", "1") {
            // Before Linux 5.14. The root group has no such file either, and is never killed.
            Err(error) if error.is_not_found() => self.kill_each(),
            Err(error) if is_gone(error.errno()) => Ok(()),
            other => other,
        }
    }

    /// Does something while none of its processes runs, and none is in the middle of a system call:
    /// those that wait in one are interrupted, as by a SIGSTOP. `None`: they do not stand still
    /// soon enough, and it was not done.
    ///
    /// Whoever dies meanwhile leaves them standing still: see [`Self::thaw`].
    pub fn while_frozen<T>(&self, act: impl FnOnce() -> T) -> Result<Option<T>> {
        self.write_file("cgroup.freeze", "1")?;
        let stands_still = self.freezes();
        let done = matches!(stands_still, Ok(true)).then(act);
        self.thaw()?;
        stands_still.map(|_| done)
    }

    fn freezes(&self) -> Result<bool> {
        for _ in 0..FREEZE_LOOKS {
            if self.read_file("cgroup.events")?.lines().any(|line| line == "frozen 1") {
                return Ok(true);
            }
            // A signal makes the pause shorter, no more.
            rustix::event::poll(&mut [], Some(&FREEZE_PAUSE)).unwrap_or_default();
        }
        Ok(false)
    }

    /// Has its processes go on. Nothing changes for those that do.
    pub fn thaw(&self) -> Result<()> {
        match self.write_file("cgroup.freeze", "0") {
            Err(error) if is_gone(error.errno()) => Ok(()),
            other => other,
        }
    }

    /// Frozen, so that nobody forks while we look; frozen processes die of SIGKILL.
    pub(super) fn kill_each(&self) -> Result<()> {
        if !place::is_cgroup2(&self.path).unwrap_or(false) {
            return Ok(());
        }
        let frozen = self.write_file("cgroup.freeze", "1").is_ok();
        let killed = self.kill_in_rounds();
        if frozen {
            self.thaw()?;
        }
        killed
    }

    fn kill_in_rounds(&self) -> Result<()> {
        for _ in 0..KILL_ROUNDS_MAX {
            let mut news = false;
            for pids in self.pids()?.chunks(KILL_CHUNK) {
                news |= self.kill_chunk(pids)?;
            }
            if !news {
                break;
            }
        }
        Ok(())
    }

    /// A pid may be somebody else's by the time it is opened. It is the right process if the group
    /// lists it after that, since the pidfd is fixed then.
    fn kill_chunk(&self, pids: &[u32]) -> Result<bool> {
        let open = |pid: &u32| Some((*pid, process::pidfd_open(*pid).ok()?));
        let opened: Vec<_> = pids.iter().filter_map(open).collect();
        let listed = self.pids()?;
        let mut news = false;
        for (pid, pidfd) in opened {
            if !listed.contains(&pid) || place::is_dying(pid) {
                continue;
            }
            match process::signal(pidfd.as_fd(), libc::SIGKILL) {
                Ok(()) => news = true,
                Err(error) if error.errno() == libc::ESRCH => {}
                Err(error) => return Err(error),
            }
        }
        Ok(news)
    }

    /// The processes in it and in its sub-groups, without zombies.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for group in tree(&self.path)? {
            match std::fs::read_to_string(group.join("cgroup.procs")) {
                // 0 is a process outside of our pid namespace.
                Ok(text) => pids.extend(numbers(&text).filter(|pid| *pid != 0)),
                // A threaded sub-group: its processes are listed in the group above it.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(error) if error.raw_os_error().is_some_and(is_gone) => {}
                Err(error) => return Err(Error::at("read the processes of", group, error)),
            }
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Removes it with its sub-groups, the deepest first.
    pub fn remove(&self) -> Result<Removal> {
        for group in tree(&self.path)?.iter().rev() {
            if remove_directory(group)? == Removal::Busy {
                return Ok(Removal::Busy);
            }
        }
        Ok(Removal::Gone)
    }

    fn open_file(&self, name: &'static str, flags: OFlags) -> Result<OwnedFd> {
        rustix::fs::openat(&self.dir, name, flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::at("open", self.path.join(name), errno))
    }

    /// A file that the kernel writes in one piece, without its line break.
    fn read_file(&self, name: &'static str) -> Result<String> {
        let file = self.open_file(name, OFlags::RDONLY)?;
        let mut bytes = [0; FILE_BYTES_MAX];
        let length = rustix::io::read(&file, &mut bytes)
            .map_err(|errno| Error::at("read", self.path.join(name), errno))?;
        let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
        Ok(text.trim_end().to_owned())
    }

    fn write_file(&self, name: &'static str, value: &str) -> Result<()> {
        let file = self.open_file(name, OFlags::WRONLY)?;
        rustix::io::write(&file, value.as_bytes())
            .map_err(|errno| Error::at("write", self.path.join(name), errno))?;
        Ok(())
    }
}

/// Reads an fd of [`Group::events_fd`] anew. A group that is gone holds nobody.
pub fn read_populated(events: BorrowedFd<'_>) -> Result<bool> {
    let mut bytes = [0; 256];
    match rustix::io::pread(events, &mut bytes, 0) {
        Ok(length) => {
            let text = bytes.get(..length).unwrap_or_default();
            Ok(parse_populated(&String::from_utf8_lossy(text)))
        }
        Err(errno) if is_gone(errno.raw_os_error()) => Ok(false),
        Err(errno) => Err(Error::new("read the events of a group", errno)),
    }
}

fn parse_populated(text: &str) -> bool {
    text.lines().any(|line| line == "populated 1")
}

/// What the files of a removed group say.
fn is_gone(errno: i32) -> bool {
    errno == libc::ENOENT || errno == libc::ENODEV
}

fn numbers(text: &str) -> impl Iterator<Item = u32> {
    text.lines().filter_map(|line| line.trim().parse().ok())
}

/// A name of one directory: it cannot lead anywhere else.
fn component(name: &str) -> Result<&str> {
    let mut parts = Path::new(name).components();
    let plain = matches!(parts.next(), Some(Component::Normal(part)) if part == name);
    if plain && parts.next().is_none() && !name.contains(['/', '\0']) {
        Ok(name)
    } else {
        Err(Error::at("make the group", name, Errno::EINVAL))
    }
}

fn directories(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.raw_os_error().is_some_and(is_gone) => return Ok(Vec::new()),
        other => other.map_err(|error| Error::at("list the groups of", path, error))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| Error::at("list the groups of", path, error))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// A group and all below it, each after the one it is in.
fn tree(path: &Path) -> Result<Vec<PathBuf>> {
    let mut groups = vec![path.to_owned()];
    let mut level = groups.clone();
    for _ in 0..DEPTH_MAX {
        let mut below = Vec::new();
        for group in &level {
            below.extend(directories(group)?);
        }
        if below.is_empty() {
            break;
        }
        groups.extend(below.iter().cloned());
        level = below;
    }
    Ok(groups)
}

fn remove_directory(path: &Path) -> Result<Removal> {
    match std::fs::remove_dir(path) {
        Ok(()) => Ok(Removal::Gone),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(Removal::Gone),
            Some(libc::EBUSY) => Ok(Removal::Busy),
            _ => Err(Error::at("remove the group", path, error)),
        },
    }
}

#[cfg(test)]
mod tests;
