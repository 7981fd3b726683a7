//! How many events the pure core handles in a second: its own time alone, no kernel, no clock.
//!
//! One line for each history: its name, a tab, events per second (the best of some rounds, which
//! is the one that was disturbed least).

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, Instant};

use pmr::policy::{
    Action, Event, Exit, Fact, Fleet, Generation, Moment, Policy, ReleaseId, Rules, Wish,
};
use pmr::spec::RestartRules;

/// How long each history is repeated, in one round.
const ROUND: Duration = Duration::from_millis(400);
const ROUND_QUICK: Duration = Duration::from_millis(100);
const ROUNDS: u32 = 5;

/// A piece of history, to be repeated.
type Step = fn(&mut World);

/// A core, and a kernel and keeper that answer at once.
struct World {
    policy: Policy,
    now_ms: u64,
    actions: Vec<Action>,
    events: u64,
    alive: Vec<Generation>,
}

impl World {
    fn new(slots: u16) -> Self {
        let release = ReleaseId(1);
        let rules = BTreeMap::from([(release, rules())]);
        let mut actions = Vec::new();
        let fleet = Fleet::new(slots, release);
        let policy = Policy::adopt(fleet, rules, Moment::from_ms(0), &mut actions);
        let mut world = Self { policy, now_ms: 0, actions, events: 0, alive: Vec::new() };
        world.tell(Event::Tick);
        world.answer_all();
        world
    }

    fn tell(&mut self, event: Event) {
        self.events = self.events.saturating_add(1);
        self.policy.handle(Moment::from_ms(self.now_ms), event, &mut self.actions);
    }

    /// Answers every action, as the executor does.
    fn answer_all(&mut self) {
        while !self.actions.is_empty() {
            for action in std::mem::take(&mut self.actions) {
                self.answer(&action);
            }
        }
    }

    fn answer(&mut self, action: &Action) {
        match *action {
            Action::Spawn { generation, .. } => {
                self.alive.push(generation);
                self.tell(Event::Fact(Fact::Spawned { generation, pid: 1 }));
                self.tell(Event::Fact(Fact::Ready { generation }));
            }
            Action::Signal { generation } => {
                self.tell(Event::Fact(Fact::Signalled { generation }));
                self.exit(generation, Exit::Code(0));
            }
            Action::Kill { generation } => {
                self.exit(generation, Exit::Signal { signal: 9, core: false, oom: None });
            }
            Action::Clear { generation } => {
                self.tell(Event::Fact(Fact::Cleared { generation }));
            }
            Action::Send { .. }
            | Action::Wire { .. }
            | Action::Adjust { .. }
            | Action::Announce(_)
            | Action::Note(_)
            | Action::Reply { .. } => {}
        }
    }

    fn exit(&mut self, generation: Generation, exit: Exit) {
        self.alive.retain(|alive| *alive != generation);
        self.tell(Event::Fact(Fact::Exited { generation, exit }));
    }

    /// The oldest instance crashes, a minute after the last one did, and is started again.
    fn crash(&mut self) {
        self.now_ms = self.now_ms.saturating_add(60_000);
        let oldest = self.alive.first().copied().expect("an instance runs");
        self.exit(oldest, Exit::Signal { signal: 9, core: false, oom: None });
        self.answer_all();
    }

    /// Time passes, and nothing else.
    fn tick(&mut self) {
        self.now_ms = self.now_ms.saturating_add(1);
        self.tell(Event::Tick);
        self.answer_all();
    }

    /// Everything is stopped and started again.
    fn stop_and_start(&mut self) {
        self.now_ms = self.now_ms.saturating_add(60_000);
        self.tell(Event::Wish(None, Wish::Stop { slot: None }));
        self.answer_all();
        self.tell(Event::Wish(None, Wish::Start { slot: None }));
        self.answer_all();
    }
}

fn rules() -> Rules {
    Rules {
        restart: RestartRules {
            autorestart: true,
            stop_exit_codes: vec![],
            max_restarts: 10,
            window: Duration::from_secs(100),
            min_uptime: Duration::from_secs(10),
            delay: Duration::ZERO,
            backoff: None,
        },
        listen_timeout: Duration::from_secs(30),
        stop_timeout: Duration::from_secs(5),
        memory_limit: None,
        memory_max: None,
        stable_for: Duration::from_secs(2),
        beside: true,
    }
}

/// Events per second of the best round.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures time: it needs a clock")]
#[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "a figure for a person")]
fn measure(slots: u16, round: Duration, step: Step) -> f64 {
    let mut best = 0.0_f64;
    for _ in 0..ROUNDS {
        let mut world = World::new(slots);
        world.events = 0;
        let start = Instant::now();
        while start.elapsed() < round {
            // The clock is read for every tenth step only: it is no part of the core.
            for _ in 0..10 {
                step(&mut world);
            }
        }
        best = best.max(world.events as f64 / start.elapsed().as_secs_f64());
    }
    best
}

fn main() -> std::io::Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let round = if quick { ROUND_QUICK } else { ROUND };
    let mut out = std::io::stdout().lock();
    let histories: [(&str, u16, Step); 6] = [
        ("crash and restart, 2 slots", 2, World::crash),
        ("crash and restart, 100 slots", 100, World::crash),
        ("stop and start, 2 slots", 2, World::stop_and_start),
        ("stop and start, 100 slots", 100, World::stop_and_start),
        ("ticks, 2 slots", 2, World::tick),
        ("ticks, 100 slots", 100, World::tick),
    ];
    for (name, slots, step) in histories {
        writeln!(out, "{name}\t{:.0}", measure(slots, round, step))?;
    }
    Ok(())
}
