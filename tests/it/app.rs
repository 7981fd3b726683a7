//! An app under the built `pmr`, and the end of everything it started.
//!
//! ```text
//! Setup::new("crash")          a directory, an app name, a runtime directory of its own
//!     .config("command = …")   writes NAME.toml
//!     .start() -> App          `pmr run NAME.toml`; dropped, it ends all that is left
//! ```

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use rustix::process::Signal;
use serde_json::Value;

use crate::procs::{self, PATIENCE_MS, wait_for};

/// The variable by which everything that a test started is found again. pmr hands it on.
const MARK: &str = "IT_MARK";

/// What a test has before its app runs.
#[derive(Debug)]
pub(crate) struct Setup {
    /// The app's name: no other test has it.
    pub(crate) name: String,
    /// A directory of the test's own; `NAME.toml` is in it, and it goes away in the end.
    pub(crate) directory: PathBuf,
    /// `PMR_RUNTIME_DIR`.
    pub(crate) runtime: PathBuf,
    binary: PathBuf,
    before: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Done {
    /// Its exit status; -1 where a signal ended it.
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A running app.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) setup: Setup,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Setup {
    pub(crate) fn new(test: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("it-{test}-{}-{count}", std::process::id());
        let directory = std::env::temp_dir().join(format!("pmr-{name}"));
        let runtime = directory.join("run");
        fs::create_dir_all(&runtime).unwrap();
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_pmr"));
        Self { name, directory, runtime, binary, before: Vec::new(), variables: Vec::new() }
    }

    /// Writes the app's config.
    pub(crate) fn config(self, text: &str) -> Self {
        self.write(&format!("{}.toml", self.name), text);
        self
    }

    /// A variable for pmr, and for the app.
    pub(crate) fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.into(), value.as_ref().into()));
        self
    }

    /// Starts pmr by another program, which executes its arguments.
    pub(crate) fn before(mut self, words: &[&str]) -> Self {
        self.before = words.iter().map(Into::into).collect();
        self
    }

    /// Runs a copy of pmr in the test's directory, which can be replaced.
    pub(crate) fn own_binary(mut self) -> Self {
        let copy = self.directory.join("pmr");
        procs::copy_program(&self.binary, &copy, 0o755);
        self.binary = copy;
        self
    }

    /// The binary that is run.
    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    /// Where the config is.
    pub(crate) fn config_path(&self) -> PathBuf {
        self.directory.join(format!("{}.toml", self.name))
    }

    /// Writes a file into the test's directory.
    pub(crate) fn write(&self, file: &str, text: &str) -> PathBuf {
        let path = self.directory.join(file);
        fs::write(&path, text).unwrap();
        path
    }

    /// Reads a file of the test's directory; empty where it is not there.
    pub(crate) fn read(&self, file: &str) -> String {
        let bytes = fs::read(self.directory.join(file)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Everything that pmr printed.
    pub(crate) fn log(&self) -> String {
        format!("--- stdout\n{}--- stderr\n{}", self.read("stdout"), self.read("stderr"))
    }

    /// Runs a pmr command to its end.
    pub(crate) fn pmr(&self, words: &[&str]) -> Done {
        let mut command = Command::new(&self.binary);
        command.args(words).current_dir(&self.directory);
        command.env("PMR_RUNTIME_DIR", &self.runtime);
        self.run(&mut command)
    }

    /// Runs a command to its end, with a deadline.
    pub(crate) fn run(&self, command: &mut Command) -> Done {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = |what: &str| self.directory.join(format!("{what}.{count}"));
        let paths = [path("out"), path("err")];
        let [out, err] = paths.each_ref().map(|path| File::create(path).unwrap());
        let mut child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().unwrap();
        let Some(status) = wait_for(2 * PATIENCE_MS, || child.try_wait().unwrap()) else {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it does not end: {command:?}\n{}", self.log());
        };
        let [out, err] = paths.map(|path| {
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            fs::remove_file(path).unwrap();
            text
        });
        Done { code: status.code().unwrap_or(-1), out, err }
    }

    /// `NAME=VALUE` that everything of this test has in its environment.
    pub(crate) fn mark(&self) -> String {
        format!("{MARK}={}", self.name)
    }

    /// `pmr run NAME.toml`.
    pub(crate) fn start(self) -> App {
        self.start_with(|_| ())
    }

    /// The same, with something changed: other output, other arguments.
    pub(crate) fn start_with(self, change: impl FnOnce(&mut Command)) -> App {
        let config = self.config_path();
        self.launch(&["run".as_ref(), config.as_ref()], change)
    }

    /// `pmr keeper NAME`, as a unit runs it.
    pub(crate) fn serve_with(self, change: impl FnOnce(&mut Command)) -> App {
        let name = self.name.clone();
        let configs = self.directory.clone();
        self.launch(&["keeper".as_ref(), name.as_ref()], |command| {
            command.env("PMR_CONFIG_DIR", configs);
            change(command);
        })
    }

    fn launch(self, words: &[&OsStr], change: impl FnOnce(&mut Command)) -> App {
        // A session of its own: no terminal, and no signal meant for the tests.
        let mut command = Command::new("setsid");
        command.args(&self.before).arg(&self.binary).args(words);
        command.current_dir(&self.directory).stdin(Stdio::null());
        command.stdout(File::create(self.directory.join("stdout")).unwrap());
        command.stderr(File::create(self.directory.join("stderr")).unwrap());
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID"] {
            command.env_remove(name);
        }
        command.env("PMR_RUNTIME_DIR", &self.runtime).env(MARK, &self.name);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        change(&mut command);
        let child = command.spawn().unwrap();
        App { setup: self, child, ended: None }
    }
}

