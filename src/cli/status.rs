//! `pmr status`: a line for every slot, and for every app that does not run.

use serde::Serialize;

use super::apps::{self, Known, Streams};
use super::error::{Error, NOTHING_RUNS};
use super::systemd::{BusError, UnitState};
use super::table::{Cell, Side, cpu, harmless, memory, or_dash, style_of, time, write_table};
use super::target::Target;
use super::units::Connections;
use crate::control::Scope;
use crate::control::client::Deadline;
use crate::control::protocol::{AppState, InstanceState, VERSION};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Json<'a> {
    version: u32,
    apps: Vec<Entry<'a>>,
}

/// An app in `--json`: `kind` says which fields it has.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Entry<'a> {
    /// `running`: what its supervisor says.
    Running {
        #[serde(flatten)]
        app: &'a AppState,
        kind: &'static str,
    },
    /// `unit`: what systemd says of one that does not run.
    Unit {
        #[serde(flatten)]
        app: &'a Idle,
        kind: &'static str,
    },
}

impl<'a> Entry<'a> {
    pub(super) fn running(app: &'a AppState) -> Self {
        Self::Running { app, kind: "running" }
    }

    pub(super) fn unit(app: &'a Idle) -> Self {
        Self::Unit { app, kind: "unit" }
    }

    fn name(&self) -> &'a str {
        match *self {
            Self::Running { app, .. } => &app.name,
            Self::Unit { app, .. } => &app.name,
        }
    }
}

/// An app that does not run.
#[derive(Debug, Serialize)]
pub(super) struct Idle {
    pub(super) name: String,
    /// In one word, or two.
    pub(super) status: String,
    /// None: there is nothing in its slots.
    pub(super) instances: [InstanceState; 0],
    pub(super) config: String,
    /// `None` where systemd cannot be asked.
    pub(super) unit: Option<UnitState>,
}

impl Idle {
    pub(super) fn new(known: &Known, unit: Option<UnitState>) -> Self {
        Self {
            name: known.name.clone(),
            status: unit.as_ref().map_or("not running", UnitState::word).to_owned(),
            instances: [],
            config: known.config.as_ref().map(|it| it.display().to_string()).unwrap_or_default(),
            unit,
        }
    }

    pub(super) fn text(&self) -> String {
        self.unit.as_ref().map_or_else(|| self.status.clone(), UnitState::text)
    }
}

pub(super) fn run(
    apps: &apps::Apps,
    targets: &[String],
    json: bool,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let meant = targets.iter().map(|it| Target::new(it)).collect::<Result<Vec<_>, _>>()?;
    let meant = if meant.is_empty() { vec![Target::All] } else { meant };
    let around = apps.around(&meant, apps::ask)?;
    if !targets.is_empty() {
        let is_none =
            |target: &&Target| !around.known.iter().any(|known| target.matches(&known.name));
        if let Some(target) = meant.iter().find(is_none) {
            return Err(apps.nothing(target)?);
        }
    }
    for error in around.unread {
        writeln!(streams.err, "note: {error}")?;
    }
    let (found, stopped) = super::units::part(around.known);
    let (idle, error) = look_at(&stopped);
    let (states, errors) = apps::states(found);
    if json {
        let entries = states.iter().map(Entry::running).chain(idle.iter().map(Entry::unit));
        let mut apps: Vec<_> = entries.collect();
        apps.sort_by_key(Entry::name);
        let json = Json { version: VERSION, apps };
        writeln!(streams.out, "{}", serde_json::to_string(&json).unwrap_or_default())?;
    } else if states.is_empty() && idle.is_empty() && errors.is_empty() {
        writeln!(streams.err, "no app is running\n\nhint: {NOTHING_RUNS}")?;
    } else if !(states.is_empty() && idle.is_empty()) {
        write_states(&states, &idle, streams)?;
    }
    if let Some(error) = error {
        writeln!(streams.err, "note: {error}; what does not run is shown without its unit")?;
    }
    apps::join(errors)
}

/// What systemd says of those that do not run, and why it could not be asked.
fn look_at(stopped: &[Known]) -> (Vec<Idle>, Option<BusError>) {
    let mut connections = Connections::default();
    let mut error = None;
    let mut idle = Vec::new();
    for scope in [Scope::User, Scope::System] {
        let known: Vec<&Known> = stopped.iter().filter(|it| it.scope == scope).collect();
        if known.is_empty() {
            continue;
        }
        let names: Vec<&str> = known.iter().map(|it| it.name.as_str()).collect();
        let units = match connections.of(scope) {
            Ok(systemd) => systemd.units(&names, Deadline::never()),
            Err(error) => names.iter().map(|_| Err(error.clone())).collect(),
        };
        for (known, unit) in known.into_iter().zip(units) {
            let unit = unit.map_err(|source| error = Some(source)).ok();
            idle.push(Idle::new(known, unit));
        }
    }
    idle.sort_by(|a, b| a.name.cmp(&b.name));
    (idle, error)
}

/// Those that run and those that do not, together in order of their names.
pub(super) fn write_states(
    states: &[AppState],
    idle: &[Idle],
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
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
    let running = slots().map(|(app, instance)| (app.name.as_str(), row(app, instance)));
    let idle = idle.iter().map(|app| (app.name.as_str(), idle_row(app)));
    let mut rows: Vec<_> = running.chain(idle).collect();
    rows.sort_by_key(|(name, _)| *name);
    let rows: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
    write_table(&mut *streams.out, heading, &rows)?;
    let notes = slots().map(|(app, instance)| (app, instance, note(app, instance)));
    let mut before = "\n";
    for (app, instance, note) in notes.filter(|(_, _, note)| !note.is_empty()) {
        writeln!(streams.out, "{before}{} {}: {note}", app.name, instance.id)?;
        before = "";
    }
    for app in states {
        let unenforced = app.limits.iter().filter(|limit| !limit.enforced);
        let keys: Vec<_> = unenforced.map(|limit| harmless(&limit.key)).collect();
        if !keys.is_empty() {
            writeln!(streams.out, "{before}{}: NOT enforced here: {}", app.name, keys.join(", "))?;
            before = "";
        }
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

fn idle_row(app: &Idle) -> [Cell; 9] {
    let dash = || Cell::from("-");
    [
        app.name.as_str().into(),
        dash(),
        dash(),
        dash(),
        dash(),
        dash(),
        Cell { text: app.text(), style: style_of(&app.status) },
        dash(),
        dash(),
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
