//! Who listens on a TCP port, asked of the kernel by netlink: `sock_diag(7)`, `INET_DIAG`.
//!
//! The kernel looks through its listeners only, and of them sends those of the port. The tables in
//! /proc hold all connections of the machine, and take a thousand times as long on a busy one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::{Error, Result};

/// `linux/netlink.h`, `linux/sock_diag.h`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 0x001;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x010;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

/// The states that are asked for, as bits by their numbers: `TCP_LISTEN` of `net/tcp_states.h`.
const LISTENS: u32 = 1 << 10;

/// Bytes of a header, of a request with its header, and of a listener without attributes:
/// `struct nlmsghdr`, `inet_diag_req_v2` and `inet_diag_msg`.
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = 72;
const LISTENER_BYTES: usize = 72;

/// Room for an answer: the kernel sends at most 32 KiB at once.
const ANSWER_BYTES_MAX: usize = 32 * 1024;

/// A list that was changed while it was sent is asked for again, so often.
const TRIES_MAX: usize = 8;

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub address: SocketAddr,
    /// What its fds link to, as `socket:[INODE]`.
    pub inode: u64,
    /// Who owns it.
    pub uid: u32,
    /// Connections that wait to be accepted.
    pub queued: u32,
    /// How many of them there is room for.
    pub backlog: u32,
}

/// The sockets that listen on a port in this network namespace, at any address; on all ports for 0.
pub fn listeners(port: u16) -> Result<Vec<Listener>> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )
    .map_err(|errno| Error::new("ask who listens", errno))?;
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        found.extend(listeners_of(&socket, family, port)?);
    }
    Ok(found)
}

fn listeners_of(socket: &OwnedFd, family: u8, port: u16) -> Result<Vec<Listener>> {
    let failed = |errno| Error::new("ask who listens", errno);
    let kernel = SocketAddrNetlink::new(0, 0);
    for _ in 0..TRIES_MAX {
        rustix::net::sendto(socket, &request(family, port), SendFlags::empty(), &kernel)
            .map_err(failed)?;
        let mut found = Vec::new();
        let mut answer = vec![0; ANSWER_BYTES_MAX];
        let is_whole = loop {
            // The kernel has put its answer there already, and puts the next as this is taken.
            let (length, _) =
                rustix::net::recv(socket, &mut answer, RecvFlags::DONTWAIT).map_err(failed)?;
            let bytes = answer.get(..length).unwrap_or_default();
            match parse(bytes, port, &mut found) {
                Part::More => {}
                Part::End { is_whole } => break is_whole,
                // A kernel without this family has nobody who listens in it.
                Part::Error(libc::ENOENT | libc::EAFNOSUPPORT) => break true,
                Part::Error(errno) => {
                    return Err(failed(rustix::io::Errno::from_raw_os_error(errno)));
                }
            }
        };
        if is_whole {
            return Ok(found);
        }
    }
    Err(failed(rustix::io::Errno::AGAIN))
}

/// `nlmsghdr`: length 4 | type 2 | flags 2 | sequence 4 | port id 4. `inet_diag_req_v2`: family,
/// protocol, extensions, padding | states 4 | source port 2 (network order) | the rest of the
/// socket's id, all zeros: any.
fn request(family: u8, port: u16) -> [u8; REQUEST_BYTES] {
    let mut request = [0; REQUEST_BYTES];
    let length = u32::try_from(REQUEST_BYTES).unwrap_or_default();
    let fields = length
        .to_ne_bytes()
        .into_iter()
        .chain(SOCK_DIAG_BY_FAMILY.to_ne_bytes())
        .chain((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes())
        .chain([0; 8])
        .chain([family, IPPROTO_TCP, 0, 0])
        .chain(LISTENS.to_ne_bytes())
        .chain(port.to_be_bytes());
    for (to, from) in request.iter_mut().zip(fields) {
        *to = from;
    }
    request
}

/// What an answer ended with.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// There is more to come.
    More,
    /// That was all. Not whole where the list was changed meanwhile.
    End { is_whole: bool },
    /// It was refused.
    Error(i32),
}

