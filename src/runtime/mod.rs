//! The supervisor: waits, reads facts, feeds the core, and carries out what it says.
//!
//! One thread, one loop. A turn is: wait for fds or the next deadline; make events of what is
//! there, facts before wishes; let the core decide; record what it remembers; carry out its
//! actions, whose answers are events of the same turn. Nothing else waits: no peer, no terminal and
//! no child. A restart and a reload read the config in between.

mod adopt;
mod announce;
mod answers;
mod bind;
mod clear;
mod control;
mod events;
mod executor;
mod facts;
mod handover;
mod instances;
mod keeper_link;
mod late;
mod level;
mod limits;
mod log;
mod looks;
mod memory;
mod node;
mod output;
mod place;
mod probe;
mod record;
mod release;
mod sockets;
mod sources;
mod spawn;
mod steer;
mod streams;
mod upgrade;
mod wishes;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::control::protocol::INTERFACE;
use crate::keeper::protocol::{Hello, ToKeeper};
use crate::policy::{Action, Event, Generation, Moment, Policy, ReleaseId, SlotId};
use crate::sys::journal::{self, Priority};
use crate::sys::poll::{Interest, Poll};
use crate::sys::spawn::Spawner;
use crate::sys::{Error, clock, parent, process};

use adopt::Parts;
use clear::Remains;
use instances::Instance;
use keeper_link::KeeperLink;
use level::Level;
use output::Output;
use record::Record;
use release::Release;
use sockets::Sockets;
use sources::Source;
use streams::Streams;

pub use memory::reclaim;
pub use upgrade::preflight;

/// How often memory is looked at where the kernel does not watch it.
const MEMORY_INTERVAL_MS: u64 = 1000;

/// How long the end waits for what hangs in the kernel, and for a terminal that stands still: the
/// core has been patient already.
const FINISH_MS: u64 = 1000;

/// Exit status of a supervisor that cannot go on; the keeper starts another.
const STATUS_FAILED: u8 = 1;

/// What a keeper is told of the app it keeps, and tells each of its supervisors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// The config file, absolute.
    pub config: PathBuf,
    /// `--env NAME`.
    pub overlay: Option<String>,
}

impl Arguments {
    /// As the keeper's arguments.
    pub fn to_words(&self) -> Vec<String> {
        let config = self.config.display().to_string();
        [Some(config), self.overlay.clone()].into_iter().flatten().collect()
    }

    /// From the keeper's arguments.
    fn read(words: &[String]) -> Option<Self> {
        let (config, rest) = words.split_first()?;
        Some(Self { config: PathBuf::from(config), overlay: rest.first().cloned() })
    }
}

/// A running supervisor.
#[derive(Debug)]
pub(crate) struct Runtime {
    keeper: KeeperLink,
    keeper_pidfd: OwnedFd,
    hello: Hello,
    directory: PathBuf,
    level: Level,
    releases: BTreeMap<ReleaseId, Release>,
    last_release: u64,
    sockets: Sockets,
    record: Record,
    spawner: Spawner,
    output: Output,
    log: log::Log,
    streams: Streams,
    policy: Policy,
    instances: BTreeMap<Generation, Instance>,
    remains: BTreeMap<Generation, Remains>,
    memory: memory::Memory,
    leaving: steer::Leaving,
    binding: bind::Binding,
    late: late::Late,
    probing: probe::Probing,
    node: node::Node,
    control: control::Control,
    poll: Poll,
    /// What the core is to hear in this turn.
    events: VecDeque<Event>,
    /// pmr's own OOM score is below an app's.
    oom_score_below: bool,
    /// Instances that said `READY=1` in this turn.
    heard_ready: Vec<Generation>,
    /// What the service manager was told.
    told: announce::Told,
    outputs_paused: bool,
    keeper_waits: bool,
    heartbeat_at_ms: u64,
    memory_at_ms: u64,
    /// What is wrong with the link to the keeper, which may be gone.
    broken: Option<Error>,
}

/// Supervises an app until all is over. Returns the exit status of this process, which is not the
/// service's: that one the keeper is told.
pub fn run() -> u8 {
    // It is run by its fd, whose number `ps` would show.
    never_mind(parent::set_name(c"pmr"));
    journal::say_panics();
    let runtime = match adopt::adopt() {
        Ok(Some(runtime)) => runtime,
        Ok(None) => return 0,
        Err(error) => {
            say_to_stderr(&error.to_string());
            return STATUS_FAILED;
        }
    };
    match runtime.run() {
        Ok(()) => 0,
        Err(error) => {
            say_to_stderr(&error.to_string());
            STATUS_FAILED
        }
    }
}

/// A line for whoever reads pmr's own stderr. Nobody being there is no trouble.
fn say_to_stderr(text: &str) {
    journal::say(Priority::Err, text);
}

