//! The pure core: what happens to an app's instances, and why.
//!
//! ```text
//!                      ┌────────── restart rules ◄───────── exit nobody asked for ─┐
//!                      ▼                                                           │
//!  start ──► waiting ──► launching ──ready──► online ──asked to stop──► draining ──┤
//!               │            └─listen_timeout, exec error──────────────────▲       │ as asked
//!               ▼                                                                  ▼
//!            errored, or stopped when the app is finished                     stopped, or next
//! ```
//!
//! The contract:
//!
//! 1. [`Policy::handle`], [`Policy::next_deadline`], [`Policy::status`]. Nothing else mutates. The
//!    caller owns `out`.
//! 2. Time is an argument and never goes back. A spurious or early [`Event::Tick`] changes nothing.
//! 3. A state carries its data, and a deadline lives in its state: no timer outlives it.
//! 4. One writer: `Slot::enter` for what a slot holds, `Instance::enter` for a phase. [`Reason`] is
//!    the one source for the text of journal, `status` and command line.
//! 5. Every fact and action about a process names its generation. Facts about one that is not held
//!    are dropped in one place, `Scene::handle_fact`.
//! 6. An action is complete: the executor has nothing left to decide.
//! 7. Every action that can fail is answered by exactly one event. What is recorded is what the
//!    kernel said, never what was asked for.
//! 8. Facts before wishes: the caller hands over a batch in that order. A wish is done, already so,
//!    or refused with a reason; never just dropped.
//! 9. Everything has a bound: slots, two instances each, exits remembered, wishes that wait.
//! 10. Replacements for memory and crashes have separate budgets.
//!
//! [`Policy::saved`] is what a supervisor records before it carries actions out, and
//! [`Policy::adopt`] is how the next one goes on from there. Starting afresh is adopting a
//! [`Fleet`] in which nothing runs yet.
#![deny(clippy::wildcard_enum_match_arm)]

mod action;
mod event;
mod fleet;
mod id;
mod instance;
mod memory;
mod operation;
mod reason;
mod restart;
mod roll;
mod rules;
mod saved;
mod slot;
mod status;
mod time;
mod wish;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use action::{Action, Note};
pub use event::{Event, Exit, Fact, Oom, SpawnFailure, Wish};
pub use fleet::{Fleet, STATUS_ERRORED};
pub use id::{Generation, ReleaseId, SlotId, Ticket};
pub use memory::{MemoryHistory, Split, WireNews, WireOrder};
pub use reason::{EndCause, Failure, Outcome, Reason, Refusal, RollKind, Verdict};
pub use restart::{RecentRestarts, RestartHistory, RestartsLately};
pub use rules::Rules;
pub use saved::{Survivor, VERSION};
pub use slot::{LastExit, Slot};
pub use status::{InstanceStatus, SlotStatus, Status, UnitState, Word};
pub use time::{Moment, Spoken};

use fleet::{RollEnd, Scene};
use instance::Turn;
use operation::Operation;
use rules::rules_of;

/// The core.
#[derive(Debug, Clone)]
pub struct Policy {
    fleet: Fleet,
    rules: BTreeMap<ReleaseId, Rules>,
    operations: Vec<Operation>,
    now: Moment,
}

impl Policy {
    /// Goes on with `fleet`, whose releases have these rules. Says again in `out` what a supervisor
    /// that died may have left undone; slots that were never started are started by the first
    /// [`Event::Tick`].
    ///
    /// # Panics
    ///
    /// Where the rules of a release that the fleet names are missing.
    pub fn adopt(
        fleet: Fleet,
        rules: BTreeMap<ReleaseId, Rules>,
        now: Moment,
        out: &mut Vec<Action>,
    ) -> Self {
        let mut policy = Self { fleet, rules, operations: Vec::new(), now };
        for release in policy.fleet.releases() {
            assert!(policy.rules.contains_key(&release), "no rules for release {release}");
        }
        for slot in &mut policy.fleet.slots {
            let id = slot.id;
            let mut turn = Turn { now, slot: id, rules: &policy.rules, out };
            slot.resume(&mut turn);
        }
        if policy.fleet.announced != UnitState::Starting && policy.fleet.over.is_none() {
            out.push(Action::Announce(policy.fleet.announced));
        }
        policy
    }

    /// What to record before the actions of the last [`Policy::handle`] are carried out.
    pub fn saved(&self) -> &Fleet {
        &self.fleet
    }

    /// Takes one event at a moment, and adds to `out` what is to be done. A moment before the last
    /// one counts as the last one.
    pub fn handle(&mut self, now: Moment, event: Event, out: &mut Vec<Action>) {
        self.now = self.now.max(now);
        if self.fleet.over.is_some() {
            if let Event::Wish(Some(ticket), _) = event {
                let outcome = Outcome::Refused(Refusal::ShuttingDown);
                out.push(Action::Reply { ticket, outcome });
            }
            return;
        }
        let mut roll_end = None;
        let mut scene = Scene {
            fleet: &mut self.fleet,
            rules: &self.rules,
            now: self.now,
            out,
            roll_end: &mut roll_end,
        };
        match event {
            Event::Tick => {}
            Event::Fact(fact) => scene.handle_fact(fact),
            Event::Wish(ticket, wish) => self.handle_wish(ticket, wish, &mut roll_end, out),
        }
        self.settle(roll_end, out);
    }

