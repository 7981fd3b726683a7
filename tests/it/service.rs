//! The main process of a unit, under a service manager that the test plays.

use std::io::{IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::Signal;

use crate::app::{App, Setup, demo, free_port, inherit, python};
use crate::load::get;
use crate::procs::{self, PATIENCE_MS};

/// Ready when the file is there, and stops when asked to.
const READY_BY_FILE: &str = "import os, signal, socket, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while not os.path.exists('go'): time.sleep(0.02)
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])
while True: signal.pause()";

/// A service manager's end of what is told it.
struct Systemd {
    socket: UnixDatagram,
    /// What pmr printed.
    log: PathBuf,
    /// All that was told so far.
    told: Vec<String>,
    /// The copies that it was given, by their names.
    stored: Vec<(String, OwnedFd)>,
}

impl Systemd {
    fn new(setup: &Setup) -> Self {
        let socket = UnixDatagram::bind(setup.directory.join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(PATIENCE_MS))).unwrap();
        let log = setup.directory.join("stderr");
        Self { socket, log, told: Vec::new(), stored: Vec::new() }
    }

    /// What a unit's main process is given. The heartbeat of the supervisor is due each 166 ms.
    fn environment(setup: &Setup) -> impl FnOnce(&mut Command) + use<> {
        let path = setup.directory.join("notify");
        |command| {
            command.env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", "2000000");
            command.env("FDSTORE", "64").env("MAINPID", "1").env("JOURNAL_STREAM", "1:2");
            command.env("MEMORY_PRESSURE_WATCH", "/x").env("CREDENTIALS_DIRECTORY", "/x");
            command.env("SYSTEMD_EXEC_PID", "1");
        }
    }

    /// The next datagram.
    fn hear(&mut self) -> String {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let buffers = &mut [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = rustix::net::recvmsg(&self.socket, buffers, &mut control, flags);
        let message = message.unwrap_or_else(|error| {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            panic!("{error} after {:?}\n{log}", self.told)
        });
        let count = message.bytes;
        let text = String::from_utf8(bytes[..count].to_vec()).unwrap();
        let fds: Vec<OwnedFd> = control
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
                _ => Vec::new(),
            })
            .collect();
        if let Some(name) = text.strip_prefix("FDSTORE=1\nFDNAME=") {
            self.stored.extend(fds.into_iter().map(|fd| (name.to_owned(), fd)));
        } else {
            assert!(fds.is_empty(), "{text}");
        }
        self.told.push(text.clone());
        text
    }

    /// Hears until this is told, as the whole or the beginning of a datagram.
    fn until(&mut self, text: &str) {
        while !self.hear().starts_with(text) {}
    }

    fn count(&self, text: &str) -> usize {
        self.told.iter().filter(|told| told.starts_with(text)).count()
    }
}

/// `pmr keeper NAME` to its end.
fn keeper(setup: &Setup, name: &str) -> (i32, String) {
    let mut command = Command::new(setup.binary());
    command.args(["keeper", name]).env("PMR_CONFIG_DIR", &setup.directory);
    command.env("PMR_RUNTIME_DIR", &setup.runtime);
    let done = setup.run(&mut command);
    (done.code, done.err)
}

/// Starts the app again with these copies, as the service manager does: `name` is that of its
/// standard input, which becomes the first of them; then follows one of the name `junk`.
fn start_with_stored(setup: Setup, name: &str, fd: OwnedFd) -> App {
    let script = "LISTEN_PID=$$ exec \"$@\" 3<&0 4</dev/null </dev/null";
    let environment = Systemd::environment(&setup);
    let names = format!("{name}:junk");
    setup.before(&["sh", "-c", script, "sh"]).serve_with(|command| {
        environment(command);
        command.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", names).stdin(Stdio::from(fd));
    })
}

#[test]
fn a_name_without_a_usable_config_ends_with_78_and_one_line() {
    let setup = Setup::new("unit-config");
    for (name, why) in [("Web", "not 'W'"), ("a/b", "without '/'"), ("nobody", "nobody.toml")] {
        let (code, err) = keeper(&setup, name);
        assert_eq!(code, 78, "{err}");
        assert!(err.starts_with("pmr: ") && err.lines().count() == 1, "{err}");
        assert!(err.contains(why), "{err}");
    }
    setup.write("broken.toml", "comand = [\"true\"]\n");
    let (code, err) = keeper(&setup, "broken");
    assert_eq!(code, 78, "{err}");
    assert!(err.contains("comand"), "{err}");
}

#[test]
fn what_a_killed_keeper_left_is_taken_over() {
    let port = free_port();
    let setup = Setup::new("unit-left").config(&demo(port, 1));
    let left = setup.runtime.join(&setup.name);
    std::fs::create_dir_all(&left).unwrap();
    for socket in ["io.pmr.App", "notify.1"] {
        drop(std::os::unix::net::UnixListener::bind(left.join(socket)).unwrap());
    }
    std::fs::write(left.join("lock"), "1\n").unwrap();
    let mut app = setup.serve_with(|_| ());
    app.online(1);
    get(port, "/").unwrap();
    app.signal(Signal::TERM);
    assert_eq!(app.wait(), 0);
    app.assert_nothing_left();
}

