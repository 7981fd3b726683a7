//! What can go wrong, in words, and the exit status it leads to.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::systemd::{BOOTED, BusError, unit_name};
use super::table::harmless;
use crate::control::Spoken;
use crate::control::client::{CallError, ConnectError};
use crate::control::protocol::{Fault, FaultKind};

/// The exit status of a command; the table is in `pmr --help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// The command line cannot be used.
    Usage,
    /// The new version did not come up; the old one serves.
    RolledBack,
    /// Not done in time.
    TimedOut,
    /// Denied.
    Denied,
}

impl ExitStatus {
    /// Its number.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::RolledBack => 3,
            Self::TimedOut => 4,
            Self::Denied => 5,
        }
    }
}

/// An error that a user or the world can have.
#[derive(Debug)]
pub enum Error {
    /// There is nothing of that name.
    NoSuchApp {
        /// What was asked for.
        name: String,
        /// What runs.
        running: Vec<String>,
        /// What could be started.
        stopped: Vec<String>,
    },
    /// It has a config, and does not run.
    NotRunning {
        /// Which.
        app: String,
    },
    /// It cannot be started: there is no config of that name.
    NoConfig {
        /// What was asked for.
        name: String,
        /// Where the config would be.
        path: PathBuf,
    },
    /// A file was named where an app is meant.
    IsFile {
        /// What was asked for.
        path: PathBuf,
        /// Where it would be an app's config, where that can be said.
        config: Option<PathBuf>,
    },
    /// Its config cannot be used; why was said before.
    Config {
        /// Which.
        app: String,
        /// What was asked.
        doing: &'static str,
    },
    /// The service manager did not do it.
    Systemd {
        /// Which app it was about.
        app: String,
        /// What was asked.
        doing: &'static str,
        /// Why.
        source: BusError,
    },
    /// The service manager tried, and it did not work.
    Job(Box<JobFailure>),
    /// No name matches.
    NoMatch {
        /// What was asked for.
        target: String,
    },
    /// Nothing runs at all.
    NothingRuns,
    /// The directory of sockets cannot be made.
    NoDirectory(io::Error),
    /// A file cannot be read.
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A pattern cannot be used.
    Pattern {
        /// What was asked for.
        target: String,
        /// What it may not contain.
        character: char,
    },
    /// The slot is not there, as the command itself sees it.
    NoSuchSlot {
        /// Of which app.
        app: String,
        /// Which.
        slot: u16,
    },
    /// The app cannot be connected to.
    Connect {
        /// Which.
        app: String,
        /// Why.
        source: ConnectError,
    },
    /// The app said no, or nothing.
    Call {
        /// Which.
        app: String,
        /// What was asked.
        doing: &'static str,
        /// Why.
        source: CallError,
    },
    /// A directory of sockets cannot be read.
    Directory {
        /// Which.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A file cannot be written.
    Write {
        /// Which.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// An upgrade ended with the old binary.
    UpgradeRolledBack {
        /// Which.
        app: String,
        /// The version that is back.
        version: String,
    },
    /// The time that was given is up.
    TimedOut {
        /// Which.
        app: String,
        /// What was asked.
        doing: &'static str,
        /// How long was waited.
        after: std::time::Duration,
    },
    /// An ecosystem file cannot be imported.
    Import(super::import::Error),
    /// The journal keeps the output, and the caller may not read it.
    JournalDenied {
        /// Of which app.
        app: String,
    },
    /// `journalctl` cannot be run, or did not do what it was asked.
    Journalctl(String),
    /// Standard output cannot be written to.
    Output(io::Error),
    /// Several of them.
    Several(Vec<Error>),
}

impl Error {
    /// The exit status it leads to: of several the first one's.
    pub fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Pattern { .. } => ExitStatus::Usage,
            Self::TimedOut { .. }
            | Self::Connect { source: ConnectError::NoAnswer, .. }
            | Self::Call { source: CallError::TimedOut, .. }
            | Self::Systemd { source: BusError::NoAnswer, .. } => ExitStatus::TimedOut,
            Self::UpgradeRolledBack { .. } => ExitStatus::RolledBack,
            Self::JournalDenied { .. }
            | Self::Connect { source: ConnectError::Denied, .. }
            | Self::Systemd { source: BusError::Denied, .. } => ExitStatus::Denied,
            Self::Call { source: CallError::Fault(fault), .. } => match fault.kind {
                FaultKind::Denied => ExitStatus::Denied,
                FaultKind::RolledBack => ExitStatus::RolledBack,
                FaultKind::Busy
                | FaultKind::NoSuchSlot
                | FaultKind::Invalid
                | FaultKind::ShuttingDown
                | FaultKind::Failed
                | FaultKind::Cancelled
                | FaultKind::TooMany => ExitStatus::Failed,
            },
            // Whoever reads us has seen enough.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitStatus::Done,
            Self::Several(errors) => errors.first().map_or(ExitStatus::Failed, Self::exit_status),
            Self::NoSuchApp { .. }
            | Self::NotRunning { .. }
            | Self::NoConfig { .. }
            | Self::IsFile { .. }
            | Self::Config { .. }
            | Self::Systemd { .. }
            | Self::Job(_)
            | Self::NoMatch { .. }
            | Self::NothingRuns
            | Self::NoDirectory(_)
            | Self::Read { .. }
            | Self::NoSuchSlot { .. }
            | Self::Connect { .. }
            | Self::Call { .. }
            | Self::Directory { .. }
            | Self::Write { .. }
            | Self::Import(_)
            | Self::Journalctl(_)
            | Self::Output(_) => ExitStatus::Failed,
        }
    }

