//! On the real kernel: who gets a connection, and that none is lost.
#![expect(clippy::arithmetic_side_effects, reason = "the numbers of a test are small")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use super::*;
use crate::sys::testing::eventually;

mod meanwhile;

/// An address with its sockets; `None` where bpf(2) is not permitted, which is said.
struct Place {
    address: SocketAddr,
    parking: OwnedFd,
    steering: Steering,
    members: Vec<(u16, TcpListener)>,
}

fn any() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

fn own_address(socket: &OwnedFd) -> SocketAddr {
    TcpListener::from(socket.try_clone().unwrap()).local_addr().unwrap()
}

impl Place {
    fn new(test: &str, method: Method, address: SocketAddr, members: usize) -> Option<Self> {
        let parking = listen::found_group(address, false).unwrap();
        let steering = match Steering::create(method, parking.as_fd(), None) {
            Ok(steering) => steering,
            Err(error) if error.errno() == nix::libc::EPERM => {
                eprintln!("SKIPPED: {test}: bpf(2) is not permitted here");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let address = own_address(&parking);
        let mut place = Self { address, parking, steering, members: Vec::new() };
        for _ in 0..members {
            place.join();
        }
        place.publish();
        Some(place)
    }

    fn join(&mut self) {
        let socket = listen::join_group(self.parking.as_fd()).unwrap();
        let index = self.steering.add(socket.as_fd()).unwrap();
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true).unwrap();
        self.members.push((index, listener));
    }

    fn publish(&self) {
        let order: Vec<u16> = self.members.iter().map(|(index, _)| *index).collect();
        self.steering.publish(&order);
    }

    /// A client, as which its connection can be told.
    fn connect(&self) -> TcpStream {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            });
        }
        self.arrived(|| TcpStream::connect(address).unwrap())
    }

    /// A connection that has arrived. connect(2) returns before that: the last segment of the
    /// handshake may still be on its way, even to the same machine.
    fn arrived(&self, connect: impl FnOnce() -> TcpStream) -> TcpStream {
        let before = self.queued();
        let client = connect();
        eventually("it waits at one of the sockets", || (self.queued() > before).then_some(()));
        client
    }

    /// How many connections wait.
    fn queued(&self) -> u32 {
        let queue = |(_, socket): &(u16, TcpListener)| listen::queue(socket).unwrap().length;
        self.members.iter().map(queue).sum::<u32>() + self.parked()
    }

    /// Which member has a connection to accept, which is answered.
    fn serve(&self) -> usize {
        let served = self.members.iter().position(|(_, listener)| match listener.accept() {
            Ok((mut stream, _)) => {
                stream.write_all(b"served").unwrap();
                true
            }
            Err(_) => false,
        });
        served.expect("somebody has it")
    }

    fn answer_all(&self) -> usize {
        let mut count = 0;
        for (_, listener) in &self.members {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut text = [0; 4];
                stream.set_nonblocking(false).unwrap();
                stream.read_exact(&mut text).unwrap();
                assert_eq!(&text, b"data", "what was sent has come along");
                stream.write_all(b"served").unwrap();
                count += 1;
            }
        }
        count
    }

    fn parked(&self) -> u32 {
        listen::queue(&self.parking).unwrap().length
    }

    fn counters(&self, member: usize) -> Counters {
        self.steering.counters(self.members[member].0)
    }
}

/// So many clients who have sent something already.
fn waiting(place: &Place, count: usize) -> Vec<TcpStream> {
    let client = |_| {
        let mut stream = place.connect();
        stream.write_all(b"data").unwrap();
        stream
    };
    (0..count).map(client).collect()
}

fn assert_answered(clients: Vec<TcpStream>) {
    for mut client in clients {
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "served");
    }
}

