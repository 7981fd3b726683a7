//! The listening sockets of an app, and what else of it stands in the file system.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::control::is_given;
use crate::control::protocol::INTERFACE;
use crate::keeper::protocol::{PARKED, ToKeeper};
use crate::spec::{ExecMode, ListenAddress};
use crate::sys::{Error, listen, notify};

use super::keeper_link::KeeperLink;
use super::level::Level;
use super::release::Release;

/// The lock by which an app has one keeper: its name in the app's runtime directory, and among the
/// keeper's fds.
pub(super) const LOCK: &str = "lock";

/// The listening sockets of an app: bound once, held by the keeper, shared by all instances.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    bound: BTreeMap<ListenAddress, OwnedFd>,
}

impl Sockets {
    /// The name under which the keeper holds the socket of an address.
    pub(super) fn fd_name(address: &ListenAddress) -> String {
        format!("listen.{address}")
    }

    /// The name under which the service manager keeps a copy; it has no room for some long paths.
    fn parked_name(address: &ListenAddress) -> Option<String> {
        notify::fd_name("listen-", &address.to_string())
    }

    /// Has the keeper keep a socket, and the service manager a copy.
    pub(super) fn keep(
        keeper: &mut KeeperLink,
        address: &ListenAddress,
        fd: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let name = Self::fd_name(address);
        let message = match Self::parked_name(address) {
            Some(fd_name) => ToKeeper::Park { name, fd_name },
            None => ToKeeper::Store { name, generation: None },
        };
        keeper.say(&message, &[fd])
    }

    /// Takes what the service manager has kept of a keeper that was killed, where the releases
    /// still listen there: with the clients that wait. The others are closed, here and there.
    pub(super) fn take_parked<'a>(
        &mut self,
        releases: impl Iterator<Item = &'a Release>,
        fds: &mut BTreeMap<String, OwnedFd>,
        keeper: &mut KeeperLink,
    ) -> Result<(), Error> {
        let mut parked: BTreeMap<String, OwnedFd> =
            fds.extract_if(.., |name, _| name.starts_with(PARKED)).collect();
        let names: Vec<String> = parked.keys().cloned().collect();
        for address in releases.flat_map(bound_by) {
            let name = Self::parked_name(address).map(|name| format!("{PARKED}{name}"));
            let Some((name, fd)) = name.and_then(|name| parked.remove_entry(&name)) else {
                continue;
            };
            if !self.is_bound(address) && listens_at(&fd, address) {
                Self::keep(keeper, address, fd.as_fd())?;
                self.bound.insert(address.clone(), fd);
            } else {
                parked.insert(name, fd);
            }
        }
        for fd in parked.values() {
            // Now, not when the service manager closes its copy: the port may be wanted at once.
            listen::silence(fd);
        }
        // The copy goes with the last fd of its name only.
        names.into_iter().try_for_each(|name| keeper.say(&ToKeeper::Drop { name }, &[]))
    }

    /// Takes back what the keeper held for these addresses.
    pub(super) fn adopt<'a>(
        addresses: impl Iterator<Item = &'a ListenAddress>,
        fds: &mut BTreeMap<String, OwnedFd>,
    ) -> Self {
        let bound = addresses.filter_map(|address| {
            fds.remove(&Self::fd_name(address)).map(|fd| (address.clone(), fd))
        });
        Self { bound: bound.collect() }
    }

    /// The socket files that are made for apps.
    fn files(&self) -> impl Iterator<Item = String> + '_ {
        self.bound.keys().filter_map(|address| match address {
            ListenAddress::Unix(path) => Some(path.display().to_string()),
            ListenAddress::Tcp(_) => None,
        })
    }

    pub(super) fn is_bound(&self, address: &ListenAddress) -> bool {
        self.bound.contains_key(address)
    }

    pub(super) fn insert(&mut self, address: ListenAddress, fd: OwnedFd) {
        self.bound.insert(address, fd);
    }

    /// Closes the sockets whose address is not wanted any more, and names them.
    pub(super) fn retain(&mut self, wanted: &BTreeSet<ListenAddress>) -> Vec<String> {
        let gone: Vec<_> =
            self.bound.keys().filter(|address| !wanted.contains(*address)).cloned().collect();
        gone.iter()
            .map(|address| {
                self.bound.remove(address);
                Self::fd_name(address)
            })
            .collect()
    }

    /// How many sockets an instance of `release` inherits.
    pub(super) fn count(&self, release: &Release) -> usize {
        self.of(release).len()
    }

    /// The sockets that an instance of `release` inherits, in the order of its config.
    pub(super) fn of(&self, release: &Release) -> Vec<BorrowedFd<'_>> {
        bound_by(release).iter().filter_map(|it| self.bound.get(it).map(AsFd::as_fd)).collect()
    }
}

/// The addresses at which pmr listens for the instances of a release.
pub(super) fn bound_by(release: &Release) -> &[ListenAddress] {
    match release.spec.exec_mode {
        ExecMode::Fork => &[],
        ExecMode::Cluster => &release.spec.listen,
    }
}

fn listens_at(fd: &OwnedFd, address: &ListenAddress) -> bool {
    match address {
        ListenAddress::Tcp(address) => listen::listens_at_tcp(fd, *address),
        ListenAddress::Unix(path) => listen::listens_at_unix(fd, path),
    }
}

/// Tells the keeper what to remove at the very end, whoever ends the app. A config in the app's own
/// runtime directory was made by pmr (the demo's), and goes with it. A directory that the service
/// manager has made it removes itself, and pmr may have no right to.
pub(super) fn declare_remains(
    keeper: &mut KeeperLink,
    directory: &Path,
    level: &Level,
    config: Option<&Path>,
    sockets: &Sockets,
) -> Result<(), Error> {
    let text = |path: &Path| path.display().to_string();
    let own = [INTERFACE, LOCK];
    let own = own.map(|name| text(&directory.join(name)));
    let config = config.filter(|config| config.starts_with(directory)).map(text);
    let files = own.into_iter().chain(config).chain(sockets.files());
    let home = level.home().and_then(|home| home.made()).map(text);
    let made = !is_given(directory, |name| std::env::var_os(name));
    let directories = home.into_iter().chain(made.then(|| text(directory))).collect();
    keeper.say(&ToKeeper::Remove { files: files.collect(), directories }, &[])
}
