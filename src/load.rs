//! Reading a config file from disk, and asking the machine for what the config names.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User};

pub use crate::config::{EnvFileError, read_env_file};
use crate::config::{Examined, Problem, Problems, Severity, Source, examine, line_and_column};
use crate::spec::{AppName, NameError, Spec};
use crate::sys::Error;
use crate::sys::cgroup::machine_controllers;

/// Most bytes of a config file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The limits that the kernel enforces, and the controller that each is of.
const LIMITS: [(&str, &str); 5] = [
    ("memory_max", "memory"),
    ("memory_swap_max", "memory"),
    ("cpu_weight", "cpu"),
    ("cpu_max", "cpu"),
    ("tasks_max", "pids"),
];

/// A config that can be used on this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What the app asks for.
    pub spec: Spec,
    /// What its author should know all the same.
    pub notes: Problems,
}

/// Why a config file cannot be used.
#[derive(Debug)]
pub enum LoadError {
    /// The file is not called `NAME.toml`.
    Extension(PathBuf),
    /// What stands before `.toml` is no name of an app.
    Name(PathBuf, NameError),
    /// The file cannot be opened or read.
    Read(Error),
    /// It is no regular file, but what is named.
    Kind(PathBuf, &'static str),
    /// It has more than 1 MiB.
    TooLarge(PathBuf),
    /// It is not UTF-8.
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Line of the first bad byte, counted from 1.
        line: usize,
        /// Its column in characters, counted from 1.
        column: usize,
        /// Its place in the file, counted from 0.
        offset: usize,
    },
    /// Its text has problems.
    Invalid(Problems),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Extension(path) => {
                write!(f, "{}: a config file is called NAME.toml", path.display())
            }
            Self::Name(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Read(error) => error.fmt(f),
            Self::Kind(path, kind) => write!(f, "{} is {kind}, not a file", path.display()),
            Self::TooLarge(path) => {
                write!(f, "{} has more than {FILE_BYTES_MAX} bytes", path.display())
            }
            Self::NotUtf8 { path, line, column, offset } => {
                write!(f, "{}:{line}:{column}: byte {offset} is not UTF-8", path.display())
            }
            Self::Invalid(problems) => problems.fmt(f),
        }
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read(error) => error.source(),
            Self::Name(_, _)
            | Self::Extension(_)
            | Self::Kind(_, _)
            | Self::TooLarge(_)
            | Self::NotUtf8 { .. }
            | Self::Invalid(_) => None,
        }
    }
}

/// Reads and checks the config at `path`. `overlay` lays the table `env_NAME` over `env`.
pub fn load(path: &Path, overlay: Option<&str>) -> Result<Loaded, LoadError> {
    load_on(&Machine::this(), path, overlay)
}

fn load_on(machine: &Machine, path: &Path, overlay: Option<&str>) -> Result<Loaded, LoadError> {
    let source = read(path)?;
    let mut examined = examine(&source, overlay);
    if let Some(spec) = examined.spec.take() {
        Check { machine, spec: &spec, examined: &mut examined }.all();
        examined.spec = Some(spec);
    }
    let (spec, notes) = examined.conclude(&source).map_err(LoadError::Invalid)?;
    Ok(Loaded { spec, notes })
}

/// Reads the file, whatever it turns out to be, without waiting.
fn read(path: &Path) -> Result<Source, LoadError> {
    let name = path
        .file_name()
        .and_then(OsStr::to_str)
        .and_then(|name| name.strip_suffix(".toml"))
        .ok_or_else(|| LoadError::Extension(path.to_owned()))?;
    let name = AppName::new(name).map_err(|error| LoadError::Name(path.to_owned(), error))?;
    let failed = |doing| move |error: io::Error| LoadError::Read(Error::at(doing, path, error));
    let absolute = std::path::absolute(path).map_err(failed("find"))?;
    // Opening a FIFO would wait for a writer.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(failed("open"))?;
    let metadata = file.metadata().map_err(failed("look at"))?;
    if !metadata.is_file() {
        return Err(LoadError::Kind(path.to_owned(), kind(&metadata)));
    }
    let bytes = read_limited(&file).map_err(failed("read"))?;
    let bytes = bytes.ok_or_else(|| LoadError::TooLarge(path.to_owned()))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes());
        let (line, column) = line_and_column(&text, offset);
        LoadError::NotUtf8 { path: path.to_owned(), line, column, offset }
    })?;
    let directory = absolute.parent().unwrap_or(&absolute).to_owned();
    Ok(Source { path: path.to_owned(), name, directory, text })
}

