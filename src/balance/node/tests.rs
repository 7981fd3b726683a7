//! One worker and its primary, in the words that Node 20 writes.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::lines::LINE_MAX;
use super::*;

/// A worker, what it shares with others, and what has gone to it.
struct Talk {
    worker: Worker,
    hub: Hub,
}

impl Talk {
    fn new() -> Self {
        Self { worker: Worker::new(Channel::Cluster), hub: Hub::default() }
    }

    fn hears(&mut self, bytes: &[u8]) -> Vec<Do> {
        let mut out = Vec::new();
        self.worker.read(bytes, &mut self.hub, &mut out);
        out
    }

    fn hears_json(&mut self, message: &Value) -> Vec<Do> {
        self.hears(format!("{message}\n").as_bytes())
    }

    /// Asks for what the message wants, which is granted to be a socket.
    fn asked(&mut self, message: &Value) -> (RequestId, Wanted) {
        let mut out = self.hears_json(message);
        assert_eq!(out.len(), 1, "{out:?}");
        match out.remove(0) {
            Do::Ask { id, wanted } => (id, wanted),
            other => panic!("{other:?}"),
        }
    }

    fn gives(&mut self, id: RequestId, at: &str) {
        assert!(self.worker.give(id, at.parse().unwrap(), &mut self.hub));
    }

    /// All that can be written now: each line with the request of its socket.
    fn written(&mut self) -> Vec<(Value, Option<RequestId>)> {
        let mut written = Vec::new();
        while let Some(Chunk { bytes, handle }) = self.worker.next_chunk() {
            let count = bytes.len();
            assert_eq!(bytes.iter().position(|&byte| byte == b'\n'), count.checked_sub(1));
            written.push((serde_json::from_slice(bytes).unwrap(), handle));
            self.worker.wrote(count);
        }
        written
    }

    /// The one line that can be written now, which has no socket.
    fn says(&mut self) -> Value {
        let mut written = self.written();
        assert_eq!(written.len(), 1, "{written:?}");
        assert_eq!(written[0].1, None);
        written.remove(0).0
    }

    /// Takes what was written, and acknowledges sockets until nothing is left.
    fn settles(&mut self) -> Vec<Value> {
        let mut all = Vec::new();
        while !self.worker.is_quiet() {
            let written = self.written();
            if written.iter().any(|(_, handle)| handle.is_some()) {
                assert_eq!(self.hears(ARRIVED), []);
            }
            all.extend(written.into_iter().map(|(message, _)| message));
        }
        all
    }
}

const ARRIVED: &[u8] = b"{\"cmd\":\"NODE_HANDLE_ACK\"}\n";
const LOST: &[u8] = b"{\"cmd\":\"NODE_HANDLE_NACK\"}\n";

/// `listen(port)` of a worker, its question number `seq`.
fn query(seq: u64, port: u16) -> Value {
    json!({
        "cmd": "NODE_CLUSTER", "act": "queryServer", "index": 0, "data": null, "address": null,
        "port": port, "addressType": 4, "backlog": 0, "seq": seq,
    })
}

/// The message with some fields set otherwise.
fn with(message: &Value, fields: &Value) -> Value {
    let mut message = message.clone();
    for (name, value) in fields.as_object().unwrap() {
        message[name] = value.clone();
    }
    message
}

fn at(text: &str) -> Address {
    text.parse().unwrap()
}

