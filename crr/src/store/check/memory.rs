//! Address spaces, shared memory, vDSO images and the page map.

use super::{Check, attribute, ensure, inside, path};
use images::aio::{AioContext, EVENT_BYTES, between, entries};
use images::file::Files;
use images::id::PAGE_SIZE;
use images::memory::{
    AREA_NAME_MAX, AreaName, BLOCK_PAGES, Backing, CHUNK_PAGES, Guard, HugePage, Memory, Packing, Run,
    Shared, Space, Vma, vm,
};
use images::task::{Task, Tree};
use images::{Abi, Addr};
use shared::plan::{pkey, segment};

/// All bits that [`images::memory::vm`] names.
const VM_FLAGS: u32 = ((1 << 19) - 1) | vm::KEY;
/// PROT_READ, PROT_WRITE, PROT_EXEC.
const PROTECTION: u32 = 7;

pub(super) fn check(memory: &Memory, tree: &Tree, files: &Files) -> Check {
    check_pages(memory)?;
    let (spaces, tasks) = (memory.spaces.len(), tree.tasks.len());
    ensure!(spaces == tasks, "{spaces} address spaces for {tasks} tasks");
    check_vdsos(memory)?;
    for (index, shared) in memory.shared.iter().enumerate() {
        check_shared(shared, memory).map_err(inside(format_args!("shared#{index}")))?;
        check_segment(shared, &memory.shared[..index]).map_err(inside(format_args!("shared#{index}")))?;
    }
    for (space, task) in memory.spaces.iter().zip(&tree.tasks) {
        check_space(space, task, memory, files).map_err(inside(format_args!("task {}", task.pid)))?;
    }
    Ok(())
}

/// The memory map of a pre-dump: of the spaces there are only runs, which need not fit anything that is there by now.
pub(super) fn check_round(memory: &Memory) -> Check {
    check_pages(memory)?;
    ensure!(
        memory.block_pages == 1,
        "checksums of {} pages, others could not build on it",
        memory.block_pages
    );
    memory.spaces.iter().try_for_each(|space| check_runs(&space.runs, memory))
}

/// Bytes of `pages.img`.
pub(super) fn pages_size(memory: &Memory) -> Result<u64, String> {
    let Memory { first_page, page_count, packing, .. } = memory;
    let total = first_page.checked_add(*page_count).and_then(|pages| pages.checked_mul(PAGE_SIZE));
    let possible = total.is_some_and(|size| i64::try_from(size).is_ok());
    ensure!(possible, "{page_count} pages are impossible");
    let Some(packing) = packing else { return Ok(page_count * PAGE_SIZE) };
    Ok(packing.chunks.iter().map(|chunk| u64::from(chunk.size)).sum())
}

/// The page file: its size, its checksums, its chunks.
fn check_pages(memory: &Memory) -> Check {
    pages_size(memory)?;
    let Memory { page_count, block_pages, .. } = *memory;
    ensure!([1, BLOCK_PAGES].contains(&block_pages), "a checksum for {block_pages} pages");
    let (blocks, crcs) = (page_count.div_ceil(block_pages), memory.block_crcs.len());
    ensure!(blocks == crcs as u64, "{crcs} checksums for {blocks} blocks");
    memory.packing.as_ref().map_or(Ok(()), |packing| check_chunks(packing, page_count))
}

/// Chunks fill the file, in any order.
fn check_chunks(packing: &Packing, page_count: u64) -> Check {
    let (wanted, count) = (page_count.div_ceil(CHUNK_PAGES), packing.chunks.len());
    ensure!(wanted == count as u64, "{count} chunks for {wanted} times {CHUNK_PAGES} pages");
    for (first, chunk) in (0..).map(|chunk: u64| chunk * CHUNK_PAGES).zip(&packing.chunks) {
        let bytes = (page_count - first).min(CHUNK_PAGES) * PAGE_SIZE;
        let size = u64::from(chunk.size);
        ensure!((1..=bytes).contains(&size), "a chunk of {size} bytes for pages of {bytes}");
    }
    let mut places: Vec<_> =
        packing.chunks.iter().map(|chunk| (chunk.place, u64::from(chunk.size))).collect();
    places.sort_unstable();
    let mut end = 0;
    for (place, size) in places {
        ensure!(place == end, "a chunk at {place:#x}, the one before it ends at {end:#x}");
        end += size;
    }
    Ok(())
}

fn check_vdsos(memory: &Memory) -> Check {
    for (index, vdso) in memory.vdsos.iter().enumerate() {
        let size = vdso.image.len() as u64;
        ensure!(!memory.vdsos[..index].contains(vdso), "vdso#{index} is there twice");
        ensure!(
            size != 0 && size.is_multiple_of(PAGE_SIZE),
            "vdso#{index} has {size} bytes, not whole pages"
        );
    }
    Ok(())
}

