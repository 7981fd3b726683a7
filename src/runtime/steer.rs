//! Who gets new connections, and whom they are taken from.
//!
//! The steering tables follow what the core says of the instances, before its actions are carried
//! out: who is asked to stop, or has ended, is given no connection more. One that is asked to stop
//! first finishes the queue it has.

use std::collections::BTreeMap;

use crate::balance::hang::Verdicts;
use crate::policy::{Event, Fact, Generation};
use crate::sys::{Error, clock, procfs};

use super::instances::Instance;
use super::{Runtime, events};

/// How often the queue of an instance that is to stop is looked at, in milliseconds.
const LEAVE_LOOK_MS: u64 = 5;

/// What PM2 says to a process that is to stop (`shutdown_with_message`).
const PM2_SHUTDOWN: &str = "shutdown";

/// How long it may take to accept what waits for it. What waits longer moves on to the others when
/// the instance ends.
const QUEUE_MS_MAX: u64 = 1000;

/// Instances that are to be asked to stop.
#[derive(Debug, Default)]
pub(super) struct Leaving(BTreeMap<Generation, Leaver>);

/// What one of them does before it gets its signal, and until when at the latest.
#[derive(Debug, Clone, Copy)]
enum Leaver {
    /// It accepts what waits for it.
    Queue { until_ms: u64 },
    /// As a worker of Node it has closed its servers, and answers what it has accepted; then it
    /// closes its channel.
    Worker { until_ms: u64 },
}

impl Leaving {
    /// When they are to be looked at again.
    pub(super) fn deadline_ms(&self, now: u64) -> Option<u64> {
        let look = |leaver: &Leaver| match *leaver {
            Leaver::Queue { .. } => now.saturating_add(LEAVE_LOOK_MS),
            Leaver::Worker { until_ms } => until_ms,
        };
        self.0.values().map(look).min()
    }
}

impl Runtime {
    /// Has new connections go to whoever the core says is serving.
    pub(super) fn steer(&mut self) {
        let serving = self.policy.serving();
        if let Err(error) = self.sockets.publish(clock::now(), &serving) {
            self.warn(&error.to_string());
        }
    }

    /// Looks whether somebody does not accept what he is given.
    pub(super) fn hang_time(&mut self, now: u64) {
        if self.sockets.next_look_ms().is_none_or(|at| at > now) {
            return;
        }
        let serving = self.policy.serving();
        let starved_ms = |generation: Generation| {
            let pids = self.instances.get(&generation).map(Instance::pids).unwrap_or_default();
            u64::try_from(procfs::starved(&pids).as_millis()).unwrap_or(u64::MAX)
        };
        for look in self.sockets.look(now, &serving, starved_ms) {
            let done = look.and_then(|look| {
                self.tell_verdicts(&look.verdicts);
                look.stuck.into_iter().try_for_each(|it| self.move_from(it))
            });
            if let Err(error) = done {
                self.warn(&error.to_string());
            }
        }
    }

    /// Moves those on who wait for an instance. It may go on at any moment, and must not see what
    /// is done to its sockets; where it cannot be held, they wait.
    fn move_from(&self, generation: Generation) -> Result<(), Error> {
        let instance = self.instances.get(&generation).filter(|it| it.moved_to.is_none());
        let Some(group) = instance.and_then(|instance| instance.group.as_ref()) else {
            return Ok(());
        };
        // Where it does not stand still in time, it is found again at a later look.
        group.while_frozen(|| self.sockets.move_queues(generation))?.unwrap_or(Ok(()))
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
            let until_ms = clock::now().saturating_add(QUEUE_MS_MAX);
            self.leaving.0.entry(generation).or_insert(Leaver::Queue { until_ms });
        } else {
            self.leave(generation);
        }
    }

    /// Its queue is empty: it is told to stop.
    fn leave(&mut self, generation: Generation) {
        let stop = self.instances.get(&generation);
        let stop =
            stop.and_then(|it| self.releases.get(&it.release)).map(|it| it.spec.stop.clone());
        if stop.as_ref().is_some_and(|stop| stop.message)
            && self.tell_instance(generation, PM2_SHUTDOWN)
        {
            return self.events.push_back(Event::Fact(Fact::Signalled { generation }));
        }
        // Without a handler of its own Node dies of the signal at once, with all that it is at.
        if self.node.is_worker(generation) && self.disconnect_worker(generation) {
            let timeout = stop.map(|stop| stop.timeout.as_millis()).unwrap_or_default();
            let half = u64::try_from(timeout).unwrap_or(u64::MAX) >> 1;
            let until_ms = clock::now().saturating_add(half);
            self.leaving.0.insert(generation, Leaver::Worker { until_ms });
            return;
        }
        self.signal_stop(generation);
    }

    /// A worker has closed its channel: it is done with what it had.
    pub(super) fn leave_at_once(&mut self, generation: Generation) {
        if self.leaving.0.remove(&generation).is_some() {
            self.signal_stop(generation);
        }
    }

    /// Goes on with those for whom nobody waits any more, and with those that take too long.
    pub(super) fn leave_time(&mut self, now: u64) {
        let leavers: Vec<(Generation, Leaver)> =
            self.leaving.0.iter().map(|(generation, leaver)| (*generation, *leaver)).collect();
        for (generation, leaver) in leavers {
            let ended = self.instances.get(&generation).is_none_or(|instance| instance.ended);
            match leaver {
                _ if ended => self.leave_at_once(generation),
                Leaver::Queue { until_ms } => {
                    if until_ms <= now || self.sockets.queued(generation) == 0 {
                        self.leaving.0.remove(&generation);
                        self.leave(generation);
                    }
                }
                Leaver::Worker { until_ms } if until_ms <= now => self.leave_at_once(generation),
                Leaver::Worker { .. } => {}
            }
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
