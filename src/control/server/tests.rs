#![expect(clippy::arithmetic_side_effects, reason = "small numbers")]

use proptest::prelude::*;

use super::super::client::{CallError, Client, Deadline};
use super::super::loopback::{Scratch, track_backend_state, turn, with_app};
use super::super::protocol::DESCRIPTION;
use super::*;
use crate::policy::{Refusal, RollKind, SlotId};

const ROOT: u32 = 0;
const STRANGER: u32 = 4000;

fn connection(uid: u32) -> Connection {
    let peer = Peer { pid: 7, uid, gid: uid, groups: vec![] };
    Connection::new(peer, &GroupIds::default(), 1000, 0)
}

fn request(method: &str, parameters: &str) -> Vec<u8> {
    format!("{{\"method\":\"{method}\",\"parameters\":{parameters}}}\0").into_bytes()
}

fn answers(connection: &mut Connection) -> Vec<String> {
    let text = String::from_utf8(connection.outgoing().to_vec()).unwrap();
    let count = connection.outgoing().len();
    connection.sent(0, count);
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// What comes of one message: the call, or the answer, or the end.
fn outcome_of(uid: u32, message: &[u8]) -> String {
    let mut connection = connection(uid);
    connection.receive(1, message);
    match connection.next_call(1) {
        Some(call) => format!("{call:?}"),
        None if connection.is_closed() => "closed".to_owned(),
        None => answers(&mut connection).concat(),
    }
}

#[test]
fn root_the_owner_and_the_groups_have_rights() {
    let groups = GroupIds { pmr: Some(50), pmr_admin: Some(60) };
    for (uid, gid, more, groups, reads, changes) in [
        (0, 0, vec![], groups, true, true),
        (1000, 1000, vec![], groups, true, true),
        (2000, 2000, vec![], groups, false, false),
        (2000, 2000, vec![7, 50], groups, true, false),
        (2000, 50, vec![], groups, true, false),
        (2000, 2000, vec![60], groups, true, true),
        (2000, 60, vec![], groups, true, true),
        (2000, 2000, vec![50, 60], GroupIds::default(), false, false),
        (2000, 0, vec![0], GroupIds::default(), false, false),
    ] {
        let peer = Peer { pid: 1, uid, gid, groups: more };
        assert_eq!(permitted(&peer, &groups, 1000, false), reads, "{peer:?} reads");
        assert_eq!(permitted(&peer, &groups, 1000, true), changes, "{peer:?} changes");
    }
}

#[test]
fn one_user_cannot_take_every_place() {
    let many = |uid, count: usize| std::iter::repeat_n(uid, count);
    assert!(admits(many(5, 15), 5));
    assert!(!admits(many(5, 16), 5));
    assert!(admits(many(5, 16), 6));
    assert!(admits(many(0, 63), 0));
    assert!(!admits(many(0, 64), 0));
}

#[test]
fn requests_become_calls_or_named_errors() {
    for (method, parameters, expected) in [
        ("io.pmr.App.List", "{}", "List"),
        ("io.pmr.App.List", "null", "List"),
        ("io.pmr.App.Start", "{}", "Start { slot: None }"),
        ("io.pmr.App.Stop", r#"{"slot":1}"#, "Stop { slot: Some(1) }"),
        ("io.pmr.App.Stop", r#"{"slot":null,"new":[{}]}"#, "Stop { slot: None }"),
        ("io.pmr.App.Reload", "{}", "Reload"),
        ("io.pmr.App.Scale", r#"{"count":4}"#, "Scale { count: 4 }"),
        ("io.pmr.App.Signal", r#"{"signal":1}"#, "Signal { slot: None, signal: 1 }"),
        ("io.pmr.App.Set", r#"{"values":{"a":"1"}}"#, r#"Set { values: {"a": "1"} }"#),
        ("io.pmr.App.Env", r#"{"slot":0}"#, "Env { slot: 0 }"),
        ("io.pmr.App.Logs", "{}", "Logs { slot: None, lines: 15, follow: false }"),
        ("io.pmr.App.Upgrade", "{}", "Upgrade"),
    ] {
        let outcome = outcome_of(ROOT, &request(method, parameters));
        assert!(outcome == expected || outcome.starts_with(&format!("{expected} {{")), "{outcome}");
    }
    for (method, parameters, expected) in [
        ("io.pmr.App.Scale", "{}", r#"InvalidParameter","parameters":{"parameter":"count"}"#),
        ("io.pmr.App.Signal", r#"{"signal":65}"#, "InvalidParameter"),
        ("io.pmr.App.Signal", r#"{"signal":-1}"#, "InvalidParameter"),
        ("io.pmr.App.Set", r#"{"values":{}}"#, "InvalidParameter"),
        ("io.pmr.App.Env", "{}", "InvalidParameter"),
        ("io.pmr.App.Start", r#"{"slot":"x"}"#, "io.pmr.App.Invalid"),
        ("io.pmr.App.Start", r#"{"slot":-1}"#, "io.pmr.App.Invalid"),
        ("io.pmr.App.Start", r#"{"slot":70000}"#, "io.pmr.App.Invalid"),
        ("io.pmr.App.Start", r#"{"slot":1,"slot":2}"#, "io.pmr.App.Invalid"),
        ("io.pmr.App.Start", "[]", "io.pmr.App.Invalid"),
        ("io.pmr.App.Frobnicate", "{}", "org.varlink.service.MethodNotFound"),
        ("io.systemd.Foo.Start", "{}", "org.varlink.service.InterfaceNotFound"),
        ("Start", "{}", "InvalidParameter"),
        ("io.pmr.App.Watch", "{}", "org.varlink.service.ExpectedMore"),
        ("io.pmr.App.Logs", r#"{"follow":true}"#, "org.varlink.service.ExpectedMore"),
        ("org.varlink.service.Foo", "{}", "org.varlink.service.MethodNotFound"),
        (
            "org.varlink.service.GetInfo",
            "{}",
            r#""interfaces":["org.varlink.service","io.pmr.App"]"#,
        ),
    ] {
        let outcome = outcome_of(STRANGER, &request(method, parameters));
        assert!(outcome.contains(expected), "{method} {parameters}: {outcome}");
    }
}

#[test]
fn strangers_are_denied_by_name() {
    for method in ["List", "Describe", "Logs", "Stop", "Signal", "Env", "Upgrade", "Reload"] {
        let message = request(&format!("io.pmr.App.{method}"), r#"{"slot":0,"signal":9}"#);
        let answer = outcome_of(STRANGER, &message);
        assert!(answer.contains(r#""error":"io.pmr.App.Denied""#), "{method}: {answer}");
        assert!(answer.contains("root"), "it says who may: {answer}");
    }
}

#[test]
fn garbage_ends_the_connection() {
    let deep = vec![b'['; 500_000];
    let nested = format!("{{\"new\":{}{}}}", "[".repeat(400_000), "]".repeat(400_000));
    let nested = request("io.pmr.App.List", &nested);
    assert_eq!(outcome_of(ROOT, &nested), "List", "what is not known is skipped, however deep");
    for garbage in [&b"\0"[..], b"\0\0\0\0", b"hello\0", b"{\0", b"\xff\xfe{}\0"] {
        assert_eq!(outcome_of(ROOT, garbage), "closed");
    }
    for answered in [&b"[]"[..], b"1", b"{}", br#"{"method":1}"#, &deep] {
        let mut message = answered.to_vec();
        message.push(0);
        assert!(outcome_of(ROOT, &message).contains("io.pmr.App.Invalid"));
    }
}

#[test]
fn a_message_of_two_megabytes_is_refused_at_one() {
    let mut connection = connection(ROOT);
    let chunk = vec![b' '; 64 * 1024];
    for _ in 0..32 {
        connection.receive(1, &chunk);
    }
    assert!(!connection.wants_input(), "nothing more is read");
    assert!(connection.next_call(1).is_none());
    assert!(!connection.input.has_partial(), "and nothing is kept");
    let answer = answers(&mut connection);
    assert_eq!(answer.len(), 1);
    assert!(answer[0].contains("1048576 bytes"), "{answer:?}");
    assert!(connection.is_closed());
}

#[test]
fn half_a_message_has_ten_seconds_however_it_trickles() {
    let mut connection = connection(ROOT);
    connection.receive(1000, b"{");
    for now in [4000, 8000, 10_999] {
        assert_eq!(connection.deadline(), Some(11_000));
        connection.handle_time(now);
        connection.receive(now, b" ");
        assert!(!connection.is_closed());
    }
    connection.handle_time(11_000);
    assert!(connection.is_closed());
}

#[test]
fn an_idle_connection_ends_and_one_that_waits_does_not() {
    let mut idle = connection(ROOT);
    assert_eq!(idle.deadline(), Some(60_000));
    idle.handle_time(59_999);
    assert!(!idle.is_closed());
    idle.handle_time(60_000);
    assert!(idle.is_closed());

    let mut waiting = connection(ROOT);
    waiting.receive(5, &request("io.pmr.App.Stop", "{}"));
    assert!(waiting.next_call(5).is_some());
    assert_eq!(waiting.deadline(), None);
    waiting.reply(100_000, Reply::Outcome(Outcome::Done));
    assert_eq!(waiting.deadline(), Some(110_000), "the answer must be read");
    assert_eq!(answers(&mut waiting), [r#"{"parameters":{"changed":true}}"#]);
}

#[test]
fn requests_are_worked_on_one_by_one_in_order() {
    let mut connection = connection(ROOT);
    for slot in 0..16 {
        let parameters = format!(r#"{{"slot":{slot}}}"#);
        connection.receive(1, &request("io.pmr.App.Stop", &parameters));
    }
    for slot in 0..16 {
        assert_eq!(connection.next_call(1), Some(Call::Stop { slot: Some(slot) }));
        assert_eq!(connection.next_call(1), None, "one at a time");
        connection.reply(1, Reply::Outcome(Outcome::AlreadySo));
    }
    assert_eq!(answers(&mut connection).len(), 16);
    assert_eq!(connection.next_call(1), None);

    connection.receive(1, &request("io.pmr.App.Stop", "{}").repeat(17));
    assert!(answers(&mut connection)[0].contains("io.pmr.App.TooMany"));
    assert!(connection.is_closed());
}

#[test]
fn outcomes_have_names() {
    let slot = SlotId(3);
    for (method, outcome, expected) in [
        ("Stop", Outcome::Done, r#"{"changed":true}"#),
        ("Stop", Outcome::AlreadySo, r#"{"changed":false}"#),
        ("Reload", Outcome::Failed(slot), "io.pmr.App.RolledBack"),
        ("Restart", Outcome::Failed(slot), "io.pmr.App.Failed"),
        ("Reload", Outcome::Cancelled, "io.pmr.App.Cancelled"),
        ("Reload", Outcome::Refused(Refusal::Busy(RollKind::Memory)), "io.pmr.App.Busy"),
        ("Stop", Outcome::Refused(Refusal::NoSuchSlot(slot)), "there is no slot 3"),
        ("Stop", Outcome::Refused(Refusal::ShuttingDown), "io.pmr.App.ShuttingDown"),
        ("Stop", Outcome::Refused(Refusal::TooMany), "io.pmr.App.TooMany"),
        ("Stop", Outcome::Refused(Refusal::Count(0)), "io.pmr.App.Invalid"),
        ("Stop", Outcome::Refused(Refusal::NothingRuns), "io.pmr.App.Failed"),
    ] {
        let mut connection = connection(ROOT);
        connection.receive(1, &request(&format!("io.pmr.App.{method}"), "{}"));
        assert!(connection.next_call(1).is_some());
        connection.reply(1, Reply::Outcome(outcome));
        let answer = answers(&mut connection).concat();
        assert!(answer.contains(expected), "{answer}");
    }
}

#[test]
fn a_oneway_request_is_not_answered() {
    let mut connection = connection(STRANGER);
    connection.receive(1, b"{\"method\":\"io.pmr.App.Stop\",\"oneway\":true}\0");
    assert_eq!(connection.next_call(1), None);
    assert!(connection.outgoing().is_empty());
    let mut connection = self::connection(ROOT);
    connection.receive(1, b"{\"method\":\"io.pmr.App.Stop\",\"oneway\":true}\0");
    assert_eq!(connection.next_call(1), Some(Call::Stop { slot: None }));
    connection.reply(1, Reply::Outcome(Outcome::Done));
    assert!(connection.outgoing().is_empty() && !connection.is_closed());
}

#[test]
fn a_watcher_that_does_not_read_loses_parts_and_is_told() {
    let mut connection = connection(ROOT);
    connection.receive(1, b"{\"method\":\"io.pmr.App.Watch\",\"more\":true}\0");
    assert_eq!(connection.next_call(1), Some(Call::Watch));
    let event = AppEvent { text: "x".repeat(1000), ..AppEvent::default() };
    let mut sent = 0;
    while connection.lost < 5 {
        connection.reply(1, Reply::Event(event.clone()));
        sent += 1;
        assert!(connection.outgoing().len() <= OUTPUT_BYTES_MAX);
    }
    assert_eq!(connection.deadline(), None, "it may be in a pager");
    assert_eq!(answers(&mut connection).len(), sent - 5);
    connection.reply(2, Reply::Event(event.clone()));
    connection.reply(2, Reply::Event(event));
    let parts = answers(&mut connection);
    assert!(parts[0].contains(r#""lost":5"#) && parts[0].contains(r#""continues":true"#));
    assert!(parts[1].contains(r#""lost":0"#));
    connection.handle_eof();
    assert!(connection.is_closed(), "a watcher that goes away is forgotten");
}

#[test]
fn a_peer_that_asks_and_does_not_read_is_dropped() {
    let mut by_time = connection(ROOT);
    by_time.receive(1, &request("org.varlink.service.GetInfo", "{}"));
    assert_eq!(by_time.next_call(1), None);
    by_time.handle_time(10_001);
    assert!(by_time.is_closed());

    let mut by_bytes = connection(ROOT);
    let ask =
        request("org.varlink.service.GetInterfaceDescription", r#"{"interface":"io.pmr.App"}"#);
    let mut asked = 0;
    while !by_bytes.is_closed() {
        by_bytes.receive(1, &ask);
        assert_eq!(by_bytes.next_call(1), None);
        asked += 1;
        assert!(asked * DESCRIPTION.len() < 2 * OUTPUT_BYTES_MAX);
    }
    assert!(by_bytes.outgoing().len() <= OUTPUT_BYTES_MAX);
}

#[test]
fn who_asks_and_closes_its_half_is_still_answered() {
    let mut connection = connection(ROOT);
    connection.receive(1, &request("io.pmr.App.Stop", "{}"));
    connection.handle_eof();
    assert!(!connection.wants_input() && !connection.is_closed());
    assert!(connection.next_call(1).is_some());
    connection.reply(1, Reply::Outcome(Outcome::Done));
    assert!(!connection.is_closed());
    assert_eq!(answers(&mut connection).len(), 1);
    assert!(connection.is_closed());
}

#[test]
fn the_shipped_description_names_what_there_is() {
    for method in [
        "List", "Describe", "Start", "Stop", "Restart", "Reload", "Scale", "Signal", "Reset",
        "Watch", "Env", "Logs", "Upgrade", "Set",
    ] {
        assert!(DESCRIPTION.contains(&format!("\nmethod {method}(")), "{method}");
        let parameters = Parameters {
            slot: Some(0),
            count: Some(1),
            signal: Some(1),
            values: Some([("tasks_max".to_owned(), "9".to_owned())].into()),
            ..Parameters::default()
        };
        assert!(Call::read(method, &parameters).is_ok(), "{method}");
    }
    assert_eq!(DESCRIPTION.matches("\nmethod ").count(), 14);
    for kind in FaultKind::ALL {
        assert!(DESCRIPTION.contains(&format!("\nerror {} (message: string)", kind.name())));
        let name = format!("{INTERFACE}.{}", kind.name());
        assert_eq!(FaultKind::from_name(&name), Some(kind));
    }
    assert_eq!(DESCRIPTION.matches("\nerror ").count(), FaultKind::ALL.len());
    let mut app = track_backend_state();
    app.roll = Some(super::super::protocol::RollState::default());
    app.upgrade = Some(super::super::protocol::UpgradeState::default());
    app.instances[0].other = Some(super::super::protocol::OtherState::default());
    let app = serde_json::to_value(app).unwrap();
    let event = serde_json::to_value(AppEvent::default()).unwrap();
    let line = serde_json::to_value(LogLine::default()).unwrap();
    for value in [app, event, line] {
        assert_described(&value);
    }
}

fn assert_described(value: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                assert!(DESCRIPTION.contains(&format!("\n  {name}: ")), "{name} is described");
                assert_described(value);
            }
        }
        Value::Array(values) => values.iter().for_each(assert_described),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn client_and_server_understand_each_other() {
    let scratch = Scratch::new("x".repeat(120).as_str());
    let answer = |call: Call| match call {
        Call::List | Call::Describe => vec![Reply::App(Box::new(track_backend_state()))],
        Call::Env { slot } => {
            vec![Reply::Environment([("SLOT".to_owned(), slot.to_string())].into())]
        }
        Call::Watch => {
            let event = |name: &str| {
                Reply::Event(AppEvent { name: name.to_owned(), ..AppEvent::default() })
            };
            let end = Reply::Fault(Fault::new(FaultKind::ShuttingDown, "over"));
            vec![event("failed"), event("starting"), end]
        }
        Call::Logs { follow, .. } => {
            let lines = vec![LogLine { text: "hello".to_owned(), ..LogLine::default() }];
            if follow {
                vec![Reply::Lines(lines.clone()), Reply::Lines(lines)]
            } else {
                vec![Reply::Lines(lines)]
            }
        }
        Call::Restart { .. } => vec![],
        other => {
            vec![Reply::Fault(Fault::new(FaultKind::Failed, format!("{other:?}")))]
        }
    };
    with_app(&scratch.0, "web", ROOT, answer, || {
        let directory = scratch.0.join("web");
        let soon = || Deadline::after(std::time::Duration::from_secs(20));
        let connect = || Client::connect(&directory).unwrap();
        let mut client = connect();
        assert_eq!(client.list(soon()).unwrap(), track_backend_state());
        assert_eq!(client.describe(soon()).unwrap(), track_backend_state());
        assert_eq!(client.environment(1, soon()).unwrap()["SLOT"], "1");
        let scale = client.call("Scale", &json!({ "count": 3 }), soon());
        assert!(
            matches!(scale, Err(CallError::Fault(fault)) if fault.message == "Scale { count: 3 }")
        );
        let bad = client.call("Bad", &json!({}), soon());
        assert!(matches!(bad, Err(CallError::Other(name)) if name.ends_with(".MethodNotFound")));
        let restart = client.call(
            "Restart",
            &json!({}),
            Deadline::after(std::time::Duration::from_millis(5)),
        );
        assert!(matches!(restart, Err(CallError::TimedOut)));
        let events: Vec<_> = connect().watch(soon()).unwrap().collect();
        assert_eq!(events.len(), 3);
        assert_eq!(events[1].as_ref().unwrap().0.name, "starting");
        assert!(matches!(&events[2], Err(CallError::Fault(it)) if it.message == "over"));
        let lines: Vec<_> = connect().logs(None, 5, false, soon()).unwrap().collect();
        assert_eq!(lines.len(), 1);
        let lines: Vec<_> = connect().logs(None, 5, true, soon()).unwrap().take(2).collect();
        assert_eq!(lines[1].as_ref().unwrap().0[0].text, "hello");
    });
    let after = Client::connect(&scratch.0.join("web"));
    assert!(
        matches!(after, Err(super::super::client::ConnectError::NotRunning)),
        "a socket that nobody listens on is no app"
    );
}

/// Feeds a connection as a runtime would, and looks at its bounds after every step.
fn feed(bytes: &[u8], chunks: &[usize]) -> Connection {
    let mut connection = connection(ROOT);
    let mut rest = bytes;
    let mut sizes = chunks.iter().cycle();
    let mut now = 0;
    while !rest.is_empty() && !connection.is_closed() {
        now += 1;
        let size = sizes.next().copied().unwrap_or(1).clamp(1, rest.len());
        connection.receive(now, &rest[..size]);
        rest = &rest[size..];
        while let Some(call) = connection.next_call(now) {
            assert_eq!(connection.in_flight(), Some(&call));
            connection.reply(now, Reply::Outcome(Outcome::Done));
            connection.reply(now, Reply::Fault(Fault::new(FaultKind::Failed, "over")));
            assert_eq!(connection.in_flight(), None);
        }
        assert!(connection.outgoing().len() <= OUTPUT_BYTES_MAX);
    }
    connection
}

/// What may stand in a message, right and wrong.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just("\0"),
        Just("{"),
        Just("}"),
        Just("\"method\":"),
        Just("\"io.pmr.App.Stop\""),
        Just("\"io.pmr.App.Watch\",\"more\":true"),
        Just(","),
        Just("\"parameters\":{\"slot\":1}"),
        Just("\"oneway\":true"),
        Just("{\"method\":\"io.pmr.App.List\"}\0"),
        Just("{\"method\":\"org.varlink.service.GetInfo\"}\0"),
        Just("1e999"),
        Just("[[[["),
    ];
    prop_oneof![
        4 => word.prop_map(|word| word.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..20),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_do_no_harm_however_they_are_cut(
        pieces in proptest::collection::vec(piece(), 0..60),
        chunks in proptest::collection::vec(1_usize..50, 1..5),
    ) {
        let bytes = pieces.concat();
        let cut = feed(&bytes, &chunks);
        let whole = feed(&bytes, &[1]);
        prop_assert_eq!(cut.outgoing(), whole.outgoing(), "answers do not depend on the cut");
        prop_assert_eq!(cut.is_closed(), whole.is_closed());
    }
}

#[test]
fn a_socket_that_is_closed_with_a_question_in_it_is_forgotten() {
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut connection = connection(ROOT);
    {
        use std::io::Write as _;
        let mut theirs = &theirs;
        theirs.write_all(&request("io.pmr.App.List", "{}")).unwrap();
    }
    drop(theirs);
    turn(&mut ours, &mut connection, 1, &mut |_| vec![Reply::App(Box::default())]);
    assert!(connection.is_closed());
}
