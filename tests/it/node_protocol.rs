//! The primary's side of Node's cluster protocol, tried on unmodified apps and several versions of
//! Node: the library alone, without `pmr` itself.

mod rig;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use pmr::balance::node::{Address, Channel, Do, Oddity, Phase};
use serde_json::{Value, json};

use crate::app::free_port;
use crate::load::get;
use crate::procs::{self, PATIENCE_MS};
use rig::{Rig, with_each_node};

/// A server as people write it, with PM2's messages.
const HTTP: &str = "
const http = require('http'), cluster = require('cluster');
const server = http.createServer((request, response) => {
    response.setHeader('Connection', 'close');
    response.end(JSON.stringify({
        pid: process.pid, isWorker: cluster.isWorker, id: (cluster.worker || {}).id,
        left: Object.keys(process.env).filter(name => /^NODE_(CHANNEL|UNIQUE)/.test(name)),
    }));
});
server.on('error', error => {
    process.send(error.code);
    if (process.env.SECOND) server.listen(+process.env.SECOND, () => process.send('ready'));
});
if (process.env.FD) {
    server.listen({ fd: +process.env.FD }, () => process.send('ready'));
} else if (process.env.SOCKET) {
    const { SOCKET: path } = process.env;
    server.listen({ path, readableAll: true, writableAll: true }, () => process.send('ready'));
} else {
    server.listen(+process.env.PORT, process.env.HOST, () => {
        process.send('ready');
        process.send(server.address());
    });
}
process.on('message', message => {
    if (message === 'leave') cluster.worker.disconnect();
    else if (message === 'again') server.close(() => server.listen(+process.env.PORT, () => {
        process.send('listens again');
    }));
    else process.send({ echo: message });
});
";

fn at(address: &str) -> Address {
    address.parse().unwrap()
}

fn any(port: u16) -> Address {
    at(&format!("[::]:{port}"))
}

/// Asks until both workers have answered, or many more have been asked than it takes.
fn assert_both_serve(rig: &Rig, port: u16) {
    let mut pids = BTreeSet::new();
    for _ in 0..200 {
        let answer: Value = serde_json::from_str(&get(port, "/").unwrap()).unwrap();
        pids.insert(answer["pid"].as_u64().unwrap());
        if pids.len() == 2 {
            break;
        }
    }
    let expected: BTreeSet<u64> = (0..2).map(|number| rig.pid(number).into()).collect();
    assert_eq!(pids, expected);
}

#[test]
fn two_workers_share_a_port_and_leave_one_by_one() {
    with_each_node("node-http", |mut rig| {
        let port = free_port();
        let variables = [("PORT", &*port.to_string())];
        for number in 0..2 {
            rig.spawn(Channel::Cluster, HTTP, &variables);
            rig.until_does(number, &Do::Online);
            let wanted = rig.until(number, "a request", |it| match it {
                Do::Ask { wanted, .. } => Some(wanted.clone()),
                _ => None,
            });
            assert_eq!((wanted.address, wanted.index), (any(port), 0));
            rig.until_does(number, &Do::Ready);
            rig.until_does(number, &Do::Listening { address: any(port), given: true });
            assert_eq!(rig.workers[number].worker.phase(), Phase::Listening);
        }
        assert_both_serve(&rig, port);
        let answer: Value = serde_json::from_str(&get(port, "/").unwrap()).unwrap();
        let number = (0..2).find(|it| json!(rig.pid(*it)) == answer["pid"]).unwrap();
        let facts = (&answer["isWorker"], &answer["id"], &answer["left"]);
        assert_eq!(facts, (&json!(true), &json!(number + 1), &json!([])));

        assert!(rig.workers[0].worker.say("hello"));
        rig.until_said(0, "{\"echo\":\"hello\"}");

        assert!(rig.workers[0].worker.disconnect());
        rig.until_does(0, &Do::Closed { address: any(port) });
        assert_eq!(rig.ended(0).code(), Some(0));
        for _ in 0..20 {
            let answer: Value = serde_json::from_str(&get(port, "/").unwrap()).unwrap();
            assert_eq!(answer["pid"], json!(rig.pid(1)));
        }
        assert!(rig.workers[1].worker.say("leave"));
        rig.until_does(1, &Do::Leaving);
        assert_eq!(rig.ended(1).code(), Some(0));
        assert!(get(port, "/").is_err());
        rig.assert_nothing_odd();
    });
}

