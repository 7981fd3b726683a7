//! From the table of a file to a [`Spec`]: every key with its default, and what keys say together.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

use super::Source;
use super::environment::environment;
use super::limits;
use super::raw::{Complaint, Reader, Value};
use super::values::{self, DURATION_MAX, any_address};
use crate::spec::{
    Alerts, Backoff, Balance, Environment, ExecMode, Health, INSTANCES_MAX, Identity, Instances,
    ListenAddress, Probe, Program, Readiness, RestartRules, RollingRules, Spec, StopRules, Watch,
};

/// Shortest default of `restart_window`.
const RESTART_WINDOW_MIN: Duration = Duration::from_mins(1);

/// Interpreters by the extension of the script, which they run as their first argument.
const INTERPRETERS: &[(&str, &str)] = &[
    ("js", "node"),
    ("mjs", "node"),
    ("cjs", "node"),
    ("ts", "node"),
    ("py", "python3"),
    ("sh", "bash"),
    ("rb", "ruby"),
    ("pl", "perl"),
];

/// Reads every key. A faulty one has its default; where there is nothing to run, which is a problem
/// too, the argument vector is empty.
pub(super) fn spec(source: &Source, overlay: Option<&str>, reader: &mut Reader<'_>) -> Spec {
    let program = program(reader).unwrap_or(Program { argv: Vec::new(), script: None });
    let cwd = values::absolute(&source.directory, reader.read("cwd", values::path).as_deref());
    let mut environment = environment(overlay, &cwd, reader);
    let instances = reader.read("instances", values::instances).unwrap_or(Instances::Count(1));
    let (exec_mode, listen) = addresses(instances, &mut environment, reader);
    let inherits = reader.find("listen").is_some();
    let readiness_needs_address = listen.is_empty() && port(&environment).is_none();
    Spec {
        name: source.name.clone(),
        program,
        cwd,
        identity: Identity {
            user: reader.read("user", values::account),
            group: reader.read("group", values::account),
            umask: reader.read("umask", values::umask),
        },
        environment,
        ignore_sigpipe: flag("ignore_sigpipe", true, reader),
        instances,
        exec_mode,
        listen,
        inherits,
        balance: reader
            .read(
                "balance",
                values::choice(&[
                    ("round-robin", Balance::RoundRobin),
                    ("shared", Balance::Shared),
                    ("source", Balance::Source),
                ]),
            )
            .unwrap_or(Balance::RoundRobin),
        restart: restart(reader),
        ready: readiness(exec_mode, readiness_needs_address, reader),
        listen_timeout: duration("listen_timeout", false, Duration::from_secs(30), reader),
        stop: stop(reader),
        memory: limits::memory(reader),
        limits: limits::limits(reader),
        health: health(readiness_needs_address, reader),
        watchdog: reader.read("watchdog", values::duration(false)),
        cron_restart: reader.read("cron_restart", values::cron),
        watch: watch(reader),
        alerts: alerts(reader),
        rolling: rolling(instances, reader),
    }
}

fn duration(key: &str, zero: bool, default: Duration, reader: &mut Reader<'_>) -> Duration {
    reader.read(key, values::duration(zero)).unwrap_or(default)
}

fn flag(key: &str, default: bool, reader: &mut Reader<'_>) -> bool {
    reader.read(key, values::boolean).unwrap_or(default)
}

/// Complains about the first of `keys` that is there.
fn forbid(keys: &[&str], message: &str, hint: &str, reader: &mut Reader<'_>) {
    if let Some(key) = keys.iter().find(|key| reader.has(key)) {
        reader.problem(key, format!("`{key}` {message}"), Some(hint.to_owned()));
    }
}

