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
//!                       Store, Park, Drop                  an fd that must outlive the supervisor
//!                       Born, Will, Ack                    the life of one instance
//!                       Remove, Notify, Upgrade, Exit
//! ```
//!
//! **Born is the commit point of a spawn.** The child waits on a pipe between fork and exec. The
//! keeper gets the pipe's write end with `Born`, enters the child in its table, and only then
//! writes the byte that lets it go on. A supervisor that dies before `Born` is in the socket closes
//! the pipe, the child sees the end of file and exits: what is not in the keeper's table never ran.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use crate::sys::link::{FDS_MAX, PACKET_BYTES_MAX};

/// Version of this protocol; one that the other end does not know ends in a reduced adopt.
pub const VERSION: u32 = 1;

/// The supervisor's end of the link, as the keeper starts it.
pub const LINK_FD: i32 = 3;

/// Name of the stored fd that holds the state. After three deaths it is kept as [`STATE_BAD`].
pub const STATE: &str = "state";

/// How the names begin of the fds that the service manager has kept for this keeper: after it
/// follows the name that they have there.
pub const PARKED: &str = "parked.";

/// Name under which a state that killed three supervisors is kept for the report.
pub const STATE_BAD: &str = "state.bad";

/// The bytes of a packet.
pub fn encode<T: Serialize>(packet: &T) -> Vec<u8> {
    // None of the types here can fail to be written; an empty packet is refused by the link.
    serde_json::to_vec(packet).unwrap_or_default()
}

/// The packet that these bytes are. One of an unknown type is `Unknown`, and to be skipped.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(bytes)
}

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
    /// Of a type that this version does not know: skipped.
    #[serde(other)]
    Unknown,
}

/// What a supervisor needs to know at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
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
    /// There is a service manager to be told of the app.
    #[serde(default)]
    pub manager: bool,
    /// It was told that the app is ready.
    #[serde(default)]
    pub ready: bool,
    /// Soft and hard limit on open files that pmr was started with, and its instances get; its own
    /// is raised.
    #[serde(default)]
    pub file_limit: Option<(u64, u64)>,
}

