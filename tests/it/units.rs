//! The units and what is shipped beside them, as far as they can be judged without a booted
//! systemd: `systemd-analyze verify` reads them as the service manager would.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::app::{Done, Setup};
use crate::procs;

/// What systemd learned after 252 and the units set all the same: it says so and goes on.
const UNKNOWN_TO_252: [&str; 1] = ["DelegateSubgroup"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd")
}

/// A test of this name, where the machine has the program that it needs.
fn setup(test: &str, program: &str) -> Option<Setup> {
    if procs::has(program) {
        return Some(Setup::new(test));
    }
    procs::skip(test, &format!("there is no {program}"));
    None
}

/// Puts a shipped unit into the test's directory, with the tested binary in its commands.
fn place(setup: &Setup, from: &str, to: &str) -> PathBuf {
    let text = fs::read_to_string(root().join(from)).unwrap();
    let target = setup.directory.join(to);
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    fs::write(&target, text.replace("/usr/bin/pmr", env!("CARGO_BIN_EXE_pmr"))).unwrap();
    target
}

/// What `systemd-analyze verify` finds beside the keys that it may not know.
fn findings(setup: &Setup, manager: &str, unit: &Path) -> Vec<String> {
    let mut command = Command::new("systemd-analyze");
    command.args([manager, "verify", "--man=no"]).arg(unit);
    let done = setup.run(command.env("XDG_RUNTIME_DIR", &setup.directory));
    let said = [done.out, done.err].concat();
    let may_be_unknown = |line: &&str| {
        UNKNOWN_TO_252.iter().any(|key| line.contains(&format!("Unknown key '{key}'")))
    };
    let found: Vec<String> =
        said.lines().filter(|line| !may_be_unknown(line)).map(str::to_owned).collect();
    assert!(done.code == 0 || !found.is_empty(), "{said}");
    found
}

#[test]
fn systemd_finds_no_fault_with_the_units() {
    let Some(setup) = setup("units", "systemd-analyze") else { return };
    let system = place(&setup, "pmr@.service", "system/pmr@.service");
    assert_eq!(findings(&setup, "--system", &system), [""; 0]);
    let user = place(&setup, "user/pmr@.service", "user/pmr@.service");
    assert_eq!(findings(&setup, "--user", &user), [""; 0]);
    // It does find faults, so that the above is worth something.
    let text = fs::read_to_string(&system).unwrap();
    fs::write(&system, text.replace("[Install]", "Bogus=1\n[Install]")).unwrap();
    let found = findings(&setup, "--system", &system);
    assert!(found.len() == 1 && found[0].contains("Bogus"), "{found:?}");
}

#[test]
fn systemd_finds_no_fault_with_the_examples() {
    let Some(setup) = setup("units-examples", "systemd-analyze") else { return };
    place(&setup, "examples/pmr-alert@.service", "system/pmr-alert@.service");
    let system = place(&setup, "pmr@.service", "system/pmr@.service");
    let mut seen = 0;
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let directory = match name.as_str() {
            "pmr-alert@.service" => continue,
            "slice.conf" => "system/system-pmr.slice.d",
            "user-manager.conf" => "system/user@.service.d",
            _ => "system/pmr@.service.d",
        };
        place(&setup, &format!("examples/{name}"), &format!("{directory}/{name}"));
        seen += 1;
    }
    assert_eq!(seen, 6, "every example is looked at");
    assert_eq!(findings(&setup, "--system", &system), [""; 0]);
    for (unit, text) in [
        ("system-pmr.slice", "[Unit]\nDescription=All apps\n"),
        ("user@.service", "[Unit]\nDescription=A user\n[Service]\nExecStart=/bin/true\n"),
    ] {
        setup.write(&format!("system/{unit}"), text);
        let unit = setup.directory.join("system").join(unit);
        assert_eq!(findings(&setup, "--system", &unit), [""; 0]);
    }
    let sandbox = setup.directory.join("system/pmr@.service.d/sandbox.conf");
    fs::write(&sandbox, "[Service]\nBogus=1\n").unwrap();
    let found = findings(&setup, "--system", &system);
    assert!(found.len() == 1 && found[0].contains("Bogus"), "drop-ins are read: {found:?}");
}

#[test]
fn groups_and_directories_are_made() {
    let Some(setup) = setup("units-made", "systemd-sysusers") else { return };
    if !procs::is_root() || !procs::has("systemd-tmpfiles") {
        procs::skip("units-made", "not root, or there is no systemd-tmpfiles");
        return;
    }
    let machine = setup.directory.join("machine");
    fs::create_dir_all(machine.join("etc")).unwrap();
    let make = |program: &str, words: &[&str], file: &str| -> Done {
        let mut command = Command::new(program);
        command.args(words).arg(format!("--root={}", machine.display())).arg(root().join(file));
        setup.run(&mut command)
    };
    let done = make("systemd-sysusers", &[], "pmr.sysusers");
    assert_eq!(done.code, 0, "{}", done.err);
    let groups = fs::read_to_string(machine.join("etc/group")).unwrap();
    let mut names: Vec<_> = groups.lines().filter_map(|line| line.split(':').next()).collect();
    names.sort_unstable();
    assert_eq!(names, ["pmr", "pmr-admin"]);
    let done = make("systemd-tmpfiles", &["--create"], "pmr.tmpfiles");
    assert_eq!(done.code, 0, "{}", done.err);
    for directory in ["run/pmr", "etc/pmr"] {
        assert!(machine.join(directory).is_dir(), "{directory}");
    }
}

#[test]
fn what_the_units_run_is_there() {
    let setup = Setup::new("units-commands");
    for unit in ["pmr@.service", "user/pmr@.service"] {
        let text = fs::read_to_string(root().join(unit)).unwrap();
        let mut seen = 0;
        for line in text.lines().filter_map(|line| line.strip_prefix("ExecReload=/usr/bin/pmr ")) {
            let line = line.replace("%i", "nobody");
            let done = setup.pmr(&line.split(' ').collect::<Vec<_>>());
            // Understood, and no such app: not 2, the status of a command line that is not.
            assert_eq!(done.code, 1, "{line}: {}", done.err);
            assert!(done.err.contains("`nobody`"), "{line}: {}", done.err);
            seen += 1;
        }
        assert_eq!(seen, 1, "{unit}");
        let inline = |line: &&str| !line.starts_with('#') && line.contains(" #");
        assert_eq!(text.lines().find(inline), None, "systemd knows no comment behind a value");
    }
}

#[test]
fn the_binary_asks_for_no_newer_c_library() {
    // That of Red Hat Enterprise Linux 9; this machine's may be newer.
    const NEWEST: (u32, u32) = (2, 34);
    let bytes = fs::read(env!("CARGO_BIN_EXE_pmr")).unwrap();
    let mark = b"GLIBC_2.";
    let versions: Vec<(u32, u32)> = bytes
        .windows(mark.len() + 2)
        .filter(|window| window.starts_with(mark))
        .filter_map(|window| {
            let digits = window[mark.len()..].iter().take_while(|byte| byte.is_ascii_digit());
            let minor: Vec<u8> = digits.copied().collect();
            Some((2, String::from_utf8(minor).ok()?.parse().ok()?))
        })
        .collect();
    assert!(versions.contains(&(2, 17)), "versions are found: {versions:?}");
    let newest = versions.iter().max().copied();
    assert!(newest <= Some(NEWEST), "it needs glibc {newest:?}, and may not beyond {NEWEST:?}");
}
