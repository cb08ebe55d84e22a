//! Instructions that a task already has, by which its first and last remote call are made.
//!
//! One is enough to make a call. Two more make it safe: a call followed by `ret`, and the way into
//! rt_sigreturn, so that a thread that nobody traces any more finds back by a frame on its stack ([`super::frame`]). In
//! ia32 all of it lies in the vDSO; in x86_64 in ld.so, in libc or in a static program.

use crate::sys::vm;
use images::{Abi, Addr, Pid};
use memchr::memmem;
use std::collections::HashMap;

/// Places in a task's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gadget {
    /// `syscall` or `int 0x80`.
    pub syscall: Addr,
    /// The way back without a tracer, where the code has one.
    pub escape: Option<Escape>,
}

/// Places that lead from a call into rt_sigreturn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Escape {
    /// A system call instruction, after which [`popped_words`] are popped before a `ret`.
    pub syscall: Addr,
    /// Code that calls rt_sigreturn.
    pub sigreturn: Addr,
}

/// `int 0x80; pop ebp; pop edx; pop ecx; ret` ends `__kernel_vsyscall` of the ia32 vDSO.
const RETURNING_32: &[u8] = &[0xcd, 0x80, 0x5d, 0x5a, 0x59, 0xc3];
/// `mov eax, 173; int 0x80`: `__kernel_rt_sigreturn`.
const SIGRETURN_32: &[u8] = &[0xb8, 0xad, 0, 0, 0, 0xcd, 0x80];
/// `syscall; ret`.
const RETURNING_64: &[u8] = &[0x0f, 0x05, 0xc3];
/// `mov rax, 15; syscall`: `__restore_rt` of a libc.
const SIGRETURN_64: &[u8] = &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];

/// The instruction that enters the kernel.
const fn instruction(abi: Abi) -> &'static [u8] {
    match abi {
        Abi::X86_64 => &[0x0f, 0x05],
        Abi::Ia32 => &[0xcd, 0x80],
    }
}

const fn returning(abi: Abi) -> &'static [u8] {
    match abi {
        Abi::X86_64 => RETURNING_64,
        Abi::Ia32 => RETURNING_32,
    }
}

const fn sigreturn(abi: Abi) -> &'static [u8] {
    match abi {
        Abi::X86_64 => SIGRETURN_64,
        Abi::Ia32 => SIGRETURN_32,
    }
}

/// Words that the code at [`Escape::syscall`] pops between the call and its `ret`.
pub(super) const fn popped_words(abi: Abi) -> u64 {
    match abi {
        Abi::X86_64 => 0,
        Abi::Ia32 => 3,
    }
}

/// Whether a task has `__kernel_vsyscall` of the ia32 vDSO at an address, with the quick way into the kernel: push ecx; push edx; push ebp; then
/// mov ebp, esp; sysenter, or mov ebp, ecx; syscall; then [`RETURNING_32`], where the kernel returns to behind the `int 0x80`. `int 0x80` is
/// many times as slow where a hypervisor has a part in it.
#[must_use]
pub fn is_vsyscall(pid: Pid, at: Addr) -> bool {
    const NOP: [u8; 3] = [0x0f, 0x1f, 0x00];
    const QUICK: [[u8; 7]; 2] =
        [[0x51, 0x52, 0x55, 0x89, 0xe5, 0x0f, 0x34], [0x51, 0x52, 0x55, 0x89, 0xcd, 0x0f, 0x05]];
    let mut code = [0; 16];
    if vm::read_exact(pid, at, &mut code).is_err() {
        return false;
    }
    let code = code.strip_prefix(&NOP).unwrap_or(&code);
    let returns =
        |quick: &[u8; 7]| code.strip_prefix(quick).is_some_and(|rest| rest.starts_with(RETURNING_32));
    QUICK.iter().any(returns)
}

/// Executable memory of a task.
#[derive(Clone, Copy, Debug)]
pub struct CodeArea {
    /// First byte.
    pub start: Addr,
    /// Bytes.
    pub size: u64,
    /// What it is a copy of, equal for all areas with the same contents: the search is then made once.
    pub key: Option<(u32, u64)>,
}

/// Offsets in an area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Offsets {
    syscall: Option<u64>,
    returning: Option<u64>,
    sigreturn: Option<u64>,
}

