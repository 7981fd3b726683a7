//! `pmr metrics`: what `status --json` says in the text format of `OpenMetrics`, for a collector of
//! text files or a socket unit of one's own. Names are in base units, and what only grows ends in
//! `_total`.

use super::apps::{self, Apps, Streams};
use super::error::Error;
use super::target::Target;
use crate::control::protocol::{AppState, InstanceState};

/// What a family of samples is.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// It goes up and down.
    Gauge,
    /// It only grows, until its instance or app is started anew.
    Counter,
}

/// One family, with a value for each instance that has one.
struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&InstanceState) -> Option<f64>,
}

const FAMILIES: [Family; 11] = [
    gauge("pmr_instance_online", "Whether the slot is online.", |it| {
        Some(f64::from(u8::from(it.status == "online")))
    }),
    counter("pmr_instance_restarts", "Restarts nobody asked for.", |it| Some(it.restarts.into())),
    gauge("pmr_instance_unstable_exits", "Unstable exits that count for the limit.", |it| {
        Some(it.unstable.into())
    }),
    gauge("pmr_instance_uptime_seconds", "Since its spawn.", |it| {
        it.uptime_ms.map(|ms| float(ms) / 1000.0)
    }),
    gauge("pmr_instance_memory_bytes", "Memory with all it started.", |it| {
        it.memory_bytes.map(float)
    }),
    gauge("pmr_instance_memory_peak_bytes", "The most that was, as the kernel counts it.", |it| {
        it.memory_peak_bytes.map(float)
    }),
    gauge("pmr_instance_tasks", "Processes and threads.", |it| it.tasks.map(float)),
    gauge("pmr_instance_cpu_ratio", "Use of CPU; 1 is one whole CPU.", |it| {
        it.cpu_percent.map(|percent| percent / 100.0)
    }),
    counter("pmr_instance_connections", "Connections steered to it since its spawn.", |it| {
        it.connections.map(float)
    }),
    counter(
        "pmr_instance_migrated_connections",
        "Those of them that had waited for another one.",
        |it| it.migrated.map(float),
    ),
    gauge("pmr_instance_queued_connections", "Connections that wait to be accepted.", |it| {
        it.queued.map(float)
    }),
];

const fn gauge(
    name: &'static str,
    help: &'static str,
    value: fn(&InstanceState) -> Option<f64>,
) -> Family {
    Family { name, kind: Kind::Gauge, help, value }
}

const fn counter(
    name: &'static str,
    help: &'static str,
    value: fn(&InstanceState) -> Option<f64>,
) -> Family {
    Family { name, kind: Kind::Counter, help, value }
}

pub(super) fn run(apps: &Apps, targets: &[String], streams: &mut Streams<'_>) -> Result<(), Error> {
    let meant = targets.iter().map(|it| Target::new(it)).collect::<Result<Vec<_>, _>>()?;
    let meant = if meant.is_empty() { vec![Target::All] } else { meant };
    let around = apps.around(&meant, apps::ask)?;
    let (found, _) = super::units::part(around.known);
    let (states, errors) = apps::states(found);
    streams.out.write_all(text(&states).as_bytes())?;
    apps::join(errors)
}

/// All families; those of which nobody has a sample are left out.
fn text(states: &[AppState]) -> String {
    let mut text = String::new();
    write_apps(&mut text, states);
    for family in &FAMILIES {
        let samples: String = states.iter().map(|app| samples(family, app)).collect();
        if !samples.is_empty() {
            head(&mut text, family.name, family.kind, family.help);
            text.push_str(&samples);
        }
    }
    text.push_str("# EOF\n");
    text
}

fn write_apps(text: &mut String, states: &[AppState]) {
    if states.is_empty() {
        return;
    }
    let deaths = "pmr_supervisor_deaths";
    head(text, deaths, Kind::Counter, "Supervisors of the app that died and were replaced.");
    for app in states {
        let (name, deaths_total) = (label(&app.name), app.supervisor_deaths);
        write_line(text, format_args!("{deaths}_total{{app=\"{name}\"}} {deaths_total}"));
    }
    let release = "pmr_app_release";
    head(text, release, Kind::Gauge, "Number of the reading of the config that is current.");
    for app in states {
        let (name, number) = (label(&app.name), app.release);
        write_line(text, format_args!("{release}{{app=\"{name}\"}} {number}"));
    }
}

