//! Apps as units of systemd: started, stopped, enabled and shown over D-Bus.

use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::app::{Setup, python};
use crate::bus::{Answer, Machine};
use crate::procs;
use crate::shared::assert_has;

/// An app that does nothing.
const IDLE: &str = "import signal\nsignal.pause()";

/// What was asked for beside looks at units.
fn asked(machine: &Machine) -> Vec<String> {
    machine.calls().into_iter().filter(|call| call != "Subscribe").collect()
}

#[test]
fn a_start_waits_for_its_job_however_early_that_ends() {
    let Some(machine) = Machine::new("unit-start") else { return };
    machine.app("web", |_| ());
    let done = machine.ends(0, &["start", "web"]);
    assert_eq!((done.out.as_str(), done.err.as_str()), ("", "started `web`\n"));
    assert_eq!(machine.calls(), ["Subscribe", "StartUnit pmr@web.service"], "in this order");
    assert!(machine.was_interactive(), "polkit may ask");
    machine.app("late", |unit| unit.text = "1/2 online");
    machine.answer(Answer::EndsLater("done"));
    let done = machine.ends(0, &["start", "late"]);
    assert_eq!(done.err, "started `late`: 1/2 online\n");
    // Nobody says that the job ended, and it is not there any more.
    machine.app("quiet", |_| ());
    machine.answer(Answer::Vanishes);
    assert_eq!(machine.ends(0, &["start", "quiet"]).err, "started `quiet`\n");
}

#[test]
fn a_job_that_fails_says_why_with_the_last_lines() {
    let Some(machine) = Machine::new("unit-fails") else { return };
    machine.app("web", |_| ());
    machine.journal(&["TypeError: x", "bye"]);
    machine.answer(Answer::EndsLater("failed"));
    let done = machine.ends(1, &["start", "web"]);
    let why = "its unit failed (exit status 69: slots are errored, and none serves)";
    assert_has(&done.err, &["error: cannot start `web`: ", why, "\n  | TypeError: x\n  | bye\n"]);
    assert_has(&done.err, &["hint: `pmr describe web`"]);
    let words = machine.setup.read("bin/asked");
    assert_has(&words, &["--quiet --no-pager ", " --lines=10 ", "unit=pmr@web.service"]);
    for (result, words) in [
        ("canceled", "another job took its place"),
        ("timeout", "the job timed out"),
        ("dependency", "a unit that it needs could not be started"),
        ("something", "the job ended as `something`"),
    ] {
        machine.app("web", |_| ());
        machine.answer(Answer::EndsLater(result));
        assert_has(&machine.ends(1, &["restart", "web"]).err, &["cannot restart `web`: ", words]);
    }
}

#[test]
fn who_may_not_is_told_what_may() {
    let Some(machine) = Machine::new("unit-denied") else { return };
    machine.app("web", |_| ());
    for answer in [Answer::Denied, Answer::NeedsPassword] {
        machine.answer(answer);
        let done = machine.ends(5, &["start", "web"]);
        assert_has(&done.err, &["cannot start `web`: ", "only root", "hint: `sudo pmr start web`"]);
    }
    machine.unit("web", |unit| unit.active = "active");
    let done = machine.ends(5, &["stop", "web"]);
    assert_has(&done.err, &["cannot stop `web`: ", "hint: `sudo pmr stop web`"]);
}

#[test]
fn nothing_that_hangs_makes_a_command_hang() {
    let Some(machine) = Machine::new("unit-hangs") else { return };
    machine.app("web", |_| ());
    for answer in [Answer::Silence, Answer::NeverEnds] {
        machine.answer(answer);
        let done = machine.ends(4, &["start", "web", "--timeout", "500ms"]);
        assert_has(&done.err, &["cannot start `web`: not done within 500ms", "it goes on"]);
    }
    let done = machine.ends(0, &["start", "web", "--no-wait"]);
    assert_eq!(done.err, "asked systemd to start `web`\n");
    // The bus stands still: without any --timeout.
    assert!(procs::signal(machine.daemon.id(), Signal::STOP));
    let done = machine.ends(4, &["start", "web"]);
    assert_has(&done.err, &["cannot start `web`: systemd does not answer over D-Bus"]);
    let done = machine.ends(0, &["status"]);
    assert_has(&done.out, &["web", "not running"]);
    assert_has(&done.err, &["note: systemd does not answer over D-Bus"]);
}

