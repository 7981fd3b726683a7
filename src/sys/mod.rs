//! One file per kernel or systemd interface. Returns facts, makes no decisions, and holds all the
//! unsafe code there is. Knows no slot.

mod error;
pub mod inherited;

pub use error::{Error, Result};
