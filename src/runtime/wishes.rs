//! Wishes that need the world before the core can hear them: a restart and a reload read the config
//! again.

use std::os::fd::AsFd;

use crate::keeper::protocol::ToKeeper;
use crate::policy::{Event, ReleaseId, SlotId, Ticket, Wish};

use super::Runtime;
use super::adopt::{StartError, bind_missing};
use super::release::Release;
use super::sockets::{Sockets, declare_remains};

/// For what the config is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// A restart of this slot, or of all.
    Restart(Option<SlotId>),
    Reload,
}

impl Runtime {
    /// SIGHUP: a reload that nobody waits for.
    pub(super) fn reload_by_signal(&mut self) {
        match self.new_release() {
            Ok(release) => {
                let rules = release.rules();
                let wish = Wish::Reload { release: release.id, rules };
                self.events.push_back(Event::Wish(None, wish));
            }
            Err(error) => self.warn(&format!("reload refused, nothing was changed: {error}")),
        }
    }

    /// Reads the config again for a restart or a reload. On an error nothing was changed.
    pub(super) fn read_again(&mut self, ticket: Ticket, again: Again) -> Result<(), StartError> {
        let release = self.new_release()?;
        let (release, rules) = (release.id, release.rules());
        let wish = match again {
            Again::Restart(slot) => Wish::Restart { slot, release, rules },
            Again::Reload => Wish::Reload { release, rules },
        };
        self.events.push_back(Event::Wish(Some(ticket), wish));
        Ok(())
    }

    /// A new release from the files as they stand now, in the keeper's hands with its sockets. One
    /// that the core does not take up is forgotten at the end of the turn.
    fn new_release(&mut self) -> Result<Release, StartError> {
        let current = self.releases.get(&self.policy.saved().release());
        let newest = current.or_else(|| self.releases.values().next_back());
        let Some(newest) = newest else { return Err(StartError::Arguments) };
        let id = ReleaseId(self.last_release.saturating_add(1));
        let release = Release::read(id, &newest.config, newest.overlay.as_deref())?;
        let bound = bind_missing(&self.sockets, &release)?;
        let sealed = release.seal()?;
        self.last_release = id.0;
        for (address, fd) in bound {
            Sockets::keep(&mut self.keeper, &address, fd.as_fd())?;
            self.sockets.insert(address, fd);
        }
        declare_remains(
            &mut self.keeper,
            &self.directory,
            &self.level,
            Some(&release.config),
            &self.sockets,
        )?;
        let name = Release::fd_name(id);
        self.keeper.say(&ToKeeper::Store { name, generation: None }, &[sealed.as_fd()])?;
        self.releases.insert(id, release.clone());
        Ok(release)
    }
}
