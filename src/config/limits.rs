//! Limits of an instance: as keys of the file, and changed while the app runs.

use std::collections::BTreeMap;

use toml::de::DeTable;

use super::keys::closest;
use super::problem::Severity;
use super::raw::Reader;
use super::values;
use crate::spec::{Bytes, Limits, MemoryRules, Spec};

/// Least memory limit. Less is a forgotten unit.
const MEMORY_MIN: Bytes = Bytes(1 << 20);

/// The keys that can be changed while the app runs.
const KEYS: [&str; 6] =
    ["max_memory_restart", "memory_max", "memory_swap_max", "cpu_weight", "cpu_max", "tasks_max"];

/// A quarter above: room for what the instance still does while its replacement starts.
fn cap_above(Bytes(limit): Bytes) -> Bytes {
    Bytes(limit.saturating_add(limit >> 2))
}

pub(super) fn memory(reader: &mut Reader<'_>) -> MemoryRules {
    let restart_above = reader.read("max_memory_restart", values::bytes(MEMORY_MIN));
    let max = reader.read("memory_max", values::bytes(MEMORY_MIN));
    if let (Some(limit), Some(max)) = (restart_above, max)
        && max < limit
    {
        let message = format!("`memory_max` is {max}, less than `max_memory_restart` ({limit})");
        let hint = "the kernel would kill an instance before pmr could replace it".to_owned();
        reader.problem("memory_max", message, Some(hint));
    }
    MemoryRules {
        restart_above,
        max: max.or(restart_above.map(cap_above)),
        swap_max: reader.read("memory_swap_max", values::bytes(Bytes(0))),
    }
}

pub(super) fn limits(reader: &mut Reader<'_>) -> Limits {
    Limits {
        cpu_weight: reader.read("cpu_weight", values::integer(1..=10_000)),
        cpu_max_percent: reader.read("cpu_max", values::percent),
        // The most that the kernel's PID space holds (PID_MAX_LIMIT, proc(5)).
        tasks_max: reader.read("tasks_max", values::integer(1..=4_194_304)),
    }
}

/// The limits of `spec` with some of them changed: values as they stand in a config, without
/// quotes; an empty one takes the limit away. What is wrong is said as for a config.
pub fn change_limits(
    spec: &Spec,
    changes: &BTreeMap<String, String>,
) -> Result<(MemoryRules, Limits), String> {
    let mut entries = as_written(spec);
    for (key, value) in changes {
        if !KEYS.contains(&key.as_str()) {
            return Err(unknown(key));
        }
        if !value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '%' | '.' | ' ' | '-')) {
            return Err(format!("`{key}` cannot be {value:?}"));
        }
        entries.insert(key, value.clone());
    }
    let line = |(key, value): (&&str, &String)| {
        let bare = value.parse::<u64>().is_ok();
        if bare { format!("{key} = {value}\n") } else { format!("{key} = \"{value}\"\n") }
    };
    let text: String = entries.iter().filter(|(_, value)| !value.is_empty()).map(line).collect();
    let (table, errors) = DeTable::parse_recoverable(&text);
    if let Some(error) = errors.first() {
        return Err(error.message().to_owned());
    }
    let mut reader = Reader::new(table.get_ref());
    let new = (memory(&mut reader), limits(&mut reader));
    let (findings, _, _) = reader.finish();
    let problems = findings.iter().filter(|finding| finding.severity == Severity::Error);
    let said: Vec<_> = problems.map(|problem| problem.message.as_str()).collect();
    if said.is_empty() { Ok(new) } else { Err(said.join("; ")) }
}

