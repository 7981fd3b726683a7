//! The apps that there are, as the command line finds them: by their sockets, and by their configs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::Error;
use super::target::Target;
use crate::control::client::{CallError, Client, ConnectError, Deadline};
use crate::control::protocol::AppState;
use crate::control::{Home, Scope, places};
use crate::spec::AppName;

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

/// An app that runs, and can be spoken to.
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

/// An app that there is: it runs, or it has a config from which it can be started.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) name: String,
    /// Whose service manager it belongs to.
    pub(super) scope: Scope,
    /// Where its socket is while it runs.
    pub(super) directory: PathBuf,
    /// Its config, where service managers look for it.
    pub(super) config: Option<PathBuf>,
    /// Whether an app of this service manager may be a unit at all.
    pub(super) has_units: bool,
    /// The app that runs, or why it cannot be connected to; `None` where it does not run.
    pub(super) live: Option<Result<App, Error>>,
}

/// What a look around finds.
#[derive(Debug, Default)]
pub(super) struct Around {
    /// By name; of the same name the caller's own first.
    pub(super) known: Vec<Known>,
    /// Directories of configs that cannot be read.
    pub(super) unread: Vec<Error>,
}

/// Where to look for apps.
#[derive(Debug)]
pub(super) struct Apps {
    pub(super) homes: Vec<Home>,
}

impl Apps {
    /// Those that run and that any of the targets means, in order of their names; each target must
    /// mean one. Beside them: what went wrong with those that cannot be connected to.
    pub(super) fn find(&self, targets: &[Target]) -> Result<Found, Error> {
        self.find_and(targets, |_| ())
    }

    /// The same for [`states`]: each is asked at once, so that all work on it at the same time.
    pub(super) fn find_for_states(&self, targets: &[Target]) -> Result<Found, Error> {
        self.find_and(targets, ask)
    }

    fn find_and(&self, targets: &[Target], greet: impl Fn(&mut App)) -> Result<Found, Error> {
        let mut found = Found::default();
        let mut names = BTreeSet::new();
        for Known { name, live, .. } in self.around(targets, greet)?.known {
            let Some(live) = live.filter(|_| !names.contains(&name)) else { continue };
            names.insert(name);
            match live {
                Ok(app) => found.apps.push(app),
                Err(error) => found.errors.push(error),
            }
        }
        match targets.iter().find(|target| !names.iter().any(|name| target.matches(name))) {
            Some(target) => Err(self.nothing(target)?),
            None => Ok(found),
        }
    }

    /// All that any of the targets means, whether it runs or not; each target must mean one.
    pub(super) fn known(&self, targets: &[Target]) -> Result<Vec<Known>, Error> {
        let mut known = self.around(targets, |_| ())?.known;
        // Of two of a name the caller's own is meant.
        known.dedup_by(|second, first| second.name == first.name);
        let is_none = |target: &&Target| !known.iter().any(|it| target.matches(&it.name));
        match targets.iter().find(is_none) {
            Some(target) => Err(self.nothing(target)?),
            None => Ok(known),
        }
    }

    /// The error where nothing is meant by a target.
    pub(super) fn nothing(&self, target: &Target) -> Result<Error, Error> {
        let (mut running, mut stopped) = (BTreeSet::new(), BTreeSet::new());
        for known in self.around(&[Target::All], |_| ())?.known {
            if known.live.is_some() { &mut running } else { &mut stopped }.insert(known.name);
        }
        stopped.retain(|name| !running.contains(name));
        let sorted = |names: BTreeSet<String>| names.into_iter().collect();
        Ok(target.nothing(sorted(running), sorted(stopped)))
    }

    /// Looks for all that any of the targets means. Those that run are greeted.
    pub(super) fn around(
        &self,
        targets: &[Target],
        greet: impl Fn(&mut App),
    ) -> Result<Around, Error> {
        let mut around = Around::default();
        let is_meant = |name: &str| targets.iter().any(|target| target.matches(name));
        for home in &self.homes {
            let mut here = BTreeMap::new();
            match home.config.as_deref().map(configs).transpose() {
                Ok(configs) => {
                    for (name, config) in configs.unwrap_or_default() {
                        if is_meant(&name) {
                            here.insert(name.clone(), Known::new(home, name, Some(config)));
                        }
                    }
                }
                Err(source) => {
                    let path = home.config.clone().unwrap_or_default();
                    around.unread.push(Error::Directory { path, source });
                }
            }
            let places = places(&home.runtime).map_err(|source| {
                let path = home.runtime.clone();
                Error::Directory { path, source }
            })?;
            for place in places.into_iter().filter(|place| is_meant(&place.name)) {
                if let Some(mut live) = connect(place.name.clone(), place.directory) {
                    live.iter_mut().for_each(&greet);
                    let new = |name: &String| Known::new(home, name.clone(), None);
                    let name = place.name;
                    here.entry(name).or_insert_with_key(new).live = Some(live);
                }
            }
            around.known.extend(here.into_values());
        }
        around.known.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(around)
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
        apps.into_iter().next().ok_or_else(|| target.nothing(Vec::new(), Vec::new()))
    }
}

impl Known {
    pub(super) fn new(home: &Home, name: String, config: Option<PathBuf>) -> Self {
        let directory = home.runtime.join(&name);
        let has_units = home.config.is_some();
        Self { name, scope: home.scope, directory, config, has_units, live: None }
    }

    /// The same, without its app.
    pub(super) fn as_unit(&self) -> Self {
        let Self { name, scope, directory, config, has_units, live: _ } = self;
        let (name, directory, config) = (name.clone(), directory.clone(), config.clone());
        Self { name, scope: *scope, directory, config, has_units: *has_units, live: None }
    }
}

/// Asks an app that [`states`] is to read the answer of.
pub(super) fn ask(app: &mut App) {
    // What goes wrong shows when the answer is waited for.
    app.client.ask_to_list(soon()).unwrap_or_default();
}

/// Connects to an app; `None` where its socket was left behind.
fn connect(name: String, directory: PathBuf) -> Option<Result<App, Error>> {
    match Client::connect(&directory) {
        Err(ConnectError::NotRunning) => None,
        Err(source) => Some(Err(Error::Connect { app: name, source })),
        Ok(client) => Some(Ok(App { name, directory, client })),
    }
}

/// The configs in a directory, by the names of their apps; files with other names are none. A
/// directory that is not there has none.
fn configs(directory: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut configs = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".toml"));
        if let Some(name) = name.and_then(|name| AppName::new(name).ok()) {
            configs.push((name.to_string(), path));
        }
    }
    Ok(configs)
}

/// The state of every app that [`Apps::find_for_states`] asked: what was answered, and what went
/// wrong with the others.
pub(super) fn states(found: Found) -> (Vec<AppState>, Vec<Error>) {
    let Found { apps, mut errors } = found;
    let mut states = Vec::new();
    for mut app in apps {
        match app.client.listed(soon()) {
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
