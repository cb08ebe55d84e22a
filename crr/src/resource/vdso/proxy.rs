//! Proxies: the code of a vDSO of another kernel, as a restore has left it in a task, and how a dump knows it again.
//!
//! A proxy says so in the part of its ELF identification that means nothing (EI_PAD), and where its *ledger* lies: an area that says for
//! each proxy of the task what it was before. Nothing is believed that is not as the restore left it.

use super::Piece;
use crate::sys::vm::{self, Remote};
use anyhow::{Context, Result};
use images::id::PAGE_SIZE;
use images::memory::{Backing, Vdso, Vma, vm as flag};
use images::{Abi, Addr, Pid, VdsoId};
use serde::{Deserialize, Serialize};
use shared::range::{Range, page_align};

/// Where EI_PAD begins in an ELF header, and its length.
const PAD: usize = 9;
const PAD_LEN: usize = 7;
/// Its first bytes in a proxy; the other four are the distance to the ledger in pages, a signed number.
const MARK: [u8; 3] = *b"crr";
/// How a ledger begins, with the version of what follows.
const MAGIC: [u8; 8] = *b"crrvdso2";
/// Magic, length and checksum of what follows.
const HEAD: usize = 16;

const PROT_READ: u32 = 1;
const PROT_WRITE: u32 = 2;
const PROT_EXEC: u32 = 4;

/// What the task had where proxies are now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ledger {
    pub(super) proxies: Vec<Proxy>,
    /// The running kernel's vDSO was put where the task had nothing.
    pub(super) parked: bool,
    /// Bytes of the ways right behind this area, by which proxies lead to a vDSO that stayed where exec put it; 0 if there are none.
    pub(super) ways: u64,
}

/// One proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Proxy {
    /// Where it lies.
    pub(super) at: u64,
    /// Checksum of its bytes as they are now, little-endian.
    pub(super) checksum: [u8; 4],
    /// Its bytes as they were.
    pub(super) image: Vec<u8>,
    /// The areas that were around it.
    pub(super) beside: Vec<Piece>,
    /// [`flag::PARKED`].
    pub(super) parked: bool,
}

impl Ledger {
    /// The bytes of its area.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let body = postcard::to_allocvec(self).context("write down what a proxy was")?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(u32::try_from(body.len())?.to_le_bytes());
        bytes.extend(crc32c::crc32c(&body).to_le_bytes());
        bytes.extend(body);
        bytes.resize(usize::try_from(page_align(bytes.len() as u64))?, 0);
        Ok(bytes)
    }

    fn decode(bytes: &[u8]) -> Option<(Self, u64)> {
        let len = length(bytes)?;
        let body = bytes.get(HEAD..HEAD + len)?;
        if bytes[12..HEAD] != crc32c::crc32c(body).to_le_bytes() {
            return None;
        }
        Some((postcard::from_bytes(body).ok()?, page_align((HEAD + len) as u64)))
    }
}

/// Bytes of a ledger behind its head.
fn length(head: &[u8]) -> Option<usize> {
    let rest = head.strip_prefix(&MAGIC)?;
    Some(u32::from_le_bytes(rest.get(..4)?.try_into().ok()?) as usize)
}

/// Marks a proxy that lies at `at`.
pub(super) fn mark(image: &mut [u8], at: u64, ledger: u64) -> Result<()> {
    let pages = (ledger.cast_signed() - at.cast_signed()) / PAGE_SIZE.cast_signed();
    let pad = image.get_mut(PAD..PAD + PAD_LEN).context("no ELF header")?;
    pad[..MARK.len()].copy_from_slice(&MARK);
    pad[MARK.len()..].copy_from_slice(&i32::try_from(pages).context("the ledger is too far")?.to_le_bytes());
    Ok(())
}

