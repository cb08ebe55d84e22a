//! seccomp: the programs that decide about the system calls of a thread, and how crr gets past them.
//!
//! The kernel hands out each program as it was installed. What it does not tell: which threads share a program by descent, and
//! SECCOMP_FILTER_FLAG_SPEC_ALLOW, whose effect alone is seen. The restore is `shared::plan::seccomp` and
//! `crate::restore::hold`.

mod bpf;
mod restart;

pub(crate) use restart::start_over_if_forbidden;

use super::Refuse;
use crate::dump::guard::Unguarded;
use crate::proc::status::Status;
use crate::ptrace::{Error, Stopped};
use crate::refusal::Refusals;
use crate::resource::creds::CAP_SYS_ADMIN;
use crate::restore::environment::Environment;
use anyhow::{Result, bail};
use images::FilterId;
use images::seccomp::{Filter, INSTRUCTION, Seccomp};
use images::task::Tree;
use nix::errno::Errno;
use std::collections::HashMap;

/// Modes, include/uapi/linux/seccomp.h.
const OFF: u32 = 0;
const STRICT: u32 = 1;
/// SECCOMP_FILTER_FLAG_LOG.
const FLAG_LOG: u64 = 1 << 1;

/// Why crr gets no further, and the way out.
const NO_RIGHT: &str =
    "crr may not look past its seccomp mode (needs CAP_SYS_ADMIN, and no seccomp of its own)";
const MORE_RIGHTS: &str = "run crr as root, outside of any container";

/// The programs of a tree, each once.
#[derive(Debug, Default)]
pub(crate) struct Table {
    ids: HashMap<Filter, FilterId>,
    all: Vec<Filter>,
}

impl Table {
    pub(crate) fn into_filters(self) -> Vec<Filter> {
        self.all
    }

    /// The mode of one thread, with its filters.
    pub(crate) fn dump(
        &mut self,
        thread: &Stopped,
        status: &Status,
        refuse: &mut Refuse<'_>,
    ) -> Result<Seccomp> {
        match status.seccomp {
            OFF => return Ok(Seccomp::Off),
            STRICT => return Ok(Seccomp::Strict),
            _ => {}
        }
        let object = format!("thread {}", thread.tid());
        let mut filters = Vec::new();
        loop {
            let program = match thread.seccomp_filter(filters.len()) {
                Ok(Some(program)) => program,
                Ok(None) => break,
                Err(Error::Request { errno: Errno::EACCES, .. }) => {
                    refuse.with_hint(object, NO_RIGHT, MORE_RIGHTS);
                    return Ok(Seccomp::Off);
                }
                Err(e) => return Err(e.into()),
            };
            if may_notify(&program) {
                let reason =
                    "has a seccomp filter that may leave a call to another process (SECCOMP_RET_USER_NOTIF)";
                let hint = "start the program without that filter: which process listens cannot be told";
                refuse.with_hint(object.as_str(), reason, hint);
            }
            let log = thread.seccomp_flags(filters.len())? & FLAG_LOG != 0;
            filters.push(self.id(Filter { program, log }));
        }
        Ok(Seccomp::Filters { filters, speculation: !status.speculation_forbidden })
    }

    fn id(&mut self, filter: Filter) -> FilterId {
        if let Some(&id) = self.ids.get(&filter) {
            return id;
        }
        let id = FilterId(u32::try_from(self.all.len()).unwrap_or(u32::MAX));
        self.all.push(filter.clone());
        self.ids.insert(filter, id);
        id
    }
}

/// Whether a program can answer SECCOMP_RET_USER_NOTIF, by an answer that is written in it or one that it computes.
///
/// Without a listener that answer is ENOSYS; whether there is one is not told, and it can be any process.
fn may_notify(program: &[u8]) -> bool {
    /// `BPF_RET | BPF_K` and `BPF_RET | BPF_A`.
    const RET_K: u16 = 0x06;
    const RET_A: u16 = 0x16;
    const ACTION: u32 = 0xffff_0000;
    const USER_NOTIF: u32 = 0x7fc0_0000;
    program.chunks_exact(INSTRUCTION).any(|instruction| {
        let code = u16::from_le_bytes([instruction[0], instruction[1]]);
        let k = u32::from_le_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]);
        code == RET_A || (code == RET_K && k & ACTION == USER_NOTIF)
    })
}

/// Takes the effect from the seccomp modes of a task until crr lets go of it. False when that cannot be, which is refused.
///
/// # Errors
/// [`Unguarded`] if there are any and this process is not `guarded`.
pub(crate) fn suspend(
    threads: &[Stopped],
    statuses: &[Status],
    guarded: bool,
    refuse: &mut Refuse<'_>,
) -> Result<bool> {
    for (thread, _) in threads.iter().zip(statuses).filter(|(_, status)| status.seccomp != OFF) {
        if !guarded {
            bail!(Unguarded);
        }
        match thread.suspend_seccomp() {
            Ok(()) => {}
            Err(Error::Request { errno: Errno::EPERM, .. }) => {
                refuse.with_hint(format!("thread {}", thread.tid()), NO_RIGHT, MORE_RIGHTS);
                return Ok(false);
            }
            Err(Error::Request { errno: Errno::EINVAL, .. }) => {
                let reason = "this kernel cannot suspend seccomp (needs CONFIG_CHECKPOINT_RESTORE)";
                refuse.because(format!("thread {}", thread.tid()), reason);
                return Ok(false);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(true)
}

/// What stands in the way of a restore.
pub(crate) fn preflight(refusals: &mut Refusals, tree: &Tree, own: &Environment) {
    if own.seccomp == OFF && own.creds.cap_effective & CAP_SYS_ADMIN != 0 {
        return;
    }
    for task in tree.tasks.iter().filter(|task| shared::plan::seccomp::is_held(task)) {
        let comm = String::from_utf8_lossy(&task.threads[0].comm).into_owned();
        let reason = "can be set again only with CAP_SYS_ADMIN, and without any seccomp of crr's own";
        refusals.task((task.pid, &comm), "seccomp mode", reason, Some(MORE_RIGHTS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(instructions: &[(u16, u32)]) -> Vec<u8> {
        let encode = |&(code, k): &(u16, u32)| [&code.to_le_bytes()[..], &[0, 0], &k.to_le_bytes()].concat();
        instructions.iter().flat_map(encode).collect()
    }

    #[test]
    fn listeners_are_noticed() {
        const LOAD: u16 = 0x20;
        assert!(!may_notify(&program(&[(LOAD, 0x7fc0_0000), (0x06, 0x7fff_0000), (0x06, 0x0005_0001)])));
        assert!(may_notify(&program(&[(0x06, 0x7fff_0000), (0x06, 0x7fc0_0000)])));
        assert!(may_notify(&program(&[(LOAD, 0), (0x16, 0)])));
    }

    #[test]
    fn equal_filters_are_one() {
        let mut table = Table::default();
        let filter = |log| Filter { program: program(&[(0x06, 0x7fff_0000)]), log };
        assert_eq!(table.id(filter(false)), table.id(filter(false)));
        assert_ne!(table.id(filter(false)), table.id(filter(true)));
        assert_eq!(table.into_filters().len(), 2);
    }
}
