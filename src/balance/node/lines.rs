//! The frames of Node's channel: one JSON value a line.

/// Longest line that is kept, in bytes. All that Node says of itself is below 6 KiB: a path of 108
/// bytes, and the [`DATA_MAX`](super::hub::DATA_MAX) of a server. What is longer is a message of
/// the app, which pmr has no use for.
pub const LINE_MAX: usize = 64 * 1024;

/// So much of a longer line is kept: whether a handle came with it stands at its start.
const START_KEPT: usize = 64;

/// A line, without its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// All of it.
    Whole(Vec<u8>),
    /// The start of one that was longer than [`LINE_MAX`].
    TooLong(Vec<u8>),
}

/// Bytes that come in, cut into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
    too_long: bool,
}

impl Lines {
    /// Takes from `bytes` up to the end of a line, or all of them. To be called until there is no
    /// line in them any more; what is left then is kept for the next bytes.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Option<Line> {
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
        *bytes = rest.get(1..).unwrap_or_default();
        if !self.too_long {
            let room = LINE_MAX.saturating_sub(self.partial.len());
            self.too_long = part.len() > room;
            self.partial.extend(part.iter().take(room));
            if self.too_long {
                self.partial.truncate(START_KEPT);
                self.partial.shrink_to_fit();
            }
        }
        end?;
        let line = std::mem::take(&mut self.partial);
        Some(if std::mem::take(&mut self.too_long) {
            Line::TooLong(line)
        } else {
            Line::Whole(line)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(lines: &mut Lines, mut bytes: &[u8]) -> Vec<Line> {
        std::iter::from_fn(|| lines.next(&mut bytes)).collect()
    }

    #[test]
    fn lines_are_cut_however_they_arrive() {
        let text = b"one\n\ntwo\nthr";
        let expected = [b"one".to_vec(), Vec::new(), b"two".to_vec()].map(Line::Whole);
        for chunk in 1..=text.len() {
            let mut lines = Lines::default();
            let found: Vec<Line> =
                text.chunks(chunk).flat_map(|part| all(&mut lines, part)).collect();
            assert_eq!(found, expected);
            assert_eq!(all(&mut lines, b"ee\n"), [Line::Whole(b"three".to_vec())]);
        }
    }

    #[test]
    fn of_a_line_that_is_too_long_the_start_is_kept_and_the_next_is_whole() {
        let longest = vec![b'x'; LINE_MAX];
        for chunk in [1000, LINE_MAX, 3 * LINE_MAX] {
            let mut lines = Lines::default();
            let text = [&longest[..], b"\n", &longest[..], b"y\nz\n"].concat();
            let mut found = Vec::new();
            for part in text.chunks(chunk) {
                found.extend(all(&mut lines, part));
                assert!(lines.partial.capacity() <= 2 * LINE_MAX);
            }
            let start = vec![b'x'; START_KEPT];
            let z = Line::Whole(b"z".to_vec());
            assert_eq!(found, [Line::Whole(longest.clone()), Line::TooLong(start), z]);
        }
    }
}