#[test]
fn a_worker_listens_where_its_app_says_and_again() {
    with_each_node("node-where", |mut rig| {
        for (host, address) in
            [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("0.0.0.0", "0.0.0.0")]
        {
            if host.contains(':') && TcpListener::bind((host, 0)).is_err() {
                procs::skip("node-where", "this machine has no IPv6");
                continue;
            }
            let port = free_port();
            let variables = [("PORT", &*port.to_string()), ("HOST", host)];
            let number = rig.spawn(Channel::Cluster, HTTP, &variables);
            rig.until_does(number, &Do::Ready);
            rig.until_does(
                number,
                &Do::Listening { address: at(&format!("{address}:{port}")), given: true },
            );
        }
        let number = rig.workers.len();
        let port = free_port();
        rig.spawn(Channel::Cluster, HTTP, &[("PORT", &port.to_string())]);
        rig.until_does(number, &Do::Ready);
        assert!(rig.workers[number].worker.say("again"));
        rig.until_does(number, &Do::Closed { address: any(port) });
        rig.until_said(number, "\"listens again\"");
        let answer: Value = serde_json::from_str(&get(port, "/").unwrap()).unwrap();
        assert_eq!(answer["pid"], json!(rig.pid(number)));
        rig.assert_nothing_odd();
    });
}

#[test]
fn an_app_that_takes_inherited_sockets_gets_them_as_a_worker_too() {
    with_each_node("node-fd", |mut rig| {
        let inherited = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = inherited.local_addr().unwrap();
        rig.inherited.insert(3, inherited.into());
        rig.spawn(Channel::Cluster, HTTP, &[("FD", "3")]);
        rig.until_does(0, &Do::Ready);
        rig.until_does(0, &Do::Listening { address: Address::Tcp(address), given: true });
        get(address.port(), "/").unwrap();
        rig.spawn(Channel::Cluster, HTTP, &[("FD", "4")]);
        rig.until_said(1, "\"EBADF\"");
        rig.assert_nothing_odd();
    });
}

#[test]
fn the_app_hears_why_a_socket_was_refused() {
    with_each_node("node-refused", |mut rig| {
        let (first, second) = (free_port(), free_port());
        rig.refused.insert(first, libc::EADDRINUSE);
        let variables = [("PORT", &*first.to_string()), ("SECOND", &*second.to_string())];
        rig.spawn(Channel::Cluster, HTTP, &variables);
        rig.until_said(0, "\"EADDRINUSE\"");
        rig.until_does(0, &Do::Ready);
        get(second, "/").unwrap();
        rig.assert_nothing_odd();
    });
}

#[test]
fn a_socket_that_got_lost_is_sent_again_and_one_that_never_arrives_is_an_error() {
    with_each_node("node-lost", |mut rig| {
        let (port, other) = (free_port(), free_port());
        rig.losses = 2;
        rig.spawn(Channel::Cluster, HTTP, &[("PORT", &port.to_string())]);
        rig.until_does(0, &Do::Ready);
        get(port, "/").unwrap();
        rig.assert_nothing_odd();

        rig.losses = 4;
        rig.expected = vec![Oddity::Lost];
        rig.spawn(Channel::Cluster, HTTP, &[("PORT", &other.to_string())]);
        rig.until_said(1, "\"EMFILE\"");
        assert!(rig.workers[1].did.contains(&Do::Closed { address: any(other) }));
        rig.assert_nothing_odd();
    });
}

#[test]
fn another_primary_goes_on_and_the_death_of_the_last_ends_the_worker() {
    with_each_node("node-resumed", |mut rig| {
        let port = free_port();
        for number in 0..2 {
            rig.spawn(Channel::Cluster, HTTP, &[("PORT", &port.to_string())]);
            // The last that it says by itself: what it cannot say any more is an error there.
            rig.until_does(number, &Do::Listening { address: any(port), given: true });
        }
        rig.resume(0);
        assert!(rig.workers[0].worker.say("still there"));
        rig.until_said(0, "{\"echo\":\"still there\"}");
        assert!(rig.workers[0].worker.disconnect());
        rig.until_does(0, &Do::Closed { address: any(port) });
        assert_eq!(rig.ended(0).code(), Some(0));
        rig.die(1);
        assert_eq!(rig.ended(1).code(), Some(0));
        rig.assert_nothing_odd();
    });
}

#[test]
fn listen_0_is_one_port_for_all_workers() {
    with_each_node("node-any", |mut rig| {
        let mut ports = BTreeSet::new();
        for number in 0..2 {
            rig.spawn(Channel::Cluster, HTTP, &[("PORT", "0")]);
            let address = rig.until(number, "the port", |it| match it {
                Do::Message(text) => serde_json::from_str::<Value>(text).ok(),
                _ => None,
            });
            ports.insert(u16::try_from(address["port"].as_u64().unwrap()).unwrap());
        }
        let port = *ports.first().unwrap();
        assert_eq!(ports.len(), 1, "{ports:?}");
        assert_both_serve(&rig, port);
        rig.assert_nothing_odd();
    });
}

