//! Random histories of the core on a modelled machine: instances that crash, hang, leak, ignore
//! signals, cannot be started or killed; people who want everything at once; a supervisor that
//! dies between any two effects, and adopts.
//!
//! `PMR_SIM_HISTORIES` sets how many there are, `PMR_SIM_SEED` lives through one with its trace.
//! Seeds that once failed are kept in `sim/regressions.txt`, and always come first.
#![expect(clippy::arithmetic_side_effects, reason = "the numbers of a test are small")]
#![expect(clippy::indexing_slicing, reason = "a test that asks for too much should fail")]

#[path = "sim/kernel.rs"]
mod kernel;
#[path = "sim/ledger.rs"]
mod ledger;
#[path = "sim/limits.rs"]
mod limits;
#[path = "sim/plan.rs"]
mod plan;
#[path = "sim/world.rs"]
mod world;

use plan::{Faults, Plan};
use world::{Wrong, run};

const HISTORIES: u64 = 100_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text}")))
}

/// Lives through the history of a seed. One that fails is told as short as can be.
fn live(seed: u64) {
    let plan = Plan::new(seed);
    let Err(wrong) = run(&plan, false) else { return };
    let short = shorten(&plan, &wrong.what);
    let Err(Wrong { what, trace }) = run(&short, true) else {
        panic!("PMR_SIM_SEED={seed}: {}, and nothing the second time", wrong.what);
    };
    panic!("{short:#?}\n{}\nPMR_SIM_SEED={seed}: {what}", trace.join("\n"));
}

/// Leaves out of a plan what it fails without, in the same way.
fn shorten(plan: &Plan, what: &str) -> Plan {
    let words = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
    let fails = |plan: &Plan| run(plan, false).is_err_and(|it| words(&it.what) == words(what));
    let mut short = plan.clone();
    for at in (0..short.stimuli.len()).rev() {
        let mut shorter = short.clone();
        shorter.stimuli.remove(at);
        if fails(&shorter) {
            short = shorter;
        }
    }
    for repair in Faults::REPAIRS {
        let mut shorter = short.clone();
        repair(&mut shorter.faults);
        if fails(&shorter) {
            short = shorter;
        }
    }
    short
}

/// One half of the histories: the test runner has a thread for each.
fn half(first: u64) {
    let histories = number("PMR_SIM_HISTORIES").unwrap_or(HISTORIES);
    match number("PMR_SIM_SEED") {
        Some(seed) if seed % 2 == first => live(seed),
        Some(_) => {}
        None => (first..histories).step_by(2).for_each(live),
    }
}

#[test]
fn seeds_that_once_failed() {
    for line in include_str!("sim/regressions.txt").lines() {
        let seed = line.split('#').next().unwrap_or_default().trim();
        if !seed.is_empty() {
            live(seed.parse().expect("a seed in a line, and a comment"));
        }
    }
}

#[test]
fn even_seeds() {
    half(0);
}

#[test]
fn odd_seeds() {
    half(1);
}
