//! pmr's eBPF programs, as the kernel runs them for each new connection and each bind.
//!
//! They are made of a table that another module describes ([`super::table`]) and of nothing else:
//! no loop, no lock, one retry.

use super::assembler::{Assembler, Condition, Label, Operation, Register, Size};
use super::table;
use Register::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10};

/// By what the instance of a connection is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The next one.
    RoundRobin,
    /// The client's address: the same client gets the same instance while the order stays.
    Source,
}

/// Fields of `struct sk_reuseport_md` (bpf.h).
const DATA: i16 = 0;
const DATA_END: i16 = 8;
const MIGRATING_SK: i16 = 48;

/// Fields of `struct bpf_sock` (bpf.h).
const SOCK_FAMILY: i16 = 4;
const SOCK_PEER_V4: i16 = 52;
const SOCK_PEER_V6: i16 = 56;

/// Fields of `struct bpf_sock_addr` (bpf.h).
const ADDR_PORT: i16 = 24;
const ADDR_TYPE: i16 = 32;

/// The byte of a TCP header with its flags, and the two of them that tell a new connection
/// (RFC 9293).
const TCP_FLAGS: i16 = 13;
const SYN: i32 = 0x02;
const SYN_OR_ACK: i32 = 0x12;

/// The source address in a header of IPv4 and of IPv6.
const IPV4_SOURCE: i32 = 12;
const IPV6_SOURCE: i32 = 8;

const AF_INET: i32 = 2;
const SOCK_STREAM: i32 = 1;
const SOL_SOCKET: i32 = 1;
const SO_REUSEPORT: i32 = 15;

/// Helpers of the kernel (bpf.h).
const SETSOCKOPT: i32 = 49;
const LOAD_BYTES_RELATIVE: i32 = 68;
const SELECT_REUSEPORT: i32 = 82;

/// `BPF_HDR_START_NET`
const FROM_NETWORK_HEADER: i32 = 1;

/// `SK_PASS`: what is selected counts, and the kernel's own choice where nothing is.
const PASS: i32 = 1;

/// Places on the stack.
const KEY: i16 = -4;
const TURN: i16 = -16;
const ADDRESS: i16 = -32;
const VERSION: i16 = -40;

/// What a segment is, in `R9`: of no new connection, a new connection, or one that moves here from
/// a socket that was closed.
const LATE: i32 = 0;
const NEW: i32 = 1;
const MOVED: i32 = 2;

/// 2^64 by the golden ratio: multiplied by it, neighbours are spread (Knuth, TAOCP 6.4).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The program that chooses the socket for a connection: `BPF_PROG_TYPE_SK_REUSEPORT`, attached as
/// `SELECT_OR_MIGRATE`. `control` is the fd of the map of [`table`], `sockets` that of the array.
///
/// ```text
/// what is it: late, new or moved?       a moved one has no packet, but its own socket
/// pmr's own, to try a socket? there     if that is gone, as any other
/// where in the order: the next turn, or by the client's address
/// select order[place], else order[place + 1], else the parking socket, else what the kernel likes
/// ```
pub fn steering(method: Method, control: i32, sockets: i32) -> Vec<u64> {
    let mut program = Assembler::new();
    let it = &mut program;
    let parking = it.label();
    it.alu_register(Operation::Move, R6, R1);
    it.load_map_value(R7, control);
    classify(it);
    pass_probe(it, sockets);
    it.load(Size::Word, R8, R7, offset(table::CONTROL));
    match method {
        Method::RoundRobin => place_in_turn(it),
        Method::Source => place_by_address(it),
    }
    it.store(Size::Double, R10, TURN, R1);
    for _ in 0..2 {
        let next = it.label();
        select(it, sockets, parking, next);
        it.place(next);
        it.load(Size::Double, R1, R10, TURN);
        it.alu(Operation::Add, R1, 1);
        it.store(Size::Double, R10, TURN, R1);
    }
    it.place(parking);
    it.store_value(Size::Word, R10, KEY, table::PARKING.into());
    call_select(it, sockets);
    count(it);
    it.alu(Operation::Move, R0, PASS);
    it.exit();
    program.finish()
}

/// `R9` = what this is. The data of the context begins with the TCP header.
fn classify(it: &mut Assembler) {
    let (moved, done) = (it.label(), it.label());
    it.alu(Operation::Move, R9, MOVED);
    it.load(Size::Double, R1, R6, MIGRATING_SK);
    it.jump_if(Condition::NotEqual, R1, 0, moved);
    it.alu(Operation::Move, R9, LATE);
    it.load(Size::Double, R2, R6, DATA);
    it.load(Size::Double, R3, R6, DATA_END);
    it.alu_register(Operation::Move, R4, R2);
    it.alu(Operation::Add, R4, i32::from(TCP_FLAGS).saturating_add(1));
    it.jump_if_register(Condition::Greater, R4, R3, done);
    it.load(Size::Byte, R1, R2, TCP_FLAGS);
    it.alu(Operation::And, R1, SYN_OR_ACK);
    it.jump_if(Condition::NotEqual, R1, SYN, done);
    it.alu(Operation::Move, R9, NEW);
    it.place(moved);
    it.place(done);
}

