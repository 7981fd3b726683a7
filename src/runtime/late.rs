//! Who is not ready in time, and why: what an app does in place of what its config says.
//!
//! It is asked of the kernel only once a start has failed, and said beside that.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::balance::choice::Adapter;
use crate::balance::node::Address;
use crate::policy::{EndCause, Failure, Generation, Note, Reason, ReleaseId, SlotId};
use crate::spec::{ExecMode, ListenAddress, Readiness};
use crate::sys::{Error, diag, procfs};

use super::instances::Instance;
use super::release::Release;
use super::{Runtime, events};

/// Addresses that a sentence names at most.
const NAMED_MAX: usize = 3;

/// What was said, and what has to be known for it.
#[derive(Debug, Default)]
pub(super) struct Late {
    /// Of whom it was said.
    told: BTreeSet<Generation>,
    /// Of which release it was said that its instances may bind by themselves.
    told_of: Option<ReleaseId>,
    /// Who was ready, as far as this supervisor has seen it.
    was_ready: BTreeSet<Generation>,
}

impl Late {
    pub(super) fn forget(&mut self, generation: Generation) {
        self.told.remove(&generation);
        self.was_ready.remove(&generation);
    }
}

/// A socket that listens, and who holds it.
#[derive(Debug)]
struct Listener {
    address: SocketAddr,
    pid: u32,
    /// It is pmr's too: given, inherited or fetched.
    is_known: bool,
}

impl Runtime {
    /// Says what may be behind a failed start, beside the core's own entry.
    pub(super) fn explain(&mut self, note: &Note) {
        let generation = note.generation.unwrap_or_default();
        if let Reason::Online { .. } = note.reason {
            self.late.was_ready.insert(generation);
        } else if note.reason == Reason::Ending(EndCause::StartTimeout) {
            self.explain_late(generation, true);
        } else if let Reason::Failed { failure: Failure::Exit(_), unstable, .. } = &note.reason {
            // Its port may be in use by one that listens as it should not.
            for generation in self.policy.launching() {
                self.explain_late(generation, false);
            }
            if let Some(slot) = note.slot.filter(|_| unstable.0 > 0) {
                self.explain_port_in_use(slot);
                if !self.late.was_ready.contains(&generation) {
                    self.explain_inherited(slot);
                }
            }
        }
    }

    /// In fork mode no two instances can listen at one port: an instance that has failed early may
    /// have wanted that of another. Said once of who listens.
    fn explain_port_in_use(&mut self, failed: SlotId) {
        let found = self.instances.iter().find_map(|(generation, instance)| {
            let release = self.releases.get(&instance.release)?;
            let rules = &release.spec.environment;
            let own_ports = rules.increment_var.as_deref() == Some("PORT");
            let is_no_rival = release.spec.exec_mode == ExecMode::Cluster || own_ports;
            if instance.slot == failed || instance.ended || is_no_rival {
                return None;
            }
            let address = self.listeners_of(instance).ok()?.first()?.address;
            let is_told =
                rules.vars.get("PORT").is_some_and(|it| *it == address.port().to_string());
            Some((*generation, instance.slot, address, is_told))
        });
        let Some((generation, slot, address, is_told)) = found else { return };
        if self.late.told.insert(generation) {
            let app = self.app_name();
            let way = if is_told {
                "leave `exec_mode = \"fork\"` out".to_owned()
            } else {
                format!("write `port = {}`", address.port())
            };
            let text = format!(
                "{app}:{slot} listens at {address}, and in fork mode no other instance can: if \
                 that is why {app}:{failed} failed, {way}, and they share it"
            );
            self.say_event(events::WARNING, Some(slot), &text);
        }
    }

    /// An app that binds by itself finds its port in use where it inherits the socket. Said once of
    /// a release.
    fn explain_inherited(&mut self, slot: SlotId) {
        let Some(release) = self.releases.values().next_back() else { return };
        let port = release.spec.listen.iter().find_map(|it| match it {
            ListenAddress::Tcp(address) => Some(address.port()),
            ListenAddress::Unix(_) => None,
        });
        let Some(port) = port.filter(|_| release.choice.inherits) else { return };
        if self.late.told_of.replace(release.id) != Some(release.id) {
            let text = format!(
                "{}:{slot} failed before it accepted from the socket that it inherits \
                 (LISTEN_FDS): if it binds port {port} by itself, that is in use, so write \
                 `port = {port}` in place of `listen`",
                self.app_name()
            );
            self.say_event(events::WARNING, Some(slot), &text);
        }
    }