#[test]
fn two_thousand_connections_alternate_strictly() {
    for members in [2, 3, 4] {
        let test = "two_thousand_connections_alternate_strictly";
        let Some(place) = Place::new(test, Method::RoundRobin, any(), members) else { return };
        for turn in 0..2000 {
            let mut client = place.connect();
            assert_eq!(place.serve(), turn % members, "of {members}");
            let mut answer = String::new();
            // The client's end is an end for good: its last segments take no turn.
            client.read_to_string(&mut answer).unwrap();
        }
        let taken: Vec<u64> = (0..members).map(|it| place.counters(it).taken).collect();
        assert_eq!(taken.iter().sum::<u64>(), 2000, "{taken:?}");
        assert!(taken.iter().max().unwrap() - taken.iter().min().unwrap() <= 1, "{taken:?}");
    }
}

#[test]
fn whoever_waits_for_one_that_dies_is_answered_by_the_others() {
    let test = "whoever_waits_for_one_that_dies_is_answered_by_the_others";
    let Some(mut place) = Place::new(test, Method::RoundRobin, any(), 2) else { return };
    for _ in 0..30 {
        // Nobody accepts; half of them wait for the one that is about to die.
        let clients = waiting(&place, 50);
        let (index, victim) = place.members.remove(0);
        place.publish();
        // Though somebody else holds the socket.
        let held = OwnedFd::from(victim);
        listen::silence(&held);
        place.steering.remove(index);
        assert_eq!(place.answer_all(), 50);
        assert_answered(clients);
        place.join();
        place.publish();
    }
    assert_eq!(place.parked(), 0);
}

#[test]
fn without_anybody_clients_wait_in_the_parking_socket() {
    let test = "without_anybody_clients_wait_in_the_parking_socket";
    let Some(mut place) = Place::new(test, Method::RoundRobin, any(), 0) else { return };
    let clients = waiting(&place, 100);
    assert_eq!(place.parked(), 100);
    place.join();
    place.join();
    place.publish();
    place.steering.move_queue(table::PARKING, place.parking.as_fd()).unwrap();
    assert_eq!(place.parked(), 0);
    assert_eq!([0, 1].map(|it| place.counters(it)), [Counters { taken: 50, migrated: 50 }; 2]);
    assert_eq!(place.answer_all(), 100);
    assert_answered(clients);
    // And it can park again.
    place.steering.publish(&[]);
    let clients = waiting(&place, 3);
    assert_eq!(place.parked(), 3);
    drop(clients);
}

#[test]
fn a_stopped_one_is_passed_over_and_its_queue_moves_while_it_is_held() {
    let test = "a_stopped_one_is_passed_over_and_its_queue_moves_while_it_is_held";
    let Some(place) = Place::new(test, Method::RoundRobin, any(), 2) else { return };
    let clients = waiting(&place, 10);
    let (hung, listener) = &place.members[0];
    assert_eq!(listen::queue(listener).unwrap().length, 5);
    place.steering.publish(&[place.members[1].0]);
    place.steering.move_queue(*hung, listener.as_fd()).unwrap();
    assert_eq!(listen::queue(listener).unwrap().length, 0);
    assert_eq!(place.counters(1), Counters { taken: 10, migrated: 5 });
    // It is a member as before when it goes on.
    place.publish();
    let more = waiting(&place, 10);
    assert_eq!(place.answer_all(), 20);
    assert_answered(clients);
    assert_answered(more);
}

#[test]
fn a_stale_index_costs_nothing() {
    let test = "a_stale_index_costs_nothing";
    let Some(mut place) = Place::new(test, Method::RoundRobin, any(), 3) else { return };
    // It dies, and nobody says so.
    drop(place.members.remove(1));
    let clients = waiting(&place, 30);
    assert_eq!(place.answer_all(), 30);
    assert_answered(clients);
    // All of them: there is the parking socket.
    place.members.clear();
    let clients = waiting(&place, 2);
    assert_eq!(place.parked(), 2);
    drop(clients);
}

#[test]
fn flips_in_the_middle_of_ten_thousand_connections_cost_none() {
    let test = "flips_in_the_middle_of_ten_thousand_connections_cost_none";
    let Some(place) = Place::new(test, Method::RoundRobin, any(), 4) else { return };
    let all: Vec<u16> = place.members.iter().map(|(index, _)| *index).collect();
    for round in 0..10_000_usize {
        let count = 1 + round % 4;
        place.steering.publish(&all[4 - count..]);
        let client = place.connect();
        assert!(place.serve() >= 4 - count, "one that was taken out");
        drop(client);
    }
}