impl App {
    /// The process that was started: the keeper, unless another program stands before it.
    pub(crate) fn keeper(&self) -> u32 {
        self.child.id()
    }

    /// Asks until there is an answer; panics at the deadline with all that pmr printed.
    pub(crate) fn eventually<T>(&self, what: &str, ask: impl FnMut() -> Option<T>) -> T {
        self.within(PATIENCE_MS, what, ask)
    }

    /// The same with a deadline of one's own.
    pub(crate) fn within<T>(&self, ms: u64, what: &str, ask: impl FnMut() -> Option<T>) -> T {
        wait_for(ms, ask).unwrap_or_else(|| {
            let status = self.pmr(&["status", "--json"]);
            panic!("never: {what}\n{}--- status\n{}{}", self.setup.log(), status.out, status.err)
        })
    }

    /// Runs a pmr command to its end.
    pub(crate) fn pmr(&self, words: &[&str]) -> Done {
        self.setup.pmr(words)
    }

    /// Runs `pmr VERB NAME WORDS`, which must end with status 0.
    pub(crate) fn command(&self, verb: &str, words: &[&str]) -> Done {
        let all: Vec<&str> = [verb, &self.setup.name].iter().chain(words).copied().collect();
        let done = self.pmr(&all);
        assert_eq!(done.code, 0, "{all:?}: {}{}\n{}", done.out, done.err, self.setup.log());
        done
    }

    /// The app as `pmr status --json` shows it, while it can be asked.
    pub(crate) fn try_status(&self) -> Option<State> {
        let done = self.pmr(&["status", &self.setup.name, "--json"]);
        let value: Value = serde_json::from_str(&done.out).ok()?;
        let app = value["apps"].as_array()?.first()?.clone();
        Some(State(app))
    }

    /// The same, as soon as it can be asked.
    pub(crate) fn status(&self) -> State {
        self.eventually("an answer to `status`", || self.try_status())
    }

    /// The app once it is in such a state.
    pub(crate) fn state(&self, what: &str, mut is: impl FnMut(&State) -> bool) -> State {
        self.eventually(what, || self.try_status().filter(|state| is(state)))
    }

