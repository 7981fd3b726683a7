//! The kernel's eBPF: maps, programs, and where they are attached (`bpf(2)`, `linux/bpf.h`).
//!
//! Raw calls: pmr has three small programs of its own and needs no compiler and no loader for them.
#![expect(unsafe_code, reason = "the kernel's interface: bpf(2), and memory shared with a map")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use nix::errno::Errno;

use super::{Error, Result};

/// Commands of bpf(2).
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;

const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_REUSEPORT_SOCKARRAY: u32 = 20;

/// `BPF_F_MMAPABLE`: since Linux 5.5.
const MMAPABLE: u32 = 1 << 10;

const PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const PROG_TYPE_SK_REUSEPORT: u32 = 21;

const CGROUP_INET4_BIND: u32 = 8;
const CGROUP_INET6_BIND: u32 = 9;
/// Since Linux 5.14.
const SK_REUSEPORT_SELECT_OR_MIGRATE: u32 = 40;

/// `SO_ATTACH_REUSEPORT_EBPF` (asm-generic/socket.h).
const SO_ATTACH_REUSEPORT_EBPF: libc::c_int = 52;

/// Helpers that a program calls may be for GPL-compatible ones only; pmr is MIT or Apache-2.0, and
/// none of the helpers that it calls is.
const LICENSE: &std::ffi::CStr = c"Dual MIT/GPL";

/// Room for what the verifier says of a program that it refuses.
const LOG_BYTES: usize = 16 * 1024;

/// `union bpf_attr` for `BPF_MAP_CREATE`, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

/// For `BPF_MAP_UPDATE_ELEM` and `BPF_MAP_DELETE_ELEM`.
#[repr(C)]
struct MapUpdate {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// For `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// For `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    rest: [u64; 4],
}

