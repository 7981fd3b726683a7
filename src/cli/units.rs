//! `pmr start`, `stop`, `restart`, `enable` and `disable`: over its socket for an app that runs, by
//! its unit for one that does not.

use std::path::{Path, PathBuf};

use super::apps::{Apps, Found, Known, Streams, join, soon};
use super::args::{Boot, Patience, Selection};
use super::change::{self, Change};
use super::check;
use super::error::{Error, JobFailure};
use super::journal::{Place, last_lines};
use super::progress::{ProgressLine, look_every};
use super::systemd::{BOOTED, BusError, Job, JobEnd, Systemd, UnitState, Verb};
use super::target::Target;
use crate::control::Scope;
use crate::control::client::{Client, Deadline};
use crate::spec::AppName;

/// How many of the last lines of the journal are shown where a job fails.
const JOURNAL_LINES: u32 = 10;

/// The service managers, connected to when first asked.
#[derive(Debug, Default)]
pub(super) struct Connections {
    system: Option<Result<Systemd, BusError>>,
    user: Option<Result<Systemd, BusError>>,
}

impl Connections {
    pub(super) fn of(&mut self, scope: Scope) -> Result<&mut Systemd, BusError> {
        let place = match scope {
            Scope::System => &mut self.system,
            Scope::User => &mut self.user,
        };
        match place.get_or_insert_with(|| Systemd::connect(scope)) {
            Ok(systemd) => Ok(systemd),
            Err(error) => Err(error.clone()),
        }
    }
}

/// `pmr start`
pub(super) fn start(
    apps: &Apps,
    selection: &Selection,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let Selection { target, slot, patience } = selection;
    if slot.is_some() {
        return change::perform(apps.find_text(target)?, &Change::start(*slot), *patience, streams);
    }
    let (live, stopped) = part(startable(apps, target)?);
    let change = Change::start(None);
    begin_and_wait(live, stopped, &change, Wanted::start("start", *patience), streams)
}

/// `pmr restart`
pub(super) fn restart(
    apps: &Apps,
    selection: &Selection,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let Selection { target, slot, patience } = selection;
    let change = Change::restart(*slot);
    if slot.is_some() {
        return change::perform(apps.find_text(target)?, &change, *patience, streams);
    }
    let (live, stopped) = part(startable(apps, target)?);
    begin_and_wait(live, stopped, &change, Wanted::start("restart", *patience), streams)
}

/// `pmr stop`
pub(super) fn stop(
    apps: &Apps,
    selection: &Selection,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let Selection { target, slot, patience } = selection;
    let change = Change::stop(*slot);
    if slot.is_some() {
        return change::perform(apps.find_text(target)?, &change, *patience, streams);
    }
    let mut connections = Connections::default();
    let (mut socket, mut units) = (Found::default(), Vec::new());
    for mut known in apps.known(&[Target::new(target)?])? {
        match (unit_to_stop(&mut known, &mut connections, streams)?, known.live.take()) {
            (Stop::Unit, _) => units.push(known),
            (Stop::Nothing(state), _) => {
                writeln!(streams.err, "nothing to do for `{}`: {state}", known.name)?;
            }
            (Stop::Socket, Some(Ok(app))) => socket.apps.push(app),
            (Stop::Socket, Some(Err(error))) | (Stop::Failed(error), _) => {
                socket.errors.push(error);
            }
            (Stop::Socket, None) => {}
        }
    }
    let wanted = Wanted { verb: Verb::Stop, doing: "stop", patience: *patience };
    perform(socket, units, &change, wanted, &mut connections, streams)
}

/// How an app is stopped.
enum Stop {
    /// Its keeper is the main process of its unit.
    Unit,
    /// It runs in the foreground, or nobody can be asked whether it does.
    Socket,
    /// It does not run.
    Nothing(String),
    Failed(Error),
}

