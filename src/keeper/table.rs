//! What the keeper holds: instances, their last wills and exits, stored fds, and how the
//! supervisors fared. Pure: no clock, no process, no system call.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::protocol::{self, Child, Exited, STATE, STATE_BAD, ToSupervisor, Will};
use crate::sys::notify::FD_NAME_BYTES_MAX;
use crate::sys::parent::Ending;
use crate::sys::signal;

/// What is sent to a supervisor, and the fd beside it.
pub(super) type Packet<'a> = (ToSupervisor, Option<BorrowedFd<'a>>);

/// Most instances: 256 slots with the old and the new one, and as many exits not acknowledged.
const CHILDREN_MAX: usize = 1024;

/// Most stored fds: a dozen for each instance.
const FDS_MAX: usize = 8192;

/// Most bytes of a name: one of systemd's fd store, and before it how those begin that come from
/// there. And of a path (`PATH_MAX`).
const NAME_BYTES_MAX: usize = FD_NAME_BYTES_MAX + protocol::PARKED.len();
const PATH_BYTES_MAX: usize = 4096;

/// How many exits of strangers are remembered, in case one is of an instance whose `Born` is on
/// its way. A supervisor sends `Born` right after the clone; the others are orphans.
const STRANGERS_MAX: usize = 1024;

/// Deaths without a completed adopt after which the state is withheld, an upgrade is taken back,
/// and a stop is carried out without a supervisor.
const DEATHS_MAX: u32 = 3;

/// First and longest wait before a supervisor is started again. The first time there is none.
const BACKOFF_FIRST_MS: u64 = 100;
const BACKOFF_MAX_MS: u64 = 10_000;

/// A supervisor said what it may not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation(pub(super) &'static str);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Something to be said about the table. What exactly is looked up when it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outgoing {
    Hello,
    Child(u64),
    Fd(String),
    Begin,
    Exited(u64),
    Stop,
    Reload,
}

/// One instance.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) child: Child,
    pub(super) pidfd: OwnedFd,
    /// How it ended, until that is acknowledged.
    pub(super) exited: Option<Exited>,
}

/// One stored fd.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) generation: Option<u64>,
    pub(super) fd: OwnedFd,
    /// The name of its copy in the service manager's store.
    pub(super) parked: Option<String>,
}

/// Instances by generation, fds by name.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) children: BTreeMap<u64, Entry>,
    pub(super) fds: BTreeMap<String, Stored>,
    strangers: VecDeque<(u32, Ending)>,
}

impl Table {
    /// Enters an instance. `reaped`: its status was taken already, since it ended before its
    /// `Born` was read. Says whether its exit is to be told.
    pub(super) fn born(
        &mut self,
        child: Child,
        pidfd: OwnedFd,
        reaped: bool,
        now: u64,
    ) -> Result<bool, Violation> {
        check(&child.will)?;
        if self.children.contains_key(&child.generation) {
            return Err(Violation("a generation was born twice"));
        }
        if self.children.len() >= CHILDREN_MAX {
            return Err(Violation("there are too many instances"));
        }
        // The newest of that pid: an older one is of a process that had the number before.
        let exited = reaped.then(|| {
            let place = self.strangers.iter().rposition(|(pid, _)| *pid == child.pid);
            let ending = place.and_then(|place| self.strangers.remove(place));
            exited(child.generation, ending.map(|(_, ending)| ending).unwrap_or_default(), now)
        });
        self.children.insert(child.generation, Entry { child, pidfd, exited });
        Ok(reaped)
    }

    /// A child of the keeper has ended. Says which generation it was, if any.
    pub(super) fn ended(&mut self, pid: u32, ending: Ending, now: u64) -> Option<u64> {
        let living = |entry: &&mut Entry| entry.exited.is_none() && entry.child.pid == pid;
        if let Some(entry) = self.children.values_mut().find(living) {
            entry.exited = Some(exited(entry.child.generation, ending, now));
            return Some(entry.child.generation);
        }
        if self.strangers.len() >= STRANGERS_MAX {
            self.strangers.pop_front();
        }
        self.strangers.push_back((pid, ending));
        None
    }

    /// The supervisor is dead and all that it said was read: no `Born` is on its way.
    pub(super) fn forget_strangers(&mut self) {
        self.strangers.clear();
    }

    /// Replaces a last will. One for an instance that is gone has no meaning any more.
    pub(super) fn set_will(&mut self, generation: u64, will: Will) -> Result<(), Violation> {
        check(&will)?;
        if let Some(entry) = self.children.get_mut(&generation) {
            entry.child.will = will;
        }
        Ok(())
    }

