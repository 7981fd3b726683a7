//! A machine that lacks something: pmr says what, keeps what it has, and goes on where it can.

use std::fs::{self, OpenOptions};
use std::net::TcpListener;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::app::{App, Setup, State, demo, free_port, inherit, python};
use crate::load::get;
use crate::procs;
use crate::shared::{assert_has, can_mount};

/// An app that does nothing.
const IDLE: &str = "command = [\"sleep\", \"100000\"]\n";

/// That an app which could not be started is gone without a trace.
fn assert_no_trace(app: &App) {
    app.assert_nothing_left();
    let prefix = format!("pmr.{}.", app.setup.name);
    let own = procs::own_cgroup().map(|own| fs::read_dir(own).unwrap().flatten());
    for entry in own.into_iter().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(!name.starts_with(&prefix), "left behind: {name}");
    }
}

#[test]
fn a_taken_port_is_named_with_its_holder() {
    let port = free_port();
    let holder = TcpListener::bind(("0.0.0.0", port)).unwrap();
    let mut app = Setup::new("taken").config(&inherit(port, 2)).start();
    assert_eq!(app.wait(), 1);
    let said = app.setup.log();
    let address = format!("[::]:{port} is in use: pid {} listens there (", std::process::id());
    let command = procs::words(std::process::id()).remove(0);
    let command = command.rsplit('/').next().unwrap();
    assert_has(&said, &[&address, command]);
    assert_no_trace(&app);
    drop(holder);
    let again = Setup::new("taken").config(&inherit(port, 2)).start();
    again.online(2);
}

#[test]
fn a_second_supervisor_names_the_first_and_ends() {
    let port = free_port();
    let app = Setup::new("second").config(&demo(port, 1)).start();
    let before = app.online(1);
    let path = app.setup.config_path();
    let second = app.pmr(&["run", path.to_str().unwrap()]);
    assert_eq!((second.code, second.out.as_str()), (1, ""));
    let named = format!("{} is running already, under the keeper with pid ", app.setup.name);
    assert_has(&second.err, &[&named, &app.keeper().to_string()]);
    let after = app.status();
    assert_eq!((after.pids(), after.word(0)), (before.pids(), "online"));
    assert_eq!(after.0["supervisor_pid"], before.0["supervisor_pid"]);
    assert_eq!(get(port, "/health").unwrap(), "ok\n");
}

/// An app whose runtime directory is made by a shell script, for it alone.
fn start_in(setup: Setup, script: &str) -> App {
    let script = script.replace("RUN", setup.runtime.to_str().unwrap());
    setup.before(&["unshare", "--mount", "sh", "-c", &script, "sh"]).start()
}

/// Runs pmr in the runtime directory `script` makes, where it must end with status 1, and leave
/// nothing there. Returns what it said.
fn fails_in(test: &str, script: &str) -> String {
    let mut app = start_in(
        Setup::new(test).config(IDLE),
        &format!("{script}; \"$@\"; code=$?; echo left: $(ls -A RUN) >&2; exit $code"),
    );
    assert_eq!(app.wait(), 1, "{script}\n{}", app.setup.log());
    let said = app.setup.log();
    assert!(said.ends_with("\nleft:\n") || said.ends_with("\nleft: filler\n"), "{script}\n{said}");
    assert_no_trace(&app);
    said
}

#[test]
fn a_full_runtime_directory_is_named_and_left_empty() {
    if !can_mount("a_full_runtime_directory_is_named_and_left_empty") {
        return;
    }
    // One for the mount itself; then the app's directory, its lock, its socket.
    for inodes in 1..=3 {
        let script = format!("mount -t tmpfs -o nr_inodes={inodes} tmpfs RUN");
        assert_has(&fails_in("inodes", &script), &["No space left on device", "/run/it-inodes-"]);
    }
    let script = "mount -t tmpfs -o size=4k tmpfs RUN; head -c 4096 /dev/zero >RUN/filler";
    assert_has(&fails_in("bytes", script), &["No space left on device", "/lock"]);
}

#[test]
fn a_read_only_runtime_directory_is_named() {
    if can_mount("a_read_only_runtime_directory_is_named") {
        let said = fails_in("readonly", "mount -t tmpfs -o ro tmpfs RUN");
        assert_has(&said, &["Read-only file system", "/run/it-readonly-"]);
    }
}

