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

mod wire;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::action::{Action, Note};
use super::fleet::Scene;
use super::id::{Generation, SlotId};
use super::instance::Instance;
use super::reason::{Reason, RollKind};
use super::roll::Roll;
use super::rules::{Rules, rules_of};
use super::slot::{Goal, Slot};
use super::time::{Moment, whole_ms};
pub(super) use wire::Wire;

/// So many replacements in a row, each within `min_uptime` of being online, mean that the limit is
/// below what the app needs.
pub(super) const QUICK_REPLACEMENTS_MAX: u8 = 3;

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

    /// Whether one that was over `limit` is so no more: by twice what may be missing, or it would
    /// be over it again and again.
    fn is_less_again(&self, limit: u64) -> bool {
        let remnant = limit.checked_div(REMNANT_PART).unwrap_or_default();
        self.unreclaimable < limit.saturating_sub(remnant.saturating_mul(2))
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
mod tests;
