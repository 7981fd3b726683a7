//! What a keeper hands over to a supervisor at its start.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::keeper::protocol::{Child, Exited, Hello, ToSupervisor, VERSION};
use crate::sys::poll::{Interest, Poll};
use crate::sys::{Error, Result};

use super::keeper_link::{Heard, KeeperLink};

/// How long a hand-over may take: the keeper replaces a supervisor that is silent for less.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(30);

/// An instance in the keeper's table.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) child: Child,
    pub(super) pidfd: OwnedFd,
    pub(super) exited: Option<Exited>,
}

/// All of it.
#[derive(Debug)]
pub(super) struct HandOver {
    pub(super) hello: Hello,
    pub(super) children: Vec<Known>,
    pub(super) fds: BTreeMap<String, OwnedFd>,
}

/// Receives everything up to `Begin`.
pub(super) fn receive(keeper: &mut KeeperLink) -> Result<HandOver> {
    let broken = |what| Error::new("take over from the keeper", std::io::Error::other(what));
    let mut poll = Poll::new()?;
    poll.add(keeper.as_fd(), 0, Interest::READABLE)?;
    let mut hello = None;
    let mut children = Vec::new();
    let mut fds = BTreeMap::new();
    let mut ready = Vec::new();
    loop {
        let (message, mut beside) = match keeper.hear()? {
            Heard::Message(message, beside) => (message, beside),
            Heard::Gone => return Err(broken("it is gone")),
            Heard::Nothing => {
                poll.wait(Some(HAND_OVER_TIMEOUT), &mut ready)?;
                if ready.is_empty() {
                    return Err(broken("it is silent"));
                }
                continue;
            }
        };
        match message {
            ToSupervisor::Hello(said) if said.version != VERSION => {
                return Err(broken("it speaks another version of the protocol"));
            }
            ToSupervisor::Hello(said) => hello = Some(said),
            ToSupervisor::Child { child, exited } => {
                let pidfd = beside.pop().ok_or_else(|| broken("a child came without its pidfd"))?;
                children.push(Known { child, pidfd, exited });
            }
            ToSupervisor::Fd { name, .. } => {
                if let Some(fd) = beside.pop() {
                    fds.insert(name, fd);
                }
            }
            ToSupervisor::Begin => {
                let hello = hello.take().ok_or_else(|| broken("it did not say hello"))?;
                return Ok(HandOver { hello, children, fds });
            }
            ToSupervisor::Unknown => {}
            ToSupervisor::Exited(_) | ToSupervisor::Stop { .. } | ToSupervisor::Reload => {
                return Err(broken("it said something before it began"));
            }
        }
    }
}
