//! A machine with a keeper on it: processes that behave well and badly, and a table of them that
//! outlives the supervisor.

use std::collections::BTreeMap;

use pmr::policy::{
    Exit, Fact, Generation, ReleaseId, SlotId, SpawnFailure, Split, Survivor, WireNews, WireOrder,
};

use crate::plan::{Faults, Random};

/// How one process will behave.
#[derive(Debug, Clone, Copy)]
struct Behaviour {
    ready_after: Option<u64>,
    exec_fails: bool,
    dies_after: Option<(u64, Exit)>,
    /// How long it takes from a stop signal to its end.
    stops_after: Option<u64>,
    killed_after: Option<u64>,
    /// How long its group stays populated after the kill.
    lingers: u64,
    leaks_after: Option<u64>,
    /// How long after it passed the limit it is at the cap.
    bursts_after: Option<u64>,
    reads_after: Option<u64>,
}

/// A process in the keeper's table: alive, or ended and not acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    /// Which spawn of all; generations may be used again after a reduced adopt.
    id: u64,
    pub(crate) slot: SlotId,
    release: ReleaseId,
    behaviour: Behaviour,
    pub(crate) ready: bool,
    /// It was asked to stop, or killed.
    asked: bool,
    killed: bool,
    pub(crate) exit: Option<Exit>,
    /// What of its memory cannot be reclaimed, since when, and how fast that grows.
    held: u64,
    held_at: u64,
    growth: u64,
    /// Whether its trip-wire stands.
    pub(crate) wire: Option<u64>,
}

/// What an instance may hold by the rules of all plans.
pub(crate) const LIMIT: u64 = 1000;

impl Process {
    pub(crate) fn is_over(&self) -> bool {
        self.held >= LIMIT
    }

    fn split(&mut self, now: u64) -> Split {
        self.held += self.growth * (now - self.held_at) / 1000;
        self.held_at = now;
        let (anon, current) = (self.held, self.held.max(LIMIT));
        Split { unreclaimable: anon, anon, file: current - anon, current, ..Split::default() }
    }
}

/// What will happen.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Happening {
    Ready(u64),
    ExecFails(u64),
    Ends(u64, Exit),
    Leaks(u64),
    Reads(u64),
    /// An answer that takes time.
    Answer(Fact),
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Kernel {
    random: Random,
    /// For memory alone.
    later: Random,
    faults: Faults,
    watched: bool,
    pub(crate) processes: BTreeMap<Generation, Process>,
    groups: BTreeMap<Generation, u64>,
    agenda: BTreeMap<(u64, u64), Happening>,
    spawns: u64,
    happenings: u64,
    broken: Vec<ReleaseId>,
    /// A stop was asked of the keeper.
    pub(crate) stopping: Option<bool>,
}

/// What cannot be killed is in uninterruptible sleep until the faults end.
const STUCK: Option<u64> = None;

const KILLED: Exit = Exit::Signal { signal: 9, core: false, oom: None };

impl Kernel {
    pub(crate) fn new(seed: u64, faults: Faults, watched: bool) -> Self {
        Self {
            random: Random::new(!seed),
            later: Random::new(!seed.rotate_left(32)),
            faults,
            watched,
            processes: BTreeMap::new(),
            groups: BTreeMap::new(),
            agenda: BTreeMap::new(),
            spawns: 0,
            happenings: 0,
            broken: Vec::new(),
            stopping: None,
        }
    }

    /// A release that never comes online.
    pub(crate) fn break_release(&mut self, release: ReleaseId) {
        self.broken.push(release);
    }

    fn schedule(&mut self, at: u64, happening: Happening) {
        self.happenings += 1;
        self.agenda.insert((at, self.happenings), happening);
    }

    pub(crate) fn next(&self) -> Option<u64> {
        self.agenda.first_key_value().map(|((at, _), _)| *at)
    }

    fn behaviour(&mut self, release: ReleaseId) -> Behaviour {
        let Self { random, later, faults, watched, .. } = self;
        let exit = random.pick(&[
            Exit::Code(0),
            Exit::Code(1),
            Exit::Signal { signal: 11, core: true, oom: None },
        ]);
        let hangs = random.chance(faults.hang);
        let mut behaviour = Behaviour {
            ready_after: (!hangs).then(|| random.pick(&[0, 0, 0, 300, 1500])),
            exec_fails: random.chance(faults.exec),
            dies_after: random
                .chance(faults.crash)
                .then(|| (random.pick(&[0, 0, 50, 700, 7000, 12_000]), exit)),
            stops_after: (!random.chance(faults.stubborn))
                .then(|| random.pick(&[0, 100, 100, 400, 3000])),
            killed_after: Some(0),
            lingers: 0,
            leaks_after: random.chance(faults.leak).then(|| random.pick(&[100, 2000, 11_000])),
            bursts_after: later.chance(faults.burst).then(|| later.pick(&[0, 150, 700, 4000])),
            reads_after: (*watched && later.chance(faults.read))
                .then(|| later.pick(&[10, 500, 9000])),
        };
        if random.chance(faults.unkillable) {
            behaviour.killed_after = random.pick(&[Some(3000), Some(15_000), STUCK]);
        }
        if random.chance(faults.linger) {
            behaviour.lingers = random.pick(&[1, 500, 9_999, 10_000, 20_000]);
        }
        if self.broken.contains(&release) {
            behaviour.ready_after = None;
            behaviour.dies_after = self.random.pick(&[None, Some((0, exit)), Some((600, exit))]);
        }
        behaviour
    }

