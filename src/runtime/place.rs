//! One address of an app: its parking socket, the instances' own sockets, and who is given the
//! connections.

mod proof;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::balance::hang::{Sample, Verdicts, Watch};
use crate::balance::program::Method;
use crate::balance::steering::{Counters, Steering};
use crate::balance::table;
use crate::policy::{Generation, SlotId};
use crate::sys::listen::Queue;
use crate::sys::{Error, listen};

use proof::Proofs;

/// A client whose handshake is not done when its socket is taken out of the table, or when those in
/// the parking socket are moved on, comes into the queue of that socket afterwards. So often it is
/// looked whether one did: a handshake that takes longer than this is a bad one already,
const LATE_LOOK_MS: u64 = 100;
const LATE_MS: u64 = 3000;
/// and then so often, until the kernel has given up all of that time (`tcp_synack_retries` of 5:
/// 63 s).
const LATER_LOOK_MS: u64 = 1000;
const LATER_MS: u64 = 64_000;

/// One address.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) parking: OwnedFd,
    /// Where its connections can be steered.
    pub(super) steering: Option<Steering>,
    /// It was not in the config: an instance has bound it, or asked for it.
    pub(super) learned: bool,
    /// What the program chooses by, as far as this supervisor knows.
    method: Option<Method>,
    members: BTreeMap<Generation, Vec<Member>>,
    /// Who accepts, of those that inherit.
    proofs: Proofs,
    /// Whom the table names, and by which method it was made.
    published: Published,
    /// Who of them does not accept.
    watch: Watch<Generation>,
    /// Who has a socket here and serves, as far as the core knows.
    serving: BTreeSet<Generation>,
    /// Who did before, and how many waited for it at the last look.
    leavers: BTreeMap<Generation, u64>,
    /// Since when clients need not wait any more.
    served_since_ms: u64,
    looked_at_ms: u64,
}

/// What a table is made of: sockets, each with a number that its slot keeps.
#[derive(Debug, Default, PartialEq, Eq)]
struct Published {
    method: Option<Method>,
    ready: Vec<(u32, u16)>,
}

impl Published {
    fn order(&self) -> Vec<u16> {
        match self.method {
            Some(Method::Source) => table::by_source(&self.ready),
            Some(Method::RoundRobin) | None => self.ready.iter().map(|(_, it)| *it).collect(),
        }
    }
}

/// What a look has found.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) verdicts: Verdicts<Generation>,
    /// Whose queues are to be moved.
    pub(super) stuck: Vec<Generation>,
}

/// A socket of an instance.
#[derive(Debug)]
struct Member {
    index: u16,
    socket: OwnedFd,
}

impl Place {
    pub(super) fn new(parking: OwnedFd, learned: bool) -> Self {
        Self {
            parking,
            steering: None,
            learned,
            method: None,
            members: BTreeMap::new(),
            proofs: Proofs::default(),
            published: Published::default(),
            watch: Watch::default(),
            serving: BTreeSet::new(),
            leavers: BTreeMap::new(),
            served_since_ms: 0,
            looked_at_ms: 0,
        }
    }

    /// Whether each instance can have a socket of its own here.
    pub(super) fn is_steered(&self) -> bool {
        self.steering.is_some()
    }

    /// Chooses by `method` from now on. Steering begins where it has not; says whether it has.
    pub(super) fn steer_by(&mut self, method: Method) -> Result<bool, Error> {
        if self.method == Some(method) || !listen::is_in_group(&self.parking) {
            return Ok(false);
        }
        let begins = self.steering.is_none();
        match &self.steering {
            // The program anew: it may be of another version.
            Some(steering) => steering.attach(method, self.parking.as_fd())?,
            None => self.steering = Some(Steering::create(method, self.parking.as_fd(), None)?),
        }
        self.method = Some(method);
        Ok(begins)
    }

    /// Takes a socket of the group in for an instance, and says under which index.
    pub(super) fn add(
        &mut self,
        generation: Generation,
        socket: OwnedFd,
    ) -> Result<Option<u16>, Error> {
        let Some(steering) = &mut self.steering else { return Ok(None) };
        let index = steering.add(socket.as_fd())?;
        self.members.entry(generation).or_default().push(Member { index, socket });
        Ok(Some(index))
    }

    /// Takes over a socket that an earlier supervisor has added.
    pub(super) fn take_over(&mut self, generation: Generation, index: u16, socket: OwnedFd) {
        if let Some(steering) = &mut self.steering
            && steering.keep(index)
            && steering.settle(index, socket.as_fd()).is_ok()
        {
            self.members.entry(generation).or_default().push(Member { index, socket });
        }
    }

