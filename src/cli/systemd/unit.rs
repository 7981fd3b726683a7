//! What systemd knows of the unit of an app, and the words for it.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;
use serde::Serialize;
use zbus::zvariant::{OwnedValue, Value};

use crate::control::client::since_boot_ms;

/// The properties of an interface.
type Properties = BTreeMap<String, OwnedValue>;

/// A unit at one moment. What systemd does not say is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub(in crate::cli) struct UnitState {
    /// `pmr@web.service`
    pub(in crate::cli) name: String,
    /// `loaded`, `not-found`, `masked`…
    pub(in crate::cli) load_state: String,
    /// `active`, `inactive`, `failed`, `activating`, `deactivating`, `reloading`.
    pub(in crate::cli) active_state: String,
    /// systemd's finer word, such as `auto-restart`.
    pub(in crate::cli) sub_state: String,
    /// `enabled`, `disabled`…
    pub(in crate::cli) file_state: String,
    /// How its last run ended: `success`, `exit-code`, `timeout`…
    pub(in crate::cli) result: String,
    /// The keeper, while it runs.
    pub(in crate::cli) main_pid: Option<u32>,
    /// The exit status of the last keeper that exited.
    pub(in crate::cli) exit_status: Option<i32>,
    /// The signal that ended the last keeper, where one did.
    pub(in crate::cli) signal: Option<String>,
    /// Since its state is this; `None` where it never changed since boot.
    pub(in crate::cli) since_ms: Option<u64>,
    /// Whether it was started since boot, as far as systemd remembers.
    pub(in crate::cli) was_started: bool,
    /// What the keeper last said of itself.
    pub(in crate::cli) status_text: String,
    /// Of this run, or of the last.
    pub(in crate::cli) invocation_id: String,
    /// The job that is queued or runs for it.
    #[serde(skip)]
    pub(in crate::cli) job: Option<u32>,
}

/// How a main process ended: `CLD_*` of waitid(2).
const CLD_EXITED: i32 = 1;
const CLD_KILLED: i32 = 2;
const CLD_DUMPED: i32 = 3;

impl UnitState {
    /// The unit as the two interfaces of a service describe it.
    pub(super) fn new(name: String, unit: &Properties, service: &Properties) -> Self {
        let code = number(service, "ExecMainCode").and_then(|it| i32::try_from(it).ok());
        let status = number(service, "ExecMainStatus").and_then(|it| i32::try_from(it).ok());
        let by_signal = matches!(code, Some(CLD_KILLED | CLD_DUMPED));
        let changed = number(unit, "StateChangeTimestampMonotonic").unwrap_or_default();
        let exited_inactive = number(unit, "InactiveExitTimestampMonotonic").unwrap_or_default();
        Self {
            name,
            load_state: text(unit, "LoadState"),
            active_state: text(unit, "ActiveState"),
            sub_state: text(unit, "SubState"),
            file_state: text(unit, "UnitFileState"),
            result: text(service, "Result"),
            main_pid: pid(service, "MainPID"),
            exit_status: status.filter(|_| code == Some(CLD_EXITED)),
            signal: status.filter(|_| by_signal).map(signal_name),
            since_ms: (changed > 0).then(|| ms_ago(changed)),
            was_started: exited_inactive > 0,
            status_text: text(service, "StatusText"),
            invocation_id: bytes(unit, "InvocationID"),
            job: job(unit),
        }
    }

    /// Whether it runs, or is about to, or is on its way out.
    pub(in crate::cli) fn is_up(&self) -> bool {
        !matches!(self.active_state.as_str(), "inactive" | "failed" | "")
    }

    /// Whether the machine starts it at boot.
    pub(in crate::cli) fn is_enabled(&self) -> bool {
        matches!(self.file_state.as_str(), "enabled" | "enabled-runtime")
    }

    /// Its life in one word or two, where its app cannot be asked.
    pub(in crate::cli) fn word(&self) -> &'static str {
        match (self.load_state.as_str(), self.active_state.as_str()) {
            ("not-found", "inactive") => "no unit",
            ("masked", "inactive") => "masked",
            (_, "failed") => "failed",
            (_, "activating") if self.sub_state.starts_with("auto-restart") => "waiting",
            (_, "activating") => "starting",
            (_, "deactivating") => "stopping",
            (_, "inactive") if self.was_started => "stopped",
            (_, "inactive") => "not started",
            // It runs, and its socket is not there: a supervisor is just being replaced.
            _ => "no answer",
        }
    }

    /// What one would ask next: how it failed, whether it is enabled.
    pub(in crate::cli) fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = Vec::new();
        if self.active_state == "failed" {
            notes.extend(self.end());
        }
        if self.is_enabled() {
            notes.push("enabled".to_owned());
        }
        notes
    }

    /// Its word with these: `failed (exit status 69)`, `stopped (enabled)`.
    pub(in crate::cli) fn text(&self) -> String {
        let (word, notes) = (self.word(), self.notes());
        if notes.is_empty() { word.to_owned() } else { format!("{word} ({})", notes.join(", ")) }
    }

    /// How its last run ended, where that was a failure.
    pub(in crate::cli) fn end(&self) -> Option<String> {
        let signal = || self.signal.as_deref().unwrap_or("a signal");
        match self.result.as_str() {
            "" | "success" => None,
            "exit-code" => {
                Some(self.exit_status.map_or("exit status unknown".to_owned(), |status| {
                    format!("exit status {status}")
                }))
            }
            "signal" => Some(format!("killed by {}", signal())),
            "core-dump" => Some(format!("killed by {}, core dumped", signal())),
            "timeout" => Some("timed out".to_owned()),
            "start-limit-hit" => Some("started too often".to_owned()),
            "oom-kill" => Some("out of memory".to_owned()),
            "protocol" => Some("ended before it was ready".to_owned()),
            other => Some(other.to_owned()),
        }
    }

    /// What the exit status means, where pmr gave it.
    pub(in crate::cli) fn meaning(&self) -> Option<&'static str> {
        match self.exit_status.filter(|_| self.result == "exit-code")? {
            69 => Some("slots are errored, and none serves"),
            78 => Some("the config cannot be used"),
            _ => None,
        }
    }
}

