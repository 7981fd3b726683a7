//! Who gets new connections, and whom they are taken from.
//!
//! The steering tables follow what the core says of the instances, before its actions are carried
//! out: who is asked to stop, or has ended, is given no connection more. One that is asked to stop
//! first finishes the queue it has.

use std::collections::BTreeMap;

use crate::balance::hang::Verdicts;
use crate::policy::{Event, Fact, Generation};
use crate::sys::clock;

use super::{Runtime, events};

/// How often the queue of an instance that is to stop is looked at, in milliseconds.
const LEAVE_LOOK_MS: u64 = 5;

/// How long it may take to accept what waits for it. What waits longer moves on to the others when
/// the instance ends.
const LEAVE_MS_MAX: u64 = 1000;

/// Instances that are to be asked to stop when nobody waits for them any more, and until when at
/// the latest.
#[derive(Debug, Default)]
pub(super) struct Leaving(BTreeMap<Generation, u64>);

impl Leaving {
    /// When they are to be looked at again.
    pub(super) fn deadline_ms(&self, now: u64) -> Option<u64> {
        (!self.0.is_empty()).then(|| now.saturating_add(LEAVE_LOOK_MS))
    }
}

impl Runtime {
    /// Has new connections go to whoever the core says is serving.
    pub(super) fn steer(&mut self) {
        let serving = self.policy.serving();
        if let Err(error) = self.sockets.publish(&serving) {
            self.warn(&error.to_string());
        }
    }

    /// Looks whether somebody does not accept what he is given.
    pub(super) fn hang_time(&mut self, now: u64) {
        if self.sockets.next_look_ms().is_none_or(|at| at > now) {
            return;
        }
        let serving = self.policy.serving();
        for verdicts in self.sockets.look(now, &serving) {
            match verdicts {
                Ok(verdicts) => self.tell_verdicts(&verdicts),
                Err(error) => self.warn(&error.to_string()),
            }
        }
    }

    fn tell_verdicts(&mut self, verdicts: &Verdicts<Generation>) {
        let app = self.app_name();
        let out = verdicts
            .out
            .iter()
            .map(|it| (events::STALLED, it, "does not accept: what waited moves to the others"));
        let back =
            verdicts.back.iter().map(|it| (events::TRIED_AGAIN, it, "is given connections again"));
        for (name, generation, text) in out.chain(back) {
            let slot = self.instances.get(generation).map(|instance| instance.slot);
            let which = slot.map_or_else(|| app.clone(), |slot| format!("{app}:{slot}"));
            self.say_event(name, slot, &format!("{which} {text}"));
        }
    }

    /// Asks an instance to stop, once it has accepted what waits for it.
    pub(super) fn ask_to_stop(&mut self, generation: Generation) {
        if self.sockets.any_serves() && self.sockets.queued(generation) > 0 {
            let until = clock::now().saturating_add(LEAVE_MS_MAX);
            self.leaving.0.entry(generation).or_insert(until);
        } else {
            self.signal_stop(generation);
        }
    }

    /// Asks those to stop for whom nobody waits any more.
    pub(super) fn leave_time(&mut self, now: u64) {
        let due = self.leaving.0.iter().filter(|&(generation, &until)| {
            until <= now
                || self.sockets.queued(*generation) == 0
                || self.instances.get(generation).is_none_or(|instance| instance.ended)
        });
        for generation in due.map(|(generation, _)| *generation).collect::<Vec<_>>() {
            self.leaving.0.remove(&generation);
            self.signal_stop(generation);
        }
    }

    fn signal_stop(&mut self, generation: Generation) {
        if let Some(instance) = self.instances.get(&generation) {
            let signal = self.releases.get(&instance.release).map(|it| it.spec.stop.signal);
            // A process that was stopped hears it once it goes on, as with systemd.
            let sent = instance
                .signal(signal.unwrap_or(nix::libc::SIGTERM))
                .and_then(|()| instance.signal(nix::libc::SIGCONT));
            if let Err(error) = sent {
                self.warn(&error.to_string());
            }
        }
        self.events.push_back(Event::Fact(Fact::Signalled { generation }));
    }
}
