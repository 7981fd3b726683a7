//! Limits of an instance's group.
//!
//! They are written by `cgroups-rs`, which is only ever given groups that are there: to make one,
//! it would write into the groups of the service manager, and its watch of memory events is that
//! of cgroup v1. What it reads of a file that is missing is a limit of "max", so every limit is
//! read back by our own code. `memory.high` is not a limit but a trip-wire, and not written here.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::PathBuf;

use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Cgroup, Hierarchy, MaxValue, Subsystem};
use nix::errno::Errno;

use super::Group;
use crate::sys::{Error, Result};

/// The kernel's default of `cpu.max`, in microseconds: what a share of a CPU is a share of.
const CPU_PERIOD_US: u64 = 100_000;

/// The kernel's default of `cpu.weight`.
const CPU_WEIGHT: u64 = 100;

/// The kernel keeps a memory limit in whole pages; this is the largest page of any Linux machine.
const PAGE_BYTES_MAX: u64 = 256 * 1024;

/// Limits of one group. `None` is the kernel's default: no limit, and the weight of everybody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// `memory.max`, in bytes.
    pub memory_max: Option<u64>,
    /// `memory.swap.max`, in bytes.
    pub memory_swap_max: Option<u64>,
    /// `pids.max`.
    pub pids_max: Option<u64>,
    /// `cpu.weight`, 1 to 10000.
    pub cpu_weight: Option<u64>,
    /// `cpu.max`, in percent of one CPU.
    pub cpu_max_percent: Option<u64>,
}

/// One of [`Limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LimitKind {
    /// `memory.max`
    MemoryMax,
    /// `memory.swap.max`
    MemorySwapMax,
    /// `pids.max`
    PidsMax,
    /// `cpu.weight`
    CpuWeight,
    /// `cpu.max`
    CpuMax,
    /// `memory.oom.group`: no choice of the app's, but what `memory.max` is worth.
    OomGroup,
}

impl LimitKind {
    /// All that [`Limits`] name.
    pub const ALL: [Self; 5] =
        [Self::MemoryMax, Self::MemorySwapMax, Self::PidsMax, Self::CpuWeight, Self::CpuMax];

    /// The file of the group.
    pub fn file(self) -> &'static str {
        match self {
            Self::MemoryMax => "memory.max",
            Self::MemorySwapMax => "memory.swap.max",
            Self::PidsMax => "pids.max",
            Self::CpuWeight => "cpu.weight",
            Self::CpuMax => "cpu.max",
            Self::OomGroup => "memory.oom.group",
        }
    }

    /// The controller that the file belongs to.
    pub fn controller(self) -> &'static str {
        match self {
            Self::MemoryMax | Self::MemorySwapMax | Self::OomGroup => "memory",
            Self::PidsMax => "pids",
            Self::CpuWeight | Self::CpuMax => "cpu",
        }
    }
}

impl Limits {
    /// The limit of this kind, as it is asked for.
    pub fn get(&self, kind: LimitKind) -> Option<u64> {
        match kind {
            LimitKind::MemoryMax => self.memory_max,
            LimitKind::MemorySwapMax => self.memory_swap_max,
            LimitKind::PidsMax => self.pids_max,
            LimitKind::CpuWeight => self.cpu_weight,
            LimitKind::CpuMax => self.cpu_max_percent,
            LimitKind::OomGroup => None,
        }
    }
}

/// A limit that did not take.
#[derive(Debug)]
pub struct Untaken {
    /// Which.
    pub kind: LimitKind,
    /// The file.
    pub path: PathBuf,
    /// What was to stand in it.
    pub wanted: String,
    /// What stands in it, or why that is not known.
    pub found: Result<String>,
}

impl fmt::Display for Untaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.found {
            Ok(found) => write!(f, "{path} is {found:?} and not {:?}", self.wanted),
            Err(error) => write!(f, "{path} is not {:?}: {error}", self.wanted),
        }
    }
}

