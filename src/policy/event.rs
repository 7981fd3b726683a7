//! What the core is told: facts about instances, and wishes of people.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::id::{Generation, ReleaseId, SlotId, Ticket};
use super::memory::WireNews;
use super::rules::Rules;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Time has passed. Safe at any moment; an early or spurious one changes nothing.
    Tick,
    /// Something is so.
    Fact(Fact),
    /// Somebody wants something.
    Wish(Option<Ticket>, Wish),
}

/// Something that is so, about one generation. A fact about a generation that the core does not
/// hold (any more) changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// Answer to `Spawn`: the keeper has it in its table.
    Spawned {
        /// Which.
        generation: Generation,
        /// Its process id.
        pid: u32,
    },
    /// Answer to `Spawn`: there is no process.
    SpawnFailed {
        /// Which.
        generation: Generation,
        /// What went wrong.
        failure: SpawnFailure,
    },
    /// The program could not be executed; the child's exit follows.
    ExecFailed {
        /// Which.
        generation: Generation,
        /// The step, the file and the kernel's word.
        message: String,
    },
    /// It is ready, by the readiness its config asks for.
    Ready {
        /// Which.
        generation: Generation,
    },
    /// Answer to `Signal`: it was asked to stop, or is gone already.
    Signalled {
        /// Which.
        generation: Generation,
    },
    /// Its main process has ended.
    Exited {
        /// Which.
        generation: Generation,
        /// How.
        exit: Exit,
    },
    /// Answer to `Clear`: nothing of it is left.
    Cleared {
        /// Which.
        generation: Generation,
    },
    /// After an adopt: its spawn was never completed, and it never ran.
    Lost {
        /// Which.
        generation: Generation,
    },
    /// Its memory, with all it started, sampled where the kernel does not watch it.
    Memory {
        /// Which.
        generation: Generation,
        /// The nearest figure to unreclaimable bytes that the machine can give.
        bytes: u64,
    },
    /// Its trip-wire was touched, or the answer to an order about it.
    Wire {
        /// Which.
        generation: Generation,
        /// What became of it.
        news: WireNews,
    },
}

impl Fact {
    /// The generation it is about.
    pub fn generation(&self) -> Generation {
        match self {
            Self::Spawned { generation, .. }
            | Self::SpawnFailed { generation, .. }
            | Self::ExecFailed { generation, .. }
            | Self::Ready { generation }
            | Self::Signalled { generation }
            | Self::Exited { generation, .. }
            | Self::Cleared { generation }
            | Self::Lost { generation }
            | Self::Memory { generation, .. }
            | Self::Wire { generation, .. } => *generation,
        }
    }
}

/// Why there is no process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnFailure {
    /// The step, the object and the kernel's word.
    pub message: String,
    /// The machine is short of something (processes, memory, descriptors): no fault of the app,
    /// and tried again without counting.
    pub transient: bool,
}

/// How a process ended, as wait(2) says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal {
        /// The signal's number.
        signal: i32,
        /// A core was dumped.
        core: bool,
        /// The kernel ended it for want of memory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        oom: Option<Oom>,
    },
    /// It ended before it was registered with the keeper, and nobody saw how.
    Unseen,
}

/// Which memory was short, where the kernel killed for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Oom {
    /// The instance's own: its cap, in bytes.
    Cap(u64),
    /// That of the unit, a slice above it, or the machine.
    Above,
}

impl Exit {
    /// Which memory was short, where it was killed for that.
    pub fn oom(self) -> Option<Oom> {
        match self {
            Self::Signal { oom, .. } => oom,
            Self::Code(_) | Self::Unseen => None,
        }
    }
}

impl fmt::Display for Oom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cap(bytes) => {
                write!(f, "was OOM-killed at memory_max {}", crate::spec::Bytes(*bytes))
            }
            Self::Above => write!(f, "was OOM-killed: the machine or the unit is out of memory"),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Unseen => write!(f, "was ended before it ran"),
            Self::Signal { oom: Some(oom), .. } => write!(f, "{oom}"),
            Self::Signal { signal, core, oom: None } => {
                match signal_name(*signal) {
                    Some(name) => write!(f, "was killed by {name}")?,
                    None => write!(f, "was killed by signal {signal}")?,
                }
                if *core { write!(f, " (core dumped)") } else { Ok(()) }
            }
        }
    }
}

/// Names of the signals that end processes, by their numbers on Linux (signal(7)); the others are
/// shown as numbers.
fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

/// What somebody wants. `slot: None` is every slot.
#[derive(Debug, Clone, PartialEq)]
pub enum Wish {
    /// Start what is stopped, errored or waiting; histories are forgotten.
    Start {
        /// Which.
        slot: Option<SlotId>,
    },
    /// Stop, and stay stopped.
    Stop {
        /// Which.
        slot: Option<SlotId>,
    },
    /// Stop and start again from `release`, slot by slot.
    Restart {
        /// Which.
        slot: Option<SlotId>,
        /// What to start.
        release: ReleaseId,
        /// Its rules.
        rules: Rules,
    },
    /// Replace slot by slot by `release`, the new one first wherever both can share the port.
    Reload {
        /// What to start.
        release: ReleaseId,
        /// Its rules.
        rules: Rules,
    },
    /// Go on as `release`, which differs in limits only: nothing is started or stopped.
    Adjust {
        /// The current release with other limits.
        release: ReleaseId,
        /// Its rules.
        rules: Rules,
    },
    /// That many slots: 1 to [`crate::spec::INSTANCES_MAX`]; the highest go first.
    Scale {
        /// How many.
        count: u16,
    },
    /// Send a signal to the main process.
    Signal {
        /// Which.
        slot: Option<SlotId>,
        /// Its number.
        signal: i32,
    },
    /// Forget restarts and the limit's count.
    Reset {
        /// Which.
        slot: Option<SlotId>,
    },
    /// Stop everything and end.
    ShutDown {
        /// Without a drain.
        now: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_told_as_it_was() {
        let signal = |oom| Exit::Signal { signal: 9, core: false, oom };
        for (exit, text) in [
            (Exit::Code(3), "exited with code 3"),
            (signal(None), "was killed by SIGKILL"),
            (signal(Some(Oom::Cap(600 << 20))), "was OOM-killed at memory_max 600M"),
            (signal(Some(Oom::Above)), "was OOM-killed: the machine or the unit is out of memory"),
        ] {
            assert_eq!(exit.to_string(), text);
        }
    }

    #[test]
    fn an_exit_that_was_recorded_before_there_was_oom_is_read() {
        let exit: Exit = serde_json::from_str(r#"{"signal":{"signal":9,"core":false}}"#).unwrap();
        assert_eq!(exit, Exit::Signal { signal: 9, core: false, oom: None });
        assert_eq!(exit.oom(), None);
        let killed = Exit::Signal { signal: 9, core: false, oom: Some(Oom::Cap(1)) };
        let text = serde_json::to_string(&killed).unwrap();
        assert_eq!(serde_json::from_str::<Exit>(&text).unwrap(), killed);
    }
}
