//! `pmr status`: a line for every slot.

use serde::Serialize;

use super::apps::{self, Streams};
use super::error::{Error, NOTHING_RUNS};
use super::table::{Cell, Side, cpu, harmless, memory, or_dash, style_of, time, write_table};
use super::target::Target;
use crate::control::protocol::{AppState, InstanceState, VERSION};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Json<'a> {
    version: u32,
    apps: &'a [AppState],
}

pub(super) fn run(
    apps: &apps::Apps,
    targets: &[String],
    json: bool,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let targets = targets.iter().map(|it| Target::new(it)).collect::<Result<Vec<_>, _>>()?;
    let chosen = match targets.as_slice() {
        [] => apps.find(&[Target::All]),
        some => apps.find(some),
    };
    let chosen = match chosen {
        Err(Error::NothingRuns) => apps::Found::default(),
        other => other?,
    };
    let (states, errors) = apps::states(chosen);
    if json {
        let json = Json { version: VERSION, apps: &states };
        writeln!(streams.out, "{}", serde_json::to_string(&json).unwrap_or_default())?;
    } else if states.is_empty() && errors.is_empty() {
        writeln!(streams.err, "no app is running\n\nhint: {NOTHING_RUNS}")?;
    } else if !states.is_empty() {
        write_states(&states, streams)?;
    }
    apps::join(errors)
}

pub(super) fn write_states(states: &[AppState], streams: &mut Streams<'_>) -> Result<(), Error> {
    let heading = [
        ("NAME", Side::Left),
        ("ID", Side::Right),
        ("MODE", Side::Left),
        ("PID", Side::Right),
        ("MEM", Side::Right),
        ("CPU", Side::Right),
        ("STATUS", Side::Left),
        ("RESTARTS", Side::Right),
        ("UPTIME", Side::Left),
    ];
    let slots =
        || states.iter().flat_map(|app| app.instances.iter().map(move |instance| (app, instance)));
    let rows: Vec<_> = slots().map(|(app, instance)| row(app, instance)).collect();
    write_table(&mut *streams.out, heading, &rows)?;
    let notes = slots().map(|(app, instance)| (app, instance, note(app, instance)));
    let mut before = "\n";
    for (app, instance, note) in notes.filter(|(_, _, note)| !note.is_empty()) {
        writeln!(streams.out, "{before}{} {}: {note}", app.name, instance.id)?;
        before = "";
    }
    Ok(())
}

fn row(app: &AppState, instance: &InstanceState) -> [Cell; 9] {
    let status = match instance.next_start_ms {
        Some(ms) => format!("{} {}", instance.status, time(ms)),
        None => instance.status.clone(),
    };
    [
        app.name.as_str().into(),
        instance.id.to_string().into(),
        app.mode.as_str().into(),
        or_dash(instance.pid).into(),
        memory(instance.memory_bytes).into(),
        cpu(instance.cpu_percent).into(),
        Cell { text: status, style: style_of(&instance.status) },
        instance.restarts.to_string().into(),
        instance.uptime_ms.map_or_else(|| "-".to_owned(), time).into(),
    ]
}

/// What a person who looks at the row asks next; too long for a column.
fn note(app: &AppState, instance: &InstanceState) -> String {
    let mut notes = Vec::new();
    if let Some(other) = &instance.other {
        let pid = or_dash(other.pid);
        notes.push(format!("generation {} (pid {pid}) {}", other.generation, other.status));
    }
    let down = matches!(instance.status.as_str(), "waiting" | "errored");
    if let Some(exit) = instance.last_exit.as_ref().filter(|it| down && !it.asked) {
        notes.push(format!("{} {} ago", harmless(&exit.text), time(exit.ago_ms)));
    }
    if instance.unstable > 0 {
        notes.push(format!("limit {}/{}", instance.unstable, instance.unstable_limit));
    }
    if let Some(roll) = app.roll.as_ref().filter(|roll| roll.slot == Some(instance.id)) {
        notes.push(format!("{} in progress", roll.kind));
    }
    notes.join(", ")
}
