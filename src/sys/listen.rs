//! Listening sockets that instances inherit.
//!
//! They block, as sockets of systemd's activation do unless asked otherwise: whether accept(2)
//! waits is a property of the open file, which all holders share, and a plain server (Python's
//! `socketserver`, most demos) expects it to wait. Event-driven servers set `O_NONBLOCK` on what
//! they inherit by themselves. pmr itself never accepts from them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    sockopt,
};

use super::{Error, Result};

/// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn`, 4096 since
/// Linux 5.4.
const BACKLOG: i32 = 4096;

/// A TCP socket that listens on `address`.
///
/// `[::]` takes IPv4 as well, and is `0.0.0.0` on a machine without IPv6. A port in use is
/// `EADDRINUSE`; [`super::procfs::port_holder`] knows by whom.
pub fn bind_tcp(address: SocketAddr) -> Result<OwnedFd> {
    let result = try_bind_tcp(address);
    let no_ipv6 =
        matches!(result, Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL | Errno::PROTONOSUPPORT));
    let result = if no_ipv6 && is_any_v6(address) {
        try_bind_tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()))
    } else {
        result
    };
    result.map_err(|errno| Error::at("listen on", address.to_string(), errno))
}

fn is_any_v6(address: SocketAddr) -> bool {
    address.is_ipv6() && address.ip().is_unspecified()
}

