//! What stands on the wire: names, types, errors.
//!
//! The types are of their own and made from [`policy::Status`], so that the wire does not change by
//! accident. What a reader does not know it ignores, and what a writer of an older version left out
//! has a default.

mod fault;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::policy::{
    self, Generation, InstanceStatus, LastExit, Note, Reason, RollKind, SlotId, SlotStatus, Status,
    Word,
};

pub use fault::{Fault, FaultKind};

/// The interface, and the name of its socket.
pub const INTERFACE: &str = "io.pmr.App";

/// The interface in Varlink's own language.
pub const DESCRIPTION: &str = include_str!("io.pmr.App.varlink");

/// Version of the wire types and of every `--json`.
pub const VERSION: u32 = 1;

/// An app at one moment.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AppState {
    /// Its name.
    pub name: String,
    /// One word for all of it.
    pub status: String,
    /// `fork` or `cluster`.
    pub mode: String,
    /// `full`, `tracking` or `bare`.
    pub level: String,
    /// Its slots in order.
    pub instances: Vec<InstanceState>,
    /// `1/2 online, 1 errored`.
    pub summary: String,
    /// What a new slot would start.
    pub release: u64,
    /// The replacement that runs.
    pub roll: Option<RollState>,
    /// Everything is being stopped.
    pub shutting_down: bool,
    /// Path of the config file.
    pub config: String,
    /// Its working directory.
    pub cwd: String,
    /// Its argument vector.
    pub command: Vec<String>,
    /// Addresses that are balanced for it.
    pub listen: Vec<String>,
    /// How connections reach its instances, in cluster mode.
    pub balance: Option<BalanceState>,
    /// `max_memory_restart`.
    pub memory_limit_bytes: Option<u64>,
    /// Whether the kernel enforces the memory cap.
    pub memory_cap_enforced: bool,
    /// Limits of each instance that the config asks for.
    pub limits: Vec<LimitState>,
    /// When the app was started, since the Unix epoch.
    pub started_at_ms: u64,
    /// How long ago that was.
    pub uptime_ms: u64,
    /// Process id of the supervisor that answers.
    pub supervisor_pid: u32,
    /// Process id of the keeper.
    pub keeper_pid: u32,
    /// How often a supervisor died.
    pub supervisor_deaths: u32,
    /// Version of the supervisor that answers.
    pub pmr_version: String,
    /// How the last upgrade went, where there was one.
    pub upgrade: Option<UpgradeState>,
    /// Where its output is kept, where that is the journal: then `Logs` has none of it.
    pub journal: Option<JournalState>,
}

/// The lines of an app in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JournalState {
    /// The unit that they are of.
    pub unit: String,
    /// Whether that is one of the user's own service manager.
    pub user: bool,
    /// Which start of the unit the app is of, where the service manager has said so.
    pub invocation: Option<String>,
}

/// How connections reach the instances of an app.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BalanceState {
    /// How an instance gets its socket: `inherit`, `node` or `bind`.
    pub adapter: String,
    /// Why that one.
    pub reason: String,
    /// How they are spread: `round-robin`, `source` or `shared`.
    pub method: String,
    /// Whether each connection is steered to an instance by the kernel; else all instances share
    /// one accept queue.
    pub steered: bool,
    /// Why not, where it was asked for.
    pub note: Option<String>,
}

