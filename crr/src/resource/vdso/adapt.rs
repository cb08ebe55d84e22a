//! Restore: fits the vDSOs of all address spaces to the running kernel, in the records, before anything is planned.

use super::proxy::{Ledger, Proxy, mark, record};
use super::redirect::{REACH, Target, redirect};
use super::step_out::is_inside;
use super::symbols::{Function, Functions, functions};
use super::{Piece, is_from_kernel, place};
use crate::fault::{self, Point};
use crate::machine::Live;
use crate::refusal::Refusals;
use crate::restore::Lives;
use crate::store::{Checkpoint, Pages};
use anyhow::{Context, Result};
use images::Abi;
use images::id::PAGE_SIZE;
use images::memory::{Backing, Space, Vdso, Vma, vm as flag};
use images::task::Task;
use images::thread::Thread;
use shared::op::WAY_LEN;
use shared::plan::{Written, hole};
use shared::range::{Range, page_align};

const PROT_READ: u32 = 1;
const PROT_EXEC: u32 = 4;

/// Fits all address spaces. Returns what is to be written to each: code that no file and no page of the images has.
///
/// # Errors
/// If the pages cannot be read, or the running kernel's vDSO is not understood.
pub(crate) fn adapt(
    checkpoint: &mut Checkpoint,
    lives: &Lives,
    refusals: &mut Refusals,
) -> Result<Vec<Vec<Written>>> {
    let differs = fault::is_set(Point::VdsoDiffers);
    let mut written = Vec::with_capacity(checkpoint.memory.spaces.len());
    let tasks = &checkpoint.tree.tasks;
    let memory = &mut checkpoint.memory;
    for (space, task) in memory.spaces.iter_mut().zip(tasks) {
        let live = lives.get(&task.abi).context("the vDSO of this kernel is not known")?;
        let inside =
            tasks.iter().filter(|other| other.pid == task.pid || other.shares.memory == Some(task.pid));
        let threads: Vec<&Thread> = inside.flat_map(|task| &task.threads).collect();
        let one = One { task, threads, live, differs, pages: &checkpoint.pages };
        let fitted = one.fit(space, &mut memory.vdsos).with_context(|| format!("task {}: vDSO", task.pid))?;
        written.push(fitted.unwrap_or_else(|reason| {
            let comm = String::from_utf8_lossy(&task.threads[0].comm).into_owned();
            let reason = format!(
                "this kernel's differs from that of {}, and {reason}",
                checkpoint.inventory.kernel_release
            );
            refusals.task((task.pid, &comm), "vDSO", reason, Some("restore on the kernel of the dump"));
            Vec::new()
        }));
    }
    Ok(written)
}

/// A vDSO of an address space, with the areas beside it. Without code where the program has unmapped that.
#[derive(Clone, Debug, Default)]
struct Group {
    code: Option<Piece>,
    beside: Vec<Piece>,
    parked: bool,
}

/// The vDSOs of a space: each with what lies below it, down to the next.
fn groups(space: &Space) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut next = Group::default();
    for vma in space.vmas.iter().filter(|vma| is_from_kernel(vma)) {
        if matches!(vma.backing, Backing::Vdso(_)) {
            let parked = vma.flags & flag::PARKED != 0;
            groups.push(Group { code: Some(Piece::of(vma)), parked, ..std::mem::take(&mut next) });
        } else {
            next.beside.push(Piece::of(vma));
        }
    }
    match groups.last_mut() {
        Some(last) => last.beside.extend(next.beside),
        None if next.beside.is_empty() => {}
        None => groups.push(next),
    }
    groups
}

/// One address space.
struct One<'a> {
    task: &'a Task,
    /// All that run in it.
    threads: Vec<&'a Thread>,
    live: &'a Live,
    /// No vDSO is to count as the running kernel's.
    differs: bool,
    pages: &'a Pages,
}

