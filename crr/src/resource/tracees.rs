//! Tasks that a task traces: a restored one would be their tracer no more.

use super::Refuse;
use crate::proc::tasks::{self, comm_of};
use crate::proc::{Dir, status};
use crate::remote::{Arg, Batch, Call, Handle, Reply};
use anyhow::{Context, Result, bail};
use images::Pid;
use nix::errno::Errno;

/// The part of a batch that asks a task whether it traces anybody. No file tells that, short of those of all threads of the
/// machine.
#[derive(Debug)]
pub(crate) struct AskTracees(Handle);

impl AskTracees {
    pub(crate) fn new(batch: &mut Batch) -> Self {
        const P_ALL: u64 = 0;
        // WNOHANG | WSTOPPED | WEXITED | WNOWAIT | __WCLONE: of children only those with another exit signal than SIGCHLD, and
        // whoever is traced (eligible_child() of kernel/exit.c). Nobody is waited for.
        const OPTIONS: u64 = 0x8100_0007;
        let args = [P_ALL, 0, 0, OPTIONS, 0].map(Arg::Value);
        Self(batch.call(Call::Waitid, &args))
    }

    /// Refuses tracees by name.
    pub(crate) fn check(&self, reply: &Reply, refuse: &mut Refuse<'_>) -> Result<()> {
        match reply.result(self.0) {
            Err(Errno::ECHILD) => Ok(()),
            Ok(_) => {
                for tracee in of(refuse.pid()).context("look for tracees")? {
                    let object = format!("thread {tracee} ({})", comm_of(tracee));
                    let reason = "is traced by this task (ptrace), and would be no more";
                    refuse.with_hint(object, reason, "have the debugger detach before the dump");
                }
                Ok(())
            }
            Err(errno) => bail!("waitid: {errno}"),
        }
    }
}

/// All threads that a task traces.
fn of(tracer: Pid) -> Result<Vec<Pid>> {
    let threads = Dir::task(tracer)?.numbers::<Pid>("task")?;
    let mut buffer = Vec::new();
    let mut found = Vec::new();
    for pid in tasks::all()? {
        // Who is gone meanwhile is traced by nobody.
        let Ok(dir) = Dir::task(pid) else { continue };
        for tid in dir.numbers::<Pid>("task").unwrap_or_default() {
            if dir.read_record(&format!("task/{tid}/status"), &mut buffer).is_ok()
                && status::parse(&buffer).is_ok_and(|status| threads.contains(&status.tracer))
            {
                found.push(tid);
            }
        }
    }
    Ok(found)
}