fn head(text: &mut String, name: &str, kind: Kind, help: &str) {
    let kind = match kind {
        Kind::Gauge => "gauge",
        Kind::Counter => "counter",
    };
    write_line(text, format_args!("# TYPE {name} {kind}"));
    if let Some(unit) = ["seconds", "bytes", "ratio"].into_iter().find(|it| name.ends_with(it)) {
        write_line(text, format_args!("# UNIT {name} {unit}"));
    }
    write_line(text, format_args!("# HELP {name} {help}"));
}

fn samples(family: &Family, app: &AppState) -> String {
    let mut text = String::new();
    let suffix = match family.kind {
        Kind::Gauge => "",
        Kind::Counter => "_total",
    };
    for instance in &app.instances {
        if let Some(value) = (family.value)(instance) {
            let (name, app, slot) = (family.name, label(&app.name), instance.id);
            let labels = format_args!("{{app=\"{app}\",slot=\"{slot}\"}}").to_string();
            write_line(&mut text, format_args!("{name}{suffix}{labels} {value}"));
        }
    }
    text
}

fn write_line(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.push_str(&line.to_string());
    text.push('\n');
}

/// A label's value; names of apps need no escape, but what came over a socket may be anything.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Counts beyond 2^53 lose their last digits, which nobody looks at.
#[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "see above")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_whole_and_nobody_is_asked_for_what_he_has_not() {
        let online = InstanceState {
            status: "online".to_owned(),
            restarts: 3,
            uptime_ms: Some(1500),
            memory_bytes: Some(1 << 30),
            cpu_percent: Some(12.5),
            connections: Some(1000),
            migrated: Some(2),
            queued: Some(0),
            ..InstanceState::default()
        };
        let waiting = InstanceState { id: 1, status: "waiting".to_owned(), ..Default::default() };
        let app = AppState {
            name: "a\"b".to_owned(),
            instances: vec![online, waiting],
            release: 2,
            ..AppState::default()
        };
        insta::assert_snapshot!(text(&[app]), @r#"
        # TYPE pmr_supervisor_deaths counter
        # HELP pmr_supervisor_deaths Supervisors of the app that died and were replaced.
        pmr_supervisor_deaths_total{app="a\"b"} 0
        # TYPE pmr_app_release gauge
        # HELP pmr_app_release Number of the reading of the config that is current.
        pmr_app_release{app="a\"b"} 2
        # TYPE pmr_instance_online gauge
        # HELP pmr_instance_online Whether the slot is online.
        pmr_instance_online{app="a\"b",slot="0"} 1
        pmr_instance_online{app="a\"b",slot="1"} 0
        # TYPE pmr_instance_restarts counter
        # HELP pmr_instance_restarts Restarts nobody asked for.
        pmr_instance_restarts_total{app="a\"b",slot="0"} 3
        pmr_instance_restarts_total{app="a\"b",slot="1"} 0
        # TYPE pmr_instance_unstable_exits gauge
        # HELP pmr_instance_unstable_exits Unstable exits that count for the limit.
        pmr_instance_unstable_exits{app="a\"b",slot="0"} 0
        pmr_instance_unstable_exits{app="a\"b",slot="1"} 0
        # TYPE pmr_instance_uptime_seconds gauge
        # UNIT pmr_instance_uptime_seconds seconds
        # HELP pmr_instance_uptime_seconds Since its spawn.
        pmr_instance_uptime_seconds{app="a\"b",slot="0"} 1.5
        # TYPE pmr_instance_memory_bytes gauge
        # UNIT pmr_instance_memory_bytes bytes
        # HELP pmr_instance_memory_bytes Memory with all it started.
        pmr_instance_memory_bytes{app="a\"b",slot="0"} 1073741824
        # TYPE pmr_instance_cpu_ratio gauge
        # UNIT pmr_instance_cpu_ratio ratio
        # HELP pmr_instance_cpu_ratio Use of CPU; 1 is one whole CPU.
        pmr_instance_cpu_ratio{app="a\"b",slot="0"} 0.125
        # TYPE pmr_instance_connections counter
        # HELP pmr_instance_connections Connections steered to it since its spawn.
        pmr_instance_connections_total{app="a\"b",slot="0"} 1000
        # TYPE pmr_instance_migrated_connections counter
        # HELP pmr_instance_migrated_connections Those of them that had waited for another one.
        pmr_instance_migrated_connections_total{app="a\"b",slot="0"} 2
        # TYPE pmr_instance_queued_connections gauge
        # HELP pmr_instance_queued_connections Connections that wait to be accepted.
        pmr_instance_queued_connections{app="a\"b",slot="0"} 0
        # EOF
        "#);
        assert_eq!(text(&[]), "# EOF\n");
    }
}
