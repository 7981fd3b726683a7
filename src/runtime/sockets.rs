//! The listening sockets of an app, and what else of it stands in the file system.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::control::protocol::INTERFACE;
use crate::keeper::protocol::ToKeeper;
use crate::spec::{ExecMode, ListenAddress};
use crate::sys::Error;

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
        match release.spec.exec_mode {
            ExecMode::Fork => Vec::new(),
            ExecMode::Cluster => {
                let addresses = release.spec.listen.iter();
                addresses.filter_map(|it| self.bound.get(it).map(AsFd::as_fd)).collect()
            }
        }
    }
}

/// Tells the keeper what to remove at the very end, whoever ends the app. A config in the app's own
/// runtime directory was made by pmr (the demo's), and goes with it.
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
    let directories = home.into_iter().chain([text(directory)]).collect();
    keeper.say(&ToKeeper::Remove { files: files.collect(), directories }, &[])
}