    /// Forgets an exit, and closes the fds of that generation.
    pub(super) fn acknowledge(&mut self, generation: u64) -> Result<(), Violation> {
        if self.children.get(&generation).is_some_and(|entry| entry.exited.is_none()) {
            return Err(Violation("the exit of a living instance was acknowledged"));
        }
        self.children.remove(&generation);
        self.fds.retain(|_, stored| stored.generation != Some(generation));
        Ok(())
    }

    /// Keeps an fd, in the place of one of the same name.
    pub(super) fn store(
        &mut self,
        name: String,
        generation: Option<u64>,
        fd: OwnedFd,
    ) -> Result<(), Violation> {
        self.insert(name, Stored { generation, fd, parked: None })
    }

    /// Keeps an fd of which the service manager has, or is to have, a copy.
    pub(super) fn park(
        &mut self,
        name: String,
        fd_name: String,
        fd: OwnedFd,
    ) -> Result<(), Violation> {
        if fd_name.is_empty()
            || fd_name.len() > FD_NAME_BYTES_MAX
            || !fd_name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
        {
            return Err(Violation("the service manager keeps nothing under such a name"));
        }
        self.insert(name, Stored { generation: None, fd, parked: Some(fd_name) })
    }

    /// Closes the fd of this name. Returns the name of the copy that the service manager is to
    /// close: nobody else is parked under it.
    pub(super) fn drop_fd(&mut self, name: &str) -> Option<String> {
        let parked = self.fds.remove(name)?.parked?;
        self.fds.values().all(|stored| stored.parked.as_ref() != Some(&parked)).then_some(parked)
    }

    /// The fds that the service manager has copies of, by their names there.
    pub(super) fn parked(&self) -> impl Iterator<Item = (&String, &OwnedFd)> {
        self.fds.values().filter_map(|it| it.parked.as_ref().map(|name| (name, &it.fd)))
    }

    fn insert(&mut self, name: String, stored: Stored) -> Result<(), Violation> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(Violation("the name of an fd is empty or too long"));
        }
        if self.fds.len() >= FDS_MAX && !self.fds.contains_key(&name) {
            return Err(Violation("there are too many fds"));
        }
        self.fds.insert(name, stored);
        Ok(())
    }

    /// The state killed `deaths` supervisors. The first bad one is kept for the report; what a
    /// supervisor without a state wrote before it died as well is worth nothing.
    pub(super) fn withhold_state(&mut self, deaths: Deaths) {
        if let Some(state) = self.fds.remove(STATE)
            && deaths.since_adopted == DEATHS_MAX
        {
            self.fds.insert(STATE_BAD.to_owned(), state);
        }
    }

    /// The instances that live.
    pub(super) fn living(&self) -> impl Iterator<Item = &Entry> {
        self.children.values().filter(|entry| entry.exited.is_none())
    }

    /// The longest time that a living instance was promised for its stop.
    pub(super) fn longest_timeout_ms(&self) -> u64 {
        self.living().map(|entry| entry.child.will.timeout_ms).max().unwrap_or_default()
    }

    /// All that a new supervisor is told, in order.
    pub(super) fn hand_over(&self) -> VecDeque<Outgoing> {
        let children = self.children.keys().map(|&generation| Outgoing::Child(generation));
        let fds = self.fds.keys().map(|name| Outgoing::Fd(name.clone()));
        std::iter::once(Outgoing::Hello)
            .chain(children)
            .chain(fds)
            .chain([Outgoing::Begin])
            .collect()
    }

    /// The packet about an instance or an fd, unless that is gone meanwhile.
    pub(super) fn packet(&self, outgoing: &Outgoing) -> Option<Packet<'_>> {
        match outgoing {
            Outgoing::Child(generation) => {
                let Entry { child, exited, pidfd } = self.children.get(generation)?;
                let packet = ToSupervisor::Child { child: child.clone(), exited: *exited };
                Some((packet, Some(pidfd.as_fd())))
            }
            Outgoing::Fd(name) => {
                let stored = self.fds.get(name)?;
                let generation = stored.generation;
                let packet = ToSupervisor::Fd { name: name.clone(), generation };
                Some((packet, Some(stored.fd.as_fd())))
            }
            Outgoing::Exited(generation) => {
                let exited = self.children.get(generation)?.exited?;
                Some((ToSupervisor::Exited(exited), None))
            }
            Outgoing::Hello | Outgoing::Begin | Outgoing::Stop | Outgoing::Reload => None,
        }
    }
}

