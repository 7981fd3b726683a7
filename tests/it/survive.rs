//! The death of a supervisor, at any moment and of any kind, harms nobody.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::app::{App, Setup, State, demo, free_port, python};
use crate::load::{Load, get};
use crate::procs;

/// Exits with 7 on SIGUSR1 and with 9 on SIGUSR2, as soon as it says so.
const EXITS: &str = "import os, signal
signal.signal(signal.SIGUSR1, lambda *_: os._exit(7))
signal.signal(signal.SIGUSR2, lambda *_: os._exit(9))
print('listening to signals', flush=True)
while True: signal.pause()";

/// Numbers that look random and are the same each time (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Exactly one process for each slot, and it is the one that `status` names.
fn assert_one_each(app: &App, count: usize) -> State {
    app.eventually(&format!("{count} instances, each once"), || {
        let state = app.try_status()?;
        let mut pids = state.pids();
        let mut processes = app.processes();
        pids.sort_unstable();
        processes.sort_unstable();
        let online = state.len() == count && (0..count).all(|slot| state.word(slot) == "online");
        (online && pids.len() == count && pids == processes).then_some(state)
    })
}

fn histories(state: &State) -> Vec<[u64; 3]> {
    let keys = ["generation", "restarts", "unstable"];
    (0..state.len()).map(|slot| keys.map(|key| state.number(slot, key))).collect()
}

#[test]
fn killed_at_any_moment_it_costs_no_request_and_forgets_nothing() {
    let port = free_port();
    let more = "min_uptime = \"1h\"\nexp_backoff_restart_delay = 10\nexp_backoff_max = \"20ms\"\n";
    let app = Setup::new("kills").config(&(demo(port, 2) + more)).start();
    app.online(2);
    for _ in 0..3 {
        get(port, "/crash").unwrap_err();
        app.online(2);
    }
    let before = app.online(2);
    assert_eq!(before.number(0, "restarts") + before.number(1, "restarts"), 3);
    let load = Load::start(port, "/", 3);
    let mut numbers = Numbers(0x5eed);
    for round in 0..25 {
        load.more(numbers.below(30));
        app.kill_supervisor();
        if round % 2 == 0 {
            // The other half meets a supervisor in the middle of its adopt. Three such in a row
            // would cost the histories, which is a test of its own.
            app.status();
        }
    }
    let after = app.state("an adopt", |state| state.0["supervisor_deaths"].as_u64() >= Some(25));
    load.more(20);
    let (served, failed) = load.stop();
    assert!(failed.is_empty(), "{} of {served}: {failed:?}", failed.len());
    assert_eq!(after.pids(), before.pids());
    assert_eq!(histories(&after), histories(&before));
    assert!(app.pmr(&["describe", &app.setup.name]).out.contains("replaced 2"));
    get(port, "/crash").unwrap_err();
    let crashed = app.state("the next crash is counted on top", |state| {
        state.number(0, "restarts") + state.number(1, "restarts") == 4
    });
    assert_eq!(crashed.number(0, "unstable") + crashed.number(1, "unstable"), 4);
    assert_one_each(&app, 2);
}

#[test]
fn each_exit_is_reported_as_it_was_whoever_supervised() {
    let more = "max_restarts = 100\nmin_uptime = \"1h\"\n";
    let app = Setup::new("exits").config(&(python(EXITS) + more)).start();
    let listening = |times: usize| {
        app.eventually("the app listens to signals", || {
            (app.setup.log().matches("listening to signals").count() == times).then_some(())
        });
    };
    let signals = [Signal::USR1, Signal::USR2, Signal::KILL];
    let texts = ["exited with code 7", "exited with code 9", "was killed by SIGKILL"];
    for round in 0..9 {
        listening(round + 1);
        let pid = app.online(1).pid(0).unwrap();
        let end = || assert!(procs::signal(pid, signals[round % 3]));
        let dead = || {
            app.eventually("it ends", || (!procs::lives(pid)).then_some(()));
        };
        match round / 3 {
            // While the supervisor is away.
            0 => {
                let supervisor = app.eventually("a supervisor", || app.supervisor());
                assert!(procs::signal(supervisor, Signal::STOP));
                end();
                dead();
                assert!(procs::signal(supervisor, Signal::KILL));
            }
            // At the very moment of its death.
            1 => {
                app.kill_supervisor();
                end();
            }
            // Long after the adopt of an instance that another one started.
            _ => {
                let killed = app.kill_supervisor();
                app.state("an adopt", |state| state.0["supervisor_pid"] != killed);
                end();
            }
        }
        let restarts = u64::try_from(round + 1).unwrap();
        let state =
            app.state("the exit is counted, once", |state| state.number(0, "restarts") == restarts);
        assert_eq!(state.last_exit(0), texts[round % 3], "round {round}");
    }
}

