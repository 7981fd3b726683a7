//! The main process of a unit, under a service manager that the test plays.

use std::process::Command;

use rustix::process::Signal;

use crate::app::{Setup, demo, free_port};
use crate::load::get;

/// `pmr keeper NAME` to its end.
fn keeper(setup: &Setup, name: &str) -> (i32, String) {
    let mut command = Command::new(setup.binary());
    command.args(["keeper", name]).env("PMR_CONFIG_DIR", &setup.directory);
    command.env("PMR_RUNTIME_DIR", &setup.runtime);
    let done = setup.run(&mut command);
    (done.code, done.err)
}

#[test]
fn a_name_without_a_usable_config_ends_with_78_and_one_line() {
    let setup = Setup::new("unit-config");
    for (name, why) in [("Web", "not 'W'"), ("a/b", "without '/'"), ("nobody", "nobody.toml")] {
        let (code, err) = keeper(&setup, name);
        assert_eq!(code, 78, "{err}");
        assert!(err.starts_with("pmr: ") && err.lines().count() == 1, "{err}");
        assert!(err.contains(why), "{err}");
    }
    setup.write("broken.toml", "comand = [\"true\"]\n");
    let (code, err) = keeper(&setup, "broken");
    assert_eq!(code, 78, "{err}");
    assert!(err.contains("comand"), "{err}");
}

#[test]
fn what_a_killed_keeper_left_is_taken_over() {
    let port = free_port();
    let setup = Setup::new("unit-left").config(&demo(port, 1));
    let left = setup.runtime.join(&setup.name);
    std::fs::create_dir_all(&left).unwrap();
    for socket in ["io.pmr.App", "notify.1"] {
        drop(std::os::unix::net::UnixListener::bind(left.join(socket)).unwrap());
    }
    std::fs::write(left.join("lock"), "1\n").unwrap();
    let mut app = setup.serve_with(|_| ());
    app.online(1);
    get(port, "/").unwrap();
    app.signal(Signal::TERM);
    assert_eq!(app.wait(), 0);
    app.assert_nothing_left();
}
