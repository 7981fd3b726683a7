//! A small assembler for the kernel's eBPF machine: enough for pmr's own programs.
//!
//! An instruction is 8 bytes: opcode, registers (4 bits each), a signed offset and a signed
//! immediate (Documentation/bpf/standardization/instruction-set.rst of the kernel has the encoding
//! and the words). Jumps go to labels, which [`Assembler::finish`] resolves.

/// A register. `R0` is what a call or the program returns, `R1` to `R5` are the arguments of a
/// call, which clobbers them, `R6` to `R9` survive calls, `R10` is the end of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Register {
    /// Result.
    R0,
    /// First argument; the context, when the program begins.
    R1,
    /// Second argument.
    R2,
    /// Third argument.
    R3,
    /// Fourth argument.
    R4,
    /// Fifth argument.
    R5,
    /// Kept over calls.
    R6,
    /// Kept over calls.
    R7,
    /// Kept over calls.
    R8,
    /// Kept over calls.
    R9,
    /// End of the stack.
    R10,
}

/// How many bytes are loaded or stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// 1.
    Byte,
    /// 2.
    Half,
    /// 4.
    Word,
    /// 8.
    Double,
}

impl Size {
    fn bits(self) -> u8 {
        match self {
            Self::Word => 0x00,
            Self::Half => 0x08,
            Self::Byte => 0x10,
            Self::Double => 0x18,
        }
    }
}

/// What is done to a register, on 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `+=`
    Add,
    /// `*=`
    Multiply,
    /// `&=`
    And,
    /// `<<=`
    ShiftLeft,
    /// `>>=`
    ShiftRight,
    /// `%=`, unsigned; by 0 leaves it as it is.
    Modulo,
    /// `^=`
    Xor,
    /// `=`
    Move,
}

impl Operation {
    fn bits(self) -> u8 {
        match self {
            Self::Add => 0x00,
            Self::Multiply => 0x20,
            Self::And => 0x50,
            Self::ShiftLeft => 0x60,
            Self::ShiftRight => 0x70,
            Self::Modulo => 0x90,
            Self::Xor => 0xa0,
            Self::Move => 0xb0,
        }
    }
}

/// When a jump is taken, by 64 bits without sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `>`
    Greater,
}

impl Condition {
    fn bits(self) -> u8 {
        match self {
            Self::Equal => 0x10,
            Self::Greater => 0x20,
            Self::NotEqual => 0x50,
        }
    }
}

/// Something that is known when the program is written.
const IMMEDIATE: u8 = 0x00;
/// Something in a register.
const REGISTER: u8 = 0x08;

const LOAD: u8 = 0x61;
const STORE: u8 = 0x63;
const STORE_IMMEDIATE: u8 = 0x62;
const ATOMIC: u8 = 0xc3;
const ALU64: u8 = 0x07;
const JUMP: u8 = 0x05;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const LOAD_WIDE: u8 = 0x18;

/// `BPF_ADD | BPF_FETCH`: what was there before is put into the source register.
const FETCH_ADD: i32 = 0x01;

/// `BPF_PSEUDO_MAP_FD`, `BPF_PSEUDO_MAP_VALUE`: the immediate is the fd of a map.
const MAP: u8 = 1;
const MAP_VALUE: u8 = 2;

/// A place in a program that is jumped to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

