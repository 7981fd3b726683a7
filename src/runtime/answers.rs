//! What clients ask, answered: from the core's status and the kernel's figures, or by a wish.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::control::protocol::{
    AppEvent, AppState, Facts, Fault, FaultKind, Level as WireLevel, LogLine, Mode, UpgradeState,
    Usage,
};
use crate::control::server::{Call, Reply};
use crate::policy::{Event, Generation, Moment, Note, SlotId, SlotStatus, Wish};
use crate::spec::{ExecMode, Spec};
use crate::sys::{clock, procfs};

use super::Runtime;
use super::instances::Instance;
use super::level::Level;
use super::output::{Line, Stream};
use super::release::Release;
use super::wishes::Again;

/// Lines of a slot's standard error that `Describe` shows.
const STDERR_LINES: usize = 10;

/// CPU use is that since the last look where it was at least this long ago, and since the spawn
/// otherwise: a shorter span says nothing.
const CPU_SPAN_MS: u64 = 200;

impl Runtime {
    /// The release that a new slot would start.
    pub(super) fn current_release(&self) -> Option<&Release> {
        self.releases.get(&self.policy.saved().release())
    }

    /// Works on a call. It is answered here, or later by the core's outcome.
    pub(super) fn handle_call(&mut self, client: u64, call: &Call) {
        match *call {
            Call::Set { ref values } => self.set_limits(client, values),
            Call::List => {
                let app = Box::new(self.app_state(false));
                self.reply(client, Reply::App(app));
            }
            Call::Describe => {
                let app = Box::new(self.app_state(true));
                self.reply(client, Reply::App(app));
            }
            Call::Start { slot } => self.wish(client, Wish::Start { slot: slot.map(SlotId) }),
            Call::Stop { slot } => self.wish(client, Wish::Stop { slot: slot.map(SlotId) }),
            Call::Scale { count } => self.wish(client, Wish::Scale { count }),
            Call::Signal { slot, signal } => {
                self.wish(client, Wish::Signal { slot: slot.map(SlotId), signal });
            }
            Call::Reset { slot } => self.wish(client, Wish::Reset { slot: slot.map(SlotId) }),
            Call::Restart { slot } => self.roll(client, Again::Restart(slot.map(SlotId))),
            Call::Reload {} => self.roll(client, Again::Reload),
            // Answered by what happens from now on.
            Call::Watch => {}
            Call::Env { slot } => {
                let reply = self.environment(SlotId(slot));
                self.reply(client, reply);
            }
            Call::Logs { slot, lines, .. } => {
                let count = usize::try_from(lines).unwrap_or(usize::MAX);
                let lines = self.output.last_lines(slot.map(SlotId), count);
                let lines = lines.into_iter().map(|(slot, line)| log_line(slot, line)).collect();
                self.reply(client, Reply::Lines(lines));
            }
            Call::Upgrade => self.begin_upgrade(client),
        }
    }

    fn wish(&mut self, client: u64, wish: Wish) {
        let ticket = self.control.ticket(client);
        self.events.push_back(Event::Wish(Some(ticket), wish));
    }

    fn roll(&mut self, client: u64, again: Again) {
        // Refused here where it would be refused there: nothing is read for it.
        if let Some((kind, _)) = self.policy.status(Moment::from_ms(clock::now())).roll {
            let fault = Fault::new(FaultKind::Busy, format!("a {kind} is running"));
            return self.reply(client, Reply::Fault(fault));
        }
        let ticket = self.control.ticket(client);
        if let Err(error) = self.read_again(ticket, again) {
            self.control.tickets.remove(&ticket);
            let fault = Fault::new(FaultKind::Invalid, error.to_string());
            self.reply(client, Reply::Fault(fault));
        }
    }

    /// The app as the wire has it.
    fn app_state(&mut self, describe: bool) -> AppState {
        let now = clock::now();
        let usage = self.usage(now);
        let status = self.policy.status(Moment::from_ms(now));
        let slots = status.slots.iter().filter(|_| describe);
        let stderr = slots.map(|slot| (slot.slot, self.stderr(slot))).collect();
        AppState::from_status(&status, &self.facts(now, usage, stderr))
    }

    fn facts(
        &self,
        now: u64,
        usage: BTreeMap<Generation, Usage>,
        stderr: BTreeMap<SlotId, Vec<String>>,
    ) -> Facts {
        let release = self.current_release();
        let spec = release.map(|release| &release.spec);
        let path = |of: fn(&Release) -> &PathBuf| {
            release.map(|release| of(release).display().to_string()).unwrap_or_default()
        };
        let uptime_ms = now.saturating_sub(self.hello.started_at_ms);
        let limits = self.limit_states();
        Facts {
            name: self.app_name(),
            mode: match spec.map(|spec| spec.exec_mode) {
                Some(ExecMode::Cluster) => Mode::Cluster,
                Some(ExecMode::Fork) | None => Mode::Fork,
            },
            level: match self.level {
                Level::Full(_) => WireLevel::Full,
                Level::Tracking(_) => WireLevel::Tracking,
                Level::Bare { .. } => WireLevel::Bare,
            },
            config: path(|release| &release.config),
            cwd: path(|release| &release.directory),
            command: spec.map(|spec| spec.program.argv.clone()).unwrap_or_default(),
            listen: self.listens(spec),
            balance: release.and_then(|release| self.sockets.state(release)),
            traffic: self.sockets.traffic(),
            memory_limit_bytes: spec.and_then(|it| it.memory.restart_above).map(|it| it.0),
            memory_cap_enforced: self.level.is_full()
                && limits.iter().all(|it| it.enforced || it.key != "memory_max"),
            limits,
            started_at_ms: clock::time_of_day().saturating_sub(uptime_ms),
            uptime_ms,
            supervisor_pid: std::process::id(),
            keeper_pid: self.hello.keeper_pid,
            supervisor_deaths: self.hello.deaths_total,
            upgrade: self.hello.upgrade.as_ref().map(|upgrade| UpgradeState {
                from: upgrade.from.clone(),
                to: upgrade.to.clone(),
                rolled_back: upgrade.rolled_back,
            }),
            journal: if self.hello.foreground { None } else { self.streams.place() },
            usage,
            stderr,
        }
    }

