//! What an executable was built for, from its first bytes.

/// Bytes of a file's start that tell.
pub(crate) const ELF_PREFIX_LEN: usize = 20;

/// Architecture of an ELF executable or shared object.
///
/// # Source
/// System V ABI, generic part, chapter 4: `e_ident`, `e_type`, `e_machine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ElfMachine {
    /// `e_machine`.
    number: u16,
    is_64_bit: bool,
    is_big_endian: bool,
}

impl ElfMachine {
    /// Reads the start of a file; `None` if it is no ELF program.
    pub fn parse(start: &[u8]) -> Option<Self> {
        const EXECUTABLE: u16 = 2;
        const SHARED_OBJECT: u16 = 3;
        let start: &[u8; ELF_PREFIX_LEN] = start.first_chunk()?;
        let [0x7f, b'E', b'L', b'F', class @ 1..=2, data @ 1..=2, ..] = *start else { return None };
        let is_big_endian = data == 2;
        let half = |at: usize| {
            let bytes = [start[at], start[at + 1]];
            if is_big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
        };
        matches!(half(16), EXECUTABLE | SHARED_OBJECT).then(|| Self {
            number: half(18),
            is_64_bit: class == 2,
            is_big_endian,
        })
    }

    /// `e_machine`, the processor's number in the ELF specification.
    pub fn number(self) -> u16 {
        self.number
    }

    /// The architecture as image configurations name it, such as `amd64`;
    /// `None` for those that have no such name.
    pub fn architecture(self) -> Option<&'static str> {
        Some(match (self.number, self.is_64_bit, self.is_big_endian) {
            (3, false, false) => "386",
            (62, _, false) => "amd64",
            (40, false, false) => "arm",
            (183, true, false) => "arm64",
            (243, true, false) => "riscv64",
            (258, true, false) => "loong64",
            (22, true, true) => "s390x",
            (21, true, true) => "ppc64",
            (21, true, false) => "ppc64le",
            (8, false, true) => "mips",
            (8, false, false) => "mipsle",
            (8, true, true) => "mips64",
            (8, true, false) => "mips64le",
            _ => return None,
        })
    }

    /// Packs it into a number other than 0.
    pub(crate) fn to_code(self) -> u32 {
        1 << 18 | u32::from(self.is_64_bit) << 17 | u32::from(self.is_big_endian) << 16 | u32::from(self.number)
    }

    /// Undoes [`Self::to_code`].
    pub(crate) fn from_code(code: u32) -> Option<Self> {
        (code >> 18 == 1).then_some(Self {
            number: (code & 0xffff) as u16,
            is_64_bit: code & 1 << 17 != 0,
            is_big_endian: code & 1 << 16 != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(class: u8, data: u8, kind: u16, machine: u16) -> Vec<u8> {
        let mut bytes = vec![0x7f, b'E', b'L', b'F', class, data, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for half in [kind, machine] {
            bytes.extend(if data == 2 { half.to_be_bytes() } else { half.to_le_bytes() });
        }
        bytes
    }

    #[test]
    fn programs_tell_their_architecture_and_other_files_none() {
        let architecture = |bytes: &[u8]| ElfMachine::parse(bytes).and_then(ElfMachine::architecture);
        assert_eq!(architecture(&header(2, 1, 3, 62)), Some("amd64"));
        assert_eq!(architecture(&header(2, 1, 2, 183)), Some("arm64"));
        assert_eq!(architecture(&header(2, 2, 2, 22)), Some("s390x"));
        assert_eq!(architecture(&header(2, 1, 2, 21)), Some("ppc64le"));
        assert_eq!(architecture(&header(2, 1, 1, 62)), None, "object file");
        assert_eq!(architecture(&header(3, 1, 2, 62)), None, "unknown class");
        assert_eq!(architecture(&header(2, 1, 2, 62)[..19]), None, "too short");
        assert_eq!(architecture(b"#!/bin/sh\nexec true\n"), None);
        let machine = ElfMachine::parse(&header(1, 2, 2, 8)).unwrap();
        assert_eq!(ElfMachine::from_code(machine.to_code()), Some(machine));
        assert_eq!(ElfMachine::from_code(0), None);
    }
}
