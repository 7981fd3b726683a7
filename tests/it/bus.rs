//! A bus of a test's own, with something on it that looks like systemd.
//!
//! ```text
//! Machine::new("start")                 a dbus-daemon, and `org.freedesktop.systemd1` on it
//!     .unit("web", |unit| …)            a unit; `machine.app(…)` writes its config too
//!     .answer(Answer::EndsLater("failed"))
//! machine.pmr(&["start", "web"])        pmr with this bus as the system's
//! ```

#![expect(clippy::disallowed_types, reason = "what zbus generates uses hash maps")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use zbus::blocking::connection::Builder;
use zbus::message::{Flags, Header};
use zbus::object_server::SignalEmitter;
use zbus::zvariant::OwnedObjectPath;
use zbus::{blocking, fdo};

use crate::app::{Done, Setup};
use crate::procs::{self, eventually};

const MANAGER_PATH: &str = "/org/freedesktop/systemd1";

/// What is done with a start or a stop.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Answer {
    /// The job is over before its name is answered.
    #[default]
    DoneAtOnce,
    /// The job ends so a moment after it was named.
    EndsLater(&'static str),
    /// The job stays.
    NeverEnds,
    /// The job goes away, and nobody says so.
    Vanishes,
    /// polkit says no.
    Denied,
    /// A password would have to be asked for, and there is nobody to ask.
    NeedsPassword,
    /// There is no answer.
    Silence,
}

/// A unit, by its properties.
#[derive(Debug, Clone)]
pub(crate) struct Unit {
    pub(crate) load: &'static str,
    pub(crate) active: &'static str,
    pub(crate) sub: &'static str,
    pub(crate) file: &'static str,
    pub(crate) result: &'static str,
    pub(crate) main_pid: u32,
    /// `CLD_EXITED` is 1, `CLD_KILLED` 2.
    pub(crate) exit_code: i32,
    pub(crate) exit_status: i32,
    pub(crate) text: &'static str,
    pub(crate) was_started: bool,
    job: u32,
}

#[derive(Debug, Default)]
struct World {
    /// What was asked for, in order.
    calls: Vec<String>,
    /// Whether each call that changes something said that a person may be asked.
    interactive: Vec<bool>,
    answer: Answer,
    units: BTreeMap<String, Unit>,
    jobs: u32,
}

/// What the objects on the bus share.
#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<World>>);

/// A machine with a bus and a systemd.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) setup: Setup,
    /// `PMR_RUNTIME_DIR`
    pub(crate) runtime: PathBuf,
    /// `PMR_CONFIG_DIR`
    pub(crate) configs: PathBuf,
    pub(crate) daemon: Child,
    connection: Mutex<Option<blocking::Connection>>,
    shared: Shared,
}

