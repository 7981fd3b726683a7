//! Every short sequence of events: what the core does is judged after each step.
//!
//! States that differ only in what numbers things have, and in when they happened, are one: only
//! the first of them is gone on from. So a depth of eight is reached, where there would be some
//! 10^10 sequences.
#![expect(clippy::arithmetic_side_effects, reason = "the numbers of a test are small")]

#[path = "sim/ledger.rs"]
mod ledger;
#[path = "sim/limits.rs"]
mod limits;
#[path = "exhaustive/world.rs"]
mod world;

use std::collections::BTreeSet;

use world::{LETTERS, Letter, Setup, World};

/// Walks all sequences up to `depth`, and says how many states there were.
fn walk(setup: Setup, letters: &[Letter], depth: usize) -> usize {
    let mut seen = BTreeSet::new();
    let mut level = vec![World::new(setup).expect("the first tick is sound")];
    for _ in 0..depth {
        let mut next = Vec::new();
        for world in &level {
            for &letter in letters {
                next.extend(step(world, letter, &mut seen));
            }
        }
        level = next;
    }
    seen.len()
}

fn step(world: &World, letter: Letter, seen: &mut BTreeSet<u64>) -> Option<World> {
    let mut next = world.clone();
    next.path.push(letter);
    let told = next.apply(letter);
    let is_new = matches!(told, Ok(true)) && seen.insert(next.fingerprint());
    let judged = told.and_then(|_| if is_new { next.judge() } else { Ok(()) });
    if let Err(wrong) = judged {
        let state = serde_json::to_string(next.policy.saved()).unwrap_or_default();
        panic!("{wrong}\nafter {:?}\nin {:?} with {state}", next.path, next.setup);
    }
    is_new.then_some(next)
}

/// What can happen to processes, and who wants them to run.
const FAULTS: [Letter; 11] = [
    Letter::Answer,
    Letter::FailShort,
    Letter::FailForGood,
    Letter::Ready,
    Letter::ExecFail,
    Letter::ExitOldest,
    Letter::ExitWanted,
    Letter::ToDeadline,
    Letter::Start,
    Letter::Stop,
    Letter::Adopt,
];

/// What can happen in the middle of a replacement.
const ROLLS: [Letter; 11] = [
    Letter::Answer,
    Letter::Ready,
    Letter::ExitOldest,
    Letter::ExitYoungest,
    Letter::Memory,
    Letter::ToDeadline,
    Letter::Stop,
    Letter::Restart,
    Letter::Reload,
    Letter::ScaleUp,
    Letter::Adopt,
];

/// What can happen to an instance whose memory the kernel watches.
const WIRES: [Letter; 11] = [
    Letter::Answer,
    Letter::Ready,
    Letter::ExitOldest,
    Letter::Leak,
    Letter::Cache,
    Letter::Free,
    Letter::ToDeadline,
    Letter::Stop,
    Letter::Start,
    Letter::Reload,
    Letter::Adopt,
];

const SHARED: Setup = Setup { slots: 1, beside: true, prompt: false };

#[test]
fn one_slot() {
    assert!(walk(SHARED, &LETTERS, 5) > 10_000);
}

#[test]
fn one_slot_that_does_not_share_its_port() {
    assert!(walk(Setup { beside: false, ..SHARED }, &LETTERS, 5) > 10_000);
}

#[test]
fn one_slot_and_all_that_fails() {
    assert!(walk(Setup { prompt: true, ..SHARED }, &FAULTS, 10) > 1000);
}

#[test]
fn one_slot_that_is_replaced() {
    assert!(walk(Setup { prompt: true, ..SHARED }, &ROLLS, 8) > 10_000);
}

#[test]
fn one_slot_that_is_replaced_in_its_place() {
    assert!(walk(Setup { prompt: true, beside: false, ..SHARED }, &ROLLS, 7) > 10_000);
}

#[test]
fn one_slot_that_is_watched() {
    assert!(walk(SHARED, &WIRES, 7) > 1000);
}

#[test]
fn two_slots_that_are_watched() {
    assert!(walk(Setup { slots: 2, prompt: true, ..SHARED }, &WIRES, 5) > 1000);
}

#[test]
fn two_slots() {
    assert!(walk(Setup { slots: 2, prompt: true, ..SHARED }, &LETTERS, 5) > 10_000);
}

#[test]
fn two_slots_that_do_not_share_their_port() {
    let setup = Setup { slots: 2, prompt: true, beside: false };
    assert!(walk(setup, &LETTERS, 5) > 10_000);
}

#[test]
fn two_slots_that_are_answered_late() {
    assert!(walk(Setup { slots: 2, ..SHARED }, &LETTERS, 4) > 5000);
}
