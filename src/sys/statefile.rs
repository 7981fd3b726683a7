//! The state between two supervisors: a memfd of two halves, of which one is always whole. And
//! sealed memfds, for what never changes.
//!
//! ```text
//! half:  magic 8 | version 4 | sequence 8 | length 4 | crc32 4 | payload …
//! ```
//! A write goes into the half that is not the newest, payload first and header last. Whoever is
//! killed in between leaves a half whose checksum does not fit, and the other one untouched. Only
//! pread and pwrite are used: a mapping of a file that somebody shortens is a SIGBUS.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};

use super::{Error, Result};

/// Size of a half. Sparse: only what was written takes memory. 256 slots with their histories are
/// well below a megabyte.
pub const HALF_BYTES: usize = 4 * 1024 * 1024;

/// Most bytes of a payload.
pub const PAYLOAD_BYTES_MAX: usize = HALF_BYTES - HEADER_BYTES;

const HEADER_BYTES: usize = 28;
const MAGIC: [u8; 8] = *b"pmrstate";
const OFFSETS: [u64; 2] = [0, 0x40_0000];
const FILE_BYTES: u64 = 0x80_0000;

/// Its size never changes, so that no offset is ever behind its end.
const STATE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);
const ALL_SEALS: SealFlags = STATE_SEALS.union(SealFlags::WRITE);

/// What the newest whole half holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Version of the payload's format; whether one can read it is the caller's to decide.
    pub version: u32,
    /// How often the state has been written.
    pub sequence: u64,
    /// The payload.
    pub payload: Vec<u8>,
}

