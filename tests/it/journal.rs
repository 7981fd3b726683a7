//! A service beside a journald that the test plays: its sockets take the place of the machine's in
//! a mount namespace of the service.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::Command;

use rustix::process::Signal;

use crate::app::{App, Setup, python};
use crate::procs;

/// Puts the directory `$0` in the place of journald's, and goes on as the rest.
const ENTER: &str = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && \
                     mount --bind \"$0\" /run/systemd/journal && exec \"$@\"";

/// An app that says a line on each of its streams, and what it has for standard error.
const TALKER: &str = r#"
import os, signal, sys, time
facts = os.fstat(2)
name = f"{facts.st_dev}:{facts.st_ino}"
print("started", flush=True)
print("is journal:", os.environ.get("JOURNAL_STREAM") == name, file=sys.stderr, flush=True)
signal.pause()
"#;

type Fields = BTreeMap<String, String>;

/// What journald hears.
struct Journald {
    native: UnixDatagram,
    listener: UnixListener,
    streams: Vec<(UnixStream, Vec<u8>)>,
    entries: Vec<Fields>,
}

impl Journald {
    /// In the directory of the test.
    fn new(setup: &Setup) -> Self {
        let directory = setup.directory.join("journal");
        std::fs::create_dir(&directory).unwrap();
        let native = UnixDatagram::bind(directory.join("socket")).unwrap();
        let listener = UnixListener::bind(directory.join("stdout")).unwrap();
        native.set_nonblocking(true).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { native, listener, streams: Vec::new(), entries: Vec::new() }
    }

    /// Sends entries until none is taken: of several senders, for each has a bound of its own.
    fn fill(&self) {
        let address = self.native.local_addr().unwrap();
        loop {
            let sender = UnixDatagram::unbound().unwrap();
            sender.set_nonblocking(true).unwrap();
            let sends = || sender.send_to_addr(b"MESSAGE=x\n", &address).is_ok();
            if std::iter::from_fn(|| sends().then_some(())).count() == 0 {
                return;
            }
        }
    }

    /// Takes all that has come.
    fn read(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true).unwrap();
            self.streams.push((stream, Vec::new()));
        }
        for (stream, heard) in &mut self.streams {
            // WouldBlock comes after what there was.
            stream.read_to_end(heard).unwrap_or_default();
        }
        let mut datagram = vec![0; 64 * 1024];
        while let Ok(count) = self.native.recv(&mut datagram) {
            if count > 0 {
                self.entries.push(fields(&datagram[..count]));
            }
        }
    }

    /// The text of each stream of this identifier.
    fn streams_of(&self, identifier: &str) -> Vec<String> {
        let texts = self.streams.iter().map(|(_, heard)| String::from_utf8_lossy(heard));
        let start = format!("{identifier}\n");
        texts.filter(|text| text.starts_with(&start)).map(Into::into).collect()
    }

    /// The last entry of an event.
    fn entry(&self, event: &str) -> Option<&Fields> {
        self.entries.iter().rfind(|entry| entry.get("PMR_EVENT").is_some_and(|it| it == event))
    }
}

/// `NAME=VALUE`, or `NAME`, eight bytes of length, and the value: the native protocol.
fn fields(mut bytes: &[u8]) -> Fields {
    let mut fields = Fields::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        let line = String::from_utf8(bytes[..end].to_vec()).unwrap();
        bytes = &bytes[end + 1..];
        if let Some((name, value)) = line.split_once('=') {
            fields.insert(name.to_owned(), value.to_owned());
            continue;
        }
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let length = usize::try_from(length).unwrap();
        let value = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
        bytes = &bytes[8 + length + 1..];
        assert!(fields.insert(line.clone(), value).is_none(), "{line} twice");
    }
    fields
}

/// A service of `python` in a namespace with the directory `journal` of the test.
fn serve(test: &str, name: &str) -> Option<(App, Option<Journald>)> {
    serve_beside(test, name, true)
}

fn serve_beside(test: &str, name: &str, listens: bool) -> Option<(App, Option<Journald>)> {
    let namespace = ["unshare", "--mount", "--propagation", "private"];
    let mut probe = Command::new(namespace[0]);
    probe.args(&namespace[1..]).args(["mount", "-t", "tmpfs", "none", "/run"]);
    if !procs::is_root() || !probe.output().is_ok_and(|done| done.status.success()) {
        procs::skip(test, "it takes root and a mount namespace");
        return None;
    }
    let setup = Setup::new(name);
    let journald = listens.then(|| Journald::new(&setup));
    let directory = setup.directory.join("journal");
    std::fs::create_dir_all(&directory).unwrap();
    let directory = directory.to_str().unwrap().to_owned();
    let words: Vec<&str> = namespace.into_iter().chain(["sh", "-c", ENTER, &directory]).collect();
    let app = setup.config(&python(TALKER)).before(&words).serve_with(|_| ());
    Some((app, journald))
}