#[test]
fn the_service_manager_is_told_of_the_whole_life_of_an_app() {
    let more = "ready = \"notify\"\ninstances = 2\nlisten_timeout = \"60s\"\n";
    let setup = Setup::new("unit-told").config(&(python(READY_BY_FILE) + more));
    let mut systemd = Systemd::new(&setup);
    let environment = Systemd::environment(&setup);
    let mut app = setup.serve_with(environment);
    systemd.until("STATUS=starting: 0/2 online, 2 launching, gen 2, 0 restarts/h");
    while systemd.count("EXTEND_TIMEOUT_USEC=") < 3 || systemd.count("WATCHDOG=1") < 3 {
        systemd.hear();
    }
    // Whoever supervises, the first start is no further.
    app.kill_supervisor();
    systemd.until("STATUS=supervisor (pid");
    systemd.until("STATUS=starting: 0/2 online");
    systemd.until("EXTEND_TIMEOUT_USEC=");
    assert_eq!(systemd.count("READY=1"), 0, "{:?}", systemd.told);
    app.setup.write("go", "");
    systemd.until("READY=1");
    systemd.until("STATUS=2/2 online, gen 2, 0 restarts/h");
    app.kill_supervisor();
    systemd.until("READY=1");
    systemd.until("STATUS=2/2 online, gen 2, 0 restarts/h");
    // Nothing is waited for now.
    let extended = systemd.count("EXTEND_TIMEOUT_USEC=");
    let pings = systemd.count("WATCHDOG=1");
    while systemd.count("WATCHDOG=1") < pings + 3 {
        systemd.hear();
    }
    assert_eq!(systemd.count("EXTEND_TIMEOUT_USEC="), extended, "{:?}", systemd.told);
    app.command("reload", &["--wait"]);
    systemd.until("RELOADING=1\nMONOTONIC_USEC=");
    systemd.until("STATUS=reloading: ");
    systemd.until("READY=1");
    let [pid] = app.status().pids()[..1] else { panic!("no instance") };
    for name in ["NOTIFY_SOCKET", "PMR_APP"] {
        assert!(procs::variable(pid, name).is_some(), "{name}");
    }
    let of_manager = app.setup.directory.join("notify");
    assert_ne!(procs::variable(pid, "NOTIFY_SOCKET").as_deref(), of_manager.to_str());
    for name in [
        "WATCHDOG_USEC",
        "FDSTORE",
        "MAINPID",
        "JOURNAL_STREAM",
        "MEMORY_PRESSURE_WATCH",
        "CREDENTIALS_DIRECTORY",
        "SYSTEMD_EXEC_PID",
        "LISTEN_FDS",
    ] {
        assert_eq!(procs::variable(pid, name), None, "{name}");
    }
    app.signal(Signal::TERM);
    systemd.until("STOPPING=1");
    systemd.until("STATUS=stopping: ");
    systemd.until("EXTEND_TIMEOUT_USEC=");
    assert_eq!(app.wait(), 0);
    app.assert_nothing_left();
}

#[test]
fn all_slots_given_up_end_the_unit_with_69() {
    let setup = Setup::new("unit-69").config("command = [\"false\"]\nmax_restarts = 2\n");
    let mut systemd = Systemd::new(&setup);
    let environment = Systemd::environment(&setup);
    let mut app = setup.serve_with(environment);
    assert_eq!(app.wait(), 69);
    systemd.until("STATUS=stopping: 0/1 online, 1 errored, gen 2, 1 restarts/h");
    app.assert_nothing_left();
}

#[test]
fn clients_of_a_killed_keeper_wait_for_the_next_one() {
    let port = free_port();
    let setup = Setup::new("unit-stored").config(&inherit(port, 2));
    let config = setup.read(&format!("{}.toml", setup.name));
    let mut systemd = Systemd::new(&setup);
    let environment = Systemd::environment(&setup);
    let mut app = setup.serve_with(environment);
    systemd.until("READY=1");
    let (name, fd) = systemd.stored.pop().unwrap();
    assert!(name.starts_with("listen-") && name.ends_with(&format!("%3A{port}")), "{name}");
    app.signal(Signal::KILL);
    assert_eq!(app.wait(), -1);
    app.eventually("its instances end with it", || app.processes().is_empty().then_some(()));
    // Nobody is there, and nobody is refused.
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();

    let again = Setup::new("unit-stored").config(&config);
    let mut systemd = Systemd::new(&again);
    let again = start_with_stored(again, &name, fd);
    systemd.until("FDSTOREREMOVE=1\nFDNAME=junk");
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("instance"), "{answer}");
    systemd.until("READY=1");
    assert_eq!(systemd.count("FDSTOREREMOVE=1"), 1, "{:?}", systemd.told);
    let pid = again.online(2).pids()[0];
    assert_eq!(procs::variable(pid, "LISTEN_FDS").as_deref(), Some("1"));
    assert_eq!(procs::variable(pid, "LISTEN_PID"), Some(pid.to_string()));
}

#[test]
fn a_stored_socket_that_the_config_does_not_name_is_closed_at_once() {
    let port = free_port();
    let setup = Setup::new("unit-dropped").config(&inherit(port, 1));
    let mut systemd = Systemd::new(&setup);
    // The service manager holds it still while the app is to listen on all addresses.
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let held = TcpListener::bind(address).unwrap();
    let name = format!("listen-127.0.0.1%3A{port}");
    let fd = held.try_clone().unwrap().into();
    let app = start_with_stored(setup, &name, fd);
    systemd.until(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    app.online(1);
    assert!(get(port, "/").unwrap().contains("instance"));
    drop(held);
}
