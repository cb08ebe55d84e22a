//! Finding a system call instruction in a task.

use crate::sys::vm;
use images::{Abi, Addr, Pid};

/// Places in a task's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gadget {
    /// `syscall` or `int 0x80`.
    pub syscall: Addr,
}

/// The instruction that enters the kernel.
const fn instruction(abi: Abi) -> [u8; 2] {
    match abi {
        Abi::X86_64 => [0x0f, 0x05],
        Abi::Ia32 => [0xcd, 0x80],
    }
}

impl Gadget {
    /// Looks through code that lies at `start`.
    #[must_use]
    pub fn find(abi: Abi, start: Addr, code: &[u8]) -> Option<Self> {
        let at = code.windows(2).position(|two| two == instruction(abi))?;
        Some(Self { syscall: start.offset(at as u64) })
    }

    /// Looks through the executable areas of a task. The vDSO, where there is one, has what is needed
    /// on its two or three pages.
    #[must_use]
    pub fn find_in(pid: Pid, abi: Abi, areas: impl Iterator<Item = (Addr, u64)>) -> Option<Self> {
        const CHUNK: u64 = 0x1_0000;
        let mut buffer = vec![0u8; 0x1_0000];
        for (start, size) in areas {
            let mut offset = 0;
            while offset < size {
                let len = usize::try_from(CHUNK.min(size - offset)).unwrap_or(0);
                let at = start.offset(offset);
                let read = vm::read(pid, &mut buffer[..len], &[vm::Remote::new(at, len)]).unwrap_or(0);
                if let Some(gadget) = Self::find(abi, at, &buffer[..read]) {
                    return Some(gadget);
                }
                offset += CHUNK;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instruction_of_the_abi_is_found() {
        let code = [0x90, 0x0f, 0x05, 0xc3, 0xcd, 0x80, 0x5d];
        let at = |abi| Gadget::find(abi, Addr(0x1000), &code).map(|gadget| gadget.syscall);
        assert_eq!(at(Abi::X86_64), Some(Addr(0x1001)));
        assert_eq!(at(Abi::Ia32), Some(Addr(0x1004)));
        assert_eq!(Gadget::find(Abi::X86_64, Addr(0), &[0x0f]), None);
    }
}
