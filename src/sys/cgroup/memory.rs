//! The memory files of an instance's group: what it holds, the trip-wire, and reclaim.
//!
//! `memory.high` is used as a trip-wire only. It is lifted with the first event: left in place it
//! freezes whoever has to drain (cgroup-v2.rst: "throttled and put under heavy reclaim pressure").
//! Everything here returns at once but a write to `memory.high` below what is held and one to
//! `memory.reclaim`: these reclaim in the writer, so they are only opened here, for a process that
//! may wait.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use super::{FILE_BYTES_MAX, Group, is_gone};
use crate::sys::{Error, Result};

/// What a group holds, from `memory.stat`, `memory.current` and `memory.swap.current`, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStat {
    /// Memory of its own: heaps and stacks.
    pub anon: u64,
    /// Page cache, shared memory and tmpfs included.
    pub file: u64,
    /// Shared memory and tmpfs alone: no cache, there is nowhere to read it from again.
    pub shmem: u64,
    /// What the kernel holds for it, slab included.
    pub kernel: u64,
    /// The part of the kernel's that it gives back under pressure.
    pub slab_reclaimable: u64,
    /// What was swapped out.
    pub swap: u64,
    /// All that is charged to it, without swap.
    pub current: u64,
}

impl MemoryStat {
    /// What no reclaim gets back: of this a leak is made.
    pub fn unreclaimable(&self) -> u64 {
        self.anon
            .saturating_add(self.shmem)
            .saturating_add(self.kernel)
            .saturating_sub(self.slab_reclaimable)
            .saturating_add(self.swap)
    }

    /// Reads the text of `memory.stat`; `swap` and `current` are not in it.
    fn parse(text: &str) -> Self {
        let mut stat = Self::default();
        let mut kernel = None;
        let mut parts: u64 = 0;
        for (key, value) in pairs(text) {
            match key {
                "anon" => stat.anon = value,
                "file" => stat.file = value,
                "shmem" => stat.shmem = value,
                "kernel" => kernel = Some(value),
                // Before Linux 5.18 there is no sum of the kernel's, and these are what it is of.
                "kernel_stack" | "pagetables" | "percpu" | "sock" | "slab_unreclaimable" => {
                    parts = parts.saturating_add(value);
                }
                "slab_reclaimable" => stat.slab_reclaimable = value,
                _ => {}
            }
        }
        stat.kernel = kernel.unwrap_or_else(|| parts.saturating_add(stat.slab_reclaimable));
        stat
    }
}

/// How often what happened, from `memory.events`. Keys that the kernel does not know are 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// It was over `memory.high`.
    pub high: u64,
    /// It was about to be over `memory.max`.
    pub max: u64,
    /// Nothing could be reclaimed for it.
    pub oom: u64,
    /// Processes of it that were killed for that.
    pub oom_kill: u64,
}

impl MemoryEvents {
    fn parse(text: &str) -> Self {
        let mut events = Self::default();
        for (key, value) in pairs(text) {
            match key {
                "high" => events.high = value,
                "max" => events.max = value,
                "oom" => events.oom = value,
                "oom_kill" => events.oom_kill = value,
                _ => {}
            }
        }
        events
    }

    /// Reads an fd of [`Group::memory_events`] anew, which makes it report the next change. `None`
    /// where the group is gone.
    pub fn read(events: BorrowedFd<'_>) -> Result<Option<Self>> {
        let mut bytes = [0; FILE_BYTES_MAX];
        match rustix::io::pread(events, &mut bytes, 0) {
            Ok(length) => {
                let text = bytes.get(..length).unwrap_or_default();
                Ok(Some(Self::parse(&String::from_utf8_lossy(text))))
            }
            Err(errno) if is_gone(errno.raw_os_error()) => Ok(None),
            Err(errno) => Err(Error::new("read the memory events of a group", errno)),
        }
    }
}

impl Group {
    /// What it holds, with all its sub-groups.
    pub fn memory_stat(&self) -> Result<MemoryStat> {
        let mut stat = MemoryStat::parse(&self.read_file("memory.stat")?);
        stat.current = self.read_number("memory.current")?;
        stat.swap = match self.read_number("memory.swap.current") {
            // Swap is not accounted on this machine.
            Err(error) if error.is_not_found() => 0,
            other => other?,
        };
        Ok(stat)
    }

    /// `memory.events`: `EPOLLPRI` comes when it changed since it was last read, at most 100 times
    /// a second, and at once when it was never read.
    pub fn memory_events(&self) -> Result<OwnedFd> {
        self.open_file("memory.events", OFlags::RDONLY)
    }