/// A program that is being written.
#[derive(Debug, Default)]
pub struct Assembler {
    instructions: Vec<u64>,
    /// Where each label is.
    labels: Vec<Option<usize>>,
    /// Jumps, and where they go.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    /// A label for a place that comes.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len().saturating_sub(1))
    }

    /// The label is here.
    ///
    /// # Panics
    ///
    /// Where it is somewhere already.
    pub fn place(&mut self, label: Label) {
        let at = self.instructions.len();
        let place = self.labels.get_mut(label.0);
        assert!(place.is_some_and(|place| place.replace(at).is_none()), "a label has one place");
    }

    /// `to op= value`
    pub fn alu(&mut self, operation: Operation, to: Register, value: i32) {
        self.emit(ALU64 | operation.bits() | IMMEDIATE, to, Register::R0, 0, value);
    }

    /// `to op= from`
    pub fn alu_register(&mut self, operation: Operation, to: Register, from: Register) {
        self.emit(ALU64 | operation.bits() | REGISTER, to, from, 0, 0);
    }

    /// `to = value`, of 64 bits.
    pub fn load_wide(&mut self, to: Register, value: u64) {
        self.wide(to, Register::R0, value);
    }

    /// `to` = the map of this fd.
    pub fn load_map(&mut self, to: Register, fd: i32) {
        self.wide_of(to, MAP, fd);
    }

    /// `to` = the address of the one value of the array map of this fd.
    pub fn load_map_value(&mut self, to: Register, fd: i32) {
        self.wide_of(to, MAP_VALUE, fd);
    }

    /// `to = *(from + offset)`
    pub fn load(&mut self, size: Size, to: Register, from: Register, offset: i16) {
        self.emit(LOAD | size.bits(), to, from, offset, 0);
    }

    /// `*(to + offset) = from`
    pub fn store(&mut self, size: Size, to: Register, offset: i16, from: Register) {
        self.emit(STORE | size.bits(), to, from, offset, 0);
    }

    /// `*(to + offset) = value`
    pub fn store_value(&mut self, size: Size, to: Register, offset: i16, value: i32) {
        self.emit(STORE_IMMEDIATE | size.bits(), to, Register::R0, offset, value);
    }

    /// `*(u64)(to + offset) += with`, atomically; `with` becomes what was there before.
    pub fn fetch_add(&mut self, to: Register, offset: i16, with: Register) {
        self.emit(ATOMIC | Size::Double.bits(), to, with, offset, FETCH_ADD);
    }

    /// `*(u64)(to + offset) += with`, atomically.
    pub fn atomic_add(&mut self, to: Register, offset: i16, with: Register) {
        self.emit(ATOMIC | Size::Double.bits(), to, with, offset, 0);
    }

    /// Goes to the label.
    pub fn jump(&mut self, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.emit(JUMP, Register::R0, Register::R0, 0, 0);
    }

    /// Goes to the label if `register condition value`.
    pub fn jump_if(&mut self, condition: Condition, register: Register, value: i32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.emit(JUMP | condition.bits() | IMMEDIATE, register, Register::R0, 0, value);
    }

    /// Goes to the label if `register condition other`.
    pub fn jump_if_register(
        &mut self,
        condition: Condition,
        register: Register,
        other: Register,
        label: Label,
    ) {
        self.jumps.push((self.instructions.len(), label));
        self.emit(JUMP | condition.bits() | REGISTER, register, other, 0, 0);
    }

    /// Calls a helper of the kernel by its number.
    pub fn call(&mut self, helper: i32) {
        self.emit(CALL, Register::R0, Register::R0, 0, helper);
    }

    /// Ends the program; `R0` is its result.
    pub fn exit(&mut self) {
        self.emit(EXIT, Register::R0, Register::R0, 0, 0);
    }

    /// The program.
    ///
    /// # Panics
    ///
    /// Where a label that is jumped to has no place: the author of a program has forgotten it.
    pub fn finish(mut self) -> Vec<u64> {
        for (at, label) in self.jumps {
            let place = self.labels.get(label.0).copied().flatten();
            let to = place.and_then(|to| i64::try_from(to).ok());
            let from = i64::try_from(at).ok();
            // Counted from the instruction after the jump.
            let distance = to.zip(from).map(|(to, from)| to.wrapping_sub(from).wrapping_sub(1));
            let distance = distance.and_then(|distance| i16::try_from(distance).ok());
            assert!(distance.is_some(), "a label that is jumped to has a place nearby");
            if let Some(instruction) = self.instructions.get_mut(at) {
                *instruction |= u64::from(distance.unwrap_or_default().cast_unsigned()) << 16;
            }
        }
        self.instructions
    }

    fn wide_of(&mut self, to: Register, what: u8, fd: i32) {
        self.push(LOAD_WIDE, register(to) | what << 4, 0, fd);
        self.push(0, 0, 0, 0);
    }

    fn wide(&mut self, to: Register, from: Register, value: u64) {
        let low = u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default();
        let high = u32::try_from(value >> 32).unwrap_or_default();
        self.emit(LOAD_WIDE, to, from, 0, low.cast_signed());
        self.push(0, 0, 0, high.cast_signed());
    }

    fn emit(&mut self, opcode: u8, to: Register, from: Register, offset: i16, value: i32) {
        self.push(opcode, register(to) | register(from) << 4, offset, value);
    }

    fn push(&mut self, opcode: u8, registers: u8, offset: i16, value: i32) {
        let instruction = u64::from(opcode)
            | u64::from(registers) << 8
            | u64::from(offset.cast_unsigned()) << 16
            | u64::from(value.cast_unsigned()) << 32;
        self.instructions.push(instruction);
    }
}

