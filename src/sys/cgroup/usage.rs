//! What an instance uses, as the kernel counts it for its group.

use std::time::Duration;

use super::Group;
use crate::sys::Result;

/// What a group uses with all that is in it and was in it. A figure that the kernel does not count
/// here is missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// `memory.current`, page cache included.
    pub memory_bytes: Option<u64>,
    /// `memory.peak`, since Linux 5.19.
    pub memory_peak_bytes: Option<u64>,
    /// `pids.current`: processes and threads.
    pub tasks: Option<u64>,
    /// CPU time, of what has ended too: `usage_usec` of `cpu.stat`.
    pub cpu: Option<Duration>,
}

/// How often the kernel killed for want of memory in a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OomCounts {
    /// Processes of the group that it killed.
    pub killed: u64,
    /// How often the group's own limit was the reason. A limit above it, or the machine, is not
    /// counted here.
    pub own_limit: u64,
}

impl Group {
    /// What it uses now.
    pub fn usage(&self) -> Usage {
        let number = |name| self.read_file(name).ok().and_then(|text| text.parse().ok());
        let cpu = self.read_file("cpu.stat").ok();
        let cpu = cpu.and_then(|text| flat(&text, "usage_usec")).map(Duration::from_micros);
        Usage {
            memory_bytes: number("memory.current"),
            memory_peak_bytes: number("memory.peak"),
            tasks: number("pids.current"),
            cpu,
        }
    }

    /// `memory.max`, where there is one.
    pub fn memory_max(&self) -> Option<u64> {
        self.read_file("memory.max").ok()?.parse().ok()
    }

    /// How often the kernel killed in it: to be asked before it is removed.
    pub fn oom_counts(&self) -> Result<OomCounts> {
        let text = self.read_file("memory.events")?;
        let count = |key| flat(&text, key).unwrap_or_default();
        Ok(OomCounts { killed: count("oom_kill"), own_limit: count("oom") })
    }
}

/// The number of a key in a flat keyed file.
fn flat(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::Directory;

    fn fixture(files: &[(&str, &str)]) -> (Directory, Group) {
        let directory = Directory::new("usage");
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let group = Group::open_any(directory.path()).unwrap();
        (directory, group)
    }

    #[test]
    fn usage_is_read() {
        let (_directory, group) = fixture(&[
            ("memory.current", "55468032\n"),
            ("memory.peak", "60000000\n"),
            ("pids.current", "11\n"),
            ("cpu.stat", "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\n"),
        ]);
        let usage = Usage {
            memory_bytes: Some(55_468_032),
            memory_peak_bytes: Some(60_000_000),
            tasks: Some(11),
            cpu: Some(Duration::from_micros(1_234_567)),
        };
        assert_eq!(group.usage(), usage);
    }

    #[test]
    fn what_is_not_counted_is_missing() {
        let (_directory, group) = fixture(&[("memory.current", "garbage\n"), ("cpu.stat", "")]);
        assert_eq!(group.usage(), Usage::default());
        assert!(group.oom_counts().unwrap_err().is_not_found());
    }

    #[test]
    fn kills_are_counted() {
        let events = "low 0\nhigh 3\nmax 40\noom 1\noom_kill 2\noom_group_kill 1\n";
        let (_directory, group) = fixture(&[("memory.events", events)]);
        assert_eq!(group.oom_counts().unwrap(), OomCounts { killed: 2, own_limit: 1 });
        // Before Linux 5.17 the last one is missing; `oom` is not the start of `oom_kill`.
        let (_directory, group) = fixture(&[("memory.events", "oom_kill 1\n")]);
        assert_eq!(group.oom_counts().unwrap(), OomCounts { killed: 1, own_limit: 0 });
    }
}
