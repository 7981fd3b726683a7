//! Limits of instances' groups: from the config to the kernel, and what is said where they do not
//! hold.

use std::os::fd::AsFd as _;

use crate::control::protocol::{Fault, FaultKind, LimitState};
use crate::control::server::Reply;
use crate::policy::{Exit, Generation, Oom, ReleaseId};
use crate::spec::{Bytes, Spec};
use crate::sys::cgroup::{Group, LimitKind, Limits, Untaken, read_populated};
use crate::sys::process;

use super::Runtime;
use super::instances::Instance;
use super::level::Level;

/// A limit as the config names it.
fn key(kind: LimitKind) -> &'static str {
    match kind {
        LimitKind::MemoryMax => "memory_max",
        LimitKind::MemorySwapMax => "memory_swap_max",
        LimitKind::PidsMax => "tasks_max",
        LimitKind::CpuWeight => "cpu_weight",
        LimitKind::CpuMax => "cpu_max",
        LimitKind::OomGroup => "memory.oom.group",
    }
}

/// What a spec asks of an instance's group.
pub(super) fn asked(spec: &Spec) -> Limits {
    Limits {
        memory_max: spec.memory.max.map(|bytes| bytes.0),
        memory_swap_max: spec.memory.swap_max.map(|bytes| bytes.0),
        pids_max: spec.limits.tasks_max.map(u64::from),
        cpu_weight: spec.limits.cpu_weight.map(u64::from),
        cpu_max_percent: spec.limits.cpu_max_percent.map(u64::from),
    }
}

impl Level {
    /// Gives a group what is asked for and can be had. What cannot be had is known beforehand, and
    /// said by [`Level::unenforced`].
    pub(super) fn limit(&self, group: &Group, asked: &Limits) -> Vec<Untaken> {
        let has = |kind: LimitKind| self.home().is_some_and(|home| home.has(kind.controller()));
        let only = |kind, limit: Option<u64>| limit.filter(|_| has(kind));
        group.limit(&Limits {
            memory_max: only(LimitKind::MemoryMax, asked.memory_max),
            memory_swap_max: only(LimitKind::MemorySwapMax, asked.memory_swap_max),
            pids_max: only(LimitKind::PidsMax, asked.pids_max),
            cpu_weight: only(LimitKind::CpuWeight, asked.cpu_weight),
            cpu_max_percent: only(LimitKind::CpuMax, asked.cpu_max_percent),
        })
    }

    /// Why no limit of this kind can hold here, where none can.
    fn unenforced(&self, kind: LimitKind) -> Option<String> {
        let controller = kind.controller();
        match self.home() {
            Some(home) if home.has(controller) => None,
            Some(_) => Some(format!("no {controller} controller in level {}", self.word())),
            None => Some("no groups in level bare".to_owned()),
        }
    }
}

impl Runtime {
    /// The limits of the current release, and whether they hold for all its instances.
    pub(super) fn limit_states(&self) -> Vec<LimitState> {
        let Some(release) = self.current_release() else { return Vec::new() };
        let limits = asked(&release.spec);
        let kinds = LimitKind::ALL.into_iter();
        kinds
            .filter_map(|kind| {
                let value = limits.get(kind)?;
                let mut of_release = self.instances.values().filter(|it| it.release == release.id);
                let failed = of_release.find_map(|instance| instance.escapes(kind));
                let reason = self.level.unenforced(kind).or(failed);
                let key = key(kind).to_owned();
                Some(LimitState { key, value, enforced: reason.is_none(), reason })
            })
            .collect()
    }

    /// Sets the limits of what an instance runs now.
    pub(super) fn adjust(&mut self, generation: Generation, release: ReleaseId) {
        let Some(instance) = self.instances.get_mut(&generation) else { return };
        instance.release = release;
        self.set_again(generation);
    }

    /// Sets an instance's limits, which stand already unless something was changed.
    fn set_again(&mut self, generation: Generation) {
        let Some(instance) = self.instances.get_mut(&generation) else { return };
        let release = self.releases.get(&instance.release).filter(|_| !instance.ended);
        let (Some(release), Some(group)) = (release, &instance.group) else { return };
        instance.untaken = self.level.limit(group, &asked(&release.spec));
        let untaken: Vec<_> = instance.untaken.iter().map(ToString::to_string).collect();
        for untaken in untaken {
            self.warn(&format!("not enforced for generation {generation}: {untaken}"));
        }
    }

    /// After an adopt: the supervisor before may have died while it changed limits.
    pub(super) fn set_all_again(&mut self) {
        let generations: Vec<_> = self.instances.keys().copied().collect();
        for generation in generations {
            let instance = self.instances.get(&generation);
            let release = instance.and_then(|instance| self.releases.get(&instance.release));
            let cap = release.and_then(|release| release.spec.memory.max);
            let above = |instance: &Instance| instance.is_above(cap.map(|cap| cap.0)).is_some();
            // The kernel would kill it for that.
            if !instance.is_some_and(above) {
                self.set_again(generation);
            }
        }
    }

