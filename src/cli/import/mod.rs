//! `pmr import`: PM2's ecosystem files become configs of pmr.
//!
//! `evaluate` asks node what the file means, `map` turns each app into keys of pmr and a list of
//! what has no counterpart, `render` writes that as TOML, and this file puts it on the disk: all of
//! it or nothing.

mod evaluate;
mod map;
mod program;
mod render;
mod source;

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};

pub use self::evaluate::Error as EvaluateError;
pub use self::map::Error as MapError;

use self::map::{Apps, Context, Mapped, Script};

/// How long an ecosystem file may take: node's start, and a few files it requires.
pub const EVALUATION_TIMEOUT: Duration = Duration::from_secs(10);

/// What to import, and where to.
#[derive(Debug, Clone)]
pub struct Options {
    /// The ecosystem file: `.js`, `.cjs`, `.mjs`, `.json`, `.yaml` or `.yml`.
    pub file: PathBuf,
    /// Where the configs are written; the current directory for `.`.
    pub output_directory: PathBuf,
    /// Replace configs that are there already.
    pub force: bool,
    /// How long the file may take, [`EVALUATION_TIMEOUT`] for a person at work.
    pub timeout: Duration,
}

/// What an import has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// One per app, in the order of the file.
    pub files: Vec<Imported>,
    /// What of the file belongs to no app and has no counterpart.
    pub dropped: Vec<Dropped>,
}

/// A config that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The app's name.
    pub name: String,
    /// The config.
    pub path: PathBuf,
    /// What is to be known about the app as a whole; what is about one key stands beside it in the
    /// config.
    pub remarks: Vec<String>,
    /// What has no counterpart.
    pub dropped: Vec<Dropped>,
}