    /// The app once so many slots are online, and all its slots are.
    pub(crate) fn online(&self, count: usize) -> State {
        self.state("all slots online", |state| {
            state.len() == count && (0..count).all(|slot| state.word(slot) == "online")
        })
    }

    /// The supervisor of the moment. An instance that is just being born is none.
    pub(crate) fn supervisor(&self) -> Option<u32> {
        procs::children(self.keeper()).into_iter().find(|&pid| {
            let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let second = procs::words(pid).into_iter().nth(1);
            second.as_deref() == Some("supervise") && !group.contains("/i-") && procs::lives(pid)
        })
    }

    /// Kills the supervisor there is now, or the next. Returns which; it is dead then.
    pub(crate) fn kill_supervisor(&self) -> u32 {
        let pid = self.eventually("a supervisor", || {
            self.supervisor().filter(|&pid| procs::signal(pid, Signal::KILL))
        });
        self.eventually("its death", || (!procs::lives(pid)).then_some(pid))
    }

    /// Everything that was started for the app's slots, daemons included; pmr itself is not.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let all = procs::with_variable(&self.setup.mark()).into_iter();
        all.filter(|&pid| procs::variable(pid, "PMR_INSTANCE").is_some()).collect()
    }

    /// Sends a signal to the keeper.
    pub(crate) fn signal(&self, signal: Signal) {
        assert!(procs::signal(self.keeper(), signal), "the keeper is gone\n{}", self.setup.log());
    }

    /// Waits for the end of `pmr run`. Returns its exit status; -1 where a signal ended it.
    pub(crate) fn wait(&mut self) -> i32 {
        let child = &mut self.child;
        let ended = wait_for(PATIENCE_MS, || child.try_wait().unwrap());
        let log = || format!("pmr does not end\n{}", self.setup.log());
        let status = ended.unwrap_or_else(|| panic!("{}", log()));
        self.ended = Some(status);
        status.code().unwrap_or(-1)
    }

    /// Whether `pmr run` still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The app's home among the groups, while it has one.
    pub(crate) fn home(&self) -> Option<PathBuf> {
        let start = format!("pmr.{}.", self.setup.name);
        let groups = fs::read_dir(procs::own_cgroup()?).ok()?.flatten();
        let mut homes =
            groups.filter(|entry| entry.file_name().to_string_lossy().starts_with(&start));
        homes.next().map(|entry| entry.path())
    }

    /// Whether a daemon that left its session still belongs to its instance.
    /// Where it does not, the test is skipped aloud.
    pub(crate) fn tracks(&self, test: &str) -> bool {
        let level = self.status().level().to_owned();
        if level == "bare" {
            procs::skip(test, "no cgroup v2 group can be made here");
        }
        level != "bare"
    }

    /// Writes to the standard input of what was started, where that is a pipe.
    pub(crate) fn type_in(&mut self, keys: &str) {
        self.child.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    /// Asserts that no process of the app's slots is there.
    pub(crate) fn assert_no_process(&self) {
        let shown: Vec<_> =
            self.processes().into_iter().map(|pid| (pid, procs::words(pid))).collect();
        assert!(shown.is_empty(), "left behind: {shown:?}\n{}", self.setup.log());
    }

    /// Asserts that nothing of the app is left: no process, no group, no directory.
    pub(crate) fn assert_nothing_left(&self) {
        let left = procs::with_variable(&self.setup.mark());
        let shown: Vec<_> = left.iter().map(|&pid| (pid, procs::words(pid))).collect();
        assert!(left.is_empty(), "left behind: {shown:?}\n{}", self.setup.log());
        if let Some(home) = self.home() {
            panic!("left behind: {}\n{}", home.display(), self.setup.log());
        }
        let directory = self.setup.runtime.join(&self.setup.name);
        assert!(!directory.exists(), "left behind: {}", directory.display());
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("{}: {error}", self.directory.display());
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        if self.ended.is_none() && self.child.try_wait().is_ok_and(|it| it.is_none()) {
            procs::signal(self.keeper(), Signal::TERM);
            let ended = wait_for(5_000, || self.child.try_wait().ok().flatten());
            if ended.is_none() {
                procs::signal(self.keeper(), Signal::KILL);
                self.child.wait().unwrap();
            }
        }
        if let Some(home) = self.home() {
            procs::remove_cgroup(&home);
        }
        let mark = self.setup.mark();
        let gone = wait_for(5_000, || {
            let left = procs::with_variable(&mark);
            for &pid in &left {
                // Looked at again behind the pidfd: it cannot be another process then.
                let pidfd = procs::open(pid).filter(|_| procs::has_variable(pid, &mark));
                pidfd.map(|it| rustix::process::pidfd_send_signal(it, Signal::KILL));
            }
            left.is_empty().then_some(())
        });
        if gone.is_none() {
            eprintln!("something of {} is left behind", self.setup.name);
        }
    }
}

