//! The foreground's output: lines of instances and of pmr itself, prefixed, onto stdout and stderr.
//!
//! Nothing here waits. A terminal that stands still fills a bounded queue, then nothing more is
//! read from the instances' pipes, and they wait as they would with any pipe.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::policy::{Generation, SlotId};
use crate::sys::{clock, poll};

/// Most bytes that wait for a terminal before the instances' pipes are left alone.
const QUEUE_BYTES_MAX: usize = 256 * 1024;

/// Longest line that is held back for its end.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// Lines of each slot that `logs` and `describe` can still show.
const LINES_KEPT: usize = 200;

/// Bytes of each slot's kept lines.
const LINES_KEPT_BYTES: usize = 64 * 1024;

/// Colours of the slots' prefixes, in turn: cyan, yellow, green, magenta, blue, bright red.
const COLOURS: [&str; 6] =
    ["\u{1b}[36m", "\u{1b}[33m", "\u{1b}[32m", "\u{1b}[35m", "\u{1b}[34m", "\u{1b}[91m"];
const RESET: &str = "\u{1b}[0m";
const BOLD: &str = "\u{1b}[1m";

/// Which of its two streams an instance wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stream {
    Out,
    Err,
}

/// A line of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) generation: Generation,
    pub(super) stream: Stream,
    pub(super) text: String,
    /// Counts all lines of the app.
    pub(super) number: u64,
    /// When it was read, since the Unix epoch.
    pub(super) at_ms: u64,
}

/// One end of the foreground.
#[derive(Debug)]
struct Sink {
    fd: OwnedFd,
    queue: VecDeque<u8>,
    colour: bool,
    /// Nobody reads any more.
    closed: bool,
}

/// The foreground.
#[derive(Debug)]
pub(super) struct Output {
    name: String,
    sinks: Option<[Sink; 2]>,
    partial: BTreeMap<(Generation, Stream), Vec<u8>>,
    kept: BTreeMap<SlotId, VecDeque<Line>>,
    lines: u64,
}

