//! Limits of instances' groups: from the config to the kernel, and what is said where they do not
//! hold.

use crate::control::protocol::LimitState;
use crate::policy::{Exit, Oom};
use crate::spec::Spec;
use crate::sys::cgroup::{Group, LimitKind, Limits, Untaken};

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
                let of_release = self.instances.values().filter(|it| it.release == release.id);
                let failed = of_release
                    .flat_map(|instance| &instance.untaken)
                    .find(|untaken| untaken.kind == kind)
                    .map(ToString::to_string);
                let reason = self.level.unenforced(kind).or(failed);
                let key = key(kind).to_owned();
                Some(LimitState { key, value, enforced: reason.is_none(), reason })
            })
            .collect()
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