    /// What follows from the event and the moment, until nothing does.
    fn settle(&mut self, mut roll_end: Option<RollEnd>, out: &mut Vec<Action>) {
        let mut scene = Scene {
            fleet: &mut self.fleet,
            rules: &self.rules,
            now: self.now,
            out,
            roll_end: &mut roll_end,
        };
        scene.handle_time();
        scene.advance_roll();
        // A roll may have vacated or filled a place that is due at this very moment.
        scene.handle_time();
        scene.advance_roll();
        // An instance that leaks has its turn as soon as nothing else is rolled.
        while scene.begin_memory_roll() {
            scene.advance_roll();
            scene.handle_time();
            scene.advance_roll();
        }
        scene.conclude();
        self.answer(roll_end, out);
        self.forget_releases();
        self.assert_invariants();
    }

    fn answer(&mut self, roll_end: Option<RollEnd>, out: &mut Vec<Action>) {
        let fleet = &self.fleet;
        self.operations.retain(|operation| match operation.outcome(fleet, roll_end) {
            None => true,
            Some(outcome) => {
                if let Some(ticket) = operation.ticket {
                    out.push(Action::Reply { ticket, outcome });
                }
                false
            }
        });
    }

    fn forget_releases(&mut self) {
        let used = self.fleet.releases();
        self.rules.retain(|release, _| used.contains(release));
    }

    /// When to call [`Policy::handle`] with a [`Event::Tick`] at the latest. Any call of `handle`
    /// may change it.
    pub fn next_deadline(&self) -> Option<Moment> {
        if self.fleet.over.is_some() {
            return None;
        }
        let slots = self.fleet.slots.iter().filter_map(|slot| slot.deadline(&self.rules));
        let memory = Scene::memory_deadline(&self.fleet);
        slots.chain(self.roll_deadline()).chain(memory).min()
    }

    fn roll_deadline(&self) -> Option<Moment> {
        let roll = self.fleet.roll.as_ref()?;
        let step = roll.step.as_ref()?;
        let slot = self.fleet.slot(step.slot)?;
        let rules = rules_of(&self.rules, roll.release);
        let around = self.fleet.around(step.slot);
        match roll.next_move(step, slot, rules, around, self.now) {
            roll::Move::Wait(at) => at,
            roll::Move::Skip
            | roll::Move::StartBeside
            | roll::Move::Start
            | roll::Move::End(_)
            | roll::Move::Watch(_)
            | roll::Move::EndFirst(_)
            | roll::Move::Flip
            | roll::Move::AwaitLeaver
            | roll::Move::Next
            | roll::Move::Fail => Some(self.now),
        }
    }

    /// The exit status of the service, once all is over.
    pub fn over(&self) -> Option<u8> {
        self.fleet.over
    }

    /// What there is to see at a moment.
    pub fn status(&self, now: Moment) -> Status {
        status::status(&self.fleet, &self.rules, now.max(self.now))
    }

    /// Whether an instance of this generation is held, and what it runs.
    pub fn release_of(&self, generation: Generation) -> Option<ReleaseId> {
        self.fleet
            .slots
            .iter()
            .find_map(|slot| slot.find(generation).map(|instance| instance.release))
    }

    /// Releases that can still be started or are running: the others can be forgotten.
    pub fn releases(&self) -> std::collections::BTreeSet<ReleaseId> {
        self.fleet.releases()
    }

    /// Instances whose spawn was said and not answered, and instances that are there: after an
    /// adopt, those the keeper does not know are [`Fact::Lost`].
    pub fn generations(&self) -> Vec<(SlotId, Generation)> {
        self.fleet.generations().collect()
    }

    /// Who new connections are for, in the order of the slots: of each slot the current instance
    /// where that is online, else a newcomer that is.
    pub fn serving(&self) -> Vec<(SlotId, Generation)> {
        let serving = |slot: &Slot| slot.serving().map(|it| (slot.id, it.generation));
        self.fleet.slots.iter().filter_map(serving).collect()
    }

    /// Instances that are not ready yet.
    pub fn launching(&self) -> Vec<Generation> {
        let all = self.fleet.slots.iter().flat_map(Slot::instances);
        all.filter(|instance| instance.is_launching()).map(|it| it.generation).collect()
    }

    /// Instances that are online and have a memory limit.
    pub fn memory_watched(&self) -> Vec<Generation> {
        self.fleet
            .slots
            .iter()
            .filter_map(Slot::running)
            .filter(|instance| instance.online_since().is_some())
            .filter(|it| rules_of(&self.rules, it.release).memory_limit.is_some())
            .map(|instance| instance.generation)
            .collect()
    }

    /// What must hold after every event. An assert that fires aborts the supervisor, the keeper
    /// starts it again, and it adopts: so asserts are cheap.
    fn assert_invariants(&self) {
        let mut generations: Vec<Generation> =
            self.fleet.generations().map(|(_, generation)| generation).collect();
        let count = generations.len();
        generations.sort_unstable();
        generations.dedup();
        assert_eq!(generations.len(), count, "a generation is held once");
        assert!(
            generations.last().is_none_or(|&last| last <= self.fleet.last_generation),
            "generations only grow"
        );
        for slot in &self.fleet.slots {
            slot.assert_invariants(&self.rules);
        }
        assert!(self.operations.len() <= operation::OPERATIONS_MAX, "wishes that wait are bounded");
        assert!(
            !(self.fleet.shutting_down && self.fleet.roll.is_some()),
            "nothing is rolled while all is stopped"
        );
    }
}
