//! `pmr run` at a terminal, in a pipe, and as the first process of a container.

use std::process::Stdio;

use rustix::process::Signal;

use crate::app::{App, Setup, demo, free_port, python};
use crate::procs;

/// Copies its input to a terminal on which its arguments run, and what comes back to its output.
const TERMINAL: [&str; 3] = [
    "python3",
    "-c",
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))",
];

/// Prints a line on SIGUSR1, and then says so in a file.
const PRINTS: &str = "import os, signal
count = 0
def more(*_):
    global count
    count += 1
    print('line', count, flush=True)
    open('printed', 'a').write('x')
signal.signal(signal.SIGUSR1, more)
print('hello', flush=True)
while True: signal.pause()";

/// Ignores SIGTERM.
const STUBBORN: &str = "import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('hello', flush=True)
while True: signal.pause()";

fn logged(app: &App, text: &str) {
    app.eventually(&format!("{text:?} in the output"), || {
        app.setup.log().contains(text).then_some(())
    });
}

fn at_a_terminal(setup: Setup) -> App {
    setup.before(&TERMINAL).start_with(|command| {
        command.stdin(Stdio::piped());
    })
}

#[test]
fn ctrl_c_stops_gracefully_and_a_second_one_at_once() {
    let setup = Setup::new("ctrl-c").config(&(python(STUBBORN) + "kill_timeout = \"10min\"\n"));
    let mut app = at_a_terminal(setup);
    app.online(1);
    logged(&app, "hello");
    app.type_in("\u{3}");
    app.state("it drains", |state| state.word(0) == "draining");
    app.type_in("\u{3}");
    assert_eq!(app.wait(), 0, "{}", app.setup.log());
    app.assert_nothing_left();
}

#[test]
fn the_end_of_the_terminal_is_the_end_of_the_app() {
    let app = at_a_terminal(Setup::new("hang-up").config(&demo(free_port(), 2)));
    let state = app.online(2);
    let keeper = u32::try_from(state.0["keeper_pid"].as_u64().unwrap()).unwrap();
    assert!(procs::signal(app.keeper(), Signal::KILL));
    app.eventually("the keeper ends", || (!procs::lives(keeper)).then_some(()));
    app.eventually("all is removed", || app.home().is_none().then_some(()));
    app.assert_no_process();
    assert!(!app.setup.runtime.join(&app.setup.name).exists());
}

#[test]
fn without_a_terminal_a_hang_up_reloads() {
    let app = Setup::new("reloads").config(&demo(free_port(), 2)).start();
    let before = app.online(2);
    app.signal(Signal::HUP);
    app.state("the reload", |state| {
        state.0["roll"].is_null() && (0..2).all(|slot| state.slot(slot)["release"] == 2)
    });
    let after = app.online(2);
    assert!(after.pids().iter().all(|pid| !before.pids().contains(pid)));
}

#[test]
fn lines_have_a_prefix_and_colour_only_at_a_terminal() {
    let config = python(PRINTS) + "instances = 2\n";
    let app = at_a_terminal(Setup::new("colour").config(&config));
    let name = app.setup.name.clone();
    logged(&app, &format!("\u{1b}[36m0|{name} |\u{1b}[0m hello\r\n"));
    logged(&app, &format!("\u{1b}[33m1|{name} |\u{1b}[0m hello\r\n"));
    let app = at_a_terminal(Setup::new("plain").variable("NO_COLOR", "1").config(&config));
    let name = app.setup.name.clone();
    logged(&app, &format!("1|{name} | hello\r\n"));
    assert!(!app.setup.log().contains('\u{1b}'), "{}", app.setup.log());
    let app = Setup::new("piped").config(&config).start();
    let name = app.setup.name.clone();
    logged(&app, &format!("1|{name} | hello\n"));
    assert!(!app.setup.log().contains('\u{1b}'), "{}", app.setup.log());
}

