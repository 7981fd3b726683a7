//! What a worker says, and what is said to it, as Node 14 to 26 write it.
//!
//! Numbers may be texts, may be null, and may be absent: each Node version leaves out other fields,
//! and some have the options of the app's `listen` among them. What cannot be read is not fatal.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::address::Address;
use super::hub::DATA_MAX;
use super::lines::{LINE_MAX, Line};

/// A worker's request for a socket: unique among those of this worker that wait, or whose socket is
/// open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub(super) u64);

/// `cmd` of Node's own messages starts so, and is longer.
const INTERNAL: &str = "NODE_";

/// How Node writes a message with which a handle comes.
const HANDLE_START: &[u8] = br#"{"cmd":"NODE_HANDLE","#;

/// Bun writes this byte before each message of its own.
const BUN_MARK: u8 = 2;

/// Longest path of a Unix socket, in bytes: `sun_path` has 108 with the NUL (unix(7)).
const PATH_MAX: usize = 107;

/// Longest word of a worker that is repeated in a report, in characters.
const WORD_MAX: usize = 40;

/// Bits of `flags`: `UV_TCP_IPV6ONLY` and `UV_UDP_IPV6ONLY`; `UV_UDP_REUSEADDR` (uv.h).
const FLAG_ONLY_V6: i64 = 1;
const FLAG_REUSE: i64 = 4;

/// What a worker said.
#[derive(Debug)]
pub(super) enum Heard {
    /// It runs, and the channel works.
    Online,
    /// It wants a socket, and waits for the answer.
    Query(Box<Query>),
    /// A server of it accepts.
    Listening { address: Address, index: u32 },
    /// A server of it was closed.
    Close { key: String },
    /// The app had its worker disconnected, and it waits until that is known here.
    Leaving { seq: u64 },
    /// The handle that was sent last has arrived.
    Arrived,
    /// The handle that was sent last got lost.
    Lost,
    /// The app sent a handle, and a message with it.
    Handle(Option<Box<Heard>>),
    /// A message of the app: JSON text.
    Message(String),
    /// It means nothing.
    Odd(Oddity),
}

/// A worker's question for a socket.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) seq: u64,
    pub(super) wanted: Result<Wanted, Refused>,
    /// JSON text; none where it is null.
    pub(super) data: Option<String>,
}

/// Why a question is refused as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) errno: i32,
    pub(super) why: &'static str,
}

/// A socket that a worker wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Where.
    pub address: Address,
    /// The how-manieth server of the worker at this very address: 0 is the first.
    pub index: u32,
    /// What an IPv6 socket takes besides.
    pub family: Family,
    /// A UDP socket is to have `SO_REUSEADDR`.
    pub reuse_address: bool,
    /// Bits for the mode of a Unix socket's file, besides the usual: 0o444, 0o222.
    pub mode: u32,
    /// A datagram socket, and not a stream.
    pub datagram: bool,
}

/// What an IPv6 socket takes besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 too, where the address is the unspecified one.
    Both,
    /// The same; where the kernel has no IPv6, the socket is to be bound to 0.0.0.0 instead.
    Any,
    /// Nothing.
    OnlyV6,
}

/// Something that a worker should not have said. Nothing was changed by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Oddity {
    /// A line that is no JSON value, or has a field twice.
    NotJson,
    /// A line longer than [`LINE_MAX`]; it was skipped.
    TooLong,
    /// A `cmd` of Node's own that is not known.
    Command(String),
    /// An `act` that is not known.
    Act(String),
    /// Node's own message without a field that it must have.
    Lacks(&'static str),
    /// The arrival, or the loss, of a handle that was not sent.
    NoHandle,
    /// A server closed that it does not have.
    NoServer,
    /// A socket asked for again under a number that is in use.
    Twice,
    /// A socket that it cannot have.
    Refused(&'static str),
    /// A handle that the app sent to its primary; it was closed.
    Handle,
    /// A socket that was sent several times, and did not arrive: the worker has no fd free.
    Lost,
    /// Words of a cluster's worker, of a process that is none.
    NotClustered,
}

impl fmt::Display for Oddity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson => f.write_str("it wrote to Node's channel what is no JSON line"),
            Self::TooLong => {
                write!(f, "it sent a message of more than {} KiB: skipped", LINE_MAX / 1024)
            }
            Self::Command(word) => write!(f, "it sent a command that is not known: {word:?}"),
            Self::Act(word) => write!(f, "it sent a cluster message that is not known: {word:?}"),
            Self::Lacks(field) => write!(f, "it sent a cluster message without a usable {field}"),
            Self::NoHandle => f.write_str("it acknowledged a handle that was not sent"),
            Self::NoServer => f.write_str("it closed a server that it does not have"),
            Self::Twice => f.write_str("it asked twice under one number"),
            Self::Refused(why) => write!(f, "a socket was refused: {why}"),
            Self::Handle => f.write_str("the app sent a handle to pmr: closed"),
            Self::Lost => f.write_str("a socket did not arrive: too many open files there?"),
            Self::NotClustered => f.write_str("it speaks as a cluster's worker, and is none"),
        }
    }
}

