//! Address spaces, shared memory, vDSO images and the page map.

use super::{Check, attribute, ensure, inside, path};
use images::file::Files;
use images::id::PAGE_SIZE;
use images::memory::{BLOCK_PAGES, Backing, Memory, Run, Shared, Space, Vma};
use images::task::{Task, Tree};
use images::{Abi, Addr};

/// All bits that [`images::memory::vm`] names.
const VM_FLAGS: u32 = (1 << 14) - 1;
/// PROT_READ, PROT_WRITE, PROT_EXEC.
const PROTECTION: u32 = 7;

pub(super) fn check(memory: &Memory, tree: &Tree, files: &Files) -> Check {
    super::pages_size(memory).map_err(|wrong| wrong.what)?;
    let (blocks, crcs) = (memory.page_count.div_ceil(BLOCK_PAGES), memory.block_crcs.len());
    ensure!(blocks == crcs as u64, "{crcs} checksums for {blocks} blocks");
    let (spaces, tasks) = (memory.spaces.len(), tree.tasks.len());
    ensure!(spaces == tasks, "{spaces} address spaces for {tasks} tasks");
    check_vdsos(memory)?;
    for (index, shared) in memory.shared.iter().enumerate() {
        check_shared(shared, memory).map_err(inside(format_args!("shared#{index}")))?;
    }
    for (space, task) in memory.spaces.iter().zip(&tree.tasks) {
        check_space(space, task, memory, files).map_err(inside(format_args!("task {}", task.pid)))?;
    }
    Ok(())
}

fn check_vdsos(memory: &Memory) -> Check {
    for (index, vdso) in memory.vdsos.iter().enumerate() {
        let (abi, size) = (vdso.abi, vdso.image.len() as u64);
        ensure!(!memory.vdsos[..index].iter().any(|other| other.abi == abi), "two vDSOs of {abi}");
        ensure!(size != 0 && size % PAGE_SIZE == 0, "the vDSO of {abi} has {size} bytes, not whole pages");
    }
    Ok(())
}

fn check_shared(shared: &Shared, memory: &Memory) -> Check {
    ensure!(shared.size <= i64::MAX as u64 - PAGE_SIZE, "{:#x} bytes", shared.size);
    check_runs(&shared.runs, memory)?;
    let end = shared.runs.last().map_or(0, end_of);
    ensure!(end <= shared.size.next_multiple_of(PAGE_SIZE), "contents up to {end:#x} of {:#x}", shared.size);
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
    check_private_runs(&space.runs, memory)?;
    let mut vmas = space.vmas.iter().peekable();
    for run in &space.runs {
        while vmas.next_if(|vma| vma.end <= run.start).is_some() {}
        let holder = vmas.peek().filter(|vma| vma.start <= run.start && end_of(run) <= vma.end.0);
        let private = |vma: &&&Vma| matches!(vma.backing, Backing::Anonymous | Backing::PrivateFile(..));
        let from = run.start;
        ensure!(holder.filter(private).is_some(), "contents at {from}: no private memory of that extent");
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
    match vma.backing {
        Backing::Anonymous | Backing::Vvar | Backing::VvarVclock => Ok(()),
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
            check_offset(offset, end - start)
        }
        Backing::Vdso => {
            ensure!(memory.vdsos.iter().any(|vdso| vdso.abi == abi), "there is no vDSO image of {abi}");
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

/// Runs of an object rise in address and in the page file without overlap, and stay inside the page file.
pub(super) fn check_runs(runs: &[Run], memory: &Memory) -> Check {
    check_private_runs(runs, memory)?;
    let mut page = 0;
    for run in runs {
        ensure!(run.first_page >= page, "contents at {}: out of order", run.start);
        page = run.first_page + run.pages;
    }
    Ok(())
}

/// Runs of private memory rise in address without overlap, and lie anywhere in the page file: several tasks can have the
/// same pages.
fn check_private_runs(runs: &[Run], memory: &Memory) -> Check {
    let mut address = 0;
    for run in runs {
        let start = run.start;
        ensure!(start.0 % PAGE_SIZE == 0, "contents at {start}: not page-aligned");
        ensure!(run.pages > 0, "contents at {start}: no page");
        let last = run.first_page.checked_add(run.pages).filter(|last| *last <= memory.page_count);
        ensure!(
            last.is_some(),
            "contents at {start}: pages {}+{} of {}",
            run.first_page,
            run.pages,
            memory.page_count
        );
        // The page count is bounded by now, so that the product is.
        let end = start.0.checked_add(run.pages * PAGE_SIZE);
        let Some(end) = end else { return Err(format!("contents at {start}: end beyond all addresses")) };
        ensure!(start.0 >= address, "contents at {start}: out of order");
        address = end;
    }
    Ok(())
}

/// One past the last byte of a run that [`check_runs`] has seen.
pub(super) fn end_of(run: &Run) -> u64 {
    run.start.0 + run.pages * PAGE_SIZE
}