#[test]
fn a_runtime_directory_that_is_full_later_is_waited_for() {
    if !can_mount("a_runtime_directory_that_is_full_later_is_waited_for") {
        return;
    }
    let config = format!("{IDLE}instances = 2\n");
    // The mount, the app's directory, its lock, its socket, and a socket for one instance.
    let script = "mount -t tmpfs -o nr_inodes=5 tmpfs RUN; exec \"$@\"";
    let app = start_in(Setup::new("fullrun").config(&config), script);
    let inside = |words: &[&str]| {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", app.keeper())).args(words);
        app.setup.run(command.env("PMR_RUNTIME_DIR", &app.setup.runtime))
    };
    let pmr = app.setup.binary().to_str().unwrap().to_owned();
    let status = || {
        let value: Value = serde_json::from_str(&inside(&[&pmr, "status", "--json"]).out).ok()?;
        Some(State(value["apps"].as_array()?.first()?.clone()))
    };
    let state = app.eventually("one instance that waits", || {
        status().filter(|state| (state.word(0), state.word(1)) == ("online", "waiting"))
    });
    assert_has(state.last_exit(1), &["No space left on device"]);
    let runtime = app.setup.runtime.to_str().unwrap();
    let done = inside(&["mount", "-o", "remount,nr_inodes=100", runtime]);
    assert_eq!(done.code, 0, "{}", done.err);
    let after = app.eventually("both online", || {
        status().filter(|state| (0..2).all(|slot| state.word(slot) == "online"))
    });
    assert_eq!(after.pid(0), state.pid(0));
    assert_eq!(after.number(1, "unstable"), 0, "no fault of the app");
}

#[test]
fn a_runtime_directory_may_have_a_path_too_long_for_a_socket() {
    let mut setup = Setup::new("long");
    setup.runtime = setup.directory.join("d".repeat(120)).join("run");
    let app = setup.config(&python("import signal\nsignal.pause()")).start();
    let state = app.online(1);
    let pid = state.pids()[0];
    // An address that no program can send to would only mislead it.
    assert_eq!(procs::variable(pid, "NOTIFY_SOCKET"), None);
    assert_has(&app.setup.log(), &["NOTIFY_SOCKET", "too long"]);
    app.command("restart", &[]);
    assert_ne!(app.online(1).pids(), [pid]);
    let dead = app.kill_supervisor();
    app.state("another supervisor", |state| state.0["supervisor_pid"] != dead);
    app.command("stop", &[]);
}

#[test]
fn without_free_descriptors_instances_wait_and_pmr_lives() {
    if !procs::has("prlimit") {
        let test = "without_free_descriptors_instances_wait_and_pmr_lives";
        return procs::skip(test, "it takes prlimit");
    }
    let config = format!("{IDLE}instances = 20\n");
    let setup = Setup::new("emfile").config(&config).before(&["prlimit", "--nofile=60:60"]);
    let app = setup.start();
    let state = app.state("some online and some waiting", |state| {
        let count = |word| (0..state.len()).filter(|&slot| state.word(slot) == word).count();
        count("online") > 0 && count("waiting") > 0 && count("online") + count("waiting") == 20
    });
    let waiting = (0..20).find(|&slot| state.word(slot) == "waiting").unwrap();
    assert_has(state.last_exit(waiting), &["Too many open files"]);
    assert_eq!(state.number(waiting, "unstable"), 0, "no fault of the app");
    let online: Vec<usize> = (0..20).filter(|&slot| state.word(slot) == "online").collect();
    let before: Vec<_> = online.iter().map(|&slot| state.pid(slot)).collect();
    app.command("scale", &["2"]);
    let after = app.state("few", |state| state.len() == 2);
    for (slot, pid) in online.iter().zip(before).filter(|(slot, _)| **slot < 2) {
        assert_eq!(after.pid(*slot), pid, "what ran goes on");
    }
    app.online(2);
}

#[test]
fn without_room_for_processes_instances_wait() {
    const TEST: &str = "without_room_for_processes_instances_wait";
    if !procs::is_root() || !procs::has("setpriv") || !procs::has("prlimit") {
        return procs::skip(TEST, "it takes root, setpriv and prlimit");
    }
    // The kernel counts all processes of a user: this one has no others.
    let uid = 1_000_000 + std::process::id();
    let config = format!("{IDLE}instances = 3\n");
    let setup = Setup::new("nproc").config(&config).own_binary();
    for directory in [&setup.directory, &setup.runtime] {
        std::os::unix::fs::chown(directory, Some(uid), Some(uid)).unwrap();
    }
    let id = uid.to_string();
    // The keeper, the supervisor, and two instances.
    let words = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"];
    let words: Vec<&str> = ["prlimit", "--nproc=4:100"].into_iter().chain(words).collect();
    let app = setup.before(&words).start();
    let state = app.state("two online and one waiting", |state| {
        let words: Vec<&str> = (0..3).map(|slot| state.word(slot)).collect();
        words.iter().filter(|word| **word == "online").count() == 2 && words.contains(&"waiting")
    });
    let waiting = (0..3).find(|&slot| state.word(slot) == "waiting").unwrap();
    assert_has(state.last_exit(waiting), &["EAGAIN", "RLIMIT_NPROC"]);
    assert_eq!(state.number(waiting, "unstable"), 0, "no fault of the app");
    let supervisor = app.supervisor().unwrap().to_string();
    // Its own user may do that on every machine; root needs a capability for it.
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
    command.args(["prlimit", "--nproc=100:100", "--pid", &supervisor]);
    let done = app.setup.run(&mut command);
    assert_eq!(done.code, 0, "{}", done.err);
    let after = app.online(3);
    for slot in (0..3).filter(|&slot| slot != waiting) {
        assert_eq!(after.pid(slot), state.pid(slot));
    }
}

