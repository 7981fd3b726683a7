//! The loop of the keeper. Each wake looks at everything: signals, what the supervisor says, ended
//! children, deadlines. So no event can be missed, and none has to say what it was.
//!
//! The link is read before children are reaped, so a `Born` is known before its exit; an instance
//! that ends before even that is found among the strangers of the table.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::protocol::{
    self, Hello, LINK_FD, PACKET_BYTES_MAX, ToKeeper, ToSupervisor, UpgradeOutcome,
};
use super::stop::{Phase, Removal, Stop};
use super::table::{Deaths, Outgoing, Packet, Table, Violation};
use super::{Options, Program};
use crate::sys::journal::{self, Priority};
use crate::sys::link::{self, Link, Received};
use crate::sys::memory;
use crate::sys::notify::{self, Notice, Notifier};
use crate::sys::parent::{self, Ending, Reaped};
use crate::sys::poll::{Interest, Poll};
use crate::sys::signal::{self, Signals};
use crate::sys::{self, Error, clock};

/// How long a supervisor may be silent: a quarter of this, as of systemd's watchdog where that is
/// on. A new one has then been started well before systemd would lose its patience.
const WATCHDOG: Duration = Duration::from_secs(30);

/// Packets read before children are looked at again; a supervisor could talk for ever.
const PACKETS_PER_TURN: usize = 256;

/// Supervisors are started no faster than this, even where each completes its adopt and then dies.
const START_SPACING_MS: u64 = 100;

const SIGNALS_TOKEN: u64 = 0;
const LINK_TOKEN: u64 = 1;

/// The supervisor of the moment.
#[derive(Debug)]
pub(super) struct Supervisor {
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
    /// None once it said something that it may not say, or closed it.
    pub(super) link: Option<Link>,
    pub(super) heard_at: u64,
    /// SIGKILL was sent.
    pub(super) killed: bool,
    /// Its death is wanted, and no fault of it.
    pub(super) dismissed: bool,
    queue: VecDeque<Outgoing>,
    /// Whether the loop waits for room on the link.
    waits: bool,
}

/// The keeper.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) options: Options,
    pub(super) program: Program,
    pub(super) table: Table,
    pub(super) deaths: Deaths,
    pub(super) supervisor: Option<Supervisor>,
    pub(super) phase: Phase,
    pub(super) stop: Option<Stop>,
    pub(super) removal: Removal,
    pub(super) started_at: u64,
    /// How the last upgrade went.
    pub(super) upgrade: Option<UpgradeOutcome>,
    /// The binary to go back to while no supervisor of the new one has completed an adopt.
    pub(super) previous: Option<OwnedFd>,
    /// An upgrade that was asked for in this turn.
    pub(super) wanted: Option<(String, OwnedFd)>,
    /// There was no child when last looked.
    pub(super) childless: bool,
    poll: Poll,
    signals: Signals,
    /// Signals come from a person at a terminal.
    terminal: bool,
    pub(super) notifier: Notifier,
    /// The service manager was told that the app is ready.
    pub(super) ready: bool,
    silence_ms: u64,
    /// How often the service manager wants to be pinged, and when it is next.
    pub(super) ping: Option<(u64, u64)>,
    last_start: Option<u64>,
    /// What the limit on open files was before it was raised.
    pub(super) file_limit: Option<(u64, u64)>,
}

impl Keeper {
    /// A keeper of nothing, which is to start its first supervisor.
    pub(super) fn new(options: Options, program: Program) -> sys::Result<Self> {
        parent::set_name(c"pmr-keeper")?;
        journal::say_panics();
        parent::become_subreaper()?;
        signal::ignore_pipe()?;
        signal::keep_statuses()?;
        // USR1 and USR2 are blocked too: they mean nothing, and would end the keeper.
        let signals = Signals::block(&[
            libc::SIGTERM,
            libc::SIGINT,
            libc::SIGHUP,
            libc::SIGQUIT,
            libc::SIGCHLD,
            libc::SIGUSR1,
            libc::SIGUSR2,
        ])?;
        let poll = Poll::new()?;
        poll.add(&signals, SIGNALS_TOKEN, Interest::READABLE)?;
        let now = clock::now();
        let watchdog = notify::watchdog();
        let quarter_ms =
            |watchdog: Duration| u64::try_from(watchdog.as_millis() / 4).unwrap_or(u64::MAX).max(1);
        let keeper = Self {
            options,
            program,
            table: Table::default(),
            deaths: Deaths::default(),
            supervisor: None,
            phase: Phase::Serving { start_at: now },
            stop: None,
            removal: Removal::default(),
            started_at: now,
            upgrade: None,
            previous: None,
            wanted: None,
            childless: false,
            poll,
            signals,
            terminal: std::fs::File::open("/dev/tty").is_ok(),
            notifier: Notifier::of_environment(),
            ready: false,
            silence_ms: quarter_ms(watchdog.unwrap_or(WATCHDOG)),
            ping: watchdog.map(|watchdog| (quarter_ms(watchdog), now)),
            last_start: None,
            file_limit: Some(parent::raise_file_limit()?),
        };
        if protocol::encode(&ToSupervisor::Hello(keeper.hello())).len() > PACKET_BYTES_MAX {
            return Err(Error::new("hand the arguments over", rustix::io::Errno::TOOBIG));
        }
        Ok(keeper)
    }

