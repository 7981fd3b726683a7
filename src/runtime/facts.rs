//! From what an fd says to a fact for the core.

use std::os::fd::AsFd;

use crate::balance::choice::Adapter;
use crate::keeper::protocol::ToSupervisor;
use crate::policy::{Event, Fact, Generation, Wish};
use crate::spec::Readiness;
use crate::sys::poll::{Interest, Ready};
use crate::sys::process::{ExecStatus, read_exec_status};
use crate::sys::{Error, clock, unix};

use super::adopt::exit_of;
use super::keeper_link::Heard;
use super::output::Stream;
use super::release::Release;
use super::sources::Source;
use super::{Runtime, spawn};

/// Bytes that are read from an instance's pipe at a time.
const READ_BYTES: usize = 16 * 1024;

/// Reads of one pipe in a turn: an instance that writes without end does not keep the loop.
const READS_MAX: usize = 4;

/// Whether an instance of a release is online as soon as it is executed. (A probe of `http:` is not
/// made yet, which `pmr check` says.)
fn is_ready_by_exec(release: &Release) -> bool {
    matches!(release.spec.ready, Readiness::Exec | Readiness::Http(_))
}

/// Whether it is ready once it accepts from what it inherits.
fn is_ready_by_accept(release: &Release) -> bool {
    release.spec.ready == Readiness::Listen && release.choice.adapter == Adapter::Inherit
}

impl Runtime {
    /// Takes what an fd has to say.
    pub(super) fn take(&mut self, ready: Ready) {
        match Source::of(ready.token) {
            Some(Source::Keeper) => self.hear_keeper(),
            Some(Source::Control) => self.accept_clients(),
            Some(Source::Client(client)) => self.hear_client(client, ready),
            Some(Source::Exec(generation)) => self.hear_exec(generation),
            Some(Source::Notify(generation)) => self.hear_notify(generation),
            Some(Source::Output(generation, stream)) => self.hear_output(generation, stream),
            Some(Source::Group(generation)) => self.hear_group(generation),
            Some(Source::Check) => self.hear_check(),
            Some(Source::Wire(generation)) => self.hear_wire(generation),
            Some(Source::Reclaim(number)) => self.hear_reclaim(number),
            Some(Source::Channel(generation)) => self.hear_channel(generation),
            // It is written to at the end of each turn.
            Some(Source::Sink(_)) | None => {}
        }
    }

    fn hear_keeper(&mut self) {
        loop {
            match self.keeper.hear() {
                Ok(Heard::Message(message, _)) => self.hear_message(&message),
                Ok(Heard::Nothing) => return,
                Ok(Heard::Gone) => {
                    let gone = std::io::Error::other("it is gone");
                    self.broken = Some(Error::new("hear the keeper", gone));
                    return;
                }
                Err(error) => {
                    self.broken = Some(error);
                    return;
                }
            }
        }
    }

    fn hear_message(&mut self, message: &ToSupervisor) {
        match *message {
            ToSupervisor::Exited(ref exited) => {
                let generation = Generation(exited.generation);
                let mut exit = exit_of(exited);
                if let Some(instance) = self.instances.get_mut(&generation) {
                    instance.ended = true;
                    exit = instance.explain(exit);
                }
                if self.policy.release_of(generation).is_some() {
                    self.finish_exec(generation);
                    self.events.push_back(Event::Fact(Fact::Exited { generation, exit }));
                } else if let Some(instance) = self.instances.get(&generation) {
                    // The core went on without it: it was unkillable, or from before.
                    let slot = instance.slot;
                    self.clear(slot, generation, false);
                } else {
                    let generation = generation.0;
                    self.say(&crate::keeper::protocol::ToKeeper::Ack { generation });
                }
            }
            ToSupervisor::Stop { now } => {
                self.events.push_back(Event::Wish(None, Wish::ShutDown { now }));
            }
            ToSupervisor::Reload => self.reload_by_signal(),
            // Said at the start only.
            ToSupervisor::Hello(_)
            | ToSupervisor::Child { .. }
            | ToSupervisor::Fd { .. }
            | ToSupervisor::Begin
            | ToSupervisor::Unknown => {}
        }
    }

    /// An exec that failed is known before the exit that follows it.
    fn finish_exec(&mut self, generation: Generation) {
        if self.instances.get(&generation).is_some_and(|it| it.exec_status.is_some()) {
            self.hear_exec(generation);
        }
    }

    fn hear_exec(&mut self, generation: Generation) {
        let Some(instance) = self.instances.get_mut(&generation) else { return };
        let Some(fd) = &instance.exec_status else { return };
        let status = read_exec_status(fd);
        if matches!(status, Ok(ExecStatus::Pending)) {
            return;
        }
        let (fd, ended) = (instance.exec_status.take(), instance.ended);
        let release = self.releases.get(&instance.release).cloned();
        if let Some(fd) = fd {
            self.forget_fd(fd);
        }
        let Some(release) = release else { return };
        match status {
            Ok(ExecStatus::Failed(failure)) => {
                let message = spawn::exec_failure(failure, &release);
                self.events.push_back(Event::Fact(Fact::ExecFailed { generation, message }));
            }
            Ok(ExecStatus::Done) if !ended && is_ready_by_exec(&release) => {
                self.events.push_back(Event::Fact(Fact::Ready { generation }));
            }
            Ok(ExecStatus::Done) if !ended && is_ready_by_accept(&release) => {
                self.probe(generation);
            }
            Ok(ExecStatus::Done | ExecStatus::Pending) => {}
            Err(error) => self.warn(&error.to_string()),
        }
    }