    /// Of which app, where that cannot be spoken to.
    pub(super) fn app(&self) -> Option<&str> {
        let (Self::Connect { app, .. } | Self::Call { app, .. }) = self else { return None };
        Some(app)
    }

    /// What to do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoSuchApp { running, stopped, .. } => Some(known_hint(running, stopped)),
            Self::NotRunning { app } => Some(format!("`pmr start {app}` starts it")),
            Self::NoConfig { name, .. } => {
                Some(format!("`pmr init {name}` writes an example of one"))
            }
            Self::IsFile { path, config } => Some(file_hint(path, config.as_deref())),
            Self::Systemd { app, doing, source } => systemd_hint(app, doing, source),
            Self::Job(failure) => Some(format!("`pmr describe {}` shows more", failure.app)),
            Self::NothingRuns => Some(NOTHING_RUNS.to_owned()),
            Self::NoDirectory(_) => Some("PMR_RUNTIME_DIR names another one".to_owned()),
            Self::NoMatch { .. } => Some("`pmr status` shows what runs".to_owned()),
            Self::Pattern { .. } => {
                Some("patterns are made of characters, `.`, `*`, `^` and `$`".to_owned())
            }
            Self::TimedOut { app, .. } => {
                Some(format!("it goes on; `pmr status {app}` shows how far it is"))
            }
            Self::Call { app, source: CallError::Lost, .. } => {
                Some(format!("its supervisor may have been replaced; `pmr status {app}`"))
            }
            Self::UpgradeRolledBack { app, .. } => Some(upgrade_hint(app)),
            Self::Call { app, doing, source: CallError::Fault(fault) } => match *doing {
                "upgrade" if fault.kind == FaultKind::Failed => Some(upgrade_hint(app)),
                _ => fault_hint(app, fault),
            },
            Self::Write { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
                Some("a file that is there is never replaced; name another with -o".to_owned())
            }
            Self::NoSuchSlot { app, .. } => Some(slots_hint(app)),
            Self::JournalDenied { app } => Some(format!(
                "who is in the group systemd-journal or adm may: `sudo usermod -aG systemd-journal \
                 $USER`, then log in again; or `sudo pmr logs {app}`"
            )),
            Self::Journalctl(_) => {
                Some("the output of an app that is a unit is in the journal".to_owned())
            }
            Self::Config { .. }
            | Self::Read { .. }
            | Self::Connect { .. }
            | Self::Call { .. }
            | Self::Directory { .. }
            | Self::Write { .. }
            | Self::Import(_)
            | Self::Output(_)
            | Self::Several(_) => None,
        }
    }
}

/// What to do where no app runs.
pub(super) const NOTHING_RUNS: &str =
    "`pmr run FILE` runs an app in the foreground, and `pmr demo` shows what that looks like";

fn slots_hint(app: &str) -> String {
    format!("`pmr status {app}` shows its slots")
}

