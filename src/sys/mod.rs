//! One file per kernel or systemd interface. Returns facts, makes no decisions, and holds all the
//! unsafe code there is. Knows no slot.

mod child;
mod error;

pub mod cgroup;
pub mod identity;
pub mod listen;
pub mod process;
pub mod procfs;
pub mod spawn;

pub use error::{Error, Result};
