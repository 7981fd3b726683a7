//! All slots of an app: which are wanted, what is being rolled, and when all is over.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::action::{Action, Note};
use super::event::Fact;
use super::id::{Generation, ReleaseId, SlotId};
use super::instance::Turn;
use super::reason::{EndCause, Reason, RollKind};
use super::restart::RecentRestarts;
use super::roll::{Around, Move, Roll, Stage, Step, fall_back};
use super::rules::{Rules, rules_of};
use super::slot::{Current, Goal, Role, Slot};
use super::status::UnitState;
use super::time::Moment;

/// Exit status of a service whose slots are all errored, or errored and finished: `EX_UNAVAILABLE`
/// of sysexits.h, which `RestartPreventExitStatus=` names.
pub const STATUS_ERRORED: u8 = 69;

/// Everything the core remembers: what an adopt needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fleet {
    pub(super) slots: Vec<Slot>,
    /// What new slots start.
    pub(super) release: ReleaseId,
    pub(super) last_generation: Generation,
    pub(super) roll: Option<Roll>,
    /// A service that is being stopped.
    pub(super) shutting_down: bool,
    /// At some time no slot was in its first start any more and one was online.
    pub(super) announced_ready: bool,
    /// What the service manager was told last.
    #[serde(default)]
    pub(super) announced: UnitState,
    #[serde(default)]
    pub(super) recent: RecentRestarts,
    /// Its exit status, when all is over.
    pub(super) over: Option<u8>,
}

/// How the roll that was running ended, said once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RollEnd {
    Done,
    Failed(SlotId),
    Cancelled,
}

/// The fleet at one moment, with its rules and the actions of this moment.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    pub(super) fleet: &'a mut Fleet,
    pub(super) rules: &'a BTreeMap<ReleaseId, Rules>,
    pub(super) now: Moment,
    pub(super) out: &'a mut Vec<Action>,
    pub(super) roll_end: &'a mut Option<RollEnd>,
}

impl Fleet {
    /// `count` slots of `release`, none of them started.
    pub fn new(count: u16, release: ReleaseId) -> Self {
        Self {
            slots: (0..count).map(|id| Slot::new(SlotId(id), release)).collect(),
            release,
            last_generation: Generation(0),
            roll: None,
            shutting_down: false,
            announced_ready: false,
            announced: UnitState::Starting,
            recent: RecentRestarts::default(),
            over: None,
        }
    }

    pub(super) fn slot(&self, id: SlotId) -> Option<&Slot> {
        self.slots.get(usize::from(id.0))
    }

    pub(super) fn slot_ids(&self) -> impl Iterator<Item = SlotId> + use<> {
        let count = u16::try_from(self.slots.len()).unwrap_or(u16::MAX);
        (0..count).map(SlotId)
    }

    /// What a replacement in slot `id` depends on beside that slot.
    pub(super) fn around(&self, id: SlotId) -> Around {
        let others = self.slots.iter().filter(|slot| slot.id != id);
        Around {
            another_online: others.into_iter().any(Slot::is_online),
            launch_ms: self.slots.iter().map(|slot| slot.launch_ms).max().unwrap_or_default(),
        }
    }

    /// How many slots there are that nobody wants gone.
    pub(super) fn staying(&self) -> usize {
        self.slots.iter().filter(|slot| slot.goal != Goal::Remove).count()
    }

    fn next_generation(&mut self) -> Generation {
        self.last_generation = Generation(self.last_generation.0.saturating_add(1));
        self.last_generation
    }

    /// What a new slot would start.
    pub fn release(&self) -> ReleaseId {
        self.release
    }

    /// Releases that something still names: the others can be forgotten.
    pub fn releases(&self) -> std::collections::BTreeSet<ReleaseId> {
        let slots = self.slots.iter().flat_map(|slot| {
            slot.instances().map(|instance| instance.release).chain([slot.release])
        });
        let roll = self
            .roll
            .iter()
            .flat_map(|roll| roll.step.iter().map(|step| step.from).chain([roll.release]));
        slots.chain(roll).chain([self.release]).collect()
    }

    /// What the service manager is to know.
    fn unit_state(&self) -> UnitState {
        let reloading = self.roll.as_ref().is_some_and(|roll| roll.kind == RollKind::Reload);
        if self.shutting_down || self.over.is_some() {
            UnitState::Stopping
        } else if !self.announced_ready {
            UnitState::Starting
        } else if reloading {
            UnitState::Reloading
        } else {
            UnitState::Ready
        }
    }

    /// Generations that an instance is held of, with their slots.
    pub fn generations(&self) -> impl Iterator<Item = (SlotId, Generation)> + '_ {
        self.slots
            .iter()
            .flat_map(|slot| slot.instances().map(move |instance| (slot.id, instance.generation)))
    }
}

