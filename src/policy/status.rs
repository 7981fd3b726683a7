//! What `status` shows, as data.

use std::time::Duration;

use super::fleet::Fleet;
use super::id::{Generation, ReleaseId, SlotId};
use super::instance::{Instance, Phase};
use super::reason::RollKind;
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
        self.slots.iter().filter(|slot| slot.word == Word::Online).count()
    }
}

pub(super) fn status(fleet: &Fleet, rules: &BTreeMap<ReleaseId, Rules>, now: Moment) -> Status {
    Status {
        slots: fleet.slots.iter().map(|slot| slot_status(slot, rules, now)).collect(),
        release: fleet.release,
        roll: fleet.roll.as_ref().map(|roll| (roll.kind, roll.step.as_ref().map(|it| it.slot))),
        shutting_down: fleet.shutting_down,
        generation: fleet.last_generation,
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
