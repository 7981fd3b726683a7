//! One app of an ecosystem file: its keys under one spelling each, and what is left of them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Dropped;

/// PM2's other spellings of its keys. Besides these it takes each key in camel case.
const ALIASES: [(&str, &str); 18] = [
    ("exec", "script"),
    ("cmd", "script"),
    ("command", "script"),
    ("exec_interpreter", "interpreter"),
    ("interpreter_args", "node_args"),
    ("out", "out_file"),
    ("output", "out_file"),
    ("out_log", "out_file"),
    ("error", "error_file"),
    ("err", "error_file"),
    ("err_file", "error_file"),
    ("err_log", "error_file"),
    ("log", "log_file"),
    ("pid", "pid_file"),
    ("cron", "cron_restart"),
    ("combine_logs", "merge_logs"),
    ("user", "uid"),
    ("group", "gid"),
];

/// Longest part of a value that is shown beside a dropped key.
const SHOWN_CHARS_MAX: usize = 60;

/// The keys of an app that nobody has taken yet.
#[derive(Debug)]
pub(super) struct Source {
    keys: BTreeMap<String, Value>,
    dropped: Vec<Dropped>,
}

impl Source {
    /// Brings all keys to PM2's own spelling. The own spelling wins over another one.
    pub(super) fn new(app: &serde_json::Map<String, Value>) -> Self {
        let mut keys = BTreeMap::new();
        let mut others = Vec::new();
        for (key, value) in app {
            // PM2 takes null and undefined for "not there".
            if value.is_null() || marker(value) == Some("undefined") {
                continue;
            }
            let own = spelling(key);
            if own == *key {
                keys.insert(own, value.clone());
            } else {
                others.push((own, value));
            }
        }
        for (own, value) in others {
            keys.entry(own).or_insert_with(|| value.clone());
        }
        Self { keys, dropped: Vec::new() }
    }

    /// Takes the value of `key`, in PM2's own spelling.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.keys.remove(key)
    }

    /// Takes `key` where `read` makes something of it; a value it does not understand is dropped,
    /// with `wanted` as the reason.
    pub(super) fn read<T>(
        &mut self,
        key: &str,
        wanted: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(key)?;
        let result = read(&value);
        if result.is_none() {
            self.drop_value(key, &value, wanted);
        }
        result
    }

    /// Records a value that has no counterpart.
    pub(super) fn drop_value(&mut self, key: &str, value: &Value, why: &str) {
        self.dropped.push(Dropped {
            key: key.to_owned(),
            value: shown(value),
            why: why.to_owned(),
        });
    }

    /// The names of all tables `env_NAME`.
    pub(super) fn env_tables(&self) -> Vec<String> {
        self.keys.keys().filter(|key| key.starts_with("env_")).cloned().collect()
    }

    /// Everything that was dropped, with all keys that nobody took.
    pub(super) fn into_dropped(mut self) -> Vec<Dropped> {
        for (key, value) in std::mem::take(&mut self.keys) {
            if !is_what_pmr_does(&key, &value) {
                self.drop_value(&key, &value, why(&key));
            }
        }
        self.dropped
    }
}

/// PM2's own spelling of `key`.
fn spelling(key: &str) -> String {
    // The name of an environment is the person's, in whatever case.
    if key.starts_with("env_") {
        return key.to_owned();
    }
    let mut snake = String::new();
    for c in key.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    let own = ALIASES.iter().find(|(other, _)| *other == snake).map(|(_, own)| (*own).to_owned());
    own.unwrap_or(snake)
}

/// What kind of value JSON had no word for: `undefined`, `function`, `regexp`… The script that
/// evaluates an ecosystem file writes them down so.
pub(super) fn marker(value: &Value) -> Option<&str> {
    value.as_object()?.get("$pmr")?.as_str()
}

/// A value in few words, for a comment.
pub(super) fn shown(value: &Value) -> String {
    let text = match (marker(value), value) {
        (Some(_), Value::Object(map)) if map.contains_key("text") => {
            map.get("text").and_then(Value::as_str).unwrap_or_default().to_owned()
        }
        (Some(kind), _) => kind.to_owned(),
        (None, _) => value.to_string(),
    };
    let mut short: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Whether a key that was left asks for what pmr does anyway.
fn is_what_pmr_does(key: &str, value: &Value) -> bool {
    matches!(
        (key, value.as_bool()),
        ("treekill" | "autostart" | "windows_hide", Some(true))
            | (
                "watch"
                    | "wait_ready"
                    | "shutdown_with_message"
                    | "disable_logs"
                    | "force"
                    | "vizion"
                    | "pmx"
                    | "automation"
                    | "trace"
                    | "deep_monitoring"
                    | "append_env_to_name",
                Some(false)
            )
    )
}

/// Why `key` has no counterpart.
fn why(key: &str) -> &'static str {
    match key {
        "out_file" | "error_file" | "log_file" | "merge_logs" | "disable_logs" | "log_type"
        | "log_date_format" | "time" => "output goes to the journal, with its time: `pmr logs`",
        "pid_file" => "`pmr pid` prints the process ids",
        "namespace" => "there are no namespaces; commands take names, `all` and /regex/",
        "filter_env" => "the environment of your shell is not passed on at all",
        "vizion" | "post_update" | "install_url" => "version control is not pmr's",
        "pmx"
        | "automation"
        | "trace"
        | "disable_trace"
        | "deep_monitoring"
        | "v8"
        | "event_loop_inspector"
        | "io" => "pmr puts nothing of its own into an app",
        "source_map_support" | "disable_source_map_support" => {
            "a matter of node: NODE_OPTIONS = \"--enable-source-maps\" in [env]"
        }
        "treekill" => "a stop ends everything an instance has started",
        "kill_retry_time" => "pmr is told of an exit, it need not look for it",
        "autostart" => "`systemctl enable` and `disable` decide what starts at boot",
        "watch_options" => "of chokidar, which pmr does not use",
        "ignore_watch" | "watch_delay" => "`watch` is off",
        "name_prefix" | "append_env_to_name" => "the name is the file's",
        "force" => "one app, one file: there is no second start of the same",
        "execute_command" | "username" | "windows_hide" | "write" => "has no meaning for pmr",
        _ => "PM2 has no such key",
    }
}
