//! Whom an app runs as: users and groups by name or number, files read with the app's rights, and
//! the environment that comes with a user.

#![expect(unsafe_code, reason = "the kernel's interface: fs ids of one thread, which libc lacks")]

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString, c_long};
use std::fmt;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{self, Gid, Group, Uid, User};
use rustix::fs::{FileType, Mode, OFlags};

use super::{Error, Result};

/// Variables that speak of pmr's own process: of no use to an app, or a trap for it.
const OWN_VARIABLES: [&str; 7] = [
    "NOTIFY_SOCKET",
    "FDSTORE",
    "MAINPID",
    "JOURNAL_STREAM",
    "SYSTEMD_EXEC_PID",
    "NODE_UNIQUE_ID",
    "CREDENTIALS_DIRECTORY",
];

/// The same, by how they begin.
const OWN_PREFIXES: [&str; 5] =
    ["WATCHDOG_", "LISTEN_", "MEMORY_PRESSURE_", "PMR_", "NODE_CHANNEL_"];

/// The directories that the service manager has made for the unit, with `:` between them.
const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";

/// Whom a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups: all of the user's, and no others.
    pub groups: Vec<u32>,
    /// Name of the user; its number where it has none.
    pub name: String,
    /// Home directory.
    pub home: PathBuf,
    /// Login shell.
    pub shell: PathBuf,
}

/// Why there is no such identity.
#[derive(Debug)]
pub enum IdentityError {
    /// Nobody has this name.
    NoSuchUser(String),
    /// No group has this name.
    NoSuchGroup(String),
    /// A number that the user database does not know, and no group beside it.
    GroupNeeded(u32),
    /// The database could not be asked.
    Lookup(Error),
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchUser(name) => write!(f, "there is no user {name:?} on this machine"),
            Self::NoSuchGroup(name) => write!(f, "there is no group {name:?} on this machine"),
            Self::GroupNeeded(uid) => {
                write!(f, "user {uid} is not in the user database, so `group` must be given too")
            }
            Self::Lookup(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for IdentityError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Lookup(error) => Some(error),
            Self::NoSuchUser(_) | Self::NoSuchGroup(_) | Self::GroupNeeded(_) => None,
        }
    }
}

impl Identity {
    /// Whether this process runs as this already and could not change it: then nothing is to be
    /// done (a user's own service manager).
    pub fn is_current(&self) -> bool {
        let uid = unistd::geteuid();
        !uid.is_root() && uid.as_raw() == self.uid && unistd::getegid().as_raw() == self.gid
    }
}

/// The identity of `user` and `group`, each a name or a number. `None` where neither is given: the
/// app then runs as pmr does.
///
/// As in systemd, `group` takes the place of the user's own group; and a group alone is that of the
/// user pmr runs as.
pub fn resolve(
    user: Option<&str>,
    group: Option<&str>,
) -> std::result::Result<Option<Identity>, IdentityError> {
    if user.is_none() && group.is_none() {
        return Ok(None);
    }
    let group = group.map(find_group).transpose()?;
    let (uid, entry) = match user {
        Some(user) => find_user(user)?,
        None => (unistd::geteuid(), user_by_id(unistd::geteuid())?),
    };
    let Some(entry) = entry else {
        let gid = group.ok_or(IdentityError::GroupNeeded(uid.as_raw()))?.as_raw();
        return Ok(Some(Identity {
            uid: uid.as_raw(),
            gid,
            groups: vec![gid],
            name: uid.to_string(),
            home: PathBuf::from("/"),
            shell: PathBuf::from("/bin/sh"),
        }));
    };
    let gid = group.unwrap_or(entry.gid);
    let name = CString::new(entry.name.as_str()).map_err(|_| lookup("user", Errno::EINVAL))?;
    let groups = unistd::getgrouplist(&name, gid).map_err(|errno| lookup("groups", errno))?;
    Ok(Some(Identity {
        uid: uid.as_raw(),
        gid: gid.as_raw(),
        groups: groups.into_iter().map(Gid::as_raw).collect(),
        name: entry.name,
        home: entry.dir,
        shell: entry.shell,
    }))
}

fn lookup(what: &'static str, errno: Errno) -> IdentityError {
    let doing = if what == "groups" { "look up the groups of a user" } else { "look up a user" };
    IdentityError::Lookup(Error::new(doing, errno))
}

