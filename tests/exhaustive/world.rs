//! A kernel of few words: what it can answer, and what can happen in it, are letters.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use pmr::policy::{
    Action, Event, Exit, Fact, Fleet, Generation, Moment, Policy, ReleaseId, Rules, SlotId,
    SpawnFailure, Split, Ticket, WireNews, WireOrder, Wish,
};
use pmr::spec::{Backoff, RestartRules};

use crate::ledger::{Known, Ledger};
use crate::limits::Limits;

/// What is walked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) slots: u16,
    /// Whether old and new share their port.
    pub(crate) beside: bool,
    /// Whether what succeeds is answered at once, without a letter.
    pub(crate) prompt: bool,
}

/// One thing that can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Letter {
    /// The oldest action that was not answered is answered.
    Answer,
    FailShort,
    FailForGood,
    Ready,
    ExecFail,
    ExitOldest,
    ExitYoungest,
    ExitWanted,
    Memory,
    /// The trip-wire of the youngest instance is touched by a leak.
    Leak,
    /// It is touched by page cache.
    Cache,
    /// What was over the limit no longer is.
    Free,
    ToDeadline,
    BeforeDeadline,
    Start,
    StartFirst,
    Stop,
    StopFirst,
    Restart,
    RestartFirst,
    Reload,
    ScaleUp,
    ScaleDown,
    Signal,
    Reset,
    ShutDown,
    ShutDownNow,
    Adopt,
}

pub(crate) const LETTERS: [Letter; 25] = [
    Letter::Answer,
    Letter::FailShort,
    Letter::FailForGood,
    Letter::Ready,
    Letter::ExecFail,
    Letter::ExitOldest,
    Letter::ExitYoungest,
    Letter::ExitWanted,
    Letter::Memory,
    Letter::ToDeadline,
    Letter::BeforeDeadline,
    Letter::Start,
    Letter::StartFirst,
    Letter::Stop,
    Letter::StopFirst,
    Letter::Restart,
    Letter::RestartFirst,
    Letter::Reload,
    Letter::ScaleUp,
    Letter::ScaleDown,
    Letter::Signal,
    Letter::Reset,
    Letter::ShutDown,
    Letter::ShutDownNow,
    Letter::Adopt,
];

/// A process that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Process {
    ready: bool,
    asked: bool,
    killed: bool,
    /// What of it cannot be reclaimed, and where its trip-wire is.
    held: u64,
    wire: Option<u64>,
}

/// The core, and the world it is in.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) path: Vec<Letter>,
    pub(crate) policy: Policy,
    ledger: Ledger,
    limits: Limits,
    /// What all releases in use have in common.
    limits_rules: Rules,
    rules: BTreeMap<ReleaseId, Rules>,
    now: Moment,
    answers: VecDeque<Fact>,
    /// What was looked at, which is answered at once.
    looked: Vec<Fact>,
    processes: BTreeMap<Generation, Process>,
    asked: u64,
}

type Checked = Result<(), String>;

const CRASH: Exit = Exit::Code(1);

/// As told of a group that is at its wire.
fn split(unreclaimable: u64) -> Split {
    Split { unreclaimable, anon: unreclaimable, current: 1000, ..Split::default() }
}

fn rules(setup: Setup) -> Rules {
    let ms = Duration::from_millis;
    Rules {
        restart: RestartRules {
            autorestart: true,
            stop_exit_codes: vec![0],
            max_restarts: 2,
            window: ms(u64::MAX >> 20),
            min_uptime: ms(1000),
            delay: Duration::ZERO,
            backoff: Some(Backoff { base: ms(100), max: ms(1000) }),
        },
        listen_timeout: ms(3000),
        stop_timeout: ms(500),
        memory_limit: Some(1000),
        memory_max: Some(1250),
        stable_for: ms(200),
        beside: setup.beside,
    }
}

