//! What the service manager is told (`sd_notify(3)`), and the sockets that it gives back.
//!
//! The words are those of the `sd-notify` crate. Sending is not: its sockets block (0.5), and
//! whoever waits for a PID 1 that stands still keeps nothing. What finds no room is kept here, and
//! sent at the next occasion, in order.
#![expect(unsafe_code, reason = "the kernel's interface: an inherited fd is known by number only")]

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use sd_notify::NotifyState;

use super::{Error, Result};

/// Most notices that wait: those of a kind are one, so these are copies of sockets, of which an app
/// has at most 16 for each reading of its config.
const WAITING_MAX: usize = 256;

/// Most bytes of a status line; the manager takes no datagram of more than 4096.
const STATUS_BYTES_MAX: usize = 1000;

/// Most bytes of the name of a stored socket: `FDNAME_MAX` of systemd.
pub const FD_NAME_BYTES_MAX: usize = 255;

/// One thing that the service manager is told, in a datagram of its own: where one says two things,
/// what it means depends on the version.
#[derive(Debug)]
pub enum Notice {
    /// It is started, or reloaded.
    Ready,
    /// It is being reloaded, until it is ready again.
    Reloading,
    /// It is about to end.
    Stopping,
    /// How it is, in one line.
    Status(String),
    /// What it is at takes this much longer, from now, where its time would be up before.
    ExtendTimeout(Duration),
    /// It is not stuck.
    Watchdog,
    /// Keep a copy of this fd, and pass it on under this name to whoever is started next.
    Store(String, OwnedFd),
    /// Close all copies of that name.
    Remove(String),
}

impl Notice {
    /// Whether nobody needs to hear `older` any more.
    fn replaces(&self, older: &Self) -> bool {
        use Notice::{ExtendTimeout, Ready, Reloading, Remove, Status, Stopping, Store, Watchdog};
        match self {
            Ready | Reloading | Stopping => matches!(older, Ready | Reloading | Stopping),
            Status(_) => matches!(older, Status(_)),
            ExtendTimeout(_) => matches!(older, ExtendTimeout(_)),
            Watchdog => matches!(older, Watchdog),
            Store(..) | Remove(_) => false,
        }
    }

    /// Its datagram, worded when it is sent: the time in it is to be that of the sending.
    fn text(&self) -> io::Result<String> {
        let lines: &[NotifyState<'_>] = match self {
            Self::Ready => &[NotifyState::Ready],
            Self::Reloading => &[NotifyState::Reloading, NotifyState::monotonic_usec_now()?],
            Self::Stopping => &[NotifyState::Stopping],
            Self::Status(status) => &[NotifyState::Status(status)],
            Self::ExtendTimeout(time) => {
                let usec = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
                &[NotifyState::ExtendTimeoutUsec(usec)]
            }
            Self::Watchdog => &[NotifyState::Watchdog],
            Self::Store(name, _) => &[NotifyState::FdStore, NotifyState::FdName(name)],
            Self::Remove(name) => &[NotifyState::FdStoreRemove, NotifyState::FdName(name)],
        };
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        Ok(lines.join("\n"))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Store(_, fd) => Some(fd.as_fd()),
            Self::Ready
            | Self::Reloading
            | Self::Stopping
            | Self::Status(_)
            | Self::ExtendTimeout(_)
            | Self::Watchdog
            | Self::Remove(_) => None,
        }
    }
}

/// The way to the service manager, where there is one.
#[derive(Debug, Default)]
pub struct Notifier {
    address: Option<OsString>,
    waiting: VecDeque<Notice>,
    /// The last status that was said: it is said when it changes only.
    status: String,
}