fn program(reader: &mut Reader<'_>) -> Option<Program> {
    let script = reader.read("script", values::owned_text);
    let command = reader.read("command", values::command);
    let args = reader.read("args", values::arguments).unwrap_or_default();
    let interpreter = reader.read("interpreter", values::owned_text);
    let interpreter_args = reader.read("interpreter_args", values::arguments);
    let node_args = reader.read("node_args", values::arguments);
    if reader.has("interpreter_args") {
        let hint = "they are two names of one thing: leave one out";
        forbid(&["node_args"], "and `interpreter_args` exclude each other", hint, reader);
    }
    if reader.has("command") {
        let hint = "`command` is the whole argument vector: write them into it";
        let keys = ["args", "interpreter", "interpreter_args", "node_args"];
        forbid(&keys, "has no place beside `command`", hint, reader);
        let hint = "`script` runs a file, `command` a whole argument vector: leave one out";
        forbid(&["script"], "and `command` exclude each other", hint, reader);
        return command.map(|argv| Program { argv, script: None });
    }
    if !reader.has("script") {
        let hint = "write `script = \"app.js\"` or `command = [\"npm\", \"start\"]`".to_owned();
        let message = "neither `script` nor `command` is there: nothing to run".to_owned();
        reader.problem_at(None, message, Some(hint));
    }
    let script = script?;
    let interpreter = match interpreter.as_deref() {
        Some("none") => None,
        Some(interpreter) => Some(interpreter),
        None => interpreter_of(&script),
    };
    let options = interpreter_args.or(node_args).unwrap_or_default();
    if interpreter.is_none() && !reader.is_faulty("interpreter") {
        let hint = "the file itself is executed: write `args`, or name an `interpreter`";
        let keys = ["interpreter_args", "node_args"];
        forbid(&keys, "needs an interpreter", hint, reader);
    }
    let bare = !script.contains('/') && (interpreter.is_none() || script.starts_with('-'));
    // A bare name would be looked up in PATH, and one with a dash taken for an option.
    let file = if bare { format!("./{script}") } else { script.clone() };
    let start = interpreter.map(str::to_owned).into_iter().chain(options).chain([file]);
    Some(Program { argv: start.chain(args).collect(), script: Some(script) })
}

fn interpreter_of(script: &str) -> Option<&'static str> {
    let extension = Path::new(script).extension()?.to_str()?;
    INTERPRETERS.iter().find(|(known, _)| *known == extension).map(|(_, program)| *program)
}

/// The port that the app is told by its environment.
fn port(environment: &Environment) -> Option<u16> {
    environment.vars.get("PORT")?.parse().ok().filter(|port| *port != 0)
}

/// The exec mode, and what is balanced.
fn addresses(
    instances: Instances,
    environment: &mut Environment,
    reader: &mut Reader<'_>,
) -> (ExecMode, Vec<ListenAddress>) {
    let listen = reader.read("listen", values::addresses);
    let words = [("fork", ExecMode::Fork), ("cluster", ExecMode::Cluster)];
    let asked = reader.read("exec_mode", values::choice(&words));
    check_port(environment, listen.as_deref(), reader);
    let port = port(environment);
    let several = instances != Instances::Count(1);
    // A port of its own for each slot is the opposite of one port for all.
    let own_ports = environment.increment_var.as_deref() == Some("PORT");
    let shareable = listen.is_some() || several && port.is_some() && !own_ports;
    let mode = asked.unwrap_or(if shareable { ExecMode::Cluster } else { ExecMode::Fork });
    match (mode, listen, port) {
        (ExecMode::Fork, None, _) => {
            if asked.is_some() && several && port.is_some() && !own_ports {
                let message = "all instances get the same `PORT`, and only one can bind it";
                let hint = "write `increment_var = \"PORT\"`, or leave `exec_mode` out";
                reader.note("exec_mode", message.to_owned(), Some(hint.to_owned()));
            }
            (mode, Vec::new())
        }
        (ExecMode::Fork, Some(_), _) => {
            let message = "`listen` has no effect with `exec_mode = \"fork\"`".to_owned();
            let hint = "leave `exec_mode` out".to_owned();
            reader.problem("listen", message, Some(hint));
            (mode, Vec::new())
        }
        (ExecMode::Cluster, Some(listen), _) => (mode, listen),
        (ExecMode::Cluster, None, Some(port)) => {
            if own_ports {
                let message = "`increment_var = \"PORT\"` gives each slot a port of its own, and \
                               `exec_mode = \"cluster\"` one port to all";
                let hint = "leave one of them out".to_owned();
                reader.problem("increment_var", message.to_owned(), Some(hint));
            }
            (mode, vec![any_address(port)])
        }
        (ExecMode::Cluster, None, None) => {
            if !reader.is_faulty("listen") && !reader.is_faulty("port") {
                let message = "`exec_mode = \"cluster\"` needs an address to balance".to_owned();
                let hint = "write `env.PORT`, `port` or `listen`".to_owned();
                reader.problem("exec_mode", message, Some(hint));
            }
            (mode, Vec::new())
        }
    }
}