#[test]
fn the_next_supervisor_goes_on_with_the_maps() {
    let test = "the_next_supervisor_goes_on_with_the_maps";
    let Some(mut place) = Place::new(test, Method::RoundRobin, any(), 2) else { return };
    drop(place.connect());
    place.serve();
    let [control, sockets] = place.steering.maps().map(|map| map.try_clone_to_owned().unwrap());
    let mut next = Steering::adopt(control, sockets).unwrap();
    for (index, _) in &place.members {
        assert!(next.keep(*index));
    }
    place.steering = next;
    drop(place.connect());
    assert_eq!(place.serve(), 1, "the turn goes on");
    place.join();
    place.publish();
    let clients = waiting(&place, 9);
    assert_eq!([0, 1, 2].map(|it| place.counters(it).taken), [4, 4, 3]);
    assert_eq!(place.answer_all(), 9);
    assert_answered(clients);
}

#[test]
fn a_socket_that_no_keeper_was_told_of_is_put_in_again() {
    let test = "a_socket_that_no_keeper_was_told_of_is_put_in_again";
    let Some(mut place) = Place::new(test, Method::RoundRobin, any(), 2) else { return };
    // An instance has bound it by itself; the supervisor died before it was published.
    place.join();
    let (_, third) = place.members.pop().unwrap();
    let [control, sockets] = place.steering.maps().map(|map| map.try_clone_to_owned().unwrap());
    let mut next = Steering::adopt(control, sockets).unwrap();
    for (index, _) in &place.members {
        assert!(next.keep(*index));
    }
    assert_eq!(next.add(third.as_fd()).unwrap_err().errno(), nix::libc::EBUSY);
    next.forget_others();
    let index = next.add(third.as_fd()).unwrap();
    place.members.push((index, third));
    place.steering = next;
    place.publish();
    let clients = waiting(&place, 9);
    assert_eq!([0, 1, 2].map(|it| place.counters(it).taken), [3, 3, 3]);
    assert_eq!(place.answer_all(), 9);
    assert_answered(clients);
}

#[test]
fn new_maps_take_the_place_of_those_that_cannot_be_read() {
    let test = "new_maps_take_the_place_of_those_that_cannot_be_read";
    let Some(mut place) = Place::new(test, Method::RoundRobin, any(), 2) else { return };
    let waits = waiting(&place, 4);
    let old = place.steering.maps()[1];
    let mut next = Steering::create(Method::RoundRobin, place.parking.as_fd(), Some(old)).unwrap();
    // The maps before are held by somebody still.
    for (index, listener) in &mut place.members {
        *index = next.add(listener.as_fd()).unwrap();
    }
    place.steering = next;
    place.publish();
    let clients = waiting(&place, 10);
    assert_eq!([0, 1].map(|it| place.counters(it).taken), [5, 5]);
    assert_eq!(place.answer_all(), 14);
    assert_answered(clients);
    assert_answered(waits);
}

#[test]
fn one_group_serves_both_families() {
    let test = "one_group_serves_both_families";
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let Some(place) = Place::new(test, Method::RoundRobin, any, 2) else { return };
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, place.address.port()));
    for turn in 0..20 {
        let by_v4 = || TcpStream::connect(v4).unwrap();
        let client = if turn % 4 < 2 { place.connect() } else { place.arrived(by_v4) };
        assert_eq!(place.serve(), turn % 2);
        drop(client);
    }
}

/// A client at `127.0.0.client`.
fn client_at(port: u16, client: u8) -> TcpStream {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, client], 0))).unwrap();
    rustix::net::connect(&socket, &SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    TcpStream::from(socket)
}

