//! Which instance does not accept any more. Pure: moments and figures come in, verdicts go out.
//!
//! ```text
//!            queue not empty, nothing accepted for 250 ms, and somebody else accepts
//!  in turn ──────────────────────────────────────────────────────────────────────► out
//!     ▲       1 s, 2 s … 30 s later, or it accepts, or nobody else is left           │
//!     └──────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! What waits for one that is out moves to the others. It has no queue then by which its recovery
//! could be seen, so it is tried again; what it then does not accept moves after the same 250 ms.
//! A handshake that was not done when the queue was moved still ends in it, and is moved too. Where
//! all stand still it is too much work and no hang, and nobody is taken out; whoever was just tried
//! again counts as one that accepts once he has. And time in which an instance would run and is not
//! given a processor is the machine's fault: it does not count.
//!
//! **Whether anything was accepted** the kernel does not say. It follows from two figures: the
//! queue is shorter than before, or more connections were given to it and its queue has not grown
//! by as many. The second holds within limits. What is given to a full queue is lost (the client
//! tries again later), so a full one must get shorter. And a connection that is not established
//! yet is given and not in the queue, so only a new highest mark of the difference counts, or a
//! hang would look like a coming and going under load. Not told apart from an instance that accepts
//! is one to which a flood of handshakes comes that are never finished.

use std::collections::BTreeMap;

/// Between two looks while no connection comes and nobody waits.
const IDLE_MS: u64 = 1000;

/// While connections come, or somebody waits.
const BUSY_MS: u64 = 100;

/// A queue from which nothing is taken for so long stands still. With the looks above a hang is
/// found within 1.3 s; 250 ms is more than a collection of garbage takes (measured: 2 requests of
/// 1410 time out at 1 s, where it were 64 without a watch).
const STILL_MS: u64 = 250;

/// How long one is out at first, and at most.
const OUT_MS_MIN: u64 = 1000;
const OUT_MS_MAX: u64 = 30_000;

/// One that has been back for so long and accepts is trusted as before.
const TRUSTED_MS: u64 = 1000;

/// One instance at a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample<K> {
    /// Whose.
    pub key: K,
    /// How many connections it was given so far. To be read before its queue is, so that what
    /// comes meanwhile does not look accepted.
    pub taken: u64,
    /// Connections that wait to be accepted.
    pub queued: u64,
    /// How many of them there is room for.
    pub backlog: u64,
    /// How long its threads have waited for a processor so far, in milliseconds; of one for which
    /// nobody waits it is not asked.
    pub starved_ms: u64,
}

/// What a look has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdicts<K> {
    /// To be taken out, and their queues to be moved: they do not accept.
    pub out: Vec<K>,
    /// Their queues are to be moved again, though they are out: somebody waits there.
    pub late: Vec<K>,
    /// To be tried again.
    pub back: Vec<K>,
}

/// The watch over the instances behind one address.
#[derive(Debug, Clone)]
pub struct Watch<K> {
    members: BTreeMap<K, Member>,
    looked_at_ms: u64,
    is_busy: bool,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    /// At the last look.
    taken: u64,
    queued: u64,
    /// The highest that `taken - queued` has been since it is in.
    accepted: u64,
    /// Since when somebody waits and nothing is accepted, later by what it was starved since.
    still_since_ms: Option<u64>,
    /// At the last look.
    starved_ms: u64,
    /// It has accepted since it is in, or was never out.
    is_proven: bool,
    place: Place,
    /// How long it is out the next time.
    out_ms: u64,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    In { since_ms: u64 },
    Out { until_ms: u64 },
}

impl<K> Default for Watch<K> {
    fn default() -> Self {
        Self { members: BTreeMap::new(), looked_at_ms: 0, is_busy: false }
    }
}