impl Notifier {
    /// As `NOTIFY_SOCKET` says.
    pub fn of_environment() -> Self {
        Self::to(std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()))
    }

    fn to(address: Option<OsString>) -> Self {
        Self { address, ..Self::default() }
    }

    /// Whether anybody is told.
    pub fn has_manager(&self) -> bool {
        self.address.is_some()
    }

    /// Says something, now or at a later [`Self::flush`].
    pub fn say(&mut self, notice: Notice) -> Result<()> {
        if self.address.is_none() {
            return Ok(());
        }
        let notice = match notice {
            Notice::Status(status) => {
                let status = one_line(&status);
                if status == self.status {
                    return Ok(());
                }
                self.status.clone_from(&status);
                Notice::Status(status)
            }
            other => other,
        };
        self.waiting.retain(|older| !notice.replaces(older));
        if self.waiting.len() >= WAITING_MAX {
            return Err(Error::new("notify", Errno::NOBUFS));
        }
        self.waiting.push_back(notice);
        self.flush()
    }

    /// Sends what waits, as far as there is room. One that cannot be sent at all is dropped.
    pub fn flush(&mut self) -> Result<()> {
        let Some(address) = &self.address else { return Ok(()) };
        if self.waiting.is_empty() {
            return Ok(());
        }
        let failed = |error| Error::at("notify", address, error);
        let sent = connect(address).map(|socket| send_all(&socket, &mut self.waiting));
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(error)),
            Err(error) => {
                // Nobody is there, and nobody will be told later what was so now.
                self.waiting.clear();
                Err(failed(error))
            }
        }
    }
}

fn send_all(socket: &UnixDatagram, waiting: &mut VecDeque<Notice>) -> io::Result<()> {
    while let Some(notice) = waiting.front() {
        let sent = notice.text().and_then(|text| send(socket, &text, notice.fd()));
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Ok(()) | Err(_) => drop(waiting.pop_front()),
        }
        sent?;
    }
    Ok(())
}

fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(address),
    }?;
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

fn send(socket: &UnixDatagram, text: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fd.as_slice().is_empty() && !control.push(SendAncillaryMessage::ScmRights(fd.as_slice())) {
        return Err(Errno::MSGSIZE.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(text.as_bytes())], &mut control, flags)?;
    Ok(())
}

/// A line break would begin another assignment.
fn one_line(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let end = line.floor_char_boundary(STATUS_BYTES_MAX);
    line.get(..end).unwrap_or_default().to_owned()
}

/// How often the service manager wants to hear [`Notice::Watchdog`] at the least, where it does.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero())
}

/// The fds that the service manager has kept for this process, with their names: to be called once,
/// before anything else is opened.
pub fn take_stored() -> Result<Vec<(String, OwnedFd)>> {
    let stored = sd_notify::listen_fds_with_names()
        .map_err(|error| Error::new("take back what the service manager kept", error))?;
    let owned = stored.map(|(number, name)| {
        // SAFETY: LISTEN_PID says that these numbers were left open for this very process, setting
        // their flag has just shown each to be open, and nobody else has become their owner.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        (name, fd)
    });
    Ok(owned.collect())
}

/// The name for the stored copy of a socket: `prefix`, then `address` with what such a name must
/// not have (a colon, what is not printable ASCII) and what confuses (a slash) as in a URL. None
/// where that is too long.
pub fn fd_name(prefix: &str, address: &str) -> Option<String> {
    let letters = address.bytes().map(|byte| match byte {
        b':' | b'/' | b'%' => format!("%{byte:02X}"),
        0x21..0x7f => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    });
    let name: String = std::iter::once(prefix.to_owned()).chain(letters).collect();
    (name.len() <= FD_NAME_BYTES_MAX).then_some(name)
}

