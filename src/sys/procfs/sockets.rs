//! The kernel's tables of sockets: /proc/net/tcp, tcp6 and unix.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// `TCP_LISTEN` of `net/tcp_states.h`.
const LISTEN: &str = "0A";

/// `__SO_ACCEPTCON` of linux/net.h: the socket listens.
const ACCEPTS: u32 = 1 << 16;

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TcpListener {
    /// Where.
    pub(super) address: SocketAddr,
    /// What its fds link to.
    pub(super) inode: u64,
}

/// `sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …`
pub(super) fn parse_tcp_listener(line: &str) -> Option<TcpListener> {
    let mut fields = line.split_ascii_whitespace();
    let address = parse_address(fields.nth(1)?)?;
    if fields.nth(1)? != LISTEN {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    Some(TcpListener { address, inode })
}

/// `0100007F:2710`: the address in words of 32 bits as they lie in memory, and the port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for word in address.as_bytes().chunks(8) {
        let word = std::str::from_utf8(word).ok().filter(|word| word.len() == 8)?;
        bytes.extend(u32::from_str_radix(word, 16).ok()?.to_ne_bytes());
    }
    let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(|v4| IpAddr::V4(Ipv4Addr::from(v4)));
    let v6 = <[u8; 16]>::try_from(bytes.as_slice()).map(|v6| IpAddr::V6(Ipv6Addr::from(v6)));
    Some(SocketAddr::new(v4.or(v6).ok()?, port))
}

/// `Num: RefCount Protocol Flags Type St Inode Path`. The path may hold spaces.
pub(super) fn parse_unix_listener(line: &[u8]) -> Option<(u64, PathBuf)> {
    let mut rest = line;
    let mut fields = Vec::with_capacity(7);
    while fields.len() < 7 {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|byte| *byte == b' ')?;
        fields.push(std::str::from_utf8(rest.get(..end)?).ok()?);
        rest = rest.get(end..)?;
    }
    let path = rest.strip_prefix(b" ").filter(|path| !path.is_empty())?;
    let flags = u32::from_str_radix(fields.get(3)?, 16).ok()?;
    let inode = fields.get(6)?.parse().ok()?;
    (flags & ACCEPTS != 0).then(|| (inode, PathBuf::from(OsStr::from_bytes(path))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tcp_tables() {
        let line = "   0: 0100007F:2710 00000000:0000 0A 00000000:00000000 00:00000000 00000000 \
                    1000        0 4242 1 0000000000000000 100 0 0 10 0";
        let found = parse_tcp_listener(line).unwrap();
        if cfg!(target_endian = "little") {
            assert_eq!(found.address, "127.0.0.1:10000".parse().unwrap());
        }
        assert_eq!(found.inode, 4242);
        assert_eq!(parse_tcp_listener(&line.replace(" 0A ", " 01 ")), None);
        let line = "   1: 00000000000000000000000001000000:0050 \
                    00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 \
                    00000000     0        0 17 1 0 100 0 0 10 0";
        let found = parse_tcp_listener(line).unwrap();
        if cfg!(target_endian = "little") {
            assert_eq!(found.address, "[::1]:80".parse().unwrap());
        }
        let header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt";
        assert_eq!(parse_tcp_listener(header), None);
    }

    #[test]
    fn unix_table() {
        let line = b"0000000000000000: 00000002 00000000 00010000 0001 01 17 /run/my app.sock";
        assert_eq!(parse_unix_listener(line), Some((17, PathBuf::from("/run/my app.sock"))));
        let connected = b"0000000000000000: 00000003 00000000 00000000 0001 03 17 /run/app.sock";
        assert_eq!(parse_unix_listener(connected), None);
        let unnamed = b"0000000000000000: 00000002 00000000 00010000 0001 01 17";
        assert_eq!(parse_unix_listener(unnamed), None);
        assert_eq!(
            parse_unix_listener(b"Num       RefCount Protocol Flags    Type St Inode Path"),
            None
        );
    }

    proptest! {
        #[test]
        fn any_line_is_survived(text in "\\PC{0,120}", bytes: Vec<u8>, hex in "[0-9A-F:]{0,40}") {
            parse_tcp_listener(&text);
            parse_tcp_listener(&format!("0: {hex} {hex} 0A 0 0 0 0 0 {hex}"));
            parse_unix_listener(&bytes);
        }
    }
}