/// What earlier searches found.
#[derive(Debug, Default)]
pub struct Cache(HashMap<(u32, u64), Offsets>);

impl Gadget {
    /// Looks through the executable areas of a task, in the order given, until everything is found.
    #[must_use]
    pub fn find(pid: Pid, abi: Abi, areas: &[CodeArea], cache: &mut Cache) -> Option<Self> {
        let (mut syscall, mut returning_at, mut sigreturn_at) = (None, None, None);
        for area in areas {
            let offsets = match area.key.and_then(|key| cache.0.get(&key)) {
                Some(known) => *known,
                None => {
                    let found = search(pid, abi, area);
                    if let Some(key) = area.key {
                        cache.0.insert(key, found);
                    }
                    found
                }
            };
            // A task may have changed its copy of a file: what is used is looked at again.
            let check = |offset: Option<u64>, bytes| {
                offset.map(|offset| area.start.offset(offset)).filter(|at| is_at(pid, *at, bytes))
            };
            syscall = syscall.or_else(|| check(offsets.syscall, instruction(abi)));
            returning_at = returning_at.or_else(|| check(offsets.returning, returning(abi)));
            sigreturn_at = sigreturn_at.or_else(|| check(offsets.sigreturn, sigreturn(abi)));
            if let (Some(syscall), Some(returning), Some(sigreturn)) = (syscall, returning_at, sigreturn_at) {
                return Some(Self { syscall, escape: Some(Escape { syscall: returning, sigreturn }) });
            }
        }
        syscall.map(|syscall| Self { syscall, escape: None })
    }
}

fn is_at(pid: Pid, at: Addr, bytes: &[u8]) -> bool {
    let mut there = [0u8; 16];
    let there = &mut there[..bytes.len()];
    vm::read_exact(pid, at, there).is_ok() && there == bytes
}

/// Searches an area in chunks that overlap by the longest pattern.
fn search(pid: Pid, abi: Abi, area: &CodeArea) -> Offsets {
    const CHUNK: u64 = 0x1_0000;
    const OVERLAP: u64 = 16;
    let mut found = Offsets::default();
    let mut buffer = vec![0u8; 0x1_0010];
    let mut offset = 0;
    while offset < area.size {
        let len = usize::try_from((CHUNK + OVERLAP).min(area.size - offset)).unwrap_or(0);
        let at = area.start.offset(offset);
        let read = vm::read(pid, &mut buffer[..len], &[vm::Remote::new(at, len)]).unwrap_or(0);
        let code = &buffer[..read];
        let position = |bytes| memmem::find(code, bytes).map(|at| offset + at as u64);
        found.syscall = found.syscall.or_else(|| position(instruction(abi)));
        found.returning = found.returning.or_else(|| position(returning(abi)));
        found.sigreturn = found.sigreturn.or_else(|| position(sigreturn(abi)));
        if found.returning.is_some() && found.sigreturn.is_some() {
            break;
        }
        offset += CHUNK;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found in this very process, since a task may always read itself.
    #[test]
    fn places_are_found_and_remembered() {
        let mut code = vec![0x90u8; 0x2_0000];
        code[5..7].copy_from_slice(&[0xcd, 0x80]);
        // Across the border of two chunks.
        code[0xfffd..0x1_0003].copy_from_slice(RETURNING_32);
        code[0x1_8000..0x1_8007].copy_from_slice(SIGRETURN_32);
        let start = Addr(code.as_ptr().addr() as u64);
        let area = CodeArea { start, size: code.len() as u64, key: Some((1, 0)) };
        let pid = nix::unistd::getpid().as_raw();
        let mut cache = Cache::default();
        let expected = Gadget {
            syscall: start.offset(5),
            escape: Some(Escape { syscall: start.offset(0xfffd), sigreturn: start.offset(0x1_8000) }),
        };
        for _first_searched_then_remembered in 0..2 {
            assert_eq!(Gadget::find(pid, Abi::Ia32, &[area], &mut cache), Some(expected));
        }
        code[0x1_8000] = 0x90;
        let without = Gadget { escape: None, ..expected };
        assert_eq!(Gadget::find(pid, Abi::Ia32, &[area], &mut cache), Some(without));
        assert_eq!(Gadget::find(pid, Abi::X86_64, &[CodeArea { key: None, ..area }], &mut cache), None);
    }
}
