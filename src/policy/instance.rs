//! One instance: its phases between the wish to spawn it and the moment nothing of it is left.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::action::{Action, Note};
use super::event::Exit;
use super::id::{Generation, ReleaseId, SlotId};
use super::memory::Wire;
use super::reason::{EndCause, Failure, Reason, Verdict};
use super::rules::{Rules, rules_of};
use super::time::Moment;

/// How long pmr waits for an exit after a kill, and for a group to become empty. SIGKILL is not
/// delivered to a process in uninterruptible sleep (signal(7)), and only then is this ever reached.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// One copy of the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Instance {
    pub(super) generation: Generation,
    pub(super) release: ReleaseId,
    pub(super) spawned_at: Moment,
    pub(super) pid: Option<u32>,
    pub(super) phase: Phase,
    #[serde(default)]
    pub(super) wire: Wire,
}

/// What an instance is doing; each phase carries its own data and deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// `Spawn` was said and not answered: lasts within one turn of the loop.
    Spawning,
    /// It runs and is not ready.
    Launching { deadline: Moment },
    /// It is ready.
    Online { since: Moment, stable: bool },
    /// It is asked to stop, and finishes what it has.
    Draining { cause: EndCause, kill_at: Moment, signalled: bool },
    /// It is killed, and its exit is awaited.
    Killing { cause: EndCause, give_up_at: Moment },
    /// It has ended; what it left behind is being ended and its group removed.
    Clearing { aftermath: Aftermath, give_up_at: Moment },
}

/// What follows when nothing of an instance is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Aftermath {
    /// It ended as it was asked to: start the next at once, if one is wanted.
    Planned,
    /// Start the next then.
    Restart { at: Moment },
    /// Done.
    Finished,
    /// Given up.
    Errored,
}

impl Aftermath {
    pub(super) fn of(verdict: Verdict, now: Moment) -> Self {
        match verdict {
            Verdict::Restart { after } => Self::Restart { at: now.after(after) },
            Verdict::Finished => Self::Finished,
            Verdict::Errored => Self::Errored,
        }
    }
}

/// What one turn of the core works with: the moment, the rules, and where the actions go.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    pub(super) now: Moment,
    pub(super) slot: SlotId,
    pub(super) rules: &'a BTreeMap<ReleaseId, Rules>,
    pub(super) out: &'a mut Vec<Action>,
}

impl<'a> Turn<'a> {
    /// The rules of a release that a slot or an instance names.
    pub(super) fn rules(&self, release: ReleaseId) -> &'a Rules {
        rules_of(self.rules, release)
    }

    pub(super) fn note(&mut self, generation: Generation, reason: Reason) {
        let note = Note { slot: Some(self.slot), generation: Some(generation), reason };
        self.out.push(Action::Note(note));
    }
}

impl Instance {
    /// A new one; the caller says `Spawn`.
    pub(super) fn new(generation: Generation, release: ReleaseId, now: Moment) -> Self {
        let (phase, wire) = (Phase::Spawning, Wire::default());
        Self { generation, release, spawned_at: now, pid: None, phase, wire }
    }

    /// The only writer of the phase.
    fn enter(&mut self, next: Phase) {
        self.phase = next;
    }

    /// Takes the answer to `Spawn`.
    pub(super) fn handle_spawned(&mut self, pid: u32, turn: &mut Turn<'_>) {
        let was_known = self.pid.replace(pid).is_some();
        match &self.phase {
            Phase::Spawning => {
                let deadline = self.spawned_at.after(turn.rules(self.release).listen_timeout);
                self.enter(Phase::Launching { deadline });
                self.handle_spawned_wire(turn);
            }
            Phase::Draining { signalled: false, .. } if !was_known => self.ask_to_stop(turn),
            Phase::Launching { .. }
            | Phase::Online { .. }
            | Phase::Draining { .. }
            | Phase::Killing { .. }
            | Phase::Clearing { .. } => {}
        }
    }

