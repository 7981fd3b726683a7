use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus};

use super::*;
use crate::sys::identity::resolve;
use crate::sys::process::{ExecStatus, Step, read_exec_status, signal};
use crate::sys::procfs;
use crate::sys::testing::run_alone;

mod groups;

/// Far more than anything here takes on a loaded machine.
const DEADLINE_SECONDS: i64 = 60;

fn spawners() -> [Spawner; 2] {
    [Spawner::new().unwrap(), Spawner::without_clone3().unwrap()]
}

fn strings(words: &[&str]) -> Vec<CString> {
    words.iter().map(|word| CString::new(*word).unwrap()).collect()
}

fn plan<'fd>(output: &'fd File, argv: &[&str]) -> Plan<'fd> {
    Plan {
        program: Program::find(OsStr::new(argv[0]), None).unwrap(),
        argv: strings(argv),
        envp: strings(&["PATH=/usr/bin:/bin"]),
        listen_pid: false,
        cwd: "/".into(),
        identity: None,
        umask: None,
        stdout: output.as_fd(),
        stderr: output.as_fd(),
        inherited: Vec::new(),
        group: None,
        nofile: None,
        oom_score_adj: None,
        ignore_sigpipe: true,
        sibling: false,
    }
}

fn null() -> File {
    File::options().write(true).open("/dev/null").unwrap()
}

fn wait_readable(fd: impl AsFd, events: PollFlags) {
    let mut fds = [PollFd::new(&fd, events)];
    let deadline = Timespec { tv_sec: DEADLINE_SECONDS, tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&deadline)).unwrap(), 1, "nothing came");
}

/// Looks again every 5 ms.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..DEADLINE_SECONDS * 200 {
        if holds() {
            return;
        }
        poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: 5_000_000 })).unwrap();
    }
    panic!("never: {what}");
}

/// A child that goes on, ended and reaped at the latest when it is dropped.
struct Running {
    child: Spawned,
    exit: Option<WaitIdStatus>,
}

impl Running {
    /// Lets it go on and waits for the exec.
    fn start(spawner: &mut Spawner, plan: &Plan<'_>) -> (Self, ExecStatus) {
        let child = spawner.spawn(plan).unwrap();
        rustix::io::write(&child.go, b"g").unwrap();
        let status = exec_status(&child);
        (Self { child, exit: None }, status)
    }

    fn exit(mut self) -> WaitIdStatus {
        self.reap()
    }

    fn reap(&mut self) -> WaitIdStatus {
        wait_readable(&self.child.pidfd, PollFlags::IN);
        let id = WaitId::PidFd(self.child.pidfd.as_fd());
        let status = rustix::process::waitid(id, WaitIdOptions::EXITED).unwrap().unwrap();
        self.exit = Some(status);
        status
    }

    fn status(&self) -> BTreeMap<String, String> {
        status_of(self.child.pid)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.exit.is_none() {
            signal(self.child.pidfd.as_fd(), libc::SIGKILL).unwrap();
            self.reap();
        }
    }
}

fn exec_status(child: &Spawned) -> ExecStatus {
    wait_readable(&child.exec_status, PollFlags::IN);
    read_exec_status(&child.exec_status).unwrap()
}

/// Exactly 0 to `count` - 1. The loader of a program has files open for a moment.
fn until_fds_are(pid: u32, count: i32) {
    until("all other fds are closed", || {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let name = |entry: io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        let mut fds: Vec<i32> =
            entries.map(|entry| name(entry).to_str().unwrap().parse().unwrap()).collect();
        fds.sort_unstable();
        fds == (0..count).collect::<Vec<_>>()
    });
}

fn status_of(pid: u32) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

fn failure(spawner: &mut Spawner, plan: &Plan<'_>) -> (Step, i32, String) {
    let (running, status) = Running::start(spawner, plan);
    let ExecStatus::Failed(failure) = status else { panic!("{status:?}") };
    assert_eq!(running.exit().exit_status(), Some(127));
    let user = plan.identity.as_ref().map(|identity| identity.name.as_str());
    (failure.step, failure.errno, failure.describe(&plan.program, &plan.cwd, user))
}