/// Why there is no state to read.
#[derive(Debug)]
pub enum StateError {
    /// Nothing was ever written.
    Empty,
    /// Not a file of this kind.
    NotOurs,
    /// Something was written, and neither half of it is whole.
    Torn,
    /// The payload is larger than a half.
    TooLarge,
    /// The kernel said no.
    System(Error),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("no state was written yet"),
            Self::NotOurs => f.write_str("the state file is not one of pmr"),
            Self::Torn => f.write_str("no half of the state file is whole"),
            Self::TooLarge => write!(f, "the state is larger than {PAYLOAD_BYTES_MAX} bytes"),
            Self::System(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StateError {}

impl From<Error> for StateError {
    fn from(error: Error) -> Self {
        Self::System(error)
    }
}

/// The state memfd.
#[derive(Debug)]
pub struct StateFile {
    file: File,
}

/// What stands in one half.
enum Half {
    Blank,
    Broken,
    Whole(Stored),
}

impl StateFile {
    /// An empty one. The name is for `/proc/PID/fd` only.
    pub fn create(name: &str) -> Result<Self> {
        let fd = memfd(name)?;
        rustix::fs::ftruncate(&fd, FILE_BYTES).map_err(|e| Error::new("size the state file", e))?;
        seal(&fd, STATE_SEALS)?;
        Ok(Self { file: fd.into() })
    }

    /// One that was handed over.
    pub fn from_fd(fd: OwnedFd) -> std::result::Result<Self, StateError> {
        // Only a memfd has seals, and these two hold its size.
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(|_| StateError::NotOurs)?;
        let size = rustix::fs::fstat(&fd).map_err(|_| StateError::NotOurs)?.st_size;
        if !seals.contains(STATE_SEALS)
            || seals.contains(SealFlags::WRITE)
            || u64::try_from(size) != Ok(FILE_BYTES)
        {
            return Err(StateError::NotOurs);
        }
        Ok(Self { file: fd.into() })
    }

    /// Another fd of the same file.
    pub fn duplicate(&self) -> Result<OwnedFd> {
        let file = self.file.try_clone();
        file.map(OwnedFd::from).map_err(|e| Error::new("duplicate the state file", e))
    }

    /// Replaces the state. Killed at any moment, either the old or the new one is there after.
    pub fn write(&mut self, version: u32, payload: &[u8]) -> std::result::Result<(), StateError> {
        let length = match u32::try_from(payload.len()) {
            Ok(length) if payload.len() <= PAYLOAD_BYTES_MAX => length,
            _ => return Err(StateError::TooLarge),
        };
        let (newest, sequence) = self.newest()?.map_or((1, 0), |(i, stored)| (i, stored.sequence));
        let offset = if newest == 0 { OFFSETS[1] } else { OFFSETS[0] };
        let header = header(version, sequence.saturating_add(1), length, payload);
        let behind = offset.saturating_add(u64::try_from(HEADER_BYTES).unwrap_or_default());
        self.file
            .write_all_at(payload, behind)
            .and_then(|()| self.file.write_all_at(&header, offset))
            .map_err(|e| Error::new("write the state", e).into())
    }

    /// The state that was written last.
    pub fn read(&self) -> std::result::Result<Stored, StateError> {
        if let Some((_, stored)) = self.newest()? {
            return Ok(stored);
        }
        let blank = OFFSETS.iter().all(|&at| matches!(self.half(at), Ok(Half::Blank)));
        Err(if blank { StateError::Empty } else { StateError::Torn })
    }

    fn newest(&self) -> Result<Option<(usize, Stored)>> {
        let mut newest: Option<(usize, Stored)> = None;
        for (index, &offset) in OFFSETS.iter().enumerate() {
            if let Half::Whole(stored) = self.half(offset)?
                && newest.as_ref().is_none_or(|(_, other)| other.sequence < stored.sequence)
            {
                newest = Some((index, stored));
            }
        }
        Ok(newest)
    }

    fn half(&self, offset: u64) -> Result<Half> {
        let failed = |e| Error::new("read the state", e);
        let mut bytes = [0; HEADER_BYTES];
        self.file.read_exact_at(&mut bytes, offset).map_err(failed)?;
        if bytes == [0; HEADER_BYTES] {
            return Ok(Half::Blank);
        }
        let version = u32::from_le_bytes(field(&bytes, 8));
        let sequence = u64::from_le_bytes(field(&bytes, 12));
        let length = u32::from_le_bytes(field(&bytes, 20));
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        if field(&bytes, 0) != MAGIC || size > PAYLOAD_BYTES_MAX {
            return Ok(Half::Broken);
        }
        let mut payload = vec![0; size];
        let behind = offset.saturating_add(u64::try_from(HEADER_BYTES).unwrap_or_default());
        self.file.read_exact_at(&mut payload, behind).map_err(failed)?;
        if header(version, sequence, length, &payload) != bytes {
            return Ok(Half::Broken);
        }
        Ok(Half::Whole(Stored { version, sequence, payload }))
    }
}

impl AsFd for StateFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn header(version: u32, sequence: u64, length: u32, payload: &[u8]) -> [u8; HEADER_BYTES] {
    let fields =
        [MAGIC.as_slice(), &version.to_le_bytes(), &sequence.to_le_bytes(), &length.to_le_bytes()]
            .concat();
    let mut sum = crc32fast::Hasher::new();
    sum.update(&fields);
    sum.update(payload);
    let mut header = [0; HEADER_BYTES];
    for (to, from) in header.iter_mut().zip(fields.iter().chain(&sum.finalize().to_le_bytes())) {
        *to = *from;
    }
    header
}

/// The `N` bytes from `at` of a header.
fn field<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().zip(header.iter().skip(at)) {
        *to = *from;
    }
    field
}

/// A memfd with these bytes that nobody can change any more.
pub fn sealed(name: &str, bytes: &[u8]) -> Result<OwnedFd> {
    let mut file = File::from(memfd(name)?);
    file.write_all(bytes).map_err(|e| Error::new("fill a sealed file", e))?;
    seal(&file, ALL_SEALS)?;
    Ok(file.into())
}

/// The bytes of a memfd that [`sealed`] made, of at most `max` bytes.
pub fn read_sealed(fd: impl AsFd, max: usize) -> std::result::Result<Vec<u8>, StateError> {
    let seals = rustix::fs::fcntl_get_seals(&fd).map_err(|_| StateError::NotOurs)?;
    let size = rustix::fs::fstat(&fd).map_err(|_| StateError::NotOurs)?.st_size;
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if !seals.contains(ALL_SEALS) {
        return Err(StateError::NotOurs);
    }
    if size > max {
        return Err(StateError::TooLarge);
    }
    let failed = |e| Error::new("read a sealed file", e);
    let file = File::from(fd.as_fd().try_clone_to_owned().map_err(failed)?);
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    Ok(bytes)
}

/// An empty memfd. From 6.3 on it is said that it is not for executing, which a hardened system
/// (`vm.memfd_noexec=2`) demands; before, that flag is unknown.
fn memfd(name: &str) -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| rustix::fs::memfd_create(name, flags))
        .map_err(|e| Error::new("make a memfd", e))
}

