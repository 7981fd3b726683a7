//! A second opinion about the core: what it may say, judged by what it was told and has said, and
//! by nothing it keeps for itself.

use std::collections::{BTreeMap, BTreeSet};

use pmr::policy::{
    Action, Event, Fact, Generation, Moment, Note, Outcome, Policy, Reason, SlotId, Status, Ticket,
    UnitState, WireOrder, Wish, Word,
};

/// The core's patience with what cannot be killed, in milliseconds.
pub(crate) const KILL_PATIENCE_MS: u64 = 10_000;

/// What an instance is known to be, outside of the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// `Spawn` was said.
    Said,
    /// `Spawned` was answered.
    Alive,
    /// Its end was told.
    Ended,
}

/// One instance that is not cleared away.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) slot: SlotId,
    pub(crate) known: Known,
    /// What this supervisor has said about it.
    said: BTreeMap<Order, Moment>,
    killed_at: Option<Moment>,
    cleared_at: Option<Moment>,
}

/// What is said about an instance at most once by each supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Order {
    Signal,
    Kill,
    Clear,
}

/// A wish that waits for its answer.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) what: &'static str,
    /// The slots it is about.
    slots: Vec<SlotId>,
    /// The last generation when it was asked, and which of them had not ended.
    last: Generation,
    alive: BTreeMap<Generation, SlotId>,
}

/// What was told and said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    pub(crate) instances: BTreeMap<Generation, Entry>,
    pub(crate) tickets: BTreeMap<Ticket, Asked>,
    pub(crate) last: Generation,
    /// The last of each slot.
    spawned: BTreeMap<SlotId, Generation>,
    /// Slots somebody stopped; no spawn until somebody starts them.
    stopped: BTreeSet<SlotId>,
    /// Slots a restart may start although somebody stopped them.
    restarting: BTreeSet<SlotId>,
    /// Slots that are scaled away.
    leaving: BTreeSet<SlotId>,
    shutting_down: bool,
    slots: u16,
    /// What the service manager was told last, by the supervisor of the moment.
    announced: Option<UnitState>,
}

/// The word for a wish in a trace.
pub(crate) fn wish_name(wish: &Wish) -> &'static str {
    match wish {
        Wish::Start { .. } => "start",
        Wish::Stop { .. } => "stop",
        Wish::Restart { .. } => "restart",
        Wish::Reload { .. } => "reload",
        Wish::Adjust { .. } => "adjust",
        Wish::Scale { .. } => "scale",
        Wish::Signal { .. } => "signal",
        Wish::Reset { .. } => "reset",
        Wish::ShutDown { .. } => "shutdown",
    }
}

type Checked = Result<(), String>;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(what()) }
}

impl Ledger {
    /// A ledger of an app with that many slots, of which nothing is known but what lives.
    pub(crate) fn new(slots: u16, survivors: &[(SlotId, Generation)]) -> Self {
        let mut ledger = Self { slots, ..Self::default() };
        for &(slot, generation) in survivors {
            let entry = Entry {
                slot,
                known: Known::Alive,
                said: BTreeMap::new(),
                killed_at: None,
                cleared_at: None,
            };
            ledger.last = ledger.last.max(generation);
            ledger.instances.insert(generation, entry);
        }
        ledger
    }

    /// Feeds the core one event and judges what it says to it.
    pub(crate) fn handle(
        &mut self,
        policy: &mut Policy,
        now: Moment,
        event: &Event,
    ) -> Result<Vec<Action>, String> {
        self.take_event(event);
        let over = policy.over().is_some();
        let mut out = Vec::new();
        let told = event.clone();
        let call = std::panic::AssertUnwindSafe(|| policy.handle(now, told, &mut out));
        std::panic::catch_unwind(call).map_err(|panic| match panic.downcast_ref::<String>() {
            Some(text) => format!("the core panicked: {text}"),
            None => format!("the core panicked: {:?}", panic.downcast_ref::<&str>()),
        })?;
        if let Event::Wish(ticket, wish) = event {
            let refused = |action: &Action| {
                matches!(action, Action::Reply { ticket: whose, outcome: Outcome::Refused(_) }
                    if Some(*whose) == *ticket)
            };
            if !over && !out.iter().any(refused) {
                self.take_wish(wish);
            }
        }
        self.judge_answers(&out, &policy.status(now))?;
        self.judge(&out, now)?;
        self.compare(policy, now)?;
        Ok(out)
    }

    /// Whether a fact is told for the first time, as far as it may end an instance.
    pub(crate) fn is_news(&self, fact: &Fact) -> bool {
        let entry = self.instances.get(&fact.generation());
        entry.is_some_and(|entry| entry.known != Known::Ended)
    }

