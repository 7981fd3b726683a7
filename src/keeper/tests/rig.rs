//! A real keeper in a process of its own, and supervisors that do what the test says.
//!
//! Both are this very test binary, started again. A supervisor connects to the test's socket and
//! relays: what the keeper says goes to the test, what the test says goes to the keeper. So the
//! test itself is the supervisor, except that instances are cloned in that process, and that it
//! sends the heartbeats.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use super::super::process::Keeper;
use super::super::protocol::{self, Child, Exited, Hello, ToKeeper, ToSupervisor, Will};
use super::super::{Options, Program, ended, upgrade};
use crate::sys::link::{self, Link, Received};
use crate::sys::parent;
use crate::sys::poll::{Interest, Poll};
use crate::sys::testing::{self, Directory, eventually};

const CONTROL: &str = "PMR_TEST_CONTROL";
const HEARTBEAT_MS: u64 = 100;

/// What a test says to the relay itself.
#[derive(Serialize, Deserialize)]
#[serde(tag = "relay", rename_all = "snake_case")]
enum Relay {
    /// Its first words.
    Started { pid: u32 },
    /// Clone an instance.
    Spawn { arguments: Vec<String> },
    /// The instance; beside it its pidfd and the write end of its pipe.
    Spawned { pid: u32 },
    /// Send these bytes as they are.
    Raw { bytes: Vec<u8> },
}

fn program() -> Program {
    let words = |name: &str| {
        ["--exact", "--ignored", "--nocapture", "--test-threads=1"]
            .iter()
            .map(|&word| word.to_owned())
            .chain([format!("keeper::tests::{name}")])
            .collect::<Vec<_>>()
    };
    let mut resume = vec!["pmr".to_owned()];
    resume.extend(words("keeper_process"));
    let binary = parent::own_binary().unwrap();
    Program { binary, supervise: words("supervisor_process"), resume }
}

/// The body of the keeper process. With a number as the last argument it resumes.
pub(super) fn keeper_process() -> Option<u8> {
    std::env::var_os(CONTROL)?;
    let number = std::env::args().next_back().and_then(|last| last.parse().ok());
    let options = Options { arguments: vec!["track".to_owned()], foreground: true };
    Some(ended(match number {
        Some(number) => upgrade::resume(number, program()),
        None => Keeper::new(options, program()),
    }))
}

/// The body of a supervisor process.
pub(super) fn supervisor_process() -> Option<u8> {
    let path = std::env::var_os(CONTROL)?;
    let mut keeper = Link::from_fd(parent::take(protocol::LINK_FD).unwrap());
    let address = SocketAddrUnix::new(Path::new(&path)).unwrap();
    let flags = SocketFlags::CLOEXEC;
    let kind = SocketType::SEQPACKET;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
    if rustix::net::connect(&socket, &address).is_err() {
        return Some(1);
    }
    rustix::io::ioctl_fionbio(&socket, true).unwrap();
    let mut test = Link::from_fd(socket);
    let pid = std::process::id();
    test.send(&protocol::encode(&Relay::Started { pid }), &[]).unwrap();
    let mut poll = Poll::new().unwrap();
    poll.add(&keeper, 0, Interest::READABLE).unwrap();
    poll.add(&test, 1, Interest::READABLE).unwrap();
    loop {
        patiently(&keeper, &protocol::encode(&ToKeeper::Heartbeat), &[]);
        if !relay(&mut keeper, &mut test) {
            return Some(1);
        }
        poll.wait(Some(Duration::from_millis(HEARTBEAT_MS)), &mut Vec::new()).unwrap();
    }
}

/// Carries what waits in both directions. False where one end is gone.
fn relay(keeper: &mut Link, test: &mut Link) -> bool {
    loop {
        match keeper.receive().unwrap() {
            Received::Packet { bytes, fds } => patiently(test, &bytes, &fds),
            Received::Empty => break,
            Received::Closed => return false,
        }
    }
    loop {
        match test.receive().unwrap() {
            Received::Packet { bytes, fds } => match serde_json::from_slice::<Relay>(&bytes) {
                Ok(Relay::Spawn { arguments }) => {
                    let (pid, pidfd, pipe) = testing::clone_sibling(&arguments);
                    let packet = protocol::encode(&Relay::Spawned { pid });
                    patiently(test, &packet, &[pidfd, pipe]);
                }
                Ok(Relay::Raw { bytes }) => patiently(keeper, &bytes, &[]),
                Ok(_) | Err(_) => patiently(keeper, &bytes, &fds),
            },
            Received::Empty => return true,
            Received::Closed => return false,
        }
    }
}

