//! Real keepers, real supervisors, real instances.

mod rig;

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use super::protocol::{Exited, Notice, STATE, STATE_BAD, ToKeeper, ToSupervisor, Will};
use crate::sys::parent;
use crate::sys::testing::{eventually, pipe};
use rig::{Instance, Rig, Supervisor};

const FOREVER: &str = "exec sleep 100000";

/// Ends with code 7 when asked to; says so by making the file `$1` of the script.
fn ends_with_seven(file: &Path) -> String {
    format!("trap 'exit 7' TERM; : > {}; while :; do sleep 0.02; done", file.display())
}

#[test]
#[ignore = "a keeper process, started by the tests here"]
#[expect(clippy::exit, clippy::disallowed_methods, reason = "the status is the keeper's")]
fn keeper_process() {
    if let Some(code) = rig::keeper_process() {
        std::process::exit(i32::from(code));
    }
}

#[test]
#[ignore = "a supervisor process, started by the keepers here"]
#[expect(clippy::exit, clippy::disallowed_methods, reason = "it ends like a supervisor")]
fn supervisor_process() {
    if let Some(code) = rig::supervisor_process() {
        std::process::exit(i32::from(code));
    }
}

fn exited(packet: &ToSupervisor) -> Exited {
    let ToSupervisor::Exited(exited) = packet else { panic!("{packet:?}") };
    *exited
}

fn null() -> OwnedFd {
    fs::File::open("/dev/null").unwrap().into()
}

fn inode(fd: impl AsFd) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_ino
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn a_killed_supervisor_is_replaced_and_its_successor_is_told_everything() {
    let mut rig = Rig::new("replaced");
    let mut first = rig.supervisor();
    assert_eq!((first.hello.deaths, first.hello.reduced), (0, false));
    assert_eq!((first.hello.keeper_pid, first.hello.foreground), (rig.keeper.id(), true));
    assert_eq!(first.hello.arguments, ["track"]);
    let status = fs::read_to_string(format!("/proc/{}/status", first.pid)).unwrap();
    assert!(status.contains("SigBlk:\t0000000000000000"), "{status}");
    let (own, of_keeper) = (first.pid.cast_signed(), rig.keeper.id().cast_signed());
    let session = |pid| nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid))).unwrap();
    assert_eq!(session(own).as_raw(), own);
    assert_ne!(session(own), session(of_keeper));

    let instance = rig.born(&mut first, 1, 5000, FOREVER);
    let (reader, _writer) = pipe().unwrap();
    first.store("listen", Some(1), &reader);
    first.store("other", None, null());
    first.say(&ToKeeper::Drop { name: "other".to_owned() });
    first.say(&ToKeeper::Adopted);
    eventually("the instance runs", || {
        let name = fs::read_to_string(format!("/proc/{}/comm", instance.pid)).ok()?;
        (name == "sleep\n").then_some(())
    });
    let will = Will { cgroup: Some("/x".to_owned()), signal: 2, timeout_ms: 9 };
    first.say(&ToKeeper::Will { generation: 1, will: will.clone() });
    first.settle();
    first.kill();

    let second = rig.supervisor();
    assert_eq!((second.hello.deaths, second.hello.deaths_total), (1, 1));
    let (child, exit, pidfd) = &second.children[&1];
    assert_eq!((child.pid, *exit, &child.will), (instance.pid, None, &will));
    assert!(!parent::is_reaped(pidfd).unwrap() && instance.lives());
    assert_eq!(parent_of(instance.pid), Some(rig.keeper.id()));
    assert_eq!(second.fds.keys().collect::<Vec<_>>(), ["listen"]);
    assert_eq!(second.fds["listen"].0, Some(1));
    assert_eq!(inode(&second.fds["listen"].1), inode(&reader));
    assert!(rig.said().contains("was killed by signal 9; starting another"), "{}", rig.said());

    second.say(&ToKeeper::Adopted);
    second.say(&ToKeeper::Exit { code: 69 });
    assert_eq!(rig.ends(), 69);
    assert!(!instance.lives());
}