    fn take_event(&mut self, event: &Event) {
        match event {
            Event::Tick => {}
            Event::Wish(ticket, wish) => {
                if let Some(ticket) = ticket {
                    self.tickets.insert(*ticket, self.asked(wish));
                }
            }
            Event::Fact(fact) => self.take_fact(fact),
        }
    }

    fn asked(&self, wish: &Wish) -> Asked {
        let slot = match wish {
            Wish::Start { slot }
            | Wish::Stop { slot }
            | Wish::Restart { slot, .. }
            | Wish::Signal { slot, .. }
            | Wish::Reset { slot } => *slot,
            Wish::Reload { .. }
            | Wish::Adjust { .. }
            | Wish::Scale { .. }
            | Wish::ShutDown { .. } => None,
        };
        let alive = self.instances.iter().filter(|it| it.1.known != Known::Ended);
        Asked {
            what: wish_name(wish),
            slots: self.targets(slot),
            last: self.last,
            alive: alive.map(|it| (*it.0, it.1.slot)).collect(),
        }
    }

    fn targets(&self, slot: Option<SlotId>) -> Vec<SlotId> {
        match slot {
            Some(slot) => vec![slot],
            None => (0..self.slots).map(SlotId).filter(|it| !self.leaving.contains(it)).collect(),
        }
    }

    fn take_fact(&mut self, fact: &Fact) {
        let generation = fact.generation();
        let Some(entry) = self.instances.get_mut(&generation) else { return };
        match fact {
            Fact::Spawned { .. } if entry.known == Known::Said => entry.known = Known::Alive,
            Fact::Exited { .. } | Fact::SpawnFailed { .. } | Fact::Lost { .. } => {
                entry.known = Known::Ended;
            }
            Fact::Cleared { .. } if entry.cleared_at.is_some() => {
                self.instances.remove(&generation);
            }
            Fact::Spawned { .. }
            | Fact::Cleared { .. }
            | Fact::Ready { .. }
            | Fact::Signalled { .. }
            | Fact::ExecFailed { .. }
            | Fact::Memory { .. }
            | Fact::Wire { .. } => {}
        }
    }

    fn take_wish(&mut self, wish: &Wish) {
        match wish {
            Wish::Start { slot } => {
                for slot in self.targets(*slot) {
                    self.stopped.remove(&slot);
                    self.restarting.remove(&slot);
                }
            }
            Wish::Restart { slot, .. } => {
                let targets = self.targets(*slot);
                self.restarting.extend(targets.iter().filter(|it| self.stopped.contains(it)));
            }
            Wish::Stop { slot } => {
                for slot in self.targets(*slot) {
                    self.stopped.insert(slot);
                    self.restarting.remove(&slot);
                }
            }
            Wish::Scale { count } => {
                // One that comes back is as good as new.
                self.stopped.retain(|slot| slot.0 >= *count || !self.leaving.contains(slot));
                self.leaving = (*count..self.slots).map(SlotId).collect();
                self.slots = self.slots.max(*count);
            }
            Wish::ShutDown { .. } => self.shutting_down = true,
            Wish::Reload { .. }
            | Wish::Adjust { .. }
            | Wish::Signal { .. }
            | Wish::Reset { .. } => {}
        }
    }

    fn judge(&mut self, actions: &[Action], now: Moment) -> Checked {
        for action in actions {
            match action {
                Action::Spawn { slot, generation, .. } => self.judge_spawn(*slot, *generation)?,
                Action::Signal { generation } => {
                    let entry = self.running(*generation, "signal")?;
                    ensure(entry.known == Known::Alive, || {
                        format!("signal to {generation} before its spawn was answered")
                    })?;
                    let first = entry.said.insert(Order::Signal, now).is_none();
                    ensure(first, || format!("second signal to {generation}"))?;
                }
                Action::Send { generation, .. } => drop(self.running(*generation, "send")?),
                Action::Kill { generation } => {
                    let entry = self.running(*generation, "kill")?;
                    let first = entry.said.insert(Order::Kill, now).is_none();
                    ensure(first, || format!("second kill of {generation}"))?;
                    entry.killed_at.get_or_insert(now);
                }
                Action::Clear { generation } => self.judge_clear(*generation, now)?,
                Action::Wire { generation, order } => self.judge_wire(*generation, *order)?,
                Action::Announce(state) => {
                    ensure(self.announced != Some(*state), || format!("{state:?} told twice"))?;
                    ensure(self.announced != Some(UnitState::Stopping), || {
                        format!("{state:?} after the stop")
                    })?;
                    self.announced = Some(*state);
                }
                Action::Adjust { .. } => {}
                Action::Note(note) => self.judge_note(note, now)?,
                Action::Reply { ticket, .. } => {
                    let known = self.tickets.remove(ticket).is_some();
                    ensure(known, || format!("an answer to nobody: {ticket:?}"))?;
                }
            }
        }
        Ok(())
    }

