//! What is looked at again and again until it is as it should be: soon at first, then ever later.

use std::collections::BTreeMap;

use crate::policy::Generation;

/// Instances that are looked at, and when.
#[derive(Debug)]
pub(super) struct Looks {
    shortest_ms: u64,
    longest_ms: u64,
    next: BTreeMap<Generation, Look>,
}

#[derive(Debug)]
struct Look {
    since_ms: u64,
    at_ms: u64,
}

impl Looks {
    /// A wait is a tenth of the time that has passed since the first, so that nothing takes much
    /// longer than it has to; within these bounds, in milliseconds.
    pub(super) fn new(shortest_ms: u64, longest_ms: u64) -> Self {
        Self { shortest_ms, longest_ms, next: BTreeMap::new() }
    }

    /// Begins with an instance.
    pub(super) fn begin(&mut self, generation: Generation, now: u64) {
        let at_ms = now.saturating_add(self.shortest_ms);
        self.next.insert(generation, Look { since_ms: now, at_ms });
    }

    /// It is not looked at any more.
    pub(super) fn end(&mut self, generation: Generation) {
        self.next.remove(&generation);
    }

    /// When to look.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        self.next.values().map(|look| look.at_ms).min()
    }

    /// Whom to look at now; each has a next time.
    pub(super) fn due(&mut self, now: u64) -> Vec<Generation> {
        let due = self.next.iter_mut().filter(|(_, look)| look.at_ms <= now);
        due.map(|(generation, look)| {
            let wait = now.saturating_sub(look.since_ms) / 10;
            look.at_ms = now.saturating_add(wait.clamp(self.shortest_ms, self.longest_ms));
            *generation
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_come_ever_later_and_end() {
        let mut looks = Looks::new(5, 15);
        assert_eq!(looks.deadline_ms(), None);
        looks.begin(Generation(1), 100);
        assert_eq!(looks.due(104), []);
        let mut waits = Vec::new();
        while let Some(at) = looks.deadline_ms().filter(|at| *at < 400) {
            assert_eq!(looks.due(at), [Generation(1)]);
            waits.push(looks.deadline_ms().unwrap() - at);
        }
        assert_eq!((waits.first(), waits.last()), (Some(&5), Some(&15)));
        assert!(waits.is_sorted(), "{waits:?}");
        looks.end(Generation(1));
        assert_eq!(looks.due(1000), []);
    }
}