/// For a failure that changes nothing: there is nobody to tell, or nothing more to do.
fn never_mind<T, E>(_: Result<T, E>) {}

impl Runtime {
    fn new(keeper: KeeperLink, parts: Parts) -> Result<Self, Error> {
        let poll = Poll::new()?;
        poll.add(keeper.as_fd(), Source::Keeper.token(), Interest::READABLE)?;
        let control = control::Control::new(parts.control);
        let now = clock::now();
        let log = log::Log::open(parts.hello.foreground);
        let mut runtime = Self {
            keeper,
            keeper_pidfd: process::pidfd_open(parts.hello.keeper_pid)?,
            hello: parts.hello,
            directory: parts.directory,
            level: parts.level,
            releases: parts.releases,
            last_release: parts.last_release,
            sockets: parts.sockets,
            record: parts.record,
            spawner: parts.spawner,
            output: parts.output,
            log,
            streams: Streams::of_own_unit(),
            policy: parts.policy,
            instances: BTreeMap::new(),
            remains: BTreeMap::new(),
            memory: memory::Memory::default(),
            leaving: steer::Leaving::default(),
            binding: bind::Binding::default(),
            late: late::Late::default(),
            probing: probe::Probing::default(),
            node: parts.node,
            control,
            poll,
            events: parts.events,
            oom_score_below: oom_score_below(),
            heard_ready: Vec::new(),
            told: announce::Told::default(),
            outputs_paused: false,
            keeper_waits: false,
            heartbeat_at_ms: now,
            memory_at_ms: now,
            broken: None,
        };
        runtime.watch_control();
        for remark in parts.remarks {
            runtime.warn(&remark);
        }
        for (generation, instance) in parts.instances {
            runtime.watch_instance(generation, &instance);
            runtime.adopt_wire(generation, &instance);
            runtime.watch_channel(generation);
            runtime.instances.insert(generation, instance);
        }
        runtime.look_for_all_sockets();
        runtime.set_all_again();
        runtime.end_strangers(parts.strangers);
        runtime.save();
        runtime.steer();
        runtime.perform_all(parts.actions);
        Ok(runtime)
    }

    /// Ends what the keeper or the kernel has and the core does not know.
    fn end_strangers(&mut self, strangers: Vec<(SlotId, Generation)>) {
        for (slot, generation) in strangers {
            match self.instances.get(&generation) {
                Some(instance) if !instance.ended => {
                    if let Err(error) = instance.kill() {
                        self.warn(&error.to_string());
                    }
                }
                Some(_) | None => self.clear(slot, generation, false),
            }
        }
    }

    fn run(mut self) -> Result<(), Error> {
        self.announce_start();
        self.turn();
        self.say(&ToKeeper::Adopted);
        // What follows is mostly sleep.
        never_mind(crate::sys::memory::give_back());
        let mut ready = Vec::new();
        loop {
            if let Some(error) = self.broken.take() {
                // A supervisor that fails harms nobody: the keeper starts another.
                if self.keeper_has_ended() {
                    self.end_everything();
                }
                return Err(error);
            }
            if let Some(code) = self.policy.over() {
                return self.finish(code);
            }
            self.poll.wait(self.next_wait(), &mut ready)?;
            for ready in ready.drain(..) {
                self.take(ready);
            }
            self.do_what_is_due();
            self.turn();
        }
    }

    /// One round of the core: until no answer leads to anything more.
    fn turn(&mut self) {
        self.events.push_back(Event::Tick);
        loop {
            // An answer may have made room for the next question of its client.
            self.work_on_all_calls();
            if self.events.is_empty() {
                break;
            }
            let mut events: Vec<Event> = self.events.drain(..).collect();
            // Facts before wishes; the order among each is kept.
            events.sort_by_key(|event| match event {
                Event::Fact(_) => 0,
                Event::Wish(..) => 1,
                Event::Tick => 2,
            });
            let now = Moment::from_ms(clock::now());
            let mut actions = Vec::new();
            for event in events {
                self.policy.handle(now, event, &mut actions);
            }
            self.save();
            self.take_heard();
            self.steer();
            self.perform_all(actions);
        }
        self.forget_releases();
        self.tell_manager();
        self.flush();
    }

    /// Records what the core remembers: always before its actions are carried out.
    fn save(&mut self) {
        let without_clone3 = !self.spawner.uses_clone3();
        let fleet = self.policy.saved();
        let hub = &self.node.hub;
        if let Err(error) = self.record.write(fleet, without_clone3, self.last_release, hub) {
            self.warn(&format!("the state was not recorded: {error}"));
        }
    }

    fn perform_all(&mut self, actions: Vec<Action>) {
        for action in actions {
            self.perform(action);
        }
    }

