//! The command line, as scripts and people use it.

use std::fs;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::app::{App, Setup, demo, free_port, python};
use crate::load::get;
use crate::procs::{self, PATIENCE_MS, wait_for};
use crate::shared::assert_has;

/// An app that does nothing.
const IDLE: &str = "import signal\nsignal.pause()";

/// Runs `pmr VERB WORDS` and asserts its exit status. Returns what it said on stderr.
fn fails(app: &App, code: i32, words: &[&str]) -> String {
    let done = app.pmr(words);
    assert_eq!((done.code, done.out.as_str()), (code, ""), "{words:?}: {}", done.err);
    done.err
}

#[test]
fn where_nothing_runs_it_says_what_to_do() {
    let setup = Setup::new("nothing");
    for words in [&["status"][..], &["ls"], &["list"]] {
        let done = setup.pmr(words);
        assert_eq!((done.code, done.out.as_str()), (0, ""));
        assert_has(&done.err, &["no app is running", "hint: `pmr run FILE`", "`pmr demo`"]);
    }
    assert_eq!(setup.pmr(&["status", "--json"]).out, "{\"version\":1,\"apps\":[]}\n");
    let done = setup.pmr(&["pid"]);
    assert_eq!((done.code, done.out.as_str(), done.err.as_str()), (0, "", ""));
    for words in [&["stop", "web"][..], &["stop", "all"], &["describe", "web"], &["logs", "web"]] {
        let done = setup.pmr(words);
        assert_eq!((done.code, done.out.as_str()), (1, ""), "{words:?}");
        assert_has(&done.err, &["error: no app ", "hint: `pmr run FILE`"]);
    }
    // A socket that was left behind is no app.
    let directory = setup.runtime.join("web");
    fs::create_dir(&directory).unwrap();
    drop(std::os::unix::net::UnixListener::bind(directory.join("io.pmr.App")).unwrap());
    let done = setup.pmr(&["status"]);
    assert_eq!(done.code, 0);
    assert_has(&done.err, &["no app is running"]);
}