impl<K: Ord + Copy> Watch<K> {
    /// Looks at all who are to serve; those that are not named any more are forgotten.
    pub fn look(&mut self, now_ms: u64, samples: &[Sample<K>]) -> Verdicts<K> {
        self.looked_at_ms = now_ms;
        self.is_busy = false;
        self.members.retain(|key, _| samples.iter().any(|sample| sample.key == *key));
        for sample in samples {
            let member = self.members.entry(sample.key);
            let member = member.or_insert_with(|| Member::new(now_ms, sample));
            self.is_busy |= sample.queued > 0 || sample.taken != member.taken;
            member.take(now_ms, sample);
        }
        let back = self.take_back(now_ms);
        let late = self.take_late(now_ms);
        Verdicts { out: self.take_out(now_ms), late, back }
    }

    /// When to look again at the latest, and as soon as it can.
    pub fn next_look_ms(&self) -> u64 {
        let wait = if self.is_busy { BUSY_MS } else { IDLE_MS };
        let due = self.members.values().filter_map(Member::due_ms);
        let next = self.looked_at_ms.saturating_add(wait);
        due.filter(|due| *due > self.looked_at_ms).fold(next, u64::min)
    }

    /// Whether one is out.
    pub fn is_out(&self, key: K) -> bool {
        self.members.get(&key).is_some_and(Member::is_out)
    }

    fn take_back(&mut self, now_ms: u64) -> Vec<K> {
        let nobody_left = self.members.values().all(Member::is_out);
        let mut back = Vec::new();
        for (key, member) in &mut self.members {
            if let Place::Out { until_ms } = member.place
                && (nobody_left || until_ms <= now_ms)
            {
                member.place = Place::In { since_ms: now_ms };
                member.still_since_ms = None;
                member.is_proven = false;
                back.push(*key);
            }
        }
        back
    }

    fn take_late(&mut self, now_ms: u64) -> Vec<K> {
        let still = |member: &Member| member.is_out() && member.stands_still(now_ms);
        let late = self.members.iter_mut().filter(|(_, member)| still(member));
        late.map(|(key, member)| {
            member.forget_queue();
            *key
        })
        .collect()
    }

    fn take_out(&mut self, now_ms: u64) -> Vec<K> {
        let mut inside = self.members.values().filter(|member| !member.is_out());
        if !inside.any(|member| member.accepts(now_ms)) {
            return Vec::new();
        }
        let still = |member: &Member| !member.is_out() && member.stands_still(now_ms);
        let out = self.members.iter_mut().filter(|(_, member)| still(member));
        out.map(|(key, member)| {
            member.place = Place::Out { until_ms: now_ms.saturating_add(member.out_ms) };
            member.out_ms = member.out_ms.saturating_mul(2).min(OUT_MS_MAX);
            member.forget_queue();
            *key
        })
        .collect()
    }
}

impl Member {
    fn new<K>(now_ms: u64, sample: &Sample<K>) -> Self {
        Self {
            taken: sample.taken,
            queued: 0,
            accepted: sample.taken.saturating_sub(sample.queued),
            still_since_ms: None,
            starved_ms: 0,
            is_proven: true,
            place: Place::In { since_ms: now_ms },
            out_ms: OUT_MS_MIN,
        }
    }

    fn take<K>(&mut self, now_ms: u64, sample: &Sample<K>) {
        let is_shorter = sample.queued < self.queued;
        let accepted = sample.taken.saturating_sub(sample.queued);
        match self.place {
            Place::In { since_ms } => {
                let is_full = sample.queued >= sample.backlog;
                if is_shorter || accepted > self.accepted && !is_full {
                    self.still_since_ms = None;
                    self.is_proven = true;
                    if now_ms.saturating_sub(since_ms) >= TRUSTED_MS {
                        self.out_ms = OUT_MS_MIN;
                    }
                }
                self.accepted = self.accepted.max(accepted);
            }
            // What is moved from its queue looks accepted, so only what comes late tells.
            Place::Out { .. } if is_shorter => {
                self.place = Place::Out { until_ms: now_ms };
                self.out_ms = OUT_MS_MIN;
                self.accepted = accepted;
            }
            Place::Out { .. } => self.accepted = accepted,
        }
        (self.taken, self.queued) = (sample.taken, sample.queued);
        let starved_ms = sample.starved_ms.saturating_sub(self.starved_ms);
        self.starved_ms = sample.starved_ms;
        self.still_since_ms = match self.still_since_ms {
            _ if sample.queued == 0 => None,
            Some(since) => Some(since.saturating_add(starved_ms).min(now_ms)),
            None => Some(now_ms),
        };
    }

