//! How connections are spread over an app's instances, and how each gets its socket.

pub mod choice;
pub mod node;