impl World {
    pub(crate) fn new(setup: Setup) -> Result<Self, String> {
        let limits_rules = rules(setup);
        let rules = BTreeMap::from([(ReleaseId(1), rules(setup))]);
        let fleet = Fleet::new(setup.slots, ReleaseId(1));
        let now = Moment::from_ms(1_000_000);
        let policy = Policy::adopt(fleet, rules.clone(), now, &mut Vec::new());
        let mut world = Self {
            setup,
            path: Vec::new(),
            policy,
            ledger: Ledger::new(setup.slots, &[]),
            limits: Limits::default(),
            limits_rules,
            rules,
            now,
            answers: VecDeque::new(),
            looked: Vec::new(),
            processes: BTreeMap::new(),
            asked: 0,
        };
        world.tell(&Event::Tick)?;
        Ok(world)
    }

    /// Hands an event to the core and carries out what it says.
    fn tell(&mut self, event: &Event) -> Checked {
        let restarted = self.policy.releases().iter().all(|release| release.0 % 2 == 1);
        self.limits_rules.restart.autorestart = restarted;
        let before = self.policy.status(self.now);
        if let Event::Fact(fact) = event
            && self.ledger.is_news(fact)
        {
            self.limits.take_fact(fact, &before, &self.limits_rules);
        }
        let actions = self.ledger.handle(&mut self.policy, self.now, event)?;
        let after = self.policy.status(self.now);
        self.limits.judge(event, &actions, [&before, &after], &self.limits_rules)?;
        for action in actions {
            self.perform(&action);
        }
        while let Some(fact) = self.looked.pop() {
            self.tell(&Event::Fact(fact))?;
        }
        if self.setup.prompt {
            let waits = |fact: &Fact| matches!(fact, Fact::Spawned { .. });
            while let Some(answer) = self.answers.pop_front_if(|fact| !waits(fact)) {
                self.tell(&Event::Fact(answer))?;
            }
        }
        Ok(())
    }

    fn perform(&mut self, action: &Action) {
        match *action {
            Action::Spawn { generation, .. } => {
                let process = Process {
                    ready: false,
                    asked: false,
                    killed: false,
                    held: 100,
                    wire: Some(1000),
                };
                self.processes.insert(generation, process);
                self.answers.push_back(Fact::Spawned { generation, pid: 100 });
            }
            Action::Signal { generation } => {
                if let Some(process) = self.processes.get_mut(&generation) {
                    process.asked = true;
                }
                self.answers.push_back(Fact::Signalled { generation });
            }
            Action::Kill { generation } => {
                if let Some(process) = self.processes.get_mut(&generation) {
                    process.killed = true;
                }
            }
            Action::Clear { generation } => self.answers.push_back(Fact::Cleared { generation }),
            Action::Wire { generation, order } => self.wire(generation, order),
            Action::Send { .. }
            | Action::Adjust { .. }
            | Action::Announce(_)
            | Action::Note(_)
            | Action::Reply { .. } => {}
        }
    }

    /// Carries out what is wanted of a trip-wire.
    fn wire(&mut self, generation: Generation, order: WireOrder) {
        let Some(process) = self.processes.get_mut(&generation) else { return };
        let split = split(process.held);
        let news = match order {
            WireOrder::Lift => {
                process.wire = None;
                return;
            }
            WireOrder::Look => WireNews::Seen(split),
            WireOrder::Reclaim { .. } => WireNews::Reclaimed(split),
            WireOrder::Arm { limit } => {
                process.wire = Some(limit);
                WireNews::Armed { split, stands: true }
            }
        };
        let fact = Fact::Wire { generation, news };
        match order {
            WireOrder::Look => self.looked.push(fact),
            _ => self.answers.push_back(fact),
        }
    }

    fn wish(&mut self, wish: Wish) -> Result<bool, String> {
        self.asked += 1;
        self.tell(&Event::Wish(Some(Ticket(self.asked)), wish))?;
        Ok(true)
    }