    /// Takes out what an earlier supervisor has put in and told nobody of.
    pub(super) fn forget_others(&self) {
        if let Some(steering) = &self.steering {
            steering.forget_others();
        }
    }

    /// Gives the sockets of one of these users to another.
    pub(super) fn give(&self, from: &BTreeSet<u32>, to: u32) -> Result<(), Error> {
        for socket in self.sockets() {
            let owner = listen::owner(socket)?;
            if owner != to && from.contains(&owner) {
                listen::set_owner(socket, to)?;
            }
        }
        Ok(())
    }

    /// The socket that an instance is given: its own, or the one of all.
    pub(super) fn socket_of(&self, generation: Generation) -> BorrowedFd<'_> {
        let own = self.members.get(&generation).and_then(|members| members.first());
        own.map_or(self.parking.as_fd(), |member| member.socket.as_fd())
    }

    pub(super) fn has(&self, generation: Generation) -> bool {
        self.members.contains_key(&generation)
    }

    /// Whether any instance has a socket here.
    pub(super) fn is_used(&self) -> bool {
        !self.members.is_empty()
    }

    /// All sockets that are pmr's here.
    pub(super) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let members = self.members.values().flatten().map(|member| member.socket.as_fd());
        members.chain([self.parking.as_fd()])
    }

    /// Ends the sockets of an instance that nobody accepts from any more: whoever waits in them
    /// moves on to the others, though the keeper still holds copies.
    pub(super) fn close(&mut self, generation: Generation) {
        self.leavers.remove(&generation);
        for member in self.members.remove(&generation).unwrap_or_default() {
            listen::silence(&member.socket);
            if let Some(steering) = &mut self.steering {
                self.proofs.forget(member.index, steering);
                steering.remove(member.index);
            }
        }
    }

    /// Ends those sockets of an instance that it holds no more.
    pub(super) fn drop_closed(&mut self, generation: Generation, held: &BTreeSet<u64>) {
        let Some(members) = self.members.get_mut(&generation) else { return };
        let is_closed = |member: &mut Member| {
            rustix::fs::fstat(&member.socket).is_ok_and(|facts| !held.contains(&facts.st_ino))
        };
        for member in members.extract_if(.., is_closed) {
            listen::silence(&member.socket);
            if let Some(steering) = &mut self.steering {
                steering.remove(member.index);
            }
        }
        if members.is_empty() {
            self.members.remove(&generation);
        }
    }

    /// Whether an instance accepts from its own sockets here. Where it has none, it shares one with
    /// the others, and nobody waits for it.
    pub(super) fn accepts(&mut self, now: u64, generation: Generation) -> Result<bool, Error> {
        let (Some(steering), Some(members)) = (&self.steering, self.members.get(&generation))
        else {
            return Ok(true);
        };
        let parking = self.parking.as_fd();
        let mut accepts = true;
        for member in members {
            let socket = (member.index, &member.socket);
            accepts &= self.proofs.look(now, socket, parking, steering)?;
        }
        Ok(accepts)
    }

    /// How many connections wait for an instance.
    pub(super) fn queued(&self, generation: Generation) -> u64 {
        let members = self.members.get(&generation).into_iter().flatten();
        members.map(|member| member.queue().length.into()).fold(0, u64::saturating_add)
    }

    /// What came to each instance, and how much of that waits.
    pub(super) fn counters(&self) -> impl Iterator<Item = (Generation, Counters, u64)> + '_ {
        self.members.iter().map(|(generation, members)| {
            let mut sum = Counters::default();
            for member in members {
                let counted = self.steering.as_ref().map(|it| it.counters(member.index));
                let counted = counted.unwrap_or_default();
                sum.taken = sum.taken.saturating_add(counted.taken);
                sum.migrated = sum.migrated.saturating_add(counted.migrated);
            }
            (*generation, sum, self.queued(*generation))
        })
    }

    /// Whether connections go to anybody.
    pub(super) fn is_served(&self) -> bool {
        !self.published.ready.is_empty()
    }

    /// Has new connections go to these instances, in this order and in turn or by the client's
    /// address, and moves those to them that have waited while nobody served.
    pub(super) fn publish(
        &mut self,
        now: u64,
        serving: &[(SlotId, Generation)],
    ) -> Result<(), Error> {
        self.note_leavers(serving);
        let Some(steering) = &self.steering else { return Ok(()) };
        let serve = serving.iter().filter(|(_, generation)| !self.watch.is_out(*generation));
        let sockets = serve.filter_map(|(slot, generation)| {
            // An instance may have several sockets.
            let numbered = (0_u32..).step_by(1 << 16).zip(self.members.get(generation)?);
            Some(numbered.map(|(number, member)| (number | u32::from(slot.0), member.index)))
        });
        let next = Published { method: self.method, ready: sockets.flatten().collect() };
        if next == self.published {
            return Ok(());
        }
        steering.publish(&next.order());
        if !self.is_served() {
            self.served_since_ms = now;
            self.looked_at_ms = now;
        }
        self.published = next;
        self.unpark()
    }

    /// Moves those who wait in the parking socket on, where somebody serves.
    fn unpark(&self) -> Result<(), Error> {
        let waits = listen::queue(&self.parking).unwrap_or_default().length > 0;
        match &self.steering {
            Some(steering) if waits && self.is_served() => {
                steering.move_queue(table::PARKING, self.parking.as_fd())
            }
            Some(_) | None => Ok(()),
        }
    }

    fn note_leavers(&mut self, serving: &[(SlotId, Generation)]) {
        let serving: BTreeSet<Generation> = serving
            .iter()
            .map(|(_, generation)| *generation)
            .filter(|generation| self.has(*generation))
            .collect();
        let left: Vec<Generation> = self.serving.difference(&serving).copied().collect();
        for generation in
            left.into_iter().filter(|generation| self.members.contains_key(generation))
        {
            self.leavers.insert(generation, 0);
        }
        self.leavers.retain(|generation, _| !serving.contains(generation));
        self.serving = serving;
    }

    /// When to look at the queues; the last one is never taken out, so of one it is not asked.
    pub(super) fn next_look_ms(&self) -> Option<u64> {
        if !self.is_steered() {
            return None;
        }
        let several = (self.members.len() > 1).then(|| self.watch.next_look_ms());
        let served_ms = self.looked_at_ms.saturating_sub(self.served_since_ms);
        let wait = if !self.leavers.is_empty() || self.is_served() && served_ms < LATE_MS {
            Some(LATE_LOOK_MS)
        } else {
            (self.is_served() && served_ms < LATER_MS).then_some(LATER_LOOK_MS)
        };
        let late = wait.map(|wait| self.looked_at_ms.saturating_add(wait));
        several.into_iter().chain(late).min()
    }

    /// Looks who accepts, and takes those out that do not.
    pub(super) fn look(
        &mut self,
        now: u64,
        serving: &[(SlotId, Generation)],
        starved_ms: impl Fn(Generation) -> u64,
    ) -> Result<Look, Error> {
        let mut samples: Vec<Sample<Generation>> =
            serving.iter().filter_map(|(_, generation)| self.sample(*generation)).collect();
        for sample in samples.iter_mut().filter(|sample| sample.queued > 0) {
            sample.starved_ms = starved_ms(sample.key);
        }
        let verdicts = self.watch.look(now, &samples);
        self.looked_at_ms = now;
        self.publish(now, serving)?;
        let mut stuck: Vec<Generation> =
            verdicts.out.iter().chain(&verdicts.late).copied().collect();
        stuck.extend(self.late_at_leavers());
        // Whoever met a table that named somebody who was gone already, and who came late.
        self.unpark()?;
        Ok(Look { verdicts, stuck })
    }

    /// Those who leave, and for whom somebody waits since the last look: who came late.
    fn late_at_leavers(&mut self) -> Vec<Generation> {
        if !self.is_served() {
            return Vec::new();
        }
        let mut stuck = Vec::new();
        for (generation, before) in std::mem::take(&mut self.leavers) {
            let queued = self.queued(generation);
            let stands_still = before > 0 && queued >= before;
            self.leavers.insert(generation, if stands_still { 0 } else { queued });
            stuck.extend(stands_still.then_some(generation));
        }
        stuck
    }

    /// Moves those on who wait for an instance. It must stand still.
    pub(super) fn move_queues(&self, generation: Generation) -> Result<(), Error> {
        let Some(steering) = &self.steering else { return Ok(()) };
        let mut members = self.members.get(&generation).into_iter().flatten();
        members.try_for_each(|member| steering.move_queue(member.index, member.socket.as_fd()))
    }
}

impl Place {
    /// The figures of an instance, over all its sockets. What it was given is read before what
    /// waits.
    fn sample(&self, key: Generation) -> Option<Sample<Generation>> {
        let steering = self.steering.as_ref()?;
        let members = self.members.get(&key)?;
        let mut sample = Sample { key, taken: 0, queued: 0, backlog: 0, starved_ms: 0 };
        for member in members {
            let taken = steering.counters(member.index).taken;
            let queue = member.queue();
            sample.taken = sample.taken.saturating_add(taken);
            sample.queued = sample.queued.saturating_add(queue.length.into());
            sample.backlog = sample.backlog.saturating_add(queue.backlog.into());
        }
        Some(sample)
    }
}

impl Member {
    /// One that does not listen at the moment has none.
    fn queue(&self) -> Queue {
        listen::queue(&self.socket).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