/// What a service manager is told of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// It is started, or reloaded.
    Ready,
    /// It is being reloaded.
    Reloading,
    /// It is about to end.
    Stopping,
    /// How it is, in one line.
    Status(String),
    /// What it is at takes so many milliseconds more from now, at most.
    ExtendTimeout(u64),
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
    /// Keep this fd as with `Store`, and have the service manager keep a copy, which outlives the
    /// keeper. Beside it: the fd.
    Park {
        /// Its name, unique in the app.
        name: String,
        /// Its name in the service manager's store.
        fd_name: String,
    },
    /// Close the stored fd of this name. The last of its name in the service manager's store is
    /// closed there as well.
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
        /// Removed after them, in this order, with the groups and sockets in them, where nothing
        /// else is.
        directories: Vec<String>,
    },
    /// Something for the service manager; dropped where there is none.
    Notify {
        /// What it is told.
        notice: Notice,
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
    /// Of a type that this version does not know: skipped.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn will() -> impl Strategy<Value = Will> {
        (proptest::option::of(".{0,20}"), any::<i32>(), any::<u64>())
            .prop_map(|(cgroup, signal, timeout_ms)| Will { cgroup, signal, timeout_ms })
    }

    fn child() -> impl Strategy<Value = Child> {
        (any::<u16>(), any::<u64>(), any::<u64>(), any::<u32>(), will()).prop_map(
            |(slot, generation, release, pid, will)| Child { slot, generation, release, pid, will },
        )
    }

    fn exited() -> impl Strategy<Value = Exited> {
        let number = proptest::option::of(any::<i32>());
        (any::<u64>(), number.clone(), number, any::<bool>(), any::<u64>()).prop_map(
            |(generation, code, signal, core, at_ms)| Exited {
                generation,
                code,
                signal,
                core,
                at_ms,
            },
        )
    }

    fn notice() -> impl Strategy<Value = Notice> {
        prop_oneof![
            Just(Notice::Ready),
            Just(Notice::Reloading),
            Just(Notice::Stopping),
            ".{0,40}".prop_map(Notice::Status),
            any::<u64>().prop_map(Notice::ExtendTimeout),
        ]
    }

    fn to_keeper() -> impl Strategy<Value = ToKeeper> {
        prop_oneof![
            Just(ToKeeper::Heartbeat),
            Just(ToKeeper::Adopted),
            (".{0,20}", proptest::option::of(any::<u64>()))
                .prop_map(|(name, generation)| ToKeeper::Store { name, generation }),
            ".{0,20}".prop_map(|name| ToKeeper::Drop { name }),
            child().prop_map(|child| ToKeeper::Born { child }),
            (any::<u64>(), will())
                .prop_map(|(generation, will)| ToKeeper::Will { generation, will }),
            any::<u64>().prop_map(|generation| ToKeeper::Ack { generation }),
            proptest::collection::vec(".{0,9}", 0..3)
                .prop_map(|files| ToKeeper::Remove { directories: files.clone(), files }),
            (".{0,20}", ".{0,20}").prop_map(|(name, fd_name)| ToKeeper::Park { name, fd_name }),
            notice().prop_map(|notice| ToKeeper::Notify { notice }),
            ".{0,40}".prop_map(|path| ToKeeper::Upgrade { path }),
            any::<u8>().prop_map(|code| ToKeeper::Exit { code }),
        ]
    }

    fn to_supervisor() -> impl Strategy<Value = ToSupervisor> {
        prop_oneof![
            Just(ToSupervisor::Begin),
            Just(ToSupervisor::Reload),
            any::<bool>().prop_map(|now| ToSupervisor::Stop { now }),
            exited().prop_map(ToSupervisor::Exited),
            (child(), proptest::option::of(exited()))
                .prop_map(|(child, exited)| ToSupervisor::Child { child, exited }),
            (".{0,20}", proptest::option::of(any::<u64>()))
                .prop_map(|(name, generation)| ToSupervisor::Fd { name, generation }),
        ]
    }

    #[test]
    fn a_packet_of_another_version_is_understood_or_skipped() {
        let decoded: ToKeeper = decode(br#"{"type":"teleport","to":[1,{"a":2}]}"#).unwrap();
        assert_eq!(decoded, ToKeeper::Unknown);
        let decoded: ToKeeper = decode(br#"{"type":"heartbeat","mood":"fine"}"#).unwrap();
        assert_eq!(decoded, ToKeeper::Heartbeat);
        let decoded: ToSupervisor = decode(br#"{"type":"sing"}"#).unwrap();
        assert_eq!(decoded, ToSupervisor::Unknown);
        let old = br#"{"type":"exited","generation":1,"code":0,"signal":null,"at_ms":5}"#;
        let ToSupervisor::Exited(exited) = decode(old).unwrap() else { panic!("not an exit") };
        assert!(!exited.core);
        for garbage in [&b""[..], b"{}", b"[]", b"null", b"{\"type\":\"ack\"}", b"\xff"] {
            assert!(decode::<ToKeeper>(garbage).is_err());
        }
    }

    proptest! {
        #[test]
        fn what_is_said_is_what_is_heard(keeper in to_supervisor(), supervisor in to_keeper()) {
            prop_assert_eq!(&decode::<ToSupervisor>(&encode(&keeper)).unwrap(), &keeper);
            prop_assert_eq!(&decode::<ToKeeper>(&encode(&supervisor)).unwrap(), &supervisor);
        }

        #[test]
        fn arbitrary_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            // JSON is text with a shape; random bytes are neither.
            prop_assert!(decode::<ToKeeper>(&bytes).is_err());
            prop_assert!(decode::<ToSupervisor>(&bytes).is_err());
        }

        #[test]
        fn a_mutated_packet_is_a_packet_or_an_error(
            packet in to_keeper(),
            at in any::<proptest::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<bool>(),
        ) {
            let mut bytes = encode(&packet);
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
            if let Ok(decoded) = decode::<ToKeeper>(&bytes) {
                // Whatever it became, it is written as what it is.
                prop_assert_eq!(decode::<ToKeeper>(&encode(&decoded)).unwrap(), decoded);
            } else {
                prop_assert!(cut || encode(&packet) != bytes);
            }
        }
    }
}
