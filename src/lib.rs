//! `pmr` keeps N instances of an app running behind one port.
//!
//! One crate, one thread, one loop. A pure core ([`policy`]) turns moments and events into actions
//! and knows neither clock nor kernel. A thin [`runtime`] waits, reads facts from the kernel, feeds
//! the core, and carries the actions out; the answer to each action is again an event. The
//! [`keeper`] is a process of its own that outlives any supervisor. A control socket ([`control`])
//! and a command line ([`cli`]) see only the protocol. Crash is a normal path: the start of a
//! supervisor *is* an adopt.
//!
//! Read the modules in this order.

pub mod spec;

pub mod config;

pub mod load;

pub mod policy;

pub mod sys;

pub mod keeper;

pub mod control;

pub mod runtime;

pub mod cli;

pub mod demo;