/// A limit of each instance.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitState {
    /// The key of the config.
    pub key: String,
    /// Bytes, a number of tasks, a weight, or percent of one CPU.
    pub value: u64,
    /// Whether the kernel enforces it, for all instances.
    pub enforced: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// A slot at one moment.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceState {
    /// Number of the slot.
    pub id: u16,
    /// Generation of the current instance.
    pub generation: Option<u64>,
    /// Its process id.
    pub pid: Option<u32>,
    /// The slot's life in one word.
    pub status: String,
    /// Memory with all it started.
    pub memory_bytes: Option<u64>,
    /// The most that was, where the kernel counts it.
    pub memory_peak_bytes: Option<u64>,
    /// Processes and threads, where the kernel counts them.
    pub tasks: Option<u64>,
    /// Percent of one CPU.
    pub cpu_percent: Option<f64>,
    /// Whether memory and CPU are the kernel's count for the instance's group; else they are added
    /// up over its processes.
    pub usage_exact: bool,
    /// Restarts nobody asked for.
    pub restarts: u32,
    /// Since its spawn.
    pub uptime_ms: Option<u64>,
    /// Unstable exits that count.
    pub unstable: u32,
    /// How many of them make the slot errored.
    pub unstable_limit: u32,
    /// When the next start is due, while the slot is waiting.
    pub next_start_ms: Option<u64>,
    /// What it runs.
    pub release: Option<u64>,
    /// How the last instance that ended did so.
    pub last_exit: Option<ExitState>,
    /// The second instance while one is replaced.
    pub other: Option<OtherState>,
    /// Connections that were steered to it since its spawn, where they are.
    pub connections: Option<u64>,
    /// Those among them that had waited for another instance.
    pub migrated: Option<u64>,
    /// Connections that wait to be accepted by it.
    pub queued: Option<u64>,
    /// Last lines of standard error of the instance that failed last; else of the one that runs.
    pub stderr: Vec<String>,
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExitState {
    /// Which.
    pub generation: u64,
    /// In words: `exited with code 1`.
    pub text: String,
    /// Whether the kernel ended it for want of memory.
    pub oom_killed: bool,
    /// Whether somebody had asked for it.
    pub asked: bool,
    /// How long ago.
    pub ago_ms: u64,
    /// How long it had lived.
    pub uptime_ms: u64,
}

/// The second instance of a slot.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OtherState {
    /// Its generation.
    pub generation: u64,
    /// Its process id.
    pub pid: Option<u32>,
    /// Its life in one word.
    pub status: String,
    /// Memory with all it started.
    pub memory_bytes: Option<u64>,
    /// Percent of one CPU.
    pub cpu_percent: Option<f64>,
    /// Since its spawn.
    pub uptime_ms: u64,
    /// What it runs.
    pub release: u64,
}

/// A replacement that runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RollState {
    /// `reload`, `restart` or `memory`.
    pub kind: String,
    /// The slot it is at.
    pub slot: Option<u16>,
}

/// How an upgrade went.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UpgradeState {
    /// Version of pmr before it.
    pub from: String,
    /// Version of pmr after it.
    pub to: String,
    /// Whether the old binary had to be brought back.
    pub rolled_back: bool,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AppEvent {
    /// When, since the Unix epoch.
    pub at_ms: u64,
    /// The slot it is about, where it is about one.
    pub slot: Option<u16>,
    /// The generation it is about, where it is about one.
    pub generation: Option<u64>,
    /// A word for programs.
    pub name: String,
    /// A sentence for people.
    pub text: String,
}

/// A line of an instance's output.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LogLine {
    /// When, since the Unix epoch.
    pub at_ms: u64,
    /// Of which slot.
    pub slot: u16,
    /// Of which generation.
    pub generation: u64,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Without its end of line.
    pub text: String,
}

/// PM2's word for whether the slots share a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Each slot on its own.
    Fork,
    /// All slots behind the same addresses.
    Cluster,
}

/// What the machine allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Delegated groups with a memory controller.
    Full,
    /// Groups without a memory controller.
    Tracking,
    /// No groups.
    Bare,
}

/// What the runtime knows of an app besides [`policy::Status`].
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Whether its slots share a port.
    pub mode: Mode,
    /// What the machine allows.
    pub level: Level,
    /// Path of the config file.
    pub config: String,
    /// Its working directory.
    pub cwd: String,
    /// Its argument vector.
    pub command: Vec<String>,
    /// Addresses that are balanced for it.
    pub listen: Vec<String>,
    /// How connections reach its instances, in cluster mode.
    pub balance: Option<BalanceState>,
    /// `max_memory_restart`.
    pub memory_limit_bytes: Option<u64>,
    /// Whether the kernel enforces the memory cap.
    pub memory_cap_enforced: bool,
    /// Limits of each instance that the config asks for.
    pub limits: Vec<LimitState>,
    /// When the app was started, since the Unix epoch.
    pub started_at_ms: u64,
    /// How long ago that was.
    pub uptime_ms: u64,
    /// Process id of the supervisor.
    pub supervisor_pid: u32,
    /// Process id of the keeper.
    pub keeper_pid: u32,
    /// How often a supervisor died.
    pub supervisor_deaths: u32,
    /// How the last upgrade went, where there was one.
    pub upgrade: Option<UpgradeState>,
    /// Where its output is kept, where that is the journal.
    pub journal: Option<JournalState>,
    /// What each instance uses.
    pub usage: BTreeMap<Generation, Usage>,
    /// Of each instance to which connections are steered.
    pub traffic: BTreeMap<Generation, Traffic>,
    /// Last lines of each slot's standard error; empty for `List`.
    pub stderr: BTreeMap<SlotId, Vec<String>>,
}

