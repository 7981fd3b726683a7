//! What the machine allows: found at each start, said once.

use std::fmt;

use crate::sys::cgroup::{CONTROLLERS, Home, Refused};

/// Where instances' groups are made, and what the kernel does for them.
#[derive(Debug)]
pub(super) enum Level {
    /// A delegated group with a memory controller: the kernel counts and limits.
    Full(Home),
    /// A cgroup v2 group can be made, without a memory controller.
    Tracking(Home),
    /// No group: sessions.
    Bare {
        /// Why.
        why: String,
    },
}

impl Level {
    /// What this machine allows to the app `name` kept by the keeper `pid`. In the foreground
    /// nothing is delegated: whoever runs it there has a group that others are in too.
    pub(super) fn find(name: &str, keeper_pid: u32, foreground: bool) -> Self {
        let delegated = if foreground { Ok(None) } else { Home::delegated() };
        let home = match delegated {
            Ok(Some(home)) => Ok(home),
            Ok(None) => Home::make(&format!("pmr.{name}.{keeper_pid}")),
            Err(error) => Err(error),
        };
        match home {
            Ok(home) if home.has("memory") => Self::Full(home),
            Ok(home) => Self::Tracking(home),
            Err(error) => Self::Bare { why: error.to_string() },
        }
    }

    /// Its word.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Full(_) => "full",
            Self::Tracking(_) => "tracking",
            Self::Bare { .. } => "bare",
        }
    }

    /// Whether the kernel counts and limits memory.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Full(_) => true,
            Self::Tracking(_) | Self::Bare { .. } => false,
        }
    }

    /// The home of the groups.
    pub(super) fn home(&self) -> Option<&Home> {
        match self {
            Self::Full(home) | Self::Tracking(home) => Some(home),
            Self::Bare { .. } => None,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(home) => {
                let has: Vec<_> = CONTROLLERS.into_iter().filter(|it| home.has(it)).collect();
                let (path, has) = (home.path().display(), has.join(", "));
                write!(f, "level full: groups below {path}, the kernel counts and limits {has}")?;
                write_refused(f, home.refused())
            }
            Self::Tracking(home) => {
                let path = home.path().display();
                write!(f, "level tracking: groups below {path}, ")?;
                write!(f, "memory is sampled and no cap is enforced")?;
                write_refused(f, home.refused())
            }
            Self::Bare { why } => write!(
                f,
                "level bare: no group can be made ({why}); instances are followed by session, \
                 memory is sampled and no cap is enforced"
            ),
        }
    }
}

fn write_refused(f: &mut fmt::Formatter<'_>, refused: &[Refused]) -> fmt::Result {
    for Refused { controller, error } in refused {
        match error {
            Some(error) => write!(f, "; without {controller} ({error})")?,
            None => write!(f, "; without {controller}, which is not delegated")?,
        }
    }
    Ok(())
}
