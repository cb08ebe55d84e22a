//! Keyrings of a thread and of a task: their keys are for those alone who possess them, so they are refused.
//!
//! Asked for without KEY_LOOKUP_CREATE they answer ENOKEY where there are none, and nothing is made (lookup_user_key() of
//! security/keys/process_keys.c). The session keyring is not asked for: where a task has none, that same function installs the one
//! of its user at the time, for good, and the task would keep it across a later change of user.

use super::Refuse;
use crate::remote::{Arg, Batch, Call, Handle, Reply};
use anyhow::{Context, Result};
use images::Pid;
use nix::errno::Errno;

/// KEY_SPEC_THREAD_KEYRING and KEY_SPEC_PROCESS_KEYRING, include/uapi/linux/keyctl.h.
const KEYRINGS: [(u64, &str); 2] =
    [(1u64.wrapping_neg(), "has a thread keyring"), (2u64.wrapping_neg(), "has a process keyring")];

/// The part of a batch that asks one thread.
#[derive(Debug)]
pub(crate) struct AskKeyrings([Handle; 2]);

impl AskKeyrings {
    pub(crate) fn new(batch: &mut Batch) -> Self {
        const GET_KEYRING_ID: u64 = 0;
        Self(KEYRINGS.map(|(id, _)| batch.call(Call::Keyctl, &[Arg::Value(GET_KEYRING_ID), Arg::Value(id)])))
    }

    /// Refuses those that exist.
    pub(crate) fn check(&self, reply: &Reply, tid: Pid, refuse: &mut Refuse<'_>) -> Result<()> {
        for (handle, (_, reason)) in self.0.iter().zip(KEYRINGS) {
            match reply.result(*handle) {
                Ok(_) => {}
                Err(Errno::ENOKEY | Errno::ENOSYS) => continue,
                // There is one, expired, revoked or closed to the task itself.
                Err(Errno::EKEYEXPIRED | Errno::EKEYREVOKED | Errno::EACCES) => {}
                Err(errno) => return Err(errno).context("ask for a keyring"),
            }
            let hint = "have the program keep its keys in the keyring of its user";
            refuse.with_hint(format!("thread {tid}"), reason, hint);
        }
        Ok(())
    }
}
