//! Memory limits: who leaks, who only fills the page cache, and when a leak is replaced.
//!
//! Where the kernel watches an instance, `memory.high` is a trip-wire at `max_memory_restart`. It
//! is lifted with the first event, since it would freeze whoever has to drain, and what the
//! instance holds decides what follows:
//!
//! ```text
//!            ┌────────────── it stands ───────────────┐
//!            ▼                                        │
//!  spawn ─► Armed ──pressed: lift─┬─ page cache ─► Held ──time──► Arming
//!            │                    │                 │  ▲             │
//!            │                    └─ unreclaimable  │  │ less again  │ over the limit
//!            │                       ≥ the limit ─► Leaking ◄────────┘
//!            ▼                                        │
//!           Off ◄── replacing does not help ──────────┴─► replaced, one at a time
//! ```
//!
//! `Held`: the cache above four fifths of the limit is reclaimed, and the wire stays away for a
//! second, twice as long each time it is touched again, up to a minute. The wire says nothing
//! meanwhile, so what the instance holds is looked at: at the moment its growth would take it over
//! the limit, and once a second. `Leaking`: it is looked at for its growth. Where that reaches
//! `memory_max` before a replacement can be online, it is stopped first, if another slot serves.
//!
//! Where the kernel does not watch, memory is sampled, and the same decision is made.
//!
//! Replacements for memory have a budget of their own, apart from crashes.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::action::{Action, Note};
use super::fleet::Scene;
use super::id::{Generation, SlotId};
use super::instance::{Instance, Turn};
use super::reason::{Reason, RollKind};
use super::roll::Roll;
use super::rules::{Rules, rules_of};
use super::slot::{Goal, Slot};
use super::time::{Moment, whole_ms};

/// So many replacements in a row, each within `min_uptime` of being online, mean that the limit is
/// below what the app needs.
pub(super) const QUICK_REPLACEMENTS_MAX: u8 = 3;

/// How long the wire stays away after the first touch, and at most; a touch after so long a quiet
/// is a first one again. By the measurements that the design is from, a run through a large file
/// is over by then or wakes pmr a few times.
const HOLD_MS_MIN: u64 = 1000;
const HOLD_MS_MAX: u64 = 60_000;

/// When what was just seen is looked at again at the earliest: the kernel sums a group's counters
/// up that often only, and a shorter distance gives no growth to reckon with.
const LOOK_MS_MIN: u64 = 100;

/// And at the latest.
const LOOK_MS_MAX: u64 = 1000;

/// A replacement that failed is tried again after so long, twice as long each time.
const RETRY_MS_MIN: u64 = 1000;
const RETRY_MS_MAX: u64 = 60_000;

/// The part of the limit that may be missing from what is counted: 2 CPUs are 0.5 MB.
const REMNANT_PART: u64 = 64;

/// What an instance should have left before `memory_max` when its drain begins.
const DRAIN_MS: u64 = 1000;

/// What an instance holds with all it started, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// What no reclaim gets back: anon, shared memory, the kernel's, swap.
    pub unreclaimable: u64,
    /// Memory of its own.
    pub anon: u64,
    /// Page cache and shared memory.
    pub file: u64,
    /// What the kernel holds for it.
    pub kernel: u64,
    /// What was swapped out.
    pub swap: u64,
    /// All that is charged to it, without swap.
    pub current: u64,
}

impl Split {
    /// Whether it is over `limit` as far as can be counted, where the wire was touched and there is
    /// no cache to speak of. The kernel charges in batches of 64 pages a CPU, and `memory.stat` is
    /// behind by as many (mm/memcontrol.c): the parts add up to less than the whole.
    fn fills(&self, limit: u64) -> bool {
        let remnant = limit.checked_div(REMNANT_PART).unwrap_or_default();
        self.unreclaimable >= limit
            || self.cache() < remnant && self.current.saturating_add(remnant) >= limit
    }

