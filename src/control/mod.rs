//! The control socket: what it says ([`protocol`]), how a supervisor answers ([`server`]), and how
//! a command line asks ([`client`]).
//!
//! ```text
//! bytes ──► server::Connection ──► Call ──► runtime ──► policy
//!   ◄──────────────── Reply ◄──────────────────┘
//! ```
//!
//! Varlink: one JSON object per message, ended by a NUL. The server half knows no socket and no
//! clock: it is given bytes and moments. Nothing a peer sends makes it panic, grow without bound or
//! wait.
#![forbid(unsafe_code)]

pub mod client;
mod find;
#[cfg(test)]
pub(crate) mod loopback;
pub mod protocol;
pub mod server;
mod varlink;

pub use crate::policy::Spoken;
pub use find::{
    Home, Place, Scope, app_directory, config_directory, homes, is_given, own_directory, places,
};
