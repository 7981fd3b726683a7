//! Moments: the only time the core knows is the one it is given.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point on the machine's monotonic clock, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment(u64);

impl Moment {
    /// The moment `ms` milliseconds after the clock's zero.
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the clock's zero.
    pub const fn as_ms(self) -> u64 {
        self.0
    }

    /// The moment `duration` later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(whole_ms(duration)))
    }

    /// How long ago `earlier` was; nothing if it is still to come.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Milliseconds of `duration`, as many as fit.
pub(super) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A duration as a person says it: `230ms`, `12s`, `3min 20s`, `5h 12min`, `3d 4h`.
#[derive(Debug, Clone, Copy)]
pub struct Spoken(pub Duration);

impl std::fmt::Display for Spoken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const STEPS: [(u64, u64, &str, &str); 3] =
            [(86_400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")];
        let ms = whole_ms(self.0);
        let seconds = self.0.as_secs();
        if ms < 1000 {
            return write!(f, "{ms}ms");
        }
        for (large, small, large_unit, small_unit) in STEPS {
            let count = seconds.checked_div(large).unwrap_or_default();
            if count > 0 {
                let rest = seconds.checked_rem(large).and_then(|rest| rest.checked_div(small));
                return match rest {
                    Some(0) | None => write!(f, "{count}{large_unit}"),
                    Some(rest) => write!(f, "{count}{large_unit} {rest}{small_unit}"),
                };
            }
        }
        let tenths = ms.checked_rem(1000).and_then(|rest| rest.checked_div(100));
        match tenths {
            Some(0) | None => write!(f, "{seconds}s"),
            Some(tenths) if seconds < 60 => write!(f, "{seconds}.{tenths}s"),
            Some(_) => write!(f, "{seconds}s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_spoken_in_two_units() {
        for (ms, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (3200, "3.2s"),
            (10_000, "10s"),
            (200_000, "3min 20s"),
            (18_720_000, "5h 12min"),
            (86_400_000, "1d"),
            (273_600_000, "3d 4h"),
        ] {
            assert_eq!(Spoken(Duration::from_millis(ms)).to_string(), text);
        }
    }
}
