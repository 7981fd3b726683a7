//! What the service manager is told of the app, over the keeper.

use crate::keeper::protocol::{Notice, ToKeeper};
use crate::policy::{Moment, UnitState};
use crate::sys::clock;

use super::Runtime;

/// Beyond the silence that a keeper bears, the time in which a supervisor that is dead has a
/// successor (10 s is the longest wait for it) that has adopted and says so again.
const SUCCESSION_MS: u64 = 20_000;

/// Heartbeats within the silence that a keeper bears, as it counts them.
const HEARTBEATS: u64 = 3;

impl Runtime {
    /// Says what the unit has become.
    pub(super) fn announce(&mut self, state: UnitState) {
        let notice = match state {
            // It is starting until it is told otherwise.
            UnitState::Starting => return,
            UnitState::Ready => Notice::Ready,
            UnitState::Reloading => Notice::Reloading,
            UnitState::Stopping => Notice::Stopping,
        };
        self.say(&ToKeeper::Notify { notice });
        if state == UnitState::Ready {
            // A start or a reload is over, and what follows is mostly sleep.
            super::never_mind(crate::sys::memory::give_back());
        }
    }

    /// Says how the app is, where that is another line than before, and at each heartbeat that
    /// whoever waits for a start, a reload or a stop is to wait on. Both end with the supervisor:
    /// time that nobody works in is not extended.
    pub(super) fn tell_manager(&mut self) {
        if !self.hello.manager {
            return;
        }
        let now = clock::now();
        let status = self.policy.status(Moment::from_ms(now));
        let line = status.line();
        if line != self.told.line {
            self.told.line.clone_from(&line);
            self.say(&ToKeeper::Notify { notice: Notice::Status(line) });
        }
        if !status.awaited {
            self.told.extend_at_ms = 0;
        } else if self.told.extend_at_ms <= now {
            self.told.extend_at_ms = now.saturating_add(self.hello.heartbeat_ms);
            let silence = self.hello.heartbeat_ms.saturating_mul(HEARTBEATS);
            let notice = Notice::ExtendTimeout(silence.saturating_add(SUCCESSION_MS));
            self.say(&ToKeeper::Notify { notice });
        }
    }
}

/// What the service manager was told by this supervisor.
#[derive(Debug, Default)]
pub(super) struct Told {
    line: String,
    /// When it is to be told again to wait on.
    extend_at_ms: u64,
}
