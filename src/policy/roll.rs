//! Replacing slots one by one: reload, restart, memory.
//!
//! ```text
//! Begin ─┬─ shares its port ──► newcomer beside ──► Prove ──► flip ──► Leave ──► next slot
//!        └─ does not ─────────► end the old ──► Vacate ──► Prove ─────────────► next slot
//! ```
//! `Prove` asks that the new instance is online and stays so for `stable_for`. Where it fails the
//! roll ends: beside, the old instance never left; else a reload starts the old release again.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::id::{Generation, ReleaseId, SlotId};
use super::instance::{Aftermath, Instance, Phase, Turn};
use super::reason::{EndCause, RollKind};
use super::rules::Rules;
use super::slot::{Current, Goal, Role, Slot};
use super::time::Moment;

/// A replacement of slots, one at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Roll {
    pub(super) kind: RollKind,
    pub(super) release: ReleaseId,
    pub(super) remaining: VecDeque<SlotId>,
    pub(super) step: Option<Step>,
}

/// The slot a roll is at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Step {
    pub(super) slot: SlotId,
    /// What the slot ran before.
    pub(super) from: ReleaseId,
    pub(super) stage: Stage,
}

/// What a roll waits for in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// That the slot can be begun with.
    Begin,
    /// That a later instance than this one is started in its place.
    Vacate(Generation),
    /// That this one is online and stays so.
    Prove(Generation),
    /// That the old one is gone.
    Leave,
}

/// What to do with the slot a roll is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Move {
    /// Nothing before the next event, or this moment.
    Wait(Option<Moment>),
    /// Leave this slot alone but for its release.
    Skip,
    /// Start the new instance beside the old one.
    StartBeside,
    /// Start the new instance in the empty place.
    Start,
    /// End the old instance; its successor is started in its place.
    End(Generation),
    /// The successor is this one.
    Watch(Generation),
    /// The new instance has proved itself beside the old one: it takes over.
    Flip,
    /// The old one may still drain.
    AwaitLeaver,
    /// This slot is done.
    Next,
    /// The new instance failed.
    Fail,
}

impl Roll {
    /// Which move the slot's state asks for.
    pub(super) fn next_move(&self, step: &Step, slot: &Slot, rules: &Rules, now: Moment) -> Move {
        match step.stage {
            Stage::Begin => self.begin(slot, rules),
            Stage::Vacate(old) => vacate(slot, old),
            Stage::Prove(generation) => prove(slot, generation, rules, now),
            Stage::Leave if slot.other.is_none() => Move::Next,
            Stage::Leave => Move::Wait(None),
        }
    }

    fn begin(&self, slot: &Slot, rules: &Rules) -> Move {
        // A restart of what is stopped starts it, as in PM2.
        let wanted = match slot.goal {
            Goal::Run => true,
            Goal::Stop => self.kind == RollKind::Restart,
            Goal::Remove => false,
        };
        if !wanted {
            return Move::Skip;
        }
        if slot.other.is_some() {
            return Move::Wait(None);
        }
        match &slot.current {
            Current::Stopped | Current::Finished => match self.kind {
                RollKind::Restart => Move::Start,
                RollKind::Reload | RollKind::Memory => Move::Skip,
            },
            Current::Errored | Current::Waiting { .. } => match self.kind {
                RollKind::Restart | RollKind::Reload => Move::Start,
                RollKind::Memory => Move::Skip,
            },
            Current::Running(instance) => self.begin_running(instance, rules),
        }
    }

    fn begin_running(&self, instance: &Instance, rules: &Rules) -> Move {
        // Started since the roll began, from what it rolls to.
        if self.kind != RollKind::Memory && instance.release == self.release {
            return Move::Watch(instance.generation);
        }
        let beside = rules.beside
            && match self.kind {
                RollKind::Reload | RollKind::Memory => true,
                RollKind::Restart => false,
            };
        match &instance.phase {
            Phase::Online { .. } if beside => Move::StartBeside,
            Phase::Spawning | Phase::Launching { .. } | Phase::Online { .. } => {
                Move::End(instance.generation)
            }
            Phase::Draining { .. } | Phase::Killing { .. } | Phase::Clearing { .. } => {
                Move::Wait(None)
            }
        }
    }
}

fn vacate(slot: &Slot, old: Generation) -> Move {
    if slot.goal != Goal::Run {
        return Move::Skip;
    }
    match &slot.current {
        Current::Running(instance) if instance.generation > old => Move::Watch(instance.generation),
        Current::Running(_) => Move::Wait(None),
        Current::Waiting { until } => Move::Wait(Some(*until)),
        Current::Stopped | Current::Finished | Current::Errored => Move::Fail,
    }
}

fn prove(slot: &Slot, generation: Generation, rules: &Rules, now: Moment) -> Move {
    let Some(instance) = slot.find(generation) else { return Move::Fail };
    match &instance.phase {
        Phase::Spawning | Phase::Launching { .. } => Move::Wait(None),
        Phase::Online { since, .. } => {
            let proved_at = since.after(rules.stable_for);
            let beside = slot.other.as_ref().is_some_and(|other| {
                other.role == Role::Newcomer && other.instance.generation == generation
            });
            if proved_at > now {
                Move::Wait(Some(proved_at))
            } else if beside {
                Move::Flip
            } else {
                Move::AwaitLeaver
            }
        }
        Phase::Draining { .. } | Phase::Killing { .. } | Phase::Clearing { .. } => Move::Fail,
    }
}

/// After a failed roll: the slot goes on with `from`, at once where it stands still.
pub(super) fn fall_back(slot: &mut Slot, from: ReleaseId, turn: &mut Turn<'_>) -> bool {
    if slot.release != from {
        slot.release = from;
        slot.history.reset();
    }
    match &mut slot.current {
        Current::Waiting { .. } | Current::Errored => true,
        Current::Running(instance) => {
            // A newcomer's clearing frees no place; only the current one's is followed by a start.
            if instance.release != from {
                instance.begin_end(EndCause::NotNeeded, turn);
                instance.set_aftermath(Aftermath::Planned);
            }
            false
        }
        Current::Stopped | Current::Finished => false,
    }
}
