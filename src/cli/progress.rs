//! How far something is that takes its time, where somebody watches.

use std::io::{self, Write};
use std::time::Duration;

use super::apps::Streams;

/// Between two looks at how far it is, where somebody watches.
const LOOK_WATCHED: Duration = Duration::from_millis(200);

/// Between two looks where nobody does: only to see that somebody is at work.
const LOOK_UNWATCHED: Duration = Duration::from_secs(1);

/// The time between two looks.
pub(super) fn look_every(streams: &Streams<'_>) -> Duration {
    if streams.progress { LOOK_WATCHED } else { LOOK_UNWATCHED }
}

/// A line that is written over and over, where somebody watches.
#[derive(Debug, Default)]
pub(super) struct ProgressLine {
    width: usize,
}

impl ProgressLine {
    pub(super) fn show(&mut self, text: &str, streams: &mut Streams<'_>) -> io::Result<()> {
        if !streams.progress {
            return Ok(());
        }
        // Blanks, not an escape sequence: those are taken out where colour is not wanted.
        let width = self.width;
        write!(streams.err, "\r{text:width$}")?;
        self.width = text.chars().count();
        streams.err.flush()
    }

    pub(super) fn clear(&mut self, streams: &mut Streams<'_>) -> io::Result<()> {
        if self.width == 0 {
            return Ok(());
        }
        let width = self.width;
        self.width = 0;
        write!(streams.err, "\r{:width$}\r", "")?;
        streams.err.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_progress_line_covers_the_one_before_and_goes_away() {
        let shown = |progress| {
            let mut err = Vec::new();
            {
                let (out, err) = (Box::new(io::sink()), Box::new(&mut err));
                let mut streams = Streams { out, err, progress };
                let mut line = ProgressLine::default();
                for text in ["longer text", "short"] {
                    line.show(text, &mut streams).unwrap();
                }
                line.clear(&mut streams).unwrap();
            }
            String::from_utf8(err).unwrap()
        };
        assert_eq!(shown(true), "\rlonger text\rshort      \r     \r");
        assert_eq!(shown(false), "");
    }
}