impl Group {
    /// Gives the group these limits, and lets whatever is in it die together where the kernel has
    /// to end one for its memory. Says which did not take; the others hold. Nothing is written
    /// where it stands already. A limit of memory below what is used makes the kernel reclaim and
    /// kill in this very call: ask [`Group::usage`] first.
    pub fn limit(&self, limits: &Limits) -> Vec<Untaken> {
        let mut untaken: Vec<_> =
            LimitKind::ALL.into_iter().filter_map(|kind| self.limit_one(kind, limits)).collect();
        untaken.extend(self.oom_group());
        untaken
    }

    fn limit_one(&self, kind: LimitKind, limits: &Limits) -> Option<Untaken> {
        let asked = limits.get(kind);
        let wanted = worded(kind, asked);
        let found = self.read_file(kind.file());
        match &found {
            Ok(found) if is_same(kind, &wanted, found) => return None,
            // Without the controller there is no file, and no limit.
            Err(error) if error.is_not_found() && asked.is_none() => return None,
            Ok(_) | Err(_) => {}
        }
        let found = found.and_then(|_| {
            self.write_by_crate(kind, asked)?;
            self.read_file(kind.file())
        });
        match found {
            Ok(found) if is_same(kind, &wanted, &found) => None,
            found => Some(Untaken { kind, path: self.path().join(kind.file()), wanted, found }),
        }
    }

    /// Without it the kernel picks one process, and leaves half an app behind.
    fn oom_group(&self) -> Option<Untaken> {
        let kind = LimitKind::OomGroup;
        let found = match self.read_file(kind.file()) {
            Ok(found) if found != "1" => {
                self.write_file(kind.file(), "1").and_then(|()| self.read_file(kind.file()))
            }
            // No memory controller: the kernel looks at processes only.
            Err(error) if error.is_not_found() => return None,
            other => other,
        };
        match found {
            Ok(found) if found == "1" => None,
            found => {
                let (path, wanted) = (self.path().join(kind.file()), "1".to_owned());
                Some(Untaken { kind, path, wanted, found })
            }
        }
    }

    fn write_by_crate(&self, kind: LimitKind, asked: Option<u64>) -> Result<()> {
        let group = self.loaded()?;
        let missing = || Error::at("limit", self.path(), Errno::ENOENT);
        let number = asked.map_or(-1, |number| i64::try_from(number).unwrap_or(i64::MAX));
        let max = if number < 0 { MaxValue::Max } else { MaxValue::Value(number) };
        let memory = || group.controller_of::<MemController>().ok_or_else(missing);
        let cpu = || group.controller_of::<CpuController>().ok_or_else(missing);
        let written = match kind {
            LimitKind::MemoryMax => memory()?.set_limit(number),
            LimitKind::MemorySwapMax => memory()?.set_memswap_limit(number),
            LimitKind::PidsMax => {
                group.controller_of::<PidController>().ok_or_else(missing)?.set_pid_max(max)
            }
            LimitKind::CpuWeight => cpu()?.set_shares(asked.unwrap_or(CPU_WEIGHT)),
            LimitKind::CpuMax => {
                let quota = asked.map(quota_us).and_then(|us| i64::try_from(us).ok());
                cpu()?.set_cfs_quota_and_period(Some(quota.unwrap_or(-1)), Some(CPU_PERIOD_US))
            }
            LimitKind::OomGroup => Ok(()),
        };
        written.map_err(|error| Error::at("write", self.path().join(kind.file()), cause(&error)))
    }

    /// This group as the crate has it: a name in the tree that begins above it.
    fn loaded(&self) -> Result<Cgroup> {
        let path = self.path();
        let name = path.file_name().and_then(|name| name.to_str());
        match (path.parent(), name) {
            (Some(root), Some(name)) => {
                Ok(Cgroup::load(Box::new(Tree { root: root.to_owned() }), name))
            }
            (Some(_) | None, _) => Err(Error::at("limit", path, Errno::EINVAL)),
        }
    }
}

