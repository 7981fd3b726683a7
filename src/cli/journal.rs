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
use crate::control::client::{Deadline, time_of_day_ms, wait_readable};
use crate::control::protocol::ExitState;

/// The fields that a line is made of.
const FIELDS: &str = "MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,PMR_APP,PMR_EVENT,PMR_INSTANCE,\
                      PMR_GENERATION,_PID,_SYSTEMD_CGROUP,_SYSTEMD_UNIT,_SYSTEMD_USER_UNIT,UNIT,\
                      USER_UNIT,OBJECT_SYSTEMD_UNIT,OBJECT_SYSTEMD_USER_UNIT";

/// Where journald keeps its files: over a reboot, or until then.
const DIRECTORIES: [&str; 2] = ["/var/log/journal", "/run/log/journal"];

/// Most bytes of a line of JSON that is waited for to be whole: journald takes fields of up to
/// 768 MiB, but no line of an app is longer than 48 KiB (`LineMax=`), and a byte may be written as
/// four.
const ENTRY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How many lines of an instance that has ended are shown: as many as in the foreground.
const ERRORS_SHOWN: usize = 10;

/// How many are looked at for these: those of the next instance may be among them.
const ERRORS_READ: u32 = 100;

/// How long they may take: a journal of gigabytes on a slow disk takes a second.
const ERRORS_TIME: Duration = Duration::from_secs(5);

/// How much later than an exit its last lines may stand in the journal.
const EXIT_SLACK_MS: u64 = 1000;

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
    pub(super) fn all(mut self, deadline: Deadline) -> Result<Vec<Line>, Error> {
        let mut all = Vec::new();
        while wait_readable(&[self.as_fd()], deadline)?.contains(&true)
            && let Some(mut lines) = self.next_lines()?
        {
            all.append(&mut lines);
        }
        Ok(all)
    }

    fn end(&mut self) -> Result<Option<Vec<Line>>, Error> {
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

/// The last errors of an instance that has ended: of this slot and generation, so long ago. Nothing
/// where they cannot be had.
pub(super) fn last_errors(place: &Place, slot: u16, exit: &ExitState) -> Vec<String> {
    let until_ms = time_of_day_ms().saturating_sub(exit.ago_ms).saturating_add(EXIT_SLACK_MS);
    let query = Query {
        slot: Some(slot),
        level: Some(Level::ERR),
        lines: Some(ERRORS_READ),
        until: Some(moment(until_ms)),
        ..Query::default()
    };
    let entries = Entries::ask(std::slice::from_ref(place), &query);
    let entries = entries.and_then(|entries| entries.all(Deadline::after(ERRORS_TIME)));
    let mut lines = entries.unwrap_or_default();
    // Whose group is not known was written by something short-lived, of whichever instance.
    let is_its = |line: &Line| line.generation.is_none_or(|it| it == exit.generation);
    lines.retain(|line| line.origin == Origin::App && is_its(line));
    let lines = lines.split_off(lines.len().saturating_sub(ERRORS_SHOWN));
    lines.into_iter().map(|line| line.text).collect()
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
fn read_entry(json: &[u8], apps: &[String]) -> Option<Line> {
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
    Some(Line {
        at_ms: number("__REALTIME_TIMESTAMP")? / 1000,
        app: app.or_else(of_unit).unwrap_or_default(),
        origin,
        slot: slot(),
        generation,
        level: number("PRIORITY").and_then(Level::of).unwrap_or(Level::INFO),
        event,
        text: field("MESSAGE").unwrap_or_default(),
    })
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
        assert_eq!(read_entry(b"", &[]), None);
        assert_eq!(read_entry(b"-- No entries --", &[]), None);
    }
}