/// The address in a name of [`fd_name`].
pub fn fd_address(prefix: &str, name: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut letters = name.strip_prefix(prefix)?.bytes();
    while let Some(byte) = letters.next() {
        if byte == b'%' {
            let digits = [letters.next()?, letters.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::Directory;
    use crate::sys::unix::{notify_socket, take_notify};

    fn heard(socket: &OwnedFd) -> Vec<String> {
        std::iter::from_fn(|| take_notify(socket).unwrap()).map(|it| it.text).collect()
    }

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn each_notice_is_a_datagram_in_the_managers_words() {
        let directory = Directory::new("notify-words");
        let path = directory.path().join("notify");
        let socket = notify_socket(&path, 0o600).unwrap();
        let mut notifier = Notifier::to(Some(path.into()));
        for notice in [
            Notice::Ready,
            Notice::Status("a\nMAINPID=1\u{7}b".to_owned()),
            Notice::Status("a MAINPID=1 b".to_owned()),
            Notice::ExtendTimeout(Duration::from_millis(1500)),
            Notice::ExtendTimeout(Duration::from_secs(1 << 40)),
            Notice::Watchdog,
            Notice::Store("listen-x".to_owned(), null()),
            Notice::Remove("listen-x".to_owned()),
            Notice::Stopping,
        ] {
            notifier.say(notice).unwrap();
        }
        assert_eq!(
            heard(&socket),
            [
                "READY=1",
                "STATUS=a MAINPID=1 b",
                "EXTEND_TIMEOUT_USEC=1500000",
                "EXTEND_TIMEOUT_USEC=4294967295",
                "WATCHDOG=1",
                "FDSTORE=1\nFDNAME=listen-x",
                "FDSTOREREMOVE=1\nFDNAME=listen-x",
                "STOPPING=1"
            ]
        );
        notifier.say(Notice::Reloading).unwrap();
        let reloading = heard(&socket).remove(0);
        let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        let (usec, now) = (usec.parse::<u64>().unwrap(), crate::sys::clock::now() * 1000);
        assert!(usec <= now + 1000 && now < usec + 60_000_000, "{usec} {now}");
    }

    #[test]
    fn a_manager_that_stands_still_is_told_later_what_is_still_so() {
        let directory = Directory::new("notify-full");
        let path = directory.path().join("notify");
        let socket = notify_socket(&path, 0o600).unwrap();
        let mut notifier = Notifier::to(Some(path.into()));
        while notifier.waiting.is_empty() {
            notifier.say(Notice::Watchdog).unwrap();
        }
        for round in 0..1000 {
            notifier.say(Notice::Watchdog).unwrap();
            notifier.say(Notice::Ready).unwrap();
            notifier.say(Notice::Status(format!("round {round}"))).unwrap();
            notifier.say(Notice::Reloading).unwrap();
        }
        notifier.say(Notice::Store("a".to_owned(), null())).unwrap();
        notifier.say(Notice::Ready).unwrap();
        assert_eq!(notifier.waiting.len(), 4);
        assert!(heard(&socket).iter().all(|text| text == "WATCHDOG=1"));
        notifier.flush().unwrap();
        let told = heard(&socket);
        assert_eq!(told, ["WATCHDOG=1", "STATUS=round 999", "FDSTORE=1\nFDNAME=a", "READY=1"]);
    }

    #[test]
    fn what_waits_is_bounded_and_nobody_is_no_trouble() {
        let directory = Directory::new("notify-nobody");
        let path = directory.path().join("notify");
        let socket = notify_socket(&path, 0o600).unwrap();
        let mut notifier = Notifier::to(Some(path.clone().into()));
        let told = (0..10_000).find(|_| notifier.say(Notice::Remove("x".to_owned())).is_err());
        assert!(told.is_some() && notifier.waiting.len() == WAITING_MAX);
        drop(socket);
        assert!(notifier.flush().is_err());
        assert!(notifier.waiting.is_empty());
        std::fs::remove_file(&path).unwrap();
        assert!(notifier.say(Notice::Ready).unwrap_err().is_not_found());

        let mut nobody = Notifier::to(None);
        nobody.say(Notice::Ready).unwrap();
        assert!(!nobody.has_manager() && nobody.waiting.is_empty());
    }

    #[test]
    fn an_abstract_address_is_one() {
        let name = format!("pmr-test-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Notifier::to(Some(format!("@{name}").into())).say(Notice::Ready).unwrap();
        let mut bytes = [0; 16];
        assert_eq!(socket.recv(&mut bytes).unwrap(), "READY=1".len());
    }

    #[test]
    fn names_of_sockets_are_unlike_where_addresses_are() {
        let name = |address| fd_name("listen-", address);
        assert_eq!(name("0.0.0.0:80").as_deref(), Some("listen-0.0.0.0%3A80"));
        assert_eq!(name("[::]:80").as_deref(), Some("listen-[%3A%3A]%3A80"));
        assert_eq!(name("/run/ä b%").as_deref(), Some("listen-%2Frun%2F%C3%A4%20b%25"));
        assert_eq!(name(&"/".repeat(100)), None);
    }

    #[test]
    fn nothing_is_taken_that_was_left_for_somebody_else() {
        assert!(take_stored().unwrap().is_empty());
    }
}