    /// Starts a process. It is in the keeper's table as soon as this returns, or never was.
    pub(crate) fn spawn(
        &mut self,
        now: u64,
        slot: SlotId,
        generation: Generation,
        release: ReleaseId,
        limit: Option<u64>,
    ) -> Result<Fact, String> {
        if self.processes.contains_key(&generation) {
            return Err(format!("generation {generation} was spawned before"));
        }
        if self.random.chance(self.faults.spawn) {
            let transient = self.random.chance(60);
            let failure = SpawnFailure { message: "no".to_owned(), transient };
            return Ok(Fact::SpawnFailed { generation, failure });
        }
        let behaviour = self.behaviour(release);
        self.spawns += 1;
        let id = self.spawns;
        if behaviour.exec_fails {
            self.schedule(now, Happening::ExecFails(id));
            self.schedule(now, Happening::Ends(id, Exit::Code(127)));
        } else {
            if let Some(after) = behaviour.ready_after {
                self.schedule(now + after, Happening::Ready(id));
            }
            if let Some((after, exit)) = behaviour.dies_after {
                self.schedule(now + after, Happening::Ends(id, exit));
            }
            if let Some(after) = behaviour.leaks_after {
                self.schedule(now + after, Happening::Leaks(id));
            }
            if let Some(after) = behaviour.reads_after {
                self.schedule(now + after, Happening::Reads(id));
            }
        }
        let process = Process {
            id,
            slot,
            release,
            behaviour,
            ready: false,
            asked: false,
            killed: false,
            exit: None,
            held: 100,
            held_at: now,
            growth: 0,
            wire: limit.filter(|_| self.watched),
        };
        self.processes.insert(generation, process);
        self.groups.insert(generation, behaviour.lingers);
        Ok(Fact::Spawned { generation, pid: 100 })
    }

    pub(crate) fn ask(&mut self, now: u64, generation: Generation) -> Fact {
        if let Some(process) = self.processes.get_mut(&generation).filter(|it| !it.asked) {
            process.asked = true;
            let (id, after) = (process.id, process.behaviour.stops_after);
            if let Some(after) = after {
                self.schedule(now + after, Happening::Ends(id, Exit::Code(0)));
            }
        }
        Fact::Signalled { generation }
    }

    pub(crate) fn kill(&mut self, now: u64, generation: Generation) {
        if let Some(process) = self.processes.get_mut(&generation) {
            process.asked = true;
            process.killed = true;
            let (id, after) = (process.id, process.behaviour.killed_after);
            if let Some(after) = after {
                self.schedule(now + after, Happening::Ends(id, KILLED));
            }
        }
    }

    pub(crate) fn clear(&mut self, now: u64, generation: Generation) {
        let lingers = self.groups.remove(&generation).unwrap_or_default();
        self.schedule(now + lingers, Happening::Answer(Fact::Cleared { generation }));
    }

    /// Carries out an order about a trip-wire. What reclaims takes its time.
    pub(crate) fn order(&mut self, now: u64, generation: Generation, order: WireOrder) {
        let wait = self.later.pick(&[0, 0, 1, 300]);
        let stands = !self.later.chance(self.faults.wire);
        let Some(process) = self.processes.get_mut(&generation) else { return };
        if process.exit.is_some() || !self.watched {
            return;
        }
        let split = process.split(now);
        let news = match order {
            WireOrder::Lift => {
                process.wire = None;
                return;
            }
            WireOrder::Look => WireNews::Seen(split),
            WireOrder::Reclaim { .. } => WireNews::Reclaimed(split),
            WireOrder::Arm { limit } => {
                process.wire = stands.then_some(limit);
                WireNews::Armed { split, stands }
            }
        };
        let wait = if order == WireOrder::Look { 0 } else { wait };
        self.schedule(now + wait, Happening::Answer(Fact::Wire { generation, news }));
    }

