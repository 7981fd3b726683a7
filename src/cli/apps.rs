//! The apps that run, as the command line finds them.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use super::error::Error;
use super::target::Target;
use crate::control::client::{CallError, Client, ConnectError, Deadline};
use crate::control::places;
use crate::control::protocol::AppState;

/// How long a supervisor may take for an answer that it has at hand. Its loop turns in
/// milliseconds; one that hangs must not keep a person from seeing the others.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Where output goes.
pub struct Streams<'a> {
    /// Data.
    pub out: Box<dyn Write + 'a>,
    /// Everything else.
    pub err: Box<dyn Write + 'a>,
    /// Whether somebody watches `err`, so that progress can be shown.
    pub progress: bool,
}

impl fmt::Debug for Streams<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").field("progress", &self.progress).finish_non_exhaustive()
    }
}

impl Streams<'static> {
    /// Those of the process, without colour where there is no terminal or `NO_COLOR` is set.
    pub fn standard() -> Self {
        Self {
            out: Box::new(anstream::stdout()),
            err: Box::new(anstream::stderr()),
            progress: std::io::IsTerminal::is_terminal(&std::io::stderr()),
        }
    }
}

/// An app that runs.
#[derive(Debug)]
pub(super) struct App {
    pub(super) name: String,
    pub(super) directory: PathBuf,
    pub(super) client: Client,
}

/// Apps that are meant.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) apps: Vec<App>,
    /// What went wrong with the others.
    pub(super) errors: Vec<Error>,
}

/// Where to look for the apps that run.
#[derive(Debug)]
pub(super) struct Apps {
    pub(super) directories: Vec<PathBuf>,
}

impl Apps {
    /// Those that any of the targets means, in order of their names; each target must mean one.
    /// Beside them: what went wrong with those that cannot be connected to.
    pub(super) fn find(&self, targets: &[Target]) -> Result<Found, Error> {
        let places = places(&self.directories)
            .map_err(|(path, source)| Error::Directory { path, source })?;
        let mut found = Found::default();
        let mut names = BTreeSet::new();
        for place in places {
            if names.contains(&place.name) {
                continue;
            }
            let is_meant = targets.iter().any(|target| target.matches(&place.name));
            match Client::connect(&place.directory) {
                // A socket that was left behind.
                Err(ConnectError::NotRunning) => continue,
                Err(source) if is_meant => {
                    found.errors.push(Error::Connect { app: place.name.clone(), source });
                }
                Ok(client) if is_meant => found.apps.push(App {
                    name: place.name.clone(),
                    directory: place.directory,
                    client,
                }),
                Ok(_) | Err(_) => {}
            }
            names.insert(place.name);
        }
        found.apps.sort_by(|a, b| a.name.cmp(&b.name));
        let missing = targets.iter().find(|target| !names.iter().any(|name| target.matches(name)));
        match missing {
            Some(target) => Err(target.nothing(names.into_iter().collect())),
            None => Ok(found),
        }
    }

    /// Those that a target on the command line means.
    pub(super) fn find_text(&self, target: &str) -> Result<Found, Error> {
        self.find(&[Target::new(target)?])
    }

    /// The app of this name.
    pub(super) fn one(&self, name: &str) -> Result<App, Error> {
        let target = Target::Name(name.to_owned());
        let Found { apps, errors } = self.find(std::slice::from_ref(&target))?;
        join(errors)?;
        apps.into_iter().next().ok_or_else(|| target.nothing(Vec::new()))
    }
}

/// Asks every app for its state: what was answered, and what went wrong with the others.
pub(super) fn states(found: Found) -> (Vec<AppState>, Vec<Error>) {
    let Found { apps, mut errors } = found;
    let mut states = Vec::new();
    for mut app in apps {
        match app.client.list(soon()) {
            Ok(state) => states.push(state),
            Err(source) => errors.push(call_error(&app.name, "show")(source)),
        }
    }
    (states, errors)
}

/// When an answer that a supervisor has at hand must be there.
pub(super) fn soon() -> Deadline {
    Deadline::after(ANSWER_TIME)
}

/// The error of a call to an app.
pub(super) fn call_error(app: &str, doing: &'static str) -> impl FnOnce(CallError) -> Error {
    let app = app.to_owned();
    move |source| Error::Call { app, doing, source }
}

/// One result of many.
pub(super) fn join(mut errors: Vec<Error>) -> Result<(), Error> {
    match errors.pop() {
        None => Ok(()),
        Some(only) if errors.is_empty() => Err(only),
        Some(last) => {
            errors.push(last);
            Err(Error::Several(errors))
        }
    }
}
