//! Memory that was needed for the start and not since.

#![expect(unsafe_code, reason = "the kernel's interface: madvise(2), malloc_trim(3)")]

use super::{Error, Result};

/// Gives memory back that this process had for its start only: pages of the heap in which nothing
/// stands any more, and code that was run once. To be called before a long sleep. Code that is run
/// again is mapped again from the page cache, some microseconds later.
pub fn give_back() -> Result<()> {
    let path = "/proc/self/maps";
    let maps = std::fs::read_to_string(path).map_err(|error| Error::at("read", path, error))?;
    for (start, bytes) in maps.lines().filter_map(parse_code) {
        let place = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: madvise(2): the range is a whole mapping of this process, of a file, executable
        // and not writable. So no page of it is changed, and each comes from the file again with
        // the bytes it had.
        let result = unsafe { libc::madvise(place, bytes, libc::MADV_DONTNEED) };
        if result != 0 {
            return Err(Error::new("give code back", std::io::Error::last_os_error()));
        }
    }
    drop(maps);
    trim();
    Ok(())
}

/// The start and length of a mapping of code, from its line in `maps`: `proc_pid_maps(5)`.
fn parse_code(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let is_code = words.next()? == "r-xp";
    // Offset, device and inode come before the path; what has no path is no file.
    let is_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
    if !is_code || !is_file {
        return None;
    }
    let address = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (address(start)?, address(end)?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: malloc_trim(3) takes a number. It says whether there was anything to give back.
    unsafe { libc::malloc_trim(0) };
}

/// musl's allocator gives pages back by itself.
#[cfg(not(target_env = "gnu"))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_from_files_is_found() {
        let code = "7f1a-7f3a r-xp 00001000 08:01 42                     /usr/bin/pmr";
        assert_eq!(parse_code(code), Some((0x7f1a, 0x20)));
        for line in [
            "7f1a-7f3a r--p 00001000 08:01 42                     /usr/bin/pmr",
            "7f1a-7f3a rwxp 00001000 08:01 42                     /usr/bin/pmr",
            "7f1a-7f3a r-xp 00000000 00:00 0                      [vdso]",
            "7f1a-7f3a r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(parse_code(line), None, "{line}");
        }
    }

    #[test]
    fn what_was_given_back_still_works() {
        give_back().unwrap();
        assert!(std::fs::read_to_string("/proc/self/maps").unwrap().contains("r-xp"));
    }
}