    /// What a reclaim could get back.
    fn cache(&self) -> u64 {
        self.current.saturating_sub(self.unreclaimable.saturating_sub(self.swap))
    }

    /// How much cache there is above four fifths of `limit`.
    fn cache_above(&self, limit: u64) -> u64 {
        let fifth = limit.checked_div(5).unwrap_or_default();
        self.current.saturating_sub(limit.saturating_sub(fifth)).min(self.cache())
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} unreclaimable (anon {}, file {}, kernel {}, swap {})",
            Size(self.unreclaimable),
            Size(self.anon),
            Size(self.file),
            Size(self.kernel),
            Size(self.swap)
        )
    }
}

/// A size of which none is just 0.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { write!(f, "0") } else { crate::spec::Bytes(self.0).fmt(f) }
    }
}

/// What to do to the trip-wire of an instance, or to learn about it. Where the kernel does not
/// watch it, nothing is done and nothing answered, as if it stood and were never touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireOrder {
    /// Take it away at once. No answer: where the group is gone, nobody is held up by it.
    Lift,
    /// Say what the instance holds. Answer: `Seen`.
    Look,
    /// Reclaim so many bytes of it. Answer: `Reclaimed`.
    Reclaim {
        /// How many.
        bytes: u64,
    },
    /// Put it up. Answer: `Armed`.
    Arm {
        /// Where.
        limit: u64,
    },
}

/// What became of a trip-wire, each with what the instance holds at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireNews {
    /// It was touched.
    Pressed(Split),
    /// Answer to `Look`.
    Seen(Split),
    /// Answer to `Reclaim`, however much was got back.
    Reclaimed(Split),
    /// Answer to `Arm`.
    Armed {
        /// What it holds.
        split: Split,
        /// Whether the wire stands.
        stands: bool,
    },
}

/// The trip-wire of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Wire {
    /// It stands.
    Armed { since: Moment, hold_ms: u64 },
    /// It was lifted for page cache.
    Held { until: Moment, look_at: Moment, hold_ms: u64, reclaiming: bool, seen: Seen },
    /// It is being put up again.
    Arming { hold_ms: u64, seen: Seen },
    /// It is lifted, and the instance is to be replaced.
    Leaking { since: Moment, look_at: Moment, hold_ms: u64, seen: Seen, told: bool },
    /// It is lifted for good.
    Off,
}

impl Default for Wire {
    fn default() -> Self {
        Self::Armed { since: Moment::default(), hold_ms: 0 }
    }
}

/// What was last seen of an instance, and its growth between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    split: Split,
    /// The later of the two, and what was unreclaimable then.
    at: Moment,
    held: u64,
    /// Of what is unreclaimable, in bytes a second; one look tells none.
    growth: Option<u64>,
}

impl Seen {
    fn first(at: Moment, split: Split) -> Self {
        Self { split, at, held: split.unreclaimable, growth: None }
    }

    /// Takes a later look. One that follows too soon says nothing about growth.
    fn next(self, at: Moment, split: Split) -> Self {
        let passed_ms = whole_ms(at.since(self.at));
        if passed_ms < LOOK_MS_MIN {
            return Self { split, ..self };
        }
        let held = split.unreclaimable;
        let grown = held.saturating_sub(self.held);
        let growth = grown.saturating_mul(1000).checked_div(passed_ms);
        Self { split, at, held, growth }
    }

    /// When growth takes it to `bytes`, if it grows.
    fn reaches(&self, bytes: u64) -> Option<Moment> {
        let room = bytes.saturating_sub(self.held);
        let ms = room.saturating_mul(1000).checked_div(self.growth?)?;
        Some(self.at.after(Duration::from_millis(ms)))
    }

    /// When to look again, with regard to the moment it reaches `bytes`.
    fn look_at(&self, now: Moment, bytes: Option<u64>) -> Moment {
        let until = bytes.and_then(|bytes| self.reaches(bytes));
        let wait_ms = match self.growth {
            None => LOOK_MS_MIN,
            Some(_) => until.map_or(LOOK_MS_MAX, |until| whole_ms(until.since(now))),
        };
        now.after(Duration::from_millis(wait_ms.clamp(LOOK_MS_MIN, LOOK_MS_MAX)))
    }
}

