//! Replacing slots one by one: reload, restart, memory.
//!
//! ```text
//! Begin ─┬─ shares its port ──► newcomer beside ──► Prove ──► flip ──► Leave ──► next slot
//!        └─ does not ─────────► end the old ──► Vacate ──► Prove ─────────────► next slot
//! ```
//! `Prove` asks that the new instance is online and stays so for `stable_for`. Where it fails the
//! roll ends: beside, the old instance never left; else a reload starts the old release again.
//! An old instance that leaks faster than that is stopped first, or takes leave as soon as the new
//! one is online.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::{Generation, ReleaseId, SlotId};
use super::instance::{Aftermath, Instance, Phase, Turn};
use super::memory::{Patience, patience};
use super::reason::{EndCause, RollKind};
use super::rules::Rules;
use super::slot::{Current, Goal, Role, Slot};
use super::time::Moment;

/// A replacement of slots, one at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Roll {
    pub(super) kind: RollKind,
    pub(super) release: ReleaseId,
    /// The last generation when it began: what is younger need not be replaced.
    pub(super) since: Generation,
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
    /// End the old instance, which is full after so long, while the new one still boots.
    EndFirst(Duration),
    /// The new instance has proved itself beside the old one: it takes over.
    Flip,
    /// The old one may still drain.
    AwaitLeaver,
    /// This slot is done.
    Next,
    /// The new instance failed.
    Fail,
}

/// What a replacement depends on beside its own slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Around {
    pub(super) another_online: bool,
    /// The longest of the slots' last boots.
    pub(super) launch_ms: u64,
}

impl Roll {
    /// The spawn of `generation` was lost with a supervisor: its step begins again.
    pub(super) fn handle_lost(&mut self, generation: Generation) {
        if let Some(step) = &mut self.step
            && step.stage == Stage::Prove(generation)
        {
            step.stage = Stage::Begin;
        }
    }

    /// Which move the slot's state asks for.
    pub(super) fn next_move(
        &self,
        step: &Step,
        slot: &Slot,
        rules: &Rules,
        around: Around,
        now: Moment,
    ) -> Move {
        match step.stage {
            Stage::Begin => self.begin(slot, rules),
            Stage::Vacate(old) => vacate(slot, old),
            Stage::Prove(generation) => match self.kind {
                RollKind::Memory => prove_in_need(slot, generation, rules, around, now),
                RollKind::Reload | RollKind::Restart => prove(slot, generation, rules, now),
            },
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
        let is_new = instance.generation > self.since && instance.release == self.release;
        if is_new && instance.is_wanted() {
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

/// As [`prove`], beside an old instance whose memory may not let it wait.
fn prove_in_need(
    slot: &Slot,
    generation: Generation,
    rules: &Rules,
    around: Around,
    now: Moment,
) -> Move {
    let usual = prove(slot, generation, rules, now);
    let (Some(old), Some(other)) = (slot.running(), &slot.other) else { return usual };
    let new = &other.instance;
    if other.role != Role::Newcomer || new.generation != generation || !new.is_wanted() {
        return usual;
    }
    let is_online = new.online_since().is_some();
    if !old.is_wanted() {
        // It was stopped first: whoever is online serves.
        return if is_online { Move::Flip } else { usual };
    }
    let own = patience(old, new, around.launch_ms, rules, now);
    match (usual, own) {
        // It has no time for a proof.
        (Move::Wait(Some(proved_at)), _)
            if is_online && old.wire.full_at(rules.memory_max).is_some_and(|at| at < proved_at) =>
        {
            Move::Flip
        }
        (Move::Wait(None), Patience::Over(left)) if around.another_online => Move::EndFirst(left),
        (Move::Wait(None), Patience::Until(at)) if around.another_online => Move::Wait(at),
        (usual, _) => usual,
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