/// The part of the tree of groups that pmr makes groups in. The crate's own hierarchies begin at
/// `/sys/fs/cgroup`, which is not where cgroup v2 is on every machine.
#[derive(Debug, Clone)]
struct Tree {
    root: PathBuf,
}

impl Hierarchy for Tree {
    fn subsystems(&self) -> Vec<Subsystem> {
        let root = || self.root.clone();
        vec![
            Subsystem::Mem(MemController::new(root(), root(), true)),
            Subsystem::Pid(PidController::new(root(), root(), true)),
            Subsystem::Cpu(CpuController::new(root(), root(), true)),
        ]
    }

    fn root(&self) -> PathBuf {
        self.root.clone()
    }

    fn root_control_group(&self) -> Cgroup {
        Cgroup::load(Box::new(self.clone()), "")
    }

    fn parent_control_group(&self, _path: &str) -> Cgroup {
        self.root_control_group()
    }

    fn v2(&self) -> bool {
        true
    }
}

/// What the kernel said, out of the crate's error.
fn cause(error: &cgroups_rs::fs::error::Error) -> io::Error {
    let kernel = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match kernel.and_then(io::Error::raw_os_error) {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(error.to_string()),
    }
}

fn quota_us(percent: u64) -> u64 {
    percent.saturating_mul(CPU_PERIOD_US / 100)
}

/// What is to stand in the file.
fn worded(kind: LimitKind, asked: Option<u64>) -> String {
    match (kind, asked) {
        (LimitKind::CpuMax, Some(percent)) => format!("{} {CPU_PERIOD_US}", quota_us(percent)),
        (LimitKind::CpuMax, None) => format!("max {CPU_PERIOD_US}"),
        (LimitKind::CpuWeight, None) => CPU_WEIGHT.to_string(),
        (_, Some(number)) => number.to_string(),
        (_, None) => "max".to_owned(),
    }
}

