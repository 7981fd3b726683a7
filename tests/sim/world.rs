//! One history: the core, in a supervisor that may die between any two effects, on a machine with
//! a keeper.

use std::collections::BTreeMap;

use pmr::policy::{
    Action, Event, Exit, Fact, Fleet, Generation, Moment, Policy, ReleaseId, Rules, SlotId, Ticket,
    Wish, Word,
};

use crate::kernel::{Kernel, LIMIT};
use crate::ledger::{KILL_PATIENCE_MS, Ledger, wish_name};
use crate::limits::Limits;
use crate::plan::{Plan, Stimulus};

/// Far more turns than a history has: the core asks to be called again and again.
const TURNS_MAX: u32 = 20_000;

/// How long after the last fault a history may go on, in milliseconds.
const CALM_MS_MAX: u64 = 24 * 3_600_000;

/// What went wrong, and how it came to it.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) what: String,
    pub(crate) trace: Vec<String>,
}

/// What is known outside of the core, as far as it is recorded with its state.
#[derive(Debug, Clone)]
struct Recorded {
    ledger: Ledger,
    limits: Limits,
}

/// What one turn of the supervisor does after it is recorded.
#[derive(Debug)]
enum Effect {
    Act(Action),
    Acknowledge(Generation),
}

struct World<'a> {
    plan: &'a Plan,
    kernel: Kernel,
    now: u64,
    policy: Option<Policy>,
    recorded: Recorded,
    saved: Option<(String, Recorded)>,
    rules: BTreeMap<ReleaseId, Rules>,
    inbox: Vec<Event>,
    asked: BTreeMap<Ticket, u64>,
    last_ticket: u64,
    /// Effects until the supervisor dies; how long it stays away; whether its state is withheld.
    doom: Option<(u64, u64, bool)>,
    respawn_at: Option<(u64, bool)>,
    turns: u32,
    calm: bool,
    trace: Option<Vec<String>>,
}

type Checked = Result<(), String>;

/// Lives through a plan; with a trace where it is `traced`.
pub(crate) fn run(plan: &Plan, traced: bool) -> Result<(), Wrong> {
    let rules = BTreeMap::from([(ReleaseId(1), plan.rules.clone())]);
    let mut world = World {
        plan,
        kernel: Kernel::new(plan.seed, plan.faults, plan.watched),
        now: 0,
        policy: None,
        recorded: Recorded { ledger: Ledger::new(plan.slots, &[]), limits: Limits::default() },
        saved: None,
        rules,
        inbox: Vec::new(),
        asked: BTreeMap::new(),
        last_ticket: 0,
        doom: None,
        respawn_at: Some((0, false)),
        turns: 0,
        calm: false,
        trace: traced.then(Vec::new),
    };
    let lived = world.live();
    lived.map_err(|what| Wrong { what, trace: world.trace.unwrap_or_default() })
}

