//! Unix sockets with paths: the control socket, the notify sockets, and the lock beside them.
#![expect(
    unsafe_code,
    reason = "the kernel's interface: SO_PEERGROUPS, and credentials of any pid"
)]

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::{Error, Result};

/// Length of the kernel's queue of clients. The server takes them all at each wake.
const BACKLOG: i32 = 128;

/// Most bytes of a notification, as for systemd's (`NOTIFY_BUFFER_MAX`).
const NOTIFICATION_BYTES_MAX: usize = 4096;

/// Most supplementary groups of a peer (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65536;

/// Who is at the other end of a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its process when it connected, 0 where that is outside of our namespace.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
}

/// A datagram on a notify socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// The sender's process, 0 where that is outside of our namespace.
    pub pid: u32,
    /// The sender's user.
    pub uid: u32,
    /// Assignments, one a line.
    pub text: String,
}

/// Why a lock was not won.
#[derive(Debug)]
pub enum LockError {
    /// Somebody has it.
    Held {
        /// Who, where the file says so.
        pid: Option<u32>,
    },
    /// The kernel said no.
    System(Error),
}

/// A path of any length as an address: one that is longer than `sun_path` is reached through its
/// opened directory, which has to live until the call is done.
struct Address {
    address: SocketAddrUnix,
    _directory: Option<OwnedFd>,
}

impl Address {
    fn new(path: &Path) -> Result<Self> {
        if let Ok(address) = SocketAddrUnix::new(path) {
            return Ok(Self { address, _directory: None });
        }
        let failed = |e| Error::at("address the socket", path, e);
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent.unwrap_or(Path::new(".")), flags, Mode::empty())
            .map_err(failed)?;
        let name = path.file_name().unwrap_or_default();
        let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        let address = SocketAddrUnix::new(&short).map_err(failed)?;
        Ok(Self { address, _directory: Some(directory) })
    }
}

/// Listens at `path`, not blocking, with the permissions `mode`. Takes the place of a socket that
/// is there, in one step: no client finds none, or one with other permissions.
pub fn listen(path: &Path, mode: u32) -> Result<OwnedFd> {
    let socket = bind(path, SocketType::STREAM, mode, |socket, at| {
        rustix::net::listen(socket, BACKLOG).map_err(|e| Error::at("listen at", at, e))
    })?;
    Ok(socket)
}

/// A notify socket at `path`, not blocking, with the permissions `mode`: each datagram comes with
/// the credentials of its sender.
pub fn notify_socket(path: &Path, mode: u32) -> Result<OwnedFd> {
    bind(path, SocketType::DGRAM, mode, |socket, at| {
        sockopt::set_socket_passcred(socket, true).map_err(|e| Error::at("open", at, e))
    })
}

fn bind(
    path: &Path,
    kind: SocketType,
    mode: u32,
    prepare: impl FnOnce(&OwnedFd, &Path) -> Result<()>,
) -> Result<OwnedFd> {
    let failed = |e: io::Error| Error::at("make the socket", path, e);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)
        .map_err(|e| failed(e.into()))?;
    let draft = beside(path);
    match fs::remove_file(&draft) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    rustix::net::bind(&socket, &Address::new(&draft)?.address).map_err(|e| failed(e.into()))?;
    fs::set_permissions(&draft, Permissions::from_mode(mode)).map_err(failed)?;
    prepare(&socket, path)?;
    fs::rename(&draft, path).map_err(failed)?;
    Ok(socket)
}

/// The name under which a socket is made before it takes its place.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push("~");
    path.with_file_name(name)
}

/// The next client of a socket that [`listen`] made; its end does not block either. `EMFILE` is an
/// error that leaves the client in the queue.
pub fn accept(listener: impl AsFd) -> Result<Option<OwnedFd>> {
    use rustix::io::Errno;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    match rustix::net::accept_with(listener, flags) {
        Ok(client) => Ok(Some(client)),
        // One that went away before it was its turn is none.
        Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => Ok(None),
        Err(e) => Err(Error::new("accept a client", e)),
    }
}

/// Connects to the socket at `path`, of any length.
pub fn connect(path: &Path) -> Result<UnixStream> {
    let failed = |e| Error::at("connect to", path, e);
    let kind = SocketType::STREAM;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
        .map_err(failed)?;
    rustix::net::connect(&socket, &Address::new(path)?.address).map_err(failed)?;
    Ok(socket.into())
}

/// Who connected this socket, as it was then.
pub fn peer(socket: impl AsFd) -> Result<Peer> {
    let credentials =
        nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials)
            .map_err(|e| Error::new("ask for the peer", e))?;
    Ok(Peer {
        pid: u32::try_from(credentials.pid()).unwrap_or_default(),
        uid: credentials.uid(),
        gid: credentials.gid(),
        groups: peer_groups(&socket)?,
    })
}

