//! The supervisor killed between any two of its effects.
//!
//! strace stops it at the entry of the n-th system call of a kind and kills it there, so each
//! effect on the world is a fail-point, and the product needs no hooks. Whatever the supervisor was
//! at, the next one must end with the same result: the wanted instances, each once, and nothing
//! left over.

use std::fs;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::app::{App, Setup, State, free_port, python};
use crate::load::{Request, get};
use crate::procs::{self, skip};

/// The calls by which the supervisor changes the world, or learns what it acts on.
const EFFECTS: [&str; 14] = [
    "pwrite64",
    "sendmsg",
    "clone3",
    "mkdir",
    "rmdir",
    "unlink",
    "write",
    "bind",
    "rename",
    "read",
    "openat",
    "close",
    "epoll_ctl",
    "pidfd_send_signal",
];

/// strace on the supervisor, which kills it at the n-th call of a kind.
struct Trap {
    strace: Child,
    supervisor: u32,
}

impl Trap {
    fn set(app: &App, call: &str, count: u32) -> Self {
        Self::inject(app, call, &format!("signal=SIGKILL:when={count}"))
    }

    /// strace on the supervisor, with something else than its death.
    fn inject(app: &App, call: &str, what: &str) -> Self {
        let supervisor = app.eventually("a supervisor", || app.supervisor());
        let inject = format!("inject={call}:{what}");
        let strace = Command::new("strace")
            .args(["-qq", "-o", "/dev/null", "-p", &supervisor.to_string()])
            .args(["-e", &format!("trace={call}"), "-e", &inject])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let trap = Self { strace, supervisor };
        app.eventually("the trap is set", || {
            let status = fs::read_to_string(format!("/proc/{supervisor}/status"));
            // It may go off before it is seen: a supervisor says every so often that it lives.
            let is_traced = status.is_ok_and(|it| !it.contains("TracerPid:\t0\n"));
            (is_traced || !procs::lives(supervisor)).then_some(())
        });
        trap
    }

    /// Whether it went off; from now on it does not any more.
    fn disarm(mut self) -> bool {
        if procs::lives(self.supervisor) {
            self.strace.kill().unwrap();
            self.strace.wait().unwrap();
            return !procs::lives(self.supervisor);
        }
        self.strace.wait().unwrap();
        true
    }
}

/// A link that fails while the keeper lives is one supervisor's trouble: the next one adopts.
#[test]
fn a_link_that_fails_costs_no_instance() {
    if !is_possible("a_link_that_fails_costs_no_instance") {
        return;
    }
    let app = sleepers("badlink");
    let before = app.online(2);
    let trap = Trap::inject(&app, "sendmsg", "error=ENOBUFS:when=1");
    let supervisor = trap.supervisor;
    app.eventually("another supervisor", || app.supervisor().filter(|&pid| pid != supervisor));
    trap.disarm();
    let after = app.online(2);
    assert_eq!(after.pids(), before.pids());
    assert_whole(&app, &after, "after the link has failed");
}

/// A server of one thread that takes its time when it is asked to, and dies of what accept(2) does
/// not fail with on a socket that listens.
const STALLS: &str = "
import selectors, socket, time
listener = socket.socket(fileno=3)
listener.setblocking(False)
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)
while True:
    selector.select()
    try:
        client, _ = listener.accept()
    except BlockingIOError:
        continue
    client.setblocking(True)
    if b'/stall' in client.recv(4096):
        time.sleep(0.8)
    client.sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\nanswered')
    client.close()
";

/// Two of these behind one port; `None` where connections cannot be steered, or moved.
fn stallers(test: &str, port: u16) -> Option<App> {
    if !is_possible(test) || procs::own_cgroup().is_none() {
        skip(test, "no cgroup v2 group can be made here");
        return None;
    }
    let config = format!(
        "{}listen = {port}\ninstances = 2\nexec_mode = \"cluster\"\nready = \"exec\"\n",
        python(STALLS)
    );
    let app = Setup::new("stallers").config(&config).start();
    if app.online(2).0["balance"]["steered"].as_bool() == Some(true) {
        return Some(app);
    }
    skip(test, "bpf(2) is not permitted here");
    None
}

/// Has one of them stall, and clients wait for it. Each of them must be answered.
fn stall(port: u16) -> Vec<Request> {
    let paths = ["/stall"].into_iter().chain(["/"; 8]);
    paths.map(|path| Request::send(port, path)).collect()
}