    /// Keeps until the app is over. Returns the exit status of the service.
    pub(super) fn run(mut self) -> sys::Result<u8> {
        let mut ready = Vec::new();
        loop {
            self.turn(clock::now());
            if let Some(code) = self.over(clock::now()) {
                self.removal.perform();
                return Ok(code);
            }
            let wait = self.deadline().map(|at| at.saturating_sub(clock::now()));
            self.poll.wait(wait.map(Duration::from_millis), &mut ready)?;
        }
    }

    fn turn(&mut self, now: u64) {
        while let Some(signal) = self.signals.next() {
            self.handle_signal(signal.signo, now);
        }
        self.read_link(PACKETS_PER_TURN, now);
        self.reap(now);
        self.ping(now);
        self.turn_stop(now);
        if let Phase::Serving { start_at } = self.phase {
            self.serve(start_at, now);
            if let Some((path, binary)) = self.wanted.take() {
                self.perform_upgrade(&path, &binary);
            }
        }
        self.flush();
        self.flush_notices();
    }

    /// When something is to be done without an event.
    fn deadline(&self) -> Option<u64> {
        let silence = match (&self.phase, &self.supervisor) {
            (Phase::Serving { start_at }, None) => Some(*start_at),
            (Phase::Serving { .. }, Some(supervisor)) if !supervisor.killed => {
                Some(supervisor.heard_at.saturating_add(self.silence_ms))
            }
            _ => None,
        };
        let ping = self.ping.map(|(_, at)| at);
        [silence, ping, self.stop_deadline()].into_iter().flatten().min()
    }

    fn handle_signal(&mut self, signo: i32, now: u64) {
        match wish(signo, self.terminal, self.stop.is_some()) {
            Some(Wish::Stop { at_once }) => self.ask_to_stop(at_once, now),
            Some(Wish::Reload) => self.push(Outgoing::Reload),
            None => {}
        }
    }

    /// Replaces a supervisor that is dead or silent.
    fn serve(&mut self, start_at: u64, now: u64) {
        let limit = self.silence_ms;
        match &mut self.supervisor {
            None if now >= start_at => {
                self.last_start = Some(now);
                if let Err(error) = self.start(now) {
                    self.mourn(&error.to_string(), now);
                }
            }
            Some(supervisor)
                if !supervisor.killed && now.saturating_sub(supervisor.heard_at) >= limit =>
            {
                let pid = supervisor.pid;
                supervisor.kill();
                say(&format!("supervisor (pid {pid}) said nothing for {limit} ms; killed it"));
            }
            None | Some(_) => {}
        }
    }

    fn start(&mut self, now: u64) -> sys::Result<()> {
        let (link, theirs) = Link::pair()?;
        self.poll.add(&link, LINK_TOKEN, Interest::READABLE)?;
        let Program { binary, supervise, .. } = &self.program;
        let started = parent::start(binary.as_fd(), "pmr", supervise, theirs.as_fd(), LINK_FD)?;
        let mut supervisor = Supervisor::new(started.pid, started.pidfd, Some(link), now);
        supervisor.queue = self.table.hand_over();
        // `stopping` in the Hello does not say that somebody lost patience.
        if self.stop.is_some_and(|stop| stop.at_once) {
            supervisor.queue.push_back(Outgoing::Stop);
        }
        self.supervisor = Some(supervisor);
        self.childless = false;
        Ok(())
    }