#[test]
fn killed_during_a_start_or_a_change_of_number_nothing_runs_twice() {
    let config = "command = [\"sleep\", \"1000\"]\ninstances = 24\nstable_for = 20\n";
    let mut app = Setup::new("numbers").config(config).start();
    for at_least in [0, 3, 9, 16] {
        app.eventually("some have begun", || (app.processes().len() >= at_least).then_some(()));
        app.kill_supervisor();
    }
    let started = assert_one_each(&app, 24);
    assert_eq!(started.number(0, "restarts"), 0);
    for (count, text) in [(40, "40"), (8, "8"), (20, "20")] {
        let name = app.setup.name.clone();
        // It is accepted, and then its supervisor dies in the middle of it.
        app.pmr(&["scale", &name, text, "--no-wait"]);
        app.kill_supervisor();
        // If it died so early that nothing was recorded, it is asked again.
        app.command("scale", &[text]);
        assert_one_each(&app, count);
    }
    app.command("restart", &["--no-wait"]);
    for _ in 0..3 {
        app.kill_supervisor();
        app.status();
    }
    app.state("the restart is over", |state| state.0["roll"].is_null());
    assert_one_each(&app, 20);
    app.command("stop", &["--no-wait"]);
    app.kill_supervisor();
    app.command("stop", &[]);
    app.assert_no_process();
    let stopped = app.status();
    assert!((0..20).all(|slot| stopped.word(slot) == "stopped"));
    app.command("start", &["--no-wait"]);
    app.kill_supervisor();
    app.command("start", &[]);
    assert_one_each(&app, 20);
    app.signal(Signal::TERM);
    // It may have done all of that already.
    if let Some(supervisor) = app.supervisor() {
        procs::signal(supervisor, Signal::KILL);
    }
    assert_eq!(app.wait(), 0, "{}", app.setup.log());
    app.assert_nothing_left();
}

#[test]
fn killed_during_a_wait_the_wait_goes_on() {
    let more = "restart_delay = \"2s\"\n";
    let app = Setup::new("waits").config(&(python(EXITS) + more)).start();
    let before = app.online(1);
    assert!(procs::signal(before.pid(0).unwrap(), Signal::KILL));
    let waiting = app.state("the wait", |state| state.word(0) == "waiting");
    for _ in 0..3 {
        let killed = app.kill_supervisor();
        let state = app.state("an adopt", |state| state.0["supervisor_pid"] != killed);
        if state.word(0) == "waiting" {
            assert!(state.number(0, "next_start_ms") <= waiting.number(0, "next_start_ms"));
            assert_eq!(histories(&state), histories(&waiting));
        }
    }
    let after = assert_one_each(&app, 1);
    assert_eq!(after.number(0, "generation"), before.number(0, "generation") + 1);
    assert_eq!(after.number(0, "restarts"), 1);
}

#[test]
fn killed_during_a_reload_the_reload_goes_on_and_costs_no_request() {
    let port = free_port();
    let app = Setup::new("rolls").config(&demo(port, 3)).start();
    let before = app.online(3);
    let load = Load::start(port, "/", 2);
    app.command("reload", &["--no-wait"]);
    for _ in 0..4 {
        app.kill_supervisor();
        app.status();
        load.more(5);
    }
    let after = app.state("the reload is over", |state| {
        state.0["roll"].is_null() && (0..3).all(|slot| state.slot(slot)["release"] == 2)
    });
    assert_one_each(&app, 3);
    assert!(after.pids().iter().all(|pid| !before.pids().contains(pid)));
    let (served, failed) = load.stop();
    assert!(failed.is_empty(), "{} of {served}: {failed:?}", failed.len());
}

#[test]
fn a_supervisor_that_hangs_is_replaced() {
    let port = free_port();
    // A quarter of the watchdog's time is how long a supervisor may be silent.
    let setup = Setup::new("hangs").variable("WATCHDOG_USEC", "2000000").config(&demo(port, 2));
    let app = setup.start();
    let before = app.online(2);
    let load = Load::start(port, "/", 2);
    let hung = app.eventually("a supervisor", || app.supervisor());
    assert!(procs::signal(hung, Signal::STOP));
    let after = app.state("another supervisor", |state| state.0["supervisor_pid"] != hung);
    load.more(10);
    let (served, failed) = load.stop();
    assert!(failed.is_empty(), "{} of {served}: {failed:?}", failed.len());
    assert_eq!(after.pids(), before.pids());
    assert_eq!(histories(&after), histories(&before));
    let log = app.setup.log();
    assert!(log.contains(&format!("supervisor (pid {hung}) said nothing for 500 ms")), "{log}");
    assert!(!procs::lives(hung));
}

