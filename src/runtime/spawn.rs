//! From the core's `Spawn` to a registered child: the plan, the clone, and `Born`.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::pipe::PipeFlags;

use crate::balance::choice::Adapter;
use crate::balance::node;
use crate::keeper::protocol::{Child, ToKeeper, Will};
use crate::policy::{Generation, ReleaseId, SlotId, SpawnFailure};
use crate::sys::cgroup::{Group, Untaken};
use crate::sys::spawn::Plan;
use crate::sys::{Error, clock, journal, process, unix};

use super::Runtime;
use super::instances::{self, Instance, fd_name, group_name};
use super::limits;
use super::release::Release;
use super::streams::Pair;

/// OOM score of an app where pmr's own is below it: systemd's default for a service.
const OOM_SCORE_ADJ: i16 = 0;

/// The first fd of an app after standard error: `SD_LISTEN_FDS_START`.
const FIRST_FD: u32 = 3;

/// Longest path of a socket that a program can name: `sun_path` of unix(7), without the zero at its
/// end.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Whether a program can name the notify sockets in this directory. pmr itself reaches them however
/// long their path is.
pub(super) fn notify_fits(directory: &Path) -> bool {
    // Generations have seven digits at most, so that all of an app's are treated alike.
    directory.join("notify.1234567").as_os_str().len() <= SOCKET_PATH_BYTES_MAX
}

/// The fds made for one instance before it is spawned.
struct Prepared {
    group: Option<Group>,
    untaken: Vec<Untaken>,
    notify: Option<(OwnedFd, PathBuf)>,
    /// Read and write end of each output stream, in the foreground.
    out: Option<(OwnedFd, OwnedFd)>,
    err: Option<(OwnedFd, OwnedFd)>,
    /// Both as streams of the journal, otherwise.
    streams: Option<Pair>,
    /// The instance's end of Node's channel.
    channel: Option<OwnedFd>,
}

impl Prepared {
    /// What the instance gets as standard output and error, where it is not pmr's own.
    fn output(&self) -> Option<[BorrowedFd<'_>; 2]> {
        let pipes = self.out.as_ref().zip(self.err.as_ref());
        let pipes = pipes.map(|((_, out), (_, err))| [out.as_fd(), err.as_fd()]);
        pipes.or_else(|| self.streams.as_ref().map(|it| [it.out.as_fd(), it.err.as_fd()]))
    }
}

impl Runtime {
    /// Spawns an instance and registers it with the keeper. On a failure nothing of it runs; its
    /// group is removed by the `Clear` that follows.
    pub(super) fn spawn(
        &mut self,
        slot: SlotId,
        generation: Generation,
        release: ReleaseId,
    ) -> Result<u32, SpawnFailure> {
        let Some(of) = self.releases.get(&release).cloned() else {
            let message = format!("release {release} is not known");
            return Err(SpawnFailure { message, transient: false });
        };
        let prepared = self.prepare(slot, generation, &of).map_err(|error| failure(&error))?;
        if let Some(group) = &prepared.group {
            self.set_wire(generation, &of, group);
        }
        self.sockets.open(generation, &of, &mut self.keeper).map_err(|error| failure(&error))?;
        self.hook_binds(&of).map_err(|error| failure(&error))?;
        let channel = self.open_channel(generation, &of).map_err(|error| failure(&error))?;
        let prepared = Prepared { channel, ..prepared };
        let envp = environment(&of, slot, &prepared, self.sockets.count(&of), generation)?;
        let instance = self.clone_child(slot, generation, &of, prepared, envp)?;
        let pid = instance.pid;
        self.watch_instance(generation, &instance);
        self.look_for_sockets(generation, &of);
        for untaken in &instance.untaken {
            self.warn(&format!("not enforced for generation {generation}: {untaken}"));
        }
        self.instances.insert(generation, instance);
        Ok(pid)
    }

