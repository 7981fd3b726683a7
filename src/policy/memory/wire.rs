//! The trip-wire of one instance: the machine that is drawn in [`super`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Split, WireNews, WireOrder};
use crate::policy::action::Action;
use crate::policy::instance::{Instance, Turn};
use crate::policy::reason::{Reason, RollKind};
use crate::policy::rules::Rules;
use crate::policy::time::{Moment, whole_ms};

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

/// The trip-wire of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::policy) enum Wire {
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
pub(in crate::policy) struct Seen {
    pub(super) split: Split,
    /// The later of the two, and what was unreclaimable then.
    pub(super) at: Moment,
    pub(super) held: u64,
    /// Of what is unreclaimable, in bytes a second; one look tells none.
    pub(super) growth: Option<u64>,
}

impl Seen {
    pub(super) fn first(at: Moment, split: Split) -> Self {
        Self { split, at, held: split.unreclaimable, growth: None }
    }

    /// Takes a later look. One that follows too soon says nothing about growth.
    pub(super) fn next(self, at: Moment, split: Split) -> Self {
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
    pub(super) fn reaches(&self, bytes: u64) -> Option<Moment> {
        let room = bytes.saturating_sub(self.held);
        let ms = room.saturating_mul(1000).checked_div(self.growth?)?;
        Some(self.at.after(Duration::from_millis(ms)))
    }

    /// When to look again, with regard to the moment it reaches `bytes`.
    pub(super) fn look_at(&self, now: Moment, bytes: Option<u64>) -> Moment {
        let until = bytes.and_then(|bytes| self.reaches(bytes));
        let wait_ms = match self.growth {
            None => LOOK_MS_MIN,
            Some(_) => until.map_or(LOOK_MS_MAX, |until| whole_ms(until.since(now))),
        };
        now.after(Duration::from_millis(wait_ms.clamp(LOOK_MS_MIN, LOOK_MS_MAX)))
    }
}

/// How long the wire stays away, after it stood untouched for `quiet`.
pub(super) fn next_hold(hold_ms: u64, quiet: Duration) -> u64 {
    if hold_ms == 0 || whole_ms(quiet) >= HOLD_MS_MAX {
        return HOLD_MS_MIN;
    }
    hold_ms.saturating_mul(2).clamp(HOLD_MS_MIN, HOLD_MS_MAX)
}

impl Wire {
    /// When a leaking one reaches `max`.
    pub(in crate::policy) fn full_at(&self, max: Option<u64>) -> Option<Moment> {
        match self {
            Self::Leaking { seen, .. } => seen.reaches(max?),
            Self::Armed { .. } | Self::Held { .. } | Self::Arming { .. } | Self::Off => None,
        }
    }

    /// The wire of an instance of which nothing is known: it is put up.
    pub(in crate::policy) fn unknown(now: Moment) -> Self {
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
    pub(in crate::policy) fn handle_wire(&mut self, news: WireNews, turn: &mut Turn<'_>) {
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
                if split.is_less_again(bounds.limit) {
                    let hold_ms = next_hold(*hold_ms, Duration::ZERO);
                    self.wire = Wire::held(now, hold_ms, false, *seen, bounds.limit);
                } else {
                    *look_at = seen.look_at(now, bounds.max);
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
    pub(in crate::policy) fn wire_deadline(&self) -> Option<Moment> {
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
    pub(in crate::policy) fn handle_wire_time(&mut self, turn: &mut Turn<'_>) {
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
    pub(in crate::policy) fn resume_wire(&self, turn: &mut Turn<'_>) {
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

    pub(super) fn tell_waiting_leak(&mut self, behind: Option<RollKind>, turn: &mut Turn<'_>) {
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
    pub(in crate::policy) fn handle_new_limit(&mut self, turn: &mut Turn<'_>) {
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
    pub(in crate::policy) fn handle_spawned_wire(&self, turn: &mut Turn<'_>) {
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
    pub(in crate::policy) fn rearm(&mut self, turn: &mut Turn<'_>) {
        let Some(Bounds { limit, .. }) = Bounds::of(turn.rules(self.release)) else { return };
        if self.wire == Wire::Off && self.is_wanted() {
            self.wire = Wire::unknown(turn.now);
            self.order(WireOrder::Arm { limit }, turn);
        }
    }
}