/// Whoever goes on in the middle of the move of its queue does not see it.
#[test]
fn a_queue_is_moved_while_its_instance_stands_still() {
    let port = free_port();
    let Some(app) = stallers("a_queue_is_moved_while_its_instance_stands_still", port) else {
        return;
    };
    let before = app.online(2);
    // It goes on in this second.
    let trap = Trap::inject(&app, "shutdown", "delay_exit=1000000");
    let clients = stall(port);
    app.eventually("it is found", || app.setup.log().contains("does not accept").then_some(()));
    for client in clients {
        client.answer().unwrap_or_else(|it| panic!("{it}\n{}", app.setup.log()));
    }
    trap.disarm();
    for _ in 0..20 {
        get(port, "/").unwrap();
    }
    let after = app.online(2);
    assert_eq!(after.pids(), before.pids(), "{}", app.setup.log());
}

/// A supervisor that dies in the middle of it leaves nobody standing, and nobody waiting.
#[test]
fn a_queue_that_is_moved_half_way_is_moved_by_the_next_supervisor() {
    let port = free_port();
    let test = "a_queue_that_is_moved_half_way_is_moved_by_the_next_supervisor";
    let Some(app) = stallers(test, port) else { return };
    let before = app.online(2);
    let trap = Trap::set(&app, "listen", 1);
    let clients = stall(port);
    for client in clients {
        client.answer().unwrap_or_else(|it| panic!("{it}\n{}", app.setup.log()));
    }
    assert!(trap.disarm(), "the queue was moved by the first supervisor");
    for _ in 0..20 {
        get(port, "/").unwrap();
    }
    let after = app.online(2);
    assert_eq!(after.pids(), before.pids(), "{}", app.setup.log());
}

/// Who binds while it is looked who listens is no stranger.
#[test]
fn an_instance_that_binds_meanwhile_is_not_taken_for_another_app() {
    let test = "an_instance_that_binds_meanwhile_is_not_taken_for_another_app";
    if !is_possible(test) || procs::own_cgroup().is_none() {
        return skip(test, "no cgroup v2 group can be made here");
    }
    // One binds after the other, so that somebody does at each moment of a look.
    let server = "import os, socketserver, time\n\
                  time.sleep(int(os.environ['NODE_APP_INSTANCE']) * 0.12)\n\
                  at = ('', int(os.environ['PORT']))\n\
                  socketserver.TCPServer(at, socketserver.BaseRequestHandler).serve_forever()";
    let port = free_port();
    let config = format!("{}port = {port}\nexec_mode = \"cluster\"\n", python(server));
    let app = Setup::new("meanwhile").config(&config).start();
    if app.online(1).0["balance"]["steered"].as_bool() != Some(true) {
        return skip(test, "bpf(2) is not permitted here");
    }
    let trap = Trap::inject(&app, "socket", "delay_enter=100000");
    app.command("scale", &["8"]);
    app.online(8);
    trap.disarm();
    assert!(!app.setup.log().contains("alone listen"), "{}", app.setup.log());
}

/// With the keeper goes whoever could reap and report: the supervisor ends it all.
#[test]
fn a_keeper_that_is_killed_leaves_nothing() {
    let mut app = sleepers("nokeeper");
    app.online(2);
    app.signal(Signal::KILL);
    assert_eq!(app.wait(), -1);
    app.eventually("nothing runs", || app.processes().is_empty().then_some(()));
    app.eventually("no supervisor", || {
        procs::with_variable(&app.setup.mark()).is_empty().then_some(())
    });
    app.assert_nothing_left();
}

fn is_possible(test: &str) -> bool {
    if !procs::has("strace") {
        skip(test, "there is no strace");
    } else if !procs::is_root() {
        skip(test, "only root may trace a process that is not its child");
    } else {
        return true;
    }
    false
}

/// Exactly the instances that status shows run, each in a group of its own.
fn assert_whole(app: &App, state: &State, point: &str) {
    app.eventually(&format!("{point}: each instance once"), || {
        let mut running = app.processes();
        let mut shown = state.pids();
        running.sort_unstable();
        shown.sort_unstable();
        (running == shown).then_some(())
    });
    let Some(home) = app.home().filter(|home| home.is_dir()) else { return };
    app.eventually(&format!("{point}: each group once"), || {
        let groups = fs::read_dir(&home).ok()?.flatten();
        let groups = groups.filter(|it| it.file_name().to_string_lossy().starts_with("i-"));
        (groups.count() == state.len()).then_some(())
    });
}