/// Sends, waiting for room; to one that is gone nothing is sent.
fn patiently(link: &Link, bytes: &[u8], fds: &[OwnedFd]) {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    eventually("room on the link", || match link.send(bytes, &fds) {
        Err(error) if link::is_full(&error) => None,
        Ok(()) | Err(_) => Some(()),
    });
}

/// A keeper under test.
pub(super) struct Rig {
    pub(super) directory: Directory,
    pub(super) keeper: std::process::Child,
    listener: OwnedFd,
    /// Killed at the end, whatever became of the test.
    instances: Vec<OwnedFd>,
}

impl Rig {
    pub(super) fn new(name: &str) -> Self {
        Self::with(name, &[])
    }

    pub(super) fn with(name: &str, environment: &[(&str, OsString)]) -> Self {
        let directory = Directory::new(name);
        let control = directory.path().join("control");
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::SEQPACKET;
        let listener = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&control).unwrap()).unwrap();
        rustix::net::listen(&listener, 16).unwrap();
        let program = program();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(&program.resume[1..])
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env(CONTROL, control)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.path().join("stderr")).unwrap());
        let keeper = testing::spawn_blocked(&mut command);
        Self { directory, keeper, listener, instances: Vec::new() }
    }

    pub(super) fn said(&self) -> String {
        fs::read_to_string(self.directory.path().join("stderr")).unwrap()
    }

    /// The next supervisor, before it has heard anything.
    pub(super) fn connection(&mut self) -> Link {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        eventually("a supervisor", || {
            if let Some(status) = self.keeper.try_wait().unwrap() {
                panic!("the keeper ended: {status}: {}", self.said());
            }
            rustix::net::accept_with(&self.listener, flags).ok().map(Link::from_fd)
        })
    }

    /// Lets the next supervisor die before its adopt. Says how many had died before it.
    pub(super) fn dies(&mut self) -> u32 {
        self.supervisor().hello.deaths
    }

    /// The next supervisor, after its hand-over.
    pub(super) fn supervisor(&mut self) -> Supervisor {
        let mut link = self.connection();
        let (bytes, _) = receive(&mut link);
        let Ok(Relay::Started { pid }) = serde_json::from_slice(&bytes) else {
            panic!("{}", String::from_utf8_lossy(&bytes))
        };
        let (packet, _) = hear(&mut link);
        let ToSupervisor::Hello(hello) = packet else { panic!("{packet:?}") };
        let (mut children, mut fds) = (BTreeMap::new(), BTreeMap::new());
        loop {
            let (packet, beside) = hear(&mut link);
            match packet {
                ToSupervisor::Child { child, exited } => {
                    let [pidfd] = beside.try_into().unwrap();
                    children.insert(child.generation, (child, exited, pidfd));
                }
                ToSupervisor::Fd { name, generation } => {
                    let [fd] = beside.try_into().unwrap();
                    fds.insert(name, (generation, fd));
                }
                ToSupervisor::Begin => break,
                other => panic!("{other:?}"),
            }
        }
        Supervisor { link, pid, hello, children, fds }
    }

    /// Clones an instance and has it born.
    pub(super) fn born(
        &mut self,
        supervisor: &mut Supervisor,
        generation: u64,
        timeout_ms: u64,
        script: &str,
    ) -> Instance {
        let instance = self.spawned(supervisor, script);
        supervisor.bear(generation, timeout_ms, &instance);
        Instance { pipe: None, ..instance }
    }

    /// Clones an instance; it waits.
    pub(super) fn spawned(&mut self, supervisor: &mut Supervisor, script: &str) -> Instance {
        let arguments = ["sh", "-c", script].map(str::to_owned).to_vec();
        supervisor.relay(&Relay::Spawn { arguments });
        let (bytes, fds) = receive(&mut supervisor.link);
        let Ok(Relay::Spawned { pid }) = serde_json::from_slice(&bytes) else {
            panic!("{}", String::from_utf8_lossy(&bytes))
        };
        let [pidfd, pipe] = fds.try_into().unwrap();
        self.instances.push(pidfd.try_clone().unwrap());
        Instance { pid, pidfd, pipe: Some(pipe) }
    }

    /// Sends a signal to the keeper.
    pub(super) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.keeper.id().cast_signed());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Waits for the end of the keeper.
    pub(super) fn ends(&mut self) -> i32 {
        eventually("the end of the keeper", || self.keeper.try_wait().unwrap()).code().unwrap()
    }

    pub(super) fn executable(&self) -> PathBuf {
        fs::read_link(format!("/proc/{}/exe", self.keeper.id())).unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the keeper said:\n{}", self.said());
        }
        // A keeper that ended, and instances that did, are no reason to fail here.
        self.keeper.kill().unwrap_or_default();
        self.keeper.wait().unwrap();
        for instance in &self.instances {
            parent::signal(instance, libc::SIGKILL).unwrap_or_default();
        }
    }
}

