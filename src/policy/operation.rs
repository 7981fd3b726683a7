//! Wishes that wait for their end.

use super::fleet::{Fleet, RollEnd};
use super::id::{SlotId, Ticket};
use super::reason::Outcome;
use super::slot::{Current, Goal};

/// Most wishes that wait at a time.
pub(super) const OPERATIONS_MAX: usize = 64;

/// A wish that was taken up and is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) ticket: Option<Ticket>,
    pub(super) awaits: Awaits,
}

/// What a wish waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Awaits {
    /// These slots to be stopped.
    Stopped(Vec<SlotId>),
    /// These slots to be online, or to have given up.
    Online(Vec<SlotId>),
    /// That many slots, and these of them online.
    Count(u16, Vec<SlotId>),
    /// The end of the roll.
    Roll,
}

impl Operation {
    /// What has come of it, once something has.
    pub(super) fn outcome(&self, fleet: &Fleet, roll_end: Option<RollEnd>) -> Option<Outcome> {
        match &self.awaits {
            Awaits::Stopped(slots) => stopped(fleet, slots),
            // Somebody asked for another number.
            Awaits::Count(count, _) if fleet.staying() != usize::from(*count) => {
                Some(Outcome::Cancelled)
            }
            Awaits::Count(count, _) if fleet.slots.len() != usize::from(*count) => None,
            Awaits::Online(slots) | Awaits::Count(_, slots) => online(fleet, slots),
            Awaits::Roll => roll_end.map(|end| match end {
                RollEnd::Done => Outcome::Done,
                RollEnd::Failed(slot) => Outcome::Failed(slot),
                RollEnd::Cancelled => Outcome::Cancelled,
            }),
        }
    }
}

fn stopped(fleet: &Fleet, slots: &[SlotId]) -> Option<Outcome> {
    let mut all = true;
    for slot in slots.iter().filter_map(|&id| fleet.slot(id)) {
        if slot.goal == Goal::Run {
            return Some(Outcome::Cancelled);
        }
        all &= slot.is_stopped();
    }
    all.then_some(Outcome::Done)
}

fn online(fleet: &Fleet, slots: &[SlotId]) -> Option<Outcome> {
    let mut all = true;
    for &id in slots {
        let Some(slot) = fleet.slot(id) else { return Some(Outcome::Cancelled) };
        match slot.current {
            Current::Stopped => return Some(Outcome::Cancelled),
            Current::Errored => return Some(Outcome::Failed(id)),
            // A job that has done its work was online for as long as it needed.
            Current::Finished => {}
            Current::Waiting { .. } | Current::Running(_) => all &= slot.is_online(),
        }
    }
    all.then_some(Outcome::Done)
}
