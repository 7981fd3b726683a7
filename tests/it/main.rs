//! Black box: the built binary, its output, its exit status, and what it leaves behind. One module
//! tries a part of the library alone: [`node_protocol`].
//!
//! Nothing here waits for time to pass: a test waits for a fact, with a deadline many times as long
//! as the fact should take. Each test has a directory, a port and an app name of its own, so all of
//! them run side by side. What a machine does not allow is skipped aloud.

#![expect(clippy::arithmetic_side_effects, reason = "tests count, and a panic is a failure")]

#[cfg(test)]
mod app;
#[cfg(test)]
mod bad_config;
#[cfg(test)]
mod bad_machine;
#[cfg(test)]
mod balance;
#[cfg(test)]
mod bare;
#[cfg(test)]
mod basics;
#[cfg(test)]
mod bus;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod control;
#[cfg(test)]
mod dbus;
#[cfg(test)]
mod failpoints;
#[cfg(test)]
mod foreground;
#[cfg(test)]
mod import;
#[cfg(test)]
mod journal;
#[cfg(test)]
mod load;
#[cfg(test)]
mod node_apps;
#[cfg(test)]
mod node_protocol;
#[cfg(test)]
mod nodes;
#[cfg(test)]
mod procs;
#[cfg(test)]
mod reload;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod servers;
#[cfg(test)]
mod service;
#[cfg(test)]
mod shared;
#[cfg(test)]
mod stop;
#[cfg(test)]
mod story;
#[cfg(test)]
mod survive;
#[cfg(test)]
mod units;
#[cfg(test)]
mod upgrade;
