//! An app for the benchmarks: appends its pid and the time at which its `main` began to the file
//! it is told, and then sleeps. Built by `run` with plain rustc; no part of the crate.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let line = format!("{} {}\n", std::process::id(), now.as_nanos());
    let path = std::env::args_os().nth(1).unwrap_or_default();
    let file = OpenOptions::new().append(true).create(true).open(path);
    if file.and_then(|mut file| file.write_all(line.as_bytes())).is_err() {
        return;
    }
    loop {
        std::thread::park();
    }
}
