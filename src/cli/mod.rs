//! cli.

pub mod import;
