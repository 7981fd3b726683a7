//! `pmr upgrade`: another binary goes on in place, or nothing has changed in the end.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::app::{App, Setup, State, demo, free_port};
use crate::load::{Load, get};
use crate::procs;

/// Puts another file where the binary is, as a package manager does.
fn replace_binary(app: &App, by: &Path) {
    procs::copy_program(by, app.setup.binary(), 0o755);
}

/// A pmr under load, and what it was before.
fn started(test: &str) -> (App, Load, State) {
    let port = free_port();
    let more = "min_uptime = \"1h\"\n";
    let app = Setup::new(test).own_binary().config(&(demo(port, 2) + more)).start();
    app.online(2);
    get(port, "/crash").unwrap_err();
    let before = app.state("a restart", |state| {
        state.number(0, "restarts") + state.number(1, "restarts") == 1
            && (0..2).all(|slot| state.word(slot) == "online")
    });
    let load = Load::start(port, "/", 2);
    load.more(5);
    (app, load, before)
}

/// The same processes, generations and histories, and not one request lost.
fn assert_unharmed(app: &mut App, load: Load, before: &State) {
    load.more(10);
    let (served, failed) = load.stop();
    assert!(failed.is_empty(), "{} of {served}: {failed:?}\n{}", failed.len(), app.setup.log());
    let after = app.online(2);
    assert_eq!(after.pids(), before.pids());
    assert_eq!(after.0["keeper_pid"], before.0["keeper_pid"]);
    for slot in 0..2 {
        for key in ["generation", "restarts", "unstable", "release"] {
            assert_eq!(after.number(slot, key), before.number(slot, key), "{key} of slot {slot}");
        }
    }
    app.signal(Signal::TERM);
    assert_eq!(app.wait(), 0, "{}", app.setup.log());
    app.assert_nothing_left();
}

fn real() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_pmr"))
}

#[test]
fn another_binary_goes_on_in_place() {
    let (mut app, load, before) = started("in-place");
    for _ in 0..2 {
        let supervisor = app.status().0["supervisor_pid"].clone();
        replace_binary(&app, real());
        let done = app.command("upgrade", &[]);
        assert!(done.err.contains("upgraded"), "{}", done.err);
        let after = app.status();
        assert_ne!(after.0["supervisor_pid"], supervisor);
        assert_eq!(after.0["upgrade"]["rolled_back"], false);
        assert_eq!(procs::words(app.keeper())[1..3], ["keeper", "--resume"]);
    }
    // It still is what it was before: the death of its supervisor harms nobody.
    app.kill_supervisor();
    assert_unharmed(&mut app, load, &before);
}

#[test]
fn what_is_no_pmr_is_refused_and_nothing_changes() {
    let (mut app, load, before) = started("refused");
    for text in ["#!/bin/sh\nexit 1\n", "#!/bin/sh\nexit 0\n", "garbage", "", "\x7fELF\x02\x01\x01"]
    {
        replace_binary(&app, &app.setup.write("nonsense", text));
        let setup = &app.setup;
        let mut command = Command::new(real());
        command.args(["upgrade", &setup.name]).env("PMR_RUNTIME_DIR", &setup.runtime);
        let done = setup.run(&mut command);
        assert_eq!(done.code, 1, "{}{}", done.out, done.err);
        assert!(done.err.contains("nothing was changed"), "{}", done.err);
    }
    replace_binary(&app, real());
    assert_eq!(app.status().0["supervisor_pid"], before.0["supervisor_pid"]);
    assert_unharmed(&mut app, load, &before);
}

/// The tested binary with every `from` in it as `to`.
fn changed(from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(real()).unwrap();
    let mut at = 0;
    let mut seen = 0;
    while let Some(next) = bytes[at..].windows(from.len()).position(|window| window == from) {
        bytes[at + next..at + next + from.len()].copy_from_slice(to);
        at += next + from.len();
        seen += 1;
    }
    assert!(seen > 0, "the binary does not contain {from:?}");
    bytes
}

#[test]
fn a_pmr_for_another_machine_is_refused_and_nothing_changes() {
    let (mut app, load, before) = started("other-machine");
    let mut foreign = fs::read(real()).unwrap();
    // e_machine, of an architecture that nobody has (EM_MCST_ELBRUS).
    foreign[18..20].copy_from_slice(&175_u16.to_le_bytes());
    let no_library = changed(b"libc.so.6\0", b"libc.so.9\0");
    for (binary, why) in [(foreign, "xec format error"), (no_library, "libc.so.9")] {
        let file = app.setup.directory.join("other");
        fs::write(&file, binary).unwrap();
        replace_binary(&app, &file);
        let setup = &app.setup;
        let mut command = Command::new(real());
        command.args(["upgrade", "--all"]).env("PMR_RUNTIME_DIR", &setup.runtime);
        let done = setup.run(&mut command);
        assert_eq!(done.code, 1, "{}{}", done.out, done.err);
        for part in [why, "nothing was changed", "runs on as before", &setup.name] {
            assert!(done.err.contains(part), "{part}: {}", done.err);
        }
    }
    replace_binary(&app, real());
    assert_eq!(app.status().0["supervisor_pid"], before.0["supervisor_pid"]);
    // The next one is good again.
    let done = app.setup.pmr(&["upgrade", "--all"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(app.status().0["upgrade"]["rolled_back"], false);
    assert_unharmed(&mut app, load, &before);
}

#[test]
fn a_binary_that_cannot_adopt_is_taken_back() {
    let (mut app, load, before) = started("taken-back");
    replace_binary(&app, real());
    // The app's directory is elsewhere, and a file in its place: the socket still answers, but no
    // new supervisor can adopt.
    let aside = app.setup.directory.join("aside");
    fs::create_dir(&aside).unwrap();
    let (here, there) = (app.setup.runtime.join(&app.setup.name), aside.join(&app.setup.name));
    fs::rename(&here, &there).unwrap();
    fs::write(&here, "in the way").unwrap();
    let said = fs::File::create(app.setup.directory.join("upgrade")).unwrap();
    let mut upgrade = Command::new(app.setup.binary())
        .args(["upgrade", &app.setup.name])
        .env("PMR_RUNTIME_DIR", &aside)
        .stdin(Stdio::null())
        .stderr(said)
        .spawn()
        .unwrap();
    app.eventually("it goes back", || app.setup.log().contains("going back").then_some(()));
    fs::remove_file(&here).unwrap();
    fs::create_dir(&here).unwrap();
    let ended = procs::wait_for(procs::PATIENCE_MS, || upgrade.try_wait().unwrap());
    let code = ended.and_then(|status| status.code());
    if code.is_none() {
        upgrade.kill().unwrap();
        upgrade.wait().unwrap();
    }
    assert_eq!(code, Some(3), "{}\n{}", app.setup.read("upgrade"), app.setup.log());
    assert!(app.setup.read("upgrade").contains("did not take over"));
    fs::remove_dir(&here).unwrap();
    fs::rename(&there, &here).unwrap();
    assert_eq!(app.status().0["upgrade"]["rolled_back"], true);
    assert_unharmed(&mut app, load, &before);
}
