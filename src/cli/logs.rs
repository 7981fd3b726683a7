//! `pmr logs`: the last lines of output, and those that come.

use std::io::{self, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};

use super::apps::{App, Apps, Streams, call_error, soon};
use super::error::Error;
use crate::control::client::{CallError, Client, Deadline, Stream, pause};
use crate::control::protocol::LogLine;

/// How long a supervisor that was replaced may take to listen again.
const RETURN_TIME: Duration = Duration::from_secs(10);

/// Between two tries to reach it.
const RETRY_TIME: Duration = Duration::from_millis(100);

/// Which lines are wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) slot: Option<u16>,
    pub(super) lines: u32,
    pub(super) follow: bool,
}

pub(super) fn run(
    apps: &Apps,
    name: &str,
    wanted: Wanted,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let App { client, directory, .. } = apps.one(name)?;
    let begin = |client: Client, lines| client.logs(wanted.slot, lines, wanted.follow, soon());
    let failed = || call_error(name, "read the output of");
    let mut stream = begin(client, wanted.lines).map_err(failed())?;
    loop {
        match copy(&mut stream, name, wanted.follow, streams)? {
            Ok(()) => return Ok(()),
            // Its supervisor was replaced; the app goes on, and so do we.
            Err(CallError::Lost) if wanted.follow => {
                let client = reconnect(&directory).ok_or(CallError::Lost).map_err(failed())?;
                stream = begin(client, 0).map_err(failed())?;
            }
            Err(error) => return Err(failed()(error)),
        }
    }
}

/// Prints what comes until the stream ends.
fn copy(
    stream: &mut Stream<Vec<LogLine>>,
    name: &str,
    follow: bool,
    streams: &mut Streams<'_>,
) -> io::Result<Result<(), CallError>> {
    loop {
        let deadline = if follow { Deadline::never() } else { soon() };
        let (lines, lost) = match stream.next_part(deadline) {
            Ok(Some(part)) => part,
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        };
        if lost > 0 {
            writeln!(streams.err, "{lost} messages were lost: the output was not read in time")?;
        }
        for line in &lines {
            write_line(&mut *streams.out, name, line)?;
        }
        streams.out.flush()?;
    }
}

fn write_line(out: &mut dyn Write, name: &str, line: &LogLine) -> io::Result<()> {
    let color = if line.stream == "stderr" { AnsiColor::Red } else { AnsiColor::Green };
    let style = Style::new().fg_color(Some(color.into()));
    writeln!(out, "{style}{name}:{} |{style:#} {}", line.slot, line.text)
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