    /// Sends what waits for the keeper, the terminal and the clients, as far as there is room.
    fn flush(&mut self) {
        if let Err(error) = self.keeper.flush() {
            self.broken.get_or_insert(error);
        }
        let waits = self.keeper.is_waiting();
        if waits != self.keeper_waits {
            let interest = Interest { writable: waits, ..Interest::READABLE };
            let modified = self.poll.modify(self.keeper.as_fd(), Source::Keeper.token(), interest);
            self.keeper_waits = waits && modified.is_ok();
        }
        self.flush_output();
        self.flush_clients();
    }

    fn next_wait(&self) -> Option<Duration> {
        let now = clock::now();
        let memory = (!self.sampled().is_empty()).then_some(self.memory_at_ms);
        let deadlines = [
            self.policy.next_deadline().map(Moment::as_ms),
            Some(self.heartbeat_at_ms),
            self.next_retry_ms(),
            self.control.deadline_ms(),
            memory,
            self.memory.deadline_ms(),
            self.leaving.deadline_ms(now),
            self.sockets.next_look_ms(),
            self.binding.deadline_ms(),
            self.probing.deadline_ms(),
        ];
        let next = deadlines.into_iter().flatten().min();
        next.map(|at| Duration::from_millis(at.saturating_sub(now)))
    }

    fn do_what_is_due(&mut self) {
        let now = clock::now();
        if self.heartbeat_at_ms <= now {
            self.heartbeat_at_ms = now.saturating_add(self.hello.heartbeat_ms);
            self.say(&ToKeeper::Heartbeat);
            self.say_lost();
        }
        if self.memory_at_ms <= now {
            self.memory_at_ms = now.saturating_add(MEMORY_INTERVAL_MS);
            self.sample_memory();
        }
        self.reclaim_time(now);
        self.leave_time(now);
        self.hang_time(now);
        self.search_time(now);
        self.probe_time(now);
        self.retry_remains();
        self.control_time(now);
    }

    /// Tells the keeper something. A keeper that cannot be told is gone.
    fn say(&mut self, message: &ToKeeper) {
        if let Err(error) = self.keeper.say(message, &[]) {
            self.broken.get_or_insert(error);
        }
    }

    /// All is over: the last lines, the last answers, and the exit status to the keeper.
    fn finish(mut self, code: u8) -> Result<(), Error> {
        let until = clock::now().saturating_add(FINISH_MS);
        while !self.remains.is_empty() && clock::now() < until {
            self.finish_remains()?;
        }
        self.flush();
        while self.output.blocked().next().is_some() && clock::now() < until {
            self.poll.wait(Some(Duration::from_millis(FINISH_MS)), &mut Vec::new())?;
            self.flush_output();
        }
        if let Some(home) = self.level.home()
            && let Err(error) = home.remove()
        {
            self.warn(&error.to_string());
        }
        self.keeper.say(&ToKeeper::Exit { code }, &[])?;
        while self.keeper.is_waiting() {
            self.poll.wait(None, &mut Vec::new())?;
            self.keeper.flush()?;
        }
        Ok(())
    }

    /// Whether the link is broken because the keeper has died. It closes its fds a moment before it
    /// is seen to have ended.
    fn keeper_has_ended(&self) -> bool {
        let Ok(mut poll) = Poll::new() else { return false };
        let mut ready = Vec::new();
        let ended = poll
            .add(&self.keeper_pidfd, 0, Interest::READABLE)
            .and_then(|()| poll.wait(Some(Duration::from_millis(FINISH_MS)), &mut ready));
        ended.is_ok() && !ready.is_empty()
    }

    /// The keeper is gone, and with it whoever would reap and remove: nothing may be left behind.
    fn end_everything(&mut self) {
        let all: Vec<_> = self.instances.iter().map(|(id, it)| (it.slot, *id)).collect();
        for instance in self.instances.values() {
            never_mind(instance.kill());
        }
        for (slot, generation) in all {
            self.clear(slot, generation, false);
        }
        let until = clock::now().saturating_add(FINISH_MS);
        while !self.remains.is_empty() && clock::now() < until && self.finish_remains().is_ok() {}
        let home = self.level.home().and_then(|home| home.made()).map(Path::to_owned);
        let files = [INTERFACE, sockets::LOCK].map(|name| self.directory.join(name));
        for file in files {
            never_mind(std::fs::remove_file(file));
        }
        for directory in home.into_iter().chain([self.directory.clone()]) {
            never_mind(std::fs::remove_dir(directory));
        }
    }
}

/// Whether pmr's own OOM score is below that of an app: then an app's is set.
fn oom_score_below() -> bool {
    let score = std::fs::read_to_string("/proc/self/oom_score_adj").ok();
    score.and_then(|text| text.trim().parse::<i32>().ok()).is_some_and(|score| score < 0)
}
