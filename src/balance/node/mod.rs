//! The primary's side of Node's cluster protocol, without any I/O.
//!
//! An unmodified Node server becomes a worker by three variables ([`variables`]) and a channel, a
//! Unix stream socket. It asks its primary for each socket that it listens on, and is given one
//! with that address: `cluster.isWorker` is true, `process.send('ready')` arrives here, and
//! `process.on('message')` hears what is said here. The protocol is not documented; it has been the
//! same from Node 14 to 26.
//!
//! ```text
//!            online          listening
//!  Silent ──────────► Online ─────────► Listening
//!    │                   │                  │      disconnect() here, or by the app
//!    └───────────────────┴──────────────────┴──────────────────────────────► Leaving ─► EOF
//!
//!  a request   queryServer ─► Ask ─┬─ give ───► sent with its socket ─► arrived ─► close ─► Closed
//!                                  │                └── lost, 3 times at most ──┐
//!                                  └─ refuse ─► errno ◄─── EMFILE ──────────────┘
//! ```
//!
//! Who drives a [`Worker`]:
//! - makes every fd that is sent non-blocking: the mode belongs to the open file, and Node up to 18
//!   would wait in `accept` for ever;
//! - binds with `SO_REUSEADDR`; the worker itself calls `listen`, and may do so again;
//! - reads only while [`Worker::takes_input`], at most [`READ_MAX`] bytes at once, closes the
//!   fds that come along, and answers each [`Do::Ask`];
//! - writes after each call what [`Worker::next_chunk`] has, a chunk with a socket by one `sendmsg`
//!   with that fd alone;
//! - checks [`may_have_port`] for each request, and makes Unix sockets with the app's rights.
//!
//! No line to a worker is longer than 16 KiB and a few hundred bytes, which a Unix socket takes as
//! a whole or not at all. So a supervisor that dies leaves no half of a line, at which a worker
//! would fail. For the next supervisor [`Worker::resumed`] needs the worker's channel and the
//! addresses of its sockets: the keeper's fd names `node.G` and `socket.G.ADDR` say both. The
//! [`Hub`] is recorded with the state.

mod address;
mod hub;
mod lines;
mod message;
mod outbox;
#[cfg(test)]
mod tests;
mod worker;

pub use address::{Address, NoAddress, may_have_port};
pub use hub::{DATA_MAX, Hub};
pub use lines::LINE_MAX;
pub use message::{Family, Oddity, RequestId, Wanted};
pub use outbox::{Chunk, MESSAGES_MAX};
pub use worker::{Channel, Do, Phase, READ_MAX, SERVERS_MAX, Worker};

/// Variables that give a Node process its end of a channel. Node removes them before any code of
/// the app runs. Without a channel they must not be set: a process with an id alone would never
/// listen, and never say so.
///
/// `fd` is the number of the channel's end in the worker. `generation` becomes `cluster.worker.id`,
/// which is a positive number of 32 bits.
pub fn variables(channel: Channel, fd: u32, generation: u64) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        ("NODE_CHANNEL_FD", fd.to_string()),
        ("NODE_CHANNEL_SERIALIZATION_MODE", "json".to_owned()),
    ];
    match channel {
        Channel::Cluster => {
            let id = u32::try_from(generation).ok().and_then(|id| i32::try_from(id).ok());
            variables.push(("NODE_UNIQUE_ID", id.unwrap_or(i32::MAX).max(1).to_string()));
        }
        Channel::Messages => {}
    }
    variables
}