#[test]
fn a_worker_is_given_its_socket_and_listens() {
    let mut talk = Talk::new();
    assert_eq!(talk.worker.phase(), Phase::Silent);
    let online = json!({"cmd": "NODE_CLUSTER", "act": "online", "seq": 0});
    assert_eq!(talk.hears_json(&online), [Do::Online]);
    assert_eq!(talk.worker.phase(), Phase::Online);

    let (id, wanted) = talk.asked(&query(1, 3000));
    assert_eq!((&wanted.address, wanted.family), (&at("[::]:3000"), Family::Any));
    assert_eq!(talk.written(), []);
    talk.gives(id, "[::]:3000");
    let answer = json!({
        "cmd": "NODE_HANDLE", "type": "net.Native",
        "msg": {
            "cmd": "NODE_CLUSTER", "errno": 0, "key": "1@[::]:3000", "ack": 1, "data": null,
            "seq": 0,
        },
    });
    assert_eq!(talk.written(), [(answer, Some(id))]);
    assert!(talk.worker.say("waits"));
    assert_eq!(talk.written(), []);
    assert_eq!(talk.hears(ARRIVED), []);
    assert_eq!(talk.says(), json!("waits"));

    let listening = with(&query(2, 3000), &json!({"act": "listening"}));
    let listens = [Do::Listening { address: at("[::]:3000"), given: true }];
    assert_eq!(talk.hears_json(&listening), listens);
    assert_eq!(talk.worker.phase(), Phase::Listening);
    assert_eq!(talk.hears(b"\"ready\"\n"), [Do::Ready]);

    let close = json!({"cmd": "NODE_CLUSTER", "act": "close", "key": "1@[::]:3000", "seq": 3});
    assert_eq!(talk.hears_json(&close), [Do::Closed { address: at("[::]:3000") }]);
    assert_eq!(talk.hears_json(&close), [Do::Report(Oddity::NoServer)]);
}

#[test]
fn what_is_wanted_is_read_loosely() {
    let rest = |address: &str| Wanted {
        address: at(address),
        index: 0,
        family: Family::Both,
        reuse_address: false,
        mode: 0,
        datagram: false,
    };
    let cases = [
        (json!({"address": "127.0.0.1"}), rest("127.0.0.1:80")),
        (json!({"address": "127.0.0.1", "fd": -1}), rest("127.0.0.1:80")),
        (json!({"address": "::1", "addressType": 6}), rest("[::1]:80")),
        (json!({"port": "81"}), Wanted { family: Family::Any, ..rest("[::]:81") }),
        (json!({"port": null}), Wanted { family: Family::Any, ..rest("[::]:0") }),
        (json!({"port": {}}), Wanted { family: Family::Any, ..rest("[::]:0") }),
        (
            json!({"backlog": false, "exclusive": {}}),
            Wanted { family: Family::Any, ..rest("[::]:80") },
        ),
        (
            json!({"address": "::", "flags": 1}),
            Wanted { family: Family::OnlyV6, ..rest("[::]:80") },
        ),
        (json!({"flags": 1}), Wanted { family: Family::OnlyV6, ..rest("[::]:80") }),
        (json!({"index": 2}), Wanted { index: 2, family: Family::Any, ..rest("[::]:80") }),
        (
            json!({"address": "0.0.0.0", "addressType": "udp4", "flags": 4, "fd": -1}),
            Wanted { reuse_address: true, datagram: true, ..rest("udp:0.0.0.0:80") },
        ),
        (json!({"addressType": "udp4"}), Wanted { datagram: true, ..rest("udp:0.0.0.0:80") }),
        (
            json!({"addressType": "udp6", "flags": 1}),
            Wanted { datagram: true, family: Family::OnlyV6, ..rest("udp:[::]:80") },
        ),
        (
            json!({"addressType": "udp4", "port": null, "fd": 5, "flags": null}),
            Wanted { datagram: true, ..rest("fd:5") },
        ),
        (json!({"addressType": null, "port": null, "fd": 3}), rest("fd:3")),
        (json!({"addressType": -1, "port": -1, "address": "/run/a b"}), rest("/run/a b")),
        (
            json!({
                "addressType": -1, "port": -1, "address": "/run/x", "readableAll": true,
                "writableAll": true,
            }),
            Wanted { mode: 0o666, ..rest("/run/x") },
        ),
        (
            json!({
                "addressType": -1, "port": -1, "address": "/run/x", "readableAll": 1,
                "writableAll": true,
            }),
            Wanted { mode: 0o222, ..rest("/run/x") },
        ),
    ];
    for (fields, expected) in cases {
        let mut talk = Talk::new();
        assert_eq!(talk.asked(&with(&query(1, 80), &fields)).1, expected, "{fields}");
    }
}