/// Where the ledger of a proxy lies that begins like this.
fn ledger_of(head: &[u8], at: u64) -> Option<u64> {
    let pad = head.strip_prefix(b"\x7fELF").and_then(|_| head.get(PAD..PAD + PAD_LEN))?;
    let pages = i32::from_le_bytes(pad.strip_prefix(&MARK)?.try_into().ok()?);
    at.checked_add_signed(i64::from(pages) * PAGE_SIZE.cast_signed())
}

/// Puts what the task had before in the place of proxies, and takes what belongs to them alone out.
///
/// # Errors
/// If its memory cannot be read.
pub(crate) fn recognise(pid: Pid, abi: Abi, vmas: &mut Vec<Vma>, vdsos: &mut Vec<Vdso>) -> Result<()> {
    let Some(at) = find_ledger(pid, vmas)? else { return Ok(()) };
    let mut head = [0; HEAD];
    if vm::read_exact(pid, Addr(at), &mut head).is_err() {
        return Ok(());
    }
    let Some(len) = length(&head) else { return Ok(()) };
    let mut bytes = vec![0; HEAD + len];
    if vm::read_exact(pid, Addr(at), &mut bytes).is_err() {
        return Ok(());
    }
    let Some((ledger, len)) = Ledger::decode(&bytes) else { return Ok(()) };
    let mut wanted = vmas.clone();
    for proxy in ledger.proxies {
        let mut now = vec![0; proxy.image.len()];
        let same = vm::read_exact(pid, Addr(proxy.at), &mut now).is_ok()
            && crc32c::crc32c(&now).to_le_bytes() == proxy.checksum;
        let len = proxy.image.len() as u64;
        // Where the program has changed something, all of it is the program's.
        if !same || !replace(&mut wanted, Range::new(proxy.at, len), PROT_READ | PROT_EXEC) {
            return Ok(());
        }
        let flags = if proxy.parked { flag::PARKED } else { 0 };
        let id = record(vdsos, Vdso { abi, image: proxy.image })?;
        let code = Piece { start: proxy.at, len, backing: Backing::Vdso(id), prot: PROT_READ | PROT_EXEC };
        wanted.push(code.vma(flags));
        for piece in proxy.beside {
            if replace(&mut wanted, Range::new(piece.start, piece.len), PROT_READ) {
                wanted.push(piece.vma(flags));
            }
        }
    }
    let ways = Range::new(at + len, ledger.ways);
    if !replace(&mut wanted, Range::new(at, len), PROT_READ)
        || !ways.is_empty() && !replace(&mut wanted, ways, PROT_READ | PROT_EXEC)
    {
        return Ok(());
    }
    wanted.sort_by_key(|vma| vma.start);
    if ledger.parked {
        for vma in wanted.iter_mut().filter(|vma| vmas.contains(vma) && super::is_from_kernel(vma)) {
            vma.flags |= flag::PARKED;
        }
    }
    *vmas = wanted;
    Ok(())
}

/// The index of a vDSO in the list, which has each once.
pub(crate) fn record(vdsos: &mut Vec<Vdso>, vdso: Vdso) -> Result<VdsoId> {
    let found = vdsos.iter().position(|known| *known == vdso);
    let index = found.unwrap_or_else(|| {
        vdsos.push(vdso);
        vdsos.len() - 1
    });
    Ok(VdsoId(u32::try_from(index)?))
}

