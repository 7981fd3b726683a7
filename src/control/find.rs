//! Where the sockets are.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::protocol::INTERFACE;

/// Where system services have theirs.
const SYSTEM_DIRECTORY: &str = "/run/pmr";

/// Where the configs of system services are.
const SYSTEM_CONFIGS: &str = "/etc/pmr";

/// Whose service manager an app belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The machine's.
    System,
    /// The user's own.
    User,
}

/// Where the apps of one service manager are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// Whose it is.
    pub scope: Scope,
    /// The directory of sockets.
    pub runtime: PathBuf,
    /// The directory of configs. `None` where a directory of sockets was named and none of configs:
    /// such apps run in the foreground, and are no units.
    pub config: Option<PathBuf>,
}

/// An app's directory with a socket in it; whether anybody listens shows when it is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The app's name: the directory's.
    pub name: String,
    /// The directory.
    pub directory: PathBuf,
}

/// Where apps are looked for, the caller's own first: a user's (`$XDG_RUNTIME_DIR/pmr`, or one in
/// the temporary directory where a session has none: over su(1), in a container; configs in
/// `$XDG_CONFIG_HOME/pmr` or `~/.config/pmr`), then the system's (`/run/pmr`, `/etc/pmr`); only one
/// of them where one is `wanted`. `PMR_RUNTIME_DIR` and `PMR_CONFIG_DIR` take the place of all.
pub fn homes(variable: impl Fn(&str) -> Option<OsString>, wanted: Option<Scope>) -> Vec<Home> {
    homes_of(&variable, wanted, rustix::process::geteuid().is_root())
}

/// Whose service manager a process asks first.
fn own_scope(is_system: bool) -> Scope {
    if is_system { Scope::System } else { Scope::User }
}

/// The directory in which a supervisor makes its app's, made where it is not there. In the
/// temporary directory it must be the caller's own, as for tmux(1): else it could be somebody's
/// trap.
pub fn own_directory(variable: impl Fn(&str) -> Option<OsString>) -> io::Result<PathBuf> {
    let is_root = rustix::process::geteuid().is_root();
    let first = set(&variable, "PMR_RUNTIME_DIR")
        .unwrap_or_else(|| runtime_directory_of(&variable, own_scope(is_root)));
    let is_temporary = first == temporary_directory();
    let made = if is_temporary {
        DirBuilder::new().mode(0o700).create(&first)
    } else {
        DirBuilder::new().recursive(true).create(&first)
    };
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    if is_temporary {
        let facts = fs::symlink_metadata(&first)?;
        let own = facts.uid() == rustix::process::geteuid().as_raw();
        if !facts.is_dir() || !own || facts.mode() & 0o022 != 0 {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
    }
    Ok(first)
}

/// The directory in which an app has its own: the one that the service manager has made for a unit
/// (`RuntimeDirectory=pmr/NAME`, beside which a drop-in may have named others), else the caller's.
pub fn app_directory(
    name: &str,
    variable: impl Fn(&str) -> Option<OsString>,
) -> io::Result<PathBuf> {
    let given = variable("RUNTIME_DIRECTORY").filter(|_| variable("PMR_RUNTIME_DIR").is_none());
    let made = Path::new("pmr").join(name);
    match given.and_then(|all| std::env::split_paths(&all).find(|one| one.ends_with(&made))) {
        Some(directory) => Ok(directory),
        None => Ok(own_directory(variable)?.join(name)),
    }
}

/// Whether the service manager has made this directory for the calling unit, and removes it.
pub fn is_given(directory: &Path, variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let given = variable("RUNTIME_DIRECTORY").unwrap_or_default();
    std::env::split_paths(&given).any(|one| one == directory)
}

/// The directory with the configs of the caller's units, which need not be there:
/// `PMR_CONFIG_DIR` where it is set, else the system's for root and for a system service of any
/// user, else the user's (`$XDG_CONFIG_HOME/pmr` or `~/.config/pmr`).
pub fn config_directory(variable: impl Fn(&str) -> Option<OsString>) -> io::Result<PathBuf> {
    config_directory_of(variable, rustix::process::geteuid().is_root())
}

fn config_directory_of(
    variable: impl Fn(&str) -> Option<OsString>,
    is_root: bool,
) -> io::Result<PathBuf> {
    // With `User=` in a drop-in it is the system's manager all the same.
    let runtime = variable("RUNTIME_DIRECTORY").unwrap_or_default();
    let is_system =
        is_root || std::env::split_paths(&runtime).any(|one| one.starts_with(SYSTEM_DIRECTORY));
    set(&variable, "PMR_CONFIG_DIR")
        .or_else(|| configs_of(&variable, own_scope(is_system)))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "HOME is not set"))
}