    /// It is ready. Only a launching one can become online.
    pub(super) fn handle_ready(&mut self, turn: &mut Turn<'_>) {
        if let Phase::Launching { .. } = self.phase {
            self.enter(Phase::Online { since: turn.now, stable: false });
            let after = turn.now.since(self.spawned_at);
            turn.note(self.generation, Reason::Online { after });
        }
    }

    /// It was signalled: recorded, so that an adopt does not signal it again.
    pub(super) fn handle_signalled(&mut self) {
        if let Phase::Draining { signalled, .. } = &mut self.phase {
            *signalled = true;
        }
    }

    /// Ends it, gracefully. One that is ending already goes on ending; only `cause` may change from
    /// a failed start to a wish, so that the exit does not count.
    pub(super) fn begin_end(&mut self, cause: EndCause, turn: &mut Turn<'_>) {
        match &mut self.phase {
            Phase::Spawning | Phase::Launching { .. } | Phase::Online { .. } => {
                let kill_at = turn.now.after(turn.rules(self.release).stop_timeout);
                turn.note(self.generation, Reason::Ending(cause.clone()));
                self.enter(Phase::Draining { cause, kill_at, signalled: false });
                if self.pid.is_some() {
                    self.ask_to_stop(turn);
                }
            }
            Phase::Draining { cause: old, .. } | Phase::Killing { cause: old, .. } => {
                if is_failed_start(old) && !is_failed_start(&cause) {
                    *old = cause;
                }
            }
            Phase::Clearing { .. } => {}
        }
    }

    /// Ends it at once, with all it started.
    pub(super) fn begin_kill(&mut self, cause: EndCause, reason: Reason, turn: &mut Turn<'_>) {
        match self.phase {
            Phase::Killing { .. } | Phase::Clearing { .. } => {}
            Phase::Spawning
            | Phase::Launching { .. }
            | Phase::Online { .. }
            | Phase::Draining { .. } => {
                turn.note(self.generation, reason);
                self.enter(Phase::Killing { cause, give_up_at: turn.now.after(KILL_PATIENCE) });
                turn.out.push(Action::Kill { generation: self.generation });
            }
        }
    }

    /// Its process has ended, or never was: clears what is left.
    pub(super) fn begin_clear(&mut self, aftermath: Aftermath, turn: &mut Turn<'_>) {
        let give_up_at = turn.now.after(KILL_PATIENCE);
        self.enter(Phase::Clearing { aftermath, give_up_at });
        turn.out.push(Action::Clear { generation: self.generation });
    }

    /// Marks an online one as stable.
    pub(super) fn settle(&mut self) {
        if let Phase::Online { stable, .. } = &mut self.phase {
            *stable = true;
        }
    }

    /// Changes what follows a clearing.
    pub(super) fn set_aftermath(&mut self, next: Aftermath) {
        if let Phase::Clearing { aftermath, .. } = &mut self.phase {
            *aftermath = next;
        }
    }

    /// Says again what was said before a supervisor died and may not have been carried out. Nobody
    /// was there to see it done in time, so a patience that ended meanwhile begins anew.
    pub(super) fn resume(&mut self, turn: &mut Turn<'_>) {
        self.resume_wire(turn);
        let generation = self.generation;
        let renew = |until: &mut Moment, patience: Duration| {
            if *until <= turn.now {
                *until = turn.now.after(patience);
            }
        };
        match &mut self.phase {
            Phase::Draining { kill_at, signalled: false, .. } => {
                renew(kill_at, turn.rules(self.release).stop_timeout);
                if self.pid.is_some() {
                    self.ask_to_stop(turn);
                }
            }
            Phase::Killing { give_up_at, .. } => {
                renew(give_up_at, KILL_PATIENCE);
                turn.out.push(Action::Kill { generation });
            }
            Phase::Clearing { give_up_at, .. } => {
                renew(give_up_at, KILL_PATIENCE);
                turn.out.push(Action::Clear { generation });
            }
            Phase::Spawning
            | Phase::Launching { .. }
            | Phase::Online { .. }
            | Phase::Draining { .. } => {}
        }
    }

