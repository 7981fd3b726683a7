//! The group that the service manager has delegated to us: found, entered, and opened for limits.
//!
//! A group with controllers enabled for the groups below it holds no process itself (the kernel
//! answers `EBUSY`), so keeper and supervisor move into one below it. The attribute files of the
//! delegated group itself are the service manager's and never written, but for `cgroup.procs` and
//! `cgroup.subtree_control`, which it hands over (`CGROUP_DELEGATION.md` of systemd).

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;

use super::{own_group, place};
use crate::sys::{Error, Result};

/// The group of keeper and supervisor. systemd 254 and later start the keeper in it
/// (`DelegateSubgroup=`), older ones in the delegated group.
pub(super) const SUPERVISOR: &str = "supervisor";

/// What pmr counts and limits its instances by, where it is delegated.
pub const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// How systemd marks a delegated group: the first since version 251, the second, which only root
/// can read, for longer.
const MARKS: [&str; 2] = ["user.delegate", "trusted.delegate"];

/// systemd-oomd passes over a group with this mark: what is to die of pressure is an instance.
const OOMD_OMIT: &str = "user.oomd_omit";

/// Moves this process into the group `supervisor` of the group that was delegated to it, and gives
/// the delegated one. `None`, and nothing is changed, where no group was delegated.
pub fn enter_delegated() -> Result<Option<PathBuf>> {
    let Some(unit) = delegated_group()? else { return Ok(None) };
    // 0 is who writes it.
    enter(&unit, "0")?;
    Ok(Some(unit))
}