    /// An answer is about what came after the question.
    fn judge_answers(&self, actions: &[Action], status: &Status) -> Checked {
        for action in actions {
            let Action::Reply { ticket, outcome } = action else { continue };
            let Some(asked) = self.tickets.get(ticket) else { continue };
            let targets = status.slots.iter().filter(|it| asked.slots.contains(&it.slot));
            for slot in targets {
                let tried = self.spawned.get(&slot.slot).is_some_and(|&last| last > asked.last);
                let ran = asked.alive.iter().any(|(generation, its_slot)| {
                    let entry = self.instances.get(generation);
                    let lives = |it: &Entry| it.known != Known::Ended && it.killed_at.is_none();
                    *its_slot == slot.slot && !entry.is_some_and(lives)
                });
                let wrong = match (asked.what, outcome) {
                    ("restart", Outcome::Done) => !tried,
                    ("start", Outcome::Failed(failed)) if *failed == slot.slot => !tried && !ran,
                    _ => false,
                };
                ensure(!wrong, || format!("{} of slot {} is {outcome}", asked.what, slot.slot))?;
            }
        }
        Ok(())
    }

    /// Nobody is watched before its spawn was answered, nor after its end; a supervisor that adopts
    /// may look at one whose spawn the one before has not recorded.
    fn judge_wire(&mut self, generation: Generation, order: WireOrder) -> Checked {
        let entry = self.running(generation, "an order about the wire")?;
        let may_be = order == WireOrder::Look || entry.known == Known::Alive;
        ensure(may_be, || format!("{order:?} before {generation} is there"))
    }

    fn running(&mut self, generation: Generation, what: &str) -> Result<&mut Entry, String> {
        let entry = self.instances.get_mut(&generation);
        entry
            .filter(|entry| entry.known != Known::Ended)
            .ok_or_else(|| format!("{what} to generation {generation}, which is gone"))
    }

    fn judge_spawn(&mut self, slot: SlotId, generation: Generation) -> Checked {
        ensure(generation > self.last, || format!("generation {generation} is used again"))?;
        self.last = generation;
        self.spawned.insert(slot, generation);
        ensure(!self.shutting_down, || "a start while all is stopped".to_owned())?;
        ensure(!self.leaving.contains(&slot), || format!("a start in leaving slot {slot}"))?;
        if self.restarting.remove(&slot) {
            self.stopped.remove(&slot);
        }
        ensure(!self.stopped.contains(&slot), || format!("a start in stopped slot {slot}"))?;
        let held = self.instances.values().filter(|entry| entry.slot == slot).count();
        ensure(held < 2, || format!("a third instance in slot {slot}"))?;
        let entry = Entry {
            slot,
            known: Known::Said,
            said: BTreeMap::new(),
            killed_at: None,
            cleared_at: None,
        };
        self.instances.insert(generation, entry);
        Ok(())
    }

    fn judge_clear(&mut self, generation: Generation, now: Moment) -> Checked {
        let entry = self.instances.get_mut(&generation);
        let Some(entry) = entry.filter(|entry| entry.known == Known::Ended) else {
            return Err(format!("clear of generation {generation}, which has not ended"));
        };
        let first = entry.said.insert(Order::Clear, now).is_none();
        ensure(first, || format!("second clear of {generation}"))?;
        entry.cleared_at.get_or_insert(now);
        Ok(())
    }

    fn judge_note(&mut self, note: &Note, now: Moment) -> Checked {
        let Some(generation) = note.generation else { return Ok(()) };
        if let Reason::KillTimeout { timeout } = &note.reason {
            let entry = self.instances.get(&generation);
            let asked = entry.and_then(|entry| entry.said.get(&Order::Signal));
            let just_asked = asked.is_some_and(|&at| at == now) && !timeout.is_zero();
            ensure(!just_asked, || format!("no time for generation {generation} to drain"))?;
        }
        if note.reason != Reason::Unkillable {
            return Ok(());
        }
        let Some(entry) = self.instances.remove(&generation) else {
            return Err(format!("gave up generation {generation}, which was gone"));
        };
        let by_this_supervisor = entry.said.get(&Order::Clear).or(entry.said.get(&Order::Kill));
        ensure(by_this_supervisor.is_some_and(|&at| at < now), || {
            format!("gave up generation {generation} without trying")
        })?;
        let since = entry.cleared_at.or(entry.killed_at);
        let waited = since.map(|since| now.as_ms().saturating_sub(since.as_ms()));
        ensure(waited.is_some_and(|waited| waited >= KILL_PATIENCE_MS), || {
            format!("gave up generation {generation} after {waited:?} ms")
        })
    }