fn try_bind_tcp(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Connections of an earlier listener in TIME_WAIT do not keep this one from its port.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if is_any_v6(address) {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A stream socket that listens at `path`.
///
/// The file of a socket that nobody listens at any more is replaced. One that somebody does listen
/// at, and any file that is no socket, is `EADDRINUSE`.
pub fn bind_unix(path: &Path) -> Result<OwnedFd> {
    let failed = |errno| Error::at("listen on", path, errno);
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let socket = new_unix(SocketFlags::CLOEXEC).map_err(failed)?;
    match bind(&socket, &address) {
        Err(Errno::ADDRINUSE) if is_stale(path, &address).map_err(failed)? => {
            std::fs::remove_file(path)
                .map_err(|error| Error::at("remove the stale socket", path, error))?;
            bind(&socket, &address).map_err(failed)?;
        }
        result => result.map_err(failed)?,
    }
    listen(&socket, BACKLOG).map_err(failed)?;
    Ok(socket)
}

/// Whether it is a socket that listens on this TCP address.
pub fn listens_at_tcp(socket: &OwnedFd, address: SocketAddr) -> bool {
    let own = rustix::net::getsockname(socket).ok();
    let own = own.and_then(|own| SocketAddr::try_from(own).ok());
    let any = is_any_v6(address);
    // What [`bind_tcp`] makes of it on a machine without IPv6.
    let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
    listens(socket) && (own == Some(address) || any && own == Some(v4))
}

/// Whether it is a socket that listens at this path, and the file is still there.
pub fn listens_at_unix(socket: &OwnedFd, path: &Path) -> bool {
    let own = rustix::net::getsockname(socket).ok();
    let own = own.and_then(|own| SocketAddrUnix::try_from(own).ok());
    let is_there = path.symlink_metadata().is_ok_and(|facts| facts.file_type().is_socket());
    listens(socket) && is_there && own.is_some() && own == SocketAddrUnix::new(path).ok()
}

fn listens(socket: &OwnedFd) -> bool {
    sockopt::socket_acceptconn(socket).unwrap_or(false)
}

/// Ends the listening on a socket for all who hold it: its address is free at once, and whoever
/// waits to be accepted is refused.
pub fn silence(socket: &OwnedFd) {
    // One that listens no more is what is wanted.
    rustix::net::shutdown(socket, rustix::net::Shutdown::Both).unwrap_or_default();
}

fn new_unix(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Only a refused connection proves that nobody listens. A full queue (`EAGAIN`), another type
/// (`EPROTOTYPE`) and a denial leave it open, so the file stays.
fn is_stale(path: &Path, address: &SocketAddrUnix) -> rustix::io::Result<bool> {
    let is_socket = path.symlink_metadata().is_ok_and(|facts| facts.file_type().is_socket());
    if !is_socket {
        return Ok(false);
    }
    let probe = new_unix(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    Ok(connect(&probe, address) == Err(Errno::CONNREFUSED))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    use std::path::PathBuf;

    use rustix::fs::{OFlags, fcntl_getfl};

    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("pmr-test-listen-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_socket_is_known_by_its_address_and_silenced_for_all() {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let socket = bind_tcp(address).unwrap();
        let own = TcpListener::from(socket.try_clone().unwrap()).local_addr().unwrap();
        assert!(listens_at_tcp(&socket, own) && !listens_at_tcp(&socket, address));
        assert_eq!(errno(bind_tcp(own)), libc::EADDRINUSE);
        let any = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, own.port()));
        assert_eq!(errno(bind_tcp(any)), libc::EADDRINUSE);
        let waiting = TcpStream::connect(own).unwrap();
        // Somebody else holds it, as a service manager does.
        let held = socket.try_clone().unwrap();
        silence(&socket);
        drop(socket);
        assert!(!listens_at_tcp(&held, own));
        drop((waiting, bind_tcp(any).unwrap()));

        let path = path("parked");
        let socket = bind_unix(&path).unwrap();
        assert!(listens_at_unix(&socket, &path));
        assert!(!listens_at_unix(&socket, Path::new("/nowhere")));
        let stranger: OwnedFd = TcpListener::bind("127.0.0.1:0").unwrap().into();
        assert!(!listens_at_unix(&stranger, &path) && !listens_at_tcp(&socket, own));
        std::fs::remove_file(&path).unwrap();
        assert!(!listens_at_unix(&socket, &path), "nobody can reach it");
        assert!(!listens_at_tcp(&std::fs::File::open("/dev/null").unwrap().into(), own));
    }

    fn errno(result: Result<OwnedFd>) -> i32 {
        result.unwrap_err().errno()
    }

    #[test]
    fn tcp_accepts_and_blocks() {
        let socket = bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(!fcntl_getfl(&socket).unwrap().contains(OFlags::NONBLOCK));
        let flags = rustix::io::fcntl_getfd(&socket).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
        let error = bind_tcp(address).unwrap_err();
        assert_eq!(error.errno(), libc::EADDRINUSE);
        assert!(error.to_string().starts_with(&format!("cannot listen on {address}: ")), "{error}");
    }

    #[test]
    fn any_v6_takes_v4() {
        let socket = bind_tcp("[::]:0".parse().unwrap()).unwrap();
        let listener = TcpListener::from(socket);
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn an_address_of_another_machine() {
        // RFC 5737: of no machine at all.
        assert_eq!(errno(bind_tcp("192.0.2.1:0".parse().unwrap())), libc::EADDRNOTAVAIL);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let path = path("stale");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = UnixListener::from(bind_unix(&path).unwrap());
        UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        assert_eq!(errno(bind_unix(&path)), libc::EADDRINUSE);
        assert!(path.exists());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn nothing_but_a_socket_is_removed() {
        let file = path("file");
        std::fs::write(&file, "precious").unwrap();
        assert_eq!(errno(bind_unix(&file)), libc::EADDRINUSE);
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        std::fs::remove_file(&file).unwrap();

        let link = path("link");
        std::os::unix::fs::symlink("/nonexistent/target", &link).unwrap();
        assert_eq!(errno(bind_unix(&link)), libc::EADDRINUSE);
        std::fs::remove_file(&link).unwrap();

        let other = path("datagram");
        let live = UnixDatagram::bind(&other).unwrap();
        assert_eq!(errno(bind_unix(&other)), libc::EADDRINUSE);
        drop(live);
        std::fs::remove_file(&other).unwrap();

        assert_eq!(errno(bind_unix(Path::new("/nonexistent/dir/x.sock"))), libc::ENOENT);
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
        assert_eq!(errno(bind_unix(&long)), libc::ENAMETOOLONG);
    }
}
