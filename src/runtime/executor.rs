//! Carries out what the core says. Nothing is decided here.

use crate::control::protocol::event_name;
use crate::keeper::protocol::ToKeeper;
use crate::policy::{Action, Event, Fact, Generation, Note, SlotId};

use super::log::{self, Entry};
use super::{Runtime, events};

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
            Action::Adjust { generation, release } => self.adjust(generation, release),
            Action::Announce(state) => self.announce(state),
            Action::Wire { generation, order } => self.perform_wire(generation, order),
            Action::Note(note) => self.note(&note),
            Action::Reply { ticket, outcome } => self.answer(ticket, outcome),
        }
    }

    fn slot_of(&self, generation: Generation) -> Option<SlotId> {
        let held = self.policy.generations().into_iter().find(|(_, it)| *it == generation);
        held.map(|(slot, _)| slot)
    }

    fn note(&mut self, note: &Note) {
        let app = self.app_name();
        let text = match (note.slot, note.generation) {
            (Some(slot), _) => format!("{app}:{slot} {}", note.reason),
            (None, _) => format!("{app} {}", note.reason),
        };
        self.say_entry(&Entry {
            kind: events::kind_of(event_name(&note.reason)),
            app: &app,
            slot: note.slot.map(|slot| slot.0),
            generation: note.generation.map(|generation| generation.0),
            text: &text,
        });
        self.tell_watchers(note);
        self.explain(note);
    }

    /// Says something that is no note of the core.
    pub(super) fn say_event(&mut self, name: &str, slot: Option<SlotId>, text: &str) {
        let app = self.app_name();
        let (kind, slot) = (events::kind_of(name), slot.map(|slot| slot.0));
        self.say_entry(&Entry { kind, app: &app, slot, generation: None, text });
    }

    fn say_entry(&mut self, entry: &Entry<'_>) {
        self.say_lost();
        log::say(entry);
        self.print_log();
    }

    /// Says how many events were lost, as soon as there is room for it.
    pub(super) fn say_lost(&mut self) {
        let lost = self.log.take_lost();
        if lost > 0 {
            let app = self.app_name();
            let text =
                format!("{app}: {lost} of pmr's entries were lost: the journal took nothing");
            let kind = events::kind_of(events::EVENTS_LOST);
            log::say(&Entry { kind, app: &app, slot: None, generation: None, text: &text });
        }
    }

    pub(super) fn app_name(&self) -> String {
        let release = self.releases.values().next_back();
        release.map(|release| release.spec.name.to_string()).unwrap_or_default()
    }

    /// Something the operator should know that is no event of an instance.
    pub(super) fn warn(&mut self, text: &str) {
        self.say_event(events::WARNING, None, text);
    }

    /// Prints pmr's own events in their place between the instances' lines.
    pub(super) fn print_log(&mut self) {
        for text in self.log.take() {
            self.output.own_line(&text);
        }
    }

    /// Says what this machine allows, or that this supervisor goes on in another's place, which
    /// changes nothing about it.
    pub(super) fn announce_start(&mut self) {
        let app = self.app_name();
        if self.hello.deaths_total > 0 || self.hello.upgrade.is_some() {
            let count = self.instances.values().filter(|instance| !instance.ended).count();
            let text = format!("{app} has a new supervisor; instances that go on: {count}");
            return self.say_event(events::ADOPTED, None, &text);
        }
        let text = format!("{app} {}", self.level);
        self.say_event(events::LEVEL, None, &text);
        self.announce_unenforced();
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
        let releases: Vec<_> = self.releases.values().collect();
        let is_served = !self.policy.serving().is_empty();
        for name in self.sockets.retain(&releases, is_served) {
            self.say(&ToKeeper::Drop { name });
        }
        let sockets = &self.sockets;
        self.node.hub.retain(|address| sockets.is_bound(address));
    }
}
