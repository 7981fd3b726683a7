//! The command line. Speaks to apps through `control` only; what needs the kernel is handed back as
//! [`Next`].
#![forbid(unsafe_code)]

mod apps;
mod args;
mod change;
pub mod check;
mod describe;
mod env;

mod error;
pub mod import;
pub mod init;
mod journal;
mod line;
mod logs;
mod man;
mod metrics;
mod pid;
mod progress;
mod set;
mod status;
mod systemd;
mod table;
mod target;
#[cfg(test)]
mod tests;
mod units;
mod upgrade;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use anstyle::{AnsiColor, Style};
use clap::{CommandFactory as _, Parser as _};

pub use apps::Streams;
pub use args::{Arguments, Command, Patience, ScaleBy, Selection};
pub use error::{Error, ExitStatus, JobFailure};
pub use line::Level;
pub use systemd::BusError;

use crate::control::{Home, Scope, homes};
use crate::spec::AppName;
use apps::Apps;
use change::Change;

/// What is left to do after the command line was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing: exit with this status.
    Done(u8),
    /// `pmr run`
    Supervise {
        /// The app's config.
        config: PathBuf,
        /// `--env`
        overlay: Option<String>,
    },
    /// `pmr demo`
    Demo {
        /// Where it listens.
        port: u16,
        /// How many.
        instances: u16,
    },
    /// `pmr check`
    Check {
        /// The configs, at least one.
        files: Vec<PathBuf>,
        /// `--json`
        json: bool,
    },
    /// `pmr init`
    Init {
        /// Of the app.
        name: Option<AppName>,
        /// Where to write it; `-` is standard output.
        output: Option<PathBuf>,
    },
    /// `pmr import`
    Import {
        /// The ecosystem file.
        file: PathBuf,
        /// Where to write.
        directory: PathBuf,
        /// Also over files that are there.
        force: bool,
    },
}

/// Reads the command line and does what can be done over the sockets of the apps.
pub fn run(args: impl IntoIterator<Item = OsString>, streams: &mut Streams<'_>) -> Next {
    run_in(|scope| homes(|name| std::env::var_os(name), scope), args, streams)
}

fn run_in(
    homes: impl FnOnce(Option<Scope>) -> Vec<Home>,
    args: impl IntoIterator<Item = OsString>,
    streams: &mut Streams<'_>,
) -> Next {
    let result = match Arguments::try_parse_from(args).and_then(Arguments::checked) {
        Ok(arguments) => {
            let apps = Apps { homes: homes(arguments.whose.scope()) };
            perform(arguments.command, &apps, streams)
        }
        Err(error) => return Next::Done(refuse(&error, streams).code()),
    };
    let result = result.and_then(|next| {
        streams.out.flush()?;
        Ok(next)
    });
    match result {
        Ok(next) => next,
        Err(error) => Next::Done(report(&error, streams).code()),
    }
}

fn perform(command: Command, apps: &Apps, streams: &mut Streams<'_>) -> Result<Next, Error> {
    match command {
        Command::Run { file, env } => {
            return Ok(Next::Supervise { config: file, overlay: env });
        }
        Command::Demo { port, instances } => return Ok(Next::Demo { port, instances }),
        Command::Check { files, json } => return Ok(Next::Check { files, json }),
        Command::Init { name, output } => return Ok(Next::Init { name, output }),
        Command::Import { file, output, force } => {
            return Ok(Next::Import { file, directory: output, force });
        }
        Command::Status { targets, json } => status::run(apps, &targets, json, streams)?,
        Command::Metrics { targets } => metrics::run(apps, &targets, streams)?,
        Command::Describe { name, json } => describe::run(apps, &name, json, streams)?,
        Command::Start(it) => units::start(apps, &it, streams)?,
        Command::Stop(it) => units::stop(apps, &it, streams)?,
        Command::Restart(it) => units::restart(apps, &it, streams)?,
        Command::Enable(it) => units::enable(apps, &it, streams)?,
        Command::Disable(it) => units::disable(apps, &it, streams)?,
        Command::Reload { target, wait: _, patience } => {
            change::perform(apps.find_text(&target)?, &Change::reload(), patience, streams)?;
        }
        Command::Scale { name, count, patience } => {
            change::scale(apps, &name, count, patience, streams)?;
        }
        Command::Set { target, values } => set::run(apps, &target, values, streams)?,
        Command::Signal { signal, target, slot } => {
            at_once(apps, &target, &Change::signal(slot, signal), streams)?;
        }
        Command::Reset { target, slot } => {
            at_once(apps, &target, &Change::reset(slot), streams)?;
        }
        Command::Logs { target, slot, follow, lines, since, level, json } => {
            let wanted = logs::Wanted { slot, lines, since, level, follow, json };
            logs::run(apps, &target, &wanted, streams)?;
        }
        Command::Pid { target } => pid::run(apps, target.as_deref(), streams)?,
        Command::Env { name, slot } => env::run(apps, &name, slot, streams)?,
        Command::Upgrade { targets, all, timeout } => {
            upgrade::run(apps, &targets, all, timeout, streams)?;
        }
        Command::Completions { shell } => {
            // Not straight to the output: there a reader that goes away would be a panic.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "pmr", &mut script);
            streams.out.write_all(&script)?;
        }
        Command::Man { directory } => man::run(&directory)?,
    }
    Ok(Next::Done(ExitStatus::Done.code()))
}

/// The exit status of a command whose end was left to the caller; says what went wrong.
pub fn finish(result: Result<ExitStatus, Error>, streams: &mut Streams<'_>) -> u8 {
    let result = result.and_then(|status| {
        streams.out.flush()?;
        Ok(status)
    });
    match result {
        Ok(status) => status.code(),
        Err(error) => report(&error, streams).code(),
    }
}

/// What is done in the turn of the loop in which it is asked for.
fn at_once(
    apps: &Apps,
    target: &str,
    change: &Change,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let patience = Patience { no_wait: false, timeout: None };
    change::perform(apps.find_text(target)?, change, patience, streams)
}

/// What clap has to say: help and version are data.
fn refuse(error: &clap::Error, streams: &mut Streams<'_>) -> ExitStatus {
    let (stream, status) = if error.use_stderr() {
        (&mut streams.err, ExitStatus::Usage)
    } else {
        (&mut streams.out, ExitStatus::Done)
    };
    match write!(stream, "{}", error.render()).and_then(|()| stream.flush()) {
        Ok(()) => status,
        Err(error) => Error::Output(error).exit_status(),
    }
}

/// Says what went wrong, once, and gives the exit status.
fn report(error: &Error, streams: &mut Streams<'_>) -> ExitStatus {
    let status = error.exit_status();
    if status != ExitStatus::Done {
        match write_error(error, streams) {
            // There is nobody left to tell.
            Ok(()) | Err(_) => {}
        }
    }
    status
}

fn write_error(error: &Error, streams: &mut Streams<'_>) -> io::Result<()> {
    if let Error::Several(errors) = error {
        return errors.iter().try_for_each(|error| write_error(error, streams));
    }
    let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
    writeln!(streams.err, "{red}error{red:#}: {error}")?;
    match error.hint() {
        Some(hint) => writeln!(streams.err, "\nhint: {hint}"),
        None => Ok(()),
    }
}