/// The state file that the keeper holds.
fn state_file(app: &App) -> PathBuf {
    let entries = fs::read_dir(format!("/proc/{}/fd", app.keeper())).unwrap().flatten();
    let mut paths = entries.map(|entry| entry.path());
    let is_state = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:pmr-state"))
    };
    paths.find(is_state).unwrap()
}

/// Spoils the state of a stopped supervisor and kills it: the next one goes on from what the keeper
/// knows. `spoil` gets the file and the two offsets at which a half begins.
fn adopts_without_state(test: &str, why: &str, spoil: impl Fn(&fs::File, [u64; 2])) {
    let port = free_port();
    let app = Setup::new(test).config(&demo(port, 2)).start();
    let pid = app.online(2).pids()[0];
    assert!(procs::signal(pid, Signal::KILL));
    let before = app.state("a restart", |state| {
        state.number(0, "restarts") == 1 && (0..2).all(|slot| state.word(slot) == "online")
    });
    let supervisor = app.supervisor().unwrap();
    // It must not write again what is spoiled now.
    assert!(procs::signal(supervisor, Signal::STOP));
    let file = OpenOptions::new().read(true).write(true).open(state_file(&app)).unwrap();
    spoil(&file, [0, 0x40_0000]);
    assert!(procs::signal(supervisor, Signal::KILL));
    let after = app.state("another supervisor", |state| {
        state.0["supervisor_pid"] != supervisor && (0..2).all(|slot| state.word(slot) == "online")
    });
    assert_eq!(after.pids(), before.pids());
    assert_eq!(after.number(0, "restarts"), 0, "that was in the state");
    app.eventually("a word about it", || {
        let said = app.setup.log();
        (said.contains(why) && said.contains("histories are lost")).then_some(())
    });
    // It is as good as any: it restarts, and its own state is read by the next one.
    assert!(procs::signal(after.pids()[1], Signal::KILL));
    let again = app
        .state("a restart", |state| state.number(1, "restarts") == 1 && state.word(1) == "online");
    let dead = app.kill_supervisor();
    let last = app.state("a third supervisor", |state| state.0["supervisor_pid"] != dead);
    assert_eq!((last.pids(), last.number(1, "restarts")), (again.pids(), 1));
    assert_eq!(get(port, "/health").unwrap(), "ok\n");
}

#[test]
fn a_torn_state_is_replaced_by_what_the_keeper_knows() {
    adopts_without_state("torn", "no half of the state file is whole", |file, halves| {
        for half in halves {
            // In the middle of what the checksum is of.
            file.write_all_at(b"torn", half + 60).unwrap();
        }
    });
}

#[test]
fn a_state_that_is_not_ours_is_replaced_by_what_the_keeper_knows() {
    adopts_without_state("notours", "no half of the state file is whole", |file, halves| {
        for half in halves {
            file.write_all_at(&[b'x'; 4096], half).unwrap();
        }
    });
}

#[test]
fn a_state_that_is_gone_is_replaced_by_what_the_keeper_knows() {
    adopts_without_state("blank", "no state was written yet", |file, halves| {
        for half in halves {
            file.write_all_at(&[0; 16_384], half).unwrap();
        }
    });
}

#[test]
fn a_state_of_a_newer_version_is_replaced_by_what_the_keeper_knows() {
    adopts_without_state("newer", "the state has version 2, not 1", |file, halves| {
        for half in halves {
            rewrite(file, half, 2, None);
        }
    });
}

#[test]
fn a_state_with_unknown_contents_is_replaced_by_what_the_keeper_knows() {
    adopts_without_state("alien", "the state cannot be read", |file, halves| {
        for half in halves {
            rewrite(file, half, 1, Some(b"{\"alien\":true}"));
        }
    });
}

/// Writes a whole half: `magic 8 | version 4 | sequence 8 | length 4 | crc32 4 | payload`.
fn rewrite(file: &fs::File, half: u64, version: u32, payload: Option<&[u8]>) {
    let mut header = [0; 28];
    file.read_exact_at(&mut header, half).unwrap();
    if header == [0; 28] {
        return;
    }
    let length = u32::from_le_bytes(header[20..24].try_into().unwrap());
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    file.read_exact_at(&mut bytes, half + 28).unwrap();
    let payload = payload.unwrap_or(&bytes);
    header[8..12].copy_from_slice(&version.to_le_bytes());
    let length = u32::try_from(payload.len()).unwrap();
    header[20..24].copy_from_slice(&length.to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[..24]);
    crc.update(payload);
    header[24..].copy_from_slice(&crc.finalize().to_le_bytes());
    file.write_all_at(payload, half + 28).unwrap();
    file.write_all_at(&header, half).unwrap();
}
