//! A connection of pmr's own to a socket that listens, which carries nothing: what a health check
//! of TCP is. It is closed as soon as it is made; whoever accepts it reads an end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect, getpeername, getsockname, socket_with,
    sockopt,
};

use super::{Error, Result};

/// A connection that is being made; dropped, it is closed.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    target: SocketAddr,
    /// The port that it comes from.
    pub port: u16,
}

impl Connection {
    /// Prepares one to where `listener` listens: nothing is sent yet.
    pub fn to(listener: BorrowedFd<'_>) -> Result<Self> {
        let failed = |errno| Error::new("prepare a connection", errno);
        let bound = super::listen::address_of(listener)?;
        let only_v6 = bound.is_ipv6() && sockopt::ipv6_v6only(listener).map_err(failed)?;
        let mut target = bound;
        target.set_ip(reachable(bound.ip(), only_v6));
        let (family, any): (_, IpAddr) = match target {
            SocketAddr::V4(_) => (AddressFamily::INET, Ipv4Addr::UNSPECIFIED.into()),
            SocketAddr::V6(_) => (AddressFamily::INET6, Ipv6Addr::UNSPECIFIED.into()),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::STREAM, flags, None).map_err(failed)?;
        bind(&socket, &SocketAddr::new(any, 0)).map_err(failed)?;
        let own = getsockname(&socket).and_then(SocketAddr::try_from).map_err(failed)?;
        Ok(Self { socket, target, port: own.port() })
    }

    /// Begins to connect, and does not wait.
    pub fn begin(&self) -> Result<()> {
        match connect(&self.socket, &self.target) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(()),
            Err(errno) => Err(Error::at("connect to", self.target.to_string(), errno)),
        }
    }

    /// Whether it is made. An error is why it cannot be.
    pub fn is_made(&self) -> Result<bool> {
        let failed = |errno| Error::at("connect to", self.target.to_string(), errno);
        sockopt::socket_error(&self.socket).map_err(failed)?.map_err(failed)?;
        match getpeername(&self.socket) {
            Ok(_) => Ok(true),
            Err(Errno::NOTCONN) => Ok(false),
            Err(errno) => Err(failed(errno)),
        }
    }
}

/// An address by which this machine reaches a socket that is bound to `bound`.
fn reachable(bound: IpAddr, only_v6: bool) -> IpAddr {
    match bound {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() && only_v6 => Ipv6Addr::LOCALHOST.into(),
        // It takes IPv4 as well, which may be all that the machine has.
        IpAddr::V6(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        bound => bound,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::sys::testing::eventually;

    #[test]
    fn a_connection_is_made_from_its_port_and_carries_nothing() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let probe = Connection::to(listener.as_fd()).unwrap();
            assert!(!probe.is_made().unwrap());
            probe.begin().unwrap();
            eventually("it is made", || probe.is_made().unwrap().then_some(()));
            let (mut stream, from) = listener.accept().unwrap();
            assert_eq!(from.port(), probe.port);
            drop(probe);
            assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
        }
    }

    #[test]
    fn nobody_there_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let probe = Connection::to(listener.as_fd()).unwrap();
        drop(listener);
        // It may be known at once, or a moment later.
        let error = probe.begin().err();
        let error = error.unwrap_or_else(|| eventually("it is refused", || probe.is_made().err()));
        assert_eq!(error.errno(), nix::libc::ECONNREFUSED);
    }
}
