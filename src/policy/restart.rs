//! Whether and when an exited instance is started again: limit, window and backoff.
//!
//! An exit is *unstable* when the instance was never online, or ended less than `min_uptime` after
//! its spawn. `max_restarts` unstable exits within `restart_window` make the slot errored. The
//! window's clock counts the time in which instances of the slot were online, so that neither a
//! delay, a backoff nor a slow boot ever lets an old exit drop out of it. (In PM2 7 a delay or a
//! backoff switches the limit off: `God.js` compares with the time since the app was first
//! started.)

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::event::Exit;
use super::reason::{Failure, Verdict};
use super::time::{Moment, whole_ms};
use crate::spec::RestartRules;

/// Shortest wait after a spawn that the machine could not do (no process, memory or descriptor
/// free): such a shortage lasts, and trying at the speed of the loop would add to it.
pub(super) const SPAWN_RETRY: Duration = Duration::from_secs(1);

/// What a slot remembers of its unstable exits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartHistory {
    /// Unstable exits since the slot was last stable: the backoff's exponent.
    in_row: u32,
    /// When those that count happened, on the window's clock; at most `max_restarts`.
    stamps_ms: VecDeque<u64>,
    /// The window's clock.
    clock_ms: u64,
}

/// How many of the last restarts are remembered: more in an hour are many, however many.
const RECENT_MAX: usize = 100;

/// When the last restarts of all slots were that nobody asked for: for a count, never for a
/// decision.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentRestarts(VecDeque<Moment>);

/// How many restarts there were within the last hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartsLately {
    /// So many, or at least so many.
    pub count: usize,
    /// Older ones within the hour were forgotten.
    pub or_more: bool,
}

impl RecentRestarts {
    /// One more, at a moment that is not before the last one.
    pub(super) fn record(&mut self, now: Moment) {
        if self.0.len() >= RECENT_MAX {
            self.0.pop_front();
        }
        self.0.push_back(now);
    }

    /// The restarts of the hour before `now`.
    pub fn lately(&self, now: Moment) -> RestartsLately {
        let hour = Duration::from_hours(1);
        let count = self.0.iter().filter(|at| now.since(**at) < hour).count();
        RestartsLately { count, or_more: count >= RECENT_MAX }
    }
}

impl std::fmt::Display for RestartsLately {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{} restarts/h", self.count, if self.or_more { "+" } else { "" })
    }
}

/// How an instance ended that nobody had asked to end.
#[derive(Debug, Clone)]
pub(super) struct Ending<'a> {
    pub(super) failure: &'a Failure,
    /// From its spawn to its end.
    pub(super) lived: Duration,
    /// How long it was online; `None` if it never was.
    pub(super) online: Option<Duration>,
}

impl RestartHistory {
    /// Forgets everything: the slot is stable, or a person said so.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Whether there is nothing to forget.
    pub(super) fn is_clean(&self) -> bool {
        self.in_row == 0 && self.stamps_ms.is_empty()
    }

    /// How many unstable exits count towards the limit.
    pub fn unstable(&self) -> u32 {
        u32::try_from(self.stamps_ms.len()).unwrap_or(u32::MAX)
    }

    /// Records an end nobody asked for, and decides what follows.
    pub(super) fn decide(&mut self, rules: &RestartRules, ending: &Ending<'_>) -> Verdict {
        let stable = ending.online.is_some() && ending.lived >= rules.min_uptime;
        if stable {
            self.reset();
        }
        let retry = |wait: Duration| Verdict::Restart { after: wait };
        match ending.failure {
            Failure::Exit(exit) => {
                let wanted = match exit {
                    Exit::Code(code) => rules.stop_exit_codes.contains(code),
                    Exit::Signal { .. } | Exit::Unseen => false,
                };
                if wanted || !rules.autorestart {
                    return Verdict::Finished;
                }
            }
            Failure::StartTimeout | Failure::Exec(_) | Failure::Spawn(_) => {
                if !rules.autorestart {
                    return Verdict::Errored;
                }
            }
        }
        if stable {
            return retry(self.wait(rules));
        }
        self.count(rules, ending.online.unwrap_or_default());
        if self.unstable() >= rules.max_restarts {
            return Verdict::Errored;
        }
        retry(self.wait(rules))
    }

    /// The wait after a spawn the machine could not do: no fault of the app, so nothing is counted.
    pub(super) fn wait_for_machine(&self, rules: &RestartRules) -> Duration {
        self.wait(rules).max(SPAWN_RETRY)
    }

    fn count(&mut self, rules: &RestartRules, online: Duration) {
        self.clock_ms = self.clock_ms.saturating_add(whole_ms(online));
        self.in_row = self.in_row.saturating_add(1);
        self.stamps_ms.push_back(self.clock_ms);
        let window_ms = whole_ms(rules.window);
        let limit = usize::try_from(rules.max_restarts).unwrap_or(usize::MAX);
        while let Some(&oldest) = self.stamps_ms.front() {
            let old = self.clock_ms.saturating_sub(oldest) >= window_ms && window_ms > 0;
            if !old && self.stamps_ms.len() <= limit {
                break;
            }
            self.stamps_ms.pop_front();
        }
    }

