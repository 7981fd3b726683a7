//! One slot's state machine.
//!
//! A slot holds a `current` instance or the reason why there is none, and, while one generation is
//! replaced by the next, the `other` one. Facts go to whichever instance has their generation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::action::{Action, Note};
use super::event::{Exit, SpawnFailure};
use super::id::{Generation, ReleaseId, SlotId};
use super::instance::{Aftermath, Instance, Phase, Turn, meaning};
use super::reason::{EndCause, Failure, Reason, Verdict};
use super::restart::{Ending, RestartHistory};
use super::rules::{Rules, rules_of};
use super::time::Moment;

/// A numbered place for an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub(super) id: SlotId,
    pub(super) goal: Goal,
    pub(super) current: Current,
    pub(super) other: Option<Other>,
    /// What the next start is of.
    pub(super) release: ReleaseId,
    pub(super) history: RestartHistory,
    /// Restarts nobody asked for.
    pub(super) restarts: u32,
    /// Whether its first start is over, well or badly.
    pub(super) first_start_over: bool,
    pub(super) last_exit: Option<LastExit>,
    #[serde(default)]
    pub(super) memory: super::memory::MemoryHistory,
    /// How long its last boot took, in milliseconds.
    #[serde(default)]
    pub(super) launch_ms: u64,
}

/// What is wanted of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Goal {
    Run,
    Stop,
    /// Stop, and be gone.
    Remove,
}

/// The instance of a slot, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Current {
    Stopped,
    Finished,
    Errored,
    Waiting { until: Moment },
    Running(Instance),
}

/// The second instance of a slot while one is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Other {
    pub(super) role: Role,
    pub(super) instance: Instance,
}

/// On which side of a replacement the second instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Role {
    /// Started to take over.
    Newcomer,
    /// Its place was taken.
    Leaver,
}

/// How the last instance that ended did so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastExit {
    /// Which.
    pub generation: Generation,
    /// What it did.
    pub failure: Failure,
    /// Whether somebody had asked for it.
    pub asked: bool,
    /// When.
    pub at: Moment,
    /// How long it had lived, in milliseconds.
    pub lived_ms: u64,
}

impl Slot {
    /// A slot that was never started.
    pub(super) fn new(id: SlotId, release: ReleaseId) -> Self {
        Self {
            id,
            goal: Goal::Run,
            current: Current::Stopped,
            other: None,
            release,
            history: RestartHistory::default(),
            restarts: 0,
            first_start_over: false,
            last_exit: None,
            memory: super::memory::MemoryHistory::default(),
            launch_ms: 0,
        }
    }

    /// The only writer of `current`.
    pub(super) fn enter(&mut self, next: Current, reason: Option<Reason>, out: &mut Vec<Action>) {
        self.current = next;
        if let Some(reason) = reason {
            out.push(Action::Note(Note { slot: Some(self.id), generation: None, reason }));
        }
    }