#[test]
fn what_cannot_be_is_answered_with_an_errno() {
    let long = format!("/{}", "x".repeat(107));
    let cases = [
        (json!({"port": 65536}), libc::EINVAL),
        (json!({"port": -2}), libc::EINVAL),
        (json!({"address": "fe80::1%eth0"}), libc::EADDRNOTAVAIL),
        (json!({"address": "localhost"}), libc::EADDRNOTAVAIL),
        (json!({"addressType": -1, "port": -1}), libc::EINVAL),
        (json!({"addressType": -1, "port": -1, "address": "run/x"}), libc::EINVAL),
        (json!({"addressType": -1, "port": -1, "address": "/run/\0x"}), libc::EINVAL),
        (json!({"addressType": -1, "port": -1, "address": long}), libc::ENAMETOOLONG),
        (json!({"data": {"x": "y".repeat(DATA_MAX)}}), libc::ENOBUFS),
    ];
    for (fields, errno) in cases {
        let mut talk = Talk::new();
        let out = talk.hears_json(&with(&query(1, 80), &fields));
        assert!(matches!(out[..], [Do::Report(Oddity::Refused(_))]), "{fields} {out:?}");
        let answer = json!({
            "cmd": "NODE_CLUSTER", "errno": -errno, "key": "1", "ack": 1, "data": null, "seq": 0,
        });
        assert_eq!(talk.says(), answer, "{fields}");
    }
}

#[test]
fn a_tls_server_is_told_the_keys_of_the_first_worker_even_when_refused() {
    let mut hub = Hub::default();
    let mut told = Vec::new();
    for (keys, is_given) in [("aa", true), ("bb", true), ("cc", false)] {
        let mut talk = Talk { worker: Worker::new(Channel::Cluster), hub };
        let data = json!({"data": {"ticketKeys": keys}});
        let (id, wanted) = talk.asked(&with(&query(1, 443), &data));
        if is_given {
            talk.gives(id, &wanted.address.to_string());
        } else {
            assert!(talk.worker.refuse(id, libc::EADDRINUSE, &talk.hub));
        }
        let (message, handle) = talk.written().remove(0);
        assert_eq!(handle.is_some(), is_given);
        told.push(if is_given { message["msg"]["data"].clone() } else { message["data"].clone() });
        hub = talk.hub;
    }
    assert_eq!(told, vec![json!({"ticketKeys": "aa"}); 3]);
    // A plain server at the same address has no use for them.
    let mut talk = Talk { worker: Worker::new(Channel::Cluster), hub };
    let (id, _) = talk.asked(&query(1, 443));
    talk.gives(id, "[::]:443");
    assert_eq!(talk.written()[0].0["msg"]["data"], Value::Null);
}

#[test]
fn all_workers_have_the_port_that_the_kernel_chose_for_the_first() {
    let mut hub = Hub::default();
    for (expected, chosen) in [("[::]:0", "[::]:4000"), ("[::]:4000", "[::]:4000")] {
        let mut talk = Talk { worker: Worker::new(Channel::Cluster), hub };
        let (id, wanted) = talk.asked(&query(1, 0));
        assert_eq!(wanted.address, at(expected));
        talk.gives(id, chosen);
        assert_eq!(talk.written()[0].0["msg"]["key"], json!("1@[::]:4000"));
        talk.hears(ARRIVED);
        let listening = with(&query(2, 4000), &json!({"act": "listening"}));
        let listens = [Do::Listening { address: at("[::]:4000"), given: true }];
        assert_eq!(talk.hears_json(&listening), listens);
        // Two servers with port 0 are two.
        let (_, wanted) = talk.asked(&with(&query(3, 0), &json!({"index": 1})));
        assert_eq!(wanted.address, at("[::]:0"));
        hub = talk.hub;
    }
}