    fn prepare(
        &mut self,
        slot: SlotId,
        generation: Generation,
        release: &Release,
    ) -> Result<Prepared, Error> {
        let group = match self.level.home() {
            Some(home) => Some(home.make_group(&group_name(slot, generation))?),
            None => None,
        };
        // Before anything is in it. One that does not hold is said, and no reason not to start.
        let limits = limits::asked(&release.spec);
        let untaken = group.as_ref().map(|group| self.level.limit(group, &limits));
        let untaken = untaken.unwrap_or_default();
        let path = self.directory.join(fd_name("notify", generation));
        let notify = unix::notify_socket(&path, 0o600)?;
        if let Some(identity) = &release.identity {
            std::os::unix::fs::chown(&path, Some(identity.uid), Some(identity.gid))
                .map_err(|error| Error::at("give to the app", &path, error))?;
        }
        let foreground = self.hello.foreground;
        let out = foreground.then(pipe).transpose()?;
        let err = foreground.then(pipe).transpose()?;
        let streams = self.open_streams(slot);
        let notify = Some((notify, path));
        Ok(Prepared { group, untaken, notify, out, err, streams, channel: None })
    }

    fn clone_child(
        &mut self,
        slot: SlotId,
        generation: Generation,
        release: &Release,
        prepared: Prepared,
        envp: Vec<CString>,
    ) -> Result<Instance, SpawnFailure> {
        let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
        let [out, err] = prepared.output().unwrap_or([stdout.as_fd(), stderr.as_fd()]);
        let mut inherited = self.sockets.of(generation, release);
        let listen_pid = !inherited.is_empty();
        // Behind those that LISTEN_FDS counts.
        inherited.extend(prepared.channel.as_ref().map(AsFd::as_fd));
        let plan = Plan {
            program: release.program().map_err(|error| failure(&error))?,
            argv: arguments(release)?,
            envp,
            listen_pid,
            cwd: release.directory.clone(),
            identity: release.identity.clone(),
            umask: release.spec.identity.umask,
            stdout: out,
            stderr: err,
            inherited,
            group: prepared.group.as_ref().map(Group::dir),
            nofile: self.hello.file_limit,
            oom_score_adj: self.oom_score_below.then_some(OOM_SCORE_ADJ),
            ignore_sigpipe: release.spec.ignore_sigpipe,
            sibling: true,
        };
        let spawned = self.spawner.spawn(&plan).map_err(|error| SpawnFailure {
            message: error.to_string(),
            transient: is_transient(error.errno()),
        })?;
        drop(plan);
        let instance = Instance {
            slot,
            release: release.id,
            pid: spawned.pid,
            pidfd: spawned.pidfd,
            events: instances::events(prepared.group.as_ref()),
            group: prepared.group,
            moved_to: None,
            exec_status: Some(spawned.exec_status),
            notify: prepared.notify.map(|(socket, _)| socket),
            out: prepared.out.map(|(read, _)| read),
            err: prepared.err.map(|(read, _)| read),
            ended: false,
            sampled: None,
            spawned_at_ms: clock::now(),
            untaken: prepared.untaken,
        };
        let registered = self.register(generation, &instance, release, &spawned.go);
        registered.map_err(|error| failure(&error))?;
        Ok(instance)
    }

    /// Hands everything about the child to the keeper; with `Born` it begins to run.
    fn register(
        &mut self,
        generation: Generation,
        instance: &Instance,
        release: &Release,
        go: &OwnedFd,
    ) -> Result<(), Error> {
        let fds = [
            ("exec", &instance.exec_status),
            ("notify", &instance.notify),
            ("out", &instance.out),
            ("err", &instance.err),
        ];
        for (kind, fd) in fds {
            if let Some(fd) = fd {
                let name = fd_name(kind, generation);
                let store = ToKeeper::Store { name, generation: Some(generation.0) };
                self.keeper.say(&store, &[fd.as_fd()])?;
            }
        }
        let child = Child {
            slot: instance.slot.0,
            generation: generation.0,
            release: release.id.0,
            pid: instance.pid,
            will: will(instance, release),
        };
        self.keeper.say(&ToKeeper::Born { child }, &[instance.pidfd.as_fd(), go.as_fd()])
    }
}

/// How the keeper ends an instance by itself.
pub(super) fn will(instance: &Instance, release: &Release) -> Will {
    let cgroup = instance.group.as_ref().map(|group| group.path().display().to_string());
    let timeout_ms = u64::try_from(release.spec.stop.timeout.as_millis()).unwrap_or(u64::MAX);
    Will { cgroup, signal: release.spec.stop.signal, timeout_ms }
}

fn failure(error: &Error) -> SpawnFailure {
    SpawnFailure { message: error.to_string(), transient: is_transient(error.errno()) }
}