/// A directory of this test, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn make(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pmr-test-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: &str, mode: u32) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        writeln!(io::stderr(), "SKIPPED: {test}: needs root").unwrap();
    }
    root
}

#[test]
fn exits_come_back_as_they_were() {
    let out = null();
    for mut spawner in spawners() {
        let (running, status) = Running::start(&mut spawner, &plan(&out, &["sh", "-c", "exit 7"]));
        assert_eq!(status, ExecStatus::Done);
        assert_eq!(running.exit().exit_status(), Some(7));
        let argv = ["sh", "-c", "kill -9 $$"];
        let (running, _) = Running::start(&mut spawner, &plan(&out, &argv));
        assert_eq!(running.exit().terminating_signal(), Some(libc::SIGKILL));
    }
}

#[test]
fn the_way_is_remembered() {
    let out = null();
    let [mut new, mut old] = spawners();
    let argv = ["true"];
    let (by_clone3, _) = Running::start(&mut new, &plan(&out, &argv));
    let (by_clone, _) = Running::start(&mut old, &plan(&out, &argv));
    assert_eq!(by_clone.child.via, Via::Clone);
    assert_eq!(by_clone3.child.via == Via::Clone3, new.uses_clone3());
    assert!(!old.uses_clone3());
}

#[test]
fn nothing_runs_before_go() {
    let dir = Dir::make("go");
    let out = null();
    let mark = dir.0.join("mark");
    for mut spawner in spawners() {
        let touch = plan(&out, &["touch", mark.to_str().unwrap()]);
        let child = spawner.spawn(&touch).unwrap();
        let running = Running { child, exit: None };
        let pid = running.child.pid;
        // It has put its fds in place and waits in read(2): null, two outputs, and two pipes.
        until("the child waits", || {
            let state = procfs::stat(pid).unwrap().state;
            state == 'S' && std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() == 5
        });
        assert_eq!(read_exec_status(&running.child.exec_status).unwrap(), ExecStatus::Pending);
        assert!(!mark.exists());
        rustix::io::write(&running.child.go, b"g").unwrap();
        assert_eq!(exec_status(&running.child), ExecStatus::Done);
        assert_eq!(running.exit().exit_status(), Some(0));
        assert!(mark.exists());
        std::fs::remove_file(&mark).unwrap();
    }
}

#[test]
fn a_child_without_its_byte_ends() {
    let dir = Dir::make("no-go");
    let out = null();
    let mark = dir.0.join("mark");
    for mut spawner in spawners() {
        let touch = plan(&out, &["touch", mark.to_str().unwrap()]);
        let mut child = spawner.spawn(&touch).unwrap();
        let (_, unused) = pipe().unwrap();
        drop(std::mem::replace(&mut child.go, unused));
        let running = Running { child, exit: None };
        assert_eq!(exec_status(&running.child), ExecStatus::Done);
        assert_eq!(running.exit().exit_status(), Some(0));
        assert!(!mark.exists());
    }
}

#[test]
fn a_signal_before_the_exec_is_not_lost() {
    let out = null();
    for mut spawner in spawners() {
        let sleep = plan(&out, &["sleep", "600"]);
        let child = spawner.spawn(&sleep).unwrap();
        signal(child.pidfd.as_fd(), libc::SIGTERM).unwrap();
        rustix::io::write(&child.go, b"g").unwrap();
        let running = Running { child, exit: None };
        assert_eq!(running.exit().terminating_signal(), Some(libc::SIGTERM));
    }
}