impl One<'_> {
    /// Fits it. What is to be written, or why it does not work.
    fn fit(&self, space: &mut Space, vdsos: &mut Vec<Vdso>) -> Result<Result<Vec<Written>, String>> {
        let mut groups = groups(space);
        let mut own: Vec<usize> =
            (0..groups.len()).filter(|&index| self.is_live(&groups[index], vdsos)).collect();
        own.sort_by_key(|&index| groups[index].parked);
        let own = own.first().map(|&index| groups.remove(index));
        if groups.is_empty() {
            return Ok(Ok(Vec::new()));
        }
        // The kernel has handlers without a restorer return through it, and a C library that has found one makes such handlers.
        if self.task.abi == Abi::Ia32 && self.live.image.is_empty() {
            return Ok(Err("this one has none (vdso32=0), by which signal handlers would return".to_owned()));
        }
        let mut proxied = Vec::with_capacity(groups.len());
        for group in groups {
            let range = group.code.map(|code| Range::new(code.start, code.len));
            if !group.parked || range.is_some_and(|range| self.has_pointer(range)) {
                proxied.push(group);
            } else if let Some(range) = range
                && self.is_pointed_to(space, range)?
            {
                proxied.push(group);
            }
        }
        let mut vmas: Vec<Vma> = space.vmas.iter().filter(|vma| !is_from_kernel(vma)).cloned().collect();
        let written = if proxied.is_empty() {
            Vec::new()
        } else {
            match self.stand_in(space, vdsos, own.as_ref(), &proxied, &mut vmas)? {
                Ok(written) => written,
                Err(reason) => return Ok(Err(reason)),
            }
        };
        vmas.extend(own.iter().flat_map(|own| own.beside.iter().chain(&own.code)).map(|piece| piece.vma(0)));
        vmas.sort_by_key(|vma| vma.start);
        space.vmas = vmas;
        Ok(Ok(written))
    }

    /// Whether a group is that of the running kernel.
    fn is_live(&self, group: &Group, vdsos: &[Vdso]) -> bool {
        let image = |code: &Piece| match code.backing {
            Backing::Vdso(id) => vdsos.get(id.0 as usize).map(|vdso| &vdso.image),
            _ => None,
        };
        let same = group.code.as_ref().is_none_or(|code| image(code) == Some(&self.live.image));
        let fits = |piece: &Piece| {
            let index = if piece.backing == Backing::Vvar { 0 } else { 1 };
            self.live.special[index].len == piece.len
        };
        same && !self.differs && self.live.moves && group.beside.iter().all(fits)
    }

    /// Puts proxies into the areas, and the running kernel's vDSO if it has no place yet.
    fn stand_in(
        &self,
        space: &Space,
        vdsos: &mut Vec<Vdso>,
        own: Option<&Group>,
        proxied: &[Group],
        vmas: &mut Vec<Vma>,
    ) -> Result<Result<Vec<Written>, String>> {
        let abi = self.task.abi;
        let to_park = if own.is_some() || !self.live.moves { Vec::new() } else { self.live_pieces(vdsos)? };
        let low = to_park.iter().map(|piece| piece.start).min().unwrap_or(0);
        let high = to_park.iter().map(|piece| piece.start + piece.len).max().unwrap_or(0);
        // One that is parked already stays so, for the kernel after this one.
        let parked = !to_park.is_empty() || !self.live.moves || own.is_some_and(|own| own.parked);
        let mut ledger = Ledger { proxies: Vec::new(), parked, ways: 0 };
        for group in proxied {
            let Some(code) = group.code else { continue };
            let Backing::Vdso(id) = code.backing else { continue };
            let image = vdsos.get(id.0 as usize).context("no image")?.image.clone();
            let beside = group.beside.clone();
            ledger.proxies.push(Proxy {
                at: code.start,
                checksum: [0; 4],
                image,
                beside,
                parked: group.parked,
            });
        }
        vmas.extend(proxied.iter().flat_map(|group| &group.beside).map(Piece::plain));
        if ledger.proxies.is_empty() {
            return Ok(Ok(Vec::new()));
        }
        let mut functions =
            if self.live.image.is_empty() { Functions::new() } else { functions(&self.live.image)? };
        let ways: Vec<u64> = if !self.live.moves { lay_out_ways(&mut functions) } else { Vec::new() };
        ledger.ways = page_align(ways.len() as u64 * WAY_LEN);
        let ledger_len = ledger.encode()?.len() as u64;
        let within = self.within(&ledger.proxies);
        let Some(ledger_at) = place::choose(space, within, ledger_len + ledger.ways + (high - low)) else {
            return Ok(Err("its address space has no room for this one".to_owned()));
        };
        let ways_at = ledger_at + ledger_len;
        let moved = |piece: &Piece| Piece { start: piece.start - low + ways_at + ledger.ways, ..*piece };
        let parked: Vec<Piece> = to_park.iter().map(moved).collect();
        let code_of =
            |pieces: &[Piece]| pieces.iter().find(|piece| matches!(piece.backing, Backing::Vdso(_))).copied();
        let own_at = own.map_or_else(|| code_of(&parked), |own| own.code).map(|code| code.start);
        let live_at = own_at.or_else(|| (ledger.ways > 0).then_some(ways_at));
        let target = live_at.map(|at| Target { functions: &functions, at });
        let mut written = Vec::with_capacity(ledger.proxies.len() + 2);
        if ledger.ways > 0 {
            let prot = PROT_READ | PROT_EXEC;
            let area = Piece { start: ways_at, len: ledger.ways, prot, backing: Backing::Anonymous };
            vmas.push(area.vma(0));
            written.push(Written::Ways { at: area.start, len: area.len, functions: ways });
        }
        for proxy in &mut ledger.proxies {
            if let Some(tid) = self.inside(proxy)? {
                return Ok(Err(format!("thread {tid} stands in the middle of its code")));
            }
            let mut bytes = match redirect(abi, &proxy.image, proxy.at, target) {
                Ok(bytes) => bytes,
                Err(reason) => return Ok(Err(format!("{reason:#}"))),
            };
            mark(&mut bytes, proxy.at, ledger_at)?;
            proxy.checksum = crc32c::crc32c(&bytes).to_le_bytes();
            let prot = PROT_READ | PROT_EXEC;
            let code = Piece { start: proxy.at, len: bytes.len() as u64, prot, backing: Backing::Anonymous };
            vmas.push(code.vma(0));
            written.push(Written::Bytes { at: proxy.at, prot, bytes });
        }
        let bytes = ledger.encode()?;
        let area = Piece { start: ledger_at, len: ledger_len, prot: PROT_READ, backing: Backing::Anonymous };
        vmas.push(area.vma(0));
        vmas.extend(parked.iter().map(|piece| piece.vma(0)));
        written.push(Written::Bytes { at: ledger_at, prot: PROT_READ, bytes });
        Ok(Ok(written))
    }

    /// The areas of the running kernel, as if its vDSO lay at [`BASE`].
    fn live_pieces(&self, vdsos: &mut Vec<Vdso>) -> Result<Vec<Piece>> {
        if self.live.image.is_empty() {
            return Ok(Vec::new());
        }
        let id = record(vdsos, Vdso { abi: self.task.abi, image: self.live.image.clone() })?;
        let kinds = [Backing::Vvar, Backing::VvarVclock, Backing::Vdso(id)];
        let areas = self.live.special.iter().zip(kinds).filter(|(area, _)| area.len != 0);
        let piece = |(area, backing): (&shared::proto::SpecialArea, Backing)| {
            let prot = if matches!(backing, Backing::Vdso(_)) { PROT_READ | PROT_EXEC } else { PROT_READ };
            Piece { start: BASE.wrapping_add_signed(area.offset), len: area.len, prot, backing }
        };
        Ok(areas.map(piece).collect())
    }

    /// Where the running kernel's may lie: within reach of all proxies.
    fn within(&self, proxies: &[Proxy]) -> Range {
        /// Above it, addresses are small negative numbers, which every program has.
        const HIGHEST: u64 = 0xfe00_0000;
        let limit = Range { start: 0, end: hole::task_size(self.task) - PAGE_SIZE };
        if self.task.abi == Abi::Ia32 {
            return Range { end: limit.end.min(HIGHEST), ..limit };
        }
        proxies.iter().fold(limit, |within, proxy| Range {
            start: within.start.max(proxy.at.saturating_sub(REACH)),
            end: within.end.min(proxy.at.saturating_add(REACH)),
        })
    }

    /// A thread that is in the middle of a function, which would read data that is not there.
    fn inside(&self, proxy: &Proxy) -> Result<Option<i32>> {
        let functions = functions(&proxy.image)?;
        let len = proxy.image.len() as u64;
        let stands =
            |thread: &&&Thread| thread.exited.is_none() && is_inside(&thread.regs, len, &functions, proxy.at);
        Ok(self.threads.iter().find(stands).map(|thread| thread.tid))
    }

    /// Whether a register holds an address in a range.
    fn has_pointer(&self, range: Range) -> bool {
        let holds = |thread: &&Thread| {
            let values = thread.regs.0.iter().flat_map(|&value| [value, value & 0xffff_ffff]);
            values.into_iter().any(|value| (range.start..range.end).contains(&value))
        };
        self.threads.iter().any(holds)
    }

    /// Whether a word of its private memory is an address in a range.
    fn is_pointed_to(&self, space: &Space, range: Range) -> Result<bool> {
        /// Pages that are read at once.
        const CHUNK: u64 = 256;
        let mut buffer = vec![0; usize::try_from(CHUNK * PAGE_SIZE)?];
        for run in &space.runs {
            for first in (0..run.pages).step_by(usize::try_from(CHUNK)?) {
                let len = usize::try_from((run.pages - first).min(CHUNK) * PAGE_SIZE)?;
                let bytes = &mut buffer[..len];
                self.pages.read_exact_at(bytes, (run.first_page + first) * PAGE_SIZE)?;
                if points_into(self.task.abi, bytes, range) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// Gives each function of the running kernel a place in a table of ways, and says where it is.
fn lay_out_ways(functions: &mut Functions) -> Vec<u64> {
    let mut ways: Vec<u64> = functions.values().map(|function| function.offset).collect();
    ways.sort_unstable();
    ways.dedup();
    for function in functions.values_mut() {
        // INVARIANT: it is one of those that the table was made of.
        let number = ways.iter().position(|&offset| offset == function.offset).unwrap_or(0);
        *function = Function { offset: number as u64 * WAY_LEN, size: WAY_LEN };
    }
    ways
}

/// Where the running kernel's vDSO is taken to lie until it has its place.
const BASE: u64 = 1 << 32;

/// Whether a word of the ABI is an address in a range.
fn points_into(abi: Abi, bytes: &[u8], range: Range) -> bool {
    let inside = |word: u64| word.wrapping_sub(range.start) < range.len();
    match abi {
        Abi::X86_64 => bytes.as_chunks().0.iter().any(|&word| inside(u64::from_le_bytes(word))),
        Abi::Ia32 => bytes.as_chunks().0.iter().any(|&word| inside(u32::from_le_bytes(word).into())),
    }
}
