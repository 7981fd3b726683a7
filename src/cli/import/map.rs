//! What an app of PM2 is in pmr. Pure: a value in, keys and reasons out.
//!
//! What PM2 does by default and pmr does not is written out, so that a moved app behaves as before.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde_json::Value as Json;
use toml::Value;

use super::Dropped;
use super::program::{self, list};
use super::source::{Source, marker, shown};
use crate::spec::{AppName, INSTANCES_MAX, parse_duration};

/// PM2's defaults that differ from pmr's (its schema.json; `kill_signal` is its daemon's).
const KILL_SIGNAL: &str = "SIGINT";
const KILL_TIMEOUT_MS: i64 = 1600;
const MIN_UPTIME_MS: i64 = 1000;
const MAX_RESTARTS: i64 = 16;
/// What PM2 does not look at by default, `/[\/\\]\.|node_modules/`, as globs.
const WATCH_IGNORE: [&str; 2] = ["**/.*", "**/node_modules"];
/// pmr's own: the largest `max_restarts`, and the default of `listen_timeout`.
const MAX_RESTARTS_MAX: i64 = 1000;
const LISTEN_TIMEOUT_MS: i64 = 30_000;
/// Longest app name, and room in it for the number of a second app of the same name.
const NAME_CHARS_MAX: usize = 64;
const NAME_NUMBER_CHARS: usize = 5;

/// What the map may know of the machine.
pub(super) struct Context<'a> {
    /// Where the ecosystem file is, absolute. PM2 starts apps from the directory of its shell.
    pub(super) directory: &'a Path,
    /// What there is at a path.
    pub(super) look: &'a dyn Fn(&Path) -> Script,
}

/// What a script is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Script {
    /// No file.
    Missing,
    /// An ELF program.
    Binary,
    /// Another file.
    Text,
}

/// A whole ecosystem.
#[derive(Debug)]
pub(super) struct Apps {
    /// In the order of the file.
    pub(super) apps: Vec<Mapped>,
    /// What belongs to no app.
    pub(super) dropped: Vec<Dropped>,
}

/// One app in pmr's words.
#[derive(Debug)]
pub(super) struct Mapped {
    /// A checked name that no other app of the file has.
    pub(super) name: String,
    /// Remarks about the whole app.
    pub(super) general: Vec<String>,
    /// The keys outside of any table.
    pub(super) entries: Vec<Entry>,
    /// The tables, by name.
    pub(super) tables: Vec<(String, Vec<Entry>)>,
    /// What has no counterpart.
    pub(super) dropped: Vec<Dropped>,
}

/// One key.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// Its name in pmr.
    pub(super) key: String,
    /// Its value.
    pub(super) value: Value,
    /// What is to be known about it.
    pub(super) remark: Option<String>,
}

/// What is mapped so far.
#[derive(Debug, Default)]
pub(super) struct Target {
    entries: Vec<Entry>,
    general: Vec<String>,
}

impl Target {
    /// Adds a key.
    pub(super) fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.entries.push(Entry { key: key.to_owned(), value: value.into(), remark: None });
    }

    /// Adds a key and a remark about it.
    pub(super) fn put_with(&mut self, key: &str, value: impl Into<Value>, remark: &str) {
        self.put(key, value);
        self.remark_last(remark);
    }

    /// Sets the remark about the key added last.
    pub(super) fn remark_last(&mut self, remark: &str) {
        if let Some(last) = self.entries.last_mut() {
            last.remark = Some(remark.to_owned());
        }
    }
}

/// Why a value is no ecosystem.
#[derive(Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no app in it.
    NoApps,
    /// The entry of this number, from 1, is no object.
    NotAnApp(usize),
    /// This app has no script.
    NoScript(String),
    /// No name can be made of this.
    Name(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoApps => {
                write!(f, "it has no `apps`: an ecosystem file exports `{{ apps: [{{ ... }}] }}`")
            }
            Self::NotAnApp(number) => write!(f, "app {number} of `apps` is no object"),
            Self::NoScript(app) => write!(f, "app {app} has no `script`"),
            Self::Name(name) => write!(f, "no app name can be made of {name:?}"),
        }
    }
}

