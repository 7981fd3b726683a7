//! Where this process is in the tree of groups.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::sys::{Error, Result};

/// The directory of the cgroup v2 group that this process is in. `ENOENT` where there is none: no
/// cgroup v2 on this machine, or none that can be seen from here.
pub fn own_group() -> Result<PathBuf> {
    group_by(Path::new("/proc/self/cgroup"))?
        .ok_or_else(|| Error::new("find a cgroup v2 group of our own", Errno::ENOENT))
}

/// The same of another process. `None` also where its group was removed, which is so of a zombie.
pub(super) fn group_of(pid: u32) -> Result<Option<PathBuf>> {
    group_by(&Path::new("/proc").join(pid.to_string()).join("cgroup"))
}

fn group_by(file: &Path) -> Result<Option<PathBuf>> {
    let read = |path: &Path| std::fs::read(path).map_err(|error| Error::at("read", path, error));
    let mounts = read(Path::new("/proc/self/mountinfo"))?;
    Ok(parse_own_path(&read(file)?)
        .into_iter()
        .flat_map(|own| parse_directories(&mounts, own))
        .find(|directory| is_cgroup2(directory).unwrap_or(false)))
}

/// The controllers that this machine has in cgroup v2, as far as it can be seen from here: those
/// that are bound to cgroup v1 are not among them.
pub fn machine_controllers() -> Vec<String> {
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let listed = parse_points(&mounts)
        .into_iter()
        .find_map(|point| std::fs::read_to_string(point.join("cgroup.controllers")).ok());
    listed.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
}

/// Whether `path` is a directory of a cgroup v2 file system.
pub(super) fn is_cgroup2(path: &Path) -> Result<bool> {
    let facts = rustix::fs::statfs(path).map_err(|errno| Error::at("look at", path, errno))?;
    Ok(u64::try_from(facts.f_type).is_ok_and(|magic| magic == super::CGROUP2_MAGIC))
}

/// Whether the process is gone, a zombie, or is to die: SIGKILL is among its pending signals.
pub(super) fn is_dying(pid: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else {
        return true;
    };
    let kill = 1_u64 << 8;
    status.lines().any(|line| match line.split_once(':') {
        Some(("State", state)) => state.trim_start().starts_with(['Z', 'X']),
        Some(("SigPnd" | "ShdPnd", mask)) => {
            u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & kill != 0)
        }
        _ => false,
    })
}

/// The path in /proc/self/cgroup: `0::/system.slice/x.service`. On a hybrid machine the lines of v1
/// hierarchies stand beside it.
fn parse_own_path(text: &[u8]) -> Option<&[u8]> {
    text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::"))
}

/// The directories that `own` may have, by /proc/self/mountinfo: the part of it below the root of
/// each mount of cgroup v2. A later mount may hide an earlier one, so it comes first.
fn parse_directories(mounts: &[u8], own: &[u8]) -> Vec<PathBuf> {
    let lines = mounts.split(|byte| *byte == b'\n').rev();
    lines.filter_map(|line| parse_directory(line, own)).collect()
}

/// Where cgroup v2 is mounted.
fn parse_points(mounts: &[u8]) -> Vec<PathBuf> {
    let lines = mounts.split(|byte| *byte == b'\n').rev();
    lines.filter_map(parse_mount).map(|(_, point)| point).collect()
}

/// `31 23 0:28 ROOT POINT rw,relatime shared:5 - cgroup2 cgroup2 rw`: `proc_pid_mountinfo(5)`. The
/// number of fields before the `-` varies.
fn parse_mount(line: &[u8]) -> Option<(PathBuf, PathBuf)> {
    let fields: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().skip(6).position(|field| *field == b"-")?;
    if *fields.get(dash.saturating_add(7))? != b"cgroup2" {
        return None;
    }
    Some((PathBuf::from(unescape(fields.get(3)?)), PathBuf::from(unescape(fields.get(4)?))))
}

