use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use proptest::prelude::*;

use super::*;

#[test]
fn a_name_may_hold_anything() {
    let tail = "S 7 42 43 0 -1 4194560 1 2 3 4 500 60 7 8 20 0 1 0 123456 0 0 0";
    for name in ["node", "a b", "(sd-pam)", ") S 1 1 1 (", "", "tmux: server", "a\nb"] {
        let stat = parse_stat(format!("99 ({name}) {tail}\n").as_bytes()).unwrap();
        assert_eq!(stat.name, name);
        assert_eq!((stat.pid, stat.state, stat.parent, stat.session), (99, 'S', 7, 43));
        assert_eq!((stat.user_ticks, stat.system_ticks, stat.start_ticks), (500, 60, 123_456));
    }
    assert_eq!(parse_stat(b"99 (node) S 7"), None);
    assert_eq!(parse_stat(b") 1 ("), None);
    assert_eq!(parse_stat(b""), None);
}

proptest! {
    #[test]
    fn any_stat_is_survived(bytes: Vec<u8>, name: Vec<u8>, fields in "[-0-9 A-Z()]{0,80}") {
        parse_stat(&bytes);
        let mut line = b"1 (".to_vec();
        line.extend(name);
        line.extend(b") ");
        line.extend(fields.bytes());
        parse_stat(&line);
        parse_pss(&fields);
        parse_resident_pages(&fields);
    }
}

#[test]
fn memory_files() {
    let rollup = "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:    900 kB\nPss:    310 kB\n\
                  Pss_Dirty:  99 kB\n";
    assert_eq!(parse_pss(rollup), Some(310 * 1024));
    assert_eq!(parse_pss(""), None);
    assert_eq!(parse_resident_pages("1000 250 100 10 0 200 0\n"), Some(250));
}

#[test]
fn this_process_is_sampled() {
    let pid = std::process::id();
    let usage = sample(&[pid, u32::MAX]);
    assert_eq!(usage.processes, 1);
    assert!(usage.memory_bytes > 100_000, "{usage:?}");
    assert!(usage.cpu < Duration::from_hours(1), "{usage:?}");
    assert_eq!(sample(&[u32::MAX]), Usage::default());
}

#[test]
fn this_process_is_found() {
    let pid = std::process::id();
    let own = stat(pid).unwrap();
    assert_eq!(start_time(pid).unwrap(), own.start_ticks);
    assert!(children_of(own.parent).unwrap().contains(&pid));
    assert!(session_pids(own.session).unwrap().contains(&pid));
    let command = command_line(pid).unwrap();
    assert!(command.contains(own.name.as_str()), "{command:?} of {:?}", own.name);
    assert!(start_time(u32::MAX).unwrap_err().is_not_found());
    assert!(command_line(u32::MAX).unwrap_err().is_not_found());
}

#[test]
fn from_ticks_is_a_time() {
    assert_eq!(from_ticks(0), Duration::ZERO);
    assert!(from_ticks(1) > Duration::ZERO && from_ticks(1) <= Duration::from_millis(10));
    assert!(from_ticks(u64::MAX) > Duration::from_hours(1));
}

#[test]
fn wildcards_overlap() {
    let overlap = |a: &str, b: &str| {
        let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
        let there = super::overlap(a, b);
        assert_eq!(there, super::overlap(b, a));
        there
    };
    assert!(overlap("127.0.0.1:80", "127.0.0.1:80"));
    assert!(overlap("0.0.0.0:80", "127.0.0.1:80"));
    assert!(overlap("[::]:80", "127.0.0.1:80"));
    assert!(overlap("[::]:80", "[::1]:80"));
    assert!(overlap("[::]:80", "0.0.0.0:80"));
    assert!(overlap("[::ffff:127.0.0.1]:80", "127.0.0.1:80"));
    assert!(!overlap("127.0.0.1:80", "127.0.0.1:81"));
    assert!(!overlap("127.0.0.1:80", "127.0.0.2:80"));
    assert!(!overlap("0.0.0.0:80", "[::1]:80"));
}

#[test]
fn the_holder_of_a_port_is_named() {
    let own = std::process::id();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let holder = port_holder(&Address::Tcp(address)).unwrap().unwrap();
    assert_eq!(holder.pid, own);
    assert_eq!(holder.command, command_line(own).unwrap());
    let wildcard = SocketAddr::from(([0, 0, 0, 0], address.port()));
    assert_eq!(port_holder(&Address::Tcp(wildcard)).unwrap().unwrap().pid, own);
    let other = SocketAddr::from(([127, 0, 0, 77], address.port()));
    assert_eq!(port_holder(&Address::Tcp(other)).unwrap(), None);

    let path = std::env::temp_dir().join(format!("pmr-test holder-{own}.sock"));
    let listener = UnixListener::bind(&path).unwrap();
    assert_eq!(port_holder(&Address::Unix(path.clone())).unwrap().unwrap().pid, own);
    drop(listener);
    assert_eq!(port_holder(&Address::Unix(path.clone())).unwrap(), None);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn the_fd_of_a_socket_is_found() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let inode = rustix::fs::fstat(&listener).unwrap().st_ino;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&listener);
    assert_eq!(socket_fd(std::process::id(), inode).unwrap(), Some(fd));
    drop(listener);
    assert_eq!(socket_fd(std::process::id(), inode).unwrap(), None);
    assert_eq!(socket_fd(u32::MAX, inode).unwrap_err().errno(), nix::libc::ENOENT);
}

#[test]
fn who_waits_for_a_processor_is_seen_waiting() {
    let spin = || {
        let mut command = std::process::Command::new("taskset");
        command.args(["-c", "0", "sh", "-c", "while :; do :; done"]).spawn().unwrap()
    };
    // Two on one: each waits for half of the time.
    let mut children = [spin(), spin()];
    let enough = std::time::Duration::from_millis(100);
    let id = children[0].id();
    crate::sys::testing::eventually("it waits", || (starved(&[id]) > enough).then_some(()));
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(starved(&[id]), std::time::Duration::ZERO, "it is gone");
}