fn exited(generation: u64, ending: Ending, at_ms: u64) -> Exited {
    let Ending { code, signal, core } = ending;
    Exited { generation, code, signal, core, at_ms }
}

fn check(will: &Will) -> Result<(), Violation> {
    if !signal::is_signal(will.signal) {
        return Err(Violation("the signal of a last will is none"));
    }
    if will.cgroup.as_ref().is_some_and(|path| path.len() > PATH_BYTES_MAX) {
        return Err(Violation("the group of a last will has too long a path"));
    }
    Ok(())
}

/// How often supervisors died.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Deaths {
    /// Since one completed its adopt.
    pub(super) since_adopted: u32,
    /// At all.
    pub(super) total: u32,
}

impl Deaths {
    /// One more.
    pub(super) fn count(&mut self) {
        self.since_adopted = self.since_adopted.saturating_add(1);
        self.total = self.total.saturating_add(1);
    }

    /// Whether that many died that something is to be changed.
    pub(super) fn too_many(self) -> bool {
        self.since_adopted >= DEATHS_MAX
    }

    /// How long to wait before the next one: 0, 100 ms, 200 ms … 10 s.
    pub(super) fn backoff_ms(self) -> u64 {
        match self.since_adopted.checked_sub(2) {
            None => 0,
            Some(doublings) => {
                2_u64.saturating_pow(doublings).saturating_mul(BACKOFF_FIRST_MS).min(BACKOFF_MAX_MS)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::arithmetic_side_effects, reason = "small numbers")]

    use super::*;

    fn fd() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn child(generation: u64, pid: u32) -> Child {
        let will = Will { cgroup: None, signal: 15, timeout_ms: generation * 100 };
        Child { slot: 0, generation, release: 1, pid, will }
    }

    fn killed(signal: i32) -> Ending {
        Ending { signal: Some(signal), ..Ending::default() }
    }

    fn said(table: &Table, outgoing: &Outgoing) -> Option<Exited> {
        match table.packet(outgoing)?.0 {
            ToSupervisor::Exited(exited) => Some(exited),
            ToSupervisor::Child { exited, .. } => exited,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_exit_is_kept_until_it_is_acknowledged() {
        let mut table = Table::default();
        table.born(child(1, 100), fd(), false, 5).unwrap();
        assert_eq!(said(&table, &Outgoing::Exited(1)), None);
        assert!(table.acknowledge(1).is_err(), "it lives");
        assert_eq!(table.ended(100, killed(9), 6), Some(1));
        let exited = said(&table, &Outgoing::Child(1)).unwrap();
        assert_eq!((exited.signal, exited.code, exited.at_ms), (Some(9), None, 6));
        // The pid is free now: somebody else's end is not this instance's.
        assert_eq!(table.ended(100, killed(15), 7), None);
        assert_eq!(said(&table, &Outgoing::Exited(1)), Some(exited));
        table.acknowledge(1).unwrap();
        assert!(table.packet(&Outgoing::Exited(1)).is_none());
        assert_eq!(table.living().count(), 0);
    }

    #[test]
    fn an_end_before_the_birth_is_told_exactly() {
        let mut table = Table::default();
        table.ended(100, killed(1), 1);
        table.ended(101, killed(2), 1);
        table.ended(100, killed(3), 1);
        assert!(table.born(child(1, 100), fd(), true, 2).unwrap());
        assert_eq!(said(&table, &Outgoing::Exited(1)).unwrap().signal, Some(3));
        // Alive, although a process of that pid had ended: the number was used again.
        assert!(!table.born(child(2, 101), fd(), false, 2).unwrap());
        assert_eq!(said(&table, &Outgoing::Child(2)), None);
        // Nobody knows how it ended, and nothing is made up.
        assert!(table.born(child(3, 999), fd(), true, 4).unwrap());
        let exited = said(&table, &Outgoing::Exited(3)).unwrap();
        assert_eq!((exited.code, exited.signal, exited.at_ms), (None, None, 4));
        table.forget_strangers();
        table.born(child(4, 100), fd(), true, 5).unwrap();
        assert_eq!(said(&table, &Outgoing::Exited(4)).unwrap().signal, None);
    }

    #[test]
    fn fds_go_with_their_generation() {
        let mut table = Table::default();
        for (name, generation) in [("a", Some(1)), ("b", Some(2)), ("c", None)] {
            table.store(name.to_owned(), generation, fd()).unwrap();
        }
        table.store("c".to_owned(), Some(1), fd()).unwrap();
        table.acknowledge(1).unwrap();
        assert_eq!(table.fds.keys().collect::<Vec<_>>(), ["b"]);
        assert!(table.packet(&Outgoing::Fd("a".to_owned())).is_none());
        assert!(table.packet(&Outgoing::Fd("b".to_owned())).is_some());
    }

    #[test]
    fn a_copy_is_closed_with_the_last_fd_of_its_name() {
        let mut table = Table::default();
        let mut park =
            |name: &str, fd_name: &str| table.park(name.to_owned(), fd_name.to_owned(), fd());
        park("parked.a", "a").unwrap();
        park("listen.a", "a").unwrap();
        park("listen.b", "b").unwrap();
        for bad in ["", "a:b", "a b", "ä", &"x".repeat(256)] {
            assert!(park("c", bad).is_err(), "{bad}");
        }
        table.store("c".to_owned(), None, fd()).unwrap();
        let parked: Vec<_> = table.parked().map(|(name, _)| name.clone()).collect();
        assert_eq!(parked, ["a", "b", "a"]);
        assert_eq!(table.drop_fd("parked.a"), None, "it is the other one's too");
        assert_eq!(table.drop_fd("listen.a").as_deref(), Some("a"));
        assert_eq!(table.drop_fd("c"), None);
        assert_eq!(table.drop_fd("never"), None);
        assert_eq!(table.drop_fd("listen.b").as_deref(), Some("b"));
    }

    #[test]
    fn everything_has_a_bound() {
        let mut table = Table::default();
        for pid in 2..10_000 {
            table.ended(pid, killed(9), 0);
        }
        assert_eq!(table.strangers.len(), STRANGERS_MAX);
        for generation in 0..1024 {
            table.born(child(generation, 5), fd(), false, 0).unwrap();
        }
        assert!(table.born(child(5000, 5), fd(), false, 0).is_err());
        assert!(table.store("x".repeat(300), None, fd()).is_err());
        assert!(table.store(String::new(), None, fd()).is_err());
        let mut table = Table::default();
        table.born(child(1, 5), fd(), false, 0).unwrap();
        assert!(table.born(child(1, 6), fd(), false, 0).is_err());
        let mut bad = child(2, 6);
        bad.will.signal = 0;
        assert!(table.born(bad.clone(), fd(), false, 0).is_err());
        bad.will = Will { cgroup: Some("x".repeat(5000)), signal: 15, timeout_ms: 0 };
        assert!(table.set_will(1, bad.will.clone()).is_err());
        bad.will.cgroup = None;
        table.set_will(77, bad.will.clone()).unwrap();
        table.set_will(1, bad.will).unwrap();
        assert_eq!(table.longest_timeout_ms(), 0);
    }

    #[test]
    fn the_hand_over_says_all_of_it_between_hello_and_begin() {
        let mut table = Table::default();
        table.born(child(7, 70), fd(), false, 0).unwrap();
        table.born(child(3, 30), fd(), false, 0).unwrap();
        table.store("listen".to_owned(), None, fd()).unwrap();
        assert_eq!(
            table.hand_over(),
            [
                Outgoing::Hello,
                Outgoing::Child(3),
                Outgoing::Child(7),
                Outgoing::Fd("listen".to_owned()),
                Outgoing::Begin
            ]
        );
        assert_eq!(table.longest_timeout_ms(), 700);
    }

    #[test]
    fn deaths_back_off_and_the_first_bad_state_is_kept() {
        let mut deaths = Deaths::default();
        let mut waits = Vec::new();
        for _ in 0..11 {
            deaths.count();
            waits.push(deaths.backoff_ms());
        }
        let expected = [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000];
        assert_eq!(waits, expected);
        deaths.since_adopted = u32::MAX;
        assert_eq!(deaths.backoff_ms(), 10_000);

        let mut table = Table::default();
        let kept = fd();
        let number = std::os::fd::AsRawFd::as_raw_fd(&kept);
        table.store(STATE.to_owned(), None, kept).unwrap();
        table.withhold_state(Deaths { since_adopted: 3, total: 9 });
        table.store(STATE.to_owned(), None, fd()).unwrap();
        table.withhold_state(Deaths { since_adopted: 4, total: 10 });
        assert_eq!(table.fds.keys().collect::<Vec<_>>(), [STATE_BAD]);
        assert_eq!(std::os::fd::AsRawFd::as_raw_fd(&table.fds[STATE_BAD].fd), number);
    }
}
