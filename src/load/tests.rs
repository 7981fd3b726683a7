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
    let note = "`cpu_max` is not enforced on this machine: it has no cpu controller of cgroup v2";
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
