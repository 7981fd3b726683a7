//! A primary for real workers: the library's half of the protocol, on real channels and sockets.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use pmr::balance::node::{
    self, Address, Channel as Kind, Chunk, Do, Family, Hub, Oddity, READ_MAX, RequestId, Wanted,
    Worker,
};
use pmr::sys::channel::{Channel, Received};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, sockopt};

use crate::app::Setup;
use crate::nodes;
use crate::procs::{PATIENCE_MS, now_ms};

/// What is skipped where a version is not there.
const NAME: &str = "Node's protocol";

/// Runs a test with each Node there is. The others are skipped aloud.
pub(super) fn with_each_node(test: &str, run: impl Fn(Rig)) {
    for node in nodes::all(NAME) {
        eprintln!("with Node {}", node.major);
        run(Rig::new(test, node.binary));
    }
}

/// The primary of one app.
pub(super) struct Rig {
    pub(super) setup: Setup,
    pub(super) workers: Vec<Running>,
    /// Ports that are refused, with the errno.
    pub(super) refused: BTreeMap<u16, i32>,
    /// What `listen({ fd })` gives.
    pub(super) inherited: BTreeMap<u32, OwnedFd>,
    /// So many sockets get lost on their way.
    pub(super) losses: u32,
    /// The oddities that are expected.
    pub(super) expected: Vec<Oddity>,
    binary: PathBuf,
    hub: Hub,
    /// Of addresses with one socket for all workers.
    shared: BTreeMap<Address, OwnedFd>,
}

/// One worker.
pub(super) struct Running {
    pub(super) worker: Worker,
    /// All that it did.
    pub(super) did: Vec<Do>,
    seen: usize,
    channel: Option<Channel>,
    child: Child,
    given: BTreeMap<RequestId, (Address, OwnedFd)>,
}

impl Rig {
    fn new(test: &str, binary: PathBuf) -> Self {
        Self {
            setup: Setup::new(test),
            workers: Vec::new(),
            refused: BTreeMap::new(),
            inherited: BTreeMap::new(),
            losses: 0,
            expected: Vec::new(),
            binary,
            hub: Hub::default(),
            shared: BTreeMap::new(),
        }
    }