#[test]
fn an_address_is_closed_with_its_last_server() {
    let mut talk = Talk::new();
    for seq in [1, 2] {
        let (id, _) = talk.asked(&with(&query(seq, 80), &json!({"index": seq - 1})));
        talk.gives(id, "0.0.0.0:80");
    }
    assert_eq!(talk.settles().len(), 2);
    // Bound to IPv4, since there was no IPv6: it is named as it was given.
    let listening = with(&query(3, 80), &json!({"act": "listening", "index": 1}));
    let listens = [Do::Listening { address: at("0.0.0.0:80"), given: true }];
    assert_eq!(talk.hears_json(&listening), listens);
    let close = |key: &str| json!({"cmd": "NODE_CLUSTER", "act": "close", "key": key});
    assert_eq!(talk.hears_json(&close("1@0.0.0.0:80")), []);
    let closed = [Do::Closed { address: at("0.0.0.0:80") }];
    assert_eq!(talk.hears_json(&close("2@0.0.0.0:80")), closed);
}

#[test]
fn a_worker_that_listens_by_itself_is_told_from_one_that_was_given_its_socket() {
    let mut talk = Talk::new();
    let listening = with(&query(1, 80), &json!({"act": "listening"}));
    let listens = [Do::Listening { address: at("[::]:80"), given: false }];
    // Bun marks messages of its own so, and asks nobody for a socket.
    assert_eq!(talk.hears(format!("\u{2}{listening}\n").as_bytes()), listens);
}

#[test]
fn a_socket_that_has_not_arrived_cannot_be_closed() {
    let mut talk = Talk::new();
    let (id, _) = talk.asked(&query(1, 80));
    talk.gives(id, "[::]:80");
    let close = json!({"cmd": "NODE_CLUSTER", "act": "close", "key": "1@[::]:80"});
    assert_eq!(talk.hears_json(&close), [Do::Report(Oddity::NoServer)]);
    assert_eq!(talk.settles().len(), 1);
    assert_eq!(talk.hears_json(&close), [Do::Closed { address: at("[::]:80") }]);
}

#[test]
fn a_worker_leaves_when_asked_and_by_itself() {
    let mut talk = Talk::new();
    assert!(talk.worker.disconnect());
    assert_eq!(talk.says(), json!({"cmd": "NODE_CLUSTER", "act": "disconnect", "seq": 0}));
    assert_eq!(talk.worker.phase(), Phase::Leaving);
    assert!(!talk.worker.disconnect());
    assert!(!talk.worker.say("too late"));
    assert_eq!(talk.written(), []);

    let mut talk = Talk::new();
    let leaves = json!({"cmd": "NODE_CLUSTER", "act": "exitedAfterDisconnect", "seq": 7});
    assert_eq!(talk.hears_json(&leaves), [Do::Leaving]);
    assert_eq!(talk.says(), json!({"cmd": "NODE_CLUSTER", "ack": 7, "seq": 0}));
    assert!(!talk.worker.disconnect());
    // It waits for every answer, whatever it asks for now.
    let (id, _) = talk.asked(&query(8, 80));
    talk.gives(id, "[::]:80");
    assert_eq!(talk.written().len(), 1);
}