    /// Goes on with a supervisor that is to be ended, its link included.
    pub(super) fn dismiss(&mut self, mut supervisor: Supervisor) {
        supervisor.dismissed = true;
        supervisor.kill();
        if let Some(link) = &supervisor.link
            && let Err(error) = self.poll.add(link, LINK_TOKEN, Interest::READABLE)
        {
            say(&error.to_string());
        }
        self.supervisor = Some(supervisor);
    }

    /// A supervisor could not be started, or has died.
    fn mourn(&mut self, what: &str, now: u64) {
        self.deaths.count();
        if self.deaths.too_many() {
            self.roll_back();
            self.table.withhold_state(self.deaths);
        }
        let spaced = self.last_start.map_or(now, |at| at.saturating_add(START_SPACING_MS));
        let start_at = now.saturating_add(self.deaths.backoff_ms()).max(spaced);
        self.phase = Phase::Serving { start_at };
        let text = match start_at.saturating_sub(now) {
            0 => format!("{what}; starting another"),
            wait => format!("{what}; starting another in {wait} ms"),
        };
        say(&text);
        self.notify(Notice::Status(text));
    }

    fn reap(&mut self, now: u64) {
        loop {
            match parent::reap() {
                Ok(Reaped::One { pid, ending }) => self.bury(pid, ending, now),
                Ok(reaped) => {
                    self.childless = reaped == Reaped::NoChildren;
                    return;
                }
                Err(error) => return say(&error.to_string()),
            }
        }
    }

    fn bury(&mut self, pid: u32, ending: Ending, now: u64) {
        if self.supervisor.as_ref().is_some_and(|supervisor| supervisor.pid == pid) {
            // Its fds are closed: what it said is all there, with the end behind it.
            self.read_link(usize::MAX, now);
            let dismissed = self.supervisor.take().is_some_and(|one| one.dismissed);
            self.table.forget_strangers();
            match self.phase {
                Phase::Serving { .. } if dismissed => self.phase = Phase::Serving { start_at: now },
                Phase::Serving { .. } => {
                    self.mourn(&format!("supervisor (pid {pid}) {ending}"), now);
                }
                Phase::Wills { .. } | Phase::Ending { .. } => {}
            }
        } else if let Some(generation) = self.table.ended(pid, ending, now) {
            self.push_exited(generation);
        }
    }