/// An instance, as the test sees it.
pub(super) struct Instance {
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
    pub(super) pipe: Option<OwnedFd>,
}

impl Instance {
    pub(super) fn lives(&self) -> bool {
        !parent::is_reaped(&self.pidfd).unwrap()
    }

    pub(super) fn signal(&self, signo: i32) {
        parent::signal(&self.pidfd, signo).unwrap();
    }

    /// Waits until its script runs: it made this file.
    pub(super) fn runs(file: &Path) {
        eventually("the script runs", || file.exists().then_some(()));
    }
}

/// The supervisor that the test plays.
pub(super) struct Supervisor {
    link: Link,
    pub(super) pid: u32,
    pub(super) hello: Hello,
    pub(super) children: BTreeMap<u64, (Child, Option<Exited>, OwnedFd)>,
    pub(super) fds: BTreeMap<String, (Option<u64>, OwnedFd)>,
}

impl Supervisor {
    pub(super) fn say(&self, packet: &ToKeeper) {
        self.say_with(packet, &[]);
    }

    pub(super) fn say_with(&self, packet: &ToKeeper, fds: &[BorrowedFd<'_>]) {
        self.link.send(&protocol::encode(packet), fds).unwrap();
    }

    pub(super) fn say_raw(&self, bytes: &[u8]) {
        self.relay(&Relay::Raw { bytes: bytes.to_vec() });
    }

    fn relay(&self, relay: &Relay) {
        self.link.send(&protocol::encode(relay), &[]).unwrap();
    }

    pub(super) fn hear(&mut self) -> ToSupervisor {
        hear(&mut self.link).0
    }

    pub(super) fn store(&self, name: &str, generation: Option<u64>, fd: impl AsFd) {
        self.say_with(&ToKeeper::Store { name: name.to_owned(), generation }, &[fd.as_fd()]);
    }

    pub(super) fn bear(&self, generation: u64, timeout_ms: u64, instance: &Instance) {
        let will = Will { cgroup: None, signal: libc::SIGTERM, timeout_ms };
        let child = Child { slot: 0, generation, release: 1, pid: instance.pid, will };
        let pipe = instance.pipe.as_ref().unwrap();
        self.say_with(&ToKeeper::Born { child }, &[instance.pidfd.as_fd(), pipe.as_fd()]);
    }

    pub(super) fn pidfd(&self) -> OwnedFd {
        let pid = rustix::process::Pid::from_raw(self.pid.cast_signed()).unwrap();
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap()
    }

    pub(super) fn kill(self) {
        parent::signal(self.pidfd(), libc::SIGKILL).unwrap();
    }

    /// Waits until the keeper has read all that was said so far: an fd that it dropped is closed.
    pub(super) fn settle(&self) {
        let (reader, writer) = testing::pipe().unwrap();
        self.store("settle", None, &writer);
        drop(writer);
        self.say(&ToKeeper::Drop { name: "settle".to_owned() });
        assert_eq!(rustix::io::read(&reader, &mut [0_u8; 1][..]).unwrap(), 0);
    }
}

fn receive(link: &mut Link) -> (Vec<u8>, Vec<OwnedFd>) {
    eventually("a packet", || match link.receive().unwrap() {
        Received::Packet { bytes, fds } => Some((bytes, fds)),
        Received::Empty => None,
        Received::Closed => panic!("the supervisor died"),
    })
}

fn hear(link: &mut Link) -> (ToSupervisor, Vec<OwnedFd>) {
    let (bytes, fds) = receive(link);
    (protocol::decode(&bytes).unwrap(), fds)
}
