//! Children in groups. They are made below the group of the tests, where it is cgroup v2.

use super::*;
use crate::sys::cgroup::{self, Group, Home, Removal};

/// A home of this test, removed at the end with all that is in it.
struct TestHome(Home);

impl TestHome {
    fn make(test: &str) -> Option<Self> {
        let name = format!("pmr-test-{test}-{}", std::process::id());
        match Home::make(&name) {
            Ok(home) => Some(Self(home)),
            Err(error) => {
                writeln!(io::stderr(), "SKIPPED: {test}: {error}").unwrap();
                None
            }
        }
    }

    fn group(&self, name: &str) -> Group {
        self.0.make_group(name).unwrap()
    }
}

impl Drop for TestHome {
    fn drop(&mut self) {
        for path in self.0.groups().unwrap() {
            let group = Group::open(path).unwrap();
            group.kill().unwrap();
            end(&group);
        }
        assert_eq!(self.0.remove().unwrap(), Removal::Gone);
    }
}

/// Waits until nobody lives in the group, and removes it.
fn end(group: &Group) {
    let events = group.events_fd().unwrap();
    while cgroup::read_populated(events.as_fd()).unwrap() {
        wait_readable(&events, PollFlags::PRI);
    }
    until("the group is removed", || group.remove().unwrap() == Removal::Gone);
}

#[test]
fn a_child_is_in_its_group_from_the_first_instruction() {
    let Some(home) = TestHome::make("first") else { return };
    for (mut spawner, name) in spawners().into_iter().zip(["i-0.1", "i-0.2"]) {
        let group = home.group(name);
        let (read, write) = pipe().unwrap();
        let out = File::from(write);
        let mut show = plan(&out, &["cat", "/proc/self/cgroup"]);
        show.group = Some(group.dir());
        let child = spawner.spawn(&show).unwrap();
        let pid = child.pid;
        until("it is in the group while it waits", || group.pids().unwrap() == [pid]);
        rustix::io::write(&child.go, b"g").unwrap();
        let running = Running { child, exit: None };
        assert_eq!(exec_status(&running.child), ExecStatus::Done);
        assert_eq!(running.exit().exit_status(), Some(0));
        drop(out);
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        let own = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
        assert!(own.ends_with(&format!("/{name}")), "{own}");
        end(&group);
    }
}

#[test]
fn a_group_that_is_gone_is_an_error() {
    let Some(home) = TestHome::make("gone") else { return };
    let out = null();
    for (mut spawner, name) in spawners().into_iter().zip(["i-0.1", "i-0.2"]) {
        let group = home.group(name);
        assert_eq!(group.remove().unwrap(), Removal::Gone);
        let mut there = plan(&out, &["true"]);
        there.group = Some(group.dir());
        let error = spawner.spawn(&there).unwrap_err();
        assert!([libc::ENOENT, libc::ENODEV].contains(&error.errno()), "{error}");
    }
}

#[test]
fn a_daemon_that_left_the_session_is_killed() {
    let Some(home) = TestHome::make("daemon") else { return };
    let group = home.group("i-0.1");
    let out = null();
    let script = "setsid sh -c '(sleep 600 &) ; exec sleep 600' & exit 0";
    let mut daemon = plan(&out, &["sh", "-c", script]);
    daemon.group = Some(group.dir());
    let (running, _) = Running::start(&mut Spawner::new().unwrap(), &daemon);
    assert_eq!(running.exit().exit_status(), Some(0));
    until("both daemons sleep", || {
        let pids = group.pids().unwrap();
        let sleeps = |pid: &u32| procfs::stat(*pid).is_ok_and(|stat| stat.name == "sleep");
        pids.len() == 2 && pids.iter().all(sleeps)
    });
    assert!(group.populated().unwrap());
    assert_eq!(group.remove().unwrap(), Removal::Busy);
    group.kill().unwrap();
    end(&group);
    assert!(!group.path().exists());
    assert!(!group.populated().unwrap());
    assert_eq!(group.pids().unwrap(), Vec::<u32>::new());
}

#[test]
fn a_fork_bomb_is_ended() {
    // At most 200 at a time, each of which is replaced as soon as it ends.
    let script = "bomb() { while :; do (:) & (:) & wait; done; }; \
                  i=0; while [ $i -lt 40 ]; do bomb & i=$((i+1)); done; wait";
    let Some(home) = TestHome::make("bomb") else { return };
    let out = null();
    for (name, by_hand) in [("i-0.1", false), ("i-0.2", true)] {
        let group = home.group(name);
        let mut bomb = plan(&out, &["sh", "-c", script]);
        bomb.group = Some(group.dir());
        let (running, _) = Running::start(&mut Spawner::new().unwrap(), &bomb);
        until("it forks", || group.pids().unwrap().len() > 40);
        if by_hand {
            group.kill_each().unwrap();
        } else {
            group.kill().unwrap();
        }
        assert_eq!(running.exit().terminating_signal(), Some(libc::SIGKILL));
        end(&group);
    }
}

#[test]
fn a_seccomp_filter_that_denies_the_new_calls_is_got_round() {
    run_alone("sys::spawn::tests::groups::alone_without_the_new_calls");
}

#[test]
#[ignore = "run by a_seccomp_filter_that_denies_the_new_calls_is_got_round"]
fn alone_without_the_new_calls() {
    deny(libc::SYS_clone3, libc::EPERM);
    deny(libc::SYS_close_range, libc::ENOSYS);
    let home = TestHome::make("seccomp");
    let group = home.as_ref().map(|home| home.group("i-0.1"));
    let out = null();
    let mut spawner = Spawner::new().unwrap();
    let mut sleep = plan(&out, &["sleep", "600"]);
    sleep.group = group.as_ref().map(Group::dir);
    for _ in 0..2 {
        let (running, status) = Running::start(&mut spawner, &sleep);
        assert_eq!((status, running.child.via), (ExecStatus::Done, Via::Clone));
        assert!(!spawner.uses_clone3());
        until_fds_are(running.child.pid, 3);
        if let Some(group) = &group {
            assert_eq!(group.pids().unwrap(), [running.child.pid]);
        }
    }
}

/// From now on this thread and what it makes get `errno` for this call.
fn deny(call: c_long, errno: i32) {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf: 0,
        k,
    };
    let number = u32::try_from(call).unwrap();
    let refusal = libc::SECCOMP_RET_ERRNO | errno.unsigned_abs();
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number),
        statement(libc::BPF_RET | libc::BPF_K, refusal),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    filter[1].jf = 1;
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: prctl(2): numbers only.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(result, 0);
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: prctl(2) reads a program of four statements.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) };
    assert_eq!(result, 0);
}