#[test]
fn handles_of_the_app_are_acknowledged_once_each_and_past_the_queue() {
    let mut talk = Talk::new();
    let (id, _) = talk.asked(&query(1, 80));
    talk.gives(id, "[::]:80");
    assert_eq!(talk.written().len(), 1);
    assert!(talk.worker.say("later"));
    let ack: Value = serde_json::from_slice(ARRIVED).unwrap();
    let handle = json!({"cmd": "NODE_HANDLE", "type": "net.Socket", "msg": "ready", "key": "x"});
    assert_eq!(talk.hears_json(&handle), [Do::Report(Oddity::Handle), Do::Ready]);
    assert_eq!(talk.says(), ack);
    // Too long to be read, and still a handle.
    let long = json!({"x": "x".repeat(LINE_MAX)});
    let long = format!("{{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Socket\",\"msg\":{long}}}\n");
    assert_eq!(talk.hears(long.as_bytes()), [Do::Report(Oddity::Handle)]);
    assert_eq!(talk.says(), ack);
    // Nothing of Node's own comes with a handle, and a handle not with another.
    let nested = with(&handle, &json!({"msg": query(5, 80)}));
    assert_eq!(talk.hears_json(&nested), [Do::Report(Oddity::Handle)]);
    assert_eq!(talk.says(), ack);
    let nested = talk.hears_json(&with(&handle, &json!({"msg": handle})));
    let unknown = Oddity::Command("NODE_HANDLE".to_owned());
    assert_eq!(nested, [Do::Report(Oddity::Handle), Do::Report(unknown)]);
    assert_eq!(talk.says(), ack);
    assert_eq!(talk.hears(ARRIVED), []);
    assert_eq!(talk.says(), json!("later"));
}

#[test]
fn a_socket_that_gets_lost_is_sent_again_and_at_last_refused() {
    let mut talk = Talk::new();
    let (id, _) = talk.asked(&with(&query(1, 80), &json!({"data": {"ticketKeys": "aa"}})));
    talk.gives(id, "[::]:80");
    for _ in 0..3 {
        assert_eq!(talk.written().len(), 1);
        assert_eq!(talk.hears(LOST), []);
    }
    assert_eq!(talk.written()[0].1, Some(id));
    let out = [Do::Closed { address: at("[::]:80") }, Do::Report(Oddity::Lost)];
    assert_eq!(talk.hears(LOST), out);
    let answer = talk.says();
    assert_eq!(answer["errno"], json!(-libc::EMFILE));
    assert_eq!(answer["data"], json!({"ticketKeys": "aa"}));
    assert!(talk.worker.is_quiet());
    assert_eq!(talk.hears(LOST), [Do::Report(Oddity::NoHandle)]);
}

#[test]
fn what_means_nothing_is_reported_some_times_and_changes_nothing() {
    let mut talk = Talk::new();
    let cases = [
        ("nonsense\n", Oddity::NotJson),
        ("\n", Oddity::NotJson),
        ("{\"cmd\":\"NODE_CLUSTER\",\"cmd\":1}\n", Oddity::NotJson),
        ("{\"cmd\":\"NODE_NEW\"}\n", Oddity::Command("NODE_NEW".to_owned())),
        ("{\"cmd\":\"NODE_CLUSTER\",\"act\":\"new\"}\n", Oddity::Act("new".to_owned())),
        ("{\"cmd\":\"NODE_CLUSTER\",\"ack\":1,\"accepted\":true}\n", Oddity::Act("ack".to_owned())),
        ("{\"cmd\":\"NODE_CLUSTER\",\"act\":\"queryServer\"}\n", Oddity::Lacks("seq")),
        ("{\"cmd\":\"NODE_HANDLE_ACK\"}\n", Oddity::NoHandle),
    ];
    for (line, oddity) in cases {
        assert_eq!(talk.hears(line.as_bytes()), [Do::Report(oddity)], "{line}");
    }
    assert_eq!(talk.hears(b"nonsense\n"), []);
    assert_eq!(talk.written(), []);
    // Messages of the app are whatever JSON there is.
    for text in
        ["1", "null", "[]", "{\"cmd\":\"NODE_\"}", "{\"cmd\":7,\"act\":\"online\"}", "\"x\""]
    {
        let message = Do::Message(text.to_owned());
        assert_eq!(talk.hears(format!("{text}\n").as_bytes()), [message]);
    }
}