    /// The next release. Each second one is of an app that is not restarted.
    fn next_release(&mut self) -> (ReleaseId, Rules) {
        let last = self.policy.releases().into_iter().next_back().unwrap_or_default();
        let release = ReleaseId(last.0 + 1);
        let mut rules = rules(self.setup);
        rules.restart.autorestart = release.0 % 2 == 1;
        self.rules.insert(release, rules.clone());
        (release, rules)
    }

    /// Processes whose spawn was answered.
    fn told(&self) -> Vec<(Generation, Process)> {
        let told = |generation: &Generation| {
            self.ledger.instances.get(generation).is_none_or(|it| it.known != Known::Said)
        };
        self.processes.iter().filter(|it| told(it.0)).map(|(g, p)| (*g, *p)).collect()
    }

    /// Lets one thing happen; false where it cannot happen now.
    pub(crate) fn apply(&mut self, letter: Letter) -> Result<bool, String> {
        let all = None;
        let first = Some(SlotId(0));
        let many = self.setup.slots > 1;
        let slots = u16::try_from(self.policy.status(self.now).slots.len()).unwrap_or(u16::MAX);
        match letter {
            Letter::Answer | Letter::FailShort | Letter::FailForGood => self.answer(letter),
            Letter::Ready | Letter::ExecFail => self.start_ends(letter),
            Letter::ExitOldest | Letter::ExitYoungest | Letter::ExitWanted => self.exit(letter),
            Letter::Memory => self.memory(),
            Letter::Leak | Letter::Cache => self.touch(letter),
            Letter::Free => Ok(self.free()),
            Letter::ToDeadline | Letter::BeforeDeadline => self.wait(letter),
            Letter::Adopt => self.adopt(),
            Letter::Start => self.wish(Wish::Start { slot: all }),
            Letter::StartFirst if many => self.wish(Wish::Start { slot: first }),
            Letter::Stop => self.wish(Wish::Stop { slot: all }),
            Letter::StopFirst if many => self.wish(Wish::Stop { slot: first }),
            Letter::Restart => {
                let (release, rules) = self.next_release();
                self.wish(Wish::Restart { slot: all, release, rules })
            }
            Letter::RestartFirst if many => {
                let (release, rules) = self.next_release();
                self.wish(Wish::Restart { slot: first, release, rules })
            }
            Letter::StartFirst | Letter::StopFirst | Letter::RestartFirst => Ok(false),
            Letter::Reload => {
                let (release, rules) = self.next_release();
                self.wish(Wish::Reload { release, rules })
            }
            Letter::ScaleUp => self.wish(Wish::Scale { count: slots + 1 }),
            Letter::ScaleDown => self.wish(Wish::Scale { count: 1 }),
            Letter::Signal => self.wish(Wish::Signal { slot: all, signal: 10 }),
            Letter::Reset => self.wish(Wish::Reset { slot: all }),
            Letter::ShutDown => self.wish(Wish::ShutDown { now: false }),
            Letter::ShutDownNow => self.wish(Wish::ShutDown { now: true }),
        }
    }

    fn answer(&mut self, letter: Letter) -> Result<bool, String> {
        let Some(answer) = self.answers.front().cloned() else { return Ok(false) };
        let fact = match (letter, &answer) {
            (Letter::FailShort | Letter::FailForGood, Fact::Spawned { generation, .. }) => {
                self.processes.remove(generation);
                let failure = SpawnFailure {
                    message: "no".to_owned(),
                    transient: letter == Letter::FailShort,
                };
                Fact::SpawnFailed { generation: *generation, failure }
            }
            (Letter::Answer, _) => answer,
            _ => return Ok(false),
        };
        self.answers.pop_front();
        self.tell(&Event::Fact(fact))?;
        Ok(true)
    }

