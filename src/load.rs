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
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    /// A directory of one test, removed at its end.
    struct Directory(PathBuf);

    impl Directory {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("pmr-load-{test}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, bytes).unwrap();
            path
        }

        /// What `load` says of a config with this text, with the directory as `DIR`.
        fn load(&self, machine: &Machine, text: &str) -> String {
            let path = self.write("web.toml", text);
            let result = load_on(machine, &path, None);
            let shown = match result {
                Ok(loaded) => loaded.notes.to_string(),
                Err(error) => error.to_string(),
            };
            shown.replace(self.0.to_str().unwrap(), "DIR")
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn machine(user: u32) -> Machine {
        let path = Some("/nonexistent:/bin".into());
        let controllers = ["memory", "pids"].map(str::to_owned).to_vec();
        Machine { user: Uid::from_raw(user), group: Gid::from_raw(user), path, controllers }
    }

    fn error(path: &Path) -> String {
        load(path, None).unwrap_err().to_string()
    }

    #[test]
    fn a_limit_that_this_machine_cannot_enforce_is_noted() {
        let directory = Directory::new("limits");
        let text = "command = [\"true\"]\nmemory_max = \"1G\"\ncpu_max = 50\ntasks_max = 9\n";
        let path = directory.write("web.toml", text);
        let loaded = load_on(&machine(0), &path, None).unwrap();
        let notes: Vec<_> = loaded.notes.list().iter().map(|note| note.message.as_str()).collect();
        let note =
            "`cpu_max` is not enforced on this machine: it has no cpu controller of cgroup v2";
        assert_eq!(notes, [note]);
    }

    #[test]
    fn a_file_that_is_no_config_is_named_without_waiting() {
        let directory = Directory::new("kinds");
        let path = |name: &str| directory.0.join(name);
        let shown = |name: &str| path(name).display().to_string();
        let missing = error(&path("web.toml"));
        assert!(missing.starts_with(&format!("cannot open {}: No such", shown("web.toml"))));
        for name in ["web.conf", "web", ".."] {
            let expected = format!("{}: a config file is called NAME.toml", shown(name));
            assert_eq!(error(&path(name)), expected);
        }
        let not_utf8_name = directory.0.join(OsStr::from_bytes(b"\xff.toml"));
        assert!(matches!(load(&not_utf8_name, None), Err(LoadError::Extension(_))));
        let upper = format!("{}: an app name starts with a lower-case letter", shown("Web.toml"));
        assert!(error(&path("Web.toml")).starts_with(&upper));
        assert!(error(&path(".toml")).ends_with("an app name cannot be empty"));

        fs::create_dir(path("dir.toml")).unwrap();
        let expected = format!("{} is a directory, not a file", shown("dir.toml"));
        assert_eq!(error(&path("dir.toml")), expected);
        nix::unistd::mkfifo(&path("fifo.toml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let expected = format!("{} is a FIFO, not a file", shown("fifo.toml"));
        assert_eq!(error(&path("fifo.toml")), expected);

        let large = directory.write("large.toml", vec![b'#'; (1 << 20) + 1]);
        let expected = format!("{} has more than 1048576 bytes", large.display());
        assert_eq!(error(&large), expected);
        directory.write("large.toml", vec![b'#'; 1 << 20]);
        assert!(matches!(load(&large, None), Err(LoadError::Invalid(_))));
        let latin = directory.write("latin.toml", b"script = 'a'\n# \xc3\xa9 caf\xe9\n");
        let expected = format!("{}:2:8: byte 21 is not UTF-8", latin.display());
        assert_eq!(error(&latin), expected);
    }

    #[test]
    fn a_config_is_named_after_its_file_and_lives_in_its_directory() {
        let directory = Directory::new("name");
        directory.write("a.sh", "");
        directory.write("vars", "");
        let text = "script = 'a.sh'\ninterpreter = '/bin/sh'\nenv_file = 'vars'\n\
                    [env_x]\nA = 1\n";
        let path = directory.write("web-1.toml", text);
        let loaded = load(&path, Some("x")).unwrap();
        assert_eq!(loaded.spec.name.as_str(), "web-1");
        assert_eq!(loaded.spec.cwd, directory.0);
        assert_eq!(loaded.spec.environment.file, Some(directory.0.join("vars")));
        assert_eq!(loaded.spec.environment.vars.len(), 1);
        assert!(loaded.notes.is_empty());
    }

    #[test]
    fn what_the_machine_lacks_is_shown_with_the_rest() {
        let directory = Directory::new("lacks");
        let text = "script = \"app.js\"\nuser = \"no-such-user\"\ngroup = \"no-such-group\"\n\
                    env_file = \".env\"\ninterpreter = \"no-such-node\"\nmax_restarts = 0\n";
        insta::assert_snapshot!(directory.load(&machine(0), text), @r#"
        error: cannot use `script` app.js: no such file or directory
         --> DIR/web.toml:1:10
          |
        1 | script = "app.js"
          |          ^^^^^^^^
          |
          = hint: it is relative to `cwd`, DIR

        error: there is no user no-such-user
         --> DIR/web.toml:2:8
          |
        2 | user = "no-such-user"
          |        ^^^^^^^^^^^^^^

        error: there is no group no-such-group
         --> DIR/web.toml:3:9
          |
        3 | group = "no-such-group"
          |         ^^^^^^^^^^^^^^^

        error: cannot use `env_file` DIR/.env: no such file or directory
         --> DIR/web.toml:4:12
          |
        4 | env_file = ".env"
          |            ^^^^^^
          |
          = hint: it is relative to `cwd`, DIR

        error: `max_restarts` must be an integer from 1 to 1000, not 0
         --> DIR/web.toml:6:16
          |
        6 | max_restarts = 0
          |                ^
          |
          = hint: an app that is never restarted has `autorestart = false`
        "#);
    }

    #[test]
    fn what_is_relative_to_a_faulty_cwd_is_not_looked_for() {
        let directory = Directory::new("cwd");
        let text = "script = \"app\"\ncwd = \"releases/current\"\n";
        insta::assert_snapshot!(directory.load(&machine(0), text), @r#"
        error: cannot use `cwd` DIR/releases/current: no such file or directory
         --> DIR/web.toml:2:7
          |
        2 | cwd = "releases/current"
          |       ^^^^^^^^^^^^^^^^^^
        "#);
        let text = "script = \"app\"\ncwd = \"web.toml\"\n";
        insta::assert_snapshot!(directory.load(&machine(0), text), @r#"
        error: `cwd` is a file, not a directory
         --> DIR/web.toml:2:7
          |
        2 | cwd = "web.toml"
          |       ^^^^^^^^^^
          |
          = hint: it is DIR/web.toml
        "#);
        let text = "script = \"app\"\ncwd = 5\n";
        insta::assert_snapshot!(directory.load(&machine(0), text), @r#"
        error: `cwd` must be a string, not 5
         --> DIR/web.toml:2:7
          |
        2 | cwd = 5
          |       ^
        "#);
    }

    #[test]
    fn a_script_must_be_a_file_that_can_be_run() {
        let directory = Directory::new("script");
        directory.write("app", "#!/bin/sh\n");
        let shown = |text: &str| directory.load(&machine(0), text);
        insta::assert_snapshot!(shown("script = 'app'"), @r#"
        error: `script` app cannot be executed
         --> DIR/web.toml:1:10
          |
        1 | script = 'app'
          |          ^^^^^
          |
          = hint: run `chmod +x DIR/app`, or name an `interpreter`
        "#);
        insta::assert_snapshot!(shown("script = '.'\ninterpreter = 'sh'"), @r#"
        error: `script` is a directory, not a file
         --> DIR/web.toml:1:10
          |
        1 | script = '.'
          |          ^^^
          |
          = hint: it is DIR/.
        "#);
        insta::assert_snapshot!(shown("script = 'sh'"), @r#"
        error: cannot use `script` sh: no such file or directory
         --> DIR/web.toml:1:10
          |
        1 | script = 'sh'
          |          ^^^^
          |
          = hint: a program in PATH is run by `command = ["sh"]`
        "#);
        assert_eq!(shown("script = 'app'\ninterpreter = 'sh'"), "");
        fs::set_permissions(directory.0.join("app"), fs::Permissions::from_mode(0o755)).unwrap();
        for text in ["script = 'app'", "script = './app'", "command = ['./app']"] {
            assert_eq!(shown(text), "", "{text}");
        }
        let absolute = directory.0.join("app");
        assert_eq!(shown(&format!("script = {absolute:?}")), "");
    }

    #[test]
    fn a_program_is_looked_for_in_the_path_of_the_app() {
        let directory = Directory::new("path");
        let shown = |text: &str| directory.load(&machine(0), text);
        assert_eq!(shown("command = ['sh']"), "");
        insta::assert_snapshot!(shown("command = ['sh']\nenv.PATH = '/nonexistent'"), @r#"
        error: there is no program sh in PATH
         --> DIR/web.toml:1:11
          |
        1 | command = ['sh']
          |           ^^^^^^
          |
          = hint: PATH is /nonexistent
        "#);
        insta::assert_snapshot!(shown("command = ['bin/x']"), @r#"
        error: DIR/bin/x is no file that can be executed
         --> DIR/web.toml:1:11
          |
        1 | command = ['bin/x']
          |           ^^^^^^^^^
        "#);
        directory.write("vars", "");
        insta::assert_snapshot!(shown("command = ['no-such']\nenv_file = 'vars'"), @r#"
        note: there is no program no-such in PATH
         --> DIR/web.toml:1:11
          |
        1 | command = ['no-such']
          |           ^^^^^^^^^^^
          |
          = hint: PATH is /nonexistent:/bin
        "#);
    }

    #[test]
    fn only_root_chooses_who_runs_an_app() {
        let directory = Directory::new("root");
        let load =
            |user, text: &str| directory.load(&machine(user), &format!("command = ['sh']\n{text}"));
        for text in ["user = 'root'\ngroup = 'root'", "user = 4000\ngroup = '4000'"] {
            assert_eq!(load(0, text), "", "{text}");
        }
        assert_eq!(load(4000, "user = 4000\ngroup = 4000"), "");
        insta::assert_snapshot!(load(4000, "user = 'root'\ngroup = 'root'"), @r#"
        error: only root can run an app as another user
         --> DIR/web.toml:2:8
          |
        2 | user = 'root'
          |        ^^^^^^

        error: only root can run an app with another group
         --> DIR/web.toml:3:9
          |
        3 | group = 'root'
          |         ^^^^^^
        "#);
    }
}