fn parse_directory(line: &[u8], own: &[u8]) -> Option<PathBuf> {
    let (root, point) = parse_mount(line)?;
    let below = Path::new(OsStr::from_bytes(own)).strip_prefix(root).ok()?;
    // `/../x` is how a group outside of our cgroup namespace is shown: there is no way to it.
    if below.components().any(|part| part == std::path::Component::ParentDir) {
        return None;
    }
    Some(if below.as_os_str().is_empty() { point } else { point.join(below) })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> std::ffi::OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| *first == b'\\');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { tail.get(3..).unwrap_or_default() } else { tail };
    }
    std::ffi::OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn directories(mounts: &str, cgroup: &str) -> Vec<String> {
        let own = parse_own_path(cgroup.as_bytes()).unwrap_or_default();
        let found = parse_directories(mounts.as_bytes(), own);
        found.iter().map(|path| path.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn unified_host() {
        let mounts = "\
25 30 0:23 / /proc rw,nosuid shared:14 - proc proc rw
34 24 0:29 / /sys/fs/cgroup rw,nosuid,nodev shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            directories(mounts, "0::/system.slice/pmr@web.service/supervisor\n"),
            ["/sys/fs/cgroup/system.slice/pmr@web.service/supervisor"]
        );
        assert_eq!(directories(mounts, "0::/\n"), ["/sys/fs/cgroup"]);
    }

    #[test]
    fn hybrid_host() {
        let mounts = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:1 master:2 - cgroup2 cgroup2 rw\n";
        let cgroup = "9:name=systemd:/x\n4:memory:/other\n0::/user.slice\n";
        assert_eq!(directories(mounts, cgroup), ["/sys/fs/cgroup/unified/user.slice"]);
    }

    #[test]
    fn container_sees_part_of_the_tree() {
        let mounts = "\
60 50 0:38 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw
61 50 0:38 / /mnt/all\\040groups rw - cgroup2 cgroup rw\n";
        assert_eq!(
            directories(mounts, "0::/docker/abc/web\n"),
            ["/mnt/all groups/docker/abc/web", "/sys/fs/cgroup/web"]
        );
        assert_eq!(directories(mounts, "0::/docker/abcd\n"), ["/mnt/all groups/docker/abcd"]);
        assert_eq!(directories(mounts, "0::/../elsewhere\n"), Vec::<String>::new());
    }

    #[test]
    fn mounts_of_cgroup2_are_found() {
        let mounts = b"\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:1 - cgroup2 cgroup2 rw\n";
        assert_eq!(parse_points(mounts), [Path::new("/sys/fs/cgroup/unified")]);
        assert_eq!(parse_points(b""), Vec::<PathBuf>::new());
        let here = machine_controllers();
        let root = own_group().ok().filter(|group| !group.join("cgroup.type").exists());
        if let Some(root) = root {
            let listed = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap();
            assert_eq!(here.join(" "), listed.trim());
        }
    }

    #[test]
    fn no_cgroup2() {
        let mounts = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(directories(mounts, "4:memory:/\n"), Vec::<String>::new());
        assert_eq!(parse_own_path(b"4:memory:/\n"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mounts: Vec<u8>, own: Vec<u8>, line in "[0-9 /\\\\a-]{0,40}") {
            for directory in parse_directories(&mounts, &own) {
                prop_assert!(directory.components().count() > 0);
            }
            parse_directory(format!("1 2 3 / /p{line} - cgroup2 x").as_bytes(), b"/a");
            parse_own_path(&mounts);
        }

        #[test]
        fn an_escaped_name_comes_back(name in "[a-z \\\\\n\t]{0,20}") {
            let escaped: String = name.chars().map(|c| match c {
                ' ' | '\\' | '\n' | '\t' => format!("\\{:03o}", u32::from(c)),
                c => c.to_string(),
            }).collect();
            prop_assert_eq!(unescape(escaped.as_bytes()), OsStr::new(&name));
        }
    }
}
