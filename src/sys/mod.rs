//! One file per kernel or systemd interface. Returns facts, makes no decisions, and holds all the
//! unsafe code there is. Knows no slot.

mod child;
mod error;
pub mod inherited;

pub mod bpf;
pub mod cgroup;
pub mod channel;
pub mod clock;
pub mod diag;
pub mod identity;
pub mod journal;
pub mod link;
pub mod listen;
pub mod memory;
pub mod notify;
pub mod parent;
pub mod poll;
pub mod probe;
pub mod process;
pub mod procfs;
pub mod signal;
pub mod spawn;
pub mod statefile;
#[cfg(test)]
pub(crate) mod testing;
pub mod unix;

pub use error::{Error, Result};