/// Ends the program for a connection that pmr has announced ([`table::PROBE`]): it goes to the
/// socket that is to be tried. Goes on where that is gone, and for all others.
fn pass_probe(it: &mut Assembler, sockets: i32) {
    let other = it.label();
    it.jump_if(Condition::NotEqual, R9, NEW, other);
    it.load(Size::Double, R2, R6, DATA);
    it.load(Size::Double, R3, R6, DATA_END);
    it.alu_register(Operation::Move, R4, R2);
    it.alu(Operation::Add, R4, 2);
    it.jump_if_register(Condition::Greater, R4, R3, other);
    // The client's port is what a TCP header begins with.
    it.load(Size::Half, R2, R2, 0);
    it.load(Size::Word, R1, R7, offset(table::PROBE));
    it.alu_register(Operation::Move, R3, R1);
    it.alu(Operation::And, R1, 0xffff);
    it.jump_if_register(Condition::NotEqual, R1, R2, other);
    it.alu(Operation::ShiftRight, R3, 16);
    it.store(Size::Word, R10, KEY, R3);
    take(it, sockets, other);
    it.place(other);
}

/// `R1` = the turn. It advances for connections only: late segments run the program too.
fn place_in_turn(it: &mut Assembler) {
    let (late, done) = (it.label(), it.label());
    it.jump_if(Condition::Equal, R9, LATE, late);
    it.alu(Operation::Move, R1, 1);
    it.fetch_add(R7, offset(table::TURN), R1);
    it.jump(done);
    it.place(late);
    it.load(Size::Double, R1, R7, offset(table::TURN));
    it.place(done);
}

/// `R1` = a number made of the client's address; an IPv4 one counts as it is mapped into IPv6.
fn place_by_address(it: &mut Assembler) {
    let (packet, packet_v6, peer_v6, mix) = (it.label(), it.label(), it.label(), it.label());
    it.store_value(Size::Double, R10, ADDRESS, 0);
    it.store_value(Size::Word, R10, ADDRESS + 8, MAPPED);
    it.store_value(Size::Word, R10, ADDRESS + 12, 0);
    it.load(Size::Double, R1, R6, MIGRATING_SK);
    it.jump_if(Condition::Equal, R1, 0, packet);
    it.load(Size::Word, R2, R1, SOCK_FAMILY);
    it.jump_if(Condition::NotEqual, R2, AF_INET, peer_v6);
    it.load(Size::Word, R2, R1, SOCK_PEER_V4);
    it.store(Size::Word, R10, ADDRESS + 12, R2);
    it.jump(mix);
    it.place(peer_v6);
    for word in [0, 4, 8, 12] {
        it.load(Size::Word, R2, R1, SOCK_PEER_V6.saturating_add(word));
        it.store(Size::Word, R10, ADDRESS.saturating_add(word), R2);
    }
    it.jump(mix);
    it.place(packet);
    it.store_value(Size::Double, R10, VERSION, 0);
    load_bytes(it, 0, VERSION, 1);
    it.load(Size::Byte, R1, R10, VERSION);
    it.alu(Operation::ShiftRight, R1, 4);
    it.jump_if(Condition::NotEqual, R1, 4, packet_v6);
    load_bytes(it, IPV4_SOURCE, ADDRESS + 12, 4);
    it.jump(mix);
    it.place(packet_v6);
    load_bytes(it, IPV6_SOURCE, ADDRESS, 16);
    it.place(mix);
    it.alu(Operation::Move, R1, 0);
    it.load_wide(R2, SPREAD);
    for half in [0, 8] {
        it.load(Size::Double, R3, R10, ADDRESS.saturating_add(half));
        it.alu_register(Operation::Xor, R1, R3);
        // A bit of a product depends on the bits below it only, so the high ones are folded down
        // before and after.
        fold(it);
        it.alu_register(Operation::Multiply, R1, R2);
        fold(it);
    }
}

/// `R1 ^= R1 >> 32`
fn fold(it: &mut Assembler) {
    it.alu_register(Operation::Move, R3, R1);
    it.alu(Operation::ShiftRight, R3, 32);
    it.alu_register(Operation::Xor, R1, R3);
}

/// The third word of `::ffff:0:0`, as it lies in memory.
const MAPPED: i32 = 0x0000_ffff_u32.to_be().cast_signed();

