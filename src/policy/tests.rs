//! Traces in text: how each instance behaves goes in, what the core did and when comes out.
#![expect(clippy::arithmetic_side_effects, reason = "the times of a test are small")]

use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::spec::RestartRules;
use world::{Life, World, ms, rules, story};

mod leaks;
mod world;

/// The times of the spawns in a trace.
fn spawns(world: &World) -> Vec<u64> {
    let time = |line: &String| line.split(' ').next().and_then(|at| at.parse().ok()).unwrap();
    world.lines("spawn ").iter().map(time).collect()
}

#[test]
fn the_crash_at_three_forty_five() {
    let mut world = World::new(2, &story(), &[Life::Dies(3_600_000)]);
    world.run(3_700_000);
    insta::assert_snapshot!(world.trace, @r"
          0 0: starting
          0 spawn 0.1 of 1
          0 1: starting
          0 spawn 1.2 of 1
          0 0: online after 0ms
          0 1: online after 0ms
          0 unit: ready
    3600000 0: exited with code 1 after 1h; restarting in 2s (limit 0/10)
    3602000 0: starting
    3602000 spawn 0.3 of 1
    3602000 0: online after 0ms
    ");
    let status = world.policy.status(Moment::from_ms(3_700_000));
    assert_eq!((status.slots[0].restarts, status.slots[0].unstable), (1, (0, 10)));
}

#[test]
fn stable_again_after_an_unstable_exit() {
    let mut world = World::new(1, &story(), &[Life::Dies(5)]);
    world.run(60_000);
    assert_eq!(world.lines("stable"), ["12005 0: stable again after 10s"]);
}

#[test]
fn ten_crashes_at_once_are_ten_spawns() {
    let mut world = World::new(1, &rules(), &[Life::Dies(0); 20]);
    world.run(1000);
    assert_eq!(spawns(&world).len(), 10);
    assert_eq!(world.words(), ["errored"]);
    assert_eq!(world.policy.over(), Some(STATUS_ERRORED));
    assert_eq!(world.policy.status(Moment::default()).slots[0].restarts, 9);
}

#[test]
fn ten_crashes_with_the_storys_delays() {
    let mut world = World::new(2, &story(), &[Life::Dies(0), Life::Good]);
    world.lives = [Life::Dies(0); 20].into();
    world.run(200_000);
    let times: Vec<u64> = world
        .lines("spawn 0.")
        .iter()
        .map(|line| line.split(' ').next().and_then(|at| at.parse().ok()).unwrap())
        .collect();
    let waits: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(waits, [2000, 2000, 2000, 2000, 2000, 3200, 6400, 12_800, 15_000]);
    assert_eq!(world.words(), ["errored", "online"]);
    assert_eq!(world.policy.over(), None, "the other slot serves on");
}

#[test]
fn a_boot_that_hangs_is_given_up() {
    let rules = Rules { listen_timeout: ms(3000), ..rules() };
    let mut world = World::new(1, &rules, &[Life::Hangs; 20]);
    world.run(1_000_000);
    assert_eq!(spawns(&world).len(), 10);
    assert_eq!(world.words(), ["errored"]);
}

#[test]
fn one_that_dies_after_seven_seconds_is_given_up() {
    let mut world = World::new(1, &rules(), &[Life::Dies(7000); 20]);
    world.run(1_000_000);
    assert_eq!(spawns(&world).len(), 10);
}

#[test]
fn a_program_that_cannot_be_executed_is_given_up() {
    let mut world = World::new(1, &rules(), &[Life::NoExec; 20]);
    world.run(1000);
    assert_eq!(spawns(&world).len(), 10);
    assert_eq!(world.lines("giving up"), ["0 0: no such file; errored, giving up (limit 10/10)"]);
}

#[test]
fn a_machine_that_is_short_is_asked_again_each_second_and_nothing_counts() {
    let mut world = World::new(1, &rules(), &[Life::Again; 15]);
    world.run(60_000);
    assert_eq!(spawns(&world).len(), 16);
    assert_eq!(spawns(&world)[..4], [0, 1000, 2000, 3000]);
    assert_eq!(world.words(), ["online"]);
}

#[test]
fn stop_waits_for_the_drain_and_kills_what_does_not_mind() {
    let mut world = World::new(2, &rules(), &[Life::Good, Life::Stubborn]);
    world.run(20_000).wish(7, Wish::Stop { slot: None }).run(60_000);
    assert_eq!(world.lines("#7"), ["25000 #7 done"]);
    assert_eq!(world.lines("stopped"), ["20100 0: stopped", "25000 1: stopped"]);
    assert_eq!(world.words(), ["stopped", "stopped"]);
    assert_eq!(world.policy.over(), None, "a person may start it again");
    world.wish(8, Wish::Stop { slot: None }).wish(9, Wish::Start { slot: None }).run(70_000);
    assert_eq!(world.lines("#8"), ["60000 #8 nothing to do"]);
    assert_eq!(world.lines("#9"), ["60000 #9 done"]);
}

#[test]
fn exits_that_were_asked_for_never_count() {
    let mut world = World::new(1, &rules(), &[]);
    for round in 0..20 {
        let at = world.now;
        world.wish(round, Wish::Restart { slot: None, release: ReleaseId(2), rules: rules() });
        world.run(at + 3000);
    }
    assert_eq!(world.lines("done").len(), 40, "{}", world.trace);
    assert_eq!(spawns(&world).len(), 21, "also where the release is the same");
    let status = world.policy.status(Moment::from_ms(world.now));
    assert_eq!((status.slots[0].restarts, status.slots[0].unstable), (0, (0, 10)));
}

#[test]
fn reload_starts_the_new_one_beside_the_old() {
    let mut world = World::new(2, &rules(), &[]);
    world.run(20_000);
    world.trace.clear();
    world.wish(1, Wish::Reload { release: ReleaseId(2), rules: rules() }).run(60_000);
    insta::assert_snapshot!(world.trace, @r"
      20000 reload to release 2 begins
      20000 0: starting
      20000 spawn 0.3 of 2
      20000 unit: reloading
      20000 0: online after 0ms
      22000 0: takes over from generation 1
      22000 0: draining: another takes its place
      22100 0: exited with code 1, as asked
      22100 1: starting
      22100 spawn 1.4 of 2
      22100 1: online after 0ms
      24100 1: takes over from generation 2
      24100 1: draining: another takes its place
      24200 1: exited with code 1, as asked
      24200 reload done
      24200 unit: ready
      24200 #1 done
    ");
}

#[test]
fn a_newcomer_serves_once_it_has_proved_itself_or_is_alone() {
    let serving = |world: &World| {
        let serving = world.policy.serving();
        serving.iter().map(|(slot, it)| format!("{slot}.{it}")).collect::<Vec<_>>().join(" ")
    };
    let mut world = World::new(2, &rules(), &[Life::Good, Life::Boots(500)]);
    assert_eq!(serving(&world), "0.1");
    world.run(20_000);
    assert_eq!(serving(&world), "0.1 1.2");
    world.wish(1, Wish::Reload { release: ReleaseId(2), rules: rules() });
    assert_eq!((serving(&world), world.words()[0]), ("0.1 1.2".to_owned(), "online"));
    world.run(22_000);
    assert_eq!(serving(&world), "0.3 1.2", "taken over; the old one drains");
    world.run(60_000);
    assert_eq!(serving(&world), "0.3 1.4");

    let mut world = World::new(1, &rules(), &[Life::Dies(20_500)]);
    world.run(20_000).wish(1, Wish::Reload { release: ReleaseId(2), rules: rules() });
    world.run(20_499);
    assert_eq!(serving(&world), "0.1");
    world.run(20_500);
    assert_eq!(serving(&world), "0.2", "nobody else is left");
}

#[test]
fn a_reload_that_fails_leaves_the_old_ones_serving() {
    let mut world = World::new(2, &rules(), &[]);
    world.run(20_000);
    world.lives = [Life::Dies(500)].into();
    world.trace.clear();
    world.wish(1, Wish::Reload { release: ReleaseId(2), rules: rules() }).run(60_000);
    assert_eq!(world.lines("#1"), ["20500 #1 slot 0 did not come online"]);
    assert_eq!(world.lines("spawn"), ["20000 spawn 0.3 of 2"]);
    assert_eq!(world.words(), ["online", "online"]);
    assert!(world.policy.saved().releases().iter().eq(&[ReleaseId(1)]));
}

#[test]
fn a_reload_without_a_shared_port_goes_back_to_the_old_release() {
    let alone = Rules { beside: false, ..rules() };
    let mut world = World::new(1, &alone, &[]);
    world.run(20_000);
    world.lives = [Life::Dies(500)].into();
    world.wish(1, Wish::Reload { release: ReleaseId(2), rules: alone }).run(60_000);
    assert_eq!(
        world.lines("spawn"),
        ["0 spawn 0.1 of 1", "20100 spawn 0.2 of 2", "20600 spawn 0.3 of 1"]
    );
    assert_eq!(world.lines("#1"), ["20600 #1 slot 0 did not come online"]);
    assert_eq!(world.words(), ["online"]);
}

#[test]
fn a_crash_while_its_successor_boots_promotes_the_successor() {
    let mut world = World::new(1, &rules(), &[Life::Dies(20_500)]);
    world.run(20_000).wish(1, Wish::Reload { release: ReleaseId(2), rules: rules() });
    world.run(60_000);
    assert_eq!(world.lines("spawn"), ["0 spawn 0.1 of 1", "20000 spawn 0.2 of 2"]);
    assert_eq!(world.lines("#1"), ["22000 #1 done"]);
}

#[test]
fn stop_wins_over_a_reload() {
    let mut world = World::new(2, &rules(), &[]);
    world.run(20_000).wish(1, Wish::Reload { release: ReleaseId(2), rules: rules() });
    world.run(20_500).wish(2, Wish::Stop { slot: None }).run(60_000);
    assert_eq!(world.lines("#1"), ["20500 #1 cancelled: something else took precedence"]);
    assert_eq!(world.lines("#2"), ["20600 #2 done"]);
    assert_eq!(world.words(), ["stopped", "stopped"]);
}

#[test]
fn a_second_replacement_is_refused_by_name() {
    let mut world = World::new(1, &rules(), &[]);
    let reload = Wish::Reload { release: ReleaseId(2), rules: rules() };
    world.run(20_000).wish(1, reload.clone()).wish(2, reload);
    assert_eq!(world.lines("#2"), ["20000 #2 a reload is running"]);
}

#[test]
fn scaling_adds_at_the_end_and_takes_from_the_end() {
    let mut world = World::new(2, &rules(), &[]);
    world.run(1000).wish(1, Wish::Scale { count: 4 }).run(2000);
    assert_eq!(world.words(), ["online"; 4]);
    world.wish(2, Wish::Scale { count: 1 }).run(3000);
    assert_eq!(world.words(), ["online"]);
    world.wish(3, Wish::Scale { count: 1 }).wish(4, Wish::Scale { count: 0 });
    assert_eq!(
        world.lines("#"),
        [
            "1000 #1 done",
            "2100 #2 done",
            "3000 #3 nothing to do",
            "3000 #4 0 is no number of instances: 1 to 256"
        ]
    );
}

#[test]
fn finished_slots_end_the_service_with_zero() {
    let restart = RestartRules { autorestart: false, ..rules().restart };
    let mut world = World::new(2, &Rules { restart, ..rules() }, &[Life::Dies(5), Life::Dies(9)]);
    world.run(100);
    assert_eq!(world.words(), ["stopped", "stopped"]);
    assert_eq!(world.policy.over(), Some(0));
}

#[test]
fn some_finished_and_the_rest_errored_is_a_failure() {
    let restart = RestartRules { stop_exit_codes: vec![1], ..rules().restart };
    let lives: Vec<Life> = [Life::Dies(0)].into_iter().chain([Life::NoExec; 12]).collect();
    let mut world = World::new(2, &Rules { restart, ..rules() }, &lives);
    world.run(100);
    assert_eq!(world.words(), ["stopped", "errored"]);
    assert_eq!(world.policy.over(), Some(STATUS_ERRORED));
}

#[test]
fn memory_over_the_limit_is_a_graceful_replacement_and_no_crash() {
    let rules = Rules { memory_limit: Some(1000), ..rules() };
    let mut world = World::new(2, &rules, &[]);
    world.run(20_000);
    let generation = Generation(1);
    world.event(Event::Fact(Fact::Memory { generation, bytes: 1000 }));
    assert_eq!(world.lines("spawn").len(), 2, "the limit itself is allowed");
    world.event(Event::Fact(Fact::Memory { generation, bytes: 1001 }));
    let other = Generation(2);
    world.event(Event::Fact(Fact::Memory { generation: other, bytes: 5000 }));
    world.run(21_000);
    assert_eq!(world.lines("spawn").len(), 3, "one at a time");
    world.run(60_000);
    let status = world.policy.status(Moment::from_ms(world.now));
    assert_eq!((status.slots[0].restarts, status.slots[0].unstable), (1, (0, 10)));
    assert_eq!(world.words(), ["online", "online"]);
}

#[test]
fn shutdown_waits_and_a_second_one_does_not() {
    let mut world = World::new(2, &rules(), &[Life::Stubborn, Life::Good]);
    world.run(1000).wish(1, Wish::ShutDown { now: false }).run(2000);
    assert_eq!(world.words(), ["draining", "stopped"]);
    world.wish(2, Wish::ShutDown { now: true });
    assert_eq!(world.policy.over(), Some(0));
    world.wish(3, Wish::Start { slot: None });
    assert_eq!(world.lines("#3"), ["2000 #3 the app is shutting down"]);
}

#[test]
fn a_fact_about_nobody_changes_nothing() {
    let mut world = World::new(2, &rules(), &[]);
    world.run(1000);
    let before = world.policy.saved().clone();
    let generation = Generation(99);
    let exit = Exit::Code(0);
    for fact in [
        Fact::Spawned { generation, pid: 1 },
        Fact::Ready { generation },
        Fact::Exited { generation, exit },
        Fact::Cleared { generation },
        Fact::Lost { generation },
    ] {
        world.event(Event::Fact(fact));
    }
    assert_eq!(world.policy.saved(), &before);
}

#[test]
fn saved_and_adopted_is_the_same() {
    let mut world = World::new(2, &story(), &[Life::Dies(5), Life::Stubborn]);
    world.run(1000).wish(1, Wish::Stop { slot: Some(SlotId(1)) }).run(1500);
    let saved = serde_json::to_vec(world.policy.saved()).unwrap();
    let fleet: Fleet = serde_json::from_slice(&saved).unwrap();
    let releases = BTreeMap::from([(ReleaseId(1), story())]);
    let mut out = Vec::new();
    let adopted = Policy::adopt(fleet, releases, Moment::from_ms(1500), &mut out);
    assert_eq!(adopted.saved(), world.policy.saved());
    assert_eq!(out, [Action::Announce(UnitState::Ready)], "everything else was carried out");
}

#[test]
fn what_was_not_carried_out_is_said_again() {
    let mut world = World::new(1, &rules(), &[]);
    world.run(1000);
    let mut out = Vec::new();
    let wish = Event::Wish(None, Wish::Stop { slot: None });
    world.policy.handle(Moment::from_ms(1000), wish, &mut out);
    let releases = BTreeMap::from([(ReleaseId(1), rules())]);
    let mut again = Vec::new();
    let fleet = world.policy.saved().clone();
    drop(Policy::adopt(fleet, releases, Moment::from_ms(1001), &mut again));
    let ready = Action::Announce(UnitState::Ready);
    assert_eq!(again, [Action::Signal { generation: Generation(1) }, ready]);
}

#[test]
fn a_slot_stopped_in_its_first_start_does_not_hold_up_ready() {
    let mut world = World::new(2, &rules(), &[Life::Hangs, Life::Hangs]);
    world.wish(1, Wish::Stop { slot: Some(SlotId(0)) });
    world.event(Event::Fact(Fact::Ready { generation: Generation(2) }));
    assert_eq!(world.lines("ready"), ["0 unit: ready"]);
}

/// What `status` says in one line now.
fn line(world: &World) -> String {
    world.policy.status(Moment::from_ms(world.now)).line()
}

#[test]
fn the_status_line_is_true_in_every_state_of_the_unit() {
    let lives = [Life::Good, Life::Hangs, Life::Good, Life::Good, Life::Good];
    let mut world = World::new(2, &rules(), &lives);
    assert_eq!(line(&world), "starting: 1/2 online, 1 launching, gen 2, 0 restarts/h");
    assert!(world.policy.status(Moment::from_ms(0)).awaited);
    world.event(Event::Fact(Fact::Ready { generation: Generation(2) }));
    assert_eq!(line(&world), "2/2 online, gen 2, 0 restarts/h");
    assert!(!world.policy.status(Moment::from_ms(0)).awaited);
    world
        .run(20_000)
        .event(Event::Fact(Fact::Exited { generation: Generation(1), exit: Exit::Code(1) }));
    world.run(25_000);
    assert_eq!(line(&world), "2/2 online, gen 3, 1 restarts/h");
    let (release, rules) = (ReleaseId(2), rules());
    world.wish(1, Wish::Reload { release, rules });
    assert_eq!(line(&world), "reloading: 2/2 online, gen 4, 1 restarts/h");
    assert!(world.policy.status(Moment::from_ms(0)).awaited);
    world.run(40_000);
    assert_eq!(line(&world), "2/2 online, gen 5, 1 restarts/h");
    let hour = 20_000 + 3_600_000;
    let lately = |at| world.policy.status(Moment::from_ms(at)).lately.count;
    assert_eq!((lately(hour - 1), lately(hour)), (1, 0));
    world.wish(2, Wish::Stop { slot: Some(SlotId(0)) }).run(50_000);
    assert_eq!(line(&world), "1/2 online, 1 stopped, gen 5, 1 restarts/h");
    world.wish(3, Wish::ShutDown { now: false });
    let stopping = "stopping: 0/2 online, 1 draining, 1 stopped, gen 5, 1 restarts/h";
    assert_eq!(line(&world), stopping);
    assert!(world.policy.status(Moment::from_ms(0)).awaited);
    world.run(60_000);
    assert_eq!(
        world.lines("unit: "),
        ["0 unit: ready", "25000 unit: reloading", "29200 unit: ready", "50000 unit: stopping"]
    );
}

#[test]
fn a_slot_that_gave_up_is_said_beside_those_that_serve() {
    let mut lives = [Life::NoExec; 11];
    lives[1] = Life::Hangs;
    let mut world = World::new(2, &rules(), &lives);
    world.run(1000);
    assert_eq!(line(&world), "starting: 0/2 online, 1 launching, 1 errored, gen 11, 9 restarts/h");
    world.event(Event::Fact(Fact::Ready { generation: Generation(2) }));
    assert_eq!(line(&world), "1/2 online, 1 errored, gen 11, 9 restarts/h");
}

#[test]
fn nobody_is_made_to_wait_for_a_start_that_is_over() {
    let mut world = World::new(1, &rules(), &[Life::Hangs]);
    world.wish(1, Wish::Stop { slot: None }).run(1000);
    let status = world.policy.status(Moment::from_ms(1000));
    assert_eq!((status.unit, status.awaited), (UnitState::Starting, false));
}

#[test]
fn a_hundred_restarts_in_an_hour_are_many() {
    let mut recent = RecentRestarts::default();
    for second in 0..200 {
        recent.record(Moment::from_ms(second * 1000));
    }
    let lately = |seconds: u64| recent.lately(Moment::from_ms(seconds * 1000)).to_string();
    assert_eq!(lately(200), "100+ restarts/h");
    assert_eq!(lately(3600 + 100), "99 restarts/h");
    assert_eq!(lately(10_000), "0 restarts/h");
}

#[test]
fn ready_is_not_made_up_after_deaths_in_the_first_start() {
    let survivor =
        Survivor { slot: SlotId(0), generation: Generation(3), release: ReleaseId(1), pid: 100 };
    let now = Moment::from_ms(1000);
    for announced in [false, true] {
        let fleet = Fleet::reduced(2, ReleaseId(1), &[survivor], Generation(3), announced, now);
        let releases = BTreeMap::from([(ReleaseId(1), rules())]);
        let mut out = Vec::new();
        let mut policy = Policy::adopt(fleet, releases, now, &mut out);
        policy.handle(now, Event::Tick, &mut out);
        assert_eq!(out.contains(&Action::Announce(UnitState::Ready)), announced);
        out.clear();
        let generation = Generation(4);
        policy.handle(now, Event::Fact(Fact::Spawned { generation, pid: 7 }), &mut out);
        policy.handle(now, Event::Fact(Fact::Ready { generation }), &mut out);
        assert_eq!(out.contains(&Action::Announce(UnitState::Ready)), !announced);
    }
}

#[test]
fn a_start_answers_the_stop_that_it_overtakes() {
    let mut world = World::new(1, &rules(), &[]);
    world.run(1000).wish(1, Wish::Stop { slot: None }).wish(2, Wish::Start { slot: None });
    world.run(5000);
    assert_eq!(
        world.lines("#"),
        ["1000 #1 cancelled: something else took precedence", "1100 #2 done"]
    );
}

#[test]
fn each_scaling_is_answered_when_another_follows() {
    let mut world = World::new(3, &rules(), &[]);
    world.run(1000).wish(1, Wish::Scale { count: 1 }).wish(2, Wish::Scale { count: 2 });
    world.run(5000);
    assert_eq!(
        world.lines("#"),
        ["1000 #1 cancelled: something else took precedence", "1100 #2 done"]
    );
}

#[test]
fn scaling_is_done_where_another_slot_is_stopped() {
    let mut world = World::new(2, &rules(), &[]);
    world.run(1000).wish(1, Wish::Stop { slot: Some(SlotId(0)) }).run(2000);
    world.wish(2, Wish::Scale { count: 3 }).run(3000);
    assert_eq!(world.lines("#2"), ["2000 #2 done"]);
    assert_eq!(world.words(), ["stopped", "online", "online"]);
}

#[test]
fn a_slot_that_is_scaled_away_is_neither_kept_by_a_stop_nor_by_a_start() {
    let restart = Wish::Restart { slot: None, release: ReleaseId(2), rules: rules() };
    for wish in [Wish::Stop { slot: None }, Wish::Start { slot: None }, restart] {
        let mut world = World::new(2, &rules(), &[]);
        world.run(20_000).wish(1, Wish::Scale { count: 1 }).wish(2, wish.clone()).run(40_000);
        assert_eq!(world.words().len(), 1, "{wish:?}");
        let answer = world.lines("#1");
        assert_eq!(answer.len(), 1, "{wish:?}: {answer:?}");
    }
    let mut world = World::new(2, &rules(), &[]);
    world.run(20_000).wish(1, Wish::Scale { count: 1 });
    world.wish(2, Wish::Start { slot: Some(SlotId(1)) });
    assert_eq!(world.lines("#2"), ["20000 #2 there is no slot 1"]);
}

#[test]
fn a_crash_while_an_unneeded_newcomer_drains() {
    let rules = Rules { listen_timeout: ms(1000), ..rules() };
    let mut world = World::new(1, &rules, &[Life::Dies(22_000), Life::Hangs]);
    world.run(20_000).wish(1, Wish::Reload { release: ReleaseId(2), rules: rules.clone() });
    // The newcomer hangs, and does not mind being asked to stop.
    world.running.insert(Generation(2), (SlotId(0), Life::Stubborn, None));
    world.run(60_000);
    assert_eq!(
        world.lines("spawn"),
        ["0 spawn 0.1 of 1", "20000 spawn 0.2 of 2", "22000 spawn 0.3 of 1"]
    );
    assert_eq!(world.words(), ["online"]);
}

#[test]
fn a_restart_that_ends_early_leaves_stopped_what_it_did_not_come_to() {
    let mut world = World::new(2, &rules(), &[]);
    world.run(20_000).wish(1, Wish::Stop { slot: None }).run(21_000);
    world.lives = [Life::Dies(500)].into();
    world.wish(2, Wish::Restart { slot: None, release: ReleaseId(2), rules: rules() }).run(30_000);
    assert_eq!(world.lines("#2"), ["21500 #2 slot 0 did not come online"]);
    assert_eq!(world.words(), ["online", "stopped"]);
    let releases = [1, 2].map(|id| (ReleaseId(id), rules())).into();
    let fleet = world.policy.saved().clone();
    let adopted = Policy::adopt(fleet, releases, Moment::from_ms(30_000), &mut Vec::new());
    assert_eq!(adopted.saved(), world.policy.saved());
}

#[test]
fn a_stop_wins_over_a_restart_that_has_not_come_to_the_slot() {
    let mut world = World::new(2, &rules(), &[]);
    world.run(20_000).wish(1, Wish::Stop { slot: None }).run(21_000);
    world.wish(2, Wish::Restart { slot: None, release: ReleaseId(2), rules: rules() });
    world.wish(3, Wish::Stop { slot: Some(SlotId(1)) }).run(30_000);
    assert_eq!(world.words(), ["online", "stopped"]);
    assert_eq!(world.lines("#3"), ["21000 #3 done"]);
}

#[test]
fn a_reload_to_one_that_hangs_goes_back_whatever_its_own_rules_say() {
    let alone = Rules { beside: false, listen_timeout: ms(3000), ..rules() };
    let restart = RestartRules { autorestart: false, delay: ms(7000), ..alone.restart.clone() };
    let new = Rules { restart, ..alone.clone() };
    for life in [Life::Hangs, Life::NoExec] {
        let mut world = World::new(1, &alone, &[]);
        world.run(20_000);
        world.lives = [life].into();
        let rules = new.clone();
        world.wish(1, Wish::Reload { release: ReleaseId(2), rules }).run(60_000);
        assert_eq!(world.words(), ["online"], "{life:?}");
        let last = world.lines("spawn").pop();
        assert!(last.is_some_and(|line| line.ends_with("spawn 0.3 of 1")), "{}", world.trace);
    }
}

#[test]
fn a_replacement_for_memory_forgets_no_crash() {
    for beside in [true, false] {
        let rules = Rules { memory_limit: Some(1000), beside, ..rules() };
        let mut world = World::new(1, &rules, &[Life::Dies(5), Life::Dies(5), Life::Good]);
        world.run(1000);
        let generation = Generation(3);
        world.event(Event::Fact(Fact::Memory { generation, bytes: 5000 }));
        world.run(5000);
        assert_eq!(world.lines("memory replacement done").len(), 1, "{}", world.trace);
        let status = world.policy.status(Moment::from_ms(world.now));
        assert_eq!(status.slots[0].unstable, (2, 10));
    }
}

#[test]
fn the_older_of_two_survivors_has_time_to_drain() {
    let survivor = |generation| Survivor {
        slot: SlotId(0),
        generation: Generation(generation),
        release: ReleaseId(1),
        pid: 100,
    };
    let now = Moment::from_ms(1000);
    let survivors = [survivor(4), survivor(3)];
    let fleet = Fleet::reduced(1, ReleaseId(1), &survivors, Generation(9), true, now);
    assert_eq!(fleet.last_generation, Generation(9), "what has ended keeps its number");
    let releases = BTreeMap::from([(ReleaseId(1), rules())]);
    let mut out = Vec::new();
    let mut policy = Policy::adopt(fleet, releases, now, &mut out);
    policy.handle(now, Event::Tick, &mut out);
    let ready = Action::Announce(UnitState::Ready);
    // A wire of a limit that this release does not have may stand: nobody knows.
    let lift = |it| Action::Wire { generation: Generation(it), order: WireOrder::Lift };
    assert_eq!(out, [lift(4), lift(3), Action::Signal { generation: Generation(3) }, ready]);
}

#[test]
fn a_reload_goes_on_where_its_spawn_was_lost_with_a_supervisor() {
    for beside in [true, false] {
        let rules = Rules { beside, ..rules() };
        let mut world = World::new(1, &rules, &[]);
        world.run(20_000).wish(1, Wish::Reload { release: ReleaseId(2), rules: rules.clone() });
        world.lives = [Life::Good].into();
        // The successor is told of before it is spawned, and the supervisor dies in between.
        let mut out = Vec::new();
        let mut policy = world.policy.clone();
        if !beside {
            let (generation, exit) = (Generation(1), Exit::Code(0));
            policy.handle(
                Moment::from_ms(20_100),
                Event::Fact(Fact::Exited { generation, exit }),
                &mut out,
            );
            policy.handle(
                Moment::from_ms(20_100),
                Event::Fact(Fact::Cleared { generation }),
                &mut out,
            );
            world.running.clear();
        }
        let releases = [1, 2].map(|id| (ReleaseId(id), rules.clone())).into();
        let fleet = policy.saved().clone();
        world.policy = Policy::adopt(fleet, releases, Moment::from_ms(20_100), &mut Vec::new());
        world.now = 20_100;
        world.running.remove(&Generation(2));
        world.event(Event::Fact(Fact::Lost { generation: Generation(2) }));
        world.run(60_000);
        assert_eq!(world.lines("reload done").len(), 1, "{}", world.trace);
        assert!(world.policy.saved().releases().iter().eq(&[ReleaseId(2)]));
    }
}

#[test]
fn a_start_is_not_lost_while_a_given_up_instance_is_cleared_away() {
    let restart = RestartRules { max_restarts: 1, ..rules().restart };
    let mut world = World::new(1, &Rules { restart, ..rules() }, &[]);
    let mut out = Vec::new();
    let (generation, now) = (Generation(1), Moment::from_ms(1000));
    let exit = Event::Fact(Fact::Exited { generation, exit: Exit::Code(1) });
    world.policy.handle(now, exit, &mut out);
    world.run(1000).wish(1, Wish::Start { slot: None });
    world.event(Event::Fact(Fact::Cleared { generation }));
    assert_eq!(world.lines("#1"), ["1000 #1 done"]);
    assert_eq!(world.words(), ["online"]);
}

#[test]
fn what_was_killed_long_ago_is_not_given_up_before_it_is_killed_again() {
    let mut world = World::new(1, &rules(), &[]);
    world.run(1000);
    let (now, mut out) = (Moment::from_ms(1000), Vec::new());
    let shutdown = Event::Wish(None, Wish::ShutDown { now: true });
    world.policy.handle(now, shutdown, &mut out);
    let (fleet, now) = (world.policy.saved().clone(), Moment::from_ms(60_000));
    let releases = BTreeMap::from([(ReleaseId(1), rules())]);
    world.policy = Policy::adopt(fleet, releases, now, &mut Vec::new());
    world.run(60_000).event(Event::Tick);
    assert_eq!(world.lines("cannot be killed"), [""; 0]);
    world.run(70_000);
    assert_eq!(world.lines("cannot be killed").len(), 1);
}

#[test]
fn what_was_never_asked_to_stop_has_its_time_to_after_an_adopt() {
    let mut world = World::new(1, &rules(), &[]);
    world.run(1000);
    let (now, mut out) = (Moment::from_ms(1000), Vec::new());
    world.policy.handle(now, Event::Wish(None, Wish::Stop { slot: None }), &mut out);
    let (fleet, now) = (world.policy.saved().clone(), Moment::from_ms(60_000));
    let releases = BTreeMap::from([(ReleaseId(1), rules())]);
    world.policy = Policy::adopt(fleet, releases, now, &mut Vec::new());
    world.run(60_000).event(Event::Tick);
    assert_eq!(world.lines("killing it"), [""; 0]);
    world.run(65_000);
    assert_eq!(world.lines("killing it").len(), 1);
}

#[test]
fn a_stale_spawn_failure_does_not_change_what_follows_an_exit() {
    let restart = RestartRules { max_restarts: 1, ..rules().restart };
    let mut world = World::new(1, &Rules { restart, ..rules() }, &[]);
    let (generation, now, mut out) = (Generation(1), Moment::from_ms(0), Vec::new());
    let exit = Event::Fact(Fact::Exited { generation, exit: Exit::Code(1) });
    world.policy.handle(now, exit, &mut out);
    let before = world.policy.saved().clone();
    let failure = SpawnFailure { message: "EAGAIN".to_owned(), transient: true };
    out.clear();
    let stale = Event::Fact(Fact::SpawnFailed { generation, failure });
    world.policy.handle(now, stale, &mut out);
    assert_eq!((world.policy.saved(), out), (&before, vec![]));
}

#[test]
fn limits_are_changed_without_a_restart() {
    let mut world = World::new(2, &rules(), &[]);
    world.run(1000);
    let limited = Rules { memory_limit: Some(1 << 20), ..rules() };
    let wish = Wish::Adjust { release: ReleaseId(2), rules: limited };
    world.event(Event::Wish(Some(Ticket(1)), wish));
    world.run(20_000);
    assert_eq!(world.lines(" is of "), ["1000 1 is of 2", "1000 2 is of 2"]);
    assert_eq!(spawns(&world).len(), 2);
    assert_eq!(world.policy.releases(), [ReleaseId(2)].into());
    // What follows goes by the new limits.
    assert_eq!(world.policy.memory_watched().len(), 2);
}
