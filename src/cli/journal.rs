//! What the journal has of apps that are units: asked of `journalctl`.

mod entry;
mod journalctl;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::apps::Known;
use super::error::Error;
use super::line::{Level, Line, Origin};
use super::systemd::unit_name;
use crate::control::Scope;
use crate::control::client::{Deadline, wait_readable};
use crate::control::protocol::{AppState, InstanceState, JournalState};
use entry::{Entry, FIELDS, read_entry};
use journalctl::Journalctl;

/// Where journald keeps its files: over a reboot, or until then.
const DIRECTORIES: [&str; 2] = ["/var/log/journal", "/run/log/journal"];

/// How long the last lines may take: a journal of gigabytes on a slow disk takes a second.
const LAST_TIME: Duration = Duration::from_secs(5);

/// How many lines of an instance that has ended are shown: as many as in the foreground.
const ERRORS_SHOWN: usize = 10;

/// How many are looked at for these: those of the next instance may be among them, which may say
/// much in [`EXIT_SLACK_MS`].
const ERRORS_READ: u32 = 1000;

/// How much later than an exit its last lines may stand in the journal.
const EXIT_SLACK_MS: u64 = 1000;

/// How much earlier than is reckoned an instance may have begun: its times are in milliseconds.
const START_SLACK_MS: u64 = 5;

/// An app in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) app: String,
    pub(super) unit: String,
    /// Of the user's own service manager.
    pub(super) user: bool,
}

impl Place {
    /// Of the unit that an app is, where it is one.
    pub(super) fn of(known: &Known) -> Self {
        let (app, unit) = (known.name.clone(), unit_name(&known.name));
        Self { app, unit, user: known.scope == Scope::User }
    }
}

/// Which entries are wanted.
#[derive(Debug, Clone, Default)]
pub(super) struct Query {
    pub(super) slot: Option<u16>,
    pub(super) level: Option<Level>,
    /// The last ones; all where it is `None`.
    pub(super) lines: Option<u32>,
    /// As `journalctl --since` takes it.
    pub(super) since: Option<String>,
    /// As `journalctl --until` takes it.
    pub(super) until: Option<String>,
    pub(super) follow: bool,
}

impl Query {
    /// What `journalctl` is told.
    fn arguments(&self, places: &[Place]) -> Vec<OsString> {
        let mut words: Vec<String> = ["--all", "--output=json"].map(str::to_owned).into();
        words.push(format!("--output-fields={FIELDS}"));
        words.extend(self.level.map(|level| format!("--priority={}", level.name())));
        words.extend(self.since.as_ref().map(|since| format!("--since={since}")));
        words.extend(self.until.as_ref().map(|until| format!("--until={until}")));
        words.push(match self.lines {
            Some(lines) => format!("--lines={lines}"),
            None if self.follow => "--lines=all".to_owned(),
            None => "--no-tail".to_owned(),
        });
        words.extend(self.follow.then(|| "--follow".to_owned()));
        for Place { unit, user, .. } in places {
            words.push(format!("--{}={unit}", if *user { "user-unit" } else { "unit" }));
        }
        if let Some(slot) = self.slot {
            // All of a unit that is also one of these.
            words.push(format!("PMR_INSTANCE={slot}"));
            for Place { app, .. } in places {
                words.extend(["+".to_owned(), format!("SYSLOG_IDENTIFIER={app}:{slot}")]);
            }
        }
        words.into_iter().map(OsString::from).collect()
    }
}

/// Entries that come from `journalctl`.
#[derive(Debug)]
pub(super) struct Entries {
    journalctl: Journalctl,
    apps: Vec<String>,
}

impl Entries {
    /// Asks for entries of these apps. What cannot be read by the caller is an error, not silence.
    pub(super) fn ask(places: &[Place], query: &Query) -> Result<Self, Error> {
        if let Some(place) = places.iter().find(|place| !may_read(place.user)) {
            return Err(Error::JournalDenied { app: place.app.clone() });
        }
        let journalctl = Journalctl::run(&query.arguments(places))?;
        Ok(Self { journalctl, apps: places.iter().map(|place| place.app.clone()).collect() })
    }

    /// Waits for some output and takes the lines of it. `None` at the end.
    pub(super) fn next_lines(&mut self) -> Result<Option<Vec<Line>>, Error> {
        let entries = self.next_entries()?;
        Ok(entries.map(|entries| entries.into_iter().map(|entry| entry.line).collect()))
    }

    fn next_entries(&mut self) -> Result<Option<Vec<Entry>>, Error> {
        let lines = self.journalctl.next_lines()?;
        let entry = |line: &Vec<u8>| read_entry(line, &self.apps);
        Ok(lines.map(|lines| lines.iter().filter_map(entry).collect()))
    }