/// Shortages of the machine, which are no fault of the app and may pass.
fn is_transient(errno: i32) -> bool {
    use nix::libc::{EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC};
    [EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC].contains(&errno)
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    let pair = rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    let (read, write) = pair.map_err(|errno| Error::new("make a pipe", errno))?;
    // Only our end: the flag belongs to the open file, and the two ends are two of them.
    rustix::fs::fcntl_setfl(&read, rustix::fs::OFlags::NONBLOCK)
        .map_err(|errno| Error::new("make a pipe", errno))?;
    Ok((read, write))
}

fn arguments(release: &Release) -> Result<Vec<CString>, SpawnFailure> {
    let argv = release.spec.program.argv.iter();
    argv.map(|argument| CString::new(argument.as_bytes()).map_err(|_| nul())).collect()
}

fn nul() -> SpawnFailure {
    let message = "an argument or variable contains a zero byte".to_owned();
    SpawnFailure { message, transient: false }
}

/// The release's environment with what is the instance's own.
fn environment(
    release: &Release,
    slot: SlotId,
    prepared: &Prepared,
    sockets: usize,
    generation: Generation,
) -> Result<Vec<CString>, SpawnFailure> {
    let rules = &release.spec.environment;
    let mut variables = release.environment.clone();
    let mut set = |name: &str, value: OsString| drop(variables.insert(name.into(), value));
    set(&rules.instance_var, slot.to_string().into());
    set("PMR_APP", release.spec.name.as_str().into());
    set("PMR_INSTANCE", slot.to_string().into());
    if let Some((_, path)) = &prepared.notify
        && path.parent().is_some_and(notify_fits)
    {
        set("NOTIFY_SOCKET", path.clone().into());
    }
    // By this a program knows that it may say its priorities, as in any service.
    if let Some(name) = prepared.streams.as_ref().and_then(|it| journal::stream_name(&it.err)) {
        set("JOURNAL_STREAM", name.into());
    }
    if sockets > 0 {
        set("LISTEN_FDS", sockets.to_string().into());
        let names: Vec<&str> = (0..sockets).map(|_| release.spec.name.as_str()).collect();
        set("LISTEN_FDNAMES", names.join(":").into());
    }
    if let Some(kind) = release.choice.channel.filter(|_| prepared.channel.is_some()) {
        let fd = u32::try_from(sockets).unwrap_or_default().saturating_add(FIRST_FD);
        for (name, value) in node::variables(kind, fd, generation.0) {
            set(name, value.into());
        }
    }
    if release.choice.adapter == Adapter::Bind {
        let old = release.environment.get(OsStr::new("GODEBUG"));
        set("GODEBUG", without_mptcp(old.map_or(OsStr::new(""), |it| it)));
    }
    if let Some(name) = &rules.increment_var {
        let old = release.environment.get(std::ffi::OsStr::new(name));
        let number = old.and_then(|value| value.to_str()).and_then(|it| it.parse::<u64>().ok());
        let Some(number) = number else {
            let message = format!("increment_var: {name} has no number to add to");
            return Err(SpawnFailure { message, transient: false });
        };
        set(name, number.saturating_add(slot.0.into()).to_string().into());
    }
    variables
        .iter()
        .map(|(name, value)| {
            let mut line = name.as_bytes().to_vec();
            line.push(b'=');
            line.extend_from_slice(value.as_bytes());
            CString::new(line).map_err(|_| nul())
        })
        .collect()
}

/// Go listens by MPTCP since 1.24 where it can (the setting multipathtcp of its `net` package), and
/// the kernel steers no such socket. Whoever names the setting means it.
fn without_mptcp(settings: &OsStr) -> OsString {
    let text = settings.to_string_lossy();
    match (text.contains("multipathtcp="), text.is_empty()) {
        (true, _) => settings.to_owned(),
        (false, true) => "multipathtcp=0".into(),
        (false, false) => format!("{text},multipathtcp=0").into(),
    }
}

/// The words for a failed exec.
pub(super) fn exec_failure(failure: process::ExecFailure, release: &Release) -> String {
    let user = release.identity.as_ref().map(|identity| identity.name.as_str());
    match release.program() {
        Ok(program) => failure.describe(&program, &release.directory, user),
        Err(error) => error.to_string(),
    }
}
