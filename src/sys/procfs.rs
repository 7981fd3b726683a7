//! What /proc tells of processes: their use of memory and CPU, who belongs to whom, and who holds
//! a port. All of it is a snapshot: a process that ends meanwhile is left out.

#![expect(unsafe_code, reason = "the kernel's interface: sysconf(3)")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Error, Result};

mod sockets;

/// Longest command line that is shown, in bytes.
const COMMAND_BYTES_MAX: u64 = 4096;

/// More than `stat` (52 numbers of at most 20 digits and a name), `statm` and `smaps_rollup` have.
const RECORD_BYTES_MAX: usize = 2048;

/// Most links of fds that are read to find the holder of a port: some 100 ms of work.
const LINKS_MAX: usize = 100_000;

/// What processes use together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Their memory, in bytes. For each process its PSS, in which a page that k processes share
    /// counts 1/k (`smaps_rollup`); where that may not be read (it needs the right to trace the
    /// process) its RSS, in which such a page counts whole (`statm`).
    pub memory_bytes: u64,
    /// For how many processes `memory_bytes` has their RSS.
    pub counted_by_rss: u32,
    /// CPU time in user and kernel mode, of themselves and not of their children.
    pub cpu: Duration,
    /// How many of them there are.
    pub processes: u32,
}

/// What is used of a process's `stat`: `proc_pid_stat(5)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Its process id.
    pub pid: u32,
    /// Its name: at most 15 bytes, any of them.
    pub name: String,
    /// `R`, `S`, `D`, `Z`, …
    pub state: char,
    /// Its parent.
    pub parent: u32,
    /// Its session.
    pub session: u32,
    /// CPU time in user mode, in clock ticks.
    pub user_ticks: u64,
    /// CPU time in kernel mode, in clock ticks.
    pub system_ticks: u64,
    /// When it was started, in clock ticks since the boot.
    pub start_ticks: u64,
}

/// Parses `/proc/PID/stat`. The name may hold spaces, parentheses and newlines, so what follows it
/// is looked for from the end.
pub fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let open = bytes.iter().position(|byte| *byte == b'(')?;
    let close = bytes.iter().rposition(|byte| *byte == b')')?;
    let pid = std::str::from_utf8(bytes.get(..open)?).ok()?.trim().parse().ok()?;
    let name = bytes.get(open.saturating_add(1)..close)?;
    let rest = std::str::from_utf8(bytes.get(close.saturating_add(1)..)?).ok()?;
    // Numbered from 3 in the manual: state ppid pgrp session tty tpgid flags minflt cminflt majflt
    // cmajflt utime stime cutime cstime priority nice threads itrealvalue starttime.
    let fields: Vec<_> = rest.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let id = |index: usize| fields.get(index)?.parse::<u32>().ok();
    Some(Stat {
        pid,
        name: String::from_utf8_lossy(name).into_owned(),
        state: fields.first()?.chars().next()?,
        parent: id(1)?,
        session: id(3)?,
        user_ticks: number(11)?,
        system_ticks: number(12)?,
        start_ticks: number(19)?,
    })
}

/// The `stat` of a process; `ENOENT` or `ESRCH` where it is gone.
pub fn stat(pid: u32) -> Result<Stat> {
    let path = format!("/proc/{pid}/stat");
    let bytes = read_record(&path).map_err(|error| Error::at("read", &path, error))?;
    parse_stat(&bytes).ok_or_else(|| Error::at("understand", path, std::io::ErrorKind::InvalidData))
}

/// When a process was started, in clock ticks since the boot: with its pid, it tells a process
/// from a later one of the same pid.
pub fn start_time(pid: u32) -> Result<u64> {
    Ok(stat(pid)?.start_ticks)
}

/// What `pids` use now. Those that are gone count nothing.
pub fn sample(pids: &[u32]) -> Usage {
    let mut usage = Usage::default();
    for stat in pids.iter().filter_map(|pid| stat(*pid).ok()) {
        let (bytes, by_rss) = memory_bytes(stat.pid);
        let ticks = stat.user_ticks.saturating_add(stat.system_ticks);
        usage.memory_bytes = usage.memory_bytes.saturating_add(bytes);
        usage.counted_by_rss = usage.counted_by_rss.saturating_add(u32::from(by_rss));
        usage.cpu = usage.cpu.saturating_add(from_ticks(ticks));
        usage.processes = usage.processes.saturating_add(1);
    }
    usage
}

