//! `pmr check`: every problem of every file.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Error, ExitStatus, Streams};
use crate::config::PlacedProblem;
use crate::load::{self, LoadError, Loaded};

/// Version of what `--json` prints.
const VERSION: u32 = 1;

/// Exit status of `pmr run` with a config that cannot be used: `EX_CONFIG` of sysexits.h.
pub const STATUS_CONFIG: u8 = 78;

#[derive(Serialize)]
struct Report {
    version: u32,
    files: Vec<FileReport>,
}

#[derive(Serialize)]
struct FileReport {
    file: String,
    ok: bool,
    problems: Vec<PlacedProblem>,
    /// Why the file could not even be read.
    error: Option<String>,
}

/// Checks the files, and says of each what is wrong with it.
pub fn run(files: &[PathBuf], json: bool, streams: &mut Streams<'_>) -> Result<ExitStatus, Error> {
    let mut reports = Vec::new();
    for file in files {
        let result = load::load(file, None);
        if !json {
            tell(file, &result, streams)?;
        }
        reports.push(report(file, &result));
    }
    let ok = reports.iter().all(|report| report.ok);
    if json {
        let report = Report { version: VERSION, files: reports };
        serde_json::to_writer(&mut streams.out, &report).map_err(std::io::Error::from)?;
        writeln!(streams.out)?;
    }
    Ok(if ok { ExitStatus::Done } else { ExitStatus::Failed })
}

/// Loads the config that is about to be run, and says what is wrong with it.
pub fn before_run(
    file: &Path,
    overlay: Option<&str>,
    streams: &mut Streams<'_>,
) -> Result<Option<Loaded>, Error> {
    match load::load(file, overlay) {
        Ok(loaded) => {
            write!(streams.err, "{}", loaded.notes.render(true))?;
            Ok(Some(loaded))
        }
        Err(error) => {
            tell_error(&error, streams)?;
            Ok(None)
        }
    }
}

/// Says what is wrong with the config of an app that systemd is to start, and whether it can be
/// used. One that may not be read is left to whoever may.
pub(super) fn before_start(file: &Path, streams: &mut Streams<'_>) -> Result<bool, Error> {
    match load::load(file, None) {
        Ok(_) => Ok(true),
        Err(LoadError::Read(error)) if error.source.kind() == ErrorKind::PermissionDenied => {
            Ok(true)
        }
        Err(error) => {
            tell_error(&error, streams)?;
            Ok(false)
        }
    }
}

fn tell(
    file: &Path,
    result: &Result<Loaded, LoadError>,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    match result {
        Ok(loaded) => {
            write!(streams.err, "{}", loaded.notes.render(true))?;
            writeln!(streams.out, "{}: ok", file.display())?;
            Ok(())
        }
        Err(error) => tell_error(error, streams),
    }
}

fn tell_error(error: &LoadError, streams: &mut Streams<'_>) -> Result<(), Error> {
    match error {
        LoadError::Invalid(problems) => write!(streams.err, "{}", problems.render(true))?,
        other => writeln!(streams.err, "error: {other}")?,
    }
    Ok(())
}

fn report(file: &Path, result: &Result<Loaded, LoadError>) -> FileReport {
    let (problems, error) = match result {
        Ok(loaded) => (loaded.notes.placed(), None),
        Err(LoadError::Invalid(problems)) => (problems.placed(), None),
        Err(other) => (Vec::new(), Some(other.to_string())),
    };
    FileReport { file: file.display().to_string(), ok: result.is_ok(), problems, error }
}