#[test]
fn a_systemd_that_is_away_for_a_while_does_not_end_the_wait() {
    let Some(machine) = Machine::new("unit-reexec") else { return };
    machine.app("web", |_| ());
    machine.answer(Answer::NeverEnds);
    std::thread::scope(|scope| {
        let start = scope.spawn(|| machine.ends(0, &["start", "web"]));
        procs::eventually("the job", || {
            machine.calls().iter().any(|call| call.starts_with("StartUnit")).then_some(())
        });
        machine.leave();
        machine.unit("web", |unit| (unit.active, unit.text) = ("active", "1/1 online"));
        // The command looks once a second. It finds nobody, and goes on.
        procs::pause(1500);
        machine.join();
        assert_eq!(start.join().unwrap().err, "started `web`: 1/1 online\n");
    });
}

#[test]
fn without_a_bus_the_sockets_still_work() {
    let Some(mut machine) = Machine::new("unit-nobus") else { return };
    machine.app("web", |_| ());
    machine.leave();
    let done = machine.ends(1, &["start", "web"]);
    assert_has(&done.err, &["cannot start `web`: there is a D-Bus, but systemd is not on it"]);
    machine.end_bus();
    let done = machine.ends(1, &["start", "web", "--system"]);
    assert_has(&done.err, &["cannot start `web`: systemd cannot be reached over D-Bus: "]);
    assert_has(&done.err, &["No such file", "hint: "]);
    let done = machine.ends(0, &["status"]);
    assert_has(&done.out, &["web", "not running"]);
    assert_has(&done.err, &["note: ", "systemd cannot be reached over D-Bus"]);
    let done = machine.ends(0, &["describe", "web"]);
    assert_has(&done.out, &["web: not running", "etc/web.toml"]);
}

#[test]
fn a_user_has_a_service_manager_of_its_own() {
    let Some(mut machine) = Machine::new("unit-user") else { return };
    machine.app("web", |_| ());
    machine.ends(0, &["--user", "start", "web"]);
    assert_eq!(asked(&machine), ["StartUnit pmr@web.service"]);
    machine.ends(2, &["--user", "start", "web", "--system"]);
    machine.end_bus();
    let done = machine.ends(1, &["start", "web", "--user"]);
    assert_has(&done.err, &["this user's systemd cannot be reached over D-Bus: "]);
    assert_has(&done.err, &["hint: it runs while the user is logged in", "enable-linger"]);
}

#[test]
fn an_app_in_the_foreground_is_no_unit() {
    let Some(mut machine) = Machine::new("unit-foreground") else { return };
    let app = Setup::new("unit-foreground").config(&python(IDLE)).start();
    machine.runtime = app.setup.runtime.clone();
    let name = app.setup.name.clone();
    machine.unit(&name, |_| ());
    machine.config(&name, &python(IDLE));
    app.online(1);
    let done = machine.ends(0, &["stop", &name]);
    assert_has(&done.err, &["stopped `", "0/1 online, 1 stopped"]);
    assert_eq!(asked(&machine), [""; 0], "its slots are stopped, not a unit");
    let done = machine.ends(0, &["start", &name]);
    assert_has(&done.err, &["started `", "1/1 online"]);
    assert_eq!(asked(&machine), [""; 0]);
    // The same app as the main process of its unit.
    machine.unit(&name, |unit| (unit.active, unit.main_pid) = ("active", app.keeper()));
    machine.ends(0, &["restart", &name]);
    assert_eq!(asked(&machine), [""; 0], "what runs is restarted over its socket");
    machine.ends(0, &["stop", &name, "0"]);
    assert_eq!(asked(&machine), [""; 0], "a slot is no unit");
    let done = machine.ends(0, &["stop", "all"]);
    assert_eq!(done.err, format!("stopped `{name}`\n"));
    assert_eq!(asked(&machine), [format!("StopUnit pmr@{name}.service")]);
    // Nobody can say whose it is.
    machine.end_bus();
    let done = machine.ends(0, &["start", &name]);
    assert_has(&done.err, &["started `", "1/1 online"]);
    let done = machine.ends(0, &["stop", &name]);
    assert_has(&done.err, &["stopped `", "0/1 online, 1 stopped"]);
}

#[test]
fn what_does_not_run_is_not_stopped() {
    let Some(machine) = Machine::new("unit-stopped") else { return };
    machine.app("failed", |unit| {
        (unit.active, unit.result, unit.exit_code, unit.exit_status) =
            ("failed", "exit-code", 1, 69);
    });
    machine.app("booting", |unit| unit.active = "activating");
    let done = machine.ends(0, &["stop", "failed"]);
    assert_eq!(done.err, "nothing to do for `failed`: failed (exit status 69)\n");
    assert_eq!(asked(&machine), [""; 0]);
    let done = machine.ends(0, &["stop", "all"]);
    assert_has(&done.err, &["nothing to do for `failed`", "stopped `booting`"]);
    assert_eq!(asked(&machine), ["StopUnit pmr@booting.service"]);
    for verb in ["reload", "reset", "pid"] {
        let done = machine.ends(1, &[verb, "failed"]);
        assert_has(&done.err, &["error: `failed` is not running", "hint: `pmr start failed`"]);
    }
}

