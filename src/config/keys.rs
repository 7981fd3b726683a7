//! The keys there are, what to write instead of those there are not, and those without effect.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::raw::Reader;
use crate::spec::Spec;

/// Every key; those of a table are written `table.key`. Besides these there are `env.*` and the
/// overlays `env_NAME`.
pub(super) const KEYS: &[&str] = &[
    "script",
    "command",
    "args",
    "interpreter",
    "interpreter_args",
    "node_args",
    "cwd",
    "user",
    "group",
    "umask",
    "env",
    "env_file",
    "env_clear",
    "instance_var",
    "increment_var",
    "instances",
    "exec_mode",
    "port",
    "listen",
    "balance",
    "autorestart",
    "stop_exit_codes",
    "max_restarts",
    "restart_window",
    "min_uptime",
    "restart_delay",
    "exp_backoff_restart_delay",
    "exp_backoff_max",
    "ready",
    "wait_ready",
    "listen_timeout",
    "ignore_sigpipe",
    "kill_signal",
    "kill_timeout",
    "shutdown_with_message",
    "max_memory_restart",
    "memory_max",
    "memory_swap_max",
    "cpu_weight",
    "cpu_max",
    "tasks_max",
    "health",
    "health.http",
    "health.tcp",
    "health.interval",
    "health.timeout",
    "health.failures",
    "watchdog",
    "cron_restart",
    "watch",
    "watch.paths",
    "watch.ignore",
    "watch.delay",
    "alerts",
    "alerts.exec",
    "alerts.webhook",
    "max_surge",
    "min_online",
    "stable_for",
];

/// The tables with keys of their own.
const TABLES: &[&str] = &["health", "watch", "alerts"];

/// Keys that are checked but have no effect in this version: the key, the values for which that is
/// not so, and what happens instead. Whoever makes a key work deletes its line.
const NO_EFFECT_YET: &[(&str, &[&str], &str)] = &[
    (
        "ready",
        &["exec", "listen", "notify", "message"],
        "an instance is online as soon as it is executed",
    ),
    ("health", &[], "no probe is made"),
    ("watchdog", &[], "nothing is expected of the instances"),
    ("cron_restart", &[], "nothing is scheduled"),
    ("watch", &[], "no file is watched"),
    ("alerts", &[], "nobody is told"),
    ("max_surge", &[], "one instance is replaced at a time"),
    ("min_online", &[], "one instance is replaced at a time"),
];

const NOT_NEEDED: &str = "pmr has no such setting and needs none: leave it out";
const TO_JOURNAL: &str = "output goes to the journal: `pmr logs` shows it";
const WATCH_TABLE: &str = "write `[watch]` with `paths`, `ignore` and `delay`";

/// PM2's keys that are not pmr's, and what to do instead.
const PM2_KEYS: &[(&[&str], &str)] = &[
    (&["name", "name_prefix"], "the name of the app is the name of the file"),
    (&["apps", "deploy"], "one app a file: `pmr import` makes such files of an ecosystem file"),
    (&["namespace"], "pmr has no namespaces: its commands take several names and `/regex/`"),
    (&["out_file", "error_file", "log_file", "out", "output", "error", "log"], TO_JOURNAL),
    (&["merge_logs", "combine_logs", "disable_logs"], TO_JOURNAL),
    (&["log_type", "log_date_format", "time"], "the journal keeps the time of each line"),
    (&["pid_file", "pid"], "`pmr pid` prints the process IDs"),
    (&["exec_interpreter"], "write `interpreter`"),
    (&["exec"], "write `script`"),
    (&["uid"], "write `user`"),
    (&["gid"], "write `group`"),
    (&["cron"], "write `cron_restart`"),
    (&["treekill"], "a stop always ends all that the instance started: leave it out"),
    (&["kill_retry_time"], "an exit is noticed at once, without asking again: leave it out"),
    (&["ignore_watch", "watch_delay", "watch_options"], WATCH_TABLE),
    (&["autostart"], "`systemctl enable` decides what starts at boot"),
    (&["source_map_support"], "write `node_args = \"--enable-source-maps\"`"),
    (&["filter_env"], "write `env_clear = true` to pass nothing on but `env`"),
    (&["vizion", "pmx", "io", "trace", "disable_trace", "deep_monitoring"], NOT_NEEDED),
    (&["v8", "event_loop_inspector", "automation", "windowsHide", "username"], NOT_NEEDED),
    (&["force", "write", "append_env_to_name", "install_url", "post_update"], NOT_NEEDED),
    (&["execute_command"], NOT_NEEDED),
];

/// Whether `key` is an overlay of the environment, `[env_NAME]`.
pub(super) fn is_overlay(key: &str, value: &DeValue<'_>) -> bool {
    key.starts_with("env_") && !KEYS.contains(&key) && value.is_table()
}

/// Complains about every key that is not known.
pub(super) fn check_keys(root: &DeTable<'_>, reader: &mut Reader<'_>) {
    for (key, value) in root {
        if !KEYS.contains(&&**key.get_ref()) && !is_overlay(key.get_ref(), value.get_ref()) {
            unknown("", key, reader);
        }
    }
    for table in TABLES {
        let Some(DeValue::Table(entries)) = root.get(*table).map(Spanned::get_ref) else {
            continue;
        };
        let prefix = format!("{table}.");
        for key in entries.keys() {
            if !KEYS.contains(&&*format!("{prefix}{}", key.get_ref())) {
                unknown(&prefix, key, reader);
            }
        }
    }
    misplaced(root, reader);
}