impl World<'_> {
    fn line(&mut self, text: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{now:>9} {}", text()));
        }
    }

    fn moment(&self) -> Moment {
        Moment::from_ms(self.now)
    }

    fn live(&mut self) -> Checked {
        let mut stimuli = self.plan.stimuli.iter().copied().peekable();
        loop {
            let stimulus = stimuli.peek().map(|(at, _)| *at);
            let calm_from = (!self.calm).then_some(self.plan.calm_from);
            let deadline = self.policy.as_ref().and_then(Policy::next_deadline);
            let respawn = self.respawn_at.map(|(at, _)| at);
            let due = [self.kernel.next(), stimulus, calm_from, respawn];
            let next = due.into_iter().flatten().chain(deadline.map(Moment::as_ms)).min();
            let Some(next) = next else { return self.judge_end() };
            self.now = self.now.max(next);
            if self.now > self.plan.calm_from.saturating_add(CALM_MS_MAX) {
                return Err("it never comes to rest".to_owned());
            }
            while let Some(stimulus) = stimuli.next_if(|(at, _)| *at <= self.now) {
                self.stimulate(stimulus.1);
            }
            if !self.calm && self.plan.calm_from <= self.now {
                self.line(|| "nothing goes wrong any more".to_owned());
                self.calm = true;
                self.doom = None;
                self.kernel.calm(self.now);
            }
            while let Some(facts) = self.kernel.step(self.now) {
                self.inbox.extend(facts.into_iter().map(Event::Fact));
            }
            self.supervise()?;
        }
    }

    /// Turns of the supervisor until it sleeps or dies.
    fn supervise(&mut self) -> Checked {
        if self.respawn_at.is_some_and(|(at, _)| at <= self.now) {
            self.adopt()?;
        }
        loop {
            let Some(policy) = &self.policy else {
                self.inbox.clear();
                return Ok(());
            };
            let due = policy.next_deadline().is_some_and(|at| at <= self.moment());
            if self.inbox.is_empty() && !due {
                return Ok(());
            }
            self.turn(Vec::new())?;
        }
    }

    fn stimulate(&mut self, stimulus: Stimulus) {
        self.line(|| format!("{stimulus:?}"));
        let slot = |slot: Option<u16>| slot.map(SlotId);
        let wish = match stimulus {
            Stimulus::Start(one) => Wish::Start { slot: slot(one) },
            Stimulus::Stop(one) => Wish::Stop { slot: slot(one) },
            Stimulus::Restart(one) => {
                let same = self.now.is_multiple_of(4).then(|| self.rules.last_key_value());
                let same = same.flatten().map(|(release, rules)| (*release, rules.clone()));
                let (release, rules) = same.unwrap_or_else(|| self.next_release());
                Wish::Restart { slot: slot(one), release, rules }
            }
            Stimulus::Reload { broken } => {
                let (release, rules) = self.next_release();
                if broken {
                    self.kernel.break_release(release);
                }
                Wish::Reload { release, rules }
            }
            Stimulus::Scale(count) => Wish::Scale { count },
            Stimulus::Signal if self.now.is_multiple_of(2) => {
                let (release, rules) = self.next_limits();
                Wish::Adjust { release, rules }
            }
            Stimulus::Signal => Wish::Signal { slot: None, signal: 10 },
            Stimulus::Reset(one) => Wish::Reset { slot: slot(one) },
            Stimulus::ShutDown { now } => {
                self.kernel.stopping = Some(now);
                Wish::ShutDown { now }
            }
            Stimulus::CrashAll => return self.kernel.crash_all(self.now),
            Stimulus::LeakAll => return self.kernel.leak_all(self.now),
            Stimulus::Die { effects, down_ms, reduced } => {
                self.doom = Some((effects, down_ms, reduced));
                return;
            }
            Stimulus::Jump { ms } => {
                self.now += ms;
                self.asked.values_mut().for_each(|at| *at += ms);
                return;
            }
        };
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.inbox.push(Event::Wish(Some(ticket), wish));
    }

    /// A release whose memory is limited where that of the last one is not, or the other way
    /// round; or one with the same limits.
    fn next_limits(&mut self) -> (ReleaseId, Rules) {
        let last = self.rules.values().next_back().and_then(|rules| rules.memory_limit);
        let (release, mut rules) = self.next_release();
        if !self.now.is_multiple_of(3) {
            rules.memory_limit = last.xor(Some(LIMIT));
            self.rules.insert(release, rules.clone());
        }
        (release, rules)
    }

    /// A release with the same limits as the first.
    fn next_release(&mut self) -> (ReleaseId, Rules) {
        let last = self.rules.keys().next_back().map_or(0, |release| release.0);
        let release = ReleaseId(last + 1);
        self.rules.insert(release, self.plan.rules.clone());
        (release, self.plan.rules.clone())
    }

    /// One turn of the loop: facts, wishes, a tick; record; carry out.
    fn turn(&mut self, said_before: Vec<Action>) -> Checked {
        self.turns += 1;
        if self.turns > TURNS_MAX {
            return Err("it is called again and again".to_owned());
        }
        if self.turns.is_multiple_of(16) {
            self.hear_stale_facts();
        }
        let mut events = std::mem::take(&mut self.inbox);
        events.sort_by_key(|event| matches!(event, Event::Wish(..)));
        let mut actions = said_before;
        let mut ended = Vec::new();
        for event in events {
            if let Event::Fact(Fact::Exited { generation, .. }) = &event {
                ended.push(Effect::Acknowledge(*generation));
            }
            self.handle(&event, &mut actions)?;
        }
        self.handle(&Event::Tick, &mut actions)?;
        self.judge_turn()?;
        if self.is_doomed() {
            self.die();
            return Ok(());
        }
        self.record()?;
        for effect in actions.into_iter().map(Effect::Act).chain(ended) {
            if self.is_doomed() {
                self.die();
                return Ok(());
            }
            self.perform(effect)?;
        }
        Ok(())
    }

    /// What was said long ago, about an instance that is gone, is said again.
    fn hear_stale_facts(&mut self) {
        let held = |it: &Generation| self.recorded.ledger.instances.contains_key(it);
        let last = self.recorded.ledger.last.0;
        let Some(generation) = (1..=last).map(Generation).rfind(|it| !held(it)) else { return };
        let exit = Exit::Code(1);
        for fact in [
            Fact::Exited { generation, exit },
            Fact::Spawned { generation, pid: 100 },
            Fact::Ready { generation },
            Fact::Cleared { generation },
            Fact::Lost { generation },
        ] {
            self.inbox.push(Event::Fact(fact));
        }
    }

    fn handle(&mut self, event: &Event, actions: &mut Vec<Action>) -> Checked {
        let now = self.moment();
        let Some(policy) = &mut self.policy else { return Ok(()) };
        if let Event::Fact(Fact::Memory { generation, .. }) = event
            && !policy.memory_watched().contains(generation)
        {
            return Ok(());
        }
        if let Event::Wish(Some(ticket), _) = event {
            self.asked.insert(*ticket, self.now);
        }
        let before = policy.status(now);
        if let Event::Fact(fact) = event
            && self.recorded.ledger.is_news(fact)
        {
            self.recorded.limits.take_fact(fact, &before, &self.plan.rules);
        }
        let out = self.recorded.ledger.handle(policy, now, event)?;
        let after = policy.status(now);
        let said = self.recorded.limits.judge(event, &out, [&before, &after], &self.plan.rules);
        if self.trace.is_some() && (*event != Event::Tick || !out.is_empty()) {
            self.line(|| match event {
                Event::Wish(ticket, wish) => format!("< {ticket:?} {}", wish_name(wish)),
                Event::Tick | Event::Fact(_) => format!("< {event:?}"),
            });
            for action in &out {
                self.line(|| match action {
                    Action::Note(note) => format!("    {:?} {}", note.slot, note.reason),
                    _ => format!("  > {action:?}"),
                });
            }
        }
        actions.extend(out);
        said
    }

    /// What must hold after each turn.
    fn judge_turn(&mut self) -> Checked {
        let Some(policy) = &self.policy else { return Ok(()) };
        let now = self.moment();
        if policy.next_deadline().is_some_and(|at| at <= now) {
            return Err("it is due again at the same moment".to_owned());
        }
        let timeout = u64::try_from(self.plan.rules.stop_timeout.as_millis()).unwrap_or(u64::MAX);
        // Asked, killed, and then cleared away: it is patient twice.
        let patience = timeout + 2 * KILL_PATIENCE_MS;
        for (ticket, asked) in &self.recorded.ledger.tickets {
            let waited = self.asked.get(ticket).map_or(0, |at| self.now - at);
            if asked.what == "stop" && waited > patience {
                return Err(format!("a stop takes {waited} ms"));
            }
        }
        // One turn in eight: what is saved is all there is, and another tick changes nothing.
        if !self.turns.is_multiple_of(8) {
            return Ok(());
        }
        let mut copy = policy.clone();
        let mut out = Vec::new();
        copy.handle(now, Event::Tick, &mut out);
        if !out.is_empty() || copy.saved() != policy.saved() {
            return Err(format!("a second tick at the same moment: {out:?}"));
        }
        let fleet = parse(&write(policy.saved())?)?;
        let adopted = Policy::adopt(fleet, self.rules_of(policy), now, &mut Vec::new());
        if adopted.saved() == policy.saved() {
            return Ok(());
        }
        Err(format!("adopted as something else: {}", write(adopted.saved())?))
    }

    fn rules_of(&self, policy: &Policy) -> BTreeMap<ReleaseId, Rules> {
        let held = policy.releases();
        self.rules.iter().filter(|it| held.contains(it.0)).map(|(r, it)| (*r, it.clone())).collect()
    }

    fn record(&mut self) -> Checked {
        if let Some(policy) = &self.policy {
            self.saved = Some((write(policy.saved())?, self.recorded.clone()));
        }
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Checked {
        let now = self.now;
        match effect {
            Effect::Acknowledge(generation) => self.kernel.acknowledge(generation),
            Effect::Act(action) => match action {
                Action::Spawn { slot, generation, release } => {
                    let limit = self.rules.get(&release).and_then(|rules| rules.memory_limit);
                    let answer = self.kernel.spawn(now, slot, generation, release, limit)?;
                    self.inbox.push(Event::Fact(answer));
                }
                Action::Signal { generation } => {
                    let answer = self.kernel.ask(now, generation);
                    self.inbox.push(Event::Fact(answer));
                }
                Action::Kill { generation } => self.kernel.kill(now, generation),
                Action::Clear { generation } => self.kernel.clear(now, generation),
                Action::Wire { generation, order } => self.kernel.order(now, generation, order),
                Action::Send { .. }
                | Action::Adjust { .. }
                | Action::Announce(_)
                | Action::Note(_)
                | Action::Reply { .. } => {}
            },
        }
        Ok(())
    }

    /// Whether the supervisor dies before its next effect.
    fn is_doomed(&mut self) -> bool {
        match &mut self.doom {
            None => false,
            Some((0, ..)) => true,
            Some((effects, ..)) => {
                *effects -= 1;
                false
            }
        }
    }

    fn die(&mut self) {
        let (_, down_ms, reduced) = self.doom.take().unwrap_or_default();
        self.line(|| "the supervisor dies".to_owned());
        self.policy = None;
        self.inbox.clear();
        self.respawn_at = Some((self.now + down_ms, reduced));
    }

    /// The next supervisor takes over what lives.
    fn adopt(&mut self) -> Checked {
        let reduced = self.respawn_at.take().is_some_and(|(_, reduced)| reduced);
        let now = self.moment();
        let mut said = Vec::new();
        let fleet = match &self.saved {
            Some(_) if reduced => self.reduce(now),
            Some((text, recorded)) => {
                self.recorded = recorded.clone();
                parse(text)?
            }
            None => {
                self.recorded.ledger = Ledger::new(self.plan.slots, &[]);
                Fleet::new(self.plan.slots, ReleaseId(1))
            }
        };
        let held = fleet.releases();
        let rules = self.rules.iter().filter(|it| held.contains(it.0));
        let rules = rules.map(|(release, rules)| (*release, rules.clone())).collect();
        let policy = Policy::adopt(fleet, rules, now, &mut said);
        self.line(|| format!("adopted (reduced: {reduced}): {said:?}"));
        self.recorded.ledger.adopt(&said, now)?;
        self.inbox.clear();
        let held: Vec<Generation> = policy.generations().into_iter().map(|it| it.1).collect();
        for &generation in &held {
            self.inbox.extend(self.kernel.tell(generation).into_iter().map(Event::Fact));
        }
        let strangers: Vec<Generation> =
            self.kernel.processes.keys().copied().filter(|it| !held.contains(it)).collect();
        for generation in strangers {
            match self.kernel.processes.get(&generation).and_then(|process| process.exit) {
                Some(exit) => self.inbox.push(Event::Fact(Fact::Exited { generation, exit })),
                None => self.kernel.kill(self.now, generation),
            }
        }
        if let Some(now) = self.kernel.stopping {
            self.inbox.push(Event::Wish(None, Wish::ShutDown { now }));
        }
        self.policy = Some(policy);
        self.turn(said)
    }

    /// A fleet of what the keeper's table tells, and a ledger to it.
    fn reduce(&mut self, now: Moment) -> Fleet {
        let exited = self.kernel.processes.iter().filter(|it| it.1.exit.is_some());
        for generation in exited.map(|it| *it.0).collect::<Vec<_>>() {
            self.kernel.acknowledge(generation);
        }
        let survivors = self.kernel.survivors();
        let (slots, ready) = (self.plan.slots, self.recorded.ledger.is_announced());
        let fleet = Fleet::reduced(slots, ReleaseId(1), &survivors, Generation(0), ready, now);
        let held: Vec<_> = fleet.generations().collect();
        self.recorded.ledger = Ledger::new(self.plan.slots, &held);
        self.recorded.limits = Limits::default();
        fleet
    }

    /// Nothing is left to happen.
    fn judge_end(&self) -> Checked {
        let Some(policy) = &self.policy else { return Err("no supervisor is left".to_owned()) };
        let held: Vec<Generation> = policy.generations().into_iter().map(|it| it.1).collect();
        for (generation, process) in &self.kernel.processes {
            if !held.contains(generation) {
                return Err(format!("left behind: generation {generation}, {process:?}"));
            }
            if process.exit.is_some() {
                return Err(format!("the exit of generation {generation} is not acknowledged"));
            }
        }
        self.judge_memory(policy)?;
        self.recorded.ledger.judge_calm(policy, self.moment())
    }

    /// Nobody is over its limit but who was given up, and nobody is throttled for it.
    fn judge_memory(&self, policy: &Policy) -> Checked {
        if !self.plan.watched {
            return Ok(());
        }
        let limited = policy.memory_watched();
        let status = policy.status(self.moment());
        let slots = status.slots.iter().filter(|slot| slot.word == Word::Online);
        let online: Vec<_> =
            slots.flat_map(|slot| &slot.instance).map(|it| it.generation).collect();
        for (generation, process) in self.kernel.alive() {
            let may_have_one = limited.contains(&generation) || !online.contains(&generation);
            if process.wire.is_some() && !may_have_one {
                return Err(format!("generation {generation} has a wire and no limit"));
            }
        }
        for (generation, process) in self.kernel.alive().filter(|it| it.1.is_over()) {
            if process.wire.is_some() {
                return Err(format!("generation {generation} is left throttled"));
            }
            let is_limited = limited.contains(&generation);
            if is_limited && !is_left_over_its_limit(policy, process.slot) {
                return Err(format!("the leak of generation {generation} was lost"));
            }
        }
        Ok(())
    }
}

fn write(fleet: &Fleet) -> Result<String, String> {
    serde_json::to_string(fleet).map_err(|error| error.to_string())
}

fn parse(text: &str) -> Result<Fleet, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// Whether the core has given up replacing the instance of a slot for its memory.
fn is_left_over_its_limit(policy: &Policy, slot: SlotId) -> bool {
    let saved = serde_json::to_value(policy.saved()).unwrap_or_default();
    let pointer = format!("/slots/{slot}/memory/given_up");
    saved.pointer(&pointer).is_some_and(|given_up| given_up == true)
}