#[test]
fn failures_of_the_exec_name_their_step() {
    let dir = Dir::make("exec");
    let out = null();
    for mut spawner in spawners() {
        let mut fail = |argv: &[&str]| failure(&mut spawner, &plan(&out, argv));
        let (step, errno, text) = fail(&["pmr-no-such-program"]);
        assert_eq!((step, errno), (Step::Exec, libc::ENOENT));
        assert!(text.starts_with("cannot find pmr-no-such-program in PATH: No such"), "{text}");

        let plain = dir.file("plain", "x", 0o644);
        let (step, errno, text) = fail(&[&plain]);
        assert_eq!((step, errno), (Step::Exec, libc::EACCES));
        assert_eq!(text, format!("cannot execute {plain}: Permission denied (EACCES)"));

        let noexec = dir.file("noexec", "no binary\n", 0o755);
        let (step, errno, text) = fail(&[&noexec]);
        assert_eq!((step, errno), (Step::Exec, libc::ENOEXEC));
        assert!(text.contains("neither a binary"), "{text}");

        let script = dir.file("script", "#!/usr/bin/pmr-no-such -x\n", 0o755);
        let (step, errno, text) = fail(&[&script]);
        assert_eq!((step, errno), (Step::Exec, libc::ENOENT));
        assert!(text.contains("its interpreter /usr/bin/pmr-no-such is missing"), "{text}");

        let mut nowhere = plan(&out, &["true"]);
        nowhere.cwd = "/nonexistent/dir".into();
        let (step, errno, text) = failure(&mut spawner, &nowhere);
        assert_eq!((step, errno), (Step::Directory, libc::ENOENT));
        assert!(text.starts_with("cannot change directory to /nonexistent/dir: No such"), "{text}");

        let mut score = plan(&out, &["true"]);
        score.oom_score_adj = Some(9999);
        let (step, errno, _) = failure(&mut spawner, &score);
        assert_eq!((step, errno), (Step::OomScore, libc::EINVAL));
    }
}

#[test]
fn a_denied_candidate_is_passed_over_and_remembered() {
    let dir = Dir::make("path");
    let out = null();
    let mut spawner = Spawner::new().unwrap();
    dir.file("pmr-denied", "#!/bin/sh\n", 0o644);
    dir.file("true", "#!/bin/sh\n", 0o644);
    let path = format!("{}:/nonexistent:/usr/bin:/bin", dir.0.display());
    let find = |name: &str| Program::find(name.as_ref(), Some(path.as_ref())).unwrap();

    let mut denied = plan(&out, &["pmr-denied"]);
    denied.program = find("pmr-denied");
    let (step, errno, text) = failure(&mut spawner, &denied);
    assert_eq!((step, errno), (Step::Exec, libc::EACCES));
    assert!(text.contains(&format!("cannot execute {}/pmr-denied", dir.0.display())), "{text}");

    let mut later = plan(&out, &["true"]);
    later.program = find("true");
    let (running, status) = Running::start(&mut spawner, &later);
    assert_eq!((status, running.exit().exit_status()), (ExecStatus::Done, Some(0)));
}

#[test]
fn a_relative_program_is_looked_for_from_its_directory() {
    let dir = Dir::make("relative");
    dir.file("run", "#!/bin/sh\nexit 9\n", 0o755);
    let out = null();
    let mut spawner = Spawner::new().unwrap();
    for (name, path) in [("./run", None), ("run", Some(OsStr::new(":/bin")))] {
        let mut relative = plan(&out, &["run"]);
        relative.program = Program::find(name.as_ref(), path).unwrap();
        relative.cwd.clone_from(&dir.0);
        let (running, _) = Running::start(&mut spawner, &relative);
        assert_eq!(running.exit().exit_status(), Some(9));
    }
}

#[test]
fn a_child_is_who_the_plan_says() {
    if !is_root("a_child_is_who_the_plan_says") {
        return;
    }
    let dir = Dir::make("who");
    std::fs::set_permissions(&dir.0, std::fs::Permissions::from_mode(0o700)).unwrap();
    let out = null();
    for mut spawner in spawners() {
        let mut identity = resolve(Some("nobody"), None).unwrap().unwrap();
        identity.groups.push(4242);
        let ids = |id: u32| [id; 4].map(|id| id.to_string()).join("\t");
        let (uid, gid) = (ids(identity.uid), ids(identity.gid));
        let mut sleep = plan(&out, &["sleep", "600"]);
        sleep.identity = Some(identity);
        sleep.umask = Some(0o137);
        sleep.nofile = Some((77, 99));
        sleep.oom_score_adj = Some(123);
        let (running, status) = Running::start(&mut spawner, &sleep);
        assert_eq!(status, ExecStatus::Done);
        let facts = running.status();
        assert_eq!((&facts["Uid"], &facts["Gid"]), (&uid, &gid));
        assert_eq!(facts["Groups"], "4242 65534");
        assert_eq!(
            (facts["CapEff"].as_str(), facts["Umask"].as_str()),
            ("0000000000000000", "0137")
        );
        let pid = running.child.pid;
        assert_eq!(procfs::stat(pid).unwrap().session, pid);
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        assert_eq!(read("oom_score_adj").trim(), "123");
        let limits = read("limits");
        let limit = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(
            limit.split_ascii_whitespace().skip(3).collect::<Vec<_>>(),
            ["77", "99", "files"]
        );
        drop(running);

        // Root could go there, and the app cannot.
        sleep.cwd.clone_from(&dir.0);
        let (step, errno, text) = failure(&mut spawner, &sleep);
        assert_eq!((step, errno), (Step::Directory, libc::EACCES));
        assert!(text.ends_with("Permission denied (EACCES), as user nobody"), "{text}");
    }
}