impl Output {
    /// Of the app `name`; onto nothing where it is not in the foreground.
    pub(super) fn new(name: &str, foreground: bool) -> io::Result<Self> {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let sink = |fd: BorrowedFd<'_>, terminal: bool| -> io::Result<Sink> {
            let colour = terminal && !no_colour;
            Ok(Sink { fd: fd.try_clone_to_owned()?, queue: VecDeque::new(), colour, closed: false })
        };
        let (out, err) = (io::stdout(), io::stderr());
        let sinks = if foreground {
            Some([sink(out.as_fd(), out.is_terminal())?, sink(err.as_fd(), err.is_terminal())?])
        } else {
            None
        };
        let name = name.to_owned();
        Ok(Self { name, sinks, partial: BTreeMap::new(), kept: BTreeMap::new(), lines: 0 })
    }

    /// Takes bytes of an instance; whole lines are printed, and returned.
    pub(super) fn take(
        &mut self,
        slot: SlotId,
        generation: Generation,
        stream: Stream,
        bytes: &[u8],
    ) -> Vec<Line> {
        let mut pending = self.partial.remove(&(generation, stream)).unwrap_or_default();
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            pending.extend_from_slice(piece);
            if pending.ends_with(b"\n") || pending.len() >= LINE_BYTES_MAX {
                lines.push(self.line(slot, generation, stream, &pending));
                pending.clear();
            }
        }
        if !pending.is_empty() {
            self.partial.insert((generation, stream), pending);
        }
        lines
    }

    /// Prints what is left of a stream that has ended.
    pub(super) fn end(&mut self, slot: SlotId, generation: Generation, stream: Stream) {
        if let Some(pending) = self.partial.remove(&(generation, stream)) {
            self.line(slot, generation, stream, &pending);
        }
    }

    fn line(&mut self, slot: SlotId, generation: Generation, stream: Stream, bytes: &[u8]) -> Line {
        let text = String::from_utf8_lossy(bytes);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text).to_owned();
        let prefix = format!("{slot}|{}", self.name);
        let colour = COLOURS.iter().cycle().nth(slot.0.into()).copied().unwrap_or_default();
        self.print(stream, colour, &prefix, &text);
        self.lines = self.lines.saturating_add(1);
        let at_ms = clock::time_of_day();
        let line = Line { generation, stream, text, number: self.lines, at_ms };
        self.keep(slot, line.clone());
        line
    }

    fn keep(&mut self, slot: SlotId, line: Line) {
        let kept = self.kept.entry(slot).or_default();
        kept.push_back(line);
        let mut bytes: usize = kept.iter().map(|line| line.text.len()).sum();
        while kept.len() > LINES_KEPT || bytes > LINES_KEPT_BYTES {
            let Some(oldest) = kept.pop_front() else { break };
            bytes = bytes.saturating_sub(oldest.text.len());
        }
    }

    /// A line of pmr itself.
    pub(super) fn own_line(&mut self, text: &str) {
        self.print(Stream::Err, BOLD, "pmr", text);
    }

    fn print(&mut self, stream: Stream, colour: &str, prefix: &str, text: &str) {
        let Some(sinks) = &mut self.sinks else { return };
        let [out, err] = sinks;
        let sink = match stream {
            Stream::Out => out,
            Stream::Err => err,
        };
        if sink.closed {
            return;
        }
        let line = if sink.colour {
            format!("{colour}{prefix} |{RESET} {text}\n")
        } else {
            format!("{prefix} | {text}\n")
        };
        sink.queue.extend(line.as_bytes());
    }

    /// Writes what waits, as far as that does not block. Says which fds to wait for.
    pub(super) fn flush(&mut self) {
        for sink in self.sinks.iter_mut().flatten() {
            sink.flush();
        }
    }

    /// The sinks that something waits for.
    pub(super) fn blocked(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let sinks = self.sinks.iter().flatten().enumerate();
        sinks
            .filter(|(_, sink)| !sink.queue.is_empty())
            .map(|(index, sink)| (index, sink.fd.as_fd()))
    }

    /// The fd of a sink.
    pub(super) fn sink(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.sinks.as_ref().and_then(|sinks| sinks.get(index)).map(|sink| sink.fd.as_fd())
    }

    /// Whether so much waits that nothing more should be read.
    pub(super) fn is_full(&self) -> bool {
        self.sinks.iter().flatten().any(|sink| sink.queue.len() > QUEUE_BYTES_MAX)
    }

    /// The last lines of a slot, or of all, oldest first.
    pub(super) fn last_lines(&self, slot: Option<SlotId>, count: usize) -> Vec<(SlotId, Line)> {
        let mut lines: Vec<(SlotId, Line)> = self
            .kept
            .iter()
            .filter(|(id, _)| slot.is_none_or(|slot| slot == **id))
            .flat_map(|(id, lines)| lines.iter().map(|line| (*id, line.clone())))
            .collect();
        lines.sort_by_key(|(_, line)| line.number);
        lines.split_off(lines.len().saturating_sub(count))
    }

    /// The last lines of an instance's standard error, oldest first.
    pub(super) fn last_errors(
        &self,
        slot: SlotId,
        generation: Generation,
        count: usize,
    ) -> Vec<String> {
        let kept = self.kept.get(&slot).into_iter().flatten();
        let own = kept.filter(|it| it.generation == generation && it.stream == Stream::Err);
        let mut lines: Vec<String> = own.map(|line| line.text.clone()).collect();
        lines.split_off(lines.len().saturating_sub(count))
    }
}

impl Sink {
    fn flush(&mut self) {
        while !self.queue.is_empty() {
            let (front, _) = self.queue.as_slices();
            match poll::write_now(&self.fd, front) {
                Ok(0) => return,
                Ok(count) => drop(self.queue.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
                Err(_) => {
                    // Nobody reads any more, or the disk is full: the app goes on all the same.
                    self.closed = true;
                    self.queue.clear();
                }
            }
        }
    }
}