/// How long the wire stays away, after it stood untouched for `quiet`.
fn next_hold(hold_ms: u64, quiet: Duration) -> u64 {
    if hold_ms == 0 || whole_ms(quiet) >= HOLD_MS_MAX {
        return HOLD_MS_MIN;
    }
    hold_ms.saturating_mul(2).clamp(HOLD_MS_MIN, HOLD_MS_MAX)
}

impl Wire {
    /// When a leaking one reaches `max`.
    pub(super) fn full_at(&self, max: Option<u64>) -> Option<Moment> {
        match self {
            Self::Leaking { seen, .. } => seen.reaches(max?),
            Self::Armed { .. } | Self::Held { .. } | Self::Arming { .. } | Self::Off => None,
        }
    }

    /// The wire of an instance of which nothing is known: it is put up.
    pub(super) fn unknown(now: Moment) -> Self {
        Self::Arming { hold_ms: 0, seen: Seen::first(now, Split::default()) }
    }

    fn held(now: Moment, hold_ms: u64, reclaiming: bool, seen: Seen, limit: u64) -> Self {
        let until = now.after(Duration::from_millis(hold_ms));
        Self::Held { until, look_at: seen.look_at(now, Some(limit)), hold_ms, reclaiming, seen }
    }

    fn leaking(now: Moment, hold_ms: u64, seen: Seen, max: Option<u64>) -> Self {
        let look_at = seen.look_at(now, max);
        Self::Leaking { since: now, look_at, hold_ms, seen, told: false }
    }
}

/// The limit of an instance, and the kernel's cap on it.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    limit: u64,
    max: Option<u64>,
}

impl Bounds {
    fn of(rules: &Rules) -> Option<Self> {
        Some(Self { limit: rules.memory_limit?, max: rules.memory_max })
    }
}

impl Instance {
    fn order(&self, order: WireOrder, turn: &mut Turn<'_>) {
        turn.out.push(Action::Wire { generation: self.generation, order });
    }

    /// Takes what the kernel says of its trip-wire.
    pub(super) fn handle_wire(&mut self, news: WireNews, turn: &mut Turn<'_>) {
        if !self.may_run() {
            return;
        }
        let Some(bounds) = Bounds::of(turn.rules(self.release)) else {
            return self.handle_stray_wire(news, turn);
        };
        match news {
            WireNews::Pressed(split) => self.handle_pressed(split, bounds, turn),
            WireNews::Seen(split) => self.handle_seen(split, bounds, turn),
            WireNews::Reclaimed(split) => {
                if let Wire::Held { reclaiming, .. } = &mut self.wire {
                    *reclaiming = false;
                    self.handle_seen(split, bounds, turn);
                }
            }
            WireNews::Armed { split, stands } => self.handle_armed(split, stands, bounds, turn),
        }
    }

    /// A wire stands for a limit that was taken away while it was put up, or while the instance
    /// drained.
    fn handle_stray_wire(&mut self, news: WireNews, turn: &mut Turn<'_>) {
        match news {
            WireNews::Pressed(_) | WireNews::Armed { stands: true, .. } => {
                self.wire = Wire::Off;
                self.order(WireOrder::Lift, turn);
            }
            WireNews::Seen(_) | WireNews::Reclaimed(_) | WireNews::Armed { stands: false, .. } => {}
        }
    }