#[test]
fn signals_are_as_if_nobody_had_touched_them() {
    let out = null();
    for mut spawner in spawners() {
        for (ignore_sigpipe, ignored) in [(true, "0000000000001000"), (false, "0000000000000000")] {
            let mut sleep = plan(&out, &["sleep", "600"]);
            sleep.ignore_sigpipe = ignore_sigpipe;
            let before = SigSet::thread_get_mask().unwrap();
            let mut blocked = SigSet::empty();
            blocked.add(nix::sys::signal::Signal::SIGTERM);
            blocked.thread_block().unwrap();
            let (running, _) = Running::start(&mut spawner, &sleep);
            assert!(SigSet::thread_get_mask().unwrap().contains(nix::sys::signal::SIGTERM));
            before.thread_set_mask().unwrap();
            let facts = running.status();
            assert_eq!(facts["SigIgn"], ignored);
            for mask in ["SigBlk", "SigCgt", "SigPnd", "ShdPnd"] {
                assert_eq!(facts[mask], "0000000000000000", "{mask}");
            }
        }
    }
}

#[test]
fn a_program_gets_its_fds_and_no_others() {
    // Sources below, among and above the places they go to, one of them twice.
    let dir = Dir::make("fds");
    let files: Vec<_> = (0..4).map(|i| File::create(dir.0.join(i.to_string())).unwrap()).collect();
    let out = File::create(dir.0.join("out")).unwrap();
    let inode = |i: usize| files[i].metadata().unwrap().ino();
    for mut spawner in spawners() {
        let mut sleep = plan(&out, &["sleep", "600"]);
        sleep.inherited = [3, 0, 2, 1, 0].iter().map(|i: &usize| files[*i].as_fd()).collect();
        sleep.stderr = files[1].as_fd();
        let (running, status) = Running::start(&mut spawner, &sleep);
        assert_eq!(status, ExecStatus::Done);
        let list = PathBuf::from(format!("/proc/{}/fd", running.child.pid));
        let fd_inode = |fd: i32| std::fs::metadata(list.join(fd.to_string())).unwrap().ino();
        until_fds_are(running.child.pid, 8);
        assert_eq!(std::fs::read_link(list.join("0")).unwrap(), Path::new("/dev/null"));
        assert_eq!(fd_inode(1), out.metadata().unwrap().ino());
        assert_eq!(fd_inode(2), inode(1));
        for (fd, file) in (3..8).zip([3, 0, 2, 1, 0]) {
            assert_eq!(fd_inode(fd), inode(file), "fd {fd}");
        }
    }
}

#[test]
fn sources_may_lie_in_each_others_places() {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let inode = |pid: u32, fd: i32| {
        let facts = std::fs::metadata(format!("/proc/{pid}/fd/{fd}")).unwrap();
        (facts.dev(), facts.ino())
    };
    let own = std::process::id();
    let out = null();
    for mut spawner in spawners() {
        let mut turned = plan(&out, &["sleep", "600"]);
        turned.stdout = stderr.as_fd();
        turned.stderr = stdin.as_fd();
        turned.inherited = vec![stdout.as_fd(), stdin.as_fd(), stderr.as_fd()];
        let (running, _) = Running::start(&mut spawner, &turned);
        for (place, source) in (1..6).zip([2, 0, 1, 0, 2]) {
            assert_eq!(inode(running.child.pid, place), inode(own, source), "fd {place}");
        }
    }
}

