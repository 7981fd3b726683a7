//! What `status` shows, as data.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fleet::Fleet;
use super::id::{Generation, ReleaseId, SlotId};
use super::instance::{Instance, Phase};
use super::reason::RollKind;
use super::restart::RestartsLately;
use super::rules::{Rules, rules_of};
use super::slot::{Current, LastExit, Role, Slot};
use super::time::Moment;
use std::collections::BTreeMap;

/// An app at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// All slots in order.
    pub slots: Vec<SlotStatus>,
    /// What a new slot would start.
    pub release: ReleaseId,
    /// The replacement that runs, and the slot it is at.
    pub roll: Option<(RollKind, Option<SlotId>)>,
    /// Everything is being stopped.
    pub shutting_down: bool,
    /// The last generation that was started.
    pub generation: Generation,
    /// What the service manager knows the unit to be.
    pub unit: UnitState,
    /// The service manager waits for something that goes on: a first start, a reload or a stop.
    pub awaited: bool,
    /// Restarts nobody asked for within the last hour, in all slots.
    pub lately: RestartsLately,
}

/// What a service manager knows of an app.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitState {
    /// A slot is in its first start, or none is online yet.
    #[default]
    Starting,
    /// It serves, as far as its slots do.
    Ready,
    /// It serves, and is being reloaded.
    Reloading,
    /// It is about to end.
    Stopping,
}

/// A slot at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotStatus {
    /// Its number.
    pub slot: SlotId,
    /// Its life in one word.
    pub word: Word,
    /// Its current instance, where there is one.
    pub instance: Option<InstanceStatus>,
    /// The second instance while one is replaced.
    pub other: Option<InstanceStatus>,
    /// Restarts nobody asked for.
    pub restarts: u32,
    /// Unstable exits that count, and the limit.
    pub unstable: (u32, u32),
    /// When the next start is due, where one is.
    pub next_start: Option<Duration>,
    /// How the last instance that ended did so, and how long ago.
    pub last_exit: Option<(LastExit, Duration)>,
}

/// An instance at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceStatus {
    /// Its generation.
    pub generation: Generation,
    /// What it runs.
    pub release: ReleaseId,
    /// Its process id, once it has one.
    pub pid: Option<u32>,
    /// Its life in one word.
    pub word: Word,
    /// Since its spawn.
    pub uptime: Duration,
}

/// The life of a slot or an instance in one word, the same everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Spawned, not ready.
    Launching,
    /// Ready.
    Online,
    /// Asked to stop, finishing what it has.
    Draining,
    /// Nothing runs, and nothing will by itself.
    Stopped,
    /// A start is due later.
    Waiting,
    /// Given up; a person must act.
    Errored,
}

impl Word {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Launching => "launching",
            Self::Online => "online",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Waiting => "waiting",
            Self::Errored => "errored",
        }
    }
}

impl std::fmt::Display for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Status {
    /// How many slots are online.
    pub fn online(&self) -> usize {
        self.count(Word::Online)
    }

    fn count(&self, word: Word) -> usize {
        self.slots.iter().filter(|slot| slot.word == word).count()
    }

    /// All of it in one line, as a service manager shows it: `2/2 online, gen 7, 0 restarts/h`.
    pub fn line(&self) -> String {
        let doing = match self.unit {
            UnitState::Starting => "starting: ",
            UnitState::Ready => "",
            UnitState::Reloading => "reloading: ",
            UnitState::Stopping => "stopping: ",
        };
        let others = [Word::Launching, Word::Draining, Word::Waiting, Word::Errored, Word::Stopped];
        let counts = others.map(|word| (self.count(word), word)).into_iter();
        let mut parts = vec![format!("{doing}{}/{} online", self.online(), self.slots.len())];
        parts.extend(counts.filter(|it| it.0 > 0).map(|(count, word)| format!("{count} {word}")));
        parts.push(format!("gen {}", self.generation));
        parts.push(self.lately.to_string());
        parts.join(", ")
    }
}

pub(super) fn status(fleet: &Fleet, rules: &BTreeMap<ReleaseId, Rules>, now: Moment) -> Status {
    Status {
        slots: fleet.slots.iter().map(|slot| slot_status(slot, rules, now)).collect(),
        release: fleet.release,
        roll: fleet.roll.as_ref().map(|roll| (roll.kind, roll.step.as_ref().map(|it| it.slot))),
        shutting_down: fleet.shutting_down,
        generation: fleet.last_generation,
        unit: fleet.announced,
        awaited: match fleet.announced {
            UnitState::Starting => fleet.slots.iter().any(Slot::is_in_first_start),
            UnitState::Ready => false,
            UnitState::Reloading | UnitState::Stopping => true,
        },
        lately: fleet.recent.lately(now),
    }
}

fn slot_status(slot: &Slot, rules: &BTreeMap<ReleaseId, Rules>, now: Moment) -> SlotStatus {
    let (word, next_start) = match &slot.current {
        Current::Stopped | Current::Finished => (Word::Stopped, None),
        Current::Errored => (Word::Errored, None),
        Current::Waiting { until } => (Word::Waiting, Some(until.since(now))),
        Current::Running(instance) => (word(instance), None),
    };
    // An old instance that still drains is shown where there is no current one.
    let leaver = slot.other.as_ref().filter(|other| other.role == Role::Leaver);
    SlotStatus {
        slot: slot.id,
        word,
        instance: slot
            .running()
            .or(leaver.map(|other| &other.instance))
            .map(|instance| instance_status(instance, now)),
        other: slot
            .running()
            .and(slot.other.as_ref())
            .map(|other| instance_status(&other.instance, now)),
        restarts: slot.restarts,
        unstable: (slot.history.unstable(), rules_of(rules, slot.release).restart.max_restarts),
        next_start,
        last_exit: slot.last_exit.clone().map(|exit| {
            let ago = now.since(exit.at);
            (exit, ago)
        }),
    }
}

fn instance_status(instance: &Instance, now: Moment) -> InstanceStatus {
    InstanceStatus {
        generation: instance.generation,
        release: instance.release,
        pid: instance.pid.filter(|_| instance.may_run()),
        word: word(instance),
        uptime: now.since(instance.spawned_at),
    }
}

fn word(instance: &Instance) -> Word {
    match instance.phase {
        Phase::Spawning | Phase::Launching { .. } => Word::Launching,
        Phase::Online { .. } => Word::Online,
        Phase::Draining { .. } | Phase::Killing { .. } | Phase::Clearing { .. } => Word::Draining,
    }
}
