//! `pmr upgrade`: the supervisor goes on as another binary, and the next one says how it went.

use std::time::Duration;

use serde_json::json;

use super::apps::{Apps, Streams, call_error, soon};
use super::error::Error;
use crate::control::client::{CallError, Client, Deadline, pause};
use crate::control::protocol::{AppState, UpgradeState};

/// Between two tries to reach the next supervisor.
const RETRY_TIME: Duration = Duration::from_millis(100);

pub(super) fn run(
    apps: &Apps,
    name: &str,
    timeout: Duration,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let deadline = Deadline::after(timeout);
    let mut app = apps.one(name)?;
    let before = app.client.list(soon()).map_err(call_error(name, "upgrade"))?;
    match app.client.call("Upgrade", &json!({}), deadline) {
        // It may be gone before its answer is.
        Ok(_) | Err(CallError::Lost) => {}
        Err(CallError::TimedOut) => return Err(timed_out(name, timeout)),
        Err(error) => return Err(call_error(name, "upgrade")(error)),
    }
    while deadline.left().is_some() {
        let next = Client::connect(&app.directory).ok();
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