/// Takes what an answer holds: messages one behind the other, each at a multiple of 4 bytes.
fn parse(mut bytes: &[u8], port: u16, found: &mut Vec<Listener>) -> Part {
    let mut is_whole = true;
    while let Some(length) = u32_at(bytes, 0).and_then(|length| usize::try_from(length).ok()) {
        let Some(message) = bytes.get(..length).filter(|it| it.len() >= HEADER_BYTES) else {
            break;
        };
        is_whole &= u16_at(message, 6).unwrap_or_default() & NLM_F_DUMP_INTR == 0;
        let body = message.get(HEADER_BYTES..).unwrap_or_default();
        match u16_at(message, 4) {
            Some(NLMSG_DONE) => return Part::End { is_whole },
            Some(NLMSG_ERROR) => {
                let errno = u32_at(body, 0).unwrap_or_default().cast_signed();
                return Part::Error(errno.saturating_neg());
            }
            Some(SOCK_DIAG_BY_FAMILY) => {
                // The kernel has compared the port already; nobody else's is ever taken.
                found.extend(
                    parse_listener(body).filter(|it| port == 0 || it.address.port() == port),
                );
            }
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Part::More
}

/// `inet_diag_msg`: family, state, timer, retransmits | the id: source port 2, destination port 2,
/// source 16, destination 16, interface 4, cookie 8 | expires 4 | rqueue 4 | wqueue 4 | uid 4 |
/// inode 4. For a listener the queues are those of accept.
fn parse_listener(body: &[u8]) -> Option<Listener> {
    if body.len() < LISTENER_BYTES {
        return None;
    }
    let port = u16::from_be_bytes(body.get(4..6)?.try_into().ok()?);
    let ip = match *body.first()? {
        AF_INET => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(body.get(8..12)?).ok()?)),
        AF_INET6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(body.get(8..24)?).ok()?)),
        _ => return None,
    };
    Some(Listener {
        address: SocketAddr::new(ip, port),
        queued: u32_at(body, 56)?,
        backlog: u32_at(body, 60)?,
        uid: u32_at(body, 64)?,
        inode: u32_at(body, 68)?.into(),
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;

    use super::*;
    use crate::sys::testing::eventually;

    fn inode(listener: &TcpListener) -> u64 {
        rustix::fs::fstat(listener).unwrap().st_ino
    }

    #[test]
    fn listeners_of_a_port_are_found_with_their_queues() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let elsewhere = TcpListener::bind(("127.0.0.2", address.port())).unwrap();
        let waiting = [TcpStream::connect(address).unwrap(), TcpStream::connect(address).unwrap()];
        let of = |found: &[Listener]| *found.iter().find(|it| it.address == address).unwrap();
        // The last segment of a handshake may still be on its way.
        let found = eventually("both wait", || {
            Some(listeners(address.port()).unwrap()).filter(|found| of(found).queued == 2)
        });
        assert_eq!(found.len(), 2, "{found:?}");
        let own = of(&found);
        let uid = std::fs::metadata("/proc/self").unwrap().uid();
        assert_eq!((own.inode, own.queued, own.uid), (inode(&listener), 2, uid));
        // What std asks for, and no more than the machine allows.
        assert!((1..=4096).contains(&own.backlog), "{own:?}");
        let other = found.iter().find(|it| it.address != address).unwrap();
        assert_eq!((other.inode, other.queued), (inode(&elsewhere), 0));
        drop((waiting, listener));
        let found = listeners(address.port()).unwrap();
        assert_eq!(found.iter().map(|it| it.inode).collect::<Vec<_>>(), [inode(&elsewhere)]);
    }

    #[test]
    fn listeners_of_ipv6_are_found() {
        let Ok(listener) = TcpListener::bind("[::1]:0") else {
            eprintln!("SKIPPED: listeners_of_ipv6_are_found: there is no IPv6");
            return;
        };
        let address = listener.local_addr().unwrap();
        let found = listeners(address.port()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].address, found[0].inode), (address, inode(&listener)));
    }

    #[test]
    fn more_than_one_answer_holds_are_found() {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let bind = |at: u16| {
            let [high, low] = at.to_be_bytes();
            TcpListener::bind(SocketAddr::from(([127, 1, high, low], port))).unwrap()
        };
        let more: Vec<TcpListener> = (1..=700).map(bind).collect();
        let mut inodes: Vec<u64> = more.iter().chain([&first]).map(inode).collect();
        let mut found: Vec<u64> = listeners(port).unwrap().iter().map(|it| it.inode).collect();
        inodes.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, inodes);
    }

    #[test]
    fn a_refusal_and_a_list_that_changed_are_told() {
        let message = |kind: u16, flags: u16, body: &[u8]| {
            let length = u32::try_from(HEADER_BYTES.saturating_add(body.len())).unwrap();
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(flags.to_ne_bytes());
            bytes.extend([0; 8]);
            bytes.extend(body);
            bytes
        };
        let mut found = Vec::new();
        let refused = message(NLMSG_ERROR, 0, &(-libc::EPERM).to_ne_bytes());
        assert_eq!(parse(&refused, 80, &mut found), Part::Error(libc::EPERM));
        let changed = message(NLMSG_DONE, NLM_F_DUMP_INTR, &[0; 4]);
        assert_eq!(parse(&changed, 80, &mut found), Part::End { is_whole: false });
        assert_eq!(parse(&[], 80, &mut found), Part::More);
        assert_eq!(found, []);
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(mut bytes: Vec<u8>, length in 0_u32..200, kind in 0_u16..25) {
            parse(&bytes, 80, &mut Vec::new());
            for (to, from) in bytes.iter_mut().zip(length.to_ne_bytes()) {
                *to = from;
            }
            for (to, from) in bytes.iter_mut().skip(4).zip(kind.to_ne_bytes()) {
                *to = from;
            }
            parse(&bytes, 80, &mut Vec::new());
        }
    }
}