/// Its supervisor is of another version than what is installed, and that harms nobody.
fn upgrade_hint(app: &str) -> String {
    format!(
        "`{app}` runs on as before; `pmr upgrade {app}` tries again, and a new start of it takes \
         the new pmr in any case"
    )
}

fn fault_hint(app: &str, fault: &Fault) -> Option<String> {
    match fault.kind {
        FaultKind::NoSuchSlot => Some(slots_hint(app)),
        FaultKind::Failed | FaultKind::RolledBack => {
            Some(format!("`pmr describe {app}` shows why, with the last lines of its output"))
        }
        FaultKind::Busy
        | FaultKind::Denied
        | FaultKind::Invalid
        | FaultKind::ShuttingDown
        | FaultKind::Cancelled
        | FaultKind::TooMany => None,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchApp { name, running, stopped } => {
                if stopped.is_empty() {
                    write!(f, "no app named `{name}` is running")?;
                } else {
                    write!(f, "there is no app named `{name}`")?;
                }
                match nearest(name, running.iter().chain(stopped)) {
                    Some(near) => write!(f, "; did you mean `{near}`?"),
                    None => Ok(()),
                }
            }
            Self::NotRunning { app } => write!(f, "`{app}` is not running"),
            Self::NoConfig { name, path } => {
                write!(f, "there is no app named `{name}`: {} is not there", path.display())
            }
            Self::IsFile { path, .. } => {
                write!(f, "{} is a file; what is started is an app, by its name", path.display())
            }
            Self::Config { app, doing } => {
                write!(f, "cannot {doing} `{app}`: its config cannot be used")
            }
            Self::Systemd { app, doing, source } => write!(f, "cannot {doing} `{app}`: {source}"),
            Self::Job(failure) => failure.fmt(f),
            Self::NoMatch { target } => write!(f, "no app that is running matches `{target}`"),
            Self::NothingRuns => write!(f, "no app is running"),
            Self::NoDirectory(error) => {
                write!(f, "cannot make the directory of sockets: {error}")
            }
            Self::Import(error) => error.fmt(f),
            Self::JournalDenied { app } => {
                write!(f, "the output of `{app}` is in the journal, and you may not read that")
            }
            Self::Journalctl(why) => write!(f, "cannot read the journal by journalctl: {why}"),
            Self::Read { path, source } => write!(f, "cannot read {}: {source}", path.display()),
            Self::Pattern { target, character } => {
                write!(f, "the pattern `{target}` cannot be used: `{character}` means nothing here")
            }
            Self::NoSuchSlot { app, slot } => write!(f, "`{app}` has no slot {slot}"),
            Self::Connect { app, source } => match source {
                ConnectError::NotRunning => write!(f, "`{app}` is not running"),
                ConnectError::Denied => write!(f, "the socket of `{app}` may not be opened"),
                ConnectError::NoAnswer => write!(f, "the supervisor of `{app}` does not answer"),
                ConnectError::Io(error) => write!(f, "cannot connect to `{app}`: {error}"),
            },
            Self::Call { app, doing, source } => match source {
                CallError::TimedOut => {
                    write!(f, "cannot {doing} `{app}`: its supervisor does not answer")
                }
                other => write!(f, "cannot {doing} `{app}`: {other}"),
            },
            Self::Directory { path, source } => {
                write!(f, "cannot read {}: {source}", path.display())
            }
            Self::Write { path, source } => {
                write!(f, "cannot write {}: {source}", path.display())
            }
            Self::UpgradeRolledBack { app, version } => {
                write!(f, "the new binary did not take over `{app}`; pmr {version} goes on")
            }
            Self::TimedOut { app, doing, after } => {
                write!(f, "cannot {doing} `{app}`: not done within {}", Spoken(*after))
            }
            Self::Output(error) => write!(f, "cannot write the output: {error}"),
            Self::Several(errors) => write!(f, "{} errors", errors.len()),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// A job of the service manager that did not do what was asked.
#[derive(Debug)]
pub struct JobFailure {
    /// Which app it was about.
    pub app: String,
    /// What was asked.
    pub doing: &'static str,
    /// How the job ended.
    pub end: String,
    /// How the unit's last run ended, where that was a failure.
    pub unit: Option<String>,
    /// The last lines of the unit in the journal.
    pub journal: Vec<String>,
}

impl fmt::Display for JobFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { app, doing, end, unit, journal } = self;
        write!(f, "cannot {doing} `{app}`: {end}")?;
        if let Some(unit) = unit {
            write!(f, " ({unit})")?;
        }
        for line in journal {
            write!(f, "\n  | {}", harmless(line))?;
        }
        Ok(())
    }
}