fn check_shared(shared: &Shared, memory: &Memory) -> Check {
    ensure!(shared.size <= i64::MAX as u64 - PAGE_SIZE, "{:#x} bytes", shared.size);
    check_runs(&shared.runs, memory)?;
    let end = shared.runs.last().map_or(0, Run::end);
    ensure!(end <= shared.mapped_size(), "contents up to {end:#x} of {:#x}", shared.size);
    Ok(())
}

fn check_segment(shared: &Shared, before: &[Shared]) -> Check {
    let Some(segment) = &shared.segment else { return Ok(()) };
    let id = segment.id;
    ensure!(id >= 0 && shared.size > 0, "is no segment: id {id}, {} bytes", shared.size);
    let twice = before.iter().any(|other| other.segment.as_ref().is_some_and(|other| other.id == id));
    ensure!(!twice, "segment {id} occurs twice");
    ensure!(segment.mode & !0o3777 == 0, "mode {:#o}", segment.mode);
    Ok(())
}

fn check_space(space: &Space, task: &Task, memory: &Memory, files: &Files) -> Check {
    let mut last = 0;
    for vma in &space.vmas {
        check_vma(vma, task.abi, memory, files).map_err(inside(format_args!("{}-{}", vma.start, vma.end)))?;
        ensure!(vma.start.0 >= last, "{}-{}: begins below {last:#x}", vma.start, vma.end);
        last = vma.end.0;
    }
    attribute::check_areas(space)?;
    // The auxv is pairs of words, ended by AT_NULL.
    let pair = 2 * task.abi.word();
    ensure!((space.auxv.len() as u64).is_multiple_of(pair), "auxv of {} bytes", space.auxv.len());
    check_runs(&space.runs, memory)?;
    let mut vmas = space.vmas.iter().peekable();
    for run in &space.runs {
        while vmas.next_if(|vma| vma.end <= run.start).is_some() {}
        let holder = vmas.peek().filter(|vma| vma.start <= run.start && run.end() <= vma.end.0);
        let from = run.start;
        ensure!(
            holder.is_some_and(|vma| vma.backing.is_private()),
            "contents at {from}: no private memory of that extent"
        );
    }
    check_guards(space)?;
    check_keys(space)?;
    check_aio(space)?;
    check_names(space)
}

/// Each has its ring, and as many events as this says that there are.
fn check_aio(space: &Space) -> Check {
    let rings: Vec<&Vma> = space.vmas.iter().filter(|vma| vma.backing == Backing::AioRing).collect();
    let (count, known) = (rings.len(), space.aio.len());
    ensure!(count == known, "{known} AIO contexts for {count} rings");
    for (vma, context) in rings.into_iter().zip(&space.aio) {
        let AioContext { start, head, tail, events } = context;
        ensure!(*start == vma.start, "AIO context {start}: its ring is at {}", vma.start);
        let places = u32::try_from(entries(vma.end.0 - vma.start.0)).unwrap_or(u32::MAX);
        ensure!(*tail < places, "AIO context {start}: tail {tail} of {places} places");
        let unread = u64::from(between(*head, *tail, places)) * EVENT_BYTES;
        let bytes = events.len();
        ensure!(unread == bytes as u64, "AIO context {start}: {bytes} bytes of events, not {unread}");
    }
    Ok(())
}

/// Areas have keys that are allocated, or the one of memory that may only be executed.
fn check_keys(space: &Space) -> Check {
    let keys = space.keys;
    ensure!(keys & 1 == 0, "protection keys {keys:#x}");
    let strange = pkey::strange(space).next();
    strange.map_or(Ok(()), |vma| Err(format!("{}-{}: protection key {}", vma.start, vma.end, vma.key())))
}

fn check_names(space: &Space) -> Check {
    let mut vmas = space.vmas.iter();
    for AreaName { start, end, name } in &space.names {
        let vma = vmas.find(|vma| (vma.start, vma.end) == (*start, *end));
        let can_have = vma.is_some_and(|vma| matches!(vma.backing, Backing::Anonymous | Backing::Shared(..)));
        ensure!(can_have, "name of {start}-{end}: no area without a file, or out of order");
        let printable = name.iter().all(|byte| (b' '..=b'~').contains(byte));
        ensure!(printable && (1..=AREA_NAME_MAX).contains(&name.len()), "name of {start}-{end}: is none");
    }
    Ok(())
}