/// What an instance uses.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Memory with all it started.
    pub memory_bytes: Option<u64>,
    /// The most that was, where the kernel counts it.
    pub memory_peak_bytes: Option<u64>,
    /// Processes and threads, where the kernel counts them.
    pub tasks: Option<u64>,
    /// Percent of one CPU.
    pub cpu_percent: Option<f64>,
    /// Whether it is the kernel's count for the instance's group.
    pub exact: bool,
}

/// The connections of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Steered to it since its spawn.
    pub connections: u64,
    /// Those among them that had waited for another one.
    pub migrated: u64,
    /// Waiting to be accepted.
    pub queued: u64,
}

impl AppState {
    /// What the wire says of an app.
    pub fn from_status(status: &Status, facts: &Facts) -> Self {
        let instances: Vec<InstanceState> =
            status.slots.iter().map(|slot| InstanceState::from_slot(slot, facts)).collect();
        Self {
            name: facts.name.clone(),
            status: word_of(status).to_owned(),
            mode: match facts.mode {
                Mode::Fork => "fork".to_owned(),
                Mode::Cluster => "cluster".to_owned(),
            },
            level: match facts.level {
                Level::Full => "full".to_owned(),
                Level::Tracking => "tracking".to_owned(),
                Level::Bare => "bare".to_owned(),
            },
            instances,
            summary: summary(status),
            release: status.release.0,
            roll: status.roll.map(|(kind, slot)| RollState {
                kind: match kind {
                    RollKind::Reload => "reload".to_owned(),
                    RollKind::Restart => "restart".to_owned(),
                    RollKind::Memory => "memory".to_owned(),
                },
                slot: slot.map(|slot| slot.0),
            }),
            shutting_down: status.shutting_down,
            config: facts.config.clone(),
            cwd: facts.cwd.clone(),
            command: facts.command.clone(),
            listen: facts.listen.clone(),
            balance: facts.balance.clone(),
            memory_limit_bytes: facts.memory_limit_bytes,
            memory_cap_enforced: facts.memory_cap_enforced,
            limits: facts.limits.clone(),
            started_at_ms: facts.started_at_ms,
            uptime_ms: facts.uptime_ms,
            supervisor_pid: facts.supervisor_pid,
            keeper_pid: facts.keeper_pid,
            supervisor_deaths: facts.supervisor_deaths,
            pmr_version: env!("CARGO_PKG_VERSION").to_owned(),
            upgrade: facts.upgrade.clone(),
            journal: facts.journal.clone(),
        }
    }
}

impl InstanceState {
    fn from_slot(slot: &SlotStatus, facts: &Facts) -> Self {
        let instance = slot.instance.as_ref();
        let usage = instance.map(|it| usage_of(it, facts)).unwrap_or_default();
        let traffic = instance.and_then(|it| facts.traffic.get(&it.generation));
        Self {
            id: slot.slot.0,
            generation: instance.map(|it| it.generation.0),
            pid: instance.and_then(|it| it.pid),
            status: slot.word.as_str().to_owned(),
            memory_bytes: usage.memory_bytes,
            memory_peak_bytes: usage.memory_peak_bytes,
            tasks: usage.tasks,
            cpu_percent: usage.cpu_percent,
            usage_exact: usage.exact,
            restarts: slot.restarts,
            uptime_ms: instance.map(|it| whole_ms(it.uptime)),
            unstable: slot.unstable.0,
            unstable_limit: slot.unstable.1,
            next_start_ms: slot.next_start.map(whole_ms),
            release: instance.map(|it| it.release.0),
            last_exit: slot.last_exit.as_ref().map(|(exit, ago)| ExitState::new(exit, *ago)),
            other: slot.other.as_ref().map(|other| OtherState::new(other, facts)),
            connections: traffic.map(|it| it.connections),
            migrated: traffic.map(|it| it.migrated),
            queued: traffic.map(|it| it.queued),
            stderr: facts.stderr.get(&slot.slot).cloned().unwrap_or_default(),
        }
    }
}

