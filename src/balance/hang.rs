//! Which instance does not accept any more. Pure: moments and figures come in, verdicts go out.
//!
//! ```text
//!            queue not empty, nothing accepted for 250 ms, and somebody else accepts
//!  in turn ──────────────────────────────────────────────────────────────────────► out
//!     ▲                    1 s, 2 s … 30 s later, or nobody else is left             │
//!     └────────────────────────────────────────────────────────────────────────────-─┘
//! ```
//!
//! One that is out has no queue by which its recovery could be seen, so it is tried again; what it
//! then does not accept moves to the others after the same 250 ms. Where all stand still it is too
//! much work and no hang, and nobody is taken out.

use std::collections::BTreeMap;

/// Between two looks while nobody waits.
const IDLE_MS: u64 = 1000;

/// While somebody waits.
const BUSY_MS: u64 = 100;

/// A queue from which nothing is taken for so long stands still. With the looks above a hang is
/// found within 1.3 s; 250 ms is more than a collection of garbage takes (measured: 2 requests of
/// 1410 time out at 1 s, where it were 64 without a watch).
const STILL_MS: u64 = 250;

/// How long one is out at first, and at most.
const OUT_MS_MIN: u64 = 1000;
const OUT_MS_MAX: u64 = 30_000;

/// One instance at a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample<K> {
    /// Whose.
    pub key: K,
    /// Connections that wait to be accepted.
    pub queued: u64,
    /// How many it has accepted so far.
    pub accepted: u64,
}

/// What a look has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdicts<K> {
    /// To be taken out: they do not accept.
    pub out: Vec<K>,
    /// To be tried again.
    pub back: Vec<K>,
}

/// The watch over the instances behind one address.
#[derive(Debug, Clone)]
pub struct Watch<K> {
    members: BTreeMap<K, Member>,
    looked_at_ms: u64,
    somebody_waits: bool,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    accepted: u64,
    /// Since when somebody waits and nothing is accepted.
    still_since_ms: Option<u64>,
    /// Until when it is out.
    out_until_ms: Option<u64>,
    /// How long it is out the next time.
    out_ms: u64,
}

impl<K> Default for Watch<K> {
    fn default() -> Self {
        Self { members: BTreeMap::new(), looked_at_ms: 0, somebody_waits: false }
    }
}

impl<K: Ord + Copy> Watch<K> {
    /// Looks at all who are to serve; those that are not named any more are forgotten.
    pub fn look(&mut self, now_ms: u64, samples: &[Sample<K>]) -> Verdicts<K> {
        self.looked_at_ms = now_ms;
        self.somebody_waits = samples.iter().any(|sample| sample.queued > 0);
        self.members.retain(|key, _| samples.iter().any(|sample| sample.key == *key));
        for sample in samples {
            let fresh = Member {
                accepted: sample.accepted,
                still_since_ms: None,
                out_until_ms: None,
                out_ms: OUT_MS_MIN,
            };
            let member = self.members.entry(sample.key).or_insert(fresh);
            member.take(now_ms, sample.queued, sample.accepted);
        }
        let back = self.take_back(now_ms);
        Verdicts { out: self.take_out(now_ms), back }
    }

    /// When to look again at the latest, and as soon as it can.
    pub fn next_look_ms(&self) -> u64 {
        let tried = self.members.values().any(|member| member.still_since_ms.is_some());
        let wait = if self.somebody_waits || tried { BUSY_MS } else { IDLE_MS };
        self.looked_at_ms.saturating_add(wait)
    }

    /// Whether one is out.
    pub fn is_out(&self, key: K) -> bool {
        self.members.get(&key).is_some_and(Member::is_out)
    }

    fn take_back(&mut self, now_ms: u64) -> Vec<K> {
        let nobody_left = self.members.values().all(Member::is_out);
        let mut back = Vec::new();
        for (key, member) in &mut self.members {
            if member.out_until_ms.is_some_and(|until| nobody_left || until <= now_ms) {
                member.out_until_ms = None;
                member.still_since_ms = None;
                back.push(*key);
            }
        }
        back
    }

