//! `pmr upgrade`: the supervisor goes on as another binary, and the next one says how it went.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::apps::{Apps, Found, Streams, call_error, join, soon};
use super::error::Error;
use super::target::Target;
use crate::control::client::{CallError, Client, Deadline, pause};
use crate::control::protocol::{AppState, UpgradeState};

/// Between two tries to reach the next supervisor.
const RETRY_TIME: Duration = Duration::from_millis(100);

/// Upgrades one app after the other: what goes wrong with one, a bad binary above all, is seen
/// before much else has happened, and no two keepers compete for the processor. All of them are
/// tried. Where `all` is meant and none runs there is nothing to do.
pub(super) fn run(
    apps: &Apps,
    targets: &[String],
    all: bool,
    timeout: Duration,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let targets = if all {
        vec![Target::All]
    } else {
        targets.iter().map(|text| Target::new(text)).collect::<Result<_, _>>()?
    };
    let Found { apps, mut errors } = match apps.find(&targets) {
        Err(Error::NothingRuns) if all => Found::default(),
        found => found?,
    };
    // Not by the connections that found them: those of the last may have been closed as silent
    // before it is their turn.
    let apps: Vec<(String, PathBuf)> =
        apps.into_iter().map(|app| (app.name, app.directory)).collect();
    for (name, directory) in apps {
        match upgrade(&name, &directory, timeout, streams) {
            Err(error @ Error::Output(_)) => return Err(error),
            result => errors.extend(result.err()),
        }
    }
    join(errors)
}

fn upgrade(
    name: &str,
    directory: &Path,
    timeout: Duration,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let deadline = Deadline::after(timeout);
    let mut client = Client::connect(directory)
        .map_err(|source| Error::Connect { app: name.to_owned(), source })?;
    let before = client.list(soon()).map_err(call_error(name, "upgrade"))?;
    match client.call("Upgrade", &json!({}), deadline) {
        // It may be gone before its answer is.
        Ok(_) | Err(CallError::Lost) => {}
        Err(CallError::TimedOut) => return Err(timed_out(name, timeout)),
        Err(error) => return Err(call_error(name, "upgrade")(error)),
    }
    while deadline.left().is_some() {
        let next = Client::connect(directory).ok();
        let state = next.and_then(|mut client| client.list(deadline.min(soon())).ok());
        // Another supervisor, and one that knows of an upgrade: not one that merely replaced
        // the first.
        if let Some(state) = state.filter(|it| it.supervisor_pid != before.supervisor_pid)
            && let Some(upgrade) = &state.upgrade
        {
            return outcome(&state, upgrade, streams);
        }
        pause(RETRY_TIME);
    }
    Err(timed_out(name, timeout))
}

fn outcome(
    state: &AppState,
    upgrade: &UpgradeState,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let (app, summary) = (state.name.clone(), &state.summary);
    if upgrade.rolled_back {
        return Err(Error::UpgradeRolledBack { app, version: state.pmr_version.clone() });
    }
    writeln!(
        streams.err,
        "upgraded `{app}` from pmr {} to {}: {summary}",
        upgrade.from, upgrade.to
    )?;
    Ok(())
}

fn timed_out(name: &str, after: Duration) -> Error {
    Error::TimedOut { app: name.to_owned(), doing: "upgrade", after }
}
