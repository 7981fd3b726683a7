//! `pmr logs`: the last lines of output, and those that come. Of an app in the foreground its
//! supervisor has them, of a unit the journal.

use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use super::apps::{App, Apps, Known, Streams, call_error, join, soon};
use super::error::Error;
use super::journal::{Entries, Place, Query, moment};
use super::line::{Level, Line};
use super::target::Target;
use crate::control::client::{
    CallError, Client, Deadline, Stream, pause, time_of_day_ms, wait_readable,
};
use crate::control::protocol::{JournalState, LogLine};
use crate::spec;

/// How long a supervisor that was replaced may take to listen again.
const RETURN_TIME: Duration = Duration::from_secs(10);

/// Between two tries to reach it.
const RETRY_TIME: Duration = Duration::from_millis(100);

/// Lines that are shown where nothing says how many, as PM2 has it.
const LINES: u32 = 15;

/// How long is waited for more of what has come in part.
const PART_TIME: Duration = Duration::from_millis(1);

/// Which lines are wanted.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) slot: Option<u16>,
    pub(super) lines: Option<u32>,
    pub(super) since: Option<String>,
    pub(super) level: Option<Level>,
    pub(super) follow: bool,
    pub(super) json: bool,
}

impl Wanted {
    /// How many of the last lines; `None` is all.
    fn count(&self) -> Option<u32> {
        self.lines.or(self.since.is_none().then_some(LINES))
    }

    /// The moment that `--since` means, where it is said as a duration.
    fn since_ms(&self) -> Option<u64> {
        let text = self.since.as_ref()?;
        // A bare number is a year to journalctl.
        let is_duration = text.contains(|c: char| c.is_ascii_alphabetic());
        let ago = spec::parse_duration(text).ok().filter(|_| is_duration)?;
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        Some(time_of_day_ms().saturating_sub(ago))
    }

    fn query(&self) -> Query {
        let since = match self.since_ms() {
            Some(ms) => Some(moment(ms)),
            None => self.since.clone(),
        };
        let (slot, level, lines) = (self.slot, self.level, self.count());
        Query { slot, level, lines, since, until: None, follow: self.follow }
    }

    fn is_meant(&self, line: &Line) -> bool {
        self.level.is_none_or(|level| line.level <= level)
            && self.since_ms().is_none_or(|since| line.at_ms >= since)
    }
}

/// Where lines come from.
#[derive(Debug)]
enum Source {
    Journal(Entries),
    Output(Box<Output>),
}

/// The output of an app in the foreground, which its supervisor reads.
#[derive(Debug)]
struct Output {
    app: String,
    directory: PathBuf,
    stream: Stream<Vec<LogLine>>,
}

/// What has come, and how many lines were not read in time.
type Parts = (Vec<Line>, u64);

pub(super) fn run(
    apps: &Apps,
    target: &str,
    wanted: &Wanted,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let (mut places, mut sources, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for known in apps.known(&[Target::new(target)?])? {
        match of_known(known, wanted) {
            Ok(Where::Journal(place)) => places.push(place),
            Ok(Where::Output(output)) => sources.push(Source::Output(output)),
            Err(error) => errors.push(error),
        }
    }
    if !places.is_empty() {
        match Entries::ask(&places, &wanted.query()) {
            Ok(entries) => sources.push(Source::Journal(entries)),
            Err(error) => errors.push(error),
        }
    }
    let shown = if wanted.follow {
        follow(sources, wanted, streams)
    } else {
        show(sources, wanted, streams)
    };
    errors.extend(shown.err());
    join(errors)
}

/// Where the lines of an app are.
enum Where {
    Journal(Place),
    Output(Box<Output>),
}

/// Of an app that runs, as it says itself. One that does not run, or whose supervisor may not or
/// cannot be asked, is taken for the unit that it may be.
fn of_known(known: Known, wanted: &Wanted) -> Result<Where, Error> {
    let unit = known.has_units.then(|| Place::of(&known));
    match known.live {
        Some(Ok(app)) => of_app(app, unit, wanted),
        Some(Err(error)) => unit.map(Where::Journal).ok_or(error),
        None => unit.map(Where::Journal).ok_or(Error::NothingRuns),
    }
}

fn of_app(mut app: App, unit: Option<Place>, wanted: &Wanted) -> Result<Where, Error> {
    let failed = || call_error(&app.name, "read the output of");
    let state = match (app.client.list(soon()), unit) {
        (Ok(state), _) => state,
        (Err(_), Some(place)) => return Ok(Where::Journal(place)),
        (Err(error), None) => return Err(failed()(error)),
    };
    if let Some(JournalState { unit, user, .. }) = state.journal {
        return Ok(Where::Journal(Place { app: app.name, unit, user }));
    }
    if let Some(slot) = wanted.slot
        && !state.instances.iter().any(|instance| instance.id == slot)
    {
        // A slot that is not there has no lines, and never will have: silence would not say so.
        return Err(Error::NoSuchSlot { app: app.name, slot });
    }
    let stream = begin(app.client, wanted).map_err(call_error(&app.name, "read the output of"))?;
    Ok(Where::Output(Box::new(Output { app: app.name, directory: app.directory, stream })))
}

/// Asks a supervisor. Where some lines are left out, it is asked for all that it has.
fn begin(client: Client, wanted: &Wanted) -> Result<Stream<Vec<LogLine>>, CallError> {
    let all = wanted.level.is_some() || wanted.since.is_some();
    let lines = wanted.count().filter(|_| !all).unwrap_or(u32::MAX);
    client.logs(wanted.slot, lines, wanted.follow, soon())
}

/// Prints the last lines of all sources, in the order of their times.
fn show(sources: Vec<Source>, wanted: &Wanted, streams: &mut Streams<'_>) -> Result<(), Error> {
    let (mut lines, mut errors) = (Vec::new(), Vec::new());
    for source in sources {
        match source {
            Source::Journal(entries) => match entries.all() {
                Ok(mut some) => lines.append(&mut some),
                Err(error) => errors.push(error),
            },
            Source::Output(mut output) => match output.next_lines(soon()) {
                Ok(some) => lines.extend(some.unwrap_or_default().0),
                Err(error) => errors.push(output.error(error)),
            },
        }
    }
    write_last(lines, wanted, streams)?;
    join(errors)
}

/// Prints the last of these lines.
fn write_last(
    mut lines: Vec<Line>,
    wanted: &Wanted,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    lines.retain(|line| wanted.is_meant(line));
    lines.sort_by_key(|line| line.at_ms);
    let count = wanted.count().and_then(|count| usize::try_from(count).ok());
    let skipped = count.map_or(0, |count| lines.len().saturating_sub(count));
    write(lines.iter().skip(skipped), wanted, streams)
}

fn write<'a>(
    lines: impl Iterator<Item = &'a Line>,
    wanted: &Wanted,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    for line in lines {
        if wanted.json {
            line.write_json(&mut *streams.out)?;
        } else {
            line.write(&mut *streams.out)?;
        }
    }
    Ok(streams.out.flush()?)
}

