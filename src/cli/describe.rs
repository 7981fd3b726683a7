//! `pmr describe`: everything about an app.

use std::io::{self, Write};

use serde::Serialize;

use super::apps::{Apps, Streams, call_error, soon};
use super::error::Error;
use super::table::{cpu, harmless, memory, or_dash, style_of, time};
use crate::control::protocol::{AppState, InstanceState, OtherState, VERSION};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Json<'a> {
    version: u32,
    app: &'a AppState,
}

pub(super) fn run(
    apps: &Apps,
    name: &str,
    json: bool,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let mut app = apps.one(name)?;
    let state = app.client.describe(soon()).map_err(call_error(name, "describe"))?;
    if json {
        let json = Json { version: VERSION, app: &state };
        writeln!(streams.out, "{}", serde_json::to_string(&json).unwrap_or_default())?;
        return Ok(());
    }
    Ok(write_app(&mut *streams.out, &state)?)
}

fn field(out: &mut dyn Write, indent: usize, name: &str, value: &str) -> io::Result<()> {
    let width = 16_usize.saturating_sub(indent);
    writeln!(out, "{:indent$}{name:width$}{value}", "")
}

fn write_app(out: &mut dyn Write, app: &AppState) -> io::Result<()> {
    let style = style_of(&app.status);
    writeln!(out, "{}: {style}{}{style:#} ({})", app.name, app.status, app.summary)?;
    let mode = match app.listen.as_slice() {
        [] => app.mode.clone(),
        listen => format!("{} on {}", app.mode, listen.join(", ")),
    };
    field(out, 2, "mode", &mode)?;
    field(out, 2, "command", &harmless(&app.command.join(" ")))?;
    field(out, 2, "cwd", &harmless(&app.cwd))?;
    field(out, 2, "config", &harmless(&app.config))?;
    field(out, 2, "level", &level(app))?;
    if let Some(limit) = app.memory_limit_bytes {
        field(out, 2, "memory limit", &memory(Some(limit)))?;
    }
    field(out, 2, "uptime", &time(app.uptime_ms))?;
    let AppState { supervisor_pid, keeper_pid, supervisor_deaths, pmr_version, .. } = app;
    let died = match supervisor_deaths {
        0 => String::new(),
        1 => ", replaced once".to_owned(),
        times => format!(", replaced {times} times"),
    };
    let text = format!("pid {supervisor_pid} under keeper {keeper_pid}, pmr {pmr_version}{died}");
    field(out, 2, "supervisor", &text)?;
    if let Some(upgrade) = &app.upgrade {
        let text = if upgrade.rolled_back {
            format!("rolled back to pmr {}", upgrade.from)
        } else {
            format!("from pmr {} to {}", upgrade.from, upgrade.to)
        };
        field(out, 2, "last upgrade", &text)?;
    }
    if let Some(roll) = &app.roll {
        let slot = roll.slot.map(|slot| format!(" at slot {slot}")).unwrap_or_default();
        field(out, 2, "in progress", &format!("{}{slot}", roll.kind))?;
    }
    for instance in &app.instances {
        write_slot(out, instance)?;
    }
    Ok(())
}

fn level(app: &AppState) -> String {
    let cap =
        if app.memory_cap_enforced { "memory cap enforced" } else { "memory cap not enforced" };
    format!("{}: {cap}", app.level)
}

fn write_slot(out: &mut dyn Write, instance: &InstanceState) -> io::Result<()> {
    let InstanceState { id, status, restarts, unstable, unstable_limit, .. } = instance;
    let style = style_of(status);
    let next = instance.next_start_ms.map(|ms| format!(", starts in {}", time(ms)));
    writeln!(out, "\n  slot {id}: {style}{status}{style:#}{}", next.unwrap_or_default())?;
    if let Some(generation) = instance.generation {
        let release = or_dash(instance.release);
        let pid = or_dash(instance.pid);
        field(out, 4, "pid", &format!("{pid} (generation {generation}, release {release})"))?;
        field(out, 4, "memory", &memory(instance.memory_bytes))?;
        field(out, 4, "cpu", &cpu(instance.cpu_percent))?;
        field(out, 4, "uptime", &instance.uptime_ms.map_or_else(|| "-".to_owned(), time))?;
    }
    if let Some(OtherState { generation, pid, status, uptime_ms, release, .. }) = &instance.other {
        let text = format!(
            "{} {status} for {} (generation {generation}, release {release})",
            or_dash(*pid),
            time(*uptime_ms),
        );
        field(out, 4, "other pid", &text)?;
    }
    field(out, 4, "restarts", &restarts.to_string())?;
    field(out, 4, "limit", &format!("{unstable}/{unstable_limit} unstable exits"))?;
    if let Some(exit) = &instance.last_exit {
        let asked = if exit.asked { ", as asked" } else { "" };
        let text = format!(
            "generation {} {}{asked}, after {}, {} ago",
            exit.generation,
            harmless(&exit.text),
            time(exit.uptime_ms),
            time(exit.ago_ms),
        );
        field(out, 4, "last exit", &text)?;
    }
    for (index, line) in instance.stderr.iter().enumerate() {
        let name = if index == 0 { "last stderr" } else { "" };
        field(out, 4, name, &harmless(line))?;
    }
    Ok(())
}
