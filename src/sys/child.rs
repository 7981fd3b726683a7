//! What a child does between clone and exec.
//!
//! It is a copy of a process that may have other threads, so a lock may be held for ever here:
//! nothing allocates, nothing panics, and only async-signal-safe calls are made. All it needs is
//! prepared by the parent. The ids are set by raw calls, since libc's wrappers would look for
//! threads to do the same (nptl(7)).

#![expect(unsafe_code, reason = "the kernel's interface: the calls between clone and exec")]

use std::ffi::{CStr, c_char, c_int, c_long};
use std::mem::MaybeUninit;
use std::ptr;

use nix::errno::Errno;

use super::identity::Identity;
use super::process::{ExecFailure, Step};

/// Exit status of a child that could not run its program, as a shell gives it.
const EXIT_FAILED: c_int = 127;

/// The largest signal number of Linux on the machines pmr is built for.
const SIGNAL_MAX: c_int = 64;

/// Size of the kernel's set of so many signals.
const SIGNAL_SET_BYTES: usize = 8;

/// Where `close_range(2)` is missing (before Linux 5.9): close at most so many fds one by one.
const CLOSE_MAX: c_int = 1 << 20;

const LISTEN_PID: [u8; 11] = *b"LISTEN_PID=";

/// Ten digits and a zero byte follow.
const LISTEN_PID_BYTES: usize = LISTEN_PID.len() + 11;

/// All that the child needs. It has copies of its own of what it writes to.
pub(super) struct Prepared<'p> {
    /// Null at the end of none of them.
    pub(super) candidates: Vec<*const c_char>,
    /// Null at the end.
    pub(super) argv: Vec<*const c_char>,
    /// Null at the end. The first is the place of `LISTEN_PID`, where it is wanted.
    pub(super) envp: Vec<*const c_char>,
    /// Whether the first variable is to be `LISTEN_PID`.
    pub(super) wants_listen_pid: bool,
    /// The bytes of that variable.
    pub(super) listen_pid: [u8; LISTEN_PID_BYTES],
    /// The app's directory.
    pub(super) cwd: &'p CStr,
    /// Whom to become.
    pub(super) identity: Option<&'p Identity>,
    /// File mode creation mask.
    pub(super) umask: Option<libc::mode_t>,
    /// Text for `/proc/self/oom_score_adj`.
    pub(super) oom_score: Option<Vec<u8>>,
    /// Limit on open files.
    pub(super) nofile: Option<libc::rlimit>,
    /// Whether a write to a closed pipe is an error instead of the end.
    pub(super) ignore_sigpipe: bool,
    /// Number `i` becomes fd `i`: the program's own first, then those of `private`.
    pub(super) fds: Vec<c_int>,
    /// The fds that the exec closes: indices into `fds`, and fd numbers in the end.
    pub(super) private: Private,
}

/// Fds of the child that the program does not get.
#[derive(Clone, Copy)]
pub(super) struct Private {
    /// The first of them: how many fds the program gets.
    pub(super) first: usize,
    /// For [`ExecFailure`].
    pub(super) status: usize,
    /// Where the byte comes from.
    pub(super) go: usize,
    /// `cgroup.procs` of its group, where it has to enter it by itself.
    pub(super) procs: Option<usize>,
}

/// A step that went wrong.
type Outcome<T> = std::result::Result<T, ExecFailure>;

/// The place for `LISTEN_PID`, still without a number.
pub(super) const fn listen_pid_place() -> [u8; LISTEN_PID_BYTES] {
    [0; LISTEN_PID_BYTES]
}

/// Waits for the byte, becomes what the plan says, and executes. All signals are blocked on entry.
pub(super) fn run(prepared: &mut Prepared<'_>) -> ! {
    let Err(failure) = go_on(prepared);
    report(prepared, failure);
    exit(EXIT_FAILED)
}

fn go_on(prepared: &mut Prepared<'_>) -> Outcome<std::convert::Infallible> {
    // All before the wait touches nothing but the child itself. It holds no fd of pmr's any longer:
    // another holder of a listening socket would keep its queue from moving when it is closed.
    place_fds(prepared)?;
    enter_group(prepared)?;
    wait_for_go(prepared);
    reset_signals(prepared.ignore_sigpipe)?;
    // SAFETY: setsid(2) has no arguments.
    check(Step::Session, unsafe { libc::setsid() })?;
    write_oom_score(prepared)?;
    set_limits(prepared)?;
    become_identity(prepared.identity)?;
    // With the rights of the app: it must not be started where it could not go by itself.
    // SAFETY: chdir(2) of a string with a zero byte at its end.
    check(Step::Directory, unsafe { libc::chdir(prepared.cwd.as_ptr()) })?;
    set_signal_mask(Step::Signals, libc::SIG_SETMASK, false)?;
    execute(prepared)
}