    /// Says which instance uses more than the cap of `spec`, where one does and the kernel would
    /// kill it for that.
    pub(super) fn above_cap(&self, spec: &Spec) -> Option<String> {
        let cap = spec.memory.max.filter(|_| self.level.is_full())?;
        self.instances.values().filter(|instance| !instance.ended).find_map(|instance| {
            let bytes = Bytes(instance.is_above(Some(cap.0))?);
            let slot = instance.slot;
            Some(format!(
                "slot {slot} uses {bytes} of memory, more than a memory_max of {cap}: the kernel \
                 would kill it"
            ))
        })
    }

    /// What is answered when limits were changed: which of them do not hold, or that nothing was
    /// restarted.
    pub(super) fn adjusted(&self) -> Reply {
        let states = self.limit_states();
        let reason = |state: &LimitState| Some(format!("{}: {}", state.key, state.reason.clone()?));
        let refused = self.instances.values().any(|instance| !instance.untaken.is_empty());
        let reasons: Vec<_> = states.iter().filter_map(reason).collect();
        if refused {
            return Reply::Fault(Fault::new(FaultKind::Failed, reasons.join("; ")));
        }
        let count = self.instances.values().filter(|instance| !instance.ended).count();
        let mut note = format!("limits changed, running instances kept: {count}");
        if !reasons.is_empty() {
            note.push_str("; NOT enforced here: ");
            note.push_str(&reasons.join("; "));
        }
        Reply::Adjusted(note)
    }

    /// `cgroup.events` of a generation's group has changed.
    pub(super) fn hear_group(&mut self, generation: Generation) {
        if self.instances.get_mut(&generation).is_some_and(Instance::has_moved) {
            self.announce_moved(generation);
        }
        self.look_at_remains(generation);
    }

    /// Says that an instance has left its group, where no limit of its config is in its way.
    fn announce_moved(&mut self, generation: Generation) {
        let Some(instance) = self.instances.get(&generation) else { return };
        let Some(place) = &instance.moved_to else { return };
        let Instance { slot, pid, .. } = instance;
        let place = place.display();
        self.warn(&format!(
            "slot {slot} (pid {pid}) has moved itself to {place}: no limit of it is enforced \
             there, and what it uses is not seen"
        ));
    }

    /// Says once what is asked for and cannot be had.
    pub(super) fn announce_unenforced(&mut self) {
        let states = self.limit_states();
        let mut reasons: Vec<(String, Vec<String>)> = Vec::new();
        for LimitState { key, reason, .. } in states {
            let Some(reason) = reason else { continue };
            match reasons.iter_mut().find(|(other, _)| *other == reason) {
                Some((_, keys)) => keys.push(key),
                None => reasons.push((reason, vec![key])),
            }
        }
        for (reason, keys) in reasons {
            self.warn(&format!("not enforced: {} ({reason})", keys.join(", ")));
        }
    }
}

impl Instance {
    /// Why a limit does not hold for it, where it does not.
    fn escapes(&self, kind: LimitKind) -> Option<String> {
        if self.moved_to.is_some() && !self.ended {
            return Some(format!("slot {} has left its group", self.slot));
        }
        self.untaken.iter().find(|untaken| untaken.kind == kind).map(ToString::to_string)
    }

    /// Whether its group is empty since its main process is in another one now: root can do that,
    /// and whoever was given both groups. Says so once.
    fn has_moved(&mut self) -> bool {
        let (Some(group), Some(events)) = (&self.group, &self.events) else { return false };
        // Reading it is what ends the event.
        if read_populated(events.as_fd()).unwrap_or(true) || self.moved_to.is_some() {
            return false;
        }
        let place = group.left_by(self.pid);
        // Looked at last: as long as it is not reaped, its number is no other process's.
        self.moved_to =
            place.filter(|_| !self.ended && process::signal(self.pidfd.as_fd(), 0).is_ok());
        self.moved_to.is_some()
    }

    /// What it uses, where that is more than `cap`.
    fn is_above(&self, cap: Option<u64>) -> Option<u64> {
        let used = self.group.as_ref()?.usage().memory_bytes?;
        (used > cap?).then_some(used)
    }

    /// Which memory was short, where the kernel has killed in its group for that. To be asked
    /// before the group is removed.
    fn oom(&self) -> Option<Oom> {
        let group = self.group.as_ref()?;
        let counts = group.oom_counts().ok().filter(|counts| counts.killed > 0)?;
        let cap = group.memory_max().filter(|_| counts.own_limit > 0);
        Some(cap.map_or(Oom::Above, Oom::Cap))
    }

    /// Its exit with what its group tells of it.
    pub(super) fn explain(&self, exit: Exit) -> Exit {
        match exit {
            Exit::Signal { signal: nix::libc::SIGKILL, core, oom: None } => {
                Exit::Signal { signal: nix::libc::SIGKILL, core, oom: self.oom() }
            }
            Exit::Signal { .. } | Exit::Code(_) | Exit::Unseen => exit,
        }
    }
}