    fn handle_pressed(&mut self, split: Split, bounds: Bounds, turn: &mut Turn<'_>) {
        let now = turn.now;
        let (since, hold_ms) = match self.wire {
            Wire::Armed { since, hold_ms } => (since, hold_ms),
            // Touched before its answer.
            Wire::Arming { hold_ms, .. } => (now, hold_ms),
            // From before it was lifted.
            Wire::Held { .. } | Wire::Leaking { .. } | Wire::Off => return,
        };
        self.order(WireOrder::Lift, turn);
        if !self.is_wanted() {
            self.wire = Wire::Off;
            return;
        }
        let hold_ms = next_hold(hold_ms, now.since(since));
        let seen = Seen::first(now, split);
        if split.fills(bounds.limit) {
            self.wire = Wire::leaking(now, hold_ms, seen, bounds.max);
            return;
        }
        let bytes = split.cache_above(bounds.limit);
        self.wire = Wire::held(now, hold_ms, bytes > 0, seen, bounds.limit);
        if bytes > 0 {
            self.order(WireOrder::Reclaim { bytes }, turn);
        }
        if hold_ms == HOLD_MS_MIN {
            turn.note(self.generation, Reason::MemoryCache { split, limit: bounds.limit });
        }
    }

    fn handle_seen(&mut self, split: Split, bounds: Bounds, turn: &mut Turn<'_>) {
        let (now, wanted) = (turn.now, self.is_wanted());
        let is_over = split.unreclaimable >= bounds.limit;
        match &mut self.wire {
            // After an adopt: it may have been touched while nobody looked.
            Wire::Armed { hold_ms, .. } if is_over && wanted => {
                let seen = Seen::first(now, split);
                self.wire = Wire::leaking(now, (*hold_ms).max(HOLD_MS_MIN), seen, bounds.max);
                self.order(WireOrder::Lift, turn);
            }
            Wire::Held { seen, look_at, hold_ms, .. } => {
                *seen = seen.next(now, split);
                if is_over {
                    self.wire = Wire::leaking(now, *hold_ms, *seen, bounds.max);
                } else {
                    *look_at = seen.look_at(now, Some(bounds.limit));
                }
            }
            Wire::Leaking { seen, look_at, hold_ms, .. } => {
                *seen = seen.next(now, split);
                if split.fills(bounds.limit) {
                    *look_at = seen.look_at(now, bounds.max);
                } else {
                    let hold_ms = next_hold(*hold_ms, Duration::ZERO);
                    self.wire = Wire::held(now, hold_ms, false, *seen, bounds.limit);
                }
            }
            Wire::Armed { .. } | Wire::Arming { .. } | Wire::Off => {}
        }
    }

    fn handle_armed(&mut self, split: Split, stands: bool, bounds: Bounds, turn: &mut Turn<'_>) {
        let now = turn.now;
        let Wire::Arming { hold_ms, seen } = self.wire else { return };
        let seen = seen.next(now, split);
        let is_over = split.unreclaimable >= bounds.limit;
        if stands && (is_over || !self.is_wanted()) {
            self.order(WireOrder::Lift, turn);
        }
        self.wire = if !self.is_wanted() {
            Wire::Off
        } else if is_over {
            Wire::leaking(now, hold_ms, seen, bounds.max)
        } else if stands {
            Wire::Armed { since: now, hold_ms }
        } else {
            Wire::held(now, next_hold(hold_ms, Duration::ZERO), false, seen, bounds.limit)
        };
    }

    /// When its wire next needs something. One that ends is left alone.
    pub(super) fn wire_deadline(&self) -> Option<Moment> {
        match self.wire {
            _ if !self.is_wanted() => None,
            Wire::Held { look_at, reclaiming: true, .. } | Wire::Leaking { look_at, .. } => {
                Some(look_at)
            }
            Wire::Held { until, look_at, .. } => Some(until.min(look_at)),
            Wire::Armed { .. } | Wire::Arming { .. } | Wire::Off => None,
        }
    }