impl Scene<'_> {
    /// Lets `act` change a slot.
    pub(super) fn with_slot<R>(
        &mut self,
        id: SlotId,
        act: impl FnOnce(&mut Slot, &mut Turn<'_>) -> R,
    ) -> Option<R> {
        let slot = self.fleet.slots.get_mut(usize::from(id.0))?;
        let mut turn = Turn { now: self.now, slot: id, rules: self.rules, out: self.out };
        let before = slot.restarts;
        let result = act(slot, &mut turn);
        if slot.restarts > before {
            self.fleet.recent.record(self.now);
        }
        Some(result)
    }

    pub(super) fn note(&mut self, reason: Reason) {
        self.out.push(Action::Note(Note { slot: None, generation: None, reason }));
    }

    /// Takes a fact to the one instance it is about; one about no instance changes nothing.
    pub(super) fn handle_fact(&mut self, fact: Fact) {
        let generation = fact.generation();
        let place = self.fleet.slots.iter().find(|slot| slot.find(generation).is_some());
        let Some(id) = place.map(|slot| slot.id) else { return };
        if let Fact::Memory { bytes, .. } = fact {
            return self.handle_sample(id, generation, bytes);
        }
        if let Fact::Lost { .. } = fact
            && let Some(roll) = &mut self.fleet.roll
        {
            roll.handle_lost(generation);
        }
        self.with_slot(id, |slot, turn| match fact {
            Fact::Spawned { pid, .. } => {
                if let Some(instance) = slot.find_mut(generation) {
                    instance.handle_spawned(pid, turn);
                }
            }
            Fact::SpawnFailed { failure, .. } => {
                slot.handle_spawn_failed(generation, failure, turn);
            }
            Fact::ExecFailed { message, .. } => {
                if let Some(instance) = slot.find_mut(generation)
                    && instance.is_wanted()
                {
                    let cause = EndCause::ExecFailed(message);
                    let reason = Reason::Ending(cause.clone());
                    instance.begin_kill(cause, reason, turn);
                }
            }
            Fact::Ready { .. } => slot.handle_ready(generation, turn),
            Fact::Signalled { .. } => {
                if let Some(instance) = slot.find_mut(generation) {
                    instance.handle_signalled();
                }
            }
            Fact::Exited { exit, .. } => slot.handle_exit(generation, exit, turn),
            Fact::Cleared { .. } => slot.handle_cleared(generation, turn),
            Fact::Lost { .. } => slot.handle_lost(generation, turn),
            Fact::Wire { news, .. } => {
                if let Some(instance) = slot.find_mut(generation) {
                    instance.handle_wire(news, turn);
                }
            }
            Fact::Memory { .. } => {}
        });
    }

    /// Starts an instance as the current one of a slot.
    pub(super) fn start(&mut self, id: SlotId) {
        let generation = self.fleet.next_generation();
        self.with_slot(id, |slot, turn| slot.start(generation, turn));
    }

    /// Stops a slot; `goal` says whether it stays. One that is to be gone is not kept by a stop.
    pub(super) fn stop(&mut self, id: SlotId, goal: Goal) {
        self.with_slot(id, |slot, turn| {
            if slot.goal != Goal::Remove {
                slot.goal = goal;
            }
            slot.end_all(&EndCause::Stop, turn);
        });
    }

    /// Kills what runs in a slot that is being stopped.
    pub(super) fn kill(&mut self, id: SlotId) {
        self.with_slot(id, Slot::kill_all);
    }

    /// Carries out what is due, until nothing is.
    pub(super) fn handle_time(&mut self) {
        for id in self.fleet.slot_ids() {
            self.with_slot(id, Slot::handle_time);
            self.start_if_due(id);
        }
    }

    fn start_if_due(&mut self, id: SlotId) {
        let due = self.fleet.slot(id).is_some_and(|slot| match slot.current {
            Current::Waiting { until } => until <= self.now && slot.goal == Goal::Run,
            Current::Stopped | Current::Finished | Current::Errored | Current::Running(_) => false,
        });
        if due {
            self.start(id);
        }
    }

    /// Moves the roll on as far as it goes now.
    pub(super) fn advance_roll(&mut self) {
        while let Some(mut roll) = self.fleet.roll.take() {
            let Some(step) = roll.step.take() else {
                let Some(slot) = roll.remaining.pop_front() else {
                    self.finish_roll(&roll);
                    return;
                };
                let from = self.fleet.slot(slot).map_or(roll.release, |slot| slot.release);
                roll.step = Some(Step { slot, from, stage: Stage::Begin });
                self.fleet.roll = Some(roll);
                continue;
            };
            match self.advance_step(&roll, &step) {
                Progress::Stage(stage) => roll.step = Some(Step { stage, ..step }),
                Progress::Wait => {
                    roll.step = Some(step);
                    self.fleet.roll = Some(roll);
                    return;
                }
                Progress::Next => {}
                Progress::Fail => return self.fail_roll(&roll, &step),
            }
            self.fleet.roll = Some(roll);
        }
    }

    fn advance_step(&mut self, roll: &Roll, step: &Step) -> Progress {
        let (id, release) = (step.slot, roll.release);
        let Some(slot) = self.fleet.slot(id) else { return Progress::Next };
        let rules = rules_of(self.rules, release);
        match roll.next_move(step, slot, rules, self.fleet.around(id), self.now) {
            Move::Wait(_) => Progress::Wait,
            Move::Skip => {
                self.with_slot(id, |slot, _| slot.release = release);
                Progress::Next
            }
            Move::StartBeside => {
                let generation = self.fleet.next_generation();
                self.with_slot(id, |slot, turn| {
                    slot.start_beside(generation, release, turn);
                });
                Progress::Stage(Stage::Prove(generation))
            }
            Move::Start => {
                self.with_slot(id, |slot, _| {
                    slot.goal = Goal::Run;
                    slot.release = release;
                    slot.begin_afresh();
                });
                self.start(id);
                Progress::Stage(Stage::Prove(self.fleet.last_generation))
            }
            Move::End(old) => {
                self.with_slot(id, |slot, turn| {
                    slot.end_current(EndCause::Replaced, turn);
                    slot.release = release;
                    match roll.kind {
                        RollKind::Reload | RollKind::Restart => slot.begin_afresh(),
                        RollKind::Memory => {}
                    }
                });
                Progress::Stage(Stage::Vacate(old))
            }
            Move::Watch(generation) => Progress::Stage(Stage::Prove(generation)),
            Move::EndFirst(left) => {
                self.with_slot(id, |slot, turn| {
                    if let Some(instance) = slot.running() {
                        turn.note(instance.generation, Reason::MemoryHurry { left });
                    }
                    slot.end_current(EndCause::Replaced, turn);
                });
                Progress::Stage(step.stage)
            }
            Move::Flip => {
                self.with_slot(id, Slot::take_over);
                Progress::Stage(Stage::Leave)
            }
            Move::AwaitLeaver => Progress::Stage(Stage::Leave),
            Move::Next => Progress::Next,
            Move::Fail => Progress::Fail,
        }
    }

    fn finish_roll(&mut self, roll: &Roll) {
        match roll.kind {
            RollKind::Reload => self.fleet.release = roll.release,
            RollKind::Restart if self.covers_all(roll.release) => {
                self.fleet.release = roll.release;
            }
            RollKind::Memory => self.fleet.slots.iter_mut().for_each(|slot| slot.memory.succeed()),
            RollKind::Restart => {}
        }
        self.note(Reason::RollDone { kind: roll.kind });
        *self.roll_end = Some(RollEnd::Done);
    }

    fn covers_all(&self, release: ReleaseId) -> bool {
        self.fleet.slots.iter().all(|slot| slot.release == release)
    }

    fn fail_roll(&mut self, roll: &Roll, step: &Step) {
        self.note(Reason::RollFailed { kind: roll.kind, slot: step.slot });
        *self.roll_end = Some(RollEnd::Failed(step.slot));
        self.drop_newcomer(step.slot);
        if roll.kind == RollKind::Memory {
            self.with_slot(step.slot, |slot, turn| slot.memory.fail(turn.now));
        }
        if roll.kind == RollKind::Reload {
            let again = self.with_slot(step.slot, |slot, turn| fall_back(slot, step.from, turn));
            if again == Some(true) {
                self.start(step.slot);
            }
        }
    }

    /// Ends the roll because something else takes precedence.
    pub(super) fn cancel_roll(&mut self) {
        let Some(roll) = self.fleet.roll.take() else { return };
        self.note(Reason::RollCancelled { kind: roll.kind });
        *self.roll_end = Some(RollEnd::Cancelled);
        if let Some(step) = roll.step {
            self.drop_newcomer(step.slot);
        }
    }

    fn drop_newcomer(&mut self, id: SlotId) {
        self.with_slot(id, |slot, turn| {
            if let Some(other) = &mut slot.other
                && other.role == Role::Newcomer
            {
                other.instance.begin_end(EndCause::NotNeeded, turn);
            }
        });
    }

    /// Forgets removed slots, says when all is over, and what the service manager is to know.
    pub(super) fn conclude(&mut self) {
        while let Some(last) = self.fleet.slots.last() {
            if last.goal != Goal::Remove || !last.is_stopped() {
                break;
            }
            self.fleet.slots.pop();
        }
        if let Some(code) = self.exit_status()
            && self.fleet.over.is_none()
        {
            self.fleet.over = Some(code);
            self.note(Reason::Over { code });
        }
        self.announce();
    }

    fn announce(&mut self) {
        let slots = &self.fleet.slots;
        let starting = slots.iter().any(Slot::is_in_first_start);
        self.fleet.announced_ready |= !starting && slots.iter().any(Slot::is_online);
        let state = self.fleet.unit_state();
        if state != self.fleet.announced {
            self.fleet.announced = state;
            self.out.push(Action::Announce(state));
        }
    }

    fn exit_status(&self) -> Option<u8> {
        let slots = &self.fleet.slots;
        if !slots.iter().all(Slot::is_vacant) {
            return None;
        }
        if self.fleet.shutting_down {
            return Some(0);
        }
        let mut errored = false;
        for slot in slots {
            match slot.current {
                Current::Errored => errored = true,
                Current::Finished => {}
                Current::Stopped | Current::Waiting { .. } | Current::Running(_) => return None,
            }
        }
        Some(if errored { STATUS_ERRORED } else { 0 })
    }
}

enum Progress {
    Stage(Stage),
    Wait,
    Next,
    Fail,
}
