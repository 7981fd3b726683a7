//! Node's channel between a process and its parent: a Unix stream with sockets beside its bytes.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType,
};

use super::{Error, Result};

/// What came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// So many bytes: at least one.
    Bytes(usize),
    /// Nothing yet.
    Empty,
    /// The other end is gone, and all that it said was received.
    Closed,
}

/// The parent's end. Never blocks.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
}

impl Channel {
    /// A new channel: the parent's end, and the child's. That one blocks until Node has it.
    pub fn pair() -> Result<(Self, OwnedFd)> {
        let failed = |errno| Error::new("make Node's channel", errno);
        let (unix, stream) = (AddressFamily::UNIX, SocketType::STREAM);
        let flags = SocketFlags::CLOEXEC;
        let (own, other) = rustix::net::socketpair(unix, stream, flags, None).map_err(failed)?;
        set_nonblocking(own.as_fd()).map_err(failed)?;
        Ok((Self { fd: own }, other))
    }

    /// The end that `fd` is, as [`Channel::pair`] made it: not blocking.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Receives as many bytes as there are and have room. Handles that come with them are closed by
    /// the kernel, since there is no place for them: they never take an fd here.
    pub fn read(&self, room: &mut [u8]) -> Result<Received> {
        match rustix::net::recv(&self.fd, room, RecvFlags::empty()) {
            // A peer that died with unread bytes leaves a reset behind all that it has sent.
            Ok((0, _)) | Err(Errno::CONNRESET) => Ok(Received::Closed),
            Ok((count, _)) => Ok(Received::Bytes(count)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Empty),
            Err(errno) => Err(Error::new("read Node's channel", errno)),
        }
    }

    /// Sends bytes, with a socket beside the first of them. Returns how many were taken; 0 means
    /// later, when the channel is writable.
    ///
    /// The socket is made non-blocking, for all who hold it: Node up to 18 would else wait in
    /// accept(2) for ever.
    pub fn write(&self, bytes: &[u8], socket: Option<BorrowedFd<'_>>) -> Result<usize> {
        let failed = |errno| Error::new("write to Node's channel", errno);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let sockets: Vec<BorrowedFd<'_>> = socket.into_iter().collect();
        if let [socket] = sockets[..] {
            set_nonblocking(socket).map_err(failed)?;
            if !control.push(SendAncillaryMessage::ScmRights(&sockets)) {
                return Err(failed(Errno::MSGSIZE));
            }
        }
        let slices = [IoSlice::new(bytes)];
        match rustix::net::sendmsg(&self.fd, &slices, &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            taken => taken.map_err(failed),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.fd
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing;

    #[test]
    fn a_socket_goes_with_its_bytes_and_does_not_block() {
        let (own, other) = Channel::pair().unwrap();
        let (reader, writer) = testing::pipe().unwrap();
        assert_eq!(own.write(b"line\n", Some(reader.as_fd())).unwrap(), 5);
        let flags = rustix::fs::fcntl_getfl(&reader).unwrap();
        assert!(flags.contains(OFlags::NONBLOCK));
        let other = Channel::from_fd(other);
        let mut room = [0; 16];
        assert_eq!(other.read(&mut room).unwrap(), Received::Bytes(5));
        assert_eq!(&room[..5], b"line\n");
        drop(reader);
        // What was received had no place for it, so nobody holds it.
        assert_eq!(rustix::io::write(&writer, b"x"), Err(Errno::PIPE));
    }

    #[test]
    fn what_was_sent_is_received_before_the_end() {
        let (own, other) = Channel::pair().unwrap();
        let mut room = [0; 16];
        assert_eq!(own.read(&mut room).unwrap(), Received::Empty);
        own.write(b"never read", None).unwrap();
        rustix::io::write(&other, b"last words").unwrap();
        drop(other);
        assert_eq!(own.read(&mut room).unwrap(), Received::Bytes(10));
        assert_eq!(own.read(&mut room).unwrap(), Received::Closed);
        assert_eq!(own.read(&mut room).unwrap(), Received::Closed);
        assert!(own.write(b"x", None).is_err());
    }

    /// No line to a worker may be written in part: one that dies in between would leave the other
    /// half to be read as a line of its own.
    #[test]
    fn sixteen_kilobytes_are_taken_as_a_whole_or_not_at_all() {
        let (own, other) = Channel::pair().unwrap();
        let line = vec![b'x'; 17 * 1024];
        let mut lines = 0;
        while own.write(&line, None).unwrap() == line.len() {
            lines += 1;
            assert!(lines < 10_000, "the channel is never full");
        }
        assert_eq!(own.write(&line, None).unwrap(), 0);
        let other = Channel::from_fd(other);
        set_nonblocking(other.as_fd()).unwrap();
        let mut room = vec![0; 64 * 1024];
        let mut received = 0;
        while let Received::Bytes(count) = other.read(&mut room).unwrap() {
            received += count;
        }
        assert_eq!(received, lines * line.len());
    }
}
