//! Ending what instances leave behind: their groups, or in the bare level their sessions.

use std::os::fd::{AsFd, OwnedFd};

use crate::keeper::protocol::ToKeeper;
use crate::policy::{Event, Fact, Generation, SlotId};
use crate::sys::cgroup::{Group, Removal};
use crate::sys::clock;
use crate::sys::poll::Interest;

use super::Runtime;
use super::instances::{group_name, kill_session};
use super::sources::Source;

/// First wait before a group or session is looked at again, in milliseconds. Zombies that are
/// about to be reaped keep a group busy for less.
const RETRY_MS: u64 = 5;

/// Longest such wait: what hangs in the kernel is not looked at more often.
const RETRY_MS_MAX: u64 = 1000;

/// What an instance left behind.
#[derive(Debug)]
pub(super) struct Remains {
    left: Left,
    /// The core waits for `Cleared`.
    answer: bool,
    retry_at_ms: u64,
    wait_ms: u64,
}

/// Where its processes are found.
#[derive(Debug)]
enum Left {
    Group { group: Group, events: Option<OwnedFd> },
    Session(u32),
    Nothing,
}

impl Runtime {
    /// Begins to clear what `generation` left. `answer` says whether the core asked.
    pub(super) fn clear(&mut self, slot: SlotId, generation: Generation, answer: bool) {
        self.forget_wire(generation);
        self.binding.forget(generation);
        self.late.forget(generation);
        self.probing.forget(generation);
        self.close_channel(generation);
        let held = self.instances.remove(&generation);
        if let Some(instance) = &held {
            self.unwatch_instance(generation, instance);
            self.drain_output(generation, instance);
        }
        let left = match (held, self.level.home()) {
            (Some(instance), _) => match instance.group {
                Some(group) => Left::Group { group, events: None },
                None => Left::Session(instance.pid),
            },
            // Its spawn failed half-way, or an earlier supervisor was at it.
            (None, Some(home)) => {
                let path = home.path().join(group_name(slot, generation));
                Group::open(path).map_or(Left::Nothing, |group| Left::Group { group, events: None })
            }
            (None, None) => Left::Nothing,
        };
        let retry_at_ms = clock::now();
        let remains = Remains { left, answer, retry_at_ms, wait_ms: RETRY_MS };
        self.remains.insert(generation, remains);
        self.look_at_remains(generation);
    }

    /// Looks at what is left of a generation, and goes on ending it.
    pub(super) fn look_at_remains(&mut self, generation: Generation) {
        let Some(mut remains) = self.remains.remove(&generation) else { return };
        if let Left::Group { events: Some(events), .. } = &remains.left {
            self.forget_fd(events);
        }
        if self.is_cleared(generation, &mut remains.left) {
            self.finish_clear(generation, remains.answer);
            return;
        }
        remains.retry_at_ms = clock::now().saturating_add(remains.wait_ms);
        remains.wait_ms = remains.wait_ms.saturating_mul(2).min(RETRY_MS_MAX);
        self.remains.insert(generation, remains);
    }

    fn is_cleared(&mut self, generation: Generation, left: &mut Left) -> bool {
        match left {
            Left::Nothing => true,
            Left::Session(session) => matches!(kill_session(*session, true), Ok(0)),
            Left::Group { group, events } => {
                let populated = group.populated().unwrap_or(true);
                if populated {
                    if let Err(error) = group.kill() {
                        self.warn(&error.to_string());
                    }
                    *events = group.events_fd().ok();
                    if let Some(events) = events {
                        let source = Source::Group(generation);
                        self.watch(events.as_fd(), source, Interest::PRIORITY);
                    }
                    return false;
                }
                matches!(group.remove(), Ok(Removal::Gone))
            }
        }
    }

    fn finish_clear(&mut self, generation: Generation, answer: bool) {
        // Nobody who could accept from them is left.
        self.sockets.close(generation);
        let path = self.directory.join(super::instances::fd_name("notify", generation));
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            self.warn(&format!("cannot remove {}: {error}", path.display()));
        }
        // Once more, for an instance that was never in the keeper's table but whose fds were.
        self.say(&ToKeeper::Ack { generation: generation.0 });
        if answer {
            self.events.push_back(Event::Fact(Fact::Cleared { generation }));
        }
    }

    /// When something left behind is to be looked at again.
    pub(super) fn next_retry_ms(&self) -> Option<u64> {
        self.remains.values().map(|remains| remains.retry_at_ms).min()
    }

    /// Looks at everything that is due.
    pub(super) fn retry_remains(&mut self) {
        let now = clock::now();
        let due: Vec<Generation> = self
            .remains
            .iter()
            .filter(|(_, remains)| remains.retry_at_ms <= now)
            .map(|(generation, _)| *generation)
            .collect();
        for generation in due {
            self.look_at_remains(generation);
        }
    }
}
