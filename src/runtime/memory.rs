//! The trip-wires of instances whose memory the kernel watches, and the sampling of the others.
//!
//! A wire is put into an instance's group before its process is there, and watched while it stands:
//! the event wakes the loop, which lifts it in the same turn. Whatever reclaims, blocks whoever
//! writes it, so it is written by a short-lived process (`pmr reclaim BYTES`, the file its standard
//! input) with a deadline. A supervisor that dies leaves that process to the keeper, which reaps
//! it; the next supervisor is told by the core to do all of it again.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use crate::policy::{Event, Fact, Generation, Split, WireNews, WireOrder};
use crate::sys::cgroup::{Group, MemoryEvents, MemoryStat};
use crate::sys::poll::Interest;
use crate::sys::{Error, Result, clock, process};

use super::Runtime;
use super::instances::Instance;
use super::release::Release;
use super::sources::Source;

/// How long a reclaim may take. A gigabyte of cache takes some tenths of a second; where a disk
/// stands still, dirty pages wait for it.
const RECLAIM_TIMEOUT_MS: u64 = 10_000;

/// What a runtime knows of memory.
#[derive(Debug, Default)]
pub(super) struct Memory {
    wires: BTreeMap<Generation, Tripwire>,
    reclaims: BTreeMap<u64, Reclaim>,
    last_reclaim: u64,
}

/// `memory.events` of a group.
#[derive(Debug)]
struct Tripwire {
    events: OwnedFd,
    /// How often it was touched when that was last read.
    high: u64,
    watched: bool,
}

/// A process that writes what may block.
#[derive(Debug)]
struct Reclaim {
    generation: Generation,
    order: WireOrder,
    child: Child,
    pidfd: OwnedFd,
    deadline_ms: u64,
    answered: bool,
}

/// What `pmr reclaim BYTES` does: writes the number to the file on its standard input, and waits as
/// long as the kernel does. That not all could be reclaimed is no failure of it (`EAGAIN`).
pub fn reclaim(bytes: &str) -> u8 {
    match rustix::io::write(std::io::stdin(), bytes.as_bytes()) {
        Ok(_) | Err(rustix::io::Errno::AGAIN) => 0,
        Err(_) => super::STATUS_FAILED,
    }
}

impl Memory {
    /// The first wire of an instance that was spawned without a limit: its events are counted from
    /// now on. Without a memory controller there is none, and it is sampled.
    fn prepare(&mut self, generation: Generation, group: &Group) {
        if let Entry::Vacant(place) = self.wires.entry(generation)
            && let Ok(wire) = Tripwire::of(group)
        {
            place.insert(wire);
        }
    }

    /// When a process has taken too long.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        let waited_for = self.reclaims.values().filter(|it| !it.answered);
        waited_for.map(|it| it.deadline_ms).min()
    }
}

