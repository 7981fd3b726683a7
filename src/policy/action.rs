//! What the core wants done. The executor has nothing left to decide.

use super::id::{Generation, ReleaseId, SlotId, Ticket};
use super::memory::WireOrder;
use super::reason::{Outcome, Reason};
use super::status::UnitState;

/// One thing to do. What can fail is answered by exactly one [`super::Fact`], named with each.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Start a process. Answer: `Spawned` or `SpawnFailed`; later `Ready` or `ExecFailed`.
    Spawn {
        /// Where.
        slot: SlotId,
        /// Its generation.
        generation: Generation,
        /// What is started.
        release: ReleaseId,
    },
    /// Ask it to stop, as its release says. Answer: `Signalled`.
    Signal {
        /// Which.
        generation: Generation,
    },
    /// Send it a signal for somebody. No answer: one that is gone does not mind.
    Send {
        /// Which.
        generation: Generation,
        /// The signal's number.
        signal: i32,
    },
    /// Kill it with all it started. The answer is its `Exited`.
    Kill {
        /// Which.
        generation: Generation,
    },
    /// End what it left behind and remove its group. Answer: `Cleared`.
    Clear {
        /// Which.
        generation: Generation,
    },
    /// What the service manager is to know the unit to be. Said when it changes, and once by each
    /// supervisor, since the one before may have died in between.
    Announce(UnitState),
    /// Do something to its trip-wire. Answer: `Wire`, as the order says.
    Wire {
        /// Which.
        generation: Generation,
        /// What.
        order: WireOrder,
    },
    /// It runs `release` from now on, which differs in limits only: set them. No answer: a limit
    /// that does not hold is shown, and no reason to end anything.
    Adjust {
        /// Which.
        generation: Generation,
        /// What it runs.
        release: ReleaseId,
    },
    /// An entry for the journal.
    Note(Note),
    /// The answer to a wish.
    Reply {
        /// Whose.
        ticket: Ticket,
        /// What came of it.
        outcome: Outcome,
    },
}

/// An entry for the journal.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// The slot it is about, where it is about one.
    pub slot: Option<SlotId>,
    /// The generation it is about, where it is about one.
    pub generation: Option<Generation>,
    /// What happened, and why.
    pub reason: Reason,
}