/// The bytes of the file, `None` where there are too many.
fn read_limited(file: &File) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(u64::try_from(bytes.len()).is_ok_and(|length| length <= FILE_BYTES_MAX).then_some(bytes))
}

fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// What is asked of the process itself.
struct Machine {
    user: Uid,
    group: Gid,
    path: Option<OsString>,
    /// Controllers of cgroup v2.
    controllers: Vec<String>,
}

impl Machine {
    fn this() -> Self {
        let path = std::env::var_os("PATH");
        let controllers = machine_controllers();
        Self { user: Uid::effective(), group: Gid::effective(), path, controllers }
    }
}

/// The look at what a spec names on the machine.
struct Check<'a> {
    machine: &'a Machine,
    spec: &'a Spec,
    examined: &'a mut Examined,
}

impl Check<'_> {
    fn all(&mut self) {
        self.user();
        self.group();
        self.limits();
        if self.examined.faulty.contains("cwd") || !self.cwd() {
            // What is relative to it cannot be found either.
            return;
        }
        self.program();
        self.env_file();
    }

    fn add(&mut self, severity: Severity, key: &str, message: String, hint: Option<String>) {
        let span = self.examined.places.get(key).cloned();
        self.examined.findings.push(Problem { severity, message, hint, span });
    }

    fn problem(&mut self, key: &str, message: String, hint: Option<String>) {
        self.add(Severity::Error, key, message, hint);
    }

    /// What no unit of this machine could enforce.
    fn limits(&mut self) {
        for (key, controller) in LIMITS {
            let there = self.machine.controllers.iter().any(|it| it == controller);
            if !there && self.examined.places.contains_key(key) {
                let message = format!(
                    "`{key}` is not enforced on this machine: it has no {controller} controller of \
                     cgroup v2"
                );
                self.add(Severity::Note, key, message, None);
            }
        }
    }

    fn cwd(&mut self) -> bool {
        let cwd = self.spec.cwd.as_path();
        match cwd.metadata() {
            Ok(metadata) if metadata.is_dir() => return true,
            Ok(metadata) => {
                let message = format!("`cwd` is {}, not a directory", file_kind(&metadata));
                self.problem("cwd", message, Some(format!("it is {}", cwd.display())));
            }
            Err(error) => {
                let message = format!("cannot use `cwd` {}: {}", cwd.display(), reason(&error));
                self.problem("cwd", message, None);
            }
        }
        false
    }

    fn program(&mut self) {
        let spec = self.spec;
        let Some(program) = spec.program.argv.first() else { return };
        let Some(script) = &spec.program.script else {
            return self.interpreter("command", program);
        };
        if self.examined.faulty.contains("script") {
            return;
        }
        let path = spec.cwd.join(script);
        let executed = program.strip_prefix("./").unwrap_or(program)
            == script.strip_prefix("./").unwrap_or(script);
        match path.metadata() {
            Ok(metadata) if !metadata.is_file() => {
                let message = format!("`script` is {}, not a file", file_kind(&metadata));
                self.problem("script", message, Some(format!("it is {}", path.display())));
            }
            Ok(metadata) if executed && metadata.permissions().mode() & 0o111 == 0 => {
                let message = format!("`script` {script} cannot be executed");
                let hint = format!("run `chmod +x {}`, or name an `interpreter`", path.display());
                self.problem("script", message, Some(hint));
            }
            Ok(_) => {}
            Err(error) => {
                let message = format!("cannot use `script` {script}: {}", reason(&error));
                let hint = if !script.contains('/') && self.find(script).is_some() {
                    format!("a program in PATH is run by `command = [{script:?}]`")
                } else {
                    format!("it is relative to `cwd`, {}", spec.cwd.display())
                };
                self.problem("script", message, Some(hint));
            }
        }
        if !executed {
            let named = self.examined.places.contains_key("interpreter");
            self.interpreter(if named { "interpreter" } else { "script" }, program);
        }
    }

    /// Looks for the program that `key` asks for.
    fn interpreter(&mut self, key: &str, program: &str) {
        if self.find(program).is_some() {
            return;
        }
        if program.contains('/') {
            let path = self.spec.cwd.join(program);
            let message = format!("{} is no file that can be executed", path.display());
            return self.problem(key, message, None);
        }
        let message = format!("there is no program {program} in PATH");
        let searched = self.search_path().unwrap_or_default();
        let hint = Some(format!("PATH is {}", searched.display()));
        // What an `env_file` says of PATH is known when it is read with the app's rights.
        let unknown = self.spec.environment.file.is_some()
            && !self.spec.environment.vars.contains_key("PATH");
        let severity = if unknown { Severity::Note } else { Severity::Error };
        self.add(severity, key, message, hint);
    }

    fn search_path(&self) -> Option<OsString> {
        let own = self.spec.environment.vars.get("PATH").map(OsString::from);
        own.or_else(|| self.machine.path.clone())
    }

    /// The program as `execve` would find it from `cwd`.
    fn find(&self, program: &str) -> Option<PathBuf> {
        let executable = |path: &PathBuf| {
            path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        };
        if program.contains('/') {
            return Some(self.spec.cwd.join(program)).filter(executable);
        }
        std::env::split_paths(&self.search_path()?)
            .map(|directory| self.spec.cwd.join(directory).join(program))
            .find(executable)
    }

    fn user(&mut self) {
        let Some(name) = &self.spec.identity.user else { return };
        let uid = match name.parse() {
            Ok(number) => Ok(Some(Uid::from_raw(number))),
            Err(_) => User::from_name(name).map(|user| user.map(|user| user.uid)),
        };
        let message = match uid {
            Ok(Some(uid)) if self.machine.user.is_root() || uid == self.machine.user => return,
            Ok(Some(_)) => "only root can run an app as another user".to_owned(),
            Ok(None) => format!("there is no user {name}"),
            Err(errno) => format!("cannot look up the user {name}: {}", errno.desc()),
        };
        self.problem("user", message, None);
    }

    fn group(&mut self) {
        let Some(name) = &self.spec.identity.group else { return };
        let gid = match name.parse() {
            Ok(number) => Ok(Some(Gid::from_raw(number))),
            Err(_) => Group::from_name(name).map(|group| group.map(|group| group.gid)),
        };
        let message = match gid {
            Ok(Some(gid)) if self.machine.user.is_root() || gid == self.machine.group => return,
            Ok(Some(_)) => "only root can run an app with another group".to_owned(),
            Ok(None) => format!("there is no group {name}"),
            Err(errno) => format!("cannot look up the group {name}: {}", errno.desc()),
        };
        self.problem("group", message, None);
    }

    fn env_file(&mut self) {
        let Some(file) = &self.spec.environment.file else { return };
        let message = match file.metadata() {
            Ok(metadata) if metadata.is_file() => return,
            Ok(metadata) => format!("`env_file` is {}, not a file", file_kind(&metadata)),
            Err(error) => format!("cannot use `env_file` {}: {}", file.display(), reason(&error)),
        };
        let hint = format!("it is relative to `cwd`, {}", self.spec.cwd.display());
        self.problem("env_file", message, Some(hint));
    }
}

fn file_kind(metadata: &Metadata) -> &'static str {
    if metadata.is_file() { "a file" } else { kind(metadata) }
}

/// What the kernel said, without the number.
fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => nix::errno::Errno::from_raw(errno).desc().to_ascii_lowercase(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
