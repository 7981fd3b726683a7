//! One app of the fixture under `pmr run`, and who answers for it.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::app::{App, Setup, State, free_port};
use crate::load::get;
use crate::nodes::{self, Node};
use crate::procs::{self, PATIENCE_MS};

/// The apps and their clients.
const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/node-apps");

/// How many are asked at first, and after one instance was killed.
const ASKED: [usize; 2] = [20, 10];

/// What the log of an app that goes well has not.
const ODD: [&str; 5] = ["EADDRINUSE", "cannot", "not balanced", "gets no socket", "older pmr"];

/// On a machine that is too busy an instance may seem to hang, and is left out for a while: who is
/// asked then is asked again, so often.
const TRIES: usize = 10;

/// Who has answered, as instance and process.
pub(super) struct Answers {
    /// Of addresses where the two take turns.
    pub(super) in_turn: Vec<Vec<String>>,
    /// Where they share a queue.
    pub(super) by_any: Vec<String>,
}

impl Answers {
    pub(super) fn in_turn(answers: Vec<String>) -> Self {
        Self { in_turn: vec![answers], by_any: Vec::new() }
    }
}

/// An app, and what is expected of it.
pub(super) struct Case {
    /// What runs it, as lines of its config.
    pub(super) runs: &'static str,
    /// How it is to get its sockets.
    pub(super) adapter: &'static str,
    /// Which versions, as major and minor, can run it.
    pub(super) knows: fn((u32, u32)) -> bool,
    /// Has it answer so often at each of its addresses.
    pub(super) ask: fn(&Running, usize) -> Answers,
    /// Another process of the instance answers than its first one.
    pub(super) is_launcher: bool,
}

/// One that Node runs.
pub(super) const NODE: Case = Case {
    runs: "",
    adapter: "node",
    knows: |_| true,
    ask: |running, count| Answers::in_turn(running.ask(running.port, count)),
    is_launcher: false,
};

/// One that something runs that starts Node.
pub(super) const BIND: Case = Case { adapter: "bind", is_launcher: true, ..NODE };

/// A directory with the apps.
pub(super) fn with_apps(name: &str) -> Setup {
    let setup = Setup::new(name);
    let mut copy = Command::new("cp");
    copy.args(["-r", &format!("{FIXTURE}/.")]).arg(&setup.directory);
    assert!(copy.status().unwrap().success());
    setup
}

/// A case that runs.
pub(super) struct Running {
    app: App,
    node: Node,
    /// `PORT`.
    pub(super) port: u16,
    /// `ADMIN_PORT`.
    pub(super) second: u16,
}

/// Tries a case with each version of Node that there is and that can run it.
pub(super) fn with_each_version(test: &str, case: &Case) {
    with_each(test, case, nodes::all(test));
}

/// Tries a case with Bun.
pub(super) fn with_bun(test: &str, case: &Case) {
    let bun = nodes::other(test, "bun/node_modules/@oven/bun-linux-x64/bin/bun");
    with_each(test, case, bun.into_iter().collect());
}

/// Tries a case with Deno.
pub(super) fn with_deno(test: &str, case: &Case) {
    let deno = nodes::other(test, "deno/node_modules/@deno/linux-x64-glibc/deno");
    with_each(test, case, deno.into_iter().collect());
}

fn with_each(test: &str, case: &Case, nodes: Vec<Node>) {
    if !procs::is_root() || procs::own_cgroup().is_none() {
        return procs::skip(test, "a hook at bind takes root and a cgroup");
    }
    let Some(packages) = nodes::packages(test) else { return };
    for node in nodes {
        if !(case.knows)((node.major, node.minor)) {
            continue;
        }
        eprintln!("with {} {}", node.binary.display(), node.major);
        let name = format!("apps-{}", node.major);
        let running = Running::start(&name, case, node, &packages);
        if running.is_steered() {
            running.assert_balanced(case);
        } else {
            return procs::skip(test, "bpf(2) is not permitted here");
        }
    }
}

impl Running {
    fn start(name: &str, case: &Case, node: Node, packages: &Path) -> Self {
        let (port, second) = (free_port(), free_port());
        let setup = with_apps(name);
        symlink(packages, setup.directory.join("node_modules")).unwrap();
        if case.runs.contains("https") {
            make_certificate(&setup.directory);
        }
        let runs = case.runs.replace("DIRECTORY", setup.directory.to_str().unwrap());
        let address =
            if runs.contains("listen =") { String::new() } else { format!("port = {port}") };
        let config = format!(
            "{runs}\n{address}\ninstances = 2\nmin_uptime = 100\nkill_timeout = '5s'\n\
             env = {{ ADMIN_PORT = '{second}' }}\n"
        );
        let commands = packages.join(".bin");
        let path = node.path();
        let path = std::env::join_paths([commands].into_iter().chain(std::env::split_paths(&path)));
        let app = setup.config(&config).variable("PATH", path.unwrap()).start();
        let running = Self { app, node, port, second };
        running.await_online(2);
        running
    }

    /// How often pmr has said something.
    fn said(&self, text: &str) -> usize {
        self.app.setup.read("stderr").matches(text).count()
    }

