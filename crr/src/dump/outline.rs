//! Asking a stopped task of which no more is known than its areas: for a round, or when a snapshot is done.

use super::collect::{abi, ask, outside};
use super::freeze::FrozenTask;
use crate::proc::smaps;
use crate::proc::status::Status;
use crate::ptrace::Stopped;
use crate::refusal::Refusals;
use crate::remote::{Cache, CodeArea, Gadget, Target, is_leftover};
use crate::resource::{Refuse, memory, pkey, rseq, seccomp};
use anyhow::{Context, Result};
use images::memory::{Backing, Vma};
use images::{Addr, PathId, Pid, VdsoId};
use std::ops::Range;

/// What `/proc/PID/maps` tells of a task.
#[derive(Debug, Default)]
pub(super) struct Areas {
    pub(super) anonymous: Vec<Vma>,
    vdso: Vec<Vma>,
    code: Vec<CodeArea>,
    pub(super) writable: Vec<Range<u64>>,
    /// A killed dump has left something.
    leftover: bool,
    /// Something that may write to memory by its pages, which nothing tells: requests of AIO, rings of io_uring, devices.
    pub(super) pins: Option<String>,
}

impl Areas {
    pub(super) fn of(deputy: Pid, text: &[u8]) -> Result<Self> {
        const PROT_EXEC: u32 = 4;
        let mut this = Self::default();
        smaps::parse_maps(text, |area| -> Result<()> {
            if area.name == b"[vsyscall]" {
                return Ok(());
            }
            if is_leftover(deputy, &area) {
                this.leftover = true;
                return Ok(());
            }
            if may_pin(area.name) {
                this.pins = Some(String::from_utf8_lossy(area.name).into_owned());
            }
            let backing = match area.name {
                b"[vdso]" => Backing::Vdso(VdsoId::default()),
                _ if memory::is_anonymous(&area) => Backing::Anonymous,
                _ => Backing::SharedFile(PathId(0), 0),
            };
            let (start, end) = (Addr(area.start), Addr(area.end));
            let vma = Vma { start, end, prot: area.prot, flags: 0, backing };
            match backing {
                Backing::Anonymous => this.anonymous.push(vma),
                Backing::Vdso(_) => this.vdso.push(vma),
                _ => {}
            }
            if area.prot & PROT_EXEC != 0 {
                this.code.push(CodeArea { start, size: end.0 - start.0, key: None });
            }
            if !area.shared && area.prot & 3 == 3 {
                this.writable.push(start.0..end.0);
            }
            Ok(())
        })?;
        this.code.sort_by_key(|area| area.size);
        Ok(this)
    }
}

/// Whether an area is that of something that may have a task's pages pinned (`FOLL_LONGTERM` and the like of mm/gup.c; a socket that is mapped can be one of
/// AF_XDP). What is written to them that way leaves no trace in the page tables, and it may end before the dump, which would refuse it.
fn may_pin(name: &[u8]) -> bool {
    let starts = |prefixes: &[&[u8]]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    starts(&[b"/[aio]", b"anon_inode:", b"socket:", b"/dev/"])
        && !starts(&[b"/dev/zero", b"/dev/shm/", b"/dev/hugepages/"])
}

/// The status of a task.
pub(super) fn read_status(task: &FrozenTask, buffer: &mut Vec<u8>) -> Result<Status> {
    outside::read_status(&task.dir, task.deputy(), buffer)
}

/// As [`target`], for calls by all threads, with a warning that the task cannot be tracked if it cannot make these.
pub(super) fn target_for_all(
    frozen: &FrozenTask,
    areas: &Areas,
    gadgets: &mut Cache,
) -> Result<Option<(Target, usize)>> {
    let mut refusals = Refusals::default();
    let refuse = &mut Refuse::new(&mut refusals, frozen.pid, &frozen.name);
    let mut target = target(frozen, areas, gadgets, refuse)?;
    if let Some((_, caller)) = &target {
        let others = frozen.threads.iter().enumerate().filter(|(index, _)| index != caller);
        for (_, thread) in others {
            if !may_call(frozen.deputy(), thread, refuse)? {
                target = None;
                break;
            }
        }
    }
    if let Err(refused) = refusals.finish("tracking") {
        log::warn!("{refused}");
    }
    if target.is_none() {
        log::warn!("task {} ({}) cannot be tracked now: it is dumped whole", frozen.pid, frozen.name);
    }
    Ok(target)
}

