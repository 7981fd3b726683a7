//! Listening sockets that instances inherit.
//!
//! They block, as sockets of systemd's activation do unless asked otherwise: whether accept(2)
//! waits is a property of the open file, which all holders share, and a plain server (Python's
//! `socketserver`, most demos) expects it to wait. Event-driven servers set `O_NONBLOCK` on what
//! they inherit by themselves. pmr itself never accepts from them.
#![expect(unsafe_code, reason = "the kernel's interface: TCP_INFO of a listening socket")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::Uid;
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
    let result = match result {
        Err(errno) if is_any_v6(address) && is_without_v6(errno.raw_os_error()) => {
            try_bind_tcp(any_v4(address))
        }
        result => result,
    };
    result.map_err(|errno| Error::at("listen on", address.to_string(), errno))
}

/// The first socket of a group that share their address (`SO_REUSEPORT`, socket(7)): those of the
/// same uid only can enter it. It listens. Sockets of somebody else that may be shared as well are
/// an error all the same: `EADDRINUSE`. Port 0 becomes one that is free.
///
/// `only_v6`: the unspecified IPv6 address takes no IPv4.
pub fn found_group(mut address: SocketAddr, only_v6: bool) -> Result<OwnedFd> {
    let failed = |errno| Error::at("listen on", address.to_string(), errno);
    // What nobody else has can be had alone for a moment. A port that the kernel has chosen would
    // be given up when the socket is made to stop, and not be the group's any more (measured: the
    // kernel keeps only what was bound by number, SOCK_BINDPORT_LOCK).
    let alone = if only_v6 {
        let socket = new_tcp(address, true).map_err(failed)?;
        bind(&socket, &address).map_err(failed)?;
        socket
    } else {
        bind_tcp(address)?
    };
    let own = rustix::net::getsockname(&alone).and_then(SocketAddr::try_from);
    address = own.map_err(|errno| Error::new("ask for the address of a socket", errno))?;
    drop(alone);
    bind_in_group(address, only_v6, None)
        .map_err(|errno| Error::at("listen on", address.to_string(), errno))
}

/// Another socket of the group of `member`: of the same address and owner. It listens.
pub fn join_group(member: BorrowedFd<'_>) -> Result<OwnedFd> {
    let address = address_of(member)?;
    let failed = |errno| Error::at("listen on", address.to_string(), errno);
    let only_v6 = address.is_ipv6() && sockopt::ipv6_v6only(member).map_err(failed)?;
    let other = Some(owner(member)?).filter(|uid| *uid != rustix::process::geteuid().as_raw());
    bind_in_group(address, only_v6, other).map_err(failed)
}

/// Whose a socket is: who made it, or was given it. A group is of one user.
pub fn owner(socket: BorrowedFd<'_>) -> Result<u32> {
    let facts = rustix::fs::fstat(socket);
    Ok(facts.map_err(|errno| Error::new("ask whose a socket is", errno))?.st_uid)
}

/// Gives a socket to another user, for all who hold it.
pub fn set_owner(socket: BorrowedFd<'_>, uid: u32) -> Result<()> {
    rustix::fs::fchown(socket, Some(Uid::from_raw(uid)), None)
        .map_err(|errno| Error::new("give a socket to another user", errno))
}

/// Where a TCP or UDP socket is bound.
pub fn address_of(socket: BorrowedFd<'_>) -> Result<SocketAddr> {
    let own = rustix::net::getsockname(socket).and_then(SocketAddr::try_from);
    own.map_err(|errno| Error::new("ask for the address of a socket", errno))
}

fn bind_in_group(
    address: SocketAddr,
    only_v6: bool,
    owner: Option<u32>,
) -> rustix::io::Result<OwnedFd> {
    let socket = new_tcp(address, only_v6)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    // Before the bind, which compares.
    if let Some(owner) = owner {
        rustix::fs::fchown(&socket, Some(Uid::from_raw(owner)), None)?;
    }
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A UDP socket at `address`.
pub fn bind_udp(address: SocketAddr, only_v6: bool, reuse: bool) -> Result<OwnedFd> {
    let failed = |errno| Error::at("bind", address.to_string(), errno);
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(failed)?;
    if reuse {
        sockopt::set_socket_reuseaddr(&socket, true).map_err(failed)?;
    }
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, only_v6).map_err(failed)?;
    }
    bind(&socket, &address).map_err(failed)?;
    Ok(socket)
}

/// Has a bound socket listen with the longest queue; nothing else changes for one that does.
pub fn start(socket: BorrowedFd<'_>) -> Result<()> {
    listen(socket, BACKLOG).map_err(|errno| Error::new("listen", errno))
}