#[test]
fn what_is_printed_while_no_supervisor_reads_is_not_lost() {
    let app = Setup::new("lines").config(&python(PRINTS)).start();
    let pid = app.online(1).pid(0).unwrap();
    logged(&app, "hello");
    for round in 1..=5 {
        let supervisor = app.eventually("a supervisor", || app.supervisor());
        assert!(procs::signal(supervisor, Signal::STOP));
        assert!(procs::signal(pid, Signal::USR1));
        app.eventually("a line", || (app.setup.read("printed").len() == round).then_some(()));
        assert!(procs::signal(supervisor, Signal::KILL));
        logged(&app, &format!(" | line {round}\n"));
    }
    assert_eq!(app.online(1).pid(0), Some(pid));
    let logs = app.pmr(&["logs", &app.setup.name]).out;
    assert!(logs.contains("line 5"), "{logs}");
}

#[test]
fn a_reader_that_stalls_does_not_stop_the_supervision() {
    let code = "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *_: os._exit(7))
while True: print('x' * 1000, flush=True)";
    let config = python(code) + "instances = 2\nkill_timeout = 500\n";
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let mut app = Setup::new("stalled").config(&config).start_with(|command| {
        command.stdout(writer);
    });
    let before = app.online(2);
    // The pipe and pmr's queue are full when an instance waits in its write.
    app.eventually("the output stalls", || {
        let calls = before.pids().into_iter().map(|pid| {
            let call = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
            call.contains("pipe_write")
        });
        calls.into_iter().all(|waits| waits).then_some(())
    });
    assert!(procs::signal(before.pid(0).unwrap(), Signal::KILL));
    let after = app
        .state("a restart", |state| state.number(0, "restarts") == 1 && state.word(0) == "online");
    assert_eq!(after.pid(1), before.pid(1));
    app.kill_supervisor();
    assert_eq!(app.online(2).pids(), after.pids());
    app.signal(Signal::TERM);
    assert_eq!(app.wait(), 0, "{}", app.setup.log());
    app.assert_nothing_left();
    drop(reader);
}

#[test]
fn a_reader_that_has_gone_does_not_end_the_app() {
    let port = free_port();
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let mut app = Setup::new("gone").config(&demo(port, 1)).start_with(|command| {
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
    });
    let before = app.online(1);
    drop(reader);
    assert!(crate::load::get(port, "/log?lines=2000").unwrap().contains("wrote 2000 lines"));
    assert_eq!(app.online(1).pids(), before.pids());
    app.signal(Signal::TERM);
    assert_eq!(app.wait(), 0);
    app.assert_nothing_left();
}

const CONTAINER: [&str; 4] = ["unshare", "--fork", "--pid", "--mount-proc"];

fn can_unshare(test: &str) -> bool {
    let can = procs::is_root() && procs::has("unshare") && {
        let setup = Setup::new("unshare");
        let mut command = std::process::Command::new(CONTAINER[0]);
        setup.run(command.args(&CONTAINER[1..]).arg("true")).code == 0
    };
    if !can {
        procs::skip(test, "no process namespace can be made here");
    }
    can
}

#[test]
fn as_the_first_process_it_reaps_and_stops() {
    if !can_unshare("as_the_first_process_it_reaps_and_stops") {
        return;
    }
    // Orphans: their parent ends before they do.
    let code = "import os, signal
for _ in range(30):
    if os.fork() == 0:
        if os.fork(): os._exit(0)
        os._exit(0)
for _ in range(30): os.wait()
print('all are orphans', flush=True)
while True: signal.pause()";
    let mut app = Setup::new("first").config(&python(code)).before(&CONTAINER).start();
    let state = app.online(1);
    assert_eq!(state.0["keeper_pid"], 1);
    logged(&app, "all are orphans");
    let first =
        app.eventually("a first process", || procs::children(app.keeper()).into_iter().next());
    app.eventually("no zombie", || {
        let children = procs::children(first);
        (children.len() == 2 && children.into_iter().all(procs::lives)).then_some(())
    });
    assert!(procs::signal(first, Signal::TERM));
    assert_eq!(app.wait(), 0, "{}", app.setup.log());
    app.assert_nothing_left();
}

#[test]
fn as_the_first_process_it_passes_the_exit_status_on() {
    if !can_unshare("as_the_first_process_it_passes_the_exit_status_on") {
        return;
    }
    let config = "command = [\"false\"]\nmax_restarts = 2\n";
    let mut app = Setup::new("status").config(config).before(&CONTAINER).start();
    assert_eq!(app.wait(), 69, "{}", app.setup.log());
    app.assert_nothing_left();
}
