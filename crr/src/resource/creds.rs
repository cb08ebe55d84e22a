//! Identity and privileges: per thread in the kernel, shown by `/proc/PID/task/TID/status`.

use crate::proc::status::Status;
use images::thread::Creds;

/// CAP_SYS_RESOURCE of include/uapi/linux/capability.h, as a bit: who has it may exceed limits.
pub(crate) const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// CAP_SYS_ADMIN.
pub(crate) const CAP_SYS_ADMIN: u64 = 1 << 21;

/// CAP_PERFMON.
pub(crate) const CAP_PERFMON: u64 = 1 << 38;

/// The record, with the securebits that the thread itself told.
#[must_use]
pub fn dump_creds(status: &Status, securebits: u32) -> Creds {
    let [inheritable, permitted, effective, bounding, ambient] = status.caps;
    Creds {
        uid: status.uid,
        gid: status.gid,
        groups: status.groups.clone(),
        cap_inheritable: inheritable,
        cap_permitted: permitted,
        cap_effective: effective,
        cap_bounding: bounding,
        cap_ambient: ambient,
        securebits,
        no_new_privs: status.no_new_privs,
    }
}