#[test]
fn workers_share_a_unix_socket() {
    with_each_node("node-unix", |mut rig| {
        let path = rig.setup.directory.join("app.sock");
        for number in 0..2 {
            rig.spawn(Channel::Cluster, HTTP, &[("SOCKET", "app.sock")]);
            rig.until_does(number, &Do::Ready);
            rig.until_does(
                number,
                &Do::Listening { address: Address::Unix(path.clone()), given: true },
            );
        }
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o666, 0o666, "{mode:o}");
        let ask = || {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(PATIENCE_MS))).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        };
        ask();
        assert!(rig.workers[0].worker.disconnect());
        assert_eq!(rig.ended(0).code(), Some(0));
        for _ in 0..10 {
            ask();
        }
        rig.assert_nothing_odd();
    });
}

const UDP: &str = "
const socket = require('dgram').createSocket('udp4');
socket.on('message', (message, peer) => socket.send(String(process.pid), peer.port, peer.address));
socket.bind(+process.env.PORT, () => process.send('ready'));
";

#[test]
fn workers_share_a_udp_socket() {
    with_each_node("node-udp", |mut rig| {
        let port = free_port();
        for number in 0..2 {
            rig.spawn(Channel::Cluster, UDP, &[("PORT", &port.to_string())]);
            rig.until_does(number, &Do::Ready);
            let wanted = rig.workers[number].did.iter().find_map(|it| match it {
                Do::Ask { wanted, .. } => Some(wanted.address.clone()),
                _ => None,
            });
            assert_eq!(wanted, Some(at(&format!("udp:0.0.0.0:{port}"))));
        }
        let ask = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(PATIENCE_MS))).unwrap();
            socket.send_to(b"who", SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
            let mut room = [0; 64];
            let count = socket.recv(&mut room).unwrap();
            String::from_utf8_lossy(&room[..count]).parse::<u32>().unwrap()
        };
        let pids = [rig.pid(0), rig.pid(1)];
        assert!(pids.contains(&ask()));
        assert!(rig.workers[0].worker.disconnect());
        rig.until_does(0, &Do::Closed { address: at(&format!("udp:0.0.0.0:{port}")) });
        assert_eq!(rig.ended(0).code(), Some(0));
        assert_eq!(ask(), pids[1]);
        rig.assert_nothing_odd();
    });
}

const HTTPS: &str = "
const https = require('https'), fs = require('fs');
const options = { key: fs.readFileSync('key.pem'), cert: fs.readFileSync('cert.pem') };
const server = https.createServer(options, (request, response) => {
    response.setHeader('Connection', 'close');
    response.end(JSON.stringify([process.pid, request.socket.isSessionReused()]));
});
server.on('error', error => process.send(error.code));
server.listen(+process.env.PORT, () => process.send('ready'));
";

/// One full handshake, and then its session until another worker has answered.
const HTTPS_CLIENT: &str = "
const https = require('https');
const options = { port: process.env.PORT, rejectUnauthorized: false, maxVersion: 'TLSv1.2',
    agent: false };
const ask = session => new Promise((resolve, reject) => {
    let kept;
    const request = https.get({ ...options, session }, response => {
        let text = '';
        response.on('data', data => text += data);
        response.on('end', () => resolve([...JSON.parse(text), kept]));
    });
    request.on('socket', socket => socket.on('session', it => kept = it));
    request.on('error', reject);
});
(async () => {
    const [first, , session] = await ask();
    for (let count = 0; count < 200; count++) {
        const [pid, reused] = await ask(session);
        if (!reused) throw new Error(`a full handshake with ${pid} after ${first}`);
        if (pid !== first) return console.log('reused by another');
    }
    throw new Error('only one worker answers');
})().catch(error => { console.error(error); process.exit(1); });
";

#[test]
fn workers_take_up_tls_sessions_of_each_other() {
    if !procs::has("openssl") {
        return procs::skip("node-https", "there is no openssl to make a certificate with");
    }
    with_each_node("node-https", |mut rig| {
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
        openssl.args([
            "-nodes",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
            "-subj",
            "/CN=localhost",
        ]);
        let made = openssl.current_dir(&rig.setup.directory).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = free_port();
        let variables = [("PORT", &*port.to_string())];
        for number in 0..2 {
            rig.spawn(Channel::Cluster, HTTPS, &variables);
            rig.until_does(number, &Do::Ready);
        }
        assert_eq!(rig.client(HTTPS_CLIENT, &variables), "reused by another");
        // A server that is refused is told ticket keys too, or it would throw.
        rig.refused.insert(port, libc::EACCES);
        rig.spawn(Channel::Cluster, HTTPS, &variables);
        rig.until_said(2, "\"EACCES\"");
        rig.assert_nothing_odd();
    });
}

