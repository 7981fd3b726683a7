//! Instances that inherit their sockets are ready once they accept from them.

use crate::policy::{Event, Fact, Generation};
use crate::sys::clock;

use super::Runtime;
use super::looks::Looks;

/// The first wait after the exec, in milliseconds.
const LOOK_MS_MIN: u64 = 5;

/// The longest: so much later than it might an instance serve.
const LOOK_MS_MAX: u64 = 100;

/// Those of whom it is not known yet.
#[derive(Debug)]
pub(super) struct Probing(Looks);

impl Default for Probing {
    fn default() -> Self {
        Self(Looks::new(LOOK_MS_MIN, LOOK_MS_MAX))
    }
}

impl Probing {
    /// When to look again.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        self.0.deadline_ms()
    }

    pub(super) fn forget(&mut self, generation: Generation) {
        self.0.end(generation);
    }
}

impl Runtime {
    /// Begins to look whether an instance accepts.
    pub(super) fn probe(&mut self, generation: Generation) {
        self.probing.0.begin(generation, clock::now());
    }

    /// Looks who accepts by now.
    pub(super) fn probe_time(&mut self, now: u64) {
        for generation in self.probing.0.due(now) {
            let ended = self.instances.get(&generation).is_none_or(|instance| instance.ended);
            if ended {
                self.probing.forget(generation);
                continue;
            }
            let accepts = self.sockets.accepts(now, generation).unwrap_or_else(|error| {
                // As where nothing can be known: its socket takes connections since it was made.
                self.warn(&format!("whether an instance accepts is not known: {error}"));
                true
            });
            if accepts {
                self.probing.forget(generation);
                self.events.push_back(Event::Fact(Fact::Ready { generation }));
            }
        }
    }
}