    /// Waits until so many instances have come online since the start. What pmr prints is cheaper
    /// to look at than what it answers.
    fn await_online(&self, count: usize) {
        let online = || (self.said(" online after ") >= count).then_some(());
        self.app.eventually("all are online", online);
    }

    fn is_steered(&self) -> bool {
        let balance = &self.app.status().0["balance"];
        balance["steered"] == true || balance["method"] == "shared"
    }

    fn assert_balanced(&self, case: &Case) {
        let before = self.app.online(2);
        assert_eq!(before.0["balance"]["adapter"], case.adapter, "{}", self.app.setup.log());
        self.assert_answers(case, ASKED[0], &before);
        assert_eq!([before.number(0, "restarts"), before.number(1, "restarts")], [0, 0]);
        if self.node.is_installed() {
            self.app.kill_supervisor();
            let goes_on = || (self.said("instances that go on: 2") > 0).then_some(());
            self.app.eventually("another supervisor", goes_on);
            self.assert_answers(case, ASKED[1], &before);
        }
        let victim = before.pid(0).unwrap();
        assert!(procs::signal(victim, Signal::KILL));
        self.await_online(3);
        let after = self.app.online(2);
        assert_ne!(after.pid(0), Some(victim));
        assert_eq!(after.pid(1), before.pid(1), "{}", self.app.setup.log());
        self.assert_answers(case, ASKED[1], &after);
        let log = self.app.setup.log();
        for odd in ODD {
            assert!(!log.contains(odd), "{odd}: {log}");
        }
    }

    fn assert_answers(&self, case: &Case, count: usize, state: &State) {
        let answers = self.answers(case, count);
        for in_turn in &answers.in_turn {
            let slots: Vec<&str> = in_turn.iter().filter_map(|it| it.split(' ').next()).collect();
            let two: BTreeSet<&&str> = slots.iter().collect();
            let takes_turns = two.len() == 2 && slots.windows(2).all(|pair| pair[0] != pair[1]);
            assert!(takes_turns, "{in_turn:?}\n{}", self.app.setup.log());
        }
        for answer in answers.in_turn.iter().flatten().chain(&answers.by_any) {
            let (slot, pid) = answer.split_once(' ').unwrap();
            let (slot, pid): (usize, u32) = (slot.parse().unwrap(), pid.parse().unwrap());
            let own = state.pid(slot).unwrap();
            let is_own = if case.is_launcher { is_below(pid, own) } else { pid == own };
            assert!(is_own, "{answer}: {own} is the process of slot {slot}");
        }
    }

    /// The answers of two instances that both accept.
    fn answers(&self, case: &Case, count: usize) -> Answers {
        for _ in 0..TRIES {
            let stalls = self.said("does not accept");
            let answers = (case.ask)(self, count);
            if self.said("does not accept") == stalls {
                return answers;
            }
            self.app.eventually("all are given connections", || {
                let back = self.said("is given connections again");
                (back == self.said("does not accept")).then_some(())
            });
        }
        panic!("they do not accept\n{}", self.app.setup.log())
    }

    /// Asks by HTTP.
    pub(super) fn ask(&self, port: u16, count: usize) -> Vec<String> {
        let ask = || get(port, "/").unwrap_or_else(|it| panic!("{it}\n{}", self.app.setup.log()));
        (0..count).map(|_| ask()).collect()
    }

    /// The lines that a client prints, run by the same version of Node.
    pub(super) fn client(&self, script: &str, count: usize) -> Vec<String> {
        let mut command = Command::new(&self.node.binary);
        let script = self.app.setup.directory.join("clients").join(script);
        command.arg(script).args([self.port.to_string(), count.to_string()]);
        let done = self.app.setup.run(&mut command);
        assert_eq!(done.code, 0, "{}{}\n{}", done.out, done.err, self.app.setup.log());
        done.out.lines().map(str::to_owned).collect()
    }

    /// Asks once at `app.sock`.
    pub(super) fn ask_unix(&self) -> String {
        let mut stream = UnixStream::connect(self.app.setup.directory.join("app.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(PATIENCE_MS))).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: it\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        body.to_owned()
    }

    /// Sends a datagram, and returns who answers it.
    pub(super) fn ask_udp(&self) -> String {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(PATIENCE_MS))).unwrap();
        socket.send_to(b"hello", SocketAddr::from(([127, 0, 0, 1], self.port))).unwrap();
        let mut room = [0; 64];
        let count = socket.recv(&mut room).unwrap();
        let text = String::from_utf8_lossy(&room[..count]).into_owned();
        text.strip_suffix(" hello").unwrap().to_owned()
    }
}

/// Whether a process is this one, or was started by it or by what it started.
fn is_below(pid: u32, ancestor: u32) -> bool {
    pid == ancestor || procs::children(ancestor).into_iter().any(|child| is_below(pid, child))
}

fn make_certificate(directory: &Path) {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-nodes", "-subj", "/CN=localhost", "-newkey", "ec"]);
    openssl.args(["-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    openssl.args(["-keyout", "key.pem", "-out", "cert.pem"]);
    let made = openssl.current_dir(directory).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