fn peer_groups(socket: impl AsFd) -> Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let mut bytes = u32::try_from(groups.len().saturating_mul(4)).unwrap_or(u32::MAX);
        // SAFETY: the kernel writes at most `bytes` bytes, which is the size of the vector.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = usize::try_from(bytes / 4).unwrap_or_default();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // The kernel says how many there are when they do not fit.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > GROUPS_MAX
        {
            return Err(Error::new("ask for the peer's groups", error));
        }
        groups.resize(count, 0);
    }
}

/// Wins the lock at `path` for as long as the fd (or a dup, or an inherited one) is open, and
/// writes `holder` into it, or says who has it.
pub fn lock_file(path: &Path, holder: u32) -> std::result::Result<OwnedFd, LockError> {
    let failed = |e: io::Error| LockError::System(Error::at("lock", path, e));
    loop {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(path)
            .map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(LockError::Held { pid: read_holder(&mut file) });
            }
            Err(e) => return Err(failed(e.into())),
        }
        // The last holder may have removed the file between our open and our lock: then this is
        // the lock of a file that nobody else will ever find.
        let ours = file.metadata().map_err(failed)?;
        match fs::metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {}
            _ => continue,
        }
        let text = format!("{holder}\n");
        let written = file.set_len(0).and_then(|()| file.write_all_at(text.as_bytes(), 0));
        if let Err(error) = written {
            // The disk is full: nothing of it is to stay there.
            fs::remove_file(path).unwrap_or_default();
            return Err(failed(error));
        }
        return Ok(file.into());
    }
}

fn read_holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// The next notification that waits; it is taken. One that is too long or not UTF-8 is passed over,
/// and file descriptors beside one are closed, which is what `BARRIER=1` waits for.
pub fn take_notify(socket: impl AsFd) -> Result<Option<Notification>> {
    loop {
        match receive_notify(socket.as_fd(), 0)? {
            Datagram::None => return Ok(None),
            Datagram::Bad => {}
            Datagram::Good(notification) => return Ok(Some(notification)),
        }
    }
}

/// The same, and it stays: whoever looks next sees it again.
pub fn peek_notify(socket: impl AsFd) -> Result<Option<Notification>> {
    loop {
        match receive_notify(socket.as_fd(), libc::MSG_PEEK)? {
            Datagram::None => return Ok(None),
            Datagram::Bad => drop(receive_notify(socket.as_fd(), 0)?),
            Datagram::Good(notification) => return Ok(Some(notification)),
        }
    }
}

/// What waits on a notify socket.
enum Datagram {
    None,
    Bad,
    Good(Notification),
}

fn receive_notify(socket: BorrowedFd<'_>, flags: i32) -> Result<Datagram> {
    let mut text = [0_u8; NOTIFICATION_BYTES_MAX];
    let mut control = Credentials([0; CREDENTIALS_BYTES]);
    let mut slice = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    // SAFETY: all zeroes are a valid msghdr without address, data and control data. It has
    // private padding with musl, so it cannot be written as a literal.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // The room is for the credentials only, which the kernel writes first: of any file
    // descriptors none is installed in this process.
    message.msg_controllen = CREDENTIALS_BYTES;
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the pointers of `message` are to live buffers of the lengths it says.
    let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let Ok(count) = usize::try_from(result) else {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Datagram::None),
            _ => Err(Error::new("receive a notification", error)),
        };
    };
    let whole = message.msg_flags & libc::MSG_TRUNC == 0;
    let text = std::str::from_utf8(text.get(..count).unwrap_or_default());
    Ok(match (whole, control.sender(), text) {
        (true, Some((pid, uid)), Ok(text)) => {
            Datagram::Good(Notification { pid, uid, text: text.to_owned() })
        }
        (_, _, _) => Datagram::Bad,
    })
}

/// `cmsghdr` (16 bytes) and `ucred` (12 bytes), as `SCM_CREDENTIALS` comes on a 64-bit machine.
const CREDENTIALS_BYTES: usize = 32;

#[repr(align(8))]
struct Credentials([u8; CREDENTIALS_BYTES]);

