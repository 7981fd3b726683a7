//! What the journal has of apps that are units: asked of `journalctl`, which knows all places and
//! formats of journals.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::error::Error;
use super::line::{Level, Line, Origin};
use crate::control::client::{Deadline, wait_readable};
use crate::control::protocol::{AppState, InstanceState, JournalState};

/// The fields that a line is made of.
const FIELDS: &str = "MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,PMR_APP,PMR_EVENT,PMR_INSTANCE,\
                      PMR_GENERATION,_PID,_SYSTEMD_CGROUP,_SYSTEMD_INVOCATION_ID,_SYSTEMD_UNIT,\
                      _SYSTEMD_USER_UNIT,UNIT,USER_UNIT,OBJECT_SYSTEMD_UNIT,\
                      OBJECT_SYSTEMD_USER_UNIT";

/// Where journald keeps its files: over a reboot, or until then.
const DIRECTORIES: [&str; 2] = ["/var/log/journal", "/run/log/journal"];

/// Most bytes of a line of JSON that is waited for to be whole: journald takes fields of up to
/// 768 MiB, but no line of an app is longer than 48 KiB (`LineMax=`), and a byte may be written as
/// four.
const ENTRY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How many lines of an instance that has ended are shown: as many as in the foreground.
const ERRORS_SHOWN: usize = 10;

/// How many are looked at for these: those of the next instance may be among them, which may say
/// much in [`EXIT_SLACK_MS`].
const ERRORS_READ: u32 = 1000;

/// How long they may take: a journal of gigabytes on a slow disk takes a second.
const ERRORS_TIME: Duration = Duration::from_secs(5);

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
        let mut words: Vec<String> = ["--quiet", "--no-pager", "--all", "--output=json"]
            .into_iter()
            .map(str::to_owned)
            .collect();
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

/// An entry, as far as it is read.
#[derive(Debug)]
struct Entry {
    line: Line,
    /// Of which start of the unit, where journald knew that.
    invocation: Option<String>,
}

/// Entries that come from `journalctl`.
#[derive(Debug)]
pub(super) struct Entries {
    child: Child,
    output: ChildStdout,
    pending: Vec<u8>,
    apps: Vec<String>,
}

impl Entries {
    /// Asks for entries of these apps. What cannot be read by the caller is an error, not silence.
    pub(super) fn ask(places: &[Place], query: &Query) -> Result<Self, Error> {
        if let Some(place) = places.iter().find(|place| !may_read(place.user)) {
            return Err(Error::JournalDenied { app: place.app.clone() });
        }
        let mut command = Command::new("journalctl");
        command.args(query.arguments(places)).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|source| Error::Journalctl(source.to_string()))?;
        let output = child.stdout.take().ok_or_else(|| Error::Journalctl("no output".into()))?;
        let apps = places.iter().map(|place| place.app.clone()).collect();
        Ok(Self { child, output, pending: Vec::new(), apps })
    }

    /// Waits for some output and takes the lines of it. `None` at the end.
    pub(super) fn next_lines(&mut self) -> Result<Option<Vec<Line>>, Error> {
        let entries = self.next_entries()?;
        Ok(entries.map(|entries| entries.into_iter().map(|entry| entry.line).collect()))
    }

    fn next_entries(&mut self) -> Result<Option<Vec<Entry>>, Error> {
        let mut chunk = vec![0; 64 * 1024];
        match self.output.read(&mut chunk) {
            Ok(0) => return self.end(),
            Ok(count) => self.pending.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Journalctl(error.to_string())),
        }
        let whole =
            self.pending.iter().rposition(|byte| *byte == b'\n').map(|at| at.saturating_add(1));
        let Some(whole) = whole else {
            if self.pending.len() > ENTRY_BYTES_MAX {
                return Err(Error::Journalctl("an entry is too long".to_owned()));
            }
            return Ok(Some(Vec::new()));
        };
        let rest = self.pending.split_off(whole);
        let entries = std::mem::replace(&mut self.pending, rest);
        let entries = entries.split(|byte| *byte == b'\n');
        Ok(Some(entries.filter_map(|entry| read_entry(entry, &self.apps)).collect()))
    }

    /// All lines to the end, or those that come in time.
    pub(super) fn all(self, deadline: Deadline) -> Result<Vec<Line>, Error> {
        Ok(self.all_entries(deadline)?.into_iter().map(|entry| entry.line).collect())
    }

    fn all_entries(mut self, deadline: Deadline) -> Result<Vec<Entry>, Error> {
        let mut all = Vec::new();
        while wait_readable(&[self.as_fd()], deadline)?.contains(&true)
            && let Some(mut entries) = self.next_entries()?
        {
            all.append(&mut entries);
        }
        Ok(all)
    }

    fn end<T>(&mut self) -> Result<Option<T>, Error> {
        match self.child.wait() {
            Ok(status) if status.success() => Ok(None),
            // It has said why itself.
            Ok(status) => Err(Error::Journalctl(status.to_string())),
            Err(error) => Err(Error::Journalctl(error.to_string())),
        }
    }
}

