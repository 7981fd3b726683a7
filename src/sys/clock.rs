//! The one reader of time.

use rustix::time::{ClockId, clock_gettime};

/// Now, as milliseconds of `CLOCK_MONOTONIC`: never goes back, stands still in suspend, and is the
/// same in every process of the machine, so it may be recorded and handed over.
pub fn now() -> u64 {
    milliseconds(ClockId::Monotonic)
}

/// The time of day, as milliseconds since the Unix epoch. To be shown, never to be reckoned with:
/// it jumps.
pub fn time_of_day() -> u64 {
    milliseconds(ClockId::Realtime)
}

fn milliseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or_default();
    seconds.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000)
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_does_not_go_back() {
        let first = super::now();
        assert!(first > 0);
        assert!(super::now() >= first);
    }
}