const HTTP2: &str = "
const server = require('http2').createServer((request, response) => {
    response.end(String(process.pid));
});
server.listen(+process.env.PORT, () => process.send('ready'));
";

const HTTP2_CLIENT: &str = "
const http2 = require('http2');
const ask = () => new Promise((resolve, reject) => {
    const session = http2.connect(`http://localhost:${process.env.PORT}`);
    session.on('error', reject);
    const stream = session.request({ ':path': '/' });
    let text = '';
    stream.on('data', data => text += data);
    stream.on('end', () => { session.close(); resolve(text); });
});
(async () => {
    const pids = new Set();
    for (let count = 0; count < 200 && pids.size < 2; count++) pids.add(await ask());
    console.log([...pids].sort((a, b) => a - b).join(' '));
})().catch(error => { console.error(error); process.exit(1); });
";

#[test]
fn workers_share_a_port_of_http2() {
    with_each_node("node-http2", |mut rig| {
        let port = free_port();
        let variables = [("PORT", &*port.to_string())];
        for number in 0..2 {
            rig.spawn(Channel::Cluster, HTTP2, &variables);
            rig.until_does(number, &Do::Ready);
        }
        let mut pids = [rig.pid(0), rig.pid(1)];
        pids.sort_unstable();
        let expected = format!("{} {}", pids[0], pids[1]);
        assert_eq!(rig.client(HTTP2_CLIENT, &variables), expected);
        rig.assert_nothing_odd();
    });
}

const TWO_PORTS: &str = "
const http = require('http');
const listen = (port, next) => http.createServer((request, response) => {
    response.setHeader('Connection', 'close');
    response.end(String(process.pid));
}).listen(port, next);
listen(+process.env.PORT, () => listen(+process.env.SECOND, () => process.send('ready')));
";

#[test]
fn workers_share_two_ports() {
    with_each_node("node-ports", |mut rig| {
        let ports = [free_port(), free_port()];
        let variables = [("PORT", &*ports[0].to_string()), ("SECOND", &*ports[1].to_string())];
        for number in 0..2 {
            rig.spawn(Channel::Cluster, TWO_PORTS, &variables);
            rig.until_does(number, &Do::Ready);
        }
        for port in ports {
            let mut pids = BTreeSet::new();
            for _ in 0..200 {
                pids.insert(get(port, "/").unwrap());
            }
            assert_eq!(pids.len(), 2, "{pids:?}");
        }
        assert!(rig.workers[0].worker.disconnect());
        assert_eq!(rig.ended(0).code(), Some(0));
        for port in ports {
            assert!(rig.workers[0].did.contains(&Do::Closed { address: any(port) }));
            assert_eq!(get(port, "/").unwrap(), rig.pid(1).to_string());
        }
        rig.assert_nothing_odd();
    });
}

const HANDLES: &str = "
const server = require('net').createServer();
server.listen({ port: 0, exclusive: true }, () => {
    for (let count = 0; count < 3; count++) process.send({ count }, server);
    process.send('after');
    setInterval(() => {}, 1000);
});
";

#[test]
fn handles_of_the_app_are_acknowledged_and_its_messages_go_on() {
    with_each_node("node-handles", |mut rig| {
        rig.spawn(Channel::Cluster, HANDLES, &[]);
        rig.until_said(0, "{\"count\":0}");
        rig.until_said(0, "{\"count\":2}");
        rig.until_said(0, "\"after\"");
        rig.expected = vec![Oddity::Handle; 3];
        rig.assert_nothing_odd();
    });
}

const FORK: &str = "
const cluster = require('cluster');
const server = require('http').createServer((request, response) => response.end());
server.listen(+process.env.PORT, () => {
    process.send({ isPrimary: cluster.isPrimary });
    process.send('ready');
});
process.on('message', message => { if (message === 'shutdown') process.exit(3); });
";

#[test]
fn messages_pass_without_a_cluster() {
    with_each_node("node-fork", |mut rig| {
        let port = free_port();
        rig.spawn(Channel::Messages, FORK, &[("PORT", &port.to_string())]);
        rig.until_said(0, "{\"isPrimary\":true}");
        rig.until_does(0, &Do::Ready);
        assert_eq!(rig.workers[0].did.len(), 2, "{:?}", rig.workers[0].did);
        assert!(rig.workers[0].worker.say("shutdown"));
        assert_eq!(rig.ended(0).code(), Some(3));
    });
}
