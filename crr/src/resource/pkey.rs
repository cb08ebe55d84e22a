//! Protection keys of memory (pkeys(7)): those that a task has allocated are refused.
//!
//! The one that the kernel takes for memory that may only be executed is another matter: it counts as not allocated, and a restore gets it by
//! protecting that memory again (execute_only_pkey() and mm_pkey_is_allocated() of arch/x86).

use super::Refuse;
use super::xstate::PKRU;
use crate::ptrace::{Patience, Stopped};
use crate::remote::{Arg, Call, Executor, Handle};
use crate::sys::process::enabled_xfeatures;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;

/// Keys that a program can allocate: 0 is that of all other memory.
const KEYS: std::ops::RangeInclusive<u64> = 1..=15;
/// The key of memory that may only be executed, where no other one is allocated: the lowest that is free.
const EXECUTE_ONLY: u32 = 1;
const PROT_READ: u64 = 1;
const PROT_EXEC: u32 = 4;
/// The last page of an address space of 56 bits, in its low half that of one of 32 bits: the kernel lets nobody map either (TASK_SIZE_MAX and
/// IA32_PAGE_OFFSET of arch/x86).
const NOWHERE: u64 = 0x00ff_ffff_ffff_f000;
const PAGE: u64 = 4096;

/// Whether an area has its key by its protection alone.
pub(crate) fn is_implied(prot: u32, key: u32) -> bool {
    key == 0 || (prot == PROT_EXEC && key == EXECUTE_ONLY)
}

/// Refuses keys that a task has allocated, whether memory has them or not. It asks for the protection of a page that is not there: the kernel looks
/// at the key first, EINVAL, and then finds no memory, ENOMEM (do_mprotect_pkey() of mm/mprotect.c).
pub(crate) fn check(
    executor: &Executor,
    deputy: &mut Stopped,
    refuse: &mut Refuse<'_>,
    patience: &Patience,
) -> Result<()> {
    if enabled_xfeatures() >> PKRU & 1 == 0 {
        return Ok(());
    }
    let mut batch = executor.batch(deputy)?;
    let mut ask = |key| {
        let args = [NOWHERE, PAGE, PROT_READ, key].map(Arg::Value);
        (key, batch.call(Call::PkeyMprotect, &args))
    };
    let asked: Vec<(u64, Handle)> = KEYS.map(&mut ask).collect();
    let reply = executor.run(deputy, &batch, patience)?;
    for (key, handle) in asked {
        match reply.result(handle) {
            Err(Errno::ENOMEM) => {
                let hint = "have the program free it (pkey_free) before the dump";
                refuse.with_hint(format!("protection key {key}"), "is allocated (pkey_alloc)", hint);
            }
            // ENOSYS: from a kernel without CONFIG_X86_INTEL_MEMORY_PROTECTION_KEYS.
            Err(Errno::EINVAL | Errno::ENOSYS) => {}
            Err(errno) => return Err(errno).context("ask for protection keys"),
            Ok(_) => bail!("ask for protection keys: there is memory at {NOWHERE:#x}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_to_execute_has_its_key_by_that() {
        assert!(is_implied(3, 0) && is_implied(PROT_EXEC, 0) && is_implied(PROT_EXEC, EXECUTE_ONLY));
        assert!(!is_implied(3, 1) && !is_implied(PROT_EXEC | 1, 1) && !is_implied(PROT_EXEC, 2));
    }
}