impl Runtime {
    /// Puts the trip-wire of an instance that is about to be spawned into its group.
    pub(super) fn set_wire(&mut self, generation: Generation, release: &Release, group: &Group) {
        let Some(limit) = release.spec.memory.restart_above else { return };
        let set = group.set_first_wire(limit.0).and_then(|()| Tripwire::of(group));
        match set {
            Ok(wire) => self.watch_wire(generation, wire),
            // No memory controller: it is sampled.
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                super::never_mind(group.lift_wire());
                self.warn(&format!("{error}: memory of generation {generation} is sampled"));
            }
        }
    }

    /// Watches the group of an instance that lived on from before, where it has a wire. Whether
    /// that stands the core knows.
    pub(super) fn adopt_wire(&mut self, generation: Generation, instance: &Instance) {
        let release = self.releases.get(&instance.release);
        let is_limited = release.is_some_and(|it| it.spec.memory.restart_above.is_some());
        if let Some(group) = instance.group.as_ref().filter(|_| is_limited)
            && let Ok(wire) = Tripwire::of(group)
        {
            self.watch_wire(generation, wire);
        }
    }

    fn watch_wire(&mut self, generation: Generation, mut wire: Tripwire) {
        self.watch(wire.events.as_fd(), Source::Wire(generation), Interest::PRIORITY);
        wire.watched = true;
        self.memory.wires.insert(generation, wire);
    }

    /// Watches no wire of an instance that is cleared away.
    pub(super) fn forget_wire(&mut self, generation: Generation) {
        self.unwatch_wire(generation);
        self.memory.wires.remove(&generation);
    }

    fn unwatch_wire(&mut self, generation: Generation) {
        if let Some(wire) = self.memory.wires.get_mut(&generation)
            && wire.watched
        {
            wire.watched = false;
            super::never_mind(self.poll.remove(&wire.events));
        }
    }

    /// Something has happened to the memory of an instance.
    pub(super) fn hear_wire(&mut self, generation: Generation) {
        let Some(wire) = self.memory.wires.get_mut(&generation) else { return };
        let before = wire.high;
        match wire.read() {
            Ok(true) if wire.high > before => {
                if let Some(split) = self.split(generation) {
                    self.tell(generation, WireNews::Pressed(split));
                }
            }
            Ok(true) => {}
            // The group is gone; the exit is on its way.
            Ok(false) => self.unwatch_wire(generation),
            Err(error) => {
                self.unwatch_wire(generation);
                self.warn(&error.to_string());
            }
        }
    }

    /// Carries out what the core wants done to a wire.
    pub(super) fn perform_wire(&mut self, generation: Generation, order: WireOrder) {
        // Nothing of it is left, or there are no groups.
        let Some(instance) = self.instances.get(&generation) else { return };
        let Some(group) = instance.group.as_ref() else { return };
        match order {
            WireOrder::Arm { .. } => self.memory.prepare(generation, group),
            WireOrder::Lift | WireOrder::Look | WireOrder::Reclaim { .. } => {}
        }
        // A wire may stand, or be on its way, for a limit that there is no more.
        if order != WireOrder::Lift && !self.memory.wires.contains_key(&generation) {
            // The kernel does not watch it.
            return;
        }
        match order {
            WireOrder::Lift => {
                let lifted = group.lift_wire();
                self.unwatch_wire(generation);
                if let Err(error) = lifted {
                    self.warn(&error.to_string());
                }
            }
            WireOrder::Look => self.answer_wire(generation, order),
            WireOrder::Reclaim { bytes } => {
                let begun = group.open_reclaim().and_then(|file| start(file, bytes));
                self.wait_for(generation, order, begun);
            }
            WireOrder::Arm { limit } => {
                let begun = group.open_wire().and_then(|file| start(file, limit));
                self.wait_for(generation, order, begun);
            }
        }
    }

    fn wait_for(
        &mut self,
        generation: Generation,
        order: WireOrder,
        begun: Result<(Child, OwnedFd)>,
    ) {
        match begun {
            Ok((child, pidfd)) => {
                self.memory.last_reclaim = self.memory.last_reclaim.saturating_add(1);
                let number = self.memory.last_reclaim;
                self.watch(pidfd.as_fd(), Source::Reclaim(number), Interest::READABLE);
                let deadline_ms = clock::now().saturating_add(RECLAIM_TIMEOUT_MS);
                let answered = false;
                let reclaim = Reclaim { generation, order, child, pidfd, deadline_ms, answered };
                self.memory.reclaims.insert(number, reclaim);
            }
            Err(error) => {
                // Before Linux 5.19 there is no such file: the hold alone has to do.
                if !error.is_not_found() {
                    self.warn(&error.to_string());
                }
                self.answer_wire(generation, order);
            }
        }
    }

    /// A process that reclaims has ended.
    pub(super) fn hear_reclaim(&mut self, number: u64) {
        let Some(mut reclaim) = self.memory.reclaims.remove(&number) else { return };
        if matches!(reclaim.child.try_wait(), Ok(None)) {
            self.memory.reclaims.insert(number, reclaim);
            return;
        }
        self.forget_fd(&reclaim.pidfd);
        if !reclaim.answered {
            self.answer_wire(reclaim.generation, reclaim.order);
        }
    }

    /// Ends what takes too long, and goes on without it. It is reaped once it is gone.
    pub(super) fn reclaim_time(&mut self, now: u64) {
        let mut late = Vec::new();
        for reclaim in self.memory.reclaims.values_mut() {
            if !reclaim.answered && reclaim.deadline_ms <= now {
                reclaim.answered = true;
                super::never_mind(reclaim.child.kill());
                late.push((reclaim.generation, reclaim.order));
            }
        }
        for (generation, order) in late {
            self.answer_wire(generation, order);
        }
    }

    /// Answers an order with what is so by now.
    fn answer_wire(&mut self, generation: Generation, order: WireOrder) {
        let split = self.split(generation);
        match order {
            WireOrder::Lift => {}
            WireOrder::Look => {
                if let Some(split) = split {
                    self.tell(generation, WireNews::Seen(split));
                }
            }
            WireOrder::Reclaim { .. } => {
                self.tell(generation, WireNews::Reclaimed(split.unwrap_or_default()));
            }
            WireOrder::Arm { .. } => {
                let stands = self.watch_again(generation);
                // After the events were read: what is touched from now on is heard, and what was
                // touched before is seen.
                let split = self.split(generation).unwrap_or_default();
                self.tell(generation, WireNews::Armed { split, stands });
            }
        }
    }

    /// Watches a wire again, if it stands.
    fn watch_again(&mut self, generation: Generation) -> bool {
        let Some(instance) = self.instances.get(&generation) else { return false };
        let stands = instance.group.as_ref().and_then(|group| group.wire().ok().flatten());
        let Some(wire) = self.memory.wires.get_mut(&generation) else { return false };
        if stands.is_none() || !matches!(wire.read(), Ok(true)) {
            return false;
        }
        if !wire.watched {
            wire.watched = true;
            let added =
                self.poll.add(&wire.events, Source::Wire(generation).token(), Interest::PRIORITY);
            if let Err(error) = added {
                self.warn(&error.to_string());
            }
        }
        true
    }

    fn split(&self, generation: Generation) -> Option<Split> {
        let group = self.instances.get(&generation)?.group.as_ref()?;
        group.memory_stat().ok().map(split_of)
    }

    fn tell(&mut self, generation: Generation, news: WireNews) {
        self.events.push_back(Event::Fact(Fact::Wire { generation, news }));
    }

    /// Instances whose memory has to be looked at, since the kernel does not watch it.
    pub(super) fn sampled(&self) -> Vec<Generation> {
        let mut watched = self.policy.memory_watched();
        watched.retain(|generation| !self.memory.wires.contains_key(generation));
        watched
    }

    /// Looks at the memory of the instances that have a limit and no wire.
    pub(super) fn sample_memory(&mut self) {
        for generation in self.sampled() {
            if let Some(instance) = self.instances.get(&generation) {
                let bytes = instance.sample().memory_bytes;
                self.events.push_back(Event::Fact(Fact::Memory { generation, bytes }));
            }
        }
    }
}

