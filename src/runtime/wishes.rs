//! Wishes that need the world before the core can hear them: a restart and a reload read the config
//! again.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd};

use crate::config::change_limits;
use crate::control::protocol::{Fault, FaultKind};
use crate::control::server::Reply;
use crate::keeper::protocol::ToKeeper;
use crate::policy::{Event, Moment, Outcome, ReleaseId, SlotId, Ticket, Wish};
use crate::sys::{Error, clock};

use super::adopt::{StartError, bind_missing};
use super::release::Release;
use super::sockets::declare_remains;
use super::{Runtime, bind};

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
                let wish = self.reload_wish(&release);
                self.events.push_back(Event::Wish(None, wish));
            }
            Err(error) => self.warn(&format!("reload refused, nothing was changed: {error}")),
        }
    }

    /// Reads the config again for a restart or a reload. On an error nothing was changed.
    pub(super) fn read_again(&mut self, ticket: Ticket, again: Again) -> Result<(), StartError> {
        let release = self.new_release()?;
        let wish = match again {
            Again::Restart(slot) => {
                Wish::Restart { slot, release: release.id, rules: release.rules() }
            }
            Again::Reload => self.reload_wish(&release),
        };
        if let Wish::Adjust { .. } = wish {
            self.control.adjusting.insert(ticket);
        }
        self.events.push_back(Event::Wish(Some(ticket), wish));
        Ok(())
    }

    /// A reload for which nothing has to be started sets limits. One that would set a cap below
    /// what an instance uses replaces it after all: the kernel would kill it.
    fn reload_wish(&self, release: &Release) -> Wish {
        let (id, rules) = (release.id, release.rules());
        let alone = self.current_release().is_some_and(|current| {
            self.policy.releases().iter().all(|it| *it == current.id)
                && current.differs_in_limits_only(release)
        });
        if alone && self.above_cap(&release.spec).is_none() {
            Wish::Adjust { release: id, rules }
        } else {
            Wish::Reload { release: id, rules }
        }
    }

    /// `pmr set`: the current release with other limits.
    pub(super) fn set_limits(&mut self, client: u64, values: &BTreeMap<String, String>) {
        match self.release_with(values) {
            Ok(None) => self.reply(client, Reply::Outcome(Outcome::AlreadySo)),
            Ok(Some(release)) => {
                let ticket = self.control.ticket(client);
                self.control.adjusting.insert(ticket);
                let wish = Wish::Adjust { release: release.id, rules: release.rules() };
                self.events.push_back(Event::Wish(Some(ticket), wish));
            }
            Err(fault) => self.reply(client, Reply::Fault(fault)),
        }
    }

    fn release_with(
        &mut self,
        values: &BTreeMap<String, String>,
    ) -> Result<Option<Release>, Fault> {
        if let Some((kind, _)) = self.policy.status(Moment::from_ms(clock::now())).roll {
            return Err(Fault::new(FaultKind::Busy, format!("a {kind} is running")));
        }
        let failed = |error: &dyn Display| Fault::new(FaultKind::Failed, error.to_string());
        let current = self.current_release().cloned();
        let current = current.ok_or_else(|| failed(&"there is no release"))?;
        let (memory, limits) = change_limits(&current.spec, values)
            .map_err(|message| Fault::new(FaultKind::Invalid, message))?;
        if (memory, &limits) == (current.spec.memory, &current.spec.limits) {
            return Ok(None);
        }
        let id = ReleaseId(self.last_release.saturating_add(1));
        let release = current.with_limits(id, memory, limits);
        if let Some(above) = self.above_cap(&release.spec) {
            return Err(Fault::new(FaultKind::Invalid, above));
        }
        let sealed = release.seal().map_err(|error| failed(&error))?;
        self.last_release = id.0;
        self.keep_release(&release, &sealed).map_err(|error| failed(&error))?;
        Ok(Some(release))
    }

    fn keep_release(&mut self, release: &Release, sealed: &OwnedFd) -> Result<(), Error> {
        let name = Release::fd_name(release.id);
        self.keeper.say(&ToKeeper::Store { name, generation: None }, &[sealed.as_fd()])?;
        self.releases.insert(release.id, release.clone());
        Ok(())
    }

    /// A new release from the files as they stand now, in the keeper's hands with its sockets. One
    /// that the core does not take up is forgotten at the end of the turn.
    fn new_release(&mut self) -> Result<Release, StartError> {
        let current = self.releases.get(&self.policy.saved().release());
        let newest = current.or_else(|| self.releases.values().next_back());
        let Some(newest) = newest else { return Err(StartError::Arguments) };
        let id = ReleaseId(self.last_release.saturating_add(1));
        let release = Release::read(id, &newest.config, newest.overlay.as_deref())?
            .chosen(&bind::machine(&self.level, &self.sockets))?;
        let bound = bind_missing(&self.sockets, &release)?;
        let sealed = release.seal()?;
        self.last_release = id.0;
        for (address, fd) in bound {
            self.sockets.insert(address, fd, &mut self.keeper)?;
        }
        self.sockets.begin_steering(&release, &mut self.keeper)?;
        self.keep_release(&release, &sealed)?;
        self.declare_remains()?;
        Ok(release)
    }

    /// Tells the keeper what to remove at the very end, as it is now.
    pub(super) fn declare_remains(&mut self) -> Result<(), Error> {
        let config = self.releases.values().next_back().map(|release| release.config.as_path());
        let Self { keeper, directory, level, sockets, .. } = self;
        declare_remains(keeper, directory, level, config, sockets)
    }
}
