//! The `pmr` command.

fn main() {}