fn user_by_id(uid: Uid) -> std::result::Result<Option<User>, IdentityError> {
    User::from_uid(uid).map_err(|errno| lookup("user", errno))
}

/// A name wins over a number: a user may be called `1000`.
fn find_user(user: &str) -> std::result::Result<(Uid, Option<User>), IdentityError> {
    if let Some(entry) = User::from_name(user).map_err(|errno| lookup("user", errno))? {
        return Ok((entry.uid, Some(entry)));
    }
    let uid = number(user).ok_or_else(|| IdentityError::NoSuchUser(user.to_owned()))?;
    let uid = Uid::from_raw(uid);
    Ok((uid, user_by_id(uid)?))
}

fn find_group(group: &str) -> std::result::Result<Gid, IdentityError> {
    if let Some(entry) = Group::from_name(group).map_err(|errno| lookup("group", errno))? {
        return Ok(entry.gid);
    }
    let gid = number(group).ok_or_else(|| IdentityError::NoSuchGroup(group.to_owned()))?;
    Ok(Gid::from_raw(gid))
}

/// All ones means "unchanged" to the kernel, so it is no id.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok().filter(|id| *id != u32::MAX) } else { None }
}

/// Reads a file as `identity` may read it. Only a regular file: anything else could block.
///
/// A file longer than `bytes_max` is an error (`EFBIG`).
pub fn read_as(identity: Option<&Identity>, path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let failed = |errno: Errno| Error::at("read", path, errno);
    let file = match identity.filter(|identity| !identity.is_current()) {
        None => open_to_read(path)?,
        Some(identity) => {
            let borrowed = Borrowed::take(identity)
                .map_err(|errno| Error::at("take on the user of the app to read", path, errno))?;
            let file = open_to_read(path);
            drop(borrowed);
            file?
        }
    };
    // The rights are checked at the open; what follows needs none.
    let facts = rustix::fs::fstat(&file).map_err(|errno| Error::at("read", path, errno))?;
    match FileType::from_raw_mode(facts.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(failed(Errno::EISDIR)),
        _ => return Err(failed(Errno::EINVAL)),
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file)
        .take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| Error::at("read", path, error))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= bytes_max) {
        Ok(bytes)
    } else {
        Err(failed(Errno::EFBIG))
    }
}

/// Does something with the rights that `identity` has over files: nobody else's, and not root's.
pub fn with_rights_of<T>(
    identity: Option<&Identity>,
    path: &Path,
    act: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let borrowed = identity.filter(|identity| !identity.is_current()).map(Borrowed::take);
    let borrowed = borrowed.transpose();
    let borrowed =
        borrowed.map_err(|errno| Error::at("take on the user of the app for", path, errno))?;
    let result = act();
    drop(borrowed);
    result
}

/// `O_NONBLOCK`, so that a fifo without a writer does not hold pmr.
fn open_to_read(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| Error::at("open", path, errno))
}

/// The identity of this thread on file systems, until it is dropped.
///
/// Fs ids (setfsuid(2)) and raw calls: they are of one thread, they leave alone who may signal or
/// trace this process, and the kernel takes away root's rights over files with them.
struct Borrowed {
    groups: Vec<u32>,
    uid: u32,
    gid: u32,
}

impl Borrowed {
    fn take(identity: &Identity) -> nix::Result<Self> {
        let groups = unistd::getgroups()?.into_iter().map(Gid::as_raw).collect();
        let before =
            Self { groups, uid: unistd::geteuid().as_raw(), gid: unistd::getegid().as_raw() };
        set_groups(&identity.groups)?;
        // From here on `before` is dropped on every way out, and that brings us back.
        set_fs_id(libc::SYS_setfsgid, identity.gid)?;
        set_fs_id(libc::SYS_setfsuid, identity.uid)?;
        Ok(before)
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let back = set_fs_id(libc::SYS_setfsuid, self.uid)
            .and_then(|()| set_fs_id(libc::SYS_setfsgid, self.gid))
            .and_then(|()| set_groups(&self.groups));
        if back.is_err() {
            // A supervisor with half of the rights of one app must not go on.
            std::process::abort();
        }
    }
}

