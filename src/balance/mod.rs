//! How connections are spread over an app's instances, and how each gets its socket.

pub mod assembler;
pub mod choice;
pub mod hang;
pub mod node;
pub mod program;
pub mod steering;
pub mod table;
