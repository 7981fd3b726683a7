//! The last lines of a unit, by journalctl(1): its files and their permissions are journald's own.

use std::io::{ErrorKind, Read as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use super::unit_name;
use crate::control::Scope;
use crate::control::client::Deadline;

/// How long the lines may take: a journal of gigabytes on a slow disk takes a second.
const READ_TIME: Duration = Duration::from_secs(5);

/// Most bytes that are taken of it.
const BYTES_MAX: usize = 64 * 1024;

/// The last lines of the unit of an app; none where there is no journal to read.
pub(in crate::cli) fn last_lines(scope: Scope, app: &str, count: u32) -> Vec<String> {
    let mut command = Command::new("journalctl");
    if scope == Scope::User {
        command.arg("--user");
    }
    command.args(["--unit", &unit_name(app), "--lines", &count.to_string()]);
    command.args(["--output", "cat", "--no-pager", "--quiet"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return Vec::new() };
    let bytes = child.stdout.take().map(read).unwrap_or_default();
    end(child);
    String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
}

/// What comes until its end, or until the time is up.
fn read(mut stdout: ChildStdout) -> Vec<u8> {
    let deadline = Deadline::after(READ_TIME);
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while let Some(left) = deadline.left().filter(|_| bytes.len() < BYTES_MAX) {
        let timeout = Timespec::try_from(left).ok();
        let mut watched = [PollFd::new(&stdout, PollFlags::IN)];
        match poll(&mut watched, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        match stdout.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => bytes.extend(piece.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    bytes
}

/// It has said what it has to say, or is too slow.
fn end(mut child: Child) {
    // Both fail only for a child that is gone already.
    drop(child.kill());
    drop(child.wait());
}