/// A setting below `[env]` is taken for a variable, which is right by TOML and wrong by intent.
fn misplaced(root: &DeTable<'_>, reader: &mut Reader<'_>) {
    for (name, value) in root {
        let DeValue::Table(entries) = value.get_ref() else { continue };
        if name.get_ref() != "env" && !is_overlay(name.get_ref(), value.get_ref()) {
            continue;
        }
        for key in entries.keys().filter(|key| KEYS.contains(&&**key.get_ref())) {
            let message =
                format!("`{}` is a variable of `[{}]` here", key.get_ref(), name.get_ref());
            let hint = "a setting stands above the first `[table]`".to_owned();
            reader.note_at(Some(key.span()), message, Some(hint));
        }
    }
}

fn unknown<K: AsRef<str>>(prefix: &str, key: &Spanned<K>, reader: &mut Reader<'_>) {
    let name = key.get_ref().as_ref();
    let shown: String = name.chars().take(64).collect();
    let message = format!("unknown key `{prefix}{}`", shown.escape_debug());
    reader.problem_at(Some(key.span()), message, hint(prefix, name));
}

fn hint(prefix: &str, name: &str) -> Option<String> {
    if prefix.is_empty() {
        if let Some((_, hint)) = PM2_KEYS.iter().find(|(names, _)| names.contains(&name)) {
            return Some((*hint).to_owned());
        }
    } else if KEYS.contains(&name) {
        return Some(format!("`{name}` stands above the first `[table]`"));
    }
    let own = KEYS.iter().filter_map(|key| key.strip_prefix(prefix)).filter(|k| !k.contains('.'));
    if let Some(close) = closest(name, own) {
        return Some(format!("did you mean `{prefix}{close}`?"));
    }
    if prefix.is_empty() && name.starts_with("env_") {
        return Some(format!("an overlay is a table: write `[{name}]`"));
    }
    let table = TABLES.iter().find(|table| KEYS.contains(&&*format!("{table}.{name}")))?;
    Some(format!("`{name}` stands in `[{table}]`"))
}

/// The one of `words` that `name` is probably a misspelling of.
pub(super) fn closest<'w>(name: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    // The distance is quadratic, and no key is longer.
    if name.len() > 64 {
        return None;
    }
    let name = name.to_ascii_lowercase().replace('-', "_");
    // A third of the letters may be wrong: more, and anything is close to anything.
    let reach = name.len().max(3).div_ceil(3);
    words
        .filter(|word| word.len().abs_diff(name.len()) <= reach)
        .map(|word| (strsim::damerau_levenshtein(&name, word), word))
        .filter(|(distance, _)| *distance <= reach)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Notes that a replacement for memory interrupts an app that does not share its port.
pub(super) fn note_gap(spec: &Spec, reader: &mut Reader<'_>) {
    let key = "max_memory_restart";
    let sound = !reader.is_faulty(key) && !reader.is_faulty("memory_max");
    if reader.find(key).is_some() && sound && !spec.shares_port() {
        let text =
            "an instance over `max_memory_restart` is stopped before the next one is started";
        let hint = "with `exec_mode = \"cluster\"` and a `port` the new one is online first";
        reader.note(key, text.to_owned(), Some(hint.to_owned()));
    }
}

/// Notes the keys that stand in the file without having an effect.
pub(super) fn note_no_effect(reader: &mut Reader<'_>) {
    for (key, working, instead) in NO_EFFECT_YET {
        let Some(value) = reader.find(key).filter(|_| !reader.is_faulty(key)) else { continue };
        let text = match value.get_ref() {
            DeValue::String(text) => text.clone().into_owned(),
            DeValue::Boolean(value) => value.to_string(),
            _ => String::new(),
        };
        if working.contains(&&*text) {
            continue;
        }
        let shown = if working.is_empty() || text.is_empty() {
            format!("`{key}`")
        } else {
            format!("`{key} = {text:?}`").replace("\"true\"", "true")
        };
        reader.note(key, format!("{shown} has no effect yet: {instead}"), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_name_only_keys_that_exist() {
        for (key, _, _) in NO_EFFECT_YET {
            assert!(KEYS.contains(key), "{key}");
        }
        for (names, _) in PM2_KEYS {
            for name in *names {
                assert!(!KEYS.contains(name), "{name}");
            }
        }
        for key in KEYS {
            if let Some((table, _)) = key.split_once('.') {
                assert!(TABLES.contains(&table) && KEYS.contains(&table), "{key}");
            }
        }
    }

    #[test]
    fn a_misspelling_finds_its_key() {
        for (wrong, right) in [
            ("instnces", "did you mean `instances`?"),
            ("max-restarts", "did you mean `max_restarts`?"),
            ("maxRestarts", "did you mean `max_restarts`?"),
            ("killTimeout", "did you mean `kill_timeout`?"),
            ("scirpt", "did you mean `script`?"),
            ("interval", "`interval` stands in `[health]`"),
            ("out_file", TO_JOURNAL),
            ("uid", "write `user`"),
        ] {
            assert_eq!(hint("", wrong).as_deref(), Some(right), "{wrong}");
        }
        assert_eq!(hint("health.", "http_").as_deref(), Some("did you mean `health.http`?"));
        assert_eq!(
            hint("health.", "port").as_deref(),
            Some("`port` stands above the first `[table]`")
        );
        assert_eq!(hint("", "quux"), None);
        assert_eq!(hint("", &"x".repeat(100_000)), None);
    }
}