#[test]
fn an_exit_while_no_supervisor_listens_arrives_later_and_until_it_is_acknowledged() {
    let mut rig = Rig::new("exit-later");
    let mut first = rig.supervisor();
    let files: Vec<PathBuf> = (0..3).map(|n| rig.directory.path().join(n.to_string())).collect();
    let by_code = rig.born(&mut first, 1, 5000, &ends_with_seven(&files[0]));
    let by_signal = rig.born(&mut first, 2, 5000, FOREVER);
    let later = rig.born(&mut first, 3, 5000, &ends_with_seven(&files[2]));
    first.store("socket", Some(1), null());
    first.say(&ToKeeper::Adopted);
    Instance::runs(&files[0]);
    Instance::runs(&files[2]);
    // The supervisor can hear nothing any more, and dies with unread packets.
    parent::signal(first.pidfd(), libc::SIGSTOP).unwrap();
    by_code.signal(libc::SIGTERM);
    by_signal.signal(libc::SIGRTMIN());
    eventually("both are reaped", || (!by_code.lives() && !by_signal.lives()).then_some(()));
    first.kill();

    let mut second = rig.supervisor();
    let exit = second.children[&1].1.unwrap();
    assert_eq!((exit.code, exit.signal), (Some(7), None));
    let exit = second.children[&2].1.unwrap();
    assert_eq!((exit.code, exit.signal), (None, Some(libc::SIGRTMIN())));
    assert_eq!(second.children[&3].1, None);
    second.say(&ToKeeper::Ack { generation: 1 });
    // And one that ends in front of a supervisor.
    later.signal(libc::SIGTERM);
    let exit = exited(&second.hear());
    assert_eq!((exit.generation, exit.code), (3, Some(7)));
    second.say(&ToKeeper::Adopted);
    second.settle();
    second.kill();

    let third = rig.supervisor();
    assert_eq!(third.children.keys().collect::<Vec<_>>(), [&2, &3]);
    assert_eq!(third.children[&3].1, Some(exit));
    assert!(third.fds.is_empty(), "the fds of generation 1 went with it");
    third.say(&ToKeeper::Exit { code: 0 });
    assert_eq!(rig.ends(), 0);
}

#[test]
fn one_that_ends_before_it_is_born_is_told_exactly() {
    let mut rig = Rig::new("before-born");
    let mut supervisor = rig.supervisor();
    let instance = rig.spawned(&mut supervisor, FOREVER);
    instance.signal(libc::SIGKILL);
    eventually("the keeper has reaped it", || (!instance.lives()).then_some(()));
    supervisor.bear(1, 100, &instance);
    let exit = exited(&supervisor.hear());
    assert_eq!((exit.generation, exit.code, exit.signal), (1, None, Some(libc::SIGKILL)));
}

#[test]
fn one_that_was_not_born_never_runs() {
    let mut rig = Rig::new("not-born");
    let mut supervisor = rig.supervisor();
    let file = rig.directory.path().join("ran");
    let mut instance = rig.spawned(&mut supervisor, &format!(": > {}", file.display()));
    instance.pipe = None;
    eventually("it has ended", || (!instance.lives()).then_some(()));
    assert!(!file.exists());
    supervisor.kill();
    assert!(rig.supervisor().children.is_empty());
}

#[test]
fn a_supervisor_that_hangs_is_replaced() {
    let mut rig = Rig::with("hangs", &[("WATCHDOG_USEC", OsString::from("12000000"))]);
    let mut first = rig.supervisor();
    assert_eq!(first.hello.heartbeat_ms, 1000);
    let instance = rig.born(&mut first, 1, 5000, FOREVER);
    first.say(&ToKeeper::Adopted);
    first.settle();
    parent::signal(first.pidfd(), libc::SIGSTOP).unwrap();
    let second = rig.supervisor();
    assert_ne!(second.pid, first.pid);
    assert_eq!((second.hello.deaths, second.children.len()), (1, 1));
    assert!(instance.lives());
    assert!(rig.said().contains("said nothing for 3000 ms"), "{}", rig.said());
}