/// `port` is told to the app as PM2 tells it, and must not say another thing than the rest.
fn check_port(
    environment: &mut Environment,
    listen: Option<&[ListenAddress]>,
    reader: &mut Reader<'_>,
) {
    let Some(port) = reader.read("port", values::integer(1..=u16::MAX)) else { return };
    let told = environment.vars.entry("PORT".to_owned()).or_insert_with(|| port.to_string());
    if *told != port.to_string() {
        let message = format!("`port` is {port}, but the app is told `PORT={told}`");
        let hint = "leave `port` out: it follows `env.PORT`".to_owned();
        reader.problem("port", message, Some(hint));
    }
    let is_port = |address: &ListenAddress| match address {
        ListenAddress::Tcp(address) => address.port() == port,
        ListenAddress::Unix(_) => false,
    };
    if listen.is_some_and(|listen| !listen.iter().any(is_port)) {
        let message = format!("`port` is {port}, but no address of `listen` has that port");
        reader.problem("port", message, Some("leave one of them out".to_owned()));
    }
}

fn restart(reader: &mut Reader<'_>) -> RestartRules {
    let max_restarts = reader.read("max_restarts", |value| {
        values::integer(1..=1000)(value).map_err(|complaint| match value.get_ref().as_integer() {
            Some(number) if number.as_str() == "0" => {
                complaint.hint("an app that is never restarted has `autorestart = false`")
            }
            Some(_) | None => complaint,
        })
    });
    let max_restarts = max_restarts.unwrap_or(10);
    let min_uptime = duration("min_uptime", true, Duration::from_secs(10), reader);
    let window = min_uptime.saturating_mul(max_restarts).clamp(RESTART_WINDOW_MIN, DURATION_MAX);
    let base = reader.read("exp_backoff_restart_delay", values::duration(true));
    let longest = reader.read("exp_backoff_max", values::duration(false));
    let backoff = base.filter(|base| !base.is_zero()).map(|base| {
        let max = longest.unwrap_or_else(|| Duration::from_secs(15).max(base));
        Backoff { base, max }
    });
    if backoff.is_some_and(|backoff| backoff.max < backoff.base) {
        let message = "`exp_backoff_max` is less than `exp_backoff_restart_delay`".to_owned();
        reader.problem("exp_backoff_max", message, None);
    }
    if longest.is_some() && backoff.is_none() && !reader.is_faulty("exp_backoff_restart_delay") {
        let message = "`exp_backoff_max` has no effect without `exp_backoff_restart_delay`";
        reader.note("exp_backoff_max", message.to_owned(), None);
    }
    RestartRules {
        autorestart: flag("autorestart", true, reader),
        stop_exit_codes: reader.read("stop_exit_codes", values::exit_codes).unwrap_or_default(),
        max_restarts,
        window: duration("restart_window", false, window, reader),
        min_uptime,
        delay: duration("restart_delay", true, Duration::ZERO, reader),
        backoff,
    }
}

fn readiness(mode: ExecMode, no_address: bool, reader: &mut Reader<'_>) -> Readiness {
    let wait_ready = flag("wait_ready", false, reader);
    let ready = reader.read("ready", values::readiness);
    if wait_ready && ready.as_ref().is_some_and(|ready| *ready != Readiness::Message) {
        let message = "`wait_ready = true` is `ready = \"message\"`, but `ready` says otherwise";
        reader.problem("wait_ready", message.to_owned(), Some("leave one of them out".to_owned()));
    }
    let default = match (wait_ready, mode) {
        (true, _) => Readiness::Message,
        (false, ExecMode::Cluster) if !no_address => Readiness::Listen,
        (false, ExecMode::Cluster | ExecMode::Fork) => Readiness::Exec,
    };
    let ready = ready.unwrap_or(default);
    match ready {
        Readiness::Listen | Readiness::Http(_) if no_address && !reader.is_faulty("listen") => {
            let message = "`ready` looks at an address, and none is known".to_owned();
            let hint = "write `env.PORT`, `port` or `listen`".to_owned();
            reader.problem("ready", message, Some(hint));
        }
        Readiness::Listen
        | Readiness::Http(_)
        | Readiness::Exec
        | Readiness::Notify
        | Readiness::Message => {}
    }
    ready
}

