//! On the real kernel, where bpf(2) is permitted.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use rustix::net::{AddressFamily, SocketType, ipproto, socket, sockopt};

use super::*;
use crate::sys::listen;

/// `r0 = 1; exit`
const PASS: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];

/// Whether this is permitted; where it is not, says so aloud.
fn is_permitted<T>(test: &str, result: Result<T>) -> bool {
    match result {
        Ok(_) => true,
        Err(error) if error.errno() == libc::EPERM => {
            writeln!(std::io::stderr(), "SKIPPED: {test}: bpf(2) is not permitted here").unwrap();
            false
        }
        Err(error) => panic!("{error}"),
    }
}

fn local() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

#[test]
fn shared_memory_is_the_same_for_all_who_map_it() {
    if !is_permitted("shared_memory_is_the_same_for_all_who_map_it", shared_array(8)) {
        return;
    }
    let array = shared_array(24).unwrap();
    let (one, other) = [(); 2].map(|()| Shared::map(array.as_fd(), 24).unwrap()).into();
    assert_eq!(other.load(0), 0);
    one.store(0, 0x1122_3344_5566_7788);
    one.store_half(8, 7);
    one.publish_word(12, 42);
    drop((one, array));
    assert_eq!((other.load(0), other.load_word(4)), (0x1122_3344_5566_7788, 0x1122_3344));
    assert_eq!((other.load_word(8), other.load_word(12)), (7, 42));
    // Nothing is there, or it is half outside, or across two words.
    for outside in [24, 20, 4, u32::MAX] {
        other.store(outside, 1);
        assert_eq!(other.load(outside), 0, "{outside}");
    }
    assert_eq!((other.load_word(24), other.load_word(2)), (0, 0));
}

#[test]
fn only_sockets_of_groups_are_put_and_each_once() {
    if !is_permitted("only_sockets_of_groups_are_put_and_each_once", socket_array(1)) {
        return;
    }
    let (array, other) = (socket_array(2).unwrap(), socket_array(2).unwrap());
    let errno = |result: Result<()>| result.unwrap_err().errno();
    let plain = TcpListener::bind(local()).unwrap();
    assert_eq!(errno(put_socket(array.as_fd(), 0, plain.as_fd())), libc::EINVAL);
    let socket = listen::found_group(local(), false).unwrap();
    put_socket(array.as_fd(), 0, socket.as_fd()).unwrap();
    assert_eq!(errno(put_socket(array.as_fd(), 1, socket.as_fd())), libc::EBUSY);
    assert_eq!(errno(put_socket(other.as_fd(), 1, socket.as_fd())), libc::EBUSY);
    take_out_sockets(array.as_fd(), [0, 1]);
    put_socket(other.as_fd(), 1, socket.as_fd()).unwrap();
    assert_eq!(errno(put_socket(other.as_fd(), 2, socket.as_fd())), libc::E2BIG);
}

#[test]
fn a_socket_of_mptcp_is_refused_in_words() {
    let test = "a_socket_of_mptcp_is_refused_in_words";
    if !is_permitted(test, socket_array(1)) {
        return;
    }
    let Ok(socket) = socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::MPTCP)) else {
        writeln!(std::io::stderr(), "SKIPPED: {test}: the kernel has no MPTCP").unwrap();
        return;
    };
    sockopt::set_socket_reuseport(&socket, true).unwrap();
    rustix::net::bind(&socket, &local()).unwrap();
    rustix::net::listen(&socket, 1).unwrap();
    let array = socket_array(1).unwrap();
    let error = put_socket(array.as_fd(), 0, socket.as_fd()).unwrap_err();
    assert_eq!(error.errno(), libc::EOPNOTSUPP);
    assert!(error.to_string().starts_with("cannot steer to a socket of MPTCP"), "{error}");
}

#[test]
fn the_verifier_is_quoted() {
    if !is_permitted("the_verifier_is_quoted", load_steering(&PASS)) {
        return;
    }
    // `exit`, without an answer in r0.
    let error = load_steering(&[0x95]).unwrap_err().to_string();
    assert!(error.starts_with("cannot load the steering program: "), "{error}");
    assert!(error.contains("R0 !read_ok"), "{error}");
    assert!(load_bind_hooks(&[0x95]).unwrap_err().to_string().contains("R0 !read_ok"));
}