#[test]
fn a_bad_config_is_not_even_tried() {
    let Some(machine) = Machine::new("unit-config") else { return };
    machine.unit("web", |_| ());
    machine.config("web", "command = [\"sleep\", \"1\"]\ninstancs = 2\n");
    let done = machine.ends(1, &["start", "web"]);
    assert_has(&done.err, &["web.toml:2:1", "did you mean `instances`"]);
    assert_has(&done.err, &["error: cannot start `web`: its config cannot be used"]);
    assert_eq!(machine.calls(), [""; 0]);
    machine.app("other", |unit| unit.load = "not-found");
    let done = machine.ends(1, &["start", "other"]);
    assert_has(&done.err, &["systemd knows no unit pmr@.service", "hint: the .deb and .rpm"]);
    machine.app("other", |unit| unit.load = "masked");
    assert_has(&machine.ends(1, &["start", "other"]).err, &["masked", "systemctl unmask"]);
}

#[test]
fn who_starts_an_app_again_means_it() {
    let Some(machine) = Machine::new("unit-limit") else { return };
    machine.app("web", |unit| (unit.active, unit.result) = ("failed", "start-limit-hit"));
    machine.ends(0, &["start", "web"]);
    let calls = ["ResetFailedUnit pmr@web.service", "StartUnit pmr@web.service"];
    assert_eq!(asked(&machine), calls);
    machine.app("worker", |unit| (unit.active, unit.result) = ("failed", "exit-code"));
    machine.ends(0, &["restart", "worker"]);
    assert_eq!(asked(&machine), ["StartUnit pmr@worker.service"]);
}

#[test]
fn all_and_patterns_mean_configs_too() {
    let Some(machine) = Machine::new("unit-all") else { return };
    for name in ["web-1", "web-2", "worker"] {
        machine.app(name, |_| ());
    }
    // Not the configs of apps.
    for name in ["Web.toml", "web-3.toml.bak", "notes.txt"] {
        std::fs::write(machine.configs.join(name), "").unwrap();
    }
    let done = machine.ends(0, &["start", "/^web/"]);
    assert_eq!(done.err, "started `web-1`\nstarted `web-2`\n");
    assert_eq!(asked(&machine), ["StartUnit pmr@web-1.service", "StartUnit pmr@web-2.service"]);
    machine.ends(0, &["start", "all"]);
    assert_eq!(asked(&machine).len(), 3);
    let done = machine.ends(1, &["start", "workr"]);
    assert_has(
        &done.err,
        &["no app named `workr`; did you mean `worker`?", "not running: web-1, "],
    );
    let done = machine.ends(1, &["start", "/^x/"]);
    assert_has(&done.err, &["matches `/^x/`"]);
}

#[test]
fn a_file_is_no_app() {
    let Some(machine) = Machine::new("unit-file") else { return };
    let path = machine.setup.write("api.toml", &python(IDLE));
    for target in ["api.toml", path.to_str().unwrap()] {
        let done = machine.ends(1, &["start", target]);
        assert_has(&done.err, &[" is a file; what is started is an app, by its name"]);
        assert_has(&done.err, &["etc/api.toml, then `pmr start api`; or `pmr run "]);
    }
    let done = machine.ends(1, &["start", "api"]);
    assert_has(&done.err, &["there is no app named `api`: ", "etc/api.toml is not there"]);
    assert_has(&done.err, &["hint: `pmr init api`"]);
}

#[test]
fn apps_are_started_at_boot_or_no_longer() {
    let Some(machine) = Machine::new("unit-enable") else { return };
    machine.app("web", |_| ());
    let done = machine.ends(0, &["enable", "web"]);
    assert_eq!(done.err, "enabled `web`: it starts at boot\n");
    assert_eq!(asked(&machine), ["EnableUnitFiles pmr@web.service", "Reload"]);
    assert!(machine.was_interactive());
    let done = machine.ends(0, &["enable", "web", "--now"]);
    assert_eq!(done.err, "nothing to do for `web`: it is enabled\nstarted `web`\n");
    assert_eq!(asked(&machine), ["EnableUnitFiles pmr@web.service", "StartUnit pmr@web.service"]);
    let done = machine.ends(0, &["disable", "web", "--now"]);
    assert_has(&done.err, &["disabled `web`: it does not start at boot any more", "stopped `web`"]);
    let calls = ["DisableUnitFiles pmr@web.service", "Reload", "StopUnit pmr@web.service"];
    assert_eq!(asked(&machine), calls);
    // The link of an app whose config is gone.
    machine.unit("gone", |unit| unit.file = "enabled");
    machine.ends(0, &["disable", "gone"]);
    assert_eq!(asked(&machine), ["DisableUnitFiles pmr@gone.service", "Reload"]);
    assert_has(&machine.ends(1, &["enable", "gone"]).err, &["no app named `gone`"]);
}

