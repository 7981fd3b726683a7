//! What changes an app: asked of every app that is meant at once, then waited for.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::apps::{App, Apps, Found, Streams, call_error, join, soon};
use super::args::{Patience, ScaleBy};
use super::error::Error;
use super::progress::{ProgressLine, look_every};
use super::table::harmless;
use crate::control::client::{CallError, Client, ConnectError, Deadline};

/// So many looks in a row without an answer mean that nobody is there. The keeper replaces a
/// supervisor that hangs, and then the connection ends anyway.
const LOOKS_FAILED_MAX: u32 = 3;

/// With `--no-wait`: a refusal comes in the very turn of the supervisor's loop.
const REFUSAL_TIME: Duration = Duration::from_millis(500);

/// A change, and the words for it.
#[derive(Debug)]
pub(super) struct Change {
    method: &'static str,
    parameters: Value,
    /// `cannot DOING`, `asked to DOING`
    doing: &'static str,
    /// While it goes on.
    going: &'static str,
    /// Afterwards.
    done: &'static str,
}

impl Change {
    pub(super) fn start(slot: Option<u16>) -> Self {
        let parameters = json!({ "slot": slot });
        Self { method: "Start", parameters, doing: "start", going: "starting", done: "started" }
    }

    pub(super) fn stop(slot: Option<u16>) -> Self {
        let parameters = json!({ "slot": slot });
        Self { method: "Stop", parameters, doing: "stop", going: "stopping", done: "stopped" }
    }

    pub(super) fn restart(slot: Option<u16>) -> Self {
        let (method, parameters) = ("Restart", json!({ "slot": slot }));
        Self { method, parameters, doing: "restart", going: "restarting", done: "restarted" }
    }

    pub(super) fn reload() -> Self {
        let (method, parameters) = ("Reload", json!({}));
        Self { method, parameters, doing: "reload", going: "reloading", done: "reloaded" }
    }

    pub(super) fn set(values: &BTreeMap<String, String>) -> Self {
        let (method, parameters) = ("Set", json!({ "values": values }));
        let (doing, going) = ("change the limits of", "changing the limits of");
        Self { method, parameters, doing, going, done: "changed the limits of" }
    }

    pub(super) fn signal(slot: Option<u16>, signal: i32) -> Self {
        let (method, parameters) = ("Signal", json!({ "slot": slot, "signal": signal }));
        Self { method, parameters, doing: "signal", going: "signalling", done: "signalled" }
    }

    pub(super) fn reset(slot: Option<u16>) -> Self {
        let parameters = json!({ "slot": slot });
        Self { method: "Reset", parameters, doing: "reset", going: "resetting", done: "reset" }
    }

    fn scale(count: u16) -> Self {
        let parameters = json!({ "count": count });
        Self { method: "Scale", parameters, doing: "scale", going: "scaling", done: "scaled" }
    }
}

/// Changes the number of instances of an app.
pub(super) fn scale(
    apps: &Apps,
    name: &str,
    by: ScaleBy,
    patience: Patience,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let mut app = apps.one(name)?;
    let state = app.client.list(soon()).map_err(call_error(name, "scale"))?;
    let change = Change::scale(by.from(state.instances.len()));
    perform(Found { apps: vec![app], errors: Vec::new() }, &change, patience, streams)
}

/// Asks every app for the change, and waits for what comes of it. What goes wrong with one does not
/// keep the others from being changed.
pub(super) fn perform(
    found: Found,
    change: &Change,
    patience: Patience,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let Found { apps, mut errors } = found;
    let deadline = patience.timeout.map_or_else(Deadline::never, Deadline::after);
    let mut asked = Vec::new();
    for mut app in apps {
        match app.client.send(change.method, &change.parameters, false, soon()) {
            Ok(()) => asked.push(app),
            Err(source) => errors.push(call_error(&app.name, change.doing)(source)),
        }
    }
    for app in asked {
        let name = app.name.clone();
        let ended = if patience.no_wait {
            await_refusal(app, change, streams)
        } else {
            await_outcome(app, change, deadline, streams)
        };
        match ended {
            Ok(()) => {}
            Err(Error::Call { source: CallError::TimedOut, .. }) => {
                let after = patience.timeout.unwrap_or_default();
                errors.push(Error::TimedOut { app: name, doing: change.doing, after });
            }
            Err(error) => errors.push(error),
        }
    }
    join(errors)
}

fn await_refusal(mut app: App, change: &Change, streams: &mut Streams<'_>) -> Result<(), Error> {
    match app.client.receive(Deadline::after(REFUSAL_TIME)) {
        Ok(_) | Err(CallError::TimedOut) => {
            writeln!(streams.err, "asked `{}` to {}", app.name, change.doing)?;
            Ok(())
        }
        Err(source) => Err(call_error(&app.name, change.doing)(source)),
    }
}

fn await_outcome(
    mut app: App,
    change: &Change,
    deadline: Deadline,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let look = look_every(streams);
    let mut line = ProgressLine::default();
    let mut looker = None;
    let mut failed: u32 = 0;
    let answer = loop {
        match app.client.receive(deadline.min(Deadline::after(look))) {
            Err(CallError::TimedOut) if deadline.left().is_some() => {}
            other => break other,
        }
        if let Ok(summary) = look_at(&app, &mut looker, deadline) {
            failed = 0;
            line.show(&format!("{} `{}`: {summary}", change.going, app.name), streams)?;
            continue;
        }
        looker = None;
        failed = failed.saturating_add(1);
        if failed >= LOOKS_FAILED_MAX && deadline.left().is_some() {
            line.clear(streams)?;
            return Err(Error::Connect { app: app.name, source: ConnectError::NoAnswer });
        }
    };
    line.clear(streams)?;
    let part = answer.map_err(call_error(&app.name, change.doing))?;
    let changed = part.parameters.get("changed").and_then(Value::as_bool).unwrap_or(true);
    report(&app, change, changed, streams)?;
    if let Some(note) = part.parameters.get("note").and_then(Value::as_str) {
        writeln!(streams.err, "{}", harmless(note))?;
    }
    Ok(())
}

fn report(
    app: &App,
    change: &Change,
    changed: bool,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let name = &app.name;
    let now = match look_at(app, &mut None, soon()) {
        // What becomes of a signal shows later.
        Ok(_) if change.method == "Signal" => String::new(),
        Ok(summary) => format!(": {summary}"),
        // It was done; how it looks now is a courtesy.
        Err(LookError) => String::new(),
    };
    if changed {
        writeln!(streams.err, "{} `{name}`{now}", change.done)?;
    } else {
        writeln!(streams.err, "nothing to do for `{name}`{now}")?;
    }
    Ok(())
}

/// The app did not show itself.
struct LookError;

fn look_at(
    app: &App,
    looker: &mut Option<Client>,
    deadline: Deadline,
) -> Result<String, LookError> {
    let client = match looker {
        Some(client) => client,
        None => looker.insert(Client::connect(&app.directory).map_err(|_| LookError)?),
    };
    client.list(deadline.min(soon())).map(|state| state.summary).map_err(|_| LookError)
}
