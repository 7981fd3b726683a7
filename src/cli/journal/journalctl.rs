//! `journalctl(1)`, which knows all places and formats of journals: the one way to run it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::fs::MemfdFlags;

use crate::cli::error::Error;
use crate::cli::table::harmless;

/// Most bytes of a line that is waited for to be whole: journald takes fields of up to 768 MiB, but
/// no line of an app is longer than 48 KiB (`LineMax=`), and a byte may be written as four.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Most bytes of its complaint that are shown.
const COMPLAINT_BYTES_MAX: u64 = 1024;

/// Written at the end of each line by `journalctl --output=json`.
const NEWLINE: u8 = b'\n';

/// One that runs, and is ended with this.
#[derive(Debug)]
pub(super) struct Journalctl {
    child: Child,
    output: ChildStdout,
    /// What it says on standard error: in memory, so that it never waits for us to read that.
    complaint: File,
    pending: Vec<u8>,
}

impl Journalctl {
    /// Starts it: without a pager, without what it says for a person at a terminal.
    pub(super) fn run(arguments: &[OsString]) -> Result<Self, Error> {
        let failed = |error: io::Error| Error::Journalctl(error.to_string());
        let complaint = rustix::fs::memfd_create("journalctl", MemfdFlags::CLOEXEC);
        let complaint = File::from(complaint.map_err(|errno| failed(errno.into()))?);
        let copy = complaint.try_clone().map_err(failed)?;
        let mut command = Command::new("journalctl");
        command.args(["--quiet", "--no-pager"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::from(copy));
        let mut child = command.spawn().map_err(failed)?;
        let output = child.stdout.take().ok_or_else(|| Error::Journalctl("no output".into()))?;
        Ok(Self { child, output, complaint, pending: Vec::new() })
    }

    /// Waits for some output, and takes the lines that are whole. `None` at the end.
    pub(super) fn next_lines(&mut self) -> Result<Option<Vec<Vec<u8>>>, Error> {
        let mut chunk = vec![0; 64 * 1024];
        match self.output.read(&mut chunk) {
            Ok(0) => return self.end(),
            Ok(count) => self.pending.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Journalctl(error.to_string())),
        }
        let whole = self.pending.iter().rposition(|byte| *byte == NEWLINE);
        let Some(whole) = whole.map(|at| at.saturating_add(1)) else {
            if self.pending.len() > LINE_BYTES_MAX {
                return Err(Error::Journalctl("an entry is too long".to_owned()));
            }
            return Ok(Some(Vec::new()));
        };
        let rest = self.pending.split_off(whole);
        let lines = std::mem::replace(&mut self.pending, rest);
        Ok(Some(lines.split(|byte| *byte == NEWLINE).map(<[u8]>::to_vec).collect()))
    }

    fn end<T>(&mut self) -> Result<Option<T>, Error> {
        let status = self.child.wait().map_err(|error| Error::Journalctl(error.to_string()))?;
        if status.success() {
            return Ok(None);
        }
        Err(Error::Journalctl(self.why(status.to_string())))
    }

    /// What it has said, or else how it ended.
    fn why(&mut self, status: String) -> String {
        let mut said = Vec::new();
        let read = self.complaint.rewind().and_then(|()| {
            self.complaint.by_ref().take(COMPLAINT_BYTES_MAX).read_to_end(&mut said)
        });
        let said = String::from_utf8_lossy(&said);
        match said.trim() {
            "" => status,
            _ if read.is_err() => status,
            said => harmless(said),
        }
    }
}

impl AsFd for Journalctl {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }
}

impl Drop for Journalctl {
    fn drop(&mut self) {
        // One that has ended cannot be killed, which is as good.
        match self.child.kill().and_then(|()| self.child.wait()) {
            Ok(_) | Err(_) => {}
        }
    }
}
