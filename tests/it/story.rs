//! The life of `track-backend`: from its ecosystem file to ten crashes, on real node.

use std::fs;
use std::path::Path;

use rustix::process::Signal;

use crate::app::{App, Setup, State, free_port};
use crate::load::{Load, get};
use crate::procs;

/// The fixture imported, on a port of its own. None where there is no node.
fn imported(test: &str, name: &str) -> Option<(App, u16)> {
    if !procs::has("node") {
        procs::skip(test, "there is no node");
        return None;
    }
    let setup = Setup::new(name);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/track-backend");
    fs::create_dir(setup.directory.join("dist")).unwrap();
    for file in ["ecosystem.config.js", "dist/app.js"] {
        fs::copy(fixture.join(file), setup.directory.join(file)).unwrap();
    }
    let done = setup.pmr(&["import", "ecosystem.config.js"]);
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    let config = setup.read("track-backend.toml");
    assert!(config.contains("10000"), "{config}");
    let port = free_port();
    // The file's name is the app's, and the tests of another checkout run too.
    let config = config.replace("10000", &port.to_string());
    Some((setup.config(&config).start(), port))
}

fn restarts(state: &State) -> u64 {
    state.number(0, "restarts") + state.number(1, "restarts")
}

#[test]
fn the_bug_kills_one_and_requests_go_on() {
    let test = "the_bug_kills_one_and_requests_go_on";
    let Some((mut app, port)) = imported(test, "bug") else { return };
    let before = app.online(2);
    assert_eq!(before.0["mode"], "cluster");
    for pid in before.pids() {
        app.eventually("both serve", || {
            get(port, "/").ok()?.contains(&format!("\"pid\":{pid}")).then_some(())
        });
    }
    let environment = app.pmr(&["env", &app.setup.name, "1"]).out;
    assert!(environment.contains("NODE_ENV=production"), "{environment}");
    assert!(environment.contains("NODE_APP_INSTANCE=1"), "{environment}");
    // One connection at a time: what is in flight at the crash is the request that crashes.
    get(port, "/api/projects/55").unwrap_err();
    let waiting = app.state("one waits for its restart", |state| {
        restarts(state) == 1 && (0..2).any(|slot| state.word(slot) == "waiting")
    });
    let crashed = (0..2).find(|&slot| waiting.word(slot) == "waiting").unwrap();
    assert!(waiting.number(crashed, "next_start_ms") <= 2000);
    assert_eq!(waiting.last_exit(crashed), "exited with code 1");
    let load = Load::start(port, "/api/projects/1", 2);
    let after = app.online(2);
    assert_eq!(after.pid(1 - crashed), before.pid(1 - crashed));
    load.more(20);
    let (served, failed) = load.stop();
    assert!(failed.is_empty(), "{} of {served}: {failed:?}", failed.len());
    let log = app.setup.log();
    assert!(log.contains("restarting in 2s (limit 1/10)"), "{log}");
    assert!(log.contains("TypeError: Cannot read propert"), "{log}");
    app.signal(Signal::INT);
    assert_eq!(app.wait(), 0, "{}", app.setup.log());
    app.assert_nothing_left();
}

/// Kills each instance of slot 0 as soon as `status` shows it, ten times.
fn ten_kills(app: &App, port: u16) {
    let before = app.online(2);
    let load = Load::start(port, "/health", 1);
    for kill in 1..=10 {
        let state = app.state("an instance in slot 0", |state| state.pid(0).is_some());
        assert!(procs::signal(state.pid(0).unwrap(), Signal::KILL));
        app.state("its death is counted", |state| state.number(0, "unstable") == kill);
        if kill == 5 {
            app.kill_supervisor();
        }
    }
    let after = app.status();
    assert_eq!(after.word(0), "errored", "{}", app.setup.log());
    assert_eq!(after.word(1), "online");
    assert_eq!(after.0["summary"], "1/2 online, 1 errored");
    assert_eq!(after.pid(1), before.pid(1));
    assert_eq!(after.number(0, "generation"), u64::MAX, "nothing runs there");
    assert_eq!(after.number(1, "restarts"), 0);
    load.more(20);
    let (served, failed) = load.stop();
    // A kill costs at most the one request of our one client that was in flight there.
    assert!(failed.len() <= 10, "{} of {served}: {failed:?}", failed.len());
    assert_eq!(app.setup.log().matches(":0 starting").count(), 10, "{}", app.setup.log());
}

/// What stands after `restarting in`, in order.
fn waits(app: &App) -> Vec<String> {
    let log = app.setup.log();
    let pieces = log.split("restarting in ").skip(1);
    pieces.filter_map(|piece| Some(piece.split_once(" (limit")?.0.to_owned())).collect()
}

#[test]
fn ten_kills_at_once_give_a_slot_up_while_the_other_serves() {
    let test = "ten_kills_at_once_give_a_slot_up_while_the_other_serves";
    let Some((app, port)) = imported(test, "ten") else { return };
    ten_kills(&app, port);
    let expected = ["2s", "2s", "2s", "2s", "2s", "3.2s", "6.4s", "12.8s", "15s"];
    assert_eq!(waits(&app), expected, "{}", app.setup.log());
    // A person acts.
    app.command("start", &[]);
    let state = app.online(2);
    assert_eq!(state.number(0, "unstable"), 0);
}
