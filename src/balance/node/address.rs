//! Where a worker's server listens.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::spec::ListenAddress;

/// Where a worker's server listens. As text: `0.0.0.0:80`, `[::]:80`, `/run/app.sock`,
/// `udp:0.0.0.0:53`, `fd:3`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// UDP.
    Udp(SocketAddr),
    /// A Unix stream socket at an absolute path.
    Unix(PathBuf),
    /// `listen({ fd })`: an fd. Under Node it would be the primary's; in an app that knows nothing
    /// of a primary it is meant to be the worker's own.
    Descriptor(u32),
}

impl Address {
    /// Its port; 0 is one that the kernel chooses.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(address) | Self::Udp(address) => Some(address.port()),
            Self::Unix(_) | Self::Descriptor(_) => None,
        }
    }

    /// The same with another port, where it has one.
    #[must_use]
    pub fn with_port(&self, port: u16) -> Self {
        let mut other = self.clone();
        match &mut other {
            Self::Tcp(address) | Self::Udp(address) => address.set_port(port),
            Self::Unix(_) | Self::Descriptor(_) => {}
        }
        other
    }

    /// As the config writes it, where a config can name it.
    pub fn as_listen(&self) -> Option<ListenAddress> {
        match self {
            Self::Tcp(address) => Some(ListenAddress::Tcp(*address)),
            Self::Unix(path) => Some(ListenAddress::Unix(path.clone())),
            Self::Udp(_) | Self::Descriptor(_) => None,
        }
    }

    /// Whether a worker that listens here is ready, when its app is to listen at `configured`: at
    /// one of its ports, or at any where it names none. A Unix socket counts only by name: `tsx`
    /// listens at one of its own, long before the app does. UDP never does.
    pub fn is_readiness(&self, configured: &[ListenAddress]) -> bool {
        let ports: Vec<u16> = configured.iter().filter_map(port_of).collect();
        match self {
            Self::Tcp(address) => ports.is_empty() || ports.contains(&address.port()),
            Self::Unix(path) => configured.contains(&ListenAddress::Unix(path.clone())),
            Self::Descriptor(_) => true,
            Self::Udp(_) => false,
        }
    }
}

fn port_of(address: &ListenAddress) -> Option<u16> {
    match address {
        ListenAddress::Tcp(address) => Some(address.port()),
        ListenAddress::Unix(_) => None,
    }
}

impl From<&ListenAddress> for Address {
    fn from(address: &ListenAddress) -> Self {
        match address {
            ListenAddress::Tcp(address) => Self::Tcp(*address),
            ListenAddress::Unix(path) => Self::Unix(path.clone()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Udp(address) => write!(f, "udp:{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Descriptor(fd) => write!(f, "fd:{fd}"),
        }
    }
}

/// A text that is no [`Address`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoAddress;

impl fmt::Display for NoAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("neither an address with a port, nor an absolute path, nor an fd")
    }
}

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        if let Some(address) = text.strip_prefix("udp:") {
            return address.parse().map(Self::Udp).map_err(|_| NoAddress);
        }
        if let Some(fd) = text.strip_prefix("fd:") {
            return fd.parse().map(Self::Descriptor).map_err(|_| NoAddress);
        }
        text.parse().map(Self::Tcp).map_err(|_| NoAddress)
    }
}

/// Whether an app of `uid` may have a socket with this port by way of pmr, which itself may be
/// root. `unprivileged_start` is `net.ipv4.ip_unprivileged_port_start`. What the config names was
/// written by who may start the app.
pub fn may_have_port(
    port: u16,
    unprivileged_start: u16,
    uid: u32,
    configured: &[ListenAddress],
) -> bool {
    let free = port == 0 || port >= unprivileged_start;
    free || uid == 0 || configured.iter().any(|address| port_of(address) == Some(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(texts: &[&str]) -> Vec<ListenAddress> {
        let parsed = texts.iter().map(|text| text.parse::<Address>().unwrap());
        parsed.map(|address| address.as_listen().unwrap()).collect()
    }

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let texts =
            ["0.0.0.0:80", "[::]:0", "[::1]:65535", "udp:0.0.0.0:53", "/run/a b.sock", "fd:3"];
        for text in texts {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "80", "a:80", "udp:", "udp:/x", "fd:", "fd:-1", "x/y"] {
            assert_eq!(text.parse::<Address>(), Err(NoAddress), "{text}");
        }
    }

    #[test]
    fn a_worker_is_ready_at_a_configured_port_or_path() {
        let cases: &[(&str, &[&str], bool)] = &[
            ("0.0.0.0:80", &[], true),
            ("0.0.0.0:80", &["/run/x"], true),
            ("0.0.0.0:80", &["[::]:80"], true),
            ("0.0.0.0:81", &["[::]:80"], false),
            ("[::]:81", &["[::]:80", "[::]:81"], true),
            ("/run/x", &[], false),
            ("/run/x", &["/run/y", "[::]:80"], false),
            ("/run/x", &["/run/x"], true),
            ("udp:0.0.0.0:80", &["[::]:80"], false),
            ("fd:3", &["[::]:80"], true),
        ];
        for (address, configured, expected) in cases {
            let parsed: Address = address.parse().unwrap();
            assert_eq!(parsed.is_readiness(&listen(configured)), *expected, "{address}");
        }
    }

    #[test]
    fn privileged_ports_are_for_root_and_for_the_config() {
        let configured = listen(&["127.0.0.1:80", "/run/x"]);
        let cases = [
            (80, 1024, 1000, true),
            (443, 1024, 1000, false),
            (443, 1024, 0, true),
            (443, 0, 1000, true),
            (443, 443, 1000, true),
            (1023, 1024, 1000, false),
            (1024, 1024, 1000, true),
            (0, 1024, 1000, true),
        ];
        for (port, start, uid, expected) in cases {
            assert_eq!(may_have_port(port, start, uid, &configured), expected, "{port} {uid}");
        }
    }
}
