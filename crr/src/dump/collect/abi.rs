//! Of which ABI a task is.

use crate::proc::{Dir, auxv};
use crate::remote::is_vsyscall;
use crate::resource::{Refuse, vdso};
use crate::sys::vm;
use anyhow::{Context, Result};
use images::memory::{Backing, Vdso, Vma};
use images::{Abi, Addr, Pid};

/// The ABI of a task, by the vDSO that exec gave it or, where it has none, by its program. Records the vDSO, and those of other kernels
/// that the task had before.
pub(in crate::dump) fn dump_vdso(
    pid: Pid,
    dir: &Dir,
    vmas: &mut Vec<Vma>,
    vdsos: &mut Vec<Vdso>,
    refuse: &mut Refuse<'_>,
) -> Result<Option<Abi>> {
    let mut found = vmas.iter_mut().filter(|vma| matches!(vma.backing, Backing::Vdso(_)));
    let abi = match found.next() {
        Some(vma) => {
            let mut image = vec![0u8; usize::try_from(vma.end.0 - vma.start.0)?];
            vm::read_exact(pid, vma.start, &mut image).context("read the vDSO")?;
            let Some(abi) = abi_of(&image, refuse) else { return Ok(None) };
            vma.backing = Backing::Vdso(vdso::record(vdsos, Vdso { abi, image })?);
            abi
        }
        None => {
            let mut header = [0u8; 64];
            let exe = dir.open("exe").context("open exe")?;
            nix::unistd::read(&exe, &mut header).context("read exe")?;
            let Some(abi) = abi_of(&header, refuse) else { return Ok(None) };
            abi
        }
    };
    if found.next().is_some() {
        refuse.because("vDSO", "mapped more than once");
    }
    vdso::recognise(pid, abi, vmas, vdsos)?;
    Ok(Some(abi))
}

/// Why x32 tasks are refused.
const X32: &str =
    "x32 is not supported: a third ABI, 64-bit code with 32-bit pointers, which few kernels are built with";

/// The ABI that an ELF header is for.
fn abi_of(header: &[u8], refuse: &mut Refuse<'_>) -> Option<Abi> {
    const CLASS_32: u8 = 1;
    const CLASS_64: u8 = 2;
    const EM_386: u8 = 3;
    const EM_X86_64: u8 = 62;
    match header {
        [0x7f, b'E', b'L', b'F', class, ..] if header.len() > 19 => match (*class, header[18], header[19]) {
            (CLASS_64, EM_X86_64, 0) => return Some(Abi::X86_64),
            (CLASS_32, EM_386, 0) => return Some(Abi::Ia32),
            (CLASS_32, EM_X86_64, 0) => refuse.because("ABI", X32),
            _ => refuse.because("ABI", "neither x86_64 nor ia32"),
        },
        _ => refuse.because("ABI", "neither x86_64 nor ia32: no ELF program"),
    }
    None
}

/// The quick way into the kernel of an ia32 task, told to it at exec. Behind it the kernel returns to where it believes its vDSO to be
/// (`vdso32_image.sym_int80_landing_pad`, do_fast_syscall_32() of arch/x86/entry), which is not where a proxy lies. Proxies count as
/// vDSOs here, but the entry point of one is a jump, so it is not taken for the quick way.
pub(super) fn find_vsyscall(pid: Pid, abi: Abi, auxv: &[u8], vmas: &[Vma]) -> Option<Addr> {
    const AT_SYSINFO: u64 = 32;
    const PROT_EXEC: u32 = 4;
    if abi != Abi::Ia32 {
        return None;
    }
    let at = Addr(auxv::entry(auxv, abi, AT_SYSINFO)?);
    let is_vdso = |vma: &Vma| {
        matches!(vma.backing, Backing::Vdso(_))
            && (vma.start..vma.end).contains(&at)
            && vma.prot & PROT_EXEC != 0
    };
    Some(at).filter(|&at| vmas.iter().any(is_vdso) && is_vsyscall(pid, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Refusals;

    #[test]
    fn the_abi_follows_from_the_elf_header() {
        let abi = |class, machine| {
            let mut header = [0u8; 64];
            header[..5].copy_from_slice(&[0x7f, b'E', b'L', b'F', class]);
            header[18] = machine;
            let mut refusals = Refusals::default();
            let abi = abi_of(&header, &mut Refuse::new(&mut refusals, 1, "a"));
            (abi, refusals.finish("dump").err().map(|refused| refused.refusals[0].reason.clone()))
        };
        assert_eq!(abi(2, 62), (Some(Abi::X86_64), None));
        assert_eq!(abi(1, 3), (Some(Abi::Ia32), None));
        assert_eq!(abi(1, 62), (None, Some(X32.into())));
        assert!(abi(2, 183).0.is_none());
    }
}