impl std::error::Error for Error {}

/// Maps the value of an ecosystem file.
pub(super) fn map(value: &Json, context: &Context<'_>) -> Result<Apps, Error> {
    let mut dropped = Vec::new();
    let mut sources: Vec<&Json> = Vec::new();
    match value {
        Json::Array(items) => sources.extend(items),
        Json::Object(object) => match object.get("apps").or_else(|| object.get("pm2")) {
            Some(apps) => {
                sources.extend(apps.as_array().map_or(std::slice::from_ref(apps), Vec::as_slice));
                dropped = outside_of_apps(object);
            }
            None if object.keys().any(|key| is_script(key)) => sources.push(value),
            None => {}
        },
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
    let mut apps: Vec<Mapped> = Vec::new();
    for (number, source) in (1..).zip(sources) {
        let object = source.as_object().ok_or(Error::NotAnApp(number))?;
        let mut app = map_app(object, number, context)?;
        tell_apart(&mut app, &apps);
        apps.push(app);
    }
    if apps.is_empty() { Err(Error::NoApps) } else { Ok(Apps { apps, dropped }) }
}

fn is_script(key: &str) -> bool {
    matches!(key, "script" | "exec" | "cmd" | "command")
}

fn outside_of_apps(object: &serde_json::Map<String, Json>) -> Vec<Dropped> {
    let others = object.iter().filter(|(key, _)| !matches!(key.as_str(), "apps" | "pm2"));
    let dropped = others.map(|(key, value)| {
        let why = match key.as_str() {
            "deploy" => "pmr does not deploy; it reloads what your deployment puts there",
            "static" => "pmr serves no files",
            _ => "PM2 has no such key",
        };
        Dropped { key: key.clone(), value: shown(value), why: why.to_owned() }
    });
    dropped.collect()
}

/// Gives `app` a number where its name is taken: PM2 takes two of one name, files do not.
fn tell_apart(app: &mut Mapped, others: &[Mapped]) {
    let is_taken = |name: &str| others.iter().any(|other| other.name == name);
    if !is_taken(&app.name) {
        return;
    }
    let room = NAME_CHARS_MAX.saturating_sub(NAME_NUMBER_CHARS);
    let stem: String = app.name.chars().take(room).collect();
    let free = (2..=u16::MAX).map(|n| format!("{stem}-{n}")).find(|name| !is_taken(name));
    let old = std::mem::replace(&mut app.name, free.unwrap_or_default());
    app.general.push(format!("A second app of the file is called {old:?}; this is {}.", app.name));
}

fn map_app(
    object: &serde_json::Map<String, Json>,
    number: usize,
    context: &Context<'_>,
) -> Result<Mapped, Error> {
    let mut source = Source::new(object);
    let mut target = Target::default();
    let name = source.read("name", "not a text", text);
    let script = source.read("script", "not a text", text).filter(|script| !script.is_empty());
    let Some(script) = script else {
        return Err(Error::NoScript(name.unwrap_or_else(|| number.to_string())));
    };
    let name = map_name(name.as_deref(), &script, &mut target)?;
    let cwd = source.read("cwd", "not a text", text).unwrap_or_default();
    let cwd = plain(&context.directory.join(cwd));
    let program = program::map(&script, &cwd, &mut source, &mut target, context);
    target.put("cwd", cwd.to_string_lossy().into_owned());

    let mut env = environment(&mut source, "env", "env");
    if let Some(port) = source.read("port", "not a port", port_number) {
        env.insert("PORT".to_owned(), port.to_string());
    }
    if program.is_python {
        env.entry("PYTHONUNBUFFERED".to_owned()).or_insert("1".to_owned());
    }
    identity(&mut source, &mut target);
    instances(&mut source, &mut target, program.is_node, &env);
    restarts(&mut source, &mut target);
    readiness(&mut source, &mut target);
    stop(&mut source, &mut target);
    memory(&mut source, &mut target);
    cron(&mut source, &mut target);

    let mut tables: Vec<(String, Vec<Entry>)> = Vec::new();
    tables.extend(watch(&mut source).map(|entries| ("watch".to_owned(), entries)));
    if !env.is_empty() {
        tables.push(("env".to_owned(), variables(env)));
    }
    for table in source.env_tables() {
        let env = environment(&mut source, &table, &table);
        tables.push((table, variables(env)));
    }
    let Target { entries, general } = target;
    Ok(Mapped { name, general, entries, tables, dropped: source.into_dropped() })
}

fn text(value: &Json) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// `path` without `.` in it. `..` stays: what it leads to is a matter of symlinks.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

/// The app's name, made legal: PM2 takes any text.
fn map_name(name: Option<&str>, script: &str, target: &mut Target) -> Result<String, Error> {
    let stem = || {
        let words = script.split(' ').next().unwrap_or_default();
        Path::new(words).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default()
    };
    let given = name.filter(|name| !name.is_empty()).unwrap_or_else(stem);
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.');
    let changed: String = given
        .to_lowercase()
        .chars()
        .map(|c| if legal(c) { c } else { '-' })
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(NAME_CHARS_MAX)
        .collect();
    let name = AppName::new(&changed).map_err(|_| Error::Name(given.to_owned()))?;
    if name.as_str() != given {
        target.general.push(format!("In PM2 it is called {given:?}."));
    }
    Ok(name.into())
}

/// The variables of a table, as texts: what node hands to a child.
fn environment(source: &mut Source, table: &str, shown_as: &str) -> BTreeMap<String, String> {
    let object = source.read(table, "not an object", |value| value.as_object().cloned());
    let mut env = BTreeMap::new();
    for (name, value) in object.unwrap_or_default() {
        let key = format!("{shown_as}.{name}");
        if name.is_empty() || name.contains(['=', '\0']) {
            source.drop_value(&key, &value, "no name of a variable");
            continue;
        }
        let text = match &value {
            Json::String(text) => text.clone(),
            Json::Object(_) if marker(&value) == Some("undefined") => {
                let why = "it has no value here: taken from a variable that is not set?";
                source.drop_value(&key, &value, why);
                continue;
            }
            Json::Object(_) if marker(&value).is_some() => shown(&value),
            other => other.to_string(),
        };
        if text.contains('\0') {
            source.drop_value(&key, &value, "a variable cannot hold a zero byte");
        } else {
            env.insert(name, text);
        }
    }
    env
}

fn variables(env: BTreeMap<String, String>) -> Vec<Entry> {
    let entry = |(key, value)| Entry { key, value: Value::String(value), remark: None };
    env.into_iter().map(entry).collect()
}

fn identity(source: &mut Source, target: &mut Target) {
    let name = |value: &Json| match value {
        Json::String(name) if !name.is_empty() => Some(name.clone()),
        Json::Number(number) => number.as_u64().map(|number| number.to_string()),
        _ => None,
    };
    for (old, new) in [("uid", "user"), ("gid", "group")] {
        if let Some(name) = source.read(old, "neither a name nor a number", name) {
            target.put(new, name);
        }
    }
    for key in ["instance_var", "increment_var"] {
        if let Some(variable) = source.read(key, "not a text", text) {
            target.put(key, variable);
        }
    }
}

fn port_number(value: &Json) -> Option<u16> {
    let number = match value {
        Json::String(text) => text.trim().parse().ok()?,
        other => u16::try_from(integer(other)?).ok()?,
    };
    Some(number).filter(|&port| port != 0)
}

fn instances(
    source: &mut Source,
    target: &mut Target,
    is_node: bool,
    env: &BTreeMap<String, String>,
) {
    let count = source.read("instances", "neither a number nor \"max\"", |value| match value {
        Json::String(text) if text == "max" => Some(0),
        other => integer(other),
    });
    let most = i64::from(INSTANCES_MAX);
    match count {
        Some(0) => target.put("instances", "max"),
        Some(count) if count > most => {
            target.put_with("instances", most, &format!("it was {count}; {most} is the most"));
        }
        Some(count) => target.put("instances", count),
        None => {}
    }
    let mode =
        source.read("exec_mode", "neither `cluster` nor `fork`", |value| match value.as_str()? {
            "cluster" | "cluster_mode" => Some(true),
            "fork" | "fork_mode" => Some(false),
            _ => None,
        });
    // PM2's rule: `instances` of a node app, even 1, mean cluster mode.
    let is_cluster = mode.unwrap_or(is_node && count.is_some_and(|count| count >= -1));
    let port = env.get("PORT").and_then(|port| port_number(&Json::from(port.as_str())));
    let own_port = target
        .entries
        .iter()
        .any(|entry| entry.key == "increment_var" && entry.value.as_str() == Some("PORT"));
    match (is_cluster, port) {
        (true, Some(_)) if own_port => {
            let why = "cluster in PM2, but `increment_var` gives each instance a port of its own";
            target.put_with("exec_mode", "fork", why);
        }
        (true, Some(_)) => target.put("exec_mode", "cluster"),
        (true, None) => target.general.push(
            "It is in cluster mode in PM2. Here that needs a known port: add `port = NUMBER` with \
             the one it listens on. Until then each instance is on its own."
                .to_owned(),
        ),
        // Without the key, several instances and a port would mean cluster.
        (false, Some(_)) if count.is_some_and(|count| count != 1) || mode.is_some() => {
            target.put("exec_mode", "fork");
        }
        (false, _) => {}
    }
}

fn restarts(source: &mut Source, target: &mut Target) {
    if let Some(flag) = source.read("autorestart", "not true or false", Json::as_bool) {
        target.put("autorestart", flag);
    }
    let codes = source.read("stop_exit_codes", "not exit codes", |value| match value {
        Json::Array(items) => items.iter().map(integer).collect(),
        other => integer(other).map(|code| vec![code]),
    });
    if let Some(codes) = codes {
        let codes = codes.into_iter().map(Value::Integer).collect();
        target.put("stop_exit_codes", Value::Array(codes));
    }
    match source.read("max_restarts", "not a number", integer) {
        None => target.put_with("max_restarts", MAX_RESTARTS, "PM2's default"),
        Some(0) => target.put_with("max_restarts", MAX_RESTARTS, "PM2 takes 0 for its default"),
        Some(count @ 1..=MAX_RESTARTS_MAX) => target.put("max_restarts", count),
        Some(count) => {
            let limit = if count < 0 { 1 } else { MAX_RESTARTS_MAX };
            target.put_with("max_restarts", limit, &format!("it was {count}"));
        }
    }
    if !put_duration(source, target, "min_uptime") {
        target.put_with("min_uptime", MIN_UPTIME_MS, "PM2's default, in milliseconds");
    }
    put_duration(source, target, "restart_delay");
    let backoff = "exp_backoff_restart_delay";
    if let Some(value) = source.read(backoff, NOT_A_DURATION, duration)
        && value != Value::Integer(0)
    {
        target.put_with(backoff, value, "doubles here; in PM2 it grows by half");
    }
}

/// Takes a duration over as it is; whether there was one.
fn put_duration(source: &mut Source, target: &mut Target, key: &str) -> bool {
    let value = source.read(key, NOT_A_DURATION, duration);
    value.map(|value| target.put(key, value)).is_some()
}

const NOT_A_DURATION: &str = "not a duration";

/// Milliseconds, or a text with a unit.
fn duration(value: &Json) -> Option<Value> {
    match value {
        Json::String(text) => match text.trim().parse::<i64>() {
            Ok(ms) => Some(Value::Integer(ms)).filter(|_| ms >= 0),
            Err(_) => parse_duration(text).is_ok().then(|| Value::String(text.clone())),
        },
        other => integer(other).filter(|&ms| ms >= 0).map(Value::Integer),
    }
}

fn readiness(source: &mut Source, target: &mut Target) {
    let waits = source.take("wait_ready").is_some_and(|value| is_true(&value));
    if waits {
        target.put_with("ready", "message", "`process.send('ready')`");
    }
    let given = source.read("listen_timeout", NOT_A_DURATION, duration);
    if !waits && given.is_none() {
        return;
    }
    let longer = given.filter(|value| value.as_integer().is_some_and(|ms| ms > LISTEN_TIMEOUT_MS));
    target.put_with(
        "listen_timeout",
        longer.unwrap_or(Value::Integer(LISTEN_TIMEOUT_MS)),
        "after it PM2 takes an app for ready, pmr for failed: so not less than pmr's default",
    );
}

fn stop(source: &mut Source, target: &mut Target) {
    target.put_with("kill_signal", KILL_SIGNAL, "what PM2 sends");
    if !put_duration(source, target, "kill_timeout") {
        target.put_with("kill_timeout", KILL_TIMEOUT_MS, "PM2's default, in milliseconds");
    }
    if source.take("shutdown_with_message").is_some_and(|value| is_true(&value)) {
        target.put("shutdown_with_message", true);
    }
}

fn memory(source: &mut Source, target: &mut Target) {
    let size = source.read("max_memory_restart", "not a size as `300M`", |value| match value {
        Json::String(text) => {
            let digits = text.trim_end_matches(['K', 'M', 'G']);
            let is_size = text.len().saturating_sub(digits.len()) <= 1
                && digits.parse::<u32>().is_ok_and(|number| number > 0);
            is_size.then(|| Value::String(text.clone()))
        }
        other => integer(other).filter(|&bytes| bytes > 0).map(Value::Integer),
    });
    if let Some(size) = size {
        let remark = "of the instance with all it starts; PM2 looks at the main process only";
        target.put_with("max_memory_restart", size, remark);
    }
}

fn cron(source: &mut Source, target: &mut Target) {
    // 0 and false switch it off.
    let is_off = |value: &Json| integer(value) == Some(0) || value.as_bool() == Some(false);
    let Some(value) = source.take("cron_restart").filter(|value| !is_off(value)) else { return };
    let fields: Vec<&str> = value.as_str().unwrap_or_default().split_whitespace().collect();
    let remark = "a rolling reload; it does not start what was stopped";
    match fields.as_slice() {
        [_, _, _, _, _] => target.put_with("cron_restart", fields.join(" "), remark),
        ["0", rest @ ..] if rest.len() == 5 => {
            target.put_with("cron_restart", rest.join(" "), remark);
        }
        _ => source.drop_value("cron_restart", &value, "not the five fields of cron"),
    }
}

fn watch(source: &mut Source) -> Option<Vec<Entry>> {
    let paths = source.read("watch", "neither true nor paths", |value| match value {
        Json::Bool(true) => Some(vec![".".to_owned()]),
        Json::Bool(false) => Some(Vec::new()),
        other => texts(other),
    });
    let paths = paths.filter(|paths| !paths.is_empty())?;
    let mut target = Target::default();
    target.put("paths", list(paths));
    match source.take("ignore_watch") {
        None => target.put_with("ignore", list(WATCH_IGNORE), "PM2's default"),
        Some(value) => {
            let (globs, others): (Vec<Json>, Vec<Json>) = match value {
                Json::Array(items) => items.into_iter().partition(Json::is_string),
                other if other.is_string() => (vec![other], Vec::new()),
                other => (Vec::new(), vec![other]),
            };
            for other in others {
                source.drop_value("ignore_watch", &other, "pmr ignores by globs");
            }
            target.put("ignore", list(globs.iter().filter_map(text)));
        }
    }
    if let Some(delay) = source.read("watch_delay", NOT_A_DURATION, duration) {
        target.put("delay", delay);
    }
    Some(target.entries)
}

/// A text, or an array of texts.
fn texts(value: &Json) -> Option<Vec<String>> {
    match value {
        Json::Array(items) => items.iter().map(text).collect(),
        other => text(other).map(|text| vec![text]),
    }
}

/// Whether a flag is set; PM2 takes no other spelling.
pub(super) fn is_true(value: &Json) -> bool {
    value.as_bool() == Some(true)
}

/// A whole number; PM2 takes texts of digits as well.
fn integer(value: &Json) -> Option<i64> {
    match value {
        Json::String(text) => text.trim().parse().ok(),
        // 2e3 and 2.0 are whole, and JavaScript has only floats: print them without the `.0`.
        Json::Number(number) => number.as_i64().or_else(|| {
            let float = number.as_f64().filter(|float| float.fract() == 0.0)?;
            format!("{float:.0}").parse().ok()
        }),
        Json::Null | Json::Bool(_) | Json::Array(_) | Json::Object(_) => None,
    }
}

#[cfg(test)]
mod tests;