    /// Takes what the supervisor says, at most `count` packets.
    fn read_link(&mut self, count: usize, now: u64) {
        for _ in 0..count {
            let Some(supervisor) = &mut self.supervisor else { return };
            let Some(link) = &mut supervisor.link else { return };
            let fault = match link.receive() {
                Ok(Received::Packet { bytes, fds }) => {
                    supervisor.heard_at = now;
                    match protocol::decode(&bytes) {
                        Ok(packet) => self.obey(packet, fds, now).map_err(|v| v.to_string()),
                        Err(error) => Err(error.to_string()),
                    }
                }
                Ok(Received::Empty) => return,
                Ok(Received::Closed) => Err(String::new()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(fault) = fault {
                return self.distrust(&fault);
            }
        }
    }

    /// Ends a supervisor that cannot be talked with. What else it said is not listened to.
    fn distrust(&mut self, fault: &str) {
        let Some(supervisor) = &mut self.supervisor else { return };
        supervisor.link = None;
        if !fault.is_empty() {
            say(&format!("supervisor (pid {}) is killed: {fault}", supervisor.pid));
        }
        // After an `Exit` it may take its time: the end has a deadline for it.
        if !matches!(self.phase, Phase::Ending { .. }) {
            supervisor.kill();
        }
    }

    fn obey(&mut self, packet: ToKeeper, fds: Vec<OwnedFd>, now: u64) -> Result<(), Violation> {
        if !matches!(self.phase, Phase::Serving { .. }) {
            return Ok(());
        }
        let dismissed = self.supervisor.as_ref().is_some_and(|one| one.dismissed);
        match packet {
            ToKeeper::Heartbeat | ToKeeper::Unknown => {}
            // What the supervisor of the binary before still said of itself.
            ToKeeper::Adopted | ToKeeper::Upgrade { .. } if dismissed => {}
            ToKeeper::Adopted => {
                self.deaths.since_adopted = 0;
                self.previous = None;
                // What follows is mostly sleep. What cannot be given back stays.
                memory::give_back().unwrap_or_default();
            }
            ToKeeper::Store { name, generation } => {
                let [fd] = exactly(fds)?;
                self.table.store(name, generation, fd)?;
            }
            ToKeeper::Park { name, fd_name } => {
                let [fd] = exactly(fds)?;
                self.park(name, fd_name, fd)?;
            }
            ToKeeper::Drop { name } => self.drop_fd(&name),
            ToKeeper::Born { child } => {
                let [pidfd, pipe] = exactly(fds)?;
                let reaped = parent::is_reaped(&pidfd)
                    .map_err(|_| Violation("an instance was born without a pidfd"))?;
                let generation = child.generation;
                if self.table.born(child, pidfd, reaped, now)? {
                    self.push_exited(generation);
                }
                // It stands in the table: let it go. One that was killed meanwhile does not read.
                rustix::io::write(&pipe, b"g").unwrap_or_default();
            }
            ToKeeper::Will { generation, will } => self.table.set_will(generation, will)?,
            ToKeeper::Ack { generation } => self.table.acknowledge(generation)?,
            ToKeeper::Remove { files, directories } => {
                self.removal = Removal { files, directories };
            }
            ToKeeper::Notify { notice } => {
                let is_ready = matches!(notice, protocol::Notice::Ready);
                self.relay(notice);
                if is_ready {
                    // As above: a start or a reload is over.
                    memory::give_back().unwrap_or_default();
                }
            }
            ToKeeper::Upgrade { path } => {
                let [binary] = exactly(fds)?;
                self.wanted = Some((path, binary));
            }
            ToKeeper::Exit { code } => self.enter_ending(code, now),
        }
        Ok(())
    }

    /// Puts something into the queue, unless it is to be said anyway.
    pub(super) fn push(&mut self, outgoing: Outgoing) {
        if let Some(supervisor) = &mut self.supervisor
            && !supervisor.queue.contains(&outgoing)
        {
            supervisor.queue.push_back(outgoing);
        }
    }

    fn push_exited(&mut self, generation: u64) {
        let child = Outgoing::Child(generation);
        if !self.supervisor.as_ref().is_some_and(|one| one.queue.contains(&child)) {
            self.push(Outgoing::Exited(generation));
        }
    }

    /// Says what fits on the link. The rest waits for room there.
    fn flush(&mut self) {
        let Some(mut supervisor) = self.supervisor.take() else { return };
        let waits = supervisor.flush(|outgoing| self.packet(outgoing));
        if let Some(link) = &supervisor.link
            && waits != supervisor.waits
        {
            let interest = Interest { writable: waits, ..Interest::READABLE };
            match self.poll.modify(link, LINK_TOKEN, interest) {
                Ok(()) => supervisor.waits = waits,
                Err(error) => say(&error.to_string()),
            }
        }
        self.supervisor = Some(supervisor);
    }

    fn packet(&self, outgoing: &Outgoing) -> Option<Packet<'_>> {
        match outgoing {
            Outgoing::Hello => Some((ToSupervisor::Hello(self.hello()), None)),
            Outgoing::Begin => Some((ToSupervisor::Begin, None)),
            Outgoing::Stop => {
                self.stop.map(|stop| (ToSupervisor::Stop { now: stop.at_once }, None))
            }
            Outgoing::Reload => Some((ToSupervisor::Reload, None)),
            Outgoing::Child(_) | Outgoing::Fd(_) | Outgoing::Exited(_) => {
                self.table.packet(outgoing)
            }
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            version: protocol::VERSION,
            keeper_pid: std::process::id(),
            started_at_ms: self.started_at,
            arguments: self.options.arguments.clone(),
            foreground: self.options.foreground,
            deaths: self.deaths.since_adopted,
            deaths_total: self.deaths.total,
            reduced: self.deaths.too_many(),
            stopping: self.stop.is_some(),
            heartbeat_ms: (self.silence_ms / 3).max(1),
            manager: self.notifier.has_manager(),
            ready: self.ready,
            upgrade: self.upgrade.clone(),
            file_limit: self.file_limit,
        }
    }
}

impl Supervisor {
    pub(super) fn new(pid: u32, pidfd: OwnedFd, link: Option<Link>, now: u64) -> Self {
        let queue = VecDeque::new();
        let (killed, dismissed, waits) = (false, false, false);
        Self { pid, pidfd, link, heard_at: now, killed, dismissed, queue, waits }
    }