/// The directory of a user whose session has none.
fn temporary_directory() -> PathBuf {
    std::env::temp_dir().join(format!("pmr-{}", rustix::process::geteuid().as_raw()))
}

fn set(variable: &impl Fn(&str) -> Option<OsString>, name: &str) -> Option<PathBuf> {
    variable(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn homes_of(
    variable: &impl Fn(&str) -> Option<OsString>,
    wanted: Option<Scope>,
    is_root: bool,
) -> Vec<Home> {
    let runtime = set(variable, "PMR_RUNTIME_DIR");
    let config = set(variable, "PMR_CONFIG_DIR");
    let own = own_scope(is_root);
    if runtime.is_some() || config.is_some() {
        let scope = wanted.unwrap_or(own);
        let runtime = runtime.unwrap_or_else(|| runtime_directory_of(variable, scope));
        return vec![Home { scope, runtime, config }];
    }
    let scopes = match (wanted, own) {
        (Some(only), _) => vec![only],
        (None, Scope::System) => vec![Scope::System],
        (None, Scope::User) => vec![Scope::User, Scope::System],
    };
    let home = |scope| Home {
        scope,
        runtime: runtime_directory_of(variable, scope),
        config: configs_of(variable, scope),
    };
    scopes.into_iter().map(home).collect()
}

fn runtime_directory_of(variable: &impl Fn(&str) -> Option<OsString>, scope: Scope) -> PathBuf {
    match scope {
        Scope::System => PathBuf::from(SYSTEM_DIRECTORY),
        Scope::User => set(variable, "XDG_RUNTIME_DIR")
            .map_or_else(temporary_directory, |directory| directory.join("pmr")),
    }
}

fn configs_of(variable: &impl Fn(&str) -> Option<OsString>, scope: Scope) -> Option<PathBuf> {
    match scope {
        Scope::System => Some(PathBuf::from(SYSTEM_CONFIGS)),
        Scope::User => set(variable, "XDG_CONFIG_HOME")
            .or_else(|| set(variable, "HOME").map(|home| home.join(".config")))
            .map(|directory| directory.join("pmr")),
    }
}

/// Every app directory with a socket in it, by name. A directory of sockets that is not there has
/// none.
pub fn places(runtime: &Path) -> io::Result<Vec<Place>> {
    let mut places = match places_in(runtime) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    places.sort_by(|a: &Place, b| a.name.cmp(&b.name));
    Ok(places)
}

fn places_in(directory: &Path) -> io::Result<Vec<Place>> {
    let mut places = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let socket = entry.path().join(INTERFACE);
        let is_socket = fs::symlink_metadata(socket).is_ok_and(|it| it.file_type().is_socket());
        if let (true, Ok(name)) = (is_socket, entry.file_name().into_string()) {
            places.push(Place { name, directory: entry.path() });
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(set: &[(&str, &str)], wanted: Option<Scope>, is_root: bool) -> Vec<String> {
        let variable = |name: &str| {
            let found = set.iter().find(|(own, _)| *own == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let show = |home: Home| {
            let config = home.config.map(|it| it.display().to_string()).unwrap_or_default();
            format!("{:?} {} {config}", home.scope, home.runtime.display())
        };
        homes_of(&variable, wanted, is_root).into_iter().map(show).collect()
    }

    #[test]
    fn a_user_looks_at_home_first() {
        let system = "System /run/pmr /etc/pmr";
        let user = [("XDG_RUNTIME_DIR", "/run/user/7"), ("HOME", "/home/u")];
        let own = "User /run/user/7/pmr /home/u/.config/pmr";
        assert_eq!(look(&[], None, true), [system]);
        assert_eq!(look(&user, None, true), [system]);
        assert_eq!(look(&user, None, false), [own, system]);
        let bare = [("XDG_RUNTIME_DIR", ""), ("XDG_CONFIG_HOME", "/c")];
        let temporary = format!("User {} /c/pmr", temporary_directory().display());
        assert_eq!(look(&bare, None, false), [temporary.as_str(), system], "without a session");
    }

    #[test]
    fn one_service_manager_can_be_meant() {
        let user = [("XDG_RUNTIME_DIR", "/run/user/0"), ("HOME", "/root")];
        let own = ["User /run/user/0/pmr /root/.config/pmr"];
        assert_eq!(look(&user, Some(Scope::User), true), own);
        assert_eq!(look(&user, Some(Scope::System), false), ["System /run/pmr /etc/pmr"]);
    }

    #[test]
    fn directories_that_are_named_are_all_there_is() {
        let mut set = vec![("PMR_RUNTIME_DIR", "/tmp/x"), ("XDG_RUNTIME_DIR", "/run/user/7")];
        assert_eq!(look(&set, None, false), ["User /tmp/x "], "no config, so no units");
        assert_eq!(look(&set, None, true), ["System /tmp/x "]);
        set.push(("PMR_CONFIG_DIR", "/tmp/c"));
        assert_eq!(look(&set, None, true), ["System /tmp/x /tmp/c"]);
        assert_eq!(look(&set, Some(Scope::User), true), ["User /tmp/x /tmp/c"]);
        assert_eq!(look(&set[1..], None, false), ["User /run/user/7/pmr /tmp/c"]);
    }

    #[test]
    fn configs_are_the_systems_or_the_users() {
        let look = |variables: &[(&str, &str)], is_root| {
            let variables: std::collections::BTreeMap<_, _> = variables.iter().copied().collect();
            let variable = |name: &str| variables.get(name).map(OsString::from);
            config_directory_of(variable, is_root).ok()
        };
        let path = |path: &str| Some(PathBuf::from(path));
        let home = ("HOME", "/home/ada");
        assert_eq!(look(&[home], true), path("/etc/pmr"));
        assert_eq!(look(&[home], false), path("/home/ada/.config/pmr"));
        assert_eq!(look(&[home, ("XDG_CONFIG_HOME", "/x")], false), path("/x/pmr"));
        assert_eq!(look(&[home, ("PMR_CONFIG_DIR", "/y")], true), path("/y"));
        let system = ("RUNTIME_DIRECTORY", "/run/other:/run/pmr/web");
        assert_eq!(look(&[home, system], false), path("/etc/pmr"));
        let user = ("RUNTIME_DIRECTORY", "/run/user/7/pmr/web");
        assert_eq!(look(&[home, user], false), path("/home/ada/.config/pmr"));
        assert_eq!(look(&[], false), None);
    }

    #[test]
    fn a_unit_has_the_directory_that_was_made_for_it() {
        let made = |own: Option<&str>| {
            let variable = |name: &str| match name {
                "RUNTIME_DIRECTORY" => Some("/run/other:/run/pmr/web".into()),
                "PMR_RUNTIME_DIR" => own.map(OsString::from),
                _ => None,
            };
            app_directory("web", variable).unwrap()
        };
        assert_eq!(made(None), Path::new("/run/pmr/web"));
        let own = std::env::temp_dir();
        assert_eq!(made(own.to_str()), own.join("web"));
        let given =
            |directory| is_given(Path::new(directory), |_| Some("/run/other:/run/pmr/web".into()));
        assert!(given("/run/pmr/web") && !given("/run/pmr") && !given("/tmp/pmr/web"));
    }

    #[test]
    fn a_directory_that_is_not_there_has_no_apps() {
        assert_eq!(places(Path::new("/nonexistent/pmr")).unwrap(), []);
    }
}