    /// max(`restart_delay`, base × 2^(max(n, 1) − 1)), n = unstable exits in a row; the backoff is
    /// capped, the delay is not.
    fn wait(&self, rules: &RestartRules) -> Duration {
        let Some(backoff) = rules.backoff else { return rules.delay };
        let doublings = self.in_row.max(1).saturating_sub(1);
        let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
        rules.delay.max(backoff.base.saturating_mul(factor).min(backoff.max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Backoff;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn rules() -> RestartRules {
        RestartRules {
            autorestart: true,
            stop_exit_codes: vec![],
            max_restarts: 10,
            window: ms(100_000),
            min_uptime: ms(10_000),
            delay: Duration::ZERO,
            backoff: None,
        }
    }

    const CRASH: Failure = Failure::Exit(Exit::Code(1));

    /// The waits after a number of crashes, each instance online at once and alive for `lived`.
    fn waits(rules: &RestartRules, crashes: u32, lived: Duration) -> Vec<Option<u64>> {
        let mut history = RestartHistory::default();
        (0..crashes)
            .map(|_| {
                let ending = Ending { failure: &CRASH, lived, online: Some(lived) };
                match history.decide(rules, &ending) {
                    Verdict::Restart { after } => Some(whole_ms(after)),
                    Verdict::Errored | Verdict::Finished => None,
                }
            })
            .collect()
    }

    #[test]
    fn the_tenth_crash_at_once_is_the_last() {
        let mut expected = vec![Some(0); 9];
        expected.push(None);
        assert_eq!(waits(&rules(), 10, ms(5)), expected);
    }

    #[test]
    fn the_storys_delays() {
        let backoff = Some(Backoff { base: ms(100), max: ms(15_000) });
        let rules = RestartRules { delay: ms(2000), backoff, ..rules() };
        assert_eq!(
            waits(&rules, 10, ms(5)),
            [2000, 2000, 2000, 2000, 2000, 3200, 6400, 12_800, 15_000]
                .map(Some)
                .into_iter()
                .chain([None])
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn backoff_doubles_and_is_capped() {
        let backoff = Some(Backoff { base: ms(100), max: ms(1500) });
        let rules = RestartRules { backoff, max_restarts: 100, ..rules() };
        assert_eq!(
            waits(&rules, 7, ms(5)),
            [100, 200, 400, 800, 1500, 1500, 1500].map(Some).to_vec()
        );
        // 2^40 times the base does not overflow.
        assert_eq!(waits(&rules, 41, ms(5)).last(), Some(&Some(1500)));
    }

    #[test]
    fn an_app_that_dies_after_seven_seconds_is_given_up() {
        assert_eq!(waits(&rules(), 10, ms(7000)).iter().filter(|wait| wait.is_none()).count(), 1);
    }

    #[test]
    fn one_that_lives_min_uptime_is_never_given_up() {
        assert!(waits(&rules(), 50, ms(10_000)).iter().all(Option::is_some));
    }

    #[test]
    fn a_short_window_forgets() {
        let rules = RestartRules { window: ms(10_000), max_restarts: 3, ..rules() };
        // One crash in each six seconds of running: two at most within ten seconds.
        assert!(waits(&rules, 20, ms(6000)).iter().all(Option::is_some));
        assert_eq!(waits(&rules, 3, ms(4000)), vec![Some(0), Some(0), None]);
    }

    #[test]
    fn a_stable_crash_waits_for_the_first_backoff() {
        let backoff = Some(Backoff { base: ms(100), max: ms(15_000) });
        let rules = RestartRules { backoff, ..rules() };
        let mut history = RestartHistory::default();
        let hour = ms(3_600_000);
        for _ in 0..4 {
            history.decide(&rules, &Ending { failure: &CRASH, lived: ms(5), online: Some(ms(1)) });
        }
        let ending = Ending { failure: &CRASH, lived: hour, online: Some(hour) };
        assert_eq!(history.decide(&rules, &ending), Verdict::Restart { after: ms(100) });
        assert_eq!(history.unstable(), 0);
        // And an app that was up an hour and then crash-loops is given up too.
        let ending = Ending { failure: &CRASH, lived: ms(5), online: Some(ms(1)) };
        let verdicts: Vec<_> = (0..10).map(|_| history.decide(&rules, &ending)).collect();
        assert_eq!(verdicts.last(), Some(&Verdict::Errored));
        assert!(!verdicts.iter().take(9).any(|&verdict| verdict == Verdict::Errored));
    }

    #[test]
    fn failed_starts_count_however_long_they_took() {
        let mut history = RestartHistory::default();
        let ending = Ending { failure: &Failure::StartTimeout, lived: ms(30_000), online: None };
        let verdicts: Vec<_> = (0..10).map(|_| history.decide(&rules(), &ending)).collect();
        assert_eq!(verdicts.iter().position(|&v| v == Verdict::Errored), Some(9));
    }

    #[test]
    fn wanted_exits_finish() {
        let rules = RestartRules { stop_exit_codes: vec![0, 42], ..rules() };
        for (exit, finished) in [
            (Exit::Code(0), true),
            (Exit::Code(42), true),
            (Exit::Code(1), false),
            (Exit::Signal { signal: 42, core: false, oom: None }, false),
        ] {
            let failure = Failure::Exit(exit);
            let ending = Ending { failure: &failure, lived: ms(5), online: Some(ms(1)) };
            let verdict = RestartHistory::default().decide(&rules, &ending);
            assert_eq!(verdict == Verdict::Finished, finished, "{exit}");
        }
        let never = RestartRules { autorestart: false, ..rules };
        let ending = Ending { failure: &CRASH, lived: ms(5), online: Some(ms(1)) };
        assert_eq!(RestartHistory::default().decide(&never, &ending), Verdict::Finished);
        let failure = Failure::Exec("cannot execute x".to_owned());
        let ending = Ending { failure: &failure, lived: ms(5), online: None };
        assert_eq!(RestartHistory::default().decide(&never, &ending), Verdict::Errored);
    }
}