fn set_groups(groups: &[u32]) -> nix::Result<()> {
    // SAFETY: setgroups(2) reads so many numbers of 32 bits from the list.
    let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    Errno::result(result).map(drop)
}

/// setfsuid and setfsgid give the id there was and never an error, so it is asked again.
fn set_fs_id(call: c_long, id: u32) -> nix::Result<()> {
    // SAFETY: setfsuid(2) and setfsgid(2) take one number.
    unsafe { libc::syscall(call, id) };
    // SAFETY: the same; an invalid id changes nothing.
    let now = unsafe { libc::syscall(call, u32::MAX) };
    if now == c_long::from(id) { Ok(()) } else { Err(Errno::EPERM) }
}

/// What pmr itself was started with, without what speaks of pmr's own process, and with what a
/// user's login would set where there is an identity.
pub fn base_environment(
    inherited: impl Iterator<Item = (OsString, OsString)>,
    identity: Option<&Identity>,
) -> BTreeMap<OsString, OsString> {
    let mut environment: BTreeMap<_, _> = inherited.filter(|(name, _)| !is_own(name)).collect();
    if let Some(directories) = environment.remove(OsStr::new(RUNTIME_DIRECTORY))
        && let Some(others) = without_own(&directories)
    {
        environment.insert(RUNTIME_DIRECTORY.into(), others);
    }
    if let Some(identity) = identity {
        let name = OsString::from(&identity.name);
        environment.insert("HOME".into(), identity.home.clone().into());
        environment.insert("SHELL".into(), identity.shell.clone().into());
        environment.insert("USER".into(), name.clone());
        environment.insert("LOGNAME".into(), name);
    }
    environment
}

/// Of the runtime directories of a unit those that are not pmr's own (`RuntimeDirectory=pmr/%i`):
/// what a drop-in names beside that is meant for the app.
fn without_own(directories: &OsStr) -> Option<OsString> {
    let is_own = |path: &PathBuf| path.parent().is_some_and(|above| above.ends_with("pmr"));
    let others: Vec<PathBuf> =
        std::env::split_paths(directories).filter(|path| !is_own(path)).collect();
    std::env::join_paths(&others).ok().filter(|_| !others.is_empty())
}