#[test]
fn listen_pid_is_the_childs_own() {
    for mut spawner in spawners() {
        let (read, write) = pipe().unwrap();
        let out = File::from(write);
        let mut show = plan(&out, &["sh", "-c", "echo $LISTEN_PID $$ $A"]);
        show.listen_pid = true;
        show.envp = strings(&["A=b"]);
        let (running, _) = Running::start(&mut spawner, &show);
        let pid = running.child.pid;
        assert_eq!(running.exit().exit_status(), Some(0));
        drop(out);
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("{pid} {pid} b\n"));
    }
}

#[test]
fn the_parent_reaps_a_sibling() {
    // Here this process is what the keeper is to the supervisor.
    let said = run_alone("sys::spawn::tests::alone_with_siblings");
    let pids = said.lines().filter_map(|line| line.strip_prefix("sibling "));
    let pids: Vec<i32> = pids.map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 2, "{said}");
    for pid in pids {
        let id = WaitId::Pid(rustix::process::Pid::from_raw(pid).unwrap());
        let status = rustix::process::waitid(id, WaitIdOptions::EXITED).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(7));
    }
}

#[test]
#[ignore = "run by the_parent_reaps_a_sibling"]
fn alone_with_siblings() {
    let out = null();
    let own = procfs::stat(std::process::id()).unwrap();
    for mut spawner in spawners() {
        let mut sibling = plan(&out, &["sh", "-c", "exit 7"]);
        sibling.sibling = true;
        let child = spawner.spawn(&sibling).unwrap();
        assert_eq!(procfs::stat(child.pid).unwrap().parent, own.parent);
        println!("\nsibling {}", child.pid);
        rustix::io::write(&child.go, b"g").unwrap();
        assert_eq!(exec_status(&child), ExecStatus::Done);
        wait_readable(&child.pidfd, PollFlags::IN);
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let error = rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), options);
        assert_eq!(error.unwrap_err(), rustix::io::Errno::CHILD);
    }
}

#[test]
fn a_full_table_of_fds_is_an_error() {
    run_alone("sys::spawn::tests::alone_with_few_fds");
}

#[test]
#[ignore = "run by a_full_table_of_fds_is_an_error"]
fn alone_with_few_fds() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let output = null();
    let mut spawner = Spawner::new().unwrap();
    let program = plan(&output, &["true"]);
    let (usual, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let lowest = u64::try_from(output.as_raw_fd()).unwrap();
    let (mut refused, mut failed) = (0, 0);
    for limit in lowest + 2.. {
        setrlimit(Resource::RLIMIT_NOFILE, limit, most).unwrap();
        let child = spawner.spawn(&program);
        setrlimit(Resource::RLIMIT_NOFILE, usual, most).unwrap();
        let child = match child {
            Err(error) => {
                assert_eq!(error.errno(), libc::EMFILE, "{error}");
                assert!(error.to_string().contains("limit on open files"), "{error}");
                refused += 1;
                continue;
            }
            Ok(child) => child,
        };
        rustix::io::write(&child.go, b"g").unwrap_or_default();
        let status = exec_status(&child);
        drop(Running { child, exit: None });
        let ExecStatus::Failed(failure) = status else { break };
        assert_eq!(failure.step, Step::Fds);
        assert!([libc::EMFILE, libc::EINVAL].contains(&failure.errno), "{failure:?}");
        failed += 1;
    }
    assert!(refused > 0 && failed > 0, "{refused} {failed}");
}

#[test]
fn spawning_again_and_again_leaks_nothing() {
    let out = null();
    let mut spawner = Spawner::new().unwrap();
    let program = plan(&out, &["true"]);
    let (first, _) = Running::start(&mut spawner, &program);
    let lowest = first.child.exec_status.as_raw_fd();
    drop(first);
    // Other tests of this process open fds as well, so only a large growth is one of ours.
    for _ in 0..100 {
        let (running, _) = Running::start(&mut spawner, &program);
        assert_eq!(running.exit().exit_status(), Some(0));
    }
    let (last, _) = Running::start(&mut spawner, &program);
    assert!(last.child.exec_status.as_raw_fd() < lowest + 200);
}
