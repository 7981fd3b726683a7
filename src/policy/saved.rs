//! What an adopt needs, versioned.

use serde::{Deserialize, Serialize};

use super::fleet::Fleet;
use super::id::{Generation, ReleaseId, SlotId};
use super::instance::{Instance, KILL_PATIENCE, Phase};
use super::memory::Wire;
use super::reason::EndCause;
use super::slot::{Current, Goal, Other, Role, Slot};
use super::time::Moment;

/// Version of [`Fleet`] as it is written. A field may be added under the same version where its
/// default is right; anything else takes a new one, and a supervisor that does not know it adopts
/// from the keeper's table alone.
pub const VERSION: u32 = 1;

/// An instance that the keeper knows, where nothing else is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survivor {
    /// Its slot.
    pub slot: SlotId,
    /// Its generation.
    pub generation: Generation,
    /// What it runs.
    pub release: ReleaseId,
    /// Its process id.
    pub pid: u32,
}

impl Fleet {
    /// Numbers on after `last`, of which an earlier keeper has left something.
    #[must_use]
    pub fn numbered_after(mut self, last: Generation) -> Self {
        self.last_generation = self.last_generation.max(last);
        self
    }

    /// The fleet as far as the keeper's table tells: no histories. Every survivor counts as online
    /// since `now`; where a slot has two, the older one drains, for as long as pmr
    /// is patient: its rules are not known here.
    /// `last` is the highest generation of which anything is left, also an exit that was not
    /// acknowledged, or a group: no number up to it is used again. `announced_ready`: the service
    /// manager was told so; where it was not, slots without a survivor are in their first start.
    pub fn reduced(
        count: u16,
        release: ReleaseId,
        survivors: &[Survivor],
        last: Generation,
        announced_ready: bool,
        now: Moment,
    ) -> Self {
        let highest = survivors.iter().map(|survivor| survivor.slot.0.saturating_add(1)).max();
        let mut fleet = Self::new(count.max(highest.unwrap_or_default()), release);
        fleet.last_generation = last;
        let mut sorted = survivors.to_vec();
        sorted.sort_by_key(|survivor| survivor.generation);
        for survivor in sorted {
            fleet.last_generation = fleet.last_generation.max(survivor.generation);
            if let Some(slot) = fleet.slots.get_mut(usize::from(survivor.slot.0)) {
                adopt_survivor(slot, survivor, now);
            }
        }
        for slot in &mut fleet.slots {
            slot.first_start_over = announced_ready || slot.running().is_some();
            // A slot without a survivor starts one at once.
            if matches!(slot.current, Current::Stopped) {
                slot.current = Current::Waiting { until: now };
            }
        }
        fleet.announced_ready = announced_ready;
        fleet
    }
}

fn adopt_survivor(slot: &mut Slot, survivor: Survivor, now: Moment) {
    slot.goal = Goal::Run;
    slot.release = survivor.release;
    let instance = Instance {
        generation: survivor.generation,
        release: survivor.release,
        spawned_at: now,
        pid: Some(survivor.pid),
        phase: Phase::Online { since: now, stable: false },
        // Whether it stands nobody knows.
        wire: Wire::unknown(now),
    };
    let older = std::mem::replace(&mut slot.current, Current::Running(instance));
    if let Current::Running(mut older) = older {
        let cause = EndCause::Replaced;
        let kill_at = now.after(KILL_PATIENCE);
        older.phase = Phase::Draining { cause, kill_at, signalled: false };
        slot.other = Some(Other { role: Role::Leaver, instance: older });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_used_again() {
        let fleet = Fleet::new(1, ReleaseId(1)).numbered_after(Generation(17));
        assert_eq!(fleet.last_generation, Generation(17));
        assert_eq!(fleet.numbered_after(Generation(3)).last_generation, Generation(17));
        assert!(!Fleet::new(1, ReleaseId(1)).numbered_after(Generation(17)).announced_ready);
    }
}