#[test]
fn the_status_has_a_schema() {
    let port = free_port();
    let app = Setup::new("schema").config(&demo(port, 2)).start();
    app.online(2);
    let done = app.pmr(&["status", "--json"]);
    // The order too: it is what a person sees who prints it.
    let keys = ["\"version\":1,\"apps\":[{\"name\":", "\"status\":", "\"mode\":", "\"level\":"];
    let of_slot = ["\"instances\":[{\"id\":0", "\"generation\":", "\"pid\":", "\"status\":"];
    let figures = ["\"memory_bytes\":", "\"cpu_percent\":", "\"restarts\":", "\"uptime_ms\":"];
    let mut rest = done.out.as_str();
    for key in keys.iter().chain(&of_slot).chain(&figures) {
        let place = rest.find(key).unwrap_or_else(|| panic!("no {key} in {}", done.out));
        rest = &rest[place + key.len()..];
    }
    let state = app.status();
    assert_eq!(state.0["name"], app.setup.name.as_str());
    assert_eq!((&state.0["status"], &state.0["mode"]), (&"online".into(), &"cluster".into()));
    assert!(["full", "tracking", "bare"].contains(&state.level()));
    assert!(state.number(1, "memory_bytes") > 4096 && state.number(1, "memory_bytes") != u64::MAX);
    assert!(state.slot(1)["cpu_percent"].is_number() && state.slot(1)["uptime_ms"].is_u64());
    let table = app.pmr(&["status"]).out;
    assert_has(table.lines().next().unwrap(), &["NAME", "ID", "MODE", "PID", "MEM", "CPU"]);
    assert_has(table.lines().next().unwrap(), &["STATUS", "RESTARTS", "UPTIME"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    let described = app.command("describe", &[]).out;
    let place = format!("cluster on [::]:{port}");
    assert_has(&described, &[&place, "slot 0: online", "slot 1: online", "0/10 unstable exits"]);
    let described = app.command("describe", &["--json"]).out;
    assert_has(&described, &["{\"version\":1,\"app\":{\"name\":"]);
}

#[test]
fn targets_are_names_all_and_patterns() {
    let app = Setup::new("targets").config(&python(IDLE)).start();
    app.online(1);
    let name = app.setup.name.clone();
    let wrong = format!("{name}x");
    for verb in ["stop", "describe", "pid", "logs", "reset", "restart", "status"] {
        let said = fails(&app, 1, &[verb, &wrong]);
        assert_has(&said, &[&format!("did you mean `{name}`?"), &format!("running: {name}")]);
    }
    assert_eq!(app.pmr(&["pid", "all"]).out, app.pmr(&["pid", &name]).out);
    assert_eq!(app.pmr(&["pid", "/^it-targets/"]).out, app.pmr(&["pid"]).out);
    assert_has(&fails(&app, 1, &["pid", "/^nothing$/"]), &["no app that is running matches"]);
    assert_has(&fails(&app, 2, &["pid", "/a[b]/"]), &["cannot be used: `[`", "hint: "]);
    let done = app.pmr(&["stop", "/^it-targets/"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_has(&done.err, &["stopped `it-targets", "0/1 online, 1 stopped"]);
    let table = app.command("status", &[]).out;
    assert_has(table.lines().nth(1).unwrap(), &[&name, " stopped ", " - "]);
    let again = app.command("stop", &[]);
    assert_has(&again.err, &["nothing to do for"]);
    let done = app.pmr(&["start", "all"]);
    assert_eq!(done.code, 0, "{}", done.err);
    app.online(1);
}

#[test]
fn one_slot_can_be_meant() {
    let app = Setup::new("slots").config(&format!("{}instances = 2\n", python(IDLE))).start();
    let before = app.online(2);
    app.command("stop", &["1"]);
    let state = app.status();
    assert_eq!((state.word(0), state.word(1)), ("online", "stopped"));
    assert_eq!(state.pid(0), before.pid(0));
    assert_eq!(state.0["status"], "online", "what was stopped by hand is not missing");
    app.command("start", &["1"]);
    let state = app.online(2);
    assert_eq!(state.pid(0), before.pid(0));
    for words in [
        &["stop", &app.setup.name, "7"][..],
        &["logs", &app.setup.name, "7"],
        &["env", &app.setup.name, "7"],
        &["signal", "HUP", &app.setup.name, "7"],
    ] {
        let said = fails(&app, 1, words);
        assert_has(&said, &["slot 7", "shows its slots"]);
    }
}

#[test]
fn what_is_described_as_said_last_is_of_one_instance() {
    let code = "import os, signal, sys\n\
                print('said by', os.getpid(), file=sys.stderr, flush=True)\nsignal.pause()";
    let app = Setup::new("said").config(&python(code)).start();
    let said = |pid: u32| {
        let logged = || app.command("logs", &[]).out.contains(&format!("said by {pid}"));
        app.eventually("its line", || logged().then_some(()));
    };
    let first = app.online(1).pids()[0];
    said(first);
    assert_has(&app.command("describe", &[]).out, &[&format!("last stderr said by {first}\n")]);
    assert!(procs::signal(first, Signal::KILL));
    let second = app.state("the next one", |state| state.pid(0).is_some_and(|it| it != first));
    let second = second.pids()[0];
    said(second);
    let described = app.command("describe", &[]).out;
    assert_has(&described, &["last exit ", &format!("last stderr said by {first}\n")]);
    assert!(!described.contains(&format!("said by {second}")), "{described}");
    // Nobody failed since a person asked for another.
    app.command("restart", &[]);
    let third = app.online(1).pids()[0];
    said(third);
    let described = app.command("describe", &[]).out;
    assert_has(&described, &[&format!("last stderr said by {third}\n")]);
    assert!(!described.contains(&format!("said by {second}")), "{described}");
}

#[test]
fn the_number_of_instances_goes_up_and_down() {
    let app = Setup::new("scale").config(&python(IDLE)).start();
    let first = app.online(1).pids();
    assert_has(&app.command("scale", &["+2"]).err, &["scaled", "3/3 online"]);
    let three = app.online(3);
    assert_has(&app.command("scale", &["-1"]).err, &["2/2 online"]);
    let two = app.online(2);
    assert_eq!(two.pids(), three.pids()[..2]);
    assert_eq!(two.pids()[0], first[0]);
    app.command("scale", &["1"]);
    assert_eq!(app.online(1).pids(), first);
    let name = app.setup.name.clone();
    assert_has(&fails(&app, 1, &["scale", &name, "-1"]), &["0 is no number of instances"]);
    assert_has(&fails(&app, 2, &["scale", &name, "10000"]), &["1 to 256"]);
    assert_eq!(app.status().pids(), first);
}

#[test]
fn a_signal_reaches_the_main_process() {
    let code = "import signal\ndef usr(*_):\n print('got it', flush=True)\n\
                signal.signal(signal.SIGUSR1, usr)\nprint('set', flush=True)\n\
                while True: signal.pause()";
    let app = Setup::new("signal").config(&python(code)).start();
    app.eventually("a handler", || app.setup.read("stdout").contains("| set\n").then_some(()));
    let pids = app.online(1).pids();
    let done = app.pmr(&["signal", "USR1", &app.setup.name]);
    assert_eq!(done.code, 0, "{}", done.err);
    app.eventually("a signal", || app.setup.read("stdout").contains("| got it").then_some(()));
    assert_eq!(app.status().pids(), pids);
    assert_has(&fails(&app, 2, &["signal", "FOO", &app.setup.name]), &["no signal SIGFOO"]);
}

#[test]
fn restarts_can_be_forgotten() {
    let app = Setup::new("reset").config(&python(IDLE)).start();
    let pid = app.online(1).pids()[0];
    assert!(procs::signal(pid, Signal::KILL));
    let state = app
        .state("a restart", |state| state.word(0) == "online" && state.number(0, "restarts") == 1);
    assert_eq!(state.number(0, "unstable"), 1);
    assert_has(&app.command("status", &[]).out, &["limit 1/10"]);
    app.command("reset", &[]);
    let after = app.status();
    assert_eq!((after.number(0, "restarts"), after.number(0, "unstable")), (0, 0));
    assert_eq!(after.pids(), state.pids());
}

#[test]
fn output_can_be_read_and_followed() {
    let port = free_port();
    let app = Setup::new("logs").config(&demo(port, 1)).start();
    app.online(1);
    app.eventually("lines", || get(port, "/log?lines=20").ok());
    let name = app.setup.name.clone();
    let lines = |words: &[&str]| -> Vec<String> {
        let done = app.command("logs", words);
        done.out.lines().map(str::to_owned).collect()
    };
    app.eventually("all lines", || (lines(&["-n", "200"]).len() > 20).then_some(()));
    let three = lines(&["-n", "3"]);
    assert_eq!(three.len(), 3, "{three:?}");
    assert!(three.iter().all(|line| line.starts_with(&format!("0|{name} | "))), "{three:?}");
    assert_eq!(lines(&[]).len(), 15, "as many as PM2 shows");
    assert_eq!(lines(&["-n", "0"]).len(), 0);
    let errors = lines(&["--level", "err", "--json", "-n", "2"]);
    assert_eq!(errors.len(), 2, "{errors:?}");
    for line in errors {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["level"], &line["slot"]), (&"err".into(), &0.into()), "{line}");
    }
    assert_eq!(lines(&["--since", "1h"]).len(), lines(&["-n", "200"]).len());

    let path = app.setup.directory.join("followed");
    let mut follower = Command::new(app.setup.binary())
        .args(["logs", &name, "-n", "1", "-f"])
        .env("PMR_RUNTIME_DIR", &app.setup.runtime)
        .stdin(Stdio::null())
        .stdout(fs::File::create(&path).unwrap())
        .spawn()
        .unwrap();
    let seen = || app.setup.read("followed").lines().count();
    let first = wait_for(PATIENCE_MS, || (seen() == 1).then_some(()));
    get(port, "/log?lines=5").unwrap();
    let more = wait_for(PATIENCE_MS, || (seen() > 5).then_some(()));
    // It goes on over the death of the supervisor.
    let dead = app.kill_supervisor();
    app.state("another supervisor", |state| state.0["supervisor_pid"] != dead);
    let after = wait_for(PATIENCE_MS, || {
        get(port, "/log?lines=5").unwrap();
        (seen() > 25).then_some(())
    });
    assert!(follower.try_wait().unwrap().is_none());
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert!(first.is_some() && more.is_some() && after.is_some(), "{}", app.setup.read("followed"));
}

#[test]
fn the_environment_is_shown() {
    let config = format!("{}[env]\nGREETING = \"hello world\"\n", python(IDLE));
    let app = Setup::new("env").config(&config).start();
    app.online(1);
    let shown = app.command("env", &["0"]).out;
    let app_line = format!("PMR_APP={}\n", app.setup.name);
    assert_has(&shown, &["GREETING=hello world\n", "PMR_INSTANCE=0\n", &app_line]);
    assert_has(&shown, &["NODE_APP_INSTANCE=0\n"]);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let app = Setup::new("pipe").config(&python(IDLE)).start();
    app.online(1);
    for verb in ["status", "describe", "env", "--help", "completions"] {
        let words = match verb {
            "status" | "--help" => vec![verb],
            "env" => vec![verb, &app.setup.name, "0"],
            "completions" => vec![verb, "bash"],
            _ => vec![verb, &app.setup.name],
        };
        // The reading end is closed before the command starts.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(app.setup.binary());
        command.args(&words).env("PMR_RUNTIME_DIR", &app.setup.runtime).stdin(Stdio::null());
        let done = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!((done.status.code(), said.as_ref()), (Some(0), ""), "{words:?}");
    }
}

#[test]
fn there_is_colour_on_a_terminal_only_and_none_with_no_color() {
    let app = Setup::new("colour").config(&python(IDLE)).start();
    app.online(1);
    assert!(!app.pmr(&["status"]).out.contains('\u{1b}'));
    assert!(!app.pmr(&["status", "nobody"]).err.contains('\u{1b}'));
    if !procs::has("script") {
        return procs::skip("there_is_colour_on_a_terminal_only", "it takes script");
    }
    let on_terminal = |no_color: &str| {
        let mut command = Command::new("script");
        let line = format!("{} status", app.setup.binary().display());
        command.args(["-qec", &line, "/dev/null"]).env("PMR_RUNTIME_DIR", &app.setup.runtime);
        command.env("TERM", "xterm").env("NO_COLOR", no_color).env_remove("CI");
        let done = app.setup.run(&mut command);
        assert_eq!(done.code, 0, "{}", done.err);
        done.out
    };
    assert!(on_terminal("").contains("\u{1b}[32monline"));
    assert!(!on_terminal("1").contains('\u{1b}'));
}

#[test]
fn patience_ends_and_the_stop_goes_on() {
    let port = free_port();
    let config = demo(port, 1).replace("\"5s\"", "\"30s\"");
    let app = Setup::new("patience").config(&config).start();
    let pid = app.online(1).pids()[0];
    get(port, "/stubborn").unwrap();
    let said = fails(&app, 4, &["stop", &app.setup.name, "--timeout", "1s"]);
    assert_has(&said, &["cannot stop", "not done within 1s", "it goes on"]);
    let state = app.status();
    assert_eq!((state.word(0), state.pid(0)), ("draining", Some(pid)));
    // The end comes earlier than that: nobody waits here for half a minute.
    assert!(procs::signal(pid, Signal::KILL));
    let state = app.state("the end of the stop", |state| state.word(0) == "stopped");
    assert_eq!(state.number(0, "restarts"), 0, "it was asked for");
    let done = app.pmr(&["start", &app.setup.name, "--no-wait"]);
    assert_eq!(done.code, 0);
    assert_has(&done.err, &["asked `", "` to start"]);
    app.online(1);
}

#[test]
fn a_reload_that_does_not_come_up_is_rolled_back() {
    let port = free_port();
    let config = demo(port, 1);
    let setup = Setup::new("rollback").config(&config);
    let path = setup.config_path();
    let app = setup.start();
    let before = app.online(1);
    fs::write(&path, config.replace("demo-backend", "no-such-verb")).unwrap();
    let said = fails(&app, 3, &["reload", &app.setup.name]);
    assert_has(&said, &["cannot reload", "the old one serves", "pmr describe"]);
    let after = app.status();
    assert_eq!((after.pids(), after.word(0)), (before.pids(), "online"));
    assert_eq!(get(port, "/health").unwrap(), "ok\n");
}

#[test]
fn the_command_line_explains_itself() {
    let setup = Setup::new("help");
    let help = setup.pmr(&["--help"]);
    assert_eq!((help.code, help.err.as_str()), (0, ""));
    for line in
        ["0  done", "1  failed", "2  the command line", "3  rolled back", "4  ", "5  denied"]
    {
        assert_has(&help.out, &[line]);
    }
    let verbs = help.out.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let mut seen = 0;
    for line in verbs.lines().filter(|line| line.starts_with("  ")) {
        let (verb, about) = line.trim().split_once("  ").unwrap();
        let about = about.trim().split(" [").next().unwrap();
        let own = setup.pmr(&[verb, "--help"]);
        if verb != "help" {
            assert_eq!(own.code, 0, "{verb}: {}", own.err);
            assert_has(&own.out, &[about, "Usage: pmr "]);
        }
        seen += 1;
    }
    assert!(seen >= 19, "{verbs}");
    assert!(help.out.lines().all(|line| line.chars().count() <= 100), "{}", help.out);
    assert_eq!(setup.pmr(&["--version"]).out, concat!("pmr ", env!("CARGO_PKG_VERSION"), "\n"));
    for shell in ["bash", "zsh", "fish"] {
        let done = setup.pmr(&["completions", shell]);
        assert_eq!(done.code, 0);
        assert_has(&done.out, &["pmr", "restart", "describe"]);
    }
    for words in [&[][..], &["strat"], &["stop"], &["run"], &["status", "--jsn"]] {
        let done = setup.pmr(words);
        assert_eq!((done.code, done.out.as_str()), (2, ""), "{words:?}");
        assert_has(&done.err, &["Usage:"]);
    }
    assert_has(&setup.pmr(&["strat"]).err, &["'start'"]);
}
