//! `pmr describe`: everything about an app.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use super::apps::{Apps, Known, Streams, call_error, soon};
use super::error::Error;
use super::journal::{Place, last_errors, last_lines};
use super::status::{Access, Entry, Idle};
use super::table::{cpu, harmless, limit, memory, or_dash, style_of, time};
use super::target::Target;
use super::units::{Connections, why};
use crate::control::protocol::{AppState, BalanceState, InstanceState, OtherState, VERSION};

/// How many of the last lines of the journal are shown of an app that does not run.
const JOURNAL_LINES: u32 = 10;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Json<'a> {
    version: u32,
    app: Entry<'a>,
    /// The last lines of an app that does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    journal: Option<&'a [String]>,
}

pub(super) fn run(
    apps: &Apps,
    name: &str,
    json: bool,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let target = Target::Name(name.to_owned());
    let mut known = apps.known(std::slice::from_ref(&target))?.into_iter();
    let known = known.next().ok_or_else(|| target.nothing(Vec::new(), Vec::new()))?;
    let scope = known.scope;
    let Some(live) = known.live else { return idle(&known, json, streams) };
    let mut state = live?.client.describe(soon()).map_err(call_error(name, "describe"))?;
    let unread = add_last_errors(&mut state);
    if json {
        write_json(Entry::running(&state, scope), None, streams)?;
    } else {
        write_app(&mut *streams.out, &state)?;
    }
    Ok(write_note(unread.err(), "its last lines are not shown", streams)?)
}

fn write_json(
    app: Entry<'_>,
    journal: Option<&[String]>,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let json = Json { version: VERSION, app, journal };
    writeln!(streams.out, "{}", serde_json::to_string(&json).unwrap_or_default())?;
    Ok(())
}

/// An app that does not run: what systemd and the journal say of it.
fn idle(known: &Known, json: bool, streams: &mut Streams<'_>) -> Result<(), Error> {
    let mut connections = Connections::default();
    let unit = connections.of(known.scope).and_then(|systemd| systemd.unit(&known.name, soon()));
    let (journal, unread) = parts(last_lines(&Place::of(known), JOURNAL_LINES));
    let (unit, unseen) = parts(unit);
    let journal = journal.unwrap_or_default();
    let app = Idle::new(known, unit, Access::Stopped);
    if json {
        write_json(Entry::unit(&app), Some(&journal), streams)?;
    } else {
        write_idle(&mut *streams.out, &app, &journal)?;
    }
    write_note(unseen, "the unit is not shown", streams)?;
    Ok(write_note(unread, "its last lines are not shown", streams)?)
}

fn parts<T, E>(result: Result<T, E>) -> (Option<T>, Option<E>) {
    match result {
        Ok(value) => (Some(value), None),
        Err(error) => (None, Some(error)),
    }
}

/// What could not be had, and what is left out for that.
fn write_note(
    error: Option<impl fmt::Display>,
    without: &str,
    streams: &mut Streams<'_>,
) -> io::Result<()> {
    match error {
        Some(error) => writeln!(streams.err, "note: {error}; {without}"),
        None => Ok(()),
    }
}

fn write_idle(out: &mut dyn Write, app: &Idle, journal: &[String]) -> io::Result<()> {
    let style = style_of(&app.status);
    writeln!(out, "{}: {style}{}{style:#}", app.name, app.text())?;
    field(out, 2, "config", &app.config.as_deref().map_or_else(|| "none".to_owned(), harmless))?;
    if let Some(unit) = &app.unit {
        let since = unit.since_ms.map(|ms| format!(" for {}", time(ms))).unwrap_or_default();
        let text = match (unit.active_state.as_str(), unit.sub_state.as_str()) {
            (active, sub) if active == sub => format!("{}, {active}{since}", unit.name),
            (active, sub) => format!("{}, {active} ({sub}){since}", unit.name),
        };
        field(out, 2, "unit", &text)?;
        field(out, 2, "enabled", if unit.is_enabled() { "yes" } else { "no" })?;
        if let Some(why) = why(unit) {
            field(out, 2, "last result", &why)?;
        }
        if !unit.status_text.is_empty() {
            field(out, 2, "last status", &harmless(&unit.status_text))?;
        }
    }
    for (index, line) in journal.iter().enumerate() {
        field(out, 2, if index == 0 { "last lines" } else { "" }, &harmless(line))?;
    }
    Ok(())
}

/// Of an instance that has failed, the last it said on standard error, where the journal has it.
/// Who may not read that sees the rest all the same.
fn add_last_errors(app: &mut AppState) -> Result<(), Error> {
    let Some(journal) = &app.journal else { return Ok(()) };
    let lines = app.instances.iter().map(|slot| last_errors(app, journal, slot));
    let lines = lines.collect::<Result<Vec<_>, _>>()?;
    for (slot, lines) in app.instances.iter_mut().zip(lines) {
        slot.stderr = lines;
    }
    Ok(())
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
    if let Some(balance) = &app.balance {
        write_balance(out, balance)?;
    }
    field(out, 2, "command", &harmless(&app.command.join(" ")))?;
    field(out, 2, "cwd", &harmless(&app.cwd))?;
    field(out, 2, "config", &harmless(&app.config))?;
    field(out, 2, "level", &level(app))?;
    if let Some(limit) = app.memory_limit_bytes {
        field(out, 2, "memory limit", &memory(Some(limit)))?;
    }
    for (index, it) in app.limits.iter().enumerate() {
        let name = if index == 0 { "limits" } else { "" };
        let reason = it.reason.as_deref().map(|reason| format!(": {}", harmless(reason)));
        let not = if it.enforced { "" } else { ", NOT enforced" };
        let value = limit(&it.key, it.value);
        field(out, 2, name, &format!("{} {value}{not}{}", it.key, reason.unwrap_or_default()))?;
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

fn write_balance(out: &mut dyn Write, balance: &BalanceState) -> io::Result<()> {
    let BalanceState { adapter, reason, method, steered, note } = balance;
    let steered = if *steered { "steered by the kernel" } else { "one accept queue for all" };
    field(out, 2, "balance", &format!("{method}, {steered}"))?;
    if let Some(note) = note {
        field(out, 2, "", &harmless(note))?;
    }
    field(out, 2, "adapter", &format!("{adapter}: {}", harmless(reason)))
}

fn level(app: &AppState) -> String {
    let cap =
        if app.memory_cap_enforced { "memory cap enforced" } else { "memory cap not enforced" };
    format!("{}: {cap}", app.level)
}

fn memory_of(instance: &InstanceState) -> String {
    let text = memory(instance.memory_bytes);
    let peak = instance.memory_peak_bytes.map(|peak| format!(", peak {}", memory(Some(peak))));
    match (instance.memory_bytes, instance.usage_exact) {
        (None, _) => text,
        (Some(_), true) => format!("{text} with page cache{}", peak.unwrap_or_default()),
        (Some(_), false) => format!("{text}, sampled"),
    }
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
        field(out, 4, "memory", &memory_of(instance))?;
        field(out, 4, "cpu", &cpu(instance.cpu_percent))?;
        if let Some(tasks) = instance.tasks {
            field(out, 4, "tasks", &tasks.to_string())?;
        }
        field(out, 4, "uptime", &instance.uptime_ms.map_or_else(|| "-".to_owned(), time))?;
    }
    if let (Some(taken), Some(migrated)) = (instance.connections, instance.migrated) {
        let queued = or_dash(instance.queued);
        let text = format!("{taken} taken ({migrated} from other queues), {queued} waiting");
        field(out, 4, "connections", &text)?;
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