    /// Compares with what the core says it holds.
    fn compare(&mut self, policy: &Policy, now: Moment) -> Checked {
        let status = policy.status(now);
        self.slots = u16::try_from(status.slots.len()).map_err(|error| error.to_string())?;
        self.leaving.retain(|slot| slot.0 < self.slots);
        self.stopped.retain(|slot| slot.0 < self.slots);
        self.restarting.retain(|slot| slot.0 < self.slots);
        let held: BTreeSet<Generation> = policy.generations().into_iter().map(|it| it.1).collect();
        let known: BTreeSet<Generation> = self.instances.keys().copied().collect();
        ensure(held == known, || format!("the core holds {held:?}, there are {known:?}"))?;
        for slot in &status.slots {
            let serves = |word| matches!(word, Word::Launching | Word::Online);
            let two = slot.instance.iter().chain(&slot.other).filter(|it| serves(it.word)).count();
            let replaced = status.roll.is_some_and(|(_, at)| at == Some(slot.slot));
            ensure(two < 2 || replaced, || format!("two instances serve in slot {}", slot.slot))?;
            let (unstable, limit) = slot.unstable;
            ensure(unstable <= limit, || format!("{unstable} of {limit} unstable exits"))?;
        }
        ensure(policy.over().is_none() || held.is_empty(), || "over, and holds one".to_owned())?;
        ensure(policy.over().is_none() || self.tickets.is_empty(), || {
            format!("over, and did not answer {:?}", self.tickets)
        })
    }

    /// A supervisor died and the next one goes on: it may say again what it had said, and whoever
    /// waited for an answer is told by the broken connection.
    pub(crate) fn adopt(&mut self, said_again: &[Action], now: Moment) -> Checked {
        self.tickets.clear();
        self.announced = None;
        for entry in self.instances.values_mut() {
            entry.said.clear();
        }
        self.judge(said_again, now)
    }

    /// Whether a person wants this slot to run; nothing where only a restart might have come to it.
    pub(crate) fn is_wanted(&self, slot: SlotId) -> Option<bool> {
        let stopped = self.stopped.contains(&slot) && !self.restarting.contains(&slot);
        if self.shutting_down || self.leaving.contains(&slot) || stopped {
            return Some(false);
        }
        (!self.restarting.contains(&slot)).then_some(true)
    }

    /// Whether the app was said to be ready.
    pub(crate) fn is_announced(&self) -> bool {
        matches!(self.announced, Some(UnitState::Ready | UnitState::Reloading))
    }

    /// Checks what must be so when nothing is left to happen.
    pub(crate) fn judge_calm(&self, policy: &Policy, now: Moment) -> Checked {
        ensure(self.tickets.is_empty(), || format!("never answered: {:?}", self.tickets))?;
        let status = policy.status(now);
        ensure(!self.shutting_down || policy.over().is_some(), || {
            "a shutdown that never ends".to_owned()
        })?;
        ensure(status.roll.is_none(), || "a roll that never ends".to_owned())?;
        for slot in &status.slots {
            let finished = slot.word == Word::Stopped && is_finished(policy, slot.slot);
            let rests = match self.is_wanted(slot.slot) {
                Some(true) => slot.word == Word::Online || slot.word == Word::Errored || finished,
                Some(false) => slot.word == Word::Stopped && slot.instance.is_none() && !finished,
                None => matches!(slot.word, Word::Online | Word::Errored | Word::Stopped),
            };
            ensure(rests, || {
                let wanted = self.is_wanted(slot.slot);
                format!("slot {} is left {} (wanted: {wanted:?})", slot.slot, slot.word)
            })?;
            ensure(slot.other.is_none(), || format!("slot {} is left with two", slot.slot))?;
        }
        let ready = status.slots.iter().any(|slot| slot.word == Word::Online);
        ensure(self.is_announced() || !ready || self.shutting_down, || {
            "an instance is online and ready was never announced".to_owned()
        })
    }
}

/// Whether a slot that is shown as stopped is so by itself.
fn is_finished(policy: &Policy, slot: SlotId) -> bool {
    let saved = serde_json::to_value(policy.saved()).unwrap_or_default();
    saved.pointer(&format!("/slots/{slot}/current")).is_some_and(|current| current == "finished")
}