    /// Does what is due with its wire.
    pub(super) fn handle_wire_time(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now;
        let Some(Bounds { limit, .. }) = Bounds::of(turn.rules(self.release)) else { return };
        if self.wire_deadline().is_none_or(|at| at > now) {
            return;
        }
        match &mut self.wire {
            Wire::Held { until, reclaiming: false, hold_ms, seen, .. } if *until <= now => {
                self.wire = Wire::Arming { hold_ms: *hold_ms, seen: *seen };
                self.order(WireOrder::Arm { limit }, turn);
            }
            Wire::Held { look_at, .. } | Wire::Leaking { look_at, .. } => {
                *look_at = now.after(Duration::from_millis(LOOK_MS_MAX));
                self.order(WireOrder::Look, turn);
            }
            Wire::Armed { .. } | Wire::Arming { .. } | Wire::Off => {}
        }
    }

    /// Says again what a supervisor that died may have left undone.
    pub(super) fn resume_wire(&self, turn: &mut Turn<'_>) {
        if !self.may_run() {
            return;
        }
        let Some(Bounds { limit, .. }) = Bounds::of(turn.rules(self.release)) else {
            return self.resume_without_limit(turn);
        };
        match self.wire {
            // Also of one whose spawn was not recorded: where it runs, it may have been touched.
            Wire::Armed { .. } => self.order(WireOrder::Look, turn),
            // With the answer to its spawn.
            Wire::Arming { .. } if self.pid.is_none() => {}
            Wire::Held { reclaiming, seen, .. } => {
                self.order(WireOrder::Lift, turn);
                if reclaiming {
                    let bytes = seen.split.cache_above(limit);
                    self.order(WireOrder::Reclaim { bytes }, turn);
                }
            }
            Wire::Arming { .. } => self.order(WireOrder::Arm { limit }, turn),
            Wire::Leaking { .. } | Wire::Off => self.order(WireOrder::Lift, turn),
        }
    }

    /// One may stand all the same: the limit was just taken away, or the state that knew of it
    /// could not be read.
    fn resume_without_limit(&self, turn: &mut Turn<'_>) {
        match self.wire {
            Wire::Armed { .. } => {}
            Wire::Held { .. } | Wire::Arming { .. } | Wire::Leaking { .. } | Wire::Off => {
                if self.pid.is_some() {
                    self.order(WireOrder::Lift, turn);
                }
            }
        }
    }

    fn tell_waiting_leak(&mut self, behind: Option<RollKind>, turn: &mut Turn<'_>) {
        let Some(Bounds { limit, .. }) = Bounds::of(turn.rules(self.release)) else { return };
        let wanted = self.is_wanted();
        if let Wire::Leaking { told, seen, .. } = &mut self.wire
            && wanted
            && !*told
        {
            *told = true;
            let split = seen.split;
            turn.note(self.generation, Reason::MemoryWaits { split, limit, behind });
        }
    }

    /// Its limit is another one: the wire is put up there, or taken away. Of one that is being
    /// spawned with the limit of before, once that is answered.
    pub(super) fn handle_new_limit(&mut self, turn: &mut Turn<'_>) {
        if !self.is_wanted() {
            return;
        }
        let is_limited = Bounds::of(turn.rules(self.release)).is_some();
        self.wire = if is_limited { Wire::unknown(turn.now) } else { Wire::Off };
        if self.pid.is_some() {
            self.move_wire(turn);
        }
    }

    /// It has a process, for which the limit of its spawn may be another by now.
    pub(super) fn handle_spawned_wire(&self, turn: &mut Turn<'_>) {
        match self.wire {
            Wire::Arming { .. } | Wire::Off => self.move_wire(turn),
            Wire::Armed { .. } | Wire::Held { .. } | Wire::Leaking { .. } => {}
        }
    }

    fn move_wire(&self, turn: &mut Turn<'_>) {
        match Bounds::of(turn.rules(self.release)) {
            Some(Bounds { limit, .. }) => self.order(WireOrder::Arm { limit }, turn),
            None => self.order(WireOrder::Lift, turn),
        }
    }

    /// A person has said that what was given up counts again.
    pub(super) fn rearm(&mut self, turn: &mut Turn<'_>) {
        let Some(Bounds { limit, .. }) = Bounds::of(turn.rules(self.release)) else { return };
        if self.wire == Wire::Off && self.is_wanted() {
            self.wire = Wire::unknown(turn.now);
            self.order(WireOrder::Arm { limit }, turn);
        }
    }
}