    fn start_ends(&mut self, letter: Letter) -> Result<bool, String> {
        let Some((generation, _)) = self.told().into_iter().rfind(|it| !it.1.ready) else {
            return Ok(false);
        };
        if letter == Letter::ExecFail {
            let message = "no such file".to_owned();
            self.tell(&Event::Fact(Fact::ExecFailed { generation, message }))?;
            return Ok(true);
        }
        if let Some(process) = self.processes.get_mut(&generation) {
            process.ready = true;
        }
        self.tell(&Event::Fact(Fact::Ready { generation }))?;
        Ok(true)
    }

    fn exit(&mut self, letter: Letter) -> Result<bool, String> {
        let told = self.told();
        let one = match letter {
            Letter::ExitYoungest if told.len() > 1 => told.last(),
            Letter::ExitYoungest => None,
            _ => told.first(),
        };
        let Some(&(generation, process)) = one else { return Ok(false) };
        let exit = match letter {
            _ if process.killed => Exit::Signal { signal: 9, core: false, oom: None },
            Letter::ExitWanted => Exit::Code(0),
            _ => CRASH,
        };
        self.processes.remove(&generation);
        self.tell(&Event::Fact(Fact::Exited { generation, exit }))?;
        Ok(true)
    }

    fn memory(&mut self) -> Result<bool, String> {
        let Some(&generation) = self.policy.memory_watched().last() else { return Ok(false) };
        self.tell(&Event::Fact(Fact::Memory { generation, bytes: 1001 }))?;
        Ok(true)
    }

    /// The youngest instance whose wire stands touches it.
    fn touch(&mut self, letter: Letter) -> Result<bool, String> {
        let told: Vec<Generation> = self.told().into_iter().map(|it| it.0).collect();
        let standing =
            self.processes.iter_mut().rfind(|it| it.1.wire.is_some() && told.contains(it.0));
        let Some((&generation, process)) = standing else { return Ok(false) };
        process.held = if letter == Letter::Leak { 1000 } else { 100 };
        let news = WireNews::Pressed(split(process.held));
        self.tell(&Event::Fact(Fact::Wire { generation, news }))?;
        Ok(true)
    }

    fn free(&mut self) -> bool {
        let over = self.processes.values_mut().filter(|process| process.held >= 1000);
        over.map(|process| process.held = 100).count() > 0
    }

    fn wait(&mut self, letter: Letter) -> Result<bool, String> {
        let Some(deadline) = self.policy.next_deadline() else { return Ok(false) };
        let early = Moment::from_ms(deadline.as_ms() - 1);
        let until = if letter == Letter::ToDeadline { deadline } else { early };
        if until <= self.now {
            return Ok(false);
        }
        self.now = until;
        self.tell(&Event::Tick)?;
        Ok(true)
    }

    /// The supervisor dies, and the next one adopts. What was not answered is not answered.
    fn adopt(&mut self) -> Result<bool, String> {
        let mut said = Vec::new();
        let rules = self.held_rules();
        let fleet = self.policy.saved().clone();
        self.policy = Policy::adopt(fleet, rules, self.now, &mut said);
        self.ledger.adopt(&said, self.now)?;
        self.answers.clear();
        for action in said {
            self.perform(&action);
        }
        for (_, generation) in self.policy.generations() {
            let fact = match self.processes.get(&generation) {
                Some(_) => Fact::Spawned { generation, pid: 100 },
                None => Fact::Lost { generation },
            };
            let ready = self.processes.get(&generation).is_some_and(|process| process.ready);
            self.tell(&Event::Fact(fact))?;
            if ready {
                self.tell(&Event::Fact(Fact::Ready { generation }))?;
            }
        }
        self.tell(&Event::Tick)?;
        Ok(true)
    }

    fn held_rules(&self) -> BTreeMap<ReleaseId, Rules> {
        let held = self.policy.releases();
        self.rules.iter().filter(|it| held.contains(it.0)).map(|(r, it)| (*r, it.clone())).collect()
    }

    /// Judges a state by what would follow from it.
    pub(crate) fn judge(&self) -> Checked {
        self.judge_ticks()?;
        self.judge_stale_facts()?;
        self.judge_adopt()?;
        self.clone().calm()
    }

