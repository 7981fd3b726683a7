//! Replacements for memory: their own budget, apart from crashes.

use serde::{Deserialize, Serialize};

/// So many replacements in a row, each within `min_uptime` of being online, mean that the limit is
/// below what the app needs.
pub(super) const QUICK_REPLACEMENTS_MAX: u8 = 3;

/// What a slot remembers of its replacements for memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryHistory {
    /// Replacements in a row whose instance was not yet stable.
    quick: u8,
    given_up: bool,
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
}