/// Calls bpf(2) with the attributes of `command`.
fn bpf<T>(command: libc::c_int, attributes: &T) -> std::result::Result<libc::c_long, Errno> {
    let (size, at) = (size_of::<T>(), std::ptr::from_ref(attributes));
    // SAFETY: bpf(2) reads `size` bytes of the attributes, and what their pointers point to, which
    // the callers here keep alive; it writes to the log buffer only, which is theirs too.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, at, size) };
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

/// The same for a command that makes an fd, which is closed on exec.
fn make<T>(command: libc::c_int, attributes: &T) -> std::result::Result<OwnedFd, Errno> {
    let fd = bpf(command, attributes)?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this fd for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Why something of this module failed, for a person.
pub fn describe(error: &Error) -> String {
    match error.errno() {
        libc::EPERM => {
            "bpf(2) is not permitted here: that takes CAP_BPF and CAP_NET_ADMIN".to_owned()
        }
        libc::ENOSYS => "this kernel has no bpf(2)".to_owned(),
        _ => error.to_string(),
    }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).unwrap_or_default()
}

fn address<T: ?Sized>(of: &T) -> u64 {
    u64::try_from(std::ptr::from_ref(of).cast::<u8>().addr()).unwrap_or_default()
}

fn name(text: &str) -> [u8; 16] {
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().zip(text.bytes().take(15)) {
        *to = from;
    }
    name
}

/// An array map with one value of `bytes` bytes, which can be mapped. `EPERM` without `CAP_BPF`.
pub fn shared_array(bytes: u32) -> Result<OwnedFd> {
    let attributes = MapCreate {
        map_type: MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: bytes,
        max_entries: 1,
        map_flags: MMAPABLE,
        map_name: name("pmr_table"),
        ..MapCreate::default()
    };
    make(MAP_CREATE, &attributes).map_err(|errno| Error::new("make a BPF array", errno))
}

/// An array of sockets of `SO_REUSEPORT` groups.
pub fn socket_array(entries: u32) -> Result<OwnedFd> {
    let attributes = MapCreate {
        map_type: MAP_TYPE_REUSEPORT_SOCKARRAY,
        key_size: 4,
        // 4 would do, but a lookup gives cookies of 8.
        value_size: 8,
        max_entries: entries,
        map_name: name("pmr_sockets"),
        ..MapCreate::default()
    };
    make(MAP_CREATE, &attributes).map_err(|errno| Error::new("make a BPF socket array", errno))
}

/// Puts a listening socket into an array of sockets. `EINVAL` for one that does not listen or has
/// no `SO_REUSEPORT`; `EBUSY` for one that is in an array already.
pub fn put_socket(array: BorrowedFd<'_>, index: u16, socket: BorrowedFd<'_>) -> Result<()> {
    let (key, value) = (u32::from(index), u64::from(number(socket)));
    let attributes = MapUpdate {
        map_fd: number(array),
        padding: 0,
        key: address(&key),
        value: address(&value),
        flags: 0,
    };
    bpf(MAP_UPDATE_ELEM, &attributes).map(drop).map_err(|errno| {
        // The kernel's ENOTSUPP, which no C library knows.
        if is_mptcp(socket) {
            let doing = "steer to a socket of MPTCP (with GODEBUG=multipathtcp=0 Go makes none)";
            Error::new(doing, Errno::EOPNOTSUPP)
        } else {
            Error::new("put a socket into the steering table", errno)
        }
    })
}

fn is_mptcp(socket: BorrowedFd<'_>) -> bool {
    let protocol = rustix::net::sockopt::socket_protocol(socket);
    protocol.is_ok_and(|protocol| protocol == Some(rustix::net::ipproto::MPTCP))
}

/// Takes sockets out of an array, so that they can be put into another.
pub fn take_out_sockets(array: BorrowedFd<'_>, indices: impl IntoIterator<Item = u16>) {
    for index in indices {
        let (map_fd, key) = (number(array), u32::from(index));
        let attributes = MapUpdate { map_fd, padding: 0, key: address(&key), value: 0, flags: 0 };
        // One that is not there is what is wanted.
        bpf(MAP_DELETE_ELEM, &attributes).map(drop).unwrap_or_default();
    }
}

/// Loads a program that chooses among the sockets of a group.
pub fn load_steering(instructions: &[u64]) -> Result<OwnedFd> {
    load(PROG_TYPE_SK_REUSEPORT, SK_REUSEPORT_SELECT_OR_MIGRATE, instructions)
        .map_err(|error| Error::new("load the steering program", error))
}

/// Loads a program for each bind(2) in a group: one for IPv4 and one for IPv6, of the same
/// instructions.
pub fn load_bind_hooks(instructions: &[u64]) -> Result<[OwnedFd; 2]> {
    let one = |attach_type| {
        load(PROG_TYPE_CGROUP_SOCK_ADDR, attach_type, instructions)
            .map_err(|error| Error::new("load the bind hook", error))
    };
    Ok([one(CGROUP_INET4_BIND)?, one(CGROUP_INET6_BIND)?])
}

/// Has every bind(2) of processes in the group below pass these programs, for as long as any fd of
/// the links is open.
pub fn hook_binds(group: BorrowedFd<'_>, programs: &[OwnedFd; 2]) -> Result<[OwnedFd; 2]> {
    let [v4, v6] = programs;
    let one = |program: &OwnedFd, attach_type| {
        let attributes = LinkCreate {
            prog_fd: number(program.as_fd()),
            target_fd: number(group),
            attach_type,
            flags: 0,
            rest: [0; 4],
        };
        make(LINK_CREATE, &attributes).map_err(|errno| Error::new("attach the bind hook", errno))
    };
    Ok([one(v4, CGROUP_INET4_BIND)?, one(v6, CGROUP_INET6_BIND)?])
}

fn load(
    prog_type: u32,
    expected_attach_type: u32,
    instructions: &[u64],
) -> std::result::Result<OwnedFd, std::io::Error> {
    let mut attributes = ProgLoad {
        prog_type,
        insn_cnt: u32::try_from(instructions.len()).unwrap_or_default(),
        insns: address(instructions),
        license: address(LICENSE.to_bytes_with_nul()),
        prog_name: name("pmr"),
        expected_attach_type,
        ..ProgLoad::default()
    };
    match make(PROG_LOAD, &attributes) {
        Ok(program) => return Ok(program),
        // The verifier's refusals; with anything else it has nothing to say.
        Err(Errno::EINVAL | Errno::EACCES) => {}
        Err(errno) => return Err(errno.into()),
    }
    // Once more, with its reasons.
    let log = vec![0_u8; LOG_BYTES];
    attributes.log_level = 1;
    attributes.log_size = u32::try_from(log.len()).unwrap_or_default();
    attributes.log_buf = address(log.as_slice());
    match make(PROG_LOAD, &attributes) {
        Ok(program) => Ok(program),
        Err(errno) => {
            let text = String::from_utf8_lossy(log.split(|byte| *byte == 0).next().unwrap_or(&[]));
            let said: Vec<&str> = text.lines().rev().take(3).collect();
            let said = said.into_iter().rev().collect::<Vec<_>>().join("; ");
            let error = std::io::Error::from(errno);
            Err(std::io::Error::new(error.kind(), format!("{error}: {said}")))
        }
    }
}

/// Has the program choose for the whole group of a socket, in place of the one before.
pub fn attach_steering(socket: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    let (socket, program) = (socket.as_raw_fd(), program.as_raw_fd());
    let size = libc::socklen_t::try_from(size_of_val(&program)).unwrap_or_default();
    let value = (&raw const program).cast();
    let option = SO_ATTACH_REUSEPORT_EBPF;
    // SAFETY: setsockopt(2) reads an int of this size.
    let result = unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, option, value, size) };
    if result == 0 { Ok(()) } else { Err(Error::new("attach the steering program", Errno::last())) }
}