/// The fields of all of Node's own messages, each as it stands there.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", bound(deserialize = "'de: 'a"))]
struct Fields<'a> {
    cmd: Option<&'a RawValue>,
    act: Option<&'a RawValue>,
    seq: Option<&'a RawValue>,
    ack: Option<&'a RawValue>,
    key: Option<&'a RawValue>,
    msg: Option<&'a RawValue>,
    index: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
    address: Option<&'a RawValue>,
    port: Option<&'a RawValue>,
    address_type: Option<&'a RawValue>,
    fd: Option<&'a RawValue>,
    flags: Option<&'a RawValue>,
    readable_all: Option<&'a RawValue>,
    writable_all: Option<&'a RawValue>,
}

fn text(field: Option<&RawValue>) -> Option<String> {
    serde_json::from_str(field?.get()).ok()
}

fn number(field: Option<&RawValue>) -> Option<i64> {
    field?.get().trim_matches('"').parse().ok()
}

fn is_true(field: Option<&RawValue>) -> bool {
    field.is_some_and(|field| field.get() == "true")
}

fn short(word: &str) -> String {
    word.chars().take(WORD_MAX).collect()
}

/// What a line says.
pub(super) fn read(line: &Line) -> Heard {
    match line {
        Line::Whole(bytes) => {
            let bytes = bytes.strip_prefix(&[BUN_MARK]).unwrap_or(bytes);
            std::str::from_utf8(bytes).map_or(Heard::Odd(Oddity::NotJson), |it| read_text(it, true))
        }
        // Whoever sent a handle says no more until it is acknowledged.
        Line::TooLong(start) if start.starts_with(HANDLE_START) => Heard::Handle(None),
        Line::TooLong(_) => Heard::Odd(Oddity::TooLong),
    }
}

/// `outermost`: not what came with a handle.
fn read_text(text: &str, outermost: bool) -> Heard {
    let Ok(value) = serde_json::from_str::<&RawValue>(text) else {
        return Heard::Odd(Oddity::NotJson);
    };
    let value = value.get();
    if !value.starts_with('{') {
        return Heard::Message(value.to_owned());
    }
    // Node writes no field twice.
    let Ok(fields) = serde_json::from_str::<Fields<'_>>(value) else {
        return Heard::Odd(Oddity::NotJson);
    };
    let command = self::text(fields.cmd).filter(|cmd| is_internal(cmd));
    match command.as_deref() {
        None => Heard::Message(value.to_owned()),
        Some("NODE_CLUSTER") => read_cluster(&fields),
        Some("NODE_HANDLE_ACK") => Heard::Arrived,
        Some("NODE_HANDLE_NACK") => Heard::Lost,
        Some("NODE_HANDLE") if outermost => {
            let inner = fields.msg.map(|inner| Box::new(read_text(inner.get(), false)));
            Heard::Handle(inner)
        }
        Some(other) => Heard::Odd(Oddity::Command(short(other))),
    }
}

fn is_internal(command: &str) -> bool {
    command.len() > INTERNAL.len() && command.starts_with(INTERNAL)
}

fn read_cluster(fields: &Fields<'_>) -> Heard {
    let lacks = |field| Heard::Odd(Oddity::Lacks(field));
    let seq = number(fields.seq).and_then(|seq| u64::try_from(seq).ok());
    match text(fields.act).as_deref() {
        Some("online") => Heard::Online,
        Some("queryServer") => match seq {
            Some(seq) => Heard::Query(Box::new(read_query(fields, seq))),
            None => lacks("seq"),
        },
        Some("listening") => match wanted(fields) {
            Ok(Wanted { address, index, .. }) => Heard::Listening { address, index },
            Err(_) => lacks("address"),
        },
        Some("close") => match text(fields.key) {
            Some(key) => Heard::Close { key },
            None => lacks("key"),
        },
        Some("exitedAfterDisconnect") => match seq {
            Some(seq) => Heard::Leaving { seq },
            None => lacks("seq"),
        },
        Some(other) => Heard::Odd(Oddity::Act(short(other))),
        None if fields.ack.is_some() => Heard::Odd(Oddity::Act("ack".to_owned())),
        None => lacks("act"),
    }
}

fn read_query(fields: &Fields<'_>, seq: u64) -> Query {
    let data = fields.data.map(RawValue::get);
    let wanted = match data {
        Some(data) if data.len() > DATA_MAX => {
            Err(Refused { errno: libc::ENOBUFS, why: "the server's data is too long" })
        }
        _ => wanted(fields),
    };
    // Even refused, a TLS server is told its own data: it throws where that is null.
    let data = data.filter(|data| data.len() <= DATA_MAX).map(str::to_owned);
    Query { seq, wanted, data }
}

