//! Memory that was needed for the start and not since.

#![expect(unsafe_code, reason = "the kernel's interface: madvise(2), malloc_trim(3)")]

use std::ops::Range;

use super::{Error, Result};

/// Gives memory back that this process had for its start only: pages of the heap in which nothing
/// stands any more, and code and constants that were used once. To be called before a long sleep.
/// What is used again is mapped again from the page cache, some microseconds later.
pub fn give_back() -> Result<()> {
    let path = "/proc/self/smaps";
    let maps = std::fs::read_to_string(path).map_err(|error| Error::at("read", path, error))?;
    let clean = parse_clean(&maps);
    drop(maps);
    for (start, bytes) in clean {
        let place = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: madvise(2): the range is a whole mapping of this process, private, of a file, not
        // writable, and without a page of its own. So none of it was ever changed, as those were
        // into which the dynamic linker has written addresses, and each page comes from the file
        // again with the bytes it had.
        let result = unsafe { libc::madvise(place, bytes, libc::MADV_DONTNEED) };
        if result != 0 {
            return Err(Error::new("give code back", std::io::Error::last_os_error()));
        }
    }
    trim();
    Ok(())
}

/// Start and length of the mappings in `smaps`, `proc_pid_smaps(5)`, that are as their files are:
/// private, not writable, and without a page of their own, be it in memory or swapped out.
fn parse_clean(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    let mut in_memory = false;
    for line in smaps.lines() {
        if let Some((range, mode, path)) = parse_mapping(line) {
            let is_clean = matches!(mode, "r-xp" | "r--p") && path.starts_with('/');
            current = Some(range).filter(|_| is_clean);
            in_memory = false;
        } else if let Some(own) = line.strip_prefix("Anonymous:") {
            in_memory = own.trim() != "0 kB";
        } else if let Some(swapped) = line.strip_prefix("Swap:") {
            let range = current.take().filter(|_| !in_memory && swapped.trim() == "0 kB");
            found.extend(range.map(|range: Range<usize>| (range.start, range.len())));
        }
    }
    found
}

/// Range, mode and path of a mapping, from the line with which it begins in `smaps`.
fn parse_mapping(line: &str) -> Option<(Range<usize>, &str, &str)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let range = address(start)?..address(end)?;
    let mode = words.next()?;
    // Offset, device and inode come before the path; what has no path is no file.
    Some((range, mode, words.nth(3).unwrap_or_default()))
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

    const HEAD: &str = "7f1a-7f3a r-xp 00001000 08:01 42                     /usr/bin/pmr";

    fn smaps(head: &str, own: &str, swapped: &str) -> String {
        format!("{head}\nSize: 8 kB\nAnonymous: {own} kB\nSwap:  {swapped} kB\nSwapPss: 0 kB\n")
    }

    #[test]
    fn only_what_is_as_its_file_is_is_clean() {
        let constants = HEAD.replace("r-xp", "r--p");
        for head in [HEAD, &constants] {
            assert_eq!(parse_clean(&smaps(head, "0", "0")), [(0x7f1a, 0x20)]);
            assert_eq!(parse_clean(&smaps(head, "4", "0")), []);
            assert_eq!(parse_clean(&smaps(head, "0", "4")), []);
        }
        for head in [
            "7f1a-7f3a rw-p 00001000 08:01 42                     /usr/bin/pmr",
            "7f1a-7f3a rwxp 00001000 08:01 42                     /usr/bin/pmr",
            "7f1a-7f3a r--s 00001000 08:01 42                     /usr/bin/pmr",
            "7f1a-7f3a r-xp 00000000 00:00 0                      [vdso]",
            "7f1a-7f3a r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(parse_clean(&smaps(head, "0", "0")), [], "{head}");
        }
        let both = smaps(&constants, "4", "0") + &smaps("1000-2000 r--p 0 0 1 /lib", "0", "0");
        assert_eq!(parse_clean(&both), [(0x1000, 0x1000)]);
    }

    #[test]
    fn what_was_given_back_still_works() {
        give_back().unwrap();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        assert!(!parse_clean(&maps).is_empty());
    }
}
