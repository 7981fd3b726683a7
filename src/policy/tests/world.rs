//! A machine that answers at once, and a trace of what the core does on it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::time::Duration;

use super::leaks::Heaps;
use super::*;
use crate::spec::{Backoff, RestartRules};

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(super) fn rules() -> Rules {
    Rules {
        restart: RestartRules {
            autorestart: true,
            stop_exit_codes: vec![],
            max_restarts: 10,
            window: ms(100_000),
            min_uptime: ms(10_000),
            delay: Duration::ZERO,
            backoff: None,
        },
        listen_timeout: ms(30_000),
        stop_timeout: ms(5000),
        memory_limit: None,
        memory_max: None,
        stable_for: ms(2000),
        beside: true,
    }
}

pub(super) fn story() -> Rules {
    let backoff = Some(Backoff { base: ms(100), max: ms(15_000) });
    let restart = RestartRules { delay: ms(2000), backoff, ..rules().restart };
    Rules { restart, ..rules() }
}

/// How an instance behaves.
#[derive(Debug, Clone, Copy)]
pub(super) enum Life {
    /// Ready at once, and never ends by itself.
    Good,
    /// Ready at once, ends with code 1 after that many milliseconds.
    Dies(u64),
    /// Ready after that many milliseconds, and never ends by itself.
    Boots(u64),
    /// Never ready.
    Hangs,
    /// Ready at once, does not mind SIGTERM.
    Stubborn,
    /// Cannot be executed.
    NoExec,
    /// Cannot be spawned; the machine is short of something.
    Again,
}

/// A kernel and keeper that answer at once.
pub(super) struct World {
    pub(super) policy: Policy,
    pub(super) now: u64,
    pub(super) lives: VecDeque<Life>,
    pub(super) running: BTreeMap<Generation, (SlotId, Life, Option<u64>)>,
    /// What the kernel watches, where it does.
    pub(super) heaps: Heaps,
    pub(super) booting: BTreeMap<Generation, u64>,
    pub(super) trace: String,
}

impl World {
    pub(super) fn new(slots: u16, rules: &Rules, lives: &[Life]) -> Self {
        let mut out = Vec::new();
        let release = ReleaseId(1);
        let releases = BTreeMap::from([(release, rules.clone())]);
        let policy =
            Policy::adopt(Fleet::new(slots, release), releases, Moment::default(), &mut out);
        let lives = lives.iter().copied().collect();
        let mut world = Self {
            policy,
            now: 0,
            lives,
            running: BTreeMap::new(),
            heaps: Heaps::default(),
            booting: BTreeMap::new(),
            trace: String::new(),
        };
        world.event(Event::Tick);
        world
    }

