//! Columns of text, and figures as people read them.

use std::io::{self, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};

use crate::control::Spoken;
use crate::spec::Bytes;

/// On which side of its column a text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// A text in a table, and how it is shown where there is colour.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) style: Style,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), style: Style::new() }
    }
}

/// Writes a heading and rows under it, each column as wide as it must be.
pub(super) fn write_table<const N: usize>(
    out: &mut dyn Write,
    heading: [(&str, Side); N],
    rows: &[[Cell; N]],
) -> io::Result<()> {
    let width = |cell: &Cell| cell.text.chars().count();
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(width);
        let own = heading.get(column).map_or(0, |(text, _)| text.len());
        cells.max().unwrap_or_default().max(own)
    });
    let bold = Style::new().bold();
    let titles = heading.map(|(text, _)| Cell { text: text.to_owned(), style: bold });
    // Written in one piece: each write to the standard output takes its lock, and each line of its
    // own is a system call.
    let mut table = Vec::new();
    for row in std::iter::once(&titles).chain(rows) {
        let mut gap: usize = 0;
        for ((cell, (_, side)), column) in row.iter().zip(heading).zip(widths) {
            let Cell { text, style } = cell;
            let padding = column.saturating_sub(width(cell));
            let (before, after) = match side {
                Side::Left => (0, padding),
                Side::Right => (padding, 0),
            };
            if text.is_empty() {
                gap = gap.saturating_add(before);
            } else {
                write!(table, "{:gap$}{:before$}{style}{text}{style:#}", "", "")?;
                gap = 0;
            }
            gap = gap.saturating_add(after).saturating_add(2);
        }
        writeln!(table)?;
    }
    out.write_all(&table)
}

/// The colour of a word of a slot's life. It says nothing that the word does not.
pub(super) fn style_of(status: &str) -> Style {
    let color = match status {
        "online" => AnsiColor::Green,
        "errored" | "failed" => AnsiColor::Red,
        "launching" | "waiting" | "draining" | "degraded" | "starting" | "stopping" => {
            AnsiColor::Yellow
        }
        _ => return Style::new(),
    };
    Style::new().fg_color(Some(color.into()))
}

/// `85M`, or a dash.
pub(super) fn memory(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), |bytes| Bytes(bytes).to_string())
}

/// A limit as the config has it.
pub(super) fn limit(key: &str, value: u64) -> String {
    match key {
        "memory_max" | "memory_swap_max" => Bytes(value).to_string(),
        "cpu_max" => format!("{value}%"),
        _ => value.to_string(),
    }
}

/// `1.2%`, or a dash.
pub(super) fn cpu(percent: Option<f64>) -> String {
    percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.1}%"))
}

/// `5h 12min`.
pub(super) fn time(ms: u64) -> String {
    Spoken(Duration::from_millis(ms)).to_string()
}

/// The text, or a dash where there is none.
pub(super) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// What an app wrote, with nothing in it that a terminal would obey.
pub(super) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}