#[test]
fn the_status_shows_what_does_not_run() {
    let Some(machine) = Machine::new("unit-status") else { return };
    machine.app("a-new", |_| ());
    machine.app("b-stopped", |unit| (unit.was_started, unit.file) = (true, "enabled"));
    machine.app("c-failed", |unit| {
        (unit.active, unit.result, unit.exit_code, unit.exit_status) =
            ("failed", "exit-code", 1, 69);
    });
    machine.app("d-killed", |unit| {
        (unit.active, unit.result, unit.exit_code, unit.exit_status) = ("failed", "signal", 2, 9);
    });
    machine.app("e-booting", |unit| (unit.active, unit.sub) = ("activating", "start"));
    let done = machine.ends(0, &["status"]);
    let rows: Vec<String> = done
        .out
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let row = |name: &str, status: &str| format!("{name} - - - - - {status} - -");
    assert_eq!(
        rows[1..],
        [
            row("a-new", "not started"),
            row("b-stopped", "stopped (enabled)"),
            row("c-failed", "failed (exit status 69)"),
            row("d-killed", "failed (killed by SIGKILL)"),
            row("e-booting", "starting"),
        ]
    );
    assert_eq!(done.err, "");
    let done = machine.ends(0, &["status", "c-failed", "--json"]);
    let value: Value = serde_json::from_str(&done.out).unwrap();
    let app = &value["apps"][0];
    assert_eq!((&value["version"], &app["kind"]), (&1.into(), &"unit".into()));
    assert_eq!((&app["name"], &app["status"]), (&"c-failed".into(), &"failed".into()));
    assert_eq!(app["instances"], Value::Array(vec![]));
    let unit = &app["unit"];
    assert_eq!((&unit["name"], &unit["exit_status"]), (&"pmr@c-failed.service".into(), &69.into()));
    assert_eq!(
        (&unit["active_state"], &unit["file_state"]),
        (&"failed".into(), &"disabled".into())
    );
    let done = machine.ends(1, &["status", "c-faild"]);
    assert_has(&done.err, &["did you mean `c-failed`?"]);
}

#[test]
fn an_app_that_does_not_run_is_described() {
    let Some(machine) = Machine::new("unit-describe") else { return };
    machine.app("web", |unit| {
        (unit.active, unit.sub, unit.file) = ("failed", "failed", "enabled");
        (unit.result, unit.exit_code, unit.exit_status) = ("exit-code", 1, 78);
        (unit.text, unit.was_started) = ("0/2 online", true);
    });
    machine.journal(&["one", "two \u{1b}[31m"]);
    let done = machine.ends(0, &["describe", "web"]);
    assert_has(&done.out, &["web: failed (exit status 78, enabled)\n", "etc/web.toml\n"]);
    assert_has(&done.out, &["pmr@web.service, failed for ", "enabled       yes\n"]);
    assert_has(&done.out, &["last result   exit status 78: the config cannot be used\n"]);
    assert_has(
        &done.out,
        &["last status   0/2 online\n", "last lines    one\n", "two \u{fffd}[31m"],
    );
    let done = machine.ends(0, &["show", "web", "--json"]);
    assert_has(
        &done.out,
        &["\"app\":{\"name\":\"web\"", "\"kind\":\"unit\"", "\"journal\":[\"one\""],
    );
    machine.program("journalctl", "#!/bin/sh\necho 'No space: x' >&2\nexit 1\n");
    let done = machine.ends(0, &["describe", "web"]);
    assert_has(&done.out, &["web: failed (exit status 78, enabled)\n"]);
    let why = "note: cannot read the journal by journalctl: No space: x; its last lines are not";
    assert_has(&done.err, &[why]);
}

#[test]
fn on_a_terminal_a_start_shows_how_far_it_is() {
    let Some(machine) = Machine::new("unit-progress") else { return };
    if !procs::has("script") {
        return procs::skip("on_a_terminal_a_start_shows_how_far_it_is", "it takes script");
    }
    machine.app("web", |unit| unit.text = "0/2 online, 2 launching");
    machine.answer(Answer::EndsLater("done"));
    let mut command = Command::new("script");
    let line = format!("{} start web", machine.setup.binary().display());
    command.args(["-qec", &line, "/dev/null"]).env("NO_COLOR", "1").env("TERM", "xterm");
    machine.environment(&mut command);
    let done = machine.setup.run(&mut command);
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    assert_has(&done.out, &["\rstarting `web`: 0/2 online, 2 launching", "started `web`"]);
    assert!(!done.out.contains('\u{1b}'), "{:?}", done.out);
}