#[test]
fn a_crash_loop_gets_a_reduced_state_and_the_bad_one_is_kept() {
    let mut rig = Rig::new("crash-loop");
    let mut first = rig.supervisor();
    let instance = rig.born(&mut first, 1, 5000, FOREVER);
    let (reader, _writer) = pipe().unwrap();
    first.store(STATE, None, &reader);
    first.store("listen", None, null());
    first.say(&ToKeeper::Adopted);
    first.settle();
    first.kill();
    assert_eq!([rig.dies(), rig.dies()], [1, 2]);
    let reduced = rig.supervisor();
    assert!(reduced.hello.reduced && reduced.hello.deaths == 3);
    assert_eq!(reduced.fds.keys().collect::<Vec<_>>(), ["listen", STATE_BAD]);
    assert_eq!(inode(&reduced.fds[STATE_BAD].1), inode(&reader));
    assert!(reduced.children.contains_key(&1) && instance.lives());
    reduced.store(STATE, None, null());
    reduced.say(&ToKeeper::Adopted);
    reduced.settle();
    reduced.kill();
    let next = rig.supervisor();
    assert!(!next.hello.reduced && next.hello.deaths_total == 4);
    assert_eq!(next.fds.keys().collect::<Vec<_>>(), ["listen", STATE, STATE_BAD]);
    assert!(rig.said().contains("starting another in "), "{}", rig.said());
}

#[test]
fn a_stop_without_a_supervisor_ends_one_that_ignores_the_signal() {
    let mut rig = Rig::new("stop-alone");
    let mut first = rig.supervisor();
    let files = [rig.directory.path().join("stubborn"), rig.directory.path().join("polite")];
    let script = format!(
        "trap '' TERM; sleep 100000 & : > {}; while :; do sleep 0.02; done",
        files[0].display()
    );
    let stubborn = rig.born(&mut first, 1, 300, &script);
    let polite = rig.born(&mut first, 2, 100_000, &ends_with_seven(&files[1]));
    for file in &files {
        Instance::runs(file);
    }
    first.say(&ToKeeper::Adopted);
    first.settle();
    rig.signal(Signal::SIGTERM);
    assert_eq!(first.hear(), ToSupervisor::Stop { now: false });
    first.kill();
    let second = rig.supervisor();
    assert!(second.hello.stopping);
    drop(second);
    assert_eq!(rig.dies(), 2);
    assert_eq!(rig.ends(), 0);
    assert!(!stubborn.lives() && !polite.lives());
    assert!(rig.said().contains("carrying out the last wills"), "{}", rig.said());
}

#[test]
fn an_impatient_stop_is_told_to_each_supervisor() {
    let mut rig = Rig::new("impatient");
    let mut first = rig.supervisor();
    rig.signal(Signal::SIGHUP);
    assert_eq!(first.hear(), ToSupervisor::Reload);
    rig.signal(Signal::SIGUSR1);
    rig.signal(Signal::SIGQUIT);
    assert_eq!(first.hear(), ToSupervisor::Stop { now: true });
    first.kill();
    let mut second = rig.supervisor();
    assert!(second.hello.stopping);
    assert_eq!(second.hear(), ToSupervisor::Stop { now: true });
    second.say(&ToKeeper::Exit { code: 0 });
    assert_eq!(rig.ends(), 0);
}

