//! The main process of the service: holds the fds, reaps, respawns the supervisor. No policy.

pub mod protocol;

/// How a keeper is started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Handed to each supervisor; the keeper does not read them.
    pub arguments: Vec<String>,
    /// `pmr run`: in the foreground, without a service manager.
    pub foreground: bool,
}