/// Does `act` with the supervisor killed at each fail-point on the way, of each kind of call, until
/// one is not reached any more. `counts` thins out the points of kinds with many.
fn at_every_point(
    app: &App,
    counts: impl Fn(u32) -> u32,
    act: impl Fn(&App, &State),
    settle: impl Fn(&App, &State, &str) -> State,
) -> u32 {
    let mut deaths = 0;
    for call in EFFECTS {
        let mut count = 1;
        loop {
            let point = format!("{call} {count}");
            let before = app.online(2);
            let trap = Trap::set(app, call, count);
            act(app, &before);
            let after = settle(app, &before, &point);
            let sprung = trap.disarm();
            assert_whole(app, &after, &point);
            if !sprung {
                break;
            }
            deaths += 1;
            count = counts(count);
        }
    }
    deaths
}

fn sleepers(test: &str) -> App {
    let config = "command = [\"sleep\", \"1000000\"]\ninstances = 2\nmax_restarts = 1000\n\
                min_uptime = 100\nkill_timeout = \"5s\"\nstable_for = 10\n";
    Setup::new(test).config(config).start()
}

#[test]
fn a_crash_is_followed_by_one_restart_wherever_the_supervisor_dies() {
    if !is_possible("a_crash_is_followed_by_one_restart_wherever_the_supervisor_dies") {
        return;
    }
    let app = sleepers("crashpoints");
    let deaths = at_every_point(
        &app,
        |count| count + 1,
        |_, before| assert!(procs::signal(before.pid(0).unwrap(), Signal::KILL)),
        |app, before, point| {
            let after = app.state(&format!("{point}: slot 0 is back"), |state| {
                state.len() == 2
                    && state.word(0) == "online"
                    && state.word(1) == "online"
                    && state.pid(0) != before.pid(0)
            });
            assert_eq!(after.pid(1), before.pid(1), "{point}: slot 1 was not touched");
            assert_eq!(after.number(0, "restarts"), before.number(0, "restarts") + 1, "{point}");
            after
        },
    );
    assert!(deaths >= 20, "the trap went off {deaths} times only");
}

/// `READY=1` is said once, and nobody says it again for a supervisor that died with it.
#[test]
fn a_readiness_is_heard_wherever_the_supervisor_dies() {
    if !is_possible("a_readiness_is_heard_wherever_the_supervisor_dies") {
        return;
    }
    let notifier = python(
        "import os, socket, time\n\
         s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
         s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])\n\
         time.sleep(1000000)",
    );
    let rules = "instances = 2\nmax_restarts = 1000\nmin_uptime = 100\nready = \"notify\"\n\
                 listen_timeout = \"1h\"\n";
    let app = Setup::new("readypoints").config(&format!("{notifier}{rules}")).start();
    for count in 1..16 {
        let before = app.online(2);
        let trap = Trap::set(&app, "pwrite64", count);
        assert!(procs::signal(before.pid(0).unwrap(), Signal::KILL));
        app.state(&format!("pwrite64 {count}: slot 0 is back"), |state| {
            state.len() == 2 && state.word(0) == "online" && state.pid(0) != before.pid(0)
        });
        if !trap.disarm() {
            assert!(count > 3, "a restart is recorded in several steps");
            return;
        }
    }
}

#[test]
fn a_stop_and_a_start_end_well_wherever_the_supervisor_dies() {
    if !is_possible("a_stop_and_a_start_end_well_wherever_the_supervisor_dies") {
        return;
    }
    let app = sleepers("stoppoints");
    let name = app.setup.name.clone();
    // A wish is lost with the supervisor that heard it, so it is said until it is done.
    let until_done = |app: &App, verb: &str, point: &str| {
        app.eventually(&format!("{point}: {verb} is done"), || {
            (app.pmr(&[verb, &name]).code == 0).then_some(())
        });
    };
    let deaths = at_every_point(
        &app,
        |count| count + 1 + count / 2,
        |app, _| drop(app.pmr(&["stop", &name, "--no-wait"])),
        |app, _, point| {
            until_done(app, "stop", point);
            app.eventually(&format!("{point}: nothing runs"), || {
                app.processes().is_empty().then_some(())
            });
            until_done(app, "start", point);
            app.online(2)
        },
    );
    assert!(deaths >= 20, "the trap went off {deaths} times only");
}
