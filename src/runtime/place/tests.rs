//! On the real kernel: clients whose handshake takes its time.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use super::*;
use crate::sys::testing::{delay_handshakes, eventually};

const A: (SlotId, Generation) = (SlotId(0), Generation(1));
const B: (SlotId, Generation) = (SlotId(1), Generation(2));

/// A place where nobody has a socket yet; `None` where bpf(2) is not permitted, which is said.
fn empty_place(test: &str) -> Option<Place> {
    let parking = listen::found_group(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), false).unwrap();
    let mut place = Place::new(parking, false);
    match place.steer_by(Method::RoundRobin) {
        Ok(_) => {}
        Err(error) if error.errno() == nix::libc::EPERM => {
            eprintln!("SKIPPED: {test}: bpf(2) is not permitted here");
            return None;
        }
        Err(error) => panic!("{error}"),
    }
    Some(place)
}

/// A place with these instances, who do not serve yet, and whose clients' handshakes take time.
fn place(test: &str, instances: &[(SlotId, Generation)]) -> Option<Place> {
    let mut place = empty_place(test)?;
    for (_, generation) in instances {
        let socket = listen::join_group(place.parking.as_fd()).unwrap();
        delay_handshakes(socket.as_fd());
        place.add(*generation, socket).unwrap();
    }
    delay_handshakes(place.parking.as_fd());
    Some(place)
}

impl Place {
    fn connect(&self) -> TcpStream {
        TcpStream::connect(listen::address_of(self.parking.as_fd()).unwrap()).unwrap()
    }

    fn parked(&self) -> u32 {
        listen::queue(&self.parking).unwrap().length
    }

    /// The handshake of a client ends, which waits then at a socket that nobody is sent to.
    fn end_handshake(&self, mut client: &TcpStream, waits: impl Fn(&Self) -> bool) {
        client.write_all(b"x").unwrap();
        eventually("it waits", || waits(self).then_some(()));
    }

    /// Looks at the time it asks for.
    fn look_next(&mut self, serving: &[(SlotId, Generation)]) -> u64 {
        let now = self.next_look_ms().unwrap();
        let look = self.look(now, serving, |_| 0).unwrap();
        look.stuck.iter().try_for_each(|generation| self.move_queues(*generation)).unwrap();
        now
    }
}

#[test]
fn who_comes_late_to_the_parking_socket_is_moved_on() {
    let test = "who_comes_late_to_the_parking_socket_is_moved_on";
    let Some(mut place) = place(test, &[A]) else { return };
    assert_eq!(place.next_look_ms(), None, "nobody serves");
    let client = place.connect();
    place.publish(5000, &[A]).unwrap();
    place.end_handshake(&client, |place| place.parked() == 1);
    // The only instance: there is nothing else to look at.
    assert_eq!(place.look_next(&[A]), 5100);
    assert_eq!((place.parked(), place.queued(A.1)), (0, 1));
    let mut now = 5100;
    let mut looks = 1;
    while place.next_look_ms().is_some() {
        now = place.look_next(&[A]);
        looks += 1;
    }
    assert_eq!((now, looks), (69_000, 30 + 61), "in the end nothing is looked at");
}

#[test]
fn who_comes_late_to_somebody_who_leaves_is_moved_on() {
    let test = "who_comes_late_to_somebody_who_leaves_is_moved_on";
    let Some(mut place) = place(test, &[A, B]) else { return };
    place.publish(0, &[A, B]).unwrap();
    let client = place.connect();
    // It is over when all that is late has come.
    place.publish(100_000, &[B]).unwrap();
    place.end_handshake(&client, |place| place.queued(A.1) == 1);
    place.look_next(&[B]);
    assert_eq!(place.queued(A.1), 1, "it may be accepting");
    place.look_next(&[B]);
    assert_eq!((place.queued(A.1), place.queued(B.1)), (0, 1));
    // What it still accepts it keeps.
    place.close(A.1);
    assert_eq!(place.leavers, BTreeMap::new());
}

#[test]
fn nobody_is_moved_from_one_who_leaves_where_nobody_else_serves() {
    let test = "nobody_is_moved_from_one_who_leaves_where_nobody_else_serves";
    let Some(mut place) = place(test, &[A]) else { return };
    place.publish(0, &[A]).unwrap();
    let client = place.connect();
    place.publish(100, &[]).unwrap();
    place.end_handshake(&client, |place| place.queued(A.1) == 1);
    for _ in 0..5 {
        place.look_next(&[]);
    }
    assert_eq!((place.queued(A.1), place.parked()), (1, 0));
    // It has ended.
    place.close(A.1);
    assert_eq!(place.parked(), 1);
    assert_eq!(place.next_look_ms(), None);
}

#[test]
fn an_instance_accepts_once_a_connection_of_pmrs_own_has_left_its_queue() {
    let test = "an_instance_accepts_once_a_connection_of_pmrs_own_has_left_its_queue";
    let Some(mut place) = empty_place(test) else { return };
    let listeners = [A, B].map(|(_, generation)| {
        let socket = listen::join_group(place.parking.as_fd()).unwrap();
        let listener = TcpListener::from(socket.try_clone().unwrap());
        place.add(generation, socket).unwrap();
        listener
    });
    // B serves, and is not disturbed.
    place.publish(0, &[B]).unwrap();
    for _ in 0..5 {
        assert!(!place.accepts(0, A.1).unwrap());
    }
    eventually("it waits", || {
        assert!(!place.accepts(0, A.1).unwrap());
        (place.queued(A.1) == 1).then_some(())
    });
    assert_eq!(place.queued(B.1), 0);
    // Another supervisor asks anew.
    place.proofs = Proofs::default();
    eventually("two wait", || {
        assert!(!place.accepts(0, A.1).unwrap());
        (place.queued(A.1) == 2).then_some(())
    });
    for _ in 0..2 {
        let (mut stream, _) = listeners[0].accept().unwrap();
        assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
    }
    eventually("it accepts", || place.accepts(0, A.1).unwrap().then_some(()));
    let counted: Vec<_> =
        place.counters().map(|(_, counters, queued)| (counters, queued)).collect();
    assert_eq!(counted, [(Counters::default(), 0); 2], "no client was there");
    // A port of pmr's own is nobody's any more.
    let client = place.connect();
    eventually("it waits", || (place.queued(B.1) == 1).then_some(()));
    drop(client);
}