    /// It passes its limit, and may be on its way to the cap.
    fn leak(&mut self, now: u64, id: u64) -> Vec<Fact> {
        let watched = self.watched;
        let Some((generation, process)) = self.find(id) else { return vec![] };
        if !watched {
            return vec![Fact::Memory { generation, bytes: 1500 }];
        }
        process.held = process.held.max(LIMIT);
        let burst = process.behaviour.bursts_after;
        process.growth = burst.map_or(0, |ms| LIMIT * 1000 / ms.max(1));
        let split = process.split(now);
        let touched = process.wire.is_some();
        if let Some(after) = burst {
            self.schedule(now + after, Happening::Ends(id, KILLED));
        }
        let news = WireNews::Pressed(split);
        if touched { vec![Fact::Wire { generation, news }] } else { vec![] }
    }

    /// It fills the page cache, and goes on doing so.
    fn read(&mut self, now: u64, id: u64) -> Vec<Fact> {
        let Some((generation, process)) = self.find(id) else { return vec![] };
        let (touched, split) = (process.wire.is_some(), process.split(now));
        self.schedule(now + 700, Happening::Reads(id));
        let news = WireNews::Pressed(split);
        if touched { vec![Fact::Wire { generation, news }] } else { vec![] }
    }

    pub(crate) fn acknowledge(&mut self, generation: Generation) {
        if self.processes.get(&generation).is_some_and(|process| process.exit.is_some()) {
            self.processes.remove(&generation);
        }
    }

    pub(crate) fn crash_all(&mut self, now: u64) {
        let ids: Vec<u64> = self.alive().map(|(_, process)| process.id).collect();
        for id in ids {
            self.schedule(now, Happening::Ends(id, Exit::Code(1)));
        }
    }

    pub(crate) fn leak_all(&mut self, now: u64) {
        let ids: Vec<u64> = self.alive().map(|(_, process)| process.id).collect();
        for id in ids {
            self.schedule(now, Happening::Leaks(id));
        }
    }

    /// Nothing goes wrong any more, and what was stuck gets loose.
    pub(crate) fn calm(&mut self, now: u64) {
        self.faults = Faults::NONE;
        self.broken.clear();
        let mut stuck = Vec::new();
        for process in self.processes.values_mut() {
            if process.behaviour.killed_after == STUCK {
                process.behaviour.killed_after = Some(0);
                stuck.extend(process.killed.then_some(process.id));
            }
        }
        for id in stuck {
            self.schedule(now + 1000, Happening::Ends(id, KILLED));
        }
        self.agenda.retain(|_, it| !matches!(it, Happening::Leaks(_) | Happening::Reads(_)));
    }

    pub(crate) fn alive(&self) -> impl Iterator<Item = (Generation, &Process)> {
        self.processes.iter().filter(|it| it.1.exit.is_none()).map(|(g, process)| (*g, process))
    }

    /// What lives, as the keeper's table tells it.
    pub(crate) fn survivors(&self) -> Vec<Survivor> {
        let survivor = |(generation, it): (Generation, &Process)| Survivor {
            slot: it.slot,
            generation,
            release: it.release,
            pid: 100,
        };
        self.alive().map(survivor).collect()
    }

    fn find(&mut self, id: u64) -> Option<(Generation, &mut Process)> {
        let found = self.processes.iter_mut().find(|it| it.1.id == id && it.1.exit.is_none());
        found.map(|(generation, process)| (*generation, process))
    }

    /// Lets the next thing happen, if it is due, and says what there is to know of it.
    pub(crate) fn step(&mut self, now: u64) -> Option<Vec<Fact>> {
        let first = self.agenda.first_entry().filter(|entry| entry.key().0 <= now)?;
        let happening = first.remove();
        let (id, ends) = match happening {
            Happening::Answer(fact) => return Some(vec![fact]),
            Happening::Leaks(id) => return Some(self.leak(now, id)),
            Happening::Reads(id) => return Some(self.read(now, id)),
            Happening::Ready(id) | Happening::ExecFails(id) => (id, None),
            Happening::Ends(id, exit) => (id, Some(exit)),
        };
        let Some((generation, process)) = self.find(id) else { return Some(vec![]) };
        if let Some(exit) = ends {
            process.exit = Some(exit);
            return Some(vec![Fact::Exited { generation, exit }]);
        }
        Some(vec![match happening {
            Happening::Ready(_) => {
                process.ready = true;
                Fact::Ready { generation }
            }
            _ => Fact::ExecFailed { generation, message: "no such file".to_owned() },
        }])
    }

    /// What the keeper tells the next supervisor about an instance it asks for.
    pub(crate) fn tell(&self, generation: Generation) -> Vec<Fact> {
        let Some(process) = self.processes.get(&generation) else {
            return vec![Fact::Lost { generation }];
        };
        if let Some(exit) = process.exit {
            return vec![Fact::Exited { generation, exit }];
        }
        let ready = process.ready.then_some(Fact::Ready { generation });
        [Fact::Spawned { generation, pid: 100 }].into_iter().chain(ready).collect()
    }
}
