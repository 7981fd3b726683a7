//! An app runs, answers, and ends.

use std::fs;

use rustix::process::Signal;

use crate::app::{Setup, demo, free_port, python, quoted};
use crate::load::{Load, get};
use crate::procs;

#[test]
fn an_app_serves_and_ends_without_a_trace() {
    let port = free_port();
    let mut app = Setup::new("serves")
        .own_binary()
        .variable("GREETING", "hello")
        .before(&["env", "OTHER=1"])
        .config(&demo(port, 2))
        .start();
    let state = app.online(2);
    assert_eq!(state.pids().len(), 2);
    assert_eq!(state.number(0, "restarts"), 0);
    assert_eq!(state.last_exit(0), "");
    let mut processes = app.processes();
    processes.sort_unstable();
    let mut pids = state.pids();
    pids.sort_unstable();
    assert_eq!(processes, pids);
    assert_eq!(procs::variable(pids[0], "GREETING").as_deref(), Some("hello"));
    assert_eq!(procs::variable(pids[0], "OTHER").as_deref(), Some("1"));
    let load = Load::start(port, "/", 2);
    load.more(20);
    let (served, failed) = load.stop();
    assert!(served >= 20 && failed.is_empty(), "{failed:?}");
    assert_eq!(get(port, "/health").unwrap(), "ok\n");
    assert_eq!(app.command("pid", &[]).out.lines().count(), 2);
    assert!(app.runs());
    app.signal(Signal::TERM);
    assert_eq!(app.wait(), 0, "{}", app.setup.log());
    app.assert_nothing_left();
}

#[test]
fn a_dead_supervisor_is_replaced() {
    let code = "import signal\nsignal.pause()";
    let setup = Setup::new("replaced").config(&python(code));
    assert!(quoted(setup.config_path()).ends_with(".toml\""));
    assert!(fs::metadata(setup.binary()).unwrap().is_file());
    let app = setup.start();
    let before = app.online(1);
    let dead = app.kill_supervisor();
    let after = app.state("another supervisor", |state| state.0["supervisor_pid"] != dead);
    assert_eq!(after.pids(), before.pids());
    assert_eq!(after.level(), before.level());
    let started = procs::started_at(after.pids()[0]);
    assert!(started.is_some());
    app.within(60_000, "a log line", || app.setup.log().contains("supervisor (pid").then_some(()));
}

#[test]
fn a_write_to_a_closed_pipe_ends_only_who_asks_for_it() {
    for (line, ignored) in [("", true), ("ignore_sigpipe = false", false)] {
        let setup = Setup::new("sigpipe");
        let out = setup.directory.join("signals");
        let script = format!("grep SigIgn /proc/self/status > {}; sleep 1000", out.display());
        let app =
            setup.config(&format!("command = [\"sh\", \"-c\", {script:?}]\n{line}\n")).start();
        let mask = app.eventually("the signals", || {
            let text = app.setup.read("signals");
            u64::from_str_radix(text.strip_prefix("SigIgn:")?.trim(), 16).ok()
        });
        let sigpipe = 1 << (Signal::PIPE.as_raw() - 1);
        assert_eq!(mask & sigpipe != 0, ignored, "{mask:x} {line}");
    }
}
