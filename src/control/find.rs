//! Where the sockets are.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::protocol::INTERFACE;

/// Where system services have theirs.
const SYSTEM_DIRECTORY: &str = "/run/pmr";

/// Where the configs of system services are.
const SYSTEM_CONFIGS: &str = "/etc/pmr";

/// An app's directory with a socket in it; whether anybody listens shows when it is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The app's name: the directory's.
    pub name: String,
    /// The directory.
    pub directory: PathBuf,
}

/// Directories in which apps are looked for, the caller's own first: `PMR_RUNTIME_DIR` alone where
/// it is set, else the user's (`$XDG_RUNTIME_DIR/pmr`, or one in the temporary directory where a
/// session has none: over su(1), in a container), else the system's.
pub fn directories(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    directories_of(variable, rustix::process::geteuid().is_root())
}

/// The directory in which a supervisor makes its app's, made where it is not there. In the
/// temporary directory it must be the caller's own, as for tmux(1): else it could be somebody's
/// trap.
pub fn own_directory(variable: impl Fn(&str) -> Option<OsString>) -> io::Result<PathBuf> {
    let is_root = rustix::process::geteuid().is_root();
    let mut all = directories_of(variable, is_root).into_iter();
    let first = all.next().unwrap_or_else(|| PathBuf::from(SYSTEM_DIRECTORY));
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
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(only) = set("PMR_CONFIG_DIR") {
        return Ok(only);
    }
    // With `User=` in a drop-in it is the system's manager all the same.
    let runtime = variable("RUNTIME_DIRECTORY").unwrap_or_default();
    if is_root || std::env::split_paths(&runtime).any(|one| one.starts_with(SYSTEM_DIRECTORY)) {
        return Ok(PathBuf::from(SYSTEM_CONFIGS));
    }
    set("XDG_CONFIG_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".config")))
        .map(|configs| configs.join("pmr"))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "HOME is not set"))
}

/// The directory of a user whose session has none.
fn temporary_directory() -> PathBuf {
    std::env::temp_dir().join(format!("pmr-{}", rustix::process::geteuid().as_raw()))
}

fn directories_of(variable: impl Fn(&str) -> Option<OsString>, is_root: bool) -> Vec<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(only) = set("PMR_RUNTIME_DIR") {
        return vec![only];
    }
    let own = (!is_root).then(|| {
        set("XDG_RUNTIME_DIR").map_or_else(temporary_directory, |directory| directory.join("pmr"))
    });
    own.into_iter().chain([PathBuf::from(SYSTEM_DIRECTORY)]).collect()
}

/// Every app directory with a socket in it, by directory and name. A directory that is not there
/// has none.
pub fn places(directories: &[PathBuf]) -> Result<Vec<Place>, (PathBuf, io::Error)> {
    let mut places = Vec::new();
    for directory in directories {
        let mut here = match places_in(directory) {
            Ok(here) => here,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err((directory.clone(), error)),
        };
        here.sort_by(|a: &Place, b| a.name.cmp(&b.name));
        places.append(&mut here);
    }
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

    #[test]
    fn a_user_looks_at_home_first() {
        let look = |own: Option<&str>, xdg: Option<&str>, is_root| {
            let variable = |name: &str| match name {
                "PMR_RUNTIME_DIR" => own.map(OsString::from),
                "XDG_RUNTIME_DIR" => xdg.map(OsString::from),
                _ => None,
            };
            directories_of(variable, is_root)
        };
        let path = Path::new;
        assert_eq!(look(None, None, true), [path("/run/pmr")]);
        assert_eq!(look(None, Some("/run/user/0"), true), [path("/run/pmr")]);
        assert_eq!(
            look(None, Some("/run/user/7"), false),
            [path("/run/user/7/pmr"), path("/run/pmr")]
        );
        assert_eq!(
            look(None, Some(""), false),
            [temporary_directory().as_path(), path("/run/pmr")],
            "a session without a directory"
        );
        assert_eq!(look(Some("/tmp/x"), Some("/run/user/7"), false), [path("/tmp/x")]);
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
    }

    #[test]
    fn a_directory_that_is_not_there_has_no_apps() {
        assert_eq!(places(&[PathBuf::from("/nonexistent/pmr")]).unwrap(), []);
    }
}