impl Machine {
    /// `None` where there is no dbus-daemon: the test is skipped aloud.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if !procs::has("dbus-daemon") {
            procs::skip(test, "it takes dbus-daemon");
            return None;
        }
        let setup = Setup::new(test);
        let configs = setup.directory.join("etc");
        fs::create_dir(&configs).unwrap();
        let socket = setup.directory.join("bus");
        let busconfig = format!(
            "<busconfig><type>session</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>\n\
             <policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/>\n\
             <allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>\n",
            socket.display()
        );
        let config = setup.write("bus.conf", &busconfig);
        let mut command = Command::new("dbus-daemon");
        command
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile"]);
        let daemon = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The file is there before anybody listens.
        eventually("the bus", || UnixStream::connect(&socket).ok());
        let runtime = setup.runtime.clone();
        let (connection, shared) = (Mutex::default(), Shared::default());
        let machine = Self { setup, runtime, configs, daemon, connection, shared };
        machine.join();
        machine.journal(&[]);
        Some(machine)
    }

    /// The lines that `journalctl` gives from now on; how it was asked is in `bin/asked`.
    pub(crate) fn journal(&self, lines: &[&str]) {
        let entry = |text| json!({"__REALTIME_TIMESTAMP": "1000", "MESSAGE": text}).to_string();
        let entries: Vec<String> = lines.iter().map(entry).collect();
        let asked = "echo \"$*\" > \"$(dirname \"$0\")/asked\"";
        let entries = entries.join("\n");
        self.program("journalctl", &format!("#!/bin/sh\n{asked}\ncat <<'END'\n{entries}\nEND\n"));
    }

    /// A program that stands before those of the machine.
    pub(crate) fn program(&self, name: &str, text: &str) {
        let directory = self.setup.directory.join("bin");
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A config, and its unit, which was never started.
    pub(crate) fn app(&self, name: &str, change: impl FnOnce(&mut Unit)) {
        self.config(name, "command = [\"sleep\", \"1000\"]\n");
        self.unit(name, change);
    }

    pub(crate) fn config(&self, name: &str, text: &str) {
        fs::write(self.configs.join(format!("{name}.toml")), text).unwrap();
    }

    /// A unit, or another state of one.
    pub(crate) fn unit(&self, app: &str, change: impl FnOnce(&mut Unit)) {
        let name = format!("pmr@{app}.service");
        let mut unit = Unit {
            load: "loaded",
            active: "inactive",
            sub: "dead",
            file: "disabled",
            result: "success",
            main_pid: 0,
            exit_code: 0,
            exit_status: 0,
            text: "",
            was_started: false,
            job: 0,
        };
        change(&mut unit);
        self.world().units.insert(name.clone(), unit);
        if let Some(connection) = self.connection.lock().unwrap().as_ref() {
            self.show(connection, &name);
        }
    }

    fn show(&self, connection: &blocking::Connection, name: &str) {
        let path = path_of(name);
        let server = connection.object_server();
        let object = || Object { name: name.to_owned(), shared: self.shared.clone() };
        server.at(path.as_str(), UnitObject(object())).unwrap();
        server.at(path.as_str(), ServiceObject(object())).unwrap();
    }

    /// From now on.
    pub(crate) fn answer(&self, answer: Answer) {
        self.world().answer = answer;
    }

    /// What was asked for so far, and forgets it.
    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.world().calls)
    }

    /// Whether every change said that a person may be asked.
    pub(crate) fn was_interactive(&self) -> bool {
        let world = self.world();
        !world.interactive.is_empty() && world.interactive.iter().all(|&it| it)
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.shared.0.lock().unwrap()
    }

    /// Comes onto the bus.
    pub(crate) fn join(&self) {
        let builder = Builder::address(self.address().as_str()).unwrap();
        let builder = builder.name("org.freedesktop.systemd1").unwrap();
        let connection =
            builder.serve_at(MANAGER_PATH, Systemd(self.shared.clone())).unwrap().build().unwrap();
        let names: Vec<String> = self.world().units.keys().cloned().collect();
        for name in &names {
            self.show(&connection, name);
        }
        *self.connection.lock().unwrap() = Some(connection);
    }

    /// Leaves the bus: there is one, and no systemd on it.
    pub(crate) fn leave(&self) {
        self.connection.lock().unwrap().take().unwrap().close().unwrap();
    }

    fn address(&self) -> String {
        format!("unix:path={}", self.setup.directory.join("bus").display())
    }

    /// Stops the bus for good.
    pub(crate) fn end_bus(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
        fs::remove_file(self.setup.directory.join("bus")).unwrap();
    }

    /// `pmr WORDS` on this machine.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.setup.binary());
        command.args(words).current_dir(&self.setup.directory);
        self.environment(&mut command);
        command
    }

    pub(crate) fn environment(&self, command: &mut Command) {
        let address = self.address();
        command.env("PMR_RUNTIME_DIR", &self.runtime).env("PMR_CONFIG_DIR", &self.configs);
        // A test that is not run by root has a user's service manager.
        command.env("DBUS_SYSTEM_BUS_ADDRESS", &address).env("DBUS_SESSION_BUS_ADDRESS", &address);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = [self.setup.directory.join("bin")].into_iter();
        let all = std::env::join_paths(own.chain(std::env::split_paths(&path))).unwrap();
        command.env("PATH", all);
    }

    /// Runs `pmr WORDS` to its end.
    pub(crate) fn pmr(&self, words: &[&str]) -> Done {
        self.setup.run(&mut self.command(words))
    }

    /// The same, which must end with this status.
    pub(crate) fn ends(&self, code: i32, words: &[&str]) -> Done {
        let done = self.pmr(words);
        assert_eq!(done.code, code, "{words:?}: {}{}", done.out, done.err);
        done
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may stand still, or be gone.
        drop(self.connection.lock().unwrap().take());
        procs::signal(self.daemon.id(), Signal::CONT);
        drop(self.daemon.kill());
        drop(self.daemon.wait());
    }
}