/// The value of a [`shared_array`], mapped: what is written here the programs read at once.
#[derive(Debug)]
pub struct Shared {
    start: NonNull<libc::c_void>,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone, and is accessed by atomic operations only.
unsafe impl Send for Shared {}

impl Shared {
    /// Maps the first `bytes` bytes of the value.
    pub fn map(array: BorrowedFd<'_>, bytes: u32) -> Result<Self> {
        let bytes = usize::try_from(bytes).unwrap_or_default();
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let (nowhere, fd) = (std::ptr::null_mut(), array.as_raw_fd());
        // SAFETY: mmap(2) of a new region at an address of the kernel's choice.
        let start = unsafe { libc::mmap(nowhere, bytes, protection, flags, fd, 0) };
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => Ok(Self { start, bytes }),
            Some(_) | None => Err(Error::new("map the steering table", Errno::last())),
        }
    }

    /// The place of a `T`, which the caller makes an atomic.
    fn at<T>(&self, offset: u32) -> Option<NonNull<T>> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(size_of::<T>())?;
        let fits = end <= self.bytes && offset.checked_rem(align_of::<T>()) == Some(0);
        // SAFETY: within the mapping, as was just looked at.
        fits.then(|| unsafe { self.start.byte_add(offset) }.cast())
    }

    /// Reads a u64; 0 outside of the value.
    pub fn load(&self, offset: u32) -> u64 {
        // SAFETY: aligned, within the mapping, which lives as long as `self`; all access is atomic.
        let atomic = self.at::<AtomicU64>(offset).map(|at| unsafe { at.as_ref() });
        atomic.map_or(0, |atomic| atomic.load(Ordering::Relaxed))
    }

    /// Writes a u64.
    pub fn store(&self, offset: u32, value: u64) {
        // SAFETY: as above.
        let atomic = self.at::<AtomicU64>(offset).map(|at| unsafe { at.as_ref() });
        if let Some(atomic) = atomic {
            atomic.store(value, Ordering::Relaxed);
        }
    }

    /// Reads a u32.
    pub fn load_word(&self, offset: u32) -> u32 {
        // SAFETY: as above.
        let atomic = self.at::<AtomicU32>(offset).map(|at| unsafe { at.as_ref() });
        atomic.map_or(0, |atomic| atomic.load(Ordering::Acquire))
    }

    /// Writes a u32 after all that was written before.
    pub fn publish_word(&self, offset: u32, value: u32) {
        // SAFETY: as above.
        let atomic = self.at::<AtomicU32>(offset).map(|at| unsafe { at.as_ref() });
        if let Some(atomic) = atomic {
            atomic.store(value, Ordering::Release);
        }
    }

    /// Writes a u16.
    pub fn store_half(&self, offset: u32, value: u16) {
        // SAFETY: as above.
        let atomic = self.at::<AtomicU16>(offset).map(|at| unsafe { at.as_ref() });
        if let Some(atomic) = atomic {
            atomic.store(value, Ordering::Relaxed);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: munmap(2) of the region that was mapped, to which nothing points any more.
        let result = unsafe { libc::munmap(self.start.as_ptr(), self.bytes) };
        debug_assert_eq!(result, 0, "what was mapped can be unmapped");
    }
}

#[cfg(test)]
mod tests;
