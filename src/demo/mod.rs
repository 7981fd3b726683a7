//! The demo backend: a little HTTP server with all the faults a supervisor is there for.
//!
//! `pmr demo` runs it under the real supervisor, as any other app: it knows nothing of pmr but its
//! inherited socket (`LISTEN_FDS`), `PMR_APP`, `PMR_INSTANCE` and SIGTERM. Being an app, it has
//! threads and a clock of its own, which nothing else in this crate has. It must not be used by
//! anything but the two hidden commands.

mod pages;
mod request;
mod server;

use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{SigSet, Signal};

use self::server::Server;
use crate::sys::inherited::inherited;

/// Set in the second process of [`daemon`], which is the one that stays.
const DAEMON_STAYS: &str = "PMR_DEMO_DAEMON_STAYS";

/// `pmr demo-backend`: serves the demo's pages until SIGTERM or SIGINT, on the inherited socket, or
/// on `PORT` where there is none.
///
/// Returns the exit status: 0 after a graceful end, 1 from `/crash`, 2 without a socket, else what
/// `/exit` was told.
pub fn serve() -> u8 {
    let port = std::env::var("PORT").ok().and_then(|port| port.parse::<u16>().ok());
    let socket = match (inherited(0), port) {
        (Some(socket), _) => Ok(socket),
        (None, Some(port)) => std::net::TcpListener::bind(("::", port)).map(OwnedFd::from),
        (None, None) => {
            complain("demo-backend serves on a socket it inherits, or on PORT; try `pmr demo`");
            return 2;
        }
    };
    match socket.and_then(serve_on) {
        Ok(status) => status,
        Err(error) => {
            complain(&format!("demo-backend: {error}"));
            1
        }
    }
}

fn serve_on(socket: OwnedFd) -> io::Result<u8> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    // Before the first thread: threads inherit the mask, and one of them waits for the signals.
    signals.thread_block()?;
    let server = Server::new(TcpListener::from(socket))?;
    server.stop_on(signals)?;
    server.run()
}

/// `pmr demo-daemon`: leaves its parent for good, as badly behaved helpers do.
///
/// It makes a session of its own, starts itself once more and ends: what stays is no child of the
/// app any more, and in no session or process group of it. Its process id is printed.
pub fn daemon() -> u8 {
    let outcome = if std::env::var_os(DAEMON_STAYS).is_some() {
        idle();
        Ok(())
    } else {
        leave()
    };
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            complain(&format!("demo-daemon: {error}"));
            1
        }
    }
}

fn leave() -> io::Result<()> {
    nix::unistd::setsid()?;
    let child = own_binary("demo-daemon").env(DAEMON_STAYS, "1").stdout(Stdio::null()).spawn()?;
    writeln!(io::stdout().lock(), "{}", child.id())
}

/// Does nothing until a signal ends it.
fn idle() {
    loop {
        nix::unistd::pause();
    }
}

/// This very binary with a hidden command, also where its file was replaced meanwhile.
fn own_binary(command: &str) -> Command {
    let mut child = Command::new("/proc/self/exe");
    child.arg(command).stdin(Stdio::null()).stderr(Stdio::null());
    child
}

/// The config of the demo app, as TOML. Its times are short enough to watch.
pub fn config(executable: &Path, port: u16, instances: u16) -> String {
    let executable = toml_text(&executable.to_string_lossy());
    format!(
        r#"# The app of `pmr demo`: a backend that can fail in every way.
command = [{executable}, "demo-backend"]
instances = {instances}
# An app that binds its port by itself would have `port = {port}` here.
listen = {port}           # one port for all, which they inherit
ready = "exec"           # online as soon as the program runs

max_restarts = 10        # so many short lives in a row, and the slot is `errored`
min_uptime = "5s"        # an exit before that is a short life
restart_delay = "1s"
exp_backoff_restart_delay = "100ms"
kill_timeout = "3s"      # SIGKILL to all that is left so long after SIGTERM

[env]
PORT = "{port}"
"#
    )
}

/// `text` as a basic string of TOML. JSON's escapes are all among TOML's, and JSON leaves raw only
/// one character that TOML does not: DEL.
fn toml_text(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// What to try, for the person who just started the demo.
pub fn guide(port: u16, instances: u16, config: &Path) -> String {
    let tries = pages::PAGES.map(|page| {
        let command = format!("curl 'localhost:{port}{}'", page.example);
        format!("  {command:<42} {}\n", page.does)
    });
    format!(
        "A small backend serves on http://localhost:{port}/, instances: {instances}\n\
         Its config: {}\n\n\
         Try, in another terminal:\n\
         {}  {:<42} what pmr sees of all this\n\n\
         Ctrl-C ends the demo.\n",
        config.display(),
        tries.concat(),
        "pmr status",
    )
}

/// Prints a line where the journal or `pmr logs` shows it; without a reader it is dropped.
fn say(line: &str) {
    told(writeln!(io::stdout().lock(), "{line}"));
}

/// Like [`say`], on stderr.
fn complain(line: &str) {
    told(writeln!(io::stderr().lock(), "{line}"));
}

/// A backend does not end because nobody reads its output.
fn told(_: io::Result<()>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_is_toml_whatever_the_path() {
        for path in ["/usr/bin/pmr", "/tmp/a \"b\"\\c\u{7f}\n/pmr"] {
            let text = config(Path::new(path), 10000, 2);
            let table: toml::Table = text.parse().unwrap();
            let command = table["command"].as_array().unwrap();
            assert_eq!(command[0].as_str(), Some(path));
            assert_eq!(command[1].as_str(), Some("demo-backend"));
            assert_eq!(table["instances"].as_integer(), Some(2));
            assert_eq!(table["env"]["PORT"].as_str(), Some("10000"));
        }
    }

    #[test]
    fn the_guide_names_every_page_and_the_port() {
        let text = guide(8080, 3, Path::new("/run/pmr/demo.toml"));
        assert!(text.contains("instances: 3\n"), "{text}");
        for page in pages::PAGES {
            assert!(text.contains(&format!("localhost:8080{}", page.example)), "{text}");
        }
    }
}