    /// The sockets with which an instance listens.
    fn listeners_of(&self, instance: &Instance) -> Result<Vec<Listener>, Error> {
        let all = diag::listeners(0)?;
        let own = self.sockets.inodes();
        let mut found = Vec::new();
        for pid in instance.pids() {
            let held = procfs::sockets_of(pid).unwrap_or_default();
            let held: BTreeSet<u64> = held.into_iter().collect();
            found.extend(all.iter().filter(|it| held.contains(&it.inode)).map(|it| Listener {
                address: it.address,
                pid,
                is_known: own.contains(&it.inode),
            }));
        }
        Ok(found)
    }

    /// Why an instance is not ready, once of each. One whose time is not over may still listen.
    fn explain_late(&mut self, generation: Generation, is_over: bool) {
        let Some(instance) = self.instances.get(&generation) else { return };
        let Some(release) = self.releases.get(&instance.release) else { return };
        let why = match release.spec.ready {
            Readiness::Listen => self.why_not_listening(instance, release, is_over),
            Readiness::Message if is_over => Some(
                "has not sent `ready` (`process.send('ready')`), which its config waits for: have \
                 it do so, or leave `wait_ready` out"
                    .to_owned(),
            ),
            Readiness::Notify if is_over => Some(
                "has not sent READY=1 to NOTIFY_SOCKET, which its config waits for: have it do so, \
                 or leave `ready` out"
                    .to_owned(),
            ),
            Readiness::Message | Readiness::Notify | Readiness::Exec | Readiness::Http(_) => None,
        };
        let slot = instance.slot;
        if let Some(why) = why
            && self.late.told.insert(generation)
        {
            let text = format!("{}:{slot} {why}", self.app_name());
            self.say_event(events::WARNING, Some(slot), &text);
        }
    }

    /// `None` where that cannot be known, or is not for certain yet.
    fn why_not_listening(
        &self,
        instance: &Instance,
        release: &Release,
        is_over: bool,
    ) -> Option<String> {
        let found = self.listeners_of(instance).ok()?;
        let wanted = &release.spec.listen;
        let (there, elsewhere): (Vec<_>, Vec<_>) =
            found.iter().partition(|it| Address::Tcp(it.address).is_readiness(wanted));
        if release.choice.adapter == Adapter::Inherit {
            return is_over.then(|| deaf(wanted));
        }
        if let Some(it) = there.iter().find(|it| !it.is_known) {
            return match release.choice.adapter {
                Adapter::Node if it.pid == instance.pid => Some(by_itself(it.address)),
                Adapter::Node => {
                    let command = procfs::command_line(it.pid).unwrap_or_default();
                    Some(by_another(it.address, it.pid, &command))
                }
                // Found, and refused with a reason of its own.
                Adapter::Bind | Adapter::Inherit | Adapter::None => None,
            };
        }
        if !elsewhere.is_empty() {
            return Some(listens_elsewhere(&elsewhere, wanted, release.spec.inherits));
        }
        is_over.then(|| listens_nowhere(wanted))
    }
}

/// A listener of Node's that it does not ask its primary for.
fn by_itself(address: SocketAddr) -> String {
    format!(
        "listens at {address} with a socket that it has not asked pmr for, as Node does in a \
         worker thread and with `exclusive` or `reusePort`: several instances cannot, so leave \
         that out, or write `instances = 1` and `exec_mode = \"fork\"`"
    )
}

fn by_another(address: SocketAddr, pid: u32, command: &str) -> String {
    format!(
        "has started another process that listens at {address} (`{command}`, pid {pid}), and only \
         the first one is given sockets: write what that process runs as `script` or `command`"
    )
}

fn listens_elsewhere(found: &[&Listener], wanted: &[ListenAddress], names_listen: bool) -> String {
    let all: BTreeSet<SocketAddr> = found.iter().map(|it| it.address).collect();
    let named: Vec<String> = all.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    let first = all.first().copied();
    let way = match first {
        Some(address) if names_listen => format!("write `listen = \"{address}\"`"),
        Some(address) => {
            format!("have it read `PORT`, or write `port = {}`", address.port())
        }
        None => String::new(),
    };
    format!("listens at {}, and its config says {}: {way}", named.join(", "), places(wanted))
}

/// Of one that inherits.
fn deaf(wanted: &[ListenAddress]) -> String {
    format!(
        "does not accept from the socket that it inherits ({}; LISTEN_FDS): have it do so, give it \
         longer by `listen_timeout`, or write `port` in place of `listen` if it binds by itself",
        places(wanted)
    )
}

fn listens_nowhere(wanted: &[ListenAddress]) -> String {
    format!(
        "listens at no port, and its config says {}: have it listen there, give it longer by \
         `listen_timeout`, or write `exec_mode = \"fork\"` if it serves nobody",
        places(wanted)
    )
}

fn places(wanted: &[ListenAddress]) -> String {
    let words = wanted.iter().map(|it| match it {
        ListenAddress::Tcp(address) => format!("port {}", address.port()),
        ListenAddress::Unix(path) => path.display().to_string(),
    });
    words.collect::<Vec<_>>().join(", ")
}