#[test]
fn a_request_number_is_used_once() {
    let mut talk = Talk::new();
    let (id, _) = talk.asked(&query(1, 80));
    assert_eq!(talk.hears_json(&query(1, 81)), [Do::Report(Oddity::Twice)]);
    assert_eq!(talk.says()["errno"], json!(-libc::EINVAL));
    talk.gives(id, "[::]:80");
    assert!(!talk.worker.give(id, at("[::]:80"), &mut talk.hub));
    assert!(!talk.worker.refuse(id, libc::EACCES, &talk.hub));
    assert_eq!(talk.settles().len(), 1);
    assert_eq!(talk.hears_json(&query(1, 81)), [Do::Report(Oddity::Twice)]);
    assert_eq!(talk.says()["errno"], json!(-libc::EINVAL));
}

#[test]
fn a_process_that_is_no_worker_sends_messages_only() {
    let mut talk = Talk { worker: Worker::new(Channel::Messages), hub: Hub::default() };
    assert_eq!(talk.hears_json(&query(1, 80)), [Do::Report(Oddity::NotClustered)]);
    assert_eq!(talk.written(), []);
    assert!(!talk.worker.disconnect());
    assert_eq!(talk.hears(b"\"ready\"\n"), [Do::Ready]);
    assert!(talk.worker.say("shutdown"));
    assert_eq!(talk.says(), json!("shutdown"));
}

#[test]
fn a_new_supervisor_goes_on_in_the_middle_of_a_line() {
    let resumed = || Talk {
        worker: Worker::resumed(Channel::Cluster, Phase::Listening, [at("[::]:80")]),
        hub: Hub::default(),
    };
    let close = json!({"cmd": "NODE_CLUSTER", "act": "close", "key": "5@[::]:80", "seq": 3});
    for rest in ["", "ng\",\"seq\":2}\n", "}\n", "\n"] {
        let mut talk = resumed();
        let text = format!("{rest}\"ready\"\n{{\"cmd\":\"NODE_HANDLE_ACK\"}}\n");
        assert_eq!(talk.hears(text.as_bytes()), [Do::Ready], "{rest}");
        assert_eq!(talk.hears(ARRIVED), [Do::Report(Oddity::NoHandle)]);
        let listening = with(&query(6, 80), &json!({"act": "listening"}));
        let listens = [Do::Listening { address: at("[::]:80"), given: true }];
        assert_eq!(talk.hears_json(&listening), listens);
        assert_eq!(talk.hears_json(&close), [Do::Closed { address: at("[::]:80") }]);
        assert_eq!(talk.hears_json(&close), [Do::Report(Oddity::NoServer)]);
        assert_eq!(talk.hears(b"}\n"), [Do::Report(Oddity::NotJson)]);
    }
    // What is asked for now has a number that the worker has not used.
    let mut talk = resumed();
    let (id, _) = talk.asked(&query(9, 80));
    talk.gives(id, "[::]:80");
    assert_eq!(talk.settles()[0]["msg"]["key"], json!("9@[::]:80"));
    assert_eq!(talk.hears_json(&close), []);
    let close = with(&close, &json!({"key": "9@[::]:80"}));
    assert_eq!(talk.hears_json(&close), [Do::Closed { address: at("[::]:80") }]);
}

#[test]
fn a_worker_that_asks_and_does_not_listen_is_not_read_from() {
    let mut talk = Talk::new();
    let servers = u64::try_from(SERVERS_MAX).unwrap();
    for seq in 0..servers {
        assert!(talk.worker.takes_input());
        talk.asked(&query(seq, 80));
    }
    assert!(!talk.worker.takes_input());
    let refused = [Do::Report(Oddity::Refused("it has too many servers"))];
    assert_eq!(talk.hears_json(&query(servers, 80)), refused);
    assert_eq!(talk.says()["errno"], json!(-libc::EMFILE));
    assert!(talk.worker.refuse(RequestId(0), libc::EACCES, &talk.hub));
    assert!(talk.worker.takes_input());

    let mut talk = Talk::new();
    let leaves = json!({"cmd": "NODE_CLUSTER", "act": "exitedAfterDisconnect", "seq": 7});
    let mut count = 0;
    while talk.worker.takes_input() {
        talk.hears_json(&leaves);
        count += 1;
        assert!(count < 10_000);
    }
    assert_eq!(talk.settles().len(), count);
    assert!(talk.worker.takes_input());
}