#[test]
fn orphans_are_reaped_and_none_outlives_the_keeper() {
    let mut rig = Rig::new("orphans");
    let mut supervisor = rig.supervisor();
    let list = rig.directory.path().join("list");
    // Two daemons in sessions of their own, whose parent ends.
    let script = format!(
        "for n in $(seq 200); do (true &); done; \
         for n in 1 2; do setsid sleep 100000 & echo $! >> {0}.part; done; mv {0}.part {0}; exit 5",
        list.display()
    );
    rig.born(&mut supervisor, 1, 100, &script);
    assert_eq!(exited(&supervisor.hear()).code, Some(5));
    let list = fs::read_to_string(list).unwrap();
    let orphans: Vec<u32> = list.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(orphans.len(), 2);
    for &pid in &orphans {
        assert_eq!(parent_of(pid), Some(rig.keeper.id()));
    }
    let first = nix::unistd::Pid::from_raw(orphans[0].cast_signed());
    nix::sys::signal::kill(first, Signal::SIGKILL).unwrap();
    eventually("the orphan is reaped", || parent_of(orphans[0]).is_none().then_some(()));
    eventually("no zombie is left", || {
        let processes = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok());
        let mut children: Vec<u32> =
            processes.filter(|&pid| parent_of(pid) == Some(rig.keeper.id())).collect();
        let mut expected = vec![supervisor.pid, orphans[1]];
        children.sort_unstable();
        expected.sort_unstable();
        (children == expected).then_some(())
    });
    supervisor.say(&ToKeeper::Ack { generation: 1 });
    supervisor.say(&ToKeeper::Exit { code: 4 });
    assert_eq!(rig.ends(), 4);
    assert_eq!(parent_of(orphans[1]), None);
}