    /// A tick that is not due changes nothing, and one that is leaves nothing due.
    fn judge_ticks(&self) -> Checked {
        let deadline = self.policy.next_deadline();
        if deadline.is_some_and(|deadline| deadline <= self.now) {
            return Err(format!("due at {deadline:?}, and it is {:?}", self.now));
        }
        let early = match deadline {
            Some(at) => Moment::from_ms(at.as_ms() - 1),
            None => self.now.after(Duration::from_hours(24)),
        };
        self.nothing_follows([(self.now, Event::Tick), (early, Event::Tick)])
    }

    fn nothing_follows(&self, events: impl IntoIterator<Item = (Moment, Event)>) -> Checked {
        let mut policy = self.policy.clone();
        let mut out = Vec::new();
        for (at, event) in events {
            policy.handle(at, event.clone(), &mut out);
            if !out.is_empty() {
                return Err(format!("{event:?} at {at:?} should change nothing, but: {out:?}"));
            }
        }
        if policy.saved() == self.policy.saved() {
            return Ok(());
        }
        Err(format!("a stale fact or an early tick changed something: {:?}", policy.saved()))
    }

    /// Facts about what is gone, or never was, change nothing.
    fn judge_stale_facts(&self) -> Checked {
        let last = self.policy.status(self.now).generation.0;
        let held = |it: &Generation| self.ledger.instances.contains_key(it);
        let gone = (0..=last).map(Generation).rfind(|it| !held(it));
        let mut facts = Vec::new();
        for generation in gone.into_iter().chain([Generation(last + 1)]) {
            let message = String::new();
            let failure = SpawnFailure { message: message.clone(), transient: false };
            facts.extend([
                Fact::Spawned { generation, pid: 7 },
                Fact::SpawnFailed { generation, failure },
                Fact::ExecFailed { generation, message },
                Fact::Ready { generation },
                Fact::Signalled { generation },
                Fact::Exited { generation, exit: CRASH },
                Fact::Cleared { generation },
                Fact::Lost { generation },
                Fact::Memory { generation, bytes: 5000 },
                Fact::Wire { generation, news: WireNews::Pressed(split(5000)) },
            ]);
        }
        for (&generation, entry) in &self.ledger.instances {
            if entry.known == Known::Ended {
                let failure = SpawnFailure { message: String::new(), transient: false };
                facts.extend([
                    Fact::SpawnFailed { generation, failure },
                    Fact::Exited { generation, exit: CRASH },
                    Fact::Ready { generation },
                    Fact::Lost { generation },
                    Fact::Memory { generation, bytes: 5000 },
                    Fact::Wire { generation, news: WireNews::Pressed(split(5000)) },
                ]);
            } else {
                facts.push(Fact::Cleared { generation });
            }
        }
        self.nothing_follows(facts.into_iter().map(|fact| (self.now, Event::Fact(fact))))
    }

    /// What is saved is all there is.
    fn judge_adopt(&self) -> Checked {
        let text = serde_json::to_vec(self.policy.saved()).map_err(|error| error.to_string())?;
        let fleet: Fleet = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        let adopted = Policy::adopt(fleet, self.held_rules(), self.now, &mut Vec::new());
        if adopted.saved() == self.policy.saved() {
            return Ok(());
        }
        Err(format!("adopted as something else: {:#?}", adopted.saved()))
    }

    /// From now on all goes well: what is asked to stop does, and what is started is ready.
    fn calm(&mut self) -> Checked {
        for _ in 0..300 {
            if let Some(answer) = self.answers.pop_front() {
                self.tell(&Event::Fact(answer))?;
                continue;
            }
            let asked = |it: &(Generation, Process)| it.1.asked || it.1.killed || self.is_old(it.0);
            let told = self.told();
            if let Some(&(generation, _)) = told.iter().find(|it| asked(it)) {
                self.processes.remove(&generation);
                self.tell(&Event::Fact(Fact::Exited { generation, exit: CRASH }))?;
            } else if !self.apply(Letter::Ready)? && !self.apply(Letter::ToDeadline)? {
                return self.ledger.judge_calm(&self.policy, self.now);
            }
        }
        Err(format!("no end of it: {:#?}", self.policy))
    }