    /// All lines to the end.
    pub(super) fn all(self) -> Result<Vec<Line>, Error> {
        let entries = self.all_entries(Deadline::never())?;
        Ok(entries.into_iter().map(|entry| entry.line).collect())
    }

    fn all_entries(mut self, deadline: Deadline) -> Result<Vec<Entry>, Error> {
        let mut all = Vec::new();
        loop {
            if !wait_readable(&[self.as_fd()], deadline)?.contains(&true) {
                return Err(Error::Journalctl("it has not answered in time".to_owned()));
            }
            match self.next_entries()? {
                Some(mut entries) => all.append(&mut entries),
                None => return Ok(all),
            }
        }
    }
}

impl AsFd for Entries {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.journalctl.as_fd()
    }
}

/// The last entries, as soon as may be.
fn last_entries(place: &Place, query: &Query) -> Result<Vec<Entry>, Error> {
    Entries::ask(std::slice::from_ref(place), query)?.all_entries(Deadline::after(LAST_TIME))
}

/// The last lines of the unit of an app.
pub(super) fn last_lines(place: &Place, count: u32) -> Result<Vec<String>, Error> {
    let entries = last_entries(place, &Query { lines: Some(count), ..Query::default() })?;
    Ok(entries.into_iter().map(|entry| entry.line.text).collect())
}

/// An instance that has ended, as its lines are told from those of others of its slot.
#[derive(Debug, PartialEq, Eq)]
struct Ended<'a> {
    generation: u64,
    /// The start of the unit that it was of, where the supervisor knows that.
    invocation: Option<&'a str>,
    since_ms: u64,
    until_ms: u64,
    /// When the one after it began.
    next_ms: Option<u64>,
}

impl<'a> Ended<'a> {
    /// The last of this slot, where nobody had asked for its end.
    fn of(app: &AppState, journal: &'a JournalState, slot: &InstanceState) -> Option<Self> {
        let exit = slot.last_exit.as_ref().filter(|exit| !exit.asked)?;
        // The time of day at which the supervisor said so, and not the one at which we heard it.
        let now_ms = app.started_at_ms.saturating_add(app.uptime_ms);
        let end_ms = now_ms.saturating_sub(exit.ago_ms);
        let next = slot.generation.filter(|it| *it > exit.generation).and(slot.uptime_ms);
        Some(Self {
            generation: exit.generation,
            invocation: journal.invocation.as_deref(),
            since_ms: end_ms.saturating_sub(exit.uptime_ms).saturating_sub(START_SLACK_MS),
            until_ms: end_ms.saturating_add(EXIT_SLACK_MS),
            next_ms: next.map(|uptime_ms| now_ms.saturating_sub(uptime_ms)),
        })
    }

    /// Whether it wrote this line, which is of its slot and its time.
    fn wrote(&self, entry: &Entry) -> bool {
        let Entry { line, invocation } = entry;
        let is_other = |own: &str| invocation.as_deref().is_some_and(|it| it != own);
        if line.origin != Origin::App || self.invocation.is_some_and(is_other) {
            return false;
        }
        match line.generation {
            Some(generation) => generation == self.generation,
            // A writer that journald found gone has no group, and nor has one in a level without
            // groups: then the time tells.
            None => self.next_ms.is_none_or(|next_ms| line.at_ms < next_ms),
        }
    }
}

/// What the instance of this slot that ended last said last on standard error, where nobody had
/// asked for its end.
pub(super) fn last_errors(
    app: &AppState,
    journal: &JournalState,
    slot: &InstanceState,
) -> Result<Vec<String>, Error> {
    let Some(ended) = Ended::of(app, journal, slot) else { return Ok(Vec::new()) };
    let JournalState { unit, user, .. } = journal;
    let place = Place { app: app.name.clone(), unit: unit.clone(), user: *user };
    let query = Query {
        slot: Some(slot.id),
        level: Some(Level::ERR),
        lines: Some(ERRORS_READ),
        since: Some(moment(ended.since_ms)),
        until: Some(moment(ended.until_ms)),
        follow: false,
    };
    let mut entries = last_entries(&place, &query)?;
    entries.retain(|entry| ended.wrote(entry));
    let entries = entries.split_off(entries.len().saturating_sub(ERRORS_SHOWN));
    Ok(entries.into_iter().map(|entry| entry.line.text).collect())
}

/// A moment as journalctl takes it.
pub(super) fn moment(ms: u64) -> String {
    format!("@{}.{:03}", ms / 1000, ms % 1000)
}