fn register(register: Register) -> u8 {
    match register {
        Register::R0 => 0,
        Register::R1 => 1,
        Register::R2 => 2,
        Register::R3 => 3,
        Register::R4 => 4,
        Register::R5 => 5,
        Register::R6 => 6,
        Register::R7 => 7,
        Register::R8 => 8,
        Register::R9 => 9,
        Register::R10 => 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Register::{R0, R1, R2, R3, R6, R7, R8, R10};

    /// One instruction as the kernel has it: opcode, registers, offset and immediate.
    fn one(write: impl FnOnce(&mut Assembler)) -> [u8; 8] {
        let mut assembler = Assembler::new();
        write(&mut assembler);
        assembler.finish()[0].to_le_bytes()
    }

    #[test]
    fn instructions_are_the_kernels() {
        // As clang and llvm-objdump write them.
        for (got, expected) in [
            (one(|it| it.alu_register(Operation::Move, R6, R1)), [0xbf, 0x16, 0, 0, 0, 0, 0, 0]),
            (one(|it| it.alu(Operation::Move, R1, 1)), [0xb7, 0x01, 0, 0, 1, 0, 0, 0]),
            (one(|it| it.alu(Operation::Add, R3, -4)), [0x07, 3, 0, 0, 0xfc, 0xff, 0xff, 0xff]),
            (one(|it| it.alu(Operation::And, R8, 127)), [0x57, 0x08, 0, 0, 127, 0, 0, 0]),
            (one(|it| it.alu(Operation::ShiftRight, R8, 31)), [0x77, 0x08, 0, 0, 31, 0, 0, 0]),
            (one(|it| it.alu_register(Operation::Modulo, R1, R8)), [0x9f, 0x81, 0, 0, 0, 0, 0, 0]),
            (one(|it| it.load(Size::Double, R1, R6, 48)), [0x79, 0x61, 48, 0, 0, 0, 0, 0]),
            (one(|it| it.load(Size::Word, R8, R7, 8)), [0x61, 0x78, 8, 0, 0, 0, 0, 0]),
            (one(|it| it.load(Size::Half, R1, R7, 16)), [0x69, 0x71, 16, 0, 0, 0, 0, 0]),
            (one(|it| it.load(Size::Byte, R1, R2, 13)), [0x71, 0x21, 13, 0, 0, 0, 0, 0]),
            (one(|it| it.store(Size::Word, R10, -4, R1)), [0x63, 0x1a, 0xfc, 0xff, 0, 0, 0, 0]),
            (
                one(|it| it.store_value(Size::Word, R10, -4, 1)),
                [0x62, 0x0a, 0xfc, 0xff, 1, 0, 0, 0],
            ),
            (one(|it| it.fetch_add(R7, 0, R1)), [0xdb, 0x17, 0, 0, 1, 0, 0, 0]),
            (one(|it| it.atomic_add(R7, 536, R1)), [0xdb, 0x17, 0x18, 2, 0, 0, 0, 0]),
            (one(|it| it.call(82)), [0x85, 0, 0, 0, 82, 0, 0, 0]),
            (one(Assembler::exit), [0x95, 0, 0, 0, 0, 0, 0, 0]),
            (one(|it| it.load_map(R2, 7)), [0x18, 0x12, 0, 0, 7, 0, 0, 0]),
            (one(|it| it.load_map_value(R7, 7)), [0x18, 0x27, 0, 0, 7, 0, 0, 0]),
        ] {
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn jumps_are_counted_from_the_next_instruction() {
        let mut assembler = Assembler::new();
        let (back, on) = (assembler.label(), assembler.label());
        assembler.place(back);
        assembler.jump_if(Condition::Equal, R1, 0, on);
        assembler.load_wide(R2, 0x0102_0304_0506_0708);
        assembler.jump(back);
        assembler.place(on);
        assembler.jump_if_register(Condition::Greater, R0, R1, on);
        let offsets: Vec<i16> = assembler
            .finish()
            .iter()
            .map(|it| i16::from_le_bytes([it.to_le_bytes()[2], it.to_le_bytes()[3]]))
            .collect();
        assert_eq!(offsets, [3, 0, 0, -4, -1]);
    }

    #[test]
    #[should_panic(expected = "has a place")]
    fn a_label_without_a_place_is_noticed() {
        let mut assembler = Assembler::new();
        let nowhere = assembler.label();
        assembler.jump(nowhere);
        assembler.finish();
    }
}
