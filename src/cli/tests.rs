use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anstream::StripStream;

use super::systemd::UnitState;
use super::*;
use crate::control::loopback::{Scratch, track_backend_state, with_app};
use crate::control::protocol::{
    AppState, Fault, FaultKind, LogLine, OtherState, RollState, UpgradeState,
};
use crate::control::server::{Call, Reply};
use crate::policy::{Outcome, Refusal, RollKind, SlotId};

mod shown;

/// A directory of sockets, with no configs beside it.
fn home(directory: &Path) -> Home {
    Home { scope: Scope::System, runtime: directory.to_owned(), config: None }
}

/// Runs a command line; gives the exit status, the data and the rest.
fn pmr(directory: &Path, line: &str) -> (Next, String, String) {
    pmr_in(vec![home(directory)], line)
}

fn pmr_in(homes: Vec<Home>, line: &str) -> (Next, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let next = {
        let mut streams = Streams {
            out: Box::new(StripStream::new(&mut out)),
            err: Box::new(StripStream::new(&mut err)),
            progress: false,
        };
        let args = line.split_whitespace().map(OsString::from);
        run_in(|_| homes, args, &mut streams)
    };
    (next, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// A command line against the story's app, whose supervisor answers changes with `outcome`.
fn against(outcome: impl Fn(&Call) -> Outcome + Send, line: &str) -> (Next, String, String) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let scratch = Scratch::new(&format!("cli-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    let answer = move |call: Call| {
        vec![match &call {
            Call::List => {
                let mut app = track_backend_state();
                app.instances[1].stderr.clear();
                Reply::App(Box::new(app))
            }
            Call::Describe => Reply::App(Box::new(track_backend_state())),
            Call::Env { .. } => Reply::Environment(
                [("PORT".to_owned(), "10000".to_owned()), ("A".to_owned(), "b=c".to_owned())]
                    .into(),
            ),
            Call::Logs { lines, .. } => {
                let line = |slot, stream: &str, text: &str| LogLine {
                    slot,
                    stream: stream.to_owned(),
                    text: text.to_owned(),
                    ..LogLine::default()
                };
                let all =
                    [line(0, "stdout", "listening"), line(1, "stderr", "TypeError: \u{1b}[1mx")];
                Reply::Lines(all.into_iter().take(usize::try_from(*lines).unwrap()).collect())
            }
            other => Reply::Outcome(outcome(other)),
        }]
    };
    with_app(&scratch.0, "track-backend", 0, answer, || pmr(&scratch.0, line))
}

fn done(_: &Call) -> Outcome {
    Outcome::Done
}

#[test]
fn nothing_runs_and_what_to_do_next() {
    let nowhere = Path::new("/nonexistent/pmr");
    for line in ["pmr status", "pmr pid", "pmr status --json"] {
        assert_eq!(pmr(nowhere, line).0, Next::Done(0), "{line}");
    }
    assert_eq!(pmr(nowhere, "pmr status --json").1, "{\"version\":1,\"apps\":[]}\n");
    insta::assert_snapshot!(pmr(nowhere, "pmr status").2, @r#"
    no app is running

    hint: `pmr run FILE` runs an app in the foreground, and `pmr demo` shows what that looks like
    "#);
    let (next, out, err) = pmr(nowhere, "pmr stop web");
    assert_eq!((next, out.as_str()), (Next::Done(1), ""));
    insta::assert_snapshot!(err, @r#"
    error: no app named `web` is running

    hint: `pmr run FILE` runs an app in the foreground, and `pmr demo` shows what that looks like
    "#);
    assert_eq!(pmr(nowhere, "pmr stop all").0, Next::Done(1));
}

#[test]
fn a_name_that_does_not_run_is_compared_with_those_that_do() {
    let (next, _, err) = against(done, "pmr describe track-backnd");
    assert_eq!(next, Next::Done(1));
    insta::assert_snapshot!(err, @r#"
    error: no app named `track-backnd` is running; did you mean `track-backend`?

    hint: running: track-backend
    "#);
    let (next, _, err) = against(done, "pmr stop /x|y/");
    assert_eq!(next, Next::Done(2));
    insta::assert_snapshot!(err, @r#"
    error: the pattern `/x|y/` cannot be used: `|` means nothing here

    hint: patterns are made of characters, `.`, `*`, `^` and `$`
    "#);
}

#[test]
fn changes_are_asked_for_and_reported() {
    for (line, expected) in [
        ("pmr start track-backend", "Start { slot: None }"),
        ("pmr stop all 1", "Stop { slot: Some(1) }"),
        ("pmr restart /track/", "Restart { slot: None }"),
        ("pmr reload track-backend", "Reload"),
        ("pmr scale track-backend 4", "Scale { count: 4 }"),
        ("pmr scale track-backend +2", "Scale { count: 4 }"),
        ("pmr scale track-backend -1", "Scale { count: 1 }"),
        ("pmr signal USR2 track-backend 0", "Signal { slot: Some(0), signal: 12 }"),
        (
            "pmr set track-backend memory_max=600M tasks_max=",
            r#"Set { values: {"memory_max": "600M", "tasks_max": ""} }"#,
        ),
        ("pmr reset track-backend", "Reset { slot: None }"),
        ("pmr stop track-backend --timeout 20s", "Stop { slot: None }"),
        ("pmr stop track-backend --no-wait", "Stop { slot: None }"),
    ] {
        let seen = move |call: &Call| {
            assert_eq!(format!("{call:?}"), expected);
            Outcome::Done
        };
        let (next, out, err) = against(seen, line);
        assert_eq!((&next, out.as_str()), (&Next::Done(0), ""), "{line}: {err}");
        assert!(err.contains("`track-backend`"), "{err}");
    }
    let (_, _, err) = against(done, "pmr restart track-backend");
    assert_eq!(err, "restarted `track-backend`: 1/2 online, 1 waiting\n");
    let (_, _, err) = against(|_| Outcome::AlreadySo, "pmr stop track-backend");
    assert_eq!(err, "nothing to do for `track-backend`: 1/2 online, 1 waiting\n");
}

#[test]
fn each_outcome_has_its_words_and_its_exit_status() {
    let words = |outcome, line| {
        let (next, _, err) = against(move |_: &Call| outcome, line);
        format!("{next:?}\n{err}")
    };
    let slot = SlotId(1);
    insta::assert_snapshot!(words(Outcome::Failed(slot), "pmr reload track-backend"), @r#"
    Done(3)
    error: cannot reload `track-backend`: new instance of slot 1 not ready; the old one serves

    hint: `pmr describe track-backend` shows why, with the last lines of its output
    "#);
    insta::assert_snapshot!(words(Outcome::Failed(slot), "pmr restart track-backend"), @r#"
    Done(1)
    error: cannot restart `track-backend`: slot 1 did not come online

    hint: `pmr describe track-backend` shows why, with the last lines of its output
    "#);
    let busy = Outcome::Refused(Refusal::Busy(RollKind::Reload));
    insta::assert_snapshot!(words(busy, "pmr scale track-backend 3"), @r#"
    Done(1)
    error: cannot scale `track-backend`: a reload is running
    "#);
    let none = Outcome::Refused(Refusal::NoSuchSlot(SlotId(7)));
    insta::assert_snapshot!(words(none, "pmr stop track-backend 7"), @r#"
    Done(1)
    error: cannot stop `track-backend`: there is no slot 7

    hint: `pmr status track-backend` shows its slots
    "#);
}

#[test]
fn logs_env_and_pid_print_data_only() {
    let (_, out, err) = against(done, "pmr logs track-backend -n 2");
    assert_eq!(out, "0|track-backend | listening\n1|track-backend | TypeError: x\n");
    assert_eq!(err, "");
    let (_, out, _) = against(done, "pmr logs all --level err");
    assert_eq!(out, "1|track-backend | TypeError: x\n");
    let (_, out, _) = against(done, "pmr logs /track/ -n 1 --level info");
    assert_eq!(out, "1|track-backend | TypeError: x\n", "the last of all that are meant");
    let (_, out, _) = against(done, "pmr logs track-backend --since 1h");
    assert_eq!(out, "", "they are of 1970");
    let (_, out, _) = against(done, "pmr logs track-backend -n 1 --json");
    // A line for each field.
    insta::assert_snapshot!(out.replace(",\"", ",\n\""), @r#"
    {"version":1,
    "at_ms":0,
    "app":"track-backend",
    "origin":"app",
    "slot":0,
    "generation":0,
    "level":"info",
    "event":null,
    "text":"listening"}
    "#);
    let (_, out, _) = against(done, "pmr env track-backend 0");
    assert_eq!(out, "A=b=c\nPORT=10000\n");
    for line in ["pmr pid", "pmr pid track-backend"] {
        assert_eq!(against(done, line).1, "4242\n");
    }
}

#[test]
fn a_change_that_takes_too_long_has_its_exit_status() {
    let scratch = Scratch::new("cli-slow");
    let never = |call: Call| match call {
        Call::List => vec![Reply::App(Box::new(track_backend_state()))],
        _ => vec![],
    };
    let (next, _, err) =
        with_app(&scratch.0, "web", 0, never, || pmr(&scratch.0, "pmr restart web --timeout 10ms"));
    assert_eq!(next, Next::Done(4));
    insta::assert_snapshot!(err, @r#"
    error: cannot restart `web`: not done within 10ms

    hint: it goes on; `pmr status web` shows how far it is
    "#);
}

#[test]
fn who_may_not_is_told_who_may() {
    let scratch = Scratch::new("cli-denied");
    let none = |call: Call| panic!("{call:?} must not reach the app");
    with_app(&scratch.0, "web", 4000, none, || {
        let (next, _, err) = pmr(&scratch.0, "pmr stop web");
        assert_eq!(next, Next::Done(5));
        let who = "only root, the app's user and group `pmr-admin` may do this";
        assert_eq!(err, format!("error: cannot stop `web`: {who}\n"));
        assert_eq!(pmr(&scratch.0, "pmr status").0, Next::Done(5));
    });
}

/// The app's answers to an upgrade: the second look at it finds another supervisor, the third the
/// outcome.
fn upgrading(rolled_back: bool) -> impl FnMut(Call) -> Vec<Reply> {
    let mut asked = false;
    let mut app = track_backend_state();
    move |call: Call| {
        if asked && call == Call::List {
            let upgrade = || UpgradeState {
                from: "0.1.0".to_owned(),
                to: if rolled_back { "0.1.0" } else { "0.2.0" }.to_owned(),
                rolled_back,
            };
            app.upgrade = (app.supervisor_pid == 200).then(upgrade);
            app.supervisor_pid = 200;
        }
        asked |= call == Call::Upgrade;
        match call {
            Call::List => vec![Reply::App(Box::new(app.clone()))],
            _ => vec![Reply::Outcome(Outcome::Done)],
        }
    }
}

#[test]
fn an_upgrade_ends_when_the_next_supervisor_says_so() {
    let upgrade = |rolled_back| {
        let scratch = Scratch::new(&format!("cli-upgrade-{rolled_back}"));
        let answer = upgrading(rolled_back);
        with_app(&scratch.0, "web", 0, answer, || pmr(&scratch.0, "pmr upgrade web"))
    };
    let (next, _, err) = upgrade(false);
    assert_eq!(next, Next::Done(0), "{err}");
    assert!(err.starts_with("upgraded `track-backend` from pmr 0.1.0 to 0.2.0: 1/2"), "{err}");
    let (next, _, err) = upgrade(true);
    assert_eq!(next, Next::Done(3), "{err}");
    assert!(
        err.contains("the new binary did not take over `track-backend`; pmr 0.1.0 goes on"),
        "{err}"
    );
}

#[test]
fn every_app_is_upgraded_whatever_becomes_of_the_others() {
    let refused = |call: Call| match call {
        Call::List => vec![Reply::App(Box::new(track_backend_state()))],
        _ => vec![Reply::Fault(Fault::new(FaultKind::Failed, "nothing was changed: too old"))],
    };
    let lines = ["pmr upgrade --all", "pmr upgrade all", "pmr upgrade a b", "pmr upgrade /[ab/ b"];
    for (number, line) in lines.into_iter().enumerate() {
        let scratch = Scratch::new(&format!("cli-upgrade-all-{number}"));
        with_app(&scratch.0, "a", 0, refused, || {
            with_app(&scratch.0, "b", 0, upgrading(false), || {
                let (next, _, err) = pmr(&scratch.0, line);
                if line.contains('[') {
                    assert_eq!(next, Next::Done(2), "nothing is done: {err}");
                    return;
                }
                assert_eq!(next, Next::Done(1), "{line}: {err}");
                assert!(err.starts_with("upgraded `track-backend` from"), "{line}: {err}");
                assert!(err.contains("cannot upgrade `a`: nothing was changed"), "{line}: {err}");
                assert!(err.contains("hint: `a` runs on as before"), "{line}: {err}");
            });
        });
    }
    let scratch = Scratch::new("cli-upgrade-none");
    let (next, _, err) = pmr(&scratch.0, "pmr upgrade --all");
    assert_eq!((next, err.as_str()), (Next::Done(0), ""), "nothing to do");
    assert_eq!(pmr(&scratch.0, "pmr upgrade all").0, Next::Done(1));
    assert_eq!(pmr(&scratch.0, "pmr upgrade").0, Next::Done(2));
    assert_eq!(pmr(&scratch.0, "pmr upgrade --all web").0, Next::Done(2));
}

#[test]
fn one_app_that_fails_does_not_hide_the_others() {
    let scratch = Scratch::new("cli-two");
    let good = |_: Call| vec![Reply::App(Box::new(track_backend_state()))];
    let bad = |_: Call| vec![Reply::Fault(Fault::new(FaultKind::Failed, "out of order"))];
    with_app(&scratch.0, "a", 0, bad, || {
        with_app(&scratch.0, "b", 0, good, || {
            let (next, out, err) = pmr(&scratch.0, "pmr status");
            assert_eq!(next, Next::Done(1));
            assert!(out.contains("\ntrack-backend   1"), "{out}");
            assert!(err.contains("cannot show `a`: out of order"), "{err}");
        });
    });
}

/// Takes nothing, as a pipe whose reader has gone.
struct Gone;

impl io::Write for Gone {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    for line in ["pmr --help", "pmr status --json", "pmr pid nothing"] {
        let mut err = Vec::new();
        let next = {
            let mut streams =
                Streams { out: Box::new(Gone), err: Box::new(&mut err), progress: false };
            let args = line.split_whitespace().map(OsString::from);
            run_in(|_| vec![home(Path::new("/nonexistent"))], args, &mut streams)
        };
        let expected = u8::from(line.ends_with("nothing"));
        assert_eq!(next, Next::Done(expected), "{line}");
        assert_eq!(err.is_empty(), expected == 0);
    }
}

#[test]
fn what_needs_more_than_a_socket_is_handed_back() {
    let path = PathBuf::from;
    for (line, next) in [
        (
            "pmr run web.toml --env production",
            Next::Supervise { config: path("web.toml"), overlay: Some("production".to_owned()) },
        ),
        ("pmr demo", Next::Demo { port: 10_000, instances: 2 }),
        ("pmr demo --port 80 --instances 3", Next::Demo { port: 80, instances: 3 }),
        ("pmr check a b --json", Next::Check { files: vec![path("a"), path("b")], json: true }),
        ("pmr init", Next::Init { name: None, output: None }),
        (
            "pmr import ecosystem.config.js -o /etc/pmr --force",
            Next::Import {
                file: path("ecosystem.config.js"),
                directory: path("/etc/pmr"),
                force: true,
            },
        ),
        ("pmr --version", Next::Done(0)),
        ("pmr", Next::Done(2)),
        ("pmr frobnicate", Next::Done(2)),
        ("pmr check", Next::Done(2)),
        ("pmr init a/b", Next::Done(2)),
        ("pmr demo --instances 10000", Next::Done(2)),
        ("pmr demo --port 0", Next::Done(2)),
        ("pmr scale web ten", Next::Done(2)),
        ("pmr signal FOO web", Next::Done(2)),
        ("pmr stop web --timeout soon", Next::Done(2)),
        ("pmr stop web --timeout 5s --no-wait", Next::Done(2)),
    ] {
        assert_eq!(pmr(Path::new("/nonexistent"), line).0, next, "{line}");
    }
}

#[test]
fn completions_and_help_are_data() {
    let nowhere = Path::new("/nonexistent");
    for shell in ["bash", "zsh", "fish"] {
        let (next, out, _) = pmr(nowhere, &format!("pmr completions {shell}"));
        assert_eq!(next, Next::Done(0));
        assert!(out.contains("restart"), "{shell}");
    }
    let (_, help, _) = pmr(nowhere, "pmr --help");
    insta::assert_snapshot!(help, @r#"
    Keeps N instances of an app running behind one port

    Usage: pmr [OPTIONS] <COMMAND>

    Commands:
      run          Run the app of a config file in the foreground
      demo         Run a small backend that can be crashed, to see what happens
      check        Check config files: every problem, with its place
      init         Write a commented example of a config
      import       Make configs of a PM2 ecosystem file
      status       Show all apps, running or not: a line for every slot [aliases: ls, list]
      describe     Show everything about an app [alias: show]
      metrics      Print what `status` shows in the format of Prometheus
      start        Start an app, or those of its slots that are stopped, errored or waiting
      stop         Stop an app or a slot, and stay stopped
      restart      Stop and start again, slot by slot; an app that does not run is started
      enable       Have an app started at boot
      disable      Have an app started at boot no longer
      reload       Read the config again and replace slot by slot; what does not come up is not kept
      scale        Change how many instances there are
      set          Change limits of running instances, until the next reload or restart
      signal       Send a signal to the main process of every instance
      reset        Forget restarts and the count of unstable exits
      logs         Show the last lines of output, and what pmr did
      pid          Print the process ids of the instances, one a line
      env          Print the environment of an instance
      upgrade      Let running apps go on under the pmr that is on disk now, one after the other
      completions  Print a completion script
      help         Print this message or the help of the given subcommand(s)

    Options:
          --system   Only the machine's apps
          --user     Only the apps of this user's service manager
      -h, --help     Print help
      -V, --version  Print version

    Targets:
      NAME       the app of that name
      all        every app
      /PATTERN/  every app whose name contains PATTERN; `.` is any character, `*` repeats the one
                 before it, `^` and `$` are the name's ends: /^web-/ or /api.*v2$/

    Exit status:
      0  done
      1  failed
      2  the command line cannot be used
      3  rolled back: the new version did not come up, the old one serves
      4  not done within --timeout
      5  denied

    Configs of apps that systemd starts are in /etc/pmr; the unit of /etc/pmr/web.toml is
    pmr@web.service. A user's own, under `systemctl --user`, are in ~/.config/pmr. Root means the
    machine's apps, and a user the own ones first, then the machine's: --system and --user choose.
    Apps that run are looked for in $XDG_RUNTIME_DIR/pmr and /run/pmr, or only in $PMR_RUNTIME_DIR.
    "#);
    for state in [AppState::default(), track_backend_state()] {
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<AppState>(&text).unwrap(), state);
    }
}