/// What stands in a config of these limits. A cap that follows from the leak limit does not: it
/// goes on to follow it.
fn as_written(spec: &Spec) -> BTreeMap<&str, String> {
    let MemoryRules { restart_above, max, swap_max } = spec.memory;
    let own_max = max.filter(|max| Some(*max) != restart_above.map(cap_above));
    let Limits { cpu_weight, cpu_max_percent, tasks_max } = spec.limits;
    let bytes = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.0.to_string());
    let number = |number: Option<u32>| number.map(|number| number.to_string());
    let entries = [
        ("max_memory_restart", bytes(restart_above)),
        ("memory_max", bytes(own_max)),
        ("memory_swap_max", bytes(swap_max)),
        ("cpu_weight", number(cpu_weight)),
        ("cpu_max", number(cpu_max_percent)),
        ("tasks_max", number(tasks_max)),
    ];
    entries.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

fn unknown(key: &str) -> String {
    let shown: String = key.chars().take(64).collect();
    let known = format!("these can be changed while it runs: {}", KEYS.join(", "));
    match closest(key, KEYS.into_iter()) {
        Some(close) => {
            format!("`{}` is no limit; did you mean `{close}`? {known}", shown.escape_debug())
        }
        None => format!("`{}` is no limit; {known}", shown.escape_debug()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Source, parse};
    use crate::spec::AppName;

    fn spec(text: &str) -> Spec {
        let source = Source {
            path: "web.toml".into(),
            name: AppName::new("web").unwrap(),
            directory: "/srv".into(),
            text: format!("command = [\"true\"]\n{text}"),
        };
        parse(&source, None).unwrap().spec
    }

    fn change(text: &str, changes: &[(&str, &str)]) -> Result<(MemoryRules, Limits), String> {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        change_limits(&spec(text), &changes.iter().map(own).collect())
    }

    #[test]
    fn a_change_is_what_the_config_would_say() {
        let before = "max_memory_restart = \"400M\"\ntasks_max = 100\n";
        for (changes, after) in [
            (vec![("memory_max", "600M")], "memory_max = \"600M\"\n"),
            (vec![("cpu_max", "150%"), ("cpu_weight", "50")], "cpu_max = 150\ncpu_weight = 50\n"),
            (vec![("memory_swap_max", "0")], "memory_swap_max = 0\n"),
        ] {
            let wanted = spec(&format!("{before}{after}"));
            assert_eq!(change(before, &changes).unwrap(), (wanted.memory, wanted.limits));
        }
    }

    #[test]
    fn the_cap_follows_the_leak_limit_unless_it_has_a_value_of_its_own() {
        let (memory, _) =
            change("max_memory_restart = \"400M\"\n", &[("max_memory_restart", "800M")]).unwrap();
        assert_eq!(memory.max, Some(Bytes(1000 << 20)));
        let own = "max_memory_restart = \"400M\"\nmemory_max = \"900M\"\n";
        let (memory, _) = change(own, &[("max_memory_restart", "800M")]).unwrap();
        assert_eq!(memory.max, Some(Bytes(900 << 20)));
    }

    #[test]
    fn an_empty_value_takes_a_limit_away() {
        let text = "max_memory_restart = \"400M\"\ntasks_max = 100\n";
        let (memory, limits) =
            change(text, &[("tasks_max", ""), ("max_memory_restart", "")]).unwrap();
        assert_eq!((memory, limits), (MemoryRules::default(), Limits::default()));
    }

    #[test]
    fn what_a_config_may_not_say_is_refused() {
        let text = "max_memory_restart = \"400M\"\n";
        for (key, value, said) in [
            ("memory_max", "300M", "`memory_max` is 300M, less than `max_memory_restart` (400M)"),
            ("tasks_max", "0", "`tasks_max` must be an integer from 1 to 4194304, not 0"),
            ("cpu_max", "fast", "`cpu_max` must be a percentage of one CPU"),
            ("memory_max", "1\"\nx", "`memory_max` cannot be \"1\\\"\\nx\""),
            ("memory_mx", "1G", "`memory_mx` is no limit; did you mean `memory_max`?"),
            ("script", "x", "`script` is no limit; these can be changed while it runs: max_mem"),
        ] {
            let error = change(text, &[(key, value)]).unwrap_err();
            assert!(error.starts_with(said), "{error}");
        }
    }
}
