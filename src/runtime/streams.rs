//! Where the output of an instance goes outside of the foreground: into the journal, by a stream of
//! its own for each of the two. pmr is not in between: the lines outlive it.

use std::os::fd::OwnedFd;
use std::path::Path;

use crate::control::protocol::JournalState;
use crate::policy::SlotId;
use crate::sys::journal::{self, Priority, STREAM_SOCKET, Stream, Unit};
use crate::sys::{Error, Result};

use super::{Runtime, events};

/// What is known of the journal of this app.
#[derive(Debug, Default)]
pub(super) struct Streams {
    unit: Option<Unit>,
    /// Which start of the unit this is.
    invocation: Option<String>,
    /// The last instance had to do without: that is said once, and again after one that had not.
    missing: bool,
}

/// The streams of one instance.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) out: OwnedFd,
    pub(super) err: OwnedFd,
}

impl Streams {
    /// Of a supervisor in this unit.
    pub(super) fn of_own_unit() -> Self {
        let invocation = std::env::var("INVOCATION_ID").ok();
        Self { unit: journal::own_unit(), invocation, missing: false }
    }

    /// Where the lines are found.
    pub(super) fn place(&self) -> Option<JournalState> {
        let unit = self.unit.as_ref()?;
        let (unit, user) = (unit.name.clone(), unit.user);
        Some(JournalState { unit, user, invocation: self.invocation.clone() })
    }

    fn open(&self, path: &Path, app: &str, slot: SlotId) -> Result<Pair> {
        let identifier = format!("{app}:{slot}");
        let unit = self.unit.as_ref().map(|unit| unit.name.as_str()).unwrap_or_default();
        let open = |priority| {
            journal::open_stream(path, &Stream { identifier: &identifier, unit, priority })
        };
        Ok(Pair { out: open(Priority::Info)?, err: open(Priority::Err)? })
    }

    /// The streams of a new instance, or what is to be said about that it has none.
    fn pair(&mut self, path: &Path, app: &str, slot: SlotId) -> (Option<Pair>, Option<Error>) {
        match self.open(path, app, slot) {
            Ok(pair) => {
                self.missing = false;
                (Some(pair), None)
            }
            Err(error) => {
                let said = std::mem::replace(&mut self.missing, true);
                (None, (!said).then_some(error))
            }
        }
    }
}

impl Runtime {
    /// The streams of a new instance in this slot; `None` in the foreground, and where journald
    /// does not take any: then it has pmr's own output.
    pub(super) fn open_streams(&mut self, slot: SlotId) -> Option<Pair> {
        if self.hello.foreground {
            return None;
        }
        let app = self.app_name();
        let (pair, failure) = self.streams.pair(Path::new(STREAM_SOCKET), &app, slot);
        if let Some(error) = failure {
            let text = format!("{error}: new instances of {app} write to where pmr does");
            self.say_event(events::NO_JOURNAL, Some(slot), &text);
        }
        pair
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::sys::testing::Directory;

    #[test]
    fn both_streams_name_the_slot_and_their_priority() {
        let directory = Directory::new("streams");
        let path = directory.path().join("stdout");
        let mut streams = Streams {
            unit: Some(Unit { name: "pmr@web.service".to_owned(), user: false }),
            invocation: None,
            missing: false,
        };
        let slot = SlotId(3);
        let (none, failure) = streams.pair(&path, "web", slot);
        assert!(none.is_none() && failure.unwrap().is_not_found());
        let (none, failure) = streams.pair(&path, "web", slot);
        assert!(none.is_none() && failure.is_none(), "it is said once");

        let journald = UnixListener::bind(&path).unwrap();
        let (pair, failure) = streams.pair(&path, "web", slot);
        assert!(failure.is_none());
        let heads: Vec<Vec<String>> = (0..2)
            .map(|_| {
                let stream = BufReader::new(journald.accept().unwrap().0);
                stream.lines().take(4).map(|line| line.unwrap()).collect()
            })
            .collect();
        assert_eq!(heads[0], ["web:3", "pmr@web.service", "6", "1"]);
        assert_eq!(heads[1], ["web:3", "pmr@web.service", "3", "1"]);
        let Pair { out, err } = pair.unwrap();
        assert_ne!(journal::stream_name(&out), journal::stream_name(&err));

        drop(journald);
        let (none, failure) = streams.pair(&path, "web", slot);
        assert!(none.is_none() && failure.is_some(), "it is said again");
    }
}