    /// Its queue is about to be moved.
    fn forget_queue(&mut self) {
        self.queued = 0;
        self.still_since_ms = None;
    }

    fn is_out(&self) -> bool {
        match self.place {
            Place::In { .. } => false,
            Place::Out { .. } => true,
        }
    }

    /// Whether nobody waits, or something was accepted up to now.
    fn accepts(&self, now_ms: u64) -> bool {
        self.is_proven && self.still_since_ms.is_none_or(|since| since >= now_ms)
    }

    fn stands_still(&self, now_ms: u64) -> bool {
        self.still_since_ms.is_some_and(|since| now_ms.saturating_sub(since) >= STILL_MS)
    }

    /// When it stands still, or is tried again.
    fn due_ms(&self) -> Option<u64> {
        let still = self.still_since_ms.map(|since| since.saturating_add(STILL_MS));
        let until = match self.place {
            Place::In { .. } => None,
            Place::Out { until_ms } => Some(until_ms),
        };
        still.into_iter().chain(until).min()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::arithmetic_side_effects, reason = "the numbers of a test are small")]

    use proptest::prelude::*;

    use super::*;

    /// An instance of a model: it is given a connection every `every_ms`, and accepts all there is
    /// whenever it is looked at, while it does not hang.
    struct Model {
        every_ms: u64,
        hangs: fn(u64) -> bool,
        backlog: u64,
        taken: u64,
        queued: u64,
    }

    impl Model {
        fn new(every_ms: u64, hangs: fn(u64) -> bool) -> Self {
            Self { every_ms, hangs, backlog: 4096, taken: 0, queued: 0 }
        }

        /// What comes in a millisecond; what is given to a full queue is lost.
        fn pass(&mut self, now: u64, is_out: bool) {
            if now.is_multiple_of(self.every_ms) && !is_out {
                self.taken += 1;
                self.queued = (self.queued + 1).min(self.backlog + 1);
            }
            if !(self.hangs)(now) {
                self.queued = 0;
            }
        }
    }

    /// What comes of looks at the times that the watch asks for.
    fn run(until: u64, mut models: Vec<Model>) -> Vec<(u64, Verdicts<usize>)> {
        let mut watch = Watch::default();
        let mut seen = Vec::new();
        let mut look_at = 0;
        for now in 0..=until {
            for (key, model) in models.iter_mut().enumerate() {
                model.pass(now, watch.is_out(key));
            }
            if now < look_at {
                continue;
            }
            let samples: Vec<Sample<usize>> = (0..)
                .zip(&models)
                .map(|(key, it)| {
                    let Model { taken, queued, backlog, .. } = *it;
                    Sample { key, taken, queued, backlog, starved_ms: 0 }
                })
                .collect();
            let verdicts = watch.look(now, &samples);
            for key in verdicts.out.iter().chain(&verdicts.late) {
                models[*key].queued = 0;
            }
            if verdicts != none() {
                seen.push((now, verdicts));
            }
            look_at = watch.next_look_ms();
            assert!(look_at > now);
        }
        seen
    }

    fn none() -> Verdicts<usize> {
        Verdicts { out: vec![], late: vec![], back: vec![] }
    }

    fn out(key: usize) -> Verdicts<usize> {
        Verdicts { out: vec![key], ..none() }
    }

    fn back(key: usize) -> Verdicts<usize> {
        Verdicts { back: vec![key], ..none() }
    }

    fn sample(key: usize, taken: u64, queued: u64) -> Sample<usize> {
        Sample { key, taken, queued, backlog: 128, starved_ms: 0 }
    }

    const NEVER: fn(u64) -> bool = |_| false;
    const LATER: fn(u64) -> bool = |now| now > 1000;

    #[test]
    fn a_hang_is_found_and_tried_again_later_and_later() {
        let models = vec![Model::new(10, LATER), Model::new(10, NEVER)];
        let seen = run(20_000, models);
        let times: Vec<(u64, bool)> = seen.iter().map(|(at, it)| (*at, *it == out(0))).collect();
        // It stops right after a look; connections come, so it is looked at every 100 ms.
        let expected = [
            (1350, true),
            (2350, false),
            (2700, true),
            (4700, false),
            (5050, true),
            (9050, false),
            (9400, true),
            (17_400, false),
            (17_750, true),
        ];
        assert_eq!(times, expected, "{seen:?}");
    }

    #[test]
    fn a_hang_is_found_within_1300_ms_where_connections_are_rare() {
        for first in (1..=1000).step_by(37) {
            let mut watch = Watch::default();
            let mut now = 0;
            let found = loop {
                let queued = u64::from(now >= first);
                let verdicts = watch.look(now, &[sample(0, queued, queued), sample(1, 0, 0)]);
                if verdicts == out(0) {
                    break now;
                }
                now = watch.next_look_ms();
            };
            assert!(found - first <= 1300, "came at {first}, found at {found}");
        }
    }

    #[test]
    fn a_full_queue_hides_no_hang() {
        // Its backlog is full at once, and what is given to it further is lost.
        let hung = Model { backlog: 5, ..Model::new(1, LATER) };
        let seen = run(2000, vec![hung, Model::new(1, NEVER)]);
        assert_eq!(seen, [(1350, out(0))]);
    }

    #[test]
    fn connections_that_are_not_established_yet_hide_no_hang() {
        let mut watch = Watch::default();
        // It has accepted 50 for good; of those on their way there are 0 to 9.
        for (look, on_their_way) in (0..).zip([4, 9, 3, 8, 0, 7, 9, 2, 5, 6]) {
            let queued = 1 + look;
            let hung = sample(0, 50 + queued + on_their_way, queued);
            let verdicts = watch.look(look * 100, &[hung, sample(1, look, 0)]);
            if verdicts == out(0) {
                assert!(look <= 5, "found at look {look}");
                return;
            }
        }
        panic!("not found");
    }

    #[test]
    fn overload_of_all_is_no_hang_and_the_last_one_stays() {
        let hung = || Model::new(7, LATER);
        assert_eq!(run(5000, vec![hung(), hung()]), []);
        assert_eq!(run(5000, vec![hung()]), []);
        // They come to stand still one after the other, as behind a database that does.
        let later = Model::new(7, |now| now > 1200);
        let seen = run(5000, vec![hung(), hung(), later]);
        assert_eq!(seen, [], "{seen:?}");
    }

    #[test]
    fn a_full_queue_that_moves_is_no_hang() {
        let mut watch = Watch::default();
        for look in 0..50_u64 {
            // One is accepted between two looks, and 20 come.
            let slow = sample(0, 1000 + look * 20, 100 + look * 19);
            let slow = Sample { backlog: 4096, ..slow };
            assert_eq!(watch.look(look * 100, &[slow, sample(1, look, 0)]), none());
        }
    }

    #[test]
    fn who_comes_late_is_moved_or_shows_that_it_accepts() {
        let mut watch = Watch::default();
        let other = sample(1, 0, 0);
        watch.look(0, &[sample(0, 5, 5), other]);
        assert_eq!(watch.look(250, &[sample(0, 5, 5), other]), out(0));
        // Two whose handshake ends after the queue was moved.
        assert_eq!(watch.look(350, &[sample(0, 5, 2), other]), none());
        let late = Verdicts { late: vec![0], ..none() };
        assert_eq!(watch.look(600, &[sample(0, 5, 2), other]), late);
        // One more, which is accepted.
        assert_eq!(watch.look(700, &[sample(0, 5, 1), other]), none());
        assert_eq!(watch.look(800, &[sample(0, 5, 0), other]), back(0));
        assert!(!watch.is_out(0));
    }

    #[test]
    fn where_the_others_are_gone_it_is_back_at_once() {
        let mut watch = Watch::default();
        let other = sample(1, 0, 0);
        watch.look(0, &[sample(0, 1, 1), other]);
        assert_eq!(watch.look(300, &[sample(0, 1, 1), other]), out(0));
        assert!(watch.is_out(0));
        assert_eq!(watch.look(400, &[sample(0, 1, 0)]), back(0));
        assert!(!watch.is_out(0));
    }

    #[test]
    fn who_is_tried_again_must_accept_before_another_is_taken_out() {
        let mut watch = Watch::default();
        watch.look(0, &[sample(0, 1, 1), sample(1, 0, 0)]);
        assert_eq!(watch.look(300, &[sample(0, 1, 1), sample(1, 1, 0)]), out(0));
        watch.look(400, &[sample(0, 1, 0), sample(1, 2, 1)]);
        let second = sample(1, 2, 1);
        assert_eq!(watch.look(1300, &[sample(0, 1, 0), second]), back(0));
        assert_eq!(watch.look(1400, &[sample(0, 1, 0), second]), none());
        assert_eq!(watch.look(1500, &[sample(0, 2, 1), second]), none());
        assert_eq!(watch.look(1600, &[sample(0, 2, 0), second]), out(1));
    }

    #[test]
    fn time_without_a_processor_is_no_standing_still() {
        let other = sample(1, 0, 0);
        let mut watch = Watch::default();
        for look in 0..100 {
            // It would have run for nearly all of the time.
            let starved = Sample { starved_ms: 5000 + look * 95, ..sample(0, 5, 5) };
            let verdicts = watch.look(look * 100, &[starved, other]);
            if verdicts == out(0) {
                assert_eq!(look, 50, "it has 250 ms in five seconds");
                return;
            }
        }
        panic!("not found");
    }

    #[test]
    fn one_that_goes_on_is_trusted_again() {
        // It hangs until 4 s, and again from 10 s on.
        let hangs: fn(u64) -> bool = |now| !(4000..=10_000).contains(&now) && now > 0;
        let seen = run(12_000, vec![Model::new(10, hangs), Model::new(10, NEVER)]);
        let last: Vec<u64> = seen.iter().map(|(at, _)| *at).filter(|at| *at > 10_000).collect();
        assert!(last[1] - last[0] == OUT_MS_MIN, "{seen:?}");
    }

    proptest! {
        #[test]
        fn somebody_is_always_in_and_who_accepts_is_never_out(
            looks in prop::collection::vec(
                (1_u64..400, prop::collection::vec((0_u64..3, 0_u64..40, any::<bool>()), 4)),
                1..200,
            ),
            count in 1_usize..=4,
        ) {
            let mut watch = Watch::default();
            let mut now = 0;
            let mut members = [(0, 0); 4];
            for (pause, steps) in looks {
                now += pause;
                let mut accepted = [true; 4];
                for (key, (more, accepts, stands)) in steps.into_iter().enumerate() {
                    let (taken, queued) = &mut members[key];
                    let before = *queued;
                    *taken += more;
                    let accepts = if stands { 0 } else { accepts };
                    *queued = (*queued + more).saturating_sub(accepts);
                    accepted[key] = *queued == 0 || *queued < before;
                }
                let samples = (0..count).map(|key| {
                    let (taken, queued) = members[key];
                    Sample { key, taken, queued, backlog: 50, starved_ms: 0 }
                });
                let samples: Vec<_> = samples.collect();
                let verdicts = watch.look(now, &samples);
                prop_assert!((0..count).any(|key| !watch.is_out(key)));
                for key in verdicts.out.iter().chain(&verdicts.late) {
                    prop_assert!(!accepted[*key], "{key} accepts");
                    prop_assert!(watch.is_out(*key));
                    members[*key].1 = 0;
                }
                prop_assert!(watch.next_look_ms() > now && watch.next_look_ms() <= now + IDLE_MS);
            }
        }
    }
}
