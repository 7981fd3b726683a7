//! One file per kernel or systemd interface. Returns facts, makes no decisions, and holds all the
//! unsafe code there is. Knows no slot.

mod error;

pub mod clock;
pub mod link;
pub mod parent;
pub mod poll;
pub mod signal;
pub mod statefile;
#[cfg(test)]
pub(crate) mod testing;
pub mod unix;

pub use error::{Error, Result};