    /// The core does without it since it could not be killed; the keeper ends it.
    fn is_old(&self, generation: Generation) -> bool {
        !self.ledger.instances.contains_key(&generation)
    }

    /// A number for everything about the state but absolute times and numbers of things.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let last = self.policy.status(self.now).generation.0;
        let state = serde_json::to_string(self.policy.saved()).unwrap_or_default();
        let releases = self.policy.releases().into_iter().map(|release| release.0).collect();
        let frame = Frame { now: self.now.as_ms(), last, releases };
        frame.hash(&state, &mut hasher);
        let wishes: BTreeSet<_> = self.ledger.tickets.values().map(|it| it.what).collect();
        wishes.hash(&mut hasher);
        for answer in &self.answers {
            std::mem::discriminant(answer).hash(&mut hasher);
            (last - answer.generation().0).hash(&mut hasher);
        }
        for (generation, process) in &self.processes {
            (last - generation.0, process).hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// What numbers are relative to.
struct Frame {
    now: u64,
    last: u64,
    releases: Vec<u64>,
}

impl Frame {
    /// Hashes a state in JSON, as [`serde_json::to_string`] writes it.
    fn hash(&self, text: &str, hasher: &mut DefaultHasher) {
        let mut key = "";
        let mut started = None;
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            if first == '"' {
                let (string, tail) = rest[1..].split_once('"').unwrap_or_default();
                if let Some(value) = tail.strip_prefix(':') {
                    key = string;
                    rest = if key == "last_exit" { without_value(value) } else { value };
                    let ends = ["{\"draining", "{\"killing", "{\"clearing"];
                    let at = if key == "phase" { started.take() } else { None };
                    // Nothing depends on when one that ends was started.
                    if let Some(at) = at.filter(|_| !ends.iter().any(|end| rest.starts_with(end))) {
                        self.hash_number("spawned_at", at, hasher);
                    }
                } else {
                    rest = tail;
                }
                string.hash(hasher);
            } else if first.is_ascii_digit() {
                let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                let number = rest[..end].parse().unwrap_or_default();
                rest = &rest[end..];
                if key == "spawned_at" {
                    started = Some(number);
                } else {
                    self.hash_number(key, number, hasher);
                }
            } else {
                first.hash(hasher);
                rest = &rest[first.len_utf8()..];
            }
        }
    }

    fn hash_number(&self, key: &str, number: u64, hasher: &mut DefaultHasher) {
        match key {
            // Counters that nothing depends on, and stamps: no walk outlasts the window.
            "restarts" | "pid" | "clock_ms" | "stamps_ms" | "launch_ms" => {}
            "generation" | "last_generation" | "vacate" | "prove" => {
                self.last.wrapping_sub(number).hash(hasher);
            }
            "release" | "from" => {
                let rank = self.releases.iter().position(|&release| release == number);
                (rank, number % 2).hash(hasher);
            }
            // A wire that was never touched, a replacement that never failed.
            "since" | "retry_at" if number == 0 => {}
            "at" | "until" | "since" | "deadline" | "kill_at" | "give_up_at" | "spawned_at"
            | "look_at" | "retry_at" => {
                number.wrapping_sub(self.now).hash(hasher);
            }
            _ => number.hash(hasher),
        }
    }
}

/// What follows a JSON value without brackets in its strings.
fn without_value(text: &str) -> &str {
    let mut depth = 0usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' | ',' if depth == 0 => return &text[at..],
            '}' | ']' => depth -= 1,
            _ => {}
        }
    }
    ""
}