impl Scene<'_> {
    /// Begins to replace the instance that has leaked for longest, where nothing else is being
    /// rolled: so each has its turn. Says whether it did.
    pub(super) fn begin_memory_roll(&mut self) -> bool {
        while self.fleet.roll.is_none() && !self.fleet.shutting_down {
            let now = self.now;
            let due = |slot: &Slot| leak_of(slot).filter(|_| slot.memory.retry_at <= now);
            let leaks = self.fleet.slots.iter().filter_map(|slot| Some((due(slot)?, slot.id)));
            let Some((_, id)) = leaks.min() else { break };
            if self.decide_on_leak(id) {
                return true;
            }
        }
        self.tell_waiting_leaks();
        false
    }

    /// Whether a replacement begins; where it does not, the instance is left alone from now on.
    fn decide_on_leak(&mut self, id: SlotId) -> bool {
        let slot = self.fleet.slots.get_mut(usize::from(id.0));
        let Some(Wire::Leaking { seen, .. }) =
            slot.as_ref().and_then(|slot| slot.running()).map(|instance| instance.wire)
        else {
            return false;
        };
        let split = seen.split;
        let begun = self.replace_for_memory(id, split.unreclaimable, Some(split));
        self.with_slot(id, |slot, _| {
            if let Some(instance) = slot.running_mut() {
                if let Wire::Leaking { told, .. } = &mut instance.wire {
                    *told = true;
                }
                if !begun {
                    instance.wire = Wire::Off;
                }
            }
        });
        begun
    }

    /// Says once of each leak that waits for its turn that it does.
    fn tell_waiting_leaks(&mut self) {
        let behind = self.fleet.roll.as_ref().map(|roll| roll.kind);
        for id in self.fleet.slot_ids() {
            self.with_slot(id, |slot, turn| {
                for instance in slot.instances_mut() {
                    instance.tell_waiting_leak(behind, turn);
                }
            });
        }
    }

    /// When a replacement that failed is tried again.
    pub(super) fn memory_deadline(fleet: &super::Fleet) -> Option<Moment> {
        if fleet.roll.is_some() || fleet.shutting_down {
            return None;
        }
        fleet.slots.iter().filter_map(|slot| leak_of(slot).map(|_| slot.memory.retry_at)).min()
    }

    /// An instance was sampled. While something is rolled nothing follows: the next sample comes
    /// within a second.
    pub(super) fn handle_sample(&mut self, id: SlotId, generation: Generation, bytes: u64) {
        let Some(slot) = self.fleet.slot(id) else { return };
        let Some(instance) = slot.running().filter(|it| it.generation == generation) else {
            return;
        };
        let limit = rules_of(self.rules, instance.release).memory_limit;
        let due = instance.online_since().is_some() && slot.memory.retry_at <= self.now;
        let free = self.fleet.roll.is_none() && !self.fleet.shutting_down;
        if free && due && limit.is_some_and(|limit| bytes > limit) {
            self.replace_for_memory(id, bytes, None);
        }
    }

    /// Decides about an online instance over its limit, by the budget of its slot.
    fn replace_for_memory(&mut self, id: SlotId, bytes: u64, split: Option<Split>) -> bool {
        let Some(slot) = self.fleet.slots.get_mut(usize::from(id.0)) else { return false };
        let Some(instance) = slot.running() else { return false };
        let (generation, release) = (instance.generation, instance.release);
        let rules = rules_of(self.rules, release);
        let (Some(limit), Some(since)) = (rules.memory_limit, instance.online_since()) else {
            return false;
        };
        let stable = instance.stable_at(since, rules) <= self.now;
        let decision = slot.memory.decide(stable);
        let reason = match decision {
            MemoryDecision::Leave => return false,
            MemoryDecision::GiveUp => Reason::MemoryLimitTooLow { limit },
            MemoryDecision::Replace => {
                slot.restarts = slot.restarts.saturating_add(1);
                self.fleet.roll = Some(Roll {
                    kind: RollKind::Memory,
                    release,
                    since: self.fleet.last_generation,
                    remaining: [id].into(),
                    step: None,
                });
                Reason::MemoryAbove { bytes, limit, split }
            }
        };
        let note = Note { slot: Some(id), generation: Some(generation), reason };
        self.out.push(Action::Note(note));
        decision == MemoryDecision::Replace
    }
}