/// Whether the journals that may have a unit's entries can be read: those of users who are neither
/// root nor in the groups `systemd-journal` or `adm` look empty otherwise.
fn may_read(user: bool) -> bool {
    let uid = nix::unistd::geteuid();
    let own = user.then(|| format!("user-{uid}.journal"));
    let names: Vec<String> = own.into_iter().chain(["system.journal".to_owned()]).collect();
    let machines = DIRECTORIES.iter().flat_map(|path| directories_in(Path::new(path)));
    let files = machines.flat_map(|machine| names.iter().map(move |name| machine.join(name)));
    let opened: Vec<io::Result<File>> = files.map(File::open).collect();
    let denied = |opened: &io::Result<File>| {
        opened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    // Where there is no file at all, there is nothing that could be kept from anybody.
    opened.iter().any(Result::is_ok) || !opened.iter().any(denied)
}

fn directories_in(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::control::protocol::ExitState;

    fn words(query: &Query, places: &[Place]) -> String {
        let words = query.arguments(places);
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        let words = words.into_iter().filter(|word| !word.starts_with("--output"));
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_query_says_all_to_journalctl() {
        let web = Place { app: "web".into(), unit: "pmr@web.service".into(), user: false };
        let own = Place { app: "api".into(), unit: "api.service".into(), user: true };
        let query = Query { lines: Some(15), ..Query::default() };
        assert_eq!(
            words(&query, std::slice::from_ref(&web)),
            "--all --lines=15 --unit=pmr@web.service"
        );
        let query = Query {
            slot: Some(1),
            level: Some(Level::ERR),
            lines: None,
            since: Some(moment(12_005)),
            until: None,
            follow: true,
        };
        assert_eq!(
            words(&query, &[web, own]),
            "--all --priority=err --since=@12.005 --lines=all --follow \
             --unit=pmr@web.service --user-unit=api.service \
             PMR_INSTANCE=1 + SYSLOG_IDENTIFIER=web:1 + SYSLOG_IDENTIFIER=api:1"
        );
    }

    #[test]
    fn of_an_ended_instance_are_its_own_lines_and_no_others_of_its_slot() {
        let exit = |asked| ExitState {
            generation: 17,
            asked,
            ago_ms: 5_000,
            uptime_ms: 60_000,
            ..ExitState::default()
        };
        let slot = |last_exit| InstanceState {
            generation: Some(19),
            uptime_ms: Some(4_900),
            last_exit,
            ..InstanceState::default()
        };
        let entry_at: u64 = 1_795_610_560_996;
        // The instance ended as the line was written, and the next began 100 ms later.
        let (started_at_ms, uptime_ms) = (entry_at - 95_000, 100_000);
        let app = AppState { started_at_ms, uptime_ms, ..AppState::default() };
        let invocation = Some("1fa0".to_owned());
        let journal = JournalState { invocation, ..JournalState::default() };
        assert_eq!(Ended::of(&app, &journal, &slot(None)), None);
        assert_eq!(Ended::of(&app, &journal, &slot(Some(exit(true)))), None);
        let ended = Ended::of(&app, &journal, &slot(Some(exit(false)))).unwrap();
        let expected = Ended {
            generation: 17,
            invocation: Some("1fa0"),
            since_ms: entry_at - 60_000 - START_SLACK_MS,
            until_ms: entry_at + EXIT_SLACK_MS,
            next_ms: Some(entry_at + 100),
        };
        assert_eq!(ended, expected);

        let of = |group: Option<&str>, invocation: Option<&str>| {
            let at = format!("{entry_at}000");
            let mut entry = json!({"__REALTIME_TIMESTAMP": at, "SYSLOG_IDENTIFIER": "web:1"});
            for (name, value) in
                [("_SYSTEMD_CGROUP", group), ("_SYSTEMD_INVOCATION_ID", invocation)]
            {
                if let Some(value) = value {
                    entry[name] = value.into();
                }
            }
            read_entry(entry.to_string().as_bytes(), &["web".to_owned()]).unwrap()
        };
        let own = Some("/system.slice/pmr@web.service/i-1.17");
        assert!(ended.wrote(&of(own, Some("1fa0"))));
        assert!(ended.wrote(&of(own, None)));
        assert!(!ended.wrote(&of(own, Some("2222"))), "an earlier run of the unit");
        let other = Some("/system.slice/pmr@web.service/i-1.16");
        assert!(!ended.wrote(&of(other, Some("1fa0"))), "an earlier instance of the slot");
        assert!(ended.wrote(&of(None, Some("1fa0"))), "its writer was gone");
        let late = Ended { next_ms: Some(entry_at), ..ended };
        assert!(!late.wrote(&of(None, Some("1fa0"))), "the next instance's, by the time");
        let older = Ended { invocation: None, ..late };
        assert!(older.wrote(&of(own, Some("2222"))), "a supervisor that knows no invocation");
    }
}
