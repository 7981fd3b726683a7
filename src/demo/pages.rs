//! What each path does.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use super::request::{Bad, Request};
use super::server::Shared;
use super::{complain, own_binary, say};

/// One page, as the guide and a 404 show it.
#[derive(Debug)]
pub(super) struct Page {
    path: &'static str,
    /// The path with a query to try.
    pub(super) example: &'static str,
    /// What it does, in a few words.
    pub(super) does: &'static str,
    argument: Argument,
    answer: fn(u64, &Shared) -> Answer,
}

/// The number a page takes in its query.
#[derive(Debug)]
struct Argument {
    name: &'static str,
    default: u64,
    max: u64,
}

const fn takes(name: &'static str, default: u64, max: u64) -> Argument {
    Argument { name, default, max }
}

const NOTHING: Argument = takes("", 0, 0);

const fn page(
    path: &'static str,
    example: &'static str,
    does: &'static str,
    argument: Argument,
    answer: fn(u64, &Shared) -> Answer,
) -> Page {
    Page { path, example, does, argument, answer }
}

/// All pages, in the order to try them.
pub(super) const PAGES: [Page; 10] = [
    page("/", "/", "who answers", NOTHING, who),
    page("/crash", "/crash", "die of a TypeError in the middle of a request", NOTHING, crash),
    page("/exit", "/exit?code=0", "answer, then exit with this", takes("code", 0, 255), exit),
    page("/leak", "/leak?mb=50", "take so much memory and keep it", takes("mb", 50, 4096), leak),
    page("/hang", "/hang", "answer nobody any more", NOTHING, hang),
    page("/slow", "/slow?ms=2000", "answer after that long", takes("ms", 2000, 600_000), slow),
    page("/stubborn", "/stubborn", "from now on ignore SIGTERM", NOTHING, stubborn),
    page("/daemon", "/daemon", "leave a daemon behind that left its session", NOTHING, daemon),
    page("/log", "/log?lines=10", "write to stdout and stderr", takes("lines", 10, 100_000), log),
    page("/health", "/health", "ok", NOTHING, health),
];

/// What happens to a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// This text with this status.
    Text(u16, String),
    /// This text, and then the process exits with this status.
    TextThenExit(String, u8),
    /// Nothing: the process exits with this status.
    Exit(u8),
}

/// Finds the page and lets it answer. Blocks as long as the page does.
pub(super) fn answer(request: &Request, shared: &Shared) -> Answer {
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return Answer::Text(405, format!("{} is not served, GET is\n", request.method));
    }
    let Some(page) = PAGES.iter().find(|page| page.path == request.path) else {
        return Answer::Text(404, not_found(&request.path));
    };
    let Argument { name, default, max } = page.argument;
    match request.number(name, default, max) {
        Ok(number) => (page.answer)(number, shared),
        Err(Bad(why)) => Answer::Text(400, why + "\n"),
    }
}

fn not_found(path: &str) -> String {
    let lines = PAGES.map(|page| format!("  {:<16} {}\n", page.example, page.does));
    format!("there is no {path} here; there is\n{}", lines.concat())
}

fn ok(text: String) -> Answer {
    Answer::Text(200, text + "\n")
}

fn who(_: u64, shared: &Shared) -> Answer {
    ok(format!("{shared}, up {}, {} requests", shared.uptime(), shared.requests()))
}

fn crash(_: u64, shared: &Shared) -> Answer {
    complain(&format!("{shared}: TypeError: Cannot read property 'name' of undefined"));
    Answer::Exit(1)
}

fn exit(code: u64, shared: &Shared) -> Answer {
    let text = format!("{shared} exits with {code}\n");
    Answer::TextThenExit(text, u8::try_from(code).unwrap_or(u8::MAX))
}

fn leak(mb: u64, shared: &Shared) -> Answer {
    match shared.leak(mb) {
        Some(total) => ok(format!("{shared} leaked {mb} MB, {total} MB in all")),
        None => Answer::Text(503, format!("{shared}: no {mb} MB to be had\n")),
    }
}

fn hang(_: u64, shared: &Shared) -> Answer {
    complain(&format!("{shared} hangs"));
    shared.hang()
}

fn slow(ms: u64, shared: &Shared) -> Answer {
    pause(Duration::from_millis(ms));
    ok(format!("{shared} took {ms} ms"))
}

#[expect(clippy::disallowed_methods, reason = "the page is there to let time pass")]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

fn stubborn(_: u64, shared: &Shared) -> Answer {
    shared.make_stubborn();
    ok(format!("{shared} ignores SIGTERM from now on"))
}

fn daemon(_: u64, shared: &Shared) -> Answer {
    match start_daemon() {
        Ok(pid) => ok(format!("{shared} left a daemon behind: pid {pid}")),
        Err(error) => Answer::Text(500, format!("{shared} could not start it: {error}\n")),
    }
}

fn start_daemon() -> io::Result<String> {
    let output = own_binary("demo-daemon").stdout(Stdio::piped()).spawn()?.wait_with_output()?;
    let pid = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && !pid.is_empty() {
        Ok(pid)
    } else {
        Err(io::Error::other(format!("demo-daemon: {}", output.status)))
    }
}

fn log(lines: u64, shared: &Shared) -> Answer {
    for line in 1..=lines {
        say(&format!("{shared}: line {line} of {lines} to stdout"));
        complain(&format!("{shared}: line {line} of {lines} to stderr"));
    }
    ok(format!("{shared} wrote {lines} lines to stdout and to stderr"))
}

fn health(_: u64, _: &Shared) -> Answer {
    Answer::Text(200, "ok\n".to_owned())
}