fn failed(step: Step) -> ExecFailure {
    ExecFailure { step, errno: Errno::last_raw(), candidate: 0 }
}

fn check(step: Step, result: c_int) -> Outcome<c_int> {
    if result < 0 { Err(failed(step)) } else { Ok(result) }
}

fn check_long(step: Step, result: c_long) -> Outcome<()> {
    if result < 0 { Err(failed(step)) } else { Ok(()) }
}

/// Puts every fd in its place and closes all others. At any moment each entry of `fds` is open:
/// first all sources are copied to above the places, then the copies go into the places.
fn place_fds(prepared: &mut Prepared<'_>) -> Outcome<()> {
    let count = c_int::try_from(prepared.fds.len()).unwrap_or(c_int::MAX);
    for fd in &mut prepared.fds {
        // SAFETY: fcntl(2) F_DUPFD_CLOEXEC takes an int.
        let copy = unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, count) };
        *fd = check(Step::Fds, copy)?;
    }
    let private = c_int::try_from(prepared.private.first).unwrap_or(c_int::MAX);
    for (place, fd) in (0..count).zip(&mut prepared.fds) {
        // dup3 clears the flag, or sets it: the program does not get the private ones.
        let flags = if place < private { 0 } else { libc::O_CLOEXEC };
        // SAFETY: dup3(2) of an open fd; what was in the place has been copied above.
        *fd = check(Step::Fds, unsafe { libc::dup3(*fd, place, flags) })?;
    }
    close_from(count);
    Ok(())
}

fn close_from(first: c_int) {
    // SAFETY: close_range(2): three numbers. The child uses no fd from `first` on.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, c_int::MAX, 0) };
    if result == 0 {
        return;
    }
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: getrlimit(2) fills in the whole struct when it succeeds.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, limit.as_mut_ptr()) } == 0;
    let end = if known {
        // SAFETY: it has succeeded.
        let limit = unsafe { limit.assume_init() };
        c_int::try_from(limit.rlim_cur).unwrap_or(CLOSE_MAX).min(CLOSE_MAX)
    } else {
        CLOSE_MAX
    };
    for fd in first..end {
        // SAFETY: close(2); most of these are not open, which is an error without effect.
        unsafe { libc::close(fd) };
    }
}

fn enter_group(prepared: &Prepared<'_>) -> Outcome<()> {
    let Some(fd) = prepared.private.procs.and_then(|index| prepared.fds.get(index)) else {
        return Ok(());
    };
    write(Step::Group, *fd, b"0")
}

fn write(step: Step, fd: c_int, bytes: &[u8]) -> Outcome<()> {
    // SAFETY: write(2) from a slice of this length.
    let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    if written < 0 { Err(failed(step)) } else { Ok(()) }
}

/// Returns once the child may go on. Without that byte it ends here, and nothing ever ran.
fn wait_for_go(prepared: &Prepared<'_>) {
    let fd = prepared.fds.get(prepared.private.go).copied().unwrap_or(-1);
    let mut byte = 0_u8;
    loop {
        // SAFETY: read(2) of one byte into one byte.
        let result = unsafe { libc::read(fd, (&raw mut byte).cast(), 1) };
        if result == 1 {
            return;
        }
        if result == 0 || Errno::last_raw() != libc::EINTR {
            exit(0);
        }
    }
}

/// What pmr catches or ignores is no business of the app. SIGPIPE is a matter of its config.
///
/// A raw call: libc's refuses the two signals it uses itself, and those may be ignored as well in
/// what pmr was started by.
fn reset_signals(ignore_sigpipe: bool) -> Outcome<()> {
    for signo in 1..=SIGNAL_MAX {
        // The kernel's struct: the handler, then flags, restorer (not on all machines) and mask,
        // all of which are 0 here.
        let ignored = signo == libc::SIGPIPE && ignore_sigpipe;
        let action: [usize; 4] = [if ignored { libc::SIG_IGN } else { libc::SIG_DFL }, 0, 0, 0];
        let nowhere = ptr::null_mut::<usize>();
        let (call, bytes) = (libc::SYS_rt_sigaction, SIGNAL_SET_BYTES);
        // SAFETY: rt_sigaction(2) reads the struct above, whose mask has 8 bytes.
        let result = unsafe { libc::syscall(call, signo, action.as_ptr(), nowhere, bytes) };
        if result < 0 && signo != libc::SIGKILL && signo != libc::SIGSTOP {
            return Err(failed(Step::Signals));
        }
    }
    Ok(())
}

