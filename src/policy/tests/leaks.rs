//! Traces of instances that leak and that fill the page cache, where the kernel watches them.

use super::*;

/// What an instance holds, and how that grows, in bytes a second from a moment on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Heap {
    pub(super) anon: u64,
    pub(super) cache: u64,
    pub(super) leaks: u64,
    pub(super) reads: u64,
}

/// The memory of the instances, and where their trip-wires are.
#[derive(Debug, Default)]
pub(super) struct Heaps {
    /// Whether the kernel watches them.
    watched: bool,
    /// Where the first wire of an instance is.
    limit: Option<u64>,
    max: u64,
    /// Of the generations to come.
    planned: BTreeMap<u64, Heap>,
    all: BTreeMap<Generation, (Heap, u64, Option<u64>)>,
    /// Since when the lifted ones hold what.
    pub(super) lifts: u64,
    pub(super) looks: u64,
    pub(super) reclaims: u64,
}

impl Heaps {
    pub(super) fn add(&mut self, generation: Generation, now: u64) {
        if self.watched {
            let heap = self.planned.get(&generation.0).copied().unwrap_or_default();
            self.all.insert(generation, (heap, now, self.limit));
        }
    }

    pub(super) fn remove(&mut self, generation: Generation) {
        self.all.remove(&generation);
    }

    /// Brings all up to a moment. The cache takes what room there is.
    fn age(&mut self, now: u64) {
        for (heap, at, _) in self.all.values_mut() {
            let passed = now - *at;
            heap.anon += heap.leaks * passed / 1000;
            heap.cache =
                (heap.cache + heap.reads * passed / 1000).min(self.max.saturating_sub(heap.anon));
            // What is less than a byte is not lost.
            if heap.leaks * passed >= 1000 || heap.reads * passed >= 1000 {
                *at = now;
            }
        }
    }

    /// When the next wire is touched, or the next one is full.
    pub(super) fn next(&self, now: u64) -> Option<u64> {
        let next = |&(heap, at, wire): &(Heap, u64, Option<u64>)| {
            let until = |room: u64, growth: u64| {
                room.saturating_mul(1000).checked_div(growth).map(|ms| at.saturating_add(ms) + 1)
            };
            let full = until(self.max.saturating_sub(heap.anon), heap.leaks);
            let touched = wire.and_then(|wire| {
                let room = wire.saturating_sub(heap.anon + heap.cache);
                until(room, heap.leaks + heap.reads)
            });
            full.into_iter().chain(touched).min()
        };
        self.all.values().filter_map(next).min().map(|at| at.max(now))
    }

    fn split(&self, generation: Generation) -> Split {
        let heap = self.all.get(&generation).map(|it| it.0).unwrap_or_default();
        let (anon, file) = (heap.anon, heap.cache);
        Split { unreclaimable: anon, anon, file, current: anon + file, ..Split::default() }
    }
}

impl World {
    /// Slots whose instances the kernel watches; `planned` are the heaps of the generations.
    fn watched(slots: u16, rules: &Rules, lives: &[Life], planned: &[(u64, Heap)]) -> Self {
        let mut world = Self::new(0, rules, lives);
        let mut out = Vec::new();
        let releases = BTreeMap::from([(ReleaseId(1), rules.clone())]);
        let fleet = Fleet::new(slots, ReleaseId(1));
        world.policy = Policy::adopt(fleet, releases, Moment::default(), &mut out);
        world.heaps.watched = true;
        world.heaps.limit = rules.memory_limit;
        world.heaps.max = rules.memory_max.unwrap_or(u64::MAX);
        world.heaps.planned = planned.iter().copied().collect();
        world.trace.clear();
        world.event(Event::Tick);
        world
    }