    /// Puts the trip-wire into a group that holds nothing yet: it does not wait then.
    pub fn set_first_wire(&self, bytes: u64) -> Result<()> {
        self.write_file("memory.high", &bytes.to_string())
    }

    /// Takes the trip-wire away. Whoever was throttled goes on within two seconds. Of a group that
    /// is gone there is nothing to lift.
    pub fn lift_wire(&self) -> Result<()> {
        match self.write_file("memory.high", "max") {
            Err(error) if is_gone(error.errno()) => Ok(()),
            other => other,
        }
    }

    /// Where the trip-wire is, if it stands.
    pub fn wire(&self) -> Result<Option<u64>> {
        let text = self.read_file("memory.high")?;
        Ok(text.trim().parse().ok())
    }

    /// `memory.high`, for a process that may wait: it reclaims what is above the number that is
    /// written to it.
    pub fn open_wire(&self) -> Result<OwnedFd> {
        self.open_file("memory.high", OFlags::WRONLY)
    }

    /// `memory.reclaim` (Linux 5.19), for a process that may wait: it reclaims the number of bytes
    /// that is written to it, or as much as there is, which is `EAGAIN` then.
    pub fn open_reclaim(&self) -> Result<OwnedFd> {
        self.open_file("memory.reclaim", OFlags::WRONLY)
    }

    fn read_number(&self, name: &'static str) -> Result<u64> {
        Ok(self.read_file(name)?.trim().parse().unwrap_or_default())
    }
}

/// Flat-keyed files of cgroup v2: `key value` in each line.
fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of Linux 6.12, shortened: the group of a Python process that has read a file.
    const STAT_6_12: &str = "anon 104857600\nfile 52428800\nkernel 3145728\nkernel_stack 65536\n\
        pagetables 524288\nsec_pagetables 0\npercpu 1024\nsock 4096\nvmalloc 0\nshmem 1048576\n\
        file_mapped 0\nanon_thp 0\ninactive_anon 104857600\nslab_reclaimable 2097152\n\
        slab_unreclaimable 262144\nslab 2359296\nworkingset_refault_anon 0\npglazyfree 12\n";

    /// Of Linux 5.15: no `kernel`.
    const STAT_5_15: &str = "anon 1000\nfile 500\nkernel_stack 10\npagetables 20\npercpu 30\n\
        sock 40\nshmem 100\nfile_mapped 7\nslab_reclaimable 60\nslab_unreclaimable 50\nslab 110\n";

    #[test]
    fn what_cannot_be_reclaimed_is_told_from_cache() {
        let stat = MemoryStat::parse(STAT_6_12);
        assert_eq!(
            (stat.anon, stat.file, stat.shmem, stat.kernel, stat.slab_reclaimable),
            (104_857_600, 52_428_800, 1_048_576, 3_145_728, 2_097_152)
        );
        assert_eq!(stat.unreclaimable(), 104_857_600 + 1_048_576 + 3_145_728 - 2_097_152);
        let swapped = MemoryStat { swap: 4096, ..stat };
        assert_eq!(swapped.unreclaimable(), stat.unreclaimable() + 4096);
    }

    #[test]
    fn an_older_kernel_says_the_parts() {
        let stat = MemoryStat::parse(STAT_5_15);
        assert_eq!(stat.kernel, 10 + 20 + 30 + 40 + 50 + 60);
        assert_eq!(stat.unreclaimable(), 1000 + 100 + (10 + 20 + 30 + 40 + 50));
    }

    #[test]
    fn events_are_parsed_whatever_else_there_is() {
        let text = "low 0\nhigh 17\nmax 3\noom 2\noom_kill 1\noom_group_kill 1\nnew thing 5\nx\n";
        let events = MemoryEvents { high: 17, max: 3, oom: 2, oom_kill: 1 };
        assert_eq!(MemoryEvents::parse(text), events);
        assert_eq!(MemoryEvents::parse(""), MemoryEvents::default());
    }

    #[test]
    fn a_group_without_the_controller_has_no_wire() {
        use super::super::tests::make_home;
        let Some(home) = make_home("wire") else { return };
        if home.controllers().iter().any(|it| it == "memory") {
            home.remove().unwrap();
            return;
        }
        let group = home.make_group("i-0.1").unwrap();
        assert!(group.set_first_wire(1 << 20).unwrap_err().is_not_found());
        assert!(group.memory_events().unwrap_err().is_not_found());
        assert!(group.memory_stat().unwrap_err().is_not_found());
        group.lift_wire().unwrap();
        group.remove().unwrap();
        home.remove().unwrap();
    }
}