/// Since when the online instance of a slot leaks.
fn leak_of(slot: &Slot) -> Option<Moment> {
    let instance = slot.running().filter(|_| slot.goal == Goal::Run)?;
    instance.online_since()?;
    match instance.wire {
        Wire::Leaking { since, .. } => Some(since),
        Wire::Armed { .. } | Wire::Held { .. } | Wire::Arming { .. } | Wire::Off => None,
    }
}

/// Whether an instance that leaks can wait for its replacement to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// It can, until then at least.
    Until(Option<Moment>),
    /// It is full before: after so long.
    Over(Duration),
}

/// Reckons with the growth of `old`, and with a boot that takes as long as the longest of the last
/// ones: `newcomer` was spawned for it.
pub(super) fn patience(
    old: &Instance,
    newcomer: &Instance,
    launch_ms: u64,
    rules: &Rules,
    now: Moment,
) -> Patience {
    let Some(full_at) = old.wire.full_at(rules.memory_max) else { return Patience::Until(None) };
    let drain = Duration::from_millis(DRAIN_MS);
    let ready_at = newcomer.spawned_at.after(Duration::from_millis(launch_ms));
    // A boot that takes longer than the last ones is waited for as long as there is room.
    let too_late = full_at < ready_at.after(drain) || full_at <= now.after(drain);
    if too_late {
        return Patience::Over(full_at.since(now));
    }
    let spare = whole_ms(full_at.since(now)).saturating_sub(DRAIN_MS);
    Patience::Until(Some(now.after(Duration::from_millis(spare))))
}

/// What a slot remembers of its replacements for memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryHistory {
    /// Replacements in a row whose instance was not yet stable.
    quick: u8,
    given_up: bool,
    /// Replacements in a row that failed, and when the next one may begin.
    #[serde(default)]
    failed: u32,
    #[serde(default)]
    retry_at: Moment,
}

/// What an instance over its limit leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryDecision {
    /// Replace it.
    Replace,
    /// Say once that replacing does not help.
    GiveUp,
    /// That was said: leave it.
    Leave,
}

impl MemoryHistory {
    /// An instance became stable: it can be replaced again.
    pub(super) fn settle(&mut self) {
        self.quick = 0;
    }

    /// Decides about an instance over its limit. Call it only where a replacement can begin.
    pub(super) fn decide(&mut self, stable: bool) -> MemoryDecision {
        if self.given_up {
            return MemoryDecision::Leave;
        }
        if !stable && self.quick >= QUICK_REPLACEMENTS_MAX {
            self.given_up = true;
            return MemoryDecision::GiveUp;
        }
        self.quick = self.quick.saturating_add(1);
        MemoryDecision::Replace
    }

    /// The replacement failed: it says nothing about the limit, and is tried again later.
    pub(super) fn fail(&mut self, now: Moment) {
        self.quick = self.quick.saturating_sub(1);
        let factor = 1_u64.checked_shl(self.failed).unwrap_or(u64::MAX);
        let wait_ms = RETRY_MS_MIN.saturating_mul(factor).min(RETRY_MS_MAX);
        self.failed = self.failed.saturating_add(1);
        self.retry_at = now.after(Duration::from_millis(wait_ms));
    }

