use super::MemoryDecision::{GiveUp, Leave, Replace};
use super::wire::{Seen, next_hold};
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
    let split =
        |current, unreclaimable, swap| Split { unreclaimable, swap, current, ..Split::default() };
    assert_eq!(split(1000, 30, 0).cache_above(1000), 200);
    assert_eq!(split(1000, 950, 0).cache_above(1000), 50);
    // What is swapped out is not charged.
    assert_eq!(split(1000, 950, 100).cache_above(1000), 150);
    assert_eq!(split(700, 30, 0).cache_above(1000), 0);
}