/// Whether the file says what it should. Of a limit of memory the kernel keeps whole pages, and
/// what no machine has is no limit to it.
fn is_same(kind: LimitKind, wanted: &str, found: &str) -> bool {
    if wanted == found {
        return true;
    }
    let (LimitKind::MemoryMax | LimitKind::MemorySwapMax, Ok(wanted)) =
        (kind, wanted.parse::<u64>())
    else {
        return false;
    };
    match found.parse::<u64>() {
        Ok(found) => found <= wanted && wanted.saturating_sub(found) < PAGE_BYTES_MAX,
        Err(_) => found == "max" && wanted > u64::MAX / 2 - PAGE_BYTES_MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::Directory;
    use std::fs;

    const FRESH: [(&str, &str); 6] = [
        ("memory.max", "max\n"),
        ("memory.swap.max", "max\n"),
        ("memory.oom.group", "0\n"),
        ("pids.max", "max\n"),
        ("cpu.weight", "100\n"),
        ("cpu.max", "max 100000\n"),
    ];

    const ALL: Limits = Limits {
        memory_max: Some(512 << 20),
        memory_swap_max: Some(0),
        pids_max: Some(64),
        cpu_weight: Some(50),
        cpu_max_percent: Some(150),
    };

    /// A directory with the files of a group, as `i-0.1` below another.
    fn fixture(files: &[(&str, &str)]) -> (Directory, Group) {
        let home = Directory::new("limits");
        let path = home.path().join("i-0.1");
        fs::create_dir(&path).unwrap();
        for (name, text) in files {
            fs::write(path.join(name), text).unwrap();
        }
        (home, Group::open_any(path).unwrap())
    }

    fn files(group: &Group) -> Vec<(String, String)> {
        let entries = fs::read_dir(group.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = entries
            .map(|path| {
                let text = fs::read_to_string(&path).unwrap().trim().to_owned();
                (path.file_name().unwrap().to_str().unwrap().to_owned(), text)
            })
            .collect();
        files.sort();
        files
    }

    fn expected(files: [(&str, &str); 6]) -> Vec<(String, String)> {
        let mut files: Vec<_> =
            files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        files.sort();
        files
    }

    #[test]
    fn limits_are_written_and_taken_back() {
        let (_home, group) = fixture(&FRESH);
        assert!(group.limit(&ALL).is_empty());
        let limited = expected([
            ("memory.max", "536870912"),
            ("memory.swap.max", "0"),
            ("memory.oom.group", "1"),
            ("pids.max", "64"),
            ("cpu.weight", "50"),
            ("cpu.max", "150000 100000"),
        ]);
        assert_eq!(files(&group), limited);
        // Again: nothing to write, as where the files could not be written to.
        assert!(group.limit(&ALL).is_empty());
        assert!(group.limit(&Limits::default()).is_empty());
        let free = FRESH.map(|(name, text)| (name, text.trim()));
        let free = free.map(|(name, text)| (name, if text == "0" { "1" } else { text }));
        assert_eq!(files(&group), expected(free));
    }

    #[test]
    fn a_limit_without_its_controller_is_named() {
        let (_home, group) = fixture(&FRESH[3..]);
        assert!(group.limit(&Limits::default()).is_empty());
        let untaken = group.limit(&ALL);
        let kinds: Vec<_> = untaken.iter().map(|it| it.kind).collect();
        assert_eq!(kinds, [LimitKind::MemoryMax, LimitKind::MemorySwapMax]);
        let path = group.path().join("memory.max");
        let text = untaken.first().unwrap().to_string();
        let start = format!("{} is not \"536870912\": cannot open", path.display());
        assert!(text.starts_with(&start), "{text}");
    }

    #[test]
    fn a_limit_that_does_not_take_is_named_with_its_value() {
        // What is written to /dev/null is taken, and is not there afterwards.
        let (_home, group) = fixture(&FRESH[1..]);
        std::os::unix::fs::symlink("/dev/null", group.path().join("memory.max")).unwrap();
        let untaken = group.limit(&ALL);
        let texts: Vec<_> = untaken.iter().map(ToString::to_string).collect();
        let path = group.path().join("memory.max");
        assert_eq!(texts, [format!("{} is \"\" and not \"536870912\"", path.display())]);
        assert_eq!(fs::read_to_string(group.path().join("pids.max")).unwrap(), "64");
    }

    #[test]
    fn the_kernels_word_is_kept() {
        let (_home, group) = fixture(&FRESH[1..]);
        std::os::unix::fs::symlink("/dev/full", group.path().join("memory.max")).unwrap();
        let untaken = group.write_by_crate(LimitKind::MemoryMax, Some(1 << 20)).unwrap_err();
        assert_eq!(untaken.errno(), libc::ENOSPC);
        assert!(untaken.to_string().contains("memory.max"), "{untaken}");
    }

    #[test]
    fn what_the_kernel_rounds_is_the_same() {
        let same = |wanted: &str, found: &str| is_same(LimitKind::MemoryMax, wanted, found);
        assert!(same("1000001", "999424"));
        assert!(same(&i64::MAX.to_string(), "max"));
        assert!(same("max", "max") && !same("max", "999424") && !same("1000001", "max"));
        assert!(!same("999424", "1000001") && !same("1000000000", "999424") && !same("1", ""));
        assert!(!is_same(LimitKind::PidsMax, "100", "99"));
    }

    #[test]
    fn a_real_group_is_limited() {
        let Some(home) = crate::sys::cgroup::tests::make_home("limits") else { return };
        let group = home.make_group("i-0.1").unwrap();
        let untaken = group.limit(&ALL);
        for kind in LimitKind::ALL {
            let taken = untaken.iter().all(|it| it.kind != kind);
            let there = group.path().join(kind.file()).exists();
            assert_eq!(taken, there, "{untaken:?}");
            if !there {
                let line = format!("SKIPPED: {}: no such file\n", kind.file());
                io::Write::write_all(&mut io::stderr(), line.as_bytes()).unwrap();
            }
        }
        group.remove().unwrap();
        home.remove().unwrap();
    }
}
