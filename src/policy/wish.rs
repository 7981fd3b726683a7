//! What becomes of a wish: done, already so, waited for, or refused.

use std::collections::VecDeque;

use super::Policy;
use super::action::Action;
use super::event::Wish;
use super::fleet::{RollEnd, Scene};
use super::id::{ReleaseId, SlotId, Ticket};
use super::operation::{Awaits, OPERATIONS_MAX, Operation};
use super::reason::{Outcome, Reason, Refusal, RollKind};
use super::roll::Roll;
use super::slot::{Current, Goal, Slot};
use crate::spec::INSTANCES_MAX;

/// What taking up a wish came to.
enum Taken {
    Answer(Outcome),
    Await(Awaits),
}

impl Policy {
    pub(super) fn handle_wish(
        &mut self,
        ticket: Option<Ticket>,
        wish: Wish,
        roll_end: &mut Option<RollEnd>,
        out: &mut Vec<Action>,
    ) {
        let taken = match self.refusal(&wish) {
            Some(refusal) => Taken::Answer(Outcome::Refused(refusal)),
            None => self.take_up(wish, roll_end, out),
        };
        match taken {
            Taken::Answer(outcome) => {
                if let Some(ticket) = ticket {
                    out.push(Action::Reply { ticket, outcome });
                }
            }
            Taken::Await(awaits) => self.operations.push(Operation { ticket, awaits }),
        }
    }

    fn refusal(&self, wish: &Wish) -> Option<Refusal> {
        let fleet = &self.fleet;
        let slot = match wish {
            Wish::Start { slot }
            | Wish::Stop { slot }
            | Wish::Restart { slot, .. }
            | Wish::Signal { slot, .. }
            | Wish::Reset { slot } => *slot,
            Wish::Reload { .. }
            | Wish::Adjust { .. }
            | Wish::Scale { .. }
            | Wish::ShutDown { .. } => None,
        };
        let starts = matches!(wish, Wish::Start { .. } | Wish::Restart { .. });
        if let Some(slot) = slot.filter(|&slot| {
            // One that is scaled away can be signalled until it is gone, and not started any more.
            fleet.slot(slot).is_none_or(|slot| starts && slot.goal == Goal::Remove)
        }) {
            return Some(Refusal::NoSuchSlot(slot));
        }
        let changes = match wish {
            Wish::Restart { .. }
            | Wish::Reload { .. }
            | Wish::Adjust { .. }
            | Wish::Scale { .. } => {
                if let Some(roll) = &fleet.roll {
                    return Some(Refusal::Busy(roll.kind));
                }
                true
            }
            Wish::Start { .. } | Wish::Stop { .. } => true,
            Wish::Signal { .. } | Wish::Reset { .. } | Wish::ShutDown { .. } => false,
        };
        if changes && fleet.shutting_down {
            return Some(Refusal::ShuttingDown);
        }
        // A shutdown is never refused, and waits for nothing.
        (changes && self.operations.len() >= OPERATIONS_MAX).then_some(Refusal::TooMany)
    }

    fn take_up(
        &mut self,
        wish: Wish,
        roll_end: &mut Option<RollEnd>,
        out: &mut Vec<Action>,
    ) -> Taken {
        match wish {
            Wish::Restart { slot, release, rules } => {
                self.rules.insert(release, rules);
                self.begin_roll(RollKind::Restart, slot, release, out)
            }
            Wish::Reload { release, rules } => {
                self.rules.insert(release, rules);
                self.begin_roll(RollKind::Reload, None, release, out)
            }
            Wish::Adjust { release, rules } => {
                self.rules.insert(release, rules);
                self.scene(roll_end, out).adjust_wish(release)
            }
            Wish::Start { slot } => self.scene(roll_end, out).start_wish(slot),
            Wish::Stop { slot } => self.scene(roll_end, out).stop_wish(slot),
            Wish::Scale { count } => self.scene(roll_end, out).scale_wish(count),
            Wish::Signal { slot, signal } => self.scene(roll_end, out).signal_wish(slot, signal),
            Wish::Reset { slot } => self.scene(roll_end, out).reset_wish(slot),
            Wish::ShutDown { now } => self.scene(roll_end, out).shut_down(now),
        }
    }

    fn scene<'a>(
        &'a mut self,
        roll_end: &'a mut Option<RollEnd>,
        out: &'a mut Vec<Action>,
    ) -> Scene<'a> {
        let Self { fleet, rules, now, .. } = self;
        Scene { fleet, rules, now: *now, out, roll_end }
    }

    fn begin_roll(
        &mut self,
        kind: RollKind,
        slot: Option<SlotId>,
        release: ReleaseId,
        out: &mut Vec<Action>,
    ) -> Taken {
        let remaining: VecDeque<SlotId> = match slot {
            Some(slot) => [slot].into(),
            None => self.fleet.slot_ids().collect(),
        };
        let since = self.fleet.last_generation;
        self.fleet.roll = Some(Roll { kind, release, since, remaining, step: None });
        out.push(Action::Note(super::Note {
            slot,
            generation: None,
            reason: Reason::RollBegun { kind, release },
        }));
        Taken::Await(Awaits::Roll)
    }
}

