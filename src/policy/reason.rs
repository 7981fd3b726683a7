//! Why something was done: the one source of the words in journal, status and command line.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::event::{Exit, Oom};
use super::id::{Generation, ReleaseId, SlotId};
use super::memory::Split;
use super::time::Spoken;
use crate::spec::Bytes;

/// What happened, and why.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// A process is being started.
    Starting,
    /// It is ready.
    Online {
        /// Since its spawn.
        after: Duration,
    },
    /// It lived long enough for its earlier unstable exits to be forgotten.
    Stable {
        /// `min_uptime`.
        uptime: Duration,
    },
    /// It is being ended.
    Ending(EndCause),
    /// It did not stop in time and is killed.
    KillTimeout {
        /// `kill_timeout`.
        timeout: Duration,
    },
    /// A person would not wait for the drain.
    KilledAtOnce,
    /// It cannot even be killed; pmr goes on without it.
    Unkillable,
    /// It ended as it was asked to.
    Ended {
        /// How; `None` where it never ran.
        exit: Option<Exit>,
    },
    /// It ended and nobody had asked for it, or its start failed.
    Failed {
        /// What it did.
        failure: Failure,
        /// How long it lived.
        uptime: Duration,
        /// What follows; `None` where it was not the current instance of its slot.
        verdict: Option<Verdict>,
        /// Unstable exits that count, and the limit.
        unstable: (u32, u32),
    },
    /// The slot is stopped.
    Stopped,
    /// A new instance takes the place of the old one.
    TakenOver {
        /// Of the one that leaves.
        from: Generation,
    },
    /// Slots are being replaced one by one.
    RollBegun {
        /// Why.
        kind: RollKind,
        /// By what.
        release: ReleaseId,
    },
    /// All slots were replaced.
    RollDone {
        /// Why.
        kind: RollKind,
    },
    /// A replacement ended early.
    RollFailed {
        /// Why it was begun.
        kind: RollKind,
        /// At which slot.
        slot: SlotId,
    },
    /// Something else took precedence over a replacement.
    RollCancelled {
        /// Why it was begun.
        kind: RollKind,
    },
    /// Limits were changed without a restart.
    LimitsChanged {
        /// What has the new ones.
        release: ReleaseId,
    },
    /// Its memory is over the limit.
    MemoryAbove {
        /// What it uses, in bytes.
        bytes: u64,
        /// `max_memory_restart`, in bytes.
        limit: u64,
        /// What that is made of, where the kernel tells.
        split: Option<Split>,
    },
    /// Its memory is over the limit, and it is not its turn.
    MemoryWaits {
        /// What it holds.
        split: Split,
        /// `max_memory_restart`, in bytes.
        limit: u64,
        /// What is being rolled; `None` where it is not online yet.
        behind: Option<RollKind>,
    },
    /// It grows too fast to wait for its replacement: it is stopped first.
    MemoryHurry {
        /// Until it reaches `memory_max`.
        left: Duration,
    },
    /// Its page cache is over the limit.
    MemoryCache {
        /// What it holds.
        split: Split,
        /// `max_memory_restart`, in bytes.
        limit: u64,
    },
    /// Replacing it does not help: three replacements each came back within `min_uptime`.
    MemoryLimitTooLow {
        /// `max_memory_restart`, in bytes.
        limit: u64,
    },
    /// Everything is being stopped.
    ShuttingDown,
    /// Everything that could end has ended.
    Over {
        /// Exit status of the service.
        code: u8,
    },
}

/// Why an instance is being ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndCause {
    /// Somebody wants it stopped.
    Stop,
    /// Another takes its place.
    Replaced,
    /// It was not ready in time.
    StartTimeout,
    /// The program could not be executed: the step, the file and the kernel's word.
    ExecFailed(String),
    /// The replacement it belonged to is off.
    NotNeeded,
}

/// What an instance did that nobody had asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// It ended.
    Exit(Exit),
    /// It was not ready in time.
    StartTimeout,
    /// The program could not be executed.
    Exec(String),
    /// There was no process at all.
    Spawn(String),
}

/// What follows an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Another start after a wait.
    Restart {
        /// How long.
        after: Duration,
    },
    /// The app is done: `autorestart = false`, or one of `stop_exit_codes`.
    Finished,
    /// The restart limit is reached, or a start failed that is not to be repeated.
    Errored,
}

/// Why slots are replaced one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RollKind {
    /// A new release.
    Reload,
    /// Somebody wants fresh processes.
    Restart,
    /// An instance is over its memory limit.
    Memory,
}

/// What came of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was so already.
    AlreadySo,
    /// It was tried, and this slot did not follow.
    Failed(SlotId),
    /// Something else took precedence.
    Cancelled,
    /// It was not tried.
    Refused(Refusal),
}