fn stop(reader: &mut Reader<'_>) -> StopRules {
    let signal = reader.read("kill_signal", values::stop_signal).unwrap_or(libc::SIGTERM);
    if signal == libc::SIGKILL {
        let message = "`kill_signal = \"SIGKILL\"` lets no instance finish what it has".to_owned();
        reader.note("kill_signal", message, None);
    }
    StopRules {
        signal,
        timeout: duration("kill_timeout", true, Duration::from_secs(5), reader),
        message: flag("shutdown_with_message", false, reader),
    }
}

fn table(key: &str, hint: &str, reader: &mut Reader<'_>) -> bool {
    let form = |value: &Value<'_>| match value.get_ref() {
        DeValue::Table(_) => Ok(()),
        _ => Err(Complaint::expected(value, "a table").hint(hint)),
    };
    reader.read(key, form).is_some()
}

fn health(no_address: bool, reader: &mut Reader<'_>) -> Option<Health> {
    if !table("health", "write `[health]`, and below it `http = \"/healthz\"`", reader) {
        return None;
    }
    let http = reader.read("health.http", values::http_path);
    let tcp = flag("health.tcp", false, reader);
    let interval = duration("health.interval", false, Duration::from_secs(10), reader);
    let timeout = duration("health.timeout", false, Duration::from_secs(5), reader);
    let failures = reader.read("health.failures", values::integer(1..=1000)).unwrap_or(3);
    let faulty = reader.is_faulty("health.http") || reader.is_faulty("health.tcp");
    let probe = match (http, tcp) {
        (Some(_), true) => {
            let hint = "an answer to `http` proves the connection too: leave `tcp` out".to_owned();
            let message = "`health.http` and `health.tcp` exclude each other".to_owned();
            reader.problem("health.tcp", message, Some(hint));
            return None;
        }
        (Some(path), false) => Probe::Http(path),
        (None, true) => Probe::Tcp,
        (None, false) => {
            if !faulty {
                let message = "`[health]` does not say what is asked".to_owned();
                let hint = "write `http = \"/healthz\"` or `tcp = true`".to_owned();
                reader.problem("health", message, Some(hint));
            }
            return None;
        }
    };
    if no_address && !reader.is_faulty("listen") {
        let message = "`[health]` asks at an address, and none is known".to_owned();
        let hint = "write `env.PORT`, `port` or `listen`".to_owned();
        reader.problem("health", message, Some(hint));
    }
    Some(Health { probe, interval, timeout, failures })
}

fn watch(reader: &mut Reader<'_>) -> Option<Watch> {
    if !table("watch", "write `[watch]`, and below it `paths = [\".\"]`", reader) {
        return None;
    }
    let paths = reader.read("watch.paths", values::texts).unwrap_or_else(|| vec![".".to_owned()]);
    let ignore = reader.read("watch.ignore", values::texts);
    Some(Watch {
        paths: paths.into_iter().map(PathBuf::from).collect(),
        ignore: ignore.unwrap_or_else(|| [".*", "node_modules"].map(str::to_owned).to_vec()),
        delay: duration("watch.delay", true, Duration::from_millis(200), reader),
    })
}

fn alerts(reader: &mut Reader<'_>) -> Alerts {
    if !table("alerts", "write `[alerts]`, and below it `exec` or `webhook`", reader) {
        return Alerts::default();
    }
    Alerts {
        exec: reader.read("alerts.exec", values::command).unwrap_or_default(),
        webhook: reader.read("alerts.webhook", values::webhook),
    }
}

fn rolling(instances: Instances, reader: &mut Reader<'_>) -> RollingRules {
    let max_surge = reader.read("max_surge", values::integer(0..=INSTANCES_MAX)).unwrap_or(1);
    let min_online = reader.read("min_online", values::integer(0..=INSTANCES_MAX));
    if let (Some(least), Instances::Count(count)) = (min_online, instances)
        && least > count
    {
        let message = format!("`min_online` is {least}, more than `instances` ({count})");
        reader.problem("min_online", message, None);
    }
    let all = match (min_online, instances) {
        (None, _) => true,
        (Some(least), Instances::Count(count)) => least == count,
        (Some(_), Instances::CpusLess(_)) => false,
    };
    if max_surge == 0 && all {
        let message = "`max_surge = 0` with all instances online lets none be replaced".to_owned();
        let hint = "write `min_online` less than `instances`".to_owned();
        reader.problem("max_surge", message, Some(hint));
    }
    RollingRules {
        max_surge,
        min_online,
        stable_for: duration("stable_for", true, Duration::from_secs(2), reader),
    }
}
