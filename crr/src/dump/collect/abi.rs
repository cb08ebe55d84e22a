//! Of which ABI a task is.

use crate::proc::Dir;
use crate::resource::Refuse;
use crate::sys::vm;
use anyhow::{Context, Result};
use images::memory::{Backing, Vdso, Vma};
use images::{Abi, Pid};

/// The ABI of a task, by the vDSO that exec gave it or, where it has none, by its program. Records the vDSO.
pub(in crate::dump) fn dump_vdso(
    pid: Pid,
    dir: &Dir,
    vmas: &[Vma],
    vdsos: &mut Vec<Vdso>,
    refuse: &mut Refuse<'_>,
) -> Result<Option<Abi>> {
    let mut found = vmas.iter().filter(|vma| vma.backing == Backing::Vdso);
    let Some(vma) = found.next() else {
        let mut header = [0u8; 64];
        let exe = dir.open("exe").context("open exe")?;
        nix::unistd::read(&exe, &mut header).context("read exe")?;
        return Ok(abi_of(&header, refuse));
    };
    if found.next().is_some() {
        refuse.because("vDSO", "mapped more than once");
    }
    let mut image = vec![0u8; usize::try_from(vma.end.0 - vma.start.0)?];
    vm::read_exact(pid, vma.start, &mut image).context("read the vDSO")?;
    let Some(abi) = abi_of(&image, refuse) else { return Ok(None) };
    match vdsos.iter().find(|vdso| vdso.abi == abi) {
        Some(vdso) if vdso.image == image => {}
        Some(_) => refuse.because("vDSO", format!("differs from that of another {abi} task of the tree")),
        None => vdsos.push(Vdso { abi, image }),
    }
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

/// `/proc/PID/auxv` up to its end mark: what follows is room that the kernel keeps.
pub(super) fn cut_auxv(auxv: &[u8], abi: Abi) -> &[u8] {
    let pair = if abi == Abi::X86_64 { 16 } else { 8 };
    let end = auxv.chunks_exact(pair).position(|entry| entry[..pair / 2].iter().all(|byte| *byte == 0));
    &auxv[..end.map_or(auxv.len(), |at| (at + 1) * pair)]
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

    #[test]
    fn auxv_ends_at_its_null_entry() {
        let mut words: Vec<u8> = [3u32, 0x1000, 0, 0, 0, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(cut_auxv(&words, Abi::Ia32).len(), 16);
        words = [3u64, 0x1000, 0, 0, 0, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(cut_auxv(&words, Abi::X86_64).len(), 32);
    }
}
