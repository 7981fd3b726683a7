//! Several instances behind one port, replaced under load; what does not come up is not kept.

use rustix::process::Signal;

use crate::app::{App, Setup, State, demo, free_port};
use crate::load::{Load, get};
use crate::procs;

fn over(app: &App, release: u64) -> State {
    app.state("all slots run the release", |state| {
        state.0["roll"].is_null()
            && (0..state.len()).all(|slot| state.number(slot, "release") == release)
    })
}

#[test]
fn instances_share_a_port_and_each_serves() {
    let port = free_port();
    let app = Setup::new("shares").config(&demo(port, 3)).start();
    let state = app.online(3);
    assert_eq!(state.0["mode"], "cluster");
    for slot in 0..3 {
        app.eventually("each instance answers", || {
            get(port, "/").unwrap().contains(&format!("instance {slot} ")).then_some(())
        });
    }
}

#[test]
fn five_reloads_and_two_restarts_cost_no_request() {
    let port = free_port();
    let app = Setup::new("costs").config(&demo(port, 2)).start();
    let mut before = app.online(2);
    let load = Load::start(port, "/", 3);
    for round in 0..7 {
        load.more(10);
        // A restart reads the config again, too.
        let verb = if round < 5 { "reload" } else { "restart" };
        app.command(verb, &[]);
        over(&app, round + 2);
        let after = app.online(2);
        assert!(after.pids().iter().all(|pid| !before.pids().contains(pid)), "{verb} {round}");
        assert_eq!(after.number(0, "restarts"), 0, "nobody counts what was asked for");
        before = after;
    }
    load.more(10);
    let (served, failed) = load.stop();
    assert!(failed.is_empty(), "{} of {served}: {failed:?}\n{}", failed.len(), app.setup.log());
}

#[test]
fn a_reload_that_does_not_come_up_changes_nothing() {
    let port = free_port();
    let app = Setup::new("fails").config(&demo(port, 2)).start();
    let before = app.online(2);
    let load = Load::start(port, "/", 2);
    let config = demo(port, 2).replace("ready = \"exec\"\n", "");
    let (_, rest) = config.split_once('\n').unwrap();
    for broken in [
        // Ends while it boots; is never ready.
        "command = [\"sh\", \"-c\", \"echo this release is broken >&2; exit 5\"]\nready = \"exec\"",
        "command = [\"sleep\", \"1000\"]\nready = \"notify\"\nlisten_timeout = 300",
    ] {
        app.setup.write(&format!("{}.toml", app.setup.name), &format!("{broken}\n{rest}"));
        let done = app.pmr(&["reload", &app.setup.name]);
        assert_eq!(done.code, 3, "{}{}\n{}", done.out, done.err, app.setup.log());
        let after = app.state("it is over", |state| state.0["roll"].is_null());
        assert_eq!(after.pids(), before.pids());
        app.eventually("nothing else runs", || (app.processes().len() == 2).then_some(()));
    }
    // What crashes now still comes back as what it was.
    assert!(procs::signal(before.pid(0).unwrap(), Signal::KILL));
    app.state("a restart", |state| state.number(0, "restarts") == 1 && state.word(0) == "online");
    load.more(10);
    let (served, failed) = load.stop();
    // The kill costs at most what was in flight there.
    assert!(failed.len() <= 2, "{} of {served}: {failed:?}", failed.len());
    assert_eq!(over(&app, 1).pid(1), before.pid(1));
}

#[test]
fn an_invalid_config_is_refused_with_its_place_and_changes_nothing() {
    let port = free_port();
    let app = Setup::new("invalid").config(&demo(port, 2)).start();
    let before = app.online(2);
    let file = format!("{}.toml", app.setup.name);
    app.setup.write(&file, &(demo(port, 2) + "max_restart = 3\n"));
    let done = app.pmr(&["reload", &app.setup.name]);
    assert_eq!(done.code, 1, "{}{}", done.out, done.err);
    let line = demo(port, 2).lines().count() + 1;
    assert!(done.err.contains(&format!("{file}:{line}:1")), "{}", done.err);
    assert!(done.err.contains("max_restarts"), "{}", done.err);
    let after = app.status();
    assert_eq!(after.pids(), before.pids());
    assert_eq!(after.0["release"], 1);
    // Half a file, and then a crash: of an instance, and of the supervisor.
    app.setup.write(&file, "command = [\"sleep\", ");
    get(port, "/crash").unwrap_err();
    app.kill_supervisor();
    app.state("a restart", |state| {
        (0..2).all(|slot| state.word(slot) == "online")
            && state.number(0, "restarts") + state.number(1, "restarts") == 1
    });
    over(&app, 1);
    assert!(get(port, "/").unwrap().contains("instance"));
    // Mended, it is read.
    app.setup.write(&file, &demo(port, 2));
    app.command("reload", &[]);
    assert!(app.online(2).0["release"].as_u64() > Some(1));
}
