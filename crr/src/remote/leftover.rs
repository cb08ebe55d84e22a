//! Areas of executors whose crr was killed: no part of the task, so they are not stored, and the next executor
//! takes them out before it puts in its own. So a task never has more than those of one dump, however many were killed.

use super::code::{assemble, layout};
use super::{PROT_EXEC, PROT_READ, PROT_WRITE};
use crate::proc::smaps::Area;
use crate::sys::vm;
use images::{Abi, Addr, Pid};

/// Whether an area of a task is one: mapped as [`super::Executor::open`] does, with the executor's code in it. A crr killed
/// before it could write the code leaves nothing but zeros, and so does one that may not; no program asks for just this size with just
/// one of these protections and then leaves it untouched.
#[must_use]
pub fn is_leftover(pid: Pid, area: &Area<'_>) -> bool {
    let mapped_alike = area.end - area.start == layout::SIZE
        && (area.prot == PROT_READ | PROT_WRITE | PROT_EXEC || area.prot == PROT_READ)
        && area.shared
        && area.offset == 0
        && area.name == b"/dev/zero (deleted)";
    if !mapped_alike {
        return false;
    }
    let start = Addr(area.start);
    let mut bytes = vec![0u8; usize::try_from(layout::SIZE).unwrap_or(0)];
    vm::read_exact(pid, start, &mut bytes).is_ok() && holds_executor(&bytes, start)
}

fn holds_executor(bytes: &[u8], start: Addr) -> bool {
    let code = usize::try_from(layout::CODE).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
    [Abi::X86_64, Abi::Ia32].into_iter().any(|abi| code.starts_with(&assemble(abi, start)))
        || bytes.iter().all(|byte| *byte == 0)
}

/// Whether an address lies in one of these areas.
#[must_use]
pub fn in_leftover(leftovers: &[Addr], at: Addr) -> bool {
    leftovers.iter().any(|area| (area.0..area.0 + layout::SIZE).contains(&at.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executor_is_known_by_its_code() {
        let start = Addr(0xf000_0000);
        let mut bytes = vec![0u8; usize::try_from(layout::SIZE).unwrap()];
        assert!(holds_executor(&bytes, start), "untouched");
        bytes[0] = 1;
        assert!(!holds_executor(&bytes, start), "of the task");
        let at = usize::try_from(layout::CODE).unwrap();
        for abi in [Abi::X86_64, Abi::Ia32] {
            let code = assemble(abi, start);
            bytes[at..at + code.len()].copy_from_slice(&code);
            assert!(holds_executor(&bytes, start), "{abi}");
            bytes[at + code.len() - 1] ^= 1;
            assert!(!holds_executor(&bytes, start), "{abi}: other code");
        }
    }
}