/// A key that has no counterpart in pmr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// The key, as PM2's documentation spells it.
    pub key: String,
    /// Its value, shortened.
    pub value: String,
    /// Why it has none, and what to do instead.
    pub why: String,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}: {}`: {}", self.key, self.value, self.why)
    }
}

/// Why nothing was imported.
#[derive(Debug)]
pub enum Error {
    /// The file has no value.
    Evaluate(EvaluateError),
    /// The value is no ecosystem.
    Map(PathBuf, MapError),
    /// These configs are there already.
    Exists(Vec<PathBuf>),
    /// Something could not be done to this file.
    Write(&'static str, PathBuf, io::Error),
    /// The report could not be written.
    Report(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Evaluate(error) => error.fmt(f),
            Self::Map(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Exists(paths) => {
                let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
                let are = if names.len() == 1 { "is" } else { "are" };
                write!(f, "{} {are} there already; --force replaces", names.join(", "))
            }
            Self::Write(doing, path, error) => {
                write!(f, "cannot {doing} {}: {error}", path.display())
            }
            Self::Report(error) => write!(f, "cannot write the report: {error}"),
        }
    }
}

impl std::error::Error for Error {}

/// Imports: one config per app, all of them or none. Says on `out` what was written, and on `err`
/// what the file itself printed, what has changed and what was dropped.
pub fn run(options: &Options, out: &mut dyn Write, err: &mut dyn Write) -> Result<Outcome, Error> {
    let file = absolute(&options.file)
        .map_err(|error| Error::Write("find", options.file.clone(), error))?;
    let evaluated = evaluate::evaluate(&file, options.timeout).map_err(Error::Evaluate)?;
    for line in evaluated.printed.lines() {
        writeln!(err, "{}: {line}", options.file.display()).map_err(Error::Report)?;
    }
    let directory = file.parent().unwrap_or(Path::new("/"));
    let context = Context { directory, look: &look };
    let Apps { apps, dropped } =
        map::map(&evaluated.value, &context).map_err(|error| Error::Map(file.clone(), error))?;
    let mut configs = Vec::new();
    for app in &apps {
        let path = options.output_directory.join(format!("{}.toml", app.name));
        configs.push((path, render::render(app, &file)));
    }
    write_all(&configs, options.force)?;
    let outcome = Outcome {
        files: apps.into_iter().zip(configs).map(|(app, (path, _))| imported(app, path)).collect(),
        dropped,
    };
    report(&outcome, out, err).map_err(Error::Report)?;
    Ok(outcome)
}

fn imported(app: Mapped, path: PathBuf) -> Imported {
    Imported { name: app.name, path, remarks: app.general, dropped: app.dropped }
}

fn report(outcome: &Outcome, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    for dropped in &outcome.dropped {
        writeln!(err, "dropped {dropped}")?;
    }
    for file in &outcome.files {
        writeln!(out, "{}", file.path.display())?;
        for remark in &file.remarks {
            writeln!(err, "{}: {remark}", file.name)?;
        }
        for dropped in &file.dropped {
            writeln!(err, "{}: dropped {dropped}", file.name)?;
        }
    }
    Ok(())
}

/// `path` from the root, symlinks kept: an app in `/srv/app/current` is to stay there when
/// `current` points elsewhere. The kernel knows only where a symlink led, the shell knows its name.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    let shell = std::env::var_os("PWD").map(PathBuf::from).filter(|pwd| pwd.is_absolute());
    let identity = |path: &Path| fs::metadata(path).map(|data| (data.dev(), data.ino()));
    let base = match shell {
        Some(pwd) if identity(&pwd).ok() == Some(identity(Path::new("."))?) => pwd,
        Some(_) | None => std::env::current_dir()?,
    };
    std::path::absolute(base.join(path))
}

/// What `path` is, for the choice of an interpreter.
fn look(path: &Path) -> Script {
    const ELF: [u8; 4] = *b"\x7fELF";
    // Looked at before it is opened: the open of a FIFO would wait for somebody to write.
    if !fs::metadata(path).is_ok_and(|data| data.is_file()) {
        return Script::Missing;
    }
    let mut start = [0; ELF.len()];
    let read =
        fs::File::open(path).and_then(|mut file| io::Read::read_exact(&mut file, &mut start));
    if read.is_ok() && start == ELF { Script::Binary } else { Script::Text }
}

/// Writes all of `configs` or none: first beside their places, then each into its own.
fn write_all(configs: &[(PathBuf, String)], force: bool) -> Result<(), Error> {
    if !force {
        let there = |path: &&PathBuf| fs::symlink_metadata(path).is_ok();
        let existing: Vec<PathBuf> =
            configs.iter().map(|(path, _)| path).filter(there).cloned().collect();
        if !existing.is_empty() {
            return Err(Error::Exists(existing));
        }
    }
    let mut drafts = Drafts(Vec::new());
    for (path, text) in configs {
        drafts.write(path, text)?;
    }
    drafts.publish(force)
}

/// Files that are written but not in place yet; removed when dropped.
#[derive(Debug)]
struct Drafts(Vec<(PathBuf, PathBuf)>);

impl Drop for Drafts {
    fn drop(&mut self) {
        for (draft, _) in &self.0 {
            drop(fs::remove_file(draft));
        }
    }
}

impl Drafts {
    fn write(&mut self, path: &Path, text: &str) -> Result<(), Error> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let draft = path.with_file_name(format!(".{name}.{}", std::process::id()));
        let failed = |error| Error::Write("write", path.to_owned(), error);
        // Only for its owner: what was `process.env.PASSWORD` in the ecosystem file is a password
        // in this one.
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft);
        let mut file = opened.map_err(failed)?;
        self.0.push((draft, path.to_owned()));
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
    }

    /// Puts all in place. Where one cannot be, those that were put are taken back, unless they
    /// have replaced others.
    fn publish(mut self, force: bool) -> Result<(), Error> {
        let mut published: Vec<PathBuf> = Vec::new();
        while let Some((draft, path)) = self.0.pop() {
            if let Err(error) = rename(&draft, &path, force) {
                self.0.push((draft, path.clone()));
                for path in published.iter().filter(|_| !force) {
                    drop(fs::remove_file(path));
                }
                return Err(match error.kind() {
                    io::ErrorKind::AlreadyExists => Error::Exists(vec![path]),
                    _ => Error::Write("write", path, error),
                });
            }
            published.push(path);
        }
        Ok(())
    }
}

/// Renames; without `force` never over a file, not even one that came a moment ago.
fn rename(draft: &Path, path: &Path, force: bool) -> io::Result<()> {
    if !force {
        match renameat_with(CWD, draft, CWD, path, RenameFlags::NOREPLACE) {
            // A file system without this flag, rename(2): the check before has to do.
            Err(rustix::io::Errno::INVAL) => {}
            result => return Ok(result?),
        }
    }
    fs::rename(draft, path)
}

#[cfg(test)]
mod tests;