impl ExitState {
    fn new(exit: &LastExit, ago: Duration) -> Self {
        Self {
            generation: exit.generation.0,
            text: exit.failure.to_string(),
            oom_killed: exit.failure.oom().is_some(),
            asked: exit.asked,
            ago_ms: whole_ms(ago),
            uptime_ms: exit.lived_ms,
        }
    }
}

impl OtherState {
    fn new(other: &InstanceStatus, facts: &Facts) -> Self {
        let usage = usage_of(other, facts);
        Self {
            generation: other.generation.0,
            pid: other.pid,
            status: other.word.as_str().to_owned(),
            memory_bytes: usage.memory_bytes,
            cpu_percent: usage.cpu_percent,
            uptime_ms: whole_ms(other.uptime),
            release: other.release.0,
        }
    }
}

fn usage_of(instance: &InstanceStatus, facts: &Facts) -> Usage {
    facts.usage.get(&instance.generation).copied().unwrap_or_default()
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Every word, the most telling first where none is online.
const WORDS: [Word; 6] =
    [Word::Online, Word::Launching, Word::Waiting, Word::Draining, Word::Errored, Word::Stopped];

fn count(status: &Status, word: Word) -> usize {
    status.slots.iter().filter(|slot| slot.word == word).count()
}

fn word_of(status: &Status) -> &'static str {
    if status.shutting_down {
        return Word::Draining.as_str();
    }
    let wanted = status.slots.len().saturating_sub(count(status, Word::Stopped));
    match status.online() {
        0 => WORDS
            .into_iter()
            .find(|&word| count(status, word) > 0)
            .map_or(Word::Stopped.as_str(), Word::as_str),
        online if online == wanted => Word::Online.as_str(),
        _ => "degraded",
    }
}

/// `1/2 online, 1 errored`: for `status`, and for systemd's STATUS.
pub fn summary(status: &Status) -> String {
    let online = format!("{}/{} online", status.online(), status.slots.len());
    let others = WORDS.into_iter().filter(|&word| word != Word::Online).filter_map(|word| {
        let some = count(status, word);
        (some > 0).then(|| format!("{some} {word}"))
    });
    [online].into_iter().chain(others).collect::<Vec<_>>().join(", ")
}

impl AppEvent {
    /// What the wire says of an entry for the journal.
    pub fn from_note(note: &Note, at_ms: u64) -> Self {
        Self {
            at_ms,
            slot: note.slot.map(|slot| slot.0),
            generation: note.generation.map(|generation| generation.0),
            name: event_name(&note.reason).to_owned(),
            text: note.reason.to_string(),
        }
    }
}

/// The word for programs; the journal's `PMR_EVENT` too.
pub fn event_name(reason: &Reason) -> &'static str {
    match reason {
        Reason::Starting => "starting",
        Reason::Online { .. } => "online",
        Reason::Stable { .. } => "stable",
        Reason::Ending(_) => "ending",
        Reason::KillTimeout { .. } => "kill-timeout",
        Reason::KilledAtOnce => "killed-at-once",
        Reason::Unkillable => "unkillable",
        Reason::Ended { exit: Some(exit) } if exit.oom().is_some() => "oom-killed",
        Reason::Ended { .. } => "ended",
        Reason::Failed { verdict: Some(policy::Verdict::Errored), .. } => "errored",
        Reason::Failed { verdict: Some(policy::Verdict::Finished), .. } => "finished",
        Reason::Failed { failure, .. } if failure.oom().is_some() => "oom-killed",
        Reason::Failed { .. } => "failed",
        Reason::Stopped => "stopped",
        Reason::TakenOver { .. } => "taken-over",
        Reason::RollBegun { .. } => "roll-begun",
        Reason::RollDone { .. } => "roll-done",
        Reason::RollFailed { .. } => "roll-failed",
        Reason::RollCancelled { .. } => "roll-cancelled",
        Reason::LimitsChanged { .. } => "limits-changed",
        Reason::MemoryAbove { .. } => "memory-above",
        Reason::MemoryWaits { .. } => "memory-waits",
        Reason::MemoryHurry { .. } => "memory-hurry",
        Reason::MemoryCache { .. } => "memory-cache",
        Reason::MemoryLimitTooLow { .. } => "memory-limit-too-low",
        Reason::ShuttingDown => "shutting-down",
        Reason::Over { .. } => "over",
    }
}
