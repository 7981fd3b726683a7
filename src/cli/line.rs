//! A line of output, wherever it is from, as it is shown.

use std::io::{self, Write};

use anstyle::{AnsiColor, Color, Style};
use serde::Serialize;

use crate::control::protocol::{LogLine, VERSION};

/// The priorities of syslog(3), as journalctl names them, the worst first.
const LEVELS: [&str; 8] = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];

/// Colours of the slots' prefixes, in turn, as in the foreground.
const COLOURS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Yellow,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::BrightRed,
];

/// How bad it is: the lower, the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(u8);

impl Level {
    /// What an app writes to standard error.
    pub const ERR: Self = Self(3);
    /// Something may go wrong.
    pub const WARNING: Self = Self(4);
    /// What an app writes to standard output.
    pub const INFO: Self = Self(6);

    /// Of this number.
    pub fn of(number: u64) -> Option<Self> {
        u8::try_from(number).ok().filter(|number| *number < 8).map(Self)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        LEVELS.get(usize::from(self.0)).copied().unwrap_or_default()
    }
}

impl std::str::FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = match text {
            "error" => "err",
            "warn" => "warning",
            other => other,
        };
        let place = LEVELS.iter().position(|level| *level == name);
        let number = place.and_then(|place| u64::try_from(place).ok());
        let level = number.or_else(|| text.parse().ok()).and_then(Self::of);
        level.ok_or_else(|| format!("the levels are {}", LEVELS.join(", ")))
    }
}

/// Who wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Origin {
    App,
    Pmr,
    Systemd,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// When, since the Unix epoch.
    pub(super) at_ms: u64,
    pub(super) app: String,
    pub(super) origin: Origin,
    pub(super) slot: Option<u16>,
    pub(super) generation: Option<u64>,
    pub(super) level: Level,
    /// The name of an event of pmr's.
    pub(super) event: Option<String>,
    pub(super) text: String,
}

/// What `--json` prints of a line.
#[derive(Debug, Serialize)]
struct Json<'a> {
    version: u32,
    at_ms: u64,
    app: &'a str,
    origin: Origin,
    slot: Option<u16>,
    generation: Option<u64>,
    level: &'a str,
    event: Option<&'a str>,
    text: &'a str,
}

impl Line {
    /// Of an app in the foreground.
    pub(super) fn of_output(app: &str, line: LogLine) -> Self {
        Self {
            at_ms: line.at_ms,
            app: app.to_owned(),
            origin: Origin::App,
            slot: Some(line.slot),
            generation: Some(line.generation),
            level: if line.stream == "stderr" { Level::ERR } else { Level::INFO },
            event: None,
            text: line.text,
        }
    }

    /// Writes it as the foreground does: who, a bar that is red for an error, and the text.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let (prefix, style) = match (self.origin, self.slot) {
            (Origin::App, Some(slot)) => {
                let colour = COLOURS.iter().cycle().nth(slot.into()).copied();
                (format!("{slot}|{}", self.app), Style::new().fg_color(colour.map(Color::Ansi)))
            }
            (Origin::App, None) => (self.app.clone(), Style::new()),
            (Origin::Pmr, _) => ("pmr".to_owned(), Style::new().bold()),
            (Origin::Systemd, _) => ("systemd".to_owned(), Style::new().dimmed()),
        };
        let bar = match self.level {
            level if level <= Level::ERR => Style::new().fg_color(Some(AnsiColor::Red.into())),
            Level::WARNING => Style::new().fg_color(Some(AnsiColor::Yellow.into())),
            _ => style,
        };
        for text in self.text.split('\n') {
            writeln!(out, "{style}{prefix}{style:#} {bar}|{bar:#} {text}")?;
        }
        Ok(())
    }

    /// Writes it as an object of JSON on a line.
    pub(super) fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        let json = Json {
            version: VERSION,
            at_ms: self.at_ms,
            app: &self.app,
            origin: self.origin,
            slot: self.slot,
            generation: self.generation,
            level: self.level.name(),
            event: self.event.as_deref(),
            text: &self.text,
        };
        writeln!(out, "{}", serde_json::to_string(&json)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(origin: Origin, level: Level, text: &str) -> Line {
        let slot = (origin == Origin::App).then_some(1);
        let (app, text) = ("web".to_owned(), text.to_owned());
        Line { at_ms: 7, app, origin, slot, generation: None, level, event: None, text }
    }

    #[test]
    fn levels_have_journalctls_words_and_numbers() {
        for (text, level) in [
            ("err", Level::ERR),
            ("error", Level::ERR),
            ("3", Level::ERR),
            ("warning", Level::WARNING),
            ("info", Level::INFO),
            ("debug", Level(7)),
            ("emerg", Level(0)),
        ] {
            assert_eq!(text.parse(), Ok(level), "{text}");
        }
        assert!(Level::ERR < Level::INFO && Level::ERR.name() == "err");
        for text in ["", "8", "-1", "bad", "ERR"] {
            assert!(text.parse::<Level>().is_err(), "{text}");
        }
    }

    #[test]
    fn lines_look_as_in_the_foreground() {
        let shown = |line: &Line| {
            let mut out = Vec::new();
            line.write(&mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        insta::assert_snapshot!(
            [
                shown(&line(Origin::App, Level::INFO, "listening")),
                shown(&line(Origin::App, Level::ERR, "TypeError\n    at track")),
                shown(&line(Origin::Pmr, Level::WARNING, "web:1 exited with code 1")),
                shown(&line(Origin::Systemd, Level::INFO, "Started pmr@web.service.")),
            ].concat().replace('\u{1b}', "^"),
            @r#"
        ^[33m1|web^[0m ^[33m|^[0m listening
        ^[33m1|web^[0m ^[31m|^[0m TypeError
        ^[33m1|web^[0m ^[31m|^[0m     at track
        ^[1mpmr^[0m ^[33m|^[0m web:1 exited with code 1
        ^[2msystemd^[0m ^[2m|^[0m Started pmr@web.service.
        "#
        );
        let mut out = Vec::new();
        line(Origin::App, Level::ERR, "a\u{1b}[1mb").write_json(&mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(out.ends_with("\"text\":\"a\\u001b[1mb\"}\n"), "{out}");
    }
}
