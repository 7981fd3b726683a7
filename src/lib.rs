//! `pmr` keeps N instances of an app running behind one port.
//!
//! For each app there are two processes with one thread each. In the supervisor a pure core
//! ([`policy`]) turns moments and events into actions, and knows neither clock nor kernel; a thin
//! [`runtime`] waits, reads facts from the kernel, feeds the core, and carries the actions out. The
//! answer to each action is again an event. The [`keeper`] is the parent of supervisor and
//! instances, holds what must outlive a supervisor, and decides nothing. Crash is a normal path:
//! the start of a supervisor *is* an adopt. The command line ([`cli`]) sees an app through its
//! control socket ([`control`]) only.
//!
//! Read the modules in this order; `ARCHITECTURE.md` has the map, the invariants and the glossary.
//!
//! - [`spec`]: what an app may ask for, as checked types
//! - [`config`]: from the text of a file to a spec, or to all its problems
//! - [`load`]: reads the file, and asks the machine for what it names
//! - [`policy`]: what happens to an app's instances, and why
//! - [`sys`]: the kernel's interfaces, and all unsafe code
//! - [`balance`]: who gets a connection, and how an instance gets its socket
//! - [`keeper`]: fds, exits, last wills, upgrades
//! - [`control`]: the protocol, the answering and the asking half
//! - [`runtime`]: the supervisor's loop, and its only start, the adopt
//! - [`cli`]: the commands, and the import of PM2's files
//! - [`demo`]: a backend with all the faults a supervisor is there for

pub mod spec;

pub mod config;

pub mod load;

pub mod policy;

pub mod sys;

pub mod balance;

pub mod keeper;

pub mod control;

pub mod runtime;

pub mod cli;

pub mod demo;
