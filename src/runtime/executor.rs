//! Carries out what the core says. Nothing is decided here.

use crate::keeper::protocol::ToKeeper;
use crate::policy::{Action, Event, Fact, Generation, Note};

use super::Runtime;

impl Runtime {
    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::Spawn { slot, generation, release } => {
                let fact = match self.spawn(slot, generation, release) {
                    Ok(pid) => Fact::Spawned { generation, pid },
                    Err(failure) => Fact::SpawnFailed { generation, failure },
                };
                self.events.push_back(Event::Fact(fact));
            }
            Action::Signal { generation } => self.ask_to_stop(generation),
            Action::Send { generation, signal } => {
                let sent = self.instances.get(&generation).map(|it| it.signal(signal));
                if let Some(Err(error)) = sent {
                    self.warn(&error.to_string());
                }
            }
            Action::Kill { generation } => {
                let killed = self.instances.get(&generation).map(super::Instance::kill);
                if let Some(Err(error)) = killed {
                    self.warn(&error.to_string());
                }
            }
            Action::Clear { generation } => {
                let slot = self.slot_of(generation);
                if let Some(slot) = slot {
                    self.clear(slot, generation, true);
                }
            }
            Action::AnnounceReady => {
                let state = "READY=1".to_owned();
                self.say(&ToKeeper::Notify { state });
            }
            Action::Note(note) => self.note(&note),
            Action::Reply { ticket, outcome } => self.answer(ticket, outcome),
        }
    }

    fn slot_of(&self, generation: Generation) -> Option<crate::policy::SlotId> {
        let held = self.policy.generations().into_iter().find(|(_, it)| *it == generation);
        held.map(|(slot, _)| slot)
    }

    fn ask_to_stop(&mut self, generation: Generation) {
        let Some(instance) = self.instances.get(&generation) else { return };
        let signal = self.releases.get(&instance.release).map(|it| it.spec.stop.signal);
        // A process that was stopped hears it once it goes on, as with systemd.
        let sent = instance
            .signal(signal.unwrap_or(nix::libc::SIGTERM))
            .and_then(|()| instance.signal(nix::libc::SIGCONT));
        if let Err(error) = sent {
            self.warn(&error.to_string());
        }
        self.events.push_back(Event::Fact(Fact::Signalled { generation }));
    }

    fn note(&mut self, note: &Note) {
        let app = self.app_name();
        let text = match (note.slot, note.generation) {
            (Some(slot), _) => format!("{app}:{slot} {}", note.reason),
            (None, _) => format!("{app} {}", note.reason),
        };
        tracing::info!(
            PMR_APP = app,
            PMR_INSTANCE = note.slot.map(|slot| slot.0),
            PMR_GENERATION = note.generation.map(|generation| generation.0),
            "{text}"
        );
        self.print_log();
        self.tell_watchers(note);
    }

    pub(super) fn app_name(&self) -> String {
        let release = self.releases.values().next_back();
        release.map(|release| release.spec.name.to_string()).unwrap_or_default()
    }

    /// Something the operator should know that is no event of an instance.
    pub(super) fn warn(&mut self, text: &str) {
        tracing::warn!(PMR_APP = self.app_name(), "{text}");
        self.print_log();
    }

    /// Prints pmr's own events in their place between the instances' lines.
    pub(super) fn print_log(&mut self) {
        for text in self.log.take() {
            self.output.own_line(&text);
        }
    }

    /// Says once what this machine allows.
    pub(super) fn announce_level(&mut self) {
        let text = self.level.to_string();
        // An adopt changes nothing about it.
        if self.hello.deaths_total == 0 && self.hello.upgrade.is_none() {
            tracing::info!(PMR_APP = self.app_name(), "{} {text}", self.app_name());
            self.print_log();
        }
    }

    /// Releases that nothing names any more, and sockets that no release listens on.
    pub(super) fn forget_releases(&mut self) {
        let used = self.policy.releases();
        let gone: Vec<_> = self.releases.keys().filter(|id| !used.contains(id)).copied().collect();
        if gone.is_empty() {
            return;
        }
        for id in gone {
            self.releases.remove(&id);
            self.say(&ToKeeper::Drop { name: super::Release::fd_name(id) });
        }
        let releases = self.releases.values();
        let wanted = releases.flat_map(|release| release.spec.listen.iter().cloned()).collect();
        for name in self.sockets.retain(&wanted) {
            self.say(&ToKeeper::Drop { name });
        }
    }
}