impl Tripwire {
    fn of(group: &Group) -> Result<Self> {
        let mut wire = Self { events: group.memory_events()?, high: 0, watched: false };
        wire.read()?;
        Ok(wire)
    }

    /// Reads it, which makes it report the next change; false where the group is gone.
    fn read(&mut self) -> Result<bool> {
        let events = MemoryEvents::read(self.events.as_fd())?;
        self.high = events.map_or(self.high, |events| events.high);
        Ok(events.is_some())
    }
}

/// Runs this very binary, with the file as its standard input.
fn start(file: OwnedFd, bytes: u64) -> Result<(Child, OwnedFd)> {
    let child = Command::new("/proc/self/exe")
        .arg0("pmr")
        .args(["reclaim", &bytes.to_string()])
        .stdin(Stdio::from(file))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Error::new("start a process that reclaims", error))?;
    let pidfd = process::pidfd_open(child.id())?;
    Ok((child, pidfd))
}

fn split_of(stat: MemoryStat) -> Split {
    Split {
        unreclaimable: stat.unreclaimable(),
        anon: stat.anon,
        file: stat.file,
        kernel: stat.kernel,
        swap: stat.swap,
        current: stat.current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::Directory;

    #[test]
    fn a_first_limit_has_the_events_of_the_group_watched_from_now_on() {
        let directory = Directory::new("first-wire");
        let group = Group::played(directory.path()).unwrap();
        let (mut memory, generation) = (Memory::default(), Generation(1));
        memory.prepare(generation, &group);
        assert!(memory.wires.is_empty(), "no memory controller: it is sampled");
        let events = directory.path().join("memory.events");
        std::fs::write(&events, "low 0\nhigh 3\nmax 0\n").unwrap();
        memory.prepare(generation, &group);
        let high = |memory: &Memory| memory.wires[&generation].high;
        assert_eq!((high(&memory), memory.wires[&generation].watched), (3, false));
        // One that is there is as it was, with what it has seen.
        std::fs::write(&events, "low 0\nhigh 4\nmax 0\n").unwrap();
        memory.prepare(generation, &group);
        assert_eq!(high(&memory), 3);
    }
}
