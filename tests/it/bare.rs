//! The level *bare*: no groups, as for a user without any delegated.

use rustix::process::Signal;

use crate::app::{App, Setup, free_port, inherit, python};
use crate::load::{Load, get};
use crate::procs;

const NOBODY: [&str; 6] = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];

fn as_nobody(test: &str, name: &str, config: &str) -> Option<App> {
    if !procs::is_root() || !procs::has("setpriv") {
        procs::skip(test, "it takes root and setpriv");
        return None;
    }
    let setup = Setup::new(name).own_binary();
    let binary = crate::app::quoted(env!("CARGO_BIN_EXE_pmr"));
    // Where the build is, nobody may not be able to look.
    let config = config.replace(&binary, &crate::app::quoted(setup.binary()));
    let setup = setup.config(&config);
    for directory in [&setup.directory, &setup.runtime] {
        std::os::unix::fs::chown(directory, Some(65_534), Some(65_534)).unwrap();
    }
    Some(setup.before(&NOBODY).start())
}

#[test]
fn without_groups_crash_restart_and_stop_are_the_same() {
    let test = "without_groups_crash_restart_and_stop_are_the_same";
    let port = free_port();
    let Some(mut app) = as_nobody(test, "bare", &inherit(port, 2)) else { return };
    let before = app.online(2);
    assert_eq!(before.level(), "bare");
    assert_eq!(before.0["memory_cap_enforced"], false);
    assert!(before.slot(0)["memory_bytes"].as_u64() > Some(0));
    get(port, "/crash").unwrap_err();
    let crashed = app.state("a restart", |state| {
        state.number(0, "restarts") + state.number(1, "restarts") == 1
            && (0..2).all(|slot| state.word(slot) == "online")
    });
    let load = Load::start(port, "/", 2);
    for _ in 0..5 {
        load.more(3);
        app.kill_supervisor();
        app.status();
    }
    app.command("reload", &[]);
    let (served, failed) = load.stop();
    assert!(failed.is_empty(), "{} of {served}: {failed:?}", failed.len());
    assert!(app.online(2).pids().iter().all(|pid| !crashed.pids().contains(pid)));
    app.command("stop", &[]);
    app.assert_no_process();
    app.command("start", &[]);
    app.online(2);
    get(port, "/daemon").unwrap();
    app.signal(Signal::TERM);
    assert_eq!(app.wait(), 0, "{}", app.setup.log());
    // The daemon too: the keeper is the subreaper.
    app.assert_nothing_left();
}

#[test]
fn without_groups_the_session_of_an_instance_ends_with_it() {
    let test = "without_groups_the_session_of_an_instance_ends_with_it";
    let code = "import os, signal
for _ in range(3):
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True: signal.pause()
print('has children', flush=True)
while True: signal.pause()";
    let Some(app) = as_nobody(test, "session", &python(code)) else { return };
    let pid = app.online(1).pid(0).unwrap();
    let children = |times: usize| {
        app.eventually("four processes", || {
            let started = app.setup.log().matches("has children").count() == times;
            Some(app.processes()).filter(|all| started && all.len() == 4)
        })
    };
    let before = children(1);
    assert!(procs::signal(pid, Signal::KILL));
    app.state("a restart", |state| state.number(0, "restarts") == 1 && state.word(0) == "online");
    assert!(children(2).iter().all(|pid| !before.contains(pid)));
    app.command("stop", &[]);
    app.assert_no_process();
}