fn unit_to_stop(
    known: &mut Known,
    connections: &mut Connections,
    streams: &mut Streams<'_>,
) -> Result<Stop, Error> {
    if !known.has_units {
        return Ok(Stop::Socket);
    }
    let name = known.name.clone();
    let unit = connections.of(known.scope).and_then(|systemd| systemd.unit(&name, soon()));
    let unit = match (unit, &known.live) {
        (Ok(unit), _) => unit,
        (Err(error), Some(_)) if error.is_absence() => {
            if Path::new(BOOTED).exists() {
                writeln!(streams.err, "note: {error}; `{name}` is asked over its socket")?;
            }
            return Ok(Stop::Socket);
        }
        (Err(source), _) => {
            return Ok(Stop::Failed(Error::Systemd { app: name, doing: "stop", source }));
        }
    };
    let is_unit = match &mut known.live {
        None if !unit.is_up() => return Ok(Stop::Nothing(unit.text())),
        Some(Ok(app)) => match app.client.list(soon()) {
            Ok(state) => unit.main_pid == Some(state.keeper_pid),
            // Who may not look at the app, or gets no answer, may stop its unit all the same.
            Err(_) => unit.is_up(),
        },
        None | Some(Err(_)) => unit.is_up(),
    };
    Ok(if is_unit { Stop::Unit } else { Stop::Socket })
}

/// `pmr enable`
pub(super) fn enable(apps: &Apps, boot: &Boot, streams: &mut Streams<'_>) -> Result<(), Error> {
    let mut connections = Connections::default();
    let mut errors = Vec::new();
    for known in startable(apps, &boot.target)? {
        if known.config.is_none() {
            errors.push(no_config(apps, &known.name));
            continue;
        }
        let done = set_boot(&known, true, boot.patience, &mut connections, streams);
        errors.extend(done.err());
    }
    join(errors)?;
    if boot.now { start(apps, &selection(boot), streams) } else { Ok(()) }
}

/// `pmr disable`
pub(super) fn disable(apps: &Apps, boot: &Boot, streams: &mut Streams<'_>) -> Result<(), Error> {
    let mut connections = Connections::default();
    let mut errors = Vec::new();
    let target = Target::new(&boot.target)?;
    let known = match (apps.known(std::slice::from_ref(&target)), &target, apps.homes.first()) {
        // A link may be left of an app whose config is gone.
        (Err(Error::NoSuchApp { .. }), Target::Name(name), Some(home))
            if AppName::new(name).is_ok() && home.config.is_some() =>
        {
            vec![Known::new(home, name.clone(), None)]
        }
        (known, _, _) => known?,
    };
    for known in &known {
        let done = set_boot(known, false, boot.patience, &mut connections, streams);
        errors.extend(done.err());
    }
    join(errors)?;
    if boot.now { stop(apps, &selection(boot), streams) } else { Ok(()) }
}

fn selection(boot: &Boot) -> Selection {
    Selection { target: boot.target.clone(), slot: None, patience: boot.patience }
}

fn set_boot(
    known: &Known,
    enable: bool,
    patience: Patience,
    connections: &mut Connections,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let name = &known.name;
    let (doing, done) = if enable { ("enable", "enabled") } else { ("disable", "disabled") };
    let failed = |source| Error::Systemd { app: name.clone(), doing, source };
    let systemd = connections.of(known.scope).map_err(failed)?;
    let changed = systemd.enable(name, enable, deadline(patience)).map_err(failed)?;
    if changed {
        let boot = if enable { "starts at boot" } else { "does not start at boot any more" };
        writeln!(streams.err, "{done} `{name}`: it {boot}")?;
    } else {
        writeln!(streams.err, "nothing to do for `{name}`: it is {done}")?;
    }
    Ok(())
}

/// What is to be done with a unit, and its words.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    verb: Verb,
    /// `cannot DOING`
    doing: &'static str,
    patience: Patience,
}

impl Wanted {
    fn start(doing: &'static str, patience: Patience) -> Self {
        Self { verb: Verb::Start, doing, patience }
    }

    fn going(self) -> &'static str {
        match self.verb {
            Verb::Start => "starting",
            Verb::Stop => "stopping",
        }
    }

    fn done(self) -> &'static str {
        match self.verb {
            Verb::Start => "started",
            Verb::Stop => "stopped",
        }
    }

    fn failed(self, app: &str) -> impl Fn(BusError) -> Error {
        let app = app.to_owned();
        move |source| match (source, self.patience.timeout) {
            (BusError::NoAnswer, Some(after)) => {
                Error::TimedOut { app: app.clone(), doing: self.doing, after }
            }
            (source, _) => Error::Systemd { app: app.clone(), doing: self.doing, source },
        }
    }
}