/// As `sd_bus_path_encode(3)` does it.
fn path_of(unit: &str) -> String {
    let encoded = unit.chars().map(|c| {
        if c.is_ascii_alphanumeric() { c.to_string() } else { format!("_{:02x}", u32::from(c)) }
    });
    format!("{MANAGER_PATH}/unit/{}", encoded.collect::<String>())
}

#[derive(Debug)]
struct Systemd(Shared);

impl Systemd {
    fn note(&self, call: String, header: &Header<'_>) -> MutexGuard<'_, World> {
        let mut world = self.0.0.lock().unwrap();
        world.calls.push(call);
        world.interactive.push(header.primary().flags().contains(Flags::AllowInteractiveAuth));
        world
    }

    /// A job, and how it ends: the verb's state where it is done.
    async fn job(
        &self,
        unit: &str,
        active: &'static str,
        verb: &str,
        header: Header<'_>,
        emitter: SignalEmitter<'_>,
    ) -> fdo::Result<OwnedObjectPath> {
        let (id, answer) = {
            let mut world = self.note(format!("{verb} {unit}"), &header);
            world.jobs += 1;
            let id = world.jobs;
            if let Some(unit) = world.units.get_mut(unit) {
                unit.job = id;
            }
            (id, world.answer)
        };
        let job = OwnedObjectPath::try_from(format!("{MANAGER_PATH}/job/{id}")).unwrap();
        match answer {
            Answer::DoneAtOnce => {
                end(&self.0, unit, active, "done");
                Self::job_removed(&emitter, id, job.clone(), unit, "done").await?;
            }
            Answer::EndsLater(result) => {
                let (shared, unit, job) = (self.0.clone(), unit.to_owned(), job.clone());
                let connection = emitter.connection().clone();
                let later = async move {
                    async_io::Timer::after(Duration::from_millis(300)).await;
                    end(&shared, &unit, active, result);
                    let emitter = SignalEmitter::new(&connection, MANAGER_PATH).unwrap();
                    Self::job_removed(&emitter, id, job, &unit, result).await.unwrap();
                };
                emitter.connection().executor().spawn(later, "the end of a job").detach();
            }
            Answer::NeverEnds => {}
            Answer::Vanishes => end(&self.0, unit, active, "done"),
            Answer::Denied => return Err(fdo::Error::AccessDenied("Permission denied".into())),
            Answer::NeedsPassword => {
                let text = "Interactive authentication required.".into();
                return Err(fdo::Error::InteractiveAuthorizationRequired(text));
            }
            Answer::Silence => futures_lite::future::pending().await,
        }
        Ok(job)
    }
}

/// What a job that ended so leaves.
fn end(shared: &Shared, unit: &str, active: &'static str, result: &str) {
    let mut world = shared.0.lock().unwrap();
    let Some(unit) = world.units.get_mut(unit) else { return };
    unit.job = 0;
    unit.was_started = true;
    match result {
        "done" => unit.active = active,
        "failed" => {
            (unit.active, unit.result) = ("failed", "exit-code");
            (unit.exit_code, unit.exit_status) = (1, 69);
        }
        _ => {}
    }
}

type Links = Vec<(String, String, String)>;

#[expect(clippy::needless_pass_by_value, reason = "the arguments are those of a D-Bus method")]
#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    fn subscribe(&self) {
        self.0.0.lock().unwrap().calls.push("Subscribe".to_owned());
    }

    async fn start_unit(
        &self,
        name: &str,
        mode: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> fdo::Result<OwnedObjectPath> {
        assert_eq!(mode, "replace");
        self.job(name, "active", "StartUnit", header, emitter).await
    }

    async fn stop_unit(
        &self,
        name: &str,
        mode: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> fdo::Result<OwnedObjectPath> {
        assert_eq!(mode, "replace");
        self.job(name, "inactive", "StopUnit", header, emitter).await
    }

    fn reset_failed_unit(&self, name: &str, #[zbus(header)] header: Header<'_>) {
        drop(self.note(format!("ResetFailedUnit {name}"), &header));
    }

    fn enable_unit_files(
        &self,
        files: Vec<String>,
        runtime: bool,
        force: bool,
        #[zbus(header)] header: Header<'_>,
    ) -> (bool, Links) {
        assert!(!runtime && !force);
        let mut world = self.note(format!("EnableUnitFiles {}", files.join(" ")), &header);
        (true, change_file(&mut world, &files[0], "enabled"))
    }

    fn disable_unit_files(
        &self,
        files: Vec<String>,
        runtime: bool,
        #[zbus(header)] header: Header<'_>,
    ) -> Links {
        assert!(!runtime);
        let mut world = self.note(format!("DisableUnitFiles {}", files.join(" ")), &header);
        change_file(&mut world, &files[0], "disabled")
    }

    fn reload(&self, #[zbus(header)] header: Header<'_>) {
        drop(self.note("Reload".to_owned(), &header));
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

/// The links that are made or removed, where there are any to be.
fn change_file(world: &mut World, unit: &str, state: &'static str) -> Links {
    match world.units.get_mut(unit) {
        Some(unit) if unit.file == state => Vec::new(),
        Some(known) => {
            known.file = state;
            vec![("symlink".to_owned(), format!("/etc/systemd/system/{unit}"), String::new())]
        }
        None => Vec::new(),
    }
}

#[derive(Debug)]
struct Object {
    name: String,
    shared: Shared,
}

impl Object {
    fn unit(&self) -> Unit {
        self.shared.0.lock().unwrap().units[&self.name].clone()
    }
}

#[derive(Debug)]
struct UnitObject(Object);

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl UnitObject {
    #[zbus(property)]
    fn load_state(&self) -> String {
        self.0.unit().load.to_owned()
    }

    #[zbus(property)]
    fn active_state(&self) -> String {
        self.0.unit().active.to_owned()
    }

    #[zbus(property)]
    fn sub_state(&self) -> String {
        self.0.unit().sub.to_owned()
    }

    #[zbus(property)]
    fn unit_file_state(&self) -> String {
        self.0.unit().file.to_owned()
    }

    #[zbus(property)]
    fn state_change_timestamp_monotonic(&self) -> u64 {
        u64::from(self.0.unit().was_started)
    }

    #[zbus(property)]
    fn inactive_exit_timestamp_monotonic(&self) -> u64 {
        u64::from(self.0.unit().was_started)
    }

    #[zbus(property)]
    fn job(&self) -> (u32, OwnedObjectPath) {
        (self.0.unit().job, OwnedObjectPath::try_from("/").unwrap())
    }
}

#[derive(Debug)]
struct ServiceObject(Object);

#[zbus::interface(name = "org.freedesktop.systemd1.Service")]
impl ServiceObject {
    #[zbus(property)]
    fn result(&self) -> String {
        self.0.unit().result.to_owned()
    }

    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> u32 {
        self.0.unit().main_pid
    }

    #[zbus(property)]
    fn exec_main_code(&self) -> i32 {
        self.0.unit().exit_code
    }

    #[zbus(property)]
    fn exec_main_status(&self) -> i32 {
        self.0.unit().exit_status
    }

    #[zbus(property)]
    fn status_text(&self) -> String {
        self.0.unit().text.to_owned()
    }
}