#[test]
fn an_instance_writes_into_streams_of_its_own() {
    let test = "an_instance_writes_into_streams_of_its_own";
    let Some((mut app, Some(mut journald))) = serve(test, "streams") else { return };
    app.online(1);
    let identifier = format!("{}:0", app.setup.name);
    let texts = app.eventually("a line in each stream", || {
        journald.read();
        let texts = journald.streams_of(&identifier);
        (texts.len() == 2 && texts.iter().all(|it| it.lines().count() > 7)).then_some(texts)
    });
    assert!(texts[0].ends_with("\n6\n1\n0\n0\n0\nstarted\n"), "{texts:?}");
    assert!(texts[1].ends_with("\n3\n1\n0\n0\n0\nis journal: True\n"), "{texts:?}");

    // A new instance has new streams.
    app.command("restart", &[]);
    app.eventually("two more streams", || {
        journald.read();
        (journald.streams_of(&identifier).len() == 4).then_some(())
    });
    // journald is stopped: what is started then writes to where pmr does, which is said once.
    let directory = app.setup.directory.join("journal");
    std::fs::remove_file(directory.join("stdout")).unwrap();
    app.command("restart", &[]);
    app.command("restart", &[]);
    app.eventually("lines of the last one", || {
        let lines = app.setup.read("stdout");
        (lines.matches("started").count() == 2).then_some(())
    });
    journald.read();
    let without = |journald: &Journald| {
        let is_it = |entry: &&Fields| entry.get("PMR_EVENT").is_some_and(|it| it == "no-journal");
        journald.entries.iter().filter(is_it).count()
    };
    assert_eq!(without(&journald), 1, "{:?}", journald.entries);
    // It is there again.
    let listener = UnixListener::bind(directory.join("stdout")).unwrap();
    listener.set_nonblocking(true).unwrap();
    journald.listener = listener;
    app.command("restart", &[]);
    app.eventually("streams again", || {
        journald.read();
        (journald.streams_of(&identifier).len() == 6).then_some(())
    });
    app.signal(Signal::TERM);
    assert_eq!(app.wait(), 0, "{}", app.setup.log());
}

#[test]
fn what_happens_is_an_entry_with_fields() {
    let test = "what_happens_is_an_entry_with_fields";
    let Some((mut app, Some(mut journald))) = serve(test, "entries") else { return };
    let state = app.online(1);
    assert!(procs::signal(state.pid(0).unwrap(), Signal::KILL));
    app.state("a restart", |state| state.number(0, "restarts") == 1 && state.word(0) == "online");
    app.kill_supervisor();
    app.eventually("the entry of a new supervisor", || {
        journald.read();
        journald.entry("adopted").cloned()
    });
    app.signal(Signal::TERM);
    assert_eq!(app.wait(), 0, "{}", app.setup.log());
    journald.read();
    let name = app.setup.name.clone();
    let failed = journald.entry("failed").unwrap();
    let message = format!("{name}:0 was killed by SIGKILL");
    assert!(failed["MESSAGE"].starts_with(&message), "{failed:?}");
    for (field, value) in [
        ("PRIORITY", "4"),
        ("SYSLOG_IDENTIFIER", "pmr"),
        ("PMR_APP", &name),
        ("PMR_INSTANCE", "0"),
        ("PMR_GENERATION", "1"),
        ("MESSAGE_ID", "19f6f4d6cb6c4a00ae59bc6c543105bf"),
    ] {
        assert_eq!(failed.get(field).map(String::as_str), Some(value), "{failed:?}");
    }
    let over = journald.entry("over").unwrap();
    assert_eq!((over["PRIORITY"].as_str(), over.get("PMR_INSTANCE")), ("6", None), "{over:?}");
    let names: Vec<&str> =
        journald.entries.iter().map(|entry| entry["PMR_EVENT"].as_str()).collect();
    for event in ["level", "starting", "online", "failed", "adopted", "shutting-down", "ended"] {
        assert!(names.contains(&event), "{event} of {names:?}");
    }
    // Nothing of it is said twice.
    assert!(!app.setup.read("stderr").contains("online"), "{}", app.setup.log());
}

#[test]
fn a_journald_that_hangs_stops_nobody() {
    let test = "a_journald_that_hangs_stops_nobody";
    let Some((mut app, Some(mut journald))) = serve(test, "hangs") else { return };
    app.online(1);
    // Nothing is read, and somebody else has filled the queue.
    journald.fill();
    let state = app.online(1);
    assert!(procs::signal(state.pid(0).unwrap(), Signal::KILL));
    app.state("a restart", |state| state.number(0, "restarts") == 1 && state.word(0) == "online");
    app.eventually("what happened, by another way", || {
        app.setup.read("stderr").contains("was killed by SIGKILL").then_some(())
    });
    let supervisor = app.supervisor();
    assert_eq!(app.status().0["supervisor_deaths"], 0, "{}", app.setup.log());
    // A supervisor that starts meanwhile waits for it just as little.
    app.kill_supervisor();
    app.online(1);
    assert_ne!(app.supervisor(), supervisor);
    assert!(app.setup.read("stderr").contains("has a new supervisor"), "{}", app.setup.log());

    journald.read();
    journald.entries.clear();
    app.command("restart", &[]);
    app.eventually("entries again", || {
        journald.read();
        journald.entry("online").cloned()
    });
    app.signal(Signal::TERM);
    assert_eq!(app.wait(), 0, "{}", app.setup.log());
}

#[test]
fn without_a_journald_all_goes_to_where_pmr_writes() {
    let test = "without_a_journald_all_goes_to_where_pmr_writes";
    let Some((mut app, None)) = serve_beside(test, "no-journald", false) else { return };
    app.online(1);
    app.eventually("the app's line", || app.setup.read("stdout").contains("started").then_some(()));
    let said = app.setup.read("stderr");
    assert!(said.contains("is journal: False"), "{said}");
    assert!(said.contains(&format!("pmr: {}:0 online", app.setup.name)), "{said}");
    assert_eq!(said.matches("write to where pmr does").count(), 1, "{said}");
    app.signal(Signal::TERM);
    assert_eq!(app.wait(), 0, "{}", app.setup.log());
}