/// The group that was delegated to this process.
fn delegated_group() -> Result<Option<PathBuf>> {
    match own_group() {
        Ok(own) => Ok(delegated_by(&own)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The delegated group that this process has entered.
pub(super) fn entered() -> Result<Option<PathBuf>> {
    let own = own_group()?;
    Ok(delegated_by(&own).filter(|unit| unit.join(SUPERVISOR) == own))
}

fn delegated_by(own: &Path) -> Option<PathBuf> {
    let above = own.parent().filter(|_| own.file_name() == Some(OsStr::new(SUPERVISOR)));
    let mut candidates = above.into_iter().chain([own]);
    candidates.find(|group| is_delegated(group) || is_of_user(group)).map(Path::to_owned)
}

/// A user's manager marks nothing: systemd does so as the system's manager only. But all groups
/// below `user@UID.service` are that user's, and the one of a service is the service's.
fn is_of_user(group: &Path) -> bool {
    let is_service = |group: &Path, start: &str| {
        let name = group.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.starts_with(start) && name.ends_with(".service")
    };
    let own =
        || std::fs::metadata(group).is_ok_and(|it| it.uid() == rustix::process::geteuid().as_raw());
    is_service(group, "")
        && group.ancestors().skip(1).any(|above| is_service(above, "user@"))
        && own()
        && place::is_cgroup2(group).unwrap_or(false)
}

fn is_delegated(group: &Path) -> bool {
    let marked = |mark: &&str| {
        let mut value = [0; 8];
        let length = rustix::fs::getxattr(group, *mark, &mut value);
        length.is_ok_and(|length| value.get(..length) == Some(b"1".as_slice()))
    };
    place::is_cgroup2(group).unwrap_or(false) && MARKS.iter().any(marked)
}

fn enter(unit: &Path, pid: &str) -> Result<()> {
    let path = unit.join(SUPERVISOR);
    match std::fs::create_dir(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.map_err(|error| Error::at("make the group", &path, error))?,
    }
    let procs = path.join("cgroup.procs");
    std::fs::write(&procs, pid).map_err(|error| Error::at("move pmr by", &procs, error))?;
    match rustix::fs::setxattr(&path, OOMD_OMIT, b"1", XattrFlags::empty()) {
        // Before Linux 5.6 there is no mark, and systemd-oomd weighs pmr's group among the others.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The controllers that the groups below `group` are given: `cgroup.subtree_control`.
pub(super) fn enabled(group: &Path) -> Result<Vec<String>> {
    let path = group.join("cgroup.subtree_control");
    let text = std::fs::read_to_string(&path).map_err(|error| Error::at("read", path, error))?;
    Ok(text.split_ascii_whitespace().map(str::to_owned).collect())
}

/// Gives a controller to the groups below `group`. One write for each: the kernel takes all of a
/// write or nothing.
pub(super) fn enable(group: &Path, controller: &str) -> Result<()> {
    let path = group.join("cgroup.subtree_control");
    std::fs::write(&path, format!("+{controller}"))
        .map_err(|error| Error::at("enable a controller in", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::cgroup::tests::make_home;
    use crate::sys::cgroup::{Home, Removal};
    use std::process::{Command, Stdio};

    fn mark(group: &Path) {
        rustix::fs::setxattr(group, "user.delegate", b"1", XattrFlags::empty()).unwrap();
    }

    fn pids(group: &Path) -> String {
        std::fs::read_to_string(group.join("cgroup.procs")).unwrap()
    }

    #[test]
    fn only_a_marked_group_is_delegated() {
        let Some(home) = make_home("delegated") else { return };
        let unit = home.path();
        let below = unit.join(SUPERVISOR);
        std::fs::create_dir(&below).unwrap();
        assert_eq!((delegated_by(unit), delegated_by(&below)), (None, None));
        rustix::fs::setxattr(unit, "user.delegate", b"0", XattrFlags::empty()).unwrap();
        assert_eq!(delegated_by(&below), None);

        mark(unit);
        assert_eq!(delegated_by(unit).as_deref(), Some(unit));
        assert_eq!(delegated_by(&below).as_deref(), Some(unit));
        // Nobody's mark is needed below a user's manager.
        let manager = unit.join("user@0.service");
        let service = manager.join("pmr@web.service");
        std::fs::create_dir_all(&service).unwrap();
        assert_eq!(delegated_by(&service).as_deref(), Some(&*service));
        assert_eq!(delegated_by(&service.join(SUPERVISOR)).as_deref(), Some(&*service));
        assert_eq!(delegated_by(&manager), None);
        std::fs::remove_dir(service).unwrap();
        std::fs::remove_dir(manager).unwrap();
        // Whoever is in another group below it is not the one it was delegated to.
        let other = unit.join("i-0.1");
        std::fs::create_dir(&other).unwrap();
        assert_eq!(delegated_by(&other), None);
        std::fs::remove_dir(other).unwrap();
        std::fs::remove_dir(below).unwrap();
        assert_eq!(home.remove().unwrap(), Removal::Gone);
    }

    #[test]
    fn a_delegated_group_is_entered_and_opened() {
        let Some(home) = make_home("entered") else { return };
        let unit = home.path();
        mark(unit);
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id().to_string();
        std::fs::write(unit.join("cgroup.procs"), &pid).unwrap();

        // Twice, as on a systemd that has made the group.
        for _ in 0..2 {
            enter(unit, &pid).unwrap();
        }
        assert_eq!(pids(unit), "");
        assert_eq!(pids(&unit.join(SUPERVISOR)).trim(), pid);
        let mut value = [0; 8];
        let length = rustix::fs::getxattr(unit.join(SUPERVISOR), OOMD_OMIT, &mut value).unwrap();
        assert_eq!(value.get(..length), Some(b"1".as_slice()));

        let opened = Home::open_delegated(unit).unwrap();
        for controller in CONTROLLERS {
            let given = home.controllers().iter().any(|it| it == controller);
            assert_eq!(opened.has(controller), given, "{controller}");
            let refused = opened.refused().iter().any(|refused| refused.controller == controller);
            assert_eq!(refused, !given, "{controller}");
        }
        assert_eq!(opened.made(), None);
        // It is the service manager's: it stays.
        assert_eq!(opened.remove().unwrap(), Removal::Gone);
        assert!(unit.exists());

        child.kill().unwrap();
        child.wait().unwrap();
        std::fs::remove_dir(unit.join(SUPERVISOR)).unwrap();
        assert_eq!(home.remove().unwrap(), Removal::Gone);
    }

    #[test]
    fn a_controller_is_enabled_below() {
        let Some(home) = make_home("enabled") else { return };
        let path = home.path().to_owned();
        let Some(controller) = home.controllers().first().cloned() else {
            std::io::Write::write_all(&mut io::stderr(), b"SKIPPED: enabled: no controllers\n")
                .unwrap();
            home.remove().unwrap();
            return;
        };
        assert_eq!(enabled(&path).unwrap(), Vec::<String>::new());
        enable(&path, &controller).unwrap();
        assert_eq!(enabled(&path).unwrap(), [controller]);
        let error = enable(&path, "nonsense").unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL);
        assert!(error.to_string().contains("cgroup.subtree_control"), "{error}");
        home.remove().unwrap();
    }
}