fn memory_bytes(pid: u32) -> (u64, bool) {
    let rollup = read_record(&format!("/proc/{pid}/smaps_rollup"));
    if let Some(bytes) = rollup.ok().and_then(|text| parse_pss(&String::from_utf8_lossy(&text))) {
        return (bytes, false);
    }
    let statm = read_record(&format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = parse_resident_pages(&String::from_utf8_lossy(&statm)).unwrap_or_default();
    (pages.saturating_mul(page_bytes()), true)
}

/// Reads a file that the kernel writes in one piece, of at most [`RECORD_BYTES_MAX`]. It says no
/// size for one, and `std::fs::read` would begin with 32 bytes and need seven calls.
fn read_record(path: &str) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = vec![0; RECORD_BYTES_MAX];
    let count = std::fs::File::open(path)?.read(&mut bytes)?;
    bytes.truncate(count);
    Ok(bytes)
}

fn parse_pss(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn parse_resident_pages(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn page_bytes() -> u64 {
    // SAFETY: sysconf(3) takes a number and gives one.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Ticks of `stat` as a time.
pub fn from_ticks(ticks: u64) -> Duration {
    // SAFETY: sysconf(3) takes a number and gives one.
    let hertz = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) });
    // 100 on every machine of today: the kernel's USER_HZ.
    let hertz = hertz.ok().filter(|hertz| *hertz > 0).unwrap_or(100);
    let nanos = u128::from(ticks).saturating_mul(1_000_000_000).checked_div(u128::from(hertz));
    Duration::from_nanos_u128(nanos.unwrap_or_default())
}

/// How long the threads of these processes have waited for a processor so far, all added up
/// (`/proc/PID/task/TID/schedstat`, whose second number is in nanoseconds). Zero where the kernel
/// does not count it.
pub fn starved(pids: &[u32]) -> Duration {
    let tasks = pids.iter().filter_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).ok());
    let waited = tasks.flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').nth(1)?.parse().ok()
    });
    Duration::from_nanos(waited.fold(0, u64::saturating_add))
}

/// All processes of the machine that can be seen.
pub fn processes() -> Result<Vec<Stat>> {
    Ok(all_pids()?.into_iter().filter_map(|pid| stat(pid).ok()).collect())
}

fn all_pids() -> Result<Vec<u32>> {
    let entries = std::fs::read_dir("/proc").map_err(|error| Error::at("list", "/proc", error))?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(pids.collect())
}

/// The processes of a session, zombies included.
pub fn session_pids(session: u32) -> Result<Vec<u32>> {
    let members = processes()?.into_iter().filter(|stat| stat.session == session);
    Ok(members.map(|stat| stat.pid).collect())
}

/// The children of a process, zombies included. Not their children.
pub fn children_of(pid: u32) -> Result<Vec<u32>> {
    let children = processes()?.into_iter().filter(|stat| stat.parent == pid);
    Ok(children.map(|stat| stat.pid).collect())
}

/// The command line of a process for a person; its name in brackets where it has none.
pub fn command_line(pid: u32) -> Result<String> {
    use std::io::Read;
    let path = format!("/proc/{pid}/cmdline");
    let failed = |error| Error::at("read", &path, error);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(&path).map_err(failed)?;
    file.take(COMMAND_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    let words: Vec<_> = bytes
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).replace(char::is_control, "\u{fffd}"))
        .collect();
    let line = words.join(" ");
    if line.trim().is_empty() {
        Ok(format!("[{}]", stat(pid)?.name))
    } else {
        Ok(line.trim().into())
    }
}

/// The environment that a process was started with; variables that are not UTF-8 are shown as far
/// as they are.
pub fn environment(pid: u32) -> Result<BTreeMap<String, String>> {
    let path = format!("/proc/{pid}/environ");
    let bytes = std::fs::read(&path).map_err(|error| Error::at("read", &path, error))?;
    let variables = bytes.split(|&byte| byte == 0).filter_map(|variable| {
        let text = String::from_utf8_lossy(variable);
        let (name, value) = text.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    Ok(variables.collect())
}

/// An address that somebody listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A socket file, by the path it was bound to.
    Unix(PathBuf),
}

/// Who listens on an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its command line.
    pub command: String,
}