/// Whether a thread is at a place where it can make calls, and may use the memory that they need. It is taken out of a restartable sequence.
fn may_call(deputy: Pid, thread: &Stopped, refuse: &mut Refuse<'_>) -> Result<bool> {
    Ok(rseq::dump(deputy, thread, refuse)?.may_run && pkey::can_be_asked_now(thread, refuse)?)
}

/// How to have a task make calls, and by which of its threads; `None` if it cannot now.
pub(super) fn target(
    frozen: &FrozenTask,
    areas: &Areas,
    gadgets: &mut Cache,
    refuse: &mut Refuse<'_>,
) -> Result<Option<(Target, usize)>> {
    let FrozenTask { pid, dir, threads, .. } = frozen;
    let deputy = frozen.deputy();
    let mut buffer = Vec::new();
    let mut statuses = Vec::with_capacity(threads.len());
    for tid in threads.iter().map(Stopped::tid) {
        let status = outside::read_status(dir, tid, &mut buffer);
        statuses.push(status.with_context(|| format!("thread {tid}"))?);
    }
    let abi = abi::dump_vdso(deputy, dir, &mut areas.vdso.clone(), &mut Vec::new(), refuse)?;
    let (Some(abi), Some(whole)) = (abi, statuses.first()) else { return Ok(None) };
    for thread in threads {
        if thread.dispatch()?.is_some() {
            refuse.because(format!("thread {}", thread.tid()), "has system call user dispatch");
            return Ok(None);
        }
    }
    let caller = ask::caller(threads, abi)?;
    // To ask takes away what a killed dump has left, and a task that shares the memory may stand there.
    let may_run = !areas.leftover
        && may_call(deputy, &threads[caller], refuse)?
        && seccomp::suspend(threads, &statuses, true, refuse)?
        && ask::can_be_asked(threads, &[])?;
    let gadget = Gadget::find(deputy, abi, &areas.code, gadgets).filter(|_| may_run);
    let (ignored, caught, leftovers) = (whole.ignored, whole.caught, Vec::new());
    let target =
        |gadget| Target { pid: *pid, deputy, abi, gadget, vsyscall: None, ignored, caught, leftovers };
    Ok(gadget.map(|gadget| (target(gadget), caller)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_told_apart() {
        let maps = b"08048000-08049000 r-xp 00001000 fe:00 325843                             /bin/a\n\
            08100000-08200000 rw-p 00000000 00:00 0                                  [heap]\n\
            f7ee9000-f7ef3000 ---p 00000000 00:00 0 \n\
            f7f00000-f7f01000 rw-s 00000000 00:01 77                                 /dev/shm/a\n\
            f7f04000-f7f06000 r-xp 00000000 00:00 0                                  [vdso]\n\
            ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";
        let areas = Areas::of(1, maps).unwrap();
        assert_eq!(
            areas.anonymous.iter().map(|vma| vma.start.0).collect::<Vec<_>>(),
            [0x0810_0000, 0xf7ee_9000]
        );
        assert_eq!((areas.vdso.len(), areas.code.len(), areas.pins), (1, 2, None));
        assert_eq!(areas.writable[0], 0x0810_0000..0x0820_0000);
        for name in ["/[aio] (deleted)", "anon_inode:[io_uring]", "socket:[123]", "/dev/infiniband/uverbs0"] {
            let line = format!("f7f00000-f7f01000 rw-s 00000000 00:01 77        {name}\n");
            assert_eq!(Areas::of(1, line.as_bytes()).unwrap().pins.as_deref(), Some(name));
        }
    }
}