fn deadline(patience: Patience) -> Deadline {
    patience.timeout.map_or_else(Deadline::never, Deadline::after)
}

/// What a target of a start means: apps that run, and those that have a config.
fn startable(apps: &Apps, text: &str) -> Result<Vec<Known>, Error> {
    let target = Target::new(text)?;
    let path = Path::new(text);
    let is_path = text.contains('/') || path.extension().is_some_and(|it| it == "toml");
    match apps.known(std::slice::from_ref(&target)) {
        Err(Error::NoSuchApp { .. }) if is_path && path.is_file() => {
            Err(Error::IsFile { path: path.to_owned(), config: config_of(apps, path) })
        }
        Err(Error::NoSuchApp { name, running, stopped })
            if running.is_empty()
                && stopped.is_empty()
                && AppName::new(&name).is_ok()
                && apps.homes.iter().any(|home| home.config.is_some()) =>
        {
            Err(no_config(apps, &name))
        }
        other => other,
    }
}

/// Where a file would be the config of an app.
fn config_of(apps: &Apps, file: &Path) -> Option<PathBuf> {
    let directory = apps.homes.first()?.config.as_ref()?;
    Some(directory.join(file.file_name()?))
}

fn no_config(apps: &Apps, name: &str) -> Error {
    let directory = apps.homes.iter().find_map(|home| home.config.clone()).unwrap_or_default();
    Error::NoConfig { name: name.to_owned(), path: directory.join(format!("{name}.toml")) }
}

/// Those that run, with what went wrong, and those that do not.
pub(super) fn part(all: Vec<Known>) -> (Found, Vec<Known>) {
    let (mut live, mut stopped) = (Found::default(), Vec::new());
    for mut known in all {
        match known.live.take() {
            Some(Ok(app)) => live.apps.push(app),
            Some(Err(error)) => live.errors.push(error),
            None => stopped.push(known),
        }
    }
    (live, stopped)
}

fn begin_and_wait(
    live: Found,
    stopped: Vec<Known>,
    change: &Change,
    wanted: Wanted,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    perform(live, stopped, change, wanted, &mut Connections::default(), streams)
}

/// Asks for all jobs, then for what goes over sockets, then waits for the jobs. What goes wrong
/// with one app does not keep the others from being changed.
fn perform(
    live: Found,
    units: Vec<Known>,
    change: &Change,
    wanted: Wanted,
    connections: &mut Connections,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let deadline = deadline(wanted.patience);
    let mut errors = Vec::new();
    let mut jobs = Vec::new();
    for known in units {
        match begin(&known, wanted, deadline, connections, streams) {
            Ok(job) => jobs.push((known, job)),
            Err(error) => errors.push(error),
        }
    }
    match change::perform(live, change, wanted.patience, streams) {
        Ok(()) => {}
        Err(Error::Several(several)) => errors.extend(several),
        Err(error) => errors.push(error),
    }
    for (known, job) in jobs {
        let name = &known.name;
        if wanted.patience.no_wait {
            writeln!(streams.err, "asked systemd to {} `{name}`", wanted.doing)?;
            continue;
        }
        let ended = connections
            .of(known.scope)
            .map_err(wanted.failed(name))
            .and_then(|systemd| finish(&known, &job, wanted, deadline, systemd, streams));
        errors.extend(ended.err());
    }
    join(errors)
}

/// Asks for a job, after a look at what would make it fail.
fn begin(
    known: &Known,
    wanted: Wanted,
    deadline: Deadline,
    connections: &mut Connections,
    streams: &mut Streams<'_>,
) -> Result<Job, Error> {
    let name = &known.name;
    let failed = wanted.failed(name);
    if wanted.verb == Verb::Start {
        check_config(known, wanted, streams)?;
    }
    let systemd = connections.of(known.scope).map_err(&failed)?;
    if wanted.verb == Verb::Start {
        let unit = systemd.unit(name, deadline).map_err(&failed)?;
        match unit.load_state.as_str() {
            "not-found" => return Err(failed(BusError::NoUnit)),
            "masked" => return Err(failed(BusError::Masked)),
            _ => {}
        }
        if unit.result == "start-limit-hit" {
            // A person who starts it means it; systemd would refuse.
            systemd.reset_failed(name, deadline).map_err(&failed)?;
        }
    }
    systemd.begin(wanted.verb, name, deadline).map_err(failed)
}