fn set_signal_mask(step: Step, how: c_int, full: bool) -> Outcome<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    let filled = if full {
        // SAFETY: sigfillset(3) writes the whole set.
        unsafe { libc::sigfillset(set.as_mut_ptr()) }
    } else {
        // SAFETY: sigemptyset(3) writes the whole set.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) }
    };
    check(step, filled)?;
    // SAFETY: sigprocmask(2) reads a set that was written above; none is asked back.
    check(step, unsafe { libc::sigprocmask(how, set.as_ptr(), ptr::null_mut()) })?;
    Ok(())
}

/// Before the rights are dropped: only root may lower the score.
fn write_oom_score(prepared: &Prepared<'_>) -> Outcome<()> {
    let Some(text) = &prepared.oom_score else {
        return Ok(());
    };
    let path = c"/proc/self/oom_score_adj".as_ptr();
    // SAFETY: open(2) of a string with a zero byte at its end.
    let fd = unsafe { libc::open(path, libc::O_WRONLY | libc::O_CLOEXEC) };
    write(Step::OomScore, check(Step::OomScore, fd)?, text)
}

fn set_limits(prepared: &Prepared<'_>) -> Outcome<()> {
    if let Some(limit) = &prepared.nofile {
        // SAFETY: setrlimit(2) reads one rlimit.
        let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, limit) };
        check(Step::FileLimit, result)?;
    }
    if let Some(mask) = prepared.umask {
        // SAFETY: umask(2) cannot fail.
        unsafe { libc::umask(mask) };
    }
    Ok(())
}

fn become_identity(identity: Option<&Identity>) -> Outcome<()> {
    let Some(identity) = identity else {
        return Ok(());
    };
    let (uid, gid) = (identity.uid, identity.gid);
    let (groups, count) = (identity.groups.as_ptr(), identity.groups.len());
    // SAFETY: setgroups(2) reads `count` numbers of 32 bits from the list.
    check_long(Step::Groups, unsafe { libc::syscall(libc::SYS_setgroups, count, groups) })?;
    // SAFETY: setresgid(2): three numbers.
    check_long(Step::Gid, unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: setresuid(2): three numbers.
    check_long(Step::Uid, unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })
}

/// As execvp(3): a file that is not there is passed over, a denial is remembered.
fn execute(prepared: &mut Prepared<'_>) -> Outcome<std::convert::Infallible> {
    if prepared.wants_listen_pid {
        write_listen_pid(&mut prepared.listen_pid);
        if let Some(first) = prepared.envp.first_mut() {
            *first = prepared.listen_pid.as_ptr().cast();
        }
    }
    let mut failure = ExecFailure { step: Step::Exec, errno: libc::ENOENT, candidate: 0 };
    for (candidate, file) in (0..u16::MAX).zip(&prepared.candidates) {
        let (argv, envp) = (prepared.argv.as_ptr(), prepared.envp.as_ptr());
        // SAFETY: execve(2): all strings and both arrays are of the plan and end as they must.
        unsafe { libc::execve(*file, argv, envp) };
        let errno = Errno::last_raw();
        match errno {
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {
                if failure.errno != libc::EACCES {
                    failure.errno = errno;
                }
            }
            libc::EACCES if failure.errno == libc::EACCES => {}
            libc::EACCES => failure = ExecFailure { errno, candidate, ..failure },
            _ => return Err(ExecFailure { errno, candidate, ..failure }),
        }
    }
    Err(failure)
}

/// `LISTEN_PID=` and the child's own number, which nobody knew before.
fn write_listen_pid(place: &mut [u8; LISTEN_PID_BYTES]) {
    // SAFETY: getpid(2) has no arguments and cannot fail.
    let mut number = unsafe { libc::getpid() }.unsigned_abs();
    let mut digits = [0_u8; 10];
    let mut count = 0_usize;
    for digit in &mut digits {
        let ones = u8::try_from(number % 10).unwrap_or_default();
        *digit = b'0'.saturating_add(ones);
        count = count.saturating_add(1);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    let text = LISTEN_PID.iter().chain(digits.iter().take(count).rev());
    for (to, from) in place.iter_mut().zip(text) {
        *to = *from;
    }
}

/// Where the parent is gone there is nobody to tell, and SIGPIPE must not be the answer.
fn report(prepared: &Prepared<'_>, failure: ExecFailure) {
    let blocked = set_signal_mask(Step::Signals, libc::SIG_SETMASK, true);
    let fd = prepared.fds.get(prepared.private.status).copied().unwrap_or(-1);
    if blocked.is_ok() && write(failure.step, fd, &failure.to_bytes()).is_err() {
        exit(EXIT_FAILED)
    }
}

fn exit(status: c_int) -> ! {
    // SAFETY: _exit(2) ends the process and runs nothing of it.
    unsafe { libc::_exit(status) }
}
