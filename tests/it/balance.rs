//! One port, several instances: who gets a connection, and that none is ever lost.

use std::collections::BTreeSet;

use rustix::process::Signal;

use crate::app::{App, Setup, demo, free_port, inherit, python};
use crate::load::{Load, Request, get};
use crate::procs;

/// The demo's backend, which binds its port by itself.
fn bind(port: u16, instances: u16) -> String {
    demo(port, instances).replace("ready = \"exec\"\n", "")
}

/// An unmodified Node server.
const SERVER: &str = "const { env, pid } = process;
require('http')
  .createServer((request, response) => response.end(`${env.NODE_APP_INSTANCE} pid ${pid}, node`))
  .listen(env.PORT, () => console.log('listening'));
";

fn node(port: u16, instances: u16) -> String {
    format!(
        "script = \"server.js\"\ninstances = {instances}\nport = {port}\nkill_timeout = \"5s\"\n\
         stable_for = 100\n"
    )
}

/// How the instances get their sockets, and a config for it.
type Way = (&'static str, fn(u16, u16) -> String);

/// All ways, or those for which the machine has what it takes; the others are skipped aloud.
fn ways(test: &str) -> Vec<Way> {
    let mut ways: Vec<Way> = vec![("inherit", inherit)];
    if procs::is_root() && procs::own_cgroup().is_some() {
        ways.push(("bind", bind));
    } else {
        procs::skip(test, "a hook at bind takes root and a cgroup");
    }
    if procs::has("node") {
        ways.push(("node", node));
    } else {
        procs::skip(test, "there is no node");
    }
    ways
}

/// An app that is balanced in this way.
fn start(name: &str, (way, config): Way, port: u16, instances: u16, more: &str) -> App {
    let setup = Setup::new(&format!("{name}-{way}")).config(&(config(port, instances) + more));
    setup.write("server.js", SERVER);
    let app = setup.start();
    let state = app.online(instances.into());
    assert_eq!(state.0["balance"]["adapter"], way, "{}", app.setup.log());
    app
}

/// Whether connections can be steered here; where not, the test is skipped aloud.
fn can_steer(app: &App, test: &str) -> bool {
    let steered = app.status().0["balance"]["steered"].as_bool() == Some(true);
    if !steered {
        procs::skip(test, "bpf(2) is not permitted here");
    }
    steered
}

/// Who answers: instance and process id, as the demo's first page says it.
fn who(port: u16) -> String {
    let page = get(port, "/").unwrap();
    page.split(", ").next().unwrap_or_default().to_owned()
}

/// That a hundred rounds of connections have the same order.
fn assert_in_turn(port: u16, instances: usize, app: &App) {
    let first: Vec<String> = (0..instances).map(|_| who(port)).collect();
    let names: BTreeSet<&String> = first.iter().collect();
    assert_eq!(names.len(), instances, "{first:?}\n{}", app.setup.log());
    for round in 0..100 {
        for name in &first {
            assert_eq!(&who(port), name, "round {round} of {first:?}\n{}", app.setup.log());
        }
    }
}

#[test]
fn connections_go_to_the_instances_strictly_in_turn() {
    let test = "connections_go_to_the_instances_strictly_in_turn";
    for way in ways(test) {
        for instances in [2, 3, 4_u16] {
            let port = free_port();
            let app = start("turns", way, port, instances, "");
            if !can_steer(&app, test) {
                return;
            }
            assert_in_turn(port, instances.into(), &app);
            // A supervisor that dies changes nothing, and the next one goes on from there.
            app.kill_supervisor();
            assert_in_turn(port, instances.into(), &app);
            app.online(instances.into());
            assert_in_turn(port, instances.into(), &app);
        }
    }
}

#[test]
fn what_waits_for_one_that_dies_is_answered_by_the_others() {
    let test = "what_waits_for_one_that_dies_is_answered_by_the_others";
    for way in ways(test) {
        let port = free_port();
        let app = start("queues", way, port, 2, "max_restarts = 1000\nmin_uptime = 1\n");
        if !can_steer(&app, test) {
            return;
        }
        for round in 0..10 {
            let victim = app.online(2).pid(round % 2).unwrap();
            assert!(procs::signal(victim, Signal::STOP));
            app.eventually("it stands still", || procs::is_stopped(victim).then_some(()));
            // Every other one waits for somebody who has stopped; too short for a hang to be seen.
            let waiting: Vec<Request> = (0..50).map(|_| Request::send(port, "/")).collect();
            assert!(procs::signal(victim, Signal::KILL));
            let answered = waiting.into_iter().flat_map(Request::answer).count();
            assert_eq!(answered, 50, "{} round {round}\n{}", way.0, app.setup.log());
            app.eventually("its death", || (!procs::lives(victim)).then_some(()));
        }
    }
}

#[test]
fn who_comes_while_nobody_serves_waits_and_is_answered() {
    for way in ways("who_comes_while_nobody_serves_waits_and_is_answered") {
        let port = free_port();
        let app = start("parks", way, port, 2, "restart_delay = 500\nmax_restarts = 1000\n");
        for pid in app.online(2).pids() {
            assert!(procs::signal(pid, Signal::KILL));
        }
        app.state("nobody serves", |state| (0..2).all(|slot| state.word(slot) == "waiting"));
        let waiting: Vec<Request> = (0..100).map(|_| Request::send(port, "/")).collect();
        let answered = waiting.into_iter().flat_map(Request::answer).count();
        assert_eq!(answered, 100, "{}\n{}", way.0, app.setup.log());
    }
}

#[test]
fn one_that_hangs_takes_nothing_but_what_it_had() {
    let test = "one_that_hangs_takes_nothing_but_what_it_had";
    let port = free_port();
    let app = Setup::new("hung").config(&inherit(port, 2)).start();
    let before = app.online(2);
    if !can_steer(&app, test) {
        return;
    }
    let hung = before.pid(0).unwrap();
    assert!(procs::signal(hung, Signal::STOP));
    app.eventually("it stands still", || procs::is_stopped(hung).then_some(()));
    // All of these are answered while it hangs: what had waited for it has moved on.
    let waiting: Vec<Request> = (0..20).map(|_| Request::send(port, "/")).collect();
    let answered = waiting.into_iter().flat_map(Request::answer).count();
    assert_eq!(answered, 20, "{}", app.setup.log());
    for _ in 0..20 {
        get(port, "/").unwrap();
    }
    assert!(procs::signal(hung, Signal::CONT));
    app.eventually("it serves again", || {
        let turn = [who(port), who(port), who(port), who(port)];
        (turn[0] == turn[2] && turn[1] == turn[3] && turn[0] != turn[1]).then_some(())
    });
    assert_eq!(app.online(2).pids(), before.pids());
    assert!(app.setup.log().contains("does not accept"), "{}", app.setup.log());
}

/// Takes its time to boot: it accepts once there is a file for it.
const SLOW: &str = "
import os, socket, time
me = os.environ['NODE_APP_INSTANCE']
listener = socket.socket(fileno=3)
while not os.path.exists('go.' + me):
    time.sleep(0.02)
while True:
    client, _ = listener.accept()
    request = b''
    while b'\\r\\n\\r\\n' not in request and (piece := client.recv(4096)):
        request += piece
    if request:
        client.sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\ninstance ' + me.encode())
    client.close()
";

#[test]
fn one_that_inherits_is_online_once_it_accepts() {
    let test = "one_that_inherits_is_online_once_it_accepts";
    let port = free_port();
    let config =
        format!("{}listen = {port}\ninstances = 2\nexec_mode = \"cluster\"\n", python(SLOW));
    let setup = Setup::new("accepts").config(&config);
    setup.write("go.1", "");
    let app = setup.start();
    app.state("one is online", |state| state.word(1) == "online");
    if !can_steer(&app, test) {
        return;
    }
    assert_eq!(app.status().word(0), "launching", "{}", app.setup.log());
    for _ in 0..20 {
        assert_eq!(get(port, "/").unwrap(), "instance 1");
    }
    // Another supervisor waits for it as well.
    app.kill_supervisor();
    app.state("another supervisor", |state| state.word(1) == "online");
    assert_eq!(app.status().word(0), "launching", "{}", app.setup.log());
    assert_eq!(get(port, "/").unwrap(), "instance 1");
    app.setup.write("go.0", "");
    let state = app.online(2);
    assert_eq!(state.number(0, "connections"), 0, "pmr's own are not counted");
    assert_in_turn(port, 2, &app);
    // While its next instance boots, nobody waits for it.
    std::fs::remove_file(app.setup.directory.join("go.0")).unwrap();
    let victim = state.pid(0).unwrap();
    assert!(procs::signal(victim, Signal::KILL));
    app.state("the next one boots", |state| {
        state.word(0) == "launching" && state.pid(0).is_some_and(|pid| pid != victim)
    });
    for _ in 0..20 {
        assert_eq!(get(port, "/").unwrap(), "instance 1");
    }
    app.setup.write("go.0", "");
    app.online(2);
    assert_in_turn(port, 2, &app);
}

#[test]
fn one_that_never_accepts_is_ended_and_told_why() {
    let test = "one_that_never_accepts_is_ended_and_told_why";
    let port = free_port();
    let config = format!(
        "{}listen = {port}\ninstances = 2\nexec_mode = \"cluster\"\nlisten_timeout = \"5s\"\n\
         max_restarts = 1\n",
        python(SLOW)
    );
    let setup = Setup::new("deaf").config(&config);
    setup.write("go.1", "");
    let app = setup.start();
    app.state("one is online", |state| state.word(1) == "online");
    if !can_steer(&app, test) {
        return;
    }
    app.state("the other is given up", |state| state.word(0) == "errored");
    let said = app.setup.log();
    assert!(said.contains("not ready within listen_timeout"), "{said}");
    assert!(said.contains("does not accept from the socket that it inherits"), "{said}");
    assert_eq!(get(port, "/").unwrap(), "instance 1");
}

#[test]
fn the_same_client_gets_the_same_instance_where_that_is_asked_for() {
    let test = "the_same_client_gets_the_same_instance_where_that_is_asked_for";
    let port = free_port();
    let config = inherit(port, 3) + "balance = \"source\"\n";
    let app = Setup::new("sticky").config(&config).start();
    app.online(3);
    if !can_steer(&app, test) {
        return;
    }
    let first = who(port);
    for _ in 0..50 {
        assert_eq!(who(port), first);
    }
}

#[test]
fn a_client_keeps_its_slot_while_others_come_and_go() {
    let test = "a_client_keeps_its_slot_while_others_come_and_go";
    let port = free_port();
    let config = inherit(port, 4) + "balance = \"source\"\nrestart_delay = 500\n";
    let app = Setup::new("stays").config(&config).start();
    let before = app.online(4);
    if !can_steer(&app, test) {
        return;
    }
    let slot = |text: String| {
        let (_, rest) = text.split_once("instance ").unwrap();
        rest.split(' ').next().unwrap().to_owned()
    };
    let own = slot(who(port));
    let other = (0..4).find(|slot| slot.to_string() != own).unwrap();
    assert!(procs::signal(before.pid(other).unwrap(), Signal::KILL));
    app.state("one is away", |state| state.word(other) == "waiting");
    for _ in 0..20 {
        assert_eq!(slot(who(port)), own);
    }
    app.online(4);
    app.kill_supervisor();
    app.online(4);
    assert_eq!(slot(who(port)), own);
    // Its own next instance has the client too.
    app.command("restart", &[&own]);
    app.online(4);
    for _ in 0..20 {
        assert_eq!(slot(who(port)), own);
    }
}

#[test]
fn instances_that_bind_by_themselves_become_another_user() {
    let test = "instances_that_bind_by_themselves_become_another_user";
    let Some(way) = ways(test).into_iter().find(|(way, _)| *way == "bind") else { return };
    let port = free_port();
    let app = start("users", way, port, 2, "user = \"nobody\"\ncwd = \"/\"\n");
    if !can_steer(&app, test) {
        return;
    }
    let load = Load::start(port, "/", 2);
    for (round, user) in (2..).zip(["daemon", "root", "nobody"]) {
        let config = bind(port, 2) + &format!("user = \"{user}\"\ncwd = \"/\"\n");
        std::fs::write(app.setup.config_path(), config).unwrap();
        load.more(10);
        app.command("reload", &[]);
        app.state("all run the release", |state| {
            (0..2).all(|slot| state.number(slot, "release") == round)
        });
    }
    let (served, failed) = load.stop();
    assert!(failed.is_empty(), "{} of {served}: {failed:?}\n{}", failed.len(), app.setup.log());
    assert_in_turn(port, 2, &app);
}

#[test]
fn a_rolling_reload_under_load_costs_no_request() {
    for way in ways("a_rolling_reload_under_load_costs_no_request") {
        let port = free_port();
        let app = start("rolling", way, port, 2, "");
        let load = Load::start(port, "/", 4);
        for _ in 0..3 {
            load.more(20);
            app.command("reload", &[]);
        }
        let (served, failed) = load.stop();
        let failures = failed.len();
        assert!(failed.is_empty(), "{}: {failures} of {served}: {failed:?}", way.0);
    }
}

/// Without the rights that bpf(2) takes: `CAP_NET_ADMIN`, `CAP_SYS_ADMIN` and `CAP_BPF`.
pub(crate) const WITHOUT_BPF: [&str; 5] = [
    "setpriv",
    "--bounding-set",
    "-net_admin,-sys_admin,-cap_39",
    "--inh-caps",
    "-net_admin,-sys_admin,-cap_39",
];

#[test]
fn without_bpf_instances_share_a_queue_or_the_app_is_refused_with_what_can_be_done() {
    let test = "without_bpf_instances_share_a_queue_or_the_app_is_refused_with_what_can_be_done";
    if !procs::is_root() || !procs::has("setpriv") {
        return procs::skip(test, "it takes root and setpriv");
    }
    for (way, config) in ways(test) {
        let port = free_port();
        let setup = Setup::new(&format!("denied-{way}")).config(&config(port, 2));
        setup.write("server.js", SERVER);
        let mut app = setup.before(&WITHOUT_BPF).start();
        if way == "bind" {
            assert_eq!(app.wait(), 78, "{}", app.setup.log());
            let said = app.setup.log();
            for part in ["2 instances cannot share", "bpf(2) is not permitted", "increment_var"] {
                assert!(said.contains(part), "{part}: {said}");
            }
            continue;
        }
        let state = app.online(2);
        assert_eq!(state.0["balance"]["steered"], false, "{way}");
        let note = state.0["balance"]["note"].as_str().unwrap_or_default().to_owned();
        assert!(note.contains("bpf(2) is not permitted"), "{way}: {note}");
        let load = Load::start(port, "/", 4);
        load.more(20);
        app.command("reload", &[]);
        let (served, failed) = load.stop();
        assert!(failed.is_empty(), "{way}: {} of {served}: {failed:?}", failed.len());
    }
    // One alone needs nobody's leave.
    let port = free_port();
    let app = Setup::new("denied-alone").config(&bind(port, 1)).before(&WITHOUT_BPF).start();
    app.online(1);
    get(port, "/").unwrap();
}

#[test]
fn a_second_app_on_a_port_is_told_so_and_takes_nothing_from_the_first() {
    let test = "a_second_app_on_a_port_is_told_so_and_takes_nothing_from_the_first";
    let port = free_port();
    let Some(way) = ways(test).into_iter().find(|(name, _)| *name == "bind") else { return };
    let first = start("first", way, port, 2, "");
    if !can_steer(&first, test) {
        return;
    }
    let config = bind(port, 2) + "listen_timeout = \"1s\"\nmax_restarts = 1\n";
    let mut second = Setup::new("second").config(&config).start();
    assert_eq!(second.wait(), 69, "{}", second.setup.log());
    let said = second.setup.log();
    assert!(said.contains(&format!("alone listen at [::]:{port}")), "{said}");
    assert_in_turn(port, 2, &first);
}

#[test]
fn instances_that_bind_at_the_same_time_are_no_strangers_to_each_other() {
    let test = "instances_that_bind_at_the_same_time_are_no_strangers_to_each_other";
    let Some(way) = ways(test).into_iter().find(|(name, _)| *name == "bind") else { return };
    let port = free_port();
    let app = start("together", way, port, 8, "max_restarts = 1000\nmin_uptime = 1\n");
    for _ in 0..5 {
        let before = app.online(8).pids();
        assert!(before.iter().all(|pid| procs::signal(*pid, Signal::KILL)));
        app.state("all are others", |state| {
            state.pids().len() == 8 && state.pids().iter().all(|pid| !before.contains(pid))
        });
    }
    app.online(8);
    assert!(!app.setup.log().contains("alone listen"), "{}", app.setup.log());
}

#[test]
fn an_app_that_does_not_take_the_socket_it_inherits_is_told_so() {
    let port = free_port();
    let config = format!(
        "command = ['python3', '-m', 'http.server', '{port}']\nlisten = {port}\ninstances = 2\n\
         max_restarts = 2\n"
    );
    let mut app = Setup::new("by-itself").config(&config).start();
    assert_eq!(app.wait(), 69, "{}", app.setup.log());
    let said = app.setup.log();
    let told = format!("write `port = {port}` in place of `listen`");
    assert_eq!(said.matches(&told).count(), 1, "{said}");
}