    /// Starts a worker, and returns its number. A shell gives it the channel as fd 3.
    pub(super) fn spawn(&mut self, kind: Kind, code: &str, variables: &[(&str, &str)]) -> usize {
        let number = self.workers.len();
        let script = self.setup.write("app.js", code);
        let (channel, other) = Channel::pair().unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec 3<&0 </dev/null; exec \"$@\"", "sh"])
            .arg(&self.binary)
            .arg(script);
        command.stdin(Stdio::from(other)).current_dir(&self.setup.directory);
        let log = File::create(self.log(number)).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        command.envs(node::variables(kind, 3, u64::try_from(number + 1).unwrap()));
        command.envs(variables.iter().copied());
        self.workers.push(Running {
            worker: Worker::new(kind),
            did: Vec::new(),
            seen: 0,
            channel: Some(channel),
            child: command.spawn().unwrap(),
            given: BTreeMap::new(),
        });
        number
    }

    /// Runs a script that is no worker to its end, and returns what it prints.
    pub(super) fn client(&self, code: &str, variables: &[(&str, &str)]) -> String {
        let code = format!("setTimeout(() => process.exit(9), {PATIENCE_MS}).unref();\n{code}");
        let script = self.setup.write("client.js", &code);
        let mut command = Command::new(&self.binary);
        let output = command.arg(script).envs(variables.iter().copied()).output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    }

    pub(super) fn pid(&self, number: usize) -> u32 {
        self.workers[number].child.id()
    }

    fn log(&self, number: usize) -> PathBuf {
        self.setup.directory.join(format!("worker-{number}"))
    }

    /// Waits until a worker does something, after what it was last seen to do.
    pub(super) fn until<T>(
        &mut self,
        number: usize,
        what: &str,
        mut is: impl FnMut(&Do) -> Option<T>,
    ) -> T {
        let deadline = now_ms() + PATIENCE_MS;
        loop {
            let running = &mut self.workers[number];
            while let Some(it) = running.did.get(running.seen) {
                running.seen += 1;
                if let Some(found) = is(it) {
                    return found;
                }
            }
            let is_over = running.channel.is_none();
            if is_over || now_ms() > deadline {
                let log = fs::read_to_string(self.log(number)).unwrap_or_default();
                let did = &self.workers[number].did;
                panic!("worker {number} never: {what}; over: {is_over}\n{did:?}\n{log}");
            }
            self.turn();
        }
    }

    /// Waits until a worker has said this.
    pub(super) fn until_does(&mut self, number: usize, expected: &Do) {
        self.until(number, &format!("{expected:?}"), |it| (it == expected).then_some(()));
    }

    /// Waits until the app has sent this message.
    pub(super) fn until_said(&mut self, number: usize, json: &str) {
        self.until_does(number, &Do::Message(json.to_owned()));
    }

    /// Waits for the end of a worker, and for all that it said. Returns its exit status.
    pub(super) fn ended(&mut self, number: usize) -> ExitStatus {
        let deadline = now_ms() + PATIENCE_MS;
        loop {
            let running = &mut self.workers[number];
            let status = running.child.try_wait().unwrap();
            if let Some(status) = status.filter(|_| running.channel.is_none()) {
                return status;
            }
            assert!(now_ms() < deadline, "it does not end: {:?}", self.workers[number].did);
            self.turn();
        }
    }

    /// Closes the channel, as the death of a primary does.
    pub(super) fn die(&mut self, number: usize) {
        self.workers[number].channel = None;
    }

    /// Lets another primary go on, which knows of its sockets only where they are.
    pub(super) fn resume(&mut self, number: usize) {
        let running = &mut self.workers[number];
        let given = std::mem::take(&mut running.given);
        let phase = running.worker.phase();
        let addresses = given.values().map(|(address, _)| address.clone());
        running.worker = Worker::resumed(Kind::Cluster, phase, addresses);
    }

    /// Asserts that no worker did anything odd but what is expected.
    pub(super) fn assert_nothing_odd(&self) {
        let all = self.workers.iter().flat_map(|running| &running.did);
        let odd: Vec<&Oddity> =
            all.filter_map(|it| if let Do::Report(odd) = it { Some(odd) } else { None }).collect();
        assert_eq!(odd, self.expected.iter().collect::<Vec<_>>());
    }

    /// Writes what is to be written, waits a moment for what can be read, and handles that.
    fn turn(&mut self) {
        for number in 0..self.workers.len() {
            self.write(number);
        }
        let channels: Vec<&Channel> =
            self.workers.iter().filter_map(|running| running.channel.as_ref()).collect();
        let mut fds: Vec<PollFd<'_>> =
            channels.iter().map(|channel| PollFd::new(*channel, PollFlags::IN)).collect();
        let moment = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        poll(&mut fds, Some(&moment)).unwrap();
        for number in 0..self.workers.len() {
            self.read(number);
            self.write(number);
        }
    }

    fn write(&mut self, number: usize) {
        let running = &mut self.workers[number];
        let Some(channel) = &running.channel else { return };
        while let Some(Chunk { bytes, handle }) = running.worker.next_chunk() {
            let socket = handle.map(|id| running.given[&id].1.as_fd());
            let is_lost = socket.is_some() && self.losses > 0;
            self.losses -= u32::from(is_lost);
            // A worker that is gone takes nothing; its end is read.
            let count = channel.write(bytes, socket.filter(|_| !is_lost)).unwrap_or(0);
            if count == 0 {
                return;
            }
            running.worker.wrote(count);
        }
    }

    fn read(&mut self, number: usize) {
        let mut room = [0; READ_MAX];
        let mut out = Vec::new();
        let running = &mut self.workers[number];
        while let Some(channel) = &running.channel {
            match channel.read(&mut room).unwrap() {
                Received::Bytes(count) => {
                    running.worker.read(&room[..count], &mut self.hub, &mut out);
                }
                Received::Empty => break,
                Received::Closed => running.channel = None,
            }
        }
        for it in out {
            match &it {
                Do::Ask { id, wanted } => self.answer(number, *id, wanted),
                Do::Closed { address } => self.close(number, address),
                _ => {}
            }
            self.workers[number].did.push(it);
        }
    }

    fn answer(&mut self, number: usize, id: RequestId, wanted: &Wanted) {
        let refused = wanted.address.port().and_then(|port| self.refused.get(&port)).copied();
        let socket = match refused {
            Some(errno) => Err(errno),
            None => self.socket(wanted).map_err(Errno::raw_os_error),
        };
        let worker = &mut self.workers[number].worker;
        match socket {
            Ok((at, socket)) => {
                assert!(worker.give(id, at.clone(), &mut self.hub));
                self.workers[number].given.insert(id, (at, socket));
            }
            Err(errno) => assert!(worker.refuse(id, errno, &self.hub)),
        }
    }

    /// Each worker has a TCP socket of its own; the others are one for all.
    fn socket(&mut self, wanted: &Wanted) -> rustix::io::Result<(Address, OwnedFd)> {
        if let Some(socket) = self.shared.get(&wanted.address) {
            return Ok((wanted.address.clone(), socket.try_clone().unwrap()));
        }
        let (unix, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        match &wanted.address {
            Address::Tcp(address) => {
                let socket = bind_ip(SocketType::STREAM, *address, wanted.family)?;
                Ok((Address::Tcp(name(&socket)), socket))
            }
            Address::Udp(address) => {
                let socket = bind_ip(SocketType::DGRAM, *address, wanted.family)?;
                let at = Address::Udp(name(&socket));
                self.shared.insert(at.clone(), socket.try_clone().unwrap());
                Ok((at, socket))
            }
            Address::Unix(path) => {
                let socket = rustix::net::socket_with(unix, SocketType::STREAM, flags, None)?;
                bind(&socket, &SocketAddrUnix::new(path)?)?;
                let mode = fs::metadata(path).unwrap().permissions().mode() | wanted.mode;
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
                self.shared.insert(wanted.address.clone(), socket.try_clone().unwrap());
                Ok((wanted.address.clone(), socket))
            }
            Address::Descriptor(fd) => {
                let socket = self.inherited.get(fd).ok_or(Errno::BADF)?.try_clone().unwrap();
                Ok((Address::Tcp(name(&socket)), socket))
            }
        }
    }

    /// The worker accepts no more at its own socket there.
    fn close(&mut self, number: usize, address: &Address) {
        let given = &mut self.workers[number].given;
        let closed = given.extract_if(.., |_, (at, _)| at == address);
        for (_, (at, socket)) in closed {
            if matches!(at, Address::Tcp(_)) {
                // Another server of the worker may hold it no more.
                rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).unwrap_or_default();
            }
        }
    }
}

fn bind_ip(kind: SocketType, address: SocketAddr, family: Family) -> rustix::io::Result<OwnedFd> {
    let af = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = match rustix::net::socket_with(af, kind, SocketFlags::CLOEXEC, None) {
        Err(Errno::AFNOSUPPORT) if family == Family::Any => {
            let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            return bind_ip(kind, address, Family::Both);
        }
        socket => socket?,
    };
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, family == Family::OnlyV6)?;
    }
    bind(&socket, &address)?;
    Ok(socket)
}

fn name(socket: &OwnedFd) -> SocketAddr {
    rustix::net::getsockname(socket).unwrap().try_into().unwrap()
}

impl Drop for Rig {
    fn drop(&mut self) {
        for running in &mut self.workers {
            // One that is gone already is what is wanted.
            running.child.kill().unwrap_or_default();
            running.child.wait().unwrap();
        }
    }
}
