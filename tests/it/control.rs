//! The control socket: what clients do to it harms nobody else, and who may do what.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::app::{App, Done, Setup, demo, free_port, python, quoted};
use crate::load::get;
use crate::procs::{self, PATIENCE_MS};
use crate::shared::{assert_has, can_mount};

const NOBODY: u32 = 65_534;

/// A connection that gives up at the deadline of all tests.
fn connect(app: &App) -> UnixStream {
    let path = app.setup.runtime.join(&app.setup.name).join("io.pmr.App");
    let stream = app.eventually("a connection", || UnixStream::connect(&path).ok());
    stream.set_read_timeout(Some(Duration::from_millis(PATIENCE_MS))).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(PATIENCE_MS))).unwrap();
    stream
}

fn request(method: &str, parameters: &Value, more: bool) -> Vec<u8> {
    let method = format!("io.pmr.App.{method}");
    let mut bytes = json!({ "method": method, "parameters": parameters, "more": more })
        .to_string()
        .into_bytes();
    bytes.push(0);
    bytes
}

/// The next answer; `None` where the connection ended.
fn answer(stream: &mut UnixStream) -> Option<Value> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(1) if byte == [0] => return Some(serde_json::from_slice(&bytes).unwrap()),
            Ok(1) => bytes.push(byte[0]),
            Ok(_) => return None,
            // It was closed before all that was sent had been read.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("no answer and no end: {error}"),
        }
    }
}

/// Sends bytes and nothing more. Returns everything that is answered until the end.
fn send(app: &App, bytes: &[u8]) -> Vec<Value> {
    let mut stream = connect(app);
    // The peer may have seen enough before it has seen all.
    if stream.write_all(bytes).is_ok() {
        stream.shutdown(Shutdown::Write).unwrap_or_default();
    }
    std::iter::from_fn(|| answer(&mut stream)).collect()
}

/// That the supervisor is the one it was, and does its work: an instance that dies is replaced.
fn assert_supervises(app: &App, supervisor: &Value) {
    let before = app.state("an instance", |state| state.word(0) == "online");
    assert_eq!(&before.0["supervisor_pid"], supervisor, "{}", app.setup.log());
    let pid = before.pid(0).unwrap();
    assert!(procs::signal(pid, Signal::KILL));
    let after = app.state("another instance", |state| {
        state.word(0) == "online" && state.pid(0).is_some_and(|now| now != pid)
    });
    assert_eq!(&after.0["supervisor_pid"], supervisor, "{}", app.setup.log());
}

/// An app that does nothing, and is never given up.
fn idle(test: &str) -> App {
    let config = format!("{}max_restarts = 1000\n", python("import signal\nsignal.pause()"));
    Setup::new(test).config(&config).start()
}

