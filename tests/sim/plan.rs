//! What a history is made of: all of it follows from one number.

use std::time::Duration;

use pmr::policy::Rules;
use pmr::spec::{Backoff, RestartRules};

/// Splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `end` − 1.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        let index = usize::try_from(self.below(u64::try_from(choices.len()).unwrap_or(1)));
        choices[index.unwrap_or_default()]
    }
}

/// Something from outside.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stimulus {
    Start(Option<u16>),
    Stop(Option<u16>),
    Restart(Option<u16>),
    Reload {
        broken: bool,
    },
    Scale(u16),
    Signal,
    Reset(Option<u16>),
    ShutDown {
        now: bool,
    },
    /// Every instance crashes.
    CrashAll,
    /// Every instance passes its memory limit.
    LeakAll,
    /// The supervisor dies after so many more effects, and the next one starts so much later.
    Die {
        effects: u64,
        down_ms: u64,
        reduced: bool,
    },
    /// The machine was suspended: the clock jumps.
    Jump {
        ms: u64,
    },
}

/// How often what goes wrong, in percent of the instances.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    pub(crate) crash: u64,
    pub(crate) hang: u64,
    pub(crate) stubborn: u64,
    pub(crate) unkillable: u64,
    pub(crate) linger: u64,
    pub(crate) leak: u64,
    pub(crate) exec: u64,
    pub(crate) spawn: u64,
    /// Leaks that end at `memory_max`.
    pub(crate) burst: u64,
    /// Instances that fill the page cache again and again.
    pub(crate) read: u64,
    /// Trip-wires that cannot be put up again.
    pub(crate) wire: u64,
}

impl Faults {
    pub(crate) const NONE: Self = Self {
        crash: 0,
        hang: 0,
        stubborn: 0,
        unkillable: 0,
        linger: 0,
        leak: 0,
        exec: 0,
        spawn: 0,
        burst: 0,
        read: 0,
        wire: 0,
    };

    /// Each makes one kind of fault go away.
    pub(crate) const REPAIRS: [fn(&mut Self); 11] = [
        |faults| faults.crash = 0,
        |faults| faults.hang = 0,
        |faults| faults.stubborn = 0,
        |faults| faults.unkillable = 0,
        |faults| faults.linger = 0,
        |faults| faults.leak = 0,
        |faults| faults.exec = 0,
        |faults| faults.spawn = 0,
        |faults| faults.burst = 0,
        |faults| faults.read = 0,
        |faults| faults.wire = 0,
    ];
}

/// A history.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) slots: u16,
    pub(crate) rules: Rules,
    pub(crate) faults: Faults,
    /// Whether the kernel watches the memory of the instances.
    pub(crate) watched: bool,
    /// In the order of their times, in milliseconds.
    pub(crate) stimuli: Vec<(u64, Stimulus)>,
    /// After this nothing goes wrong any more.
    pub(crate) calm_from: u64,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let slots = random.pick(&[1, 1, 2, 2, 2, 3]);
        let rules = rules(&mut random);
        // What came later has numbers of its own, so that the seeds of before are what they were.
        let mut later = Random::new(seed.rotate_left(32) ^ 1);
        let faults = faults(&mut random, &mut later);
        let watched = later.chance(60);
        let calm_from = random.pick(&[5000, 20_000, 60_000]);
        let mut stimuli = Vec::new();
        let count = random.below(9);
        let moment = random.below(calm_from);
        let at_once = random.chance(25);
        for _ in 0..count {
            let at = if at_once { moment } else { random.below(calm_from) };
            stimuli.push((at, stimulus(&mut random, slots)));
        }
        stimuli.sort_by_key(|(at, _)| *at);
        Self { seed, slots, rules, faults, watched, stimuli, calm_from }
    }
}

fn rules(random: &mut Random) -> Rules {
    let base = ms(random.pick(&[100, 1000]));
    let backoff = random.chance(50).then_some(Backoff { base, max: ms(15_000) });
    Rules {
        restart: RestartRules {
            autorestart: !random.chance(8),
            stop_exit_codes: if random.chance(20) { vec![0] } else { vec![] },
            max_restarts: random.pick(&[1, 2, 3, 10]),
            window: ms(random.pick(&[u64::MAX >> 20, u64::MAX >> 20, 10_000])),
            min_uptime: ms(random.pick(&[0, 1000, 10_000])),
            delay: ms(random.pick(&[0, 0, 2000])),
            backoff,
        },
        listen_timeout: ms(random.pick(&[1000, 3000, 30_000])),
        stop_timeout: ms(random.pick(&[0, 500, 1600, 5000])),
        memory_limit: random.chance(70).then_some(1000),
        memory_max: Some(2000),
        stable_for: ms(random.pick(&[0, 500, 2000])),
        beside: random.chance(60),
    }
}

fn faults(random: &mut Random, later: &mut Random) -> Faults {
    let mut rate = |rates: &[u64]| random.pick(rates);
    let mut later = |rates: &[u64]| later.pick(rates);
    Faults {
        crash: rate(&[0, 20, 50, 95]),
        hang: rate(&[0, 0, 10, 40]),
        stubborn: rate(&[0, 10, 50]),
        unkillable: rate(&[0, 0, 0, 20]),
        linger: rate(&[0, 0, 30]),
        leak: rate(&[0, 0, 30, 90]),
        exec: rate(&[0, 0, 0, 20]),
        spawn: rate(&[0, 0, 0, 30]),
        burst: later(&[0, 20, 80]),
        read: later(&[0, 0, 30, 90]),
        wire: later(&[0, 0, 30]),
    }
}

fn stimulus(random: &mut Random, slots: u16) -> Stimulus {
    let slot = random.chance(50).then(|| random.pick(&[0, 0, 1, slots]));
    match random.below(28) {
        0..3 => Stimulus::Start(slot),
        3..6 => Stimulus::Stop(slot),
        6..9 => Stimulus::Restart(slot),
        9..13 => Stimulus::Reload { broken: random.chance(40) },
        13..16 => Stimulus::Scale(random.pick(&[1, 1, 2, 3, 4])),
        16 => Stimulus::Signal,
        17 => Stimulus::Reset(slot),
        18 => Stimulus::ShutDown { now: random.chance(30) },
        19 => Stimulus::CrashAll,
        20..22 => Stimulus::LeakAll,
        22 => Stimulus::Jump { ms: random.pick(&[10_000, 4 * 3_600_000]) },
        _ => Stimulus::Die {
            effects: random.below(8),
            down_ms: random.pick(&[0, 0, 100, 2000, 10_000]),
            reduced: random.chance(10),
        },
    }
}
