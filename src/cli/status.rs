//! `pmr status`: a line for every slot, and for every app that does not run.

use std::collections::BTreeMap;

use serde::Serialize;

use super::apps::{self, Known, Streams};
use super::error::{Error, ExitStatus, NOTHING_RUNS};
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
        scope: Scope,
    },
    /// `unit`: what systemd says of one that does not run, or that the caller may not look at.
    Unit {
        #[serde(flatten)]
        app: &'a Idle,
        kind: &'static str,
        scope: Scope,
    },
}

impl<'a> Entry<'a> {
    pub(super) fn running(app: &'a AppState, scope: Scope) -> Self {
        Self::Running { app, kind: "running", scope }
    }

    pub(super) fn unit(app: &'a Idle) -> Self {
        Self::Unit { app, kind: "unit", scope: app.scope }
    }

    fn name(&self) -> &'a str {
        match *self {
            Self::Running { app, .. } => &app.name,
            Self::Unit { app, .. } => &app.name,
        }
    }
}

/// An app that does not run, or that the caller may not look at.
#[derive(Debug, Serialize)]
pub(super) struct Idle {
    pub(super) name: String,
    /// In one word, or two.
    pub(super) status: String,
    /// None: there is nothing in its slots, or it is not to be seen.
    pub(super) instances: [InstanceState; 0],
    /// `None` where it is not there any more.
    pub(super) config: Option<String>,
    /// `None` where systemd cannot be asked.
    pub(super) unit: Option<UnitState>,
    #[serde(skip)]
    scope: Scope,
    #[serde(skip)]
    access: Access,
}

/// Why an app is shown by its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// It does not run.
    Stopped,
    /// It does, and is not for the caller.
    Denied,
}

impl Idle {
    pub(super) fn new(known: &Known, unit: Option<UnitState>, access: Access) -> Self {
        let status = match (&unit, access) {
            (Some(unit), Access::Denied) if unit.is_up() => "running",
            (Some(unit), Access::Stopped | Access::Denied) => unit.word(),
            (None, Access::Stopped) => "not running",
            (None, Access::Denied) => "no access",
        };
        Self {
            name: known.name.clone(),
            status: status.to_owned(),
            instances: [],
            config: known.config.as_ref().map(|it| it.display().to_string()),
            unit,
            scope: known.scope,
            access,
        }
    }

    /// Its status with what one would ask next.
    pub(super) fn text(&self) -> String {
        let Some(unit) = &self.unit else { return self.status.clone() };
        let mut notes = match self.access {
            Access::Stopped => unit.notes(),
            // What its keeper says of it to everybody.
            Access::Denied => Some(harmless(&unit.status_text)).into_iter().collect(),
        };
        notes.retain(|note| !note.is_empty());
        let status = &self.status;
        if notes.is_empty() { status.clone() } else { format!("{status} ({})", notes.join(", ")) }
    }
}

/// The apps of one service manager.
#[derive(Debug)]
struct View {
    scope: Scope,
    states: Vec<AppState>,
    idle: Vec<Idle>,
}

impl View {
    fn is_empty(&self) -> bool {
        self.states.is_empty() && self.idle.is_empty()
    }

    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let running = self.states.iter().map(|app| Entry::running(app, self.scope));
        running.chain(self.idle.iter().map(Entry::unit))
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
    let (mut views, mut unseen, mut errors) = (Vec::new(), None, Vec::new());
    let mut known = around.known;
    for home in &apps.homes {
        let (here, others) = known.into_iter().partition(|it| it.scope == home.scope);
        known = others;
        let (view, mut wrong) = look(home.scope, here, targets.is_empty(), &mut unseen);
        views.push(view);
        errors.append(&mut wrong);
    }
    if json {
        let mut apps: Vec<_> = views.iter().flat_map(View::entries).collect();
        apps.sort_by_key(Entry::name);
        let json = Json { version: VERSION, apps };
        writeln!(streams.out, "{}", serde_json::to_string(&json).unwrap_or_default())?;
    } else if views.iter().all(View::is_empty) && errors.is_empty() {
        writeln!(streams.err, "no app is running\n\nhint: {NOTHING_RUNS}")?;
    } else {
        write_views(&views, streams)?;
    }
    if let Some(error) = unseen {
        writeln!(streams.err, "note: {error}; what does not run is shown without its unit")?;
    }
    apps::join(errors)
}

/// What there is of one service manager, and what went wrong. Who asks for `all` is not told of
/// each app that it is not for them: such a one is shown by its unit.
fn look(
    scope: Scope,
    known: Vec<Known>,
    all: bool,
    unseen: &mut Option<BusError>,
) -> (View, Vec<Error>) {
    let units = known.iter().filter(|it| all && it.has_units);
    let mut units: BTreeMap<_, _> = units.map(|it| (it.name.clone(), it.as_unit())).collect();
    let (found, stopped) = super::units::part(known);
    let (states, failed) = apps::states(found);
    let mut errors = Vec::new();
    let mut idle: Vec<_> = stopped.into_iter().map(|it| (it, Access::Stopped)).collect();
    for error in failed {
        let denied = error.app().filter(|_| error.exit_status() == ExitStatus::Denied);
        match denied.and_then(|name| units.remove(name)) {
            Some(unit) => idle.push((unit, Access::Denied)),
            None => errors.push(error),
        }
    }
    (View { scope, states, idle: look_at(scope, &idle, unseen) }, errors)
}

/// What systemd says of those that cannot be asked themselves; leaves behind why it could not be.
fn look_at(scope: Scope, meant: &[(Known, Access)], unseen: &mut Option<BusError>) -> Vec<Idle> {
    if meant.is_empty() {
        return Vec::new();
    }
    let names: Vec<&str> = meant.iter().map(|it| it.0.name.as_str()).collect();
    let units = match Connections::default().of(scope) {
        Ok(systemd) => systemd.units(&names, Deadline::never()),
        Err(error) => names.iter().map(|_| Err(error.clone())).collect(),
    };
    let mut idle = Vec::new();
    for ((known, access), unit) in meant.iter().zip(units) {
        let unit = unit.map_err(|source| *unseen = Some(source)).ok();
        idle.push(Idle::new(known, unit, *access));
    }
    idle
}

/// A table for the caller's own apps, and one for the machine's below, where both are looked at.
fn write_views(views: &[View], streams: &mut Streams<'_>) -> Result<(), Error> {
    let mut before = "";
    for (index, view) in views.iter().enumerate().filter(|(_, view)| !view.is_empty()) {
        if index > 0 {
            writeln!(streams.out, "{before}apps of the machine:")?;
        }
        write_states(&view.states, &view.idle, streams)?;
        before = "\n";
    }
    Ok(())
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