impl AsFd for Entries {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        // One that has ended cannot be killed, which is as good.
        match self.child.kill().and_then(|()| self.child.wait()) {
            Ok(_) | Err(_) => {}
        }
    }
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
/// asked for its end. Nothing where that cannot be had.
pub(super) fn last_errors(
    app: &AppState,
    journal: &JournalState,
    slot: &InstanceState,
) -> Vec<String> {
    let Some(ended) = Ended::of(app, journal, slot) else { return Vec::new() };
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
    let entries = Entries::ask(std::slice::from_ref(&place), &query);
    let entries = entries.and_then(|entries| entries.all_entries(Deadline::after(ERRORS_TIME)));
    let mut entries = entries.unwrap_or_default();
    entries.retain(|entry| ended.wrote(entry));
    let entries = entries.split_off(entries.len().saturating_sub(ERRORS_SHOWN));
    entries.into_iter().map(|entry| entry.line.text).collect()
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

/// A line of `journalctl --output=json` about one of these apps. What is no entry is none.
fn read_entry(json: &[u8], apps: &[String]) -> Option<Entry> {
    let entry: Value = serde_json::from_slice(json).ok()?;
    let field = |name: &str| text_of(entry.get(name)?);
    let number = |name: &str| field(name)?.parse::<u64>().ok();
    let identifier = field("SYSLOG_IDENTIFIER").unwrap_or_default();
    let by_identifier = identifier.rsplit_once(':').and_then(|(app, slot)| {
        let app = apps.iter().find(|own| *own == app)?;
        Some((app.clone(), slot.parse::<u16>().ok()?))
    });
    let by_group = field("_SYSTEMD_CGROUP").as_deref().and_then(group_of);
    let event = field("PMR_EVENT");
    let origin = if event.is_some() {
        Origin::Pmr
    } else if by_identifier.is_some() || by_group.is_some() {
        Origin::App
    } else if number("_PID") == Some(1) || identifier == "systemd" {
        Origin::Systemd
    } else {
        Origin::Pmr
    };
    let of_unit = || {
        let units = [
            "_SYSTEMD_UNIT",
            "_SYSTEMD_USER_UNIT",
            "UNIT",
            "USER_UNIT",
            "OBJECT_SYSTEMD_UNIT",
            "OBJECT_SYSTEMD_USER_UNIT",
        ];
        units.into_iter().filter_map(field).find_map(|unit| app_of(&unit, apps))
    };
    let app = field("PMR_APP").or_else(|| by_identifier.as_ref().map(|(app, _)| app.clone()));
    let slot = || match origin {
        Origin::App => by_identifier.as_ref().map(|(_, slot)| *slot).or(Some(by_group?.0)),
        Origin::Pmr => u16::try_from(number("PMR_INSTANCE")?).ok(),
        Origin::Systemd => None,
    };
    let generation = match origin {
        Origin::App => by_group.map(|(_, generation)| generation),
        Origin::Pmr | Origin::Systemd => number("PMR_GENERATION"),
    };
    let line = Line {
        at_ms: number("__REALTIME_TIMESTAMP")? / 1000,
        app: app.or_else(of_unit).unwrap_or_default(),
        origin,
        slot: slot(),
        generation,
        level: number("PRIORITY").and_then(Level::of).unwrap_or(Level::INFO),
        event,
        text: field("MESSAGE").unwrap_or_default(),
    };
    Some(Entry { line, invocation: field("_SYSTEMD_INVOCATION_ID") })
}

/// The text of a field: a string; its bytes, where they are none; or the first of several values.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(values) => {
            let bytes: Option<Vec<u8>> = values
                .iter()
                .map(|value| value.as_u64().and_then(|byte| u8::try_from(byte).ok()))
                .collect();
            match bytes {
                Some(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
                None => text_of(values.first()?),
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

/// Slot and generation, by the path of an instance's group: `…/pmr@web.service/i-0.17`.
fn group_of(path: &str) -> Option<(u16, u64)> {
    path.split('/').find_map(|part| {
        let (slot, generation) = part.strip_prefix("i-")?.split_once('.')?;
        Some((slot.parse().ok()?, generation.parse().ok()?))
    })
}

/// The app of a unit.
fn app_of(unit: &str, apps: &[String]) -> Option<String> {
    let name = unit.strip_prefix("pmr@")?.strip_suffix(".service")?;
    apps.iter().find(|app| *app == name).cloned()
}

#[cfg(test)]
mod tests {
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
            "--quiet --no-pager --all --lines=15 --unit=pmr@web.service"
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
            "--quiet --no-pager --all --priority=err --since=@12.005 --lines=all --follow \
             --unit=pmr@web.service --user-unit=api.service \
             PMR_INSTANCE=1 + SYSLOG_IDENTIFIER=web:1 + SYSLOG_IDENTIFIER=api:1"
        );
    }

    fn entry(fields: &[(&str, Value)]) -> Line {
        whole_entry(fields).line
    }

    fn whole_entry(fields: &[(&str, Value)]) -> Entry {
        let mut entry = serde_json::Map::new();
        entry.insert("__REALTIME_TIMESTAMP".into(), "1795610560996852".into());
        for (name, value) in fields {
            entry.insert((*name).to_owned(), value.clone());
        }
        let json = Value::Object(entry).to_string();
        read_entry(json.as_bytes(), &["web".to_owned()]).unwrap()
    }

    #[test]
    fn entries_are_lines_of_an_instance_of_pmr_or_of_systemd() {
        let group = "/system.slice/system-pmr.slice/pmr@web.service/i-1.17";
        let line = entry(&[
            ("SYSLOG_IDENTIFIER", "web:1".into()),
            ("_SYSTEMD_CGROUP", group.into()),
            ("PRIORITY", "3".into()),
            ("MESSAGE", "TypeError".into()),
        ]);
        let expected = Line {
            at_ms: 1_795_610_560_996,
            app: "web".into(),
            origin: Origin::App,
            slot: Some(1),
            generation: Some(17),
            level: Level::ERR,
            event: None,
            text: "TypeError".into(),
        };
        assert_eq!(line, expected);
        // An app that speaks to journald by itself, with a name of its own.
        let line = entry(&[
            ("SYSLOG_IDENTIFIER", "nginx".into()),
            ("_SYSTEMD_CGROUP", group.into()),
            ("_SYSTEMD_UNIT", "pmr@web.service".into()),
            ("MESSAGE", Value::Array([0x1b, 0x5b, 0xff, 0x41].map(Value::from).to_vec())),
        ]);
        assert_eq!((line.origin, line.slot, line.app.as_str()), (Origin::App, Some(1), "web"));
        assert_eq!((line.level, line.text.as_str()), (Level::INFO, "\u{1b}[\u{fffd}A"));

        let line = entry(&[
            ("SYSLOG_IDENTIFIER", "pmr".into()),
            ("_SYSTEMD_CGROUP", "/system.slice/pmr@web.service/supervisor".into()),
            ("PMR_APP", "web".into()),
            ("PMR_EVENT", "failed".into()),
            ("PMR_INSTANCE", "1".into()),
            ("PMR_GENERATION", "17".into()),
        ]);
        assert_eq!((line.origin, line.slot, line.generation), (Origin::Pmr, Some(1), Some(17)));
        assert_eq!(line.event.as_deref(), Some("failed"));
        let keeper = [("SYSLOG_IDENTIFIER", "pmr".into()), ("_PID", "42".into())];
        assert_eq!(entry(&keeper).origin, Origin::Pmr);
        let systemd = entry(&[
            ("_PID", "1".into()),
            ("UNIT", Value::Array(vec!["pmr@web.service".into(), "x".into()])),
        ]);
        assert_eq!((systemd.origin, systemd.app.as_str()), (Origin::Systemd, "web"));
        assert!(read_entry(b"", &[]).is_none());
        assert!(read_entry(b"-- No entries --", &[]).is_none());
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
        let entry_at = 1_795_610_560_996;
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
            let group = group.map(|group| ("_SYSTEMD_CGROUP", Value::from(group)));
            let invocation = invocation.map(|it| ("_SYSTEMD_INVOCATION_ID", Value::from(it)));
            let fields = [("SYSLOG_IDENTIFIER", Value::from("web:1"))].into_iter();
            whole_entry(&fields.chain(group).chain(invocation).collect::<Vec<_>>())
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