    /// Both instances, the current one first.
    pub(super) fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.running().into_iter().chain(self.other.as_ref().map(|other| &other.instance))
    }

    pub(super) fn instances_mut(&mut self) -> impl Iterator<Item = &mut Instance> {
        let current = match &mut self.current {
            Current::Running(instance) => Some(instance),
            Current::Stopped | Current::Finished | Current::Errored | Current::Waiting { .. } => {
                None
            }
        };
        current.into_iter().chain(self.other.as_mut().map(|other| &mut other.instance))
    }

    /// The current instance.
    pub(super) fn running(&self) -> Option<&Instance> {
        match &self.current {
            Current::Running(instance) => Some(instance),
            Current::Stopped | Current::Finished | Current::Errored | Current::Waiting { .. } => {
                None
            }
        }
    }

    pub(super) fn running_mut(&mut self) -> Option<&mut Instance> {
        match &mut self.current {
            Current::Running(instance) => Some(instance),
            Current::Stopped | Current::Finished | Current::Errored | Current::Waiting { .. } => {
                None
            }
        }
    }

    /// The instance of this generation.
    /// Whom new connections are for. A newcomer serves once it has proved itself, or where nobody
    /// else of its slot does.
    pub(super) fn serving(&self) -> Option<&Instance> {
        let newcomer = self.other.as_ref().filter(|other| match other.role {
            Role::Newcomer => true,
            Role::Leaver => false,
        });
        let both = self.running().into_iter().chain(newcomer.map(|other| &other.instance));
        both.into_iter().find(|instance| instance.online_since().is_some())
    }

    pub(super) fn find(&self, generation: Generation) -> Option<&Instance> {
        self.instances().find(|instance| instance.generation == generation)
    }

    pub(super) fn find_mut(&mut self, generation: Generation) -> Option<&mut Instance> {
        self.instances_mut().find(|instance| instance.generation == generation)
    }

    /// Whether no instance is in it.
    pub(super) fn is_vacant(&self) -> bool {
        self.instances().next().is_none()
    }

    /// Whether it is stopped, and nothing is left in it.
    pub(super) fn is_stopped(&self) -> bool {
        self.is_vacant() && matches!(self.current, Current::Stopped)
    }

    /// Whether its current instance is online.
    pub(super) fn is_online(&self) -> bool {
        self.running().is_some_and(|instance| instance.online_since().is_some())
    }

    /// Whether it is wanted and never was online, nor given up, so far.
    pub(super) fn is_in_first_start(&self) -> bool {
        match self.current {
            Current::Finished | Current::Errored => false,
            Current::Stopped | Current::Waiting { .. } | Current::Running(_) => {
                self.goal == Goal::Run && !self.first_start_over
            }
        }
    }

    /// It is wanted again; a start follows as soon as its place is free.
    pub(super) fn revive(&mut self, now: Moment, out: &mut Vec<Action>) {
        self.goal = Goal::Run;
        if matches!(self.current, Current::Stopped) {
            self.enter(Current::Waiting { until: now }, None, out);
        }
    }

    /// Says again what may not have been carried out, and makes a slot that was never started due.
    pub(super) fn resume(&mut self, turn: &mut Turn<'_>) {
        if self.goal == Goal::Run {
            self.revive(turn.now, turn.out);
        }
        for instance in self.instances_mut() {
            instance.resume(turn);
        }
    }

    pub(super) fn assert_invariants(&self, rules: &BTreeMap<ReleaseId, Rules>) {
        for instance in self.instances() {
            assert!(rules.contains_key(&instance.release), "rules of what runs are known");
        }
        assert!(
            self.history.unstable() <= rules_of(rules, self.release).restart.max_restarts.max(1000),
            "slot {}: exits remembered are bounded",
            self.id
        );
        if let (Some(current), Some(other)) = (self.running(), &self.other) {
            let in_order = match other.role {
                // One that is not needed any more may see the next one started.
                Role::Newcomer if !other.instance.is_wanted() => true,
                Role::Newcomer => other.instance.generation > current.generation,
                Role::Leaver => other.instance.generation < current.generation,
            };
            assert!(in_order, "slot {}: the newcomer is the younger one", self.id);
        }
    }

    /// A person, or another release, makes its past count no more.
    pub(super) fn begin_afresh(&mut self) {
        self.history.reset();
        self.memory = super::memory::MemoryHistory::default();
    }

    /// Starts a new instance as the current one.
    pub(super) fn start(&mut self, generation: Generation, turn: &mut Turn<'_>) {
        let instance = spawn(generation, self.release, turn);
        self.enter(Current::Running(instance), None, turn.out);
    }

    /// Starts a new instance of `release` beside the current one.
    pub(super) fn start_beside(
        &mut self,
        generation: Generation,
        release: ReleaseId,
        turn: &mut Turn<'_>,
    ) {
        assert!(self.other.is_none(), "a slot holds two instances at most");
        let instance = spawn(generation, release, turn);
        self.other = Some(Other { role: Role::Newcomer, instance });
    }

    /// A start is wanted while the current instance ends: the next one follows it at once, however
    /// it came to its end.
    pub(super) fn start_after_end(&mut self, turn: &mut Turn<'_>) {
        if let Current::Running(instance) = &mut self.current
            && !instance.is_wanted()
        {
            self.history.reset();
            instance.begin_end(EndCause::Replaced, turn);
            instance.set_aftermath(Aftermath::Planned);
        }
    }

    /// Whatever of it is of the release `from` is of `to`, which has other limits.
    pub(super) fn adjust(&mut self, from: ReleaseId, to: ReleaseId, turn: &mut Turn<'_>) {
        let is_new = turn.rules(from).memory_limit != turn.rules(to).memory_limit;
        if self.release == from {
            self.release = to;
            // What was given up below another limit is tried again, and only then.
            if is_new {
                self.memory = super::memory::MemoryHistory::default();
            }
        }
        for instance in self.instances_mut().filter(|instance| instance.release == from) {
            instance.release = to;
            let generation = instance.generation;
            turn.out.push(Action::Adjust { generation, release: to });
            if is_new {
                instance.handle_new_limit(turn);
            }
        }
    }

    /// Ends whatever runs in it.
    pub(super) fn end_all(&mut self, cause: &EndCause, turn: &mut Turn<'_>) {
        for instance in self.instances_mut() {
            instance.begin_end(cause.clone(), turn);
        }
        self.settle_vacancy(turn);
    }

    /// Ends the current instance only.
    pub(super) fn end_current(&mut self, cause: EndCause, turn: &mut Turn<'_>) {
        if let Current::Running(instance) = &mut self.current {
            instance.begin_end(cause, turn);
        }
    }

    /// Kills whatever runs in it.
    pub(super) fn kill_all(&mut self, turn: &mut Turn<'_>) {
        for instance in self.instances_mut() {
            instance.begin_kill(EndCause::Stop, Reason::KilledAtOnce, turn);
        }
    }

    /// Gives the place of the current instance to the newcomer, and lets the old one drain.
    pub(super) fn take_over(&mut self, turn: &mut Turn<'_>) {
        let Some(Other { role: Role::Newcomer, instance: newcomer }) = self.other.take() else {
            panic!("slot {}: only a newcomer takes over", self.id);
        };
        let old = std::mem::replace(&mut self.current, Current::Stopped);
        // The same release may be replaced for its memory over and over, and crash in between.
        if self.release != newcomer.release || newcomer.is_stable() {
            if self.release != newcomer.release {
                self.memory = super::memory::MemoryHistory::default();
            }
            self.release = newcomer.release;
            self.history.reset();
        }
        if let Current::Running(mut old) = old {
            turn.note(newcomer.generation, Reason::TakenOver { from: old.generation });
            old.begin_end(EndCause::Replaced, turn);
            self.other = Some(Other { role: Role::Leaver, instance: old });
        }
        self.enter(Current::Running(newcomer), None, turn.out);
    }

    /// The instance of `generation` is ready.
    pub(super) fn handle_ready(&mut self, generation: Generation, turn: &mut Turn<'_>) {
        if let Some(instance) = self.find_mut(generation) {
            let was_online = instance.online_since().is_some();
            instance.handle_ready(turn);
            if !was_online && instance.online_since().is_some() {
                let launched = turn.now.since(instance.spawned_at);
                self.launch_ms = super::time::whole_ms(launched);
            }
        }
        self.first_start_over |= self.is_online();
    }

    /// The process of `generation` has ended.
    pub(super) fn handle_exit(&mut self, generation: Generation, exit: Exit, turn: &mut Turn<'_>) {
        let now = turn.now;
        let Some(instance) = self.find(generation) else { return };
        let lived = now.since(instance.spawned_at);
        match meaning(&instance.phase, exit, now) {
            Some((failure, online)) => {
                self.handle_failure(generation, failure, online, turn);
            }
            None if instance.may_run() => {
                self.record(generation, Failure::Exit(exit), true, lived, now);
                turn.note(generation, Reason::Ended { exit: Some(exit) });
                self.clear(generation, Aftermath::Planned, turn);
            }
            None => {}
        }
    }

    /// There is no process: the machine or the app's config would not have it.
    pub(super) fn handle_spawn_failed(
        &mut self,
        generation: Generation,
        failure: SpawnFailure,
        turn: &mut Turn<'_>,
    ) {
        let Some(instance) = self.find(generation).filter(|it| it.may_run()) else { return };
        let release = instance.release;
        if !instance.is_wanted() {
            turn.note(generation, Reason::Ended { exit: None });
            return self.clear(generation, Aftermath::Planned, turn);
        }
        if !failure.transient {
            return self.handle_failure(generation, Failure::Spawn(failure.message), None, turn);
        }
        let rules = &turn.rules(release).restart;
        let unstable = self.history.unstable();
        // A newcomer that took over from one that was given up is no new beginning.
        let verdict = if unstable > 0 && unstable >= rules.max_restarts {
            Verdict::Errored
        } else {
            Verdict::Restart { after: self.history.wait_for_machine(rules) }
        };
        let failure = Failure::Spawn(failure.message);
        self.conclude(generation, failure, Some(verdict), turn);
    }

    /// Its spawn was never completed: as if it had not been asked for.
    pub(super) fn handle_lost(&mut self, generation: Generation, turn: &mut Turn<'_>) {
        if self.find(generation).is_some_and(Instance::may_run) {
            turn.note(generation, Reason::Ended { exit: None });
            self.clear(generation, Aftermath::Planned, turn);
        }
    }

    /// An end nobody asked for: the restart rules decide what follows.
    fn handle_failure(
        &mut self,
        generation: Generation,
        failure: Failure,
        online: Option<std::time::Duration>,
        turn: &mut Turn<'_>,
    ) {
        let Some(instance) = self.find(generation) else { return };
        let lived = turn.now.since(instance.spawned_at);
        let rules = turn.rules(instance.release);
        let counts = self.is_current(generation);
        // A newcomer's failure is the roll's business, a leaver's exit nobody's.
        let verdict = counts.then(|| {
            let ending = Ending { failure: &failure, lived, online };
            self.history.decide(&rules.restart, &ending)
        });
        self.conclude(generation, failure, verdict, turn);
    }

    /// Records a failure and what follows it, and clears what the instance left.
    fn conclude(
        &mut self,
        generation: Generation,
        failure: Failure,
        verdict: Option<Verdict>,
        turn: &mut Turn<'_>,
    ) {
        let Some(instance) = self.find(generation) else { return };
        let lived = turn.now.since(instance.spawned_at);
        let limit = turn.rules(instance.release).restart.max_restarts;
        self.record(generation, failure.clone(), false, lived, turn.now);
        let unstable = (self.history.unstable(), limit);
        turn.note(generation, Reason::Failed { failure, uptime: lived, verdict, unstable });
        let aftermath = verdict.map_or(Aftermath::Planned, |it| Aftermath::of(it, turn.now));
        self.clear(generation, aftermath, turn);
    }

    fn clear(&mut self, generation: Generation, aftermath: Aftermath, turn: &mut Turn<'_>) {
        if let Some(instance) = self.find_mut(generation) {
            instance.begin_clear(aftermath, turn);
        }
        if self.is_current(generation) {
            self.first_start_over |= !matches!(aftermath, Aftermath::Planned);
            self.promote_newcomer(aftermath, turn);
        }
    }

    /// A current instance that has ended leaves its place to a newcomer that is there already.
    fn promote_newcomer(&mut self, aftermath: Aftermath, turn: &mut Turn<'_>) {
        let waits = self
            .other
            .as_ref()
            .is_some_and(|other| other.role == Role::Newcomer && other.instance.is_wanted());
        if waits && self.goal == Goal::Run {
            // One that was stopped first for its memory was counted when that was decided.
            if !matches!(aftermath, Aftermath::Planned) {
                self.restarts = self.restarts.saturating_add(1);
            }
            self.take_over(turn);
        }
    }

    /// Nothing of `generation` is left, or pmr goes on without it.
    pub(super) fn handle_cleared(&mut self, generation: Generation, turn: &mut Turn<'_>) {
        let Some(instance) = self.find(generation) else { return };
        let Phase::Clearing { aftermath, .. } = instance.phase else { return };
        self.vacate(generation, aftermath, turn);
    }

    fn vacate(&mut self, generation: Generation, aftermath: Aftermath, turn: &mut Turn<'_>) {
        if !self.is_current(generation) {
            self.other = None;
            return;
        }
        let next = match (self.goal, aftermath) {
            (Goal::Stop | Goal::Remove, _) => Current::Stopped,
            (Goal::Run, Aftermath::Planned) => Current::Waiting { until: turn.now },
            (Goal::Run, Aftermath::Restart { at }) => Current::Waiting { until: at },
            (Goal::Run, Aftermath::Finished) => Current::Finished,
            (Goal::Run, Aftermath::Errored) => Current::Errored,
        };
        if let Aftermath::Restart { .. } = aftermath {
            self.restarts = self.restarts.saturating_add(1);
        }
        let reason = matches!(next, Current::Stopped).then_some(Reason::Stopped);
        self.enter(next, reason, turn.out);
    }

    /// A slot that is to stop and holds nothing current is stopped.
    pub(super) fn settle_vacancy(&mut self, turn: &mut Turn<'_>) {
        match self.current {
            Current::Finished | Current::Errored | Current::Waiting { .. }
                if self.goal != Goal::Run =>
            {
                self.enter(Current::Stopped, Some(Reason::Stopped), turn.out);
            }
            Current::Stopped
            | Current::Finished
            | Current::Errored
            | Current::Waiting { .. }
            | Current::Running(_) => {}
        }
    }

    /// Carries out what is due by now; a start is left to the fleet, which numbers it.
    pub(super) fn handle_time(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now;
        for instance in self.instances_mut() {
            instance.handle_wire_time(turn);
        }
        let due: Vec<Generation> = self
            .instances()
            .filter(|instance| {
                instance.deadline(turn.rules(instance.release)).is_some_and(|at| at <= now)
            })
            .map(|instance| instance.generation)
            .collect();
        for generation in due {
            self.handle_due(generation, turn);
        }
    }

    fn handle_due(&mut self, generation: Generation, turn: &mut Turn<'_>) {
        let is_current = self.is_current(generation);
        let Some(instance) = self.find_mut(generation) else { return };
        let rules = turn.rules(instance.release);
        match instance.phase.clone() {
            Phase::Spawning => {}
            Phase::Launching { .. } => {
                instance.begin_end(EndCause::StartTimeout, turn);
            }
            Phase::Online { .. } => {
                instance.settle();
                if is_current {
                    self.settle_history(generation, rules.restart.min_uptime, turn);
                }
            }
            Phase::Draining { cause, .. } => {
                let timeout = rules.stop_timeout;
                instance.begin_kill(cause, Reason::KillTimeout { timeout }, turn);
            }
            Phase::Killing { cause, .. } => {
                turn.note(generation, Reason::Unkillable);
                let aftermath = match super::instance::failed_start(&cause) {
                    None => Aftermath::Planned,
                    Some(_) => Aftermath::Errored,
                };
                self.vacate(generation, aftermath, turn);
            }
            Phase::Clearing { aftermath, .. } => {
                turn.note(generation, Reason::Unkillable);
                self.vacate(generation, aftermath, turn);
            }
        }
    }

    fn settle_history(
        &mut self,
        generation: Generation,
        uptime: std::time::Duration,
        turn: &mut Turn<'_>,
    ) {
        self.memory.settle();
        if !self.history.is_clean() {
            self.history.reset();
            turn.note(generation, Reason::Stable { uptime });
        }
    }

    /// When it next needs a look.
    pub(super) fn deadline(&self, rules: &BTreeMap<ReleaseId, Rules>) -> Option<Moment> {
        let waiting = match self.current {
            Current::Waiting { until } => Some(until),
            Current::Stopped | Current::Finished | Current::Errored | Current::Running(_) => None,
        };
        self.instances()
            .filter_map(|instance| instance.deadline(rules_of(rules, instance.release)))
            .chain(self.instances().filter_map(Instance::wire_deadline))
            .chain(waiting)
            .min()
    }

    pub(super) fn is_current(&self, generation: Generation) -> bool {
        self.running().is_some_and(|instance| instance.generation == generation)
    }

    fn record(
        &mut self,
        generation: Generation,
        failure: Failure,
        asked: bool,
        lived: std::time::Duration,
        at: Moment,
    ) {
        let lived_ms = super::time::whole_ms(lived);
        self.last_exit = Some(LastExit { generation, failure, asked, at, lived_ms });
    }
}

fn spawn(generation: Generation, release: ReleaseId, turn: &mut Turn<'_>) -> Instance {
    turn.note(generation, Reason::Starting);
    turn.out.push(Action::Spawn { slot: turn.slot, generation, release });
    Instance::new(generation, release, turn.now)
}