/// Copies bytes of the network header to the stack; on a failure they stay as they are, or zero.
fn load_bytes(it: &mut Assembler, from: i32, to: i16, bytes: i32) {
    it.alu_register(Operation::Move, R1, R6);
    it.alu(Operation::Move, R2, from);
    it.alu_register(Operation::Move, R3, R10);
    it.alu(Operation::Add, R3, to.into());
    it.alu(Operation::Move, R4, bytes);
    it.alu(Operation::Move, R5, FROM_NETWORK_HEADER);
    it.call(LOAD_BYTES_RELATIVE);
}

/// Tries the socket at the place in `TURN`. Goes on at `parking` where the order is empty, at
/// `next` where that socket is gone, and ends the program where it was taken.
fn select(it: &mut Assembler, sockets: i32, parking: Label, next: Label) {
    it.load(Size::Double, R1, R10, TURN);
    // How many there are.
    it.alu_register(Operation::Move, R2, R8);
    it.alu(Operation::And, R2, mask(table::COUNT_MASK));
    it.jump_if(Condition::Equal, R2, 0, parking);
    it.alu_register(Operation::Modulo, R1, R2);
    // In which half.
    it.alu_register(Operation::Move, R2, R8);
    it.alu(Operation::ShiftRight, R2, mask(table::HALF_SHIFT));
    it.alu(Operation::ShiftLeft, R2, 9);
    it.alu_register(Operation::Add, R1, R2);
    // The verifier is to see the bound, which holds already.
    it.alu(Operation::And, R1, 1023);
    it.alu(Operation::ShiftLeft, R1, 1);
    it.alu_register(Operation::Move, R2, R7);
    it.alu_register(Operation::Add, R2, R1);
    it.load(Size::Half, R1, R2, offset(table::ORDER));
    it.store(Size::Word, R10, KEY, R1);
    take(it, sockets, next);
}

/// Takes the socket in `KEY` and ends the program; goes on at `gone` where there is none.
fn take(it: &mut Assembler, sockets: i32, gone: Label) {
    call_select(it, sockets);
    it.jump_if(Condition::NotEqual, R0, 0, gone);
    count(it);
    it.alu(Operation::Move, R0, PASS);
    it.exit();
}

fn call_select(it: &mut Assembler, sockets: i32) {
    it.alu_register(Operation::Move, R1, R6);
    it.load_map(R2, sockets);
    it.alu_register(Operation::Move, R3, R10);
    it.alu(Operation::Add, R3, KEY.into());
    it.alu(Operation::Move, R4, 0);
    it.call(SELECT_REUSEPORT);
}

/// Counts a connection for the socket in `KEY`.
fn count(it: &mut Assembler) {
    let done = it.label();
    it.jump_if(Condition::Equal, R9, LATE, done);
    it.load(Size::Word, R1, R10, KEY);
    it.alu(Operation::And, R1, 1023);
    it.alu(Operation::ShiftLeft, R1, 3);
    it.alu_register(Operation::Move, R2, R7);
    it.alu_register(Operation::Add, R2, R1);
    it.alu(Operation::Move, R3, 1);
    it.atomic_add(R2, offset(table::TAKEN), R3);
    it.jump_if(Condition::NotEqual, R9, MOVED, done);
    it.alu(Operation::Move, R3, 1);
    it.atomic_add(R2, offset(table::MIGRATED), R3);
    it.place(done);
}

/// The program that lets several instances bind the same port, each by itself:
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`, at the bind of IPv4 or IPv6. It sets `SO_REUSEPORT` on stream
/// sockets that are bound to one of `ports`, and forbids nothing. Other ports are left alone: there
/// a second bind is a mistake, and stays an error.
pub fn bind_hook(ports: &[u16]) -> Vec<u64> {
    let mut program = Assembler::new();
    let it = &mut program;
    let (set, done) = (it.label(), it.label());
    it.alu_register(Operation::Move, R6, R1);
    it.load(Size::Word, R1, R6, ADDR_TYPE);
    it.jump_if(Condition::NotEqual, R1, SOCK_STREAM, done);
    it.load(Size::Word, R1, R6, ADDR_PORT);
    for port in ports {
        it.jump_if(Condition::Equal, R1, port.to_be().into(), set);
    }
    it.jump(done);
    it.place(set);
    it.store_value(Size::Word, R10, KEY, 1);
    it.alu_register(Operation::Move, R1, R6);
    it.alu(Operation::Move, R2, SOL_SOCKET);
    it.alu(Operation::Move, R3, SO_REUSEPORT);
    it.alu_register(Operation::Move, R4, R10);
    it.alu(Operation::Add, R4, KEY.into());
    it.alu(Operation::Move, R5, 4);
    it.call(SETSOCKOPT);
    it.place(done);
    it.alu(Operation::Move, R0, PASS);
    it.exit();
    program.finish()
}

/// The table's offsets fit: it has 18 KB.
fn offset(at: u32) -> i16 {
    i16::try_from(at).unwrap_or_default()
}

fn mask(bits: u32) -> i32 {
    bits.cast_signed()
}

#[cfg(test)]
mod tests;