    pub(super) fn wire(
        &mut self,
        generation: Generation,
        order: WireOrder,
        events: &mut VecDeque<Event>,
    ) {
        self.heaps.age(self.now);
        let Some((heap, _, wire)) = self.heaps.all.get_mut(&generation) else { return };
        match order {
            WireOrder::Lift => {
                *wire = None;
                self.heaps.lifts += 1;
                return self.line(&format!("lift {generation}"));
            }
            WireOrder::Look => self.heaps.looks += 1,
            WireOrder::Reclaim { bytes } => {
                heap.cache = heap.cache.saturating_sub(bytes);
                self.heaps.reclaims += 1;
                self.line(&format!("reclaim {bytes} of {generation}"));
            }
            WireOrder::Arm { limit } => {
                heap.cache = heap.cache.min(limit.saturating_sub(heap.anon));
                *wire = Some(limit);
                self.line(&format!("arm {generation}"));
            }
        }
        let split = self.heaps.split(generation);
        let news = match order {
            WireOrder::Lift | WireOrder::Look => WireNews::Seen(split),
            WireOrder::Reclaim { .. } => WireNews::Reclaimed(split),
            WireOrder::Arm { .. } => WireNews::Armed { split, stands: true },
        };
        events.push_back(Event::Fact(Fact::Wire { generation, news }));
    }

    /// Lets every wire be touched and every full one be ended that is due.
    pub(super) fn touch_heaps(&mut self) {
        self.heaps.age(self.now);
        let all: Vec<_> = self.heaps.all.iter().map(|(g, it)| (*g, *it)).collect();
        for (generation, (heap, _, wire)) in all {
            if heap.anon >= self.heaps.max {
                self.line(&format!("full {generation}"));
                self.heaps.remove(generation);
                self.running.remove(&generation);
                let exit = Exit::Signal { signal: 9, core: false, oom: None };
                self.event(Event::Fact(Fact::Exited { generation, exit }));
            } else if wire.is_some_and(|wire| heap.anon + heap.cache >= wire) {
                let news = WireNews::Pressed(self.heaps.split(generation));
                self.event(Event::Fact(Fact::Wire { generation, news }));
            }
        }
    }

    fn online(&self) -> usize {
        self.words().iter().filter(|&&word| word == "online").count()
    }
}

const M: u64 = 1 << 20;

fn limited() -> Rules {
    Rules { memory_limit: Some(200 * M), memory_max: Some(250 * M), ..rules() }
}

/// Holds that many MB at its start, and leaks that many a second.
fn leaking(anon: u64, leaks: u64) -> Heap {
    Heap { anon: anon * M, leaks: leaks * M, ..Heap::default() }
}

