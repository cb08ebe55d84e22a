//! Protection keys of memory (pkeys(7)): which a task has allocated, and whether its threads may use memory that has none.
//!
//! The one that the kernel takes for memory that may only be executed counts as not allocated (mm_pkey_is_allocated() of arch/x86). How all of them come back
//! is planned by [`shared::plan::pkey`]; the rights of a thread are in its extended state.

use super::Refuse;
use super::xstate::{PKRU, contents, header};
use crate::kernel;
use crate::ptrace::{Stopped, regs};
use crate::refusal::Refusals;
use crate::remote::{Arg, Batch, Call, Handle, Reply};
use crate::store::Checkpoint;
use crate::sys::process::enabled_xfeatures;
use crate::sys::xsave;
use anyhow::{Context, Result, bail};
use images::Pid;
use images::inventory::StateComponent;
use images::memory::{Space, Vma};
use images::thread::Thread;
use nix::errno::Errno;
use shared::plan::pkey::{are_needed, strange};

/// Keys that a program can allocate: 0 is that of all other memory.
const KEYS: std::ops::RangeInclusive<u16> = 1..=15;
const PROT_READ: u64 = 1;
/// The last page of an address space of 56 bits, in its low half that of one of 32 bits: the kernel lets nobody map either (TASK_SIZE_MAX and
/// IA32_PAGE_OFFSET of arch/x86).
const NOWHERE: u64 = 0x00ff_ffff_ffff_f000;
const PAGE: u64 = 4096;

/// Where the rights of a thread lie in its extended state, if this processor has keys.
pub(crate) fn place_of_rights() -> Option<StateComponent> {
    (enabled_xfeatures() >> PKRU & 1 != 0).then(|| xsave::component(PKRU))
}

/// The part of a batch that asks which keys a task has allocated, whether memory has them or not. It asks for the protection of a page that is not there: the
/// kernel looks at the key first, EINVAL, and then finds no memory, ENOMEM (do_mprotect_pkey() of mm/mprotect.c).
#[derive(Debug)]
pub(crate) struct AskKeys(Vec<(u16, Handle)>);

impl AskKeys {
    pub(crate) fn new(batch: &mut Batch) -> Self {
        let call = |key: u16| {
            let args = [NOWHERE, PAGE, PROT_READ, key.into()].map(Arg::Value);
            (key, batch.call(Call::PkeyMprotect, &args))
        };
        Self(KEYS.map(call).collect())
    }

    /// The answer, a bit for each key.
    pub(crate) fn read(&self, reply: &Reply) -> Result<u16> {
        let mut allocated = 0;
        for &(key, handle) in &self.0 {
            match reply.result(handle) {
                Err(Errno::ENOMEM) => allocated |= 1 << key,
                // ENOSYS: from a kernel without CONFIG_X86_INTEL_MEMORY_PROTECTION_KEYS.
                Err(Errno::EINVAL | Errno::ENOSYS) => {}
                Err(errno) => return Err(errno).context("ask for protection keys"),
                Ok(_) => bail!("ask for protection keys: there is memory at {NOWHERE:#x}"),
            }
        }
        Ok(allocated)
    }
}

/// Refuses areas whose key has been freed, or is one that no program could give them, and keys whose rights no restore could bring back.
pub(crate) fn check(space: &Space, refuse: &mut Refuse<'_>) {
    if are_needed(space)
        && let Err(reason) = kernel::key_rights()
    {
        refuse.with_hint("protection keys", format!("cannot be restored: {reason}"), "see crr check");
    }
    for vma in strange(space) {
        let object = format!("{}-{}", vma.start, vma.end);
        let reason = format!("has protection key {}, which is not allocated", vma.key());
        refuse.with_hint(object, reason, "have the program give it key 0 (pkey_mprotect) before the dump");
    }
}

/// Whether a thread can make calls for crr: it needs memory that has no key, and its own stack. Refused if not.
pub(crate) fn can_be_asked(
    thread: &Thread,
    vmas: &[Vma],
    place: Option<StateComponent>,
    refuse: &mut Refuse<'_>,
) -> bool {
    let sp = regs::sp(&thread.regs);
    let stack = vmas.get(vmas.partition_point(|vma| vma.end <= sp)).filter(|vma| vma.start <= sp);
    may_use((thread.tid, &thread.xstate), &[0, stack.map_or(0, Vma::key)], place, refuse)
}

/// The same of a thread of which no more is known: whether it may use memory that has no key.
///
/// # Errors
/// If it is gone.
pub(crate) fn can_be_asked_now(thread: &Stopped, refuse: &mut Refuse<'_>) -> Result<bool> {
    let Some(place) = place_of_rights() else { return Ok(true) };
    Ok(may_use((thread.tid(), &thread.xstate()?), &[0], Some(place), refuse))
}

/// Whether a thread with this extended state may use memory with all of these keys. Refused if not.
fn may_use(
    (tid, xstate): (Pid, &[u8]),
    keys: &[u32],
    place: Option<StateComponent>,
    refuse: &mut Refuse<'_>,
) -> bool {
    let Some(rights) = place.and_then(|place| rights_in(xstate, place)) else { return true };
    let denied = keys.iter().find(|&&key| denies(rights, key));
    if let Some(key) = denied {
        let reason = format!("may not use memory with protection key {key} now, so it cannot be asked");
        refuse.with_hint(format!("thread {tid}"), reason, "dump again");
    }
    denied.is_none()
}

/// The rights in an extended state. A register that is in its initial state, 0, is not in it (XSTATE_BV), and what stands there means nothing.
fn rights_in(area: &[u8], place: StateComponent) -> Option<u32> {
    let rights = u32::from_le_bytes(*contents(area, place)?.first_chunk()?);
    Some(if header(area) >> place.number & 1 == 0 { 0 } else { rights })
}

/// Whether a thread with these rights may not read, or not write, memory with a key: two bits for each.
const fn denies(rights: u32, key: u32) -> bool {
    rights >> (2 * key) & 3 != 0
}

/// A processor without keys cannot restore who has some, nor a kernel that does not let threads be given their rights.
pub(crate) fn preflight(refusals: &mut Refusals, checkpoint: &Checkpoint) {
    let spaces = checkpoint.tree.tasks.iter().zip(&checkpoint.memory.spaces);
    let users: Vec<_> = spaces.filter(|(_, space)| are_needed(space)).map(|(task, _)| task).collect();
    if users.is_empty() {
        return;
    }
    let Err(reason) = kernel::key_rights() else { return };
    for task in users {
        let comm = String::from_utf8_lossy(&task.threads[0].comm).into_owned();
        refusals.task((task.pid, &comm), "protection keys", format!("are in use, and {reason}"), None);
    }
}

#[cfg(test)]
mod tests {
    use super::super::xstate::XSTATE_BV;
    use super::*;

    #[test]
    fn rights_that_are_not_held_are_all() {
        let place = StateComponent { number: PKRU, offset: 576, size: 8 };
        let mut area = vec![0x55; 584];
        area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&3u64.to_le_bytes());
        assert_eq!(rights_in(&area, place), Some(0));
        area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&(3u64 | 1 << PKRU).to_le_bytes());
        assert_eq!(rights_in(&area, place), Some(0x5555_5555));
        assert_eq!(rights_in(&area[..512], place), None);
    }

    #[test]
    fn rights_are_two_bits_for_each_key() {
        let of_exec = 0x5555_5554;
        assert!(!denies(of_exec, 0) && denies(of_exec, 1) && denies(of_exec, 15));
        assert!(denies(2, 0) && !denies(2, 1) && denies(8, 1) && !denies(8, 2));
    }
}