fn seal(fd: impl AsFd, seals: SealFlags) -> Result<()> {
    rustix::fs::fcntl_add_seals(fd, seals).map_err(|e| Error::new("seal a memfd", e))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::arithmetic_side_effects, reason = "offsets of small tests")]

    use super::*;
    use crate::sys::testing;
    use proptest::prelude::*;

    fn reopened(state: &StateFile) -> StateFile {
        StateFile::from_fd(state.file.try_clone().unwrap().into()).unwrap()
    }

    #[test]
    fn the_last_write_is_read_by_the_next_holder() {
        let mut state = StateFile::create("pmr-test").unwrap();
        assert!(matches!(state.read(), Err(StateError::Empty)));
        for (sequence, payload) in [(1, "one"), (2, "a longer two"), (3, ""), (4, "4")] {
            state.write(7, payload.as_bytes()).unwrap();
            state = reopened(&state);
            let stored = state.read().unwrap();
            assert_eq!((stored.version, stored.sequence), (7, sequence));
            assert_eq!(stored.payload, payload.as_bytes());
        }
        // A version nobody knows yet is the caller's affair.
        state.write(u32::MAX, b"future").unwrap();
        assert_eq!(reopened(&state).read().unwrap().version, u32::MAX);
    }

    #[test]
    fn killed_at_any_byte_of_a_write_the_old_state_or_the_new_one_is_there() {
        let payload: Vec<u8> = (0..200).collect();
        let old = b"the old state, of another length".to_vec();
        for history in 1..4_u64 {
            // What a write does, as the pieces in the order in which they reach the file.
            let length = u32::try_from(payload.len()).unwrap();
            let header = header(2, history + 1, length, &payload);
            let offset = OFFSETS[usize::try_from(history % 2).unwrap()];
            let all = payload.len() + HEADER_BYTES;
            for cut in 0..=all {
                let mut state = StateFile::create("pmr-test").unwrap();
                for _ in 0..history {
                    state.write(1, &old).unwrap();
                }
                let first = cut.min(payload.len());
                state.file.write_all_at(&payload[..first], offset + 28).unwrap();
                state.file.write_all_at(&header[..cut - first], offset).unwrap();
                let stored = reopened(&state).read().unwrap();
                if cut == all {
                    assert_eq!((stored.sequence, stored.payload), (history + 1, payload.clone()));
                } else {
                    assert_eq!((stored.sequence, &stored.payload), (history, &old), "cut {cut}");
                }
                // Whatever the torn half holds, the next write is whole.
                state.write(3, b"next").unwrap();
                assert_eq!(state.read().unwrap().payload, b"next");
            }
        }
    }

    #[test]
    fn a_torn_first_write_is_told_from_none() {
        let state = StateFile::create("pmr-test").unwrap();
        state.file.write_all_at(b"pmrst", 0).unwrap();
        assert!(matches!(state.read(), Err(StateError::Torn)));
    }

    #[test]
    fn a_payload_may_fill_a_half_and_no_more() {
        let mut state = StateFile::create("pmr-test").unwrap();
        let most = vec![b'x'; PAYLOAD_BYTES_MAX];
        state.write(1, b"before").unwrap();
        state.write(1, &most).unwrap();
        assert_eq!(state.read().unwrap().payload, most);
        let more = vec![b'x'; PAYLOAD_BYTES_MAX + 1];
        assert!(matches!(state.write(1, &more), Err(StateError::TooLarge)));
        assert_eq!(state.read().unwrap().sequence, 2);
    }

    #[test]
    fn files_of_another_kind_are_not_ours() {
        let not_ours = |fd: OwnedFd| {
            assert!(matches!(StateFile::from_fd(fd), Err(StateError::NotOurs)));
        };
        not_ours(File::open("/dev/null").unwrap().into());
        not_ours(File::open("/proc/self/exe").unwrap().into());
        not_ours(testing::pipe().unwrap().0);
        not_ours(sealed("pmr-test", b"pmrstate").unwrap());
        let unsealed = memfd("pmr-test").unwrap();
        rustix::fs::ftruncate(&unsealed, FILE_BYTES).unwrap();
        not_ours(unsealed);
        let short = memfd("pmr-test").unwrap();
        seal(&short, STATE_SEALS).unwrap();
        not_ours(short);
    }

    #[test]
    fn a_sealed_file_keeps_its_bytes() {
        let fd = sealed("pmr-test", b"release").unwrap();
        assert_eq!(read_sealed(&fd, 7).unwrap(), b"release");
        assert_eq!(read_sealed(&fd, 7).unwrap(), b"release");
        assert!(matches!(read_sealed(&fd, 6), Err(StateError::TooLarge)));
        let file = File::from(fd);
        assert_eq!(file.write_at(b"x", 0).unwrap_err().raw_os_error(), Some(libc::EPERM));
        let open = memfd("pmr-test").unwrap();
        assert!(matches!(read_sealed(&open, 10), Err(StateError::NotOurs)));
        assert_eq!(read_sealed(sealed("pmr-test", b"").unwrap(), 0).unwrap(), b"");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_answered_and_no_change_of_a_byte_is_missed(
            garbage in proptest::collection::vec(any::<u8>(), 0..100),
            half in 0..2_usize,
            at in 0..60_u64,
            flip in 1..=255_u8,
        ) {
            let mut state = StateFile::create("pmr-test").unwrap();
            state.file.write_all_at(&garbage, OFFSETS[half] + at).unwrap();
            prop_assert!(state.read().is_err());
            state.write(1, b"first").unwrap();
            state.write(1, b"second").unwrap();
            prop_assert_eq!(state.read().unwrap().payload, b"second");

            let (newest, _) = state.newest().unwrap().unwrap();
            let place = OFFSETS[newest] + at % (28 + 6);
            let mut byte = [0];
            state.file.read_exact_at(&mut byte, place).unwrap();
            state.file.write_all_at(&[byte[0] ^ flip], place).unwrap();
            prop_assert_eq!(state.read().unwrap().payload, b"first");
        }
    }
}
