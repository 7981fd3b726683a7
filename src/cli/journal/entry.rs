//! One entry of the journal, as `journalctl --output=json` prints it.

use serde_json::Value;

use crate::cli::line::{Level, Line, Origin};

/// The fields that are read.
pub(super) const FIELDS: &str = "MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,PMR_APP,PMR_EVENT,PMR_INSTANCE,\
                                 PMR_GENERATION,_PID,_SYSTEMD_CGROUP,_SYSTEMD_INVOCATION_ID,\
                                 _SYSTEMD_UNIT,_SYSTEMD_USER_UNIT,UNIT,USER_UNIT,\
                                 OBJECT_SYSTEMD_UNIT,OBJECT_SYSTEMD_USER_UNIT";

/// An entry, as far as it is read.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) line: Line,
    /// Of which start of the unit, where journald knew that.
    pub(super) invocation: Option<String>,
}

/// A line of `journalctl --output=json` about one of these apps. What is no entry is none.
pub(super) fn read_entry(json: &[u8], apps: &[String]) -> Option<Entry> {
    let entry: Value = serde_json::from_slice(json).ok()?;
    let field = |name: &str| text_of(entry.get(name)?);
    let number = |name: &str| field(name)?.parse::<u64>().ok();
    let identifier = field("SYSLOG_IDENTIFIER").unwrap_or_default();
    let by_identifier = identifier.rsplit_once(':').and_then(|(app, slot)| {
        let app = apps.iter().find(|own| *own == app)?;
        Some((app.clone(), slot.parse::<u16>().ok()?))
    });
    let by_group = field("_SYSTEMD_CGROUP").as_deref().and_then(group_of);
    let event = field("PMR_EVENT");
    let origin = if event.is_some() {
        Origin::Pmr
    } else if by_identifier.is_some() || by_group.is_some() {
        Origin::App
    } else if number("_PID") == Some(1) || identifier == "systemd" {
        Origin::Systemd
    } else {
        Origin::Pmr
    };
    let of_unit = || {
        let units = [
            "_SYSTEMD_UNIT",
            "_SYSTEMD_USER_UNIT",
            "UNIT",
            "USER_UNIT",
            "OBJECT_SYSTEMD_UNIT",
            "OBJECT_SYSTEMD_USER_UNIT",
        ];
        units.into_iter().filter_map(field).find_map(|unit| app_of(&unit, apps))
    };
    let app = field("PMR_APP").or_else(|| by_identifier.as_ref().map(|(app, _)| app.clone()));
    let slot = || match origin {
        Origin::App => by_identifier.as_ref().map(|(_, slot)| *slot).or(Some(by_group?.0)),
        Origin::Pmr => u16::try_from(number("PMR_INSTANCE")?).ok(),
        Origin::Systemd => None,
    };
    let generation = match origin {
        Origin::App => by_group.map(|(_, generation)| generation),
        Origin::Pmr | Origin::Systemd => number("PMR_GENERATION"),
    };
    let line = Line {
        at_ms: number("__REALTIME_TIMESTAMP")? / 1000,
        app: app.or_else(of_unit).unwrap_or_default(),
        origin,
        slot: slot(),
        generation,
        level: number("PRIORITY").and_then(Level::of).unwrap_or(Level::INFO),
        event,
        text: field("MESSAGE").unwrap_or_default(),
    };
    Some(Entry { line, invocation: field("_SYSTEMD_INVOCATION_ID") })
}

/// The text of a field: a string; its bytes, where they are none; or the first of several values.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(values) => {
            let bytes: Option<Vec<u8>> = values
                .iter()
                .map(|value| value.as_u64().and_then(|byte| u8::try_from(byte).ok()))
                .collect();
            match bytes {
                Some(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
                None => text_of(values.first()?),
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

/// Slot and generation, by the path of an instance's group: `…/pmr@web.service/i-0.17`.
fn group_of(path: &str) -> Option<(u16, u64)> {
    path.split('/').find_map(|part| {
        let (slot, generation) = part.strip_prefix("i-")?.split_once('.')?;
        Some((slot.parse().ok()?, generation.parse().ok()?))
    })
}

/// The app of a unit.
fn app_of(unit: &str, apps: &[String]) -> Option<String> {
    let name = unit.strip_prefix("pmr@")?.strip_suffix(".service")?;
    apps.iter().find(|app| *app == name).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(fields: &[(&str, Value)]) -> Line {
        let mut entry = serde_json::Map::new();
        entry.insert("__REALTIME_TIMESTAMP".into(), "1795610560996852".into());
        for (name, value) in fields {
            entry.insert((*name).to_owned(), value.clone());
        }
        let json = Value::Object(entry).to_string();
        read_entry(json.as_bytes(), &["web".to_owned()]).unwrap().line
    }

    #[test]
    fn entries_are_lines_of_an_instance_of_pmr_or_of_systemd() {
        let group = "/system.slice/system-pmr.slice/pmr@web.service/i-1.17";
        let line = entry(&[
            ("SYSLOG_IDENTIFIER", "web:1".into()),
            ("_SYSTEMD_CGROUP", group.into()),
            ("PRIORITY", "3".into()),
            ("MESSAGE", "TypeError".into()),
        ]);
        let expected = Line {
            at_ms: 1_795_610_560_996,
            app: "web".into(),
            origin: Origin::App,
            slot: Some(1),
            generation: Some(17),
            level: Level::ERR,
            event: None,
            text: "TypeError".into(),
        };
        assert_eq!(line, expected);
        // An app that speaks to journald by itself, with a name of its own.
        let line = entry(&[
            ("SYSLOG_IDENTIFIER", "nginx".into()),
            ("_SYSTEMD_CGROUP", group.into()),
            ("_SYSTEMD_UNIT", "pmr@web.service".into()),
            ("MESSAGE", Value::Array([0x1b, 0x5b, 0xff, 0x41].map(Value::from).to_vec())),
        ]);
        assert_eq!((line.origin, line.slot, line.app.as_str()), (Origin::App, Some(1), "web"));
        assert_eq!((line.level, line.text.as_str()), (Level::INFO, "\u{1b}[\u{fffd}A"));

        let line = entry(&[
            ("SYSLOG_IDENTIFIER", "pmr".into()),
            ("_SYSTEMD_CGROUP", "/system.slice/pmr@web.service/supervisor".into()),
            ("PMR_APP", "web".into()),
            ("PMR_EVENT", "failed".into()),
            ("PMR_INSTANCE", "1".into()),
            ("PMR_GENERATION", "17".into()),
        ]);
        assert_eq!((line.origin, line.slot, line.generation), (Origin::Pmr, Some(1), Some(17)));
        assert_eq!(line.event.as_deref(), Some("failed"));
        let keeper = [("SYSLOG_IDENTIFIER", "pmr".into()), ("_PID", "42".into())];
        assert_eq!(entry(&keeper).origin, Origin::Pmr);
        let systemd = entry(&[
            ("_PID", "1".into()),
            ("UNIT", Value::Array(vec!["pmr@web.service".into(), "x".into()])),
        ]);
        assert_eq!((systemd.origin, systemd.app.as_str()), (Origin::Systemd, "web"));
        assert!(read_entry(b"", &[]).is_none());
        assert!(read_entry(b"-- No entries --", &[]).is_none());
    }
}