fn known_hint(running: &[String], stopped: &[String]) -> String {
    let list = |word, names: &[String]| {
        (!names.is_empty()).then(|| format!("{word}: {}", names.join(", ")))
    };
    let lists = [list("running", running), list("not running", stopped)];
    let lists: Vec<String> = lists.into_iter().flatten().collect();
    if lists.is_empty() { NOTHING_RUNS.to_owned() } else { lists.join("; ") }
}

fn file_hint(path: &Path, config: Option<&Path>) -> String {
    let (path, name) = (path.display(), path.file_stem().unwrap_or_default().display());
    match config {
        Some(config) => format!(
            "copy it to {}, then `pmr start {name}`; or `pmr run {path}` in the foreground",
            config.display()
        ),
        None => format!("`pmr run {path}` runs it in the foreground"),
    }
}

fn systemd_hint(app: &str, doing: &str, source: &BusError) -> Option<String> {
    match source {
        BusError::Denied => Some(format!("`sudo pmr {doing} {app}`")),
        BusError::Masked => Some(format!("`systemctl unmask {}` takes that back", unit_name(app))),
        BusError::NoUnit | BusError::NothingToEnable => {
            Some("the .deb and .rpm of pmr install it".to_owned())
        }
        BusError::Unreachable(_) | BusError::NoManager => Some(if Path::new(BOOTED).exists() {
            format!("as root, `systemctl {doing} {}` does without a bus", unit_name(app))
        } else {
            "without systemd, `pmr run FILE` runs an app in the foreground".to_owned()
        }),
        BusError::UserUnreachable(_) => Some(
            "it runs while the user is logged in, or always after `loginctl enable-linger`"
                .to_owned(),
        ),
        BusError::Lost => Some(format!("it may go on; `pmr status {app}`")),
        BusError::NoAnswer | BusError::Refused(_) => None,
    }
}

/// The name of those that there are which is most like `name`, where one is at all.
fn nearest<'a>(name: &str, others: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    // Jaro-Winkler likes a common beginning, and is too strict where two letters of three changed
    // places.
    let likeness = |other: &str| match strsim::osa_distance(name, other) {
        1 => 1.0,
        _ => strsim::jaro_winkler(name, other),
    };
    let near = others.map(|other| (likeness(other), other.as_str()));
    let best = near.filter(|(likeness, _)| *likeness > 0.8).max_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, other)| other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_is_understood() {
        let running = vec!["web".to_owned(), "track-backend".to_owned()];
        for (name, near) in [
            ("webb", Some("web")),
            ("wbe", Some("web")),
            ("track-backnd", Some("track-backend")),
            ("track", Some("track-backend")),
            ("database", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, running.iter()), near, "{name}");
        }
        let error = Error::NoSuchApp { name: "webb".to_owned(), running, stopped: vec![] };
        assert_eq!(error.to_string(), "no app named `webb` is running; did you mean `web`?");
    }

    #[test]
    fn each_kind_of_failure_has_its_exit_status() {
        let call = |source| Error::Call { app: "web".to_owned(), doing: "reload", source };
        let fault = |kind| call(CallError::Fault(Fault::new(kind, "x")));
        let broken_pipe = io::Error::from(io::ErrorKind::BrokenPipe);
        for (error, code) in [
            (Error::Output(broken_pipe), 0),
            (Error::NothingRuns, 1),
            (fault(FaultKind::Busy), 1),
            (Error::Pattern { target: "/[/".to_owned(), character: '[' }, 2),
            (fault(FaultKind::RolledBack), 3),
            (call(CallError::TimedOut), 4),
            (fault(FaultKind::Denied), 5),
            (Error::Several(vec![fault(FaultKind::Denied), Error::NothingRuns]), 5),
        ] {
            assert_eq!(error.exit_status().code(), code, "{error}");
        }
    }
}