    /// The replacement is done.
    pub(super) fn succeed(&mut self) {
        self.failed = 0;
        self.retry_at = Moment::default();
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryDecision::{GiveUp, Leave, Replace};
    use super::*;

    #[test]
    fn three_quick_replacements_are_the_last() {
        let mut history = MemoryHistory::default();
        let decisions: Vec<_> = (0..6).map(|_| history.decide(false)).collect();
        assert_eq!(decisions, [Replace, Replace, Replace, GiveUp, Leave, Leave]);
    }

    #[test]
    fn a_slow_leak_is_replaced_for_ever() {
        let mut history = MemoryHistory::default();
        for _ in 0..20 {
            history.settle();
            assert_eq!(history.decide(true), MemoryDecision::Replace);
        }
    }

    #[test]
    fn a_replacement_that_fails_is_tried_again_later_and_later() {
        let mut history = MemoryHistory::default();
        let mut now = Moment::from_ms(1000);
        let mut waits = Vec::new();
        for _ in 0..9 {
            assert_eq!(history.decide(false), Replace);
            history.fail(now);
            waits.push(whole_ms(history.retry_at.since(now)));
            now = history.retry_at;
        }
        assert_eq!(waits, [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000]);
        history.succeed();
        assert_eq!(history.retry_at, Moment::default());
    }

    #[test]
    fn holds_double_up_to_a_minute_and_begin_again_after_a_quiet_one() {
        let short = Duration::from_secs(1);
        let mut hold = 0;
        let holds: Vec<u64> = (0..8)
            .map(|_| {
                hold = next_hold(hold, short);
                hold
            })
            .collect();
        assert_eq!(holds, [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(next_hold(hold, Duration::from_secs(59)), 60_000);
        assert_eq!(next_hold(hold, Duration::from_mins(1)), 1000);
    }

    #[test]
    fn growth_tells_when_a_bound_is_reached() {
        let at = Moment::from_ms;
        let split = |unreclaimable| Split { unreclaimable, ..Split::default() };
        let seen = Seen::first(at(1000), split(200));
        assert_eq!((seen.reaches(250), seen.look_at(at(1000), Some(250))), (None, at(1100)));
        // Too soon to tell.
        assert_eq!(seen.next(at(1099), split(900)), Seen { split: split(900), ..seen });
        let seen = seen.next(at(1100), split(210));
        assert_eq!((seen.growth, seen.reaches(250)), (Some(100), Some(at(1500))));
        assert_eq!(seen.look_at(at(1100), Some(250)), at(1500));
        // It is over already, or far away.
        assert_eq!(seen.look_at(at(1100), Some(210)), at(1200));
        assert_eq!(seen.look_at(at(1100), Some(1 << 40)), at(2100));
        let shrunk = seen.next(at(2100), split(100));
        assert_eq!((shrunk.reaches(250), shrunk.look_at(at(2200), Some(250))), (None, at(3200)));
    }

    #[test]
    fn where_there_is_no_cache_a_touched_wire_is_a_leak() {
        let split = |current, unreclaimable| Split { unreclaimable, current, ..Split::default() };
        let limit = 60 << 20;
        assert!(split(limit, limit).fills(limit));
        // Counted by a booted machine: 59.4M of a leak, and no file page.
        assert!(split(limit - 4096, limit - (600 << 10)).fills(limit));
        assert!(!split(limit, limit - (1 << 20)).fills(limit), "a megabyte of cache");
        assert!(!split(limit - (2 << 20), limit - (2 << 20)).fills(limit), "it has shrunk");
    }

    #[test]
    fn only_cache_is_reclaimed_down_to_four_fifths() {
        let split = |current, unreclaimable, swap| Split {
            unreclaimable,
            swap,
            current,
            ..Split::default()
        };
        assert_eq!(split(1000, 30, 0).cache_above(1000), 200);
        assert_eq!(split(1000, 950, 0).cache_above(1000), 50);
        // What is swapped out is not charged.
        assert_eq!(split(1000, 950, 100).cache_above(1000), 150);
        assert_eq!(split(700, 30, 0).cache_above(1000), 0);
    }
}