/// The socket that a message is about.
fn wanted(fields: &Fields<'_>) -> Result<Wanted, Refused> {
    let invalid = |why| Refused { errno: libc::EINVAL, why };
    let kind = text(fields.address_type);
    let datagram = kind.as_deref().is_some_and(|kind| kind.starts_with("udp"));
    let flags = number(fields.flags).unwrap_or(0);
    let host = text(fields.address);
    let mut family = if flags & FLAG_ONLY_V6 == 0 { Family::Both } else { Family::OnlyV6 };
    let fd = number(fields.fd).and_then(|fd| u32::try_from(fd).ok());
    let address = match (fd, &host) {
        (Some(fd), None) => Address::Descriptor(fd),
        _ if number(fields.address_type) == Some(-1) => Address::Unix(path(host)?),
        _ => {
            let port = number(fields.port).map_or(Ok(0), u16::try_from);
            let port = port.map_err(|_| invalid("a port is at most 65535"))?;
            let ip = match (host.as_deref(), kind.as_deref()) {
                (None | Some(""), Some("udp4")) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                (None | Some(""), _) => {
                    if family == Family::Both {
                        family = Family::Any;
                    }
                    IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                }
                (Some(host), _) => host.parse().map_err(|_| Refused {
                    errno: libc::EADDRNOTAVAIL,
                    why: "the address is none without a zone",
                })?,
            };
            let address = SocketAddr::new(ip, port);
            if datagram { Address::Udp(address) } else { Address::Tcp(address) }
        }
    };
    Ok(Wanted {
        address,
        index: number(fields.index).and_then(|index| u32::try_from(index).ok()).unwrap_or(0),
        family,
        reuse_address: datagram && flags & FLAG_REUSE != 0,
        mode: [(fields.readable_all, 0o444), (fields.writable_all, 0o222)]
            .map(|(field, bits)| if is_true(field) { bits } else { 0 })
            .iter()
            .sum(),
        datagram,
    })
}

fn path(host: Option<String>) -> Result<PathBuf, Refused> {
    let invalid = |why| Refused { errno: libc::EINVAL, why };
    let path = host.filter(|path| path.starts_with('/'));
    let path = path.ok_or(invalid("a Unix socket has no absolute path"))?;
    if path.contains('\0') {
        return Err(invalid("an abstract Unix socket cannot be shared"));
    }
    if path.len() > PATH_MAX {
        let why = "the path of a Unix socket is too long";
        return Err(Refused { errno: libc::ENAMETOOLONG, why });
    }
    Ok(path.into())
}

/// What is said to a worker about itself.
#[derive(Debug, Serialize)]
struct Cluster<'a> {
    cmd: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    act: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ack: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    seq: u64,
}

/// The message with which a handle goes.
#[derive(Debug, Serialize)]
struct WithHandle<'a> {
    cmd: &'static str,
    r#type: &'static str,
    msg: Cluster<'a>,
}

/// The answer to a question.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer<'a> {
    /// The question's number.
    pub(super) to: u64,
    pub(super) key: &'a str,
    /// JSON text.
    pub(super) data: Option<&'a str>,
    pub(super) seq: u64,
}

impl<'a> Answer<'a> {
    fn with(self, errno: i32) -> Cluster<'a> {
        let data = self.data.unwrap_or("null");
        Cluster {
            cmd: "NODE_CLUSTER",
            act: None,
            errno: Some(errno),
            key: Some(self.key.into()),
            ack: Some(self.to),
            data: serde_json::from_str(data).ok(),
            seq: self.seq,
        }
    }

    /// The socket comes with it.
    pub(super) fn given(self, datagram: bool) -> Vec<u8> {
        let r#type = if datagram { "dgram.Native" } else { "net.Native" };
        line(&WithHandle { cmd: "NODE_HANDLE", r#type, msg: self.with(0) })
    }

    /// There is none. The app gets an `error` event with the name of `errno`.
    pub(super) fn refused(self, errno: i32) -> Vec<u8> {
        line(&self.with(errno.saturating_neg()))
    }
}

/// The answer to [`Heard::Leaving`].
pub(super) fn acknowledged(to: u64, seq: u64) -> Vec<u8> {
    let (cmd, ack) = ("NODE_CLUSTER", Some(to));
    line(&Cluster { cmd, act: None, errno: None, key: None, ack, data: None, seq })
}

/// Asks a worker to close its servers, finish its connections, and end.
pub(super) fn disconnect(seq: u64) -> Vec<u8> {
    let (cmd, act) = ("NODE_CLUSTER", Some("disconnect"));
    line(&Cluster { cmd, act, errno: None, key: None, ack: None, data: None, seq })
}

/// A handle of the app has arrived. The worker fails where there is one of these too many.
pub(super) const HANDLE_ARRIVED: &[u8] = b"{\"cmd\":\"NODE_HANDLE_ACK\"}\n";

/// A text as a message for the app.
pub(super) fn message(text: &str) -> Vec<u8> {
    line(&text)
}

fn line(message: &impl Serialize) -> Vec<u8> {
    // Only a map with keys that are no strings can fail, and the wire types have none.
    let mut bytes = serde_json::to_vec(message).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}
