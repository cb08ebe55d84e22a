//! Memory policies: which NUMA nodes the pages of a thread or of an address range come from.

pub(crate) mod shared;

use crate::parallel;
use crate::proc::{Dir, decimal, hex};
use crate::ptrace::{Patience, Stopped};
use crate::refusal::Refusals;
use crate::remote::{Arg, Batch, Buffer, Call, Executor, Handle, Reply};
use crate::sys::attribute as own;
use anyhow::{Context, Result};
use images::attribute::{AreaPolicy, MemoryPolicy};
use images::memory::{Backing, Space, Vma};
use images::task::Task;
use images::{Abi, Addr, Pid};
use std::thread::{self, Scope, ScopedJoinHandle};

/// MPOL_F_ADDR: the policy of an address, not of the thread.
const MPOL_F_ADDR: u64 = 2;
/// MPOL_F_RELATIVE_NODES: its nodes are counted among those that are allowed.
const MPOL_F_RELATIVE_NODES: u32 = 1 << 14;
/// Nodes that are asked for: MAX_NUMNODES of the largest kernels, as the bits of a mask.
const NODES: u64 = 1024;
const MASK_BYTES: usize = 128;
/// Whole answers of that size that fit the buffers of one batch.
const WHOLE_ANSWERS: usize = 50;

/// A mask without the words of zeros at its end.
fn trimmed(mut words: Vec<u64>) -> Vec<u64> {
    while words.last() == Some(&0) {
        words.pop();
    }
    words
}

/// One call of get_mempolicy, with all its answers.
#[derive(Debug)]
struct Ask {
    handle: Handle,
    mode: Buffer,
    nodes: Buffer,
}

impl Ask {
    fn new(batch: &mut Batch, addr: Option<Addr>) -> Self {
        let (mode, nodes) = (batch.buffer(4), batch.buffer(MASK_BYTES));
        let (addr, flags) = addr.map_or((0, 0), |addr| (addr.0, MPOL_F_ADDR));
        let args = [Arg::Out(mode), Arg::Out(nodes), Arg::Value(NODES), Arg::Value(addr), Arg::Value(flags)];
        Self { handle: batch.call(Call::GetMempolicy, &args), mode, nodes }
    }

    fn read(&self, reply: &Reply) -> nix::Result<MemoryPolicy> {
        reply.result(self.handle)?;
        let nodes = (0..MASK_BYTES / 8).map(|word| reply.u64(self.nodes, word * 8)).collect();
        Ok(MemoryPolicy { mode: reply.u32(self.mode, 0), nodes: trimmed(nodes) })
    }
}

/// The part of a batch that asks a thread about its policy.
#[derive(Debug)]
pub(super) struct AskThread(Ask);

impl AskThread {
    pub(super) fn new(batch: &mut Batch) -> Self {
        Self(Ask::new(batch, None))
    }

    /// The answer. A kernel without CONFIG_NUMA has no such call, and no policies.
    pub(super) fn read(&self, reply: &Reply) -> MemoryPolicy {
        self.0.read(reply).unwrap_or_default()
    }
}

/// The policy that fork and exec pass on from this process.
pub(super) fn inherited() -> MemoryPolicy {
    let Ok((mode, nodes)) = own::memory_policy() else { return MemoryPolicy::default() };
    MemoryPolicy { mode, nodes: trimmed(nodes.to_vec()) }
}

/// Areas from which on it is worth a thread to read of all which have a policy ([`Aside`]).
pub(crate) const MANY_AREAS: usize = 1024;

/// The areas that have a policy, being read by a thread of its own while this one reads what else procfs tells of them: asking for so many would take
/// longer than that.
#[derive(Debug)]
pub(crate) struct Aside<'scope>(ScopedJoinHandle<'scope, Option<Vec<u64>>>);

impl<'scope> Aside<'scope> {
    /// Begins, if there is a processor for it.
    pub(crate) fn begin(scope: &'scope Scope<'scope, '_>, dir: &'scope Dir) -> Option<Self> {
        /// As it looks at all pages, there should not be too many for so many areas.
        const MOST_PAGES: u64 = MANY_AREAS as u64 * 32;
        if parallel::processors() == 1 {
            return None;
        }
        let read = move || {
            let mut text = Vec::new();
            dir.read_record("statm", &mut text).inspect_err(|e| log::debug!("read statm: {e}")).ok()?;
            let resident = text.split(|&byte| byte == b' ').nth(1).and_then(decimal::<u64>)?;
            if resident <= MOST_PAGES { with_policies(dir) } else { None }
        };
        thread::Builder::new().spawn_scoped(scope, read).ok().map(Self)
    }