/// Puts a file where the app's directory is, so that no supervisor can adopt. Returns where the
/// directory is now.
fn break_adopt(setup: &Setup) -> std::path::PathBuf {
    let aside = setup.directory.join("aside");
    fs::create_dir(&aside).unwrap();
    let (here, there) = (setup.runtime.join(&setup.name), aside.join(&setup.name));
    fs::rename(&here, there).unwrap();
    fs::write(here, "in the way").unwrap();
    aside
}

#[test]
fn a_supervisor_that_cannot_adopt_harms_nobody_and_is_tried_again() {
    let port = free_port();
    let app = Setup::new("loops").config(&demo(port, 2)).start();
    get(port, "/crash").err();
    let before = app.online(2);
    let aside = break_adopt(&app.setup);
    app.kill_supervisor();
    let load = Load::start(port, "/", 2);
    app.eventually("it backs off", || {
        app.setup.log().contains("starting another in 400 ms").then_some(())
    });
    // Mended: the next one gets a reduced state, and takes over what runs.
    let here = app.setup.runtime.join(&app.setup.name);
    fs::remove_file(&here).unwrap();
    fs::rename(aside.join(&app.setup.name), here).unwrap();
    let after = assert_one_each(&app, 2);
    assert_eq!(after.pids(), before.pids());
    for slot in 0..2 {
        assert_eq!(after.number(slot, "generation"), before.number(slot, "generation"));
        assert_eq!(after.number(slot, "restarts"), 0, "the reduced state has no histories");
    }
    let log = app.setup.log();
    assert!(log.contains("histories are lost"), "{log}");
    let (served, failed) = load.stop();
    assert!(failed.is_empty(), "{} of {served}: {failed:?}", failed.len());
    get(port, "/crash").unwrap_err();
    app.state("it supervises", |state| {
        state.number(0, "restarts") + state.number(1, "restarts") == 1
    });
    assert_one_each(&app, 2);
}

#[test]
fn a_stop_without_any_supervisor_is_carried_out_all_the_same() {
    let port = free_port();
    let mut app = Setup::new("wills").config(&demo(port, 2)).start();
    app.online(2);
    break_adopt(&app.setup);
    app.kill_supervisor();
    app.eventually("it backs off", || {
        app.setup.log().contains("starting another in 200 ms").then_some(())
    });
    get(port, "/health").unwrap();
    app.signal(Signal::TERM);
    assert_eq!(app.wait(), 0, "{}", app.setup.log());
    app.assert_no_process();
    assert_eq!(app.home(), None);
    let log = app.setup.log();
    assert!(log.contains("carrying out the last wills"), "{log}");
}

/// Limits the address space of a process to what it has, so that it can have no more.
fn starve(pid: u32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let kilobytes: u64 = size.trim().trim_end_matches(" kB").parse().unwrap();
    let limit = format!("--as={}", kilobytes * 1024);
    let done = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status();
    assert!(done.unwrap().success());
}

/// What cannot have memory aborts; the next supervisor has a limit of its own.
#[test]
fn a_supervisor_without_memory_costs_no_instance() {
    let port = free_port();
    let app = Setup::new("nomemory").config(&demo(port, 2)).start();
    let before = app.online(2);
    let supervisor = app.eventually("a supervisor", || app.supervisor());
    starve(supervisor);
    // Half a message each, which it keeps until there is the rest: more than fits.
    let socket = app.setup.runtime.join(&app.setup.name).join("io.pmr.App");
    let half = vec![b'x'; 512 * 1024];
    let mut clients = Vec::new();
    while app.supervisor() == Some(supervisor) && clients.len() < 40 {
        let Ok(mut client) = UnixStream::connect(&socket) else { break };
        client.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        // It may be gone by now, which is what is wanted.
        client.write_all(&half).unwrap_or_default();
        clients.push(client);
    }
    app.eventually("another supervisor", || app.supervisor().filter(|&pid| pid != supervisor));
    assert_eq!(app.online(2).pids(), before.pids());
    assert!(get(port, "/").is_ok());
}