fn is_own(name: &OsStr) -> bool {
    OWN_VARIABLES.iter().any(|own| name == OsStr::new(own))
        || OWN_PREFIXES.iter().any(|own| name.as_bytes().starts_with(own.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn nobody() -> Identity {
        resolve(Some("nobody"), None).unwrap().unwrap()
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(resolve(None, None).unwrap(), None);
        let nobody = nobody();
        assert_eq!(nobody.name, "nobody");
        assert!(nobody.groups.contains(&nobody.gid));
        let by_number = resolve(Some(&nobody.uid.to_string()), None).unwrap().unwrap();
        assert_eq!(by_number, nobody);

        let other = resolve(Some("nobody"), Some("4242")).unwrap().unwrap();
        assert_eq!((other.gid, other.uid), (4242, nobody.uid));
        assert!(other.groups.contains(&4242) && !other.groups.contains(&nobody.gid));

        let stranger = resolve(Some("4000000000"), Some("4242")).unwrap().unwrap();
        assert_eq!((stranger.uid, stranger.gid), (4_000_000_000, 4242));
        assert_eq!(
            (stranger.groups.as_slice(), stranger.name.as_str()),
            (&[4242][..], "4000000000")
        );

        let group_only = resolve(None, Some("4242")).unwrap().unwrap();
        assert_eq!((group_only.uid, group_only.gid), (unistd::geteuid().as_raw(), 4242));
    }

    #[test]
    fn errors_name_what_is_missing() {
        let say = |user, group| resolve(user, group).unwrap_err().to_string();
        assert_eq!(say(Some("nob ody"), None), "there is no user \"nob ody\" on this machine");
        assert_eq!(say(Some("root"), Some("-1")), "there is no group \"-1\" on this machine");
        assert_eq!(
            say(Some("4294967295"), None),
            "there is no user \"4294967295\" on this machine"
        );
        assert!(say(Some("4000000000"), None).contains("`group` must be given"));
    }

    #[test]
    fn a_file_is_read_with_the_rights_of_the_app() {
        use std::os::unix::fs::PermissionsExt;
        if !unistd::geteuid().is_root() {
            writeln!(
                std::io::stderr(),
                "SKIPPED: a_file_is_read_with_the_rights_of_the_app: needs root"
            )
            .unwrap();
            return;
        }
        let dir = std::env::temp_dir().join(format!("pmr-test-read-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let file = dir.join("env");
        std::fs::write(&file, "A=1").unwrap();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let nobody = nobody();
        mode(&dir, 0o755);
        mode(&file, 0o644);
        assert_eq!(read_as(Some(&nobody), &file, 3).unwrap(), b"A=1");
        assert_eq!(read_as(Some(&nobody), &file, 2).unwrap_err().errno(), libc::EFBIG);
        mode(&file, 0o600);
        assert_eq!(read_as(Some(&nobody), &file, 9).unwrap_err().errno(), libc::EACCES);
        // Root again, and with root's groups.
        assert_eq!(read_as(None, &file, 9).unwrap(), b"A=1");
        assert_eq!(read_as(None, &dir, 9).unwrap_err().errno(), libc::EISDIR);

        // A group of the user opens what the user alone may not.
        let member = Identity { groups: vec![nobody.gid, 4242], ..nobody };
        std::os::unix::fs::chown(&file, Some(0), Some(4242)).unwrap();
        mode(&file, 0o640);
        assert_eq!(read_as(Some(&member), &file, 9).unwrap(), b"A=1");

        let fifo = dir.join("fifo");
        unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(read_as(None, &fifo, 9).unwrap_err().errno(), libc::EINVAL);
        assert!(read_as(None, &dir.join("none"), 9).unwrap_err().is_not_found());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_environment_says_nothing_of_pmr() {
        let inherited = [
            ("PATH", "/bin"),
            ("NOTIFY_SOCKET", "x"),
            ("WATCHDOG_USEC", "x"),
            ("LISTEN_FDS", "x"),
            ("FDSTORE", "x"),
            ("MAINPID", "x"),
            ("JOURNAL_STREAM", "x"),
            ("SYSTEMD_EXEC_PID", "x"),
            ("MEMORY_PRESSURE_WATCH", "x"),
            ("PMR_APP", "x"),
            ("NODE_CHANNEL_FD", "x"),
            ("NODE_UNIQUE_ID", "x"),
            ("CREDENTIALS_DIRECTORY", "x"),
            ("RUNTIME_DIRECTORY", "/run/pmr/web"),
            ("INVOCATION_ID", "42"),
            ("HOME", "/root"),
            ("NODE_ENV", "production"),
        ];
        let inherited = || inherited.iter().map(|(k, v)| (OsString::from(k), OsString::from(v)));
        let names = |map: &BTreeMap<OsString, OsString>| {
            map.iter()
                .map(|(k, v)| format!("{}={}", k.display(), v.display()))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            names(&base_environment(inherited(), None)),
            "HOME=/root INVOCATION_ID=42 NODE_ENV=production PATH=/bin"
        );
        let identity = Identity {
            uid: 7,
            gid: 7,
            groups: vec![],
            name: "web".into(),
            home: "/srv".into(),
            shell: "/bin/sh".into(),
        };
        assert_eq!(
            names(&base_environment(inherited(), Some(&identity))),
            "HOME=/srv INVOCATION_ID=42 LOGNAME=web NODE_ENV=production PATH=/bin SHELL=/bin/sh \
             USER=web"
        );
    }

    #[test]
    fn of_runtime_directories_an_app_has_those_that_are_not_pmrs() {
        let kept = |value: &str| {
            let inherited = [(OsString::from("RUNTIME_DIRECTORY"), OsString::from(value))];
            let environment = base_environment(inherited.into_iter(), None);
            environment
                .get(OsStr::new("RUNTIME_DIRECTORY"))
                .map(|it| it.to_str().unwrap().to_owned())
        };
        assert_eq!(kept("/run/pmr/web"), None);
        assert_eq!(kept("/run/user/7/pmr/web"), None);
        assert_eq!(kept("/run/web:/run/pmr/web:/run/cache"), Some("/run/web:/run/cache".into()));
        // Of the service that `pmr run` was called by.
        assert_eq!(kept("/run/caller"), Some("/run/caller".into()));
    }
}