    /// Where the app listens, as far as it is known: what its config says until it does.
    fn listens(&self, spec: Option<&Spec>) -> Vec<String> {
        let now = self.sockets.addresses();
        let configured = spec.map(|spec| spec.listen.iter().map(ToString::to_string).collect());
        if now.is_empty() { configured.unwrap_or_default() } else { now }
    }

    /// What each instance uses, asked of the kernel now.
    fn usage(&mut self, now: u64) -> BTreeMap<Generation, Usage> {
        let alive = self.instances.iter_mut().filter(|(_, instance)| !instance.ended);
        alive.map(|(generation, instance)| (*generation, used(instance, now))).collect()
    }

    /// What the instance that failed last said last; where none did, the one that runs.
    fn stderr(&self, slot: &SlotStatus) -> Vec<String> {
        let failed = slot.last_exit.as_ref().filter(|(exit, _)| !exit.asked);
        let running = || slot.instance.as_ref().map(|instance| instance.generation);
        let meant = failed.map(|(exit, _)| exit.generation).or_else(running);
        let lines = meant.map(|it| self.output.last_errors(slot.slot, it, STDERR_LINES));
        lines.unwrap_or_default()
    }

    fn environment(&self, slot: SlotId) -> Reply {
        let of_slot = |(_, it): &(&Generation, &Instance)| it.slot == slot && !it.ended;
        // Of two, the older one is leaving.
        let Some((_, instance)) = self.instances.iter().rfind(of_slot) else {
            let message = format!("slot {slot} has no instance");
            return Reply::Fault(Fault::new(FaultKind::NoSuchSlot, message));
        };
        match procfs::environment(instance.pid) {
            Ok(environment) => Reply::Environment(environment),
            Err(error) => Reply::Fault(Fault::new(FaultKind::Failed, error.to_string())),
        }
    }

    /// Tells those who watch what happened.
    pub(super) fn tell_watchers(&mut self, note: &Note) {
        let now = clock::now();
        let event = AppEvent::from_note(note, clock::time_of_day());
        for client in self.control.clients.values_mut() {
            if matches!(client.connection.in_flight(), Some(Call::Watch)) {
                client.connection.reply(now, Reply::Event(event.clone()));
            }
        }
    }

    /// Sends those who follow the output its new lines.
    pub(super) fn tell_followers(&mut self, slot: SlotId, lines: &[Line]) {
        let now = clock::now();
        for client in self.control.clients.values_mut() {
            let follows = match client.connection.in_flight() {
                Some(Call::Logs { slot: of, follow: true, .. }) => {
                    of.is_none_or(|of| SlotId(of) == slot)
                }
                Some(_) | None => false,
            };
            if follows {
                let lines = lines.iter().map(|line| log_line(slot, line.clone())).collect();
                client.connection.reply(now, Reply::Lines(lines));
            }
        }
    }
}

fn log_line(slot: SlotId, line: Line) -> LogLine {
    let stream = match line.stream {
        Stream::Out => "stdout",
        Stream::Err => "stderr",
    };
    LogLine {
        at_ms: line.at_ms,
        slot: slot.0,
        generation: line.generation.0,
        stream: stream.to_owned(),
        text: line.text,
    }
}

/// What an instance uses. The kernel's count has also what of it has ended.
fn used(instance: &mut Instance, now: u64) -> Usage {
    let counted = instance.counted();
    let sampled = if counted.is_some() { None } else { Some(instance.sample()) };
    let cpu = counted.and_then(|usage| usage.cpu).or(sampled.map(|usage| usage.cpu));
    let cpu = cpu.unwrap_or_default();
    let (cpu_before, at) = match instance.sampled {
        Some((cpu, at)) if now.saturating_sub(at) >= CPU_SPAN_MS => (cpu, at),
        Some(_) | None => (std::time::Duration::ZERO, instance.spawned_at_ms),
    };
    instance.sampled = Some((cpu, now));
    let span_ms = now.saturating_sub(at).max(1);
    let used_us = cpu.saturating_sub(cpu_before).as_micros();
    // 1 ms of a second is 0.1 %; tenths are what is shown.
    let permille = used_us.checked_div(span_ms.into()).unwrap_or_default();
    let permille = u32::try_from(permille).unwrap_or(u32::MAX);
    let memory = counted.and_then(|usage| usage.memory_bytes);
    Usage {
        memory_bytes: memory.or(sampled.map(|usage| usage.memory_bytes)),
        memory_peak_bytes: counted.and_then(|usage| usage.memory_peak_bytes),
        tasks: counted.and_then(|usage| usage.tasks),
        cpu_percent: Some(f64::from(permille) / 10.0),
        exact: counted.is_some(),
    }
}