#[test]
fn variables_are_set_together() {
    let of = |channel, generation| {
        let variables = variables(channel, 5, generation);
        variables.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
    };
    let channel = ["NODE_CHANNEL_FD=5", "NODE_CHANNEL_SERIALIZATION_MODE=json"];
    assert_eq!(of(Channel::Messages, 7), channel);
    for (generation, id) in [(0, "1"), (7, "7"), (u64::MAX, "2147483647")] {
        let id = format!("NODE_UNIQUE_ID={id}");
        assert_eq!(of(Channel::Cluster, generation), [&channel[..], &[&*id]].concat());
    }
}

/// One thing that a worker, or whoever drives it, may do.
#[derive(Debug, Clone)]
enum Step {
    Bytes(Vec<u8>),
    Json(String),
    Give(u64),
    Refuse(u64),
    Write(usize),
    Say(usize),
    Disconnect,
}

/// A field's value, often one that means something.
fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        any::<i64>().prop_map(|number| json!(number)),
        (0u16..4).prop_map(|number| json!(number)),
        any::<bool>().prop_map(|truth| json!(truth)),
        prop::sample::select(vec![
            "",
            "/run/x",
            "127.0.0.1",
            "::",
            "udp4",
            "udp6",
            "1",
            "1@[::]:80",
            "2@/run/x",
            "@",
            "online",
            "queryServer",
            "listening",
            "close",
            "exitedAfterDisconnect",
            "disconnect",
            "NODE_CLUSTER",
            "NODE_HANDLE",
            "NODE_HANDLE_ACK",
            "NODE_HANDLE_NACK",
            "NODE_X",
        ])
        .prop_map(|text| json!(text)),
        "\\PC{0,40}".prop_map(|text| json!(text)),
        (0usize..3000).prop_map(|length| json!({"ticketKeys": "a".repeat(length)})),
    ]
}