    /// Takes notifications, from processes of the instance only.
    fn hear_notify(&mut self, generation: Generation) {
        loop {
            let Some(instance) = self.instances.get(&generation) else { return };
            let Some(socket) = &instance.notify else { return };
            let said = match unix::peek_notify(socket.as_fd()) {
                Ok(Some(said)) => said,
                Ok(None) => return,
                Err(error) => return self.warn(&error.to_string()),
            };
            let release = self.releases.get(&instance.release);
            let uid = release.and_then(|release| release.identity.as_ref()).map(|it| it.uid);
            let trusted = match instance.group {
                Some(_) => instance.has(said.pid),
                None => uid.is_none_or(|uid| uid == said.uid),
            };
            let waits = release.is_some_and(|release| release.spec.ready == Readiness::Notify);
            if trusted && waits && said.text.lines().any(|line| line == "READY=1") {
                self.events.push_back(Event::Fact(Fact::Ready { generation }));
                // It is taken when it stands in recorded state: until then it can be heard again.
                self.heard_ready.push(generation);
                return;
            }
            self.take_notify(generation);
        }
    }

    fn take_notify(&mut self, generation: Generation) {
        let socket = self.instances.get(&generation).and_then(|it| it.notify.as_ref());
        if let Some(Err(error)) = socket.map(|socket| unix::take_notify(socket.as_fd())) {
            self.warn(&error.to_string());
        }
    }

    /// Takes the notifications whose facts are recorded.
    pub(super) fn take_heard(&mut self) {
        for generation in std::mem::take(&mut self.heard_ready) {
            self.take_notify(generation);
        }
    }

    fn hear_output(&mut self, generation: Generation, stream: Stream) {
        for _ in 0..READS_MAX {
            if !self.read_output(generation, stream) {
                return;
            }
        }
    }

    /// Reads once; says whether there may be more.
    fn read_output(&mut self, generation: Generation, stream: Stream) -> bool {
        let Some(instance) = self.instances.get_mut(&generation) else { return false };
        let Some(pipe) = instance.pipe(stream) else { return false };
        let mut bytes = [0; READ_BYTES];
        match rustix::io::read(pipe, &mut bytes) {
            Ok(0) => {
                let slot = instance.slot;
                super::never_mind(self.poll.remove(pipe));
                instance.close_pipe(stream);
                self.output.end(slot, generation, stream);
                false
            }
            Ok(count) => {
                let slot = instance.slot;
                let bytes = bytes.get(..count).unwrap_or_default();
                let lines = self.output.take(slot, generation, stream, bytes);
                self.tell_followers(slot, &lines);
                count == READ_BYTES
            }
            Err(_) => false,
        }
    }

    /// Reads what an instance that has ended still had to say.
    pub(super) fn drain_output(
        &mut self,
        generation: Generation,
        instance: &super::instances::Instance,
    ) {
        for stream in [Stream::Out, Stream::Err] {
            let Some(pipe) = instance.pipe(stream) else { continue };
            let mut bytes = [0; READ_BYTES];
            // Bounded by what a pipe holds: whoever still writes is about to be killed.
            for _ in 0..(1 << 20) / READ_BYTES {
                match rustix::io::read(pipe, &mut bytes) {
                    Ok(count) if count > 0 => {
                        let bytes = bytes.get(..count).unwrap_or_default();
                        let lines = self.output.take(instance.slot, generation, stream, bytes);
                        self.tell_followers(instance.slot, &lines);
                    }
                    Ok(_) | Err(_) => break,
                }
            }
            self.output.end(instance.slot, generation, stream);
        }
    }

    /// Writes to the terminal, and leaves the instances' pipes alone while it is full.
    pub(super) fn flush_output(&mut self) {
        let was_blocked: Vec<usize> = self.output.blocked().map(|(index, _)| index).collect();
        if was_blocked.is_empty() && !self.outputs_paused {
            return;
        }
        self.output.flush();
        let mut waiting = Vec::new();
        for (index, fd) in self.output.blocked() {
            // Added again is no trouble, and a regular file never blocks.
            let writable = Interest { writable: true, ..Interest::default() };
            super::never_mind(self.poll.add(fd, Source::Sink(index).token(), writable));
            waiting.push(index);
        }
        for index in 0..2 {
            if !waiting.contains(&index)
                && let Some(fd) = self.output.sink(index)
            {
                super::never_mind(self.poll.remove(fd));
            }
        }
        let full = self.output.is_full();
        if full != self.outputs_paused {
            self.outputs_paused = full;
            let interest = if full { Interest::default() } else { Interest::READABLE };
            for (generation, instance) in &self.instances {
                for stream in [Stream::Out, Stream::Err] {
                    if let Some(pipe) = instance.pipe(stream) {
                        let token = Source::Output(*generation, stream).token();
                        super::never_mind(self.poll.modify(pipe, token, interest));
                    }
                }
            }
        }
    }

    /// Waits for what is left, at the very end.
    pub(super) fn finish_remains(&mut self) -> Result<(), Error> {
        let mut ready = Vec::new();
        let wait = self.next_retry_ms().map(|at| at.saturating_sub(clock::now()));
        self.poll.wait(wait.map(std::time::Duration::from_millis), &mut ready)?;
        for ready in ready {
            if let Some(Source::Group(generation)) = Source::of(ready.token) {
                self.look_at_remains(generation);
            }
        }
        self.retry_remains();
        Ok(())
    }
}