fn check_guards(space: &Space) -> Check {
    let mut last = 0;
    for Guard { start, end } in &space.guards {
        ensure!(
            start.0 % PAGE_SIZE == 0 && end.0 % PAGE_SIZE == 0,
            "guard {start}-{end}: is not page-aligned"
        );
        ensure!(start.0 >= last && start < end, "guard {start}-{end}: out of order");
        let at = space.vmas.partition_point(|vma| vma.end <= *start);
        let inside = space.vmas.get(at).is_some_and(|vma| vma.start <= *start && *end <= vma.end);
        ensure!(inside, "guard {start}-{end}: is not inside of one area");
        let next = space.runs.partition_point(|run| run.end() <= start.0);
        let filled = space.runs.get(next).is_some_and(|run| run.start < *end);
        ensure!(!filled, "guard {start}-{end}: has contents");
        last = end.0;
    }
    Ok(())
}

fn check_vma(vma: &Vma, abi: Abi, memory: &Memory, files: &Files) -> Check {
    let (Addr(start), Addr(end)) = (vma.start, vma.end);
    ensure!(start % PAGE_SIZE == 0 && end % PAGE_SIZE == 0, "is not page-aligned");
    ensure!(start < end, "is empty");
    ensure!(end <= abi.task_size(), "is beyond what an {abi} task can map");
    ensure!(vma.prot & !PROTECTION == 0, "protection {:#x}", vma.prot);
    ensure!(vma.flags & !VM_FLAGS == 0, "flags {:#x}", vma.flags);
    let from_kernel = matches!(vma.backing, Backing::Vdso(_) | Backing::Vvar | Backing::VvarVclock);
    ensure!(from_kernel || vma.flags & vm::PARKED == 0, "flags {:#x} of what is no vDSO", vma.flags);
    let huge = vma.flags & (vm::HUGE_2_MIB | vm::HUGE_1_GIB) != 0;
    ensure!(huge || !matches!(vma.backing, Backing::HugePages(_)), "has huge pages of no size");
    if huge {
        ensure!(vma.backing.is_private(), "flags {:#x} of memory that is not private", vma.flags);
        let fits = |page: HugePage| start % page.size() == 0 && end % page.size() == 0;
        ensure!(vma.huge().is_some_and(fits), "is not made of huge pages");
    }
    match vma.backing {
        Backing::Anonymous | Backing::AioRing | Backing::Vvar | Backing::VvarVclock => Ok(()),
        Backing::PrivateFile(id, offset) | Backing::SharedFile(id, offset) => {
            path(files, id)?;
            let kind = files.paths[id.0 as usize].mode & libc::S_IFMT;
            let maps = [libc::S_IFREG, libc::S_IFCHR].contains(&kind);
            ensure!(maps, "maps path#{}, which is no file", id.0);
            check_offset(offset, end - start)
        }
        Backing::Shared(id, offset) => {
            let known = memory.shared.len();
            ensure!((id.0 as usize) < known, "{id} of {known} shared objects");
            let beyond = segment::reaches_beyond(vma, &memory.shared);
            ensure!(beyond.is_none(), "reaches beyond the {:#x} bytes of {id}", beyond.unwrap_or(0));
            check_offset(offset, end - start)
        }
        Backing::HugePages(offset) => check_offset(offset, end - start),
        Backing::Vdso(id) => {
            let known = memory.vdsos.len();
            let vdso = memory.vdsos.get(id.0 as usize).ok_or_else(|| format!("{id} of {known} vDSOs"))?;
            ensure!(vdso.abi == abi, "{id} is one of {}", vdso.abi);
            let len = vdso.image.len() as u64;
            ensure!(len == end - start, "{id} has {len} bytes");
            Ok(())
        }
    }
}

fn check_offset(offset: u64, len: u64) -> Check {
    ensure!(offset.is_multiple_of(PAGE_SIZE), "offset {offset:#x} is not page-aligned");
    let end = offset.checked_add(len).and_then(|end| i64::try_from(end).ok());
    ensure!(end.is_some(), "offset {offset:#x} is no place in a file");
    Ok(())
}

/// Runs rise in address without overlap, and stay inside the page files.
pub(super) fn check_runs(runs: &[Run], memory: &Memory) -> Check {
    let mut address = 0;
    let count = memory.first_page + memory.page_count;
    for run in runs {
        let start = run.start;
        ensure!(start.0 % PAGE_SIZE == 0, "contents at {start}: not page-aligned");
        ensure!(run.pages > 0, "contents at {start}: no page");
        let inside = run.first_page.checked_add(run.pages).is_some_and(|last| last <= count);
        ensure!(inside, "contents at {start}: pages {}+{} of {count}", run.first_page, run.pages);
        // The page count is bounded by now, so that the product is.
        let end = start.0.checked_add(run.pages * PAGE_SIZE);
        let Some(end) = end else { return Err(format!("contents at {start}: end beyond all addresses")) };
        ensure!(start.0 >= address, "contents at {start}: out of order");
        address = end;
    }
    Ok(())
}