/// An app as `pmr status --json` shows it.
#[derive(Debug, Clone)]
pub(crate) struct State(pub(crate) Value);

impl State {
    /// How many slots.
    pub(crate) fn len(&self) -> usize {
        self.0["instances"].as_array().map_or(0, Vec::len)
    }

    /// A slot.
    pub(crate) fn slot(&self, slot: usize) -> &Value {
        &self.0["instances"][slot]
    }

    /// Its status in one word.
    pub(crate) fn word(&self, slot: usize) -> &str {
        self.slot(slot)["status"].as_str().unwrap_or_default()
    }

    /// Its process id.
    pub(crate) fn pid(&self, slot: usize) -> Option<u32> {
        self.slot(slot)["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
    }

    /// All process ids.
    pub(crate) fn pids(&self) -> Vec<u32> {
        (0..self.len()).filter_map(|slot| self.pid(slot)).collect()
    }

    /// A number of a slot: `restarts`, `unstable`, `generation`; `u64::MAX` where it has none.
    pub(crate) fn number(&self, slot: usize, key: &str) -> u64 {
        self.slot(slot)[key].as_u64().unwrap_or(u64::MAX)
    }

    /// How its last instance ended, in words.
    pub(crate) fn last_exit(&self, slot: usize) -> &str {
        self.slot(slot)["last_exit"]["text"].as_str().unwrap_or_default()
    }

    /// What the machine allows.
    pub(crate) fn level(&self) -> &str {
        self.0["level"].as_str().unwrap_or_default()
    }
}

/// A port that nobody listens on, and that no client is given for its own end: it is below the
/// range of those.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 1000).unwrap() * 15;
    for _ in 0..15_000 {
        let offset = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 15_000;
        let port = 16_000 + offset;
        let any = [TcpListener::bind(("0.0.0.0", port)), TcpListener::bind(("127.0.0.1", port))];
        if any.iter().any(Result::is_ok) {
            return port;
        }
    }
    panic!("no free port");
}

/// A word as TOML and Python both read it.
pub(crate) fn quoted(text: impl AsRef<Path>) -> String {
    format!("{:?}", text.as_ref().to_str().unwrap())
}

/// The demo's backend behind one port, with times short enough for tests. More keys may follow.
pub(crate) fn demo(port: u16, instances: u16) -> String {
    format!(
        "command = [{}, \"demo-backend\"]\ninstances = {instances}\nexec_mode = \"cluster\"\n\
         port = {port}\nready = \"exec\"\nkill_timeout = \"5s\"\nstable_for = 100\n",
        quoted(env!("CARGO_BIN_EXE_pmr"))
    )
}

/// The same with a socket that it inherits.
pub(crate) fn inherit(port: u16, instances: u16) -> String {
    demo(port, instances).replace("port = ", "listen = ")
}

/// A Python program as a `command`, one `code` for each instance.
pub(crate) fn python(code: &str) -> String {
    format!("command = [\"python3\", \"-c\", '''\n{code}\n''']\n")
}