impl Scene<'_> {
    fn targets(&self, slot: Option<SlotId>) -> Vec<SlotId> {
        slot.map_or_else(|| self.fleet.slot_ids().collect(), |slot| vec![slot])
    }

    /// What ran and was to be started as the current release is so as this one.
    fn adjust_wish(&mut self, release: ReleaseId) -> Taken {
        let from = std::mem::replace(&mut self.fleet.release, release);
        for id in self.fleet.slot_ids() {
            self.with_slot(id, |slot, turn| slot.adjust(from, release, turn));
        }
        self.note(Reason::LimitsChanged { release });
        Taken::Answer(Outcome::Done)
    }

    fn start_wish(&mut self, slot: Option<SlotId>) -> Taken {
        let mut targets = self.targets(slot);
        targets.retain(|&id| self.fleet.slot(id).is_some_and(|slot| slot.goal != Goal::Remove));
        let mut changed = false;
        for &id in &targets {
            let Some(slot) = self.fleet.slots.get_mut(usize::from(id.0)) else { continue };
            let was = slot.goal;
            slot.goal = Goal::Run;
            match slot.current {
                Current::Running(_) => {
                    changed |= was != Goal::Run;
                    self.with_slot(id, Slot::start_after_end);
                }
                Current::Stopped
                | Current::Finished
                | Current::Errored
                | Current::Waiting { .. } => {
                    slot.begin_afresh();
                    changed = true;
                    self.start(id);
                }
            }
        }
        let online = targets.iter().all(|&id| self.fleet.slot(id).is_some_and(Slot::is_online));
        if !changed && online {
            return Taken::Answer(Outcome::AlreadySo);
        }
        Taken::Await(Awaits::Online(targets))
    }

    fn stop_wish(&mut self, slot: Option<SlotId>) -> Taken {
        let targets = self.targets(slot);
        // A restart that has not come to a stopped slot would still start it.
        let restarting = self.fleet.roll.as_ref().is_some_and(|it| it.kind == RollKind::Restart);
        let stopped = |&id: &SlotId| self.fleet.slot(id).is_some_and(Slot::is_stopped);
        if !restarting && targets.iter().all(stopped) {
            return Taken::Answer(Outcome::AlreadySo);
        }
        // Stop wins.
        self.cancel_roll();
        for &id in &targets {
            self.stop(id, Goal::Stop);
        }
        Taken::Await(Awaits::Stopped(targets))
    }

    fn scale_wish(&mut self, count: u16) -> Taken {
        if count == 0 || count > INSTANCES_MAX {
            return Taken::Answer(Outcome::Refused(Refusal::Count(count)));
        }
        if self.fleet.staying() == usize::from(count) {
            return Taken::Answer(Outcome::AlreadySo);
        }
        for id in self.fleet.slot_ids().collect::<Vec<_>>() {
            let leaving = self.fleet.slot(id).is_some_and(|slot| slot.goal == Goal::Remove);
            if id.0 >= count {
                self.stop(id, Goal::Remove);
            } else if leaving && let Some(slot) = self.fleet.slots.get_mut(usize::from(id.0)) {
                slot.revive(self.now, self.out);
            }
        }
        for id in self.fleet.slots.len()..usize::from(count) {
            let Ok(id) = u16::try_from(id) else { break };
            let release = self.fleet.release;
            self.fleet.slots.push(Slot::new(SlotId(id), release));
            self.start(SlotId(id));
        }
        let wanted = self.fleet.slots.iter().filter(|slot| slot.goal == Goal::Run);
        Taken::Await(Awaits::Count(count, wanted.map(|slot| slot.id).collect()))
    }

    fn signal_wish(&mut self, slot: Option<SlotId>, signal: i32) -> Taken {
        let mut any = false;
        for id in self.targets(slot) {
            let running = self.fleet.slot(id).and_then(Slot::running);
            let Some(instance) = running.filter(|it| it.pid.is_some() && it.may_run()) else {
                continue;
            };
            self.out.push(Action::Send { generation: instance.generation, signal });
            any = true;
        }
        Taken::Answer(if any { Outcome::Done } else { Outcome::Refused(Refusal::NothingRuns) })
    }

    fn reset_wish(&mut self, slot: Option<SlotId>) -> Taken {
        for id in self.targets(slot) {
            if let Some(slot) = self.fleet.slots.get_mut(usize::from(id.0)) {
                slot.restarts = 0;
                slot.history.reset();
                slot.memory = super::MemoryHistory::default();
            }
            self.with_slot(id, |slot, turn| {
                if let Some(instance) = slot.running_mut() {
                    instance.rearm(turn);
                }
            });
        }
        Taken::Answer(Outcome::Done)
    }

    fn shut_down(&mut self, now: bool) -> Taken {
        if !self.fleet.shutting_down {
            self.cancel_roll();
            self.note(Reason::ShuttingDown);
            self.fleet.shutting_down = true;
            for id in self.fleet.slot_ids().collect::<Vec<_>>() {
                self.stop(id, Goal::Stop);
            }
        }
        if now {
            for id in self.fleet.slot_ids().collect::<Vec<_>>() {
                self.kill(id);
            }
        }
        Taken::Answer(Outcome::Done)
    }
}