#[test]
fn a_supervisor_that_talks_nonsense_is_replaced_and_the_unknown_is_skipped() {
    let mut rig = Rig::new("nonsense");
    let first = rig.supervisor();
    first.say_raw(br#"{"type":"from_the_future","much":{"more":1}}"#);
    first.say_raw(br#"{"type":"heartbeat","and":"more"}"#);
    first.settle();
    first.say_raw(b"\xff\xfe{");
    let second = rig.supervisor();
    assert_eq!(second.hello.deaths, 1);
    // A Store without an fd.
    second.say(&ToKeeper::Store { name: "x".to_owned(), generation: None });
    let mut third = rig.supervisor();
    assert_eq!(third.hello.deaths, 2);
    third.say(&ToKeeper::Adopted);
    let instance = rig.born(&mut third, 1, 100, FOREVER);
    // It lives, so its exit cannot stand in any record.
    third.say(&ToKeeper::Ack { generation: 1 });
    let fourth = rig.supervisor();
    assert!(fourth.children.contains_key(&1) && instance.lives());
    assert!(rig.said().contains("is killed: the exit of a living instance"), "{}", rig.said());
}

#[test]
fn the_service_manager_hears_what_is_relayed_and_is_pinged() {
    let directory = crate::sys::testing::Directory::new("notify");
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let environment =
        [("NOTIFY_SOCKET", path.into_os_string()), ("WATCHDOG_USEC", OsString::from("40000000"))];
    let mut rig = Rig::with("notify", &environment);
    let supervisor = rig.supervisor();
    assert!(supervisor.hello.manager && !supervisor.hello.ready);
    for notice in [
        Notice::Status("0/1 online\nMAINPID=1".to_owned()),
        Notice::Status("0/1 online\nMAINPID=1".to_owned()),
        Notice::ExtendTimeout(1500),
        Notice::Ready,
        Notice::Reloading,
        Notice::Stopping,
    ] {
        supervisor.say(&ToKeeper::Notify { notice });
    }
    let mut bytes = [0; 4096];
    let mut hear = || {
        let count = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    };
    assert_eq!(hear(), "WATCHDOG=1");
    assert_eq!(hear(), "STATUS=0/1 online MAINPID=1");
    assert_eq!(hear(), "EXTEND_TIMEOUT_USEC=1500000");
    assert_eq!(hear(), "READY=1");
    assert!(hear().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(hear(), "STOPPING=1");
    supervisor.kill();
    let status = hear();
    assert!(status.starts_with("STATUS=supervisor (pid"), "{status}");
    let supervisor = rig.supervisor();
    assert!(supervisor.hello.ready, "the next one need not find out");

    // Each way in which a copy comes and goes.
    let park = |name: &str, fd_name: &str| {
        let (name, fd_name) = (name.to_owned(), fd_name.to_owned());
        supervisor.say_with(&ToKeeper::Park { name, fd_name }, &[null().as_fd()]);
    };
    park("listen.a", "a");
    assert_eq!(hear(), "FDSTORE=1\nFDNAME=a");
    park("listen.a", "a");
    assert_eq!([hear(), hear()], ["FDSTOREREMOVE=1\nFDNAME=a", "FDSTORE=1\nFDNAME=a"]);
    park("parked.a", "a");
    assert_eq!(hear(), "FDSTORE=1\nFDNAME=a");
    supervisor.say(&ToKeeper::Drop { name: "parked.a".to_owned() });
    supervisor.say(&ToKeeper::Drop { name: "listen.a".to_owned() });
    assert_eq!(hear(), "FDSTOREREMOVE=1\nFDNAME=a");
    park("listen.a", "a:b");
    assert!(hear().contains("exited") || rig.said().contains("keeps nothing under such a name"));
}

#[test]
fn a_stop_without_a_supervisor_has_the_time_that_it_takes() {
    let directory = crate::sys::testing::Directory::new("notify-wills");
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut rig = Rig::with("notify-wills", &[("NOTIFY_SOCKET", path.into_os_string())]);
    let mut supervisor = rig.supervisor();
    let runs = rig.directory.path().join("runs");
    let instance = rig.born(&mut supervisor, 1, 7000, &ends_with_seven(&runs));
    Instance::runs(&runs);
    supervisor.kill();
    rig.dies();
    rig.dies();
    rig.signal(Signal::SIGTERM);
    assert_eq!(rig.ends(), 0);
    assert!(!instance.lives());
    socket.set_nonblocking(true).unwrap();
    let mut bytes = [0; 4096];
    let mut said = Vec::new();
    while let Ok(count) = socket.recv(&mut bytes) {
        said.push(String::from_utf8(bytes[..count].to_vec()).unwrap());
    }
    let at = said.iter().position(|text| text == "STOPPING=1").unwrap();
    assert!(said[at + 1].starts_with("STATUS=stopping: no supervisor"), "{said:?}");
    assert_eq!(said[at + 2], "EXTEND_TIMEOUT_USEC=37000000", "{said:?}");
}

#[test]
fn files_and_directories_are_removed_at_the_very_end() {
    let mut rig = Rig::new("removal");
    let supervisor = rig.supervisor();
    let root = rig.directory.path().to_owned();
    let path = |name: &str| root.join(name);
    fs::create_dir_all(path("a/b")).unwrap();
    fs::create_dir_all(path("full")).unwrap();
    fs::write(path("a/socket"), "").unwrap();
    fs::write(path("full/precious"), "").unwrap();
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    supervisor.say(&ToKeeper::Remove {
        files: vec![text("never-there"), text("a/socket")],
        directories: vec![text("a/b"), text("a"), text("full")],
    });
    supervisor.settle();
    assert!(path("a/socket").exists());
    supervisor.say(&ToKeeper::Exit { code: 0 });
    assert_eq!(rig.ends(), 0);
    assert!(!path("a").exists() && path("full/precious").exists());
}

/// Removes a group of a test that failed.
struct Group<'a>(&'a Path);

impl Drop for Group<'_> {
    fn drop(&mut self) {
        if self.0.exists() {
            fs::write(self.0.join("cgroup.kill"), "1").unwrap_or_default();
            eventually("the group is empty", || fs::remove_dir(self.0).ok());
        }
    }
}

#[test]
fn a_keeper_without_a_free_fd_keeps_what_it_has_and_tries_again() {
    let mut rig = Rig::new("no-fds");
    let mut first = rig.supervisor();
    let instance = rig.born(&mut first, 1, 100, FOREVER);
    first.say(&ToKeeper::Adopted);
    first.settle();
    let pid = rustix::process::Pid::from_raw(rig.keeper.id().cast_signed());
    let limit = |current| {
        let maximum = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        let new = rustix::process::Rlimit { current: Some(current), maximum };
        rustix::process::prlimit(pid, rustix::process::Resource::Nofile, new).unwrap().current
    };
    let before = limit(4);
    first.kill();
    eventually("it has no fd", || rig.said().contains("Too many open files").then_some(()));
    limit(before.unwrap_or(1024));
    let second = rig.supervisor();
    assert!(second.children.contains_key(&1) && instance.lives());
}

#[test]
fn a_group_is_killed_whole_and_removed() {
    let name = "keeper::a_group_is_killed_whole_and_removed";
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let Some(root) = root.and_then(|line| line.split(' ').nth(1)) else {
        eprintln!("SKIPPED: {name}: there is no cgroup v2");
        return;
    };
    let group = Path::new(root).join(format!("pmr-test-keeper-{}", std::process::id()));
    if let Err(error) = fs::create_dir(&group) {
        eprintln!("SKIPPED: {name}: no group can be made: {error}");
        return;
    }
    let _group = Group(&group);
    let mut rig = Rig::new("group");
    let mut supervisor = rig.supervisor();
    let file = rig.directory.path().join("runs");
    let script = format!("trap '' TERM; setsid sleep 100000 & : > {}; wait", file.display());
    let instance = rig.spawned(&mut supervisor, &script);
    fs::write(group.join("cgroup.procs"), instance.pid.to_string()).unwrap();
    supervisor.bear(1, 100, &instance);
    Instance::runs(&file);
    let path = group.to_str().unwrap().to_owned();
    let will = Will { cgroup: Some(path.clone()), signal: libc::SIGTERM, timeout_ms: 100 };
    supervisor.say(&ToKeeper::Will { generation: 1, will });
    supervisor.say(&ToKeeper::Remove { files: Vec::new(), directories: vec![path] });
    supervisor.say(&ToKeeper::Exit { code: 0 });
    assert_eq!(rig.ends(), 0);
    assert!(!instance.lives());
    assert!(!group.exists(), "{}", rig.said());
    assert!(!rig.said().contains("cannot"), "{}", rig.said());
}

/// Has the keeper go on as this file.
fn upgrade(supervisor: &Supervisor, path: &Path) {
    let binary = fs::File::open(path).unwrap();
    let path = path.to_str().unwrap().to_owned();
    supervisor.say_with(&ToKeeper::Upgrade { path }, &[binary.as_fd()]);
}

/// A keeper with an instance and an fd, about to go on as a copy of itself.
fn before_upgrade(name: &str) -> (Rig, Supervisor, Instance, OwnedFd, PathBuf) {
    let mut rig = Rig::new(name);
    let mut first = rig.supervisor();
    let runs = rig.directory.path().join("runs");
    let instance = rig.born(&mut first, 1, 5000, &ends_with_seven(&runs));
    Instance::runs(&runs);
    let (reader, _writer) = pipe().unwrap();
    first.store("listen", Some(1), &reader);
    first.say(&ToKeeper::Adopted);
    let path = rig.directory.path().join("new-binary");
    fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
    (rig, first, instance, reader, path)
}

#[test]
fn an_upgrade_keeps_the_process_the_instances_and_the_fds() {
    let (mut rig, first, instance, fd, path) = before_upgrade("upgrade");
    let files = vec![rig.directory.path().join("left").to_str().unwrap().to_owned()];
    fs::write(&files[0], "").unwrap();
    first.say(&ToKeeper::Remove { files: files.clone(), directories: Vec::new() });
    upgrade(&first, &path);
    let mut second = rig.supervisor();
    assert_eq!(rig.executable(), path);
    let outcome = second.hello.upgrade.clone().unwrap();
    assert_eq!((outcome.from.as_str(), outcome.rolled_back), (env!("CARGO_PKG_VERSION"), false));
    assert_eq!((second.hello.deaths, second.hello.deaths_total), (0, 0));
    assert_eq!(second.hello.keeper_pid, rig.keeper.id());
    assert_eq!(second.hello.started_at_ms, first.hello.started_at_ms);
    assert_eq!(second.hello.arguments, ["track"]);
    assert_eq!(fs::read_link(format!("/proc/{}/exe", second.pid)).unwrap(), path);
    assert_eq!(inode(&second.fds["listen"].1), inode(&fd));
    assert!(instance.lives() && second.children[&1].1.is_none());
    // None of what was kept over the execve leaks into the supervisor.
    let leaked = fs::read_dir(format!("/proc/{}/fd", second.pid))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter(|link| link.to_string_lossy().contains("pmr-keeper"))
        .count();
    assert_eq!(leaked, 0);
    second.say(&ToKeeper::Adopted);
    instance.signal(libc::SIGTERM);
    assert_eq!(exited(&second.hear()).code, Some(7));
    // After a completed adopt there is no way back any more: deaths reduce.
    second.settle();
    second.kill();
    assert_eq!([rig.dies(), rig.dies()], [1, 2]);
    let last = rig.supervisor();
    assert!(last.hello.reduced);
    assert_eq!(rig.executable(), path);
    last.say(&ToKeeper::Exit { code: 3 });
    assert_eq!(rig.ends(), 3);
    assert!(!Path::new(&files[0]).exists());
}

#[test]
fn an_upgrade_whose_supervisors_die_is_taken_back() {
    let (mut rig, first, instance, fd, path) = before_upgrade("upgrade-back");
    let original = rig.executable();
    first.store(STATE, None, null());
    upgrade(&first, &path);
    let mut deaths = Vec::new();
    for _ in 0..3 {
        let supervisor = rig.supervisor();
        assert_eq!(fs::read_link(format!("/proc/{}/exe", supervisor.pid)).unwrap(), path);
        deaths.push(supervisor.hello.deaths);
    }
    assert_eq!(deaths, [0, 1, 2]);
    let mut back = rig.supervisor();
    assert_eq!(rig.executable(), original);
    let outcome = back.hello.upgrade.clone().unwrap();
    assert!(outcome.rolled_back && outcome.from == outcome.to);
    assert!(!back.hello.reduced, "the state is not to blame");
    assert_eq!(back.fds.keys().collect::<Vec<_>>(), ["listen", STATE]);
    assert_eq!(inode(&back.fds["listen"].1), inode(&fd));
    back.say(&ToKeeper::Adopted);
    instance.signal(libc::SIGTERM);
    assert_eq!(exited(&back.hear()).code, Some(7));
    assert!(rig.said().contains("going back"), "{}", rig.said());
}

#[test]
fn an_upgrade_to_something_that_cannot_be_executed_changes_nothing() {
    let (mut rig, first, instance, _fd, _path) = before_upgrade("upgrade-text");
    let original = rig.executable();
    let text = rig.directory.path().join("text");
    fs::write(&text, "not a program").unwrap();
    upgrade(&first, &text);
    let second = rig.supervisor();
    assert_eq!(rig.executable(), original);
    assert!(second.hello.upgrade.as_ref().unwrap().rolled_back);
    assert_eq!((second.hello.deaths, second.children.len()), (0, 1));
    assert!(instance.lives());
    assert!(rig.said().contains("going on as before"), "{}", rig.said());
}