    /// The starts of the areas, in order; `None` if they have to be asked about all the same.
    pub(crate) fn finish(self) -> Option<Vec<u64>> {
        self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// The areas of which `numa_maps` tells another policy than the default; `None` if it cannot be read, since they can be asked about as well.
fn with_policies(dir: &Dir) -> Option<Vec<u64>> {
    let mut text = Vec::new();
    match dir.read("numa_maps", &mut text) {
        Ok(()) => Some(not_default(&text)),
        // Without CONFIG_NUMA there are no policies.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Some(Vec::new()),
        Err(e) => {
            log::debug!("read numa_maps: {e}");
            None
        }
    }
}

/// The policies of a task's areas; `resident_kib` is how much of them is in memory, `told` what [`Aside`] has found.
///
/// Each area is asked about by a call of the task. `numa_maps` tells of all at once, but looks at every page: it is taken
/// where that costs less, which is for small tasks in ia32 code (by some virtual machines, `int 0x80` is
/// emulated and takes 8 µs; numa_maps takes 4 µs an area and 16 µs a MiB), and for all but large ones that make calls one by one.
pub(crate) fn dump_areas(
    executor: &Executor,
    leader: &mut Stopped,
    dir: &Dir,
    (vmas, resident_kib): (&[Vma], u64),
    told: Option<Vec<u64>>,
    patience: &Patience,
) -> Result<Vec<AreaPolicy>> {
    let from_kernel =
        |vma: &&Vma| matches!(vma.backing, Backing::Vdso(_) | Backing::Vvar | Backing::VvarVclock);
    let mut asked: Vec<&Vma> = vmas.iter().filter(|vma| !from_kernel(vma)).collect();
    let kib_for_an_area = if executor.is_slow() {
        1024
    } else if executor.batch(leader)?.abi() == Abi::Ia32 {
        256
    } else {
        0
    };
    let told = match told {
        None if resident_kib < kib_for_an_area * vmas.len() as u64 => with_policies(dir),
        told => told,
    };
    if let Some(told) = told {
        asked.retain(|vma| told.binary_search(&vma.start.0).is_ok());
    }
    let mut having = Vec::new();
    for some in asked.chunks(Batch::ROOM) {
        having.extend(having_policy(executor, leader, some, patience)?);
    }
    let mut policies = Vec::with_capacity(having.len());
    for some in having.chunks(WHOLE_ANSWERS) {
        let mut batch = executor.batch(leader)?;
        let asks: Vec<Ask> = some.iter().map(|vma| Ask::new(&mut batch, Some(vma.start))).collect();
        let reply = executor.run(leader, &batch, patience)?;
        for (vma, ask) in some.iter().zip(asks) {
            let policy = ask.read(&reply).with_context(|| format!("get_mempolicy of {}", vma.start))?;
            policies.push(AreaPolicy { start: vma.start, end: vma.end, policy });
        }
    }
    Ok(policies)
}

/// Those of these areas, as many as one batch takes, that have a policy of their own.
fn having_policy<'a>(
    executor: &Executor,
    leader: &mut Stopped,
    some: &[&'a Vma],
    patience: &Patience,
) -> Result<Vec<&'a Vma>> {
    let mut batch = executor.batch(leader)?;
    let none = Arg::Value(0);
    let asks: Vec<(Handle, Buffer)> = some
        .iter()
        .map(|vma| {
            let mode = batch.buffer(4);
            let args = [Arg::Out(mode), none, none, Arg::Value(vma.start.0), Arg::Value(MPOL_F_ADDR)];
            (batch.call(Call::GetMempolicy, &args), mode)
        })
        .collect();
    let reply = executor.run(leader, &batch, patience)?;
    let has = |&(handle, mode): &(Handle, Buffer)| reply.result(handle).is_ok() && reply.u32(mode, 0) != 0;
    Ok(some.iter().zip(&asks).filter(|(_, ask)| has(ask)).map(|(vma, _)| *vma).collect())
}

/// The starts of areas for which `numa_maps` shows another policy than the default: `start policy more...`, in order. That
/// of the leading thread is shown for areas without one.
fn not_default(text: &[u8]) -> Vec<u64> {
    text.split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let mut words = line.split(|&byte| byte == b' ');
            let start = hex(words.next()?)?;
            (words.next()? != b"default").then_some(start)
        })
        .collect()
}

/// Policies whose nodes are all missing here.
pub(super) fn preflight(
    refusals: &mut Refusals,
    who: (Pid, &str),
    task: &Task,
    space: &Space,
    allowed: &[u64],
) {
    let threads = task.threads.iter().map(|t| (format!("thread {}", t.tid), &t.attributes.policy));
    let areas = space.policies.iter().map(|area| (format!("{}-{}", area.start, area.end), &area.policy));
    for (object, _) in threads.chain(areas).filter(|(_, policy)| !fits(policy, allowed)) {
        let reason = "its memory policy names only nodes that are not there or not allowed";
        refusals.task(who, object, reason, None);
    }
}

/// Whether the kernel takes a policy where these nodes are allowed (mpol_set_nodemask() of mm/mempolicy.c).
fn fits(policy: &MemoryPolicy, allowed: &[u64]) -> bool {
    policy.nodes.is_empty()
        || policy.mode & MPOL_F_RELATIVE_NODES != 0
        || policy.nodes.iter().zip(allowed).any(|(want, have)| want & have != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numa_maps_tells_who_has_a_policy() {
        let text = b"08048000 default file=/a mapped=1 N0=1 kernelpagesize_kB=4\nf7bd6000 interleave:0\n\
            f7be0000 bind=static:0-1 anon=2 dirty=2 N0=2 kernelpagesize_kB=4\n";
        assert_eq!(not_default(text), [0xf7bd_6000, 0xf7be_0000]);
    }

    #[test]
    fn a_policy_fits_where_one_of_its_nodes_is() {
        let policy = |mode, nodes: &[u64]| MemoryPolicy { mode, nodes: nodes.to_vec() };
        assert!(fits(&policy(0, &[]), &[1]));
        assert!(fits(&policy(2, &[3]), &[1]));
        assert!(!fits(&policy(2, &[2]), &[1]));
        assert!(!fits(&policy(2, &[0, 1]), &[u64::MAX]));
        assert!(fits(&policy(2 | MPOL_F_RELATIVE_NODES, &[2]), &[1]));
    }
}
