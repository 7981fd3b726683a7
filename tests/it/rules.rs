//! Restart rules and readiness on the real thing, with short times.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use rustix::process::Signal;

use crate::app::{Setup, demo, free_port, python, quoted};
use crate::load::get;
use crate::procs;

/// What stands between the two texts, wherever it does, in order.
fn between<'a>(log: &'a str, before: &str, after: &str) -> Vec<&'a str> {
    let pieces = log.split(before).skip(1);
    pieces.filter_map(|piece| piece.split_once(after).map(|(inner, _)| inner)).collect()
}

#[test]
fn a_crash_loop_is_slowed_down_and_then_given_up() {
    let config = "command = [\"sh\", \"-c\", \"echo run >> runs; exit 3\"]\nmax_restarts = 6\n\
                  restart_delay = 30\nexp_backoff_restart_delay = 10\nexp_backoff_max = 90\n";
    let mut app = Setup::new("loop").config(config).start();
    assert_eq!(app.wait(), 69, "{}", app.setup.log());
    let log = app.setup.log();
    let waits = between(&log, "restarting in ", ")");
    let expected = ["30ms (limit 1/6", "30ms (limit 2/6", "40ms (limit 3/6", "80ms (limit 4/6"];
    assert_eq!(waits[..4], expected, "{log}");
    assert_eq!(waits[4..], ["90ms (limit 5/6"], "{log}");
    assert!(log.contains("errored, giving up (limit 6/6)"), "{log}");
    assert_eq!(app.setup.read("runs"), "run\n".repeat(6));
    app.assert_nothing_left();
}

#[test]
fn the_end_of_all_slots_is_the_end_of_pmr() {
    let by_slot = |zero: u8, one: u8| {
        format!(
            "command = [\"sh\", \"-c\", \"test $PMR_INSTANCE = 0 && exit {zero}; exit {one}\"]\n\
             instances = 2\nmax_restarts = 1\n"
        )
    };
    for (test, config, code) in [
        ("finished", by_slot(0, 1) + "autorestart = false\n", 0),
        ("codes", by_slot(4, 5) + "stop_exit_codes = [4, 5]\n", 0),
        ("mixed", by_slot(4, 5) + "stop_exit_codes = [4]\n", 69),
        ("errored", by_slot(4, 5), 69),
    ] {
        let mut app = Setup::new(test).config(&config).start();
        assert_eq!(app.wait(), code, "{test}: {}", app.setup.log());
        app.assert_nothing_left();
    }
}

#[test]
fn while_one_waits_the_other_serves() {
    let port = free_port();
    let app = Setup::new("other").config(&(demo(port, 2) + "restart_delay = \"1s\"\n")).start();
    let before = app.online(2);
    get(port, "/crash").unwrap_err();
    let waiting =
        app.state("a slot waits", |state| (0..2).any(|slot| state.word(slot) == "waiting"));
    let crashed = (0..2).find(|&slot| waiting.word(slot) == "waiting").unwrap();
    assert_eq!(waiting.0["summary"], "1/2 online, 1 waiting");
    for _ in 0..20 {
        assert!(get(port, "/").unwrap().contains(&format!("instance {}", 1 - crashed)));
    }
    let after = app.online(2);
    assert_eq!(after.pid(1 - crashed), before.pid(1 - crashed));
    assert_ne!(after.pid(crashed), before.pid(crashed));
    assert_eq!(after.number(crashed, "restarts"), 1);
    assert_eq!(after.number(crashed, "unstable"), 1);
    assert_eq!(after.number(1 - crashed, "restarts"), 0);
    assert_eq!(after.last_exit(crashed), "exited with code 1");
    let described = app.pmr(&["describe", &app.setup.name]).out;
    assert!(described.contains("TypeError: Cannot read property"), "{described}");
    assert!(described.contains("exited with code 1"), "{described}");
}

#[test]
fn what_cannot_be_executed_is_named_with_its_path() {
    let setup = Setup::new("exec");
    let program = setup.directory.join("server");
    let copy = |mode| procs::copy_program(Path::new("/bin/sleep"), &program, mode);
    copy(0o755);
    let config = format!("command = [{}, \"1000\"]\ninstances = 2\n", quoted(&program));
    let app = setup.config(&(config + "max_restarts = 2\n")).start();
    let before = app.online(2);
    copy(0o644);
    assert!(procs::signal(before.pid(0).unwrap(), Signal::KILL));
    app.state("it is given up", |state| state.word(0) == "errored");
    let described = app.pmr(&["describe", &app.setup.name]).out;
    let path = program.display().to_string();
    assert!(described.contains(&path) && described.contains("ermission denied"), "{described}");
    // Mended, it can be started again; the other one has never noticed.
    copy(0o755);
    app.command("start", &[]);
    let after = app.online(2);
    assert_eq!(after.pid(1), before.pid(1));
    fs::remove_file(&program).unwrap();
    assert!(procs::signal(after.pid(1).unwrap(), Signal::KILL));
    app.state("it is given up", |state| state.word(1) == "errored");
    let described = app.pmr(&["describe", &app.setup.name]).out;
    assert!(described.contains(&path) && described.contains("No such file"), "{described}");
}

/// Says READY=1 on SIGUSR1, and nothing before.
const READY: &str = "import os, signal, socket
def ready(*_):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])
signal.signal(signal.SIGUSR1, ready)
print('booting', flush=True)
while True: signal.pause()";

#[test]
fn an_app_that_notifies_is_online_when_it_says_so_itself() {
    let test = "an_app_that_notifies_is_online_when_it_says_so_itself (not by a stranger)";
    let app = Setup::new("notify").config(&(python(READY) + "ready = \"notify\"\n")).start();
    app.eventually("it boots", || app.setup.log().contains("booting").then_some(()));
    let state = app.status();
    assert_eq!(state.word(0), "launching");
    let pid = state.pid(0).unwrap();
    if app.tracks(test) {
        // A stranger of the same user.
        let socket = procs::variable(pid, "NOTIFY_SOCKET").unwrap();
        UnixDatagram::unbound().unwrap().send_to(b"READY=1", socket).unwrap();
        for _ in 0..3 {
            assert_eq!(app.status().word(0), "launching");
        }
    }
    assert!(procs::signal(pid, Signal::USR1));
    assert_eq!(app.online(1).pid(0), Some(pid));
}

#[test]
fn an_app_that_is_never_ready_is_given_up() {
    let more = "ready = \"notify\"\nlisten_timeout = 250\nmax_restarts = 2\n";
    let mut app = Setup::new("never").config(&(python(READY) + more)).start();
    assert_eq!(app.wait(), 69, "{}", app.setup.log());
    let log = app.setup.log();
    assert_eq!(log.matches("not ready within listen_timeout").count(), 4, "{log}");
    assert!(log.contains("errored, giving up (limit 2/2)"), "{log}");
    app.assert_nothing_left();
}