/// Says what is wrong with a config before systemd is asked. Only where this process sees what the
/// keeper will see: another user may not see the script, or the user's home.
fn check_config(known: &Known, wanted: Wanted, streams: &mut Streams<'_>) -> Result<(), Error> {
    let is_root = rustix::process::geteuid().is_root();
    let Some(config) = &known.config else { return Ok(()) };
    if is_root != (known.scope == Scope::System) {
        return Ok(());
    }
    if check::before_start(config, streams)? {
        Ok(())
    } else {
        Err(Error::Config { app: known.name.clone(), doing: wanted.doing })
    }
}

/// Waits for a job, and says what came of it.
fn finish(
    known: &Known,
    job: &Job,
    wanted: Wanted,
    deadline: Deadline,
    systemd: &mut Systemd,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let name = &known.name;
    let mut line = ProgressLine::default();
    let every = look_every(streams);
    let end = systemd.wait(job, name, deadline, every, |unit| {
        line.show(&format!("{} `{name}`{}", wanted.going(), progress(unit)), streams)
    });
    line.clear(streams)?;
    let end = end?.map_err(wanted.failed(name))?;
    // What the unit is now is a courtesy where the job was done, and the reason where it was not.
    let unit = systemd.unit(name, soon());
    let is_done = match (&end, &unit) {
        (JobEnd::Done, _) => true,
        (JobEnd::Unheard, Ok(unit)) => match wanted.verb {
            Verb::Start => matches!(unit.active_state.as_str(), "active" | "reloading"),
            Verb::Stop => !unit.is_up(),
        },
        (JobEnd::Not(_), _) | (JobEnd::Unheard, Err(_)) => false,
    };
    if is_done {
        let now = now(known, wanted, unit.ok().as_ref());
        writeln!(streams.err, "{} `{name}`{now}", wanted.done())?;
        return Ok(());
    }
    let end = match end {
        JobEnd::Not(result) => JobEnd::words(&result),
        JobEnd::Done | JobEnd::Unheard => JobEnd::words("failed"),
    };
    let journal = match last_lines(&Place::of(known), JOURNAL_LINES) {
        Ok(lines) => lines,
        Err(error) => {
            writeln!(streams.err, "note: {error}; its last lines are not shown")?;
            Vec::new()
        }
    };
    let unit = unit.ok().and_then(|unit| why(&unit));
    let (app, doing) = (name.clone(), wanted.doing);
    Err(Error::Job(Box::new(JobFailure { app, doing, end, unit, journal })))
}

fn progress(unit: &UnitState) -> String {
    match unit.status_text.as_str() {
        "" => String::new(),
        text => format!(": {}", super::table::harmless(text)),
    }
}

/// How a unit failed, with what that means.
pub(super) fn why(unit: &UnitState) -> Option<String> {
    let end = unit.end()?;
    Some(match unit.meaning() {
        Some(meaning) => format!("{end}: {meaning}"),
        None => end,
    })
}

/// How it looks after a job that was done.
fn now(known: &Known, wanted: Wanted, unit: Option<&UnitState>) -> String {
    match wanted.verb {
        Verb::Start => {
            let client = Client::connect(&known.directory).ok();
            match client.and_then(|mut client| client.list(soon()).ok()) {
                Some(state) => format!(": {}", state.summary),
                None => unit.map(progress).unwrap_or_default(),
            }
        }
        // It is stopped either way; that it had to be killed should be known.
        Verb::Stop => match unit.filter(|unit| unit.active_state == "failed").and_then(why) {
            Some(why) => format!("; its unit ended as failed: {why}"),
            None => String::new(),
        },
    }
}