    /// Sends from the queue until it is empty or the link is full. Says whether there is to be
    /// waited for room.
    fn flush<'a>(&mut self, packet: impl Fn(&Outgoing) -> Option<Packet<'a>>) -> bool {
        while let (Some(link), Some(next)) = (&self.link, self.queue.front()) {
            if let Some((packet, fd)) = packet(next) {
                match link.send(&protocol::encode(&packet), fd.as_slice()) {
                    Ok(()) => {}
                    Err(error) if link::is_full(&error) => return true,
                    Err(error) if link::is_choked(&error) => return false,
                    // It is gone, and will be found to be.
                    Err(_) => self.queue.clear(),
                }
            }
            self.queue.pop_front();
        }
        false
    }

    pub(super) fn kill(&mut self) {
        self.killed = true;
        if let Err(error) = parent::signal(&self.pidfd, libc::SIGKILL) {
            say(&error.to_string());
        }
    }
}

/// What somebody asks for with a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Stop { at_once: bool },
    Reload,
}

/// The meaning of a signal. At a terminal a second Ctrl-C means now, and the end of the terminal
/// is the end of the app.
fn wish(signo: i32, terminal: bool, stopping: bool) -> Option<Wish> {
    match signo {
        libc::SIGTERM => Some(Wish::Stop { at_once: false }),
        libc::SIGINT => Some(Wish::Stop { at_once: terminal && stopping }),
        libc::SIGQUIT => Some(Wish::Stop { at_once: true }),
        libc::SIGHUP if terminal => Some(Wish::Stop { at_once: false }),
        libc::SIGHUP => Some(Wish::Reload),
        _ => None,
    }
}

/// The fds beside a packet, where it has as many as it must.
fn exactly<const N: usize>(fds: Vec<OwnedFd>) -> Result<[OwnedFd; N], Violation> {
    fds.try_into().map_err(|_| Violation("a packet came with too few or too many fds"))
}

/// One line for a person. It is lost where it cannot be written at once: a keeper that waits for a
/// journal or a terminal would be a keeper that keeps nothing.
pub(super) fn say(text: &str) {
    journal::say(Priority::Warning, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_that_does_not_listen_is_told_the_rest_when_it_does() {
        let (link, mut theirs) = Link::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut supervisor = Supervisor::new(1, null.into(), Some(link), 0);
        supervisor.queue = (0..500).map(Outgoing::Exited).collect();
        let packet = |outgoing: &Outgoing| {
            let Outgoing::Exited(generation) = outgoing else { panic!("{outgoing:?}") };
            let name = "x".repeat(32 * 1024);
            // Every third is gone meanwhile.
            let packet = ToSupervisor::Fd { name, generation: Some(*generation) };
            (generation % 3 != 0).then_some((packet, None))
        };
        assert!(supervisor.flush(packet), "the link is never full");
        let mut told = Vec::new();
        loop {
            match theirs.receive().unwrap() {
                Received::Packet { bytes, .. } => match protocol::decode(&bytes).unwrap() {
                    ToSupervisor::Fd { generation, .. } => told.push(generation.unwrap()),
                    other => panic!("{other:?}"),
                },
                Received::Empty if supervisor.queue.is_empty() => break,
                Received::Empty => assert!(supervisor.flush(packet) || supervisor.queue.is_empty()),
                Received::Closed => panic!("closed"),
            }
        }
        assert_eq!(told, (0..500).filter(|n| n % 3 != 0).collect::<Vec<_>>());
        drop(theirs);
        supervisor.queue = (0..9).map(Outgoing::Exited).collect();
        assert!(!supervisor.flush(packet));
        assert!(supervisor.queue.is_empty(), "a dead one is told nothing");
    }

    #[test]
    fn signals_mean_what_a_person_means_by_them() {
        let (later, now) =
            (Some(Wish::Stop { at_once: false }), Some(Wish::Stop { at_once: true }));
        for (signo, terminal, stopping, meaning) in [
            (libc::SIGTERM, false, false, later),
            (libc::SIGTERM, true, true, later),
            (libc::SIGINT, true, false, later),
            (libc::SIGINT, true, true, now),
            (libc::SIGINT, false, true, later),
            (libc::SIGQUIT, false, false, now),
            (libc::SIGHUP, false, false, Some(Wish::Reload)),
            (libc::SIGHUP, true, false, later),
            (libc::SIGUSR1, true, true, None),
            (libc::SIGCHLD, false, false, None),
        ] {
            assert_eq!(wish(signo, terminal, stopping), meaning, "{signo} {terminal} {stopping}");
        }
    }
}