/// Prints what comes, until all sources have ended.
fn follow(
    mut sources: Vec<Source>,
    wanted: &Wanted,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let mut errors = Vec::new();
    // Of a supervisor the first answer is what there was.
    let mut begun = vec![false; sources.len()];
    while !sources.is_empty() {
        let fds: Vec<BorrowedFd<'_>> = sources.iter().map(AsFd::as_fd).collect();
        let ready = wait_readable(&fds, Deadline::never())?;
        let mut kept = Vec::new();
        for ((mut source, begun), ready) in sources.into_iter().zip(begun).zip(ready) {
            if !ready {
                kept.push((source, begun));
                continue;
            }
            match source.take(wanted) {
                Ok(Some((lines, lost))) => {
                    if lost > 0 {
                        let what = "the output was not read in time";
                        writeln!(streams.err, "{lost} messages were lost: {what}")?;
                    }
                    match &source {
                        Source::Output(_) if !begun => write_last(lines, wanted, streams)?,
                        Source::Output(_) | Source::Journal(_) => {
                            let meant = lines.iter().filter(|line| wanted.is_meant(line));
                            write(meant, wanted, streams)?;
                        }
                    }
                    kept.push((source, true));
                }
                Ok(None) => {}
                Err(error) => errors.push(error),
            }
        }
        (sources, begun) = kept.into_iter().unzip();
    }
    join(errors)
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Journal(entries) => entries.as_fd(),
            Self::Output(output) => output.stream.as_fd(),
        }
    }
}

impl Source {
    /// Takes what has come; `None` at the end.
    fn take(&mut self, wanted: &Wanted) -> Result<Option<Parts>, Error> {
        match self {
            Self::Journal(entries) => Ok(entries.next_lines()?.map(|lines| (lines, 0))),
            Self::Output(output) => output.take(wanted),
        }
    }
}

impl Output {
    fn error(&self, error: CallError) -> Error {
        call_error(&self.app, "read the output of")(error)
    }

    fn next_lines(&mut self, deadline: Deadline) -> Result<Option<Parts>, CallError> {
        let part = self.stream.next_part(deadline)?;
        let line = |line| Line::of_output(&self.app, line);
        Ok(part.map(|(lines, lost)| (lines.into_iter().map(line).collect(), lost)))
    }

    fn take(&mut self, wanted: &Wanted) -> Result<Option<Parts>, Error> {
        let (mut lines, mut lost) = (Vec::new(), 0_u64);
        loop {
            match self.next_lines(Deadline::after(PART_TIME)) {
                Ok(Some((mut some, more))) => {
                    lines.append(&mut some);
                    lost = lost.saturating_add(more);
                }
                Ok(None) if lines.is_empty() => return Ok(None),
                Ok(None) | Err(CallError::TimedOut) => return Ok(Some((lines, lost))),
                // Its supervisor was replaced; the app goes on, and so do we.
                Err(CallError::Lost) => {
                    let client = reconnect(&self.directory).ok_or(CallError::Lost);
                    let lines_after =
                        Wanted { lines: Some(0), level: None, since: None, ..wanted.clone() };
                    let stream = client.and_then(|client| begin(client, &lines_after));
                    self.stream = stream.map_err(|error| self.error(error))?;
                    return Ok(Some((lines, lost)));
                }
                Err(error) => return Err(self.error(error)),
            }
        }
    }
}

fn reconnect(directory: &std::path::Path) -> Option<Client> {
    let deadline = Deadline::after(RETURN_TIME);
    while deadline.left().is_some() {
        if let Ok(client) = Client::connect(directory) {
            return Some(client);
        }
        pause(RETRY_TIME);
    }
    None
}
