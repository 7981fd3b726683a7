//! Processes of others, as /proc shows them, and the wait for a fact.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::event::Timespec;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::{ClockId, clock_gettime};

/// How long a fact may take. On a quiet machine all of them come within a second or two.
pub(crate) const PATIENCE_MS: u64 = 60_000;

/// Milliseconds of the monotonic clock.
pub(crate) fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1000 + now.tv_nsec / 1_000_000).unwrap()
}

/// Lets others run for a moment, between two looks at a fact.
pub(crate) fn pause(ms: u64) {
    let nanoseconds = i64::try_from(ms).unwrap() * 1_000_000;
    let pause =
        Timespec { tv_sec: nanoseconds / 1_000_000_000, tv_nsec: nanoseconds % 1_000_000_000 };
    // Interrupted is as good as over.
    rustix::event::poll(&mut [], Some(&pause)).unwrap_or_default();
}

/// Asks until there is an answer, or gives up at the deadline.
pub(crate) fn wait_for<T>(patience_ms: u64, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = now_ms() + patience_ms;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if now_ms() >= deadline {
            return None;
        }
        pause(5);
    }
}

/// Asks until there is an answer; panics at the deadline.
pub(crate) fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    wait_for(PATIENCE_MS, ask).unwrap_or_else(|| panic!("never: {what}"))
}

/// Says that a test was not run on this machine, where `tests/run` counts it.
pub(crate) fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED: {test}: {why}");
}

/// Whether a program is in PATH.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Sends a signal. False where there is no such process any more.
pub(crate) fn signal(pid: u32, signal: Signal) -> bool {
    let pidfd = open(pid);
    pidfd.is_some_and(|pidfd| pidfd_send_signal(pidfd, signal).is_ok())
}

/// A process that cannot become another one.
pub(crate) fn open(pid: u32) -> Option<std::os::fd::OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Whether all threads of a process stand still. Until then it may accept one more connection.
pub(crate) fn is_stopped(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut stats = tasks.map(|it| fs::read_to_string(it.path().join("stat")).unwrap_or_default());
    stats.all(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
}

/// Whether the process is there, and no zombie.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_some_and(|state| !"ZX".contains(state))
}

/// When it was started, in ticks since boot: with the pid, its identity.
pub(crate) fn started_at(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19).map(str::to_owned)
}

/// The argument vector.
pub(crate) fn words(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words =
        bytes.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let mut words: Vec<String> = words.collect();
    words.pop();
    words
}

/// Children in the order of their birth, or of becoming orphans.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Every process that was started with `variable`, a whole `NAME=VALUE`; no zombies.
pub(crate) fn with_variable(variable: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| has_variable(pid, variable) && lives(pid)).collect()
}

/// Whether the process was started with it.
pub(crate) fn has_variable(pid: u32, variable: &str) -> bool {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    bytes.split(|&byte| byte == 0).any(|one| one == variable.as_bytes())
}

/// A variable of the environment it was started with.
pub(crate) fn variable(pid: u32, name: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let start = format!("{name}=");
    let value =
        bytes.split(|&byte| byte == 0).find_map(|one| one.strip_prefix(start.as_bytes()))?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// Copies a program by another process. A file that this one writes to may be open in a child that
/// another test has just forked, and could not be executed as long (`ETXTBSY`).
pub(crate) fn copy_program(from: &Path, to: &Path, mode: u32) {
    let next = to.with_extension("next");
    let copied = Command::new("cp").arg(from).arg(&next).status().unwrap();
    assert!(copied.success(), "cp {} {}", from.display(), next.display());
    fs::set_permissions(&next, fs::Permissions::from_mode(mode)).unwrap();
    // The one that runs cannot be written to.
    fs::rename(next, to).unwrap();
}

/// Where this process' own group of cgroup v2 is, if it has one.
pub(crate) fn own_cgroup() -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| place.split(' ').nth(4).map(str::to_owned))?
    })?;
    Some(Path::new(&mount).join(own))
}

/// Kills what is in a group, and removes it with all groups below.
pub(crate) fn remove_cgroup(group: &Path) {
    if !group.is_dir() {
        return;
    }
    // A group that is gone meanwhile is what is wanted.
    fs::write(group.join("cgroup.kill"), "1").unwrap_or_default();
    let gone = wait_for(PATIENCE_MS, || {
        remove_tree(group);
        (!group.exists()).then_some(())
    });
    if gone.is_none() {
        eprintln!("{} could not be removed", group.display());
    }
}

fn remove_tree(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    fs::remove_dir(group).unwrap_or_default();
}