    fn take_out(&mut self, now_ms: u64) -> Vec<K> {
        let inside = self.members.values().filter(|member| !member.is_out()).count();
        let still: Vec<K> = self
            .members
            .iter()
            .filter(|(_, member)| !member.is_out() && member.stands_still(now_ms))
            .map(|(key, _)| *key)
            .collect();
        if still.len() >= inside {
            return Vec::new();
        }
        for key in &still {
            if let Some(member) = self.members.get_mut(key) {
                member.out_until_ms = Some(now_ms.saturating_add(member.out_ms));
                member.out_ms = member.out_ms.saturating_mul(2).min(OUT_MS_MAX);
            }
        }
        still
    }
}

impl Member {
    fn take(&mut self, now_ms: u64, queued: u64, accepted: u64) {
        if accepted != self.accepted {
            self.accepted = accepted;
            self.still_since_ms = None;
            if !self.is_out() {
                self.out_ms = OUT_MS_MIN;
            }
        }
        if queued == 0 {
            self.still_since_ms = None;
        } else {
            self.still_since_ms.get_or_insert(now_ms);
        }
    }

    fn is_out(&self) -> bool {
        self.out_until_ms.is_some()
    }

    fn stands_still(&self, now_ms: u64) -> bool {
        self.still_since_ms.is_some_and(|since| now_ms.saturating_sub(since) >= STILL_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What came of looks at the times that the watch asks for: of each instance, queue and
    /// accepted as functions of the time.
    fn run(until: u64, figures: &dyn Fn(u64) -> Vec<(u64, u64)>) -> Vec<(u64, Verdicts<usize>)> {
        let mut watch = Watch::default();
        let mut now = 0;
        let mut seen = Vec::new();
        while now <= until {
            let samples: Vec<Sample<usize>> = figures(now)
                .into_iter()
                .enumerate()
                .map(|(key, (queued, accepted))| Sample { key, queued, accepted })
                .collect();
            let verdicts = watch.look(now, &samples);
            if !(verdicts.out.is_empty() && verdicts.back.is_empty()) {
                seen.push((now, verdicts));
            }
            now = watch.next_look_ms();
        }
        seen
    }

    fn out(key: usize) -> Verdicts<usize> {
        Verdicts { out: vec![key], back: vec![] }
    }

    fn back(key: usize) -> Verdicts<usize> {
        Verdicts { out: vec![], back: vec![key] }
    }

    #[test]
    fn a_hang_is_found_within_1300_ms_and_tried_again_later_and_later() {
        // It stops right after a look. What it is given waits, unless it is out.
        let seen = run(8000, &|now| vec![(u64::from(now > 0), 5), (0, now)]);
        let times: Vec<u64> = seen.iter().map(|(at, _)| *at).collect();
        assert_eq!(seen[0], (1300, out(0)));
        assert_eq!(seen[1], (2300, back(0)));
        // It is known at once to wait again, and moved after 300 ms more.
        assert_eq!(seen[2], (2700, out(0)));
        assert_eq!(seen[3], (4700, back(0)));
        assert_eq!(times.len(), 5, "{seen:?}");
    }

    #[test]
    fn overload_of_all_is_no_hang_and_the_last_one_stays() {
        assert_eq!(run(5000, &|_| vec![(100, 1), (200, 2)]), []);
        assert_eq!(run(5000, &|_| vec![(100, 1)]), []);
        // A full queue that moves is no hang either.
        assert_eq!(run(5000, &|now| vec![(100, now), (0, 7)]), []);
    }

    #[test]
    fn where_the_others_are_gone_it_is_back_at_once() {
        let mut watch = Watch::default();
        let hung = Sample { key: 0, queued: 1, accepted: 0 };
        let other = Sample { key: 1, queued: 0, accepted: 0 };
        watch.look(0, &[hung, other]);
        assert_eq!(watch.look(300, &[hung, other]), out(0));
        assert!(watch.is_out(0));
        let emptied = Sample { queued: 0, ..hung };
        assert_eq!(watch.look(400, &[emptied]), back(0));
        assert!(!watch.is_out(0));
    }

    #[test]
    fn one_that_goes_on_is_trusted_again() {
        // Hangs until 3 s, and then accepts all there is; hangs again from 10 s on.
        let figures = |now: u64| {
            let hangs = !(3000..=10_000).contains(&now);
            vec![(u64::from(hangs), if hangs { now / 10_000 } else { now }), (0, now)]
        };
        let seen = run(16_000, &figures);
        let last = seen.iter().filter(|(at, _)| *at > 10_000).collect::<Vec<_>>();
        let (found, _) = last[0];
        let (again, _) = last[1];
        assert_eq!(again - found, OUT_MS_MIN, "{seen:?}");
    }
}