/// Where the ledger of a task lies that has proxies. Few tasks have anonymous code that they cannot write to, so there is mostly
/// nothing to look at.
fn find_ledger(pid: Pid, vmas: &[Vma]) -> Result<Option<u64>> {
    /// The kernel's UIO_MAXIOV.
    const AT_ONCE: usize = 1024;
    const HEAD: usize = 16;
    let code: Vec<u64> = (vmas.iter())
        .filter(|vma| vma.backing == Backing::Anonymous && vma.prot == PROT_READ | PROT_EXEC)
        .map(|vma| vma.start.0)
        .collect();
    for some in code.chunks(AT_ONCE) {
        let mut heads = vec![0; some.len() * HEAD];
        let remote: Vec<Remote> = some.iter().map(|&at| Remote::new(Addr(at), HEAD)).collect();
        let read = vm::read(pid, &mut heads, &remote).context("read the beginning of code")?;
        let found = heads[..read].chunks_exact(HEAD).zip(some).find_map(|(head, &at)| ledger_of(head, at));
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Cuts a range out of areas: plain anonymous memory of this protection, all of it. Areas of which something is left keep that. Nothing is
/// done, and false returned, if the range is something else.
fn replace(vmas: &mut Vec<Vma>, range: Range, prot: u32) -> bool {
    let inside = |vma: &Vma| vma.start.0 < range.end && range.start < vma.end.0;
    let mut at = range.start;
    for vma in vmas.iter().filter(|vma| inside(vma)) {
        let plain =
            vma.backing == Backing::Anonymous && vma.prot & (PROT_READ | PROT_WRITE | PROT_EXEC) == prot;
        if !plain || vma.start.0 > at {
            return false;
        }
        at = vma.end.0;
    }
    if at < range.end {
        return false;
    }
    let mut left = Vec::with_capacity(vmas.len() + 1);
    for vma in vmas.drain(..) {
        if !inside(&vma) {
            left.push(vma);
            continue;
        }
        if vma.start.0 < range.start {
            left.push(Vma { end: Addr(range.start), ..vma.clone() });
        }
        if vma.end.0 > range.end {
            left.push(Vma { start: Addr(range.end), ..vma });
        }
    }
    *vmas = left;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(start: u64, end: u64, prot: u32) -> Vma {
        Vma { start: Addr(start), end: Addr(end), prot, flags: 0, backing: Backing::Anonymous }
    }

    #[test]
    fn a_ledger_is_read_as_it_was_written() {
        let beside = vec![Piece { start: 0xe000, len: 0x1000, backing: Backing::Vvar, prot: 1 }];
        let proxy = Proxy { at: 0xf000, checksum: [7; 4], image: vec![1; 0x1000], beside, parked: false };
        let ledger = Ledger { proxies: vec![proxy], parked: true, ways: 0x1000 };
        let mut bytes = ledger.encode().unwrap();
        assert_eq!(bytes.len() % 4096, 0);
        assert_eq!(Ledger::decode(&bytes), Some((ledger, bytes.len() as u64)));
        bytes[100] ^= 1;
        assert_eq!(Ledger::decode(&bytes), None);
    }

    #[test]
    fn a_proxy_leads_to_its_ledger() {
        let mut image = vec![0; 64];
        image[..4].copy_from_slice(b"\x7fELF");
        assert_eq!(ledger_of(&image, 0x7000_0000), None);
        for ledger in [0x6000_0000, 0x7100_0000] {
            mark(&mut image, 0x7000_0000, ledger).unwrap();
            assert_eq!(ledger_of(&image, 0x7000_0000), Some(ledger));
        }
        assert!(mark(&mut image, 0x7000_0000, 0x7000_0000 + (1 << 45)).is_err());
    }

    #[test]
    fn only_what_is_all_there_is_cut_out() {
        let vmas = || vec![area(0x1000, 0x4000, 1), area(0x4000, 0x5000, 1), area(0x6000, 0x7000, 1)];
        let mut cut = vmas();
        assert!(replace(&mut cut, Range { start: 0x2000, end: 0x5000 }, 1));
        assert_eq!(cut, [area(0x1000, 0x2000, 1), area(0x6000, 0x7000, 1)]);
        for (start, end, prot) in [(0x4000, 0x7000, 1), (0x2000, 0x3000, 5), (0x8000, 0x9000, 1)] {
            let mut kept = vmas();
            assert!(!replace(&mut kept, Range { start, end }, prot), "{start:#x}");
            assert_eq!(kept, vmas());
        }
    }
}