#[test]
fn a_client_stays_with_its_instance() {
    let test = "a_client_stays_with_its_instance";
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let Some(mut place) = Place::new(test, Method::Source, any, 4) else { return };
    let port = place.address.port();
    let served = |place: &Place, client: u8| {
        let stream = place.arrived(|| client_at(port, client));
        let member = place.serve();
        drop(stream);
        member
    };
    let seen: Vec<usize> = (1..=40)
        .map(|client| {
            let first = served(&place, client);
            assert_eq!([served(&place, client), served(&place, client)], [first; 2], "{client}");
            first
        })
        .collect();
    for member in 0..4 {
        assert!(seen.contains(&member), "{seen:?}");
    }
    // Those that wait for one that dies move to where they are sent from now on.
    let arrived = |client| place.arrived(|| client_at(port, client));
    let mut waiting: Vec<TcpStream> = (1..=40).map(arrived).collect();
    for client in &mut waiting {
        client.write_all(b"data").unwrap();
    }
    let queues = |place: &Place| -> Vec<u32> {
        place.members.iter().map(|(_, it)| listen::queue(it).unwrap().length).collect()
    };
    let before = queues(&place);
    let (index, victim) = place.members.remove(0);
    place.publish();
    drop(victim);
    place.steering.remove(index);
    let moved: Vec<u32> = queues(&place).iter().zip(&before[1..]).map(|(a, b)| a - b).collect();
    assert_eq!(place.answer_all(), 40);
    assert_answered(waiting);
    let mut sent = [0; 3];
    for (client, member) in (1..=40).zip(&seen) {
        if *member == 0 {
            sent[served(&place, client)] += 1;
        }
    }
    assert_eq!(moved, sent);
}

#[test]
fn a_port_that_somebody_else_shares_is_in_use() {
    let parking = listen::found_group(any(), false).unwrap();
    let address = own_address(&parking);
    let error = listen::found_group(address, false).unwrap_err();
    assert_eq!(error.errno(), nix::libc::EADDRINUSE);
    assert!(listen::is_in_group(&parking));
    listen::join_group(parking.as_fd()).unwrap();
}

#[test]
fn a_program_whose_maps_nobody_has_any_more_is_replaced() {
    let test = "a_program_whose_maps_nobody_has_any_more_is_replaced";
    let Some(place) = Place::new(test, Method::RoundRobin, any(), 2) else { return };
    let waits = waiting(&place, 4);
    // The keeper was killed: of all there is the copy that the service manager had of the parking
    // socket, with the clients that have moved there.
    let Place { address, parking, steering, members } = place;
    steering.publish(&[]);
    for (_, listener) in members {
        listen::silence(&listener.into());
    }
    drop(steering);
    let steering = Steering::create(Method::RoundRobin, parking.as_fd(), None).unwrap();
    let mut place = Place { address, parking, steering, members: Vec::new() };
    place.join();
    place.join();
    place.publish();
    place.steering.move_queue(table::PARKING, place.parking.as_fd()).unwrap();
    assert_eq!([0, 1].map(|it| place.counters(it).taken), [2, 2]);
    assert_eq!(place.answer_all(), 4);
    assert_answered(waits);
}

#[test]
fn a_supervisor_that_died_in_the_middle_of_moving_a_queue_is_followed() {
    let test = "a_supervisor_that_died_in_the_middle_of_moving_a_queue_is_followed";
    let Some(mut place) = Place::new(test, Method::RoundRobin, any(), 2) else { return };
    for socket in [place.parking.as_fd(), place.members[1].1.as_fd()] {
        rustix::net::shutdown(socket, rustix::net::Shutdown::Read).unwrap();
    }
    let [control, sockets] = place.steering.maps().map(|map| map.try_clone_to_owned().unwrap());
    place.steering = Steering::adopt(control, sockets).unwrap();
    place.steering.settle(table::PARKING, place.parking.as_fd()).unwrap();
    for (index, listener) in &place.members {
        assert!(place.steering.keep(*index));
        place.steering.settle(*index, listener.as_fd()).unwrap();
    }
    let clients = waiting(&place, 10);
    assert_eq!([0, 1].map(|it| place.counters(it).taken), [5, 5]);
    assert_eq!(place.answer_all(), 10);
    assert_answered(clients);
    place.steering.publish(&[]);
    let clients = waiting(&place, 3);
    assert_eq!(place.parked(), 3);
    drop(clients);
}