fn text(properties: &Properties, name: &str) -> String {
    let value = properties.get(name).and_then(|value| <&str>::try_from(value).ok());
    value.unwrap_or_default().to_owned()
}

fn number(properties: &Properties, name: &str) -> Option<u64> {
    match &**properties.get(name)? {
        Value::U64(number) => Some(*number),
        Value::U32(number) => Some(u64::from(*number)),
        Value::I32(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

fn pid(properties: &Properties, name: &str) -> Option<u32> {
    number(properties, name).and_then(|pid| u32::try_from(pid).ok()).filter(|&pid| pid > 0)
}

fn bytes(properties: &Properties, name: &str) -> String {
    let Some(Value::Array(array)) = properties.get(name).map(|value| &**value) else {
        return String::new();
    };
    let hex = |value: &Value<'_>| match value {
        Value::U8(byte) => format!("{byte:02x}"),
        _ => String::new(),
    };
    array.iter().map(hex).collect()
}

/// `Job`: its number and its path; the number is 0 where there is none.
fn job(properties: &Properties) -> Option<u32> {
    let Some(Value::Structure(job)) = properties.get("Job").map(|value| &**value) else {
        return None;
    };
    match job.fields().first() {
        Some(Value::U32(id)) if *id > 0 => Some(*id),
        _ => None,
    }
}

fn signal_name(number: i32) -> String {
    Signal::try_from(number)
        .map_or_else(|_| format!("signal {number}"), |signal| signal.as_str().to_owned())
}

/// How long ago a moment of systemd's monotonic clock was.
fn ms_ago(microseconds: u64) -> u64 {
    since_boot_ms().saturating_sub(microseconds.checked_div(1000).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(active: &str, sub: &str, result: &str) -> UnitState {
        UnitState {
            load_state: "loaded".to_owned(),
            active_state: active.to_owned(),
            sub_state: sub.to_owned(),
            result: result.to_owned(),
            ..UnitState::default()
        }
    }

    #[test]
    fn each_state_has_its_words() {
        let failed = |result, change: fn(&mut UnitState)| {
            let mut unit = unit("failed", "failed", result);
            change(&mut unit);
            unit
        };
        let stopped = UnitState { was_started: true, ..unit("inactive", "dead", "success") };
        let enabled = UnitState { file_state: "enabled".to_owned(), ..stopped.clone() };
        let absent =
            UnitState { load_state: "not-found".to_owned(), ..unit("inactive", "dead", "") };
        for (unit, text) in [
            (unit("inactive", "dead", "success"), "not started"),
            (stopped, "stopped"),
            (enabled, "stopped (enabled)"),
            (absent, "no unit"),
            (unit("activating", "start", "success"), "starting"),
            (unit("activating", "auto-restart", "exit-code"), "waiting"),
            (unit("deactivating", "stop-sigterm", "success"), "stopping"),
            (unit("active", "running", "success"), "no answer"),
            (failed("exit-code", |it| it.exit_status = Some(69)), "failed (exit status 69)"),
            (
                failed("signal", |it| it.signal = Some("SIGKILL".to_owned())),
                "failed (killed by SIGKILL)",
            ),
            (failed("timeout", |_| ()), "failed (timed out)"),
            (
                failed("start-limit-hit", |it| it.file_state = "enabled".to_owned()),
                "failed (started too often, enabled)",
            ),
        ] {
            assert_eq!(unit.text(), text);
        }
    }

    #[test]
    fn properties_of_any_type_are_read_without_panic() {
        let value = |value: Value<'_>| OwnedValue::try_from(value).unwrap();
        let unit: Properties = [
            ("ActiveState".to_owned(), value(Value::new("active"))),
            ("LoadState".to_owned(), value(Value::new(7_u32))),
            ("InvocationID".to_owned(), value(Value::new(vec![0x1f_u8, 0xa0]))),
            ("Job".to_owned(), value(Value::new((41_u32, "x")))),
        ]
        .into();
        let service: Properties = [
            ("MainPID".to_owned(), value(Value::new(0_u32))),
            ("ExecMainCode".to_owned(), value(Value::new(CLD_KILLED))),
            ("ExecMainStatus".to_owned(), value(Value::new(9_i32))),
        ]
        .into();
        let state = UnitState::new("x".to_owned(), &unit, &service);
        assert_eq!((state.active_state.as_str(), state.load_state.as_str()), ("active", ""));
        assert_eq!((state.invocation_id.as_str(), state.job), ("1fa0", Some(41)));
        assert_eq!((state.main_pid, state.exit_status), (None, None));
        assert_eq!(state.signal.as_deref(), Some("SIGKILL"));
    }
}
