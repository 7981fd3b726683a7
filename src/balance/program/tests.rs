//! On the real kernel: the steering program is tried by [`crate::balance::steering`].

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::*;
use crate::sys::cgroup::{self, Group, Home};
use crate::sys::testing::run_alone;
use crate::sys::{bpf, listen};

#[test]
fn instances_share_the_port_that_the_hook_is_for() {
    let test = "instances_share_the_port_that_the_hook_is_for";
    match bpf::load_bind_hooks(&bind_hook(&[1])) {
        Ok(_) => drop(run_alone("balance::program::tests::alone_with_a_hook")),
        Err(error) if error.errno() == nix::libc::EPERM => {
            eprintln!("SKIPPED: {test}: bpf(2) is not permitted here");
        }
        Err(error) => panic!("{error}"),
    }
}

/// A group that this process is in for a while.
struct Inside {
    home: Home,
    before: PathBuf,
}

impl Inside {
    fn enter() -> Self {
        let before = cgroup::own_group().unwrap();
        let home = Home::make(&format!("pmr-test-hook-{}", std::process::id())).unwrap();
        std::fs::write(home.path().join("cgroup.procs"), "0").unwrap();
        Self { home, before }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        std::fs::write(self.before.join("cgroup.procs"), "0").unwrap();
        self.home.remove().unwrap();
    }
}

#[test]
#[ignore = "run by instances_share_the_port_that_the_hook_is_for"]
fn alone_with_a_hook() {
    if let Err(error) = cgroup::own_group() {
        eprintln!("SKIPPED: alone_with_a_hook: {error}");
        return;
    }
    // Ports that nobody has, one of each family.
    let [v4, v6, other] = ["127.0.0.1:0", "[::]:0", "127.0.0.1:0"]
        .map(|address| TcpListener::bind(address).unwrap().local_addr().unwrap());
    let inside = Inside::enter();
    let programs = bpf::load_bind_hooks(&bind_hook(&[v4.port(), v6.port()])).unwrap();
    let group = Group::open(inside.home.path()).unwrap();
    let links = bpf::hook_binds(group.dir(), &programs).unwrap();
    // The programs are held by the links.
    drop(programs);
    for address in [v4, v6] {
        let sockets = [(); 3].map(|()| OwnedFd::from(TcpListener::bind(address).unwrap()));
        assert!(sockets.iter().all(listen::is_in_group), "{address}");
        // Who sets nothing of the kind by itself.
        drop(listen::bind_tcp(address).unwrap());
    }
    // Another port, a datagram, and the time after.
    let first = TcpListener::bind(other).unwrap();
    assert_eq!(TcpListener::bind(other).unwrap_err().raw_os_error(), Some(nix::libc::EADDRINUSE));
    let datagram = std::net::UdpSocket::bind(v4).unwrap();
    assert!(!rustix::net::sockopt::socket_reuseport(&datagram).unwrap());
    drop(links);
    let alone = TcpListener::bind(v4).unwrap();
    assert_eq!(TcpListener::bind(v4).unwrap_err().raw_os_error(), Some(nix::libc::EADDRINUSE));
    drop((first, alone));
}
