//! Stop is stop: nothing of an instance is left, whatever it did to stay.

use rustix::process::Signal;

use crate::app::{App, Setup, demo, free_port, python};
use crate::load::get;
use crate::procs;

/// Leaves a daemon behind: forked twice, in a session of its own.
const DAEMON: &str = "import os, signal
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: signal.pause()
    os._exit(0)
os.wait()
print('left a daemon behind', flush=True)
while True: signal.pause()";

/// An instance and its daemon for each slot, as soon as `started` of them were started in all.
fn processes(app: &App, started: usize, slots: usize) -> Vec<u32> {
    app.eventually(&format!("{slots} daemons"), || {
        let is_there = app.setup.log().matches("left a daemon behind").count() == started;
        Some(app.processes()).filter(|pids| is_there && pids.len() == 2 * slots)
    })
}

#[test]
fn a_daemon_ends_with_its_instance() {
    let test = "a_daemon_ends_with_its_instance";
    let mut app = Setup::new("daemons").config(&(python(DAEMON) + "instances = 2\n")).start();
    if !app.tracks(test) {
        return;
    }
    let before = app.online(2);
    let first = processes(&app, 2, 2);
    // After a crash.
    assert!(procs::signal(before.pid(0).unwrap(), Signal::KILL));
    app.state("a restart", |state| state.number(0, "restarts") == 1);
    app.online(2);
    let second = processes(&app, 3, 2);
    let kept = second.iter().filter(|pid| first.contains(pid)).count();
    assert_eq!(kept, 2, "of the slot that did not crash: {first:?}, {second:?}");
    // After a scale-down, a restart, a stop: at once, for the command has said that it is done.
    app.command("scale", &["1"]);
    assert_eq!(app.processes().len(), 2, "{}", app.setup.log());
    app.command("restart", &[]);
    let third = processes(&app, 4, 1);
    assert!(third.iter().all(|pid| !second.contains(pid)), "{second:?}, {third:?}");
    app.command("stop", &[]);
    app.assert_no_process();
    assert!(app.runs(), "a stopped app can be started again");
    app.command("start", &[]);
    app.online(1);
    processes(&app, 5, 1);
    app.signal(Signal::INT);
    assert_eq!(app.wait(), 0, "{}", app.setup.log());
    app.assert_nothing_left();
}

#[test]
fn who_ignores_the_signal_is_killed_after_kill_timeout() {
    let port = free_port();
    let config = demo(port, 2).replace("\"5s\"", "\"300ms\"");
    let mut app = Setup::new("stubborn").config(&config).start();
    app.online(2);
    for _ in 0..8 {
        get(port, "/stubborn").unwrap();
        get(port, "/daemon").unwrap();
    }
    assert!(app.processes().len() > 2);
    app.command("stop", &[]);
    if app.tracks("who_ignores_the_signal_is_killed_after_kill_timeout (its daemons)") {
        app.assert_no_process();
    }
    let log = app.setup.log();
    assert!(log.contains("did not stop within 300ms: killing it"), "{log}");
    app.command("start", &[]);
    for _ in 0..8 {
        get(port, "/stubborn").unwrap();
        get(port, "/daemon").unwrap();
    }
    app.signal(Signal::TERM);
    assert_eq!(app.wait(), 0, "{}", app.setup.log());
    app.assert_nothing_left();
}

#[test]
fn processes_that_fork_all_the_time_are_ended() {
    // Each goes on as a child of itself, again and again, so no list of them is ever true.
    let code = "import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    for _ in range(3): os.fork()
    while True:
        if os.fork(): os._exit(0)
        os.setsid()
        time.sleep(0.002)
while True: signal.pause()";
    let more = "kill_timeout = 200\n";
    let mut app = Setup::new("bomb").config(&(python(code) + more)).start();
    app.online(1);
    app.eventually("they are many", || (app.processes().len() > 5).then_some(()));
    if app.tracks("processes_that_fork_all_the_time_are_ended (by `pmr stop`)") {
        app.command("stop", &[]);
        app.assert_no_process();
        app.command("start", &[]);
        app.eventually("they are many", || (app.processes().len() > 5).then_some(()));
    }
    app.signal(Signal::TERM);
    assert_eq!(app.wait(), 0, "{}", app.setup.log());
    app.assert_nothing_left();
}

/// A stopped process hears no signal but SIGKILL and SIGCONT.
#[test]
fn one_that_stands_still_is_woken_to_end_gracefully() {
    let app = Setup::new("stopped").config(&demo(free_port(), 1)).start();
    let before = app.online(1);
    assert!(procs::signal(before.pid(0).unwrap(), Signal::STOP));
    app.command("stop", &[]);
    let after = app.state("stopped", |state| state.word(0) == "stopped");
    assert_eq!(after.last_exit(0), "exited with code 0", "{}", app.setup.log());
}
