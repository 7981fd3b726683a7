//! Why a call did not do what was asked.

use std::fmt;

use super::INTERFACE;
use crate::policy::{Outcome, Refusal};

/// Why a call did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The error's name.
    pub kind: FaultKind,
    /// In words.
    pub message: String,
}

/// The errors of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// A replacement is running.
    Busy,
    /// There is no such slot.
    NoSuchSlot,
    /// The caller may not do this.
    Denied,
    /// A parameter, or the app's config, cannot be used.
    Invalid,
    /// Everything is being stopped.
    ShuttingDown,
    /// It was tried and did not succeed.
    Failed,
    /// The new version did not come up; the old one serves.
    RolledBack,
    /// Something else took precedence.
    Cancelled,
    /// Too many requests wait.
    TooMany,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Busy,
        Self::NoSuchSlot,
        Self::Denied,
        Self::Invalid,
        Self::ShuttingDown,
        Self::Failed,
        Self::RolledBack,
        Self::Cancelled,
        Self::TooMany,
    ];

    /// Its name within the interface.
    pub fn name(self) -> &'static str {
        match self {
            Self::Busy => "Busy",
            Self::NoSuchSlot => "NoSuchSlot",
            Self::Denied => "Denied",
            Self::Invalid => "Invalid",
            Self::ShuttingDown => "ShuttingDown",
            Self::Failed => "Failed",
            Self::RolledBack => "RolledBack",
            Self::Cancelled => "Cancelled",
            Self::TooMany => "TooMany",
        }
    }

    /// The error of this full name, where it is one of ours.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.strip_prefix(INTERFACE)?.strip_prefix('.')?;
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl Fault {
    /// A fault in these words.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// What came of a wish: whether anything changed, or why not. A reload that fails has left the
    /// old version in place.
    pub fn from_outcome(outcome: Outcome, reload: bool) -> Result<bool, Self> {
        let kind = match outcome {
            Outcome::Done => return Ok(true),
            Outcome::AlreadySo => return Ok(false),
            Outcome::Failed(slot) if reload => {
                return Err(Self::new(
                    FaultKind::RolledBack,
                    format!("new instance of slot {slot} not ready; the old one serves"),
                ));
            }
            Outcome::Failed(_) | Outcome::Refused(Refusal::NothingRuns) => FaultKind::Failed,
            Outcome::Cancelled => FaultKind::Cancelled,
            Outcome::Refused(Refusal::NoSuchSlot(_)) => FaultKind::NoSuchSlot,
            Outcome::Refused(Refusal::Busy(_)) => FaultKind::Busy,
            Outcome::Refused(Refusal::ShuttingDown) => FaultKind::ShuttingDown,
            Outcome::Refused(Refusal::TooMany) => FaultKind::TooMany,
            Outcome::Refused(Refusal::Count(_)) => FaultKind::Invalid,
        };
        Err(Self::new(kind, outcome.to_string()))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}