impl Credentials {
    /// The sender's process and user. Read by hand, since a pid of 0 is possible and is none of
    /// rustix' `Pid`.
    fn sender(&self) -> Option<(u32, u32)> {
        let word = |at: usize| {
            let bytes: [u8; 4] = self.0.get(at..at.checked_add(4)?)?.try_into().ok()?;
            Some(i32::from_ne_bytes(bytes))
        };
        let header = std::mem::size_of::<libc::cmsghdr>();
        let kind = (word(header.checked_sub(8)?)?, word(header.checked_sub(4)?)?);
        if kind != (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) {
            return None;
        }
        let uid = word(header.checked_add(4)?)?;
        Some((u32::try_from(word(header)?).ok()?, uid.cast_unsigned()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::sys::testing::{self, Directory, notify};
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn a_client_is_accepted_and_known_at_a_path_of_any_length() {
        let directory = Directory::new("unix-listen");
        let long = directory.path().join("d".repeat(120)).join("e".repeat(120));
        fs::create_dir_all(&long).unwrap();
        for path in [directory.path().join("s"), long.join("io.pmr.App")] {
            let listener = listen(&path, 0o640).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
            assert!(accept(&listener).unwrap().is_none());
            let mut client = connect(&path).unwrap();
            let server = accept(&listener).unwrap().unwrap();
            let peer = peer(&server).unwrap();
            assert_eq!(peer.pid, std::process::id());
            assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
            assert_eq!(peer.gid, rustix::process::getegid().as_raw());
            let mut groups: Vec<u32> =
                rustix::process::getgroups().unwrap().iter().map(|g| g.as_raw()).collect();
            let mut said = peer.groups;
            groups.sort_unstable();
            said.sort_unstable();
            assert_eq!(said, groups);

            client.write_all(b"x").unwrap();
            assert_eq!(rustix::io::read(&server, &mut [0_u8; 4][..]).unwrap(), 1);
            // Nothing to read, and no waiting for it.
            let error = rustix::io::read(&server, &mut [0_u8; 4][..]).unwrap_err();
            assert_eq!(error, rustix::io::Errno::AGAIN);
            // Another one takes its place, and has the clients from now on.
            let second = listen(&path, 0o600).unwrap();
            let _client = connect(&path).unwrap();
            assert!(accept(&listener).unwrap().is_none());
            assert!(accept(&second).unwrap().is_some());
        }
        assert!(connect(&directory.path().join("none")).unwrap_err().is_not_found());
    }

    #[test]
    fn a_lock_names_its_holder_and_ends_with_it() {
        let directory = Directory::new("unix-lock");
        let path = directory.path().join("lock");
        let lock = lock_file(&path, 4711).unwrap();
        let again = lock_file(&path, 4712).unwrap_err();
        assert!(matches!(again, LockError::Held { pid: Some(4711) }), "{again:?}");
        let kept = lock.try_clone().unwrap();
        drop(lock);
        assert!(lock_file(&path, 4712).is_err(), "a dup still holds it");
        drop(kept);
        // A process that another test forks has a copy of the fd until its exec.
        let next = testing::eventually("the lock is free", || lock_file(&path, 9).ok());
        assert_eq!(fs::read_to_string(&path).unwrap(), "9\n");
        // A holder that removed its file holds nothing that the next one could find.
        fs::remove_file(&path).unwrap();
        let other = lock_file(&path, 10).unwrap();
        drop((next, other));
        assert!(matches!(
            lock_file(&directory.path().join("no/lock"), 1),
            Err(LockError::System(e)) if e.is_not_found()
        ));
    }

    #[test]
    fn notifications_come_with_their_sender_and_without_fds() {
        let directory = Directory::new("unix-notify");
        let path = directory.path().join("notify");
        let socket = notify_socket(&path, 0o666).unwrap();
        assert_eq!(take_notify(&socket).unwrap(), None);
        notify(&path, "READY=1\nSTATUS=x").unwrap();
        let got = take_notify(&socket).unwrap().unwrap();
        assert_eq!((got.pid, got.text.as_str()), (std::process::id(), "READY=1\nSTATUS=x"));
        assert_eq!(got.uid, rustix::process::geteuid().as_raw());

        notify(&path, &"x".repeat(NOTIFICATION_BYTES_MAX + 1)).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.send_to(b"\xff\xfe", &path).unwrap();
        notify(&path, "").unwrap();
        assert_eq!(take_notify(&socket).unwrap().unwrap().text, "");
        assert_eq!(take_notify(&socket).unwrap(), None);

        // BARRIER=1 carries a pipe; its sender waits until no copy is open.
        let (reader, writer) = testing::pipe().unwrap();
        sender.connect(&path).unwrap();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        let fds = [writer.as_fd()];
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
        let flags = rustix::net::SendFlags::empty();
        rustix::net::sendmsg(&sender, &[io::IoSlice::new(b"BARRIER=1")], &mut control, flags)
            .unwrap();
        drop(writer);
        assert_eq!(take_notify(&socket).unwrap().unwrap().text, "BARRIER=1");
        assert_eq!(rustix::io::read(&reader, &mut [0_u8; 4][..]).unwrap(), 0);
    }
}