/// The sockets that a process has open, by the numbers of their inodes. `ENOENT` where the process
/// is gone.
pub fn sockets_of(pid: u32) -> Result<Vec<u64>> {
    Ok(open_sockets(pid)?.map(|(inode, _)| inode).collect())
}

/// Which fd of a process is this socket, the first where there are more. `ENOENT` where the process
/// is gone.
pub fn socket_fd(pid: u32, inode: u64) -> Result<Option<i32>> {
    Ok(open_sockets(pid)?.filter(|(it, _)| *it == inode).map(|(_, fd)| fd).min())
}

/// Inode and fd of each.
fn open_sockets(pid: u32) -> Result<impl Iterator<Item = (u64, i32)>> {
    let path = format!("/proc/{pid}/fd");
    let entries = std::fs::read_dir(&path).map_err(|error| Error::at("list", &path, error))?;
    Ok(entries.filter_map(std::result::Result::ok).filter_map(|entry| {
        let link = std::fs::read_link(entry.path()).ok()?;
        let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
        Some((inode, entry.file_name().to_str()?.parse().ok()?))
    }))
}

/// The first port that anybody may bind: `net.ipv4.ip_unprivileged_port_start` (ip(7)), 1024 where
/// that cannot be read.
pub fn unprivileged_port_start() -> u16 {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

/// Who listens where `address` cannot be bound for that. `None` where nobody does, or where it
/// cannot be seen who: another network or pid namespace, another user.
pub fn port_holder(address: &Address) -> Result<Option<Holder>> {
    let inodes = match address {
        Address::Tcp(address) => tcp_inodes(*address)?,
        Address::Unix(path) => unix_inodes(path)?,
    };
    if inodes.is_empty() {
        return Ok(None);
    }
    let names: Vec<_> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let mut links = LINKS_MAX;
    for pid in all_pids()? {
        if holds_any(pid, &names, &mut links) {
            let command = command_line(pid).unwrap_or_default();
            return Ok(Some(Holder { pid, command }));
        }
        if links == 0 {
            break;
        }
    }
    Ok(None)
}

fn tcp_inodes(address: SocketAddr) -> Result<Vec<u64>> {
    let mut inodes = Vec::new();
    for (table, is_v6) in [("/proc/net/tcp", false), ("/proc/net/tcp6", true)] {
        let text = match std::fs::read_to_string(table) {
            // A machine without IPv6 has no such table.
            Err(error) if is_v6 && error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(|error| Error::at("read", table, error))?,
        };
        let listeners = text.lines().filter_map(sockets::parse_tcp_listener);
        inodes.extend(
            listeners.filter(|found| overlap(found.address, address)).map(|found| found.inode),
        );
    }
    Ok(inodes)
}

fn unix_inodes(path: &Path) -> Result<Vec<u64>> {
    let table = "/proc/net/unix";
    let text = std::fs::read(table).map_err(|error| Error::at("read", table, error))?;
    let listeners = text.split(|byte| *byte == b'\n').filter_map(sockets::parse_unix_listener);
    Ok(listeners.filter(|(_, found)| found == path).map(|(inode, _)| inode).collect())
}

/// Whether one of two addresses keeps the other from being bound: the same port, and the same
/// address or a wildcard. The wildcard of IPv6 takes IPv4 with it unless its socket says otherwise,
/// which the tables do not show.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let (a_ip, b_ip) = (a.ip().to_canonical(), b.ip().to_canonical());
    let same_port = a.port() == b.port();
    let takes_all = |wild: IpAddr, other: IpAddr| {
        wild.is_unspecified() && (wild.is_ipv6() || other.is_ipv4() || other.is_unspecified())
    };
    same_port && (a_ip == b_ip || takes_all(a_ip, b_ip) || takes_all(b_ip, a_ip))
}

fn holds_any(pid: u32, names: &[String], links: &mut usize) -> bool {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    for entry in entries.filter_map(std::result::Result::ok) {
        let Some(left) = links.checked_sub(1) else {
            return false;
        };
        *links = left;
        let link = std::fs::read_link(entry.path()).unwrap_or_default();
        if names.iter().any(|name| link == Path::new(name)) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests;
