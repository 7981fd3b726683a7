//! The link of keeper and supervisor: packets with file descriptors, over a `SOCK_SEQPACKET` pair.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
};

use super::{Error, Result};

/// Most bytes of a packet.
pub const PACKET_BYTES_MAX: usize = 64 * 1024;

/// Most file descriptors beside a packet.
pub const FDS_MAX: usize = 8;

/// Room for a whole hand-over: a small packet is charged with about a kilobyte, and there may be
/// several for each of 256 instances.
const SEND_BUFFER_BYTES: usize = 2 * 1024 * 1024;

/// Space of the control data. All of it is for one message: no other kind is asked for.
const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(FDS_MAX));

/// What came.
#[derive(Debug)]
pub enum Received {
    /// One packet.
    Packet {
        /// Its bytes.
        bytes: Vec<u8>,
        /// The file descriptors beside it, each closed on exec.
        fds: Vec<OwnedFd>,
    },
    /// Nothing yet.
    Empty,
    /// The other end is gone, and all that it said was received.
    Closed,
}

/// One end of the link. Never blocks.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
}

impl Link {
    /// The two ends of a new link.
    pub fn pair() -> Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (left, right) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .map_err(|e| Error::new("make the link", e))?;
        for end in [&left, &right] {
            // Beyond net.core.wmem_max only with CAP_NET_ADMIN; without it, what the system allows.
            // Either way a full link is not an error: what does not fit is sent later.
            sockopt::set_socket_send_buffer_size_force(end, SEND_BUFFER_BYTES)
                .or_else(|_| sockopt::set_socket_send_buffer_size(end, SEND_BUFFER_BYTES))
                .map_err(|e| Error::new("enlarge the link", e))?;
        }
        Ok((Self::from_fd(left), Self::from_fd(right)))
    }

    /// The end that `fd` is, as [`Link::pair`] made it: not blocking.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Sends one packet. See [`is_full`] for the error that means "later".
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let doing = "send on the link";
        if bytes.is_empty() || bytes.len() > PACKET_BYTES_MAX || fds.len() > FDS_MAX {
            // The other end could not receive it, or would take it for the end.
            return Err(Error::new(doing, Errno::MSGSIZE));
        }
        let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Error::new(doing, Errno::MSGSIZE));
        }
        rustix::net::sendmsg(&self.fd, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
            .map(|_| ())
            .map_err(|e| Error::new(doing, e))
    }

    /// Receives one packet. A packet that was cut off (too many bytes or file descriptors, or no
    /// file descriptor free in this process) is an error, and none of it stays open.
    pub fn receive(&mut self) -> Result<Received> {
        let doing = "receive from the link";
        // A peer that died with unread packets leaves a reset behind, which the kernel reports
        // once and before the packets that the peer had sent. They come after it.
        let received = match self.receive_once() {
            Err(Errno::CONNRESET) => self.receive_once(),
            other => other,
        };
        let (bytes, flags, fds) = match received {
            Err(Errno::AGAIN) => return Ok(Received::Empty),
            other => other.map_err(|e| Error::new(doing, e))?,
        };
        if flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(Error::new(doing, Errno::MSGSIZE));
        }
        if bytes.is_empty() {
            return Ok(Received::Closed);
        }
        Ok(Received::Packet { bytes, fds })
    }

    /// Asks for the size first: a buffer for the largest packet, kept for the life of two processes
    /// that wait most of the time, would be a fifth of the memory they have to themselves. Nobody
    /// else receives on this end, so the packet is the same.
    fn receive_once(&self) -> std::result::Result<(Vec<u8>, ReturnFlags, Vec<OwnedFd>), Errno> {
        let size_only = RecvFlags::PEEK | RecvFlags::TRUNC;
        let (_, size) = rustix::net::recv(&self.fd, &mut [0_u8; 0][..], size_only)?;
        let mut bytes = vec![0; size.min(PACKET_BYTES_MAX)];
        let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = rustix::net::recvmsg(&self.fd, &mut slices, &mut control, flags)?;
        let mut fds = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                fds.extend(rights);
            }
        }
        let flags = message.flags;
        bytes.truncate(message.bytes);
        Ok((bytes, flags, fds))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Link> for OwnedFd {
    fn from(link: Link) -> Self {
        link.fd
    }
}

/// Whether a packet was not sent because the link is full: it is to be sent again when the link
/// is writable.
pub fn is_full(error: &Error) -> bool {
    error.errno() == libc::EAGAIN
}