    fn ask_to_stop(&self, turn: &mut Turn<'_>) {
        turn.out.push(Action::Signal { generation: self.generation });
    }

    /// When it next needs a look, by its phase alone.
    pub(super) fn deadline(&self, rules: &Rules) -> Option<Moment> {
        match self.phase {
            Phase::Spawning | Phase::Online { stable: true, .. } => None,
            Phase::Online { since, stable: false } => Some(self.stable_at(since, rules)),
            Phase::Launching { deadline } => Some(deadline),
            Phase::Draining { kill_at, .. } => Some(kill_at),
            Phase::Killing { give_up_at, .. } | Phase::Clearing { give_up_at, .. } => {
                Some(give_up_at)
            }
        }
    }

    /// When it becomes stable, having become online at `since`.
    pub(super) fn stable_at(&self, since: Moment, rules: &Rules) -> Moment {
        self.spawned_at.after(rules.restart.min_uptime).max(since)
    }

    /// Since when it is online.
    pub(super) fn online_since(&self) -> Option<Moment> {
        match self.phase {
            Phase::Online { since, .. } => Some(since),
            Phase::Spawning
            | Phase::Launching { .. }
            | Phase::Draining { .. }
            | Phase::Killing { .. }
            | Phase::Clearing { .. } => None,
        }
    }

    /// Whether it is online and has lived long enough for earlier exits to be forgotten.
    pub(super) fn is_stable(&self) -> bool {
        match self.phase {
            Phase::Online { stable, .. } => stable,
            Phase::Spawning
            | Phase::Launching { .. }
            | Phase::Draining { .. }
            | Phase::Killing { .. }
            | Phase::Clearing { .. } => false,
        }
    }

    /// Whether it runs and is not ready yet.
    pub(super) fn is_launching(&self) -> bool {
        match self.phase {
            Phase::Launching { .. } => true,
            Phase::Spawning
            | Phase::Online { .. }
            | Phase::Draining { .. }
            | Phase::Killing { .. }
            | Phase::Clearing { .. } => false,
        }
    }

    /// Whether it may still become or is online.
    pub(super) fn is_wanted(&self) -> bool {
        match self.phase {
            Phase::Spawning | Phase::Launching { .. } | Phase::Online { .. } => true,
            Phase::Draining { .. } | Phase::Killing { .. } | Phase::Clearing { .. } => false,
        }
    }

    /// Whether a process of it may run.
    pub(super) fn may_run(&self) -> bool {
        !matches!(self.phase, Phase::Clearing { .. })
    }
}

/// The failure behind an end that the app itself caused.
pub(super) fn failed_start(cause: &EndCause) -> Option<Failure> {
    match cause {
        EndCause::StartTimeout => Some(Failure::StartTimeout),
        EndCause::ExecFailed(message) => Some(Failure::Exec(message.clone())),
        EndCause::Stop | EndCause::Replaced | EndCause::NotNeeded => None,
    }
}

fn is_failed_start(cause: &EndCause) -> bool {
    failed_start(cause).is_some()
}

/// What an exit means: asked for, or a failure with how long it was online.
pub(super) fn meaning(
    phase: &Phase,
    exit: Exit,
    now: Moment,
) -> Option<(Failure, Option<Duration>)> {
    match phase {
        Phase::Spawning | Phase::Launching { .. } => Some((Failure::Exit(exit), None)),
        Phase::Online { since, .. } => Some((Failure::Exit(exit), Some(now.since(*since)))),
        Phase::Draining { cause, .. } | Phase::Killing { cause, .. } => {
            failed_start(cause).map(|failure| (failure, None))
        }
        Phase::Clearing { .. } => None,
    }
}