#[test]
fn a_leak_is_replaced_while_it_serves() {
    let mut world = World::watched(2, &limited(), &[], &[(1, leaking(100, 1))]);
    world.run(99_000);
    assert_eq!(world.heaps.looks, 0, "nothing is looked at before the wire is touched");
    world.trace.clear();
    world.run(120_000);
    let split = " unreclaimable (anon 200M, file 0, kernel 0, swap 0)";
    insta::assert_snapshot!(world.trace.replace(split, ""), @r"
     100001 lift 1
     100001 0: uses 200M, over max_memory_restart 200M: replacing it
     100001 0: starting
     100001 spawn 0.3 of 1
     100001 0: online after 0ms
     102001 0: takes over from generation 1
     102001 0: draining: another takes its place
     102101 0: exited with code 1, as asked
     102101 memory replacement done
    ");
    let status = world.policy.status(Moment::from_ms(world.now));
    assert_eq!((status.slots[0].restarts, status.slots[0].unstable), (1, (0, 10)));
    assert!(world.policy.next_deadline().is_none(), "nothing is due any more");
}

#[test]
fn the_split_is_told() {
    let split = Split {
        unreclaimable: 201 * M,
        anon: 195 * M,
        file: 3 * M,
        kernel: 2 * M,
        swap: 0,
        current: 200 * M,
    };
    let reason = Reason::MemoryAbove { bytes: 201 * M, limit: 200 * M, split: Some(split) };
    assert_eq!(
        reason.to_string(),
        "uses 201M unreclaimable (anon 195M, file 3M, kernel 2M, swap 0), over \
         max_memory_restart 200M: replacing it"
    );
}

#[test]
fn page_cache_replaces_nobody_and_is_heard_of_less_and_less() {
    let reader = Heap { anon: 30 * M, reads: 300 * M, ..Heap::default() };
    let mut world = World::watched(1, &limited(), &[], &[(1, reader)]);
    world.run(600_000);
    assert_eq!(world.lines("spawn").len(), 1, "{}", world.trace);
    // 1, 2, 4 … 60 seconds.
    assert_eq!(world.heaps.lifts, 15, "{}", world.trace);
    assert_eq!(world.heaps.reclaims, world.heaps.lifts);
    assert_eq!(
        world.lines("page cache"),
        ["567 0: uses 30M unreclaimable (anon 30M, file 170M, kernel 0, swap 0); its page cache \
          is over max_memory_restart 200M: reclaiming that"],
    );
    // Once a second, and once soon after each touch.
    assert!(world.heaps.looks <= 600 + world.heaps.lifts, "{}", world.heaps.looks);
}

#[test]
fn a_leak_beside_page_cache_is_found_when_it_crosses() {
    let both = Heap { anon: 100 * M, leaks: 5 * M, reads: 300 * M, ..Heap::default() };
    let mut world = World::watched(2, &limited(), &[], &[(1, both)]);
    world.run(60_000);
    let found = world.lines("replacing it");
    assert_eq!(found.len(), 1, "{}", world.trace);
    let at: u64 = found[0].split(' ').next().and_then(|at| at.parse().ok()).unwrap();
    // 100 MB at 5 MB a second.
    assert!((20_000..20_200).contains(&at), "{found:?}");
}

#[test]
fn all_at_once_are_replaced_one_at_a_time_and_the_others_serve() {
    let planned: Vec<_> = (1..=3).map(|it| (it, leaking(100, 4))).collect();
    let mut world = World::watched(3, &limited(), &[Life::Good; 3], &planned);
    world.lives = [Life::Boots(500); 3].into();
    for at in (0..60_000).step_by(50) {
        world.run(at);
        assert!(world.online() >= 3, "at {at}: {}", world.trace);
        let status = world.policy.status(Moment::from_ms(at));
        assert!(status.slots.iter().filter(|slot| slot.other.is_some()).count() <= 1);
    }
    assert_eq!(
        world.lines("over max_memory_restart"),
        [
            "25001 0: uses 200M unreclaimable (anon 200M, file 0, kernel 0, swap 0), over \
             max_memory_restart 200M: replacing it",
            "25001 1: uses 200M unreclaimable (anon 200M, file 0, kernel 0, swap 0), over \
             max_memory_restart 200M: to be replaced after the memory replacement",
            "25001 2: uses 200M unreclaimable (anon 200M, file 0, kernel 0, swap 0), over \
             max_memory_restart 200M: to be replaced after the memory replacement",
            "27601 1: uses 208M unreclaimable (anon 208M, file 0, kernel 0, swap 0), over \
             max_memory_restart 200M: replacing it",
            "30201 2: uses 220M unreclaimable (anon 220M, file 0, kernel 0, swap 0), over \
             max_memory_restart 200M: replacing it",
        ]
    );
    assert_eq!(world.lines("full"), [""; 0]);
}

#[test]
fn a_leak_during_a_reload_waits_for_its_end() {
    let mut world = World::watched(2, &limited(), &[], &[(4, leaking(199, 1))]);
    world.run(20_000).wish(1, Wish::Reload { release: ReleaseId(2), rules: limited() });
    world.run(60_000);
    assert_eq!(
        world.lines("over max_memory_restart"),
        [
            "23101 1: uses 200M unreclaimable (anon 200M, file 0, kernel 0, swap 0), over \
             max_memory_restart 200M: to be replaced after the reload",
            "24200 1: uses 200M unreclaimable (anon 200M, file 0, kernel 0, swap 0), over \
             max_memory_restart 200M: replacing it",
        ],
        "{}",
        world.trace
    );
    assert_eq!(world.lines("#1"), ["24200 #1 done"]);
}

#[test]
fn who_grows_too_fast_for_a_boot_is_stopped_first_if_another_serves() {
    for (slots, hurries) in [(2, 1), (1, 0)] {
        let lives: Vec<Life> = vec![Life::Boots(3000); 9];
        let mut world = World::watched(slots, &limited(), &lives, &[(1, leaking(100, 20))]);
        world.run(30_000);
        assert_eq!(world.lines("stopping it first").len(), hurries, "{}", world.trace);
        // 50 MB at 20 MB a second, where a boot takes three seconds.
        assert_eq!(world.lines("full").len(), 1 - hurries, "{}", world.trace);
        assert_eq!(world.words(), vec!["online"; slots.into()]);
        assert_eq!(world.lines("spawn").len(), usize::from(slots) + 1);
        let status = world.policy.status(Moment::from_ms(world.now));
        assert_eq!(status.slots[0].unstable.0, 0, "{}", world.trace);
    }
}

#[test]
fn who_has_the_time_waits_and_who_has_none_for_a_proof_leaves_at_once() {
    // A boot of one second and two of proof: five seconds of room, and two and a half.
    for (leaks, takes_over_ms) in [(10, 3000), (20, 1000)] {
        let lives = [Life::Boots(1000); 9];
        let mut world = World::watched(2, &limited(), &lives, &[(1, leaking(100, leaks))]);
        world.run(30_000);
        let times: Vec<u64> = ["replacing it", "takes over"]
            .iter()
            .map(|what| world.lines(what)[0].split(' ').next().unwrap().parse().unwrap())
            .collect();
        let passed = times[1] - times[0];
        assert!((takes_over_ms..takes_over_ms + 5).contains(&passed), "{}", world.trace);
        assert_eq!((world.lines("full").len(), world.lines("first").len()), (0, 0));
    }
}

#[test]
fn what_is_freed_before_its_turn_is_not_replaced() {
    let mut world = World::watched(2, &limited(), &[], &[(1, leaking(100, 20))]);
    world.run(4000).wish(1, Wish::Reload { release: ReleaseId(1), rules: limited() });
    world.lives = [Life::Hangs].into();
    // Slot 0 is being reloaded when it leaks, and then it collects its garbage.
    world.run(5500);
    if let Some((heap, ..)) = world.heaps.all.get_mut(&Generation(1)) {
        *heap = leaking(50, 0);
    }
    world.run(20_000);
    assert_eq!(world.lines("replacing it"), [""; 0], "{}", world.trace);
    assert_eq!(world.lines("arm 1").len(), 0, "it has left by then");
    let mut world = World::watched(1, &limited(), &[Life::Boots(8000)], &[(1, leaking(100, 20))]);
    world.run(5500);
    if let Some((heap, ..)) = world.heaps.all.get_mut(&Generation(1)) {
        *heap = leaking(50, 0);
    }
    world.run(20_000);
    assert_eq!(world.lines("arm 1").len(), 1, "{}", world.trace);
    assert_eq!(world.lines("spawn").len(), 1);
    assert!(world.policy.next_deadline().is_none());
}

#[test]
fn who_waits_just_below_its_limit_is_told_of_once() {
    let mut world = World::watched(2, &limited(), &[], &[(2, leaking(199, 1))]);
    world.run(500).wish(1, Wish::Reload { release: ReleaseId(1), rules: limited() });
    world.lives = [Life::Hangs].into();
    for (until, anon) in [(2500, 195), (5000, 201), (7500, 195), (10_000, 201)] {
        world.run(until);
        if let Some((heap, ..)) = world.heaps.all.get_mut(&Generation(2)) {
            *heap = leaking(anon, 0);
        }
    }
    world.run(12_000);
    assert_eq!(world.lines("to be replaced after").len(), 1, "{}", world.trace);
}

#[test]
fn what_leaks_in_its_boot_is_replaced_once_it_is_online() {
    let rules = Rules { memory_max: None, ..limited() };
    let mut world = World::watched(1, &rules, &[Life::Boots(8000)], &[(1, leaking(100, 20))]);
    world.run(30_000);
    let over: Vec<_> = world.lines("over max_memory_restart");
    assert_eq!(over.len(), 2, "{}", world.trace);
    assert!(over[0].starts_with("5001 ") && over[0].ends_with("replaced once it is online"));
    assert!(over[1].starts_with("8000 ") && over[1].ends_with("replacing it"));
    assert_eq!(world.words(), ["online"]);
}

#[test]
fn a_limit_below_the_working_set_is_given_up_and_the_app_serves_on() {
    let planned: Vec<_> = (1..20).map(|it| (it, leaking(210, 0))).collect();
    let mut world = World::watched(1, &limited(), &[], &planned);
    // Whatever is charged touches the wire.
    for _ in 0..20 {
        world.touch_heaps();
        let at = world.now;
        world.run(at + 1000);
    }
    assert_eq!(world.lines("spawn 0.").len(), 4, "{}", world.trace);
    assert_eq!(world.lines("below its working set").len(), 1, "{}", world.trace);
    assert_eq!(world.words(), ["online"]);
    let looks = world.heaps.looks;
    world.run(600_000);
    assert_eq!(world.heaps.looks, looks, "it is left alone");
    assert!(world.policy.next_deadline().is_none());
    // A person says that it counts again, and the next release is another matter too.
    world.wish(7, Wish::Reset { slot: None });
    assert_eq!(world.lines("arm").len(), 1, "{}", world.trace);
    world.run(700_000);
    assert_eq!(world.lines(": replacing it").len(), 4, "{}", world.trace);
}

#[test]
fn a_replacement_that_fails_is_tried_again_with_patience() {
    let rules = Rules { memory_max: None, ..limited() };
    let mut world = World::watched(1, &rules, &[], &[(1, leaking(100, 5))]);
    world.run(15_000);
    world.lives = [Life::Dies(10); 5].into();
    world.run(200_000);
    let spawns = spawns(&world);
    let waits: Vec<u64> = spawns.windows(2).map(|pair| pair[1] - pair[0]).skip(1).collect();
    assert_eq!(waits, [1010, 2010, 4010, 8010, 16_010], "{}", world.trace);
    assert_eq!(world.lines("below its working set"), [""; 0]);
    assert_eq!(world.words(), ["online"]);
}

#[test]
fn a_supervisor_that_dies_between_lift_and_replacement_changes_nothing() {
    let planned = [(1, leaking(100, 1)), (2, leaking(100, 1))];
    let mut world = World::watched(2, &limited(), &[], &planned);
    for at in (90_000..115_000).step_by(250) {
        world.run(at);
        let text = serde_json::to_vec(world.policy.saved()).unwrap();
        let fleet: Fleet = serde_json::from_slice(&text).unwrap();
        let releases = BTreeMap::from([(ReleaseId(1), limited())]);
        let (now, mut out) = (Moment::from_ms(at), Vec::new());
        let adopted = Policy::adopt(fleet, releases, now, &mut out);
        assert_eq!(adopted.saved(), world.policy.saved());
        world.policy = adopted;
        let mut events = VecDeque::new();
        for action in out {
            world.perform(action, &mut events);
        }
        for event in events {
            world.event(event);
        }
        world.event(Event::Tick);
    }
    assert_eq!(world.lines("spawn").len(), 4, "{}", world.trace);
    assert_eq!(world.lines("memory replacement done").len(), 2, "{}", world.trace);
    assert_eq!(world.words(), ["online", "online"]);
}

#[test]
fn the_wire_of_one_that_drains_is_lifted_and_nothing_more() {
    let lives = [Life::Stubborn];
    let mut world = World::watched(1, &limited(), &lives, &[(1, leaking(100, 20))]);
    world.run(3000).wish(1, Wish::Stop { slot: None }).run(7000);
    assert_eq!(world.lines("lift"), ["5001 lift 1"], "{}", world.trace);
    assert_eq!((world.heaps.looks, world.lines("over max")), (0, vec![]));
}

#[test]
fn without_a_shared_port_the_old_one_makes_room() {
    let rules = Rules { beside: false, ..limited() };
    let mut world = World::watched(1, &rules, &[], &[(1, leaking(100, 10))]);
    world.run(30_000);
    assert_eq!(
        world.lines("spawn"),
        ["0 spawn 0.1 of 1", "10101 spawn 0.2 of 1"],
        "{}",
        world.trace
    );
    assert_eq!(world.lines("memory replacement done").len(), 1);
}

#[test]
fn news_of_the_past_changes_nothing() {
    let mut world = World::watched(1, &limited(), &[], &[(1, leaking(100, 0))]);
    world.run(20_000);
    let split = Split { unreclaimable: 150 * M, ..Split::default() };
    let before = world.policy.saved().clone();
    for news in [
        WireNews::Seen(split),
        WireNews::Reclaimed(split),
        WireNews::Armed { split, stands: true },
        WireNews::Armed { split, stands: false },
    ] {
        for generation in [Generation(1), Generation(9)] {
            world.event(Event::Fact(Fact::Wire { generation, news }));
        }
    }
    assert_eq!(world.policy.saved(), &before);
}

#[test]
fn a_drain_that_ends_at_the_cap_is_told_as_that() {
    let oom = Some(Oom::Cap(100 * M));
    let exit = Some(Exit::Signal { signal: 9, core: false, oom });
    assert_eq!(
        Reason::Ended { exit }.to_string(),
        "was OOM-killed at memory_max 100M before it had drained"
    );
}

/// What is over its limit and was given up stays so where other limits change: its wire is away.
#[test]
fn what_was_given_up_stays_so_under_the_same_limit() {
    let given_up = |world: &World| {
        let saved = serde_json::to_value(world.policy.saved()).unwrap();
        saved["slots"][0]["memory"]["given_up"] == true
    };
    let planned: Vec<_> = (1..20).map(|it| (it, leaking(210, 0))).collect();
    let mut world = World::watched(1, &limited(), &[], &planned);
    for _ in 0..20 {
        world.touch_heaps();
        let at = world.now;
        world.run(at + 1000);
    }
    assert!(given_up(&world), "{}", world.trace);
    let spawned = world.lines("spawn").len();
    let wider = Rules { memory_max: Some(1 << 30), ..limited() };
    let wish = Wish::Adjust { release: ReleaseId(2), rules: wider.clone() };
    world.event(Event::Wish(Some(Ticket(1)), wish));
    world.run(60_000);
    assert!(given_up(&world), "{}", world.trace);
    assert_eq!(world.lines("spawn").len(), spawned);
    let higher = Rules { memory_limit: wider.memory_limit.map(|it| it + 1), ..wider };
    let wish = Wish::Adjust { release: ReleaseId(3), rules: higher };
    world.event(Event::Wish(Some(Ticket(2)), wish));
    assert!(!given_up(&world), "{}", world.trace);
}

#[test]
fn a_first_limit_of_a_running_instance_is_watched_by_the_kernel() {
    let unlimited = Rules { memory_limit: None, ..limited() };
    let mut world = World::watched(2, &unlimited, &[], &[(1, leaking(100, 1))]);
    world.run(10_000);
    let wish = Wish::Adjust { release: ReleaseId(2), rules: limited() };
    world.event(Event::Wish(Some(Ticket(1)), wish));
    world.run(99_000);
    assert_eq!(world.lines("arm "), ["10000 arm 1", "10000 arm 2"]);
    assert_eq!((world.heaps.looks, world.lines("replacing").len()), (0, 0), "{}", world.trace);
    world.run(120_000);
    assert_eq!(world.lines("replacing").len(), 1, "{}", world.trace);
    // Taken away again, nobody is held up by it.
    let wish = Wish::Adjust { release: ReleaseId(3), rules: unlimited };
    world.event(Event::Wish(Some(Ticket(2)), wish));
    assert_eq!(world.lines("120000 lift "), ["120000 lift 3", "120000 lift 2"]);
}

/// What is spawned has the wire of the release that the action named.
#[test]
fn limits_that_change_while_it_is_spawned_hold_once_it_is() {
    let unlimited = Rules { memory_limit: None, ..limited() };
    let generation = Generation(1);
    let order = |order| Action::Wire { generation, order };
    let at = Moment::from_ms;
    let arm = WireOrder::Arm { limit: 200 * M };
    for (first, second, expected) in
        [(&unlimited, limited(), arm), (&limited(), unlimited.clone(), WireOrder::Lift)]
    {
        let releases = BTreeMap::from([(ReleaseId(1), first.clone())]);
        let fleet = Fleet::new(1, ReleaseId(1));
        let mut policy = Policy::adopt(fleet, releases, at(1), &mut Vec::new());
        let mut out = Vec::new();
        policy.handle(at(2), Event::Tick, &mut out);
        let wish = Wish::Adjust { release: ReleaseId(2), rules: second };
        policy.handle(at(2), Event::Wish(Some(Ticket(1)), wish), &mut out);
        let is_wire = |action: &&Action| matches!(action, Action::Wire { .. });
        assert_eq!(out.iter().find(is_wire), None, "nothing is there yet: {out:?}");
        out.clear();
        policy.handle(at(3), Event::Fact(Fact::Spawned { generation, pid: 7 }), &mut out);
        assert!(out.contains(&order(expected)), "{out:?}");
    }
}

/// It was put up by a process that was slower than the one who took the limit away.
#[test]
fn a_wire_without_a_limit_is_lifted() {
    let unlimited = Rules { memory_limit: None, ..limited() };
    let split = Split::default();
    for news in [WireNews::Pressed(split), WireNews::Armed { split, stands: true }] {
        let mut world = World::watched(1, &unlimited, &[], &[]);
        world.run(1000);
        world.event(Event::Fact(Fact::Wire { generation: Generation(1), news }));
        assert_eq!(world.heaps.lifts, 1, "{}", world.trace);
    }
}

/// A spawn that was not recorded, and a wire that was touched before the next supervisor looked.
#[test]
fn an_instance_whose_spawn_nobody_recorded_is_looked_at() {
    let releases = BTreeMap::from([(ReleaseId(1), limited())]);
    let fleet = Fleet::new(1, ReleaseId(1));
    let at = Moment::from_ms;
    let mut policy = Policy::adopt(fleet, releases.clone(), at(1), &mut Vec::new());
    policy.handle(at(2), Event::Tick, &mut Vec::new());
    let mut out = Vec::new();
    let mut next = Policy::adopt(policy.saved().clone(), releases, at(900), &mut out);
    let generation = Generation(1);
    let order = |order| Action::Wire { generation, order };
    assert_eq!(out, [order(WireOrder::Look)]);
    out.clear();
    next.handle(at(900), Event::Fact(Fact::Spawned { generation, pid: 7 }), &mut out);
    let split = Split { unreclaimable: 300 * M, anon: 300 * M, ..Split::default() };
    let news = WireNews::Seen(split);
    next.handle(at(900), Event::Fact(Fact::Wire { generation, news }), &mut out);
    assert!(out.contains(&order(WireOrder::Lift)), "{out:?}");
}