/// Whether a packet was not sent because the other end has too many file descriptors to receive
/// already. The link is writable all the while, so it is to be tried again after the other end
/// has said something.
pub fn is_choked(error: &Error) -> bool {
    error.errno() == libc::ETOOMANYREFS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing;

    fn packet(link: &mut Link) -> (Vec<u8>, Vec<OwnedFd>) {
        match link.receive().unwrap() {
            Received::Packet { bytes, fds } => (bytes, fds),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn packets_keep_their_bounds_and_their_fds() {
        let (left, mut right) = Link::pair().unwrap();
        assert!(matches!(right.receive().unwrap(), Received::Empty));
        let (reader, writer) = testing::pipe().unwrap();
        left.send(b"one", &[writer.as_fd()]).unwrap();
        left.send(b"two", &[]).unwrap();
        drop(writer);
        let (bytes, fds) = packet(&mut right);
        assert_eq!((bytes.as_slice(), fds.len()), (&b"one"[..], 1));
        assert!(rustix::io::fcntl_getfd(&fds[0]).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        rustix::io::write(&fds[0], b"x").unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0_u8; 8][..]).unwrap(), 1);
        assert_eq!(packet(&mut right).0, b"two");
        drop(left);
        assert!(matches!(right.receive().unwrap(), Received::Closed));
    }

    #[test]
    fn what_was_sent_before_a_death_is_received_although_the_dead_had_unread_packets() {
        let (mut left, right) = Link::pair().unwrap();
        left.send(b"never read", &[]).unwrap();
        right.send(b"born", &[]).unwrap();
        drop(right);
        assert_eq!(packet(&mut left).0, b"born");
        assert!(matches!(left.receive().unwrap(), Received::Closed));
        assert!(matches!(left.receive().unwrap(), Received::Closed));
        assert!(left.send(b"x", &[]).is_err());
    }

    #[test]
    fn a_hand_over_of_three_hundred_packets_fits() {
        let (left, mut right) = Link::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        for _ in 0..300 {
            left.send(&[b'x'; 400], &[null.as_fd()]).unwrap();
        }
        for _ in 0..300 {
            assert_eq!(packet(&mut right).1.len(), 1);
        }
    }

    #[test]
    fn a_full_link_can_be_told() {
        let (left, _right) = Link::pair().unwrap();
        let mut sent = 0;
        let error = loop {
            match left.send(&vec![b'x'; PACKET_BYTES_MAX], &[]) {
                Ok(()) => sent += 1,
                Err(e) => break e,
            }
            assert!(sent < 1000, "the link is never full");
        };
        assert!(is_full(&error), "{error}");
    }

    #[test]
    fn the_largest_packet_passes_and_a_larger_one_is_refused() {
        let (left, mut right) = Link::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let fds = [null.as_fd(); FDS_MAX];
        left.send(&vec![1; PACKET_BYTES_MAX], &fds).unwrap();
        let (bytes, received) = packet(&mut right);
        assert_eq!((bytes.len(), received.len()), (PACKET_BYTES_MAX, FDS_MAX));
        assert!(left.send(&vec![1; PACKET_BYTES_MAX + 1], &[]).is_err());
        assert!(left.send(b"x", &[null.as_fd(); FDS_MAX + 1]).is_err());
        assert!(left.send(b"", &[]).is_err());
    }

    /// A peer that is not ours may send more than we do; none of it may stay open here.
    #[test]
    fn a_packet_that_is_cut_off_is_an_error_and_leaks_nothing() {
        // Other tests open files in this process, so the pipe's other end is what tells.
        let (left, mut right) = Link::pair().unwrap();
        let raw = left.as_fd();
        let (reader, writer) = testing::pipe().unwrap();
        let fds = [writer.as_fd(); FDS_MAX + 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX + 4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let slices = [IoSlice::new(b"x")];
        rustix::net::sendmsg(raw, &slices, &mut control, SendFlags::empty()).unwrap();
        let long = vec![0_u8; PACKET_BYTES_MAX + 1];
        let fds = [writer.as_fd()];
        let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let slices = [IoSlice::new(&long)];
        rustix::net::sendmsg(raw, &slices, &mut control, SendFlags::empty()).unwrap();

        assert_eq!(right.receive().unwrap_err().errno(), libc::EMSGSIZE);
        assert_eq!(right.receive().unwrap_err().errno(), libc::EMSGSIZE);
        assert!(matches!(right.receive().unwrap(), Received::Empty));
        drop(writer);
        // The end of the file comes only when no copy of the write end is left.
        assert_eq!(rustix::io::read(&reader, &mut [0_u8; 8][..]).unwrap(), 0);
    }
}