/// A line as Node writes it, with some fields set otherwise.
fn lines() -> impl Strategy<Value = String> {
    let field = prop::sample::select(vec![
        "cmd",
        "act",
        "seq",
        "ack",
        "key",
        "msg",
        "index",
        "data",
        "address",
        "port",
        "addressType",
        "fd",
        "flags",
        "readableAll",
        "writableAll",
        "x",
    ]);
    let cluster = json!({"cmd": "NODE_CLUSTER", "act": "close"});
    let base = prop::sample::select(vec![
        query(1, 80),
        query(2, 0),
        with(&query(3, 443), &json!({"data": {"ticketKeys": "aa"}})),
        with(&query(4, 80), &json!({"act": "listening"})),
        with(&cluster, &json!({"key": "1@[::]:80"})),
        with(&cluster, &json!({"act": "exitedAfterDisconnect", "seq": 1})),
        json!({"cmd": "NODE_HANDLE", "type": "net.Socket", "msg": "x"}),
        serde_json::from_slice(ARRIVED).unwrap(),
        serde_json::from_slice(LOST).unwrap(),
        json!({}),
    ]);
    let mutated = (base, prop::collection::vec((field, values()), 0..3));
    mutated.prop_map(|(mut message, fields)| {
        for (name, value) in fields {
            message[name] = value;
        }
        format!("{message}\n")
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let rest = (lines(), any::<prop::sample::Index>()).prop_map(|(line, at)| {
        let at = at.index(line.len());
        Step::Bytes(line.into_bytes()[at..].to_vec())
    });
    let step = prop_oneof![
        8 => lines().prop_map(Step::Json),
        1 => rest,
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Step::Bytes),
        3 => (0u64..5).prop_map(Step::Give),
        1 => (0u64..5).prop_map(Step::Refuse),
        6 => (0usize..400).prop_map(Step::Write),
        1 => (0usize..MESSAGES_MAX).prop_map(Step::Say),
        1 => Just(Step::Disconnect),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a worker says: no panic, every bound holds, all that is written is one JSON value
    /// a line, with a socket that was given, and nothing between that and its acknowledgement but
    /// those of the app's own handles.
    #[test]
    fn a_hostile_worker_stays_within_bounds(steps in steps(), resumed in any::<bool>()) {
        let mut talk = Talk::new();
        if resumed {
            let given = [at("[::]:80"), at("/run/x")];
            talk.worker = Worker::resumed(Channel::Cluster, Phase::Listening, given);
        }
        let mut written: Vec<u8> = Vec::new();
        let mut asked = BTreeSet::new();
        let mut given = BTreeSet::new();
        let mut reports = Vec::new();
        for step in steps {
            let out = match step {
                Step::Bytes(bytes) => talk.hears(&bytes),
                Step::Json(line) => talk.hears(line.as_bytes()),
                Step::Give(id) => {
                    let id = RequestId(id);
                    let known = talk.worker.give(id, at("[::]:80"), &mut talk.hub);
                    prop_assert_eq!(known, asked.remove(&id));
                    if known {
                        given.insert(id);
                    }
                    Vec::new()
                }
                Step::Refuse(id) => {
                    let id = RequestId(id);
                    let known = talk.worker.refuse(id, libc::EACCES, &talk.hub);
                    prop_assert_eq!(known, asked.remove(&id));
                    Vec::new()
                }
                Step::Write(count) => {
                    if let Some(chunk) = talk.worker.next_chunk() {
                        prop_assert!(!chunk.bytes.is_empty());
                        prop_assert!(chunk.handle.is_none_or(|id| given.contains(&id)));
                        let count = count.min(chunk.bytes.len());
                        written.extend(&chunk.bytes[..count]);
                        talk.worker.wrote(count);
                    }
                    Vec::new()
                }
                Step::Say(length) => {
                    let leaves = talk.worker.phase() == Phase::Leaving;
                    prop_assert!(!talk.worker.say(&"x".repeat(length)) || !leaves);
                    Vec::new()
                }
                Step::Disconnect => {
                    let leaves = talk.worker.phase() == Phase::Leaving;
                    prop_assert_ne!(talk.worker.disconnect(), leaves);
                    Vec::new()
                }
            };
            for it in out {
                match it {
                    Do::Ask { id, .. } => prop_assert!(asked.insert(id)),
                    Do::Report(oddity) => reports.push(oddity),
                    Do::Leaving => prop_assert_eq!(talk.worker.phase(), Phase::Leaving),
                    Do::Online
                    | Do::Listening { .. }
                    | Do::Closed { .. }
                    | Do::Ready
                    | Do::Message(_) => {}
                }
            }
            prop_assert!(reports.len() <= 8);
        }
        let end = written.iter().rposition(|&byte| byte == b'\n').unwrap_or(0);
        for line in written[..end].split(|&byte| byte == b'\n').filter(|_| end > 0) {
            prop_assert!(serde_json::from_slice::<Value>(line).is_ok());
            prop_assert!(line.len() <= MESSAGES_MAX);
        }
        let text = serde_json::to_string(&talk.hub).unwrap();
        prop_assert_eq!(serde_json::from_str::<Hub>(&text).unwrap(), talk.hub);
    }

    /// The same words, however they are cut, have the same outcome.
    #[test]
    fn it_does_not_matter_where_reads_end(steps in steps(), chunk in 1usize..50) {
        let lines: Vec<String> = steps
            .into_iter()
            .filter_map(|step| if let Step::Json(line) = step { Some(line) } else { None })
            .collect();
        let text = lines.concat();
        let mut whole = Talk::new();
        let mut cut = Talk::new();
        let expected = whole.hears(text.as_bytes());
        let found: Vec<Do> =
            text.as_bytes().chunks(chunk).flat_map(|part| cut.hears(part)).collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(cut.hub, whole.hub);
    }
}