/// Whether it is a member of a group of sockets that share their address.
pub fn is_in_group(socket: &OwnedFd) -> bool {
    sockopt::socket_reuseport(socket).unwrap_or(false)
}

/// Has all who wait in a listening socket move to the others of its group, and listens again.
///
/// Nobody may use it meanwhile: between the two an accept(2) fails with `EINVAL`, and a poll
/// reports an end. Many servers die of that.
pub fn move_queue(socket: BorrowedFd<'_>) -> Result<()> {
    rustix::net::shutdown(socket, rustix::net::Shutdown::Read)
        .map_err(|errno| Error::new("move the queue of a socket", errno))?;
    start(socket)
}

fn is_any_v6(address: SocketAddr) -> bool {
    address.is_ipv6() && address.ip().is_unspecified()
}

/// Whether it is the error of a machine without IPv6.
fn is_without_v6(errno: i32) -> bool {
    [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL, Errno::PROTONOSUPPORT]
        .iter()
        .any(|it| it.raw_os_error() == errno)
}

fn any_v4(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port())
}

fn try_bind_tcp(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let socket = new_tcp(address, false)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn new_tcp(address: SocketAddr, only_v6: bool) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Connections of an earlier listener in TIME_WAIT do not keep this one from its port.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if is_any_v6(address) {
        sockopt::set_ipv6_v6only(&socket, only_v6)?;
    }
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

/// The same for an app that asks for it, with more bits of the file's mode.
pub fn bind_unix_for(path: &Path, mode: u32) -> Result<OwnedFd> {
    let socket = bind_unix(path)?;
    if mode != 0 {
        let failed = |errno| Error::at("set the mode of", path, errno);
        let now = rustix::fs::stat(path).map_err(failed)?.st_mode;
        let mode = rustix::fs::Mode::from_raw_mode(now | mode);
        rustix::fs::chmod(path, mode).map_err(failed)?;
    }
    Ok(socket)
}

/// Whether it is a socket that listens on this TCP address.
pub fn listens_at_tcp(socket: &OwnedFd, address: SocketAddr) -> bool {
    let own = rustix::net::getsockname(socket).ok();
    let own = own.and_then(|own| SocketAddr::try_from(own).ok());
    let any = is_any_v6(address);
    // What [`bind_tcp`] makes of it on a machine without IPv6.
    listens(socket) && (own == Some(address) || any && own == Some(any_v4(address)))
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

/// The accept queue of a listening socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queue {
    /// Connections that wait to be accepted.
    pub length: u32,
    /// How many of them there is room for.
    pub backlog: u32,
}

/// The accept queue of a TCP socket that listens (`TCP_INFO`, where the kernel has its length in
/// `tcpi_unacked` and its backlog in `tcpi_sacked`: `tcp_get_info` of net/ipv4/tcp.c).
pub fn queue(socket: impl AsFd) -> Result<Queue> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut bytes = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or_default();
    let (fd, value) = (socket.as_fd().as_raw_fd(), info.as_mut_ptr().cast());
    let option = libc::TCP_INFO;
    // SAFETY: getsockopt(2) writes at most so many bytes to a struct of that size.
    let result = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, option, value, &raw mut bytes) };
    if result != 0 {
        let errno = nix::errno::Errno::last();
        return Err(Error::new("ask for the queue of a socket", errno));
    }
    // SAFETY: it was zeroed, and all of its fields are numbers.
    let info = unsafe { info.assume_init() };
    Ok(Queue { length: info.tcpi_unacked, backlog: info.tcpi_sacked })
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

    #[test]
    fn a_group_is_of_one_user_and_can_be_given_to_another() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a_group_is_of_one_user_and_can_be_given_to_another: needs root");
            return;
        }
        let first = found_group(SocketAddr::from(([127, 0, 0, 1], 0)), false).unwrap();
        let second = join_group(first.as_fd()).unwrap();
        let address = address_of(first.as_fd()).unwrap();
        let bind_as = |uid| bind_in_group(address, false, Some(uid));
        assert_eq!(bind_as(65534).unwrap_err(), Errno::ADDRINUSE);
        set_owner(first.as_fd(), 65534).unwrap();
        assert_eq!(bind_as(65534).unwrap_err(), Errno::ADDRINUSE, "the second is another's");
        set_owner(second.as_fd(), 65534).unwrap();
        drop(bind_as(65534).unwrap());
        assert_eq!(bind_as(0).unwrap_err(), Errno::ADDRINUSE);
        let third = join_group(second.as_fd()).unwrap();
        assert_eq!(owner(third.as_fd()).unwrap(), 65534);
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
