//! Properties of a task as a whole that have no file of their own.

use super::{Refuse, attribute};
use crate::proc::{Dir, decimal, hex};
use crate::ptrace::regs::low_half;
use crate::remote::{Arg, Batch, Buffer, Call, Handle, Reply};
use anyhow::{Context, Result};
use images::Addr;
use images::attribute::TaskAttributes;
use std::io;

/// What small files in `/proc/PID` tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Small {
    pub(crate) personality: u32,
    pub(crate) oom_score_adj: i32,
    pub(crate) coredump_filter: u32,
    pub(crate) login_uid: u32,
}

/// The login uid of tasks that come from no login, and of all where the kernel does not audit (AUDIT_UID_UNSET).
pub(crate) const NO_LOGIN: u32 = u32::MAX;

/// Reads them.
pub(crate) fn read_small(dir: &Dir, buffer: &mut Vec<u8>) -> Result<Small> {
    let mut read = |name: &str| -> Result<Vec<u8>> {
        dir.read_record(name, buffer).with_context(|| format!("read {name}"))?;
        Ok(buffer.trim_ascii().to_vec())
    };
    let personality = hex(&read("personality")?).context("personality")?;
    let oom_score_adj = decimal(&read("oom_score_adj")?).context("oom_score_adj")?;
    let coredump_filter = hex(&read("coredump_filter")?).context("coredump_filter")?;
    let login_uid = match dir.read_record("loginuid", buffer) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => NO_LOGIN,
        read => {
            read.context("read loginuid")?;
            decimal(buffer.trim_ascii()).context("loginuid")?
        }
    };
    Ok(Small {
        personality: low_half(personality),
        oom_score_adj,
        coredump_filter: low_half(coredump_filter),
        login_uid,
    })
}

/// prctl options, include/uapi/linux/prctl.h.
mod pr {
    pub(super) const GET_DUMPABLE: u64 = 3;
    pub(super) const GET_CHILD_SUBREAPER: u64 = 37;
}
/// arch_prctl option, arch/x86/include/uapi/asm/prctl.h.
const ARCH_GET_XCOMP_PERM: u64 = 0x1022;

/// The part of a batch that asks a task about itself.
#[derive(Debug)]
pub(crate) struct AskTask {
    brk: Handle,
    dumpable: Handle,
    subreaper: (Handle, Buffer),
    attributes: attribute::AskTask,
    xcomp: (Handle, Buffer),
}

/// What it answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inside {
    pub(crate) brk: Addr,
    pub(crate) dumpable: u32,
    pub(crate) child_subreaper: bool,
    pub(crate) xcomp_permission: u64,
    pub(crate) attributes: TaskAttributes,
}

impl AskTask {
    pub(crate) fn new(batch: &mut Batch) -> Self {
        let dumpable = batch.call(Call::Prctl, &[Arg::Value(pr::GET_DUMPABLE)]);
        let subreaper = batch.buffer(4);
        let xcomp = batch.buffer(8);
        Self {
            brk: batch.call(Call::Brk, &[]),
            dumpable,
            subreaper: {
                let args = [Arg::Value(pr::GET_CHILD_SUBREAPER), Arg::Out(subreaper)];
                (batch.call(Call::Prctl, &args), subreaper)
            },
            attributes: attribute::AskTask::new(batch),
            xcomp: {
                let args = [Arg::Value(ARCH_GET_XCOMP_PERM), Arg::Out(xcomp)];
                (batch.call(Call::ArchPrctl, &args), xcomp)
            },
        }
    }

    /// Decodes the answers and refuses what is not restored.
    pub(crate) fn read(&self, reply: &Reply, refuse: &mut Refuse<'_>) -> Result<Inside> {
        let dumpable = low_half(reply.result(self.dumpable).context("PR_GET_DUMPABLE")?);
        if dumpable > 1 {
            let reason = "its dumpable flag cannot be set again (it ran a program set to another user)";
            let hint = "have the program set it to 0 or 1 (PR_SET_DUMPABLE) before the dump";
            refuse.with_hint(format!("dumpable {dumpable}"), reason, hint);
        }
        reply.result(self.subreaper.0).context("PR_GET_CHILD_SUBREAPER")?;
        let xcomp_known = reply.result(self.xcomp.0).is_ok();
        Ok(Inside {
            brk: Addr(reply.result(self.brk).context("brk")?),
            dumpable,
            child_subreaper: reply.u32(self.subreaper.1, 0) != 0,
            xcomp_permission: if xcomp_known { reply.u64(self.xcomp.1, 0) } else { 0 },
            attributes: self.attributes.read(reply),
        })
    }
}
