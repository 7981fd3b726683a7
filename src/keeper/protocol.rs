//! What keeper and supervisor say to each other.
//!
//! One JSON value per packet of a `SOCK_SEQPACKET` pair, with at most [`FDS_MAX`] file descriptors
//! beside it. Both ends may be of different versions during an upgrade, so unknown fields are
//! ignored, new ones have defaults, and a packet of an unknown type is skipped.
//!
//! ```text
//! keeper → supervisor   Hello, (Child | Fd)*, Begin        at the start, in this order
//!                       Exited, Stop, Reload               any time after Begin
//! supervisor → keeper   Heartbeat                          every `heartbeat_ms`
//!                       Adopted                            once, when all that lives is taken over
//!                       Store, Drop                        an fd that must outlive the supervisor
//!                       Born, Will, Ack                    the life of one instance
//!                       Remove, Notify, Upgrade, Exit
//! ```
//!
//! **Born is the commit point of a spawn.** The child waits on a pipe between fork and exec. The
//! keeper gets the pipe's write end with `Born`, enters the child in its table, and only then
//! writes the byte that lets it go on. A supervisor that dies before `Born` is in the socket closes
//! the pipe, the child sees the end of file and exits: what is not in the keeper's table never ran.

use serde::{Deserialize, Serialize};

/// Version of this protocol; one that the other end does not know ends in a reduced adopt.
pub const VERSION: u32 = 1;

/// Most bytes of a packet, both ways.
pub const PACKET_BYTES_MAX: usize = 64 * 1024;

/// Most file descriptors beside a packet.
pub const FDS_MAX: usize = 8;

/// The supervisor's end of the link, as the keeper starts it.
pub const LINK_FD: i32 = 3;

/// What the keeper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToSupervisor {
    /// Always the first packet.
    Hello(Hello),
    /// An instance in the keeper's table, dead or alive. Beside it: its pidfd.
    Child {
        /// The instance.
        child: Child,
        /// How it ended, where it has ended and was not acknowledged.
        exited: Option<Exited>,
    },
    /// A stored fd. Beside it: the fd.
    Fd {
        /// Its name.
        name: String,
        /// The generation it belongs to; it is dropped with that generation's `Ack`.
        generation: Option<u64>,
    },
    /// Everything has been handed over.
    Begin,
    /// An instance has ended. Said again at each start of a supervisor until it is acknowledged.
    Exited(Exited),
    /// Somebody asked the service to stop (SIGTERM, SIGINT, or SIGHUP from a terminal).
    Stop {
        /// Asked for the second time by a person at a terminal: do not wait for a drain.
        now: bool,
    },
    /// Somebody asked for a reload (SIGHUP).
    Reload,
}

/// What a supervisor needs to know at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the keeper.
    pub version: u32,
    /// The keeper's process id.
    pub keeper_pid: u32,
    /// When the keeper was started: `CLOCK_MONOTONIC`, milliseconds.
    pub started_at_ms: u64,
    /// Arguments of the app, as [`crate::keeper::Options::arguments`] was given.
    pub arguments: Vec<String>,
    /// `pmr run`: output is collected by pmr and printed.
    pub foreground: bool,
    /// Supervisors that died since the last completed adopt.
    pub deaths: u32,
    /// Supervisors that died at all, for the status.
    pub deaths_total: u32,
    /// The state killed three supervisors: it is withheld, and the table of children is all there
    /// is.
    pub reduced: bool,
    /// A stop was asked for and is not done yet.
    pub stopping: bool,
    /// How often a `Heartbeat` is due.
    pub heartbeat_ms: u64,
    /// How the last upgrade went, where there was one.
    pub upgrade: Option<UpgradeOutcome>,
}

/// How an upgrade went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeOutcome {
    /// Version of pmr before it.
    pub from: String,
    /// Version of pmr after it; the same again where it was rolled back.
    pub to: String,
    /// Whether the old binary had to be brought back.
    pub rolled_back: bool,
}

/// One instance in the keeper's table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// Number of its slot.
    pub slot: u16,
    /// Its generation: unique within the app, only grows.
    pub generation: u64,
    /// Number of the release it runs.
    pub release: u64,
    /// Its process id.
    pub pid: u32,
    /// What to do with it when there is no supervisor to ask.
    pub will: Will,
}

/// How the keeper ends an instance by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Will {
    /// Directory of its cgroup, where it has one.
    pub cgroup: Option<String>,
    /// Number of the signal that asks it to stop.
    pub signal: i32,
    /// After this its group is killed.
    pub timeout_ms: u64,
}

/// How an instance ended, as wait(2) says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// Which.
    pub generation: u64,
    /// Its exit code, where it exited.
    pub code: Option<i32>,
    /// The signal's number, where one ended it.
    pub signal: Option<i32>,
    /// Whether a core was dumped.
    #[serde(default)]
    pub core: bool,
    /// When the keeper learned of it: `CLOCK_MONOTONIC`, milliseconds.
    pub at_ms: u64,
}

/// What the supervisor says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToKeeper {
    /// The loop turns.
    Heartbeat,
    /// The adopt is complete: deaths count from zero again.
    Adopted,
    /// Keep this fd. Beside it: the fd. One of the same name is replaced.
    Store {
        /// Its name, unique in the app.
        name: String,
        /// Drop it with this generation's `Ack`.
        generation: Option<u64>,
    },
    /// Close the stored fd of this name.
    Drop {
        /// Its name.
        name: String,
    },
    /// An instance is spawned and waits. Beside it: its pidfd, and the write end of its pipe.
    Born {
        /// The instance.
        child: Child,
    },
    /// Another will for an instance.
    Will {
        /// Which.
        generation: u64,
        /// The will.
        will: Will,
    },
    /// The exit stands in recorded state: forget the instance and its fds.
    Ack {
        /// Which.
        generation: u64,
    },
    /// What to remove at the very end, whoever ends it; replaces what was said before.
    Remove {
        /// Unlinked first.
        files: Vec<String>,
        /// Removed after them, in this order, where they are empty.
        directories: Vec<String>,
    },
    /// One assignment for the service manager (`READY=1`, `STATUS=…`); dropped where there is none.
    Notify {
        /// The assignment.
        state: String,
    },
    /// Go on as this binary. Beside it: an fd of it. It passed the pre-flight check.
    Upgrade {
        /// Its path, for messages.
        path: String,
    },
    /// All is over: end what is left and exit with this status.
    Exit {
        /// The exit status of the service.
        code: u8,
    },
}