/// Why a wish was not tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such slot.
    NoSuchSlot(SlotId),
    /// A replacement is running.
    Busy(RollKind),
    /// Everything is being stopped.
    ShuttingDown,
    /// Too many wishes are waiting.
    TooMany,
    /// Not a number of slots.
    Count(u16),
    /// Nothing runs that a signal could be sent to.
    NothingRuns,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => write!(f, "starting"),
            Self::Online { after } => write!(f, "online after {}", Spoken(*after)),
            Self::Stable { uptime } => write!(f, "stable again after {}", Spoken(*uptime)),
            Self::Ending(cause) => write!(f, "{cause}"),
            Self::KillTimeout { timeout } => {
                write!(f, "did not stop within {}: killing it", Spoken(*timeout))
            }
            Self::KilledAtOnce => write!(f, "killing it at once"),
            Self::Unkillable => {
                write!(f, "cannot be killed (it hangs in the kernel): going on without it")
            }
            // That was not asked for, but nothing else follows from it.
            Self::Ended { exit: Some(exit) } if exit.oom().is_some() => {
                write!(f, "{exit} before it had drained")
            }
            Self::Ended { exit: Some(exit) } => write!(f, "{exit}, as asked"),
            Self::Ended { exit: None } => write!(f, "ended before it ran"),
            Self::Failed { failure, uptime, verdict, unstable } => {
                write!(f, "{failure}")?;
                if matches!(failure, Failure::Exit(_)) {
                    write!(f, " after {}", Spoken(*uptime))?;
                }
                match verdict {
                    None => return Ok(()),
                    Some(Verdict::Restart { after }) if after.is_zero() => {
                        write!(f, "; restarting now")?;
                    }
                    Some(Verdict::Restart { after }) => {
                        write!(f, "; restarting in {}", Spoken(*after))?;
                    }
                    Some(Verdict::Finished) => return write!(f, "; finished, not restarting"),
                    Some(Verdict::Errored) => write!(f, "; errored, giving up")?,
                }
                write!(f, " (limit {}/{})", unstable.0, unstable.1)
            }
            Self::Stopped => write!(f, "stopped"),
            Self::TakenOver { from } => write!(f, "takes over from generation {from}"),
            Self::RollBegun { kind, release } => write!(f, "{kind} to release {release} begins"),
            Self::RollDone { kind } => write!(f, "{kind} done"),
            Self::RollFailed { kind, slot } => {
                write!(f, "{kind} ended early: the new instance of slot {slot} failed")
            }
            Self::RollCancelled { kind } => write!(f, "{kind} cancelled"),
            Self::LimitsChanged { release } => {
                write!(f, "limits changed without a restart: release {release}")
            }
            Self::MemoryAbove { bytes, limit, split } => {
                fmt_above(f, *bytes, *limit, split.as_ref())
            }
            Self::MemoryWaits { split, limit, behind } => fmt_waits(f, split, *limit, *behind),
            Self::MemoryHurry { left } => write!(
                f,
                "grows to memory_max in {}, before its replacement can boot: stopping it first",
                Spoken(*left)
            ),
            Self::MemoryCache { split, limit } => {
                write!(f, "uses {split}; its page cache is {}: reclaiming that", over(*limit))
            }
            Self::MemoryLimitTooLow { limit } => write!(
                f,
                "max_memory_restart {} is below its working set: not replacing it any more",
                Bytes(*limit)
            ),
            Self::ShuttingDown => write!(f, "stopping everything"),
            Self::Over { code } => write!(f, "all is over, exit status {code}"),
        }
    }
}

/// How far over the limit, in words.
fn over(limit: u64) -> String {
    format!("over max_memory_restart {}", Bytes(limit))
}

fn fmt_above(
    f: &mut fmt::Formatter<'_>,
    bytes: u64,
    limit: u64,
    split: Option<&Split>,
) -> fmt::Result {
    match split {
        Some(split) => write!(f, "uses {split}, {}: replacing it", over(limit)),
        None => write!(f, "uses {} of memory, {}: replacing it", Bytes(bytes), over(limit)),
    }
}

fn fmt_waits(
    f: &mut fmt::Formatter<'_>,
    split: &Split,
    limit: u64,
    behind: Option<RollKind>,
) -> fmt::Result {
    write!(f, "uses {split}, {}: to be replaced ", over(limit))?;
    match behind {
        Some(kind) => write!(f, "after the {kind}"),
        None => write!(f, "once it is online"),
    }
}

impl fmt::Display for EndCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stop => write!(f, "stopping"),
            Self::Replaced => write!(f, "draining: another takes its place"),
            Self::StartTimeout => write!(f, "not ready within listen_timeout: ending it"),
            Self::ExecFailed(message) => write!(f, "{message}"),
            Self::NotNeeded => write!(f, "not needed any more: ending it"),
        }
    }
}

impl Failure {
    /// Which memory was short, where the kernel killed it for that.
    pub fn oom(&self) -> Option<Oom> {
        match self {
            Self::Exit(exit) => exit.oom(),
            Self::StartTimeout | Self::Exec(_) | Self::Spawn(_) => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(exit) => write!(f, "{exit}"),
            Self::StartTimeout => write!(f, "was not ready within listen_timeout"),
            Self::Exec(message) | Self::Spawn(message) => write!(f, "{message}"),
        }
    }
}

impl fmt::Display for RollKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reload => "reload",
            Self::Restart => "restart",
            Self::Memory => "memory replacement",
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => write!(f, "done"),
            Self::AlreadySo => write!(f, "nothing to do"),
            Self::Failed(slot) => write!(f, "slot {slot} did not come online"),
            Self::Cancelled => write!(f, "cancelled: something else took precedence"),
            Self::Refused(refusal) => write!(f, "{refusal}"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchSlot(slot) => write!(f, "there is no slot {slot}"),
            Self::Busy(kind) => write!(f, "a {kind} is running"),
            Self::ShuttingDown => write!(f, "the app is shutting down"),
            Self::TooMany => write!(f, "too many requests are waiting"),
            Self::Count(count) => {
                write!(f, "{count} is no number of instances: 1 to {}", crate::spec::INSTANCES_MAX)
            }
            Self::NothingRuns => write!(f, "nothing runs that a signal could be sent to"),
        }
    }
}