    pub(super) fn event(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let mut out = Vec::new();
            self.policy.handle(Moment::from_ms(self.now), event, &mut out);
            for action in out {
                self.perform(action, &mut events);
            }
        }
    }

    pub(super) fn line(&mut self, text: &str) {
        writeln!(self.trace, "{:>7} {text}", self.now).expect("a string takes all");
    }

    pub(super) fn perform(&mut self, action: Action, events: &mut VecDeque<Event>) {
        let mut fact = |fact| events.push_back(Event::Fact(fact));
        match action {
            Action::Spawn { slot, generation, release } => {
                let life = self.lives.pop_front().unwrap_or(Life::Good);
                self.line(&format!("spawn {slot}.{generation} of {release}"));
                if let Life::Again = life {
                    let failure = SpawnFailure { message: "EAGAIN".to_owned(), transient: true };
                    return fact(Fact::SpawnFailed { generation, failure });
                }
                fact(Fact::Spawned { generation, pid: 100 });
                let ends = match life {
                    Life::Dies(after) => Some(self.now + after),
                    Life::NoExec => Some(self.now),
                    Life::Good | Life::Boots(_) | Life::Hangs | Life::Stubborn | Life::Again => {
                        None
                    }
                };
                self.heaps.add(generation, self.now);
                self.running.insert(generation, (slot, life, ends));
                match life {
                    Life::NoExec => {
                        fact(Fact::ExecFailed { generation, message: "no such file".to_owned() });
                    }
                    Life::Hangs => {}
                    Life::Boots(after) => {
                        self.booting.insert(generation, self.now + after);
                    }
                    Life::Good | Life::Dies(_) | Life::Stubborn | Life::Again => {
                        fact(Fact::Ready { generation });
                    }
                }
            }
            Action::Signal { generation } => {
                fact(Fact::Signalled { generation });
                if let Some((_, life, ends)) = self.running.get_mut(&generation) {
                    match life {
                        Life::Stubborn => {}
                        Life::Good
                        | Life::Boots(_)
                        | Life::Dies(_)
                        | Life::Hangs
                        | Life::NoExec
                        | Life::Again => {
                            *ends = Some(self.now + 100);
                        }
                    }
                }
            }
            Action::Kill { generation } => {
                self.heaps.remove(generation);
                if self.running.remove(&generation).is_some() {
                    let exit = Exit::Signal { signal: 9, core: false, oom: None };
                    fact(Fact::Exited { generation, exit });
                }
            }
            Action::Clear { generation } => fact(Fact::Cleared { generation }),
            Action::Note(note) => {
                let slot = note.slot.map(|slot| format!("{slot}: ")).unwrap_or_default();
                self.line(&format!("{slot}{}", note.reason));
            }
            Action::Reply { ticket, outcome } => self.line(&format!("#{} {outcome}", ticket.0)),
            Action::Adjust { generation, release } => {
                self.line(&format!("{generation} is of {release}"));
            }
            Action::Announce(state) => self.line(&format!("unit: {state:?}").to_lowercase()),
            Action::Wire { generation, order } => self.wire(generation, order, events),
            Action::Send { generation, signal } => {
                self.line(&format!("send {signal} to {generation}"));
            }
        }
    }

    /// Goes on until nothing is due before `until`.
    pub(super) fn run(&mut self, until: u64) -> &mut Self {
        loop {
            let exit = self.running.iter().filter_map(|(g, it)| it.2.map(|at| (at, *g))).min();
            let deadline = self.policy.next_deadline().map(Moment::as_ms);
            let boot = self.booting.iter().map(|(g, at)| (*at, *g)).min();
            let others = [exit.map(|it| it.0), deadline, boot.map(|it| it.0)];
            let first = others.into_iter().flatten().min().unwrap_or(u64::MAX);
            if let Some(at) = self.heaps.next(self.now).filter(|&at| at <= until && at <= first) {
                self.now = at;
                self.touch_heaps();
                continue;
            }
            if let Some((at, generation)) = boot.filter(|it| it.0 <= until && it.0 <= first) {
                self.now = self.now.max(at);
                self.booting.remove(&generation);
                if self.running.contains_key(&generation) {
                    self.event(Event::Fact(Fact::Ready { generation }));
                }
                continue;
            }
            match (exit, deadline) {
                (Some((at, generation)), due) if at <= until && due.is_none_or(|due| at <= due) => {
                    self.now = self.now.max(at);
                    self.running.remove(&generation);
                    self.heaps.remove(generation);
                    self.event(Event::Fact(Fact::Exited { generation, exit: Exit::Code(1) }));
                }
                (_, Some(due)) if due <= until => {
                    self.now = self.now.max(due);
                    self.event(Event::Tick);
                }
                _ => break,
            }
        }
        self.now = self.now.max(until);
        self
    }

    pub(super) fn wish(&mut self, ticket: u64, wish: Wish) -> &mut Self {
        self.event(Event::Wish(Some(Ticket(ticket)), wish));
        self
    }

    pub(super) fn words(&self) -> Vec<&'static str> {
        let status = self.policy.status(Moment::from_ms(self.now));
        status.slots.iter().map(|slot| slot.word.as_str()).collect()
    }

    /// The lines that contain `what`, without the rest.
    pub(super) fn lines(&self, what: &str) -> Vec<String> {
        let lines = self.trace.lines().filter(|line| line.contains(what));
        lines.map(|line| line.trim().to_owned()).collect()
    }
}