#[test]
fn what_makes_no_sense_ends_its_own_connection_only() {
    let app = idle("garbage");
    let supervisor = app.online(1).0["supervisor_pid"].clone();
    let mut other = connect(&app);
    let nested = |open: &str, count: usize| open.repeat(count).into_bytes();
    let mut deep = b"{\"method\":\"io.pmr.App.List\",\"parameters\":{\"slot\":".to_vec();
    deep.extend(nested("[", 100_000));
    for (name, mut bytes) in [
        ("bytes", vec![0xff, 0xfe, 0x01]),
        ("words", b"hello".to_vec()),
        ("http", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("arrays", nested("[", 500_000)),
        ("objects", nested("{\"a\":", 100_000)),
        ("deep parameters", deep),
        ("NULs", vec![0; 100_000]),
        ("a number", b"5".to_vec()),
    ] {
        bytes.push(0);
        for it in send(&app, &bytes) {
            assert!(it["error"].is_string(), "{name}: {it}");
        }
    }
    for (bytes, error) in [
        (&b"{}\0"[..], "io.pmr.App.Invalid"),
        (b"{\"method\":5}\0", "io.pmr.App.Invalid"),
        (b"{\"method\":\"List\"}\0", "org.varlink.service.InvalidParameter"),
        (b"{\"method\":\"io.pmr.Other.List\"}\0", "org.varlink.service.InterfaceNotFound"),
        (b"{\"method\":\"io.pmr.App.Lost\"}\0", "org.varlink.service.MethodNotFound"),
        (b"{\"method\":\"io.pmr.App.Scale\"}\0", "org.varlink.service.InvalidParameter"),
        (b"{\"method\":\"io.pmr.App.Watch\"}\0", "org.varlink.service.ExpectedMore"),
    ] {
        let answers = send(&app, bytes);
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert_eq!(answers[0]["error"], error);
    }
    assert!(send(&app, b"{\"method\":\"io.pmr").is_empty(), "half a message is no message");
    other.write_all(&request("List", &json!({}), false)).unwrap();
    assert_eq!(answer(&mut other).unwrap()["parameters"]["apps"][0]["name"], *app.setup.name);
    assert_supervises(&app, &supervisor);
}

#[test]
fn half_a_message_has_a_deadline() {
    let app = idle("half");
    let supervisor = app.online(1).0["supervisor_pid"].clone();
    let mut half = connect(&app);
    half.write_all(b"{\"method\":\"io.pmr.App.List\"").unwrap();
    assert_supervises(&app, &supervisor);
    assert_eq!(answer(&mut half), None, "it is closed without a word");
    assert_supervises(&app, &supervisor);
}

#[test]
fn a_message_of_two_mebibytes_is_refused() {
    let app = idle("large");
    let supervisor = app.online(1).0["supervisor_pid"].clone();
    for byte in [b'a', b'[', b' '] {
        let answers = send(&app, &vec![byte; 2 << 20]);
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert_eq!(answers[0]["error"], "io.pmr.App.Invalid");
        assert_has(answers[0]["parameters"]["message"].as_str().unwrap(), &["1048576 bytes"]);
    }
    assert_supervises(&app, &supervisor);
}

#[test]
fn requests_may_be_sent_without_waiting_for_answers() {
    let app = idle("pipelined");
    app.online(1);
    let mut stream = connect(&app);
    let mut bytes = Vec::new();
    for method in ["List", "Nonsense", "Describe", "Reset", "List"] {
        bytes.extend(request(method, &json!({}), false));
    }
    // However they are cut.
    for piece in bytes.chunks(37) {
        stream.write_all(piece).unwrap();
    }
    let answers: Vec<Value> = (0..5).map(|_| answer(&mut stream).unwrap()).collect();
    assert!(answers[0]["parameters"]["apps"].is_array());
    assert_eq!(answers[1]["error"], "org.varlink.service.MethodNotFound");
    assert!(answers[2]["parameters"]["app"].is_object());
    assert!(answers[3]["parameters"]["changed"].is_boolean());
    assert!(answers[4]["parameters"]["apps"].is_array());
}

#[test]
fn two_hundred_connections_keep_nobody_from_working() {
    let app = idle("crowd");
    let supervisor = app.online(1).0["supervisor_pid"].clone();
    let crowd: Vec<UnixStream> = (0..200).map(|_| connect(&app)).collect();
    // All of one user: some were let in, the others are closed again.
    let mut closed = 0;
    for mut stream in crowd {
        stream.write_all(&request("List", &json!({}), false)).unwrap_or_default();
        closed += usize::from(answer(&mut stream).is_none());
    }
    assert!((100..200).contains(&closed), "{closed} of 200 were refused");
    assert_supervises(&app, &supervisor);
}

#[test]
fn a_crowd_of_another_user_does_not_lock_out_root() {
    if !procs::is_root() || !procs::has("setpriv") {
        return procs::skip("a_crowd_of_another_user", "it takes root and setpriv");
    }
    let app = idle("lockout");
    let supervisor = app.online(1).0["supervisor_pid"].clone();
    let path = app.setup.runtime.join(&app.setup.name).join("io.pmr.App");
    let code = format!(
        "import os, signal, socket\ncrowd = []\nfor _ in range(200):\n \
         s = socket.socket(socket.AF_UNIX)\n s.connect({})\n crowd.append(s)\n\
         print('here', flush=True)\nsignal.pause()",
        quoted(path)
    );
    // Root's python may be where nobody else looks.
    let python = "/usr/bin/python3";
    let mut command = Command::new("setpriv");
    let id = NOBODY.to_string();
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", python, "-c", &code]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 5];
    let here = child.stdout.as_mut().unwrap().read_exact(&mut line);
    let status = app.pmr(&["status", &app.setup.name]);
    if here.is_ok() {
        assert_supervises(&app, &supervisor);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    if here.is_err() {
        return procs::skip("a_crowd_of_another_user", "it takes a python3 for all users");
    }
    assert_eq!(status.code, 0, "{}", status.err);
}

#[test]
fn a_client_that_never_reads_loses_lines_and_slows_nobody() {
    let port = free_port();
    let config = format!("{}max_restarts = 1000\n", demo(port, 1));
    let app = Setup::new("deaf").config(&config).start();
    let supervisor = app.online(1).0["supervisor_pid"].clone();
    let mut watcher = connect(&app);
    watcher.write_all(&request("Watch", &json!({}), true)).unwrap();
    let mut follower = connect(&app);
    follower.write_all(&request("Logs", &json!({ "follow": true }), true)).unwrap();
    assert!(answer(&mut follower).unwrap()["continues"].as_bool().unwrap());
    // More than the socket and the supervisor hold for a client.
    app.eventually("so many lines", || {
        get(port, "/log?lines=5000").ok();
        let kept = app.command("logs", &["-n", "1"]).out;
        assert!(kept.lines().count() <= 1);
        (fs::metadata(app.setup.directory.join("stdout")).unwrap().len() > 6 << 20).then_some(())
    });
    assert_supervises(&app, &supervisor);
    // The first event is there, and the lines that were dropped are counted.
    assert!(answer(&mut watcher).unwrap()["parameters"]["event"]["text"].is_string());
    let mut lost = 0;
    while lost == 0 {
        // Each part says how many were lost before it; one more is made where all are read.
        get(port, "/log?lines=1").unwrap_or_default();
        lost = answer(&mut follower).unwrap()["parameters"]["lost"].as_u64().unwrap();
    }
}

/// A config in which a new instance is looked at for another time.
fn stable_for(time: &str, config: &str) -> String {
    let others = config.lines().filter(|line| !line.starts_with("stable_for"));
    let own = format!("stable_for = \"{time}\"\n");
    others.chain([own.as_str()]).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_client_that_leaves_does_not_end_a_reload() {
    let port = free_port();
    let config = stable_for("1s", &demo(port, 2));
    let app = Setup::new("leaves").config(&config).start();
    let before = app.online(2);
    let mut stream = connect(&app);
    stream.write_all(&request("Reload", &json!({}), false)).unwrap();
    app.state("a reload", |state| state.0["roll"].is_object() || state.number(1, "release") == 2);
    drop(stream);
    let after = app.state("the end of the reload", |state| {
        (0..2).all(|slot| state.number(slot, "release") == 2 && state.word(slot) == "online")
            && state.0["roll"].is_null()
    });
    assert!(after.pids().iter().all(|pid| !before.pids().contains(pid)));
    assert_eq!(after.number(0, "restarts"), 0);
}

#[test]
fn a_second_reload_is_refused_while_one_goes_on_and_a_stop_ends_it() {
    let port = free_port();
    // So long that the first one is never done before the second is asked for.
    let config = stable_for("1h", &demo(port, 1));
    let mut app = Setup::new("busy").config(&config).start();
    let pids = app.online(1).pids();
    assert_eq!(app.pmr(&["reload", &app.setup.name, "--no-wait"]).code, 0);
    app.state("a reload", |state| state.0["roll"].is_object());
    for verb in ["reload", "restart"] {
        let done = app.pmr(&[verb, &app.setup.name]);
        assert_eq!(done.code, 1);
        assert_has(&done.err, &["cannot ", "a reload is running"]);
    }
    assert!(procs::lives(pids[0]), "the old one serves all the while");
    app.signal(Signal::TERM);
    assert_eq!(app.wait(), 0, "{}", app.setup.log());
    app.assert_nothing_left();
}

#[test]
fn the_socket_explains_itself_as_varlink() {
    let app = idle("varlink");
    app.online(1);
    let path = app.setup.runtime.join(&app.setup.name).join("io.pmr.App");
    // Nothing of pmr's own on this side.
    let code = format!(
        "import json, socket\ns = socket.socket(socket.AF_UNIX)\ns.connect({})\n\
         f = s.makefile('rwb')\n\
         def call(method, **parameters):\n \
          f.write(json.dumps(dict(method=method, parameters=parameters)).encode() + b'\\0')\n \
          f.flush()\n data = b''\n while not data.endswith(b'\\0'):\n  \
           data += f.read(1)\n return json.loads(data[:-1])\n\
         info = call('org.varlink.service.GetInfo')['parameters']\n\
         assert info['product'] and info['version'] and info['vendor'] and 'url' in info, info\n\
         names = info['interfaces']\n\
         assert sorted(names) == ['io.pmr.App', 'org.varlink.service'], names\n\
         for name in names:\n \
          idl = call('org.varlink.service.GetInterfaceDescription', interface=name)\n \
          idl = idl['parameters']['description']\n \
          assert ('interface ' + name) in idl, idl\n \
          print(idl)\n\
         bad = call('org.varlink.service.GetInterfaceDescription', interface='a.b')\n\
         assert bad['error'] == 'org.varlink.service.InterfaceNotFound', bad\n\
         apps = call('io.pmr.App.List')['parameters']\n\
         assert apps['version'] == 1 and len(apps['apps']) == 1, apps\n",
        quoted(path)
    );
    let done = app.setup.run(Command::new("python3").args(["-c", &code]));
    assert_eq!(done.code, 0, "{}", done.err);
    for method in ["List", "Describe", "Start", "Stop", "Restart", "Reload", "Scale", "Signal"] {
        assert_has(&done.out, &[&format!("method {method}(")]);
    }
    assert_has(&done.out, &["method Reset(", "method Watch(", "error Denied "]);
}

/// A pmr command of another user.
fn as_user(app: &App, uid: u32, group: Option<u32>, words: &[&str]) -> Done {
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={uid}")).arg(format!("--regid={NOBODY}"));
    match group {
        Some(gid) => command.arg(format!("--groups={gid}")),
        None => command.arg("--clear-groups"),
    };
    command.arg(app.setup.binary()).args(words).current_dir(&app.setup.directory);
    app.setup.run(command.env("PMR_RUNTIME_DIR", &app.setup.runtime))
}

#[test]
fn rights_are_those_of_root_the_apps_user_and_two_groups() {
    const TEST: &str = "rights_are_those_of_root_the_apps_user_and_two_groups";
    const READERS: u32 = 64_001;
    const ADMINS: u32 = 64_002;
    const APP: u32 = 64_003;
    const OTHER: u32 = 64_004;
    if !can_mount(TEST) {
        return;
    }
    if !procs::has("setpriv") {
        return procs::skip(TEST, "it takes setpriv");
    }
    let config = format!(
        "command = [\"sleep\", \"100000\"]\nuser = \"{APP}\"\ngroup = \"{NOBODY}\"\n\
         [env]\nSECRET = \"hush\"\n"
    );
    let setup = Setup::new("rights").config(&config).own_binary();
    let mut groups = fs::read_to_string("/etc/group").unwrap();
    groups.retain(|c| c != '\r');
    let others = groups.lines().filter(|line| !line.starts_with("pmr"));
    let own = [format!("pmr:x:{READERS}:"), format!("pmr-admin:x:{ADMINS}:")];
    let lines: Vec<&str> = others.chain(own.iter().map(String::as_str)).collect();
    let file = setup.write("group", &format!("{}\n", lines.join("\n")));
    // The groups are those of this app alone: the machine's own file is not touched.
    let script = format!("mount --bind {} /etc/group && exec \"$@\"", quoted(file));
    let app = setup.before(&["unshare", "--mount", "sh", "-c", &script, "sh"]).start();
    app.online(1);
    let name = app.setup.name.clone();
    let read = [vec!["status", &name], vec!["describe", &name], vec!["logs", &name]];
    let change = [
        vec!["env", &name, "0"],
        vec!["reset", &name],
        vec!["scale", &name, "1"],
        vec!["signal", "CONT", &name],
    ];
    for (who, uid, group, may_read, may_change) in [
        ("the app's user", APP, None, true, true),
        ("a reader", OTHER, Some(READERS), true, false),
        ("an admin", OTHER, Some(ADMINS), true, true),
        ("anybody", OTHER, None, false, false),
        ("nobody", NOBODY, None, false, false),
    ] {
        for (all, may) in [(&read[..], may_read), (&change, may_change)] {
            for words in all {
                let done = as_user(&app, uid, group, words);
                assert_eq!(done.code, if may { 0 } else { 5 }, "{who} {words:?}: {}", done.err);
                if !may {
                    assert_has(&done.err, &["only root, the app's user and ", "group"]);
                    assert_eq!(done.out.lines().filter(|line| line.contains("hush")).count(), 0);
                }
            }
        }
    }
    for verb in ["stop", "restart", "reload", "start"] {
        assert_eq!(as_user(&app, OTHER, Some(READERS), &[verb, &name]).code, 5, "{verb}");
    }
    assert_eq!(app.status().word(0), "online");
    assert_eq!(as_user(&app, OTHER, Some(ADMINS), &["stop", &name]).code, 0);
    assert_eq!(app.status().word(0), "stopped");
}
